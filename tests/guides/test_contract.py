"""What every guide promises: it starts at the prior, reads only what is observed, and owns no part of the prior."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.optim import ClippedAdam
from torch.testing import assert_close

from pyro_sde import guides
from pyro_sde.distributions import SDEPath, path_kl
from pyro_sde.infer import PathELBO
from pyro_sde.nn import MLP
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.sde import SDE, BrownianMotion, NeuralSDE, OrnsteinUhlenbeck, UnderdampedLangevin

F64 = torch.float64
TIMES = torch.tensor([[0.0, 0.4, 1.0, 1.3], [0.2, 0.5, 0.6, 2.0]], dtype=F64)
MATRIX = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.3, 2.0]], dtype=F64)

# name: prior of a state of dimension 2, and its number of Brownian motions
PRIORS = {
    "diagonal": (lambda: OrnsteinUhlenbeck(0.7, 0.5), 2),
    "neural": (lambda: NeuralSDE(2, (8,)).double(), 2),
    "scalar": (lambda: SDE(lambda t, z: -z, lambda t, z: torch.ones_like(z)[..., None], noise_type="scalar"), 1),
    "additive, M > D": (lambda: SDE(lambda t, z: -z, lambda t, z: MATRIX.to(z.dtype), noise_type="additive"), 3),
    "noise-free state": (lambda: UnderdampedLangevin(lambda x: -x, 0.5, 0.7), 2),
}


@pytest.fixture(params=sorted(PRIORS))
def prior_and_noise(request):
    make, noise_dim = PRIORS[request.param]
    return make(), noise_dim


def series(dtype=F64):
    return TimeGrid(TIMES.to(dtype), max_step=0.25), torch.randn(2, 4, 1, dtype=dtype)


def test_every_guide_has_a_row(request):
    gaussian = {"EncodedSites", "FreeSites", "GaussianMarkov", "ObservedSites", "PseudoObservations"}
    discrete = {"CombinerGuide", "ResidualGuide", "VariationalRNNGuide"}
    marginal = {name for name in guides.__all__ if name.startswith("Marginal") or name.endswith(("Times", "Sampler"))}
    bending = set(guides.__all__) - gaussian - discrete - marginal  # the others bend no SDE and have tests of their own
    assert bending == {"PosteriorSDE"}  # a new name needs a row in conftest.GUIDES


def test_a_guide_starts_at_the_dynamics_of_the_prior(make_guide, prior_and_noise):
    prior, noise_dim = prior_and_noise
    grid, values = series()
    law = make_guide(1, 2, noise_dim).double()(prior, grid, values)
    start = SDEPath(prior, law.initial, grid)
    path = law.rsample((3,))
    assert path_kl(law, start, path).abs().max() == 0.0
    noise = torch.randn(2, grid.num_steps, noise_dim, dtype=F64)
    assert torch.equal(law.solve(path[0, :, 0], noise), start.solve(path[0, :, 0], noise))


def test_the_divergence_of_a_new_guide_is_that_of_the_initial_laws(make_guide, prior_and_noise):
    prior, noise_dim = prior_and_noise
    grid, values = series()
    law = make_guide(1, 2, noise_dim).double()(prior, grid, values)
    initial = dist.Normal(torch.ones(2, dtype=F64), 2.0).to_event(1)
    divergence = path_kl(law, SDEPath(prior, initial, grid), law.rsample())
    assert_close(divergence, torch.distributions.kl_divergence(law.initial, initial.expand([2])), rtol=0, atol=1e-14)


def test_what_is_masked_has_no_influence(make_guide, prior_and_noise):
    prior, noise_dim = prior_and_noise
    grid, values = series()
    guide = make_guide(1, 2, noise_dim).double()
    mask = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0]]).bool()
    for parameter in guide.parameters():  # away from the start, where the control ignores its inputs
        torch.nn.init.normal_(parameter, std=0.3)
    spoilt = torch.where(mask[..., None], values, torch.nan)
    one, other = guide(prior, grid, values, mask), guide(prior, grid, spoilt, mask)
    path = one.sample()
    assert torch.equal(one.log_prob(path), other.log_prob(path))


def test_a_padded_series_has_the_law_it_has_alone(make_guide):
    prior, guide = BrownianMotion(0.5), make_guide(1, 2, 2).double()
    times = torch.tensor([[0.0, 0.4, 1.0, 1.3], [0.2, 0.5, 0.5, 0.5]], dtype=F64)
    values = torch.randn(2, 4, 1, dtype=F64)
    batch = guide(prior, TimeGrid(times, max_step=0.25), values)
    alone = guide(prior, TimeGrid(times[1, :2], max_step=0.25), values[1, :2])
    path = alone.sample()
    padded = torch.cat([path, path[-1:].expand(batch.event_shape[0] - len(path), -1)])
    assert_close(batch.log_prob(padded)[1], alone.log_prob(path), rtol=0, atol=1e-12)
    assert_close(batch.inputs[1, : alone.grid.num_steps], alone.inputs, rtol=0, atol=1e-12)


def test_a_guide_owns_no_parameter_of_the_prior(make_guide):
    prior, guide = NeuralSDE(2, (8,)), make_guide(1, 2, 2)
    law = guide(prior, *series(torch.float32))
    assert law.sde.base is prior
    assert not {id(p) for p in guide.parameters()} & {id(p) for p in prior.parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_training_moves_every_parameter_of_the_guide_in_either_dtype(make_guide, dtype):
    prior, guide, decoder = NeuralSDE(2, (8,)).to(dtype), make_guide(1, 2, 2).to(dtype), MLP(2, 1, ()).to(dtype)
    grid, values = series(dtype)
    initial = dist.Normal(torch.zeros(2, dtype=dtype), 1.0).to_event(1)

    def model():
        pyro.module("prior", prior)
        pyro.module("decoder", decoder)
        with pyro.plate("series", 2):
            z = pyro.sample("z", SDEPath(prior, initial, grid))
            pyro.sample("y", dist.Normal(decoder(grid.observed(z)), 0.1).to_event(2), obs=values)

    def run_guide():
        with pyro.plate("series", 2):
            pyro.sample("z", pyro.module("guide", guide)(prior, grid, values))

    before = {name: p.detach().clone() for name, p in guide.named_parameters()}
    svi = SVI(model, run_guide, ClippedAdam({"lr": 1e-2}), PathELBO())
    losses = [svi.step() for _ in range(3)]
    assert all(torch.isfinite(torch.tensor(losses)))
    assert [name for name, p in guide.named_parameters() if torch.equal(p, before[name])] == []
