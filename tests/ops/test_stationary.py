"""Stationary laws against their equations and closed forms."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from pyro_sde.ops.stationary import stationary_moments

F32, F64 = torch.float32, torch.float64


def stable(*batch, size=4, seed=0):
    """Matrices of Hurwitz type, some of them far from normal."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(*batch, size, size, dtype=F64, generator=generator)
    growth = torch.linalg.eigvals(matrix).real.amax(-1)
    return matrix - (growth[..., None, None] + 0.3) * torch.eye(size, dtype=F64)


def test_moments_solve_their_equations_in_batches():
    matrix, noise, offset = stable(3), torch.randn(2, 1, 4, 2, dtype=F64), torch.randn(3, 4, dtype=F64)
    mean, covariance = stationary_moments(matrix, noise, offset)
    assert mean.shape == (3, 4)
    assert covariance.shape == (2, 3, 4, 4)
    residual = matrix @ covariance + covariance @ matrix.mT + noise @ noise.mT
    assert_close(residual, torch.zeros_like(residual), rtol=0, atol=1e-11)
    assert_close((matrix @ mean.unsqueeze(-1)).squeeze(-1), -offset)
    assert torch.equal(covariance, covariance.mT)
    assert not stationary_moments(matrix, noise)[0].any()


@pytest.mark.parametrize("rate", [1e-3, 1.0, 1e3])
def test_variances_of_derivatives_keep_their_relative_accuracy(rate):
    matrix = torch.tensor([[0, 1, 0], [0, 0, 1], [-(rate**3), -3 * rate**2, -3 * rate]], dtype=F64)
    noise = torch.tensor([[0.0], [0.0], [(16 / 3 * rate**5) ** 0.5]], dtype=F64)
    _, covariance = stationary_moments(matrix, noise)
    first, second = 1.0, rate**2 / 3
    expected = torch.tensor([[first, 0, -second], [0, second, 0], [-second, 0, rate**4]], dtype=F64)
    scale = expected.diagonal().sqrt()
    assert_close(covariance / scale / scale[:, None], expected / scale / scale[:, None], rtol=0, atol=1e-13)


def test_float32_arguments_are_solved_in_float64():
    matrix, noise = stable(seed=1).float(), torch.ones(4, 1)
    mean, covariance = stationary_moments(matrix, noise, torch.ones(4))
    expected = stationary_moments(matrix.double(), noise.double(), torch.ones(4, dtype=F64))
    assert mean.dtype == covariance.dtype == F64
    assert_close((mean, covariance), expected, rtol=0, atol=0)


def test_gradients_are_right():
    arguments = (stable(2, size=3), torch.randn(3, 2, dtype=F64), torch.randn(3, dtype=F64))
    assert torch.autograd.gradcheck(stationary_moments, tuple(value.requires_grad_() for value in arguments))


@pytest.mark.parametrize(
    ("matrix", "eigenvalue"),
    [
        ([[0.0, 1.0], [0.0, 0.0]], "0"),
        ([[-1.0, 0.0], [0.0, 0.5]], "0.5"),
        ([[0.0, 2.0], [-2.0, 0.0]], r"0[+-]2i"),
        ([[0.25, 2.0], [-2.0, 0.25]], r"0.25[+-]2i"),
    ],
)
def test_a_process_that_is_not_stationary_raises_with_its_eigenvalue(matrix, eigenvalue):
    with pytest.raises(ValueError, match=rf"Trend has no stationary law: the eigenvalue -?{eigenvalue} of its drift"):
        stationary_moments(torch.tensor(matrix), torch.ones(2, 1), name="Trend")


def test_one_series_that_is_not_stationary_raises():
    matrix = torch.stack([-torch.eye(2), torch.eye(2)])
    with pytest.raises(ValueError, match="the process has no stationary law: the eigenvalue 1 of"):
        stationary_moments(matrix, torch.ones(2, 1))


def test_shapes_that_do_not_fit_raise():
    with pytest.raises(ValueError, match="`diffusion` must have shape"):
        stationary_moments(-torch.eye(2), torch.ones(3, 1))
