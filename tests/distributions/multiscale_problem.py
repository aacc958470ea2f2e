"""A two-scale problem of which everything is known: a slow and a fast Ornstein-Uhlenbeck process, the fast one seen.

Every law of it is Gaussian, so the log joint density is a quadratic function. `quadratic` reads it off a law's own
`log_prob`, and evidence, posterior and bounds follow by linear algebra, without any recursion over time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_sde import SDEPath, TimeGrid
from pyro_sde.distributions.multiscale_kernels import BurnIn, ReEntry
from pyro_sde.distributions.multiscale_path import MultiScalePath
from pyro_sde.ops.windows import Windows
from pyro_sde.sde import OrnsteinUhlenbeck
from pyro_sde.sde.two_scale import FineSDE, TwoScaleSDE

SLOW, SLOW_SCALE, FAST, FAST_SCALE, STEP, POINTS = 0.5, 0.5, 8.0, 0.6, 0.01, 601
OBSERVED = {100: 0.5, 110: 0.3, 120: 0.2, 450: -0.4, 460: -0.6, 470: -0.2}
VARIANCE = 0.05
EVIDENCE = -1.455453


def towards(t, b, a):
    return FAST * (a - b)


def fast_noise(t, b, a):
    return FAST_SCALE * torch.ones_like(b)


FINE = FineSDE(towards, fast_noise)
SCALES = TwoScaleSDE(OrnsteinUhlenbeck(SLOW, SLOW_SCALE), FINE, coarse_dim=1)
VALUES = torch.tensor(list(OBSERVED.values()), dtype=torch.float64).unsqueeze(-1)
STEPS = torch.tensor([[1 - SLOW * STEP, 0.0], [FAST * STEP, 1 - FAST * STEP]], dtype=torch.float64)
NOISE = torch.diag(torch.tensor([SLOW_SCALE**2 * STEP, FAST_SCALE**2 * STEP], dtype=torch.float64))


def stationary() -> Tensor:
    """Covariance of the Euler chain, by doubling of the Lyapunov sum."""
    total, power = NOISE, STEPS
    for _ in range(16):
        total, power = total + power @ total @ power.mT, power @ power
    return total


COVARIANCE = stationary()
SLOPE = COVARIANCE[0, 1] / COVARIANCE[0, 0]
SPREAD = COVARIANCE[1, 1] - COVARIANCE[0, 1] ** 2 / COVARIANCE[0, 0]


def given_coarse(a: Tensor) -> dist.TorchDistribution:
    """Stationary law of the fine state given the coarse one."""
    return dist.Normal(SLOPE * a, SPREAD.sqrt()).to_event(1)


def coarse_grid() -> TimeGrid:
    times = torch.tensor([k * STEP for k in OBSERVED], dtype=torch.float64)
    return TimeGrid(times, start=0.0, end=(POINTS - 1) * STEP, max_step=STEP)


GRID = coarse_grid()
START = dist.Normal(torch.zeros(1, dtype=torch.float64), COVARIANCE[0, 0].sqrt()).to_event(1)


def windows_from(reentry: int) -> Windows:
    """Windows over the first observations and, from a re-entry point on, over the last ones."""
    starts = torch.tensor([0.0, reentry * STEP], dtype=torch.float64)
    return Windows(GRID, starts, torch.tensor([1.21, 6.0], dtype=torch.float64))


def whole() -> Windows:
    return Windows(GRID, torch.zeros(1, dtype=torch.float64), torch.full((1,), 6.0, dtype=torch.float64))


def fine_path(coarse: Tensor, windows: Windows, reentry: ReEntry | None = None) -> MultiScalePath:
    return MultiScalePath(FINE, given_coarse(coarse[..., 0, :]), coarse, windows, reentry=reentry)


def log_joint(windows: Windows, reentry: ReEntry | None = None) -> Callable[[Tensor], Tensor]:
    """Log joint density of ``[coarse path, fine path]``, flattened, and the observations."""

    def density(flat: Tensor) -> Tensor:
        coarse, fine = flat[..., :POINTS].unsqueeze(-1), flat[..., POINTS:].unsqueeze(-1)
        prior = SDEPath(SCALES.coarse, START, GRID).log_prob(coarse)
        seen = dist.Normal(windows.observed(fine), math.sqrt(VARIANCE)).to_event(2).log_prob(VALUES)
        return prior + fine_path(coarse, windows, reentry).log_prob(fine) + seen

    return density


class Quadratic(NamedTuple):
    """``constant + linear @ v - v @ precision @ v / 2``."""

    constant: Tensor
    linear: Tensor
    precision: Tensor

    def mean(self) -> Tensor:
        return torch.linalg.solve(self.precision, self.linear)

    def log_integral(self) -> Tensor:
        size = len(self.linear)
        volume = 0.5 * size * math.log(2 * math.pi) - 0.5 * torch.linalg.slogdet(self.precision).logabsdet
        return self.constant + 0.5 * self.linear @ self.mean() + volume


def quadratic(density: Callable[[Tensor], Tensor], size: int) -> Quadratic:
    """Coefficients of a quadratic function, by its gradients at 0 and at the unit vectors."""
    points = torch.cat([torch.zeros(1, size, dtype=torch.float64), torch.eye(size, dtype=torch.float64)])
    points.requires_grad_()
    values = density(points)
    (gradients,) = torch.autograd.grad(values.sum(), points)
    return Quadratic(values[0].detach(), gradients[0], gradients[0] - gradients[1:])


def kalman_evidence(reset: int | None = None) -> float:
    """Log evidence by a filter; at step `reset` the fine state is drawn anew given the coarse one."""
    mean, covariance, total = torch.zeros(2, dtype=torch.float64), COVARIANCE, 0.0
    redraw = torch.stack([torch.tensor([1.0, 0.0], dtype=torch.float64), torch.stack([SLOPE, 0 * SLOPE])])
    for k in range(POINTS):
        if k == reset:
            fresh = torch.diag(torch.stack([0 * SPREAD, SPREAD]))
            mean, covariance = redraw @ mean, redraw @ covariance @ redraw.mT + fresh
        if k in OBSERVED:
            variance = covariance[1, 1] + VARIANCE
            residual = OBSERVED[k] - mean[1]
            total += float(-0.5 * (torch.log(2 * math.pi * variance) + residual**2 / variance))
            gain = covariance[:, 1] / variance
            mean = mean + gain * residual
            covariance = covariance - torch.outer(gain, covariance[1])
        mean, covariance = STEPS @ mean, STEPS @ covariance @ STEPS.mT + NOISE
    return total


def skipped_bound(start: int, windows: Windows, reentry: ReEntry | None) -> float:
    """Exact bound of the specification's guide, for the model on `windows` (from `windows_from` or `whole`).

    The guide is the posterior of the model that draws the fine state anew at step `start`, but for the fine states in
    the gap and at `start`, which follow the prior given all before: the dynamics of the model on `windows`.
    """
    target = quadratic(log_joint(windows, reentry), POINTS + windows.grid.num_steps + 1)
    prior = _without_observations(target, windows)
    ours = _positions(windows)
    surgery_windows = windows_from(start)
    surgery = quadratic(log_joint(surgery_windows, BurnIn(given_coarse)), POINTS + surgery_windows.grid.num_steps + 1)
    theirs = _positions(surgery_windows)
    before = [("a", k) for k in range(start + 1)] + [("b", k) for k in range(122)]
    middle = [key for key in ours if key[0] == "b" and 122 <= key[1] <= start]
    after = [(name, k) for name in "ab" for k in range(start + 1, POINTS)]
    x, s, u = ([ours[key] for key in keys] for keys in (before, middle, after))
    px, pu = ([theirs[key] for key in keys] for keys in (before, after))
    # all before: the posterior of the surgery model
    mean, covariance = surgery.mean(), torch.linalg.inv(surgery.precision)
    entropy = _entropy(torch.linalg.inv(covariance[px][:, px]))
    # the gap: the prior given all before
    rest = prior[u][:, x + s]
    joint = prior[x + s][:, x + s] - rest.mT @ torch.linalg.solve(prior[u][:, u], rest)
    within = joint[len(x) :, len(x) :]
    slope = -torch.linalg.solve(within, joint[len(x) :, : len(x)])
    entropy += _entropy(within)
    # all after, given the end of the gap: the posterior of the surgery model
    seen = [ours[("a", start)], ours[("b", start)]]
    block = surgery.precision[pu]
    gain = -torch.linalg.solve(block[:, pu], block[:, [theirs[("a", start)], theirs[("b", start)]]])
    shift = torch.linalg.solve(block[:, pu], surgery.linear[pu])
    entropy += _entropy(block[:, pu])
    size = len(target.linear)
    centre, spread = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    _append(centre, spread, x, (torch.zeros(len(x), size), mean[px], covariance[px][:, px]))
    _append(centre, spread, s, (_columns(slope, x, size), torch.zeros(len(s)), torch.linalg.inv(within)))
    _append(centre, spread, u, (_columns(gain, seen, size), shift, torch.linalg.inv(block[:, pu])))
    moment = (target.precision * (spread + torch.outer(centre, centre))).sum()
    return float(target.constant + target.linear @ centre - 0.5 * moment + entropy)


def _positions(windows: Windows) -> dict[tuple[str, int], int]:
    """Place of every coarse ("a") and fine ("b") state in the flattened vector, by grid point."""
    rows = (windows.grid.times / STEP).round().long().tolist()
    places = {("a", k): k for k in range(POINTS)}
    return places | {("b", k): POINTS + row for row, k in enumerate(rows)}


def _without_observations(target: Quadratic, windows: Windows) -> Tensor:
    precision = target.precision.clone()
    seen = windows.observed_index + POINTS
    precision[seen, seen] -= 1 / VARIANCE
    return precision


def _entropy(precision: Tensor) -> Tensor:
    size = len(precision)
    return 0.5 * size * math.log(2 * math.pi * math.e) - 0.5 * torch.linalg.slogdet(precision).logabsdet


def _columns(slope: Tensor, places: list[int], size: int) -> Tensor:
    matrix = torch.zeros(len(slope), size, dtype=torch.float64)
    matrix[:, places] = slope
    return matrix


def _append(centre: Tensor, spread: Tensor, places: list[int], law: tuple[Tensor, Tensor, Tensor]) -> None:
    """Add variables ``slope @ (those before) + shift + noise`` to a joint Gaussian."""
    slope, shift, noise = law
    slope = slope.double()
    centre[places] = slope @ centre + shift
    cross = slope @ spread
    index = torch.tensor(places)
    own = cross @ slope.mT + noise
    spread[index] = cross
    spread[:, index] = cross.mT
    spread[index.unsqueeze(-1), index] = own
