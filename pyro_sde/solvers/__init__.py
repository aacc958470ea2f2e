"""How an SDE is stepped.

Lives here: solvers (one step each, `base.py` and `fixed.py`), and how their steps are run. `solve.py` runs a path by
the way that `choice.py` decides for an `Execution`: step by step (`loop.py`), by layers (`networks.py`: `_forward.py`
the loop, `_adjoint.py` its gradient, `_layers.py` one coefficient), with one batched backward pass (`gradient.py`), or
by sweeps over all steps (`iterate.py`). The machine code of the layers: `compiled.py` and `_elementwise.py`, with their
arithmetic in `_kernels.py` and `_elementary.py`. `SDEPath` steps with Euler–Maruyama, whose transition has a density.
Does not live here: coefficients (`sde`), grids (`ops`), densities and sampling (`distributions`).

To add a solver: (1) subclass `Solver` in `fixed.py` with its `step` and `strong_order`, (2) docstring with cost, order,
when to prefer it and the equation in its paper, (3) its name in `__all__`, (4) its row in the order test of
`tests/solvers`. To change which way a gradient takes: `choice.py`, and the measurements of
`tests/benchmarks/backward.py`.

Papers: Kloeden and Platen (1992), Numerical Solution of Stochastic Differential Equations.
"""

from .base import Solver as Solver
from .execution import Execution as Execution
from .fixed import EulerMaruyama as EulerMaruyama
from .fixed import integrate as integrate
from .loop import brownian_increments as brownian_increments

__all__ = ["EulerMaruyama", "Execution", "Solver", "brownian_increments", "integrate"]
