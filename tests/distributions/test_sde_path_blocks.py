"""Coefficients evaluated in blocks of steps are those of one call."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_sde import SDE, NeuralSDE, SDEPath, TimeGrid
from pyro_sde.nn import ControlNet

CAPTURED = torch.tensor([[0.5], [0.8], [1.1]])  # (B, 1)


def sdes():
    control = ControlNet(2, 4, hidden=(3,))
    torch.nn.init.normal_(control.tail.layers[-1].weight)
    return {
        "constant diffusion": NeuralSDE(2, (3,)),
        "diffusion of the state": NeuralSDE(2, (3,), constant_diffusion=False),
        "time alone": SDE(lambda t, z: t.sin(), lambda t, z: 1 + t),
        "captured batch": SDE(lambda t, z: -CAPTURED * z, lambda t, z: CAPTURED),
        "constant matrix": SDE(lambda t, z: -z, lambda t, z: torch.eye(2) + 0.1, noise_type="additive"),
        "captured matrix": SDE(lambda t, z: -z, lambda t, z: CAPTURED[..., None] * torch.eye(2), noise_type="general"),
        "matrix of the state": SDE(lambda t, z: -z, lambda t, z: torch.diag_embed(1 + z**2), noise_type="general"),
        "control with inputs": NeuralSDE(2, (3,)).controlled(control),
    }


@pytest.mark.parametrize("name", sdes())
@pytest.mark.parametrize("memory", ["full", "low"])
@pytest.mark.parametrize("rows", [1, 3, 20, 21])
@pytest.mark.parametrize("sample", [(), (2,)], ids=["one", "samples"])
def test_density_and_gradient_do_not_depend_on_the_block(name, rows, sample, memory):
    torch.manual_seed(0)
    grid = TimeGrid(torch.rand(3, 4).cumsum(-1), max_step=0.2)
    inputs = torch.randn(3, grid.num_steps, 4) if name == "control with inputs" else None
    law = SDEPath(sdes()[name], dist.Normal(torch.zeros(3, 2), 1.0).to_event(1), grid, inputs=inputs)
    path = law.sample(sample).requires_grad_()

    def evaluate(block, memory="full"):
        with pyro.settings.context(pyro_sde_block=block, pyro_sde_memory=memory):
            log_prob = law.log_prob(path)
        return log_prob, torch.autograd.grad(log_prob.sum(), path)[0]

    for ours, expected in zip(evaluate(rows, memory), evaluate(10**9), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)


def test_large_batches_are_cut_into_blocks(monkeypatch):
    sizes = []

    def drift(t, z):
        sizes.append(z[..., 0].numel())
        return -z

    grid = TimeGrid(torch.linspace(0.0, 1.0, 51))
    law = SDEPath(SDE(drift, lambda t, z: torch.ones(1)), dist.Normal(torch.zeros(100, 1), 1.0).to_event(1), grid)
    path = law.sample()
    sizes.clear()
    law.log_prob(path)
    assert sizes == [1000] * 5
