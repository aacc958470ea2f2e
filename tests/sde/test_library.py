"""The library of SDEs against their equations written by hand."""

from __future__ import annotations

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pyro_sde.distributions import SDEPath
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.sde import (
    SDE,
    BrownianMotion,
    DoubleWell,
    GeometricBrownianMotion,
    NeuralSDE,
    OrnsteinUhlenbeck,
    StochasticLorenz,
    UnderdampedLangevin,
)

F32, F64 = torch.float32, torch.float64
NO_ROWS = (None,)

both_dtypes = pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])


def evaluate(sde, t, z):
    """Drift and diffusion, broadcast to the state."""
    drift, diffusion, _ = sde.coefficients(t, z, NO_ROWS)
    shape = torch.broadcast_shapes(drift.shape, diffusion.shape, z.shape)
    return drift.expand(shape), diffusion.expand(shape)


# --- the contract, on every row of the table ------------------------------------------------------


@both_dtypes
def test_the_equation_is_the_one_in_the_documentation(written_equation, dtype):
    equation = written_equation
    sde, z = equation.make(), torch.randn(6, equation.dim, dtype=dtype)
    drift, diffusion = evaluate(sde, torch.zeros(1, dtype=dtype), z)
    assert_close(drift, torch.tensor([equation.drift(row) for row in z.tolist()], dtype=dtype))
    assert_close(diffusion, torch.tensor([equation.diffusion(row) for row in z.tolist()], dtype=dtype))


def test_float64_numbers_are_not_rounded_to_float32(written_equation):
    equation = written_equation
    z = torch.randn(6, equation.dim, dtype=F64)
    drift, diffusion = evaluate(equation.make(), torch.zeros(1, dtype=F64), z)
    expected = torch.tensor([equation.drift(row) for row in z.tolist()], dtype=F64)
    assert_close(drift, expected, rtol=1e-13, atol=1e-13)
    expected = torch.tensor([equation.diffusion(row) for row in z.tolist()], dtype=F64)
    assert_close(diffusion, expected, rtol=1e-13, atol=1e-13)


@both_dtypes
def test_any_leading_dimensions_are_those_of_single_calls(equation, dtype):
    sde = equation.make().to(dtype)
    t, z = torch.rand(4, 1, 1, dtype=dtype), torch.randn(3, 4, 5, equation.dim, dtype=dtype)
    drift, diffusion = evaluate(sde, t, z)
    assert drift.dtype == diffusion.dtype == dtype
    assert drift.shape == diffusion.shape == z.shape
    for p, k, b in [(0, 0, 0), (2, 1, 4), (1, 3, 2)]:
        single_drift, single_diffusion = evaluate(sde, t[k, 0], z[p, k, b])
        assert_close(drift[p, k, b], single_drift)
        assert_close(diffusion[p, k, b], single_diffusion)


@both_dtypes
def test_a_path_can_be_sampled_and_scored(equation, dtype):
    sde = equation.make().to(dtype)
    grid = TimeGrid(torch.tensor([0.0, 0.1], dtype=dtype), max_step=0.02)
    law = SDEPath(sde, dist.Normal(torch.zeros(equation.dim, dtype=dtype), 1.0).to_event(1), grid)
    path = law.rsample((4,))
    assert path.shape == (4, 6, equation.dim)
    assert torch.isfinite(law.log_prob(path)).all()


@pytest.mark.parametrize("how", [lambda s: pickle.loads(pickle.dumps(s)), copy.deepcopy], ids=["pickle", "deepcopy"])
def test_an_sde_survives_pickling_and_copying(equation, how):
    sde = equation.make()
    again = how(sde)
    t, z = torch.rand(1), torch.randn(5, equation.dim)
    for ours, theirs in zip(evaluate(sde, t, z), evaluate(again, t, z), strict=True):
        assert torch.equal(ours, theirs)
    assert type(again) is type(sde)
    assert {id(p) for p in again.parameters()}.isdisjoint(id(p) for p in sde.parameters())


def test_every_library_sde_is_an_ito_sde_with_diagonal_noise(equation):
    sde = equation.make()
    assert isinstance(sde, SDE)
    assert (sde.noise_type, sde.sde_type) == ("diagonal", "ito")


def test_derived_sdes_of_the_library_are_plain(equation):
    sde = equation.make()
    z = torch.randn(5, equation.dim)
    other = sde.with_drift(lambda t, z: z**2)
    assert torch.equal(evaluate(other, torch.zeros(1), z)[0], z**2)
    controlled = sde.controlled(lambda t, z: torch.ones_like(z))
    coefficients = controlled.coefficients(torch.zeros(1), z, (None, None))
    drift, diffusion = evaluate(sde, torch.zeros(1), z)
    assert_close(coefficients.total_drift(sde.noise), drift + diffusion)


# --- parameters -----------------------------------------------------------------------------------

