"""`fit_ou` against dense Gaussian process regression, a generic optimiser and simulated truth."""

import math

import pytest
import torch
from scipy.optimize import minimize
from torch.distributions import MultivariateNormal

from pyro_sde.diagnostics import fit_ou


def simulate(n, rate, signal, noise, *, batch=(), slope=0.0, span=50.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    times = span * torch.rand(*batch, n, generator=generator, dtype=torch.float64).sort(-1).values
    white = torch.randn(*batch, n, generator=generator, dtype=torch.float64)
    state = [signal * white[..., 0]]
    for k in range(1, n):
        decay = torch.exp(-rate * (times[..., k] - times[..., k - 1]))
        state.append(decay * state[-1] + signal * (1 - decay**2).sqrt() * white[..., k])
    errors = noise * torch.randn(*batch, n, generator=generator, dtype=torch.float64)
    return times, (torch.stack(state, -1) + errors + 3.0 + slope * times).unsqueeze(-1)


def dense(fitted, times, values, query):
    """Log-likelihood and predictive moments of the same model by an N x N solve."""
    rate, signal, noise = fitted.rate, fitted.signal, fitted.noise
    trend = [fitted.level + fitted.slope * (t - fitted.reference) for t in (times, query)]
    gram = signal**2 * torch.exp(-rate * (times[:, None] - times).abs())
    gram = gram + noise**2 * torch.eye(len(times), dtype=torch.float64)
    cross = signal**2 * torch.exp(-rate * (query[:, None] - times).abs())
    weights = torch.linalg.solve(gram, cross.T).T
    likelihood = MultivariateNormal(trend[0], gram).log_prob(values[:, 0])
    variance = signal**2 + noise**2 - (weights * cross).sum(-1)
    return likelihood, trend[1] + weights @ (values[:, 0] - trend[0]), variance.sqrt()


@pytest.mark.parametrize("trend", [True, False])
@pytest.mark.parametrize(("rate", "noise"), [(0.3, 0.4), (5.0, 0.05), (0.02, 1.0)])
def test_likelihood_and_predictions_equal_dense_regression_to_1e8(rate, noise, trend):
    times, values = simulate(150, rate, 1.0, noise, slope=0.1)
    mask = torch.rand(150, generator=torch.Generator().manual_seed(1)) < 0.7
    fitted = fit_ou(times, values, mask, trend=trend)
    inside = times[mask][[3, 40]]  # at observations, too: a new observation at the same time
    query = torch.cat([torch.linspace(-20, 80, 101, dtype=torch.float64), inside])
    likelihood, mean, spread = dense(fitted, times[mask], values[mask], query)
    prediction = fitted.predict(query)
    torch.testing.assert_close(fitted.log_likelihood[0], likelihood, atol=1e-8, rtol=0)
    torch.testing.assert_close(prediction.mean[:, 0], mean, atol=1e-8, rtol=0)
    torch.testing.assert_close(prediction.standard_deviation[:, 0], spread, atol=1e-8, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_no_optimiser_finds_a_higher_likelihood(seed):
    times, values = simulate(40, 0.4, 1.0, 0.5, slope=0.05, seed=seed)
    fitted = fit_ou(times, values)
    y, t = values[:, 0].numpy(), times.numpy()

    def deviance(p):  # all five parameters at once
        rate, signal, noise = (math.exp(min(max(v, -15.0), 15.0)) for v in p[:3])
        gram = signal**2 * torch.exp(-rate * (times[:, None] - times).abs())
        gram = gram + (noise**2 + 1e-10) * torch.eye(40, dtype=torch.float64)
        trend = torch.as_tensor(p[3] + p[4] * t)
        return -MultivariateNormal(trend, gram).log_prob(torch.as_tensor(y)).item()

    best = max(
        -minimize(deviance, [math.log(rate), 0.0, math.log(noise), y.mean(), 0.0], method="L-BFGS-B").fun
        for rate, noise in [(0.05, 0.5), (0.5, 0.5), (5.0, 0.5), (0.5, 0.05)]
    )
    assert fitted.log_likelihood.item() > best - 1e-4


def test_parameters_are_recovered_from_simulated_data():
    # 16 series of 600 points, span 200: the average of log-estimates has a standard error near 0.04 for the rate
    # and the signal, 0.02 for the noise; 15 % and 5 % are more than 3 of them.
    times, values = simulate(600, 0.5, 2.0, 0.5, batch=(16,), slope=0.05, span=200.0)
    fitted = fit_ou(times, values)
    assert fitted.rate.log().mean().exp().item() == pytest.approx(0.5, rel=0.15)
    assert fitted.signal.log().mean().exp().item() == pytest.approx(2.0, rel=0.15)
    assert fitted.noise.log().mean().exp().item() == pytest.approx(0.5, rel=0.05)
    assert fitted.slope.mean().item() == pytest.approx(0.05, abs=0.005)


def test_batch_finds_the_optimum_of_every_series():
    times, values = simulate(60, 0.5, 1.0, 0.3, batch=(12,))
    together = fit_ou(times, values).log_likelihood
    alone = torch.stack([fit_ou(times[i], values[i]).log_likelihood for i in range(12)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_trend_false_fits_no_slope_and_a_lower_likelihood():
    times, values = simulate(100, 1.0, 0.5, 0.2, slope=1.0)
    flat, sloped = fit_ou(times, values, trend=False), fit_ou(times, values)
    assert flat.slope.item() == 0.0
    assert sloped.slope.item() == pytest.approx(1.0, abs=0.05)
    assert sloped.log_likelihood.item() > flat.log_likelihood.item() + 10


def test_far_away_the_prediction_is_the_trend_with_the_stationary_spread():
    times, values = simulate(200, 1.0, 1.0, 0.5, slope=0.2)
    fitted = fit_ou(times, values)
    mean, spread = fitted.predict(torch.tensor([-500.0, 500.0], dtype=torch.float64))
    expected = fitted.level + fitted.slope * (torch.tensor([-500.0, 500.0]) - fitted.reference)
    torch.testing.assert_close(mean[:, 0], expected, atol=1e-8, rtol=0)
    torch.testing.assert_close(spread[0], (fitted.signal**2 + fitted.noise**2).sqrt(), atol=1e-8, rtol=0)


@pytest.mark.parametrize("kind", ["white noise", "random walk", "line", "smooth"])
def test_extreme_series_give_finite_fits(kind):
    generator = torch.Generator().manual_seed(0)
    times = torch.arange(80.0, dtype=torch.float64)
    noise = torch.randn(80, generator=generator, dtype=torch.float64)
    values = {
        "white noise": noise,
        "random walk": noise.cumsum(0),
        "line": 1e4 + 3 * times,
        "smooth": torch.sin(times / 10),
    }[kind]
    fitted = fit_ou(times, values.unsqueeze(-1))
    mean, spread = fitted.predict(torch.tensor([-3.0, 10.5, 100.0], dtype=torch.float64))
    assert fitted.log_likelihood.isfinite().all()
    assert mean.isfinite().all()
    assert (spread > 0).all()
    if kind == "line":
        torch.testing.assert_close(mean.flatten(), 1e4 + 3 * torch.tensor([-3.0, 10.5, 100.0], dtype=torch.float64))
