r"""Time-parallel backward pass of a solver loop.

The loop runs without autograd and keeps its states :math:`z_k`. One call of the step for all k at once, at these
states, gives :math:`\Phi_k(z_k) = z_{k+1}` with its graph to parameters, inputs, noise, times and whatever else the
coefficients captured. With :math:`J_k = \partial \Phi_k / \partial z_k` (D vector-Jacobian products of that one call)
and :math:`g_k` the gradient that arrives at state k, the chain rule backwards in time is

.. math:: \lambda_K = g_K, \qquad \lambda_k = g_k + J_k^\top \lambda_{k+1}

and :math:`\lambda_{k+1}` is what the graph of :math:`\Phi_k`, and :math:`\lambda_0` what the first state, must receive:
exactly the gradient of the loop, from one batched backward pass instead of K small ones.
"""

from __future__ import annotations

import pyro.settings
import torch
from torch import Tensor

from ..ops.grid import TimeGrid
from ..ops.layout import time_first
from ..sde.base import SDE
from .base import Solver
from .loop import brownian_increments, unroll

__all__ = ["BACKWARD", "prefers_parallel", "unroll_parallel"]

BACKWARD = "auto"

# Multiply-adds per step, rows x parameters x (D + 3), below which D + 3 batched passes cost less than a recorded step.
# Measured on one core: 2.0x faster at 33 000, equal at 131 000, 1.6x slower at 376 000.
_PARALLEL_WORK = 100_000


@pyro.settings.register("pyro_sde_backward", __name__, "BACKWARD")
def _check_backward(value: str) -> None:
    if value not in ("auto", "loop", "parallel"):
        msg = f'`pyro_sde_backward` must be "auto", "loop" or "parallel", received {value!r}.'
        raise ValueError(msg)


def prefers_parallel(sde: SDE, grid: TimeGrid, initial: Tensor, backward: str = "auto") -> bool:
    """Whether the time-parallel backward pass is worth it: the one place where this is decided.

    Never without autograd, in a trace or under functional transforms, and never for coefficients that take one time
    at a time. Results do not depend on the answer beyond round-off. The setting ``pyro_sde_backward`` decides, unless
    it is "auto"; then `backward` does, unless that is "auto" too.
    """
    if not torch.is_grad_enabled() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    wanted = backward if BACKWARD == "auto" else BACKWARD
    if wanted != "auto":
        return wanted == "parallel"
    if grid.num_steps < 8 or not sde.takes_all_times:
        return False
    size = sde.parameters_per_step + initial.shape[-1]
    rows = max(initial[..., 0].numel(), grid.times[..., 0].numel())
    return rows * size * (initial.shape[-1] + 3) <= _PARALLEL_WORK


def unroll_parallel(
    solver: Solver,
    sde: SDE,
    grid: TimeGrid,
    initial: Tensor,
    standard_normal: Tensor,
    rows: tuple[Tensor | None, ...],
) -> Tensor | None:
    """As `unroll`, with the time-parallel backward pass; None if the rows of the batch depend on each other.

    Memory: one call of the coefficients at all K steps, and K Jacobians. A second derivative raises RuntimeError.
    """
    with torch.no_grad():
        states = unroll(solver, sde, grid, initial, standard_normal, rows)
    rank = states.dim() - 2
    steps = time_first(grid.steps.unsqueeze(-1), rank)
    increments = brownian_increments(steps, time_first(standard_normal.movedim(0, -2), rank))
    evaluate, rows = sde.evaluator(rows)
    late = tuple(None if row is None else time_first(row, rank) for row in rows)
    times = time_first(grid.times.unsqueeze(-1), rank)[:-1]

    def step(start: Tensor, count: int | None) -> Tensor:
        first = tuple(None if row is None else row[:count] for row in late)
        coefficients = evaluate(times[:count], start, first)
        return solver.step(sde.noise, start, steps[:count], increments[:count], coefficients)

    if not (initial.requires_grad or step(states[:1], 1).requires_grad):
        return states
    leaf = states[:-1].requires_grad_()
    following = step(leaf, None)
    if following.shape != leaf.shape:
        return None
    basis = torch.eye(leaf.shape[-1], dtype=leaf.dtype, device=leaf.device)
    columns = [_vjp(following, leaf, direction.expand_as(following)) for direction in basis]
    jacobian = torch.stack(columns, -2)  # (K, ..., D, D): d next_i / d z_j
    if not _rows_are_independent(following, leaf, jacobian):
        return None
    return _Unrolled.apply(initial.expand(states.shape[1:]), following, jacobian)


def _vjp(output: Tensor, leaf: Tensor, direction: Tensor) -> Tensor:
    return torch.autograd.grad(output, leaf, direction, retain_graph=True)[0]


def _rows_are_independent(following: Tensor, leaf: Tensor, jacobian: Tensor) -> bool:
    """Whether the Jacobian, summed over rows, acts as the true one does on a direction that tells rows apart."""
    if following[0, ..., 0].numel() == 1:
        return True
    count = torch.arange(following.numel(), device=leaf.device, dtype=leaf.dtype).reshape(following.shape)
    direction = (1.7 * count).cos()
    true, summed = _vjp(following, leaf, direction), _apply_transposed(jacobian, direction)
    tolerance = 1e-4 if leaf.dtype == torch.float32 else 1e-9
    return bool(((true - summed).abs() <= tolerance * (1 + true.abs().amax() + summed.abs())).all())


def _apply_transposed(jacobian: Tensor, vector: Tensor) -> Tensor:
    return (jacobian.mT @ vector.unsqueeze(-1)).squeeze(-1)


class _Unrolled(torch.autograd.Function):
    """States from the first one and their successors; backwards, the adjoint recursion over time."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, initial: Tensor, following: Tensor, jacobian: Tensor
    ) -> Tensor:
        ctx.save_for_backward(jacobian)
        return torch.cat([initial.unsqueeze(0), following])

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        # Not `once_differentiable`: its delayed error is pruned when the second derivative has another path as well.
        if torch.is_grad_enabled():
            msg = (
                "the time-parallel backward pass of a path cannot be differentiated twice (create_graph=True). Call "
                'pyro.settings.set(pyro_sde_backward="loop") before sampling it.'
            )
            raise RuntimeError(msg)
        (gradient,) = gradients
        (jacobian,) = ctx.saved_tensors  # type: ignore[attr-defined]
        size, width = len(jacobian), jacobian.shape[-1]
        transposed = jacobian.mT.reshape(size, -1, width, width).contiguous().unbind(0)
        arriving = gradient.reshape(size + 1, -1, width, 1).unbind(0)
        adjoint = [arriving[-1]]
        for step in range(size - 1, -1, -1):
            adjoint.append(torch.baddbmm(arriving[step], transposed[step], adjoint[-1]))
        adjoints = torch.stack(adjoint[::-1]).reshape(gradient.shape)
        return adjoints[0], adjoints[1:], None
