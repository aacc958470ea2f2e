"""Inference with values that carry their log-ratio: exact bounds where it suffices, named errors elsewhere."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    Importance,
    JitTrace_ELBO,
    Predictive,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)

from pyro_sde import PathELBO, SDEPath, TimeGrid
from pyro_sde.distributions.carried_path import CarriedPath
from pyro_sde.sde import OrnsteinUhlenbeck
from pyro_sde.solvers.adaptive import TorchsdeAdjoint
from tests.infer.linear_problem import RATE, SCALE, Affine, LinearProblem

WIDE = {"num_particles": 10_000, "vectorize_particles": True, "max_plate_nesting": 1}


@pytest.fixture(autouse=True)
def _no_parameters():
    pyro.clear_param_store()


class CarriedProblem(LinearProblem):
    """The same model and guide, carried."""

    def __init__(self, max_step=0.04, backend=None):
        super().__init__(max_step=max_step)
        self.sde, self.backend = OrnsteinUhlenbeck(RATE, SCALE), backend
        self.rows = self.rows * 0 + torch.tensor([0.3, -0.4])  # piecewise constant controls converge with the grid

    def law(self, sde, initial, rows=None):
        return CarriedPath(sde, initial, self.grid, inputs=rows, backend=self.backend)

    def prior(self):
        return self.law(self.sde, self.initial)

    def posterior(self, rows, loc, scale):
        return self.law(self.sde.controlled(Affine()), dist.Normal(loc, scale).to_event(1), rows)

    def model(self):
        z = pyro.sample("z", self.prior())
        pyro.sample("y", dist.Normal(z[..., 0], self.noise).to_event(1), obs=self.values)


BOUNDS = {
    "Trace_ELBO": Trace_ELBO,
    "TraceGraph_ELBO": TraceGraph_ELBO,
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "PathELBO closed": lambda **kw: PathELBO("closed", **kw),
    "PathELBO full": lambda **kw: PathELBO("full", **kw),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_every_bound_estimates_the_exact_elbo(name):
    torch.manual_seed(0)
    problem = CarriedProblem()
    pyro.clear_param_store()
    value = -torch.tensor([BOUNDS[name](**WIDE).loss(problem.model, problem.guide) for _ in range(4)])
    # Euler's chain on this grid is about 0.03 nat from the limit
    error = max(4 * float(value.std()) / 2, 0.1) + 0.05
    assert abs(float(value.mean()) - problem.exact_elbo()) < error
    assert error < 0.6


def test_importance_weights_give_the_evidence():
    torch.manual_seed(0)
    problem = CarriedProblem()
    pyro.clear_param_store()
    estimate = -RenyiELBO(alpha=0, **WIDE).loss(problem.model, problem.guide)
    exact = LinearProblem(max_step=0.04).exact_evidence()
    assert abs(estimate - exact) < 0.15
    posterior = Importance(problem.model, problem.guide, num_samples=200).run()
    assert math.isfinite(float(posterior.get_log_normalizer()))


def test_closed_and_full_have_one_mean_and_other_values():
    problem = CarriedProblem()
    values = []
    for kl in ("closed", "full"):
        pyro.clear_param_store()
        torch.manual_seed(0)
        values.append(PathELBO(kl).loss(problem.model, problem.guide))
    assert abs(values[0] - values[1]) > 1e-3  # one path: the martingale is the difference


def test_gradients_of_the_bound_are_those_of_the_grid():
    # same seed, so the same noise for the carried steps and Euler's; the estimators have equal means
    means = []
    for problem in (CarriedProblem(), LinearProblem(max_step=0.04)):
        problem.rows = CarriedProblem().rows
        grads = []
        for seed in range(3):
            pyro.clear_param_store()
            torch.manual_seed(seed)
            PathELBO("closed", **{**WIDE, "num_particles": 4000}).loss_and_grads(problem.model, problem.guide)
            store = pyro.get_param_store()
            grads.append(torch.stack([store[n].unconstrained().grad.sum(0).sum() for n in ("rows", "loc", "scale")]))
        means.append(torch.stack(grads))
    spread = means[1].std(0) + means[0].std(0)
    assert ((means[0].mean(0) - means[1].mean(0)).abs() < 5 * spread + 0.05 * means[1].mean(0).abs()).all()


def test_svi_learns_the_guide():
    torch.manual_seed(0)
    problem = CarriedProblem(max_step=0.1)
    pyro.clear_param_store()
    svi = SVI(
        problem.model, problem.guide, pyro.optim.Adam({"lr": 0.05}), PathELBO("closed", **{**WIDE, "num_particles": 50})
    )
    losses = [svi.step() for _ in range(60)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_prior_and_posterior_predictions_work():
    problem = CarriedProblem(max_step=0.1)
    pyro.clear_param_store()
    for options in ({}, {"guide": problem.guide}):
        samples = Predictive(problem.model, num_samples=7, **options)()
        assert samples["z" if not options else "y"].shape[0] == 7


def test_scale_of_the_divergence_is_that_of_the_weight():
    problem = CarriedProblem(max_step=0.1)
    losses = []
    for weight in (0.0, 1.0, 2.0):
        pyro.clear_param_store()
        torch.manual_seed(0)
        losses.append(PathELBO("closed", kl_weight=weight).loss(problem.model, problem.guide))
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0])
    assert losses[1] > losses[0]


# ---------------------------------------------------------------- what is refused
def test_sticking_the_landing_is_refused():
    problem = CarriedProblem(max_step=0.5)
    with pytest.raises(ValueError, match="site 'z': kl=\"stl\" needs the density of the guide at a fixed path"):
        PathELBO().loss(problem.model, problem.guide)


def test_a_plain_law_on_the_other_side_is_refused():
    problem = CarriedProblem(max_step=0.5)

    def model():
        pyro.sample("z", dist.Normal(torch.zeros(4, 1), 1.0).to_event(2))

    with pytest.raises(ValueError, match="site 'z' is a CarriedPath on one side only"):
        PathELBO("full").loss(model, problem.guide)


def test_a_path_of_the_grid_on_the_other_side_is_refused():
    problem = CarriedProblem(max_step=0.5)
    problem.grid = TimeGrid(problem.grid.observed_times)  # every time is observed: values have one shape

    def guide():
        pyro.sample("z", SDEPath(problem.sde, problem.initial, problem.grid))

    with pytest.raises(ValueError, match="site 'z': the model has a CarriedPath and the guide a SDEPath"):
        PathELBO("full").loss(problem.model, guide)


def test_reweighted_wake_sleep_and_nuts_are_refused():
    problem = CarriedProblem(max_step=0.5)
    with pytest.raises(ValueError, match="this value carries no log-ratio"):
        ReweightedWakeSleep(num_particles=2).loss(problem.model, problem.guide)
    with pytest.raises(ValueError, match="this value carries no log-ratio"):
        MCMC(NUTS(problem.model), num_samples=1, warmup_steps=1, disable_progbar=True).run()


def test_compiled_bounds_are_refused():
    problem = CarriedProblem(max_step=0.5)
    with pytest.raises(ValueError, match="cannot be compiled by TorchScript"):
        JitTrace_ELBO(ignore_jit_warnings=True).loss_and_grads(problem.model, problem.guide)


@pytest.mark.parametrize(
    "bound", [Trace_ELBO(), RenyiELBO(alpha=0, num_particles=2), PathELBO("full"), TraceMeanField_ELBO()]
)
def test_without_the_martingale_other_bounds_are_refused(bound):
    problem = CarriedProblem(max_step=0.5, backend=TorchsdeAdjoint(martingale=False))
    with pytest.raises(ValueError, match="carries kl but no martingale"):
        bound.loss(problem.model, problem.guide)


def test_without_the_martingale_the_closed_form_trains():
    torch.manual_seed(0)
    problem = CarriedProblem(max_step=0.1, backend=TorchsdeAdjoint(martingale=False))
    pyro.clear_param_store()
    elbo = PathELBO("closed", **{**WIDE, "num_particles": 3000})
    value = -elbo.loss(problem.model, problem.guide)
    assert abs(value - problem.exact_elbo()) < 1.0
    elbo.loss_and_grads(problem.model, problem.guide)
    assert (pyro.get_param_store()["rows"].unconstrained().grad.abs().sum(0) > 0).all()
