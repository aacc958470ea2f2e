"""The simulators' parts against closed forms. Statistical tests: alpha = 2e-5 (|z| < 4.26), fixed seed."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_sde.data.simulate import (
    gaussian_kick,
    geometric_kick,
    missing_at_random,
    observation_times,
    simulate_paths,
)

Z = 4.26


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def check_normal(sample, mean, variance):
    """Two z-tests: the mean and, for a normal sample, the variance of n independent values."""
    n = sample.numel()
    assert abs(sample.mean().item() - mean) < Z * math.sqrt(variance / n)
    assert abs((sample - mean).square().mean().item() / variance - 1) < Z * math.sqrt(2 / n)


def no_drift(z):
    return torch.zeros_like(z)


def test_regular_times_divide_the_span():
    times = observation_times(generator(), 3, 5, (0.0, 2.0), irregular=False)
    assert times.tolist() == [[0.0, 0.5, 1.0, 1.5, 2.0]] * 3
    assert observation_times(generator(), 2, 1, (0.4, 2.0), irregular=False).tolist() == [[0.4]] * 2


def test_irregular_times_are_uniform_sorted_and_apart():
    times = observation_times(generator(), 200, 50, (1.0, 3.0), irregular=True)
    assert times.min() >= 1
    assert times.max() <= 3
    assert torch.diff(times).min() >= 0.01 * 2 / 49 * (1 - 1e-9)
    assert not torch.equal(times[0], times[1])
    unit = (times - 1) / 2
    # Mean 1/2; variance 1/12 up to the 1 % pulled to the grid. Detects a shift of .0125 of the span (n = 10 000).
    assert abs(unit.mean().item() - 0.5) < Z * math.sqrt(1 / 12 / unit.numel())
    assert unit.var().item() == pytest.approx(1 / 12, rel=0.05)


def test_irregular_times_stay_apart_in_float32():
    times = observation_times(generator(), 4, 5000, (0.0, 20.0), irregular=True).float()
    assert (torch.diff(times) > 0).all()


@pytest.mark.parametrize(("name", "counts"), [("num_series", (0, 3)), ("num_times", (3, 0))])
def test_counts_must_be_positive(name, counts):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, received 0"):
        observation_times(generator(), *counts, (0.0, 1.0), irregular=False)


@pytest.mark.parametrize("end", [0.0, -1.0, float("nan"), float("inf")])
def test_span_must_be_finite_and_not_empty(end):
    with pytest.raises(ValueError, match="`end_time` must be finite and greater than 0"):
        observation_times(generator(), 1, 2, (0.0, end), irregular=False)


def test_brownian_motion_has_variance_t_at_any_time():
    times = torch.tensor([0.13, 0.5, 1.7], dtype=torch.float64).expand(10_000, 3)
    path = simulate_paths(
        no_drift,
        gaussian_kick(0.7),
        torch.ones(10_000, 1, dtype=torch.float64),
        times,
        max_step=0.1,
        generator=generator(),
    )
    for k in range(3):  # detects 6 % in the variance (n = 10 000)
        check_normal(path[:, k, 0], 1.0, 0.49 * times[0, k].item())
    check_normal(path[:, 2, 0] - path[:, 1, 0], 0.0, 0.49 * 1.2)


def test_geometric_kick_is_exact_ito_and_keeps_signs():
    sigma = torch.tensor([0.2, 0.9], dtype=torch.float64)
    initial = torch.tensor([2.0, -3.0], dtype=torch.float64).expand(10_000, 2)
    times = torch.tensor([1.5], dtype=torch.float64).expand(10_000, 1)
    path = simulate_paths(no_drift, geometric_kick(sigma), initial, times, max_step=0.4, generator=generator())
    log_ratio = (path[:, 0] / initial).log()  # NaN had a sign changed
    for i in range(2):
        variance = sigma[i].item() ** 2 * 1.5
        check_normal(log_ratio[:, i], -variance / 2, variance)


def test_drift_alone_is_of_order_four():
    def rotate(z):
        return torch.stack([-z[:, 1], z[:, 0]], -1)

    initial = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    times = torch.tensor([[1.0, 2.5]], dtype=torch.float64)
    exact = torch.stack([times.cos(), times.sin()], -1)
    errors = [
        (simulate_paths(rotate, gaussian_kick(0.0), initial, times, max_step=step, generator=generator()) - exact)
        .abs()
        .max()
        for step in (0.1, 0.05)
    ]
    assert errors[1] < 1e-6
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.1)


def test_noise_is_split_symmetrically():
    # For dz = -z dt + dW the splitting has stationary variance (h / 2) (1 + r^2) / (1 - r^2), r = exp(-h) up to order
    # 4. With h = 1: .664, where Euler-Maruyama has 1 and noise-after-drift 1.16; the process has .5.
    h = 1.0
    r = 1 - h + h**2 / 2 - h**3 / 6 + h**4 / 24
    variance = h / 2 * (1 + r**2) / (1 - r**2)
    initial = math.sqrt(variance) * torch.randn(10_000, 1, generator=generator(1), dtype=torch.float64)
    times = torch.tensor([5.0], dtype=torch.float64).expand(10_000, 1)
    path = simulate_paths(lambda z: -z, gaussian_kick(1.0), initial, times, max_step=h, generator=generator())
    check_normal(path[:, 0, 0], 0.0, variance)


def test_steps_never_exceed_the_largest():
    seen = []

    def kick(state, step, noise):
        seen.append(2 * step.max().item())
        return state

    times = torch.tensor([[0.0, 0.3, 1.0], [0.1, 0.2, 1.2]], dtype=torch.float64)
    simulate_paths(no_drift, kick, torch.zeros(2, 1, dtype=torch.float64), times, max_step=0.1, generator=generator())
    assert max(seen) <= 0.1 * (1 + 1e-6)
    assert len(seen) == 2 * (1 + 3 + 10)  # the largest gap of the batch decides: .1, .3, 1.0


def test_missing_fraction_is_as_asked_for():
    mask = missing_at_random(generator(), torch.Size([50, 40, 10]), 0.3)
    n = mask.numel()  # 20 000: detects 1.4 percentage points
    assert abs((~mask).double().mean().item() - 0.3) < Z * math.sqrt(0.3 * 0.7 / n)
    assert missing_at_random(generator(), torch.Size([5, 4, 2]), 0.0).all()


def test_no_series_loses_everything():
    mask = missing_at_random(generator(), torch.Size([500, 2, 2]), 0.9)
    assert mask.flatten(1).any(-1).all()
    saved = mask[:, 0].all(-1) & ~mask[:, 1].any(-1)
    # .9 ** 4 = .656 of the series would be empty; those alone have all of the first time observed.
    assert abs(saved.double().mean().item() - 0.9**4) < 0.1


@pytest.mark.parametrize("missing", [-0.1, 1.0, float("nan")])
def test_missing_must_be_a_fraction(missing):
    with pytest.raises(ValueError, match="`missing` must be a fraction"):
        missing_at_random(generator(), torch.Size([1, 1, 1]), missing)
