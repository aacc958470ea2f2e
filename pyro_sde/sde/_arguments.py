"""Checks of the numbers and tensors that an SDE is made of."""

from __future__ import annotations

import math
from numbers import Integral, Real

from ..ops._arguments import check_numeric

__all__ = ["check_coefficients", "is_count"]


def check_coefficients(**values: object) -> None:
    """Raise unless every value is a finite real number or a tensor of real numbers.

    Entries of tensors are not looked at: that would wait for the device, and a path that they spoil says so itself.

    Raises:
        TypeError: if a value is of another kind; the message names it.
        ValueError: if a number is not finite.
    """
    check_numeric(**values)
    for name, value in values.items():
        if isinstance(value, Real) and not math.isfinite(value):
            msg = f"`{name}` must be finite, received {value}."
            raise ValueError(msg)


def is_count(value: object, least: int) -> bool:
    """Whether a value is a whole number of at least `least`."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least
