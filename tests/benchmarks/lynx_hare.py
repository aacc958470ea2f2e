"""NUTS on lynx and hare without process noise, against the reference posterior of posteriordb.

    python -m tests.benchmarks.lynx_hare --reference FILE [--data FOLDER] [--chains 2] [--draws 1500]

Task: the pelts of 21 years (`pyro_sde.data`: "hudson_lynx_hare"), Lotka-Volterra without noise in the path, lognormal
measurements: the model lotka_volterra.stan of posteriordb, with its priors. The reference are its 10,000 draws,
`reference_posteriors/draws/draws/hudson_lynx_hare-lotka_volterra.json.zip` of github.com/stan-dev/posteriordb, given as
FILE, zipped or not. The path is that of `integrate` with a diffusion of 0: one Runge-Kutta step of order 4 as the slope
of every Euler step, in logarithms, half a year each.

Metrics, for each parameter: difference of the posterior means in reference standard deviations, and ratio of the
standard deviations, both with the standard error of both sets of draws. Expected band: within 0.1 and within 10 %.
The bias of the step is measured apart, without any sampler: the reference draws are weighted by the ratio of the
likelihood on this grid to that on one with steps of a sixteenth of a year. Minutes of CPU time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import init_to_value
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor
from torch.distributions import constraints

from pyro_sde import SDE, TimeGrid
from pyro_sde.data import load
from pyro_sde.solvers import EulerMaruyama, Execution, integrate
from tests.benchmarks._page import grid as markdown

ON_REQUEST = True  # it needs files, which come with no checkout
STEP, FINE = 0.5, 1 / 16
CAP = 9.0  # of a log-population, 8 million pelts: paths of wild parameters stay finite
PREY, PREDATOR = 0, 1
SIGN = torch.tensor([1.0, -1.0], dtype=torch.float64)
# Ours: the site and its entry; theirs: the name in the file.
PARAMETERS = {
    "α, growth of hares": ("growth", PREY, "theta[1]"),
    "β, hares lost to a lynx": ("pull", PREY, "theta[2]"),
    "γ, decline of lynxes": ("growth", PREDATOR, "theta[3]"),
    "δ, lynxes gained by a hare": ("pull", PREDATOR, "theta[4]"),
    "hares in 1900": ("start", PREY, "z_init[1]"),
    "lynxes in 1900": ("start", PREDATOR, "z_init[2]"),
    "σ of hares": ("sigma", PREY, "sigma[1]"),
    "σ of lynxes": ("sigma", PREDATOR, "sigma[2]"),
}
Draws = Mapping[str, Tensor]


class PositiveNormal(dist.Normal):
    """A normal law above 0 for a sampler of a posterior: without its constant, and not to be drawn from."""

    support = constraints.positive


def path(growth: Tensor, pull: Tensor, start: Tensor, grid: TimeGrid) -> Tensor:
    """Logarithms of both populations, ``(..., K + 1, 2)``: Runge-Kutta of order 4 for a path without noise."""
    rates, pulls, h = SIGN * growth, -SIGN * pull, grid.steps[0].item()

    def slope(z: Tensor) -> Tensor:
        return torch.addcmul(rates, pulls, z.clamp(max=CAP).exp().flip(-1))

    def mean_slope(_t: Tensor, z: Tensor) -> Tensor:
        first = slope(z)
        second = slope(z + 0.5 * h * first)
        third = slope(z + 0.5 * h * second)
        return (first + 2 * (second + third) + slope(z + h * third)) / 6

    sde = SDE(mean_slope, lambda _t, z: torch.zeros_like(z))
    still = torch.zeros(grid.num_steps, *torch.broadcast_shapes(growth.shape, start.shape), dtype=start.dtype)
    return integrate(EulerMaruyama(), sde, grid, start.log(), still, (None,), Execution(backward="parallel"))


def model(pelts: Tensor, grid: TimeGrid) -> None:
    """lotka_volterra.stan of posteriordb."""
    one = torch.ones(2, dtype=torch.float64)
    growth = pyro.sample("growth", PositiveNormal(one, 0.5 * one).to_event(1))
    pull = pyro.sample("pull", PositiveNormal(0.05 * one, 0.05 * one).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(-one, one).to_event(1))
    start = pyro.sample("start", dist.LogNormal(math.log(10) * one, one).to_event(1))
    seen = grid.observed(path(growth, pull, start, grid))
    pyro.sample("pelts", dist.LogNormal(seen, sigma).to_event(2), obs=pelts)


def first_guess(pelts: Tensor) -> dict[str, Tensor]:
    """Where chains start, from theory: cycles of ten years about the mean populations."""
    rate = torch.full((2,), 2 * math.pi / 10, dtype=torch.float64)
    pull = rate / pelts.mean(0).flip(-1)
    return {"growth": rate, "pull": pull, "start": pelts[0], "sigma": torch.full_like(rate, 0.5)}


def sample(pelts: Tensor, grid: TimeGrid, *, chains: int, draws: int, warmup: int) -> Draws:
    """Posterior draws, ``(chains, draws, 2)`` each; every chain has a seed of its own."""
    runs = []
    for seed in range(chains):
        pyro.set_rng_seed(seed)
        began = time.process_time()
        kernel = NUTS(model, init_strategy=init_to_value(values=first_guess(pelts)), full_mass=True, max_tree_depth=8)
        mcmc = MCMC(kernel, num_samples=draws, warmup_steps=warmup, disable_progbar=True)
        mcmc.run(pelts, grid)
        diverged = len(mcmc.diagnostics()["divergences"]["chain 0"])
        seconds = time.process_time() - began
        print(f"chain {seed}: {draws} draws, {diverged} divergences, {seconds:.0f} s of CPU time", flush=True)
        runs.append(mcmc.get_samples())
    return {name: torch.stack([run[name] for run in runs]) for name in runs[0]}


def read_reference(file: Path) -> Draws:
    """Draws of posteriordb under our names, ``(10, 1000, 2)`` each."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            chains = json.loads(archive.read(archive.namelist()[0]))
    else:
        chains = json.loads(file.read_text())
    found: dict[str, list[Tensor]] = {}
    for site, _, name in PARAMETERS.values():  # the entry of hares stands before that of lynxes
        found.setdefault(site, []).append(torch.tensor([chain[name] for chain in chains], dtype=torch.float64))
    return {site: torch.stack(parts, -1) for site, parts in found.items()}


