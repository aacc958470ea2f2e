"""Which parameters of the coefficients of path sites an optimiser will see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from ..distributions.kl import site_law
from .traces import TracePair

__all__ = ["uncovered_parameters"]


def uncovered_parameters(pair: TracePair, model: Callable[..., Any], guide: Callable[..., Any]) -> dict[str, int]:
    """Number of trainable scalars of each path site's SDE that no param site and no module of model or guide covers.

    Empty if the traces have no param site at all: then the parameters are trained without Pyro's store.
    """
    params = [site for trace in pair for site in trace.nodes.values() if site["type"] == "param"]
    if not params:
        return {}
    covered = {id(_unconstrained(site["value"])) for site in params}
    covered |= {id(parameter) for function in (model, guide) for parameter in _module_parameters(function)}
    missing: dict[str, int] = {}
    for trace in pair:
        for name, site in trace.nodes.items():
            law = site_law(site["fn"]) if site["type"] == "sample" else None
            sde = None if law is None else getattr(law.law, "sde", getattr(law.law, "transition", None))
            if not isinstance(sde, nn.Module):
                continue
            parameters = [p for p in sde.parameters() if p.requires_grad and id(p) not in covered]
            if parameters:
                missing[name] = max(missing.get(name, 0), sum(p.numel() for p in parameters))
    return missing


def _unconstrained(value: Any) -> Tensor:  # noqa: ANN401
    unconstrained = getattr(value, "unconstrained", None)
    return value if unconstrained is None else unconstrained()


def _module_parameters(function: object) -> Iterator[nn.Parameter]:
    while not isinstance(function, nn.Module):
        owner = (
            getattr(function, "__self__", None)
            or getattr(function, "__wrapped__", None)
            or getattr(function, "func", None)
        )
        if owner is None:
            return
        function = owner
    yield from function.parameters()
