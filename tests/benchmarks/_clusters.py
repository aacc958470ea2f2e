"""States from a path, by a Gaussian mixture, and how well they agree with an expert's."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

_STARTS, _ITERATIONS, _FLOOR = 20, 300, 1e-3


class Mixture(NamedTuple):
    """A fitted mixture of K Gaussians."""

    states: Tensor  # (N,), the most probable component
    log_likelihood: float
    bic: float  # smaller is better; counts neighbouring points of a path as if they were independent


def mixture(points: Tensor, num_states: int, seed: int) -> Mixture:
    """The best of 20 mixtures with full covariances, fitted to points ``(N, D)`` by expectation maximisation.

    Starts are random points as means and the covariance of all points; a thousandth of that is added to every
    covariance. The result does not change with an affine map of the points, but for the random starts.
    """
    count, dim = points.shape
    generator = torch.Generator().manual_seed(seed)
    total = torch.cov(points.T).reshape(dim, dim)
    weight = torch.full((_STARTS, num_states), 1 / num_states, dtype=points.dtype)
    chosen = torch.stack([torch.randperm(count, generator=generator)[:num_states] for _ in range(_STARTS)])
    mean, covariance = points[chosen], total.expand(_STARTS, num_states, dim, dim)
    last = torch.full((_STARTS,), -math.inf, dtype=points.dtype)
    for _ in range(_ITERATIONS):
        law = torch.distributions.MultivariateNormal(mean, covariance)
        joint = law.log_prob(points[:, None, None]) + weight.log()  # (N, S, K)
        likelihood = joint.logsumexp(-1).sum(0)
        share = joint.softmax(-1)
        size = share.sum(0).clamp(min=1e-8)
        weight = size / size.sum(-1, keepdim=True)
        mean = torch.einsum("nsk,nd->skd", share, points) / size.unsqueeze(-1)
        apart = points[:, None, None] - mean
        covariance = torch.einsum("nsk,nskd,nske->skde", share, apart, apart) / size[..., None, None] + _FLOOR * total
        if bool(((likelihood - last).abs() < 1e-6 * count).all()):
            break
        last = likelihood
    best = int(likelihood.argmax())
    free = num_states - 1 + num_states * (dim + dim * (dim + 1) // 2)
    bic = -2 * float(likelihood[best]) + free * math.log(count)
    return Mixture(joint[:, best].argmax(-1), float(likelihood[best]), bic)


def table_of(truth: Tensor, found: Tensor) -> np.ndarray:
    """How many points have each pair of a true state (rows) and a state found (columns)."""
    rows, columns = truth.unique(return_inverse=True)[1], found.unique(return_inverse=True)[1]
    width = int(columns.max()) + 1
    counts = torch.bincount(rows * width + columns, minlength=(int(rows.max()) + 1) * width)
    return counts.reshape(-1, width).numpy().astype(float)


def adjusted_rand(truth: Tensor, found: Tensor) -> float:
    """Agreement on which pairs of points belong together: 1 is perfect, 0 the mean over random labels.

    Hubert and Arabie (1985), Comparing partitions, eq. (5). Does not depend on the names of states, and the numbers of
    states may differ.
    """
    counts = table_of(truth, found)

    def pairs(sizes: np.ndarray) -> float:
        return float((sizes * (sizes - 1) / 2).sum())

    both, first, second = pairs(counts), pairs(counts.sum(1)), pairs(counts.sum(0))
    chance = first * second / pairs(counts.sum())
    most = (first + second) / 2
    return 1.0 if most == chance else (both - chance) / (most - chance)


def balanced_accuracy(truth: Tensor, found: Tensor) -> float:
    """Mean over true states of the share found, under the one-to-one naming of states found that makes it largest.

    Where fewer states are found than there are, those left over count as 0.
    """
    counts = table_of(truth, found)
    shares = counts / counts.sum(1, keepdims=True)
    rows, columns = linear_sum_assignment(-shares)
    return float(shares[rows, columns].sum() / len(shares))
