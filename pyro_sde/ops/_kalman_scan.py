"""The recursions of a Gaussian chain as associative scans over time, of depth O(log T).

References:
    Särkkä, García-Fernández (2021), Temporal parallelization of Bayesian smoothers, arXiv 1905.13002, lemmas 7 to 10.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._kalman_loop import ChainTensors, update

__all__ = ["associative_scan", "congruence_scan", "filter_scan", "information_scan", "moments_scan", "recurrence_scan"]

Elements = tuple[Tensor, ...]


def associative_scan(combine: Callable[[Elements, Elements], Elements], elements: Elements) -> Elements:
    """All prefixes of `elements` (time dimension 1) under ``combine(earlier, later)``; about 2 T combinations."""
    count = elements[0].shape[1]
    if count == 1:
        return elements
    pairs = combine(tuple(e[:, : count - 1 : 2] for e in elements), tuple(e[:, 1::2] for e in elements))
    odd = associative_scan(combine, pairs)
    before = odd if count % 2 else tuple(e[:, :-1] for e in odd)
    if count > 2:
        even = combine(before, tuple(e[:, 2::2] for e in elements))
        even = tuple(torch.cat([first[:, :1], e], 1) for first, e in zip(elements, even, strict=True))
    else:
        even = tuple(e[:, :1] for e in elements)
    return tuple(_interleave(e, o) for e, o in zip(even, odd, strict=True))


def _interleave(even: Tensor, odd: Tensor) -> Tensor:
    half = odd.shape[1]
    both = torch.stack([even[:, :half], odd], 2).flatten(1, 2)
    return both if even.shape[1] == half else torch.cat([both, even[:, half:]], 1)


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.mT)


def _combine(first: Elements, second: Elements) -> Elements:
    """Lemma 8: the law of the later state given the earlier one, and the likelihood of the earlier one."""
    matrix1, offset1, covariance1, vector1, information1 = first
    matrix2, offset2, covariance2, vector2, information2 = second
    dim = matrix1.shape[-1]
    unit = torch.eye(dim, dtype=matrix1.dtype, device=matrix1.device)
    column = (offset1 + _apply(covariance1, vector2)).unsqueeze(-1)
    solved = torch.linalg.solve(unit + covariance1 @ information2, torch.cat([matrix1, covariance1, column], -1))
    closed, spread, shift = solved[..., :dim], solved[..., dim : 2 * dim], solved[..., -1]
    return (
        matrix2 @ closed,
        _apply(matrix2, shift) + offset2,
        matrix2 @ _symmetric(spread) @ matrix2.mT + covariance2,
        _apply(closed.mT, vector2 - _apply(information2, offset1)) + vector1,
        _symmetric(closed.mT @ information2 @ matrix1) + information1,
    )


def _elements(chain: ChainTensors, rows: Tensor, values: Tensor) -> Elements:
    """Lemma 7 for the transitions 0..K-1, each with the observations at its end."""
    rows, values = rows[:, 1:], values[:, 1:]
    transition, offset, noise = chain.transition, chain.offset, chain.noise
    cross = noise @ rows.mT
    unit = torch.eye(rows.shape[-2], dtype=rows.dtype, device=rows.device)
    factor, _ = torch.linalg.cholesky_ex(rows @ cross + unit)
    gain = torch.cholesky_solve(cross.mT, factor).mT
    closed = torch.eye(offset.shape[-1], dtype=rows.dtype, device=rows.device) - gain @ rows
    innovation = (values - _apply(rows, offset)).unsqueeze(-1)
    seen = rows @ transition  # (B, K, O, D)
    solved = torch.cholesky_solve(torch.cat([innovation, seen], -1), factor)
    return (
        closed @ transition,
        offset + (gain @ innovation).squeeze(-1),
        closed @ noise @ closed.mT + gain @ gain.mT,
        (seen.mT @ solved[..., :1]).squeeze(-1),
        seen.mT @ solved[..., 1:],
    )


def filter_scan(chain: ChainTensors, rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `filter_loop`, in depth O(log T)."""
    mean, covariance, total = update(chain.mean, chain.covariance, rows[:, 0], values[:, 0])
    mean, covariance = mean.unsqueeze(1), covariance.unsqueeze(1)
    if not chain.transition.shape[1]:
        return mean, covariance, total
    nothing = torch.zeros_like(covariance)
    first = (nothing, mean, covariance, torch.zeros_like(mean), nothing)
    elements = tuple(torch.cat(pair, 1) for pair in zip(first, _elements(chain, rows, values), strict=True))
    _, means, covariances, _, _ = associative_scan(_combine, elements)
    predicted = _apply(chain.transition, means[:, :-1]) + chain.offset
    spread = chain.transition @ covariances[:, :-1] @ chain.transition.mT + chain.noise
    *_, log_density = update(predicted, spread, rows[:, 1:], values[:, 1:])
    return means, covariances, total + log_density.sum(1)


def information_scan(chain: ChainTensors, rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """As `information_loop`, in depth O(log T)."""
    information, vector = rows.mT @ rows, _apply(rows.mT, values)
    if not chain.transition.shape[1]:
        return information, vector
    backwards = tuple(e.flip(1) for e in _elements(chain, rows, values))
    *_, vectors, found = associative_scan(lambda later, earlier: _combine(earlier, later), backwards)
    last = torch.zeros_like(information[:, :1])
    information = information + torch.cat([found.flip(1), last], 1)
    return information, vector + torch.cat([vectors.flip(1), last[..., 0]], 1)


def recurrence_scan(initial: Tensor, transition: Tensor, increments: Tensor) -> Tensor:
    """As `recurrence_loop`, in depth O(log T); the products of matrices are shared by all S."""
    if not transition.shape[1]:
        return initial.unsqueeze(2)
    # the samples are the columns of one matrix per step
    columns = torch.cat([initial.unsqueeze(2), increments], 2).permute(1, 2, 3, 0)  # (B, T, D, S)
    first = torch.zeros_like(transition[:, :1])

    def combine(first: Elements, second: Elements) -> Elements:
        return second[0] @ first[0], second[0] @ first[1] + second[1]

    _, states = associative_scan(combine, (torch.cat([first, transition], 1), columns))
    return states.permute(3, 0, 1, 2)


def congruence_scan(transition: Tensor, increments: Tensor) -> Tensor:
    """Matrices of ``P_k = A_k P_{k-1} A_k' + C_k`` from ``P_0 = C_0``; A ``(B, K, D, D)``, C ``(B, K + 1, D, D)``."""

    def combine(first: Elements, second: Elements) -> Elements:
        return second[0] @ first[0], second[0] @ first[1] @ second[0].mT + second[1]

    matrices = torch.cat([torch.zeros_like(increments[:, :1]), transition], 1)
    return associative_scan(combine, (matrices, increments))[1]


def moments_scan(chain: ChainTensors) -> tuple[Tensor, Tensor]:
    """Means and covariances of the chain itself, without observations, in depth O(log T)."""
    mean = recurrence_scan(chain.mean.unsqueeze(0), chain.transition, chain.offset.unsqueeze(0)).squeeze(0)
    noise = torch.cat([chain.covariance.unsqueeze(1), chain.noise], 1)
    return mean, congruence_scan(chain.transition, noise)
