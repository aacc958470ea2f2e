"""Where the time-parallel backward pass pays, and in which blocks a density is best evaluated.

These are the measurements behind the constants `_PARALLEL_WORK` of `pyro_sde/solvers/gradient.py` and `_BLOCK_ROWS` of
`pyro_sde/distributions/sde_path.py`. Task: sample a path and differentiate a function of it; evaluate a density and
differentiate it. Metric: CPU milliseconds of one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pyro
import pyro.distributions as dist
import torch

from pyro_sde import SDE, NeuralSDE, SDEPath, TimeGrid
from pyro_sde.distributions import sde_path
from pyro_sde.nn import DiagonalDiffusion, DriftNet
from tests.benchmarks.harness import Table, measure

# batch, D, hidden, steps
SIZES = ((1, 3, 64, 300), (16, 4, 32, 150), (32, 6, 16, 300), (64, 4, 32, 150), (32, 6, 100, 300))


def law_of(batch: int, dim: int, hidden: int, steps: int, sde: SDE | None = None) -> SDEPath:
    torch.manual_seed(0)
    sde = NeuralSDE(dim, (hidden,)) if sde is None else sde
    initial = dist.Normal(torch.zeros(batch, dim), 1.0).to_event(1)
    return SDEPath(sde, initial, TimeGrid(0.01 * torch.arange(steps + 1.0)))


def sample_step(law: SDEPath, backward: str) -> Callable[[], object]:
    def run() -> None:
        with pyro.settings.context(pyro_sde_backward=backward):
            law.rsample().square().mean().backward()

    return run


def density_step(law: SDEPath, path: torch.Tensor, rows: int) -> Callable[[], object]:
    def run() -> None:
        with mock.patch.object(sde_path, "_BLOCK_ROWS", rows):
            law.log_prob(path).sum().backward()

    return run


def crossover(size: tuple[int, int, int, int]) -> Table:
    law = law_of(*size)
    batch, dim, _, _ = size
    work = batch * (sum(p.numel() for p in law.sde.parameters()) + dim) * (dim + 3)
    variants = {name: sample_step(law, name) for name in ("loop", "parallel", "auto")}
    title = "Sample and differentiate, batch {}, D {}, hidden {}, {} steps".format(*size)
    table = measure(title, variants, baseline="loop", rounds=5)
    table.notes.append(f"work per step: {work}")
    return table


def blocks() -> Table:
    # the networks of the row "S2 vec" of `latent_sde.py`
    networks = SDE(DriftNet(6, (100, 100)), DiagonalDiffusion(6, 100, constant=False))
    law = law_of(32, 6, 100, 300, networks)
    path = law.sample()
    variants = {f"blocks of {rows}": density_step(law, path, rows) for rows in (10**9, 4096, 2048, 1024, 512)}
    return measure("Density and gradient of 9600 rows, diffusion networks", variants, baseline="blocks of 1000000000")


def tables() -> list[Table]:
    return [*(crossover(size) for size in SIZES), blocks()]
