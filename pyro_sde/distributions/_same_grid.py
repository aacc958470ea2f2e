"""Whether two path laws, a guide's and a model's, live on the same points of time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..ops.grid import TimeGrid
from ._markov_steps import moving_steps

__all__ = ["check_same_lengths", "check_same_times"]


def check_same_times(grid: TimeGrid, other: Distribution) -> None:
    """Raise ValueError if the grid of another law, where it has one, has other times than `grid`, beyond round-off."""
    theirs = getattr(other, "grid", None)
    if isinstance(theirs, TimeGrid) and not _same_times(grid.times.detach(), theirs.times.detach()):
        msg = (
            f"guide and model use different grids: guide {grid}, model {theirs}. Build one TimeGrid and pass it to "
            "both."
        )
        raise ValueError(msg)


def check_same_lengths(length: int, lengths: Tensor | None, other: Distribution) -> None:
    """Raise ValueError unless another law has as many points, as a whole and series by series.

    Args:
        length: number of points T.
        lengths: those of the series; None if all have T.
        other: a law with lengths, or with a grid, whose padding says the same.
    """
    if other.event_shape[0] != length:
        msg = f"guide and model have paths of different lengths: {length} and {other.event_shape[0]} points."
        raise ValueError(msg)
    ours, theirs = (_moving(one, length - 1) for one in (lengths, getattr(other, "lengths", None)))
    grid = getattr(other, "grid", None)
    if isinstance(grid, TimeGrid):
        theirs = grid.steps > 0
    known = theirs if ours is None else ours
    if known is None:
        return
    every = torch.ones(length - 1, dtype=torch.bool, device=known.device)
    ours, theirs = (every if one is None else one for one in (ours, theirs))
    if bool((ours != theirs).any()):
        msg = (
            "guide and model end their series at different points. Give the same `lengths` to both (an SDEPath has "
            "them in the padding of its grid)."
        )
        raise ValueError(msg)


def _moving(lengths: Tensor | None, num_steps: int) -> Tensor | None:
    return None if lengths is None else moving_steps(lengths, num_steps)


def _same_times(ours: Tensor, theirs: Tensor) -> bool:
    """Equal to round-off, where batch dimensions broadcast."""
    pairs = zip(reversed(ours.shape), reversed(theirs.shape), strict=False)
    if ours.shape[-1] != theirs.shape[-1] or any(a != b and 1 not in (a, b) for a, b in pairs):
        return False
    round_off = 16 * torch.finfo(ours.dtype).eps * float(ours.abs().max())
    return bool(((ours - theirs).abs() <= round_off).all())
