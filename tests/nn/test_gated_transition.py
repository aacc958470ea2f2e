"""The gated transition is the formula of the paper, and starts near the identity."""

from __future__ import annotations

import pytest
import torch

from pyro_sde.nn.gated_transition import SCALE_FLOOR, GatedTransition, joined


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("input_dim", [0, 2])
def test_transition_is_the_formula(dtype, tolerance, input_dim):
    torch.manual_seed(0)
    net = GatedTransition(3, 5, input_dim=input_dim).to(dtype)
    torch.nn.init.normal_(net.linear.weight)
    z = torch.randn(4, 7, 3, dtype=dtype)
    inputs = torch.randn(7, 2, dtype=dtype) if input_dim else None
    read = z if inputs is None else torch.cat([z, inputs.expand(4, 7, 2)], -1)
    hidden = (read @ net.first.weight.T + net.first.bias).clamp(min=0)
    gate = 1 / (1 + torch.exp(-(hidden[..., :5] @ net.gate.weight.T + net.gate.bias)))
    free = hidden[..., 5:] @ net.proposal.weight.T + net.proposal.bias
    affine = z @ net.linear.weight.T + net.linear.bias
    spread = torch.log1p(torch.exp(free.clamp(min=0) @ net.spread.weight.T + net.spread.bias))
    loc, scale = net(z, inputs)
    torch.testing.assert_close(loc, (1 - gate) * affine + gate * free, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(scale, SCALE_FLOOR + spread, rtol=tolerance, atol=tolerance)


def test_affine_part_starts_as_the_identity():
    net = GatedTransition(3, 5)
    torch.nn.init.constant_(net.gate.bias, -100.0)  # the gate is shut
    z = torch.randn(6, 3)
    torch.testing.assert_close(net(z)[0], z)


def test_scale_stays_above_its_floor():
    net = GatedTransition(2, 4)
    torch.nn.init.constant_(net.spread.bias, -1e4)
    assert torch.equal(net(torch.zeros(2))[1].detach(), torch.full((2,), SCALE_FLOOR))


def test_joined_broadcasts_leading_dimensions():
    both = joined(torch.zeros(5, 1, 2), torch.ones(3, 4))
    assert both.shape == (5, 3, 6)
    assert torch.equal(both[..., 2:], torch.ones(5, 3, 4))


@pytest.mark.parametrize(("input_dim", "inputs"), [(0, torch.zeros(2)), (3, None), (3, torch.zeros(2))])
def test_inputs_that_do_not_fit_are_refused(input_dim, inputs):
    with pytest.raises(ValueError, match="`inputs` must have"):
        GatedTransition(2, 4, input_dim=input_dim)(torch.zeros(2), inputs)


def test_sizes_must_be_positive():
    with pytest.raises(ValueError, match="`state_dim`"):
        GatedTransition(0)
    with pytest.raises(ValueError, match="`hidden`"):
        GatedTransition(2, 0)
