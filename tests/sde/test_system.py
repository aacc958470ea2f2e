"""The algebra of linear systems against dense covariance functions."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from pyro_sde.ops.discretise import discretise
from pyro_sde.ops.stationary import stationary_moments
from pyro_sde.sde.system import LinearSystem, mix_systems, multiply_systems, sum_systems

F32, F64 = torch.float32, torch.float64
LAGS = torch.tensor([0.0, 0.1, 0.7, 3.0], dtype=F64)


def system(seed, *, size=2, outputs=1, offset=False, batch=(), name="process"):
    """A stationary system without any closed form."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, dtype=F64, generator=generator)

    matrix = 0.4 * randn(*batch, size, size) - 1.5 * torch.eye(size, dtype=F64)
    drive = randn(*batch, size) if offset else None
    return LinearSystem(name, matrix, randn(size, size), randn(outputs, size), F64, offset=drive)


def covariance_function(system):
    """``(*batch, T, O, O)`` at LAGS."""
    _, covariance = system.stationary()
    output = system.observation.unsqueeze(-3)
    return output @ system.transition(LAGS).matrix @ covariance.unsqueeze(-3) @ output.mT


def check_closed_forms(system):
    ours, general = system.transition(LAGS), discretise(system.matrix, system.diffusion, LAGS, system.offset)
    for value, expected in zip(ours, general, strict=True):
        assert_close(value, expected, rtol=1e-10, atol=1e-12)
    moments = stationary_moments(system.matrix, system.diffusion, system.offset)
    for value, expected in zip(system.stationary(), moments, strict=True):
        assert_close(value, expected, rtol=1e-10, atol=1e-12)


def test_a_sum_adds_covariance_functions_and_means():
    parts = [system(0, outputs=2), system(1, size=3, outputs=2, offset=True), system(2, size=1, outputs=2)]
    total = sum_systems(parts, "total")
    assert (total.state_dim, total.name) == (6, "total")
    check_closed_forms(total)
    assert_close(covariance_function(total), sum(covariance_function(part) for part in parts))
    mean = sum(part.observation @ part.stationary()[0] for part in parts)
    assert_close(total.observation @ total.stationary()[0], mean)


def test_a_product_multiplies_covariance_functions():
    first, second = system(0), system(1, size=3)
    product = multiply_systems(first, second, "product")
    assert (product.state_dim, product.name) == (6, "product")
    check_closed_forms(product)
    assert_close(covariance_function(product), covariance_function(first) * covariance_function(second))


def test_a_product_over_a_short_step_keeps_its_relative_accuracy():
    dt = torch.tensor([1e-6], dtype=F64)
    product = multiply_systems(system(0), system(1), "product")
    general = discretise(product.matrix, product.diffusion, dt)
    assert_close(product.transition(dt).covariance, general.covariance, rtol=1e-12, atol=0)


def test_mixed_outputs_have_the_covariance_function_of_the_mixture():
    parts = [system(0, outputs=2), system(1, size=3)]
    mixing = torch.tensor([[1.0, 0.5, -1.0], [0.0, 2.0, 0.3]], dtype=F64)
    mixed = mix_systems(parts, mixing, "mixed")
    check_closed_forms(mixed)
    first, second = (covariance_function(part) for part in parts)
    stacked = torch.zeros(len(LAGS), 3, 3, dtype=F64)
    stacked[:, :2, :2], stacked[:, 2:, 2:] = first, second
    assert_close(covariance_function(mixed), mixing @ stacked @ mixing.mT)


def test_batches_of_parts_broadcast():
    batched, plain = system(0, batch=(4, 1), offset=True), system(1, size=3, batch=(3,))
    total = sum_systems([batched, plain], "total")
    assert total.batch_shape == (4, 3)
    transition = total.transition(LAGS)
    assert transition.matrix.shape == transition.covariance.shape == (4, 3, len(LAGS), 5, 5)
    assert transition.offset.shape == (4, 3, len(LAGS), 5)
    assert [value.shape for value in total.stationary()] == [(4, 3, 5), (4, 3, 5, 5)]
    assert_close(transition.matrix[2, 1, :, :2, :2], batched.transition(LAGS).matrix[2, 0])
    assert_close(transition.covariance[2, 1, :, 2:, 2:], plain.transition(LAGS).covariance[1])


def test_a_batch_of_outputs_is_none_of_the_dynamics():
    parts, mixing = [system(0), system(1)], torch.randn(5, 3, 2, dtype=F64)
    mixed = mix_systems(parts, mixing, "mixed")
    assert mixed.batch_shape == (5,)
    assert mixed.observation.shape == (5, 3, 4)
    assert mixed.transition(LAGS).matrix.shape == (len(LAGS), 4, 4)
    assert_close(mixed.observation, mixing @ mix_systems(parts, torch.eye(2, dtype=F64), "").observation)


def test_laws_come_in_the_dtype_that_is_asked_for():
    process = system(0, offset=True)
    assert {value.dtype for value in process.transition(LAGS.float())} == {F32}
    assert {value.dtype for value in process.stationary()} == {F64}
    assert {value.dtype for value in process.stationary(F32)} == {F32}
    total = sum_systems([process, system(1)], "total")
    assert {value.dtype for value in total.transition(LAGS.float())} == {F32}


def test_covariances_of_closed_forms_are_symmetric_to_the_last_bit():
    product = multiply_systems(system(0), system(1, size=3), "product")
    covariance = product.transition(LAGS).covariance
    assert torch.equal(covariance, covariance.mT)


def test_terms_with_different_numbers_of_outputs_raise():
    with pytest.raises(ValueError, match=r"must have equally many outputs, received \[1, 2\]; see `Coregionalisation`"):
        sum_systems([system(0), system(1, outputs=2)], "total")


@pytest.mark.parametrize("shape", [(2,), (3, 4)])
def test_a_mixing_matrix_that_does_not_fit_raises(shape):
    with pytest.raises(ValueError, match=rf"`mixing` must have shape \(\*batch, O, 2\).*received \({shape[0]},"):
        mix_systems([system(0), system(1)], torch.zeros(shape), "mixed")


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(
    ("other", "text"), [({"outputs": 2}, "2 outputs and no offset"), ({"offset": True}, "1 outputs and an offset")]
)
def test_factors_with_several_outputs_or_a_mean_raise(side, other, text):
    factors = [system(0), system(1, name="other", **other)]
    with pytest.raises(ValueError, match=f"one output and mean zero of each; other has {text}"):
        multiply_systems(*factors[:: -1 if side else 1], "product")


def test_a_factor_that_is_not_stationary_raises_with_its_name():
    trend = LinearSystem("trend", torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1), F64)
    with pytest.raises(ValueError, match="trend has no stationary law"):
        multiply_systems(system(0), trend, "product")
    with pytest.raises(ValueError, match="trend has no stationary law"):
        sum_systems([system(0), trend], "total").stationary()
    assert torch.isfinite(sum_systems([system(0), trend], "total").transition(LAGS).covariance).all()


@pytest.mark.parametrize("bad", [-1.0, float("nan")])
def test_bad_steps_of_a_closed_form_raise(bad):
    with pytest.raises(ValueError, match="`dt` must hold finite steps >= 0"):
        sum_systems([system(0)], "total").transition(torch.tensor([bad]))


def test_a_closed_form_that_overflows_raises():
    growing = LinearSystem("growing", torch.ones(1, 1, dtype=F64), torch.ones(1, 1), torch.ones(1, 1), F64)
    with pytest.raises(ValueError, match=r"is not finite in torch\.float32"):
        sum_systems([growing], "total").transition(torch.tensor([60.0]))
