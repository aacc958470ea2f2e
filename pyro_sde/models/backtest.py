"""Rolling-origin evaluation: train on the past, forecast, score what came, move on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import pyro
from torch import Tensor

from ..data.series import TimeSeries
from ..diagnostics.base import Baseline
from ..diagnostics.metrics import Score, crps_samples, energy_score, mae, rmse
from ..infer.streams import seeded
from .alignment import Data, query_times
from .prediction import PathSamples
from .predictor import own_record

__all__ = ["BaselineForecaster", "Forecaster", "RollingOrigin", "Window", "backtest"]

Metric = Callable[[Tensor, Tensor], Any]


class Forecaster(Protocol):
    """What a backtest asks of a fitted model: `LatentSDE`, `DeepMarkovModel`, `PathForecaster` or one of your own."""

    def forecast(self, data: Data, times: Tensor, *, num_samples: int = 100, seed: int | None = None) -> PathSamples:
        """Draws at times ``(B, Q)`` after the last observation of each series."""
        ...


class Window(NamedTuple):
    """Train on the columns t0 to t1 - 1 of a record, test on t1 to t2 - 1."""

    t0: int
    t1: int
    t2: int


@dataclass(frozen=True)
class RollingOrigin:
    """How the origin of the forecasts moves along the columns of a record; the words are those of Pyro's `backtest`.

    Attributes:
        train_window: columns to train on; all from the first one if None.
        test_window: columns to forecast; all up to the last one if None.
        stride: columns from one origin to the next.
        min_train_window: fewest columns to train on, if `train_window` is None.
        min_test_window: fewest columns to forecast, if `test_window` is None.

    Raises:
        ValueError: if a number is not a positive integer.

    Example:
        >>> list(RollingOrigin(train_window=4, test_window=2, stride=3).windows(10))
        [Window(t0=0, t1=4, t2=6), Window(t0=3, t1=7, t2=9)]
    """

    train_window: int | None = None
    test_window: int | None = None
    stride: int = 1
    min_train_window: int = 1
    min_test_window: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, value in vars(self).items():
            optional = value is None and name in ("train_window", "test_window")
            if not optional and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                msg = f"`{name}` must be a positive number of columns, received {value!r}."
                raise ValueError(msg)

    def windows(self, duration: int) -> Iterator[Window]:
        """Windows of a record of so many columns, in the order of their origins.

        Raises:
            ValueError: if no window fits.
        """
        first = self.min_train_window if self.train_window is None else self.train_window
        ahead = self.min_test_window if self.test_window is None else self.test_window
        if first + ahead > duration:
            msg = f"`windows` need {first} columns to train on and {ahead} to test on, but there are {duration}."
            raise ValueError(msg)
        for t1 in range(first, duration - ahead + 1, self.stride):
            t0 = 0 if self.train_window is None else t1 - self.train_window
            yield Window(t0, t1, duration if self.test_window is None else t1 + self.test_window)


@dataclass(frozen=True)
class BaselineForecaster:
    """A baseline of `pyro_sde.diagnostics` as a model to beat in a backtest.

    It learns its band from the series that it forecasts. A draw is independent from time to time.

    Attributes:
        fit: `fit_last_value`, `fit_ou` or another function of ``(times, values, mask)``.
    """

    fit: Callable[..., Baseline]

    def forecast(self, data: Data, times: Tensor, *, num_samples: int = 100, seed: int | None = None) -> PathSamples:
        """Draws from the Gaussian law of every time; `z` is the mean.

        Shape:
            times: ``(Q,)`` or ``(B, Q)`` · draws: ``(S, B, Q, O)``.
        """
        series = own_record(data)
        times = query_times(times, series.times, len(series))
        predicted = self.fit(series.times, series.filled(), series.mask).predict(times)
        with seeded(seed, "sampling"):
            y = predicted.sample(num_samples)
        mean = predicted.mean.expand(y.shape)
        return PathSamples(times, mean, mean, y)


def backtest(
    data: Data,
    fit: Callable[[TimeSeries], Forecaster],
    windows: RollingOrigin | None = None,
    *,
    metrics: Mapping[str, Metric] | None = None,
    transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    num_samples: int = 100,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Backtest a model on moving windows of training and test columns, in the shape of `pyro.contrib.forecast`.

    For every window `fit` gets a record of the training columns and nothing else, and the model forecasts, from that
    record, at the times of the test columns; values and masks of the test columns reach the metrics only. Whatever else
    looks at the data, scaling and the choice of hyper-parameters among it, belongs inside `fit`. Series without any
    observation in the training or in the test columns are left out of that window.

    Windows count columns of the record: series that do not share their times are cut at the same column, not at the
    same time. A draw of the observations, with noise, is scored. Cost: one training per window.

    Args:
        data: B series, a `TimeSeries` or tensors ``(times, values)`` or ``(times, values, mask)``.
        fit: makes and trains a new model, with a method `forecast` (see `Forecaster`). It runs in an empty parameter
            store, and in a random stream of its own.
        windows: where to cut; by default the origin moves by one from the first column to the last.
        metrics: functions of draws ``(S, B, Q, O)`` and truth ``(B, Q, O)``, NaN where not observed, that return
            anything, often a number. By default "mae" (of the median), "rmse" (of the mean) and "crps", means over the
            observed entries, and "energy", the energy score of the whole test window of a series, which sees whether
            draws are paths; the last two by their fair estimates, from at least two draws. Functions that know no NaN,
            such as those of Pyro, serve data without gaps.
        transform: ``pred, truth = transform(pred, truth)`` before the metrics, to undo a scaling for example.
        num_samples: number S of draws.
        seed: same seed, same figures.

    Returns:
        A dictionary per window, with the keys "t0", "t1", "t2", "seed", "num_samples", "num_series" (how many were
        forecast), "train_walltime" and "test_walltime" in seconds, and one per metric.

    Raises:
        TypeError: if `data` or what `fit` returns is of another kind.
        ValueError: if no window fits the data, there is no metric, a metric takes the name of another key, or the
            forecast has a wrong shape.

    References:
        Tashman (2000), Out-of-sample tests of forecasting accuracy, section 3 (rolling origin).

    Example:
        >>> from pyro_sde.data import synthetic
        >>> from pyro_sde.diagnostics import fit_last_value
        >>> series = synthetic.ornstein_uhlenbeck(seed=0, num_series=8, num_times=12)
        >>> windows = RollingOrigin(train_window=6, test_window=2, stride=2)
        >>> results = backtest(series, lambda train: BaselineForecaster(fit_last_value), windows)
        >>> [(result["t1"], result["crps"] < result["mae"]) for result in results]
        [(6, True), (8, True), (10, True)]
    """
    series, metrics = own_record(data), _checked(metrics)
    results = []
    for window in (windows or RollingOrigin()).windows(series.times.shape[1]):
        train, times, truth = _cut(series, window)
        if train is None:
            continue
        with pyro.get_param_store().scope():
            start = perf_counter()
            with seeded(seed, "backtest", window.t1):
                model = fit(train)
            trained = perf_counter()
            pred = _forecast(model, train, times, num_samples, seed)
        result = {
            **window._asdict(),
            "seed": seed,
            "num_samples": num_samples,
            "num_series": len(train),
            "train_walltime": trained - start,
            "test_walltime": perf_counter() - trained,
        }
        if transform is not None:
            pred, truth = transform(pred, truth)
        result.update({name: metric(pred, truth) for name, metric in metrics.items()})
        results.append(result)
    return results


