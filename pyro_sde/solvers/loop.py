"""The sequential loop over the steps of a grid."""

from __future__ import annotations

from itertools import repeat

import torch
from torch import Tensor

from ..ops.brownian import BrownianIncrements, brownian_increments, wiener_increments
from ..ops.grid import TimeGrid
from ..ops.layout import time_first
from ..sde.base import SDE, Coefficients
from ..sde.noise import Noise
from .base import Field, Rows, Solver, State, Step

__all__ = ["euler_step", "unroll", "unroll_solver"]


def euler_step(noise: Noise, z: Tensor, dt: Tensor, increment: Tensor, coefficients: Coefficients) -> Tensor:
    """One step of Euler–Maruyama: the total drift plus the noise.

    Shape:
        z: ``(..., D)`` · dt: ``(..., 1)`` · increment: ``(..., M)`` Brownian increment over the step ·
        returns ``(..., D)``.
    """
    drift, diffusion, control = coefficients
    # sigma * (u dt + dW) costs one product less than sigma u and sigma dW apart
    driver = increment if control is None else torch.addcmul(increment, control, dt)
    return torch.addcmul(z, drift, dt) + noise.apply(diffusion, driver)


def unroll(
    sde: SDE,
    grid: TimeGrid,
    initial: Tensor,
    standard_normal: Tensor,
    rows: Rows,
    record: list[Coefficients] | None = None,
) -> Tensor:
    """States of all Euler–Maruyama steps, time leftmost, ``(K + 1, ..., D)``; arguments as for `integrate`, K >= 1.

    What does not depend on the state is computed before the loop; autograd records the loop if it is on. The
    coefficients of every step are appended to `record`.
    """
    times = grid.times.unsqueeze(-1).unbind(-2)
    steps = grid.steps.unsqueeze(-1)
    # (*batch, K, 1) -> (K, 1, ..., *batch, 1), and the same for the noise: either may have more dimensions
    rank = max(steps.dim(), standard_normal.dim()) - 2
    normal = standard_normal.movedim(0, -2)
    increments = wiener_increments(time_first(steps, rank), time_first(normal, rank)).unbind(0)
    evaluate, rows = sde.evaluator(rows)
    slices = zip(*(repeat(None) if row is None else row.unbind(-2) for row in rows), strict=False)
    noise, z = sde.noise, initial
    states = [z]
    for t, dt, increment, row in zip(times, steps.unbind(-2), increments, slices, strict=False):  # times has one more
        coefficients = evaluate(t, z, row)
        if record is not None:
            record.append(coefficients)
        z = euler_step(noise, z, dt, increment, coefficients)
        states.append(z)
    states[0] = initial.expand(z.shape)  # grid or coefficients may have more batch dimensions than the first state
    return torch.stack(states)


def unroll_solver(
    solver: Solver,
    field: Field,
    grid: TimeGrid,
    initial: Tensor,
    standard_normal: Tensor,
    rows: Rows,
    state: State | None = None,
) -> tuple[Tensor, State]:
    """As `unroll` for the steps of any solver, ``(K + 1, ..., D)``, and what the solver carries on from the last one.

    A solver never sees a step of size 0: where a series is padded it takes a step of another size, which is dropped.

    Arguments as for `integrate`, but that `rows` are those of `field`, which has applied what does not depend on the
    state; `state` is what the solver carried to the first of these steps, None at the start of a path.
    """
    times = grid.times.unsqueeze(-1).unbind(-2)
    steps = grid.steps.unsqueeze(-1)
    rank = max(steps.dim(), standard_normal.dim()) - 2
    steps = time_first(steps, rank)
    moving = steps > 0
    padded = not bool(moving.all())
    increments = brownian_increments(steps, time_first(standard_normal.movedim(0, -2), rank), solver.levy)
    if padded:
        smallest = steps.detach()[moving].min() if bool(moving.any()) else steps.new_ones(())
        increments = increments._replace(dt=torch.where(moving, steps, smallest))
    slices = (
        list(zip(*(repeat(None) if row is None else row.unbind(-2) for row in rows), strict=False))
        if any(row is not None for row in rows)
        else repeat((None,) * len(rows))
    )
    z = initial
    states = [z]
    for k, (t, row) in enumerate(zip(times[: len(steps)], slices, strict=False)):
        if state is None:
            state = solver.start(field, t, z, row)
        step = Step(t, _at(increments, k), row)
        following, carried = solver.step(field, z, step, state)
        if padded:
            following = torch.where(moving[k], following, z)
            carried = tuple(
                torch.where(_as_wide(moving[k], new), new, old) for new, old in zip(carried, state, strict=True)
            )
        z, state = following, carried
        states.append(z)
    states[0] = initial.expand(z.shape)
    return torch.stack(states), state or ()


def _at(increments: BrownianIncrements, k: int) -> BrownianIncrements:
    dt, w, h, a = increments
    return BrownianIncrements(dt[k], w[k], None if h is None else h[k], None if a is None else a[k])


def _as_wide(moving: Tensor, value: Tensor) -> Tensor:
    """Mask ``(..., 1)`` for a carried tensor, which may be a matrix for each state."""
    return moving.unsqueeze(-1) if value.dim() > moving.dim() else moving
