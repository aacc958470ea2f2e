"""The night of an infant: a slow state drives level, size and pace of the fluctuations of the heart rate."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer import SVI
from pyro.nn import PyroParam
from pyro.optim import ClippedAdam
from torch import Tensor, nn

from pyro_sde.distributions.multiscale_path import MultiScalePath
from pyro_sde.distributions.sde_path import SDEPath
from pyro_sde.guides.gaussian_markov import FreeSites, GaussianMarkov
from pyro_sde.infer.elbo import PathELBO
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.ops.windows import Windows
from pyro_sde.sde import SDE, OrnsteinUhlenbeck
from pyro_sde.sde.two_scale import FineSDE
from tests.benchmarks._clusters import mixture

STEP = 16 / 60  # minutes between two heart rates
FINE_STEPS = 4  # chosen by the bound, see `infant.py`
SAMPLES = 100  # of the guide, for the bound of a fitted pair
SHRINK = (0.8, 0.5)  # of level and logarithmic deviation at the start
SCALE = 0.2  # of the slow states at the start, per square root of a minute


class Night(nn.Module):
    r"""Slow states :math:`a = (\mu, \log \sigma)` among K wells, and the heart rate :math:`b` that they drive.

    .. math:: da = \tfrac12 s^2\, \nabla \log \textstyle\sum_k w_k N(a; m_k, v_k)\,dt + s\,dW, \qquad
        db = \kappa(a)\,(\mu - b)\,dt + h^{-1/2} \sigma\,dW', \qquad \operatorname{logit} h\kappa = c^\top a + c_0

    The slow states have the mixture as their stationary law: they stay in one well for long, and move to another now
    and then. With h the 16 s between two values the heart rate given a is autoregressive, and :math:`h\kappa < 1` keeps
    it from swinging. With K = 1 the slow states are Ornstein-Uhlenbeck processes.
    """

    def __init__(self, points: Tensor, wells: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(wells).to(points))
        self.centre = nn.Parameter(points[torch.randperm(len(points))[:wells]].clone())
        width = points.std(0).log() - (0.5 if wells > 1 else 0.0)
        self.log_width = nn.Parameter(width.repeat(wells, 1))
        self.log_scale = nn.Parameter(torch.full_like(width, math.log(SCALE)))
        self.pace = nn.Linear(2, 1).to(points)
        nn.init.zeros_(self.pace.weight)
        nn.init.zeros_(self.pace.bias)

    @property
    def free(self) -> int:
        """Number of parameters; of the weights one less, as they sum to 1."""
        return sum(parameter.numel() for parameter in self.parameters()) - 1

    def shares(self, a: Tensor) -> Tensor:
        """Probability of each well at states ``(..., 2)``, ``(..., K)``."""
        width = self.log_width.exp()
        apart = (a.unsqueeze(-2) - self.centre) / width
        return (self.weight - 0.5 * apart.square().sum(-1) - self.log_width.sum(-1)).softmax(-1)

    def coarse(self) -> SDE:
        def drift(t: Tensor, a: Tensor) -> Tensor:
            pull = (self.centre - a.unsqueeze(-2)) / (2 * self.log_width).exp()  # (..., K, 2)
            return 0.5 * (2 * self.log_scale).exp() * (self.shares(a).unsqueeze(-1) * pull).sum(-2)

        return SDE(drift, lambda t, a: self.log_scale.exp().expand_as(a))

    def fine(self) -> FineSDE:
        def drift(t: Tensor, b: Tensor, a: Tensor) -> Tensor:
            return self.pace(a).sigmoid() / STEP * (a[..., :1] - b)

        return FineSDE(drift, lambda t, b, a: a[..., 1:].exp() / STEP**0.5)


class Fitted(NamedTuple):
    """A trained pair."""

    path: Tensor  # (K + 1, 2), posterior mean of the slow states
    wells: Tensor  # (K + 1,), the most probable well there
    driven: Tensor  # (N,), the coarse point that drives each heart rate
    bound: float
    error: float  # standard error of the bound over samples
    free: int  # parameters of the model
    seconds: float  # of CPU time

    @property
    def penalised(self) -> float:
        """Like the Bayesian information criterion, with the bound in place of the log-likelihood; smaller is better."""
        return -2 * self.bound + self.free * math.log(len(self.driven))


class Pair:
    """Model and guide of one series ``(N,)`` of standardised log heart rates.

    The fine path is the series itself, on one window over the whole night. Coarse steps are `fine_steps` values long;
    the few values that the last one lacks are a site whose only law in the model is that of the fine path. The guide of
    the slow states is a Gaussian Markov chain with one pseudo-observation per coarse point, which begins at mean and
    logarithmic deviation of the values of its step, moved towards their means over the night: those of a few values
    scatter more than the states do.
    """

    def __init__(self, values: Tensor, wells: int, fine_steps: int = FINE_STEPS) -> None:
        count = -(-(len(values) - 1) // fine_steps)
        times = STEP * fine_steps * torch.arange(count + 1, dtype=values.dtype)
        self.values, self.grid = values, TimeGrid(times)
        self.windows = Windows(self.grid, times[:1], times[-1:], fine_steps=fine_steps)
        lacking = count * fine_steps + 1 - len(values)
        self.last = torch.stack([values[-1].expand(lacking), torch.zeros(lacking).to(values)])  # mean, log deviation
        points = summary(values, count + 1, fine_steps)
        self.night = Night(points, wells)
        sites = FreeSites(count + 1, 2, precision=3.0).to(values)
        with torch.no_grad():
            sites.value.copy_(points)
        rate, scale = (torch.full((2,), start).to(values) for start in (1 / 15, SCALE))
        reference = OrnsteinUhlenbeck(
            PyroParam(rate, constraints.positive), PyroParam(scale, constraints.positive), points.mean(0)
        )
        self.posterior = GaussianMarkov(sites, reference=reference)
        self.first = dist.Normal(points.mean(0), 2 * points.std(0)).to_event(1)
        self.start = dist.Normal(torch.zeros(1).to(values), 1.0).to_event(1)

    def prior(self) -> SDEPath:
        return SDEPath(self.night.coarse(), self.first, self.grid)

    def model(self) -> None:
        pyro.module("night", self.night)
        a = pyro.sample("a", self.prior())
        heart = self.values
        if self.last.shape[-1]:
            free = dist.Normal(torch.zeros_like(self.last[0]), 1.0).to_event(1).mask(False)  # log-density 0
            heart = torch.cat([heart, pyro.sample("last", free)])
        pyro.sample("b", MultiScalePath(self.night.fine(), self.start, a, self.windows), obs=heart.unsqueeze(-1))

    def guide(self) -> None:
        pyro.module("posterior", self.posterior)
        if self.last.shape[-1]:
            mean, log_deviation = pyro.param("last_law", self.last)
            pyro.sample("last", dist.Normal(mean, log_deviation.exp()).to_event(1))
        pyro.sample("a", self.posterior(self.prior()))


def fit(values: Tensor, *, seed: int, steps: int, fine_steps: int = FINE_STEPS) -> tuple[Pair, Fitted]:
    """Train a pair with one well."""
    pyro.set_rng_seed(seed)
    pair = Pair(values, 1, fine_steps)
    return pair, train(pair, steps, rate=0.02)


def divide(one: Pair, path: Tensor, wells: int, *, seed: int, steps: int) -> Fitted:
    """Train a pair with several wells from one with one: the wells begin as the groups of its slow path."""
    pyro.set_rng_seed(seed)
    pair = Pair(one.values, wells, one.windows.fine_steps)
    pair.posterior.load_state_dict(one.posterior.state_dict())
    groups = mixture(path, wells, seed).states
    night = pair.night
    with torch.no_grad():
        night.log_scale.copy_(one.night.log_scale)
        night.pace.load_state_dict(one.night.pace.state_dict())
        for k in range(wells):
            points = path[groups == k]
            if len(points) > 2:  # else the well stays at its random place
                night.centre[k] = points.mean(0)
                night.log_width[k] = points.std(0).clamp(min=0.05).log()
                night.weight[k] = math.log(len(points) / len(path))
    return train(pair, steps, rate=0.01)


def train(pair: Pair, steps: int, rate: float) -> Fitted:
    """Run SVI; the rate of learning falls to a twentieth."""
    begin = time.process_time()
    pyro.clear_param_store()
    elbo = PathELBO()
    svi = SVI(pair.model, pair.guide, ClippedAdam({"lr": rate, "lrd": 0.05 ** (1 / steps)}), elbo)
    for _ in range(steps):
        svi.step()
    seconds = time.process_time() - begin
    with torch.no_grad():
        bounds = torch.tensor([-elbo.loss(pair.model, pair.guide) for _ in range(SAMPLES)])
        path = pair.posterior(pair.prior()).mean
        found = pair.night.shares(path).argmax(-1)
    count, fine_steps = len(pair.values), pair.windows.fine_steps
    driven = ((torch.arange(count) - 1) // fine_steps).clamp(min=0)  # a value is made by the step before it
    error = float(bounds.std()) / len(bounds) ** 0.5
    return Fitted(path, found, driven, float(bounds.mean()), error, pair.night.free, seconds)


def summary(values: Tensor, points: int, fine_steps: int) -> Tensor:
    """Mean and logarithmic deviation of the values of each coarse step, shrunk, ``(K + 1, 2)``; the last row twice."""
    padded = torch.cat([values, values[-1:].expand(fine_steps)])[: (points - 1) * fine_steps]
    parts = padded.reshape(points - 1, fine_steps)
    features = torch.stack([parts.mean(-1), parts.std(-1).clamp(min=0.05).log()], -1)
    features = torch.lerp(features.mean(0), features, torch.tensor(SHRINK).to(values))
    return torch.cat([features, features[-1:]])
