"""Where the steps of a chain stand in a batched call: time leftmost, or packed without padding.

Both layouts hand states of shape ``(..., D)`` to a transition and bring what comes back to ``(K, *batch)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from ..ops.layout import time_first

__all__ = ["DenseSteps", "PackedSteps", "StepLayout", "layout_of", "moving_steps"]

# (state before a step, index of the state that comes, inputs, standard normal noise) -> next state
Advance = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]


def moving_steps(lengths: Tensor, num_steps: int) -> Tensor:
    """Which steps belong to their series, ``(*batch, K)``."""
    return torch.arange(1, num_steps + 1, device=lengths.device) < lengths.unsqueeze(-1)


def layout_of(num_steps: int, lengths: Tensor | None, batch: torch.Size, *, packable: bool) -> StepLayout:
    """The layout that does least work: packed if series have lengths and the transition holds no batch of its own."""
    if lengths is None or not packable or lengths.dim() != 1:
        return DenseSteps(num_steps, lengths, batch)
    return PackedSteps(num_steps, lengths.expand(batch[-1]), batch)


class StepLayout(ABC):
    """Layout of K steps of a batch of paths ``(*batch, K + 1, D)``.

    Args:
        num_steps: K.
        lengths: numbers of points, broadcastable to the batch; None if all have K + 1.
        batch: batch shape of the paths, sample dimensions included.

    Attributes:
        num_calls: number of steps in which some series moves.
    """

    def __init__(self, num_steps: int, lengths: Tensor | None, batch: torch.Size) -> None:
        self.num_steps = num_steps
        self.lengths = lengths
        self.batch = batch
        self.num_calls = num_steps

    @abstractmethod
    def states(self, path: Tensor) -> tuple[Tensor, Tensor]:
        """States before and after every step."""

    @abstractmethod
    def times(self, like: Tensor) -> Tensor:
        """Index of the state after every step, with a last axis of size 1."""

    @abstractmethod
    def rows(self, inputs: Tensor | None) -> Tensor | None:
        """Inputs ``(*batch, K, C)`` of every step."""

    @abstractmethod
    def noise(self, noise: Tensor) -> Tensor:
        """Noise ``(*batch, K, D)`` of every step."""

    @abstractmethod
    def draw_noise(self, width: int, like: Tensor) -> Tensor:
        """Standard normal noise of every step."""

    @abstractmethod
    def by_step(self, term: Tensor) -> Tensor:
        """One number per step and series, ``(K, *batch)``, 0 where a series has ended."""

    @abstractmethod
    def from_rows(self, rows: Tensor) -> Tensor:
        """Rows ``(..., W)`` of every step as ``(*batch, K, W)``, 0 where a series has ended."""

    @abstractmethod
    def join(self, parts: list[Tensor], tail: int) -> Tensor:
        """Values of the steps in order, each with `tail` axes after its batch, in one tensor of this layout."""

    @abstractmethod
    def unroll(self, advance: Advance, first: Tensor, rows: Tensor | None, noise: Tensor | None) -> Tensor:
        """The path ``(*batch, K + 1, D)`` from first states ``(*batch, D)``, step by step."""


class DenseSteps(StepLayout):
    """Time leftmost, ``(K, *batch, D)``: batch dimensions that a transition captured meet those of the states."""

    def __init__(self, num_steps: int, lengths: Tensor | None, batch: torch.Size) -> None:
        super().__init__(num_steps, lengths, batch)
        self.moving = None  # (K, ..., 1)
        if lengths is not None and bool((lengths <= num_steps).any()):
            self.moving = time_first(moving_steps(lengths, num_steps).unsqueeze(-1), len(batch))

    def states(self, path: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the path."""
        states = time_first(path, len(self.batch))
        return states[:-1], states[1:]

    def times(self, like: Tensor) -> Tensor:
        """``(K, 1, ..., 1)``."""
        return _indices(self.num_steps, like).reshape(-1, *[1] * (len(self.batch) + 1))

    def rows(self, inputs: Tensor | None) -> Tensor | None:
        """``(K, ..., C)``; what stands behind the end of a series may be anything, and counts as 0."""
        if inputs is None:
            return None
        rows = time_first(inputs, len(self.batch))
        return rows if self.moving is None else torch.where(self.moving, rows, rows.new_zeros(()))

    def noise(self, noise: Tensor) -> Tensor:
        """``(K, ..., D)``."""
        return time_first(noise, len(self.batch))

    def draw_noise(self, width: int, like: Tensor) -> Tensor:
        """``(K, *batch, width)``, drawn in the order in which an `SDEPath` draws."""
        return torch.randn((self.num_steps, *self.batch, width), dtype=like.dtype, device=like.device)

    def by_step(self, term: Tensor) -> Tensor:
        """Expand what does not depend on step or state, and drop the padding."""
        term = term.expand(self.num_steps, *self.batch)
        return term if self.moving is None else torch.where(self.moving.squeeze(-1), term, term.new_zeros(()))

    def from_rows(self, rows: Tensor) -> Tensor:
        """``(K, ..., W) -> (*batch, K, W)``."""
        rows = rows.expand(self.num_steps, *self.batch, rows.shape[-1])
        if self.moving is not None:
            rows = torch.where(self.moving, rows, rows.new_zeros(()))
        return rows.movedim(0, -2)

    def join(self, parts: list[Tensor], tail: int) -> Tensor:
        """``(K, *batch, ...)``."""
        if len({id(part) for part in parts}) == 1:  # the same parameter at every step
            part = parts[0].expand((*self.batch, *parts[0].shape[parts[0].dim() - tail :]))
            return part.expand((len(parts), *part.shape))
        return torch.stack([part.expand((*self.batch, *part.shape[part.dim() - tail :])) for part in parts])

    def unroll(self, advance: Advance, first: Tensor, rows: Tensor | None, noise: Tensor | None) -> Tensor:
        """A series that has ended keeps its last state."""
        z = first
        states = [z]
        nothing = (None,) * self.num_steps
        times = _indices(self.num_steps, first).unsqueeze(-1).unbind(0)
        each_row = nothing if rows is None else rows.unbind(0)
        each_noise = nothing if noise is None else noise.unbind(0)
        each_moving = nothing if self.moving is None else self.moving.unbind(0)
        for t, row, normal, moving in zip(times, each_row, each_noise, each_moving, strict=True):
            following = advance(z, t, row, normal)
            z = following if moving is None else torch.where(moving, following, z)
            states.append(z)
        return torch.stack(states).movedim(0, -2)


