"""What an SDE is: who gets the inputs, what a control does, the Itô form, objects in torchsde's style."""

from __future__ import annotations

import copy
import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
import torchsde
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.optim import Adam
from torch import nn
from torch.testing import assert_close

from pyro_sde.distributions import SDEPath
from pyro_sde.nn import ControlNet
from pyro_sde.nn.diffusion import DiagonalDiffusion
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.sde import SDE, Coefficients, ControlledSDE, NeuralSDE, OrnsteinUhlenbeck
from pyro_sde.sde.noise import noise_structure

F32, F64 = torch.float32, torch.float64
NO_ROWS = (None,)


class Recorder:
    """A coefficient that remembers which arguments it got."""

    def __init__(self, function):
        self.function = function
        self.calls = []

    def __call__(self, *args):
        self.calls.append(args)
        return self.function(*args)

    @property
    def inputs(self):
        return [args[2] if len(args) > 2 else None for args in self.calls]


def decay(t, z, inputs=None):
    return -z if inputs is None else inputs - z


def half(t, z):
    return 0.5 * torch.ones_like(z)


def matrix(t, z):
    """A matrix ``(..., 2, 3)`` that depends on time and state."""
    rows = [
        torch.stack([z[..., 0], z[..., 1], 1 + z[..., 0] ** 2], -1),
        torch.stack([z[..., 1], t[..., 0] + 0 * z[..., 0], z[..., 0].sin()], -1),
    ]
    return torch.stack(rows, -2)


DIFFUSIONS = {
    "diagonal": (lambda t, z: 0.3 + z**2, 2),
    "scalar": (lambda t, z: z.unsqueeze(-1), 1),
    "additive": (
        lambda t, z: (1 + t).unsqueeze(-1) * torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 3.0]], dtype=z.dtype),
        3,
    ),
    "general": (matrix, 3),
}

each_noise_type = pytest.mark.parametrize("noise_type", sorted(DIFFUSIONS))


def total_drift(sde, t, z, rows=NO_ROWS):
    return sde.coefficients(t, z, rows).total_drift(sde.noise)


# --- construction ---------------------------------------------------------------------------------


def test_coefficients_are_those_of_the_two_functions():
    sde = SDE(decay, half)
    t, z = torch.zeros(1, dtype=F64), torch.randn(4, 3, dtype=F64)
    drift, diffusion, control = sde.coefficients(t, z, NO_ROWS)
    assert torch.equal(drift, -z)
    assert torch.equal(diffusion, torch.full_like(z, 0.5))
    assert control is None
    assert torch.equal(total_drift(sde, t, z), -z)
    assert (sde.noise_type, sde.sde_type, sde.inputs) == ("diagonal", "ito", None)


def test_numbers_become_tensors_of_the_dtype_of_the_state():
    sde = SDE(lambda t, z: 2, lambda t, z: 0.1)
    for dtype in (F32, F64):
        drift, diffusion, _ = sde.coefficients(torch.zeros(1, dtype=dtype), torch.zeros(3, dtype=dtype), NO_ROWS)
        assert (drift.dtype, diffusion.dtype) == (dtype, dtype)
        assert (drift.item(), diffusion.item()) == (2, pytest.approx(0.1))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"drift": 1.0}, TypeError, r"`drift` must be a function of \(t, z\), received float"),
        ({"diffusion": torch.ones(2)}, TypeError, r"`diffusion` must be a function of \(t, z\), received Tensor"),
        ({"noise_type": "colored"}, ValueError, r"`noise_type` must be one of .*'diagonal'.*received 'colored'"),
        ({"sde_type": "Ito"}, ValueError, r'`sde_type` must be "ito" or "stratonovich", received \'Ito\''),
    ],
)
def test_bad_arguments_raise(arguments, error, message):
    with pytest.raises(error, match=message):
        SDE(**{"drift": decay, "diffusion": half, **arguments})


def test_a_control_that_cannot_be_called_raises():
    with pytest.raises(TypeError, match=r"`control` must be a function of \(t, z\[, inputs\]\), received Tensor"):
        SDE(decay, half).controlled(torch.zeros(2))


