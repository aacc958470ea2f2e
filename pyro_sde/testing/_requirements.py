"""Comparisons that clauses of a contract are written in; each raises `ContractError` with the two values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .statistics import ContractError

__all__ = ["close", "draw", "finite_gradients", "require", "same_shape", "seeded"]


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """A seed inside, the global state of randomness as before outside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def draw(method: Callable[[], Tensor]) -> Tensor:
    """One draw, the same at every call."""
    with seeded(1):
        return method()


def require(condition: bool, message: str) -> None:
    """Raise ContractError unless the condition holds."""
    if not condition:
        raise ContractError(message)


def same_shape(name: str, value: Tensor, shape: Sequence[int]) -> None:
    """The value must have exactly this shape."""
    require(value.shape == torch.Size(shape), f"{name} has shape {tuple(value.shape)}, expected {tuple(shape)}")


def close(name: str, value: Tensor, expected: Tensor) -> None:
    """Equal to round-off of a sum of many terms: relative 1e-9 in float64, 1e-3 in lower precision."""
    value, expected = value.detach(), expected.detach()
    same_shape(name, value, expected.shape)
    if not value.numel():
        return
    tolerance = 1e-9 if expected.dtype == torch.float64 else 1e-3
    error = float((value - expected).abs().max())
    size = 1 + float(expected.abs().max())
    require(error <= tolerance * size, f"{name}: differs by {error:.3g} where {tolerance * size:.1g} is round-off")


def finite_gradients(name: str, value: Tensor, inputs: tuple[Tensor, ...]) -> set[int]:
    """Indices of the inputs that have a gradient; all gradients must be finite."""
    if not inputs or not value.requires_grad:
        return set()
    gradients = torch.autograd.grad(value, inputs, allow_unused=True, retain_graph=True)
    for gradient in gradients:
        require(gradient is None or bool(torch.isfinite(gradient).all()), f"a gradient of {name} is not finite")
    return {i for i, gradient in enumerate(gradients) if gradient is not None}
