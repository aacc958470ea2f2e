"""Two-stage Stratonovich methods: their steps written out, with times and controls of the stages."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from pyro_sde import SDE
from pyro_sde.solvers.heun import EulerHeun, Heun, Midpoint
from tests.solvers.order_problems import brownian, run

F64 = torch.float64


def drift(t, z):
    return (3 * t).sin() - z**2


def diffusion(t, z):
    return (1 + t) * (0.5 + 0.2 * z.cos())


def control(t, z):
    return t + z


def total(t, z):
    return drift(t, z) + diffusion(t, z) * control(t, z)


SDE_STRATONOVICH = SDE(drift, diffusion, sde_type="stratonovich").controlled(control)
INCREMENTS = brownian(1, 5, 2, seed=0)
W, H = INCREMENTS.W[0], 1.0
Z = torch.linspace(-1, 1, 10, dtype=F64).reshape(5, 2)
START, MIDDLE, END = (torch.tensor([t], dtype=F64) for t in (0.0, 0.5, 1.0))


def test_heun_is_the_mean_of_both_ends():
    guess = Z + total(START, Z) + diffusion(START, Z) * W
    expected = Z + 0.5 * (total(START, Z) + total(END, guess)) + 0.5 * (diffusion(START, Z) + diffusion(END, guess)) * W
    assert_close(run(Heun(), SDE_STRATONOVICH, INCREMENTS, Z), expected)


def test_midpoint_takes_the_coefficients_in_the_middle():
    middle = Z + 0.5 * (total(START, Z) + diffusion(START, Z) * W)
    expected = Z + total(MIDDLE, middle) + diffusion(MIDDLE, middle) * W
    assert_close(run(Midpoint(), SDE_STRATONOVICH, INCREMENTS, Z), expected)


def test_euler_heun_predicts_the_noise_alone():
    guess = Z + diffusion(START, Z) * W
    expected = Z + total(START, Z) + 0.5 * (diffusion(START, Z) + diffusion(END, guess)) * W
    assert_close(run(EulerHeun(), SDE_STRATONOVICH, INCREMENTS, Z), expected)
