r"""Random windows of a long series, so that a training step costs the same however long the series is."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops._arguments import check_counts, check_floating, check_observed
from ..ops.grid import TimeGrid

__all__ = ["ObservationSample", "TimeWindows", "WindowBatch", "sample_observations"]


class ObservationSample(NamedTuple):
    """Some of the observations of a batch of series, for a model that scores only these.

    Attributes:
        grid: grid with n observation times from the first to the last time of the whole one; no other solver steps.
        values: ``(*batch, n, O)``.
        mask: as given, ``(*batch, n, O)`` or ``(*batch, n)``; valid times of the grid if none was given.
        weight: N / n of every series, batch shape of the grid, for ``poutine.scale`` around the observed site of the
            model, and around nothing else.
    """

    grid: TimeGrid
    values: Tensor
    mask: Tensor
    weight: Tensor


def sample_observations(grid: TimeGrid, values: Tensor, count: int, mask: Tensor | None = None) -> ObservationSample:
    """Random observations, spread evenly, each with the same probability: the unbiased likelihood at constant cost.

    Every (N / n)-th observation is taken, from a random one on; the same ones in all series. The path term is that of
    the whole series, since the smaller grid spans the same times.

    Args:
        grid: grid of the series.
        values: ``(*batch, N, O)``.
        count: number n of observations; all, with weight 1, if there are no more.
        mask: ``(*batch, N, O)`` or ``(*batch, N)``, True = observed.

    Raises:
        TypeError: if `grid` is no `TimeGrid`, or `values` no floating-point tensor.
        ValueError: if `count` is not an integer >= 1, or the shapes of values and mask do not fit those of the grid.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        msg = f"`count` must be an integer >= 1, received {count!r}."
        raise ValueError(msg)
    _check_series(grid, values, mask)
    valid = grid.mask
    size = valid.shape[-1]
    position = torch.arange(size, device=valid.device)
    order = torch.where(valid, position, position + size).argsort(-1)  # valid ones first
    number = valid.sum(-1, keepdim=True)
    taken = number.clamp(max=count)  # (*batch, 1)
    place = torch.arange(min(count, size), device=valid.device)
    # the spacing is at least 1, so no observation is taken twice, and each has probability taken / number
    shift = torch.rand((), dtype=torch.float64).to(valid.device)
    index = order.gather(-1, ((place + shift) * (number / taken).double()).long().clamp(max=number - 1))
    small = TimeGrid(
        grid.observed_times.gather(-1, index), mask=place < taken, start=grid.times[..., 0], end=grid.times[..., -1]
    )
    rows = index.expand(*values.shape[:-2], index.shape[-1])
    shown = small.mask if mask is None else _take(mask, rows) if mask.dim() == values.dim() else mask.gather(-1, rows)
    if mask is not None:
        shown = shown & (small.mask.unsqueeze(-1) if mask.dim() == values.dim() else small.mask)
    return ObservationSample(small, _take(values, rows), shown, (number / taken).squeeze(-1).to(values.dtype))


def _check_series(grid: object, values: Tensor, mask: Tensor | None) -> None:
    if not isinstance(grid, TimeGrid):
        msg = f"`grid` must be a TimeGrid, received {type(grid).__name__}. Build TimeGrid(times) first."
        raise TypeError(msg)
    check_floating(values=values)
    count = grid.mask.shape[-1]
    batch = grid.batch_shape
    own = values.shape[:-2]
    aligned = zip(reversed(batch), reversed(own), strict=False)
    fits = len(batch) <= len(own) and all(a in (1, b) for a, b in aligned)
    if values.dim() < 2 or values.shape[-2] != count or not fits:
        msg = (
            f"`values` must have shape (*batch, {count}, O) on this grid of batch shape {tuple(batch)}, received "
            f"{tuple(values.shape)}."
        )
        raise ValueError(msg)
    if mask is not None:
        check_observed(mask, values)


def _take(table: Tensor, rows: Tensor) -> Tensor:
    return table.gather(-2, rows.unsqueeze(-1).expand(*rows.shape, table.shape[-1]))


class WindowBatch(NamedTuple):
    """Windows of one series as a batch of B short series.

    Attributes:
        grid: grid of the windows, batch ``(B,)``, with W + 1 observation times each; no solver steps between them.
        values: ``(B, W + 1, O)``, 0 where not observed.
        mask: what a window scores, ``(B, W + 1, O)``. The last time of a window is scored by the next one.
        weights: ``(B,)``, for ``poutine.scale`` around model and guide; means over draws are then sums over the series.
        starts: True for the window that begins the series, ``(B,)``, for `MarginalPath`.
        context_grid: grid of the windows with their margins, for the encoder.
        context_values: ``(B, C, O)``.
        context_mask: everything observed there, ``(B, C, O)``.
    """

    grid: TimeGrid
    values: Tensor
    mask: Tensor
    weights: Tensor
    starts: Tensor
    context_grid: TimeGrid
    context_values: Tensor
    context_mask: Tensor


