"""Scores, residuals and baselines on data that nobody chose: order plays no part, and masked is deleted."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from pyro_sde.diagnostics.baselines import fit_last_value, fit_linear_interpolation
from pyro_sde.diagnostics.metrics import (
    crps_samples,
    energy_score,
    interval_coverage,
    interval_score,
    log_predictive_density,
    mae,
    rmse,
)
from pyro_sde.diagnostics.residuals import ljung_box, pit

F64 = torch.float64
PROPERTY = settings(derandomize=True, max_examples=30, deadline=None, database=None)
JUNK = (0.0, 1e300, math.nan, math.inf, -math.inf)

SAMPLE_SCORES = {
    "coverage": lambda draws, target, mask: interval_coverage(draws, target, mask, level=0.5),
    "crps": crps_samples,
    "density": lambda draws, target, mask: log_predictive_density(draws - target.nan_to_num(0.0, 0.0, 0.0), mask),
    "energy": energy_score,
    "interval": lambda draws, target, mask: interval_score(draws, target, mask, level=0.5),
    "mae": lambda draws, target, mask: mae(draws[0], target, mask),
    "rmse": lambda draws, target, mask: rmse(draws[0], target, mask),
    "series": lambda draws, target, mask: energy_score(draws, target, mask, joint="series"),
}
IN_UNITS = ("crps", "energy", "interval", "mae", "rmse", "series")  # scores in the unit of the values


@st.composite
def forecasts(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draws ``(S, B, N, O)``, targets and mask ``(B, N, O)``; one entry is scored at least."""
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    draws = torch.randn(draw(st.integers(3, 9)), *shape, dtype=F64, generator=generator)
    mask = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.3, 1.0]))
    mask[0, 0, 0] = True
    return draws, torch.randn(shape, dtype=F64, generator=generator), mask


def same(ours, theirs):
    assert ours.count == theirs.count
    for ours_value, theirs_value in zip(ours[:2], theirs[:2], strict=True):
        assert math.isclose(ours_value, theirs_value, rel_tol=1e-9, abs_tol=1e-12) or math.isnan(ours_value)


@settings(PROPERTY, max_examples=100)
@given(st.sampled_from(sorted(SAMPLE_SCORES)), forecasts(), st.sampled_from(JUNK))
def test_what_is_masked_has_no_part_in_a_score(kind, forecast, junk):
    draws, target, mask = forecast
    score = SAMPLE_SCORES[kind]
    ours = score(draws, target, mask)
    theirs = score(torch.where(mask, draws, junk), torch.where(mask, target, junk), mask)
    assert (ours.mean, ours.count) == (theirs.mean, theirs.count)
    assert ours.standard_error == theirs.standard_error or ours.count == 1
    assert math.isfinite(ours.mean)


@PROPERTY
@given(st.sampled_from(sorted(SAMPLE_SCORES)), forecasts(), st.data())
def test_the_order_of_draws_series_and_channels_plays_no_part(kind, forecast, data):
    draws, target, mask = forecast
    first = [0] if kind in ("mae", "rmse") else []  # the prediction is the first draw
    rest = data.draw(st.permutations(range(len(first), len(draws))))
    rows, channels = (data.draw(st.permutations(range(size))) for size in (target.shape[0], target.shape[-1]))
    moved = draws[[*first, *rest]][:, rows][..., channels]
    same(
        SAMPLE_SCORES[kind](moved, target[rows][..., channels], mask[rows][..., channels]),
        SAMPLE_SCORES[kind](draws, target, mask),
    )


@PROPERTY
@given(st.sampled_from(IN_UNITS), forecasts(), st.floats(0.1, 100.0), st.floats(-100.0, 100.0))
def test_scores_have_the_unit_of_the_values_and_no_origin(kind, forecast, unit, origin):
    draws, target, mask = forecast
    ours = SAMPLE_SCORES[kind](draws, target, mask)
    theirs = SAMPLE_SCORES[kind](unit * draws + origin, unit * target + origin, mask)
    assert math.isclose(theirs.mean, unit * ours.mean, rel_tol=1e-6, abs_tol=1e-9)


