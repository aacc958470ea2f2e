"""The parts of a latent SDE, and how the default ones are built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.distributions import Distribution

from ..distributions.sde_path import SDEPath
from ..guides.posterior_sde import PosteriorSDE
from ..nn.base import check_positive, check_widths
from ..nn.encoders import GRUEncoder
from ..nn.mlp import MLP, ControlNet
from ..ops._arguments import is_finite
from ..ops.grid import TimeGrid
from ..sde.base import SDE
from ..sde.library import NeuralSDE
from .initial import InitialNormal
from .likelihoods import Likelihood

__all__ = ["Architecture", "Parts", "check_parts"]


class Parts(NamedTuple):
    """The parts of a latent SDE, each usable alone.

    Attributes:
        prior: the SDE of the model.
        initial: makes the law of the first state, event shape ``(D,)``.
        posterior_sde: makes the law of the path in the guide.
        decoder: ``(..., D) -> (..., output_dim)`` of the likelihood.
        likelihood: law of the observations ``(..., O)``.
        max_step: largest solver step; None for one step per gap between times.
    """

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


def check_parts(prior: object, decoder: object, architecture: object) -> None:
    """Raise TypeError unless a prior is an SDE, a decoder a function and an architecture an `Architecture`, or None."""
    for name, value, fits, kind in (
        ("prior", prior, isinstance(prior, SDE), "an SDE"),
        ("decoder", decoder, callable(decoder), "a function of the states"),
        ("architecture", architecture, isinstance(architecture, Architecture), "an `Architecture`"),
    ):
        if value is not None and not fits:
            msg = f"`{name}` must be {kind}, received {type(value).__name__}."
            raise TypeError(msg)


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

    Raises:
        TypeError: if widths are no sequence.
        ValueError: if a size or number is not as described.
    """

    hidden: tuple[int, ...] = (64, 64)
    decoder_hidden: tuple[int, ...] = (64,)
    encoder_hidden: int = 64
    context_dim: int = 16
    diffusion_scale: float = 0.5
    time_scale: float = 1.0
    reversion: float = 0.0

    def __post_init__(self) -> None:
        for name in ("hidden", "decoder_hidden"):
            check_widths(name, getattr(self, name))
        if not self.hidden:
            msg = "`hidden` must name one layer at least; a prior with an affine drift is `prior` of `LatentSDE`."
            raise ValueError(msg)
        check_positive("encoder_hidden", self.encoder_hidden)
        if check_positive("context_dim", self.context_dim) < 3:
            msg = f"`context_dim` must be at least 3, of which time takes two; received {self.context_dim}."
            raise ValueError(msg)
        for name, least in (("diffusion_scale", "> 0"), ("time_scale", "> 0"), ("reversion", ">= 0")):
            value = getattr(self, name)
            if not is_finite(value) or value < 0 or (value == 0 and least == "> 0"):
                msg = f"`{name}` must be a finite number {least}, received {value!r}."
                raise ValueError(msg)

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
