"""Guides on series, gaps and orders that nobody chose: nothing masked is seen, and series do not see each other."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from pyro_sde.distributions.gaussian_path import GaussianPath
from pyro_sde.distributions.sde_path import SDEPath
from pyro_sde.guides.combiner import CombinerGuide
from pyro_sde.guides.gaussian_markov import GaussianMarkov, ObservedSites
from pyro_sde.guides.marginal_flow import ImportanceTimes, LowDiscrepancyTimes, StratifiedTimes, UniformTimes
from pyro_sde.guides.posterior_sde import PosteriorSDE
from pyro_sde.guides.residual import ResidualGuide
from pyro_sde.nn.encoders import GRUEncoder
from pyro_sde.nn.mlp import ControlNet
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.priors.deep_markov import DeepMarkovPrior
from pyro_sde.priors.stochastic_rnn import StochasticRNNPrior
from pyro_sde.sde.independent import OrnsteinUhlenbeck

F64 = torch.float64
PROPERTY = settings(derandomize=True, max_examples=20, deadline=None, database=None)
TIMES = torch.tensor([0.0, 0.3, 0.4, 1.7, 2.5], dtype=F64)
JUNK = (0.0, 1e6, math.nan, math.inf)
SAMPLERS = (UniformTimes, StratifiedTimes, LowDiscrepancyTimes, ImportanceTimes)


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """A module in float64 whose last layers are not 0, so that its output hangs on what it reads."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.sin(1.0 + torch.arange(parameter.numel())).reshape(parameter.shape))
    return module.double().eval()


def guide(kind: str) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = {
            "combiner": lambda: CombinerGuide(2, 2, hidden=5),
            "filter": lambda: CombinerGuide(2, 2, hidden=5, structure="ST-L"),
            "residual": lambda: ResidualGuide(2, 2, hidden=5),
            "posterior": lambda: PosteriorSDE(GRUEncoder(2, 2, 4, hidden=5), ControlNet(2, 4, hidden=(5,))),
            "gaussian": lambda: GaussianMarkov(ObservedSites(2, 2, (5,))),
        }
        return shaken(made[kind]())


KINDS = ("combiner", "filter", "gaussian", "posterior", "residual")
GUIDES = {kind: guide(kind) for kind in KINDS}
CHAIN = shaken(DeepMarkovPrior(2, hidden=5))
DRIVEN = shaken(StochasticRNNPrior(2, 2, hidden=5))
PROCESS = OrnsteinUhlenbeck(torch.tensor([0.7, 1.2], dtype=F64), 0.5)


def law_of(kind: str, values: torch.Tensor, mask: torch.Tensor) -> torch.distributions.Distribution:
    """Posterior law of B series on five steps or on a grid of five times."""
    if kind in ("gaussian", "posterior"):
        initial = dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1)
        grid = TimeGrid(TIMES, max_step=0.8)
        if kind == "posterior":
            return GUIDES[kind](PROCESS, grid, values, mask)
        return GUIDES[kind](SDEPath(PROCESS, initial, grid), values, mask)
    prior = DRIVEN(5, None, torch.where(mask, values, 0.0)) if kind == "residual" else CHAIN(5)
    return GUIDES[kind](prior, values, mask)


