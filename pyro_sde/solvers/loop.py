"""The sequential loop over the steps of a grid."""

from __future__ import annotations

from itertools import repeat

import torch
from torch import Tensor

from ..ops.grid import TimeGrid
from ..ops.layout import time_first
from ..sde.base import SDE, Coefficients
from .base import Solver

__all__ = ["brownian_increments", "unroll"]


def brownian_increments(steps: Tensor, standard_normal: Tensor) -> Tensor:
    r"""Increments :math:`\sqrt{h_k}\,\epsilon_k` of Brownian motion; zero, with zero gradient, where a step is padded.

    Shape:
        steps: ``(K, ..., 1)`` · standard_normal: ``(K, ..., M)`` · returns ``(K, ..., M)``.
    """
    moving = steps > 0
    root = torch.where(moving, steps, torch.ones_like(steps)).sqrt()  # the derivative of sqrt at 0 is infinite
    return standard_normal * torch.where(moving, root, torch.zeros_like(root))


def unroll(
    solver: Solver,
    sde: SDE,
    grid: TimeGrid,
    initial: Tensor,
    standard_normal: Tensor,
    rows: tuple[Tensor | None, ...],
    record: list[Coefficients] | None = None,
) -> Tensor:
    """States of all steps, time leftmost, ``(K + 1, ..., D)``; arguments as for `integrate`, K >= 1.

    What does not depend on the state is computed before the loop; autograd records the loop if it is on. The
    coefficients of every step are appended to `record`.
    """
    times = grid.times.unsqueeze(-1).unbind(-2)
    steps = grid.steps.unsqueeze(-1)
    # (*batch, K, 1) -> (K, 1, ..., *batch, 1), and the same for the noise: either may have more dimensions
    rank = max(steps.dim(), standard_normal.dim()) - 2
    normal = standard_normal.movedim(0, -2)
    increments = brownian_increments(time_first(steps, rank), time_first(normal, rank)).unbind(0)
    evaluate, rows = sde.evaluator(rows)
    slices = zip(*(repeat(None) if row is None else row.unbind(-2) for row in rows), strict=False)
    noise, step, z = sde.noise, solver.step, initial
    states = [z]
    for t, dt, increment, row in zip(times, steps.unbind(-2), increments, slices, strict=False):  # times has one more
        coefficients = evaluate(t, z, row)
        if record is not None:
            record.append(coefficients)
        z = step(noise, z, dt, increment, coefficients)
        states.append(z)
    states[0] = initial.expand(z.shape)  # grid or coefficients may have more batch dimensions than the first state
    return torch.stack(states)
