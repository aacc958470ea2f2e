"""GaussianMarkov: exact where everything is Gaussian, near the prior at the start, finite for any prior."""

from __future__ import annotations

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.optim import ClippedAdam
from torch.testing import assert_close

from pyro_sde.distributions import GaussianPath, OrnsteinUhlenbeckPath, SDEPath, path_kl
from pyro_sde.guides import EncodedSites, FreeSites, GaussianMarkov, ObservedSites, PseudoObservations
from pyro_sde.infer import PathELBO
from pyro_sde.nn import GRUEncoder
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.sde import SDE, Matern32, NeuralSDE, OrnsteinUhlenbeck, UnderdampedLangevin

F64 = torch.float64
RATE, SCALE, NOISE = 0.8, 0.9, math.sqrt(0.1)
VALUES = torch.tensor([0.6, -0.4, -0.1, 0.9], dtype=F64)
STATIONARY = dist.Normal(torch.zeros(1, dtype=F64), SCALE / math.sqrt(2 * RATE)).to_event(1)
EVIDENCE = {0.05: -4.070957910, 0.025: -4.076609798, 0.0125: -4.079495885}  # specs: the Euler chain, dense


def linear_grid(max_step=0.05, dtype=F64):
    return TimeGrid(torch.tensor([0.5, 1.0, 1.2, 1.7], dtype=dtype), max_step=max_step, start=0.0)


def linear_priors(grid):
    sde = OrnsteinUhlenbeck(RATE, SCALE)
    one = torch.ones(1, dtype=F64)
    return {
        "sde path": SDEPath(sde, STATIONARY, grid),
        "gaussian path": GaussianPath(sde, STATIONARY, grid, discretisation="euler"),
        "plain functions": SDEPath(SDE(lambda t, z: -RATE * z, lambda t, z: SCALE * one), STATIONARY, grid),
        "ornstein-uhlenbeck path": OrnsteinUhlenbeckPath(RATE * one, SCALE * one, 0 * one, grid.times),
    }


def exact_sites(sites, at=slice(None)):
    """The pseudo-observations that are the observations."""
    with torch.no_grad():
        sites.log_precision.fill_(-2.0)  # exp(-20): nothing
        sites.value[at] = VALUES.unsqueeze(-1)
        sites.log_precision[at] = -2 * math.log(NOISE) / 10
    return sites


def pair(prior, guide, grid=None):
    grid = prior.grid if grid is None else grid

    def model():
        z = pyro.sample("z", prior)
        pyro.sample("y", dist.Normal(grid.observed(z)[..., 0], NOISE).to_event(1), obs=VALUES)

    return model, lambda: pyro.sample("z", guide(prior))


# --- linear priors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_step", sorted(EVIDENCE))
@pytest.mark.parametrize("name", ["sde path", "gaussian path", "plain functions"])
def test_the_bound_of_exact_sites_is_the_evidence_path_by_path_and_its_gradient_is_zero(name, max_step):
    prior = linear_priors(linear_grid(max_step))[name]
    guide = GaussianMarkov(exact_sites(FreeSites(4, 1).double()))
    model, run = pair(prior, guide)
    evidence = GaussianPath(
        OrnsteinUhlenbeck(RATE, SCALE), STATIONARY, prior.grid, discretisation="euler"
    ).log_evidence(None, NOISE, VALUES.unsqueeze(-1))
    assert evidence.item() == pytest.approx(EVIDENCE[max_step], abs=1e-9)
    for kl in ("stl", "full"):
        for _ in range(3):
            assert -PathELBO(kl).loss(model, run) == pytest.approx(evidence.item(), abs=1e-10)
    loss = PathELBO("stl", num_particles=4).differentiable_loss(model, run)
    gradients = torch.autograd.grad(loss, list(guide.sites.parameters()))
    assert max(gradient.norm().item() for gradient in gradients) < 1e-12


def test_sites_at_all_grid_points_know_where_they_are():
    grid = linear_grid()
    prior = linear_priors(grid)["sde path"]
    sites = exact_sites(FreeSites(grid.num_steps + 1, 1).double(), grid.observed_index)
    model, run = pair(prior, GaussianMarkov(sites))
    assert -PathELBO().loss(model, run) == pytest.approx(EVIDENCE[0.05], abs=1e-6)


def test_the_closed_divergence_has_the_mean_of_the_log_ratio():
    prior = linear_priors(linear_grid())["sde path"]
    law = GaussianMarkov(exact_sites(FreeSites(4, 1).double()))(prior)
    pyro.set_rng_seed(0)
    path = law.rsample((4000,))
    exact = torch.distributions.kl_divergence(law, linear_priors(linear_grid())["gaussian path"])
    closed, ratio = path_kl(law, prior, path), law.log_prob(path) - prior.log_prob(path)
    for estimate in (closed, ratio):
        assert abs(estimate.mean() - exact) < 4.5 * estimate.std() / math.sqrt(4000)


