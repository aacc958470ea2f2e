"""Fixed-grid solvers: equal to a plain loop, right in law at every observation time, of the order they claim."""

from __future__ import annotations

import math

import pytest
import torch
import torchsde
from scipy.stats import kstest
from torch.testing import assert_close

from pyro_sde.ops.brownian import wiener_increments
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.sde import SDE, BrownianMotion, GeometricBrownianMotion, OrnsteinUhlenbeck
from pyro_sde.solvers import EulerMaruyama, integrate

F32, F64 = torch.float32, torch.float64

both_dtypes = pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])

TIMES = torch.tensor([[0.0, 0.3, 1.1, 2.0], [0.1, 0.2, 0.2, 0.2], [-1.0, 3.0, 3.3, 3.3]], dtype=F64)
BATCH, STATE = 3, 2


def drift(t, z, inputs=None):
    return torch.sin(t) * z.tanh() - z + (0 if inputs is None else inputs[..., :STATE])


# noise type -> (diffusion, Brownian dimensions)
NOISES = {
    "diagonal": (lambda t, z: 0.3 + 0.1 * t * z, 2),
    "scalar": (lambda t, z: (0.2 * z).unsqueeze(-1), 1),
    "additive": (lambda t, z: (1 + t).unsqueeze(-1) * torch.tensor([[0.1, 0.2, 0.0], [0.0, 0.3, 0.1]]).to(z), 3),
    "general": (lambda t, z: torch.stack([0.1 * z, 0.2 * z.flip(-1), 0.1 + 0 * z], -1), 3),
}


def plain_loop(sde, grid, initial, normal, context=None, exogenous=None):
    """Euler–Maruyama, one series and one step after the other; noise ``(K, *left, B, M)``."""
    series = []
    for b in range(BATCH):
        z = initial[..., b, :]
        states = [z]
        for k in range(grid.num_steps):
            t, h = grid.times[b, k : k + 1], grid.steps[b, k]
            f = sde.drift(t, z) if exogenous is None else sde.drift(t, z, exogenous[b, k])
            g = sde.diffusion(t, z)
            g = torch.diag_embed(g.expand_as(z)) if sde.noise_type == "diagonal" else g
            driver = normal[k, ..., b, :] * math.sqrt(h)
            if context is not None:
                driver = driver + h * sde.control(t, z, context[b, k])
            z = z + h * f + (g @ driver.unsqueeze(-1)).squeeze(-1)
            states.append(z)
        series.append(torch.stack(states, -2))
    return torch.stack(series, -3)


# --- the loop -------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise_type", sorted(NOISES))
@pytest.mark.parametrize("left", [(), (4,), (2, 3)], ids=str)
@pytest.mark.parametrize("inputs", ["none", "drift", "control", "both"])
def test_integrating_equals_a_plain_loop(noise_type, left, inputs):
    diffusion, brownian_dim = NOISES[noise_type]
    grid = TimeGrid(TIMES, max_step=0.3)
    exogenous = torch.randn(BATCH, grid.num_steps, STATE, dtype=F64) if inputs in ("drift", "both") else None
    context = torch.randn(BATCH, grid.num_steps, brownian_dim, dtype=F64) if inputs in ("control", "both") else None
    sde = SDE(drift, diffusion, noise_type=noise_type)
    sde = sde if exogenous is None else sde.with_inputs(exogenous)
    sde = sde if context is None else sde.controlled(lambda t, z, c: c * z[..., :1].tanh())
    initial = torch.randn(*left, BATCH, STATE, dtype=F64)
    normal = torch.randn(grid.num_steps, *left, BATCH, brownian_dim, dtype=F64)
    path = integrate(EulerMaruyama(), sde, grid, initial, normal, sde.bind_rows(context))
    assert path.shape == (*left, BATCH, grid.num_steps + 1, STATE)
    assert_close(path, plain_loop(sde, grid, initial, normal, context, exogenous), rtol=1e-12, atol=1e-12)


