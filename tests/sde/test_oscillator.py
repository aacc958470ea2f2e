"""Oscillating processes: limits, harmonics and bad input."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import ive
from torch.testing import assert_close

from pyro_sde.sde import Cosine, DampedOscillator, Matern32, Periodic, QuasiPeriodic

F64 = torch.float64
STEPS = torch.tensor([1e-6, 1e-2, 0.3, 2.0, 50.0], dtype=F64)


def test_a_critically_damped_oscillator_is_a_matern_process():
    ours, theirs = DampedOscillator(math.sqrt(3) / 0.8, 1.0, 1.7), Matern32(0.8, 1.7)
    for value, expected in zip(ours.transition(STEPS), theirs.transition(STEPS), strict=True):
        assert_close(value, expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("damping", [1e-6, 0.3, 3.0])
def test_the_response_of_an_oscillator_is_the_textbook_one(damping):
    frequency, dt = 2.0, STEPS[:-1]
    decay, turn = damping * frequency, frequency * math.sqrt(abs(1 - damping**2))
    cos, sin = (torch.cos, torch.sin) if damping < 1 else (torch.cosh, torch.sinh)
    c, s, e = cos(turn * dt), sin(turn * dt) / turn, torch.exp(-decay * dt)
    rows = [torch.stack([c + decay * s, s], -1), torch.stack([-(frequency**2) * s, c - decay * s], -1)]
    expected = e[:, None, None] * torch.stack(rows, -2)
    assert_close(DampedOscillator(frequency, damping).transition(dt).matrix, expected, rtol=1e-11, atol=1e-13)


def test_noise_of_a_weakly_damped_oscillator_keeps_its_relative_accuracy():
    dt, damping = torch.tensor([1e-6, 1e-3], dtype=F64), 1e-9
    variance = DampedOscillator(1.0, damping).transition(dt).covariance.diagonal(dim1=-2, dim2=-1)
    assert_close(variance, 4 * damping * torch.stack([dt**3 / 3, dt], -1), rtol=2e-6, atol=0)


def test_a_cosine_returns_after_its_period_and_has_no_noise():
    matrix, offset, covariance = Cosine(1.5, 2.0).transition(torch.tensor([0.375, 1.5, 15.0], dtype=F64))
    assert_close(matrix[0], torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64), rtol=0, atol=1e-15)
    assert_close(matrix[1:], torch.eye(2, dtype=F64).expand(2, 2, 2), rtol=0, atol=1e-13)
    assert not covariance.any()
    assert not offset.any()


@pytest.mark.parametrize("lengthscale", [0.2, 0.7, 1.0, 10.0])
def test_harmonics_have_the_shares_of_bessel_functions(lengthscale):
    sde = Periodic(2.0, lengthscale, 3.0, harmonics=9)
    variances = sde.stationary(F64)[1].diagonal()
    assert_close(variances[0::2], variances[1::2])
    bessel = torch.tensor([float(ive(j, lengthscale**-2)) * (1 if j == 0 else 2) for j in range(10)], dtype=F64)
    assert_close(variances[0::2], 3 * bessel / bessel.sum(), rtol=1e-11, atol=0)


@pytest.mark.parametrize(("lengthscale", "error"), [(1.0, 2e-7), (0.5, 1e-3)])
def test_seven_harmonics_are_as_accurate_as_documented(lengthscale, error):
    lags = torch.linspace(0, 1, 41, dtype=F64)
    sde = Periodic(1.0, lengthscale)
    output, (_, covariance) = sde.observation.double(), sde.stationary(F64)
    ours = (output @ sde.transition(lags).matrix @ covariance @ output.mT).flatten()
    exact = torch.exp(-2 * torch.sin(math.pi * lags) ** 2 / lengthscale**2)
    assert error / 100 < (ours - exact).abs().max() < error


def test_a_quasi_periodic_process_is_the_product_of_its_parts():
    ours, product = QuasiPeriodic(1.4, 2.0, 0.6), Matern32(2.0, 0.6) * Cosine(1.4)
    for value, expected in zip(ours.transition(STEPS), product.transition(STEPS), strict=True):
        assert_close(value, expected)
    assert_close(ours.stationary(F64), product.stationary(F64))


@pytest.mark.parametrize("harmonics", [0, -1])
def test_no_harmonics_raise(harmonics):
    with pytest.raises(ValueError, match=f"`harmonics` must be >= 1, received {harmonics}"):
        Periodic(1.0, harmonics=harmonics)
