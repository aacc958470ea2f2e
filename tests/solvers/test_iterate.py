"""Sweeps over all steps at once give the path of the loop, or say that they do not."""

import math

import pytest
import torch
from torch import nn

from pyro_sde import SDE, NeuralSDE, TimeGrid
from pyro_sde.nn import ControlNet
from pyro_sde.sde import BrownianMotion, DoubleWell, OrnsteinUhlenbeck, StochasticLorenz, UnderdampedLangevin
from pyro_sde.solvers import iterate
from pyro_sde.solvers.iterate import SweepOptions, unroll_sweeps
from pyro_sde.solvers.loop import unroll

METHODS = ["newton", "picard"]
TOLERANCE = {torch.float32: 3.1e-5, torch.float64: 1e-12}


def matrix_diffusion(columns):
    def diffusion(t, z):
        return 0.3 * torch.stack([z.sin() + 1.5, 0.5 + 0 * z, z.cos() * t.cos()][:columns], -1)

    return diffusion


def make_sde(kind):
    torch.manual_seed(0)
    drift = NeuralSDE(2, (8,), time_features=1).drift
    if kind == "diagonal":
        return SDE(drift, lambda t, z: 0.5 + 0.3 * z.sin())
    if kind in ("scalar", "general"):
        return SDE(drift, matrix_diffusion(1 if kind == "scalar" else 3), noise_type=kind)
    if kind == "additive":
        return SDE(drift, lambda t, z: t.cos().unsqueeze(-1) * torch.ones(2, 2, dtype=z.dtype), noise_type=kind)
    if kind == "noise-free dimension":
        return UnderdampedLangevin(lambda x: -(x**3), 0.5, 0.7)
    prior = NeuralSDE(2, (8,), constant_diffusion=False)
    if kind == "inputs":
        return SDE(NeuralSDE(2, (8,), input_dim=3).drift, prior.diffusion)
    control = ControlNet(2, 3, hidden=(6,), time_features=1)
    nn.init.normal_(control.tail.layers[-1].weight)
    return prior.controlled(control)


KINDS = {
    "diagonal": 2,
    "scalar": 1,
    "additive": 2,
    "general": 3,
    "noise-free dimension": 2,
    "inputs": 2,
    "controlled": 2,
}


def uniform(steps, dt=0.02, dtype=torch.float64):
    return TimeGrid(dt * torch.arange(steps + 1, dtype=dtype))


def ragged(dtype=torch.float64):
    torch.manual_seed(1)
    times = (0.2 + torch.rand(3, 5, dtype=dtype)).cumsum(-1)
    return TimeGrid(times, max_step=0.05, mask=torch.arange(5) < torch.tensor([[5], [2], [4]]))


def arguments(sde, grid, batch=(), dim=2, brownian=2, initial=None, seed=2):
    torch.manual_seed(seed)
    dtype = grid.times.dtype
    sde = sde.to(dtype)
    start = torch.randn(*batch, dim, dtype=dtype) if initial is None else torch.as_tensor(initial, dtype=dtype)
    noise = torch.randn(grid.num_steps, *(batch or grid.batch_shape), brownian, dtype=dtype)
    return sde, grid, start, noise, sde.bind_rows(None)


def assert_path_of_the_loop(result, given, tolerance=None):
    assert result.states is not None, f"failed after {result.sweeps} sweeps with {result.error}"
    with torch.no_grad():
        expected = unroll(*given)
    assert result.states.shape == expected.shape
    assert not result.states.requires_grad
    scale = expected.abs().cummax(0).values
    difference = torch.where(result.states == expected, 0.0, (result.states - expected).abs() / scale).amax()
    limit = TOLERANCE[expected.dtype] if tolerance is None else tolerance
    assert float(difference) <= limit
    assert result.error <= limit


# --- equality ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ["one series", "ragged", "particles"])
def test_path_is_that_of_the_loop(kind, shape, method):
    sde = make_sde(kind)
    grid = uniform(60) if shape == "one series" else ragged()
    batch = {"one series": (), "ragged": (3,), "particles": (4, 3)}[shape]
    given = arguments(sde, grid, batch, brownian=KINDS[kind])
    if kind in ("inputs", "controlled"):
        inputs = torch.randn(*grid.batch_shape, grid.num_steps, 3, dtype=torch.float64)
        given = (*given[:-1], sde.bind_rows(inputs))
    result = unroll_sweeps(*given, SweepOptions(method, max_sweeps=500))
    assert_path_of_the_loop(result, given)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_path_of_a_long_horizon_takes_few_sweeps(dtype, method):
    torch.manual_seed(0)
    given = arguments(NeuralSDE(3, (32,)), uniform(600, 0.01, dtype), (1,), 3, 3)
    result = unroll_sweeps(*given, SweepOptions(method))
    assert_path_of_the_loop(result, given)
    assert result.sweeps <= (5 if method == "newton" else 13)
    assert result.states.dtype == dtype


