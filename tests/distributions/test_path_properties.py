"""Shapes and masks of path laws for batches, plates and patterns that nobody chose."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from pyro_sde.distributions.gaussian_path import GaussianPath
from pyro_sde.distributions.linear_gaussian_ssm import LinearGaussianSSM
from pyro_sde.distributions.markov_path import MarkovPath
from pyro_sde.distributions.sde_path import SDEPath
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.sde.independent import OrnsteinUhlenbeck

F64 = torch.float64
PROPERTY = settings(derandomize=True, max_examples=30, deadline=None, database=None)

shapes = st.lists(st.integers(1, 3), max_size=2).map(tuple)
patterns = st.lists(st.booleans(), min_size=5, max_size=5).map(torch.tensor)


def broadcastable(draw: st.DrawFn, batch: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to `batch`: its last dimensions, some of them 1."""
    kept = draw(st.integers(0, len(batch)))
    return tuple(draw(st.sampled_from([1, size])) for size in batch[len(batch) - kept :])


@st.composite
def laws(draw: st.DrawFn) -> tuple[object, tuple[int, ...], tuple[int, ...]]:
    """A law of each kind with its batch shape and event shape."""
    kind = draw(st.sampled_from(["sde", "gaussian", "markov"]))
    target, dim = draw(shapes), draw(st.integers(1, 3))
    first, of_grid, of_rate = (broadcastable(draw, target) for _ in range(3))
    initial = dist.Normal(torch.zeros(*first, dim, dtype=F64), 1.0).to_event(1)
    rate = torch.full((*of_rate, dim), 0.7, dtype=F64)
    if kind == "markov":
        points = draw(st.integers(1, 4))
        law = MarkovPath(lambda z, t, u: dist.Normal(rate * z, 0.5).to_event(1), initial, points)
        return law, tuple(torch.broadcast_shapes(first, of_rate)), (points, dim)
    times = torch.tensor([0.0, 0.4, 1.0], dtype=F64).expand(*of_grid, 3)
    grid = TimeGrid(times, max_step=0.5)
    cls = SDEPath if kind == "sde" else GaussianPath
    law = cls(OrnsteinUhlenbeck(rate, 0.5), initial, grid)
    return law, tuple(torch.broadcast_shapes(first, of_grid, of_rate)), (4, dim)


@PROPERTY
@given(laws(), shapes)
def test_batch_event_and_sample_shapes_broadcast(given_law, sample):
    law, batch, event = given_law
    assert law.batch_shape == batch
    assert law.event_shape == event
    path = law.rsample(sample)
    assert path.shape == (*sample, *batch, *event)
    log_prob = law.log_prob(path)
    assert log_prob.shape == (*sample, *batch)
    assert log_prob.isfinite().all()
    one = path[(0,) * (path.dim() - 2)]
    assert law.log_prob(one).shape == batch


@PROPERTY
@given(laws(), shapes, st.data())
def test_an_expanded_law_has_the_density_of_its_own(given_law, left, data):
    law, batch, event = given_law
    wide = tuple(data.draw(st.sampled_from([size, size if size > 1 else 4])) for size in batch)
    larger = law.expand((*left, *wide))
    assert type(larger) is type(law)
    assert larger.batch_shape == (*left, *wide)
    assert larger.event_shape == event
    path = larger.rsample((2,))
    assert path.shape == (2, *left, *wide, *event)
    assert_close(larger.log_prob(path), law.log_prob(path), rtol=1e-12, atol=1e-12)


@PROPERTY
@given(laws(), st.data())
def test_a_shape_that_the_batch_does_not_broadcast_to_is_refused(given_law, data):
    law, batch, _ = given_law
    bad = data.draw(st.sampled_from([(*batch, -1), (-1, *batch), (*(7 * size for size in batch), 0, 5)[: len(batch)]]))
    if len(bad) == len(batch) and all(size == 1 for size in batch):
        bad = (-2, *batch)  # ones expand to anything
    with pytest.raises(ValueError, match="cannot expand a path law of batch shape"):
        law.expand(bad)


@PROPERTY
@given(laws(), st.data())
def test_a_masked_law_counts_the_series_that_are_kept(given_law, data):
    law, batch, _ = given_law
    keep = torch.tensor([data.draw(st.booleans()) for _ in range(law.batch_shape.numel())]).reshape(batch)
    path = law.sample()
    assert_close(law.mask(keep).log_prob(path), torch.where(keep, law.log_prob(path), 0.0))
    joint = law.to_event(len(batch))
    assert joint.batch_shape == ()
    assert_close(joint.log_prob(path), law.log_prob(path).sum())


