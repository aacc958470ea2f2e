"""Sampling and differentiating a path for twelve pairs of horizon T and step dt.

Task: sample a path (batch 16, D = 4, drift MLP of two layers of 32 SiLU units, constant diffusion) and differentiate a
function of all its states. torchsde's default noise is much slower for some pairs than for others with the same number
of steps, among them T = 1, dt = 0.01; a path law must not be. `pyro_sde` runs without its extra. Metric: CPU
milliseconds of one thread. Baseline: the loop that one would write by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pyro.distributions as dist
import torch
import torchsde
from torch import Tensor, nn

from pyro_sde import SDE, SDEPath, TimeGrid
from pyro_sde.nn import DiagonalDiffusion, DriftNet
from tests.benchmarks._page import grid as markdown
from tests.benchmarks._page import number, spread_note
from tests.benchmarks.harness import Table, measure, select, settings

BATCH, DIM, HIDDEN = 16, 4, (32, 32)
PAIRS = (
    (1.0, 0.1), (1.0, 0.01), (1.0, 0.003), (1.0, 0.001),
    (10.0, 0.1), (10.0, 0.03), (10.0, 0.01), (10.0, 0.003),
    (100.0, 1.0), (100.0, 0.1), (100.0, 0.03), (100.0, 0.01),
)  # fmt: skip
LOOP, SDEINT, OURS = "hand-written loop", "torchsde sdeint", "pyro_sde"


class Peer(nn.Module):
    """The SDE in torchsde's form."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, drift: nn.Module, diffusion: nn.Module) -> None:
        super().__init__()
        self.drift, self.diffusion = drift, diffusion

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self.drift(t.reshape(1), y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return self.diffusion(t.reshape(1), y).expand_as(y)


def sampler_of_loop(drift: nn.Module, diffusion: nn.Module, times: Tensor) -> Callable[[], Tensor]:
    def sample() -> Tensor:
        z, states = torch.randn(BATCH, DIM), []
        for t, dt in zip(times[:-1].unsqueeze(-1), times.diff(), strict=True):
            states.append(z)
            z = z + drift(t, z) * dt + diffusion(t, z) * dt.sqrt() * torch.randn_like(z)
        return torch.stack([*states, z])

    return sample


def sampler_of_peer(drift: nn.Module, diffusion: nn.Module, times: Tensor, step: float) -> Callable[[], Tensor]:
    peer = Peer(drift, diffusion)
    return lambda: torchsde.sdeint(peer, torch.randn(BATCH, DIM), times, dt=step, method="euler")


def sampler_of_ours(drift: nn.Module, diffusion: nn.Module, times: Tensor) -> Callable[[], Tensor]:
    sde, initial = SDE(drift, diffusion), dist.Normal(torch.zeros(BATCH, DIM), 1.0).to_event(1)
    return lambda: SDEPath(sde, initial, TimeGrid(times)).rsample()


def differentiate(sample: Callable[[], Tensor]) -> Callable[[], object]:
    def run() -> None:
        with settings(pyro_sde_compiled="never"):
            sample().square().mean().backward()

    return run


def compare(horizon: float, step: float) -> Table:
    torch.manual_seed(0)
    steps = round(horizon / step)
    times = step * torch.arange(steps + 1.0)
    drift, diffusion = DriftNet(DIM, HIDDEN), DiagonalDiffusion(DIM)
    rows = {
        LOOP: differentiate(sampler_of_loop(drift, diffusion, times)),
        SDEINT: differentiate(sampler_of_peer(drift, diffusion, times, step)),
        OURS: differentiate(sampler_of_ours(drift, diffusion, times)),
    }
    title = f"T={horizon:g}, dt={step:g}: {steps} steps, batch {BATCH}, D {DIM}"
    short = steps < 3000
    return measure(title, rows, baseline=LOOP, rounds=5 if short else 3, fewer={SDEINT: 3 if short else 1})


JOBS: dict[str, Callable[[], Table]] = {
    f"T={horizon:g}, dt={step:g}:": partial(compare, horizon, step) for horizon, step in PAIRS
}


def tables() -> list[Table]:
    return select(JOBS)


def page(measured: list[Table]) -> str:
    rows = {}
    for table in measured:
        name = table.title.split(":")[0]
        medians = [number(table.median(row)) for row in (LOOP, SDEINT, OURS)]
        rows[name] = [*medians, *(number(1 / table.ratio(row)) for row in (SDEINT, OURS))]
    columns = [LOOP, SDEINT, OURS, "torchsde / loop", "pyro_sde / loop"]
    return "\n\n".join([markdown("CPU ms", columns, rows), spread_note(measured)])
