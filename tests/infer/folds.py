"""The cross-validation folds of Verma, Adam and Solin (2024), simulated anew, and a neural posterior for them.

The processes, spans, noises and numbers of observations are those of arXiv 2306.02066 and its published data: 40
observations at times of a grid of spacing 0.01, of which a fold keeps 32. Nothing of the data is copied; where
`$PYRO_SDE_DATA` has the published files in ``cvi_dp/``, `published` reads them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import Tensor, nn

from pyro_sde import SDEPath, TimeGrid
from pyro_sde.data.simulate import gaussian_kick, simulate_paths
from pyro_sde.nn import MLP
from pyro_sde.sde import SDE, BrownianMotion
from tests.infer.best_gaussian import Chain, Target, best_gaussian

SPACING = 0.01
OBSERVATIONS, FOLDS = 40, 5
F64 = torch.float64


@dataclass(frozen=True)
class Process:
    """One of the benchmark's SDEs with unit diffusion, and how it was observed."""

    folder: str
    drift: Callable[[Tensor], Tensor]
    end: float
    start: float
    noise: float  # standard deviation of the observations
    span: tuple[float, float]  # states that it does not leave

    def sde(self) -> SDE:
        return BrownianMotion(1.0).with_drift(lambda _t, z: self.drift(z))


PROCESSES = {
    "ornstein_uhlenbeck": Process("linear/15", lambda z: -0.5 * z, 10.0, 1.0, 0.1, (-7.0, 7.0)),
    "double_well": Process("dw/3", lambda z: 4 * z * (1 - z**2), 20.0, 1.0, 0.01, (-2.3, 2.3)),
    "benes": Process("benes/7", torch.tanh, 8.0, 0.0, 0.1, (-12.0, 12.0)),
}


@dataclass(frozen=True)
class Series:
    """Training observations of a fold: times and values ``(N,)``, float64."""

    process: Process
    times: Tensor
    values: Tensor

    def head(self, count: int) -> Series:
        """The first observations only."""
        return Series(self.process, self.times[:count], self.values[:count])

    def grid(self, max_step: float = SPACING) -> TimeGrid:
        return TimeGrid(self.times, max_step=max_step, start=0.0)

    def initial(self) -> dist.Independent:
        return dist.Normal(torch.full((1,), self.process.start, dtype=F64), 0.01).to_event(1)

    def prior(self, grid: TimeGrid) -> SDEPath:
        return SDEPath(self.process.sde(), self.initial(), grid)

    def states(self, count: int) -> Tensor:
        """Equidistant states for quadrature."""
        return torch.linspace(*self.process.span, count, dtype=F64)

    def best_gaussian(self, grid: TimeGrid) -> tuple[float, Chain]:
        """The largest bound of a Gaussian law of the path, and the law."""
        given = (grid.steps.numpy(), grid.observed_index.numpy(), self.values.numpy())
        target = Target(self.process.drift, 1.0, *given, self.process.noise, (self.process.start, 0.01))
        return best_gaussian(target, np.interp(grid.times.numpy(), self.times.numpy(), self.values.numpy()))


def simulated(name: str, fold: int = 0, seed: int = 0) -> Series:
    """A fold of a new series of the process: same recipe, other noise."""
    times, values, order = _simulate(name, seed)
    keep = torch.ones(OBSERVATIONS, dtype=torch.bool).index_fill(0, order.chunk(FOLDS)[fold], False)
    return Series(PROCESSES[name], times[keep], values[keep])


