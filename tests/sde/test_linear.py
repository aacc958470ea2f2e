"""The contract of linear SDEs, on every row of the table, and what their hyper-parameters may be."""

from __future__ import annotations

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from torch.distributions import constraints
from torch.testing import assert_close

from pyro_sde.distributions import SDEPath
from pyro_sde.ops.discretise import discretise
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.sde import (
    SDE,
    Coregionalisation,
    Cosine,
    DampedOscillator,
    IntegratedWiener,
    Matern12,
    Matern32,
    Matern52,
    OrnsteinUhlenbeck,
    Product,
    Sum,
)
from pyro_sde.sde.linear import check_parts, shape_of, systems_of

F32, F64 = torch.float32, torch.float64
STEPS = torch.tensor([1e-6, 1e-3, 0.1, 0.7, 3.0], dtype=F64)
ALL_STEPS = torch.logspace(-6, 3, 10, dtype=F64)


def scaled(covariance, reference=None):
    """Entries as correlations: an absolute error of them is what a filter sees."""
    reference = covariance if reference is None else reference
    scale = reference.diagonal(dim1=-2, dim2=-1).clamp(min=torch.finfo(reference.dtype).tiny).sqrt()
    return covariance / scale.unsqueeze(-1) / scale.unsqueeze(-2)


# --- exact laws -----------------------------------------------------------------------------------


def test_closed_forms_equal_the_general_discretisation(linear):
    system = linear.build().system()
    ours = system.transition(STEPS)
    general = discretise(system.matrix, system.diffusion, STEPS, system.offset)
    assert_close(ours.matrix, general.matrix, rtol=1e-12, atol=1e-12)
    assert_close(ours.offset, general.offset, rtol=1e-12, atol=1e-15)
    if ours.covariance.any():
        reference = general.covariance
        assert_close(scaled(ours.covariance, reference), scaled(reference), rtol=0, atol=1e-12)
    else:
        assert not general.covariance.any()


def test_two_steps_are_one_long_step(linear):
    sde = linear.build()
    first, second, both = (sde.transition(STEPS * h) for h in (0.3, 0.7, 1.0))
    assert_close(second.matrix @ first.matrix, both.matrix, rtol=1e-12, atol=1e-12)
    offset = (second.matrix @ first.offset.unsqueeze(-1)).squeeze(-1) + second.offset
    assert_close(offset, both.offset, rtol=1e-12, atol=1e-15)
    covariance = second.matrix @ first.covariance @ second.matrix.mT + second.covariance
    assert_close(scaled(covariance, both.covariance), scaled(both.covariance), rtol=0, atol=1e-12)


def test_the_system_is_the_equation_that_a_solver_steps(linear):
    sde = linear.build()
    system, z = sde.system(), torch.randn(5, sde.state_dim, dtype=F64)
    drift, diffusion, control = sde.coefficients(torch.zeros(1, dtype=F64), z, (None,))
    expected = z @ system.matrix.mT + (0.0 if system.offset is None else system.offset)
    assert_close(drift.expand_as(z), expected)
    gram = sde.noise.gram(sde.noise.widen(diffusion, sde.state_dim))
    assert_close(gram, system.diffusion @ system.diffusion.mT)
    assert control is None
    assert (sde.state_dim, sde.sde_type) == (system.state_dim, "ito")


def test_a_step_of_zero_moves_nothing(linear):
    sde = linear.build()
    dt = torch.tensor([0.0, 0.5], dtype=F64)
    matrix, offset, covariance = (value[0] for value in sde.transition(dt))
    assert torch.equal(matrix, torch.eye(sde.state_dim, dtype=F64))
    assert not offset.any()
    assert not covariance.any()
    assert not sde.transition(dt).factor()[0].any()


def test_the_stationary_law_is_invariant(stationary_linear):
    sde = stationary_linear.build()
    mean, covariance = sde.stationary()
    matrix, offset, noise = sde.transition(STEPS)
    assert_close((matrix @ mean.unsqueeze(-1)).squeeze(-1) + offset, mean.expand_as(offset))
    after = matrix @ covariance @ matrix.mT + noise
    assert_close(scaled(after, covariance), scaled(covariance).expand_as(after), rtol=0, atol=1e-12)


