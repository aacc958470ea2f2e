"""Gaussian chains beside a path law: its linearisation along a centre, with the noise of its own kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from ..distributions.base import PathDistribution
from ..distributions.gaussian_path import GaussianPath
from ..distributions.gaussian_state import gaussian_moments
from ..distributions.kernels import EulerKernels
from ..distributions.sde_path import SDEPath
from ..ops.gaussian_chain import GaussianChain
from ..ops.grid import TimeGrid
from ..sde.linear import LinearSDE

__all__ = ["PathLaw", "check_path_law", "initial_moments", "is_linear", "linearise", "moving_points", "prior_mean"]

PathLaw = SDEPath | GaussianPath


def check_path_law(law: PathDistribution, who: str) -> PathLaw:
    """The law, if it can be linearised.

    Raises:
        TypeError: if it is neither an `SDEPath` nor a `GaussianPath`; the message starts with `who`.
    """
    if not isinstance(law, SDEPath | GaussianPath):
        msg = f"{who} SDEPath and GaussianPath laws, received {type(law).__name__}."
        raise TypeError(msg)
    return law


def is_linear(law: PathLaw) -> bool:
    """Whether the law is known to be a Gaussian chain, so that every centre gives the same linearisation."""
    return isinstance(law, GaussianPath) or isinstance(law.sde, LinearSDE)


def moving_points(grid: TimeGrid) -> Tensor:
    """Which grid points are none of padding, ``(*batch, T)``: a pseudo-observation of padding would count twice."""
    first = torch.ones_like(grid.times[..., :1], dtype=torch.bool)
    return torch.cat([first, grid.steps > 0], -1)


def prior_mean(law: PathLaw) -> Tensor:
    """Mean of a Gaussian path, else the path without noise from the mean of the first state, ``(*batch, T, D)``."""
    if isinstance(law, GaussianPath):
        return law.mean
    first = initial_moments(law.initial)[0].to(law.grid.times.dtype)
    noise = law.grid.times.new_zeros(law.noise_shape())
    return law.solve(first.expand(*law.batch_shape, first.shape[-1]), noise)


def linearise(law: PathLaw, centre: Tensor | None, gain: Tensor | None = None) -> GaussianChain:
    r"""Chain :math:`z_{k+1} = z_k + (f(m_k) + F_k (z_k - m_k)) h_k + N(0, \sigma \sigma^\top h_k)` about a centre m.

    Drift f, its Jacobian F and the diffusion are those of the law at the centre, and the covariances are those of its
    Euler kernels there; a `GaussianPath` is its own chain. Differentiable with respect to the centre and whatever the
    coefficients depend on. Cost: one batched call of the coefficients, and D backward passes through it.

    Args:
        law: the law.
        centre: m, broadcastable to ``(*batch, T, D)``; None for a `GaussianPath`.
        gain: G, ``(*batch, K, M, D)``, which adds :math:`\sigma(m) G` to the Jacobian.
    """
    if isinstance(law, GaussianPath) or centre is None:
        return law.chain  # type: ignore[union-attr]
    graph = torch.is_grad_enabled()
    batch = torch.broadcast_shapes(centre.shape[:-2], law.batch_shape)
    with torch.enable_grad():
        path = centre.expand(*batch, *law.event_shape)
        path = path if path.requires_grad else path.detach().requires_grad_()
        kernels = law.euler_kernels(path)
        shape = kernels.state.shape  # (K, *batch, D)
        drift = kernels.total_drift.expand(shape)
        slope = _jacobian(drift, path, graph)
    diffusion = _matrix(kernels, shape)  # (*batch, K, D, M)
    if gain is not None:
        slope = slope + diffusion @ gain.double()
    steps = torch.where(kernels.moving, kernels.safe_steps, torch.zeros_like(kernels.safe_steps)).double()
    steps = steps.expand(*shape[:-1], 1).movedim(0, -2)  # (*batch, K, 1)
    transition = torch.eye(shape[-1], dtype=torch.float64, device=path.device) + slope * steps.unsqueeze(-1)
    lag = drift.double().movedim(0, -2) - (slope @ path[..., :-1, :].double().unsqueeze(-1)).squeeze(-1)
    noise = diffusion @ diffusion.mT * steps.unsqueeze(-1)
    mean, covariance = initial_moments(law.initial)
    return GaussianChain(mean, covariance, transition, noise, lag * steps, dtype=path.dtype, validate=False)


def initial_moments(initial: Distribution) -> tuple[Tensor, Tensor]:
    """Mean ``(*batch, D)`` and covariance ``(*batch, D, D)`` of a law of the first state, float64.

    Raises:
        ValueError: if its support is not the real space, or its moments are not known and finite.
    """
    try:
        return gaussian_moments(initial)
    except ValueError:
        pass
    support = initial.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is not constraints.real and support is not constraints.real_vector:
        msg = (
            f"a Gaussian posterior needs a first state with real values, but the support of its prior is {support}. "
            "Use AutoSDE or a PosteriorSDE, or model the logarithm of the state."
        )
        raise ValueError(msg)
    try:
        mean, variance = initial.mean, initial.variance
    except NotImplementedError:
        mean = variance = torch.full((), torch.nan)
    if not bool(torch.isfinite(mean).all() & torch.isfinite(variance).all()):
        msg = (
            f"a Gaussian posterior needs a first state with known, finite mean and variance; {type(initial).__name__} "
            "has none. Use AutoSDE or a PosteriorSDE."
        )
        raise ValueError(msg)
    return mean.double(), torch.diag_embed(variance.double())


def _jacobian(drift: Tensor, path: Tensor, graph: bool) -> Tensor:
    """Derivatives of the drift ``(K, *batch, D)`` with respect to its own states, ``(*batch, K, D, D)``, float64."""
    if not drift.requires_grad:
        return path.new_zeros(*path.shape[:-2], path.shape[-2] - 1, path.shape[-1], path.shape[-1]).double()
    rows = [
        torch.autograd.grad(
            component.sum(), path, create_graph=graph, retain_graph=True, allow_unused=True, materialize_grads=True
        )[0]
        for component in drift.unbind(-1)
    ]
    return torch.stack(rows, -2)[..., :-1, :, :].double()


def _matrix(kernels: EulerKernels, shape: torch.Size) -> Tensor:
    """Diffusion as matrices ``(*batch, K, D, M)``, float64."""
    diffusion = kernels.diffusion.double()
    matrix = diffusion if kernels.noise.matrix_dims else torch.diag_embed(diffusion)
    return matrix.expand(*shape[:-1], *matrix.shape[-2:]).movedim(0, -3)
