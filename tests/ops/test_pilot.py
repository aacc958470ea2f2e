"""Adaptive grids: their steps against closed forms, their independence of batch and noise, and exact densities."""

from __future__ import annotations

import copy
import math
import pickle

import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyro_sde.distributions.sde_path import SDEPath
from pyro_sde.ops._pilot_run import _local_error, _Point
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.ops.pilot import Pilot, first_states
from pyro_sde.sde.base import SDE
from pyro_sde.sde.library import DoubleWell, GeometricBrownianMotion
from pyro_sde.testing.statistics import assert_mean

F32, F64 = torch.float32, torch.float64
TIMES = torch.tensor([0.0, 0.5, 0.6, 2.0], dtype=F64)


def linear(rate, scale=0.5):
    return SDE(lambda t, z: -rate * z, lambda t, z: scale * torch.ones_like(z))


def far(*batch, paths=8, dim=1, value=4.0):
    return torch.full((paths, *batch, dim), value, dtype=F64)


def adaptive(sde, initial=None, times=TIMES, *, mask=None, start=None, end=None, **options):
    initial = far() if initial is None else initial
    times = times if isinstance(times, torch.Tensor) else torch.tensor(times, dtype=F64)
    return TimeGrid.adaptive(sde, initial, times, pilot=Pilot(**options), mask=mask, start=start, end=end)


def same(grid, other):
    names = ("times", "steps", "mask", "observed_times", "observed_index")
    return all(torch.equal(getattr(grid, n), getattr(other, n)) for n in names)


def same_row(batch, row, single):
    """Whether a series of a batch has the grid `single`, padded."""
    k = single.num_steps
    return (
        torch.equal(batch.times[row][: k + 1], single.times)
        and torch.equal(batch.steps[row][:k], single.steps)
        and bool((batch.steps[row][k:] == 0).all())
        and torch.equal(batch.observed_index[row], single.observed_index)
    )


class Counter:
    """Double well whose second state is the number of the series and never moves: rows evaluated per series."""

    def __init__(self, series):
        self.rows = torch.zeros(series, dtype=torch.long)
        self.sde = SDE(self.drift, lambda t, z: torch.tensor([1.0, 0.0], dtype=z.dtype))

    def drift(self, t, z):
        label = z[..., 1].reshape(-1).long()
        self.rows += torch.bincount(label, minlength=len(self.rows))
        return torch.stack([4 * z[..., 0] * (1 - z[..., 0] ** 2), torch.zeros_like(z[..., 1])], -1)


# --- the criterion ----------------------------------------------------------------------------------


def attempt(sde, states, h, pilot):
    """Local error of a step of size h from given states ``(P, 1, D)`` with all signs +1."""
    t, (row,) = torch.zeros(1, 1, dtype=F64), (None,)

    def point(z):
        found = sde.coefficients(t, z, (row,))
        diffusion = found.diffusion.expand(z.shape)
        return _Point(z, found.drift, diffusion, diffusion.square())

    here = point(states)
    move = here.diffusion * math.sqrt(h)
    there = point(torch.cat([states + here.drift * h + move, states + here.drift * h - move]))
    return float(_local_error(here, there, move, torch.full((1, 1), h, dtype=F64), pilot))


@pytest.mark.parametrize(("rtol", "scale"), [(0.0, 0.7), (0.1, 0.7), (0.1, 9.0)])  # smaller or larger after the step
def test_local_error_of_a_linear_sde_is_its_closed_form(rtol, scale):
    rate, h = 2.0, 0.1
    z = torch.tensor([[[1.0]], [[-2.0]], [[0.5]], [[3.0]]], dtype=F64)
    mean = (h**2 / 2 * rate**2 * z).square().mean().sqrt()
    variance = z.var(correction=0) + h * scale**2
    covariance = h**2 * rate * scale**2  # size of h^2/2 (b' a + a b')
    deviation = (variance + covariance).sqrt() - variance.sqrt()
    after = z * (1 - rate * h) + scale * math.sqrt(h)
    size = torch.maximum(z.square().mean(), after.square().mean()).sqrt()
    expected = (mean**2 + deviation**2).sqrt() / (0.01 + rtol * size)
    assert attempt(linear(rate, scale), z, h, Pilot(rtol=rtol, atol=0.01)) == pytest.approx(float(expected), rel=1e-9)


