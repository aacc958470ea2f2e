"""Densities and divergences of single steps, against dense linear algebra."""

import math

import pyro.distributions as dist
import pytest
import torch

from pyro_sde import SDE, SDEPath, TimeGrid, path_kl
from pyro_sde.distributions.kernels import TransitionKernels
from pyro_sde.sde import OrnsteinUhlenbeck, UnderdampedLangevin
from pyro_sde.testing import loop_log_prob

DOUBLE = torch.float64
MIX = torch.tensor([[-1.0, 0.8], [-0.3, -0.5]], dtype=DOUBLE)


def normal(*shape, dtype=DOUBLE, scale=1.0):
    return dist.Normal(torch.zeros(shape, dtype=dtype), torch.as_tensor(scale, dtype=dtype)).to_event(1)


def grid(steps=8, dtype=DOUBLE):
    return TimeGrid(torch.linspace(0, 1, steps + 1, dtype=dtype) ** 2)


def rotating(t, z):
    """Drift A z + b(t) with a full matrix A."""
    return z @ MIX.to(z.dtype).T + torch.cat([t, -t], -1)


def matrix(columns):
    """Time-dependent additive noise (2, M)."""
    base = torch.tensor([[1.0, 0.2, -0.3], [0.4, 0.7, 0.5]], dtype=DOUBLE)[:, :columns]
    return lambda t, z: base.to(z.dtype) * (1 + t).unsqueeze(-1)


def dense_law(law):
    """Joint normal law of the path of a linear SDE, by recursion of mean and covariance."""
    sde, times, steps = law.sde, law.grid.times, law.grid.steps
    width, points = law.event_shape[1], law.event_shape[0]
    zero = torch.zeros(width, dtype=DOUBLE)
    means, factor = [zero], torch.zeros(points, width, 0, dtype=DOUBLE)  # path = mean + factor @ normal numbers
    factor = torch.cat([factor, torch.zeros(points, width, width, dtype=DOUBLE)], -1)
    factor[0] = torch.eye(width, dtype=DOUBLE)
    for k in range(points - 1):
        t, h = times[k : k + 1], steps[k]
        offset = sde.drift(t, zero)
        linear = torch.stack([sde.drift(t, e) - offset for e in torch.eye(width, dtype=DOUBLE)], -1)
        step = torch.eye(width, dtype=DOUBLE) + h * linear
        means.append(step @ means[-1] + h * offset)
        noise = sde.noise.expand(sde.diffusion(t, zero), zero)
        noise = noise if noise.dim() == 2 else torch.diag(noise)
        fresh = torch.zeros(points, width, noise.shape[1], dtype=DOUBLE)
        fresh[k + 1] = noise * h.sqrt()
        factor = torch.cat([factor, fresh], -1)
        factor[k + 1, :, : -noise.shape[1]] = step @ factor[k, :, : -noise.shape[1]]
    flat = factor.reshape(points * width, -1)
    return dist.MultivariateNormal(torch.cat(means), flat @ flat.T)


LINEAR = {
    "diagonal": SDE(rotating, lambda t, z: torch.tensor([0.5, 1.5], dtype=z.dtype) * (1 + t)),
    "additive": SDE(rotating, matrix(2), noise_type="additive"),
    "general-wide": SDE(rotating, matrix(3), noise_type="general"),
}


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)], ids=str)
def test_density_of_a_linear_sde_is_the_dense_normal_density(name, dtype, tolerance):
    law = SDEPath(LINEAR[name], normal(2, dtype=dtype), grid(dtype=dtype))
    exact = dense_law(SDEPath(LINEAR[name], normal(2), grid()))
    path = law.sample((20,))
    expected = exact.log_prob(path.double().flatten(-2)).to(dtype)
    torch.testing.assert_close(law.log_prob(path), expected, rtol=tolerance, atol=10 * tolerance)


