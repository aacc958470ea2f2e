"""Runs of a model at given latent values: draws, new observations and the log-density of every data point."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, MaskedDistribution, Unit
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor
from torch.distributions import Independent

from ..distributions.kl import site_law
from ..infer.streams import seeded
from ..infer.traces import TracePair, sampled_traces
from ..ops._arguments import check_counts
from ..ops.grid import TimeGrid

__all__ = [
    "ModelRuns",
    "SiteGroups",
    "evaluation",
    "guide_runs",
    "plate_nesting",
    "sample_runs",
    "scored_sites",
    "site_groups",
]

Model = Callable[..., Any]


class ModelRuns(NamedTuple):
    """A model and its runs: each the latent values that were given, and the trace of the model at them."""

    model: Model
    args: tuple
    kwargs: Mapping[str, Any]
    runs: Iterable[tuple[dict[str, Tensor], Trace]]


class SiteGroups(NamedTuple):
    """Tensors of every site by ArviZ group, sampled ones ``(S, *shape)``, and names of their dimensions."""

    groups: dict[str, dict[str, Tensor]]
    dims: dict[str, list[str | None]]
    coords: dict[str, Tensor]


class _DataPoints(NamedTuple):
    """Log-density of every data point of an observed site, and which of them are observed (None = all)."""

    log_prob: Tensor
    observed: Tensor | None


@contextmanager
def evaluation(seed: int | None) -> Iterator[None]:
    """No gradients, a random stream of its own, and a parameter store that is as before afterwards."""
    store = pyro.get_param_store()
    with torch.no_grad(), seeded(seed, "sampling"), store.scope(store.get_state()):
        yield


def scored_sites(trace: Trace) -> list[Any]:
    """Sample sites of a trace, without those that only choose a subsample."""
    return [site for site in prune_subsample_sites(trace).nodes.values() if site["type"] == "sample"]


def plate_nesting(pair: TracePair) -> int:
    """Number of dimensions that the plates of model and guide take."""
    dims = [f.dim for trace in pair for site in scored_sites(trace) for f in site["cond_indep_stack"] if f.vectorized]
    return -min(dims, default=0)


def guide_runs(model: Model, guide: Model, num_samples: int, args: tuple, kwargs: Mapping[str, Any]) -> ModelRuns:
    """The model replayed on `num_samples` runs of the guide.

    Raises:
        TypeError: if `num_samples` is no whole number.
        ValueError: if it is not positive.
    """
    check_counts(num_samples=num_samples)

    def runs() -> Iterator[tuple[dict[str, Tensor], Trace]]:
        for _ in range(num_samples):
            pair = sampled_traces(model, guide, args, dict(kwargs))
            sites: dict[str, Any] = dict(pair.guide.nodes)
            given = {
                name: site["value"]
                for name, site in sites.items()
                if site["type"] == "sample" and not site["is_observed"] and name in pair.model.nodes
            }
            yield given, pair.model

    return ModelRuns(model, args, kwargs, runs())


def sample_runs(
    model: Model, samples: Mapping[str, Tensor], num_samples: int, args: tuple, kwargs: Mapping[str, Any]
) -> ModelRuns:
    """The model conditioned on each of the `num_samples` rows of `samples`."""

    def runs() -> Iterator[tuple[dict[str, Tensor], Trace]]:
        for index in range(num_samples):
            given = {name: value[index] for name, value in samples.items()}
            yield given, poutine.trace(poutine.condition(model, data=given)).get_trace(*args, **kwargs)

    return ModelRuns(model, args, kwargs, runs())


def site_groups(runs: ModelRuns) -> SiteGroups:
    """Posterior, posterior predictive, log-likelihood, data and grid times of every site, stacked over the runs.

    A site that is not observed everywhere has one dimension of its observed entries, ``<site>_observation``, in all
    three groups; their indices in the full tensor are constant data.
    """
    drawn: dict[str, list[dict[str, Tensor]]] = {"posterior": [], "posterior_predictive": [], "log_likelihood": []}
    fixed: dict[str, dict[str, Tensor]] = {"observed_data": {}, "constant_data": {}}
    dims: dict[str, list[str | None]] = {}
    coords: dict[str, Tensor] = {}
    for given, trace in runs.runs:
        sites: dict[str, Any] = dict(trace.nodes)
        data = [name for name, site in sites.items() if _is_data(site) and name not in given]
        latent = [name for name, site in sites.items() if _is_latent(site) and name not in data]
        points = {name: _data_points(sites[name]) for name in data}
        if not dims:
            dims, fixed["constant_data"], coords = _layout(sites, latent, points)
            fixed["observed_data"] = {n: _flat(sites[n]["value"], points[n].observed) for n in data}
        drawn["posterior"].append({name: sites[name]["value"] for name in latent})
        drawn["log_likelihood"].append({n: _flat(p.log_prob, p.observed) for n, p in points.items()})
        fresh = _fresh(runs, given)
        drawn["posterior_predictive"].append({n: _flat(fresh[n], p.observed) for n, p in points.items()})
    stacked = {group: _stack(draws) for group, draws in drawn.items()}
    return SiteGroups({**stacked, **fixed}, dims, coords)


def _fresh(runs: ModelRuns, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """New values of the observed sites at the same latent values; data sites may depend on each other."""
    model = poutine.condition(poutine.uncondition(runs.model), data=dict(given))
    trace = poutine.trace(model).get_trace(*runs.args, **runs.kwargs)
    sites: dict[str, Any] = dict(trace.nodes)
    return {name: site["value"] for name, site in sites.items() if site["type"] == "sample"}


def _is_deterministic(site: Any) -> bool:  # noqa: ANN401 (a Pyro message)
    """`pyro.deterministic`, or the point mass that a reparameterisation leaves behind."""
    if (site["infer"] or {}).get("_deterministic", False):
        return True
    fn = site["fn"]
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return isinstance(fn, MaskedDistribution) and isinstance(fn.base_dist, Delta) and fn._mask is False


def _is_data(site: Any) -> bool:  # noqa: ANN401
    return (
        site["type"] == "sample"
        and site["is_observed"]
        and not site_is_subsample(site)
        and not _is_deterministic(site)
        and not isinstance(site["fn"], Unit)  # `pyro.factor` adds to a density, and is no data
    )


def _is_latent(site: Any) -> bool:  # noqa: ANN401
    return site["type"] == "sample" and not site_is_subsample(site) and not isinstance(site["fn"], Unit)


def _data_points(site: Any) -> _DataPoints:  # noqa: ANN401
    """Log-density of every entry; `.to_event` is undone, since it makes one point of what are many."""
    fn, observed = site["fn"], None if site["mask"] is None else torch.as_tensor(site["mask"])
    while isinstance(fn, Independent | MaskedDistribution):
        if isinstance(fn, MaskedDistribution):
            mask = torch.as_tensor(fn._mask)
            observed = mask if observed is None else mask & observed
        elif observed is not None:  # a mask outside `to_event` covers whole events
            observed = observed[(..., *[None] * fn.reinterpreted_batch_ndims)]
        fn = fn.base_dist
    log_prob = fn.log_prob(site["value"])
    if observed is None or bool(observed.all()):
        return _DataPoints(log_prob, None)
    return _DataPoints(log_prob, observed.to(log_prob.device).expand(log_prob.shape))


def _flat(value: Tensor, observed: Tensor | None) -> Tensor:
    """Observed entries ``(P, *event)`` of a value; the value itself if all are."""
    if observed is None:
        return value
    event = value.shape[observed.dim() :]
    return value.expand(*observed.shape, *event)[observed]


def _stack(draws: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]} if draws else {}


def _layout(
    sites: Mapping[str, Any], latent: list[str], points: Mapping[str, _DataPoints]
) -> tuple[dict[str, list[str | None]], dict[str, Tensor], dict[str, Tensor]]:
    """Dimension names, constant data, and the coordinate of "time" if one grid serves all paths."""
    dims = {name: _dimensions(sites[name], name in points) for name in (*latent, *points)}
    shapes = {name: tuple(sites[name]["value"].shape) for name in dims}
    _separate(dims, shapes)
    constant: dict[str, Tensor] = {}
    for name, (_, observed) in points.items():
        if observed is None:
            continue
        full, own = dims[name], f"{name}_observation"
        for position, index in enumerate(observed.nonzero().unbind(-1)):
            label = f"{name}_{full[position] or f'dim_{position}'}"
            constant[label], dims[label] = index, [own]
        dims[name] = [own, *full[observed.dim() :]]
    grids = {name: grid for name in latent if (grid := _grid_times(sites[name])) is not None}
    coords: dict[str, Tensor] = {}
    for name, times in grids.items():
        label = dims[name][-2]
        constant[f"{name}_times"] = times
        dims[f"{name}_times"] = [*dims[name][-1 - times.dim() : -2], label]
        if times.dim() == 1 and label is not None and all(torch.equal(times, g) for g in grids.values()):
            coords[label] = times
    return dims, constant, coords


def _grid_times(site: Any) -> Tensor | None:  # noqa: ANN401
    law = site_law(site["fn"])
    grid = None if law is None else getattr(law.law, "grid", None)  # laws in discrete time have none
    return grid.times if isinstance(grid, TimeGrid) else None


def _dimensions(site: Any, is_data: bool) -> list[str | None]:  # noqa: ANN401
    """Plates give their names to batch dimensions; events of paths and of data have the usual ones."""
    fn, rank = site["fn"], site["value"].dim()
    events = min(fn.event_dim, rank)
    plates = {frame.dim: frame.name for frame in site["cond_indep_stack"] if frame.vectorized}
    names: list[str | None] = [plates.get(dim) for dim in range(events - rank, 0)]
    if site_law(fn) is not None or (events == 2 and _is_path_point(site)):
        usual = ["time", "state"]
    else:
        usual = ["observed_time", "channel"] if is_data else []
    tail = usual[-events:] if events else []
    return [*names, *[None] * (events - len(tail)), *tail]


def _is_path_point(site: Any) -> bool:  # noqa: ANN401
    """A path that `PathNoiseReparam` has made deterministic: its law is gone, its event has two dimensions."""
    return _is_deterministic(site) and not (site["infer"] or {}).get("_deterministic", False)


def _separate(dims: dict[str, list[str | None]], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Put the name of the site before a dimension that two sites have at different sizes."""
    sizes: dict[str, set[int]] = {}
    for name, labels in dims.items():
        for label, size in zip(labels, shapes[name], strict=True):
            if label is not None:
                sizes.setdefault(label, set()).add(size)
    for name, labels in dims.items():
        dims[name] = [f"{name}_{label}" if label and len(sizes[label]) > 1 else label for label in labels]
