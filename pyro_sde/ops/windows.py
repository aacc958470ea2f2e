"""Windows around the observations of each series: where a fine path is simulated, and where it is skipped."""

from __future__ import annotations

import torch
from torch import Tensor

from .grid import TimeGrid

__all__ = ["Windows", "gather_rows"]


class Windows:
    r"""Union of intervals of a coarse grid, on which a fine path lives; different for each series.

    Windows begin and end at coarse grid points (given times are moved outwards to them); those that overlap or touch
    are merged. Inside, every coarse step :math:`H` is cut into `fine_steps` equal steps :math:`h = H / n`. The rows of
    a fine path are the fine grid points of the first window, then of the second, and so on; the step from the last row
    of a window to the first row of the next one is a *gap*. A series with fewer rows is padded by its last row. Cost:
    O(batch x K n) once.

    Args:
        grid: the coarse grid, which contains every observation time.
        starts: first times of the windows, ``(*batch, J)`` or ``(J,)``, inside the grid, in any order.
        ends: last times of the windows, of the same shape. A series with fewer windows repeats one.
        fine_steps: n, fine steps per coarse step, ``>= 1``.

    Attributes:
        coarse: the coarse grid, with the batch shape of the windows.
        fine_steps: n.
        grid: `TimeGrid` of the R rows: times ``(*batch, R)``; a gap is one long step of it.
        coarse_index: coarse step that holds the fine step after each row, ``(*batch, R - 1)``, long.
        active: fine steps inside windows, True; gaps and padding, False; ``(*batch, R - 1)``.
        gap_starts: coarse grid points where gaps begin, ``(*batch, G)``, long. Entry 0 is the gap before the first
            window, and others of a series with fewer gaps have length 0.
        gap_ends: coarse grid points where gaps end, ``(*batch, G)``.
        gap_rows: step of the rows that is the gap, ``(*batch, G)``; R - 1 where there is none.
        observed_index: row of each observation, ``(*batch, N)``.

    Raises:
        ValueError: if a window is empty or outside the grid, or an observation is in no window.

    Example:
        >>> grid = TimeGrid(torch.tensor([0.0, 1.0, 9.0, 10.0]), max_step=0.5)
        >>> windows = Windows.around(grid, before=0.5, after=0.0, fine_steps=5)
        >>> windows.grid.num_steps, grid.refine(5).num_steps, round(float(windows.skipped), 2)
        (18, 100, 0.85)
    """

    def __init__(self, grid: TimeGrid, starts: Tensor, ends: Tensor, *, fine_steps: int = 1) -> None:
        _check_fine_steps(fine_steps)
        times = grid.times.detach()
        starts, ends = (torch.as_tensor(value, dtype=times.dtype, device=times.device) for value in (starts, ends))
        _check_intervals(starts, ends, grid)
        batch = torch.broadcast_shapes(starts.shape[:-1], grid.batch_shape)
        times = times.expand(*batch, -1).contiguous()
        slack = 4 * torch.finfo(times.dtype).eps * times.abs().amax(-1, keepdim=True)
        starts, ends = (value.expand(*batch, -1) for value in (starts, ends))
        last = (grid.steps.detach() > 0).sum(-1, keepdim=True).expand(*batch, 1)
        begin = (torch.searchsorted(times, (starts + slack).contiguous(), right=True) - 1).clamp(min=0).minimum(last)
        end = torch.searchsorted(times, (ends - slack).contiguous()).minimum(last)
        marks = torch.zeros(*batch, grid.num_steps * fine_steps + 2, dtype=torch.long, device=times.device)
        one = torch.ones_like(begin)
        marks.scatter_add_(-1, begin * fine_steps, one).scatter_add_(-1, end * fine_steps + 1, -one)
        self._build(grid.expand(batch), marks.cumsum(-1)[..., :-1] > 0, fine_steps)

    @classmethod
    def around(cls, grid: TimeGrid, *, before: float, after: float, fine_steps: int = 1) -> Windows:
        """Windows from `before` ahead of every valid observation of a series until `after` behind it.

        Args:
            grid: the coarse grid.
            before: time from the begin of a window to its first observation at least, ``>= 0``: time to forget how the
                window was entered.
            after: time that a window lasts behind its last observation at least, ``>= 0``.
            fine_steps: fine steps per coarse step.

        Raises:
            ValueError: if `before` or `after` is negative or not finite, or `fine_steps` no positive integer.
        """
        for name, value in (("before", before), ("after", after)):
            if not 0 <= value < float("inf"):
                msg = f"`{name}` must be a finite time >= 0, received {value}."
                raise ValueError(msg)
        times = grid.times.detach()
        low, high = times[..., :1], times[..., -1:]
        seen = grid.observed_times.detach()  # padded entries repeat a valid time: the same window again
        starts = torch.minimum(torch.maximum(seen - before, low), high)
        ends = torch.maximum(torch.minimum(seen + after, high), low)
        return cls(grid, starts, ends, fine_steps=fine_steps)

    def _build(self, coarse: TimeGrid, inside: Tensor, fine_steps: int) -> None:
        """Everything from the fine points ``(*batch, K n + 1)`` that are inside."""
        self.coarse, self.fine_steps, self._inside = coarse, fine_steps, inside
        counts = inside.sum(-1, keepdim=True)
        width = int(counts.max())
        order = torch.argsort((~inside).to(torch.uint8), dim=-1, stable=True)[..., :width]
        place = torch.arange(width, device=inside.device).expand(order.shape)
        points = torch.where(place < counts, order, order.gather(-1, counts - 1))  # fine grid point of every row
        self._points = points
        self._set_rows(points)
        jump = points.diff(dim=-1)
        self.active = jump == 1
        self._set_gaps(points, jump > 1)
        self._set_observed(points)

    def _set_rows(self, points: Tensor) -> None:
        times = self.coarse.refine(self.fine_steps).times
        self.grid = TimeGrid(times.expand(*points.shape[:-1], -1).gather(-1, points))
        self.grid._build(self.grid._counts, points.shape[-1] - 1)  # a last row may be padding for every series
        last = max(self.coarse.num_steps - 1, 0)
        self.coarse_index = (points[..., :-1] // self.fine_steps).clamp(max=last)

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
            where = missing.nonzero()[0].tolist()
            time = self.coarse.observed_times.expand(missing.shape)[tuple(where)].item()
            series = f" of series {where[:-1]}" if where[:-1] else ""
            msg = (
                f"the windows must cover every observation, but the one at time {time:g}{series} is in none. Use "
                "Windows.around(grid, before=..., after=...), or add a window."
            )
            raise ValueError(msg)
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
    def skipped(self) -> Tensor:
        """Fraction of the fine steps of the whole time that is not simulated, ``(*batch)``."""
        total = (self.coarse.steps.detach() > 0).sum(-1) * self.fine_steps
        simulated = self.active.sum(-1)
        return 1 - simulated.to(self.grid.times.dtype) / total.clamp(min=1)

    def full(self) -> Windows:
        """One window over the whole time, with the steps of these windows marked: its `active` stays theirs.

        For the path law that simulates the gaps too. It has more rows than these windows.
        """
        whole = Windows.__new__(Windows)
        whole.coarse, whole.fine_steps = self.coarse, self.fine_steps
        total = (self.coarse.steps.detach() > 0).sum(-1, keepdim=True) * self.fine_steps
        rows = self.coarse.num_steps * self.fine_steps + 1
        rows += int(rows == self._points.shape[-1])  # `observed` tells the two kinds of path apart by their rows
        point = torch.arange(rows, device=total.device).expand(*self.batch_shape, rows)
        points = point.minimum(total)
        whole._inside = point[..., : self._inside.shape[-1]] <= total
        whole._points = points
        whole._set_rows(points)
        steps = torch.zeros(*self.batch_shape, rows, dtype=torch.bool, device=points.device)  # one spare entry
        steps.scatter_(-1, torch.where(self.active, self._points[..., :-1], rows - 1), True)
        whole.active = steps[..., :-1] & (points.diff(dim=-1) == 1)
        whole._set_gaps(points, torch.zeros_like(whole.active))
        whole._set_observed(points)
        return whole

    def rows_in(self, whole: Windows) -> Tensor:
        """Step of `whole` (from `full`) that is each active step of these windows; its number of steps elsewhere."""
        none = whole.active.shape[-1]
        return torch.where(self.active, self._points[..., :-1], none)

    def observed(self, path: Tensor) -> Tensor:
        """Fine states at the observation times, of a path on these windows or on the whole time.

        Args:
            path: ``(..., R, D)``; extra dimensions on the left are allowed.

        Returns:
            ``(..., N, D)``; padded entries hold the last valid state.

        Raises:
            ValueError: if `path` has another number of rows.
        """
        rows = self._points.shape[-1]
        if path.dim() >= 2 and path.shape[-2] == rows:
            return gather_rows(path, self.observed_index)
        full = self.coarse.num_steps * self.fine_steps + 1
        if path.dim() < 2 or path.shape[-2] != full + int(full == rows):
            msg = (
                f"`path` must have shape (..., {rows}, D), one row for every fine grid point inside the windows; "
                f"received {tuple(path.shape)}. Pass the value of the site that uses these windows."
            )
            raise ValueError(msg)
        return gather_rows(path, (self.coarse.observed_index * self.fine_steps).expand(self.observed_index.shape))

    def __getitem__(self, index: object) -> Windows:
        """Windows of some series of the batch, such as the indices of a subsampled plate."""
        chosen = Windows.__new__(Windows)
        coarse = self.coarse[index]
        series = torch.arange(self.batch_shape.numel(), device=self._points.device).reshape(self.batch_shape)
        inside = self._inside.flatten(end_dim=-2)[series[index]]  # type: ignore[index]
        chosen._build(coarse, inside, self.fine_steps)
        return chosen

    def __repr__(self) -> str:
        """Shapes, for error messages."""
        low = float(self.skipped.min())
        return (
            f"Windows(batch_shape={tuple(self.batch_shape)}, rows={self._points.shape[-1]}, gaps={self.num_gaps}, "
            f"fine_steps={self.fine_steps}, skipped>={low:.3g})"
        )


def gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """Rows of ``(..., K, C)`` at ``(*batch, R)``, batch dimensions broadcast; ``(..., R, C)``.

    Raises:
        ValueError: if they do not broadcast.
    """
    try:
        batch = torch.broadcast_shapes(values.shape[:-2], index.shape[:-1])
    except RuntimeError as error:
        batches = f"{tuple(values.shape[:-2])} and {tuple(index.shape[:-1])}"
        msg = f"the batch dimensions of a path and of its windows must broadcast, received {batches}."
        raise ValueError(msg) from error
    index = index.unsqueeze(-1).expand(*batch, index.shape[-1], values.shape[-1])
    return values.expand(*batch, *values.shape[-2:]).gather(-2, index)


def _check_fine_steps(fine_steps: int) -> None:
    if not isinstance(fine_steps, int) or isinstance(fine_steps, bool) or fine_steps < 1:
        msg = f"`fine_steps` must be an integer >= 1, the fine steps per coarse step; received {fine_steps!r}."
        raise ValueError(msg)


def _check_intervals(starts: Tensor, ends: Tensor, grid: TimeGrid) -> None:
    if starts.dim() == 0 or starts.shape != ends.shape or not starts.shape[-1]:
        msg = (
            f"`starts` and `ends` must have one shape (*batch, J), J >= 1; received {tuple(starts.shape)} and "
            f"{tuple(ends.shape)}."
        )
        raise ValueError(msg)
    times = grid.times.detach()
    low, high = times[..., :1], times[..., -1:]
    slack = 16 * torch.finfo(times.dtype).eps * times.abs().amax()
    bad = ~((low - slack <= starts) & (starts <= ends) & (ends <= high + slack))
    if bad.any():
        where = tuple(bad.nonzero()[0].tolist())
        first, last = (value.expand(bad.shape)[where].item() for value in (starts, ends))
        msg = (
            f"every window must satisfy grid start <= start <= end <= grid end; window {list(where)} is [{first:g}, "
            f"{last:g}] and the grid covers [{float(low.min()):g}, {float(high.max()):g}]."
        )
        raise ValueError(msg)
