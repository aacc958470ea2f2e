"""The contract of a solver: one step, its orders, and what it can integrate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from ..ops.brownian import BrownianIncrements
from ..sde.base import SDE, Coefficients

__all__ = ["Field", "Rows", "Solver", "State", "Step"]

Rows = tuple[Tensor | None, ...]
State = tuple[Tensor, ...]

ALL_NOISE = frozenset({"additive", "diagonal", "general", "scalar"})


class Step(NamedTuple):
    """One step of a grid: where it starts, what drives it, and the inputs that serve all its stages.

    Attributes:
        t: time at its start, ``(..., 1)``.
        increments: those of Brownian motion, ``(..., M)``, with dt > 0; H and A as far as the solver asks for them.
        rows: ``(..., C)`` each.
    """

    t: Tensor  # (..., 1)
    increments: BrownianIncrements  # dt > 0, W, and H and A as far as the solver asks for them
    rows: Rows  # (..., C) each


class Field:
    """What a solver evaluates: the coefficients of an SDE at any time and state.

    Args:
        sde: an SDE in the interpretation of the solver.
        rows: its inputs for all steps, ``(*batch, K, C)`` each; `rows` of the field are those to slice step by step.

    Shape:
        t: ``(..., 1)`` · z: ``(..., D)`` · rows of a step: ``(..., C)`` each · drift: broadcastable to ``(..., D)`` ·
        diffusion: broadcastable to ``(..., D)``, or ``(..., D, M)``.
    """

    def __init__(self, sde: SDE, rows: Rows) -> None:
        self.sde = sde
        self.noise = sde.noise
        self.noise_type = sde.noise_type
        self._evaluate, self.rows = sde.evaluator(rows)

    def coefficients(self, t: Tensor, z: Tensor, rows: Rows) -> Coefficients:
        """Drift, diffusion and control."""
        return self._evaluate(t, z, rows)

    def both(self, t: Tensor, z: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Drift including the control, and diffusion."""
        coefficients = self._evaluate(t, z, rows)
        return coefficients.total_drift(self.noise), coefficients.diffusion

    def drift(self, t: Tensor, z: Tensor, rows: Rows) -> Tensor:
        """Drift including the control."""
        return self._evaluate(t, z, rows).total_drift(self.noise)

    def diffusion(self, t: Tensor, z: Tensor) -> Tensor:
        """Diffusion alone."""
        return torch.as_tensor(self.sde.diffusion(t, z), dtype=z.dtype, device=z.device)

    def apply(self, diffusion: Tensor, w: Tensor) -> Tensor:
        r""":math:`\sigma w`, ``(..., M) -> (..., D)``."""
        return self.noise.apply(diffusion, w)


class Solver(ABC):
    """One step of a fixed-grid method; stateless and frozen.

    A subclass says by its attributes what it can do, and by `step` how.

    Attributes:
        interpretation: "ito" or "stratonovich", the form of the SDE whose coefficients `step` receives.
        noise_types: the noise types that it can take.
        levy: what it needs of Brownian motion beside its increments: "none", "space-time" (H) or "area" (H and A).
        has_density: whether a step is a kernel with a density, so that paths can be scored.
        is_euler: whether the step is that of Euler–Maruyama, which the fast paths of this room know by heart.
    """

    interpretation: str = "ito"
    noise_types: frozenset[str] = ALL_NOISE
    levy: str = "none"
    has_density: bool = False
    is_euler: bool = False

    @abstractmethod
    def strong_order(self, noise_type: str) -> float:
        r"""Order of the pathwise error :math:`E|z_T - \hat z_T|` in the step size."""

    @abstractmethod
    def weak_order(self, noise_type: str) -> float:
        """Order of the error of expectations in the step size."""

    def adapt(self, sde: SDE) -> SDE:
        """The same process in the interpretation of this solver.

        Raises:
            ValueError: if the solver cannot take the noise type; the message names those it can.
        """
        if sde.noise_type not in self.noise_types:
            msg = (
                f'{type(self).__name__} cannot take noise_type="{sde.noise_type}", only '
                f'{", ".join(sorted(self.noise_types))}. Use another solver (docs, "Choosing a solver"), or write the '
                "diffusion in one of these forms if it has one."
            )
            raise ValueError(msg)
        return sde.ito() if self.interpretation == "ito" else sde.stratonovich()

    @property
    def support(self) -> constraints.Constraint:
        """Where the states of its paths are, entry by entry: anywhere by default."""
        return constraints.real

    def start(self, field: Field, t: Tensor, z: Tensor, rows: Rows) -> State:
        """What the solver carries from step to step beside the path, at the first state: nothing by default.

        Shape:
            t: ``(..., 1)`` · z: ``(..., D)`` · rows: ``(..., C)`` each.
        """
        del field, t, z, rows
        return ()

    @abstractmethod
    def step(self, field: Field, z: Tensor, step: Step, state: State) -> tuple[Tensor, State]:
        """State after one step, and what is carried to the next.

        Shape:
            z: ``(..., D)`` · returns ``(..., D)``.
        """

    def __repr__(self) -> str:
        """Class and options."""
        options = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({options})"