def test_local_error_sees_the_change_of_a_diffusion():
    growth, volatility, h = 0.3, 0.8, 1e-4
    z = torch.tensor([[[1.0]], [[2.0]]], dtype=F64)
    a = (volatility * z).square()
    generator = a * (2 * growth + volatility**2)  # L a
    covariance = (h**2 / 2 * (generator + 2 * growth * a)).square().mean().sqrt()
    mean = (h**2 / 2 * growth**2 * z).square().mean().sqrt()
    variance = z.var(correction=0) + h * a.mean()
    deviation = (variance + covariance).sqrt() - variance.sqrt()
    expected = (mean**2 + deviation**2).sqrt() / 0.01
    found = attempt(GeometricBrownianMotion(growth, volatility), z, h, Pilot(rtol=0, atol=0.01))
    assert found == pytest.approx(float(expected), rel=1e-3)


def test_local_error_is_that_of_the_moments_after_one_step():
    # E z_h and E z_h^2 of the double well by a fine chain; the estimate has its leading terms in h, up to noise
    torch.manual_seed(0)
    h, n, start = 0.02, 200_000, 1.2
    fine, coarse = torch.full((n,), start, dtype=F64), torch.full((n,), start, dtype=F64)
    noise = torch.randn(16, n // 2, dtype=F64) * math.sqrt(h / 16)
    noise = torch.cat([noise, -noise], -1)
    for part in noise:
        fine = fine + 4 * fine * (1 - fine**2) * h / 16 + part
    coarse = coarse + 4 * coarse * (1 - coarse**2) * h + noise.sum(0)
    wrong = math.hypot(float(fine.mean() - coarse.mean()), float(fine.std() - coarse.std()))
    states = torch.full((1, 1, 1), start, dtype=F64)
    assert attempt(DoubleWell(), states, h, Pilot(rtol=0, atol=1)) == pytest.approx(wrong * 16 / 15, rel=0.15)


def test_every_step_of_a_decay_keeps_the_tolerance_and_few_fall_far_below_it():
    rate, atol = 3.0, 1e-3
    grid = adaptive(linear(rate, 0.0), times=[0.0, 3.0], rtol=0, atol=atol)
    states = 4 * torch.cumprod(1 - rate * grid.steps.double(), 0) / (1 - rate * grid.steps.double())
    error = (grid.steps.double() * rate).square() / 2 * states / atol
    assert error.max() <= 1
    assert error[1:-2].median() == pytest.approx(0.8, abs=0.1)
    assert grid.steps[-2] > 5 * grid.steps[1]


def test_a_step_over_a_jump_of_the_drift_keeps_the_tolerance():
    stairs = SDE(lambda t, z: 10 * torch.floor(5 * t + 0.1) + 0 * z, lambda t, z: 0 * z)
    grid = adaptive(stairs, times=[0.0, 1.9], rtol=0, atol=0.01)
    jumps = torch.floor(5 * grid.times + 0.1).diff() > 0
    assert jumps.sum() == 9
    assert grid.steps[jumps].max() <= 0.01 / (10 / 2) * (1 + 1e-9)  # error h / 2 times the jump
    assert grid.steps[~jumps].max() > 0.05


def test_the_number_of_steps_grows_with_the_root_of_the_tolerance():
    states = torch.linspace(-1.0, 1.0, 8, dtype=F64).unsqueeze(-1)
    counts = [adaptive(linear(1.0), states, [0.0, 2.0], rtol=0, atol=atol).num_steps for atol in (1e-3, 1e-5)]
    assert counts[1] / counts[0] == pytest.approx(10, rel=0.15)


def test_relative_tolerance_follows_the_size_of_the_state():
    counts = [
        adaptive(GeometricBrownianMotion(1.0, 0.1), far(value=value), times=[0.0, 2.0], rtol=1e-2, atol=0).num_steps
        for value in (1.0, 1e6)
    ]
    assert counts[0] == counts[1]
    assert adaptive(GeometricBrownianMotion(1.0, 0.1), far(value=1e6), [0.0, 2.0], rtol=0, atol=1e2).num_steps > 100


def test_steps_are_short_while_a_path_falls_into_its_well_and_long_afterwards():
    grid = adaptive(DoubleWell(), times=[0.0, 2.0])
    assert grid.times[10] < 0.02
    assert grid.steps[-20:].mean() > 5 * grid.steps[:5].mean()


def test_a_drift_that_depends_on_time_gets_short_steps_where_it_changes():
    sde = SDE(lambda t, z: 50 * torch.exp(-(((t - 1) / 0.05) ** 2)) - z, lambda t, z: 0.1 * torch.ones_like(z))
    grid = adaptive(sde, far(value=0.0), [0.0, 2.0], max_step=0.1)
    middle = (grid.times[:-1] > 0.9) & (grid.times[:-1] < 1.1)
    assert grid.steps[middle].mean() < 0.2 * grid.steps[grid.times[:-1] < 0.5].mean()


# --- the contract of a grid ---------------------------------------------------------------------------


def ragged(dtype=F64):
    nan = math.nan
    times = torch.tensor([[0.0, 0.5, 0.6, 2.0], [1.0, 1.2, nan, nan], [nan, 0.3, nan, 0.9]], dtype=dtype)
    return adaptive(DoubleWell(), far(3).to(dtype), times, mask=~times.isnan(), start=-0.1, end=2.5), times


@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
def test_an_adaptive_grid_keeps_the_contract_of_a_grid(dtype):
    grid, times = ragged(dtype)
    assert grid.times.dtype == grid.steps.dtype == dtype
    assert torch.equal(grid.times.gather(-1, grid.observed_index)[grid.mask], times[~times.isnan()])  # bitwise
    moving = grid.steps > 0
    assert torch.equal(grid.times.diff() > 0, moving)
    assert torch.equal(moving, moving.long().cumprod(-1).bool())
    assert int(moving.sum(-1).max()) == grid.num_steps
    assert_close(grid.times.diff(), grid.steps, rtol=0, atol=8 * torch.finfo(dtype).eps)
    assert (grid.times[:, 0] == torch.tensor(-0.1, dtype=dtype)).all()
    assert (grid.times[:, -1] == 2.5).all()


def test_refining_expanding_and_indexing_an_adaptive_grid():
    grid, _ = ragged()
    fine = grid.refine(3)
    assert torch.equal(fine.times[..., ::3], grid.times)
    assert torch.equal(fine.observed_index, 3 * grid.observed_index)
    assert_close(fine.steps, (grid.steps / 3).repeat_interleave(3, -1))
    assert same(grid[[2, 0]].refine(2), grid.refine(2)[[2, 0]])
    wide = grid.expand((2, 3))
    assert same(wide[1], grid)
    assert same(wide.refine(2)[0], grid.refine(2))
    for other in (pickle.loads(pickle.dumps(grid)), copy.deepcopy(grid)):
        assert same(grid, other)
        assert same(grid.refine(2), other.refine(2))
    path = torch.randn(5, 3, grid.num_steps + 1, 1, dtype=F64)
    for row in range(3):
        assert torch.equal(grid.observed(path)[:, row], path[:, row, grid.observed_index[row]])


def test_times_between_observations_move_with_them():
    times = TIMES.clone().requires_grad_()
    grid = adaptive(DoubleWell(), times=times)
    weights = torch.stack(
        [torch.autograd.grad(grid.times[k], times, retain_graph=True)[0] for k in range(grid.num_steps + 1)]
    )  # (K + 1, N)
    assert_close(weights @ TIMES, grid.times.detach())  # times are interpolated between observations
    assert_close(weights.sum(-1), torch.ones(len(weights), dtype=F64))
    assert (weights >= 0).all()
    assert ((weights > 0).sum(-1) <= 2).all()
    assert torch.equal(weights[grid.observed_index], torch.eye(4, dtype=F64))
    (slopes,) = torch.autograd.grad((grid.steps * torch.arange(1.0, grid.num_steps + 1)).sum(), times)
    number = torch.arange(1.0, grid.num_steps + 1, dtype=F64)
    assert_close(slopes, ((weights[1:] - weights[:-1]) * number.unsqueeze(-1)).sum(0))


def test_a_grid_carries_no_gradient_to_the_sde():
    rate = torch.tensor(3.0, dtype=F64, requires_grad=True)
    grid = adaptive(linear(rate), initial=far().requires_grad_())
    assert not grid.times.requires_grad


def test_a_step_is_at_most_max_step_and_small_observation_gaps_are_one_step():
    grid = adaptive(linear(0.01), times=[0.0, 1e-6, 1.0, 2.0], max_step=0.3)
    assert grid.steps.max() <= 0.3 * (1 + 1.01e-3)
    assert grid.observed_index[1] == 1
    assert grid.num_steps < 20


def test_min_step_takes_larger_errors_instead():
    grid = adaptive(linear(50.0), rtol=0, times=[0.0, 1.0], atol=1e-9, min_step=0.01)
    assert grid.num_steps == pytest.approx(100, abs=1)
    assert grid.steps[:-2] == pytest.approx(torch.full_like(grid.steps[:-2], 0.01))


def test_steps_before_an_observation_leave_no_sliver():
    grid = adaptive(DoubleWell(), times=torch.linspace(0, 2, 38, dtype=F64), rtol=0, atol=1e-2)
    ratio = grid.steps[1:] / grid.steps[:-1]
    assert ratio[grid.observed_index[1:-1] - 2].min() > 0.3  # the last step before an observation over the one before


def test_a_single_time_needs_no_step():
    grid = adaptive(DoubleWell(), times=[0.5])
    assert grid.num_steps == 0
    assert grid.times.tolist() == [0.5]


@pytest.mark.parametrize("batch", [(2,), (3, 2)])
def test_series_with_their_own_first_states_get_their_own_grids(batch):
    states = torch.linspace(1.0, 6.0, math.prod(batch), dtype=F64).reshape(*batch, 1).expand(8, *batch, 1)
    grid = adaptive(DoubleWell(), states)
    assert grid.batch_shape == batch
    counts = (grid.steps > 0).sum(-1).flatten()
    assert (counts.diff() > 0).all()


# --- one series does not see the others -----------------------------------------------------------------


def test_a_series_has_the_grid_that_it_has_alone():
    values = torch.linspace(-3.0, 5.0, 16, dtype=F64)
    states = values.unsqueeze(-1).expand(8, 16, 1)
    times = TIMES * torch.linspace(0.5, 1.0, 16, dtype=F64).unsqueeze(-1)
    batch = adaptive(DoubleWell(), states, times)
    for row in (0, 7, 15):
        assert same_row(batch, row, adaptive(DoubleWell(), states[:, row], times[row]))


@pytest.mark.parametrize("shape", [(3, 1), (3, 1, 1)])
def test_a_series_has_the_grid_that_it_has_alone_if_a_coefficient_captures_the_batch(shape):
    rates = torch.tensor([1.0, 80.0, 5.0], dtype=F64)
    batch = adaptive(linear(rates.reshape(shape)), times=TIMES)
    assert batch.batch_shape == shape[:-1]
    for row in range(3):
        index = (row,) if len(shape) == 2 else (row, 0)
        assert same_row(batch, index, adaptive(linear(float(rates[row])), times=TIMES))


def test_a_captured_tensor_as_long_as_the_pilot_paths_is_the_batch():
    rates = torch.tensor([[[1.0]], [[60.0]]], dtype=F64)
    batch = adaptive(linear(rates), far(2, 3, paths=2), times=TIMES)
    assert batch.batch_shape == (2, 3)
    assert same_row(batch, (1, 2), adaptive(linear(60.0), far(paths=2), times=TIMES))


def test_a_stiff_series_costs_the_others_nothing():
    first = torch.ones(16, dtype=F64)
    first[5] = 30.0  # far out: drift -1e5
    states = torch.stack([first, torch.arange(16.0, dtype=F64)], -1).expand(8, 16, 2)
    counter = Counter(16)
    adaptive(counter.sde, states)
    rows = counter.rows.clone()
    rows[0] -= 1  # the first call asks for shapes
    for row in (0, 5, 15):
        alone = Counter(16)
        adaptive(alone.sde, states[:, row])
        assert rows[row] + 1 == alone.rows[row]
    assert rows[5] > 1.9 * rows[4]
    others = torch.cat([rows[:5], rows[6:]])
    assert (others == others[0]).all()


def test_rows_evaluated_are_two_per_pilot_path_and_trial():
    counter = Counter(1)
    states = torch.tensor([1.0, 0.0], dtype=F64).expand(8, 2)
    grid = adaptive(counter.sde, states, [0.0, 1.0])
    trials = (int(counter.rows) - 1 - 8) / 16 - 1  # less the shapes, the first states and the first probe
    assert grid.num_steps <= trials < 1.3 * grid.num_steps


# --- noise of its own -------------------------------------------------------------------------------------


def test_a_seed_fixes_the_grid_and_leaves_the_generator_alone():
    law = dist.Normal(torch.zeros(1, dtype=F64), 2.0).to_event(1)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    grid = adaptive(DoubleWell(), law)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert same(grid, adaptive(DoubleWell(), law))
    assert not torch.equal(grid.times[:9], adaptive(DoubleWell(), law, seed=1).times[:9])
    assert not torch.equal(
        adaptive(DoubleWell(), far()).times[:99], adaptive(DoubleWell(), far(), seed=1).times[:99]
    )  # not the first states only


def test_a_law_is_drawn_for_as_many_pilot_paths_as_asked_for():
    like = torch.zeros((), dtype=F64)
    law = dist.Normal(torch.zeros(3, 2, dtype=F64), 1.0).to_event(1)
    assert first_states(law, Pilot(paths=5), like).shape == (5, 3, 2)
    assert first_states(torch.zeros(4, 2, dtype=F64), Pilot(paths=5), like).shape == (4, 2)


@pytest.mark.parametrize(
    "noise_type",
    ["diagonal", "scalar", "additive", "general"],
)
def test_every_noise_type_has_an_adaptive_grid(noise_type):
    matrix = torch.tensor([[0.5], [0.2]]) if noise_type == "scalar" else torch.tensor([[0.5, 0.1], [0.0, 0.3]])
    diffusion = torch.tensor(0.3) if noise_type == "diagonal" else matrix
    factor = (lambda z: 1.0) if noise_type == "additive" else (lambda z: z[..., :1])

    def sigma(t, z):
        return (
            diffusion * factor(z) if noise_type == "diagonal" else diffusion * (factor(z) + z.new_zeros(1))[..., None]
        )

    sde = SDE(lambda t, z: z * (1 - z**2), sigma, noise_type=noise_type)
    grid = adaptive(sde, far(dim=2).float(), TIMES.float())
    law = SDEPath(sde, dist.Normal(torch.zeros(2), 1.0).to_event(1), grid)
    assert grid.steps[0] < 0.3 * grid.steps[-3]
    assert law.log_prob(law.sample()).isfinite()


def test_a_stratonovich_sde_gets_the_grid_of_its_ito_form():
    sde = SDE(lambda t, z: -z, lambda t, z: 0.8 * z, sde_type="stratonovich")
    ito = SDE(lambda t, z: -z + 0.32 * z, lambda t, z: 0.8 * z)
    assert_close(adaptive(sde).times, adaptive(ito).times)


def test_a_control_is_part_of_the_drift():
    pulled = linear(1.0).controlled(lambda t, z: -40.0 * z)  # 0.5 * 40 + 1 = 21
    assert_close(adaptive(pulled).times, adaptive(linear(21.0)).times)


def test_coefficients_of_torchsde_objects_are_taken():
    class Peer:
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t, y):
            return -3 * y

        def g(self, t, y):
            return 0.5 * torch.ones_like(y)

    states = torch.tensor([1.0, 4.0], dtype=F64).reshape(2, 1).expand(8, 2, 1)
    assert_close(adaptive(SDE.from_torchsde(Peer()), states).times, adaptive(linear(3.0), states).times)


