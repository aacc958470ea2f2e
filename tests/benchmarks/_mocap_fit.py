"""Training on windows of walks, many members at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyro
import torch
from torch import Tensor, nn

from pyro_sde.infer.elbo import PathELBO
from pyro_sde.models.tempo import SeriesBatch, TempoSDE
from tests.benchmarks import _mocap_models as models
from tests.benchmarks._mocap_data import CHANNELS, SEEN, TIME_PER_FRAME, Scaling, scaling

STRIDE = 3  # frames per solver step
SHORTEST = 20  # frames of the shortest window


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; figures of the page are those of the defaults.

    `components` is what the protocols select, `start` the share of windows that begin where the walk does.
    """

    model: str = "best"
    components: int = models.COMPONENTS
    steps: int = 400
    rate: float = 1e-2
    decay: float = 1e-2
    windows: int = 16
    warmup: float = 0.2
    start: float = 0.25


class Fitted(NamedTuple):
    """E trained members; `folds (E, n)` are the walks that each has seen."""

    model: TempoSDE
    scaling: Scaling
    recipe: Recipe
    folds: Tensor
    seconds: float

    def features(self, frames: Tensor) -> Tensor:
        """What the encoder reads of the first frames ``(E, B, >= 3, 50)``."""
        return _features(self.recipe, self.scaling, frames)


def build(recipe: Recipe, scale: Tensor, num_series: int) -> TempoSDE:
    """The untrained members."""
    if recipe.model == "pinned":
        return models.pinned(scale)
    return models.best(scale, num_series, recipe.components)


def count_parameters(model: nn.Module, members: int) -> int:
    """Parameters of one member."""
    return sum(parameter.numel() for parameter in model.parameters()) // members


def fit(
    values: Tensor, folds: Tensor, recipe: Recipe, seed: int, report: Callable[[int, float], None] | None = None
) -> Fitted:
    """Train one member on each of the sets of walks ``folds (E, n)``."""
    torch.manual_seed(seed)
    pyro.clear_param_store()
    started = time.process_time()
    scales = scaling(values, folds, recipe.components)
    model = build(recipe, scales.scale, len(values))
    optimiser = _optimiser(model, recipe)
    elbo = PathELBO("closed")
    size = CHANNELS * (values.shape[1] // STRIDE) * min(recipe.windows, folds.shape[1])
    for step in range(recipe.steps):
        progress = step / recipe.steps
        elbo.kl_weight = min(1.0, (step + 1) / (recipe.warmup * recipe.steps)) if recipe.warmup else 1.0
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate * min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * progress))
        batch = draw_windows(values, folds, recipe, scales)
        optimiser.zero_grad()
        loss = elbo.differentiable_loss(model.model, model.guide, batch) / size
        loss.backward()
        _clip_members(model, len(folds))
        optimiser.step()
        if report is not None:
            report(step + 1, float(loss.detach()) / len(folds))
    return Fitted(model, scales, recipe, folds, time.process_time() - started)


def draw_windows(values: Tensor, folds: Tensor, recipe: Recipe, scales: Scaling) -> SeriesBatch:
    """One window of each of some walks, from a random frame to the end of the walk."""
    members, n = folds.shape
    frames = values.shape[1]
    chosen = torch.rand(members, n).argsort(-1)[:, : recipe.windows]
    index = folds.gather(1, chosen)
    begin = torch.randint(0, frames - SHORTEST, index.shape)
    begin = torch.where(torch.rand(index.shape) < recipe.start, 0, begin)
    offsets = torch.arange(0, frames, STRIDE)
    places = begin.unsqueeze(-1) + offsets
    mask = places < frames
    inside = values[index.unsqueeze(-1), places.clamp(max=frames - 1)]
    first = values[index.unsqueeze(-1), begin.unsqueeze(-1) + torch.arange(SEEN)]
    times = STRIDE * TIME_PER_FRAME * torch.arange(float(len(offsets)))
    return SeriesBatch(times, inside, mask, _features(recipe, scales, first), index)


def load_or_fit(place: Path | None, values: Tensor, folds: Tensor, recipe: Recipe, seed: int) -> Fitted:
    """As `fit`; with a file, what is in it, or else what is then written to it."""
    if place is None or not place.exists():
        fitted = fit(values, folds, recipe, seed)
        if place is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"state": fitted.model.state_dict(), "seconds": fitted.seconds}, place)
        return fitted
    stored = torch.load(place, weights_only=True)
    scales = scaling(values, folds, recipe.components)
    model = build(recipe, scales.scale, len(values))
    model.load_state_dict(stored["state"])
    return Fitted(model, scales, recipe, folds, stored["seconds"])


def _features(recipe: Recipe, scales: Scaling, frames: Tensor) -> Tensor:
    if recipe.model == "pinned":
        return (frames[..., :SEEN, :] / scales.scale.unsqueeze(1)).flatten(-2)
    return scales.features(frames)


def _optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Decay for the weights of networks only, not for shifts, scales and tempi."""
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    others = [p for name, p in model.named_parameters() if not name.endswith("weight")]
    groups = [{"params": weights, "weight_decay": recipe.decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.rate)


def _clip_members(model: nn.Module, members: int, limit: float = 1.0) -> None:
    """Shorten the gradient of each member for itself."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    squares = torch.stack([g.reshape(members, -1).square().sum(1) for g in gradients]).sum(0)
    factor = (limit / squares.sqrt().clamp(min=limit)).tolist()
    factors = torch.tensor(factor)
    for gradient in gradients:
        gradient.mul_(factors.reshape(-1, *[1] * (gradient.dim() - 1)))
