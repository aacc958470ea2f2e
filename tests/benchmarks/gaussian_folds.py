"""How near a posterior comes to the exact one: OU, Beneš and double-well folds of the CVI-DP benchmark.

Task: the training folds of Verma, Adam and Solin (2024), arXiv 2306.02066, one series of 32 observations each; their
data where `$PYRO_SDE_DATA` has it in ``cvi_dp/``, a new simulation by the same recipe otherwise. Metric: the evidence
lower bound in nats, in the notes, beside the exact log evidence; the columns are CPU milliseconds. Baseline: the best
Gaussian law of the path, the optimum of what Gaussian variational inference for diffusions can reach. Expected band: 0
for the OU folds, where Gaussian is exact; over 5 nats for the Gaussian path on the double well, below 0.05 for the
neural posterior SDE. Bounds and evidences are those of the Euler chain of step 0.01, by quadrature, so that the
standard errors are over training seeds alone.

Training takes minutes, so this runs only if it is named: ``make bench-folds``. Its page is docs/measured.md.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from pyro.infer import RenyiELBO

from tests.benchmarks._page import grid as markdown
from tests.benchmarks.harness import Table, select
from tests.infer.folds import FOLDS, Series, guide_of, model_of, published, simulated, train
from tests.infer.grid_filter import exact_elbo, log_evidence, ou_log_evidence

ON_REQUEST = True  # too slow for a run of all benchmarks
PAGE = "docs/measured.md"
SEEDS = (0, 1, 2)
PARTICLES = 400
# States for quadrature: fine enough for the narrowest kernel of each process.
STATES = {"ornstein_uhlenbeck": 1601, "double_well": 601, "benes": 2401}
KALMAN, GRID, GAUSSIAN, NEURAL = "Kalman filter", "grid filter", "best Gaussian path", "neural posterior SDE, training"

T = TypeVar("T")


def timed(run: Callable[[], T]) -> tuple[T, float]:
    """Result and CPU milliseconds."""
    before = time.process_time()
    result = run()
    return result, 1e3 * (time.process_time() - before)


def series_of(name: str, fold: int) -> tuple[Series, str]:
    """The fold and where it comes from."""
    series = published(name, fold)
    return (simulated(name, fold), "simulated anew") if series is None else (series, "published data")


def evidence_of(name: str, series: Series) -> float:
    chain = series.prior(series.grid())
    return log_evidence(chain, series.values, series.process.noise, series.states(STATES[name]))


def ou() -> Table:
    torch.set_num_threads(1)
    table = Table("OU folds: exact evidences", KALMAN, {KALMAN: [], GRID: [], GAUSSIAN: []})
    for fold in range(FOLDS):
        series, source = series_of("ornstein_uhlenbeck", fold)
        start = {"rate": 0.5, "scale": 1.0, "noise": series.process.noise}
        kalman = partial(ou_log_evidence, series.times, series.values, **start)
        exact, cost = timed(partial(kalman, mean=series.process.start, variance=0.0))
        stationary = kalman(mean=0.0, variance=1.0)
        chain, grid_cost = timed(partial(evidence_of, "ornstein_uhlenbeck", series))
        (bound, _), gaussian_cost = timed(partial(series.best_gaussian, series.grid()))
        for name, value in ((KALMAN, cost), (GRID, grid_cost), (GAUSSIAN, gaussian_cost)):
            table.rows[name].append(value)
        table.notes.append(
            f"fold {fold}, {source}: log evidence {exact:.6f} from x0 = 1, {stationary:.6f} from the stationary law; "
            f"Euler chain {chain:.6f}, best Gaussian path {bound - chain:+.1e} from it"
        )
    return table


def benes() -> Table:
    torch.set_num_threads(1)
    series, source = series_of("benes", 0)
    evidence, cost = timed(partial(evidence_of, "benes", series))
    (bound, _), gaussian_cost = timed(partial(series.best_gaussian, series.grid()))
    note = f"{source}: log evidence {evidence:.4f}, best Gaussian path {bound:.4f}, {evidence - bound:.4f} below"
    return Table("Beneš fold 0: exact evidence", GRID, {GRID: [cost], GAUSSIAN: [gaussian_cost]}, [note])


def double_well() -> Table:
    torch.set_num_threads(1)
    series, source = series_of("double_well", 0)
    grid = series.grid()
    given = (series.prior(grid), series.values, series.process.noise)
    evidence, cost = timed(partial(evidence_of, "double_well", series))
    (bound, _), gaussian_cost = timed(partial(series.best_gaussian, grid))
    table = Table("Double well fold 0: neural and Gaussian posterior", GAUSSIAN)
    table.rows = {GRID: [cost], GAUSSIAN: [gaussian_cost], NEURAL: []}
    table.notes = [
        f"{source}: log evidence {evidence:.4f}, best Gaussian path {bound:.4f}, {evidence - bound:.4f} below"
    ]
    gaps = []
    for seed in SEEDS:
        posterior, cost = timed(partial(train, series, seed))
        table.rows[NEURAL].append(cost)
        gaps.append(evidence - exact_elbo(posterior(grid), *given, series.states(STATES["double_well"])))
        loss = RenyiELBO(alpha=0, num_particles=PARTICLES, vectorize_particles=True, max_plate_nesting=0)
        with torch.no_grad():
            importance = -loss.loss(model_of(series, grid), guide_of(posterior, grid))
        table.notes.append(
            f"seed {seed}: ELBO {evidence - gaps[-1]:.4f}, {gaps[-1]:.4f} below the evidence; importance-weighted "
            f"bound of {PARTICLES} paths {importance - evidence:+.4f} from it"
        )
    error = statistics.stdev(gaps) / len(gaps) ** 0.5
    table.notes.append(
        f"mean over {len(SEEDS)} seeds: {statistics.mean(gaps):.4f} +- {error:.4f} nat below the evidence"
    )
    return table


OU, BENES, DOUBLE_WELL = "OU folds", "Beneš fold 0", "Double well fold 0"
JOBS: dict[str, Callable[[], Table]] = {OU: ou, BENES: benes, DOUBLE_WELL: double_well}


def tables(only: str = "") -> list[Table]:
    return select(JOBS, only)


def page(measured: list[Table]) -> str:
    """Everything is in the notes: one list per process, and the seconds that each posterior took."""
    parts = []
    for table in measured:
        title = table.title.split(":")[0]
        parts += [f"**{title}**", "\n".join(f"* {note}" for note in table.notes)]
        seconds = {name: [f"{table.median(name) / 1e3:.3g}", str(len(values))] for name, values in table.rows.items()}
        parts.append(markdown(title, ["CPU seconds, median", "runs"], seconds))
    return "\n\n".join(parts)
