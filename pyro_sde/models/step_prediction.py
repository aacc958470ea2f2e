"""States and observations of a deep Markov model at any steps, given series or beyond them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.series import TimeSeries
from ..distributions.base import PathDistribution
from ..distributions.recurrent_path import RecurrentPath
from ..infer.continuation import continue_path
from .alignment import states_at
from .likelihoods import Likelihood
from .prediction import PathSamples

__all__ = ["StepParts", "continue_steps", "step_positions"]

_LOOSE = 0.25  # of a step: calendar months and float32 years are equal steps
_TOO_LOOSE = "Give the record the times 0, 1, 2, ... of its steps, or use a LatentSDE if time matters."


class StepParts(NamedTuple):
    """The parts of a deep Markov model that its future hangs on.

    Attributes:
        prior: makes the law of a path of given length.
        emission: ``(..., D) -> (..., output_dim)`` of the likelihood.
        likelihood: law of the observations ``(..., O)``.
    """

    prior: Callable[..., PathDistribution]
    emission: Callable[[Tensor], Tensor]
    likelihood: Likelihood

    @property
    def reads_values(self) -> bool:
        """Whether the law of a state hangs on the observations before it."""
        return getattr(self.prior, "reads_values", False)

    def law(self, length: int, values: Tensor) -> PathDistribution:
        """Law of `length` states in the model, given observations ``(B, T, O)`` if the prior reads them."""
        return self.prior(length, None, values[:, :length]) if self.reads_values else self.prior(length, None)

    def features(self, law: PathDistribution, z: Tensor) -> Tensor:
        """What the emission reads: states ``(..., T, D)``, or what the prior makes of them."""
        read: Any = getattr(self.prior, "features", None)
        return z if read is None else read(law, z)


def step_positions(series: TimeSeries, queries: Tensor) -> Tensor:
    """Index of the step at every time, ``(B, Q)``; 0 is the first column of its series.

    The times of the columns stand for their steps. Beyond the last column, and in between, a time stands for a step if
    the columns are equally spaced.

    Args:
        series: B series; a repeated last time is padding.
        queries: times ``(B, Q)``, not before the first one of their series.

    Raises:
        ValueError: if a time is no step: it lies between two, or beyond the last of columns that are not equally
            spaced.
    """
    times = series.times.double()
    first, end = times[:, :1], times[:, -1:]
    last = (times < end).sum(-1, keepdim=True)  # index of the last column that is no padding
    columns = torch.minimum(torch.arange(times.shape[1], device=times.device), last)
    known = torch.searchsorted(times.contiguous(), queries.double().contiguous()).minimum(last)
    exact = times.gather(-1, known) == queries
    spacing = (end - first).sum() / last.sum()  # NaN if there is one column only
    equal = bool((((times - first) / spacing - columns).abs() < _LOOSE).all())
    steps = (queries - first) / spacing
    fits = exact | ((steps - steps.round()).abs() < _LOOSE if equal else torch.zeros_like(exact))
    if not bool(fits.all()):
        row, column = (~fits).nonzero()[0].tolist()
        time, reason = f"{queries[row, column].item():g}", f"are {spacing:g} apart"
        if not equal:
            reason = "are not equally spaced" if bool((last > 0).any()) else "are one only, so their spacing is unknown"
        msg = (
            f"`times` must be steps of the series, but the columns of the record {reason}; received {time}. "
            + _TOO_LOOSE
        )
        raise ValueError(msg)
    return torch.where(exact, known, steps.nan_to_num().round().long())


def continue_steps(
    parts: StepParts, z: Tensor, values: Tensor, lengths: Tensor, queries: Tensor, positions: Tensor
) -> PathSamples:
    """States and observations at steps, of posterior paths that the model goes on with.

    A prior that reads observations is fed those it has drawn itself, beyond the end of a series.

    Args:
        parts: parts of the model.
        z: posterior paths, ``(S, B, T, D)``.
        values: observations, 0 where there are none, ``(B, T, O)``.
        lengths: steps of every series, ``(B,)``; what follows is drawn.
        queries: times asked for, ``(B, Q)``.
        positions: steps asked for, ``(B, Q)``.
    """
    shape = z.shape[:2]
    total = int(torch.maximum(positions.max(), lengths.max() - 1)) + 1
    values = torch.nn.functional.pad(values, (0, 0, 0, max(0, total - values.shape[1])))[:, :total]
    if parts.reads_values:
        rows = z[:, :, :total].flatten(0, 1), values.repeat(shape[0], 1, 1), lengths.repeat(shape[0])
        flat, values = _draw_steps(parts, *rows, total)
        law, z = parts.law(total, values), flat
    else:
        law = parts.law(total, values)
        z = continue_path(law.expand(shape[1:]), z[:, :, :total], lengths).flatten(0, 1)
    steps = positions.repeat(shape[0], 1)
    output = parts.emission(states_at(parts.features(law, z), steps))
    y = parts.likelihood(output).sample().to(z.dtype)
    if parts.reads_values:  # what was fed back is what was drawn
        ahead = (steps >= lengths.repeat(shape[0]).unsqueeze(-1)).unsqueeze(-1)
        y = torch.where(ahead, states_at(values, steps), y)
    found = (states_at(z, steps), parts.likelihood.mean(output), y)
    return PathSamples(queries, *(tensor.unflatten(0, shape) for tensor in found))


def _draw_steps(parts: StepParts, z: Tensor, values: Tensor, lengths: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Paths ``(R, total, D)`` and observations ``(R, total, O)`` of rows whose steps beyond `lengths` are drawn."""
    values = values.clone()
    z = torch.cat([z, z.new_zeros(len(z), total - z.shape[1], z.shape[2])], 1) if z.shape[1] < total else z.clone()
    for k in range(int(lengths.min()), total):
        law = parts.law(k + 1, values)
        ahead = (lengths <= k).unsqueeze(-1)
        z[:, k] = torch.where(ahead, _next_state(law, z[:, :k]), z[:, k])
        output = parts.emission(parts.features(law, z[:, : k + 1])[:, k])
        drawn = parts.likelihood(output).sample().to(values.dtype)
        values[:, k] = torch.where(ahead, drawn, values[:, k])
    return z, values


def _next_state(law: PathDistribution, past: Tensor) -> Tensor:
    """Draw of the last state ``(R, D)`` of a law given all before it, ``(R, T - 1, D)``."""
    if isinstance(law, RecurrentPath):
        memory = law.memories(torch.nn.functional.pad(past, (0, 0, 0, 1)))[:, -1]
        return law.head(memory, None if law.context is None else law.context[:, -1]).sample()
    return continue_path(law, past)[:, -1]
