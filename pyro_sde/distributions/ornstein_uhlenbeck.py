r"""The Ornstein–Uhlenbeck path law from plain tensors."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Normal
from torch import Tensor
from torch.distributions import constraints

from ..ops._arguments import check_floating, check_real
from ..ops.grid import TimeGrid
from ..sde.independent import OrnsteinUhlenbeck
from .sde_path import SDEPath

__all__ = ["OrnsteinUhlenbeckPath"]


class OrnsteinUhlenbeckPath(SDEPath):
    r"""Euler–Maruyama path of :math:`dz = \theta(\mu - z)\,dt + \sigma\,dW` from its stationary law.

    .. math:: z_0 \sim N\big(\mu, \sigma^2 / 2\theta\big)

    Args:
        theta: rate ``(*batch, D)``, ``> 0``, per unit of time.
        sigma: diffusion ``(*batch, D)``, ``> 0``, state unit per square root of time.
        loc: mean ``(*batch, D)``.
        times: grid times ``(*batch, T)``, increasing; the solver takes one step between neighbours.
        validate_args: as for every torch distribution.

    Shape:
        event shape ``(T, D)``.

    Raises:
        TypeError: if an argument is no floating-point tensor (times may be whole numbers).
        ValueError: if shapes do not fit, times do not increase, or a value is out of its range.

    References:
        Särkkä and Solin (2019), Applied Stochastic Differential Equations, example 6.2.

    Example:
        >>> one = torch.ones(1)
        >>> OrnsteinUhlenbeckPath(one, one, 0 * one, torch.tensor([0.0, 0.5, 1.0])).sample().shape
        torch.Size([3, 1])
    """

    arg_constraints = {
        "theta": constraints.independent(constraints.positive, 1),
        "sigma": constraints.independent(constraints.positive, 1),
        "loc": constraints.real_vector,
        "times": constraints.real_vector,
    }

    def __init__(
        self, theta: Tensor, sigma: Tensor, loc: Tensor, times: Tensor, *, validate_args: bool | None = None
    ) -> None:
        check_floating(theta=theta, sigma=sigma, loc=loc)
        check_real(times=times)  # whole numbers too, as in `TimeGrid`
        try:
            self.theta, self.sigma, self.loc = torch.broadcast_tensors(theta, sigma, loc)
        except RuntimeError as error:
            shapes = ", ".join(str(tuple(part.shape)) for part in (theta, sigma, loc))
            msg = f"`theta`, `sigma` and `loc` must broadcast to (*batch, D), received {shapes}."
            raise ValueError(msg) from error
        if self.theta.dim() < 1 or self.theta.shape[-1] < 1:
            msg = f"`theta`, `sigma` and `loc` must have shape (*batch, D), received {tuple(self.theta.shape)}."
            raise ValueError(msg)
        self.times = times
        initial = Normal(self.loc, self.sigma / (2 * self.theta).sqrt(), validate_args=False).to_event(1)
        sde = OrnsteinUhlenbeck(self.theta, self.sigma, self.loc)
        super().__init__(sde, initial, TimeGrid(times), validate_args=validate_args)

    @classmethod
    def infer_shapes(cls, **shapes: Any) -> tuple[torch.Size, torch.Size]:  # noqa: ANN401
        """Batch and event shape from the shapes of the arguments."""
        states = torch.broadcast_shapes(*(torch.Size(shapes[name]) for name in ("theta", "sigma", "loc")))
        times = torch.Size(shapes["times"])
        batch = torch.broadcast_shapes(states[:-1], times[:-1])
        return batch, torch.Size((times[-1], states[-1]))
