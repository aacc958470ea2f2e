"""Rows, gaps and fillings of windows: everything that follows from the fine points inside them."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from ._window_checks import refuse_uncovered
from .grid import TimeGrid

__all__ = ["WindowLayout", "rows_grid"]


W = TypeVar("W", bound="WindowLayout")


class WindowLayout:
    """What `Windows` compute once; their docstring describes the attributes."""

    outer: WindowLayout | None

    def _build(
        self, coarse: TimeGrid, inside: Tensor, fine_steps: int, outer: WindowLayout | None = None, width: int = 0
    ) -> None:
        """Everything from the fine points ``(*batch, K n + 1)`` that are inside; at least `width` rows."""
        self.coarse, self.fine_steps, self.outer, self._inside = coarse, fine_steps, outer, inside
        self._versions: dict[int, WindowLayout] = {}
        counts = inside.sum(-1, keepdim=True)
        width = max(int(counts.max()), width)
        order = torch.argsort((~inside).to(torch.uint8), dim=-1, stable=True)
        place = torch.arange(width, device=inside.device).expand(*inside.shape[:-1], width)
        points = order.gather(-1, place.minimum(counts - 1))  # fine grid point of every row
        self._points = points
        whole = inside.new_zeros(*inside.shape[:-1], coarse.num_steps)
        self.holes = whole if outer is None else whole | ((outer.grid.steps.detach() > 0) & ~outer._simulated)
        self._set_rows(points)
        jump = points.diff(dim=-1)
        hole = self.holes.gather(-1, self.coarse_index) if self.holes.shape[-1] else jump > jump
        self.active = self._simulated = (jump == 1) & ~hole
        self._set_gaps(points, (jump > 1) | ((jump == 1) & hole))
        self._set_observed(points)

    def _set_rows(self, points: Tensor) -> None:
        times = self.coarse.refine(self.fine_steps).times
        self.grid = TimeGrid(times.expand(*points.shape[:-1], -1).gather(-1, points))
        self.grid._build(self.grid._counts, points.shape[-1] - 1)  # a last row may be padding for every series
        step, offset = points // self.fine_steps, points % self.fine_steps
        self.coarse_index = step[..., :-1].clamp(max=max(self.coarse.num_steps - 1, 0))
        self.coarse_rows = step
        self.slowest_index = self.coarse_index
        if self.outer is not None:
            slow = self.outer.slowest_index
            self.slowest_index = slow.expand(*step.shape[:-1], -1).gather(-1, self.coarse_index)
        above = step if self.outer is None else self.outer.fine_places.expand(*step.shape[:-1], -1).gather(-1, step)
        self.fine_places = above * self.fine_steps + offset  # the fine point of the whole time

    def _set_gaps(self, points: Tensor, gaps: Tensor) -> None:
        steps = gaps.shape[-1]
        count = int(gaps.sum(-1).max()) if steps else 0
        row = torch.arange(steps, device=points.device).expand(gaps.shape)
        found = torch.where(gaps, row, steps).sort(-1).values[..., :count]  # steps where there is none
        self.gap_rows = torch.cat([torch.full_like(points[..., :1], steps), found], -1)
        begin = points.gather(-1, found.clamp(max=points.shape[-1] - 1))
        end = points.gather(-1, (found + 1).clamp(max=points.shape[-1] - 1))
        self.gap_starts = torch.cat([torch.zeros_like(points[..., :1]), begin], -1) // self.fine_steps
        self.gap_ends = torch.cat([points[..., :1], end], -1) // self.fine_steps

    def _set_observed(self, points: Tensor) -> None:
        wanted = (self.coarse.observed_index * self.fine_steps).expand(*points.shape[:-1], -1).contiguous()
        found = torch.searchsorted(points.contiguous(), wanted).clamp(max=points.shape[-1] - 1)
        missing = points.gather(-1, found) != wanted
        if missing.any():
            refuse_uncovered(missing, self.coarse.observed_times)
        self.observed_index = found

    @property
    def batch_shape(self) -> torch.Size:
        """Batch shape of the windows."""
        return self.observed_index.shape[:-1]

    @property
    def num_gaps(self) -> int:
        """Number of gaps between windows, of the series that has most."""
        return self.gap_rows.shape[-1] - 1

    @property
    def num_fills(self) -> int:
        """Number of gaps, that before the first window included, at this level or above, of the series with most."""
        return self.num_gaps + int(self._late)

    @property
    def real_gaps(self) -> Tensor:
        """Gaps that a series has, ``(*batch, G)``; entry 0 also if the gap is of a level above."""
        late = self.fine_places[..., :1] > 0
        return torch.cat([late, (self.gap_ends > self.gap_starts)[..., 1:]], -1)

    @property
    def slowest(self) -> TimeGrid:
        """Grid of the slowest level."""
        return self.coarse if self.outer is None else self.outer.slowest

    @property
    def _late(self) -> bool:
        return bool((self.fine_places[..., 0] > 0).any())

    @property
    def most_rows(self) -> int:
        """Rows of `full`."""
        return self._widths[-1]

    @cached_property
    def _widths(self) -> list[int]:
        """Rows of these windows, and with one gap more filled at a time; increasing, so that they tell which it is."""
        last = self.fine_places.shape[-1] - 1
        gap = self.gap_rows[..., 1:]
        places = (self.fine_places.gather(-1, (gap + k).clamp(max=last)) for k in (0, 1))
        inner = (-next(places) + next(places) - 1).clamp(min=0)
        count = self._inside.sum(-1, keepdim=True)
        filled = torch.cat([count, self.fine_places[..., :1], inner], -1).cumsum(-1)
        filled = filled.reshape(-1, filled.shape[-1]).amax(0).tolist()
        widths = [int(count.max())]
        filled[-1] = int(self.total.max()) + 1  # the last one goes to the end of the grid
        for rows in filled[2 - int(self._late) :]:
            widths.append(max(rows, widths[-1] + 1))
        return widths

    @property
    def times_seen(self) -> Tensor:
        """Time that coefficients see during each coarse step, ``(*batch, K)``: the start of a step of the slowest grid.

        It is held as the slowest states are, so that a gap is a product of equal steps.
        """
        times = self.slowest.times[..., :-1]
        if self.outer is None:
            return times
        return times.expand(*self.outer.slowest_index.shape[:-1], -1).gather(-1, self.outer.slowest_index)

    @property
    def total(self) -> Tensor:
        """Number of fine steps of the whole time, ``(*batch)``."""
        above = (self.coarse.steps.detach() > 0).sum(-1) if self.outer is None else self.outer.total
        return above.expand(self.batch_shape) * self.fine_steps

    @property
    def skipped(self) -> Tensor:
        """Fraction of the fine steps of the whole time that is not simulated, ``(*batch)``."""
        simulated = self.active.sum(-1)
        return 1 - simulated.to(self.grid.times.dtype) / self.total.clamp(min=1)

    def full(self: W, fills: int | None = None) -> W:
        """Windows that cover gaps too, with the steps of these windows marked: their `active` stays the same.

        For the path law that simulates the gaps. They have more rows than these windows, the more, the more gaps.

        Args:
            fills: number of gaps that are covered, the first ones of every series, at this level and above; all of
                them, and hence the whole time, if None.
        """
        fills = self.num_fills if fills is None else min(fills, self.num_fills)
        if fills <= 0:
            return self
        if fills not in self._versions:
            self._versions[fills] = self._filled(fills)
        return self._versions[fills]  # type: ignore[return-value]

    def _filled(self: W, fills: int) -> W:
        source = self.over(fills)
        entries = slice(0, fills + int(not self._late))
        begin, end = (source.__dict__[name][..., entries] for name in ("gap_starts", "gap_ends"))
        marks = torch.zeros_like(source._inside, dtype=torch.long)
        one = torch.ones_like(begin)
        marks.scatter_add_(-1, begin * self.fine_steps, one).scatter_add_(-1, end * self.fine_steps, -one)
        inside = source._inside | (marks.cumsum(-1) > 0)
        if fills == self.num_fills:
            ends = (source.coarse.steps.detach() > 0).sum(-1, keepdim=True) * self.fine_steps
            inside = torch.arange(inside.shape[-1], device=ends.device) <= ends
        filled = type(self).__new__(type(self))
        filled._build(source.coarse, inside, self.fine_steps, source.outer, self._widths[fills])
        steps = torch.zeros(*self.batch_shape, filled._points.shape[-1], dtype=torch.bool, device=inside.device)
        place = self.rows_in(filled)
        steps.scatter_(-1, torch.where(self.active, place, steps.shape[-1] - 1), True)  # one spare entry
        filled.active = steps[..., :-1] & filled._simulated
        return filled

    def over(self: W, fills: int) -> W:
        """The same windows on the rows of the level above that cover its first gaps, see `full`."""
        if self.outer is None or self.outer.full(fills) is self.outer:
            return self
        outer = self.outer.full(fills)
        moved = rows_grid(outer)
        rows = outer.fine_places.shape[-1]
        home = torch.searchsorted(outer.fine_places.contiguous(), self.outer.fine_places.contiguous()).clamp(
            max=rows - 1
        )
        points = torch.arange(self._inside.shape[-1], device=home.device)
        step, offset = points // self.fine_steps, points % self.fine_steps
        place = home.expand(*self.batch_shape, -1)[..., step] * self.fine_steps + offset
        size = moved.num_steps * self.fine_steps + 1
        inside = torch.zeros(*self.batch_shape, size + 1, dtype=torch.bool, device=home.device)
        inside.scatter_(-1, torch.where(self._inside, place, size), True)
        shifted = type(self).__new__(type(self))
        shifted._build(moved.expand(self.batch_shape), inside[..., :-1], self.fine_steps, outer, self._points.shape[-1])
        return shifted

    def places(self, coarse_points: Tensor) -> Tensor:
        """Row of `full` that is each of some coarse grid points, ``(*batch, G)``."""
        if self.outer is None:
            return coarse_points * self.fine_steps
        return self.outer.fine_places.expand(*coarse_points.shape[:-1], -1).gather(-1, coarse_points) * self.fine_steps

    def rows_in(self, filled: WindowLayout) -> Tensor:
        """Step of `filled` (from `full`) that is each step of these windows; its number of steps where it is none."""
        there = filled.fine_places.contiguous()
        home = torch.searchsorted(there, self.fine_places.contiguous()).clamp(max=there.shape[-1] - 1)
        return torch.where(home.diff(dim=-1) == 1, home[..., :-1], there.shape[-1] - 1)

    def fills_of(self, path: Tensor) -> int:
        """Number of gaps that a path ``(..., R, D)`` covers, by its rows: those of ``full(fills)``.

        Raises:
            ValueError: if `path` has another number of rows.
        """
        rows = path.shape[-2] if path.dim() >= 2 else -1
        if rows not in self._widths:
            msg = (
                f"`path` must have shape (..., {self._points.shape[-1]}, D), one row for every fine grid point inside "
                f"the windows; received {tuple(path.shape)}. Pass the value of the site that uses these windows."
            )
            raise ValueError(msg)
        return self._widths.index(rows)

    def __getitem__(self: W, index: object) -> W:
        """Windows of some series of the batch, such as the indices of a subsampled plate; `outer` is chosen alike."""
        chosen = type(self).__new__(type(self))
        series = torch.arange(self.batch_shape.numel(), device=self._points.device).reshape(self.batch_shape)
        inside = self._inside.flatten(end_dim=-2)[series[index]]  # type: ignore[index]
        if self.outer is None:
            chosen._build(self.coarse[index], inside, self.fine_steps)
            return chosen
        outer = self.outer[index]  # may have fewer rows
        rows = rows_grid(outer)
        chosen._build(rows, inside[..., : rows.num_steps * self.fine_steps + 1], self.fine_steps, outer)
        return chosen


def rows_grid(windows: WindowLayout) -> TimeGrid:
    """The rows of windows as a grid with their observations."""
    grid = copy.copy(windows.grid)
    grid.observed_times, grid.mask = windows.coarse.observed_times, windows.coarse.mask
    grid._places = windows.observed_index
    grid._build(grid._counts, windows.grid.num_steps)
    return grid
