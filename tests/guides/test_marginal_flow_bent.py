"""MarginalPath with marginals that are not Gaussian: its drift, its divergence, its draws, and what it gains."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_sde import SDE, SDEPath, TimeGrid
from pyro_sde.guides.marginal_flow import MarginalFlow, MarginalPath, StratifiedTimes
from pyro_sde.infer.simulation_free import SimulationFreeELBO
from pyro_sde.nn.marginal_encoders import FreeMarginals, GRUMarginals
from pyro_sde.nn.sigmoid_map import SigmoidMap
from pyro_sde.sde import OrnsteinUhlenbeck
from pyro_sde.testing.statistics import assert_mean
from tests.guides import marginal_problem as problem
from tests.guides.moving_marginals import DIFFUSIONS, Moving, fokker_planck_residual, standard

D64 = torch.float64
EPS, MASS = (torch.as_tensor(part) for part in np.polynomial.hermite_e.hermegauss(80))
MASS = MASS / math.sqrt(2 * math.pi)


class Bent(Moving):
    """Skew, bimodal marginals in two dimensions."""

    sigmoids = SigmoidMap(3)

    def moments(self, t):
        mean, scale = super().moments(t)
        first = torch.cat([0.4 * t.sin(), 0.8 + t, -0.2 * t.cos()], -1)
        second = torch.cat([t.square(), 0.1 + 0 * t, -0.2 * t], -1)
        return mean, scale, torch.stack([first, second], -2)


class Unbent(Moving):
    """The same law as `Moving`, said with a map."""

    sigmoids = SigmoidMap(2)

    def moments(self, t):
        mean, scale = super().moments(t)
        return mean, scale, 0 * mean.unsqueeze(-1)


def log_density(marginals, t, z):
    """Of the image of noise, with derivatives of every order: Newton's steps in the graph."""
    (mean, scale, weights), sigmoids = marginals.moments(t), marginals.sigmoids
    factor = scale if scale.dim() > mean.dim() else torch.diag_embed(scale)
    x = torch.linalg.solve_triangular(factor, (z - mean).unsqueeze(-1), upper=False).squeeze(-1)
    eps = sigmoids.invert(weights, x).detach()
    for _ in range(3):
        eps = eps - (sigmoids.apply(weights, eps) - x) / sigmoids.slope(weights, eps)[0]
    slopes = factor.diagonal(dim1=-2, dim2=-1) * sigmoids.slope(weights, eps)[0]
    return (dist.Normal(0.0, 1.0).log_prob(eps) - slopes.log()).sum(-1)


def unit_grid():
    return TimeGrid(torch.tensor([0.0, 1.0], dtype=D64))


# --- the implied drift ------------------------------------------------------------------


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", sorted(DIFFUSIONS))
def test_bent_marginals_solve_the_fokker_planck_equation_of_the_implied_drift(name, full):
    diffusion, noise_type = DIFFUSIONS[name]
    prior = SDE(lambda t, z: -z, diffusion, noise_type=noise_type)
    marginals = Bent(full)
    drift = MarginalPath(marginals, unit_grid()).to_sde_path(prior).sde.drift

    def density(t, z):
        return log_density(marginals, t, z).exp()

    assert fokker_planck_residual(density, drift, diffusion, noise_type).abs().max() < 1e-8


@pytest.mark.parametrize("full", [False, True])
def test_weights_of_0_are_gaussian_marginals(full):
    torch.manual_seed(2)
    prior = SDE(lambda t, z: -z, lambda t, z: 0.5 + 0.1 * z.cos())
    law, plain = MarginalPath(Unbent(full), unit_grid()), MarginalPath(Moving(full), unit_grid())
    t, eps = torch.rand(7, 1, dtype=D64), torch.randn(7, 2, dtype=D64)
    p = SDEPath(prior, standard(), unit_grid())
    assert torch.allclose(law.rate(p, t, eps), plain.rate(p, t, eps), atol=1e-12)
    z = torch.randn(7, 2, dtype=D64)
    drifts = [each.to_sde_path(prior).sde.drift(t, z) for each in (law, plain)]
    assert torch.allclose(*drifts, atol=1e-11)
    assert torch.allclose(law.initial.log_prob(z), plain.initial.log_prob(z), atol=1e-11)


