"""The recursions of a Gaussian chain compiled by numba, with hand-written adjoints: one core, no graph per step.

numba is optional (extra ``fast``) and imported on first use.

A Gaussian state is one matrix of D + 1 rows: the covariance, and below it the mean. Observations have unit noise and
are taken one scalar at a time, so that nothing is inverted: the innovation variance is ``1 + h P h' >= 1``.

The same pair of kernels runs the backward information recursion, which is dual to the filter: information in the
place of the covariance, columns of the noise factor in the place of observed rows, transposed transitions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

__all__ = ["Array", "Arrays", "available", "kernel"]

Array: TypeAlias = "np.ndarray[Any, Any]"
Arrays: TypeAlias = tuple[Array, ...]

_V, _M, _T, _Q = "float64[:,:]", "float64[:,:,:]", "float64[:,:,:,:]", "float64[:]"
# x0, transition, offset, noise, shift | rows, values | adjoints of the same, of the states, of the evidence
_CHAIN = f"Tuple(({_M},{_T},{_M},{_T},{_M}))"
_OBSERVED = f"Tuple(({_T},{_M}))"
_SIGNATURES = {
    "filter_forward": f"void({_CHAIN},{_OBSERVED},{_T},{_T},{_Q})",
    "filter_adjoint": f"void({_CHAIN},{_OBSERVED},{_T},Tuple(({_T},{_T},{_Q})),{_CHAIN},{_OBSERVED})",
    "recurrence_forward": f"void({_T},{_T})",
    "recurrence_adjoint": f"void({_T},{_T},{_T},{_T})",
}


def _observe(row: Array, value: float, state: Array, work: Array) -> tuple[float, float]:
    """Joseph update of `state` in place by one scalar observation; returns the innovation and its variance."""
    dim = row.shape[0]
    variance, innovation = 1.0, value
    for i in range(dim):
        total = 0.0
        for j in range(dim):
            total += state[i, j] * row[j]
        work[i] = total
        variance += row[i] * total
        innovation -= row[i] * state[dim, i]
    for i in range(dim):
        gain = work[i] / variance
        state[dim, i] += gain * innovation
        total = 0.0
        for j in range(dim):
            state[i, j] -= gain * work[j]
            total += state[i, j] * row[j]
        # the second factor of (I - k h) P (I - k h)' + k k', on what the first one left
        for j in range(dim):
            state[i, j] += (gain - total) * work[j] / variance
    _symmetrise(state)
    return innovation, variance


def _symmetrise(state: Array) -> None:
    dim = state.shape[1]
    for i in range(dim):
        for j in range(i):
            mean = 0.5 * (state[i, j] + state[j, i])
            state[i, j] = mean
            state[j, i] = mean


def _observe_adjoint(
    row: Array, value: float, state: Array, bar: Array, weight: float, row_bar: Array, work: Array
) -> float:
    """Adjoint of `_observe` at the `state` before it: `bar` in place, adds to `row_bar`, returns that of the value."""
    dim = row.shape[0]
    cross, closed, mixed = work[0], work[1], work[2]
    variance, innovation = 1.0, value
    for i in range(dim):
        total = 0.0
        for j in range(dim):
            total += state[i, j] * row[j]
        cross[i] = total
        variance += row[i] * total
        innovation -= row[i] * state[dim, i]
    ratio = innovation / variance
    along, twice = 0.0, 0.0  # k . mean_bar and k' bar k
    for i in range(dim):
        total = 0.0
        for j in range(dim):
            total += bar[i, j] * cross[j]
        mixed[i] = total / variance
        along += bar[dim, i] * cross[i] / variance
        twice += mixed[i] * cross[i] / variance
    value_bar = along - weight * ratio
    curvature = weight * (1.0 / variance - ratio * ratio)
    for i in range(dim):
        closed[i] = bar[dim, i] - row[i] * along
    for i in range(dim):
        total = 0.0
        for j in range(dim):
            total += state[i, j] * (ratio * closed[j] - 2.0 * (mixed[j] - row[j] * twice))
        row_bar[i] += total - (ratio * along + curvature) * cross[i] - state[dim, i] * value_bar
    for i in range(dim):
        total = 0.0
        for j in range(dim):
            bar[i, j] -= row[i] * mixed[j]
            total += bar[i, j] * cross[j] / variance
        for j in range(dim):
            bar[i, j] += 0.5 * (ratio * (row[i] * closed[j] + closed[i] * row[j]) - curvature * row[i] * row[j])
            bar[i, j] -= total * row[j]
        bar[dim, i] = closed[i] + weight * ratio * row[i]
    _symmetrise(bar)
    return value_bar


def _predict(state: Array, transition: Array, noise: Array, shift: Array, work: Array) -> None:
    """``P <- A P A' + Q``, ``m <- A (m - P shift)`` in place; the offset is added by the caller."""
    dim = transition.shape[0]
    if shift.shape[0]:
        for i in range(dim):
            for j in range(dim):
                state[dim, i] -= state[i, j] * shift[j]
    for i in range(dim + 1):
        for j in range(dim):
            total = 0.0
            for k in range(dim):
                total += state[i, k] * transition[j, k]
            work[i, j] = total  # P A' (symmetric P), and A m in the last row
    for i in range(dim):
        state[dim, i] = work[dim, i]
        for j in range(dim):
            total = 0.5 * (noise[i, j] + noise[j, i])
            for k in range(dim):
                total += transition[i, k] * work[k, j]
            state[i, j] = total
    _symmetrise(state)


