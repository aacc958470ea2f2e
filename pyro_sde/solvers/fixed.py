"""The fixed-grid solver of training, and the function that runs any solver."""

from __future__ import annotations

from torch import Tensor

from ..ops.grid import TimeGrid
from ..sde.base import SDE
from .base import Field, Solver, State, Step
from .execution import Execution
from .loop import euler_step
from .noise import GivenNoise
from .solve import solve

__all__ = ["EulerMaruyama", "integrate"]


class EulerMaruyama(Solver):
    r"""Euler–Maruyama step :math:`z_{t+h} = z_t + f(t, z_t)\,h + \sigma(t, z_t)\,\Delta W`.

    The cheapest Itô method, one drift and one diffusion per step; its transition is Gaussian, so the path of a chain of
    such steps has a density. Use it for training, where model and guide share the grid.

    Note:
        Strong order 0.5 in general, 1.0 for additive noise; weak order 1. It needs small steps for stiff drifts.

    References:
        Kloeden and Platen (1992), Numerical Solution of SDEs, eq. (10.2.4).
    """

    has_density = True
    is_euler = True

    def strong_order(self, noise_type: str) -> float:
        """1 for additive noise, 1/2 otherwise."""
        return 1.0 if noise_type == "additive" else 0.5

    def weak_order(self, noise_type: str) -> float:
        """1."""
        del noise_type
        return 1.0

    def step(self, field: Field, z: Tensor, step: Step, state: State) -> tuple[Tensor, State]:
        """One explicit Euler step of the total drift plus the noise."""
        coefficients = field.coefficients(step.t, z, step.rows)
        return euler_step(field.noise, z, step.increments.dt, step.increments.W, coefficients), state


def integrate(
    solver: Solver,
    sde: SDE,
    grid: TimeGrid,
    initial: Tensor,
    standard_normal: Tensor,
    rows: tuple[Tensor | None, ...],
    execution: Execution | None = None,
) -> Tensor:
    """Path of an SDE on a grid, driven by given noise.

    An SDE of the other interpretation than the solver's is converted: the process stays the same. Cost: K sequential
    steps; `execution`, or the settings of Pyro, say how (see `Execution`).

    Args:
        solver: its step is taken.
        sde: the SDE.
        grid: solver grid with K steps.
        initial: first states ``(..., D)``.
        standard_normal: ``(K, ..., W)``; W is the Brownian dimension M, or `normal_width` of it if the solver wants
            Lévy areas.
        rows: ``(*batch, K, C)`` each, from `SDE.bind_rows`.
        execution: how the steps are run.

    Returns:
        Path ``(..., K + 1, D)``.

    Raises:
        ValueError: if the solver cannot take the noise type, or cannot be run as `execution` says.
    """
    execution = Execution.current() if execution is None else execution
    return solve(solver, solver.adapt(sde), grid, initial, GivenNoise(standard_normal), rows, execution).path