@st.composite
def observations(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Observations ``(B, 5, 2)``, what is seen of them, and paths ``(B, T, 2)`` of either kind of guide."""
    rows = draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    values = torch.randn(rows, 5, 2, dtype=F64, generator=generator)
    mask = torch.rand(rows, 5, 2, generator=generator) < draw(st.sampled_from([0.2, 0.6, 1.0]))
    return values, mask, torch.randn(rows, 9, 2, dtype=F64, generator=generator)


def density(kind: str, values: torch.Tensor, mask: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
    law = law_of(kind, values, mask)
    return law.log_prob(path[:, : law.event_shape[0]])


@PROPERTY
@given(st.sampled_from(KINDS), observations(), st.sampled_from(JUNK))
def test_what_is_masked_is_not_seen(kind, series, junk):
    values, mask, path = series
    dirty = torch.where(mask, values, junk)
    ours, theirs = density(kind, values, mask, path), density(kind, dirty, mask, path)
    assert ours.isfinite().all()
    assert torch.equal(ours, theirs)


@PROPERTY
@given(st.sampled_from(KINDS), observations(), st.data())
def test_every_series_has_the_posterior_that_it_would_have_alone(kind, series, data):
    values, mask, path = series
    together = density(kind, values, mask, path)
    order = torch.tensor(data.draw(st.permutations(range(len(values)))))
    assert_close(density(kind, values[order], mask[order], path[order]), together[order], rtol=1e-10, atol=1e-10)
    alone = torch.cat([density(kind, *(part[i : i + 1] for part in series)) for i in range(len(values))])
    assert_close(alone, together, rtol=1e-10, atol=1e-10)


@PROPERTY
@given(st.sampled_from(KINDS), observations())
def test_what_is_observed_is_seen(kind, series):
    values, _, path = series
    everything = torch.ones_like(values).bool()
    moved = values.clone()
    moved[:, 0] += 1.0  # every guide of these reads the first observation for the first state
    assert (density(kind, values, everything, path) != density(kind, moved, everything, path)).all()


@PROPERTY
@given(observations(), st.integers(1, 3))
def test_a_smoother_by_pseudo_observations_drops_times_without_an_observation(series, gap):
    values, mask, _ = series
    keep = torch.arange(5) != gap
    mask = mask & keep.unsqueeze(-1)
    initial = dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1)
    full = GUIDES["gaussian"](GaussianPath(PROCESS, initial, TimeGrid(TIMES)), values, mask)
    dropped = GaussianPath(PROCESS, initial, TimeGrid(TIMES[keep]))
    rest = GUIDES["gaussian"](dropped, values[:, keep], mask[:, keep])
    assert_close(full.mean[:, keep], rest.mean, rtol=1e-10, atol=1e-10)
    assert_close(full.variance[:, keep], rest.variance, rtol=1e-10, atol=1e-10)


@PROPERTY
@given(st.sampled_from(SAMPLERS), st.integers(1, 9), st.integers(1, 4), st.lists(st.floats(), max_size=3))
def test_times_lie_in_the_interval_with_bounded_weights_whatever_was_learned(kind, count, rows, rates):
    sampler = kind(count)
    like = torch.zeros((), dtype=F64)
    for rate in rates:  # NaN and infinity too
        u, _ = sampler.draw(torch.Size([rows]), like)
        sampler.learn(u, torch.where(u < 0.3, torch.full_like(u, rate), 0.0))
    u, weight = sampler.draw(torch.Size([rows]), like)
    assert u.shape == weight.shape == (count, rows)
    assert ((u >= 0) & (u <= 1)).all()
    assert (weight > 0).all()
    if kind is ImportanceTimes:
        assert (weight <= 1 / (sampler.uniform * count) * (1 + 1e-9)).all()
        assert_close(sampler.density.sum(), torch.ones((), dtype=F64))
    else:
        assert_close(weight.sum(0), torch.ones(rows, dtype=F64))


def test_float32_guides_do_not_see_what_is_masked_either():
    values = torch.linspace(-1.0, 1.0, 20).reshape(2, 5, 2)
    mask = torch.arange(20).reshape(2, 5, 2) % 3 > 0
    single, double = guide("combiner").float(), GUIDES["combiner"]
    prior = shaken(DeepMarkovPrior(2, hidden=5)).float()
    path = torch.zeros(2, 5, 2)
    ours = single(prior(5), torch.where(mask, values, math.nan), mask).log_prob(path)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, single(prior(5), values, mask).log_prob(path))
    assert_close(ours.double(), double(CHAIN(5), values.double(), mask).log_prob(path.double()), rtol=1e-4, atol=1e-4)
