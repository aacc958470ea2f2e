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
        is_euler: whether the step is that of Euler–Maruyama, which `networks.py` knows by heart.
    """

    strong_order: float
    is_euler: bool = False

    @abstractmethod
    def step(self, noise: Noise, z: Tensor, dt: Tensor, increment: Tensor, coefficients: Coefficients) -> Tensor:
        """State after one step.

        Shape:
            z: ``(..., D)`` · dt: ``(..., 1)`` · increment: ``(..., M)`` Brownian increment over the step ·
            returns ``(..., D)``.
        """
