r"""The Ornstein–Uhlenbeck path law from plain tensors."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Normal
from torch import Tensor
from torch.distributions import constraints

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
        self.theta, self.sigma, self.loc = torch.broadcast_tensors(theta, sigma, loc)
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
