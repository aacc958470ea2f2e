"""Fair timing: variants alternate in one process, one thread, process CPU time, warm-up, medians and ratios."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


@dataclass
class Table:
    """Measured rows of one benchmark; milliseconds of CPU time per call."""

    title: str
    baseline: str
    rows: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def median(self, name: str) -> float:
        return statistics.median(self.rows[name])

    def ratio(self, name: str) -> float:
        """Median over rounds of baseline time by this variant's time, taken round by round."""
        pairs = zip(self.rows[self.baseline], self.rows[name], strict=True)
        return statistics.median(base / own for base, own in pairs)

    def print(self) -> None:
        width = max(len(name) for name in self.rows)
        print(f"\n{self.title}\n{'variant':{width}}  median ms     min     max  {self.baseline} / variant")
        for name, values in self.rows.items():
            low, high = min(values), max(values)
            print(f"{name:{width}}  {self.median(name):9.2f} {low:7.2f} {high:7.2f}  {self.ratio(name):8.2f}")
        for note in self.notes:
            print(f"  {note}")


def measure(
    title: str, variants: dict[str, Callable[[], object]], *, baseline: str, rounds: int = 7, inner: int = 1
) -> Table:
    """Time every variant once per round, in turn; `inner` calls per timing. The first round is warm-up."""
    torch.set_num_threads(1)
    table = Table(title, baseline, {name: [] for name in variants})
    for round_ in range(rounds + 1):
        for name, run in variants.items():
            start = time.process_time()
            for _ in range(inner):
                run()
            elapsed = 1e3 * (time.process_time() - start) / inner
            if round_:
                table.rows[name].append(elapsed)
    return table


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    packages = ("torch", "pyro-ppl", "torchsde", "numpy", "pyro_sde")
    versions = {}
    for package in packages:
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


def write(tables: list[Table], path: Path) -> None:
    """JSON with versions: every round of every row."""
    content = {
        "machine": machine(),
        "tables": [{"title": t.title, "baseline": t.baseline, "ms": t.rows, "notes": t.notes} for t in tables],
    }
    path.write_text(json.dumps(content, indent=1))
