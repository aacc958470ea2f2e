"""Integrated Wiener processes against their polynomials."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from pyro_sde.sde import BrownianMotion, IntegratedWiener

F64 = torch.float64


@pytest.mark.parametrize("order", [0, 1, 2, 5])
@pytest.mark.parametrize("dt", [1e-6, 0.3, 1e3])
def test_transitions_are_taylor_polynomials_and_their_noise(order, dt):
    transition = IntegratedWiener(order, 0.7).transition(torch.tensor([dt], dtype=F64))
    size = order + 1
    for i in range(size):
        for j in range(size):
            phi = dt ** (j - i) / math.factorial(j - i) if j >= i else 0.0
            assert transition.matrix[0, i, j].item() == pytest.approx(phi, rel=1e-14, abs=0)
            power = 2 * order + 1 - i - j
            noise = 0.49 * dt**power / (power * math.factorial(order - i) * math.factorial(order - j))
            assert transition.covariance[0, i, j].item() == pytest.approx(noise, rel=1e-14, abs=0)


def test_no_integration_is_brownian_motion():
    steps = torch.tensor([0.0, 0.2, 3.0], dtype=F64)
    expected = BrownianMotion(0.7).transition(steps)
    for value, other in zip(IntegratedWiener(0, 0.7).transition(steps), expected, strict=True):
        assert_close(value, other)


def test_an_integrated_wiener_process_has_no_stationary_law():
    with pytest.raises(ValueError, match="IntegratedWiener has no stationary law: the eigenvalue 0 of its drift"):
        IntegratedWiener(2).stationary()


def test_a_negative_order_raises():
    with pytest.raises(ValueError, match="`order` counts integrations and must be >= 0, received -1"):
        IntegratedWiener(-1)
