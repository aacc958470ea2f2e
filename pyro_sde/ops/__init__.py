"""Pure tensor functions: grids, increments, recurrences, exact Gaussian steps.

Lives here: functions and small records of tensors that know nothing of SDEs, distributions or Pyro.
Does not live here: anything with learnable parameters (`nn`), coefficients (`sde`) or sample sites.

To add one: (1) a module with one noun as its name and torch as its only import, (2) shapes and the source in the
docstring, (3) its names in `__all__` and below, (4) tests against a dense brute-force oracle in `tests/ops`.
"""

from .discretise import Transition as Transition
from .discretise import discretise as discretise
from .gaussian_chain import GaussianChain as GaussianChain
from .gaussian_chain import psd_factor as psd_factor
from .grid import TimeGrid as TimeGrid
from .kalman import FilterResult as FilterResult
from .kalman import SmootherResult as SmootherResult
from .kalman import kalman_filter as kalman_filter
from .kalman import log_evidence as log_evidence
from .kalman import posterior_chain as posterior_chain
from .kalman import sample_posterior as sample_posterior
from .kalman import smooth as smooth
from .layout import time_first as time_first
from .linear_observations import LinearObservations as LinearObservations
from .scan import diagonal_recurrence as diagonal_recurrence
from .scan import linear_recurrence as linear_recurrence
from .stationary import stationary_moments as stationary_moments

__all__ = [
    "FilterResult",
    "GaussianChain",
    "LinearObservations",
    "SmootherResult",
    "TimeGrid",
    "Transition",
    "diagonal_recurrence",
    "discretise",
    "kalman_filter",
    "linear_recurrence",
    "log_evidence",
    "posterior_chain",
    "psd_factor",
    "sample_posterior",
    "smooth",
    "stationary_moments",
    "time_first",
]
