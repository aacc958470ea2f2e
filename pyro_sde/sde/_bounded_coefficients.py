"""Drifts and diffusions of the bounded processes, with their parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._arguments import check_coefficients

__all__ = [
    "AlleleDiffusion",
    "AlleleDrift",
    "LogisticDrift",
    "MutationDrift",
    "ProportionalDiffusion",
    "ReversionDrift",
    "RootDiffusion",
    "SamplingDiffusion",
    "root",
]


class _Coefficient(nn.Module):
    """A coefficient with its parameters, registered so that they move with the module."""

    def __init__(self, **values: Tensor | float) -> None:
        super().__init__()
        check_coefficients(**values)
        for name, value in values.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value, persistent=False)  # keeps its graph
            else:
                setattr(self, name, value)


class ReversionDrift(_Coefficient):
    """``rate (mean - x)``."""

    rate: Tensor | float
    mean: Tensor | float

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Value at ``(t, x)``."""
        del t
        return self.rate * (self.mean - x)


class RootDiffusion(_Coefficient):
    """``scale sqrt(x)``."""

    scale: Tensor | float

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Value at ``(t, x)``."""
        del t
        return self.scale * root(x)


class LogisticDrift(_Coefficient):
    """``rate x (1 - x / capacity)``."""

    rate: Tensor | float
    capacity: Tensor | float

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Value at ``(t, x)``."""
        del t
        return self.rate * x * (1 - x / self.capacity)


class ProportionalDiffusion(_Coefficient):
    """``scale x``."""

    scale: Tensor | float

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Value at ``(t, x)``."""
        del t
        return self.scale * x


class AlleleDrift(_Coefficient):
    """``gain (1 - x) - loss x + selection x (1 - x)``."""

    gain: Tensor | float
    loss: Tensor | float
    selection: Tensor | float

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Value at ``(t, x)``."""
        del t
        return self.gain * (1 - x) - self.loss * x + self.selection * x * (1 - x)


class AlleleDiffusion(_Coefficient):
    """``scale sqrt(x (1 - x))``."""

    scale: Tensor | float

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Value at ``(t, x)``."""
        del t
        return self.scale * root(x * (1 - x))


class MutationDrift(_Coefficient):
    """``mutation - sum(mutation) x``."""

    mutation: Tensor

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Value at ``(t, x)``."""
        del t
        mutation = self.mutation
        return mutation - mutation.sum(-1, keepdim=True) * x


class SamplingDiffusion(_Coefficient):
    """``scale (diag(sqrt(x)) - x sqrt(x)^T)``."""

    scale: Tensor | float

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Value at ``(t, x)``."""
        del t
        scale, size = self.scale, root(x)
        matrix = torch.diag_embed(size) - x.unsqueeze(-1) * size.unsqueeze(-2)
        return (scale.unsqueeze(-1) if isinstance(scale, Tensor) and scale.dim() else scale) * matrix


def root(x: Tensor) -> Tensor:
    """Square root that is 0 with gradient 0 where x is not positive: outside the set there is no noise."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, torch.ones_like(x)).sqrt(), torch.zeros_like(x))
