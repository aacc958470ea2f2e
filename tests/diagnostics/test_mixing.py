"""The report on skipping: its counts, rates and bias against known values."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_sde import PathELBO
from pyro_sde.diagnostics.mixing import multiscale_report
from pyro_sde.distributions.multiscale_kernels import BurnIn
from pyro_sde.infer.randomised_correction import SimulatedGaps
from tests.distributions.skipping_problem import Problem


def far_off(a):
    return dist.Normal(a[..., -1:] + 2.0, 0.2).to_event(1)


def particles(count):
    return PathELBO(num_particles=count, vectorize_particles=True, max_plate_nesting=1)


def test_report_of_a_biased_entry():
    """Rate of the prior 2 (10 steps of 0.1 a unit), of the guide 2 - 0.7 w; two series of 40 fine steps."""
    pyro.set_rng_seed(0)
    problem = Problem(BurnIn(far_off))
    report = multiscale_report(problem.model, problem.guide, elbo=particles(30), num_samples=20)
    site = report.sites["b"]
    assert (site.fine_steps, site.all_steps) == (int(problem.windows.active.sum()), 80)
    assert report.skipped == pytest.approx(1 - site.fine_steps / 80)
    assert site.prior_rate == pytest.approx(-math.log(1 - 0.2) / 0.1, rel=1e-5)
    assert site.mixing_time == pytest.approx(1 / site.prior_rate)
    assert site.posterior_rate == pytest.approx(2 - 0.7 * float(problem.net.weight[0, 0].detach()))
    assert site.bias_factor == pytest.approx(math.exp(-2 * site.prior_rate * 0.2))
    elbo = particles(400)
    pyro.set_rng_seed(1)
    skip = elbo.loss(problem.model, problem.guide)
    with SimulatedGaps():
        full = elbo.loss(problem.model, problem.guide)
    assert abs(report.bias) > 5 * report.bias_error
    assert report.bias == pytest.approx(full - skip, abs=1.5)
    assert report.bias * (full - skip) > 0


def test_exact_re_entry_has_no_bias():
    pyro.set_rng_seed(2)
    problem = Problem()
    report = multiscale_report(problem.model, problem.guide, elbo=particles(50), num_samples=20)
    assert report.sites["b"].bias_factor == 0.0
    assert abs(report.bias) < 5 * report.bias_error
    assert report.time_saved == pytest.approx(1 - report.seconds / report.full_seconds)


def test_evaluations_share_their_noise():
    """Windows over everything: both bounds are the same on every evaluation."""
    problem = Problem()
    problem.windows = type(problem.windows).around(problem.grid, before=10.0, after=10.0, fine_steps=2)
    pyro.set_rng_seed(3)
    report = multiscale_report(problem.model, problem.guide, num_samples=3)
    assert report.bias == pytest.approx(0.0, abs=1e-9)
    assert report.bias_error == pytest.approx(0.0, abs=1e-9)
    assert report.skipped == 0.0


def test_gradients_are_untouched():
    problem = Problem()
    multiscale_report(problem.model, problem.guide, num_samples=2)
    assert all(p.grad is None for p in problem.net.parameters())
    assert torch.is_grad_enabled()


def test_bad_arguments_are_named():
    problem = Problem()
    with pytest.raises(ValueError, match="`num_samples` must be at least 2"):
        multiscale_report(problem.model, problem.guide, num_samples=1)

    def nothing():
        pyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="guide has no MultiScalePath"):
        multiscale_report(nothing, nothing)
