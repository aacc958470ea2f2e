"""Folded Gaussian kernels: density, boundaries, and reflected paths as sample sites."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI
from pyro.optim import Adam
from torch.testing import assert_close

from pyro_sde.distributions import SDEPath
from pyro_sde.distributions.kernels import EulerKernels
from pyro_sde.distributions.kl import path_kl, path_terms
from pyro_sde.distributions.reflected_kernels import ReflectedKernels
from pyro_sde.infer import PathELBO
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.sde import SDE
from pyro_sde.sde.base import Coefficients
from pyro_sde.sde.bounded_library import CoxIngersollRoss, WrightFisher
from pyro_sde.sde.noise import noise_structure
from pyro_sde.solvers.reflected import ReflectedEuler
from pyro_sde.testing import check_distribution
from pyro_sde.testing.statistics import assert_mean

F32, F64 = torch.float32, torch.float64


def kernels_of(solver, mean_step, spread, path):
    """One step of size 1 with given mean increment and standard deviation, ``path`` (2, n, D)."""
    coefficients = Coefficients(torch.as_tensor(mean_step), torch.as_tensor(spread), None)
    times = torch.tensor([0.0, 1.0], dtype=path.dtype).reshape(2, 1, 1)
    steps = torch.ones(1, 1, 1, dtype=path.dtype)
    return ReflectedKernels(solver, EulerKernels(noise_structure("diagonal"), coefficients, path, times, steps))


def normal(mean, spread):
    return dist.Normal(torch.tensor(mean, dtype=F64), torch.tensor(spread, dtype=F64))


def next_states(start, low, high, n, dtype=F64):
    x = torch.linspace(low, high, n, dtype=dtype)
    return x, torch.stack([torch.full_like(x, start), x]).unsqueeze(-1)


# --- density -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("spread", [0.05, 0.4, 1.0, 4.0])
@pytest.mark.parametrize("mean", [-3.7, -0.2, 0.45, 0.9, 2.3])
def test_density_between_two_ends_is_the_cosine_series(mean, spread):
    """The same density by its Fourier series, which converges where the images do not."""
    low, high = -0.3, 1.0
    length = high - low
    x, path = next_states(0.5, low, high, 57)
    kernels = kernels_of(
        ReflectedEuler(low, high), torch.tensor(mean - 0.5, dtype=F64), torch.tensor(spread, dtype=F64), path
    )
    n = torch.arange(1, 400, dtype=F64).unsqueeze(-1)
    waves = torch.cos(n * math.pi * (x - low) / length) * torch.cos(
        n * math.pi * torch.tensor(mean - low, dtype=F64) / length
    )
    series = (1 + 2 * (waves * torch.exp(-0.5 * (n * math.pi * spread / length) ** 2)).sum(0)) / length
    density = kernels.log_prob()[0].exp()
    assert float((density - series).abs().max()) < 1e-12 / spread


@pytest.mark.parametrize(("lower", "upper"), [(0.0, None), (None, 1.0), (0.0, 1.0)])
@pytest.mark.parametrize(("mean", "spread"), [(0.4, 0.3), (-0.6, 0.5), (1.9, 1.5), (0.99, 0.01)])
def test_density_is_normalised(lower, upper, mean, spread):
    ends = (0.0 if lower is not None else -20.0), (1.0 if upper is not None else 20.0)
    x, path = next_states(0.5, *ends, 40_001)
    kernels = kernels_of(
        ReflectedEuler(lower, upper), torch.tensor(mean - 0.5, dtype=F64), torch.tensor(spread, dtype=F64), path
    )
    total = torch.trapezoid(kernels.log_prob()[0].exp(), x)
    assert_close(total, torch.ones((), dtype=F64), rtol=0, atol=1e-5)


def test_far_from_the_boundary_the_density_is_that_of_euler():
    x, path = next_states(5.0, 4.0, 6.0, 11)
    kernels = kernels_of(ReflectedEuler(-40.0, 50.0), torch.tensor(0.1, dtype=F64), torch.tensor(0.3, dtype=F64), path)
    assert_close(kernels.log_prob(), kernels.euler.log_prob())
    assert_close(kernels.log_prob()[0], normal(5.1, 0.3).log_prob(x))


def test_ends_may_differ_by_dimension():
    torch.manual_seed(0)
    lower = torch.tensor([0.0, -math.inf, 0.0, -math.inf], dtype=F64)
    upper = torch.tensor([1.0, 1.0, math.inf, math.inf], dtype=F64)
    path = torch.rand(2, 6, 4, dtype=F64)
    mean, spread = torch.tensor([0.3, 0.5, -1.2, 0.1], dtype=F64), torch.tensor([0.7, 0.5, 0.4, 0.6], dtype=F64)
    total = kernels_of(ReflectedEuler(lower, upper), mean, spread, path).log_prob()
    solvers = [ReflectedEuler(0.0, 1.0), ReflectedEuler(None, 1.0), ReflectedEuler(0.0)]
    parts = [kernels_of(s, mean[i], spread[i], path[..., i : i + 1]).log_prob() for i, s in enumerate(solvers)]
    free = dist.Normal(path[0, :, 3] + mean[3], spread[3]).log_prob(path[1, :, 3])
    assert_close(total[0], sum(part[0] for part in parts) + free)
    path.requires_grad_()
    (slope,) = torch.autograd.grad(kernels_of(ReflectedEuler(lower, upper), mean, spread, path).log_prob().sum(), path)
    assert bool(slope.isfinite().all())


def test_gradients_are_those_of_finite_differences():
    path = torch.tensor([[[0.2, 0.7]], [[0.4, 0.1]]], dtype=F64)

    def density(mean, spread, after):
        return kernels_of(ReflectedEuler(0.0, 1.0), mean, spread, torch.stack([path[0], after])).log_prob()

    arguments = torch.tensor([-0.7, 0.4], dtype=F64), torch.tensor([0.5, 0.3], dtype=F64), path[1].clone()
    assert torch.autograd.gradcheck(density, [a.requires_grad_() for a in arguments])


def test_entries_without_noise_must_follow_their_drift():
    spread = torch.tensor([0.5, 0.0], dtype=F64)
    path = torch.tensor([[[0.2, 0.3]], [[0.4, 0.1]]], dtype=F64)  # 0.3 - 0.4 = -0.1, reflected 0.1
    kernels = kernels_of(ReflectedEuler(0.0), torch.tensor([0.0, -0.4], dtype=F64), spread, path)
    alone = kernels_of(ReflectedEuler(0.0), torch.tensor([0.0], dtype=F64), spread[:1], path[..., :1])
    assert_close(kernels.log_prob(), alone.log_prob())
    wrong = kernels_of(ReflectedEuler(0.0), torch.tensor([0.0, -0.3], dtype=F64), spread, path)
    with pytest.raises(ValueError, match=r"off the support of its law: .* at dimension 1, time 0 it is off by 0.1"):
        wrong.log_prob()


# --- paths ---------------------------------------------------------------------------------------------------
def pull(t, z):
    return 1.5 * (0.2 - z)


def spread_of(t, z):
    return 0.3 + 0.5 * z


def start(*shape, dtype=F64):
    return dist.Beta(torch.full(shape, 2.0, dtype=dtype), torch.full(shape, 3.0, dtype=dtype)).to_event(1)


def reflected(dtype, solver=None, sde=None):
    times = torch.tensor([[0.0, 0.4, 1.0, 1.3], [0.0, 0.2, 0.9, 0.9], [0.1, 0.7, 0.7, 0.7]], dtype=dtype)
    sde = SDE(pull, spread_of) if sde is None else sde
    return SDEPath(
        sde, start(3, 2, dtype=dtype), TimeGrid(times, max_step=0.4), solver=solver or ReflectedEuler(0.0, 1.0)
    )


@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
def test_reflected_paths_keep_the_contract_of_pyro(dtype):
    check_distribution(reflected(dtype), skip=("loop",))


def test_density_of_a_path_is_the_product_of_its_folded_steps():
    law = reflected(F64, ReflectedEuler(lower=0.0))
    path = law.sample((2,))
    total = law.initial.log_prob(path[..., 0, :])
    for k in range(law.grid.num_steps):
        z, x, h = path[..., k, :], path[..., k + 1, :], law.grid.steps[..., k : k + 1]
        moving = h > 0
        safe = torch.where(moving, h, torch.ones_like(h))
        step = dist.Normal(z + pull(None, z) * safe, spread_of(None, z) * safe.sqrt())
        term = (step.log_prob(x).exp() + step.log_prob(-x).exp()).log()
        total = total + torch.where(moving, term, torch.zeros_like(term)).sum(-1)
    assert_close(law.log_prob(path), total)


def test_log_ratios_of_reflected_paths_have_mean_one_under_the_model():
    torch.manual_seed(1)
    sde = SDE(pull, spread_of)
    p, q = reflected(F64, sde=sde), reflected(F64, sde=sde.controlled(lambda t, z: 0.4 * torch.ones_like(z)))
    path = p.sample((20_000,))
    assert_mean((q.log_prob(path) - p.log_prob(path)).exp(), 1.0, detects=0.1)
    terms = path_terms(q, p, path[:5], closed=False)
    assert_close(terms.log_q - terms.log_p, q.log_prob(path[:5]) - p.log_prob(path[:5]))


@pytest.mark.parametrize("kl", ["stl", "full"])
def test_a_reflected_site_can_be_trained(kl):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    prior, data = WrightFisher(1.0, 1.0, 0.0, 0.5), torch.full((1, 4), 0.8).T
    grid = TimeGrid(torch.linspace(0.0, 1.0, 4), max_step=0.1)

    def law(sde):
        return SDEPath(sde, start(1, dtype=F32), grid, solver=ReflectedEuler(0.0, 1.0))

    def model():
        x = pyro.sample("x", law(prior))
        pyro.sample("y", dist.Normal(grid.observed(x), 0.05).to_event(2), obs=data)

    def guide():
        push = pyro.param("push", torch.zeros(1))
        pyro.sample("x", law(prior.controlled(lambda t, x: push.expand_as(x))))

    svi = SVI(model, guide, Adam({"lr": 0.1}), loss=PathELBO(kl=kl))
    losses = [svi.step() for _ in range(80)]
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
    assert float(pyro.param("push").detach()) > 0.5


# --- divergence and bad input ----------------------------------------------------------------------------------
def test_the_closed_form_is_refused_with_its_remedy():
    law = reflected(F64)
    path = law.sample()
    with pytest.raises(NotImplementedError, match=r'no divergence in closed form. Use kl="stl" or kl="full"'):
        path_kl(law, law, path)
    kernels = law.kernels(path)
    with pytest.raises(NotImplementedError, match=r"no divergence in closed form"):
        kernels.kl_from(kernels.euler)

    def program():
        pyro.sample("x", reflected(F64).to_event(1))

    with pytest.raises(ValueError, match=r'site \'x\': kl="closed" needs kernels with a closed-form divergence'):
        PathELBO(kl="closed").loss(program, program)


def test_infinite_divergences_are_found():
    law = reflected(F64)
    path = law.sample()
    with pytest.raises(
        ValueError, match=r"different boundaries, guide ReflectedEuler\(lower=0.0, upper=1.0\), model Re"
    ):
        path_terms(law, reflected(F64, ReflectedEuler(0.0, 2.0)), path, closed=False)
    with pytest.raises(ValueError, match=r"different boundaries"):
        path_terms(law, reflected(F64, ReflectedEuler(0.0)), path, closed=False)
    with pytest.raises(ValueError, match=r"guide and model have different diffusions"):
        path_terms(law, reflected(F64, sde=SDE(pull, pull)), path, closed=False)
    kernels = law.kernels(path)
    for check in (kernels.check_absolutely_continuous, kernels.check_absolutely_continuous_from):
        with pytest.raises(ValueError, match=r"one of guide and model reflects at a boundary, the other has EulerKern"):
            check(kernels.euler)


def test_a_state_outside_the_boundaries_is_refused_with_its_place():
    law = reflected(F64)
    path = law.sample()
    path[0, 2, 1] = 1.2
    time = float(law.grid.times[0, 2])
    with pytest.raises(
        ValueError, match=rf"the state 1.2 at time {time:g}, dimension 1, is outside .* lower=0, upper=1"
    ):
        law.kernels(path).log_prob()


def test_noise_that_fills_the_interval_many_times_is_refused():
    _, path = next_states(0.5, 0.0, 1.0, 3)
    with pytest.raises(ValueError, match=r"the noise of one step is 20 times the distance of the boundaries"):
        kernels_of(
            ReflectedEuler(0.0, 1.0), torch.tensor(0.0, dtype=F64), torch.tensor(20.0, dtype=F64), path
        ).log_prob()


def test_a_square_root_process_has_a_density_where_it_touches_zero():
    torch.manual_seed(2)
    grid = TimeGrid(torch.linspace(0.0, 1.0, 51, dtype=F64))
    rate = torch.tensor(1.0, dtype=F64, requires_grad=True)
    law = SDEPath(CoxIngersollRoss(rate, 0.2, 1.0), start(1), grid, solver=ReflectedEuler(lower=0.0))
    log_prob = law.log_prob(law.sample((50,)))
    (slope,) = torch.autograd.grad(log_prob.sum(), rate)
    assert bool(log_prob.isfinite().all())
    assert bool(slope.isfinite())


def test_the_support_of_a_reflected_path_is_the_set_and_nuts_stays_in_it():
    pyro.set_rng_seed(3)
    grid = TimeGrid(torch.linspace(0.0, 1.0, 3, dtype=F64))

    def model():
        x = pyro.sample("x", SDEPath(SDE(pull, spread_of), start(1), grid, solver=ReflectedEuler(0.0, 1.0)))
        pyro.sample("y", dist.Normal(x, 0.3).to_event(2), obs=torch.full((3, 1), 0.9, dtype=F64))

    law = SDEPath(SDE(pull, spread_of), start(1), grid, solver=ReflectedEuler(0.0, 1.0))
    assert law.support.event_dim == 2
    assert not bool(law.support.check(torch.full((3, 1), 1.1, dtype=F64)))
    mcmc = MCMC(NUTS(model), num_samples=20, warmup_steps=20, disable_progbar=True)
    mcmc.run()
    x = mcmc.get_samples()["x"]
    assert bool(((x >= 0) & (x <= 1)).all())
