"""Forecasts and imputations of plain Pyro models against Kalman's, at `TEST_FAILURE_RATE`, seeds fixed."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyro_sde.distributions.gaussian_path import GaussianPath
from pyro_sde.distributions.linear_gaussian_ssm import LinearGaussianSSM
from pyro_sde.models import prediction
from pyro_sde.models.forecasting import PathForecaster
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.sde.matern import Matern32
from pyro_sde.testing.statistics import assert_mean

F64 = torch.float64
NAN = float("nan")
NOISE = 0.3
S = 20_000
TIMES = torch.tensor([[0.0, 0.4, 1.0, 1.7], [0.2, 0.5, 0.5, 0.5]], dtype=F64)
VALUES = torch.tensor([[0.9, NAN, 0.2, -0.5], [0.4, 0.7, NAN, NAN]], dtype=F64).unsqueeze(-1)
AHEAD = torch.tensor([[3.0, 1.7, 2.2], [0.9, 1.5, 4.0]], dtype=F64)


def law(grid):
    return GaussianPath(Matern32(lengthscale=1.5, variance=1.2), None, grid)


def model(grid, values=None, mask=None):
    with pyro.plate("series", len(grid.times), dim=-1):
        z = pyro.sample("z", law(grid))
        noise = dist.Normal(grid.observed(z)[..., :1], NOISE)
        return pyro.sample("y", noise.mask(True if mask is None else mask).to_event(2), obs=values)


def guide(grid, values, mask):  # the exact posterior
    with pyro.plate("series", len(grid.times), dim=-1):
        pyro.sample("z", law(grid).condition(None, NOISE, values, mask))


def forecaster(**options):
    return PathForecaster(model, guide, **options)


def exact(row):
    """Law of the observations of one series, and the observations."""
    seen = ~VALUES[row, :, 0].isnan()
    times = TIMES[row, seen]
    return LinearGaussianSSM(Matern32(lengthscale=1.5, variance=1.2), None, NOISE, TimeGrid(times)), VALUES[row, seen]


@pytest.mark.parametrize("max_step", [None, 0.3])
def test_forecasts_are_those_of_the_kalman_filter(max_step):
    samples = forecaster(max_step=max_step).forecast((TIMES, VALUES), AHEAD, num_samples=S, seed=0)
    assert torch.equal(samples.times, AHEAD)
    for row in (0, 1):
        times, order = AHEAD[row].sort()
        ssm, y = exact(row)
        future = ssm.forecast(times, y)
        drawn = samples.y[:, row, order]
        assert_mean(drawn, future.mean, detects=0.06)
        assert_mean((drawn - future.mean) ** 2, future.variance, detects=0.1)
        assert_mean(samples.mean[:, row, order], future.mean, detects=0.06)


def test_draws_of_a_forecast_are_whole_paths():
    """The covariance of neighbouring forecasts, and of a forecast with the smoothed past."""
    both = torch.tensor([[1.0, 1.7, 2.2], [0.5, 0.6, 1.0]], dtype=F64)
    run = forecaster()
    series = run.record((TIMES, VALUES))
    with torch.no_grad():
        torch.manual_seed(0)
        z = run.draw(series, both, S).z[..., 0]
    for row in (0, 1):
        ssm, y = exact(row)
        seen = ~VALUES[row, :, 0].isnan()
        inside = torch.cat([TIMES[row, seen], both[row]]).unique()
        grid = TimeGrid(inside)
        full = torch.full((len(inside), 1), NAN, dtype=F64)
        full[torch.isin(inside, TIMES[row, seen])] = y
        posterior = law(grid).condition(None, NOISE, full.nan_to_num(), ~full.isnan()[:, 0])
        place = [int((inside == t).nonzero()) for t in both[row]]
        mean = posterior.mean[place, 0]
        for i, j in ((0, 1), (0, 2), (1, 2)):
            product = (z[:, row, i] - mean[i]) * (z[:, row, j] - mean[j])
            assert_mean(product, float(posterior.covariance(place[i], place[j])[0, 0]), detects=0.06)


def test_imputed_values_have_the_mean_and_variance_of_the_smoother():
    samples = forecaster().impute((TIMES, VALUES), num_samples=S, seed=0)
    grid = TimeGrid(TIMES[0])
    smoothed = law(grid).condition(None, NOISE, VALUES[0].nan_to_num(), ~VALUES[0].isnan())
    assert_mean(samples.y[:, 0, 1, 0], float(smoothed.mean[1, 0]), detects=0.05)
    spread = (samples.y[:, 0, 1, 0] - smoothed.mean[1, 0]) ** 2
    assert_mean(spread, float(smoothed.variance[1, 0]) + NOISE**2, detects=0.05)
    observed = ~VALUES.isnan()
    assert torch.equal(samples.y[:, observed], VALUES[observed].expand(S, -1))


def test_smoothing_at_any_time_is_that_of_the_smoother():
    query = torch.tensor([0.3, 0.2, 0.45], dtype=F64)
    samples = forecaster().smooth((TIMES, VALUES), query, num_samples=S, seed=0)
    times, order = torch.cat([TIMES[0], query]).sort()
    values = torch.cat([VALUES[0], torch.full((3, 1), NAN, dtype=F64)])[order]
    smoothed = law(TimeGrid(times)).condition(None, NOISE, values.nan_to_num(), ~values.isnan())
    mean = smoothed.mean[order.argsort()[4:], 0]
    assert_mean(samples.z[:, 0, :, 0], mean, detects=0.05)
    assert_close(samples.mean, samples.z[..., :1])


def test_the_future_follows_the_model_and_not_the_guide():
    """A guide whose path stands still: beyond the last observation its spread would be that of the last state."""

    def still(grid, values, mask):
        with pyro.plate("series", len(grid.times), dim=-1):
            pyro.sample("z", law(grid).condition(None, 1e-3, torch.zeros_like(values), torch.ones_like(mask)))

    query = torch.tensor([[1.7, 30.0], [0.5, 30.0]], dtype=F64)
    z = PathForecaster(model, still).forecast((TIMES, VALUES), query, num_samples=S, seed=0).z[..., 0]
    assert z[..., 0].abs().max() < 0.01
    assert_mean(z[..., 1] ** 2, 1.2, detects=0.1)


def test_other_latent_sites_are_those_that_the_guide_draws():
    def shifted(grid, values=None, mask=None):
        level = pyro.sample("level", dist.Normal(torch.zeros((), dtype=F64), 1.0))
        with pyro.plate("series", len(grid.times), dim=-1):
            z = pyro.sample("z", law(grid))
            own = pyro.sample("own", dist.Normal(torch.zeros((), dtype=F64), 1.0))
            mean = grid.observed(z)[..., :1] + (level + own)[..., None, None]
            return pyro.sample("y", dist.Normal(mean, NOISE).to_event(2), obs=values)

    def known(grid, values, mask):
        pyro.sample("level", dist.Delta(torch.tensor(100.0, dtype=F64)))
        with pyro.plate("series", len(grid.times), dim=-1):
            pyro.sample("own", dist.Delta(torch.tensor([1000.0, 2000.0], dtype=F64)))
            pyro.sample("z", law(grid))

    samples = PathForecaster(shifted, known).forecast((TIMES, VALUES), AHEAD, num_samples=7, seed=0)
    offset = (samples.mean - samples.z[..., :1])[..., 0]
    assert_close(offset, torch.tensor([1100.0, 2100.0], dtype=F64).view(1, 2, 1).expand_as(offset))


def test_a_latent_sde_is_also_a_plain_pair(known):
    latent = known.build(loc=2.0, scale=0.1, control=lambda t, z, context: 3.0 + 0 * z)
    times, values = torch.tensor([[0.0, 1.0]], dtype=F64), torch.ones(1, 2, 1, dtype=F64)
    query = torch.tensor([1.0, 2.0], dtype=F64)
    pyro.clear_param_store()
    plain = PathForecaster(latent.model, latent.guide, max_step=known.step)
    one = plain.forecast((times, values), query, num_samples=S, seed=0)
    other = latent.forecast((times, values), query, num_samples=S, seed=1)
    pyro.clear_param_store()
    assert_mean(one.y - other.y, 0.0, detects=0.05)
    assert_mean(one.z**2 - other.z**2, 0.0, detects=0.3)


def test_columns_after_the_last_observation_change_no_path():
    later = torch.cat([TIMES, TIMES[:, -1:] + torch.tensor([0.33, 0.77], dtype=F64)], -1)
    longer = torch.cat([VALUES, torch.full((2, 2, 1), NAN, dtype=F64)], 1)
    one, other = (
        forecaster(max_step=0.3).forecast(data, AHEAD, num_samples=5, seed=0)
        for data in ((TIMES, VALUES), (later, longer))
    )
    assert torch.equal(one.z, other.z)


def test_draws_come_in_blocks_and_a_seed_repeats_them(monkeypatch):
    one = forecaster().forecast((TIMES, VALUES), AHEAD, num_samples=5, seed=3)
    two = forecaster().forecast((TIMES, VALUES), AHEAD, num_samples=5, seed=3)
    assert torch.equal(one.y, two.y)
    monkeypatch.setattr(prediction, "_BLOCK_ROWS", 4)
    blocked = forecaster().forecast((TIMES, VALUES), AHEAD, num_samples=5, seed=3)
    assert blocked.y.shape == one.y.shape
    assert len(blocked.z[:, 0, 0, 0].unique()) == 5


def test_float32_data_give_float32_draws():
    samples = forecaster().forecast((TIMES.float(), VALUES.float()), AHEAD.float(), num_samples=3, seed=0)
    assert {tensor.dtype for tensor in samples} == {torch.float32}
    assert samples.y.isfinite().all()


def test_sites_may_have_other_names():
    def renamed(grid, values=None, mask=None):
        with pyro.plate("series", len(grid.times), dim=-1):
            z = pyro.sample("path", law(grid))
            pyro.sample("seen", dist.Normal(grid.observed(z)[..., :1], NOISE).to_event(2), obs=values)

    def its_guide(grid, values, mask):
        with pyro.plate("series", len(grid.times), dim=-1):
            pyro.sample("path", law(grid))

    samples = PathForecaster(renamed, its_guide, path="path", observed="seen").smooth((TIMES, VALUES), num_samples=2)
    assert samples.y.shape == (2, 2, 4, 1)
    with pytest.raises(ValueError, match=r"the guide has no sample site 'z', only \['series', 'path'\]. Name its"):
        PathForecaster(renamed, its_guide).smooth((TIMES, VALUES))
    with pytest.raises(ValueError, match=r"the model has no sample site 'y'"):
        PathForecaster(renamed, its_guide, path="path").smooth((TIMES, VALUES))


def test_a_model_on_a_grid_of_its_own_is_named():
    own = TimeGrid(TIMES, max_step=0.1)

    def fixed(grid, values, mask):
        with pyro.plate("series", 2, dim=-1):
            pyro.sample("z", law(own))

    with pytest.raises(ValueError, match="site 'z' of the guide has 18 points, but the grid that it was given has 4"):
        PathForecaster(model, fixed).forecast((TIMES, VALUES), AHEAD)


def test_observations_that_are_not_sampled_per_series_are_named():
    def summed(grid, values=None, mask=None):
        with pyro.plate("series", len(grid.times), dim=-1):
            z = pyro.sample("z", law(grid))
            pyro.sample("y", dist.Normal(grid.observed(z).sum((-2, -1)), NOISE))

    with pytest.raises(ValueError, match=r"site 'y' must have values of shape \(S, B, N, O\) under a plate of S = 3"):
        PathForecaster(summed, guide).forecast((TIMES, VALUES), AHEAD, num_samples=3)


def test_functions_must_be_functions():
    with pytest.raises(TypeError, match="`guide` must be a Pyro function of .* received int"):
        PathForecaster(model, 3)
