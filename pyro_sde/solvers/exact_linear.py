"""Exact steps of linear SDEs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..ops._psd import psd_factor
from ..ops.discretise import discretise
from ..sde.base import SDE
from ..sde.linear import LinearSDE
from ._square_noise import normal_coordinates, squared
from .base import Field, Rows, Solver, State, Step
from .derivatives import diffusion_columns, state_jacobian

__all__ = ["ExactLinear"]


class ExactLinear(Solver):
    r"""Exact transition :math:`z_{t+h} \mid z_t \sim N(\Phi z_t + c,\; Q)` of a `LinearSDE`, for any step.

    Paths have the law of the process at all grid points, however far they are apart, and a density. Use it to draw such
    paths where a path law with a solver is wanted; `GaussianPath` knows moments and posteriors as well, and is faster.
    Cost: about 30 products of D x D matrices per step; D standard normals, also if there are fewer Brownian motions.

    Note:
        Exact in law: orders are infinite. Driven by a given Brownian path it is of strong order 1 if the diffusion has
        full rank; otherwise its normals do not follow that path. It does not take controlled SDEs.

    Raises:
        ValueError: if the SDE is no `LinearSDE`.

    References:
        Särkkä and Solin (2019), Applied Stochastic Differential Equations, section 6.2.
    """

    has_density = True

    def strong_order(self, noise_type: str) -> float:
        """Infinity: exact in law."""
        del noise_type
        return math.inf

    def weak_order(self, noise_type: str) -> float:
        """Infinity: exact in law."""
        del noise_type
        return math.inf

    def adapt(self, sde: SDE) -> SDE:
        """The Itô form, with columns of zeros added to a matrix diffusion of fewer than D.

        Raises:
            ValueError: if it is no `LinearSDE`.
        """
        if not isinstance(sde, LinearSDE):
            msg = (
                f"ExactLinear takes a LinearSDE, whose transition is known; received {type(sde).__name__}. Use "
                "LocalLinearisation(), exact where the drift is linear, for any other SDE."
            )
            raise ValueError(msg)
        return squared(super().adapt(sde))

    def start(self, field: Field, t: Tensor, z: Tensor, rows: Rows) -> State:
        """A ``(..., D, D)``, b ``(..., D)`` and L ``(..., D, M)`` of all series in float64, read once for all steps."""
        state = z.double()
        _, matrix = state_jacobian(lambda s: field.drift(t, s, rows), state)
        offset = field.drift(t, torch.zeros_like(state), rows)
        return matrix, offset.expand(matrix.shape[:-1]), diffusion_columns(field, t)(state)

    def step(self, field: Field, z: Tensor, step: Step, state: State) -> tuple[Tensor, State]:
        """A draw from the exact transition."""
        dt, w, _, _ = step.increments
        matrix, offset, columns = state
        transition = discretise(matrix, columns, dt.double(), offset)
        normal = normal_coordinates(field.noise, field.diffusion(step.t, z), w, dt).double()
        spread = psd_factor(transition.covariance.squeeze(-3))
        moved = transition.matrix.squeeze(-3) @ z.double().unsqueeze(-1) + spread @ normal.unsqueeze(-1)
        following = (moved.squeeze(-1) + transition.offset.squeeze(-2)).to(z.dtype)
        batch = following.shape[:-1]
        matrix, columns = (part.expand(*batch, *part.shape[-2:]) for part in (matrix, columns))
        return following, (matrix, offset.expand(following.shape), columns)
