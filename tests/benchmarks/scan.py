"""What a linear recurrence costs in each form, and where sweeps over all steps at once beat the sequential loop.

These are the measurements behind `_choose` of `pyro_sde/ops/scan.py` and the option ``forward=`` of
`pyro_sde/solvers/iterate.py`. Task: the adjoint recurrence of a path; a path for given noise, without a gradient.
Metric: CPU milliseconds of one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch

from pyro_sde import SDE, TimeGrid
from pyro_sde.nn import DiagonalDiffusion, DriftNet
from pyro_sde.ops import linear_recurrence
from pyro_sde.solvers.iterate import SweepOptions, unroll_sweeps
from pyro_sde.solvers.loop import unroll
from tests.benchmarks._page import number, pivot, single, spread_note
from tests.benchmarks.harness import Table, measure, select

FORMS = ("loop", "chunked", "associative", "compiled")
RECURRENCES = ((1000, 1, 3), (10_000, 1, 3), (300, 1, 6), (300, 32, 6))  # steps, batch, D
# batch, D, hidden, steps
PATHS = {"S3": (1, 3, 64, 1000), "S3 long": (1, 3, 64, 10_000), "S2": (32, 6, 100, 300)}


def recurrence(size: tuple[int, int, int]) -> Table:
    steps, batch, dim = size
    torch.manual_seed(0)
    matrices = 0.97 * torch.eye(dim) + 0.02 * torch.randn(steps, batch, dim, dim)
    offsets, last = torch.randn(steps, batch, dim), torch.randn(batch, dim)
    forms = [form for form in FORMS if form != "compiled" or find_spec("numba")]
    variants = {form: partial(linear_recurrence, matrices, offsets, last, reverse=True, form=form) for form in forms}
    return measure(f"Recurrence backwards, {steps} steps, batch {batch}, D {dim}", variants, baseline="loop", inner=5)


def problem(batch: int, dim: int, hidden: int, steps: int) -> tuple:
    torch.manual_seed(0)
    sde = SDE(DriftNet(dim, (hidden, hidden)), DiagonalDiffusion(dim))
    grid = TimeGrid(0.01 * torch.arange(steps + 1.0))
    normal = torch.randn(steps, batch, dim)
    return sde, grid, torch.randn(batch, dim), normal, sde.bind_rows(None)


def loop(given: tuple) -> torch.Tensor:
    with torch.no_grad():
        return unroll(*given)


def path(name: str) -> Table:
    size = PATHS[name]
    given = problem(*size)
    options = {method: SweepOptions(method) for method in ("picard", "newton")}
    variants: dict[str, Callable[[], object]] = {"loop": partial(loop, given)}
    variants |= {method: partial(unroll_sweeps, *given, option) for method, option in options.items()}
    title = "{}: path without gradient, batch {}, D {}, hidden {}, {} steps".format(name, *size)
    table = measure(title, variants, baseline="loop", rounds=5)
    expected = loop(given)
    for method, option in options.items():
        result = unroll_sweeps(*given, option)
        if result.states is None:
            table.notes.append(f"{method}: given up after {result.sweeps} sweeps")
        else:
            scale = expected.abs().cummax(0).values
            difference = float(((result.states - expected).abs() / scale).amax())
            table.notes.append(f"{method}: {result.sweeps} sweeps, relative difference {difference:.1e}")
    return table


JOBS: dict[str, Callable[[], Table]] = {
    **{
        "Recurrence backwards, {} steps, batch {}, D {}".format(*size): partial(recurrence, size)
        for size in RECURRENCES
    },
    **{f"{name}: path": partial(path, name) for name in PATHS},
}


def tables(only: str = "") -> list[Table]:
    return select(JOBS, only)


def page(measured: list[Table]) -> str:
    recurrences = [table for table in measured if table.title.startswith("Recurrence")]
    paths = [table for table in measured if not table.title.startswith("Recurrence")]
    columns = [table.title.removeprefix("Recurrence backwards, ") for table in recurrences]
    blocks = ["The recurrence of an adjoint:", pivot(recurrences, columns, FORMS), spread_note(recurrences)]
    for table in paths:
        notes = "; ".join(table.notes)
        blocks += [f"{table.title} ({notes}):", single(table, ratio="loop / this")]
    ratios = ", ".join(f"{table.title.split(':')[0]} {number(table.ratio('picard'))}" for table in paths)
    return "\n\n".join([*blocks, f"Loop / Picard: {ratios}. {spread_note(paths)}"])
