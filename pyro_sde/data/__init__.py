"""Data room: one function call gives one `TimeSeries` record.

Lives here: the record, the catalogue of known data sets (source, licence, checksum), the way to their files
(`$PYRO_SDE_DATA`, the user's cache, a checked download), their readers, and seeded simulators.
Does not live here: transformations that a model learns (`nn`), grids (`ops.grid`), metrics and plots
(`diagnostics`).
A file may be shipped, beside this one, only if it is small (< 100 kB) and in the public domain or under a
permissive licence; everything else is read from where the user has it. Importing this room opens no file.

To add a data set: (1) write its reader in `readers.py`, or `recordings.py` for signals: bytes in, tensors out;
(2) add a `DataSet` with source, licence and sha256 to `catalogue.py`; (3) say in its description what a user could
trip over; (4) add a row to the table in `tests/data/test_catalogue.py`.
To add a simulator: (1) write drift and noise in `synthetic.py`, or call `simulate_paths`; (2) give it an
explicit `seed` and the options `irregular` and `missing`; (3) add its name to `__all__`; (4) add it to the
table in `tests/data/test_synthetic.py`, with a test against a closed form.

Example:
    >>> from pyro_sde import data
    >>> data.load("mauna_loa_co2")
    TimeSeries('mauna_loa_co2', series=1, times=2284, channels=1, observed=97.4%)
"""

from . import synthetic as synthetic
from .catalogue import CATALOGUE as CATALOGUE
from .catalogue import DataSet as DataSet
from .catalogue import load as load
from .polyphonic import read_polyphonic as read_polyphonic
from .series import TimeSeries as TimeSeries

__all__ = [
    "CATALOGUE",
    "DataSet",
    "TimeSeries",
    "load",
    "read_polyphonic",
    "synthetic",
]
