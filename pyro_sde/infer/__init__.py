"""Inference for models with path sites.

Lives here: evidence bounds that look at several sites, automatic guides, reparameterisation, checks of a model/guide
pair, training loops and checkpoints.
Does not live here: densities and divergences of one path law (`distributions`), networks (`nn`), plots (`diagnostics`).

To add one: (1) a module with a noun as its name, (2) build on an official Pyro base (ELBO, Reparam, GuideMessenger),
(3) its name below, (4) a row in the inference matrix of `tests/infer`.

Papers: Roeder et al. (2017), arXiv 1703.09194; Xu et al. (2022), arXiv 2102.06559.
"""

from .auto import AutoSDE as AutoSDE
from .auto_gaussian import AutoGaussianMarkov as AutoGaussianMarkov
from .check import Finding as Finding
from .check import check as check
from .checkpoint import load as load
from .checkpoint import save as save
from .continuation import ContinuePaths as ContinuePaths
from .continuation import continue_path as continue_path
from .elbo import JitPathELBO as JitPathELBO
from .elbo import PathELBO as PathELBO
from .emissions import EmissionLikelihood as EmissionLikelihood
from .emissions import PathEmission as PathEmission
from .filtering_bound import FilteringELBO as FilteringELBO
from .fit import FitOptions as FitOptions
from .fit import FitResult as FitResult
from .fit import FitStep as FitStep
from .fit import fit as fit
from .fit_sharded import fit_sharded as fit_sharded
from .held_out import HeldOut as HeldOut
from .held_out import held_out as held_out
from .lightning_module import lightning_module as lightning_module
from .mixing import MixingRegulariser as MixingRegulariser
from .mixing import contraction_rates as contraction_rates
from .mixing import mixing_penalty as mixing_penalty
from .particle_filter import FilteredParticles as FilteredParticles
from .particle_filter import particle_filter as particle_filter
from .particle_smoother import particle_smoother as particle_smoother
from .randomised_correction import GapwiseCorrection as GapwiseCorrection
from .randomised_correction import RandomisedCorrection as RandomisedCorrection
from .reparam import PathNoiseReparam as PathNoiseReparam
from .sharded_elbo import ShardedELBO as ShardedELBO
from .simulation_free import ObservationSample as ObservationSample
from .simulation_free import SimulationFreeELBO as SimulationFreeELBO
from .simulation_free import TimeWindows as TimeWindows
from .simulation_free import WindowBatch as WindowBatch
from .simulation_free import sample_observations as sample_observations
from .streams import minibatches as minibatches

__all__ = [
    "AutoGaussianMarkov",
    "AutoSDE",
    "ContinuePaths",
    "EmissionLikelihood",
    "FilteredParticles",
    "FilteringELBO",
    "Finding",
    "FitOptions",
    "FitResult",
    "FitStep",
    "GapwiseCorrection",
    "HeldOut",
    "JitPathELBO",
    "MixingRegulariser",
    "ObservationSample",
    "PathELBO",
    "PathEmission",
    "PathNoiseReparam",
    "RandomisedCorrection",
    "ShardedELBO",
    "SimulationFreeELBO",
    "TimeWindows",
    "WindowBatch",
    "check",
    "continue_path",
    "contraction_rates",
    "fit",
    "fit_sharded",
    "held_out",
    "lightning_module",
    "load",
    "minibatches",
    "mixing_penalty",
    "particle_filter",
    "particle_smoother",
    "sample_observations",
    "save",
]
