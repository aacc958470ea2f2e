"""Marginals as functions of time: interpolation, its derivative, shapes and positive scales."""

from __future__ import annotations

import pytest
import torch

from pyro_sde.nn.marginals import (
    FlowMarginals,
    Marginals,
    NodeMarginals,
    num_moments,
    pushed_forward,
    raw_moments,
)
from pyro_sde.nn.mlp import MLP
from pyro_sde.nn.sigmoid_map import SigmoidMap

D64 = torch.float64


def test_rows_are_straight_lines_with_a_bump_in_every_gap():
    knots = torch.tensor([0.0, 1.0, 3.0], dtype=D64)
    nodes = torch.tensor([[0.0, 0.0], [2.0, 0.0], [-2.0, 0.0]], dtype=D64)
    bends = torch.tensor([[1.0, 0.0], [0.5, 0.0]], dtype=D64)
    mean, _ = NodeMarginals(knots, nodes, 1, bends=bends).moments(
        torch.tensor([[0.0], [0.5], [1.0], [2.0], [3.0]], dtype=D64)
    )
    assert mean.flatten().tolist() == pytest.approx([0.0, 2.0, 2.0, 0.5, -2.0])


def test_outside_the_knots_the_nearest_row_holds():
    knots, nodes = torch.tensor([0.0, 1.0]), torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    mean, _ = NodeMarginals(knots, nodes, 1).moments(torch.tensor([[-5.0], [9.0]]))
    assert mean.flatten().tolist() == [1.0, 2.0]


def test_at_a_knot_the_derivative_is_that_of_the_gap_behind_it():
    knots, nodes = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([[0.0, 0.0], [1.0, 0.0], [4.0, 0.0]])
    marginals, t = NodeMarginals(knots, nodes, 1), torch.tensor([[0.0], [1.0]])
    _, (rate, _) = torch.func.jvp(marginals.moments, (t,), (torch.ones_like(t),))
    assert rate.flatten().tolist() == [1.0, 3.0]


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_moments_are_continuous_and_the_derivative_is_that_of_differences(covariance):
    torch.manual_seed(0)
    knots = torch.tensor([[0.0, 0.5, 2.0, 2.0], [0.2, 0.4, 1.0, 1.6]], dtype=D64)
    head = MLP(3 + 4, num_moments(2, covariance), (8,)).double()
    counts = torch.tensor([3, 4])
    marginals = NodeMarginals(knots, torch.randn(2, 4, 3, dtype=D64), 2, head=head, counts=counts, time_scale=0.7)
    t = torch.linspace(-0.5, 2.5, 41, dtype=D64).reshape(-1, 1, 1) + 1e-4
    (mean, scale), rates = torch.func.jvp(marginals.moments, (t,), (torch.ones_like(t),))
    assert mean.shape == (41, 2, 2)
    assert scale.shape == ((41, 2, 2) if covariance == "diagonal" else (41, 2, 2, 2))
    step = 1e-6
    for after, before, rate in zip(marginals.moments(t + step), marginals.moments(t - step), rates, strict=True):
        assert (((after - before) / (2 * step)) - rate).abs().max() < 1e-7
    for knot in (0.0, 0.2, 0.4, 0.5, 1.0, 1.6, 2.0):
        sides = [marginals.moments(torch.tensor([knot + side * 1e-9], dtype=D64)) for side in (-1, 1)]
        assert all((a - b).abs().max() < 1e-7 for a, b in zip(*sides, strict=True))


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("activation", ["silu", "tanh", "elu", None])
def test_rates_written_out_are_those_of_automatic_differentiation(covariance, activation):
    torch.manual_seed(3)
    size = num_moments(2, covariance)
    head = None if activation is None else MLP(size + 4, size, (8, 8), activation=activation).double()
    knots = torch.tensor([[0.0, 0.5, 2.0], [0.2, 0.4, 1.0]], dtype=D64)
    nodes, bends = torch.randn(2, 3, size, dtype=D64), torch.randn(2, 2, size, dtype=D64)
    marginals = NodeMarginals(knots, nodes, 2, head=head, bends=bends, time_scale=0.7)
    t = torch.rand(40, 2, 1, dtype=D64) * 3 - 0.5
    for ours, theirs in zip(marginals.moments_and_rates(t), Marginals.moments_and_rates(marginals, t), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_numbers_of_a_flow_are_moments_and_weights_with_their_rates(covariance):
    torch.manual_seed(4)
    plain, sigmoids = num_moments(2, covariance), SigmoidMap(3)
    nodes = torch.randn(4, 3, plain + 6, dtype=D64)
    knots, t = torch.tensor([0.0, 0.5, 2.0], dtype=D64), torch.rand(40, 1, 1, dtype=D64) * 3 - 0.5
    flow = FlowMarginals(NodeMarginals(knots, nodes, 2, known=(0.0, 2.0)), sigmoids)
    assert (flow.batch_shape, flow.low, flow.high, flow.sigmoids) == ((4,), 0.0, 2.0, sigmoids)
    mean, scale, weights = flow.moments(t)
    gaussian = NodeMarginals(knots, nodes[..., :plain], 2).moments(t)
    assert torch.equal(mean, gaussian[0])
    assert torch.equal(scale, gaussian[1])
    raw = NodeMarginals(knots, nodes, 2).numbers(t)[..., plain:].reshape(40, 4, 2, 3)  # a row for every dimension
    assert torch.equal(weights, sigmoids.weights(raw))
    ours, theirs = flow.moments_and_rates(t), Marginals.moments_and_rates(flow, t)
    assert len(ours) == len(theirs) == 6
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(ours, theirs, strict=True))


