"""Values and bands of the naive baselines against hand computations and simulated random walks."""

import pytest
import torch

from pyro_sde.diagnostics import fit_last_value, fit_linear_interpolation, interval_coverage

TIMES = torch.tensor([0.0, 1.0, 3.0, 4.0], dtype=torch.float64)
VALUES = torch.tensor([[0.0], [2.0], [-2.0], [1.0]], dtype=torch.float64)


def random_walk(n, drift_free_std=1.0, noise=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    gaps = 0.2 + torch.rand(n, generator=generator, dtype=torch.float64)
    steps = drift_free_std * gaps.sqrt() * torch.randn(n, generator=generator, dtype=torch.float64)
    noisy = steps.cumsum(0) + noise * torch.randn(n, generator=generator, dtype=torch.float64)
    return gaps.cumsum(0), noisy.unsqueeze(-1)


def test_last_value_uses_only_the_past():
    mean = fit_last_value(TIMES, VALUES).predict(torch.tensor([-1.0, 0.0, 0.9, 1.0, 2.9, 4.0, 50.0])).mean
    assert mean.flatten().tolist() == [0.0, 0.0, 0.0, 2.0, 2.0, 1.0, 1.0]


def test_linear_interpolation_is_a_straight_line_inside_and_constant_outside():
    query = torch.tensor([-1.0, 0.0, 0.25, 1.0, 2.0, 2.5, 4.0, 50.0])
    mean = fit_linear_interpolation(TIMES, VALUES).predict(query).mean
    assert mean.flatten().tolist() == pytest.approx([0.0, 0.0, 0.5, 2.0, 0.0, -1.0, 1.0, 1.0])


def test_last_value_band_is_the_variance_of_a_noisy_random_walk():
    # y_i - y_j has variance 2 noise^2 + std^2 gap = 0.5 + gap. 20 % is about 3 standard errors here.
    times, values = random_walk(6000)
    spread = fit_last_value(times, values).predict(times[-1] + torch.tensor([1.0, 4.0, 50.0])).standard_deviation
    torch.testing.assert_close(
        spread.flatten() ** 2, torch.tensor([1.5, 4.5, 50.5], dtype=torch.float64), rtol=0.2, atol=0.0
    )


def test_interpolation_band_narrows_at_observations_and_widens_in_gaps():
    times, values = random_walk(2000)
    times[1000:] += 30.0
    baseline = fit_linear_interpolation(times, values)
    middle = (times[999] + times[1000]) / 2
    at, gap = baseline.predict(torch.stack([times[500], middle])).standard_deviation.flatten() ** 2
    assert 0.2 < at < 1.0  # noise alone, 0.25 plus the noise of the neighbours
    assert 5 < gap < 11  # Brownian bridge of length 31 at its middle: 7.75


@pytest.mark.parametrize("fit", [fit_last_value, fit_linear_interpolation])
def test_bands_cover_held_out_values_at_their_level(fit):
    times, values = random_walk(4000, seed=1)
    train = torch.rand(4000, generator=torch.Generator().manual_seed(2)) < 0.5
    prediction = fit(times, values, train).predict(times)
    draws = prediction.sample(399, generator=torch.Generator().manual_seed(3))
    coverage = interval_coverage(draws, values, ~train)
    # Neighbouring errors share an observation: allow 6 independent standard errors (0.04).
    assert abs(coverage.mean - 0.9) < 6 * coverage.standard_error


def test_band_is_pooled_over_series_but_not_over_channels():
    times, values = random_walk(400)
    calm, wild = values, 10 * values
    baseline = fit_last_value(times, torch.stack([torch.cat([calm, wild], -1), torch.cat([wild, wild], -1)]))
    spread = baseline.predict(times[-1:] + 1).standard_deviation  # (series, 1, channel)
    torch.testing.assert_close(spread[0, 0, 0], spread[1, 0, 0])
    assert spread[0, 0, 0] < 0.8 * spread[0, 0, 1]


def test_ragged_batch_keeps_each_row_its_own_end():
    mask = torch.tensor([[True] * 4, [True] * 3 + [False]])
    baseline = fit_last_value(TIMES, VALUES.expand(2, 4, 1), mask)
    assert baseline.predict(torch.tensor([9.0])).mean.flatten().tolist() == [1.0, -2.0]
