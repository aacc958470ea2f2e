"""A bridge has the law of Brownian motion given what is known of it."""

import math

import pytest
import torch

from pyro_sde.ops.brownian import VirtualBrownianTree, brownian_bridge
from pyro_sde.testing.statistics import assert_mean

F64 = torch.float64


def conditional_law(times, queries):
    """Matrix of the mean and covariance of W at `queries` given W at `times`, by dense Gaussian conditioning."""
    prior = 5.0 + torch.minimum(times.unsqueeze(-1), times)  # a start known only roughly: W_0 ~ N(0, 5)
    cross = 5.0 + torch.minimum(queries.unsqueeze(-1), times)
    gain = torch.linalg.solve(prior, cross.T).T
    return gain, 5.0 + torch.minimum(queries.unsqueeze(-1), queries) - gain @ cross.T


@pytest.mark.parametrize(
    "queries",
    [
        [1.3],
        [0.2, 0.9, 0.5, 0.4999, 1.1, 2.6, 2.5, 1.05],  # unsorted, several in one gap
        [0.0, 0.5, 0.5, 1.0, 0.7, 0.7, 2.0, 3.0, 3.0],  # at known times, and repeated
        [i / 40 for i in range(121)],
    ],
)
def test_bridge_has_the_law_of_dense_conditioning(queries):
    times = torch.tensor([0.0, 1.0, 1.2, 2.5, 3.0], dtype=F64)
    queries = torch.tensor(queries, dtype=F64)
    gain, covariance = conditional_law(times, queries)
    count = len(queries)
    # the sample is linear in values and normals: one series per unit vector gives both matrices
    values = torch.cat([torch.eye(5, dtype=F64), torch.zeros(count, 5, dtype=F64)]).unsqueeze(-1)
    normal = torch.cat([torch.zeros(5, count, dtype=F64), torch.eye(count, dtype=F64)]).unsqueeze(-1)
    sample = brownian_bridge(times, values, queries, normal)[..., 0]
    torch.testing.assert_close(sample[:5].T, gain, rtol=0, atol=1e-12)
    torch.testing.assert_close(sample[5:].T @ sample[5:], covariance, rtol=0, atol=1e-12)


def test_bridge_takes_a_grid_per_series_and_several_motions():
    times = torch.tensor([[0.0, 1.0, 2.0], [0.5, 0.9, 0.9]], dtype=F64)  # the second is padded
    queries = torch.tensor([[1.5, 0.2, 1.6, 2.0], [0.6, 0.9, 0.5, 0.8]], dtype=F64)
    values = torch.randn(2, 3, 2, dtype=F64)
    values[1, 2] = values[1, 1]
    normal = torch.randn(2, 4, 2, dtype=F64)
    filled = brownian_bridge(times, values, queries, normal)
    assert filled.shape == (2, 4, 2)
    for i, last in ((0, 3), (1, 2)):
        alone = brownian_bridge(times[i, :last], values[i, :last], queries[i], normal[i])
        torch.testing.assert_close(filled[i], alone)
    torch.testing.assert_close(filled[1, 1:3], values[1, [1, 0]])


def test_queries_keep_their_normals_in_any_order():
    times, values = torch.tensor([0.0, 1.0, 2.0], dtype=F64), torch.randn(3, 2, dtype=F64)
    queries, normal = 2 * torch.rand(9, dtype=F64), torch.randn(9, 2, dtype=F64)
    order = torch.randperm(9)
    filled = brownian_bridge(times, values, queries, normal)
    torch.testing.assert_close(brownian_bridge(times, values, queries[order], normal[order]), filled[order])


def test_bridge_shares_times_over_particles():
    times, queries = torch.tensor([0.0, 1.0]), torch.tensor([0.25, 0.5])
    filled = brownian_bridge(times, torch.zeros(2, 3), queries, torch.randn(7, 5, 2, 3))
    assert filled.shape == (7, 5, 2, 3)
    assert filled.dtype == torch.float32


def test_bridge_in_float32_is_close_to_float64():
    times, queries = torch.linspace(0, 1, 5), torch.rand(40)
    values, normal = torch.randn(5, 2), torch.randn(40, 2)
    exact = brownian_bridge(times.double(), values.double(), queries.double(), normal.double())
    torch.testing.assert_close(brownian_bridge(times, values, queries, normal).double(), exact, rtol=1e-4, atol=1e-5)


def test_bridge_is_differentiable_in_values_and_normals():
    times = torch.tensor([0.0, 1.0, 1.0], dtype=F64)
    queries = torch.tensor([0.0, 0.3, 0.3, 1.0], dtype=F64)
    values = torch.randn(3, 1, dtype=F64, requires_grad=True)
    normal = torch.randn(4, 1, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, n: brownian_bridge(times, v, queries, n), (values, normal))


@pytest.mark.parametrize("query", [-0.1, 2.5, math.nan])
def test_bridge_does_not_extrapolate(query):
    message = rf"`queries` must lie between the known times \[0, 2\], received {query:g}"
    with pytest.raises(ValueError, match=message):
        brownian_bridge(torch.tensor([0.0, 2.0]), torch.zeros(2, 1), torch.tensor([1.0, query]), torch.zeros(2, 1))


def test_bridge_refuses_decreasing_times_and_shapes_that_do_not_fit():
    good = {
        "times": torch.tensor([0.0, 1.0]),
        "values": torch.zeros(2, 3),
        "queries": torch.tensor([0.5]),
        "standard_normal": torch.zeros(1, 3),
    }
    for name, value in (
        ("times", torch.tensor([0.0])),
        ("values", torch.zeros(3, 3)),
        ("queries", torch.zeros(0)),
        ("standard_normal", torch.zeros(1, 2)),
        ("standard_normal", torch.zeros(3)),
    ):
        with pytest.raises(ValueError, match=r"expected `times` \(\*batch, N\) with N >= 2, .*; received `times`"):
            brownian_bridge(**{**good, name: value})
    with pytest.raises(ValueError, match=r"with batch dimensions that broadcast; received"):
        brownian_bridge(**{**good, "values": torch.zeros(2, 2, 3), "standard_normal": torch.zeros(3, 1, 3)})
    with pytest.raises(ValueError, match=r"`times` must be finite and not decrease"):
        brownian_bridge(**{**good, "times": torch.tensor([1.0, 0.0])})


def test_a_tree_filled_in_by_a_bridge_has_the_law_of_the_tree():
    n = 20_000
    tree = VirtualBrownianTree(0.0, 1.0, 1, torch.arange(n), dtype=F64)
    times = torch.tensor([0.0, 0.4, 1.0], dtype=F64)
    queries = torch.tensor([0.1, 0.3, 0.75], dtype=F64)
    filled = brownian_bridge(times, tree.path(times), queries, torch.randn(n, 3, 1, dtype=F64))
    every = torch.cat([tree.path(times)[:, 1:], filled], 1)[..., 0]
    at = torch.cat([times[1:], queries])
    expected = torch.minimum(at.unsqueeze(-1), at)
    assert_mean(every.unsqueeze(-1) * every.unsqueeze(-2), expected, detects=0.1)
