"""Layers and encoders: tensors in, tensors out.

Lives here: networks for drifts and controls (`mlp`), learnable diffusions (`diffusion`), and encoders that
turn an irregular series into an initial law and one context row per solver step (`encoders`). Does not live
here: sample sites and priors over weights, what an SDE is (`sde`), how it is stepped (`solvers`), whole
guides (`guides`).

To add an encoder: (1) subclass `Encoder` in a file of its own and start `forward` with `check_observations`,
which fixes the meaning of masks, NaN and batch shapes for all encoders; (2) give source and cost in its
docstring; (3) export it below; (4) add one row to the table in `tests/nn/conftest.py`: the contract suite
checks causality, padding, missing entries, batch shapes and dtypes. A layer is added the same way, with a
test file of its own; a drift or diffusion gets the fast path of the solvers by a method that describes its
layers (`StateNetwork`).

Papers: Rubanova, Chen, Duvenaud (2019), Latent ODEs for irregularly-sampled time series, arXiv:1907.03907
(encoders that run backwards in time); Li, Wong, Chen, Duvenaud (2020), Scalable gradients for stochastic
differential equations, arXiv:2001.01328 (context for a posterior drift, elementwise diffusion networks).
"""

from .autocast import Autocast as Autocast
from .base import Encoder as Encoder
from .base import Encoding as Encoding
from .base import check_observations as check_observations
from .diffusion import DiagonalDiffusion as DiagonalDiffusion
from .encoders import GRUEncoder as GRUEncoder
from .gated_transition import GatedTransition as GatedTransition
from .marginal_encoders import FreeMarginals as FreeMarginals
from .marginal_encoders import GRUMarginals as GRUMarginals
from .marginal_encoders import LocalMarginals as LocalMarginals
from .marginals import FlowMarginals as FlowMarginals
from .marginals import Marginals as Marginals
from .marginals import NodeMarginals as NodeMarginals
from .mlp import MLP as MLP
from .mlp import ControlNet as ControlNet
from .mlp import DriftNet as DriftNet
from .packed_rnn import PackedRNN as PackedRNN
from .sigmoid_map import SigmoidMap as SigmoidMap
from .state_network import StateNetwork as StateNetwork

__all__ = [
    "Autocast",
    "ControlNet",
    "DiagonalDiffusion",
    "DriftNet",
    "Encoder",
    "Encoding",
    "FlowMarginals",
    "FreeMarginals",
    "GRUEncoder",
    "GRUMarginals",
    "GatedTransition",
    "LocalMarginals",
    "MLP",
    "Marginals",
    "NodeMarginals",
    "PackedRNN",
    "SigmoidMap",
    "StateNetwork",
    "check_observations",
]
