"""Training without simulation against training by simulation: equal CPU time, equal steps, one model.

Task "OU": an Ornstein-Uhlenbeck path (rate 1, scale 1) seen at 20 regular times with noise 0.1; "OU, random times":
at 20 uniform ones, the nearest of a series 1e-4 to 7e-3 apart. "Segmented cosine" and
"Irregular sine": one series with a fixed Ornstein-Uhlenbeck prior (rate 1, scale 0.5) and Laplace noise of scale 0.05,
as in torchsde's example (Li et al. 2020, arXiv 2001.01328). Rows: `PosteriorSDE` with `PathELBO`, Euler steps of 0.01,
and `MarginalFlow` with `SimulationFreeELBO`, 16 paths or draws each, GRU encoders and networks of the same widths, Adam
with the same rate and clipping. Metric: nats between the bound and the exact log evidence (by quadrature over the
state; that of the Euler chain for the simulated row) after some CPU seconds of one thread and after some steps, mean
and standard error over seeds. Baseline: the simulated path.

"Stochastic Lorenz": `LatentSDE` on 1024 series of 41 times in [0, 1], diffusion 0.15. Metric: divergence of the laws of
simulated and generated observations at times 0.25 and 1, by nearest neighbours, and their energy distance.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer import SVI
from pyro.optim import ExponentialLR, PyroLRScheduler
from torch import Tensor

from pyro_sde import GaussianPath, PathELBO, SDEPath, TimeGrid
from pyro_sde.data import synthetic
from pyro_sde.distributions.base import PathDistribution
from pyro_sde.guides import PosteriorSDE
from pyro_sde.guides.marginal_flow import MarginalFlow, StratifiedTimes
from pyro_sde.infer.simulation_free import SimulationFreeELBO
from pyro_sde.models import LatentSDE
from pyro_sde.models.parts import Architecture
from pyro_sde.nn import ControlNet, GRUEncoder
from pyro_sde.nn.marginal_encoders import GRUMarginals
from pyro_sde.sde import OrnsteinUhlenbeck
from tests.benchmarks._page import grid as markdown
from tests.benchmarks.harness import Table, select

ON_REQUEST = True  # minutes
PAGE = "docs/how-to/simulation-free.md"
SIMULATED, FREE = "simulated path", "without simulation"
SEEDS, MORE_SEEDS = (0, 1, 2), (0, 1, 2, 3, 4)
SECONDS, STEPS = (1.0, 2.0, 5.0, 10.0, 25.0), (100, 500)
STEP, DRAWS, RATE, DECAY, CLIP = 0.01, 16, 1e-2, 0.999, 20.0
LORENZ_SECONDS, LORENZ_TIMES, LORENZ_BATCH, LORENZ_STEP = 120.0, (0.25, 1.0), 64, 0.0125


# --- the toys of one series -------------------------------------------------------------


class Toy(NamedTuple):
    """One series with a stationary Ornstein-Uhlenbeck prior."""

    rate: float
    scale: float
    times: Tensor  # (N,)
    values: Tensor  # (N, 1)
    noise: Callable[[Tensor], TorchDistributionMixin]

    def grid(self, max_step: float | None) -> TimeGrid:
        return TimeGrid(self.times, start=0.0, max_step=max_step)

    def prior(self, grid: TimeGrid) -> SDEPath:
        initial = dist.Normal(torch.zeros(1), self.scale / math.sqrt(2 * self.rate)).to_event(1)
        return SDEPath(OrnsteinUhlenbeck(self.rate, self.scale), initial, grid)

    def evidence(self, grid: TimeGrid | None = None) -> float:
        """Log evidence, by quadrature over the state; of the Euler chain of a grid if there is one."""
        stationary = self.scale**2 / (2 * self.rate)
        reach = 6 * math.sqrt(stationary)
        state = torch.linspace(-reach, reach, 1401, dtype=torch.float64)
        cell = float(state[1] - state[0])
        weight = dist.Normal(0.0, math.sqrt(stationary)).log_prob(state).exp() * cell
        total, now = 0.0, 0.0
        for t, value in zip(self.times.double().tolist(), self.values.double().squeeze(-1), strict=True):
            shrink, variance = self._transition(now, t, stationary, grid)
            if variance > 0:
                kernel = dist.Normal(shrink * state, math.sqrt(variance)).log_prob(state.unsqueeze(-1)).exp()
                weight = kernel @ weight * cell
            weight = weight * self.noise(state).log_prob(value).exp()
            mass = weight.sum()
            total, weight, now = total + float(mass.log()), weight / mass, t
        return total

    def _transition(self, begin: float, end: float, stationary: float, grid: TimeGrid | None) -> tuple[float, float]:
        if grid is None:
            shrink = math.exp(-self.rate * (end - begin))
            return shrink, stationary * (1 - shrink**2)
        shrink, variance = 1.0, 0.0
        times = grid.times.double()
        for left, right in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
            if left >= begin - 1e-6 and right <= end + 1e-6:
                factor = 1 - self.rate * (right - left)
                shrink, variance = shrink * factor, factor**2 * variance + self.scale**2 * (right - left)
        return shrink, variance


def ou(seed: int) -> Toy:
    """A draw of the prior, seen with noise at regular times."""
    torch.manual_seed(1000 + seed)
    times = torch.linspace(0.1, 2.0, 20)
    return _seen(Toy(1.0, 1.0, times, torch.zeros(20, 1), lambda z: dist.Normal(z, 0.1)))


def ou_random_times(seed: int) -> Toy:
    """As `ou`, at uniform times."""
    torch.manual_seed(1000 + seed)
    times = torch.empty(20).uniform_(0.1, 2.0).sort().values
    return _seen(Toy(1.0, 1.0, times, torch.zeros(20, 1), lambda z: dist.Normal(z, 0.1)))


def _seen(toy: Toy) -> Toy:
    """With values drawn from the prior and noise of scale 0.1."""
    grid = toy.grid(0.001)
    path = grid.observed(toy.prior(grid).sample())
    return toy._replace(values=path + 0.1 * torch.randn(20, 1))


def control_floor(toy: Toy, noise_scale: float, step: float = STEP) -> float:
    r"""Nats that no control can gain on this grid if the noise is Normal: its steps keep the variance h of the prior.

    The exact posterior of the chain has narrower steps, of variance v, whatever the data: with the best mean each costs
    :math:`(h/v - 1 - \log(h/v))/2`.
    """
    grid = TimeGrid(torch.cat([torch.zeros(1), toy.times]).double(), max_step=step)
    start = dist.Normal(torch.zeros(1).double(), toy.scale / (2 * toy.rate) ** 0.5).to_event(1)
    prior = OrnsteinUhlenbeck(toy.rate, toy.scale, state_dim=1)
    seen = torch.arange(len(toy.times) + 1) > 0
    values = torch.zeros(len(seen), 1).double()
    law = GaussianPath(prior, start, grid, discretisation="euler").condition(None, noise_scale, values, seen)
    ratio = toy.scale**2 * grid.times.diff() / law.chain.noise.flatten()
    return 0.5 * float((ratio - 1 - ratio.log()).sum())


def segmented_cosine(seed: int) -> Toy:
    """The same series for every seed."""
    del seed
    times = torch.cat([torch.linspace(0.3, 0.8, 10), torch.linspace(1.2, 1.5, 10)])
    values = (2 * math.pi * times).cos().unsqueeze(-1)
    return Toy(1.0, 0.5, times, values, lambda z: dist.Laplace(z, 0.05))


def irregular_sine(seed: int) -> Toy:
    """16 random times."""
    torch.manual_seed(2000 + seed)
    times = torch.empty(16).uniform_(0.4, 1.6).sort().values
    values = 0.8 * (2 * math.pi * times).sin().unsqueeze(-1)
    return Toy(1.0, 0.5, times, values, lambda z: dist.Laplace(z, 0.05))


def optimiser() -> PyroLRScheduler:
    """Adam with a falling rate and clipped gradients, the same for all rows."""
    adam = {"optimizer": torch.optim.Adam, "optim_args": {"lr": RATE}, "gamma": DECAY}
    return ExponentialLR(adam, {"clip_norm": CLIP})


Law = Callable[[], PathDistribution]
Mark = tuple[float, int, float]  # CPU seconds, steps, gap in nats


def posterior(toy: Toy, name: str, grid: TimeGrid) -> tuple[Law, PathELBO, PathELBO]:
    """The law of the guide, the loss for training, and that for measuring."""
    if name == SIMULATED:
        guide = PosteriorSDE(GRUEncoder(1, 1, 16, time_scale=0.1), ControlNet(1, 16, 1, (64, 64)))
        return lambda: guide(toy.prior(grid).sde, grid, toy.values), PathELBO("closed"), PathELBO("closed")
    flow = MarginalFlow(GRUMarginals(1, 1, time_scale=0.1))
    loss, exact = (SimulationFreeELBO(StratifiedTimes(count)) for count in (16, 128))
    return lambda: flow(toy.prior(grid).sde, grid, toy.values), loss, exact


def course(make: Callable[[int], Toy], name: str, seed: int, seconds: Sequence[float] = SECONDS) -> list[Mark]:
    """Gaps to the evidence in the course of one training; measuring does not count as time."""
    toy = make(seed)
    torch.manual_seed(seed)
    pyro.clear_param_store()
    grid = toy.grid(STEP if name == SIMULATED else None)
    evidence = toy.evidence(grid if name == SIMULATED else None)
    law, loss, exact = posterior(toy, name, grid)

    def model(draws: int) -> None:
        with pyro.plate("draws", draws):
            z = pyro.sample("z", toy.prior(grid))
            pyro.sample("y", toy.noise(grid.observed(z)).to_event(2), obs=toy.values)

    def guide(draws: int) -> None:
        with pyro.plate("draws", draws):
            pyro.sample("z", law())

    schedule = optimiser()
    svi = SVI(model, guide, schedule, loss)
    marks: list[Mark] = []
    spent, step, left = 0.0, 0, list(seconds)
    while left or step < max(STEPS):
        start = time.process_time()
        svi.step(DRAWS)
        schedule.step()
        spent, step = spent + time.process_time() - start, step + 1
        due = bool(left) and spent >= left[0]
        if due or step in STEPS:
            with torch.no_grad():
                bound = -exact.loss(model, guide, 2000) / 2000
            marks.append((left.pop(0) if due else math.nan, step, evidence - bound))
    return marks


def compare(title: str, make: Callable[[int], Toy], seeds: Sequence[int] = SEEDS) -> Table:
    torch.set_num_threads(1)
    table = Table(title, SIMULATED, {SIMULATED: [], FREE: []})
    for name in (SIMULATED, FREE):
        runs = []
        for seed in seeds:
            began = time.process_time()
            runs.append(course(make, name, seed))
            table.rows[name].append(1e3 * (time.process_time() - began))
        cells = [spread([gap for run in runs for mark, _, gap in run if mark == due]) for due in SECONDS]
        cells += [spread([gap for run in runs for _, step, gap in run if step == due]) for due in STEPS]
        counts = [step for run in runs for mark, step, _ in run if mark == SECONDS[-1]]
        table.notes.append(f"{title} | {name} | " + " | ".join([*cells, f"{statistics.mean(counts):.0f}"]))
    return table


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.{digits}f} ± {error:.{digits}f}"


# --- stochastic Lorenz ------------------------------------------------------------------


def energy_distance(x: Tensor, y: Tensor) -> float:
    r"""Square :math:`2 E|X - Y| - E|X - X'| - E|Y - Y'|` of draws ``(n, D)`` each, unbiased."""
    own = sum(float(torch.cdist(part, part).sum()) / (len(part) * (len(part) - 1)) for part in (x, y))
    return 2 * float(torch.cdist(x, y).mean()) - own


def neighbour_divergence(x: Tensor, y: Tensor, count: int = 5) -> float:
    """Divergence of the law of draws x from that of y, in nats, by distances to the nearest neighbours.

    Wang, Kulkarni, Verdu (2009), Divergence estimation for multidimensional densities, eq. (5).
    """
    own = torch.cdist(x, x).kthvalue(count + 1).values  # the nearest is the point itself
    other = torch.cdist(x, y).kthvalue(count).values
    return x.shape[-1] * float((other / own).log().mean()) + math.log(len(y) / (len(x) - 1))


def lorenz_data(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Times, 1024 series for training, and 4096 others that are standardised with them."""
    series = synthetic.stochastic_lorenz(
        seed, num_series=1024 + 4096, num_times=41, end_time=1.0, diffusion=(0.15, 0.15, 0.15)
    )
    values = series.values.float()
    return series.times[0].float(), values[:1024], values[1024:]