def test_the_covariance_function_is_the_kernel(stationary_linear):
    row = stationary_linear
    sde = row.build()
    lags = torch.tensor([0.0, 1e-3, 0.2, 0.9, 2.3, 5.0], dtype=F64)
    output, (_, covariance) = sde.observation, sde.stationary()
    ours = output @ sde.transition(lags).matrix @ covariance @ output.mT  # (T, O, O)
    kernel = row.kernel(lags, *row.parameters)
    assert_close(ours, kernel if kernel.dim() == 3 else kernel[:, None, None], rtol=1e-12, atol=1e-13)


def test_covariances_have_cholesky_factors_over_nine_orders_of_magnitude(linear):
    transition = linear.build().transition(ALL_STEPS)
    covariance, factor = transition.covariance, transition.factor()
    assert torch.equal(covariance, covariance.mT)
    assert torch.equal(factor, factor.tril())
    assert_close(scaled(factor @ factor.mT, covariance), scaled(covariance), rtol=0, atol=1e-13)
    if type(linear.build()) in (Matern12, Matern32, Matern52, IntegratedWiener, OrnsteinUhlenbeck):
        assert (factor.diagonal(dim1=-2, dim2=-1) > 0).all()


@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
def test_gradients_are_finite_over_nine_orders_of_magnitude(linear, dtype):
    dt = torch.cat([torch.zeros(1), ALL_STEPS]).to(dtype).requires_grad_()
    parameters = torch.tensor(linear.parameters, dtype=dtype, requires_grad=True)
    transition = linear.make(*parameters).transition(dt)
    sum(value.sum() for value in transition).backward()
    assert torch.isfinite(dt.grad).all()
    assert torch.isfinite(parameters.grad).all()


def test_gradients_are_right(linear):
    parameters = [torch.tensor(value, dtype=F64, requires_grad=True) for value in linear.parameters]
    dt = torch.tensor([0.02, 0.9], dtype=F64, requires_grad=True)

    def laws(dt, *values):
        sde = linear.make(*values)
        return (*sde.transition(dt), *(() if linear.kernel is None else sde.stationary()))

    assert torch.autograd.gradcheck(laws, (dt, *parameters), atol=1e-6)


def test_float32_laws_are_the_rounded_ones(linear):
    steps = STEPS[1:]  # the seventh power of 1e-6 is no float32
    exact, ours = (linear.build(dtype).transition(steps.to(dtype)) for dtype in (F64, F32))
    assert ours.matrix.dtype == ours.offset.dtype == ours.covariance.dtype == F32
    assert_close(ours.matrix.double(), exact.matrix, rtol=1e-5, atol=1e-5)
    assert_close(ours.offset.double(), exact.offset, rtol=1e-5, atol=1e-7)
    assert_close(scaled(ours.covariance.double(), exact.covariance), scaled(exact.covariance), rtol=0, atol=2e-5)
    if linear.kernel is not None:
        for rounded, value in zip(linear.build(F32).stationary(), linear.build().stationary(), strict=True):
            assert rounded.dtype == F32
            assert_close(rounded.double(), value, rtol=1e-4, atol=1e-5)


def test_hyper_parameters_may_differ_per_series(linear):
    factors = torch.tensor([0.7, 1.0, 1.4], dtype=F64)
    batch = linear.make(*(value * factors for value in linear.parameters))
    common = batch.transition(STEPS)  # (3, K, D, D)
    own = batch.transition(STEPS * factors.unsqueeze(-1))  # steps per series too
    drift, _, _ = batch.coefficients(torch.zeros(1), torch.ones(4, 3, batch.state_dim, dtype=F64), (None,))
    for b, factor in enumerate(factors.tolist()):
        single = linear.make(*torch.tensor(linear.parameters, dtype=F64) * factor)
        for ours, theirs in zip(common, single.transition(STEPS), strict=True):
            assert ours.shape[:2] == (3, len(STEPS))
            assert_close(ours[b], theirs, rtol=1e-11, atol=1e-12)
        for ours, theirs in zip(own, single.transition(STEPS * factor), strict=True):
            assert_close(ours[b], theirs, rtol=1e-11, atol=1e-12)
        expected = single.coefficients(torch.zeros(1), torch.ones(single.state_dim, dtype=F64), (None,)).drift
        assert_close(drift[2, b], expected.expand_as(drift[2, b]))
        if linear.kernel is not None:
            for ours, theirs in zip(batch.stationary(), single.stationary(), strict=True):
                assert_close(ours[b], theirs, rtol=1e-12, atol=1e-14)


