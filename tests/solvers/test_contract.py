"""What every solver of the table does: padded grids, more batch dimensions, inputs, controls, gradients, float32."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from pyro_sde import SDE, TimeGrid
from pyro_sde.ops.brownian import normal_width
from pyro_sde.sde import GeometricBrownianMotion
from pyro_sde.solvers.execution import Execution
from pyro_sde.solvers.fixed import EulerMaruyama, integrate

F32, F64 = torch.float32, torch.float64
TIMES = torch.tensor([[0.0, 0.3, 1.1, 2.0], [0.1, 0.2, 0.2, 0.2], [-1.0, 3.0, 3.3, 3.3]], dtype=F64)
GRID = TimeGrid(TIMES, max_step=0.5)
MATRIX = torch.tensor([[0.3, 0.1], [-0.2, 0.4]], dtype=F64)

# diffusions that every solver takes, and their Brownian dimensions
NOISES = {
    "additive": (lambda t, z: (1 + t * t).unsqueeze(-1) * MATRIX.to(z), 2),
    "diagonal": (lambda t, z: 0.3 + 0.1 * (t + z).sin(), 2),
    "scalar": (lambda t, z: (0.3 + 0.1 * z.sin()).unsqueeze(-1), 1),
    "general": (lambda t, z: z.cos().unsqueeze(-1) * MATRIX.to(z), 2),  # commutes
}


def drift(t, z, inputs=None):
    return t.sin() * z.flip(-1).tanh() - z + (0 if inputs is None else inputs)


def noises(solver):
    return [noise for noise in NOISES if noise in solver.noise_types]


def problem(solver, noise, grid=GRID, left=(), seed=0):
    """An SDE, first states and normals."""
    diffusion, dim = NOISES[noise]
    sde = SDE(drift, diffusion, noise_type=noise)
    dim = dim if sde is solver.adapt(sde) or noise != "scalar" else 1
    dim = 2 if type(solver).__name__ == "LocalLinearisation" else dim
    generator = torch.Generator().manual_seed(seed)
    initial = torch.randn(*left, *grid.batch_shape, 2, dtype=F64, generator=generator)
    width = normal_width(dim, solver.levy)
    normal = torch.randn(grid.num_steps, *left, *grid.batch_shape, width, dtype=F64, generator=generator)
    return sde, initial, normal


def test_a_batch_of_padded_grids_equals_single_solves(solver_row):
    solver = solver_row.solver
    options = dict(vars(solver))
    for noise in noises(solver):
        sde, initial, normal = problem(solver, noise, left=(2,))
        path = integrate(solver, sde, GRID, initial, normal, (None,))
        assert path.shape == (2, 3, GRID.num_steps + 1, 2)
        for b in range(3):
            moving = GRID.steps[b] > 0
            count = int(moving.sum())
            single = TimeGrid(GRID.times[b, : count + 1])
            alone = integrate(solver, sde, single, initial[:, b], normal[:count, :, b], (None,))
            assert_close(path[:, b, : count + 1], alone, rtol=1e-11, atol=1e-11)
            assert (path[:, b, count:] == path[:, b, count : count + 1]).all()
    assert vars(solver) == options, "a solver keeps no state"


def test_float32_agrees_with_float64(solver_row):
    solver = solver_row.solver
    for noise in noises(solver):
        sde, initial, normal = problem(solver, noise)
        path = integrate(solver, sde, GRID, initial, normal, (None,))
        low = integrate(solver, sde, TimeGrid(TIMES.float(), max_step=0.5), initial.float(), normal.float(), (None,))
        assert low.dtype == F32
        assert_close(low.double(), path, rtol=2e-4, atol=2e-4)


def test_first_states_may_have_fewer_batch_dimensions_than_grids_and_coefficients(solver_row):
    solver = solver_row.solver
    rate = torch.tensor([[0.5], [1.0], [2.0]], dtype=F64)
    sde = SDE(lambda t, z: -rate * z, lambda t, z: 0.3 + 0.1 * z.sin())
    _, initial, normal = problem(solver, "diagonal")
    path = integrate(solver, sde, GRID, initial[0], normal[:, :1], (None,))
    assert path.shape == (3, GRID.num_steps + 1, 2)
    for b in range(3):
        one = SDE(lambda t, z, b=b: -rate[b] * z, sde.diffusion)
        alone = integrate(solver, one, GRID[b], initial[0], normal[:, 0], (None,))
        assert_close(path[b], alone, rtol=1e-11, atol=1e-11)


def test_inputs_serve_the_step_and_a_control_is_part_of_the_drift(solver_row):
    solver = solver_row.solver
    grid = TimeGrid(torch.linspace(0, 1, 5, dtype=F64))
    inputs = torch.full((4, 2), 0.7, dtype=F64)
    for noise in noises(solver):
        base, initial, normal = problem(solver, noise, grid)
        expected = SDE(lambda t, z: drift(t, z, inputs[0]), base.diffusion, noise_type=noise)
        plain = integrate(solver, expected, grid, initial, normal, (None,))
        assert_close(integrate(solver, base, grid, initial, normal, (inputs,)), plain, rtol=1e-11, atol=1e-11)

        def pushed(t, z, base=base):  # sigma u with u = t + c, c the inputs
            value = base.diffusion(t, z)
            width = value.shape[-1] if base.noise.matrix_dims else 2
            return drift(t, z) + base.noise.apply(value, t + inputs[0, :width])

        width = 1 if noise == "scalar" else 2
        total = integrate(solver, SDE(pushed, base.diffusion, noise_type=noise), grid, initial, normal, (None,))
        controlled = base.controlled(lambda t, z, c, width=width: t + c[..., :width])
        path = integrate(solver, controlled, grid, initial, normal, (None, inputs))
        assert_close(path, total, rtol=1e-11, atol=1e-11)


def test_gradients_are_those_of_finite_differences(solver_row):
    solver = solver_row.solver
    grid = TimeGrid(TIMES[0], max_step=1.0)
    noise = "general" if "general" in solver.noise_types else "diagonal"
    _, initial, normal = problem(solver, noise, grid)
    diffusion, _ = NOISES[noise]

    def end(rate, initial, normal, times):
        sde = SDE(lambda t, z: drift(t, z) * rate, lambda t, z: rate * diffusion(t, z), noise_type=noise)
        return integrate(solver, sde, TimeGrid(times), initial, normal, (None,))

    parts = (torch.tensor(0.8, dtype=F64), initial, normal, grid.times)
    assert torch.autograd.gradcheck(end, tuple(part.clone().requires_grad_() for part in parts))


def test_little_memory_gives_the_same_path_and_gradient(solver_row):
    solver = solver_row.solver
    results = []
    for memory in (Execution().memory, "low"):
        sde, initial, normal = problem(solver, "diagonal")
        initial.requires_grad_()
        execution = Execution(memory=memory, block=4)
        path = integrate(solver, sde, GRID, initial, normal, (None,), execution)
        path.square().sum().backward()
        results.append((path.detach(), initial.grad))
    for full, low in zip(*results, strict=True):
        assert_close(low, full, rtol=1e-12, atol=1e-12)


def test_a_solver_converts_what_is_written_in_the_other_form_and_refuses_a_noise_type_by_name(solver_row):
    solver = solver_row.solver
    assert solver.interpretation == solver_row.interpretation
    for sde in (GeometricBrownianMotion(0.5, 0.3), GeometricBrownianMotion(0.5, 0.3).stratonovich()):
        assert solver.adapt(sde).sde_type == solver_row.interpretation
    for noise in set(NOISES) - solver.noise_types:
        sde = SDE(drift, NOISES[noise][0], noise_type=noise)
        with pytest.raises(ValueError, match=rf'{type(solver).__name__} cannot take noise_type="{noise}", only'):
            solver.adapt(sde)


def test_small_steps_of_all_solvers_meet(solver_row):
    grid = TimeGrid(torch.linspace(0, 1, 257, dtype=F64))
    sde = GeometricBrownianMotion(0.5, 0.4)
    solver = solver_row.solver
    normal = torch.randn(256, 20, normal_width(1, solver.levy), dtype=F64, generator=torch.Generator().manual_seed(1))
    first = torch.ones(20, 1, dtype=F64)
    path = integrate(solver, sde, grid, first, normal, (None,))
    reference = integrate(EulerMaruyama(), sde, grid, first, normal[..., :1], (None,))
    assert float((path - reference).abs().max()) < 0.06