def test_training_reaches_the_evidence():
    prior = linear_priors(linear_grid())["sde path"]
    guide = GaussianMarkov(FreeSites(4, 1).double())
    model, run = pair(prior, guide)
    pyro.set_rng_seed(0)
    loss = PathELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(model, run, ClippedAdam({"lr": 0.1, "lrd": 0.01 ** (1 / 200)}), loss)
    for _ in range(200):
        svi.step()
    law = guide(prior)
    mean, variance = law.mean, law.variance
    likelihood = -0.5 * (
        ((VALUES - prior.grid.observed(mean)[:, 0]) ** 2 + prior.grid.observed(variance)[:, 0]) / NOISE**2
    )
    likelihood = (likelihood - 0.5 * math.log(2 * math.pi * NOISE**2)).sum()
    bound = likelihood - torch.distributions.kl_divergence(law, linear_priors(linear_grid())["gaussian path"])
    assert EVIDENCE[0.05] - 1e-3 < bound.item() < EVIDENCE[0.05] + 1e-9


def test_an_exact_gaussian_path_gets_its_exact_posterior():
    grid = TimeGrid(torch.tensor([0.0, 0.3, 1.0, 1.1], dtype=F64))
    prior = GaussianPath(Matern32(lengthscale=0.5), None, grid)
    sites = FreeSites(4, 2).double()
    with torch.no_grad():
        sites.value.normal_()
    law = GaussianMarkov(sites)(prior)
    deviation = math.sqrt(1e3) * torch.ones(2, dtype=F64)
    expected = prior.condition(torch.eye(2, dtype=F64), deviation, sites.value.detach())
    assert_close(law.mean, expected.mean, rtol=1e-6, atol=1e-8)
    assert_close(law.variance, expected.variance, rtol=1e-6, atol=1e-8)


# --- any prior --------------------------------------------------------------------------------------------------------

PRIORS = {
    "double well": lambda: SDE(lambda t, z: 4 * z * (1 - z * z), lambda t, z: 0.8 * torch.ones_like(z)),
    "neural": lambda: NeuralSDE(2, (8,)).double(),
    "noise-free state": lambda: UnderdampedLangevin(lambda x: -x, 0.5, 0.7),
    "matrix noise": lambda: SDE(
        lambda t, z: torch.sin(z) - z,
        lambda t, z: torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.3, 2.0]], dtype=F64),
        noise_type="additive",
    ),
    "multiplicative": lambda: SDE(lambda t, z: -z, lambda t, z: 0.5 + 0.2 * torch.sin(z)),
}


def normal(dim=2, dtype=F64):
    return dist.Normal(torch.full((dim,), 0.3, dtype=dtype), 0.5).to_event(1)


@pytest.mark.parametrize("name", sorted(PRIORS))
@pytest.mark.parametrize("kl", ["stl", "full", "closed"])
def test_every_estimator_has_finite_gradients_from_the_start(name, kl):
    grid = TimeGrid(torch.tensor([0.0, 0.4, 1.0], dtype=F64), max_step=0.1)
    prior = SDEPath(PRIORS[name]().requires_grad_(False), normal(), grid)
    guide = GaussianMarkov(FreeSites(grid.num_steps + 1, 2).double())

    def model():
        z = pyro.sample("z", prior)
        pyro.sample("y", dist.Poisson(grid.observed(z)[..., 0].exp()).to_event(1), obs=torch.tensor([1.0, 2.0, 0.0]))

    loss = PathELBO(kl).differentiable_loss(model, lambda: pyro.sample("z", guide(prior)))
    gradients = torch.autograd.grad(loss, list(guide.sites.parameters()))
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() and gradient.any() for gradient in gradients)


def test_the_reference_of_a_nonlinear_prior_has_the_covariance_of_its_steps():
    grid = TimeGrid(torch.tensor([0.0, 1.0], dtype=F64), max_step=0.01)
    prior = SDEPath(PRIORS["double well"](), normal(), grid)
    law = GaussianMarkov(FreeSites(grid.num_steps + 1, 2, precision=1e-9).double())(prior)
    expected = 0.64 * grid.steps[:, None, None] * torch.eye(2, dtype=F64)
    assert_close(law.chain.noise, expected, rtol=1e-6, atol=0)


