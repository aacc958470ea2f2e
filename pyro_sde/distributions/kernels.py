r"""Gaussian transition kernels of Euler–Maruyama steps, for all steps of a path at once.

Step k of the chain is :math:`z_{k+1} \mid z_k \sim N(z_k + (f_k + \sigma_k u_k) h_k,\; \sigma_k \sigma_k^\top h_k)`, a
density on the directions that carry noise and an equation on those that do not.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..sde.base import Coefficients
from ..sde.noise import DiffusionRange, MatrixNoise, Noise

__all__ = ["EulerKernels", "TransitionKernels"]

_LOG_2PI = math.log(2 * math.pi)


class TransitionKernels(ABC):
    """Transition laws of a chain along one path, time leftmost: every tensor is ``(K, ...)``."""

    @abstractmethod
    def log_prob(self) -> Tensor:
        """Log-density of each next state of the path given the one before, ``(K, ...)``."""

    @abstractmethod
    def kl(self, other: TransitionKernels) -> Tensor:
        r"""Kullback–Leibler divergence of each transition from that of `other` along the same path, ``(K, ...)``."""

    @abstractmethod
    def check_absolutely_continuous(self, other: TransitionKernels) -> None:
        """Raise ValueError if the divergence from `other` is infinite."""

    def kl_from(self, other: TransitionKernels) -> Tensor:
        """Divergence of `other` from these kernels, if they know more kinds than `other` does."""
        del other
        raise NotImplementedError

    def check_absolutely_continuous_from(self, other: TransitionKernels) -> None:
        """Raise ValueError if the divergence of `other` from these kernels is infinite; asked as `kl_from`."""
        del other
        raise NotImplementedError


class EulerKernels(TransitionKernels):
    """Kernels of an Euler–Maruyama chain along a path.

    Args:
        noise: structure of the diffusion.
        coefficients: drift, diffusion and control at the states before each step.
        path: states, time leftmost, ``(K + 1, ..., D)``.
        times: solver times ``(K + 1, ..., 1)``, for messages.
        steps: step sizes ``(K, ..., 1)``, 0 where padded.
    """

    def __init__(self, noise: Noise, coefficients: Coefficients, path: Tensor, times: Tensor, steps: Tensor) -> None:
        self.noise = noise
        self.state = path[:-1]
        self.next_state = path[1:]
        self.times = times
        self.moving = steps > 0
        self._all_moving = bool(self.moving.all())
        # The one place where a step size is divided by or its logarithm taken: padded steps count as 1, then drop out.
        self.safe_steps = torch.where(self.moving, steps, torch.ones_like(steps))
        self.diffusion = noise.widen(coefficients.diffusion, path.shape[-1])
        self.drift = coefficients.drift
        self.control = coefficients.control
        self.total_drift = coefficients.total_drift(noise)
        # Here and not on demand: whoever asks first may do so without autograd, and the density needs the gradient.
        self.range: DiffusionRange = noise.range_of(self.diffusion)

    def with_drift(self, drift: Tensor) -> EulerKernels:
        """Kernels along the same path with the same diffusion, another drift and no control."""
        other = copy.copy(self)
        other.drift = other.total_drift = drift
        other.control = None
        return other

    def log_prob(self) -> Tensor:
        """Gaussian log-density of the increments.

        Raises:
            ValueError: if the path leaves the support on directions without noise.
        """
        standard, rest = self.range.coordinates(self.residual())
        if not self.range.full:
            self._check_support(rest)
        steps = self.safe_steps.squeeze(-1)
        quadratic = standard.square().sum(-1) / steps
        constant = 0.5 * self.range.rank * (steps.log() + _LOG_2PI) + self.range.log_volume
        return self._where_moving(-0.5 * quadratic - constant)

    def residual(self) -> Tensor:
        """Increments of the path beyond drift and control, ``(K, ..., D)``; that of a padded step means nothing."""
        return self.next_state - self.state - self.total_drift * self.safe_steps

    def kl(self, other: TransitionKernels) -> Tensor:
        r""":math:`\tfrac12 |u_k|^2 h_k` with :math:`\sigma_k u_k` the difference of the two drifts.

        With a control form on the same base drift the difference of the drifts is never formed: u is the control.

        Raises:
            ValueError: if the divergence is infinite.
        """
        if not isinstance(other, EulerKernels):
            return other.kl_from(self)
        self.check_absolutely_continuous(other)
        control, _ = self.range.coordinates(self._expand(self.drift - other.total_drift))
        if self.control is not None:
            control = control + self.range.project(self.control)
        return self._where_moving(0.5 * control.square().sum(-1) * self.safe_steps.squeeze(-1))

    def check_absolutely_continuous(self, other: TransitionKernels) -> None:
        """Same diffusion, and a difference of drifts inside its range, wherever time moves."""
        if not isinstance(other, EulerKernels):
            other.check_absolutely_continuous_from(self)
            return
        with torch.no_grad():
            self._check_same_diffusion(other)
            if self.range.full:
                return
            difference = self._expand(self.drift - other.total_drift)
            _, rest = self.range.coordinates(difference)
            size = torch.maximum(self._expand(self.drift).abs(), self._expand(other.total_drift).abs())
            size = self._scale(size + size.mean(0))
            bad = self.moving & self._noise_free & ~(rest.abs() <= _tolerance(rest) * size)
            if bad.any():
                where, place = self._locate(bad)
                msg = (
                    "the KL divergence is infinite: guide and model have different drifts in a direction without "
                    f"noise, {place}: guide {_at(self._expand(self.total_drift), where)}, model "
                    f"{_at(self._expand(other.total_drift), where)}. Use `prior.controlled(control)` in the guide, "
                    "whose drift differs from the prior only inside the range of the diffusion."
                )
                raise ValueError(msg)

    def _check_same_diffusion(self, other: EulerKernels) -> None:
        ours, theirs = self.diffusion, other.diffusion
        elementwise = not (isinstance(self.noise, MatrixNoise) or isinstance(other.noise, MatrixNoise))
        if elementwise:
            if ours is theirs:
                return
            ours, theirs = ours.abs(), theirs.abs()
            bad = ~((ours - theirs).abs() <= _tolerance(ours) * torch.maximum(ours, theirs))
        else:
            ours, theirs = self.noise.gram(ours), other.noise.gram(theirs)
            diagonal = torch.maximum(ours.diagonal(dim1=-2, dim2=-1), theirs.diagonal(dim1=-2, dim2=-1)).sqrt()
            size = diagonal.unsqueeze(-1) * diagonal.unsqueeze(-2)
            bad = ~((ours - theirs).abs() <= 2 * _tolerance(ours) * size).all(-1)
            ours, theirs = (g.diagonal(dim1=-2, dim2=-1).sqrt() for g in (ours, theirs))
        bad = bad & self.moving
        if bad.any():
            where, place = self._locate(bad)
            msg = (
                f"the KL divergence is infinite: guide and model have different diffusions, {place}: guide "
                f"{_at(ours, where)}, model {_at(theirs, where)}. The two path measures are mutually singular; build "
                "the guide as `prior.controlled(control)`, which shares the diffusion of the prior."
            )
            raise ValueError(msg)

    def _where_moving(self, term: Tensor) -> Tensor:
        """The term, 0 on padded steps."""
        return term if self._all_moving else torch.where(self.moving.squeeze(-1), term, term.new_zeros(()))

    def _check_support(self, rest: Tensor) -> None:
        with torch.no_grad():
            if not rest.any():
                return
            size = self.state.abs() + self.next_state.abs() + (self.total_drift * self.safe_steps).abs()
            bad = self.moving & self._noise_free & (rest.abs() > _tolerance(rest) * self._scale(size))
            if bad.any():
                where, place = self._locate(bad)
                msg = (
                    "the path is off the support of its law: where the diffusion is zero the increment must equal "
                    f"drift times step, but {place} it is off by {_at(rest, where)}. Sample such paths from the law, "
                    "or use PathNoiseReparam to infer them."
                )
                raise ValueError(msg)

    @property
    def _noise_free(self) -> Tensor:
        """Where some direction carries no noise, ``(K, ..., 1)``; elsewhere what is outside the range is rounding."""
        return (self.range.rank < self.state.shape[-1]).unsqueeze(-1)

    def _scale(self, size: Tensor) -> Tensor:
        """Size that rounding is relative to: a matrix mixes the states, so there it is that of the largest."""
        return size.amax(-1, keepdim=True) if isinstance(self.noise, MatrixNoise) else size

    def _expand(self, vector: Tensor) -> Tensor:
        return vector.expand(torch.broadcast_shapes(vector.shape, self.state.shape))

    def _locate(self, bad: Tensor) -> tuple[tuple[int, ...], str]:
        step, *series, dimension = bad.nonzero()[0].tolist()
        time = self.times[:-1].expand(*bad.shape[:-1], 1)[(step, *series)].item()
        text = f"at dimension {dimension}, time {time:g}" + (f", series {series}" if series else "")
        return (step, *series, dimension), text


def _tolerance(value: Tensor) -> float:
    """Relative tolerance of comparisons along a path."""
    return 1e-8 if value.dtype == torch.float64 else 1e-4


def _at(value: Tensor, where: tuple[int, ...]) -> str:
    value = value[(None,) * (len(where) - value.dim())]
    index = tuple(min(i, n - 1) for i, n in zip(where, value.shape, strict=True))  # size 1 broadcasts
    return f"{value[index].item():.6g}"
