r"""Transition kernels of the solvers other than Euler–Maruyama.

Three of them have steps with a density: `LocalLinearisation` and `ExactLinear` Gaussian ones, `DriftImplicitEuler` a
Gaussian one seen through the implicit equation. The others can sample, and give the divergence of two drifts along a
path.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ..sde.base import SDE, Coefficients
from ..sde.noise import Noise
from ..solvers.base import Solver
from ..solvers.drift_implicit import DriftImplicitEuler
from ..solvers.exact_linear import ExactLinear
from ..solvers.local_linearisation import LocalLinearisation, linearised_transition
from ..solvers.reflected import ReflectedEuler
from .gaussian_kernels import GaussianKernels
from .kernels import EulerKernels, TransitionKernels
from .reflected_kernels import ReflectedKernels

__all__ = ["ImplicitKernels", "SamplingKernels", "SteppedLaw", "kernels_for"]


class SteppedLaw(Protocol):
    """What kernels need of a path law: its SDE in Itô form, and its coefficients along a path."""

    sde: SDE

    def coefficients_along(self, sde: SDE, times: Tensor, states: Tensor) -> Coefficients:
        """Coefficients at times ``(K, ..., 1)`` and states ``(K, ..., D)``, with the inputs of the K steps."""
        ...

    def drift_jacobian_along(self, times: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Drift ``(K, ..., D)`` and its Jacobian ``(K, ..., D, D)`` there."""
        ...


class SamplingKernels(EulerKernels):
    r"""Kernels of a solver whose steps have no density that is known.

    Their divergence is that of the drifts, :math:`\tfrac12 |u_k|^2 h_k` at the left points, as for `EulerKernels`: the
    divergence of the two SDEs by the left-point rule.

    Args:
        solver: for the message of `log_prob`.
        noise: structure of the diffusion; it and the others as for `EulerKernels`.
        coefficients: in Itô form.
        path: states, time leftmost, ``(K + 1, ..., D)``.
        times: ``(K + 1, ..., 1)``.
        steps: ``(K, ..., 1)``.
    """

    def __init__(
        self,
        solver: Solver,
        noise: Noise,
        coefficients: Coefficients,
        path: Tensor,
        times: Tensor,
        steps: Tensor,
    ) -> None:
        super().__init__(noise, coefficients, path, times, steps)
        self.solver = solver

    def log_prob(self) -> Tensor:
        """Raise ValueError: there is no density.

        Raises:
            ValueError: always; the message names what has one.
        """
        msg = (
            f"a step of {self.solver!r} has no density that is known, so its paths have no log-density. Take the "
            'divergence in closed form, PathELBO(kl="closed"), or a solver whose steps have a density: '
            "EulerMaruyama(), LocalLinearisation() or DriftImplicitEuler()."
        )
        raise ValueError(msg)


class ImplicitKernels(TransitionKernels):
    r"""Kernels of the drift-implicit Euler method along a path.

    .. math::
        \log p(z_{k+1} \mid z_k) = \log N\big(z_{k+1} - \theta f_{k+1} h_k;\; z_k + (1 - \theta) f_k h_k,\;
        \sigma_k \sigma_k^\top h_k\big) + \log \det\big(I - \theta h_k\, \partial_z f(t_{k+1}, z_{k+1})\big)

    The divergence of two of them has no closed form.

    Derivation:
        The step makes :math:`z_{k+1} - \theta f_{k+1} h_k` of its Gaussian right-hand side: eq. (12.2.2) of Kloeden and
        Platen (1992), Numerical Solution of SDEs; the determinant is that of the change of variables.

    Args:
        euler: Euler–Maruyama kernels along the same path.
        end_drift: total drift at the right ends, ``(K, ..., D)``.
        jacobian: its derivative there, ``(K, ..., D, D)``.
        theta: weight of the right end.

    Raises:
        ValueError: if some noise has not full rank, or the step is so long that the determinant is not positive.
    """

    def __init__(self, euler: EulerKernels, end_drift: Tensor, jacobian: Tensor, theta: float) -> None:
        self.euler = euler
        steps = euler.safe_steps
        if not euler.range.full:
            msg = (
                "DriftImplicitEuler has a density only if the diffusion has full rank: every direction must carry "
                "noise. Use LocalLinearisation() or EulerMaruyama(), whose paths have one."
            )
            raise ValueError(msg)
        identity = torch.eye(jacobian.shape[-1], dtype=jacobian.dtype, device=jacobian.device)
        sign, self._log_volume = torch.linalg.slogdet(identity - theta * steps.unsqueeze(-1) * jacobian)
        bad = euler.moving.squeeze(-1) & (sign <= 0)
        if bool(bad.any()):
            _, place = euler._locate(bad.unsqueeze(-1))
            msg = (
                "the step of DriftImplicitEuler is too long for the drift: the implicit equation has more than one "
                f"solution, and the path no density, {place.split(', ', 1)[1]}. Take steps below 1 / (theta times the "
                "largest growth rate of the drift)."
            )
            raise ValueError(msg)
        start = (1 - theta) * euler.total_drift * steps
        self._residual = euler.next_state - theta * end_drift * steps - euler.state - start

    def log_prob(self) -> Tensor:
        """Log-density of the next states, ``(K, ...)``."""
        euler = copy.copy(self.euler)
        # the Euler density of a path with these increments
        euler.next_state = euler.state + euler.total_drift * euler.safe_steps + self._residual
        return euler.log_prob() + euler._where_moving(self._log_volume)

    def kl(self, other: TransitionKernels) -> Tensor:
        """Raise NotImplementedError: there is no closed form.

        Raises:
            NotImplementedError: always; the message names the remedy.
        """
        del other
        raise NotImplementedError(_NO_CLOSED_FORM)

    def kl_from(self, other: TransitionKernels) -> Tensor:
        """As `kl`.

        Raises:
            NotImplementedError: always.
        """
        return self.kl(other)

    def check_absolutely_continuous(self, other: TransitionKernels) -> None:
        """Same diffusion wherever time moves; all of it carries noise.

        Raises:
            ValueError: if the diffusions differ.
            NotImplementedError: if `other` has no diffusion to compare with.
        """
        self.euler._check_same_diffusion(_euler_of(other))

    def check_absolutely_continuous_from(self, other: TransitionKernels) -> None:
        """``other.check_absolutely_continuous(self)``."""
        _euler_of(other)._check_same_diffusion(self.euler)


