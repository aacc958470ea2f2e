"""The parts of a latent SDE, and how the default ones are built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.distributions import Distribution

from ..distributions.sde_path import SDEPath
from ..guides.posterior_sde import PosteriorSDE
from ..nn.encoders import GRUEncoder
from ..nn.mlp import MLP, ControlNet
from ..ops.grid import TimeGrid
from ..sde.base import SDE
from ..sde.library import NeuralSDE
from .initial import InitialNormal
from .likelihoods import Likelihood

__all__ = ["Architecture", "Parts"]


class Parts(NamedTuple):
    """The parts of a latent SDE, each usable alone."""

    prior: SDE
    initial: Callable[[], Distribution]
    posterior_sde: PosteriorSDE
    decoder: Callable[[Tensor], Tensor]
    likelihood: Likelihood
    max_step: float | None

    def posterior_law(self, grid: TimeGrid, values: Tensor, mask: Tensor) -> SDEPath:
        """Posterior law of the path of B series; `values` ``(B, N, O)`` are finite, `mask` is of their shape."""
        features = self.likelihood.features(values)
        mask = mask.repeat_interleave(self.likelihood.features_per_channel, -1)
        return self.posterior_sde(self.prior, grid, features, mask)

    def prior_law(self, grid: TimeGrid) -> SDEPath:
        """Law of the path in the model."""
        return SDEPath(self.prior, self.initial(), grid)


@dataclass(frozen=True)
class Architecture:
    """Sizes of the default parts of a `LatentSDE`; parts that are given ignore them.

    Attributes:
        hidden: widths of the hidden layers of drift and control.
        decoder_hidden: widths of the hidden layers of the decoder; ``()`` makes it affine.
        encoder_hidden: GRU units of the encoder.
        context_dim: channels of a context row, at least 3.
        diffusion_scale: diffusion of every state dimension before training, ``> 0``, per square root of time.
        time_scale: typical time between observations, ``> 0``.
        reversion: as in `NeuralSDE`; if positive, the control network is bounded as well, and the paths of prior and
            posterior stay finite however long a series is.
    """

    hidden: tuple[int, ...] = (64, 64)
    decoder_hidden: tuple[int, ...] = (64,)
    encoder_hidden: int = 64
    context_dim: int = 16
    diffusion_scale: float = 0.5
    time_scale: float = 1.0
    reversion: float = 0.0

    def make_prior(self, state_dim: int) -> NeuralSDE:
        """Autonomous prior with a learned constant diffusion."""
        return NeuralSDE(state_dim, self.hidden, diffusion_scale=self.diffusion_scale, reversion=self.reversion)

    def make_posterior_sde(self, prior: SDE, initial: InitialNormal, likelihood: Likelihood) -> PosteriorSDE:
        """GRU encoder and control network, with a control for every Brownian motion of the prior."""
        state_dim = initial.loc.shape[-1]
        encoder = GRUEncoder(
            likelihood.feature_dim,
            state_dim,
            self.context_dim,
            hidden=self.encoder_hidden,
            time_scale=self.time_scale,
        )
        law = SDEPath(prior, initial(), TimeGrid(initial.loc.new_zeros(1)))  # knows what noise the prior has
        noise_dim, activation = law.noise_shape()[-1], "tanh" if self.reversion else "silu"
        control = ControlNet(state_dim, self.context_dim, noise_dim, self.hidden, activation=activation)
        return PosteriorSDE(encoder, control)

    def make_decoder(self, state_dim: int, likelihood: Likelihood) -> MLP:
        """Perceptron from the state to what the likelihood needs."""
        return MLP(state_dim, likelihood.output_dim, self.decoder_hidden)