@pytest.mark.parametrize("method", METHODS)
def test_windows_carry_on_where_the_last_one_ended(method, monkeypatch):
    monkeypatch.setattr(iterate, "_WINDOW_ROWS", 64)
    given = arguments(make_sde("diagonal"), uniform(130), (2,))
    result = unroll_sweeps(*given, SweepOptions(method, max_sweeps=200))
    assert_path_of_the_loop(result, given)
    assert result.sweeps >= 5 * 3  # 130 steps in windows of 32, none in fewer than three sweeps


def test_a_linear_sde_takes_one_newton_sweep_and_one_to_see_it():
    given = arguments(OrnsteinUhlenbeck(1.0, 0.5), uniform(500, 0.05), (2,))
    result = unroll_sweeps(*given)
    assert_path_of_the_loop(result, given)
    assert result.sweeps == 2


def test_newton_doubles_the_digits_of_a_sweep_and_picard_does_not():
    given = arguments(make_sde("diagonal"), uniform(100), (1,))
    newton, picard = (unroll_sweeps(*given, SweepOptions(method, max_sweeps=100)) for method in METHODS)
    assert newton.sweeps < picard.sweeps


def test_the_first_state_of_a_window_is_exact_after_a_sweep(monkeypatch):
    monkeypatch.setattr(iterate, "_SHORTEST", 1)
    given = arguments(DoubleWell(), uniform(20, 0.01), (1,))
    for method in METHODS:
        path = iterate._Path(iterate._Steps(*given), SweepOptions(method))
        for sweep in range(1, 6):
            with torch.no_grad():
                path.sweep()
                torch.testing.assert_close(path.states[: sweep + 1], unroll(*given)[: sweep + 1])


def test_a_tail_that_overflows_starts_again_from_the_last_good_state():
    sde = SDE(lambda t, z: (400 * z).exp(), lambda t, z: torch.zeros_like(z))
    given = arguments(sde, uniform(100, 0.1), (1,), 1, 1, [[0.0]])
    path = iterate._Path(iterate._Steps(*given), SweepOptions("picard"))
    with torch.no_grad():
        path.sweep()  # the drift at the first state, 1, for all: z = t
        torch.testing.assert_close(path.states[:, 0, 0], given[1].times)
        path.sweep()  # exp(400 t) overflows from t = 1.8 on
    assert torch.equal(path.states[19:], path.states[18].expand(82, 1, 1))
    assert path.states[18] > 1e200


def test_picard_needs_derivatives_for_the_last_sweep_only(monkeypatch):
    calls = []
    original = iterate._Steps.linearised
    monkeypatch.setattr(iterate._Steps, "linearised", lambda *given: calls.append(1) or original(*given))
    given = arguments(make_sde("diagonal"), uniform(200), (1,))
    assert_path_of_the_loop(unroll_sweeps(*given, SweepOptions("picard")), given)
    assert len(calls) == 1


def test_tolerance_ends_it_earlier():
    given = arguments(make_sde("diagonal"), uniform(300), (1,))
    loose = unroll_sweeps(*given, SweepOptions(tolerance=1e-2))
    assert loose.sweeps < unroll_sweeps(*given).sweeps
    assert_path_of_the_loop(loose, given, 1e-2)


def test_states_that_start_at_zero_or_never_move_are_no_trouble():
    grid = ragged()
    sde = SDE(lambda t, z: torch.zeros_like(z), lambda t, z: torch.ones_like(z) * torch.tensor([0.0, 1.0]))
    given = arguments(sde, grid, (3,), initial=torch.zeros(3, 2))
    result = unroll_sweeps(*given)
    assert_path_of_the_loop(result, given)
    assert not result.states[..., 0].any()


def test_no_graph_and_no_random_state_is_touched():
    sde = make_sde("controlled")
    inputs = torch.randn(40, 3, dtype=torch.float64, requires_grad=True)
    given = arguments(sde, uniform(40), (2,))
    state = torch.get_rng_state()
    result = unroll_sweeps(*given[:2], given[2].requires_grad_(), given[3], sde.bind_rows(inputs))
    assert torch.equal(torch.get_rng_state(), state)
    assert not result.states.requires_grad
    assert inputs.grad is None
    assert all(parameter.grad is None for parameter in sde.parameters())


