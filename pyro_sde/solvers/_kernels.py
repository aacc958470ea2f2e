"""Arithmetic of `compiled.py` as plain functions of arrays, in the part of Python that numba compiles.

Arrays are C-contiguous and of one floating type. Functions do not return them, since nothing counts references here
(`_jit.py`); one with a single row for all steps is read at ``min(k, len(array) - 1)``. Loops are written so that they
vectorise: innermost loops run over contiguous memory without calls of the mathematical library, and their number of
arrays is small enough for the compiler to check at run time that they do not overlap.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from ._elementary import activate, linearise, sigmoid

__all__ = ["ARITHMETIC", "CHUNK", "NARROW", "accumulate", "diagonal", "recursion", "simulate"]

Arrays: TypeAlias = tuple[np.ndarray, ...]

NARROW = 16  # outputs up to which a product is inner products, not a sum of rows: those are too short to vectorise
CHUNK = 512  # rows whose hidden units are computed at once: they stay in the first cache


# -------------------------------------------------------------------- products
def _add_product(x: np.ndarray, weight: np.ndarray, out: np.ndarray, rows: int) -> None:
    """Add ``x @ weight`` to `out`, row by row; with up to `NARROW` outputs the weight must come transposed."""
    inputs, outputs = len(x) // rows, len(out) // rows
    if outputs <= NARROW:
        for row in range(rows):
            _add_inner(x[row * inputs : (row + 1) * inputs], weight, out[row * outputs : (row + 1) * outputs])
        return
    fours = rows - rows % 4
    for row in range(0, fours, 4):
        _add_four_rows(x[row * inputs : (row + 4) * inputs], weight, out[row * outputs : (row + 4) * outputs])
    for row in range(fours, rows):
        _add_row(x[row * inputs : (row + 1) * inputs], weight, out[row * outputs : (row + 1) * outputs])


def _add_inner(x: np.ndarray, transposed: np.ndarray, out: np.ndarray) -> None:
    for o in range(len(out)):
        total, weights = out[o], transposed[o * len(x) : (o + 1) * len(x)]
        for i in range(len(x)):
            total += x[i] * weights[i]
        out[o] = total


def _add_row(x: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
    """Eight inputs at a time: an output is then loaded and stored once for eight products."""
    size, eights = len(out), len(x) - len(x) % 8
    for i in range(0, eights, 8):
        a0, a1, a2, a3, a4, a5, a6, a7 = x[i], x[i + 1], x[i + 2], x[i + 3], x[i + 4], x[i + 5], x[i + 6], x[i + 7]
        w0, w1, w2, w3 = (
            weight[i * size : (i + 1) * size],
            weight[(i + 1) * size : (i + 2) * size],
            weight[(i + 2) * size : (i + 3) * size],
            weight[(i + 3) * size : (i + 4) * size],
        )
        w4, w5, w6, w7 = (
            weight[(i + 4) * size : (i + 5) * size],
            weight[(i + 5) * size : (i + 6) * size],
            weight[(i + 6) * size : (i + 7) * size],
            weight[(i + 7) * size : (i + 8) * size],
        )
        for o in range(size):
            first = a0 * w0[o] + a1 * w1[o] + a2 * w2[o] + a3 * w3[o]
            out[o] += first + a4 * w4[o] + a5 * w5[o] + a6 * w6[o] + a7 * w7[o]
    for i in range(eights, len(x)):
        a0, w0 = x[i], weight[i * size : (i + 1) * size]
        for o in range(size):
            out[o] += a0 * w0[o]


def _add_four_rows(x: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
    """Four rows and four inputs at a time: a weight is loaded once for four products, an output too."""
    inputs, size = len(x) // 4, len(out) // 4
    fours = inputs - inputs % 4
    x0, x1, x2, x3 = x[:inputs], x[inputs : 2 * inputs], x[2 * inputs : 3 * inputs], x[3 * inputs :]
    y0, y1, y2, y3 = out[:size], out[size : 2 * size], out[2 * size : 3 * size], out[3 * size :]
    for i in range(0, fours, 4):
        w0, w1, w2, w3 = (
            weight[i * size : (i + 1) * size],
            weight[(i + 1) * size : (i + 2) * size],
            weight[(i + 2) * size : (i + 3) * size],
            weight[(i + 3) * size : (i + 4) * size],
        )
        a0, a1, a2, a3 = x0[i], x0[i + 1], x0[i + 2], x0[i + 3]
        b0, b1, b2, b3 = x1[i], x1[i + 1], x1[i + 2], x1[i + 3]
        c0, c1, c2, c3 = x2[i], x2[i + 1], x2[i + 2], x2[i + 3]
        d0, d1, d2, d3 = x3[i], x3[i + 1], x3[i + 2], x3[i + 3]
        for o in range(size):
            v0, v1, v2, v3 = w0[o], w1[o], w2[o], w3[o]
            y0[o] += a0 * v0 + a1 * v1 + a2 * v2 + a3 * v3
            y1[o] += b0 * v0 + b1 * v1 + b2 * v2 + b3 * v3
            y2[o] += c0 * v0 + c1 * v1 + c2 * v2 + c3 * v3
            y3[o] += d0 * v0 + d1 * v1 + d2 * v2 + d3 * v3
    for i in range(fours, inputs):
        a0, b0, c0, d0, w0 = x0[i], x1[i], x2[i], x3[i], weight[i * size : (i + 1) * size]
        for o in range(size):
            y0[o] += a0 * w0[o]
            y1[o] += b0 * w0[o]
            y2[o] += c0 * w0[o]
            y3[o] += d0 * w0[o]


# -------------------------------------------------------------------- the path
def simulate(
    tables: Arrays, parameters: np.ndarray, shifts: Arrays, path: Arrays, values: Arrays, work: Arrays
) -> None:
    """Fill states, values and pre-activations. All arrays are described in `compiled.py`."""
    flags, sizes, bounds = tables
    increments, steps, states = path
    rows = len(states[0]) // sizes[0, 0]
    width = sizes[0, 0]
    for k in range(len(increments)):
        z, following = states[k], states[k + 1]
        for net in range(3):
            if flags[net, 0] >= 0:
                value = values[net]
                out = value[min(k, len(value) - 1)]
                _evaluate(k, flags[net], sizes[net], parameters, shifts[net], z, out, work)
                _finish(flags[net], bounds[net], parameters, z, out, rows)
        drifts, diffusions, controls = values
        f, sigma = drifts[min(k, len(drifts) - 1)], diffusions[min(k, len(diffusions) - 1)]
        u = controls[min(k, len(controls) - 1)]
        for row in range(rows):
            h = steps[k, row if steps.shape[1] > 1 else 0]
            for i in range(row * width, (row + 1) * width):
                following[i] = z[i] + f[i] * h + sigma[i] * (increments[k, i] + u[i] * h)


def _fill(out: np.ndarray, given: np.ndarray) -> None:
    """Copy `given`, one row or all, to every row of `out`."""
    size = len(given)
    for i in range(len(out) // size):
        to = out[i * size : (i + 1) * size]
        for j in range(size):
            to[j] = given[j]


def _evaluate(
    k: int,
    flags: np.ndarray,
    sizes: np.ndarray,
    parameters: np.ndarray,
    shifts: np.ndarray,
    z: np.ndarray,
    out: np.ndarray,
    work: Arrays,
) -> None:
    """Layers of a network at the states of step k, for all rows."""
    shift = shifts[min(k, len(shifts) - 1)]
    depth, code, blocked, begin, place, steps = flags[0], flags[1], flags[2], flags[3], flags[4], flags[5]
    hidden, activated = work
    rows = len(z) // sizes[0]
    x, y = z, out
    if depth == 0:
        _fill(out, shift)
    for layer in range(depth):
        inputs, outputs = sizes[layer], sizes[layer + 1]
        if layer == depth - 1:
            y = out
        else:
            start = place + k % steps * rows * outputs
            y = hidden[start : start + rows * outputs]
            place += steps * rows * outputs
        if layer:
            _fill(y, parameters[begin : begin + outputs])
            begin += outputs
        else:
            _fill(y, shift)
        if not blocked:
            _add_product(x, parameters[begin : begin + inputs * outputs], y, rows)
            begin += inputs * outputs
        elif layer:
            _add_blocks(x, parameters[begin : begin + inputs], y, rows)
        else:
            _spread(x, parameters[begin : begin + outputs], y, rows)
            begin += outputs
        if layer < depth - 1:
            x = activated[: len(y)]
            activate(code, y, x)


def _spread(z: np.ndarray, slope: np.ndarray, out: np.ndarray, rows: int) -> None:
    """First layer of networks of one input each: add ``slope * z_i`` to the hidden units of every i."""
    width = len(z) // rows
    size = len(slope) // width
    for i in range(len(z)):
        to, slopes, value = out[i * size : (i + 1) * size], slope[(i % width) * size : (i % width + 1) * size], z[i]
        for unit in range(size):
            to[unit] += slopes[unit] * value


def _add_blocks(x: np.ndarray, weight: np.ndarray, out: np.ndarray, rows: int) -> None:
    """Last layer of networks of one output each: add the inner product with each block of hidden units."""
    size, width = len(x) // len(out), len(out) // rows
    for i in range(len(out)):
        units, weights, total = (
            x[i * size : (i + 1) * size],
            weight[(i % width) * size : (i % width + 1) * size],
            out[i],
        )
        for unit in range(size):
            total += weights[unit] * units[unit]
        out[i] = total


def _finish(
    flags: np.ndarray, bounds: np.ndarray, parameters: np.ndarray, z: np.ndarray, out: np.ndarray, rows: int
) -> None:
    """Subtract the rate times the state, and apply the bounds."""
    rates, begin = flags[6], flags[7]
    if rates:
        size = rates * (len(z) // rows)
        for i in range(len(z) // size):
            to, states, rate = (
                out[i * size : (i + 1) * size],
                z[i * size : (i + 1) * size],
                parameters[begin : begin + size],
            )
            for j in range(size):
                to[j] -= rate[j] * states[j]
    if bounds[1] != 0:
        number = z.dtype.type
        low, span = number(bounds[0]), number(bounds[1])
        for i in range(len(out)):
            out[i] = low + span * sigmoid(out[i])


# -------------------------------------------------------------------- the adjoint
def recursion(
    tables: Arrays, weights: np.ndarray, path: Arrays, factors: Arrays, slopes: Arrays, deltas: np.ndarray
) -> None:
    """Fill the adjoints and the cotangents of all layers, backwards. All arrays are described in `compiled.py`."""
    flags, sizes = tables
    gain, source, adjoints = path
    count, rows = len(gain), flags[3, 0]
    most = len(slopes) // 3
    for k in range(count - 1, -1, -1):
        after, before, gains, sources = adjoints[k + 1], adjoints[k], gain[k], source[k]
        for i in range(len(before)):
            before[i] = sources[i] + after[i] * gains[i]
        for term in range(3):
            depth, begin, place = flags[term, 0], flags[term, 1], flags[term, 2]
            x = before
            if depth > 0:
                x = deltas[place + k * len(after) : place + (k + 1) * len(after)]
                place += count * len(after)
                extras = factors[2 * term + 1]
                _cotangent(factors[2 * term][k], extras[min(k, len(extras) - 1)], after, x)
            for layer in range(depth - 1, -1, -1):
                inputs, outputs = sizes[term, layer], sizes[term, layer + 1]
                weight = weights[begin : begin + inputs * outputs]
                begin += inputs * outputs
                if layer == 0:
                    _add_product(x, weight, before, rows)
                else:
                    size = rows * inputs
                    y = deltas[place + k * size : place + (k + 1) * size]
                    place += count * size
                    for i in range(size):
                        y[i] = 0
                    _add_product(x, weight, y, rows)
                    slope = slopes[term * most + layer - 1][k]
                    for i in range(size):
                        y[i] *= slope[i]
                    x = y


def _cotangent(factor: np.ndarray, extra: np.ndarray, after: np.ndarray, out: np.ndarray) -> None:
    """Cotangent of a network's value at a step."""
    for i in range(len(out)):
        out[i] = extra[i % len(extra)] + after[i] * factor[i]


