"""The NASCAR track: four regimes of linear dynamics that the state itself switches, seen through ten noisy channels."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.optim import Adam
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from pyro_sde.distributions.gaussian_path import GaussianPath
from pyro_sde.distributions.regime_chain import RegimeChain
from pyro_sde.distributions.switching import SwitchingPath
from pyro_sde.infer.elbo import PathELBO
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.priors.regimes import MarkovRegimes, StickBreakingRegimes, stick_breaking
from pyro_sde.priors.switching import SwitchingLinearPrior
from pyro_sde.sde.integrated_wiener import IntegratedWiener

REGIMES, STATES, CHANNELS = 4, 2, 10


class Track(NamedTuple):
    """One simulated series, and the law it came from."""

    law: SwitchingPath
    path: Tensor  # (T, 2)
    regimes: Tensor  # (T - 1,)
    emission: Tensor  # (10, 2)
    values: Tensor  # (T, 10)


def simulate(length: int, seed: int, noise: float = 0.1) -> Track:
    """Two turns by pi / 24 and pi / 48 a step, and two straights at 0.1 and -0.25 a step, as in the literature."""
    torch.manual_seed(seed)
    turns = [_turn(-math.pi / 24), _turn(-math.pi / 48)]
    centres = [torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 0.0])]
    matrix = torch.stack([*turns, torch.eye(2), torch.eye(2)])
    drifts = [torch.tensor([0.1, 0.0]), torch.tensor([-0.25, 0.0])]
    offset = torch.stack([c - turn @ c for turn, c in zip(turns, centres, strict=True)] + drifts)
    planes = torch.tensor([[100.0, 0.0], [-100.0, 0.0], [0.0, 10.0]])
    bias = torch.tensor([-200.0, -200.0, 0.0])

    def step(z: Tensor, t: Tensor, inputs: Tensor | None) -> dist.Distribution:
        return dist.Normal(torch.einsum("kij,...j->...ki", matrix, z) + offset, 0.01).to_event(1)

    def table(z: Tensor, t: Tensor, inputs: Tensor | None) -> Tensor:
        return stick_breaking(z @ planes.T + bias).unsqueeze(-2).expand(*z.shape[:-1], REGIMES, REGIMES)

    start = dist.Normal(torch.tensor([0.0, 1.0]), 0.01).to_event(1)
    law = SwitchingPath(step, start, RegimeChain(torch.full((REGIMES,), 0.25).log(), table), length)
    path, regimes = law.sample_joint()
    emission = torch.linalg.qr(torch.randn(CHANNELS, STATES))[0]
    return Track(law, path, regimes, emission, path @ emission.T + noise * torch.randn(length, CHANNELS))


def _turn(angle: float) -> Tensor:
    return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def matched_accuracy(truth: Tensor, found: Tensor, num_regimes: int = REGIMES) -> float:
    """Share of the steps whose regime is right, under the best renaming of the regimes found."""
    counts = torch.bincount(truth * num_regimes + found, minlength=num_regimes**2).reshape(num_regimes, num_regimes)
    rows, columns = linear_sum_assignment(-counts.numpy())
    return float(np.asarray(counts)[rows, columns].sum() / len(truth))


class Emission(nn.Module):
    """Observations :math:`y = C z + d + N(0, r^2)`."""

    def __init__(self, matrix: Tensor, offset: Tensor, noise: float) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix.clone())
        self.offset = nn.Parameter(offset.clone())
        self.log_noise = nn.Parameter(torch.tensor(noise).log())

    def law(self, z: Tensor) -> dist.Distribution:
        return dist.Normal(z @ self.matrix.T + self.offset, self.log_noise.exp()).to_event(2)

    def noise(self) -> dist.Distribution:
        return dist.Normal(self.offset, self.log_noise.exp().expand(len(self.offset))).to_event(1)


def components(values: Tensor) -> tuple[Tensor, Emission]:
    """Principal components, smoothed as integrated Brownian motion, and the emission that they belong to."""
    offset = values.mean(0)
    _, sizes, directions = torch.linalg.svd(values - offset, full_matrices=False)
    noise = float((sizes[STATES:].square().sum() / (len(values) * (CHANNELS - STATES))).sqrt())
    matrix = directions[:STATES].T
    rough = ((values - offset) @ matrix).double().T.unsqueeze(-1)  # (2, T, 1)
    grid = TimeGrid(torch.arange(len(values), dtype=torch.float64))
    start = dist.MultivariateNormal(torch.zeros(2, dtype=torch.float64), 100 * torch.eye(2, dtype=torch.float64))
    place = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    laws = [GaussianPath(IntegratedWiener(1, speed), start, grid) for speed in (0.003, 0.01, 0.03, 0.1, 0.3)]
    best = max(laws, key=lambda law: float(law.log_evidence(place, noise, rough).sum()))
    smooth = best.condition(place, noise, rough).mean[..., 0].T
    return smooth.to(values), Emission(matrix, offset, noise)


class Fitted(NamedTuple):
    """A trained model."""

    regimes: Tensor  # (T - 1,), most probable at the mean of the guide
    at_start: Tensor  # before training
    bound: float  # nats per step, mean of the last tenth of the steps
    seconds: float  # of CPU time, start and training


def fit(values: Tensor, *, recurrent: bool, steps: int, seed: int, rate: float = 0.005) -> Fitted:
    """Train a switching linear system on one series; the guide is the smoother of the expected dynamics."""
    begin = time.process_time()
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    length = len(values)
    path, emission = components(values)
    kind = StickBreakingRegimes(REGIMES, STATES) if recurrent else MarkovRegimes(REGIMES)
    prior = SwitchingLinearPrior(kind, STATES)
    prior.start_from(path)
    with torch.no_grad():
        law = prior(length)
        at_start, weights = law.viterbi(path), law.regime_posterior(path)

    def posterior() -> GaussianPath:
        return prior.reference(weights).condition(emission.matrix, emission.noise(), values)

    def model() -> None:
        pyro.module("prior", prior)
        pyro.module("emission", emission)
        z = pyro.sample("z", prior(length))
        pyro.sample("y", emission.law(z), obs=values)

    svi = SVI(model, lambda: pyro.sample("z", posterior()), Adam({"lr": rate}), PathELBO())
    losses = []
    for _ in range(steps):
        losses.append(svi.step())
        with torch.no_grad():
            weights = prior(length).regime_posterior(posterior().mean)
    with torch.no_grad():
        found = prior(length).viterbi(posterior().mean)
    last = losses[-max(1, steps // 10) :]
    return Fitted(found, at_start, -sum(last) / len(last) / length, time.process_time() - begin)


def known_accuracy(track: Track, noise: float = 0.1) -> float:
    """Accuracy of the most probable regimes at the smoothed path where all parameters are known: what can be had."""
    prior = SwitchingLinearPrior(MarkovRegimes(REGIMES), STATES)
    law = track.law
    with torch.no_grad():
        centre = law.transition(torch.zeros(STATES), torch.ones(1), None).mean
        unit = torch.eye(STATES)
        columns = [law.transition(unit[i], torch.ones(1), None).mean - centre for i in range(STATES)]
        prior.offset.copy_(centre)
        prior.matrix.copy_(torch.stack(columns, -1))
        prior.log_scale.fill_(math.log(0.01))
        prior.initial_loc.copy_(torch.tensor([0.0, 1.0]))
        prior.initial_log_scale.fill_(math.log(0.01))
        weights = law.regime_posterior(components(track.values)[0] @ _align(track))
        for _ in range(20):
            mean = prior.reference(weights).condition(track.emission, noise, track.values).mean
            weights = law.regime_posterior(mean)
        return matched_accuracy(track.regimes, law.viterbi(mean))


def _align(track: Track) -> Tensor:
    """Map from principal components to the coordinates of the truth."""
    return components(track.values)[1].matrix.detach().T @ track.emission
