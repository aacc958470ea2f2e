r"""Learnable laws of regimes: a Markov chain, and a chain that is driven by the state."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ..distributions.regime_chain import RegimeChain
from ..nn.base import check_positive
from ..ops._arguments import check_numbers

__all__ = ["MarkovRegimes", "StickBreakingRegimes", "stick_breaking"]


class MarkovRegimes(nn.Module):
    r"""Markov chain of K regimes, :math:`p(s' \mid s)` a table; it starts sticky.

    Args:
        num_regimes: K.
        stay: initial probability of staying, ``0 < stay < 1``.

    Raises:
        ValueError: if `num_regimes` is not positive, or `stay` is out of range.

    Example:
        >>> MarkovRegimes(2, stay=0.9)().log_transition.exp()
        tensor([[0.9000, 0.1000],
                [0.1000, 0.9000]], grad_fn=<ExpBackward0>)
    """

    def __init__(self, num_regimes: int, *, stay: float = 0.95) -> None:
        super().__init__()
        width = check_positive("num_regimes", num_regimes)
        check_numbers(stay=stay)
        if not 0 < stay < 1:
            msg = f"`stay` must satisfy 0 < stay < 1, received {stay}."
            raise ValueError(msg)
        table = torch.full((width, width), (1 - stay) / max(1, width - 1))
        table.diagonal().fill_(stay)
        self.initial = nn.Parameter(torch.zeros(width))
        self.logits = nn.Parameter(table.log())

    @property
    def num_regimes(self) -> int:
        """Number K of regimes."""
        return len(self.initial)

    def forward(self) -> RegimeChain:
        """The law."""
        return RegimeChain(self.initial.log_softmax(-1), self.logits.log_softmax(-1))


class StickBreakingRegimes(nn.Module):
    r"""Recurrent switching: the state decides where the regimes go, by logistic stick breaking.

    .. math:: p(s' = k \mid s, z) = \sigma(\nu_k) \prod_{j<k} \sigma(-\nu_j), \qquad \nu = R_s z + r_s \in R^{K-1}

    Each step off the stick is a hyperplane in the space of states: regimes hold in regions of it. The order of the
    regimes matters for what can be expressed: k is cut off from what is left after 1 to k - 1.

    Args:
        num_regimes: K.
        state_dim: number D of states.
        recurrent_only: whether R and r are the same for all s: the next regime then hangs on the state alone.
        stay: initial probability of staying, ``0 < stay < 1``; not used with `recurrent_only`, where all regimes start
            with equal probabilities.

    Raises:
        ValueError: if a size is not positive, or `stay` is out of range.

    References:
        Linderman et al. (2017), Bayesian learning and inference in recurrent switching linear dynamical systems,
        AISTATS, eqs. (3) and (4).

    Example:
        >>> StickBreakingRegimes(3, state_dim=2, recurrent_only=True)().recurrent
        True
    """

    def __init__(self, num_regimes: int, state_dim: int, *, recurrent_only: bool = False, stay: float = 0.95) -> None:
        super().__init__()
        width = check_positive("num_regimes", num_regimes)
        check_numbers(stay=stay)
        if not 0 < stay < 1:
            msg = f"`stay` must satisfy 0 < stay < 1, received {stay}."
            raise ValueError(msg)
        rows = 1 if recurrent_only else width
        table = torch.full((width, width), (1 - stay) / max(1, width - 1))
        table.diagonal().fill_(stay)
        table = torch.full((1, width), 1 / width) if recurrent_only else table
        self.initial = nn.Parameter(torch.zeros(width))
        self.weight = nn.Parameter(torch.zeros(rows, width - 1, check_positive("state_dim", state_dim)))
        left = table.flip(-1).cumsum(-1).flip(-1)  # what is left of the stick before each cut
        self.bias = nn.Parameter(torch.logit(table[:, :-1] / left[:, :-1]))

    @property
    def num_regimes(self) -> int:
        """Number K of regimes."""
        return len(self.initial)

    def table(self, z: Tensor, t: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Log-probabilities ``(..., K, K)`` of the regimes that follow at states ``(..., D)``."""
        del t, inputs
        cuts = (self.weight @ z[..., None, :, None]).squeeze(-1) + self.bias  # (..., K or 1, K - 1)
        width = self.num_regimes
        return stick_breaking(cuts).expand(*cuts.shape[:-2], width, width)

    def forward(self) -> RegimeChain:
        """The law."""
        return RegimeChain(self.initial.log_softmax(-1), self.table)


def stick_breaking(cuts: Tensor) -> Tensor:
    r"""Log-probabilities :math:`\log \sigma(\nu_k) + \sum_{j<k} \log \sigma(-\nu_j)` of K pieces.

    Shape:
        cuts: :math:`\nu`, ``(..., K - 1)`` · returns ``(..., K)``.

    Example:
        >>> stick_breaking(torch.zeros(2)).exp()
        tensor([0.5000, 0.2500, 0.2500])
    """
    left = torch.cat([torch.zeros_like(cuts[..., :1]), logsigmoid(-cuts).cumsum(-1)], -1) if cuts.shape[-1] else None
    if left is None:
        return cuts.new_zeros((*cuts.shape[:-1], 1))
    taken = torch.cat([logsigmoid(cuts), torch.zeros_like(cuts[..., :1])], -1)
    return left + taken
