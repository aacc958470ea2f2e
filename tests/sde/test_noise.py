"""Noise structures against dense linear algebra: pseudo-inverse, pseudo-determinant, and their gradients."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch.testing import assert_close

from pyro_sde.sde.noise import DiagonalNoise, MatrixNoise, noise_structure

F32, F64 = torch.float32, torch.float64
NOISE_TYPES = ("additive", "diagonal", "general", "scalar")


def pseudo_inverse(dense):
    return torch.linalg.pinv(dense, rtol=1e-8)


def log_volume(dense, rtol=1e-8):
    """Half the log-pseudo-determinant of the Gram matrix: its eigenvalues are the squared singular values."""
    values = torch.linalg.svdvals(dense)
    nonzero = values > rtol * values[..., :1].clamp(min=1e-30)
    return torch.where(nonzero, values, torch.ones_like(values)).log().sum(-1)


# --- the contract, on every row of the table ------------------------------------------------------


def test_apply_and_gram_are_those_of_the_matrix(diffusion):
    noise, value = diffusion.noise, diffusion.value
    dense = diffusion.dense(value)
    w = torch.randn(dense.shape[0], dense.shape[-1], dtype=F64)
    assert_close(noise.apply(value, w), (dense @ w.unsqueeze(-1)).squeeze(-1))
    assert_close(noise.gram(value), dense @ dense.mT)
    assert noise.brownian_dim(value, dense.shape[-2]) == dense.shape[-1]
    assert noise.batch_shape(value) == dense.shape[:-2]


def test_rank_is_that_of_the_matrix(diffusion):
    value = diffusion.value
    expected = torch.linalg.matrix_rank(diffusion.dense(value), rtol=1e-8)
    assert diffusion.noise.range_of(value).rank.tolist() == expected.tolist()


def test_log_volume_is_the_pseudo_determinant(diffusion):
    value = diffusion.value
    assert_close(diffusion.noise.range_of(value).log_volume, log_volume(diffusion.dense(value)), rtol=1e-9, atol=1e-9)


def test_log_volume_agrees_with_slogdet_where_the_rank_is_full(diffusion):
    dense = diffusion.dense(diffusion.value)
    gram = dense @ dense.mT
    full = torch.linalg.matrix_rank(dense, rtol=1e-8) == dense.shape[-2]
    expected = 0.5 * torch.linalg.slogdet(gram[full]).logabsdet
    assert_close(diffusion.noise.range_of(diffusion.value).log_volume[full], expected, rtol=1e-9, atol=1e-9)


def test_coordinates_are_the_pseudo_inverse_and_leave_nothing_inside_the_range(diffusion):
    value = diffusion.value
    dense = diffusion.dense(value)
    vector = torch.randn(dense.shape[:-1], dtype=F64)
    inside = dense @ torch.randn(*dense.shape[:-2], dense.shape[-1], 1, dtype=F64)
    for v in (inside.squeeze(-1), vector):
        u, rest = diffusion.noise.range_of(value).coordinates(v)
        assert_close(u, (pseudo_inverse(dense) @ v.unsqueeze(-1)).squeeze(-1), rtol=1e-7, atol=1e-8)
        assert_close(rest, v - (dense @ u.unsqueeze(-1)).squeeze(-1), rtol=1e-9, atol=1e-9)
    _, rest = diffusion.noise.range_of(value).coordinates(inside.squeeze(-1))
    assert_close(rest, torch.zeros_like(vector), rtol=0, atol=1e-9)


def test_the_rest_is_orthogonal_to_the_range(diffusion):
    value = diffusion.value
    dense = diffusion.dense(value)
    _, rest = diffusion.noise.range_of(value).coordinates(torch.randn(dense.shape[:-1], dtype=F64))
    assert_close((dense.mT @ rest.unsqueeze(-1)), torch.zeros_like(dense.mT[..., :1]), rtol=0, atol=1e-7)


def test_project_keeps_what_moves_the_state(diffusion):
    value = diffusion.value
    dense = diffusion.dense(value)
    u = torch.randn(dense.shape[0], dense.shape[-1], 1, dtype=F64)
    projected = diffusion.noise.range_of(value).project(u.squeeze(-1)).unsqueeze(-1)
    assert_close(projected, pseudo_inverse(dense) @ dense @ u, rtol=1e-8, atol=1e-8)
    assert_close(dense @ projected, dense @ u, rtol=1e-8, atol=1e-8)


def test_the_gradient_of_the_log_volume_is_the_transposed_pseudo_inverse(diffusion):
    value = diffusion.value.detach().requires_grad_()
    diffusion.noise.range_of(value).log_volume.sum().backward()
    expected = pseudo_inverse(diffusion.dense(value.detach())).mT
    expected = expected.diagonal(dim1=-2, dim2=-1) if value.dim() == 2 else expected
    assert_close(value.grad, expected, rtol=1e-7, atol=1e-7)


def test_gradients_are_those_of_finite_differences_that_keep_the_rank(diffusion):
    parameters = tuple(p.clone().requires_grad_() for p in diffusion.parameters)
    dense = diffusion.dense(diffusion.value)
    w, u = torch.randn(2, dense.shape[0], dense.shape[-1], dtype=F64, requires_grad=True).unbind(0)

    def functions(w, u, *parameters):
        value = diffusion.build(*parameters)
        geometry = diffusion.noise.range_of(value)
        inside = (diffusion.dense(value) @ w.unsqueeze(-1)).squeeze(-1)  # moves with the range
        return geometry.log_volume, geometry.coordinates(inside)[0], geometry.project(u)

    inputs = (w.detach().requires_grad_(), u.detach().requires_grad_(), *parameters)
    assert torch.autograd.gradcheck(functions, inputs, eps=1e-6, atol=2e-5, rtol=1e-4)


def test_float32_agrees_with_float64(diffusion):
    value = diffusion.value.to(F32)
    dense = diffusion.dense(value).double()
    inside = (dense @ torch.randn(*dense.shape[:-2], dense.shape[-1], 1, dtype=F64)).squeeze(-1)
    geometry = diffusion.noise.range_of(value)
    u, rest = geometry.coordinates(inside.to(F32))
    expected = (torch.linalg.pinv(dense, rtol=1e-5) @ inside.unsqueeze(-1)).squeeze(-1)
    assert {u.dtype, rest.dtype, geometry.rank.dtype, geometry.log_volume.dtype} == {F32}
    assert geometry.rank.tolist() == torch.linalg.matrix_rank(dense, rtol=1e-5).tolist()
    assert_close(u.double(), expected, rtol=2e-4, atol=2e-4)
    assert_close(geometry.log_volume.double(), log_volume(dense, rtol=1e-5), rtol=1e-4, atol=1e-4)
    assert geometry.project(u).dtype == F32


# --- matters of one structure ---------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 3), (5, 3), (3, 5)], ids=str)
@pytest.mark.parametrize("condition", [1e2, 1e3, 1e4, 1e5])
def test_ill_conditioned_float32_diffusions_keep_their_digits(shape, condition):
    u, _, v = torch.linalg.svd(torch.randn(40, *shape, dtype=F64), full_matrices=False)
    value = ((u * torch.logspace(0, -math.log10(condition), 3, dtype=F64)) @ v).to(F32)
    inside = (value.double() @ torch.randn(40, shape[1], 1, dtype=F64)).squeeze(-1).to(F32)
    geometry = noise_structure("general").range_of(value)
    expected = (torch.linalg.pinv(value.double(), rtol=1e-9) @ inside.double().unsqueeze(-1)).squeeze(-1)
    error = (geometry.coordinates(inside)[0].double() - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.max() < 1e-5  # the normal equations in float32: 1, or no factor at all
    assert (geometry.rank == 3).all()


def test_a_small_scale_of_one_state_is_not_taken_for_a_loss_of_rank():
    value = torch.diag(torch.tensor([1.0, 1e-9, 1e4], dtype=F64))
    geometry = noise_structure("general").range_of(value)
    assert geometry.rank == 3
    assert_close(geometry.coordinates(torch.ones(3, dtype=F64))[0], torch.tensor([1.0, 1e9, 1e-4], dtype=F64))


def test_tiny_diagonal_entries_carry_noise_and_only_zeros_do_not():
    value = torch.tensor([1e-30, 0.0, -2.0], dtype=F64, requires_grad=True)
    geometry = noise_structure("diagonal").range_of(value)
    u, rest = geometry.coordinates(torch.tensor([1e-30, 5.0, 4.0], dtype=F64))
    assert geometry.rank == 2
    assert u.tolist() == [1, 0, -2]
    assert rest.tolist() == [0, 5, 0]
    (u.sum() + geometry.log_volume).backward()
    assert torch.isfinite(value.grad).all()
    assert value.grad[1] == 0


@pytest.mark.parametrize("noise_type", NOISE_TYPES)
def test_expanding_gives_a_view_with_the_leading_dimensions_of_the_state(noise_type):
    noise, state = noise_structure(noise_type), torch.zeros(7, 5, 3)
    value = torch.randn(3) if noise_type == "diagonal" else torch.randn(3, 1)
    expanded = noise.expand(value, state)
    assert expanded.shape == (7, 5, *value.shape)
    assert expanded.data_ptr() == value.data_ptr()
    assert torch.equal(expanded[6, 4], value)
    wide = value.expand(2, 1, 1, *value.shape)
    assert noise.expand(wide, state).shape == (2, 7, 5, *value.shape)


def test_a_scalar_stands_for_all_states_of_diagonal_noise():
    noise, state = noise_structure("diagonal"), torch.zeros(4, 3)
    for value in (torch.tensor(0.5), torch.tensor([0.5]), torch.full((4, 1), 0.5)):
        assert noise.shape_error(value, state) is None
        assert torch.equal(noise.expand(value, state), torch.full((4, 3), 0.5))


def test_each_noise_type_has_its_structure():
    kinds = {name: type(noise_structure(name)) for name in NOISE_TYPES}
    assert kinds == {"diagonal": DiagonalNoise, "scalar": MatrixNoise, "additive": MatrixNoise, "general": MatrixNoise}


@pytest.mark.parametrize(
    ("noise_type", "shape", "message"),
    [
        ("diagonal", (4, 3, 1), r'squeeze the last axis or set noise_type="general"'),
        ("diagonal", (4, 2), "must broadcast against the state"),
        ("general", (3,), r'return a matrix \(\*batch, D, M\), or set noise_type="diagonal"'),
        ("general", (4, 3), r"return a matrix"),
        ("additive", (2, 3), r"return a matrix"),
        ("scalar", (3,), r"return a matrix"),
        ("scalar", (3, 2), r'one Brownian motion: return \(\*batch, D, 1\), or set noise_type="general"'),
    ],
)
def test_a_wrong_shape_is_explained(noise_type, shape, message):
    text = noise_structure(noise_type).shape_error(torch.zeros(shape), torch.zeros(4, 3))
    assert text is not None
    assert re.search(message, text)


@pytest.mark.parametrize(
    ("noise_type", "shape"),
    [("diagonal", (3,)), ("diagonal", (4, 3)), ("scalar", (3, 1)), ("general", (4, 3, 7)), ("additive", (3, 2))],
)
def test_a_right_shape_is_accepted(noise_type, shape):
    assert noise_structure(noise_type).shape_error(torch.zeros(shape), torch.zeros(4, 3)) is None


def test_an_unknown_noise_type_raises():
    message = r"`noise_type` must be one of \['additive', 'diagonal', 'general', 'scalar'\], received 'diag'"
    with pytest.raises(ValueError, match=message):
        noise_structure("diag")
