"""Drift-implicit Euler: the equation is solved to round-off, its gradient is exact, and stiff drifts are stable."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from pyro_sde import SDE, TimeGrid
from pyro_sde.solvers.drift_implicit import DriftImplicitEuler
from pyro_sde.solvers.fixed import integrate

F32, F64 = torch.float32, torch.float64
GRID = TimeGrid(torch.tensor([0.0, 0.25, 0.75, 1.0], dtype=F64))


def drift(t, z):
    return (3 * t).cos() - z**3 + z.flip(-1)


def diffusion(t, z):
    return 0.5 + 0.2 * (t + z).sin()


NOISE = torch.randn(3, 5, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
FIRST = torch.linspace(-2, 2, 10, dtype=F64).reshape(5, 2)


@pytest.mark.parametrize("theta", [1.0, 0.5, 0.8])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F32, 1e-5), (F64, 1e-13)], ids=["float32", "float64"])
def test_every_step_solves_its_equation(theta, dtype, tolerance):
    sde = SDE(drift, diffusion).controlled(lambda t, z: t - z)
    grid = TimeGrid(GRID.times.to(dtype))
    path = integrate(DriftImplicitEuler(theta), sde, grid, FIRST.to(dtype), NOISE.to(dtype), (None, None))
    assert path.dtype == dtype

    def total(t, z):
        return drift(t, z) + diffusion(t, z) * (t - z)

    for k in range(3):
        (t, s), h = grid.times[k : k + 2].unsqueeze(-1), grid.steps[k]
        z, after = path[:, k], path[:, k + 1]
        implicit = (1 - theta) * total(t, z) + theta * total(s, after)
        expected = z + implicit * h + diffusion(t, z) * h.sqrt() * NOISE[k].to(dtype)
        assert_close(after, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("theta", [1.0, 0.5])
def test_gradients_are_those_of_finite_differences(theta):
    def end(rate, first, noise, times):
        sde = SDE(lambda t, z: -rate * z**3 + t, lambda t, z: 0.5 + 0.2 * z.sin())
        return integrate(DriftImplicitEuler(theta), sde, TimeGrid(times), first, noise, (None,))[..., -1, :]

    rate = torch.tensor([0.7, 1.3], dtype=F64)
    parts = (rate, FIRST[:2], NOISE[:, :2], GRID.times)
    assert torch.autograd.gradcheck(end, tuple(part.clone().requires_grad_() for part in parts))


def test_a_stiff_drift_is_damped_and_a_cubic_one_does_not_explode():
    sde = SDE(lambda t, z: -1e4 * z - z**5, lambda t, z: torch.ones_like(z))
    path = integrate(DriftImplicitEuler(), sde, GRID, 50 * FIRST, NOISE, (None,))
    assert float(path[:, 1].abs().max()) < 0.05  # 100 / (1 + 1e4 / 4)
    assert float(path[:, 2:].abs().max()) < 1e-3
    assert torch.isfinite(path).all()


def test_a_series_does_not_depend_on_the_others():
    generator = torch.Generator().manual_seed(0)
    first = 3 * torch.randn(200, 2, dtype=F64, generator=generator)
    first[0] = 1e4  # needs many iterations more than the others
    normal = torch.randn(3, 200, 2, dtype=F64, generator=generator)
    path = integrate(DriftImplicitEuler(), SDE(drift, diffusion), GRID, first, normal, (None,))
    alone = integrate(DriftImplicitEuler(), SDE(drift, diffusion), GRID, first[1:], normal[:, 1:], (None,))
    assert torch.equal(path[1:], alone)


def test_steps_of_newton_that_overshoot_are_halved():
    sde = SDE(lambda t, z: -50 * (20 * z).atan(), lambda t, z: torch.ones_like(z))
    first = torch.tensor([[5.0], [40.0]], dtype=F64)
    grid = TimeGrid(torch.tensor([0.0, 1.0], dtype=F64))
    end = integrate(DriftImplicitEuler(), sde, grid, first, torch.zeros(1, 2, 1, dtype=F64), (None,))[:, -1]
    assert_close(end + 50 * (20 * end).atan(), first)


def test_an_equation_without_solution_is_named():
    sde = SDE(lambda t, z: 1 + z**2, lambda t, z: 0 * z)
    first, noise = torch.tensor([[-9.0], [4.0]], dtype=F64), torch.zeros(1, 2, 1, dtype=F64)
    grid = TimeGrid(torch.tensor([0.0, 2.0], dtype=F64))
    words = r"Newton's method did not converge in 50 iterations in the step from time 0, series \[1\].*smaller steps"
    with pytest.raises(ValueError, match=words):
        integrate(DriftImplicitEuler(), sde, grid, first, noise, (None,))


@pytest.mark.parametrize("theta", [0.0, -1.0, 1.5])
def test_a_weight_out_of_range_raises(theta):
    with pytest.raises(ValueError, match=r"`theta` must be in \(0, 1\], received"):
        DriftImplicitEuler(theta)


def test_the_trapezoidal_rule_is_of_weak_order_2_for_additive_noise():
    assert DriftImplicitEuler(0.5).weak_order("additive") == 2
    assert DriftImplicitEuler(0.6).weak_order("additive") == DriftImplicitEuler(0.5).weak_order("diagonal") == 1
