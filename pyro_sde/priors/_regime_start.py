"""A start for switching linear dynamics: expectation maximisation of a switching autoregression."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.hidden_markov import HiddenMarkov

__all__ = ["LinearRegimes", "fit_regimes"]

_STAY = 0.95
_PIECE = 8  # points per state dimension of the pieces that regimes start from
_RIDGE = 1e-6
_LEAST_CHANGE = 1e-4  # nats per step, below which a run has converged


class LinearRegimes(NamedTuple):
    """Dynamics of K regimes, and how well they predict."""

    matrix: Tensor  # (K, D, D)
    offset: Tensor  # (K, D)
    scale: Tensor  # (K, D)
    density: float  # log-density per step of the path, nats


def fit_regimes(path: Tensor, num_regimes: int, restarts: int, sweeps: int) -> LinearRegimes:
    """The best of several runs, each from regimes fitted to random pieces of the path ``(*batch, T, D)``."""
    path = path.double().reshape(-1, *path.shape[-2:])
    before, after = path[:, :-1], path[:, 1:]
    features = torch.cat([before, torch.ones_like(before[..., :1])], -1)  # (B, N, D + 1)
    floor = 1e-3 * (after - before).flatten(0, 1).std(0)
    found = [_run(features, after, _random_pieces(before, num_regimes), floor, sweeps) for _ in range(restarts)]
    return max(found, key=lambda one: one.density)


def _run(features: Tensor, after: Tensor, weights: Tensor, floor: Tensor, sweeps: int) -> LinearRegimes:
    width, steps = weights.shape[-1], after.shape[0] * after.shape[1]
    table = torch.full((width, width), math.log((1 - _STAY) / max(1, width - 1)), dtype=torch.float64)
    table.diagonal().fill_(math.log(_STAY))
    table = table.log_softmax(-1).to(after.device)
    start = after.new_full((width,), -math.log(width))
    fit, density = _maximise(features, after, weights, floor), -math.inf
    for _ in range(sweeps):
        loc = torch.einsum("kij,bnj->bnki", fit[0], features)
        likelihood = torch.distributions.Normal(loc, fit[1]).log_prob(after.unsqueeze(-2)).sum(-1)
        chain = HiddenMarkov(start, table, likelihood, validate=False)
        previous, density = density, float(chain.log_evidence().sum()) / steps
        if not density - previous > _LEAST_CHANGE:
            break
        fit = _maximise(features, after, chain.posterior(), floor)
    matrix, scale = fit
    return LinearRegimes(matrix[..., :-1], matrix[..., -1], scale, density)


def _maximise(features: Tensor, after: Tensor, weights: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted least squares in every regime: ``[A | b]`` ``(K, D, D + 1)`` and scales ``(K, D)``."""
    gram = torch.einsum("bnk,bni,bnj->kij", weights, features, features)
    cross = torch.einsum("bnk,bni,bnj->kij", weights, features, after)
    size = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] + 1
    ridge = _RIDGE * size * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    # towards the last state, where a regime has few points
    still = torch.eye(*cross.shape[-2:], dtype=gram.dtype, device=gram.device)
    matrix = torch.linalg.solve(gram + ridge, cross + ridge @ still).mT
    residual = after.unsqueeze(-2) - torch.einsum("kij,bnj->bnki", matrix, features)
    total = weights.sum((0, 1)).unsqueeze(-1) + 1e-3
    variance = torch.einsum("bnk,bnki->ki", weights, residual.square()) / total
    return matrix, variance.sqrt() + floor


def _random_pieces(before: Tensor, num_regimes: int) -> Tensor:
    """Weights ``(B, N, K)`` of one random piece of the path for each regime."""
    series, steps, states = before.shape
    length = min(_PIECE * states, steps // num_regimes)
    weights = before.new_zeros(series, steps, num_regimes)
    for regime in range(num_regimes):
        which = int(torch.randint(series, ()))
        begin = int(torch.randint(steps - length + 1, ()))
        weights[which, begin : begin + length, regime] = 1
    return weights
