r"""Laws of the first state of a path."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..nn.base import check_positive, inverse_softplus
from ..ops._arguments import check_numbers

__all__ = ["InitialNormal"]

_SCALE_FLOOR = 1e-3


class InitialNormal(nn.Module):
    r"""Learned law :math:`z_0 \sim N(m, \mathrm{diag}(s^2))` of the first state, the same for every series.

    Args:
        state_dim: number D of state dimensions.
        scale: standard deviation before training, ``> 1e-3``; the mean starts at 0.

    Raises:
        ValueError: if `state_dim` is not positive or `scale` not as described.

    Example:
        >>> InitialNormal(3)().event_shape
        torch.Size([3])
    """

    def __init__(self, state_dim: int, *, scale: float = 1.0) -> None:
        super().__init__()
        check_positive("state_dim", state_dim)
        check_numbers(scale=scale)
        if not _SCALE_FLOOR < scale < math.inf:
            msg = f"`scale` must be finite and > {_SCALE_FLOOR}, received {scale}."
            raise ValueError(msg)
        self.loc = nn.Parameter(torch.zeros(state_dim))
        self.raw_scale = nn.Parameter(torch.full((state_dim,), inverse_softplus(scale - _SCALE_FLOOR)))

    @property
    def scale(self) -> Tensor:
        """Standard deviation of every dimension, ``(D,)``."""
        return _SCALE_FLOOR + nn.functional.softplus(self.raw_scale)

    def forward(self) -> TorchDistributionMixin:
        """The law, event shape ``(D,)``."""
        return dist.Normal(self.loc, self.scale).to_event(1)
