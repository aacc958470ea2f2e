"""Scores against closed forms, brute force and their own nominal levels."""

import math

import pytest
import torch

from pyro_sde.diagnostics import (
    Score,
    crps_samples,
    energy_score,
    interval_coverage,
    interval_score,
    log_predictive_density,
    mae,
    rmse,
)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def normal_crps(mean, scale, y):
    """Closed form: Gneiting and Raftery (2007), eq. (21) and below."""
    z = (y - mean) / scale
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return scale * (z * torch.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))


def test_rmse_and_mae_are_their_definitions():
    prediction, target = normal(3, 7, 2), normal(3, 7, 2, seed=1)
    error = prediction - target
    root, absolute = rmse(prediction, target), mae(prediction, target)
    assert root.mean == pytest.approx((error**2).mean().sqrt().item(), abs=1e-12)
    assert absolute.mean == pytest.approx(error.abs().mean().item(), abs=1e-12)
    assert absolute.standard_error == pytest.approx(error.abs().std().item() / math.sqrt(42), abs=1e-12)
    assert root.count == absolute.count == 42


@pytest.mark.parametrize("score", [rmse, mae])
def test_standard_error_is_the_spread_over_repetitions(score):
    # 400 repetitions give the spread to 3.5 %; 15 % is more than 4 standard errors.
    repeats = [score(normal(300, 1, seed=seed), torch.zeros(300, 1)) for seed in range(400)]
    spread = torch.tensor([repeat.mean for repeat in repeats]).std().item()
    claimed = sum(repeat.standard_error for repeat in repeats) / 400
    assert claimed == pytest.approx(spread, rel=0.15)


def test_perfect_prediction_scores_zero_with_zero_error():
    assert rmse(torch.ones(5, 1), torch.ones(5, 1)) == Score(0.0, 0.0, 5)


def test_one_observation_has_no_standard_error():
    score = mae(torch.ones(1, 1), torch.zeros(1, 1))
    assert score.mean == 1.0
    assert math.isnan(score.standard_error)


def test_sum_is_mean_times_count():
    assert Score(-1.5, 0.1, 4).sum == -6.0


@pytest.mark.parametrize("per_channel", [False, True])
def test_masked_entries_do_not_count_and_may_be_nan(per_channel):
    prediction, target, draws = normal(2, 6, 3), normal(2, 6, 3, seed=1), normal(25, 2, 6, 3, seed=2)
    mask = normal(2, 6, seed=3) > 0
    full = mask.unsqueeze(-1).expand(2, 6, 3)
    spoiled = torch.where(full, target, float("nan"))
    chosen = full if per_channel else mask
    for score, values in ((rmse, prediction), (mae, prediction), (crps_samples, draws), (interval_coverage, draws)):
        kept = score(values[..., full].unsqueeze(-1), target[full].unsqueeze(-1))
        assert score(values, spoiled, chosen) == pytest.approx(kept, abs=1e-12)
    density = log_predictive_density(torch.where(full, draws, float("nan")), chosen)
    assert density == pytest.approx(log_predictive_density(draws[..., full].unsqueeze(-1)), abs=1e-12)


def test_crps_equals_the_sum_over_distinct_pairs():
    draws, target = normal(17, 2, 5, 3), normal(2, 5, 3, seed=1) + 1e6
    draws = draws + 1e6
    pairs = (draws.unsqueeze(0) - draws.unsqueeze(1)).abs().sum((0, 1)) / (17 * 16)
    brute = (draws - target).abs().mean(0) - 0.5 * pairs
    score = crps_samples(draws, target)
    assert score.mean == pytest.approx(brute.mean().item(), abs=1e-9)
    assert score.standard_error == pytest.approx((brute.std() / math.sqrt(30)).item(), abs=1e-9)


