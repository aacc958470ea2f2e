"""The loop and its increments."""

import torch

from pyro_sde import NeuralSDE, TimeGrid
from pyro_sde.solvers import EulerMaruyama
from pyro_sde.solvers.loop import brownian_increments, unroll


def test_increments_are_scaled_normals_and_padded_steps_have_zero_value_and_gradient():
    steps = torch.tensor([[0.25], [0.0]], requires_grad=True)
    normal = torch.ones(2, 3)
    increments = brownian_increments(steps, normal)
    torch.testing.assert_close(increments, torch.tensor([[0.5] * 3, [0.0] * 3]))
    (slope,) = torch.autograd.grad(increments.sum(), steps)
    torch.testing.assert_close(slope, torch.tensor([[3.0], [0.0]]))


def test_the_loop_returns_time_first_states_that_start_at_the_first_one():
    sde, grid = NeuralSDE(2, (4,)), TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.2)
    initial, normal = torch.randn(3, 2), torch.randn(5, 3, 2)
    states = unroll(EulerMaruyama(), sde, grid, initial, normal, (None,))
    assert states.shape == (6, 3, 2)
    torch.testing.assert_close(states[0], initial)
    z, h = initial, 0.2
    for k in range(5):
        t = grid.times[k : k + 1]
        z = z + sde.drift(t, z) * h + sde.diffusion(t, z) * h**0.5 * normal[k]
        torch.testing.assert_close(states[k + 1], z)
