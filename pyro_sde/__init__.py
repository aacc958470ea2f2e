"""Pyro models whose sample sites are paths of stochastic differential equations."""

from .distributions import GaussianPath as GaussianPath
from .distributions import LinearGaussianSSM as LinearGaussianSSM
from .distributions import OrnsteinUhlenbeckPath as OrnsteinUhlenbeckPath
from .distributions import PathDistribution as PathDistribution
from .distributions import SDEPath as SDEPath
from .distributions import path_kl as path_kl
from .guides import GaussianMarkov as GaussianMarkov
from .guides import PosteriorSDE as PosteriorSDE
from .infer import AutoGaussianMarkov as AutoGaussianMarkov
from .infer import AutoSDE as AutoSDE
from .infer import JitPathELBO as JitPathELBO
from .infer import PathELBO as PathELBO
from .infer import PathNoiseReparam as PathNoiseReparam
from .infer import check as check
from .infer import load as load
from .infer import save as save
from .models import LatentSDE as LatentSDE
from .nn import GRUEncoder as GRUEncoder
from .ops import TimeGrid as TimeGrid
from .sde import SDE as SDE
from .sde import NeuralSDE as NeuralSDE

__all__ = [
    "AutoGaussianMarkov",
    "AutoSDE",
    "GRUEncoder",
    "GaussianMarkov",
    "GaussianPath",
    "JitPathELBO",
    "LatentSDE",
    "LinearGaussianSSM",
    "NeuralSDE",
    "OrnsteinUhlenbeckPath",
    "PathDistribution",
    "PathELBO",
    "PathNoiseReparam",
    "PosteriorSDE",
    "SDE",
    "SDEPath",
    "TimeGrid",
    "check",
    "load",
    "path_kl",
    "save",
]
__version__ = "0.1.0"
