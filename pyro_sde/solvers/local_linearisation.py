"""Local linearisation: the exact Gaussian step of the linear SDE that touches at the left point."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops._psd import psd_factor
from ..ops.discretise import Transition, discretise
from ..sde.base import SDE
from ..sde.noise import Noise
from ._square_noise import normal_coordinates, squared
from .base import Field, Solver, State, Step
from .derivatives import state_jacobian

__all__ = ["LocalLinearisation", "linearised_transition"]


class LocalLinearisation(Solver):
    r"""Ozaki's local linearisation: the drift linearised in the state at the left point, the diffusion frozen there.

    .. math::
        z_{t+h} \mid z_t \sim N\Big(z_t + \int_0^h e^{J s} f\,ds,\;
        \int_0^h e^{J s} \sigma \sigma^\top e^{J^\top s} ds\Big), \qquad J = \partial_z f(t, z_t)

    Exact for linear SDEs with constant coefficients, stable at any step for stable linear parts, and Gaussian: paths
    have a density, also where noise reaches a state only through the drift (Langevin dynamics). Use it instead of
    Euler–Maruyama for stiff or oscillating drifts. Cost: D directional derivatives of the drift and about 30 products
    of D x D matrices per step; D standard normals, also if there are fewer Brownian motions.

    Note:
        Strong order 1 for additive noise of full rank (elsewhere 0.5 if the diffusion has full rank; without that its
        normals do not follow the Brownian path), weak order 1. The total drift, control included, is linearised.

    References:
        Ozaki (1992), A bridge between nonlinear time series models and nonlinear stochastic dynamical systems,
        Statistica Sinica 2, eqs. (3.5)-(3.7); Jimenez, Shoji and Ozaki (1999), J. Stat. Phys. 94, eq. (13).
    """

    has_density = True

    def strong_order(self, noise_type: str) -> float:
        """1 for additive noise, 1/2 otherwise."""
        return 1.0 if noise_type == "additive" else 0.5

    def weak_order(self, noise_type: str) -> float:
        """1."""
        del noise_type
        return 1.0

    def adapt(self, sde: SDE) -> SDE:
        """The Itô form, with columns of zeros added to a matrix diffusion of fewer than D."""
        return squared(super().adapt(sde))

    def step(self, field: Field, z: Tensor, step: Step, state: State) -> tuple[Tensor, State]:
        """A draw from the Gaussian transition."""
        dt, w, _, _ = step.increments
        drift, jacobian = state_jacobian(lambda s: field.drift(step.t, s, step.rows), z)
        diffusion = field.diffusion(step.t, z)
        transition = linearised_transition(field.noise, drift, jacobian, diffusion, dt)
        normal = normal_coordinates(field.noise, diffusion, w, dt).double().unsqueeze(-1)
        change = transition.offset + (psd_factor(transition.covariance) @ normal).squeeze(-1)
        return z + change.to(z.dtype), state


def linearised_transition(noise: Noise, drift: Tensor, jacobian: Tensor, diffusion: Tensor, dt: Tensor) -> Transition:
    r"""Transition of the increment :math:`dx = (f + J x)\,dt + \sigma\,dW` from 0 over steps, in float64.

    Shape:
        drift: ``(..., D)`` · jacobian: ``(..., D, D)`` · diffusion: ``(..., D)`` or ``(..., D, M)`` · dt:
        ``(..., 1)`` · offset: ``(..., D)`` · matrix, covariance: ``(..., D, D)``.
    """
    columns = noise.expand(diffusion, drift)
    if not noise.matrix_dims:
        columns = torch.diag_embed(columns)
    matrix, offset, covariance = discretise(jacobian, columns, dt.double(), drift)
    return Transition(matrix.squeeze(-3), offset.squeeze(-2), covariance.squeeze(-3))
