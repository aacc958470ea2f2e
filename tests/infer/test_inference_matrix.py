"""A path site under every inference algorithm of Pyro: exact, or refused by name."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    Importance,
    Predictive,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer import autoguide as ag
from pyro.infer.inspect import get_model_relations
from pyro.nn import PyroModule, PyroSample
from torch import nn

from pyro_sde import SDE, PathELBO, SDEPath, TimeGrid
from pyro_sde.sde import OrnsteinUhlenbeck
from tests.infer.linear_problem import LinearProblem

COARSE = {"max_step": 0.5}


def exact_path_posterior(problem):
    """Mean and covariance of the latent path given the observations, by dense conditioning."""
    mean, covariance = problem.dense()
    index = problem.grid.observed_index
    cross = covariance[:, index]
    gain = cross @ torch.linalg.inv(cross[index] + problem.noise**2 * torch.eye(len(index)))
    return mean + gain @ (problem.values - mean[index]), covariance - gain @ cross.T


# ---------------------------------------------------------------- importance and wake-sleep
def test_importance_sampling_recovers_the_evidence():
    problem = LinearProblem(max_step=0.05)
    problem.rows, problem.loc, problem.scale, _ = problem.best_control()
    posterior = Importance(problem.model, problem.guide, num_samples=400).run()
    weights = torch.tensor(posterior.log_weights)
    evidence = (weights.logsumexp(0) - math.log(400)).item()
    # The weights have a relative standard deviation of about 1 at this guide: 0.25 nat is five standard errors.
    assert abs(evidence - problem.exact_evidence()) < 0.25


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_renyi_bounds_lie_between_elbo_and_evidence(alpha):
    problem = LinearProblem(**COARSE)
    problem.rows, problem.loc, problem.scale, elbo = problem.best_control()
    bound = RenyiELBO(alpha, num_particles=5000, vectorize_particles=True, max_plate_nesting=0)
    value = -bound.loss(problem.model, problem.guide)
    assert elbo < value < problem.exact_evidence() + 0.05


def test_reweighted_wake_sleep_trains_a_path_guide():
    problem = LinearProblem(**COARSE)
    loss = ReweightedWakeSleep(num_particles=32, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(problem.model, problem.guide, pyro.optim.Adam({"lr": 0.05}), loss)
    for _ in range(150):
        svi.step()
    store = pyro.get_param_store()
    trained = problem.exact_elbo(*(store[name].detach() for name in ("rows", "loc", "scale")))
    assert trained > LinearProblem(**COARSE).exact_elbo() + 3


def test_elbo_with_an_enumerated_regime_that_chooses_the_drift_equals_direct_marginalisation():
    problem = LinearProblem(**COARSE)
    path = problem.prior().sample()
    rates = torch.tensor([0.3, 2.0])

    def model():
        regime = pyro.sample("regime", dist.Categorical(torch.tensor([0.4, 0.6])))
        law = SDEPath(OrnsteinUhlenbeck(rates[regime].unsqueeze(-1), 0.9), problem.initial, problem.grid)
        pyro.sample("z", law, obs=path)

    elbo = -TraceEnum_ELBO(max_plate_nesting=0).loss(config_enumerate(model), lambda: None)
    terms = [SDEPath(OrnsteinUhlenbeck(r, 0.9), problem.initial, problem.grid).log_prob(path) for r in rates]
    direct = torch.logaddexp(terms[0] + math.log(0.4), terms[1] + math.log(0.6))
    assert elbo == pytest.approx(direct.item(), abs=1e-10)


def test_mean_field_elbo_falls_back_to_the_ratio_for_one_law_at_two_sites():
    problem = LinearProblem(**COARSE)
    prior = problem.prior()

    def model():
        pyro.sample("a", prior)
        pyro.sample("b", prior)

    def guide():
        law = problem.posterior(problem.rows, problem.loc, problem.scale)
        pyro.sample("a", law)
        pyro.sample("b", law)

    torch.manual_seed(0)
    with torch.no_grad():
        shared = TraceMeanField_ELBO().loss(model, guide)
    torch.manual_seed(0)
    assert shared == pytest.approx(Trace_ELBO().loss(model, guide))


# ---------------------------------------------------------------- effect handlers
def test_condition_replay_block_and_substitute_see_an_ordinary_site():
    problem = LinearProblem(**COARSE)
    path = problem.prior().sample()
    conditioned = poutine.trace(poutine.condition(problem.model, data={"z": path})).get_trace()
    assert conditioned.nodes["z"]["is_observed"]
    expected = problem.prior().log_prob(path)
    conditioned.compute_log_prob()
    assert conditioned.nodes["z"]["log_prob"] == pytest.approx(expected.item())
    sampled = poutine.trace(problem.model).get_trace()
    replayed = poutine.trace(poutine.replay(problem.model, trace=sampled)).get_trace()
    assert replayed.nodes["z"]["value"] is sampled.nodes["z"]["value"]
    hidden = poutine.trace(poutine.block(problem.model, hide=["z"])).get_trace()
    assert set(hidden.stochastic_nodes) == set()


def test_scale_and_mask_act_on_the_whole_path():
    problem = LinearProblem(**COARSE)
    path = problem.prior().sample()

    def model():
        pyro.sample("z", problem.prior(), obs=path)

    log_prob = problem.prior().log_prob(path)
    assert poutine.trace(poutine.scale(model, scale=0.5)).get_trace().log_prob_sum() == pytest.approx(log_prob / 2)
    masked = poutine.mask(model, mask=torch.tensor(False))
    assert poutine.trace(masked).get_trace().log_prob_sum() == 0


def test_plates_expand_and_subsample_path_sites():
    grid = TimeGrid(torch.rand(5, 3).cumsum(-1), max_step=0.3)

    def model():
        with pyro.plate("particles", 4, dim=-2), pyro.plate("series", 5, subsample_size=2, dim=-1) as index:
            return pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, 1.0), initial, grid[index]))

    initial = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    trace = poutine.trace(model).get_trace()
    assert trace.nodes["z"]["value"].shape == (4, 2, grid.num_steps + 1, 2)
    trace.compute_log_prob()
    assert trace.nodes["z"]["log_prob"].shape == (4, 2)
    assert trace.nodes["z"]["scale"] == 2.5


@pytest.mark.parametrize("parallel", [True, False])
def test_predictive_shapes_and_values(parallel):
    problem = LinearProblem(**COARSE)
    size = problem.grid.num_steps + 1
    count = 2000 if parallel else 50
    samples = Predictive(problem.model, guide=problem.guide, num_samples=count, parallel=parallel)()
    assert samples["z"].shape == (count, size, 1)
    if parallel:
        mean, covariance = problem.dense(problem.rows, problem.loc, problem.scale)
        error = (samples["z"][..., 0].mean(0) - mean).abs() / (covariance.diagonal() / count).sqrt()
        assert error.max() < 4.5
    prior = Predictive(problem.model, num_samples=7, parallel=parallel, return_sites=["z"])()
    assert prior["z"].shape == (7, size, 1)


def test_render_model_lists_the_path_site():
    relations = get_model_relations(LinearProblem(**COARSE).model)
    assert "z" in relations["sample_sample"]["y"]


# ---------------------------------------------------------------- Bayesian drifts
class BayesianDrift(PyroModule):
    def __init__(self):
        super().__init__()
        self.rate = PyroSample(dist.LogNormal(0.0, 0.5))

    def forward(self, t, z):
        return -self.rate.unsqueeze(-1) * z


def unit(t, z):
    return torch.ones_like(z)


def test_a_bayesian_drift_is_scored_with_the_weights_it_was_sampled_with():
    grid = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.25)
    drift = BayesianDrift()

    def model():
        return pyro.sample("z", SDEPath(SDE(drift, unit), dist.Normal(torch.zeros(1), 1.0).to_event(1), grid))

    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    rate, path = trace.nodes["rate"]["value"], trace.nodes["z"]["value"]
    expected = SDEPath(OrnsteinUhlenbeck(rate, 1.0), dist.Normal(torch.zeros(1), 1.0).to_event(1), grid).log_prob(path)
    assert trace.nodes["z"]["log_prob"].item() == pytest.approx(expected.item(), abs=1e-12)


def test_lifted_parameters_are_scored_with_their_samples():
    grid = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.25)
    initial = dist.Normal(torch.zeros(1), 1.0).to_event(1)

    def drift(t, z):
        return -pyro.param("rate", torch.tensor(1.0)) * z

    def model():
        pyro.sample("z", SDEPath(SDE(drift, unit), initial, grid))

    trace = poutine.trace(poutine.lift(model, prior={"rate": dist.LogNormal(0.0, 1.0)})).get_trace()
    trace.compute_log_prob()
    rate, path = trace.nodes["rate"]["value"], trace.nodes["z"]["value"]
    expected = SDEPath(OrnsteinUhlenbeck(rate, 1.0), initial, grid).log_prob(path)
    assert trace.nodes["z"]["log_prob"].item() == pytest.approx(expected.item(), abs=1e-12)


# ---------------------------------------------------------------- MCMC
def test_nuts_finds_the_parameters_of_an_observed_path():
    torch.manual_seed(0)
    grid = TimeGrid(torch.linspace(0.0, 10.0, 101))
    initial = dist.Normal(torch.zeros(1), 1.0).to_event(1)
    path = SDEPath(OrnsteinUhlenbeck(1.0, 0.7), initial, grid).sample()

    def model():
        rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        pyro.sample("z", SDEPath(OrnsteinUhlenbeck(rate, scale), initial, grid), obs=path)

    mcmc = MCMC(NUTS(model, jit_compile=False), num_samples=80, warmup_steps=60, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples()
    # Oracle: the posterior on a grid of both parameters.
    rates, scales = torch.linspace(0.05, 4.0, 200), torch.linspace(0.4, 1.2, 150)
    mesh_rate, mesh_scale = torch.meshgrid(rates, scales, indexing="ij")
    law = SDEPath(OrnsteinUhlenbeck(mesh_rate.unsqueeze(-1), mesh_scale.unsqueeze(-1)), initial, grid)
    log_post = law.log_prob(path) + sum(dist.LogNormal(0.0, 1.0).log_prob(m) for m in (mesh_rate, mesh_scale))
    weight = (log_post - log_post.logsumexp((0, 1))).exp()
    for name, mesh in (("rate", mesh_rate), ("scale", mesh_scale)):
        mean = (weight * mesh).sum()
        spread = (weight * (mesh - mean) ** 2).sum().sqrt()
        assert abs(draws[name].mean() - mean) < 4 * spread / math.sqrt(80 / 3)  # an effective size of 1/3 is allowed


def test_nuts_runs_over_a_short_latent_path():
    problem = LinearProblem(**COARSE)
    mcmc = MCMC(NUTS(problem.model), num_samples=120, warmup_steps=80, disable_progbar=True)
    mcmc.run()
    mean, covariance = exact_path_posterior(problem)
    draws = mcmc.get_samples()["z"][..., 0]
    error = (draws.mean(0) - mean).abs() / (covariance.diagonal() / (120 / 4)).sqrt()
    assert error.max() < 4


# ---------------------------------------------------------------- automatic guides
AUTOGUIDES = {
    "AutoNormal": ag.AutoNormal,
    "AutoMultivariateNormal": ag.AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": ag.AutoLowRankMultivariateNormal,
    "AutoDelta": ag.AutoDelta,
    "AutoIAFNormal": ag.AutoIAFNormal,
}


@pytest.mark.parametrize("name", AUTOGUIDES)
@pytest.mark.parametrize("loss", [Trace_ELBO, PathELBO], ids=["Trace_ELBO", "PathELBO"])
def test_automatic_guides_work_on_a_path_site(name, loss):
    problem = LinearProblem(**COARSE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PathELBO warns about mean-field guides, once
        guide = AUTOGUIDES[name](problem.model)
        svi = SVI(problem.model, guide, pyro.optim.Adam({"lr": 0.03}), loss(num_particles=4))
        history = [svi.step() for _ in range(80)]
    assert sum(history[-10:]) < sum(history[:10])
    assert all(math.isfinite(value) for value in history)


@pytest.mark.parametrize(
    ("name", "warns"), [("AutoNormal", True), ("AutoDelta", True), ("AutoMultivariateNormal", False)]
)
def test_mean_field_guides_of_a_path_warn_once_and_name_alternatives(name, warns):
    problem = LinearProblem(**COARSE)
    guide, elbo = AUTOGUIDES[name](problem.model), PathELBO()
    guide()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        elbo.loss(problem.model, guide)
        elbo.loss(problem.model, guide)
    ours = [str(entry.message) for entry in caught if "site 'z'" in str(entry.message)]
    assert len(ours) == int(warns)
    assert all("AutoSDE" in message and "PathNoiseReparam" in message for message in ours)


def test_autoguide_for_globals_beside_a_path_guide():
    problem = LinearProblem(**COARSE)

    def model():
        noise = pyro.sample("noise", dist.LogNormal(-1.0, 0.5))
        z = pyro.sample("z", problem.prior())
        pyro.sample("y", dist.Normal(problem.grid.observed(z)[..., 0], noise).to_event(1), obs=problem.values)

    guide = ag.AutoGuideList(model)
    guide.append(ag.AutoNormal(poutine.block(model, hide=["z"])))
    guide.append(problem.guide)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), PathELBO(num_particles=4))
    history = [svi.step() for _ in range(60)]
    assert sum(history[-10:]) < sum(history[:10])


def test_registered_module_parameters_train_through_a_path_site():
    grid = TimeGrid(torch.linspace(0.0, 2.0, 5), max_step=0.2)
    prior = SDE(nn.Linear(1, 1), unit)
    prior.drift = _Stateless(nn.Linear(1, 1))
    initial = dist.Normal(torch.zeros(1), 1.0).to_event(1)
    path = SDEPath(OrnsteinUhlenbeck(1.5, 1.0), initial, grid).sample((64,))

    def model():
        pyro.module("prior", prior)
        with pyro.plate("series", 64):
            pyro.sample("z", SDEPath(prior, initial, grid), obs=path)

    before = prior.drift.net.weight.detach().clone()
    svi = SVI(model, lambda: None, pyro.optim.Adam({"lr": 0.05}), PathELBO())
    for _ in range(150):
        svi.step()
    assert not torch.equal(before, prior.drift.net.weight)
    assert abs(prior.drift.net.weight.item() + 1.5) < 0.5  # 64 paths of length 2: standard error about 0.15


class _Stateless(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, t, z):
        return self.net(z)