# --- control and drift ----------------------------------------------------------------------------


@each_noise_type
@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
def test_a_control_adds_diffusion_times_control_to_the_drift(noise_type, dtype):
    diffusion, brownian_dim = DIFFUSIONS[noise_type]
    weights = torch.randn(2, brownian_dim, dtype=dtype)
    sde = SDE(decay, diffusion, noise_type=noise_type).controlled(lambda t, z: z @ weights)
    t, z = torch.full((1,), 0.3, dtype=dtype), torch.randn(5, 2, dtype=dtype)
    coefficients = sde.coefficients(t, z, sde.bind_rows(None))
    dense = diffusion(t, z)
    dense = torch.diag_embed(dense) if noise_type == "diagonal" else dense
    expected = -z + (dense @ (z @ weights).unsqueeze(-1)).squeeze(-1)
    assert_close(coefficients.total_drift(sde.noise), expected)
    assert_close(coefficients.drift, -z)
    assert_close(coefficients.control, z @ weights)
    assert torch.equal(coefficients.diffusion, diffusion(t, z))
    assert (sde.noise_type, sde.noise) == (noise_type, noise_structure(noise_type))


@each_noise_type
def test_nested_controls_add_up_and_the_outermost_is_the_control(noise_type):
    diffusion, brownian_dim = DIFFUSIONS[noise_type]
    first, second = torch.randn(2, brownian_dim, dtype=F64)
    base = SDE(decay, diffusion, noise_type=noise_type)
    nested = base.controlled(lambda t, z: first).controlled(lambda t, z: second)
    once = base.controlled(lambda t, z: first + second)
    t, z = torch.full((1,), 0.3, dtype=F64), torch.randn(5, 2, dtype=F64)
    assert_close(total_drift(nested, t, z, nested.bind_rows(None)), total_drift(once, t, z, once.bind_rows(None)))
    coefficients = nested.coefficients(t, z, nested.bind_rows(None))
    assert_close(coefficients.control, second)
    assert_close(coefficients.drift, total_drift(base.controlled(lambda t, z: first), t, z, (None, None)))


def test_another_drift_keeps_diffusion_noise_and_kind():
    sde = SDE(decay, matrix, noise_type="general", sde_type="stratonovich")
    other = sde.with_drift(lambda t, z: z**3)
    assert other.diffusion is sde.diffusion
    assert (other.noise_type, other.sde_type) == ("general", "stratonovich")
    z = torch.randn(5, 2)
    assert torch.equal(total_drift(other, torch.zeros(1), z), z**3)
    assert torch.equal(total_drift(sde, torch.zeros(1), z), -z)


def test_another_drift_of_a_controlled_sde_replaces_drift_and_control():
    sde = SDE(decay, half).controlled(lambda t, z: 10 * z)
    z = torch.randn(5, 2)
    assert torch.equal(total_drift(sde.with_drift(decay), torch.zeros(1), z), -z)


# --- who gets the inputs --------------------------------------------------------------------------


def test_inputs_go_to_the_drift_of_a_plain_sde_and_never_to_its_diffusion():
    drift, diffusion = Recorder(decay), Recorder(half)
    sde = SDE(drift, diffusion)
    rows = torch.randn(6, 2)
    (row,) = sde.bind_rows(rows)
    assert row is rows
    sde.coefficients(torch.zeros(1), torch.zeros(2), (row[0],))
    assert torch.equal(drift.inputs[0], rows[0])
    assert diffusion.inputs == [None]


def test_inputs_go_to_the_control_only():
    drift, diffusion, control = Recorder(decay), Recorder(half), Recorder(lambda t, z, c: c)
    sde = SDE(drift, diffusion).controlled(control)
    rows = torch.randn(6, 2)
    assert sde.bind_rows(rows) == (None, rows)
    sde.coefficients(torch.zeros(1), torch.zeros(2), (None, rows[3]))
    assert drift.inputs == diffusion.inputs == [None]
    assert torch.equal(control.inputs[0], rows[3])


