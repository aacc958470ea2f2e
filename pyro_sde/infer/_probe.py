"""Runs of a model/guide pair that leave no mark: what `check` looks at."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor, nn

from ..distributions.kl import site_law
from ._mean_field import strip_law
from .traces import TracePair, sampled_traces

__all__ = [
    "Finding",
    "Probe",
    "Replay",
    "compared_sites",
    "is_scored",
    "owner_module",
    "probe",
    "sample_sites",
    "untouched",
]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a model/guide pair.

    Attributes:
        kind: which check found it; the kinds are listed at `check`.
        site: the sample or param site, None if the whole pair is meant.
        message: what is wrong and what to do.
    """

    kind: str
    site: str | None
    message: str

    def __str__(self) -> str:
        """One line for a report."""
        return f"[{self.kind}] {self.message}" if self.site is None else f"[{self.kind}] '{self.site}': {self.message}"


class Probe(NamedTuple):
    """A pair of programs with traces of one joint run; subsampling sites are pruned, log-probabilities not computed."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple
    kwargs: dict[str, Any]
    pair: TracePair
    nesting: int  # leftmost plate dimension, as a positive number
    indices: Trace  # the subsampling sites

    def replay_model(self, values: Mapping[str, Tensor]) -> Trace:
        """Trace of the model, without particles, at given latent values and the same subsample."""
        return self._replay(self.model, values, self.pair.guide)

    def replay_guide(self, values: Mapping[str, Tensor]) -> Trace | None:
        """Trace of the guide in the same way; None for guides that run the model themselves."""
        if isinstance(poutine.unwrap(self.guide), Messenger):
            return None
        return self._replay(self.guide, values, self.pair.guide)

    def _replay(self, program: Callable[..., Any], values: Mapping[str, Tensor], like: Trace) -> Trace:
        source = self.indices.copy()
        for name, value in values.items():
            site = like.nodes[name].copy()
            site["value"] = value
            source.add_node(name, **site)
        replayed = poutine.trace(poutine.replay(program, trace=source))
        return prune_subsample_sites(replayed.get_trace(*self.args, **self.kwargs))

    def vectorised(self, particles: int) -> TracePair:
        """Traces with a plate of particles left of all plates, as `vectorize_particles` makes it."""
        plate = pyro.plate("_check_particles", particles, dim=-self.nesting - 1)
        with poutine.replay(trace=self.indices), plate:
            pair = sampled_traces(self.model, self.guide, self.args, self.kwargs)
        return TracePair(*(prune_subsample_sites(trace) for trace in pair))


def sample_sites(trace: Trace) -> Iterator[tuple[str, Any]]:
    """Names and messages of the sample sites of a trace."""
    return ((name, site) for name, site in trace.nodes.items() if site["type"] == "sample")


class Replay(NamedTuple):
    """Log-probabilities of one site with and without vectorised particles."""

    name: str
    vectorised: Tensor
    alone: Tensor


def probe(model: Callable[..., Any], guide: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Probe:
    """Run a pair twice and keep the second run: lazy guides and modules have their final parameters then."""
    sampled_traces(model, guide, args, kwargs)
    pair = sampled_traces(model, guide, args, kwargs)
    unwrapped = poutine.unwrap(guide)
    sources = (*pair, unwrapped.trace) if isinstance(unwrapped, Messenger) else pair  # type: ignore[attr-defined]
    indices = Trace()
    nesting = 0
    for trace in sources:
        for name, site in sample_sites(trace):
            nesting = max([nesting, *(-(f.dim or 0) for f in site["cond_indep_stack"] if f.vectorized)])
            if site_is_subsample(site) and name not in indices.nodes:
                indices.add_node(name, **site)
    pruned = TracePair(*(prune_subsample_sites(trace) for trace in pair))
    return Probe(model, guide, args, kwargs, pruned, nesting, indices)


def _particle_values(probed: Probe, vectorised: TracePair, index: int) -> dict[str, Tensor] | None:
    """Latent values of one particle, in the shapes of a run without particles; None if they do not fit."""
    values: dict[str, Tensor] = {}
    alone_sites = dict(sample_sites(probed.pair.guide))
    for name, site in sample_sites(vectorised.guide):
        value, alone = site["value"], alone_sites[name]["value"]
        dim = -probed.nesting - 1 - site["fn"].event_dim
        if value.dim() >= -dim and value.shape[dim] > 1:
            value = value.select(dim, index)
        if value.numel() != alone.numel():
            return None
        values[name] = value.reshape(alone.shape)
    return values


def compared_sites(probed: Probe, vectorised: TracePair, index: int) -> Iterator[Replay]:
    """Log-probability of every site for one particle, from the vectorised run and from a run of its own."""
    values = _particle_values(probed, vectorised, index)
    if values is None:
        return
    programs = ((vectorised.model, probed.replay_model), (vectorised.guide, probed.replay_guide))
    for trace, run in programs:
        first, second = run(values), run(values)
        for single in (first, second):
            if single is not None:
                single.compute_log_prob(_has_density)
        for name, site in sample_sites(trace):
            if first is None or second is None or not _has_density(name, site) or name not in first.nodes:
                continue
            alone, again = first.nodes[name]["log_prob"].sum(), second.nodes[name]["log_prob"].sum()
            if not torch.equal(alone, again):
                continue  # the program itself is random, for example by dropout
            log_prob = site["log_prob"]
            dim = -probed.nesting - 1
            if log_prob.dim() >= -dim and log_prob.shape[dim] > 1:
                log_prob = log_prob.select(dim, index)
            yield Replay(name, log_prob.sum(), alone)


def _has_density(name: str, site: Any) -> bool:  # noqa: ANN401 (a Pyro message)
    """A Delta has none: round-off alone would make it minus infinity."""
    return site["type"] == "sample" and not isinstance(strip_law(site["fn"]), Delta) and is_scored(name, site)


def is_scored(_name: str, site: Any) -> bool:  # noqa: ANN401 (a Pyro message)
    """Whether a site has a log-probability; paths of some solvers have none, and are compared in closed form."""
    law = site_law(site["fn"]) if site["type"] == "sample" else None
    return law is None or law.law.has_density


@contextmanager
def untouched() -> Iterator[None]:
    """Restore Pyro's parameter store and all random number generators at the end, and warn of nothing meanwhile."""
    store = pyro.get_param_store()
    params, random = store.get_state(), get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        store.clear()
        store.set_state(params)
        set_rng_state(random)
        if devices:
            torch.cuda.set_rng_state_all(devices)


def owner_module(function: object) -> nn.Module | None:
    """The module that a program is, or whose method it is, looking through wrappers and partials."""
    while not isinstance(function, nn.Module):
        links = (getattr(function, link, None) for link in ("__self__", "__wrapped__", "func"))
        function = next((found for found in links if found is not None), None)
        if function is None:
            return None
    return function
