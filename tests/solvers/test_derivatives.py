"""Derivatives of coefficients: equal to autograd, for any leading dimensions, and the test of commutativity."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from pyro_sde.sde import SDE
from pyro_sde.solvers.base import Field
from pyro_sde.solvers.derivatives import (
    check_commutative,
    column_derivatives,
    diffusion_columns,
    directional,
    state_jacobian,
)

F32, F64 = torch.float32, torch.float64
T = torch.zeros(1, dtype=F64)


def curved(z):
    x, y = z.unbind(-1)
    return torch.stack([x * y, (x + 2 * y).sin()], -1)


def field(diffusion, noise_type):
    return Field(SDE(lambda t, z: -z, diffusion, noise_type=noise_type), (None,))


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)], ids=str)
def test_the_jacobian_is_that_of_autograd(batch):
    z = torch.randn(*batch, 2, dtype=F64)
    value, jacobian = state_jacobian(curved, z)
    assert_close(value, curved(z))
    expected = torch.stack([torch.autograd.functional.jacobian(curved, row) for row in z.reshape(-1, 2)])
    assert_close(jacobian, expected.reshape(*batch, 2, 2))


def test_the_jacobian_of_a_function_with_more_series_or_without_the_state():
    rate = torch.tensor([[1.0], [2.0], [3.0]], dtype=F64)
    value, jacobian = state_jacobian(lambda z: -rate * z, torch.ones(2, dtype=F64))
    assert_close(value, -rate.expand(3, 2))
    assert_close(jacobian, -rate.unsqueeze(-1) * torch.eye(2, dtype=F64))
    value, jacobian = state_jacobian(lambda z: torch.ones((), dtype=F64), torch.ones(4, 2, dtype=F64))
    assert_close(value, torch.ones(4, 2, dtype=F64))
    assert_close(jacobian, torch.zeros(4, 2, 2, dtype=F64))


def test_derivatives_of_expanded_states_and_of_derivatives():
    z = torch.tensor([0.3, -0.8], dtype=F64)
    direction = torch.randn(5, 2, dtype=F64)
    expected = direction @ torch.autograd.functional.jacobian(curved, z).T
    assert_close(directional(curved, z.expand(5, 2), direction), expected)
    assert_close(directional(curved, z, direction), expected)
    assert_close(state_jacobian(curved, z.expand(5, 2))[1][3], torch.autograd.functional.jacobian(curved, z))
    inner = lambda s: directional(curved, s, torch.ones_like(s))  # noqa: E731
    assert_close(state_jacobian(inner, z)[1], torch.autograd.functional.jacobian(inner, z))


def test_gradients_flow_through_derivatives():
    z = torch.randn(3, 2, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: state_jacobian(curved, s)[1], z)
    assert torch.autograd.gradcheck(lambda s: directional(curved, s, s**2), z)


def test_columns_of_any_noise_and_their_derivatives():
    z = torch.randn(4, 2, dtype=F64)
    diagonal = diffusion_columns(field(lambda t, z: z**2, "diagonal"), T)
    assert_close(diagonal(z), torch.diag_embed(z**2))
    matrix = diffusion_columns(field(lambda t, z: torch.stack([curved(z), z**2, z], -1), "general"), T)
    directions = torch.randn(4, 2, 5, dtype=F64)
    derivatives = column_derivatives(matrix, z, directions)
    assert derivatives.shape == (4, 2, 3, 5)
    for b in range(4):
        jacobian = torch.autograd.functional.jacobian(matrix, z[b])  # (D, M, D)
        assert_close(derivatives[b], torch.einsum("imd,dj->imj", jacobian, directions[b]))


COMMUTING = {
    "additive": (lambda t, z: torch.ones(2, 3, dtype=z.dtype), "additive"),
    "scalar": (lambda t, z: z.flip(-1).unsqueeze(-1), "scalar"),
    "diagonal": (lambda t, z: z.sin(), "diagonal"),
    "one noise-free state": (lambda t, z: torch.stack([0 * z[..., 0], z[..., 0]], -1), "diagonal"),
    "matrix": (lambda t, z: z.cos().unsqueeze(-1) * torch.tensor([[1.0, 2.0], [0.0, 3.0]]).to(z), "general"),
}
NOT_COMMUTING = {
    "diagonal": (lambda t, z: z.flip(-1), "diagonal", "entries 0 and 1 of the diagonal diffusion do not commute"),
    "matrix": (
        lambda t, z: torch.stack([torch.ones_like(z), torch.stack([0 * z[..., 0], z[..., 0]], -1)], -1),
        "general",
        "columns 0 and 1 of the diffusion do not commute",
    ),
}


@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", sorted(COMMUTING))
def test_noise_that_commutes_passes(name, dtype):
    check_commutative("Milstein", field(*COMMUTING[name]), T.to(dtype), torch.randn(5, 2, dtype=dtype))


@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("first", ["random", "zero"])
@pytest.mark.parametrize("name", sorted(NOT_COMMUTING))
def test_noise_that_does_not_commute_is_refused_also_where_it_vanishes(name, first, dtype):
    diffusion, noise_type, words = NOT_COMMUTING[name]
    z = torch.zeros(5, 2, dtype=dtype) if first == "zero" else torch.randn(5, 2, dtype=dtype)
    with pytest.raises(ValueError, match=rf"Milstein needs commutative noise, and {words}.*Use LogODE\(\)"):
        check_commutative("Milstein", field(diffusion, noise_type), T.to(dtype), z)


def test_a_diffusion_that_is_not_defined_beside_the_state_is_not_refused():
    check_commutative("SRK", field(lambda t, z: (1 - z).sqrt(), "diagonal"), T, torch.ones(1, 2, dtype=F64))
