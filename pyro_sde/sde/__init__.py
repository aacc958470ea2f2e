"""What an SDE is: drift, diffusion, noise structure.

Lives here: `SDE` and its control form, the geometry of diffusions (`noise.py`), the library of processes.
Does not live here: grids (`ops`), networks (`nn`), stepping (`solvers`), densities and sampling (`distributions`).

To add one: (1) a subclass of `SDE` in `library.py` whose constructor passes drift and diffusion to `SDE`, (2) docstring
with the equation, parameters with units and ranges, stationary law if known, (3) its name in `__all__` and below, (4)
its row in the table of `tests/sde/conftest.py`.

Papers: Kloeden and Platen (1992); Li et al. (2020), arXiv 2001.01328; Øksendal (2003).
"""

from .base import SDE as SDE
from .base import Coefficients as Coefficients
from .base import ControlledSDE as ControlledSDE
from .library import BrownianMotion as BrownianMotion
from .library import DoubleWell as DoubleWell
from .library import GeometricBrownianMotion as GeometricBrownianMotion
from .library import NeuralSDE as NeuralSDE
from .library import OrnsteinUhlenbeck as OrnsteinUhlenbeck
from .library import StochasticLorenz as StochasticLorenz
from .library import UnderdampedLangevin as UnderdampedLangevin

__all__ = [
    "BrownianMotion",
    "Coefficients",
    "ControlledSDE",
    "DoubleWell",
    "GeometricBrownianMotion",
    "NeuralSDE",
    "OrnsteinUhlenbeck",
    "SDE",
    "StochasticLorenz",
    "UnderdampedLangevin",
]
