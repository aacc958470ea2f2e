"""The contract of a solver."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from pyro_sde.ops.brownian import BrownianIncrements
from pyro_sde.sde import SDE
from pyro_sde.solvers import EulerMaruyama, Solver
from pyro_sde.solvers.base import Field, Step


class OnlyDiagonal(EulerMaruyama):
    noise_types = frozenset({"diagonal", "additive"})


class Stratonovich(EulerMaruyama):
    interpretation = "stratonovich"


def test_a_solver_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Solver()


def test_a_solver_that_cannot_take_the_noise_type_says_which_it_can():
    sde = SDE(lambda t, z: z, lambda t, z: z.unsqueeze(-1), noise_type="general")
    with pytest.raises(ValueError, match='OnlyDiagonal cannot take noise_type="general", only additive, diagonal'):
        OnlyDiagonal().adapt(sde)
    assert EulerMaruyama().adapt(sde) is sde


def test_a_solver_gets_the_sde_in_its_own_interpretation():
    ito = SDE(lambda t, z: 0 * z, lambda t, z: z)
    z, t = torch.tensor([2.0, -1.0]), torch.zeros(1)
    converted = Stratonovich().adapt(ito)
    assert converted.sde_type == "stratonovich"
    assert_close(converted.drift(t, z), -z / 2)
    assert Stratonovich().adapt(converted) is converted
    assert EulerMaruyama().adapt(converted).drift is ito.drift


def test_a_step_is_drift_times_step_plus_diffusion_times_increment():
    z, drift, increment, control = torch.randn(4, 5, 2, dtype=torch.float64).unbind(0)
    diffusion = torch.randn(5, 2, 2, dtype=torch.float64)
    sde = SDE(lambda t, z: drift, lambda t, z: diffusion, noise_type="general")
    dt = torch.tensor([0.1], dtype=torch.float64)
    step = Step(torch.zeros(1), BrownianIncrements(dt, increment, None, None), (None,))
    after, state = EulerMaruyama().step(Field(sde, (None,)), z, step, ())
    assert state == ()
    assert_close(after, z + drift * 0.1 + torch.einsum("bij,bj->bi", diffusion, increment))
    controlled = sde.controlled(lambda t, z: control)
    step = step._replace(rows=(None, None))
    after, _ = EulerMaruyama().step(Field(controlled, (None, None)), z, step, ())
    assert_close(after, z + drift * 0.1 + torch.einsum("bij,bj->bi", diffusion, increment + 0.1 * control))


def test_a_field_gives_total_drift_and_diffusion():
    sde = SDE(lambda t, z: -z, lambda t, z: 2 * z).controlled(lambda t, z: t + z)
    field = Field(sde, (None, None))
    t, z = torch.tensor([0.5]), torch.tensor([1.0, 3.0])
    drift, diffusion = field.both(t, z, (None, None))
    assert_close(drift, -z + 2 * z * (0.5 + z))
    assert_close(drift, field.drift(t, z, (None, None)))
    assert_close(diffusion, field.diffusion(t, z))
    assert field.coefficients(t, z, (None, None)).control is not None


def test_a_solver_shows_its_options():
    assert repr(EulerMaruyama()) == "EulerMaruyama()"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_an_euler_step_of_zero_length_without_noise_stays(dtype):
    sde = SDE(lambda t, z: z**3, lambda t, z: z)
    z = torch.randn(5, 3, dtype=dtype)
    increments = BrownianIncrements(torch.zeros(1, dtype=dtype), torch.zeros_like(z), None, None)
    after, _ = EulerMaruyama().step(Field(sde, (None,)), z, Step(torch.zeros(1, dtype=dtype), increments, (None,)), ())
    assert torch.equal(after, z)
    assert after.dtype == dtype