def test_equal_steps_are_computed_once_and_give_the_same(linear):
    sde, few = linear.build(), torch.tensor([0.2, 0.5], dtype=F64)
    index = torch.randint(2, (3, 7), generator=torch.Generator().manual_seed(0))
    for pattern in (index, index[0], torch.zeros(9, dtype=torch.long)):
        shared, single = sde.transition(few[pattern]), sde.transition(few)
        for ours, theirs in zip(shared, single, strict=True):
            assert_close(ours, theirs[pattern], rtol=1e-13, atol=1e-15)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_numbers_and_tensors_follow_the_device_of_the_steps(linear):
    device = torch.device("cuda")
    steps, z = STEPS.to(device), torch.zeros(linear.build().state_dim, dtype=F64, device=device)
    for parameters in (linear.parameters, torch.tensor(linear.parameters, dtype=F64, device=device)):
        sde = linear.make(*parameters)
        for ours, theirs in zip(sde.transition(steps), linear.build().transition(STEPS), strict=True):
            assert_close(ours.cpu(), theirs, rtol=1e-10, atol=1e-12)
        assert sde.coefficients(torch.zeros(1, device=device), z, (None,)).drift.device.type == "cuda"
        if linear.kernel is not None:
            assert {value.device.type for value in sde.system(device).stationary()} == {"cuda"}


# --- an ordinary SDE ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
def test_a_path_can_be_sampled_and_scored_by_a_solver(linear, dtype):
    sde = linear.build(dtype)
    grid = TimeGrid(torch.tensor([0.0, 0.1], dtype=dtype), max_step=0.02)
    initial = dist.Normal(torch.zeros(sde.state_dim, dtype=dtype), 1.0).to_event(1)
    law = SDEPath(sde, initial, grid)
    path = law.rsample((4,))
    assert path.shape == (4, 6, sde.state_dim)
    assert path.dtype == dtype
    assert torch.isfinite(law.log_prob(path)).all()
    controlled = SDEPath(sde.controlled(lambda t, z: torch.ones_like(z[..., :1])), initial, grid)
    assert torch.isfinite(controlled.rsample((4,))).all()


def test_a_linear_sde_survives_pickling_and_copying(linear):
    sde = linear.build()
    for again in (pickle.loads(pickle.dumps(sde)), copy.deepcopy(sde)):
        assert type(again) is type(sde)
        for ours, theirs in zip(sde.transition(STEPS), again.transition(STEPS), strict=True):
            assert torch.equal(ours, theirs)


def test_derived_sdes_keep_the_diffusion_and_its_parameters():
    sde = Matern32(nn.Parameter(torch.tensor(0.5)), 2.0)
    other = sde.with_drift(lambda t, z: -z)
    z = torch.randn(4, 2)
    assert_close(other.diffusion(torch.zeros(1), z), sde.system().diffusion.float())
    assert_close(sde.drift(torch.zeros(1), z), z @ sde.system().matrix.float().mT)
    assert [id(p) for p in other.parameters()] == [id(p) for p in sde.parameters()]
    controlled = sde.controlled(lambda t, z: torch.ones_like(z[..., :1]))
    coefficients = controlled.coefficients(torch.zeros(1), z, (None, None))
    noise = sde.system().diffusion.float()[:, 0]
    assert_close(coefficients.total_drift(sde.noise), sde.drift(torch.zeros(1), z) + noise)


def test_inputs_of_a_linear_sde_raise(linear):
    with pytest.raises(ValueError, match="takes no `inputs`: give them to a control"):
        linear.build().coefficients(torch.zeros(1), torch.zeros(1), (torch.zeros(2),))


# --- hyper-parameters -----------------------------------------------------------------------------


def test_numbers_are_exact_in_every_dtype():
    mean, covariance = OrnsteinUhlenbeck(0.3, 0.7, 0.1).stationary(F64)
    assert_close(mean, torch.tensor([0.1], dtype=F64), rtol=1e-15, atol=0)
    assert_close(covariance, torch.tensor([[0.49 / 0.6]], dtype=F64), rtol=1e-15, atol=0)
    assert Matern32(0.3).transition(STEPS).matrix.dtype == F64
    assert Matern32(0.3).stationary()[1].dtype == torch.get_default_dtype()
    assert Matern32(0.3, torch.tensor(1.0, dtype=F64)).stationary()[1].dtype == F64
    assert Matern32(torch.tensor(0.3), torch.tensor(1.0, dtype=F64)).stationary()[1].dtype == F64
    assert (Matern12(torch.ones(2)) + Matern12(torch.ones(2, dtype=F64))).stationary()[1].dtype == F64
    mixed = Coregionalisation([Matern12(torch.ones(()))], torch.ones(2, 1, dtype=F64))
    assert mixed.observation.dtype == mixed.stationary()[1].dtype == F64


