"""Pyro models whose sample sites are paths of stochastic differential equations."""

from .distributions import OrnsteinUhlenbeckPath as OrnsteinUhlenbeckPath
from .distributions import PathDistribution as PathDistribution
from .distributions import SDEPath as SDEPath
from .distributions import path_kl as path_kl
from .infer import JitPathELBO as JitPathELBO
from .infer import PathELBO as PathELBO
from .ops import TimeGrid as TimeGrid
from .sde import SDE as SDE
from .sde import NeuralSDE as NeuralSDE

__all__ = [
    "SDE",
    "JitPathELBO",
    "NeuralSDE",
    "OrnsteinUhlenbeckPath",
    "PathDistribution",
    "PathELBO",
    "SDEPath",
    "TimeGrid",
    "path_kl",
]
__version__ = "0.1.0"
