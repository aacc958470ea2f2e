"""Brownian motion and Ornstein-Uhlenbeck: widths, limits and exact laws."""

from __future__ import annotations

import pytest
import torch
from pyro.nn import PyroSample
from torch.testing import assert_close

from pyro_sde.sde import BrownianMotion, OrnsteinUhlenbeck

F32, F64 = torch.float32, torch.float64
STEPS = torch.tensor([0.0, 1e-6, 1e-2, 0.7, 20.0], dtype=F64)


def test_numbers_serve_any_width_and_state_dim_sets_that_of_exact_laws():
    for make in (lambda **k: OrnsteinUhlenbeck(1.3, 0.4, 0.2, **k), lambda **k: BrownianMotion(0.4, 0.2, **k)):
        sde = make()
        assert sde.state_dim == 1
        assert sde.drift(torch.zeros(1), torch.zeros(5, 3)).shape == (5, 3)
        wide = make(state_dim=3)
        one, three = sde.transition(STEPS), wide.transition(STEPS)
        assert three.matrix.shape == (5, 3, 3)
        eye = torch.eye(3, dtype=F64)
        assert_close(three.matrix, one.matrix * eye)
        assert_close(three.covariance, one.covariance * eye)
        assert_close(three.offset, one.offset.expand(5, 3))


def test_the_width_is_that_of_the_parameters():
    assert OrnsteinUhlenbeck(torch.ones(3), 0.5).state_dim == 3
    assert OrnsteinUhlenbeck(torch.ones(4, 1), torch.ones(3)).state_dim == 3
    assert OrnsteinUhlenbeck(torch.ones(4, 1), 1.0, state_dim=2).system().matrix.shape == (4, 2, 2)
    assert BrownianMotion(torch.tensor(0.5)).state_dim == 1
    assert BrownianMotion(PyroSample(lambda self: None), state_dim=2).state_dim == 2


@pytest.mark.parametrize(
    ("rate", "scale", "width"), [(torch.ones(3), torch.ones(2), None), (torch.ones(3), 1.0, 2), (1.0, 1.0, 0)]
)
def test_widths_that_do_not_fit_raise(rate, scale, width):
    with pytest.raises(ValueError, match="the last axis of every parameter must be the state dimension or 1"):
        OrnsteinUhlenbeck(rate, scale, state_dim=width)


def test_a_slow_process_is_brownian_motion():
    brownian = BrownianMotion(0.7).transition(STEPS)
    for rate in (0.0, 1e-12, -1e-12):
        for value, expected in zip(OrnsteinUhlenbeck(rate, 0.7).transition(STEPS), brownian, strict=True):
            assert_close(value, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("rate", [0.0, 1e-9, 4.9e-3, 5.1e-3, 0.3, -0.4])
def test_gradients_are_right_for_all_rates(rate):
    dt = torch.ones(1, dtype=F64, requires_grad=True)
    rate = torch.tensor([rate], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r, t: OrnsteinUhlenbeck(r, 0.7, 0.3).transition(t), (rate, dt))


@pytest.mark.parametrize("x", [1e-9, 9.9e-3, 1.01e-2, 1.0, 30.0])
def test_variances_are_exact_on_both_sides_of_the_series(x):
    variance = OrnsteinUhlenbeck(0.5, 1.0).transition(torch.tensor([x], dtype=F64)).covariance[0, 0, 0]
    assert_close(variance, -torch.expm1(torch.tensor(-x, dtype=F64)), rtol=3e-16 * 4, atol=0)


def test_a_directed_motion_moves_by_its_velocity():
    matrix, offset, covariance = BrownianMotion(0.5, torch.tensor([2.0, -1.0])).transition(torch.tensor([0.5, 3.0]))
    assert_close(matrix, torch.eye(2).expand(2, 2, 2))
    assert_close(offset, torch.tensor([[1.0, -0.5], [6.0, -3.0]]))
    assert_close(covariance, 0.25 * torch.tensor([0.5, 3.0])[:, None, None] * torch.eye(2))


@pytest.mark.parametrize("rate", [0.0, -0.3])
def test_a_rate_that_is_not_positive_has_no_stationary_law(rate):
    sde = OrnsteinUhlenbeck(torch.tensor([1.0, rate]), 1.0)
    with pytest.raises(ValueError, match=f"OrnsteinUhlenbeck has no stationary law: the eigenvalue -?{-rate:.3g} of"):
        sde.stationary()


def test_brownian_motion_has_no_stationary_law():
    with pytest.raises(ValueError, match="BrownianMotion has no stationary law: the eigenvalue 0 of its drift"):
        BrownianMotion(1.0, state_dim=2).stationary()


def test_many_dimensions_need_no_large_system():
    mean, covariance = OrnsteinUhlenbeck(torch.linspace(1, 2, 300), 1.0, 0.5).stationary()
    assert_close(covariance.diagonal(), 0.5 / torch.linspace(1, 2, 300))
    assert_close(mean, torch.full((300,), 0.5))


def test_solvers_may_read_the_coefficients_as_affine_functions():
    t, z = torch.zeros(4, 1), torch.randn(4, 2)
    for sde in (OrnsteinUhlenbeck(torch.tensor([1.3, 0.5]), 0.4, 0.2), BrownianMotion(0.4, torch.tensor([0.2, 1.0]))):
        networks = sde.networks(t, (None,))
        for network, value in zip(networks, sde.coefficients(t, z, (None,)), strict=True):
            if network is not None:
                rate = 0.0 if network.rate is None else network.rate
                assert_close((network.shift - rate * z).expand(4, 2), value.expand(4, 2))
        assert sde.networks(t.double(), (None,)) is None  # tensors of another dtype
        assert sde.networks(t, (torch.zeros(4, 1),)) is None
