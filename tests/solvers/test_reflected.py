"""Reflected steps: mirror images, refused input, and the law that they approximate."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints
from torch.testing import assert_close

from pyro_sde.distributions import SDEPath
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.sde import SDE, BrownianMotion
from pyro_sde.sde.bounded_library import CoxIngersollRoss
from pyro_sde.solvers.fixed import integrate
from pyro_sde.solvers.reflected import ReflectedEuler, reflect
from pyro_sde.testing.statistics import assert_mean, ks_test

F32, F64 = torch.float32, torch.float64


def grid(steps, end=1.0, dtype=F64):
    return TimeGrid(torch.linspace(0.0, end, steps + 1, dtype=dtype))


def at(value, width=1, dtype=F64):
    return dist.Delta(torch.full((width,), value, dtype=dtype), event_dim=1)


# --- mirror images -----------------------------------------------------------------------------------
def by_hand(z, lower, upper):
    while z < lower or z > upper:
        z = 2 * lower - z if z < lower else 2 * upper - z
    return z


@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
@pytest.mark.parametrize(("lower", "upper"), [(0.0, None), (None, 0.7), (-0.4, 0.7)])
def test_images_are_those_of_repeated_reflection(lower, upper, dtype):
    z = torch.linspace(-9.1, 8.7, 101, dtype=dtype)
    ends = -math.inf if lower is None else lower, math.inf if upper is None else upper
    expected = torch.tensor([by_hand(v, *ends) for v in z.tolist()], dtype=dtype)
    image = reflect(z, lower, upper)
    assert image.dtype == dtype
    assert_close(image, expected, rtol=0, atol=1e-13 if dtype == F64 else 1e-5)
    assert bool(((image >= ends[0]) & (image <= ends[1])).all())


def test_dimensions_may_have_other_ends_or_none():
    lower = torch.tensor([0.0, -math.inf, -math.inf, 0.5], dtype=F64)
    upper = torch.tensor([1.0, 2.0, math.inf, math.inf], dtype=F64)
    z = torch.tensor([[-3.2, 2.5, -7.0, 0.1], [0.4, -8.0, 9.0, 3.0]], dtype=F64, requires_grad=True)
    image = reflect(z, lower, upper)
    assert_close(image, torch.tensor([[0.8, 1.5, -7.0, 0.9], [0.4, -8.0, 9.0, 3.0]], dtype=F64))
    (slope,) = torch.autograd.grad(image.sum(), z)
    assert slope.tolist() == [[1.0, -1.0, 1.0, -1.0], [1.0, 1.0, 1.0, 1.0]]


def test_states_inside_keep_their_bits():
    z = torch.rand(1000, dtype=F64) * 0.3 + 0.1
    assert torch.equal(reflect(z, 0.1, 0.4), z)


# --- steps ---------------------------------------------------------------------------------------------
def test_a_step_is_the_image_of_the_euler_step():
    sde = SDE(lambda t, z: 1 - 4 * z, lambda t, z: 0.5 + z)
    z0, normal = torch.tensor([[0.1, 0.9]], dtype=F64), torch.tensor([[[-3.0, 2.0]]], dtype=F64)
    path = integrate(ReflectedEuler(0.0, 1.0), sde, grid(1, 0.25), z0, normal, (None,))
    euler = z0 + (1 - 4 * z0) * 0.25 + (0.5 + z0) * 0.5 * normal[0]
    assert_close(path[:, -1], torch.tensor([[-euler[0, 0], 2 - euler[0, 1]]], dtype=F64))


def test_padded_steps_leave_the_state():
    times = torch.tensor([[0.0, 0.5, 1.0], [0.0, 1.0, 1.0]], dtype=F64)
    path = SDEPath(BrownianMotion(2.0), at(0.3, 2), TimeGrid(times), solver=ReflectedEuler(0.0)).sample()
    assert torch.equal(path[1, 1], path[1, 2])
    assert bool((path >= 0).all())


def test_reflected_brownian_motion_has_its_exact_law():
    torch.manual_seed(0)
    law = SDEPath(BrownianMotion(1.0), at(0.5), grid(4), solver=ReflectedEuler(lower=0.0))
    end = law.sample((20_000,))[:, -1]

    def cdf(x):  # |0.5 + W_1|, exact for any step without drift
        return torch.special.ndtr(x - 0.5) - torch.special.ndtr(-x - 0.5)

    ks_test(end, cdf).require(detects=0.03)


def test_between_two_ends_brownian_motion_becomes_uniform():
    torch.manual_seed(1)
    law = SDEPath(BrownianMotion(1.0), at(0.2), grid(8, 4.0), solver=ReflectedEuler(0.0, 1.0))
    ks_test(law.sample((20_000,))[:, -1], lambda x: x).require(detects=0.03)


def test_stationary_law_of_a_reflected_ornstein_uhlenbeck_process_is_half_normal():
    torch.manual_seed(2)
    sde = SDE(lambda t, z: -z, lambda t, z: math.sqrt(2.0) * torch.ones_like(z))
    law = SDEPath(
        sde, dist.HalfNormal(torch.ones(1, dtype=F64)).to_event(1), grid(400, 4.0), solver=ReflectedEuler(0.0)
    )
    end = law.sample((20_000,))[:, -1]
    assert_mean(end, math.sqrt(2 / math.pi), detects=0.03)
    assert_mean(end.square(), 1.0, detects=0.08)


def test_a_square_root_process_that_touches_zero_keeps_its_moments():
    torch.manual_seed(3)
    process = CoxIngersollRoss(1.0, 0.5, 1.2)  # 2 rate mean < scale ** 2
    path = SDEPath(process, at(0.5), grid(400), solver=ReflectedEuler(lower=0.0)).sample((10_000,))
    mean, variance = process.moments(1.0, 0.5)
    assert bool((path >= 0).all())
    assert_mean(path[:, -1, 0], mean, detects=0.05)
    assert_mean((path[:, -1, 0] - mean).square(), variance, detects=0.12)


def test_float32_paths_stay_inside():
    law = SDEPath(BrownianMotion(3.0), at(0.2, 3, F32), grid(50, dtype=F32), solver=ReflectedEuler(0.1, 0.4))
    path = law.sample((200,))
    assert path.dtype == F32
    assert bool(((path >= torch.tensor(0.1)) & (path <= torch.tensor(0.4))).all())


def test_the_support_is_the_set():
    assert ReflectedEuler(0.0).support.check(torch.tensor([-1.0, 1.0])).tolist() == [False, True]
    assert ReflectedEuler(upper=0.0).support.check(torch.tensor([-1.0, 1.0])).tolist() == [True, False]
    assert ReflectedEuler(0.0, 0.5).support.check(torch.tensor([0.2, 1.0])).tolist() == [True, False]
    assert ReflectedEuler(torch.tensor([0.0, -math.inf])).support is constraints.real


def test_orders_are_those_of_the_literature():
    solver = ReflectedEuler(0.0)
    assert (solver.strong_order("diagonal"), solver.weak_order("diagonal")) == (0.5, 1.0)
    assert solver.has_density
    assert not solver.is_euler


# --- bad input -------------------------------------------------------------------------------------------
def test_boundaries_that_make_no_set_are_refused():
    with pytest.raises(ValueError, match=r"give `lower`, `upper` or both; without a boundary use EulerMaruyama\(\)"):
        ReflectedEuler()
    with pytest.raises(ValueError, match=r"`lower` must be below `upper`, received 1 and 1"):
        ReflectedEuler(1.0, 1.0)
    with pytest.raises(ValueError, match=r"`lower` must be below `upper`, received \[0.0, 2.0\] and 1"):
        ReflectedEuler(torch.tensor([0.0, 2.0]), 1.0)


def test_a_first_state_outside_is_refused_with_its_place():
    law = SDEPath(BrownianMotion(1.0), at(-0.5, 2), grid(4), solver=ReflectedEuler(0.0))
    with pytest.raises(ValueError, match=r"the state -0.5 at time 0, dimension 0, is outside .* lower=0, upper=None"):
        law.sample((3,))


def test_noise_that_is_not_diagonal_is_refused():
    sde = SDE(lambda t, z: -z, lambda t, z: torch.eye(2, dtype=F64), noise_type="additive")
    with pytest.raises(ValueError, match=r'ReflectedEuler cannot take noise_type="additive", only diagonal'):
        SDEPath(sde, at(0.5, 2), grid(4), solver=ReflectedEuler(0.0))
