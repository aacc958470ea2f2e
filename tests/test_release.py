"""What is released: one version everywhere, and a wheel with all that it needs."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import pyro_sde

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
CITATION = (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def field(text, name):
    """The value of the first line ``name = "value"`` or ``name: value``."""
    return re.search(rf'^{name}\s*[=:]\s*"?([^"\n]+)"?$', text, re.MULTILINE)[1]


def test_one_version_everywhere():
    assert field(PYPROJECT, "version") == field(CITATION, "version") == pyro_sde.__version__


def test_one_licence_everywhere():
    assert field(PYPROJECT, "license") == field(CITATION, "license") == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_citation_names_the_authors_of_the_project():
    authors = re.search(r'authors = \[\{ name = "([^"]+)" \}\]', PYPROJECT)[1]
    assert f'- name: "{authors}"' in CITATION
    assert CITATION.startswith("cff-version: 1.2.0\n")


def test_matrix_of_versions_is_that_of_the_project():
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    names = {ast.unparse(n.targets[0]): n.value for n in tree.body if isinstance(n, ast.Assign)}
    pythons = ast.literal_eval(names["PYTHONS"])
    low, high = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', PYPROJECT).groups()
    assert pythons == [f"3.{minor}" for minor in range(int(low), int(high))]
    assert ast.literal_eval(names["OLDEST_PYTHON"]) == pythons[0]


@pytest.mark.slow
def test_wheel_has_all_that_it_needs(tmp_path):
    pytest.importorskip("setuptools", minversion="77")  # reads the licence of pyproject.toml
    # A copy, since a build writes beside its sources; without isolation, since that would need a network.
    source = tmp_path / "source"
    shutil.copytree(ROOT / "pyro_sde", source / "pyro_sde", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-w",
        str(tmp_path),
    ]
    subprocess.run([*command, str(source)], check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"pyro_sde-{pyro_sde.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"pyro_sde-{pyro_sde.__version__}.dist-info/METADATA").decode()
    ours = (
        path for path in (source / "pyro_sde").rglob("*") if path.suffix in (".py", ".csv") or path.name == "py.typed"
    )
    assert {path.relative_to(source).as_posix() for path in ours} <= names
    assert {"pyro_sde/py.typed", "pyro_sde/data/mauna_loa_co2.csv", "pyro_sde/__main__.py"} <= names
    assert not [name for name in names if name.startswith(("tests/", "docs/", "tutorials/"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "Requires-Dist: torch>=" in metadata
    assert wheel.stat().st_size < 2_000_000
