"""What the Brownian noise of a path costs when a seed fixes it, and what a tree adds to plain normals.

Task: the increments of 1000 equal steps of [0, 1] for 64 series of 4 Brownian motions, float32. `torch.randn` is the
floor: it draws noise that no other grid can see again. The trees of `pyro_sde` give every series a seed of its own and
answer all queries in one call. torchsde's `BrownianInterval` has one seed for the batch and is asked step by step, as
its solvers do, with and without being told the step; diffrax's tree is jitted and mapped over series and steps, to the
same resolution. "area" is the record (dt, W, H, A). Metric: CPU milliseconds of one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchsde

from pyro_sde.ops.brownian import VirtualBrownianTree, brownian_increments, normal_width
from tests.benchmarks._jax_rows import _jax, installed
from tests.benchmarks.harness import Table, measure, select

STEPS, SERIES, DIM, DEPTH = 1000, 64, 4, 20
BASELINE = "torch.randn"


def tree(levy: str, steps: int, series: int) -> Callable[[], object]:
    """The increments of all steps, from new seeds in each call."""
    times = torch.linspace(0, 1, steps + 1)

    def run() -> object:
        seed = torch.randint(2**62, (series,))
        return VirtualBrownianTree(0.0, 1.0, DIM, seed, depth=DEPTH, levy=levy).increments(times)

    return run


def drawn(levy: str, steps: int, series: int) -> Callable[[], object]:
    """The record of all steps from normals that nothing remembers."""
    dt = torch.full((steps, 1, 1), 1 / steps)
    return lambda: brownian_increments(dt, torch.randn(steps, series, normal_width(DIM, levy)), levy)


def interval(steps: int, series: int, **options: Any) -> Callable[[], object]:
    """torchsde, one query per step in the order of a solver."""
    times = torch.linspace(0, 1, steps + 1).tolist()

    def run() -> object:
        brownian = torchsde.BrownianInterval(0.0, 1.0, (series, DIM), **options)
        return [brownian(s, t) for s, t in zip(times[:-1], times[1:], strict=True)]

    return run


def diffrax_tree(steps: int, series: int) -> Callable[[], object]:
    """diffrax, a key per series, all steps at once."""
    jax = _jax()
    import diffrax

    times = jax.numpy.linspace(0.0, 1.0, steps + 1)

    def increments(key: Any) -> Any:
        path = diffrax.VirtualBrownianTree(0.0, 1.0, tol=2.0**-DEPTH, shape=(DIM,), key=key)
        return jax.vmap(path.evaluate)(times[:-1], times[1:])

    compiled = jax.jit(jax.vmap(increments))
    keys = iter(jax.random.split(jax.random.key(0), (1000, series)))
    return lambda: jax.block_until_ready(compiled(next(keys)))


def increments(steps: int = STEPS, series: int = SERIES) -> Table:
    torch.manual_seed(0)
    variants: dict[str, Callable[[], object]] = {
        BASELINE: partial(torch.randn, steps, series, DIM),
        "brownian_increments, area": drawn("area", steps, series),
        "pyro_sde tree": tree("none", steps, series),
        "pyro_sde tree, space-time": tree("space-time", steps, series),
        "pyro_sde tree, area": tree("area", steps, series),
        "torchsde BrownianInterval": interval(steps, series),
        "torchsde BrownianInterval(dt)": interval(steps, series, dt=1 / steps),
        "torchsde BrownianInterval(dt), H": interval(steps, series, dt=1 / steps, levy_area_approximation="space-time"),
    }
    if installed("diffrax"):
        variants["diffrax VirtualBrownianTree, jitted"] = diffrax_tree(steps, series)
    title = f"Brownian noise, {steps} steps, {series} series, M {DIM}"
    table = measure(title, variants, baseline=BASELINE, rounds=7)
    if not installed("diffrax"):
        table.skipped["diffrax VirtualBrownianTree, jitted"] = "diffrax is not installed"
    return table


JOBS: dict[str, Callable[[], Table]] = {f"Brownian noise, {STEPS} steps": increments}


def tables(only: str = "") -> list[Table]:
    return select(JOBS, only)