# --- exactness on the frozen grid -----------------------------------------------------------------------


QUARTIC = SDE(lambda t, z: -4 * z**3, lambda t, z: torch.ones_like(z))
START = dist.Normal(torch.tensor([3.0], dtype=F64), 0.3).to_event(1)


def pair(grid):
    """Prior and controlled posterior of a quartic well that start far out."""
    return SDEPath(QUARTIC, START, grid), SDEPath(
        QUARTIC.controlled(lambda t, z: 0.5 * torch.cos(t) - 0.4 * z), START, grid
    )


def bounds(grid, fine, *, paths):
    """Evidence bounds of single paths on both grids, driven by the same Brownian paths; `fine` refines `grid`."""
    values = torch.tensor([0.6, 0.4, 0.3, 0.1], dtype=F64)
    first, noise = START.sample((paths,)), torch.randn(paths, fine.num_steps, 1, dtype=F64)
    n = fine.num_steps // grid.num_steps
    for one, normal in ((grid, noise.unflatten(1, (-1, n)).sum(2) / n**0.5), (fine, noise)):
        prior, posterior = pair(one)
        path = posterior.solve(first, normal)
        likelihood = dist.Normal(one.observed(path)[:, 1:, 0], 0.5).log_prob(values).sum(-1)
        yield prior.log_prob(path) + likelihood - posterior.log_prob(path)


