"""Which methods and steps of torchsde give the right answer for which noise."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from ._augmented import AugmentedSDE

__all__ = ["FORMS", "check_noise", "check_options"]

# Methods of torchsde by the form that they integrate. Its log_ode is left out: the Lévy areas that it draws have a
# wrong variance.
FORMS = {
    "euler": "ito",
    "euler_heun": "stratonovich",
    "heun": "stratonovich",
    "midpoint": "stratonovich",
    "milstein": "ito",
    "reversible_heun": "stratonovich",
    "srk": "ito",
}
_ADJOINT_ONLY = ("adjoint_reversible_heun",)
_COMMUTATIVE_ONLY = ("milstein", "srk")


def check_options(method: str | None, rtol: float, atol: float, adjoint_method: str | None = None) -> None:
    """Raise ValueError unless the methods are known and the tolerances are positive and finite."""
    known = (*FORMS, *_ADJOINT_ONLY)
    if adjoint_method is not None and adjoint_method not in known:
        msg = f"`adjoint_method` must be one of {sorted(known)}, received {adjoint_method!r}."
        raise ValueError(msg)
    if method is not None and method not in FORMS:
        msg = (
            f"`method` must be one of {sorted(FORMS)}, received {method!r}. (torchsde's log_ode draws Lévy areas of a "
            "wrong variance; SDEPath has a log-ODE solver.)"
        )
        raise ValueError(msg)
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not (isinstance(value, Real) and 0 < value < math.inf):
            msg = f"`{name}` must be a number > 0, received {value!r}."
            raise ValueError(msg)


def check_noise(system: AugmentedSDE, first: Tensor, method: str, *, adaptive: bool, advice: str) -> None:
    """Raise ValueError if the noise of a system forbids a method or adaptive steps; `advice` ends the message."""
    kind = system.noise_type
    if method in _COMMUTATIVE_ONLY and kind == "general":
        msg = (
            f'method="{method}" needs diagonal, additive or scalar noise, and the noise of all states together is '
            f'general. Use method="midpoint". {advice}'
        )
        raise ValueError(msg)
    if adaptive and kind == "general":
        msg = (
            "adaptive steps with non-commutative noise are refused: a rejected step has looked at the increment of the "
            f"noise but not at its Lévy area, and the answer would be another one. {advice or 'Use SDEPath on a grid.'}"
        )
        raise ValueError(msg)
    if adaptive and method == "euler" and kind != "additive":
        msg = (
            'adaptive steps of method="euler" need additive noise: with other noise they do not converge to the '
            f'solution. Use method="srk" or "midpoint". {advice}'
        )
        raise ValueError(msg)
    if adaptive or FORMS[method] == "ito":
        _check_own_noise(system, first, "adaptive steps" if adaptive else f'method="{method}"')


def _check_own_noise(sde: AugmentedSDE, y: Tensor, what: str) -> None:
    """Raise ValueError if an entry of a diagonal diffusion depends on another state than its own.

    Methods that take that for granted (as all of torchsde's do which use derivatives of a diagonal diffusion) would
    converge to something else.
    """
    if sde.noise_type != "diagonal":
        return
    with torch.enable_grad():
        leaf = y.detach().requires_grad_()
        diffusion = sde.compute(sde.times[0], leaf, *sde.first_rows())[1]
        for i in range(sde.dim if diffusion.requires_grad else 0):
            (gradient,) = torch.autograd.grad(diffusion[:, i].sum(), leaf, retain_graph=True, allow_unused=True)
            if gradient is None:
                return
            others = gradient.abs().amax(0)
            others[i] = 0.0
            if bool((others > 0).any()):
                j = int(others.argmax())
                msg = (
                    f"entry {i} of the diagonal diffusion depends on state {j}: the noise is not commutative, and "
                    f"{what} would give another answer. Use SDEPath on a grid with EulerMaruyama() or Heun()."
                )
                raise ValueError(msg)
