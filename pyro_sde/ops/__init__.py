"""Pure tensor functions: grids, increments, recurrences, exact Gaussian steps.

Lives here: functions and small records of tensors that know nothing of SDEs, distributions or Pyro.
Does not live here: anything with learnable parameters (`nn`), coefficients (`sde`) or sample sites.

To add one: (1) a module with one noun as its name and torch as its only import, (2) shapes and the source in the
docstring, (3) its names in `__all__` and below, (4) tests against a dense brute-force oracle in `tests/ops`.
"""

from .grid import TimeGrid as TimeGrid
from .layout import time_first as time_first

__all__ = ["TimeGrid", "time_first"]
