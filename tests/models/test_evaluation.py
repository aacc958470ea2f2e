"""Scores and bounds against dense Gaussian computations. Statistical tests: alpha = 2e-5 (|z| < 4.26)."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

F64 = torch.float64
TIMES = torch.tensor([0.0, 0.5, 1.25, 2.0], dtype=F64)
Y = torch.tensor([0.4, 1.1, -0.2, 0.6], dtype=F64)


def observed(*entries, values=Y):
    """One series with some of the entries observed."""
    mask = torch.zeros(len(values), dtype=torch.bool)
    mask[list(entries)] = True
    return TIMES.unsqueeze(0), torch.where(mask, values, torch.nan).view(1, -1, 1)


def evidence(known, *entries):
    """Exact log evidence of some entries under the chain."""
    index = list(entries)
    _, covariance = known.moments(TIMES[index])
    covariance = covariance + known.noise**2 * torch.eye(len(index), dtype=F64)
    return MultivariateNormal(torch.zeros(len(index), dtype=F64), covariance).log_prob(Y[index]).item()


@pytest.mark.parametrize("entries", [(0, 1, 2, 3), (0, 2), (0,)])
def test_the_bound_of_many_draws_is_the_log_evidence(known, entries):
    # The guide is the prior, so the weights are likelihoods, bounded, and the error of the log is their relative one.
    bound = known.build().evidence_bound(observed(*entries), num_samples=40_000, seed=0)
    assert bound.shape == (1,)
    assert bound.item() == pytest.approx(evidence(known, *entries), abs=0.05)


def test_one_draw_gives_the_evidence_lower_bound(known):
    latent = known.build(loc=0.3, scale=0.5, control=lambda t, z, context: 0.2 - z)
    bounds = torch.cat([latent.evidence_bound(observed(0, 2), num_samples=1, seed=seed) for seed in range(300)])
    error = bounds.std().item() / 300**0.5
    assert bounds.mean() < evidence(known, 0, 2) - 4.26 * error
    many = latent.evidence_bound(observed(0, 2), num_samples=20_000, seed=0).item()
    assert many == pytest.approx(evidence(known, 0, 2), abs=0.1)


def test_series_of_a_batch_are_bounded_one_by_one(known):
    latent = known.build()
    (times, one), (_, two) = observed(0, 1), observed(0, 2, 3)
    both = latent.evidence_bound((times.expand(2, -1), torch.cat([one, two])), num_samples=40_000, seed=0)
    assert both.tolist() == pytest.approx([evidence(known, 0, 1), evidence(known, 0, 2, 3)], abs=0.05)


def test_the_predictive_density_of_targets_is_that_of_the_chain(known):
    # A guide that ignores the data predicts with the prior, whose density is known.
    density = known.build().log_likelihood(observed(0, 2), observed(1, 3), num_samples=20_000, seed=0)
    assert density.shape == (20_000, 1, 4, 1)
    assert density[0, 0, :, 0].isnan().tolist() == [True, False, True, False]
    predictive = density.logsumexp(0) - math.log(20_000)
    _, covariance = known.moments(TIMES)
    exact = Normal(0.0, (covariance.diagonal() + known.noise**2).sqrt()).log_prob(Y)
    assert predictive[0, [1, 3], 0].tolist() == pytest.approx(exact[[1, 3]].tolist(), abs=0.04)


def test_the_density_of_a_draw_is_that_of_the_likelihood_at_its_state(known):
    latent = known.build()
    z = latent.posterior(observed(0, 1, 2, 3), num_samples=5, seed=4).z
    density = latent.log_likelihood(observed(0, 1, 2, 3), num_samples=5, seed=4)
    expected = Normal(z[..., 0], known.noise).log_prob(Y)
    assert torch.allclose(density[..., 0], expected, rtol=0, atol=1e-12)


def test_evaluate_collects_the_scores(known):
    latent = known.build()
    result = latent.evaluate(observed(0, 2), observed(1, 3), num_samples=20_000, seed=0)
    _, covariance = known.moments(TIMES)
    exact = Normal(0.0, (covariance.diagonal() + known.noise**2).sqrt()).log_prob(Y)[[1, 3]]
    assert result.log_likelihood.count == result.rmse.count == 2
    assert result.log_likelihood.mean == pytest.approx(exact.mean().item(), abs=0.04)
    assert result.rmse.mean == pytest.approx(Y[[1, 3]].square().mean().sqrt().item(), abs=0.04)
    assert result.bound == pytest.approx(evidence(known, 0, 2) / 2, abs=0.03)


def test_without_targets_the_data_themselves_are_scored(known):
    result = known.build().evaluate(observed(0, 2), num_samples=10)
    assert result.rmse.count == 2


def test_targets_may_lie_beyond_the_last_observation(known):
    density = known.build().log_likelihood(observed(0), observed(3), num_samples=10)
    assert density[:, 0, 3, 0].isfinite().all()


def test_targets_that_do_not_fit_are_refused(known):
    times, values = observed(0, 1)
    with pytest.raises(ValueError, match="`targets` must be of the 1 series of `data`, received 2 series"):
        known.build().evaluate((times, values), (times.expand(2, -1), values.expand(2, -1, -1)))
    early = (times - 1.0, values)
    with pytest.raises(ValueError, match="must not lie before the first time of their series: -1 is before 0"):
        known.build().log_likelihood((times, values), early)