@PROPERTY
@given(forecasts())
def test_scores_of_single_numbers_agree_with_each_other(forecast):
    draws, target, mask = (part[..., :1] for part in forecast)
    same(energy_score(draws, target, mask), crps_samples(draws, target, mask))
    spread = draws[:1].expand(3, *draws.shape[1:])  # draws that all agree
    same(crps_samples(spread, target, mask), mae(draws[0], target, mask))
    assert rmse(draws[0], target, mask).mean >= mae(draws[0], target, mask).mean - 1e-12


@PROPERTY
@given(forecasts(), st.integers(0, 99))
def test_ranks_lie_strictly_inside_and_turn_with_the_sign(forecast, seed):
    draws, target, mask = forecast
    u = pit(draws, target, mask, seed=seed)
    assert torch.equal(u.isnan(), ~mask)
    assert ((u[mask] > 0) & (u[mask] < 1)).all()
    turned = pit(-draws, -target, mask, seed=seed)
    assert ((u + turned - 1)[mask].abs() <= 1 / (len(draws) + 1) + 1e-12).all()  # a random part of one rank


@settings(PROPERTY, max_examples=10)
@given(forecasts(), st.integers(1, 3))
def test_every_series_and_channel_is_tested_as_if_it_were_alone(forecast, lags):
    draws, _, _ = forecast
    residuals = draws.movedim(0, 1)[..., 0, :]  # (B, S, O): draws as times
    if residuals.shape[1] <= lags:
        return
    together = ljung_box(residuals, lags=lags)
    assert ((together.p_value >= 0) & (together.p_value <= 1)).all()
    for row in range(len(residuals)):
        for channel in range(residuals.shape[-1]):
            alone = ljung_box(residuals[row, :, channel : channel + 1], lags=lags)
            assert_close(alone.statistic.squeeze(), together.statistic[row, channel])


@st.composite
def gappy(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Times ``(N,)``, values ``(N, 1)`` and a mask ``(N,)`` that leaves five observations."""
    count = draw(st.integers(5, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    times = torch.rand(count, dtype=F64, generator=generator).add(0.05).cumsum(0)
    mask = torch.rand(count, generator=generator) < 0.6
    mask[torch.randperm(count, generator=generator)[:5]] = True
    return times, torch.randn(count, 1, dtype=F64, generator=generator), mask


@PROPERTY
@given(st.sampled_from([fit_last_value, fit_linear_interpolation]), gappy(), st.sampled_from(JUNK))
def test_a_baseline_of_a_masked_series_is_that_of_the_shorter_one(fit, series, junk):
    times, values, mask = series
    queries = torch.linspace(float(times[0]) - 1, float(times[-1]) + 1, 7, dtype=F64)
    dirty = torch.where(mask.unsqueeze(-1), values, junk)
    ours = fit(times, dirty, mask).predict(queries)
    theirs = fit(times[mask], values[mask]).predict(queries)
    assert_close(tuple(ours), tuple(theirs), rtol=1e-9, atol=1e-12)
    assert (ours.standard_deviation > 0).all()


@PROPERTY
@given(st.sampled_from([fit_last_value, fit_linear_interpolation]), gappy(), st.floats(-1e3, 1e3), st.floats(0.1, 10.0))
def test_a_baseline_moves_with_the_clock_and_the_units(fit, series, shift, unit):
    pace = 0.5 * unit  # of the clock
    times, values, mask = series
    queries = torch.linspace(float(times[0]) - 1, float(times[-1]) + 1, 7, dtype=F64)
    ours = fit(times, values, mask).predict(queries)
    moved = fit(pace * times + shift, unit * values + 1.0, mask).predict(pace * queries + shift)
    assert_close(moved.mean, unit * ours.mean + 1.0, rtol=1e-6, atol=1e-6)
    assert_close(moved.standard_deviation, unit * ours.standard_deviation, rtol=1e-3, atol=1e-6)


def test_float32_scores_are_those_of_float64():
    generator = torch.Generator().manual_seed(0)
    draws, target = torch.randn(5, 3, 2, generator=generator), torch.randn(3, 2, generator=generator)
    for score in SAMPLE_SCORES.values():
        assert math.isclose(
            score(draws, target, None).mean, score(draws.double(), target.double(), None).mean, rel_tol=1e-5
        )