def test_networks_of_other_kinds_are_pushed_forward_too():
    x, tangent = torch.randn(5, 3, dtype=D64), torch.randn(5, 3, dtype=D64)
    value, rate = pushed_forward(torch.nn.Softplus(), x, tangent)
    assert torch.allclose(value, torch.nn.functional.softplus(x))
    assert torch.allclose(rate, x.sigmoid() * tangent)


def test_padded_knots_have_no_influence():
    torch.manual_seed(1)
    head, nodes = MLP(3 + 4, 2, (8,)), torch.randn(3, 3)
    alone = NodeMarginals(torch.tensor([0.0, 0.5, 2.0]), nodes, 1, head=head)
    padded = NodeMarginals(
        torch.tensor([[0.0, 0.5, 2.0, 2.0, 2.0]]),
        torch.cat([nodes, torch.full((2, 3), 9.0)]).unsqueeze(0),
        1,
        head=head,
        counts=torch.tensor([3]),
    )
    t = torch.tensor([-1.0, 0.0, 0.7, 1.99, 2.0, 4.0]).reshape(-1, 1, 1)
    for ours, theirs in zip(padded.moments(t), alone.moments(t), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_series_without_knots_has_some_marginal():
    marginals = NodeMarginals(torch.zeros(1, 2), torch.zeros(1, 2, 2), 1, counts=torch.tensor([0]))
    mean, scale = marginals.moments(torch.tensor([[0.3]]))
    assert mean.tolist() == [[0.0]]
    assert bool((scale > 0).all())


@pytest.mark.parametrize("shape", [(1,), (2, 1), (1, 1), (7, 2, 1), (3, 7, 2, 1), (7, 1, 1)])
def test_times_have_batch_dimensions_on_the_right_and_any_on_the_left(shape):
    marginals = NodeMarginals(torch.tensor([0.0, 1.0]), torch.randn(2, 2, 4), 2)
    mean, scale = marginals.moments(torch.rand(shape))
    assert mean.shape == scale.shape == (*torch.broadcast_shapes(shape[:-1], (2,)), 2)


def test_full_factors_are_lower_triangular_with_a_positive_diagonal():
    torch.manual_seed(2)
    mean, factor = raw_moments(10 * torch.randn(50, num_moments(3, "full")), 3)
    assert mean.shape == (50, 3)
    assert torch.equal(factor, factor.tril())
    assert float(factor.diagonal(dim1=-2, dim2=-1).min()) >= 0.999e-4
    assert len(factor[0].tril(-1).nonzero()) == 3


def test_zeros_give_the_initial_scale_in_both_forms():
    for covariance in ("diagonal", "full"):
        _, scale = raw_moments(torch.zeros(num_moments(2, covariance)), 2, initial=0.3)
        diagonal = scale if scale.dim() == 1 else scale.diagonal()
        assert diagonal.tolist() == pytest.approx([0.3, 0.3])


def test_an_unknown_covariance_is_named():
    with pytest.raises(ValueError, match='`covariance` must be "diagonal" or "full", received \'dense\''):
        num_moments(2, "dense")
