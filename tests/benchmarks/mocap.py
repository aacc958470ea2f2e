"""Walks of CMU subject 35 from their first frames: protocols, baselines, per-walk errors and periods, all generated.

    python -m tests.benchmarks.mocap --data mocap35.mat [--test FILE] [--protocol S R loo ...] [--model best pinned]

Task: 50 channels of 16 + 3 walks of 300 frames; from the first frames of a walk, predict the others. Metric: mean
squared error in the unit of the file, of the mean of 50 paths and of single paths, with mean and standard error over
seeds; the paths are those of the posterior, which has seen the first frames only, or of the prior dynamics from the
same first state. Baselines: constant mean, last frame, mean walk, nearest walk. Expected: left-out training walks below
4.5 (`best`, 3 frames).

Protocols, declared apart: `S` fits the 16 training walks and chooses between candidates on the 3 validation walks; `R`
chooses by leaving out each of the 19 walks in turn and fits the chosen one to all 19; `loo` scores left-out walks, of
the 16 alone and of all 19; `scan` gives errors at fixed periods; `tempo` says what the frames seen tell about the tempo
of left-out training walks (with `--contexts`). Walks kept back are read from `--test` (key `Xtest`) and scored by S and
R, alone and as an ensemble of all seeds; nothing else looks at them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tests.benchmarks import _mocap_protocols as protocols
from tests.benchmarks import _mocap_tables as tables_of
from tests.benchmarks import _mocap_windows as windows_of
from tests.benchmarks._mocap_data import baselines, load, period
from tests.benchmarks._mocap_fit import Recipe
from tests.benchmarks._mocap_protocols import SETUPS, Setup, Study, leave_one_out, target
from tests.benchmarks._mocap_score import Score, period_scan, score

ON_REQUEST = True  # it needs files, which come with no checkout
PROTOCOLS = ("S", "R", "loo", "scan", "tempo", "baselines")
PERIODS = [125.0, 130.0, 132.5, 135.0, 137.5, 140.0, 145.0, 150.0, 155.0, 160.0, 165.0]


def stacked(scores: Sequence[Score]) -> Score:
    """Scores of seeds, each ``(walks, 1)``, as one of ``(seeds, walks)``."""
    return Score(*(torch.stack([part[:, 0] for part in parts]) for parts in zip(*scores, strict=True)))


def ensemble_error(paths: Tensor, truth: Tensor) -> str:
    """Error of the mean of the mean paths ``(seeds, B, frames, 50)`` of all seeds."""
    return f"{float((paths.mean(0) - truth).square().mean()):.2f}"


def report_left_out(study: Study, setup: Setup, seeds: int, counts: Sequence[int]) -> str:
    """Errors of left-out walks; a table of walks for the largest count."""
    rows, parts = {}, []
    for count in counts:
        runs = [protocols.left_out(study, setup, count, seed) for seed in range(seeds)]
        posterior, prior = stacked([run[0] for run in runs]), stacked([run[1] for run in runs])
        truth = target(study.walks.values[:count], setup)
        rows[f"{count} walks, each left out of {count}"] = tables_of.score_row(posterior, prior)
        parts.append(
            f"{count} walks, ensemble of {seeds} seeds: {ensemble_error(torch.stack([r[2] for r in runs]), truth)}"
        )
        if count > study.walks.fit:
            part = Score(*(piece[:, : study.walks.fit] for piece in posterior))
            part_prior = Score(*(piece[:, : study.walks.fit] for piece in prior))
            rows[f"the {study.walks.fit} training walks among these"] = tables_of.score_row(part, part_prior)
        own = [period(walk) for walk in study.walks.values[:count]]
        parts.append(tables_of.walk_table(posterior, own))
    return "\n\n".join([tables_of.score_table(rows), *parts])


def report_protocol(study: Study, setup: Setup, seeds: int, name: str, candidates: tuple[int, ...]) -> str:
    """Errors of protocol S or R on every part of the file that it may be scored on."""
    fit = protocols.protocol_s if name == "S" else protocols.protocol_r
    chosen = fit(study, setup, seeds, candidates)
    walks = study.walks
    parts = {"training": walks.values[: walks.fit], "validation": walks.values[walks.fit :]}
    if study.held_back is not None:
        parts["kept back"] = study.held_back
    rows, notes = {}, [f"Candidates chosen: {chosen.choice}."]
    for label, part in parts.items():
        posterior = chosen.predict(part, setup)
        truth = target(part, setup)
        scores = score(posterior, truth.unsqueeze(0))
        rows[label] = tables_of.score_row(scores, score(chosen.predict(part, setup, prior=True), truth.unsqueeze(0)))
        notes.append(f"{label}, ensemble of {seeds} seeds: {ensemble_error(posterior.mean(0), truth)}")
        if label == "kept back":
            notes.append(tables_of.walk_table(scores, [period(walk) for walk in part]))
            notes.append(tables_of.baseline_table(baselines(walks.values[: walks.fit], part, setup.context), truth))
    seconds = sum(fitted.seconds for fitted in chosen.fits.values())
    notes.append(f"CPU time of the fits above: {seconds / seeds:.1f} s per seed, one thread, seeds trained together.")
    return "\n\n".join([tables_of.score_table(rows), *notes])


def report_baselines(study: Study, setup: Setup) -> str:
    """Simple rules on left-out training walks, and on the validation walks."""
    train, validation = study.walks.values[: study.walks.fit], study.walks.values[study.walks.fit :]
    runs = []
    for k, fold in enumerate(leave_one_out(len(train))):
        runs.append(baselines(train[fold], train[k : k + 1], setup.context))
    left_out = {name: torch.cat([run[name][:, : setup.horizon - setup.context] for run in runs]) for name in runs[0]}
    rules = {
        name: path[:, : setup.horizon - setup.context]
        for name, path in baselines(train, validation, setup.context).items()
    }
    return "\n\n".join(
        [
            "Left-out training walks",
            tables_of.baseline_table(left_out, target(train, setup)),
            "Validation walks",
            tables_of.baseline_table(rules, target(validation, setup)),
        ]
    )


def report_scan(study: Study, setup: Setup) -> str:
    """Errors of left-out walks where every path has a given period."""
    count, fit = len(study.walks.values), study.walks.fit
    fitted = study.fit(f"loo{count}", setup, leave_one_out(count), 0)
    errors = period_scan(fitted, study.walks.values.unsqueeze(1), PERIODS)[..., 0]
    columns = {f"{fit} training walks": errors[:, :fit].mean(1)}
    for k in range(fit, count):
        columns[f"validation walk {k - fit + 1}"] = errors[:, k]
    return tables_of.scan_table(PERIODS, columns)


def report_tempo(study: Study, setup: Setup, seeds: int) -> str:
    """What the frames seen tell about the tempo of left-out training walks, and errors if it were known."""
    if setup.adapt or setup.context < windows_of.FEWEST:
        return f"At least {windows_of.FEWEST} frames are needed, from --contexts."
    train = study.walks.values[: study.walks.fit]
    spreads, related, errors = [], [], []
    for seed in range(seeds):
        fitted = study.fit(f"loo{len(train)}", setup, leave_one_out(len(train)), seed)
        found = windows_of.window_tempo(fitted, train, setup.context)
        spreads.append([float(found.population.mean()), float(found.deviation.mean())])
        related.append(windows_of.correlations(found, windows_of.measured(train)))
        errors.append(windows_of.errors_with_tempi(fitted, train, setup))
    return tables_of.tempo_table(setup.context, spreads, related, errors)


def tables() -> list[object]:
    """Says how to run this benchmark, which times nothing."""
    raise SystemExit("mocap needs a file: python -m tests.benchmarks.mocap --data FILE [--test FILE]")


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit what the protocols need and print their tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.mocap")
    parser.add_argument("--data", type=Path, required=True, help="file with Xtr and Xval")
    parser.add_argument("--test", type=Path, help="file with Xtest, scored by S and R")
    parser.add_argument("--protocol", nargs="*", choices=PROTOCOLS, default=["S", "R"])
    parser.add_argument("--model", nargs="*", choices=("best", "pinned"), default=["best"])
    parser.add_argument("--setup", nargs="*", choices=SETUPS, default=["1"])
    parser.add_argument("--contexts", nargs="*", type=int, default=[], help="further numbers of frames seen")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="training steps")
    parser.add_argument("--candidates", nargs="*", type=int, default=list(protocols.CANDIDATES))
    parser.add_argument("--counts", nargs="*", type=int, help="loo: among how many walks; the training ones, and all")
    parser.add_argument("--checkpoint", type=Path, help="folder for fits, which are not done again")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    walks, held_back = load(given.data, given.test)
    setups = [SETUPS[name] for name in given.setup] + [protocols.with_context(frames) for frames in given.contexts]
    for model in given.model:
        candidates = tuple(given.candidates) if model == "best" else (0,)
        study = Study(walks, held_back, given.checkpoint, Recipe(model, steps=given.steps))
        for setup in setups:
            for name in given.protocol:
                print(f"\n### {model}, {setup.name}, {name}\n", flush=True)
                if name == "loo":
                    print(report_left_out(study, setup, given.seeds, given.counts or (walks.fit, len(walks.values))))
                elif name == "scan":
                    print(report_scan(study, setup))
                elif name == "tempo":
                    print(report_tempo(study, setup, given.seeds))
                elif name == "baselines":
                    print(report_baselines(study, setup))
                else:
                    print(report_protocol(study, setup, given.seeds, name, candidates))


if __name__ == "__main__":
    main()
