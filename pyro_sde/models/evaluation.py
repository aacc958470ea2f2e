r"""How well the posterior of a latent SDE predicts, and a bound on its evidence."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.series import TimeSeries
from ..diagnostics.metrics import Score, log_predictive_density, rmse
from .alignment import align, check_not_before
from .parts import Parts
from .prediction import blocks, posterior_states

__all__ = ["Evaluation", "evaluate", "evidence_bound", "log_likelihood"]


class Evaluation(NamedTuple):
    """How well a trained model predicts observations.

    Attributes:
        log_likelihood: log of the mean over posterior draws of the density of each target, nats per observed value.
        rmse: root mean squared error of the posterior mean of each target, in the unit of the values.
        bound: importance-weighted lower bound on the log evidence of the data, nats per observed value.
    """

    log_likelihood: Score
    rmse: Score
    bound: float


def log_likelihood(parts: Parts, series: TimeSeries, targets: TimeSeries, num_samples: int) -> Tensor:
    """Log-density of every target under each posterior path given the series, ``(S, B, N, O)``; NaN where masked."""
    return _density(parts, _target_states(parts, series, targets, num_samples), targets.filled(), targets.mask)


def evaluate(parts: Parts, series: TimeSeries, targets: TimeSeries, num_samples: int) -> Evaluation:
    """Scores of predictions of the targets given the series."""
    z = _target_states(parts, series, targets, num_samples)
    density = _density(parts, z, targets.filled(), targets.mask)
    mean = parts.likelihood.mean(parts.decoder(z)).mean(0)
    bound = evidence_bound(parts, series, num_samples).sum().item() / int(series.mask.sum())
    return Evaluation(log_predictive_density(density, targets.mask), rmse(mean, targets.values, targets.mask), bound)


def evidence_bound(parts: Parts, series: TimeSeries, num_samples: int) -> Tensor:
    r"""Importance-weighted bound :math:`\log \frac1S \sum_s p(y, z_s) / q(z_s)` of every series, ``(B,)``."""
    aligned = align(series, parts.max_step)
    q = parts.posterior_law(aligned.grid, aligned.values, aligned.mask)
    p = parts.prior_law(aligned.grid)
    weights = []
    for count in blocks(num_samples, len(series)):
        path = q.sample((count,))
        density = _density(parts, aligned.grid.observed(path), aligned.values, aligned.mask)
        weights.append(density.nansum((-2, -1)) + p.log_prob(path) - q.log_prob(path))
    return torch.cat(weights).logsumexp(0) - math.log(num_samples)


def _target_states(parts: Parts, series: TimeSeries, targets: TimeSeries, num_samples: int) -> Tensor:
    """States at the times of the targets, ``(S, B, N, D)``."""
    if len(targets) != len(series):
        msg = f"`targets` must be of the {len(series)} series of `data`, received {len(targets)} series."
        raise ValueError(msg)
    start = series.times[:, :1]
    queries = torch.where(targets.valid_times, targets.times, start)  # entries that are not scored may hold any time
    check_not_before(queries, start, "the first time")
    return posterior_states(parts, series, queries, num_samples)


def _density(parts: Parts, z: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Log-density of every value ``(B, N, O)`` given states ``(S, B, N, D)``; NaN where not observed."""
    return torch.where(mask, parts.likelihood(parts.decoder(z)).log_prob(values), torch.nan)
