"""What a solver of carried values is given, and what it gives back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import NamedTuple

from torch import Tensor

from ..ops.grid import TimeGrid
from ..sde.base import SDE
from .noise import StepNoise

__all__ = ["CarriedBackend", "CarriedProblem", "CarriedSolution", "ControlTerms"]

Rows = tuple[Tensor | None, ...]


class CarriedProblem(NamedTuple):
    """A path to be solved for."""

    sde: SDE
    grid: TimeGrid
    initial: Tensor  # (*sample, *batch, D)
    rows: Rows  # (*batch, K, C) each, from `SDE.bind_rows`
    brownian_dim: int
    effects: AbstractContextManager[object]  # the coefficients are called inside it


class CarriedSolution(NamedTuple):
    r"""States at the observation times, and the log-ratio to the law without the control.

    ``kl`` is :math:`\tfrac12 \int |u|^2 dt`, ``martingale`` the Itô integral :math:`\int u \cdot dW`, None where the
    back-end does not follow it.
    """

    states: Tensor  # (..., N, D)
    kl: Tensor  # (...)
    martingale: Tensor | None  # (...)


class CarriedBackend(ABC):
    """Solves for the states at observation times and carries the log-ratio along; frozen and stateless."""

    @abstractmethod
    def solve(self, problem: CarriedProblem, noise: StepNoise | None = None) -> CarriedSolution:
        """Solve a problem with given noise, or with fresh noise."""


class ControlTerms:
    """Total drift, diffusion and control of an SDE as plain tensors of full shape.

    Args:
        sde: the SDE, in the interpretation wanted.
        problem: the rows and effects that go with it.
    """

    def __init__(self, sde: SDE, problem: CarriedProblem) -> None:
        self.sde, self.effects = sde, problem.effects
        self.present = [row is not None for row in problem.rows]

    def __call__(self, t: Tensor, z: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
        """Drift ``(..., D)``, diffusion ``(..., D)`` or ``(..., D, M)``, and the effective control ``(..., M)`` if any.

        The effective control is the part that moves the state: the rest costs nothing, as in the density of a grid.

        Args:
            t: ``(..., 1)``.
            z: ``(..., D)``.
            *rows: ``(..., C)``, those that are not None.
        """
        noise, given = self.sde.noise, iter(rows)
        with self.effects:
            coefficients = self.sde.coefficients(t, z, tuple(next(given) if there else None for there in self.present))
        diffusion = noise.expand(coefficients.diffusion, z)
        drift = coefficients.total_drift(noise).expand_as(z)
        if coefficients.control is None:
            return drift, diffusion
        width = noise.brownian_dim(diffusion, z.shape[-1])
        control = coefficients.control.expand(*z.shape[:-1], width)
        return drift, diffusion, noise.range_of(diffusion).project(control)
