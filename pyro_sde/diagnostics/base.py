"""What baselines and scores share: Gaussian predictions, the baseline contract, masks and packed series."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops._arguments import check_counts, check_real, check_tensors

__all__ = ["Baseline", "GaussianPrediction", "PackedSeries", "broadcast_mask"]

# Predictive variances never fall below (1e-6 x scale of the series)^2, so a constant series has a finite density.
_RELATIVE_FLOOR = 1e-6


class GaussianPrediction(NamedTuple):
    """Independent normal predictions of new observations; unpacks as ``mean, standard_deviation``.

    Attributes:
        mean: predictive mean, ``(*batch, Q, O)``, in the unit of the observations.
        standard_deviation: predictive standard deviation including observation noise, ``(*batch, Q, O)``.
    """

    mean: Tensor
    standard_deviation: Tensor

    def log_density(self, values: Tensor) -> Tensor:
        """Log density of `values` ``(*batch, Q, O)`` in nats, elementwise; NaN where a value is NaN."""
        return torch.distributions.Normal(*self, validate_args=False).log_prob(values)

    def sample(self, num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draws ``(num_samples, *batch, Q, O)`` from the marginal predictions, as the sample scores expect them.

        Args:
            num_samples: number of draws, ``>= 1``.
            generator: source of randomness; torch's global generator if None.

        Returns:
            The draws; neighbouring times are independent, so these are not paths.

        Raises:
            TypeError: if `num_samples` is no whole number.
            ValueError: if it is not positive.
        """
        check_counts(num_samples=num_samples)
        noise = torch.randn(
            num_samples, *self.mean.shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device
        )
        return self.mean + self.standard_deviation * noise


class Baseline(ABC):
    """A fitted predictor of a gappy series that needs no latent path; fitted objects never change."""

    @abstractmethod
    def predict(self, times: Tensor) -> GaussianPrediction:
        """Predict new observations at any times: between, before and after the observed ones.

        Args:
            times: query times, ``(Q,)`` or ``(*batch, Q)``, any order, in the unit of the fitted times.

        Returns:
            Mean and standard deviation ``(*batch, Q, O)`` of new (noisy) observations.

        Raises:
            ValueError: if `times` is not finite or does not broadcast to the fitted batch.
        """


def broadcast_mask(mask: Tensor | None, shape: torch.Size) -> Tensor:
    """Bool mask of the given shape; a mask of one rank less covers all channels of a time.

    Args:
        mask: bool ``shape`` or ``shape[:-1]`` (anything broadcastable to one of them); None means all valid.
        shape: shape of the values that are masked.

    Returns:
        Bool tensor of the shape `shape`; the caller owns the device.

    Raises:
        TypeError: if `mask` is no tensor.
        ValueError: if `mask` is not bool or does not broadcast.
    """
    if mask is None:
        return torch.ones(shape, dtype=torch.bool)
    check_tensors(mask=mask)
    if mask.dtype != torch.bool:
        msg = f"`mask` must be bool (True = valid), received {mask.dtype}. Pass `mask.bool()`."
        raise ValueError(msg)
    full = mask.unsqueeze(-1) if mask.dim() == len(shape) - 1 else mask
    try:
        return full.expand(shape)
    except RuntimeError as error:
        msg = (
            f"`mask` must have shape {tuple(shape)} or {tuple(shape[:-1])}, received {tuple(mask.shape)}. "
            "True marks a valid observation."
        )
        raise ValueError(msg) from error


