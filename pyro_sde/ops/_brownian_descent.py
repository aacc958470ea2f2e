r"""Brownian motion on [0, 1] at any times, as a function of keys: the descent through a binary tree of intervals.

A node is an interval with its increment W and, if asked for, its space-time area H. It splits into halves by the
conditional law of theirs given its own, from normals that are a function of its key and number. The path is exact at
all dyadic times; inside a leaf one more split, at the query instead of the middle, gives the exact law of one query.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._brownian_hash import normals

__all__ = ["descend"]


class _Nodes(NamedTuple):
    """Intervals of one level, each ``(*batch, n, M)``: the path and its integral at the left end, increment, area."""

    start: Tensor
    increment: Tensor
    integral: Tensor | None = None
    area: Tensor | None = None


def descend(key: Tensor, times: Tensor, depth: int, dim: int, space_time: bool) -> tuple[Tensor, Tensor | None]:
    r"""Path W(u) and, with `space_time`, its integral :math:`\int_0^u W` at times u in [0, 1].

    The first levels are computed whole, as far as they have no more nodes than there are queries; from there each
    query goes down alone. So N queries cost about N (2 + depth - log2 N) nodes, in `depth` batched operations. Both
    ways are the same operations on each node: a value is the same bits for any set of queries.

    Args:
        key: ``(*batch, C)``, C >= dim, or dim / 2 without areas.
        times: float64, ``(N,)`` or ``(*batch', N)``, in [0, 1]; `batch` and `batch'` broadcast.
        depth: levels of the tree.
        dim: number M of Brownian motions.
        space_time: whether nodes have areas.

    Returns:
        ``(*batch, N, M)`` each, float64.
    """
    scaled = times * 2.0**depth
    leaf = scaled.long().clamp_(max=2**depth - 1)
    fraction = (scaled - leaf).unsqueeze(-1)  # (..., N, 1)
    whole = min(depth, max(1, times.shape[-1]).bit_length() - 1)
    nodes = _root(key, dim, space_time)
    both = torch.tensor([[0.0], [1.0]], dtype=torch.float64, device=key.device)
    for level in range(whole):
        number = torch.arange(2**level, 2 ** (level + 1), device=key.device)
        normal = _draw(key, number, nodes).unsqueeze(-2)
        parents = _Nodes(*(field.unsqueeze(-2) for field in nodes if field is not None))
        halves = _half(parents, normal, 2.0**-level, both)  # (*batch, n, 2, M)
        nodes = _Nodes(*(field.flatten(-3, -2) for field in halves if field is not None))
    nodes = _select(nodes, leaf >> (depth - whole))
    for level in range(whole, depth):
        normal = _draw(key, (leaf >> (depth - level)) + 2**level, nodes)
        right = ((leaf >> (depth - level - 1)) & 1).double().unsqueeze(-1)
        nodes = _half(nodes, normal, 2.0**-level, right)
    return _inside_leaf(nodes, _draw(key, leaf + 2**depth, nodes), fraction, 2.0**-depth)


def _root(key: Tensor, dim: int, space_time: bool) -> _Nodes:
    normal = normals(key, torch.zeros(1, dtype=torch.long, device=key.device), 2 * dim if space_time else dim)
    zero = torch.zeros_like(normal[..., :dim])
    if not space_time:
        return _Nodes(zero, normal)
    return _Nodes(zero, normal[..., :dim], zero, normal[..., dim:] * math.sqrt(1 / 12))


def _draw(key: Tensor, number: Tensor, nodes: _Nodes) -> Tensor:
    """The normals of a split of these nodes: M, or 2M with areas."""
    dim = nodes.start.shape[-1]
    return normals(key, number, dim if nodes.area is None else 2 * dim)


def _half(nodes: _Nodes, normal: Tensor, length: float, right: Tensor) -> _Nodes:
    r"""Left (`right` = 0) or right (1) halves of intervals of one length h.

    W of the halves is W/2 +- (3/2 H + Z), H is H/4 - Z/2 +- N/2, with Z ~ N(0, h/16), N ~ N(0, h/12) and + on the left.
    Without areas W/2 +- N(0, h/4).
    """
    start, increment, integral, area = nodes
    dim, sign = start.shape[-1], 1 - 2 * right
    if integral is None or area is None:
        middle, difference = 0.5 * increment, (0.5 * math.sqrt(length)) * normal
        return _Nodes(start + right * (middle + difference), middle + sign * difference)
    shift = (0.25 * math.sqrt(length)) * normal[..., :dim]
    middle, difference = 0.5 * increment, 1.5 * area + shift
    middle_area, difference_area = 0.25 * area - 0.5 * shift, (0.5 * math.sqrt(length / 12)) * normal[..., dim:]
    left = middle + difference
    passed = (0.5 * length) * (start + 0.5 * left + (middle_area + difference_area))  # integral over the left half
    return _Nodes(
        start + right * left,
        middle + sign * difference,
        integral + right * passed,
        middle_area + sign * difference_area,
    )


def _inside_leaf(nodes: _Nodes, normal: Tensor, fraction: Tensor, length: float) -> tuple[Tensor, Tensor | None]:
    r"""Path and integral at a fraction of each interval, by the split of the interval there.

    With l = fraction h, r = h - l, v = sqrt(l r / (l^3 + r^3)) / 2, a = v l^2 / h, b = v r^2 / h, c = v / sqrt(3):
    W_l = (l/h) W + 6 l r H / h^2 + 2 (a l + b r) X / h and H_l = (l/h)^2 H - a X + c r Y. Without areas the bridge
    (l/h) W + sqrt(l r / h) X.
    """
    start, increment, integral, area = nodes
    left, right = fraction, 1 - fraction
    if integral is None or area is None:
        return start + left * increment + (left * right * length).sqrt() * normal, None
    first, second = normal.chunk(2, -1)
    cubes = left**3 + right**3
    v = 0.5 * (length * left * right / cubes).sqrt()
    part = left * increment + 6 * left * right * area + (2 * v * cubes) * first
    part_area = left.square() * area - (v * left.square()) * first + (v * right / math.sqrt(3)) * second
    return start + part, integral + (left * length) * (start + 0.5 * part + part_area)


def _select(nodes: _Nodes, index: Tensor) -> _Nodes:
    """The node of each query: index ``(N,)`` or ``(*batch', N)`` into ``(*batch, n, M)``."""
    fields = (field for field in nodes if field is not None)
    if index.dim() == 1:
        return _Nodes(*(field.index_select(-2, index) for field in fields))
    shape = nodes.start.shape
    batch = torch.broadcast_shapes(shape[:-2], index.shape[:-1])
    index = index.unsqueeze(-1).expand(*batch, -1, shape[-1])
    return _Nodes(*(field.expand(*batch, *shape[-2:]).gather(-2, index) for field in fields))