def test_a_system_is_built_on_the_device_that_is_asked_for():
    for sde in (Matern32(0.5), Matern32(torch.tensor(0.5)), Matern12() * Cosine(1.0) + Matern12()):
        assert sde.system(torch.device("cpu")).matrix.device == sde.system().matrix.device == torch.device("cpu")


def test_tensors_move_with_the_process_and_are_no_weights():
    leaf = torch.tensor(0.5, requires_grad=True)
    sde = Matern32(2 * leaf, nn.Parameter(torch.tensor(1.0)))
    assert [name for name, _ in sde.named_parameters()] == ["variance"]
    assert list(sde.state_dict()) == ["variance"]
    assert {b.dtype for b in copy.deepcopy(Matern32(torch.tensor(0.5))).to(F64).buffers()} == {F64}
    sde.stationary()[1].sum().backward()
    assert leaf.grad != 0


def test_a_constrained_parameter_trains_and_stays_positive():
    sde = Matern32(PyroParam(torch.tensor(0.5), constraints.positive))
    optimiser = torch.optim.Adam(sde.parameters(), lr=0.5)
    for _ in range(20):
        optimiser.zero_grad()
        sde.transition(torch.ones(1)).covariance[0, 0, 0].neg().backward()  # wants a short lengthscale
        optimiser.step()
    assert 0 < sde.lengthscale.item() < 0.1


def test_a_plain_parameter_that_leaves_its_range_is_reported_at_use():
    sde = Matern32(nn.Parameter(torch.tensor(0.5)))
    sde.lengthscale.data.fill_(-0.1)
    with pytest.raises(ValueError, match=r"`lengthscale` of Matern32 must be positive and finite, received -0.1"):
        sde.transition(STEPS)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), torch.tensor([1.0, -1.0])])
def test_hyper_parameters_out_of_range_raise(bad):
    for make in (Matern12, Matern52, Cosine, DampedOscillator, lambda x: IntegratedWiener(1, x)):
        with pytest.raises(ValueError, match="must be positive and finite, received"):
            make(bad)
    with pytest.raises(ValueError, match="`variance` of Matern32"):
        Matern32(1.0, bad)


class Model(PyroModule):
    """A latent process with a sampled and a learned hyper-parameter."""

    def __init__(self):
        super().__init__()
        self.kernel = Matern32(PyroSample(dist.LogNormal(0.0, 0.5)), PyroParam(torch.tensor(2.0), constraints.positive))

    def forward(self):
        return self.kernel.transition(torch.ones(1)), self.kernel.stationary()[1], self.kernel.lengthscale


def test_a_sampled_hyper_parameter_is_one_site_of_the_model():
    model = Model()
    trace = poutine.trace(model).get_trace()
    assert list(trace.stochastic_nodes) == ["kernel.lengthscale"]
    assert trace.param_nodes == ["kernel.variance"]
    transition, covariance, lengthscale = trace.nodes["_RETURN"]["value"]
    expected = Matern32(lengthscale, 2.0)
    assert_close(transition.matrix, expected.transition(torch.ones(1)).matrix)
    assert_close(covariance, expected.stationary()[1])


def test_a_process_alone_draws_one_value_for_each_system():
    sde = Matern32(PyroSample(dist.LogNormal(0.0, 0.5)))

    def model():
        system = sde.system()
        return system.transition(torch.ones(1)), system.stationary()

    trace = poutine.trace(model).get_trace()
    assert "lengthscale" in trace.nodes
    ours = trace.nodes["_RETURN"]["value"][0].matrix
    assert_close(ours, Matern32(trace.nodes["lengthscale"]["value"]).transition(torch.ones(1)).matrix)
    with pytest.raises(RuntimeError, match="Multiple sample sites named 'lengthscale'"):
        poutine.trace(lambda: (sde.transition(torch.ones(1)), sde.stationary())).get_trace()


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "in a model"])
def test_a_path_law_replays_sampled_hyper_parameters(alone):
    sde = Matern32(PyroSample(dist.LogNormal(0.0, 0.5))) * Cosine(1.0)
    grid = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.1)
    initial = dist.Normal(torch.zeros(4), 1.0).to_event(1)

    class Root(PyroModule):
        def __init__(self):
            super().__init__()
            if not alone:
                self.kernel = sde

        def forward(self):
            return pyro.sample("z", SDEPath(sde, initial, grid))

    trace = poutine.trace(Root()).get_trace()
    site = "factors.0.lengthscale" if alone else "kernel.factors.0.lengthscale"
    value = trace.nodes[site]["value"]
    fixed = SDEPath(Matern32(value) * Cosine(1.0), initial, grid)
    path = trace.nodes["z"]["value"]
    law = trace.nodes["z"]["fn"]
    noise = law.noise_of(path)
    assert_close(fixed.noise_of(path), noise, rtol=1e-3, atol=1e-3)