# --- failure ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("steps", [30, 300, 2000])
def test_a_chaotic_path_is_that_of_the_loop_or_none(steps, dtype, method):
    outcomes = []
    for seed in range(3):
        given = arguments(StochasticLorenz(), uniform(steps, 0.01, dtype), (1,), 3, 3, [[4.0, 5.0, 20.0]], seed)
        result = unroll_sweeps(*given, SweepOptions(method, max_sweeps=1500))
        outcomes.append(result.states is not None)
        if outcomes[-1]:
            assert_path_of_the_loop(result, given)
        else:
            assert not result.error <= TOLERANCE[dtype]
    if steps == 30:
        assert all(outcomes)
    if steps == 2000:
        assert not any(outcomes)


def test_a_path_that_rounding_errors_change_is_none_although_it_converged():
    # the difference of the two is 0 and grows by half a step: every sweep is exact, but one rounding would be all
    def drift(t, z):
        first, second = z.unbind(-1)
        return torch.stack([50 * (first - second), torch.zeros_like(first)], -1)

    sde = SDE(drift, lambda t, z: torch.zeros_like(z))
    given = arguments(sde, uniform(300, 0.01), (1,), initial=[[1.0, 1.0]])
    result = unroll_sweeps(*given)
    assert result.states is None
    assert 1e-12 < result.error < math.inf
    short = arguments(sde, uniform(10, 0.01), (1,), initial=[[1.0, 1.0]])
    assert_path_of_the_loop(unroll_sweeps(*short), short)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_strong_drift_is_solved_or_reported(dtype, method):
    torch.manual_seed(0)
    sde = NeuralSDE(3, (64,))
    with torch.no_grad():
        sde.drift.tail.layers[-1].weight.mul_(900)
    given = arguments(sde, uniform(1000, 0.01, dtype), (1,), 3, 3)
    result = unroll_sweeps(*given, SweepOptions(method))
    if result.states is not None:
        assert_path_of_the_loop(result, given)
    else:
        assert not result.error <= TOLERANCE[dtype]
    assert result.sweeps <= 16 + 1000 // iterate._SWEEP_COST[method]


@pytest.mark.parametrize("method", METHODS)
def test_too_few_sweeps_are_reported_with_what_was_left(method):
    given = arguments(make_sde("diagonal"), uniform(200), (1,))
    result = unroll_sweeps(*given, SweepOptions(method, max_sweeps=2))
    assert result.states is None
    assert result.sweeps == 2
    assert result.error > 1e-12


def test_a_failure_never_reports_an_error_within_the_tolerance(monkeypatch):
    monkeypatch.setattr(iterate, "_WINDOW_ROWS", 64)
    given = arguments(OrnsteinUhlenbeck(1.0, 0.5), uniform(200), (1,))
    result = unroll_sweeps(*given, SweepOptions(max_sweeps=2))  # enough for the first window
    assert (result.states, result.sweeps, result.error) == (None, 2, math.inf)


@pytest.mark.parametrize("method", METHODS)
def test_a_path_that_leaves_the_numbers_is_reported(method):
    given = arguments(SDE(lambda t, z: z**3, lambda t, z: 0 * z), uniform(100, 0.1), (1,), initial=[[3.0, 3.0]])
    result = unroll_sweeps(*given, SweepOptions(method, max_sweeps=1000))
    assert result.states is None
    assert result.sweeps < 100
    assert not math.isfinite(result.error)


def test_coefficients_that_mix_times_are_found():
    sde = SDE(lambda t, z: -z + z.mean(0), lambda t, z: torch.ones_like(z))
    given = arguments(sde, uniform(50), (2,))
    result = unroll_sweeps(*given, SweepOptions("picard", max_sweeps=500))
    assert result.states is None
    assert result.error > 1e-6


def test_coefficients_that_never_repeat_are_found():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.Dropout(0.5), nn.Linear(16, 2))
    given = arguments(SDE(lambda t, z: net.double()(z), lambda t, z: torch.ones_like(z)), uniform(50), (2,))
    assert unroll_sweeps(*given).states is None


# --- options ----------------------------------------------------------------------------


def test_a_batch_may_be_empty():
    given = arguments(BrownianMotion(), uniform(3), (0,))
    assert unroll_sweeps(*given).states.shape == unroll(*given).shape == (4, 0, 2)


def test_steps_in_windows_no_longer_than_the_path():
    given = arguments(BrownianMotion(), uniform(1), (2,))
    assert_path_of_the_loop(unroll_sweeps(*given), given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SweepOptions("jacobi"), '`method` must be "newton" or "picard", received \'jacobi\''),
        (SweepOptions(tolerance=0.0), "`tolerance` must be a positive number, received 0.0"),
        (SweepOptions(tolerance=math.nan), "`tolerance` must be a positive number, received nan"),
        (SweepOptions(max_sweeps=0), "`max_sweeps` must be at least 1, received 0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        unroll_sweeps(*arguments(BrownianMotion(), uniform(3)), options)
