"""Observation times, masks and ends as a `TimeGrid` wants them, and what is said where they are not so."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._arguments import check_real, is_finite

__all__ = [
    "as_tensor",
    "as_times",
    "check_increasing",
    "check_inside",
    "check_mask",
    "check_max_step",
    "endpoint",
    "fill_invalid",
    "trailing_repeats",
]


def as_tensor(
    value: object, name: str, *, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Tensor:
    """A value as a tensor.

    Raises:
        TypeError: if it is none and has no numbers; the message names it.
    """
    if isinstance(value, Tensor):
        check_real(**{name: value})
    try:
        return torch.as_tensor(value, dtype=dtype, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        msg = f"`{name}` must be a tensor or numbers, received {type(value).__name__}: {error}."
        raise TypeError(msg) from error


def as_times(times: Tensor | Sequence[float]) -> Tensor:
    """Times as a floating-point tensor; whole numbers become the default float type."""
    times = as_tensor(times, "times")
    if times.is_complex() or times.dtype == torch.bool:
        msg = f"`times` must be real numbers, received {times.dtype}."
        raise TypeError(msg)
    if not times.is_floating_point():
        times = times.to(torch.get_default_dtype())
    if times.dim() == 0 or times.numel() == 0:
        msg = f"`times` must have shape (*batch, N) with N >= 1 and no empty batch, received {tuple(times.shape)}."
        raise ValueError(msg)
    return times


def check_max_step(max_step: object) -> None:
    """Raise ValueError unless a largest step is a positive finite number, or None."""
    if max_step is not None and not (is_finite(max_step) and max_step > 0):  # type: ignore[operator]
        msg = f"`max_step` must be a positive finite number, received {max_step!r}."
        raise ValueError(msg)


def check_mask(mask: Tensor | Sequence[bool], times: Tensor) -> Tensor:
    """The mask as a tensor; raise unless it has the shape of the times and a valid one in every series."""
    mask = as_tensor(mask, "mask", device=times.device)
    if mask.dtype != torch.bool or mask.shape != times.shape:
        msg = (
            f"`mask` must be a bool tensor of the shape of `times` {tuple(times.shape)} (True = valid time), received "
            f"{mask.dtype} {tuple(mask.shape)}. Missing channels go into the likelihood instead."
        )
        raise ValueError(msg)
    if not mask.any(-1).all():
        row = (~mask.any(-1)).nonzero()[0].tolist()
        msg = f"`mask` has no valid time in series {row}; drop the series or give it one observation."
        raise ValueError(msg)
    return mask


def fill_invalid(times: Tensor, mask: Tensor) -> Tensor:
    """Overwrite invalid times by the last valid one before them (leading ones by the first valid one)."""
    if not mask.all():
        position = torch.arange(times.shape[-1], device=times.device).expand(times.shape)
        source = torch.where(mask, position, torch.zeros_like(position)).cummax(-1).values
        source = torch.maximum(source, mask.to(torch.uint8).argmax(-1, keepdim=True))
        times = times.gather(-1, source)
    else:  # a copy all the same: a grid does not change with the tensor that it was made of
        times = times.clone(memory_format=torch.contiguous_format)
    if not torch.isfinite(times.detach()).all():
        where = (~torch.isfinite(times.detach())).nonzero()[0].tolist()
        msg = (
            f"`times` must be finite at valid entries; entry {where} is {times[tuple(where)].item()}. "
            "Pass `mask` (True = valid time) for padded entries."
        )
        raise ValueError(msg)
    return times


def trailing_repeats(times: Tensor) -> Tensor:
    """True where a time repeats the one before it and so do all later ones."""
    repeats = torch.zeros_like(times, dtype=torch.bool)
    repeats[..., 1:] = times.detach().diff(dim=-1) == 0
    return repeats.flip(-1).cumprod(-1).flip(-1).bool()


def check_increasing(times: Tensor, mask: Tensor) -> None:
    """Raise ValueError unless the valid times increase."""
    gaps = times.detach().diff(dim=-1)
    bad = (gaps < 0) | ((gaps == 0) & mask[..., 1:])
    # A leading masked entry is filled from the right, so the first valid entry repeats it and is no duplicate.
    bad = bad & mask[..., :-1].long().cumsum(-1).bool()
    if bad.any():
        where = bad.nonzero()[0].tolist()
        before, after = times[(*where,)].item(), times[(*where[:-1], where[-1] + 1)].item()
        kind = "unsorted" if after < before else "repeated"
        msg = (
            f"`times` must increase along the last axis, but they are {kind} at entries {where} and "
            f"{[*where[:-1], where[-1] + 1]}: {before:g}, {after:g}. Sort the observations, merge equal times, and "
            "pass `mask` for entries that are not observations."
        )
        raise ValueError(msg)


def endpoint(value: float | Tensor, name: str, knots: Tensor) -> Tensor:
    """Start or end of the grid, ``(*batch, 1)``, in the dtype of the knots."""
    end = as_tensor(value, name, dtype=knots.dtype, device=knots.device)
    try:
        end = end.expand(knots.shape[:-1])
    except RuntimeError as error:
        msg = (
            f"`{name}` must be a number or have the batch shape {tuple(knots.shape[:-1])} of `times`, "
            f"received {tuple(end.shape)}."
        )
        raise ValueError(msg) from error
    if not torch.isfinite(end.detach()).all():
        msg = f"`{name}` must be finite, received {value}."
        raise ValueError(msg)
    return end.unsqueeze(-1)


def check_inside(inside: Tensor, name: str, endpoint: Tensor, knots: Tensor) -> None:
    """Raise ValueError if observations lie outside the grid."""
    if not inside:
        low, high = float(knots.detach().min()), float(knots.detach().max())
        msg = (
            f"every observation must lie inside [start, end]; `{name}` is {endpoint.detach().flatten().tolist()[:4]} "
            f"but the observation times span [{low:g}, {high:g}]. Move `{name}` or drop the observations outside."
        )
        raise ValueError(msg)