def _predict_adjoint(
    state: Array, transition: Array, shift: Array, bar: Array, transition_bar: Array, work: Array
) -> None:
    """Adjoint of `_predict` at the `state` before it: `bar` in place, `transition_bar` is set."""
    dim = transition.shape[0]
    for i in range(dim):
        total = state[dim, i]
        for j in range(shift.shape[0]):
            total -= state[i, j] * shift[j]
        work[dim, i] = total  # the mean that the transition acts on
    for i in range(dim):
        for j in range(dim):
            total = 0.0
            for k in range(dim):
                total += bar[i, k] * transition[k, j]
            work[i, j] = total  # bar A
    for i in range(dim):
        for j in range(dim):
            total = 0.0
            for k in range(dim):
                total += work[i, k] * state[k, j]
            transition_bar[i, j] = 2.0 * total + bar[dim, i] * work[dim, j]
    for i in range(dim):
        total = 0.0
        for k in range(dim):
            total += transition[k, i] * bar[dim, k]
        work[dim, i] = total  # A' mean_bar
        for j in range(dim):
            total = 0.0
            for k in range(dim):
                total += transition[k, i] * work[k, j]
            bar[i, j] = total
    for i in range(dim):
        bar[dim, i] = work[dim, i]
        for j in range(shift.shape[0]):
            bar[i, j] -= 0.5 * (work[dim, i] * shift[j] + shift[i] * work[dim, j])
    _symmetrise(bar)


def _filter_forward(chain: Arrays, observed: Arrays, predicted: Array, filtered: Array, evidence: Array) -> None:
    """States before and after the update of every time ``(B, T, D + 1, D)``, and the log-evidence ``(B,)``."""
    initial, transition, offset, noise, shift = chain
    rows, values = observed
    dim = initial.shape[2]
    work = np.empty((dim + 1, dim))
    state = np.empty((dim + 1, dim))
    for b in range(initial.shape[0]):
        state[:] = initial[b]
        total = 0.0
        for t in range(rows.shape[1]):
            if t > 0:
                _predict(state, transition[b, t - 1], noise[b, t - 1], shift[b, t - 1], work)
                for i in range(dim):
                    state[dim, i] += offset[b, t - 1, i]
            predicted[b, t] = state
            for o in range(rows.shape[2]):
                innovation, variance = _observe(rows[b, t, o], values[b, t, o], state, work[0])
                total -= 0.5 * (innovation * innovation / variance + np.log(variance))
            filtered[b, t] = state
        evidence[b] = total


