"""The loop and its increments."""

import pytest
import torch

from pyro_sde import SDE, NeuralSDE, TimeGrid
from pyro_sde.ops.brownian import wiener_increments
from pyro_sde.solvers import Execution, Solver, integrate
from pyro_sde.solvers.loop import unroll


def test_increments_are_scaled_normals_and_padded_steps_have_zero_value_and_gradient():
    steps = torch.tensor([[0.25], [0.0]], requires_grad=True)
    normal = torch.ones(2, 3)
    increments = wiener_increments(steps, normal)
    torch.testing.assert_close(increments, torch.tensor([[0.5] * 3, [0.0] * 3]))
    (slope,) = torch.autograd.grad(increments.sum(), steps)
    torch.testing.assert_close(slope, torch.tensor([[3.0], [0.0]]))


def test_the_loop_returns_time_first_states_that_start_at_the_first_one():
    sde, grid = NeuralSDE(2, (4,)), TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.2)
    initial, normal = torch.randn(3, 2), torch.randn(5, 3, 2)
    states = unroll(sde, grid, initial, normal, (None,))
    assert states.shape == (6, 3, 2)
    torch.testing.assert_close(states[0], initial)
    z, h = initial, 0.2
    for k in range(5):
        t = grid.times[k : k + 1]
        z = z + sde.drift(t, z) * h + sde.diffusion(t, z) * h**0.5 * normal[k]
        torch.testing.assert_close(states[k + 1], z)


class Remembering(Solver):
    """A two-step method: it carries the last drift, and divides by the step."""

    def strong_order(self, noise_type):
        return 0.5

    def weak_order(self, noise_type):
        return 1.0

    def start(self, field, t, z, rows):
        return (field.drift(t, z, rows),)

    def step(self, field, z, step, state):
        drift, diffusion = field.both(step.t, z, step.rows)
        dt, w = step.increments.dt, step.increments.W
        return z + (1.5 * drift - 0.5 * state[0]) * dt + field.apply(diffusion, w / dt * dt), (drift,)


def make_problem(dtype=torch.float64):
    torch.manual_seed(3)
    sde = SDE(lambda t, z, c: torch.sin(t) - z + c, lambda t, z: 0.3 + 0.1 * z).to(dtype)
    times = torch.tensor([[0.0, 0.4, 1.0, 1.3], [0.1, 0.7, 0.7, 0.7], [0.0, 0.2, 0.9, 2.0]], dtype=dtype)
    grid = TimeGrid(times, max_step=0.15)
    initial, normal = torch.randn(3, 2, dtype=dtype), torch.randn(grid.num_steps, 3, 2, dtype=dtype)
    return sde, grid, initial, normal, torch.randn(3, grid.num_steps, 2, dtype=dtype)


def test_a_solver_carries_its_state_and_never_sees_an_empty_step():
    sde, grid, initial, normal, rows = make_problem()
    path = integrate(Remembering(), sde, grid, initial, normal, (rows,))
    for b in range(3):
        z, last = initial[b], None
        for k in range(grid.num_steps):
            t, h = grid.times[b, k : k + 1], grid.steps[b, k]
            if h == 0:
                break
            drift = sde.drift(t, z, rows[b, k])
            z = z + (1.5 * drift - 0.5 * (drift if last is None else last)) * h
            z = z + sde.diffusion(t, path[b, k]) * h.sqrt() * normal[k, b]
            last = drift
            torch.testing.assert_close(path[b, k + 1], z)
        torch.testing.assert_close(path[b, -1], z, msg="a padded series stays where it is")


def test_low_memory_takes_the_same_steps_with_the_same_gradient():
    sde, grid, initial, normal, rows = make_problem()
    given = [tensor.requires_grad_() for tensor in (initial, normal, rows)]
    results = []
    for execution in (Execution(), Execution(memory="low", block=9)):
        path = integrate(Remembering(), sde, grid, initial, normal, (rows,), execution)
        results.append((path, *torch.autograd.grad(path.sin().sum(), given)))
    for full, low in zip(*results, strict=True):
        torch.testing.assert_close(full, low)
    assert all(bool(torch.isfinite(g).all()) for g in results[0])


@pytest.mark.parametrize("option", [{"forward": "newton"}, {"backward": "parallel"}, {"backward": "layers"}])
def test_ways_that_are_only_for_euler_steps_are_refused(option):
    sde, grid, initial, normal, rows = make_problem()
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=rf'Remembering\(\) is run step by step .*{name}="{value}" needs Euler'):
        integrate(Remembering(), sde, grid, initial, normal, (rows,), Execution(**option))