def test_linearisations_follow_the_posterior_mean():
    grid = TimeGrid(torch.tensor([0.0, 0.5, 1.0], dtype=F64), max_step=0.02)
    sde = PRIORS["double well"]()
    start = dist.Normal(torch.ones(1, dtype=F64), 0.1).to_event(1)
    sites = FreeSites(grid.num_steps + 1, 1).double()
    with torch.no_grad():
        sites.value[25:] = -1.0  # in the other well
        sites.log_precision[25:] = 0.3
    prior = SDEPath(sde, start, grid)
    means = [GaussianMarkov(sites, iterations=n)(prior).mean[..., 0] for n in (1, 19, 20)]
    assert_close(means[1], means[2], rtol=0, atol=1e-5)  # a fixed point
    assert (means[0] - means[1]).abs().max() > 0.05


def test_the_first_linearisation_is_about_the_path_without_noise():
    grid = TimeGrid(torch.tensor([0.0, 1.0], dtype=F64), max_step=0.02)
    prior = SDEPath(PRIORS["double well"](), normal(1), grid)
    sites = FreeSites(grid.num_steps + 1, 1, precision=5.0).double()
    chain = GaussianMarkov(sites, iterations=1)(prior).chain
    noise = 0.64 * grid.steps
    slope = chain.transition[:, 0, 0] * noise / chain.noise[:, 0, 0]  # A' = A / (1 + Q J), Q' = Q / (1 + Q J)
    mean = torch.tensor([0.3], dtype=F64)
    for k, step in enumerate(grid.steps):
        assert slope[k].item() == pytest.approx((1 + step * (4 - 12 * mean**2)).item(), rel=1e-9)
        mean = mean + step * 4 * mean * (1 - mean**2)


def test_fine_grids_cost_nothing_where_the_noise_is_additive():
    def divergence(max_step, sde):
        grid = TimeGrid(torch.tensor([0.0, 1.0], dtype=F64), max_step=max_step)
        prior = SDEPath(sde, normal(), grid)
        law = GaussianMarkov(ObservedSites(1, 2).double())(prior, torch.zeros(2, 1, dtype=F64))
        pyro.set_rng_seed(0)
        return path_kl(law, prior, law.rsample((400,))).mean().item()

    additive, multiplicative = PRIORS["double well"](), PRIORS["multiplicative"]()
    assert divergence(0.005, additive) < 1.3 * divergence(0.02, additive)
    assert divergence(0.005, multiplicative) > 3 * divergence(0.02, multiplicative)  # as the docstring says


def test_a_reference_replaces_the_linearisation():
    grid = TimeGrid(torch.tensor([0.0, 0.4, 1.0], dtype=F64), max_step=0.1)
    prior = SDEPath(PRIORS["double well"](), normal(), grid)
    reference = OrnsteinUhlenbeck(torch.nn.Parameter(torch.tensor(2.0, dtype=F64)), 0.8, state_dim=2)
    law = GaussianMarkov(FreeSites(3, 2, precision=1e-12).double(), reference=reference)(prior)
    assert_close(law.chain.transition[0], (1 - 0.2) * torch.eye(2, dtype=F64), rtol=0, atol=1e-9)
    law.rsample().sum().backward()
    assert [parameter.grad is not None for parameter in reference.parameters()] == [True]


# --- amortised --------------------------------------------------------------------------------------------------------

MAKE = {
    "observed": lambda: ObservedSites(1, 2, (8,)),
    "encoded": lambda: EncodedSites(GRUEncoder(1, 2, 6, hidden=8)),
}
TIMES = torch.tensor([[0.0, 0.4, 1.0, 1.3], [0.2, 0.5, 0.6, 2.0]], dtype=F64)


def amortised(name, noisy=False):
    guide = GaussianMarkov(MAKE[name]()).double()
    if noisy:
        for parameter in guide.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return guide


@pytest.mark.parametrize("name", sorted(MAKE))
@pytest.mark.parametrize("linear", [True, False])
def test_what_is_masked_has_no_influence(name, linear):
    grid, values = TimeGrid(TIMES, max_step=0.25), torch.randn(2, 4, 1, dtype=F64)
    prior = SDEPath(OrnsteinUhlenbeck(0.7, 0.5) if linear else PRIORS["double well"](), normal(), grid)
    mask = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0]]).bool()
    guide = amortised(name, noisy=True)
    spoilt = torch.where(mask[..., None], values, torch.nan)
    path = prior.sample()
    expected = guide(prior, values, mask).log_prob(path)
    assert torch.equal(guide(prior, spoilt, mask).log_prob(path), expected)
    assert torch.equal(guide(prior, spoilt, mask.unsqueeze(-1)).log_prob(path), expected)
    assert not torch.allclose(guide(prior, values).log_prob(path), expected)


