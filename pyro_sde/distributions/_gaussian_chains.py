"""Chains behind Gaussian path laws: initial moments, Euler steps, and posteriors on the range of their prior."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..ops._psd import psd_factor
from ..ops.discretise import Transition
from ..ops.gaussian_chain import GaussianChain
from ..sde.system import LinearSystem
from ._covariance_range import CovarianceRange
from .base import check_initial
from .gaussian_state import gaussian_moments

__all__ = [
    "Dynamics",
    "check_batches",
    "euler_transition",
    "given_moments",
    "in_double",
    "keep_range",
    "stationary_law",
]


def check_batches(**shapes: torch.Size) -> torch.Size:
    """Batch shape of all parts together.

    Raises:
        ValueError: if they do not broadcast; the message names them.
    """
    try:
        return torch.broadcast_shapes(*shapes.values())
    except RuntimeError as error:
        received = ", ".join(f"`{name}` {tuple(shape)}" for name, shape in shapes.items())
        msg = f"batch shapes must broadcast against each other, received {received}."
        raise ValueError(msg) from error


def in_double(chain: GaussianChain) -> GaussianChain:
    """The same chain with results in float64."""
    chain = copy.copy(chain)
    chain.dtype = torch.float64
    return chain


class Dynamics:
    """The system behind an exact chain; copies of a law keep it, pickles leave it behind (it holds closures)."""

    def __init__(self, system: LinearSystem | None) -> None:
        self.system = system

    def __deepcopy__(self, memo: dict[int, object]) -> Dynamics:
        return self

    def __reduce__(self) -> tuple[type[Dynamics], tuple[None]]:
        return Dynamics, (None,)


def stationary_law(system: LinearSystem) -> tuple[Tensor, Tensor]:
    """Stationary mean and covariance, float64.

    Raises:
        ValueError: if there are none; the message names `initial`.
    """
    try:
        return system.stationary(torch.float64)
    except ValueError as error:
        msg = f"`initial` is None, which stands for the stationary law: {error}"
        raise ValueError(msg) from error


def given_moments(initial: Distribution, state_dim: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a Gaussian law of the first state, float64.

    Raises:
        ValueError: if it is not Gaussian, or a law of something else than one state.
    """
    check_initial(initial)
    if tuple(initial.event_shape) != (state_dim,):
        msg = (
            f"`initial` must be a law of the {state_dim} states of the process, received event shape "
            f"{tuple(initial.event_shape)}."
        )
        raise ValueError(msg)
    return gaussian_moments(initial)


def euler_transition(system: LinearSystem, steps: Tensor) -> Transition:
    """I + A h, b h and L L^T h of steps ``(*batch, K)``."""
    h = steps[..., None, None]
    identity = torch.eye(system.state_dim, dtype=torch.float64, device=system.matrix.device)
    matrix = identity + system.matrix.unsqueeze(-3) * h
    noise = (system.diffusion @ system.diffusion.mT).unsqueeze(-3) * h
    offset = matrix.new_zeros(matrix.shape[:-1])
    if system.offset is not None:
        offset = system.offset.unsqueeze(-2) * steps.unsqueeze(-1)
    return Transition(matrix, offset, noise)


def keep_range(prior: GaussianChain, posterior: GaussianChain) -> GaussianChain:
    """The posterior with covariances that rounding has not led out of the range of those of the prior.

    A posterior has noise in the directions of its prior and in no others; divergences between the two depend on it.
    """
    parts = []
    for before, after in (
        (prior.initial_covariance, posterior.initial_covariance),
        (prior.noise, posterior.noise),
    ):
        geometry = CovarianceRange(before)
        if not geometry.full:
            factor = geometry.factor @ psd_factor(geometry.inward @ after.double() @ geometry.inward.mT)
            after = (factor @ factor.mT).expand_as(after)
        parts.append(after)
    return GaussianChain(
        posterior.initial_mean,
        parts[0],
        posterior.transition,
        parts[1],
        posterior.offset,
        dtype=posterior.dtype,
        validate=False,
    )