def test_inputs_of_nested_controls_go_to_the_outermost():
    inner, outer = Recorder(lambda t, z: z), Recorder(lambda t, z, c: c)
    sde = SDE(decay, half).controlled(inner).controlled(outer)
    rows = torch.randn(6, 2)
    assert sde.bind_rows(rows) == (None, None, rows)
    sde.coefficients(torch.zeros(1), torch.zeros(2), (None, None, rows[0]))
    assert inner.inputs == [None]
    assert torch.equal(outer.inputs[0], rows[0])


def test_bound_inputs_go_to_the_drift_and_free_ones_to_the_control():
    drift, control = Recorder(decay), Recorder(lambda t, z, c: c)
    exogenous, context = torch.randn(6, 2), torch.randn(6, 2)
    sde = SDE(drift, half).with_inputs(exogenous).controlled(control)
    rows = sde.bind_rows(context)
    assert rows == (exogenous, context)
    coefficients = sde.coefficients(torch.zeros(1), torch.zeros(2), tuple(r[1] for r in rows))
    assert torch.equal(drift.inputs[0], exogenous[1])
    assert torch.equal(control.inputs[0], context[1])
    assert_close(coefficients.total_drift(sde.noise), exogenous[1] + 0.5 * context[1])


def test_a_control_may_have_its_inputs_bound_too():
    first, second, third = torch.randn(3, 6, 2).unbind(0)
    sde = SDE(decay, half).with_inputs(first).controlled(lambda t, z, c: c).with_inputs(second)
    assert isinstance(sde, ControlledSDE)
    assert sde.bind_rows(None) == (first, second)
    assert sde.controlled(lambda t, z, c: c).bind_rows(third) == (first, second, third)


def test_binding_inputs_leaves_the_original_unbound_and_shares_its_parameters():
    sde = SDE(nn.Identity(), half)
    sde.drift.weight = nn.Parameter(torch.ones(1))
    bound = sde.with_inputs(torch.zeros(3, 1))
    assert sde.inputs is None
    assert sde.bind_rows(None) == NO_ROWS
    assert bound.drift is sde.drift
    assert [id(p) for p in bound.parameters()] == [id(p) for p in sde.parameters()]
    assert sde.with_inputs(torch.ones(3, 1)).inputs is not bound.inputs


def test_a_new_drift_starts_without_the_bound_inputs_of_the_old_one():
    assert SDE(decay, half).with_inputs(torch.zeros(3, 2)).with_drift(decay).bind_rows(None) == NO_ROWS


@pytest.mark.parametrize("make", [lambda s: s, lambda s: s.controlled(lambda t, z, c: c)], ids=["plain", "controlled"])
def test_binding_inputs_twice_raises(make):
    bound = make(SDE(decay, half)).with_inputs(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="has its inputs bound already; call `with_inputs` once"):
        bound.with_inputs(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="`inputs` were given, but the inputs of this SDE are bound by `with_inputs`"):
        bound.bind_rows(torch.zeros(3, 2))


def test_inputs_without_a_row_per_step_raise():
    with pytest.raises(ValueError, match=r"`rows` must have shape \(\*batch, K, C\), received \(3,\)"):
        SDE(decay, half).with_inputs(torch.zeros(3))


def test_bound_inputs_move_with_the_sde():
    rows = torch.zeros(3, 2)
    bound = SDE(decay, half).with_inputs(rows)
    assert bound.double().bind_rows(None)[0].dtype == F64
    assert rows.dtype == F32
    assert "inputs" not in bound.state_dict()


def test_learned_inputs_are_parameters_of_the_copy_only():
    sde = SDE(decay, half)
    bound = sde.with_inputs(nn.Parameter(torch.zeros(3, 2)))
    assert [name for name, _ in bound.named_parameters()] == ["inputs"]
    assert list(sde.named_parameters()) == []
    assert "inputs" not in sde.with_inputs(torch.zeros(3, 2)).state_dict()


# --- Itô form -------------------------------------------------------------------------------------

A = torch.tensor([[0.5, -1.0], [2.0, 0.3]], dtype=F64)
B = torch.tensor([[1.0, 0.2], [-0.4, 0.7]], dtype=F64)


def coupled(t, z):
    """Diagonal noise whose entries depend on both states: sigma = (x y, x + y^2)."""
    x, y = z.unbind(-1)
    return torch.stack([x * y, x + y**2], -1)


