r"""Networks that read a series and give its posterior marginals as functions of time."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..ops._arguments import check_floating, is_finite
from ..ops.grid import TimeGrid
from ._time_smoothing import TimeSmoothing
from .base import check_observations, check_positive, check_widths
from .marginals import SCALE_FLOOR, FlowMarginals, Marginals, NodeMarginals, num_moments
from .mlp import MLP
from .sigmoid_map import SigmoidMap

__all__ = ["FreeMarginals", "GRUMarginals", "LocalMarginals", "MarginalEncoder", "NodeEncoder"]

_HEAD_SCALE = 0.01
_PLACES = 4  # features of a place in a gap, see NodeMarginals
_NEIGHBOURS = 7  # on either side, in the averages of LocalMarginals


class MarginalEncoder(nn.Module, abc.ABC):
    """Base of networks (times, values, mask) -> `Marginals`.

    Args:
        value_dim: number O of observed channels.
        state_dim: number D of state dimensions.

    Raises:
        ValueError: if a size is not an integer >= 1.
    """

    def __init__(self, value_dim: int, state_dim: int) -> None:
        super().__init__()
        self.value_dim = check_positive("value_dim", value_dim)
        self.state_dim = check_positive("state_dim", state_dim)

    @abc.abstractmethod
    def forward(self, grid: TimeGrid, values: Tensor, mask: Tensor | None = None) -> Marginals:
        """Marginals of the series observed at ``grid.observed_times``.

        Args:
            grid: a grid with N observation times; its solver steps do not matter.
            values: ``(*batch, N, O)``; anything, also NaN, where they are not observed.
            mask: True = observed, ``(*batch, N, O)`` or ``(*batch, N)``; everything at valid times if None.

        Raises:
            ValueError: if shapes or dtypes do not fit, or an observed value is not finite.
        """


class NodeEncoder(MarginalEncoder):
    r"""Encoder with one row per informative observation and a perceptron that reads between the rows.

    Times without an observed channel are dropped, so masking data equals leaving it out. Only differences of times
    enter. Subclasses implement `contexts`.

    The rows are averaged over time, with weights that fall exponentially over learned lengths, at first 0.1 to 3 of
    `time_scale`. So they change little between observations that are close. Without that a change of the mean by a in
    a gap g costs :math:`a^2 / (2 g \sigma^2)` nats, paid at times that are almost never drawn, and training is stiff.

    Args:
        value_dim: number O of observed channels.
        state_dim: number D of state dimensions.
        hidden: width of the rows.
        covariance: "diagonal" or "full".
        head: widths of the hidden layers of the perceptron.
        time_scale: typical time between observations, ``> 0``, in the unit of time.
        sigmoids: number K of sigmoids of a `SigmoidMap` for every dimension, ``>= 0``; marginals are Gaussian if 0.

    Shape:
        values: ``(*batch, N, O)`` · mask: ``(*batch, N, O)`` or ``(*batch, N)``.

    Raises:
        ValueError: if a size, `covariance`, `time_scale` or `sigmoids` is not as described.
    """

    neighbours: int | None = None  # rows on either side that enter an average, 2**k - 1; all if None

    def __init__(
        self,
        value_dim: int,
        state_dim: int,
        *,
        hidden: int = 64,
        covariance: str = "diagonal",
        head: Sequence[int] = (64, 64),
        time_scale: float = 1.0,
        sigmoids: int = 0,
    ) -> None:
        super().__init__(value_dim, state_dim)
        if not (is_finite(time_scale) and time_scale > 0):
            msg = f"`time_scale` must be a positive finite number, received {time_scale!r}."
            raise ValueError(msg)
        self.hidden = check_positive("hidden", hidden)
        self.time_scale = time_scale
        self.feature_dim = 2 * value_dim + 3
        self.sigmoids = _map_of(sigmoids)
        size = num_moments(state_dim, covariance) + sigmoids * state_dim
        self.head = MLP(hidden + _PLACES, size, head, last_scale=_HEAD_SCALE)
        self.smoothing = TimeSmoothing(hidden, time_scale, self.neighbours)

    @abc.abstractmethod
    def contexts(self, features: Tensor, valid: Tensor) -> Tensor:
        """Rows ``(B, N, H)`` of features ``(B, N, F)``; rows that are not `valid` ``(B, N)`` come last and are 0."""

    def forward(self, grid: TimeGrid, values: Tensor, mask: Tensor | None = None) -> Marginals:
        """As `MarginalEncoder.forward`; one call of the network for the N observations."""
        like = self.head.layers[-1].weight
        values, observed, informative = check_observations(grid, values, mask, like, self.value_dim)  # type: ignore[arg-type]
        batch, count = informative.shape[:-1], informative.shape[-1]
        position = torch.arange(count, device=informative.device)
        order = torch.where(informative, position, position + count).argsort(-1)
        valid = informative.gather(-1, order)
        number = valid.sum(-1)
        times = grid.observed_times.expand(informative.shape).gather(-1, order)
        latest = times.gather(-1, (number - 1).clamp(min=0).unsqueeze(-1))
        times = torch.where(valid, times, latest)
        gaps = (times.diff(dim=-1) / self.time_scale).log1p().to(values.dtype)
        rows = torch.cat([values, observed.to(values.dtype)], -1)
        rows = rows.gather(-2, order.unsqueeze(-1).expand(rows.shape))
        around = [nn.functional.pad(gaps, (1, 0)), nn.functional.pad(gaps, (0, 1)), valid.to(values.dtype)]
        features = torch.cat([rows, torch.stack(around, -1)], -1) * valid.unsqueeze(-1)
        nodes = self.contexts(features.reshape(-1, count, self.feature_dim), valid.reshape(-1, count))
        nodes = self.smoothing(nodes.reshape(*batch, count, self.hidden), times, valid)
        scale = self.time_scale
        return _bent(
            NodeMarginals(times, nodes, self.state_dim, head=self.head, counts=number, time_scale=scale), self.sigmoids
        )


class GRUMarginals(NodeEncoder):
    r"""Marginals from two GRUs, one from each end: every row knows the whole series, as a smoother does.

    Cost: two fused GRU calls of N steps; averages of the rows in log N operations. Arguments and errors as
    `NodeEncoder`.

    References:
        Bartosh, Vetrov, Naesseth (2025), SDE Matching, arXiv 2502.02472 (marginals from an encoder of the series).

    Example:
        >>> grid = TimeGrid(torch.tensor([0.0, 0.7, 1.0]))
        >>> marginals = GRUMarginals(2, 4)(grid, torch.zeros(5, 3, 2))
        >>> mean, scale = marginals.moments(torch.full((1,), 0.3))
        >>> mean.shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        value_dim: int,
        state_dim: int,
        *,
        hidden: int = 64,
        covariance: str = "diagonal",
        head: Sequence[int] = (64, 64),
        time_scale: float = 1.0,
        sigmoids: int = 0,
    ) -> None:
        super().__init__(
            value_dim,
            state_dim,
            hidden=hidden,
            covariance=covariance,
            head=head,
            time_scale=time_scale,
            sigmoids=sigmoids,
        )
        self.forwards = nn.GRU(self.feature_dim, hidden, batch_first=True)
        self.backwards = nn.GRU(self.feature_dim, hidden, batch_first=True)
        self.mix = nn.Linear(2 * hidden, hidden)

    def contexts(self, features: Tensor, valid: Tensor) -> Tensor:
        """States of both GRUs, mixed by a linear map."""
        count = features.shape[-2]
        position = torch.arange(count, device=features.device)
        # Valid rows in reversed order, then padding: the second GRU starts at the last valid row.
        mirror = torch.where(valid, valid.sum(-1, keepdim=True) - 1 - position, position)
        ahead, _ = self.forwards(features)
        behind, _ = self.backwards(features.gather(-2, mirror.unsqueeze(-1).expand(features.shape)))
        behind = behind.gather(-2, mirror.unsqueeze(-1).expand(behind.shape))
        return self.mix(torch.cat([ahead, behind], -1))


