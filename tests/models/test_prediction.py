"""Posterior, forecast and prior paths against a chain of known law. Statistical tests: alpha = 2e-5 (|z| < 4.26)."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from pyro_sde.models import prediction
from pyro_sde.models.prediction import blocks

F64 = torch.float64
Z = 4.26
S = 4000  # draws: a mean off by 7 % of a deviation, or a variance off by 10 %, is found


def data(times=(0.0, 0.5, 1.0), observed=(1, 1, 1)):
    mask = torch.tensor(observed).bool().view(1, -1, 1)
    values = torch.where(mask, torch.ones(1, len(times), 1, dtype=F64), torch.nan)
    return torch.tensor([times], dtype=F64), values


def check_moments(draws, mean, covariance):
    """Mean and covariance ``(Q,), (Q, Q)`` of draws ``(S, Q)``."""
    size = len(draws)
    deviation = covariance.diagonal().sqrt()
    error = (draws.mean(0) - mean) / (deviation / size**0.5)
    assert error.abs().max() < Z
    centred = (draws - mean) / deviation
    correlation = covariance / deviation / deviation[:, None]
    estimate = centred.T @ centred / size
    spread = ((1 + correlation**2) / size) ** 0.5
    assert ((estimate - correlation) / spread).abs().max() < Z


# --- prior


def test_prior_paths_have_the_moments_of_the_chain_at_times_in_any_order(known):
    times = torch.tensor([2.0, 0.0, 0.75], dtype=F64)
    samples = known.build().sample_prior(times, num_samples=S, seed=0)
    assert torch.equal(samples.times, times)
    order = times.argsort()
    _, covariance = known.moments(times[order])
    check_moments(samples.z[:, order, 0], torch.zeros(3, dtype=F64), covariance)


def test_repeated_times_get_the_same_state_and_new_noise(known):
    samples = known.build().sample_prior(torch.tensor([1.0, 0.0, 1.0], dtype=F64), num_samples=50, seed=0)
    assert torch.equal(samples.z[:, 0], samples.z[:, 2])
    assert not torch.equal(samples.y[:, 0], samples.y[:, 2])


def test_the_first_state_is_drawn_at_the_start(known):
    latent, times = known.build(), torch.tensor([1.0], dtype=F64)
    own = latent.sample_prior(times, num_samples=S, seed=0).z[:, 0]
    later = latent.sample_prior(times, num_samples=S, start=0.0, seed=0).z[:, 0]
    check_moments(own, torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64))
    check_moments(later, torch.zeros(1, dtype=F64), known.moments(times)[1])


def test_times_may_differ_between_series(known):
    times = torch.tensor([[0.0, 0.5], [1.0, 0.75]], dtype=F64)
    samples = known.build().sample_prior(times, num_samples=7)
    assert samples.z.shape == samples.y.shape == (7, 2, 2, 1)


def test_observations_are_the_decoded_state_plus_the_noise_of_the_likelihood(known):
    samples = known.build().sample_prior(torch.tensor([0.0], dtype=F64), num_samples=S, seed=0)
    assert torch.equal(samples.mean, samples.z)
    noise = (samples.y - samples.mean)[:, 0]
    check_moments(noise, torch.zeros(1, dtype=F64), torch.full((1, 1), known.noise**2, dtype=F64))


# --- posterior and forecast


def test_a_forecast_grows_from_the_posterior_as_the_prior_says(known):
    # The guide pushes hard; nothing of its push may be left after the last observation, which is the first time.
    latent = known.build(loc=2.0, scale=0.1, control=lambda t, z, context: 50.0 + 0 * z)
    times = torch.tensor([0.0, 0.5, 1.0, 4.0], dtype=F64)
    samples = latent.forecast(data((0.0, 3.0), (1, 0)), times, num_samples=S, seed=0)
    factor, covariance = known.moments(times, variance=0.01)
    check_moments(samples.z[:, 0, :, 0], 2.0 * factor, covariance)
    variances = covariance.diagonal()
    assert (variances.diff() > 0).all()


def test_the_control_acts_up_to_the_last_observation(known):
    latent = known.build(loc=0.0, scale=0.1, control=lambda t, z, context: 3.0 + 0 * z)
    times = torch.tensor([1.0, 0.5, 2.0], dtype=F64)
    z = latent.posterior(data(), times, num_samples=S, seed=0).z[:, 0, :, 0]
    factor = 1 - known.rate * known.step
    pushed = 3.0 * known.sigma * known.step * sum(factor**k for k in range(4))  # four controlled steps to time 1
    _, covariance = known.moments(times.sort().values, variance=0.01)
    mean = torch.tensor([pushed * (1 - factor**2) / (1 - factor**4), pushed, pushed * factor**4], dtype=F64)
    check_moments(z[:, [1, 0, 2]], mean, covariance)


def test_a_forecast_goes_on_from_the_states_of_the_posterior_path(known):
    latent = known.build(loc=0.0, scale=1.0)
    times = torch.tensor([1.0, 1.25], dtype=F64)
    z = latent.posterior(data(), times, num_samples=S, seed=0).z[:, 0, :, 0]
    _, covariance = known.moments(times)
    check_moments(z, torch.zeros(2, dtype=F64), covariance)  # the covariance across the seam included


def test_forecast_and_posterior_agree_beyond_the_last_observation(known):
    latent, times = known.build(), torch.tensor([1.0, 2.0], dtype=F64)
    one = latent.forecast(data(), times, num_samples=5, seed=3)
    other = latent.posterior(data(), times, num_samples=5, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_without_times_the_posterior_is_at_the_times_of_the_data(known):
    latent = known.build()
    times, values = data((0.0, 0.5, 1.5, 1.5), (1, 1, 0, 0))
    samples = latent.posterior((times, values), num_samples=3, seed=0)
    assert torch.equal(samples.times, times)
    assert samples.z.shape == (3, 1, 4, 1)
    assert torch.equal(samples.z[:, :, 2], samples.z[:, :, 3])


def test_series_that_end_at_different_times_are_each_continued_from_their_own_end(known):
    latent = known.build(loc=2.0, scale=0.1, control=lambda t, z, context: 50.0 + 0 * z)
    times = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=F64)
    values = torch.tensor([[0.0, torch.nan], [0.0, 0.0]], dtype=F64).unsqueeze(-1)
    ahead = latent.forecast((times, values), torch.tensor([1.0], dtype=F64), num_samples=200, seed=0).z[:, :, 0, 0]
    factor, _ = known.moments(torch.tensor([1.0], dtype=F64))
    assert ahead[:, 0].mean() == pytest.approx(2 * factor.item(), abs=0.3)
    assert ahead[:, 1].mean() > 10


# --- seeds, blocks, gradients


def test_a_seed_repeats_the_draws_and_leaves_the_global_state_alone(known):
    latent = known.build()
    before = torch.get_rng_state()
    one, two = (latent.posterior(data(), num_samples=4, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.y, two.y)
    assert not torch.equal(one.z, latent.posterior(data(), num_samples=4, seed=2).z)
    assert not torch.equal(latent.posterior(data(), num_samples=4).z, latent.posterior(data(), num_samples=4).z)


def test_draws_come_in_blocks_that_bound_memory(known, monkeypatch):
    assert list(blocks(10, 2000)) == [2, 2, 2, 2, 2]
    assert list(blocks(5, 1_000_000)) == [1] * 5
    assert list(blocks(100, 1)) == [100]
    monkeypatch.setattr(prediction, "_BLOCK_ROWS", 3)
    samples = known.build().forecast(data(), torch.tensor([1.5], dtype=F64), num_samples=7)
    assert samples.z.shape == (7, 1, 1, 1)
    assert len(samples.z.unique()) == 7


def test_draws_carry_no_gradient(known):
    assert not known.build().forecast(data(), torch.tensor([2.0]), num_samples=2).mean.requires_grad


def test_wrong_times_and_numbers_are_refused(known):
    latent = known.build()
    with pytest.raises(ValueError, match=r"must not lie before the last observation of their series: 0.9 is before 1"):
        latent.forecast(data(), torch.tensor([0.9], dtype=F64))
    with pytest.raises(ValueError, match=r"must not lie before the first time of their series: -1 is before 0"):
        latent.posterior(data(), torch.tensor([-1.0], dtype=F64))
    with pytest.raises(ValueError, match="every observation must lie inside"):
        latent.sample_prior(torch.tensor([0.0, 1.0]), start=0.5)
    with pytest.raises(ValueError, match="`times` must be finite"):
        latent.sample_prior(torch.tensor([torch.nan]))
    with pytest.raises(ValueError, match="`num_samples` must be at least 1, received 0"):
        latent.posterior(data(), num_samples=0)


def test_float32_models_predict_in_float32(known):
    latent = known.build().float()
    samples = latent.forecast(data(), torch.tensor([1.5, 2.0]), num_samples=3, seed=0)
    assert {tensor.dtype for tensor in samples} == {torch.float32}
    assert_close(samples.mean, samples.z)
