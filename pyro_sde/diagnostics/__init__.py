"""Judging a fit: scores, calibration, residuals, baselines to beat, ArviZ export and plots.

Lives here: everything that looks at samples after training. `metrics.py` scores predictions, `residuals.py` asks what
they have missed, `calibration.py` tests a method on simulated data, `importance.py` tests a guide on its own data,
`baselines.py` and `ou.py` are predictors that a model must beat, `discretisation.py` tells what a step costs,
`mixing.py` what skipping a fine scale saves and costs, `from_pyro.py` turns a guide or an MCMC run into ArviZ data,
`arviz.py` names dimensions and writes files, `plots.py` draws.
Does not live here: anything a model or a guide needs to train (`infer`), data sets (`data`), tests (`testing`).

ArviZ and matplotlib are imported by `arviz.py` and `plots.py` alone, inside the function that needs them, so importing
this room costs nothing.

To add a score or a baseline: (1) a function that returns a `Score`, or a frozen `Baseline` with a ``fit_...`` function,
that accepts masks and computes in float64; (2) equation, unit, shapes and source in its docstring; (3) its name in
`__all__` and below; (4) a test against a closed form or a dense computation in `tests/diagnostics`, and for a baseline
one row in that room's ``BASELINES`` table. A picture takes ``ax=None``, returns the axes, and has a test of what it
draws and one row in ``PICTURES`` of `test_plots.py`, which compares images.

Papers: Gneiting and Raftery (2007) for scoring rules; Rasmussen and Williams (2006) for Gaussian process regression;
Talts et al. (2018) for calibration by simulation; Vehtari et al. (2024) for Pareto-smoothed importance sampling.
"""

from .arviz import load_netcdf as load_netcdf
from .arviz import save_netcdf as save_netcdf
from .arviz import to_inference_data as to_inference_data
from .base import Baseline as Baseline
from .base import GaussianPrediction as GaussianPrediction
from .baselines import LastValueBaseline as LastValueBaseline
from .baselines import LinearInterpolationBaseline as LinearInterpolationBaseline
from .baselines import fit_last_value as fit_last_value
from .baselines import fit_linear_interpolation as fit_linear_interpolation
from .calibration import RankStatistics as RankStatistics
from .calibration import path_deviation as path_deviation
from .calibration import simulation_based_calibration as simulation_based_calibration
from .discretisation import DiscretisationReport as DiscretisationReport
from .discretisation import IncrementCheck as IncrementCheck
from .discretisation import QuadraticVariation as QuadraticVariation
from .discretisation import discretisation as discretisation
from .discretisation import quadratic_variation as quadratic_variation
from .from_pyro import from_guide as from_guide
from .from_pyro import from_mcmc as from_mcmc
from .importance import ImportanceCheck as ImportanceCheck
from .importance import importance_check as importance_check
from .metrics import Score as Score
from .metrics import crps_samples as crps_samples
from .metrics import energy_score as energy_score
from .metrics import interval_coverage as interval_coverage
from .metrics import interval_score as interval_score
from .metrics import log_predictive_density as log_predictive_density
from .metrics import mae as mae
from .metrics import rmse as rmse
from .mixing import FineSite as FineSite
from .mixing import MultiScaleReport as MultiScaleReport
from .mixing import multiscale_report as multiscale_report
from .ou import OUProcessBaseline as OUProcessBaseline
from .ou import fit_ou as fit_ou
from .plots import panels as panels
from .plots import plot_calibration as plot_calibration
from .plots import plot_coefficient as plot_coefficient
from .plots import plot_losses as plot_losses
from .plots import plot_paths as plot_paths
from .plots import plot_phase as plot_phase
from .residuals import WhitenessTest as WhitenessTest
from .residuals import ljung_box as ljung_box
from .residuals import normal_residuals as normal_residuals
from .residuals import pit as pit

__all__ = [
    "Baseline",
    "DiscretisationReport",
    "FineSite",
    "GaussianPrediction",
    "ImportanceCheck",
    "IncrementCheck",
    "LastValueBaseline",
    "LinearInterpolationBaseline",
    "MultiScaleReport",
    "OUProcessBaseline",
    "QuadraticVariation",
    "RankStatistics",
    "Score",
    "WhitenessTest",
    "crps_samples",
    "discretisation",
    "energy_score",
    "fit_last_value",
    "fit_linear_interpolation",
    "fit_ou",
    "from_guide",
    "from_mcmc",
    "importance_check",
    "interval_coverage",
    "interval_score",
    "ljung_box",
    "load_netcdf",
    "log_predictive_density",
    "mae",
    "multiscale_report",
    "normal_residuals",
    "panels",
    "path_deviation",
    "pit",
    "plot_calibration",
    "plot_coefficient",
    "plot_losses",
    "plot_paths",
    "plot_phase",
    "quadratic_variation",
    "rmse",
    "save_netcdf",
    "simulation_based_calibration",
    "to_inference_data",
]
