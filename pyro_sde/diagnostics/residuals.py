"""Residuals of probabilistic predictions, and whether anything is left in them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops._arguments import check_real, check_whole
from ._scoring import select
from .base import broadcast_mask

__all__ = ["WhitenessTest", "ljung_box", "normal_residuals", "pit"]


class WhitenessTest(NamedTuple):
    r"""Portmanteau test of the autocorrelation of residuals, one per series and channel.

    Attributes:
        statistic: Q, ``(*batch, O)``; NaN for a channel with too few pairs.
        p_value: probability of a Q at least as large for white noise, ``(*batch, O)``.
        autocorrelation: :math:`\hat r_k` at lags 1 to L, ``(*batch, L, O)``.
    """

    statistic: Tensor
    p_value: Tensor
    autocorrelation: Tensor


def pit(samples: Tensor, target: Tensor, mask: Tensor | None = None, *, seed: int | None = None) -> Tensor:
    r"""Probability integral transform: where in its predictive distribution each observation lies, in (0, 1).

    .. math:: u = \frac{\#\{X_s < y\} + v\,(1 + \#\{X_s = y\})}{S + 1}, \qquad v \sim U(0, 1)

    Uniform on (0, 1) at any S, and for counts too, if y has the law of the draws. A histogram with a hump says that
    predictions are too wide, a bowl that they are too narrow, a slope that they are biased: see `plot_calibration`.

    Args:
        samples: predictive draws *with observation noise*, ``(S, *batch, N, O)``.
        target: observations, ``(*batch, N, O)``; NaN is allowed where masked.
        mask: bool ``(*batch, N)`` or ``(*batch, N, O)``, True = observed; None = all.
        seed: of the random numbers v; torch's global state if None.

    Returns:
        u, ``(*batch, N, O)`` in float64; NaN where masked.

    Raises:
        TypeError: if samples or target are no tensors of real numbers, or `seed` no whole number.
        ValueError: if shapes disagree, there is no draw, the mask selects nothing, or an observed entry is not finite.

    References:
        Czado, Gneiting, Held (2009), Predictive model assessment for count data, Biometrics 65, section 2.1
        (randomised form).
    """
    if seed is not None:
        check_whole(seed=seed)
    draws, observed = select(samples, target, mask, "samples")
    below, equal = (draws < observed).sum(0), (draws == observed).sum(0)
    generator = None if seed is None else torch.Generator(observed.device).manual_seed(seed)
    v = torch.rand(observed.shape, dtype=torch.float64, device=observed.device, generator=generator)
    u = (below + v * (1 + equal)) / (len(draws) + 1)
    full = torch.full(target.shape, torch.nan, dtype=torch.float64, device=observed.device)
    full[broadcast_mask(mask, target.shape).to(full.device)] = u
    return full


def normal_residuals(samples: Tensor, target: Tensor, mask: Tensor | None = None, *, seed: int | None = None) -> Tensor:
    r"""Residuals :math:`\Phi^{-1}(u)` of the `pit` u: standard normal if the predictions are calibrated.

    For one-step-ahead predictions, each given everything before, they are also independent along a series, which
    `ljung_box` tests. Predictions by a smoother, which has seen the observation or its successors, have residuals that
    are correlated even if the model is right. S draws reach to :math:`\Phi^{-1}(1 - 1/(2S + 2))`.

    Arguments and errors are those of `pit`.

    Returns:
        Residuals ``(*batch, N, O)`` in float64; NaN where masked.

    References:
        Smith (1985), Diagnostic checks of non-standard time series models, Journal of Forecasting 4(3); Dunn and Smyth
        (1996), Randomized quantile residuals.
    """
    edge = torch.finfo(torch.float64).eps
    return torch.special.ndtri(pit(samples, target, mask, seed=seed).clamp(edge, 1 - edge))


def ljung_box(residuals: Tensor, mask: Tensor | None = None, *, lags: int = 10, fitted: int = 0) -> WhitenessTest:
    r"""Ljung–Box test that residuals along a series are not autocorrelated.

    .. math::
        Q = n (n + 2) \sum_{k=1}^{L} \frac{\hat r_k^2}{m_k}, \qquad
        \hat r_k = \frac{\sum_i e_i\, e_{i+k}}{\sum_i e_i^2}

    with e the residuals less their mean, n their number and :math:`m_k` the number of pairs k apart that are both
    observed: :math:`n - k` without gaps, which is the textbook's form. For Gaussian white noise of known mean zero the
    mean of Q is L with any gaps. Q is compared with :math:`\chi^2` of L less `fitted` degrees of freedom, an
    approximation for n well above L. A lag is a number of observations, not a time: for irregular times it says whether
    neighbours are correlated, not at which distance.

    Args:
        residuals: ``(*batch, N, O)``, N > lags; anything where masked.
        mask: bool ``(*batch, N)`` or ``(*batch, N, O)``, True = observed; None = all that are not NaN.
        lags: largest lag L, ``>= 1``.
        fitted: number of parameters that were fitted to the same series' autocorrelation, ``0 <= fitted < lags``.

    Returns:
        Statistic and p-value of every series and channel.

    Raises:
        TypeError: if `residuals` is no tensor of real numbers, or a number no whole one.
        ValueError: if `residuals` has fewer than 2 dimensions or no more than `lags` times, an observed one is not
            finite, or `lags` or `fitted` is out of range.

    References:
        Ljung and Box (1978), On a measure of lack of fit in time series models, Biometrika 65(2); Stoffer and Toloi
        (1992), A note on the Ljung-Box-Pierce portmanteau statistic with missing data, Statistics and Probability
        Letters 13.
    """
    check_real(residuals=residuals)
    check_whole(lags=lags, fitted=fitted)
    if not 0 <= fitted < lags:
        msg = f"`lags` must be at least 1 and `fitted` satisfy 0 <= fitted < lags, received {lags} and {fitted}."
        raise ValueError(msg)
    if residuals.dim() < 2 or residuals.shape[-2] <= lags or residuals.numel() == 0:
        msg = (
            f"`residuals` must have shape (*batch, N, O) with N > {lags} = `lags`, received {tuple(residuals.shape)}. "
            "Time is the second last dimension."
        )
        raise ValueError(msg)
    values = residuals.detach().double()
    observed = ~values.isnan() if mask is None else broadcast_mask(mask, values.shape).to(values.device)
    if not values[observed].isfinite().all():
        msg = "`residuals` has NaN or infinite entries where `mask` is True. Set `mask` to False there."
        raise ValueError(msg)
    count = observed.sum(-2)  # (*batch, O)
    clean = torch.where(observed, values, 0.0)
    clean = torch.where(observed, clean - (clean.sum(-2) / count).unsqueeze(-2), 0.0)
    power = (clean**2).sum(-2)
    correlation, pairs = [], []
    for lag in range(1, lags + 1):
        correlation.append((clean[..., lag:, :] * clean[..., :-lag, :]).sum(-2) / power)
        pairs.append((observed[..., lag:, :] & observed[..., :-lag, :]).sum(-2))
    r, m = torch.stack(correlation, -2), torch.stack(pairs, -2)  # (*batch, L, O)
    statistic = count * (count + 2) * (r**2 / m).sum(-2)
    statistic = torch.where((m > 0).all(-2), statistic, torch.nan)
    p_value = torch.special.gammaincc(torch.full_like(statistic, (lags - fitted) / 2), statistic / 2)
    return WhitenessTest(statistic, p_value, r)
