"""Fixed-grid solvers and the loop that runs them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.grid import TimeGrid
from ..sde.base import SDE, Coefficients
from ..sde.noise import Noise
from .base import Solver
from .execution import Execution
from .noise import GivenNoise
from .solve import solve

__all__ = ["EulerMaruyama", "integrate"]


class EulerMaruyama(Solver):
    r"""Euler–Maruyama step :math:`z_{t+h} = z_t + f(t, z_t)\,h + \sigma(t, z_t)\,\Delta W`.

    The cheapest Itô method, one drift and one diffusion per step; its transition is Gaussian, so the path of a chain of
    such steps has a density. Use it for training, where model and guide share the grid.

    Note:
        Strong order 0.5 in general, 1.0 for additive noise; needs small steps for stiff drifts.

    References:
        Kloeden and Platen (1992), Numerical Solution of SDEs, eq. (10.2.4).
    """

    strong_order = 0.5
    is_euler = True

    def step(self, noise: Noise, z: Tensor, dt: Tensor, increment: Tensor, coefficients: Coefficients) -> Tensor:
        """One explicit Euler step of the total drift plus the noise."""
        drift, diffusion, control = coefficients
        # sigma * (u dt + dW) costs one product less than sigma u and sigma dW apart
        driver = increment if control is None else torch.addcmul(increment, control, dt)
        return torch.addcmul(z, drift, dt) + noise.apply(diffusion, driver)


def integrate(
    solver: Solver,
    sde: SDE,
    grid: TimeGrid,
    initial: Tensor,
    standard_normal: Tensor,
    rows: tuple[Tensor | None, ...],
    execution: Execution | None = None,
) -> Tensor:
    """Path of an Itô SDE on a grid, driven by given noise.

    Cost: K sequential steps; `execution`, or the settings of Pyro, say how (see `Execution`).

    Shape:
        initial: ``(..., D)`` · standard_normal: ``(K, ..., M)`` · rows: ``(*batch, K, C)`` each, from `SDE.bind_rows` ·
        returns ``(..., K + 1, D)``.

    Raises:
        ValueError: if `sde` is a Stratonovich SDE.
    """
    execution = Execution.current() if execution is None else execution
    return solve(solver, sde, grid, initial, GivenNoise(standard_normal), rows, execution).path
