"""`TimeGrid` on times, masks, steps and ends that nobody chose: what holds for every grid there is."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from pyro_sde.ops.grid import TimeGrid

F64 = torch.float64
NAN = math.nan
PROPERTY = settings(derandomize=True, max_examples=30, deadline=None, database=None)
JUNK = (NAN, 0.0, -7.5, 1e6, math.inf)

gaps = st.floats(1e-3, 4.0)
steps = st.none() | st.floats(0.05, 3.0)


@st.composite
def observations(draw: st.DrawFn, *, max_series: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Increasing times ``(B, N)`` with junk where a mask, also ``(B, N)``, is False."""
    shape = draw(st.integers(1, max_series)), draw(st.integers(1, 6))
    rows, masks = [], []
    for _ in range(shape[0]):
        begin = draw(st.floats(-5.0, 5.0))
        row = begin + torch.tensor([draw(gaps) for _ in range(shape[1])], dtype=F64).cumsum(0)
        mask = torch.tensor([draw(st.booleans()) for _ in range(shape[1])])
        mask[draw(st.integers(0, shape[1] - 1))] = True
        rows.append(torch.where(mask, row, row.new_tensor([draw(st.sampled_from(JUNK)) for _ in range(shape[1])])))
        masks.append(mask)
    return torch.stack(rows), torch.stack(masks)


def padded(row: torch.Tensor, size: int, value: float) -> torch.Tensor:
    return torch.cat([row, row.new_full((size - len(row),), value)])


@PROPERTY
@given(observations(), steps)
def test_every_valid_time_is_a_grid_point_bit_by_bit(series, max_step):
    times, mask = series
    before = times.clone()
    grid = TimeGrid(times, mask=mask, max_step=max_step)
    assert torch.equal(grid.times.gather(-1, grid.observed_index)[mask], times[mask])
    assert torch.equal(torch.nan_to_num(times), torch.nan_to_num(before))  # the argument is left as it was


@PROPERTY
@given(observations(), steps, st.floats(0.0, 2.0), st.floats(0.0, 2.0))
def test_times_never_fall_steps_are_never_negative_and_padding_is_at_the_end(series, max_step, early, late):
    times, mask = series
    valid = times[mask]
    grid = TimeGrid(
        times, mask=mask, max_step=max_step, start=float(valid.min()) - early, end=float(valid.max()) + late
    )
    assert (grid.times.diff() >= 0).all()
    assert (grid.steps >= 0).all()
    moving = grid.steps > 0
    assert torch.equal(moving, moving.long().cumprod(-1).bool())
    assert torch.equal(grid.times.diff() > 0, moving)
    if max_step is not None:
        assert (grid.steps <= max_step * 1.001 * (1 + 1e-9)).all()
    assert_close(grid.steps.sum(-1), grid.times[..., -1] - grid.times[..., 0])
    assert_close(grid.times[..., 0], torch.full_like(grid.times[..., 0], float(valid.min()) - early))


@PROPERTY
@given(observations(), steps)
def test_a_masked_time_is_a_dropped_one(series, max_step):
    times, mask = series
    grid = TimeGrid(times, mask=mask, max_step=max_step)
    for row, valid, index, seen, step in zip(times, mask, grid.observed_index, grid.times, grid.steps, strict=True):
        alone = TimeGrid(row[valid], max_step=max_step)
        assert torch.equal(step, padded(alone.steps, grid.num_steps, 0.0))
        assert torch.equal(seen, padded(alone.times, grid.num_steps + 1, float(alone.times[-1])))
        assert torch.equal(index[valid], alone.observed_index)


@PROPERTY
@given(observations(max_series=1), st.integers(0, 4), steps)
def test_trailing_repeats_are_masked_times(series, repeats, max_step):
    row = series[0][0][series[1][0]]
    repeated = padded(row, len(row) + repeats, float(row[-1]))
    mask = torch.arange(len(repeated)) < len(row)
    ours, theirs = TimeGrid(repeated, max_step=max_step), TimeGrid(repeated, mask=mask, max_step=max_step)
    assert torch.equal(ours.mask, mask)
    assert torch.equal(ours.times, theirs.times)
    assert torch.equal(ours.steps, theirs.steps)
    assert torch.equal(ours.observed_index, theirs.observed_index)


@PROPERTY
@given(observations(), steps, st.integers(1, 4), st.integers(1, 3))
def test_refining_keeps_every_point_and_refinements_merge(series, max_step, n, m):
    times, mask = series
    grid = TimeGrid(times, mask=mask, max_step=max_step)
    fine = grid.refine(n)
    assert fine.num_steps == n * grid.num_steps
    assert_close(fine.times[..., ::n], grid.times, rtol=1e-12, atol=1e-12)
    assert_close(fine.steps.reshape(*grid.steps.shape, n), (grid.steps / n).unsqueeze(-1).expand(-1, -1, n))
    assert torch.equal(fine.times.gather(-1, fine.observed_index)[mask], times[mask])
    again, once = fine.refine(m), grid.refine(n * m)
    assert torch.equal(again.times, once.times)
    assert torch.equal(again.steps, once.steps)


@PROPERTY
@given(observations(), steps, st.integers(1, 3))
def test_expanding_and_selecting_are_inverse(series, max_step, left):
    times, mask = series
    grid = TimeGrid(times, mask=mask, max_step=max_step)
    wide = grid.expand((left, *grid.batch_shape))
    assert wide.batch_shape == (left, len(times))
    for name in ("times", "steps", "mask", "observed_index"):
        assert torch.equal(getattr(wide[left - 1], name), getattr(grid, name))


@PROPERTY
@given(observations(max_series=1), st.data())
def test_valid_times_out_of_order_or_repeated_inside_are_refused(series, data):
    row = series[0][0][series[1][0]]
    row = torch.cat([row, row[-1:] + 1.0, row[-1:] + 2.0])  # at least three
    place = data.draw(st.integers(1, len(row) - 2))
    row[place] = row[place - 1] - data.draw(st.sampled_from([0.0, 0.5]))
    with pytest.raises(ValueError, match="`times` must increase along the last axis, but they are (unsorted|repeated)"):
        TimeGrid(row)
    with pytest.raises(ValueError, match="`times` must increase along the last axis"):
        TimeGrid(row, mask=torch.ones(len(row), dtype=torch.bool))


@PROPERTY
@given(observations(), st.data())
def test_a_valid_time_that_is_not_finite_is_refused(series, data):
    times, mask = series
    places = mask.nonzero()
    where = places[data.draw(st.integers(0, len(places) - 1))]
    times[tuple(where)] = data.draw(st.sampled_from([NAN, math.inf, -math.inf]))
    with pytest.raises(ValueError, match="`times` must be finite at valid entries"):
        TimeGrid(times, mask=mask)


@PROPERTY
@given(observations(), steps, st.integers(1, 3))
def test_float32_grids_hit_their_times_too(series, max_step, dim):
    times, mask = series[0].float(), series[1]
    valid = torch.where(mask, times, torch.full_like(times, NAN))
    try:
        grid = TimeGrid(times, mask=mask, max_step=max_step)
    except ValueError as error:  # two times that float32 cannot tell apart are refused, and by no other words
        assert "repeated" in str(error)  # noqa: PT017
        return
    assert grid.times.dtype == torch.float32
    assert torch.equal(grid.times.gather(-1, grid.observed_index)[mask], valid[mask])
    path = torch.randn(len(times), grid.num_steps + 1, dim)
    assert grid.observed(path).shape == (*times.shape, dim)
