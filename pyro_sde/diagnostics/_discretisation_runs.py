"""One model/guide pair on grids of several step sizes, with the same random numbers on all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions.distribution import Distribution
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from pyro.util import check_site_shape
from torch import Tensor

from ..distributions.kl import site_law
from ..infer.elbo import PathELBO
from ..infer.streams import seeded
from ..infer.traces import TracePair, sampled_traces
from ..ops.grid import TimeGrid
from ._model_runs import plate_nesting, scored_sites

__all__ = ["Call", "Pair", "Runs", "SharedNoise", "grids_in", "one_by_one", "path_sites", "refined", "vectorised"]

_SEED = 0

Program = Callable[..., Any]


class Call(NamedTuple):
    """Arguments of model and guide."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Pair(NamedTuple):
    """The two programs."""

    model: Program
    guide: Program


class Runs(NamedTuple):
    """Draws of one pair on one grid.

    Attributes:
        values: evidence bound of every draw, ``(P,)``.
        traces: of all draws together, or one pair per draw.
        nesting: plate dimensions, with that of the draws, if there is one; else 0.
    """

    values: Tensor
    traces: list[TracePair]
    nesting: int

    def series(self) -> float:
        """Number of series: the elements of the largest path site, times the scale of its plates."""
        most = 1.0
        for name in path_sites(self.traces[0]):
            site: Any = self.traces[0].model.nodes[name]
            count = site["log_prob"].numel() / (len(self.values) if self.nesting else 1)
            most = max(most, count * float(torch.as_tensor(site["scale"]).double().mean()))
        return most


def grids_in(call: Call) -> list[TimeGrid]:
    """All grids among the arguments, also inside lists, tuples and dictionaries."""
    found: dict[int, TimeGrid] = {}

    def note(grid: TimeGrid) -> TimeGrid:
        return found.setdefault(id(grid), grid)

    for part in call:
        _replace(part, note)
    return list(found.values())


def refined(call: Call, factor: int) -> Call:
    """The arguments with every step of every grid cut into `factor` steps; one grid stays one grid."""
    known = {id(grid): grid.refine(factor) for grid in grids_in(call)}

    def finer(grid: TimeGrid) -> TimeGrid:
        return known[id(grid)]

    return Call(_replace(call.args, finer), _replace(call.kwargs, finer))


def _replace(value: Any, grid: Callable[[TimeGrid], TimeGrid]) -> Any:  # noqa: ANN401 (whatever a model takes)
    if isinstance(value, TimeGrid):
        return grid(value)
    if isinstance(value, dict):
        return {key: _replace(item, grid) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_replace(item, grid) for item in value]
        if hasattr(value, "_fields"):  # a named tuple
            return type(value)(*items)
        return type(value)(items)
    return value


def path_sites(traces: TracePair) -> list[str]:
    """Latent sites that are a path in model or guide."""
    return [
        name
        for name, site in traces.guide.nodes.items()
        if site["type"] == "sample"
        and name in traces.model.nodes
        and (site_law(site["fn"]) or site_law(traces.model.nodes[name]["fn"]))
    ]


def vectorised(pair: Pair, call: Call, elbo: PathELBO, refinement: tuple[int, int]) -> Runs:
    """All draws as one plate outside all others.

    Args:
        pair: model and guide.
        call: their arguments, refined.
        elbo: the bound, with as many vectorised particles as there are to be draws, at least 2.
        refinement: factor of the grids of `call`, and a multiple that all factors divide.
    """
    if elbo.max_plate_nesting == math.inf:
        elbo.max_plate_nesting = 1 + _nesting(pair, call)
    with torch.no_grad(), seeded(_SEED, "draws"), SharedNoise("all", refinement):
        ((model, guide),) = elbo._get_traces(pair.model, pair.guide, call.args, call.kwargs)
    traces, nesting = TracePair(model, guide), int(elbo.max_plate_nesting)
    return Runs(_values(traces, elbo.num_particles, nesting), [traces], nesting)


