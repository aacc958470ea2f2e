"""What automatic guides for paths share: parameters by site, and mean-field Normals for what is no path."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoMessenger
from pyro.infer.autoguide.initialization import init_to_feasible, init_to_mean
from pyro.poutine.runtime import get_plates
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import ComposeTransform, IndependentTransform, Transform

from ..distributions.base import PathDistribution
from ..distributions.kl import SiteLaw
from ..ops._arguments import check_numbers
from ._lazy import SiteParams, full_batch, full_value

__all__ = ["PathMessenger", "is_identity", "rewrap"]


class PathMessenger(AutoMessenger):
    """Base of automatic guides for paths.

    Args:
        model: the model.
        kind: name of the guide, the first part of the names of its parameters, whatever a subclass is called.
        init_scale: initial standard deviation of sites that are no paths, in unconstrained space, ``> 0``.

    Raises:
        ValueError: if `init_scale` is not positive.
    """

    def __init__(self, model: Callable[..., Any], kind: str, init_scale: float) -> None:
        if not callable(model):
            msg = f"`model` must be a Pyro model, received {type(model).__name__}."
            raise TypeError(msg)
        check_numbers(init_scale=init_scale)
        if not 0 < init_scale < math.inf:
            msg = f"`init_scale` must be a number > 0, received {init_scale!r}."
            raise ValueError(msg)
        super().__init__(model)
        self._pyro_name = self.kind = kind
        self.init_scale = init_scale
        self.sites = SiteParams()

    def __getstate__(self) -> dict[str, object]:
        """State without the last trace and links to Pyro's store."""
        for parameter in self.parameters():
            vars(parameter).pop("unconstrained", None)
        return {key: value for key, value in self.__dict__.items() if key != "trace"}

    def mean_field(self, name: str, prior: Any) -> Any:  # noqa: ANN401 (distributions of Pyro)
        """Normal law in unconstrained space, from the mean of the prior on."""
        if prior.support.is_discrete:
            msg = (
                f"site '{name}' is discrete ({type(prior).__name__}), but {self.kind} has continuous "
                "posteriors only. Sum the site out in the model, relax it to a continuous one, or override "
                "get_posterior for it."
            )
            raise ValueError(msg)
        transform = biject_to(prior.support)

        def start() -> tuple[Tensor, Tensor]:
            value = init_to_mean({"name": name, "fn": prior}, fallback=init_to_feasible)
            loc = transform.inv(value)
            return loc, torch.full_like(loc, self.init_scale)

        shape = transform.inverse_shape(prior.batch_shape + prior.event_shape)
        return self.normal(name, prior, shape, 0, start)

    def normal(
        self,
        name: str,
        prior: Any,  # noqa: ANN401 (a distribution of Pyro)
        shape: torch.Size,
        reinterpreted: int,
        start: Callable[[], tuple[Tensor, Tensor]],
    ) -> Any:  # noqa: ANN401
        """Normal law in the unconstrained space of a prior; `start` gives its first mean and standard deviation."""
        transform = biject_to(prior.support)
        events = transform.domain.event_dim
        event_dim = events + reinterpreted
        full = (*self.full_batch(shape[: len(shape) - events], reinterpreted), *shape[len(shape) - events :])

        def make(index: int) -> Tensor:
            with torch.no_grad():
                return self.full_value(start()[index].expand(shape).contiguous(), event_dim, reinterpreted)

        loc = self.sites.param(name, "loc", full, lambda: make(0), event_dim)
        scale = self.sites.param(name, "scale", full, lambda: make(1), event_dim, constraints.positive)
        normal = dist.Normal(loc, scale).to_event(events)
        return normal if is_identity(transform) else dist.TransformedDistribution(normal, transform.with_cache())

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Context in which parameters may be read or made outside a call; plates around it count as particles."""
        self._outer_plates = tuple(frame.name for frame in get_plates())
        try:
            yield
        finally:
            del self._outer_plates

    def full_batch(self, batch: torch.Size, reinterpreted: int) -> tuple[int, ...]:
        """Batch shape of a parameter: plates at full size, particles left out."""
        return full_batch(batch, reinterpreted, self._outer_plates)

    def full_value(self, value: Tensor, event_dim: int, reinterpreted: int) -> Tensor:
        """Initial value of a parameter of batch shape `full_batch`."""
        return full_value(value, event_dim, reinterpreted, self._outer_plates)


def rewrap(site: SiteLaw, posterior: PathDistribution) -> Any:  # noqa: ANN401 (a distribution of Pyro)
    """A posterior in the wrappers (mask, event dimensions) of its prior."""
    wrapped: Any = posterior
    if site.mask is not None:
        wrapped = wrapped.expand(site.law.batch_shape).mask(site.mask)
    return wrapped.expand(site.law.batch_shape).to_event(site.reinterpreted) if site.reinterpreted else wrapped


def is_identity(transform: Transform) -> bool:
    """Whether a transform of a support is that of the real space."""
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    return isinstance(transform, ComposeTransform) and not transform.parts
