"""Recurrences of a hidden Markov chain in log space: by a loop, and by an associative scan.

Time leftmost: the log-probabilities of the states are ``(N, R, K)`` for R series of K regimes, the transitions
``(N - 1, R, K, K)`` from row to column.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .scan import linear_recurrence

__all__ = ["FORMS", "backward_kernels", "choose_form", "forward_log", "forward_max", "safe_logsumexp", "trace_back"]

Reduce = Callable[[Tensor, int], Tensor]

FORMS = ("associative", "loop")

# Measured on one core (`bench switching`): arithmetic of one step up to which the scan beats the loop, R x K^2 for
# sums, which multiply matrices, and R x K^3 for maxima.
_SUM_WORK, _MAX_WORK = 400, 2000
_FEW_STEPS = 32
_UNDERFLOW = 1e-280  # terms below the smallest number are then below rounding


def choose_form(rows: int, num_steps: int, num_regimes: int, device: torch.device, *, maximum: bool = False) -> str:
    """The faster form for sums, or for maxima: the one place where this is decided."""
    if num_steps < _FEW_STEPS:
        return "loop"
    if device.type != "cpu":
        return "associative"  # the fewest launches
    few = rows * num_regimes**3 <= _MAX_WORK if maximum else rows * num_regimes**2 <= _SUM_WORK
    return "associative" if few else "loop"


def safe_logsumexp(values: Tensor, dim: int) -> Tensor:
    """Log of a sum of exponentials: -inf, with a gradient of 0 and not NaN, where all terms are -inf."""
    largest = values.amax(dim, keepdim=True).detach()
    largest = largest.masked_fill(largest == -math.inf, 0.0)
    total = (values - largest).exp().sum(dim)
    dead = total == 0
    return total.masked_fill(dead, 1.0).log().masked_fill(dead, -math.inf) + largest.squeeze(dim)


def forward_log(first: Tensor, transition: Tensor, likelihood: Tensor, form: str) -> Tensor:
    r"""States :math:`\alpha_{k+1,j} = \log \sum_i \exp(\alpha_{k,i} + T_{k,ij}) + L_{k,j}`, first among them.

    Args:
        first: ``(R, K)``.
        transition: T, ``(N - 1, R, K, K)``.
        likelihood: L, ``(N - 1, R, K)``.
        form: "associative" or "loop".

    Returns:
        ``(N, R, K)``, with a gradient, and a second one, that is finite where entries are -inf.
    """
    if not len(transition):
        return first.unsqueeze(0)
    if torch._C._are_functorch_transforms_active() or torch.jit.is_tracing():
        return _loop(first, transition, likelihood, safe_logsumexp)
    return _Forward.apply(first, transition, likelihood, form)


def forward_max(first: Tensor, transition: Tensor, likelihood: Tensor, form: str) -> Tensor:
    """As `forward_log` with the largest term in place of the sum; without gradient."""
    with torch.no_grad():
        return _run(first, transition, likelihood, form, torch.amax)


def backward_kernels(states: Tensor, transition: Tensor) -> Tensor:
    r"""Laws :math:`W_{k,ij} = p(s_k = i \mid s_{k+1} = j, y_{\le k})`, ``(N - 1, R, K, K)``; 0 where j is unreachable.

    Args:
        states: of `forward_log`, ``(N, R, K)``.
        transition: ``(N - 1, R, K, K)``.
    """
    joint = states[:-1].unsqueeze(-1) + transition
    largest = joint.amax(-2, keepdim=True).detach()
    weights = (joint - largest.masked_fill(largest == -math.inf, 0.0)).exp()
    total = weights.sum(-2, keepdim=True)
    return weights / total.masked_fill(total == 0, 1.0)


def trace_back(maps: Tensor, last: Tensor) -> Tensor:
    """Regimes ``(N, R)`` that end in `last` ``(R,)`` where regime j at k + 1 comes from ``maps[k, :, j]`` at k.

    Maps ``(N - 1, R, K)`` are composed in log2(N) rounds of doubling, so there is no loop over time.
    """
    reach = 1
    composed = maps
    while reach < len(maps):
        joined = composed[:-reach].gather(-1, composed[reach:])
        composed = torch.cat([joined, composed[-reach:]])
        reach *= 2
    earlier = composed.gather(-1, last.expand(len(maps), -1).unsqueeze(-1)).squeeze(-1)
    return torch.cat([earlier, last.unsqueeze(0)])


class _Forward(torch.autograd.Function):
    """The gradient is a linear recurrence backwards in time, whose matrices are the backward kernels."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        first: Tensor,
        transition: Tensor,
        likelihood: Tensor,
        form: str,
    ) -> Tensor:
        states = _run(first.detach(), transition.detach(), likelihood.detach(), form, torch.logsumexp)
        ctx.save_for_backward(transition, states)
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # noqa: ANN401
        (gradient,) = gradients
        transition, states = ctx.saved_tensors
        kernels = backward_kernels(states, transition)
        adjoint = linear_recurrence(kernels.mT, gradient[:-1], gradient[-1], reverse=True)
        return adjoint[0], kernels * adjoint[1:].unsqueeze(-2), adjoint[1:], None


