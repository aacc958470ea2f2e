"""Log-evidence of a linear-Gaussian chain and its gradient: this package against Pyro's GaussianHMM and others.

Task: one series of T points, D states, one observed value each, transition and noise of every step given; evidence and
its gradient with respect to all of them. Metric: CPU milliseconds of one thread, float64. The second part is accuracy:
the error of the log-evidence against a dense Gaussian process in both precisions.

The row of dynamax, a Kalman filter in jax, is jitted; its compilation falls into the warm-up round and is not counted.
The measurements behind `choose_form` in `pyro_sde/ops/_kalman_method.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_sde.ops import GaussianChain, LinearObservations, log_evidence, sample_posterior, smooth
from pyro_sde.ops import _kalman_compiled as compiled
from pyro_sde.ops import _kalman_method as forms
from tests.benchmarks import _dynamax_row
from tests.benchmarks._page import grid, number, pivot, single, skipped_notes, spread_note
from tests.benchmarks.harness import Table, measure, select
from tests.ops.dense import matern_kernel, matern_matrices

# T, D: the sizes of the table in which this was planned
SIZES = ((1_000, 3), (10_000, 1), (10_000, 3), (10_000, 8), (100_000, 3))
SLOW = 20_000  # points beyond which the loops of single operations are left out
DOUBLE = torch.float64

Parameters = tuple[Tensor, ...]


def parameters(count: int, dim: int, batch: tuple[int, ...] = ()) -> Parameters:
    """Leaves m0, P0, A, Q, H, R, y."""
    generator = torch.Generator().manual_seed(0)
    unit = torch.eye(dim, dtype=DOUBLE)
    noise = torch.randn(*batch, count, dim, dtype=DOUBLE, generator=generator)
    steps = (*batch, count - 1, dim, dim)
    values = (
        torch.zeros(*batch, dim, dtype=DOUBLE),
        unit.expand(*batch, dim, dim),
        (0.95 * unit).expand(steps),
        (0.1 * unit).expand(steps),
        torch.ones(1, dim, dtype=DOUBLE),
        torch.full((1,), 0.1, dtype=DOUBLE),
        noise.sum(-1, keepdim=True),
    )
    return tuple(value.clone().requires_grad_() for value in values)


def model(leaves: Parameters) -> tuple[GaussianChain, LinearObservations]:
    m0, p0, a, q, h, r, y = leaves
    return GaussianChain(m0, p0, a, q), LinearObservations(y, h, variance=r)


def with_gradient(leaves: Parameters, value: Callable[[], Tensor]) -> Callable[[], object]:
    return lambda: torch.autograd.grad(value().sum(), leaves, allow_unused=True)


def ours(leaves: Parameters, form: str, task: Callable[..., Any]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        method = "parallel" if form == "scan" else "sequential"
        with mock.patch.object(forms, "available", return_value=form == "compiled"):
            return task(*model(leaves), method=method)

    return run


def plain_filter(leaves: Parameters) -> Callable[[], Tensor]:
    """The textbook loop of a filter, as one writes it; every step is in the graph."""

    def run() -> Tensor:
        mean, spread, a, q, h, r, y = leaves
        unit = torch.eye(len(mean), dtype=DOUBLE)
        total = torch.zeros((), dtype=DOUBLE)
        steps = [(unit, 0 * spread), *zip(a.unbind(0), q.unbind(0), strict=True)]
        for (matrix, noise), value in zip(steps, y.unbind(0), strict=True):
            mean, spread = matrix @ mean, matrix @ spread @ matrix.mT + noise
            variance = h @ spread @ h.mT + r
            gain = spread @ h.mT / variance
            residual = value - h @ mean
            closed = unit - gain @ h
            mean, spread = mean + gain[:, 0] * residual, closed @ spread @ closed.mT + r * gain @ gain.mT
            total = total - 0.5 * (residual[0].square() / variance[0, 0] + (2 * torch.pi * variance[0, 0]).log())
        return total

    return run


def pyro_evidence(leaves: Parameters) -> Callable[[], Tensor]:
    """GaussianHMM takes one transition before the first observation: here one that does nothing."""

    def run() -> Tensor:
        m0, p0, a, q, h, r, y = leaves
        dim = len(m0)
        unit = torch.eye(dim, dtype=DOUBLE)
        first = 1e-12 * unit  # it cannot be free of noise
        matrices = torch.cat([unit.unsqueeze(0), a]).mT
        noise = dist.MultivariateNormal(torch.zeros(dim, dtype=DOUBLE), torch.cat([first.unsqueeze(0), q]))
        observed = dist.Normal(torch.zeros(1, dtype=DOUBLE), r.sqrt()).to_event(1)
        initial = dist.MultivariateNormal(m0, p0)
        return dist.GaussianHMM(initial, matrices, noise, h.mT, observed, duration=len(y)).log_prob(y)

    return run


def speed(count: int, dim: int) -> Table:
    leaves = parameters(count, dim)
    variants = {"GaussianHMM": with_gradient(leaves, pyro_evidence(leaves))}
    if count <= SLOW:
        variants["plain torch loop"] = with_gradient(leaves, plain_filter(leaves))
    if compiled.available():
        variants["sequential, compiled"] = with_gradient(leaves, ours(leaves, "compiled", log_evidence))
    variants["parallel"] = with_gradient(leaves, ours(leaves, "scan", log_evidence))
    if _dynamax_row.installed():
        variants[_dynamax_row.NAME] = _dynamax_row.evidence_and_gradient(leaves)
    rounds = 3 if count <= SLOW else 2
    table = measure(f"Evidence and gradient, T {count}, D {dim}", variants, baseline="GaussianHMM", rounds=rounds)
    if not _dynamax_row.installed():
        table.skipped[_dynamax_row.NAME] = _dynamax_row.ABSENT
    return table


def smoothing(count: int, dim: int) -> Table:
    leaves = parameters(count, dim)
    normal = torch.randn(count, dim, dtype=DOUBLE)

    def moments(chain: GaussianChain, given: LinearObservations, *, method: str) -> Tensor:
        result = smooth(chain, given, method=method)
        return result.mean.sum() + result.covariance.sum() + result.lag_covariance.sum()

    def paths(chain: GaussianChain, given: LinearObservations, *, method: str) -> Tensor:
        return sample_posterior(chain, given, normal, method=method)

    variants = {}
    for form in ("compiled", "scan"):
        if form == "scan" or compiled.available():
            variants[f"{form}: moments"] = with_gradient(leaves, ours(leaves, form, moments))
            variants[f"{form}: one path"] = with_gradient(leaves, ours(leaves, form, paths))
    title = f"Smoother and posterior path with gradient, T {count}, D {dim}"
    return measure(title, variants, baseline="scan: moments", rounds=3)


def without_numba(batch: int, count: int, dim: int) -> Table:
    leaves = parameters(count, dim, (batch,))
    variants = {form: with_gradient(leaves, ours(leaves, form, log_evidence)) for form in ("loop", "scan")}
    title = f"Evidence and gradient without numba, {batch} series, T {count}, D {dim}"
    return measure(title, variants, baseline="loop", rounds=2)


CASES = [(order, dt) for order in (1, 2, 3) for dt in (0.001, 0.01, 0.1, 1.0)]
ROWS = ("pyro_sde, float64", "pyro_sde, float32", "GaussianHMM, float64", "GaussianHMM, float32")


def accuracy() -> Table:
    """Milliseconds are the least interesting here: `errors` holds the errors of the log-evidence, one list per row."""
    leaves = parameters(1000, 3)
    form = "compiled" if compiled.available() else "scan"
    rows: dict[str, Callable[[], object]] = {
        "pyro_sde": ours(leaves, form, log_evidence),
        "GaussianHMM": pyro_evidence(leaves),
    }
    table = measure("Evidence of 1000 points, no gradient", rows, baseline="GaussianHMM", rounds=5)
    for order, dt in CASES:
        errors = [error for name in ("pyro_sde", "GaussianHMM") for error in _errors(order, dt, name)]
        table.notes.append(f"Matern-{2 * order - 1}/2, dt {dt:g}| " + "| ".join(f"{error:.1e}" for error in errors))
    return table


def _errors(order: int, dt: float, name: str) -> tuple[float, float]:
    times = dt * torch.arange(1000, dtype=DOUBLE)
    generator = torch.Generator().manual_seed(0)
    y = torch.sin(3 * times) + 0.1 * torch.randn(1000, dtype=DOUBLE, generator=generator)
    gram = matern_kernel(order, (times.unsqueeze(-1) - times).abs()) + 0.01 * torch.eye(1000, dtype=DOUBLE)
    exact = dist.MultivariateNormal(torch.zeros(1000, dtype=DOUBLE), gram).log_prob(y)
    matrices = matern_matrices(order, torch.tensor(dt, dtype=DOUBLE))
    found = []
    for dtype in (torch.float64, torch.float32):
        a, q, p0 = (x.to(dtype) for x in matrices)
        row, variance = torch.eye(order, dtype=dtype)[:1], torch.full((1,), 0.01, dtype=dtype)
        zero = p0.new_zeros(order)
        values = y.to(dtype).unsqueeze(-1)
        if name == "pyro_sde":
            chain = GaussianChain(zero, p0, a.expand(999, -1, -1), q.expand(999, -1, -1))
            value = log_evidence(chain, LinearObservations(values, row, variance=variance))
        else:  # stationary, so that its transition before the first observation changes nothing
            law, noise = dist.MultivariateNormal(zero, p0), dist.MultivariateNormal(zero, q)
            observed = dist.Normal(torch.zeros_like(variance), variance.sqrt()).to_event(1)
            value = dist.GaussianHMM(law, a.mT, noise, row.mT, observed, duration=1000).log_prob(values)
        found.append(float(value.double() - exact))
    return found[0], found[1]


def ratios(evidence: list[Table], columns: list[str]) -> str:
    """Time of GaussianHMM over that of each row, sizes side by side."""
    cells = {}
    for name in (_dynamax_row.NAME, "parallel", "sequential, compiled"):
        if any(name in table.rows for table in evidence):
            cells[f"GaussianHMM / {name}"] = [number(t.ratio(name)) if name in t.rows else "" for t in evidence]
    return grid("ratio", columns, cells)


JOBS: dict[str, Callable[[], Table]] = {
    **{f"Evidence and gradient, T {t}, D {d}": partial(speed, t, d) for t, d in SIZES},
    "Smoother": partial(smoothing, 10_000, 3),
    **{
        f"Evidence and gradient without numba, {b} series, T {t}, D {d}": partial(without_numba, b, t, d)
        for b, t, d in ((1, 1000, 3), (64, 200, 3), (1000, 50, 3), (1, 500, 50))
    },
    "Evidence of 1000 points": accuracy,
}


def tables(only: str = "") -> list[Table]:
    return select(JOBS, only)


def page(measured: list[Table]) -> str:
    evidence = [table for table in measured if table.baseline == "GaussianHMM" and len(table.rows) > 2]
    columns = [table.title.removeprefix("Evidence and gradient, ") for table in evidence]
    rows = ("GaussianHMM", "plain torch loop", _dynamax_row.NAME, "parallel", "sequential, compiled")
    parts = ["Log-evidence and its gradient:", pivot(evidence, columns, rows)]
    parts += [ratios(evidence, columns), spread_note(evidence), *skipped_notes(evidence)]
    for table in measured:
        if table.title.startswith("Smoother"):
            parts += [f"{table.title}:", single(table, ratio=f"{table.baseline} / this")]
        if table.title.startswith("Evidence of 1000"):
            cells = {case: figures.split("| ") for case, figures in (note.split("| ", 1) for note in table.notes)}
            parts += ["Error of the log-evidence in nats, 1000 points:", grid("", ROWS, cells)]
    return "\n\n".join(parts)
