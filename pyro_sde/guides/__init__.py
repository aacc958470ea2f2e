"""Guides: learnable modules whose call returns the posterior law of a path.

Lives here: modules that turn a prior and observed data into the path law that a guide samples from.
Does not live here: networks and encoders (`nn`), path laws themselves (`distributions`), automatic guides that watch a
model run (`infer`), whole models with their training (`models`).

To add one: (1) a `PyroModule` in a file of its own whose ``forward(prior, grid, values, mask)`` returns a path law on
`grid` with the diffusion of `prior` (or ``forward(prior, values, mask)``, if the prior is to be a path law, with its
first state and grid); the prior is an argument, never a child, so that no parameter has two names;
(2) start it at the prior, with a divergence of 0, and say so with its equation, shapes and cost in the docstring;
(3) its name below; (4) one row in the table of `tests/guides/conftest.py` if it bends an SDE: the contract suite checks
the start at the prior, padding, missing entries and gradients.

Papers: Li, Wong, Chen, Duvenaud (2020), arXiv 2001.01328; Opper (2019), Variational inference for stochastic
differential equations, Annalen der Physik 531; Archer et al. (2015), arXiv 1511.07367.
"""

from .combiner import CombinerGuide as CombinerGuide
from .gaussian_markov import EncodedSites as EncodedSites
from .gaussian_markov import FreeSites as FreeSites
from .gaussian_markov import GaussianMarkov as GaussianMarkov
from .gaussian_markov import ObservedSites as ObservedSites
from .gaussian_markov import PseudoObservations as PseudoObservations
from .marginal_flow import ImportanceTimes as ImportanceTimes
from .marginal_flow import LowDiscrepancyTimes as LowDiscrepancyTimes
from .marginal_flow import MarginalFlow as MarginalFlow
from .marginal_flow import MarginalPath as MarginalPath
from .marginal_flow import StratifiedTimes as StratifiedTimes
from .marginal_flow import TimeSampler as TimeSampler
from .marginal_flow import UniformTimes as UniformTimes
from .posterior_sde import PosteriorSDE as PosteriorSDE
from .residual import ResidualGuide as ResidualGuide
from .residual import VariationalRNNGuide as VariationalRNNGuide

__all__ = [
    "CombinerGuide",
    "EncodedSites",
    "FreeSites",
    "GaussianMarkov",
    "ImportanceTimes",
    "LowDiscrepancyTimes",
    "MarginalFlow",
    "MarginalPath",
    "ObservedSites",
    "PosteriorSDE",
    "PseudoObservations",
    "ResidualGuide",
    "StratifiedTimes",
    "TimeSampler",
    "UniformTimes",
    "VariationalRNNGuide",
]
