r"""Held-out log-likelihood per time step, by a bound, importance sampling and particles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..distributions.base import PathDistribution
from ..ops._arguments import check_numbers, check_whole
from ._particle_schedule import observation_schedule
from ._particle_steps import stepwise
from .particle_filter import LogLikelihood, particle_filter

__all__ = ["HeldOut", "held_out"]

_UNITS = {"bits": 1 / math.log(2), "nats": 1.0}
_BLOCK = 2**20  # states of sampled paths in memory at a time


@dataclass(frozen=True)
class HeldOut:
    r"""Negative log-likelihoods of B held-out series with :math:`L_i` steps each, and two averages of them.

    The literature uses two averages under one name, which differ where lengths do:

    * per step, :math:`\sum_i \ell_i / \sum_i L_i`: sum over all steps of all series, divided by their number;
    * per series, :math:`\frac1B \sum_i \ell_i / L_i`: mean over series of their per-step means.

    Printing the record gives both for all estimates, with standard errors over series.

    Attributes:
        losses: :math:`\ell_i`, estimates of :math:`-\log p(y_i)` of every series, ``(B,)``, by their names.
        lengths: steps :math:`L_i` of every series, ``(B,)``.
        unit: "nats" or "bits".

    Raises:
        ValueError: if a loss has another shape than `lengths`, there is no series, a length is not positive, or `unit`
            is unknown.

    Example:
        >>> scores = HeldOut({"bound": torch.tensor([12.0, 60.0])}, torch.tensor([2, 6]))
        >>> scores.per_step("bound"), scores.per_series("bound")
        (9.0, 8.0)
    """

    losses: Mapping[str, Tensor]
    lengths: Tensor
    unit: str = "nats"

    def __post_init__(self) -> None:
        """Check shapes and values."""
        if self.unit not in _UNITS:
            msg = f"`unit` must be one of {sorted(_UNITS)}, received {self.unit!r}."
            raise ValueError(msg)
        if self.lengths.dim() != 1 or not len(self.lengths) or not bool((self.lengths > 0).all()):
            msg = f"`lengths` must hold the positive number of steps of every series, received {self.lengths}."
            raise ValueError(msg)
        for name, loss in self.losses.items():
            if loss.shape != self.lengths.shape:
                msg = (
                    f"`losses` must have one number per series, shape {tuple(self.lengths.shape)}; '{name}' has "
                    f"{tuple(loss.shape)}."
                )
                raise ValueError(msg)

    def per_step(self, name: str) -> float:
        """Sum over all steps, divided by their number."""
        return float(self.losses[name].double().sum() / self.lengths.sum())

    def per_series(self, name: str) -> float:
        """Mean over series of the mean over their steps."""
        return float((self.losses[name].double() / self.lengths).mean())

    def standard_errors(self, name: str) -> tuple[float, float]:
        """Standard errors of `per_step` (as a ratio of sums) and `per_series` over series; NaN for one series."""
        loss, lengths = self.losses[name].double(), self.lengths.double()
        count = len(lengths)
        if count < 2:
            return math.nan, math.nan
        residual = loss - self.per_step(name) * lengths
        ratio = float((residual.square().sum() * count / (count - 1)).sqrt() / lengths.sum())
        return ratio, float((loss / lengths).std() / math.sqrt(count))

    def to(self, unit: str) -> HeldOut:
        """The same losses in "nats" or "bits".

        Raises:
            ValueError: if `unit` is neither.
        """
        if unit not in _UNITS:
            msg = f"`unit` must be one of {sorted(_UNITS)}, received {unit!r}."
            raise ValueError(msg)
        factor = _UNITS[unit] / _UNITS[self.unit]
        return replace(self, losses={name: loss * factor for name, loss in self.losses.items()}, unit=unit)

    def __str__(self) -> str:
        """Table of all estimates."""
        title = f"negative log-likelihood in {self.unit} per step: {len(self.lengths)} series"
        lines = [f"{title}, {int(self.lengths.sum())} steps"]
        width = max((len(name) for name in self.losses), default=0)
        lines.append(f"{'':{width}}  {'all steps / steps':>20}  {'mean over series':>20}")
        for name in self.losses:
            cells = zip((self.per_step(name), self.per_series(name)), self.standard_errors(name), strict=True)
            figures = (f"{value:.4f} +- {error:.4f}" for value, error in cells)
            lines.append(f"{name:{width}}  " + "  ".join(f"{figure:>20}" for figure in figures))
        return "\n".join(lines)


def held_out(
    path: PathDistribution,
    log_likelihood: LogLikelihood,
    *,
    guide: PathDistribution | None = None,
    lengths: Tensor | None = None,
    num_samples: int = 1000,
    num_particles: int = 1000,
    threshold: float = 0.5,
) -> HeldOut:
    r"""Score series by a model: evidence bound, importance sampling, and a particle filter.

    * "bound": mean over samples of :math:`\log p(y, z) / q(z)`, the evidence lower bound;
    * "importance, S samples": minus the log of the mean of the same ratios, for whole paths;
    * "particles, P": minus the log-evidence of a particle filter with the same guide.

    The last two overestimate the loss in the mean, by less the more samples or particles; where they disagree, the
    smaller one is nearer. For long series that is the particle filter.

    Args:
        path: prior law of the path, batch shape ``(B,)`` or ``()``.
        log_likelihood: as for `particle_filter`.
        guide: law of the proposal; None: the prior itself.
        lengths: steps of every series, ``(B,)``; None: its number of observation times.
        num_samples: S; 0 leaves out "bound" and "importance".
        num_particles: P; 0 leaves out "particles".
        threshold: resampling threshold of the particle filter.

    Raises:
        ValueError: if the batch has more than one dimension, both numbers are 0 or one is negative, and as
            `particle_filter`.
        TypeError: if particles cannot step such a law.

    References:
        Burda, Grosse, Salakhutdinov (2016), Importance weighted autoencoders, arXiv 1509.00519, eq. (8).
    """
    if not isinstance(path, PathDistribution):
        msg = f"`path` must be a path law, received {type(path).__name__}."
        raise TypeError(msg)
    if not callable(log_likelihood):
        msg = f"`log_likelihood` must be a function of states and an index, received {type(log_likelihood).__name__}."
        raise TypeError(msg)
    check_whole(num_samples=num_samples, num_particles=num_particles)
    check_numbers(threshold=threshold)
    if not 0 <= threshold <= 1:
        msg = f"`threshold` must be a number in [0, 1], received {threshold!r}. It is a part of the particles."
        raise ValueError(msg)
    if len(path.batch_shape) > 1:
        msg = f"`path` must have batch shape (B,) or (), received {tuple(path.batch_shape)}."
        raise ValueError(msg)
    if num_samples < 0 or num_particles < 0 or num_samples + num_particles == 0:
        msg = f"`num_samples` and `num_particles` must be >= 0, not both 0; received {num_samples}, {num_particles}."
        raise ValueError(msg)
    losses = {}
    with torch.no_grad():
        if num_samples:
            weights = _log_weights(path, log_likelihood, guide, num_samples)
            losses["bound"] = -weights.mean(0)
            losses[f"importance, {num_samples} samples"] = math.log(num_samples) - weights.logsumexp(0)
        if num_particles:
            filtered = particle_filter(path, log_likelihood, num_particles, guide=guide, threshold=threshold)
            losses[f"particles, {num_particles}"] = -filtered.log_evidence
    if lengths is None:
        _, valid = stepwise(path).observation_points()
        lengths = valid.sum(-1).expand(path.batch_shape)
    return HeldOut({name: loss.reshape(-1) for name, loss in losses.items()}, lengths.reshape(-1))


def _log_weights(
    path: PathDistribution, log_likelihood: LogLikelihood, guide: PathDistribution | None, num_samples: int
) -> Tensor:
    """Log-ratios ``(S, *batch)`` of whole paths of the guide."""
    schedule = observation_schedule(stepwise(path))
    block = max(1, _BLOCK // max(1, path.batch_shape.numel() * path.event_shape.numel()))
    parts = []
    for start in range(0, num_samples, block):
        sampler = path if guide is None else guide
        paths = sampler.sample(torch.Size([min(block, num_samples - start)]))
        weights = torch.zeros(paths.shape[: 1 + len(path.batch_shape)], device=paths.device)
        if guide is not None:
            weights = path.log_prob(paths) - guide.log_prob(paths)
        for k, observed in enumerate(schedule):
            if observed is not None:
                n, active = observed
                term = log_likelihood(paths.select(1 + len(path.batch_shape), k), n)
                weights = weights + (term if active is None else torch.where(active, term, term.new_zeros(())))
        parts.append(weights)
    return torch.cat(parts)
