r"""The prior of a deep Markov model."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..distributions.markov_path import MarkovPath
from ..nn.gated_transition import GatedTransition

__all__ = ["DeepMarkovPrior"]


class DeepMarkovPrior(nn.Module):
    r"""Chain :math:`z_1 \sim p(\cdot \mid s)`, :math:`z_{t+1} \sim p(\cdot \mid z_t)` with one gated Normal transition.

    .. math:: p(z' \mid z) = N\big(\mu(z), \mathrm{diag}\,\sigma(z)^2\big)

    with :math:`\mu, \sigma` of a `GatedTransition` and a learned state s before the first one.

    Args:
        state_dim: number D of state dimensions.
        hidden: width of the hidden layers of the transition.

    Raises:
        ValueError: if a size is not positive.

    References:
        Krishnan, Shalit, Sontag (2017), arXiv 1609.09869, eq. (1) and section 5.

    Example:
        >>> DeepMarkovPrior(4, hidden=16)(10, torch.tensor([10, 7]))
        MarkovPath(batch_shape=(2,), event_shape=(10, 4))
    """

    def __init__(self, state_dim: int, hidden: int = 200) -> None:
        super().__init__()
        self.transition = GatedTransition(state_dim, hidden)
        self.start = nn.Parameter(torch.zeros(state_dim))

    def step(self, z: Tensor, t: Tensor, inputs: Tensor | None = None) -> Distribution:
        """Law of the state after z ``(..., D)``; the index of the step plays no part."""
        del t
        loc, scale = self.transition(z, inputs)
        return dist.Normal(loc, scale, validate_args=False).to_event(1)

    def forward(self, length: int, lengths: Tensor | None = None) -> MarkovPath:
        """Law of paths of `length` states.

        Args:
            length: number T of states.
            lengths: ``(B,)``, where every series ends; as for `MarkovPath`.
        """
        return MarkovPath(self.step, self.step(self.start, self.start.new_ones(1)), length, lengths=lengths)
