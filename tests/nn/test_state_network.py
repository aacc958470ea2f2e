"""The layers that a coefficient offers compute what its `forward` computes."""

import pytest
import torch
from torch import nn

from pyro_sde.nn import ControlNet, DiagonalDiffusion, DriftNet
from pyro_sde.nn.state_network import StateNetwork, is_plain
from pyro_sde.sde import BrownianMotion, DoubleWell, GeometricBrownianMotion, OrnsteinUhlenbeck


def value_of(network: StateNetwork, z: torch.Tensor) -> torch.Tensor:
    """The formula of the class, written out."""
    value = network.shift
    if network.weights:
        value = z @ network.weights[0].T + network.shift
        for weight, bias in zip(network.weights[1:], network.biases, strict=True):
            value = network.activation(value) @ weight.T + bias
    if network.rate is not None:
        value = value - network.rate * z
    if network.bounds is not None:
        low, span = network.bounds
        value = low + span * value.sigmoid()
    return value


def randomised(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


COEFFICIENTS = {
    "drift": (lambda: DriftNet(3, (5, 4)), 0),
    "drift of time and inputs": (lambda: DriftNet(3, (5,), time_features=2, period=0.7, input_dim=2), 2),
    "drift with reversion": (lambda: DriftNet(3, (5,), reversion=0.4), 0),
    "control": (lambda: ControlNet(3, 2, time_features=1), 2),
    "constant diffusion": (lambda: DiagonalDiffusion(3), 0),
    "diffusion networks": (lambda: DiagonalDiffusion(3, 4, constant=False), 0),
    "mean reversion": (lambda: OrnsteinUhlenbeck(0.5, torch.ones(3), 0.3).drift, 0),
    "proportional": (lambda: GeometricBrownianMotion(0.5, torch.ones(3)).diffusion, 0),
    "constant": (lambda: OrnsteinUhlenbeck(0.5, torch.ones(3)).diffusion, 0),
    "velocity": (lambda: BrownianMotion(1.0, 0.3).drift, 0),
}


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_layers_compute_what_forward_computes(name):
    torch.manual_seed(0)
    make, inputs = COEFFICIENTS[name]
    module = randomised(make()).double()
    for buffer in module._buffers:
        module._buffers[buffer] = module._buffers[buffer].double()
    t, z = torch.rand(6, 4, 1).double(), torch.randn(6, 4, 3).double()
    row = torch.randn(6, 4, inputs).double() if inputs else None
    network = module.state_network(t, row)
    expected = module(t, z) if row is None else module(t, z, row)
    torch.testing.assert_close(value_of(network, z).expand(6, 4, 3), expected.expand(6, 4, 3), rtol=1e-12, atol=1e-12)


def test_elementwise_networks_have_a_diagonal_jacobian():
    module = randomised(DiagonalDiffusion(3, 4, constant=False))
    network = module.state_network(torch.zeros(1, 1), None)
    assert network.elementwise
    jacobian = torch.func.jacrev(lambda z: value_of(network, z))(torch.randn(3))
    assert torch.equal(jacobian, torch.diag(jacobian.diag()))


def test_inputs_of_another_size_offer_nothing():
    net = DriftNet(3, (5,), input_dim=2)
    t = torch.zeros(4, 1)
    assert net.state_network(t, torch.zeros(4, 3)) is None
    assert net.state_network(t, None) is None
    assert DriftNet(3, (5,)).state_network(t, torch.zeros(4, 2)) is None


def test_a_function_that_is_not_affine_offers_nothing():
    assert DoubleWell().drift.state_network(torch.zeros(4, 1), None) is None


def test_a_parameter_of_another_dtype_offers_nothing():
    drift = OrnsteinUhlenbeck(torch.ones(3).double(), 1.0).drift
    assert drift.state_network(torch.zeros(4, 1), None) is None


@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_a_hook_makes_a_module_not_plain(register):
    net = DriftNet(3)
    assert is_plain(net)
    getattr(net.tail.layers[0], register)(lambda *args: None)
    assert not is_plain(net)