def test_sign_and_rotation_of_the_noise_leave_the_density_alone():
    turn = torch.tensor([[math.cos(0.3), -math.sin(0.3)], [math.sin(0.3), math.cos(0.3)]], dtype=DOUBLE)
    diffusion = matrix(2)
    laws = [
        SDEPath(SDE(rotating, change, noise_type="general"), normal(2), grid())
        for change in (diffusion, lambda t, z: -diffusion(t, z), lambda t, z: diffusion(t, z) @ turn)
    ]
    path = laws[0].sample((5,))
    for other in laws[1:]:
        torch.testing.assert_close(other.log_prob(path), laws[0].log_prob(path), rtol=1e-12, atol=1e-12)
        assert path_kl(laws[0], other, path).abs().max() < 1e-20


def test_diagonal_noise_is_the_matrix_with_that_diagonal():
    scale = torch.tensor([0.5, 1.5], dtype=DOUBLE)
    diagonal = SDEPath(SDE(rotating, lambda t, z: scale), normal(2), grid())
    dense = SDEPath(SDE(rotating, lambda t, z: torch.diag(scale), noise_type="general"), normal(2), grid())
    path = diagonal.sample((5,))
    torch.testing.assert_close(diagonal.log_prob(path), dense.log_prob(path), rtol=1e-12, atol=1e-12)
    assert path_kl(diagonal, dense, path).abs().max() == path_kl(dense, diagonal, path).abs().max() == 0


# ---------------------------------------------------------------- directions without noise
def langevin(force=lambda x: -x, dtype=DOUBLE):
    return SDEPath(UnderdampedLangevin(force, 0.5, 0.7), normal(2, dtype=dtype), grid(dtype=dtype))


def rank_one(dtype=DOUBLE):
    direction = torch.tensor([[3.0], [4.0]], dtype=dtype) / 5
    columns = torch.tensor([[0.6, -0.8]], dtype=dtype)
    sde = SDE(lambda t, z: -z, lambda t, z: direction @ columns, noise_type="general")
    return SDEPath(sde, normal(2, dtype=dtype), grid(dtype=dtype)), direction.squeeze(-1)


def test_langevin_density_is_that_of_the_velocities():
    law = langevin()
    path = law.sample((7,))
    x, v = path[..., 0], path[..., 1]
    h = law.grid.steps
    steps = dist.Normal(v[:, :-1] + h * (-x[:, :-1] - 0.5 * v[:, :-1]), 0.7 * h.sqrt()).log_prob(v[:, 1:])
    expected = steps.sum(-1) + law.initial.log_prob(path[:, 0])
    torch.testing.assert_close(law.log_prob(path), expected, rtol=1e-12, atol=1e-12)


def test_rank_one_density_is_that_of_the_noisy_direction():
    law, direction = rank_one()
    path = law.sample((7,))
    h = law.grid.steps
    residual = path[:, 1:] - path[:, :-1] * (1 - h.unsqueeze(-1))
    expected = dist.Normal(0.0 * h, h.sqrt()).log_prob(residual @ direction).sum(-1) + law.initial.log_prob(path[:, 0])
    torch.testing.assert_close(law.log_prob(path), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_path_off_the_support_is_refused_with_dimension_and_time(dtype):
    law = langevin(dtype=dtype)
    path = law.sample()
    path[3, 0] += 0.01
    with pytest.raises(ValueError, match=r"off the support .* at dimension 0, time 0.0625 it is off by 0.0(1|0999)"):
        law.log_prob(path)
    flat, _ = rank_one(dtype)
    path = flat.sample((4,))
    path[2, 3] += torch.tensor([-0.4, 0.3], dtype=dtype)
    with pytest.raises(ValueError, match=r"off the support .* at dimension 0, time 0.0625, series \[2\] .* PathNoise"):
        flat.log_prob(path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("columns", [1, 2])
def test_round_off_of_states_of_different_size_is_on_the_support(dtype, columns):
    # States of size 1e3 and 1e-3 that share small noise: the rounding of the first is larger than the second.
    factor = torch.tensor([[1e-3, 2e-4], [1e-3, 8e-4]], dtype=dtype)[:, :columns]
    sde = SDE(lambda t, z: -z, lambda t, z: factor, noise_type="general")
    law = SDEPath(sde, normal(2, dtype=dtype, scale=[1e3, 1e-3]), grid(dtype=dtype))
    assert torch.isfinite(law.log_prob(law.sample((200,)))).all()


def test_any_path_is_on_the_support_of_full_rank_noise():
    # Nearly singular, and a path that moves in the direction of little noise: the solve leaves a rest of rounding.
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=DOUBLE)
    factor = turn @ torch.diag(torch.tensor([1.0, 3e-6], dtype=DOUBLE)) @ turn.T
    sde = SDE(lambda t, z: -z, lambda t, z: factor, noise_type="general")
    law = SDEPath(sde, normal(2), grid())
    assert torch.isfinite(law.log_prob(torch.randn(50, 9, 2, dtype=DOUBLE))).all()


def test_wide_and_tall_deficient_matrices_agree_with_a_loop():
    for factor in (
        torch.tensor([[1.0, 2.0], [0.5, 1.0], [0.0, 0.0]]),
        torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]),
    ):
        diffusion = factor.double()
        width = diffusion.shape[0]
        sde = SDE(lambda t, z: -z, lambda t, z, diffusion=diffusion: diffusion, noise_type="general")
        law = SDEPath(sde, normal(width), grid())
        path = law.sample((6,))
        torch.testing.assert_close(law.log_prob(path), loop_log_prob(law, path), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [langevin, lambda: rank_one()[0]], ids=["diagonal", "matrix"])