def lorenz_model(name: str, seed: int, seconds: float) -> tuple[LatentSDE, int]:
    """A model trained for so many CPU seconds, and the number of steps."""
    times, values, _ = lorenz_data(seed)
    torch.manual_seed(seed)
    pyro.clear_param_store()
    latent = LatentSDE(4, 3, max_step=LORENZ_STEP, architecture=Architecture(time_scale=0.1))
    flow = MarginalFlow(GRUMarginals(3, 4, time_scale=0.1))
    grid = TimeGrid(times, max_step=LORENZ_STEP if name == SIMULATED else None)

    def free_guide(grid: TimeGrid, values: Tensor) -> None:
        with pyro.plate("series", len(values), dim=-1):
            pyro.sample("z", flow(latent.prior, grid, values))

    guide, loss = (
        (latent.guide, PathELBO("closed"))
        if name == SIMULATED
        else (free_guide, SimulationFreeELBO(StratifiedTimes(8)))
    )
    schedule = optimiser()
    svi = SVI(latent.model, guide, schedule, loss)
    spent, step = 0.0, 0
    while spent < seconds:
        start = time.process_time()
        svi.step(grid, values[torch.randint(len(values), (LORENZ_BATCH,))])
        schedule.step()
        spent, step = spent + time.process_time() - start, step + 1
    return latent, step


