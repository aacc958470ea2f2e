"""Which series observe what at which grid point, and rows of particles."""

from __future__ import annotations

import torch
from torch import Tensor

from ._particle_stepper import Stepper

__all__ = ["Observed", "entry_of", "observation_schedule", "take"]

# index of the observation, one for all series or one for each; and the series that observe, None for all
Observed = tuple["int | Tensor", "Tensor | None"]


def observation_schedule(stepper: Stepper) -> list[Observed | None]:
    """For every grid point None, or the index of what is observed there and the series that observe, None for all."""
    points, valid = stepper.observation_points()
    schedule: list[Observed | None] = [None] * (stepper.num_steps + 1)
    shared = points.dim() == 1 or bool((points == points.reshape(-1, points.shape[-1])[0]).all())
    if shared:
        first = points.reshape(-1, points.shape[-1])[0].tolist()
        flat = valid.reshape(-1, valid.shape[-1])
        some, every = flat.any(0).tolist(), flat.all(0).tolist()
        for n, k in enumerate(first):
            if some[n]:
                schedule[k] = (n, None if every[n] else valid[..., n])
        return schedule
    points, valid = (part.expand(*stepper.law.batch_shape, -1) for part in (points, valid))
    index = points.new_zeros((*points.shape[:-1], stepper.num_steps + 1))
    active = torch.zeros_like(index, dtype=torch.bool)
    for n in range(points.shape[-1]):
        here = torch.nn.functional.one_hot(points[..., n], stepper.num_steps + 1).bool() & valid[..., n : n + 1]
        index = torch.where(here, n, index)
        active = active | here
    for k in range(stepper.num_steps + 1):
        now = active[..., k]
        if bool(now.any()):
            schedule[k] = (index[..., k], None if bool(now.all()) else now)
    return schedule


def take(values: Tensor, index: Tensor) -> Tensor:
    """Rows ``(P, *batch, ...)`` of the particles that `index` ``(S, *batch)`` names."""
    flat = index.reshape(index.shape[0], -1)
    columns = flat.shape[1]
    place = (flat * columns + torch.arange(columns, device=index.device)).reshape(-1)
    tail = values.shape[index.dim() :]
    rows = values.reshape(values.shape[0] * columns, *tail).index_select(0, place)
    return rows.reshape(*index.shape, *tail)


def entry_of(n: int | Tensor, series: tuple[int, ...] = ()) -> int | list[int]:
    """Index of an observation for messages: that of one series, or all."""
    if isinstance(n, int):
        return n
    return int(n[series[len(series) - n.dim() :]]) if series else n.tolist()
