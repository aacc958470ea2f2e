"""What skipping saves, and how much bias the re-entry leaves."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ..ops.windows import Windows
from .sde_path import SDEPath

__all__ = ["SkipReport", "contraction_rate", "shortest_burn_in"]


class SkipReport(NamedTuple):
    """Savings and bias of a `MultiScalePath`."""

    fine_steps: int
    """Fine steps simulated, all series together."""
    all_steps: int
    """Fine steps of the full simulation."""
    skipped: float
    """Fraction of fine steps not simulated."""
    burn_in: float
    """Shortest time from the start of a window, behind a gap, to its first observation; infinite without gaps."""
    rate: float
    """Rate at which the fine dynamics contract, per unit of time; negative if they do not."""
    mixing_time: float
    """1 / rate; infinite if they do not contract."""
    bias_factor: float
    """Estimate of what burn-in leaves of the divergence of the entry law; 0 if the re-entry has no bias."""

    @classmethod
    def of(cls, windows: Windows, rate: float, *, unbiased: bool) -> SkipReport:
        """Report for a rate of contraction."""
        total = int(windows.total.sum())
        active = int(windows.active.sum())
        burn_in = shortest_burn_in(windows)
        factor = 0.0
        if not unbiased and math.isfinite(burn_in):
            factor = math.exp(-2 * rate * burn_in) if rate > 0 else 1.0
        mixing = 1 / rate if rate > 0 else math.inf
        return cls(active, total, 1 - active / max(1, total), burn_in, rate, mixing, factor)


def shortest_burn_in(windows: Windows) -> float:
    """Shortest time between a re-entry and the next observation, over windows and series; infinite without gaps."""
    entry = windows.gap_ends  # (*batch, G), coarse points
    seen = windows.coarse.observed_index.expand(*windows.batch_shape, -1).contiguous()
    following = torch.searchsorted(seen, entry.contiguous()).clamp(max=seen.shape[-1] - 1)
    times = windows.coarse.times.detach().expand(*windows.batch_shape, -1)
    waits = times.gather(-1, seen.gather(-1, following)) - times.gather(-1, entry)
    real = windows.real_gaps
    return float(waits[real].min()) if bool(real.any()) else math.inf


def contraction_rate(law: SDEPath, windows: Windows) -> float:
    r"""Rate :math:`\rho` at which two paths driven by the same noise approach, over the first stretch of fine steps.

    .. math:: \rho = -\frac{1}{\tau} \log \frac{|b_\tau - b'_\tau|}{|b_0 - b'_0|}

    Exact for linear dynamics with one rate; otherwise an average over the batch, of the series whose first window has
    the fewest steps.
    """
    stops = ~windows.active
    first = stops.to(torch.uint8).argmax(-1)
    lengths = torch.where(stops.any(-1), first, torch.full_like(first, stops.shape[-1]))
    count = int(lengths.min()) if lengths.numel() else 0
    if count == 0:
        return 0.0
    initial = law.initial.sample()
    other = initial + law.initial.sample((64,)).std(0).clamp(min=1e-3)
    noise = torch.randn(law.noise_shape(), dtype=initial.dtype, device=initial.device)
    ends = [law.solve(start, noise)[..., count, :] for start in (initial, other)]
    elapsed = windows.grid.steps.detach()[..., :count].sum(-1)
    apart = (ends[0] - ends[1]).norm(dim=-1).clamp(min=torch.finfo(initial.dtype).tiny)
    ratio = apart / (other - initial).norm(dim=-1)
    return float((-ratio.log() / elapsed).mean())
