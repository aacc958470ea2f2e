r"""Moments of conditionally linear fine variables over gaps, given a coarse path.

Over one coarse step :math:`H = n h`, with the coarse state held, the n Euler steps of :math:`db = (A b + c)\,dt +
\sigma\,dW` compose to :math:`b' \mid b \sim N(F b + g, V)`, and the steps of a gap to one such law. Composition is
associative: a gap of L coarse steps takes :math:`\log_2 L` batched ones. So do the steps of several fine levels, each
held during a step of the level above.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.layout import time_first
from ..ops.windows import Windows, gather_rows
from ..sde.noise import DiagonalNoise
from ..sde.two_scale import FineSDE

__all__ = ["GapLaws", "Level", "apply", "exact_gaps", "factor", "root"]


class Level(NamedTuple):
    """A fine SDE, its steps per step of the level above, and the number of its variables."""

    fine: FineSDE
    steps: int
    dim: int


@dataclass(frozen=True)
class GapLaws:
    """Laws :math:`N(F b + g, V)` of the fine state behind each gap, gaps leftmost; F, V elementwise or matrices."""

    matrix: Tensor  # (G, ..., D) if diagonal, else (G, ..., D, D)
    offset: Tensor  # (G, ..., D)
    covariance: Tensor  # as matrix
    diagonal: bool

    def dense(self) -> GapLaws:
        """The same with matrices."""
        if not self.diagonal:
            return self
        return GapLaws(torch.diag_embed(self.matrix), self.offset, torch.diag_embed(self.covariance), False)

    def then(self, other: GapLaws) -> GapLaws:
        """This law followed by another of the same form."""
        if self.diagonal:
            covariance = other.matrix.square() * self.covariance + other.covariance
            return GapLaws(other.matrix * self.matrix, other.matrix * self.offset + other.offset, covariance, True)
        covariance = other.matrix @ self.covariance @ other.matrix.mT + other.covariance
        offset = apply(other.matrix, self.offset) + other.offset
        return GapLaws(other.matrix @ self.matrix, offset, covariance, False)

    def __getitem__(self, index: int | slice) -> GapLaws:
        """Some of the gaps."""
        return _each(self, lambda part: part[index])


def apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrix-vector product, ``(..., D, D)`` and ``(..., D)``."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def root(variance: Tensor) -> Tensor:
    """Standard deviations; 0 has gradient 0."""
    noisy = variance > 0
    return torch.where(noisy, torch.where(noisy, variance, torch.ones_like(variance)).sqrt(), variance)


def factor(covariance: Tensor) -> Tensor:
    """Cholesky factor; gaps of length 0, of series with fewer gaps, have covariance 0 and get factor 0."""
    none = (covariance.detach() == 0).all(-1).all(-1)[..., None, None]
    eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    factor, info = torch.linalg.cholesky_ex(torch.where(none, eye, covariance))
    if bool((info > 0).any()):
        msg = (
            "the covariance of the fine state over a gap is not positive definite: some direction gets no noise in the "
            "whole gap. Let gaps be longer (merge windows by a larger `before`), or give every fine variable noise."
        )
        raise ValueError(msg)
    return torch.where(none, torch.zeros_like(factor), factor)


def exact_gaps(levels: Sequence[Level], coarse: Tensor, windows: Windows, holes: GapLaws | None = None) -> GapLaws:
    """Laws of the fine state behind every gap, the one before the first window included.

    Args:
        levels: fine levels below the coarse path, from slow to fast, linear in their states, with diffusions that do
            not depend on them. The state of the laws is that of all of them.
        coarse: coarse path ``(..., K + 1, D_a)``.
        windows: those of the first of the levels, whose gaps.
        holes: laws over the `windows.holes`, which are no coarse steps, in their order.

    Raises:
        ValueError: if a level is not conditionally linear.
    """
    lengths = windows.gap_ends - windows.gap_starts  # (*batch, G)
    most = max(1, int(lengths.max()))
    span = torch.arange(most, device=lengths.device)
    index = windows.gap_starts.unsqueeze(-1) + span  # (*batch, G, L)
    valid = span < lengths.unsqueeze(-1)
    index = torch.where(valid, index, torch.zeros_like(index)).flatten(-2)
    hole = windows.holes.gather(-1, index) & valid.flatten(-2)
    rank = max(coarse.dim() - 2, index.dim() - 1)
    a = time_first(gather_rows(coarse[..., :-1, :], index), rank)
    times = time_first(gather_rows(windows.times_seen.unsqueeze(-1), index), rank)
    steps = gather_rows(windows.coarse.steps.unsqueeze(-1), index) * (valid.flatten(-2) & ~hole).unsqueeze(-1)
    laws = _all_levels(levels, times, a, time_first(steps, rank))
    if holes is not None and bool(hole.any()):
        number = (windows.holes.cumsum(-1) - 1).clamp(min=0).gather(-1, index)
        if not (laws.diagonal and holes.diagonal):
            laws, holes = laws.dense(), holes.dense()
        laws = _placed(laws, holes, number, hole)
    return _reduce(laws, lengths.shape[-1], most)


def _all_levels(levels: Sequence[Level], times: Tensor, a: Tensor, steps: Tensor) -> GapLaws:
    """Law of the states of all levels over one coarse step."""
    if len(levels) == 1:
        (level,) = levels
        return _power(_one_step(level.fine, times, a, steps / level.steps, level.dim), level.steps)

    def below(number: int, length: Tensor) -> GapLaws:
        """A step of the level above `number`."""
        length = length / levels[number].steps
        law = _own_step(levels, number, times, a, length)
        if number + 1 < len(levels):  # the faster ones see the state at the start, which moves behind them
            law = below(number + 1, length).then(law)
        return _power(law, levels[number].steps)

    return below(0, steps)


def _own_step(levels: Sequence[Level], number: int, times: Tensor, a: Tensor, steps: Tensor) -> GapLaws:
    """One Euler step of one level; the others stay."""
    above = sum(level.dim for level in levels[:number])
    fine, _, dim = levels[number]
    total = sum(level.dim for level in levels)
    matrix, drift, diffusion = _linear_parts(fine, times, a, dim, above)
    own = slice(above, above + dim)
    after = total - above - dim
    pad = torch.nn.functional.pad
    eye = torch.eye(total, dtype=a.dtype, device=a.device)
    rows = pad(matrix * steps.unsqueeze(-1), (0, after, above, after))
    gram = fine.noise.gram(diffusion) * steps.unsqueeze(-1)
    shape = (*a.shape[:-1], total, total)
    covariance = pad(gram.expand(*a.shape[:-1], dim, dim), (own.start, after, above, after))
    return GapLaws((eye + rows).expand(shape), pad(drift * steps, (above, after)), covariance, False)


def _placed(laws: GapLaws, holes: GapLaws, number: Tensor, hole: Tensor) -> GapLaws:
    """Laws of steps ``(G * L, ...)``, those of some exchanged for the hole of a number ``(*batch, G * L)``."""
    rank = max(laws.offset.dim(), holes.offset.dim()) - 2

    def exchanged(law: Tensor, other: Tensor, dims: int) -> Tensor:
        wide = other.flatten(-dims) if dims > 1 else other
        picked = time_first(gather_rows(wide.movedim(0, -2), number), rank).unflatten(-1, other.shape[-dims:])
        law = law.reshape(len(law), *[1] * (rank + 1 + dims - law.dim()), *law.shape[1:])
        mask = time_first(hole.unsqueeze(-1), rank)
        return torch.where(mask if dims == 1 else mask.unsqueeze(-1), picked, law)

    dims = 1 if laws.diagonal else 2
    return GapLaws(
        exchanged(laws.matrix, holes.matrix, dims),
        exchanged(laws.offset, holes.offset, 1),
        exchanged(laws.covariance, holes.covariance, dims),
        laws.diagonal,
    )


def _one_step(fine: FineSDE, times: Tensor, a: Tensor, steps: Tensor, state_dim: int) -> GapLaws:
    """One fine Euler step at each coarse state, time leftmost."""
    matrix, drift, diffusion = _linear_parts(fine, times, a, state_dim)
    offset = drift * steps
    if isinstance(fine.noise, DiagonalNoise) and not bool((matrix - _diagonal_part(matrix)).any()):
        factors = 1 + matrix.diagonal(dim1=-2, dim2=-1) * steps
        return GapLaws(factors, offset, (diffusion.square() * steps).expand_as(factors), True)
    eye = torch.eye(state_dim, dtype=a.dtype, device=a.device)
    matrix = eye + matrix * steps.unsqueeze(-1)
    covariance = fine.noise.gram(diffusion) * steps.unsqueeze(-1)
    return GapLaws(matrix, offset, covariance.expand_as(matrix), False)


def _linear_parts(
    fine: FineSDE, times: Tensor, a: Tensor, state_dim: int, above: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """A, c and sigma of a conditionally linear SDE, found by calls at a few fine states.

    With `above` > 0 as many variables of levels in between are part of the coarse state, in its last places, and of
    the state that A acts on, in its first ones.
    """
    size = above + state_dim
    eye = torch.eye(size, dtype=a.dtype, device=a.device)
    probe = torch.arange(1, size + 1, dtype=a.dtype, device=a.device)
    tests = torch.stack([(2.3 * probe).sin() + 0.7, 5 * (1.1 * probe).cos() - 3])  # two states in general position
    points = torch.cat([torch.zeros_like(eye[:1]), eye, tests])
    x = points.reshape(len(points), *[1] * (a.dim() - 1), size).expand(-1, *a.shape[:-1], -1)
    b = x[..., above:]
    held = torch.cat([a.expand(len(points), *a.shape), x[..., :above]], -1) if above else a
    drift, diffusion, _ = fine.given(times, b, held)
    drift = drift.expand(torch.broadcast_shapes(drift.shape, b.shape))
    widened = fine.noise.widen(diffusion, state_dim)
    shape = b.shape if isinstance(fine.noise, DiagonalNoise) else (*b.shape, widened.shape[-1])
    widened = widened.expand(torch.broadcast_shapes(widened.shape, shape))
    offset = drift[0]
    matrix = (drift[1:-2] - offset).movedim(0, -1)  # column i is the response to the i-th unit vector
    with torch.no_grad():
        tolerance = 1e-6 if a.dtype == torch.float64 else 1e-3
        linear = (matrix.unsqueeze(0) @ x[-2:].unsqueeze(-1)).squeeze(-1) + offset
        size_of = drift.abs().amax(0) + matrix.abs().sum(-1)
        state = "the fine state b" if not above else "the fine states of all levels"
        if bool(((drift[-2:] - linear).abs() > tolerance * size_of).any()):
            _refuse(f"its drift is not linear in {state}, for given coarse state a")
        if bool(((widened - widened[:1]).abs() > tolerance * widened.abs().amax()).any()):
            _refuse(f"its diffusion depends on {state}")
    return matrix, offset, widened[0]


def _refuse(reason: str) -> None:
    msg = (
        f"ExactReEntry needs fine dynamics that are linear given the coarse path, but {reason}. Use BurnIn(entry) or "
        "AmortisedReEntry(entry), with RandomisedCorrection if the bound must be that of the original model."
    )
    raise ValueError(msg)


def _diagonal_part(matrix: Tensor) -> Tensor:
    return torch.diag_embed(matrix.detach().diagonal(dim1=-2, dim2=-1))


def _power(law: GapLaws, count: int) -> GapLaws:
    """`count` equal steps."""
    result = None
    while count:
        if count % 2:
            result = law if result is None else result.then(law)
        count //= 2
        law = law.then(law) if count else law
    return law if result is None else result


def _reduce(laws: GapLaws, gaps: int, length: int) -> GapLaws:
    """Laws of whole gaps from those of their steps ``(G * L, ...)``; padded steps do nothing."""
    # (G * L, ...) -> (L, G, ...)
    laws = _each(laws, lambda part: part.reshape(gaps, length, *part.shape[1:]).transpose(0, 1))
    while len(laws.offset) > 1:
        odd = laws[-1:] if len(laws.offset) % 2 else None
        even = len(laws.offset) - (odd is not None)
        laws = laws[0:even:2].then(laws[1:even:2])
        if odd is not None:
            laws = GapLaws(
                torch.cat([laws.matrix, odd.matrix]),
                torch.cat([laws.offset, odd.offset]),
                torch.cat([laws.covariance, odd.covariance]),
                laws.diagonal,
            )
    return laws[0]


def _each(laws: GapLaws, function: Callable[[Tensor], Tensor]) -> GapLaws:
    return GapLaws(function(laws.matrix), function(laws.offset), function(laws.covariance), laws.diagonal)
