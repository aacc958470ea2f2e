r"""The contract of a pair of path laws: estimators of their divergence agree."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from ..distributions.base import PathDistribution
from ..distributions.kl import path_kl
from .statistics import ContractError, Outcome, combine, z_test

__all__ = ["KLReport", "check_kl"]


class KLReport(NamedTuple):
    r"""Monte-Carlo estimates of :math:`\mathrm{KL}(q \,\|\, p)` per batch entry, with standard errors.

    Attributes:
        closed: mean of `path_kl`, ``(*batch,)``.
        closed_error: its standard error.
        full: mean of the log-ratio, ``(*batch,)``.
        full_error: its standard error.
    """

    closed: Tensor
    closed_error: Tensor
    full: Tensor
    full_error: Tensor


def check_kl(
    q: PathDistribution,
    p: PathDistribution,
    *,
    num_samples: int = 10_000,
    expected: Tensor | float | None = None,
    ratio_under: str | None = None,
) -> KLReport:
    r"""Examine the divergence of two path laws that share grid and diffusion.

    With paths of q and the log-ratio :math:`\ell = \log q - \log p`:

    * the mean of `path_kl` equals the mean of :math:`\ell` (their difference is a martingale);
    * it is not negative, and equals `expected` if given;
    * ``path_kl(q, q)`` is 0 on every path;
    * after ``q.rsample()``, ``kl_divergence(q, p)`` is `path_kl` on that path;
    * with `ratio_under` = "q", :math:`E_q[e^{-\ell}] = 1`; with "p", :math:`E_p[e^{\ell}] = 1`.

    Means are compared by `z_test` for every batch entry, with one failure rate for all of them together.

    Args:
        q: law of the guide (first).
        p: law of the model.
        num_samples: number of paths per batch entry, at least 100.
        expected: exact divergence, broadcastable to the batch shape ``(*batch,)`` of the laws.
        ratio_under: law under which the density ratio has a finite variance, "q" or "p"; None leaves the last line
            out. Both expectations are 1, but a ratio of infinite variance (an unbounded difference of drifts, sampled
            under the more concentrated law) fails every z-test.

    Returns:
        The estimates, for a report.

    Raises:
        ContractError: if a line above does not hold.
        ValueError: if the divergence is infinite, there are fewer than 100 samples, or `ratio_under` is unknown.

    References:
        Li et al. (2020), arXiv 2001.01328, eq. (10).
    """
    if ratio_under not in (None, "q", "p"):
        msg = f'`ratio_under` must be "q", "p" or None, received {ratio_under!r}.'
        raise ValueError(msg)
    with torch.no_grad():
        path = q.sample(torch.Size([num_samples]))
        closed = path_kl(q, p, path).double()
        full = (q.log_prob(path) - p.log_prob(path)).double()
        tests = [("closed against full", z_test(closed - full, 0.0)), ("KL >= 0", _not_negative(closed))]
        if expected is not None:
            tests += [("closed form", z_test(closed, expected)), ("log-ratio", z_test(full, expected))]
        if ratio_under == "q":
            tests.append(("E_q[p / q]", z_test((-full).exp(), 1.0)))
        elif ratio_under == "p":
            other = p.sample(torch.Size([num_samples]))
            tests.append(("E_p[q / p]", z_test((q.log_prob(other) - p.log_prob(other)).exp(), 1.0)))
        combine(tests).require()
        _check_zero(q, path)
        _check_registry(q, p)
    root = math.sqrt(num_samples)
    return KLReport(closed.mean(0), closed.std(0) / root, full.mean(0), full.std(0) / root)


def _not_negative(closed: Tensor) -> Outcome:
    """One-sided: only a mean clearly below 0 counts."""
    outcome = z_test(closed.reshape(len(closed), -1).mean(1), 0.0)
    return outcome if float(closed.mean()) < 0 else outcome._replace(p_value=1.0)


def _check_zero(q: PathDistribution, path: Tensor) -> None:
    largest = float(path_kl(q, q, path).abs().max())
    if not largest <= _round_off(path):
        msg = f"path_kl(q, q) must be 0, is {largest:.3g}."
        raise ContractError(msg)


def _check_registry(q: PathDistribution, p: PathDistribution) -> None:
    fresh = q.expand(q.batch_shape)  # forgets the paths that others have sampled from q
    path = fresh.rsample()
    registered = kl_divergence(fresh, p)
    expected = path_kl(q, p, path)
    error = float((registered - expected).abs().max())
    if not error <= _round_off(path) * (1 + float(expected.abs().max())):
        msg = f"kl_divergence(q, p) after q.rsample() differs from path_kl on that path by {error:.3g}."
        raise ContractError(msg)


def _round_off(path: Tensor) -> float:
    return 1e-12 if path.dtype == torch.float64 else 1e-5
