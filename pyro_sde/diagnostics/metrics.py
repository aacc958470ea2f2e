"""Scores of point, interval and sample predictions on masked series, each with its standard error."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .base import broadcast_mask

__all__ = ["Score", "crps_samples", "interval_coverage", "log_predictive_density", "mae", "rmse"]


class Score(NamedTuple):
    """A score averaged over valid observations.

    Attributes:
        mean: the score, in the unit that its function states.
        standard_error: sampling standard error of `mean` if the observations were independent; correlated errors
            along a series make the true one larger. NaN for a single observation.
        count: number of valid observations.
    """

    mean: float
    standard_error: float
    count: int  # pyright: ignore[reportIncompatibleMethodOverride] -- hides tuple.count, of no use here

    @property
    def sum(self) -> float:
        """Total over the valid observations, ``mean * count`` (meaningful for densities)."""
        return self.mean * self.count


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
        ValueError: if shapes disagree, nothing is scored, or a scored entry is NaN.

    Example:
        >>> rmse(torch.tensor([[1.0], [2.0]]), torch.tensor([[4.0], [-1.0]]))
        Score(mean=3.0, standard_error=0.0, count=2)
    """
    error = _select(prediction, target, mask, "prediction")
    squares = _score((error[0] - error[1]) ** 2)
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
        ValueError: if shapes disagree, nothing is scored, or a scored entry is NaN.
    """
    predicted, observed = _select(prediction, target, mask, "prediction")
    return _score((predicted - observed).abs())


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
        ValueError: if shapes disagree, nothing is scored, a scored entry is NaN, `level` is out of range, or there
            are too few samples for the interval to end inside them.

    References:
        Hyndman and Fan (1996), Sample quantiles in statistical packages, The American Statistician 50(4).
    """
    if not 0 < level < 1:
        msg = f"`level` must lie strictly between 0 and 1, received {level}."
        raise ValueError(msg)
    draws, observed = _select(samples, target, mask, "samples")
    size = draws.shape[0]
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
    return _score(((observed >= lower) & (observed <= upper)).double())


def log_predictive_density(log_likelihood_samples: Tensor, mask: Tensor | None = None) -> Score:
    r"""Log pointwise predictive density :math:`\log \frac1S \sum_s p(y_i \mid z^{(s)})`, in nats per observation.

    `mean` is the average and `sum` the total over observations, both in nats. It scores every observation by itself
    (not the joint density of a series) and is biased downwards for few draws: report S, and compare models at one S.
    Not comparable between data in different units: rescaling by c shifts it by log c.

    Args:
        log_likelihood_samples: log-density of every observation under every posterior draw, ``(S, *batch, N)`` if
            the channels are summed, ``(S, *batch, N, O)`` if not; an entry is an observation. Anything where masked.
        mask: bool, the shape without S, or without S and O; True = scored; None = all.

    Returns:
        The score over all scored observations.

    Raises:
        ValueError: if the shapes disagree, nothing is scored, or a scored entry is NaN.

    References:
        Gelman, Hwang and Vehtari (2014), Understanding predictive information criteria, eq. (5) (lppd),
        arXiv:1307.5928.
    """
    if log_likelihood_samples.dim() < 2:
        msg = (
            "`log_likelihood_samples` must have shape (S, *batch, N) or (S, *batch, N, O), received "
            f"{tuple(log_likelihood_samples.shape)}. Unsqueeze the sample dimension on the left."
        )
        raise ValueError(msg)
    anything = torch.zeros_like(log_likelihood_samples[0])
    draws, _ = _select(log_likelihood_samples, anything, mask, "log_likelihood_samples")
    return _score(draws.logsumexp(0) - math.log(draws.shape[0]))


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
        ValueError: if shapes disagree, nothing is scored, a scored entry is NaN, or there is one sample only.

    References:
        Ferro (2014), Fair scores for ensemble forecasts, eq. (8); Gneiting and Raftery (2007), Strictly proper
        scoring rules, prediction, and estimation, eq. (21).
    """
    draws, observed = _select(samples, target, mask, "samples")
    size = draws.shape[0]
    if size < 2:
        msg = f"`samples` must hold at least 2 draws for the fair score, received {size}. Use `mae` for one."
        raise ValueError(msg)
    ordered = (draws - observed).sort(0).values  # differences first: no cancellation for large offsets
    # sum over pairs |x_i - x_j| = 2 sum_i (2 i - S - 1) x_(i)
    weight = torch.arange(1 - size, size, 2, dtype=draws.dtype, device=draws.device) / (size * (size - 1))
    return _score(ordered.abs().mean(0) - torch.einsum("s,sn->n", weight, ordered))


def _select(values: Tensor, target: Tensor, mask: Tensor | None, name: str) -> tuple[Tensor, Tensor]:
    """Scored entries in float64: ``(n,)`` or ``(S, n)`` from `values`, ``(n,)`` from `target`."""
    sampled = name != "prediction"
    if values.dim() != target.dim() + sampled or values.shape[sampled:] != target.shape:
        expected = ", ".join(str(size) for size in target.shape)
        msg = (
            f"`{name}` must have shape ({'S, ' if sampled else ''}{expected}) to go with `target` "
            f"{tuple(target.shape)}, received {tuple(values.shape)}."
        )
        raise ValueError(msg)
    scored = broadcast_mask(mask, target.shape).to(target.device)
    if not scored.any():
        msg = "`mask` selects no observation, so there is nothing to score."
        raise ValueError(msg)
    chosen, observed = values.detach()[..., scored].double(), target.detach()[scored].double()
    for label, tensor in ((name, chosen), ("target", observed)):
        if tensor.isnan().any():
            msg = f"`{label}` is NaN at {int(tensor.isnan().sum())} scored entries. Set `mask` to False there."
            raise ValueError(msg)
    return chosen, observed


def _score(values: Tensor) -> Score:
    """Mean and standard error of independent entries ``(n,)``."""
    count = values.numel()
    error = (values.var() / count).sqrt().item() if count > 1 else math.nan
    return Score(values.mean().item(), error, count)
