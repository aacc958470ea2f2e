"""The reversible Heun method."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Field, Rows, Solver, State, Step

__all__ = ["ReversibleHeun"]


class ReversibleHeun(Solver):
    r"""Reversible Heun method for Stratonovich SDEs: a step can be undone to round-off.

    .. math::
        \hat z' = 2 z - \hat z + \hat f h + \hat\sigma \Delta W, \qquad
        z' = z + \tfrac12 (\hat f + \hat f') h + \tfrac12 (\hat\sigma + \hat\sigma') \Delta W

    with :math:`\hat f', \hat\sigma'` at :math:`(t + h, \hat z')`; :math:`\hat z = z` at the start. Carries
    :math:`(\hat f, \hat\sigma, \hat z)` from step to step. One drift and one diffusion per step, as Euler–Maruyama. Use
    it where a path is to be recomputed backwards with O(1) memory.

    Note:
        Strong order 0.5, and 1 for additive noise (theorem 3.2); 1 is also what is measured for diagonal and scalar
        noise that commutes. Weak order 1, and 2 for additive noise. Its step depends on :math:`\hat z`, so that the
        path alone is no Markov chain and has no density that is known. It is not stable for stiff drifts: the
        difference :math:`\hat z - z` does not decay. Where inputs change, the first half of a step has those of the
        step before.

    References:
        Kidger, Foster, Li and Lyons (2021), Efficient and accurate gradients for neural SDEs, arXiv 2105.13493,
        algorithm 1 and theorem 3.2.
    """

    interpretation = "stratonovich"

    def strong_order(self, noise_type: str) -> float:
        """1 for additive, diagonal and scalar noise, 1/2 otherwise."""
        return 0.5 if noise_type == "general" else 1.0

    def weak_order(self, noise_type: str) -> float:
        """2 for additive noise, 1 otherwise."""
        return 2.0 if noise_type == "additive" else 1.0

    def start(self, field: Field, t: Tensor, z: Tensor, rows: Rows) -> State:
        """Drift, diffusion and state at the first point."""
        return _carried(field, t, z, rows)

    def step(self, field: Field, z: Tensor, step: Step, state: State) -> tuple[Tensor, State]:
        """Leapfrog step of the carried state, trapezoidal step of the path."""
        dt, w, _, _ = step.increments
        drift, diffusion, other = state
        leap = 2 * z - other + drift * dt + field.apply(diffusion, w)
        carried = _carried(field, step.t + dt, leap, step.rows)
        change = (drift + carried[0]) * dt + field.apply(diffusion + carried[1], w)
        return z + 0.5 * change, carried


def _carried(field: Field, t: Tensor, z: Tensor, rows: Rows) -> State:
    """Coefficients with all batch dimensions of the state, and the state."""
    drift, diffusion = field.both(t, z, rows)
    shape = torch.broadcast_shapes(drift.shape, z.shape)
    return drift.expand(shape), field.noise.expand(diffusion, z), z
