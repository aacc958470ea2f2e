"""Observed series and query times on one solver grid."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..data.series import TimeSeries
from ..ops._grid_times import as_tensor
from ..ops.grid import TimeGrid

__all__ = [
    "Alignment",
    "Data",
    "GridThrough",
    "align",
    "as_series",
    "check_not_before",
    "grid_through",
    "last_times",
    "query_times",
    "states_at",
]

# What the methods of a model take: a record, or (times, values) or (times, values, mask).
Data = TimeSeries | tuple[Tensor, ...]


class GridThrough(NamedTuple):
    """A grid through times given in any order, with repeats.

    Attributes:
        grid: the solver grid; entry i of its observations is entry ``order[..., i]`` of the times.
        order: sorting permutation, ``(*batch, Q)``.
        position: grid point of every time as it was given, ``(*batch, Q)``.
    """

    grid: TimeGrid
    order: Tensor
    position: Tensor


class Alignment(NamedTuple):
    """Observed series and query times on one grid.

    Attributes:
        grid: grid of the times of the series, each row ending at its last observation, and of the queries.
        values: observations at ``grid.observed_times``, ``(B, N + Q, O)``; 0 where not observed.
        mask: True = observed, ``(B, N + Q, O)``.
        query_position: grid point of every query, ``(B, Q)``.
        last_time: time of the last observation, ``(B, 1)``.
    """

    grid: TimeGrid
    values: Tensor
    mask: Tensor
    query_position: Tensor
    last_time: Tensor

    def select(self, index: Tensor) -> Alignment:
        """Some of the series, by their indices; the grid keeps its number of steps."""
        rows = (tensor[index] for tensor in (self.values, self.mask, self.query_position, self.last_time))
        return Alignment(self.grid[index], *rows)


def as_series(data: Data, like: Tensor) -> TimeSeries:
    """The data as a record in the dtype and on the device of `like`.

    Args:
        data: a `TimeSeries`; or times ``(N,)`` or ``(B, N)``, values ``(B, N, O)`` and, unless NaN marks what is
            missing, a mask ``(B, N)`` or ``(B, N, O)``.
        like: a parameter of the model, of any shape.

    Raises:
        TypeError: if `data` is neither.
        ValueError: if the tensors do not make a record (see `TimeSeries`).
    """
    if isinstance(data, tuple) and len(data) in (2, 3) and all(isinstance(part, Tensor) for part in data):
        times, values, *rest = data
        if values.dim() != 3 or not values.is_floating_point():
            msg = (
                f"`data` must have values (B, N, O) of floating-point numbers, received {values.dtype} of shape "
                f"{tuple(values.shape)}."
            )
            raise ValueError(msg)
        mask = rest[0] if rest else ~values.isnan()
        if mask.shape == values.shape[:-1]:
            mask = mask.unsqueeze(-1).expand_as(values)
        if times.dim() == 1:
            times = times.expand(len(values), -1)
        data = TimeSeries("data", times.to(values.dtype), values, mask)
    if not isinstance(data, TimeSeries):
        msg = (
            "`data` must be a TimeSeries, or tensors (times, values) or (times, values, mask), received "
            f"{type(data).__name__}."
        )
        raise TypeError(msg)
    return data.to(like.dtype, like.device)


def grid_through(
    times: Tensor,
    max_step: float | None,
    *,
    start: float | Tensor | None = None,
    first: Tensor | None = None,
) -> GridThrough:
    """Grid through times in any order; repeated times share a grid point.

    Args:
        times: ``(*batch, Q)``, finite.
        max_step: largest solver step.
        start: first grid time, not after any of `times`; the earliest of them if None.
        first: bool ``(*batch, Q)``: entries that are kept as the valid one among equal times.

    Raises:
        ValueError: if a time lies before `start`.
    """
    order = torch.arange(times.shape[-1], device=times.device).expand(times.shape)
    if first is not None:
        order = (~first).to(torch.uint8).argsort(dim=-1, stable=True)
    order = order.gather(-1, times.detach().gather(-1, order).argsort(dim=-1, stable=True))
    times = times.gather(-1, order)
    distinct = torch.ones_like(times, dtype=torch.bool)
    distinct[..., 1:] = times.diff(dim=-1) > 0
    grid = TimeGrid(times, max_step=max_step, mask=distinct, start=start)
    return GridThrough(grid, order, grid.observed_index.gather(-1, order.argsort(-1)))


def align(series: TimeSeries, max_step: float | None, queries: Tensor | None = None) -> Alignment:
    """Series and queries on one grid per series, from its first time to its last observation.

    Later times of the series carry no information, and take no steps; queries beyond the last observation are
    answered at it.

    Args:
        series: B series.
        max_step: largest solver step.
        queries: times at which states are wanted, ``(B, Q)``, in any order; none if None.
    """
    last = last_times(series)
    times, values, mask = series.times, series.filled(), series.mask
    if queries is not None:
        count = queries.shape[-1]
        times = torch.cat([times, queries], -1)
        values = torch.nn.functional.pad(values, (0, 0, 0, count))
        mask = torch.nn.functional.pad(mask, (0, 0, 0, count))
    grid, order, position = grid_through(torch.minimum(times, last), max_step, first=mask.any(-1))
    rows = order.unsqueeze(-1).expand(values.shape)
    return Alignment(grid, values.gather(-2, rows), mask.gather(-2, rows), position[:, series.times.shape[-1] :], last)


def last_times(series: TimeSeries) -> Tensor:
    """Time of the last observation of every series, ``(B, 1)``."""
    return torch.where(series.valid_times, series.times, -torch.inf).amax(-1, keepdim=True)


def query_times(times: Tensor, like: Tensor, batch: int | None = None) -> Tensor:
    """Query times in the dtype of `like`: ``(B, Q)`` for B series, ``(Q,)`` or ``(B, Q)`` if `batch` is None.

    Raises:
        ValueError: if they have another shape, or are not finite.
    """
    times = as_tensor(times, "times", device=like.device).to(like.dtype)
    fits = times.dim() == 1 or (times.dim() == 2 and batch in (None, times.shape[0]))
    if not fits or times.numel() == 0:
        rows = "B" if batch is None else batch
        msg = f"`times` must have shape (Q,) or ({rows}, Q) with Q >= 1, received {tuple(times.shape)}."
        raise ValueError(msg)
    if not times.isfinite().all():
        msg = "`times` must be finite. Repeat a time instead of padding with NaN."
        raise ValueError(msg)
    return times if batch is None else times.expand(batch, -1)


def check_not_before(queries: Tensor, earliest: Tensor, what: str) -> None:
    """Raise ValueError if a query ``(B, Q)`` lies before the time ``(B, 1)`` called `what` of its series."""
    early = queries < earliest
    if early.any():
        series, position = early.nonzero()[0].tolist()
        msg = (
            f"`times` must not lie before {what} of their series: {queries[series, position].item():g} is before "
            f"{earliest[series, 0].item():g} in series {series}."
        )
        raise ValueError(msg)


def states_at(path: Tensor, position: Tensor) -> Tensor:
    """States of a path at grid points: ``(..., *batch, K + 1, D), (*batch, Q) -> (..., *batch, Q, D)``."""
    index = position.unsqueeze(-1).expand(*path.shape[:-2], position.shape[-1], path.shape[-1])
    return path.gather(-2, index)
