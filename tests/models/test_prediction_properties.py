"""Predictions at times that nobody chose: their order, repeats and neighbours play no part."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from pyro_sde.data.series import TimeSeries
from pyro_sde.models.alignment import align, as_series, grid_through, states_at
from pyro_sde.models.latent_sde import LatentSDE
from pyro_sde.models.parts import Architecture
from pyro_sde.models.prediction import blocks

F64 = torch.float64
PROPERTY = settings(derandomize=True, max_examples=25, deadline=None, database=None)
SIZES = Architecture(hidden=(4,), decoder_hidden=(4,), encoder_hidden=4, context_dim=3)
KNOWN = TimeSeries(
    "known",
    torch.tensor([[0.0, 0.5, 1.0], [0.2, 0.3, 2.0]], dtype=F64),
    torch.tensor([[[0.3], [-1.0], [0.7]], [[0.0], [0.4], [0.1]]], dtype=F64),
    torch.ones(2, 3, 1).bool(),
)


def model() -> LatentSDE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = LatentSDE(2, 1, max_step=0.4, architecture=SIZES)
    with torch.no_grad():
        for parameter in made.posterior_sde.parameters():  # controls start at 0
            parameter.add_(0.1 * torch.sin(torch.arange(parameter.numel())).reshape(parameter.shape))
    return made.double()


LATENT = model()
times = st.lists(st.floats(0.25, 4.0), min_size=1, max_size=6).map(lambda values: torch.tensor(values, dtype=F64))
steps = st.none() | st.floats(0.1, 2.0)


@PROPERTY
@given(times, steps, st.data())
def test_a_grid_through_times_has_each_where_it_says(queries, max_step, data):
    repeats = queries[data.draw(st.lists(st.integers(0, len(queries) - 1), max_size=4))]
    queries = torch.cat([queries, repeats])
    grid, order, position = grid_through(queries, max_step)
    assert torch.equal(states_at(grid.times.unsqueeze(-1), position).squeeze(-1), queries)
    assert torch.equal(queries.gather(-1, order), queries.sort().values)
    assert int(grid.mask.sum()) == len(queries.unique())
    if max_step is not None:
        assert (grid.steps <= 1.001 * max_step).all()


@st.composite
def records(draw: st.DrawFn) -> TimeSeries:
    """A record of B series with gaps and times at which nothing is observed."""
    rows, count = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    at = torch.rand(rows, count, dtype=F64, generator=generator).add(0.01).cumsum(-1)
    mask = torch.rand(rows, count, 1, generator=generator) < 0.6
    mask[:, draw(st.integers(0, count - 1))] = True
    return TimeSeries("drawn", at, torch.randn(rows, count, 1, dtype=F64, generator=generator), mask)


@PROPERTY
@given(records(), times, steps)
def test_an_aligned_series_keeps_every_observation_at_its_time(series, queries, max_step):
    asked = queries.expand(len(series), -1)
    aligned = align(series, max_step, asked)
    for row in range(len(series)):
        seen = aligned.mask[row].squeeze(-1)
        own = series.mask[row].squeeze(-1)
        assert torch.equal(aligned.values[row][seen], series.values[row][own])
        assert torch.equal(aligned.grid.observed_times[row][seen], series.times[row][own])
        assert not (seen & ~aligned.grid.mask[row]).any()
    last = torch.where(series.valid_times, series.times, -math.inf).amax(-1, keepdim=True)
    assert torch.equal(aligned.last_time, last)
    found = states_at(aligned.grid.times.unsqueeze(-1), aligned.query_position).squeeze(-1)
    assert torch.equal(found, torch.minimum(asked, last))


@PROPERTY
@given(times, st.data(), st.integers(0, 99))
def test_paths_are_the_same_in_whatever_order_they_are_asked_for(queries, data, seed):
    order = data.draw(st.permutations(range(len(queries))))
    ours = LATENT.posterior(KNOWN, queries, num_samples=3, seed=seed)
    theirs = LATENT.posterior(KNOWN, queries[order], num_samples=3, seed=seed)
    assert torch.equal(theirs.z, ours.z[..., order, :])
    assert torch.equal(theirs.times, ours.times[..., order])
    assert_close(theirs.mean, ours.mean[..., order, :], rtol=1e-12, atol=1e-12)


@PROPERTY
@given(times, st.integers(0, 99))
def test_a_time_asked_for_twice_has_one_state(queries, seed):
    twice = LATENT.posterior(KNOWN, torch.cat([queries, queries]), num_samples=2, seed=seed)
    once = LATENT.posterior(KNOWN, queries, num_samples=2, seed=seed)
    first, second = twice.z.chunk(2, -2)
    assert torch.equal(first, second)
    assert torch.equal(first, once.z)


@PROPERTY
@given(times, st.integers(0, 99), st.sampled_from([0.0, 1e9, math.nan]))
def test_what_a_series_does_not_show_has_no_part_in_its_future(queries, seed, junk):
    mask = torch.tensor([[1, 0, 1], [1, 1, 0]]).bool().unsqueeze(-1)
    later = 2.0 + queries  # after the last observations
    clean, dirty = (
        as_series((KNOWN.times, torch.where(mask, KNOWN.values, value), mask), KNOWN.times) for value in (0.5, junk)
    )
    ours, theirs = (LATENT.forecast(series, later, num_samples=2, seed=seed) for series in (clean, dirty))
    assert torch.equal(ours.y, theirs.y)
    completed = LATENT.impute(clean, num_samples=2, seed=seed)
    assert torch.equal(completed.y[:, mask], KNOWN.values[mask].expand(2, -1))


@PROPERTY
@given(st.integers(1, 10**5), st.integers(1, 10**5))
def test_blocks_of_draws_add_up(num_samples, rows):
    found = list(blocks(num_samples, rows))
    assert sum(found) == num_samples
    assert min(found) > 0
    assert len(set(found[:-1])) <= 1


def test_float32_models_answer_in_any_order_too():
    latent, queries = model().float(), torch.tensor([1.5, 0.3, 0.9])
    ours = latent.posterior(KNOWN, queries, num_samples=2, seed=0)
    theirs = latent.posterior(KNOWN, queries.flip(0), num_samples=2, seed=0)
    assert ours.z.dtype == torch.float32
    assert torch.equal(ours.z, theirs.z.flip(-2))
