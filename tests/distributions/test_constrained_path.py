"""Constrained paths: change of variables, divergence, support, and the contract of Pyro."""

from __future__ import annotations

import copy
import gc
import math
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive
from pyro.optim import Adam
from torch import nn
from torch.distributions import biject_to, kl_divergence
from torch.testing import assert_close

from pyro_sde.distributions import SDEPath, path_kl
from pyro_sde.distributions.constrained_path import ConstrainedPath
from pyro_sde.distributions.kl import path_terms
from pyro_sde.infer import PathELBO
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.sde import SDE, BrownianMotion, GeometricBrownianMotion
from pyro_sde.sde.bounded_library import CoxIngersollRoss, LogisticGrowth, WrightFisher, WrightFisherSimplex
from pyro_sde.sde.constrained import Interval, Positive, Simplex, SquareRoot, constrain
from pyro_sde.solvers.reflected import ReflectedEuler
from pyro_sde.solvers.stochastic_runge_kutta import SRK
from pyro_sde.testing import check_distribution, check_kl
from pyro_sde.testing.fit import stein_test
from pyro_sde.testing.statistics import assert_mean

F32, F64 = torch.float32, torch.float64


def even_grid(dtype=F64, steps=5):
    return TimeGrid(torch.linspace(0.0, 1.0, steps + 1, dtype=dtype))


def ragged_grid(dtype=F64):
    rows = [[0.0, 0.3, 0.7, 1.0], [0.1, 0.25, 0.9, 0.9], [-0.2, 0.4, 0.4, 0.4]]
    return TimeGrid(torch.tensor(rows, dtype=dtype), max_step=0.2)


def lognormal(*shape, dtype=F64):
    return dist.LogNormal(torch.zeros(shape, dtype=dtype), torch.full(shape, 0.3, dtype=dtype)).to_event(1)


def beta(*shape, dtype=F64):
    return dist.Beta(torch.full(shape, 3.0, dtype=dtype), torch.full(shape, 4.0, dtype=dtype)).to_event(1)


def dirichlet(*shape, dtype=F64):
    return dist.Dirichlet(torch.linspace(3.0, 6.0, shape[-1], dtype=dtype).expand(shape))


def mixed(t, x):
    """Noise of two Brownian motions that mixes three positive states."""
    return torch.stack([0.3 * x, 0.2 * x * (1 + x.roll(1, -1)).log()], -1)


def half_noisy(t, x):
    return torch.cat([0.0 * x[..., :1], 0.4 * x[..., 1:]], -1)


def relax(t, x):
    return 0.5 * (1 - x)


def driven(t, x, row):
    return row[..., :1] * x


def growth(dtype):
    return ConstrainedPath.of(
        LogisticGrowth(1.0, 2.0, 0.4).constrained(), lognormal(3, 2, dtype=dtype), ragged_grid(dtype)
    )


def control(t, y):
    return torch.tanh(y)


def alleles(dtype):
    sde = WrightFisherSimplex(torch.tensor([0.2, 0.3, 0.4], dtype=dtype), 0.2).constrained()
    return ConstrainedPath.of(sde, dirichlet(2, 3, dtype=dtype), even_grid(dtype))


