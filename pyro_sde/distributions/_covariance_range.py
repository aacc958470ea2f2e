r"""Gaussian laws with any covariance: coordinates, volume and divergence on the directions that carry noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..ops._psd import psd_factor, unique_entries

__all__ = ["CovarianceRange", "tolerance_of"]

_LOG_2PI = math.log(2 * math.pi)


class CovarianceRange:
    r"""Geometry of :math:`N(0, L L^\top)` with L lower triangular, float64; a direction without noise is a zero column.

    With 1 on the diagonal of the zero columns L has an inverse W. For a vector v in the range of L, ``(W v)_i`` are its
    standard normal coordinates where i carries noise and 0 elsewhere; for any v the latter say how far it is outside.
    The density is with respect to Lebesgue measure on the range, as that of Euler–Maruyama kernels.

    Which columns are zero depends on the range of the covariance alone, so two laws on one range agree in it.

    Args:
        covariance: ``(..., D, D)``, positive semidefinite. Dimensions that are expanded are computed once and have size
            1 in the attributes, which broadcast.

    Attributes:
        factor: L, ``(..., D, D)``.
        noisy: which columns carry noise, ``(..., D)``.
        full: True if all do.
        whitener: W, ``(..., D, D)``.
        log_volume: half the logarithm of the pseudo-determinant, ``(...)``.
    """

    def __init__(self, covariance: Tensor) -> None:
        covariance = unique_entries(covariance.double(), 2)
        self.factor = psd_factor(covariance)
        pivots = self.factor.diagonal(dim1=-2, dim2=-1)
        self.noisy = pivots.detach() > 0
        self.full = bool(self.noisy.all())
        missing = torch.diag_embed((~self.noisy).double())
        safe = self.factor if self.full else self.factor + missing
        identity = torch.eye(covariance.shape[-1], dtype=torch.float64, device=covariance.device)
        self.whitener = torch.linalg.solve_triangular(safe, identity.expand_as(safe), upper=False)
        if self.full:
            self.log_volume = pivots.log().sum(-1)
        else:
            gram = torch.linalg.cholesky_ex(self.factor.mT @ self.factor + missing)[0]
            self.log_volume = gram.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        # a factor cannot hold NaN, which must not pass for a covariance of zero
        self.log_volume = self.log_volume + 0.0 * covariance.diagonal(dim1=-2, dim2=-1).sum(-1)

    def whiten(self, vector: Tensor) -> Tensor:
        """W v, ``(..., D)``; broadcasts."""
        return torch.einsum("...ij,...j->...i", self.whitener, vector)

    @property
    def inward(self) -> Tensor:
        """W without the rows of directions without noise: what maps a vector to its standard coordinates."""
        return torch.where(self.noisy.unsqueeze(-1), self.whitener, torch.zeros_like(self.whitener))

    def on_range(self, whitened: Tensor) -> Tensor:
        """Standard coordinates, 0 where there is no noise."""
        return whitened if self.full else torch.where(self.noisy, whitened, torch.zeros_like(whitened))

    def log_density(self, standard: Tensor) -> Tensor:
        """Log-density at standard coordinates ``(..., D)``."""
        rank = self.noisy.sum(-1).double()
        return -0.5 * (standard.square().sum(-1) + rank * _LOG_2PI) - self.log_volume

    def blurred_log_density(self, standard: Tensor, variance: Tensor) -> Tensor:
        """`log_density` of the law plus an independent error of `variance` ``(..., D)``, in the range only."""
        spread = self.inward * variance.sqrt().unsqueeze(-2)
        identity = torch.eye(spread.shape[-1], dtype=spread.dtype, device=spread.device)
        factor = torch.linalg.cholesky_ex(identity + spread @ spread.mT)[0]
        whitened = torch.linalg.solve_triangular(factor, standard.unsqueeze(-1), upper=False).squeeze(-1)
        return self.log_density(whitened) - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def outside(self, vector: Tensor, size: Tensor, tolerance: float) -> Tensor:
        """Where a vector ``(..., D)`` leaves the range by more than rounding of entries of the given `size`, bool."""
        if self.full:
            return torch.zeros((), dtype=torch.bool, device=vector.device).expand(vector.shape)
        limit = tolerance * torch.einsum("...ij,...j->...i", self.whitener.abs(), size.expand_as(vector))
        return ~self.noisy & (self.whiten(vector).abs() > limit)

    def covers(self, other: CovarianceRange, tolerance: float) -> Tensor:
        """Where both have the same range, ``(..., D)``, bool."""
        same = self.noisy == other.noisy
        if self.full:
            return same
        rest = (self.whitener @ other.factor).abs()
        limit = tolerance * (self.whitener.abs() @ other.factor.abs())
        return same & (self.noisy | (rest <= limit).all(-1))

    def divergence(self, other: CovarianceRange, difference: Tensor) -> Tensor:
        r""":math:`\mathrm{KL}(N(\delta, Q) \,\|\, N(0, Q'))` for this Q and the Q' of `other`, which have one range.

        Args:
            other: of the second law.
            difference: of the means, inside the range, ``(..., D)``.
        """
        shift = other.on_range(other.whiten(difference)).square().sum(-1)
        spread = other.whitener @ self.factor
        ratio = spread.diagonal(dim1=-2, dim2=-1)
        ratio = torch.where(other.noisy, ratio, torch.ones_like(ratio))
        across = torch.where(other.noisy.unsqueeze(-1), spread, torch.zeros_like(spread)).tril(-1)
        scales = (ratio.square() - 1 - 2 * ratio.log()).sum(-1)
        return 0.5 * (shift + scales + across.square().sum((-2, -1)))


def tolerance_of(dtype: torch.dtype) -> float:
    """Relative tolerance of comparisons of states in this dtype."""
    return 1e-8 if dtype == torch.float64 else 1e-4