@pytest.mark.parametrize("atol", [0.001, 0.1])
def test_density_ratios_on_an_adaptive_grid_have_mean_one(atol):
    torch.manual_seed(0)
    prior, posterior = pair(adaptive(QUARTIC, START, torch.linspace(0, 1, 5, dtype=F64), atol=atol))
    path = posterior.sample((10_000,))
    assert_mean((prior.log_prob(path) - posterior.log_prob(path)).exp(), 1.0, detects=0.1)


def test_the_evidence_bound_on_an_adaptive_grid_is_that_of_a_fine_grid():
    torch.manual_seed(0)
    grid = adaptive(QUARTIC, START, torch.linspace(0, 1, 5, dtype=F64), rtol=0, atol=1e-3)
    adapted, fine = bounds(grid, grid.refine(4), paths=2000)
    assert_mean(adapted, fine.mean(), detects=0.2)
    half, finer = bounds(grid.refine(2), grid.refine(8), paths=2000)
    bias, rest = adapted - fine, half - finer
    assert abs(bias.mean()) < 0.015  # of order one in the steps: nothing is left as they shrink
    assert_mean(bias - 2 * rest, 0.0, detects=0.01)


# --- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": -1.0}, "`rtol` and `atol` must be finite, not negative and not both 0, received rtol=-1.0"),
        ({"atol": math.nan}, "not both 0, received rtol=0.001, atol=nan"),
        ({"rtol": 0.0, "atol": 0.0}, "not both 0"),
        ({"max_step": 0.0}, "`max_step` must be a positive finite number, received 0.0"),
        ({"min_step": -1.0}, "`min_step` must be a positive finite number, received -1.0"),
        ({"max_step": 0.1, "min_step": 0.2}, "`max_step` 0.1 is smaller than `min_step` 0.2"),
        ({"paths": 0}, "`paths` must be a positive integer, received 0"),
        ({"max_steps": 1.5}, "`max_steps` must be a positive integer, received 1.5"),
    ],
)
def test_bad_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        Pilot(**options)


