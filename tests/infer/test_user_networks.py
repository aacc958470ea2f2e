"""Networks of the user in lower precision or compiled: same losses, same gradients, for every estimator."""

from __future__ import annotations

import shutil

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import nn
from torch.testing import assert_close

from pyro_sde.distributions import SDEPath
from pyro_sde.infer.elbo import PathELBO
from pyro_sde.nn import MLP, GRUEncoder
from pyro_sde.nn.autocast import Autocast
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.sde import SDE

ESTIMATORS = ["stl", "closed", "full"]
GRID = TimeGrid(torch.linspace(0.0, 1.0, 5, dtype=torch.float32), max_step=0.05)


class OfState(nn.Module):
    """A drift that is a network of the state."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, t, z):
        return self.network(z)


class OfContext(nn.Module):
    """A control that is a network of state and context."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, t, z, context):
        lead = torch.broadcast_shapes(z.shape[:-1], context.shape[:-1])
        parts = (z.expand(*lead, -1), context.expand(*lead, -1))
        return self.network(torch.cat(parts, -1))


class Latent(PyroModule):
    """A latent SDE whose drift, control and decoder are networks of the user, wrapped by `wrap`."""

    def __init__(self, wrap):
        super().__init__()
        self.encoder = GRUEncoder(value_dim=1, state_dim=2, context_dim=6, hidden=8)
        self.networks = nn.ModuleList([MLP(2, 2, (16,)), MLP(8, 2, (16,)), MLP(2, 1, (16,))])
        self.float()
        drift, control, decoder = (wrap(network) for network in self.networks)
        self.sde = SDE(OfState(drift), lambda t, z: torch.full_like(z, 0.5))
        self.control, self.decoder = OfContext(control), decoder

    def model(self, y):
        with pyro.plate("series", len(y)):
            start = dist.Normal(y.new_zeros(2), y.new_ones(2)).to_event(1)
            z = pyro.sample("z", SDEPath(self.sde, start, GRID))
            pyro.sample("y", dist.Normal(self.decoder(GRID.observed(z)), 0.3).to_event(2), obs=y)

    def guide(self, y):
        with pyro.plate("series", len(y)):
            initial, context, _ = self.encoder(GRID, y, torch.ones_like(y, dtype=torch.bool))
            pyro.sample("z", SDEPath(self.sde.controlled(self.control), initial, GRID, inputs=context))


def loss_and_gradients(wrap, kl):
    torch.manual_seed(0)
    latent = Latent(wrap)
    y = torch.randn(4, 5, 1, dtype=torch.float32)
    torch.manual_seed(1)
    with pyro.get_param_store().scope():
        loss = PathELBO(kl=kl).differentiable_loss(latent.model, latent.guide, y)
    parts = torch.autograd.grad(loss, [*latent.networks.parameters(), *latent.encoder.parameters()])
    return loss.detach(), torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("kl", ESTIMATORS)
def test_bfloat16_networks_change_loss_and_gradient_by_percents_at_most(kl):
    loss, gradient = loss_and_gradients(lambda network: network, kl)
    low, low_gradient = loss_and_gradients(Autocast, kl)
    assert low.dtype == low_gradient.dtype == torch.float32
    assert_close(low, loss, rtol=0.01, atol=0.0)
    assert 0 < (low_gradient - gradient).norm() < 0.05 * gradient.norm()


def test_autocast_around_a_whole_loss_is_refused():
    with pytest.raises(ValueError, match=r"dtype torch.bfloat16"), torch.autocast("cpu", dtype=torch.bfloat16):
        loss_and_gradients(lambda network: network, "stl")


@pytest.fixture
def kept_buffers():
    """The landing of PathELBO goes backward twice through a network, which compiled networks forbid by default."""
    config = pytest.importorskip("torch._functorch.config")
    with pyro.validation_enabled(True), config.patch(donated_buffer=False):  # torch.compile turns validation off
        yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="needs a C++ compiler")
# torch.compile looks at tensors and calls parts of torch in ways that warn; an error there would stop it.
@pytest.mark.filterwarnings("ignore")
def test_compiled_networks_have_the_same_loss_and_gradient(kept_buffers):
    for kl in ESTIMATORS:
        loss, gradient = loss_and_gradients(lambda network: network, kl)
        compiled, compiled_gradient = loss_and_gradients(torch.compile, kl)
        assert_close(compiled, loss, rtol=1e-5, atol=0.0)
        assert (compiled_gradient - gradient).norm() < 1e-4 * gradient.norm()
