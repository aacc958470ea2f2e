"""Ready-made models: Pyro model and guide in one object, with training, posterior and forecast.

Lives here: whole models (`latent_sde.py`, `deep_markov_model.py`), their likelihoods and first states, prediction and
backtests for them and for plain Pyro pairs, and what puts series and query times on one grid. Everything is sugar over
the lower floors, and each part is usable alone.
Does not live here: guides (`guides`), the training loop and evidence bounds (`infer`), data sets (`data`), scores and
pictures (`diagnostics`).

To add a likelihood: (1) subclass `Likelihood` in `likelihoods.py`: an elementwise law with 0 in its support; (2) say in
its docstring what the decoder gives and what the encoder reads; (3) its name in ``_BY_NAME`` if it needs no options, in
`__all__` and below; (4) one row in the table of `tests/models/conftest.py`, whose contract suite does the rest.
To add a model: (1) a `PyroModule` in a file of its own with methods `model` and `guide`, plain Pyro functions of
``(grid, values, mask)``; (2) call `fit_series` and the functions of `evaluation.py`, and subclass `PathPredictor`:
`smooth`, `forecast` and `impute` need its `record` and `draw`; (3) its name below; (4) its test file, with a known
law as oracle.

Papers: Li, Wong, Chen, Duvenaud (2020), arXiv 2001.01328; Rubanova, Chen, Duvenaud (2019), arXiv 1907.03907.
"""

from .backtest import BaselineForecaster as BaselineForecaster
from .backtest import Forecaster as Forecaster
from .backtest import RollingOrigin as RollingOrigin
from .backtest import Window as Window
from .backtest import backtest as backtest
from .deep_markov_model import DeepMarkovModel as DeepMarkovModel
from .evaluation import Evaluation as Evaluation
from .forecasting import PathForecaster as PathForecaster
from .initial import InitialNormal as InitialNormal
from .latent_sde import LatentSDE as LatentSDE
from .likelihoods import BernoulliLikelihood as BernoulliLikelihood
from .likelihoods import CategoricalLikelihood as CategoricalLikelihood
from .likelihoods import LaplaceLikelihood as LaplaceLikelihood
from .likelihoods import Likelihood as Likelihood
from .likelihoods import NormalLikelihood as NormalLikelihood
from .likelihoods import PoissonLikelihood as PoissonLikelihood
from .parts import Architecture as Architecture
from .parts import Parts as Parts
from .prediction import PathSamples as PathSamples
from .predictor import PathPredictor as PathPredictor
from .tempo import LocalGuide as LocalGuide
from .tempo import LocalLaws as LocalLaws
from .tempo import SeriesBatch as SeriesBatch
from .tempo import Tempo as Tempo
from .tempo import TempoParts as TempoParts
from .tempo import TempoSDE as TempoSDE

__all__ = [
    "Architecture",
    "BaselineForecaster",
    "BernoulliLikelihood",
    "CategoricalLikelihood",
    "DeepMarkovModel",
    "Evaluation",
    "Forecaster",
    "InitialNormal",
    "LaplaceLikelihood",
    "LatentSDE",
    "Likelihood",
    "LocalGuide",
    "LocalLaws",
    "NormalLikelihood",
    "Parts",
    "PathForecaster",
    "PathPredictor",
    "PathSamples",
    "PoissonLikelihood",
    "RollingOrigin",
    "SeriesBatch",
    "Tempo",
    "TempoParts",
    "TempoSDE",
    "Window",
    "backtest",
]
