"""The recursions of a Gaussian chain as plain loops over time: the reference form, differentiable any number of times.

Tensors here and in the sibling modules are float64 with one batch dimension: means ``(B, T, D)``, transitions
``(B, K, D, D)`` and so on, observations whitened to unit noise: rows ``(B, T, O, D)`` and values ``(B, T, O)``, zero
where nothing is observed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "ChainTensors",
    "filter_loop",
    "information_loop",
    "information_step",
    "recurrence_loop",
    "states_loop",
    "update",
]


class ChainTensors(NamedTuple):
    """The parameters of a chain with one batch dimension, float64."""

    mean: Tensor  # (B, D)
    covariance: Tensor  # (B, D, D)
    transition: Tensor  # (B, K, D, D)
    offset: Tensor  # (B, K, D)
    noise: Tensor  # (B, K, D, D)


def update(mean: Tensor, covariance: Tensor, rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Joseph form of the update by observations of unit noise; returns mean, covariance, log-density without 2 pi."""
    cross = covariance @ rows.mT  # (..., D, O)
    innovation = values - (rows @ mean.unsqueeze(-1)).squeeze(-1)
    unit = torch.eye(rows.shape[-2], dtype=rows.dtype, device=rows.device)
    factor, _ = torch.linalg.cholesky_ex(rows @ cross + unit)
    gain = torch.cholesky_solve(cross.mT, factor).mT
    white = torch.linalg.solve_triangular(factor, innovation.unsqueeze(-1), upper=False).squeeze(-1)
    log_density = -0.5 * white.square().sum(-1) - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    closed = torch.eye(mean.shape[-1], dtype=rows.dtype, device=rows.device) - gain @ rows
    covariance = closed @ covariance @ closed.mT + gain @ gain.mT
    return mean + (gain @ innovation.unsqueeze(-1)).squeeze(-1), covariance, log_density


def information_step(
    information: Tensor, vector: Tensor, transition: Tensor, offset: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Likelihood :math:`\exp(-\tfrac12 z^\top J z + \eta^\top z)` of the future, taken back through one transition.

    With :math:`X = (I + QJ)^{-1} A` it is :math:`J \leftarrow X^\top (J + J Q J) X` and
    :math:`\eta \leftarrow X^\top (\eta - J c)`: no inverse of Q or J, and positive semidefinite by its form.
    """
    unit = torch.eye(offset.shape[-1], dtype=offset.dtype, device=offset.device)
    closed = torch.linalg.solve(unit + noise @ information, transition)
    middle = information + information @ noise @ information
    shifted = vector - (information @ offset.unsqueeze(-1)).squeeze(-1)
    return closed.mT @ middle @ closed, (closed.mT @ shifted.unsqueeze(-1)).squeeze(-1)


def filter_loop(chain: ChainTensors, rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Filtered means ``(B, T, D)`` and covariances ``(B, T, D, D)``, and the log-evidence ``(B,)`` without 2 pi."""
    shift = torch.zeros_like(chain.offset[..., :0])
    _, _, means, covariances, total = states_loop(chain, shift, rows, values)
    return means, covariances, total


def states_loop(chain: ChainTensors, shift: Tensor, rows: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    """As `filter_loop`, with the moments before each update as well, first.

    A transition acts on ``m - P shift``, where `shift` ``(B, K, D)`` has a last dimension.
    """
    mean, covariance = chain.mean, chain.covariance
    steps = zip(*(part.unbind(1) for part in (chain.transition, chain.offset, chain.noise, shift)), strict=True)
    moments, total = [], torch.zeros_like(mean[:, 0])
    for k, (row, value) in enumerate(zip(rows.unbind(1), values.unbind(1), strict=True)):
        if k:
            transition, offset, noise, moved = next(steps)
            if moved.shape[-1]:
                mean = mean - (covariance @ moved.unsqueeze(-1)).squeeze(-1)
            mean = (transition @ mean.unsqueeze(-1)).squeeze(-1) + offset
            covariance = transition @ covariance @ transition.mT + noise
        before = mean, covariance
        if row.shape[-2]:
            mean, covariance, log_density = update(mean, covariance, row, value)
            total = total + log_density
        moments.append((*before, mean, covariance))
    return *(torch.stack(part, 1) for part in zip(*moments, strict=True)), total


def information_loop(chain: ChainTensors, rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Information ``(B, T, D, D)`` and vector ``(B, T, D)`` of the observations from each time on, itself included."""
    own = (rows.mT @ rows).unbind(1)
    own_vector = (rows.mT @ values.unsqueeze(-1)).squeeze(-1).unbind(1)
    information, vector = own[-1], own_vector[-1]
    found, vectors = [information], [vector]
    steps = list(zip(chain.transition.unbind(1), chain.offset.unbind(1), chain.noise.unbind(1), strict=True))
    for k in range(len(steps) - 1, -1, -1):
        information, vector = information_step(information, vector, *steps[k])
        information, vector = information + own[k], vector + own_vector[k]
        found.append(information)
        vectors.append(vector)
    return torch.stack(found[::-1], 1), torch.stack(vectors[::-1], 1)


def recurrence_loop(initial: Tensor, transition: Tensor, increments: Tensor) -> Tensor:
    """States ``(S, B, T, D)`` of ``x <- A x + b``; initial ``(S, B, D)``, A ``(B, K, D, D)``, b ``(S, B, K, D)``."""
    states = [initial]
    for matrix, increment in zip(transition.unbind(1), increments.unbind(2), strict=True):
        states.append((matrix @ states[-1].unsqueeze(-1)).squeeze(-1) + increment)
    return torch.stack(states, 2)
