"""What a particle filter needs of a path law: one step at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from ..distributions.base import PathDistribution
from ..ops.grid import TimeGrid
from ..solvers.base import State

__all__ = ["Move", "Stepper", "grid_of", "unknown_law"]


class Move(NamedTuple):
    """A step of all particles: where they are, what their solver carries, and the density of the step if asked."""

    state: Tensor
    carried: State | None
    log_density: Tensor | None


class Stepper(ABC):
    """Steps of a path law.

    Args:
        law: the path law.

    Attributes:
        num_steps: number K of steps.
        tail: shape of one state of one particle, ``(D,)`` or ``()``.
    """

    def __init__(self, law: PathDistribution) -> None:
        self.law = law
        self.num_steps = law.event_shape[0] - 1
        self.tail = law.event_shape[1:]

    def first(self, num: int) -> Tensor:
        """First states of `num` particles, ``(num, *batch, D)``."""
        initial, shape = self.law.initial, torch.Size([num])
        return initial.rsample(shape) if initial.has_rsample else initial.sample(shape)

    def first_log_density(self, z: Tensor) -> Tensor:
        """Log-density of first states, ``(..., *batch)``."""
        return self.law.initial.log_prob(z)

    @abstractmethod
    def advance(self, k: int, z: Tensor, carried: State | None, *, scored: bool) -> Move:
        """Draw the states at point k + 1 given those at point k, with their log-density if `scored`.

        `carried` is what the step before has returned; None at the first one, wherever on the grid that is.
        """

    @abstractmethod
    def log_density(self, k: int, z: Tensor, following: Tensor) -> Tensor:
        """Log-density of the states at point k + 1 given those at point k; leading dimensions broadcast."""

    @abstractmethod
    def moving(self, k: int) -> Tensor | None:
        """Which series take step k, broadcastable to the batch; the others rest in their padding. None: all."""

    @abstractmethod
    def time(self, k: int) -> str:
        """Time of point k in words, for messages."""

    def observation_points(self) -> tuple[Tensor, Tensor]:
        """Grid point of every observation, ``(*batch, N)`` or ``(N,)``, and which of them are no padding."""
        grid = grid_of(self.law)
        return grid.observed_index, grid.mask


def grid_of(law: PathDistribution) -> TimeGrid:
    """The grid of a law.

    Raises:
        TypeError: if it has none.
    """
    grid = getattr(law, "grid", None)
    if not isinstance(grid, TimeGrid):
        raise TypeError(unknown_law(law))
    return grid


def unknown_law(law: object) -> str:
    """What is said of a law that particles cannot step."""
    return (
        f"particles cannot step a {type(law).__name__}. Pass an SDEPath, a GaussianPath or a MarkovPath, without "
        "`.mask` or `.to_event`."
    )
