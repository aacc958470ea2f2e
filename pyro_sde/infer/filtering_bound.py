r"""Evidence lower bound by a particle filter, for `pyro.infer.SVI`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from pyro.distributions import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO
from pyro.poutine.runtime import Message
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import Independent

from ..distributions.base import PathDistribution
from ..distributions.kl import SiteLaw, site_law
from ..distributions.markov_path import MarkovPath
from ..ops._arguments import check_numbers
from ..ops.resampling import RESAMPLING
from ._particle_stepper import grid_of
from .emissions import PathEmission
from .particle_filter import particle_filter
from .traces import CutValues, TracePair, matched_traces, sampled_traces

__all__ = ["FilteringELBO"]


class FilteringELBO(ELBO):
    r"""Filtering variational objective :math:`E[\log \hat Z] \le \log p(y)` of a model with one path and one emission.

    The path of the guide moves the particles of a filter, the path law of the model and the emission weigh them. With
    P particles it is tighter than an importance-weighted bound of P whole paths wherever these degenerate: long series.
    Other latent sites (parameters of the laws) are sampled once by the guide and add their own terms.

    The model has one latent path site, and one observed site with the law `PathEmission` of the states at its
    observation times; the guide has the path site too:

        z = pyro.sample("z", SDEPath(prior, initial, grid))
        pyro.sample("y", PathEmission(decoder, grid.observed(z), mask), obs=y)

    Anything else that depends on the path is refused at the first call. Gradients are those of `particle_filter`: with
    "pathwise", the bound is optimised by the usual biased gradient, which leaves out the choice of ancestors. The loss
    is minus the bound. Cost: P particles times K steps, one after another, and their graph in memory.

    Args:
        num_particles: P, at least 1.
        resampling: "systematic", "stratified" or "multinomial".
        threshold: see `particle_filter`; 0 makes it the importance-weighted bound (IWAE).
        gradient: "pathwise" or "score", see `particle_filter`.

    Raises:
        ValueError: at construction if an option is not as described; at use if model and guide have another structure,
            with the site; and as `particle_filter`.

    References:
        Maddison et al. (2017), Filtering variational objectives, arXiv 1705.09279, eq. (4) and algorithm 1;
        Le et al. (2018), Auto-encoding sequential Monte Carlo, arXiv 1705.10306;
        Naesseth et al. (2018), Variational sequential Monte Carlo, arXiv 1705.11140.
    """

    def __init__(
        self,
        num_particles: int = 16,
        *,
        resampling: str = "systematic",
        threshold: float = 0.5,
        gradient: str = "pathwise",
    ) -> None:
        if isinstance(num_particles, bool) or not isinstance(num_particles, int) or num_particles < 1:
            msg = f"`num_particles` must be a positive integer, received {num_particles!r}."
            raise ValueError(msg)
        check_numbers(threshold=threshold)
        if not 0 <= threshold <= 1:
            msg = f"`threshold` must be a number in [0, 1], received {threshold!r}. It is a part of the particles."
            raise ValueError(msg)
        for name, value, choices in (("resampling", resampling, RESAMPLING), ("gradient", gradient, _GRADIENTS)):
            if value not in choices:
                msg = f"`{name}` must be one of {choices}, received {value!r}."
                raise ValueError(msg)
        super().__init__(num_particles=1)
        self.filter_particles = num_particles
        self.resampling = resampling
        self.threshold = threshold
        self.gradient = gradient
        self._structure_checked = False

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:  # noqa: ANN401
        """Minus the bound, an estimate without gradient."""
        with torch.no_grad():
            return float(self._loss(model, guide, args, kwargs))

    def loss_and_grads(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> float:
        """Minus the bound; its gradient is added to the parameters."""
        loss = self._loss(model, guide, args, kwargs)
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())

    def differentiable_loss(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Tensor:
        """Minus the bound, a scalar with gradient."""
        return self._loss(model, guide, args, kwargs)

    def _get_trace(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple, kwargs: dict
    ) -> tuple[Trace, Trace]:
        """Traces of model and guide, with one path each and no log-probabilities."""
        pair = matched_traces(sampled_traces(model, guide, args, kwargs), self.max_plate_nesting)
        return pair.model, pair.guide

    def _loss(self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple, kwargs: dict) -> Tensor:
        if not self._structure_checked:
            with torch.enable_grad():
                _check_structure(model, guide, args, kwargs)
            self._structure_checked = True
        raw = sampled_traces(model, guide, args, kwargs)
        sites = _find_sites(raw)
        pair = matched_traces(raw, self.max_plate_nesting)
        observed: Any = pair.model.nodes[sites.emission_name]
        filtered = particle_filter(
            sites.model.law,
            sites.emission.likelihood(observed["value"]),
            self.filter_particles,
            guide=sites.guide.law,
            resampling=self.resampling,
            threshold=self.threshold,
            gradient=self.gradient,
        )
        evidence = sites.model.finish(filtered.log_evidence)
        bound = scale_and_mask(evidence, observed["scale"], observed["mask"]).sum()
        for trace, sign in ((pair.model, 1), (pair.guide, -1)):
            for site in _other_sites(trace, sites):
                value = site["fn"].log_prob(site["value"])
                bound = bound + sign * scale_and_mask(value, site["scale"], site["mask"]).sum()
        return -bound


_GRADIENTS = ("pathwise", "score")


class _Sites(NamedTuple):
    path_name: str
    model: SiteLaw
    guide: SiteLaw
    emission_name: str
    emission: PathEmission


class _Leaf(CutValues):
    """Makes every sampled path a leaf, so that what depends on it can be found."""

    def _pyro_post_sample(self, msg: Message) -> None:
        if isinstance(msg["fn"], PathDistribution) and not msg["is_observed"] and isinstance(msg["value"], Tensor):
            msg["value"] = msg["value"].detach().requires_grad_(msg["value"].is_floating_point())


def _find_sites(pair: TracePair) -> _Sites:
    """The path site and the emission site.

    Raises:
        ValueError: if there is not exactly one of each, or a latent site of the guide is not reparameterised.
    """
    paths = {
        name: law
        for name, site in pair.model.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and (law := site_law(site["fn"])) is not None
    }
    if len(paths) != 1:
        msg = f"FilteringELBO needs a model with one latent path site, this one has {len(paths)}: {sorted(paths)}."
        raise ValueError(msg)
    ((path_name, model_law),) = paths.items()
    guide_law = site_law(pair.guide.nodes[path_name]["fn"]) if path_name in pair.guide.nodes else None
    if guide_law is None:
        msg = f"FilteringELBO needs a path law at site '{path_name}' of the guide: it moves the particles."
        raise ValueError(msg)
    emissions = {
        name: emission
        for name, site in pair.model.nodes.items()
        if site["type"] == "sample" and site["is_observed"] and (emission := _emission_of(site["fn"])) is not None
    }
    if len(emissions) != 1:
        msg = (
            f"FilteringELBO needs one observed site with the law PathEmission, this model has {len(emissions)}: "
            f"{sorted(emissions)}. Write it as PathEmission(emission, grid.observed(z), mask), which knows how to "
            "score one time."
        )
        raise ValueError(msg)
    ((emission_name, emission),) = emissions.items()
    for name, site in prune_subsample_sites(pair.guide).nodes.items():
        latent = site["type"] == "sample" and not site["is_observed"] and name != path_name
        if latent and not getattr(site["fn"], "has_rsample", False):
            msg = (
                f"site '{name}' of the guide is not reparameterised, and FilteringELBO has no score-function term for "
                "it. Use a reparameterised law, or pyro.infer.Trace_ELBO."
            )
            raise ValueError(msg)
    for law, side in ((model_law, "model"), (guide_law, "guide")):
        if law.mask is not None:
            msg = f"the path law of the {side} at site '{path_name}' has a mask; mask the observations instead."
            raise ValueError(msg)
    return _Sites(path_name, model_law, guide_law, emission_name, emission)


def _emission_of(fn: object) -> PathEmission | None:
    while isinstance(fn, MaskedDistribution | Independent):
        fn = fn.base_dist
    return fn if isinstance(fn, PathEmission) else None


def _check_structure(model: Callable[..., Any], guide: Callable[..., Any], args: tuple, kwargs: dict) -> None:
    """Raise ValueError if something but the emission depends on the path, or the emission on something else of it."""
    raw = sampled_traces(model, guide, args, kwargs, _Leaf())
    sites = _find_sites(raw)
    pair = matched_traces(raw, torch.inf)
    path: Any = pair.guide.nodes[sites.path_name]["value"]
    model_site, observed = pair.model.nodes[sites.path_name], pair.model.nodes[sites.emission_name]
    if not isinstance(observed["fn"], PathEmission):
        msg = f"site '{sites.emission_name}': give PathEmission its `mask`, and leave out `.mask` and `.to_event`."
        raise ValueError(msg)
    expected = _observed(sites.model.law, path)
    if sites.emission.states.shape != expected.shape or not torch.equal(sites.emission.states, expected):
        msg = (
            f"site '{sites.emission_name}': the `states` of PathEmission must be those of the path at its observation "
            f"times, grid.observed(z), of shape {tuple(expected.shape)}; received {tuple(sites.emission.states.shape)} "
            "or other values. What transforms the states belongs into the emission."
        )
        raise ValueError(msg)
    scales = [torch.as_tensor(site["scale"]) for site in (model_site, observed, pair.guide.nodes[sites.path_name])]
    if not all(torch.equal(scales[0].to(scale), scale) for scale in scales):
        msg = (
            f"sites '{sites.path_name}' and '{sites.emission_name}' have different scales, for which a filtering bound "
            "is not defined. Put both into the same plates, and leave `poutine.scale` out."
        )
        raise ValueError(msg)
    for trace in pair:
        for site in _other_sites(trace, sites):
            if _depends(site["fn"].log_prob(site["value"]), path) or _depends(site["value"], path):
                msg = (
                    f"site '{site['name']}' depends on the path '{sites.path_name}', which a filter cannot weigh one "
                    "time after another. Only the PathEmission may depend on it; use PathELBO for other models."
                )
                raise ValueError(msg)


def _other_sites(trace: Trace, sites: _Sites) -> Iterator[Any]:
    """Sample sites but path and emission."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and name not in (sites.path_name, sites.emission_name):
            yield site


def _observed(law: PathDistribution, path: Tensor) -> Tensor:
    """States at the observation times; all of them where a law has no grid."""
    return path if isinstance(law, MarkovPath) else grid_of(law).observed(path)


def _depends(value: object, path: Tensor) -> bool:
    if not isinstance(value, Tensor) or not value.requires_grad or not path.requires_grad:
        return False
    return torch.autograd.grad(value.sum(), path, retain_graph=True, allow_unused=True)[0] is not None
