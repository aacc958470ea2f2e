r"""Divergence of two path laws: closed form along a path, log-ratio, and when it is infinite.

Three estimators of :math:`\mathrm{KL}(q \,\|\, p)` have the same mean under paths of q (for an SDE,
:math:`\sigma u` is the difference of the drifts):

* closed: :math:`\mathrm{KL}(q_0 \| p_0) + \tfrac12 \sum_k |u_k|^2 h_k` (`path_kl`);
* full: :math:`\log q(z) - \log p(z)`, the closed one plus the martingale :math:`\sum_k u_k \cdot \Delta W_k`;
* stl: the full one, whose gradient holds the parameters of :math:`\log q` fixed (`PathDistribution.score_parts` for one
  site, `pyro_sde.infer.PathELBO` jointly for a guide).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from pyro.distributions import MaskedDistribution
from torch import Tensor
from torch.distributions import Independent, kl_divergence, register_kl

from .base import PathDistribution

__all__ = ["CarriesTerms", "PathTerms", "SiteLaw", "path_kl", "path_terms", "site_law"]


class PathTerms(NamedTuple):
    """Terms of a bound at one path site, each of the batch shape of the path, ``(...)``."""

    log_q: Tensor
    log_p: Tensor
    kl: Tensor | None  # closed form; None unless asked for


class CarriesTerms(ABC):
    """A path law whose values carry their log-ratio to the model, because they have no density."""

    @abstractmethod
    def carried_terms(self, p: PathDistribution, path: Tensor, *, closed: bool) -> PathTerms:
        """As `path_terms`, with this law in the guide; `path` is ``(..., T, D)``, the terms are ``(...)``."""


class SiteLaw(NamedTuple):
    """The path law inside a site's distribution, and how the wrappers around it change a log-probability.

    Attributes:
        law: the path law, of batch shape ``(...)``.
        mask: which paths count, broadcastable to ``(...)``; None or True for all.
        reinterpreted: batch dimensions turned into event dimensions by `.to_event`.
    """

    law: PathDistribution
    mask: Tensor | bool | None
    reinterpreted: int  # batch dimensions turned into event dimensions by `.to_event`

    def finish(self, term: Tensor) -> Tensor:
        """Apply the wrappers to a term ``(...)`` of the law: mask it, and sum its last `reinterpreted` dimensions."""
        if self.mask is not None:
            mask = torch.as_tensor(self.mask, device=term.device)
            term = torch.where(mask, term, torch.zeros_like(term))
        return term.sum(tuple(range(-self.reinterpreted, 0))) if self.reinterpreted else term


def site_law(fn: object) -> SiteLaw | None:
    """Path law of a sample site, looking through `.mask(...)` and `.to_event(...)`; None for other sites."""
    mask: Tensor | bool | None = None
    reinterpreted = 0
    while isinstance(fn, MaskedDistribution | Independent):
        if isinstance(fn, MaskedDistribution):
            mask = fn._mask if mask is None else torch.as_tensor(mask) & torch.as_tensor(fn._mask)
        else:
            if mask is not None:  # a mask outside `to_event` covers whole events
                mask = torch.as_tensor(mask)[(..., *[None] * fn.reinterpreted_batch_ndims)]
            reinterpreted += fn.reinterpreted_batch_ndims
        fn = fn.base_dist
    return SiteLaw(fn, mask, reinterpreted) if isinstance(fn, PathDistribution) else None


def path_kl(q: PathDistribution, p: PathDistribution, path: Tensor) -> Tensor:
    r"""Closed-form divergence of `q` from `p` along a path of `q`.

    .. math:: \mathrm{KL}(q_0 \| p_0) + \sum_k \mathrm{KL}(q_k(\cdot \mid z_k) \,\|\, p_k(\cdot \mid z_k))

    Its mean over paths of `q` is :math:`\mathrm{KL}(q \| p)`; for SDEs the k-th term is
    :math:`\tfrac12 |u_k|^2 h_k`. The term of the initial laws is the registered closed form, or the log-ratio at the
    first state. Unscaled and unmasked. Cost: one batched call of the coefficients of `q` and `p`.

    Args:
        q: law of the guide (first), from which `path` was drawn.
        p: law of the model.
        path: ``(..., T, D)``.

    Returns:
        Divergence with the batch shape of the path.

    Raises:
        ValueError: if the divergence is infinite (other diffusion, a difference of drifts outside the range of the
            diffusion, singular initial laws) or the grids differ; the message names dimension, time and both values.
            If the path has another shape or is not finite.
        TypeError: if `q` or `p` is no path law, or `path` no tensor of states.
        NotImplementedError: if the kernels of the two laws have no closed form together.

    References:
        Li et al. (2020), arXiv 2001.01328, eq. (10).
    """
    for name, law in (("q", q), ("p", p)):
        if not isinstance(law, PathDistribution):
            msg = f"`{name}` must be a path law, without `.mask` or `.to_event`, received {type(law).__name__}."
            raise TypeError(msg)
    carried = _carried_terms(q, p, path, closed=True)
    if carried is not None and carried.kl is not None:
        return carried.kl
    _check_comparable(q, p)
    if q._validate_args:
        q.check_path("path", path)
        if not bool(path.detach().isfinite().all()):
            msg = f"`path` must be finite, received {path.detach()[~path.isfinite()][0].item()}."
            raise ValueError(msg)
    kernels = q.kernels(path)
    return _initial_kl(q, p, q.first_state(path)) + kernels.kl(p.kernels_beside(path, q, kernels)).sum(0)


def path_terms(q: PathDistribution, p: PathDistribution, path: Tensor, *, closed: bool) -> PathTerms:
    """Log-densities of a path of `q` under both laws or, if `closed`, the divergence, with every check of `path_kl`.

    For a bound, which differentiates with respect to parameters through the sampling of the path: drift, diffusion and
    control of each law are evaluated once for all terms, those of `q` not at all if the path is the one it just
    sampled, and what `p` shares with `q` not again.

    Shape:
        path: ``(..., T, D)`` · every term: ``(...)``.
    """
    carried = _carried_terms(q, p, path, closed=closed)
    if carried is not None:
        return carried
    _check_comparable(q, p)
    q_kernels = q.sampled_kernels(path)
    p_kernels = p.kernels_beside(path, q, q_kernels)
    first = q.first_state(path)
    if closed:
        divergence = _initial_kl(q, p, first) + q_kernels.kl(p_kernels).sum(0)
        zero = divergence.new_zeros(())
        return PathTerms(zero, zero, divergence)
    q_kernels.check_absolutely_continuous(p_kernels)
    log_q0, log_p0 = q.initial.log_prob(first), p.initial.log_prob(first)
    _check_initial_ratio(log_q0 - log_p0)
    return PathTerms(log_q0 + q_kernels.log_prob().sum(0), log_p0 + p_kernels.log_prob().sum(0), None)


def _carried_terms(q: PathDistribution, p: PathDistribution, path: Tensor, *, closed: bool) -> PathTerms | None:
    if isinstance(q, CarriesTerms):
        return q.carried_terms(p, path, closed=closed)
    if isinstance(p, CarriesTerms):
        msg = (
            f"the model has a {type(p).__name__} and the guide a {type(q).__name__}, whose values carry no log-ratio. "
            "Use CarriedPath on both sides, or SDEPath on both."
        )
        raise ValueError(msg)
    return None


def _check_comparable(q: PathDistribution, p: PathDistribution) -> None:
    ours, theirs = tuple(q.event_shape[1:]), tuple(p.event_shape[1:])
    if ours != theirs:
        msg = f"guide and model have states of different dimension: {_size(ours)} and {_size(theirs)}."
        raise ValueError(msg)
    q.check_same_grid(p)


def _size(state: tuple[int, ...]) -> str:
    return str(state[0]) if state else "none (discrete states)"


def _initial_kl(q: PathDistribution, p: PathDistribution, first: Tensor) -> Tensor:
    try:
        divergence = kl_divergence(q.initial, p.initial)
    except NotImplementedError:
        divergence = q.initial.log_prob(first) - p.initial.log_prob(first)
    _check_initial_ratio(divergence)
    return divergence


def _check_initial_ratio(value: Tensor) -> None:
    with torch.no_grad():
        bad = ~torch.isfinite(value)
        if bad.any():
            where = bad.nonzero()[0].tolist()
            series = f" in series {where}" if where else ""
            msg = (
                f"the KL divergence of the initial laws is not finite{series}: {value[tuple(where)].item()}. A law "
                "with point mass (Delta) needs the same point on both sides; otherwise give both initial laws "
                "positive, finite scales."
            )
            raise ValueError(msg)


@register_kl(PathDistribution, PathDistribution)
def _kl_path_path(q: PathDistribution, p: PathDistribution) -> Tensor:
    """Closed form along the path that `q` sampled, so that `TraceMeanField_ELBO` estimates the divergence by it."""
    path = q.last_sample()
    if path is None:  # none, or one law object at two sites: Pyro falls back to the log-ratio
        raise NotImplementedError
    kl = path_terms(q, p, path, closed=True).kl
    if kl is None:
        raise NotImplementedError
    return kl
