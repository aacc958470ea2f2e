"""Smoothing stays inside the data, forecasts outside, and imputation keeps what is observed."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from pyro_sde.data.series import TimeSeries
from pyro_sde.models.prediction import PathSamples
from pyro_sde.models.predictor import PathPredictor, own_record
from pyro_sde.testing.statistics import assert_mean

F64 = torch.float64
NAN = float("nan")


def data(dtype=F64):
    times = torch.tensor([[0.0, 0.5, 1.0, 1.5], [0.0, 0.5, 1.0, 1.0]], dtype=dtype)
    values = torch.tensor([[0.3, NAN, 0.1, NAN], [NAN, 0.2, NAN, NAN]], dtype=dtype).unsqueeze(-1)
    return times, values


class Clock(PathPredictor):
    """A model whose states are the times that it was asked for."""

    def record(self, data):
        return own_record(data)

    def draw(self, series, queries, num_samples):
        z = queries.expand(num_samples, *queries.shape).unsqueeze(-1)
        return PathSamples(queries, z, z, z + torch.randn_like(z))


def test_without_times_smoothing_is_at_the_times_of_the_data():
    times, values = data()
    samples = Clock().smooth((times, values), num_samples=3)
    assert torch.equal(samples.times, times)
    assert torch.equal(samples.z[2, ..., 0], times)


def test_smoothing_takes_times_in_any_order_between_first_time_and_last_observation():
    samples = Clock().smooth(data(), torch.tensor([0.5, 0.0, 0.25]), num_samples=2)
    assert samples.z[0, :, :, 0].tolist() == [[0.5, 0.0, 0.25]] * 2
    assert samples.times.dtype == F64


def test_forecasts_start_at_the_last_observation_of_each_series():
    times = torch.tensor([[2.0, 1.0], [0.5, 9.0]])
    assert Clock().forecast(data(), times, num_samples=2).times.tolist() == times.tolist()


def test_imputation_keeps_observations_and_fills_the_rest():
    times, values = data()
    samples = Clock().impute((times, values), num_samples=5, seed=0)
    observed = ~values.isnan()
    assert torch.equal(samples.y[:, observed], values[observed].expand(5, -1))
    other = Clock().smooth((times, values), num_samples=5, seed=0)
    assert torch.equal(samples.y[:, ~observed], other.y[:, ~observed])
    assert torch.equal(samples.mean, other.mean)
    assert samples.y.isfinite().all()


def test_a_seed_repeats_the_draws_and_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    one, two, three = (Clock().impute(data(), num_samples=2, seed=seed).y for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_times_on_the_wrong_side_are_refused_by_name():
    with pytest.raises(ValueError, match=r"must not lie after the last observation .* 0.75 is after 0.5 in series 1"):
        Clock().smooth(data(), torch.tensor([0.75]))
    with pytest.raises(ValueError, match=r"must not lie before the last observation .* 0.75 is before 1 in series 0"):
        Clock().forecast(data(), torch.tensor([0.75]))
    with pytest.raises(ValueError, match=r"must not lie before the first time .* -1 is before 0"):
        Clock().smooth(data(), torch.tensor([-1.0]))


def test_the_base_itself_has_no_paths():
    with pytest.raises(NotImplementedError):
        PathPredictor().record(data())
    with pytest.raises(NotImplementedError):
        PathPredictor().draw(own_record(data()), torch.zeros(2, 1), 3)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_record_keeps_the_dtype_of_its_values(dtype):
    times, values = data(dtype)
    for given in ((times, values), TimeSeries("mine", times, values, ~values.isnan())):
        assert own_record(given).values.dtype == own_record(given).times.dtype == dtype
    for wrong in (None, (times,), {"times": times}):
        with pytest.raises(TypeError, match="`data` must be a TimeSeries, or tensors"):
            own_record(wrong)


# --- a latent SDE of known law


def test_a_latent_sde_smooths_as_its_posterior_and_imputes_from_it(known):
    latent = known.build(loc=1.0, scale=0.5)
    one, other = (f(data(), num_samples=5, seed=0) for f in (latent.smooth, latent.posterior))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    samples = latent.impute(data(), num_samples=20_000, seed=0)
    factor, covariance = known.moments(torch.tensor([0.5, 1.5], dtype=F64), variance=0.25)
    for column, k in ((1, 0), (3, 1)):
        y, mean = samples.y[:, 0, column, 0], float(factor[k])
        assert_mean(y, mean, detects=0.05)
        assert_mean((y - mean) ** 2, float(covariance[k, k]) + known.noise**2, detects=0.05)
    assert_close(samples.y[:, 0, 0, 0], torch.full((20_000,), 0.3, dtype=F64))
