"""Does a guide cover the posterior? Importance weights of its draws and the shape of their tail."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from ..infer.traces import TracePair, sampled_traces
from ..ops._arguments import check_whole
from ._model_runs import evaluation, plate_nesting, scored_sites
from .arviz import pareto_smooth

__all__ = ["ImportanceCheck", "importance_check"]

_PLATE = "importance_draws"


class ImportanceCheck(NamedTuple):
    r"""How well draws of a guide stand for the posterior.

    Attributes:
        k_hat: shape of the tail of the importance weights, ``(*rows)``.
        effective_samples: number of exact draws that the smoothed weights are worth, ``(*rows)``.
        log_evidence: :math:`\log \frac1S \sum_s p(y, z_s) / q(z_s)`, a lower bound on average, in nats, ``(*rows)``.
        log_weights: smoothed log weights that sum to 1, ``(S, *rows)``.
    """

    k_hat: Tensor
    effective_samples: Tensor
    log_evidence: Tensor
    log_weights: Tensor

    @property
    def reliable(self) -> Tensor:
        r"""Whether weighted draws may be trusted, bool ``(*rows)``: :math:`\hat k < \min(1 - 1/\log_{10} S, 0.7)`."""
        return self.k_hat < min(1 - 1 / math.log10(len(self.log_weights)), 0.7)


def importance_check(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    num_samples: int = 1000,
    vectorize_particles: bool = True,
    seed: int | None = None,
) -> ImportanceCheck:
    r"""Pareto-smoothed importance sampling with a guide as the proposal.

    .. math:: w_s = \frac{p(y, z_s)}{q(z_s)}, \qquad z_s \sim q

    The largest ratios follow a Pareto law whose shape k says how many moments the weights have: below 0.5 the guide
    covers the posterior, above 0.7 draws of the guide cannot be corrected, above 1 the weights have no mean. A large k
    does not say that the posterior mean is wrong; a small one does say that everything is right, up to the region that
    no draw has reached.

    If every site of model and guide lies in the same plates, each of their elements (each series) has weights of its
    own, the rows; otherwise one weight belongs to a whole draw, and k grows with the number of series. On a fine grid k
    measures the law of the whole path. Cost: one run of the guide and one of the model for all draws together, with
    both densities; memory grows with `num_samples`.

    Args:
        model: Pyro model.
        guide: its guide.
        args: arguments of both, with the data.
        kwargs: keyword arguments of both.
        num_samples: number S of draws, ``>= 100``; thousands for a k that is stable to 0.1.
        vectorize_particles: run all draws at once in an outermost plate; False for models whose code does not broadcast
            to the left of its plates.
        seed: same seed, same draws; torch's global state if None.

    Returns:
        Shape, effective number and bound, of every row.

    Raises:
        ImportError: if ArviZ is not installed.
        TypeError: if `num_samples` is no whole number.
        ValueError: if `num_samples` is too small, a plate is subsampled, or a weight is NaN.

    References:
        Vehtari, Simpson, Gelman, Yao, Gabry (2024), Pareto smoothed importance sampling, JMLR 25(72); Yao, Vehtari,
        Simpson, Gelman (2018), Yes, but did it work? Evaluating variational inference, arXiv 1802.02538, algorithm 1.

    Example:
        >>> import pyro.distributions as dist
        >>> model = lambda: pyro.sample("x", dist.Normal(0.0, 1.0))
        >>> guide = lambda: pyro.sample("x", dist.Normal(0.1, 1.1))
        >>> bool(importance_check(model, guide, seed=0).reliable)
        True
    """
    check_whole(num_samples=num_samples)
    if num_samples < 100:
        msg = f"`num_samples` must be at least 100 to see a tail, received {num_samples}."
        raise ValueError(msg)
    options = dict(kwargs or {})
    with evaluation(seed):
        if vectorize_particles:
            dim = -1 - plate_nesting(sampled_traces(model, guide, args, options))
            plate = pyro.plate(_PLATE, num_samples, dim=dim)
            weights = _log_weights(sampled_traces(plate(model), plate(guide), args, options))
            weights = weights.expand(num_samples, *weights.shape[1:])
        else:
            weights = torch.stack(
                [_log_weights(sampled_traces(model, guide, args, options)) for _ in range(num_samples)]
            )
    if weights.isnan().any():
        msg = "a log weight is NaN: `check` of pyro_sde.infer finds the site. Missing values need a mask."
        raise ValueError(msg)
    smoothed, shape = pareto_smooth(weights)
    evidence = weights.double().logsumexp(0) - math.log(num_samples)
    return ImportanceCheck(shape, 1 / smoothed.exp().square().sum(0), evidence.cpu(), smoothed)


def _log_weights(pair: TracePair) -> Tensor:
    """Log ratio of model and guide, summed over all dimensions but those of the plates that every site is in."""
    terms: list[tuple[float, Any]] = []
    for sign, trace in ((1.0, pair.model), (-1.0, pair.guide)):
        trace.compute_log_prob()
        terms += [(sign, site) for site in scored_sites(trace)]
    for _, site in terms:
        if isinstance(site["scale"], Tensor) or site["scale"] != 1:
            msg = (
                f"site '{site['name']}' has the scale {site['scale']}, as in a subsampled plate, where weights are not "
                "those of the posterior. Pass all data, without subsampling and poutine.scale."
            )
            raise ValueError(msg)
    shared = set.intersection(*({f.dim for f in s["cond_indep_stack"] if f.vectorized} for _, s in terms))
    total: Any = 0.0
    for sign, site in terms:
        log_prob = site["log_prob"]
        gone = [d for d in range(-log_prob.dim(), 0) if d not in shared]
        kept = log_prob.sum(gone, keepdim=True) if gone else log_prob
        total = total + sign * kept
    return total.squeeze([d for d in range(-total.dim(), 0) if d not in shared])
