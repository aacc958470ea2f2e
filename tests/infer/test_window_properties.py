"""Windows, samples of observations and minibatches of any series: nothing is scored twice, and nothing is left out."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from pyro_sde.infer.simulation_free import TimeWindows, sample_observations
from pyro_sde.infer.streams import minibatches, stream_seed
from pyro_sde.ops.grid import TimeGrid

F64 = torch.float64
PROPERTY = settings(derandomize=True, max_examples=30, deadline=None, database=None)


@st.composite
def series(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Increasing times ``(N,)`` and values ``(N, 2)``, NaN where not observed, with two times observed at least."""
    count = draw(st.integers(2, 20))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    times = torch.rand(count, dtype=F64, generator=generator).add(0.01).cumsum(0)
    seen = torch.rand(count, 2, generator=generator) < draw(st.sampled_from([0.3, 0.8, 1.0]))
    seen[0, 0] = seen[-1, 1] = True
    values = torch.arange(2.0 * count, dtype=F64).reshape(count, 2)
    return times, torch.where(seen, values, math.nan)


@PROPERTY
@given(series(), st.integers(1, 6), st.integers(0, 4))
def test_the_windows_of_a_series_score_every_observation_once(given_series, size, margin):
    times, values = given_series
    windows = TimeWindows(times, values, size=size, margin=margin)
    batch = windows.draw(len(windows))
    scored = batch.values[batch.mask]
    assert torch.equal(scored.sort().values, values[~values.isnan()])
    assert torch.equal(batch.weights, torch.ones(len(windows), dtype=F64))
    assert batch.starts.tolist() == [True] + [False] * (len(windows) - 1)
    span = batch.grid.times[:, -1] - batch.grid.times[:, 0]
    assert_close(span.sum(), times[-1] - times[0])


@PROPERTY
@given(series(), st.integers(1, 6), st.integers(0, 4))
def test_a_window_is_seen_with_its_neighbours_and_nothing_else(given_series, size, margin):
    times, values = given_series
    windows = TimeWindows(times, values, size=size, margin=margin)
    kept = (~values.isnan()).any(-1).nonzero().flatten()
    batch = windows.at(torch.arange(len(windows)))
    for number in range(len(windows)):
        first, last = number * size - margin, min((number + 1) * size, len(kept) - 1) + margin
        rows = kept[max(first, 0) : last + 1]
        seen = batch.context_values[number][batch.context_mask[number]]
        assert torch.equal(seen, values[rows][~values[rows].isnan()])


@PROPERTY
@given(series(), st.integers(1, 5), st.integers(0, 99))
def test_weights_of_a_draw_add_up_to_the_windows_of_the_series(given_series, size, seed):
    windows = TimeWindows(*given_series, size=size, margin=0)
    for count in range(2, len(windows)):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            batch = windows.draw(count)
        assert_close(batch.weights.sum(), torch.tensor(float(len(windows)), dtype=F64))
        assert batch.starts.tolist() == [True] + [False] * (count - 1)


@st.composite
def batches(draw: st.DrawFn) -> tuple[TimeGrid, torch.Tensor, torch.Tensor]:
    """A grid of B series with padding, values ``(B, N, 1)`` that name their place, and a mask of them."""
    rows, count = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    times = torch.rand(rows, count, dtype=F64, generator=generator).add(0.01).cumsum(-1)
    valid = torch.rand(rows, count, generator=generator) < 0.7
    valid[:, draw(st.integers(0, count - 1))] = True
    grid = TimeGrid(times, mask=valid, max_step=draw(st.sampled_from([None, 0.2])))
    values = torch.arange(1.0 * rows * count, dtype=F64).reshape(rows, count, 1)
    return grid, values, torch.rand(rows, count, 1, generator=generator) < 0.8


@PROPERTY
@given(batches(), st.integers(1, 12), st.integers(0, 99))
def test_sampled_observations_are_valid_distinct_and_weighted_to_all_of_them(batch, count, seed):
    grid, values, mask = batch
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = sample_observations(grid, values, count, mask)
    number = grid.mask.sum(-1)
    assert torch.equal(found.grid.mask.sum(-1), number.clamp(max=count))
    assert_close(found.weight * found.grid.mask.sum(-1), number.to(F64))
    for row in range(len(values)):
        places = found.values[row, found.grid.mask[row], 0].long() - row * grid.mask.shape[-1]
        assert len(places.unique()) == len(places)
        assert grid.mask[row, places].all()
        assert torch.equal(found.grid.observed_times[row, found.grid.mask[row]], grid.observed_times[row, places])
        assert torch.equal(found.mask[row, found.grid.mask[row]], mask[row, places])
    assert torch.equal(found.grid.times[..., 0], grid.times[..., 0])
    assert torch.equal(found.grid.times[..., -1], grid.times[..., -1])


@PROPERTY
@given(st.integers(1, 12), st.integers(1, 15), st.integers(-(2**70), 2**70))
def test_every_epoch_of_minibatches_runs_through_all_indices_once(size, batch_size, seed):
    choose = minibatches(size, batch_size, seed)
    per_epoch = -(-size // batch_size)
    for epoch in range(3):
        found = torch.cat([choose(epoch * per_epoch + step) for step in range(per_epoch)])
        assert torch.equal(found.sort().values, torch.arange(size))
    assert 0 <= stream_seed(seed, "order", 0) < 2**63


def test_float32_windows_score_every_observation_once():
    times, values = torch.arange(7, dtype=torch.float32), torch.arange(7, dtype=torch.float32).unsqueeze(-1)
    batch = TimeWindows(times, values, size=3, margin=1).draw(2)
    assert batch.values.dtype == torch.float32
    assert torch.equal(batch.values[batch.mask].sort().values, values[:, 0])
