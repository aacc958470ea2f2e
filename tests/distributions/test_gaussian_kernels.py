"""Gaussian kernels against dense normal laws, step by step."""

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from pyro_sde import SDE, SDEPath, TimeGrid
from pyro_sde.distributions.gaussian_kernels import GaussianKernels
from pyro_sde.distributions.kernels import TransitionKernels
from pyro_sde.sde import OrnsteinUhlenbeck

DOUBLE = torch.float64


def kernels(covariance, shift=0.0, steps=4, batch=(3,), moving=None):
    """Kernels with means 0.9 z + shift along a fixed path."""
    dim = covariance.shape[-1]
    generator = torch.Generator().manual_seed(0)
    path = torch.randn(steps + 1, *batch, dim, dtype=DOUBLE, generator=generator)
    times = torch.arange(steps + 1, dtype=DOUBLE).reshape(-1, *[1] * len(batch), 1)
    moving = torch.ones(steps, *[1] * len(batch), 1, dtype=torch.bool) if moving is None else moving
    return GaussianKernels(0.9 * path[:-1] + shift, covariance, path, times, moving)


def positive(*shape):
    root = torch.randn(*shape, shape[-1], dtype=DOUBLE)
    return root @ root.mT + 0.1 * torch.eye(shape[-1], dtype=DOUBLE)


def normal(k):
    return MultivariateNormal(k.mean, k.range.factor @ k.range.factor.mT)


@pytest.mark.parametrize("shape", [(2,), (4, 1, 2), (3, 2), (4, 3, 2)], ids=str)
def test_density_is_that_of_the_normal_law_of_every_step(shape):
    k = kernels(positive(*shape))
    torch.testing.assert_close(k.log_prob(), normal(k).log_prob(k.path[1:]))


def test_standard_coordinates_are_those_of_the_lower_factor():
    covariance = positive(4, 3, 2)
    k = kernels(covariance)
    residual = (k.path[1:] - k.mean).unsqueeze(-1)
    expected = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), residual, upper=False).squeeze(-1)
    torch.testing.assert_close(k.standard(), expected)


def test_expanded_covariance_is_factored_once():
    k = kernels(positive(2).expand(4, 3, 2, 2))
    assert k.range.factor.shape == (1, 1, 2, 2)
    assert k.log_prob().shape == (4, 3)


@pytest.mark.parametrize("shapes", [((4, 3, 2), (4, 3, 2)), ((2,), (4, 1, 2)), ((4, 3, 2), (2,))], ids=str)
def test_divergence_is_that_of_the_normal_laws_of_every_step(shapes):
    q, p = kernels(positive(*shapes[0])), kernels(positive(*shapes[1]), shift=0.4)
    expected = kl_divergence(normal(q), normal(p)).expand(4, 3)
    torch.testing.assert_close(q.kl(p), expected)
    assert q.kl(q).abs().max() < 1e-14


def test_divergence_in_directions_that_are_no_axes():
    basis = torch.linalg.qr(torch.randn(3, 2, dtype=DOUBLE)).Q
    inside = [positive(4, 3, 2) for _ in range(2)]
    shift = torch.tensor([0.3, -0.2], dtype=DOUBLE)
    q, p = (kernels(basis @ c @ basis.mT, s @ basis.mT) for c, s in zip(inside, (0 * shift, shift), strict=True))
    expected = kl_divergence(
        MultivariateNormal(torch.zeros(4, 3, 2, dtype=DOUBLE), inside[0]),
        MultivariateNormal(shift.expand(4, 3, 2), inside[1]),
    )
    torch.testing.assert_close(q.kl(p), expected)
    path = torch.cat([p.path[:1], q.mean + torch.randn(4, 3, 2, dtype=DOUBLE) @ basis.mT])
    on_support = GaussianKernels(q.mean, basis @ inside[0] @ basis.mT, path, q.times, q.moving)
    coordinates = (path[1:] - q.mean) @ basis
    expected = MultivariateNormal(torch.zeros(4, 3, 2, dtype=DOUBLE), inside[0]).log_prob(coordinates)
    torch.testing.assert_close(on_support.log_prob(), expected)


def test_divergence_of_a_spread_is_its_mean():
    ours, theirs = torch.randn(4, 3, 2, 2, dtype=DOUBLE), torch.randn(2, 2, dtype=DOUBLE)
    covariance, spread = positive(2), torch.randn(4, 3, 2, 2, dtype=DOUBLE)
    q, p = kernels(positive(2)), kernels(covariance)
    moved = (ours - theirs) @ spread
    expected = 0.5 * (moved.mT @ torch.linalg.inv(covariance) @ moved).diagonal(dim1=-2, dim2=-1).sum(-1)
    torch.testing.assert_close(q.kl_of_spread(p, ours, theirs, spread), expected)


