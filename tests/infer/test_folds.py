"""Exact evidences, the best Gaussian path and a neural posterior SDE on the double well, Beneš and OU folds."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO

from pyro_sde import SDE, SDEPath
from tests.infer.best_gaussian import Target, best_gaussian
from tests.infer.folds import (
    FOLDS,
    PROCESSES,
    BridgePosterior,
    Process,
    Series,
    guide_of,
    model_of,
    published,
    simulated,
    train,
)
from tests.infer.grid_filter import exact_elbo, log_evidence, ou_log_evidence
from tests.infer.linear_problem import NOISE, RATE, SCALE, LinearProblem

# Measured on the published training folds: exact log evidences of all five OU folds from a known and from a stationary
# start; of fold 0 of the others, the Euler chain of step 0.01 from N(start, 0.01^2).
OU_KNOWN = (-20.075466, -16.561495, -19.835029, -20.080733, -18.221669)
OU_STATIONARY = (-21.086705, -17.572734, -20.846267, -21.090628, -18.889756)
DOUBLE_WELL, BENES = -9.923958, -19.990887
# A Gaussian path has tails in which the cubic drift is large.
WIDE = torch.linspace(-5.0, 5.0, 1201, dtype=torch.float64)


def iwae(model, guide, particles):
    loss = RenyiELBO(alpha=0, num_particles=particles, vectorize_particles=True, max_plate_nesting=0)
    with torch.no_grad():
        return -loss.loss(model, guide)


# --- the oracles ----------------------------------------------------------------------------------------------------


def test_grid_filter_is_exact_on_a_linear_chain():
    problem = LinearProblem()
    states = torch.linspace(-6.0, 6.0, 301)
    assert log_evidence(problem.prior(), problem.values, NOISE, states) == pytest.approx(
        problem.exact_evidence(), abs=1e-9
    )


def test_elbo_by_quadrature_is_exact_on_a_linear_chain():
    problem = LinearProblem()
    guide = problem.posterior(problem.rows, problem.loc, problem.scale)
    bound = exact_elbo(guide, problem.prior(), problem.values, NOISE, torch.linspace(-6.0, 6.0, 301))
    assert bound == pytest.approx(problem.exact_elbo(), abs=1e-8)


def test_grid_filter_converges_to_the_evidence_of_the_benes_process():
    # The law of dx = tanh(x) dt + dW has density exp(-T / 2) cosh(x_T) / cosh(x_0) with respect to Brownian motion.
    # From the start cosh(x_0) N(x_0; 0, v) exp(-v / 2), a mean of N(v, v) and N(-v, v), the cosh of x_0 cancels; that
    # of x_T is a mean of two exponentials, under which Brownian motion stays Gaussian.
    series, v = simulated("benes").head(10), 0.01
    covariance = torch.minimum(series.times[:, None], series.times) + v
    noisy = covariance + series.process.noise**2 * torch.eye(10)
    law = torch.distributions.MultivariateNormal(torch.zeros(10), noisy)
    gain = torch.linalg.solve(noisy, covariance[-1])
    mean, variance = gain @ series.values, covariance[-1, -1] - gain @ covariance[-1]
    exact = law.log_prob(series.values) + 0.5 * (variance - series.times[-1] - v) + mean.cosh().log()
    halves = dist.Normal(torch.tensor([[v], [-v]]), math.sqrt(v)).to_event(1)
    start = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), halves)

    def error(max_step):
        chain = SDEPath(series.process.sde(), start, series.grid(max_step))
        found = log_evidence(chain, series.values, series.process.noise, torch.linspace(-7.0, 4.0, 401))
        return found - exact.item()

    coarse, fine = error(0.02), error(0.01)
    assert abs(fine) > 1e-4  # there is a bias to see
    assert abs(2 * fine - coarse) < 0.1 * abs(fine)


def test_kalman_filter_of_the_ou_process_is_a_gaussian_process():
    series = simulated("ornstein_uhlenbeck")
    decay = (-0.5 * (series.times[:, None] - series.times).abs()).exp()
    known = decay - (-0.5 * (series.times[:, None] + series.times)).exp()
    for start, mean, covariance in (
        ((1.0, 0.0), (-0.5 * series.times).exp(), known),
        ((0.0, 1.0), torch.zeros(32), decay),
    ):
        dense = torch.distributions.MultivariateNormal(mean, covariance + 0.01 * torch.eye(32))
        filtered = ou_log_evidence(
            series.times, series.values, rate=0.5, scale=1.0, noise=0.1, mean=start[0], variance=start[1]
        )
        assert filtered == pytest.approx(dense.log_prob(series.values).item(), abs=1e-9)


def test_best_gaussian_of_a_linear_chain_is_its_posterior():
    problem = LinearProblem()
    grid = problem.grid
    given = (grid.steps.numpy(), grid.observed_index.numpy(), problem.values.numpy())
    start = (0.0, problem.initial.stddev.item())
    bound, _ = best_gaussian(
        Target(lambda z: -RATE * z, SCALE, *given, NOISE, start), torch.zeros(len(grid.times)).numpy()
    )
    assert bound == pytest.approx(problem.exact_evidence(), abs=1e-8)


@pytest.fixture(scope="module")
def well():
    """Nine observations of the double well, among them both wells, and a grid of step 0.05."""
    series = simulated("double_well", seed=6).head(9)
    assert series.values.min() < -0.5 < 0.5 < series.values.max()
    grid = series.grid(0.05)
    evidence = log_evidence(series.prior(grid), series.values, series.process.noise, series.states(601))
    bound, chain = series.best_gaussian(grid)
    return series, grid, evidence, bound, chain


def gaussian_guide(series, grid, chain):
    """The chain of `best_gaussian` as a path law."""
    mean, slope, spread = (torch.tensor(part) for part in (chain.mean, chain.slope, chain.conditional))
    steps = grid.steps

    def drift(t, z):
        k = torch.searchsorted(grid.times, t.squeeze(-1).contiguous())
        after = mean[k + 1].unsqueeze(-1) + slope[k].unsqueeze(-1) * (z - mean[k].unsqueeze(-1))
        return (after - z) / steps[k].unsqueeze(-1)

    def diffusion(t, z):
        k = torch.searchsorted(grid.times, t.squeeze(-1).contiguous())
        return (spread[k + 1] / steps[k]).sqrt().unsqueeze(-1)

    return SDEPath(SDE(drift, diffusion), dist.Normal(mean[:1], spread[:1].sqrt()).to_event(1), grid)


def test_best_gaussian_bound_is_the_elbo_of_its_law(well):
    series, grid, evidence, bound, chain = well
    law = gaussian_guide(series, grid, chain)
    assert exact_elbo(law, series.prior(grid), series.values, series.process.noise, WIDE) == pytest.approx(
        bound, abs=1e-6
    )
    assert bound < evidence - 0.5


@pytest.mark.parametrize("part", ["mean", "slope", "conditional"])
@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_no_gaussian_path_nearby_is_better(well, part, factor):
    series, grid, _, bound, chain = well
    other = gaussian_guide(series, grid, chain._replace(**{part: factor * getattr(chain, part)}))
    elbo = exact_elbo(other, series.prior(grid), series.values, series.process.noise, WIDE)
    assert elbo < bound - 1e-5


def test_best_gaussian_does_not_depend_on_where_it_starts(well):
    series, grid, _, bound, _ = well
    given = (grid.steps.numpy(), grid.observed_index.numpy(), series.values.numpy())
    target = Target(series.process.drift, 1.0, *given, series.process.noise, (1.0, 0.01))
    between = torch.searchsorted(series.times, grid.times - 1e-9)
    for start in (torch.zeros_like(grid.times), series.values[between]):
        other, _ = best_gaussian(target, start.numpy())
        assert other == pytest.approx(bound, abs=1e-6)


# --- the data -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_folds_leave_every_observation_out_once(name):
    folds = [simulated(name, fold) for fold in range(FOLDS)]
    everything = torch.cat([fold.times for fold in folds])
    assert all(len(fold.times) == 32 for fold in folds)
    times, counts = everything.unique(return_counts=True)
    assert len(times) == 40
    assert (counts == FOLDS - 1).all()
    assert torch.equal(simulated(name, 2).values, folds[2].values)
    assert not torch.equal(simulated(name, 2, seed=1).values, folds[2].values)


def test_grids_of_the_folds_are_the_published_ones():
    grid = simulated("double_well").grid()
    torch.testing.assert_close(grid.steps, torch.full_like(grid.steps, 0.01))


@pytest.mark.parametrize("fold", range(FOLDS))
def test_published_ou_evidences(fold):
    series = published("ornstein_uhlenbeck", fold)
    if series is None:
        pytest.skip("the published data is not in $PYRO_SDE_DATA")
    for (mean, variance), expected in (((1.0, 0.0), OU_KNOWN[fold]), ((0.0, 1.0), OU_STATIONARY[fold])):
        found = ou_log_evidence(
            series.times, series.values, rate=0.5, scale=1.0, noise=0.1, mean=mean, variance=variance
        )
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("name", "points", "expected"), [("double_well", 601, DOUBLE_WELL), ("benes", 2401, BENES)])
def test_published_evidences_of_nonlinear_processes(name, points, expected):
    series = published(name)
    if series is None:
        pytest.skip("the published data is not in $PYRO_SDE_DATA")
    found = log_evidence(series.prior(series.grid()), series.values, series.process.noise, series.states(points))
    assert found == pytest.approx(expected, abs=1e-6)


# --- the neural posterior -------------------------------------------------------------------------------------------


def test_keeping_the_diffusion_of_the_prior_costs_what_the_formula_says():
    brownian = Process("", torch.zeros_like, 1.0, 0.0, 0.01, (-5.0, 5.0))
    series = Series(brownian, torch.tensor([0.4]), torch.tensor([0.7]))
    grid = series.grid()
    left = series.times - grid.times[1:]
    x = grid.steps / (series.process.noise**2 + left)  # step size times information of the future
    evidence = dist.Normal(0.0, math.sqrt(0.4 + 2e-4)).log_prob(series.values).item()
    posterior = BridgePosterior(series)  # untrained: exact, as the prior has no drift
    for implicit, gap in ((True, 0.0), (False, 0.5 * (x - x.log1p()).sum().item())):
        law = posterior(grid, implicit=implicit)
        elbo = exact_elbo(law, series.prior(grid), series.values, 0.01, series.states(1601))
        assert elbo == pytest.approx(evidence - gap, abs=1e-6)
    assert gap > 45


@pytest.fixture(scope="module")
def trained(well):
    """A neural posterior of the nine observations, after seconds of training."""
    return train(well[0], 0, ((0.05, 150, 0.03, 0.005),))


def test_a_neural_posterior_beats_the_best_gaussian_path(well, trained):
    series, grid, evidence, bound, _ = well
    elbo = exact_elbo(trained(grid), series.prior(grid), series.values, series.process.noise, series.states(601))
    assert bound < evidence - 2.5
    assert evidence - 0.25 < elbo < evidence


def test_elbo_of_sampled_paths_is_that_of_quadrature(well, trained):
    series, grid, *_ = well
    elbo = exact_elbo(trained(grid), series.prior(grid), series.values, series.process.noise, series.states(601))
    path = trained(grid).sample((4000,))
    likelihood = dist.Normal(grid.observed(path)[..., 0], series.process.noise).log_prob(series.values).sum(-1)
    weights = (series.prior(grid).log_prob(path) + likelihood - trained(grid).log_prob(path)).detach()
    assert abs(weights.mean() - elbo) < 4.3 * weights.std() / math.sqrt(len(weights))  # false alarms: 2e-5


def test_importance_weighted_bounds_converge_to_the_evidence(well, trained):
    series, grid, evidence, *_ = well
    pyro.set_rng_seed(0)
    assert iwae(model_of(series, grid), guide_of(trained, grid), 4000) == pytest.approx(evidence, abs=0.05)


@pytest.mark.slow
def test_the_neural_posterior_of_a_whole_fold_is_within_a_twentieth_of_a_nat():
    series = simulated("double_well")
    grid = series.grid()
    given = (series.values, series.process.noise)
    evidence = log_evidence(series.prior(grid), *given, series.states(601))
    bound, _ = series.best_gaussian(grid)
    posterior = train(series, 0)
    elbo = exact_elbo(posterior(grid), series.prior(grid), *given, series.states(451))
    assert bound < evidence - 5
    assert evidence - 0.05 < elbo < evidence
    assert iwae(model_of(series, grid), guide_of(posterior, grid), 400) == pytest.approx(evidence, abs=0.05)
