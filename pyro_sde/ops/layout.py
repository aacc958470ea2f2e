"""Where the axes of a tensor stand."""

from __future__ import annotations

from torch import Tensor

__all__ = ["time_first"]


def time_first(tensor: Tensor, rank: int) -> Tensor:
    """Time leftmost, with `rank` batch dimensions between it and the last axis.

    Tensors that a coefficient captured have batch dimensions right of time, so time goes to the far left and the batch
    is padded with ones to meet them.

    Shape:
        tensor: ``(*batch, T, C)`` with at most `rank` batch dimensions · returns ``(T, 1, ..., *batch, C)``.

    Example:
        >>> import torch
        >>> time_first(torch.zeros(5, 7, 2), rank=2).shape
        torch.Size([7, 1, 5, 2])
    """
    tensor = tensor.movedim(-2, 0)
    return tensor.reshape(tensor.shape[0], *[1] * (rank - tensor.dim() + 2), *tensor.shape[1:])