# --- masked is dropped


@PROPERTY
@given(patterns, st.floats(0.2, 3.0), st.sampled_from([0.0, 1e6, float("nan")]))
def test_the_evidence_of_masked_observations_is_that_of_the_dense_law_of_the_others(keep, rate, junk):
    times = torch.tensor([0.0, 0.3, 0.4, 1.7, 2.5], dtype=F64)
    y = torch.tensor([0.4, -0.2, 0.9, 1.1, -0.5], dtype=F64)
    kernel = 0.5**2 / (2 * rate) * torch.exp(-rate * (times - times.unsqueeze(-1)).abs())
    dense = kernel + 0.3**2 * torch.eye(5, dtype=F64)
    kept = keep.nonzero().flatten()
    expected = torch.zeros((), dtype=F64)
    if len(kept):
        law = dist.MultivariateNormal(torch.zeros(len(kept), dtype=F64), dense[kept][:, kept])
        expected = law.log_prob(y[kept])
    process, matrix = OrnsteinUhlenbeck(rate, 0.5, state_dim=1), torch.ones(1, 1, dtype=F64)
    noise = torch.tensor([0.3], dtype=F64)
    values = torch.where(keep, y, torch.full_like(y, junk)).unsqueeze(-1)
    for mask in (keep, keep.unsqueeze(-1)):
        ssm = LinearGaussianSSM(process, matrix, noise, TimeGrid(times, max_step=0.8), mask=mask)
        assert_close(ssm.log_prob(values), expected, rtol=1e-9, atol=1e-9)
    if len(kept):
        dropped = LinearGaussianSSM(process, matrix, noise, TimeGrid(times[kept]))
        assert_close(dropped.log_prob(y[kept].unsqueeze(-1)), expected, rtol=1e-9, atol=1e-9)


@PROPERTY
@given(patterns, st.sampled_from([SDEPath, GaussianPath]))
def test_masked_times_of_a_grid_have_no_part_in_the_density_of_a_path(keep, cls):
    keep = keep | (torch.arange(5) == 1)  # at least one
    times = torch.tensor([0.0, 0.3, 0.4, 1.7, 2.5], dtype=F64)
    full, junk = torch.ones(5, dtype=torch.bool), torch.where(keep, times, torch.full_like(times, float("nan")))
    grid = TimeGrid(torch.stack([junk, times]), mask=torch.stack([keep, full]), max_step=0.5)
    alone = TimeGrid(times[keep], max_step=0.5)
    initial = dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1)
    sde = OrnsteinUhlenbeck(1.3, 0.5, state_dim=2)
    path = cls(sde, initial, alone).rsample()
    rest = path[-1:].expand(grid.num_steps - alone.num_steps, 2)  # padding holds the last state
    law = cls(sde, initial, grid)
    both = torch.stack([torch.cat([path, rest]), law.rsample()[1]])
    assert_close(law.log_prob(both)[0], cls(sde, initial, alone).log_prob(path), rtol=1e-10, atol=1e-10)
    assert torch.equal(grid.observed(both)[0][keep], alone.observed(path))


@PROPERTY
@given(st.lists(st.integers(1, 5), min_size=1, max_size=3).map(torch.tensor), st.sampled_from([0.0, 55.0]))
def test_states_beyond_the_length_of_a_series_have_no_part_in_its_density(lengths, junk):
    initial = dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1)

    def transition(z, t, inputs):
        return dist.Normal(0.8 * z, 0.5).to_event(1)

    law = MarkovPath(transition, initial, 5, lengths=lengths)
    path = law.rsample()
    path = torch.where((torch.arange(5) < lengths.unsqueeze(-1)).unsqueeze(-1), path, path.new_tensor(junk))
    for row, length, value in zip(path, lengths.tolist(), law.log_prob(path), strict=True):
        alone = MarkovPath(transition, initial, length)
        assert_close(value, alone.log_prob(row[:length]), rtol=1e-12, atol=1e-12)


def test_float32_laws_keep_their_dtype_in_any_batch():
    initial = dist.Normal(torch.zeros(2, 3), 1.0).to_event(1)
    grid = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.5)
    for cls in (SDEPath, GaussianPath):
        law = cls(OrnsteinUhlenbeck(1.0, 0.5, state_dim=3), initial, grid).expand((4, 2))
        assert law.rsample().dtype == law.log_prob(law.sample()).dtype == torch.float32
