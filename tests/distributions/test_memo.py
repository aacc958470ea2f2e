"""Coefficients of a sampled path are used again for its density, and for no other tensor."""

import copy
import gc
import pickle
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_sde import SDE, NeuralSDE, SDEPath, TimeGrid, path_kl
from pyro_sde.distributions.kl import path_terms
from pyro_sde.distributions.memo import PathMemo
from pyro_sde.sde import Coefficients, OrnsteinUhlenbeck


@pytest.fixture(autouse=True)
def _loop():
    with pyro.settings.context(pyro_sde_backward="loop"):
        yield


def counting_law(noise_type="diagonal", batch=3):
    calls = []
    rate = torch.tensor(0.7, requires_grad=True)

    def drift(t, z):
        calls.append(z.shape)
        return -rate * z

    def diffusion(t, z):
        g = 1 + 0.1 * z.sin() * rate
        return torch.diag_embed(g) if noise_type == "general" else g

    grid = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.25)
    sde = SDE(drift, diffusion, noise_type=noise_type)
    law = SDEPath(sde, dist.Normal(torch.zeros(batch, 2), 1.0).to_event(1), grid)
    calls.clear()
    return law, calls, rate


def log_prob(law, path):
    """Log-density of the steps of a sampled path, as a bound asks for it."""
    return law.sampled_kernels(path).log_prob().sum(0)


def test_the_density_itself_is_a_function_of_the_path_it_is_given():
    law, calls, _ = counting_law()
    path = law.rsample()
    count = len(calls)
    (slope,) = torch.autograd.grad(law.log_prob(path).sum(), path, retain_graph=True)
    assert len(calls) == count + 1
    leaf = path.detach().requires_grad_()
    torch.testing.assert_close(slope, torch.autograd.grad(law.log_prob(leaf).sum(), leaf)[0])
    fixed = SDEPath(OrnsteinUhlenbeck(1.0, 0.5), law.initial, law.grid).rsample().requires_grad_()
    other = SDEPath(OrnsteinUhlenbeck(1.0, 0.5), law.initial, law.grid)
    kl = path_kl(law, SDEPath(law.sde.with_drift(lambda t, z: -z), law.initial, law.grid), path)
    (slope,) = torch.autograd.grad(kl.sum(), path, retain_graph=True)
    kl = path_kl(law, SDEPath(law.sde.with_drift(lambda t, z: -z), law.initial, law.grid), leaf)
    torch.testing.assert_close(slope, torch.autograd.grad(kl.sum(), leaf)[0])
    assert torch.autograd.grad(other.log_prob(fixed).sum(), fixed)[0].isfinite().all()


def test_a_path_that_was_changed_in_place_is_not_recalled():
    grid = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.25)
    law = SDEPath(SDE(lambda t, z: -z, lambda t, z: 1 + z**2), dist.Normal(torch.zeros(2), 1.0).to_event(1), grid)
    path = law.rsample()
    path.mul_(0.5)
    torch.testing.assert_close(log_prob(law, path), log_prob(law, path.clone()))


@pytest.mark.parametrize("noise_type", ["diagonal", "general"])
def test_density_of_the_sampled_path_asks_no_coefficient_again_and_is_the_same(noise_type):
    law, calls, rate = counting_law(noise_type)
    path = law.rsample()
    count = len(calls)
    ours = log_prob(law, path)
    assert len(calls) == count
    again = log_prob(law, path.view_as(path))  # another tensor of the same values
    assert len(calls) == count + 1
    torch.testing.assert_close(ours, again)
    for value, expected in zip(
        torch.autograd.grad(ours.sum(), rate, retain_graph=True), torch.autograd.grad(again.sum(), rate), strict=True
    ):
        torch.testing.assert_close(value, expected)


def test_divergence_along_the_sampled_path_has_the_same_value_and_gradient():
    grid = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.1)
    initial = dist.Normal(torch.zeros(4, 2), 1.0).to_event(1)
    prior = NeuralSDE(2, (5,), constant_diffusion=False)
    gain = torch.tensor(0.4, requires_grad=True)
    q = SDEPath(prior.controlled(lambda t, z: gain * z), initial, grid)
    path = q.rsample((3,))
    ours = path_terms(q, SDEPath(prior, initial, grid), path, closed=True).kl
    again = path_kl(q, SDEPath(prior, initial, grid), path.view_as(path))
    torch.testing.assert_close(ours, again)
    for value, expected in zip(
        torch.autograd.grad(ours.sum(), [gain, *prior.drift.parameters()], retain_graph=True, allow_unused=True),
        torch.autograd.grad(again.sum(), [gain, *prior.drift.parameters()], allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_a_new_sample_takes_the_place_of_the_old_one():
    law, calls, _ = counting_law()
    old, new = law.rsample(), law.rsample()
    count = len(calls)
    log_prob(law, new)
    assert len(calls) == count
    log_prob(law, old)
    assert len(calls) == count + 1


@pytest.mark.parametrize("change", [copy.copy, lambda law: law.expand((5, 3)), lambda law: law.named("z")])
def test_copies_forget(change):
    law, calls, _ = counting_law()
    path = law.rsample()
    count = len(calls)
    log_prob(change(law), path)
    assert len(calls) == count + 1


def test_a_law_is_pickled_without_what_it_remembers():
    grid = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.25)
    law = SDEPath(OrnsteinUhlenbeck(1.0, 0.5), dist.Normal(torch.zeros(2), 1.0).to_event(1), grid)
    path = law.rsample()
    assert pickle.loads(pickle.dumps(law)).log_prob(path) == pytest.approx(law.log_prob(path).item())


def test_nothing_is_remembered_without_autograd():
    law, calls, _ = counting_law()
    path = law.sample()
    count = len(calls)
    log_prob(law, path)
    assert len(calls) == count + 1


def test_what_is_remembered_dies_with_the_path():
    law, _, _ = counting_law()
    path = law.rsample()
    kept = weakref.ref(law._memo._steps[0].drift)
    assert kept() is not None
    del path
    gc.collect()
    assert kept() is None


def test_what_is_remembered_dies_with_the_law():
    memo, path = PathMemo(), torch.zeros(2)
    drift = torch.zeros(3)
    memo.keep(path, [Coefficients(drift, drift, None)])
    kept = weakref.ref(drift)
    del drift, memo
    assert kept() is None  # at once: no cycle waits for the collector
