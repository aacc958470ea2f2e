r"""Fine levels below a fine level: what is known of those above, and the laws over their gaps.

In a gap of the level above, neither its state b nor the state c below it is simulated. Both are linear given the slower
path a, so over the gap they have one Gaussian law, and c that of its part given b at both ends,

.. math:: c' \mid c, b, b' \sim N\big(F_{cc} c + F_{cb} b + g_c + K (b' - F_{bb} b - g_b),\; V_{cc} - K V_{bc}\big),
    \qquad K = V_{cb} V_{bb}^{-1}

a step like any other for c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from ..ops.layout import time_first
from ..ops.windows import Windows, gather_rows
from ._multiscale_moments import GapLaws, Level, apply, exact_gaps, factor

__all__ = ["LevelsAbove", "gaussian_moments", "hole_laws", "joined"]


@dataclass(frozen=True, eq=False)
class LevelsAbove:
    """Sampled states of the levels above a fine one, on the rows of the last of them; from `MultiScalePath.beside`."""

    states: Tensor  # (..., R, D_a): all levels, the slowest first
    windows: Windows  # of the last level
    base: Windows  # the same without gaps filled
    level: Level  # the last one
    initial: Distribution  # its law at the start of the grid
    coarse: Tensor  # states of the levels above it, (..., K + 1, D)
    above: LevelsAbove | None

    def lower(self, windows: Windows) -> Windows:
        """Windows of the level below, from ``Windows.within(base, ...)``, on the rows of these states.

        Raises:
            ValueError: if they are inside other windows.
        """
        if windows.outer is self.windows:
            return windows
        if windows.outer is not self.base:
            msg = (
                "`windows` must be Windows.within(outer, ...), with the windows of the level above as `outer`, for "
                "coarse states from `beside`. Or the levels are in the wrong order: the slowest comes first."
            )
            raise ValueError(msg)
        return windows.over(self.base.fills_of(self.states))


def hole_laws(above: LevelsAbove, levels: Sequence[Level]) -> GapLaws:
    """Laws of the states of some levels over the gaps of the one above them, that before its first window included.

    Raises:
        ValueError: if a level is not conditionally linear, or that above has a direction without noise.
    """
    dim, windows = above.level.dim, above.windows
    joint = (above.level, *levels)
    holes = None
    if above.above is not None and bool(above.above.windows.real_gaps.any()):
        holes = hole_laws(above.above, joint)
    laws = exact_gaps(joint, above.coarse, windows, None if holes is None else holes[1:]).dense()
    if holes is not None:
        laws = joined(holes[:1].then(laws[:1]), laws[1:])
    laws = _from_initial(laws, above, dim)
    last = windows.grid.num_steps
    rows = windows.gap_rows.clamp(max=max(last - 1, 0))
    rank = max(above.states.dim() - 2, laws.offset.dim() - 2)
    fine = above.states[..., -dim:]
    ends = time_first(gather_rows(fine, torch.cat([torch.zeros_like(rows[..., :1]), rows[..., 1:] + 1], -1)), rank)
    begins = time_first(gather_rows(fine, rows), rank)
    return _given_ends(laws, begins, ends, dim)


def _given_ends(laws: GapLaws, begins: Tensor, ends: Tensor, dim: int) -> GapLaws:
    """Laws of the other variables given the first `dim` ones at both ends, ``(G, ..., dim)``."""
    rank = max(laws.offset.dim(), begins.dim()) - 2
    matrix, covariance = (
        part.reshape(len(part), *[1] * (rank + 3 - part.dim()), *part.shape[1:])
        for part in (laws.matrix, laws.covariance)
    )
    offset = laws.offset.reshape(len(laws.offset), *[1] * (rank + 2 - laws.offset.dim()), *laws.offset.shape[1:])
    upper, cross = covariance[..., :dim, :dim], covariance[..., :dim, dim:]
    none = (upper.detach() == 0).all(-1).all(-1)[..., None, None]  # gaps that a series does not have
    root = factor(upper) + none * torch.eye(dim, dtype=upper.dtype, device=upper.device)
    gain = torch.cholesky_solve(cross, root).mT
    surprise = ends - apply(matrix[..., :dim, :dim], begins) - offset[..., :dim]
    shift = apply(matrix[..., dim:, :dim], begins) + offset[..., dim:] + apply(gain, surprise)
    spread = covariance[..., dim:, dim:] - gain @ cross
    lower = matrix[..., dim:, dim:].expand(spread.shape)
    if spread.shape[-1] == 1:
        return GapLaws(lower.squeeze(-1), shift, spread.squeeze(-1), True)
    return GapLaws(lower, shift, (spread + spread.mT) / 2, False)


def _from_initial(laws: GapLaws, above: LevelsAbove, dim: int) -> GapLaws:
    """The first gap from the initial law of the level above, whose state before it is not sampled."""
    if not above.windows._late:
        return laws
    mean, covariance, diagonal = gaussian_moments("initial", above.initial, dim)
    covariance = torch.diag_embed(covariance) if diagonal else covariance
    rest = laws.offset.shape[-1] - dim
    pad = torch.nn.functional.pad
    keep = torch.diag(pad(torch.ones(rest, dtype=mean.dtype, device=mean.device), (dim, 0)))
    batch = torch.broadcast_shapes(mean.shape[:-1], covariance.shape[:-2], laws.offset.shape[1:-1])
    start = GapLaws(
        keep.expand(1, *batch, *keep.shape),
        pad(mean, (0, rest)).expand(1, *batch, dim + rest),
        pad(covariance, (0, rest, 0, rest)).expand(1, *batch, dim + rest, dim + rest),
        False,
    )
    late = (above.windows.fine_places[..., 0] > 0)[None, ..., None]
    first, begun = laws[:1], start.then(laws[:1])
    first = GapLaws(
        torch.where(late.unsqueeze(-1), begun.matrix, first.matrix),
        torch.where(late, begun.offset, first.offset),
        torch.where(late.unsqueeze(-1), begun.covariance, first.covariance),
        False,
    )
    return joined(first, laws[1:])


def joined(first: GapLaws, rest: GapLaws) -> GapLaws:
    """The laws of the first gap and of the others, with the larger batch of the two."""
    batch = torch.broadcast_shapes(first.offset.shape[1:-1], rest.offset.shape[1:-1])

    def joined(one: Tensor, other: Tensor, dims: int) -> Tensor:
        return torch.cat([part.expand(len(part), *batch, *part.shape[-dims:]) for part in (one, other)])

    dims = 1 if first.diagonal else 2
    return GapLaws(
        joined(first.matrix, rest.matrix, dims),
        joined(first.offset, rest.offset, 1),
        joined(first.covariance, rest.covariance, dims),
        first.diagonal,
    )


def gaussian_moments(name: str, law: Distribution, state_dim: int) -> tuple[Tensor, Tensor, bool]:
    """Mean, covariance (or variances) of a Gaussian over one state, and whether these are variances.

    Raises:
        ValueError: if it is no Gaussian, or over another state.
    """
    if tuple(law.event_shape) != (state_dim,):
        msg = f"`{name}` must have event shape ({state_dim},), received {tuple(law.event_shape)}. Add `.to_event(1)`?"
        raise ValueError(msg)
    base = law
    while isinstance(base, Independent):
        base = base.base_dist
    if isinstance(base, Normal):
        return base.loc, base.scale.square(), True
    if isinstance(base, MultivariateNormal):
        return base.loc, base.covariance_matrix, False
    msg = (
        f"`{name}` must be a Gaussian, Normal(...).to_event(1) or MultivariateNormal, where the fine path begins "
        f"behind a gap; received {type(base).__name__}. Use one, or let every first window begin with the grid."
    )
    raise ValueError(msg)
