"""OU process with Gaussian observations: exact posterior marginals, exact posterior drift, and bounds by quadrature."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_sde import SDEPath, TimeGrid
from pyro_sde.guides.marginal_flow import MarginalPath
from pyro_sde.nn.marginals import Marginals
from pyro_sde.sde import OrnsteinUhlenbeck

RATE, SCALE, NOISE = 0.8, 0.9, 0.1  # NOISE is a variance
TIMES = torch.tensor([0.5, 1.0, 1.2, 1.7], dtype=torch.float64)
VALUES = torch.tensor([0.6, -0.4, -0.1, 0.9], dtype=torch.float64)
EVIDENCE = -4.082420621  # of this data set, by a dense Gaussian process
STATIONARY = SCALE**2 / (2 * RATE)


def covariance(s: Tensor, t: Tensor) -> Tensor:
    return STATIONARY * torch.exp(-RATE * (s - t).abs())


class ExactMarginals(Marginals):
    """Smoothed marginals, from the Gaussian process with the same covariance."""

    def __init__(self):
        super().__init__(1)

    def moments(self, t):
        inverse = torch.linalg.inv(covariance(TIMES[:, None], TIMES) + NOISE * torch.eye(len(TIMES), dtype=t.dtype))
        cross = covariance(t, TIMES)  # (..., N)
        mean, variance = cross @ inverse @ VALUES, STATIONARY - ((cross @ inverse) * cross).sum(-1)
        return mean.unsqueeze(-1), variance.sqrt().unsqueeze(-1)


def exact_drift(t: float, z: Tensor) -> Tensor:
    r"""-az + sigma^2 (eta - Lambda z), with the information (Lambda, eta) of later observations carried back to t."""
    precision, weighted, now = 0.0, 0.0, None
    events = [*zip(TIMES.tolist(), VALUES.tolist(), strict=True)][::-1]
    for time, value in [*((time, value) for time, value in events if time > t), (t, None)]:
        if now is not None:
            shrink = math.exp(-RATE * (now - time))
            spread = STATIONARY * (1 - shrink**2)
            precision, weighted = (
                part / (1 + spread * precision) for part in (shrink**2 * precision, shrink * weighted)
            )
        if value is not None:
            precision, weighted, now = precision + 1 / NOISE, weighted + value / NOISE, time
    return -RATE * z + SCALE**2 * (weighted - precision * z)


def grid(max_step: float | None = None) -> TimeGrid:
    return TimeGrid(TIMES, start=0.0, max_step=max_step)


def prior_law(on: TimeGrid | None = None) -> SDEPath:
    initial = dist.Normal(torch.zeros(1, dtype=torch.float64), math.sqrt(STATIONARY)).to_event(1)
    return SDEPath(OrnsteinUhlenbeck(RATE, SCALE), initial, grid() if on is None else on)


def model(on: TimeGrid) -> None:
    z = pyro.sample("z", prior_law(on))
    pyro.sample("y", dist.Normal(on.observed(z), math.sqrt(NOISE)).to_event(2), obs=VALUES.unsqueeze(-1))


def quadrature_bound(q: MarginalPath, cuts: Tensor, p: SDEPath | None = None, order: int = 12) -> Tensor:
    """The bound with all expectations by quadrature; exact for quadratic integrands, smooth in time between `cuts`."""
    p = prior_law() if p is None else p
    node, weight = (torch.as_tensor(part) for part in np.polynomial.legendre.leggauss(order))
    eps, mass = (torch.as_tensor(part) for part in np.polynomial.hermite_e.hermegauss(3))
    mass = mass / math.sqrt(2 * math.pi)
    half = cuts.diff().unsqueeze(-1) / 2
    t = (cuts[:-1, None] + half * (node + 1)).reshape(-1, 1)
    w = (half * weight).reshape(-1)
    ones = torch.ones(len(t), 1, dtype=torch.float64)
    path = sum(m * (w * q.rate(p, t, e * ones)).sum() for e, m in zip(eps, mass, strict=True))
    mean, scale = q.marginals.moments(TIMES.unsqueeze(-1))
    fit = sum(
        m * dist.Normal(mean + e * scale, math.sqrt(NOISE)).log_prob(VALUES.unsqueeze(-1)).sum()
        for e, m in zip(eps, mass, strict=True)
    )
    return fit - path - torch.distributions.kl_divergence(q.initial, p.initial)
