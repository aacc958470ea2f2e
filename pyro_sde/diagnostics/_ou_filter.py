"""Kalman filter and smoother of a scalar Ornstein-Uhlenbeck process as parallel scans over time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Chain", "Filtered", "kalman_filter", "kalman_smooth"]


class Chain(NamedTuple):
    """Transition of the unit-variance process into each time: ``x_k = decay x_{k-1} + N(0, added)``, ``(..., N)``."""

    decay: Tensor
    added: Tensor

    @staticmethod
    def of(gaps: Tensor, rate: Tensor) -> Chain:
        """Exact transitions over `gaps` ``(..., N - 1)``; the first state comes from the stationary law."""
        exponent = -rate.unsqueeze(-1) * gaps
        decay = torch.nn.functional.pad(exponent.exp(), (1, 0))
        return Chain(decay, torch.nn.functional.pad(-torch.expm1(2 * exponent), (1, 0), value=1.0))


class Filtered(NamedTuple):
    """Filter output in units of the signal variance, time last; `mean` and `innovation` have the columns in front."""

    mean: Tensor
    variance: Tensor
    predicted: Tensor  # variance before the observation
    innovation: Tensor
    scale: Tensor  # variance of the innovation


def kalman_filter(chain: Chain, ratio: Tensor, columns: Tensor, seen: Tensor) -> Filtered:
    """Kalman filter of every column with noise variance `ratio`; entries that are not `seen` only predict."""
    noise = ratio.unsqueeze(-1)
    square = chain.decay**2
    # Filtered variances follow P -> noise (square P + added) / (square P + added + noise), a Moebius map.
    maps = (
        torch.where(seen, noise * square, square),
        torch.where(seen, noise * chain.added, chain.added),
        torch.where(seen, square, 0.0),
        torch.where(seen, chain.added + noise, 1.0),
    )
    _, top, _, bottom = _scan(_compose_moebius, maps)
    variance = top / bottom  # the first map is constant (decay 0), so the start does not matter
    predicted = square * _shift(variance) + chain.added
    scale = predicted + noise
    gain = torch.where(seen, predicted / scale, 0.0)
    _, mean = _scan(_compose_affine, ((1 - gain) * chain.decay, gain * columns))
    return Filtered(mean, variance, predicted, columns - chain.decay * _shift(mean), scale)


def kalman_smooth(chain: Chain, filtered: Filtered) -> tuple[Tensor, Tensor]:
    """Means and variances given the data on both sides, by two backward scans."""
    decay, added, predicted = (_shift(x.flip(-1)).flip(-1) for x in (chain.decay, chain.added, filtered.predicted))
    last = torch.nn.functional.pad(torch.zeros_like(decay[..., 1:], dtype=torch.bool), (0, 1), value=True)
    ahead = torch.where(last, 1.0, predicted)
    gain = filtered.variance * decay / ahead
    # 1 - gain decay = added / predicted and P - gain^2 predicted = P added / predicted: sums of positive terms.
    keep = torch.where(last, 1.0, added / ahead)
    _, mean = _scan(_compose_affine, (gain.flip(-1), (filtered.mean * keep).flip(-1)))
    _, variance = _scan(_compose_affine, ((gain**2).flip(-1), (filtered.variance * keep).flip(-1)))
    return mean.flip(-1), variance.flip(-1)


def _shift(x: Tensor) -> Tensor:
    """Value one step earlier along the last dim, 0 first."""
    return torch.nn.functional.pad(x[..., :-1], (1, 0))


_Element = tuple[Tensor, ...]


def _scan(compose: Callable[[_Element, _Element], _Element], elements: _Element) -> _Element:
    """All prefixes ``e_1``, ``e_1 then e_2``, ... along the last dim in log2(N) batched rounds."""
    width = 1
    while width < elements[0].shape[-1]:
        joined = compose(tuple(e[..., :-width] for e in elements), tuple(e[..., width:] for e in elements))
        elements = tuple(torch.cat([e[..., :width], j], -1) for e, j in zip(elements, joined, strict=True))
        width *= 2
    return elements


def _compose_affine(first: _Element, second: _Element) -> _Element:
    return second[0] * first[0], second[0] * first[1] + second[1]


def _compose_moebius(first: _Element, second: _Element) -> _Element:
    """Product of 2 x 2 matrices with entries >= 0, normalised: no cancellation and no overflow."""
    a, b, c, d = first
    e, f, g, h = second
    product = e * a + f * c, e * b + f * d, g * a + h * c, g * b + h * d
    largest = torch.stack([p.detach() for p in product]).amax(0)
    return tuple(p / largest for p in product)
