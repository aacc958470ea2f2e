"""Coefficients along a path, a block of steps at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..solvers.base import Rows
from ..solvers.execution import Execution
from .effects import EffectRecorder

__all__ = ["BlockRun"]

_Parts = TypeVar("_Parts", bound=tuple)


class BlockRun:
    """The steps of a path in blocks, since temporaries of larger batches leave the cache.

    If memory is low, a block keeps its inputs only and is evaluated again for its gradient. Derivatives in forward mode
    must be taken inside a block then, not around it: what is evaluated again would not know them.

    Args:
        times: ``(K, ..., 1)``, time leftmost.
        states: ``(K, ..., D)``.
        rows: inputs ``(K, ..., C)``.
        effects: context of every evaluation.
        execution: size of the blocks, and whether memory is low.
    """

    def __init__(
        self, times: Tensor, states: Tensor, rows: Rows, effects: EffectRecorder, execution: Execution
    ) -> None:
        self.times, self.states, self.rows = times, states, rows
        self.low = execution.memory == "low"
        self._effects = effects
        self._steps = max(1, execution.block_rows // max(1, math.prod(states.shape[1:-1])))

    def __len__(self) -> int:
        """Number of blocks."""
        return max(1, -(-len(self.states) // self._steps))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Rows]]:
        """Times, states and inputs of every block."""
        steps = self._steps
        split = zip(*(repeat(None) if row is None else row.split(steps) for row in self.rows), strict=False)
        return zip(self.times.split(steps), self.states.split(steps), split, strict=False)

    def map(self, function: Callable[[Tensor, Tensor, Rows], _Parts]) -> list[_Parts]:
        """Values of a function of times, states and inputs at every block."""

        def anew(t: Tensor, z: Tensor, *row: Tensor | None) -> _Parts:
            with self._effects:
                return function(t, z, row)

        if self.low:
            return [checkpoint(anew, t, z, *row, use_reentrant=False) for t, z, row in self]  # type: ignore[misc]
        return [anew(t, z, *row) for t, z, row in self]

    def join(self, parts: tuple[Tensor, ...], dims: int) -> Tensor:
        """Blocks of one coefficient along time; one that has no time axis is the same in every block."""
        first = parts[0]
        if len(parts) == 1 or first.dim() < dims or (first.shape[0] == 1 and self._steps > 1):
            return first
        return torch.cat(parts)
