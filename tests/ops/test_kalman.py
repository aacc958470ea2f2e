"""Exact inference in Gaussian chains, against conditioning of the whole vector in dense linear algebra."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_sde.ops import (
    GaussianChain,
    LinearObservations,
    kalman_filter,
    log_evidence,
    posterior_chain,
    sample_posterior,
    smooth,
)
from pyro_sde.ops import _kalman_compiled as compiled
from pyro_sde.ops import _kalman_method as forms
from tests.ops.dense import (
    DOUBLE,
    Problem,
    dense_of,
    dense_posterior,
    dense_prior,
    matern_kernel,
    matern_matrices,
    random_problem,
)

needs_numba = pytest.mark.skipif(not compiled.available(), reason="numba is not installed")


@pytest.fixture(params=[pytest.param("compiled", marks=needs_numba), "loop", "scan"])
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The method that runs each of the three forms."""
    if request.param == "loop":
        monkeypatch.setattr(forms, "available", lambda: False)
    return "parallel" if request.param == "scan" else "sequential"


def chain_of(p: Problem) -> GaussianChain:
    return GaussianChain(p.m0, p.p0, p.a, p.q, p.c)


def seen_of(p: Problem, mask: Tensor | None = None) -> LinearObservations:
    return LinearObservations(p.y, p.h, covariance=p.r, offset=p.d, mask=mask)


