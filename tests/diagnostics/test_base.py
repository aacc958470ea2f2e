"""Contract of every baseline, and the records they share."""

import math

import pytest
import torch

from pyro_sde.diagnostics import GaussianPrediction
from pyro_sde.diagnostics.base import Baseline, broadcast_mask


def noisy_wave(batch=(), n=40, channels=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(7)
    times = torch.rand(*batch, n, generator=generator, dtype=torch.float64).sort(-1).values * 10
    phase = torch.arange(channels, dtype=torch.float64)
    wave = torch.sin(times.unsqueeze(-1) + phase) + 0.3 * times.unsqueeze(-1)
    noise = 0.2 * torch.randn(*batch, n, channels, generator=generator, dtype=torch.float64)
    return times.to(dtype), (wave + noise).to(dtype)


QUERY = torch.tensor([4.2, -1.0, 0.05, 9.0, 13.0, 4.3], dtype=torch.float64)


def assert_same(first, second, tolerance=1e-8):
    torch.testing.assert_close(first.mean, second.mean, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(first.standard_deviation, second.standard_deviation, atol=tolerance, rtol=tolerance)


def test_prediction_has_time_before_channel_and_is_finite_everywhere(fit_baseline):
    times, values = noisy_wave((3,))
    baseline = fit_baseline(times, values)
    assert isinstance(baseline, Baseline)
    mean, spread = baseline.predict(QUERY)
    assert mean.shape == spread.shape == (3, 6, 2)
    assert mean.isfinite().all()
    assert (spread > 0).all()


def test_order_of_queries_does_not_matter(fit_baseline):
    baseline = fit_baseline(*noisy_wave())
    shuffled, ordered = baseline.predict(QUERY), baseline.predict(QUERY.sort().values)
    order = QUERY.argsort()
    assert_same(GaussianPrediction(*(part[order] for part in shuffled)), ordered, 1e-12)


def test_masked_entries_equal_dropped_ones(fit_baseline):
    times, values = noisy_wave()
    keep = torch.arange(40) % 3 > 0
    spoiled = torch.where(keep.unsqueeze(-1), values, float("nan"))
    broken_times = torch.where(keep, times, float("nan"))
    masked = fit_baseline(broken_times, spoiled, keep).predict(QUERY)
    assert_same(masked, fit_baseline(times[keep], values[keep]).predict(QUERY))


def test_channel_masks_equal_separate_channels(fit_baseline):
    times, values = noisy_wave()
    mask = torch.ones(40, 2, dtype=torch.bool)
    mask[::4, 1] = False
    joint = fit_baseline(times, values, mask).predict(QUERY)
    for channel in range(2):
        keep = mask[:, channel]
        alone = fit_baseline(times[keep], values[keep, channel : channel + 1]).predict(QUERY)
        assert_same(GaussianPrediction(*(part[:, channel : channel + 1] for part in joint)), alone, 1e-6)


def test_batch_of_copies_equals_one_series_and_shared_times_broadcast(fit_baseline):
    times, values = noisy_wave()
    single = fit_baseline(times, values).predict(QUERY)
    batch = fit_baseline(times, values.expand(2, 3, -1, -1)).predict(QUERY)
    assert batch.mean.shape == (2, 3, 6, 2)
    assert_same(GaussianPrediction(*(part[1, 2] for part in batch)), single, 1e-6)


def test_per_series_query_times(fit_baseline):
    times, values = noisy_wave((2,))
    baseline = fit_baseline(times, values)
    queries = torch.stack([QUERY, QUERY + 1])
    assert_same(
        GaussianPrediction(*(part[1] for part in baseline.predict(queries))),
        GaussianPrediction(*(part[1] for part in baseline.predict(QUERY + 1))),
        1e-12,
    )


def test_float32_comes_back_as_float32_and_agrees_to_1e4(fit_baseline):
    times, values = noisy_wave(dtype=torch.float32)
    single = fit_baseline(times, values).predict(QUERY.float())
    double = fit_baseline(times.double(), values.double()).predict(QUERY.float().double())
    assert single.mean.dtype == single.standard_deviation.dtype == torch.float32
    assert_same(GaussianPrediction(*(part.double() for part in single)), double, 1e-4)


def test_shift_and_scale_of_the_data_carry_over(fit_baseline):
    times, values = noisy_wave()
    plain = fit_baseline(times, values).predict(QUERY)
    moved = fit_baseline(100 * times, 1000 + 50 * values).predict(100 * QUERY)
    expected = GaussianPrediction(1000 + 50 * plain.mean, 50 * plain.standard_deviation)
    assert_same(moved, expected, 1e-5)


def test_constant_series_has_a_finite_density(fit_baseline):
    values = torch.full((12, 1), 3.0)
    prediction = fit_baseline(torch.arange(12.0), values).predict(torch.tensor([2.5, 20.0]))
    torch.testing.assert_close(prediction.mean, torch.full((2, 1), 3.0))
    assert prediction.log_density(prediction.mean).isfinite().all()


def test_fitting_needs_no_gradients_and_gives_none(fit_baseline):
    times, values = noisy_wave()
    with torch.no_grad():
        mean = fit_baseline(times.requires_grad_(), values.requires_grad_()).predict(QUERY).mean
    assert not mean.requires_grad


@pytest.mark.parametrize(
    ("times", "values", "mask", "message"),
    [
        (torch.arange(9.0), torch.zeros(9), None, r"`values` must have shape \(\*batch, N, O\)"),
        (torch.arange(8.0), torch.zeros(9, 1), None, r"`times` must have shape \(N,\)"),
        (torch.arange(9.0), torch.full((9, 1), float("nan")), None, r"`values` has NaN or infinite entries"),
        (torch.full((9,), float("inf")), torch.zeros(9, 1), None, r"`times` has NaN or infinite entries"),
        (torch.zeros(9), torch.zeros(9, 1), None, r"`times` must increase strictly"),
        (torch.arange(9.0), torch.zeros(9, 1), torch.arange(9) < 2, r"2 valid observations; this baseline needs"),
        (torch.arange(9.0), torch.zeros(9, 1), torch.ones(9), r"`mask` must be bool"),
        (torch.arange(9.0), torch.zeros(9, 1), torch.ones(8, dtype=torch.bool), r"`mask` must have shape \(9, 1\)"),
    ],
)
def test_bad_series_are_refused(fit_baseline, times, values, mask, message):
    with pytest.raises(ValueError, match=message):
        fit_baseline(times, values, mask)


def test_bad_queries_are_refused(fit_baseline):
    baseline = fit_baseline(*noisy_wave((2,)))
    with pytest.raises(ValueError, match=r"`times` has NaN or infinite entries; a prediction"):
        baseline.predict(torch.tensor([1.0, float("nan")]))
    with pytest.raises(ValueError, match=r"`times` must have shape \(Q,\) or \(\*batch, Q\)"):
        baseline.predict(torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"`times` must have shape \(Q,\) or \(\*batch, Q\)"):
        baseline.predict(torch.tensor(1.0))


def test_gaussian_prediction_draws_have_its_moments_and_a_seed():
    prediction = GaussianPrediction(torch.tensor([[1.0], [-2.0]]), torch.tensor([[0.5], [3.0]]))
    draws = prediction.sample(40_000, generator=torch.Generator().manual_seed(0))
    again = prediction.sample(40_000, generator=torch.Generator().manual_seed(0))
    assert draws.shape == (40_000, 2, 1)
    assert torch.equal(draws, again)
    # 4.3 standard errors of the mean and of the standard deviation
    assert ((draws.mean(0) - prediction.mean).abs() < 4.3 * prediction.standard_deviation / 200).all()
    ratio = draws.std(0) / prediction.standard_deviation
    assert ((ratio - 1).abs() < 4.3 / 80_000**0.5).all()


def test_gaussian_prediction_log_density_is_normal_and_keeps_nan():
    prediction = GaussianPrediction(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 2.0]))
    density = prediction.log_density(torch.tensor([3.0, float("nan")]))
    # -(3 - 1)^2 / (2 x 4) - log sqrt(2 pi 4)
    torch.testing.assert_close(density[0].item(), -0.5 - 0.5 * math.log(8 * math.pi), atol=1e-6, rtol=0)
    assert density[1].isnan()


def test_no_draws_are_refused():
    with pytest.raises(ValueError, match="`num_samples` must be at least 1"):
        GaussianPrediction(torch.zeros(1, 1), torch.ones(1, 1)).sample(0)


def test_mask_of_times_covers_all_channels():
    mask = torch.tensor([[True, False], [False, True], [True, True]])
    full = broadcast_mask(mask, torch.Size([3, 2, 4]))
    assert torch.equal(full, mask.unsqueeze(-1).expand(3, 2, 4))
    assert torch.equal(broadcast_mask(full, full.shape), full)
    assert broadcast_mask(None, full.shape).all()
