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

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..ops.brownian import wiener_increments
from ..ops.grid import TimeGrid
from ..ops.layout import time_first
from ..ops.scan import linear_recurrence
from ..sde.base import SDE
from .loop import euler_step, unroll

__all__ = ["refuse_second_derivative", "unroll_parallel", "unroll_parallel_lean"]


def unroll_parallel(
    sde: SDE,
    grid: TimeGrid,
    initial: Tensor,
    standard_normal: Tensor,
    rows: tuple[Tensor | None, ...],
    *,
    states: Tensor | None = None,
) -> Tensor | None:
    """As `unroll`, with the time-parallel backward pass; None if it would not be exact.

    That is so where the rows of a batch depend on each other, or a coefficient gives another value when it is asked
    again (dropout).

    Arguments as for `unroll`, and `states`, ``(K + 1, ..., D)``, if they are known already. Memory: one call of the
    coefficients at all K steps, and K Jacobians. A second derivative raises RuntimeError.
    """
    if states is None:
        with torch.no_grad():
            states = unroll(sde, grid, initial, standard_normal, rows)
    step = _batched_step(sde, grid, standard_normal, rows, states.dim() - 2)
    leaf = states[:-1].detach().requires_grad_()
    following = step(leaf)
    if following.shape != leaf.shape or not _repeats(following, states[1:]):
        return None
    jacobian = _jacobian(following, leaf)
    if not _rows_are_independent(following, leaf, jacobian):
        return None
    return _Unrolled.apply(initial.expand(states.shape[1:]), following, lambda: jacobian)


def unroll_parallel_lean(
    sde: SDE,
    grid: TimeGrid,
    initial: Tensor,
    normal_of: Callable[[], Tensor],
    rows: tuple[Tensor | None, ...],
) -> Tensor:
    """As `unroll_parallel` where that is known to be exact, with nothing kept but the states.

    The batched call and the Jacobians are computed in the backward pass, once each, with the noise drawn again: the
    function `normal_of` gives the standard normal noise, the same at every call. Other arguments as for `unroll`.

    Shape:
        initial: ``(..., D)`` · noise: ``(K, ..., M)`` · rows: ``(*batch, K, C)`` each · returns ``(K + 1, ..., D)``.
    """
    with torch.no_grad():
        states = unroll(sde, grid, initial, normal_of(), rows)

    def step(leaf: Tensor) -> Tensor:
        return _batched_step(sde, grid, normal_of(), rows, states.dim() - 2)(leaf)

    def jacobian() -> Tensor:
        with torch.enable_grad():
            leaf = states[:-1].detach().requires_grad_()
            return _jacobian(step(leaf), leaf)

    following = checkpoint(step, states[:-1], use_reentrant=False)
    return _Unrolled.apply(initial.expand(states.shape[1:]), following, jacobian)


def _batched_step(
    sde: SDE,
    grid: TimeGrid,
    standard_normal: Tensor,
    rows: tuple[Tensor | None, ...],
    rank: int,
) -> Callable[[Tensor], Tensor]:
    """All steps in one call: states before them (K, ..., D) to states after them."""
    steps = time_first(grid.steps.unsqueeze(-1), rank)
    increments = wiener_increments(steps, time_first(standard_normal.movedim(0, -2), rank))
    evaluate, rows = sde.evaluator(rows)
    late = tuple(None if row is None else time_first(row, rank) for row in rows)
    times = time_first(grid.times.unsqueeze(-1), rank)[:-1]
    return lambda z: euler_step(sde.noise, z, steps, increments, evaluate(times, z, late))


def _jacobian(following: Tensor, leaf: Tensor) -> Tensor:
    """Derivatives ``(K, ..., D, D)`` of entry i of each next state by entry j of the state, from D products."""
    basis = torch.eye(leaf.shape[-1], dtype=leaf.dtype, device=leaf.device)
    return torch.stack([_vjp(following, leaf, direction.expand_as(following)) for direction in basis], -2)


def refuse_second_derivative() -> None:
    """Raise RuntimeError inside a backward pass that autograd records.

    `once_differentiable` would not do: its delayed error is pruned when the second derivative has another path as well.
    """
    if torch.is_grad_enabled():
        msg = (
            "the fast backward pass of a path cannot be differentiated twice (create_graph=True). Call "
            'pyro.settings.set(pyro_sde_backward="loop") before sampling it.'
        )
        raise RuntimeError(msg)


def _repeats(again: Tensor, states: Tensor) -> bool:
    """Whether the call for all steps at once gives the states of the loop."""
    tolerance = 1e-3 if states.dtype == torch.float32 else 1e-8
    largest = float(states.abs().amax())
    if not math.isfinite(largest):
        return False  # whoever evaluates the path says where it explodes
    return torch.allclose(again.detach(), states, rtol=tolerance, atol=tolerance * largest)


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
        ctx: torch.autograd.function.FunctionCtx, initial: Tensor, following: Tensor, jacobian: Callable[[], Tensor]
    ) -> Tensor:
        ctx.jacobian = jacobian  # type: ignore[attr-defined]
        return torch.cat([initial.unsqueeze(0), following])

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        refuse_second_derivative()
        (gradient,) = gradients
        jacobian = ctx.jacobian()  # type: ignore[attr-defined]
        adjoints = linear_recurrence(jacobian, gradient[:-1], gradient[-1], reverse=True)
        return adjoints[0], adjoints[1:], None
