"""Path sites whose guide treats the states of a path as independent, or as known."""

from __future__ import annotations

import warnings

from pyro.distributions import Delta, MaskedDistribution, Normal, TransformModule
from pyro.poutine.trace_struct import Trace
from torch.distributions import Independent, TransformedDistribution

from ..distributions.kl import site_law
from .traces import TracePair

__all__ = ["mean_field_sites", "strip_law", "warn_mean_field"]

_ADVICE = (
    "Neighbouring states of a path are nearly equal, so the bound gets worse without limit as the grid is refined. Use "
    "AutoSDE, AutoGaussianMarkov or a PosteriorSDE, or AutoMultivariateNormal on the model reparameterised by "
    "PathNoiseReparam."
)


def mean_field_sites(pair: TracePair) -> dict[str, str]:
    """Latent path sites of the model with a mean-field or point guide, and what is wrong with each.

    Costs a look at the laws of the guide, no evaluation. Covers AutoNormal, AutoDiagonalNormal, AutoDelta, their effect
    versions, and the same written by hand.
    """
    found: dict[str, str] = {}
    for name, site in pair.model.nodes.items():
        if site["type"] != "sample" or site["is_observed"] or site_law(site["fn"]) is None:
            continue
        guide_site = pair.guide.nodes.get(name)
        if guide_site is None or site_law(guide_site["fn"]) is not None:
            continue
        if _is_diagonal(guide_site["fn"]) or _comes_from_diagonal(name, guide_site["fn"], pair.guide):
            found[name] = f"the guide treats the states of the path as independent Normals. {_ADVICE}"
        elif isinstance(strip_law(guide_site["fn"]), Delta) and not _auxiliary(pair.guide):
            found[name] = f"the guide is a point mass on the path, whose bound is meaningless. {_ADVICE}"
    return found


def warn_mean_field(pair: TracePair) -> None:
    """Warn once per path site with a mean-field guide; an estimator calls it at its first evaluation."""
    for name, message in mean_field_sites(pair).items():
        warnings.warn(f"site '{name}': {message}", UserWarning, stacklevel=2)


def _auxiliary(guide: Trace) -> dict[str, object]:
    """Laws of the auxiliary sites, from which an automatic guide computes the others."""
    return {
        name: site["fn"]
        for name, site in guide.nodes.items()
        if site["type"] == "sample" and (site["infer"] or {}).get("is_auxiliary")
    }


def _comes_from_diagonal(name: str, fn: object, guide: Trace) -> bool:
    if not isinstance(strip_law(fn), Delta):
        return False
    return any(
        _is_diagonal(law) and (source == f"{name}_unconstrained" or source.startswith("_Auto"))
        for source, law in _auxiliary(guide).items()
    )


def _is_diagonal(fn: object) -> bool:
    fn = strip_law(fn)
    if isinstance(fn, TransformedDistribution):
        if any(isinstance(transform, TransformModule) for transform in fn.transforms):
            return False
        fn = strip_law(fn.base_dist)
    return isinstance(fn, Normal)


def strip_law(fn: object) -> object:
    """A law without `.mask` and `.to_event`."""
    while isinstance(fn, MaskedDistribution | Independent):
        fn = fn.base_dist
    return fn
