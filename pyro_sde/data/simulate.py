"""What the simulators share: observation times, a path integrator and missing entries."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ..ops._arguments import check_counts, check_numbers

__all__ = ["gaussian_kick", "geometric_kick", "missing_at_random", "observation_times", "simulate_paths"]

# Share of the regular grid in irregular times: their gaps stay above 1 % of the mean gap, also in float32.
_REGULAR_SHARE = 0.01


def observation_times(
    generator: Generator, num_series: int, num_times: int, span: tuple[float, float], *, irregular: bool
) -> Tensor:
    r"""Draw the times at which each series is observed, ``(num_series, num_times)``, float64.

    Regular times divide `span` equally, both ends included. Irregular ones are sorted uniform draws,
    different for every series, pulled towards the regular ones by 1 % so that no two coincide: gaps are at
    least :math:`0.01\,(b - a) / (N - 1)`.

    Args:
        generator: source of randomness.
        num_series: B, ``>= 1``.
        num_times: N, ``>= 1``.
        span: first and last possible time :math:`(a, b)`, finite, ``a < b``.
        irregular: draw the times.

    Raises:
        ValueError: if a number is out of its range.
    """
    check_counts(num_series=num_series, num_times=num_times)
    start, end = span
    check_numbers(end_time=end)
    if not (math.isfinite(start) and math.isfinite(end) and start < end):
        message = f"`end_time` must be finite and greater than {start:g}, received {end}."
        raise ValueError(message)
    unit = torch.linspace(0, 1, num_times, dtype=torch.float64).expand(num_series, num_times)
    if irregular:
        drawn = torch.rand(num_series, num_times, generator=generator, dtype=torch.float64).sort(-1).values
        unit = torch.lerp(drawn, unit, _REGULAR_SHARE)
    return start + (end - start) * unit


def simulate_paths(
    drift: Callable[[Tensor], Tensor],
    kick: Callable[[Tensor, Tensor, Tensor], Tensor],
    initial: Tensor,
    times: Tensor,
    *,
    max_step: float,
    generator: Generator,
) -> Tensor:
    r"""Simulate :math:`dz = f(z)\,dt + \text{noise}` from time 0; states at `times`, ``(B, N, D)``.

    Strang splitting: half a step of noise alone, exact in law, a Runge-Kutta step of the drift alone, half a
    step of noise. Weak order 2; without noise order 4. It keeps its own generator, which path laws do not,
    and shares no code with the solvers, so that data and model can check each other. Cost: about (last time)
    / max_step steps for regular times, up to (sum of the largest gaps) / max_step for irregular ones.

    Args:
        drift: :math:`f`, ``(B, D) -> (B, D)``.
        kick: the state after noise alone has acted for ``h (B, 1)``, from ``(z, h, noise)`` where
            the noise ``(B, D)`` is standard normal.
        initial: states at time 0, ``(B, D)``.
        times: ``(B, N)``, not negative, sorted.
        max_step: largest step.
        generator: source of randomness.
    """
    state, path = initial, []
    gaps = torch.diff(times, dim=-1, prepend=torch.zeros_like(times[:, :1])).unsqueeze(-1)  # (B, N, 1)
    for gap in gaps.unbind(1):
        num_steps = max(1, math.ceil(gap.max().item() / max_step - 1e-6))  # round-off makes no extra step
        step = gap / num_steps
        for _ in range(num_steps):
            state = kick(state, step / 2, _normal(state, generator))
            state = _runge_kutta(drift, state, step)
            state = kick(state, step / 2, _normal(state, generator))
        path.append(state)
    return torch.stack(path, -2)


def gaussian_kick(sigma: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    r"""Noise :math:`dz = \sigma\,dW` alone, for `simulate_paths`.

    Args:
        sigma: standard deviation per square root of time.

    Returns:
        Function of the state ``(B, D)``, the step ``(B, 1)`` and standard normal noise ``(B, D)`` that returns the
        state after the step, ``(B, D)``.
    """
    return lambda state, step, noise: state + sigma * step.sqrt() * noise


def geometric_kick(sigma: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    r"""Noise :math:`dz_i = \sigma_i z_i\,dW_i` (Ito) alone, for `simulate_paths`: keeps signs.

    Args:
        sigma: ``(D,)``, or anything that broadcasts to ``(B, D)``; per square root of time.

    Returns:
        As `gaussian_kick`.

    References:
        Øksendal (2003), Stochastic Differential Equations, example 5.1.1, without growth.
    """
    return lambda state, step, noise: state * (sigma * step.sqrt() * noise - sigma.square() * step / 2).exp()


def missing_at_random(generator: Generator, shape: torch.Size, missing: float) -> Tensor:
    """Draw a mask ``(B, N, O)``: each entry is unobserved with probability `missing`, on its own.

    A series that would lose every entry keeps its first time.

    Raises:
        ValueError: unless ``0 <= missing < 1``.
    """
    check_numbers(missing=missing)
    if not 0 <= missing < 1:
        message = f"`missing` must be a fraction, 0 <= missing < 1, received {missing}."
        raise ValueError(message)
    mask = torch.rand(shape, generator=generator, dtype=torch.float64) >= missing
    mask[:, 0] |= ~mask.flatten(1).any(-1, keepdim=True)  # (B, O) | (B, 1)
    return mask


def _normal(like: Tensor, generator: Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype)


def _runge_kutta(drift: Callable[[Tensor], Tensor], state: Tensor, step: Tensor) -> Tensor:
    slope_1 = drift(state)
    slope_2 = drift(state + step / 2 * slope_1)
    slope_3 = drift(state + step / 2 * slope_2)
    slope_4 = drift(state + step * slope_3)
    return state + step / 6 * (slope_1 + 2 * slope_2 + 2 * slope_3 + slope_4)
