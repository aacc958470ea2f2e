"""Exact transitions against integrals in high precision."""

from __future__ import annotations

import mpmath
import pytest
import torch
from torch.testing import assert_close

from pyro_sde.ops._matrices import balance, matrix_norm
from pyro_sde.ops.discretise import Transition, check_finite, check_steps, discretise, share_equal_steps

F32, F64 = torch.float32, torch.float64


def companion(rate):
    """Matérn-5/2 process of a rate: a triple eigenvalue, entries from 1 to rate^3."""
    return [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [-(rate**3), -3 * rate**2, -3 * rate]], [[0.0], [0.0], [rate**2.5]]


# name -> A, L
SYSTEMS = {
    "matern": companion(1.0),
    "slow matern": companion(1e-2),
    "fast matern": companion(1e2),
    "stiff": ([[-1e4, 3.0], [2.0, -1e-2]], [[1.0, 0.0], [0.3, 0.5]]),
    "oscillator": ([[0.0, 1.0], [-100.0, -0.002]], [[0.0], [1.0]]),
    "unstable": ([[0.3, 1.0], [0.5, -1.0]], [[1.0], [0.2]]),
    "singular": ([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 2.0, -1.0]], [[0.0], [1.0], [0.0]]),
    "nilpotent": ([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]], [[0.0], [0.0], [0.5]]),
    "zero": ([[0.0, 0.0], [0.0, 0.0]], [[1.0], [2.0]]),
}

each_system = pytest.mark.parametrize(("matrix", "noise"), SYSTEMS.values(), ids=SYSTEMS.keys())


def exact(matrix, noise, dt):
    """Phi and Q by Van Loan's block exponential, with as many digits as its growing block needs."""
    size = len(matrix)
    fastest = torch.linalg.eigvals(torch.tensor(matrix, dtype=F64)).abs().max().item()
    with mpmath.workdps(80 + int(2 * fastest * dt)):
        a, loading, h = mpmath.matrix(matrix), mpmath.matrix(noise), mpmath.mpf(dt)
        gram = loading * loading.T
        block = mpmath.zeros(2 * size)
        for i in range(size):
            for j in range(size):
                block[i, j], block[size + i, size + j] = -a[i, j], a[j, i]
                block[i, size + j] = gram[i, j]
        exponential = mpmath.expm(block * h, method="taylor")
        phi = exponential[size:, size:].T
        covariance = phi * exponential[:size, size:]
        return phi, covariance


def tensors(matrix, noise, dtype=F64):
    return torch.tensor(matrix, dtype=dtype), torch.tensor(noise, dtype=dtype)


def numbers(value):
    return torch.tensor([[float(value[i, j]) for j in range(value.cols)] for i in range(value.rows)], dtype=F64)


# --- accuracy -------------------------------------------------------------------------------------