@dataclass(frozen=True, eq=False)
class PackedSeries:
    """One row per series and channel, valid observations first, in float64.

    Attributes:
        times: increasing times ``(*batch, O, N)``; the padding repeats the row's last valid time.
        values: observations ``(*batch, O, N)``, 0 in the padding.
        valid: True where not padding, ``(*batch, O, N)``.
        count: number of valid observations, ``(*batch, O)``.
        floor: smallest predictive variance of each row, ``(*batch, O)``.
        dtype: floating type of the values that came in, which predictions go back to.
    """

    times: Tensor
    values: Tensor
    valid: Tensor
    count: Tensor
    floor: Tensor
    dtype: torch.dtype

    @staticmethod
    def pack(times: Tensor, values: Tensor, mask: Tensor | None, least: int) -> PackedSeries:
        """Check a masked series and pack it. Cost O(N log N) per row.

        Args:
            times: ``(N,)`` or ``(*batch, N)``, increasing where valid; anything where masked.
            values: ``(*batch, N, O)``; anything, NaN included, where masked.
            mask: bool ``(*batch, N)`` or ``(*batch, N, O)``, True = observed; None = all.
            least: number of valid observations that every row needs.

        Returns:
            The packed rows.

        Raises:
            TypeError: if times or values are no tensors of real numbers.
            ValueError: if shapes disagree, there is no series, a valid time or value is not finite, valid times do not
                increase, or a row has fewer than `least` valid observations.
        """
        check_real(times=times, values=values)
        if values.dim() < 2:
            msg = f"`values` must have shape (*batch, N, O), received {tuple(values.shape)}. Unsqueeze the channel."
            raise ValueError(msg)
        if values.numel() == 0:
            msg = f"`values` must hold a series, a time and a channel at least, received shape {tuple(values.shape)}."
            raise ValueError(msg)
        observed = broadcast_mask(mask, values.shape).to(values.device).transpose(-1, -2)  # (*batch, O, N)
        try:
            rows = times.double().expand(values.shape[:-1]).unsqueeze(-2).expand(observed.shape)
        except RuntimeError as error:
            msg = (
                f"`times` must have shape (N,) or (*batch, N) = {tuple(values.shape[:-1])} to go with `values` "
                f"{tuple(values.shape)}, received {tuple(times.shape)}."
            )
            raise ValueError(msg) from error
        data = values.detach().double().transpose(-1, -2)
        for name, tensor in (("times", rows), ("values", data)):
            if not tensor[observed].isfinite().all():
                msg = f"`{name}` has NaN or infinite entries where `mask` is True. Set `mask` to False there."
                raise ValueError(msg)
        count = observed.sum(-1)
        if int(count.min()) < least:
            msg = (
                f"`mask` leaves a series and channel with {int(count.min())} valid observations; this baseline "
                f"needs at least {least} in each. Drop that series or channel."
            )
            raise ValueError(msg)

        order = (~observed).to(torch.uint8).argsort(dim=-1, stable=True)
        valid = observed.gather(-1, order)
        packed = rows.detach().gather(-1, order)
        packed = torch.where(valid, packed, packed.gather(-1, count.unsqueeze(-1) - 1))
        if (packed.diff(dim=-1) <= 0)[valid[..., 1:]].any():
            msg = "`times` must increase strictly at valid observations. Sort the series and merge repeated times."
            raise ValueError(msg)
        data = torch.where(valid, data.gather(-1, order), 0.0)
        mean = data.sum(-1, keepdim=True) / count.unsqueeze(-1)
        variance = (torch.where(valid, data - mean, 0.0) ** 2).sum(-1) / count
        floor = _RELATIVE_FLOOR**2 * torch.where(variance > 0, variance, 1.0)
        dtype = values.dtype if values.dtype.is_floating_point else torch.get_default_dtype()
        return PackedSeries(packed, data, valid, count, floor, dtype)

    def queries(self, times: Tensor) -> Tensor:
        """Query times as float64 rows.

        Args:
            times: ``(Q,)`` or ``(*batch, Q)``.

        Returns:
            ``(*batch, O, Q)``.

        Raises:
            TypeError: if `times` is no tensor of real numbers.
            ValueError: if `times` is not finite or does not broadcast to the fitted batch.
        """
        check_real(times=times)
        batch = self.times.shape[:-2]
        if not times.isfinite().all():
            msg = "`times` has NaN or infinite entries; a prediction needs finite times."
            raise ValueError(msg)
        try:
            rows = times.detach().double().expand(*batch, times.shape[-1])
        except (IndexError, RuntimeError) as error:
            msg = (
                f"`times` must have shape (Q,) or (*batch, Q) with batch {tuple(batch)}, received {tuple(times.shape)}."
            )
            raise ValueError(msg) from error
        return rows.unsqueeze(-2).expand(*batch, self.times.shape[-2], rows.shape[-1])

    def prediction(self, mean: Tensor, standard_deviation: Tensor) -> GaussianPrediction:
        """Rows ``(*batch, O, Q)`` as a prediction with time before channel, in the type of the fitted values."""
        return GaussianPrediction(
            mean.transpose(-1, -2).to(self.dtype), standard_deviation.transpose(-1, -2).to(self.dtype)
        )
