"""The versions that the package promises: every Python, the newest packages, and the oldest supported ones.

nox            # all sessions whose interpreter is installed; the others are skipped
nox -s oldest  # the lower bounds of pyproject.toml
"""

from __future__ import annotations

import re
from pathlib import Path

import nox

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
OLDEST_PYTHON = "3.10"  # with the oldest packages, the oldest Python
PROJECT = nox.project.load_toml(Path(__file__).parent / "pyproject.toml")["project"]
TEST_PACKAGES = "test,plots,docs,tutorials,dev"

nox.options.sessions = ["tests", "oldest", "wheel"]
nox.options.error_on_missing_interpreters = False


def lower_bounds() -> list[str]:
    """The run-time dependencies at the oldest versions that pyproject.toml allows, such as ``torch==2.5.*``."""
    bounds = (re.match(r"([\w-]+)>=([\d.]+)", entry) for entry in PROJECT["dependencies"])
    return [f"{found[1]}=={found[2]}.*" for found in bounds if found]


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The default tests, with the newest packages."""
    session.install(f".[{TEST_PACKAGES}]")
    session.run("pytest", "-n", "2", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session(python=OLDEST_PYTHON)
def oldest(session: nox.Session) -> None:
    """The default tests, with the oldest supported packages."""
    session.install(f".[{TEST_PACKAGES}]", *lower_bounds())
    session.run("pytest", "-n", "2", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session(python=PYTHONS)
def wheel(session: nox.Session) -> None:
    """The wheel alone, in an environment without the sources, makes the picture of the quickstart."""
    folder = session.create_tmp()
    session.install("build")
    session.run("python", "-m", "build", "--wheel", "--outdir", folder, ".")
    built = max(Path(folder).glob("*.whl"), key=lambda path: path.stat().st_mtime)
    session.install(f"{built}[plots]")
    session.chdir(folder)
    session.run("python", "-m", "pyro_sde", "quickstart", "--steps", "3")