class TimeWindows:
    r"""Partition of a series into windows of W gaps between observations, drawn at random with weights.

    The window that begins the series is in every draw with weight 1, since the law of the first state counts there;
    the others are drawn uniformly with weight ``(J - 1) / (B - 1)`` for J windows in all. So weighted losses have the
    loss of the whole series as their mean, if the encoder sees no further than `margin` observations: use
    `LocalMarginals` and its `reach`. Times at which nothing is observed are dropped. A draw costs O(B (W + margin)).

    Args:
        times: ``(N,)``, increasing.
        values: ``(N, O)``; NaN where not observed.
        size: number W of gaps in a window.
        margin: observations on either side that the encoder sees beside the window.

    Raises:
        TypeError: if times or values are no floating-point tensors.
        ValueError: if shapes do not fit, times do not increase, fewer than two are left, or a number is out of range.

    Example:
        >>> windows = TimeWindows(torch.arange(100.0), torch.randn(100, 2), size=10, margin=4)
        >>> batch = windows.draw(3)
        >>> batch.values.shape, batch.context_values.shape, batch.weights
        (torch.Size([3, 11, 2]), torch.Size([3, 19, 2]), tensor([1.0000, 4.5000, 4.5000]))
    """

    def __init__(self, times: Tensor, values: Tensor, *, size: int, margin: int) -> None:
        check_floating(times=times, values=values)
        if times.dim() != 1 or values.dim() != 2 or len(values) != len(times):
            msg = (
                f"`times` (N,) and `values` (N, O) must fit together, received {tuple(times.shape)} and "
                f"{tuple(values.shape)}. Windows are cut from one series."
            )
            raise ValueError(msg)
        for name, value, least in (("size", size, 1), ("margin", margin, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                msg = f"`{name}` must be an integer >= {least}, received {value!r}."
                raise ValueError(msg)
        keep = ~values.isnan().all(-1)
        self.times, self.values = times[keep], values[keep]
        if len(self.times) < 2 or not bool((self.times.diff() > 0).all()):
            msg = (
                f"`times` must be two or more increasing times at which something is observed; {len(self.times)} of "
                f"{len(times)} are observed. Sort them and merge equal ones."
            )
            raise ValueError(msg)
        self.size, self.margin = size, margin

    def __len__(self) -> int:
        """Number J of windows in the series."""
        return -(-(len(self.times) - 1) // self.size)

    def draw(self, count: int) -> WindowBatch:
        """Random windows of the series, the first one among them.

        Args:
            count: number B of windows; all of them, each with weight 1, if there are no more.

        Raises:
            TypeError: if `count` is no whole number.
            ValueError: if `count` is less than 2 and there are more windows than that.
        """
        check_counts(count=count)
        total = len(self)
        if total <= count:
            return self.at(torch.arange(total))
        if count < 2:
            msg = f"`count` must be at least 2, the first window and a random one; received {count!r}."
            raise ValueError(msg)
        chosen = torch.cat([torch.zeros(1, dtype=torch.long), torch.randint(1, total, (count - 1,))])
        weights = torch.full((count,), (total - 1) / (count - 1), dtype=self.times.dtype)
        weights[0] = 1.0
        return self.at(chosen, weights.to(self.times.device))

    def at(self, windows: Tensor, weights: Tensor | None = None) -> WindowBatch:
        """Windows of given numbers ``(B,)``, with given weights; 1 if None."""
        begin = (windows * self.size).unsqueeze(-1)
        final = len(self.times) - 1
        end = (begin + self.size).clamp(max=final)
        index = begin + torch.arange(self.size + 1)
        # the end of a window belongs to the next one, except at the end of the series
        scored = (index < end) | ((index == end) & (end == final))
        times, values, observed = self._rows(index.clamp(max=final))
        # a trailing repeat of the last time is padding
        grid = TimeGrid(torch.where(index <= end, times, self.times[end]))
        around = begin - self.margin + torch.arange(self.size + 1 + 2 * self.margin)
        known = (around >= 0) & (around <= (end + self.margin).clamp(max=final))
        context_times, context, seen = self._rows(around.clamp(0, final))
        weights = torch.ones(len(windows), dtype=self.times.dtype) if weights is None else weights
        return WindowBatch(
            grid,
            values,
            observed & scored.unsqueeze(-1),
            weights,
            windows == 0,
            TimeGrid(context_times, mask=known),
            context,
            seen & known.unsqueeze(-1),
        )

    def _rows(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values = self.values[index]
        observed = ~values.isnan()
        return self.times[index], torch.where(observed, values, torch.zeros_like(values)), observed