def two_columns(t, z):
    """General noise with columns A z and (1 + t) B z."""
    return torch.stack([z @ A.to(z).mT, (1 + t) * (z @ B.to(z).mT)], -1)


# name -> (noise type, diffusion, hand-derived correction  1/2 sum_m (d sigma_m / dz) sigma_m)
CORRECTIONS = {
    "geometric": ("diagonal", lambda t, z: 0.4 * z, lambda t, z: 0.5 * 0.4**2 * z),
    "power": ("diagonal", lambda t, z: z**2, lambda t, z: z**3),
    "constant-number": ("diagonal", lambda t, z: 0.7, lambda t, z: 0 * z),
    "constant-vector": ("diagonal", lambda t, z: torch.tensor([1.0, 2.0]).to(z), lambda t, z: 0 * z),
    "time-only": ("diagonal", lambda t, z: 1 + t, lambda t, z: 0 * z),
    # row i of sigma only drives state i: 1/2 (d sigma_i / dz_i) sigma_i, without the other state's noise
    "coupled": (
        "diagonal",
        coupled,
        lambda t, z: 0.5 * torch.stack([z[..., 1] * z[..., 0] * z[..., 1], 2 * z[..., 1] * coupled(t, z)[..., 1]], -1),
    ),
    "scalar": (
        "scalar",
        lambda t, z: (z @ A.to(z).mT).unsqueeze(-1),
        lambda t, z: 0.5 * z @ (A @ A).to(z).mT,
    ),
    "scalar-constant": ("scalar", lambda t, z: torch.ones(2, 1).to(z), lambda t, z: 0 * z),
    "additive": ("additive", DIFFUSIONS["additive"][0], lambda t, z: 0 * z),
    "general": (
        "general",
        two_columns,
        lambda t, z: 0.5 * (z @ (A @ A).to(z).mT + (1 + t) ** 2 * (z @ (B @ B).to(z).mT)),
    ),
    # columns (y, x y) and (1, x): Jacobians [[0, 1], [y, x]] and [[0, 0], [1, 0]]
    "general-2x2": (
        "general",
        lambda t, z: torch.stack(
            [torch.stack([z[..., 1], z[..., 0] * z[..., 1]], -1), torch.stack([0 * z[..., 0] + 1, z[..., 0]], -1)], -1
        ),
        lambda t, z: 0.5 * torch.stack([z[..., 0] * z[..., 1], z[..., 1] ** 2 + z[..., 0] ** 2 * z[..., 1] + 1], -1),
    ),
}

each_correction = pytest.mark.parametrize("case", CORRECTIONS.values(), ids=CORRECTIONS.keys())


@each_correction
@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
def test_the_ito_drift_has_the_hand_derived_correction(case, dtype):
    noise_type, diffusion, correction = case
    sde = SDE(decay, diffusion, noise_type=noise_type, sde_type="stratonovich").ito()
    t, z = torch.rand(7, 1, 1, dtype=dtype), torch.randn(7, 5, 2, dtype=dtype)
    coefficients = sde.coefficients(t, z, NO_ROWS)
    assert (sde.sde_type, sde.noise_type) == ("ito", noise_type)
    assert_close(coefficients.drift.expand_as(z), -z + correction(t, z))
    assert_close(coefficients.diffusion, torch.as_tensor(diffusion(t, z), dtype=dtype))


@each_correction
def test_the_correction_leaves_inputs_and_control_alone(case):
    noise_type, diffusion, correction = case
    t, z, exogenous = torch.rand(1, dtype=F64), torch.randn(5, 2, dtype=F64), torch.randn(5, 4, 2, dtype=F64)
    base = SDE(decay, diffusion, noise_type=noise_type, sde_type="stratonovich").with_inputs(exogenous)
    controlled = base.controlled(lambda t, z, c: c)
    brownian_dim = controlled.noise.brownian_dim(torch.as_tensor(diffusion(t, z)), 2)
    context = torch.randn(5, 4, brownian_dim, dtype=F64)
    ito = controlled.ito()
    assert isinstance(ito, ControlledSDE)
    rows = ito.bind_rows(context)
    assert torch.equal(rows[0], exogenous)
    assert torch.equal(rows[1], context)
    coefficients = ito.coefficients(t, z, tuple(row[:, 2] for row in rows))
    assert_close(coefficients.drift.expand_as(z), exogenous[:, 2] - z + correction(t, z))
    assert torch.equal(coefficients.control, context[:, 2])


