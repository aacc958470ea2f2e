"""The scans against a step-by-step Kalman filter and smoother."""

import torch

from pyro_sde.diagnostics._ou_filter import Chain, kalman_filter, kalman_smooth


def problem(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    gaps = torch.rand(2, n - 1, generator=generator, dtype=torch.float64)
    gaps[:, ::5] = 0.0  # a query at the time of an observation
    seen = torch.rand(2, n, generator=generator) < 0.6
    data = torch.where(seen, torch.randn(2, n, generator=generator, dtype=torch.float64), 0.0)
    rate, ratio = (torch.tensor(pair, dtype=torch.float64) for pair in ((0.3, 4.0), (0.5, 1e-6)))
    return gaps, rate, ratio, data, seen


def step_by_step(gaps, rate, ratio, data, seen):
    """Textbook recursions, one row and one time after the other."""
    filtered, predicted = [], []
    for row in range(2):
        mean, variance = 0.0, 1.0
        for k in range(data.shape[1]):
            if k:
                decay = torch.exp(-rate[row] * gaps[row, k - 1])
                mean, variance = decay * mean, decay**2 * variance + 1 - decay**2
            predicted.append((mean, variance))
            if seen[row, k]:
                gain = variance / (variance + ratio[row])
                mean, variance = mean + gain * (data[row, k] - mean), (1 - gain) * variance
            filtered.append((mean, variance))
    shape = (*data.shape, 2)
    filtered = torch.tensor(filtered, dtype=torch.float64).reshape(shape)
    predicted = torch.tensor(predicted, dtype=torch.float64).reshape(shape)
    smooth = filtered.clone()
    for row in range(2):
        for k in reversed(range(data.shape[1] - 1)):
            decay = torch.exp(-rate[row] * gaps[row, k])
            gain = filtered[row, k, 1] * decay / predicted[row, k + 1, 1]
            smooth[row, k, 0] += gain * (smooth[row, k + 1, 0] - predicted[row, k + 1, 0])
            smooth[row, k, 1] += gain**2 * (smooth[row, k + 1, 1] - predicted[row, k + 1, 1])
    return filtered, predicted, smooth


def test_scans_equal_the_recursions():
    gaps, rate, ratio, data, seen = problem(37)
    filtered, predicted, smooth = step_by_step(gaps, rate, ratio, data, seen)
    chain = Chain.of(gaps, rate)
    result = kalman_filter(chain, ratio, data.unsqueeze(0), seen)
    mean, variance = kalman_smooth(chain, result)
    for actual, expected in (
        (result.mean[0], filtered[..., 0]),
        (result.variance, filtered[..., 1]),
        (result.predicted, predicted[..., 1]),
        (result.innovation[0], data - predicted[..., 0]),
        (result.scale, predicted[..., 1] + ratio.unsqueeze(-1)),
        (mean[0], smooth[..., 0]),
        (variance, smooth[..., 1]),
    ):
        torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-9)


def test_one_observation_is_a_conjugate_update():
    chain = Chain.of(torch.zeros(1, 0, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    ratio, data = torch.tensor([3.0], dtype=torch.float64), torch.tensor([[[8.0]]], dtype=torch.float64)
    result = kalman_filter(chain, ratio, data, torch.tensor([[True]]))
    mean, variance = kalman_smooth(chain, result)
    assert mean.item() == 2.0
    assert variance.item() == 0.75


def test_long_series_neither_overflow_nor_lose_positivity():
    gaps, rate, ratio, data, seen = problem(50_000)
    chain = Chain.of(gaps, rate)
    result = kalman_filter(chain, ratio, data.unsqueeze(0), seen)
    mean, variance = kalman_smooth(chain, result)
    assert mean.isfinite().all()
    assert (variance > 0).all()
    assert (variance <= 1).all()


def test_float32_agrees_with_float64_to_1e4():
    gaps, rate, ratio, data, seen = problem(200)
    results = []
    for dtype in (torch.float32, torch.float64):
        chain = Chain.of(gaps.to(dtype), rate.to(dtype))
        result = kalman_filter(chain, ratio.to(dtype), data.to(dtype).unsqueeze(0), seen)
        results.append(kalman_smooth(chain, result)[0].double())
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)
