"""The SDEs and diffusions of the room: one row each, and the contract suites do the rest.

A new SDE of the library is one row of `LIBRARY`, a linear one a row of `LINEAR`; a new structure of noise is some rows
of `DIFFUSIONS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from pyro_sde.sde import (
    LTI,
    SDE,
    BrownianMotion,
    Coregionalisation,
    Cosine,
    DampedOscillator,
    DoubleWell,
    GeometricBrownianMotion,
    IntegratedWiener,
    LinearSDE,
    Matern12,
    Matern32,
    Matern52,
    NeuralSDE,
    OrnsteinUhlenbeck,
    Periodic,
    QuasiPeriodic,
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


class Linear(NamedTuple):
    """A linear SDE of some positive hyper-parameters, and its covariance function written by hand.

    `make` takes numbers or tensors ``(*batch)``; `kernel` takes lags ``(T,)`` and numbers, and returns ``(T, O, O)``,
    or ``(T,)`` for one output; it is None where there is no stationary law.
    """

    make: Callable[..., LinearSDE]
    parameters: tuple[float, ...]
    kernel: Callable[..., Tensor] | None

    def build(self, dtype: torch.dtype = F64) -> LinearSDE:
        """The process with tensors of one number as hyper-parameters."""
        return self.make(*torch.tensor(self.parameters, dtype=dtype))


def _column(value: Tensor | float) -> Tensor | float:
    return value.unsqueeze(-1) if isinstance(value, Tensor) else value


def exponential(lag: Tensor, lengthscale: float, variance: float) -> Tensor:
    return variance * torch.exp(-lag / lengthscale)


def matern32(lag: Tensor, lengthscale: float, variance: float) -> Tensor:
    x = math.sqrt(3) * lag / lengthscale
    return variance * (1 + x) * torch.exp(-x)


def matern52(lag: Tensor, lengthscale: float, variance: float) -> Tensor:
    x = math.sqrt(5) * lag / lengthscale
    return variance * (1 + x + x**2 / 3) * torch.exp(-x)


def cosine(lag: Tensor, period: float, variance: float) -> Tensor:
    return variance * torch.cos(2 * math.pi * lag / period)


def periodic(lag: Tensor, period: float, lengthscale: float, variance: float) -> Tensor:
    return variance * torch.exp(-2 * torch.sin(math.pi * lag / period) ** 2 / lengthscale**2)


def oscillator(lag: Tensor, frequency: float, damping: float, variance: float) -> Tensor:
    decay, turn = damping * frequency, frequency * math.sqrt(abs(1 - damping**2))
    cos, sin = (torch.cos, torch.sin) if damping < 1 else (torch.cosh, torch.sinh)
    return variance * torch.exp(-decay * lag) * (cos(turn * lag) + decay / turn * sin(turn * lag))


MIXING = torch.tensor([[1.0, 0.5], [-0.3, 2.0], [0.7, 0.0]], dtype=F64)
ROTATING = torch.tensor([[-0.5, 2.0, 0.0], [-2.0, -0.5, 1.0], [0.0, 0.0, -1.5]], dtype=F64)


def _mixed(lag: Tensor, lengthscale: float, variance: float) -> Tensor:
    parts = torch.stack([exponential(lag, lengthscale, 1.0), matern32(lag, 0.4, variance)], -1)
    return MIXING @ torch.diag_embed(parts) @ MIXING.mT


def _rotating(rate: Tensor | float, noise: Tensor | float) -> LTI:
    rate = torch.tensor(rate, dtype=F64) if isinstance(rate, float) else rate
    noise = noise[..., None, None] if isinstance(noise, Tensor) else noise
    driven = torch.tensor([[0.3, 0.0], [0.0, 0.0], [0.5, 1.0]]).to(rate)
    shift = torch.tensor([0.2, -0.1, 1.0]).to(rate)
    return LTI(rate[..., None, None] * ROTATING.to(rate), noise * driven, shift, torch.eye(3).to(rate)[:1])


# name -> process of some numbers, the numbers, covariance function
LINEAR: dict[str, Linear] = {
    "brownian-motion": Linear(lambda s, v: BrownianMotion(_column(s), _column(-v)), (0.7, 0.3), None),
    "ornstein-uhlenbeck": Linear(
        lambda r, s: OrnsteinUhlenbeck(_column(r), _column(s), 0.4),
        (1.3, 0.6),
        lambda lag, r, s: exponential(lag, 1 / r, s**2 / (2 * r)),
    ),
    "matern-1/2": Linear(Matern12, (0.8, 1.7), exponential),
    "matern-3/2": Linear(Matern32, (0.8, 1.7), matern32),
    "matern-5/2": Linear(Matern52, (0.8, 1.7), matern52),
    "integrated-wiener-0": Linear(lambda s: IntegratedWiener(0, s), (0.7,), None),
    "integrated-wiener-1": Linear(lambda s: IntegratedWiener(1, s), (0.7,), None),
    "integrated-wiener-3": Linear(lambda s: IntegratedWiener(3, s), (0.7,), None),
    "oscillator-under-damped": Linear(DampedOscillator, (3.0, 0.1, 0.6), oscillator),
    "oscillator-over-damped": Linear(DampedOscillator, (1.5, 2.0, 0.6), oscillator),
    "cosine": Linear(Cosine, (1.4, 0.6), cosine),
    "periodic": Linear(lambda p, scale, v: Periodic(p, scale, v, harmonics=16), (1.4, 0.7, 0.6), periodic),
    "quasi-periodic": Linear(
        QuasiPeriodic, (1.4, 2.0, 0.6), lambda lag, p, scale, v: matern32(lag, scale, v) * cosine(lag, p, 1.0)
    ),
    "rotating-lti": Linear(_rotating, (0.8, 0.6), None),
    "sum": Linear(
        lambda a, b: Matern12(a, 0.5) + Matern52(b) + DampedOscillator(2.0, b),
        (0.8, 0.3),
        lambda lag, a, b: exponential(lag, a, 0.5) + matern52(lag, b, 1.0) + oscillator(lag, 2.0, b, 1.0),
    ),
    "product": Linear(
        lambda a, b: Matern32(a, 0.5) * Matern12(b) * Cosine(1.1, a),
        (0.8, 1.3),
        lambda lag, a, b: matern32(lag, a, 0.5) * exponential(lag, b, 1.0) * cosine(lag, 1.1, a),
    ),
    "sum-of-products": Linear(
        lambda a, b: Matern32(a) * Cosine(b) + Matern12(b),
        (0.8, 1.3),
        lambda lag, a, b: matern32(lag, a, 1.0) * cosine(lag, b, 1.0) + exponential(lag, b, 1.0),
    ),
    "coregionalisation": Linear(
        lambda a, b: Coregionalisation([Matern12(a), Matern32(0.4, b)], MIXING.to(torch.as_tensor(a))),
        (0.8, 1.3),
        _mixed,
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


@pytest.fixture(params=sorted(LINEAR))
def linear(request: pytest.FixtureRequest) -> Linear:
    return LINEAR[request.param]


@pytest.fixture(params=sorted(name for name, row in LINEAR.items() if row.kernel is not None))
def stationary_linear(request: pytest.FixtureRequest) -> Linear:
    return LINEAR[request.param]


@pytest.fixture(params=sorted(DIFFUSIONS))
def diffusion(request: pytest.FixtureRequest) -> Diffusion:
    noise_type, build, parameters = DIFFUSIONS[request.param]
    return Diffusion(noise_structure(noise_type), build, parameters)