LAWS = {
    "positive-ragged": growth,
    "interval-controlled": lambda dtype: ConstrainedPath.of(
        WrightFisher(0.4, 0.6, 0.5, 0.3).constrained().controlled(control), beta(3, 2, dtype=dtype), even_grid(dtype)
    ),
    "simplex": alleles,
    "matrix": lambda dtype: ConstrainedPath.of(
        constrain(SDE(relax, mixed, noise_type="general"), Positive()), lognormal(2, 3, dtype=dtype), even_grid(dtype)
    ),
    "noise-free-entry": lambda dtype: ConstrainedPath.of(
        constrain(SDE(relax, half_noisy), Positive()), lognormal(3, 2, dtype=dtype), even_grid(dtype)
    ),
    "point": lambda dtype: ConstrainedPath.of(
        constrain(GeometricBrownianMotion(0.1, 0.4), Positive()),
        dist.Delta(torch.tensor([[0.3, 1.0], [2.0, 0.7], [0.1, 3.0]], dtype=dtype), event_dim=1),
        even_grid(dtype),
    ),
    "stratonovich": lambda dtype: ConstrainedPath.of(
        constrain(SDE(relax, half_noisy, sde_type="stratonovich"), Positive()), lognormal(3, 2, dtype=dtype),
        even_grid(dtype),
    ),
    "wrapped": lambda dtype: ConstrainedPath(
        SDEPath(BrownianMotion(0.5), dist.Normal(torch.zeros(3, 2, dtype=dtype), 1.0).to_event(1), even_grid(dtype)),
        Interval(-1.0, 2.0),
    ),
    "one-point": lambda dtype: ConstrainedPath.of(
        constrain(GeometricBrownianMotion(0.1, 0.4), Positive()), lognormal(3, 2, dtype=dtype), even_grid(dtype, 0)
    ),
}  # fmt: skip


@pytest.fixture(params=sorted(LAWS))
def make_law(request):
    return LAWS[request.param]


# --- the law ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
def test_law_keeps_the_contract_of_pyro(make_law, dtype):
    torch.manual_seed(0)
    check_distribution(make_law(dtype))


def test_density_is_that_of_a_transformed_chain():
    """Step by step with the transforms of torch."""
    torch.manual_seed(1)
    for name, transform in (("positive-ragged", torch.distributions.ExpTransform()), ("simplex", None)):
        law = LAWS[name](F64)
        path = law.sample((2,))
        base = law.base
        y = law.domain.to_coordinate(path)
        total = law.initial.log_prob(path[..., 0, :])
        for k in range(law.grid.num_steps):
            h = law.grid.steps[..., k : k + 1]
            f, g, _ = base.sde.coefficients(law.grid.times[..., k : k + 1], y[..., k, :], (None,))
            root = torch.diag_embed(g) if transform else g
            safe = torch.where(h > 0, h, torch.ones_like(h))
            step = dist.MultivariateNormal(y[..., k, :] + f * safe, (root @ root.mT) * safe.unsqueeze(-1))
            if transform:
                term = dist.TransformedDistribution(step, [transform]).log_prob(path[..., k + 1, :])
            else:
                term = step.log_prob(y[..., k + 1, :]) - path[..., k + 1, :].log().sum(-1)
            total = total + torch.where(h.squeeze(-1) > 0, term, torch.zeros_like(term))
        assert_close(law.log_prob(path), total)


def test_geometric_brownian_motion_is_exact_for_every_step():
    grid, z0 = even_grid(steps=3), torch.tensor([1.5], dtype=F64)
    law = ConstrainedPath.of(
        constrain(GeometricBrownianMotion(0.3, 0.4), Positive()), dist.Delta(z0, event_dim=1), grid
    )
    path = law.sample((5,))
    before, after = path[:, :-1, 0], path[:, 1:, 0]
    exact = dist.LogNormal(before.log() + (0.3 - 0.08) / 3, 0.4 / math.sqrt(3)).log_prob(after).sum(-1)
    assert_close(law.log_prob(path), exact)


def test_density_is_normalised():
    """One step of a bounded process, by quadrature over the next state."""
    sde, grid = WrightFisher(0.4, 0.6, 0.5, 0.6).constrained(), even_grid(steps=1)
    law = ConstrainedPath.of(sde, dist.Delta(torch.tensor([0.3], dtype=F64), event_dim=1), grid)
    x = torch.linspace(0.0, 1.0, 4001, dtype=F64)[1:-1]
    path = torch.stack([torch.full_like(x, 0.3), x], -1).unsqueeze(-1)
    assert_close(torch.trapezoid(law.log_prob(path).exp(), x), torch.ones((), dtype=F64), rtol=0, atol=1e-4)