@cache
def _simulate(name: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Times and values of all observations, and the order in which folds leave them out."""
    process = PROCESSES[name]
    generator = torch.Generator().manual_seed(seed)
    points = round(process.end / SPACING) + 1
    index = torch.randperm(points, generator=generator)[:OBSERVATIONS].sort().values
    times = SPACING * index.to(F64)
    path = simulate_paths(
        process.drift,
        gaussian_kick(1.0),
        torch.full((1, 1), process.start, dtype=F64),
        times.unsqueeze(0),
        max_step=SPACING,
        generator=generator,
    )[0, :, 0]
    values = path + process.noise * torch.randn(OBSERVATIONS, generator=generator, dtype=F64)
    return times, values, torch.randperm(OBSERVATIONS, generator=generator)


def published(name: str, fold: int = 0) -> Series | None:
    """A fold of the published data, None if it is not on this machine."""
    process = PROCESSES[name]
    root = os.environ.get("PYRO_SDE_DATA")
    file = Path(root or "") / "cvi_dp" / process.folder / f"{fold}.npz"
    if not root or not file.is_file():
        return None
    with np.load(file) as content:
        times, values = (torch.tensor(content[key].ravel()) for key in ("observation_grid", "observations"))
    return Series(process, times, values)


class BridgePosterior(nn.Module):
    r"""Posterior SDE of a precisely observed one-dimensional SDE with unit diffusion, D = 1.

    The exact posterior is :math:`dz = (f + \partial_z \log \psi)\,dt + dW` with :math:`\psi(t, z)` the density of the
    future observations. Its guess here is that of a Brownian motion to the next observation y, a time :math:`\tau`
    ahead, with information :math:`L = 1 / (R + \tau)`, and a network that corrects it:

    .. math:: \partial_z \log \psi \approx L\,(y - z) + a + b f(z) + c z, \qquad (a, b, c) = \mathrm{net}(z, y, \tau)

    The pull L is treated implicitly, as :math:`h L` need not be small: the step has the mean :math:`z + h\,(f +
    \partial_z \log \psi) / (1 + h L)` and the variance :math:`h\,e^{2 h v} / (1 + h L)`, where v is a network too. Such
    a step is what the exact posterior of the chain does near an observation; a step that keeps the variance h is not,
    and the bound loses :math:`(x - \log(1 + x)) / 2` at :math:`x = h L`.
    """

    def __init__(self, series: Series, hidden: tuple[int, ...] = (24, 24, 24)) -> None:
        super().__init__()
        self.series = series
        self.pull = MLP(5, 3, hidden, activation="tanh", zero_last=True).double()
        self.spread = MLP(5, 1, hidden, activation="tanh", zero_last=True).double()
        precision = 1e4 + 1 / (series.process.noise**2 + series.times[:1])
        start = (1e4 * series.process.start + series.values[:1] * (precision - 1e4)) / precision
        with torch.no_grad():  # features of all of the states from the start: training is several times faster
            for net in (self.pull, self.spread):
                first = net.layers[0]
                first.weight.mul_(4)
                first.bias.mul_(4)
        # What lies beyond the next observation moves the state there, by a fraction of the noise.
        self.shift = nn.Parameter(torch.zeros_like(series.values))
        self.loc, self.log_scale = nn.Parameter(start), nn.Parameter(-0.5 * precision.log())

    def forward(self, grid: TimeGrid, *, implicit: bool = True) -> SDEPath:
        """Law of the path on a grid of any step; `implicit` False keeps the diffusion of the prior."""
        series, times = self.series, grid.times
        steps = torch.cat([grid.steps, grid.steps[-1:]])
        ahead = torch.searchsorted(series.times, times + 1e-9).clamp(max=len(series.times) - 1)
        gap = (series.times[ahead] - times).clamp(min=0)
        y = (series.values + 0.1 * series.process.noise * self.shift)[ahead]
        info = 1 / (series.process.noise**2 + (gap - steps).clamp(min=0))
        shrink = 1 / (1 + steps * info)
        table = torch.stack([y, gap.sqrt(), (-4 * gap).exp(), (-16 * gap).exp(), info, shrink, steps], -1)

        def look_up(t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            rows = table[torch.searchsorted(times, t.squeeze(-1).contiguous())]
            return rows, torch.cat([z, rows[..., :4].expand(*z.shape[:-1], 4)], -1)

        def drift(t: Tensor, z: Tensor) -> Tensor:
            rows, features = look_up(t, z)
            prior, (a, b, c) = series.process.drift(z), self.pull(features).split(1, -1)
            return ((1 + b) * prior + rows[..., 4:5] * (rows[..., :1] - z) + a + c * z) * rows[..., 5:6]

        def diffusion(t: Tensor, z: Tensor) -> Tensor:
            rows, features = look_up(t, z)
            scale = (rows[..., 6:7] * self.spread(features)).exp() * rows[..., 5:6].sqrt()
            return scale if implicit else torch.ones_like(scale)

        initial = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return SDEPath(SDE(drift, diffusion), initial, grid)


# Stages of training: largest step of the grid, iterations, learning rates at both ends. What is learned on a coarse
# grid is nearly right on a fine one, at a fraction of the cost.
SCHEDULE = ((0.05, 300, 0.03, 0.01), (0.02, 180, 0.01, 0.002), (SPACING, 90, 0.002, 0.0002))


def model_of(series: Series, grid: TimeGrid) -> Callable[[], None]:
    def model() -> None:
        z = pyro.sample("z", series.prior(grid))
        likelihood = dist.Normal(grid.observed(z)[..., 0], series.process.noise)
        pyro.sample("y", likelihood.to_event(1), obs=series.values)

    return model


def guide_of(posterior: BridgePosterior, grid: TimeGrid, *, implicit: bool = True) -> Callable[[], None]:
    def guide() -> None:
        pyro.module("posterior", posterior)
        pyro.sample("z", posterior(grid, implicit=implicit))

    return guide


def train(
    series: Series,
    seed: int,
    schedule: tuple[tuple[float, int, float, float], ...] = SCHEDULE,
    particles: int = 16,
) -> BridgePosterior:
    """A neural posterior, trained by SVI from coarse to fine grids.

    The loss is `Trace_ELBO` with the path's own sticking-the-landing gradient: `PathELBO` would refuse the guide, whose
    kernels have other variances than the prior's. That is an error in continuous time and for a fixed chain is not.
    """
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    posterior = BridgePosterior(series)
    loss = Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=0)
    with pyro.settings.context(pyro_sde_backward="parallel"):
        for max_step, iterations, first, last in schedule:
            grid = series.grid(max_step)
            options = {"lr": first, "lrd": (last / first) ** (1 / iterations), "betas": (0.9, 0.99), "clip_norm": 1e3}
            svi = SVI(model_of(series, grid), guide_of(posterior, grid), ClippedAdam(options), loss)
            for _ in range(iterations):
                svi.step()
    return posterior