def _cut(series: TimeSeries, window: Window) -> tuple[TimeSeries | None, Tensor, Tensor]:
    """Training record, times and values of the test columns, of the series that have both; None if there is none."""
    past, future = slice(window.t0, window.t1), slice(window.t1, window.t2)
    both = series.valid_times[:, past].any(-1) & series.valid_times[:, future].any(-1)
    if not both.any():
        return None, series.times, series.values
    kept = series.select(both)
    parts = {name: getattr(kept, name)[:, past].clone() for name in ("times", "values", "mask")}
    return replace(kept, **parts), kept.times[:, future], kept.values[:, future]


def _forecast(model: Forecaster, train: TimeSeries, times: Tensor, num_samples: int, seed: int) -> Tensor:
    if not callable(getattr(model, "forecast", None)):
        msg = f"`fit` must return a fitted model with a method `forecast`, received {type(model).__name__}."
        raise TypeError(msg)
    pred = model.forecast(train, times, num_samples=num_samples, seed=seed).y
    expected = (num_samples, *times.shape, train.values.shape[-1])
    if pred.shape != expected:
        msg = f"the forecast of {type(model).__name__} must have `y` of shape {expected}, received {tuple(pred.shape)}."
        raise ValueError(msg)
    return pred


def _mean(score: Callable[..., Score], point: Callable[[Tensor], Tensor]) -> Metric:
    """Score of the observed entries of a window, a number."""

    def metric(pred: Tensor, truth: Tensor) -> float:
        observed = ~truth.isnan()
        return score(point(pred), truth, observed).mean if bool(observed.any()) else math.nan

    return metric


_DEFAULTS: dict[str, Metric] = {
    "mae": _mean(mae, lambda pred: pred.median(0).values),
    "rmse": _mean(rmse, lambda pred: pred.mean(0)),
    "crps": _mean(crps_samples, lambda pred: pred),
    "energy": _mean(partial(energy_score, joint="series"), lambda pred: pred),
}
_KEYS = {*Window._fields, "seed", "num_samples", "num_series", "train_walltime", "test_walltime"}


def _checked(metrics: Mapping[str, Metric] | None) -> Mapping[str, Metric]:
    metrics = _DEFAULTS if metrics is None else metrics
    taken = sorted(_KEYS & set(metrics))
    if not metrics or taken:
        msg = (
            f"`metrics` must hold at least one function, by names other than {sorted(_KEYS)}; received {list(metrics)}."
        )
        raise ValueError(msg)
    return metrics
