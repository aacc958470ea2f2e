"""Exact figures of one-dimensional path laws with Gaussian observations: quadrature over a grid of states, and Kalman.

Everything here is deterministic. The sums over an equidistant grid of smooth densities that vanish at its ends converge
faster than any power of the spacing, as long as the spacing is below every standard deviation in play.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_sde import SDEPath
from pyro_sde.distributions.base import PathDistribution

LOG_2PI = math.log(2 * math.pi)
NEGLIGIBLE = 1e-13  # mass at a state below which what happens there cannot be seen


def log_normal(value: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * ((value - mean).square() / variance + variance.log() + LOG_2PI)


def moments(law: SDEPath, k: int, states: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the next state from each of `states` ``(n,)`` at point k of the grid."""
    z = states.unsqueeze(-1)
    rows = tuple(None if row is None else row[k] for row in law.sde.bind_rows(law.inputs))
    with torch.no_grad(), law.effects:
        coefficients = law.sde.coefficients(law.grid.times[k : k + 1], z, rows)
        drift = coefficients.total_drift(law.sde.noise)
    h = law.grid.steps[k]
    return (z + drift * h).squeeze(-1), (coefficients.diffusion**2 * h).expand_as(z).squeeze(-1)


def observations(law: SDEPath, values: Tensor) -> dict[int, float]:
    return dict(zip(law.grid.observed_index.tolist(), values.tolist(), strict=True))


def start(law: PathDistribution, states: Tensor) -> Tensor:
    """Mass of the first state at each of `states`."""
    return law.initial.log_prob(states.unsqueeze(-1)).exp() * (states[1] - states[0])


def log_evidence(law: SDEPath, values: Tensor, noise: float, states: Tensor) -> float:
    """Log evidence of values ``(N,)`` at the observed times of a chain, observed with standard deviation `noise`.

    Args:
        law: the chain, D = 1, no batch.
        values: observations.
        noise: their standard deviation.
        states: equidistant grid that the chain does not leave, ``(n,)``.
    """
    width = states[1] - states[0]
    given, mass, total = observations(law, values), start(law, states), 0.0
    last: tuple[Tensor, Tensor] | None = None
    matrix = states.new_empty(0)
    for k in range(law.grid.num_steps + 1):
        if k > 0:
            mean, variance = moments(law, k - 1, states)
            if last is None or not (torch.allclose(mean, last[0], 1e-12, 1e-14) and torch.allclose(variance, last[1])):
                last = mean, variance
                matrix = log_normal(states, mean.unsqueeze(-1), variance.unsqueeze(-1)).exp() * width
            mass = mass @ matrix
        if k in given:
            mass = mass * log_normal(states, states.new_tensor(given[k]), states.new_tensor(noise**2)).exp()
        total += math.log(mass.sum())
        mass = mass / mass.sum()
    return total


def exact_elbo(guide: SDEPath, model: SDEPath, values: Tensor, noise: float, states: Tensor) -> float:
    """Evidence lower bound of a chain with Gaussian kernels of any mean and variance, without Monte-Carlo error."""
    width = states[1] - states[0]
    given, mass = observations(model, values), start(guide, states)
    bound = -torch.distributions.kl_divergence(guide.initial, model.initial).item()
    for k in range(model.grid.num_steps + 1):
        if k > 0:
            here = mass > NEGLIGIBLE
            (mean, variance), (prior_mean, prior) = (moments(law, k - 1, states[here]) for law in (guide, model))
            excess = ((mean - prior_mean).square() + variance) / prior - 1 - (variance / prior).log()
            bound -= 0.5 * (mass[here] @ excess).item()
            mass = mass[here] @ log_normal(states, mean.unsqueeze(-1), variance.unsqueeze(-1)).exp() * width
            mass = mass / mass.sum()
        if k in given:
            bound += (mass @ log_normal(states.new_tensor(given[k]), states, states.new_tensor(noise**2))).item()
    return bound


def ou_log_evidence(
    times: Tensor,
    values: Tensor,
    *,
    rate: float,
    scale: float,
    noise: float,
    mean: float,
    variance: float,
) -> float:
    """Log evidence of an Ornstein–Uhlenbeck process around 0 by Kalman's filter with exact transitions.

    Args:
        times: observation times ``(N,)``, increasing, from 0.
        values: observations ``(N,)``.
        rate: of reversion.
        scale: diffusion.
        noise: standard deviation of the observations.
        mean: of the state at time 0.
        variance: of the state at time 0.
    """
    total, before = 0.0, 0.0
    for time, value in zip(times.tolist(), values.tolist(), strict=True):
        decay = math.exp(-rate * (time - before))
        mean, variance = decay * mean, decay**2 * variance + scale**2 / (2 * rate) * (1 - decay**2)
        spread = variance + noise**2
        total -= 0.5 * ((value - mean) ** 2 / spread + math.log(spread) + LOG_2PI)
        mean, variance = mean + variance / spread * (value - mean), variance * noise**2 / spread
        before = time
    return total