@pytest.mark.parametrize("noise_type", ["diagonal", "general"])
def test_euler_kernels_by_their_moments_have_the_same_density(noise_type):
    grid = TimeGrid(torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.4, 0.4]], dtype=DOUBLE), max_step=0.2)
    start = dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1)

    def matrix(t, z):
        rows = [1 + z[..., :1].square(), 0.3 * z[..., 1:], 0 * z[..., :1], 0.5 + 0 * z[..., :1]]
        return torch.cat(rows, -1).unflatten(-1, (2, 2))

    diffusion = matrix if noise_type == "general" else (lambda t, z: 0.5 + 0.1 * z.cos())
    law = SDEPath(SDE(lambda t, z: -z, diffusion, noise_type=noise_type), start, grid)
    euler = law.kernels(law.sample((3,)))
    gaussian = GaussianKernels.of(euler)
    torch.testing.assert_close(gaussian.log_prob(), euler.log_prob())
    assert GaussianKernels.of(gaussian) is gaussian
    torch.testing.assert_close(gaussian.kl(euler), torch.zeros_like(euler.log_prob()), rtol=0, atol=1e-12)


def test_divergence_works_from_both_sides_of_a_mixed_pair():
    grid = TimeGrid(torch.tensor([0.0, 1.0], dtype=DOUBLE), max_step=0.25)
    start = dist.Normal(torch.zeros(1, dtype=DOUBLE), 1.0).to_event(1)
    law = SDEPath(OrnsteinUhlenbeck(0.8, 0.9), start, grid)
    path = law.sample()
    euler = law.kernels(path)
    wide = GaussianKernels.of(euler)
    wide = GaussianKernels(
        wide.mean + 0.1, torch.full((1, 1), 0.3, dtype=DOUBLE), euler.state.new_zeros(5, 1), *wide_parts(wide)
    )
    torch.testing.assert_close(euler.kl(wide), kl_divergence(normal(GaussianKernels.of(euler)), normal(wide)))
    torch.testing.assert_close(wide.kl(euler), kl_divergence(normal(wide), normal(GaussianKernels.of(euler))))


def wide_parts(k):
    return k.times, k.moving


def test_steps_of_no_length_count_for_nothing():
    covariance = positive(4, 1, 2)
    covariance[2] = 0
    moving = torch.tensor([True, True, False, True]).reshape(4, 1, 1)
    k = kernels(covariance, moving=moving)
    assert (k.log_prob()[2] == 0).all()
    assert (k.kl(kernels(covariance, moving=moving, shift=0.1))[2] == 0).all()
    with pytest.raises(ValueError, match="off the support of its law: .* at dimension 0, time 2, series"):
        kernels(covariance).log_prob()


def test_rounding_is_counted_as_variance_where_it_is_seen():
    path = torch.tensor([[3.0], [5.0]])
    tiny = torch.tensor([[1e-16]], dtype=DOUBLE)
    moving = torch.ones(1, 1, dtype=torch.bool)
    k = GaussianKernels(path[:1].double() + 2.0 - 1e-7, tiny, path, torch.zeros(2, 1), moving)
    variance = tiny.squeeze() + torch.finfo(torch.float32).eps ** 2 * 34 / 12
    expected = dist.Normal(0.0, variance.sqrt()).log_prob(torch.tensor(1e-7, dtype=DOUBLE))
    torch.testing.assert_close(k.log_prob().squeeze(), expected.float(), rtol=1e-4, atol=0)


def test_gradients_are_finite_along_singular_steps():
    scale = torch.tensor([1.0, 0.0], dtype=DOUBLE, requires_grad=True)
    path = torch.zeros(5, 3, 2, dtype=DOUBLE)
    moving = torch.ones(4, 1, 1, dtype=torch.bool)
    k = GaussianKernels(path[:-1], torch.diag(scale), path, torch.zeros(5, 1, 1), moving)
    (k.log_prob().sum() + k.kl(k).sum()).backward()
    assert scale.grad.isfinite().all()


def test_kernels_of_other_kinds_have_no_closed_form():
    class Other(TransitionKernels):
        def log_prob(self):
            return torch.zeros(1)

        def kl(self, other):
            raise NotImplementedError

        def check_absolutely_continuous(self, other):
            raise NotImplementedError

    k, other = kernels(positive(2)), Other()
    grid = TimeGrid(torch.tensor([0.0, 1.0], dtype=DOUBLE))
    law = SDEPath(OrnsteinUhlenbeck(1.0, 1.0), dist.Normal(torch.zeros(1, dtype=DOUBLE), 1.0).to_event(1), grid)
    euler = law.kernels(law.sample())
    for ours in (k, euler):
        with pytest.raises(NotImplementedError):
            ours.kl(other)
        with pytest.raises(NotImplementedError):
            ours.check_absolutely_continuous(other)


def test_infinite_divergences_name_dimension_time_and_series():
    line = torch.diag(torch.tensor([1.0, 0.0], dtype=DOUBLE))
    with pytest.raises(ValueError, match=r"noise in the same directions, at dimension 1, time 0, series \[0\]"):
        kernels(line).kl(kernels(positive(2)))
    turned = torch.ones(2, 2, dtype=DOUBLE)
    with pytest.raises(ValueError, match="noise in the same directions"):
        kernels(line).kl(kernels(turned))
    with pytest.raises(ValueError, match="move differently in a direction without noise, at dimension 1, time 0"):
        kernels(line).kl(kernels(line, shift=0.1))
    matrices = torch.eye(2, dtype=DOUBLE), 0.5 * torch.eye(2, dtype=DOUBLE)
    with pytest.raises(ValueError, match="move differently in a direction without noise"):
        kernels(line).kl_of_spread(kernels(line), *matrices, torch.eye(2, dtype=DOUBLE).expand(4, 3, 2, 2))
