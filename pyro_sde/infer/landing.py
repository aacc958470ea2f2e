r"""Sticking the landing, jointly over all reparameterised sites of a guide.

The surrogate of an evidence bound contains :math:`-\log q_\phi(z_\phi)` through the entropy terms of the guide's sites.
Holding the parameters of the density fixed, :math:`-\log q_{\bar\phi}(z_\phi)`, drops a term of mean zero, and what is
left has no variance where the guide is the exact posterior. Done site by site, upstream sites keep their variance; done
for the sum over sites, none is left.

References:
    Roeder, Wu, Duvenaud (2017), Sticking the landing, arXiv 1703.09194, eq. (8).
    Xu et al. (2022), Infinitely deep Bayesian neural networks with SDEs, arXiv 2102.06559, section 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import is_identically_zero
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from .traces import CutValues

__all__ = ["frozen_guide", "land", "land_by_difference"]


def land(guide_trace: Trace, cuts: CutValues) -> None:
    r"""Give every entropy term the gradient of :math:`\log q_{\bar\phi}(z_\phi)`, from one pass through the densities.

    With :math:`g_i = \partial_{z_i} \sum_j \log q_j` at fixed parameters, the entropy term of site i becomes
    :math:`\log q_i + g_i \cdot (z_i - \bar z_i)`: its value is unchanged and its gradient is :math:`g_i\,dz_i/d\phi`.
    Scales and masks of the sites are in :math:`\log q_j` already.

    Args:
        guide_trace: trace with score parts.
        cuts: the values of its sites, cut from their sampling.

    References:
        Roeder, Wu, Duvenaud (2017), Sticking the landing, arXiv 1703.09194, eq. (8).
    """
    names = [name for name in cuts.values if name in guide_trace.nodes]
    total = sum((site["log_prob"].sum() for site in _reparameterised(guide_trace)), start=torch.zeros(()))
    if not names or not total.requires_grad:
        return
    values = [cuts.values[name] for name in names]
    with cuts.cut():
        gradients = torch.autograd.grad(total, values, retain_graph=True, allow_unused=True)
    for name, value, gradient in zip(names, values, gradients, strict=True):
        entropy = guide_trace.nodes[name]["log_prob"].detach().sum()
        if gradient is not None:
            entropy = entropy + (gradient * (value - value.detach())).sum()
        _set_entropy(guide_trace.nodes[name], entropy)


def frozen_guide(guide_trace: Trace, guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
    """The guide run again on its own values, detached: its densities then depend on its parameters only."""
    values = guide_trace.copy()
    for name, site in list(values.nodes.items()):
        if site["type"] == "sample" and isinstance(site["value"], Tensor):
            values.nodes[name] = {**site, "value": site["value"].detach()}  # type: ignore[assignment]
    unwrapped = poutine.unwrap(guide)
    if isinstance(unwrapped, Messenger):
        with poutine.replay(trace=values):
            guide(*args, **kwargs)
        return prune_subsample_sites(unwrapped.get_traces()[1])  # type: ignore[attr-defined]
    return prune_subsample_sites(poutine.trace(poutine.replay(guide, trace=values)).get_trace(*args, **kwargs))


def land_by_difference(guide_trace: Trace, frozen: Trace) -> None:
    r"""The same gradient as `land`, as that of :math:`\log q_\phi(z_\phi) - \log q_\phi(\bar z)`.

    TorchScript cannot record a gradient of a density with learned tensors; this form needs none. It costs a second run
    of the guide, and its zeros are differences of equal numbers.
    """
    frozen.compute_log_prob()
    for site in _reparameterised(guide_trace):
        fixed = frozen.nodes[site["name"]]["log_prob"]
        _set_entropy(site, (site["log_prob"] - fixed + fixed.detach()).sum())


def _set_entropy(site: Any, entropy: Tensor) -> None:  # noqa: ANN401 (a Pyro message)
    parts = site["score_parts"]
    site["score_parts"] = ScoreParts(parts.log_prob, parts.score_function, entropy)


def _reparameterised(guide_trace: Trace) -> list[Any]:
    return [
        site
        for site in guide_trace.nodes.values()
        if site["type"] == "sample" and is_identically_zero(site["score_parts"].score_function)
    ]
