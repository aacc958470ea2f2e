"""Judging a fit: scores, baselines to beat, ArviZ export and plots.

Lives here: everything that looks at samples after training. `metrics.py` scores predictions, `baselines.py` and
`ou.py` are predictors that a model must beat, `discretisation.py` tells what a step costs, `arviz.py` names dimensions
and writes files, `plots.py` draws.
Does not live here: anything a model or a guide needs to train (`infer`), data sets (`data`), tests (`testing`).

ArviZ and matplotlib are imported by `arviz.py` and `plots.py` alone, inside the function that needs them, so importing
this room costs nothing.

To add a score or a baseline: (1) a function that returns a `Score`, or a frozen `Baseline` with a ``fit_...`` function,
that accepts masks and computes in float64; (2) equation, unit, shapes and source in its docstring; (3) its name in
`__all__` and below; (4) a test against a closed form or a dense computation in `tests/diagnostics`, and for a baseline
one row in that room's ``BASELINES`` table.

Papers: Gneiting and Raftery (2007) for scoring rules; Rasmussen and Williams (2006) for Gaussian process regression.
"""

from .arviz import from_mcmc as from_mcmc
from .arviz import load_netcdf as load_netcdf
from .arviz import save_netcdf as save_netcdf
from .arviz import to_inference_data as to_inference_data
from .base import Baseline as Baseline
from .base import GaussianPrediction as GaussianPrediction
from .baselines import LastValueBaseline as LastValueBaseline
from .baselines import LinearInterpolationBaseline as LinearInterpolationBaseline
from .baselines import fit_last_value as fit_last_value
from .baselines import fit_linear_interpolation as fit_linear_interpolation
from .discretisation import DiscretisationReport as DiscretisationReport
from .discretisation import IncrementCheck as IncrementCheck
from .discretisation import QuadraticVariation as QuadraticVariation
from .discretisation import discretisation as discretisation
from .discretisation import quadratic_variation as quadratic_variation
from .metrics import Score as Score
from .metrics import crps_samples as crps_samples
from .metrics import interval_coverage as interval_coverage
from .metrics import log_predictive_density as log_predictive_density
from .metrics import mae as mae
from .metrics import rmse as rmse
from .ou import OUProcessBaseline as OUProcessBaseline
from .ou import fit_ou as fit_ou
from .plots import panels as panels
from .plots import plot_losses as plot_losses
from .plots import plot_paths as plot_paths
from .plots import plot_phase as plot_phase

__all__ = [
    "Baseline",
    "DiscretisationReport",
    "GaussianPrediction",
    "IncrementCheck",
    "LastValueBaseline",
    "LinearInterpolationBaseline",
    "OUProcessBaseline",
    "QuadraticVariation",
    "Score",
    "crps_samples",
    "discretisation",
    "fit_last_value",
    "fit_linear_interpolation",
    "fit_ou",
    "from_mcmc",
    "interval_coverage",
    "load_netcdf",
    "log_predictive_density",
    "mae",
    "panels",
    "plot_losses",
    "plot_paths",
    "plot_phase",
    "quadratic_variation",
    "rmse",
    "save_netcdf",
    "to_inference_data",
]
