"""Stratonovich methods of two stages: Heun, midpoint and Euler–Heun."""

from __future__ import annotations

from torch import Tensor

from .base import Field, Solver, State, Step

__all__ = ["EulerHeun", "Heun", "Midpoint"]


class _TwoStages(Solver):
    interpretation = "stratonovich"

    def strong_order(self, noise_type: str) -> float:
        """1 for commutative noise (additive, scalar, diagonal with entries of their own states), else 1/2."""
        return 0.5 if noise_type == "general" else 1.0

    def weak_order(self, noise_type: str) -> float:
        """1."""
        del noise_type
        return 1.0


class Heun(_TwoStages):
    r"""Heun's method for Stratonovich SDEs.

    .. math::
        \tilde z = z + f(t, z) h + \sigma(t, z) \Delta W, \qquad
        z_{t+h} = z + \tfrac12 \big(f(t, z) + f(t + h, \tilde z)\big) h
        + \tfrac12 \big(\sigma(t, z) + \sigma(t + h, \tilde z)\big) \Delta W

    Two drifts and two diffusions per step, no derivative. The first choice for forecasts with multiplicative noise, and
    for weak accuracy with additive noise.

    Note:
        Strong order 1 for commutative noise, 0.5 for general noise; weak order 1, and 2 for additive noise. Its
        transition has no density that is known.

    References:
        Rümelin (1982), Numerical treatment of stochastic differential equations, SIAM J. Numer. Anal. 19, eq. (10);
        Greenside and Helfand (1981), Bell System Technical Journal 60 (order 2 for additive noise).
    """

    def weak_order(self, noise_type: str) -> float:
        """2 for additive noise, 1 otherwise."""
        return 2.0 if noise_type == "additive" else 1.0

    def step(self, field: Field, z: Tensor, step: Step, state: State) -> tuple[Tensor, State]:
        """Euler's step as a prediction, then the mean of both ends."""
        dt, w, _, _ = step.increments
        drift, diffusion = field.both(step.t, z, step.rows)
        first = drift * dt + field.apply(diffusion, w)
        drift, diffusion = field.both(step.t + dt, z + first, step.rows)
        return z + 0.5 * (first + drift * dt + field.apply(diffusion, w)), state


class Midpoint(_TwoStages):
    r"""Explicit midpoint method for Stratonovich SDEs.

    .. math::
        \tilde z = z + \tfrac12 \big(f(t, z) h + \sigma(t, z) \Delta W\big), \qquad
        z_{t+h} = z + f(t + \tfrac{h}2, \tilde z) h + \sigma(t + \tfrac{h}2, \tilde z) \Delta W

    Two drifts and two diffusions per step. As `Heun`; the one that `LogODE` improves for general noise.

    Note:
        Strong order 1 for commutative noise, 0.5 for general noise; weak order 1. Its transition has no density that is
        known.

    References:
        Kloeden and Platen (1992), Numerical Solution of SDEs, section 11.1 (explicit schemes of order 1).
    """

    def step(self, field: Field, z: Tensor, step: Step, state: State) -> tuple[Tensor, State]:
        """Half of Euler's step, then a whole one with the coefficients there."""
        dt, w, _, _ = step.increments
        drift, diffusion = field.both(step.t, z, step.rows)
        middle = z + 0.5 * (drift * dt + field.apply(diffusion, w))
        drift, diffusion = field.both(step.t + 0.5 * dt, middle, step.rows)
        return z + drift * dt + field.apply(diffusion, w), state


class EulerHeun(_TwoStages):
    r"""Heun's method in the diffusion, Euler's in the drift, for Stratonovich SDEs.

    .. math::
        z_{t+h} = z + f(t, z) h + \tfrac12 \big(\sigma(t, z) + \sigma(t + h, z + \sigma(t, z) \Delta W)\big) \Delta W

    One drift and two diffusions per step: the cheapest method that integrates Stratonovich SDEs without a derivative.

    Note:
        Strong order 1 for commutative noise, 0.5 for general noise; weak order 1. Its transition has no density that is
        known.

    References:
        Kloeden and Platen (1992), Numerical Solution of SDEs, section 4.9 and eq. (11.1.12).
    """

    def step(self, field: Field, z: Tensor, step: Step, state: State) -> tuple[Tensor, State]:
        """The noise at both ends of its own prediction."""
        dt, w, _, _ = step.increments
        drift, diffusion = field.both(step.t, z, step.rows)
        first = field.apply(diffusion, w)
        second = field.apply(field.diffusion(step.t + dt, z + first), w)
        return z + drift * dt + 0.5 * (first + second), state
