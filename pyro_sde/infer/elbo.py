r"""Evidence lower bounds for models with path sites."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import scale_and_mask
from pyro.infer import JitTrace_ELBO, Trace_ELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine.trace_struct import Trace
from pyro.util import check_if_enumerated, check_site_shape
from torch import Tensor

from ..distributions.kl import CarriesTerms, SiteLaw, path_terms, site_law
from ..ops._arguments import check_numbers
from ._mean_field import warn_mean_field
from .coverage import uncovered_parameters
from .landing import frozen_guide, land, land_by_difference
from .traces import CutValues, TracePair, matched_traces, sampled_traces

__all__ = ["JitPathELBO", "PathELBO"]

_KL = ("stl", "closed", "full")


class PathELBO(Trace_ELBO):
    r"""Evidence lower bound with three estimators of the divergence of path sites.

    .. math:: \mathcal{L} = E_q\big[\log p(y \mid z)\big] - \beta\, \mathrm{KL}(q \,\|\, p)

    The same model and guide serve every choice of `kl`, and every choice has the same mean:

    * "stl" (default): Monte-Carlo log-ratio; sticking the landing jointly over all reparameterised sites of the guide.
      Gradients have zero variance where the guide is the exact posterior of the discretised model.
    * "closed": for path sites :math:`\tfrac12 \sum_k |u_k|^2 h_k` and the closed-form divergence of the initial laws.
      Lower variance than "full" far from the posterior, more near it; its value is noisy at the optimum.
    * "full": Monte-Carlo log-ratio with its full gradient.

    An infinite divergence (other diffusion, difference of drifts outside the range of the diffusion, other grid,
    singular initial laws) raises in all three, in the loss and in its gradients. Cost over `Trace_ELBO`: drift and
    diffusion of model and guide are evaluated once each; "stl" adds one backward pass of :math:`\log q` with respect to
    the values.

    Args:
        kl: "stl", "closed" or "full".
        kl_weight: :math:`\beta \ge 0` on all path sites, the same as ``poutine.scale`` on both model and guide; 1 is a
            bound.
        **options: of `Trace_ELBO`, such as `num_particles` and `vectorize_particles`.

    Raises:
        ValueError: at construction if `kl`, `kl_weight` or `num_particles` is not as described; at use if the
            divergence of a site is infinite, a path site has no counterpart, or a site over-counts (dims of a path
            re-used as plates).

    References:
        Roeder, Wu, Duvenaud (2017), arXiv 1703.09194; Xu et al. (2022), arXiv 2102.06559, section 4;
        Li et al. (2020), arXiv 2001.01328, eq. (10).
    """

    def __init__(self, kl: str = "stl", kl_weight: float = 1.0, **options: Any) -> None:  # noqa: ANN401
        if kl not in _KL:
            msg = f"`kl` must be one of {_KL}, received {kl!r}."
            raise ValueError(msg)
        check_numbers(kl_weight=kl_weight)
        if not 0 <= kl_weight < math.inf:
            msg = f"`kl_weight` must be a number >= 0, received {kl_weight!r}."
            raise ValueError(msg)
        particles = options.get("num_particles", 1)
        if isinstance(particles, bool) or not isinstance(particles, int) or particles < 1:
            msg = f"`num_particles` must be an integer >= 1, received {particles!r}."
            raise ValueError(msg)
        super().__init__(**options)
        self.kl = kl
        self.kl_weight = kl_weight
        self._coverage_checked = False

    def _get_trace(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple, kwargs: dict
    ) -> tuple[Trace, Trace]:
        """Traces with log-probabilities and score parts as this estimator wants them."""
        cuts = CutValues()
        raw = sampled_traces(model, guide, args, kwargs, cuts if self.kl == "stl" else None)
        if not self._coverage_checked:
            self._coverage_checked = True
            _warn_uncovered(raw, model, guide)
            warn_mean_field(raw)
        paths = _path_sites(raw)
        pair = matched_traces(raw, self.max_plate_nesting)
        for name, (q, p) in paths.items():
            self._score_path(pair, name, q, p)
        pair.model.compute_log_prob()
        pair.guide.compute_score_parts()
        if is_validation_enabled():
            check_if_enumerated(pair.guide)
        for site in (*pair.model.nodes.values(), *pair.guide.nodes.values()):
            if site["type"] == "sample":
                if is_validation_enabled():
                    check_site_shape(site, self.max_plate_nesting)  # type: ignore[arg-type]
                _check_no_overcount(site, self.max_plate_nesting)
                _check_finite(site)
        if self.kl == "stl" and torch.is_grad_enabled():
            if torch.jit.is_tracing():
                frozen = frozen_guide(raw.guide, guide, args, kwargs)
                for name in paths:
                    frozen.nodes[name]["scale"] = frozen.nodes[name]["scale"] * self.kl_weight
                land_by_difference(pair.guide, frozen)
            else:
                land(pair.guide, cuts)
        return pair.model, pair.guide

    def _score_path(self, pair: TracePair, name: str, q: SiteLaw | None, p: SiteLaw | None) -> None:
        """Fill in the terms of one path site, computing the coefficients of guide and model once each."""
        model_site: Any = pair.model.nodes[name]
        guide_site: Any = pair.guide.nodes[name]
        carried = next((side.law for side in (q, p) if side is not None and isinstance(side.law, CarriesTerms)), None)
        if carried is not None:
            _check_carried(name, carried, self.kl, one_sided=q is None or p is None)
        if q is None or p is None:
            if self.kl == "closed" or self.kl_weight != 1:
                side = "guide" if q is None else "model"
                msg = (
                    f"site '{name}' is a path on one side only (the {side} has another distribution), where "
                    'kl="closed" and `kl_weight` are not defined. Use kl="stl" or "full" with kl_weight=1, or a path '
                    "law on both sides."
                )
                raise ValueError(msg)
            return  # densities only, by Pyro
        for site in (model_site, guide_site):
            site["scale"] = site["scale"] * self.kl_weight
        try:
            terms = _named(name, path_terms, q.law, p.law, guide_site["value"], closed=self.kl == "closed")
        except NotImplementedError as error:
            reason = f" ({error})" if str(error) else ""
            msg = (
                f"site '{name}': kl=\"closed\" needs kernels with a closed-form divergence, which "
                f'{type(q.law).__name__} and {type(p.law).__name__} do not have{reason}. Use kl="stl" or kl="full".'
            )
            raise ValueError(msg) from error
        if terms.kl is None:
            log_p, log_q = p.finish(terms.log_p), q.finish(terms.log_q)
        else:
            log_p, log_q = q.finish(-terms.kl), q.finish(torch.zeros_like(terms.kl))
        score: Any = 0
        if not q.law.has_rsample:
            score = log_q if terms.kl is None else q.finish(q.law.log_prob(guide_site["value"]))
        entropy: Any = 0 if not q.law.has_rsample or terms.kl is not None else log_q
        _fill_model(model_site, log_p)
        _fill_guide(guide_site, ScoreParts(log_q, score, entropy))


class JitPathELBO(JitTrace_ELBO, PathELBO):
    """`PathELBO` compiled by ``torch.jit.trace``, under the conditions of `pyro.infer.JitTrace_ELBO`.

    The checks of `PathELBO` on values run while the first call is traced, and not afterwards.
    """


def _path_sites(pair: TracePair) -> dict[str, tuple[SiteLaw | None, SiteLaw | None]]:
    """Latent sites that are paths in guide or model, with their laws on both sides.

    Raises:
        ValueError: if a path site is on one side only.
    """
    sites: dict[str, tuple[SiteLaw | None, SiteLaw | None]] = {}
    for name, site in pair.guide.nodes.items():
        law = site_law(site["fn"]) if site["type"] == "sample" else None
        if law is None:
            continue
        if name not in pair.model.nodes:
            kind = "an auxiliary path" if (site["infer"] or {}).get("is_auxiliary") else "a path"
            msg = (
                f"site '{name}' is {kind} of the guide that the model does not have, so the KL divergence is "
                f"infinite: log q('{name}') has nothing to be compared with and the loss would not be a bound. Add a "
                f"reverse model r('{name}' | other sites) to the model as a path site of the same name."
            )
            raise ValueError(msg)
        sites[name] = (law, site_law(pair.model.nodes[name]["fn"]))
    for name, site in pair.model.nodes.items():
        law = site_law(site["fn"]) if site["type"] == "sample" and not site["is_observed"] else None
        if law is not None and name in pair.guide.nodes:
            q, _ = sites.setdefault(name, (None, law))
            if q is not None:
                _named(name, q.law.check_same_grid, law.law)
        elif law is not None:
            msg = (
                f"site '{name}' is a latent path of the model that the guide does not have. Sample it in the guide, "
                "for example from SDEPath(prior.controlled(control), ...), or condition the model on it."
            )
            raise ValueError(msg)
    return sites


def _check_carried(name: str, law: object, kl: str, *, one_sided: bool) -> None:
    """Values that carry their log-ratio have no density to land on, nor to compare with one of another kind."""
    kind = type(law).__name__
    if one_sided:
        msg = (
            f"site '{name}' is a {kind} on one side only, whose log_prob is relative to its prior and not comparable "
            f"with a density. Use {kind} in both model and guide."
        )
        raise ValueError(msg)
    if kl == "stl":
        msg = (
            f"site '{name}': kl=\"stl\" needs the density of the guide at a fixed path, which a {kind} does not have. "
            'Use PathELBO(kl="closed") or PathELBO(kl="full"), or SDEPath.'
        )
        raise ValueError(msg)


def _named(name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """Call a function and name the site in its errors."""
    try:
        return function(*args, **kwargs)
    except ValueError as error:
        msg = f"site '{name}': {error}"
        raise ValueError(msg) from error


def _fill_model(site: Any, log_prob: Tensor) -> None:  # noqa: ANN401
    site["unscaled_log_prob"] = log_prob
    site["log_prob"] = scale_and_mask(log_prob, site["scale"], site["mask"])
    site["log_prob_sum"] = site["log_prob"].sum()


def _fill_guide(site: Any, parts: ScoreParts) -> None:  # noqa: ANN401
    _fill_model(site, parts.log_prob)
    site["score_parts"] = parts.scale_and_mask(site["scale"], site["mask"])


def _check_finite(site: Any) -> None:  # noqa: ANN401 (a Pyro message)
    """NaN and infinite terms are explained, not propagated."""
    total = site["log_prob_sum"]
    if isinstance(total, Tensor) and not bool(torch.isfinite(total.detach())):
        msg = (
            f"site '{site['name']}': log_prob is {float(total.detach())}. If values are missing (NaN), mask them in "
            "the likelihood; if a scale or rate can reach 0 or infinity, bound it; if a path has grown without limit, "
            "use a smaller max_step, learning rate or initial scale of the networks."
        )
        raise ValueError(msg)


def _check_no_overcount(site: Any, max_plate_nesting: float) -> None:  # noqa: ANN401
    """Every dimension of a log-probability must be a plate; Pyro ignores those left of the plates."""
    sizes = {frame.dim: frame.size for frame in site["cond_indep_stack"] if frame.vectorized}
    shape = getattr(site["log_prob"], "shape", ())
    for dim in range(-len(shape), -int(max_plate_nesting) if max_plate_nesting < len(shape) else 0):
        if shape[dim] != 1 and dim not in sizes:
            msg = (
                f"site '{site['name']}' has log_prob of shape {tuple(shape)}, whose dimension {dim} is no plate, so "
                "its terms are counted several times. Time and state dimensions of a path must not be used as "
                "plates: declare them as event dimensions of the likelihood with .to_event(2)."
            )
            raise ValueError(msg)


def _warn_uncovered(pair: TracePair, model: Callable[..., Any], guide: Callable[..., Any]) -> None:
    for name, count in uncovered_parameters(pair, model, guide).items():
        warnings.warn(
            f"the SDE of site '{name}' has {count} trainable parameters that no param site covers, so SVI will not "
            "train them. Register their module with pyro.module(name, module) in the model or guide, or silence "
            "this warning with requires_grad_(False).",
            UserWarning,
            stacklevel=4,
        )
