"""Checks of what kind of tensors and numbers arguments are.

Only `is_finite` looks at an entry, and so waits for the device of a number that is a tensor.
"""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor

__all__ = [
    "check_counts",
    "check_floating",
    "check_numbers",
    "check_numeric",
    "check_observed",
    "check_real",
    "check_tensors",
    "check_whole",
    "is_finite",
    "is_number",
]


def check_tensors(**values: object) -> None:
    """Raise TypeError, naming the argument, unless every value is a tensor."""
    for name, value in values.items():
        if not isinstance(value, Tensor):
            _refuse(name, "a tensor", value)


def check_real(**values: object) -> None:
    """Raise TypeError, naming the argument, unless every value is a tensor of real numbers, whole ones included."""
    for name, value in values.items():
        if not isinstance(value, Tensor) or value.is_complex():
            _refuse(name, "a tensor of real numbers", value)


def check_floating(**values: object) -> None:
    """Raise TypeError, naming the argument, unless every value is a tensor of floating-point numbers."""
    for name, value in values.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            _refuse(name, "a floating-point tensor", value)


def check_numbers(**values: object) -> None:
    """Raise TypeError, naming the argument, unless every value is one real number, of Python or in a tensor."""
    for name, value in values.items():
        if not is_number(value):
            _refuse(name, "a number", value)


def check_numeric(**values: object) -> None:
    """Raise TypeError, naming the argument, unless every value is a real number or a tensor of real numbers."""
    for name, value in values.items():
        if not isinstance(value, Real) and (not isinstance(value, Tensor) or value.is_complex()):
            _refuse(name, "a number or a tensor of real numbers", value)


def check_observed(mask: Tensor, values: Tensor) -> None:
    """Raise unless a mask is a bool tensor with the shape of the values ``(*batch, N, O)``, or ``(*batch, N)``.

    Raises:
        TypeError: if it is no tensor.
        ValueError: if it has another type or shape.
    """
    check_tensors(mask=mask)
    if mask.dtype != torch.bool or mask.shape not in (values.shape, values.shape[:-1]):
        msg = (
            f"`mask` must be a bool tensor (True = observed) of shape {tuple(values.shape)} or "
            f"{tuple(values.shape[:-1])}, received {mask.dtype} {tuple(mask.shape)}."
        )
        raise ValueError(msg)


def check_whole(**values: object) -> None:
    """Raise TypeError, naming the argument, unless every value is a whole number of Python's kind or NumPy's."""
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool):
            msg = f"`{name}` must be a whole number, received {value!r}."
            raise TypeError(msg)


def check_counts(**values: int) -> None:
    """Raise, naming the argument, unless every value is a whole number of at least 1.

    Raises:
        TypeError: if a value is no whole number.
        ValueError: if it is less than 1.
    """
    check_whole(**values)
    for name, value in values.items():
        if value < 1:
            msg = f"`{name}` must be at least 1, received {value}."
            raise ValueError(msg)


def is_finite(value: object) -> bool:
    """Whether a value is one finite real number, of Python or in a tensor."""
    if isinstance(value, Tensor):  # one that requires a gradient warns when it becomes a float
        return is_number(value) and bool(value.isfinite())
    return isinstance(value, Real) and math.isfinite(value)


def is_number(value: object) -> bool:
    """Whether a value is one real number, of Python or in a tensor."""
    return isinstance(value, Real) or (isinstance(value, Tensor) and value.dim() == 0 and not value.is_complex())


def _refuse(name: str, expected: str, value: object) -> None:
    kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
    msg = f"`{name}` must be {expected}, received {kind}."
    raise TypeError(msg)