def _run(first: Tensor, transition: Tensor, likelihood: Tensor, form: str, reduce: Reduce) -> Tensor:
    if form == "loop" or not len(transition):
        return _loop(first, transition, likelihood, reduce)
    maps = (transition + likelihood.unsqueeze(-2)).transpose(0, 1)  # (R, N - 1, K, K): neighbours are a view
    rows, count, width, _ = maps.shape
    levels = max(0, (count - 1).bit_length() - 2)
    missing = (-(-count >> levels) << levels) - count  # so that the number halves evenly at every level
    if missing:  # what is padded at the end reaches no earlier state
        maps = torch.cat([maps, maps.new_zeros(rows, missing, width, width)], 1)
    later = _odd_even(maps, first, levels, reduce)[:, :count]
    return torch.cat([first.unsqueeze(0), later.transpose(0, 1)])


def _loop(first: Tensor, transition: Tensor, likelihood: Tensor, reduce: Reduce) -> Tensor:
    states = [first]
    for step, gain in zip(transition.unbind(0), likelihood.unbind(0), strict=True):
        states.append(reduce(states[-1].unsqueeze(-1) + step, -2) + gain)
    return torch.stack(states)


def _odd_even(maps: Tensor, first: Tensor, levels: int, reduce: Reduce) -> Tensor:
    """States after every map ``(R, n, K, K)``; ``(R, n, K)``."""
    rows, count, width, _ = maps.shape
    if levels == 0:
        along = maps.transpose(0, 1)
        return _loop(first, along, along.new_zeros(count, rows, width), reduce)[1:].transpose(0, 1)
    pairs = maps.unflatten(1, (-1, 2))
    early, late = pairs[:, :, 0], pairs[:, :, 1]
    joined = _log_product(early, late) if reduce is torch.logsumexp else None
    if joined is None:
        joined = reduce(early.unsqueeze(-1) + late.unsqueeze(-3), -2)  # (R, n / 2, i, j, 1) + (R, n / 2, 1, j, k)
    after_late = _odd_even(joined, first, levels - 1, reduce)
    before = torch.cat([first.unsqueeze(1), after_late[:, :-1]], 1)
    after_early = reduce(before.unsqueeze(-1) + early, -2)
    return torch.stack([after_early, after_late], 2).reshape(rows, count, width)


def _log_product(early: Tensor, late: Tensor) -> Tensor | None:
    """Product of matrices given by their logs ``(R, n, K, K)``, None if digits were lost by underflow.

    Rows of the first and columns of the second are scaled to a maximum of 1 and multiplied as numbers: a tenth of the
    work of a sum of exponentials. Digits are lost where all terms of an entry underflow, although one is possible.
    """
    rows, columns = early.amax(-1, keepdim=True), late.amax(-2, keepdim=True)
    rows, columns = (part.masked_fill(part == -math.inf, 0.0) for part in (rows, columns))
    product = (early - rows).exp() @ (late - columns).exp()
    lost = product <= _UNDERFLOW
    if bool(lost.any()):
        possible = (early > -math.inf).to(product) @ (late > -math.inf).to(product) > 0
        if bool((lost & possible).any()):
            return None
    return product.log() + rows + columns
