"""The reversible Heun method can be undone, and carries what it needs."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from pyro_sde import SDE
from pyro_sde.ops.brownian import BrownianIncrements
from pyro_sde.solvers.base import Field, Step
from pyro_sde.solvers.reversible_heun import ReversibleHeun
from tests.solvers.order_problems import brownian

F64 = torch.float64

DIFFUSIONS = {
    "diagonal": lambda t, z: 0.3 + 0.2 * (t + z).sin(),
    "general": lambda t, z: torch.stack([0.3 * z.sin(), 0.2 * z.flip(-1)], -1),
    "additive": lambda t, z: torch.eye(2, dtype=F64),  # without batch dimensions
}


@pytest.mark.parametrize("noise", sorted(DIFFUSIONS))
def test_steps_backwards_with_negated_increments_undo_steps(noise):
    sde = SDE(lambda t, z: (t - z).sin(), DIFFUSIONS[noise], noise_type=noise, sde_type="stratonovich")
    field, increments, solver = Field(sde, (None,)), brownian(50, 4, 2, seed=0), ReversibleHeun()
    z, t = torch.randn(4, 2, dtype=F64), torch.zeros(1, dtype=F64)
    state = solver.start(field, t, z, (None,))
    first = (z, *state)
    dt = increments.dt[0]
    for k in range(50):
        step = Step(t, BrownianIncrements(dt, increments.W[k], None, None), (None,))
        z, state = solver.step(field, z, step, state)
        t = t + dt[0]
    assert not torch.allclose(z, first[0])
    for k in reversed(range(50)):
        step = Step(t, BrownianIncrements(-dt, -increments.W[k], None, None), (None,))
        z, state = solver.step(field, z, step, state)
        t = t - dt[0]
    for before, after in zip(first, (z, *state), strict=True):
        assert_close(after, before, rtol=1e-10, atol=1e-10)


def test_it_carries_coefficients_with_all_batch_dimensions():
    sde = SDE(lambda t, z: torch.zeros((), dtype=F64), DIFFUSIONS["additive"], noise_type="additive")
    sde = sde.stratonovich()
    drift, diffusion, other = ReversibleHeun().start(Field(sde, (None,)), torch.zeros(1), torch.zeros(4, 2), (None,))
    assert drift.shape == other.shape == (4, 2)
    assert diffusion.shape == (4, 2, 2)
