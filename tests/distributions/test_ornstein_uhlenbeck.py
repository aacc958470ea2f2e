"""The Ornstein–Uhlenbeck law from plain tensors, against its dense normal law."""

import pyro.distributions as dist
import pytest
import torch

from pyro_sde import OrnsteinUhlenbeckPath, SDEPath, TimeGrid
from pyro_sde.sde import OrnsteinUhlenbeck
from pyro_sde.testing import assert_mean

DOUBLE = torch.float64
TIMES = torch.tensor([0.0, 0.1, 0.4, 0.5, 1.1, 1.5], dtype=DOUBLE)


def law(dtype=DOUBLE, times=TIMES, **options):
    theta = torch.tensor([[0.5, 1.0], [1.5, 2.0], [0.7, 0.3]], dtype=dtype)
    sigma, loc = torch.tensor([0.4, 1.2], dtype=dtype), torch.tensor([[1.0], [-1.0], [0.0]], dtype=dtype)
    return OrnsteinUhlenbeckPath(theta, sigma, loc, times.to(dtype), **options)


def dense(theta, sigma, loc, times):
    """Joint normal law of the chain at all times, one state."""
    h = times.diff()
    variance, rows = sigma**2 / (2 * theta), len(times)
    covariance = torch.zeros(rows, rows, dtype=DOUBLE)
    for i in range(rows):
        if i:
            variance = (1 - theta * h[i - 1]) ** 2 * variance + sigma**2 * h[i - 1]
        decay = torch.cat([torch.ones(1, dtype=DOUBLE), (1 - theta * h[i:]).cumprod(0)])
        covariance[i, i:] = covariance[i:, i] = variance * decay
    return dist.MultivariateNormal(loc.expand(rows), covariance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=str)
def test_density_is_the_dense_normal_density(dtype, tolerance):
    own = law(dtype)
    path = own.sample((20,))
    expected = torch.stack(
        [
            sum(
                dense(own.theta[b, d].double(), own.sigma[b, d].double(), own.loc[b, d].double(), TIMES).log_prob(
                    path[:, b, :, d].double()
                )
                for d in range(2)
            )
            for b in range(3)
        ],
        -1,
    )
    torch.testing.assert_close(own.log_prob(path), expected.to(dtype), rtol=tolerance, atol=tolerance)


def test_moments_are_those_of_the_dense_normal_law():
    one = torch.ones(1, dtype=DOUBLE)
    own = OrnsteinUhlenbeckPath(0.8 * one, 0.7 * one, 0.3 * one, TIMES)
    exact = dense(torch.tensor(0.8), torch.tensor(0.7), torch.tensor(0.3, dtype=DOUBLE), TIMES)
    path = own.sample((20_000,)).squeeze(-1) - exact.mean
    assert_mean(path, 0.0, detects=0.04)
    assert_mean(path.unsqueeze(-1) * path.unsqueeze(-2), exact.covariance_matrix, detects=0.03)


def test_chain_keeps_the_stationary_law_to_first_order_in_the_step():
    for steps, bound in ((10, 0.05), (40, 0.0125)):
        variance = dense(
            torch.tensor(0.8),
            torch.tensor(0.7),
            torch.zeros(1, dtype=DOUBLE),
            torch.linspace(0, 1, steps + 1, dtype=DOUBLE),
        ).variance
        assert ((variance / (0.49 / 1.6) - 1).abs() < bound).all()


def test_it_is_the_path_of_its_sde():
    own = law()
    start = dist.Normal(own.loc, own.sigma / (2 * own.theta).sqrt()).to_event(1)
    other = SDEPath(OrnsteinUhlenbeck(own.theta, own.sigma, own.loc), start, TimeGrid(TIMES))
    path = own.sample((4,))
    assert torch.equal(own.log_prob(path), other.log_prob(path))


def test_all_four_arguments_get_gradients():
    tensors = [t.clone().requires_grad_() for t in (torch.ones(3, 1), torch.ones(2), torch.zeros(3, 2), TIMES.float())]
    own = OrnsteinUhlenbeckPath(*tensors)
    for value in (own.log_prob(torch.randn(3, 6, 2)).sum(), own.rsample().sum()):
        gradients = torch.autograd.grad(value, tensors, retain_graph=True)
        assert all(torch.isfinite(g).all() and g.any() for g in gradients)


@pytest.mark.parametrize("times", [TIMES, TIMES.expand(3, 6), TIMES + torch.arange(3, dtype=DOUBLE).unsqueeze(-1)])
def test_shapes_are_inferred_without_building_the_law(times):
    own = law(times=times)
    shapes = {"theta": (3, 2), "sigma": (2,), "loc": (3, 1), "times": tuple(times.shape)}
    assert OrnsteinUhlenbeckPath.infer_shapes(**shapes) == (own.batch_shape, own.event_shape)
    assert own.batch_shape == (3,)
    assert own.event_shape == (6, 2)


def test_expand_keeps_the_class():
    wide = law().expand((4, 3))
    assert type(wide) is OrnsteinUhlenbeckPath
    assert wide.sample().shape == (4, 3, 6, 2)


@pytest.mark.parametrize("name", ["theta", "sigma"])
def test_negative_rate_and_scale_are_refused(name):
    arguments = {"theta": torch.ones(2), "sigma": torch.ones(2), "loc": torch.zeros(2), "times": torch.arange(3.0)}
    arguments[name] = torch.tensor([1.0, -1.0])
    with pytest.raises(ValueError, match=f"parameter {name} .* to satisfy the constraint"):
        OrnsteinUhlenbeckPath(**arguments)


def test_times_that_do_not_increase_are_refused():
    with pytest.raises(ValueError, match="`times` must increase"):
        law(times=TIMES.flip(0))
