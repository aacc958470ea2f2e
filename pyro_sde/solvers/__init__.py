"""How an SDE is stepped.

Lives here: solvers (one step each), the loop that runs them on a grid with given noise (`loop.py`), and the choice and
the code of its backward pass (`gradient.py`). `SDEPath` steps with Euler–Maruyama, whose transition has a density.
Does not live here: coefficients (`sde`), grids (`ops`), densities and sampling (`distributions`).

To add one: (1) subclass `Solver` in `fixed.py` with its `step` and `strong_order`, (2) docstring with cost, order, when
to prefer it and the equation in its paper, (3) its name in `__all__`, (4) its row in the order test of `tests/solvers`.

Papers: Kloeden and Platen (1992), Numerical Solution of Stochastic Differential Equations.
"""

from .base import Solver as Solver
from .fixed import EulerMaruyama as EulerMaruyama
from .fixed import integrate as integrate
from .loop import brownian_increments as brownian_increments

__all__ = ["EulerMaruyama", "Solver", "brownian_increments", "integrate"]
