"""Recognition networks: an irregular, gappy series -> initial law and context per solver step."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..ops.grid import TimeGrid
from .base import Encoder, Encoding, check_observations, check_positive, inverse_softplus

__all__ = ["GRUEncoder"]

# Longest waiting time, in units of `time_scale`, in a context row: networks must not extrapolate in it.
_LONGEST_WAIT = 10.0
_SCALE_FLOOR = 1e-4
_HEAD_SCALE = 0.01


class GRUEncoder(Encoder):
    r"""GRU run backwards in time over the observations, :math:`h_j = \mathrm{GRU}(x_j, h_{j+1})`.

    The feature :math:`x_j` holds the values (0 where missing), the mask of the channels and
    :math:`\log(1 + \mathrm{gap} / \mathrm{time\_scale})` to the next observation. The context of the step
    :math:`t_k \to t_{k+1}` is a linear map of :math:`h_j` for the first observation j at or after
    :math:`t_{k+1}` (h = 0 if none is left), the time from :math:`t_k` to that observation in units of
    `time_scale` (at most 10), and a flag whether there is one. The initial law is Normal: a linear head on
    the state after all observations and the time from the first grid point to the first observation.

    Only observations are visited, never solver steps. Times without an observed channel are dropped, so
    masking data equals leaving it out. Only differences of times enter: shifted series encode equally. Cost:
    one fused GRU call of N steps, then one gather for K rows.

    Args:
        value_dim: number O of observed channels.
        state_dim: number D of latent dimensions.
        context_dim: number C of context channels, at least 3: two are the waiting time and its flag.
        hidden: number H of GRU units.
        layers: number of stacked GRU layers.
        time_scale: typical time between observations, ``> 0``, in the unit of time.
        initial_scale: standard deviation of the initial law before training, ``> 1e-4``.

    Shape:
        values: ``(*batch, N, O)`` · mask: ``(*batch, N, O)`` or ``(*batch, N)`` · initial: batch ``batch``,
        event ``(D,)`` · context: ``(*batch, K, C)`` · summary: ``(*batch, H)``.

    Raises:
        ValueError: if a size or scale is not as described.

    References:
        Rubanova, Chen, Duvenaud (2019), Latent ODEs for irregularly-sampled time series, arXiv:1907.03907
        (encoder backwards in time); Li, Wong, Chen, Duvenaud (2020), Scalable gradients for stochastic
        differential equations, arXiv:2001.01328 (context of a posterior drift).

    Example:
        >>> grid = TimeGrid(torch.tensor([0.0, 0.7, 1.0]), max_step=0.1)
        >>> encoding = GRUEncoder(2, 4, 8)(grid, torch.zeros(5, 3, 2))
        >>> encoding.initial.batch_shape, encoding.context.shape
        (torch.Size([5]), torch.Size([5, 10, 8]))
    """

    def __init__(
        self,
        value_dim: int,
        state_dim: int,
        context_dim: int,
        *,
        hidden: int = 64,
        layers: int = 1,
        time_scale: float = 1.0,
        initial_scale: float = 1.0,
    ) -> None:
        super().__init__(value_dim, state_dim, context_dim)
        check_positive("layers", layers)  # before weights are drawn
        if context_dim < 3:
            msg = f"`context_dim` must be >= 3: two channels are taken by time; received {context_dim}."
            raise ValueError(msg)
        if not (time_scale > 0 and math.isfinite(time_scale)):
            msg = f"`time_scale` must be a positive finite number, received {time_scale}."
            raise ValueError(msg)
        if not (initial_scale > _SCALE_FLOOR and math.isfinite(initial_scale)):
            msg = f"`initial_scale` must be finite and > {_SCALE_FLOOR}, received {initial_scale}."
            raise ValueError(msg)
        check_positive("hidden", hidden)
        self.time_scale = time_scale
        self.gru = nn.GRU(2 * value_dim + 1, hidden, layers, batch_first=True)
        self.context_head = nn.Linear(hidden, context_dim - 2)
        self.initial_head = nn.Linear(hidden + 1, 2 * state_dim)
        with torch.no_grad():
            self.initial_head.weight.mul_(_HEAD_SCALE)
            self.initial_head.bias[:state_dim] = 0.0
            self.initial_head.bias[state_dim:] = inverse_softplus(initial_scale - _SCALE_FLOOR)

    def forward(self, grid: TimeGrid, values: Tensor, mask: Tensor | None = None) -> Encoding:
        """Encode the observed series.

        Args:
            grid: solver grid of the series; its batch shape broadcasts with that of `values`.
            values: observations at ``grid.observed_times``; anything, also NaN, where they are not observed.
            mask: True = observed; everything at valid times if None. Times at which nothing is observed have
                no influence, so times to be forecast are simply masked.

        Shape:
            values: ``(*batch, N, O)`` · mask: ``(*batch, N, O)`` or ``(*batch, N)``, bool.

        Raises:
            TypeError: if `grid` is not a `TimeGrid`.
            ValueError: if shapes or dtypes do not fit, or an observed value is not finite.
        """
        like = self.context_head.weight
        values, observed, informative = check_observations(grid, values, mask, like, self.value_dim)
        grid = grid.expand(informative.shape[:-1])
        states, times = self._run_backwards(grid, values, observed, informative)

        # Observations at or after every grid point; the step k looks from its end, t_{k+1}.
        ahead = torch.zeros_like(grid.times, dtype=torch.long)
        ahead = ahead.scatter_add(-1, grid.observed_index, informative.long()).flip(-1).cumsum(-1).flip(-1)
        total, ahead = ahead[..., :1], ahead[..., 1:]  # (*batch, 1), (*batch, K)
        wait = self._wait(grid.times[..., :-1], times, ahead).to(values.dtype)
        flag = (ahead > 0).to(values.dtype)
        context = _rows(self.context_head(states), ahead)  # the head sees N + 1 states, not K rows
        context = torch.cat([context, wait.unsqueeze(-1), flag.unsqueeze(-1)], -1)

        summary = _rows(states, total).squeeze(-2)
        wait = self._wait(grid.times[..., :1], times, total).to(values.dtype)
        loc, raw = self.initial_head(torch.cat([summary, wait], -1)).chunk(2, -1)
        scale = _SCALE_FLOOR + nn.functional.softplus(raw)
        return Encoding(dist.Normal(loc, scale).to_event(1), context, summary)

    def _run_backwards(
        self, grid: TimeGrid, values: Tensor, observed: Tensor, informative: Tensor
    ) -> tuple[Tensor, Tensor]:
        """States after the last r = 0 ... N observations and times in the same, reversed order.

        Rows without information come last, so the states that are read never see them. Shapes
        ``(*batch, N + 1, H)`` and ``(*batch, N)``.
        """
        count = informative.shape[-1]
        position = torch.arange(count, device=informative.device)
        order = torch.where(informative, -position, position + 1).argsort(-1)  # (*batch, N)
        times = grid.observed_times.gather(-1, order)
        gaps = nn.functional.pad(times[..., :-1] - times[..., 1:], (1, 0))
        # Between rows without information the difference may be negative, where log1p is not finite.
        gaps = torch.where(informative.gather(-1, order), gaps, torch.zeros_like(gaps)) / self.time_scale
        rows = torch.cat([values, observed.to(values.dtype)], -1)
        rows = rows.gather(-2, order.unsqueeze(-1).expand(rows.shape))
        features = torch.cat([rows, gaps.log1p().unsqueeze(-1).to(values.dtype)], -1)  # (*batch, N, 2 O + 1)
        states, _ = self.gru(features.reshape(-1, count, features.shape[-1]))
        states = nn.functional.pad(states, (0, 0, 1, 0))  # the state 0 after no observation
        return states.reshape(*informative.shape[:-1], count + 1, -1), times

    def _wait(self, now: Tensor, times: Tensor, ahead: Tensor) -> Tensor:
        """Scaled time from `now` to the earliest of the `ahead` latest observations; 0 if there is none."""
        wait = times.gather(-1, (ahead - 1).clamp(min=0)) - now
        wait = torch.where(ahead > 0, wait, torch.zeros_like(wait))
        return (wait / self.time_scale).clamp(max=_LONGEST_WAIT)


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """``table[..., index, :]`` for every batch element: ``(*batch, R, C), (*batch, K) -> (*batch, K, C)``."""
    return table.gather(-2, index.unsqueeze(-1).expand(*index.shape, table.shape[-1]))
