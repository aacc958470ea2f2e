"""Which backward pass is fastest, and in which blocks a density is best evaluated.

These are the measurements behind `_LAYER_ROWS` and `_PARALLEL_WORK` of `pyro_sde/solvers/choice.py` and the default of
`block` of `pyro_sde/solvers/execution.py`. Task: sample a path and differentiate a function of it; evaluate a density
and differentiate it. Metric: CPU milliseconds of one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import torch

from pyro_sde import SDE, NeuralSDE, SDEPath, TimeGrid
from pyro_sde.nn import DiagonalDiffusion, DriftNet
from tests.benchmarks._page import grid as markdown
from tests.benchmarks._page import number, single, spread_note
from tests.benchmarks.harness import Table, measure, select, settings

# batch, D, hidden, steps
SIZES = ((1, 3, 64, 300), (16, 4, 32, 150), (32, 6, 16, 300), (64, 4, 32, 150), (32, 6, 100, 300))
LARGE = ((64, 4, 128, 100), (128, 4, 128, 100), (256, 4, 128, 100), (512, 4, 128, 100), (1024, 4, 128, 100))
WAYS = ("loop", "parallel", "layers", "auto")
WHOLE = 10**9  # rows: no blocks


def law_of(batch: int, dim: int, hidden: int, steps: int, sde: SDE | None = None) -> SDEPath:
    torch.manual_seed(0)
    sde = NeuralSDE(dim, (hidden,)) if sde is None else sde
    initial = dist.Normal(torch.zeros(batch, dim), 1.0).to_event(1)
    return SDEPath(sde, initial, TimeGrid(0.01 * torch.arange(steps + 1.0)))


def sample_step(law: SDEPath, backward: str) -> Callable[[], object]:
    def run() -> None:
        with settings(pyro_sde_backward=backward, pyro_sde_compiled="never"):
            law.rsample().square().mean().backward()

    return run


def density_step(law: SDEPath, path: torch.Tensor, rows: int) -> Callable[[], object]:
    def run() -> None:
        with settings(pyro_sde_block=rows, pyro_sde_compiled="never"):
            law.log_prob(path).sum().backward()

    return run


def known_ways() -> list[str]:
    """The values of the setting that this version has."""
    known, before = [], pyro.settings.get("pyro_sde_backward")
    for way in WAYS:
        try:
            pyro.settings.set(pyro_sde_backward=way)
            known.append(way)
        except ValueError:
            pass
    pyro.settings.set(pyro_sde_backward=before)
    return known


def crossover(size: tuple[int, int, int, int]) -> Table:
    law = law_of(*size)
    batch, dim, _, _ = size
    work = batch * (sum(p.numel() for p in law.sde.parameters()) + dim) * (dim + 3)
    variants = {way: sample_step(law, way) for way in known_ways() if way != "parallel" or size not in LARGE}
    title = "Sample and differentiate, batch {}, D {}, hidden {}, {} steps".format(*size)
    table = measure(title, variants, baseline="loop", rounds=5)
    table.notes.append(f"work per step: {work}")
    return table


def blocks() -> Table:
    # the networks of the row "S2 vec" of `latent_sde.py`
    networks = SDE(DriftNet(6, (100, 100)), DiagonalDiffusion(6, 100, constant=False))
    law = law_of(32, 6, 100, 300, networks)
    path = law.sample()
    names = {f"blocks of {rows}": rows for rows in (4096, 2048, 1024, 512)}
    variants = {name: density_step(law, path, rows) for name, rows in {"one block": WHOLE, **names}.items()}
    return measure("Density and gradient of 9600 rows, diffusion networks", variants, baseline="one block")


JOBS: dict[str, Callable[[], Table]] = {
    **{
        "Sample and differentiate, batch {}, D {}, hidden {}".format(*size): partial(crossover, size)
        for size in (*SIZES, *LARGE)
    },
    "Density": blocks,
}


def tables() -> list[Table]:
    return select(JOBS)


def page(measured: list[Table]) -> str:
    *crossovers, density = measured
    ways = list(crossovers[0].rows)
    rows = {}
    for table in crossovers:
        name = table.title.split(", ", 1)[1]
        rows[name] = [number(table.median(way)) if way in table.rows else "" for way in ways]
    return "\n\n".join(
        [
            markdown("CPU ms", [f'"{way}"' for way in ways], rows),
            spread_note(crossovers),
            f"{density.title}:",
            single(density, ratio="one block / this"),
        ]
    )