class PackedSteps(StepLayout):
    """The N steps of all series that move, in the order of time, longest series first: ``(..., N, D)``.

    For transitions that treat the rows of a batch alike. No work is done behind the end of a series.

    Args:
        num_steps: K.
        lengths: ``(B,)``.
        batch: ``(..., B)``.
    """

    def __init__(self, num_steps: int, lengths: Tensor, batch: torch.Size) -> None:
        super().__init__(num_steps, lengths, batch)
        count = len(lengths)
        order = torch.argsort(lengths, descending=True, stable=True)
        self.order = order
        moving = moving_steps(lengths[order], num_steps)  # (B, K), non-increasing down the series
        sizes = moving.sum(0)
        self.counts = [n for n in sizes.tolist() if n]
        self.num_calls = len(self.counts)
        self.step, place = moving.T.nonzero(as_tuple=True)  # of every row
        self.series = order[place]
        # where the states of a series stand among the first states and the N that follow them
        offset = torch.cat([sizes.new_zeros(1), count + sizes.cumsum(0) - sizes])  # (T,)
        rank = torch.argsort(order)
        last = torch.minimum(torch.arange(num_steps + 1, device=lengths.device), lengths.unsqueeze(-1) - 1)
        self.position = (offset[last] + rank.unsqueeze(-1)).flatten()  # (B * T,)

    def states(self, path: Tensor) -> tuple[Tensor, Tensor]:
        """``(..., N, D)``, gathered."""
        if path.dim() == 2 or path.shape[-3] != self.batch[-1]:
            path = path.expand(*path.shape[:-3], self.batch[-1], *path.shape[-2:])
        flat = path.flatten(-3, -2)
        index = self.series * (self.num_steps + 1) + self.step
        return flat.index_select(-2, index), flat.index_select(-2, index + 1)

    def times(self, like: Tensor) -> Tensor:
        """``(N, 1)``."""
        return _indices(self.num_steps, like)[self.step].unsqueeze(-1)

    def rows(self, inputs: Tensor | None) -> Tensor | None:
        """``(..., N, C)``."""
        if inputs is None:
            return None
        if inputs.dim() == 2:
            return inputs.index_select(-2, self.step)
        if inputs.shape[-3] != self.batch[-1]:
            return inputs.squeeze(-3).index_select(-2, self.step)
        return inputs.flatten(-3, -2).index_select(-2, self.series * self.num_steps + self.step)

    def noise(self, noise: Tensor) -> Tensor:
        """``(..., N, D)``."""
        noise = noise.expand(*noise.shape[:-3], self.batch[-1], *noise.shape[-2:])
        return noise.flatten(-3, -2).index_select(-2, self.series * self.num_steps + self.step)

    def draw_noise(self, width: int, like: Tensor) -> Tensor:
        """``(..., N, width)``."""
        return torch.randn((*self.batch[:-1], len(self.step), width), dtype=like.dtype, device=like.device)

    def by_step(self, term: Tensor) -> Tensor:
        """``(..., N) -> (K, *batch)``."""
        return self.from_rows(term.unsqueeze(-1)).squeeze(-1).movedim(-1, 0)

    def from_rows(self, rows: Tensor) -> Tensor:
        """``(..., N, W) -> (*batch, K, W)``."""
        rows = rows.expand(*self.batch[:-1], len(self.step), rows.shape[-1])
        size = (*self.batch[:-1], self.batch[-1] * self.num_steps, rows.shape[-1])
        flat = rows.new_zeros(size).index_copy(-2, self.series * self.num_steps + self.step, rows)
        return flat.unflatten(-2, (self.batch[-1], self.num_steps))

    def join(self, parts: list[Tensor], tail: int) -> Tensor:
        """``(..., N, ...)``."""
        shapes = [part.shape[part.dim() - tail :] for part in parts]
        lead = self.batch[:-1]
        wide = [part.expand(*lead, n, *s) for part, n, s in zip(parts, self.counts, shapes, strict=True)]
        return torch.cat(wide, -tail - 1)

    def unroll(self, advance: Advance, first: Tensor, rows: Tensor | None, noise: Tensor | None) -> Tensor:
        """At every step the series that still move."""
        z = first.index_select(-2, self.order)
        states = [z]
        nothing = (None,) * len(self.counts)
        each_row = nothing if rows is None else rows.split(self.counts, -2)
        each_noise = nothing if noise is None else noise.split(self.counts, -2)
        times = _indices(self.num_steps, first).unsqueeze(-1).unbind(0)
        for t, n, row, normal in zip(times, self.counts, each_row, each_noise, strict=False):  # times has more
            z = advance(z[..., :n, :], t, row, normal)
            states.append(z)
        path = torch.cat(states, -2).index_select(-2, self.position)
        return path.unflatten(-2, (self.batch[-1], self.num_steps + 1))


def _indices(num_steps: int, like: Tensor) -> Tensor:
    """1, ..., K as floats."""
    dtype = like.dtype if like.is_floating_point() else None
    return torch.arange(1.0, num_steps + 1, dtype=dtype, device=like.device)
