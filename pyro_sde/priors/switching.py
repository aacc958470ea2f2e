r"""Dynamics that switch between regimes: linear ones, and networks."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import softplus

from ..distributions.gaussian_path import GaussianPath
from ..distributions.switching import SwitchingPath
from ..nn.base import check_positive
from ..nn.gated_transition import SCALE_FLOOR
from ..nn.mlp import MLP
from ..ops._arguments import check_numbers
from ..ops.gaussian_chain import GaussianChain
from ._regime_start import fit_regimes
from .regimes import MarkovRegimes, StickBreakingRegimes

__all__ = ["SwitchingLinearPrior", "SwitchingNetworkPrior"]

Regimes = MarkovRegimes | StickBreakingRegimes


def _check_regimes(regimes: object) -> None:
    if not isinstance(regimes, Regimes):
        msg = f"`regimes` must be MarkovRegimes or StickBreakingRegimes, received {type(regimes).__name__}."
        raise TypeError(msg)


class SwitchingLinearPrior(nn.Module):
    r"""Switching linear dynamics, :math:`z_{k+1} \mid z_k, s \sim N(A_s z_k + b_s,\, \mathrm{diag}(q_s)^2)`.

    With `MarkovRegimes` a switching linear dynamical system, with `StickBreakingRegimes` a recurrent one. Regimes are
    summed out. With ``obs=`` on the path it is a switching vector autoregression. It starts near a random walk in every
    regime; `start_from` is a far better start, as the bound has many local optima.

    Args:
        regimes: law of the regimes, `MarkovRegimes` or `StickBreakingRegimes`.
        state_dim: number D of states.
        scale: initial standard deviation of the steps, ``> 0``.

    Raises:
        ValueError: if `state_dim` or `scale` is not positive.

    References:
        Ghahramani and Hinton (2000), Variational learning for switching state-space models, Neural Computation 12, eqs.
        (7) to (9); Linderman et al. (2017), AISTATS, eqs. (1) to (4).

    Example:
        >>> SwitchingLinearPrior(MarkovRegimes(3), state_dim=2)(50)
        SwitchingPath(batch_shape=(), event_shape=(50, 2))
    """

    def __init__(self, regimes: Regimes, state_dim: int, *, scale: float = 0.1) -> None:
        super().__init__()
        _check_regimes(regimes)
        check_numbers(scale=scale)
        if not 0 < scale < math.inf:
            msg = f"`scale` must be positive and finite, received {scale}."
            raise ValueError(msg)
        size = (regimes.num_regimes, check_positive("state_dim", state_dim))
        self.regimes = regimes
        self.matrix = nn.Parameter(torch.eye(state_dim) + 0.01 * torch.randn(*size, state_dim))
        self.offset = nn.Parameter(0.01 * torch.randn(size))
        self.log_scale = nn.Parameter(torch.full(size, scale).log())
        self.initial_loc = nn.Parameter(torch.zeros(state_dim))
        self.initial_log_scale = nn.Parameter(torch.zeros(state_dim))

    def step(self, z: Tensor, t: Tensor, inputs: Tensor | None = None) -> Distribution:
        """Laws of the next state in all regimes, batch shape ``(..., K)``."""
        del t, inputs
        loc = torch.einsum("kij,...j->...ki", self.matrix, z) + self.offset
        return dist.Normal(loc, self.log_scale.exp(), validate_args=False).to_event(1)

    def initial(self) -> Distribution:
        """Law of the first state."""
        return dist.Normal(self.initial_loc, self.initial_log_scale.exp(), validate_args=False).to_event(1)

    def forward(self, length: int, lengths: Tensor | None = None) -> SwitchingPath:
        """Law of paths of `length` states.

        Args:
            length: number T >= 2 of states.
            lengths: ``(B,)``, where every series ends; as for `SwitchingPath`.
        """
        return SwitchingPath(self.step, self.initial(), self.regimes(), length, lengths=lengths)

    def reference(self, probabilities: Tensor) -> GaussianPath:
        r"""The Gaussian chain of given probabilities r of the regimes, to build guides on.

        .. math:: Q_k^{-1} = \sum_s r_{ks} Q_s^{-1}, \qquad \bar A_k = Q_k \sum_s r_{ks} Q_s^{-1} A_s, \qquad
            \bar b_k = Q_k \sum_s r_{ks} Q_s^{-1} b_s

        The law of :math:`z_{k+1}` given :math:`z_k` that is best on average over r. ``reference(r).condition(C, noise,
        y)`` is a guide of the path: the exact posterior if the regimes are known (or there is one), and near it where
        r is. Take r from `SwitchingPath.regime_posterior` at the mean of the last guide, or learn it.

        Args:
            probabilities: r, ``(*batch, T - 1, K)``.

        Raises:
            ValueError: if there is another number of regimes.

        References:
            Ghahramani and Hinton (2000), section 4 (one chain given expected regimes).
        """
        width = self.regimes.num_regimes
        if probabilities.dim() < 2 or probabilities.shape[-1] != width:
            msg = f"`probabilities` must have shape (*batch, T - 1, {width}), received {tuple(probabilities.shape)}."
            raise ValueError(msg)
        precision = (-2 * self.log_scale).exp()  # (K, D)
        total = probabilities @ precision  # (*batch, T - 1, D)
        weights = probabilities.unsqueeze(-1) * precision / total.unsqueeze(-2)  # (*batch, T - 1, K, D)
        matrix = torch.einsum("...ki,kij->...ij", weights, self.matrix)
        offset = (weights * self.offset).sum(-2)
        start = torch.diag_embed((2 * self.initial_log_scale).exp())
        noise = torch.diag_embed(total.reciprocal())
        return GaussianPath.from_chain(GaussianChain(self.initial_loc, start, matrix, noise, offset, validate=False))

    def start_from(self, path: Tensor, *, restarts: int = 10, sweeps: int = 30) -> float:
        """Set the dynamics to those of regimes found in a path; in place, without gradient.

        Expectation maximisation of a switching autoregression, from regimes fitted to random pieces of the path; the
        best of `restarts` runs is kept. For latent paths take a rough estimate: smoothed principal components of the
        observations. The laws of the regimes and of the first state keep their scales.

        Args:
            path: ``(*batch, T, D)``.
            restarts: number of random starts.
            sweeps: most sweeps in each.

        Returns:
            the log-density of the path per step, nats.

        Raises:
            ValueError: if the path has another number of states, or is too short.
        """
        states = self.offset.shape[-1]
        if path.shape[-1] != states or path.shape[-2] < 10 * self.regimes.num_regimes:
            msg = (
                f"`path` must have shape (*batch, T, {states}) with at least 10 points per regime, "
                f"{10 * self.regimes.num_regimes}; received {tuple(path.shape)}."
            )
            raise ValueError(msg)
        with torch.no_grad():
            found = fit_regimes(path.detach(), self.regimes.num_regimes, restarts, sweeps)
            self.matrix.copy_(found.matrix)
            self.offset.copy_(found.offset)
            self.log_scale.copy_(found.scale.log())
            first = path[..., 0, :].reshape(-1, states).mean(0)
            self.initial_loc.copy_(first)
        return found.density


class SwitchingNetworkPrior(nn.Module):
    r"""Switching dynamics by a network, :math:`z_{k+1} \mid z_k, s \sim N(z_k + f_s(z_k), \mathrm{diag}\,g_s(z_k)^2)`.

    f and g are heads of one network, one pair for each regime.

    Args:
        regimes: law of the regimes, `MarkovRegimes` or `StickBreakingRegimes`.
        state_dim: number D of states.
        hidden: widths of the network.
        input_dim: number C of inputs that every step gets; 0 for none.

    Raises:
        ValueError: if a size is not positive; when called, if `inputs` are not of that width.

    Example:
        >>> SwitchingNetworkPrior(MarkovRegimes(3), state_dim=2)(50)
        SwitchingPath(batch_shape=(), event_shape=(50, 2))
    """

    def __init__(
        self, regimes: Regimes, state_dim: int, hidden: tuple[int, ...] = (32,), *, input_dim: int = 0
    ) -> None:
        super().__init__()
        _check_regimes(regimes)
        self.regimes = regimes
        self.state_dim = check_positive("state_dim", state_dim)
        self.input_dim = check_positive("input_dim", input_dim) if input_dim != 0 else 0
        self.net = MLP(state_dim + input_dim, 2 * state_dim * regimes.num_regimes, hidden)
        self.initial_loc = nn.Parameter(torch.zeros(state_dim))
        self.initial_log_scale = nn.Parameter(torch.zeros(state_dim))

    def step(self, z: Tensor, t: Tensor, inputs: Tensor | None = None) -> Distribution:
        """Laws of the next state in all regimes, batch shape ``(..., K)``."""
        del t
        known = z if inputs is None else torch.cat([z, inputs.expand(*z.shape[:-1], inputs.shape[-1])], -1)
        heads = self.net(known).unflatten(-1, (self.regimes.num_regimes, 2 * self.state_dim))
        move, raw_scale = heads.chunk(2, -1)
        return dist.Normal(z.unsqueeze(-2) + move, SCALE_FLOOR + softplus(raw_scale), validate_args=False).to_event(1)

    def forward(self, length: int, lengths: Tensor | None = None, inputs: Tensor | None = None) -> SwitchingPath:
        """Law of paths of `length` states.

        Args:
            length: number T >= 2 of states.
            lengths: ``(B,)``, where every series ends; as for `SwitchingPath`.
            inputs: ``(*batch, T - 1, C)``.
        """
        given = 0 if inputs is None else inputs.shape[-1]
        if given != self.input_dim:
            msg = f"`inputs` must have {self.input_dim} columns, the `input_dim` of this prior; received {given}."
            raise ValueError(msg)
        initial = dist.Normal(self.initial_loc, self.initial_log_scale.exp(), validate_args=False).to_event(1)
        return SwitchingPath(self.step, initial, self.regimes(), length, inputs=inputs, lengths=lengths)
