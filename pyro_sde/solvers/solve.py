"""A path and its coefficients by the way that was chosen, with little memory if that was asked for."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..ops.grid import TimeGrid
from ..sde.base import SDE, Coefficients
from .base import Field, Rows, Solver, State
from .choice import choose
from .execution import Execution
from .gradient import unroll_parallel, unroll_parallel_lean
from .iterate import SweepOptions, unroll_sweeps
from .loop import unroll, unroll_solver
from .networks import describe, unroll_networks
from .noise import StepNoise

__all__ = ["Solution", "solve"]


class Solution(NamedTuple):
    """A path ``(..., K + 1, D)`` and the coefficients that made it.

    They are a list with one entry per step, or one entry with time leftmost; None if nothing recorded them.
    """

    path: Tensor
    coefficients: list[Coefficients] | Coefficients | None


class _Part(NamedTuple):
    """Some consecutive steps of a grid."""

    times: Tensor  # (*batch, n + 1)
    steps: Tensor  # (*batch, n)

    @property
    def num_steps(self) -> int:
        return self.steps.shape[-1]


def solve(
    solver: Solver,
    sde: SDE,
    grid: TimeGrid,
    initial: Tensor,
    noise: StepNoise,
    rows: Rows,
    execution: Execution,
) -> Solution:
    """As `integrate` for an SDE that `solver` has adapted, with the coefficients where something recorded them.

    Shape:
        initial: ``(..., D)`` · rows: ``(*batch, K, C)`` each · path: ``(..., K + 1, D)``.
    """
    if sde.sde_type != solver.interpretation:
        msg = (
            f"`sde` is in its {sde.sde_type} form, and {solver!r} steps the {solver.interpretation} form, whose drift "
            "differs. Pass `solver.adapt(sde)`."
        )
        raise ValueError(msg)
    if grid.num_steps == 0:
        return Solution(initial.unsqueeze(-2), None)
    coefficients = None
    if not solver.is_euler:
        states = _by_solver(solver, sde, grid, initial, noise, rows, execution)
    elif execution.memory == "low":
        states = _in_blocks(sde, grid, initial, noise, rows, execution)
    else:
        normal = noise.block(0, grid.num_steps)
        states, coefficients = _at_once(sde, grid, initial, normal, rows, execution)
    # Stacked with time first and viewed with time at -2: later calls for all times at once then need no copy.
    return Solution(states.movedim(0, -2), coefficients)


def _at_once(
    sde: SDE,
    grid: TimeGrid,
    initial: Tensor,
    normal: Tensor,
    rows: Rows,
    execution: Execution,
) -> tuple[Tensor, list[Coefficients] | Coefficients | None]:
    """States with time first, and what was recorded beside them."""
    if execution.forward != "loop":
        states = _by_sweeps(sde, grid, initial, normal, rows, execution)
        if states is not None:
            return states, None
    choice = choose(execution, sde, grid, initial, normal, rows)
    if choice.layers is not None:
        states, coefficients = unroll_networks(choice.layers)
        return states, coefficients if torch.is_grad_enabled() else None
    if choice.method == "parallel":
        states = unroll_parallel(sde, grid, initial, normal, rows)
        if states is not None:
            return states, None
    record = [] if torch.is_grad_enabled() else None
    return unroll(sde, grid, initial, normal, rows, record), record


def _by_sweeps(
    sde: SDE,
    grid: TimeGrid,
    initial: Tensor,
    normal: Tensor,
    rows: Rows,
    execution: Execution,
) -> Tensor | None:
    """States by Picard's or Newton's sweeps, with the time-parallel backward pass; None, with a warning, if in vain."""
    result = unroll_sweeps(sde, grid, initial, normal, rows, SweepOptions(execution.forward))
    states = result.states
    reason = "the rows of the batch depend on each other, or coefficients change from call to call"
    if states is None:
        reason = f"{result.sweeps} sweeps did not converge (relative error {result.error:.1e})"
    elif torch.is_grad_enabled():
        states = unroll_parallel(sde, grid, initial, normal, rows, states=states)
    if states is None:
        warnings.warn(
            f'forward="{execution.forward}": the path is simulated step by step, because {reason}. Take smaller steps, '
            'or forward="loop" to go there at once.',
            UserWarning,
            stacklevel=2,
        )
    return states


def _by_solver(
    solver: Solver,
    sde: SDE,
    grid: TimeGrid,
    initial: Tensor,
    noise: StepNoise,
    rows: Rows,
    execution: Execution,
) -> Tensor:
    """States with time first, by the loop; if memory is low, a block of steps at a time."""
    if execution.forward != "loop" or execution.backward not in ("auto", "loop"):
        wanted = f'forward="{execution.forward}"' if execution.forward != "loop" else f'backward="{execution.backward}"'
        msg = (
            f"{solver!r} is run step by step and differentiated through its steps, and {wanted} needs Euler–Maruyama "
            'steps. Leave `solver` out, or set it back to "loop".'
        )
        raise ValueError(msg)
    field = Field(sde, rows)
    count = grid.num_steps
    if execution.memory == "low":
        count = max(1, execution.block_rows // max(1, initial[..., 0].numel()))
    z, state = initial, None
    states = [initial.unsqueeze(0)]
    for start in range(0, grid.num_steps, count):
        stop = min(start + count, grid.num_steps)
        part = _Part(grid.times[..., start : stop + 1], grid.steps[..., start:stop])
        sliced = tuple(None if row is None else row[..., start:stop, :] for row in field.rows)

        def run(
            z: Tensor,
            state: State | None,
            part: _Part = part,
            span: tuple[int, int] = (start, stop),
            sliced: Rows = sliced,
        ) -> tuple[Tensor, State]:
            return unroll_solver(solver, field, part, z, noise.block(*span), sliced, state)  # type: ignore[arg-type]

        path, state = checkpoint(run, z, state, use_reentrant=False) if execution.memory == "low" else run(z, state)
        z = path[-1]
        states.append(path[1:])
    states[0] = states[0].expand(1, *z.shape)
    return torch.cat(states)


def _in_blocks(
    sde: SDE,
    grid: TimeGrid,
    initial: Tensor,
    noise: StepNoise,
    rows: Rows,
    execution: Execution,
) -> Tensor:
    """States with time first, simulated a block of steps at a time; nothing else is kept."""
    count = max(1, execution.block_rows // max(1, initial[..., 0].numel()))
    method, z = "", initial
    states = [initial.unsqueeze(0)]
    for start in range(0, grid.num_steps, count):
        stop = min(start + count, grid.num_steps)
        block = _Block(
            sde,
            _Part(grid.times[..., start : stop + 1], grid.steps[..., start:stop]),  # type: ignore[arg-type]
            noise,
            (start, stop),
            tuple(None if row is None else row[..., start:stop, :] for row in rows),
        )
        method = method or block.method(z, execution)
        path = block.run(z, method)
        z = path[-1]
        states.append(path[1:])
    states[0] = states[0].expand(1, *z.shape)
    return torch.cat(states)


class _Block(NamedTuple):
    """A block of steps, from which everything can be computed again."""

    sde: SDE
    part: TimeGrid
    noise: StepNoise
    span: tuple[int, int]
    rows: Rows

    def normal(self) -> Tensor:
        return self.noise.block(*self.span)

    def method(self, z: Tensor, execution: Execution) -> str:
        """Way of all blocks, chosen at the first one; the parallel one only where it proves exact there."""
        normal = self.normal()
        method = choose(execution, self.sde, self.part, z, normal, self.rows).method
        if method == "parallel":
            few = min(8, self.part.num_steps)
            part = _Part(self.part.times[..., : few + 1], self.part.steps[..., :few])
            rows = tuple(None if row is None else row[..., :few, :] for row in self.rows)
            exact = unroll_parallel(self.sde, part, z, normal[:few], rows)  # type: ignore[arg-type]
            return "loop" if exact is None else method
        return method

    def run(self, z: Tensor, method: str) -> Tensor:
        """States from the first one of this block to the first one of the next, time leftmost."""
        if method == "parallel":
            return unroll_parallel_lean(self.sde, self.part, z, self.normal, self.rows)
        return checkpoint(self.by_layers if method == "layers" else self.by_loop, z, use_reentrant=False)

    def by_layers(self, z: Tensor) -> Tensor:
        path = describe(self.sde, self.part, z, self.normal(), self.rows)
        if path is None:
            msg = "the coefficients offered their layers in the first block of steps, and not in this one"
            raise RuntimeError(msg)
        return unroll_networks(path, keep=False)[0]

    def by_loop(self, z: Tensor) -> Tensor:
        return unroll(self.sde, self.part, z, self.normal(), self.rows)
