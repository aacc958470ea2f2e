"""The SDEs and diffusions of the room: one row each, and the contract suites do the rest.

A new SDE of the library is one row of `LIBRARY`; a new structure of noise is some rows of `DIFFUSIONS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from pyro_sde.sde import (
    SDE,
    BrownianMotion,
    DoubleWell,
    GeometricBrownianMotion,
    NeuralSDE,
    OrnsteinUhlenbeck,
    StochasticLorenz,
    UnderdampedLangevin,
)
from pyro_sde.sde.noise import Noise, noise_structure

F64 = torch.float64


class Equation(NamedTuple):
    """An SDE and its equation written by hand in Python numbers; None where it is a network."""

    make: Callable[[], SDE]
    dim: int
    drift: Callable[[Sequence[float]], list[float]] | None
    diffusion: Callable[[Sequence[float]], list[float]] | None


LIBRARY: dict[str, Equation] = {
    "brownian-motion": Equation(
        lambda: BrownianMotion(scale=0.7, velocity=-0.3), 2, lambda z: [-0.3, -0.3], lambda z: [0.7, 0.7]
    ),
    "ornstein-uhlenbeck": Equation(
        lambda: OrnsteinUhlenbeck(1.3, 0.4, 0.2),
        2,
        lambda z: [1.3 * (0.2 - x) for x in z],
        lambda z: [0.4, 0.4],
    ),
    "geometric-brownian-motion": Equation(
        lambda: GeometricBrownianMotion(0.1, 0.25), 2, lambda z: [0.1 * x for x in z], lambda z: [0.25 * x for x in z]
    ),
    "double-well": Equation(
        lambda: DoubleWell(3.0, 0.6, 1.5),
        2,
        lambda z: [3.0 * x - 3.0 * x**3 / 2.25 for x in z],
        lambda z: [0.6, 0.6],
    ),
    "lorenz": Equation(
        StochasticLorenz,
        3,
        lambda z: [10 * (z[1] - z[0]), z[0] * (28 - z[2]) - z[1], z[0] * z[1] - 8 / 3 * z[2]],
        lambda z: [0.1 * z[0], 0.28 * z[1], 0.3 * z[2]],
    ),
    "langevin": Equation(
        lambda: UnderdampedLangevin(torch.sin, friction=0.7, scale=0.9),
        4,
        lambda z: [z[2], z[3], math.sin(z[0]) - 0.7 * z[2], math.sin(z[1]) - 0.7 * z[3]],
        lambda z: [0.0, 0.0, 0.9, 0.9],
    ),
    "neural": Equation(lambda: NeuralSDE(3, hidden=(8, 6)), 3, None, None),
    "neural-periodic": Equation(
        lambda: NeuralSDE(2, hidden=(5,), time_features=2, period=3.0, constant_diffusion=False), 2, None, None
    ),
}


class Diffusion(NamedTuple):
    """A family of diffusions of one structure and one rank: `build` maps free parameters to the diffusion."""

    noise: Noise
    build: Callable[..., Tensor]
    parameters: tuple[Tensor, ...]

    @property
    def value(self) -> Tensor:
        return self.build(*self.parameters)

    def dense(self, value: Tensor) -> Tensor:
        """The diffusion as a matrix ``(..., D, M)``."""
        return torch.diag_embed(value) if value.dim() == 2 else value


def _same(a: Tensor) -> Tensor:
    return a


def _rows(which: Sequence[int], rows: int) -> Callable[[Tensor], Tensor]:
    """Puts the rows of a smaller matrix (or vector) at `which`, zeros elsewhere."""
    embedding = torch.eye(rows, dtype=F64)[:, list(which)]
    return lambda a: embedding @ a


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(100 * seed + sum(shape)))


def _scaled(a: Tensor) -> Tensor:
    return a * torch.tensor([[1.0], [0.01], [5.0]], dtype=F64)


def _some_deficient(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """A batch whose series have rank 2 and 3."""
    return torch.cat([a @ b, c])


# name -> (noise type, build, free parameters); batches of a few matrices, D = 3 or 4
DIFFUSIONS: dict[str, tuple[str, Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "diagonal": ("diagonal", _same, (_randn(5, 4),)),
    "diagonal-zeros": ("diagonal", lambda a: (_rows([0, 3], 4)(a.mT)).mT, (_randn(5, 2),)),
    "diagonal-all-zero": ("diagonal", lambda a: a @ torch.zeros(2, 4, dtype=F64), (_randn(5, 2),)),
    "scalar": ("scalar", _same, (_randn(5, 4, 1),)),
    "scalar-zero-rows": ("scalar", _rows([2], 4), (_randn(5, 1, 1),)),
    "square": ("general", _same, (_randn(5, 3, 3),)),
    "square-zero-rows": ("general", _rows([1, 2], 3), (_randn(5, 2, 3),)),
    "square-rank-1": ("general", torch.matmul, (_randn(5, 3, 1), _randn(5, 1, 3))),
    "square-rank-2": ("additive", torch.matmul, (_randn(5, 4, 2), _randn(5, 2, 4))),
    "wide": ("general", _same, (_randn(5, 3, 5),)),
    "wide-zero-rows": ("additive", _rows([0, 2], 3), (_randn(5, 2, 4),)),
    "wide-rank-2": ("general", torch.matmul, (_randn(5, 3, 2), _randn(5, 2, 5))),
    "tall": ("general", _same, (_randn(5, 4, 2),)),
    "tall-zero-rows": ("general", _rows([1, 2, 3], 4), (_randn(5, 3, 2),)),
    "tall-rank-1": ("general", torch.matmul, (_randn(5, 4, 1), _randn(5, 1, 3))),
    "zero-columns": ("general", lambda a: _rows([0, 2], 3)(a.mT).mT, (_randn(5, 3, 2),)),
    "all-zero": ("general", lambda a: a @ torch.zeros(2, 3, dtype=F64), (_randn(5, 3, 2),)),
    "unequal-scales": ("general", _scaled, (_randn(5, 3, 3),)),
    "ranks-2-and-3": (
        "general",
        _some_deficient,
        (_randn(3, 3, 2), _randn(3, 2, 3), _randn(2, 3, 3)),
    ),
}


@pytest.fixture(params=sorted(LIBRARY))
def equation(request: pytest.FixtureRequest) -> Equation:
    return LIBRARY[request.param]


@pytest.fixture(params=sorted(name for name, row in LIBRARY.items() if row.drift is not None))
def written_equation(request: pytest.FixtureRequest) -> Equation:
    return LIBRARY[request.param]


@pytest.fixture(params=sorted(DIFFUSIONS))
def diffusion(request: pytest.FixtureRequest) -> Diffusion:
    noise_type, build, parameters = DIFFUSIONS[request.param]
    return Diffusion(noise_structure(noise_type), build, parameters)
