"""Reversible Heun backwards: the gradient of autograd in memory that does not grow with the number of steps."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from torch import nn

from pyro_sde import SDE, TimeGrid
from pyro_sde.solvers import _carried
from pyro_sde.solvers.noise import GivenNoise
from pyro_sde.solvers.reversible_adjoint import ReversibleHeunAdjoint
from pyro_sde.testing import assert_mean

F64 = torch.float64
GRIDS = {
    "shared": lambda dtype: TimeGrid(torch.tensor([0.2, 0.5, 1.0], dtype=dtype), max_step=0.05, start=0.0, end=1.1),
    "shared, repeated": lambda dtype: TimeGrid(torch.tensor([0.2, 0.5, 0.5, 0.5], dtype=dtype), max_step=0.1),
    "one point": lambda dtype: TimeGrid(torch.tensor([0.2], dtype=dtype)),
    "padded": lambda dtype: TimeGrid(
        torch.tensor([[0.0, 0.5, 1.0], [0.1, 0.4, 0.4], [0.2, 0.3, 0.9], [0.0, 0.1, 0.1]], dtype=dtype), max_step=0.05
    ),
}


class Case(nn.Module):
    """An SDE with parameters, tensors in closures with and without history, and inputs of the control."""

    def __init__(self, noise_type, sde_type, dtype=F64):
        super().__init__()
        torch.manual_seed(0)
        self.noise_type, self.sde_type = noise_type, sde_type
        self.inner, self.encoder = nn.Linear(2, 2), nn.Linear(3, 4)
        self.scale, self.free = nn.Parameter(torch.tensor([-0.5, -1.0])), nn.Parameter(torch.tensor([0.3, 0.8]))
        self.to(dtype)
        self.data = torch.randn(4, 3, dtype=dtype)

    def sde(self):
        context, scale, weight = self.encoder(self.data), self.scale.exp(), self.inner.weight * 1.0
        width = {"diagonal": 2, "scalar": 1, "additive": 3, "general": 3}[self.noise_type]

        def drift(t, z):
            return -z * self.free + torch.tanh(self.inner(z)) * t

        def diffusion(t, z):
            if self.noise_type == "diagonal":
                return scale * (1 + 0.3 * z.sin())
            state = torch.zeros_like(z) if self.noise_type == "additive" else z
            columns = [scale * (1 + 0.2 * (state + m).sin() + 0.1 * m * t) for m in range(width)]
            return torch.stack(columns, -1)

        def control(t, z, rows):
            u = torch.tanh(z * context[..., :2] + context[..., 2:] * t + rows[..., :2] + z @ weight)
            return u[..., :1] if width == 1 else torch.cat([u, rows[..., 2:] + 0 * u[..., :1]], -1)[..., :width]

        return SDE(drift, diffusion, noise_type=self.noise_type, sde_type=self.sde_type).controlled(control)

    def problem(self, grid, initial, rows):
        width = {"diagonal": 2, "scalar": 1, "additive": 3, "general": 3}[self.noise_type]
        return _carried.CarriedProblem(self.sde(), grid, initial, (None, rows), width, contextlib.nullcontext())


def by_autograd(problem, noise):
    """The same steps in a plain loop."""
    grid, sde = problem.grid, problem.sde.stratonovich()
    times, steps, apply = grid.times.unsqueeze(-1), grid.steps.unsqueeze(-1), sde.noise.apply

    def terms(k, z):
        row = problem.rows[1][..., min(k, grid.num_steps - 1), :] if grid.num_steps else problem.rows[1].new_zeros(3)
        f, g, u = sde.coefficients(times[..., k, :], z, (None, row))
        u_moving = sde.noise.range_of(sde.noise.expand(g, z)).project(u.expand(*z.shape[:-1], -1))
        return f + apply(g, u), g, u_moving

    y = z = problem.initial
    states, kl, martingale = [y], 0 * y[..., 0], 0 * y[..., 0]
    (f, g, u) = terms(0, z)
    for k in range(grid.num_steps):
        h = steps[..., k, :]
        dw = noise[k] * h.sqrt()
        kl, martingale = kl + (0.5 * u**2 * h).sum(-1), martingale + (u * dw).sum(-1)
        z = torch.where(h > 0, 2 * y - z + f * h + apply(g, dw), z)
        f1, g1, u = terms(k + 1, z)
        y = y + 0.5 * (f + f1) * h + 0.5 * apply(g + g1, dw)
        f, g = f1, g1
        states.append(y)
    return grid.observed(torch.stack(states, -2)), kl, martingale


def loss_of(states, kl, martingale):
    weights = torch.linspace(-1, 1, states.numel(), dtype=states.dtype).reshape(states.shape)
    return (states * weights).sum() + (kl * torch.arange(4)).sum() + martingale.square().sum()


def gradients(case, solve, grid, dtype=F64):
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(max(1, grid.num_steps), 3, generator=generator, dtype=dtype)[: grid.num_steps].requires_grad_()
    initial = torch.randn(4, 2, generator=generator, dtype=dtype).requires_grad_()
    problem = case.problem(grid, initial, rows)
    noise = torch.randn(grid.num_steps, 4, problem.brownian_dim, generator=generator, dtype=dtype)
    solution = solve(problem, noise)
    wanted = [rows, initial, *case.parameters()]
    return loss_of(*solution), torch.autograd.grad(loss_of(*solution), wanted, allow_unused=True)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("noise_type", ["diagonal", "scalar", "additive", "general"])
@pytest.mark.parametrize("sde_type", ["ito", "stratonovich"])
def test_value_and_gradients_are_those_of_autograd(noise_type, sde_type, grid):
    case, grid = Case(noise_type, sde_type), GRIDS[grid](F64)
    value, ours = gradients(case, lambda p, n: ReversibleHeunAdjoint(block=7).solve(p, GivenNoise(n)), grid)
    expected, theirs = gradients(case, by_autograd, grid)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    for mine, other in zip(ours, theirs, strict=True):
        other = torch.zeros_like(mine) if other is None and mine is not None else other
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


def test_gradients_agree_in_float32():
    case, grid = Case("diagonal", "ito", torch.float32), GRIDS["padded"](torch.float32)
    _, ours = gradients(case, lambda p, n: ReversibleHeunAdjoint().solve(p, GivenNoise(n)), grid, torch.float32)
    _, theirs = gradients(case, by_autograd, grid, torch.float32)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).abs().max() <= 1e-4 * other.abs().max()


def saved_bytes(steps):
    """Gradient against autograd, and bytes that autograd keeps for the backward pass, for a path of many steps."""
    grid = TimeGrid(torch.tensor([0.0, 1.0], dtype=F64), max_step=1 / steps)
    case, kept = Case("diagonal", "ito"), []
    initial = torch.zeros(4, 2, dtype=F64)
    problem = _carried.CarriedProblem(
        SDE(lambda t, z: torch.tanh(case.inner(z)), lambda t, z: case.scale.exp(), noise_type="diagonal"),
        grid, initial, (None,), 2, contextlib.nullcontext(),
    )  # fmt: skip

    def pack(tensor):
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ReversibleHeunAdjoint().solve(problem)
    return sum(kept)


def test_what_is_kept_does_not_grow_with_the_number_of_steps():
    assert saved_bytes(10) == saved_bytes(200) < 2000


def test_fresh_noise_is_reproducible_and_block_by_block():
    case = Case("general", "ito")
    grid = GRIDS["shared"](F64)
    rows, initial = torch.zeros(grid.num_steps, 3, dtype=F64), torch.zeros(4, 2, dtype=F64)
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(ReversibleHeunAdjoint(block=4).solve(case.problem(grid, initial, rows)).states)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_the_log_ratio_is_a_likelihood_ratio_at_any_step_size():
    sde = SDE(lambda t, z: -z, lambda t, z: 0.5 + 0.2 * z.cos()).controlled(lambda t, z: 1 - z)
    grid = TimeGrid(torch.tensor([0.0, 1.0], dtype=F64), max_step=0.25)
    torch.manual_seed(0)
    initial = torch.zeros(100_000, 2, dtype=F64)
    problem = _carried.CarriedProblem(sde, grid, initial, (None, None), 2, contextlib.nullcontext())
    _, kl, martingale = ReversibleHeunAdjoint().solve(problem)
    assert_mean(martingale, 0.0, detects=0.05)
    assert_mean((-kl - martingale).exp(), 1.0, detects=0.1)


def test_padded_steps_leave_both_copies_where_they_are():
    visited = []

    def drift(t, z):
        visited.append(z.detach())
        return -z

    grid = TimeGrid(torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.5, 0.5]], dtype=F64))
    sde = SDE(drift, lambda t, z: torch.eye(1, dtype=F64), noise_type="additive")
    problem = _carried.CarriedProblem(sde, grid, torch.zeros(2, 1, dtype=F64), (None,), 1, contextlib.nullcontext())
    with torch.no_grad():
        ReversibleHeunAdjoint().solve(problem)
    before, after = visited[-2:]
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[0], after[0])


def test_without_a_control_the_log_ratio_is_zero():
    sde = SDE(lambda t, z: -z, lambda t, z: torch.ones_like(z))
    initial = torch.zeros(3, 2, dtype=F64)
    grid = GRIDS["shared"](F64)
    _, kl, martingale = ReversibleHeunAdjoint().solve(
        _carried.CarriedProblem(sde, grid, initial, (None,), 2, contextlib.nullcontext())
    )
    assert torch.equal(kl, torch.zeros(3, dtype=F64))
    assert torch.equal(martingale, kl)


def test_the_states_are_those_of_the_stratonovich_solution():
    # dz = z o dW has the solution exp(W); reading the same coefficients as Ito would be off by 0.65 on average
    errors = []
    for count in (64, 1024):
        torch.manual_seed(3)
        noise = torch.randn(count, 2000, 1, dtype=F64)
        grid = TimeGrid(torch.linspace(0.0, 1.0, count + 1, dtype=F64))
        sde = SDE(lambda t, z: 0 * z, lambda t, z: z, sde_type="stratonovich")
        problem = _carried.CarriedProblem(
            sde, grid, torch.ones(2000, 1, dtype=F64), (None,), 1, contextlib.nullcontext()
        )
        end = ReversibleHeunAdjoint().solve(problem, GivenNoise(noise)).states[:, -1, 0]
        errors.append((end - (noise.sum(0)[:, 0] / math.sqrt(count)).exp()).abs().mean())
    assert errors[1] < 0.01
    assert errors[1] < errors[0] / 3  # 16 times as many steps, order 0.5


def test_hidden_tensors_are_refused_by_name():
    weight = nn.Parameter(torch.ones(2, dtype=F64))
    context = weight.exp()

    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, *gradients):
            return gradients[0]

    sde = SDE(lambda t, z: -z * Hidden.apply(context), lambda t, z: torch.ones_like(z))
    sde.register_parameter("weight", weight)
    problem = _carried.CarriedProblem(
        sde, GRIDS["shared"](F64), torch.zeros(2, dtype=F64), (None,), 2, contextlib.nullcontext()
    )
    with pytest.raises(ValueError, match="computed by ExpBackward0 from the parameter 'weight'"):
        ReversibleHeunAdjoint().solve(problem)


def test_second_derivatives_are_refused():
    case = Case("additive", "ito")
    grid, initial = GRIDS["shared"](F64), torch.zeros(4, 2, dtype=F64, requires_grad=True)
    solution = ReversibleHeunAdjoint().solve(case.problem(grid, initial, torch.zeros(grid.num_steps, 3, dtype=F64)))
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(solution.kl.sum(), initial, create_graph=True)


def test_times_with_gradients_are_refused():
    case = Case("additive", "ito")
    grid = TimeGrid(torch.tensor([0.0, 1.0], dtype=F64, requires_grad=True))
    with pytest.raises(ValueError, match="times of `grid` need gradients"):
        ReversibleHeunAdjoint().solve(case.problem(grid, torch.zeros(4, 2, dtype=F64), torch.zeros(1, 3, dtype=F64)))


@pytest.mark.parametrize("block", [0, 1.5, True])
def test_block_must_be_a_number_of_steps(block):
    with pytest.raises(ValueError, match="`block` must be a number of steps >= 1"):
        ReversibleHeunAdjoint(block=block)