def test_the_hyper_parameters_of_an_independent_process_may_be_samples():
    sde = OrnsteinUhlenbeck(PyroSample(dist.LogNormal(torch.zeros(3), 0.1).to_event(1)), 0.5)
    assert sde.state_dim == 3
    trace = poutine.trace(lambda: sde.drift(torch.zeros(1), torch.ones(3))).get_trace()
    assert_close(trace.nodes["_RETURN"]["value"], -trace.nodes["rate"]["value"])


def test_shapes_of_hyper_parameters_are_known_before_they_are_drawn():
    assert shape_of(0.5) == ()
    assert shape_of(torch.zeros(2, 3)) == (2, 3)
    assert shape_of(PyroParam(torch.zeros(4))) == (4,)
    assert shape_of(PyroParam(lambda: torch.zeros(4))) == ()
    assert shape_of(PyroSample(dist.Normal(torch.zeros(2, 3), 1.0).to_event(1))) == (2, 3)
    assert shape_of(PyroSample(lambda self: dist.Normal(0.0, 1.0))) == ()


# --- sums and products ----------------------------------------------------------------------------


def test_operators_make_flat_sums_and_products():
    a, b, c, d = Matern12(), Matern32(), Cosine(1.0), Matern52()
    total = a * c * b + d + a
    assert type(total) is Sum
    assert [type(term) for term in total.terms] == [Product, Matern52, Matern12]
    assert [type(factor) for factor in total.terms[0].factors] == [Matern12, Cosine, Matern32]
    assert total.state_dim == 1 * 2 * 2 + 3 + 1
    assert total.system().name == "Matern12 * Cosine * Matern32 + Matern52 + Matern12"


def test_names_of_parameters_do_not_depend_on_brackets():
    def kernel(scale):
        return Matern12(nn.Parameter(torch.tensor(scale)))

    left, right = (kernel(1.0) + kernel(2.0)) + kernel(3.0), kernel(1.0) + (kernel(2.0) + kernel(3.0))
    expected = {f"terms.{i}.lengthscale": float(i + 1) for i in range(3)}
    for total in (left, right):
        assert {name: p.item() for name, p in total.named_parameters()} == expected


@pytest.mark.parametrize("other", [1.0, torch.ones(2), SDE(torch.neg, torch.neg), None])
def test_only_linear_sdes_can_be_added_and_multiplied(other):
    with pytest.raises(TypeError, match=r"unsupported operand|must be Tensor"):
        Matern12() + other
    with pytest.raises(TypeError, match=r"unsupported operand|must be Tensor"):
        Matern12() * other


@pytest.mark.parametrize("parts", [[], [SDE(torch.neg, torch.neg)], [Matern12(), 1.0]])
def test_compounds_of_nothing_or_of_something_else_raise(parts):
    for kind, name in (
        (Sum, "terms"),
        (Product, "factors"),
        (lambda p: Coregionalisation(p, torch.eye(1)), "processes"),
    ):
        with pytest.raises(ValueError, match=f"`{name}` must hold at least one linear SDE"):
            kind(parts)


def test_parts_and_their_systems_keep_their_order():
    parts = [Matern12(), Matern52()]
    assert check_parts("terms", parts) is parts
    assert [system.state_dim for system in systems_of(Sum(parts).terms, None)] == [1, 3]


def test_a_hyper_parameter_that_is_not_positive_passes_where_validation_is_off():
    with pytest.raises(ValueError, match="`lengthscale` of Matern32 must be positive"):
        Matern32(torch.tensor(0.0))
    with pyro.validation_enabled(False):  # as MCMC runs: no finite density, no error
        Matern32(torch.tensor(0.0)).transition(torch.ones(1))
