"""The best Gaussian approximation of the path of a one-dimensional SDE under Gaussian observations.

Maximises the evidence lower bound over all Gaussian laws of the path on the grid, by natural-gradient steps with exact
expectations: the target couples neighbours only, so that the optimum is a Gaussian Markov chain, with the fixed point

.. math:: \\Lambda = -E_q[\\nabla^2 \\log p(z, y)], \\qquad 0 = E_q[\\nabla \\log p(z, y)]

(Opper and Archambeau 2009, The variational Gaussian approximation revisited, eqs. (10)-(11)). The precision is
tridiagonal, and expectations over pairs of neighbours are Gauss–Hermite sums. No Monte Carlo.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import solveh_banded

LOG_2PI = math.log(2 * math.pi)
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(24)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


class Target(NamedTuple):
    """Joint law of a path and its observations: Euler–Maruyama steps with a constant diffusion."""

    drift: Callable[[torch.Tensor], torch.Tensor]
    scale: float
    steps: np.ndarray  # (K,)
    observed: np.ndarray  # (N,) points of the grid
    values: np.ndarray  # (N,)
    noise: float
    initial: tuple[float, float]  # mean and standard deviation


class Chain(NamedTuple):
    """A Gaussian law of the path: means, tridiagonal precision, and what follows from them."""

    mean: np.ndarray  # (K + 1,)
    diagonal: np.ndarray  # (K + 1,)
    beside: np.ndarray  # (K,)
    slope: np.ndarray  # (K,): z_{k+1} | z_k has mean m_{k+1} + slope (z_k - m_k)
    conditional: np.ndarray  # (K + 1,): and this variance
    variance: np.ndarray  # (K + 1,)


class Gradients(NamedTuple):
    bound: float
    first: np.ndarray
    diagonal: np.ndarray  # minus the expected Hessian
    beside: np.ndarray


def chain(mean: np.ndarray, diagonal: np.ndarray, beside: np.ndarray) -> Chain | None:
    """The chain with a tridiagonal precision, None if it is not positive definite."""
    pivots = diagonal.copy()
    for k in range(len(beside) - 1, -1, -1):
        if pivots[k + 1] <= 0:
            return None
        pivots[k] -= beside[k] ** 2 / pivots[k + 1]
    if pivots[0] <= 0:
        return None
    slope, variance = -beside / pivots[1:], 1 / pivots
    for k in range(len(beside)):
        variance[k + 1] += slope[k] ** 2 * variance[k]
    return Chain(mean, diagonal, beside, slope, 1 / pivots, variance)


def derivatives(drift: Callable[[torch.Tensor], torch.Tensor], z: np.ndarray) -> list[np.ndarray]:
    """The drift, which acts elementwise, and its first two derivatives."""
    state = torch.tensor(z)

    def slope(state: torch.Tensor) -> torch.Tensor:
        return torch.func.jvp(drift, (state,), (torch.ones_like(state),))[1]

    curve = torch.func.jvp(slope, (state,), (torch.ones_like(state),))[1]
    return [drift(state).numpy(), slope(state).numpy(), curve.numpy()]


def gradients(target: Target, q: Chain) -> Gradients:
    """Bound of a chain and the expected derivatives of the joint log-density."""
    h, spread = target.steps, target.scale**2 * target.steps
    centred = np.sqrt(q.variance[:-1, None]) * NODES
    f, slope, curve = derivatives(target.drift, q.mean[:-1, None] + centred)
    factor = 1 + h[:, None] * slope
    rest = q.mean[1:, None] - q.mean[:-1, None] + (q.slope[:, None] - 1) * centred - h[:, None] * f
    mean, start = q.mean, (target.initial[0], target.initial[1] ** 2)
    first, diagonal = np.zeros_like(mean), np.zeros_like(mean)
    first[:-1] += (rest * factor) @ WEIGHTS / spread
    first[1:] -= rest @ WEIGHTS / spread
    diagonal[:-1] += (factor**2 - rest * h[:, None] * curve) @ WEIGHTS / spread
    diagonal[1:] += 1 / spread
    first[0] += (start[0] - mean[0]) / start[1]
    diagonal[0] += 1 / start[1]
    error = target.values - mean[target.observed]
    first[target.observed] += error / target.noise**2
    diagonal[target.observed] += 1 / target.noise**2
    squares = [
        ((rest**2 @ WEIGHTS + q.conditional[1:]) / spread, spread),
        (((mean[0] - start[0]) ** 2 + q.variance[:1]) / start[1], np.array([start[1]])),
        ((error**2 + q.variance[target.observed]) / target.noise**2, np.full(len(error), target.noise**2)),
    ]
    bound = -0.5 * sum((square + np.log(scale) + LOG_2PI).sum() for square, scale in squares)
    bound += 0.5 * (np.log(q.conditional) + LOG_2PI + 1).sum()
    return Gradients(bound, first, diagonal, -factor @ WEIGHTS / spread)


def best_gaussian(
    target: Target, mean: np.ndarray, *, iterations: int = 3000, damping: float = 0.3
) -> tuple[float, Chain]:
    """The largest bound that is reached from a first path `mean`, and its law; it need not be the global one.

    Raises:
        RuntimeError: if it does not converge.
    """
    spread = 1 / (target.scale**2 * target.steps)
    diagonal = np.concatenate([spread, [0.0]]) + np.concatenate([[0.0], spread]) + 10 / target.scale**2
    q = chain(mean, diagonal, -spread)
    assert q is not None  # diagonally dominant
    now, rate = gradients(target, q), damping
    for _ in range(iterations):
        new = trial(q, now, rate)
        then = None if new is None else gradients(target, new)
        if new is None or then is None or then.bound < now.bound - 1e-10:
            rate *= 0.5
            if rate < 1e-8:
                break
            continue
        converged = abs(then.bound - now.bound) < 1e-10 and rate > 0.1
        q, now, rate = new, then, min(1.0, 1.3 * rate)
        if converged:
            return now.bound, q
    msg = f"the best Gaussian path was not found in {iterations} steps; the last rate is {rate:.1e}."
    raise RuntimeError(msg)


def trial(q: Chain, now: Gradients, rate: float) -> Chain | None:
    """One damped step of both conditions."""
    diagonal = (1 - rate) * q.diagonal + rate * now.diagonal
    beside = (1 - rate) * q.beside + rate * now.beside
    new = chain(q.mean, diagonal, beside)
    if new is None:
        return None
    banded = np.stack([np.concatenate([[0.0], beside]), diagonal])
    return chain(q.mean + rate * solveh_banded(banded, now.first), diagonal, beside)
