"""Milstein's method."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Field, Solver, State, Step
from .derivatives import check_commutative, column_derivatives, diffusion_columns, directional

__all__ = ["Milstein"]


class Milstein(Solver):
    r"""Milstein's method for commutative noise, in Itô or Stratonovich form.

    .. math::
        z_{t+h} = z_t + f h + \sigma \Delta W + \tfrac12 \sum_{j,k} (\partial_z \sigma_k)\, \sigma_j
        \big(\Delta W_j \Delta W_k - \delta_{jk} h\big)

    without the :math:`-\delta_{jk} h` in Stratonovich form. Derivatives by forward mode: one along a direction for
    diagonal, scalar and all Stratonovich noise, M for general Itô noise. Use it for pathwise accuracy at the price of
    about two steps of Euler–Maruyama; for additive noise it is Euler–Maruyama.

    General noise must be commutative, and each entry of a diagonal diffusion a function of its own state (or of states
    without noise): checked at the first state.

    Note:
        Strong order 1, weak order 1. Its transition has no density that is known.

    Args:
        interpretation: "ito" or "stratonovich", the form in which it steps; an SDE of the other form is converted.

    Raises:
        ValueError: if `interpretation` is neither; while stepping, if the noise is not commutative.

    References:
        Kloeden and Platen (1992), Numerical Solution of SDEs, eqs. (10.3.3) and (10.3.16).
    """

    def __init__(self, interpretation: str = "ito") -> None:
        if interpretation not in ("ito", "stratonovich"):
            msg = f'`interpretation` must be "ito" or "stratonovich", received {interpretation!r}.'
            raise ValueError(msg)
        self.interpretation = interpretation

    def strong_order(self, noise_type: str) -> float:
        """1."""
        del noise_type
        return 1.0

    def weak_order(self, noise_type: str) -> float:
        """1."""
        del noise_type
        return 1.0

    def start(self, field: Field, t: Tensor, z: Tensor, rows: tuple[Tensor | None, ...]) -> State:
        """Nothing is carried; checks that the noise commutes.

        Raises:
            ValueError: if it does not.
        """
        del rows
        check_commutative("Milstein", field, t, z)
        return ()

    def step(self, field: Field, z: Tensor, step: Step, state: State) -> tuple[Tensor, State]:
        """Euler's step and the correction of second order in the increment."""
        dt, w, _, _ = step.increments
        drift, diffusion = field.both(step.t, z, step.rows)
        noise = field.apply(diffusion, w)
        following = z + drift * dt + noise
        if field.noise_type == "additive":
            return following, state
        if self.interpretation == "stratonovich":
            correction = directional(lambda s: field.apply(field.diffusion(step.t, s), w), z, noise)
        elif field.noise_type == "general":
            columns = diffusion_columns(field, step.t)
            derivatives = column_derivatives(columns, z.expand(following.shape), columns(z))  # (..., D, M, M)
            weights = w.unsqueeze(-1) * w.unsqueeze(-2) - torch.diag_embed(dt.expand(w.shape))
            correction = (derivatives * weights.unsqueeze(-3)).sum((-2, -1))
        else:
            along = field.apply(diffusion, torch.ones_like(w))
            derivative = directional(lambda s: field.diffusion(step.t, s), z, along)
            correction = field.apply(derivative, w.square() - dt)
        return following + 0.5 * correction, state
