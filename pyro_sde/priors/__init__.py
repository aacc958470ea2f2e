"""Priors: learnable modules whose call returns the law of a path.

Lives here: transitions with parameters and what they are the steps of: deep Markov chains (`deep_markov`), chains that
read past observations through a recurrent network (`stochastic_rnn`), regimes and dynamics that switch with them
(`regimes`, `switching`).
Does not live here: path laws themselves (`distributions`: a distribution learns nothing), networks (`nn`), posteriors
(`guides`), whole models with their training (`models`).

To add one: (1) a module in a file of its own whose ``forward(length, lengths)`` returns a path law; one that reads the
observations takes them as third argument and says so by ``reads_values = True``; (2) the equation, shapes, cost and
paper in its docstring; (3) its name below; (4) its test file, with the density written as a plain loop as oracle.
`DeepMarkovModel(prior=...)` trains it.

Papers: Krishnan, Shalit, Sontag (2017), arXiv 1609.09869; Fraccaro et al. (2016), arXiv 1605.07571; Chung et al.
(2015), arXiv 1506.02216; Linderman et al. (2017), arXiv 1610.08466.
"""

from .deep_markov import DeepMarkovPrior as DeepMarkovPrior
from .regimes import MarkovRegimes as MarkovRegimes
from .regimes import StickBreakingRegimes as StickBreakingRegimes
from .stochastic_rnn import StochasticRNNPrior as StochasticRNNPrior
from .stochastic_rnn import VariationalRNNPrior as VariationalRNNPrior
from .switching import SwitchingLinearPrior as SwitchingLinearPrior
from .switching import SwitchingNetworkPrior as SwitchingNetworkPrior

__all__ = [
    "DeepMarkovPrior",
    "MarkovRegimes",
    "StickBreakingRegimes",
    "StochasticRNNPrior",
    "SwitchingLinearPrior",
    "SwitchingNetworkPrior",
    "VariationalRNNPrior",
]
