"""The contract of a solver: one step, its orders, and what it can integrate."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ..sde.base import Coefficients
from ..sde.noise import Noise

__all__ = ["Solver"]


class Solver(ABC):
    """One step of a fixed-grid method for an Itô SDE; stateless and frozen.

    Attributes:
        strong_order: order of the pathwise error for general noise.
    """

    strong_order: float

    @abstractmethod
    def step(self, noise: Noise, z: Tensor, dt: Tensor, increment: Tensor, coefficients: Coefficients) -> Tensor:
        """State after one step.

        Shape:
            z: ``(..., D)`` · dt: ``(..., 1)`` · increment: ``(..., M)`` Brownian increment over the step ·
            returns ``(..., D)``.
        """
