"""Checks of the arguments of windows, and what their messages say."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from ._arguments import is_finite
from .grid import TimeGrid

__all__ = ["check_fine_steps", "check_intervals", "check_margins", "check_within", "refuse_uncovered", "refuse_whole"]


def check_fine_steps(fine_steps: int) -> None:
    """Raise ValueError unless it is a positive integer."""
    if not isinstance(fine_steps, int) or isinstance(fine_steps, bool) or fine_steps < 1:
        msg = f"`fine_steps` must be an integer >= 1, the fine steps per coarse step; received {fine_steps!r}."
        raise ValueError(msg)


def check_intervals(starts: Tensor, ends: Tensor, grid: TimeGrid) -> None:
    """Raise ValueError unless the windows are intervals inside the grid."""
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
            f"every window must satisfy grid start <= `starts` <= `ends` <= grid end; window {list(where)} is "
            f"[{first:g}, {last:g}] and the grid covers [{float(low.min()):g}, {float(high.max()):g}]."
        )
        raise ValueError(msg)


def check_margins(before: float, after: float) -> None:
    """Raise ValueError unless both are finite times >= 0."""
    for name, value in (("before", before), ("after", after)):
        if not is_finite(value) or value < 0:
            msg = f"`{name}` must be a finite time >= 0, received {value!r}."
            raise ValueError(msg)


def refuse_uncovered(missing: Tensor, times: Tensor) -> NoReturn:
    """Raise ValueError that names the first observation which is in no window."""
    where = missing.nonzero()[0].tolist()
    time = times.expand(missing.shape)[tuple(where)].item()
    series = f" of series {where[:-1]}" if where[:-1] else ""
    msg = (
        f"the windows must cover every observation, but the one at time {time:g}{series} is in none. Use "
        "Windows.around(grid, before=..., after=...), or add a window."
    )
    raise ValueError(msg)


def check_within(inside: Tensor, holes: Tensor, fine_steps: int) -> None:
    """Raise ValueError unless windows lie in those of the level above, and every one of those holds one of these.

    Args:
        inside: fine points inside these windows, ``(*batch, K n + 1)``.
        holes: steps of the coarse grid that are gaps of the level above, ``(*batch, K)``.
        fine_steps: n.
    """
    begin = inside[..., :-1].unflatten(-1, (-1, fine_steps))  # (*batch, K, n): both ends of the steps are inside
    cut = (begin & inside[..., 1:].unflatten(-1, (-1, fine_steps))).any(-1) & holes
    if fine_steps > 1 and bool(cut.any()):
        refuse_whole("reach beyond those of the level above")
    number = torch.cat([torch.zeros_like(holes[..., :1]), holes], -1).cumsum(-1)  # window above of every coarse point
    held = inside[..., ::fine_steps]
    found = torch.zeros(*holes.shape[:-1], holes.shape[-1] + 2, dtype=torch.bool, device=holes.device)
    found.scatter_(-1, torch.where(held, number, holes.shape[-1] + 1), True)
    count = holes.sum(-1, keepdim=True)
    wanted = torch.arange(found.shape[-1] - 1, device=holes.device) <= count
    if bool((wanted & ~found[..., :-1]).any()):
        refuse_whole("leave out a window of the level above")


def refuse_whole(what: str) -> NoReturn:
    """Raise ValueError: windows of a level and of the one above do not fit."""
    msg = (
        f"the windows of a level must lie inside those of the level above, at least one in each, but these {what}. "
        "Make the windows above longer, by their `before` and `after`, or these shorter."
    )
    raise ValueError(msg)