class LocalMarginals(NodeEncoder):
    r"""Marginals from convolutions and local averages: a row depends on `reach` neighbours on either side.

    So a window of a long series, with `reach` more observations on either side, is encoded exactly as within the
    whole: `TimeWindows` trains on windows without bias. Averages are over 7 rows on either side: where more than that
    many observations come within a short time, their rows may still differ by much. Cost: `layers` convolutions over
    N rows.

    Args:
        value_dim: number O of observed channels.
        state_dim: number D of state dimensions.
        hidden: width of the rows.
        layers: number of convolutions; the dilation doubles from one to the next.
        covariance: "diagonal" or "full".
        head: widths of the hidden layers of the perceptron.
        time_scale: typical time between observations.
        sigmoids: as `NodeEncoder`.

    Raises:
        ValueError: as `NodeEncoder`, and if `layers` is not an integer >= 1.

    Example:
        >>> LocalMarginals(1, 2, layers=3).reach
        15
    """

    neighbours = _NEIGHBOURS

    def __init__(
        self,
        value_dim: int,
        state_dim: int,
        *,
        hidden: int = 64,
        layers: int = 3,
        covariance: str = "diagonal",
        head: Sequence[int] = (64, 64),
        time_scale: float = 1.0,
        sigmoids: int = 0,
    ) -> None:
        check_positive("layers", layers)  # before weights are drawn
        super().__init__(
            value_dim,
            state_dim,
            hidden=hidden,
            covariance=covariance,
            head=head,
            time_scale=time_scale,
            sigmoids=sigmoids,
        )
        widths = [self.feature_dim, *[hidden] * layers]
        self.layers = nn.ModuleList(nn.Conv1d(widths[i], hidden, 3, padding=2**i, dilation=2**i) for i in range(layers))
        # that of the convolutions is 2**layers - 1; the feature of a gap sees the neighbour at its other end
        self.reach = 2**layers + _NEIGHBOURS

    def contexts(self, features: Tensor, valid: Tensor) -> Tensor:
        """Convolutions with SiLU between them; padding stays 0, so it says no more than the end of the series."""
        keep = valid.to(features.dtype).unsqueeze(-2)
        rows = features.mT
        for i, layer in enumerate(self.layers):
            rows = (nn.functional.silu(layer(rows)) if i + 1 < len(self.layers) else layer(rows)) * keep
        return rows.mT


