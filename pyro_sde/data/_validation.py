"""What this room demands of its arguments, each with a message that says what to do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..ops._arguments import is_finite

__all__ = [
    "Index",
    "check_numbers",
    "check_positive",
    "check_tensors",
    "check_times",
    "check_values",
    "indices",
]

Index = slice | Sequence[int] | Tensor


def check_tensors(times: Tensor, values: Tensor, mask: Tensor) -> None:
    """Raise unless kinds, shapes and devices of the three tensors fit together."""
    for name, tensor in (("times", times), ("values", values), ("mask", mask)):
        if not isinstance(tensor, Tensor):
            message = f"`{name}` must be a tensor, received {type(tensor).__name__}. Use torch.as_tensor."
            raise TypeError(message)
    if not (times.is_floating_point() and values.dtype == times.dtype):
        message = (
            "`times` and `values` must have the same floating dtype, "
            f"received {times.dtype} and {values.dtype}. Convert both, for example with .double()."
        )
        raise TypeError(message)
    if mask.dtype != torch.bool:
        message = f"`mask` must be a bool tensor, True = observed, received {mask.dtype}. Use mask.bool()."
        raise TypeError(message)
    if times.dim() != 2 or values.dim() != 3 or values.shape[:2] != times.shape or values.numel() == 0:
        message = (
            "`times` must have shape (B, N) and `values` (B, N, O), none of them 0, "
            f"received {tuple(times.shape)} and {tuple(values.shape)}. Add missing axes with unsqueeze."
        )
        raise ValueError(message)
    if mask.shape != values.shape:
        message = (
            f"`mask` must have the shape {tuple(values.shape)} of `values`, received {tuple(mask.shape)}. "
            "Use mask.unsqueeze(-1).expand_as(values) if whole times are missing."
        )
        raise ValueError(message)
    if not times.device == values.device == mask.device:
        message = (
            "`times`, `values` and `mask` must be on one device, "
            f"received {times.device}, {values.device} and {mask.device}."
        )
        raise ValueError(message)


def check_times(times: Tensor, valid: Tensor) -> None:
    """Raise unless times are finite and sorted, strictly where valid, and every series has a valid one."""
    if not valid.any(-1).all():
        series = int((~valid.any(-1)).nonzero()[0])
        message = f"`mask` must leave every series an observed entry; series {series} has none. Drop it."
        raise ValueError(message)
    if not times.isfinite().all():
        series, index = (~times.isfinite()).nonzero()[0].tolist()
        message = (
            f"`times` must be finite, received {times[series, index].item()} at series {series}, position "
            f"{index}. Pad a shorter series by repeating its last time, with `mask` False."
        )
        raise ValueError(message)
    # A valid time must lie after the last valid one before it, any other time not before its neighbour.
    before = torch.where(valid, times, -torch.inf).cummax(-1).values[:, :-1]
    wrong = (times[:, 1:] < times[:, :-1]) | (valid[:, 1:] & (times[:, 1:] <= before))
    if wrong.any():
        series, index = wrong.nonzero()[0].tolist()
        message = (
            "`times` must not decrease, and increase where observed; "
            f"series {series} has {times[series, index].item()} before {times[series, index + 1].item()} "
            f"at position {index + 1}. Sort the series, merge entries of one time, or use float64."
        )
        raise ValueError(message)


def check_values(values: Tensor, mask: Tensor) -> None:
    """Raise unless every observed value is finite."""
    wrong = mask & ~values.isfinite()
    if wrong.any():
        series, time, channel = wrong.nonzero()[0].tolist()
        message = (
            f"`values` must be finite where `mask` is True, received {values[series, time, channel].item()} "
            f"at series {series}, position {time}, channel {channel}. For gaps that are NaN use "
            "mask=~values.isnan()."
        )
        raise ValueError(message)


def indices(index: Index, size: int, name: str) -> Tensor:
    """Return the int64 CPU indices that `index`, the argument called `name`, means in a batch of `size`."""
    if isinstance(index, slice):
        chosen = torch.arange(size)[index]
    else:
        try:
            chosen = torch.as_tensor(index, device="cpu")
        except (RuntimeError, TypeError, ValueError):  # words, ragged lists, arbitrary objects
            chosen = torch.empty(0)  # refused below
        if chosen.dtype == torch.bool and chosen.shape == (size,):
            chosen = chosen.nonzero().flatten()
    if chosen.dim() != 1 or chosen.dtype == torch.bool or chosen.is_floating_point() or chosen.numel() == 0:
        message = (
            f"`{name}` must be a slice, integer indices or a bool tensor of shape ({size},), and not empty, "
            f"received {index!r}."
        )
        raise ValueError(message)
    if int(chosen.min()) < -size or int(chosen.max()) >= size:
        message = f"`{name}` must lie within the {size} series, received indices up to {int(chosen.max())}."
        raise ValueError(message)
    return chosen.long() % size


def check_positive(**numbers: float) -> None:
    """Raise unless every number is positive and finite."""
    for name, number in numbers.items():
        if not is_finite(number) or number <= 0:
            message = f"`{name}` must be positive and finite, received {number!r}."
            raise ValueError(message)


def check_numbers(name: str, numbers: Sequence[float], count: int, lowest: float = -math.inf) -> list[float]:
    """Return `numbers`, the argument called `name`, as a list of `count` finite numbers."""
    given = list(numbers) if isinstance(numbers, Iterable) else []
    if len(given) != count or not all(is_finite(value) and value >= lowest for value in given):
        bound = "" if lowest == -math.inf else f", each at least {lowest:g}"
        message = f"`{name}` must hold {count} finite number(s){bound}, received {numbers!r}."
        raise ValueError(message)
    return [float(value) for value in given]
