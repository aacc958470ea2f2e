"""States and observations at any times, given a series or not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.series import TimeSeries
from ..ops._arguments import check_counts
from .alignment import align, grid_through, states_at
from .parts import Parts

__all__ = [
    "PathSamples",
    "blocks",
    "observe",
    "posterior_states",
    "prior_states",
]

# Paths are simulated in blocks of so many rows: larger batches leave the cache, smaller ones cost Python time.
_BLOCK_ROWS = 4096


class PathSamples(NamedTuple):
    """S draws of a latent path and of the observations that it would give.

    Attributes:
        times: the times asked for, in the order they were given, ``(*batch, Q)``.
        z: states, ``(S, *batch, Q, D)``; a draw is one path, so neighbouring times belong together.
        mean: what the decoder expects at each state, without observation noise, ``(S, *batch, Q, O)``.
        y: new observations, with observation noise, ``(S, *batch, Q, O)``.
    """

    times: Tensor
    z: Tensor
    mean: Tensor
    y: Tensor


def posterior_states(parts: Parts, series: TimeSeries, queries: Tensor, num_samples: int) -> Tensor:
    """States at the queries ``(B, Q)`` given the series, ``(S, B, Q, D)``.

    Up to the last observation of a series they follow the posterior SDE. From there on the prior dynamics run on from
    its end, as the exact posterior would: the future has no observations that could bend it.
    """
    aligned = align(series, parts.max_step, queries)
    law = parts.posterior_law(aligned.grid, aligned.values, aligned.mask)
    late = (queries > aligned.last_time).unsqueeze(-1)  # (B, Q, 1)
    future = torch.maximum(queries, aligned.last_time)
    after = grid_through(future, parts.max_step, start=aligned.last_time.squeeze(-1))
    dynamics = parts.prior_law(after.grid)
    drawn = []
    for count in blocks(num_samples, len(series)):
        path = law.sample((count,))
        states = states_at(path, aligned.query_position)
        if late.any():
            states = torch.where(late, states_at(dynamics.simulate(path[..., -1, :]), after.position), states)
        drawn.append(states)
    return torch.cat(drawn)


def prior_states(parts: Parts, times: Tensor, start: float | None, num_samples: int) -> Tensor:
    """States of the prior at times ``(*batch, Q)`` in any order, ``(S, *batch, Q, D)``."""
    grid, _, position = grid_through(times, parts.max_step, start=start)
    law = parts.prior_law(grid)
    rows = times.shape[:-1].numel()
    return torch.cat([states_at(law.sample((count,)), position) for count in blocks(num_samples, rows)])


def observe(parts: Parts, times: Tensor, z: Tensor) -> PathSamples:
    """Observations of states ``(S, *batch, Q, D)``."""
    output = parts.decoder(z)
    y = parts.likelihood(output).sample().to(z.dtype)
    return PathSamples(times, z, parts.likelihood.mean(output), y)


def blocks(num_samples: int, rows: int) -> Iterator[int]:
    """Numbers of draws that add up to `num_samples`, each of about a block of rows.

    Raises:
        TypeError: if `num_samples` is no whole number.
        ValueError: if it is not positive.
    """
    check_counts(num_samples=num_samples)
    size = max(1, _BLOCK_ROWS // rows)
    while num_samples > 0:
        yield min(size, num_samples)
        num_samples -= size
