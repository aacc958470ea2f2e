"""Pyro models whose sample sites are paths of stochastic differential equations.

Path laws and what they stand on are loaded at once; the rooms above them (guides, inference, whole models) when a name
of theirs is first asked for, so that a program waits for what it uses only.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .distributions import CarriedPath as CarriedPath
from .distributions import ConstrainedPath as ConstrainedPath
from .distributions import GaussianPath as GaussianPath
from .distributions import LinearGaussianSSM as LinearGaussianSSM
from .distributions import MarkovPath as MarkovPath
from .distributions import OrnsteinUhlenbeckPath as OrnsteinUhlenbeckPath
from .distributions import PathDistribution as PathDistribution
from .distributions import SDEPath as SDEPath
from .distributions import SwitchingPath as SwitchingPath
from .distributions import path_kl as path_kl
from .nn import GRUEncoder as GRUEncoder
from .ops import TimeGrid as TimeGrid
from .sde import SDE as SDE
from .sde import NeuralSDE as NeuralSDE

if TYPE_CHECKING:
    from .guides import GaussianMarkov as GaussianMarkov
    from .guides import PosteriorSDE as PosteriorSDE
    from .infer import AutoGaussianMarkov as AutoGaussianMarkov
    from .infer import AutoSDE as AutoSDE
    from .infer import FilteringELBO as FilteringELBO
    from .infer import JitPathELBO as JitPathELBO
    from .infer import PathELBO as PathELBO
    from .infer import PathEmission as PathEmission
    from .infer import PathNoiseReparam as PathNoiseReparam
    from .infer import check as check
    from .infer import load as load
    from .infer import save as save
    from .models import DeepMarkovModel as DeepMarkovModel
    from .models import LatentSDE as LatentSDE
    from .models import PathForecaster as PathForecaster
    from .models import RollingOrigin as RollingOrigin
    from .models import backtest as backtest

__all__ = [
    "AutoGaussianMarkov",
    "AutoSDE",
    "CarriedPath",
    "ConstrainedPath",
    "DeepMarkovModel",
    "FilteringELBO",
    "GRUEncoder",
    "GaussianMarkov",
    "GaussianPath",
    "JitPathELBO",
    "LatentSDE",
    "LinearGaussianSSM",
    "MarkovPath",
    "NeuralSDE",
    "OrnsteinUhlenbeckPath",
    "PathDistribution",
    "PathELBO",
    "PathEmission",
    "PathForecaster",
    "PathNoiseReparam",
    "PosteriorSDE",
    "RollingOrigin",
    "SDE",
    "SDEPath",
    "SwitchingPath",
    "TimeGrid",
    "backtest",
    "check",
    "load",
    "path_kl",
    "save",
]
__version__ = "0.1.0"

_ROOMS = {  # loaded on request, with the names that are offered here
    "priors": (),
    "guides": ("GaussianMarkov", "PosteriorSDE"),
    "infer": (
        "AutoGaussianMarkov",
        "AutoSDE",
        "FilteringELBO",
        "JitPathELBO",
        "PathELBO",
        "PathEmission",
        "PathNoiseReparam",
        "check",
        "load",
        "save",
    ),
    "data": (),
    "diagnostics": (),
    "models": ("DeepMarkovModel", "LatentSDE", "PathForecaster", "RollingOrigin", "backtest"),
    "testing": (),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> object:
    """A room, or a name of one."""
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    if name not in _ROOM_OF:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(f".{_ROOM_OF[name]}", __name__), name)
    globals()[name] = value
    return value
