"""Random numbers that depend on a seed and a key alone, and minibatches drawn with them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from ..ops._arguments import check_whole

__all__ = ["minibatches", "seeded", "stream_seed"]


def stream_seed(seed: int, *key: int | str) -> int:
    """Seed of the stream called `key`, ``0 <= seed < 2 ** 63``; streams of other keys or seeds are unrelated to it.

    Raises:
        TypeError: if `seed` is no whole number.

    Example:
        >>> stream_seed(0, "noise", 1) == stream_seed(0, "noise", 1) != stream_seed(0, "noise", 2)
        True
    """
    check_whole(seed=seed)
    digest = hashlib.blake2b(repr((int(seed), *key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def seeded(seed: int | None, *key: int | str) -> Iterator[None]:
    """Draw from the stream of `seed` and `key` inside, and leave torch's global state as it was.

    Args:
        seed: None draws from the global state, as if this were not here.
        key: name of the stream.

    Raises:
        TypeError: if `seed` is no whole number.
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(stream_seed(seed, *key))
        yield


def minibatches(size: int, batch_size: int, seed: int) -> Callable[[int], Tensor]:
    """Indices of the minibatch of every step, a function of seed and step alone.

    Every epoch runs through all indices once, in an order of its own; its last batch may be smaller.

    Args:
        size: number of series.
        batch_size: series per batch; at most `size` are taken.
        seed: same seed, same batches.

    Returns:
        Function from the step, from 0, to indices ``(b,)``.

    Raises:
        TypeError: if an argument is no whole number.
        ValueError: if `size` or `batch_size` is not positive.

    Example:
        >>> [len(minibatches(5, 2, seed=0)(step)) for step in range(4)]
        [2, 2, 1, 2]
    """
    check_whole(size=size, batch_size=batch_size, seed=seed)
    if size < 1 or batch_size < 1:
        msg = f"`size` and `batch_size` must be at least 1, received {size} and {batch_size}."
        raise ValueError(msg)
    per_epoch = -(-size // batch_size)

    @lru_cache(maxsize=1)
    def order(epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(stream_seed(seed, "order", epoch))
        return torch.randperm(size, generator=generator)

    def indices(step: int) -> Tensor:
        epoch, position = divmod(step, per_epoch)
        return order(epoch)[position * batch_size : (position + 1) * batch_size]

    return indices
