"""Scores of point, interval and sample predictions on masked series, each with its standard error."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ..ops._arguments import check_real, is_finite
from ._scoring import Score, average, rows, select

__all__ = [
    "Score",
    "crps_samples",
    "energy_score",
    "interval_coverage",
    "interval_score",
    "log_predictive_density",
    "mae",
    "rmse",
]

_BLOCK_ENTRIES = 4_000_000  # of pairwise distances held at once, in float64


def rmse(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Score:
    r"""Root mean squared error :math:`\sqrt{\frac1n \sum_i (\hat y_i - y_i)^2}`, in the unit of `target`.

    The standard error follows from that of the mean square by the delta method.

    Args:
        prediction: point predictions, ``(*batch, N, O)``.
        target: observations, same shape; NaN is allowed where masked.
        mask: bool ``(*batch, N)`` or ``(*batch, N, O)``, True = scored; None = all.

    Returns:
        The score over all scored entries.

    Raises:
        TypeError: if an argument is no tensor of real numbers.
        ValueError: if shapes disagree, nothing is scored, or a scored entry is not finite.

    Example:
        >>> rmse(torch.tensor([[1.0], [2.0]]), torch.tensor([[4.0], [-1.0]]))
        Score(mean=3.0, standard_error=0.0, count=2)
    """
    error = select(prediction, target, mask, "prediction")
    squares = average((error[0] - error[1]) ** 2)
    root = math.sqrt(squares.mean)
    spread = squares.standard_error / (2 * root) if root > 0 else squares.standard_error
    return Score(root, spread, squares.count)


def mae(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Score:
    r"""Mean absolute error :math:`\frac1n \sum_i |\hat y_i - y_i|`, in the unit of `target`.

    Args:
        prediction: point predictions, ``(*batch, N, O)``; the predictive median is the best one.
        target: observations, same shape; NaN is allowed where masked.
        mask: bool ``(*batch, N)`` or ``(*batch, N, O)``, True = scored; None = all.

    Returns:
        The score over all scored entries.

    Raises:
        TypeError: if an argument is no tensor of real numbers.
        ValueError: if shapes disagree, nothing is scored, or a scored entry is not finite.
    """
    predicted, observed = select(prediction, target, mask, "prediction")
    return average((predicted - observed).abs())


def interval_coverage(samples: Tensor, target: Tensor, mask: Tensor | None = None, level: float = 0.9) -> Score:
    r"""Share of observations inside the central predictive interval; calibrated samples score `level`.

    The end points are the order statistics at positions :math:`p (S + 1)`, interpolated linearly (definition 6 of
    the reference): an observation from the law of the samples is then covered with probability `level` at any S,
    where the usual definition covers :math:`(S - 1)/(S + 1)` of it. Cost O(S log S) per entry.

    Args:
        samples: predictive draws *with observation noise*, ``(S, *batch, N, O)``, ``S >= 2 / (1 - level) - 1``.
        target: observations, ``(*batch, N, O)``; NaN is allowed where masked.
        mask: bool ``(*batch, N)`` or ``(*batch, N, O)``, True = scored; None = all.
        level: nominal coverage, ``0 < level < 1``.

    Returns:
        The score, a share between 0 and 1.

    Raises:
        TypeError: if an argument is no tensor of real numbers.
        ValueError: if shapes disagree, nothing is scored, a scored entry is not finite, `level` is out of range, or
            there are too few samples for the interval to end inside them.

    References:
        Hyndman and Fan (1996), Sample quantiles in statistical packages, The American Statistician 50(4).
    """
    draws, observed = select(samples, target, mask, "samples")
    lower, upper = _interval(draws, level)
    return average(((observed >= lower) & (observed <= upper)).double())


def interval_score(samples: Tensor, target: Tensor, mask: Tensor | None = None, level: float = 0.9) -> Score:
    r"""Width of the central predictive interval plus a fine for missing it, in the unit of `target`.

    .. math:: (u - l) + \frac{2}{1 - c} \left[(l - y)_+ + (y - u)_+\right]

    with c the level. Lower is better; proper, so it rewards neither too wide nor too narrow intervals, where
    `interval_coverage` sees the level alone. The end points are those of `interval_coverage`.

    Args:
        samples: predictive draws *with observation noise*, ``(S, *batch, N, O)``, ``S >= 2 / (1 - level) - 1``.
        target: observations, ``(*batch, N, O)``; NaN is allowed where masked.
        mask: bool ``(*batch, N)`` or ``(*batch, N, O)``, True = scored; None = all.
        level: nominal coverage c, ``0 < level < 1``.

    Returns:
        The score over all scored entries.

    Raises:
        ValueError: as `interval_coverage`.

    References:
        Gneiting and Raftery (2007), Strictly proper scoring rules, prediction, and estimation, eq. (43).
    """
    draws, observed = select(samples, target, mask, "samples")
    lower, upper = _interval(draws, level)
    missed = (lower - observed).clamp(min=0) + (observed - upper).clamp(min=0)
    return average(upper - lower + 2 / (1 - float(level)) * missed)


def log_predictive_density(log_likelihood_samples: Tensor, mask: Tensor | None = None) -> Score:
    r"""Log pointwise predictive density :math:`\log \frac1S \sum_s p(y_i \mid z^{(s)})`, in nats per observation.

    `mean` is the average and `sum` the total over observations, both in nats. It scores every observation by itself
    (not the joint density of a series) and is biased downwards for few draws: report S, and compare models at one S.
    Not comparable between data in different units: rescaling by c shifts it by log c.

    Args:
        log_likelihood_samples: log-density of every observation under every posterior draw, ``(S, *batch, N)`` if
            the channels are summed, ``(S, *batch, N, O)`` if not; an entry is an observation. Anything where masked.
        mask: bool ``(*batch, N)``, or ``(*batch, N, O)`` if the channels are not summed, True = scored; None = all.

    Returns:
        The score over all scored observations.

    Raises:
        ValueError: if the shapes disagree, nothing is scored, or a scored entry is not finite.

    References:
        Gelman, Hwang and Vehtari (2014), Understanding predictive information criteria, eq. (5) (lppd),
        arXiv:1307.5928.
    """
    check_real(log_likelihood_samples=log_likelihood_samples)
    if log_likelihood_samples.dim() < 2:
        msg = (
            "`log_likelihood_samples` must have shape (S, *batch, N) or (S, *batch, N, O), received "
            f"{tuple(log_likelihood_samples.shape)}. Unsqueeze the sample dimension on the left."
        )
        raise ValueError(msg)
    anything = log_likelihood_samples.new_zeros(log_likelihood_samples.shape[1:])
    draws, _ = select(log_likelihood_samples, anything, mask, "log_likelihood_samples")
    return average(draws.logsumexp(0) - math.log(draws.shape[0]))


def crps_samples(samples: Tensor, target: Tensor, mask: Tensor | None = None) -> Score:
    r"""Continuous ranked probability score :math:`E|X - y| - \tfrac12 E|X - X'|`, in the unit of `target`.

    The fair (unbiased) estimator: the pairwise mean runs over distinct draws, so its expectation does not depend on
    S. Lower is better; equals the absolute error for a point mass. Sorting gives O(S log S) per entry.

    Args:
        samples: predictive draws *with observation noise*, ``(S, *batch, N, O)``, ``S >= 2``.
        target: observations, ``(*batch, N, O)``; NaN is allowed where masked.
        mask: bool ``(*batch, N)`` or ``(*batch, N, O)``, True = scored; None = all.

    Returns:
        The score over all scored entries.

    Raises:
        TypeError: if an argument is no tensor of real numbers.
        ValueError: if shapes disagree, nothing is scored, a scored entry is not finite, or there is one sample only.

    References:
        Ferro (2014), Fair scores for ensemble forecasts, eq. (8); Gneiting and Raftery (2007), Strictly proper
        scoring rules, prediction, and estimation, eq. (21).
    """
    draws, observed = select(samples, target, mask, "samples")
    size = draws.shape[0]
    if size < 2:
        msg = f"`samples` must hold at least 2 draws for the fair score, received {size}. Use `mae` for one."
        raise ValueError(msg)
    ordered = (draws - observed).sort(0).values  # differences first: no cancellation for large offsets
    # sum over pairs |x_i - x_j| = 2 sum_i (2 i - S - 1) x_(i)
    weight = torch.arange(1 - size, size, 2, dtype=draws.dtype, device=draws.device) / (size * (size - 1))
    return average(ordered.abs().mean(0) - torch.einsum("s,sn->n", weight, ordered))


def energy_score(
    samples: Tensor, target: Tensor, mask: Tensor | None = None, *, joint: Literal["channels", "series"] = "channels"
) -> Score:
    r"""Energy score :math:`E\|X - y\| - \tfrac12 E\|X - X'\|` of vectors, in the unit of `target`.

    `crps_samples` for vectors: it also sees whether the entries of a prediction depend on each other as those of the
    data do, over channels at one time, or over a whole series, where draws must be paths. It sees a wrong scale or mean
    better than a wrong dependence. The fair estimator, over distinct pairs of draws. Bring channels to one scale first
    (`TimeSeries.standardise`). Cost: O(S^2) per vector, in blocks of bounded memory.

    Args:
        samples: predictive draws *with observation noise*, ``(S, *batch, N, O)``, ``S >= 2``.
        target: observations, ``(*batch, N, O)``; NaN is allowed where masked.
        mask: bool ``(*batch, N)`` or ``(*batch, N, O)``, True = scored; None = all. A vector consists of its scored
            entries; one without any is left out.
        joint: entries of one vector: the "channels" of one time, or all times and channels of a "series".

    Returns:
        The score over all vectors; `count` is their number.

    Raises:
        TypeError: if an argument is no tensor of real numbers.
        ValueError: if shapes disagree, nothing is scored, a scored entry is not finite, there is one sample only, or
            `joint` is another word.

    References:
        Gneiting and Raftery (2007), Strictly proper scoring rules, prediction, and estimation, eq. (22), with beta = 1.
    """
    if joint not in ("channels", "series"):
        msg = f'`joint` must be "channels" or "series", received {joint!r}.'
        raise ValueError(msg)
    draws, observed = rows(samples, target, mask, dims=1 if joint == "channels" else 2)  # (n, S, d), (n, d)
    count, size, width = draws.shape
    if size < 2:
        msg = f"`samples` must hold at least 2 draws for the fair score, received {size}. Use `mae` for one."
        raise ValueError(msg)
    scores = []
    for block in torch.arange(count).split(max(1, _BLOCK_ENTRIES // (size * max(size, width)))):
        centred = draws[block] - observed[block].unsqueeze(1)  # differences first: no cancellation for large offsets
        near = centred.norm(dim=-1).mean(-1)
        apart = torch.cdist(centred, centred, compute_mode="donot_use_mm_for_euclid_dist").sum((-2, -1))
        scores.append(near - apart / (2 * size * (size - 1)))
    return average(torch.cat(scores))


def _interval(draws: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Ends of the central interval of draws ``(S, n)``: order statistics at positions p (S + 1), interpolated."""
    if not is_finite(level) or not 0 < level < 1:
        msg = f"`level` must lie strictly between 0 and 1, received {level!r}."
        raise ValueError(msg)
    size = draws.shape[0]
    level = float(level)
    position = (1 - level) / 2 * (size + 1)
    if position < 1 - 1e-9:
        msg = (
            f"`samples` must hold at least {math.ceil(2 / (1 - level) - 1 - 1e-9)} draws for `level`={level}, "
            f"received {size}. Draw more or lower the level."
        )
        raise ValueError(msg)
    ordered = draws.sort(0).values
    index = min(max(int(position + 1e-9), 1), size - 1)  # 1-based order statistic below the lower end
    weight = max(position - index, 0.0)
    lower = torch.lerp(ordered[index - 1], ordered[index], weight)
    upper = torch.lerp(ordered[size - index], ordered[size - index - 1], weight)
    return lower, upper
