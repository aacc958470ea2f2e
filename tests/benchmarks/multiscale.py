"""What windows save: a fine path simulated near sparse data only, against the fine path of the whole time.

Task: an `SVI.step` with `PathELBO` on 16 series over 20 units of time; a slow variable on 200 coarse steps, a fast one
on 10 or 20 fine steps each, seen at three short groups of observations, so that windows cover less than 10 % of the
time. Fine dynamics are linear given the coarse path, so re-entry is exact and both have the same bound; a gap forgets
to round-off, so the windows of a series run side by side. Control of the guide: a network on fine and coarse state.
Metric: CPU milliseconds of one thread.
Baselines: the same law with one window over everything, and an `SDEPath` of both variables on the fine grid, with the
library's fast path. Expected: at least 5 times fewer fine steps and 4 times less time than the faster baseline, the
same bound within two standard errors. The rest is the coarse path, which all variants simulate.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from torch import nn

from pyro_sde import PathELBO, SDEPath, TimeGrid
from pyro_sde.distributions.multiscale_path import MultiScalePath
from pyro_sde.infer.randomised_correction import SimulatedGaps
from pyro_sde.ops.windows import Windows
from pyro_sde.sde import OrnsteinUhlenbeck
from pyro_sde.sde.two_scale import FineSDE, TwoScaleSDE
from tests.benchmarks._page import number, single, spread_note
from tests.benchmarks.harness import Table, measure, select

BATCH, COARSE_STEP, END = 16, 0.1, 20.0
SEEN = (4.0, 4.1, 4.2, 11.0, 11.1, 11.2, 17.0, 17.1)
BEFORE = 0.4
PARTICLES = 50
SKIP, WHOLE, JOINT = "windows, exact re-entry", "one window over everything", "SDEPath of both, fine grid"


def towards(t: torch.Tensor, b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return 20 * (a - b)


def noise(t: torch.Tensor, b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return torch.full((1,), 0.95)


class Control(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, 32), nn.SiLU(), nn.Linear(32, width - 1))
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, t: torch.Tensor, *states: torch.Tensor) -> torch.Tensor:
        return self.net(torch.cat([t.expand_as(states[0][..., :1]), *states], -1))


class Problem:
    """The model, and guides of the three variants."""

    def __init__(self, fine_steps: int) -> None:
        torch.manual_seed(0)
        self.fine_steps = fine_steps
        self.scales = TwoScaleSDE(OrnsteinUhlenbeck(0.5, 0.5), FineSDE(towards, noise), coarse_dim=1)
        self.grid = TimeGrid(torch.tensor(SEEN), start=0.0, end=END, max_step=COARSE_STEP)
        self.windows = Windows.around(self.grid, before=BEFORE, after=0.0, fine_steps=fine_steps)
        self.whole = Windows.around(self.grid, before=END, after=END, fine_steps=fine_steps)
        self.start = dist.Normal(torch.zeros(1), 0.5).to_event(1)
        self.values = 0.5 * torch.randn(BATCH, len(SEEN), 1)

    def two_sites(self, windows: Windows, label: str) -> tuple[Callable[[], None], Callable[[], None]]:
        slow, fast = Control(2), Control(3)
        fast.net[-1] = nn.Linear(32, 1)
        nn.init.zeros_(fast.net[-1].weight)

        def paths(coarse: object, fine: object) -> torch.Tensor:
            a = pyro.sample("a", SDEPath(coarse, self.start, self.grid))
            return pyro.sample("b", MultiScalePath(fine, self.start, a, windows))

        def model() -> None:
            with pyro.plate("series", BATCH):
                b = paths(self.scales.coarse, self.scales.fine)
                pyro.sample("y", dist.Normal(windows.observed(b), 0.2).to_event(2), obs=self.values)

        def guide() -> None:
            pyro.module(f"slow {label}", slow)
            pyro.module(f"fast {label}", fast)
            with pyro.plate("series", BATCH):
                paths(self.scales.coarse.controlled(slow), self.scales.fine.controlled(fast))

        return model, guide

    def one_site(self) -> tuple[Callable[[], None], Callable[[], None]]:
        control, grid = Control(3), self.grid.refine(self.fine_steps)
        start = dist.Normal(torch.zeros(2), 0.5).to_event(1)

        def model() -> None:
            with pyro.plate("series", BATCH):
                z = pyro.sample("z", SDEPath(self.scales, start, grid))
                seen = grid.observed(z)[..., 1:]
                pyro.sample("y", dist.Normal(seen, 0.2).to_event(2), obs=self.values)

        def guide() -> None:
            pyro.module("control", control)
            with pyro.plate("series", BATCH):
                pyro.sample("z", SDEPath(self.scales.controlled(control), start, grid))

        return model, guide


def stepper(model: Callable[[], None], guide: Callable[[], None]) -> Callable[[], object]:
    return SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), PathELBO()).step


def agreement(model: Callable[[], None], guide: Callable[[], None], rounds: int = 20) -> str:
    """Bound with and without the gaps, per series, on common noise, and how far apart they are."""
    elbo = PathELBO(num_particles=PARTICLES, vectorize_particles=True, max_plate_nesting=1)
    bounds: list[list[float]] = [[], []]
    with torch.no_grad():
        for seed in range(rounds):
            torch.manual_seed(seed)
            bounds[0].append(-elbo.loss(model, guide) / BATCH)
            torch.manual_seed(seed)
            with SimulatedGaps():
                bounds[1].append(-elbo.loss(model, guide) / BATCH)
    skip, full = torch.tensor(bounds)
    values = [f"{float(x.mean()):.3f} +- {float(x.std()) / rounds**0.5:.3f}" for x in (skip, full)]
    difference = skip - full
    apart = f"{float(difference.mean()):+.4f} +- {float(difference.std()) / rounds**0.5:.4f}"
    return (
        f"bound per series after training: windows {values[0]}, gaps simulated {values[1]}, difference on common noise "
        f"{apart} (standard errors, n = {rounds * PARTICLES})"
    )


def sparse(fine_steps: int, rounds: int = 5) -> Table:
    problem = Problem(fine_steps)
    pyro.clear_param_store()
    windowed = problem.two_sites(problem.windows, SKIP)
    variants = {
        WHOLE: stepper(*problem.two_sites(problem.whole, WHOLE)),
        JOINT: stepper(*problem.one_site()),
        SKIP: stepper(*windowed),
    }
    covered = 1 - float(problem.windows.skipped)
    steps = problem.grid.num_steps * fine_steps
    title = f"{_TITLE}, {fine_steps} fine steps in a coarse one: windows cover {100 * covered:.1f} % of {steps}, "
    table = measure(f"{title}batch {BATCH}", variants, baseline=JOINT, rounds=rounds)
    table.notes.append(f"{1 / covered:.1f} times fewer fine steps")
    train = variants[SKIP]
    for _ in range(100):
        train()
    table.notes.append(agreement(*windowed))
    return table


_TITLE = "One SVI step with sparse data"
JOBS: dict[str, Callable[[], Table]] = {f"{_TITLE}, {count} fine": partial(sparse, count) for count in (20, 10)}


def tables() -> list[Table]:
    return select(JOBS)


def page(measured: list[Table]) -> str:
    parts = []
    for table in measured:
        faster = min(table.ratio(SKIP, WHOLE), table.ratio(SKIP, JOINT))
        text = f"{table.title}; {table.notes[0]}, {number(faster)} times less time than the faster baseline. The "
        parts += [f"{text}{table.notes[1]}.", single(table, ratio=f"{JOINT} / this")]
    return "\n\n".join([*parts, spread_note(measured)])
