"""Command line: ``python -m pyro_sde quickstart | bench | data``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from .data.catalogue import CATALOGUE, load
from .quickstart import run_quickstart

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    Args:
        arguments: words of the command line, those of the process if None.
    """
    parser = argparse.ArgumentParser(prog="python -m pyro_sde", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    quickstart = commands.add_parser("quickstart", help="train a latent SDE on real data; writes a picture and a file")
    quickstart.add_argument("--steps", type=int, default=None, help="training steps (the default takes minutes)")
    quickstart.add_argument("--seed", type=int, default=0)
    quickstart.add_argument("--output", type=Path, default=Path(), help="folder for quickstart.png and quickstart.nc")
    bench = commands.add_parser(
        "bench", help="measure speed (from a source checkout); prints tables, writes bench.json"
    )
    bench.add_argument("names", nargs="*", help="benchmarks to run; all if none is named")
    bench.add_argument("--output", type=Path, default=Path("bench.json"))
    data = commands.add_parser("data", help="list the data sets, or fetch one into the cache")
    data.add_argument("name", nargs="?")
    options = parser.parse_args(arguments)
    if options.command == "quickstart":
        run_quickstart(steps=options.steps, seed=options.seed, output=options.output)
    elif options.command == "bench":
        return _bench(options.names, options.output)
    elif options.name:
        print(load(options.name))
    else:
        for name, entry in CATALOGUE.items():
            print(f"{name:20} {entry.licence}")
    return 0


def _bench(names: Sequence[str], output: Path) -> int:
    """Run the benchmarks of a source checkout: every module of `tests/benchmarks` with a function `tables`."""
    root = Path(__file__).resolve().parents[1]
    folder = root / "tests" / "benchmarks"
    if not (folder / "harness.py").exists():
        print("the benchmarks are part of a source checkout, not of the installed package; clone the repository.")
        return 2
    sys.path.insert(0, str(root))
    harness = importlib.import_module("tests.benchmarks.harness")
    known = sorted(path.stem for path in folder.glob("*.py") if path.stem not in ("harness", "__init__"))
    unknown = sorted(set(names) - set(known))
    if unknown:
        print(f"unknown benchmark {unknown}; there are {known}.")
        return 2
    for key, value in harness.machine().items():
        print(f"{key:10} {value}")
    tables = []
    for name in names or known:
        measured = importlib.import_module(f"tests.benchmarks.{name}").tables()
        for table in measured:
            table.print()
        tables += measured
    harness.write(tables, output)
    print(f"\nwritten to {output}")
    return 0