@both_dtypes
def test_a_path_stays_where_its_series_has_ended(dtype):
    grid = TimeGrid(TIMES.to(dtype), max_step=0.3)
    sde = SDE(drift, NOISES["diagonal"][0])
    normal = torch.randn(grid.num_steps, BATCH, STATE, dtype=dtype)
    path = integrate(EulerMaruyama(), sde, grid, torch.randn(BATCH, STATE, dtype=dtype), normal, (None,))
    assert path.dtype == dtype
    padded = torch.cat([torch.zeros(BATCH, 1, dtype=torch.bool), grid.steps == 0], -1)
    assert padded.any()
    for b in range(BATCH):
        last = int((grid.steps[b] > 0).sum())
        assert (path[b, last:] == path[b, last]).all()


def test_float32_agrees_with_float64():
    grid, sde = TimeGrid(TIMES, max_step=0.1), SDE(drift, NOISES["diagonal"][0])
    normal = torch.randn(grid.num_steps, BATCH, STATE, dtype=F64)
    initial = torch.randn(BATCH, STATE, dtype=F64)
    path = integrate(EulerMaruyama(), sde, grid, initial, normal, (None,))
    single = TimeGrid(TIMES.float(), max_step=0.1)
    low = integrate(EulerMaruyama(), sde, single, initial.float(), normal.float(), (None,))
    assert_close(low.double(), path, rtol=1e-4, atol=1e-4)


def test_a_grid_without_steps_gives_the_first_state():
    initial = torch.randn(5, 2)
    normal = torch.zeros(0, 5, 2)
    path = integrate(EulerMaruyama(), SDE(drift, NOISES["diagonal"][0]), TimeGrid([0.7]), initial, normal, (None,))
    assert torch.equal(path, initial.unsqueeze(-2))


def test_one_noise_for_all_series_of_a_batch_of_grids():
    grid = TimeGrid(TIMES, max_step=1.5)
    sde = SDE(drift, NOISES["diagonal"][0])
    initial, normal = torch.randn(STATE, dtype=F64), torch.randn(grid.num_steps, STATE, dtype=F64)
    path = integrate(EulerMaruyama(), sde, grid, initial, normal, (None,))
    assert path.shape == (BATCH, grid.num_steps + 1, STATE)
    for b in range(BATCH):
        single = integrate(EulerMaruyama(), sde, grid[b], initial, normal, (None,))
        assert_close(path[b], single, rtol=1e-12, atol=1e-12)


def test_noise_is_never_matched_with_the_series_by_its_number_of_steps():
    times = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.5, 3.0]], dtype=F64)  # as many series as steps
    grid, sde = TimeGrid(times), BrownianMotion()
    normal = torch.tensor([[1.0], [10.0]], dtype=F64)
    path = integrate(EulerMaruyama(), sde, grid, torch.zeros(1, dtype=F64), normal, (None,))
    expected = [[0, 1, 11], [0, math.sqrt(0.5), math.sqrt(0.5) + 10 * math.sqrt(2.5)]]
    assert_close(path.squeeze(-1), torch.tensor(expected, dtype=F64))


def test_coefficients_may_have_more_batch_dimensions_than_the_first_state():
    grid = TimeGrid([0.0, 1.0], max_step=0.5)
    sde = OrnsteinUhlenbeck(torch.tensor([[1.0], [2.0], [3.0]]), 0.1)
    normal = torch.randn(grid.num_steps, 2)
    path = integrate(EulerMaruyama(), sde, grid, torch.ones(2), normal, (None,))
    assert path.shape == (3, 3, 2)
    for b, rate in enumerate([1.0, 2.0, 3.0]):
        single = integrate(EulerMaruyama(), OrnsteinUhlenbeck(rate, 0.1), grid, torch.ones(2), normal, (None,))
        assert_close(path[b], single)


def test_a_stratonovich_sde_is_converted():
    grid, normal = TimeGrid([0.0, 1.0]), torch.ones(1, 1)
    sde = SDE(lambda t, z: 0 * z, lambda t, z: z, sde_type="stratonovich")
    for given in (sde, sde.ito(), sde.ito().stratonovich()):
        path = integrate(EulerMaruyama(), given, grid, torch.ones(1), normal, (None,))
        assert path.squeeze(-1).tolist() == [1, 2.5]
    controlled = sde.controlled(lambda t, z: z)
    path = integrate(EulerMaruyama(), controlled, grid, torch.ones(1), normal, (None, None))
    assert path.squeeze(-1).tolist() == [1, 3.5]


