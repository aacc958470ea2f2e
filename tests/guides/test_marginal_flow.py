"""MarginalFlow and MarginalPath: the implied drift, the divergence, random times, and what they refuse."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_sde import SDE, PathELBO, SDEPath, TimeGrid
from pyro_sde.guides.marginal_flow import (
    ImportanceTimes,
    LowDiscrepancyTimes,
    MarginalFlow,
    MarginalPath,
    StratifiedTimes,
    UniformTimes,
)
from pyro_sde.nn import GRUEncoder
from pyro_sde.nn.marginal_encoders import FreeMarginals, GRUMarginals
from pyro_sde.nn.marginals import Marginals
from pyro_sde.sde import BrownianMotion, OrnsteinUhlenbeck
from pyro_sde.testing.statistics import assert_mean
from tests.guides import marginal_problem as problem
from tests.guides.moving_marginals import DIFFUSIONS, Moving, fokker_planck_residual, general, standard

D64 = torch.float64
SAMPLERS = [UniformTimes(3), StratifiedTimes(3), LowDiscrepancyTimes(3), ImportanceTimes(3, num_bins=5)]


def free():
    """Marginals that are near the exact ones, but not these."""
    torch.manual_seed(0)
    encoder = FreeMarginals(torch.linspace(0.0, 1.7, 5, dtype=D64), 1, initial_scale=0.4)
    for part in encoder.parameters():
        part.data += 0.1 * torch.randn_like(part)
    return encoder


# --- the implied drift ------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.1, 1.69])
def test_implied_drift_is_the_exact_posterior_drift_on_ou(t):
    law = MarginalPath(problem.ExactMarginals(), problem.grid()).to_sde_path(OrnsteinUhlenbeck(0.8, 0.9))
    z = torch.linspace(-2.0, 2.0, 5, dtype=D64).unsqueeze(-1)
    # at an observation the derivative of |t - s| is 0 and not one-sided: look just behind it
    t = t + 1e-12 if t == 0.5 else t
    drift = law.sde.drift(torch.tensor([t], dtype=D64), z)
    assert (drift - problem.exact_drift(t, z)).abs().max() < 1e-10


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", sorted(DIFFUSIONS))
def test_marginals_solve_the_fokker_planck_equation_of_the_implied_drift(name, full):
    diffusion, noise_type = DIFFUSIONS[name]
    prior = SDE(lambda t, z: -z, diffusion, noise_type=noise_type)
    marginals = Moving(full)
    drift = MarginalPath(marginals, TimeGrid(torch.tensor([0.0, 1.0], dtype=D64))).to_sde_path(prior).sde.drift

    def density(t, z):
        mean, scale = marginals.moments(t)
        law = dist.MultivariateNormal(mean, scale_tril=scale) if full else dist.Normal(mean, scale).to_event(1)
        return law.log_prob(z).exp()

    assert fokker_planck_residual(density, drift, diffusion, noise_type).abs().max() < 1e-9


def test_paths_of_the_posterior_have_the_marginals():
    torch.manual_seed(2)
    marginals = Moving(True)
    prior = SDE(lambda t, z: -z, general, noise_type="general")
    law = MarginalPath(marginals, TimeGrid(torch.tensor([0.0, 1.0], dtype=D64)))
    paths = law.to_sde_path(prior, TimeGrid(torch.tensor([0.0, 1.0], dtype=D64), max_step=0.01)).sample((2000,))
    mean, factor = marginals.moments(torch.ones(1, dtype=D64))
    last = torch.linalg.solve_triangular(factor, (paths[:, -1] - mean).unsqueeze(-1), upper=False).squeeze(-1)
    assert_mean(torch.cat([last, last.square() - 1, last.prod(-1, keepdim=True)], -1), 0.0, detects=0.25)


# --- the divergence ---------------------------------------------------------------------


def test_the_quadrature_bound_of_exact_marginals_is_the_log_evidence():
    law = MarginalPath(problem.ExactMarginals(), problem.grid())
    cuts = torch.cat([torch.zeros(1, dtype=D64), problem.TIMES])
    assert float(problem.quadrature_bound(law, cuts)) == pytest.approx(problem.EVIDENCE, abs=1e-8)


def test_simulating_the_posterior_gives_the_same_bound_up_to_the_step():
    torch.manual_seed(3)
    encoder = free()
    law = MarginalPath(encoder(problem.grid(), torch.zeros(4, 1)), problem.grid())
    cuts = torch.cat([encoder.knots, problem.TIMES[:-1]]).sort().values.unique()
    exact = problem.quadrature_bound(law, cuts).detach()
    gaps = []
    for step in (0.02, 0.005):
        grid = problem.grid(step)
        posterior = law.to_sde_path(OrnsteinUhlenbeck(problem.RATE, problem.SCALE), grid)
        with torch.no_grad():
            path = posterior.sample((2000,))
            fit = dist.Normal(grid.observed(path), math.sqrt(problem.NOISE)).log_prob(problem.VALUES.unsqueeze(-1))
            bound = fit.sum((-2, -1)) + problem.prior_law(grid).log_prob(path) - posterior.log_prob(path)
        gaps.append((float(bound.mean() - exact), float(bound.std() / math.sqrt(len(bound)))))
    assert all(abs(gap) <= 3 * error + 10 * step for (gap, error), step in zip(gaps, (0.02, 0.005), strict=True)), gaps


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_times_are_unbiased_for_an_integral(sampler):
    torch.manual_seed(4)
    like = torch.zeros((), dtype=D64)
    estimates = []
    for _ in range(2000):
        u, weights = sampler.draw(torch.Size((2,)), like)
        assert u.shape == weights.shape == (3, 2)
        values = u.square() + torch.where(u < 0.3, 5.0 * (u - 0.1), torch.zeros_like(u))
        sampler.learn(u, values)
        estimates.append((weights * values).sum(0))
    # int u^2 + 5 int_0^.3 (u - .1)
    assert_mean(torch.stack(estimates), 1 / 3 + 5 * (0.045 - 0.03), detects=0.15)


def test_low_discrepancy_times_of_a_batch_are_spread():
    torch.manual_seed(0)
    u, _ = LowDiscrepancyTimes(1).draw(torch.Size((64,)), torch.zeros(()))
    places = u.flatten().sort().values
    assert float(places.diff().max()) < 3 / 64
    assert float(places[-1] - places[0]) > 0.9


def test_stratified_times_have_one_in_each_part():
    u, _ = StratifiedTimes(8).draw(torch.Size((5,)), torch.zeros(()))
    assert torch.equal((u * 8).long(), torch.arange(8).unsqueeze(-1).expand(8, 5))


def test_importance_times_go_where_the_integrand_is_large():
    torch.manual_seed(0)
    sampler, plain = ImportanceTimes(4, num_bins=20), StratifiedTimes(4)

    def peak(u):
        return torch.exp(-((u - 0.7) ** 2) / (2 * 0.03**2))

    for _ in range(200):
        u, _ = sampler.draw(torch.Size(()), torch.zeros(()))
        sampler.learn(u, peak(u))
    assert int(sampler.density.argmax()) in (13, 14)
    deviations = []
    for each in (sampler, plain):
        draws = [each.draw(torch.Size(()), torch.zeros(())) for _ in range(400)]
        deviations.append(float(torch.stack([(w * peak(u)).sum() for u, w in draws]).std()))
    assert deviations[0] < 0.5 * deviations[1]


def test_every_series_of_a_batch_has_the_rate_it_has_alone():
    torch.manual_seed(5)
    times = torch.tensor([[0.0, 0.4, 1.0, 1.0], [0.2, 0.7, 1.1, 1.5]], dtype=D64)  # the first is padded
    values = torch.randn(2, 4, 1, dtype=D64)
    encoder = GRUMarginals(1, 2, hidden=5, covariance="full").double()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.5)
    prior = SDE(lambda t, z: -z.sin(), lambda t, z: 0.5 + 0.1 * z.cos())
    flow, both = MarginalFlow(encoder), TimeGrid(times)
    t, eps = torch.rand(6, 2, 1, dtype=D64), torch.randn(6, 2, 2, dtype=D64)
    joint = flow(prior, both, values).rate(SDEPath(prior, standard(), both), t, eps)
    for i, count in enumerate((3, 4)):
        grid = TimeGrid(times[i, :count])
        single = flow(prior, grid, values[i, :count]).rate(SDEPath(prior, standard(), grid), t[:, i], eps[:, i])
        assert torch.allclose(joint[:, i], single, atol=1e-10)


def test_prior_inputs_are_those_of_the_step_that_contains_the_time():
    grid = TimeGrid(torch.tensor([0.0, 1.0, 2.0], dtype=D64))
    rows = torch.tensor([[1.0], [5.0]], dtype=D64)
    prior = SDE(lambda t, z, row: row, lambda t, z: torch.ones_like(z)).with_inputs(rows)

    class Still(Marginals):
        def moments(self, t):
            return torch.zeros_like(t), torch.ones_like(t)

    law = MarginalPath(Still(1), grid)
    t = torch.tensor([[0.5], [1.5], [1.0]], dtype=D64)
    rate = law.rate(SDEPath(prior, standard((1,)), grid), t, torch.zeros(3, 1, dtype=D64))
    assert rate.tolist() == pytest.approx([0.5, 12.5, 12.5])


@pytest.mark.parametrize("name", ["elementwise networks", "diagonal, of all states"])
def test_the_rate_is_the_same_with_and_without_a_graph(name):
    torch.manual_seed(9)
    grid, head = TimeGrid(torch.tensor([0.0, 1.0], dtype=D64)), torch.tensor(0.3, dtype=D64, requires_grad=True)

    class Learned(Moving):
        def moments(self, t):
            mean, scale = super().moments(t)
            return mean + head, scale

    prior = SDEPath(SDE(lambda t, z: -z, DIFFUSIONS[name][0]), standard(), grid)
    law, t, eps = MarginalPath(Learned(False), grid), torch.rand(5, 1, dtype=D64), torch.randn(5, 2, dtype=D64)
    with torch.no_grad():
        plain = law.rate(prior, t, eps)
    assert torch.allclose(law.rate(prior, t, eps), plain, atol=1e-12)


def test_a_controlled_prior_is_compared_with_its_total_drift():
    grid, t, eps = problem.grid(), torch.full((1, 1), 0.3, dtype=D64), torch.ones(1, 1, dtype=D64)
    law = MarginalPath(problem.ExactMarginals(), grid)
    base = OrnsteinUhlenbeck(problem.RATE, problem.SCALE)
    shifted = base.with_drift(lambda t, z: -problem.RATE * z + problem.SCALE * 2.0)
    rates = [
        law.rate(SDEPath(sde, standard((1,)), grid), t, eps)
        for sde in (base.controlled(lambda t, z: z * 0 + 2.0), shifted)
    ]
    assert float(rates[0]) == pytest.approx(float(rates[1]))


def test_windows_without_a_start_leave_the_initial_divergence_out():
    grid = TimeGrid(torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=D64))
    encoder = FreeMarginals(torch.tensor([0.0, 1.0], dtype=D64), 1, initial_scale=0.2)
    marginals = encoder(grid, torch.zeros(2, 1))
    prior = SDEPath(BrownianMotion(0.5), standard((1,)), grid)
    parts = []
    for starts in (None, torch.tensor([True, False])):
        torch.manual_seed(0)
        law = MarginalPath(marginals, grid, starts=starts)
        path = law.rsample()
        parts.append(law.carried_terms(prior, path, closed=True).kl)
    initial = torch.distributions.kl_divergence(dist.Normal(0.0, 0.2), dist.Normal(0.0, 1.0))
    assert (parts[0] - parts[1]).tolist() == pytest.approx([0.0, float(initial)])


def test_values_are_independent_draws_of_the_marginals():
    torch.manual_seed(6)
    law = MarginalPath(Moving(True), TimeGrid(torch.tensor([0.0, 0.5, 1.0], dtype=D64)))
    value = law.expand((3,)).rsample((1500,))
    assert value.shape == (1500, 3, 3, 2)
    mean, factor = Moving(True).moments(law.grid.times.unsqueeze(-1))
    eps = torch.linalg.solve_triangular(factor, (value - mean).unsqueeze(-1), upper=False).flatten(-3)  # (n, 3, 6)
    second = eps.unsqueeze(-1) * eps.unsqueeze(-2) - torch.eye(6, dtype=D64)
    assert_mean(torch.cat([eps, second.flatten(-2)], -1).mean(1), 0.0, detects=0.2)


def test_it_runs_in_float32_with_gradients_for_every_parameter():
    torch.manual_seed(7)
    flow = MarginalFlow(GRUMarginals(1, 2, hidden=4, head=(5,), covariance="full"))
    grid = TimeGrid(torch.tensor([0.0, 0.5, 1.0]))
    prior = OrnsteinUhlenbeck(1.0, 0.5)
    law = flow(prior, grid, torch.randn(4, 3, 1))
    path = law.rsample()
    initial = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    divergence = law.carried_terms(SDEPath(prior, initial, grid), path, closed=True).kl
    assert divergence.shape == (4,)
    assert divergence.dtype == path.dtype == torch.float32
    divergence.sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in flow.parameters())
    stored = {id(value) for _, value in pyro.get_param_store().named_parameters()}
    assert stored >= {id(p) for p in flow.parameters()}


def test_path_elbo_takes_it_in_closed_form():
    torch.manual_seed(8)
    grid = problem.grid()
    law = MarginalPath(problem.ExactMarginals(), grid)

    def guide(on):
        pyro.sample("z", law)

    losses = torch.tensor([PathELBO("closed").loss(problem.model, guide, grid) for _ in range(300)])
    assert_mean(losses, -problem.EVIDENCE, detects=1.0)


# --- bad input --------------------------------------------------------------------------


def test_a_collapsed_scale_is_named():
    class Collapsed(Marginals):
        def moments(self, t):
            return torch.cat([t, t], -1), torch.cat([1 + t, (1 - t).clamp(min=0)], -1)

    with pytest.raises(ValueError, match=r"positive scales, but at time 1 dimension 1 has mean 1 and scale 0.*bound"):
        MarginalPath(Collapsed(2), TimeGrid(torch.tensor([0.0, 1.0])))


def test_a_prior_without_noise_where_the_drift_needs_it_is_named():
    prior = SDE(lambda t, z: -z, lambda t, z: torch.tensor([1.0, 0.0], dtype=D64))
    grid = TimeGrid(torch.tensor([0.0, 1.0], dtype=D64))
    law = MarginalPath(Moving(False), grid)
    with pytest.raises(ValueError, match=r"diffusion of the prior vanishes.*dimension 1 at time.*PosteriorSDE"):
        law.carried_terms(SDEPath(prior, standard(), grid), law.rsample(), closed=True)


def test_a_scale_that_collapses_between_grid_points_is_named():
    class Collapsed(Moving):
        def moments(self, t):
            mean, scale = super().moments(t)
            gone = ((t - 0.5).abs() < 0.3).to(t.dtype)
            return mean, scale * (1 - (gone if scale.dim() == t.dim() else gone.unsqueeze(-1)))

    grid = TimeGrid(torch.tensor([0.0, 1.0], dtype=D64))
    for full in (False, True):
        law = MarginalPath(Collapsed(full), grid)
        p = SDEPath(OrnsteinUhlenbeck(1.0, 1.0), standard(), grid)
        with pytest.raises(
            ValueError, match=r"positive scales, but at time 0\.\d+ dimension 0.*scale 0\. A variance of 0"
        ):
            law.carried_terms(p, law.rsample(), closed=True)


def test_a_prior_with_noise_in_one_direction_only_is_named():
    column = torch.tensor([[1.0], [0.5]], dtype=D64)
    grid = TimeGrid(torch.tensor([0.0, 1.0], dtype=D64))
    law = MarginalPath(Moving(True), grid)
    p = SDEPath(SDE(lambda t, z: -z, lambda t, z: column, noise_type="additive"), standard(), grid)
    with pytest.raises(ValueError, match="diffusion of the prior vanishes in a direction in which the implied drift"):
        law.carried_terms(p, law.rsample(), closed=True)


def test_times_outside_the_knots_are_named():
    encoder = FreeMarginals(torch.tensor([0.0, 1.0]), 1)
    grid = TimeGrid(torch.tensor([0.5, 2.0]))
    with pytest.raises(ValueError, match=r"`grid` spans \[0.5, 2\], but the marginals are known in \[0, 1\] only"):
        MarginalPath(encoder(grid, torch.zeros(2, 1)), grid)
    with pytest.raises(ValueError, match=r"`grid` spans \[-1, 1\]"):
        MarginalPath(encoder(grid, torch.zeros(2, 1)), TimeGrid(torch.tensor([-1.0, 1.0])))


def test_wrong_types_are_named():
    marginals, grid = problem.ExactMarginals(), problem.grid()
    for arguments, name in (((1, grid), "marginals"), ((marginals, 2.0), "grid")):
        with pytest.raises(TypeError, match=f"`{name}` must be of type"):
            MarginalPath(*arguments)
    with pytest.raises(TypeError, match="`times` must be of type TimeSampler"):
        MarginalPath(marginals, grid, times=16)
    with pytest.raises(TypeError, match=r"`encoder` must be a MarginalEncoder, received GRUEncoder.*jump"):
        MarginalFlow(GRUEncoder(1, 2, 5))
    with pytest.raises(TypeError, match="`prior` must be the SDE of the model, received float"):
        MarginalPath(marginals, grid).to_sde_path(1.0)


def test_there_is_no_path_density():
    grid = problem.grid()
    law = MarginalPath(problem.ExactMarginals(), grid).named("z")
    path, prior = law.rsample(), problem.prior_law()
    for call in (law.log_prob, law.score_parts, law.kernels):
        with pytest.raises(ValueError, match="MarginalPath at site 'z': marginals have no path density"):
            call(path)
    with pytest.raises(ValueError, match="closed form only"):
        law.carried_terms(prior, path, closed=False)
    with pytest.raises(ValueError, match="the model has a MarginalPath, which has no drift"):
        law.carried_terms(law, path, closed=True)
    with pytest.raises(ValueError, match="different grids"):
        law.carried_terms(problem.prior_law(problem.grid(0.1)), path, closed=True)
    point = SDEPath(prior.sde, dist.Delta(torch.zeros(1, dtype=D64)).to_event(1), grid)
    with pytest.raises(ValueError, match=r"divergence of the initial laws is not finite.*no Delta"):
        law.carried_terms(point, path, closed=True)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: UniformTimes(0), "`num_times` must be an integer >= 1, received 0"),
        (lambda: ImportanceTimes(2, num_bins=0), "`num_bins` must be an integer >= 1"),
        (lambda: ImportanceTimes(2, uniform=0.0), r"`uniform` must be a number in \(0, 1\]"),
        (lambda: ImportanceTimes(2, decay=1.0), r"`decay` must be a number in \[0, 1\)"),
    ],
)
def test_sampler_options_out_of_range_are_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()