class FreeMarginals(MarginalEncoder):
    r"""Marginals with parameters of their own: quadratic in time between knots, the same whatever is observed.

    For one series, or a batch that is never subsampled. Means and raw scales are piecewise quadratic and continuous,
    free at every knot and in every gap; let the knots contain the observation times. Forecasts beyond the knots are
    not known.

    Args:
        knots: increasing times ``(N,)``, N >= 2.
        state_dim: number D of state dimensions.
        value_dim: number of observed channels, which are not looked at.
        batch_shape: batch shape of the series; each has numbers of its own.
        covariance: "diagonal" or "full".
        initial_scale: standard deviation before training, ``> 1e-4``; means start at 0.
        sigmoids: number K of sigmoids of a `SigmoidMap` for every dimension, ``>= 0``; marginals are Gaussian if 0.

    Raises:
        TypeError: if `knots` is no floating-point tensor.
        ValueError: if the knots do not increase, or an argument is not as described.

    Example:
        >>> free = FreeMarginals(torch.linspace(0.0, 1.0, 11), state_dim=2)
        >>> mean, scale = free(TimeGrid([0.0, 1.0]), torch.zeros(2, 1)).moments(torch.tensor([0.5]))
        >>> mean.shape, scale.shape
        (torch.Size([2]), torch.Size([2]))
    """

    knots: Tensor

    def __init__(
        self,
        knots: Tensor,
        state_dim: int,
        value_dim: int = 1,
        *,
        batch_shape: Sequence[int] = (),
        covariance: str = "diagonal",
        initial_scale: float = 1.0,
        sigmoids: int = 0,
    ) -> None:
        super().__init__(value_dim, state_dim)
        check_floating(knots=knots)
        if knots.dim() != 1 or len(knots) < 2 or not bool((knots.diff() > 0).all()) or not math.isfinite(knots.sum()):
            msg = f"`knots` must be two or more finite, increasing times (N,), received shape {tuple(knots.shape)}."
            raise ValueError(msg)
        if not (is_finite(initial_scale) and initial_scale > SCALE_FLOOR):
            msg = f"`initial_scale` must be finite and > {SCALE_FLOOR}, received {initial_scale!r}."
            raise ValueError(msg)
        batch = check_widths("batch_shape", batch_shape)
        self.sigmoids = _map_of(sigmoids)
        size = num_moments(state_dim, covariance) + sigmoids * state_dim
        self.register_buffer("knots", knots.detach().clone())
        self.nodes = nn.Parameter(knots.new_zeros(*batch, len(knots), size))
        self.bends = nn.Parameter(knots.new_zeros(*batch, len(knots) - 1, size))
        with torch.no_grad():
            diagonal = list(range(state_dim, 2 * state_dim))
            if covariance == "full":  # entry (i, i) of a lower triangle, row by row
                diagonal = [state_dim + i * (i + 3) // 2 for i in range(state_dim)]
            # the number whose softplus is the scale, less that of scale 1, which raw_moments adds
            raw = math.log(math.expm1(initial_scale - SCALE_FLOOR)) - math.log(math.expm1(1.0 - SCALE_FLOOR))
            self.nodes[..., diagonal] = raw

    def forward(self, grid: TimeGrid, values: Tensor, mask: Tensor | None = None) -> Marginals:
        """Marginals as they are now; the arguments are those of every encoder and are not looked at."""
        del grid, values, mask
        known = (float(self.knots[0]), float(self.knots[-1]))
        return _bent(
            NodeMarginals(self.knots, self.nodes, self.state_dim, bends=self.bends, known=known), self.sigmoids
        )


def _map_of(sigmoids: int) -> SigmoidMap | None:
    """The map of so many sigmoids, None for 0."""
    if isinstance(sigmoids, bool) or not isinstance(sigmoids, int) or sigmoids < 0:
        msg = f"`sigmoids` must be an integer >= 0, received {sigmoids!r}."
        raise ValueError(msg)
    return SigmoidMap(sigmoids) if sigmoids else None


def _bent(nodes: NodeMarginals, sigmoids: SigmoidMap | None) -> Marginals:
    return nodes if sigmoids is None else FlowMarginals(nodes, sigmoids)
