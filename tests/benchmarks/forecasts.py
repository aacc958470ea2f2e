"""Forecasts of processes that cannot be negative: moments against exact ones, and states below 0.

Task: paths to time 1 from a fixed state, 10 000 of 100 steps, a million steps in all, float64. Metric: error of mean
and variance at time 1 in standard errors, and the number of states below 0. Baseline: exact moments; those of logistic
growth by the backward Kolmogorov equation of log x on a grid. Expected band: within 2 standard errors and none below 0
for the solvers that the page recommends; explicit steps of a square root go below 0 where the process comes near it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_sde import SDE, SDEPath, TimeGrid
from pyro_sde.distributions import ConstrainedPath
from pyro_sde.sde import (
    ConstrainedSDE,
    CoxIngersollRoss,
    GeometricBrownianMotion,
    LogisticGrowth,
    Positive,
    WrightFisher,
    constrain,
)
from pyro_sde.solvers import SRK, EulerMaruyama, Milstein, ReflectedEuler, Solver, SplitStep
from tests.benchmarks.harness import Table, select

PAGE = "docs/how-to/constrained-states.md"
PATHS, STEPS, SEED = 10_000, 100, 0

Moments = Callable[[], tuple[float, float]]


def logistic_moments(rate: float, capacity: float, scale: float, start: float) -> tuple[float, float]:
    """Mean and variance at time 1 of logistic growth: y = log x has drift r (1 - e^y / K) - s^2 / 2 and diffusion s."""
    y = torch.linspace(math.log(start) - 6.5, math.log(capacity) + 3.5, 1201, dtype=torch.float64)
    h = y[1] - y[0]
    drift = rate * (1 - y.exp() / capacity) - 0.5 * scale**2
    up = (0.5 * scale**2 / h**2 + 0.5 * drift / h).clamp(min=0)
    down = (0.5 * scale**2 / h**2 - 0.5 * drift / h).clamp(min=0)
    up[-1], down[0] = 0, 0
    generator = torch.diag(up[:-1], 1) + torch.diag(down[1:], -1) - torch.diag(up + down)
    values = torch.matrix_exp(generator) @ torch.stack([y.exp(), (2 * y).exp()], -1)
    place = (math.log(start) - y[0]) / h
    low = int(place)
    first, second = torch.lerp(values[low], values[low + 1], place - low).tolist()
    return first, second - first**2


def geometric_moments(growth: float, volatility: float) -> tuple[float, float]:
    return math.exp(growth), math.exp(2 * growth) * math.expm1(volatility**2)


def known(sde: CoxIngersollRoss | WrightFisher, start: float) -> tuple[float, float]:
    mean, variance = sde.moments(torch.tensor(1.0, dtype=torch.float64), torch.tensor(start, dtype=torch.float64))
    return float(mean), float(variance)


def forecast(sde: SDE, solver: Solver, start: float) -> Tensor:
    """States at all times, in the coordinate x, ``(PATHS, STEPS + 1)``."""
    torch.manual_seed(SEED)
    grid = TimeGrid(torch.tensor([0.0, 1.0], dtype=torch.float64), max_step=1 / STEPS)
    initial = dist.Delta(torch.full((PATHS, 1), start, dtype=torch.float64), event_dim=1)
    if isinstance(sde, ConstrainedSDE):
        law = ConstrainedPath.of(sde, initial, grid, solver=solver)
    else:
        law = SDEPath(sde, initial, grid, solver=solver)
    return law.sample().squeeze(-1)


def score(x: Tensor, moments: tuple[float, float]) -> str:
    mean, variance = moments
    end = x[:, -1]
    squares = (end - mean).square()
    shift = float((end.mean() - mean) / (end.std() / math.sqrt(PATHS)))
    spread = float((squares.mean() - variance) / (squares.std() / math.sqrt(PATHS)))
    return f"{shift:+.1f} | {spread:+.1f} | {int((x < 0).sum())}"


def compare(title: str, moments: Moments, runs: dict[str, tuple[SDE, Solver]], start: float) -> Table:
    exact = moments()
    table = Table(title, next(iter(runs)))
    for name, (sde, solver) in runs.items():
        began = time.process_time()
        x = forecast(sde, solver, start)
        table.rows[name] = [1e3 * (time.process_time() - began)]
        table.notes.append(f"{name} | {score(x, exact)}")
    return table


def _geometric() -> Table:
    plain = GeometricBrownianMotion(0.3, 0.4)
    log = constrain(plain, Positive())
    runs = {
        "`Milstein()` of x": (plain, Milstein()),
        "`SRK()` of x": (plain, SRK()),
        "Euler of log x": (log, EulerMaruyama()),
        "`SRK()` of log x": (log, SRK()),
    }
    return compare(GBM, partial(geometric_moments, 0.3, 0.4), runs, 1.0)  # type: ignore[arg-type]


def _logistic() -> Table:
    plain = LogisticGrowth(1.5, 2.0, 0.6)
    log = plain.constrained()
    runs = {
        "`Milstein()` of x": (plain, Milstein()),
        "`SRK()` of x": (plain, SRK()),
        "Euler of log x": (log, EulerMaruyama()),
        "`SRK()` of log x": (log, SRK()),
        "`SplitStep()`": (plain, SplitStep()),
    }
    return compare(LOGISTIC, partial(logistic_moments, 1.5, 2.0, 0.6, 0.5), runs, 0.5)  # type: ignore[arg-type]


def _square_root(title: str, rate: float, mean: float, scale: float) -> Table:
    sde = CoxIngersollRoss(rate, mean, scale)
    runs = {
        "Euler of x": (sde, EulerMaruyama()),
        "`Milstein()` of x": (sde, Milstein()),
        "`SRK()` of x": (sde, SRK()),
        "`ReflectedEuler(lower=0.0)`": (sde, ReflectedEuler(lower=0.0)),
        "`SplitStep()`": (sde, SplitStep()),
    }
    return compare(title, partial(known, sde, 0.5), runs, 0.5)  # type: ignore[arg-type]


def _frequencies() -> Table:
    sde = WrightFisher(0.6, 0.4, 0.0, 0.8)
    runs = {"`ReflectedEuler(0.0, 1.0)`": (sde, ReflectedEuler(0.0, 1.0)), "`SplitStep()`": (sde, SplitStep())}
    return compare(FREQUENCY, partial(known, sde, 0.5), runs, 0.5)  # type: ignore[arg-type]


GBM = "geometric Brownian motion, μ = 0.3, σ = 0.4"
LOGISTIC = "logistic growth, r = 1.5, K = 2, s = 0.6"
FELLER = "Cox–Ingersoll–Ross, κ = 1, θ = 1, s = 0.5"
NEAR_ZERO = "Cox–Ingersoll–Ross, κ = 2, θ = 0.5, s = 1"
FREQUENCY = "Wright–Fisher, α = 0.6, β = 0.4, s = 0.8"
JOBS: dict[str, Callable[[], Table]] = {
    GBM: _geometric,
    LOGISTIC: _logistic,
    FELLER: partial(_square_root, FELLER, 1.0, 1.0, 0.5),
    NEAR_ZERO: partial(_square_root, NEAR_ZERO, 2.0, 0.5, 1.0),
    FREQUENCY: _frequencies,
}


def tables(only: str = "") -> list[Table]:
    return select(JOBS, only)


def page(measured: list[Table]) -> str:
    """One line per process and solver; the figures are in the notes."""
    lines = ["| process | solver | mean | variance | below 0 |", "|---" * 5 + "|"]
    lines += [f"| {table.title} | {note} |" for table in measured for note in table.notes]
    return "\n".join(lines)