def close(value: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


def block(covariance: Tensor, i: int, j: int, dim: int) -> Tensor:
    return covariance[i * dim : (i + 1) * dim, j * dim : (j + 1) * dim]


PROBLEMS = {
    "regular": {"rank": None},
    "one-noise-direction": {"rank": 1},
    "no-noise": {"rank": 0},
    "one-dimension": {"dim": 1, "size": 1},
    "more-observations-than-states": {"dim": 2, "size": 5},
    "one-point": {"count": 1},
    "two-points": {"count": 2},
    "odd": {"count": 7, "size": 1},
}


@pytest.fixture(params=sorted(PROBLEMS))
def problem(request: pytest.FixtureRequest) -> Problem:
    return random_problem(**PROBLEMS[request.param])


# --- values -----------------------------------------------------------------------------


def test_evidence_and_filter_are_those_of_the_dense_gaussian(problem: Problem, method: str):
    result = kalman_filter(chain_of(problem), seen_of(problem), method=method)
    close(result.log_evidence, torch.stack([d.evidence for d in dense_of(problem)]))
    count, dim = problem.y.shape[1], problem.m0.shape[-1]
    for k in range(count):
        past = torch.zeros_like(problem.y, dtype=torch.bool)
        past[:, : k + 1] = True
        for b, dense in enumerate(dense_of(problem, past)):
            close(result.mean[b, k], dense.mean.view(count, dim)[k])
            close(result.covariance[b, k], block(dense.covariance, k, k, dim))


def test_smoother_is_the_marginal_of_the_dense_posterior(problem: Problem, method: str):
    result = smooth(chain_of(problem), seen_of(problem), method=method)
    count, dim = problem.y.shape[1], problem.m0.shape[-1]
    for b, dense in enumerate(dense_of(problem)):
        close(result.mean[b], dense.mean.view(count, dim))
        for k in range(count):
            close(result.covariance[b, k], block(dense.covariance, k, k, dim))
            if k + 1 < count:
                close(result.lag_covariance[b, k], block(dense.covariance, k + 1, k, dim))


def test_posterior_chain_reproduces_the_joint_posterior(problem: Problem, method: str):
    chain = posterior_chain(chain_of(problem), seen_of(problem), method=method)
    for b, dense in enumerate(dense_of(problem)):
        mean, covariance = dense_prior(
            chain.initial_mean[b], chain.initial_covariance[b], chain.transition[b], chain.offset[b], chain.noise[b]
        )
        close(mean, dense.mean)
        close(covariance, dense.covariance)


def test_samples_are_an_affine_function_of_noise_with_the_posterior_law(problem: Problem, method: str):
    count, dim = problem.y.shape[1], problem.m0.shape[-1]
    basis = torch.eye(count * dim, dtype=DOUBLE).view(count * dim, 1, count, dim)
    basis = torch.cat([torch.zeros_like(basis[:1]), basis]).expand(-1, 2, -1, -1)
    paths = sample_posterior(chain_of(problem), seen_of(problem), basis, method=method)
    for b, dense in enumerate(dense_of(problem)):
        root = (paths[1:, b] - paths[0, b]).flatten(1)
        close(paths[0, b].flatten(), dense.mean)
        close(root.mT @ root, dense.covariance)


@pytest.mark.parametrize("size", [1, 3])
def test_known_start_is_exact(method: str, size: int):
    problem = random_problem(size=size, rank=1, seed=3)
    problem = problem._replace(p0=torch.zeros_like(problem.p0))
    result = smooth(chain_of(problem), seen_of(problem), method=method)
    close(result.mean[:, 0], problem.m0)
    close(result.covariance[:, 0], problem.p0)
    close(result.mean[0], dense_of(problem)[0].mean.view(6, 3))


def test_all_forms_agree_on_a_long_chain(method: str):
    p = random_problem(batch=3, count=401, dim=3, size=2, seed=4)
    p = p._replace(a=p.a * 0.8)
    result = kalman_filter(chain_of(p), seen_of(p), method=method)
    wanted = kalman_filter(chain_of(p), seen_of(p), method="parallel")
    for value, expected in zip(result, wanted, strict=True):
        close(value, expected, 1e-10)
    smoothed = smooth(chain_of(p), seen_of(p), method=method)
    for value, expected in zip(smoothed, smooth(chain_of(p), seen_of(p), method="parallel"), strict=True):
        close(value, expected, 1e-10)


def test_auto_gives_the_same_as_both_methods():
    p = random_problem(count=9)
    results = [kalman_filter(chain_of(p), seen_of(p), method=m) for m in ("auto", "sequential", "parallel")]
    for fields in zip(*results, strict=True):
        close(fields[0], fields[1], 1e-12)
        close(fields[0], fields[2], 1e-12)


# --- missing entries, batches -----------------------------------------------------------


@pytest.mark.parametrize("noise", ["variance", "covariance"])
def test_masked_is_dropped_whatever_stands_there(method: str, noise: str):
    p = random_problem(count=8, size=3, seed=5)
    mask = torch.rand(2, 8, 3, generator=torch.Generator().manual_seed(0)) > 0.4
    mask[0, 3] = False
    if noise == "variance":
        p = p._replace(r=p.r.diagonal(dim1=-2, dim2=-1).diag_embed())
    nan = torch.tensor(float("nan"), dtype=DOUBLE)
    y, d = torch.where(mask, p.y, nan).requires_grad_(), torch.where(mask, p.d, nan)
    h = torch.where(mask.unsqueeze(-1), p.h, nan).requires_grad_()
    r = torch.where(mask.unsqueeze(-1) & mask.unsqueeze(-2), p.r, nan)
    r = r.diagonal(dim1=-2, dim2=-1).clone() if noise == "variance" else r
    r.requires_grad_()
    given = LinearObservations(y, h, offset=d, mask=mask, **{noise: r})
    result = smooth(chain_of(p), given, method=method)
    evidence = log_evidence(chain_of(p), given, method=method)
    for b, dense in enumerate(dense_of(p, mask)):
        close(evidence[b], dense.evidence)
        close(result.mean[b], dense.mean.view(8, 3))
    for gradient in torch.autograd.grad(evidence.sum() + result.mean.sum(), [y, h, r]):
        assert torch.isfinite(gradient).all()
    (gradient,) = torch.autograd.grad(log_evidence(chain_of(p), given, method=method).sum(), y)
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask] != 0).all()


def test_mask_of_times_drops_whole_times(method: str):
    p = random_problem(count=5)
    times = torch.tensor([[True, False, True, True, False], [False, True, True, False, True]])
    evidence = log_evidence(chain_of(p), seen_of(p, times), method=method)
    dense = dense_of(p, times.unsqueeze(-1).expand_as(p.y))
    close(evidence, torch.stack([d.evidence for d in dense]))


