"""Seeded simulators: each call gives a `TimeSeries` whose law is known.

The same arguments give the same data, whatever the global random state, which stays untouched. `missing` is
drawn last: ``missing=0`` with the same seed gives the entries that were taken out. `irregular` draws other
times for every series. Everything is float64 on the CPU; use ``.to(torch.float32)``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from ._validation import check_numbers, check_positive
from .series import TimeSeries
from .simulate import (
    gaussian_kick,
    geometric_kick,
    missing_at_random,
    observation_times,
    simulate_paths,
)

__all__ = ["double_well", "irregular_sine", "ornstein_uhlenbeck", "stochastic_lorenz"]

_LORENZ_NOISE = 0.01  # observation noise of Li et al., in units of each channel's deviation
_SINE_SPAN = (0.4, 1.6)
_SINE_AMPLITUDE = 0.8


def ornstein_uhlenbeck(
    seed: int,
    *,
    num_series: int = 64,
    num_times: int = 50,
    end_time: float = 10.0,
    irregular: bool = False,
    missing: float = 0.0,
    theta: float = 1.0,
    sigma: float = 0.5,
) -> TimeSeries:
    r"""Stationary Ornstein-Uhlenbeck process :math:`dz = -\theta z\,dt + \sigma\,dW`, observed without noise.

    Exact transitions at any gap: :math:`E z = 0`,
    :math:`E z_s z_t = \frac{\sigma^2}{2\theta} e^{-\theta|t-s|}`.

    Args:
        seed: same seed, same data.
        num_series: B.
        num_times: N.
        end_time: times lie in ``[0, end_time]``.
        irregular: draw the times, different for every series.
        missing: fraction of entries that are not observed, ``0 <= missing < 1``.
        theta: rate of return, ``> 0``, in 1 / time.
        sigma: diffusion, ``> 0``, in value / time ** 0.5.

    Returns:
        Record with values ``(B, N, 1)``.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Särkkä and Solin (2019), Applied Stochastic Differential Equations, example 6.2.

    Example:
        >>> ornstein_uhlenbeck(seed=0, num_series=3, irregular=True)
        TimeSeries('ornstein_uhlenbeck', series=3, times=50, channels=1, observed=100.0%)
    """
    check_positive(theta=theta, sigma=sigma)
    generator = _generator(seed)
    times = observation_times(generator, num_series, num_times, (0.0, end_time), irregular=irregular)
    noise = torch.randn(times.shape, generator=generator, dtype=times.dtype)
    deviation = sigma / (2 * theta) ** 0.5
    decay = torch.exp(-theta * torch.diff(times))
    spread = deviation * (-torch.expm1(-2 * theta * torch.diff(times))).sqrt()  # exact at small gaps too
    path = [deviation * noise[:, 0]]
    for k in range(num_times - 1):
        path.append(decay[:, k] * path[-1] + spread[:, k] * noise[:, k + 1])
    values = torch.stack(path, -1).unsqueeze(-1)
    description = f"Stationary dz = -theta z dt + sigma dW with theta={theta:g}, sigma={sigma:g}; exact."
    return _record("ornstein_uhlenbeck", times, values, generator, missing, description)


def double_well(
    seed: int,
    *,
    num_series: int = 16,
    num_times: int = 200,
    end_time: float = 20.0,
    irregular: bool = False,
    missing: float = 0.0,
    rate: float = 4.0,
    sigma: float = 1.0,
) -> TimeSeries:
    r"""Stationary double-well process :math:`dz = a z (1 - z^2)\,dt + \sigma\,dW`, observed without noise.

    Two wells at -1 and 1; the stationary density is proportional to
    :math:`\exp\bigl(\frac{a}{\sigma^2}(z^2 - z^4/2)\bigr)`, from which the first state is drawn. Simulated
    with steps of at most 0.04 / `rate`.

    Args:
        seed: same seed, same data.
        num_series: B.
        num_times: N.
        end_time: times lie in ``[0, end_time]``.
        irregular: draw the times, different for every series.
        missing: fraction of entries that are not observed, ``0 <= missing < 1``.
        rate: :math:`a`, ``> 0``, in 1 / time.
        sigma: diffusion, ``> 0``; the wells mix slowly where ``sigma ** 2`` is far below `rate`.

    Returns:
        Record with values ``(B, N, 1)``.

    Raises:
        ValueError: if an argument is out of its range.
    """
    check_positive(rate=rate, sigma=sigma)
    generator = _generator(seed)
    times = observation_times(generator, num_series, num_times, (0.0, end_time), irregular=irregular)
    uniform = torch.rand(num_series, 1, generator=generator, dtype=torch.float64)
    values = simulate_paths(
        lambda z: rate * z * (1 - z**2),
        gaussian_kick(sigma),
        _draw_double_well(uniform, rate / sigma**2),
        times,
        max_step=0.04 / rate,
        generator=generator,
    )
    description = f"Stationary dz = a z (1 - z^2) dt + sigma dW, a={rate:g}, sigma={sigma:g}; no observation noise."
    return _record("double_well", times, values, generator, missing, description)


def stochastic_lorenz(
    seed: int,
    *,
    num_series: int = 1024,
    num_times: int = 100,
    end_time: float = 2.0,
    irregular: bool = False,
    missing: float = 0.0,
    drift: Sequence[float] = (10.0, 28.0, 8.0 / 3.0),
    diffusion: Sequence[float] = (0.1, 0.28, 0.3),
) -> TimeSeries:
    r"""Stochastic Lorenz attractor: noise proportional to the state, standardised, observed with noise.

    .. math::
        dx = a_1 (y - x)\,dt + b_1 x\,dW_1,\quad dy = (x (a_2 - z) - y)\,dt + b_2 y\,dW_2,\quad
        dz = (x y - a_3 z)\,dt + b_3 z\,dW_3,

    from a standard normal state at time 0. Each channel is shifted and scaled over all series and times, then
    gets Gaussian observation noise of standard deviation 0.01. Defaults are those of the published example;
    the paper's text has ``diffusion`` 0.15 and times up to 1 (second-hand). Simulated with steps of at most
    0.005.

    Args:
        seed: same seed, same data.
        num_series: B.
        num_times: N.
        end_time: times lie in ``[0, end_time]``.
        irregular: draw the times, different for every series.
        missing: fraction of entries that are not observed, ``0 <= missing < 1``.
        drift: :math:`a`, three numbers.
        diffusion: :math:`b`, three numbers, ``>= 0``.

    Returns:
        Record with values ``(B, N, 3)``.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Li, Wong, Chen and Duvenaud (2020), Scalable gradients for stochastic differential equations,
        arXiv 2001.01328.
    """
    a_1, a_2, a_3 = check_numbers("drift", drift, 3)
    b = torch.tensor(check_numbers("diffusion", diffusion, 3, lowest=0.0), dtype=torch.float64)
    generator = _generator(seed)
    times = observation_times(generator, num_series, num_times, (0.0, end_time), irregular=irregular)

    def slope(state: Tensor) -> Tensor:
        x, y, z = state.unbind(-1)
        return torch.stack([a_1 * (y - x), x * (a_2 - z) - y, x * y - a_3 * z], -1)

    initial = torch.randn(num_series, 3, generator=generator, dtype=torch.float64)
    path = simulate_paths(slope, geometric_kick(b), initial, times, max_step=0.005, generator=generator)
    standard = (path - path.mean((0, 1))) / path.std((0, 1), correction=0)
    values = standard + _LORENZ_NOISE * torch.randn(path.shape, generator=generator, dtype=path.dtype)
    description = (
        f"Lorenz attractor with multiplicative noise, drift={tuple(drift)}, diffusion={tuple(diffusion)}; "
        f"every channel standardised over all series and times, then observed with noise {_LORENZ_NOISE}."
    )
    return _record("stochastic_lorenz", times, values, generator, missing, description)


def irregular_sine(
    seed: int,
    *,
    num_series: int = 1,
    num_times: int = 16,
    irregular: bool = True,
    missing: float = 0.0,
    noise: float = 0.0,
) -> TimeSeries:
    r"""Sine :math:`0.8 \sin 2\pi t` at times in [0.4, 1.6]: a toy of the latent SDE paper.

    Series differ in their times and noise only. The example fits it on a grid from 0 to 2 under a Laplace
    likelihood of scale 0.05.

    Args:
        seed: same seed, same data.
        num_series: B.
        num_times: N.
        irregular: draw the times, different for every series.
        missing: fraction of entries that are not observed, ``0 <= missing < 1``.
        noise: standard deviation of Gaussian observation noise, ``>= 0``.

    Returns:
        Record with values ``(B, N, 1)``.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Li, Wong, Chen and Duvenaud (2020), Scalable gradients for stochastic differential equations,
        arXiv 2001.01328.
    """
    (noise,) = check_numbers("noise", (noise,), 1, lowest=0.0)
    generator = _generator(seed)
    times = observation_times(generator, num_series, num_times, _SINE_SPAN, irregular=irregular)
    signal = _SINE_AMPLITUDE * torch.sin(2 * torch.pi * times)
    values = (signal + noise * torch.randn(times.shape, generator=generator, dtype=times.dtype)).unsqueeze(-1)
    description = f"{_SINE_AMPLITUDE} sin(2 pi t) with Gaussian observation noise of standard deviation {noise:g}."
    return _record("irregular_sine", times, values, generator, missing, description)


def _record(
    name: str, times: Tensor, values: Tensor, generator: Generator, missing: float, description: str
) -> TimeSeries:
    """Take entries out, last of all that is drawn, and name where the data come from."""
    return TimeSeries(
        name,
        times,
        values,
        missing_at_random(generator, values.shape, missing),
        source=f"simulated by pyro_sde.data.synthetic.{name}",
        licence="none needed (simulated)",
        description=description,
    )


def _generator(seed: int) -> Generator:
    if not isinstance(seed, int) or isinstance(seed, bool):
        message = f"`seed` must be an integer, received {seed!r}: simulated data must be repeatable."
        raise TypeError(message)
    return Generator().manual_seed(seed)


def _draw_double_well(uniform: Tensor, sharpness: float) -> Tensor:
    """Turn uniform numbers into draws from the density ``exp(sharpness * (z^2 - z^4 / 2))``."""
    # At the edge the exponent lies 40 below its maximum: 1e-17 of the mass is outside.
    edge = (1 + (80 / sharpness) ** 0.5) ** 0.5
    grid = torch.linspace(-edge, edge, 20_001, dtype=torch.float64)
    density = torch.exp(-sharpness * (grid**2 - 1).square() / 2)
    mass = torch.cumulative_trapezoid(density, grid)
    mass = torch.cat([mass.new_zeros(1), mass]) / mass[-1]
    right = torch.searchsorted(mass, uniform).clamp(1, len(grid) - 1)
    share = (uniform - mass[right - 1]) / (mass[right] - mass[right - 1])
    return grid[right - 1] + share * (grid[right] - grid[right - 1])
