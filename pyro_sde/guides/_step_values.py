"""Observations of steps as guides of chains read them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops._arguments import check_floating, check_observed

__all__ = ["observed_values"]


def observed_values(values: Tensor, mask: Tensor | None, length: int) -> Tensor:
    """Observations ``(B, T, O)`` with 0 where the mask, ``(B, T, O)`` or ``(B, T)``, is False.

    Raises:
        TypeError: if `values` is no floating-point tensor, or `mask` no tensor.
        ValueError: if shapes do not fit, or the mask is not bool.
    """
    check_floating(values=values)
    if values.dim() != 3 or values.shape[-2] != length:
        msg = f"`values` must have shape (B, {length}, O), as long as the prior; received {tuple(values.shape)}."
        raise ValueError(msg)
    if mask is None:
        return values
    check_observed(mask, values)
    return torch.where(mask if mask.dim() == 3 else mask.unsqueeze(-1), values, values.new_zeros(()))
