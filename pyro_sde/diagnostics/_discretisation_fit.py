r"""The ELBO as a polynomial of the step size, fitted to draws that share their random numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Estimate", "StepFit", "fit_steps", "largest_step"]

# Chi-square of 2 for one contrast: from there on a parabola predicts better than a line (Akaike).
_MISFIT = 0.157
_ROUND_OFF = 1e-12


class Estimate(NamedTuple):
    """A figure and its standard error."""

    value: float
    standard_error: float

    def __str__(self) -> str:
        """Figure and error."""
        return f"{self.value:.5g} ± {self.standard_error:.2g}"


class StepFit(NamedTuple):
    r"""Fitted :math:`L(h) = a + b h\,[+ c h^2]`.

    Attributes:
        order: 1 for a line, 2 where a parabola predicts better.
        coefficients: a, b and, for order 2, c.
        bias: :math:`\hat L(h) - a` at every measured step.
        misfit: p-value of the agreement of the points with a line; None for two points.
        rest: p-value of their agreement with the parabola; None if order is 1 or there are three points.
        settles: False if neighbouring values differ by more at fine steps than at coarse ones.
    """

    order: int
    coefficients: tuple[Estimate, ...]
    bias: tuple[Estimate, ...]
    misfit: float | None
    rest: float | None
    settles: bool


def fit_steps(steps: Sequence[float], draws: Tensor) -> StepFit:
    """Weighted least squares through the mean values at each step.

    Draws of one column share their random numbers, so values at neighbouring steps are strongly correlated. For fixed
    weights every figure of the fit is linear in the values: it is taken draw by draw, and its standard error is that of
    the mean of the results, right whatever the correlation.

    Args:
        steps: F decreasing step sizes.
        draws: values ``(F, P)``, one column per draw.

    Returns:
        A line, or a parabola where there are three points or more and it predicts better.
    """
    h = torch.tensor(steps, dtype=torch.float64)
    draws = draws.double()
    misfit = _disagreement(h, draws, 1)
    order = 2 if misfit is not None and misfit < _MISFIT else 1
    rest = _disagreement(h, draws, 2) if order == 2 else None
    results = _projection(h, draws, order) @ draws  # (order + 1, P)
    bias = draws - results[0]
    return StepFit(
        order,
        tuple(_estimate(row) for row in results),
        tuple(_estimate(row) for row in bias),
        misfit,
        rest,
        _settles(draws),
    )


def largest_step(fit: StepFit, tolerance: float) -> float:
    """Step up to which the fitted curve stays within `tolerance` of its value at 0; infinity if it always does."""
    slope = fit.coefficients[1].value
    bend = fit.coefficients[2].value if fit.order == 2 else 0.0
    roots = [root for level in (tolerance, -tolerance) for root in _roots(bend, slope, -level) if root > 0]
    return min(roots, default=math.inf)


def _roots(a: float, b: float, c: float) -> list[float]:
    """Real roots of a h^2 + b h + c, by the form without cancellation."""
    if a == 0:
        return [] if b == 0 else [-c / b]
    square = b * b - 4 * a * c
    if square < 0:
        return []
    half = -0.5 * (b + math.copysign(math.sqrt(square), b))
    return [half / a] + ([c / half] if half else [])


def _design(h: Tensor, order: int) -> Tensor:
    """Powers of the steps, relative to the largest, ``(F, order + 1)``."""
    return torch.stack([(h / h[0]) ** power for power in range(order + 1)], -1)


def _errors(draws: Tensor) -> Tensor:
    """Standard errors of the means; rounding is the least error that there is."""
    error = draws.std(-1) / math.sqrt(draws.shape[-1])
    return error.maximum(_ROUND_OFF * draws.abs().amax() + torch.finfo(torch.float64).tiny)


def _projection(h: Tensor, draws: Tensor, order: int) -> Tensor:
    """Matrix ``(order + 1, F)`` from values to coefficients in powers of h."""
    error = _errors(draws)
    # One value far more exact than the others must not stand alone against them: there would be no slope.
    weight = error.amax() / error.maximum(1e-3 * error.amax())
    design = _design(h, order)
    scaled = torch.linalg.pinv(weight.unsqueeze(-1) * design) * weight
    return scaled / (h[0] ** torch.arange(order + 1, dtype=h.dtype)).unsqueeze(-1)


def _disagreement(h: Tensor, draws: Tensor, order: int) -> float | None:
    """P-value of the contrasts that vanish for polynomials of this order; None if the points have none."""
    free = len(h) - order - 1
    if free < 1:
        return None
    basis = torch.linalg.qr(_design(h, order), mode="complete").Q[:, order + 1 :]  # (F, free)
    contrasts = basis.mT @ draws
    mean = contrasts.mean(-1)
    floor = (_ROUND_OFF * draws.abs().amax() + torch.finfo(torch.float64).tiny) ** 2
    covariance = torch.cov(contrasts).reshape(free, free) / draws.shape[-1] + floor * torch.eye(free, dtype=h.dtype)
    statistic = mean @ torch.linalg.solve(covariance, mean)
    return float(torch.special.gammaincc(torch.tensor(free / 2, dtype=h.dtype), statistic / 2))


def _settles(draws: Tensor) -> bool:
    """Whether values change less between the two finest steps than between the two coarsest."""
    if len(draws) < 3:
        return True
    first, last = draws[1] - draws[0], draws[-1] - draws[-2]
    growth = last * last.mean().sign() - first * first.mean().sign()
    gain = _estimate(growth)
    floor = 1e-9 * float(draws.abs().amax())
    return not gain.value > 3 * gain.standard_error + floor


def _estimate(draws: Tensor) -> Estimate:
    return Estimate(float(draws.mean()), float(draws.std() / math.sqrt(len(draws))))
