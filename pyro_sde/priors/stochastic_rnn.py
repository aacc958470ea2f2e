r"""Priors whose transitions read past observations through a recurrent network."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import softplus

from ..distributions.markov_path import MarkovPath
from ..distributions.recurrent_path import RecurrentPath
from ..nn.base import check_positive
from ..nn.gated_transition import SCALE_FLOOR, joined
from ..nn.mlp import MLP

__all__ = ["StochasticRNNPrior", "VariationalRNNPrior"]


class StochasticRNNPrior(nn.Module):
    r"""Chain driven by a recurrent network over past observations: the prior of a stochastic recurrent network.

    .. math:: d_t = \mathrm{GRU}(d_{t-1}, x_{t-1}), \qquad z_t \sim N\big(\mu([z_{t-1}, d_t]), \mathrm{diag}\,
        \sigma([z_{t-1}, d_t])^2\big)

    with :math:`x_0 = 0`. The observations are given, so this is the law of the states in the factorisation
    :math:`\prod_t p(x_t \mid z_t, d_t)\, p(z_t \mid z_{t-1}, d_t)` of the joint density, in which :math:`d_t` hangs on
    the past only. To sample observations ahead, draw one step, feed it back, and go on. :math:`\mu` and :math:`\sigma`
    are one perceptron with tanh, so that states cannot grow from step to step. The network runs once, over all steps.

    Args:
        value_dim: number O of observed channels.
        state_dim: number D of state dimensions.
        hidden: units H of the recurrent network, and width of the perceptron.

    Attributes:
        feature_dim: size of what the emission reads, D + H.
        reads_values: True: `forward` takes the observations.

    Shape:
        values: ``(B, T, O)`` · law: batch ``(B,)``, event ``(T, D)``, its `inputs` are :math:`d_2, \dots, d_T`.

    Raises:
        ValueError: if a size is not positive.

    References:
        Fraccaro, Sønderby, Paquet, Winther (2016), Sequential neural models with stochastic layers, arXiv 1605.07571,
        eqs. (1) to (4).

    Example:
        >>> StochasticRNNPrior(3, 2, hidden=8)(5, torch.tensor([5, 4]), torch.zeros(2, 5, 3))
        MarkovPath(batch_shape=(2,), event_shape=(5, 2))
    """

    reads_values = True

    def __init__(self, value_dim: int, state_dim: int, hidden: int = 200) -> None:
        super().__init__()
        check_positive("state_dim", state_dim)
        self.network = nn.GRU(
            check_positive("value_dim", value_dim), check_positive("hidden", hidden), batch_first=True
        )
        self.transition = MLP(state_dim + hidden, 2 * state_dim, (hidden,), activation="tanh")
        self.start = nn.Parameter(torch.zeros(state_dim))
        self.feature_dim = state_dim + hidden

    def step(self, z: Tensor, t: Tensor, inputs: Tensor | None) -> Distribution:
        """Law of the state after z ``(..., D)``, given the network's state ``(..., H)`` at its time."""
        del t
        if inputs is None:
            msg = "`inputs` must hold the state of the recurrent network; call the prior to have it computed."
            raise ValueError(msg)
        loc, raw_scale = self.transition(joined(z, inputs)).chunk(2, -1)
        return dist.Normal(loc, SCALE_FLOOR + softplus(raw_scale), validate_args=False).to_event(1)

    def forward(self, length: int, lengths: Tensor | None, values: Tensor) -> MarkovPath:
        """Law of the states of `length` steps given observations, finite behind the ends of series."""
        _check_values(values, length, self.network.input_size)
        d = self.network(torch.nn.functional.pad(values[:, :-1], (0, 0, 1, 0)))[0]
        initial = self.step(self.start, self.start.new_ones(1), d[:, 0])
        return MarkovPath(self.step, initial, length, inputs=d[:, 1:], lengths=lengths)

    def features(self, law: MarkovPath, z: Tensor) -> Tensor:
        """What the emission reads, :math:`[z_t, d_t]`, ``(..., B, T, D + H)``."""
        return joined(z, self.states(law))

    def states(self, law: MarkovPath) -> Tensor:
        r"""States :math:`d_1, \dots, d_T` of the network behind a law of this prior, ``(B, T, H)``."""
        later = law.inputs
        if later is None:
            msg = "`law` must come from this prior; it has no inputs."
            raise ValueError(msg)
        first = self.network(later.new_zeros(1, 1, self.network.input_size))[0]  # before any observation
        return torch.cat([first.expand(len(later), 1, -1), later], 1)


class VariationalRNNPrior(nn.Module):
    r"""Path with memory: the prior of a variational recurrent network.

    .. math:: z_t \sim N\big(\mu(d_{t-1}), \mathrm{diag}\,\sigma(d_{t-1})^2\big), \qquad
        d_t = \mathrm{GRU}(d_{t-1}, [z_t, \varphi(x_t)])

    As for `StochasticRNNPrior` the observations are given; the emission reads :math:`[z_t, d_{t-1}]`. The law is a
    `RecurrentPath`: one of z alone, in which the memory d is a function of z and x.

    Args:
        value_dim: number O of observed channels.
        state_dim: number D of state dimensions.
        hidden: units H of the recurrent network, and width of the perceptrons.

    Attributes:
        feature_dim: size of what the emission reads, D + H.
        reads_values: True: `forward` takes the observations.

    Shape:
        values: ``(B, T, O)`` · law: batch ``(B,)``, event ``(T, D)``.

    Raises:
        ValueError: if a size is not positive.

    References:
        Chung et al. (2015), A recurrent latent variable model for sequential data, arXiv 1506.02216, eqs. (5) to (7).
        The features of z there are a perceptron; here z enters the network itself.

    Example:
        >>> VariationalRNNPrior(3, 2, hidden=8)(5, torch.tensor([5, 4]), torch.zeros(2, 5, 3))
        RecurrentPath(batch_shape=(2,), event_shape=(5, 2))
    """

    reads_values = True

    def __init__(self, value_dim: int, state_dim: int, hidden: int = 200) -> None:
        super().__init__()
        check_positive("state_dim", state_dim)
        self.observed = nn.Linear(check_positive("value_dim", value_dim), check_positive("hidden", hidden))
        self.memory = nn.GRU(state_dim + hidden, hidden, batch_first=True)
        self.transition = MLP(hidden, 2 * state_dim, (hidden,), activation="tanh")
        self.start = nn.Parameter(torch.zeros(hidden))
        self.feature_dim = state_dim + hidden

    def step(self, memory: Tensor, context: Tensor | None = None) -> Distribution:
        """Law of the state given the memory ``(..., H)`` before it."""
        del context
        loc, raw_scale = self.transition(memory).chunk(2, -1)
        return dist.Normal(loc, SCALE_FLOOR + softplus(raw_scale), validate_args=False).to_event(1)

    def forward(self, length: int, lengths: Tensor | None, values: Tensor) -> RecurrentPath:
        """Law of the states of `length` steps given observations, finite behind the ends of series."""
        _check_values(values, length, self.observed.in_features)
        return RecurrentPath(self.memory, self.step, self.start, self.observed(values).relu(), lengths=lengths)

    def features(self, law: RecurrentPath, z: Tensor) -> Tensor:
        """What the emission reads, :math:`[z_t, d_{t-1}]`, ``(..., B, T, D + H)``."""
        return joined(z, law.memories(z))


def _check_values(values: Tensor, length: int, channels: int) -> None:
    if values.dim() != 3 or values.shape[1:] != (length, channels):
        msg = f"`values` must have shape (B, {length}, {channels}), received {tuple(values.shape)}."
        raise ValueError(msg)
