"""Observations of a chain: whitening, and checks that name the argument and the time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyro_sde.ops import LinearObservations

DOUBLE = torch.float64
NAN = float("nan")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def density(given: LinearObservations, state: Tensor) -> Tensor:
    """Log-density of the values given a path ``(T, D)``, from the whitened observations."""
    white = given.whitened(given.batch_shape)
    residual = white.values - (white.rows @ state.unsqueeze(-1)).squeeze(-1)
    return white.constant - 0.5 * residual.square().sum((-2, -1))


@pytest.mark.parametrize("shape", [(), (2,), (4, 2), (3, 4, 2), (3, 1, 1), (4, 1)])
def test_variances_of_any_shape_give_the_density_of_independent_entries(shape: tuple[int, ...]):
    y, h, d, z = normal(3, 4, 2), normal(2, 5), normal(4, 2), normal(4, 5)
    variance = normal(*shape).exp()
    law = torch.distributions.Normal((h @ z.unsqueeze(-1)).squeeze(-1) + d, variance.sqrt().expand(3, 4, 2))
    value = density(LinearObservations(y, h, variance=variance, offset=d), z)
    torch.testing.assert_close(value, law.log_prob(y).sum((-2, -1)))


@pytest.mark.parametrize("shape", [(), (4,), (3, 4), (3, 1)])
def test_covariances_of_any_shape_give_the_joint_density(shape: tuple[int, ...]):
    y, h, z = normal(3, 4, 2), normal(3, 4, 2, 5), normal(4, 5)
    root = normal(*shape, 2, 2)
    covariance = root @ root.mT + 0.1 * torch.eye(2, dtype=DOUBLE)
    law = torch.distributions.MultivariateNormal((h @ z.unsqueeze(-1)).squeeze(-1), covariance)
    value = density(LinearObservations(y, h, covariance=covariance), z)
    torch.testing.assert_close(value, law.log_prob(y).sum(-1))


@pytest.mark.parametrize("noise", ["variance", "covariance"])
def test_missing_entries_leave_the_density_of_the_others(noise: str):
    y, z = normal(3, 2), normal(3, 2)
    mask = torch.tensor([[True, True], [False, True], [False, False]])
    full = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=DOUBLE)
    full = full if noise == "covariance" else full.diagonal().diag()
    given = {"covariance": full} if noise == "covariance" else {"variance": full.diagonal()}
    masked = torch.where(mask, y, NAN)
    value = density(LinearObservations(masked, torch.eye(2, dtype=DOUBLE), mask=mask, **given), z)
    law = torch.distributions.MultivariateNormal(z[0], full)
    expected = law.log_prob(y[0]) + torch.distributions.Normal(z[1, 1], 1.0).log_prob(y[1, 1])
    torch.testing.assert_close(value, expected.reshape(value.shape))


def test_float32_observations_are_whitened_in_float64():
    y = torch.tensor([[0.25]])
    white = LinearObservations(y, torch.eye(1), variance=torch.tensor(0.5)).whitened(torch.Size())
    assert [part.dtype for part in white] == [DOUBLE] * 3
    assert white.constant.item() == pytest.approx(-0.5 * math.log(2 * math.pi) - 0.5 * math.log(0.5), abs=1e-15)


def test_sizes_are_kept():
    given = LinearObservations(normal(3, 1, 4, 2), normal(7, 1, 2, 5), variance=torch.ones((), dtype=DOUBLE))
    assert (given.batch_shape, given.num_points, given.size, given.dim) == ((3, 7), 4, 2, 5)
    assert repr(given) == "LinearObservations(batch_shape=(3, 7), num_points=4, observed=2, dim=5)"


# --- errors -----------------------------------------------------------------------------

ONE = torch.ones((), dtype=DOUBLE)


@pytest.mark.parametrize("noise", [{}, {"variance": ONE, "covariance": torch.eye(2, dtype=DOUBLE)}])
def test_exactly_one_noise_is_needed(noise: dict[str, Tensor]):
    with pytest.raises(ValueError, match=r"exactly one of `variance` .* and `covariance`"):
        LinearObservations(normal(4, 2), normal(2, 3), **noise)


@pytest.mark.parametrize("shape", [(0, 2), (4, 0), (4,), ()])
def test_series_without_entries_are_refused(shape: tuple[int, ...]):
    with pytest.raises(
        ValueError, match=r"`values` must have shape \(\*batch, T, O\) with T >= 1 and O >= 1, received"
    ):
        LinearObservations(normal(*shape), normal(2, 3), variance=ONE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("matrix", normal(3)),
        ("matrix", normal(1, 3)),
        ("matrix", normal(2, 0)),
        ("matrix", normal(5, 2, 3)),
        ("variance", normal(4, 3).exp()),
        ("variance", normal(5, 2).exp()),
        ("covariance", torch.eye(3, dtype=DOUBLE)),
        ("covariance", torch.eye(1, dtype=DOUBLE)),
        ("covariance", torch.eye(2, dtype=DOUBLE).expand(5, 2, 2)),
        ("offset", normal(3)),
        ("offset", normal(4, 1, 2)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(name: str, value: Tensor):
    given: dict[str, Tensor] = {"matrix": normal(2, 3), name: value}
    if name != "covariance":
        given.setdefault("variance", ONE)
    with pytest.raises(ValueError, match=rf"`{name}` must broadcast to \(\*batch, T, .*\) with T = 4 and O = 2"):
        LinearObservations(normal(3, 4, 2), **given)


def test_what_is_no_floating_point_tensor_is_refused():
    with pytest.raises(TypeError, match=r"`values` must be a floating-point tensor, received torch.int64"):
        LinearObservations(torch.ones(4, 2, dtype=torch.long), normal(2, 3), variance=ONE)
    with pytest.raises(TypeError, match=r"`variance` must be a floating-point tensor, received float"):
        LinearObservations(normal(4, 2), normal(2, 3), variance=0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3, 4, 1), (4, 2), (4,), (3, 2), (2,)])
def test_mask_of_wrong_shape_is_refused(shape: tuple[int, ...]):
    message = r"`mask` must have the shape of `values` \(3, 4, 2\) \(single entries\) or \(3, 4\) \(whole times\)"
    with pytest.raises(ValueError, match=message):
        LinearObservations(normal(3, 4, 2), normal(2, 3), variance=ONE, mask=torch.ones(shape, dtype=torch.bool))


def test_mask_must_be_bool():
    with pytest.raises(TypeError, match=r"`mask` must be a bool tensor, True = observed, received torch.float64"):
        LinearObservations(normal(4, 2), normal(2, 3), variance=ONE, mask=torch.ones(4, 2, dtype=DOUBLE))


@pytest.mark.parametrize("bad", [0.0, -1.0, NAN, math.inf])
def test_noise_that_is_not_positive_is_named_with_its_time(bad: float):
    variance = torch.ones(3, 4, 2, dtype=DOUBLE)
    variance[1, 2, 0] = bad
    message = r"`variance` of the observation noise must be positive definite .* at time index 2 of series \[1\]"
    with pytest.raises(ValueError, match=message):
        LinearObservations(normal(3, 4, 2), normal(2, 3), variance=variance)
    LinearObservations(normal(3, 4, 2), normal(2, 3), variance=variance, validate=False)
    mask = torch.ones(3, 4, 2, dtype=torch.bool)
    mask[1, 2, 0] = False
    LinearObservations(normal(3, 4, 2), normal(2, 3), variance=variance, mask=mask)


@pytest.mark.parametrize("entries", [[[1.0, 1.0], [1.0, 1.0]], [[1.0, 2.0], [2.0, 1.0]], [[0.1, 0.3], [0.3, 0.9]]])
def test_singular_noise_is_named_with_its_time(entries: list[list[float]]):
    covariance = torch.eye(2, dtype=DOUBLE).repeat(4, 1, 1)
    covariance[3] = torch.tensor(entries, dtype=DOUBLE)
    with pytest.raises(ValueError, match=r"`covariance` of the observation noise .* at time index 3\. A state"):
        LinearObservations(normal(4, 2), normal(2, 3), covariance=covariance)
    mask = torch.tensor([[True, True], [True, True], [True, True], [False, True]])
    LinearObservations(normal(4, 2), normal(2, 3), covariance=covariance, mask=mask)


@pytest.mark.parametrize("name", ["values", "matrix", "offset"])
def test_entries_that_are_observed_must_be_finite(name: str):
    given = {"values": normal(3, 4, 2), "matrix": normal(3, 4, 2, 5), "offset": normal(3, 4, 2)}
    given[name][2, 1, 0] = NAN
    with pytest.raises(ValueError, match=rf"`{name}` must be finite at time index 1 of series \[2\]"):
        LinearObservations(**given, variance=ONE)
    LinearObservations(**given, variance=ONE, validate=False)