@pytest.mark.parametrize("size", [2, 3, 10])
def test_crps_is_unbiased_for_the_normal_at_any_number_of_draws(size):
    # Smallest error detected: 4 standard errors, 0.005 at size 2; the unfair estimator is off by 1.13 / (2 size).
    target = torch.full((200_000, 1), 0.7, dtype=torch.float64)
    score = crps_samples(2.0 + 1.5 * normal(size, 200_000, 1), target)
    exact = normal_crps(torch.tensor(2.0), torch.tensor(1.5), torch.tensor(0.7)).item()
    assert abs(score.mean - exact) < 4 * score.standard_error


def test_crps_of_a_point_mass_is_the_absolute_error():
    target = normal(9, 2)
    score = crps_samples(torch.zeros(6, 9, 2, dtype=torch.float64), target)
    assert score.mean == pytest.approx(target.abs().mean().item(), abs=1e-12)


def test_crps_prefers_the_true_scale():
    target = normal(4000, 1)
    scores = [crps_samples(scale * normal(50, 4000, 1, seed=1), target).mean for scale in (0.5, 1.0, 2.0)]
    assert scores[1] == min(scores)


@pytest.mark.parametrize(("size", "level"), [(19, 0.9), (30, 0.9), (99, 0.5), (3, 0.5)])
def test_calibrated_samples_are_covered_at_the_nominal_level(size, level):
    # Order statistics: position p (S + 1) is exact where it is an integer, and within 0.01 where interpolated.
    score = interval_coverage(normal(size, 20_000, 1), normal(20_000, 1, seed=1), level=level)
    assert abs(score.mean - level) < 4 * score.standard_error + (0.01 if size == 30 else 0.0)


def test_interval_of_19_draws_at_level_09_is_their_range():
    draws = torch.arange(19.0).reshape(19, 1, 1).expand(19, 4, 1)
    target = torch.tensor([[-0.01], [0.0], [18.0], [18.01]])
    assert interval_coverage(draws, target).mean == 0.5


def test_interval_ends_are_interpolated_order_statistics():
    # S = 29: position 0.05 x 30 = 1.5 halfway between the first and the second draw, on both sides.
    draws = torch.arange(29.0).reshape(29, 1, 1).expand(29, 4, 1)
    target = torch.tensor([[0.49], [0.51], [27.49], [27.51]])
    assert interval_coverage(draws, target).mean == 0.5


def test_level_changes_the_interval():
    draws, target = normal(399, 3000, 1), normal(3000, 1, seed=1)
    half, most = (interval_coverage(draws, target, level=level) for level in (0.5, 0.9))
    assert half.mean == pytest.approx(0.5, abs=4 * half.standard_error)
    assert most.mean == pytest.approx(0.9, abs=4 * most.standard_error)


def test_log_predictive_density_of_a_gaussian_mixture_of_gaussians():
    # y | m ~ N(m, 1), m ~ N(0, 4) gives y ~ N(0, 5); 200k draws leave a relative error near 0.5 %.
    means, target = 2 * normal(200_000, 1, 1), torch.tensor([[0.3], [-1.0], [2.0]], dtype=torch.float64)
    score = log_predictive_density(torch.distributions.Normal(means, 1.0).log_prob(target))
    exact = torch.distributions.Normal(0.0, math.sqrt(5.0)).log_prob(target)
    assert score.mean == pytest.approx(exact.mean().item(), abs=0.01)
    assert score.sum == pytest.approx(exact.sum().item(), abs=0.03)
    assert score.count == 3


def test_log_predictive_density_does_not_underflow():
    score = log_predictive_density(torch.tensor([[-1e5], [-1e5 + math.log(3.0)]], dtype=torch.float64))
    assert score.mean == pytest.approx(-1e5 + math.log(2.0), abs=1e-9)


def test_log_predictive_density_with_summed_channels_counts_times():
    draws = normal(8, 2, 5, 3)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[0, 3:] = False
    assert log_predictive_density(draws.sum(-1), mask).count == 8
    assert log_predictive_density(draws, mask).count == 24


