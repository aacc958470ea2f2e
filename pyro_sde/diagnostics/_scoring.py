"""What the scores share: which entries are scored, their mean and its standard error."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops._arguments import check_real
from .base import broadcast_mask

__all__ = ["Score", "average", "rows", "select"]


class Score(NamedTuple):
    """A score averaged over valid observations.

    Attributes:
        mean: the score, in the unit that its function states.
        standard_error: sampling standard error of `mean` if the observations were independent; correlated errors
            along a series make the true one larger. NaN for a single observation.
        count: number of valid observations.
    """

    mean: float
    standard_error: float
    count: int  # pyright: ignore[reportIncompatibleMethodOverride] -- hides tuple.count, of no use here

    @property
    def sum(self) -> float:
        """Total over the valid observations, ``mean * count`` (meaningful for densities)."""
        return self.mean * self.count


def select(values: Tensor, target: Tensor, mask: Tensor | None, name: str) -> tuple[Tensor, Tensor]:
    """Scored entries in float64: ``(n,)`` or ``(S, n)`` from `values`, ``(n,)`` from `target`.

    Raises:
        TypeError: if one of them is no tensor of real numbers.
        ValueError: if shapes disagree, there is no draw, nothing is scored, or a scored entry is NaN or, but for
            log-densities, infinite.
    """
    check_real(**{name: values, "target": target})
    sampled = name != "prediction"
    if values.dim() != target.dim() + sampled or values.shape[sampled:] != target.shape:
        expected = ", ".join(str(size) for size in target.shape)
        msg = (
            f"`{name}` must have shape ({'S, ' if sampled else ''}{expected}) to go with `target` "
            f"{tuple(target.shape)}, received {tuple(values.shape)}."
        )
        raise ValueError(msg)
    if sampled and len(values) == 0:
        msg = f"`{name}` must hold one draw at least, received shape {tuple(values.shape)}."
        raise ValueError(msg)
    scored = broadcast_mask(mask, target.shape).to(target.device)
    if not scored.any():
        msg = "`mask` selects no observation, so there is nothing to score."
        raise ValueError(msg)
    chosen, observed = values.detach()[..., scored].double(), target.detach()[scored].double()
    for label, tensor in ((name, chosen), ("target", observed)):
        bad = tensor.isnan() if name == "log_likelihood_samples" else ~tensor.isfinite()
        if bad.any():
            kind = "NaN" if tensor.isnan().any() else "infinite"
            msg = f"`{label}` is {kind} at {int(bad.sum())} scored entries. Set `mask` to False there."
            raise ValueError(msg)
    return chosen, observed


def rows(samples: Tensor, target: Tensor, mask: Tensor | None, *, dims: int) -> tuple[Tensor, Tensor]:
    """Vectors of the last `dims` dimensions in float64, ``(n, S, d)`` and ``(n, d)``; 0 in both where not scored."""
    select(samples, target, mask, "samples")  # its checks
    scored = broadcast_mask(mask, target.shape).to(target.device)
    keep = scored.flatten(-dims).flatten(0, -2) if target.dim() > dims else scored.reshape(1, -1)
    observed = torch.where(scored, target.detach().double(), 0.0).reshape(keep.shape)
    draws = torch.where(scored, samples.detach().double(), 0.0).reshape(len(samples), *keep.shape).transpose(0, 1)
    some = keep.any(-1)
    return draws[some], observed[some]


def average(values: Tensor) -> Score:
    """Mean and standard error of independent entries ``(n,)``."""
    count = values.numel()
    error = (values.var() / count).sqrt().item() if count > 1 else math.nan
    return Score(values.mean().item(), error, count)
