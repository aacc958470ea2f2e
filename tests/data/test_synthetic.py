"""The simulators against their laws. Statistical tests: alpha = 2e-5 (|z| < 4.26), fixed seed, float64."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_sde.data import TimeSeries, synthetic

Z = 4.26
# One row per simulator: arguments that make it quick, and the number of channels.
TABLE = {
    "double_well": ({"num_series": 3, "num_times": 12, "end_time": 1.0}, 1),
    "irregular_sine": ({"num_series": 3, "num_times": 12, "noise": 0.1}, 1),
    "ornstein_uhlenbeck": ({"num_series": 3, "num_times": 12}, 1),
    "stochastic_lorenz": ({"num_series": 3, "num_times": 12, "end_time": 0.5}, 3),
}


def simulate(name, seed=0, **options):
    return getattr(synthetic, name)(seed, **{**TABLE[name][0], **options})


def equal(one, two):
    return (
        torch.equal(one.times, two.times)
        and torch.equal(one.mask, two.mask)
        and torch.equal(one.filled(), two.filled())
    )


def test_numbers_may_come_in_tensors():
    drift, noise = (10.0, 28.0, 2.5), (0.1, 0.2, 0.25)
    plain = simulate("stochastic_lorenz", drift=drift, diffusion=noise)
    assert equal(plain, simulate("stochastic_lorenz", drift=torch.tensor(drift), diffusion=noise))
    theta = simulate("ornstein_uhlenbeck", theta=torch.tensor(0.5, dtype=torch.float64))
    assert equal(simulate("ornstein_uhlenbeck", theta=0.5), theta)


def test_every_simulator_has_a_row():
    assert sorted(TABLE) == synthetic.__all__


@pytest.mark.parametrize("name", TABLE)
class TestEverySimulator:
    def test_gives_a_record_of_the_right_shape(self, name):
        series = simulate(name)
        assert isinstance(series, TimeSeries)
        assert series.values.shape == (3, 12, TABLE[name][1])
        assert series.values.dtype == torch.float64
        assert series.name == name
        assert name in series.source
        assert series.description

    @pytest.mark.parametrize("irregular", [False, True])
    def test_same_seed_gives_same_data(self, name, irregular):
        options = {"irregular": irregular, "missing": 0.3}
        assert equal(simulate(name, **options), simulate(name, **options))
        assert not equal(simulate(name, **options), simulate(name, seed=1, **options))

    def test_global_random_state_is_neither_used_nor_changed(self, name):
        before = torch.get_rng_state()
        first = simulate(name, irregular=True, missing=0.3)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(1)
        assert equal(first, simulate(name, irregular=True, missing=0.3))

    def test_missing_takes_entries_out_and_changes_no_other(self, name):
        whole, part = simulate(name, irregular=True), simulate(name, irregular=True, missing=0.4)
        assert whole.mask.all()
        assert not part.mask.all()
        assert torch.equal(part.times, whole.times)
        assert torch.equal(part.values[part.mask], whole.values[part.mask])

    def test_irregular_decides_about_the_times(self, name):
        regular, irregular = simulate(name, irregular=False), simulate(name, irregular=True)
        gaps = torch.diff(regular.times)
        assert torch.allclose(gaps, gaps[0, 0])
        assert torch.equal(regular.times[0], regular.times[1])
        assert torch.diff(irregular.times).std() > 0.1 * gaps[0, 0]
        assert not torch.equal(irregular.times[0], irregular.times[1])

    def test_float32_keeps_times_apart(self, name):
        series = simulate(name, irregular=True, num_times=500)
        single = series.to(torch.float32)
        torch.testing.assert_close(single.values.double(), series.values, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("seed", [None, 0.0, True, "0"])
    def test_seed_must_be_an_integer(self, name, seed):
        with pytest.raises(TypeError, match="`seed` must be an integer, received"):
            simulate(name, seed=seed)

    def test_missing_must_be_a_fraction(self, name):
        with pytest.raises(ValueError, match="`missing` must be a fraction"):
            simulate(name, missing=1.0)


@pytest.mark.parametrize("irregular", [False, True])
def test_ornstein_uhlenbeck_has_its_covariance(irregular):
    theta, sigma = 2.0, 0.7
    series = synthetic.ornstein_uhlenbeck(
        3, num_series=2000, num_times=30, end_time=6.0, irregular=irregular, theta=theta, sigma=sigma
    )
    lag = (series.times[:, :, None] - series.times[:, None, :]).abs()
    covariance = sigma**2 / (2 * theta) * torch.exp(-theta * lag)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), series.values, upper=False)
    n = white.numel()  # 60 000 standard normals: detects 2.5 % in the variance, .017 in the mean
    assert abs(white.mean().item()) < Z / math.sqrt(n)
    assert abs(white.square().mean().item() - 1) < Z * math.sqrt(2 / n)
    neighbours = (white[:, 1:] * white[:, :-1]).mean().item()
    assert abs(neighbours) < Z / math.sqrt(2000 * 29)


def test_ornstein_uhlenbeck_is_stationary_from_the_first_time():
    series = synthetic.ornstein_uhlenbeck(5, num_series=10_000, num_times=3, theta=0.3, sigma=1.5)
    variance = 1.5**2 / 0.6
    for k in range(3):  # detects 6 % in the variance
        sample = series.values[:, k]
        assert abs(sample.mean().item()) < Z * math.sqrt(variance / 10_000)
        assert abs(sample.square().mean().item() / variance - 1) < Z * math.sqrt(2 / 10_000)


def double_well_moments(rate, sigma):
    """E z^2, E z^4, E z^8 of the stationary density, by a fine Riemann sum."""
    z = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    density = torch.exp(rate / sigma**2 * (z**2 - z**4 / 2))
    density = density / density.sum()
    return [(density * z**power).sum().item() for power in (2, 4, 8)]


@pytest.mark.parametrize(("rate", "sigma"), [(4.0, 1.0), (1.0, 1.3)])
def test_double_well_keeps_its_stationary_law(rate, sigma):
    second, fourth, eighth = double_well_moments(rate, sigma)
    n = 10_000
    series = synthetic.double_well(7, num_series=n, num_times=3, end_time=2.0, rate=rate, sigma=sigma)
    for k in range(3):
        z = series.values[:, k]
        assert abs(z.mean().item()) < Z * math.sqrt(second / n)
        assert abs(z.square().mean().item() - second) < Z * math.sqrt((fourth - second**2) / n)
        assert abs(z.pow(4).mean().item() - fourth) < Z * math.sqrt((eighth - fourth**2) / n)


def test_double_well_moves_at_the_speed_of_its_diffusion():
    series = synthetic.double_well(1, num_series=20, num_times=1001, end_time=1.0, rate=2.0, sigma=0.6)
    squares = torch.diff(series.values, dim=1).square().sum(1)  # quadratic variation over time 1
    assert squares.mean().item() == pytest.approx(0.36, rel=0.05)  # 20 000 increments: 1 % standard error


def lorenz_path(initial, times, drift):
    """Deterministic Lorenz system by the midpoint rule with tiny steps."""
    a, b, c = drift

    def slope(s):
        x, y, z = s.unbind(-1)
        return torch.stack([a * (y - x), x * (b - z) - y, x * y - c * z], -1)

    state, path = initial, [initial]
    for gap in torch.diff(times).tolist():
        for _ in range(200):
            state = state + gap / 200 * slope(state + gap / 400 * slope(state))
        path.append(state)
    return torch.stack(path, 1)


def test_lorenz_without_noise_is_the_lorenz_system():
    drift = (9.0, 27.0, 3.0)
    series = synthetic.stochastic_lorenz(
        2, num_series=20, num_times=21, end_time=1.0, drift=drift, diffusion=(0.0, 0.0, 0.0)
    )
    # Regular times draw nothing, so the initial states are the first numbers of the generator.
    initial = torch.randn(20, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    path = lorenz_path(initial, series.times[0], drift)
    expected = (path - path.mean((0, 1))) / path.std((0, 1), correction=0)
    noise = (series.values - expected).flatten()  # 1260 values
    assert abs(noise.mean().item()) < Z * 0.01 / math.sqrt(1260)
    assert noise.std().item() == pytest.approx(0.01, rel=Z / math.sqrt(2 * 1260))


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_lorenz_diffusion_acts_on_its_own_channel(channel):
    diffusion = [0.0, 0.0, 0.0]
    diffusion[channel] = 1.0
    series = synthetic.stochastic_lorenz(
        0, num_series=50, num_times=30, end_time=1.0, drift=(0.5, 0.5, 0.5), diffusion=diffusion
    )
    first = torch.diff(series.values, dim=1)
    roughness = torch.diff(first, dim=1).square().mean((0, 1)) / first.square().mean((0, 1))
    assert roughness.argmax() == channel


def test_lorenz_is_standardised():
    series = synthetic.stochastic_lorenz(0, num_series=64, num_times=20)
    torch.testing.assert_close(series.values.mean((0, 1)), torch.zeros(3).double(), rtol=0, atol=2e-3)
    torch.testing.assert_close(series.values.std((0, 1)), torch.ones(3).double(), rtol=0, atol=5e-3)


def test_sine_is_the_published_toy():
    series = synthetic.irregular_sine(0)
    assert series.values.shape == (1, 16, 1)
    assert series.times.min() >= 0.4
    assert series.times.max() <= 1.6
    torch.testing.assert_close(series.values[..., 0], 0.8 * torch.sin(2 * math.pi * series.times))
    noisy = synthetic.irregular_sine(0, num_series=100, noise=0.2)
    noise = noisy.values[..., 0] - 0.8 * torch.sin(2 * math.pi * noisy.times)
    assert noise.std().item() == pytest.approx(0.2, rel=Z / math.sqrt(2 * 1600))


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("ornstein_uhlenbeck", {"theta": 0.0}, "`theta` must be positive and finite, received 0.0"),
        ("ornstein_uhlenbeck", {"sigma": -1.0}, "`sigma` must be positive and finite, received -1.0"),
        ("ornstein_uhlenbeck", {"end_time": 0.0}, "`end_time` must be finite and greater than 0"),
        ("ornstein_uhlenbeck", {"num_times": 0}, "`num_times` must be at least 1"),
        ("double_well", {"rate": float("nan")}, "`rate` must be positive and finite, received nan"),
        ("double_well", {"sigma": float("inf")}, "`sigma` must be positive and finite, received inf"),
        ("stochastic_lorenz", {"drift": (1.0, None, 2.0, 3.0)}, r"`drift` must hold 3 finite number\(s\), received"),
        ("stochastic_lorenz", {"drift": ("10", 1.0, 2.0)}, r"`drift` must hold 3 finite number\(s\), received"),
        ("stochastic_lorenz", {"drift": ("10", 1.0, 2.0, 3.0)}, r"`drift` must hold 3 finite number\(s\), received"),
        ("stochastic_lorenz", {"drift": 3.0}, r"`drift` must hold 3 finite number\(s\), received 3.0"),
        ("stochastic_lorenz", {"drift": (1.0, 2.0)}, r"`drift` must hold 3 finite number\(s\), received"),
        ("stochastic_lorenz", {"diffusion": (0.1, -0.1, 0.1)}, "`diffusion` must hold 3 .*, each at least 0"),
        ("irregular_sine", {"noise": -0.1}, "`noise` must hold 1 .*, each at least 0"),
    ],
)
def test_bad_arguments_are_named(name, options, match):
    with pytest.raises(ValueError, match=match):
        simulate(name, **options)
