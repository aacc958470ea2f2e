r"""Posterior marginals q_t of a series as differentiable functions of time."""

from __future__ import annotations

import abc
import math

import torch
from torch import Tensor, nn

from .base import inverse_softplus
from .mlp import MLP
from .sigmoid_map import SigmoidMap

__all__ = ["FlowMarginals", "Marginals", "NodeMarginals", "num_moments", "pushed_forward", "raw_moments"]

SCALE_FLOOR = 1e-4


class Marginals(abc.ABC):
    r"""Marginals :math:`z_t = m(t) + S^{1/2}(t)\,\epsilon` of a batch of series, known for t in ``[low, high]``.

    They are Gaussian, :math:`N(m, S)`, unless there is a map `sigmoids`: then :math:`h_{w(t)}(\epsilon)` takes
    the place of the noise, and m and S are the moments of :math:`q_t` no more.

    The functions must be continuous, with derivatives except at isolated times: a mean that jumps is no path of an
    SDE, and its cost would go unseen. Times come as they come to a drift: batch dimensions on the right, anything on
    the left of them.

    Args:
        state_dim: number D of state dimensions.
        batch_shape: batch shape of the series.
        low: earliest time at which the marginals are known.
        high: latest time.
    """

    sigmoids: SigmoidMap | None = None  # how the noise of every dimension is bent, if it is

    def __init__(
        self,
        state_dim: int,
        batch_shape: torch.Size | tuple[int, ...] = (),
        *,
        low: float = -math.inf,
        high: float = math.inf,
    ) -> None:
        self.state_dim = state_dim
        self.batch_shape = torch.Size(batch_shape)
        self.low, self.high = low, high

    @abc.abstractmethod
    def moments(self, t: Tensor) -> tuple[Tensor, ...]:
        """Mean and scale: standard deviations of independent dimensions, or a lower Cholesky factor.

        With a map `sigmoids` its weights are the third.

        Shape:
            t: ``(..., 1)`` · mean: ``(..., D)`` · scale: ``(..., D)`` or ``(..., D, D)`` · weights: ``(..., D, K)``.
        """

    def moments_and_rates(self, t: Tensor) -> tuple[Tensor, ...]:
        """What `moments` gives, then its derivatives with respect to time, by forward-mode differentiation."""
        t = t.contiguous()
        moments, rates = torch.func.jvp(self.moments, (t,), (torch.ones_like(t),))[:2]
        return *moments, *rates


