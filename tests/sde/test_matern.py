"""Matérn processes: accuracy of their closed forms over all steps, and what they are special cases of."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from torch.testing import assert_close

from pyro_sde.sde import Matern12, Matern32, Matern52, OrnsteinUhlenbeck
from pyro_sde.sde.matern import matern_system

F32, F64 = torch.float32, torch.float64
KERNELS = {0: Matern12, 1: Matern32, 2: Matern52}
each_order = pytest.mark.parametrize("order", [0, 1, 2])


def exact_covariance(order, lengthscale, variance, dt):
    """Q by high-precision integrals of the impulse response and its derivatives."""
    size = order + 1
    with mpmath.workdps(50):
        rate = mpmath.sqrt(2 * order + 1) / mpmath.mpf(lengthscale)
        white = mpmath.mpf(variance) * (2 * rate) ** (2 * order + 1)
        white *= mpmath.factorial(order) ** 2 / mpmath.factorial(2 * order)
        # coefficients of the polynomial before e^{-rate s}, derivative after derivative
        response = [mpmath.mpf(0)] * order + [1 / mpmath.factorial(order)]
        responses = []
        for _ in range(size):
            responses.append(response)
            slope = [(k + 1) * response[k + 1] if k < order else mpmath.mpf(0) for k in range(size)]
            response = [slope[k] - rate * response[k] for k in range(size)]

        def entry(i, j):
            total = mpmath.mpf(0)
            for k, a in enumerate(responses[i]):
                for m, b in enumerate(responses[j]):
                    total += a * b * mpmath.gammainc(k + m + 1, 0, 2 * rate * dt) / (2 * rate) ** (k + m + 1)
            return float(white * total)

        return torch.tensor([[entry(i, j) for j in range(size)] for i in range(size)], dtype=F64)


@each_order
@pytest.mark.parametrize("lengthscale", [0.05, 1.0, 50.0])
def test_covariances_are_accurate_over_nine_orders_of_magnitude(order, lengthscale):
    steps = torch.logspace(-6, 3, 10, dtype=F64)
    ours = KERNELS[order](lengthscale, 1.7).transition(steps).covariance
    for dt, covariance in zip(steps.tolist(), ours, strict=True):
        expected = exact_covariance(order, lengthscale, 1.7, dt)
        scale = expected.diagonal().sqrt()
        assert_close(covariance / scale / scale[:, None], expected / scale / scale[:, None], rtol=0, atol=3e-14)
        assert_close(covariance.diagonal(), expected.diagonal(), rtol=3e-14, atol=0)
        if dt < 0.1 * lengthscale:
            assert_close(covariance, expected, rtol=1e-12, atol=0)


@each_order
def test_float32_covariances_are_positive_definite_on_fine_grids(order):
    for dt in (1e-3, 1e-2, 1e-1, 1.0):  # P - Phi P Phi^T has no digit left there in float32
        covariance = KERNELS[order]().transition(torch.tensor([dt])).covariance[0]
        expected = exact_covariance(order, 1.0, 1.0, torch.tensor(dt).item())
        assert_close(covariance.double(), expected, rtol=1e-6, atol=0)
        torch.linalg.cholesky(covariance)


def test_a_matern_process_of_smoothness_one_half_is_an_ornstein_uhlenbeck_process():
    steps = torch.tensor([0.0, 1e-6, 0.3, 10.0], dtype=F64)
    ours = Matern12(0.5, 2.0)
    theirs = OrnsteinUhlenbeck(2.0, math.sqrt(2 * 2.0 / 0.5))
    for value, expected in zip(ours.transition(steps), theirs.transition(steps), strict=True):
        assert_close(value, expected, rtol=1e-14, atol=0)
    assert_close(ours.stationary(F64), theirs.stationary(F64))


def test_any_half_integer_smoothness_has_closed_forms():
    one = torch.ones((), dtype=F64)
    steps = torch.tensor([1e-3, 0.4], dtype=F64)
    ours = matern_system("smooth", 4, 2 * one, 3 * one, F64)
    for dt, covariance in zip(steps.tolist(), ours.transition(steps).covariance, strict=True):
        assert_close(covariance, exact_covariance(4, 2.0, 3.0, dt), rtol=1e-11, atol=0)
    assert_close(ours.stationary()[1][0, 0], 3 * one)
    assert_close(ours.stationary()[1], ours.transition(torch.tensor([1e3], dtype=F64)).covariance[0])


@each_order
def test_second_derivatives_are_right(order):
    dt = torch.tensor([0.1, 3.0], dtype=F64, requires_grad=True)
    lengthscale = torch.tensor(0.7, dtype=F64, requires_grad=True)

    def covariance(dt, lengthscale):
        return KERNELS[order](lengthscale).transition(dt).covariance

    assert torch.autograd.gradgradcheck(covariance, (dt, lengthscale))


def test_transitions_can_be_mapped_over_hyper_parameters():
    def variance(lengthscale):
        system = matern_system("mapped", 1, lengthscale, torch.ones((), dtype=F64), F64)
        return system.each_transition(torch.tensor([0.3], dtype=F64)).covariance[0, 0, 0]

    scales = torch.tensor([0.5, 1.0, 2.0], dtype=F64)
    assert_close(torch.vmap(variance)(scales), torch.stack([variance(scale) for scale in scales]))
    assert_close(torch.func.grad(variance)(scales[0]), torch.func.jacrev(variance)(scales[0]))