def lorenz() -> Table:
    torch.set_num_threads(1)
    table = Table(LORENZ, SIMULATED, {SIMULATED: [], FREE: []})
    figures: dict[str, list[list[float]]] = {SIMULATED: [], FREE: [], ITSELF: []}
    counts: dict[str, list[int]] = {SIMULATED: [], FREE: []}
    for seed in SEEDS:
        times, _, reference = lorenz_data(seed)
        index = [int((times - t).abs().argmin()) for t in LORENZ_TIMES]
        truth, again = reference[:2048, index], reference[2048:, index]
        figures[ITSELF].append(distances(again, truth))
        for name in (SIMULATED, FREE):
            began = time.process_time()
            latent, step = lorenz_model(name, seed, LORENZ_SECONDS)
            table.rows[name].append(1e3 * (time.process_time() - began))
            counts[name].append(step)
            latent.max_step = LORENZ_STEP if name == SIMULATED else LORENZ_STEP / 5
            with torch.no_grad():
                drawn = latent.sample_prior(times[index], num_samples=2048, start=0.0, seed=seed).y
            figures[name].append(distances(drawn, truth))
    for name, runs in figures.items():
        cells = [spread(column) for column in zip(*runs, strict=True)]
        steps = f"{statistics.mean(counts[name]):.0f}" if name in counts else ""
        table.notes.append(f"{name} | " + " | ".join([*cells, steps]))
    return table


