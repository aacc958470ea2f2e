"""AutoGaussianMarkov: exact for linear-Gaussian models, near the best Gaussian elsewhere, and a good guest in Pyro."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam, ClippedAdam

from pyro_sde import GaussianPath, OrnsteinUhlenbeckPath, PathELBO, SDEPath, TimeGrid, check, load, save
from pyro_sde.distributions.base import PathDistribution
from pyro_sde.infer.auto_gaussian import AutoGaussianMarkov
from pyro_sde.sde import (
    SDE,
    GeometricBrownianMotion,
    Matern32,
    NeuralSDE,
    OrnsteinUhlenbeck,
    UnderdampedLangevin,
)

F64 = torch.float64
TIMES = torch.tensor([0.0, 0.5, 1.0, 1.2, 1.7], dtype=F64)
VALUES = torch.tensor([0.6, -0.4, -0.1, 0.9], dtype=F64)
RATE, SCALE, NOISE = 0.8, 0.9, 0.1  # noise is a variance
STATIONARY = SCALE / math.sqrt(2 * RATE)
EVIDENCE = -4.076609798  # specs: Euler chain at steps of 0.025, dense


@pytest.fixture(autouse=True)
def _clean():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def normal(dim=1, scale=1.0, dtype=F64):
    return dist.Normal(torch.zeros(dim, dtype=dtype), torch.full((dim,), scale, dtype=dtype)).to_event(1)


def train(model, guide, steps, lr, *args, loss=None):
    loss = loss or PathELBO()
    svi = SVI(model, guide, ClippedAdam({"lr": lr, "lrd": 0.02 ** (1 / steps)}), loss)
    return [svi.step(*args) for _ in range(steps)]


def particles(loss=PathELBO, count=1000, nesting=0, **options):
    return loss(num_particles=count, vectorize_particles=True, max_plate_nesting=nesting, **options)


def bound(model, guide, *args, loss=PathELBO, count=1000, **options):
    with torch.no_grad():
        return -particles(loss, count, **options).loss(model, guide, *args)


# --- linear priors ----------------------------------------------------------------------------------------------------

GRID = TimeGrid(TIMES[1:], max_step=0.025, start=0.0)
PRIORS = {
    "sde path": lambda: SDEPath(OrnsteinUhlenbeck(RATE, SCALE), normal(scale=STATIONARY), GRID),
    "gaussian path": lambda: GaussianPath(
        OrnsteinUhlenbeck(RATE, SCALE), normal(scale=STATIONARY), GRID, discretisation="euler"
    ),
    "ornstein-uhlenbeck path": lambda: OrnsteinUhlenbeckPath(
        *(torch.tensor([v], dtype=F64) for v in (RATE, SCALE, 0.0)), GRID.times
    ),
    "plain functions": lambda: SDEPath(
        SDE(lambda t, z: -RATE * z, lambda t, z: SCALE * torch.ones_like(z)), normal(scale=STATIONARY), GRID
    ),
}


def linear_model(name="sde path"):
    def model():
        z = pyro.sample("z", PRIORS[name]())
        pyro.sample("y", dist.Normal(GRID.observed(z)[..., 0], math.sqrt(NOISE)).to_event(1), obs=VALUES)

    return model


@pytest.mark.parametrize("name", ["sde path", "gaussian path", "plain functions"])
def test_one_natural_step_gives_the_evidence_path_by_path_where_all_is_gaussian(name):
    model = linear_model(name)
    guide = AutoGaussianMarkov(model, points="observed")
    guide.warm_up(num_steps=1, rate=1.0, num_particles=3)
    for kl in ("stl", "full"):
        losses = [-PathELBO(kl).loss(model, guide) for _ in range(4)]
        assert losses == pytest.approx([EVIDENCE] * 4, abs=2e-8)
    gradients = torch.autograd.grad(PathELBO().differentiable_loss(model, guide), list(guide.parameters()))
    assert max(gradient.norm().item() for gradient in gradients) < 1e-6


@pytest.mark.parametrize("name", sorted(PRIORS))
def test_natural_steps_on_all_grid_points_reach_the_evidence(name):
    guide = AutoGaussianMarkov(linear_model(name))
    guide.warm_up(num_steps=20)
    assert bound(linear_model(name), guide) == pytest.approx(EVIDENCE, abs=1e-3)


@pytest.mark.parametrize(("points", "slack"), [("grid", 0.02), ("observed", 1e-3)])
def test_training_alone_reaches_the_evidence(points, slack):
    guide = AutoGaussianMarkov(linear_model(), points=points)
    train(linear_model(), guide, 300, 0.1, loss=particles(count=8))
    assert EVIDENCE - slack < bound(linear_model(), guide) < EVIDENCE + 1e-3


@pytest.mark.parametrize("name", sorted(PRIORS))
@pytest.mark.parametrize("points", ["grid", "observed"])
def test_the_guide_starts_near_the_prior_with_finite_gradients(name, points):
    guide = AutoGaussianMarkov(linear_model(name), points=points)
    loss = PathELBO().differentiable_loss(linear_model(name), guide)
    posterior = guide.get_traces()[1].nodes["z"]["fn"]
    assert 0 <= torch.distributions.kl_divergence(posterior, PRIORS["gaussian path"]()).item() < 1e-3
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in guide.parameters())
    assert guide.sites.site("z").value_unconstrained.grad.any()
    assert guide.sites.site("z").log_precision_unconstrained.grad.any()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_start_does_not_depend_on_the_unit_of_the_state(scale):
    prior = GaussianPath(OrnsteinUhlenbeck(RATE, scale), normal(scale=scale), GRID)
    guide = AutoGaussianMarkov(lambda: pyro.sample("z", prior))
    guide()
    divergence = torch.distributions.kl_divergence(guide.get_traces()[1].nodes["z"]["fn"], prior).item()
    assert 1e-6 < divergence < 1e-3


def test_states_that_are_observed_together_need_the_mixing():
    grid = TimeGrid(TIMES[1:], start=0.0)
    prior = GaussianPath(OrnsteinUhlenbeck(RATE, SCALE, state_dim=3), None, grid)
    weights = torch.tensor([[1.0, 0.7, -0.4]], dtype=F64)

    def model():
        z = pyro.sample("z", prior)
        pyro.sample("y", dist.Normal(grid.observed(z) @ weights[0], 0.05).to_event(1), obs=VALUES)

    guide = AutoGaussianMarkov(model, points="observed")
    guide.warm_up(num_steps=1, rate=1.0)
    assert guide.sites.site("z").mixing_unconstrained.shape == (4, 3)
    evidence = prior.log_evidence(weights, 0.05, VALUES.unsqueeze(-1)).item()
    assert bound(model, guide) == pytest.approx(evidence, abs=0.01)


def test_estimators_and_importance_weights_agree():
    model = linear_model("plain functions")
    guide = AutoGaussianMarkov(model)
    guide.warm_up(num_steps=2)
    values = {kl: bound(model, guide, kl=kl, count=4000) for kl in ("stl", "full", "closed")}
    values["trace"] = bound(model, guide, loss=Trace_ELBO, count=4000)
    values["mean field"] = bound(model, guide, loss=TraceMeanField_ELBO, count=4000)
    assert max(values.values()) - min(values.values()) < 0.1, values
    assert bound(model, guide, loss=RenyiELBO, alpha=0, count=4000) == pytest.approx(EVIDENCE, abs=0.03)


# --- other likelihoods and priors -------------------------------------------------------------------------------------


def counts(prior, grid, y):
    def model():
        z = pyro.sample("z", prior)
        pyro.sample("y", dist.Poisson(grid.observed(z)[..., 0].exp()).to_event(1), obs=y)

    return model


def test_poisson_counts_of_a_matern_process():
    grid = TimeGrid(torch.linspace(0.0, 2.0, 60, dtype=F64))
    y = torch.poisson(torch.exp(torch.sin(3 * grid.times) + 0.5))
    model = counts(GaussianPath(Matern32(lengthscale=0.7), None, grid), grid, y)
    guide = AutoGaussianMarkov(model)
    guide.warm_up(num_steps=20)
    with torch.no_grad():
        evidence = -particles(RenyiELBO, 4000, alpha=0).loss(model, guide)
    value = bound(model, guide, count=4000)
    assert evidence - 0.3 < value < evidence + 0.02
    train(model, guide, 60, 0.01, loss=particles(count=4))  # a small rate keeps what the natural steps found
    assert value - 0.05 < bound(model, guide, count=4000) < evidence + 0.02

    pyro.clear_param_store()
    mean_field = AutoNormal(model)
    train(model, mean_field, 300, 0.05, loss=particles(Trace_ELBO, 4))
    assert bound(model, mean_field, loss=Trace_ELBO) < value - 5.0


def double_well(spread=0.1):
    """Observations near one well, then near the other, and the exact evidence by a filter on a fine mesh."""
    grid = TimeGrid(torch.tensor([0.2, 0.5, 0.9, 1.5], dtype=F64), max_step=0.02, start=0.0)
    y = torch.tensor([1.1, 0.4, -0.8, -0.9], dtype=F64)
    sde = SDE(lambda t, z: 4 * z * (1 - z * z), lambda t, z: torch.ones_like(z))
    start = dist.Normal(torch.ones(1, dtype=F64), spread).to_event(1)

    def model():
        z = pyro.sample("z", SDEPath(sde, start, grid))
        pyro.sample("y", dist.Normal(grid.observed(z)[..., 0], 0.1).to_event(1), obs=y)

    mesh = np.linspace(-3.0, 3.0, 801)
    steps, seen = grid.steps.numpy(), dict(zip(grid.observed_index.tolist(), y.tolist(), strict=True))
    weights = np.exp(-((mesh - 1) ** 2) / (2 * spread**2))
    weights, evidence = weights / weights.sum(), 0.0
    for k, h in enumerate(steps):
        mean = mesh + h * 4 * mesh * (1 - mesh**2)
        kernel = np.exp(-((mesh[:, None] - mean) ** 2) / (2 * h)) / math.sqrt(2 * math.pi * h) * (mesh[1] - mesh[0])
        weights = kernel @ weights
        if k + 1 in seen:
            weights = weights * np.exp(-((seen[k + 1] - mesh) ** 2) / 0.02) / math.sqrt(2 * math.pi * 0.01)
            evidence += math.log(weights.sum())
            weights = weights / weights.sum()
    return model, evidence


def test_double_well_paths_that_cross():
    model, evidence = double_well()
    guide = AutoGaussianMarkov(model)
    start = bound(model, guide)
    guide.warm_up()
    warm = bound(model, guide)
    train(model, guide, 150, 0.03, loss=particles(count=8))
    final = bound(model, guide, count=4000)
    assert start < evidence - 50
    assert warm > evidence - 3.0
    assert evidence - 1.2 < final < evidence
    assert final > warm - 0.1


def test_training_alone_crosses_the_double_well():
    model, evidence = double_well()
    guide = AutoGaussianMarkov(model)
    train(model, guide, 300, 0.05, loss=particles(count=4))
    assert evidence - 2.5 < bound(model, guide) < evidence


def test_degenerate_matrix_and_neural_priors_train():
    grid = TimeGrid(TIMES, max_step=0.25)
    matrix = torch.tensor([[0.5, 0.0, 0.1], [0.2, 0.3, 0.0]], dtype=F64)
    cases = {
        "langevin": UnderdampedLangevin(torch.neg, 0.5, 0.7),
        "matrix": SDE(lambda t, z: torch.sin(z) - z, lambda t, z: matrix, noise_type="additive"),
        "neural": NeuralSDE(2, (8,)).double(),
    }
    for name, sde in cases.items():
        pyro.clear_param_store()

        def model(sde=sde):
            pyro.module("sde", sde)
            z = pyro.sample("z", SDEPath(sde, normal(2), grid))
            pyro.sample("y", dist.Normal(grid.observed(z), 0.3).to_event(2), obs=torch.full((5, 2), 1.5, dtype=F64))

        guide = AutoGaussianMarkov(model)
        losses = train(model, guide, 40, 0.05, loss=particles(count=8))
        guide.warm_up(num_steps=10)
        losses.append(particles(count=8).loss(model, guide))
        assert sum(losses[30:40]) < 0.9 * sum(losses[:10]), name
        assert losses[-1] < sum(losses[:10]) / 10, name


def test_a_known_first_state_is_kept():
    point = dist.Delta(torch.ones(2, dtype=F64), event_dim=1)

    def model():
        with pyro.plate("series", 3):
            z = pyro.sample("z", SDEPath(NeuralSDE(2, (4,)).double(), point, TimeGrid(TIMES)))
            pyro.sample("y", dist.Normal(z, 0.1).to_event(2), obs=torch.zeros(3, 5, 2, dtype=F64))

    guide = AutoGaussianMarkov(model)
    guide.warm_up(num_steps=3)
    with pytest.warns(UserWarning, match="no param site covers"):
        train(model, guide, 2, 0.1)
    assert torch.equal(guide()["z"][:, 0], torch.ones(3, 2, dtype=F64))


def test_inputs_of_the_prior_stay_with_the_prior():
    grid = TimeGrid(TIMES, max_step=0.25)
    forcing = torch.randn(grid.num_steps, 1, dtype=F64)

    def model():
        sde = SDE(lambda t, z, u: u - z, lambda t, z: 0.5 * torch.ones_like(z))
        return pyro.sample("z", SDEPath(sde, normal(), grid, inputs=forcing))

    guide = AutoGaussianMarkov(model)
    guide()
    law = guide.get_traces()[1].nodes["z"]["fn"]
    mean = torch.zeros(1, dtype=F64)
    for k in range(grid.num_steps):
        mean = mean + (forcing[k] - mean) * grid.steps[k]
    torch.testing.assert_close(law.mean[-1], mean, rtol=0, atol=1e-6)


# --- hierarchical models, plates, ragged grids ------------------------------------------------------------------------


def hierarchical(grid):
    theta = pyro.sample("theta", dist.LogNormal(torch.tensor(0.0, dtype=F64), 0.5))
    sigma = pyro.sample("sigma", dist.LogNormal(torch.tensor(0.0, dtype=F64), 0.5))
    sde = OrnsteinUhlenbeck(theta.unsqueeze(-1), sigma.unsqueeze(-1))
    z = pyro.sample("z", SDEPath(sde, normal(), grid))
    pyro.sample("y", dist.Normal(grid.observed(z)[..., 0], math.sqrt(NOISE)).to_event(1), obs=VALUES)


def test_global_latents_are_learned_with_the_path():
    grid = TimeGrid(TIMES[1:], max_step=0.1, start=0.0)
    guide = AutoGaussianMarkov(hierarchical, points="observed")
    guide.warm_up(grid, num_steps=5)
    train(hierarchical, guide, 200, 0.03, grid, loss=particles(count=8))
    with torch.no_grad():
        evidence = -particles(RenyiELBO, 4000, alpha=0).loss(hierarchical, guide, grid)
    assert evidence - 0.3 < bound(hierarchical, guide, grid) < evidence + 0.02
    assert sorted(pyro.get_param_store().keys()) == sorted(
        [f"AutoGaussianMarkov.{site}.{key}" for site in ("theta", "sigma") for key in ("loc", "scale")]
        + ["AutoGaussianMarkov.z.value", "AutoGaussianMarkov.z.log_precision"]
    )
    assert guide.sites.site("z").value_unconstrained.shape == (4, 1)


def test_the_posterior_follows_the_sampled_parameters_of_the_prior():
    grid = TimeGrid(TIMES[1:], max_step=0.1, start=0.0)
    guide = AutoGaussianMarkov(hierarchical)
    with pyro.plate("draws", 3, dim=-1):
        guide(grid)
    law = guide.get_traces()[1].nodes["z"]["fn"]
    rate = guide.upstream_value("theta")
    torch.testing.assert_close(law.chain.transition[:, 0, 0, 0], 1 - rate * grid.steps[0], rtol=0.01, atol=0)


RAGGED = torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.3, 0.9], [0.0, 0.2, 0.2], [0.1, 0.7, 0.8]], dtype=F64)


def plate_model(grid, values, size, subsample_size=None):
    sde = SDE(lambda t, z: torch.sin(2 * z) - z, lambda t, z: 0.5 * torch.ones_like(z))
    with pyro.plate("series", size, subsample_size=subsample_size) as index:
        local = grid[index] if grid.batch_shape else grid
        z = pyro.sample("z", SDEPath(sde, normal(), local))
        law = dist.Normal(local.observed(z), 0.3).mask(local.mask.unsqueeze(-1)).to_event(2)
        pyro.sample("y", law, obs=values[index])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("points", ["grid", "observed"])
def test_subsampled_plates_train_the_rows_of_the_minibatch_only(shared, points):
    grid = TimeGrid(RAGGED[0] if shared else RAGGED, max_step=0.1)
    values = torch.randn(4, 3, 1, dtype=F64)
    guide = AutoGaussianMarkov(plate_model, points=points)
    guide(grid, values, 4)
    before = pyro.get_param_store()["AutoGaussianMarkov.z.value"].detach().clone()
    svi = SVI(plate_model, guide, Adam({"lr": 0.1}), PathELBO())
    pyro.set_rng_seed(1)
    svi.step(grid, values, 4, 2)
    pyro.set_rng_seed(1)
    with poutine.trace() as trace, pyro.plate("series", 4, subsample_size=2):
        pass
    chosen = set(trace.trace.nodes["series"]["value"].tolist())
    after = pyro.get_param_store()["AutoGaussianMarkov.z.value"]
    assert after.shape == (4, grid.num_steps + 1 if points == "grid" else 3, 1)
    assert {i for i in range(4) if (after[i] != before[i]).any()} == chosen


def test_first_call_on_a_minibatch_makes_rows_for_all_series():
    grid, values = TimeGrid(RAGGED, max_step=0.1), torch.randn(4, 3, 1, dtype=F64)
    guide = AutoGaussianMarkov(plate_model)
    guide(grid, values, 4, 2)
    assert pyro.get_param_store()["AutoGaussianMarkov.z.centre"].shape == (4, grid.num_steps + 1, 1)
    assert guide(grid, values, 4)["z"].shape == (4, grid.num_steps + 1, 1)


@pytest.mark.parametrize("points", ["grid", "observed"])
def test_ragged_series_have_the_posteriors_they_have_alone(points):
    values = torch.tensor(
        [[[0.5], [1.0], [-0.3]], [[0.4], [0.2], [0.0]], [[0.9], [1.1], [9.0]], [[0.0], [-1.0], [0.3]]]
    )
    values, grid = values.double(), TimeGrid(RAGGED, max_step=0.1)
    guide = AutoGaussianMarkov(plate_model, points=points)
    guide.warm_up(grid, values, 4, num_steps=15, num_particles=200)
    law = guide.get_traces()[1].nodes["z"]["fn"]
    together = law.mean[0, 2], law.variance[0, 2]

    pyro.clear_param_store()
    alone_grid = TimeGrid(RAGGED[2:3, :2], max_step=0.1)
    alone = AutoGaussianMarkov(plate_model, points=points)
    alone.warm_up(alone_grid, values[2:3, :2], 1, num_steps=15, num_particles=200)
    law = alone.get_traces()[1].nodes["z"]["fn"]
    count = alone_grid.num_steps + 1
    torch.testing.assert_close(together[0][:count], law.mean[0, 0], rtol=0, atol=0.05)
    torch.testing.assert_close(together[1][:count], law.variance[0, 0], rtol=0.15, atol=0)


@pytest.mark.parametrize("points", ["grid", "observed"])
def test_padding_has_no_pseudo_observations(points):
    grid, values = TimeGrid(RAGGED, max_step=0.1), torch.zeros(4, 3, 1, dtype=F64)
    guide = AutoGaussianMarkov(plate_model, points=points)
    means = []
    for _ in range(2):
        guide(grid, values, 4)
        means.append(guide.get_traces()[1].nodes["z"]["fn"].mean)
        with torch.no_grad():  # the third series ends at its second observation, the last one is padding
            guide.sites.site("z").value_unconstrained[2, -1] = 100.0
            guide.sites.site("z").log_precision_unconstrained[2, -1] = 1.0
    assert torch.equal(*means)


def test_missing_values_are_as_if_they_were_not_there():
    y = torch.where(torch.tensor([True, False, True, True]), VALUES, torch.tensor(0.0, dtype=F64))

    def model(mask):
        z = pyro.sample("z", PRIORS["sde path"]())
        law = dist.Normal(GRID.observed(z)[..., 0], math.sqrt(NOISE)).mask(mask)
        pyro.sample("y", law.to_event(1), obs=y)

    mask = torch.tensor([True, False, True, True])
    guide = AutoGaussianMarkov(model, points="observed")
    guide.warm_up(mask, num_steps=1, rate=1.0)
    exact = PRIORS["gaussian path"]().log_evidence(None, math.sqrt(NOISE), y.unsqueeze(-1), mask).item()
    assert bound(model, guide, mask) == pytest.approx(exact, abs=1e-3)


def test_masks_and_event_wrappers_stay_around_the_posterior():
    grid = TimeGrid(TIMES, max_step=0.25)
    mask = torch.tensor([True, False, True])

    def model():
        law = SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(2).expand([3]), grid)
        z = pyro.sample("z", law.mask(mask).to_event(1))
        pyro.sample("y", dist.Normal(z[..., -1, :], 0.1).to_event(2), obs=torch.ones(3, 2, dtype=F64))

    guide = AutoGaussianMarkov(model)
    train(model, guide, 3, 0.1)
    guide.warm_up(num_steps=3)
    assert pyro.get_param_store()["AutoGaussianMarkov.z.value"].shape == (3, grid.num_steps + 1, 2)
    trace = poutine.trace(guide).get_trace()
    trace.compute_log_prob()
    law = trace.nodes["z"]["fn"].base_dist.base_dist
    expected = law.log_prob(trace.nodes["z"]["value"])[mask].sum()
    assert trace.nodes["z"]["log_prob"].item() == pytest.approx(expected.item())
    assert (law.mean[0, -1] - 1).abs().max() < 0.1


def test_two_paths_and_names_of_module_methods():
    grid = TimeGrid(TIMES, max_step=0.5)

    def model():
        rate = pyro.sample("type", dist.Gamma(torch.tensor(2.0, dtype=F64), 2.0))
        with pyro.plate("series", 3):
            shift = pyro.sample("half", dist.Beta(torch.ones(2, dtype=F64), 2.0).to_event(1))
            sde = OrnsteinUhlenbeck(rate.unsqueeze(-1), 0.5, shift)
            z = pyro.sample("train", SDEPath(sde, normal(2), grid))
            x = pyro.sample("x", GaussianPath(Matern32(lengthscale=1.0), None, grid))
            mean = grid.observed(z) + grid.observed(x)[..., :1]
            pyro.sample("y", dist.Normal(mean, 0.5).to_event(2), obs=torch.ones(3, 5, 2, dtype=F64))

    guide = AutoGaussianMarkov(model)
    guide.warm_up(num_steps=5)
    losses = train(model, guide, 40, 0.05, loss=PathELBO(num_particles=4, vectorize_particles=True))
    assert sum(losses[-10:]) < sum(losses[:10])
    store = pyro.get_param_store()
    assert store["AutoGaussianMarkov.type.loc"].shape == ()
    assert store["AutoGaussianMarkov.train.value"].shape == (3, grid.num_steps + 1, 2)
    assert store["AutoGaussianMarkov.x.mixing"].shape == (3, grid.num_steps + 1, 1)
    values = guide()
    assert values["train"].shape == (3, grid.num_steps + 1, 2)
    assert ((values["half"] > 0) & (values["half"] < 1)).all()
    assert not check(model, guide)


def test_first_call_inside_vectorised_particles_shares_parameters():
    grid = TimeGrid(TIMES[1:], max_step=0.5, start=0.0)
    train(hierarchical, AutoGaussianMarkov(hierarchical), 2, 0.01, grid, loss=particles(count=5))
    shapes = {name: tuple(value.shape) for name, value in pyro.get_param_store().items()}
    assert shapes["AutoGaussianMarkov.theta.loc"] == ()
    assert shapes["AutoGaussianMarkov.z.value"] == (grid.num_steps + 1, 1)


# --- Pyro's services --------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_fit():
    fits = []
    for _ in range(2):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        guide = AutoGaussianMarkov(linear_model("plain functions"))
        guide.warm_up(num_steps=3)
        train(linear_model("plain functions"), guide, 3, 0.05)
        fits.append([parameter.detach().clone() for parameter in guide.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*fits, strict=True))


def test_predictive_draws_posterior_paths():
    grid = TimeGrid(TIMES[1:], max_step=0.25, start=0.0)
    guide = AutoGaussianMarkov(hierarchical)
    train(hierarchical, guide, 3, 0.1, grid)
    for parallel in (False, True):
        draws = Predictive(hierarchical, guide=guide, num_samples=6, parallel=parallel, return_sites=["z", "theta"])(
            grid
        )
        assert draws["z"].shape == (6, grid.num_steps + 1, 1)
        assert draws["theta"].shape == (6,)


def module_model():
    grid = TimeGrid(TIMES, max_step=0.25)
    scale = pyro.sample("scale", dist.LogNormal(torch.tensor(0.0, dtype=F64), 0.1))
    sde = SDE(lambda t, z: torch.cos(z), lambda t, z: scale.unsqueeze(-1) * torch.ones_like(z))
    z = pyro.sample("z", SDEPath(sde, normal(), grid))
    pyro.sample("y", dist.Normal(z[..., -1, 0], 0.1), obs=VALUES[0])


def test_guides_can_be_pickled_and_copied():
    guide = AutoGaussianMarkov(module_model)
    train(module_model, guide, 3, 0.1)
    pyro.set_rng_seed(7)
    expected = guide()["z"]
    for clone in (pickle.loads(pickle.dumps(guide)), copy.deepcopy(guide)):
        pyro.clear_param_store()
        pickle.dumps(clone)
        pyro.set_rng_seed(7)
        assert torch.equal(clone()["z"], expected)
        assert len(list(clone.parameters())) == len(list(guide.parameters()))


def test_torch_optimisers_train_every_parameter():
    guide = AutoGaussianMarkov(module_model)
    guide()
    elbo = PathELBO()(module_model, guide)
    optimizer = torch.optim.Adam(elbo.parameters(), lr=0.1)
    before = [parameter.clone() for parameter in guide.parameters()]
    for _ in range(3):
        optimizer.zero_grad()
        elbo().backward()
        optimizer.step()
    names = [name for name, _ in guide.named_parameters()]
    still = [name for name, old, new in zip(names, before, guide.parameters(), strict=True) if torch.equal(old, new)]
    assert not still


@pytest.mark.parametrize("points", ["grid", "observed"])
def test_float32_trains_as_float64(points):
    def model(dtype):
        grid = TimeGrid(TIMES.to(dtype), max_step=0.25)
        sde = SDE(lambda t, z: torch.cos(z), lambda t, z: 0.5 * torch.ones_like(z))
        z = pyro.sample("z", SDEPath(sde, normal(2, dtype=dtype), grid))
        pyro.sample("y", dist.Normal(z[..., -1, 0], 0.1), obs=VALUES[0].to(dtype))

    means = []
    for dtype in (torch.float32, torch.float64):
        pyro.clear_param_store()
        guide = AutoGaussianMarkov(model, points=points)
        guide.warm_up(dtype, num_steps=8, num_particles=200)
        train(model, guide, 3, 0.001, dtype)
        assert {value.dtype for _, value in pyro.get_param_store().items()} == {dtype}
        assert guide(dtype)["z"].dtype == dtype
        means.append(guide.get_traces()[1].nodes["z"]["fn"].mean.double())
    torch.testing.assert_close(*means, rtol=0, atol=0.1)


def test_two_guides_in_one_store_share_values_and_refuse_other_shapes():
    model = linear_model()
    first = AutoGaussianMarkov(model)
    train(model, first, 3, 0.1)
    second = AutoGaussianMarkov(model)
    second()
    for (name, ours), theirs in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    match = r"parameter 'AutoGaussianMarkov.z.value' has shape \(69, 1\), but the model now needs \(4, 1\)"
    with pytest.raises(ValueError, match=match):
        AutoGaussianMarkov(model, points="observed")()


def test_get_posterior_can_be_overridden_and_warming_up_leaves_such_sites_alone():
    class Mine(AutoGaussianMarkov):
        def get_posterior(self, name, prior):
            return PRIORS["gaussian path"]() if name == "z" else super().get_posterior(name, prior)

    def model():
        z = pyro.sample("z", PRIORS["sde path"]())
        x = pyro.sample("x", PRIORS["gaussian path"]())
        pyro.sample("y", dist.Normal(z[..., -1, 0] + x[..., -1, 0], 0.1), obs=VALUES[0])

    guide = Mine(model)
    guide.warm_up(num_steps=2)
    train(model, guide, 2, 0.1)
    assert not [name for name in pyro.get_param_store().keys() if ".z." in name]  # noqa: SIM118
    assert pyro.get_param_store()["AutoGaussianMarkov.x.value"].shape == (69, 1)


def test_checkpoints_restore_the_guide(tmp_path):
    model = linear_model("plain functions")
    guide = AutoGaussianMarkov(model)
    guide.warm_up(num_steps=2)
    mean = guide.get_traces()[1].nodes["z"]["fn"].mean[0]
    save(tmp_path / "fit.pt", guide=guide)
    pyro.clear_param_store()
    other = AutoGaussianMarkov(model)
    other()
    load(tmp_path / "fit.pt", guide=other)
    other()
    assert not torch.equal(mean, mean * 0)
    for one, two in zip(guide.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


# --- errors -----------------------------------------------------------------------------------------------------------


class OtherPath(PathDistribution):
    def __init__(self):
        super().__init__(normal(), torch.Size(), 3)

    def simulate(self, initial):
        return initial.unsqueeze(-2).expand(*initial.shape[:-1], 3, 1)

    def kernels(self, path):
        raise NotImplementedError

    def check_same_grid(self, other):
        pass


def test_sites_without_a_gaussian_posterior_are_refused_with_advice():
    with pytest.raises(ValueError, match=r"site 'k' is discrete \(Bernoulli\), but AutoGaussianMarkov has continuous"):
        AutoGaussianMarkov(lambda: pyro.sample("k", dist.Bernoulli(0.5)))()
    with pytest.raises(
        TypeError, match="site 'z': AutoGaussianMarkov builds posteriors of SDEPath and GaussianPath laws"
    ):
        AutoGaussianMarkov(lambda: pyro.sample("z", OtherPath()))()
    positive = dist.LogNormal(torch.zeros(2, dtype=F64), 0.3).to_event(1)
    prior = SDEPath(GeometricBrownianMotion(0.1, 0.4), positive, TimeGrid(TIMES))
    with pytest.raises(ValueError, match="site 'z': a Gaussian posterior needs a first state with real values"):
        AutoGaussianMarkov(lambda: pyro.sample("z", prior))()


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"`points` must be one of \('grid', 'observed'\), received 'all'"):
        AutoGaussianMarkov(linear_model(), points="all")
    with pytest.raises(ValueError, match="`init_scale` must be a number > 0, received 0"):
        AutoGaussianMarkov(linear_model(), init_scale=0)
    guide = AutoGaussianMarkov(linear_model())
    with pytest.raises(ValueError, match=r"`rate` must be a number in \(0, 1\], received 1.5"):
        guide.warm_up(rate=1.5)
    with pytest.raises(ValueError, match="`num_steps` must be an integer >= 1, received 0"):
        guide.warm_up(num_steps=0)
    with pytest.raises(ValueError, match="`num_particles` must be an integer >= 1, received 0"):
        guide.warm_up(num_particles=0)
    with pytest.raises(ValueError, match="`num_particles` must be >= 3 at site 'z' of 1 states, received 2"):
        guide.warm_up(num_particles=2)


def test_warming_up_needs_paths_and_all_series():
    with pytest.raises(ValueError, match="no latent path site of this guide"):
        AutoGaussianMarkov(lambda: pyro.sample("x", dist.Normal(0.0, 1.0))).warm_up(num_steps=1)
    grid = TimeGrid(RAGGED, max_step=0.1)
    match = "`warm_up` needs all series at once, but site 'z' sees 2 of 4 in plate 'series'"
    with pytest.raises(ValueError, match=match):
        AutoGaussianMarkov(plate_model).warm_up(grid, torch.zeros(4, 3, 1, dtype=F64), 4, 2)
