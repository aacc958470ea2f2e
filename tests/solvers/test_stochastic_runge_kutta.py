"""Stochastic Runge–Kutta methods: exact cases, and what they refuse. Orders and torchsde's paths are tested apart."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from pyro_sde import SDE
from pyro_sde.ops.brownian import BrownianIncrements
from pyro_sde.solvers.base import Field, Step
from pyro_sde.solvers.stochastic_runge_kutta import SRK
from tests.solvers.order_problems import brownian, run

F64 = torch.float64


def test_time_integrals_of_brownian_motion_are_exact():
    # dx = W dt, dW = dW: x_h = U = h (W / 2 + H)
    sde = SDE(lambda t, z: torch.stack([z[..., 1], 0 * z[..., 1]], -1), lambda t, z: torch.tensor([0.0, 1.0]).to(z))
    additive = SDE(sde.drift, lambda t, z: torch.tensor([[0.0], [1.0]]).to(z), noise_type="additive")
    increments = brownian(1, 50, 2, seed=0)
    expected = torch.stack([0.5 * increments.W[0, :, 1] + increments.H[0, :, 1], increments.W[0, :, 1]], -1)
    assert_close(run(SRK(), sde, increments, torch.zeros(50, 2, dtype=F64)), expected)
    one = BrownianIncrements(increments.dt, increments.W[..., 1:], increments.H[..., 1:], None)
    assert_close(run(SRK(), additive, one, torch.zeros(50, 2, dtype=F64)), expected)


def test_a_step_without_noise_is_of_order_2_in_time():
    sde = SDE(lambda t, z: t + 0 * z, lambda t, z: 0 * z)
    still = brownian(4, 3, 2, seed=0)
    assert_close(run(SRK(), sde, still, torch.zeros(3, 2, dtype=F64)), torch.full((3, 2), 0.5, dtype=F64))


def test_general_noise_is_refused():
    sde = SDE(lambda t, z: z, lambda t, z: z.unsqueeze(-1), noise_type="general")
    with pytest.raises(ValueError, match='SRK cannot take noise_type="general", only additive, diagonal, scalar'):
        SRK().adapt(sde)


def test_diagonal_noise_that_does_not_commute_is_refused():
    sde = SDE(lambda t, z: -z, lambda t, z: 1 + z.flip(-1))
    with pytest.raises(ValueError, match=r"SRK needs commutative noise.*Use LogODE\(\)"):
        run(SRK(), sde, brownian(2, 3, 2, 0), torch.zeros(3, 2, dtype=F64))


@pytest.mark.parametrize("noise_type", ["additive", "diagonal"])
def test_increments_without_areas_are_refused(noise_type):
    sde = SDE(lambda t, z: z, (lambda t, z: z) if noise_type == "diagonal" else (lambda t, z: z.unsqueeze(-1)))
    sde.noise_type = noise_type
    step = Step(torch.zeros(1), BrownianIncrements(torch.ones(1), torch.ones(2), None, None), (None,))
    with pytest.raises(
        ValueError, match='SRK needs the space-time Lévy areas H: pass increments with levy="space-time"'
    ):
        SRK().step(Field(sde, (None,)), torch.ones(2), step, ())