def moments(draws: Tensor) -> tuple[float, float, float, float]:
    """Mean and its standard error, standard deviation and its standard error, of draws ``(chains, n)``."""
    mean = draws.mean()
    squares = (draws - mean).square()
    spread = draws.std()
    mean_error = spread / effective_sample_size(draws, 0, 1).clamp(max=draws.numel()).sqrt()
    square_error = squares.std() / effective_sample_size(squares, 0, 1).clamp(max=draws.numel()).sqrt()
    return mean.item(), mean_error.item(), spread.item(), (0.5 * square_error / spread).item()


def compare(ours: Draws, reference: Draws) -> str:
    """Markdown: a row per parameter."""
    rows = {}
    for label, (site, entry, _) in PARAMETERS.items():
        mean, mean_error, spread, spread_error = moments(ours[site][..., entry])
        known, known_error, scale, scale_error = moments(reference[site][..., entry])
        shift, shift_error = (mean - known) / scale, math.hypot(mean_error, known_error) / scale
        ratio, ratio_error = spread / scale, math.hypot(spread_error / spread, scale_error / scale) * spread / scale
        r_hat = split_gelman_rubin(ours[site][..., entry], 0, 1).item()
        rows[label] = [
            f"{mean:.4g} ± {spread:.3g}",
            f"{known:.4g} ± {scale:.3g}",
            f"{shift:+.3f} ± {shift_error:.3f}",
            f"{ratio:.3f} ± {ratio_error:.3f}",
            f"{r_hat:.3f}",
        ]
    columns = ["ours, mean ± sd", "reference", "difference of means / sd", "ratio of sd", "R-hat"]
    return markdown("parameter", columns, rows)


def grid_bias(pelts: Tensor, times: Tensor, reference: Draws, step: float) -> str:
    """What the step alone does to the posterior: the reference draws, weighted."""
    flat = {site: draws.flatten(0, 1) for site, draws in reference.items()}

    def log_likelihood(size: float) -> Tensor:
        grid = TimeGrid(times, max_step=size)
        seen = grid.observed(path(flat["growth"], flat["pull"], flat["start"], grid))
        return dist.LogNormal(seen, flat["sigma"][:, None]).log_prob(pelts).sum((-2, -1))

    with torch.no_grad():
        weights = (log_likelihood(step) - log_likelihood(FINE)).softmax(0)[:, None]
    worst_mean, worst_spread = 0.0, 0.0
    for draws in flat.values():
        mean, scale = (weights * draws).sum(0), draws.std(0)
        spread = (weights * (draws - mean).square()).sum(0).sqrt()
        worst_mean = max(worst_mean, ((mean - draws.mean(0)) / scale).abs().max().item())
        worst_spread = max(worst_spread, (spread / scale - 1).abs().max().item())
    return (
        f"step {step:g}: means move by at most {worst_mean:.4f} reference sd, standard deviations by at most "
        f"{100 * worst_spread:.2f} %"
    )


def tables() -> list[object]:
    """Says how to run this benchmark, which times nothing."""
    raise SystemExit("lynx_hare needs files: python -m tests.benchmarks.lynx_hare --reference FILE [--data FOLDER]")


def main(arguments: Sequence[str] | None = None, report: Callable[[str], None] = print) -> None:
    """Sample the posterior and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.lynx_hare")
    parser.add_argument("--reference", type=Path, required=True, help="draws of posteriordb, .json or .json.zip")
    parser.add_argument("--data", type=Path, help="folder with posteriordb/, instead of $PYRO_SDE_DATA")
    parser.add_argument("--chains", type=int, default=2)
    parser.add_argument("--draws", type=int, default=1500)
    parser.add_argument("--warmup", type=int, default=400)
    parser.add_argument("--step", type=float, default=STEP, help="years")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.data is not None:
        os.environ["PYRO_SDE_DATA"] = str(given.data)
    reference = read_reference(given.reference)
    series = load("hudson_lynx_hare")
    pelts, times = series.values[0], series.times[0]
    report(grid_bias(pelts, times, reference, given.step))
    grid = TimeGrid(times, max_step=given.step)
    ours = sample(pelts, grid, chains=given.chains, draws=given.draws, warmup=given.warmup)
    report(f"\n{given.chains} chains of {given.draws} draws, {given.warmup} of warm-up each\n")
    report(compare(ours, reference))


if __name__ == "__main__":
    main()