def test_nothing_observed_gives_the_prior(method: str):
    p = random_problem(count=5)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    close(log_evidence(chain_of(p), seen_of(p, mask), method=method), torch.zeros(2, dtype=DOUBLE))
    result = smooth(chain_of(p), seen_of(p, mask), method=method)
    mean, covariance = chain_of(p).marginals(method)
    close(result.mean, mean)
    close(result.covariance, covariance)


def test_padded_series_is_the_series_alone(method: str):
    p = random_problem(batch=1, count=5, seed=6)
    more, dim = 4, 3
    unit = torch.eye(dim, dtype=DOUBLE).expand(1, more, dim, dim)
    leaf = [x.clone().requires_grad_() for x in p]
    alone = kalman_filter(chain_of(Problem(*leaf)), seen_of(Problem(*leaf)), method=method)
    wanted = torch.autograd.grad(alone.log_evidence.sum() + alone.mean.sum(), leaf)

    def pad(x: Tensor, filler: Tensor) -> Tensor:
        return torch.cat([x, filler.expand(1, more, *x.shape[2:])], 1)

    zero = torch.zeros((), dtype=DOUBLE)
    q = Problem(*leaf)
    padded = GaussianChain(q.m0, q.p0, pad(q.a, unit), pad(q.q, zero), pad(q.c, zero))
    mask = torch.arange(5 + more).expand(1, -1) < 5
    given = LinearObservations(
        pad(q.y, zero * float("nan")),
        pad(q.h, zero),
        covariance=pad(q.r, zero),
        offset=pad(q.d, zero),
        mask=mask,
    )
    result = kalman_filter(padded, given, method=method)
    close(result.log_evidence, alone.log_evidence, 1e-12)
    close(result.mean[:, :5], alone.mean, 1e-12)
    gradients = torch.autograd.grad(result.log_evidence.sum() + result.mean[:, :5].sum(), leaf)
    for value, expected in zip(gradients, wanted, strict=True):
        close(value, expected, 1e-10)
    normal = torch.randn(7, 1, 9, dim, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    paths = sample_posterior(padded, given, normal, method=method)
    close(paths[:, :, :5], sample_posterior(chain_of(q), seen_of(q), normal[:, :, :5], method=method))
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(paths.square().sum(), leaf))


def test_batches_of_chain_and_observations_broadcast(method: str):
    p, other = random_problem(batch=1, count=4, size=2), random_problem(batch=3, count=4, size=2, seed=9)
    # chain batch (2, 1), observations (3,), shared matrix and noise
    means = torch.stack([p.m0[0], p.m0[0] + 1]).unsqueeze(1)
    chain = GaussianChain(means, p.p0[0], p.a[0], p.q[0], p.c[0])
    given = LinearObservations(other.y, p.h[0, 0], variance=torch.tensor(0.3, dtype=DOUBLE))
    result = kalman_filter(chain, given, method=method)
    assert result.mean.shape == (2, 3, 4, 3)
    seen, noise = torch.ones(4, 2, dtype=torch.bool), 0.3 * torch.eye(2, dtype=DOUBLE).expand(4, 2, 2)
    for i in range(2):
        for j in range(3):
            prior = dense_prior(means[i, 0], p.p0[0], p.a[0], p.c[0], p.q[0])
            h, zero = p.h[0, 0].expand(4, 2, 3), torch.zeros(4, 2, dtype=DOUBLE)
            dense = dense_posterior(prior, h, zero, noise, other.y[j], seen)
            close(result.log_evidence[i, j], dense.evidence)
            close(smooth(chain, given, method=method).mean[i, j], dense.mean.view(4, 3))
    paths = sample_posterior(chain, given, torch.zeros(5, 2, 3, 4, 3, dtype=DOUBLE), method=method)
    close(paths[4], smooth(chain, given, method=method).mean)