@pytest.mark.parametrize("noise_type", sorted(NOISES))
def test_gradients_are_those_of_finite_differences(noise_type):
    diffusion, brownian_dim = NOISES[noise_type]
    grid = TimeGrid(TIMES, max_step=1.0)
    normal = torch.randn(grid.num_steps, BATCH, brownian_dim, dtype=F64)

    def path(times, initial, normal):
        masked = TimeGrid(times, max_step=1.0, mask=grid.mask)
        sde = SDE(drift, diffusion, noise_type=noise_type)
        return integrate(EulerMaruyama(), sde, masked, initial, normal, (None,))

    initial = torch.randn(BATCH, STATE, dtype=F64)
    assert torch.autograd.gradcheck(
        path, (TIMES.clone().requires_grad_(), initial.requires_grad_(), normal.requires_grad_())
    )


class _Interval:
    """The Brownian motion that torchsde asks for, from given increments."""

    levy_area_approximation = "none"

    def __init__(self, times, increments):
        self.increments = dict(zip(times.tolist(), increments, strict=False))
        self.shape, self.dtype, self.device = increments[0].shape, increments.dtype, increments.device

    def __call__(self, start, end, return_U=False, return_A=False):  # noqa: N803
        return self.increments[float(start)]


@pytest.mark.parametrize("noise_type", sorted(NOISES))
def test_the_path_is_that_of_torchsde_on_the_same_noise(noise_type):
    diffusion, brownian_dim = NOISES[noise_type]
    original = torchsde.BaseSDE(noise_type=noise_type, sde_type="ito")
    original.f = lambda t, y: drift(t.reshape(1), y)
    original.g = lambda t, y: diffusion(t.reshape(1), y).expand(5, *diffusion(t.reshape(1), y[0]).shape)
    times = torch.linspace(0, 2, 9, dtype=F64)  # dyadic steps: torchsde adds them up
    grid = TimeGrid(times)
    initial, normal = torch.randn(5, STATE, dtype=F64), torch.randn(8, 5, brownian_dim, dtype=F64)
    interval = _Interval(times, wiener_increments(grid.steps.reshape(-1, 1, 1), normal))
    expected = torchsde.sdeint(original, initial, times, bm=interval, method="euler", dt=0.25)
    sde = SDE.from_torchsde(original)
    path = integrate(EulerMaruyama(), sde, grid, initial, normal, (None,))
    assert_close(path.movedim(-2, 0), expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_a_padded_path_are_finite_and_zero_for_the_noise_behind_its_end():
    times = TIMES.clone().requires_grad_()
    grid = TimeGrid(times, max_step=0.3)
    normal = torch.randn(grid.num_steps, BATCH, STATE, dtype=F64, requires_grad=True)
    initial = torch.randn(BATCH, STATE, dtype=F64)
    path = integrate(EulerMaruyama(), SDE(drift, NOISES["diagonal"][0]), grid, initial, normal, (None,))
    path.square().sum().backward()
    assert torch.isfinite(times.grad).all()
    assert (normal.grad[grid.steps.mT == 0] == 0).all()
    assert (normal.grad[grid.steps.mT > 0] != 0).all()


# --- law ------------------------------------------------------------------------------------------


def test_brownian_motion_has_variance_t_at_any_requested_time():
    # Ten random observation times inside coarse steps: a solver that interpolates has half the variance there.
    # Ten tests at 1e-6 and the correlations below at 7e-6 fail by chance at a rate of 2e-5 together; 40 000 paths find
    # errors of 16 % of a variance.
    failure_rate, paths = 1e-6, 40_000
    generator = torch.Generator().manual_seed(1)
    times = torch.rand(10, dtype=F64, generator=generator).sort().values
    grid = TimeGrid(times, start=0.0, end=1.0, max_step=0.4)
    assert grid.num_steps < 14
    normal = torch.randn(grid.num_steps, paths, 1, dtype=F64, generator=generator)
    path = integrate(EulerMaruyama(), BrownianMotion(), grid, torch.zeros(paths, 1, dtype=F64), normal, (None,))
    standard = grid.observed(path).squeeze(-1) / times.sqrt()
    for i in range(10):
        assert kstest(standard[:, i].numpy(), "norm").pvalue > failure_rate
    between = grid.observed(path).squeeze(-1).diff(dim=-1) / times.diff().sqrt()
    correlation = torch.corrcoef(between.mT) - torch.eye(9, dtype=F64)
    assert correlation.abs().max() < 5.2 / math.sqrt(paths)  # 36 pairs, 7e-6 together: increments are independent


def nested_normals(paths, finest, generator, dim=1):
    """Standard normals on `finest` steps, and how to add them up on a grid of fewer steps."""
    normal = torch.randn(finest, paths, dim, dtype=F64, generator=generator)
    return normal, lambda steps: normal.reshape(steps, finest // steps, paths, dim).sum(1) / math.sqrt(finest // steps)


def order(steps, errors, batches=20):
    """Slope of log error against log step and its standard error over batches of paths; errors ``(levels, paths)``."""
    x = -torch.tensor(steps, dtype=F64).log()
    x = x - x.mean()

    def slope(e):
        return float((x * e.mean(-1).log()).sum() / (x * x).sum())

    slopes = torch.tensor([slope(e) for e in errors.chunk(batches, -1)])
    return slope(errors), float(slopes.std() / math.sqrt(batches))


def test_strong_order_for_multiplicative_noise():
    growth, volatility, paths, steps = 0.5, 0.8, 20_000, [8, 16, 32, 64, 128]
    normal, on_grid = nested_normals(paths, steps[-1], torch.Generator().manual_seed(2))
    end = normal.sum(0) / math.sqrt(steps[-1])
    exact = torch.exp((growth - volatility**2 / 2) + volatility * end)
    initial, errors = torch.ones(paths, 1, dtype=F64), []
    sde = GeometricBrownianMotion(growth, volatility)
    for n in steps:
        grid = TimeGrid(torch.tensor([0.0, 1.0], dtype=F64), max_step=1 / n)
        path = integrate(EulerMaruyama(), sde, grid, initial, on_grid(n), (None,))
        errors.append((path[:, -1] - exact).abs().squeeze(-1))
    slope, standard_error = order(steps, torch.stack(errors))
    assert standard_error < 0.03
    assert abs(slope - EulerMaruyama().strong_order("diagonal")) < 0.1


def test_strong_order_for_additive_noise():
    rate, scale, paths, steps = 1.5, 0.7, 4_000, [8, 16, 32, 64, 128]
    h = 1 / steps[-1]
    normal, on_grid = nested_normals(paths, steps[-1], torch.Generator().manual_seed(3))
    # The exact step z -> e^{-rate h} z + scale int e^{-rate (h - s)} dW_s, whose integral is jointly normal with dW:
    # variances (1 - e^{-2 rate h}) / (2 rate) and h, covariance (1 - e^{-rate h}) / rate.
    covariance = -math.expm1(-rate * h) / rate
    rest = -math.expm1(-2 * rate * h) / (2 * rate) - covariance**2 / h
    other = torch.randn(normal.shape, dtype=F64, generator=torch.Generator().manual_seed(4))
    integral = normal * covariance / math.sqrt(h) + other * math.sqrt(rest)
    exact = torch.ones(paths, 1, dtype=F64)
    for k in range(steps[-1]):
        exact = math.exp(-rate * h) * exact + scale * integral[k]
    initial, errors = torch.ones(paths, 1, dtype=F64), []
    for n in steps:
        grid = TimeGrid(torch.tensor([0.0, 1.0], dtype=F64), max_step=1 / n)
        path = integrate(EulerMaruyama(), OrnsteinUhlenbeck(rate, scale), grid, initial, on_grid(n), (None,))
        errors.append((path[:, -1] - exact).abs().squeeze(-1))
    slope, standard_error = order(steps, torch.stack(errors))
    assert standard_error < 0.03
    assert abs(slope - EulerMaruyama().strong_order("additive")) < 0.1


def test_brownian_motion_is_exact_on_every_nested_grid():
    normal, on_grid = nested_normals(7, 16, torch.Generator().manual_seed(5), dim=2)
    coarse = TimeGrid(torch.tensor([0.0, 0.3, 1.0], dtype=F64))
    fine = coarse.refine(8)
    initial = torch.zeros(7, 2, dtype=F64)
    ends = [
        integrate(EulerMaruyama(), BrownianMotion(0.7, 0.2), grid, initial, noise, (None,))[:, -1]
        for grid, noise in ((coarse, on_grid(2)), (fine, normal))
    ]
    assert_close(ends[0], ends[1], rtol=1e-12, atol=1e-12)
