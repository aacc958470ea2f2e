"""The documentation is true: its code runs, its formulas convert, it shows every room and every link in nav exists.

Every ``python`` block of a page runs, in order and in one namespace per page, as a reader would paste it. A block
that cannot run carries the word ``no-run`` in its first line.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import griffe
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```python(?P<info>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """One fenced block of Python with the line it starts on."""

    code: str
    line: int


def blocks(page: Path) -> list[Block]:
    """The blocks of `page` that are meant to run."""
    text = page.read_text(encoding="utf-8")
    found = FENCE.finditer(text)
    return [Block(m["code"], text.count("\n", 0, m.start("code"))) for m in found if "no-run" not in m["info"].split()]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=name_of)
def test_code_of_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what an example writes does not land in the repository
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # so that classes defined on the page can be pickled
    for block in blocks(page):
        # Empty lines in front make the line numbers of a traceback those of the page.
        exec(compile("\n" * block.line + block.code, str(page), "exec"), module.__dict__)


def test_every_python_block_is_found():
    offenders = [
        f"{name_of(page)}: {text.count('```python')} fences, {len(FENCE.findall(text))} closed blocks"
        for page in PAGES
        if (text := page.read_text(encoding="utf-8")).count("```python") != len(FENCE.findall(text))
    ]
    assert not offenders, "a block is indented or not closed:\n  " + "\n  ".join(offenders)


def test_every_room_has_a_reference_page():
    package = ROOT / "pyro_sde"
    rooms = {p.parent.name for p in package.glob("*/__init__.py")} | {"testing"}
    shown = {p.stem for p in (ROOT / "docs" / "reference").glob("*.md")} - {"index"}
    assert rooms <= shown, f"rooms without docs/reference/<room>.md: {sorted(rooms - shown)}"


def test_every_page_is_in_the_navigation():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [p.relative_to(ROOT / "docs").as_posix() for p in PAGES if p.parent != ROOT]
    offenders = [page for page in pages if page not in nav]
    assert not offenders, f"pages that mkdocs.yml does not list: {offenders}"


@pytest.fixture(scope="module")
def mathml() -> ModuleType:
    """The build hook docs/mathml.py."""
    spec = importlib.util.spec_from_file_location("docs_mathml", ROOT / "docs" / "mathml.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_formulas_of_docstrings_reach_markdown(mathml):
    text = "Law of :math:`z_0,\n\\dots`.\n\n    .. math:: a\n        + b\n\n    Then text."
    assert mathml.sphinx_to_dollars(text) == "Law of $z_0, \\dots$.\n\n    $$ a + b $$\n\n    Then text."


def test_examples_of_docstrings_are_drawn_as_code(mathml):
    options = griffe.Parser.google
    docstring = griffe.Docstring(mathml.example_section("One.\n\nExample:\n    >>> 1 + 1\n    2"), parser=options)
    assert [section.kind.value for section in docstring.parse()] == ["text", "examples"]
    assert mathml.example_section("An Example: none") == "An Example: none"


def test_the_build_of_the_documentation_fails_at_a_dead_link(tmp_path):
    (flags,) = re.findall(r"mkdocs build (.*?) 2>&1", (ROOT / "Makefile").read_text(encoding="utf-8"))
    (tmp_path / "docs").mkdir()
    (tmp_path / "mkdocs.yml").write_text("site_name: trial\ntheme: mkdocs\n", encoding="utf-8")
    codes = []
    for target in ("index.md", "nowhere.md"):
        (tmp_path / "docs" / "index.md").write_text(f"# Trial\n\n[link]({target})\n", encoding="utf-8")
        command = [sys.executable, "-m", "mkdocs", "build", *flags.split()]
        codes.append(subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode)
    assert codes[0] == 0
    assert codes[1] != 0


def test_formulas_become_mathml(mathml):
    page = r'<p>Let <span class="arithmatex">\(a &lt; \log p\)</span></p><div class="arithmatex">\[ x^2 \]</div>'
    html = mathml.on_page_content(page)
    assert "arithmatex" not in html
    assert html.count("<math") == 2
    assert 'display="block"' in html
    assert '<mi>log</mi><mspace width="0.167em" /><mi>p</mi>' in html


@pytest.mark.parametrize("formula", [r"\left( a", r"\nosuchcommand{a}"])
def test_a_formula_that_cannot_be_converted_warns(mathml, formula, caplog):
    assert mathml.to_mathml(formula, display=False)
    assert "formula" in caplog.text
