"""Exponentials, activations and their derivatives for `_kernels.py`: loops over them vectorise, those of libm do not.

Plain functions of numbers and arrays, in the part of Python that numba compiles. Errors are a few units in the last
place of float32 or float64; not-a-numbers stay what they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = [
    "BY_TYPE",
    "ELEMENTARY",
    "SLOW",
    "activate",
    "artanh",
    "artanh32",
    "artanh64",
    "expm1",
    "linearise",
    "reduced",
    "reduced32",
    "reduced64",
    "series",
    "series32",
    "series64",
    "sigmoid",
    "softplus",
    "tanh",
]

SLOW = 5  # codes from here on have no vectorised form, and no derivative here


# -------------------------------------------------------------------- by type: a constant or a degree depends on it
def reduced32(x: np.float32) -> tuple[np.float32, np.float32]:
    """Remainder r and power 2**n of x = n log 2 + r for float32; the power is 0 or infinite where e**x is."""
    if x < np.float32(-88.0):
        x = np.float32(-88.0)
    if x > np.float32(89.0):
        x = np.float32(89.0)
    shifted = np.float32(x * np.float32(1.4426950408889634) + np.float32(12582912.0))  # 1.5 * 2**23: n in the last bits
    n = shifted - np.float32(12582912.0)
    r = (x - n * np.float32(0.693145751953125)) - n * np.float32(1.42860682030941723212e-6)
    return r, np.int32((shifted.view(np.int32) + np.int32(127)) << np.int32(23)).view(np.float32)


def reduced64(x: np.float64) -> tuple[np.float64, np.float64]:
    """As `reduced32`, for float64."""
    if x < -709.0:
        x = np.float64(-709.0)
    if x > 710.0:
        x = np.float64(710.0)
    shifted = np.float64(x * 1.4426950408889634 + 6755399441055744.0)  # 1.5 * 2**52
    n = shifted - 6755399441055744.0
    r = (x - n * 0.693145751953125) - n * 1.42860682030941723212e-6
    return r, np.int64((shifted.view(np.int64) + np.int64(1023)) << np.int64(52)).view(np.float64)


def reduced(x: np.floating) -> tuple[np.floating, np.floating]:
    """`reduced32` or `reduced64`: compiled code calls the one for its type instead."""
    return reduced32(np.float32(x)) if x.itemsize == 4 else reduced64(np.float64(x))


def series32(r: np.float32) -> np.float32:
    """e**r - 1 for ``|r| <= log(2) / 2``, Taylor's sum to the last digit of float32."""
    q = np.float32(1 / 5040)
    q = q * r + np.float32(1 / 720)
    q = q * r + np.float32(1 / 120)
    q = q * r + np.float32(1 / 24)
    q = q * r + np.float32(1 / 6)
    q = q * r + np.float32(1 / 2)
    q = q * r + np.float32(1)
    return q * r


def series64(r: np.float64) -> np.float64:
    """As `series32`, for float64."""
    q = np.float64(1 / 6227020800)
    q = q * r + 1 / 479001600
    q = q * r + 1 / 39916800
    q = q * r + 1 / 3628800
    q = q * r + 1 / 362880
    q = q * r + 1 / 40320
    q = q * r + 1 / 5040
    q = q * r + 1 / 720
    q = q * r + 1 / 120
    q = q * r + 1 / 24
    q = q * r + 1 / 6
    q = q * r + 1 / 2
    q = q * r + 1.0
    return q * r


def series(r: np.floating) -> np.floating:
    """`series32` or `series64`, as with `reduced`."""
    return series32(np.float32(r)) if r.itemsize == 4 else series64(np.float64(r))


def artanh32(s: np.float32) -> np.float32:
    """Inverse hyperbolic tangent for ``0 <= s <= 1/3``, Taylor's sum to the last digit of float32."""
    y = s * s
    q = np.float32(1 / 15)
    q = q * y + np.float32(1 / 13)
    q = q * y + np.float32(1 / 11)
    q = q * y + np.float32(1 / 9)
    q = q * y + np.float32(1 / 7)
    q = q * y + np.float32(1 / 5)
    q = q * y + np.float32(1 / 3)
    return s + s * (q * y)