def test_samples_fit_the_density():
    torch.manual_seed(2)
    law = ConstrainedPath.of(
        WrightFisherSimplex(torch.tensor([0.6, 0.8], dtype=F64), 0.3).constrained(),
        dist.Dirichlet(torch.tensor([8.0, 9.0], dtype=F64)),
        even_grid(steps=2),
    )
    stein_test(law.base, 4000).require()
    path = law.sample((4000,))
    assert_close(path.sum(-1), torch.ones(4000, 3, dtype=F64))
    # the density of (x_0, x_1, x_2), first entries, by importance weights against a uniform law on the cube
    cube = torch.rand(60_000, 3, 1, dtype=F64).clamp(1e-9, 1 - 1e-9)
    density = law.log_prob(torch.cat([cube, 1 - cube], -1)).exp()
    assert_mean(density, 1.0, detects=0.2)
    assert_mean((density.unsqueeze(-1) * cube[..., 0]), path[..., 0].mean(0), detects=0.2)


def test_entries_without_noise_have_no_volume():
    law = LAWS["noise-free-entry"](F64)
    path = law.sample()
    alone = ConstrainedPath.of(
        constrain(SDE(relax, lambda t, x: 0.4 * x), Positive()), lognormal(3, 1), even_grid()
    ).kernels(path[..., 1:])
    assert_close(law.kernels(path).log_prob(), alone.log_prob())


def test_first_state_is_kept_to_the_bit():
    start = torch.tensor([[0.1, 0.7]], dtype=F64)
    law = ConstrainedPath.of(WrightFisher(0.4, 0.6).constrained(), dist.Delta(start, event_dim=1), even_grid())
    assert torch.equal(law.sample()[:, 0], start)
    assert bool(law.log_prob(law.sample()).isfinite().all())


def test_the_law_of_a_wrapped_start_is_the_image_of_its_start():
    law = LAWS["wrapped"](F64)
    x = law.sample()[..., 0, :]
    y = (x + 1).log() - (2 - x).log()
    expected = dist.Normal(0.0, 1.0).log_prob(y).sum(-1) - law.domain.log_slopes(y).sum(-1)
    assert_close(law.initial.log_prob(x), expected)


# --- divergence -------------------------------------------------------------------------------------------
def pair(sde, u, first, second, grid=None, **options):
    grid = even_grid() if grid is None else grid
    return ConstrainedPath.of(sde.controlled(u), first, grid), ConstrainedPath.of(sde, second, grid, **options)


