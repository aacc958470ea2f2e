"""The tutorials run, say what they promise, and their notebooks are those of their sources."""

from __future__ import annotations

import importlib.util
import re
import runpy
from pathlib import Path
from types import ModuleType

import jupytext
import matplotlib as mpl
import nbformat
import pytest
import torch
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "tutorials").glob("[0-9][0-9]_*.py"))
LARGEST = 300_000  # bytes of a notebook with its outputs


def name_of(path):
    return path.stem


@pytest.fixture(scope="module")
def execute() -> ModuleType:
    """The script that `make tutorials` runs."""
    spec = importlib.util.spec_from_file_location("tutorials_execute", ROOT / "tutorials" / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("source", SOURCES, ids=name_of)
def test_tutorial_runs(source, monkeypatch, tmp_path):
    monkeypatch.setenv("PYRO_SDE_SMOKE", "1")
    monkeypatch.chdir(tmp_path)
    dtype = torch.get_default_dtype()  # a page is a program of its own, and may choose
    with mpl.rc_context(), plt.ioff():
        plt.switch_backend("agg")
        try:
            runpy.run_path(str(source), run_name="__main__")
        finally:
            plt.close("all")
            torch.set_default_dtype(dtype)


@pytest.mark.parametrize("source", SOURCES, ids=name_of)
def test_tutorial_asks_a_question_shows_the_model_and_ends_with_takeaways(source):
    cells = [cell.source for cell in jupytext.read(source).cells if cell.cell_type == "markdown"]
    assert cells[0].startswith("# ")
    assert "**The question.**" in cells[0]
    assert "?" in cells[0]
    assert len(re.findall(r"\$\$.+?\$\$", cells[0], re.DOTALL)) == 3, "the model in three equations"
    assert cells[-1].startswith("## Takeaways")


@pytest.mark.parametrize("source", SOURCES, ids=name_of)
def test_notebook_is_that_of_its_source(source, execute):
    saved = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    fresh = execute.notebook(source)
    assert [c.source for c in saved.cells] == [c.source for c in fresh.cells], f"run `make tutorials` for {source.name}"
    assert [c.cell_type for c in saved.cells] == [c.cell_type for c in fresh.cells]


@pytest.mark.parametrize("source", SOURCES, ids=name_of)
def test_notebook_was_run_in_full_and_is_small(source):
    path = source.with_suffix(".ipynb")
    assert path.stat().st_size < LARGEST
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert "site-packages" not in path.read_text(encoding="utf-8")


def test_names_choose_tutorials(execute):
    assert execute.sources() == SOURCES
    assert [path.stem for path in execute.sources(["first"])] == ["01_first_sde_path"]
    assert execute.sources(["nothing of this name"]) == []


def test_every_tutorial_is_in_the_navigation():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert not [source.stem for source in SOURCES if f"tutorials/{source.stem}.md" not in nav]
