"""Path laws as Pyro distributions of event shape ``(T, D)``.

Lives here: `PathDistribution` (initial law and transition kernels), its members, and all code about the divergence of
two of them (`kl.py`).
Does not live here: coefficients (`sde`), stepping (`solvers`), learnable parameters (`priors`, `guides`: a distribution
learns nothing), estimators that look at several sites (`infer`).

To add one: (1) subclass `PathDistribution` in a file of its own with `simulate`, `kernels` and `check_same_grid`,
(2) docstring with the equation, event shape and cost, (3) its name below, (4) one row in the contract table of
`tests/distributions/conftest.py`; the suites of `pyro_sde.testing` do the rest. To change an estimator of the
divergence: `kl.py` for the formula, `pyro_sde/infer/elbo.py` for its use in a bound.

Papers: Li et al. (2020), arXiv 2001.01328; Roeder et al. (2017), arXiv 1703.09194; Xu et al. (2022), arXiv 2102.06559.
"""

from .auxiliary import auxiliary as auxiliary
from .base import PathDistribution as PathDistribution
from .carried_path import CarriedPath as CarriedPath
from .constrained_path import ConstrainedPath as ConstrainedPath
from .gaussian_path import GaussianPath as GaussianPath
from .gaussian_state import GaussianState as GaussianState
from .kl import path_kl as path_kl
from .linear_gaussian_ssm import LinearGaussianSSM as LinearGaussianSSM
from .markov_path import MarkovPath as MarkovPath
from .multiscale_kernels import AmortisedReEntry as AmortisedReEntry
from .multiscale_kernels import BurnIn as BurnIn
from .multiscale_kernels import ExactReEntry as ExactReEntry
from .multiscale_kernels import ReEntry as ReEntry
from .multiscale_path import MultiScalePath as MultiScalePath
from .ornstein_uhlenbeck import OrnsteinUhlenbeckPath as OrnsteinUhlenbeckPath
from .recurrent_path import RecurrentPath as RecurrentPath
from .regime_chain import RegimeChain as RegimeChain
from .sde_path import SDEPath as SDEPath
from .switching import SwitchingPath as SwitchingPath

__all__ = [
    "AmortisedReEntry",
    "BurnIn",
    "CarriedPath",
    "ConstrainedPath",
    "ExactReEntry",
    "GaussianPath",
    "GaussianState",
    "LinearGaussianSSM",
    "MarkovPath",
    "MultiScalePath",
    "OrnsteinUhlenbeckPath",
    "PathDistribution",
    "ReEntry",
    "RecurrentPath",
    "RegimeChain",
    "SDEPath",
    "SwitchingPath",
    "auxiliary",
    "path_kl",
]
