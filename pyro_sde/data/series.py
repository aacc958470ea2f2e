"""The record that every data set, shipped, downloaded or simulated, comes as."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..ops._arguments import check_whole
from ._validation import Index, check_tensors, check_times, check_values, indices

__all__ = ["TimeSeries"]

# A channel whose deviation is rounding noise must not be blown up to 1 (mocap35 has four such channels).
_CONSTANT = 1e-7


@dataclass(frozen=True, eq=False, repr=False)
class TimeSeries:
    """A batch of time series with missing entries, its splits and where it came from.

    Immutable; methods return new records. Whatever `values` held at unobserved entries becomes NaN, so that
    using an entry that was never observed shows; `filled` gives finite values for a masked likelihood or an
    encoder. Shorter series are padded by repeating their last time with ``mask`` False. To add splits, use
    ``dataclasses.replace(series, splits={"train": slice(0, 80)})``. Does not hold inputs, labels, or splits
    over time.

    Args:
        name: what the catalogue calls it.
        times: ``(B, N)`` in `time_unit`; never decreasing, increasing where any channel is observed.
        values: ``(B, N, O)``, same dtype and device as `times`.
        mask: bool ``(B, N, O)``, True = observed. ``~values.isnan()`` if gaps are NaN.
        splits: name -> slice, indices or bool ``(B,)`` over series; kept as int64 indices.
        channels: one name per channel with its unit; ``channel_0`` and so on if empty.
        time_unit: unit of `times`, for example "year"; empty if it has none.
        source: where the numbers come from.
        licence: under which terms.
        sha256: checksum of the file that was read; empty for simulated data.
        description: what it is, and what one could trip over.

    Shape:
        times: ``(B, N)`` · values, mask: ``(B, N, O)``.

    Raises:
        TypeError: if a tensor is not one, or has the wrong kind of dtype.
        ValueError: if shapes disagree, times are not sorted, an observed value is not finite, a series has no
            observed entry, or a split does not fit.

    Example:
        >>> values = torch.tensor([[[1.0], [float("nan")], [4.0]]])
        >>> series = TimeSeries("mine", torch.tensor([[0.0, 0.5, 2.0]]), values, ~values.isnan())
        >>> series.valid_times
        tensor([[ True, False,  True]])
    """

    name: str
    times: Tensor
    values: Tensor
    mask: Tensor
    splits: Mapping[str, Index] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    time_unit: str = ""
    source: str = ""
    licence: str = ""
    sha256: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        check_tensors(self.times, self.values, self.mask)
        check_times(self.times, self.mask.any(-1))
        check_values(self.values, self.mask)
        num_series, _, num_channels = self.values.shape
        channels = tuple(self.channels) or tuple(f"channel_{i}" for i in range(num_channels))
        if len(channels) != num_channels:
            message = f"`channels` must hold a name for each of {num_channels} channels, received {channels}."
            raise ValueError(message)
        splits = {name: indices(index, num_series, f"splits[{name!r}]") for name, index in self.splits.items()}
        # The record is frozen for its users; this is still its construction.
        object.__setattr__(self, "values", torch.where(self.mask, self.values, torch.nan))
        object.__setattr__(self, "channels", channels)
        object.__setattr__(self, "splits", splits)

    def __repr__(self) -> str:
        num_series, num_times, num_channels = self.values.shape
        parts = [
            f"{self.name!r}",
            f"series={num_series}",
            f"times={num_times}",
            f"channels={num_channels}",
            f"observed={100 * self.mask.double().mean().item():.1f}%",
        ]
        if self.splits:
            sizes = ", ".join(f"{name!r}: {len(self._split_indices(name))}" for name in self.splits)
            parts.append(f"splits={{{sizes}}}")
        return f"TimeSeries({', '.join(parts)})"

    def __len__(self) -> int:
        return self.values.shape[0]

    @property
    def valid_times(self) -> Tensor:
        """Times at which any channel is observed, bool ``(B, N)``: the mask of a `TimeGrid`."""
        return self.mask.any(-1)

    def filled(self, value: float = 0.0) -> Tensor:
        """Values with `value` where unobserved, ``(B, N, O)``: finite, as a masked log-density needs it."""
        return torch.where(self.mask, self.values, value)

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> TimeSeries:
        """Return the record with times and values in `dtype`, and all tensors on `device`.

        Calendar years in float32 are exact to an hour only: take times relative to a start first (`windows`).

        Raises:
            ValueError: if two times become equal in `dtype`.
        """
        return replace(
            self,
            times=self.times.to(device=device, dtype=dtype),
            values=self.values.to(device=device, dtype=dtype),
            mask=self.mask.to(device=device),
        )

    def select(self, index: Index) -> TimeSeries:
        """Return the record of some of the series, without splits (their indices would no longer fit).

        Args:
            index: slice, indices, or bool ``(B,)``, over series.

        Raises:
            ValueError: if it is none of these, out of range or selects nothing.
        """
        chosen = indices(index, len(self), "index").to(self.times.device)
        return replace(self, times=self.times[chosen], values=self.values[chosen], mask=self.mask[chosen], splits={})

    def split(self, name: str) -> TimeSeries:
        """Return the series of split `name` as a record called ``"<record>/<split>"``.

        Raises:
            ValueError: if there is no such split; the message lists those there are.
        """
        if name not in self.splits:
            known = ", ".join(map(repr, self.splits)) or "none"
            message = (
                f"`name` must be a split of {self.name!r} ({known}), received {name!r}. "
                "Its `description` says which parts its file has."
            )
            raise ValueError(message)
        return replace(self.select(self._split_indices(name)), name=f"{self.name}/{name}")

    def windows(self, length: int, stride: int | None = None, *, relative: bool = True) -> TimeSeries:
        """Cut every series into windows of `length` neighbouring times, laid along the batch.

        Windows start at every `stride`-th time; a rest shorter than `length` and windows without an observed
        entry are left out. A window belongs to the splits of its series.

        Args:
            length: times per window, between 1 and N.
            stride: times between the starts of windows, ``>= 1``; `length` (no overlap) if None.
            relative: subtract from the times the first one of their window, rather than keep them.

        Raises:
            TypeError: if one of them is no whole number.
            ValueError: if `length` or `stride` is out of range.

        Example:
            >>> times = torch.arange(5.0).unsqueeze(0)
            >>> series = TimeSeries("mine", times, times[..., None], torch.ones(1, 5, 1, dtype=torch.bool))
            >>> series.windows(3, stride=2).times
            tensor([[0., 1., 2.],
                    [0., 1., 2.]])
        """
        num_times = self.times.shape[1]
        stride = length if stride is None else stride
        check_whole(length=length, stride=stride)
        if not 1 <= length <= num_times:
            message = f"`length` must be between 1 and the number of times {num_times}, received {length}."
            raise ValueError(message)
        if stride < 1:
            message = f"`stride` must be at least 1, received {stride}."
            raise ValueError(message)
        times = self.times.unfold(1, length, stride)  # (B, W, L)
        values = self.values.unfold(1, length, stride).transpose(-1, -2)  # (B, W, O, L) -> (B, W, L, O)
        mask = self.mask.unfold(1, length, stride).transpose(-1, -2)
        if relative:
            times = times - times[..., :1]
        kept = mask.any(-1).any(-1)  # (B, W)
        owner = kept.nonzero()[:, 0].cpu()  # the series that each kept window comes from
        splits = {name: torch.isin(owner, self._split_indices(name)) for name in self.splits}
        return replace(
            self,
            times=times[kept],
            values=values[kept],
            mask=mask[kept],
            splits={name: inside for name, inside in splits.items() if inside.any()},
        )

    def standardise(self, split: str | None = None) -> tuple[TimeSeries, Tensor, Tensor]:
        """Shift and scale every channel to mean 0 and standard deviation 1 over its observed entries.

        Constant channels (deviation below 1e-7 of the root mean square) get scale 1. Undo with
        ``values * scale + mean``; a log-density of standardised values exceeds that of the values by
        ``log(scale)`` per observed entry.

        Args:
            split: take mean and deviation from this split only, so that nothing of the others leaks in; from
                all series if None.

        Returns:
            The record, the mean ``(O,)`` and the scale ``(O,)``.

        Raises:
            ValueError: if a channel has no observed entry, or there is no such split.
        """
        sample = self if split is None else self.split(split)
        count = sample.mask.sum((0, 1))
        if (count == 0).any():
            empty = [self.channels[i] for i in (count == 0).nonzero().flatten().tolist()]
            message = f"`split` must leave observed entries in every channel; channels without one: {empty}."
            raise ValueError(message)
        observed = sample.filled().double()  # float32 sums over long series lose digits
        mean = observed.sum((0, 1)) / count
        deviation = torch.where(sample.mask, observed - mean, 0.0).square().sum((0, 1)).div(count).sqrt()
        size = observed.square().sum((0, 1)).div(count).sqrt()
        scale = torch.where(deviation > _CONSTANT * size, deviation, 1.0)
        mean, scale = mean.to(self.values), scale.to(self.values)
        return replace(self, values=(self.values - mean) / scale), mean, scale

    def _split_indices(self, name: str) -> Tensor:
        return indices(self.splits[name], len(self), f"splits[{name!r}]")