@pytest.mark.parametrize(
    ("initial", "message"),
    [
        (dist.Normal(torch.zeros(1, dtype=F64), 1.0), r"`initial` must be a law .* event shape \(D,\), received \(\)"),
        (torch.zeros(3, dtype=F64), r"`initial` must have shape \(P, \*batch, D\).* received \(3,\)"),
        (torch.zeros(0, 1, dtype=F64), r"`initial` must have shape.*received \(0, 1\)"),
        (torch.zeros(3, 1), "`initial` has dtype torch.float32 on cpu, but `times` has torch.float64"),
        (torch.zeros(3, 5, 1, dtype=F64), r"batch shapes of `times`, `initial` and `sde` must broadcast"),
    ],
)
def test_first_states_that_do_not_fit_raise(initial, message):
    with pytest.raises(ValueError, match=message):
        adaptive(DoubleWell(), initial, TIMES.expand(2, 4))


def test_first_states_of_another_type_raise():
    with pytest.raises(TypeError, match=r"`initial` must be a law or a tensor of first states .* received list"):
        adaptive(DoubleWell(), [1.0])


def test_an_sde_without_coefficients_raises():
    with pytest.raises(TypeError, match="`sde` must be an SDE with `coefficients`, received function"):
        adaptive(lambda t, z: z)


