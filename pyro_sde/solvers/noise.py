"""Standard normal noise for the steps of a path: a tensor, drawn block by block from a seed, or of a Brownian path."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..ops.brownian import VirtualBrownianTree

__all__ = ["GivenNoise", "SeededNoise", "StepNoise", "TreeNoise"]


class StepNoise(ABC):
    """Standard normal noise of K steps, ``(K, ..., M)``, one block of steps at a time."""

    @abstractmethod
    def block(self, start: int, stop: int) -> Tensor:
        """Noise of some steps, the same at every call, ``(stop - start, ..., M)``."""


class GivenNoise(StepNoise):
    """Noise that is there already.

    Args:
        standard_normal: ``(K, ..., M)``.
    """

    def __init__(self, standard_normal: Tensor) -> None:
        self.standard_normal = standard_normal

    def block(self, start: int, stop: int) -> Tensor:
        """A slice."""
        return self.standard_normal[start:stop]


class SeededNoise(StepNoise):
    """Noise that is drawn when it is asked for, and again when it is asked for again: nothing is stored.

    The seed comes from the generator of torch, so that a seeded program stays reproducible. Blocks have generators of
    their own, seeded with `seed` plus the number of the first step: what one block draws does not depend on others.

    Args:
        shape: shape of the noise of one step, ``(..., M)``.
        like: tensor of any shape, whose dtype and device the noise has.
    """

    def __init__(self, shape: tuple[int, ...], like: Tensor) -> None:
        self.shape, self.dtype, self.device = shape, like.dtype, like.device
        self.seed = int(torch.randint(2**62, ()))

    def block(self, start: int, stop: int) -> Tensor:
        """Noise of some steps; the same steps must be asked for together."""
        generator = torch.Generator(self.device).manual_seed(self.seed + start)
        shape = (stop - start, *self.shape)
        return torch.randn(shape, generator=generator, dtype=self.dtype, device=self.device)


class TreeNoise(StepNoise):
    """Increments of a Brownian path that is a function of its seeds: the same on any grid, in any batch.

    Args:
        tree: the path; one seed for each series.
        times: grid times ``(*batch, K + 1)``.
        width: number of normals that the solver wants for a step.
        like: tensor of any shape, whose dtype the noise has.
    """

    def __init__(self, tree: VirtualBrownianTree, times: Tensor, width: int, like: Tensor) -> None:
        self.tree, self.times, self.width, self.dtype = tree, times, width, like.dtype

    def block(self, start: int, stop: int) -> Tensor:
        """Increments of some steps; W comes first, and what the solver does not want last."""
        return self.tree.standard_normals(self.times[..., start : stop + 1])[..., : self.width].to(self.dtype)
