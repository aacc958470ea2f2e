r"""Observations of a path that are independent given its states: one law for each observation time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints

from ..ops._arguments import check_observed, check_real

__all__ = ["Emission", "EmissionLikelihood", "PathEmission"]

Emission = Callable[..., Distribution]


class EmissionLikelihood:
    r"""Log-likelihood :math:`\log p(y_n \mid z_n)` of given observations as a function of the state and n.

    Args:
        emission: ``emission(z)`` or, with `inputs`, ``emission(z, row)``; returns the law of one observation, of event
            shape ``(O,)``, or elementwise with O as its last batch dimension, which a mask for single entries needs.
            It is called with any leading dimensions.
        y: observations ``(*batch, N, O)``. Masked entries may be anything, NaN too.
        mask: bool, ``(*batch, N)`` or, for single entries, ``(*batch, N, O)``; True = observed.
        inputs: ``(*batch, N, C)``; row n is given to the emission of observation n.

    Shape:
        z: ``(P, *batch, D)`` · n: an int, or int64 ``(*batch,)`` if series are at different observations · returns
        ``(P, *batch)``.

    Raises:
        ValueError: if shapes do not fit, or an observed entry is NaN or outside the support of its law; the message
            names observation and series.
        TypeError: if `emission` cannot be called, or `y` or `inputs` is no tensor of real numbers.

    Example:
        >>> import pyro.distributions as dist
        >>> likelihood = EmissionLikelihood(lambda z: dist.Normal(z, 0.5), torch.zeros(10, 1))
        >>> likelihood(torch.zeros(100, 1), 3).shape
        torch.Size([100])
    """

    def __init__(
        self, emission: Emission, y: Tensor, mask: Tensor | None = None, *, inputs: Tensor | None = None
    ) -> None:
        _check_emission(emission)
        check_real(y=y)
        if y.dim() < 2 or y.numel() == 0:
            msg = f"`y` must have shape (*batch, N, O), received {tuple(y.shape)}; it needs an entry at least."
            raise ValueError(msg)
        if mask is not None:
            check_observed(mask, y)
        if inputs is not None:
            check_real(inputs=inputs)
        if inputs is not None and (inputs.dim() < 2 or inputs.shape[-2] != y.shape[-2]):
            msg = f"`inputs` must have shape (*batch, {y.shape[-2]}, C), received {tuple(inputs.shape)}."
            raise ValueError(msg)
        self.emission = emission
        self.inputs = inputs
        self.entrywise = mask is not None and mask.dim() == y.dim()
        self.mask = mask
        self.y = y if mask is None else _filled(y, mask if self.entrywise else mask.unsqueeze(-1).expand(y.shape))

    def __call__(self, z: Tensor, n: int | Tensor) -> Tensor:
        """Log-likelihood of observation n for every particle."""
        return self._score(
            z,
            _row(self.y, n, 1),
            None if self.mask is None else _row(self.mask, n, int(self.entrywise)),
            None if self.inputs is None else _row(self.inputs, n, 1),
            f"observation {n}" if isinstance(n, int) else "an observation",
        )

    def along(self, states: Tensor) -> Tensor:
        """Log-likelihood of all observations along states ``(..., N, D)`` at their times, ``(..., N)``."""
        return self._score(states, self.y, self.mask, self.inputs, "an observation")

    def counts(self) -> Tensor:
        """Number of observations of every series, ``(*batch,)``: those with any observed entry."""
        seen = self.mask.any(-1) if self.entrywise and self.mask is not None else self.mask
        if seen is None:
            return torch.full(self.y.shape[:-2], self.y.shape[-2], device=self.y.device)
        return seen.sum(-1)

    def _score(self, z: Tensor, value: Tensor, mask: Tensor | None, row: Tensor | None, what: str) -> Tensor:
        law = self.emission(z) if row is None else self.emission(z, row)
        elementwise = _check_law(law, z, value)
        if self.entrywise and not elementwise:
            msg = (
                "`mask` has an entry for every channel, but `emission` returns a law of whole observations, event "
                f"shape {tuple(law.event_shape)}. Return an elementwise law, without `.to_event(1)`."
            )
            raise ValueError(msg)
        _check_support(law, value, mask if self.entrywise or mask is None else mask.unsqueeze(-1), what)
        density = law.log_prob(value)
        if elementwise:
            if self.entrywise and mask is not None:
                density = torch.where(mask, density, density.new_zeros(()))
            density = density.sum(-1)
        if mask is not None and not self.entrywise:
            density = torch.where(mask, density, density.new_zeros(()))
        return density


class PathEmission(TorchDistribution):
    r"""Law of all observations of a path, independent given its states: :math:`\prod_n p(y_n \mid z(t_n))`.

    It is what ``emission(grid.observed(z)).mask(mask).to_event(2)`` is, and knows its emission: `FilteringELBO` can
    ask for one observation at a time. Use it as the observed site of any model with a path site; other estimators see
    an ordinary distribution.

    Args:
        emission: as for `EmissionLikelihood`.
        states: states at the observation times, ``grid.observed(z)``, ``(..., N, D)``.
        mask: bool, ``(*batch, N)`` or, for single entries, ``(*batch, N, O)``; True = observed.
        inputs: ``(*batch, N, C)``; row n is given to the emission of observation n.
        validate_args: as for every torch distribution.

    Shape:
        batch shape: that of the states, ``(...)`` · event shape: ``(N, O)``.

    Raises:
        TypeError: if `emission` cannot be called, or `states` is no tensor.
        ValueError: if the law that `emission` returns is not that of ``(..., N)`` observations.

    Example:
        >>> import pyro.distributions as dist
        >>> law = PathEmission(lambda z: dist.Normal(z, 0.5), torch.zeros(4, 10, 1))
        >>> law.batch_shape, law.event_shape
        (torch.Size([4]), torch.Size([10, 1]))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # type: ignore[override]

    def __init__(
        self,
        emission: Emission,
        states: Tensor,
        mask: Tensor | None = None,
        *,
        inputs: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        _check_emission(emission)
        check_real(states=states)
        self.emission = emission
        self.states = states
        self.observed_mask = mask
        self.inputs = inputs
        law = emission(states) if inputs is None else emission(states, inputs)
        _check_law(law, states, None)
        shape = law.batch_shape + law.event_shape
        self._law = law
        super().__init__(shape[:-2], shape[-2:], validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether the emission is reparameterised."""
        return self._law.has_rsample

    @constraints.dependent_property(event_dim=2)
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        """Support of the emission, entry by entry."""
        return constraints.independent(self._law.support, 2 - len(self._law.event_shape))

    def likelihood(self, y: Tensor) -> EmissionLikelihood:
        """Log-likelihood of observations ``(*batch, N, O)``, one at a time."""
        return EmissionLikelihood(self.emission, y, self.observed_mask, inputs=self.inputs)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-likelihood of all observations, ``(..., *batch)``."""
        density = self.likelihood(value).along(self.states).sum(-1)
        return density.expand(torch.broadcast_shapes(density.shape, self.batch_shape))

    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Observations ``(*sample_shape, *batch, N, O)``; masked entries are drawn like the others."""
        with torch.no_grad():
            return self._drawn(self._law.sample(torch.Size(sample_shape)), sample_shape)

    def rsample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """As `sample`, reparameterised."""
        return self._drawn(self._law.rsample(torch.Size(sample_shape)), sample_shape)

    def _drawn(self, value: Tensor, sample_shape: torch.Size | Sequence[int]) -> Tensor:
        rank = len(torch.Size(sample_shape))
        missing = len(self.batch_shape) + 2 + rank - value.dim()  # dimensions that `expand` has added
        value = value.reshape(*value.shape[:rank], *[1] * missing, *value.shape[rank:])
        return value.expand(*sample_shape, *self.batch_shape, *self.event_shape)

    def expand(self, batch_shape: torch.Size | Sequence[int], _instance: PathEmission | None = None) -> PathEmission:
        """The same law with a larger batch shape.

        Raises:
            ValueError: if this law's batch shape does not broadcast to `batch_shape`.
        """
        batch_shape = torch.Size(batch_shape)
        aligned = zip(reversed(self.batch_shape), reversed(batch_shape), strict=False)
        if len(batch_shape) < len(self.batch_shape) or any(old not in (1, new) for old, new in aligned):
            msg = f"cannot expand a law of batch shape {tuple(self.batch_shape)} to {tuple(batch_shape)}."
            raise ValueError(msg)
        new = copy.copy(self) if _instance is None else _instance
        Distribution.__init__(new, batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new


def _check_emission(emission: object) -> None:
    if not callable(emission):
        msg = f"`emission` must be a function of the state that returns a law, received {type(emission).__name__}."
        raise TypeError(msg)


def _row(values: Tensor, n: int | Tensor, tail: int) -> Tensor:
    """Row n of ``(*batch, N, *tail)``; n may be one index for all series or one for each."""
    axis = -1 - tail
    if isinstance(n, int):
        return values.select(axis, n)
    batch = torch.broadcast_shapes(n.shape, values.shape[: values.dim() - 1 - tail])
    values = values.expand(*batch, *values.shape[values.dim() - 1 - tail :])
    index = n.expand(batch).reshape(*batch, 1, *[1] * tail).expand(*batch, 1, *values.shape[values.dim() - tail :])
    return values.gather(axis, index).squeeze(axis)


def _filled(y: Tensor, mask: Tensor) -> Tensor:
    """What is not observed, overwritten by some observed value of the same channel, so that it has a density."""
    flat, seen = y.reshape(-1, y.shape[-1]), mask.reshape(-1, y.shape[-1])
    if not bool(seen.any()):
        return torch.zeros_like(y)
    first = seen.to(torch.uint8).argmax(0)  # (O,)
    known = flat.gather(0, first.unsqueeze(0)).squeeze(0)
    other = flat[seen][0]  # for a channel that is never observed
    return torch.where(mask, y, torch.where(seen.any(0), known, other))


def _check_law(law: object, z: Tensor, value: Tensor | None) -> bool:
    """Whether the law is elementwise.

    Raises:
        ValueError: if it is none of observations at these states.
    """
    leading = z.shape[:-1] if z.is_floating_point() else z.shape  # discrete states have no last axis
    if isinstance(law, Distribution):
        elementwise = not law.event_shape
        points = law.batch_shape[:-1] if elementwise else law.batch_shape
        rank = len(law.batch_shape) + len(law.event_shape)
        size = (law.batch_shape + law.event_shape)[-1:]
        right = len(law.event_shape) <= 1 and rank >= 1 and tuple(points) == tuple(leading)
        if right and (value is None or size == value.shape[-1:]):
            return elementwise
        received = f"batch shape {tuple(law.batch_shape)} and event shape {tuple(law.event_shape)}"
    else:
        received = type(law).__name__
    channels = "O" if value is None else value.shape[-1]
    msg = (
        f"`emission` must return, for states of shape {tuple(z.shape)}, a law of batch shape {tuple(leading)} and "
        f"event shape ({channels},), or an elementwise one of batch shape {(*leading, channels)}; received "
        f"{received}."
    )
    raise ValueError(msg)


def _check_support(law: Distribution, value: Tensor, mask: Tensor | None, what: str) -> None:
    with torch.no_grad():
        try:
            inside = law.support.check(value)  # type: ignore[union-attr]
        except NotImplementedError:  # a law without a declared support
            return
        whole = bool(law.event_shape)
        bad = ~inside | (value.isnan().any(-1) if whole else value.isnan())
        if mask is not None:
            bad = bad & (mask.squeeze(-1) if whole else mask)
        if not bool(bad.any()):
            return
        extra = bad.dim() - value.dim() + whole
        if extra > 0:  # a support that depends on the state: particles outside it have weight 0
            bad = bad.flatten(0, extra - 1).all(0)
        if bool(bad.any()):
            where = bad.nonzero()[0].tolist()
            example = value.expand(*torch.broadcast_shapes(value.shape, bad.shape))[tuple(where)]
            msg = (
                f"`y` has {what} outside the support of its law {type(law).__name__}: "
                f"{example.tolist() if example.dim() else example.item()} at entry {where}. Mask missing values, or "
                "choose a likelihood for such data."
            )
            raise ValueError(msg)