PAIRS = {
    "positive": lambda: pair(LogisticGrowth(1.0, 2.0, 0.4).constrained(), control, lognormal(3, 2), lognormal(2)),
    "ragged": lambda: pair(
        LogisticGrowth(1.0, 2.0, 0.4).constrained(), control, lognormal(3, 2), lognormal(2), ragged_grid()
    ),
    "simplex": lambda: pair(
        WrightFisherSimplex(torch.tensor([0.2, 0.3, 0.4], dtype=F64), 0.2).constrained(),
        lambda t, y: 0.5 * torch.tanh(y.sum(-1, keepdim=True)).expand(*y.shape[:-1], 3),
        dirichlet(3, 3),
        dirichlet(3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_estimators_of_the_divergence_agree(name):
    torch.manual_seed(3)
    q, p = PAIRS[name]()
    check_kl(q, p, num_samples=3000, ratio_under="q")


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_divergence_is_that_of_the_coordinates(name):
    q, p = PAIRS[name]()
    path = q.sample((3,))
    y = q.domain.to_coordinate(path)
    base = path_kl(q.base, p.base, y) - kl_initial(q.base, p.base, y)
    assert_close(path_kl(q, p, path) - kl_initial(q, p, path), base)


def kl_initial(q, p, path):
    try:
        return kl_divergence(q.initial, p.initial)
    except NotImplementedError:
        return q.initial.log_prob(path[..., 0, :]) - p.initial.log_prob(path[..., 0, :])


def test_divergence_of_first_states_is_the_closed_form_in_either_unit():
    q, p = PAIRS["positive"]()
    first = dist.LogNormal(torch.full((2,), 0.5, dtype=F64), 0.6).to_event(1)
    other = ConstrainedPath.of(p.sde, first, even_grid())
    expected = kl_divergence(dist.Normal(0.5, 0.6), dist.Normal(0.0, 0.3)).double() * 2
    assert_close(kl_divergence(other.initial, p.initial), expected)
    assert_close(kl_divergence(other.base.initial, p.base.initial), expected)
    assert q.base.initial.event_shape == (2,)


def test_terms_of_a_bound_evaluate_the_shared_coefficients_once():
    calls = []

    def counted(t, x):
        calls.append(tuple(x.shape))
        return 0.3 * x

    sde = constrain(SDE(counted, lambda t, x: 0.4 * x), Positive())
    q, p = pair(sde, control, lognormal(2), lognormal(2))
    path = q.rsample()
    calls.clear()
    terms = path_terms(q, p, path, closed=False)
    assert calls == []  # sampled a moment ago, and the model shares all but the control
    assert_close(terms.log_q, q.log_prob(path))
    assert_close(terms.log_p, p.log_prob(path))
    assert_close(path_terms(q, p, path.detach(), closed=True).kl, path_terms(q, p, path, closed=True).kl)


def test_coordinates_of_a_sample_are_remembered_while_it_lives():
    q, _ = PAIRS["positive"]()
    path = q.rsample()
    kept = q.sampled_kernels(path).coordinates
    assert torch.equal(kept, q.base.last_sample() if q.base.last_sample() is not None else kept)
    assert q.sampled_kernels(path.clone()).coordinates is not kept
    path_ref = weakref.ref(path)
    assert copy.deepcopy(q)._coordinates is None
    del path, kept
    gc.collect()
    assert path_ref() is None
    assert q.last_sample() is None


# --- forecasts of a million steps -------------------------------------------------------------------------
def logistic_moments(rate, capacity, scale, start, time, half=240):
    """Mean and variance by the backward Kolmogorov equation of log x, central differences of fourth order."""
    h = 5.5 / half
    y = math.log(start) + h * torch.arange(-half, half + 1, dtype=F64)
    drift, spread = rate - scale**2 / 2 - rate / capacity * y.exp(), scale**2 / 2
    first, second = (
        sum(c * torch.diag(torch.ones(len(y) - abs(k), dtype=F64), k) for k, c in zip(range(-2, 3), cs, strict=True))
        for cs in ((1 / 12, -8 / 12, 0.0, 8 / 12, -1 / 12), (-1 / 12, 16 / 12, -30 / 12, 16 / 12, -1 / 12))
    )
    generator = drift.unsqueeze(-1) * first / h + spread * second / h**2
    generator[:2] = generator[-2:] = 0.0
    row = torch.linalg.matrix_exp(generator * time)[half]
    mean, square = row @ y.exp(), row @ (2 * y).exp()
    return mean, square - mean.square()


@pytest.mark.parametrize("name", ["geometric", "logistic"])
def test_forecasts_have_their_exact_moments_and_never_leave_the_set(name):
    pyro.set_rng_seed(4)
    if name == "geometric":
        sde = constrain(GeometricBrownianMotion(0.3, 0.4), Positive())
        mean = torch.tensor(0.4 * math.exp(0.3), dtype=F64)
        variance = mean.square() * math.expm1(0.16)
    else:
        sde = LogisticGrowth(1.5, 2.0, 0.6).constrained()
        mean, variance = logistic_moments(1.5, 2.0, 0.6, 0.4, 1.0)
    start = dist.Delta(torch.tensor([0.4], dtype=F64), event_dim=1)
    path = ConstrainedPath.of(sde, start, even_grid(steps=50), solver=SRK()).sample((20_000,))
    assert bool((path > 0).all())
    assert_mean(path[:, -1, 0], mean, detects=0.03)
    assert_mean((path[:, -1, 0] - mean).square(), variance, detects=0.02)


# --- in a program of Pyro ---------------------------------------------------------------------------------
@pytest.mark.parametrize("kl", ["stl", "closed", "full"])
def test_every_estimator_trains_a_constrained_site(kl):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    grid = even_grid(dtype=F32)
    prior, net = LogisticGrowth(1.0, 2.0, 0.4).constrained(), nn.Linear(2, 2)
    nn.init.zeros_(net.weight)
    data = torch.full((3, 6, 2), 1.5)

    def model():
        with pyro.plate("series", 3):
            x = pyro.sample("x", ConstrainedPath.of(prior, lognormal(2, dtype=F32), grid))
            pyro.sample("y", dist.LogNormal(x.log(), 0.2).to_event(2), obs=data)

    def guide():
        pyro.module("net", net)
        with pyro.plate("series", 3):
            pyro.sample("x", ConstrainedPath.of(prior.controlled(lambda t, y: net(y)), lognormal(2, dtype=F32), grid))

    svi = SVI(model, guide, Adam({"lr": 0.02}), loss=PathELBO(kl=kl))
    losses = [svi.step() for _ in range(60)]
    assert sum(losses[-15:]) < sum(losses[:15])


def test_conditioning_prediction_and_nuts_work_in_the_units_of_the_state():
    pyro.set_rng_seed(1)
    grid = even_grid(steps=2)
    prior = constrain(GeometricBrownianMotion(0.1, 0.4), Positive())

    def model():
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros((), dtype=F64), 0.1))
        x = pyro.sample("x", ConstrainedPath.of(prior, lognormal(1), grid))
        pyro.sample("y", dist.Normal(x, 0.5 * scale).to_event(2), obs=torch.ones(3, 1, dtype=F64))

    x = Predictive(model, num_samples=4)()["x"]
    assert bool((x > 0).all())
    trace = pyro.poutine.trace(pyro.condition(model, {"x": x[0]})).get_trace()
    assert bool(torch.isfinite(trace.log_prob_sum()))
    mcmc = MCMC(NUTS(model), num_samples=20, warmup_steps=20, disable_progbar=True)
    mcmc.run()
    assert bool((mcmc.get_samples()["x"] > 0).all())


def test_support_is_the_constraint():
    for name in ("positive-ragged", "interval-controlled", "wrapped"):
        law = LAWS[name](F64)
        free = biject_to(law.support)
        path = law.sample()
        assert_close(free(free.inv(path)), path)
        assert law.support.event_dim == 2
        assert not bool(law.support.check(-5 * torch.ones_like(path)).any())
    assert bool(LAWS["simplex"](F64).support.check(LAWS["simplex"](F64).sample()).all())


def test_noise_and_solution_are_inverse():
    law = LAWS["positive-ragged"](F64)
    path = law.sample()
    noise = law.noise_of(path)
    assert noise.shape == law.noise_shape()
    assert_close(law.solve(path[..., 0, :], noise), path)


def test_inputs_and_bound_rows_serve_a_constrained_path():
    grid = even_grid()
    rows = torch.linspace(-1, 1, 15, dtype=F64).reshape(3, 5, 1)
    direct = ConstrainedPath.of(constrain(SDE(driven, half_noisy), Positive()), lognormal(2), grid, inputs=rows)
    assert direct.batch_shape == (3,)
    rates = torch.tensor([[0.5, 1.0], [1.5, 2.0], [0.7, 0.3]], dtype=F64)  # a batch of processes
    assert ConstrainedPath.of(CoxIngersollRoss(rates, 1.0, 0.2).constrained(), lognormal(2), grid).batch_shape == (3,)
    bound = ConstrainedPath.of(constrain(SDE(driven, half_noisy).with_inputs(rows), Positive()), lognormal(2), grid)
    path = direct.sample()
    assert_close(bound.log_prob(path), direct.log_prob(path))


def test_reflection_in_the_coordinate_keeps_it_in_its_range():
    law = ConstrainedPath.of(
        CoxIngersollRoss(2.0, 0.5, 0.6).lamperti(), lognormal(2), even_grid(steps=20), solver=ReflectedEuler(lower=0.0)
    )
    assert bool((law.sample((50,)) > 0).all())


# --- bad input --------------------------------------------------------------------------------------------
def test_a_state_outside_its_constraint_is_refused_with_value_time_and_constraint():
    law = LAWS["positive-ragged"](F64)
    path = law.sample()
    path[1, 2, 1] = -0.25
    time = float(law.grid.times[1, 2])
    with pytest.raises(
        ValueError, match=rf"the state -0.25 at time {time:g}, dimension 1, series \[1\] is outside .* x > 0"
    ):
        law.log_prob(path)
    alleles_law = LAWS["simplex"](F64)
    with pytest.raises(ValueError, match=r"the state .* at time 0, dimension 0, series \[0\] .* x on the simplex"):
        alleles_law.log_prob(2 * alleles_law.sample())
    outside = dist.Normal(torch.full((2,), -3.0, dtype=F64), 0.1).to_event(1)
    start = ConstrainedPath.of(LogisticGrowth(1.0, 2.0, 0.4).constrained(), outside, even_grid()).named("x")
    with pytest.raises(
        ValueError, match=r"site 'x': the state -[23].* at time 0, dimension 0 is outside its constraint"
    ):
        start.sample()


def test_an_infinite_state_is_refused_with_its_place():
    law = ConstrainedPath.of(
        constrain(GeometricBrownianMotion(800.0, 0.1), Positive()), lognormal(2), even_grid(steps=1)
    )
    with pytest.raises(ValueError, match=r"the state became infinite at time 1, dimension 0: its coordinate has left"):
        law.sample()


def test_coefficients_that_leave_the_set_are_refused_at_construction():
    with pytest.raises(ValueError, match=r"`diffusion` is 0.7 at x = 0 in dimension 0.*x > 0: it must vanish there"):
        ConstrainedPath.of(constrain(BrownianMotion(0.7), Positive()), lognormal(2), even_grid())


def test_arguments_that_do_not_fit_are_refused():
    base = LAWS["wrapped"](F64).base
    with pytest.raises(TypeError, match=r"`base` must be the path law of the coordinate, .* received BrownianMotion"):
        ConstrainedPath(BrownianMotion(0.7), Positive())
    with pytest.raises(TypeError, match=r"`domain` must be a Domain such as Positive\(\), received _GreaterThan"):
        ConstrainedPath(base, torch.distributions.constraints.positive)
    with pytest.raises(ValueError, match=r"a law of 3 coordinates for states of dimension 4 \(x on the simplex\), rec"):
        ConstrainedPath(base, Simplex(), dirichlet(3, 4))
    with pytest.raises(
        ValueError, match=r"coordinate of SquareRoot\(\) is bounded .*solver=ReflectedEuler\(lower=0.0, upper=N"
    ):
        ConstrainedPath(base, SquareRoot())
    with pytest.raises(TypeError, match=r"`sde` must be a constrained SDE"):
        ConstrainedPath.of(GeometricBrownianMotion(0.1, 0.2), lognormal(2), even_grid())
    with pytest.raises(ValueError, match=r"`initial` must have event shape \(D,\)"):
        ConstrainedPath.of(
            constrain(GeometricBrownianMotion(0.1, 0.2), Positive()), dist.LogNormal(0.0, 1.0), even_grid()
        )


def test_laws_in_other_coordinates_cannot_be_compared():
    q, _ = PAIRS["positive"]()
    path = q.sample()
    other = ConstrainedPath(q.base, Interval(0.0, 50.0), lognormal(2))
    for law in (other, q.base):
        with pytest.raises(ValueError, match=r"path in different coordinates, .* Positive\(\) and"):
            path_kl(q, law, path)
        with pytest.raises(ValueError, match=r"path in different coordinates"):
            path_terms(q, law, path, closed=False)
    kernels = q.kernels(path)
    with pytest.raises(ValueError, match=r"Positive\(\) and EulerKernels"):
        kernels.kl_from(kernels.base)
    with pytest.raises(ValueError, match=r"Positive\(\) and EulerKernels"):
        kernels.check_absolutely_continuous_from(kernels.base)
    with pytest.raises(ValueError, match=r"guide and model use different grids"):
        q.check_same_grid(ConstrainedPath.of(q.sde, lognormal(2), even_grid(steps=6)))