def test_bound_inputs_raise():
    sde = SDE(lambda t, z, u: u - z, lambda t, z: z).with_inputs(torch.zeros(3, 1, dtype=F64))
    with pytest.raises(ValueError, match="`sde` has inputs bound, one row per step of another grid"):
        adaptive(sde)


def test_a_pilot_that_is_not_finite_raises():
    states = far(2)
    states[0, 1] = math.nan
    with pytest.raises(ValueError, match=r"pilot path of series \[1\] at time 0 or a coefficient .* is not finite"):
        adaptive(DoubleWell(), states)
    explosive = SDE(lambda t, z: torch.exp(100 * z), lambda t, z: torch.zeros_like(z))  # infinite at once
    with pytest.raises(ValueError, match="the series at time 0 or"):
        adaptive(explosive, rtol=1e-3)
    wall = SDE(lambda t, z: -z / (t < 1), lambda t, z: torch.ones_like(z))
    with pytest.raises(ValueError, match=r"pilot path of the series at time (1|0\.99\d*) or a coefficient"):
        adaptive(wall)


def test_a_tolerance_that_round_off_swallows_raises():
    times = torch.tensor([[1e6, 2e6]] * 2)
    with pytest.raises(ValueError, match=r"asks for steps of series \[1\] at time 1e\+06 that round-off swallows"):
        adaptive(SDE(lambda t, z: -z * z, lambda t, z: 0 * z), torch.tensor([[[0.0], [1e4]]]), times)


def test_too_many_steps_raise():
    with pytest.raises(ValueError, match="asks for more than `max_steps` = 50 steps.*the series at time 0"):
        adaptive(DoubleWell(), max_steps=50)