@each_system
@pytest.mark.parametrize("dt", [1e-6, 1e-3, 1.5e-2])
def test_every_entry_has_full_relative_accuracy_over_short_steps(matrix, noise, dt):
    ours = discretise(*tensors(matrix, noise), torch.tensor([dt], dtype=F64))
    phi, covariance = exact(matrix, noise, dt)
    assert_close(ours.covariance[0], numbers(covariance), rtol=5e-14, atol=0)
    assert_close(ours.matrix[0], numbers(phi), rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("dt", [0.5, 2.0, 10.0])
@pytest.mark.parametrize("name", ["matern", "slow matern", "oscillator", "unstable", "singular", "nilpotent", "zero"])
def test_covariances_are_accurate_as_correlations_over_long_steps(name, dt):
    ours = discretise(*tensors(*SYSTEMS[name]), torch.tensor([dt], dtype=F64)).covariance[0]
    covariance = numbers(exact(*SYSTEMS[name], dt)[1])
    scale = covariance.diagonal().sqrt()
    assert_close(ours / scale / scale[:, None], covariance / scale / scale[:, None], rtol=0, atol=2e-14)


def test_slow_directions_keep_their_rate_beside_fast_ones():
    matrix = torch.diag(torch.tensor([-1e6, -1e-3], dtype=F64))
    ours = discretise(matrix, torch.eye(2, dtype=F64), torch.tensor([1e3], dtype=F64))
    one = torch.tensor(1.0, dtype=F64)
    assert_close(ours.matrix[0, 1, 1], (-one).exp(), rtol=1e-14, atol=0)
    expected = torch.stack([one / 2e6, -torch.expm1(-2 * one) / 2e-3])
    assert_close(ours.covariance[0].diagonal(), expected, rtol=1e-14, atol=0)


def test_long_steps_of_stiff_systems_end_in_the_stationary_law():
    matrix, noise = tensors(*SYSTEMS["stiff"])
    phi, _, covariance = discretise(matrix, noise, torch.tensor([1e3, 1e6], dtype=F64))
    residual = matrix @ covariance[1] + covariance[1] @ matrix.mT + noise @ noise.mT
    assert_close(residual, torch.zeros_like(residual), rtol=0, atol=1e-10)
    assert phi[1].abs().max() < 1e-300
    assert_close(covariance[0], covariance[1], rtol=1e-7, atol=0)


@pytest.mark.parametrize("dt", [1e-6, 1e-2, 1.0, 30.0])
def test_the_offset_is_the_response_to_a_constant_drive(dt):
    matrix, noise = tensors(*SYSTEMS["stiff"])
    drive, step = torch.tensor([2.0, -3.0], dtype=F64), torch.tensor([dt], dtype=F64)
    ours = discretise(matrix, noise, step, drive).offset[0]
    # a third state that stays 1 turns the drive into a part of the matrix
    wide = torch.cat([torch.cat([matrix, drive[:, None]], 1), torch.zeros(1, 3, dtype=F64)])
    expected = numbers(exact(wide.tolist(), [[0.0], [0.0], [0.0]], dt)[0])[:2, 2] if dt < 1 else None
    if expected is None:
        phi = discretise(matrix, noise, step).matrix[0]
        expected = torch.linalg.solve(matrix, (phi - torch.eye(2, dtype=F64)) @ drive)
    assert_close(ours, expected, rtol=1e-12, atol=0)


def test_float32_results_are_the_rounded_ones():
    steps = torch.tensor([1e-3, 0.1, 5.0])
    single = discretise(*tensors(*SYSTEMS["matern"], F32), steps, torch.ones(3))
    double = discretise(*tensors(*SYSTEMS["matern"]), steps.double(), torch.ones(3, dtype=F64))
    assert single.matrix.dtype == single.offset.dtype == single.covariance.dtype == F32
    for ours, theirs in zip(single, double.to(F32), strict=True):
        assert torch.equal(ours, theirs)


def test_balanced_units_keep_the_number_of_doublings_small():
    for rate in (1e-3, 1.0, 1e3):
        matrix = torch.tensor(companion(rate)[0], dtype=F64)
        units = balance(matrix)
        assert torch.equal(units.log2(), units.log2().round())  # powers of two change no digit
        assert matrix_norm(matrix * units / units[:, None]) < 8 * rate  # the eigenvalues are -rate
    assert torch.equal(balance(torch.zeros(2, 3, 3)), torch.ones(2, 3))


# --- degenerate steps, factors, gradients ---------------------------------------------------------


@each_system
def test_a_step_of_zero_is_no_step(matrix, noise):
    a, loading = tensors(matrix, noise)
    dt = torch.tensor([0.0, 0.1], dtype=F64, requires_grad=True)
    phi, offset, covariance = discretise(a, loading, dt, torch.ones(len(a), dtype=F64))
    assert torch.equal(phi[0], torch.eye(len(a), dtype=F64))
    assert not offset[0].any()
    assert not covariance[0].any()
    gradient = torch.autograd.grad(covariance[0].sum(), dt)[0]
    assert_close(gradient[0], (loading @ loading.mT).sum())  # Q starts with L L^T dt


@each_system
def test_the_factor_of_a_covariance_allows_directions_without_noise(matrix, noise):
    dt = torch.tensor([0.0, 1e-6, 0.1, 1.0], dtype=F64)
    transition = discretise(*tensors(matrix, noise), dt)
    factor, covariance = transition.factor(), transition.covariance
    scale = covariance.diagonal(dim1=-2, dim2=-1).clamp(min=1e-300).sqrt()
    difference = (factor @ factor.mT - covariance) / scale.unsqueeze(-1) / scale.unsqueeze(-2)
    assert difference.abs().max() < 1e-13
    assert torch.equal(factor, factor.tril())
    assert torch.equal(covariance, covariance.mT)


@pytest.mark.parametrize("name", ["matern", "stiff", "oscillator", "singular"])
def test_gradients_are_right(name):
    matrix, noise = (value.requires_grad_() for value in tensors(*SYSTEMS[name]))
    scale = torch.tensor(1e-3 if name == "stiff" else 0.1, dtype=F64)
    dt = (scale * torch.tensor([1.0, 2.5, 7.0], dtype=F64)).requires_grad_()
    offset = torch.ones(len(matrix), dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(discretise, (matrix, noise, dt, offset), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", ["matern", "slow matern", "fast matern", "stiff", "oscillator", "nilpotent", "zero"])
def test_gradients_are_finite_over_nine_orders_of_magnitude(name, dtype):
    matrix, noise = (value.requires_grad_() for value in tensors(*SYSTEMS[name], dtype))
    dt = torch.cat([torch.zeros(1), torch.logspace(-6, 3, 19)]).to(dtype).requires_grad_()
    transition = discretise(matrix, noise, dt, torch.ones(len(matrix), dtype=dtype))
    sum(value.sum() for value in transition).backward()
    for value in (matrix, noise, dt):
        assert torch.isfinite(value.grad).all()


def test_gradients_of_a_factor_are_finite_where_it_is_zero():
    matrix, noise = (value.requires_grad_() for value in tensors(*SYSTEMS["matern"]))
    dt = torch.tensor([0.0, 0.1, 10.0], dtype=F64, requires_grad=True)
    discretise(matrix, noise, dt).factor().sum().backward()
    for value in (matrix, noise, dt):
        assert torch.isfinite(value.grad).all()


# --- batches and equal steps ----------------------------------------------------------------------


def test_batches_of_systems_and_of_steps_broadcast():
    matrix = torch.stack([torch.tensor(companion(rate)[0], dtype=F64) for rate in (0.1, 1.0, 30.0)])  # (3, 3, 3)
    noise, offset = torch.rand(4, 1, 3, 2, dtype=F64), torch.rand(3, 3, dtype=F64)
    dt = torch.rand(3, 5, dtype=F64)
    ours = discretise(matrix, noise, dt, offset)
    assert ours.matrix.shape == (3, 5, 3, 3)
    assert ours.offset.shape == (3, 5, 3)
    assert ours.covariance.shape == (4, 3, 5, 3, 3)
    for i, j in [(0, 0), (3, 2), (2, 1)]:
        single = discretise(matrix[j], noise[i, 0], dt[j], offset[j])
        assert_close(ours.matrix[j], single.matrix)
        assert_close(ours.offset[j], single.offset)
        assert_close(ours.covariance[i, j], single.covariance)


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("steps", [(12,), (3, 12), (1, 12)], ids=str)
def test_equal_steps_are_computed_once(batch, steps):
    matrix = torch.tensor(companion(1.0)[0], dtype=F64) * torch.rand((*batch, 1, 1), dtype=F64)
    noise = torch.tensor(companion(1.0)[1], dtype=F64)
    for choices in ([0.3], [0.1, 0.3]):
        few = torch.tensor(choices, dtype=F64)
        index = torch.randint(len(few), steps, generator=torch.Generator().manual_seed(1))
        seen = []

        def count(values, seen=seen):
            seen.append(values.shape)
            return discretise(matrix, noise, values.double() * torch.linspace(1, 1.1, values.shape[-1], dtype=F64))

        shared = discretise(matrix, noise, few[index])
        each = discretise(matrix, noise, few[index].requires_grad_())  # a gradient forbids sharing
        for ours, theirs in zip(shared, each, strict=True):
            assert ours.shape == theirs.shape
            assert_close(ours, theirs, rtol=1e-13, atol=1e-15)
        share_equal_steps(count, few[index], torch.Size(batch))
        assert seen == [(len(few),)]
        seen.clear()
        share_equal_steps(count, few[index].requires_grad_(), torch.Size(batch))
        assert seen == [steps]


def test_steps_that_differ_are_not_shared():
    steps, seen = torch.rand(6, dtype=F64), []

    def count(values):
        seen.append(values.shape)
        return discretise(torch.zeros(1, 1), torch.ones(1, 1), values)

    share_equal_steps(count, steps, torch.Size())
    share_equal_steps(count, steps[:1], torch.Size())
    assert seen == [(6,), (1,)]


def test_shared_steps_pass_the_gradient_of_all_of_them():
    rate = torch.tensor([[-0.5]], dtype=F64, requires_grad=True)
    covariance = discretise(rate, torch.ones(1, 1, dtype=F64), torch.full((7,), 0.3, dtype=F64)).covariance
    covariance.sum().backward()
    single = rate.detach().requires_grad_()
    discretise(single, torch.ones(1, 1, dtype=F64), torch.tensor([0.3], dtype=F64)).covariance.sum().backward()
    assert_close(rate.grad, 7 * single.grad)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_steps_that_are_negative_or_not_finite_raise(bad):
    with pytest.raises(ValueError, match=rf"`dt` must hold finite steps >= 0, received {bad:g} at \(0, 1\)"):
        check_steps(torch.tensor([[0.1, bad]]))


def test_a_single_number_as_steps_raises():
    with pytest.raises(ValueError, match=r"`dt` must have shape \(\*batch, K\), received a single number"):
        discretise(torch.zeros(1, 1), torch.ones(1, 1), torch.tensor(0.1))


def test_integer_steps_become_the_default_type():
    assert check_steps(torch.arange(3)).dtype == torch.get_default_dtype()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2,), (2, 1), None), r"`matrix` must have shape \(\*batch, D, D\), received \(2,\)"),
        (((2, 3), (2, 1), None), r"`matrix` must have shape \(\*batch, D, D\), received \(2, 3\)"),
        (((0, 0), (0, 1), None), r"`matrix` must have shape \(\*batch, D, D\), received \(0, 0\)"),
        (((2, 2), (2,), None), r"`diffusion` must have shape \(\*batch, 2, M\), received \(2,\)"),
        (((2, 2), (3, 1), None), r"`diffusion` must have shape \(\*batch, 2, M\), received \(3, 1\)"),
        (((2, 2), (2, 1), (3,)), r"`offset` must have shape \(\*batch, 2\), received \(3,\)"),
        (((2, 2), (2, 1), ()), r"`offset` must have shape \(\*batch, 2\), received \(\)"),
    ],
)
def test_shapes_that_do_not_fit_raise(shapes, message):
    matrix, noise, offset = (None if shape is None else torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        discretise(matrix, noise, torch.ones(1), offset)


def test_growth_beyond_the_range_of_the_dtype_raises():
    growing, noise = torch.tensor([[1.0]]), torch.ones(1, 1)
    with pytest.raises(ValueError, match=r"transition over `dt` = 100 at \(1,\) is not finite in torch.float32"):
        discretise(growing, noise, torch.tensor([1.0, 100.0]))
    assert torch.isfinite(discretise(growing, noise, torch.tensor([100.0], dtype=F64)).covariance).all()
    with pytest.raises(ValueError, match=r"at \(1, 0\) is not finite"):
        discretise(torch.tensor([[[0.0]], [[float("nan")]]]), noise, torch.tensor([[1.0], [2.0]]))


def test_a_finite_transition_is_passed_on():
    transition = Transition(torch.eye(1)[None], torch.zeros(1, 1), torch.eye(1)[None])
    assert check_finite(transition, torch.ones(1)) is transition
    with pytest.raises(ValueError, match="is not finite"):
        check_finite(transition._replace(offset=torch.full((1, 1), float("inf"))), torch.ones(1))
