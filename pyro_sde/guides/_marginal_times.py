r"""Random times for integrals over time, each sampler unbiased."""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from ..ops._arguments import check_numbers

__all__ = ["ImportanceTimes", "LowDiscrepancyTimes", "StratifiedTimes", "TimeSampler", "UniformTimes"]

_GOLDEN = 0.6180339887498949


class TimeSampler(abc.ABC):
    r"""Random times u in [0, 1] with weights w such that :math:`E \sum_r w_r f(u_r) = \int_0^1 f(u)\,du`.

    Args:
        num_times: number R of times for every series.

    Raises:
        ValueError: if `num_times` is not an integer >= 1.
    """

    def __init__(self, num_times: int = 16) -> None:
        if isinstance(num_times, bool) or not isinstance(num_times, int) or num_times < 1:
            msg = f"`num_times` must be an integer >= 1, received {num_times!r}."
            raise ValueError(msg)
        self.num_times = num_times

    @abc.abstractmethod
    def draw(self, batch: torch.Size, like: Tensor) -> tuple[Tensor, Tensor]:
        """Times and weights ``(R, *batch)``, with dtype and device of `like`."""

    def learn(self, u: Tensor, rate: Tensor) -> None:  # noqa: B027 (most samplers learn nothing)
        """Told the integrand at the times of the last draw, both ``(R, *batch)``, after they have been used."""

    def __repr__(self) -> str:
        """Class and number of times."""
        return f"{type(self).__name__}({self.num_times})"


class UniformTimes(TimeSampler):
    """Independent uniform times, as in the paper; the largest variance."""

    def draw(self, batch: torch.Size, like: Tensor) -> tuple[Tensor, Tensor]:
        """Independent uniform times, equal weights."""
        u = torch.rand(self.num_times, *batch, dtype=like.dtype, device=like.device)
        return u, torch.full_like(u, 1 / self.num_times)


class StratifiedTimes(TimeSampler):
    """One uniform time in each of R equal parts of every series; errors fall as R^-1.5, not R^-0.5."""

    def draw(self, batch: torch.Size, like: Tensor) -> tuple[Tensor, Tensor]:
        """One time in each part, equal weights."""
        u = torch.rand(self.num_times, *batch, dtype=like.dtype, device=like.device)
        part = torch.arange(self.num_times, dtype=like.dtype, device=like.device)
        u = (part.reshape(-1, *[1] * len(batch)) + u) / self.num_times
        return u, torch.full_like(u, 1 / self.num_times)


class LowDiscrepancyTimes(TimeSampler):
    """A lattice with a random shift; the shifts of the series of a batch are spread by the golden ratio.

    Every single time is uniform, so the estimate is unbiased; together the times of a batch cover the interval evenly,
    also with a single time for each series.
    """

    def draw(self, batch: torch.Size, like: Tensor) -> tuple[Tensor, Tensor]:
        """Shifted lattice, equal weights."""
        count = batch.numel()
        series = torch.arange(count, dtype=torch.float64, device=like.device) * _GOLDEN
        shift = (torch.rand((), dtype=torch.float64, device=like.device) + series) % 1.0
        part = torch.arange(self.num_times, dtype=torch.float64, device=like.device).unsqueeze(-1)
        u = ((part + shift) / self.num_times).to(like.dtype).clamp(max=1.0).reshape(self.num_times, *batch)
        return u, torch.full_like(u, 1 / self.num_times)


class ImportanceTimes(TimeSampler):
    r"""Stratified times whose density follows the integrand of earlier steps, with weights that undo it.

    The density is piecewise constant in u, proportional to the root of the mean square of the integrand in each of
    `num_bins` bins, mixed with a uniform density. It depends on earlier steps only, so each step is unbiased; weights
    are at most ``1 / uniform`` times those of uniform sampling. One density serves all series of a batch.

    Args:
        num_times: number R of times for every series.
        num_bins: number of bins.
        uniform: part of the uniform density, in ``(0, 1]``.
        decay: memory of the averages from one step to the next, in ``[0, 1)``.

    Raises:
        ValueError: if an argument is not as described.
    """

    def __init__(self, num_times: int = 16, *, num_bins: int = 64, uniform: float = 0.2, decay: float = 0.95) -> None:
        super().__init__(num_times)
        if isinstance(num_bins, bool) or not isinstance(num_bins, int) or num_bins < 1:
            msg = f"`num_bins` must be an integer >= 1, received {num_bins!r}."
            raise ValueError(msg)
        check_numbers(uniform=uniform, decay=decay)
        if not 0 < uniform <= 1:
            msg = f"`uniform` must be a number in (0, 1], received {uniform!r}: weights are bounded by its inverse."
            raise ValueError(msg)
        if not 0 <= decay < 1:
            msg = f"`decay` must be a number in [0, 1), received {decay!r}."
            raise ValueError(msg)
        self.num_bins, self.uniform, self.decay = num_bins, uniform, decay
        self._squares = torch.zeros(num_bins, dtype=torch.float64)
        self._weights = torch.zeros(num_bins, dtype=torch.float64)

    @property
    def density(self) -> Tensor:
        """Probability of every bin, ``(num_bins,)``."""
        seen = self._weights > 0
        if not bool(seen.any()):
            return torch.full((self.num_bins,), 1 / self.num_bins, dtype=torch.float64)
        root = (self._squares / torch.where(seen, self._weights, torch.ones_like(self._weights))).sqrt()
        root = torch.where(seen, root, root[seen].mean())
        total = root.sum()
        share = root / total if bool(total > 0) else torch.full_like(root, 1 / self.num_bins)
        return (1 - self.uniform) * share + self.uniform / self.num_bins

    def draw(self, batch: torch.Size, like: Tensor) -> tuple[Tensor, Tensor]:
        """One time in each of R parts of equal probability, weights one over the density."""
        density = self.density.to(like.device)
        ends = density.cumsum(0)
        part = torch.arange(self.num_times, dtype=torch.float64, device=like.device).reshape(-1, *[1] * len(batch))
        place = torch.rand(self.num_times, *batch, dtype=torch.float64, device=like.device)
        place = (part + place) / self.num_times * ends[-1]
        index = torch.searchsorted(ends, place, right=True).clamp(max=self.num_bins - 1)
        inside = (place - (ends - density)[index]) / density[index]
        u = ((index + inside.clamp(0, 1)) / self.num_bins).clamp(max=1.0)
        weight = 1 / (self.num_times * self.num_bins * density[index])
        return u.to(like.dtype), weight.to(like.dtype)

    def learn(self, u: Tensor, rate: Tensor) -> None:
        """Update the mean squares of the bins."""
        index = (u.detach().double().cpu() * self.num_bins).long().clamp(0, self.num_bins - 1).reshape(-1)
        square = rate.detach().double().cpu().square().expand(u.shape).reshape(-1)
        square = torch.where(square.isfinite(), square, torch.zeros_like(square))
        self._squares = self.decay * self._squares + torch.zeros_like(self._squares).index_add(0, index, square)
        self._weights = self.decay * self._weights + torch.zeros_like(self._weights).index_add(
            0, index, torch.ones_like(square)
        )
