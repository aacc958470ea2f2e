"""Fair timing: variants alternate in one process, one thread, process CPU time, warm-up, medians and ratios.

A benchmark is a module of this folder with a function `tables()`; with `JOBS`, one function per table by the beginning
of its title, if `--only` is to find them; and with a function `page(tables)` that writes Markdown, if a page of the
documentation shows it: `PAGE`, `docs/performance.md` unless the module says otherwise. One with `ON_REQUEST = True`
runs only if it is named. Modules whose name begins with an underscore are parts of benchmarks.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import pyro
import torch

from tests.benchmarks._page import MACHINE, check_markers, write_report

_PACKAGES = ("torch", "pyro-ppl", "torchsde", "numpy", "pyro_sde", "numba", "jax", "diffrax", "dynamax")


@dataclass
class Table:
    """Measured rows of one benchmark; milliseconds of CPU time per call.

    A row may have fewer rounds than the others: they are the first ones, and its ratios are taken over these.
    """

    title: str
    baseline: str
    rows: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # rows that could not be measured: the reason
    megabytes: dict[str, float] = field(default_factory=dict)  # peak extra memory, where it was measured

    def median(self, name: str) -> float:
        return statistics.median(self.rows[name])

    def ratio(self, name: str, over: str | None = None) -> float:
        """Median over rounds of the time of `over` (the baseline if None) by this row's time, round by round."""
        pairs = zip(self.rows[self.baseline if over is None else over], self.rows[name], strict=False)
        return statistics.median(base / own for base, own in pairs)

    def spread(self) -> float:
        """Noise: median over all rounds of all rows of the relative distance from the row's median; 0 if one round."""
        distances = [abs(value / self.median(name) - 1) for name, values in self.rows.items() for value in values]
        return statistics.median(distances)

    def print(self) -> None:
        width = max(len(name) for name in (*self.rows, *self.skipped))
        print(f"\n{self.title}\n{'variant':{width}}  median ms     min     max   n  {self.baseline} / variant")
        for name, values in self.rows.items():
            low, high = min(values), max(values)
            memory = f"  {self.megabytes[name]:7.1f} MB" if name in self.megabytes else ""
            figures = f"{self.median(name):9.2f} {low:7.2f} {high:7.2f} {len(values):3d}  {self.ratio(name):8.2f}"
            print(f"{name:{width}}  {figures}{memory}")
        for name, reason in self.skipped.items():
            print(f"{name:{width}}  skipped: {reason}")
        for note in self.notes:
            print(f"  {note}")


def measure(
    title: str,
    variants: Mapping[str, Callable[[], object]],
    *,
    baseline: str,
    rounds: int = 7,
    inner: int = 1,
    fewer: Mapping[str, int] | None = None,
) -> Table:
    """Time every variant once per round, in turn; `inner` calls per timing. The first round is warm-up.

    `fewer` names slow variants that sit out after that many rounds.
    """
    torch.set_num_threads(1)
    table = Table(title, baseline, {name: [] for name in variants})
    for round_ in range(rounds + 1):
        for name, run in variants.items():
            if round_ > (fewer or {}).get(name, rounds):
                continue
            start = time.process_time()
            for _ in range(inner):
                run()
            elapsed = 1e3 * (time.process_time() - start) / inner
            if round_:
                table.rows[name].append(elapsed)
    return table


def settings(**wanted: object) -> AbstractContextManager[None]:
    """`pyro.settings.context`, without the settings that this version does not have."""
    known = pyro.settings.get()
    return pyro.settings.context(**{name: value for name, value in wanted.items() if name in known})


def select(jobs: Mapping[str, Callable[[], Table]], only: str = "") -> list[Table]:
    """The tables whose title begins with `only`; the names of the jobs are the beginnings of their titles."""
    return [job() for name, job in jobs.items() if name.startswith(only) or (only and only.startswith(name))]


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "threads": "1",
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def write(tables: Iterable[Table], path: Path) -> None:
    """JSON with versions: every round of every row."""
    content = {
        "machine": machine(),
        "tables": [
            {
                "title": table.title,
                "baseline": table.baseline,
                "ms": table.rows,
                "notes": table.notes,
                "skipped": table.skipped,
                "megabytes": table.megabytes,
            }
            for table in tables
        ],
    }
    path.write_text(json.dumps(content, indent=1))


def known() -> list[str]:
    """Names of the benchmarks in this folder."""
    return sorted(
        path.stem
        for path in Path(__file__).parent.glob("*.py")
        if path.stem != "harness" and not path.stem.startswith("_")
    )


def chosen(names: Sequence[str]) -> dict[str, ModuleType]:
    """The named benchmarks or, if none is named, all that do not wait to be asked for."""
    modules = {name: importlib.import_module(f"tests.benchmarks.{name}") for name in names or known()}
    return {name: module for name, module in modules.items() if names or not getattr(module, "ON_REQUEST", False)}


def run(names: Sequence[str], *, only: str, output: Path, report: Path | None) -> int:
    """Run the named benchmarks, all if none is named; print, write JSON after each, and in the end the page `report`.

    Returns:
        the exit status: 2 for a name that there is not, a title that none begins with, or a page without markers.
    """
    unknown = sorted(set(names) - set(known()))
    if unknown:
        print(f"unknown benchmark {unknown}; there are {known()}.")
        return 2
    modules = chosen(names)
    # a run of all benchmarks writes the page of most of them
    pages = [name for name, module in modules.items() if hasattr(module, "page")]
    shown = [name for name in pages if names or not hasattr(modules[name], "PAGE")]
    if report:
        try:
            check_markers(report.read_text(encoding="utf-8"), [*shown, *([] if names else [MACHINE])])
        except (OSError, ValueError) as error:  # before minutes of measuring, not after
            print(error)
            return 2
    for key, value in machine().items():
        print(f"{key:10} {value}")
    tables: list[Table] = []
    blocks: dict[str, str] = {}
    for name, module in modules.items():
        measured = select(getattr(module, "JOBS", {}), only) if only else module.tables()
        for table in measured:
            table.print()
        tables += measured
        write(tables, output)
        if report and name in shown:
            blocks[name] = module.page(measured)
    if not tables:
        print(f"no table of {list(modules)} has a title that begins with {only!r}.")
        return 2
    if report:
        text = write_report(report.read_text(encoding="utf-8"), blocks, machine(), whole=not names)
        report.write_text(text, encoding="utf-8")
    print(f"\nwritten to {output}" + (f" and {report}" if report else ""))
    return 0
