"""Minibatches of series for the training loop, and a look at the data before it starts."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine

from ..data.series import TimeSeries
from ..infer.fit import FitOptions, FitResult, fit
from ..infer.streams import minibatches, stream_seed
from .alignment import align

__all__ = ["fit_series", "split_off", "warn_unless_standardised"]

# Channels whose mean and deviation are further off than this slow training down or break it.
_LARGEST_MEAN, _SMALLEST_DEVIATION, _LARGEST_DEVIATION = 3.0, 0.1, 10.0


def fit_series(
    functions: tuple[Callable[..., Any], Callable[..., Any]],
    series: TimeSeries,
    held_back: TimeSeries | None,
    max_step: float | None,
    *,
    batch_size: int,
    seed: int,
    options: FitOptions | None,
    **schedule: Any,  # noqa: ANN401 (steps and learning_rate, checked by `fit`)
) -> FitResult:
    """Train a model and a guide of ``(grid, values, mask)`` on series; losses are in nats per observed value.

    Args:
        functions: model and guide.
        series: to train on.
        held_back: to validate on.
        max_step: largest solver step.
        batch_size: series per step.
        seed: of batches and noise.
        options: of `fit`.
        **schedule: `steps` and `learning_rate` of `fit`.
    """
    train, count = align(series, max_step), int(series.mask.sum())
    choose = minibatches(len(series), batch_size, seed)

    def batch(step: int) -> tuple[Any, ...]:
        indices = choose(step)
        part = train if len(indices) == len(series) else train.select(indices)
        return len(series) / (len(indices) * count), part.grid, part.values, part.mask

    validation = None
    if held_back is not None:
        part = align(held_back, max_step)
        validation = (1.0 / int(held_back.mask.sum()), part.grid, part.values, part.mask)
    model, guide = map(_weighted, functions)
    with pyro.get_param_store().scope():  # another model of the same names may live in the store
        return fit(model, guide, batch, validation=validation, seed=seed, options=options, **schedule)


def split_off(series: TimeSeries, share: float, seed: int) -> tuple[TimeSeries, TimeSeries]:
    """Series to train on, and a random share of at least one series to validate on.

    Raises:
        ValueError: if `share` is not between 0 and 1, or no series would be left to train on.
    """
    if not 0 < share < 1:
        msg = f"`validation` must be a share, 0 <= validation < 1, or a TimeSeries, received {share}."
        raise ValueError(msg)
    count = max(1, round(share * len(series)))
    if count >= len(series):
        msg = f"`validation` = {share} of {len(series)} series leaves none to train on. Cut long series into windows."
        raise ValueError(msg)
    order = torch.randperm(len(series), generator=torch.Generator().manual_seed(stream_seed(seed, "split")))
    return series.select(order[count:].sort().values), series.select(order[:count].sort().values)


def warn_unless_standardised(series: TimeSeries) -> None:
    """Warn if the observed values of a channel are constant, or far from mean 0 and deviation 1."""
    count = series.mask.sum((0, 1)).clamp(min=1)
    mean = series.filled().sum((0, 1)) / count
    centred = torch.where(series.mask, series.filled() - mean, 0.0)
    deviation = (centred.square().sum((0, 1)) / count).sqrt()
    odd = (mean.abs() > _LARGEST_MEAN) | (deviation < _SMALLEST_DEVIATION) | (deviation > _LARGEST_DEVIATION)
    if odd.any():
        i = int(odd.nonzero()[0])
        warnings.warn(
            f"channel '{series.channels[i]}' has mean {mean[i].item():.3g} and standard deviation "
            f"{deviation[i].item():.3g}; networks and noise scales start at mean 0 and deviation 1. Train on "
            "series.standardise()[0], and leave out constant channels, whose learned noise shrinks to its floor.",
            UserWarning,
            stacklevel=3,
        )


def _weighted(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a weight on its log-probabilities as first argument."""

    @functools.wraps(function)
    def run(weight: float, *args: Any) -> Any:  # noqa: ANN401
        with poutine.scale(scale=weight):
            return function(*args)

    return run
