r"""The gated transition of a deep Markov model: between a linear and a free step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from .base import check_positive

__all__ = ["GatedTransition", "SCALE_FLOOR", "joined"]

SCALE_FLOOR = 1e-3  # standard deviations of transitions stay above it, so that no divergence is infinite


class GatedTransition(nn.Module):
    r"""Location and scale of the next state, gated between an affine and a free step.

    .. math::
        g = \mathrm{sigmoid}(\mathrm{MLP}_g(z)), \quad h = \mathrm{MLP}_h(z), \quad
        \mu = (1 - g) \odot (W z + b) + g \odot h, \quad \sigma = \epsilon + \mathrm{softplus}(V \mathrm{relu}(h) + c)

    W starts as the identity and b as 0. The floor :math:`\epsilon = 10^{-3}` is not in the paper. Cost: five matrix
    products; the first layers of both perceptrons are one.

    Args:
        state_dim: number D of state dimensions.
        hidden: width of the hidden layer of each perceptron.
        input_dim: number C of inputs that the perceptrons read beside the state; 0 for none.

    Shape:
        z: ``(..., D)`` · inputs: ``(..., C)`` · returns: two of ``(..., D)``.

    Raises:
        ValueError: if a size is not positive.

    References:
        Krishnan, Shalit, Sontag (2017), Structured inference networks for nonlinear state space models, arXiv
        1609.09869, section 5.

    Example:
        >>> loc, scale = GatedTransition(3)(torch.zeros(5, 3))
        >>> loc.shape, scale.shape
        (torch.Size([5, 3]), torch.Size([5, 3]))
    """

    def __init__(self, state_dim: int, hidden: int = 200, *, input_dim: int = 0) -> None:
        super().__init__()
        self.state_dim = check_positive("state_dim", state_dim)
        self.input_dim = check_positive("input_dim", input_dim) if input_dim else 0
        self.first = nn.Linear(state_dim + input_dim, 2 * check_positive("hidden", hidden))
        self.gate = nn.Linear(hidden, state_dim)
        self.proposal = nn.Linear(hidden, state_dim)
        self.linear = nn.Linear(state_dim, state_dim)
        self.spread = nn.Linear(state_dim, state_dim)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, z: Tensor, inputs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Location and standard deviation of the next state.

        Raises:
            ValueError: if inputs are missing, not expected, or of another size.
        """
        received = 0 if inputs is None else inputs.shape[-1]
        if received != self.input_dim:
            msg = f"`inputs` must have {self.input_dim} entries on the last axis, received {received}."
            raise ValueError(msg)
        gate, proposal = self.first(z if inputs is None else joined(z, inputs)).relu().chunk(2, -1)
        proposal = self.proposal(proposal)
        loc = torch.lerp(self.linear(z), proposal, self.gate(gate).sigmoid())
        return loc, SCALE_FLOOR + softplus(self.spread(proposal.relu()))


def joined(first: Tensor, second: Tensor) -> Tensor:
    """Both tensors side by side, ``(..., A), (..., B) -> (..., A + B)``; leading dimensions broadcast."""
    lead = torch.broadcast_shapes(first.shape[:-1], second.shape[:-1])
    return torch.cat([first.expand(*lead, first.shape[-1]), second.expand(*lead, second.shape[-1])], -1)