def test_a_missing_observation_has_no_pseudo_observation():
    grid, values = TimeGrid(TIMES[0], max_step=0.25), torch.randn(4, 1, dtype=F64)
    prior = SDEPath(OrnsteinUhlenbeck(0.7, 0.5, state_dim=2), normal(), grid)
    guide = amortised("observed", noisy=True)
    law = guide(prior, values, torch.zeros(4, dtype=torch.bool))
    assert_close(law.mean, GaussianPath(prior.sde, normal(), grid, discretisation="euler").mean, rtol=0, atol=1e-12)


def test_a_time_with_one_observed_channel_counts():
    grid, values = TimeGrid(TIMES[0], max_step=0.25), torch.randn(4, 2, dtype=F64)
    prior = SDEPath(OrnsteinUhlenbeck(0.7, 0.5, state_dim=2), normal(), grid)
    guide = GaussianMarkov(ObservedSites(2, 2, (8,), precision=10.0)).double()
    mask = torch.ones(4, 2, dtype=torch.bool)
    mask[2, 0] = False
    nothing = mask.clone()
    nothing[2] = False
    variances = [guide(prior, values, m).variance for m in (mask, nothing)]
    assert (variances[0] < variances[1] - 1e-3).any()


@pytest.mark.parametrize("name", sorted(MAKE))
def test_a_padded_series_has_the_law_it_has_alone(name):
    times = torch.tensor([[0.0, 0.4, 1.0, 1.3], [0.2, 0.5, 0.5, 0.5]], dtype=F64)
    values = torch.randn(2, 4, 1, dtype=F64)
    guide, sde = amortised(name, noisy=True), PRIORS["double well"]()
    batch = guide(SDEPath(sde, normal(), TimeGrid(times, max_step=0.25)), values)
    alone = guide(SDEPath(sde, normal(), TimeGrid(times[1, :2], max_step=0.25)), values[1, :2])
    count = alone.event_shape[0]
    assert_close(batch.mean[1, :count], alone.mean, rtol=0, atol=1e-12)
    assert_close(batch.variance[1, :count], alone.variance, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", sorted(MAKE))
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_training_moves_every_parameter_in_either_dtype(name, dtype):
    grid, values = TimeGrid(TIMES.to(dtype), max_step=0.25), torch.randn(2, 4, 1, dtype=dtype)
    guide, sde = GaussianMarkov(MAKE[name]()).to(dtype), NeuralSDE(2, (8,)).to(dtype)
    initial = normal(dtype=dtype)

    def model():
        pyro.module("prior", sde)
        with pyro.plate("series", 2):
            z = pyro.sample("z", SDEPath(sde, initial, grid))
            pyro.sample("y", dist.Normal(grid.observed(z)[..., :1], 0.1).to_event(2), obs=values)

    def run():
        with pyro.plate("series", 2):
            z = pyro.sample("z", pyro.module("guide", guide)(SDEPath(sde, initial, grid), values))
        assert z.dtype == dtype

    pyro.clear_param_store()
    before = {key: p.detach().clone() for key, p in guide.named_parameters()}
    svi = SVI(model, run, ClippedAdam({"lr": 1e-2}), PathELBO())
    losses = [svi.step() for _ in range(3)]
    assert torch.isfinite(torch.tensor(losses)).all()
    still = [key for key, p in guide.named_parameters() if torch.equal(p, before[key])]
    assert [key for key in still if "initial_head" not in key] == []  # an encoder's scale of z_0 is not used
    assert not {id(p) for p in guide.parameters()} & {id(p) for p in sde.parameters()}


def test_a_trained_network_serves_new_series():
    grid = TimeGrid(torch.linspace(0.0, 2.0, 11, dtype=F64))
    prior = GaussianPath(OrnsteinUhlenbeck(1.0, 1.0, state_dim=1), None, grid)
    guide = GaussianMarkov(ObservedSites(1, 1, (16,)).double())
    pyro.set_rng_seed(1)
    series = prior.sample((64,))
    values = series + 0.3 * torch.randn_like(series)

    def model(y):
        with pyro.plate("series", len(y)):
            z = pyro.sample("z", prior)
            pyro.sample("y", dist.Normal(z, 0.3).to_event(2), obs=y)

    def run(y):
        with pyro.plate("series", len(y)):
            pyro.sample("z", pyro.module("guide", guide)(prior, y))

    pyro.clear_param_store()
    svi = SVI(model, run, ClippedAdam({"lr": 0.03, "lrd": 0.02 ** (1 / 150)}), PathELBO())
    for _ in range(150):
        svi.step(values[:48])
    new = values[48:]
    exact = prior.log_evidence(torch.eye(1, dtype=F64), 0.3, new).sum().item()
    with torch.no_grad():
        bound = -PathELBO(num_particles=20).loss(model, run, new)
    assert exact - 2.0 < bound < exact + 0.5  # 16 series of 11 observations


# --- services and errors ----------------------------------------------------------------------------------------------


def test_a_call_registers_all_parameters_and_it_can_be_copied():
    pyro.clear_param_store()
    guide, prior = GaussianMarkov(FreeSites(4, 1).double()), linear_priors(linear_grid())["sde path"]
    law = guide(prior)
    stored = dict(pyro.get_param_store().named_parameters())
    assert sorted(stored) == ["gaussian_markov.sites$$$log_precision", "gaussian_markov.sites$$$value"]
    for other in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        assert torch.equal(other(prior).mean, law.mean)


def test_series_of_a_batch_have_their_own_free_sites():
    prior = linear_priors(linear_grid())["sde path"]
    sites = FreeSites(4, 1, (3,)).double()
    with torch.no_grad():
        sites.value[1] = 5.0
    law = GaussianMarkov(sites)(prior)
    assert law.batch_shape == (3,)
    assert_close(law.mean[0], law.mean[2])
    assert (law.mean[1] > law.mean[0]).all()


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (
            lambda: GaussianMarkov(3),
            TypeError,
            "`sites` must be a module that returns PseudoObservations, received int",
        ),
        (
            lambda: GaussianMarkov(FreeSites(2, 1), reference=NeuralSDE(1)),
            TypeError,
            "`reference` must be a LinearSDE, received NeuralSDE",
        ),
        (lambda: GaussianMarkov(FreeSites(2, 1), iterations=0), ValueError, "`iterations` must be an integer >= 1"),
        (lambda: FreeSites(0, 1), ValueError, "`count` must be an integer >= 1"),
        (
            lambda: FreeSites(2, 1, precision=0.0),
            ValueError,
            "`precision` must be a positive finite number, received 0",
        ),
        (lambda: EncodedSites(torch.nn.Linear(1, 1)), TypeError, "`encoder` must be an Encoder, received Linear"),
    ],
)
def test_parts_of_a_wrong_kind_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