def test_degenerate_noise_gives_finite_value_divergence_and_gradients(make):
    prior = make()
    weight = torch.full((2,), 0.3, dtype=DOUBLE, requires_grad=True)
    posterior = SDEPath(prior.sde.controlled(lambda t, z: weight * z + weight), prior.initial, prior.grid)
    path = posterior.rsample((3,))
    for value in (posterior.log_prob(path), prior.log_prob(path), path_kl(posterior, prior, path)):
        assert torch.isfinite(value).all()
        gradients = torch.autograd.grad(value.sum(), weight, retain_graph=True)
        assert all(torch.isfinite(g).all() and g.abs().sum() > 0 for g in gradients)


# ---------------------------------------------------------------- divergence of a step
@pytest.mark.parametrize("name", LINEAR)
def test_divergence_is_the_energy_of_the_control(name):
    prior = SDEPath(LINEAR[name], normal(2), grid())
    other = LINEAR[name].with_drift(
        lambda t, z: rotating(t, z) + torch.stack([z[..., 1], 1 + t.squeeze(-1) + 0 * z[..., 0]], -1)
    )
    q = SDEPath(other, normal(2), grid())
    path = q.sample((5,))
    expected = torch.zeros(5, dtype=DOUBLE)
    for k in range(8):
        t, h, z = prior.grid.times[k : k + 1], prior.grid.steps[k], path[:, k]
        noise = prior.sde.noise.expand(prior.sde.diffusion(t, z), z)
        noise = torch.diag_embed(noise) if name == "diagonal" else noise
        u = torch.linalg.pinv(noise) @ (other.drift(t, z) - prior.sde.drift(t, z)).unsqueeze(-1)
        expected += 0.5 * h * u.square().sum((-2, -1))
    torch.testing.assert_close(path_kl(q, prior, path), expected, rtol=1e-10, atol=1e-12)


def test_drift_outside_the_range_of_the_noise_names_dimension_and_both_values():
    q, p = langevin(), langevin()
    shifted = SDEPath(p.sde.with_drift(lambda t, z: p.sde.drift(t, z) + torch.tensor([0.25, 0.0])), p.initial, p.grid)
    path = torch.zeros(3, 9, 2, dtype=DOUBLE)
    with pytest.raises(
        ValueError,
        match=r"infinite: .* without noise, at dimension 0, time 0, series \[0\]: guide 0.25, mo"
        r"del 0. Use `prior.controlled",
    ):
        path_kl(shifted, p, path)
    with pytest.raises(ValueError, match="guide 0, model 0.25"):
        path_kl(q, shifted, path)


