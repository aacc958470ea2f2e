"""Stochastic Runge–Kutta methods of strong order 1.5."""

from __future__ import annotations

from torch import Tensor

from .base import Field, Rows, Solver, State, Step
from .derivatives import check_commutative

__all__ = ["SRK"]


class SRK(Solver):
    r"""Rößler's stochastic Runge–Kutta methods of strong order 1.5: SRA1 for additive noise, SRID2 otherwise.

    For additive noise, with :math:`U = \int_t^{t+h} (W_s - W_t)\,ds`:

    .. math::
        \tilde z = z + \tfrac34 f(t, z) h + \tfrac32 \sigma(t + h) \tfrac{U}{h}, \qquad
        z_{t+h} = z + \tfrac13 \big(f(t, z) + 2 f(t + \tfrac34 h, \tilde z)\big) h
        + \sigma(t + h) \big(\Delta W - \tfrac{U}{h}\big) + \sigma(t) \tfrac{U}{h}

    Two drifts and two diffusions per step; for diagonal and scalar noise three drifts and four diffusions, at states
    about :math:`\sigma \sqrt h` away. It needs the space-time Lévy area, so twice the normals. The most accurate method
    of the room for forecasts and reference solutions.

    Each entry of a diagonal diffusion must be a function of its own state (or of states without noise): checked at
    the first state.

    Note:
        Strong order 1.5, for Itô SDEs with additive, diagonal or scalar noise; weak order 2 for additive noise, 1.5
        otherwise. Its transition has no density that is known.

    Raises:
        ValueError: if the noise is general; while stepping, if a diagonal diffusion is not commutative.

    References:
        Rößler (2010), Runge–Kutta methods for the strong approximation of solutions of SDEs, SIAM J. Numer. Anal.
        48(3), eqs. (6.10) and (6.3), tables 6.3 (SRA1) and 6.1 (SRI2, for diagonal noise).
    """

    noise_types = frozenset({"additive", "diagonal", "scalar"})
    levy = "space-time"

    def strong_order(self, noise_type: str) -> float:
        """1.5."""
        del noise_type
        return 1.5

    def weak_order(self, noise_type: str) -> float:
        """2 for additive noise, 1.5 otherwise."""
        return 2.0 if noise_type == "additive" else 1.5

    def start(self, field: Field, t: Tensor, z: Tensor, rows: Rows) -> State:
        """Nothing is carried; checks that the noise commutes.

        Raises:
            ValueError: if it does not.
        """
        del rows
        check_commutative("SRK", field, t, z)
        return ()

    def step(self, field: Field, z: Tensor, step: Step, state: State) -> tuple[Tensor, State]:
        """SRA1 for additive noise, SRID2 otherwise."""
        following = _sra1(field, z, step) if field.noise_type == "additive" else _srid2(field, z, step)
        return following, state


def _mean_of_path(step: Step) -> Tensor:
    """Mean of the Brownian path over the step, U / h."""
    _, w, area, _ = step.increments
    if area is None:
        msg = 'SRK needs the space-time Lévy areas H: pass increments with levy="space-time".'
        raise ValueError(msg)
    return 0.5 * w + area


def _sra1(field: Field, z: Tensor, step: Step) -> Tensor:
    dt, w, _, _ = step.increments
    t, rows = step.t, step.rows
    mean = _mean_of_path(step)
    drift, diffusion = field.both(t, z, rows)
    end = field.diffusion(t + dt, z)
    inner = z + 0.75 * drift * dt + 1.5 * field.apply(end, mean)
    drift = (drift + 2 * field.drift(t + 0.75 * dt, inner, rows)) / 3
    return z + drift * dt + field.apply(end, w - mean) + field.apply(diffusion, mean)


def _srid2(field: Field, z: Tensor, step: Step) -> Tensor:
    dt, w, _, _ = step.increments
    t, rows = step.t, step.rows
    mean, root = _mean_of_path(step), dt.sqrt()
    double = 0.5 * (w.square() - dt) / root  # I_(1,1) / sqrt(h)
    triple = w * (w.square() - 3 * dt) / (6 * dt)  # I_(1,1,1) / h

    def diffusion_at(place: float, offset: Tensor) -> Tensor:
        return field.diffusion(t + place * dt, z + offset)

    drift0, sigma0 = field.both(t, z, rows)
    push0 = field.apply(sigma0, root)
    drift1 = field.drift(t + dt, z + drift0 * dt, rows)
    sigma1 = diffusion_at(0.25, 0.25 * drift0 * dt - 0.5 * push0)
    noise = field.apply(sigma0, mean) + 0.5 * field.apply(sigma1, mean)
    drift2 = field.drift(t + 0.5 * dt, z + 0.25 * (drift0 + drift1) * dt + noise, rows)
    sigma2 = diffusion_at(1.0, drift0 * dt + push0)
    push = 2 * push0 - field.apply(sigma1, root) + 0.5 * field.apply(sigma2, root)
    sigma3 = diffusion_at(0.25, 0.25 * drift2 * dt + push)
    return (
        z
        + (drift0 + drift1 + 4 * drift2) * (dt / 6)
        + field.apply(sigma0, -w + double + 2 * mean - 2 * triple)
        + field.apply(sigma1, (4 * (w - double - mean) + 5 * triple) / 3)
        + field.apply(sigma2, (2 * (w - mean - triple) + double) / 3)
        + field.apply(sigma3, triple)
    )
