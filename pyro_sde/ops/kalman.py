"""Exact inference in linear-Gaussian chains: filter, evidence, smoother, and the posterior as a chain."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._kalman_loop import ChainTensors
from ._kalman_method import run_filter, run_information, run_moments
from .gaussian_chain import GaussianChain
from .linear_observations import LinearObservations, WhiteObservations

__all__ = [
    "FilterResult",
    "SmootherResult",
    "kalman_filter",
    "log_evidence",
    "posterior_chain",
    "sample_posterior",
    "smooth",
]


class FilterResult(NamedTuple):
    """Law of every state given the observations up to its own time."""

    mean: Tensor
    """Means ``(*batch, T, D)``."""
    covariance: Tensor
    """Covariances ``(*batch, T, D, D)``."""
    log_evidence: Tensor
    """Log-density of all observations, ``(*batch,)``."""


class SmootherResult(NamedTuple):
    """Law of every state, and of neighbouring states, given all observations."""

    mean: Tensor
    """Means ``(*batch, T, D)``."""
    covariance: Tensor
    """Covariances ``(*batch, T, D, D)``."""
    lag_covariance: Tensor
    """Covariances of the next state with this one, ``(*batch, K, D, D)``."""


def kalman_filter(chain: GaussianChain, observations: LinearObservations, *, method: str = "auto") -> FilterResult:
    r"""Law of :math:`z_k \mid y_0, \dots, y_k` for all k, and the log-evidence.

    Sequential: Joseph form, one scalar observation after the other, so that nothing is inverted and covariances stay
    positive semidefinite on any grid; compiled, with a hand-written adjoint, where numba is installed and tensors are
    on the CPU. Parallel: associative scan of depth O(log T) with the adjoint in closed form. Both run in float64, agree
    to round-off and may be differentiated twice; a second derivative costs a graph per step in the sequential form.

    Args:
        chain: prior law of the states.
        observations: observations at the points of the chain.
        method: "sequential", "parallel" or "auto", which takes the faster one.

    Returns:
        Moments and log-evidence in the dtype of the arguments. Cost O(T (D^3 + O D^2)).

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if chain and observations do not fit, or `method` is unknown.

    References:
        Särkkä (2013), Bayesian Filtering and Smoothing, theorem 4.2; the Joseph form is eq. (4.2.18) of Bierman (1977),
        Factorization Methods for Discrete Sequential Estimation. Parallel: Särkkä, García-Fernández (2021),
        Temporal parallelization of Bayesian smoothers, arXiv 1905.13002.

    Example:
        >>> one = torch.eye(1)
        >>> chain = GaussianChain(torch.zeros(1), one, one.expand(1, 1, 1), one.expand(1, 1, 1))
        >>> result = kalman_filter(chain, LinearObservations(torch.tensor([[1.0], [2.0]]), one, variance=one[0]))
        >>> result.mean.flatten()
        tensor([0.5000, 1.4000])
    """
    batch, dtype = _fit(chain, observations)
    white = observations.whitened(batch)
    means, covariances, evidence = run_filter(method, chain.tensors(batch), white.rows, white.values)
    shape = (*batch, chain.num_points, chain.dim)
    return FilterResult(
        means.reshape(shape).to(dtype),
        covariances.reshape(*shape, chain.dim).to(dtype),
        (evidence + white.constant).reshape(batch).to(dtype),
    )


def log_evidence(chain: GaussianChain, observations: LinearObservations, *, method: str = "auto") -> Tensor:
    r"""Log-density :math:`\log p(y)` of all observations, ``(*batch,)``, with the states integrated out.

    The same computation as `kalman_filter`.

    Args:
        chain: prior law of the states.
        observations: observations at the points of the chain.
        method: "sequential", "parallel" or "auto", which takes the faster one.

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if chain and observations do not fit, or `method` is unknown.
    """
    return kalman_filter(chain, observations, method=method).log_evidence


def posterior_chain(chain: GaussianChain, observations: LinearObservations, *, method: str = "auto") -> GaussianChain:
    r"""The law of the states given all observations, which is a Gaussian chain again.

    With the likelihood :math:`\exp(-\tfrac12 z^\top J_k z + \eta_k^\top z)` of the observations from time k on, from a
    recursion backwards in time, its initial law and kernels are, with :math:`M_k = (I + Q_k J_{k+1})^{-1}`,

    .. math::
        A'_k = M_k A_k, \quad c'_k = M_k (c_k + Q_k \eta_{k+1}), \quad Q'_k = M_k (Q_k + Q_k J_{k+1} Q_k) M_k^\top

    and the same with :math:`P_0, m_0` in the place of :math:`Q_k, c_k`. No covariance is inverted: singular noise and
    a known start are as good as any other. Its `marginals` are the smoother, its `sample` draws from the posterior.

    Args:
        chain: prior law of the states.
        observations: observations at the points of the chain.
        method: "sequential", "parallel" or "auto", which takes the faster one, for the backward recursion.

    Returns:
        A chain that keeps its tensors in float64 and gives results in the dtype of the arguments.

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if chain and observations do not fit, or `method` is unknown.

    References:
        Särkkä, García-Fernández (2021), arXiv 1905.13002, lemma 10 for the backward recursion.
    """
    batch, dtype = _fit(chain, observations)
    return _posterior(chain.tensors(batch), observations.whitened(batch), batch, dtype, method)


def smooth(chain: GaussianChain, observations: LinearObservations, *, method: str = "auto") -> SmootherResult:
    """Moments of every state, and of neighbours, given all observations.

    The marginals of `posterior_chain`; equal to the Rauch–Tung–Striebel smoother, without its inverses.

    Args:
        chain: prior law of the states.
        observations: observations at the points of the chain.
        method: "sequential", "parallel" or "auto", which takes the faster one.

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if chain and observations do not fit, or `method` is unknown.
    """
    batch, dtype = _fit(chain, observations)
    posterior = _posterior(chain.tensors(batch), observations.whitened(batch), batch, dtype, method)
    flat = posterior.tensors()
    mean, covariance = run_moments(method, flat)
    lag = flat.transition @ covariance[:, :-1]
    shape = (*batch, chain.num_points, chain.dim)
    return SmootherResult(
        mean.reshape(shape).to(dtype),
        covariance.reshape(*shape, chain.dim).to(dtype),
        lag.reshape(*batch, chain.num_points - 1, chain.dim, chain.dim).to(dtype),
    )


def sample_posterior(
    chain: GaussianChain, observations: LinearObservations, standard_normal: Tensor, *, method: str = "auto"
) -> Tensor:
    """Paths from the posterior, an affine and differentiable function of the noise.

    Args:
        chain: prior law of the states.
        observations: observations at the points of the chain.
        standard_normal: independent noise ``(*sample, *batch, T, D)``.
        method: "sequential", "parallel" or "auto", which takes the faster one.

    Returns:
        Paths ``(*sample, *batch, T, D)``.

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if chain, observations and noise do not fit, or `method` is unknown.
    """
    return posterior_chain(chain, observations, method=method).sample(standard_normal, method)


def _fit(chain: GaussianChain, observations: LinearObservations) -> tuple[torch.Size, torch.dtype]:
    """Joint batch shape and dtype."""
    for name, value, kind in (("chain", chain, GaussianChain), ("observations", observations, LinearObservations)):
        if not isinstance(value, kind):
            msg = f"`{name}` must be a {kind.__name__}, received {type(value).__name__}."
            raise TypeError(msg)
    if (chain.num_points, chain.dim) != (observations.num_points, observations.dim):
        msg = (
            f"`chain` has {chain.num_points} points of dimension {chain.dim}, but `observations` have "
            f"{observations.num_points} rows of a matrix for dimension {observations.dim}. Observations belong to the "
            "points of the chain: give every point a row, and mask those without data."
        )
        raise ValueError(msg)
    try:
        batch = torch.broadcast_shapes(chain.batch_shape, observations.batch_shape)
    except RuntimeError as error:
        batches = f"{tuple(chain.batch_shape)} and {tuple(observations.batch_shape)}"
        msg = f"the batch shapes of `chain` and `observations` must broadcast, received {batches}."
        raise ValueError(msg) from error
    return batch, torch.promote_types(chain.dtype, observations.dtype)


def _posterior(
    chain: ChainTensors, white: WhiteObservations, batch: torch.Size, dtype: torch.dtype, method: str
) -> GaussianChain:
    """Posterior chain from flat tensors."""
    information, vector = run_information(method, chain, white.rows, white.values)
    # the initial law is a first transition from nothing
    noise = torch.cat([chain.covariance.unsqueeze(1), chain.noise], 1)
    offset = torch.cat([chain.mean.unsqueeze(1), chain.offset], 1).unsqueeze(-1)
    unit = torch.eye(noise.shape[-1], dtype=noise.dtype, device=noise.device)
    inverse = torch.linalg.inv(unit + noise @ information)
    spread = inverse @ (noise + noise @ information @ noise) @ inverse.mT
    offset = (inverse @ (offset + noise @ vector.unsqueeze(-1))).squeeze(-1)
    transition = inverse[:, 1:] @ chain.transition
    parts = (offset[:, 0], spread[:, 0], transition, spread[:, 1:], offset[:, 1:])
    mean, covariance, transition, noise, offset = (part.reshape(*batch, *part.shape[1:]) for part in parts)
    return GaussianChain(mean, covariance, transition, noise, offset, dtype=dtype, validate=False)
