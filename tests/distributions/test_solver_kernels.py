"""Densities of the solvers that have one, and refusals of those that have none."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyro_sde import SDE, TimeGrid
from pyro_sde.distributions.gaussian_path import GaussianPath
from pyro_sde.distributions.kernels import EulerKernels
from pyro_sde.distributions.kl import path_kl, path_terms
from pyro_sde.distributions.sde_path import SDEPath
from pyro_sde.distributions.solver_kernels import ImplicitKernels, SamplingKernels
from pyro_sde.sde import LTI, DoubleWell, OrnsteinUhlenbeck, UnderdampedLangevin
from pyro_sde.solvers.drift_implicit import DriftImplicitEuler
from pyro_sde.solvers.exact_linear import ExactLinear
from pyro_sde.solvers.execution import Execution
from pyro_sde.solvers.heun import Heun
from pyro_sde.solvers.local_linearisation import LocalLinearisation
from pyro_sde.solvers.milstein import Milstein
from pyro_sde.solvers.stochastic_runge_kutta import SRK
from pyro_sde.testing.statistics import assert_mean

F32, F64 = torch.float32, torch.float64
TIMES = torch.tensor([[0.0, 0.4, 1.0], [0.0, 0.3, 0.3]], dtype=F64)  # the second series is padded
GRID = TimeGrid(TIMES)


def initial(dim=2, dtype=F64, batch=()):
    return dist.Normal(torch.zeros(*batch, dim, dtype=dtype), 1.0).to_event(1)


def drift(t, z):
    return t.cos() * z.flip(-1) - z**3


def diffusion(t, z):
    return 0.5 + 0.2 * (t + z).sin()


NOISES = {
    "diagonal": SDE(drift, diffusion),
    "additive": SDE(drift, lambda t, z: torch.tensor([[0.5, 0.2], [-0.3, 0.6]]).to(z), noise_type="additive"),
    "controlled": SDE(drift, diffusion).controlled(lambda t, z: z - t),
}
DENSE = {
    "local linearisation": LocalLinearisation(),
    "drift-implicit": DriftImplicitEuler(),
    "trapezoidal": DriftImplicitEuler(0.5),
}


# --- densities -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(DENSE))
@pytest.mark.parametrize("noise", sorted(NOISES))
def test_the_density_is_that_of_the_noise_over_the_jacobian_of_the_step(name, noise):
    # z = F(w) with F the solver's own step: log p(z) = log N(w; 0, I) - log |det dF/dw|, by autograd through the step
    law = SDEPath(NOISES[noise], initial(), GRID, solver=DENSE[name])
    normal = torch.randn(*law.noise_shape(), dtype=F64, generator=torch.Generator().manual_seed(0))
    first = torch.tensor([[0.3, -0.6], [0.8, 0.1]], dtype=F64)
    path = law.solve(first, normal)
    expected = law.initial.log_prob(first)
    for b, count in ((0, 2), (1, 1)):

        def states(w, b=b, count=count):
            full = torch.cat([w.reshape(count, 2), normal[b, count:]])
            return law.solve(first, torch.stack([full if i == b else normal[i] for i in range(2)]))[b, 1 : count + 1]

        jacobian = torch.autograd.functional.jacobian(states, normal[b, :count].flatten()).reshape(2 * count, -1)
        log_normal = dist.Normal(0.0, 1.0).log_prob(normal[b, :count]).sum()
        expected = expected + torch.eye(2, dtype=F64)[b] * (log_normal - torch.linalg.slogdet(jacobian)[1])
    assert_close(law.log_prob(path), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", sorted(DENSE))
def test_a_density_integrates_to_1(name):
    grid = TimeGrid(torch.tensor([0.0, 0.1], dtype=F64))
    law = SDEPath(DoubleWell(), initial(1), grid, solver=DENSE[name])
    ends = torch.linspace(-3, 3, 6001, dtype=F64)
    path = torch.stack([torch.full_like(ends, 0.4), ends], -1).unsqueeze(-1)
    density = (law.log_prob(path) - law.initial.log_prob(path[:, 0])).exp()
    assert abs(float(torch.trapezoid(density, ends)) - 1) < 1e-8


@pytest.mark.parametrize("name", sorted(DENSE))
def test_gradients_of_the_density_are_those_of_finite_differences(name):
    path = torch.randn(2, 3, 2, dtype=F64, generator=torch.Generator().manual_seed(1)) * 0.5
    path[1, 2] = path[1, 1]

    def density(rate, path):
        sde = SDE(lambda t, z: rate * drift(t, z), lambda t, z: rate * diffusion(t, z))
        return SDEPath(sde, initial(), GRID, solver=DENSE[name]).log_prob(path)

    rate = torch.tensor(0.8, dtype=F64)
    assert torch.autograd.gradcheck(density, (rate.requires_grad_(), path.requires_grad_()))


@pytest.mark.parametrize("name", sorted(DENSE))
def test_float32_and_little_memory_give_the_same_density(name):
    law = SDEPath(NOISES["diagonal"], initial(), GRID, solver=DENSE[name])
    torch.manual_seed(0)
    path = law.sample((3,))
    expected = law.log_prob(path)
    low = SDEPath(law.sde, initial(), GRID, solver=DENSE[name], execution=Execution(memory="low", block=2))
    assert_close(low.log_prob(path), expected, rtol=1e-10, atol=1e-10)
    single = SDEPath(law.sde, initial(dtype=F32), TimeGrid(TIMES.float()), solver=DENSE[name]).log_prob(path.float())
    assert single.dtype == F32
    assert_close(single.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", sorted(DENSE))
def test_little_memory_gives_the_same_gradient_of_the_density(name):
    def gradients(execution):
        rate = torch.tensor(0.8, dtype=F64, requires_grad=True)
        path = 0.5 * torch.randn(2, 3, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
        sde = SDE(lambda t, z: rate * drift(t, z), lambda t, z: rate * diffusion(t, z))
        law = SDEPath(sde, initial(), GRID, solver=DENSE[name], execution=execution)
        return torch.autograd.grad(law.log_prob(path.requires_grad_()).sum(), (rate, path))

    low = gradients(Execution(memory="low", block=1))
    assert_close(low, gradients(Execution()), rtol=1e-10, atol=1e-10)


def test_exact_steps_have_the_density_of_the_gaussian_path():
    sde = LTI(torch.tensor([[-1.0, 2.0], [-2.0, -1.0]]), torch.tensor([[0.5, 0.1], [0.0, 0.3]]))
    law = SDEPath(sde, initial(), GRID, solver=ExactLinear())
    exact = GaussianPath(sde, dist.MultivariateNormal(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64)), GRID)
    torch.manual_seed(0)
    path = law.sample((4,))
    assert_close(law.log_prob(path), exact.log_prob(path), rtol=1e-8, atol=1e-8)
    # in float32 too, where a large state decays to the size of a small noise
    grid, decay = TimeGrid(torch.tensor([0.0, 1.0])), OrnsteinUhlenbeck(math.pi * 30, 0.01)
    single = torch.tensor([[1000.0], [5e-4]])
    start = dist.Normal(torch.zeros(1), 1000.0).to_event(1)
    assert_close(
        SDEPath(decay, start, grid, solver=ExactLinear()).log_prob(single),
        GaussianPath(decay, start, grid).log_prob(single),
    )
    linearised = SDEPath(sde, initial(), GRID, solver=LocalLinearisation())
    assert_close(linearised.log_prob(path), exact.log_prob(path), rtol=1e-6, atol=1e-6)


def test_langevin_paths_have_a_density_in_position_and_velocity():
    grid = TimeGrid(torch.tensor([0.0, 0.3, 0.6], dtype=F64))
    sde = UnderdampedLangevin(lambda x: -(x**3), 1.0, 0.8)
    law = SDEPath(sde, initial(), grid, solver=LocalLinearisation())
    torch.manual_seed(0)
    path = law.sample((20,))
    moved = path.clone()
    moved[:, 1, 0] += 0.01  # off the support of an Euler chain
    assert torch.isfinite(law.log_prob(moved)).all()


# --- divergences ---------------------------------------------------------------------------------


def test_the_closed_divergence_of_local_linearisation_is_the_mean_log_ratio():
    prior = DoubleWell(strength=1.0)
    grid = TimeGrid(torch.tensor([0.0, 0.5, 1.0], dtype=F64))
    p = SDEPath(prior, initial(1), grid, solver=LocalLinearisation())
    q = SDEPath(prior.controlled(lambda t, z: 1 - z), initial(1), grid, solver=LocalLinearisation())
    torch.manual_seed(0)
    path = q.sample((4000,))
    closed, ratio = path_kl(q, p, path), q.log_prob(path) - p.log_prob(path)
    assert float(closed.mean()) > 0.3
    assert_mean(closed - ratio, 0.0, detects=0.12)
    assert float(path_kl(q, q, path).abs().max()) < 1e-12


def test_the_log_ratio_of_drift_implicit_paths_has_the_mean_of_the_divergence_as_steps_shrink():
    prior = OrnsteinUhlenbeck(1.0, 1.0)
    grid = TimeGrid(torch.linspace(0, 1, 65, dtype=F64))
    p, q = (
        SDEPath(sde, initial(1), grid, solver=DriftImplicitEuler())
        for sde in (prior, prior.controlled(lambda t, z: torch.ones_like(z)))
    )
    torch.manual_seed(0)
    path = q.sample((4000,))
    terms = path_terms(q, p, path, closed=False)
    assert_mean(terms.log_q - terms.log_p, 0.5, detects=0.15)  # 1/2 |u|^2 T
    with pytest.raises(NotImplementedError, match=r'has no closed form.*PathELBO\(kl="stl"\) or PathELBO\(kl="full"\)'):
        path_kl(q, p, path)
    euler = SDEPath(prior, initial(1), grid)
    with pytest.raises(NotImplementedError, match="has no closed form"):
        path_kl(euler, p, path)
    assert torch.isfinite(path_terms(euler, p, path, closed=False).log_p).all()


def test_drift_implicit_laws_of_different_diffusions_are_singular():
    grid = TimeGrid(torch.linspace(0, 1, 5, dtype=F64))
    p, q = (SDEPath(OrnsteinUhlenbeck(1.0, s), initial(1), grid, solver=DriftImplicitEuler()) for s in (1.0, 1.1))
    path = q.sample()
    with pytest.raises(ValueError, match="different diffusions"):
        path_terms(q, p, path, closed=False)
    exact = SDEPath(OrnsteinUhlenbeck(1.0, 1.0), initial(1), grid, solver=LocalLinearisation())
    with pytest.raises(NotImplementedError, match="cannot be compared with GaussianKernels"):
        path_terms(q, exact, path, closed=False)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [Milstein(), Heun(), SRK()], ids=repr)
def test_a_solver_without_a_density_gives_the_divergence_of_the_drifts(solver):
    prior = SDE(drift, diffusion, sde_type="stratonovich")
    control = lambda t, z: z - t  # noqa: E731
    grid = TimeGrid(torch.linspace(0, 1, 9, dtype=F64))
    p, q = (SDEPath(sde, initial(), grid, solver=solver) for sde in (prior, prior.controlled(control)))
    path = q.sample((3,))
    kernels = q.kernels(path)
    assert isinstance(kernels, SamplingKernels)
    assert isinstance(kernels, EulerKernels)
    u = control(grid.times[:-1, None], path[:, :-1])
    assert_close(path_kl(q, p, path), 0.5 * u.square().sum((-2, -1)) / 8)
    for law in (p, q):
        with pytest.raises(ValueError, match=r'no density that is known.*PathELBO\(kl="closed"\).*EulerMaruyama\(\)'):
            law.log_prob(path)


def test_a_density_of_drift_implicit_steps_needs_noise_in_every_direction():
    law = SDEPath(UnderdampedLangevin(lambda x: -x), initial(), GRID, solver=DriftImplicitEuler())
    with pytest.raises(ValueError, match="has a density only if the diffusion has full rank"):
        law.log_prob(law.sample())


def test_a_step_too_long_for_the_drift_is_named():
    grid = TimeGrid(torch.tensor([0.0, 0.1, 1.1], dtype=F64))
    law = SDEPath(OrnsteinUhlenbeck(-2.0, 1.0), initial(1, batch=(2,)), grid, solver=DriftImplicitEuler())
    with pytest.raises(ValueError, match=r"more than one solution.*time 0.1, series \[0\].*Take steps below"):
        law.log_prob(torch.zeros(2, 3, 1, dtype=F64))


def test_kernels_of_padded_steps_count_nothing():
    law = SDEPath(NOISES["diagonal"], initial(), GRID, solver=DriftImplicitEuler())
    torch.manual_seed(0)
    path = law.sample()
    kernels = law.kernels(path)
    assert isinstance(kernels, ImplicitKernels)
    assert float(kernels.log_prob()[1, 1]) == 0
    assert math.isfinite(float(kernels.log_prob()[0, 1]))
