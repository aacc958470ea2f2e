"""The contract of a solver."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from pyro_sde.sde import SDE, Coefficients
from pyro_sde.solvers import EulerMaruyama, Solver


def test_a_solver_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Solver()


def test_a_solver_names_its_order_and_keeps_no_state(solver_row):
    assert solver_row.solver.strong_order == solver_row.order
    assert vars(solver_row.solver) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_step_of_zero_length_without_noise_stays(solver_row, dtype):
    sde = SDE(lambda t, z: z**3, lambda t, z: z)
    z = torch.randn(5, 3, dtype=dtype)
    coefficients = sde.coefficients(torch.zeros(1, dtype=dtype), z, (None,))
    after = solver_row.solver.step(sde.noise, z, torch.zeros(1, dtype=dtype), torch.zeros_like(z), coefficients)
    assert torch.equal(after, z)
    assert after.dtype == dtype


def test_a_step_is_drift_times_step_plus_diffusion_times_increment():
    noise = SDE(lambda t, z: z, lambda t, z: z, noise_type="general").noise
    z, drift, increment, control = torch.randn(4, 5, 2, dtype=torch.float64).unbind(0)
    diffusion = torch.randn(5, 2, 2, dtype=torch.float64)
    dt = torch.tensor([0.1], dtype=torch.float64)
    after = EulerMaruyama().step(noise, z, dt, increment, Coefficients(drift, diffusion, None))
    assert_close(after, z + drift * 0.1 + torch.einsum("bij,bj->bi", diffusion, increment))
    after = EulerMaruyama().step(noise, z, dt, increment, Coefficients(drift, diffusion, control))
    assert_close(after, z + drift * 0.1 + torch.einsum("bij,bj->bi", diffusion, increment + 0.1 * control))