def test_matrices_shared_over_time_have_summed_gradients(method: str):
    p = random_problem(batch=2, count=6, size=1)
    a, q = p.a[0, 0].clone().requires_grad_(), p.q[0, 0].clone().requires_grad_()

    def evidence(a: Tensor, q: Tensor) -> Tensor:
        chain = GaussianChain(p.m0, p.p0, a, q)
        return log_evidence(chain, LinearObservations(p.y, p.h, covariance=p.r), method=method).sum()

    shared = torch.autograd.grad(evidence(a.expand(5, 3, 3), q.expand(5, 3, 3)), [a, q])
    wide = [x.detach().expand(2, 5, 3, 3).clone().requires_grad_() for x in (a, q)]
    for value, each in zip(shared, torch.autograd.grad(evidence(*wide), wide), strict=True):
        close(value, each.sum((0, 1)))


# --- gradients --------------------------------------------------------------------------


def functional(chain: GaussianChain, given: LinearObservations, method: str) -> Tensor:
    """A number that depends on every result."""
    generator = torch.Generator().manual_seed(11)
    filtered, smoothed = kalman_filter(chain, given, method=method), smooth(chain, given, method=method)
    results = [*filtered, *smoothed]
    return sum((r * torch.randn(r.shape, generator=generator, dtype=DOUBLE)).sum() for r in results)


def dense_functional(p: Problem) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    count, dim = p.y.shape[1], p.m0.shape[-1]
    past = [torch.zeros_like(p.y, dtype=torch.bool) for _ in range(count)]
    for k in range(count):
        past[k][:, : k + 1] = True
    partial, full = [dense_of(p, seen) for seen in past], dense_of(p)

    def moments(by_time: list[list], lag: int = 0) -> tuple[Tensor, Tensor]:
        mean = torch.stack(
            [torch.stack([d[b].mean.view(count, dim)[k] for k, d in enumerate(by_time)]) for b in (0, 1)]
        )
        spread = [[block(d[b].covariance, k, k, dim) for k, d in enumerate(by_time)] for b in (0, 1)]
        return mean, torch.stack([torch.stack(row) for row in spread])

    lag = torch.stack([torch.stack([block(d.covariance, k + 1, k, dim) for k in range(count - 1)]) for d in full])
    results = [*moments(partial), torch.stack([d.evidence for d in full]), *moments([full] * count), lag]
    return sum((r * torch.randn(r.shape, generator=generator, dtype=DOUBLE)).sum() for r in results)


@pytest.mark.parametrize("size", [1, 2])
def test_gradients_are_those_of_the_dense_formulas(method: str, size: int):
    p = random_problem(count=4, size=size, seed=7)
    leaves = [x.clone().requires_grad_() for x in p]

    def symmetric(x: Problem) -> Problem:  # a dense covariance has one entry where the filter has two
        return x._replace(**{n: 0.5 * (getattr(x, n) + getattr(x, n).mT) for n in ("p0", "q", "r")})

    used = symmetric(Problem(*leaves))
    gradients = torch.autograd.grad(functional(chain_of(used), seen_of(used), method), leaves)
    wanted = torch.autograd.grad(dense_functional(symmetric(Problem(*leaves))), leaves)
    for name, value, expected in zip(Problem._fields, gradients, wanted, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-8, msg=lambda m, name=name: f"{name}: {m}")


def test_gradient_of_evidence_alone_is_exact(method: str):
    p = random_problem(count=5, size=2, rank=0, seed=8)
    leaves = [x.clone().requires_grad_() for x in p]
    q = Problem(*leaves)
    gradients = torch.autograd.grad(log_evidence(chain_of(q), seen_of(q), method=method).sum(), leaves)
    wanted = torch.autograd.grad(sum(d.evidence for d in dense_of(Problem(*leaves))), leaves)
    for value, expected in zip(gradients, wanted, strict=True):
        if value.shape[-1] == value.shape[-2]:
            value, expected = value + value.mT, expected + expected.mT
        close(value, expected, 1e-8)


