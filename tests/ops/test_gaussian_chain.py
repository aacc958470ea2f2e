"""Gaussian chains: moments and samples against the dense joint covariance, checks of arguments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_sde.ops import GaussianChain, psd_factor
from pyro_sde.ops import _kalman_compiled as compiled
from pyro_sde.ops import _kalman_method as forms
from tests.ops.dense import DOUBLE, dense_prior, matern_matrices, random_problem

needs_numba = pytest.mark.skipif(not compiled.available(), reason="numba is not installed")


@pytest.fixture(params=[pytest.param("compiled", marks=needs_numba), "loop", "scan"])
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "loop":
        monkeypatch.setattr(forms, "available", lambda: False)
    return "parallel" if request.param == "scan" else "sequential"


def chain_of(**sizes: int | None) -> GaussianChain:
    p = random_problem(**sizes)
    return GaussianChain(p.m0, p.p0, p.a, p.q, p.c)


def dense(chain: GaussianChain, b: int) -> tuple[Tensor, Tensor]:
    parts = (chain.initial_mean, chain.initial_covariance, chain.transition, chain.offset, chain.noise)
    return dense_prior(*(part[b] for part in parts))


def close(value: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


# --- moments and samples ----------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7])
def test_marginals_and_covariances_are_blocks_of_the_joint_covariance(method: str, count: int):
    chain = chain_of(count=count)
    mean, covariance = chain.marginals(method)
    for b in range(2):
        dense_mean, joint = dense(chain, b)
        blocks = joint.view(count, 3, count, 3).transpose(1, 2)
        close(mean[b], dense_mean.view(count, 3))
        close(covariance[b], blocks[range(count), range(count)])
        for i in range(count):
            for j in range(count):
                close(chain.covariance(i, j, method)[b], blocks[i, j])
                close(chain.covariance(i - count, j, method)[b], blocks[i, j])


@pytest.mark.parametrize("rank", [None, 1, 0])
def test_samples_are_affine_in_the_noise_with_the_joint_law(method: str, rank: int | None):
    chain = chain_of(count=5, rank=rank)
    basis = torch.eye(15, dtype=DOUBLE).view(15, 1, 5, 3)
    basis = torch.cat([torch.zeros_like(basis[:1]), basis])  # one noise for both series
    paths = chain.sample(basis, method)
    assert paths.shape == (16, 2, 5, 3)
    for b in range(2):
        mean, joint = dense(chain, b)
        root = (paths[1:, b] - paths[0, b]).flatten(1)
        close(paths[0, b].flatten(), mean)
        close(root.mT @ root, joint)


def test_one_chain_gives_samples_of_any_leading_shape(method: str):
    p = random_problem(batch=1, count=4)
    chain = GaussianChain(p.m0[0], p.p0[0], p.a[0], p.q[0])
    noise = torch.randn(2, 5, 4, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    paths = chain.sample(noise, method)
    assert paths.shape == (2, 5, 4, 3)
    close(paths[1, 3], chain.sample(noise[1, 3], method))


def test_moments_have_exact_gradients(method: str):
    p = random_problem(batch=1, count=3, dim=2)

    def moments(m0: Tensor, p0: Tensor, a: Tensor, q: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return GaussianChain(m0, p0 + p0.mT, a, q + q.mT, c, validate=False).marginals(method)

    assert torch.autograd.gradcheck(moments, [x.clone().requires_grad_() for x in p[:5]])


def test_expanded_chain_is_the_same_chain(method: str):
    chain = chain_of(count=4)
    wide = chain.expand((5, 2))
    assert wide.batch_shape == (5, 2)
    for value, expected in zip(wide.marginals(method), chain.marginals(method), strict=True):
        close(value[3], expected)
    assert wide.transition.untyped_storage().data_ptr() == chain.transition.untyped_storage().data_ptr()


def test_float32_chain_gives_float32_of_float64_accuracy(method: str):
    p = random_problem(count=5)
    single = GaussianChain(*(x.float() for x in (p.m0, p.p0, p.a, p.q, p.c)))
    double = GaussianChain(*(x.float().double() for x in (p.m0, p.p0, p.a, p.q, p.c)))
    noise = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    for value, expected in (
        *zip(single.marginals(method), double.marginals(method), strict=True),
        (single.covariance(1, 3, method), double.covariance(1, 3, method)),
        (single.sample(noise, method), double.sample(noise.double(), method)),
    ):
        assert value.dtype == torch.float32
        close(value, expected.float(), 1e-6)


def test_results_have_the_wanted_dtype():
    p = random_problem(count=3)
    chain = GaussianChain(p.m0, p.p0, p.a, p.q, dtype=torch.float32)
    assert [x.dtype for x in chain.marginals()] == [torch.float32, torch.float32]


def test_repr_shows_sizes():
    assert repr(chain_of(count=4)) == "GaussianChain(batch_shape=(2,), num_points=4, dim=3)"


# --- factor -----------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_factor_gives_back_the_matrix_and_is_triangular(rank: int):
    root = torch.randn(4, 3, rank, dtype=DOUBLE, generator=torch.Generator().manual_seed(rank))
    matrix = root @ root.mT
    factor = psd_factor(matrix)
    close(factor @ factor.mT, matrix, 1e-13)
    assert (factor == factor.tril()).all()
    assert ((factor.diagonal(dim1=-2, dim2=-1) == 0).sum(-1) == 3 - rank).all()


def test_factor_of_mixed_ranks_keeps_every_row_apart():
    root = torch.randn(3, 2, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    matrix = root @ root.mT
    matrix[1] = 0
    factor = psd_factor(matrix)
    close(factor[[0, 2]], torch.linalg.cholesky(matrix[[0, 2]]))
    assert (factor[1] == 0).all()


def test_factor_keeps_small_entries_of_short_steps():
    _, q, _ = matern_matrices(3, torch.tensor([1e-6, 1e-3], dtype=DOUBLE))
    factor = psd_factor(q)
    torch.testing.assert_close(factor @ factor.mT, q, rtol=1e-12, atol=0)
    assert (factor.diagonal(dim1=-2, dim2=-1) > 0).all()


def test_gradient_of_the_factor_is_exact_along_matrices_of_its_rank():
    root = torch.randn(2, 3, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda root: psd_factor(root @ root.mT), root.requires_grad_())
    full = torch.randn(2, 3, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda root: psd_factor(root @ root.mT), full.requires_grad_())
    nothing = torch.zeros(1, 2, 2, dtype=DOUBLE, requires_grad=True)
    (gradient,) = torch.autograd.grad(psd_factor(nothing).sum(), nothing)
    assert (gradient == 0).all()


# --- errors -----------------------------------------------------------------------------


def arguments(**changes: Tensor | None) -> dict[str, Tensor]:
    p = random_problem(count=4)
    given = {
        "initial_mean": p.m0,
        "initial_covariance": p.p0,
        "transition": p.a,
        "noise": p.q,
        "offset": p.c,
        **changes,
    }
    return {name: value for name, value in given.items() if value is not None}


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("initial_mean", (2, 0)),
        ("initial_mean", ()),
        ("initial_covariance", (2, 3)),
        ("transition", (2, 3, 3, 2)),
        ("transition", (3, 3)),
        ("noise", (2, 4, 3, 3)),
        ("noise", (3, 3)),
        ("offset", (2, 3)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(name: str, shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"must have shape \(\*batch, .*\) with D >= 1 and the same K for all"):
        GaussianChain(**arguments(**{name: torch.zeros(shape, dtype=DOUBLE)}))


def test_batches_that_do_not_broadcast_are_refused():
    with pytest.raises(
        ValueError, match=r"batch shapes of the tensors of a chain must broadcast, .*'initial_mean': \(5,"
    ):
        GaussianChain(**arguments(initial_mean=torch.zeros(5, 3, dtype=DOUBLE)))


def test_what_is_no_floating_point_tensor_is_refused():
    with pytest.raises(TypeError, match=r"`initial_mean` must be a floating-point tensor, received torch.int64"):
        GaussianChain(**arguments(initial_mean=torch.zeros(3, dtype=torch.long)))
    with pytest.raises(TypeError, match=r"`noise` must be a floating-point tensor, received float"):
        GaussianChain(**arguments(noise=1.0))  # type: ignore[arg-type]


def test_noise_that_is_not_positive_semidefinite_is_named_with_its_time():
    noise = arguments()["noise"].clone()
    noise[1, 2] = torch.diag(torch.tensor([1.0, -0.1, 1.0]))
    message = r"`noise` must be symmetric positive semidefinite; .* at time index 2 of series \[1\]"
    with pytest.raises(ValueError, match=message):
        GaussianChain(**arguments(noise=noise))
    GaussianChain(**arguments(noise=noise), validate=False)
    with pytest.raises(ValueError, match=r"`noise` .* is not positive semidefinite at time index 0:"):
        GaussianChain(**arguments(noise=-torch.eye(3, dtype=DOUBLE).expand(3, 3, 3)))


def test_initial_covariance_is_checked():
    bad = torch.tensor([[1.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=DOUBLE)
    with pytest.raises(ValueError, match=r"`initial_covariance` .* is not positive semidefinite:"):
        GaussianChain(**arguments(initial_covariance=bad))


def test_asymmetric_covariance_is_refused():
    noise = arguments()["noise"].clone()
    noise[0, 1, 0, 2] += 0.5
    with pytest.raises(ValueError, match=r"`noise` .* is not symmetric at time index 1 of series \[0\]"):
        GaussianChain(**arguments(noise=noise))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_of_semidefinite_matrices_is_forgiven(dtype: torch.dtype):
    root = torch.randn(50, 3, 1, generator=torch.Generator().manual_seed(0), dtype=dtype)
    _, matern, p0 = matern_matrices(3, torch.logspace(-6, 3, 50, dtype=DOUBLE))
    for noise in (root @ root.mT, 1e-20 * root @ root.mT, matern.to(dtype)):
        GaussianChain(torch.zeros(3, dtype=dtype), p0.to(dtype), noise, noise)


@pytest.mark.parametrize("name", ["initial_mean", "initial_covariance", "transition", "noise", "offset"])
def test_nan_is_refused_by_name_or_passed_on(name: str):
    bad = arguments()[name].clone()
    index = (1, 2) if name in ("transition", "noise", "offset") else (1,)
    bad[index] = float("nan")
    place = r" at time index 2" if len(index) == 2 else ""
    with pytest.raises(ValueError, match=rf"`{name}` must be finite{place} of series \[1\]"):
        GaussianChain(**arguments(**{name: bad}))
    chain = GaussianChain(**arguments(**{name: bad}), validate=False)
    assert torch.isnan(torch.cat([m.flatten() for m in chain.marginals()])).any()


def test_expanded_tensors_are_checked_once_and_not_copied():
    one = torch.eye(1, dtype=DOUBLE)
    chain = GaussianChain(one[0], one, one.expand(10**12, 1, 1), one.expand(10**12, 1, 1))  # terabytes if it were
    assert chain.num_points == 10**12 + 1


def test_points_outside_the_chain_are_refused():
    chain = chain_of(count=4)
    with pytest.raises(IndexError, match=r"`j` must be a point of the chain, -4 <= j < 4, received 4"):
        chain.covariance(0, 4)
    with pytest.raises(IndexError, match=r"`i` must be a point of the chain, -4 <= i < 4, received -5"):
        chain.covariance(-5, 0)


@pytest.mark.parametrize("shape", [(2, 4, 2), (2, 5, 3), (3, 4, 3), (3,)])
def test_noise_of_a_wrong_shape_is_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"`standard_normal` must have shape \(\*sample, \*batch, 4, 3\) .*\(2,\)"):
        chain_of(count=4).sample(torch.zeros(shape, dtype=DOUBLE))


def test_impossible_expansion_is_refused():
    with pytest.raises(ValueError, match=r"cannot expand a chain of batch shape \(2,\) to \(3,\)"):
        chain_of(count=4).expand((3,))


def test_the_factor_of_one_singular_matrix_needs_no_batch():
    column = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    factor = psd_factor(column @ column.mT)
    torch.testing.assert_close(factor, torch.cat([column, torch.zeros_like(column)], -1))


def test_a_matrix_that_is_not_a_number_has_no_factor():
    matrix = torch.zeros(3, 2, 2, dtype=DOUBLE)
    matrix[1, 0, 0] = torch.nan
    factor = psd_factor(matrix)
    assert factor[1].isnan().all()
    assert torch.equal(factor[[0, 2]], torch.zeros(2, 2, 2, dtype=DOUBLE))
