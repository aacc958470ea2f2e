r"""Statistical tests that share one failure rate and say how small an error they would find.

A test fails if its p-value is below `TEST_FAILURE_RATE`. A test of several entries corrects for their number
(Bonferroni), so the rate holds for the test as a whole. With a fixed seed a test that passes once passes always.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "ContractError",
    "Outcome",
    "TEST_FAILURE_RATE",
    "assert_mean",
    "chi2_test",
    "combine",
    "ks_test",
    "z_test",
]

TEST_FAILURE_RATE = 2e-5
"""Probability that a correct law fails one statistical test: 500 tests fail by chance once in a hundred seeds."""

_FEWEST_SAMPLES = 100  # below, the normal approximation is not good at a rate of 2e-5
_POWER = 2.3263  # 99 % quantile of N(0, 1)


class ContractError(AssertionError):
    """A law breaks its contract, or a statistical test fails; the message names the clause and both values."""


class Outcome(NamedTuple):
    """Outcome of a statistical test.

    Attributes:
        p_value: probability of a deviation at least as large for a correct law, corrected for the number of entries.
        smallest_error: error that the test finds with probability of at least 99 %, in the unit that the test names.
        detail: the entry that deviates most, in words.
    """

    p_value: float
    smallest_error: float
    detail: str

    def require(self, detects: float | None = None) -> Outcome:
        """Return this outcome if the test passes.

        Args:
            detects: the error that the test must be able to find; any if None.

        Raises:
            ContractError: if the p-value is below `TEST_FAILURE_RATE`, or the test is too weak to find `detects`.
        """
        if not self.p_value >= TEST_FAILURE_RATE:
            msg = f"p-value {self.p_value:.2g} is below TEST_FAILURE_RATE = {TEST_FAILURE_RATE:g}: {self.detail}"
            raise ContractError(msg)
        if detects is not None and not self.smallest_error <= detects:
            msg = (
                f"the test is too weak: it finds errors of {self.smallest_error:.3g}, `detects` asks for {detects:g}. "
                f"Use about {math.ceil((self.smallest_error / detects) ** 2)} times as many samples."
            )
            raise ContractError(msg)
        return self


def z_test(samples: Tensor, expected: Tensor | float) -> Outcome:
    r"""Two-sided test that independent samples have a given mean, entry by entry.

    .. math:: z = \sqrt{n}\,(\bar x - \mu) / s

    Valid if the samples have finite variance and n is large enough for the central limit theorem; an importance weight
    may have neither. The smallest error found is :math:`(z_{1-\alpha/2} + z_{0.99})\, s/\sqrt n`, in the unit of the
    samples.

    Args:
        samples: ``(n, ...)``, independent along the first axis, n >= 100.
        expected: mean, broadcastable to ``(...)``.

    Raises:
        ValueError: if there are fewer than 100 samples.

    References:
        Lehmann and Romano (2005), Testing Statistical Hypotheses, chapter 11 (large samples).

    Example:
        >>> z_test(torch.randn(10_000), 0.0).require().smallest_error < 0.08
        True
    """
    samples = samples.detach().double()
    _check_count(samples)
    mean = samples.mean(0)
    expected = torch.as_tensor(expected, dtype=torch.float64).detach().expand(mean.shape)
    error = samples.std(0) / math.sqrt(len(samples))
    # Constant samples must agree to round-off: then the mean has a standard error of that size.
    error = error.maximum(1e-12 * samples.abs().amax(0) + torch.finfo(torch.float64).tiny)
    z = (mean - expected) / error
    p_values = torch.erfc(z.abs() / math.sqrt(2))
    count = max(1, z.numel())
    smallest = (_quantile(TEST_FAILURE_RATE / count) + _POWER) * float(error.max())
    worst = int(z.abs().nan_to_num(math.inf).reshape(-1).argmax())
    where = f"entry {_unravel(worst, z.shape)}: " if z.dim() else ""
    values = (t.reshape(-1)[worst].item() for t in (mean, error, expected, z))
    detail = "{}mean {:.6g} +- {:.2g} (standard error), expected {:.6g}, z = {:.2f}".format(where, *values)
    p_value = float(p_values.nan_to_num(0.0).min())
    return Outcome(min(1.0, count * p_value), smallest, f"{detail}, n = {len(samples)}")


def assert_mean(samples: Tensor, expected: Tensor | float, *, detects: float | None = None) -> Outcome:
    """`z_test` that must pass and, if `detects` is given, must be able to find an error of that size.

    Args:
        samples: as for `z_test`, ``(n, ...)``.
        expected: mean, broadcastable to ``(...)``.
        detects: error that must be found, in the unit of the samples; any if None.

    Raises:
        ContractError: if it does not pass or is too weak.
        ValueError: if there are fewer than 100 samples.
    """
    return z_test(samples, expected).require(detects)


def ks_test(samples: Tensor, cdf: Callable[[Tensor], Tensor] = torch.special.ndtr) -> Outcome:
    r"""Kolmogorov–Smirnov test that independent samples have a given continuous law, column by column.

    The smallest error found is a distance :math:`\sup |F - F_0|` of
    :math:`(\sqrt{\ln(2/\alpha)} + \sqrt{\ln 200})/\sqrt{2n}`. It sees shifts and scales, hardly sees tails.

    Args:
        samples: ``(n, ...)``, independent along the first axis, n >= 100.
        cdf: distribution function of every column, standard normal unless given.

    Raises:
        ValueError: if there are fewer than 100 samples.
        ImportError: if scipy is missing.

    References:
        Massart (1990), The tight constant in the Dvoretzky-Kiefer-Wolfowitz inequality, corollary 1.
    """
    stats = _scipy_stats()
    samples = samples.detach().double()
    _check_count(samples)
    n = len(samples)
    columns = samples.reshape(n, -1)
    if not bool(torch.isfinite(columns).all()):
        return Outcome(0.0, math.inf, "the samples are not finite")
    values = cdf(columns.sort(0).values)
    rank = torch.arange(1, n + 1, dtype=torch.float64).unsqueeze(-1)
    distance = torch.maximum(rank / n - values, values - (rank - 1) / n).amax(0)
    worst = int(distance.argmax())
    count = columns.shape[1]
    p_value = min(1.0, count * float(stats.kstwo.sf(float(distance[worst]), n)))
    smallest = (math.sqrt(math.log(2 * count / TEST_FAILURE_RATE)) + math.sqrt(math.log(200))) / math.sqrt(2 * n)
    where = f"entry {_unravel(worst, samples.shape[1:])}: " if samples.dim() > 1 else ""
    return Outcome(p_value, smallest, f"{where}Kolmogorov-Smirnov distance {float(distance[worst]):.4g}, n = {n}")


def chi2_test(statistic: float, degrees: float) -> Outcome:
    r"""Two-sided test that a sum of squares is :math:`\chi^2` distributed.

    The smallest error found is a relative error of the variance of the summands, about
    :math:`(z_{1-\alpha/2} + z_{0.99}) \sqrt{2/\mathrm{degrees}}`.

    Args:
        statistic: sum of squares of independent standard normal variables.
        degrees: their number, ``> 0``.

    Raises:
        ValueError: if `degrees` is not positive.
    """
    if not degrees > 0:
        msg = f"`degrees` must be positive, received {degrees}. There is nothing to test."
        raise ValueError(msg)
    half = torch.tensor([degrees / 2, statistic / 2], dtype=torch.float64)
    upper = float(torch.special.gammaincc(half[0], half[1]))
    lower = float(torch.special.gammainc(half[0], half[1]))
    smallest = (_quantile(TEST_FAILURE_RATE) + _POWER) * math.sqrt(2 / degrees)
    p_value = min(1.0, 2 * min(upper, lower)) if math.isfinite(statistic) else 0.0
    return Outcome(p_value, smallest, f"sum of squares {statistic:.6g} for {degrees:g} degrees of freedom")


def combine(outcomes: Iterable[tuple[str, Outcome]]) -> Outcome:
    """One outcome of several named tests: the worst p-value times their number, the largest smallest error.

    Raises:
        ValueError: if there is no test.
    """
    named = list(outcomes)
    if not named:
        msg = "`outcomes` is empty; there is nothing to combine."
        raise ValueError(msg)
    name, worst = min(named, key=lambda item: item[1].p_value)
    p_value = min(1.0, len(named) * worst.p_value)
    return Outcome(p_value, max(o.smallest_error for _, o in named), f"{name}: {worst.detail}")


def _check_count(samples: Tensor) -> None:
    if samples.dim() == 0 or len(samples) < _FEWEST_SAMPLES:
        msg = (
            f"`samples` must have shape (n, ...) with n >= {_FEWEST_SAMPLES} independent samples, received "
            f"{tuple(samples.shape)}. Fewer cannot fail or pass at a rate of {TEST_FAILURE_RATE:g}."
        )
        raise ValueError(msg)


def _quantile(rate: float) -> float:
    """Deviation of N(0, 1) that is exceeded, on both sides together, with probability `rate`."""
    return -float(torch.special.ndtri(torch.tensor(rate / 2, dtype=torch.float64)))


def _unravel(flat: int, shape: torch.Size) -> list[int]:
    return [int(i) for i in np.unravel_index(flat, tuple(shape))] if shape else []


def _scipy_stats() -> ModuleType:
    try:
        from scipy import stats
    except ImportError as error:
        msg = "Kolmogorov-Smirnov tests need scipy, which is not installed. Run `pip install scipy`."
        raise ImportError(msg) from error
    return stats
