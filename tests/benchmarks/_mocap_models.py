"""Two models of walks: the published architecture of 11,605 parameters, and one with tempo and second-order dynamics.

Every part holds the parameters of E members, which are trained at once and know nothing of each other.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_sde.models.tempo import Tempo, TempoParts, TempoSDE
from pyro_sde.sde.base import SDE
from pyro_sde.sde.second_order import SecondOrderSDE
from tests.benchmarks._mocap_data import CHANNELS, SEEN

LATENT, CONTEXT, HIDDEN = 6, 3, 30
COMPONENTS = 6  # principal components that the encoder of `best` reads
PINNED_PARAMETERS = 11_605
STIFFNESS = 0.21  # (2 pi / 13.5)^2: walks of 135 frames
NOISE_FLOOR = 0.1
DEGREES = 3.0  # of Student's t: one walk in ten is far from the others


class Affine(nn.Module):
    """E affine maps: ``(..., E, B, I) -> (..., E, B, O)``."""

    def __init__(self, members: int, sizes: tuple[int, int], scale: float = 1.0) -> None:
        super().__init__()
        bound = 1 / math.sqrt(sizes[0])
        self.weight = nn.Parameter(scale * bound * (2 * torch.rand(members, *sizes) - 1))
        self.bias = nn.Parameter(scale * bound * (2 * torch.rand(members, 1, sizes[1]) - 1))

    def forward(self, x: Tensor) -> Tensor:
        members = len(self.weight)
        if x.dim() < 3 or x.shape[-3] != members:
            return x @ self.weight + self.bias
        moved = x.movedim(-3, 0)  # members leftmost: one product each, not one for every time
        rows = torch.baddbmm(self.bias, moved.reshape(members, -1, x.shape[-1]), self.weight)
        return rows.reshape(*moved.shape[:-1], -1).movedim(0, -3)


def perceptron(members: int, *widths: int, last_scale: float = 1.0) -> nn.Sequential:
    """E perceptrons with SiLU."""
    layers: list[nn.Module] = []
    pairs = list(pairwise(widths))
    for sizes in pairs[:-1]:
        layers += [Affine(members, sizes), nn.SiLU()]
    return nn.Sequential(*layers, Affine(members, pairs[-1], last_scale))


class InitialLaw(nn.Module):
    """Law of the first state, ``(E, 1)``."""

    def __init__(self, members: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(members, 1, LATENT))
        self.log_scale = nn.Parameter(torch.zeros(members, 1, LATENT))

    def forward(self) -> dist.TorchDistribution:
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)


class Encoder(nn.Module):
    """First state and context from features."""

    def __init__(self, members: int, features: int) -> None:
        super().__init__()
        self.network = perceptron(members, features, HIDDEN, HIDDEN, 2 * LATENT + CONTEXT)

    def forward(self, features: Tensor) -> tuple[dist.TorchDistribution, Tensor]:
        loc, log_scale, context = self.network(features).split([LATENT, LATENT, CONTEXT], -1)
        return dist.Normal(loc, log_scale.clamp(-6.0, 2.0).exp()).to_event(1), context


class Joined(nn.Module):
    """Network of state and context as a drift or control; `pad` zeros come first."""

    def __init__(self, network: nn.Module, pad: int = 0) -> None:
        super().__init__()
        self.network, self.pad = network, pad

    def forward(self, t: Tensor, z: Tensor, context: Tensor) -> Tensor:
        del t
        output = self.network(torch.cat([z, context.expand(*z.shape[:-1], context.shape[-1])], -1))
        return nn.functional.pad(output, (self.pad, 0))


class Likelihood(nn.Module):
    """Normal law with one learned deviation for all channels, in the unit of the data as the score is."""

    def __init__(self, members: int, scale: Tensor) -> None:
        super().__init__()
        self.decoder = perceptron(members, LATENT, HIDDEN, HIDDEN, CHANNELS)
        self.scale: Tensor
        self.register_buffer("scale", scale)
        self.log_deviation = nn.Parameter(torch.full((members, 1, 1), math.log(2.0)))

    def forward(self, z: Tensor) -> dist.Normal:
        return dist.Normal(self.decoder(z) * self.scale, self.log_deviation.exp() + NOISE_FLOOR)


def best(scale: Tensor, num_series: int, components: int = COMPONENTS) -> TempoSDE:
    """Second-order dynamics, a tempo per walk, ``scale (E, 1, 50)``."""
    members = len(scale)
    acceleration = perceptron(members, LATENT, HIDDEN, LATENT // 2, last_scale=0.5)
    prior = SecondOrderSDE(
        acceleration, LATENT // 2, stiffness=STIFFNESS, noise_scale=math.exp(-2.5), batch_shape=(members, 1)
    )
    control = Joined(perceptron(members, LATENT + CONTEXT, HIDDEN, LATENT // 2, last_scale=0.0), LATENT // 2)
    parts = TempoParts(
        prior,
        prior.controlled(control),
        InitialLaw(members),
        Encoder(members, 2 * components),
        Likelihood(members, scale),
    )
    return TempoSDE(parts, Tempo(num_series, degrees=DEGREES, members=members), members=members)


class StateNoise(nn.Module):
    """Six networks of one state dimension each, with a sigmoid at the end."""

    def __init__(self, members: int, scale: float) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.randn(members, 1, LATENT, HIDDEN))
        self.shift = nn.Parameter(torch.randn(members, 1, LATENT, HIDDEN))
        self.outer = nn.Parameter(0.1 * torch.randn(members, 1, LATENT, HIDDEN) / math.sqrt(HIDDEN))
        self.bias = nn.Parameter(torch.full((members, 1, LATENT), math.log(scale / (1 - scale))))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        del t
        hidden = nn.functional.silu(z.unsqueeze(-1) * self.inner + self.shift)
        return ((hidden * self.outer).sum(-1) + self.bias).sigmoid()


class StateLikelihood(nn.Module):
    """Mean and deviation of every channel from the state; the deviation has a floor, or constant channels win."""

    def __init__(self, members: int, scale: Tensor) -> None:
        super().__init__()
        self.decoder = perceptron(members, LATENT, HIDDEN, HIDDEN, 2 * CHANNELS)
        self.scale: Tensor
        self.register_buffer("scale", scale)

    def forward(self, z: Tensor) -> dist.Normal:
        loc, raw = self.decoder(z).chunk(2, -1)
        return dist.Normal(loc * self.scale, (NOISE_FLOOR + nn.functional.softplus(raw)) * self.scale)


class Drift(nn.Module):
    """Network of the state alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        del t
        return self.network(z)


def pinned(scale: Tensor) -> TempoSDE:
    """The architecture of Li et al. (2020) as its parameter count pins it down, with the cures of its training."""
    members = len(scale)
    prior = SDE(Drift(perceptron(members, LATENT, HIDDEN, LATENT, last_scale=0.5)), StateNoise(members, 0.05))
    drift = Joined(perceptron(members, LATENT + CONTEXT, HIDDEN, LATENT, last_scale=0.5))
    parts = TempoParts(
        prior,
        prior.with_drift(drift),
        InitialLaw(members),
        Encoder(members, SEEN * CHANNELS),
        StateLikelihood(members, scale),
    )
    return TempoSDE(parts, members=members)
