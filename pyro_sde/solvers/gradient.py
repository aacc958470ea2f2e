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

from typing import Any

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
# `bench backward`, one core: 2.4x faster at 3 000, 1.6x at 34 000 and 65 000, 1.2x at 134 000, 1.4x slower at 380 000.
_PARALLEL_WORK = 100_000
_GRAPH_NODES = 1000  # a captured tensor may hang on an encoder: its graph is not work of a step, and is not searched


@pyro.settings.register("pyro_sde_backward", __name__, "BACKWARD")
def _check_backward(value: str) -> None:
    if value not in ("auto", "loop", "parallel"):
        msg = f'`pyro_sde_backward` must be "auto", "loop" or "parallel", received {value!r}.'
        raise ValueError(msg)


def prefers_parallel(
    sde: SDE,
    grid: TimeGrid,
    initial: Tensor,
    standard_normal: Tensor,
    rows: tuple[Tensor | None, ...],
    backward: str = "auto",
) -> bool:
    """Whether the time-parallel backward pass is worth it: the one place where this is decided.

    Never without something to differentiate, in a trace or under functional transforms, and never for coefficients that
    take one time at a time. Results do not depend on the answer beyond round-off. The setting ``pyro_sde_backward``
    decides, unless it is "auto"; then `backward` does, unless that is "auto" too. Then the coefficients are called
    once, to count the parameters that a step multiplies with: also those that a function captured, but not those behind
    inputs, which are applied before the loop.
    """
    if not torch.is_grad_enabled() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    wanted = backward if BACKWARD == "auto" else BACKWARD
    if wanted == "loop" or (wanted == "auto" and (grid.num_steps < 8 or not sde.takes_all_times)):
        return False
    evaluate, hoisted = sde.evaluator(rows)
    first = tuple(None if row is None else row[..., 0, :].detach() for row in hoisted)
    z, dt = initial.detach(), grid.steps[..., :1].detach()
    coefficients = evaluate(grid.times[..., :1].detach(), z, first)
    change = coefficients.total_drift(sde.noise) * dt
    outputs = [tensor for tensor in (change, coefficients.diffusion) if tensor.requires_grad]
    given = [initial, standard_normal, grid.steps, *(row for row in rows if row is not None)]
    if not outputs and not any(tensor.requires_grad for tensor in given):
        return False
    if wanted == "parallel":
        return True
    width = initial.shape[-1]
    count = torch.broadcast_shapes(change.shape[:-1], z.shape[:-1]).numel()
    return count * (_captured_size(outputs) + width) * (width + 3) <= _PARALLEL_WORK


def _captured_size(outputs: list[Tensor]) -> int:
    """Number of scalars in the leaf tensors that the graph of some outputs reaches, as far as it matters."""
    pending: list[Any] = [output.grad_fn if output.grad_fn is not None else output for output in outputs]
    seen: set[Any] = set()
    total = 0
    while pending and total <= _PARALLEL_WORK and len(seen) < _GRAPH_NODES:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, Tensor):
            total += node.numel()
        elif hasattr(node, "variable"):
            total += node.variable.numel()
        else:
            pending += [following for following, _ in node.next_functions]
    return total


def unroll_parallel(
    solver: Solver,
    sde: SDE,
    grid: TimeGrid,
    initial: Tensor,
    standard_normal: Tensor,
    rows: tuple[Tensor | None, ...],
) -> Tensor | None:
    """As `unroll`, with the time-parallel backward pass; None if it would not be exact.

    That is so where the rows of a batch depend on each other, or a coefficient gives another value when it is asked
    again (dropout).

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
    leaf = states[:-1].requires_grad_()
    following = solver.step(sde.noise, leaf, steps, increments, evaluate(times, leaf, late))
    if following.shape != leaf.shape or not _repeats(following, states[1:]):
        return None
    basis = torch.eye(leaf.shape[-1], dtype=leaf.dtype, device=leaf.device)
    columns = [_vjp(following, leaf, direction.expand_as(following)) for direction in basis]
    jacobian = torch.stack(columns, -2)  # (K, ..., D, D): d next_i / d z_j
    if not _rows_are_independent(following, leaf, jacobian):
        return None
    return _Unrolled.apply(initial.expand(states.shape[1:]), following, jacobian)


def _repeats(again: Tensor, states: Tensor) -> bool:
    """Whether the call for all steps at once gives the states of the loop."""
    tolerance = 1e-3 if states.dtype == torch.float32 else 1e-8
    return torch.allclose(again.detach(), states, rtol=tolerance, atol=tolerance * float(states.abs().amax()))


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
