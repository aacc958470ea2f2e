"""PIT values and residuals of known laws, and the Ljung-Box statistic against its formula."""

import pytest
import torch

from pyro_sde.diagnostics.residuals import ljung_box, normal_residuals, pit
from pyro_sde.testing.statistics import assert_mean, chi2_test, ks_test


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def poisson(*shape, seed=0):
    return torch.poisson(torch.full(shape, 2.0), generator=torch.Generator().manual_seed(seed)).double()


# --- pit --------------------------------------------------------------------------------


def test_pit_is_the_rank_between_the_draws():
    draws = torch.arange(3.0).reshape(3, 1, 1).expand(3, 4, 1)
    u = pit(draws, torch.tensor([[-1.0], [0.5], [1.5], [9.0]]), seed=0)
    assert u.dtype == torch.float64
    assert ((u * 4).floor().squeeze() == torch.arange(4)).all()


@pytest.mark.parametrize("size", [3, 50])
@pytest.mark.parametrize("make", [normal, poisson])
def test_pit_of_draws_of_the_law_is_uniform(size, make):
    u = pit(make(size, 20_000, 1), make(20_000, 1, seed=1), seed=2)
    ks_test(u[:, 0], lambda x: x.clamp(0, 1)).require(detects=0.03)


def test_pit_tells_narrow_wide_and_low_predictions_apart():
    target = normal(4000, 1)
    narrow, wide, low = (pit(draws, target, seed=0) for draws in (
        0.5 * normal(99, 4000, 1, seed=1), 2 * normal(99, 4000, 1, seed=1), normal(99, 4000, 1, seed=1) - 1,
    ))  # fmt: skip
    assert narrow.var() > 0.12 > 1 / 12 > 0.06 > wide.var()
    assert low.mean() > 0.7


def test_pit_is_nan_where_masked_and_nowhere_else():
    mask = torch.tensor([[True, False], [True, True]])
    target = torch.where(mask, normal(2, 2), float("nan"))
    u = pit(normal(9, 2, 2), target, mask, seed=0)
    assert torch.equal(u.isnan(), ~mask)
    assert ((u[mask] > 0) & (u[mask] < 1)).all()


def test_seed_fixes_the_random_part():
    draws, target = poisson(5, 30, 1), poisson(30, 1, seed=1)
    assert torch.equal(pit(draws, target, seed=3), pit(draws, target, seed=3))
    assert not torch.equal(pit(draws, target, seed=3), pit(draws, target, seed=4))
    torch.manual_seed(0)
    assert not torch.equal(pit(draws, target), pit(draws, target))


def test_residuals_of_draws_of_the_law_are_standard_normal():
    residuals = normal_residuals(2 + 3 * normal(199, 5000, 1), 2 + 3 * normal(5000, 1, seed=1), seed=2)
    assert_mean(residuals, 0.0, detects=0.12)
    ks_test(residuals[:, 0]).require(detects=0.06)


def test_residuals_are_finite_where_every_draw_is_on_one_side():
    residuals = normal_residuals(torch.zeros(5, 2, 1), torch.tensor([[9.0], [-9.0]]), seed=0)
    assert residuals.isfinite().all()
    assert residuals[0] > 0 > residuals[1]


def test_float32_residuals_are_those_of_float64():
    draws, target = normal(20, 50, 1), normal(50, 1, seed=1)
    exact = normal_residuals(draws, target, seed=0)
    torch.testing.assert_close(normal_residuals(draws.float(), target.float(), seed=0), exact)


@pytest.mark.parametrize("function", [pit, normal_residuals])
def test_shapes_that_do_not_fit_are_refused(function):
    with pytest.raises(ValueError, match=r"`samples` must have shape \(S, 4, 1\)"):
        function(normal(9, 3, 1), normal(4, 1))


# --- Ljung-Box --------------------------------------------------------------------------


def textbook(e, lags):
    """Ljung and Box (1978), written as loops."""
    e = e - e.mean()
    n = len(e)
    r = [sum(e[i] * e[i + k] for i in range(n - k)) / sum(e[i] ** 2 for i in range(n)) for k in range(1, lags + 1)]
    return n * (n + 2) * sum(r[k - 1] ** 2 / (n - k) for k in range(1, lags + 1)), r


