"""The likelihoods of the room, one row each for the suite in `test_likelihoods.py`, and a model of known law."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_sde.guides import PosteriorSDE
from pyro_sde.models import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    LaplaceLikelihood,
    LatentSDE,
    Likelihood,
    NormalLikelihood,
    PoissonLikelihood,
)
from pyro_sde.nn import Encoder, Encoding
from pyro_sde.nn.base import inverse_softplus
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.sde import OrnsteinUhlenbeck


class Row(NamedTuple):
    """How to build a likelihood of two channels, and its log-density and support written out by hand."""

    make: Callable[[], Likelihood]
    log_prob: Callable[[Tensor, Tensor], Tensor]  # (values (..., 2), output (..., output_dim)) -> (..., 2)
    in_support: Callable[[Tensor], Tensor]
    mean: Callable[[Tensor], Tensor]  # output -> (..., 2)
    by_name: str | None


LOG_2PI = 1.8378770664093453
BOUND = 6.907755278982137  # log 1000


def _categorical(values: Tensor, output: Tensor) -> Tensor:
    channels = [
        output[..., 3 * o : 3 * o + 3].log_softmax(-1).gather(-1, values[..., o : o + 1].long()) for o in (0, 1)
    ]
    return torch.cat(channels, -1)


def _log_rate(output: Tensor) -> Tensor:
    return BOUND * (output / BOUND).tanh()


LIKELIHOODS: dict[str, Row] = {
    "bernoulli": Row(
        lambda: BernoulliLikelihood(2),
        lambda y, o: y * torch.sigmoid(o).log() + (1 - y) * torch.sigmoid(-o).log(),
        lambda y: (y == 0) | (y == 1),
        torch.sigmoid,
        "bernoulli",
    ),
    "categorical": Row(
        lambda: CategoricalLikelihood(2, 3),
        _categorical,
        lambda y: (y == 0) | (y == 1) | (y == 2),
        lambda o: torch.stack([o[..., :3].argmax(-1), o[..., 3:].argmax(-1)], -1).to(o.dtype),
        None,
    ),
    "laplace": Row(
        lambda: LaplaceLikelihood(2, initial_scale=0.4),
        lambda y, o: -(y - o).abs() / 0.4 - torch.tensor(0.8, dtype=o.dtype).log(),
        torch.isfinite,
        lambda o: o,
        "laplace",
    ),
    "normal": Row(
        lambda: NormalLikelihood(2, initial_scale=0.4),
        lambda y, o: -0.5 * ((y - o) / 0.4) ** 2 - torch.tensor(0.4, dtype=o.dtype).log() - 0.5 * LOG_2PI,
        torch.isfinite,
        lambda o: o,
        "normal",
    ),
    "poisson": Row(
        lambda: PoissonLikelihood(2, max_rate=1000.0),
        lambda y, o: y * _log_rate(o) - _log_rate(o).exp() - torch.lgamma(y + 1),
        lambda y: (y >= 0) & (y == y.round()),
        lambda o: _log_rate(o).exp(),
        "poisson",
    ),
}


@pytest.fixture(params=sorted(LIKELIHOODS))
def likelihood_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def row(likelihood_name: str) -> Row:
    return LIKELIHOODS[likelihood_name]


@pytest.fixture
def other_rows(likelihood_name: str) -> list[Row]:
    return [row for name, row in LIKELIHOODS.items() if name != likelihood_name]


class GivenEncoder(Encoder):
    """An encoder that reads nothing: a given law of the first state and a context of zeros."""

    def __init__(self, loc: float, scale: float) -> None:
        super().__init__(1, 1, 1)
        self.loc, self.scale = loc, scale

    def forward(self, grid: TimeGrid, values: Tensor, mask: Tensor | None = None) -> Encoding:
        batch = values.shape[:-2]
        initial = dist.Normal(values.new_full((*batch, 1), self.loc), self.scale).to_event(1)
        return Encoding(initial, values.new_zeros(*batch, grid.num_steps, 1), values.new_zeros(*batch, 1))


class KnownOU(NamedTuple):
    """A latent SDE whose law is known: an Ornstein-Uhlenbeck prior, seen with Gaussian noise."""

    rate: float = 0.8
    sigma: float = 0.6
    noise: float = 0.3
    step: float = 0.25

    def build(self, loc: float = 0.0, scale: float = 1.0, control: Callable[..., Tensor] | None = None) -> LatentSDE:
        """The model in float64, with a guide that starts at N(loc, scale) and follows the prior plus a control."""
        likelihood = NormalLikelihood(1, initial_scale=self.noise).double()
        with torch.no_grad():
            likelihood.raw_scale.fill_(inverse_softplus(self.noise - likelihood.floor))
        latent = LatentSDE(
            1,
            1,
            likelihood=likelihood,
            prior=OrnsteinUhlenbeck(self.rate, self.sigma),
            posterior_sde=PosteriorSDE(GivenEncoder(loc, scale), control or (lambda t, z, context: 0 * z)),
            decoder=torch.nn.Identity(),
            max_step=self.step,
        ).double()
        with torch.no_grad():
            latent.initial.raw_scale.fill_(inverse_softplus(1 - 1e-3))
        return latent

    def moments(self, times: Tensor, variance: float = 1.0) -> tuple[Tensor, Tensor]:
        """Factor on the mean, and covariance of the chain at increasing times, each a multiple of the step."""
        steps = (times / self.step).round().long()
        factor = 1 - self.rate * self.step
        variances = [variance]
        for _ in range(int(steps.max())):
            variances.append(factor**2 * variances[-1] + self.sigma**2 * self.step)
        earlier = torch.minimum(steps[:, None], steps)
        gap = (steps[:, None] - steps).abs()
        return factor ** steps.double(), torch.tensor(variances, dtype=torch.float64)[earlier] * factor ** gap.double()


@pytest.fixture
def known() -> KnownOU:
    return KnownOU()