def test_float32_scores_agree_with_float64_to_1e5():
    draws, target = normal(40, 50, 2), normal(50, 2, seed=1)
    for score in (crps_samples, interval_coverage):
        assert score(draws.float(), target.float()).mean == pytest.approx(score(draws, target).mean, rel=1e-5)
    assert log_predictive_density(draws.float()).mean == pytest.approx(log_predictive_density(draws).mean, rel=1e-5)
    for score in (rmse, mae):
        assert score(draws[0].float(), target.float()).mean == pytest.approx(score(draws[0], target).mean, rel=1e-5)


@pytest.mark.parametrize("score", [rmse, mae])
def test_point_predictions_of_another_shape_are_refused(score):
    with pytest.raises(ValueError, match=r"`prediction` must have shape \(5, 2\)"):
        score(torch.zeros(5, 1), torch.zeros(5, 2))


@pytest.mark.parametrize("score", [crps_samples, interval_coverage])
def test_samples_of_another_shape_are_refused(score):
    with pytest.raises(ValueError, match=r"`samples` must have shape \(S, 5, 2\)"):
        score(torch.zeros(5, 2), torch.zeros(5, 2))


def test_nan_where_scored_is_refused():
    with pytest.raises(ValueError, match="`target` is NaN at 1 scored entries"):
        rmse(torch.zeros(2, 1), torch.tensor([[0.0], [math.nan]]))
    with pytest.raises(ValueError, match="`prediction` is NaN at 1 scored entries"):
        rmse(torch.tensor([[0.0], [math.nan]]), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="`log_likelihood_samples` is NaN"):
        log_predictive_density(torch.full((3, 2), math.nan))


def test_empty_selection_is_refused():
    with pytest.raises(ValueError, match="`mask` selects no observation"):
        rmse(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, dtype=torch.bool))


@pytest.mark.parametrize("level", [0.0, 1.0, 90.0])
def test_level_out_of_range_is_refused(level):
    with pytest.raises(ValueError, match="`level` must lie strictly between 0 and 1"):
        interval_coverage(torch.zeros(99, 2, 1), torch.zeros(2, 1), level=level)


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match=r"`samples` must hold at least 19 draws for `level`=0.9, received 18"):
        interval_coverage(torch.zeros(18, 2, 1), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="`samples` must hold at least 2 draws for the fair score"):
        crps_samples(torch.zeros(1, 2, 1), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="`log_likelihood_samples` must have shape"):
        log_predictive_density(torch.zeros(3))


# --- interval score ---------------------------------------------------------------------


def test_interval_score_is_width_plus_fines():
    # 19 draws at level 0.9: the interval is their range, [0, 18]; a miss by m costs 2 m / 0.1.
    draws = torch.arange(19.0).reshape(19, 1, 1).expand(19, 3, 1)
    target = torch.tensor([[-0.5], [4.0], [19.0]])
    scores = [interval_score(draws[:, i : i + 1], target[i : i + 1]).mean for i in range(3)]
    assert scores == pytest.approx([18 + 10, 18, 18 + 20])


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_interval_score_of_a_normal_is_the_closed_form(level):
    # Mean over y of width + 2 / alpha * miss is 4 phi(q) / alpha for the true interval [-q, q] (alpha = 1 - level).
    score = interval_score(normal(999, 1, 1).expand(999, 20_000, 1), normal(20_000, 1, seed=1), level=level)
    q = torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64))
    exact = 4 * math.exp(-(q**2) / 2) / math.sqrt(2 * math.pi) / (1 - level)
    assert score.mean == pytest.approx(exact, rel=0.03)


def test_interval_score_prefers_the_true_scale():
    target = normal(4000, 1)
    scores = [interval_score(scale * normal(99, 4000, 1, seed=1), target).mean for scale in (0.6, 1.0, 1.6)]
    assert scores[1] == min(scores)


# --- energy score -----------------------------------------------------------------------


