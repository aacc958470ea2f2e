"""Run the tutorials in full and write each beside its source as a notebook with outputs: `make tutorials`.

    python tutorials/execute.py [NAME ...]

The source of a tutorial is a Python file with cells (`# %%`), which any editor and any diff can read; the notebook is
made from it and never edited. Without names all are run, which takes about half an hour on two cores.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def sources(names: Iterable[str] = ()) -> list[Path]:
    """The tutorials whose file names contain one of `names`; all if there are none."""
    wanted = list(names)
    found = sorted(HERE.glob("[0-9][0-9]_*.py"))
    return [path for path in found if not wanted or any(name in path.stem for name in wanted)]


def notebook(source: Path) -> nbformat.NotebookNode:
    """The notebook of a source, without outputs; the same every time, as cells are named by their number."""
    made = jupytext.read(source)
    made.metadata = nbformat.from_dict(KERNEL)
    for number, cell in enumerate(made.cells):
        cell.id, cell.metadata = f"cell-{number}", nbformat.from_dict({})
    return made


def without_objects(cells: Iterable[nbformat.NotebookNode]) -> None:
    """Drop ``<matplotlib... at 0x7f...>`` and the like: what the last line of a cell returns, and nobody reads."""

    def is_read(output: nbformat.NotebookNode) -> bool:
        data = output.get("data", {})
        return set(data) != {"text/plain"} or not data["text/plain"].startswith("<")

    for cell in cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if is_read(output)]


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description="run tutorials in full and write their notebooks")
    parser.add_argument("names", nargs="*", help="parts of file names; all tutorials if none are given")
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # progress bars of a page are text anyhow
    for source in sources(parser.parse_args().names):
        started = time.perf_counter()
        made = notebook(source)
        client = NotebookClient(made, timeout=3600, record_timing=False, resources={"metadata": {"path": str(HERE)}})
        client.execute()
        without_objects(made.cells)
        target = source.with_suffix(".ipynb")
        nbformat.write(made, target)
        print(f"{target.name}: {time.perf_counter() - started:.0f} s, {target.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