def test_an_ito_sde_is_its_own_ito_form():
    sde = SDE(decay, half)
    controlled = sde.controlled(half)
    assert sde.ito() is sde
    assert controlled.ito() is controlled


def test_the_ito_form_of_additive_noise_costs_nothing():
    sde = SDE(decay, DIFFUSIONS["additive"][0], noise_type="additive", sde_type="stratonovich")
    assert sde.ito().drift is decay


@each_correction
def test_the_stratonovich_form_takes_the_correction_away_again(case):
    noise_type, diffusion, correction = case
    ito = SDE(decay, diffusion, noise_type=noise_type)
    stratonovich = ito.stratonovich()
    t, z = torch.rand(7, 1, 1, dtype=F64), torch.randn(7, 5, 2, dtype=F64)
    assert (stratonovich.sde_type, stratonovich.noise_type) == ("stratonovich", noise_type)
    assert_close(stratonovich.coefficients(t, z, NO_ROWS).drift.expand_as(z), -z - correction(t, z))
    assert stratonovich.ito().drift is decay, "the way back evaluates no derivative"
    assert stratonovich.stratonovich() is stratonovich


def test_the_control_of_a_stratonovich_form_is_that_of_the_ito_form():
    controlled = SDE(decay, half).controlled(lambda t, z: z + 1)
    z = torch.randn(5, 2)
    ito = controlled.coefficients(torch.zeros(1), z, (None, None))
    other = controlled.stratonovich().coefficients(torch.zeros(1), z, (None, None))
    assert_close(ito.control, other.control)


def test_a_linear_sde_is_the_same_in_both_interpretations():
    process = OrnsteinUhlenbeck(1.0, 0.5)
    stratonovich = process.stratonovich()
    assert stratonovich.sde_type == "stratonovich"
    assert stratonovich.ito().sde_type == process.sde_type == "ito"
    z = torch.randn(5, 2)
    assert_close(stratonovich.coefficients(torch.zeros(1), z, NO_ROWS).drift, -z)


def test_bound_inputs_of_a_control_survive_the_ito_form():
    rows = torch.randn(3, 2)
    sde = SDE(decay, half, sde_type="stratonovich").controlled(lambda t, z, c: c).with_inputs(rows)
    assert torch.equal(sde.ito().bind_rows(None)[1], rows)


