"""D networks of one input, one output and one hidden layer each, given as one network with block-diagonal weights.

Their derivatives in machine code use the blocks alone, D times less arithmetic, and keep nothing of the hidden units:
what torch needs is a product with the whole matrices, and memory for all hidden units of a block of steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from . import _kernels
from ._elementary import SLOW
from ._jit import array, code_of, compiled, serves

__all__ = ["Elementwise", "blocks_of", "elementwise"]


class Elementwise:
    """Derivatives of such networks in machine code."""

    def __init__(self, code: int, shift: Tensor, first: Tensor, second: Tensor) -> None:
        self._code = code
        self._blocks = array(torch.stack([first, shift.reshape(-1), second]))
        self._work = np.empty((5, _kernels.CHUNK), dtype=self._blocks.dtype)

    def diagonal(self, states: Tensor) -> Tensor:
        """Derivative of output i by state i, (N, D), without that of the bounds."""
        out = torch.empty_like(states, memory_format=torch.contiguous_format)
        compiled(_kernels.diagonal)(self._code, self._blocks, array(states), array(out), self._work)
        return out

    def accumulate(self, gradients: Sequence[Tensor], states: Tensor, deltas: Tensor) -> None:
        """Add to the gradients of shift, weights and bias, from the cotangents (N, D) of the outputs before the bounds.

        Entries off the blocks are no parameters: their gradient stays 0.
        """
        shift, first, second, bias = gradients[:4]
        sums = torch.empty(self._blocks.shape, dtype=deltas.dtype)
        compiled(_kernels.accumulate)(self._code, self._blocks, array(states), array(deltas), array(sums), self._work)
        width = deltas.shape[-1]
        blocks = sums.view(3, width, -1)
        first.view(width, -1, width).diagonal(dim1=0, dim2=2).add_(blocks[0].t())
        shift.add_(sums[1])
        second.view(width, width, -1).diagonal(dim1=0, dim2=1).add_(blocks[2].t())
        bias.add_(deltas.sum(0))


def elementwise(activation: nn.Module | None, shift: Tensor, weights: Sequence[Tensor]) -> Elementwise | None:
    """The networks with these weights; None where the kernels do not apply, as for a shift per step or row."""
    code = code_of(activation)
    if code is None or code >= SLOW or shift.shape[:2] != (1, 1) or not serves(shift):
        return None
    blocks = blocks_of(weights)
    return None if blocks is None else Elementwise(code, shift, *blocks)


def blocks_of(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
    """The entries of both weights that are not 0 by construction, flat; None if these are other networks."""
    if len(weights) != 2:
        return None
    first, second = weights
    width, units = second.shape
    if units % width:
        return None
    entries = array(first).reshape(width, -1, width), array(second).reshape(width, width, -1)
    blocks = np.einsum("ihi->ih", entries[0]), np.einsum("iih->ih", entries[1])
    if any(np.count_nonzero(block) != np.count_nonzero(whole) for whole, block in zip(entries, blocks, strict=True)):
        return None
    return torch.from_numpy(blocks[0].reshape(-1)), torch.from_numpy(blocks[1].reshape(-1))
