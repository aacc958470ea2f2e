"""Sleep states of an infant from the heart rate alone: a slow latent SDE against hidden Markov models.

    python -m tests.benchmarks.infant [--data FOLDER] [--seeds 5]

Task: the heart rate of a night, every 16 s, its logarithm standardised (`pyro_sde.data`: "baby_ecg"). An expert's sleep
states ("baby_sleep", from EEG and eye movements) are opened when every state has been found, for the scores alone:
no model, size, number of states, start or step is chosen by them.

Two rules that make states, fixed before any score was seen: (1) groups: the slow path has one well, that is, it is an
Ornstein-Uhlenbeck process, and its posterior mean on the coarse grid is clustered by a mixture of K Gaussians with full
covariances (`_clusters.mixture`); (2) wells: the slow path has K wells, which begin as these groups and are trained on
(`_infant.divide`), and its state at a coarse point is the most probable well at its posterior mean. A heart rate has
the state of the coarse point that drives it. The coarse step was chosen by the bound (`--choose` measures it anew);
K = 2, 3, 4 are all reported.

Baselines: hidden Markov models of 2, 3 and 4 states on the same series, with a mean and a variance per state, or
autoregressive of order 1 with offset, coefficient and variance per state; the best of 10 starts by likelihood, and the
most probable path. Metrics: adjusted Rand index and balanced accuracy over all 2048 points, mean and standard error
over seeds (starts, noise). With `--data`, the files lie in FOLDER as in `$PYRO_SDE_DATA`.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pyro_sde.data import load
from tests.benchmarks._clusters import adjusted_rand, balanced_accuracy, mixture
from tests.benchmarks._hidden_markov import fit_states
from tests.benchmarks._infant import FINE_STEPS, Fitted, divide, fit
from tests.benchmarks._page import grid

ON_REQUEST = True  # it needs files, which come with no checkout
STATES = (2, 3, 4)
STEPS = 1200
SIZES = (2, 4, 8, 16)  # values per coarse step

Found = dict[str, list[tuple[Tensor, float]]]  # name of a row -> states and criterion, for each seed


def standardise(rates: Tensor) -> Tensor:
    """Logarithm of the heart rates, with mean 0 and variance 1."""
    values = rates.double().log()
    return (values - values.mean()) / values.std(correction=0)


def choose(values: Tensor, steps: int, report: Callable[[str], None]) -> None:
    """Print bound and penalised bound of each size, from one seed; nothing but the heart rate enters."""
    for fine_steps in SIZES:
        one, fitted = fit(values, seed=0, steps=steps, fine_steps=fine_steps)
        report(f"{fine_steps} values per coarse step, one well: {describe(fitted)}")
        if fine_steps == FINE_STEPS:
            for wells in STATES:
                divided = divide(one, fitted.path, wells, seed=0, steps=steps // 2)
                report(f"{fine_steps} values per coarse step, {wells} wells: {describe(divided)}")


def describe(fitted: Fitted) -> str:
    return (
        f"bound {fitted.bound:.1f} +- {fitted.error:.1f}, penalised {fitted.penalised:.1f}, {fitted.free} parameters, "
        f"{fitted.seconds:.0f} s of CPU time"
    )


def find(values: Tensor, seeds: int, steps: int, report: Callable[[str], None]) -> Found:
    """States of every row and seed; the expert's are not an argument."""
    found: Found = {}
    for seed in range(seeds):
        one, fitted = fit(values, seed=seed, steps=steps)
        report(f"seed {seed}, one well: {describe(fitted)}")
        for count in STATES:
            wells = divide(one, fitted.path, count, seed=seed, steps=steps // 2)
            report(f"seed {seed}, {count} wells: {describe(wells)}")
            found.setdefault(f"slow path, {count} wells", []).append((wells.wells[wells.driven], wells.penalised))
        for count in STATES:
            groups = mixture(fitted.path, count, seed)
            report(f"  {count} groups of the slow path: BIC {groups.bic:.1f}")
            found.setdefault(f"slow path, {count} groups", []).append((groups.states[fitted.driven], fitted.penalised))
        for autoregressive, name in ((False, "Gaussian HMM"), (True, "autoregressive HMM")):
            for count in STATES:
                states = fit_states(values, count, autoregressive=autoregressive, seed=seed)
                report(f"  {name}, {count} states: log-likelihood {states.log_likelihood:.1f}, BIC {states.bic:.1f}")
                found.setdefault(f"{name}, {count} states", []).append((states.states, states.bic))
    return found


def score(found: Found, expert: Tensor) -> str:
    """Markdown: a row per method."""
    rows = {}
    for name, results in found.items():
        cells = [mean([criterion for _, criterion in results], digits=1)]
        for metric in (adjusted_rand, balanced_accuracy):
            cells.append(mean([metric(expert, states) for states, _ in results]))
        rows[name] = cells
    return grid("", ["BIC, or penalised bound", "adjusted Rand index", "balanced accuracy"], rows)


def mean(values: Sequence[float], digits: int = 3) -> str:
    """Mean, with its standard error."""
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{error}"


def tables() -> list[object]:
    """Says how to run this benchmark, which times nothing."""
    raise SystemExit("infant needs files: python -m tests.benchmarks.infant [--data FOLDER] [--seeds 5]")


def main(arguments: Sequence[str] | None = None) -> None:
    """Find states with every method, then score them and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.infant")
    parser.add_argument("--data", type=Path, help="folder with baby_ecg/, instead of $PYRO_SDE_DATA")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--choose", action="store_true", help="only compare sizes of the model, by the bound")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.data is not None:
        os.environ["PYRO_SDE_DATA"] = str(given.data)
    values = standardise(load("baby_ecg").values.flatten())

    def report(line: str) -> None:
        print(line, flush=True)

    if given.choose:
        choose(values, given.steps, report)
        return
    found = find(values, given.seeds, given.steps, report)
    expert = load("baby_sleep").values.flatten().long()
    print(f"\n{FINE_STEPS} values per coarse step; n = {given.seeds} seeds")
    print(score(found, expert))


if __name__ == "__main__":
    main()
