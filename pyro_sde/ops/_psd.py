"""Positive semidefinite matrices: the check that names the first bad one, and a factor that allows singular ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ._arguments import check_floating

__all__ = ["check_finite", "check_psd", "psd_factor", "unique_entries"]


def unique_entries(tensor: Tensor, keep: int) -> Tensor:
    """View without the repeats of expanded dimensions (size kept as 1), the last `keep` dimensions untouched."""
    for dim in range(tensor.dim() - keep):
        if tensor.stride(dim) == 0:
            tensor = tensor.narrow(dim, 0, min(1, tensor.shape[dim]))
    return tensor


def check_finite(tensor: Tensor, name: str, timed: bool, keep: int) -> None:
    """Raise ValueError that names the argument and the first index at which an entry is not finite."""
    tensor = unique_entries(tensor.detach(), keep)
    # one pass and no mask: a sum of products with 0 is 0 unless an entry is infinite or NaN
    if not tensor.numel() or float((tensor * 0).sum()) == 0.0:
        return
    bad = ~torch.isfinite(tensor).flatten(start_dim=tensor.dim() - keep).all(-1)
    msg = f"`{name}` must be finite{_place(bad, timed)}."
    raise ValueError(msg)


def check_psd(matrix: Tensor, name: str, timed: bool, *, epsilon: float) -> None:
    """Raise ValueError unless all matrices ``(..., D, D)`` are symmetric positive semidefinite up to rounding.

    Rounding is that of entries with relative precision `epsilon`: of each diagonal entry times 1000 D, and of the
    largest one times D, since a covariance of a short step has entries of very different size.
    """
    matrix = unique_entries(matrix.detach(), 2)
    check_finite(matrix, name, timed, 2)
    _, info = torch.linalg.cholesky_ex(matrix)
    if torch.equal(matrix, matrix.mT) and not bool(info.any()):
        return  # the usual case, at the least cost
    dim = matrix.shape[-1]
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    largest = diagonal.amax(-1, keepdim=True).clamp(min=torch.finfo(matrix.dtype).tiny)
    slack = 1000 * dim * epsilon * diagonal + 4 * dim * epsilon * largest
    _, info = torch.linalg.cholesky_ex(matrix + slack.diag_embed())
    skew = (matrix - matrix.mT).abs().amax((-2, -1)) > 1000 * dim * epsilon * largest.squeeze(-1)
    bad = (info > 0) | skew
    if bool(bad.any()):
        first = tuple(bad.nonzero()[0].tolist())
        kind = "symmetric" if bool(skew[first]) else "positive semidefinite"
        msg = (
            f"`{name}` must be symmetric positive semidefinite; it is not {kind}{_place(bad, timed)}:\n{matrix[first]}"
        )
        raise ValueError(msg)


def _place(bad: Tensor, timed: bool) -> str:
    """Where the first True of ``(*batch, time)`` or ``(*batch,)`` is, in words."""
    first = bad.nonzero()[0].tolist()
    series = first[:-1] if timed else first
    words = f" at time index {first[-1]}" if timed else ""
    return words + (f" of series {series}" if series else "")


def psd_factor(matrix: Tensor) -> Tensor:
    r"""Lower triangular L with :math:`L L^\top` = `matrix`, for positive semidefinite matrices, zero ones included.

    A direction without noise has a zero column, and a matrix with a NaN a factor of NaNs. The gradient is finite
    everywhere: it is that of the matrices that keep these directions free of noise (the derivative that would add noise
    there is infinite, and left out).

    Args:
        matrix: symmetric positive semidefinite matrices; the symmetric part is used.

    Shape:
        matrix: ``(..., D, D)``; returns ``(..., D, D)``. Cost: one batched Cholesky factorisation if none is singular.

    Raises:
        TypeError: if `matrix` is no floating-point tensor.
        ValueError: if it does not hold square matrices.
    """
    check_floating(matrix=matrix)
    if matrix.dim() < 2 or matrix.shape[-1] != matrix.shape[-2]:
        msg = f"`matrix` must have shape (..., D, D), received {tuple(matrix.shape)}."
        raise ValueError(msg)
    if matrix.dim() == 2:  # the singular ones are picked by their place in a batch
        return psd_factor(matrix.unsqueeze(0)).squeeze(0)
    matrix = 0.5 * (matrix + matrix.mT)
    dim = matrix.shape[-1]
    tolerance = 4 * dim * torch.finfo(matrix.dtype).eps
    with torch.no_grad():
        factor, info = torch.linalg.cholesky_ex(matrix)
        pivots = factor.diagonal(dim1=-2, dim2=-1).square()
        regular = (info == 0) & (pivots > tolerance * matrix.diagonal(dim1=-2, dim2=-1)).all(-1)
        all_regular = bool(regular.all())
    if all_regular:
        return torch.linalg.cholesky_ex(matrix)[0]
    unit = torch.eye(dim, dtype=matrix.dtype, device=matrix.device)
    factor, _ = torch.linalg.cholesky_ex(torch.where(regular[..., None, None], matrix, unit))
    singular = matrix[~regular]
    # a pivot that is not a number would look like a direction without noise
    unknown = singular.isnan().flatten(start_dim=1).any(-1)[:, None, None]
    factors = _singular_factor(singular, tolerance).masked_fill(unknown, torch.nan)
    return factor.index_put((~regular).nonzero(as_tuple=True), factors)


def _singular_factor(matrix: Tensor, tolerance: float) -> Tensor:
    """Cholesky factorisation column by column, ``(N, D, D)``; a pivot lost in rounding gives a zero column."""
    original = matrix.diagonal(dim1=-2, dim2=-1)
    columns = []
    for j in range(matrix.shape[-1]):
        pivot = matrix[:, j, j]
        positive = (pivot > tolerance * original[:, j]).unsqueeze(-1)
        root = torch.where(positive, pivot.unsqueeze(-1), torch.ones_like(original[:, :1])).sqrt()
        column = torch.where(positive, matrix[:, :, j] / root, torch.zeros_like(original))
        below = torch.arange(matrix.shape[-1], device=matrix.device) >= j
        column = torch.where(below, column, torch.zeros_like(column))
        columns.append(column)
        matrix = matrix - column.unsqueeze(-1) * column.unsqueeze(-2)
    return torch.stack(columns, -1)
