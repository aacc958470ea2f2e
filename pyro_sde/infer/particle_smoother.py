r"""Paths given all observations, from the history of a particle filter."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..ops.resampling import draw, resample
from ._particle_schedule import take
from ._particle_stepper import Stepper
from ._particle_steps import stepwise
from .particle_filter import FilteredParticles

__all__ = ["particle_smoother"]

_PAIRS = 2**22  # densities of pairs of particles in memory at a time


def particle_smoother(filtered: FilteredParticles, num_paths: int, *, method: str = "backward") -> Tensor:
    r"""Paths :math:`z_{0:K} \sim p(z_{0:K} \mid y)`, approximately: equally weighted, from the particles of a filter.

    * "backward": forward filtering, backward sampling. From the last point on, each path chooses its particle with
      probability :math:`\propto w_k^p\, p(z_{k+1} \mid z_k^p)`, so that early states keep their diversity. It needs the
      density of a step and noise in all directions, and costs O(P S) for each grid point and S paths.
    * "genealogy": the ancestors of the last particles. It costs O(S) and works for any law, but after many resampling
      times all paths share their early states.

    Means, variances and quantiles of the smoothing law are those of the paths. Their error is that of P particles as
    well as of S paths.

    Args:
        filtered: of `particle_filter` with ``keep="all"``.
        num_paths: S.
        method: "backward" or "genealogy".

    Returns:
        paths ``(S, *batch, T, D)``, without gradient.

    Raises:
        ValueError: if `method` is unknown, `num_paths` not positive, the filter has not kept its states, or for
            "backward" the steps have no density, or one on lower dimensions only.

    References:
        Godsill, Doucet, West (2004), Monte Carlo smoothing for nonlinear time series, algorithm 1.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_sde import SDEPath, TimeGrid
        >>> from pyro_sde.infer.emissions import EmissionLikelihood
        >>> from pyro_sde.infer.particle_filter import particle_filter
        >>> from pyro_sde.sde import OrnsteinUhlenbeck
        >>> grid = TimeGrid(torch.linspace(0.0, 4.0, 9), max_step=0.1)
        >>> law = SDEPath(OrnsteinUhlenbeck(1.0, 1.0), dist.Normal(torch.zeros(1), 1.0).to_event(1), grid)
        >>> likelihood = EmissionLikelihood(lambda z: dist.Normal(z, 0.3), torch.ones(9, 1))
        >>> particle_smoother(particle_filter(law, likelihood, 200, keep="all"), 50).shape
        torch.Size([50, 41, 1])
    """
    if method not in ("backward", "genealogy"):
        msg = f'`method` must be "backward" or "genealogy", received {method!r}.'
        raise ValueError(msg)
    if isinstance(num_paths, bool) or not isinstance(num_paths, int) or num_paths < 1:
        msg = f"`num_paths` must be a positive integer, received {num_paths!r}."
        raise ValueError(msg)
    if not isinstance(filtered, FilteredParticles):
        msg = f"`filtered` must come from `particle_filter`, received {type(filtered).__name__}."
        raise TypeError(msg)
    if filtered.ancestors is None:
        msg = '`filtered` holds the last states only. Run particle_filter(..., keep="all").'
        raise ValueError(msg)
    with torch.no_grad():
        last = resample(filtered.log_weights[..., -1], num=num_paths)
        if method == "genealogy":
            return _genealogy(filtered, filtered.ancestors, last)
        return _backward(filtered, stepwise(filtered.law), last)


def _states(filtered: FilteredParticles) -> tuple[Tensor, ...]:
    """States of every grid point, ``(P, *batch, D)``."""
    return filtered.states.unbind(filtered.log_weights.dim() - 1)


def _joined(points: list[Tensor], filtered: FilteredParticles) -> Tensor:
    return torch.stack(points[::-1], filtered.log_weights.dim() - 1)


def _genealogy(filtered: FilteredParticles, ancestors: Tensor, last: Tensor) -> Tensor:
    states = _states(filtered)
    points = [take(states[-1], last)]
    for k in range(len(states) - 2, -1, -1):
        last = take(ancestors[..., k], last)
        points.append(take(states[k], last))
    return _joined(points, filtered)


def _backward(filtered: FilteredParticles, stepper: Stepper, last: Tensor) -> Tensor:
    states, weights = _states(filtered), filtered.log_weights.unbind(-1)
    chunk = max(1, _PAIRS // math.prod(filtered.log_weights.shape[:-1]))
    points = [take(states[-1], last)]
    for k in range(len(states) - 2, -1, -1):
        parts = [_choose(stepper, k, states[k], weights[k], following) for following in points[-1].split(chunk)]
        points.append(torch.cat(parts))
    return _joined(points, filtered)


def _choose(stepper: Stepper, k: int, states: Tensor, log_weights: Tensor, following: Tensor) -> Tensor:
    """States at point k ``(S, *batch, D)`` for those that follow."""
    try:
        density = stepper.log_density(k, states.unsqueeze(1), following.unsqueeze(0))  # (P, S, *batch)
    except ValueError as error:
        msg = (
            "backward sampling needs a density of any state given any earlier one, which these steps do not have: "
            f'{error} Use method="genealogy".'
        )
        raise ValueError(msg) from error
    chosen = take(states, draw(log_weights.unsqueeze(1) + density))
    moving = stepper.moving(k)
    if moving is None:
        return chosen
    return torch.where(moving.unsqueeze(-1) if stepper.tail else moving, chosen, following)  # padding: the same state
