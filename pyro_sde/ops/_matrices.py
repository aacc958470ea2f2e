"""Small dense matrices in batches: units, products and blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._arguments import check_real

__all__ = ["balance", "block_diagonal", "check_system", "kron", "matrix_norm", "one_batch"]

_SWEEPS = 12  # each halves the distance to the optimum, in powers of two


def balance(matrix: Tensor) -> Tensor:
    """Powers of two ``(*batch, D)`` as units of the states, in which rows and columns of A have about equal size.

    A companion matrix of rate r has entries from 1 to r^D, but norm of order r in balanced units (Parlett and Reinsch,
    1969). Powers of two change no digit.
    """
    size = matrix.abs() * (1 - torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device))
    logs = matrix.new_zeros(matrix.shape[:-1])
    for _ in range(_SWEEPS):
        scale = torch.exp2(logs)
        scaled = size * scale.unsqueeze(-2) / scale.unsqueeze(-1)
        rows, columns = scaled.sum(-1), scaled.sum(-2)
        coupled = (rows > 0) & (columns > 0)
        ratio = torch.where(coupled, rows, 1.0) / torch.where(coupled, columns, 1.0)
        logs = logs + 0.25 * ratio.log2()
    return torch.exp2(logs.round())


def matrix_norm(matrix: Tensor) -> Tensor:
    """The smaller of the largest row sum and the largest column sum of sizes: a bound of all eigenvalues."""
    return torch.minimum(matrix.abs().sum(-1).amax(-1), matrix.abs().sum(-2).amax(-1))


def kron(left: Tensor, right: Tensor) -> Tensor:
    """Kronecker product ``(..., R, C), (..., S, T) -> (..., R S, C T)``; batch dimensions broadcast."""
    product = left[..., :, None, :, None] * right[..., None, :, None, :]
    rows, columns = left.shape[-2] * right.shape[-2], left.shape[-1] * right.shape[-1]
    return product.reshape(*product.shape[:-4], rows, columns)


def one_batch(tensors: Sequence[Tensor], rank: int) -> list[Tensor]:
    """Tensors with their batch dimensions broadcast; the last `rank` axes are left alone."""
    batch = torch.broadcast_shapes(*(tensor.shape[: tensor.dim() - rank] for tensor in tensors))
    return [tensor.expand(*batch, *tensor.shape[tensor.dim() - rank :]) for tensor in tensors]


def block_diagonal(blocks: Sequence[Tensor]) -> Tensor:
    """Block-diagonal matrix of matrices of any shape; batch dimensions broadcast."""
    width, before, rows = sum(block.shape[-1] for block in blocks), 0, []
    for block in one_batch(blocks, 2):
        rows.append(torch.nn.functional.pad(block, (before, width - before - block.shape[-1])))
        before += block.shape[-1]
    return torch.cat(rows, -2)


def check_system(matrix: Tensor, diffusion: Tensor, offset: Tensor | None) -> None:
    """Raise TypeError unless A, L and b are real tensors, and ValueError unless their shapes fit each other."""
    check_real(matrix=matrix, diffusion=diffusion)
    if offset is not None:
        check_real(offset=offset)
    size = matrix.shape[-1] if matrix.dim() else 0
    if matrix.dim() < 2 or matrix.shape[-2] != size or size == 0:
        msg = f"`matrix` must have shape (*batch, D, D), received {tuple(matrix.shape)}."
        raise ValueError(msg)
    if diffusion.dim() < 2 or diffusion.shape[-2] != size:
        msg = f"`diffusion` must have shape (*batch, {size}, M), received {tuple(diffusion.shape)}."
        raise ValueError(msg)
    if offset is not None and (offset.dim() < 1 or offset.shape[-1] != size):
        msg = f"`offset` must have shape (*batch, {size}), received {tuple(offset.shape)}."
        raise ValueError(msg)