_NO_CLOSED_FORM = (
    "the divergence of steps of DriftImplicitEuler has no closed form. Use the log-ratio of the paths, "
    'PathELBO(kl="stl") or PathELBO(kl="full").'
)


def kernels_for(solver: Solver, law: SteppedLaw, states: Tensor, times: Tensor, steps: Tensor) -> TransitionKernels:
    """Kernels of a law's steps along a path, all steps at once.

    Shape:
        states: ``(K + 1, ..., D)`` · times: ``(K + 1, ..., 1)`` · steps: ``(K, ..., 1)``, 0 where padded.
    """
    for kind, build in _BUILDERS.items():
        if isinstance(solver, kind):
            return build(solver, law, states, times, steps)
    coefficients = law.coefficients_along(law.sde, times[:-1], states[:-1])
    return SamplingKernels(solver, law.sde.noise, coefficients, states, times, steps)


def _linearised(solver: Solver, law: SteppedLaw, states: Tensor, times: Tensor, steps: Tensor) -> TransitionKernels:
    # the linearisation of a linear SDE is exact, and in float64 nothing else limits its accuracy
    dtype = torch.float64 if isinstance(solver, ExactLinear) else states.dtype
    noise, left, at = law.sde.noise, states[:-1].to(dtype), times[:-1].to(dtype)
    drift, jacobian = law.drift_jacobian_along(at, left)
    diffusion = law.coefficients_along(law.sde, at, left).diffusion
    transition = linearised_transition(noise, drift, jacobian, diffusion, steps)
    return GaussianKernels(left.double() + transition.offset, transition.covariance, states, times, steps > 0)


def _implicit(solver: Solver, law: SteppedLaw, states: Tensor, times: Tensor, steps: Tensor) -> TransitionKernels:
    sde = law.sde
    drift, jacobian = law.drift_jacobian_along(times[1:], states[1:])
    coefficients = law.coefficients_along(sde, times[:-1], states[:-1])
    euler = EulerKernels(sde.noise, coefficients, states, times, steps)
    return ImplicitKernels(euler, drift, jacobian, solver.theta)  # type: ignore[attr-defined]


def _reflected(solver: Solver, law: SteppedLaw, states: Tensor, times: Tensor, steps: Tensor) -> TransitionKernels:
    coefficients = law.coefficients_along(law.sde, times[:-1], states[:-1])
    return ReflectedKernels(solver, EulerKernels(law.sde.noise, coefficients, states, times, steps))  # type: ignore[arg-type]


def _euler_of(kernels: TransitionKernels) -> EulerKernels:
    if isinstance(kernels, ImplicitKernels):
        return kernels.euler
    if isinstance(kernels, EulerKernels):
        return kernels
    msg = (
        f"paths of DriftImplicitEuler cannot be compared with {type(kernels).__name__}. Give guide and model the same "
        "solver."
    )
    raise NotImplementedError(msg)


_Builder = Callable[[Solver, SteppedLaw, Tensor, Tensor, Tensor], TransitionKernels]
_BUILDERS: dict[type[Solver], _Builder] = {
    DriftImplicitEuler: _implicit,
    ExactLinear: _linearised,
    LocalLinearisation: _linearised,
    ReflectedEuler: _reflected,
}
