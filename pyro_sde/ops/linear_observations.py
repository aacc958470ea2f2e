"""Linear observations of a Gaussian chain, with missing entries."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._arguments import check_floating
from ._psd import check_finite, unique_entries

__all__ = ["LinearObservations", "WhiteObservations"]

_LOG_2PI = math.log(2 * math.pi)


class WhiteObservations(NamedTuple):
    """Observations scaled to independent unit noise, float64, with one batch dimension; missing ones are zero rows.

    Attributes:
        rows: ``(B, T, O, D)``.
        values: ``(B, T, O)``.
        constant: what the log-density has beyond that of the scaled values without 2 pi, ``(B,)``.
    """

    rows: Tensor  # (B, T, O, D)
    values: Tensor  # (B, T, O)
    constant: Tensor  # (B,) what the log-density has beyond that of the scaled values without 2 pi


class LinearObservations:
    r"""Observations :math:`y_k = H_k z_k + d_k + N(0, R_k)` at the points of a chain.

    Missing entries are dropped exactly: their value, row and noise may be anything, NaN included, and have no gradient.

    Args:
        values: :math:`y_k`, ``(*batch, T, O)``, one row per point of the chain.
        matrix: :math:`H_k`, broadcastable to ``(*batch, T, O, D)``: ``(O, D)``, ``(T, O, D)``, ``(B, 1, O, D)``.
        variance: diagonal of :math:`R_k`, ``> 0``, broadcastable to ``(*batch, T, O)``. Give this or `covariance`.
        covariance: :math:`R_k`, positive definite, broadcastable to ``(*batch, T, O, O)``.
        offset: :math:`d_k`, broadcastable to ``(*batch, T, O)``; zero if None.
        mask: bool, True = observed, of the shape of `values` (single entries) or ``(*batch, T)`` (whole times); all
            observed if None.
        validate: check the values. Without it NaN goes in and NaN comes out.

    Attributes:
        batch_shape: broadcast batch shape.
        num_points: number of points T.
        dim: state dimension D.
        dtype: dtype of `values`.

    Raises:
        TypeError: if an argument is no floating-point tensor, or `mask` is not bool.
        ValueError: if the series has length zero, shapes do not fit, an observed entry is not finite, or the noise of
            observed entries is not positive definite; the message names the argument and the time index.

    Example:
        >>> y = torch.tensor([[0.3], [float("nan")], [0.1]])
        >>> LinearObservations(y, torch.eye(1), variance=torch.tensor(0.1), mask=~y.isnan())
        LinearObservations(batch_shape=(), num_points=3, observed=1, dim=1)
    """

    def __init__(
        self,
        values: Tensor,
        matrix: Tensor,
        *,
        variance: Tensor | None = None,
        covariance: Tensor | None = None,
        offset: Tensor | None = None,
        mask: Tensor | None = None,
        validate: bool = True,
    ) -> None:
        if (variance is None) == (covariance is None):
            msg = "give exactly one of `variance` (independent entries) and `covariance` (full matrices)."
            raise ValueError(msg)
        given = {"values": values, "matrix": matrix, "variance": variance, "covariance": covariance, "offset": offset}
        self.batch_shape = _check_shapes({name: tensor for name, tensor in given.items() if tensor is not None})
        self.num_points, self.size = values.shape[-2:]
        self.dim = matrix.shape[-1]
        self.dtype = values.dtype
        self.mask = None if mask is None else _entry_mask(mask, values)
        self.values, self.matrix, self.offset = values, matrix, offset
        self.variance, self.covariance = variance, covariance
        if validate:
            self._check_values()

    def whitened(self, batch_shape: torch.Size) -> WhiteObservations:
        """Scaled observations, for a batch shape that this one's broadcasts to."""
        values, rows = self.values.double(), self.matrix.double()
        if self.offset is not None:
            values = values - self.offset.double()
        if self.mask is not None:
            values = torch.where(self.mask, values, torch.zeros_like(values))
            rows = torch.where(self.mask.unsqueeze(-1), rows, torch.zeros_like(rows))
        if self.variance is not None:
            variance = self.variance.double()
            if self.mask is not None:
                variance = torch.where(self.mask, variance, torch.ones_like(variance))
            rows, values = rows * variance.rsqrt().unsqueeze(-1), values * variance.rsqrt()
            volume = 0.5 * variance.log().expand(values.shape).sum((-2, -1))
        else:
            factor, _ = torch.linalg.cholesky_ex(self._observed_covariance())
            rows = torch.linalg.solve_triangular(factor, rows, upper=False)
            values = torch.linalg.solve_triangular(factor, values.unsqueeze(-1), upper=False).squeeze(-1)
            volume = factor.diagonal(dim1=-2, dim2=-1).log().expand(values.shape).sum((-2, -1))
        # as float64: an integer tensor (in a trace also a shape) times a number would become the default dtype
        seen = torch.ones_like(values) if self.mask is None else self.mask.double()
        constant = -volume - 0.5 * _LOG_2PI * seen.sum((-2, -1))
        size = batch_shape.numel()
        event = (self.num_points, self.size)
        return WhiteObservations(
            rows.expand(*batch_shape, *event, self.dim).reshape(size, *event, self.dim),
            values.expand(*batch_shape, *event).reshape(size, *event),
            constant.expand(batch_shape).reshape(size),
        )

    def _observed_covariance(self) -> Tensor:
        """Noise covariance of observed entries, float64, and the unit matrix for missing ones."""
        covariance = self.covariance.double()  # type: ignore[union-attr]
        if self.mask is None:
            return covariance
        both = self.mask.unsqueeze(-1) & self.mask.unsqueeze(-2)
        return torch.where(both, covariance, torch.eye(self.size, dtype=covariance.dtype, device=covariance.device))

    def _check_values(self) -> None:
        shape = (*self.batch_shape, *self.values.shape[-2:])
        observed = torch.ones((), dtype=torch.bool, device=self.values.device) if self.mask is None else self.mask
        for name in ("values", "offset"):
            tensor = getattr(self, name)
            if tensor is not None:
                kept = torch.where(observed, tensor.detach(), torch.zeros_like(tensor))
                check_finite(kept.expand(shape), name, True, 1)
        rows = torch.where(observed.unsqueeze(-1), self.matrix.detach(), torch.zeros_like(self.matrix))
        check_finite(rows.expand(*shape, self.dim), "matrix", True, 2)
        if self.variance is not None:
            bad = observed & ~((self.variance.detach() > 0) & self.variance.detach().isfinite())
            bad = unique_entries(bad.expand(shape), 1).any(-1)
        else:
            covariance = self._observed_covariance().detach()
            covariance = unique_entries(covariance.expand(*shape, self.size), 2)
            factor, info = torch.linalg.cholesky_ex(covariance)
            pivots, variance = factor.diagonal(dim1=-2, dim2=-1).square(), covariance.diagonal(dim1=-2, dim2=-1)
            epsilon = 4 * self.size * torch.finfo(self.covariance.dtype).eps  # type: ignore[union-attr]
            bad = (info > 0) | ~(pivots > epsilon * variance).all(-1)
        if bool(bad.any()):
            _report_noise("covariance" if self.variance is None else "variance", bad.nonzero()[0].tolist())

    def __repr__(self) -> str:
        """Class and sizes."""
        sizes = f"num_points={self.num_points}, observed={self.size}, dim={self.dim}"
        return f"LinearObservations(batch_shape={tuple(self.batch_shape)}, {sizes})"


