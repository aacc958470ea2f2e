"""Forecasts of walks from the frames seen, and how good they are."""

from __future__ import annotations

from typing import NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_sde.infer.elbo import PathELBO
from pyro_sde.models.tempo import LocalGuide, LocalLaws, SeriesBatch
from tests.benchmarks._mocap_data import SEEN, TIME_PER_FRAME, period
from tests.benchmarks._mocap_fit import STRIDE, Fitted

SAMPLES = 50
ADAPT_STEPS, ADAPT_RATE, POWER = 100, 0.03, 0.03


class Score(NamedTuple):
    """What is measured of every member on every walk, ``(E, B)``.

    Attributes:
        mean_path: squared error of the mean of the paths.
        samples: mean of the squared errors of the paths.
        periods: period of the mean path, in frames.
        swing: deviation over time of single paths, as a part of that of the walk; 0 if the model predicts a mean.
    """

    mean_path: Tensor
    samples: Tensor
    periods: Tensor
    swing: Tensor


def locate_fitted(fitted: Fitted, seen: Tensor) -> LocalLaws:
    """Local laws at the first frame, fitted to all frames seen ``(E, B, context, 50)``; the model stays what it is.

    The likelihood counts by a power: errors of the model go on for many frames, and as independent ones they would make
    a wrong tempo look certain. The power is that of the smallest error of left-out walks.
    """
    features = fitted.features(seen)
    guide = LocalGuide(fitted.model, features)
    values = seen[..., ::STRIDE, :]
    times = STRIDE * TIME_PER_FRAME * torch.arange(float(values.shape[-2]))
    batch = SeriesBatch(times, values, torch.ones(values.shape[:-1], dtype=torch.bool), features, None, POWER)
    elbo = PathELBO("closed")
    optimiser = torch.optim.Adam(guide.parameters(), ADAPT_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, ADAPT_STEPS)
    parameters = list(guide.parameters())
    with pyro.get_param_store().scope():
        for _ in range(ADAPT_STEPS):
            loss = elbo.differentiable_loss(fitted.model.model, guide.guide, batch)
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            optimiser.step()
            schedule.step()
    return guide()


def forecast(
    fitted: Fitted,
    local: LocalLaws,
    frames: tuple[int, int],
    *,
    num_samples: int = SAMPLES,
    log_tempo: Tensor | None = None,
    prior: bool = False,
) -> Tensor:
    """Expected observations along S paths at ``frames[0] <= frame < frames[1]``, ``(S, E, B, frames, 50)``.

    The path has a state every `STRIDE` frames. Between two of them states are joined by a line, as positions move.
    """
    knots = torch.arange(-(-frames[1] // STRIDE) + 1)
    times = STRIDE * TIME_PER_FRAME * knots.float()
    states = fitted.model.rollout(local, times, num_samples=num_samples, log_tempo=log_tempo, prior=prior)
    wanted = torch.arange(*frames)
    left, share = wanted // STRIDE, (wanted % STRIDE / STRIDE).unsqueeze(-1)
    between = torch.lerp(states[..., left, :], states[..., left + 1, :], share)
    with torch.no_grad():
        return fitted.model.likelihood(between.movedim(-2, 0)).loc.movedim(0, -2)


def score(predicted: Tensor, truth: Tensor) -> Score:
    """Errors of sample paths ``(S, E, B, frames, 50)`` against ``(E, B, frames, 50)``."""
    path = predicted.mean(0)
    return Score(
        (path - truth).square().mean((-2, -1)),
        (predicted - truth).square().mean((0, -2, -1)),
        torch.tensor([[period(walk) for walk in member] for member in path]),
        (predicted.var(-2).mean((0, -1)) / truth.var(-2).mean(-1)).sqrt(),
    )


def period_scan(fitted: Fitted, walks: Tensor, periods: list[float]) -> Tensor:
    """Errors of the mean path where all paths have a given period, ``(periods, E, B)``, after three frames.

    Tempo 1 has the period of the model; the path at a period p has the tempo of their ratio.
    """
    local = fitted.model.locate(fitted.features(walks))
    shape = (SAMPLES, *local.context.shape[:-1])

    def mean_path(log_tempo: Tensor) -> Tensor:
        return forecast(fitted, local, (SEEN, walks.shape[2]), log_tempo=log_tempo.expand(shape)).mean(0)

    own = torch.tensor([[period(walk) for walk in member] for member in mean_path(torch.zeros(1, 1))])
    errors = [(mean_path((own / wanted).log()) - walks[..., SEEN:, :]).square().mean((-2, -1)) for wanted in periods]
    return torch.stack(errors)
