"""Checks of one joint run of model and guide: values, types, counterparts, divergences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pyro.util import check_site_shape
from torch import Tensor

from ..distributions.kl import path_terms, site_law
from ._mean_field import mean_field_sites
from ._probe import Finding, Probe, is_scored, sample_sites

__all__ = [
    "find_bad_values",
    "find_dtypes",
    "find_infinite_kl",
    "find_mean_field",
    "find_shared_laws",
    "find_unmatched",
    "first_lines",
]


def first_lines(error: Exception) -> str:
    """Text of an error without the trace shapes that Pyro appends."""
    return str(error).split("\n Trace Shapes")[0].split("\nTrace Shapes")[0].strip()


def find_bad_values(probed: Probe) -> Iterator[Finding]:
    """Log-probabilities that cannot be computed, are not finite, or have dimensions that are no plates."""
    for trace in (probed.pair.guide, probed.pair.model):
        for name, site in list(sample_sites(trace)):
            if not is_scored(name, site):
                if _has_nan(site["value"]):
                    yield Finding("non_finite", name, _missing_text(site) or "the value is not finite.")
                continue
            try:
                trace.compute_log_prob(lambda other, _, name=name: other == name)
            except (ValueError, RuntimeError) as error:
                kind = "non_finite" if _has_nan(site["value"]) else "failure"
                yield Finding(kind, name, _missing_text(site) or first_lines(error))
                continue
            if not bool(torch.isfinite(torch.as_tensor(site["log_prob_sum"]))):
                text = _missing_text(site) or (
                    f"log_prob is {float(site['log_prob_sum'])}: the value is outside the support, or a parameter of "
                    f"{type(site['fn']).__name__} is at a boundary. Bound scales and rates away from 0 and infinity."
                )
                yield Finding("non_finite", name, text)
            try:
                check_site_shape(site, probed.nesting)
            except ValueError as error:
                yield Finding("shape", name, first_lines(error))


def _has_nan(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all())


def _missing_text(site: Any) -> str | None:  # noqa: ANN401 (a Pyro message)
    if site["is_observed"] and _has_nan(site["value"]):
        return (
            "the observation is not finite. Replace missing values by any number and mask them, "
            "dist.Normal(...).mask(observed).to_event(...)."
        )
    return (
        "the value is not finite: bound the coefficients or use a smaller max_step."
        if _has_nan(site["value"])
        else None
    )


def find_dtypes(probed: Probe) -> Iterator[Finding]:
    """Floating-point types of values and parameters."""
    names: dict[torch.dtype, list[str]] = {}
    for trace in probed.pair:
        for name, site in trace.nodes.items():
            value: Any = site["value"] if site["type"] in ("sample", "param") else None
            if isinstance(value, Tensor) and value.is_floating_point() and name not in names.get(value.dtype, ()):
                names.setdefault(value.dtype, []).append(name)
    if len(names) > 1:
        listed = "; ".join(f"{dtype}: {', '.join(entries[:4])}" for dtype, entries in names.items())
        yield Finding(
            "dtype", None, f"several floating-point types meet and are promoted silently ({listed}). Use one."
        )


def find_unmatched(probed: Probe) -> Iterator[Finding]:
    """Latent sites on one side only."""
    model, guide = probed.pair
    for name, site in sample_sites(guide):
        if name in model.nodes:
            continue
        auxiliary = (site["infer"] or {}).get("is_auxiliary")
        if site_law(site["fn"]) is not None:
            text = (
                "a path of the guide that the model does not have: the loss is not a bound. Add a reverse model "
                f"r('{name}' | other sites) to the model."
            )
            yield Finding("unmatched", name, f"an auxiliary path without reverse model; {text}" if auxiliary else text)
        elif not auxiliary:
            text = 'the model has no such site. Remove it, or mark it infer={"is_auxiliary": True}.'
            yield Finding("unmatched", name, text)
    for name, site in model.nodes.items():
        summed = (site.get("infer") or {}).get("enumerate")
        if site["type"] == "sample" and not site["is_observed"] and name not in guide.nodes and not summed:
            text = (
                "a latent site of the model that the guide does not have: it is drawn from the prior. Sample it there."
            )
            yield Finding("unmatched", name, text)


def find_infinite_kl(probed: Probe) -> Iterator[Finding]:
    """Path sites whose divergence is infinite."""
    model, guide = probed.pair
    for name, site in sample_sites(guide):
        q = site_law(site["fn"])
        p = site_law(model.nodes[name]["fn"]) if q is not None and name in model.nodes else None
        if q is None or p is None:
            continue
        try:
            q.law.check_same_grid(p.law)
        except ValueError as error:
            yield Finding("grid", name, str(error))
            continue
        try:
            with torch.no_grad():
                path_terms(q.law, p.law, site["value"], closed=not q.law.has_density)
        except ValueError as error:
            yield Finding("infinite_kl", name, str(error))
        except NotImplementedError:
            continue  # chains of different kinds; their densities are compared by value


def find_mean_field(probed: Probe) -> Iterator[Finding]:
    """Path sites whose guide treats their states as independent or known."""
    for name, message in mean_field_sites(probed.pair).items():
        yield Finding("mean_field", name, message)


def find_shared_laws(probed: Probe) -> Iterator[Finding]:
    """One law object of the guide at two sites; copies of a law keep the object that is its event shape."""
    owners: dict[int, str] = {}
    for name, site in sample_sites(probed.pair.guide):
        law = site_law(site["fn"])
        if law is None:
            continue
        first = owners.setdefault(id(law.law.event_shape), name)
        if first != name:
            text = (
                f"the guide samples it from the law object of site '{first}', so both have one posterior and "
                "TraceMeanField_ELBO cannot tell their paths apart. Build a law for each site."
            )
            yield Finding("shared_law", name, text)