def test_without_gaps_it_is_the_textbook_formula():
    stats = pytest.importorskip("scipy.stats")
    e = normal(2, 30, 3) + 1.5
    result = ljung_box(e, lags=4)
    assert result.statistic.shape == result.p_value.shape == (2, 3)
    for b in range(2):
        for o in range(3):
            q, r = textbook(e[b, :, o], 4)
            assert result.statistic[b, o].item() == pytest.approx(q.item(), rel=1e-10)
            torch.testing.assert_close(result.autocorrelation[b, :, o], torch.stack(r))
            assert result.p_value[b, o].item() == pytest.approx(stats.chi2.sf(q.item(), 4), rel=1e-9)
    fitted = ljung_box(e, lags=4, fitted=1)
    assert torch.equal(fitted.statistic, result.statistic)
    assert fitted.p_value[0, 0].item() == pytest.approx(stats.chi2.sf(result.statistic[0, 0].item(), 3), rel=1e-9)


def test_with_gaps_only_pairs_of_observed_points_count():
    e = torch.tensor([1.0, float("nan"), -2.0, 0.5, 0.5, float("nan")], dtype=torch.float64).unsqueeze(-1)
    # Mean 0 over the four observed; pairs one apart: (2, 3), (3, 4); two apart: (0, 2), (2, 4).
    r = [(-1.0 + 0.25) / 5.5, (-2.0 - 1.0) / 5.5]
    result = ljung_box(e, lags=2)
    assert result.statistic.item() == pytest.approx(4 * 6 * (r[0] ** 2 / 2 + r[1] ** 2 / 2), rel=1e-12)
    spoiled = torch.where(e.isnan(), 1e9, e)
    assert ljung_box(spoiled, ~e.isnan(), lags=2).statistic.item() == pytest.approx(result.statistic.item(), rel=1e-12)


@pytest.mark.parametrize("gaps", [False, True])
def test_statistic_of_white_noise_has_its_mean(gaps):
    # The sum of 2000 chi-squared variables of 5 degrees has 10,000; the mean's removal costs less than 2 % of it.
    e = normal(2000, 300, 1)
    if gaps:
        e = torch.where(normal(2000, 300, 1, seed=1) < 0.5, e, float("nan"))
    result = ljung_box(e, lags=5)
    assert result.statistic.mean().item() == pytest.approx(5.0, rel=0.06)
    chi2_test(result.statistic.sum().item(), 10_000).require(detects=0.12)
    assert (result.p_value < 0.05).double().mean().item() == pytest.approx(0.05, abs=0.025)


def test_correlated_residuals_are_found():
    e = normal(20, 200, 1)
    e[:, 1:] = e[:, 1:] + 0.5 * e[:, :-1]
    assert (ljung_box(e, lags=5).p_value < 1e-3).all()


def test_a_channel_without_pairs_has_no_statistic():
    e = torch.full((10, 2), float("nan"), dtype=torch.float64)
    e[:, 0] = normal(10)
    e[::5, 1] = 1.0
    result = ljung_box(e, lags=2)
    assert result.statistic[0].isfinite()
    assert result.statistic[1].isnan()
    assert result.p_value[1].isnan()


def test_float32_statistic_is_that_of_float64():
    e = normal(50, 2)
    torch.testing.assert_close(ljung_box(e.float()).statistic, ljung_box(e).statistic, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("message", "shape", "options"),
    [
        (r"`residuals` must have shape \(\*batch, N, O\) with N > 10", (10, 1), {}),
        (r"`residuals` must have shape \(\*batch, N, O\) with N > 10", (30,), {}),
        (r"`lags` must be at least 1 and `fitted`", (30, 1), {"lags": 0}),
        (r"`lags` must be at least 1 and `fitted`", (30, 1), {"lags": 2, "fitted": 2}),
    ],
)
def test_bad_tests_are_refused(message, shape, options):
    with pytest.raises(ValueError, match=message):
        ljung_box(torch.zeros(shape), **options)


def test_observed_residuals_must_be_finite():
    with pytest.raises(ValueError, match="`residuals` has NaN or infinite entries where `mask` is True"):
        ljung_box(torch.full((20, 1), float("nan")), torch.ones(20, 1, dtype=torch.bool))
