"""What windows save on a real waveform: an electrocardiogram seen for one second in ten.

    python -m tests.benchmarks.ecg [--data FOLDER]

Task: an `SVI.step` with `PathELBO` on four parts of 30 s of "ecg_mitdb100" (lead MLII, standardised), of which a second
at 3, 13 and 23 s is given, 45 values each. Coarse: phase and logarithmic rate of the heart, on steps of 1/45 s.
Fine: the voltage, drawn to a learned function of the phase within 15 ms, on steps of 1/360 s, the rate of the record.
The voltage is linear given the phase, so re-entry is exact. Guide: networks that see state, time, and the last value
given. Metric: CPU milliseconds of one thread per step, against the same law with one window over everything, and the
bound of both on common noise after some training. Nothing is said about how good the fit is.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from torch import Tensor, nn

from pyro_sde.data import load
from pyro_sde.distributions.multiscale_path import MultiScalePath
from pyro_sde.distributions.sde_path import SDEPath
from pyro_sde.infer.elbo import PathELBO
from pyro_sde.infer.randomised_correction import SimulatedGaps
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.ops.windows import Windows
from pyro_sde.sde import SDE
from pyro_sde.sde.two_scale import FineSDE
from tests.benchmarks._page import number
from tests.benchmarks.harness import Table, measure

ON_REQUEST = True  # it needs files, which come with no checkout
RATE, SEEN, FINE_STEPS, SECONDS, PARTS = 360, 45, 8, 30, 4  # Hz, Hz, fine steps per coarse step, and how much
BURSTS = (3, 13, 23)  # seconds at which a second of data begins
WINDOWS, WHOLE = "windows, exact re-entry", "one window over everything"
_BEFORE = 0.1  # seconds of fine path before a burst


class Heart(nn.Module):
    """Phase and logarithmic rate; a voltage that follows a function of the phase."""

    def __init__(self) -> None:
        super().__init__()
        self.wave = nn.Sequential(nn.Linear(6, 32), nn.SiLU(), nn.Linear(32, 1))
        self.log_noise = nn.Parameter(torch.tensor(0.0))

    def coarse(self) -> SDE:
        def drift(t: Tensor, a: Tensor) -> Tensor:
            rate = a[..., 1:]
            return torch.cat([2 * math.pi * rate.exp(), math.log(1.25) - rate], -1)

        return SDE(drift, lambda t, a: torch.tensor([0.1, 0.1]).expand_as(a))

    def fine(self) -> FineSDE:
        def drift(t: Tensor, b: Tensor, a: Tensor) -> Tensor:
            phase = a[..., :1] * torch.tensor([1.0, 2.0, 4.0])
            return (self.wave(torch.cat([phase.sin(), phase.cos()], -1)) - b) / 0.015

        return FineSDE(drift, lambda t, b, a: self.log_noise.exp().expand_as(b))


class Control(nn.Module):
    """Reads time, all states but the growing phase itself, and what is given."""

    def __init__(self, fine: int, controls: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(fine + 6, 32), nn.SiLU(), nn.Linear(32, controls))
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, t: Tensor, *given: Tensor) -> Tensor:
        *fine, a, inputs = given
        phase = a[..., :1]
        parts = [t / SECONDS, *fine, phase.sin(), phase.cos(), a[..., 1:], inputs]
        batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return self.net(torch.cat([part.expand(*batch, part.shape[-1]) for part in parts], -1))


class Problem:
    """Model and guide on windows, and on one window over everything; they share nothing but the data."""

    def __init__(self, voltage: Tensor) -> None:
        step = RATE // SEEN
        parts = voltage[: PARTS * SECONDS * RATE].reshape(PARTS, -1)
        index = torch.cat([torch.arange(first * SEEN, (first + 1) * SEEN) for first in BURSTS])
        self.values = parts[:, ::step][:, index].float().unsqueeze(-1)
        points = torch.arange(SECONDS * SEEN + 1) / SEEN
        self.grid = TimeGrid(points[index], start=0.0, end=float(SECONDS), max_step=1.001 / SEEN)
        self.windows = Windows.around(self.grid, before=_BEFORE, after=0.0, fine_steps=FINE_STEPS)
        self.whole = Windows.around(self.grid, before=float(SECONDS), after=float(SECONDS), fine_steps=FINE_STEPS)
        last = torch.searchsorted(points[index], self.grid.times[:-1] + 1e-4) - 1  # -1: nothing yet
        fresh = (last >= 0) & ((self.grid.times[:-1] - points[index][last.clamp(min=0)]).abs() < 1.5 / SEEN)
        seen = torch.where(fresh.unsqueeze(-1), self.values[:, last.clamp(min=0)], 0.0)
        self.inputs = torch.cat([seen, fresh.float()[:, None].expand_as(seen)], -1)
        self.first = dist.Normal(torch.tensor([0.0, math.log(1.25)]), torch.tensor([1.5, 0.1])).to_event(1)
        self.start = dist.Normal(torch.zeros(1), 1.0).to_event(1)

    def pair(self, windows: Windows, label: str) -> tuple[Callable[[], None], Callable[[], None]]:
        torch.manual_seed(0)
        heart, slow, fast = Heart(), Control(0, 2), Control(1, 1)

        def model() -> None:
            pyro.module(f"heart {label}", heart)
            with pyro.plate("parts", PARTS):
                a = pyro.sample("a", SDEPath(heart.coarse(), self.first, self.grid))
                b = pyro.sample("b", MultiScalePath(heart.fine(), self.start, a, windows))
                pyro.sample("y", dist.Normal(windows.observed(b), 0.3).to_event(2), obs=self.values)

        def guide() -> None:
            pyro.module(f"slow {label}", slow)
            pyro.module(f"fast {label}", fast)
            with pyro.plate("parts", PARTS):
                sde = heart.coarse().controlled(slow)
                a = pyro.sample("a", SDEPath(sde, self.first, self.grid, inputs=self.inputs))
                fine = heart.fine().controlled(fast)
                pyro.sample("b", MultiScalePath(fine, self.start, a, windows, inputs=self.inputs))

        return model, guide


def compare(voltage: Tensor, *, rounds: int, training: int, particles: int) -> Table:
    """Time both in turn, train the one on windows, and compare its bound with that of the simulated gaps."""
    pyro.clear_param_store()
    problem = Problem(voltage)
    pairs = {
        name: problem.pair(windows, name) for name, windows in ((WHOLE, problem.whole), (WINDOWS, problem.windows))
    }
    steps = {name: SVI(*pair, pyro.optim.Adam({"lr": 3e-3}), PathELBO()).step for name, pair in pairs.items()}
    skipped = float(problem.windows.skipped)
    title = f"Electrocardiogram: {100 * skipped:.1f} % of {problem.grid.num_steps * FINE_STEPS} fine steps skipped"
    table = measure(title, steps, baseline=WHOLE, rounds=rounds)
    for _ in range(training):
        steps[WINDOWS]()
    elbo, bounds = PathELBO(), [[], []]
    with torch.no_grad():
        for seed in range(particles):
            torch.manual_seed(seed)
            bounds[0].append(-elbo.loss(*pairs[WINDOWS]) / PARTS)
            torch.manual_seed(seed)
            with SimulatedGaps():
                bounds[1].append(-elbo.loss(*pairs[WINDOWS]) / PARTS)
    skip, full = torch.tensor(bounds)
    figures = [f"{float(x.mean()):.2f} +- {float(x.std()) / particles**0.5:.2f}" for x in (skip, full, skip - full)]
    table.notes.append(f"{number(table.ratio(WINDOWS))} times less time per step")
    table.notes.append(
        f"bound per part after {training} steps: windows {figures[0]}, gaps simulated {figures[1]}, difference on "
        f"common noise {figures[2]} (standard errors, n = {particles})"
    )
    return table


def tables() -> list[object]:
    """Says how to run this benchmark."""
    raise SystemExit("ecg needs files: python -m tests.benchmarks.ecg [--data FOLDER]")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.ecg")
    parser.add_argument("--data", type=Path, help="folder with ecg_mitdb100/, instead of $PYRO_SDE_DATA")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--training", type=int, default=100)
    parser.add_argument("--particles", type=int, default=20)
    given = parser.parse_args(arguments)
    if given.data is not None:
        os.environ["PYRO_SDE_DATA"] = str(given.data)
    voltage = load("ecg_mitdb100").values[0, : PARTS * SECONDS * RATE, 0]
    voltage = (voltage - voltage.mean()) / voltage.std()
    compare(voltage, rounds=given.rounds, training=given.training, particles=given.particles).print()


if __name__ == "__main__":
    main()
