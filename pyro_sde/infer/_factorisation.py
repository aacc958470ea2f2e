"""Whether the log-density of a model is a sum over the times of a path site."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..distributions.kl import site_law
from ..distributions.sde_path import SDEPath
from ..guides.marginal_flow import MarginalPath
from .traces import CutValues, TracePair, sampled_traces

__all__ = ["check_product_over_times"]


def check_product_over_times(model: Callable[..., Any], guide: Callable[..., Any], args: tuple, kwargs: dict) -> None:
    r"""Raise ValueError unless model and guide use every `MarginalPath` site one time after another.

    For a sum over times :math:`\ell(z) = \sum_t \ell_t(z_t)` and two paths a and b, exchanging their states at a set of
    times leaves :math:`\ell(a) + \ell(b)` as it is. The sets are the bits of the number of a grid point, so that every
    pair of times is told apart by some set: a coupling of any two times is found, also by a law without derivatives.
    """
    with torch.enable_grad():
        raw = sampled_traces(model, guide, args, kwargs, _Leaves())
    names = [name for name, site in raw.guide.nodes.items() if _is_marginal(site)]
    if not names:
        msg = (
            "SimulationFreeELBO needs a site of the guide with a MarginalPath, this guide has none. Sample the path "
            "from MarginalFlow(...)(prior, grid, values, mask), or use PathELBO."
        )
        raise ValueError(msg)
    for name in names:
        _check_guide(raw.guide, name)
    with torch.no_grad():
        for name in names:
            _check_model(model, args, kwargs, raw, name)


class _Leaves(CutValues):
    """Makes the values of marginal path sites leaves, so that what depends on them can be found."""

    def _pyro_post_sample(self, msg: Any) -> None:  # noqa: ANN401 (a Pyro message)
        if _is_marginal(msg):
            msg["value"] = msg["value"].detach().requires_grad_()


def _is_marginal(site: Any) -> bool:  # noqa: ANN401
    if site["type"] != "sample" or site["is_observed"]:
        return False
    law = site_law(site["fn"])
    return law is not None and isinstance(law.law, MarginalPath)


def _check_guide(trace: Trace, name: str) -> None:
    path: Any = trace.nodes[name]["value"]
    for site in _sample_sites(trace):
        if site["name"] == name or not _has_density(site["fn"]):
            continue
        if _depends(site["value"], path) or _depends(site["fn"].log_prob(site["value"]), path):
            msg = (
                f"site '{site['name']}' of the guide depends on the path '{name}', which is given by its marginals "
                "only: its states at different times are no joint draw. Sample the site before the path, or use "
                "PosteriorSDE with PathELBO."
            )
            raise ValueError(msg)


def _check_model(model: Callable[..., Any], args: tuple, kwargs: dict, raw: TracePair, name: str) -> None:
    first: Tensor = raw.guide.nodes[name]["value"].detach()  # type: ignore[union-attr]
    law: Any = raw.guide.nodes[name]["fn"]
    second = law.sample().expand(first.shape)

    def terms(path: Tensor) -> dict[str, Tensor]:
        """Log-densities of all model sites but the path, with all other values those of the first run."""
        fixed = raw.model.copy()
        fixed.nodes[name] = {**raw.model.nodes[name], "value": path}  # type: ignore[assignment]
        with torch.random.fork_rng(devices=[]):  # dropout and the like fall as in the first run
            trace = poutine.trace(poutine.replay(model, trace=fixed)).get_trace(*args, **kwargs)
        return {
            str(site["name"]): torch.as_tensor(site["fn"].log_prob(site["value"]))
            for site in _sample_sites(trace)
            if site["name"] != name and _has_density(site["fn"])
        }

    points = first.shape[-2]
    once, twice = terms(first), terms(second)
    number = torch.arange(points, device=first.device)
    for bit in range(max(points - 1, 0).bit_length()):
        inside = ((number >> bit) & 1).bool().unsqueeze(-1)
        crossed = terms(torch.where(inside, first, second)), terms(torch.where(inside, second, first))
        for site, value in once.items():
            parts = value, twice[site], crossed[0][site], crossed[1][site]
            size = 1 + torch.stack([part.abs().max() for part in parts]).max()
            excess = (parts[0] + parts[1] - parts[2] - parts[3]).abs().max()
            if not bool(excess <= (1e-9 if value.dtype == torch.float64 else 1e-4) * size):
                msg = (
                    f"site '{site}' couples states of the path '{name}' at different times, or its log-density is not "
                    f"finite: exchanging the states at some times changes its log-density by {float(excess):.3g} more "
                    "than the sum of the single changes. A guide of marginals draws every time on its own, so its "
                    "bound would be wrong. Observe functions of one state each, or use PosteriorSDE with PathELBO."
                )
                raise ValueError(msg)


def _sample_sites(trace: Trace) -> Iterator[Any]:
    for site in trace.nodes.values():
        if site["type"] == "sample" and not site_is_subsample(site):
            yield site


def _has_density(fn: object) -> bool:
    """All laws but those of values that carry their ratio; the law of another path may depend on this one."""
    law = site_law(fn)
    return law is None or isinstance(law.law, SDEPath)


def _depends(value: object, path: Tensor) -> bool:
    if not isinstance(value, Tensor) or not value.requires_grad:
        return False
    return torch.autograd.grad(value.sum(), path, retain_graph=True, allow_unused=True)[0] is not None