# name -> SDE of two parameters, which may be numbers or tensors, and its state dimension
TWO_PARAMETERS = {
    "brownian-motion": (BrownianMotion, 2),
    "ornstein-uhlenbeck": (OrnsteinUhlenbeck, 2),
    "geometric-brownian-motion": (GeometricBrownianMotion, 2),
    "double-well": (DoubleWell, 2),
    "langevin": (lambda friction, scale: UnderdampedLangevin(torch.neg, friction, scale), 4),
}

each_pair = pytest.mark.parametrize(("make", "dim"), TWO_PARAMETERS.values(), ids=TWO_PARAMETERS.keys())


@each_pair
def test_parameters_may_differ_per_series(make, dim):
    first, second = torch.rand(5, 1) + 0.5, torch.rand(5, 1) + 0.5
    batch, z = make(first, second), torch.randn(dim)
    drift, diffusion = evaluate(batch, torch.zeros(1), z)
    assert drift.shape == diffusion.shape == (5, dim)
    for b in range(5):
        single_drift, single_diffusion = evaluate(make(first[b].item(), second[b].item()), torch.zeros(1), z)
        assert_close(drift[b], single_drift)
        assert_close(diffusion[b], single_diffusion)


@each_pair
def test_gradients_flow_to_latent_parameters(make, dim):
    leaves = torch.tensor([0.7, 0.9], dtype=F64, requires_grad=True)
    sde = make(*(2 * leaves))  # not leaves: samples of other sites
    drift, diffusion = evaluate(sde, torch.zeros(1, dtype=F64), torch.randn(3, dim, dtype=F64))
    (drift.square().sum() + diffusion.square().sum()).backward()
    assert (leaves.grad != 0).all()
    assert list(sde.parameters()) == []


@each_pair
def test_tensor_parameters_move_and_learned_ones_train(make, dim):
    sde = make(nn.Parameter(torch.tensor(0.7)), torch.tensor(0.9))
    assert [p.item() for p in sde.parameters()] == pytest.approx([0.7])
    assert {b.dtype for b in sde.to(F64).buffers()} == {F64}
    assert {p.dtype for p in sde.parameters()} == {F64}
    assert len(sde.state_dict()) == 1  # the tensor is data or another site's value, not a weight


def test_lorenz_parameters_may_be_learned_and_differ_per_series():
    parameters = nn.Parameter(torch.tensor([[10.0, 28.0, 2.0], [5.0, 20.0, 1.0]]))
    noise = torch.tensor([0.1, 0.2, 0.3])
    sde = StochasticLorenz(parameters, noise)
    z = torch.tensor([1.0, 2.0, 3.0])
    drift, diffusion = evaluate(sde, torch.zeros(1), z)
    assert_close(drift, torch.tensor([[10.0, 1 * (28 - 3) - 2, 2 - 2 * 3], [5.0, 1 * (20 - 3) - 2, 2 - 3]]))
    assert_close(diffusion[0], noise * z)
    assert len(list(sde.parameters())) == 1


# --- single equations -----------------------------------------------------------------------------


def test_the_wells_are_where_the_drift_vanishes():
    sde = DoubleWell(strength=2.0, well=1.5)
    drift = sde.drift(torch.zeros(1), torch.tensor([-1.5, 0.0, 1.5, 1.6, 1.4]))
    assert_close(drift[:3], torch.zeros(3))
    assert drift[3] < 0 < drift[4]


def test_the_force_of_langevin_dynamics_may_be_a_network():
    force = nn.Linear(2, 2)
    sde = UnderdampedLangevin(force, friction=0.5, scale=0.3)
    assert {id(p) for p in sde.parameters()} == {id(p) for p in force.parameters()}
    z = torch.randn(3, 5, 4)
    drift, diffusion = evaluate(sde, torch.zeros(1), z)
    assert_close(drift, torch.cat([z[..., 2:], force(z[..., :2]) - 0.5 * z[..., 2:]], -1))
    assert torch.equal(diffusion[..., :2], torch.zeros(3, 5, 2))


@pytest.mark.parametrize("dim", [1, 3])
def test_langevin_dynamics_with_an_odd_state_dimension_raises(dim):
    sde = UnderdampedLangevin(torch.neg)
    with pytest.raises(ValueError, match=rf"is \(position, velocity\), D = 2d; received D = {dim}"):
        sde.drift(torch.zeros(1), torch.zeros(dim))


def test_a_path_law_reports_an_odd_state_dimension_of_langevin_dynamics():
    initial = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    with pytest.raises(ValueError, match="D = 2d; received D = 3"):
        SDEPath(UnderdampedLangevin(torch.neg), initial, TimeGrid([0.0, 1.0]))


# --- NeuralSDE ------------------------------------------------------------------------------------


def test_a_neural_sde_starts_with_the_diffusion_it_is_told():
    for constant in (True, False):
        sde = NeuralSDE(3, hidden=(8,), diffusion_scale=0.2, constant_diffusion=constant)
        _, diffusion = evaluate(sde, torch.zeros(1), torch.randn(4, 3))
        assert_close(diffusion, torch.full((4, 3), 0.2))
        assert sde.state_dim == 3


