"""Pure tensor functions: grids, increments, recurrences, exact Gaussian steps.

Lives here: functions and small records of tensors that know nothing of SDEs, distributions or Pyro.
Does not live here: anything with learnable parameters (`nn`), coefficients (`sde`) or sample sites.

To add one: (1) a module with one noun as its name and torch as its only import, (2) shapes and the source in the
docstring, (3) its names in `__all__` and below, (4) tests against a dense brute-force oracle in `tests/ops`.
"""

from .brownian import BrownianIncrements as BrownianIncrements
from .brownian import VirtualBrownianTree as VirtualBrownianTree
from .brownian import brownian_bridge as brownian_bridge
from .brownian import brownian_increments as brownian_increments
from .brownian import coarsen as coarsen
from .brownian import combine as combine
from .brownian import normal_width as normal_width
from .discretise import Transition as Transition
from .discretise import discretise as discretise
from .gaussian_chain import GaussianChain as GaussianChain
from .gaussian_chain import psd_factor as psd_factor
from .grid import TimeGrid as TimeGrid
from .hidden_markov import HiddenMarkov as HiddenMarkov
from .kalman import FilterResult as FilterResult
from .kalman import SmootherResult as SmootherResult
from .kalman import kalman_filter as kalman_filter
from .kalman import log_evidence as log_evidence
from .kalman import posterior_chain as posterior_chain
from .kalman import sample_posterior as sample_posterior
from .kalman import smooth as smooth
from .layout import time_first as time_first
from .linear_observations import LinearObservations as LinearObservations
from .pilot import Pilot as Pilot
from .resampling import effective_sample_size as effective_sample_size
from .resampling import resample as resample
from .scan import diagonal_recurrence as diagonal_recurrence
from .scan import linear_recurrence as linear_recurrence
from .stationary import stationary_moments as stationary_moments
from .windows import Windows as Windows

__all__ = [
    "BrownianIncrements",
    "FilterResult",
    "GaussianChain",
    "HiddenMarkov",
    "LinearObservations",
    "Pilot",
    "SmootherResult",
    "TimeGrid",
    "Transition",
    "VirtualBrownianTree",
    "Windows",
    "brownian_bridge",
    "brownian_increments",
    "coarsen",
    "combine",
    "diagonal_recurrence",
    "discretise",
    "effective_sample_size",
    "kalman_filter",
    "linear_recurrence",
    "log_evidence",
    "normal_width",
    "posterior_chain",
    "psd_factor",
    "resample",
    "sample_posterior",
    "smooth",
    "stationary_moments",
    "time_first",
]