def artanh64(s: np.float64) -> np.float64:
    """As `artanh32`, for float64."""
    y = s * s
    q = np.float64(1 / 31)
    q = q * y + 1 / 29
    q = q * y + 1 / 27
    q = q * y + 1 / 25
    q = q * y + 1 / 23
    q = q * y + 1 / 21
    q = q * y + 1 / 19
    q = q * y + 1 / 17
    q = q * y + 1 / 15
    q = q * y + 1 / 13
    q = q * y + 1 / 11
    q = q * y + 1 / 9
    q = q * y + 1 / 7
    q = q * y + 1 / 5
    q = q * y + 1 / 3
    return s + s * (q * y)


def artanh(s: np.floating) -> np.floating:
    """`artanh32` or `artanh64`, as with `reduced`."""
    return artanh32(np.float32(s)) if s.itemsize == 4 else artanh64(np.float64(s))


# -------------------------------------------------------------------- numbers
def sigmoid(x: np.floating) -> np.floating:
    """1 / (1 + e**-x)."""
    one = type(x)(1)
    r, power = reduced(-x)
    return one / (one + power * (one + series(r)))


def expm1(x: np.floating) -> np.floating:
    """e**x - 1."""
    r, power = reduced(x)
    return power * series(r) + (power - type(x)(1))


def tanh(x: np.floating) -> np.floating:
    """Hyperbolic tangent."""
    number = type(x)
    size = abs(x)
    if size > number(20):  # where it is 1 in float64
        size = number(20)
    grown = expm1(size + size)
    value = grown / (grown + number(2))
    return -value if x < number(0) else value


def softplus(x: np.floating) -> tuple[np.floating, np.floating]:
    """log(1 + e**x), above 20 x as in torch, and its derivative."""
    number = type(x)
    one = number(1)
    r, power = reduced(-abs(x))
    small = power * (one + series(r))
    value = number(2) * artanh(small / (number(2) + small))  # log(1 + small)
    above, numerator = (x, one) if x > number(0) else (number(0), small)
    value, slope = above + value, numerator / (one + small)
    return (x, one) if x > number(20) else (value, slope)


# -------------------------------------------------------------------- arrays
def activate(code: int, x: np.ndarray, out: np.ndarray) -> None:
    """Activation of all entries; the codes are those of `_jit.py`."""
    number = x.dtype.type
    zero, one = number(0), number(1)
    if code == 0:
        for i in range(len(x)):
            out[i] = x[i] * sigmoid(x[i])
    elif code == 1:
        for i in range(len(x)):
            out[i] = tanh(x[i])
    elif code == 2:
        for i in range(len(x)):
            out[i] = zero if x[i] < zero else x[i]
    elif code == 3:
        for i in range(len(x)):
            out[i] = x[i] if x[i] > zero else expm1(x[i])
    elif code == 4:
        for i in range(len(x)):
            out[i] = softplus(x[i])[0]
    else:
        for i in range(len(x)):
            out[i] = number(0.5) * x[i] * (one + number(math.erf(x[i] * number(0.7071067811865476))))


def linearise(code: int, x: np.ndarray, out: np.ndarray, slope: np.ndarray) -> None:
    """Activation of all entries, and its derivative, for codes below `SLOW`."""
    number = x.dtype.type
    zero, one = number(0), number(1)
    if code == 0:
        for i in range(len(x)):
            gate = sigmoid(x[i])
            value = x[i] * gate
            out[i] = value
            slope[i] = gate + value * (one - gate)
    elif code == 1:
        for i in range(len(x)):
            value = tanh(x[i])
            out[i] = value
            slope[i] = one - value * value
    elif code == 2:
        for i in range(len(x)):
            out[i] = zero if x[i] < zero else x[i]
            slope[i] = zero if x[i] <= zero else one
    elif code == 3:
        for i in range(len(x)):
            value = expm1(x[i])
            out[i] = x[i] if x[i] > zero else value
            slope[i] = one if x[i] > zero else value + one
    else:
        for i in range(len(x)):
            out[i], slope[i] = softplus(x[i])


BY_TYPE: dict[Callable[..., Any], tuple[Callable[..., Any], Callable[..., Any]]] = {
    reduced: (reduced32, reduced64),
    series: (series32, series64),
    artanh: (artanh32, artanh64),
}
ELEMENTARY = (sigmoid, expm1, tanh, softplus)
