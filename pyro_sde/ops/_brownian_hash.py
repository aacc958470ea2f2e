r"""Standard normals as a function of integers: a counter-based generator in int64 arithmetic.

A word is ``mix(key + mix(node))`` with the finaliser of splitmix64 as mix; a word of 64 bits gives two normals by the
polar coordinates of Box and Muller, from 40 bits of radius (so no normal exceeds 7.5) and 24 bits of angle. int64
multiplication wraps around in torch, which is what arithmetic modulo 2^64 needs. Every operation is elementwise: a
normal is the same bits in any batch, on one kind of device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["child_seeds", "keys", "mix", "normals", "pair_node"]

NODE, AREA, CHILD = 1, 2, 3
"""What a key is for: normals of the nodes of a tree, normals of Lévy areas, seeds of children."""

_MASK = 2**64 - 1


def _signed(word: int) -> int:
    """The int64 with the bits of the unsigned `word`."""
    word &= _MASK
    return word - 2**64 if word >= 2**63 else word


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def mix(word: Tensor) -> Tensor:
    """Bijection of int64 that sends neighbours far apart.

    References:
        Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators, figure 16 (mix64variant13).
    """
    # shifts of int64 copy the sign: the mask takes the copies away
    word = word ^ ((word >> 30) & (_MASK >> 30))
    word = word.mul_(_FIRST)
    word = word.bitwise_xor_((word >> 27).bitwise_and_(_MASK >> 27)).mul_(_SECOND)
    return word.bitwise_xor_((word >> 31).bitwise_and_(_MASK >> 31))


def keys(seed: Tensor, purpose: int, count: int) -> Tensor:
    """Keys of `count` streams of each seed, ``(*batch,) -> (*batch, count)``."""
    root = mix(mix(seed + _GOLDEN) + purpose)
    stream = torch.arange(1, count + 1, device=seed.device) * _GOLDEN
    return mix(root.unsqueeze(-1) + stream)


def normals(key: Tensor, node: Tensor, count: int) -> Tensor:
    """`count` independent standard normals in float64 for each node.

    Args:
        key: ``(*batch, C)``, keys of C >= count / 2 streams.
        node: ``(*batch, N)`` or ``(N,)``, int64.
        count: normals of one node.

    Returns:
        ``(*batch, N, count)``.
    """
    pairs = (count + 1) // 2
    word = mix(key[..., None, :pairs] + mix(node).unsqueeze(-1))  # (*batch, N, pairs)
    angle = (word & 0xFFFFFF).double().mul_(2 * math.pi / 2**24)
    radius = (word >> 24).bitwise_and_(2**40 - 1).double().add_(0.5).mul_(2.0**-40)
    radius = radius.log_().mul_(-2.0).sqrt_()
    if count == 1:
        return radius.mul_(angle.cos_())
    return torch.cat([angle.cos() * radius, angle.sin_() * radius], -1)[..., :count]


def pair_node(first: Tensor, second: Tensor) -> Tensor:
    """Node of a pair of float64 numbers, from all their bits."""
    first, second = ((value + 0.0).contiguous().view(torch.int64) for value in (first, second))  # -0.0 is 0.0
    return mix(first) + second


def child_seeds(seed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Seeds ``(*shape, *batch)`` of children, a function of the seed and the number of the child alone."""
    children = keys(seed, CHILD, math.prod(shape))  # (*batch, count)
    return children.movedim(-1, 0).reshape(*shape, *seed.shape)
