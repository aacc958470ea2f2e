r"""Guides of chains that combine the last state with recurrent summaries of past and future observations."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import affine_autoregressive
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import dropout, softplus

from ..distributions.markov_path import MarkovPath
from ..nn.base import check_positive
from ..nn.gated_transition import SCALE_FLOOR
from ..nn.packed_rnn import PackedRNN, Packing
from ..ops._arguments import check_numbers
from ._step_values import observed_values

__all__ = ["CombinerGuide"]

# Which recurrent layers read, and whether the law of a state hangs on the state before it.
_STRUCTURES = {
    "MF-LR": (("left", "right"), False),
    "ST-L": (("left",), True),
    "ST-LR": (("left", "right"), True),
    "ST-R": (("right",), True),
}


class CombinerGuide(nn.Module):
    r"""Posterior chain :math:`q(z_t \mid z_{t-1}, x) = N(\mu(h_t), \mathrm{diag}\,\sigma(h_t)^2)`.

    ========= ============================================================ =========================================
    structure combined state :math:`h_t`                                   sees
    ========= ============================================================ =========================================
    "ST-R"    :math:`\tfrac12(\tanh(W z_{t-1} + b) + r_t)`                 the state and the future: all that the
                                                                           exact posterior of a Markov model hangs on
                                                                           (DKS in the paper)
    "ST-L"    :math:`\tfrac12(\tanh(W z_{t-1} + b) + l_t)`                 the past: a filter
    "ST-LR"   :math:`\tfrac13(\tanh(W z_{t-1} + b) + l_t + r_t)`           all; what is redundant may help training
    "MF-LR"   :math:`\tfrac12(l_t + r_t)`                                  all, states independent of each other
    ========= ============================================================ =========================================

    :math:`l_t` and :math:`r_t` are `PackedRNN` over the observations up to and from time t; :math:`\mu` is affine and
    :math:`\sigma` the softplus of an affine map. The recurrent layers run once, for all steps.

    Args:
        value_dim: number O of observed channels.
        state_dim: number D of state dimensions.
        hidden: width of the recurrent layers and the combined state.
        structure: "ST-R", "ST-L", "ST-LR" or "MF-LR".
        dropout: probability with which the recurrent layers miss an entry of an observation in training mode, ``0 <=
            dropout < 1``.
        flows: number of inverse autoregressive flows, the same for all steps, on top of every law but that of the first
            state (whose density is not taken while it is sampled, and the inverse is slow). Bounds need ``kl="full"``.

    Shape:
        values: ``(B, T, O)`` · mask: ``(B, T, O)`` or ``(B, T)`` · law: batch ``(B,)``, event ``(T, D)``.

    Raises:
        ValueError: if a size is not positive, `structure` is unknown, or another argument out of range.

    References:
        Krishnan, Shalit, Sontag (2017), arXiv 1609.09869, section 4 and table 1; Kingma et al. (2016), Improved
        variational inference with inverse autoregressive flow, arXiv 1606.04934, eq. (10).

    Example:
        >>> from pyro_sde.priors.deep_markov import DeepMarkovPrior
        >>> prior = DeepMarkovPrior(4, hidden=16)(10, torch.tensor([10, 7]))
        >>> CombinerGuide(3, 4, hidden=8)(prior, torch.zeros(2, 10, 3))
        MarkovPath(batch_shape=(2,), event_shape=(10, 4))
    """

    def __init__(
        self,
        value_dim: int,
        state_dim: int,
        *,
        hidden: int = 200,
        structure: str = "ST-R",
        dropout: float = 0.0,
        flows: int = 0,
    ) -> None:
        super().__init__()
        if structure not in _STRUCTURES:
            msg = f"`structure` must be one of {', '.join(sorted(_STRUCTURES))}; received {structure!r}."
            raise ValueError(msg)
        for name, size in (("value_dim", value_dim), ("state_dim", state_dim), ("hidden", hidden)):
            check_positive(name, size)  # before weights are drawn
        check_numbers(dropout=dropout)
        if not 0 <= dropout < 1:
            msg = f"`dropout` must satisfy 0 <= dropout < 1, received {dropout}."
            raise ValueError(msg)
        if isinstance(flows, bool) or not isinstance(flows, int) or flows < 0:
            msg = f"`flows` must be a number of flows >= 0, received {flows!r}."
            raise ValueError(msg)
        self.structure, self.dropout = structure, dropout
        sides, structured = _STRUCTURES[structure]
        self.readers = nn.ModuleDict({side: PackedRNN(value_dim, hidden, reverse=side == "right") for side in sides})
        self.from_state = nn.Linear(state_dim, hidden) if structured else None
        self.share = 1 / (len(sides) + structured)
        self.head = nn.Linear(hidden, 2 * state_dim)
        self.start = nn.Parameter(torch.zeros(state_dim))
        width = max(2 * state_dim, 16)  # a mask of fewer units than dimensions would cut some off
        self.flows = nn.ModuleList(affine_autoregressive(state_dim, hidden_dims=[width]) for _ in range(flows))

    def step(self, z: Tensor, t: Tensor, inputs: Tensor | None) -> Distribution:
        """Law of the state after z ``(..., D)``, given the summary ``(..., H)`` of its observations."""
        del t
        if inputs is None:
            msg = "`inputs` must hold the recurrent summary of every step; call the guide to have them computed."
            raise ValueError(msg)
        law = self._normal(z, inputs)
        if not len(self.flows):
            return law.to_event(1)
        return dist.TransformedDistribution(law, list(self.flows), validate_args=False)

    def _normal(self, z: Tensor, summary: Tensor) -> dist.Normal:
        combined = summary if self.from_state is None else torch.tanh(self.from_state(z)) + summary
        loc, raw_scale = self.head(self.share * combined).chunk(2, -1)
        return dist.Normal(loc, SCALE_FLOOR + softplus(raw_scale), validate_args=False)

    def forward(self, prior: MarkovPath, values: Tensor, mask: Tensor | None = None) -> MarkovPath:
        """Law of the path given the observed series; lengths are those of `prior`.

        Args:
            prior: law of the path in the model.
            values: observations of T steps; anything finite behind the end of a series.
            mask: True = observed; what is not observed counts as 0. All observed if None.

        Raises:
            ValueError: if shapes do not fit.
        """
        values = observed_values(values, mask, prior.length)
        lengths = prior.lengths
        everywhere = torch.full(values.shape[:1], prior.length, device=values.device)
        packing = Packing.of(everywhere if lengths is None else lengths.expand(len(values)), prior.length)
        rows = dropout(packing.pack(values), self.dropout, self.training)
        parts = [reader.forward_packed(rows, packing.counts) for reader in self.readers.values()]  # type: ignore[operator]
        summary = packing.unpack(sum(parts[1:], parts[0]))
        first = self._normal(self.start, summary[:, 0]).to_event(1)
        return MarkovPath(self.step, first, prior.length, inputs=summary[:, 1:], lengths=lengths)
