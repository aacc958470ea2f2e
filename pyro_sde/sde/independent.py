r"""Linear SDEs whose state dimensions are independent: Brownian motion and Ornstein–Uhlenbeck."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from ..nn.state_network import StateNetwork
from ..ops.discretise import Transition
from ._arguments import is_count
from .base import Coefficients, Evaluator, Rows
from .linear import LinearSDE, Parameter, shape_of
from .system import LinearSystem

__all__ = ["BrownianMotion", "OrnsteinUhlenbeck"]


class _Independent(LinearSDE):
    """D independent equations; numbers serve a state of any width, `state_dim` that of the exact laws."""

    def __init__(self, state_dim: int | None, **parameters: Parameter) -> None:
        widths = {shape[-1] for shape in map(shape_of, parameters.values()) if shape} - {1}
        width = max(widths, default=1) if state_dim is None else state_dim
        if not (state_dim is None or is_count(state_dim, 1)) or any(w != width for w in widths):
            shapes = {name: tuple(shape_of(value)) for name, value in parameters.items()}
            msg = (
                f"the last axis of every parameter must be the state dimension or 1; received {shapes} with "
                f"`state_dim` {state_dim}. One number for each series has shape (B, 1)."
            )
            raise ValueError(msg)
        super().__init__(width, "diagonal")
        for name, value in parameters.items():
            self._register(name, value)

    @abstractmethod
    def _affine(self) -> tuple[Tensor | float, Tensor | float | None, Tensor | float]:
        """Shift, rate (None for 0) and scale of drift ``shift - rate * z`` and diffusion."""

    def evaluator(self, rows: Rows) -> tuple[Evaluator, Rows]:
        """Elementwise coefficients from one reading of the hyper-parameters."""
        self._check_no_inputs(rows)
        with self._reading():
            shift, rate, scale = self._affine()

        def evaluate(_t: Tensor, z: Tensor, _rows: Rows) -> Coefficients:
            drift = torch.zeros_like(z) + shift if rate is None else shift - rate * z
            return Coefficients(drift, _like(scale, z), None)

        return evaluate, rows

    def _networks(self, t: Tensor) -> tuple[StateNetwork | None, StateNetwork | None]:
        with self._reading():
            values = self._affine()
        if any(isinstance(value, Tensor) and value.dtype != t.dtype for value in values):
            return None, None
        shift, rate, scale = values
        drift = StateNetwork(_like(shift, t), rate=None if rate is None else _like(rate, t))
        return drift, StateNetwork(_like(scale, t))


class BrownianMotion(_Independent):
    r"""Brownian motion with drift, :math:`dz = \mu\,dt + \sigma\,dW` in each dimension.

    Args:
        scale: diffusion :math:`\sigma`, number or ``(*batch, D)``, state unit per square root of time.
        velocity: drift :math:`\mu`, number or ``(*batch, D)``, state unit per unit of time.
        state_dim: D of the exact laws; by default that of the parameters, 1 for numbers.

    Raises:
        ValueError: if the parameters are of different widths.
    """

    def __init__(self, scale: Parameter = 1.0, velocity: Parameter = 0.0, *, state_dim: int | None = None) -> None:
        super().__init__(state_dim, scale=scale, velocity=velocity)

    def _affine(self) -> tuple[Tensor | float, Tensor | float | None, Tensor | float]:
        return self.velocity, None, self.scale  # type: ignore[return-value]

    def _system(self, device: torch.device | None) -> LinearSystem:
        (scale, velocity), dtype = self._read("scale", "velocity", device=device)
        scale, velocity = (value.expand(*value.shape[:-1], self.state_dim) for value in (scale, velocity))
        identity = torch.eye(self.state_dim, dtype=scale.dtype, device=scale.device)

        def exact(dt: Tensor) -> Transition:
            offset = velocity.unsqueeze(-2) * dt.unsqueeze(-1)
            variance = scale.square().unsqueeze(-2) * dt.unsqueeze(-1)
            return _diagonal_transition(torch.ones_like(offset), offset, variance)

        return LinearSystem(
            type(self).__name__,
            torch.zeros_like(identity),
            torch.diag_embed(scale),
            identity,
            dtype,
            offset=velocity,
            exact=exact,
        )


class OrnsteinUhlenbeck(_Independent):
    r"""Ornstein–Uhlenbeck process :math:`dz = \theta(\mu - z)\,dt + \sigma\,dW` in each dimension.

    Stationary law :math:`N(\mu, \sigma^2 / 2\theta)`; correlation time :math:`1/\theta`.

    .. math:: \Phi = e^{-\theta h}, \qquad c = \mu (1 - e^{-\theta h}), \qquad
        Q = \sigma^2\, \frac{1 - e^{-2\theta h}}{2\theta}

    Args:
        rate: :math:`\theta > 0`, number or ``(*batch, D)``, per unit of time. A latent of shape ``(B,)`` must be given
            as ``(B, 1)``. A rate that is not positive is allowed, but such a process has no stationary law.
        scale: :math:`\sigma`, number or ``(*batch, D)``, state unit per square root of time.
        loc: :math:`\mu`, number or ``(*batch, D)``.
        state_dim: D of the exact laws; by default that of the parameters, 1 for numbers.

    Raises:
        ValueError: if the parameters are of different widths.

    References:
        Särkkä and Solin (2019), Applied Stochastic Differential Equations, example 6.2.

    Example:
        >>> OrnsteinUhlenbeck(rate=0.5, scale=2.0).stationary()[1]
        tensor([[4.]])
    """

    def __init__(
        self, rate: Parameter, scale: Parameter, loc: Parameter = 0.0, *, state_dim: int | None = None
    ) -> None:
        super().__init__(state_dim, rate=rate, scale=scale, loc=loc)

    def _affine(self) -> tuple[Tensor | float, Tensor | float | None, Tensor | float]:
        rate = self.rate
        return rate * self.loc, rate, self.scale  # type: ignore[return-value, operator]

    def _system(self, device: torch.device | None) -> LinearSystem:
        values, dtype = self._read("rate", "scale", "loc", device=device)
        rate, scale, loc = (value.expand(*value.shape[:-1], self.state_dim) for value in values)

        def exact(dt: Tensor) -> Transition:
            step = dt.unsqueeze(-1)  # (*batch, K, 1)
            x = rate.unsqueeze(-2) * step
            offset = -loc.unsqueeze(-2) * torch.expm1(-x)
            return _diagonal_transition(torch.exp(-x), offset, scale.square().unsqueeze(-2) * step * _mean_decay(2 * x))

        def moments() -> tuple[Tensor, Tensor]:
            if bool((rate <= 0).any()):
                growth = -rate.detach()[rate <= 0][0].item()
                msg = (
                    f"{type(self).__name__} has no stationary law: the eigenvalue {growth:.3g} of its drift matrix has "
                    "no negative real part. Use a positive `rate`, or give its path an initial law."
                )
                raise ValueError(msg)
            mean, variance = torch.broadcast_tensors(loc, scale.square() / (2 * rate))
            return mean, torch.diag_embed(variance)

        return LinearSystem(
            type(self).__name__,
            torch.diag_embed(-rate),
            torch.diag_embed(scale),
            torch.eye(self.state_dim, dtype=rate.dtype, device=rate.device),
            dtype,
            offset=rate * loc,
            exact=exact,
            moments=moments,
        )


def _diagonal_transition(phi: Tensor, offset: Tensor, variance: Tensor) -> Transition:
    """Transition of independent states, from ``(*batch, K, D)``."""
    phi, offset, variance = torch.broadcast_tensors(phi, offset, variance)
    return Transition(torch.diag_embed(phi), offset, torch.diag_embed(variance))


def _mean_decay(x: Tensor) -> Tensor:
    r""":math:`(1 - e^{-x}) / x`, 1 at 0; a series near 0, where the quotient has no exact gradient."""
    small = x.abs() < 1e-2
    near, far = torch.where(small, x, 0.0), torch.where(small, 1.0, x)
    series = torch.ones_like(x)
    for n in range(7, 1, -1):
        series = 1 - near / n * series
    return torch.where(small, series, -torch.expm1(-far) / far)


def _like(value: Tensor | float, like: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=like.dtype, device=like.device)
