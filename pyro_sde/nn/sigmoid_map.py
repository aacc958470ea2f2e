r"""A monotone map of standard normal noise, whose images have one or more modes and are skew."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from .base import check_positive, inverse_softplus

__all__ = ["SigmoidMap", "SigmoidTransform"]

_SLOPE = 0.9  # each sigmoid may take this part of its share of the slope away, so that slopes stay above 0.1
_REACH = 2.0  # outermost centres, in standard deviations of the noise
_BISECTIONS, _NEWTON = 12, 3  # halvings of the bracket, to 1e-3 of it, then quadratic convergence


class SigmoidMap:
    r"""Monotone map of noise: a straight line and K sigmoids with fixed centres.

    .. math:: h_w(\epsilon) = \epsilon + \sum_k \tfrac{w_k}{b} \big[\tanh(b(\epsilon - c_k)) + \tanh(b c_k)\big],
              \qquad w_k > -\tfrac{0.9}{K}

    Weights 0 make it the identity. A positive weight spreads the noise around its centre, up to two modes on either
    side, a negative one draws it together; unequal weights make it skew. Far out the slope is 1: tails are Gaussian.

    Args:
        count: number K of sigmoids, evenly spaced from -2 to 2; at 0 if it is 1.

    Shape:
        raw numbers, their rate and weights: ``(..., K)`` · noise, values and all results but weights: ``(...)``.

    Raises:
        ValueError: if `count` is not an integer >= 1.

    References:
        Snelson, Rasmussen, Ghahramani (2004), Warped Gaussian processes: a line and a sum of tanh, here with fixed
        centres and steepness.
    """

    def __init__(self, count: int) -> None:
        self.count = check_positive("count", count)
        reach = _REACH if count > 1 else 0.0
        self.centres = torch.linspace(-reach, reach, count, dtype=torch.float64)
        self.steepness = 1.5 * (count - 1) / (2 * _REACH) if count > 1 else 1.0

    def weights(self, raw: Tensor) -> Tensor:
        """Weights from unconstrained numbers ``(..., K)``; 0 from 0."""
        return (nn.functional.softplus(raw + inverse_softplus(_SLOPE)) - _SLOPE) / self.count

    def weights_rate(self, raw: Tensor, rate: Tensor) -> Tensor:
        """Derivative of `weights` where that of the numbers is `rate`."""
        return (raw + inverse_softplus(_SLOPE)).sigmoid() * rate / self.count

    def apply(self, weights: Tensor, eps: Tensor) -> Tensor:
        """The map: weights ``(..., K)``, noise ``(...)``."""
        return eps + self.change(weights, eps)

    def change(self, weights: Tensor, eps: Tensor) -> Tensor:
        """What the sigmoids add, linear in the weights."""
        centre = self.centres.to(eps)
        bend = torch.tanh(self._place(eps)) + torch.tanh(self.steepness * centre)
        return (weights * bend).sum(-1) / self.steepness

    def slope(self, weights: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """First derivative with respect to the noise, and derivative of its logarithm."""
        tanh = torch.tanh(self._place(eps))
        bell = weights * (1 - tanh.square())
        slope = 1 + bell.sum(-1)
        return slope, -2 * self.steepness * (bell * tanh).sum(-1) / slope

    def invert(self, weights: Tensor, value: Tensor) -> Tensor:
        """Noise of which the map makes `value`, by bisection and Newton's method; carries first derivatives."""
        with torch.no_grad():
            # the sigmoid of centre c adds from w (tanh(bc) - 1) / b to w (tanh(bc) + 1) / b
            width = 2 * weights.abs().sum(-1) / self.steepness
            low, high = torch.broadcast_tensors(value - width, value + width)
            for _ in range(_BISECTIONS):
                middle = (low + high) / 2
                above = self.apply(weights, middle) > value
                low, high = torch.where(above, low, middle), torch.where(above, middle, high)
            eps = (low + high) / 2
            for _ in range(_NEWTON):
                eps = eps - (self.apply(weights, eps) - value) / self.slope(weights, eps)[0]
            slope, _ = self.slope(weights, eps)
        return eps - (self.apply(weights, eps) - value) / slope

    def _place(self, eps: Tensor) -> Tensor:
        return self.steepness * (eps.unsqueeze(-1) - self.centres.to(eps))


class SigmoidTransform(Transform):
    r"""Noise to states: :math:`m + S^{1/2} h_w(\epsilon)` with a `SigmoidMap` h, for a law with a density.

    Args:
        sigmoids: the map.
        mean: m, ``(..., D)``.
        scale: standard deviations ``(..., D)`` or a lower Cholesky factor ``(..., D, D)``.
        weights: w, ``(..., D, K)``.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, sigmoids: SigmoidMap, mean: Tensor, scale: Tensor, weights: Tensor) -> None:
        super().__init__()
        self.sigmoids, self.mean, self.scale, self.weights = sigmoids, mean, scale, weights
        self._diagonal = scale.dim() == mean.dim()

    def _call(self, x: Tensor) -> Tensor:
        bent = self.sigmoids.apply(self.weights, x)
        return self.mean + (self.scale * bent if self._diagonal else (self.scale @ bent.unsqueeze(-1)).squeeze(-1))

    def _inverse(self, y: Tensor) -> Tensor:
        y = y - self.mean
        if self._diagonal:
            return self.sigmoids.invert(self.weights, y / self.scale)
        bent = torch.linalg.solve_triangular(self.scale, y.unsqueeze(-1), upper=False).squeeze(-1)
        return self.sigmoids.invert(self.weights, bent)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Sum over dimensions of the log-slopes and log-scales, ``(...)``."""
        del y
        scale = self.scale if self._diagonal else self.scale.diagonal(dim1=-2, dim2=-1)
        return (self.sigmoids.slope(self.weights, x)[0].log() + scale.log()).sum(-1)
