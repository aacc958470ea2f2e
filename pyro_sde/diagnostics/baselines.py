"""Naive predictors with an honest Gaussian band: last value and linear interpolation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Baseline, GaussianPrediction, PackedSeries

__all__ = ["LastValueBaseline", "LinearInterpolationBaseline", "fit_last_value", "fit_linear_interpolation"]


@dataclass(frozen=True, eq=False)
class _Band:
    """Predictive variance ``constant + slope * gap`` per channel, both ``(O,)``, and its floor ``(*batch, O)``."""

    constant: Tensor
    slope: Tensor
    floor: Tensor

    def standard_deviation(self, gap: Tensor) -> Tensor:
        """Standard deviation at gaps ``(*batch, O, Q)``."""
        variance = self.constant.unsqueeze(-1) + self.slope.unsqueeze(-1) * gap
        return variance.clamp(min=self.floor.unsqueeze(-1)).sqrt()

    @staticmethod
    def fit(residuals: list[Tensor], gaps: list[Tensor], valid: list[Tensor], floor: Tensor) -> _Band:
        """Maximum likelihood of ``residual ~ N(0, constant + slope * gap)``; entries ``(*batch, O, n)``.

        The variance is written as c (1 + k gap): c has a closed form, k runs over a grid that is refined twice, so
        there is no optimiser to fail and the result is the same everywhere.
        """
        r, g, v = (
            torch.cat([part.transpose(-1, -2).reshape(-1, part.shape[-2]) for part in parts])
            for parts in (residuals, gaps, valid)
        )  # (n, O): pooled over series
        squares, count = torch.where(v, r, 0.0) ** 2, v.sum(0)

        def profile(ratio: Tensor) -> tuple[Tensor, Tensor]:  # (O,) -> deviance and c, (O,) each
            shape = torch.where(v, 1 + ratio * g, 1.0)
            scale = (squares / shape).sum(0) / count
            return shape.log().sum(0) + count * scale.clamp(min=torch.finfo(r.dtype).tiny).log(), scale

        def search(candidates: Tensor) -> Tensor:  # (R, O) -> (O,)
            deviance = torch.stack([profile(log_ratio.exp())[0] for log_ratio in candidates])
            return candidates.gather(0, deviance.argmin(0, keepdim=True))[0]

        # From "the gap does not matter" to "only the gap matters"; each round looks closer around the best value.
        low = (1e-3 / torch.where(v, g, 0.0).amax(0)).log()
        high = (1e3 / torch.where(v, g, torch.inf).amin(0)).log()
        centre, reach = (low + high) / 2, (high - low) / 2
        spots = torch.linspace(-1, 1, 33, dtype=r.dtype, device=r.device).unsqueeze(-1)
        for _ in range(3):
            centre, reach = search(centre + reach * spots), reach / 16
        ratio = centre.exp()
        scale = profile(ratio)[1]
        return _Band(scale, scale * ratio, floor)


@dataclass(frozen=True, eq=False)
class LastValueBaseline(Baseline):
    """Last value carried forward with a band that widens with the time since; see `fit_last_value`."""

    series: PackedSeries
    band: _Band

    def predict(self, times: Tensor) -> GaussianPrediction:
        """Latest observation at or before each time; the first one for earlier times.

        Args:
            times: query times, ``(Q,)`` or ``(*batch, Q)``, any order.

        Returns:
            Mean and standard deviation, ``(*batch, Q, O)``.

        Raises:
            ValueError: if `times` is not finite or does not broadcast to the fitted batch.
        """
        query = self.series.queries(times)
        left, _ = _neighbours(self.series, query)
        gap = (query - self.series.times.gather(-1, left)).abs()
        return self.series.prediction(self.series.values.gather(-1, left), self.band.standard_deviation(gap))


@dataclass(frozen=True, eq=False)
class LinearInterpolationBaseline(Baseline):
    """Straight lines between observations, constant outside; see `fit_linear_interpolation`."""

    series: PackedSeries
    inside: _Band
    outside: _Band

    def predict(self, times: Tensor) -> GaussianPrediction:
        """Linear interpolation; the nearest observation before the first and after the last one.

        Args:
            times: query times, ``(Q,)`` or ``(*batch, Q)``, any order.

        Returns:
            Mean and standard deviation, ``(*batch, Q, O)``.

        Raises:
            ValueError: if `times` is not finite or does not broadcast to the fitted batch.
        """
        query = self.series.queries(times)
        left, right = _neighbours(self.series, query)
        begin, end = self.series.times.gather(-1, left), self.series.times.gather(-1, right)
        within = (query >= begin) & (query <= end)
        width = torch.where(end > begin, end - begin, 1.0)
        weight = ((query - begin) / width).clamp(0, 1)
        mean = torch.lerp(self.series.values.gather(-1, left), self.series.values.gather(-1, right), weight)
        nearest = torch.where(query < begin, begin, end)
        spread = torch.where(
            within,
            self.inside.standard_deviation(width * weight * (1 - weight)),
            self.outside.standard_deviation((query - nearest).abs()),
        )
        return self.series.prediction(mean, spread)


def fit_last_value(times: Tensor, values: Tensor, mask: Tensor | None = None) -> LastValueBaseline:
    r"""Last value with variance :math:`a + b\,\Delta`, where :math:`\Delta` is the time since that value.

    The band is learned by maximum likelihood from the residuals :math:`y_i - y_{i-1}` of the training series itself,
    of every second, fourth, ... of its observations too (so that long gaps are seen), pooled over the series of a
    batch, one (a, b) per channel.
    A random walk with observation noise has exactly this variance. Cost O(N log N) per series and channel.

    Args:
        times: observation times, ``(N,)`` or ``(*batch, N)``, increasing where valid.
        values: observations, ``(*batch, N, O)``; anything where masked.
        mask: bool ``(*batch, N)`` or ``(*batch, N, O)``, True = observed; None = all.

    Returns:
        The fitted baseline.

    Raises:
        ValueError: if shapes disagree, valid entries are not finite, times do not increase, or a series and channel
            has fewer than 3 valid observations.

    Example:
        >>> baseline = fit_last_value(torch.arange(4.0), torch.tensor([[0.0], [1.0], [0.0], [2.0]]))
        >>> baseline.predict(torch.tensor([1.5, 9.0])).mean.flatten()
        tensor([1., 2.])
    """
    series = PackedSeries.pack(times, values, mask, least=3)
    return LastValueBaseline(series, _forward_band(series))


def fit_linear_interpolation(times: Tensor, values: Tensor, mask: Tensor | None = None) -> LinearInterpolationBaseline:
    r"""Linear interpolation; outside the data the nearest value. Bands are learned from left-out observations.

    Inside, at distances :math:`d_1, d_2` from the two neighbours, the variance is :math:`a + b\,d_1 d_2/(d_1 + d_2)`
    (a Brownian bridge plus noise). (a, b) are fitted by maximum likelihood to the residuals of left-out
    :math:`y_i` against the line through their two neighbours, in the series and in every second, fourth, ... of
    its observations, pooled over the series of a batch, one pair per channel. Outside, the band is that of
    `fit_last_value`. Cost O(N log N) per series and channel.

    Args:
        times: observation times, ``(N,)`` or ``(*batch, N)``, increasing where valid.
        values: observations, ``(*batch, N, O)``; anything where masked.
        mask: bool ``(*batch, N)`` or ``(*batch, N, O)``, True = observed; None = all.

    Returns:
        The fitted baseline.

    Raises:
        ValueError: if shapes disagree, valid entries are not finite, times do not increase, or a series and channel
            has fewer than 3 valid observations.
    """
    series = PackedSeries.pack(times, values, mask, least=3)
    residuals, gaps, valid = [], [], []
    for t, y, seen in _thinned(series):
        before, after = t[..., 1:-1] - t[..., :-2], t[..., 2:] - t[..., 1:-1]
        width = torch.where(before + after > 0, before + after, 1.0)
        residuals.append(y[..., 1:-1] - torch.lerp(y[..., :-2], y[..., 2:], before / width))
        gaps.append(before * after / width)
        valid.append(seen[..., 2:])
    inside = _Band.fit(residuals, gaps, valid, series.floor)
    return LinearInterpolationBaseline(series, inside, _forward_band(series))


def _forward_band(series: PackedSeries) -> _Band:
    parts = [(y.diff(dim=-1), t.diff(dim=-1), seen[..., 1:]) for t, y, seen in _thinned(series)]
    residuals, gaps, valid = (list(column) for column in zip(*parts, strict=True))
    return _Band.fit(residuals, gaps, valid, series.floor)


def _thinned(series: PackedSeries) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Every first, second, fourth, ... observation: times, values and validity, at least 3 of the longest series."""
    longest = series.count.reshape(-1, series.count.shape[-1]).amax(0)  # (O,): channels do not see each other
    strides = [2**power for power in range(((int(longest.max()) - 1) // 2).bit_length())]
    return [
        (series.times[..., ::k], series.values[..., ::k], series.valid[..., ::k] & (longest > 2 * k).unsqueeze(-1))
        for k in strides
    ]


def _neighbours(series: PackedSeries, query: Tensor) -> tuple[Tensor, Tensor]:
    """Indices ``(*batch, O, Q)`` of the observations at or before, and after, each query; clamped to the data."""
    last = series.count.unsqueeze(-1) - 1
    # The padding repeats the last time, so `right=True` may count it: the clamp takes care of that.
    left = torch.searchsorted(series.times.contiguous(), query.contiguous(), right=True) - 1
    return left.clamp(min=0).minimum(last), (left + 1).clamp(min=0).minimum(last)
