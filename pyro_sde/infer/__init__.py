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
from .elbo import JitPathELBO as JitPathELBO
from .elbo import PathELBO as PathELBO
from .fit import FitOptions as FitOptions
from .fit import FitResult as FitResult
from .fit import FitStep as FitStep
from .fit import fit as fit
from .reparam import PathNoiseReparam as PathNoiseReparam
from .streams import minibatches as minibatches

__all__ = [
    "AutoGaussianMarkov",
    "AutoSDE",
    "Finding",
    "FitOptions",
    "FitResult",
    "FitStep",
    "JitPathELBO",
    "PathELBO",
    "PathNoiseReparam",
    "check",
    "fit",
    "load",
    "minibatches",
    "save",
]
