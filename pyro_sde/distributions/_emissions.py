r"""Linear observations at the observation times of a grid, put at the points of its chain."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from ..ops.grid import TimeGrid
from ..ops.linear_observations import LinearObservations
from ._gaussian_chains import check_batches

__all__ = ["Emissions", "NoiseLaw"]

NoiseLaw = float | Tensor | Distribution


class Emissions:
    r"""Observations :math:`y_n = H_n z(t_n) + d_n + N(0, R_n)`, n = 1..N, of paths on a grid.

    Args:
        matrix: H, broadcastable to ``(*batch, N, O, D)``.
        noise: standard deviations, broadcastable to ``(*batch, N, O)``, or a Gaussian law of event shape ``(O,)`` whose
            batch shape broadcasts to ``(*batch, N)``.
        grid: the grid; its masked times are not observed.
        mask: bool, ``(*batch, N)`` or ``(*batch, N, O)``, True = observed.
        state_dim: D.
        batch_dims: number of batch dimensions of the paths; it decides what a mask ``(N, N)`` of N outputs means.

    Attributes:
        count: N.
        size: O.
        batch_shape: of all parts, broadcast.
    """

    def __init__(
        self,
        matrix: Tensor,
        noise: NoiseLaw,
        grid: TimeGrid,
        mask: Tensor | None,
        *,
        state_dim: int,
        batch_dims: int,
    ) -> None:
        self.count = grid.observed_times.shape[-1]
        self.num_points = grid.times.shape[-1]
        self.index, self.valid = grid.observed_index, grid.mask
        if not isinstance(matrix, Tensor) or matrix.dim() < 2 or matrix.shape[-1] != state_dim:
            shape = tuple(matrix.shape) if isinstance(matrix, Tensor) else type(matrix).__name__
            msg = (
                f"`observation_matrix` must broadcast to (*batch, {self.count}, O, {state_dim}), one row per output "
                f"and one column per state; received {shape}."
            )
            raise ValueError(msg)
        for name, value in (("observation_matrix", matrix), ("noise", noise)):
            if isinstance(value, Tensor) and value.is_complex():
                msg = f"`{name}` must be of real numbers, received {value.dtype}."
                raise TypeError(msg)
        self.size = matrix.shape[-2]
        self.matrix = matrix.unsqueeze(0) if matrix.dim() == 2 else matrix
        self.noise = noise
        self._set_noise(noise, matrix.device)
        self.mask = None if mask is None else self._entries(mask, batch_dims)
        for name, part, tail in self._parts():
            wanted = (self.count, *tail)
            fits = part.shape[-len(tail) :] == tail and part.shape[-len(tail) - 1] in (1, self.count)
            if not fits:
                letters = ", ".join(map(str, wanted))
                msg = f"`{name}` must broadcast to (*batch, {letters}), received {tuple(part.shape)}."
                raise ValueError(msg)
        shapes = {name: part.shape[: -len(tail) - 1] for name, part, tail in self._parts() if part is not self.offset}
        self.batch_shape = check_batches(**shapes, grid=self.index.shape[:-1])

    def _set_noise(self, noise: NoiseLaw, device: torch.device) -> None:
        self.scale: Tensor | None = None
        self.factor: Tensor | None = None
        self.offset: Tensor | None = None
        base = noise.base_dist if isinstance(noise, Independent) else None
        if isinstance(noise, MultivariateNormal):
            self.factor, self.offset = _with_time(noise.scale_tril, 2), _with_time(noise.loc, 1)
        elif isinstance(base, Normal) and len(noise.event_shape) == 1:  # type: ignore[union-attr]
            self.scale, self.offset = _with_time(base.scale, 1), _with_time(base.loc, 1)
        elif isinstance(noise, int | float | Tensor):
            scale = noise if isinstance(noise, Tensor) else torch.tensor(noise, dtype=torch.float64, device=device)
            if scale.shape[-1:] in ((), (1,)):  # one number for all outputs
                scale = scale.expand(*scale.shape[:-1], self.size)
            self.scale = _with_time(scale, 1)
        else:
            event = f" of event shape {tuple(noise.event_shape)}" if isinstance(noise, Distribution) else ""
            msg = (
                "`noise` must be standard deviations (number or tensor), Normal(...).to_event(1) or "
                f"MultivariateNormal; received {type(noise).__name__}{event}."
            )
            raise ValueError(msg)

    def _entries(self, mask: Tensor, batch_dims: int) -> Tensor:
        """Mask of entries, broadcastable to ``(*batch, N, O)``."""
        if isinstance(mask, Tensor) and mask.dtype == torch.bool:
            batch = max(batch_dims, self.matrix.dim() - 3)
            entries = mask.shape[-2:] == (self.count, self.size)
            times = mask.shape[-1:] == (self.count,)
            if entries and (not times or mask.dim() >= batch + 2):
                return mask
            if times:
                return mask.unsqueeze(-1).expand(*mask.shape, self.size)
        kind = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        msg = (
            f"`mask` must be a bool tensor of shape (*batch, {self.count}) (whole times) or (*batch, {self.count}, "
            f"{self.size}) (single entries), True = observed; received {kind}."
        )
        raise ValueError(msg)

    def _parts(self) -> list[tuple[str, Tensor, tuple[int, ...]]]:
        """Names, tensors ``(*batch, 1 or N, ...)`` and what must stand right of time."""
        parts = [("observation_matrix", self.matrix, (self.size, self.matrix.shape[-1]))]
        parts += [("noise", self.scale, (self.size,))] if self.scale is not None else []
        parts += [("noise", self.factor, (self.size, self.size))] if self.factor is not None else []
        parts += [("noise", self.offset, (self.size,))] if self.offset is not None else []
        return parts + ([("mask", self.mask, (self.size,))] if self.mask is not None else [])

    @property
    def observed(self) -> Tensor:
        """Which entries count, broadcastable to ``(*batch, N, O)``."""
        valid = self.valid.unsqueeze(-1)
        return valid if self.mask is None else valid & self.mask

    @property
    def changing(self) -> list[str]:
        """Names of the parts that differ from time to time, the mask aside."""
        return [name for name, part, tail in self._parts() if name != "mask" and part.shape[-len(tail) - 1] > 1]

    def without_missing(self, values: Tensor) -> Tensor:
        """Values ``(..., N, O)`` with 0 where they are masked.

        Raises:
            ValueError: if the shape is wrong.
            TypeError: if they are not of floating-point numbers.
        """
        if not isinstance(values, Tensor) or values.shape[-2:] != (self.count, self.size):
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            msg = (
                f"`y` must have shape (..., {self.count}, {self.size}), one row per observation time and one column "
                f"per output; received {shape}."
            )
            raise ValueError(msg)
        if not values.is_floating_point():
            msg = f"`y` must be a floating-point tensor, received {values.dtype}."
            raise TypeError(msg)
        return torch.where(self.observed, values, torch.zeros_like(values))

    def at_points(self, values: Tensor, *, validate: bool) -> LinearObservations:
        """The values ``(..., N, O)`` as observations of the chain of the grid."""
        values = self.without_missing(values)
        if validate:
            self._check(values)
        parts = {
            "matrix": self.matrix,
            "variance": None if self.scale is None else self.scale.double().square(),
            "covariance": None if self.factor is None else self.factor.double() @ self.factor.double().mT,
            "offset": self.offset,
        }
        size = {"matrix": 2, "covariance": 2}
        values, observed = torch.broadcast_tensors(values, self.observed)
        if self._everywhere():
            mask = None if self.mask is None else observed
            return LinearObservations(values, mask=mask, validate=False, **parts)  # type: ignore[arg-type]
        return LinearObservations(
            self._scatter(values, 1),
            mask=self._scatter(observed, 1),
            validate=False,
            **{k: None if v is None else self._scatter(v, size.get(k, 1)) for k, v in parts.items()},  # type: ignore[arg-type]
        )

    def _everywhere(self) -> bool:
        """Whether the observations are those at all points, in order."""
        if self.index.shape[-1] != self.num_points or not bool(self.valid.all()):
            return False
        return bool((self.index == torch.arange(self.num_points, device=self.index.device)).all())

    def _scatter(self, part: Tensor, tail: int) -> Tensor:
        """``(*batch, N, ...)`` to ``(*batch, T, ...)``, 0 where nothing is observed; constants stay as they are."""
        if part.shape[-tail - 1] == 1 and self.count > 1:
            return part
        event = part.shape[part.dim() - tail :]
        batch = torch.broadcast_shapes(part.shape[: -tail - 1], self.index.shape[:-1])
        index = torch.where(self.valid, self.index, self.num_points)  # padding goes to a point of its own
        index = index.expand(*batch, self.count)[(..., *[None] * tail)].expand(*batch, self.count, *event)
        part = part.expand(*batch, self.count, *event)
        full = part.new_zeros(*batch, self.num_points + 1, *event).scatter(-tail - 1, index, part)
        return full.narrow(-tail - 1, 0, self.num_points)

    def _check(self, values: Tensor) -> None:
        bad = ~torch.isfinite(values.detach())
        if bool(bad.any()):
            msg = (
                f"`y` must be finite where it is observed; it is not {_place(bad.any(-1))}. Pass `mask` (True = "
                "observed) for missing entries."
            )
            raise ValueError(msg)
        if self.scale is not None:
            scale = self.scale.detach()
            bad = self.observed & ~((scale > 0) & torch.isfinite(scale))
            bad = bad.any(-1)
        else:
            factor = self.factor.detach()  # type: ignore[union-attr]
            pivots = factor.diagonal(dim1=-2, dim2=-1)
            regular = (pivots > factor.norm(dim=-1) * math.sqrt(torch.finfo(factor.dtype).eps)).all(-1)
            bad = self.observed.any(-1) & ~regular
        if bool(bad.any()):
            msg = (
                "`noise` must have positive standard deviations, or a positive definite covariance, where something "
                f"is observed; it has not {_place(bad)}. What is known exactly is no observation: model it by the "
                "process, or use small noise."
            )
            raise ValueError(msg)

    def gather(self, points: Tensor, tail: int) -> Tensor:
        """Rows of ``(..., T, *tail dims)`` at the observation times, ``(..., N, *tail dims)``."""
        event = points.shape[points.dim() - tail :]
        batch = torch.broadcast_shapes(points.shape[: -tail - 1], self.index.shape[:-1])
        index = self.index.expand(*batch, self.count)[(..., *[None] * tail)].expand(*batch, self.count, *event)
        return points.expand(*batch, self.num_points, *event).gather(-tail - 1, index)

    def outputs(self, states: Tensor) -> Tensor:
        """Means ``H z + d`` of the observations of states ``(..., N, D)``."""
        mean = torch.einsum("...ij,...j->...i", self.matrix.to(states.dtype), states)
        return mean if self.offset is None else mean + self.offset.to(states.dtype)

    def variance_of(self, covariance: Tensor) -> Tensor:
        """Variances ``(..., N, O)`` of the observations of states of this covariance ``(..., N, D, D)``."""
        matrix = self.matrix.to(covariance.dtype)
        variance = (matrix @ covariance * matrix).sum(-1)
        if self.scale is not None:
            return variance + self.scale.to(covariance.dtype).square()
        return variance + self.factor.to(covariance.dtype).square().sum(-1)  # type: ignore[union-attr]

    def add_noise(self, mean: Tensor) -> Tensor:
        """Reparameterised observations of these means ``(..., N, O)``."""
        normal = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device)
        if self.scale is not None:
            return mean + self.scale.to(mean.dtype) * normal
        return mean + torch.einsum("...ij,...j->...i", self.factor.to(mean.dtype), normal)  # type: ignore[union-attr]

    def section(self, start: int, stop: int) -> Emissions:
        """The observations ``start <= n < stop``."""
        part = copy.copy(self)
        part.count = stop - start
        part.index, part.valid = self.index[..., start:stop], self.valid[..., start:stop]
        for name, tail in (("matrix", 2), ("scale", 1), ("factor", 2), ("offset", 1), ("mask", 1)):
            value = getattr(self, name)
            if value is not None and value.shape[-tail - 1] == self.count and self.count > 1:
                setattr(part, name, value.narrow(-tail - 1, start, stop - start))
        return part


def _with_time(tensor: Tensor, tail: int) -> Tensor:
    """With an axis of time, of size 1 if it has none."""
    return tensor.reshape(*[1] * (tail + 1 - tensor.dim()), *tensor.shape)


def _place(bad: Tensor) -> str:
    *series, observation = bad.nonzero()[0].tolist()
    return f"at observation {observation}" + (f" of series {series}" if series else "")
