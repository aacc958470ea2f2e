r"""Averages of the rows of a series over time, so that rows at times that are close are close."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["TimeSmoothing"]

_GROUPS = 8  # different lengths; one for every channel costs more and trains no better
_LENGTHS = (0.1, 3.0)  # the initial lengths lie between these, in units of the time scale


class TimeSmoothing(nn.Module):
    r"""Weighted averages of rows, with weights :math:`e^{-|t_i - t_j| / \ell}` that are made to sum to 1.

    .. math:: \bar c_i = \sum_j e^{-|t_i - t_j|/\ell} c_j \Big/ \sum_j e^{-|t_i - t_j|/\ell}

    An average changes by at most :math:`(e^{2g/\ell} - 1) \max_j |c_j|` from one row to the next, g later. So the
    slope of a line between them is bounded however short g is, which that between the rows is not. The lengths
    :math:`\ell` are learned, one for each of up to 8 groups of channels.

    Cost: :math:`2 \log_2 N` operations on all rows, no loop over time.

    Args:
        channels: number C of channels.
        time_scale: unit of the initial lengths, which are 0.1 to 3 of it.
        reach: rows on either side that enter an average; all if None. With a limit the bound holds but for the weight
            of the rows that enter and leave.
    """

    def __init__(self, channels: int, time_scale: float, reach: int | None = None) -> None:
        super().__init__()
        self.reach = reach
        self.groups = math.gcd(channels, _GROUPS)
        low, high = (math.log(length * time_scale) for length in _LENGTHS)
        place = (torch.arange(self.groups) + 0.5) / self.groups
        self.log_lengths = nn.Parameter(low + (high - low) * place)

    def forward(self, rows: Tensor, times: Tensor, valid: Tensor) -> Tensor:
        """Averages ``(*batch, N, C)`` of the valid rows.

        Args:
            rows: ``(*batch, N, C)``.
            times: ``(*batch, N)``, in order.
            valid: bool ``(*batch, N)``; others have no weight.
        """
        weights = valid.to(rows.dtype).unsqueeze(-1).unsqueeze(-1)  # (*batch, N, 1, 1)
        gaps = times.diff(dim=-1).to(rows.dtype).unsqueeze(-1).unsqueeze(-1)
        decay = torch.exp(-gaps / self.log_lengths.exp().unsqueeze(-1))  # (*batch, N - 1, groups, 1)
        rows = torch.where(weights > 0, rows.unflatten(-1, (self.groups, -1)), 0)
        total = self._sums(decay, rows)
        mass = self._sums(decay, weights.expand(*weights.shape[:-2], self.groups, 1))
        return (total / mass.clamp(min=1)).flatten(-2)  # a valid row has weight 1 in its own average

    def _sums(self, decay: Tensor, rows: Tensor) -> Tensor:
        """Weighted sums over both sides, ``(*batch, N, G, ·)``; decay over the gaps ``(*batch, N - 1, G, 1)``."""
        before, after = _sums_before(
            torch.stack([decay, decay.flip(-3)]), torch.stack([rows, rows.flip(-3)]), self.reach
        )
        return before + after.flip(-3) - rows


def _sums_before(decay: Tensor, rows: Tensor, reach: int | None) -> Tensor:
    """Decayed sums of every row with those before it, by doubling: the rows within 1, 3, 7, ... places, then all.

    Only the last `reach` of them if that is 1, 3, 7, ...
    """
    span, count = 1, rows.shape[-3]
    while span < count and (reach is None or span <= reach):
        rows = torch.cat([rows[..., :span, :, :], rows[..., span:, :, :] + decay * rows[..., :-span, :, :]], -3)
        decay = decay[..., span:, :, :] * decay[..., :-span, :, :]
        span *= 2
    return rows
