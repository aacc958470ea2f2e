"""A particle filter: time per pass, and how tight its bound is on a long series.

Task 1: log-evidence of 16 series of 1000 observations of an Ornstein-Uhlenbeck path with 1000 particles, bootstrap,
float32, resampling at half the effective size or at every observation. Metric: CPU milliseconds of one thread.

Task 2: the gap to the exact log-evidence of one series of 200 observations, of a filtering bound (FIVO) and an
importance-weighted bound (IWAE) with as many particles from the same law; means of 50 runs.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch

from pyro_sde import SDEPath, TimeGrid
from pyro_sde.distributions.gaussian_path import GaussianPath
from pyro_sde.distributions.linear_gaussian_ssm import LinearGaussianSSM
from pyro_sde.infer.emissions import EmissionLikelihood
from pyro_sde.infer.particle_filter import particle_filter
from pyro_sde.infer.particle_smoother import particle_smoother
from pyro_sde.sde import OrnsteinUhlenbeck
from tests.benchmarks.harness import Table, measure, select

NOISE = 0.5
RUNS = 50


def emission(z: torch.Tensor) -> dist.Normal:
    return dist.Normal(z, NOISE)


def pass_of(law: SDEPath | GaussianPath, y: torch.Tensor, **options: object) -> Callable[[], object]:
    likelihood = EmissionLikelihood(emission, y)

    def run() -> None:
        with torch.no_grad():
            particle_filter(law, likelihood, 1000, **options)  # type: ignore[arg-type]

    return run


def speed(dim: int) -> Table:
    torch.manual_seed(0)
    grid = TimeGrid(0.1 * torch.arange(1000.0))
    start = dist.Normal(torch.zeros(16, dim), 1.0).to_event(1)
    sde = OrnsteinUhlenbeck(torch.ones(dim), 0.8)
    law, exact = SDEPath(sde, start, grid), GaussianPath(sde, start, grid)
    y = law.sample() + NOISE * torch.randn(16, 1000, dim)
    variants = {
        "SDEPath": pass_of(law, y),
        "SDEPath, resampled every time": pass_of(law, y, threshold=1),
        "SDEPath, multinomial": pass_of(law, y, resampling="multinomial"),
        "GaussianPath": pass_of(exact, y),
    }
    title = f"Particle filter, 1000 particles, 1000 steps, batch 16, D {dim}"
    return measure(title, variants, baseline="SDEPath", rounds=3)


def smoothing() -> Table:
    torch.manual_seed(0)
    grid = TimeGrid(0.1 * torch.arange(100.0))
    law = SDEPath(OrnsteinUhlenbeck(torch.ones(1), 0.8), dist.Normal(torch.zeros(4, 1), 1.0).to_event(1), grid)
    likelihood = EmissionLikelihood(emission, law.sample() + NOISE * torch.randn(4, 100, 1))
    filtered = particle_filter(law, likelihood, 200, keep="all")
    variants = {
        "backward": lambda: particle_smoother(filtered, 100),
        "genealogy": lambda: particle_smoother(filtered, 100, method="genealogy"),
    }
    return measure("Particle smoother, 200 particles, 100 paths, 100 steps, batch 4", variants, baseline="backward")


def gaps() -> list[str]:
    """Mean gap of the two bounds to the exact evidence, with standard errors."""
    torch.manual_seed(0)
    grid = TimeGrid(0.1 * torch.arange(200.0).double())
    start = dist.Normal(torch.zeros(1).double(), 1.0).to_event(1)
    sde = OrnsteinUhlenbeck(torch.ones(1).double(), 0.8)
    y = SDEPath(sde, start, grid).sample() + NOISE * torch.randn(200, 1).double()
    exact = LinearGaussianSSM(GaussianPath(sde, start, grid, discretisation="euler"), None, NOISE).log_prob(y)
    law = SDEPath(sde, start, grid).expand((RUNS,))
    lines = []
    for count in (16, 64, 256):
        found = []
        for threshold in (0.5, 0.0):
            gap = exact - particle_filter(law, EmissionLikelihood(emission, y), count, threshold=threshold).log_evidence
            found.append(f"{float(gap.mean()):.2f} +- {float(gap.std()) / RUNS**0.5:.2f}")
        lines.append(f"gap to the evidence in nats, {count} particles: filtering {found[0]}, importance {found[1]}.")
    return lines


JOBS = {
    "Particle filter, 1000 particles, 1000 steps, batch 16, D 1": lambda: speed(1),
    "Particle filter, 1000 particles, 1000 steps, batch 16, D 2": lambda: speed(2),
    "Particle filter, 1000 particles, 1000 steps, batch 16, D 3": lambda: speed(3),
    "Particle smoother": smoothing,
}


def tables(only: str = "") -> list[Table]:
    found = select(JOBS, only)
    if found:
        found[-1].notes += gaps()
    return found
