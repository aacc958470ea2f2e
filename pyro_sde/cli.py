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
    bench.add_argument("--output", type=Path, default=Path("bench.json"), help="every round of every row, as JSON")
    choice = bench.add_mutually_exclusive_group()
    choice.add_argument("--only", default="", metavar="TITLE", help='only tables whose title begins so, such as "S3"')
    choice.add_argument("--report", type=Path, help="page whose tables to write anew, such as docs/performance.md")
    data = commands.add_parser("data", help="list the data sets, or fetch one into the cache")
    data.add_argument("name", nargs="?")
    options = parser.parse_args(arguments)
    if options.command == "quickstart":
        run_quickstart(steps=options.steps, seed=options.seed, output=options.output)
    elif options.command == "bench":
        return _bench(options)
    elif options.name:
        print(load(options.name))
    else:
        for name, entry in CATALOGUE.items():
            print(f"{name:20} {entry.licence}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    """Run the benchmarks of a source checkout; `tests/benchmarks/harness.py` knows how."""
    root = Path(__file__).resolve().parents[1]
    if not (root / "tests" / "benchmarks" / "harness.py").exists():
        print("the benchmarks are part of a source checkout, not of the installed package; clone the repository.")
        return 2
    sys.path.insert(0, str(root))
    harness = importlib.import_module("tests.benchmarks.harness")
    return harness.run(options.names, only=options.only, output=options.output, report=options.report)
