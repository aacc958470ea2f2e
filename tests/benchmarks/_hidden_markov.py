"""Gaussian hidden Markov models of one series, fitted by expectation maximisation: baselines."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_sde.ops.hidden_markov import HiddenMarkov

_LEAST = 1e-4  # variance of a state, in units of the variance of the series
_BLOCK = 32  # points that share a random state at the start


class FittedStates(NamedTuple):
    """The best of several fits."""

    states: Tensor  # (N,), most probable path
    log_likelihood: float
    bic: float  # smaller is better
    slope: Tensor  # (K, 1) means, or (K, 2) offsets and coefficients of the last value
    scale: Tensor  # (K,)


def fit_states(
    values: Tensor, num_states: int, *, autoregressive: bool, seed: int, starts: int = 10, iterations: int = 300
) -> FittedStates:
    """A hidden Markov model of values ``(N,)`` with mean 0 and variance 1; each state has a mean and a variance.

    With `autoregressive`, a state has an offset, a coefficient of the last value, and a variance; the first value is a
    standard normal. Random starts: states of blocks of 32 points. The fit of largest likelihood is kept.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(values)
    one = torch.ones(count, dtype=values.dtype)
    features = torch.stack([one, torch.cat([one[:1], values[:-1]])], -1) if autoregressive else one.unsqueeze(-1)
    used = slice(1 if autoregressive else 0, None)
    blocks = torch.randint(num_states, (starts, -(-count // _BLOCK)), generator=generator)
    names = blocks.repeat_interleave(_BLOCK, -1)[:, :count]
    share = 0.8 * torch.nn.functional.one_hot(names, num_states).to(values) + 0.2 / num_states
    table = torch.full((starts, num_states, num_states), 0.05 / max(1, num_states - 1), dtype=values.dtype)
    table.diagonal(dim1=-2, dim2=-1).fill_(0.95)
    start = torch.full((starts, num_states), 1 / num_states, dtype=values.dtype)
    last = torch.full((starts,), -math.inf, dtype=values.dtype)
    for _ in range(iterations):
        slope, variance, likelihood = _emission(values, features, share, used)
        chain = HiddenMarkov(start.log(), table.log().unsqueeze(-3), likelihood, validate=False)
        evidence = chain.log_evidence()
        if bool(((evidence - last).abs() < 1e-3).all()):
            break
        last, share = evidence, chain.posterior()
        table = chain.pairwise().sum(-3) + 1e-10
        table = table / table.sum(-1, keepdim=True)
        start = (share[:, 0] + 1e-10) / (share[:, 0] + 1e-10).sum(-1, keepdim=True)
    best = int(evidence.argmax())
    free = num_states * (features.shape[-1] + 1) + num_states**2 - 1
    bic = -2 * float(evidence[best]) + free * math.log(count)
    path = chain.viterbi()[best]
    return FittedStates(path, float(evidence[best]), bic, slope[best], variance[best].sqrt())


def _emission(values: Tensor, features: Tensor, share: Tensor, used: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted least squares ``(S, K, F)``, variances ``(S, K)`` and log-likelihoods ``(S, N, K)``."""
    x, y, weight = features[used], values[used], share[:, used]
    gram = torch.einsum("snk,ni,nj->skij", weight, x, x) + 1e-6 * torch.eye(x.shape[-1], dtype=values.dtype)
    moment = torch.einsum("snk,ni,n->ski", weight, x, y)
    slope = torch.linalg.solve(gram, moment.unsqueeze(-1)).squeeze(-1)
    rest = y[:, None] - torch.einsum("ni,ski->snk", x, slope)
    variance = ((weight * rest.square()).sum(1) / weight.sum(1).clamp(min=1e-9)).clamp(min=_LEAST)
    likelihood = -0.5 * (rest.square() / variance[:, None] + (2 * math.pi * variance[:, None]).log())
    skipped = len(values) - len(y)  # what has no last value
    first = torch.distributions.Normal(0.0, 1.0).log_prob(values[:skipped])
    return slope, variance, torch.cat([first[None, :, None].expand(len(share), -1, share.shape[-1]), likelihood], 1)
