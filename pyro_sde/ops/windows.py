"""Windows around the observations of each series: where a fine path is simulated, and where it is skipped."""

from __future__ import annotations

import torch
from torch import Tensor

from ._grid_times import as_tensor
from ._window_checks import check_fine_steps, check_intervals, check_margins, check_within
from ._window_layout import WindowLayout, rows_grid
from .grid import TimeGrid

__all__ = ["Windows", "gather_rows"]


class Windows(WindowLayout):
    r"""Union of intervals of a coarse grid, on which a fine path lives; different for each series.

    Windows begin and end at coarse grid points (given times are moved outwards to them); those that overlap or touch
    are merged. Inside, every coarse step :math:`H` is cut into n = `fine_steps` equal steps :math:`H / n`. The rows of
    a fine path are the fine grid points of the first window, then of the second, and so on; the step from the last row
    of a window to the first row of the next one is a *gap*. A series with fewer rows is padded by its last row. Cost:
    O(batch x K n) once.

    The rows of windows are the coarse grid of a still finer level, see `within`.

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
        coarse_rows: coarse grid point at or before each row, ``(*batch, R)``.
        fine_places: row of `full` that is each row, ``(*batch, R)``.
        slowest_index: as `coarse_index`, for the grid of the slowest level.
        active: fine steps inside windows, True; gaps and padding, False; ``(*batch, R - 1)``.
        gap_starts: coarse grid points where gaps begin, ``(*batch, G)``, long. Entry 0 is the gap before the first
            window, and others of a series with fewer gaps have length 0.
        gap_ends: coarse grid points where gaps end, ``(*batch, G)``.
        gap_rows: step of the rows that is the gap, ``(*batch, G)``; R - 1 where there is none.
        observed_index: row of each observation, ``(*batch, N)``.
        outer: windows of the level above, for those from `within`; None otherwise.
        holes: steps of the coarse grid that are gaps of the level above, ``(*batch, K)``, bool; no windows there.

    Raises:
        TypeError: if `grid` is no `TimeGrid`, or a time is no number.
        ValueError: if a window is empty or outside the grid, or an observation is in no window.

    Example:
        >>> grid = TimeGrid(torch.tensor([0.0, 1.0, 9.0, 10.0]), max_step=0.5)
        >>> windows = Windows.around(grid, before=0.5, after=0.0, fine_steps=5)
        >>> windows.grid.num_steps, grid.refine(5).num_steps, round(float(windows.skipped), 2)
        (18, 100, 0.85)
    """

    def __init__(self, grid: TimeGrid, starts: Tensor, ends: Tensor, *, fine_steps: int = 1) -> None:
        self._set_intervals(grid, starts, ends, fine_steps, None)

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
        return cls._around(grid, before, after, fine_steps, None)

    @classmethod
    def within(cls, outer: Windows, *, before: float, after: float, fine_steps: int) -> Windows:
        """Windows of a finer level, as `around`, inside those of the level above; each of those must hold one.

        Their coarse grid is the rows of `outer`, whose states the finer path is given. A gap of these windows may
        contain one of `outer`, where neither level is simulated.

        Args:
            outer: windows of the level above.
            before: see `around`; at most that of the level above, which begins at one of its coarse points.
            after: see `around`.
            fine_steps: fine steps per fine step of `outer`.

        Raises:
            ValueError: as `around`, and if the windows do not lie inside those of the level above.
        """
        if not isinstance(outer, Windows):
            msg = f"`outer` must be Windows, received {type(outer).__name__}."
            raise TypeError(msg)
        return cls._around(rows_grid(outer), before, after, fine_steps, outer)

    @classmethod
    def _around(cls, grid: TimeGrid, before: float, after: float, fine_steps: int, outer: Windows | None) -> Windows:
        check_margins(before, after)
        _check_grid(grid)
        times = grid.times.detach()
        low, high = times[..., :1], times[..., -1:]
        seen = grid.observed_times.detach()  # padded entries repeat a valid time: the same window again
        starts = torch.minimum(torch.maximum(seen - before, low), high)
        ends = torch.maximum(torch.minimum(seen + after, high), low)
        windows = cls.__new__(cls)
        windows._set_intervals(grid, starts, ends, fine_steps, outer)
        return windows

    def _set_intervals(
        self, grid: TimeGrid, starts: Tensor, ends: Tensor, fine_steps: int, outer: Windows | None
    ) -> None:
        check_fine_steps(fine_steps)
        _check_grid(grid)
        times = grid.times.detach()
        starts, ends = (
            as_tensor(value, name, dtype=times.dtype, device=times.device)
            for value, name in ((starts, "starts"), (ends, "ends"))
        )
        check_intervals(starts, ends, grid)
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
        inside = marks.cumsum(-1)[..., :-1] > 0
        self._build(grid.expand(batch), inside, fine_steps, outer)
        if outer is not None:
            check_within(inside, self.holes, fine_steps)

    def observed(self, path: Tensor) -> Tensor:
        """Fine states at the observation times, of a path on these windows, or one that covers gaps too.

        Args:
            path: ``(..., R, D)``; extra dimensions on the left are allowed.

        Returns:
            ``(..., N, D)``; padded entries hold the last valid state.

        Raises:
            ValueError: if `path` has another number of rows.
        """
        return gather_rows(path, self.full(self.fills_of(path)).observed_index)

    def __repr__(self) -> str:
        """Shapes, for error messages."""
        low = float(self.skipped.min())
        return (
            f"Windows(batch_shape={tuple(self.batch_shape)}, rows={self._points.shape[-1]}, gaps={self.num_gaps}, "
            f"fine_steps={self.fine_steps}, skipped>={low:.3g})"
        )


def _check_grid(grid: object) -> None:
    if not isinstance(grid, TimeGrid):
        msg = f"`grid` must be a TimeGrid, received {type(grid).__name__}. Build TimeGrid(times) first."
        raise TypeError(msg)


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