# -------------------------------------------------------------------- networks of one input and one output each
def diagonal(code: int, blocks: np.ndarray, states: np.ndarray, out: np.ndarray, work: np.ndarray) -> None:
    """Derivatives (N, D) of D networks, ``sum_h w_h a'(u_h z + b_h) u_h``, at the states (N, D).

    Args:
        code: of the activation.
        blocks: rows u, b and w, the D H hidden units of all networks in each.
        states: (N, D).
        out: (N, D).
        work: (5, CHUNK).
    """
    rows, width = states.shape
    size = blocks.shape[1] // width
    for start in range(0, rows, work.shape[1]):
        count = min(work.shape[1], rows - start)
        z, total, x, value, slope = work[0, :count], work[1, :count], work[2, :count], work[3, :count], work[4, :count]
        for i in range(width):
            for row in range(count):
                z[row] = states[start + row, i]
                total[row] = 0
            for unit in range(i * size, (i + 1) * size):
                u, b, factor = blocks[0, unit], blocks[1, unit], blocks[2, unit] * blocks[0, unit]
                for row in range(count):
                    x[row] = u * z[row] + b
                linearise(code, x, value, slope)
                for row in range(count):
                    total[row] += factor * slope[row]
            for row in range(count):
                out[start + row, i] = total[row]