def test_a_constant_diffusion_does_not_depend_on_the_state_and_the_other_does():
    for constant in (True, False):
        sde = NeuralSDE(2, hidden=(8,), constant_diffusion=constant)
        for p in sde.diffusion.parameters():
            p.data.normal_()
        _, diffusion = evaluate(sde, torch.zeros(1), torch.randn(4, 2))
        assert torch.equal(diffusion[0], diffusion[1]) == constant
        assert (diffusion > 0).all()


def test_a_neural_sde_is_autonomous_unless_it_has_time_features():
    z = torch.randn(4, 2)
    for features, period in [(0, None), (1, None), (2, 3.0)]:
        sde = NeuralSDE(2, hidden=(8,), time_features=features, period=period)
        now, later, periodic = (sde.drift(torch.tensor([t]), z) for t in (0.3, 1.0, 3.3))
        assert torch.equal(now, later) == (features == 0)
        assert torch.allclose(now, periodic, atol=1e-5) == (features != 1)


def test_a_neural_sde_takes_inputs():
    sde = NeuralSDE(2, hidden=(8,), input_dim=3)
    z, inputs = torch.randn(4, 2), torch.randn(4, 3)
    first = sde.coefficients(torch.zeros(1), z, (inputs,)).drift
    assert not torch.allclose(first, sde.coefficients(torch.zeros(1), z, (-inputs,)).drift)


def test_hidden_widths_are_those_of_the_drift():
    widths = [m.out_features for m in NeuralSDE(2, hidden=(7, 5)).drift.modules() if isinstance(m, nn.Linear)]
    assert widths == [7, 5, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"state_dim": 0}, "`state_dim` must be"),
        ({"hidden": ()}, "`hidden` must name at least one layer"),
        ({"diffusion_scale": 0.0}, "`floor` and `initial` must satisfy"),
        ({"time_features": 3}, "`time_features` must be 0"),
        ({"period": 2.0}, "`period` must be"),
    ],
)
def test_bad_arguments_of_a_neural_sde_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        NeuralSDE(**{"state_dim": 2, **arguments})


def test_every_parameter_of_a_neural_sde_gets_a_gradient_and_a_name_in_the_store():
    sde = NeuralSDE(2, hidden=(8,), constant_diffusion=False)
    for p in sde.diffusion.parameters():
        p.data.normal_()
    pyro.module("prior", sde)
    assert {f"prior$$${name}" for name, _ in sde.named_parameters()} == set(pyro.get_param_store().keys())
    drift, diffusion = evaluate(sde, torch.zeros(1), torch.randn(4, 2))
    (drift.sum() + diffusion.log().sum()).backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in sde.parameters())


# --- moments of the simulated processes -----------------------------------------------------------


def test_an_ornstein_uhlenbeck_path_has_the_moments_of_its_euler_chain():
    rate, scale, loc, h = 2.0, 0.8, 0.5, 0.05
    grid = TimeGrid(torch.tensor([0.0, 1.0], dtype=F64), max_step=h)
    initial = dist.Delta(torch.full((1,), 2.0, dtype=F64)).to_event(1)
    end = SDEPath(OrnsteinUhlenbeck(rate, scale, loc), initial, grid).sample((20_000,))[:, -1, 0]
    factor = 1 - rate * h
    mean = loc + (2.0 - loc) * factor**20
    variance = scale**2 * h * (1 - factor**40) / (1 - factor**2)
    n = len(end)
    assert abs(end.mean() - mean) < 4.4 * math.sqrt(variance / n)  # each fails by chance at a rate of 1e-5
    assert abs(end.var() / variance - 1) < 4.4 * math.sqrt(2 / n)  # finds errors of 7 % of the variance


def test_neural_sde_with_reversion_is_bounded_and_pulled():
    free, pulled = NeuralSDE(2, (8,)), NeuralSDE(2, (8,), reversion=0.5)
    assert type(pulled.drift.activation) is torch.nn.Tanh
    assert type(free.drift.activation) is torch.nn.SiLU
    z = 1e6 * torch.ones(1, 2)
    drift = pulled.coefficients(torch.zeros(1), z, (None,)).drift
    torch.testing.assert_close(drift, -0.5 * z, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"parameters": 3}, r"`parameters` must be three numbers or a tensor \(\*batch, 3\), received 3"),
        ({"noise": (0.1, 0.2)}, r"`noise` must be three numbers .* received \(0.1, 0.2\)"),
        ({"noise": torch.ones(3, 2)}, r"`noise` must be three numbers .* received a tensor of shape \(3, 2\)"),
        ({"parameters": (10.0, math.nan, 1.0)}, r"`parameters\[1\]` must be finite, received nan"),
    ],
)
def test_lorenz_parameters_that_are_not_three_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        StochasticLorenz(**arguments)
