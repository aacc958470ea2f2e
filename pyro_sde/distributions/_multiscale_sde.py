"""A fine SDE on the rows of windows: fine steps given the coarse path, and gaps as single Gaussian steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..ops.windows import Windows, gather_rows
from ..sde.base import SDE, Coefficients, Evaluator, Networks, Rows
from ..sde.noise import DiagonalNoise, noise_structure
from ..sde.two_scale import FineSDE, matrix_form
from ._multiscale_moments import GapLaws, apply, factor, root

__all__ = ["WindowControl", "WindowSDE", "coarse_rows"]


def coarse_rows(coarse: Tensor, windows: Windows) -> Tensor:
    """Coarse state and time that each fine step sees, those at the start of its coarse step; ``(..., R - 1, D_a + 1)``.

    Both are held during a coarse step, so that a gap is a product of equal steps.
    """
    states = gather_rows(coarse[..., :-1, :], windows.coarse_index)
    times = gather_rows(windows.times_seen.unsqueeze(-1), windows.coarse_index)
    return torch.cat([states, times.expand(*states.shape[:-1], 1)], -1)


class WindowSDE(SDE):
    """Fine SDE whose coarse states and gaps are bound.

    Args:
        fine: the fine SDE.
        rows: from `coarse_rows`.
        windows: the windows.
        gaps: laws of the gaps between windows, None if there are none.
        state_dim: D.
    """

    def __init__(self, fine: FineSDE, rows: Tensor, windows: Windows, gaps: GapLaws | None, state_dim: int) -> None:
        diagonal = isinstance(fine.noise, DiagonalNoise)
        dense = gaps is not None and not (gaps.diagonal and diagonal)
        kind = "general" if dense else fine.noise_type
        super().__init__(fine.drift, fine.diffusion, noise_type=kind)
        self.fine = fine
        self.noise = noise_structure(kind)
        self._state_dim = state_dim
        self._dense = dense
        self._bound: Rows = (rows,)
        if gaps is not None:
            self._bound = (rows, _gap_rows(gaps.dense() if dense else gaps, windows, rows))

    def bind_rows(self, inputs: Tensor | None) -> Rows:
        """The bound rows; `inputs` is for the control."""
        del inputs
        return self._bound

    def evaluator(self, rows: Rows) -> tuple[Evaluator, Rows]:
        """Coefficients of the fine step or of the gap."""
        fine, dense, dim = self.fine, self._dense, self._state_dim

        def inside(z: Tensor, row: Tensor) -> Coefficients:
            return fine.given(row[..., -1:], z, row[..., :-1])

        def evaluate(_t: Tensor, z: Tensor, rows: Rows) -> Coefficients:
            drift, diffusion, _ = inside(z, rows[0])  # type: ignore[arg-type]
            row: Tensor = rows[1]  # type: ignore[assignment]
            width = dim * dim if dense else dim
            flag, rate, offset, scale = row.split([1, width, dim, width], -1)
            gap = flag > 0
            if not dense and diffusion.dim() <= z.dim() and _no_gap(gap, drift, z):  # most steps of a loop
                return Coefficients(drift, diffusion.expand(z.shape), None)
            if not dense:
                return Coefficients(
                    torch.where(gap, rate * z + offset, drift), torch.where(gap, scale, diffusion), None
                )
            rate, scale = (part.unflatten(-1, (dim, dim)) for part in (rate, scale))
            drift = torch.where(gap, apply(rate, z) + offset, drift)
            scale, matrix = _same_columns(scale, matrix_form(fine, diffusion, z))
            return Coefficients(drift, torch.where(gap.unsqueeze(-1), scale, matrix), None)

        def without_gaps(_t: Tensor, z: Tensor, rows: Rows) -> Coefficients:
            return inside(z, rows[0])  # type: ignore[arg-type]

        return (without_gaps if len(self._bound) == 1 else evaluate), rows

    def shares_diffusion(self, other: SDE) -> bool:
        """Never: the diffusion hangs on the bound rows."""
        del other
        return False

    def networks(self, times: Tensor, rows: Rows) -> Networks | None:
        """None: the coefficients see the coarse path."""
        del times, rows
        return None


class WindowControl(nn.Module):
    """Control of a guide on rows ``[a, active, inputs]``: nothing outside the windows.

    Args:
        control: ``control(t, b, a)`` or ``control(t, b, a, inputs)``.
        coarse_dim: D_a.
        columns: number of Brownian motions to pad to; None if the noise is the fine SDE's own.
    """

    def __init__(self, control: Callable[..., Tensor], coarse_dim: int, columns: int | None) -> None:
        super().__init__()
        self.control, self.coarse_dim, self.columns = control, coarse_dim, columns

    def forward(self, t: Tensor, z: Tensor, row: Tensor) -> Tensor:
        """Control at the active steps, 0 elsewhere."""
        a, active, rest = row.split([self.coarse_dim, 1, row.shape[-1] - self.coarse_dim - 1], -1)
        u = self.control(t, z, a, rest) if rest.shape[-1] else self.control(t, z, a)
        u = u * active
        if self.columns is None or u.shape[-1] >= self.columns:
            return u
        return torch.nn.functional.pad(u, (0, self.columns - u.shape[-1]))


def _no_gap(gap: Tensor, drift: Tensor, z: Tensor) -> bool:
    """Whether no series has a gap at this step, if that is cheap to know and shapes are those of steps with a gap."""
    if gap.device.type != "cpu" or torch._C._are_functorch_transforms_active() or torch.jit.is_tracing():
        return False
    return gap.shape[:-1] == z.shape[:-1] and drift.shape == z.shape and not bool(gap.any())


def _same_columns(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    columns = max(left.shape[-1], right.shape[-1])
    return tuple(torch.nn.functional.pad(part, (0, columns - part.shape[-1])) for part in (left, right))  # type: ignore[return-value]


def _gap_rows(gaps: GapLaws, windows: Windows, like: Tensor) -> Tensor:
    """Rows ``[gap?, (F - I) / h, g / h, L / sqrt(h)]``, so that an Euler step of length h is the gap."""
    steps = windows.grid.steps
    index = windows.gap_rows[..., 1:]
    spare = torch.cat([steps, torch.ones_like(steps[..., :1])], -1)  # the entry of a series with fewer gaps
    rank = gaps.offset.dim() - 2
    length = spare.gather(-1, index).movedim(-1, 0).unsqueeze(-1)  # (G, *batch, 1)
    length = length.reshape(len(length), *[1] * (rank - length.dim() + 2), *length.shape[1:])
    if gaps.diagonal:
        rate, scale = (gaps.matrix - 1) / length, root(gaps.covariance) / length.sqrt()
    else:
        eye = torch.eye(gaps.matrix.shape[-1], dtype=like.dtype, device=like.device)
        rate = ((gaps.matrix - eye) / length.unsqueeze(-1)).flatten(-2)
        scale = (factor(gaps.covariance) / length.sqrt().unsqueeze(-1)).flatten(-2)
    rows = torch.cat([torch.ones_like(gaps.offset[..., :1]), rate, gaps.offset / length, scale], -1)
    rows = rows.movedim(0, -2)  # (..., G, C)
    batch = torch.broadcast_shapes(rows.shape[:-2], index.shape[:-1])
    target = rows.new_zeros(*batch, steps.shape[-1] + 1, rows.shape[-1])
    place = index.unsqueeze(-1).expand(*batch, index.shape[-1], rows.shape[-1])
    return target.scatter(-2, place, rows.expand(*batch, *rows.shape[-2:]))[..., :-1, :]