class NodeMarginals(Marginals):
    r"""Marginals from rows at knots: straight lines between them, a bump in every gap, then a head.

    At the place :math:`\tau \in [0, 1]` of a gap g the row is
    :math:`(1-\tau) c_i + \tau c_{i+1} + 4\tau(1-\tau) b_i`: continuous, with kinks at the knots only, as posterior
    moments have at observations. A head sees beside the row :math:`\tau(1-\tau) g`,
    :math:`\tau(1-\tau)(1-2\tau) g`, and the logarithms of the times before the first and after the last knot, in
    units of `time_scale`. Outside the knots the row of the nearest one holds.

    Args:
        knots: times ``(*batch, N)``, increasing.
        nodes: rows ``(*batch, N, C)``.
        state_dim: number D of state dimensions.
        bends: bumps :math:`b_i`, ``(*batch, N - 1, C)``; none if None.
        head: maps ``(..., C + 4)`` to the `num_moments` numbers of `raw_moments`; the row itself if None.
        counts: number of knots of every series, ``(*batch,)``; later ones are padding. All if None.
        time_scale: unit of time of the features.
        known: earliest and latest time at which the marginals are known.
    """

    def __init__(
        self,
        knots: Tensor,
        nodes: Tensor,
        state_dim: int,
        *,
        bends: Tensor | None = None,
        head: nn.Module | None = None,
        counts: Tensor | None = None,
        time_scale: float = 1.0,
        known: tuple[float, float] = (-math.inf, math.inf),
    ) -> None:
        batch = torch.broadcast_shapes(knots.shape[:-1], nodes.shape[:-2])
        super().__init__(state_dim, batch, low=known[0], high=known[1])
        self.knots, self.nodes, self.bends, self.head, self.counts = knots, nodes, bends, head, counts
        self.time_scale = time_scale

    def moments(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """As `Marginals.moments`; costs one search among the knots and one call of the head."""
        return raw_moments(self.numbers(t), self.state_dim)

    def moments_and_rates(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `Marginals.moments_and_rates`, twice the cost of `moments`."""
        out, rate = self.numbers_and_rates(t)
        mean, scale = raw_moments(out, self.state_dim)
        return mean, scale, rate[..., : self.state_dim], _scale_rate(out, rate, self.state_dim)

    def numbers(self, t: Tensor) -> Tensor:
        """What the head makes of the rows at times ``(..., 1)``: unconstrained numbers ``(..., P)``."""
        row, leading = self._rows_at(t)
        out = row[0] if self.head is None else self.head(torch.cat(row[:2], -1))
        return _leading_first(out, leading)

    def numbers_and_rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """`numbers` and their derivatives with respect to time.

        Written out, since forward-mode differentiation of a small network takes several times as long as the network.
        """
        row, leading = self._rows_at(t)
        out, rate = row[0], row[2]
        if self.head is not None:
            out, rate = pushed_forward(self.head, torch.cat(row[:2], -1), torch.cat(row[2:], -1))
        return _leading_first(out, leading), _leading_first(rate, leading)

    def _rows_at(self, t: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], torch.Size]:
        """Rows ``(*batch, L, C)`` and features ``(*batch, L, 4)``, then their rates; the L leading dimensions."""
        rank = len(self.batch_shape)
        t = t.reshape(*[1] * (rank + 1 - t.dim()), *t.shape).squeeze(-1)
        leading, own = t.shape[: t.dim() - rank], t.shape[t.dim() - rank :]
        batch = torch.broadcast_shapes(own, self.batch_shape)
        # Leading dimensions go to the right of the batch, where a search takes many times for each row of knots.
        t = t.expand((*leading, *batch)).reshape(-1, *batch).movedim(0, -1)  # (*batch, L)
        left, right, last = self._gap(t, batch)
        knots = self.knots.expand(*batch, -1)
        begin = knots.gather(-1, left)
        gap = knots.gather(-1, right) - begin
        length = torch.where(gap > 0, gap, torch.ones_like(gap))
        place = (t - begin) / length
        inside = (place >= 0) & (place <= 1) & (gap > 0)
        # at a knot too the derivative is that of the gap; what clamp has there differs between versions of torch
        place = torch.where(inside, place, place.detach().clamp(0, 1))
        tau, pace = place.unsqueeze(-1), (inside / length).unsqueeze(-1)
        slope, bump = 1 - 2 * tau, tau * (1 - tau)
        low, high = _rows(self.nodes, left), _rows(self.nodes, right)
        row, rate = torch.lerp(low, high, tau.to(low.dtype)), pace * (high - low)
        if self.bends is not None:
            bend = 4 * _rows(self.bends, left)
            row, rate = row + bump * bend, rate + slope * pace * bend
        gap = gap.unsqueeze(-1) / self.time_scale
        early = (knots[..., :1] - t).clamp(min=0).unsqueeze(-1)
        late = (t - last).clamp(min=0).unsqueeze(-1)
        features = [bump * gap, bump * slope * gap, *((part / self.time_scale).log1p() for part in (early, late))]
        rates = [slope * pace * gap, (slope.square() - 2 * bump) * pace * gap]
        rates += [sign * (part > 0) / (self.time_scale + part) for sign, part in ((-1, early), (1, late))]
        return (row, torch.cat(features, -1).to(row.dtype), rate, torch.cat(rates, -1).to(row.dtype)), leading

    def _gap(self, t: Tensor, batch: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers of the knots around times ``(*batch, L)``, and the time of the last knot, ``(*batch, 1)``."""
        knots = self.knots.expand(*batch, -1)
        sought = (self.knots if self.knots.dim() == 1 else knots).contiguous()  # one row of knots serves all series
        # To the right of a knot: a step of a solver that starts there needs the derivative of what follows.
        place = torch.searchsorted(sought, t.detach().contiguous(), right=True) - 1
        if self.counts is None:
            final = knots.shape[-1] - 1
            left = place.clamp(min=0, max=max(final - 1, 0))
            return left, (left + 1).clamp(max=final), knots[..., -1:]
        final = (self.counts.expand(batch).unsqueeze(-1) - 1).clamp(min=0)
        left = place.clamp(min=0).clamp(max=final - 1).clamp(min=0)
        return left, (left + 1).clamp(max=final), knots.gather(-1, final)


class FlowMarginals(Marginals):
    r"""Marginals that need not be Gaussian: :math:`z_t = m(t) + S^{1/2}(t)\, h_{w(t)}(\epsilon)` of a `SigmoidMap` h.

    A map of standard normal noise that is monotone in every dimension, with as many modes as the posterior has and as
    skew; dependence between dimensions is linear, by a full :math:`S^{1/2}`.

    Args:
        nodes: gives :math:`P + DK` numbers at every time: those of `raw_moments`, then the raw weights, row by row.
        sigmoids: the map.
    """

    def __init__(self, nodes: NodeMarginals, sigmoids: SigmoidMap) -> None:
        super().__init__(nodes.state_dim, nodes.batch_shape, low=nodes.low, high=nodes.high)
        self.nodes, self.sigmoids, self._map = nodes, sigmoids, sigmoids

    def moments(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `Marginals.moments`: the cost is that of the nodes."""
        numbers, raw = self._parts(self.nodes.numbers(t))
        return *raw_moments(numbers, self.state_dim), self._map.weights(raw)

    def moments_and_rates(self, t: Tensor) -> tuple[Tensor, ...]:
        """As `Marginals.moments_and_rates`, twice the cost of `moments`."""
        (numbers, raw), (rate, raw_rate) = map(self._parts, self.nodes.numbers_and_rates(t))
        rates = rate[..., : self.state_dim], _scale_rate(numbers, rate, self.state_dim)
        moments = raw_moments(numbers, self.state_dim)
        return *moments, self._map.weights(raw), *rates, self._map.weights_rate(raw, raw_rate)

    def _parts(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the moments, and those of the weights as ``(..., D, K)``."""
        count = self.state_dim * self._map.count
        return numbers[..., :-count], numbers[..., -count:].unflatten(-1, (self.state_dim, self._map.count))


def pushed_forward(network: nn.Module, x: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
    """Value and derivative of a network along a tangent; layer by layer for an `MLP`, where that is much faster.

    Shape:
        x: ``(..., in_dim)`` · tangent: as x · returns twice ``(..., out_dim)``.
    """
    if type(network) is not MLP:
        return torch.func.jvp(network, (x,), (tangent.contiguous(),))[:2]
    for layer in network.layers:
        if isinstance(layer, nn.Linear):
            x, tangent = layer(x), nn.functional.linear(tangent, layer.weight)
        elif isinstance(layer, nn.SiLU):
            gate = x.sigmoid()
            x, tangent = x * gate, tangent * gate * (1 + x * (1 - gate))
        elif isinstance(layer, nn.Tanh):
            x = x.tanh()
            tangent = tangent * (1 - x.square())
        else:
            x, tangent = torch.func.jvp(layer, (x,), (tangent,))[:2]
    return x, tangent


def num_moments(state_dim: int, covariance: str) -> int:
    """Numbers that describe one marginal: D means and D scales, or D(D + 1)/2 entries of a Cholesky factor.

    Raises:
        ValueError: if `covariance` is neither "diagonal" nor "full".
    """
    if covariance not in ("diagonal", "full"):
        msg = f'`covariance` must be "diagonal" or "full", received {covariance!r}.'
        raise ValueError(msg)
    return 2 * state_dim if covariance == "diagonal" else state_dim + state_dim * (state_dim + 1) // 2


def raw_moments(numbers: Tensor, state_dim: int, initial: float = 1.0) -> tuple[Tensor, Tensor]:
    r"""Mean and positive scale from unconstrained numbers ``(..., num_moments)``.

    Standard deviations, and the diagonal of a factor, are :math:`10^{-4} + \mathrm{softplus}`; numbers 0 give the
    scale `initial`. For D = 1 both forms are the same.
    """
    mean, raw = numbers[..., :state_dim], numbers[..., state_dim:]
    shift = inverse_softplus(initial - SCALE_FLOOR)
    if raw.shape[-1] == state_dim:
        return mean, SCALE_FLOOR + nn.functional.softplus(raw + shift)
    factor = _triangle(raw, state_dim)
    diagonal = SCALE_FLOOR + nn.functional.softplus(factor.diagonal(dim1=-2, dim2=-1) + shift)
    return mean, factor.tril(-1) + torch.diag_embed(diagonal)


def _scale_rate(numbers: Tensor, rates: Tensor, state_dim: int) -> Tensor:
    """Derivative of the scale of `raw_moments` with `initial` 1, where the numbers have these derivatives."""
    raw, rate = numbers[..., state_dim:], rates[..., state_dim:]
    shift = inverse_softplus(1.0 - SCALE_FLOOR)
    if raw.shape[-1] == state_dim:
        return (raw + shift).sigmoid() * rate
    factor, change = _triangle(raw, state_dim), _triangle(rate, state_dim)
    gate = (factor.diagonal(dim1=-2, dim2=-1) + shift).sigmoid()
    return change.tril(-1) + torch.diag_embed(gate * change.diagonal(dim1=-2, dim2=-1))


def _triangle(entries: Tensor, state_dim: int) -> Tensor:
    """Lower triangle ``(..., D, D)`` of its entries row by row, by a product, which any derivative goes through."""
    row, column = torch.tril_indices(state_dim, state_dim, device=entries.device)
    onto = entries.new_zeros(len(row), state_dim * state_dim)
    onto[torch.arange(len(row), device=entries.device), row * state_dim + column] = 1
    return (entries @ onto).unflatten(-1, (state_dim, state_dim))


def _leading_first(out: Tensor, leading: torch.Size) -> Tensor:
    """``(*batch, L, P) -> (*leading, *batch, P)``."""
    out = out.movedim(-2, 0)
    return out.reshape(*leading, *out.shape[1:])


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """``table[..., index, :]`` for every batch element: ``(*batch, R, C), (*batch, L) -> (*batch, L, C)``."""
    if table.dim() == 2:  # one table for all: no copy of it for each series
        return table[index.clamp(max=table.shape[0] - 1)]
    table = table.expand(*index.shape[:-1], *table.shape[-2:])
    index = index.clamp(max=table.shape[-2] - 1).unsqueeze(-1)
    return table.gather(-2, index.expand(*index.shape[:-1], table.shape[-1]))
