r"""Transition kernels of reflected Euler–Maruyama steps: folded Gaussians, for all steps of a path at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..solvers.reflected import ReflectedEuler, reflect
from .kernels import EulerKernels, TransitionKernels

__all__ = ["ReflectedKernels"]

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_MOST = 64  # images on each side of an interval: noise of 16 interval lengths in one step


class ReflectedKernels(TransitionKernels):
    r"""Kernels of a `ReflectedEuler` chain along a path.

    With mean m and standard deviation s of the Euler step, and the boundaries a and b at the distance L, the density of
    the next state is a sum over its mirror images, entry by entry:

    .. math:: p(x) = N(x; m, s^2) + N(2a - x; m, s^2), \qquad
        p(x) = \sum_{n} N(x + 2nL; m, s^2) + N(2a - x + 2nL; m, s^2)

    for one and for two boundaries. The sum is cut where the rest is below 1e-13 of it. States without noise are at the
    mirror image of their mean.

    Args:
        solver: knows the boundaries.
        euler: the kernels before reflection, along the same path; diagonal noise.

    Derivation:
        Reflection folds the line onto the set, so the density at x is the sum of the density before reflection over all
        points that fold onto x, each of slope 1. With one boundary at 0 it is the folded normal law of Leone, Nelson,
        Nottingham (1961), The folded normal distribution, Technometrics 3(4).
    """

    def __init__(self, solver: ReflectedEuler, euler: EulerKernels) -> None:
        self.solver = solver
        self.euler = euler

    def log_prob(self) -> Tensor:
        """Log-density of the next states, ``(K, ...)``.

        Raises:
            ValueError: if a state is outside the boundaries, an increment without noise is not that of the drift, or
                the noise of one step is above 16 interval lengths.
        """
        euler = self.euler
        self._check_inside()
        mean = euler.state + euler.total_drift * euler.safe_steps
        mean, following = torch.broadcast_tensors(reflect(mean, self.solver.lower, self.solver.upper), euler.next_state)
        noisy = euler.diffusion != 0
        spread = torch.where(noisy, euler.diffusion.abs(), torch.ones_like(euler.diffusion)) * euler.safe_steps.sqrt()
        images = self._images(following, spread)
        exists = images.isfinite()  # no gradient may meet an infinite one
        terms = -0.5 * ((torch.where(exists, images, mean) - mean) / spread).square()
        terms = torch.where(exists, terms, terms.new_full((), -torch.inf))
        density = torch.logsumexp(terms, 0) - spread.log() - _HALF_LOG_2PI
        if not bool(noisy.all()):
            self._check_support(following - mean, noisy)
            density = torch.where(noisy, density, torch.zeros_like(density))
        total = density.sum(-1)
        return torch.where(euler.moving.squeeze(-1), total, torch.zeros_like(total))

    def kl(self, other: TransitionKernels) -> Tensor:
        """Not available: two folded Gaussians have no divergence in closed form.

        Raises:
            NotImplementedError: always.
        """
        del other
        msg = 'reflected steps have no divergence in closed form. Use kl="stl" or kl="full".'
        raise NotImplementedError(msg)

    def kl_from(self, other: TransitionKernels) -> Tensor:
        """As `kl`.

        Raises:
            NotImplementedError: always.
        """
        return self.kl(other)

    def check_absolutely_continuous(self, other: TransitionKernels) -> None:
        """Same boundaries, and what `EulerKernels` asks of the steps before reflection.

        Raises:
            ValueError: if the divergence is infinite.
        """
        if not isinstance(other, ReflectedKernels):
            _refuse_other(other)
        else:
            for name in ("lower", "upper"):
                if not _same(getattr(self.solver, name), getattr(other.solver, name)):
                    msg = (
                        f"the KL divergence is infinite: guide and model reflect at different boundaries, guide "
                        f"{self.solver!r}, model {other.solver!r}. Give both the same solver."
                    )
                    raise ValueError(msg)
            self.euler.check_absolutely_continuous(other.euler)

    def check_absolutely_continuous_from(self, other: TransitionKernels) -> None:
        """Raise ValueError: `other` knows no boundary."""
        _refuse_other(other)

    def _images(self, x: Tensor, spread: Tensor) -> Tensor:
        """Mirror images of states, ``(images, K, ..., D)``; those that do not exist are infinitely far."""
        low, high = (
            torch.as_tensor(end, dtype=x.dtype, device=x.device)
            for end in (
                -torch.inf if self.solver.lower is None else self.solver.lower,
                torch.inf if self.solver.upper is None else self.solver.upper,
            )
        )
        if self.solver.upper is None or self.solver.lower is None:
            end = low if self.solver.upper is None else high
            return torch.stack([x, 2 * end - x])
        both = low.isfinite() & high.isfinite()
        length = torch.where(both, high - low, torch.ones_like(low))
        count = self._count(spread, torch.where(both, length, torch.full_like(length, torch.inf)))
        away = torch.where(both, torch.zeros_like(length), torch.full_like(length, torch.inf))
        below, above = 2 * low - x - away, 2 * high - x + away
        images = [x, 2 * torch.where(low.isfinite(), low, high) - x, above + 2 * count * length]
        for n in range(1, count + 1):
            shift = 2 * n * length
            images += [x + shift + away, x - shift - away, below - shift, above + shift - 2 * length]
        return torch.stack(torch.broadcast_tensors(*images))

    def _count(self, spread: Tensor, length: Tensor) -> int:
        """Images to keep on each side: the first one left out is at 8 standard deviations beyond the farthest state."""
        with torch.no_grad():
            relative = float((spread / length).amax())
        count = math.ceil(0.5 * (math.sqrt(1 + 64 * relative**2) - 1)) if math.isfinite(relative) else 1
        if count > _MOST:
            msg = (
                f"the noise of one step is {relative:.3g} times the distance of the boundaries of {self.solver!r}; use "
                "a smaller max_step or a smaller diffusion."
            )
            raise ValueError(msg)
        return max(1, count)

    def _check_inside(self) -> None:
        with torch.no_grad():
            path = torch.cat([self.euler.state[:1], self.euler.next_state])
            self.solver.check_inside(path, self.euler.times)

    def _check_support(self, rest: Tensor, noisy: Tensor) -> None:
        """Entries without noise must move as the drift says."""
        euler = self.euler
        with torch.no_grad():
            tolerance = 1e-8 if rest.dtype == torch.float64 else 1e-4
            size = euler.state.abs() + euler.next_state.abs() + (euler.total_drift * euler.safe_steps).abs()
            bad = euler.moving & ~noisy & (rest.abs() > tolerance * size)
            if bad.any():
                where = tuple(bad.nonzero()[0].tolist())
                time = euler.times[:-1].expand(*bad.shape[:-1], 1)[where[:-1]].item()
                msg = (
                    "the path is off the support of its law: where the diffusion is zero the increment must equal "
                    f"drift times step, but at dimension {where[-1]}, time {time:g} it is off by "
                    f"{float(rest[where]):.6g}. Sample such paths from the law."
                )
                raise ValueError(msg)


def _refuse_other(other: TransitionKernels) -> None:
    msg = (
        f"the KL divergence is infinite: one of guide and model reflects at a boundary, the other has "
        f"{type(other).__name__}. Give both the same solver=ReflectedEuler(...)."
    )
    raise ValueError(msg)


def _same(ours: Tensor | float | None, theirs: Tensor | float | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    return bool((torch.as_tensor(ours) == torch.as_tensor(theirs)).all())
