"""Fixed-grid solvers and the loop that runs them."""

from __future__ import annotations

from itertools import repeat

import torch
from torch import Tensor

from ..ops.grid import TimeGrid
from ..sde.base import SDE, Coefficients
from ..sde.noise import Noise
from .base import Solver

__all__ = ["EulerMaruyama", "brownian_increments", "integrate"]


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

    def step(self, noise: Noise, z: Tensor, dt: Tensor, increment: Tensor, coefficients: Coefficients) -> Tensor:
        """One explicit Euler step of the total drift plus the noise."""
        drift, diffusion, control = coefficients
        # sigma * (u dt + dW) costs one product less than sigma u and sigma dW apart
        driver = increment if control is None else torch.addcmul(increment, control, dt)
        return torch.addcmul(z, drift, dt) + noise.apply(diffusion, driver)


def brownian_increments(steps: Tensor, standard_normal: Tensor) -> Tensor:
    r"""Increments :math:`\sqrt{h_k}\,\epsilon_k` of Brownian motion; zero, with zero gradient, where a step is padded.

    Shape:
        steps: ``(K, ..., 1)`` · standard_normal: ``(K, ..., M)`` · returns ``(K, ..., M)``.
    """
    moving = steps > 0
    root = torch.where(moving, steps, torch.ones_like(steps)).sqrt()  # the derivative of sqrt at 0 is infinite
    return standard_normal * torch.where(moving, root, torch.zeros_like(root))


def integrate(
    solver: Solver,
    sde: SDE,
    grid: TimeGrid,
    initial: Tensor,
    standard_normal: Tensor,
    rows: tuple[Tensor | None, ...],
) -> Tensor:
    """Path of an Itô SDE on a grid, driven by given noise.

    Cost: K sequential steps; memory for the path and whatever autograd keeps of the coefficients.

    Shape:
        initial: ``(..., D)`` · standard_normal: ``(K, ..., M)`` · rows: ``(*batch, K, C)`` each, from `SDE.bind_rows` ·
        returns ``(..., K + 1, D)``.

    Raises:
        ValueError: if `sde` is a Stratonovich SDE.
    """
    if sde.sde_type != "ito":
        msg = "`sde` must be an Itô SDE, received a Stratonovich one, whose drift differs. Pass `sde.ito()`."
        raise ValueError(msg)
    z = initial
    if grid.num_steps == 0:
        return z.unsqueeze(-2)
    times = grid.times.unsqueeze(-1).unbind(-2)
    steps = grid.steps.unsqueeze(-1)
    # (*batch, K, 1) -> (K, 1, ..., *batch, 1), and the same for the noise: either may have more dimensions
    rank = max(steps.dim(), standard_normal.dim())
    increments = brownian_increments(_pad(steps.movedim(-2, 0), rank), _pad(standard_normal, rank)).unbind(0)
    step_sizes = steps.unbind(-2)
    evaluate, rows = sde.evaluator(rows)
    slices = zip(*(repeat(None) if row is None else row.unbind(-2) for row in rows), strict=False)
    noise, step, states = sde.noise, solver.step, [z]
    for t, dt, increment, row in zip(times, step_sizes, increments, slices, strict=False):  # times has one more
        z = step(noise, z, dt, increment, evaluate(t, z, row))
        states.append(z)
    states[0] = initial.expand(z.shape)  # grid or coefficients may have more batch dimensions than the first state
    # Stacked with time first and viewed with time at -2: later calls for all times at once then need no copy.
    return torch.stack(states).movedim(0, -2)


def _pad(tensor: Tensor, rank: int) -> Tensor:
    """(K, ..., C) -> (K, 1, ..., ..., C) with `rank` dimensions."""
    return tensor.reshape(tensor.shape[0], *[1] * (rank - tensor.dim()), *tensor.shape[1:])