@pytest.mark.parametrize("joint", ["channels", "series"])
def test_energy_score_equals_the_sum_over_distinct_pairs(joint):
    draws, target = normal(7, 2, 5, 3) + 1e6, normal(2, 5, 3, seed=1) + 1e6
    mask = normal(2, 5, 3, seed=2) > -0.5
    mask[0, 0] = False  # a time without any observation
    scores = []
    for b in range(2):
        for n in [slice(i, i + 1) for i in range(5)] if joint == "channels" else [slice(None)]:
            chosen = mask[b, n]
            if chosen.any():
                x, y = draws[:, b, n][:, chosen], target[b, n][chosen]
                near = (x - y).norm(dim=-1).mean()
                apart = sum((x[i] - x[j]).norm() for i in range(7) for j in range(7)) / 42
                scores.append(near - apart / 2)
    brute = torch.stack(scores)
    score = energy_score(draws, torch.where(mask, target, float("nan")), mask, joint=joint)
    assert score.count == len(brute)
    assert score.mean == pytest.approx(brute.mean().item(), abs=1e-9)


def test_energy_score_of_single_numbers_is_the_crps():
    draws, target = normal(11, 4, 6, 1), normal(4, 6, 1, seed=1)
    assert energy_score(draws, target) == pytest.approx(crps_samples(draws, target), abs=1e-12)


def test_energy_score_in_blocks_is_the_same(monkeypatch):
    draws, target = normal(9, 40, 2), normal(40, 2, seed=1)
    whole = energy_score(draws, target)
    monkeypatch.setattr("pyro_sde.diagnostics.metrics._BLOCK_ENTRIES", 200)
    assert energy_score(draws, target) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("size", [2, 10])
def test_energy_score_of_a_normal_vector_is_unbiased(size):
    # E|X - y| for y = 0 is sqrt(pi / 2), and E|X - X'| sqrt(2) times that, for X ~ N(0, I_2). Four standard errors.
    score = energy_score(normal(size, 40_000, 2), torch.zeros(40_000, 2, dtype=torch.float64))
    exact = math.sqrt(math.pi / 2) * (1 - math.sqrt(0.5))
    assert abs(score.mean - exact) < 4 * score.standard_error


def test_energy_score_of_series_sees_a_wrong_dependence_where_the_crps_does_not():
    target = normal(4000, 1, 1).expand(4000, 2, 1)  # two times that are always equal
    together = normal(50, 4000, 1, 1, seed=1).expand(50, 4000, 2, 1)
    apart = normal(50, 4000, 2, 1, seed=2)
    right, wrong = energy_score(together, target, joint="series"), energy_score(apart, target, joint="series")
    assert abs(right.mean - math.sqrt(2 / math.pi)) < 4 * right.standard_error  # sqrt(2) times the CRPS of N(0, 1)
    assert wrong.mean - right.mean > 0.04  # same data: the errors of the two means cancel
    gap = crps_samples(apart, target).mean - crps_samples(together, target).mean
    assert abs(gap) < 0.01


def test_scores_of_float32_agree_with_float64():
    draws, target = normal(30, 8, 2), normal(8, 2, seed=1)
    for score in (energy_score, interval_score):
        assert score(draws.float(), target.float()) == pytest.approx(score(draws, target), rel=1e-5)


def test_energy_score_refuses_one_draw_and_other_words():
    with pytest.raises(ValueError, match="`samples` must hold at least 2 draws"):
        energy_score(normal(1, 4, 2), normal(4, 2))
    with pytest.raises(ValueError, match='`joint` must be "channels" or "series", received \'time\''):
        energy_score(normal(3, 4, 2), normal(4, 2), joint="time")
    with pytest.raises(ValueError, match=r"`level` must lie strictly between 0 and 1, received 1"):
        interval_score(normal(30, 4, 2), normal(4, 2), level=1.0)
    with pytest.raises(ValueError, match=r"`samples` must hold at least 19 draws for `level`=0.9"):
        interval_score(normal(18, 4, 2), normal(4, 2))
