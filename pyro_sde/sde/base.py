r"""What an SDE is: drift, diffusion and noise structure. No integration, no sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..nn.mlp import SplitNet
from ..nn.state_network import StateNetwork
from ._conversion import ConvertedDrift
from ._scalar_time import ScalarTime
from .noise import Noise, noise_structure

__all__ = ["Coefficients", "ControlledSDE", "Networks", "SDE"]

Rows = tuple[Tensor | None, ...]


class Coefficients(NamedTuple):
    """Drift, diffusion and control at some states; the total drift is ``drift + diffusion @ control``.

    Attributes:
        drift: broadcastable to ``(..., D)``.
        diffusion: broadcastable to ``(..., D)``, or ``(..., D, M)``.
        control: broadcastable to ``(..., D)`` for diagonal noise, ``(..., M)`` otherwise; None for an uncontrolled SDE.
    """

    drift: Tensor  # broadcastable to (..., D)
    diffusion: Tensor  # broadcastable to (..., D), or (..., D, M)
    control: Tensor | None  # broadcastable to (..., M), None for an uncontrolled SDE

    def total_drift(self, noise: Noise) -> Tensor:
        """Drift including the control."""
        if self.control is None:
            return self.drift
        return self.drift + noise.apply(self.diffusion, self.control)


class Networks(NamedTuple):
    """Coefficients as functions of the state alone, as far as a solver may evaluate them without calling modules."""

    drift: StateNetwork
    diffusion: StateNetwork
    control: StateNetwork | None


Evaluator = Callable[[Tensor, Tensor, Rows], Coefficients]


class SDE(nn.Module):
    r"""Stochastic differential equation :math:`dz = f(t, z)\,dt + \sigma(t, z)\,dW`.

    `drift` and `diffusion` are plain functions or ``nn.Module`` s (registered as children, so that
    ``pyro.module("prior", sde)`` trains them). They are called with any number of leading dimensions, one solver step
    at a time while sampling and for all times at once (time leftmost) otherwise, so they must act on the last axis.

    Args:
        drift: ``drift(t, z)`` or, if the path law has `inputs`, ``drift(t, z, inputs)``.
        diffusion: ``diffusion(t, z)``; zero entries or rows (states without noise) are allowed.
        noise_type: "diagonal" (one Brownian motion per state), "scalar" (one Brownian motion in all), "additive"
            (matrix that does not depend on z), "general" (any matrix).
        sde_type: "ito" or "stratonovich"; a path law simulates the Itô form (see `ito`).

    Shape:
        t: ``(..., 1)`` (broadcastable, not expanded) · z: ``(..., D)`` · inputs: ``(..., C)``.
        drift: broadcastable to ``(..., D)``.
        diffusion: broadcastable to ``(..., D)`` for diagonal noise, ``(..., D, M)`` otherwise, with M = 1 for scalar.

    Raises:
        ValueError: if `noise_type` or `sde_type` is unknown.
        TypeError: if `drift` or `diffusion` cannot be called.

    References:
        Li, Wong, Chen, Duvenaud (2020), Scalable gradients for stochastic differential equations, arXiv 2001.01328.

    Example:
        >>> import torch
        >>> sde = SDE(lambda t, z: -z, lambda t, z: 0.5 * torch.ones_like(z))
        >>> sde.coefficients(torch.zeros(1), torch.ones(3), (None,)).drift
        tensor([-1., -1., -1.])
    """

    def __init__(
        self,
        drift: Callable[..., Tensor],
        diffusion: Callable[..., Tensor],
        *,
        noise_type: str = "diagonal",
        sde_type: str = "ito",
    ) -> None:
        super().__init__()
        for name, function in (("drift", drift), ("diffusion", diffusion)):
            if not callable(function):
                msg = f"`{name}` must be a function of (t, z), received {type(function).__name__}."
                raise TypeError(msg)
        if sde_type not in ("ito", "stratonovich"):
            msg = f'`sde_type` must be "ito" or "stratonovich", received {sde_type!r}.'
            raise ValueError(msg)
        self.noise = noise_structure(noise_type)
        self.noise_type = noise_type
        self.sde_type = sde_type
        self.drift = drift
        self.diffusion = diffusion
        self.inputs: Tensor | None
        self.register_buffer("inputs", None, persistent=False)  # bound rows move with the module

    @property
    def takes_all_times(self) -> bool:
        """Whether drift and diffusion take many times in one call as fast as one, unlike those of `from_torchsde`."""
        return not any(isinstance(module, ScalarTime) for module in self.modules())

    @classmethod
    def from_torchsde(cls, sde: object) -> SDE:
        """SDE with the coefficients of a torchsde-style object (`f`, `g`, `noise_type`, `sde_type`).

        Such objects take one scalar time and states ``(B, D)``. Calls with several times are split by time, exact but
        slower than a drift that accepts any leading dimensions; slowest if gradients with respect to times of single
        series are wanted, since equal times cannot share a call then.

        Raises:
            TypeError: if one of the four attributes is missing.
        """
        missing = [name for name in ("f", "g", "noise_type", "sde_type") if not hasattr(sde, name)]
        if missing:
            msg = (
                f"`sde` must be a torchsde-style object with f, g, noise_type and sde_type; {type(sde).__name__} has "
                f"no {', '.join(missing)}."
            )
            raise TypeError(msg)
        return cls(
            ScalarTime(sde, "f"),
            ScalarTime(sde, "g"),
            noise_type=sde.noise_type,  # type: ignore[attr-defined]
            sde_type=sde.sde_type,  # type: ignore[attr-defined]
        )

    def controlled(self, control: Callable[..., Tensor]) -> ControlledSDE:
        r"""SDE with drift :math:`f + \sigma u`: same diffusion by construction, never a division by it.

        Args:
            control: ``control(t, z)`` or, if the path law has `inputs`, ``control(t, z, inputs)``; returns
                ``(..., D)`` for diagonal noise, ``(..., M)`` otherwise. Components outside the range of the diffusion
                move nothing and cost nothing.
        """
        return ControlledSDE(self, control)

    def with_drift(self, drift: Callable[..., Tensor]) -> SDE:
        """SDE with another drift and the same diffusion; its `inputs` go to the new drift."""
        return SDE(drift, self.diffusion, noise_type=self.noise_type, sde_type=self.sde_type)

    def with_inputs(self, rows: Tensor) -> SDE:
        """Copy whose inputs, one row per solver step, are bound to `rows` ``(*batch, K, C)``.

        Use it for a prior with exogenous inputs whose guide has a context of its own:
        ``SDEPath(prior.with_inputs(rows).controlled(control), ..., inputs=context)``.

        Raises:
            ValueError: if `rows` has fewer than two dimensions or inputs are bound already.
        """
        if rows.dim() < 2:
            msg = f"`rows` must have shape (*batch, K, C), received {tuple(rows.shape)}."
            raise ValueError(msg)
        if self.inputs is not None:
            msg = "this SDE has its inputs bound already; call `with_inputs` once, on the SDE that uses them."
            raise ValueError(msg)
        bound = self._copy()
        bound.inputs = rows
        return bound

    def _copy(self) -> SDE:
        copied = self.__class__.__new__(self.__class__)
        copied.__dict__ = {
            **self.__dict__,
            "_modules": dict(self._modules),
            "_parameters": dict(self._parameters),
            "_buffers": dict(self._buffers),
            "_non_persistent_buffers_set": set(self._non_persistent_buffers_set),
        }
        return copied

    def ito(self) -> SDE:
        r"""Itô form of this SDE: drift :math:`f + \tfrac12 \sum_m (\partial_z \sigma_m)\, \sigma_m` if Stratonovich.

        The correction costs one Jacobian-vector product per Brownian dimension; additive noise needs none.

        References:
            Kloeden and Platen (1992), Numerical Solution of SDEs, eq. (4.9.11).
        """
        return self if self.sde_type == "ito" else self._converted("ito", 1.0)

    def stratonovich(self) -> SDE:
        """Stratonovich form of this SDE, the inverse of `ito`: the same process, with the drift that belongs to it."""
        return self if self.sde_type == "stratonovich" else self._converted("stratonovich", -1.0)

    def _converted(self, sde_type: str, sign: float) -> SDE:
        drift = self.drift
        if isinstance(drift, ConvertedDrift) and drift.sign == -sign:  # back where it came from
            drift = drift.sde.drift
        elif self.noise_type != "additive":
            drift = ConvertedDrift(self, sign)
        converted = SDE(drift, self.diffusion, noise_type=self.noise_type, sde_type=sde_type)  # type: ignore[arg-type]
        converted.inputs = self.inputs
        return converted

    def bind_rows(self, inputs: Tensor | None) -> Rows:
        """Row tensors that `coefficients` wants, slice by slice: this SDE's own inputs.

        Raises:
            ValueError: if inputs are given although they are bound already.
        """
        if inputs is not None and self.inputs is not None:
            msg = "`inputs` were given, but the inputs of this SDE are bound by `with_inputs` already; pass them once."
            raise ValueError(msg)
        return (self.inputs if inputs is None else inputs,)

    def coefficients(self, t: Tensor, z: Tensor, rows: Rows) -> Coefficients:
        """Drift, diffusion and control at ``(t, z)``; `rows` come from `bind_rows`, sliced to the same times."""
        evaluate, rows = self.evaluator(rows)
        return evaluate(t, z, rows)

    def evaluator(self, rows: Rows) -> tuple[Evaluator, Rows]:
        """`coefficients` for a loop over times: a plain function, and the rows to slice for it.

        What depends on the rows alone, the input part of a first layer, is computed here for all of them at once.
        """
        drift, row = _hoist(self.drift, rows[0])
        diffusion = self.diffusion

        def evaluate(t: Tensor, z: Tensor, rows: Rows) -> Coefficients:
            row = rows[0]
            value = drift(t, z) if row is None else drift(t, z, row)
            return Coefficients(_tensor(value, z), _tensor(diffusion(t, z), z), None)

        return evaluate, (row,)

    def shares_diffusion(self, other: SDE) -> bool:
        """Whether both evaluate the same function as their diffusion."""
        return self.diffusion is other.diffusion and self.noise_type == other.noise_type

    def shares_drift(self, other: SDE) -> bool:
        """Whether the drift of this SDE is, for the same rows, that of the other before its control."""
        return self.drift is other.drift and not isinstance(getattr(other, "base", None), ControlledSDE)

    def without_diffusion(self) -> SDE:
        """Copy whose diffusion is not evaluated: for its drift alone."""
        copied = self._copy()
        copied._modules.pop("diffusion", None)
        copied.diffusion = _nothing
        return copied

    def networks(self, times: Tensor, rows: Rows) -> Networks | None:
        """Coefficients as functions of the state for all times of a path, None unless all of them offer this form.

        Args:
            times: ``(K, ..., 1)``.
            rows: from `bind_rows`, with time leftmost too.
        """
        drift = _network(self.drift, times, rows[0])
        diffusion = _network(self.diffusion, times, None)
        return None if drift is None or diffusion is None else Networks(drift, diffusion, None)


class ControlledSDE(SDE):
    r"""SDE :math:`dz = (f + \sigma u)\,dt + \sigma\,dW` built by `SDE.controlled`.

    Its inputs go to the control only. Attributes `base` and `control` are the SDE and the control.

    Shape:
        t: ``(..., 1)`` · z: ``(..., D)`` · inputs: ``(..., C)`` · control: ``(..., D)`` for diagonal noise,
        ``(..., M)`` otherwise.
    """

    def __init__(self, base: SDE, control: Callable[..., Tensor]) -> None:
        nn.Module.__init__(self)  # drift and diffusion stay with the base: one name per parameter
        if not callable(control):
            msg = f"`control` must be a function of (t, z[, inputs]), received {type(control).__name__}."
            raise TypeError(msg)
        if not isinstance(base, SDE):
            msg = f"`base` must be an SDE, received {type(base).__name__}."
            raise TypeError(msg)
        self.noise = base.noise
        self.noise_type = base.noise_type
        self.sde_type = base.sde_type
        self.base = base
        self.control = control
        self.register_buffer("inputs", None, persistent=False)

    @property
    def drift(self) -> Callable[..., Tensor]:  # type: ignore[override]
        """Drift of the base, without the control."""
        return self.base.drift

    @property
    def diffusion(self) -> Callable[..., Tensor]:  # type: ignore[override]
        """Diffusion of the base."""
        return self.base.diffusion

    def shares_diffusion(self, other: SDE) -> bool:
        """Never: the total drift needs its own diffusion."""
        del other
        return False

    def _converted(self, sde_type: str, sign: float) -> SDE:
        """The control is untouched, since the correction depends on the diffusion only."""
        converted = ControlledSDE(self.base._converted(sde_type, sign), self.control)
        converted.inputs = self.inputs
        return converted

    def bind_rows(self, inputs: Tensor | None) -> Rows:
        """Rows of the base (bound earlier) followed by the inputs of the control."""
        return (*self.base.bind_rows(None), *super().bind_rows(inputs))

    def evaluator(self, rows: Rows) -> tuple[Evaluator, Rows]:
        """Coefficients of the base, and the control apart from them."""
        base, base_rows = self.base.evaluator(rows[:-1])
        control, control_row = _hoist(self.control, rows[-1])
        noise = self.noise

        def evaluate(t: Tensor, z: Tensor, rows: Rows) -> Coefficients:
            row = rows[-1]
            coefficients = base(t, z, rows[:-1])
            value = control(t, z) if row is None else control(t, z, row)
            return Coefficients(coefficients.total_drift(noise), coefficients.diffusion, _tensor(value, z))

        return evaluate, (*base_rows, control_row)

    def networks(self, times: Tensor, rows: Rows) -> Networks | None:
        """Those of the base, if it has no control itself, and the control."""
        base = self.base.networks(times, rows[:-1])
        control = None if base is None or base.control is not None else _network(self.control, times, rows[-1])
        return None if base is None or control is None else base._replace(control=control)


# Entries of a hoisted part beyond which it is computed step by step: 32 MB in float32 are memory from the system, and
# `bench latent_sde` (S1, 13 million entries) takes 878 ms with it and 760 without.
_HOISTED = 2**23


def _hoist(function: Callable[..., Tensor], row: Tensor | None) -> tuple[Callable[..., Tensor], Tensor | None]:
    """A coefficient and its rows, with the part of a split first layer that depends on the rows applied already."""
    if row is None or not isinstance(function, SplitNet):
        return function, row
    if row[..., 0].numel() * function.state_part.out_features <= _HOISTED:
        return function.forward_projected, function.project_inputs(row)
    return function, row


def _network(function: Callable[..., Tensor], times: Tensor, row: Tensor | None) -> StateNetwork | None:
    describe = getattr(function, "state_network", None)
    return None if describe is None else describe(times, row)


def _nothing(_t: Tensor, z: Tensor) -> Tensor:
    return z.new_zeros(())


def _tensor(value: Tensor | float, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)
