"""How an SDE is stepped.

Lives here: solvers, one file each (`base.py` is their contract, `derivatives.py` the derivatives that some need), and
how their steps are run. `solve.py` runs Euler–Maruyama steps, whose path has a density, by the way that `choice.py`
decides for an `Execution`: step by step (`loop.py`), by layers (`networks.py`: `_forward.py` the loop, `_adjoint.py`
its gradient, `_layers.py` one coefficient), with one batched backward pass (`gradient.py`), or by sweeps over all steps
(`iterate.py`); other solvers run step by step. The machine code of the layers: `compiled.py` and `_elementwise.py`,
with their arithmetic in `_kernels.py` and `_elementary.py`. Back-ends whose values carry their log-ratio:
`reversible_adjoint.py` and, with torchsde, `adaptive.py`.
Does not live here: coefficients (`sde`), grids and Brownian motion (`ops`), densities and sampling (`distributions`).

To add a solver: (1) a file with a subclass of `Solver` that has `step` and its orders, (2) docstring with cost, order,
when to prefer it and the equation in its paper, (3) its name in `__all__` and below, (4) its row in
`tests/solvers/conftest.py`, from which the tests of orders and contract follow. If its steps have a density: kernels
and a row in `distributions/solver_kernels.py`. To change which way a gradient takes: `choice.py`, and the measurements
of `tests/benchmarks/backward.py`.

Papers: Kloeden and Platen (1992), Numerical Solution of Stochastic Differential Equations; Rößler (2010); Kidger et al.
(2021), arXiv 2105.13493.
"""

from .adaptive import TorchsdeAdjoint as TorchsdeAdjoint
from .adaptive import sample_adaptive as sample_adaptive
from .base import Solver as Solver
from .drift_implicit import DriftImplicitEuler as DriftImplicitEuler
from .exact_linear import ExactLinear as ExactLinear
from .execution import Execution as Execution
from .fixed import EulerMaruyama as EulerMaruyama
from .fixed import integrate as integrate
from .heun import EulerHeun as EulerHeun
from .heun import Heun as Heun
from .heun import Midpoint as Midpoint
from .local_linearisation import LocalLinearisation as LocalLinearisation
from .log_ode import LogODE as LogODE
from .milstein import Milstein as Milstein
from .reflected import ReflectedEuler as ReflectedEuler
from .reflected import reflect as reflect
from .reversible_adjoint import ReversibleHeunAdjoint as ReversibleHeunAdjoint
from .reversible_heun import ReversibleHeun as ReversibleHeun
from .splitting import SplitStep as SplitStep
from .stochastic_runge_kutta import SRK as SRK

__all__ = [
    "DriftImplicitEuler",
    "EulerHeun",
    "EulerMaruyama",
    "ExactLinear",
    "Execution",
    "Heun",
    "LocalLinearisation",
    "LogODE",
    "Midpoint",
    "Milstein",
    "ReflectedEuler",
    "ReversibleHeun",
    "ReversibleHeunAdjoint",
    "SRK",
    "Solver",
    "SplitStep",
    "TorchsdeAdjoint",
    "integrate",
    "reflect",
    "sample_adaptive",
]
