"""Walks of CMU subject 35: the file, its checks, windows of the walks, and predictors that learn next to nothing."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_sde.data.readers import read_mocap35

CHANNELS, FRAMES = 50, 300
SEEN = 3  # frames that an encoder reads, whatever the context
TIME_PER_FRAME = 0.1
CONSTANT = 0.05  # deviations below it are of channels that do not move


class Walks(NamedTuple):
    """Walks of a file: `values` (n, frames, 50), of which the first `fit` are the training part."""

    values: Tensor
    fit: int

    def up_to(self, frames: int) -> Walks:
        """The same walks without what comes after."""
        return self._replace(values=self.values[:, :frames])


def read(path: Path) -> dict[str, Tensor]:
    """The parts of a file, "train", "val" and "test", as far as they are there.

    Raises:
        ValueError: if the file is of another format, or its walks have another number of channels.
    """
    content = path.read_bytes()
    try:
        contents = read_mocap35(content)
    except ImportError:
        raise  # of scipy, with its own remedy
    except Exception as error:  # the readers of two formats have many
        msg = (
            f"{path}: no file of walks could be read ({error}). Expected an .npz or .mat file with arrays `Xtr`, "
            "`Xval` or `Xtest` of shape (walks, frames, 50), such as the mocap35 set that pyro_sde.data.load finds."
        )
        raise ValueError(msg) from error
    parts = {name: contents.values[part].float() for name, part in contents.splits.items()}
    for name, part in parts.items():
        if part.dim() != 3 or part.shape[-1] != CHANNELS:
            msg = (
                f"{path}: part '{name}' has shape {tuple(part.shape)}, expected (walks, frames, {CHANNELS}). These are "
                "walks of another preparation (mocap43 has other channels): the models of this benchmark fit "
                f"{CHANNELS} channels of mocap35 only."
            )
            raise ValueError(msg)
        if not bool(torch.isfinite(part).all()):
            msg = f"{path}: part '{name}' holds values that are not finite. The walks of mocap35 have no gaps."
            raise ValueError(msg)
    return parts


def load(path: Path, test: Path | None) -> tuple[Walks, Tensor | None]:
    """Training and validation walks together, and the walks that are kept back.

    Raises:
        ValueError: as `read`, and if a part that is needed is missing.
    """
    parts = read(path)
    if "train" not in parts or "val" not in parts:
        msg = f"{path}: arrays `Xtr` and `Xval` are needed to fit, found {sorted(parts) or 'neither'}."
        raise ValueError(msg)
    held_back = None
    if test is not None:
        held_back = read(test).get("test")
        if held_back is None:
            msg = f"{test}: the array `Xtest` is missing. Give the held-back walks under this key."
            raise ValueError(msg)
    return Walks(torch.cat([parts["train"], parts["val"]]), len(parts["train"])), held_back


class Scaling(NamedTuple):
    """What the walks of every member's training set say about size: `scale` (E, 1, 50), `components` (E, 50, P)."""

    scale: Tensor
    components: Tensor

    def features(self, values: Tensor) -> Tensor:
        """Whitened components of the first frame and their change over three, ``(E, B, >= 3, 50) -> (E, B, 2 P)``."""
        scores = values[..., :SEEN, :] @ self.components.unsqueeze(1)  # (E, B, 3, P)
        return torch.cat([scores[..., 0, :], 10 * (scores[..., -1, :] - scores[..., 0, :])], -1)


def scaling(values: Tensor, folds: Tensor, components: int) -> Scaling:
    """Deviations and whitened principal components of the walks ``folds (E, n)``, for each member by itself."""
    rows = values[folds].flatten(1, 2)  # (E, n frames, 50)
    deviation = rows.std(1, keepdim=True)
    _, singular, directions = torch.linalg.svd(rows, full_matrices=False)
    sizes = singular[:, :components] / rows.shape[1] ** 0.5
    basis = directions[:, :components].mT / sizes.unsqueeze(1)
    return Scaling(deviation.clamp(min=CONSTANT), basis)


def period(walk: Tensor, low: int = 90, high: int = 200) -> float:
    """Period of a walk ``(frames, 50)`` in frames: the lag of the smallest mean squared difference.

    The mean walk has none; its lag says nothing then.
    """
    lags = range(low, min(high, len(walk) - 20))
    rows = walk.double()
    products, squares = rows @ rows.T, rows.square().sum(-1)
    distances = torch.stack([(squares[lag:] + squares[:-lag] - 2 * products.diagonal(lag)).mean() for lag in lags])
    best = int(distances.argmin())
    if best in (0, len(distances) - 1):
        return float(low + best)
    before, here, after = (float(distances[best + k]) for k in (-1, 0, 1))
    return low + best + 0.5 * (before - after) / max(before - 2 * here + after, 1e-12)  # vertex of the parabola


def baselines(train: Tensor, walks: Tensor, context: int) -> dict[str, Tensor]:
    """Predictions ``(n, frames - context, 50)`` of simple rules that see `context` frames."""
    rest, seen, after = walks.shape[1] - context, walks[:, :context], slice(context, walks.shape[1])
    shape = (len(walks), rest, CHANNELS)
    distances = (train[:, None, :context] - seen).square().mean((-2, -1))  # (train, walks)
    return {
        "constant mean of the training walks": train.mean((0, 1)).expand(shape),
        "last frame seen": seen[:, -1:].expand(shape),
        "mean training walk": train[:, after].mean(0).expand(shape),
        "nearest training walk": train[distances.argmin(0), after],
        "nearest stretch of a training walk": _nearest_stretch(train, seen, rest),
    }


def _nearest_stretch(train: Tensor, seen: Tensor, rest: int) -> Tensor:
    """What followed the stretch of a training walk that is nearest, one period on where that walk ends."""
    predictions = []
    periods = [round(period(walk)) for walk in train]
    for walk in seen:
        stretches = train.unfold(1, walk.shape[0], 1).mT  # (train, starts, context, 50)
        near = (stretches - walk).square().mean((-2, -1))
        best, start = divmod(int(near.argmin()), near.shape[1])
        places = torch.arange(start + walk.shape[0], start + walk.shape[0] + rest)
        last = train.shape[1] - 1
        beyond = (places - last).clamp(min=0)
        places = places - -(-beyond // periods[best]) * periods[best]
        predictions.append(train[best, places])
    return torch.stack(predictions)
