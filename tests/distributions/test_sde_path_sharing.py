"""What guide and model share is evaluated once, and nothing else is taken for shared."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_sde import SDE, NeuralSDE, SDEPath, TimeGrid, path_kl
from pyro_sde.distributions.kl import path_terms
from pyro_sde.nn import ControlNet, DiagonalDiffusion, DriftNet
from pyro_sde.solvers import Execution

GRID = TimeGrid(torch.linspace(0.0, 1.0, 9))
START = dist.Normal(torch.zeros(4, 2), 1.0).to_event(1)


def control():
    net = ControlNet(2, 3, hidden=(4,))
    torch.nn.init.normal_(net.tail.layers[-1].weight)
    return net


def push(t, z):
    return z.sin() + 1


def controlled_prior():
    prior = NeuralSDE(2, (4,), constant_diffusion=False)
    return SDEPath(prior.controlled(push), START, GRID), SDEPath(prior, START, GRID)


def context_of_the_guide():
    prior = NeuralSDE(2, (4,), constant_diffusion=False)
    return SDEPath(prior.controlled(control()), START, GRID, inputs=torch.randn(4, 8, 3)), SDEPath(prior, START, GRID)


def another_drift():
    prior = NeuralSDE(2, (4,), constant_diffusion=False)
    return SDEPath(prior.with_drift(DriftNet(2, (4,))), START, GRID), SDEPath(prior, START, GRID)


def control_of_a_controlled_prior():
    prior = NeuralSDE(2, (4,), constant_diffusion=False).controlled(push)
    return SDEPath(prior.controlled(lambda t, z: z.cos()), START, GRID), SDEPath(prior, START, GRID)


def control_of_a_controlled_prior_against_its_base():
    base = NeuralSDE(2, (4,), constant_diffusion=False)
    guide = base.controlled(push).controlled(lambda t, z: z.cos())
    return SDEPath(guide, START, GRID), SDEPath(base, START, GRID)


def other_inputs():
    prior = SDE(DriftNet(2, (4,), input_dim=3), DiagonalDiffusion(2))
    rows = torch.randn(4, 8, 3)
    guide = SDEPath(prior.with_inputs(rows).controlled(push), START, GRID)
    return guide, SDEPath(prior, START, GRID, inputs=2 * rows)


def same_inputs():
    prior = SDE(DriftNet(2, (4,), input_dim=3), DiagonalDiffusion(2))
    rows = torch.randn(4, 8, 3)
    guide = SDEPath(prior.with_inputs(rows).controlled(push), START, GRID)
    return guide, SDEPath(prior, START, GRID, inputs=rows)


def other_random_rates():
    def drift(t, z):
        return -pyro.sample("rate", dist.LogNormal(0.0, 1.0)) * z

    prior = SDE(drift, lambda t, z: torch.ones(2))
    with poutine.trace():
        guide = SDEPath(prior.controlled(push), START, GRID)
    with poutine.trace():
        return guide, SDEPath(prior, START, GRID)


PAIRS = [
    controlled_prior,
    context_of_the_guide,
    another_drift,
    control_of_a_controlled_prior,
    control_of_a_controlled_prior_against_its_base,
    other_inputs,
    same_inputs,
    other_random_rates,
]


@pytest.mark.parametrize("pair", PAIRS)
def test_divergence_and_densities_are_those_of_separate_evaluations(pair):
    torch.manual_seed(0)
    q, p = pair()
    path = q.sample()
    expected = q.kernels(path).kl(p.kernels(path)).sum(0)
    torch.testing.assert_close(path_kl(q, p, path), expected)
    terms = path_terms(q, p, path, closed=False)
    torch.testing.assert_close(terms.log_q, q.log_prob(path))
    torch.testing.assert_close(terms.log_p, p.log_prob(path))


def test_the_divergence_from_a_controlled_prior_calls_the_prior_once():
    calls = []

    def drift(t, z):
        calls.append("drift")
        return -z

    def diffusion(t, z):
        calls.append("diffusion")
        return 1 + z.square()

    prior = SDE(drift, diffusion)
    q, p = SDEPath(prior.controlled(push), START, GRID), SDEPath(prior, START, GRID)
    path = q.sample()
    calls.clear()
    path_kl(q, p, path)
    assert sorted(calls) == ["diffusion", "drift"]


def test_another_diffusion_is_still_an_error():
    prior = NeuralSDE(2, (4,), constant_diffusion=False)
    q = SDEPath(SDE(prior.drift, lambda t, z: 2 + z.square()), START, GRID)
    with pytest.raises(ValueError, match="different diffusions"):
        path_kl(q, SDEPath(prior, START, GRID), q.sample())


def test_a_density_of_low_memory_keeps_its_path_only():
    prior = NeuralSDE(2, (64,))
    kept = {}
    for memory in ("full", "low"):
        law = SDEPath(prior, START, TimeGrid(torch.linspace(0.0, 1.0, 1001)), execution=Execution(memory=memory))
        path, storages = law.sample(), {}

        def pack(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            score = law.log_prob(path)
        kept[memory] = sum(storages.values())
        score.sum().backward()
    assert 3 * kept["low"] < kept["full"]