@pytest.mark.parametrize("noise_type", ["diagonal", "general"])
def test_gradients_flow_through_the_correction(noise_type):
    def drift(volatility, z):
        def diffusion(t, z):
            return volatility * z**2 if noise_type == "diagonal" else torch.diag_embed(volatility * z**2)

        sde = SDE(decay, diffusion, noise_type=noise_type, sde_type="stratonovich").ito()
        return sde.coefficients(torch.zeros(1, dtype=F64), z, NO_ROWS).drift

    volatility = torch.tensor([0.5, 0.8], dtype=F64, requires_grad=True)
    z = torch.randn(4, 2, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(drift, (volatility, z))
    assert torch.autograd.gradgradcheck(drift, (volatility, z))
    with torch.no_grad():
        assert_close(drift(volatility, z), -z + volatility**2 * z**3)


# --- objects in torchsde's style ------------------------------------------------------------------


class TorchSDE(torchsde.BaseSDE):
    """A torchsde SDE that insists on one scalar time and states (B, D), as many do."""

    def __init__(self, noise_type, sde_type="ito"):
        super().__init__(noise_type=noise_type, sde_type=sde_type)
        self.net = nn.Linear(3, 2).double()
        self.scale = nn.Parameter(torch.tensor(0.7, dtype=F64))
        self.times = []

    def f(self, t, y):
        assert (t.dim(), y.dim()) == (0, 2)
        self.times.append(t.item())
        return self.net(torch.cat([t.expand(len(y), 1), y], -1)).tanh()

    def g(self, t, y):
        assert (t.dim(), y.dim()) == (0, 2)
        value = self.scale * (1 + t) * (1 + y**2)
        if self.noise_type == "diagonal":
            return value
        columns = {"scalar": 1, "additive": 3, "general": 3}[self.noise_type]
        if self.noise_type == "additive":
            return self.scale * (1 + t) * torch.ones(len(y), 2, columns, dtype=F64)
        return value.unsqueeze(-1) * torch.arange(1.0, columns + 1, dtype=F64)


def reference(sde, t, z):
    """Coefficients of a torchsde object, one time and one state after the other."""
    batch = torch.broadcast_shapes(t.shape[:-1], z.shape[:-1])
    times, states = t.expand(*batch, 1).reshape(-1), z.expand(*batch, z.shape[-1]).reshape(-1, z.shape[-1])
    drift = torch.cat([sde.f(s, x.unsqueeze(0)) for s, x in zip(times, states, strict=True)])
    diffusion = torch.cat([sde.g(s, x.unsqueeze(0)) for s, x in zip(times, states, strict=True)])
    return drift.reshape(*batch, 2), diffusion.reshape(*batch, *diffusion.shape[1:])


# shapes of t and z: one state, a batch, all times at once, a time per series, times and series, particles
SHAPES = [
    ((1,), (2,)),
    ((1,), (5, 2)),
    ((4, 1, 1), (4, 5, 2)),
    ((5, 1), (5, 2)),
    ((4, 5, 1), (4, 5, 2)),
    ((4, 1, 1), (3, 4, 5, 2)),
]


@each_noise_type
@pytest.mark.parametrize(("t_shape", "z_shape"), SHAPES, ids=str)
def test_a_torchsde_object_is_called_with_scalar_times_for_any_leading_dimensions(noise_type, t_shape, z_shape):
    original = TorchSDE(noise_type)
    sde = SDE.from_torchsde(original)
    assert (sde.noise_type, sde.sde_type) == (noise_type, "ito")
    t, z = torch.rand(t_shape, dtype=F64), torch.randn(z_shape, dtype=F64)
    drift, diffusion, _ = sde.coefficients(t, z, NO_ROWS)
    expected_drift, expected_diffusion = reference(original, t, z)
    assert_close(drift, expected_drift)
    assert_close(diffusion, expected_diffusion)
    assert sde.noise.shape_error(diffusion, z) is None


@each_noise_type
@pytest.mark.parametrize(("t_shape", "z_shape"), SHAPES, ids=str)
@pytest.mark.parametrize("equal", [False, True], ids=["different-times", "equal-times"])
def test_gradients_of_a_torchsde_object_reach_parameters_states_and_each_time(noise_type, t_shape, z_shape, equal):
    original = TorchSDE(noise_type)
    sde = SDE.from_torchsde(original)
    t = (torch.full(t_shape, 0.4, dtype=F64) if equal else torch.rand(t_shape, dtype=F64)).requires_grad_()
    z = torch.randn(z_shape, dtype=F64, requires_grad=True)
    leaves = [t, z, *original.parameters()]
    drift, diffusion, _ = sde.coefficients(t, z, NO_ROWS)
    weights = torch.rand_like(drift), torch.rand_like(diffusion)
    loss = (weights[0] * drift).sum() + (weights[1] * diffusion).sum()
    expected_drift, expected_diffusion = reference(original, t, z)
    expected = (weights[0] * expected_drift).sum() + (weights[1] * expected_diffusion).sum()
    for ours, theirs in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
        assert_close(ours, theirs)


def test_equal_times_share_one_call_of_a_torchsde_object():
    original = TorchSDE("diagonal")
    sde = SDE.from_torchsde(original)
    times = torch.tensor([0.1, 0.5, 0.1, 0.9, 0.9], dtype=F64).unsqueeze(-1)
    sde.drift(times, torch.zeros(5, 2, dtype=F64))
    assert sorted(original.times) == [0.1, 0.5, 0.9]
    original.times.clear()
    shared = torch.tensor([0.3], dtype=F64, requires_grad=True)
    sde.drift(shared, torch.zeros(5, 2, dtype=F64))
    assert original.times == [0.3]


def test_a_torchsde_object_needs_no_base_class():
    class Plain:
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t, y):
            return -t * y

        def g(self, t, y):
            return torch.full_like(y, 0.3)

    sde = SDE.from_torchsde(Plain())
    z = torch.randn(4, 2)
    assert_close(total_drift(sde, torch.full((1,), 2.0), z), -2 * z)


