"""The recursions as autograd functions whose backward pass is a recursion too, without a graph per step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._kalman_compiled import Array, Arrays, kernel
from ._kalman_loop import ChainTensors, recurrence_loop, states_loop, update
from ._kalman_scan import congruence_scan, filter_scan, recurrence_scan
from ._psd import psd_factor

__all__ = ["filter_compiled", "filter_parallel", "information_compiled", "recurrence_compiled"]


def filter_compiled(chain: ChainTensors, rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `filter_loop`, compiled, with the adjoint of the Joseph recursion."""
    _, _, means, covariances, evidence = _CompiledStates.apply(*chain, chain.offset[..., :0], rows, values)
    return means, covariances, evidence


def information_compiled(chain: ChainTensors, rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    r"""As `information_loop`, compiled.

    The recursion is dual to the filter: noise with factor L adds to the inverse of the information as an observation
    with rows :math:`L^\top` adds to the inverse of a covariance. So it is the filter, backwards in time, with
    transitions :math:`A^\top`, "noise" :math:`H^\top H`, "observations" L of value 0, and J and eta as its moments.
    """
    own = rows.mT @ rows
    own_vector = (rows.mT @ values.unsqueeze(-1)).squeeze(-1)
    noise_rows = psd_factor(chain.noise).mT.flip(1)
    noise_rows = torch.cat([noise_rows, torch.zeros_like(own[:, :1])], 1)  # nothing before the first time
    backwards = ChainTensors(
        own_vector[:, -1], own[:, -1], chain.transition.mT.flip(1), own_vector[:, :-1].flip(1), own[:, :-1].flip(1)
    )
    nothing = torch.zeros_like(noise_rows[..., 0])
    vectors, found, *_ = _CompiledStates.apply(*backwards, chain.offset.flip(1), noise_rows, nothing)
    return found.flip(1), vectors.flip(1)


def recurrence_compiled(initial: Tensor, transition: Tensor, increments: Tensor) -> Tensor:
    """As `recurrence_loop`, compiled."""
    return _CompiledRecurrence.apply(initial, transition, increments)


def filter_parallel(chain: ChainTensors, rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `filter_scan`; the backward pass is two linear scans and one batched step."""
    if not chain.transition.shape[1] or not torch.is_grad_enabled():
        return filter_scan(chain, rows, values)
    return _ParallelFilter.apply(*chain, rows, values)


class _CompiledStates(torch.autograd.Function):
    """`states_loop` by the compiled kernels; moments before and after each update, and the evidence."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]  # noqa: ANN401
        ctx.set_materialize_grads(False)
        *_, rows, values = inputs
        batch, count, _, dim = rows.shape
        predicted, filtered = rows.new_empty(batch, count, dim + 1, dim), rows.new_empty(batch, count, dim + 1, dim)
        evidence = rows.new_empty(batch)
        chain, observed = _packed(inputs)
        kernel("filter_forward")(chain, observed, predicted.numpy(), filtered.numpy(), evidence.numpy())
        ctx.save_for_backward(*inputs)
        ctx.predicted = predicted
        states = (predicted[..., dim, :], predicted[..., :dim, :], filtered[..., dim, :], filtered[..., :dim, :])
        return *(state.clone() for state in states), evidence

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        if torch.is_grad_enabled():
            return _again(ctx, lambda *inputs: states_loop(ChainTensors(*inputs[:5]), *inputs[5:]), grads)
        inputs = ctx.saved_tensors
        rows = inputs[-2]
        batch, _, _, dim = rows.shape
        evidence_bar = grads[4] if grads[4] is not None else rows.new_zeros(batch)
        bars = (_joined(grads[0], grads[1], rows), _joined(grads[2], grads[3], rows), evidence_bar.detach().numpy())
        initial_bar = rows.new_empty(batch, dim + 1, dim)
        found = [torch.zeros(tensor.shape, dtype=tensor.dtype) for tensor in inputs[2:]]
        chain, observed = _packed(inputs)
        bar_arrays = [tensor.numpy() for tensor in found]
        kernel("filter_adjoint")(
            chain, observed, ctx.predicted.numpy(), bars, (initial_bar.numpy(), *bar_arrays[:4]), tuple(bar_arrays[4:])
        )
        return initial_bar[:, dim], initial_bar[:, :dim], *found


def _packed(inputs: tuple[Tensor, ...]) -> tuple[Arrays, Arrays]:
    """Arrays of (initial state, transition, offset, noise, shift) and of (rows, values)."""
    mean, covariance, *rest = (tensor.detach() for tensor in inputs)
    initial = torch.cat([0.5 * (covariance + covariance.mT), mean.unsqueeze(-2)], -2)
    transition, offset, noise, shift, rows, values = (tensor.numpy() for tensor in rest)
    return (initial.numpy(), transition, offset, noise, shift), (rows, values)


def _joined(mean_bar: Tensor | None, covariance_bar: Tensor | None, rows: Tensor) -> Array:
    """Adjoint of packed states as an array, of no size if both parts are zero."""
    batch, count, _, dim = rows.shape
    if mean_bar is None and covariance_bar is None:
        return rows.new_empty(0, count, dim + 1, dim).numpy()
    joined = rows.new_zeros(batch, count, dim + 1, dim)
    if covariance_bar is not None:
        joined[..., :dim, :] = covariance_bar
    if mean_bar is not None:
        joined[..., dim, :] = mean_bar
    return joined.numpy()


class _CompiledRecurrence(torch.autograd.Function):
    """`recurrence_loop` by the compiled kernels."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:  # type: ignore[override]  # noqa: ANN401
        initial, transition, increments = inputs
        states = torch.cat([initial.unsqueeze(2), increments], 2)
        kernel("recurrence_forward")(transition.detach().numpy(), states.numpy())
        ctx.save_for_backward(initial, transition, increments)
        ctx.states = states.clone()  # the caller may write into the result
        return states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        if torch.is_grad_enabled():
            return _again(ctx, lambda *inputs: (recurrence_loop(*inputs),), grads)
        _, transition, _ = ctx.saved_tensors
        bars = grads[0].detach().clone(memory_format=torch.contiguous_format)
        transition_bar = torch.zeros(transition.shape, dtype=transition.dtype)
        kernel("recurrence_adjoint")(
            transition.detach().numpy(), ctx.states.numpy(), bars.numpy(), transition_bar.numpy()
        )
        return bars[:, :, 0], transition_bar, bars[:, :, 1:]


class _ParallelFilter(torch.autograd.Function):
    r"""`filter_scan` with the adjoint in closed form.

    With the filtered moments known, one update depends on the ones before through
    :math:`dm_k = F_k\,dm_{k-1} + F_k\,dP_{k-1}\,w_k` and :math:`dP_k = F_k\,dP_{k-1} F_k^\top`, where
    :math:`F_k = (I - K_k H_k) A_{k-1}` and :math:`w_k = A_{k-1}^\top H_k^\top S_k^{-1} v_k`. Backwards in time the
    adjoints are therefore an affine recursion, then a congruence recursion; all parameters get theirs from one batched
    step at the stored moments.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]  # noqa: ANN401
        ctx.set_materialize_grads(False)
        means, covariances, evidence = filter_scan(ChainTensors(*inputs[:5]), *inputs[5:])
        ctx.save_for_backward(*inputs)
        ctx.moments = means, covariances
        return means.clone(), covariances.clone(), evidence

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        if torch.is_grad_enabled():
            return _again(ctx, lambda *inputs: filter_scan(ChainTensors(*inputs[:5]), *inputs[5:]), grads)
        leaves = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        chain, (rows, values) = ChainTensors(*leaves[:5]), leaves[5:]
        means, covariances = ctx.moments
        mean_bar = torch.zeros_like(means) if grads[0] is None else grads[0]
        covariance_bar = torch.zeros_like(covariances) if grads[1] is None else 0.5 * (grads[1] + grads[1].mT)
        weight = means.new_zeros(means.shape[0]) if grads[2] is None else grads[2]
        with torch.enable_grad():
            before = chain.transition @ means[:, :-1].unsqueeze(-1)
            predicted = torch.cat([chain.mean.unsqueeze(1), before.squeeze(-1) + chain.offset], 1)
            spread = chain.transition @ covariances[:, :-1] @ chain.transition.mT + chain.noise
            spread = torch.cat([chain.covariance.unsqueeze(1), spread], 1)
            filtered, filtered_spread, log_density = update(predicted, spread, rows, values)
        bars = _adjoint_moments(
            (predicted.detach(), spread.detach()), (chain.transition.detach(), rows.detach(), values.detach()),
            (mean_bar, covariance_bar), weight,
        )  # fmt: skip
        outputs = [filtered, filtered_spread, log_density]
        return torch.autograd.grad(outputs, leaves, [*bars, weight.unsqueeze(1).expand_as(log_density)])


def _adjoint_moments(
    predicted: tuple[Tensor, Tensor],
    model: tuple[Tensor, Tensor, Tensor],
    bars: tuple[Tensor, Tensor],
    weight: Tensor,
) -> tuple[Tensor, Tensor]:
    """Total adjoints of the filtered moments, from their own `bars` and the `weight` of the evidence."""
    transition, rows, values = model
    mean, covariance = (moment[:, 1:] for moment in predicted)
    rows, values = rows[:, 1:], values[:, 1:]
    unit = torch.eye(rows.shape[-2], dtype=rows.dtype, device=rows.device)
    factor, _ = torch.linalg.cholesky_ex(rows @ covariance @ rows.mT + unit)
    innovation = values.unsqueeze(-1) - rows @ mean.unsqueeze(-1)
    solved = torch.cholesky_solve(torch.cat([innovation, rows], -1), factor)
    score = transition.mT @ (rows.mT @ solved[..., :1])  # w_k
    closed = transition - covariance @ rows.mT @ solved[..., 1:] @ transition  # F_k
    seen = rows @ transition
    curvature = score @ score.mT - seen.mT @ solved[..., 1:] @ transition
    weight = weight[:, None, None]
    direct = bars[0][:, :-1] + weight * score.squeeze(-1)
    last = bars[0][:, -1]
    adjoint = recurrence_scan(last.unsqueeze(0), closed.mT.flip(1), direct.flip(1).unsqueeze(0)).squeeze(0).flip(1)
    mixed = closed.mT @ adjoint[:, 1:].unsqueeze(-1) @ score.mT
    increments = bars[1][:, :-1] + 0.5 * (mixed + mixed.mT + weight.unsqueeze(-1) * curvature)
    increments = torch.cat([increments, bars[1][:, -1:]], 1)
    return adjoint, congruence_scan(closed.mT.flip(1), increments.flip(1)).flip(1)


def _again(
    ctx: Any,  # noqa: ANN401
    function: Callable[..., tuple[Tensor, ...]],
    grads: tuple[Tensor | None, ...],
) -> tuple[Tensor | None, ...]:
    """Gradient with a graph of its own, through a form of the function that autograd records."""
    inputs = [x if x.requires_grad else x.detach().requires_grad_() for x in ctx.saved_tensors]
    used = [(out, grad) for out, grad in zip(function(*inputs), grads, strict=True) if grad is not None]
    outputs, bars = [out for out, _ in used], [grad for _, grad in used]
    found = torch.autograd.grad(outputs, inputs, bars, create_graph=True, allow_unused=True)
    return tuple(g if needed else None for g, needed in zip(found, ctx.needs_input_grad, strict=True))