def test_gradients_reach_factors_of_singular_noise(method: str):
    p = random_problem(count=5, size=1, seed=8)
    root = torch.randn(2, 4, 3, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(1)).requires_grad_()
    normal = torch.randn(2, 5, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    q = p._replace(q=root @ root.mT)
    smoothed = smooth(chain_of(q), seen_of(q), method=method)
    (value,) = torch.autograd.grad(smoothed.mean.square().sum() + smoothed.covariance.sum(), root)
    dense = dense_of(p._replace(q=root @ root.mT))
    covariances = sum(block(d.covariance, k, k, 3).sum() for d in dense for k in range(5))
    (wanted,) = torch.autograd.grad(sum(d.mean.square().sum() for d in dense) + covariances, root)
    close(value, wanted, 1e-7)
    q = p._replace(q=root @ root.mT)
    paths = sample_posterior(chain_of(q), seen_of(q), normal, method=method)
    assert torch.isfinite(torch.autograd.grad(paths.square().sum(), root)[0]).all()


def test_samples_have_exact_gradients(method: str):
    p = random_problem(batch=1, count=3, dim=2, size=1, seed=10)
    normal = torch.randn(2, 1, 3, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))

    def paths(m0: Tensor, root0: Tensor, a: Tensor, c: Tensor, root: Tensor, y: Tensor, normal: Tensor) -> Tensor:
        q = p._replace(m0=m0, p0=root0 @ root0.mT, a=a, c=c, q=root @ root.mT, y=y)
        return sample_posterior(chain_of(q), seen_of(q), normal, method=method)

    roots = torch.linalg.cholesky(p.p0), torch.linalg.cholesky(p.q)
    inputs = [x.clone().requires_grad_() for x in (p.m0, roots[0], p.a, p.c, roots[1], p.y, normal)]
    assert torch.autograd.gradcheck(paths, inputs, atol=1e-6)


