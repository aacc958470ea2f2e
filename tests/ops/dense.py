"""Oracles of the Gaussian chains: the joint Gaussian vector of the whole path, in dense float64 linear algebra."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

DOUBLE = torch.float64


def dense_prior(m0: Tensor, p0: Tensor, a: Tensor, c: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``(T D,)`` and covariance ``(T D, T D)`` of one path."""
    means, blocks = [m0], [[p0]]
    for k in range(len(a)):
        means.append(a[k] @ means[-1] + c[k])
        row = [a[k] @ block for block in blocks[-1]]
        blocks.append([*row, row[-1] @ a[k].mT + q[k]])
    full = [[blocks[i][j] if j <= i else blocks[j][i].mT for j in range(len(means))] for i in range(len(means))]
    return torch.cat(means), torch.cat([torch.cat(row, 1) for row in full], 0)


class Dense(NamedTuple):
    evidence: Tensor
    mean: Tensor  # (T D,)
    covariance: Tensor  # (T D, T D)


def dense_posterior(prior: tuple[Tensor, Tensor], h: Tensor, d: Tensor, r: Tensor, y: Tensor, seen: Tensor) -> Dense:
    """Conditioning on the observed entries only; h ``(T, O, D)``, d and y ``(T, O)``, r ``(T, O, O)``."""
    mean, covariance = prior
    keep = seen.flatten()
    matrix = torch.block_diag(*h)[keep]
    noise = torch.block_diag(*r)[keep][:, keep]
    residual = (y - d).flatten()[keep] - matrix @ mean
    spread = matrix @ covariance @ matrix.mT + noise
    factor = torch.linalg.cholesky(spread)
    white = torch.linalg.solve_triangular(factor, residual.unsqueeze(-1), upper=False)
    log_volume = factor.diagonal().log().sum()
    evidence = -0.5 * white.square().sum() - log_volume - 0.5 * len(residual) * math.log(2 * math.pi)
    gain = torch.cholesky_solve(matrix @ covariance, factor).mT
    return Dense(evidence, mean + gain @ residual, covariance - gain @ matrix @ covariance)


class Problem(NamedTuple):
    """Parameters of a chain and of its observations, with one batch dimension."""

    m0: Tensor
    p0: Tensor
    a: Tensor
    q: Tensor
    c: Tensor
    y: Tensor
    h: Tensor
    r: Tensor
    d: Tensor


def random_problem(
    batch: int = 2, count: int = 6, dim: int = 3, size: int = 2, seed: int = 0, rank: int | None = None
) -> Problem:
    """A problem without structure; noise of the given `rank` (0: none)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=DOUBLE)

    steps = count - 1
    root0, root = normal(batch, dim, dim), normal(batch, steps, dim, dim if rank is None else rank)
    noise = normal(batch, count, size, size)
    return Problem(
        normal(batch, dim),
        root0 @ root0.mT,
        0.8 * torch.eye(dim, dtype=DOUBLE) + 0.2 * normal(batch, steps, dim, dim),
        0.3 * root @ root.mT,
        normal(batch, steps, dim),
        normal(batch, count, size),
        normal(batch, count, size, dim),
        0.2 * noise @ noise.mT + 0.1 * torch.eye(size, dtype=DOUBLE),
        normal(batch, count, size),
    )


def dense_of(problem: Problem, seen: Tensor | None = None) -> list[Dense]:
    """Dense answers of every series."""
    p = problem
    seen = torch.ones_like(p.y, dtype=torch.bool) if seen is None else seen
    return [
        dense_posterior(dense_prior(p.m0[b], p.p0[b], p.a[b], p.c[b], p.q[b]), p.h[b], p.d[b], p.r[b], p.y[b], seen[b])
        for b in range(len(p.m0))
    ]


def matern_matrices(order: int, dt: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Transition, noise and stationary covariance of the Matern process of smoothness ``order - 1/2``, variance 1."""
    rate = math.sqrt(2 * order - 1) / scale
    drift = torch.diag(torch.ones(order - 1, dtype=DOUBLE), 1)
    drift[-1] = torch.tensor([-math.comb(order, i) * rate ** (order - i) for i in range(order)], dtype=DOUBLE)
    power = math.factorial(order - 1) ** 2 / math.factorial(2 * order - 2) * (2 * rate) ** (2 * order - 1)
    source = torch.zeros(order, order, dtype=DOUBLE)
    source[-1, -1] = power
    # series over a short step, then doublings: accurate in every entry, since all terms are sums of squares
    short = (dt.double() / 2**12)[..., None, None]
    a, q = torch.zeros(order, order, dtype=DOUBLE), torch.zeros(order, order, dtype=DOUBLE)
    left = [torch.linalg.matrix_power(drift, n) / math.factorial(n) for n in range(2 * order + 6)]
    for n, term in enumerate(left):
        a = a + term * short**n
        for m, other in enumerate(left):
            q = q + term @ source @ other.mT * short ** (n + m + 1) / (n + m + 1)
    for _ in range(12):
        a, q = a @ a, q + a @ q @ a.mT
    initial = {
        1: [[1.0]],
        2: [[1.0, 0.0], [0.0, rate**2]],
        3: [[1.0, 0.0, -(rate**2) / 3], [0.0, rate**2 / 3, 0.0], [-(rate**2) / 3, 0.0, rate**4]],
    }[order]
    return a, q, torch.tensor(initial, dtype=DOUBLE)


def matern_kernel(order: int, distance: Tensor, scale: float = 1.0) -> Tensor:
    """Covariance function of the same process."""
    x = math.sqrt(2 * order - 1) * distance / scale
    return torch.exp(-x) * {1: torch.ones_like(x), 2: 1 + x, 3: 1 + x + x.square() / 3}[order]
