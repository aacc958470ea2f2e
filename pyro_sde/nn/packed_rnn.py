r"""A plain recurrent layer over series of different lengths that does no work on padding."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .base import check_positive

__all__ = ["PackedRNN", "Packing"]

_ACTIVATIONS = ("relu", "tanh")


class Packing(NamedTuple):
    """The valid steps of B padded series of T steps, in the order of time, longest series first.

    Attributes:
        rows: place ``b * T + t`` of every valid step in the padded series, ``(N,)``.
        counts: number of series that have step t, for the steps that any series has; never increasing.
        shape: B and T.
    """

    rows: Tensor
    counts: list[int]
    shape: tuple[int, int]

    @classmethod
    def of(cls, lengths: Tensor, num_times: int) -> Packing:
        """Packing of series of given lengths ``(B,)``, 0 to `num_times`."""
        order = torch.argsort(lengths, descending=True, stable=True)
        valid = torch.arange(num_times, device=lengths.device).unsqueeze(-1) < lengths[order]  # (T, B)
        step, place = valid.nonzero(as_tuple=True)
        counts = [count for count in valid.sum(-1).tolist() if count]
        return cls(order[place] * num_times + step, counts, (len(lengths), num_times))

    def pack(self, padded: Tensor) -> Tensor:
        """Valid rows: ``(..., B, T, C) -> (..., N, C)``."""
        return padded.flatten(-3, -2).index_select(-2, self.rows)

    def unpack(self, packed: Tensor) -> Tensor:
        """Padded series, 0 behind their ends: ``(..., N, C) -> (..., B, T, C)``."""
        batch, num_times = self.shape
        flat = packed.new_zeros(*packed.shape[:-2], batch * num_times, packed.shape[-1])
        return flat.index_copy(-2, self.rows, packed).unflatten(-2, (batch, num_times))


class PackedRNN(nn.Module):
    r"""Recurrent layer :math:`h_t = a(W x_t + U h_{t \mp 1} + b)` with a learned first state.

    Reads B series of different lengths forwards, or backwards from the end of each. The step from :math:`h` to
    :math:`h` is all that runs sequentially, for the series that have it; the products with all inputs, and the gradient
    of U, are one matrix product each. On one core this is what the time of training goes to, and where `torch.nn.RNN`
    does one small product per step and padding or a sort of its own.

    Args:
        in_dim: size of the inputs.
        hidden: size H of the state.
        activation: "relu" or "tanh".
        reverse: read backwards in time.

    Shape:
        values: ``(B, T, C)`` · lengths: ``(B,)``, whole numbers from 0 to T · returns: ``(B, T, H)``, 0 behind the end
        of a series.

    Raises:
        ValueError: if a size is not positive or `activation` is unknown; at use if `values` has another shape.

    Example:
        >>> layer = PackedRNN(3, 8, reverse=True)
        >>> layer(torch.zeros(2, 5, 3), torch.tensor([5, 2])).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, in_dim: int, hidden: int, *, activation: str = "relu", reverse: bool = False) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            msg = f"`activation` must be one of {', '.join(_ACTIVATIONS)}; received {activation!r}."
            raise ValueError(msg)
        self.activation, self.reverse = activation, reverse
        self.inward = nn.Linear(check_positive("in_dim", in_dim), check_positive("hidden", hidden))
        self.recurrent = nn.Parameter(torch.empty(hidden, hidden))
        self.first = nn.Parameter(torch.zeros(hidden))
        # Just inside the orthogonal matrices: relu states neither vanish nor grow over hundreds of steps.
        nn.init.orthogonal_(self.recurrent, gain=0.9)
        nn.init.uniform_(self.inward.bias, -1 / math.sqrt(hidden), 1 / math.sqrt(hidden))

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """States after every step; what `values` hold behind the end of a series is not read."""
        if values.dim() != 3 or values.shape[-1] != self.inward.in_features or len(values) != len(lengths):
            msg = (
                f"`values` must have shape (B, T, {self.inward.in_features}) with B = {len(lengths)} as `lengths` "
                f"says, received {tuple(values.shape)}."
            )
            raise ValueError(msg)
        packing = Packing.of(lengths, values.shape[1])
        return packing.unpack(self.forward_packed(packing.pack(values), packing.counts))

    def forward_packed(self, rows: Tensor, counts: list[int]) -> Tensor:
        """States ``(N, H)`` for packed rows ``(N, C)``; `counts` as in `Packing`."""
        how = self.activation == "relu", self.reverse
        return _Recurrence.apply(self.inward(rows), self.recurrent, self.first, counts, *how)  # type: ignore[return-value]


class _Recurrence(torch.autograd.Function):
    """States of the layer, and their gradients with one matrix product for those of the recurrent weights."""

    @staticmethod
    def forward(ctx: Any, driven: Tensor, weight: Tensor, first: Tensor, counts: list[int], *how: bool) -> Tensor:  # noqa: ANN401
        is_relu, reverse = how
        states, before, turned = torch.empty_like(driven), torch.empty_like(driven), weight.t()
        state = states[:0]
        for begin, count in _spans(counts, reverse):
            come_from = before[begin : begin + count]
            kept = min(count, len(state))
            come_from[:kept] = state[:kept]
            come_from[kept:] = first
            state = states[begin : begin + count]
            torch.addmm(driven[begin : begin + count], come_from, turned, out=state)
            state.relu_() if is_relu else state.tanh_()
        ctx.save_for_backward(states, before, weight)
        ctx.plan = counts, is_relu, reverse
        return states

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:  # type: ignore[override]  # noqa: ANN401
        states, before, weight = ctx.saved_tensors
        (gradient,) = gradients
        counts, is_relu, reverse = ctx.plan
        slope = (states > 0).to(states.dtype) if is_relu else 1 - states.square()
        inner, first = torch.empty_like(states), torch.zeros_like(states[0])
        spans = list(_spans(counts, reverse))
        sizes = [0, *(count for _, count in spans)]  # of the step before
        passed = states[:0]  # gradient with respect to the states of this step that later steps have used
        for (begin, count), earlier in zip(reversed(spans), reversed(sizes[:-1]), strict=True):
            here = inner[begin : begin + count]
            here.copy_(gradient[begin : begin + count])
            here[: len(passed)] += passed
            here *= slope[begin : begin + count]
            passed = here @ weight
            kept = min(count, earlier)
            if kept < count:
                first += passed[kept:].sum(0)
            passed = passed[:kept]
        return inner, inner.t() @ before, first, None, None, None


def _spans(counts: list[int], reverse: bool) -> list[tuple[int, int]]:
    """First row and number of rows of every step, in the order in which the layer takes them."""
    begins, total = [], 0
    for count in counts:
        begins.append(total)
        total += count
    spans = list(zip(begins, counts, strict=True))
    return spans[::-1] if reverse else spans
