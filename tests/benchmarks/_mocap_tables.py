"""Markdown tables of the study of walks."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from torch import Tensor

from tests.benchmarks._mocap_score import Score
from tests.benchmarks._page import grid

COLLAPSE = 0.5  # forecasts that move less than half as much as the walks are near the mean predictor


def with_error(values: Sequence[float]) -> str:
    """Mean and standard error."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values) / len(values) ** 0.5:.2f}"


def score_row(posterior: Score, prior: Score) -> list[str]:
    """Errors over seeds: mean over walks first, then mean and standard error over seeds; scores ``(seeds, walks)``."""
    return [
        with_error(posterior.mean_path.mean(1).tolist()),
        with_error(posterior.samples.mean(1).tolist()),
        with_error(prior.mean_path.mean(1).tolist()),
        f"{float(posterior.mean_path.mean(1).max()):.2f}",
        f"{int((posterior.swing.mean(1) < COLLAPSE).sum())} of {len(posterior.swing)}",
    ]


def score_table(rows: Mapping[str, Sequence[str]]) -> str:
    """Rows of `score_row`."""
    columns = ["mean path", "single paths", "mean path, prior dynamics", "worst seed", "collapsed"]
    return grid("walks", columns, rows)


def walk_table(posterior: Score, true_periods: Sequence[float]) -> str:
    """One line per walk: error and implied period, over seeds, beside the period of the walk; scores (seeds, walks)."""
    rows = {}
    for k, own in enumerate(true_periods):
        rows[f"walk {k + 1}"] = [
            f"{own:.1f}",
            with_error(posterior.periods[:, k].tolist()),
            with_error(posterior.mean_path[:, k].tolist()),
        ]
    return grid("", ["period", "period of the forecast", "mean path"], rows)


def baseline_table(predictions: Mapping[str, Tensor], truth: Tensor) -> str:
    """Errors of simple rules on walks ``(B, frames, 50)``."""
    rows = {}
    for name, predicted in predictions.items():
        errors = (predicted - truth).square().mean((-2, -1))
        rows[name] = [f"{float(errors.mean()):.2f}", ", ".join(f"{float(error):.1f}" for error in errors)]
    return grid("rule", ["mean path", "each walk"], rows)


def scan_table(periods: Sequence[float], errors: Mapping[str, Tensor]) -> str:
    """Error against the period that all paths have; errors ``(periods,)``."""
    rows = {
        f"{wanted:g}": [f"{float(column[k]):.1f}" for column in errors.values()] for k, wanted in enumerate(periods)
    }
    return grid("period", list(errors), rows)


def tempo_table(
    frames: int,
    spreads: Sequence[Sequence[float]],
    correlations: Sequence[Sequence[float]],
    errors: Sequence[Mapping[str, float]],
) -> str:
    """What some frames tell about tempi: one entry per seed in each of the three."""
    cells = [with_error([100 * spread[k] for spread in spreads]) for k in (0, 1)]
    cells += [with_error([correlation[k] for correlation in correlations]) for k in range(3)]
    cells += [with_error([error[name] for error in errors]) for name in errors[0]]
    columns = ["deviation of log tempo, %", "given a window, %"]
    columns += [f"correlation, {which}" for which in ("first windows", "all windows", "mean over a walk's windows")]
    return grid("frames seen", [*columns, *(f"mean path, tempo {name}" for name in errors[0])], {str(frames): cells})
