r"""Goodness of fit of path laws: do samples, transition kernels and density belong together?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..distributions.base import PathDistribution
from ..distributions.sde_path import SDEPath
from ..sde.noise import MatrixNoise
from .statistics import TEST_FAILURE_RATE, ContractError, Outcome, chi2_test, combine, ks_test, z_test

__all__ = ["gof", "loop_log_prob", "stein_test"]

_FEWEST_INCREMENTS = 1000  # products of normals have heavier tails than their sum's normal limit


def gof(law: PathDistribution, num_samples: int = 1000) -> Outcome:
    r"""Goodness of fit of the samples of a path law to its kernels.

    For an `SDEPath` of Euler–Maruyama steps the increments of sampled paths are standardised,
    :math:`\epsilon_k = \sigma_k^+ (z_{k+1} - z_k - f_k h_k) / \sqrt{h_k}`, with one call of drift and diffusion at the
    sampled states; under the law they are independent N(0, 1) whatever the coefficients. Tested per noisy direction:
    mean, variance (:math:`\chi^2`), shape (Kolmogorov–Smirnov), mean of every step (:math:`\chi^2`), correlation with
    the step before and with other directions, and mean and variance given the side of the median of each state (a
    wrong dependence on the state). The first states are compared with fresh samples of `initial` (Kolmogorov–Smirnov
    for two samples). Directions without noise and padded steps are left out. Works at any dimension, where tests by
    nearest neighbours are blind.

    The smallest error found is a common shift of the standardised increments of one direction; a relative error of the
    diffusion is found at :math:`1/\sqrt2` of it, an error :math:`\Delta f` of the drift at
    :math:`\sigma / \sqrt h` times it. (Without a noisy direction: a distance of distribution functions of the first
    state. Directions with fewer than 1000 increments in all are left out.) The density is not looked at, see
    `loop_log_prob` and `stein_test`.

    For any other path law: `stein_test`.

    Args:
        law: the law; nothing of it is changed, and global randomness is used.
        num_samples: number of paths per batch entry, at least 100.

    Raises:
        ValueError: if there are fewer than 100 samples.
        ImportError: if scipy is missing.

    Derivation:
        The step of Kloeden and Platen (1992), Numerical Solution of SDEs, eq. (10.2.4), solved for its noise.

    Example:
        >>> from pyro_sde import OrnsteinUhlenbeckPath
        >>> one = torch.ones(1)
        >>> _ = gof(OrnsteinUhlenbeckPath(one, one, one, torch.tensor([0.0, 0.5, 1.5]))).require(detects=0.2)
    """
    if num_samples < 100:
        msg = f"`num_samples` must be at least 100, received {num_samples}."
        raise ValueError(msg)
    if not (isinstance(law, SDEPath) and law.solver.is_euler):
        return stein_test(law, num_samples)
    with torch.no_grad():
        path = law.sample((num_samples,)).detach()
        fresh = law.initial.sample((num_samples,)).detach()
        first = ("first state", _two_samples(path[..., 0, :], fresh))
        increments = _standardise(law, path)
        directions = range(increments.values.shape[-1])
        tests = [test for r in directions for test in _direction_tests(increments, r)]
    counts = [float(c) for c in increments.valid.sum((0, 1)) if c >= _FEWEST_INCREMENTS]
    smallest = _smallest_shift(min(counts)) if counts else first[1].smallest_error
    return combine([first, *tests])._replace(smallest_error=smallest)


def stein_test(law: PathDistribution, num_samples: int = 1000) -> Outcome:
    r"""Test samples of any law with a smooth positive density against its `log_prob`, by Stein's identities.

    .. math:: E[s_i] = 0, \qquad E[z_i s_j] = -\delta_{ij}, \qquad s = \nabla_z \log p(z)

    For a Gaussian law the first finds every wrong mean, the second every wrong covariance. A constant factor of the
    density is not seen. Cost: (T D)^2 entries, so use short paths. Not valid for laws with a point mass or directions
    without noise, nor where the score has heavy tails (multiplicative noise near zero).

    The smallest error found is one of the entries above.

    Args:
        law: the law.
        num_samples: number of paths per batch entry, at least 100.

    Raises:
        ValueError: if there are fewer than 100 samples.

    References:
        Gorham, Mackey (2015), Measuring sample quality with Stein's method, arXiv 1506.03039, section 2.
    """
    path = law.sample((num_samples,)).detach().requires_grad_()
    with torch.enable_grad():
        (score,) = torch.autograd.grad(law.log_prob(path).sum(), path)
    value, score = path.detach().flatten(-2).double(), score.flatten(-2).double()  # (n, *batch, T D)
    identity = -torch.eye(value.shape[-1], dtype=torch.float64)
    products = (value - value.mean(0)).unsqueeze(-1) * score.unsqueeze(-2)
    return combine([("mean of the score", z_test(score, 0.0)), ("state times score", z_test(products, identity))])


def loop_log_prob(law: SDEPath, path: Tensor) -> Tensor:
    """Log-density of a path, one step at a time and by dense linear algebra; the oracle of `SDEPath.log_prob`.

    Drift and diffusion are called as the solver calls them, at one time and the states of that time, and the Gaussian
    density of each increment is taken from a singular value decomposition. Slow: for tests.

    Args:
        law: the law.
        path: ``(..., K + 1, D)``.

    Returns:
        ``(...)`` broadcast with the batch shape.

    Raises:
        ContractError: if an increment leaves the range of the diffusion by more than round-off.
    """
    total = law.initial.log_prob(path[..., 0, :])
    rows = law.sde.bind_rows(law.inputs)
    noise = law.sde.noise
    for k in range(law.grid.num_steps):
        t, z, h = law.grid.times[..., k : k + 1], path[..., k, :], law.grid.steps[..., k]
        slices = tuple(None if row is None else row[..., k, :] for row in rows)
        with law.effects:  # the Pyro statements recorded when the law was built
            coefficients = law.sde.coefficients(t, z, slices)
        diffusion = noise.expand(coefficients.diffusion, z)
        matrix = diffusion if isinstance(noise, MatrixNoise) else torch.diag_embed(diffusion)
        moving = h > 0
        step = torch.where(moving, h, torch.ones_like(h))
        residual = path[..., k + 1, :] - z - coefficients.total_drift(noise) * step.unsqueeze(-1)
        term, rest = _gaussian_term(matrix * step.sqrt()[..., None, None], residual)
        size = path.abs().amax()
        tolerance = math.sqrt(torch.finfo(path.dtype).eps)
        if bool((torch.where(moving, rest, torch.zeros_like(rest)) > tolerance * size).any()):
            msg = f"step {k}: the increment leaves the range of the diffusion by {float(rest.max()):.3g}."
            raise ContractError(msg)
        total = total + torch.where(moving, term, torch.zeros_like(term))
    return total


def _gaussian_term(factor: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """Log-density of N(0, L L^T) on the range of L (..., D, M), and the length of the part outside that range."""
    u, s, _ = torch.linalg.svd(factor, full_matrices=False)
    noisy = _noisy(s)
    safe = torch.where(noisy, s, torch.ones_like(s))
    coordinates = (u.mT @ residual.unsqueeze(-1)).squeeze(-1)
    coordinates = torch.where(noisy, coordinates, torch.zeros_like(coordinates))
    rest = (residual - (u @ coordinates.unsqueeze(-1)).squeeze(-1)).norm(dim=-1)
    density = -0.5 * (coordinates / safe).square() - safe.log() - 0.5 * math.log(2 * math.pi)
    return torch.where(noisy, density, torch.zeros_like(density)).sum(-1), rest


def _noisy(singular_values: Tensor) -> Tensor:
    """Which singular values are not rounding; the largest may be 0."""
    relative = 1e-7 if singular_values.dtype == torch.float64 else 1e-5
    largest = singular_values.amax(-1, keepdim=True)
    return singular_values > relative * largest.clamp(min=torch.finfo(singular_values.dtype).tiny)


class _Increments(NamedTuple):
    """Standardised increments (K, N, R), 0 where `valid` is false, and the states before them (K, N, D)."""

    values: Tensor
    valid: Tensor
    states: Tensor


def _standardise(law: SDEPath, path: Tensor) -> _Increments:
    """Independent N(0, 1) coordinates of the noise; N counts samples and batch together."""
    kernels = law.euler_kernels(path)
    noise = law.noise_of(path).movedim(-2, 0)  # (K, n, *batch, M)
    lead = noise.shape[:-1]
    diffusion = kernels.diffusion
    if isinstance(law.sde.noise, MatrixNoise):
        # Minimum-norm noise lies in the row space of the diffusion: take its coordinates there.
        _, s, rows = torch.linalg.svd(diffusion, full_matrices=False)
        valid = _noisy(s)
        noise = (rows @ noise.unsqueeze(-1)).squeeze(-1)
    else:
        valid = diffusion != 0
    valid = (valid & kernels.moving).expand(noise.shape)
    states = kernels.state.expand(*lead, path.shape[-1])
    noise = torch.where(valid, noise, torch.zeros_like(noise)).double()
    return _Increments(*(t.reshape(t.shape[0], lead[1:].numel(), t.shape[-1]) for t in (noise, valid, states.double())))


def _direction_tests(increments: _Increments, r: int) -> Iterator[tuple[str, Outcome]]:
    """Tests of the increments along noisy direction r; each yields its name and outcome."""
    values, weight = increments.values, increments.valid.double()
    x, w = values[..., r], weight[..., r]
    count = float(w.sum())
    if count < _FEWEST_INCREMENTS:
        return
    yield f"noise {r}, shape", ks_test(x[w > 0])
    yield f"noise {r}, mean", _normal(x, w)
    yield f"noise {r}, variance", chi2_test(float(x.square().sum()), count)
    per_step = w.sum(1)
    used = per_step > 0
    yield f"noise {r}, means of steps", chi2_test(float((x.sum(1).square() / per_step)[used].sum()), float(used.sum()))
    for s in range(values.shape[-1]):
        before, seen = values[:-1, :, s], weight[:-1, :, s]
        yield f"noise {r} with noise {s} one step before", _normal(before * x[1:], seen * w[1:])
        if s < r:
            yield f"noise {r} with noise {s}", _normal(values[..., s] * x, weight[..., s] * w)
    # The side of the median, not the state itself: a heavy-tailed state must not decide the test alone.
    sides = torch.sign(increments.states - increments.states.median(1, keepdim=True).values)  # (K, N, D)
    for d, side in enumerate(sides.unbind(-1)):
        yield f"noise {r}, mean given state {d}", _normal(x * side, w * side.abs())
        yield f"noise {r}, variance given state {d}", _normal((x.square() - w) * side / math.sqrt(2), w * side.abs())


def _normal(terms: Tensor, weight: Tensor) -> Outcome:
    """Test uncorrelated terms of mean 0 and variance 1 where the weight is 1, absent where it is 0."""
    count = float(weight.sum())
    if count < _FEWEST_INCREMENTS:
        return Outcome(1.0, 0.0, "too few terms to test")
    z = float(terms.sum()) / math.sqrt(count)
    p_value = math.erfc(abs(z) / math.sqrt(2)) if math.isfinite(z) else 0.0
    return Outcome(
        p_value, _smallest_shift(count), f"mean {float(terms.sum()) / count:.4g}, z = {z:.2f}, n = {count:g}"
    )


def _smallest_shift(count: float) -> float:
    """Mean of `count` variables of variance 1 that is found with 99 % among a hundred tests."""
    rate = torch.tensor(TEST_FAILURE_RATE / 200, dtype=torch.float64)
    return (2.33 - float(torch.special.ndtri(rate))) / math.sqrt(count)


def _two_samples(first: Tensor, second: Tensor) -> Outcome:
    """Kolmogorov–Smirnov test of two samples (n, ...), column by column; ties make it conservative."""
    n = len(first)
    first, second = (t.reshape(n, -1).double().T.contiguous() for t in (first, second))
    order = second.sort(-1).values

    def empirical(points: Tensor, sample: Tensor) -> Tensor:
        return torch.searchsorted(sample, points, right=True).double() / n

    both = torch.cat([first, second], -1)
    distance = (empirical(both, first.sort(-1).values) - empirical(both, order)).abs().amax(-1)
    worst = float(distance.max())
    # Tail of the limit law with effective size n / 2, bounded by its first term 2 exp(-2 (n/2) d^2).
    p_value = min(1.0, len(distance) * 2 * math.exp(-n * worst**2))
    smallest = (math.sqrt(math.log(2 * len(distance) / TEST_FAILURE_RATE)) + math.sqrt(math.log(200))) / math.sqrt(n)
    return Outcome(p_value, smallest, f"distance {worst:.4g} between {n} first states and samples of `initial`")
