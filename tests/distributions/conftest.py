"""The path laws of the room: one row each, and the contract suite in `test_base.py` does the rest.

A row builds the law for a dtype, with a batch shape whose sizes differ from 1, the sizes of state and batch differ from
each other, and from module-level functions only, so that every clause applies.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_sde import SDE, GaussianPath, NeuralSDE, OrnsteinUhlenbeckPath, PathDistribution, SDEPath, TimeGrid
from pyro_sde.nn import ControlNet
from pyro_sde.ops import GaussianChain
from pyro_sde.sde import (
    LTI,
    Cosine,
    GeometricBrownianMotion,
    IntegratedWiener,
    Matern32,
    Matern52,
    OrnsteinUhlenbeck,
    UnderdampedLangevin,
)

MakeLaw = Callable[[torch.dtype], PathDistribution]
MakeGaussian = Callable[[torch.dtype], GaussianPath]


def even_grid(dtype: torch.dtype, steps: int = 5) -> TimeGrid:
    return TimeGrid(torch.linspace(0.0, 1.0, steps + 1, dtype=dtype))


def ragged_grid(dtype: torch.dtype) -> TimeGrid:
    """Three series of 4, 3 and 2 observations; the later ones are padded."""
    rows = [[0.0, 0.3, 0.7, 1.0], [0.1, 0.25, 0.9, 0.9], [-0.2, 0.4, 0.4, 0.4]]
    return TimeGrid(torch.tensor(rows, dtype=dtype), max_step=0.2)


def normal(*shape: int, dtype: torch.dtype, loc: float = 0.0, scale: float = 1.0) -> dist.TorchDistribution:
    return dist.Normal(torch.full(shape, loc, dtype=dtype), torch.full(shape, scale, dtype=dtype)).to_event(1)


def decay(t: Tensor, z: Tensor) -> Tensor:
    return -z * (1 + t)


def twisted(t: Tensor, z: Tensor) -> Tensor:
    """State-dependent matrix (..., 2, 3) of full rank."""
    x, y = z.unbind(-1)
    one = torch.ones_like(x)
    rows = [torch.stack([one, 0.3 * x.sin(), 0 * one], -1), torch.stack([0.5 * y.cos(), 1.5 * one, 0.2 * x], -1)]
    return torch.stack(rows, -2)


def plane(t: Tensor, z: Tensor) -> Tensor:
    """Rank 1 of a matrix (..., 3, 2): noise along one direction, which turns with time."""
    angle = t.squeeze(-1)
    direction = torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], -1)
    return direction.unsqueeze(-1) * torch.tensor([0.6, -0.8], dtype=z.dtype)


def one_motion(t: Tensor, z: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(z[..., 0]), 0 * z[..., 0]], -1).unsqueeze(-1)


def cooling(t: Tensor, z: Tensor) -> Tensor:
    """Additive noise (..., 2, 2) that falls with time."""
    return torch.tensor([[1.0, 0.0], [0.5, 0.7]], dtype=z.dtype) * (1 / (1 + t)).unsqueeze(-1)


def spring(x: Tensor) -> Tensor:
    return -x - x**3


def neural(dtype: torch.dtype, input_dim: int = 0) -> NeuralSDE:
    torch.manual_seed(3)
    return NeuralSDE(2, hidden=(6,), input_dim=input_dim, constant_diffusion=False).to(dtype)


def controlled(dtype: torch.dtype) -> SDE:
    control = ControlNet(2, 4, hidden=(5,)).to(dtype)
    for parameter in control.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return neural(dtype).controlled(control)


def rows(dtype: torch.dtype, grid: TimeGrid, width: int) -> Tensor:
    shape = (*grid.batch_shape, grid.num_steps, width)
    return torch.linspace(-1, 1, int(torch.tensor(shape).prod()), dtype=dtype).reshape(shape)


def _ornstein_uhlenbeck(dtype: torch.dtype) -> PathDistribution:
    theta = torch.tensor([[0.5, 1.0], [1.5, 2.0], [0.7, 0.3]], dtype=dtype)
    sigma, loc = torch.tensor([0.4, 1.2], dtype=dtype), torch.tensor([[1.0], [-1.0], [0.0]], dtype=dtype)
    return OrnsteinUhlenbeckPath(theta, sigma, loc, torch.tensor([0.0, 0.1, 0.5, 0.6, 1.4], dtype=dtype))


def _geometric(dtype: torch.dtype) -> PathDistribution:
    start = dist.LogNormal(torch.zeros(3, 2, dtype=dtype), 0.3 * torch.ones(2, dtype=dtype)).to_event(1)
    return SDEPath(GeometricBrownianMotion(0.3, 0.4), start, even_grid(dtype))


def _stratonovich(dtype: torch.dtype) -> PathDistribution:
    sde = SDE(decay, _cosine, sde_type="stratonovich")
    return SDEPath(sde, normal(3, 2, dtype=dtype), even_grid(dtype))


def _cosine(t: Tensor, z: Tensor) -> Tensor:
    return 0.5 + 0.3 * z.cos()


def _inputs(dtype: torch.dtype) -> PathDistribution:
    grid = ragged_grid(dtype)
    return SDEPath(neural(dtype, 2), normal(2, dtype=dtype), grid, inputs=rows(dtype, grid, 2))


def _controlled(dtype: torch.dtype) -> PathDistribution:
    grid = ragged_grid(dtype)
    return SDEPath(controlled(dtype), normal(3, 2, dtype=dtype), grid, inputs=rows(dtype, grid, 4))


def _delta(dtype: torch.dtype) -> PathDistribution:
    start = dist.Delta(torch.tensor([[1.0, 2.0], [0.0, 1.0], [2.0, -1.0]], dtype=dtype), event_dim=1)
    return SDEPath(OrnsteinUhlenbeck(1.0, 0.5), start, even_grid(dtype))


def _matrix(noise_type: str, diffusion: Callable[[Tensor, Tensor], Tensor], width: int) -> MakeLaw:
    def make(dtype: torch.dtype) -> PathDistribution:
        return SDEPath(SDE(decay, diffusion, noise_type=noise_type), normal(3, width, dtype=dtype), even_grid(dtype))

    return make


LAWS: dict[str, MakeLaw] = {
    "ornstein-uhlenbeck": _ornstein_uhlenbeck,
    "ragged": lambda dtype: SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(2, dtype=dtype), ragged_grid(dtype)),
    "neural": lambda dtype: SDEPath(neural(dtype), normal(3, 2, dtype=dtype), even_grid(dtype)),
    "neural-inputs": _inputs,
    "controlled": _controlled,
    "geometric": _geometric,
    "langevin": lambda dtype: SDEPath(UnderdampedLangevin(spring), normal(3, 2, dtype=dtype), even_grid(dtype)),
    "scalar": _matrix("scalar", one_motion, 2),
    "additive": _matrix("additive", cooling, 2),
    "general": _matrix("general", twisted, 2),
    "general-rank-1": _matrix("general", plane, 3),
    "stratonovich": _stratonovich,
    "delta": _delta,
    "one-point": lambda dtype: SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(3, 2, dtype=dtype), even_grid(dtype, 0)),
}


@pytest.fixture(params=sorted(LAWS))
def make_law(request: pytest.FixtureRequest) -> MakeLaw:
    return LAWS[request.param]


@pytest.fixture
def law(make_law: MakeLaw) -> PathDistribution:
    return make_law(torch.float64)


# ---------------------------------------------------------------- Gaussian paths
def _matern(dtype: torch.dtype) -> GaussianPath:
    return GaussianPath(Matern32(torch.tensor([0.5, 1.0, 2.0], dtype=dtype), 1.5), None, ragged_grid(dtype))


def _euler(dtype: torch.dtype) -> GaussianPath:
    rate = torch.tensor([[0.5, 1.0], [1.5, 2.0], [0.7, 0.3]], dtype=dtype)
    return GaussianPath(OrnsteinUhlenbeck(rate, 0.5), None, even_grid(dtype), discretisation="euler")


def _posterior(dtype: torch.dtype) -> GaussianPath:
    y = torch.linspace(-1.0, 1.0, 12, dtype=dtype).reshape(3, 4, 1)
    return _matern(dtype).condition(None, 0.3, y)


def _singular_posterior(dtype: torch.dtype) -> GaussianPath:
    """Noise along one direction that is no axis, and a start that is known in part."""
    drift = torch.tensor([[-1.0, 0.3], [0.2, -0.5]], dtype=dtype)
    process = LTI(drift, torch.tensor([[1.0], [0.5]], dtype=dtype))
    start = dist.Delta(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, -1.0]], dtype=dtype), event_dim=1)
    law = GaussianPath(process, start, even_grid(dtype), discretisation="euler")
    return law.condition(None, 0.5, torch.linspace(-1.0, 1.0, 12, dtype=dtype).reshape(6, 2))


def _noise_free(dtype: torch.dtype) -> GaussianPath:
    period = torch.tensor([1.0, 2.0, 3.0], dtype=dtype)
    return GaussianPath(Cosine(period) + OrnsteinUhlenbeck(1.0, 0.5), None, even_grid(dtype))


def _chain(dtype: torch.dtype) -> GaussianPath:
    root = torch.tensor([[1.0, 0.0], [0.4, 0.7]], dtype=dtype)
    turn = (
        torch.tensor([[0.8, 0.3], [-0.3, 0.8]], dtype=dtype) * torch.tensor([0.9, 1.0, 1.1], dtype=dtype)[:, None, None]
    )
    noise = (root @ root.mT) * torch.tensor([1.0, 0.5, 2.0], dtype=dtype)[:, None, None, None]
    offset = torch.linspace(-1, 1, 8, dtype=dtype).reshape(4, 2)
    mean = torch.tensor([0.5, -0.5], dtype=dtype)
    chain = GaussianChain(mean, root @ root.mT, turn.unsqueeze(-3).expand(3, 4, 2, 2), noise.expand(3, 4, 2, 2), offset)
    return GaussianPath.from_chain(chain)


def _wiener(dtype: torch.dtype) -> GaussianPath:
    start = dist.MultivariateNormal(torch.zeros(3, 2, dtype=dtype), torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=dtype))
    return GaussianPath(IntegratedWiener(1, 0.7), start, even_grid(dtype))


GAUSSIAN_LAWS: dict[str, MakeGaussian] = {
    "chain": _chain,
    "euler": _euler,
    "known-start": lambda dtype: GaussianPath(
        Matern52(1.0, 1.0), dist.Delta(torch.eye(3, dtype=dtype), event_dim=1), even_grid(dtype)
    ),
    "matern-ragged": _matern,
    "noise-free": _noise_free,
    "one-point": lambda dtype: GaussianPath(Matern32(torch.ones(3, dtype=dtype), 1.0), None, even_grid(dtype, 0)),
    "posterior": _posterior,
    "posterior-singular": _singular_posterior,
    "wiener": _wiener,
}


@pytest.fixture(params=sorted(GAUSSIAN_LAWS))
def make_gaussian(request: pytest.FixtureRequest) -> MakeGaussian:
    return GAUSSIAN_LAWS[request.param]