def _filter_adjoint(
    chain: Arrays, observed: Arrays, predicted: Array, bars: Arrays, chain_bar: Arrays, observed_bar: Arrays
) -> None:
    """Adjoint of `_filter_forward`; `bars` belong to predicted, filtered and evidence, of no size where they are 0."""
    _, transition, _, _, shift = chain
    rows, values = observed
    predicted_bar, filtered_bar, evidence_bar = bars
    initial_bar, transition_bar, offset_bar, noise_bar, shift_bar = chain_bar
    rows_bar, values_bar = observed_bar
    count, dim = rows.shape[2], rows.shape[3]
    states = np.empty((count + 1, dim + 1, dim))
    bar = np.empty((dim + 1, dim))
    work = np.empty((dim + 3, dim))
    for b in range(rows.shape[0]):
        bar[:] = 0.0
        for t in range(rows.shape[1] - 1, -1, -1):
            states[0] = predicted[b, t]
            for o in range(count):
                states[o + 1] = states[o]
                _observe(rows[b, t, o], values[b, t, o], states[o + 1], work[0])
            if t < rows.shape[1] - 1:
                for i in range(dim):
                    offset_bar[b, t, i] = bar[dim, i]
                    noise_bar[b, t, i] = bar[i]
                _predict_adjoint(states[count], transition[b, t], shift[b, t], bar, transition_bar[b, t], work)
                for i in range(shift_bar.shape[2]):
                    total = 0.0
                    for j in range(dim):
                        total -= states[count, i, j] * bar[dim, j]
                    shift_bar[b, t, i] = total
            if filtered_bar.shape[0]:
                bar += filtered_bar[b, t]
                _symmetrise(bar)
            for o in range(count - 1, -1, -1):
                values_bar[b, t, o] = _observe_adjoint(
                    rows[b, t, o], values[b, t, o], states[o], bar, evidence_bar[b], rows_bar[b, t, o], work
                )
            if predicted_bar.shape[0]:
                bar += predicted_bar[b, t]
                _symmetrise(bar)
        initial_bar[b] = bar


def _recurrence_forward(transition: Array, states: Array) -> None:
    """``x_{k+1} = A_k x_k + b_k`` in place: `states` ``(S, B, T, D)`` holds x_0, b_0, ..., b_{K-1}."""
    samples, batch, count, dim = states.shape
    for b in range(batch):
        for s in range(samples):
            for t in range(1, count):
                for i in range(dim):
                    total = states[s, b, t, i]
                    for j in range(dim):
                        total += transition[b, t - 1, i, j] * states[s, b, t - 1, j]
                    states[s, b, t, i] = total


def _recurrence_adjoint(transition: Array, states: Array, bars: Array, transition_bar: Array) -> None:
    """Adjoint of `_recurrence_forward`: `bars` in place, adds to `transition_bar`."""
    samples, batch, count, dim = states.shape
    for b in range(batch):
        for s in range(samples):
            for t in range(count - 1, 0, -1):
                for i in range(dim):
                    value = bars[s, b, t, i]
                    for j in range(dim):
                        transition_bar[b, t - 1, i, j] += value * states[s, b, t - 1, j]
                        bars[s, b, t - 1, j] += transition[b, t - 1, i, j] * value


@functools.cache
def available() -> bool:
    """Whether numba can be imported."""
    try:
        from numba.extending import register_jitable
    except ImportError:
        return False
    for helper in (_observe, _symmetrise, _observe_adjoint, _predict, _predict_adjoint):
        register_jitable(error_model="numpy")(helper)  # lets compiled code call these functions of the module
    return True


@functools.cache
def kernel(name: str) -> Callable[..., None]:
    """The compiled function `name`; compiled once per machine where numba finds a place for its cache."""
    from numba import njit

    available()
    function = globals()[f"_{name}"]
    try:
        return njit(_SIGNATURES[name], cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no writable place
        return njit(_SIGNATURES[name], nogil=True, error_model="numpy")(function)