class Bad(torch.nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, grid, values, mask):
        return self.answer


def test_calls_that_do_not_fit_are_refused():
    prior = linear_priors(linear_grid())["sde path"]
    with pytest.raises(
        TypeError, match="GaussianMarkov builds posteriors of SDEPath and GaussianPath laws, received Nor"
    ):
        GaussianMarkov(FreeSites(4, 1))(dist.Normal(0.0, 1.0))
    with pytest.raises(TypeError, match="`sites` must return PseudoObservations, received NoneType"):
        GaussianMarkov(Bad(None))(prior)
    wrong = PseudoObservations(torch.zeros(5, 1), torch.ones(5, 1))
    with pytest.raises(ValueError, match=r"`value` of the pseudo-observations must have shape \(\*batch, 4, 1\)"):
        GaussianMarkov(Bad(wrong))(prior)
    with pytest.raises(ValueError, match=r"`mask` must be a bool tensor .* received torch.bool \(3,\)"):
        GaussianMarkov(FreeSites(4, 1).double())(prior, None, torch.ones(3, dtype=torch.bool))


def test_first_states_without_a_gaussian_posterior_are_refused():
    grid = linear_grid()
    positive = dist.LogNormal(torch.zeros(1, dtype=F64), 1.0).to_event(1)
    cauchy = dist.Cauchy(torch.zeros(1, dtype=F64), 1.0).to_event(1)
    for initial, match in (
        (positive, "a first state with real values, but the support of its prior is GreaterThan"),
        (cauchy, "a first state with known, finite mean and variance"),
    ):
        with pytest.raises(ValueError, match=match):
            GaussianMarkov(FreeSites(4, 1).double())(SDEPath(NeuralSDE(1).double(), initial, grid))


def test_other_first_states_enter_by_their_moments():
    student = dist.StudentT(torch.full((), 5.0, dtype=F64), torch.ones(1, dtype=F64), 2.0).to_event(1)
    prior = SDEPath(OrnsteinUhlenbeck(RATE, SCALE), student, linear_grid())
    law = GaussianMarkov(FreeSites(4, 1, precision=1e-12).double())(prior)
    assert_close(law.mean[0], torch.ones(1, dtype=F64), rtol=0, atol=1e-9)
    assert_close(law.variance[0], student.variance, rtol=1e-9, atol=0)
