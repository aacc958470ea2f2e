"""The solvers of the room: one row each, and the convergence tests in `test_fixed.py` do the rest."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from pyro_sde.solvers import EulerMaruyama, Solver


class Row(NamedTuple):
    """A solver with its strong orders for multiplicative and for additive noise."""

    solver: Solver
    order: float
    additive_order: float


SOLVERS: dict[str, Row] = {
    "euler-maruyama": Row(EulerMaruyama(), order=0.5, additive_order=1.0),
}


@pytest.fixture(params=sorted(SOLVERS))
def solver_row(request: pytest.FixtureRequest) -> Row:
    return SOLVERS[request.param]
