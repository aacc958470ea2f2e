"""Traces of a guide and a model, with path sites named and reparameterised values cut where an estimator needs it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions import TransformModule
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match
from torch import Tensor
from torch.distributions import TransformedDistribution

from ..distributions.base import PathDistribution
from ..distributions.markov_path import MarkovPath

__all__ = ["CutValues", "PathNames", "TracePair", "matched_traces", "sampled_traces"]


class TracePair(NamedTuple):
    """Guide trace, and the trace of the model replayed on it; no log-probabilities yet."""

    model: Trace
    guide: Trace


class PathNames(Messenger):
    """Tells every path law the name of its sample site, for error messages."""

    def _pyro_sample(self, msg: Message) -> None:
        fn = msg["fn"]
        if isinstance(fn, PathDistribution) and not msg["is_observed"]:
            msg["fn"] = fn.named(str(msg["name"]))


class _Gate:
    """Lets a gradient through unless closed."""

    closed = False

    def __call__(self, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient) if self.closed else gradient


class CutValues(Messenger):
    r"""Replaces every reparameterised guide value by an identity of itself that can be cut in the backward pass.

    Between a value v as sampled and the value y that guide and model see stand two identities, v -> x -> y. Gradients
    with respect to y are the direct ones of whatever uses the value; while `cut` is open nothing flows on from x to v,
    so one backward pass over the sum of all :math:`\log q_i` gives, for every site, its derivative with all sampling
    paths held fixed. The guide need not run again.

    Sites whose law is a learned flow keep their value: Pyro's flows remember the sampled tensor and invert it
    otherwise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Tensor] = {}
        self._gate = _Gate()

    def _pyro_post_sample(self, msg: Message) -> None:
        value = msg["value"]
        if msg["is_observed"] or not isinstance(value, Tensor) or not value.requires_grad:
            return
        if not getattr(msg["fn"], "has_rsample", False) or _is_learned_flow(msg["fn"]):
            return
        through = value.view_as(value)
        through.register_hook(self._gate)  # a hook that knew `self.values` would be a cycle that no one collects
        cut = through.view_as(through)
        self.values[str(msg["name"])] = cut
        msg["value"] = cut

    @contextmanager
    def cut(self) -> Any:  # noqa: ANN401 (a context manager)
        """While open, no gradient flows from a value into the sampling that made it."""
        self._gate.closed = True
        try:
            yield
        finally:
            self._gate.closed = False


def sampled_traces(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple, kwargs: dict, cuts: CutValues | None = None
) -> TracePair:
    """Run guide and model once, as `pyro.infer.enum.get_importance_trace` does, without any log-probability.

    With `cuts` the values of the guide can be cut from their sampling.
    """
    unwrapped = poutine.unwrap(guide)
    # Outermost first: the cut acts last on a value, after the guide's own trace has asked for it.
    with cuts or nullcontext(), PathNames():
        if isinstance(unwrapped, Messenger):
            guide(*args, **kwargs)
            return TracePair(*unwrapped.get_traces())  # type: ignore[attr-defined]
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    with PathNames():
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    return TracePair(model_trace, guide_trace)


def matched_traces(pair: TracePair, max_plate_nesting: float) -> TracePair:
    """The pair without subsampling sites, after Pyro's check that model and guide match."""
    if is_validation_enabled():
        check_model_guide_match(pair.model, pair.guide, max_plate_nesting)
    return TracePair(prune_subsample_sites(pair.model), prune_subsample_sites(pair.guide))


def _is_learned_flow(fn: object) -> bool:
    while True:
        if isinstance(fn, MarkovPath):
            return fn.has_learned_flow
        if isinstance(fn, TransformedDistribution):
            return any(isinstance(transform, TransformModule) for transform in fn.transforms)
        base = getattr(fn, "base_dist", None)
        if base is None:
            return False
        fn = base
