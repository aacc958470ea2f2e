"""Observations that are made on the way through a grid."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Visits"]


class Visits:
    """Which observations of which series are made at which time of the grid.

    Args:
        index: ``(N,)`` if all series share a grid, else ``(*batch, N)``.
    """

    def __init__(self, index: Tensor) -> None:
        self.count = index.shape[-1]
        self.shared = index.dim() == 1
        series = index.reshape(-1, self.count)
        order = series.flatten().argsort(stable=True)
        times, sizes = series.flatten()[order].unique_consecutive(return_counts=True)
        places = zip(times.tolist(), order.split(sizes.tolist()), strict=True)
        self.at = {k: (place // self.count, place % self.count) for k, place in places}  # series and observations

    def write(self, k: int, *pairs: tuple[Tensor, Tensor]) -> None:
        """Keep the states ``(*batch, D)`` of time k in buffers ``(N, *batch, D)``."""
        if k in self.at:
            series, numbers = self.at[k]
            for buffer, state in pairs:
                if self.shared:
                    buffer[numbers] = state
                else:
                    _flat(buffer, 2)[numbers, series] = _flat(state, 1)[series]

    def restart(self, k: int, buffer: Tensor, state: Tensor) -> Tensor:
        """The state of time k, as it was kept where it was."""
        if k not in self.at:
            return state
        series, numbers = self.at[k]
        if self.shared:
            return buffer[numbers[0]]
        state = state.clone(memory_format=torch.contiguous_format)
        _flat(state, 1)[series] = _flat(buffer, 2)[numbers, series]
        return state

    def gradient(self, k: int, buffer: Tensor, adjoint: Tensor) -> Tensor:
        """An adjoint with the gradients that arrive at time k added."""
        if k not in self.at:
            return adjoint
        series, numbers = self.at[k]
        if self.shared:
            return adjoint + buffer[numbers].sum(0)
        arriving = torch.zeros_like(adjoint)
        _flat(arriving, 1).index_add_(0, series, _flat(buffer, 2)[numbers, series])
        return adjoint + arriving


def _flat(tensor: Tensor, dims: int) -> Tensor:
    """``(..., D)`` with its batch dimensions flattened, `dims` dimensions before D; a view of what is contiguous."""
    return tensor.reshape(*tensor.shape[: dims - 1], -1, tensor.shape[-1])