def _nesting(pair: Pair, call: Call) -> int:
    """Dimensions of the plates, that of the draws apart, from one run; Pyro's own guess of them writes to its log."""
    with torch.no_grad(), seeded(_SEED, "guess"), poutine.block():
        traces = sampled_traces(pair.model, pair.guide, call.args, call.kwargs)
    if is_validation_enabled():  # as Pyro does, while every dimension must still be a plate
        for trace in traces:
            trace.compute_log_prob()
            for site in scored_sites(trace):
                check_site_shape(site, math.inf)  # type: ignore[arg-type]
    return plate_nesting(traces)


def one_by_one(pair: Pair, call: Call, elbo: PathELBO, refinement: tuple[int, int]) -> Runs:
    """The same for programs that another plate would break."""
    single = PathELBO(elbo.kl)
    traces = []
    for draw in range(elbo.num_particles):
        with torch.no_grad(), seeded(_SEED, "draws", draw), SharedNoise(str(draw), refinement):
            traces += [
                TracePair(*found) for found in single._get_traces(pair.model, pair.guide, call.args, call.kwargs)
            ]
    return Runs(torch.cat([_values(found, 1, 0) for found in traces]), traces, 0)


def _values(traces: TracePair, num_draws: int, nesting: int) -> Tensor:
    """Evidence bound of every draw."""
    total = torch.zeros(num_draws, dtype=torch.float64)
    for trace, sign in ((traces.model, 1.0), (traces.guide, -1.0)):
        for term in _terms(trace):
            term = term.double().cpu()
            if nesting and term.dim() >= nesting:
                term = term.movedim(-nesting, 0)
                term = term.reshape(len(term), -1).sum(-1)  # (P,) or (1,)
            else:
                term = term.sum()
            total = total + sign * term
    return total


def _terms(trace: Any) -> Iterator[Tensor]:  # noqa: ANN401 (a Pyro trace)
    for site in trace.nodes.values():
        if site["type"] == "sample":
            yield torch.as_tensor(site["log_prob"])


class SharedNoise(Messenger):
    r"""Gives every latent site a stream of its own, and path sites one Brownian motion on all grids.

    The standard normals of a path are drawn on the finest grid that all factors divide. A step that is m of its steps
    long has the increment :math:`m^{-1/2} \sum_j \xi_j`, standard normal again, so what separates two grids is the step
    size and not chance.

    Args:
        key: name of the stream.
        refinement: factor of the grids in use, and the multiple that all factors divide.
    """

    def __init__(self, key: str, refinement: tuple[int, int]) -> None:
        super().__init__()
        self.key = key
        self.factor, self.finest = refinement

    def _pyro_sample(self, msg: Message) -> None:
        fn: Any = msg["fn"]
        if msg["is_observed"] or msg["value"] is not None or site_is_subsample(msg):
            return
        if not isinstance(fn, Distribution):
            return
        with seeded(_SEED, self.key, str(msg["name"])):
            site = site_law(fn)
            if site is not None and _takes_noise(site.law):
                msg["value"] = self._path(site.law)
            else:
                msg["value"] = fn(*msg["args"], **msg["kwargs"])

    def _path(self, law: Any) -> Tensor:  # noqa: ANN401 (a path law with `solve`)
        initial = law.initial.rsample() if law.initial.has_rsample else law.initial.sample()
        *batch, steps, width = law.noise_shape()
        group = self.finest // self.factor
        normal = torch.randn(*batch, steps, group, width, dtype=initial.dtype, device=initial.device)
        return law.solve(initial, normal.sum(-2) / math.sqrt(group))


def _takes_noise(law: Any) -> bool:  # noqa: ANN401 (a path law)
    """Whether a path is a function of standard normals that add up over steps as increments of Brownian motion do."""
    solver = getattr(law, "solver", None)
    plain = getattr(solver, "levy", "none") == "none" and getattr(law, "brownian", None) is None
    return plain and hasattr(law, "solve") and hasattr(law, "noise_shape")
