"""The solvers of the room: one row each, and the convergence, torchsde, gradient and padding tests do the rest."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from pyro_sde.solvers.base import Solver
from pyro_sde.solvers.drift_implicit import DriftImplicitEuler
from pyro_sde.solvers.fixed import EulerMaruyama
from pyro_sde.solvers.heun import EulerHeun, Heun, Midpoint
from pyro_sde.solvers.local_linearisation import LocalLinearisation
from pyro_sde.solvers.log_ode import LogODE
from pyro_sde.solvers.milstein import Milstein
from pyro_sde.solvers.reversible_heun import ReversibleHeun
from pyro_sde.solvers.stochastic_runge_kutta import SRK

NOISE_TYPES = ("additive", "diagonal", "scalar", "general")


class Row(NamedTuple):
    """A solver, its interpretation, and its strong and weak order for each noise type that it takes."""

    solver: Solver
    interpretation: str
    strong: dict[str, float]
    weak: dict[str, float]

    @property
    def order(self) -> float:
        """Strong order for diagonal noise."""
        return self.strong["diagonal"]


def orders(additive: float, commutative: float, general: float | None) -> dict[str, float]:
    table = {"additive": additive, "diagonal": commutative, "scalar": commutative}
    return table if general is None else {**table, "general": general}


# "general" is noise that does not commute; Milstein takes general noise that does, which `test_orders.py` adds
SOLVERS: dict[str, Row] = {
    "euler-maruyama": Row(EulerMaruyama(), "ito", orders(1, 0.5, 0.5), orders(1, 1, 1)),
    "milstein-ito": Row(Milstein(), "ito", orders(1, 1, None), orders(1, 1, None)),
    "milstein-stratonovich": Row(Milstein("stratonovich"), "stratonovich", orders(1, 1, None), orders(1, 1, None)),
    "heun": Row(Heun(), "stratonovich", orders(1, 1, 0.5), orders(2, 1, 1)),
    "midpoint": Row(Midpoint(), "stratonovich", orders(1, 1, 0.5), orders(1, 1, 1)),
    "euler-heun": Row(EulerHeun(), "stratonovich", orders(1, 1, 0.5), orders(1, 1, 1)),
    "srk": Row(SRK(), "ito", orders(1.5, 1.5, None), orders(2, 1.5, None)),
    "log-ode": Row(LogODE(), "stratonovich", orders(1, 1, 1), orders(1, 1, 1)),
    "reversible-heun": Row(ReversibleHeun(), "stratonovich", orders(1, 1, 0.5), orders(2, 1, 1)),
    "local-linearisation": Row(LocalLinearisation(), "ito", orders(1, 0.5, 0.5), orders(1, 1, 1)),
    "drift-implicit-euler": Row(DriftImplicitEuler(), "ito", orders(1, 0.5, 0.5), orders(1, 1, 1)),
    "trapezoidal": Row(DriftImplicitEuler(theta=0.5), "ito", orders(1, 0.5, 0.5), orders(2, 1, 1)),
}


@pytest.fixture(params=sorted(SOLVERS))
def solver_row(request: pytest.FixtureRequest) -> Row:
    return SOLVERS[request.param]
