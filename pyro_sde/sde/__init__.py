"""What an SDE is: drift, diffusion, noise structure.

Lives here: `SDE` and its control form, the geometry of diffusions (`noise.py`), the library of processes; `LinearSDE`
and its family, whose transitions and stationary laws are exact (`system.py` has their algebra).
Does not live here: grids (`ops`), networks (`nn`), stepping (`solvers`), densities and sampling (`distributions`).

To add one: (1) a subclass of `SDE` in `library.py` whose constructor passes drift and diffusion to `SDE`, (2) docstring
with the equation, parameters with units and ranges, stationary law if known, (3) its name in `__all__` and below, (4)
its row in the table of `tests/sde/conftest.py`. A linear one: (1) a subclass of `LinearSDE` in a module of its own
whose `_system` reads the hyper-parameters and returns a `LinearSystem`, with closed forms only if they do not cancel;
(2) to (4) as above, with its covariance function in the row.

Papers: Kloeden and Platen (1992); Li et al. (2020), arXiv 2001.01328; Øksendal (2003). Linear ones: Hartikainen and
Särkkä (2010); Solin and Särkkä (2014); Särkkä and Solin (2019).
"""

from .base import SDE as SDE
from .base import Coefficients as Coefficients
from .base import ControlledSDE as ControlledSDE
from .bounded_library import CoxIngersollRoss as CoxIngersollRoss
from .bounded_library import LogisticGrowth as LogisticGrowth
from .bounded_library import WrightFisher as WrightFisher
from .bounded_library import WrightFisherSimplex as WrightFisherSimplex
from .constrained import Arcsine as Arcsine
from .constrained import ConstrainedSDE as ConstrainedSDE
from .constrained import Domain as Domain
from .constrained import Interval as Interval
from .constrained import Positive as Positive
from .constrained import Simplex as Simplex
from .constrained import SquareRoot as SquareRoot
from .constrained import constrain as constrain
from .constrained import domain_of as domain_of
from .coregionalisation import Coregionalisation as Coregionalisation
from .independent import BrownianMotion as BrownianMotion
from .independent import OrnsteinUhlenbeck as OrnsteinUhlenbeck
from .integrated_wiener import IntegratedWiener as IntegratedWiener
from .library import DoubleWell as DoubleWell
from .library import GeometricBrownianMotion as GeometricBrownianMotion
from .library import NeuralSDE as NeuralSDE
from .library import StochasticLorenz as StochasticLorenz
from .library import UnderdampedLangevin as UnderdampedLangevin
from .linear import LinearSDE as LinearSDE
from .linear import Product as Product
from .linear import Sum as Sum
from .lti import LTI as LTI
from .matern import Matern12 as Matern12
from .matern import Matern32 as Matern32
from .matern import Matern52 as Matern52
from .oscillator import Cosine as Cosine
from .oscillator import DampedOscillator as DampedOscillator
from .oscillator import Periodic as Periodic
from .oscillator import QuasiPeriodic as QuasiPeriodic
from .second_order import SecondOrderSDE as SecondOrderSDE
from .system import LinearSystem as LinearSystem
from .two_scale import FineSDE as FineSDE
from .two_scale import TwoScaleSDE as TwoScaleSDE

__all__ = [
    "Arcsine",
    "BrownianMotion",
    "Coefficients",
    "ConstrainedSDE",
    "ControlledSDE",
    "Coregionalisation",
    "Cosine",
    "CoxIngersollRoss",
    "DampedOscillator",
    "Domain",
    "DoubleWell",
    "FineSDE",
    "GeometricBrownianMotion",
    "IntegratedWiener",
    "Interval",
    "LTI",
    "LinearSDE",
    "LinearSystem",
    "LogisticGrowth",
    "Matern12",
    "Matern32",
    "Matern52",
    "NeuralSDE",
    "OrnsteinUhlenbeck",
    "Periodic",
    "Positive",
    "Product",
    "QuasiPeriodic",
    "SDE",
    "SecondOrderSDE",
    "Simplex",
    "SquareRoot",
    "StochasticLorenz",
    "Sum",
    "TwoScaleSDE",
    "UnderdampedLangevin",
    "WrightFisher",
    "WrightFisherSimplex",
    "constrain",
    "domain_of",
]
