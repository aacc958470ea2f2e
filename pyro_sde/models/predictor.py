"""What every model of series offers once it is trained: smooth, forecast, impute."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.series import TimeSeries
from ..infer.streams import seeded
from .alignment import Data, as_series, check_not_before, last_times, query_times
from .prediction import PathSamples

__all__ = ["PathPredictor", "own_record"]


class PathPredictor:
    """Base of the models that answer questions about series by draws from the posterior path.

    Subclasses implement `record`, the data in the dtype and on the device of the model, and `draw`, paths at queries
    that have been checked. A draw is one path: states at different times of one method call belong together.
    """

    def smooth(
        self, data: Data, times: Tensor | None = None, *, num_samples: int = 100, seed: int | None = None
    ) -> PathSamples:
        """Paths given the whole of each series, at times up to its last observation.

        Args:
            data: B series, as in `fit`.
            times: ``(Q,)`` or ``(B, Q)``, any order, repeats allowed; the times of the data if None, those after the
                last observation included.
            num_samples: number S of draws.
            seed: same seed, same draws; torch's global state if None.

        Returns:
            Times ``(B, Q)``, states ``(S, B, Q, D)``, their decoded means and new observations ``(S, B, Q, O)``. The
            mean over S of the decoded means is the smoothed series.

        Raises:
            ValueError: if a time lies before the first time or after the last observation of its series; `forecast`
                takes later ones.
        """
        series = self.record(data)
        queries = series.times if times is None else query_times(times, series.times, len(series))
        if times is not None:
            _check_not_after(queries, last_times(series))
        return self._query(series, queries, num_samples, seed)

    def forecast(self, data: Data, times: Tensor, *, num_samples: int = 100, seed: int | None = None) -> PathSamples:
        """Paths after the last observation of each series.

        The posterior runs to the last observation; from its end the dynamics of the model run on. That is the exact
        law of the future given the posterior at the last observation: no later observation could bend it.

        Args:
            data: B series, as in `fit`.
            times: ``(Q,)`` or ``(B, Q)``, not before the last observation, any order, repeats allowed.
            num_samples: number S of draws.
            seed: same seed, same draws; torch's global state if None.

        Returns:
            As `smooth`. Score and plot `y`, which has the observation noise, against what comes.

        Raises:
            ValueError: if a time lies before the last observation of its series; `smooth` takes earlier ones.
        """
        series = self.record(data)
        queries = query_times(times, series.times, len(series))
        check_not_before(queries, last_times(series), "the last observation")
        return self._query(series, queries, num_samples, seed)

    def impute(self, data: Data, *, num_samples: int = 100, seed: int | None = None) -> PathSamples:
        """Completed series: what is missing is drawn given all that is observed.

        Every draw completes a series by one path, so that entries that are missing together vary together.

        Args:
            data: B series, as in `fit`.
            num_samples: number S of draws.
            seed: same seed, same draws; torch's global state if None.

        Returns:
            As `smooth` at the times of the data; `y`, ``(S, B, N, O)``, has the observations wherever there are any.
        """
        series = self.record(data)
        samples = self._query(series, series.times, num_samples, seed)
        return samples._replace(y=torch.where(series.mask, series.filled(), samples.y))

    def record(self, data: Data) -> TimeSeries:
        """The data as a record of values ``(B, N, O)`` in the dtype and on the device of the model."""
        raise NotImplementedError

    def draw(self, series: TimeSeries, queries: Tensor, num_samples: int) -> PathSamples:
        """Paths at queries ``(B, Q)`` from the first time of every series on, without checks and gradients."""
        raise NotImplementedError

    def _query(self, series: TimeSeries, queries: Tensor, num_samples: int, seed: int | None) -> PathSamples:
        check_not_before(queries, series.times[:, :1], "the first time")
        with torch.no_grad(), seeded(seed, "sampling"):
            return self.draw(series, queries, num_samples)


def own_record(data: Data) -> TimeSeries:
    """The data as a record of values ``(B, N, O)`` in the dtype and on the device that they have.

    Raises:
        TypeError: if `data` is neither a `TimeSeries` nor tensors.
        ValueError: if the tensors do not make a record.
    """
    if isinstance(data, tuple) and len(data) > 1 and isinstance(data[1], Tensor):
        return as_series(data, data[1])
    return as_series(data, data.values if isinstance(data, TimeSeries) else torch.zeros(()))


def _check_not_after(queries: Tensor, latest: Tensor) -> None:
    late = queries > latest
    if late.any():
        series, position = late.nonzero()[0].tolist()
        msg = (
            f"`times` must not lie after the last observation of their series: {queries[series, position].item():g} "
            f"is after {latest[series, 0].item():g} in series {series}. `forecast` takes later times."
        )
        raise ValueError(msg)
