"""Splitting steps: exact parts, order of convergence, and states that stay inside."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyro_sde.distributions import SDEPath
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.sde import GeometricBrownianMotion
from pyro_sde.sde.bounded_library import CoxIngersollRoss, LogisticGrowth, WrightFisher
from pyro_sde.solvers.fixed import integrate
from pyro_sde.solvers.splitting import SplitStep, Splittable
from pyro_sde.testing.statistics import assert_mean

F64 = torch.float64
# name -> process, first state, noise-free Stratonovich drift by hand
PROCESSES = {
    "square-root": (CoxIngersollRoss(2.0, 0.5, 1.0), 0.4, lambda x: 2.0 * (0.5 - x) - 0.25),
    "logistic": (LogisticGrowth(1.5, 2.0, 0.6), 0.4, lambda x: 1.5 * x * (1 - x / 2) - 0.18 * x),
    "wright-fisher": (
        WrightFisher(0.6, 0.9, 0.0, 0.8),
        0.4,
        lambda x: 0.6 * (1 - x) - 0.9 * x - 0.16 * (1 - 2 * x),
    ),
    "selection": (
        WrightFisher(0.6, 0.9, 1.3, 0.8),
        0.4,
        lambda x: 0.6 * (1 - x) - 0.9 * x + 1.3 * x * (1 - x) - 0.16 * (1 - 2 * x),
    ),
}


@pytest.fixture(params=sorted(PROCESSES))
def process(request):
    return PROCESSES[request.param]


def grid(steps, end=1.0):
    return TimeGrid(torch.linspace(0.0, end, steps + 1, dtype=F64))


def column(value):
    return torch.tensor([value], dtype=F64)


def runge_kutta(slope, x, span, steps=400):
    h = span / steps
    for _ in range(steps):
        k1 = slope(x)
        k2 = slope(x + h / 2 * k1)
        k3 = slope(x + h / 2 * k2)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(x + h * k3))
    return x


def test_the_flows_solve_their_halves(process):
    sde, x, slope = process
    tolerance = 1e-3 if getattr(sde.drift, "selection", 0.0) else 1e-9  # split once more: second order
    assert_close(sde.drift_flow(column(x), column(0.1)), column(runge_kutta(slope, x, 0.1)), rtol=0, atol=tolerance)

    def sigma(z):
        return float(sde.diffusion(torch.zeros(1), column(z)))

    forth, back = runge_kutta(sigma, x, 0.8), runge_kutta(lambda z: -sigma(z), x, 0.7)
    assert_close(sde.noise_flow(column(x), column(0.8)), column(forth), rtol=0, atol=1e-9)
    assert_close(sde.noise_flow(column(x), column(-0.7)), column(back), rtol=0, atol=1e-9)


def test_the_flow_of_no_growth_is_its_limit():
    flat, near = (LogisticGrowth(0.5 * s**2, 2.0, s) for s in (0.6, 0.6 * (1 + 1e-9)))
    assert_close(flat.drift_flow(column(0.4), column(2.0)), near.drift_flow(column(0.4), column(2.0)))
    assert_close(flat.drift_flow(column(0.4), column(2.0)), column(0.4 / (1 + 0.18 / 2 * 0.4 * 2)))


def test_strong_order_is_one(process):
    sde, x, _ = process
    torch.manual_seed(0)
    paths, finest = 2000, 512
    normal = torch.randn(finest, paths, 1, dtype=F64)
    start, ends, sizes = torch.full((paths, 1), x, dtype=F64), {}, (8, 16, 32, 64, finest)
    for steps in sizes:
        coarse = normal.reshape(steps, finest // steps, paths, 1).sum(1) / math.sqrt(finest // steps)
        ends[steps] = integrate(SplitStep(), sde, grid(steps), start, coarse, (None,))[:, -1]
    errors = torch.stack([(ends[n] - ends[finest]).abs().mean() * n / (1 - n / finest) for n in sizes[:-1]])
    order = -torch.log2(errors[-1] / errors[0]) / 3 + 1  # error times n is flat at order 1
    assert abs(float(order) - 1) < 0.1


def test_weak_error_falls_by_the_square():
    """By the first two moments of a square-root process, which every part of a step maps to moments."""
    sde = CoxIngersollRoss(2.0, 0.5, 1.0)
    mean, variance = sde.moments(1.0, 0.4)
    errors = []
    for steps in (4, 8, 16):
        h = 1.0 / steps
        decay, shift = math.exp(-2.0 * h / 2), (0.5 - 0.125) * (1 - math.exp(-2.0 * h / 2))
        m1, m2 = 0.4, 0.4**2
        for _ in range(steps):
            m1, m2 = decay * m1 + shift, decay**2 * m2 + 2 * decay * shift * m1 + shift**2
            v = 0.25 * h  # (sqrt x + e)^2 with e ~ N(0, v)
            m1, m2 = m1 + v, m2 + 6 * v * m1 + 3 * v**2
            m1, m2 = decay * m1 + shift, decay**2 * m2 + 2 * decay * shift * m1 + shift**2
        errors.append(abs(m2 - float(variance + mean.square())))
    assert abs(math.log2(errors[0] / errors[2]) / 2 - 2) < 0.1
    torch.manual_seed(4)
    end = SDEPath(sde, dist.Delta(column(0.4), event_dim=1), grid(4), solver=SplitStep()).sample((40_000,))[:, -1, 0]
    h = 0.25
    decay, shift, m1 = math.exp(-h), 0.375 * (1 - math.exp(-h)), 0.4
    for _ in range(4):
        m1 = decay * (decay * m1 + shift + 0.25 * h) + shift
    assert_mean(end, m1, detects=0.02)


def test_no_state_leaves_its_set_in_a_million_steps(process):
    sde, x, _ = process
    torch.manual_seed(5)
    start = dist.Delta(column(x), event_dim=1)
    path = SDEPath(sde, start, grid(10, 5.0), solver=SplitStep()).sample((100_000,))  # h = 0.5
    assert bool((path >= 0).all())
    assert not isinstance(sde, WrightFisher) or bool((path <= 1).all())


def test_a_control_shifts_the_driving_noise():
    sde = LogisticGrowth(1.5, 2.0, 0.6)
    normal = torch.randn(200, 3, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    start = torch.full((3, 1), 0.4, dtype=F64)
    controlled = sde.controlled(lambda t, x: 0.7 * torch.ones_like(x))
    path = integrate(SplitStep(), controlled, grid(200), start, normal, (None, None))
    moved = integrate(SplitStep(), sde, grid(200), start, normal + 0.7 * math.sqrt(1 / 200), (None,))
    assert_close(path, moved)


def test_the_divergence_is_that_of_the_control_and_there_is_no_density():
    sde = CoxIngersollRoss(2.0, 0.5, 1.0)
    law = SDEPath(sde, dist.Delta(column(0.4), event_dim=1), grid(4), solver=SplitStep())
    with pytest.raises(ValueError, match=r"a step of SplitStep\(\) has no density"):
        law.log_prob(law.sample())
    assert not SplitStep().has_density
    assert (SplitStep().strong_order("diagonal"), SplitStep().weak_order("diagonal")) == (1.0, 2.0)


def test_float32_steps_stay_float32():
    start = dist.Delta(torch.full((3,), 0.4), event_dim=1)
    for sde, _, _ in PROCESSES.values():
        path = SDEPath(sde, start, TimeGrid(torch.linspace(0.0, 1.0, 5)), solver=SplitStep()).sample((3,))
        assert path.dtype == torch.float32


def test_other_processes_are_refused():
    assert isinstance(CoxIngersollRoss(1.0, 1.0, 1.0), Splittable)
    with pytest.raises(
        ValueError, match=r"SplitStep needs an SDE with exact flows .* received GeometricBrownianMotion"
    ):
        SplitStep().adapt(GeometricBrownianMotion(0.1, 0.2))
    with pytest.raises(ValueError, match=r"needs 4 \* rate \* mean >= scale\*\*2, received a ratio of 0.5: .* Reflec"):
        SplitStep().adapt(CoxIngersollRoss(1.0, torch.tensor([0.5, 2.0]), 2.0).controlled(lambda t, x: x))
    with pytest.raises(ValueError, match=r"4 \* gain >= scale\*\*2 and 4 \* loss >= .* smallest ratio of 0.4"):
        SplitStep().adapt(WrightFisher(0.1, 0.3))