def test_drift_outside_the_range_of_a_matrix_is_refused():
    p, direction = rank_one()
    inside = SDEPath(p.sde.with_drift(lambda t, z: -z + 2 * direction), p.initial, p.grid)
    outside = SDEPath(p.sde.with_drift(lambda t, z: -z + torch.tensor([1.0, 0.0])), p.initial, p.grid)
    path = inside.sample((3,))
    expected = torch.full((3,), 0.5 * 4 * 1.0, dtype=DOUBLE)
    torch.testing.assert_close(path_kl(inside, p, path), expected, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="different drifts in a direction without noise, at dimension"):
        path_kl(outside, p, path)


def scaled(factor, noise_type="diagonal", dtype=DOUBLE):
    eye = torch.eye(2, dtype=dtype)

    def diffusion(t, z):
        scale = torch.stack([torch.ones_like(z[..., 0]), torch.where(t[..., 0] > 0.5, factor, 1.0) + 0 * z[..., 0]], -1)
        return 0.8 * (scale if noise_type == "diagonal" else scale.unsqueeze(-1) * eye)

    return SDEPath(SDE(lambda t, z: -z, diffusion, noise_type=noise_type), normal(2, dtype=dtype), grid(dtype=dtype))


@pytest.mark.parametrize("noise_type", ["diagonal", "general"])
def test_different_diffusions_name_dimension_time_and_both_values(noise_type):
    q, p = scaled(1.125, noise_type), scaled(1.0, noise_type)
    match = (
        r"different diffusions, at dimension 1, time 0.5625, series \[0\]: guide 0.9, model 0.8. .* `prior.controlled"
    )
    with pytest.raises(ValueError, match=match):
        path_kl(q, p, q.sample((4,)))


@pytest.mark.parametrize("noise_type", ["diagonal", "general"])
@pytest.mark.parametrize(
    ("dtype", "same", "other"), [(torch.float64, 1e-10, 1e-6), (torch.float32, 1e-5, 1e-3)], ids=str
)
def test_diffusions_are_compared_to_round_off(noise_type, dtype, same, other):
    p = scaled(1.0, noise_type, dtype)
    path = p.sample()
    assert path_kl(scaled(1 + same, noise_type, dtype), p, path) == 0
    with pytest.raises(ValueError, match="different diffusions"):
        path_kl(scaled(1 + other, noise_type, dtype), p, path)


def test_noise_against_no_noise_is_infinite():
    p = SDEPath(OrnsteinUhlenbeck(1.0, torch.tensor([1.0, 0.0], dtype=DOUBLE)), normal(2), grid())
    q = SDEPath(OrnsteinUhlenbeck(1.0, 1.0), normal(2), grid())
    path = p.sample()
    for guide, model in ((p, q), (q, p)):
        with pytest.raises(ValueError, match="at dimension 1"):
            path_kl(guide, model, path)


@pytest.mark.parametrize("what", ["drift", "diffusion"])
def test_padded_steps_are_not_compared(what):
    """Coefficients that differ at the last time only, where a padded series stands but no step begins."""
    times = TimeGrid(torch.tensor([[0.0, 0.5, 1.0, 1.0], [0.0, 0.2, 0.4, 0.9]], dtype=DOUBLE))
    assert times.num_steps == 3
    quiet = torch.tensor([1.0, 0.0], dtype=DOUBLE)

    def law(jump):
        late = lambda t: jump * (t >= 1)  # noqa: E731
        drift = (lambda t, z: -z + late(t)) if what == "drift" else (lambda t, z: -z)
        diffusion = (lambda t, z: quiet * (1 + late(t))) if what == "diffusion" else (lambda t, z: quiet)
        return SDEPath(SDE(drift, diffusion), normal(2), times)

    q, p = law(0.5), law(0.0)
    assert path_kl(q, p, q.sample()).abs().max() == 0


class ForeignKernels(TransitionKernels):
    def log_prob(self):
        return torch.zeros(8)

    def kl(self, other):
        raise NotImplementedError

    def check_absolutely_continuous(self, other):
        pass


def test_kernels_of_another_kind_have_no_closed_form():
    kernels = langevin().kernels(langevin().sample())
    with pytest.raises(NotImplementedError):
        kernels.kl(ForeignKernels())
    with pytest.raises(NotImplementedError):
        kernels.check_absolutely_continuous(ForeignKernels())
