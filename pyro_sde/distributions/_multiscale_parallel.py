"""Windows that do not depend on each other run side by side: as many sequential steps as the longest one has."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.windows import Windows, gather_rows
from ..sde.base import SDE, Rows
from ..solvers.execution import Execution
from ..solvers.fixed import EulerMaruyama
from ..solvers.noise import GivenNoise
from ..solvers.solve import solve
from ._multiscale_moments import GapLaws, apply, factor, root

__all__ = ["WindowsApart", "gaps_forget", "simulate_apart"]


class WindowsApart(NamedTuple):
    """Rows of windows with a window axis on the far left, W windows of at most L steps."""

    step: Tensor  # (W, *batch, L): step of the rows that is each step of a window; some step where there is none
    moving: Tensor  # (W, *batch, L): whether there is one
    entry: Tensor  # (W - 1, *batch): the gap before a window, as a step of the rows
    back: Tensor  # (*batch, R): place of every row among the W (L + 1) states

    @classmethod
    def of(cls, windows: Windows) -> WindowsApart:
        """Layout of some windows, which have at least one step."""
        rows = windows.grid.num_steps + 1
        gap = windows.gap_rows[..., 1:]  # rows - 1 where there is none
        begin = torch.cat([torch.zeros_like(gap[..., :1]), gap + 1], -1)
        end = (
            (windows.grid.steps.detach() > 0).sum(-1, keepdim=True).expand(begin[..., :1].shape)
        )  # last row of a series
        first, last = begin.minimum(end), torch.cat([gap, end], -1).minimum(end)
        length = int((last - first).max().clamp(min=1))
        place = torch.arange(length, device=gap.device)
        row = torch.arange(rows, device=gap.device).expand(*windows.batch_shape, rows).minimum(end)
        window = (row.unsqueeze(-2) >= begin.unsqueeze(-1)).sum(-2) - 1
        back = window * (length + 1) + row - begin.gather(-1, window)
        first, last = (index.movedim(-1, 0).unsqueeze(-1) for index in (first, last))
        step = (first + place).minimum(last - 1).clamp(min=0)
        return cls(step, first + place < last, gap.clamp(max=rows - 2).movedim(-1, 0), back)


class _Part(NamedTuple):
    """Times ``(W, ..., L + 1)`` and steps ``(W, ..., L)`` of the windows."""

    times: Tensor
    steps: Tensor

    @property
    def num_steps(self) -> int:
        return self.steps.shape[-1]


def gaps_forget(gaps: GapLaws | None, windows: Windows) -> bool:
    """Whether the state before no gap is seen behind it, to round-off."""
    if gaps is None or torch._C._are_functorch_transforms_active() or torch.jit.is_tracing():
        return False
    matrix = gaps.matrix.detach().abs()
    real = windows.real_gaps[..., 1:].movedim(-1, 0)
    real = _wide(real.unsqueeze(-1), gaps.offset.dim() - 2)
    if not gaps.diagonal:
        real = real.unsqueeze(-1)
    # below round-off even if the state before the gap is a thousand times that behind it
    return not bool((matrix.where(real, matrix.new_zeros(())) > 1e-3 * torch.finfo(matrix.dtype).eps).any())


def simulate_apart(
    sde: SDE,
    rows: Rows,
    windows: Windows,
    gaps: GapLaws,
    initial: Tensor,
    normal: Tensor,
    execution: Execution,
) -> Tensor:
    """Path ``(..., R, D)`` over the rows of the windows, that of the loop over all rows if `gaps_forget`.

    Args:
        sde: SDE of the steps inside windows.
        rows: its bound rows ``(..., R - 1, C)``.
        windows: the windows, with a gap at least.
        gaps: laws of the gaps between them.
        initial: first states ``(..., D)``.
        normal: standard normal noise of the steps of the rows, ``(R - 1, ..., M)``.
        execution: as for `solve`.
    """
    apart = WindowsApart.of(windows)
    rank = max(initial.dim() - 1, normal.dim() - 2, gaps.offset.dim() - 2, len(windows.batch_shape))
    step, moving = _wide(apart.step, rank), _wide(apart.moving, rank)
    normal = normal.movedim(0, -2)
    behind = _behind(gaps, gather_rows(normal, apart.entry.movedim(0, -1)).movedim(-2, 0), rank)
    exists = _wide(moving[1:, ..., :1], rank)
    starts = torch.cat([initial.expand(behind[:1].shape), torch.where(exists, behind, initial)])
    # behind the end of a window its state stands still: it is not used, and must not overflow
    steps = gather_rows(windows.grid.steps.unsqueeze(-1), step).squeeze(-1) * moving
    times = gather_rows(windows.grid.times[..., :-1].unsqueeze(-1), step).squeeze(-1)
    part = _Part(torch.cat([times, times[..., -1:] + steps[..., -1:]], -1), steps)
    rows = tuple(None if row is None else gather_rows(row, step) for row in rows)
    noise = GivenNoise(gather_rows(normal, step).movedim(-2, 0))
    path, _ = solve(EulerMaruyama(), sde, part, starts, noise, rows, execution)  # type: ignore[arg-type]
    return gather_rows(path.movedim(0, -3).flatten(-3, -2), apart.back)


def _behind(gaps: GapLaws, normal: Tensor, rank: int) -> Tensor:
    """States behind the gaps, ``(W - 1, ..., D)``."""
    offset, normal = _wide(gaps.offset, rank), _wide(normal[..., : gaps.offset.shape[-1]], rank)
    scale = root(gaps.covariance) if gaps.diagonal else factor(gaps.covariance)
    if gaps.diagonal:
        return offset + _wide(scale, rank) * normal
    return offset + apply(scale.reshape(len(scale), *[1] * (rank + 3 - scale.dim()), *scale.shape[1:]), normal)


def _wide(tensor: Tensor, rank: int) -> Tensor:
    """``(W, *batch, C)`` with `rank` batch dimensions."""
    return tensor.reshape(len(tensor), *[1] * (rank + 2 - tensor.dim()), *tensor.shape[1:])
