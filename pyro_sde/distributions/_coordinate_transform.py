r"""The map of a domain as a transform of torch, for laws of first states."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints

from ..sde.constrained import Domain

__all__ = ["image"]


class _CoordinateTransform(Transform):
    """The map of a domain from coordinate to state, as a transform of torch."""

    domain = constraints.real_vector
    bijective = True

    def __init__(self, state_domain: Domain) -> None:
        super().__init__()
        self.state_domain = state_domain

    @property
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        return self.state_domain.support

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _CoordinateTransform) and self.state_domain.same_as(other.state_domain)

    __hash__ = None  # type: ignore[assignment]

    def _call(self, x: Tensor) -> Tensor:
        return self.state_domain.to_state(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.state_domain.to_coordinate(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        del y
        return self.state_domain.log_slopes(x).sum(-1)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-1], shape[-1] + self._extra))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-1], shape[-1] - self._extra))

    @property
    def _extra(self) -> int:
        return 1 - self.state_domain.coordinate_dim(1)


def image(law: Distribution, domain: Domain, *, inverse: bool) -> Distribution:
    """Law of the coordinate of a first state (`inverse` False), or of the state of a coordinate.

    A point mass stays one: its density has no change of variables.
    """
    if isinstance(law, dist.Delta):
        point = domain.to_state(law.v) if inverse else domain.to_coordinate(law.v)
        return dist.Delta(point, law.log_density, event_dim=1)  # type: ignore[arg-type]
    transform = _CoordinateTransform(domain)
    return dist.TransformedDistribution(law, [transform if inverse else transform.inv])
