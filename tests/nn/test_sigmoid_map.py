"""SigmoidMap: monotone, inverted, with the slopes and rates of automatic differentiation."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_sde.nn.sigmoid_map import SigmoidMap, SigmoidTransform

D64 = torch.float64


def drawn(count, size=200, scale=3.0):
    torch.manual_seed(0)
    return SigmoidMap(count), scale * torch.randn(size, count, dtype=D64), 2 * torch.randn(size, dtype=D64)


def test_centres_are_spread_evenly_and_symmetric():
    assert SigmoidMap(1).centres.tolist() == [0.0]
    assert SigmoidMap(5).centres.tolist() == [-2.0, -1.0, 0.0, 1.0, 2.0]


def test_numbers_0_are_the_identity():
    sigmoids, raw, eps = drawn(4)
    weights = sigmoids.weights(torch.zeros_like(raw))
    assert weights.abs().max() < 1e-15
    assert torch.allclose(sigmoids.apply(weights, eps), eps, atol=1e-14)


def test_the_map_is_that_of_its_equation():
    sigmoids = SigmoidMap(3)
    weights, eps = torch.tensor([0.5, -0.2, 1.5], dtype=D64), 0.7
    b = sigmoids.steepness
    terms = (
        w / b * (math.tanh(b * (eps - c)) + math.tanh(b * c)) for w, c in zip(weights, (-2.0, 0.0, 2.0), strict=True)
    )
    assert float(sigmoids.apply(weights, torch.tensor(eps, dtype=D64))) == pytest.approx(eps + sum(map(float, terms)))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_slopes_are_positive_and_those_of_automatic_differentiation(count):
    sigmoids, raw, eps = drawn(count, scale=20.0)
    weights = sigmoids.weights(raw)
    assert weights.min() >= -0.9 / count
    slope, change = sigmoids.slope(weights, eps)
    assert slope.min() >= 0.1 - 1e-12
    eps.requires_grad_()
    first = torch.autograd.grad(sigmoids.apply(weights, eps).sum(), eps, create_graph=True)[0]
    assert torch.allclose(slope, first, atol=1e-12)
    assert torch.allclose(change, torch.autograd.grad(first.log().sum(), eps)[0], atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_the_inverse_undoes_the_map_to_round_off(count, scale):
    sigmoids, raw, eps = drawn(count, scale=scale)
    weights = sigmoids.weights(raw)
    found = sigmoids.invert(weights, sigmoids.apply(weights, eps))
    assert (found - eps).abs().max() < 1e-12 * (1 + scale)


def test_the_inverse_has_the_first_derivatives_of_the_inverse():
    sigmoids, raw, eps = drawn(3, size=20)
    raw.requires_grad_()
    weights = sigmoids.weights(raw)
    value = sigmoids.apply(weights, eps).detach().requires_grad_()
    slope, _ = sigmoids.slope(weights, eps)
    found = torch.autograd.grad(sigmoids.invert(weights, value).sum(), (value, weights))
    implicit = torch.autograd.grad(-(sigmoids.apply(weights, eps) / slope.detach()).sum(), weights)[0]
    assert torch.allclose(found[0], 1 / slope, atol=1e-10)
    assert torch.allclose(found[1], implicit, atol=1e-10)


def test_rates_of_weights_are_those_of_automatic_differentiation():
    sigmoids, raw, _ = drawn(3)
    rate = torch.randn_like(raw)
    _, expected = torch.func.jvp(sigmoids.weights, (raw,), (rate,))
    assert torch.allclose(sigmoids.weights_rate(raw, rate), expected, atol=1e-14)


def test_the_image_of_noise_has_a_density_that_integrates_to_one_and_two_modes():
    sigmoids = SigmoidMap(1)
    weights = torch.tensor([[3.0]], dtype=D64)
    normal = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(1, dtype=D64), 1.0), 1)
    law = torch.distributions.TransformedDistribution(
        normal, SigmoidTransform(sigmoids, torch.zeros(1, dtype=D64), torch.ones(1, dtype=D64), weights)
    )
    x = torch.linspace(-12.0, 12.0, 4001, dtype=D64).unsqueeze(-1)
    density = law.log_prob(x).exp()
    assert float(torch.trapezoid(density, x.squeeze(-1))) == pytest.approx(1.0, abs=1e-9)
    peaks = ((density[1:-1] > density[:-2]) & (density[1:-1] > density[2:])).sum()
    assert int(peaks) == 2


@pytest.mark.parametrize("full", [False, True])
def test_the_transform_has_the_jacobian_of_automatic_differentiation(full):
    torch.manual_seed(1)
    mean, scale = torch.randn(3, dtype=D64), torch.rand(3, dtype=D64) + 0.5
    scale = torch.diag_embed(scale) + torch.randn(3, 3, dtype=D64).tril(-1) if full else scale
    transform = SigmoidTransform(SigmoidMap(2), mean, scale, torch.rand(3, 2, dtype=D64))
    x = torch.randn(3, dtype=D64)
    y = transform(x)
    jacobian = torch.autograd.functional.jacobian(transform._call, x)
    assert float(transform.log_abs_det_jacobian(x, y)) == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]))
    assert torch.allclose(transform.inv(y.clone()), x, atol=1e-12)


def test_it_runs_in_float32():
    sigmoids, eps = SigmoidMap(4), torch.randn(50)
    weights = sigmoids.weights(torch.randn(50, 4))
    value = sigmoids.apply(weights, eps)
    assert value.dtype == torch.float32
    assert (sigmoids.invert(weights, value) - eps).abs().max() < 1e-4


@pytest.mark.parametrize("count", [0, -1, 2.0])
def test_a_bad_count_is_named(count):
    with pytest.raises(ValueError, match="`count` must be an integer >= 1"):
        SigmoidMap(count)
