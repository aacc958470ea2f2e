"""Checks of what training would see: registered parameters, independent plates, vectorised particles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from ._probe import Finding, Probe, compared_sites, is_scored, owner_module, sample_sites
from .coverage import uncovered_parameters

__all__ = ["find_leaks", "find_overcounts", "find_stale", "find_unregistered"]


def find_unregistered(probed: Probe) -> Iterator[Finding]:
    """Parameters in the graph of a site that neither a param site nor a module of the pair covers."""
    advice = "SVI will not train them. Register their module with pyro.module(name, module) in the model or guide."
    missing = uncovered_parameters(probed.pair, probed.model, probed.guide)
    for name, count in missing.items():
        yield Finding("unregistered", name, f"its SDE has {count} parameters that no param site covers: {advice}")
    covered, has_params = _covered(probed)
    if not has_params:
        return  # trained without Pyro's store
    seen: set[int] = set()
    for trace in (probed.pair.guide, probed.pair.model):
        for name, site in sample_sites(trace):
            fresh = {id(p): p for p in _graph_parameters(site) if id(p) not in covered | seen}
            seen |= fresh.keys()
            if fresh and name not in missing:
                count = sum(p.numel() for p in fresh.values())
                text = f"its law uses {count} parameters that no param site covers: {advice}"
                yield Finding("unregistered", name, text)


def _covered(probed: Probe) -> tuple[set[int], bool]:
    """Identities of the parameters that an optimiser sees, and whether there is a param site at all."""
    sites = [site for trace in probed.pair for site in trace.nodes.values() if site["type"] == "param"]
    covered = {id(_unconstrained(site["value"])) for site in sites}
    for program in (probed.model, probed.guide):
        module = owner_module(program)
        covered |= set() if module is None else {id(parameter) for parameter in module.parameters()}
    return covered, bool(sites)


def _unconstrained(value: Any) -> Tensor:  # noqa: ANN401 (a tensor with Pyro's attributes)
    if hasattr(value, "_pyro_unconstrained_param"):  # subsampled
        return value._pyro_unconstrained_param
    return value.unconstrained() if hasattr(value, "unconstrained") else value


def _graph_parameters(site: Any) -> Iterator[nn.Parameter]:  # noqa: ANN401 (a Pyro message)
    """Parameters that the log-probability of a site was computed from."""
    total = site.get("log_prob_sum")
    stack = [total.grad_fn] if isinstance(total, Tensor) and total.grad_fn is not None else []
    visited = set(stack)
    while stack:
        node = stack.pop()
        variable = getattr(node, "variable", None)
        if isinstance(variable, nn.Parameter):
            yield variable
        following = {child for child, _ in node.next_functions if child is not None} - visited
        visited |= following
        stack.extend(following)


def find_stale(probed: Probe) -> Iterator[Finding]:
    """Modules whose own parameter is not the one in Pyro's store."""
    for trace in probed.pair:
        for name, site in trace.nodes.items():
            own = site["args"][1] if site["type"] == "param" and len(site["args"]) > 1 else None
            if isinstance(own, nn.Parameter) and _unconstrained(site["value"]) is not own:
                text = (
                    "the module computes with its own parameter, but Pyro's store holds and trains another one of this "
                    "name, as after param_store.load() or when two modules share a name. Use `load` of this package, "
                    "or pyro.clear_param_store() before building modules."
                )
                yield Finding("stale", name, text)


def find_leaks(probed: Probe) -> Iterator[Finding]:
    """Elements of a plate whose density depends on a latent of another element, by derivatives."""
    values = {
        name: site["value"].detach().clone().requires_grad_(site["value"].is_floating_point())
        for name, site in sample_sites(probed.pair.guide)
    }
    trace = probed.replay_model(values)
    for target, site in sample_sites(trace):
        try:
            log_prob = site["fn"].log_prob(site["value"])
        except (ValueError, RuntimeError):
            continue  # reported as a value
        for frame in site["cond_indep_stack"]:
            if frame.vectorized and frame.size > 1 and log_prob.requires_grad and log_prob.dim() >= -frame.dim:
                yield from _leaks_into(target, log_prob, frame, trace, values)


def _leaks_into(
    target: str,
    log_prob: Tensor,
    frame: Any,  # noqa: ANN401 (a plate of Pyro)
    trace: Trace,
    values: dict[str, Tensor],
) -> Iterator[Finding]:
    leaves = [name for name, value in values.items() if value.requires_grad and name in trace.nodes]
    if log_prob.shape[frame.dim] != frame.size or not leaves:
        return
    total = log_prob.select(frame.dim, 0).sum()
    tensors = [values[name] for name in leaves]
    gradients = torch.autograd.grad(total, tensors, retain_graph=True, allow_unused=True)
    for name, gradient in zip(leaves, gradients, strict=True):
        site: Any = trace.nodes[name]
        dim = frame.dim - site["fn"].event_dim
        if gradient is None or frame not in site["cond_indep_stack"] or gradient.shape[dim] != frame.size:
            continue
        if bool((gradient.narrow(dim, 1, frame.size - 1) != 0).any()):
            text = (
                f"in plate '{frame.name}', log p('{target}')[0] depends on '{name}' of other elements. Elements of a "
                f"plate must be independent: a latent of batch shape ({frame.size},) that meets the last dimension of "
                f"a state is broadcast along it; give it as ({frame.size}, 1), for example {name}.unsqueeze(-1)."
            )
            yield Finding("leak", target, text)


def find_overcounts(probed: Probe) -> Iterator[Finding]:
    """Sites that differ between vectorised particles and single runs."""
    try:
        with torch.no_grad():
            vectorised = probed.vectorised(2)
            for trace in vectorised:
                trace.compute_log_prob(is_scored)
    except (ValueError, RuntimeError, IndexError):
        return  # a program that cannot be vectorised says so by itself
    shapes = [finding for trace in vectorised for finding in _overcounted(trace, probed.nesting)]
    yield from shapes
    if shapes:
        return
    with torch.no_grad():
        for index in range(2):
            for site in compared_sites(probed, vectorised, index):
                tolerance = 1e-6 if site.alone.dtype == torch.float64 else 1e-3
                if not torch.isclose(site.vectorised, site.alone, tolerance, tolerance, equal_nan=True):
                    text = (
                        f"with vectorised particles its log_prob is {site.vectorised.item():.6g}, alone "
                        f"{site.alone.item():.6g} for the same values: the program does not broadcast over a particle "
                        "dimension on the left. Index and reduce with negative dimensions only."
                    )
                    yield Finding("overcount", site.name, text)


def _overcounted(trace: Trace, nesting: int) -> Iterator[Finding]:
    """Sites with dimensions left of the particles, or that are no plates."""
    for name, site in sample_sites(trace):
        if not is_scored(name, site):
            continue
        sizes = {frame.dim: frame.size for frame in site["cond_indep_stack"] if frame.vectorized}
        shape = tuple(site["log_prob"].shape)
        if any(shape[dim] not in (1, sizes.get(dim, 1)) for dim in range(-len(shape), 0)):
            text = (
                f"with vectorised particles its log_prob has shape {shape}, where {nesting} plates and one particle "
                "dimension are declared, so terms are counted several times. Time and state dimensions of a path must "
                "not be plates: declare them as event dimensions of the likelihood, .to_event(2)."
            )
            yield Finding("overcount", name, text)
