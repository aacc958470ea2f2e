r"""A library of processes whose states are bounded: Cox–Ingersoll–Ross, logistic growth, Wright–Fisher."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Beta, Dirichlet, Gamma

from ._bounded_coefficients import (
    AlleleDiffusion,
    AlleleDrift,
    LogisticDrift,
    MutationDrift,
    ProportionalDiffusion,
    ReversionDrift,
    RootDiffusion,
    SamplingDiffusion,
    root,
)
from ._constraints import Positive, SquareRoot
from ._constraints_bounded import Arcsine, Interval, Simplex
from .base import SDE
from .constrained import ConstrainedSDE

__all__ = ["CoxIngersollRoss", "LogisticGrowth", "WrightFisher", "WrightFisherSimplex"]

Coefficient = Tensor | float


class CoxIngersollRoss(SDE):
    r"""Cox–Ingersoll–Ross process :math:`dx = \kappa(\theta - x)\,dt + s\sqrt x\,dW`, :math:`x \ge 0`, diagonal noise.

    It stays positive if :math:`2\kappa\theta \ge s^2` and touches 0 otherwise. Its steps:

    * forecasts by ``SplitStep()``, weak order 2 and never below 0, for :math:`4\kappa\theta \ge s^2`;
    * ``ReflectedEuler(lower=0.0)``, for all parameters and with a density; where the process touches 0 its error falls
      only like the root of the step;
    * `constrained`, :math:`\log x`, and `lamperti`, :math:`\sqrt x`, only far from 0
      (:math:`2\kappa\theta \gg s^2`): explicit steps of both explode where x is below about :math:`s^2 h`.

    Args:
        rate: :math:`\kappa > 0`, number or ``(*batch, D)``, per unit of time.
        mean: :math:`\theta > 0`, in units of x.
        scale: s > 0, root of a unit of x per root of time.

    References:
        Cox, Ingersoll, Ross (1985), A theory of the term structure of interest rates, eqs. (17)-(20).
    """

    def __init__(self, rate: Coefficient, mean: Coefficient, scale: Coefficient) -> None:
        super().__init__(ReversionDrift(rate=rate, mean=mean), RootDiffusion(scale=scale))

    def lamperti(self) -> ConstrainedSDE:
        r"""SDE of :math:`v = \sqrt x`.

        .. math:: dv = \Big(\frac{4\kappa\theta - s^2}{8v} - \frac{\kappa v}{2}\Big)\,dt + \frac s2\,dW
        """
        return ConstrainedSDE(self, SquareRoot())

    def constrained(self) -> ConstrainedSDE:
        r"""SDE of :math:`y = \log x`.

        .. math:: dy = \big((\kappa\theta - s^2/2)\,e^{-y} - \kappa\big)\,dt + s\,e^{-y/2}\,dW
        """
        return ConstrainedSDE(self, Positive())

    def drift_flow(self, x: Tensor, dt: Tensor) -> Tensor:
        r"""Solution of :math:`\dot x = \kappa(\theta - x) - s^2/4`."""
        rate, mean, scale = _like(x, *_values(self, "rate", "mean", "scale"))
        return x * torch.exp(-rate * dt) - (mean - 0.25 * scale.square() / rate) * torch.expm1(-rate * dt)

    def noise_flow(self, x: Tensor, w: Tensor) -> Tensor:
        r"""Solution of :math:`dx = s\sqrt x \circ dW`: :math:`(\sqrt x + s w/2)^2`."""
        return (root(x) + 0.5 * self.diffusion.scale * w).square()  # type: ignore[union-attr,operator]

    def check_split(self) -> None:
        """Raise ValueError unless ``4 * rate * mean >= scale**2``, which keeps `drift_flow` above 0."""
        rate, mean, scale = _tensors(*_values(self, "rate", "mean", "scale"))
        ratio = 4 * rate * mean / scale.square()
        if not bool((ratio >= 1).all()):
            msg = (
                f"SplitStep needs 4 * rate * mean >= scale**2, received a ratio of {float(ratio.min()):.4g}: the drift "
                "alone would carry the state below 0. Use ReflectedEuler(lower=0.0)."
            )
            raise ValueError(msg)

    def moments(self, time: Tensor | float, start: Tensor | float) -> tuple[Tensor, Tensor]:
        r"""Mean and variance of :math:`x_t` given :math:`x_0`.

        .. math:: \theta + (x_0 - \theta) e^{-\kappa t}, \qquad
            \frac{x_0 s^2}{\kappa}\big(e^{-\kappa t} - e^{-2\kappa t}\big) + \frac{\theta s^2}{2\kappa}
            \big(1 - e^{-\kappa t}\big)^2
        """
        rate, mean, scale, time, start = _tensors(*_values(self, "rate", "mean", "scale"), time, start)
        decay, rest = torch.exp(-rate * time), -torch.expm1(-rate * time)
        variance = scale.square() / rate * (start * decay * rest + 0.5 * mean * rest.square())
        return mean + (start - mean) * decay, variance

    def stationary(self) -> Gamma:
        r"""Stationary law, Gamma with shape :math:`2\kappa\theta/s^2` and rate :math:`2\kappa/s^2`."""
        rate, mean, scale = _tensors(*_values(self, "rate", "mean", "scale"))
        gamma_rate = 2 * rate / scale.square()
        return Gamma(gamma_rate * mean, gamma_rate)


class LogisticGrowth(SDE):
    r"""Logistic growth in a random environment, :math:`dx = r x (1 - x/K)\,dt + s x\,dW`, :math:`x > 0`.

    Use it as `constrained`, :math:`y = \log x`, whose noise is additive:
    :math:`dy = \big(r - \tfrac{s^2}2 - \tfrac rK e^y\big) dt + s\,dW`.

    Args:
        rate: r > 0, number or ``(*batch, D)``, per unit of time.
        capacity: K > 0, in units of x.
        scale: s, per root of time.

    References:
        Beddington, May (1977), Harvesting natural populations in a randomly fluctuating environment, Science 197.
    """

    def __init__(self, rate: Coefficient, capacity: Coefficient, scale: Coefficient) -> None:
        super().__init__(LogisticDrift(rate=rate, capacity=capacity), ProportionalDiffusion(scale=scale))

    def constrained(self) -> ConstrainedSDE:
        r"""SDE of :math:`y = \log x`, also its Lamperti coordinate."""
        return ConstrainedSDE(self, Positive())

    def drift_flow(self, x: Tensor, dt: Tensor) -> Tensor:
        r"""Solution of :math:`\dot x = \rho x - r x^2/K`, :math:`\rho = r - s^2/2`."""
        rate, capacity, scale = _like(x, *_values(self, "rate", "capacity", "scale"))
        growth = rate - 0.5 * scale.square()
        return x * torch.exp(growth * dt) / (1 + rate / capacity * x * _integral(growth, dt))

    def noise_flow(self, x: Tensor, w: Tensor) -> Tensor:
        r"""Solution of :math:`dx = s x \circ dW`: :math:`x e^{s w}`."""
        return x * torch.exp(self.diffusion.scale * w)  # type: ignore[union-attr,operator]

    def check_split(self) -> None:
        """Nothing to check: both flows stay positive."""

    def stationary(self) -> Gamma:
        r"""Stationary law, Gamma with shape :math:`2r/s^2 - 1` and rate :math:`2r/(K s^2)`.

        Raises:
            ValueError: if :math:`2r \le s^2`: then the population dies out.
        """
        rate, capacity, scale = _tensors(*_values(self, "rate", "capacity", "scale"))
        shape = 2 * rate / scale.square() - 1
        if not bool((shape > 0).all()):
            msg = (
                f"`rate` must be above scale**2 / 2 for a stationary law, received a ratio 2 rate / scale**2 of "
                f"{float((shape + 1).min()):.4g}: the population dies out. Give another initial law."
            )
            raise ValueError(msg)
        return Gamma(shape, 2 * rate / (capacity * scale.square()))


class WrightFisher(SDE):
    r"""Wright–Fisher diffusion of the frequency of one of two alleles, :math:`0 \le x \le 1`, diagonal noise.

    .. math:: dx = \big(\alpha (1 - x) - \beta x + \gamma x (1 - x)\big)\,dt + s\sqrt{x (1 - x)}\,dW

    It stays inside if :math:`2\alpha \ge s^2` and :math:`2\beta \ge s^2`, and touches 0 or 1 otherwise. Its steps:
    ``SplitStep()`` for forecasts if :math:`4\alpha \ge s^2` and :math:`4\beta \ge s^2`, ``ReflectedEuler(0.0, 1.0)``
    for all parameters and with a density; `constrained` (logit) and `lamperti` far from both ends only.

    Args:
        gain: :math:`\alpha \ge 0`, mutation towards the allele, number or ``(*batch, D)``, per unit of time.
        loss: :math:`\beta \ge 0`, mutation away from it.
        selection: :math:`\gamma`, advantage of the allele.
        scale: s > 0, per root of time; :math:`1/\sqrt{2N}` per generation for a diploid population of size N.

    References:
        Ewens (2004), Mathematical Population Genetics, section 5.6.
    """

    def __init__(
        self, gain: Coefficient, loss: Coefficient, selection: Coefficient = 0.0, scale: Coefficient = 1.0
    ) -> None:
        super().__init__(AlleleDrift(gain=gain, loss=loss, selection=selection), AlleleDiffusion(scale=scale))

    def lamperti(self) -> ConstrainedSDE:
        r"""SDE of :math:`v = \arcsin\sqrt x`.

        .. math:: dv = \Big(\frac{4\alpha - s^2}8 \cot v - \frac{4\beta - s^2}8 \tan v + \frac\gamma4 \sin 2v\Big)\,dt
            + \frac s2\,dW
        """
        return ConstrainedSDE(self, Arcsine(0.0, 1.0))

    def constrained(self) -> ConstrainedSDE:
        r"""SDE of :math:`y = \log(x / (1 - x))`."""
        return ConstrainedSDE(self, Interval(0.0, 1.0))

    def drift_flow(self, x: Tensor, dt: Tensor) -> Tensor:
        r"""Solution of :math:`\dot x = (\alpha - s^2/4)(1 - x) - (\beta - s^2/4) x + \gamma x (1 - x)`.

        With selection it is split once more, mutation between two halves of selection: of second order in `dt`.
        """
        gain, loss, selection, scale = _like(x, *_values(self, "gain", "loss", "selection", "scale"))
        half, noise = 0.5 * selection * dt, 0.25 * scale.square()
        total = gain + loss - 2 * noise
        x = _select(x, half)
        x = x * torch.exp(-total * dt) + (gain - noise) * _integral(-total, dt)
        return _select(x, half)

    def noise_flow(self, x: Tensor, w: Tensor) -> Tensor:
        r"""Solution of :math:`dx = s\sqrt{x (1 - x)} \circ dW`: :math:`\sin^2(\arcsin\sqrt x + s w/2)`."""
        angle = torch.atan2(root(x), root(1 - x)) + 0.5 * self.diffusion.scale * w  # type: ignore[union-attr,operator]
        return angle.sin().square()

    def check_split(self) -> None:
        """Raise ValueError unless ``4 * gain >= scale**2`` and ``4 * loss >= scale**2``."""
        gain, loss, scale = _tensors(*_values(self, "gain", "loss", "scale"))
        ratio = 4 * torch.minimum(gain, loss) / scale.square()
        if not bool((ratio >= 1).all()):
            msg = (
                "SplitStep needs 4 * gain >= scale**2 and 4 * loss >= scale**2, received a smallest ratio of "
                f"{float(ratio.min()):.4g}: the drift alone would carry the state out of [0, 1]. Use "
                "ReflectedEuler(0.0, 1.0)."
            )
            raise ValueError(msg)

    def moments(self, time: Tensor | float, start: Tensor | float) -> tuple[Tensor, Tensor]:
        r"""Mean and variance of :math:`x_t` given :math:`x_0`, without selection.

        With :math:`\lambda = \alpha + \beta`, :math:`\mu = \alpha/\lambda` and :math:`\nu = 2\lambda + s^2`,

        .. math:: E[x_t] = \mu + (x_0 - \mu) e^{-\lambda t}, \qquad \frac{d}{dt} E[x_t^2] = (2\alpha + s^2) E[x_t] - \nu
            E[x_t^2]

        Raises:
            ValueError: if there is selection, with which the moments have no closed form, or no mutation.
        """
        values = _values(self, "gain", "loss", "selection", "scale")
        gain, loss, selection, scale, time, start = _tensors(*values, time, start)
        total = gain + loss
        if bool((selection != 0).any()) or not bool((total > 0).all()):
            msg = "`moments` has a closed form only with selection=0 and gain + loss > 0. Simulate the process instead."
            raise ValueError(msg)
        level, noise = gain / total, scale.square()
        decay, fast = torch.exp(-total * time), torch.exp(-(2 * total + noise) * time)
        mean = level + (start - level) * decay
        drive, speed = 2 * gain + noise, 2 * total + noise
        second = start.square() * fast + drive * (
            level * (1 - fast) / speed + (start - level) * (decay - fast) / (total + noise)
        )
        return mean, second - mean.square()

    def stationary(self) -> Beta:
        r"""Stationary law without selection, Beta with parameters :math:`2\alpha/s^2` and :math:`2\beta/s^2`.

        Raises:
            ValueError: if there is selection.
        """
        gain, loss, selection, scale = _tensors(*_values(self, "gain", "loss", "selection", "scale"))
        if bool((selection != 0).any()):
            msg = "`stationary` is a Beta law only with selection=0. Give another initial law."
            raise ValueError(msg)
        return Beta(2 * gain / scale.square(), 2 * loss / scale.square())


class WrightFisherSimplex(SDE):
    r"""Wright–Fisher diffusion of the frequencies of D alleles with parent-independent mutation, on the simplex.

    .. math:: dx_i = \big(\alpha_i - |\alpha|\, x_i\big)\,dt + s \sum_j \sqrt{x_j}\,(\delta_{ij} - x_i)\,dW_j,
        \qquad |\alpha| = \sum_j \alpha_j

    so that the covariance of the noise is :math:`s^2 (x_i \delta_{ij} - x_i x_j)`. Noise type "general", D Brownian
    motions of rank D - 1. Use it as `constrained`, by log-ratios, where :math:`2\alpha_i \gg s^2`.

    Args:
        mutation: :math:`\alpha > 0`, rates towards each allele ``(*batch, D)``, per unit of time.
        scale: s > 0, number or ``(*batch, 1)``, per root of time.

    References:
        Ethier, Kurtz (1986), Markov Processes, section 10.2.
    """

    def __init__(self, mutation: Tensor, scale: Coefficient = 1.0) -> None:
        super().__init__(MutationDrift(mutation=mutation), SamplingDiffusion(scale=scale), noise_type="general")

    def constrained(self) -> ConstrainedSDE:
        r"""SDE of the log-ratios :math:`y_i = \log(x_i / x_D)`."""
        return ConstrainedSDE(self, Simplex())

    def moments(self, time: Tensor | float, start: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of every entry given :math:`x_0`: each is a `WrightFisher` of its own."""
        mutation, scale = _tensors(*_values(self, "mutation", "scale"))
        total = mutation.sum(-1, keepdim=True)
        return WrightFisher(mutation, total - mutation, 0.0, scale).moments(time, start)

    def stationary(self) -> Dirichlet:
        r"""Stationary law, Dirichlet with parameters :math:`2\alpha_i / s^2`."""
        mutation, scale = _tensors(*_values(self, "mutation", "scale"))
        return Dirichlet(2 * mutation / scale.square())


def _integral(rate: Tensor, dt: Tensor) -> Tensor:
    r""":math:`\int_0^h e^{r t} dt`, also where r is 0."""
    flat = rate == 0
    safe = torch.where(flat, torch.ones_like(rate), rate)
    return torch.where(flat, dt, torch.expm1(safe * dt) / safe)


def _select(x: Tensor, strength: Tensor) -> Tensor:
    r"""Solution of :math:`\dot x = \gamma x (1 - x)` at :math:`\gamma t` = `strength`."""
    return x / (x + (1 - x) * torch.exp(-strength))


def _values(sde: SDE, *names: str) -> list[Coefficient]:
    return [getattr(sde.drift, name) if hasattr(sde.drift, name) else getattr(sde.diffusion, name) for name in names]


def _like(x: Tensor, *values: Coefficient) -> list[Tensor]:
    return [torch.as_tensor(value, dtype=x.dtype, device=x.device) for value in values]


def _tensors(*values: Coefficient) -> list[Tensor]:
    """The values as tensors of the dtype and device of those that are tensors, float64 if none is."""
    like = next((value for value in values if isinstance(value, Tensor)), torch.zeros((), dtype=torch.float64))
    return [torch.as_tensor(value, dtype=like.dtype, device=like.device) for value in values]
