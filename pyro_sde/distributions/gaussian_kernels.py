r"""Gaussian transition kernels with any mean and covariance, for all steps of a path at once."""

from __future__ import annotations

import torch
from torch import Tensor

from ._covariance_range import CovarianceRange, tolerance_of
from .kernels import EulerKernels, TransitionKernels

__all__ = ["GaussianKernels"]

_VISIBLE = 1e-4  # variance of rounding, relative to that of the noise, from which on the density counts it


class GaussianKernels(TransitionKernels):
    r"""Kernels :math:`z_{k+1} \mid z_k \sim N(\mu_k, Q_k)` along a path, in float64.

    As for `EulerKernels`, the density is that on the directions that carry noise, and an increment off them is an
    error. Where the noise of a step is below the rounding of the path itself (Matern-5/2 in float32 at steps of a
    thousandth of the lengthscale), the density is that of the rounded path: the variance of rounding,
    :math:`\epsilon^2 (z_k^2 + z_{k+1}^2) / 12`, is added on these directions.

    Args:
        mean: :math:`\mu_k`, time leftmost, ``(K, ..., D)``.
        covariance: :math:`Q_k`, broadcastable to ``(K, ..., D, D)``.
        path: states, time leftmost, ``(K + 1, ..., D)``.
        times: times ``(K + 1, ..., 1)``, for messages.
        moving: which steps are none of padding, ``(K, ..., 1)``, bool.
    """

    def __init__(self, mean: Tensor, covariance: Tensor, path: Tensor, times: Tensor, moving: Tensor) -> None:
        self.mean = mean.double()
        self.path = path
        self.times = times
        self.moving = moving
        self.range = CovarianceRange(covariance)

    @classmethod
    def of(cls, kernels: TransitionKernels) -> GaussianKernels:
        """The same kernels by their moments.

        Raises:
            NotImplementedError: if they are not Gaussian kernels.
        """
        if isinstance(kernels, cls):
            return kernels
        if type(kernels) is not EulerKernels:  # those of other solvers have other moments
            raise NotImplementedError
        steps = torch.where(kernels.moving, kernels.safe_steps, torch.zeros_like(kernels.safe_steps)).double()
        mean = kernels.state.double() + kernels.total_drift.double() * steps
        covariance = kernels.noise.gram(kernels.diffusion.double()) * steps.unsqueeze(-1)
        path = torch.cat([kernels.state[:1], kernels.next_state])
        return cls(mean, covariance, path, kernels.times, kernels.moving)

    def standard(self) -> Tensor:
        """Standard normal coordinates of the increments, ``(K, ..., D)`` in float64; 0 where there is no noise.

        Raises:
            ValueError: if the path leaves the support on directions without noise.
        """
        residual = self.path[1:].double() - self.mean
        if not self.range.full:
            self._check_support(residual)
        return self.range.on_range(self.range.whiten(residual))

    def log_prob(self) -> Tensor:
        """Gaussian log-density of the next states, ``(K, ...)``.

        Raises:
            ValueError: if the path leaves the support on directions without noise.
        """
        standard = self.standard()
        rounding = self._visible_rounding()
        if rounding is None:
            density = self.range.log_density(standard)
        else:
            density = self.range.blurred_log_density(standard, rounding)
        return density.to(self.path.dtype)

    def kl(self, other: TransitionKernels) -> Tensor:
        r"""Divergence of every transition from that of `other`, which may have another covariance.

        With G the factor of the covariance of `other` and r the number of noisy directions,

        .. math:: \tfrac12 \big( |G^+ (\mu - \mu')|^2 + |G^+ L|^2 - r - 2 \log\det G^+ L \big)

        Raises:
            ValueError: if the divergence is infinite.
            NotImplementedError: if the kernels of `other` are not Gaussian.

        References:
            Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, section A.5 (the divergence of
            Gaussian laws), on the directions that carry noise.
        """
        other = GaussianKernels.of(other)
        self.check_absolutely_continuous(other)
        return self.range.divergence(other.range, self.mean - other.mean).to(self.path.dtype)

    def kl_of_spread(self, other: GaussianKernels, ours: Tensor, theirs: Tensor, spread: Tensor) -> Tensor:
        r"""What `kl` gains in the mean if the states before the steps vary by :math:`S \epsilon`, ``(K, ...)``.

        Args:
            other: kernels with the transition matrices `theirs`.
            ours: transition matrices of these kernels, ``(K, ..., D, D)``.
            theirs: transition matrices of `other`, ``(K, ..., D, D)``.
            spread: S, ``(K, ..., D, D)``.

        Raises:
            ValueError: if the means then differ in a direction without noise.
        """
        moved = other.range.whitener @ ((ours - theirs) @ spread)
        noisy = other.range.noisy.unsqueeze(-1)
        if not other.range.full:
            with torch.no_grad():
                size = other.range.whitener.abs() @ ((ours.abs() + theirs.abs()) @ spread.abs())
                bad = ~noisy & (moved.abs() > tolerance_of(torch.float64) * size)
                self._report_motion(self.moving & bad.any(-1))
        return 0.5 * torch.where(noisy, moved, torch.zeros_like(moved)).square().sum((-2, -1))

    def kl_from(self, other: TransitionKernels) -> Tensor:
        """Divergence of `other` from these kernels: ``other.kl(self)`` for kernels that leave it to this class."""
        return GaussianKernels.of(other).kl(self)

    def check_absolutely_continuous(self, other: TransitionKernels) -> None:
        """Noise in the same directions, and a difference of means inside them, wherever time moves.

        Raises:
            ValueError: if one of them does not hold.
            NotImplementedError: if the kernels of `other` are not Gaussian.
        """
        if not isinstance(other, EulerKernels | GaussianKernels):
            other.check_absolutely_continuous_from(self)
            return
        other = GaussianKernels.of(other)
        tolerance = max(tolerance_of(self.path.dtype), tolerance_of(other.path.dtype))
        with torch.no_grad():
            bad = self.moving & ~other.range.covers(self.range, tolerance)
            if bad.any():
                msg = (
                    "the KL divergence is infinite: guide and model do not have noise in the same directions, "
                    f"{self._place(bad)}. An exact chain has noise in directions where an Euler chain of the same "
                    'process has none (Matern-3/2, Langevin): use one discretisation, "exact" or "euler", on both '
                    "sides."
                )
                raise ValueError(msg)
            size = (self.mean.abs() + other.mean.abs()).amax(-1, keepdim=True)
            difference = self.mean - other.mean
            self._report_motion(self.moving & other.range.outside(difference, size.expand_as(difference), tolerance))

    def check_absolutely_continuous_from(self, other: TransitionKernels) -> None:
        """``other.check_absolutely_continuous(self)`` for kernels that leave it to this class."""
        GaussianKernels.of(other).check_absolutely_continuous(self)

    def _report_motion(self, bad: Tensor) -> None:
        if bad.any():
            msg = (
                "the KL divergence is infinite: guide and model move differently in a direction without noise, "
                f"{self._place(bad)}. Give both the same dynamics there."
            )
            raise ValueError(msg)

    def _visible_rounding(self) -> Tensor | None:
        """Variance of the rounding of the increments, None unless it is seen beside the noise."""
        with torch.no_grad():
            if not self.mean.numel():
                return None
            epsilon = torch.finfo(self.path.dtype).eps
            weight = self.range.inward.abs().amax()
            bound = epsilon * float(weight) * float(self.path.abs().amax())
            if self.mean.shape[-1] * bound**2 / 6 <= _VISIBLE:
                return None
            squares = self.path.double().square()
            return epsilon**2 * (squares[:-1] + squares[1:]) / 12

    def _check_support(self, residual: Tensor) -> None:
        with torch.no_grad():
            size = (self.path[:-1].abs() + self.path[1:].abs() + self.mean.abs()).amax(-1, keepdim=True)
            outside = self.range.outside(residual, size.expand_as(residual), tolerance_of(self.path.dtype))
            bad = self.moving & outside
            if bad.any():
                msg = (
                    "the path is off the support of its law: in a direction without noise the next state must be the "
                    f"mean of its transition, but it is not {self._place(bad)}. Sample such paths from the law, or use "
                    "PathNoiseReparam to infer them."
                )
                raise ValueError(msg)

    def _place(self, bad: Tensor) -> str:
        step, *series, dimension = bad.nonzero()[0].tolist()
        step = min(step, len(self.times) - 2)
        time = self.times[:-1].expand(-1, *bad.shape[1:-1], 1)[(step, *series)].item()
        return f"at dimension {dimension}, time {time:g}" + (f", series {series}" if series else "")
