"""Drift-implicit Euler methods for stiff drifts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..ops._arguments import check_numbers
from .base import Field, Solver, State, Step
from .derivatives import state_jacobian

__all__ = ["DriftImplicitEuler"]

_ITERATIONS = 50
_ROUNDING = 64  # residuals below this many units of rounding of their terms are zero


class DriftImplicitEuler(Solver):
    r"""Drift-implicit Euler method, the stochastic theta method, for stiff drifts.

    .. math::
        z_{t+h} = z_t + (1 - \theta) f(t, z_t) h + \theta f(t + h, z_{t+h}) h + \sigma(t, z_t) \Delta W

    Solved by Newton's method with D directional derivatives per iteration, to round-off. Use it where the drift pulls
    back faster than 1 / h, or grows faster than linearly. Its gradient is that of the implicit equation, first order
    only (no Hessians). With noise of full rank its paths have a density:
    :math:`z_{t+h} - \theta f(t + h, z_{t+h}) h` is Gaussian, with the determinant of its Jacobian.

    Note:
        Strong order 1 for additive noise, 0.5 otherwise; weak order 1. The step must be small enough for one solution:
        :math:`\theta h` times the largest growth rate of the drift below 1.

    Args:
        theta: weight of the right end in (0, 1]; 1 damps stiff parts most, 1/2 is the trapezoidal rule.

    Raises:
        ValueError: if `theta` is out of its range; while stepping, if Newton's method does not converge.

    References:
        Kloeden and Platen (1992), Numerical Solution of SDEs, eq. (12.2.2); Higham (2000), Mean-square and asymptotic
        stability of the stochastic theta method, SIAM J. Numer. Anal. 38(3), eq. (1.3).
    """

    has_density = True

    def __init__(self, theta: float = 1.0) -> None:
        check_numbers(theta=theta)
        if not 0 < theta <= 1:
            msg = f"`theta` must be in (0, 1], received {theta}. For 0 use EulerMaruyama()."
            raise ValueError(msg)
        self.theta = theta

    def strong_order(self, noise_type: str) -> float:
        """1 for additive noise, 1/2 otherwise."""
        return 1.0 if noise_type == "additive" else 0.5

    def weak_order(self, noise_type: str) -> float:
        """1; 2 for the trapezoidal rule with additive noise."""
        return 2.0 if self.theta == 0.5 and noise_type == "additive" else 1.0

    def step(self, field: Field, z: Tensor, step: Step, state: State) -> tuple[Tensor, State]:
        """Newton's method, then one differentiable iteration.

        Raises:
            ValueError: if it does not converge.
        """
        dt, w, _, _ = step.increments
        if self.theta == 1:
            known = z + field.apply(field.diffusion(step.t, z), w)
        else:
            drift, diffusion = field.both(step.t, z, step.rows)
            known = z + (1 - self.theta) * drift * dt + field.apply(diffusion, w)
        end, weight = step.t + dt, self.theta * dt

        def drift_at(state: Tensor) -> Tensor:
            return field.drift(end, state, step.rows)

        with torch.no_grad():
            solution, matrix = _solve(drift_at, known.detach(), weight.detach(), step.t)
        # the derivative of the solution is that of one Newton iteration with its matrix held fixed
        residual = solution - weight * drift_at(solution) - known
        return solution - torch.linalg.solve(matrix, residual.unsqueeze(-1)).squeeze(-1), state


def _solve(drift: Callable[[Tensor], Tensor], known: Tensor, weight: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    r"""Root of :math:`x - w f(x) - k` and the Jacobian there, by Newton's method with halved steps where it overshoots.

    A state that has converged is left alone, so that no series depends on the others.
    """
    epsilon = torch.finfo(known.dtype).eps
    identity = torch.eye(known.shape[-1], dtype=known.dtype, device=known.device)
    base = x = known
    change = torch.zeros_like(known)
    least = torch.full_like(known[..., :1], torch.inf)
    done = torch.zeros_like(least, dtype=torch.bool)
    matrix = identity.expand(*known.shape, known.shape[-1])
    for _ in range(_ITERATIONS):
        value, jacobian = state_jacobian(drift, x)
        residual = x - weight * value - known
        jacobian = identity - weight.unsqueeze(-1) * jacobian
        size = residual.abs()
        terms = x.abs() + known.abs() + weight * value.abs() + (jacobian.abs() @ x.abs().unsqueeze(-1)).squeeze(-1)
        matrix = torch.where(done.unsqueeze(-1), matrix, jacobian)
        done = done | (size <= _ROUNDING * epsilon * terms).all(-1, keepdim=True)
        if bool(done.all()):
            return x, matrix
        norm = size.amax(-1, keepdim=True)
        better = norm < least
        newton = torch.linalg.solve_ex(jacobian, -residual.unsqueeze(-1))[0].squeeze(-1)
        base, change = torch.where(better, x, base), torch.where(better, newton, 0.5 * change)
        least = torch.where(better, norm, least)
        x = torch.where(done, x, base + change)
    where = tuple((~done).nonzero()[0].tolist())[:-1]
    series = f", series {list(where)}" if where else ""
    start = time.expand_as(done)[(*where, 0)].item()
    msg = (
        f"DriftImplicitEuler: Newton's method did not converge in {_ITERATIONS} iterations in the step from time "
        f"{start:g}{series}: residual {least[(*where, 0)].item():.2g}. Take smaller steps; the equation may have no "
        "solution where the drift grows faster than 1 / step."
    )
    raise ValueError(msg)
