r"""Integrated Wiener processes: smoothing splines as SDEs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..ops.discretise import Transition
from ._arguments import is_count
from .linear import LinearSDE, Parameter
from .system import LinearSystem

__all__ = ["IntegratedWiener"]


class IntegratedWiener(LinearSDE):
    r"""n times integrated Wiener process, :math:`d f^{(n)} = \sigma\,dW`; state :math:`(f, f', \dots, f^{(n)})`.

    The prior behind smoothing splines (n = 1: cubic) and of probabilistic ODE solvers. Not stationary: a path needs
    an initial law, whose uncertainty is the polynomial trend.

    .. math:: \Phi_{ij} = \frac{h^{j-i}}{(j-i)!}, \qquad
        Q_{ij} = \sigma^2 \frac{h^{2n+1-i-j}}{(2n+1-i-j)\,(n-i)!\,(n-j)!}

    Args:
        order: n, ``>= 0``; 0 is Brownian motion.
        scale: :math:`\sigma > 0`, number or ``(*batch)``, unit of the n-th derivative per square root of time.

    Raises:
        ValueError: if `order` is negative or `scale` not positive.

    References:
        Särkkä and Solin (2019), Applied Stochastic Differential Equations, section 6.2. Wahba (1978), Improper priors,
        spline smoothing and the problem of guarding against model errors in regression.

    Example:
        >>> IntegratedWiener(order=1).transition(torch.tensor([2.0])).covariance
        tensor([[[2.6667, 2.0000],
                 [2.0000, 2.0000]]])
    """

    def __init__(self, order: int = 1, scale: Parameter = 1.0) -> None:
        if not is_count(order, 0):
            msg = f"`order` counts integrations and must be >= 0, received {order!r}."
            raise ValueError(msg)
        super().__init__(order + 1)
        self.order = order
        self._register("scale", scale, positive=True)

    def _system(self, device: torch.device | None) -> LinearSystem:
        (scale,), dtype = self._read("scale", device=device)
        n, size = self.order, self.order + 1
        identity = torch.eye(size, dtype=scale.dtype, device=scale.device)
        index = torch.arange(size, dtype=scale.dtype, device=scale.device)
        rise = (index - index.unsqueeze(-1)).clamp(min=0)
        phi_weights = torch.triu(torch.exp(-torch.lgamma(rise + 1)))
        order = 2 * n + 1 - index - index.unsqueeze(-1)
        factorials = identity.new_tensor([math.factorial(n - i) for i in range(size)])
        q_weights = 1 / (order * factorials * factorials.unsqueeze(-1))

        def exact(dt: Tensor) -> Transition:
            powers = [torch.ones_like(dt)]  # by products: a power of 0 has no safe gradient
            for _ in range(2 * n + 1):
                powers.append(powers[-1] * dt)
            stacked = torch.stack(powers, -1)  # (*batch, K, 2n + 2)
            phi = stacked[..., rise.long().flatten()].unflatten(-1, (size, size)) * phi_weights
            covariance = stacked[..., order.long().flatten()].unflatten(-1, (size, size)) * q_weights
            covariance = scale.square()[..., None, None, None] * covariance
            return Transition(phi, phi.new_zeros(()).expand(phi.shape[:-1]), covariance)

        matrix = torch.diag_embed(torch.ones(n, dtype=scale.dtype, device=scale.device), offset=1)
        return LinearSystem(
            type(self).__name__, matrix, scale[..., None, None] * identity[:, -1:], identity[:1], dtype, exact=exact
        )
