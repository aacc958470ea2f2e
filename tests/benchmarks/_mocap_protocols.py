"""What is fitted to which walks, what is scored, and what chooses between candidates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tests.benchmarks._mocap_data import SEEN, Walks
from tests.benchmarks._mocap_fit import Fitted, Recipe, load_or_fit
from tests.benchmarks._mocap_score import Score, forecast, locate_fitted, score

CANDIDATES = (4, 6, 12)  # numbers of principal components that the protocols choose from


class Setup(NamedTuple):
    """What is seen and what is to be predicted.

    Attributes:
        name: as the tables say it.
        context: number of frames seen.
        frames: length of the walks that are fitted.
        horizon: end of the frames to predict.
        adapt: whether the local laws are fitted to all frames seen, or the last three are read by the encoder.
    """

    name: str
    context: int
    frames: int
    horizon: int
    adapt: bool


SETUPS = {
    "1": Setup("setup 1: 3 frames, then 297", SEEN, 300, 300, False),
    "2": Setup("setup 2: 100 frames, then 200; fitted to 200", 100, 200, 300, True),
}


def with_context(context: int) -> Setup:
    """Setup 1 with another number of frames seen."""
    return Setup(f"{context} frames, then {300 - context}", context, 300, 300, False)


class Study(NamedTuple):
    """Walks, where fits are kept, and how they are made."""

    walks: Walks
    held_back: Tensor | None
    folder: Path | None
    recipe: Recipe

    def fit(self, label: str, setup: Setup, folds: Tensor, seed: int) -> Fitted:
        """Fit the members of `folds`, or read them if they are kept."""
        values = self.walks.values[:, : setup.frames]
        name = f"{self.recipe.model}-{self.recipe.components}-{self.recipe.steps}-{label}-{setup.frames}-{seed}.pt"
        return load_or_fit(None if self.folder is None else self.folder / name, values, folds, self.recipe, seed)


def leave_one_out(count: int) -> Tensor:
    """Folds ``(count, count - 1)`` of the first walks, each without one of them."""
    return torch.tensor([[j for j in range(count) if j != i] for i in range(count)])


def predict(fitted: Fitted, walks: Tensor, setup: Setup, *, prior: bool = False) -> Tensor:
    """Paths ``(S, E, B, frames, 50)`` by all members.

    Args:
        fitted: the members.
        walks: ``(B, frames, 50)``, or for each member its own, ``(E, B, frames, 50)``.
        setup: what is seen and predicted.
        prior: as in `forecast`.
    """
    walks = walks if walks.dim() == 4 else walks.expand(len(fitted.folds), *walks.shape)
    seen = walks[..., : setup.context, :]
    if setup.adapt:
        return forecast(fitted, locate_fitted(fitted, seen), (setup.context, setup.horizon), prior=prior)
    begin = setup.context - SEEN  # the path starts with the last frames seen
    local = fitted.model.locate(fitted.features(seen[..., begin:, :]))
    return forecast(fitted, local, (SEEN, setup.horizon - begin), prior=prior)


def target(walks: Tensor, setup: Setup) -> Tensor:
    """The frames to predict."""
    return walks[..., setup.context : setup.horizon, :]


def left_out(study: Study, setup: Setup, count: int, seed: int) -> tuple[Score, Score, Tensor]:
    """Scores of each of `count` walks by the member that has not seen it: posterior, prior; and the mean paths."""
    fitted = study.fit(f"loo{count}", setup, leave_one_out(count), seed)
    walks = study.walks.values[:count].unsqueeze(1)
    posterior = predict(fitted, walks, setup)
    prior = predict(fitted, walks, setup, prior=True)
    return score(posterior, target(walks, setup)), score(prior, target(walks, setup)), posterior.mean(0)[:, 0]


class Chosen(NamedTuple):
    """Members of ten seeds, or of as many as asked for, with the candidate that was chosen for each."""

    fits: dict[int, Fitted]
    choice: list[int]

    def predict(self, walks: Tensor, setup: Setup, *, prior: bool = False) -> Tensor:
        """Sample paths ``(S, seeds, B, frames, 50)`` of the chosen candidates."""
        paths = {key: predict(fitted, walks, setup, prior=prior) for key, fitted in self.fits.items()}
        return torch.stack([paths[key][:, seed] for seed, key in enumerate(self.choice)], 1)


def protocol_s(study: Study, setup: Setup, seeds: int, candidates: tuple[int, ...]) -> Chosen:
    """Fit the training walks; the candidate of every seed is that of the smallest error on the validation walks."""
    folds = torch.arange(study.walks.fit).expand(seeds, -1)
    validation = study.walks.values[study.walks.fit :]
    fits = _candidates(study, setup, folds, candidates)
    errors = [_mean_error(fitted, validation, setup) for fitted in fits.values()]
    best = torch.stack(errors).argmin(0).tolist()
    return Chosen(fits, [list(fits)[k] for k in best])


def protocol_r(study: Study, setup: Setup, seeds: int, candidates: tuple[int, ...]) -> Chosen:
    """Choose one candidate by leaving out each walk of the file in turn, then fit that one to all walks."""
    count = len(study.walks.values)
    key = candidates[0]
    if len(candidates) > 1:
        errors = {}
        for candidate in candidates:
            recipe = replace(study.recipe, components=candidate)
            errors[candidate] = float(left_out(study._replace(recipe=recipe), setup, count, 0)[0].mean_path.mean())
        key = min(errors, key=errors.__getitem__)
    fits = _candidates(study, setup, torch.arange(count).expand(seeds, -1), (key,))
    return Chosen(fits, [key] * seeds)


def _candidates(study: Study, setup: Setup, folds: Tensor, candidates: tuple[int, ...]) -> dict[int, Fitted]:
    """One fit of all seeds for each candidate."""
    fits = {}
    for candidate in candidates:
        chosen = study._replace(recipe=replace(study.recipe, components=candidate))
        fits[candidate] = chosen.fit(f"all{folds.shape[1]}x{len(folds)}", setup, folds, 0)
    return fits


def _mean_error(fitted: Fitted, walks: Tensor, setup: Setup) -> Tensor:
    """Error of the mean path of every member, ``(E,)``."""
    return score(predict(fitted, walks, setup), target(walks, setup).unsqueeze(0)).mean_path.mean(-1)
