r"""Guides of recurrent models that learn a difference to the prior."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..distributions.markov_path import MarkovPath
from ..distributions.recurrent_path import RecurrentPath
from ..nn.base import check_positive
from ..nn.gated_transition import joined
from ..nn.mlp import MLP
from ..nn.packed_rnn import PackedRNN
from ._step_values import observed_values

__all__ = ["ResidualGuide", "VariationalRNNGuide"]

_WIDEST = 3.0  # largest difference of the logarithms of the two standard deviations


class ResidualGuide(nn.Module):
    r"""Smoothing guide of a stochastic recurrent network, :math:`\mu_q = \mu_p + \mathrm{NN}`.

    .. math::
        a_t = \mathrm{RNN}(a_{t+1}, [d_t, x_t]), \qquad
        q(z_t \mid z_{t-1}, a_t) = N\big(\mu_p(z_{t-1}, d_t) + m, \mathrm{diag}(\sigma_p(z_{t-1}, d_t)\,e^{s})^2\big),
        \quad [m, s] = \mathrm{NN}([a_t, z_{t-1}])

    The last layer of NN starts at 0, so the guide starts at the prior with divergence 0. The paper learns :math:`\log
    \sigma_q` without reference to the prior; here s is bounded by 3. Cost: the recurrent network runs once; every
    sequential step calls the prior's transition and a perceptron.

    Args:
        value_dim: number O of observed channels.
        state_dim: number D of state dimensions.
        hidden: units H of the network of the prior, of the recurrent layer, and width of the perceptron.

    Shape:
        values: ``(B, T, O)`` · mask: ``(B, T, O)`` or ``(B, T)`` · law: batch ``(B,)``, event ``(T, D)``.

    Raises:
        ValueError: if a size is not positive.

    References:
        Fraccaro et al. (2016), arXiv 1605.07571, section 3.2, eqs. (10) to (13), "smooth + Res_q".

    Example:
        >>> from pyro_sde.priors.stochastic_rnn import StochasticRNNPrior
        >>> values = torch.zeros(2, 5, 3)
        >>> prior = StochasticRNNPrior(3, 2, hidden=8)(5, torch.tensor([5, 4]), values)
        >>> ResidualGuide(3, 2, hidden=8)(prior, values)
        MarkovPath(batch_shape=(2,), event_shape=(5, 2))
    """

    def __init__(self, value_dim: int, state_dim: int, hidden: int = 200) -> None:
        super().__init__()
        for name, size in (("value_dim", value_dim), ("state_dim", state_dim), ("hidden", hidden)):
            check_positive(name, size)
        self.hidden = hidden
        self.reader = PackedRNN(value_dim + hidden, hidden, activation="tanh", reverse=True)
        self.residual = MLP(state_dim + hidden, 2 * state_dim, (hidden,), activation="tanh", zero_last=True)
        self.first = MLP(hidden, 2 * state_dim, (hidden,), activation="tanh", zero_last=True)

    def forward(self, prior: MarkovPath, values: Tensor, mask: Tensor | None = None) -> MarkovPath:
        """Law of the path given the observed series, driven by the network states in the inputs of `prior`.

        Args:
            prior: law of a `StochasticRNNPrior`.
            values: observations of T steps; anything finite behind the end of a series.
            mask: True = observed; what is not observed counts as 0. All observed if None.

        Raises:
            ValueError: if shapes do not fit, or `prior` has no inputs of H channels.
        """
        d = prior.inputs
        if d is None or d.shape[-1] != self.hidden:
            received = None if d is None else tuple(d.shape)
            msg = f"`prior` must have inputs of {self.hidden} channels, as a StochasticRNNPrior has; got {received}."
            raise ValueError(msg)
        values = observed_values(values, mask, prior.length)
        # nothing is known before the first observation, so d_1 is the same for all series, and is left out
        states = torch.nn.functional.pad(d, (0, 0, 1, 0))
        lengths = torch.full(values.shape[:1], prior.length, device=values.device)
        lengths = lengths if prior.lengths is None else prior.lengths.expand(len(values))
        summary = self.reader(joined(states, values), lengths)
        initial = _shifted(prior.initial, self.first(summary[:, 0]))
        rows = torch.cat([d, summary[:, 1:]], -1)
        return MarkovPath(self._transition(prior.transition_law), initial, prior.length, inputs=rows, lengths=lengths)

    def _transition(self, of_prior: Callable[..., Distribution]) -> Callable[..., Distribution]:
        """Transition of the guide beside that of the prior."""

        def step(z: Tensor, t: Tensor, inputs: Tensor) -> Distribution:
            d, summary = inputs.split([self.hidden, inputs.shape[-1] - self.hidden], -1)
            change = self.residual(joined(z, summary))
            return _shifted(of_prior(z, t, d), change)

        return step


class VariationalRNNGuide(nn.Module):
    r"""Filtering guide of a variational recurrent network, :math:`q(z_t \mid x_t, d_{t-1})`.

    A perceptron of :math:`[d_{t-1}, \varphi(x_t)]` shifts the prior's law of :math:`z_t`, as in `ResidualGuide`; the
    memory is that of the prior. Its last layer starts at 0, so the guide starts at the prior with divergence 0. It
    does not see the future.

    Args:
        state_dim: number D of state dimensions.
        hidden: units H of the prior.

    Shape:
        as `ResidualGuide`.

    Raises:
        ValueError: if a size is not positive.

    References:
        Chung et al. (2015), arXiv 1506.02216, eqs. (8) and (9); the shift is that of Fraccaro et al. (2016).

    Example:
        >>> from pyro_sde.priors.stochastic_rnn import VariationalRNNPrior
        >>> values = torch.zeros(2, 5, 3)
        >>> prior = VariationalRNNPrior(3, 2, hidden=8)(5, torch.tensor([5, 4]), values)
        >>> VariationalRNNGuide(2, hidden=8)(prior, values)
        RecurrentPath(batch_shape=(2,), event_shape=(5, 2))
    """

    def __init__(self, state_dim: int, hidden: int = 200) -> None:
        super().__init__()
        for name, size in (("state_dim", state_dim), ("hidden", hidden)):
            check_positive(name, size)
        self.residual = MLP(2 * hidden, 2 * state_dim, (hidden,), activation="tanh", zero_last=True)

    def forward(self, prior: RecurrentPath, values: Tensor, mask: Tensor | None = None) -> RecurrentPath:
        """Law of the path given the observed series, which `prior` has read already.

        Args:
            prior: law of a `VariationalRNNPrior` with these observations.
            values: observations of T steps, ``(B, T, O)``, whose shape is checked.
            mask: ``(B, T, O)`` or ``(B, T)``; not used: the prior has read what is observed.

        Raises:
            ValueError: if shapes do not fit.
        """
        observed_values(values, mask, prior.event_shape[0])

        def head(memory: Tensor, context: Tensor | None) -> Distribution:
            seen = memory if context is None else context
            return _shifted(prior.head(memory, None), self.residual(joined(memory, seen)))

        return prior.with_head(head, prior.inputs)


def _shifted(law: Distribution, change: Tensor) -> Distribution:
    """The Normal law with its mean shifted, and its standard deviation multiplied, by what a network says."""
    shift, raw = change.chunk(2, -1)
    scale = law.stddev * torch.exp(_WIDEST * torch.tanh(raw / _WIDEST))
    return dist.Normal(law.mean + shift, scale, validate_args=False).to_event(1)