def test_second_derivatives_are_exact(method: str):
    p = random_problem(batch=1, count=3, dim=2, size=1, seed=12)

    def results(a: Tensor, root: Tensor, h: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        q = p._replace(a=a, q=root @ root.mT, h=h, y=y)
        chain, given = chain_of(q), seen_of(q)
        filtered, smoothed = kalman_filter(chain, given, method=method), smooth(chain, given, method=method)
        paths = chain.sample(torch.ones(2, 1, 3, 2, dtype=DOUBLE), method)
        return filtered.log_evidence, filtered.mean, smoothed.mean, smoothed.covariance, paths

    inputs = [x.clone().requires_grad_() for x in (p.a, torch.linalg.cholesky(p.q), p.h, p.y)]
    assert torch.autograd.gradgradcheck(results, inputs, atol=1e-5)


def steps_of_any_length() -> tuple[Tensor, Tensor, Tensor]:
    dt = torch.tensor([1e-6, 1e-6, 1e3, 1e-3, 0.0, 1e-6, 1.0, 1e3, 1e3, 1e-6], dtype=DOUBLE)
    return matern_matrices(3, dt)


@pytest.mark.parametrize("known_start", [False, True])
def test_gradients_are_finite_for_steps_from_1e_6_to_1e3(method: str, known_start: bool):
    a, q, p0 = steps_of_any_length()
    p0 = 0 * p0 if known_start else p0
    y = torch.linspace(-1, 1, 11, dtype=DOUBLE).unsqueeze(-1)
    leaves = [x.clone().requires_grad_() for x in (torch.zeros(3, dtype=DOUBLE), p0, a, q, y)]
    row, variance = torch.eye(3, dtype=DOUBLE)[:1].clone(), torch.tensor(0.01, dtype=DOUBLE)

    def results(method: str) -> Tensor:
        m0, p0, a, q, y = leaves
        chain = GaussianChain(m0, p0, a, q)
        given = LinearObservations(y, row, variance=variance)
        smoothed = smooth(chain, given, method=method)
        paths = sample_posterior(chain, given, torch.ones(11, 3, dtype=DOUBLE), method=method)
        return log_evidence(chain, given, method=method) + smoothed.mean[:, 0].sum() + paths[:, 0].sum()

    gradients = torch.autograd.grad(results(method), leaves)
    assert all(torch.isfinite(g).all() for g in gradients)
    (by_value,) = torch.autograd.grad(results("parallel"), leaves[-1:])
    close(gradients[-1], by_value, 1e-7)


# --- precision --------------------------------------------------------------------------


@pytest.mark.parametrize("dt", [0.001, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_matern_evidence_is_that_of_the_dense_process_in_both_precisions(order: int, dt: float):
    times = dt * torch.arange(1000, dtype=DOUBLE)
    noise = torch.randn(1000, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    y = (torch.sin(3 * times) + 0.1 * noise).unsqueeze(-1)
    gram = matern_kernel(order, (times.unsqueeze(-1) - times).abs()) + 0.01 * torch.eye(1000, dtype=DOUBLE)
    law = torch.distributions.MultivariateNormal(torch.zeros(1000, dtype=DOUBLE), gram)
    expected = law.log_prob(y[:, 0])
    matrices = matern_matrices(order, torch.tensor(dt, dtype=DOUBLE))
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-2)):
        a, q, p0 = (x.to(dtype) for x in matrices)
        chain = GaussianChain(p0.new_zeros(order), p0, a.expand(999, -1, -1), q.expand(999, -1, -1))
        row = torch.eye(order, dtype=dtype)[:1]
        given = LinearObservations(y.to(dtype), row, variance=torch.tensor(0.01, dtype=dtype))
        for method in ("sequential", "parallel"):
            value = log_evidence(chain, given, method=method)
            assert value.dtype == dtype
            assert abs(value.double() - expected) < tolerance


@pytest.mark.parametrize("dt", [1e-6, 1e-3])
def test_covariances_of_fine_grids_stay_positive_semidefinite(method: str, dt: float):
    a, q, p0 = matern_matrices(3, torch.tensor(dt, dtype=DOUBLE))
    chain = GaussianChain(torch.zeros(3, dtype=DOUBLE), 0 * p0, a.expand(299, 3, 3), q.expand(299, 3, 3))
    y = torch.randn(300, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    given = LinearObservations(y, torch.eye(3, dtype=DOUBLE)[:1], variance=torch.tensor(1e-8, dtype=DOUBLE))
    posterior = posterior_chain(chain, given, method=method)
    found = [kalman_filter(chain, given, method=method).covariance, posterior.noise, posterior.marginals(method)[1]]
    for covariance in found:
        scale = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        assert (scale[1:] > 0).all()
        correlation = covariance[1:] / scale[1:, :, None] / scale[1:, None, :]
        assert torch.linalg.eigvalsh(correlation).min() > -1e-12


def test_joseph_form_survives_a_very_precise_observation(method: str):
    # prior variance 1e6, noise 1e-6: the plain update P - K H P would leave four digits
    one = torch.ones(1, 1, dtype=DOUBLE)
    chain = GaussianChain(torch.zeros(1, dtype=DOUBLE), 1e6 * one, one.expand(2, 1, 1), 0 * one.expand(2, 1, 1))
    given = LinearObservations(torch.ones(3, 1, dtype=DOUBLE), one, variance=1e-6 * one[0])
    covariance = kalman_filter(chain, given, method=method).covariance.flatten()
    close(1e6 * covariance[:1], torch.ones(1, dtype=DOUBLE), 1e-9)
    close(1e6 * covariance, 1 / torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE), 1e-9)


def test_float32_results_and_gradients_are_those_of_float64(method: str):
    p = random_problem(count=7)
    single = Problem(*(x.float() for x in p))
    exact = Problem(*(x.double() for x in single))
    leaves = [x.clone().requires_grad_() for x in single]
    used = Problem(*leaves)
    chain, given = chain_of(used), seen_of(used)
    results = [*kalman_filter(chain, given, method=method), *smooth(chain, given, method=method)]
    wanted = [
        *kalman_filter(chain_of(exact), seen_of(exact), method=method),
        *smooth(chain_of(exact), seen_of(exact), method=method),
    ]
    for value, expected in zip(results, wanted, strict=True):
        assert value.dtype == torch.float32
        close(value, expected.float(), 1e-6)
    gradients = torch.autograd.grad(results[2].sum(), leaves)
    assert all(g.dtype == torch.float32 and torch.isfinite(g).all() for g in gradients)
    posterior = posterior_chain(chain, given, method=method)
    assert posterior.marginals(method)[0].dtype == torch.float32
    assert sample_posterior(chain, given, torch.zeros(2, 7, 3), method=method).dtype == torch.float32


# --- choice of the form, traces ---------------------------------------------------------


def test_forms_are_chosen_in_one_place(monkeypatch: pytest.MonkeyPatch):
    few, many = torch.zeros(1, 3), torch.zeros(4000, 3)
    monkeypatch.setattr(forms, "available", lambda: True)
    assert [forms.choose_form(m, few) for m in ("auto", "sequential", "parallel")] == ["compiled", "compiled", "scan"]
    monkeypatch.setattr(forms, "available", lambda: False)
    assert [forms.choose_form(m, few) for m in ("auto", "sequential", "parallel")] == ["scan", "loop", "scan"]
    assert [forms.choose_form(m, many) for m in ("auto", "sequential", "parallel")] == ["loop", "loop", "scan"]
    assert forms.choose_form("auto", many.to("meta")) == "scan"


def test_evidence_can_be_traced():
    p = random_problem(batch=1, count=4)

    def evidence(y: Tensor) -> Tensor:
        return log_evidence(chain_of(p), seen_of(p._replace(y=y)))

    traced = torch.jit.trace(evidence, (p.y,), check_trace=False)
    close(traced(p.y + 1), evidence(p.y + 1))


@pytest.mark.parametrize("method", ["auto", "sequential", "parallel"])
def test_gradient_by_functional_transform_is_the_same(method: str):
    p = random_problem(batch=1, count=4)

    def evidence(y: Tensor) -> Tensor:
        return log_evidence(chain_of(p), seen_of(p._replace(y=y)), method=method).sum()

    y = p.y.clone().requires_grad_()
    close(torch.func.grad(evidence)(p.y), torch.autograd.grad(evidence(y), y)[0])


def test_a_sample_may_be_overwritten_before_its_gradient_is_taken(method: str):
    p = random_problem(batch=1, count=4)
    a = p.a.clone().requires_grad_()
    noise = torch.ones(1, 4, 3, dtype=DOUBLE)
    path = GaussianChain(p.m0, p.p0, a, p.q).sample(noise, method)
    (expected,) = torch.autograd.grad(path.sum(), a, retain_graph=True)
    total = path.sum()
    path.detach().fill_(0.0)
    close(torch.autograd.grad(total, a)[0], expected)


def test_kernels_compile_without_a_folder_for_their_cache(monkeypatch: pytest.MonkeyPatch):
    numba = pytest.importorskip("numba")
    original = numba.njit

    def no_folder(signature: str, **options: object) -> object:
        if options.pop("cache", False):
            raise RuntimeError("cannot cache function")
        return original(signature, **options)

    monkeypatch.setattr(numba, "njit", no_folder)
    states = torch.ones(1, 1, 3, 1, dtype=DOUBLE)
    compiled.kernel.__wrapped__("recurrence_forward")(
        torch.full((1, 2, 1, 1), 2.0, dtype=DOUBLE).numpy(), states.numpy()
    )
    assert states.flatten().tolist() == [1.0, 3.0, 7.0]


def test_works_without_numba(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "numba.extending", None)
    assert not compiled.available.__wrapped__()


# --- errors -----------------------------------------------------------------------------


def test_chain_and_observations_of_different_length_are_refused():
    p, longer = random_problem(count=4), random_problem(count=5)
    with pytest.raises(ValueError, match=r"`chain` has 4 points of dimension 3, but `observations` have 5"):
        log_evidence(chain_of(p), seen_of(longer))


def test_batches_that_do_not_broadcast_are_refused():
    p, other = random_problem(batch=2), random_problem(batch=3)
    with pytest.raises(ValueError, match=r"batch shapes of `chain` and `observations` must broadcast, .*\(2,\) and"):
        smooth(chain_of(p), seen_of(other))


def test_unknown_method_is_refused():
    p = random_problem()
    with pytest.raises(ValueError, match=r'`method` must be "auto", "sequential" or "parallel", received \'fast\''):
        posterior_chain(chain_of(p), seen_of(p), method="fast")