def test_a_stratonovich_torchsde_object_has_its_ito_form():
    sde = SDE.from_torchsde(TorchSDE("diagonal", "stratonovich"))
    t, z = torch.rand(3, 1, 1, dtype=F64), torch.randn(3, 4, 2, dtype=F64)
    scale = sde.drift.sde.scale * (1 + t)
    difference = sde.ito().drift(t, z) - sde.drift(t, z)
    assert_close(difference, 0.5 * (scale * 2 * z) * (scale * (1 + z**2)))


@pytest.mark.parametrize("missing", ["f", "g", "noise_type", "sde_type"])
def test_an_object_without_the_four_attributes_raises(missing):
    attributes = {"f": decay, "g": half, "noise_type": "diagonal", "sde_type": "ito"}
    del attributes[missing]
    message = rf"torchsde-style object with f, g, noise_type and sde_type; Partial has no {missing}\."
    with pytest.raises(TypeError, match=message):
        SDE.from_torchsde(type("Partial", (), attributes)())


# --- parameters -----------------------------------------------------------------------------------


class Affine(nn.Module):
    def __init__(self, size=2):
        super().__init__()
        self.layer = nn.Linear(size, size)

    def forward(self, t, z, *inputs):
        return self.layer(z)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor([-1.0, -0.5]))

    def forward(self, t, z):
        return self.log_scale.exp()


def test_the_names_of_parameters_are_those_of_the_coefficients():
    sde = SDE(Affine(), Scale())
    names = ["drift.layer.weight", "drift.layer.bias", "diffusion.log_scale"]
    assert [name for name, _ in sde.named_parameters()] == names
    controlled = sde.controlled(Affine())
    prefixed = [f"base.{name}" for name in names] + ["control.layer.weight", "control.layer.bias"]
    assert [name for name, _ in controlled.named_parameters()] == prefixed


