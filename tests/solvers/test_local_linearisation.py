"""Local linearisation: exact for linear SDEs, stable where Euler's method is not, normals for every direction."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from pyro_sde import SDE, TimeGrid
from pyro_sde.sde import Matern32, OrnsteinUhlenbeck, UnderdampedLangevin
from pyro_sde.solvers.exact_linear import ExactLinear
from pyro_sde.solvers.fixed import EulerMaruyama, integrate
from pyro_sde.solvers.local_linearisation import LocalLinearisation, linearised_transition
from pyro_sde.testing.statistics import assert_mean

F32, F64 = torch.float32, torch.float64
GRID = TimeGrid(torch.tensor([0.0, 0.4, 1.0], dtype=F64))


def draw(sde, grid=GRID, paths=5, width=2, seed=0, dtype=F64):
    normal = torch.randn(grid.num_steps, paths, width, dtype=F64, generator=torch.Generator().manual_seed(seed))
    first = torch.ones(paths, 2, dtype=dtype)
    return integrate(LocalLinearisation(), sde, grid, first, normal.to(dtype), sde.bind_rows(None))


@pytest.mark.parametrize("sde", [OrnsteinUhlenbeck(1.5, 0.7), Matern32(0.5, 2.0)], ids=["full rank", "rank one"])
def test_it_is_the_exact_step_of_a_linear_sde(sde):
    normal = torch.randn(2, 5, 2, dtype=F64)
    first = torch.ones(5, 2, dtype=F64)
    paths = [integrate(solver, sde, GRID, first, normal, (None,)) for solver in (LocalLinearisation(), ExactLinear())]
    assert_close(*paths, rtol=1e-10, atol=1e-10)


def test_the_control_is_part_of_the_linearised_drift():
    plain = OrnsteinUhlenbeck(1.5, 0.7)
    controlled = SDE(lambda t, z: -z, lambda t, z: torch.full_like(z, 0.7)).controlled(lambda t, z: -0.5 / 0.7 * z)
    assert_close(draw(controlled), draw(plain), rtol=1e-10, atol=1e-10)
    matrix = SDE(lambda t, z: -z, lambda t, z: 0.7 * torch.eye(2, dtype=z.dtype), noise_type="additive")
    assert_close(draw(matrix.controlled(lambda t, z: -0.5 / 0.7 * z)), draw(plain), rtol=1e-10, atol=1e-10)


def test_one_step_has_the_moments_of_its_law():
    def drift(t, z):
        return torch.stack([z[..., 1], -(z[..., 0] ** 3) - z[..., 1]], -1)

    sde = SDE(drift, lambda t, z: torch.tensor([[0.0], [0.8]]).to(z), noise_type="scalar")
    grid = TimeGrid(torch.tensor([0.0, 0.7], dtype=F64))
    end = draw(sde, grid, paths=40_000)[:, -1]
    z = torch.ones(2, dtype=F64)
    jacobian = torch.tensor([[0.0, 1.0], [-3.0, -1.0]], dtype=F64)
    step, fine = 0.7, 20_000  # oracle: sums over a fine mesh of the integrals in the docstring
    middles = (torch.arange(fine, dtype=F64) + 0.5) * step / fine
    exponentials = torch.matrix_exp(middles[:, None, None] * jacobian)
    mean = z + (exponentials @ drift(None, z)).sum(0) * step / fine
    columns = exponentials @ torch.tensor([0.0, 0.8], dtype=F64)
    covariance = torch.einsum("ni,nj->ij", columns, columns) * step / fine
    assert_mean(end, mean)
    centred = end - mean
    assert_mean(centred.unsqueeze(-1) * centred.unsqueeze(-2), covariance)
    noise = sde.noise
    transition = linearised_transition(
        noise, drift(None, z), jacobian, torch.tensor([[0.0], [0.8]]).to(z), z[:1] * step
    )
    assert_close(z + transition.offset, mean, rtol=1e-6, atol=1e-6)
    assert_close(transition.covariance, covariance, rtol=1e-6, atol=1e-6)


def test_a_stiff_drift_is_stable_at_steps_where_euler_explodes():
    sde = SDE(lambda t, z: -500 * (z - t.cos()), lambda t, z: torch.ones_like(z))
    grid = TimeGrid(torch.linspace(0, 2, 41, dtype=F64))
    path = draw(sde, grid)
    assert float((path[:, 20:] - grid.times[20:, None].cos()).abs().max()) < 0.3
    normal = torch.zeros(40, 5, 2, dtype=F64)
    explicit = integrate(EulerMaruyama(), sde, grid, torch.ones(5, 2, dtype=F64), normal, (None,))
    assert float(explicit.abs().max()) > 1e6


def test_noise_reaches_all_states_of_langevin_dynamics():
    grid = TimeGrid(torch.tensor([0.0, 0.5], dtype=F64))
    end = draw(UnderdampedLangevin(lambda x: -x, 1.0, 1.0), grid, paths=200)[:, -1]
    assert float(end[:, 0].std()) > 0.1


def test_float32_agrees_with_float64():
    sde = SDE(lambda t, z: z.flip(-1).sin() - z, lambda t, z: 0.5 + 0.1 * z.cos())
    single = TimeGrid(GRID.times.float())
    path = draw(sde, single, dtype=F32)
    assert path.dtype == F32
    assert_close(path.double(), draw(sde), rtol=1e-5, atol=1e-5)
