r"""Transition kernels of constrained paths."""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor

from ..sde.constrained import Domain
from .kernels import TransitionKernels

__all__ = ["ConstrainedKernels"]


class ConstrainedKernels(TransitionKernels):
    r"""Kernels of :math:`x = \varphi(y)` from those of the coordinate y.

    .. math:: \log p(x_{k+1} \mid x_k) = \log p(y_{k+1} \mid y_k) - \log |\det \varphi'(y_{k+1})|

    The divergence is that of the coordinates: the change of variables is the same on both sides.

    Args:
        base: kernels of the coordinate.
        domain: the map.
        coordinates: path of the coordinate that they belong to, ``(..., T, D)``.
        log_det: of the Jacobian at the next states, 0 where padded, ``(K, ...)``.
    """

    def __init__(self, base: TransitionKernels, domain: Domain, coordinates: Tensor, log_det: Tensor) -> None:
        self.base = base
        self.domain = domain
        self.coordinates = coordinates
        self.log_det = log_det

    def log_prob(self) -> Tensor:
        """Log-density of the next states with respect to x, ``(K, ...)``."""
        return self.base.log_prob() - self.log_det

    def kl(self, other: TransitionKernels) -> Tensor:
        """That of the coordinates.

        Raises:
            ValueError: if `other` has another coordinate, or the divergence is infinite.
        """
        return self.base.kl(self._counterpart(other))

    def kl_from(self, other: TransitionKernels) -> Tensor:
        """Refused: `other` is no constrained path."""
        self._refuse(other)

    def check_absolutely_continuous(self, other: TransitionKernels) -> None:
        """As for the coordinates.

        Raises:
            ValueError: if `other` has another coordinate, or the divergence is infinite.
        """
        self.base.check_absolutely_continuous(self._counterpart(other))

    def check_absolutely_continuous_from(self, other: TransitionKernels) -> None:
        """Refused: `other` is no constrained path."""
        self._refuse(other)

    def _counterpart(self, other: TransitionKernels) -> TransitionKernels:
        if not isinstance(other, ConstrainedKernels) or not self.domain.same_as(other.domain):
            self._refuse(other)
        return other.base

    def _refuse(self, other: TransitionKernels) -> NoReturn:
        theirs = other.domain if isinstance(other, ConstrainedKernels) else type(other).__name__
        msg = (
            "guide and model describe their path in different coordinates, so their laws on a grid cannot be compared: "
            f"{self.domain} and {theirs}. Make both a ConstrainedPath with the same domain, e.g. "
            "ConstrainedPath.of(constrain(sde, domain).controlled(control), ...)."
        )
        raise ValueError(msg)