def _report_noise(name: str, first: list[int]) -> None:
    series = f" of series {first[:-1]}" if first[:-1] else ""
    msg = (
        f"`{name}` of the observation noise must be positive definite where something is observed; it is not at time "
        f"index {first[-1]}{series}. A state that is known exactly is no observation: model it by the chain, or use a "
        "small variance."
    )
    raise ValueError(msg)


def _check_shapes(given: dict[str, Tensor]) -> torch.Size:
    """Broadcast batch shape of the tensors of observations."""
    check_floating(**given)
    values, matrix = given["values"], given["matrix"]
    if values.dim() < 2 or 0 in values.shape[-2:]:
        msg = f"`values` must have shape (*batch, T, O) with T >= 1 and O >= 1, received {tuple(values.shape)}."
        raise ValueError(msg)
    count, size = values.shape[-2:]
    dim = matrix.shape[-1] if matrix.dim() else 0
    tails = {"matrix": (count, size, dim), "covariance": (count, size, size)}
    batch = values.shape[:-2]
    for name, tensor in given.items():
        tail = tails.get(name, (count, size))
        full = tail[-2:] if name in tails else ()  # matrices are given whole, only time and batch broadcast
        fits = tensor.dim() >= len(full) and tuple(tensor.shape[tensor.dim() - len(full) :]) == tuple(full)
        fits = fits and (name != "matrix" or dim > 0)
        try:
            joint = torch.broadcast_shapes(tensor.shape, (*batch, *tail))
        except RuntimeError:
            fits, joint = False, torch.Size()
        if not fits or tuple(joint[-len(tail) :]) != tail:
            target = {"matrix": "T, O, D", "covariance": "T, O, O"}.get(name, "T, O")
            msg = (
                f"`{name}` must broadcast to (*batch, {target}) with T = {count} and O = {size} of `values` "
                f"{tuple(values.shape)}, received {tuple(tensor.shape)}."
            )
            raise ValueError(msg)
        batch = joint[: -len(tail)]
    return batch


def _entry_mask(mask: Tensor, values: Tensor) -> Tensor:
    """Mask of entries, of the shape of `values`."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        msg = f"`mask` must be a bool tensor, True = observed, received {kind}."
        raise TypeError(msg)
    if mask.shape == values.shape[:-1]:
        mask = mask.unsqueeze(-1).expand(values.shape)
    if mask.shape != values.shape:
        msg = (
            f"`mask` must have the shape of `values` {tuple(values.shape)} (single entries) or "
            f"{tuple(values.shape[:-1])} (whole times), received {tuple(mask.shape)}."
        )
        raise ValueError(msg)
    return mask
