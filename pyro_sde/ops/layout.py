"""Where the axes of a tensor stand."""

from __future__ import annotations

from torch import Tensor

from ._arguments import check_tensors

__all__ = ["time_first"]


def time_first(tensor: Tensor, rank: int) -> Tensor:
    """Time leftmost, with `rank` batch dimensions between it and the last axis.

    Tensors that a coefficient captured have batch dimensions right of time, so time goes to the far left and the batch
    is padded with ones to meet them.

    Shape:
        tensor: ``(*batch, T, C)`` with at most `rank` batch dimensions · returns ``(T, 1, ..., *batch, C)``.

    Raises:
        TypeError: if `tensor` is no tensor.
        ValueError: if it has no axis of time, or `rank` is no whole number >= 0.

    Example:
        >>> import torch
        >>> time_first(torch.zeros(5, 7, 2), rank=2).shape
        torch.Size([7, 1, 5, 2])
    """
    check_tensors(tensor=tensor)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 0:
        msg = f"`rank` must be a whole number >= 0, received {rank!r}."
        raise ValueError(msg)
    if tensor.dim() < 2:
        msg = f"`tensor` must have shape (*batch, T, C), received {tuple(tensor.shape)}."
        raise ValueError(msg)
    tensor = tensor.movedim(-2, 0)
    return tensor.reshape(tensor.shape[0], *[1] * (rank - tensor.dim() + 2), *tensor.shape[1:])
