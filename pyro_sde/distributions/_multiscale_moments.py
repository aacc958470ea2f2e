r"""Moments of conditionally linear fine variables over gaps, given a coarse path.

Over one coarse step :math:`H = n h`, with the coarse state held, the n Euler steps of :math:`db = (A b + c)\,dt +
\sigma\,dW` compose to :math:`b' \mid b \sim N(F b + g, V)`, and the steps of a gap to one such law. Composition is
associative: a gap of L coarse steps takes :math:`\log_2 L` batched ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.layout import time_first
from ..ops.windows import Windows, gather_rows
from ..sde.noise import DiagonalNoise
from ..sde.two_scale import FineSDE

__all__ = ["GapLaws", "apply", "exact_gaps"]


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


def exact_gaps(fine: FineSDE, coarse: Tensor, windows: Windows, state_dim: int) -> GapLaws:
    """Laws of the fine state behind every gap, the one before the first window included.

    Args:
        fine: fine SDE, linear in its state, with a diffusion that does not depend on it.
        coarse: coarse path ``(..., K + 1, D_a)``.
        windows: whose gaps.
        state_dim: D_b.

    Raises:
        ValueError: if the fine SDE is not conditionally linear.
    """
    lengths = windows.gap_ends - windows.gap_starts  # (*batch, G)
    most = max(1, int(lengths.max()))
    span = torch.arange(most, device=lengths.device)
    index = windows.gap_starts.unsqueeze(-1) + span  # (*batch, G, L)
    valid = span < lengths.unsqueeze(-1)
    index = torch.where(valid, index, torch.zeros_like(index)).flatten(-2)
    grid = windows.coarse
    rank = max(coarse.dim() - 2, index.dim() - 1)
    a = time_first(gather_rows(coarse[..., :-1, :], index), rank)
    times = time_first(gather_rows(grid.times[..., :-1].unsqueeze(-1), index), rank)
    steps = gather_rows(grid.steps.unsqueeze(-1), index) * valid.flatten(-2).unsqueeze(-1)
    steps = time_first(steps / windows.fine_steps, rank)
    laws = _power(_one_step(fine, times, a, steps, state_dim), windows.fine_steps)
    return _reduce(laws, lengths.shape[-1], most)


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


def _linear_parts(fine: FineSDE, times: Tensor, a: Tensor, state_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """A, c and sigma of a conditionally linear SDE, found by calls at a few fine states."""
    eye = torch.eye(state_dim, dtype=a.dtype, device=a.device)
    probe = torch.arange(1, state_dim + 1, dtype=a.dtype, device=a.device)
    tests = torch.stack([(2.3 * probe).sin() + 0.7, 5 * (1.1 * probe).cos() - 3])  # two states in general position
    points = torch.cat([torch.zeros_like(eye[:1]), eye, tests])
    b = points.reshape(len(points), *[1] * (a.dim() - 1), state_dim).expand(-1, *a.shape[:-1], -1)
    drift, diffusion, _ = fine.given(times, b, a)
    drift = drift.expand(torch.broadcast_shapes(drift.shape, b.shape))
    widened = fine.noise.widen(diffusion, state_dim)
    shape = b.shape if isinstance(fine.noise, DiagonalNoise) else (*b.shape, widened.shape[-1])
    widened = widened.expand(torch.broadcast_shapes(widened.shape, shape))
    offset = drift[0]
    matrix = (drift[1:-2] - offset).movedim(0, -1)  # column i is the response to the i-th unit vector
    with torch.no_grad():
        tolerance = 1e-6 if a.dtype == torch.float64 else 1e-3
        linear = (matrix.unsqueeze(0) @ b[-2:].unsqueeze(-1)).squeeze(-1) + offset
        size = drift.abs().amax(0) + matrix.abs().sum(-1)
        if bool(((drift[-2:] - linear).abs() > tolerance * size).any()):
            _refuse("its drift is not linear in the fine state b, for given coarse state a")
        if bool(((widened - widened[:1]).abs() > tolerance * widened.abs().amax()).any()):
            _refuse("its diffusion depends on the fine state b")
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
