"""How noisy value and gradient of an evidence bound are under each estimator of the divergence."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from ..infer.elbo import PathELBO
from ..infer.streams import seeded
from ._discretisation_runs import Call, Pair

__all__ = ["ESTIMATORS", "GradientRow", "gradient_rows"]

ESTIMATORS = ("full", "closed", "stl")


class GradientRow(NamedTuple):
    r"""Scatter of one estimator over draws of one particle.

    Attributes:
        kl: the estimator.
        variance: total variance of the gradient: the sum over all (unconstrained) parameters; NaN if not available.
        norm: Euclidean norm of the mean gradient.
        norm_error: what chance alone adds to it, :math:`\sqrt{\mathrm{variance} / n}`.
        value_deviation: standard deviation of the value of the bound.
        reason: why the estimator is not available; empty if it is.
    """

    kl: str
    variance: float
    norm: float
    norm_error: float
    value_deviation: float
    reason: str = ""


def gradient_rows(pair: Pair, call: Call, num_draws: int) -> list[GradientRow]:
    """One row per estimator; all see the same random numbers. Gradients of the caller are left as they were."""
    return [_row(pair, call, kl, num_draws) for kl in ESTIMATORS]


def _row(pair: Pair, call: Call, kl: str, num_draws: int) -> GradientRow:
    elbo = PathELBO(kl)
    values, gradients = [], []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the run before has given them
            for draw in range(num_draws):
                with seeded(0, "gradient", draw):
                    value, gradient = _draw(elbo, pair, call)
                values.append(value)
                gradients.append(gradient)
    except ValueError as error:
        return GradientRow(kl, *[math.nan] * 4, reason=str(error).split(". ")[0])
    stacked, bound = torch.stack(gradients), torch.tensor(values, dtype=torch.float64)
    variance = float(stacked.var(0).sum())
    norm = float(stacked.mean(0).norm())
    return GradientRow(kl, variance, norm, math.sqrt(variance / num_draws), float(bound.std()))


def _draw(elbo: PathELBO, pair: Pair, call: Call) -> tuple[float, Tensor]:
    """Value of the bound and its gradient with respect to all parameters, flat."""
    with torch.enable_grad(), poutine.trace(param_only=True) as found:
        loss: Any = elbo.differentiable_loss(pair.model, pair.guide, *call.args, **call.kwargs)
    parameters = list({id(p): p for p in map(_unconstrained, found.trace.nodes.values()) if p.requires_grad}.values())
    if not parameters or not torch.as_tensor(loss).requires_grad:
        msg = "no parameter has a gradient; register modules by pyro.module and tensors by pyro.param"
        raise ValueError(msg)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    flat = [
        (torch.zeros_like(p) if gradient is None else gradient).double().reshape(-1).cpu()
        for p, gradient in zip(parameters, gradients, strict=True)
    ]
    return -float(loss), torch.cat(flat)


def _unconstrained(site: Any) -> Tensor:  # noqa: ANN401 (a Pyro message)
    value = site["value"]
    unconstrained = getattr(value, "unconstrained", None)
    return value if unconstrained is None else unconstrained()
