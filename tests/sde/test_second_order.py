"""Positions move with velocities, and only velocities have noise."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch

from pyro_sde.distributions.sde_path import SDEPath
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.sde.second_order import SecondOrderSDE


def test_drift_is_velocity_then_acceleration_with_spring():
    sde = SecondOrderSDE(lambda z: z[..., :2] * z[..., 2:], dim=2, stiffness=3.0)
    z = torch.tensor([1.0, 2.0, 5.0, 7.0], dtype=torch.float64)
    drift = sde.drift(torch.zeros(1), z)
    assert drift.tolist() == [5.0, 7.0, 1 * 5.0 - 3.0, 2 * 7.0 - 6.0]


def test_only_velocities_have_noise():
    sde = SecondOrderSDE(lambda z: z[..., 3:], dim=3, noise_scale=0.25)
    noise = sde.diffusion(torch.zeros(1), torch.zeros(6))
    torch.testing.assert_close(noise, torch.tensor([0.0, 0.0, 0.0, 0.25, 0.25, 0.25]))


def test_noise_is_learned_and_has_the_batch_shape():
    sde = SecondOrderSDE(lambda z: z[..., 1:], dim=1, batch_shape=(4, 1))
    assert sde.diffusion(torch.zeros(1), torch.zeros(2)).shape == (4, 1, 2)
    (parameter,) = sde.parameters()
    assert parameter.shape == (4, 1, 1)
    assert parameter.requires_grad


def test_variance_of_free_motion_grows_with_the_cube_of_time():
    # dv = s dW: Var q(T) = s^2 T^3 / 3; the chain of K steps has s^2 h^3 (K - 1) K (2 K - 1) / 6
    torch.manual_seed(0)
    s, steps, h = 0.7, 20, 0.1
    sde = SecondOrderSDE(lambda z: torch.zeros_like(z[..., 1:]), dim=1, noise_scale=s).double()
    start = dist.Normal(torch.zeros(2, dtype=torch.float64), 1e-9).to_event(1)
    law = SDEPath(sde, start, TimeGrid(h * torch.arange(steps + 1, dtype=torch.float64)))
    ends = law.sample((20_000,))[:, -1, 0]
    exact = s**2 * h**3 * (steps - 1) * steps * (2 * steps - 1) / 6
    # five standard errors of a variance of normal draws
    assert float(ends.var()) == pytest.approx(exact, rel=5 * math.sqrt(2 / 20_000))


def test_it_works_in_single_precision():
    sde = SecondOrderSDE(lambda z: -z[..., 1:], dim=1, stiffness=1.0)
    law = SDEPath(sde, dist.Normal(torch.zeros(2), 1.0).to_event(1), TimeGrid(torch.linspace(0.0, 1.0, 5)))
    path = law.rsample()
    assert path.dtype == torch.float32
    assert bool(torch.isfinite(law.log_prob(path)))


def test_acceleration_must_be_a_function():
    with pytest.raises(TypeError, match="`acceleration` must be a function of the state, received int"):
        SecondOrderSDE(3, dim=1)


@pytest.mark.parametrize("stiffness", [-1.0, math.inf, math.nan])
def test_stiffness_must_not_be_negative(stiffness):
    with pytest.raises(ValueError, match="`stiffness` must be a finite number >= 0"):
        SecondOrderSDE(lambda z: z, dim=1, stiffness=stiffness)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_noise_must_be_positive(scale):
    with pytest.raises(ValueError, match="`noise_scale` must be a finite number > 0"):
        SecondOrderSDE(lambda z: z, dim=1, noise_scale=scale)


def test_dimension_must_be_positive():
    with pytest.raises(ValueError, match="dim"):
        SecondOrderSDE(lambda z: z, dim=0)
