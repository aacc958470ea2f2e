"""Steps that an adaptive grid saves: double well and stochastic Lorenz at equal weak error.

Task: paths of the Euler chain to time 2, observed at 20 equal times, from states far out and from where the process
lives anyway. Metric: the weak error, root mean square over observation times of the error of the first two moments of
every state dimension in standard deviations of the moment's argument; its noise is taken off. It is measured against
the same grid with every step cut into eight, on the same Brownian paths, antithetic, times 8/7 for what is left in an
error of order one. Baseline: the uniform grid with the same weak error, between two measured ones on a log scale. The
columns are CPU milliseconds of sampling 256 paths; the pilot is run once per grid. Expected band: half the steps and
less from far out; as many as the uniform grid where no time is special, since one grid serves all paths of a series.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_sde import SDE, SDEPath, TimeGrid
from pyro_sde.ops.pilot import Pilot
from pyro_sde.sde import DoubleWell, StochasticLorenz
from tests.benchmarks._page import grid as markdown
from tests.benchmarks._page import number
from tests.benchmarks.harness import Table, measure, select

HORIZON, OBSERVATIONS, FINER, BATCHES = 2.0, 20, 8, 10
SEEDS = (0, 1, 2)  # of pilots
UNIFORM, ADAPTIVE, PILOT = "uniform grid of equal error", "adaptive grid", "pilot of the adaptive grid"


class Case(NamedTuple):
    """A process and where it starts."""

    sde: SDE
    mean: tuple[float, ...]
    scale: float
    pilot: Pilot
    paths: int

    def initial(self) -> dist.Distribution:
        return dist.Normal(torch.tensor(self.mean, dtype=torch.float64), self.scale).to_event(1)


WELL, LORENZ = Pilot(rtol=0.0, atol=0.01, paths=32), Pilot(rtol=0.0, atol=0.05, paths=32)
CASES = {
    "Double well from far out": Case(DoubleWell(), (4.0,), 0.3, WELL, 8000),
    "Double well from one well": Case(DoubleWell(), (1.0,), 0.35, WELL, 8000),
    "Lorenz from far off the attractor": Case(StochasticLorenz(), (-30.0, 60.0, 120.0), 1.0, LORENZ, 4000),
    "Lorenz from the attractor": Case(StochasticLorenz(), (-8.0, -8.0, 27.0), 1.0, LORENZ, 4000),
}


class Estimate(NamedTuple):
    """A weak error with its standard error over paths."""

    value: float
    error: float


def observation_times() -> Tensor:
    return torch.linspace(0.0, HORIZON, OBSERVATIONS + 1, dtype=torch.float64)


def moments(path: Tensor) -> Tensor:
    return torch.stack([path, path.square()], -1)


def coupled(sde: SDE, grid: TimeGrid, initial: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """States at the observations, on the grid and with steps cut into `FINER`, for the same antithetic noise."""
    coarse = fine = initial
    paths = [[coarse], [fine]]
    for t, step in zip(grid.times.unsqueeze(-1), grid.steps.tolist(), strict=False):
        total, part = torch.zeros_like(initial), step / FINER
        for j in range(FINER):
            half = torch.randn(len(initial) // 2, initial.shape[1], generator=generator, dtype=initial.dtype)
            increment = torch.cat([half, -half]) * math.sqrt(part)
            total += increment
            found = sde.coefficients(t + j * part, fine, (None,))
            fine = fine + found.drift * part + found.diffusion * increment
        found = sde.coefficients(t, coarse, (None,))
        coarse = coarse + found.drift * step + found.diffusion * total
        paths[0].append(coarse)
        paths[1].append(fine)
    coarse, fine = (grid.observed(torch.stack(path, 1))[:, 1:] for path in paths)
    return coarse, fine


def weak_error(case: Case, grid: TimeGrid) -> Estimate:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    initial = case.initial().sample((case.paths,))
    differences, deviation = [], None
    for part in initial.chunk(BATCHES):
        coarse, fine = coupled(case.sde, grid, part, generator)
        deviation = moments(fine).std(0) if deviation is None else deviation
        differences.append((moments(coarse) - moments(fine)).mean(0))
    scaled = torch.stack(differences) / deviation * FINER / (FINER - 1)

    def root(batches: Tensor) -> float:
        noise = batches.var(0) / len(batches)
        return float((batches.mean(0).square() - noise).mean().clamp(min=0).sqrt())

    value = root(scaled)
    left_out = [root(torch.cat([scaled[:i], scaled[i + 1 :]])) for i in range(BATCHES)]
    error = math.sqrt((BATCHES - 1) * statistics.pvariance(left_out)) if math.isfinite(value) else math.inf
    return Estimate(value if math.isfinite(value) else math.inf, error)


def uniform_grid(steps: int) -> TimeGrid:
    return TimeGrid(observation_times(), max_step=HORIZON / (OBSERVATIONS * max(1, round(steps / OBSERVATIONS))))


def steps_at(error: float, curve: dict[int, Estimate]) -> float:
    """Steps of a uniform grid with a given error, on a log scale between two measured ones of `curve`.

    Raises:
        ValueError: if the curve does not reach from above the error to below it.
    """
    counts = sorted(curve)
    for few, many in zip(counts, counts[1:], strict=False):
        high, low = curve[few].value, curve[many].value
        if low <= error <= high:
            # an order of one below a grid on which the chain explodes
            slope = math.log(many / few) / math.log(high / low) if math.isfinite(high) else 1.0
            return many * (error / low) ** -slope
    msg = f"no uniform grid of {counts} steps has a weak error of about {error:.3g}."
    raise ValueError(msg)


def sampler(case: Case, grid: TimeGrid) -> Callable[[], object]:
    law = SDEPath(case.sde, case.initial(), grid)
    return lambda: law.sample((256,))


def compare(name: str) -> Table:
    torch.set_num_threads(1)
    case = CASES[name]
    adapt = partial(TimeGrid.adaptive, case.sde, case.initial(), observation_times())
    grids = [adapt(pilot=Pilot(**{**case.pilot.__dict__, "seed": seed})) for seed in SEEDS]
    found = [weak_error(case, grid) for grid in grids]
    smallest = min(found, key=lambda estimate: estimate.value).value
    curve: dict[int, Estimate] = {}
    factor = 0.5
    while not curve or min(estimate.value for estimate in curve.values()) > smallest:
        grid = uniform_grid(round(factor * grids[0].num_steps))
        curve[grid.num_steps] = weak_error(case, grid)
        factor *= 2**0.5
    equal = [steps_at(estimate.value, curve) for estimate in found]
    ratios = [steps / grid.num_steps for steps, grid in zip(equal, grids, strict=True)]
    # noise of the pilots, and that of the two weak errors, which are of order one in the steps
    noise = [math.hypot(e.error / e.value, _error_near(e.value, curve)) for e in found]
    spread = math.hypot(statistics.stdev(ratios) / len(ratios) ** 0.5, statistics.mean(ratios) * max(noise))
    same = uniform_grid(round(statistics.mean(equal)))
    rows = {UNIFORM: sampler(case, same), ADAPTIVE: sampler(case, grids[0]), PILOT: lambda: adapt(pilot=case.pilot)}
    table = measure(name, rows, baseline=UNIFORM, rounds=3)
    table.notes = [
        f"adaptive, pilot seed {seed}: {grid.num_steps} steps, weak error {e.value:.4f} +- {e.error:.4f}"
        for seed, grid, e in zip(SEEDS, grids, found, strict=True)
    ]
    table.notes += [f"uniform: {steps} steps, weak error {e.value:.4f} +- {e.error:.4f}" for steps, e in curve.items()]
    counts = f"{statistics.mean(grid.num_steps for grid in grids):.0f} | {statistics.mean(equal):.0f}"
    errors = f"{statistics.mean(e.value for e in found):.4f} +- {max(e.error for e in found):.4f}"
    table.notes.append(
        f"steps adaptive | uniform | saved | weak error: {counts} | {statistics.mean(ratios):.2f} +- {spread:.2f} | "
        f"{errors} (n = {case.paths} paths, {len(SEEDS)} pilots)"
    )
    return table


def _error_near(value: float, curve: dict[int, Estimate]) -> float:
    """Relative standard error of the measured point next to a weak error."""
    finite = [estimate for estimate in curve.values() if math.isfinite(estimate.value) and estimate.value > 0]
    near = min(finite, key=lambda estimate: abs(math.log(estimate.value / value)))
    return near.error / near.value


JOBS: dict[str, Callable[[], Table]] = {name: partial(compare, name) for name in CASES}


def tables() -> list[Table]:
    return select(JOBS)


def page(measured: list[Table]) -> str:
    rows = {}
    for table in measured:
        cells = table.notes[-1].split(": ", 1)[1].rsplit(" (", 1)[0].split(" | ")
        times = [number(table.median(row)) for row in (UNIFORM, ADAPTIVE, PILOT)]
        rows[table.title] = [cell.replace("+-", "±") for cell in cells] + times
    columns = ["steps, adaptive", "steps, uniform", "uniform / adaptive", "weak error / sd"]
    return markdown("", [*columns, "uniform, CPU ms", "adaptive", "pilot, once"], rows)
