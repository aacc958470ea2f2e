"""What a few frames tell about the tempo of a walk: a linear estimate that knows the model's own errors.

Over the frames seen, observed less predicted is taken as ``slope_tempo * lambda + slope_shift * delta + error``, where
lambda is the log tempo less that of the population and delta a shift in time. Mean and covariance of the error, which
is alike for many frames, are those over all windows of the walks that a member was fitted to, at the tempi learned for
these; lambda has the spread of these tempi. So the estimate is neither sure of what is an error of shape nor blind.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tests.benchmarks._mocap_data import SEEN, TIME_PER_FRAME, period
from tests.benchmarks._mocap_fit import STRIDE, Fitted
from tests.benchmarks._mocap_protocols import Setup, target
from tests.benchmarks._mocap_score import SAMPLES, forecast

FEWEST = SEEN + 2 * STRIDE  # frames of a window
PATHS = 8  # paths of a prediction within the frames seen
BETWEEN = 9  # frames from one window to the next
DIFFERENCE = 0.02  # of log tempo, for the slope
RIDGE = 0.1  # of the mean variance, for a covariance from few walks
SHIFT = 1.5  # frames, deviation of the shift


class WindowTempo(NamedTuple):
    """Estimates from every window of the walk that each of E members has not seen.

    Attributes:
        estimate: log tempo less that of the population, ``(windows, E)``; the first window begins with the walk.
        deviation: given the window, ``(windows, E)``.
        population: deviation over the walks of training, ``(E,)``.
        centre: log tempo of the population, ``(E,)``.
    """

    estimate: Tensor
    deviation: Tensor
    population: Tensor
    centre: Tensor


def window_tempo(fitted: Fitted, values: Tensor, frames: int) -> WindowTempo:
    """Estimate the tempo from each window of some frames.

    Args:
        fitted: E members, each fitted to all walks but one.
        values: the E walks, ``(E, 300, 50)``; member k has not seen walk k.
        frames: length of a window, at least `FEWEST`.

    Raises:
        ValueError: if the model has no tempi or the window is too short.
    """
    begins = range(0, values.shape[1] - frames + 1, BETWEEN)
    tempo = fitted.model.tempo
    if tempo is None or frames < FEWEST:
        model = "has none" if tempo is None else "has them"
        msg = f"a model with tempi and `frames` >= {FEWEST} are needed, received {frames}; the model {model}."
        raise ValueError(msg)
    own = tempo.series_loc.detach().gather(-1, fitted.folds)  # (E, n)
    centre, population = own.median(-1).values, own.std(-1)
    training, test = values[fitted.folds], values.unsqueeze(1)
    errors = torch.cat([_error(fitted, training[..., b : b + frames, :], own) for b in begins], 1)
    mean = errors.mean(1, keepdim=True)
    covariance = (errors - mean).mT @ (errors - mean) / errors.shape[1]
    level = RIDGE * covariance.diagonal(dim1=-1, dim2=-2).mean(-1)
    covariance = covariance + level[:, None, None] * torch.eye(errors.shape[-1])
    precision = torch.stack([population**-2, torch.full_like(population, (STRIDE / SHIFT) ** 2)], -1)
    estimates, deviations = [], []
    for begin in begins:
        window = test[..., begin : begin + frames, :]
        error = _error(fitted, window, centre[:, None])
        faster, slower = (_error(fitted, window, centre[:, None] + step) for step in (DIFFERENCE, -DIFFERENCE))
        slopes = torch.stack([(slower - faster) / (2 * DIFFERENCE), _shift(fitted, window, centre[:, None])], -1)[:, 0]
        weights = torch.linalg.solve(covariance, slopes)  # (E, P, 2)
        posterior = torch.linalg.inv(slopes.mT @ weights + torch.diag_embed(precision))
        estimates.append((posterior @ weights.mT @ (error - mean).mT)[:, 0, 0])
        deviations.append(posterior[:, 0, 0].sqrt())
    return WindowTempo(torch.stack(estimates), torch.stack(deviations), population, centre)


def errors_with_tempi(fitted: Fitted, values: Tensor, setup: Setup) -> dict[str, float]:
    """Error of the mean path of left-out walks with three kinds of tempi, the path from the last frames seen.

    "of the population", "estimated" from the frames seen, and "measured" on the whole walk.
    """
    found = window_tempo(fitted, values, setup.context)
    begin, walks = setup.context - SEEN, values.unsqueeze(1)
    local = fitted.model.locate(fitted.features(walks[..., begin : setup.context, :]))
    nothing = torch.zeros_like(found.population)
    laws = {
        "of the population": (nothing, found.population),
        "estimated": (found.estimate[0], found.deviation[0]),
        "measured": (measured(values), nothing),
    }
    noise = torch.randn(SAMPLES, len(nothing), 1)  # the same for all three
    result = {}
    for name, (loc, deviation) in laws.items():
        log_tempo = (found.centre + loc).unsqueeze(-1) + deviation.unsqueeze(-1) * noise
        paths = forecast(fitted, local, (SEEN, setup.horizon - begin), log_tempo=log_tempo)
        result[name] = float((paths.mean(0) - target(walks, setup)).square().mean())
    return result


def measured(values: Tensor) -> Tensor:
    """Log tempo of each walk less their mean, from its period: what the estimates are compared with."""
    logs = torch.tensor([period(walk) for walk in values]).log()
    return logs.mean() - logs


def correlations(found: WindowTempo, truth: Tensor) -> tuple[float, float, float]:
    """Of estimates with tempi ``(E,)``: the first windows, all windows one by one, and means over a walk's windows."""

    def correlation(a: Tensor, b: Tensor) -> float:
        return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])

    every = correlation(found.estimate, truth.expand_as(found.estimate))
    return correlation(found.estimate[0], truth), every, correlation(found.estimate.mean(0), truth)


def _predicted(fitted: Fitted, frames: Tensor, log_tempo: Tensor) -> Tensor:
    """Mean path at every `STRIDE`-th frame, from the first frames of windows ``(E, B, frames, 50)``."""
    torch.manual_seed(1)  # the same noise for all tempi: their difference is wanted
    times = STRIDE * TIME_PER_FRAME * torch.arange(float(frames.shape[-2] // STRIDE + 1))
    local = fitted.model.locate(fitted.features(frames))
    with torch.no_grad():
        tempi = log_tempo.expand(PATHS, *frames.shape[:2])
        states = fitted.model.rollout(local, times, num_samples=PATHS, log_tempo=tempi)
        return fitted.model.likelihood(states.movedim(-2, 0)).loc.movedim(0, -2).mean(0)


def _components(fitted: Fitted, values: Tensor) -> Tensor:
    return (values @ fitted.scaling.components.unsqueeze(1)).flatten(-2)


def _error(fitted: Fitted, frames: Tensor, log_tempo: Tensor) -> Tensor:
    """Observed less predicted in the frames that the encoder has not read, ``(E, B, P)``."""
    seen = frames[..., STRIDE::STRIDE, :]
    predicted = _predicted(fitted, frames, log_tempo)[..., 1 : 1 + seen.shape[-2], :]
    return _components(fitted, seen - predicted)


def _shift(fitted: Fitted, frames: Tensor, log_tempo: Tensor) -> Tensor:
    """Derivative of the prediction by time, per `STRIDE` frames, ``(E, B, P)``."""
    predicted = _predicted(fitted, frames, log_tempo)
    count = len(range(STRIDE, frames.shape[-2], STRIDE))
    inner = (predicted[..., 2:, :] - predicted[..., :-2, :]) / 2
    return _components(fitted, inner[..., :count, :])