VARIANTS = {
    "plain": lambda sde: sde,
    "controlled": lambda sde: sde.controlled(Affine()),
    "nested": lambda sde: sde.controlled(Affine()).controlled(Affine()),
    "bound": lambda sde: sde.with_inputs(torch.zeros(3, 2)).controlled(Affine()),
    "other-drift": lambda sde: sde.with_drift(Affine()),
    "copy": copy.deepcopy,
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_parameter_is_registered_once(variant):
    sde = variant(SDE(Affine(), Scale()))
    everything = list(sde.named_parameters(remove_duplicate=False))
    assert len(everything) == len({id(p) for _, p in everything})
    assert len(sde.state_dict()) == len(everything)


@pytest.mark.parametrize(
    "make",
    [lambda: SDE.from_torchsde(TorchSDE("diagonal")), lambda: SDE(Affine(), Scale(), sde_type="stratonovich").ito()],
    ids=["torchsde", "ito-form"],
)
def test_every_parameter_is_listed_once_where_drift_and_diffusion_share_modules(make):
    parameters = [id(p) for p in make().parameters()]
    assert len(parameters) == len(set(parameters)) == 3


def test_pyro_module_trains_the_parameters_of_an_sde_and_of_its_control():
    prior, control = SDE(Affine(), Scale()), Affine()
    grid = TimeGrid([0.0, 1.0], max_step=0.25)
    initial = dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def model():
        pyro.module("prior", prior)
        path = pyro.sample("z", SDEPath(prior, initial, grid))
        pyro.sample("y", dist.Normal(grid.observed(path), 0.1).to_event(2), obs=torch.ones(2, 2))

    def guide():
        posterior = pyro.module("posterior", prior.controlled(control))
        pyro.sample("z", SDEPath(posterior, initial, grid))

    parameters = dict(prior.controlled(control).named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    svi = SVI(model, guide, Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(2):
        svi.step()
    assert {n for n, p in parameters.items() if torch.equal(p, before[n])} == set()


def test_pyro_parameters_and_samples_inside_coefficients_are_seen():
    drift = PyroModule[nn.Linear](2, 2)
    drift.weight = PyroSample(dist.Normal(0.0, 1.0).expand([2, 2]).to_event(2))
    drift.bias = PyroParam(torch.zeros(2))

    class Drift(PyroModule):
        def __init__(self):
            super().__init__()
            self.layer = drift

        def forward(self, t, z):
            return self.layer(z)

    sde = SDE(Drift(), half)
    trace = pyro.poutine.trace(lambda: sde.coefficients(torch.zeros(1), torch.zeros(4, 2), NO_ROWS)).get_trace()
    assert {"layer.weight", "layer.bias"} <= {name.removeprefix("drift.") for name in trace.nodes}


def test_changing_the_dtype_moves_parameters_and_buffers():
    parameters = {"rate": torch.tensor([1.0, 2.0]), "scale": nn.Parameter(torch.ones(2)), "loc": torch.zeros(2)}
    sde = OrnsteinUhlenbeck(**parameters).controlled(Affine()).to(F64)
    for tensor in itertools.chain(sde.parameters(), sde.buffers()):
        assert tensor.dtype == F64
    assert len(list(sde.buffers())) == 2
    z = torch.randn(5, 2, dtype=F64)
    assert {c.dtype for c in sde.coefficients(torch.zeros(1, dtype=F64), z, (None, None))} == {F64}


def test_coefficients_without_a_control_have_the_drift_as_total_drift():
    drift = torch.randn(3)
    assert Coefficients(drift, torch.ones(3), None).total_drift(noise_structure("diagonal")) is drift


# ---------------------------------------------------------------- evaluator
def test_evaluator_computes_the_input_part_of_a_split_network_once_for_all_rows(monkeypatch):
    control = ControlNet(2, 3, hidden=(8,))
    torch.nn.init.normal_(control.tail.layers[-1].weight)
    sde = NeuralSDE(2, (8,), input_dim=5).with_inputs(torch.randn(7, 5)).controlled(control)
    rows = sde.bind_rows(torch.randn(4, 7, 3))
    calls = []
    projected = ControlNet.project_inputs
    monkeypatch.setattr(ControlNet, "project_inputs", lambda self, x: calls.append(x.shape) or projected(self, x))
    evaluate, hoisted = sde.evaluator(rows)
    t, z = torch.zeros(1), torch.randn(4, 2)
    for k in range(7):
        ours = evaluate(t, z, tuple(row[..., k, :] for row in hoisted))
        monkeypatch.setattr(ControlNet, "project_inputs", projected)
        oracle = sde.coefficients(t, z, tuple(row[..., k, :] for row in rows))
        for value, expected in zip(ours, oracle, strict=True):
            torch.testing.assert_close(value, expected)
    assert calls == [torch.Size([4, 7, 3])]


def test_scalar_time_coefficients_say_that_they_take_one_time_at_a_call():
    class Scalar(torchsde.SDEIto):
        def __init__(self):
            super().__init__(noise_type="diagonal")

        def f(self, t, y):
            return -y

        def g(self, t, y):
            return torch.ones_like(y)

    assert NeuralSDE(2).takes_all_times
    assert not SDE.from_torchsde(Scalar()).takes_all_times


@pytest.mark.parametrize("constant", [True, False])
def test_networks_that_tell_their_layers_are_converted_by_fewer_derivatives(constant):
    torch.manual_seed(0)
    diffusion = DiagonalDiffusion(3, constant=constant).to(F64)
    t, z = torch.rand(4, 1, 1, dtype=F64), torch.randn(4, 5, 3, dtype=F64)
    told = SDE(decay, diffusion).stratonovich()
    hidden = SDE(decay, lambda t, z: diffusion(t, z)).stratonovich()
    assert_close(told.drift(t, z), hidden.drift(t, z).expand_as(z))
    if constant:
        assert torch.equal(told.drift(t, z), decay(t, z))
