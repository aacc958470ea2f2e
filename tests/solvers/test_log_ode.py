"""The log-ODE method: exact for fields that form a nilpotent algebra, with the area's sign."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from pyro_sde import SDE
from pyro_sde.solvers.heun import Midpoint
from pyro_sde.solvers.log_ode import LogODE
from tests.solvers.order_problems import brownian, run

F64 = torch.float64


def heisenberg(t, z):
    """dx = dW_1, dy = dW_2, da = 1/2 (x dW_2 - y dW_1): the third state is the Lévy area."""
    x, y, _ = z.unbind(-1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    return torch.stack([torch.stack([one, zero, -y / 2], -1), torch.stack([zero, one, x / 2], -1)], -1)


def test_the_levy_area_is_an_exact_solution():
    increments = brownian(1, 20, 2, seed=0)
    sde = SDE(lambda t, z: 0 * z, heisenberg, noise_type="general", sde_type="stratonovich")
    end = run(LogODE(), sde, increments, torch.zeros(20, 3, dtype=F64))
    assert_close(end[:, :2], increments.W[0])
    assert_close(end[:, 2], increments.A[0, :, 0, 1])


def test_several_steps_add_up_as_chen_says():
    fine = brownian(8, 20, 2, seed=1)
    sde = SDE(lambda t, z: 0 * z, heisenberg, noise_type="general", sde_type="stratonovich")
    end = run(LogODE(), sde, fine, torch.zeros(20, 3, dtype=F64))
    before = fine.W.cumsum(0) - fine.W
    area = fine.A[..., 0, 1].sum(0) + 0.5 * (before[..., 0] * fine.W[..., 1] - before[..., 1] * fine.W[..., 0]).sum(0)
    assert_close(end[:, 2], area)


def test_a_diagonal_diffusion_that_does_not_commute_gets_its_area():
    # dx = dW_1, dy = x o dW_2: y_h = int W_1 o dW_2 = W_1 W_2 / 2 + A_12
    sde = SDE(
        lambda t, z: 0 * z,
        lambda t, z: torch.stack([torch.ones_like(z[..., 0]), z[..., 0]], -1),
        sde_type="stratonovich",
    )
    increments = brownian(1, 20, 2, seed=2)
    end = run(LogODE(), sde, increments, torch.zeros(20, 2, dtype=F64))
    assert_close(end[:, 1], 0.5 * increments.W[0].prod(-1) + increments.A[0, :, 0, 1])


@pytest.mark.parametrize("noise", ["additive", "scalar"])
def test_it_is_the_midpoint_method_where_no_area_counts(noise):
    column = torch.ones(2, 1, dtype=F64)
    diffusion = (lambda t, z: column) if noise == "additive" else (lambda t, z: z.flip(-1).unsqueeze(-1))
    sde = SDE(lambda t, z: t - z, diffusion, noise_type=noise, sde_type="stratonovich")
    increments = brownian(4, 5, 1, seed=3)._replace(A=None)
    ends = [run(solver, sde, increments, torch.ones(5, 2, dtype=F64)) for solver in (LogODE(), Midpoint())]
    assert torch.equal(*ends)


def test_increments_without_areas_are_refused():
    sde = SDE(lambda t, z: 0 * z, heisenberg, noise_type="general", sde_type="stratonovich")
    with pytest.raises(ValueError, match='LogODE needs the Lévy areas A: pass increments with levy="area"'):
        run(LogODE(), sde, brownian(2, 3, 2, 0)._replace(A=None), torch.zeros(3, 3, dtype=F64))
