"""The log-ODE method."""

from __future__ import annotations

from torch import Tensor

from .base import Field, Solver, State, Step
from .derivatives import diffusion_columns, directional

__all__ = ["LogODE"]


class LogODE(Solver):
    r"""Log-ODE method with Lévy area, solved by the midpoint rule, for Stratonovich SDEs with any noise.

    .. math::
        \tilde z = z + \tfrac12 (f h + \sigma \Delta W), \qquad
        z_{t+h} = z + \tilde f h + \tilde\sigma \Delta W
        + \sum_{j<k} A_{jk} \big((\partial\tilde\sigma_k)\, \tilde\sigma_j
        - (\partial\tilde\sigma_j)\, \tilde\sigma_k\big)

    with :math:`\tilde f, \tilde\sigma` at :math:`(t + h/2, \tilde z)` and
    :math:`A_{jk} = \tfrac12 \int (W_j\,dW_k - W_k\,dW_j)` of the step. The method for general noise that does not
    commute. Two drifts, two diffusions and M derivatives along a direction per step; M (M - 1) / 2 + M more normals.

    Note:
        Strong order 1 for any noise if A is the area of the path; areas drawn given the increments have the law of that
        only up to third moments, which leaves the weak order: 1. Its transition has no density that is known.

    Raises:
        ValueError: while stepping, if the increments have no A and the noise is general or diagonal.

    References:
        Foster, Oberhauser and Lyons (2020), An optimal polynomial approximation of Brownian motion, SIAM J. Numer.
        Anal. 58(3), definition 4.2 (the log-ODE with Lévy area); Kloeden and Platen (1992), eq. (10.3.5).
    """

    interpretation = "stratonovich"
    levy = "area"

    def strong_order(self, noise_type: str) -> float:
        """1."""
        del noise_type
        return 1.0

    def weak_order(self, noise_type: str) -> float:
        """1."""
        del noise_type
        return 1.0

    def step(self, field: Field, z: Tensor, step: Step, state: State) -> tuple[Tensor, State]:
        """Midpoint step plus the brackets of the columns times the area."""
        dt, w, _, area = step.increments
        drift, diffusion = field.both(step.t, z, step.rows)
        middle = z + 0.5 * (drift * dt + field.apply(diffusion, w))
        t = step.t + 0.5 * dt
        drift, diffusion = field.both(t, middle, step.rows)
        following = z + drift * dt + field.apply(diffusion, w)
        if field.noise_type in ("additive", "scalar"):
            return following, state
        if area is None:
            msg = 'LogODE needs the Lévy areas A: pass increments with levy="area".'
            raise ValueError(msg)
        columns = diffusion_columns(field, t)
        directions = columns(middle) @ area  # column k: sum_j A_jk sigma_j
        for k in range(directions.shape[-1]):
            following = following + directional(lambda s, k=k: columns(s)[..., k], middle, directions[..., k])
        return following, state