def test_paths_of_the_posterior_have_the_bent_marginals():
    torch.manual_seed(3)
    marginals = Bent(True)
    law = MarginalPath(marginals, unit_grid())
    prior = SDE(lambda t, z: -z, lambda t, z: 0.6 + 0.2 * z.cos())
    fine = TimeGrid(torch.tensor([0.0, 1.0], dtype=D64), max_step=0.005)
    last = law.to_sde_path(prior, fine).sample((1500,))[:, -1]
    mean, factor, weights = marginals.moments(torch.ones(1, dtype=D64))
    x = torch.linalg.solve_triangular(factor, (last - mean).unsqueeze(-1), upper=False).squeeze(-1)
    eps = marginals.sigmoids.invert(weights, x)
    assert_mean(torch.cat([eps, eps.square() - 1, eps.prod(-1, keepdim=True)], -1), 0.0, detects=0.35)


def test_values_are_draws_of_the_bent_marginals_and_the_first_has_their_density():
    torch.manual_seed(4)
    marginals = Bent(True)
    law = MarginalPath(marginals, TimeGrid(torch.tensor([0.0, 0.5, 1.0], dtype=D64)))
    value = law.expand((3,)).rsample((1000,))
    assert value.shape == (1000, 3, 3, 2)
    mean, factor, weights = marginals.moments(law.grid.times.unsqueeze(-1))
    x = torch.linalg.solve_triangular(factor, (value - mean).unsqueeze(-1), upper=False).squeeze(-1)
    eps = marginals.sigmoids.invert(weights, x).flatten(-2)
    second = eps.unsqueeze(-1) * eps.unsqueeze(-2) - torch.eye(6, dtype=D64)
    assert_mean(torch.cat([eps, second.flatten(-2)], -1).mean(1), 0.0, detects=0.25)
    first = value[:5, 0, 0]
    expected = log_density(marginals, torch.zeros(5, 1, dtype=D64), first)
    assert torch.allclose(law.initial.log_prob(first), expected, atol=1e-10)


# --- the bound --------------------------------------------------------------------------


def bent():
    """Bent marginals with parameters, near the exact ones of the problem."""
    torch.manual_seed(0)
    encoder = FreeMarginals(torch.linspace(0.0, 1.7, 5, dtype=D64), 1, initial_scale=0.4, sigmoids=3)
    for part in encoder.parameters():
        part.data += 0.3 * torch.randn_like(part)
    return encoder


def quadrature_bound(law, cuts, p, fit):
    """The bound of a law in one dimension, with all expectations by quadrature; `fit` is the log-likelihood."""
    node, weight = (torch.as_tensor(part) for part in np.polynomial.legendre.leggauss(10))
    half = cuts.diff().unsqueeze(-1) / 2
    t = (cuts[:-1, None] + half * (node + 1)).reshape(-1, 1, 1)
    rate = law.rate(p, t, EPS.reshape(1, -1, 1).expand(len(t), -1, 1))  # (times, noise)
    path = (half * weight).reshape(-1) @ rate @ MASS
    noise = EPS.unsqueeze(-1)
    mean, scale, *bend = (part[0] for part in law.marginals.moments(cuts[:1].unsqueeze(-1)))
    x = law.marginals.sigmoids.apply(*bend, noise) if bend else noise
    first = mean + scale * x
    initial = (law.initial.log_prob(first) - p.initial.log_prob(first)) @ MASS
    return fit @ MASS - path - initial


def states_at(marginals, t):
    """States ``(noise,)`` of the quadrature nodes."""
    mean, scale, *bend = (part.squeeze(0) for part in marginals.moments(torch.full((1, 1), float(t), dtype=D64)))
    noise = EPS.unsqueeze(-1)
    return (mean + scale * (marginals.sigmoids.apply(*bend, noise) if bend else noise)).squeeze(-1)


