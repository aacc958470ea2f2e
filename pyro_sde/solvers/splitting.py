"""Splitting steps for processes whose drift and noise can each be solved exactly."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from ..sde.base import SDE, ControlledSDE
from .base import Field, Solver, State, Step

__all__ = ["SplitStep", "Splittable"]


@runtime_checkable
class Splittable(Protocol):
    r"""An SDE that knows the exact solutions of its two halves in Stratonovich form, entry by entry.

    With :math:`\tilde f = f - \tfrac12 \sigma \sigma'`, the drift alone is :math:`\dot x = \tilde f(x)` and the noise
    alone :math:`dx = \sigma(x) \circ dW`.

    References:
        Kloeden and Platen (1992), Numerical Solution of SDEs, eq. (4.9.11) (the Stratonovich drift).
    """

    def drift_flow(self, x: Tensor, dt: Tensor) -> Tensor:
        """State after the time `dt` ``(..., 1)`` without noise."""
        ...

    def noise_flow(self, x: Tensor, w: Tensor) -> Tensor:
        """State after the Brownian increment `w` without drift; both are ``(..., D)``."""
        ...

    def check_split(self) -> None:
        """Raise ValueError if the first half would leave the set of the states."""
        ...


class SplitStep(Solver):
    r"""Half a step of the drift, the noise, and half a step of the drift, each solved exactly.

    .. math:: x_{t+h} = \Phi^{\tilde f}_{h/2} \circ \Phi^{\sigma}_{u h + \Delta W} \circ \Phi^{\tilde f}_{h/2}(x_t)

    Each part keeps a constrained state in its set, so the step does, whatever its size; no coordinate is needed, and
    none that is singular at the boundary is used. For `CoxIngersollRoss`, `LogisticGrowth` and `WrightFisher`, without
    and with a control u (taken after the first half).

    Note:
        Strong order 1; weak order 2, or 1 with a control. Steps have no density: use it for forecasts.

    References:
        Ninomiya, Victoir (2008), Weak approximation of stochastic differential equations and application to derivative
        pricing, eq. (1.5); Alfonsi (2010), High order discretization schemes for the CIR process, section 3.
    """

    noise_types = frozenset({"diagonal"})

    def strong_order(self, noise_type: str) -> float:
        """1, since the noise of one entry depends on no other."""
        del noise_type
        return 1.0

    def weak_order(self, noise_type: str) -> float:
        """2 without a control."""
        del noise_type
        return 2.0

    def adapt(self, sde: SDE) -> SDE:
        """The SDE itself.

        Raises:
            ValueError: if the two parts of the SDE cannot be solved, or one of them leaves the set of the states.
        """
        inner = _innermost(sde)
        if not isinstance(inner, Splittable):
            msg = (
                f"SplitStep needs an SDE with exact flows of drift and noise, such as CoxIngersollRoss; received "
                f"{type(inner).__name__}. Use ReflectedEuler for other processes with a boundary."
            )
            raise ValueError(msg)
        inner.check_split()
        return sde

    def step(self, field: Field, z: Tensor, step: Step, state: State) -> tuple[Tensor, State]:
        """Three exact parts."""
        sde = _innermost(field.sde)
        dt, driver = step.increments.dt, step.increments.W
        z = sde.drift_flow(z, 0.5 * dt)  # type: ignore[operator]
        if isinstance(field.sde, ControlledSDE):
            control = field.coefficients(step.t, z, step.rows).control
            driver = driver if control is None else driver + control * dt
        z = sde.noise_flow(z, driver)  # type: ignore[operator]
        return sde.drift_flow(z, 0.5 * dt), state  # type: ignore[operator]


def _innermost(sde: SDE) -> SDE:
    while isinstance(sde, ControlledSDE):
        sde = sde.base
    return sde
