"""Exact steps of linear SDEs: the moments of `GaussianPath` at any step, and what is refused."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyro_sde import TimeGrid
from pyro_sde.distributions.gaussian_path import GaussianPath
from pyro_sde.ops.brownian import wiener_increments
from pyro_sde.sde import LTI, BrownianMotion, DoubleWell, Matern32, OrnsteinUhlenbeck
from pyro_sde.solvers.exact_linear import ExactLinear
from pyro_sde.solvers.fixed import EulerMaruyama, integrate
from pyro_sde.testing.statistics import assert_mean

F64 = torch.float64
COARSE = TimeGrid(torch.tensor([0.0, 0.3, 2.0, 2.1], dtype=F64))

SDES = {
    "ou": OrnsteinUhlenbeck(1.5, 0.7, state_dim=2),
    "brownian with drift": BrownianMotion(0.7, 0.4, state_dim=2),
    "matern, one motion for two states": Matern32(0.5, 2.0),
    "three motions for two states": LTI(
        torch.tensor([[-1.0, 2.0], [-2.0, -1.0]]), torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -0.5]])
    ),
}


@pytest.mark.parametrize("name", sorted(SDES))
def test_paths_have_the_moments_of_the_process(name):
    sde, paths = SDES[name], 40_000
    first = torch.tensor([1.0, -0.5], dtype=F64)
    law = GaussianPath(sde, dist.Delta(first, event_dim=1), COARSE)
    width = ExactLinear().adapt(sde).diffusion(torch.zeros(1), first)
    columns = width.shape[-1] if width.dim() > 1 else 2
    normal = torch.randn(3, paths, columns, dtype=F64, generator=torch.Generator().manual_seed(0))
    path = integrate(ExactLinear(), sde, COARSE, first.repeat(paths, 1), normal, (None,))
    assert_mean(path[:, 1:], law.mean[1:])
    centred = path[:, 1:] - law.mean[1:]
    assert_mean(centred.square(), law.variance[1:])
    # neighbours: Cov(z_2, z_1) = Phi Var(z_1)
    products = centred[:, 1].unsqueeze(-1) * centred[:, 0].unsqueeze(-2)
    matrix = sde.transition(COARSE.steps).matrix[1]
    covariance = sde.transition(COARSE.steps).covariance[0]
    assert_mean(products, matrix @ covariance)


def test_small_steps_follow_the_brownian_path_where_the_noise_has_full_rank():
    matrix = torch.tensor([[-1.0, 0.5], [-0.5, -1.0]], dtype=F64)
    sde = LTI(matrix, torch.tensor([[0.5, 1.0], [-1.0, 0.3]], dtype=F64))  # no lower triangular diffusion
    grid = TimeGrid(torch.linspace(0, 1, 513, dtype=F64))
    normal = torch.randn(512, 20, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    first = torch.ones(20, 2, dtype=F64)
    paths = [integrate(solver, sde, grid, first, normal, (None,)) for solver in (ExactLinear(), EulerMaruyama())]
    assert float((paths[0] - paths[1]).abs().max()) < 0.02
    brownian = integrate(ExactLinear(), BrownianMotion(-0.7), grid, first, normal, (None,))
    moved = -0.7 * wiener_increments(grid.steps.reshape(-1, 1, 1), normal).sum(0)
    assert_close(brownian[:, -1], first + moved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_number_for_all_states_serves_any_width_and_series_have_their_own_rates(dtype):
    rate = torch.tensor([[0.5], [2.0]], dtype=dtype)
    grid = TimeGrid(torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.5, 3.0]], dtype=dtype), mask=None)
    first = torch.ones(3, dtype=dtype)
    path = integrate(
        ExactLinear(), OrnsteinUhlenbeck(rate, 1.0), grid, first, torch.zeros(2, 2, 3, dtype=dtype), (None,)
    )
    assert path.shape == (2, 3, 3)
    assert path.dtype == dtype
    assert_close(path, torch.exp(-rate * grid.times).unsqueeze(-1).expand(2, 3, 3))


def test_other_sdes_are_refused():
    for sde in (DoubleWell(), OrnsteinUhlenbeck(1.0, 0.5).controlled(lambda t, z: z)):
        with pytest.raises(ValueError, match=r"ExactLinear takes a LinearSDE.*received .*Use LocalLinearisation\(\)"):
            ExactLinear().adapt(sde)


def test_too_few_normals_are_refused():
    with pytest.raises(ValueError, match="a step needs 2 standard normals, one for each state, received 1"):
        integrate(
            ExactLinear(), Matern32(1.0), COARSE, torch.zeros(2, dtype=F64), torch.zeros(3, 1, dtype=F64), (None,)
        )