def accumulate(
    code: int, blocks: np.ndarray, states: np.ndarray, deltas: np.ndarray, out: np.ndarray, work: np.ndarray
) -> None:
    """Gradients of u, b and w, rows of `out` like those of `blocks`, from cotangents (N, D) of the D outputs."""
    rows, width = states.shape
    size = blocks.shape[1] // width
    for j in range(3):
        for unit in range(blocks.shape[1]):
            out[j, unit] = 0
    for start in range(0, rows, work.shape[1]):
        count = min(work.shape[1], rows - start)
        z, delta, x, value, slope = work[0, :count], work[1, :count], work[2, :count], work[3, :count], work[4, :count]
        for i in range(width):
            for row in range(count):
                z[row] = states[start + row, i]
                delta[row] = deltas[start + row, i]
            for unit in range(i * size, (i + 1) * size):
                u, b = blocks[0, unit], blocks[1, unit]
                for row in range(count):
                    x[row] = u * z[row] + b
                linearise(code, x, value, slope)
                _add_sums(z, delta, value, slope, blocks[2, unit], out[:, unit])


def _add_sums(
    z: np.ndarray, delta: np.ndarray, value: np.ndarray, slope: np.ndarray, weight: np.floating, out: np.ndarray
) -> None:
    """What rows give to the gradients of one hidden unit."""
    for_first = for_shift = for_second = z.dtype.type(0)
    for row in range(len(z)):
        moved = delta[row] * slope[row]
        for_first += moved * z[row]
        for_shift += moved
        for_second += delta[row] * value[row]
    out[0] += weight * for_first
    out[1] += weight * for_shift
    out[2] += for_second


ARITHMETIC = (
    activate,
    linearise,
    _add_product,
    _add_inner,
    _add_row,
    _add_four_rows,
    _fill,
    _evaluate,
    _spread,
    _add_blocks,
    _finish,
    _cotangent,
    _add_sums,
)
