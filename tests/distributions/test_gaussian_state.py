"""The Gaussian law of one state, singular or not."""

import copy
import pickle

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyro_sde.distributions import GaussianState
from pyro_sde.distributions.gaussian_state import gaussian_moments
from pyro_sde.testing import assert_mean

DOUBLE = torch.float64
COVARIANCE = torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=DOUBLE)
MEAN = torch.tensor([[0.3, -1.0], [0.0, 1.0], [2.0, 0.5]], dtype=DOUBLE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_regular_law_is_the_multivariate_normal(dtype):
    law = GaussianState(MEAN, COVARIANCE, dtype=dtype)
    expected = dist.MultivariateNormal(MEAN.to(dtype), COVARIANCE.to(dtype))
    value = torch.randn(4, 3, 2, dtype=dtype)
    torch.testing.assert_close(law.log_prob(value), expected.log_prob(value))
    assert law.batch_shape == (3,)
    for name in ("mean", "variance", "covariance_matrix"):
        torch.testing.assert_close(getattr(law, name), getattr(expected, name))
    sample = law.rsample((20_000,))
    assert sample.dtype == dtype
    assert_mean(sample, MEAN, detects=0.1)
    centred = sample - law.mean
    assert_mean(centred.unsqueeze(-1) * centred.unsqueeze(-2), COVARIANCE.expand(3, 2, 2), detects=0.2)


def test_singular_law_has_a_density_on_its_line_only():
    direction = torch.tensor([3.0, 4.0], dtype=DOUBLE)  # of length 5: N(0, 4) along it has variance 100
    law = GaussianState(torch.zeros(2, dtype=DOUBLE), 4 * torch.outer(direction, direction))
    along = torch.randn(5, dtype=DOUBLE)
    expected = dist.Normal(0.0, 10.0).log_prob(5 * along)
    torch.testing.assert_close(law.log_prob(along.unsqueeze(-1) * direction), expected)
    assert law.log_prob(law.sample((100,))).isfinite().all()
    assert law.log_prob(direction + torch.tensor([0.0, 1e-3])) == -torch.inf


def test_known_state_is_a_point_mass():
    law = GaussianState(MEAN, torch.zeros(2, 2, dtype=DOUBLE))
    assert (law.sample((4,)) == MEAN).all()
    assert (law.log_prob(MEAN) == 0).all()
    assert (law.log_prob(MEAN + 1) == -torch.inf).all()


LAWS = {
    "multivariate": dist.MultivariateNormal(MEAN, COVARIANCE + 0.5),
    "normal": dist.Normal(MEAN, torch.tensor([0.7, 1.3], dtype=DOUBLE)).to_event(1),
    "low-rank": dist.LowRankMultivariateNormal(MEAN, MEAN.unsqueeze(-1), torch.ones(2, dtype=DOUBLE)),
    "delta": dist.Delta(MEAN, event_dim=1),
    "state": GaussianState(MEAN, COVARIANCE),
}


@pytest.mark.parametrize("name", LAWS)
def test_moments_are_those_of_the_law(name):
    law = LAWS[name]
    mean, covariance = gaussian_moments(law)
    torch.testing.assert_close(mean.expand(3, 2), MEAN)
    expected = getattr(law, "covariance_matrix", None)
    expected = torch.diag_embed(law.variance) if expected is None else expected
    torch.testing.assert_close(covariance.expand(3, 2, 2), expected)


@pytest.mark.parametrize("name", ["multivariate", "normal", "low-rank", "state"])
def test_divergence_is_that_of_multivariate_normals(name):
    other = LAWS[name]
    law = GaussianState(torch.zeros(2, dtype=DOUBLE), COVARIANCE)
    ours, theirs = (dist.MultivariateNormal(*gaussian_moments(d)) for d in (law, other))
    torch.testing.assert_close(kl_divergence(law, other), kl_divergence(ours, theirs))
    torch.testing.assert_close(kl_divergence(other, law), kl_divergence(theirs, ours))


def test_divergence_of_singular_laws_lives_on_their_range():
    direction = torch.tensor([1.0, 2.0], dtype=DOUBLE)
    line = torch.outer(direction, direction)
    q, p = GaussianState(0.5 * direction, line), GaussianState(0 * direction, 3 * line)
    expected = kl_divergence(dist.Normal(0.5, 1.0), dist.Normal(0.0, 3.0**0.5)).double()
    torch.testing.assert_close(kl_divergence(q, p), expected, rtol=1e-6, atol=1e-6)
    full = GaussianState(0 * direction, COVARIANCE)
    aside = GaussianState(torch.tensor([1.0, 0.0], dtype=DOUBLE), line)
    turned = GaussianState(0 * direction, torch.outer(direction.flip(0), direction.flip(0)))
    for a, b in ((q, full), (full, q), (aside, p), (turned, p)):
        assert kl_divergence(a, b) == torch.inf


def test_divergence_from_a_point_is_finite_at_that_point_only():
    law = GaussianState(MEAN, torch.zeros(2, 2, dtype=DOUBLE))
    for point, expected in ((MEAN, 0.0), (MEAN + 1, torch.inf)):
        delta = dist.Delta(point, event_dim=1)
        assert (kl_divergence(law, delta) == expected).all()
        assert (kl_divergence(delta, law) == expected).all()


def test_divergence_from_other_families_is_left_to_pyro():
    with pytest.raises(NotImplementedError):
        kl_divergence(LAWS["state"], dist.Laplace(MEAN, 1.0).to_event(1))


def test_gradients_are_finite_where_the_law_is_singular():
    mean = MEAN[0].clone().requires_grad_()
    scale = torch.tensor([1.0, 0.0], dtype=DOUBLE, requires_grad=True)
    law = GaussianState(mean, torch.diag(scale))
    value = law.rsample((5,))
    (law.log_prob(value).sum() + value.square().sum()).backward()
    assert mean.grad.isfinite().all()
    assert scale.grad.isfinite().all()
    assert scale.grad[0] != 0


def test_law_expands_and_copies():
    law = LAWS["state"].expand((4, 3))
    assert law.batch_shape == (4, 3)
    assert law.sample().shape == (4, 3, 2)
    assert law.mean.shape == (4, 3, 2)
    assert law.covariance_matrix.shape == (4, 3, 2, 2)
    value = law.sample()
    for other in (copy.deepcopy(law), pickle.loads(pickle.dumps(law))):
        torch.testing.assert_close(other.log_prob(value), law.log_prob(value))
    with pytest.raises(RuntimeError, match="expand"):
        law.expand((2,))


def test_nan_does_not_pass_for_a_known_state():
    law = GaussianState(MEAN, COVARIANCE * torch.nan, validate_args=False)
    assert law.log_prob(MEAN).isnan().all()


def test_bad_arguments_say_what_is_wrong():
    with pytest.raises(ValueError, match="`mean` and `covariance` must have shapes"):
        GaussianState(MEAN, torch.eye(3))
    with pytest.raises(ValueError, match="`initial` must be a Gaussian law of event shape"):
        gaussian_moments(dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="received Independent"):
        gaussian_moments(dist.Laplace(MEAN, 1.0).to_event(1))
    with pytest.raises(ValueError, match="Expected value argument"):
        LAWS["state"].log_prob(MEAN * torch.nan)