def test_loss_and_gradient_have_the_quadrature_bound_as_their_mean():
    encoder, grid = bent(), problem.grid()
    law = MarginalPath(encoder(grid, grid.times), grid)
    normal = dist.Normal(0.0, math.sqrt(problem.NOISE))
    pairs = zip(problem.TIMES, problem.VALUES, strict=True)
    fit = sum(normal.log_prob(states_at(law.marginals, t) - y) for t, y in pairs)
    cuts = torch.cat([encoder.knots, problem.TIMES[:-1]]).sort().values.unique()
    exact = -quadrature_bound(law, cuts, problem.prior_law(), fit)
    parameters = list(encoder.parameters())
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(exact, parameters)])

    def guide(on):
        pyro.sample("z", MarginalPath(encoder(on, on.times), on))

    torch.manual_seed(1)
    loss, samples = SimulationFreeELBO(StratifiedTimes(4)), []
    for _ in range(300):
        value = loss.differentiable_loss(problem.model, guide, grid)
        found = torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])
        samples.append(torch.cat([value.detach().reshape(1), found]))
    samples = torch.stack(samples)
    assert_mean(samples[:, 0], exact.detach(), detects=5.0)
    assert_mean(samples[:, 1:] / gradient.abs().max(), gradient / gradient.abs().max(), detects=1.0)


def fitted_gap(sigmoids):
    """Nats between the best bound and the evidence of z^2 seen once: the posterior has two modes."""
    torch.manual_seed(5)
    grid = TimeGrid(torch.tensor([1.0], dtype=D64), start=0.0)
    prior = SDEPath(OrnsteinUhlenbeck(1.0, 1.0), dist.Normal(torch.zeros(1, dtype=D64), 0.5).to_event(1), grid)
    encoder = FreeMarginals(torch.linspace(0.0, 1.0, 5, dtype=D64), 1, initial_scale=0.5, sigmoids=sigmoids)
    for part in encoder.parameters():
        part.data += 0.05 * torch.randn_like(part)

    def log_likelihood(z):
        return dist.Normal(z.square(), 0.3).log_prob(torch.tensor(0.7, dtype=D64))

    def loss():
        law = MarginalPath(encoder(grid, grid.times), grid)
        return -quadrature_bound(law, encoder.knots, prior, log_likelihood(states_at(law.marginals, 1.0)))

    def closure():
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser = torch.optim.LBFGS(encoder.parameters(), max_iter=150, history_size=20, line_search_fn="strong_wolfe")
    optimiser.step(closure)
    variance = 0.25 * math.exp(-2.0) + 0.5 * (1 - math.exp(-2.0))
    state = torch.linspace(-5.0, 5.0, 4001, dtype=D64)
    joint = dist.Normal(0.0, math.sqrt(variance)).log_prob(state) + log_likelihood(state)
    return float(torch.trapezoid(joint.exp(), state).log() + loss().detach())


def test_a_bimodal_posterior_is_met_nearer_than_by_gaussian_marginals():
    gaussian, flow = fitted_gap(0), fitted_gap(5)  # 0.75 (log 2 and more: one mode) and 0.12
    assert 0.0 < flow < 0.2 * gaussian, (flow, gaussian)


def test_it_runs_in_float32_with_gradients_for_every_parameter():
    torch.manual_seed(6)
    flow = MarginalFlow(GRUMarginals(1, 2, hidden=4, head=(5,), covariance="full", sigmoids=2))
    grid, prior = TimeGrid(torch.tensor([0.0, 0.5, 1.0])), OrnsteinUhlenbeck(1.0, 0.5)
    law = flow(prior, grid, torch.randn(4, 3, 1))
    path = law.rsample()
    initial = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    divergence = law.carried_terms(SDEPath(prior, initial, grid), path, closed=True).kl
    assert divergence.shape == (4,)
    assert divergence.dtype == path.dtype == torch.float32
    (divergence.sum() + path.sum()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in flow.parameters())
    paths = law.to_sde_path(prior, TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.1)).sample()
    assert paths.shape == (4, 11, 2)
    assert bool(paths.isfinite().all())


def test_weights_that_are_not_finite_are_named():
    class Broken(Bent):
        def moments(self, t):
            mean, scale, weights = super().moments(t)
            return mean, scale, weights / (t - 1).abs().unsqueeze(-1)

    with pytest.raises(ValueError, match="finite moments and positive scales, but at time 1 dimension 0"):
        MarginalPath(Broken(False), unit_grid())
