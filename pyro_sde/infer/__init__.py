"""Inference for models with path sites.

Lives here: evidence bounds that look at several sites, automatic guides, reparameterisation, checks of a model/guide
pair, training loops and checkpoints.
Does not live here: densities and divergences of one path law (`distributions`), networks (`nn`), plots (`diagnostics`).

To add one: (1) a module with a noun as its name, (2) build on an official Pyro base (ELBO, Reparam, GuideMessenger),
(3) its name below, (4) a row in the inference matrix of `tests/infer`.

Papers: Roeder et al. (2017), arXiv 1703.09194; Xu et al. (2022), arXiv 2102.06559.
"""

from .elbo import JitPathELBO as JitPathELBO
from .elbo import PathELBO as PathELBO

__all__ = ["JitPathELBO", "PathELBO"]
