r"""Smoothing, forecasts and imputation for plain Pyro models of a path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ..data.series import TimeSeries
from ..infer.continuation import ContinuePaths
from ..ops._grid_times import check_max_step
from ..ops.grid import TimeGrid
from .alignment import Data, align, grid_through, states_at
from .prediction import PathSamples, blocks
from .predictor import PathPredictor, own_record

__all__ = ["PathForecaster"]

PathFunction = Callable[..., Any]  # of (grid, values, mask)
_DRAWS = "_draws"


class PathForecaster(PathPredictor):
    r"""Smooths, forecasts and imputes with a model and a fitted guide that are plain Pyro functions.

    Both are functions of ``(grid, values, mask)``: a `TimeGrid` with batch shape ``(B,)``, values ``(B, N, O)`` with 0
    where not observed, and a bool mask of their shape. They sample the path at one site in a plate over the series,
    ``dim=-1``, and the model samples the observations ``(B, N, O)`` at another, with ``obs=values``: given None for
    `values`, it draws them. Other latent sites, inside and outside of the plate, are taken as the guide draws them.

    The guide runs on a grid through the observation times and the times asked for, which it sees as not observed; so
    it must be a function of the grid (`PosteriorSDE`, `GaussianMarkov`, or your own), not one with parameters per grid
    point. For such a guide (`AutoSDE`, `FreeSites`) put the times into the grid that it is trained on, and forecast
    with `ContinuePaths`. Beyond the last observation the path goes on by the law of the model. Parameters are read from
    Pyro's store as it is. All draws go in one batch under a plate of ``dim=-2``, in blocks.

    Args:
        model: plain Pyro model.
        guide: its guide, fitted by `pyro.infer.SVI` or otherwise.
        max_step: largest solver step, in the unit of the times; that of training. One step per gap if None.
        path: name of the site of the path, an `SDEPath` or `GaussianPath` in the model.
        observed: name of the site of the observations.

    Raises:
        TypeError: if `model` or `guide` cannot be called.
        ValueError: if `max_step` is no positive number; in use, if the model or the guide lacks a site, or its values
            have another shape than said here.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_sde import GaussianPath
        >>> from pyro_sde.sde import Matern32
        >>> def model(grid, values=None, mask=None):
        ...     with pyro.plate("series", len(grid.times)):
        ...         z = pyro.sample("z", GaussianPath(Matern32(), None, grid))
        ...         noise = dist.Normal(grid.observed(z)[..., :1], 0.1)
        ...         return pyro.sample("y", noise.mask(True if mask is None else mask).to_event(2), obs=values)
        >>> def guide(grid, values, mask):
        ...     with pyro.plate("series", len(grid.times)):
        ...         pyro.sample("z", GaussianPath(Matern32(), None, grid).condition(None, 0.1, values, mask))
        >>> times, values = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[[0.3], [torch.nan], [0.1]]])
        >>> PathForecaster(model, guide).forecast((times, values), torch.tensor([2.5, 4.0]), num_samples=7).y.shape
        torch.Size([7, 1, 2, 1])
    """

    def __init__(
        self,
        model: PathFunction,
        guide: PathFunction,
        *,
        max_step: float | None = None,
        path: str = "z",
        observed: str = "y",
    ) -> None:
        for name, function in (("model", model), ("guide", guide)):
            if not callable(function):
                msg = f"`{name}` must be a Pyro function of (grid, values, mask), received {type(function).__name__}."
                raise TypeError(msg)
        check_max_step(max_step)
        self.model, self.guide = model, guide
        self.max_step = max_step
        self.path, self.observed = path, observed

    def record(self, data: Data) -> TimeSeries:
        """The data as a record in its own dtype."""
        return own_record(data)

    def draw(self, series: TimeSeries, queries: Tensor, num_samples: int) -> PathSamples:
        """Paths at queries ``(B, Q)``: the guide up to the last observation, then the law of the model."""
        aligned = align(series, self.max_step, queries)
        times = torch.cat([torch.minimum(series.times, aligned.last_time), queries], -1)
        through = grid_through(times, self.max_step)
        order, position = (part[:, series.times.shape[-1] :] for part in (through.order.argsort(-1), through.position))
        points = (aligned.grid.steps > 0).sum(-1) + 1  # of the grid up to the last observation
        parts = []
        for count in blocks(num_samples, len(series)):
            with pyro.plate(_DRAWS, count, dim=-2):
                past = poutine.trace(self.guide).get_trace(aligned.grid, aligned.values, aligned.mask)
                self._node(past, "guide", self.path, aligned.grid)
                with ContinuePaths(past, {self.path: points}):
                    future = poutine.trace(self.model).get_trace(through.grid, None, None)
            _, path = self._node(future, "model", self.path, through.grid)
            law, y = self._node(future, "model", self.observed, None)
            seen = (self._at(values, order, count) for values in (law.mean, y))
            parts.append((states_at(path, position), *seen))
        return PathSamples(queries, *(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def _at(self, values: Tensor, order: Tensor, count: int) -> Tensor:
        """Entries ``(B, Q)`` of observations ``(S, B, N + Q, O)``."""
        if values.dim() != 4 or values.shape[:2] != (count, len(order)):
            msg = (
                f"site '{self.observed}' must have values of shape (S, B, N, O) under a plate of S = {count} draws and "
                f"one of B = {len(order)} series, received {tuple(values.shape)}. Sample it in the plate of the "
                "series, with `.to_event(2)`."
            )
            raise ValueError(msg)
        return states_at(values, order)

    def _node(self, trace: poutine.Trace, function: str, name: str, grid: TimeGrid | None) -> tuple[Any, Tensor]:
        """Law and value of a site."""
        node: dict[str, Any] = trace.nodes.get(name, {"type": "none"})  # type: ignore[assignment]
        if node["type"] != "sample":
            sites = [n for n in (*trace.stochastic_nodes, *trace.observation_nodes) if n != _DRAWS]
            msg = f"the {function} has no sample site '{name}', only {sites}. Name its sites in `path` and `observed`."
            raise ValueError(msg)
        value = node["value"]
        if grid is not None and value.shape[-2] != grid.num_steps + 1:
            msg = (
                f"site '{name}' of the {function} has {value.shape[-2]} points, but the grid that it was given has "
                f"{grid.num_steps + 1}: the {function} must use the grid among its arguments, not another."
            )
            raise ValueError(msg)
        return node["fn"], value
