"""Coefficients of torchsde-style objects, called with any leading dimensions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ScalarTime"]


class ScalarTime(nn.Module):
    """A torchsde coefficient (scalar time, states ``(B, D)``) called with any leading dimensions."""

    def __init__(self, sde: object, method: str) -> None:
        super().__init__()
        self.sde = sde
        self.method = method

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Coefficient at times ``(..., 1)`` and states ``(..., D)``."""
        function = getattr(self.sde, self.method)
        batch = torch.broadcast_shapes(t.shape[:-1], z.shape[:-1])
        states = z.expand(*batch, z.shape[-1]).reshape(-1, z.shape[-1])
        entries = t.reshape(-1)
        if t.requires_grad:  # entries of equal value have gradients of their own: one call each
            distinct, inverse = entries, torch.arange(len(entries), device=t.device)
        else:
            distinct, inverse = torch.unique(entries, return_inverse=True)
        if len(distinct) == 1:
            output = function(distinct[0], states)
        else:
            inverse = inverse.reshape(t.shape).expand(*batch, 1).reshape(-1)
            groups = [(inverse == i).nonzero().squeeze(-1) for i in range(len(distinct))]
            parts = [function(time, states[rows]) for time, rows in zip(distinct, groups, strict=True)]
            output = torch.cat(parts)[torch.cat(groups).argsort()]
        return output.reshape(*batch, *output.shape[1:])
