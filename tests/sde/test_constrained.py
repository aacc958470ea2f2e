"""SDEs of constrained states against Itô's formula by automatic differentiation and by hand."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch.testing import assert_close

from pyro_sde.nn.diffusion import DiagonalDiffusion
from pyro_sde.sde import SDE, GeometricBrownianMotion, NeuralSDE
from pyro_sde.sde.bounded_library import CoxIngersollRoss, WrightFisherSimplex
from pyro_sde.sde.constrained import (
    Arcsine,
    ConstrainedSDE,
    Interval,
    Positive,
    Simplex,
    SquareRoot,
    constrain,
    domain_of,
)

F32, F64 = torch.float32, torch.float64
T0, NO_ROWS = torch.zeros(1, dtype=F64), (None,)
LOW, HIGH = torch.tensor([-1.0, 0.5], dtype=F64), torch.tensor([2.0, 3.0], dtype=F64)

# name -> domain, some coordinates
DOMAINS = {
    "positive": (Positive(), torch.tensor([[-2.0, 0.3], [1.5, -0.4]], dtype=F64)),
    "square-root": (SquareRoot(), torch.tensor([[0.2, 0.9], [1.5, 2.4]], dtype=F64)),
    "interval": (Interval(LOW, HIGH), torch.tensor([[-2.0, 0.3], [1.5, -0.4]], dtype=F64)),
    "unit-interval": (Interval(), torch.tensor([[-2.0, 0.3], [1.5, -0.4]], dtype=F64)),
    "arcsine": (Arcsine(LOW, HIGH), torch.tensor([[0.2, 0.9], [1.5, 0.4]], dtype=F64)),
    "simplex": (Simplex(), torch.tensor([[-2.0, 0.3, 1.0], [1.5, -0.4, 0.2]], dtype=F64)),
}


def drift(t, x):
    return torch.sin(3 * x) + 0.5 * x.roll(1, -1)


def elementwise(t, x):
    return 0.3 + x.cos().square()


def matrix(t, x):
    """(..., D, 3), every entry depends on the whole state."""
    columns = [x.cos(), 0.4 * x.roll(1, -1), 0.7 + 0.2 * x.square()]
    return torch.stack(columns, -1)


def column(t, x):
    return matrix(t, x)[..., :1]


def other_entry(t, x):
    """Noise on every entry whose size is the second one."""
    return torch.stack([x[..., 1:].expand_as(x), 0 * x], -1)


def two_roots(t, x):
    return ((x - LOW) * (HIGH - x)).sqrt()


def along_simplex(t, x):
    """Columns that add up to 0."""
    return matrix(t, x) - matrix(t, x).mean(-2, keepdim=True)


NOISE = {"diagonal": elementwise, "general": matrix, "scalar": column}
CASES = [(d, n) for d in DOMAINS for n in NOISE if not (d == "simplex" and n == "diagonal")]


@pytest.fixture(params=sorted(DOMAINS))
def domain_and_y(request):
    return DOMAINS[request.param]


# --- the map ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
def test_state_and_coordinate_are_inverse_maps(domain_and_y, dtype):
    domain, y = domain_and_y[0], domain_and_y[1].to(dtype)
    x = domain.to_state(y)
    assert x.dtype == dtype
    assert_close(domain.to_coordinate(x), y)
    assert bool(domain.inside(x).all())
    assert bool(domain.support.check(x).all())
    assert y.shape[-1] == domain.coordinate_dim(x.shape[-1])
    assert torch.equal(domain(y), x)


def test_log_slopes_are_the_log_determinant_of_the_map(domain_and_y):
    domain, y = domain_and_y
    for row in y:
        jacobian = torch.func.jacrev(domain.to_state)(row)[: len(row)]  # the simplex: the first D - 1 entries
        assert_close(domain.log_slopes(row).sum(-1), torch.linalg.slogdet(jacobian).logabsdet)


@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", ["positive", "interval", "unit-interval", "simplex"])
def test_extreme_coordinates_give_finite_states_strictly_inside(name, dtype):
    domain, y = DOMAINS[name]
    for size in (-2e3, -60.0, 60.0, 2e3):
        if name == "positive" and size > 60:
            continue  # too large for any float
        x = domain.to_state(torch.full_like(y, size).to(dtype))
        assert bool(domain.inside(x).all()), (name, size)
        assert bool(domain.to_coordinate(x).isfinite().all()), (name, size)
        assert bool(domain.log_slopes(torch.full_like(y, size).to(dtype)).isfinite().all()), (name, size)


def test_values_outside_are_not_inside():
    values = torch.tensor([-1.0, 0.0, 1.0, math.nan])
    assert Positive().inside(values).tolist() == [False, False, True, False]
    assert Interval(-2.0, 1.0).inside(values).tolist() == [True, True, False, False]
    assert Simplex().inside(torch.tensor([[0.5, 0.5], [0.4, 0.5], [1.2, -0.2]])).tolist() == [
        [True, True],
        [False, False],
        [True, False],
    ]


def test_domains_are_the_same_if_set_and_coordinate_are():
    assert Positive().same_as(Positive())
    assert not Positive().same_as(SquareRoot())
    assert Interval(LOW, HIGH).same_as(Interval(LOW.clone(), HIGH))
    assert not Interval(LOW, HIGH).same_as(Interval(LOW, HIGH + 1))
    assert not Interval(0.0, 1.0).same_as(Arcsine(0.0, 1.0))


def test_bounds_move_with_the_module():
    assert Interval(LOW, HIGH).to(F32).low.dtype == F32


@pytest.mark.parametrize("make", [Interval, Arcsine])
def test_an_interval_without_length_is_refused(make):
    with pytest.raises(ValueError, match=r"low < high, received 1 and 1"):
        make(1.0, 1.0)
    with pytest.raises(ValueError, match=r"low < high, received \[0.0, 0.0\] and \[1.0, -1.0\]"):
        make(torch.zeros(2), torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match=r"must be finite with low < high, received 0 and inf. For one end use Pos"):
        make(0.0, math.inf)


# --- Itô's formula ---------------------------------------------------------------------------------
def by_autograd(sde, domain, y):
    """Drift and diffusion of the coordinate of one state from Jacobian and Hessian of T."""
    x = domain.to_state(y)
    f, sigma, _ = sde.coefficients(T0, x, NO_ROWS)
    sigma = torch.diag_embed(sigma) if sde.noise_type == "diagonal" else sigma
    jacobian = torch.func.jacrev(domain.to_coordinate)(x)
    hessian = torch.func.hessian(domain.to_coordinate)(x)
    correction = 0.5 * torch.einsum("iab,ac,bc->i", hessian, sigma, sigma)
    return jacobian @ f, correction, jacobian @ sigma


@pytest.mark.parametrize(("name", "noise"), CASES)
def test_coefficients_are_those_of_itos_formula(name, noise):
    domain, y = DOMAINS[name]
    sde = SDE(drift, NOISE[noise], noise_type=noise)
    f, sigma, control = constrain(sde, domain).coefficients(T0, y, NO_ROWS)
    assert control is None
    for i, row in enumerate(y):
        first, second, expected = by_autograd(sde, domain, row)
        assert_close(f[i], first + second)
        assert_close(torch.diag_embed(sigma[i]) if noise == "diagonal" else sigma[i], expected)


@pytest.mark.parametrize(("name", "noise"), CASES)
def test_a_stratonovich_sde_needs_no_second_order_term(name, noise):
    domain, y = DOMAINS[name]
    diffusion = along_simplex if name == "simplex" else NOISE[noise]
    sde = SDE(drift, diffusion, noise_type="general" if name == "simplex" else noise, sde_type="stratonovich")
    constrained = constrain(sde, domain)
    assert constrained.sde_type == "stratonovich"
    for i, row in enumerate(y):
        assert_close(constrained.coefficients(T0, y, NO_ROWS).drift[i], by_autograd(sde, domain, row)[0])
    # to Itô before or after the change of coordinate: one process
    before = constrain(sde.ito(), domain).coefficients(T0, y, NO_ROWS).drift
    assert_close(constrained.ito().coefficients(T0, y, NO_ROWS).drift, before)


@pytest.mark.parametrize(("name", "noise"), CASES)
def test_drift_and_diffusion_alone_agree_with_both_at_once(name, noise):
    domain, y = DOMAINS[name]
    constrained = constrain(SDE(drift, NOISE[noise], noise_type=noise), domain)
    both = constrained.coefficients(T0, y, NO_ROWS)
    assert torch.equal(constrained.drift(T0, y), both.drift)
    assert torch.equal(constrained.diffusion(T0, y), both.diffusion)
    alone = constrained.without_diffusion().coefficients(T0, y, NO_ROWS)
    assert torch.equal(alone.drift, both.drift)


def test_logarithm_of_geometric_brownian_motion_is_brownian_motion_with_drift():
    y = torch.linspace(-300, 300, 9, dtype=F64).unsqueeze(-1)
    f, g, _ = constrain(GeometricBrownianMotion(0.3, 0.4), Positive()).coefficients(T0, y, NO_ROWS)
    assert_close(f, torch.full_like(y, 0.3 - 0.08), rtol=1e-13, atol=0)
    assert_close(g, torch.full_like(y, 0.4), rtol=1e-13, atol=0)


def test_logarithm_of_a_square_root_process_is_exact_near_the_boundary():
    y = torch.tensor([[-600.0], [-300.0], [-50.0], [0.0], [3.0]], dtype=F64)
    f, g, _ = CoxIngersollRoss(1.5, 0.7, 0.9).constrained().coefficients(T0, y, NO_ROWS)
    assert_close(f, (1.5 * 0.7 - 0.405) * torch.exp(-y) - 1.5, rtol=1e-12, atol=0)
    assert_close(g, 0.9 * torch.exp(-y / 2), rtol=1e-12, atol=0)


def test_additive_noise_of_the_state_is_not_additive_for_its_coordinate():
    sde = SDE(drift, lambda t, x: torch.eye(2, dtype=x.dtype), noise_type="additive")
    assert constrain(sde, Positive()).noise_type == "general"


# --- control form, inputs, modules ------------------------------------------------------------------
def test_a_control_moves_state_and_coordinate_alike():
    sde, domain, y = SDE(drift, matrix, noise_type="general"), *DOMAINS["interval"]
    u = torch.tensor([0.3, -1.0, 0.5], dtype=F64)
    constrained = constrain(sde, domain)
    f, sigma, control = constrained.controlled(lambda t, z: u.expand(*z.shape[:-1], 3)).coefficients(
        T0, y, (None, None)
    )
    x = domain.to_state(y)
    moved = SDE(lambda t, z: drift(t, z) + matrix(t, z) @ u, matrix, noise_type="general")
    assert_close(f + sigma @ u, constrain(moved, domain).coefficients(T0, y, NO_ROWS).drift)
    assert control.shape == (2, 3)
    assert x.shape == y.shape


def test_inputs_of_the_source_reach_its_drift():
    sde = SDE(lambda t, x, row: row * x, lambda t, x: 0.2 * x)
    row = torch.tensor([[1.0], [2.0]], dtype=F64)
    y = torch.zeros(2, 1, dtype=F64)
    constrained = constrain(sde, Positive())
    assert_close(constrained.coefficients(T0, y, (row,)).drift, row - 0.02)
    assert_close(constrained.drift(T0, y, row), row - 0.02)
    rows = torch.ones(4, 1, dtype=F64)
    assert constrain(sde.with_inputs(rows), Positive()).bind_rows(None) == (rows,)
    assert constrained.with_inputs(rows).bind_rows(None) == (rows,)


def test_hoisted_first_layers_of_the_source_are_used():
    torch.manual_seed(0)
    sde = NeuralSDE(2, hidden=(6,), input_dim=3).double()
    constrained = constrain(SDE(sde.drift, elementwise), Positive())
    rows = torch.randn(5, 3, dtype=F64)
    y = torch.randn(5, 2, dtype=F64)
    evaluate, hoisted = constrained.evaluator((rows,))
    assert hoisted[0].shape != rows.shape
    assert_close(evaluate(T0, y, hoisted).drift, constrained.drift(T0, y, rows))


def test_parameters_have_one_name_each_and_laws_share_coefficients():
    source = SDE(torch.nn.Linear(2, 2), DiagonalDiffusion(2, initial=0.3))
    prior = constrain(source, Positive())
    assert len(prior.state_dict()) == len(source.state_dict())
    guide = prior.controlled(lambda t, y: y)
    assert prior.shares_diffusion(prior)
    assert prior.shares_drift(guide)
    assert isinstance(prior._copy(), ConstrainedSDE)
    assert list(prior.with_drift(drift).parameters()) == list(prior.diffusion.parameters())


def test_copies_and_pickles_evaluate_alike():
    sde, y = CoxIngersollRoss(torch.tensor([1.0, 2.0], dtype=F64), 0.7, 0.9).constrained(), DOMAINS["positive"][1]
    expected = sde.coefficients(T0, y, NO_ROWS)
    for other in (copy.deepcopy(sde), pickle.loads(pickle.dumps(sde))):
        assert torch.equal(other.coefficients(T0, y, NO_ROWS).drift, expected.drift)
        assert torch.equal(other.coefficients(T0, y, NO_ROWS).diffusion, expected.diffusion)


def test_the_domain_is_found_through_controls():
    prior = constrain(GeometricBrownianMotion(0.1, 0.2), Positive())
    twice = prior.controlled(lambda t, y: y).controlled(lambda t, y: -y)
    assert domain_of(twice) is prior.domain
    with pytest.raises(
        TypeError, match=r"`sde` must be a constrained SDE .* received GeometricBrownianMotion. Write c"
    ):
        domain_of(GeometricBrownianMotion(0.1, 0.2))


# --- bad input --------------------------------------------------------------------------------------
def test_what_cannot_be_constrained_is_refused():
    growth = GeometricBrownianMotion(0.1, 0.2)
    with pytest.raises(TypeError, match=r"`source` must be an SDE of the constrained state, received function"):
        constrain(drift, Positive())
    with pytest.raises(TypeError, match=r"`domain` must be a Domain such as Positive\(\), received ExpTransform"):
        constrain(growth, torch.distributions.ExpTransform())
    with pytest.raises(ValueError, match=r"`source` has a control already. Constrain the prior and control that"):
        constrain(growth.controlled(lambda t, z: z), Positive())
    with pytest.raises(ValueError, match=r'noise_type="diagonal", which cannot keep a state on the simplex'):
        constrain(growth, Simplex())


def test_coefficients_of_a_wrong_shape_are_refused_before_they_broadcast():
    y = torch.zeros(2, 2, dtype=F64)
    with pytest.raises(ValueError, match=r"`diffusion` returned shape \(2, 2, 1\) for states of shape \(2, 2\): squee"):
        constrain(SDE(drift, column), Positive()).coefficients(T0, y, NO_ROWS)
    with pytest.raises(ValueError, match=r"`drift` returned shape \(2, 2, 1\) for states of shape \(2, 2\): it must b"):
        constrain(SDE(column, elementwise), Positive()).coefficients(T0, y, NO_ROWS)


@pytest.mark.parametrize(
    ("sde", "domain", "message"),
    [
        (SDE(lambda t, x: x, lambda t, x: 0.5 + 0 * x), Positive(), r"`diffusion` is 0.5 at x = 0 in dimension 0, on"),
        (SDE(lambda t, x: x - 0.2, lambda t, x: x), Positive(), r"`drift` is -0.2 at x = 0 .* must not point out"),
        (SDE(lambda t, x: 0.3 * x, lambda t, x: x * (1 - x)), Interval(), r"`drift` is 0.3 at x = 1 in dim.*0 < x < 1"),
        (SDE(lambda t, x: -x, lambda t, x: x * (1 - x)), Interval(0.5, 1.0), r"`diffusion` is 0.25 at x = 0.5"),
        (
            SDE(lambda t, x: 0 * x, other_entry, noise_type="general"),
            Positive(),
            r"`diffusion` is 1 at x = 0 in dimension 0.*ReflectedEuler",
        ),
        (
            SDE(lambda t, x: 0 * x, lambda t, x: (x - x.mean(-1, keepdim=True) + 1).unsqueeze(-1), noise_type="scalar"),
            Simplex(),
            r"`diffusion` adds up to 2 over the state at the centre .* every column of the diffusion must add up to 0",
        ),
        (
            SDE(lambda t, x: 0.1 + 0 * x, lambda t, x: 0 * x.unsqueeze(-1), noise_type="scalar"),
            Simplex(),
            r"`drift` adds up to 0.2 over the state at the centre of the simplex: the drift must add up to 0",
        ),
        (
            SDE(lambda t, x: 0 * x, lambda t, x: torch.tensor([[1.0], [-1.0]], dtype=F64), noise_type="scalar"),
            Simplex(),
            r"`diffusion` is 1 at x = 0 in dimension 0",
        ),
    ],
)
def test_coefficients_that_leave_the_set_are_found_at_the_boundary(sde, domain, message):
    with pytest.raises(ValueError, match=message):
        constrain(sde, domain).check_boundary(T0, torch.zeros(2, dtype=F64))


def test_processes_that_stay_inside_pass_the_boundary_check():
    share = torch.tensor([0.3, 0.2, 0.5], dtype=F64)
    for sde in (
        constrain(GeometricBrownianMotion(0.1, 0.2), Positive()),
        CoxIngersollRoss(1.0, torch.tensor([[0.5], [1.0], [2.0]], dtype=F64), 0.3).constrained(),
        constrain(SDE(lambda t, x: (LOW + HIGH) / 2 - x, two_roots), Interval(LOW, HIGH)),
        constrain(SDE(lambda t, x: -x * x.log(), lambda t, x: x), Positive()),  # NaN at 0, which is not examined
    ):
        sde.check_boundary(torch.zeros(3, 1, dtype=F64), torch.zeros(3, 2, dtype=F64))
    WrightFisherSimplex(share, 0.4).constrained().check_boundary(T0, torch.zeros(3, dtype=F64))