def distances(drawn: Tensor, truth: Tensor) -> list[float]:
    """Divergences of the truth from what is drawn, then energy distances x 100, at the times of a row ``(n, 2, 3)``."""
    divergences = [neighbour_divergence(truth[:, i], drawn[:, i]) for i in range(len(LORENZ_TIMES))]
    return divergences + [100 * energy_distance(truth[:, i], drawn[:, i]) for i in range(len(LORENZ_TIMES))]


LORENZ, ITSELF = "Stochastic Lorenz", "simulator against itself"
JOBS: dict[str, Callable[[], Table]] = {
    "OU": partial(compare, "OU", ou),
    "OU, random times": partial(compare, "OU, random times", ou_random_times, MORE_SEEDS),
    "Segmented cosine": partial(compare, "Segmented cosine", segmented_cosine),
    "Irregular sine": partial(compare, "Irregular sine", irregular_sine),
    LORENZ: lorenz,
}


def tables(only: str = "") -> list[Table]:
    return select(JOBS, only)


# Divergences at 0.25 and 1; Kiyohara et al. (2025), Neural stochastic flows, table for the stochastic Lorenz system.
PUBLISHED = {
    "Latent SDE, published": ("2.1 ± 0.9", "1.5 ± 0.5"),
    "SDE matching, published": ("4.3 ± 0.7", "3.8 ± 1.0"),
    "Neural stochastic flow, published": ("0.8 ± 0.7", "0.2 ± 0.6"),
}


def page(measured: list[Table]) -> str:
    """The toys in one table, stochastic Lorenz in another."""
    rows = {name: [*cells, "", "", ""] for name, cells in PUBLISHED.items()}
    toys: dict[str, list[str]] = {}
    for table in measured:
        for note in table.notes:
            cells = note.split(" | ")
            if table.title == LORENZ:
                rows[cells[0]] = cells[1:]
            else:
                toys[" | ".join(cells[:2])] = cells[2:]
    marks = [f"{due:g} s" for due in SECONDS] + [f"{due} steps" for due in STEPS]
    parts = []
    if toys:
        parts.append(
            markdown("toy | guide", [*marks, f"steps in {SECONDS[-1]:g} s"], toys).replace("|---|", "|---|---|", 1)
        )
    if len(rows) > len(PUBLISHED):
        columns = [f"{what}, t = {t:g}" for what in ("divergence", "100 x energy distance") for t in LORENZ_TIMES]
        parts.append(markdown(LORENZ, [*columns, f"steps in {LORENZ_SECONDS:g} s"], rows))
    return "\n\n".join(parts)
