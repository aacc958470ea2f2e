"""DiagonalDiffusion: constant or elementwise, positive, bounded, and starting where it is told to."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from pyro_sde.nn import DiagonalDiffusion

F64 = torch.float64


def trained(**options) -> DiagonalDiffusion:
    """An elementwise diffusion away from its start, where it is constant by construction."""
    diffusion = DiagonalDiffusion(3, 5, constant=False, **options).double()
    torch.nn.init.normal_(diffusion.weight)
    torch.nn.init.normal_(diffusion.raw)
    return diffusion


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("initial", [0.01, 0.5, 200.0])
def test_every_component_starts_at_the_initial_value(constant, initial):
    diffusion = DiagonalDiffusion(3, initial=initial, constant=constant)
    sigma = diffusion(torch.zeros(1), torch.randn(4, 3))
    assert_close(sigma, torch.full_like(sigma, initial), rtol=1e-5, atol=0)


def test_a_constant_diffusion_ignores_the_state_and_an_elementwise_one_does_not():
    z = torch.randn(4, 3, dtype=F64)
    constant = DiagonalDiffusion(3).double()(torch.zeros(1), z)
    assert constant.shape == (3,)
    elementwise = trained()(torch.zeros(1), z)
    assert elementwise.shape == (4, 3)
    assert (elementwise.std(0) > 1e-3).all()


@pytest.mark.parametrize("constant", [True, False])
def test_every_component_can_be_learned(constant):
    diffusion = DiagonalDiffusion(3, constant=constant)
    optimiser = torch.optim.Adam(diffusion.parameters(), 0.05)
    z, target = torch.randn(64, 3), torch.tensor([0.1, 0.4, 0.8])
    for _ in range(200):
        optimiser.zero_grad()
        loss = (diffusion(torch.zeros(1), z) - target).square().sum(-1).mean()
        loss.backward()
        optimiser.step()
    assert loss < 1e-3


def test_an_elementwise_component_depends_on_its_own_dimension_only():
    jacobian = torch.autograd.functional.jacobian(lambda z: trained()(torch.zeros(1), z), torch.randn(3, dtype=F64))
    assert (jacobian.diagonal() != 0).all()
    assert (jacobian - jacobian.diagonal().diag() == 0).all()


@pytest.mark.parametrize("activation", ["silu", "tanh"])
def test_the_batched_networks_equal_one_network_per_dimension(activation):
    diffusion = trained(activation=activation, floor=0.1, initial=0.4)
    z = torch.randn(2, 4, 3, dtype=F64)
    act = {"silu": torch.nn.functional.silu, "tanh": torch.tanh}[activation]
    columns = []
    for i in range(3):
        hidden = act(z[..., i : i + 1] @ diffusion.slope[i][None] + diffusion.shift[i])
        logit = hidden @ diffusion.weight[i] + diffusion.raw[i]
        columns.append(0.1 + 2 * 0.3 / (1 + torch.exp(-logit)))
    assert_close(diffusion(torch.zeros(1), z), torch.stack(columns, -1))


def test_an_elementwise_diffusion_stays_between_floor_and_its_upper_bound():
    sigma = trained(floor=0.05, initial=0.3)(torch.zeros(1), torch.linspace(-1e4, 1e4, 99, dtype=F64)[:, None])
    assert sigma.min() >= 0.05
    assert sigma.max() <= 2 * 0.3 - 0.05 + 1e-12


def test_a_constant_diffusion_never_falls_below_the_floor():
    diffusion = DiagonalDiffusion(2, floor=0.05)
    torch.nn.init.constant_(diffusion.raw, -1e3)
    assert_close(diffusion(torch.zeros(1), torch.zeros(2)), torch.full((2,), 0.05))


def test_hidden_sets_the_width_of_the_networks_and_the_constant_has_none():
    assert DiagonalDiffusion(3, 7, constant=False).weight.shape == (3, 7)
    assert sum(parameter.numel() for parameter in DiagonalDiffusion(3, 7).parameters()) == 3


@pytest.mark.parametrize("constant", [True, False])
def test_float32_agrees_with_float64(constant):
    diffusion = DiagonalDiffusion(3, constant=constant)
    for parameter in diffusion.parameters():
        torch.nn.init.normal_(parameter)
    z = torch.randn(6, 3)
    single = diffusion(torch.zeros(1), z)
    assert single.dtype == torch.float32
    assert_close(single.double(), diffusion.double()(torch.zeros(1, dtype=F64), z.double()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_dim": 0}, "`state_dim` must be an integer >= 1"),
        ({"hidden": 0}, "`hidden` must be an integer >= 1"),
        ({"floor": 0.5, "initial": 0.5}, "must satisfy 0 <= floor < initial, received 0.5 and 0.5"),
        ({"floor": -0.1}, "must satisfy 0 <= floor < initial"),
        ({"initial": math.inf}, "must satisfy 0 <= floor < initial"),
        ({"activation": "sine"}, "`activation` must be one of"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DiagonalDiffusion(**{"state_dim": 1, **options})
