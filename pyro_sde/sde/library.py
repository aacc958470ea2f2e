r"""A library of SDEs: the field's standard examples and a learnable one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from ..nn.diffusion import DiagonalDiffusion
from ..nn.mlp import DriftNet
from ..nn.state_network import StateNetwork, is_plain
from ._arguments import check_coefficients
from .base import SDE

__all__ = [
    "DoubleWell",
    "GeometricBrownianMotion",
    "NeuralSDE",
    "StochasticLorenz",
    "UnderdampedLangevin",
]

Coefficient = Tensor | float


class GeometricBrownianMotion(SDE):
    r"""Geometric Brownian motion :math:`dz = \mu z\,dt + \sigma z\,dW` (Itô), diagonal noise.

    .. math:: z_t = z_0 \exp\big((\mu - \sigma^2/2)\,t + \sigma W_t\big)

    Args:
        growth: :math:`\mu`, number or ``(*batch, D)``, per unit of time.
        volatility: :math:`\sigma`, number or ``(*batch, D)``, per square root of time.

    References:
        Øksendal (2003), Stochastic Differential Equations, example 5.1.1.
    """

    def __init__(self, growth: Coefficient, volatility: Coefficient) -> None:
        check_coefficients(growth=growth, volatility=volatility)
        super().__init__(_Function(_proportional, growth), _Function(_proportional, volatility))


class DoubleWell(SDE):
    r"""Diffusion in a double well, :math:`dz = \alpha z (1 - z^2 / \beta^2)\,dt + \sigma\,dW`.

    Args:
        strength: :math:`\alpha > 0`, number or ``(*batch, D)``, per unit of time.
        scale: :math:`\sigma`, number or ``(*batch, D)``, in units of z per square root of time.
        well: the wells are at :math:`\pm\beta`, :math:`\beta > 0`, number or ``(*batch, D)``, in units of z.

    Note:
        The drift is cubic: large steps from far outside explode; bound `max_step` or the initial law.
    """

    def __init__(self, strength: Coefficient = 4.0, scale: Coefficient = 1.0, well: Coefficient = 1.0) -> None:
        check_coefficients(strength=strength, scale=scale, well=well)
        super().__init__(_Function(_double_well, strength, well), _Function(_constant, scale))


class StochasticLorenz(SDE):
    r"""Lorenz system with multiplicative noise, state dimension 3, diagonal noise.

    .. math::
        dx = a(y - x)\,dt + \beta_1 x\,dW_1, \quad dy = (x(b - z) - y)\,dt + \beta_2 y\,dW_2, \quad
        dz = (xy - cz)\,dt + \beta_3 z\,dW_3

    Args:
        parameters: :math:`(a, b, c)`, three numbers or a tensor ``(*batch, 3)``.
        noise: :math:`(\beta_1, \beta_2, \beta_3)`, three numbers or a tensor ``(*batch, 3)``.

    Raises:
        TypeError: if a value is no real number or tensor of such.
        ValueError: if there are not three of them, or one is not finite.

    References:
        Li, Wong, Chen, Duvenaud (2020), arXiv 2001.01328, section 9.10.2.
    """

    def __init__(
        self,
        parameters: Sequence[float] | Tensor = (10.0, 28.0, 8.0 / 3.0),
        noise: Sequence[float] | Tensor = (0.1, 0.28, 0.3),
    ) -> None:
        super().__init__(
            _Function(_lorenz, _three("parameters", parameters)),
            _Function(_componentwise, _three("noise", noise)),
        )


class UnderdampedLangevin(SDE):
    r"""Underdamped Langevin dynamics of position x and velocity v, noise on the velocity only.

    .. math:: dx = v\,dt, \qquad dv = (F(x) - \gamma v)\,dt + \sigma\,dW

    The state is ``(x, v)``, D = 2d; the first d dimensions carry no noise, so guides must use ``sde.controlled``. The
    stationary law is :math:`\propto e^{-(U(x) + v^2/2)\,2\gamma/\sigma^2}` for :math:`F = -\nabla U`.

    Args:
        force: :math:`F`, function of positions ``(..., d)``.
        friction: :math:`\gamma \ge 0`, number or ``(*batch, d)``, per unit of time.
        scale: :math:`\sigma`, number or ``(*batch, d)``.

    References:
        Pavliotis (2014), Stochastic Processes and Applications, chapter 6 (the equation and its invariant law).
    """

    def __init__(
        self, force: Callable[[Tensor], Tensor], friction: Coefficient = 1.0, scale: Coefficient = 1.0
    ) -> None:
        if not callable(force):
            msg = f"`force` must be a function of the positions, received {type(force).__name__}."
            raise TypeError(msg)
        check_coefficients(friction=friction, scale=scale)
        super().__init__(_LangevinDrift(force, friction), _Function(_on_velocity, scale))


class NeuralSDE(SDE):
    r"""SDE with a drift network and a learned diagonal diffusion, both time-homogeneous unless told otherwise.

    Args:
        state_dim: D.
        hidden: widths of the hidden layers of the drift.
        input_dim: number of exogenous inputs C of the drift, 0 for none.
        time_features: number of time features of the drift: 0 for an autonomous one, harmonics of `period` or t itself
            otherwise (see `DriftNet`).
        period: period of the time features, in the unit of time.
        diffusion_scale: initial diffusion of every dimension, ``> 0``.
        constant_diffusion: one learned number per dimension; otherwise one small network per dimension.
        reversion: initial rate, per unit of time, of a learned linear pull to 0, ``>= 0``. If there is one the drift
            network is bounded (tanh), so that paths stay finite however long they run; without (0) it is not (SiLU),
            and a path that is longer than those of training may grow without limit.

    Example:
        >>> sde = NeuralSDE(3, hidden=(32,))
        >>> sde.coefficients(torch.zeros(1), torch.zeros(5, 3), (None,)).drift.shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        state_dim: int,
        hidden: Sequence[int] = (64, 64),
        *,
        input_dim: int = 0,
        time_features: int = 0,
        period: float | None = None,
        diffusion_scale: float = 0.5,
        constant_diffusion: bool = True,
        reversion: float = 0.0,
    ) -> None:
        drift = DriftNet(
            state_dim,
            hidden,
            input_dim=input_dim,
            time_features=time_features,
            period=period,
            activation="tanh" if reversion else "silu",
            reversion=reversion,
        )
        diffusion = DiagonalDiffusion(state_dim, initial=diffusion_scale, constant=constant_diffusion)
        super().__init__(drift, diffusion)
        self.state_dim = state_dim


class _Function(nn.Module):
    """A coefficient function with its parameters, picklable: module-level function, registered tensors."""

    def __init__(self, function: Callable[..., Tensor], *parameters: Coefficient | tuple[float, ...]) -> None:
        super().__init__()
        self.function = function
        self.names = tuple(f"parameter_{i}" for i in range(len(parameters)))
        for name, value in zip(self.names, parameters, strict=True):
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value, persistent=False)  # moves with the module, keeps its graph
            else:
                setattr(self, name, value)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.function(t, z, *(getattr(self, name) for name in self.names))

    def state_network(self, t: Tensor, inputs: Tensor | None) -> StateNetwork | None:
        """This function as an affine one of the state, None if it is not."""
        affine = _AFFINE.get(self.function)
        if affine is None or inputs is not None or not is_plain(self):
            return None
        values = [getattr(self, name) for name in self.names]
        if any(isinstance(value, Tensor) and value.dtype != t.dtype for value in values):
            return None
        shift, rate = affine(*(value if isinstance(value, Tensor) else t.new_tensor(value) for value in values))
        return StateNetwork(t.new_zeros(()) if shift is None else shift, rate=rate)


def _constant(_t: Tensor, z: Tensor, scale: Coefficient) -> Tensor:
    return torch.as_tensor(scale, dtype=z.dtype, device=z.device) if not isinstance(scale, Tensor) else scale


def _proportional(_t: Tensor, z: Tensor, factor: Coefficient) -> Tensor:
    return factor * z


# the functions above as (shift, rate) of shift - rate * z
_AFFINE: dict[Callable[..., Tensor], Callable[..., tuple[Tensor | None, Tensor | None]]] = {
    _constant: lambda scale: (scale, None),
    _proportional: lambda factor: (None, -factor),
}


def _double_well(_t: Tensor, z: Tensor, strength: Coefficient, well: Coefficient) -> Tensor:
    return strength * z * (1 - (z / well) ** 2)


def _componentwise(_t: Tensor, z: Tensor, factors: Tensor | tuple[float, ...]) -> Tensor:
    return (factors if isinstance(factors, Tensor) else z.new_tensor(factors)) * z


def _lorenz(_t: Tensor, z: Tensor, parameters: Tensor | tuple[float, ...]) -> Tensor:
    a, b, c = parameters.unbind(-1) if isinstance(parameters, Tensor) else parameters
    x, y, w = z.unbind(-1)
    return torch.stack(torch.broadcast_tensors(a * (y - x), x * (b - w) - y, x * y - c * w), -1)


def _on_velocity(_t: Tensor, z: Tensor, scale: Coefficient) -> Tensor:
    noise = torch.zeros_like(z[..., z.shape[-1] // 2 :]) + scale
    return torch.cat([torch.zeros_like(noise), noise], -1)


class _LangevinDrift(nn.Module):
    def __init__(self, force: Callable[[Tensor], Tensor], friction: Coefficient) -> None:
        super().__init__()
        self.force = force
        self.damping = _Function(_proportional, friction)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        if z.shape[-1] % 2:
            msg = (
                f"the state of `UnderdampedLangevin` is (position, velocity), D = 2d; received D = {z.shape[-1]}. Give "
                "an initial law of both."
            )
            raise ValueError(msg)
        position, velocity = z.chunk(2, -1)
        acceleration = self.force(position) - self.damping(t, velocity)
        return torch.cat([velocity.expand_as(acceleration), acceleration], -1)


def _three(name: str, values: Sequence[float] | Tensor) -> Tensor | tuple[float, ...]:
    """Numbers stay Python floats, exact in every dtype: a tensor would have rounded 8/3 to float32 already."""
    if isinstance(values, Tensor):
        if values.shape[-1:] == (3,):
            check_coefficients(**{name: values})
            return values
    elif isinstance(values, Iterable) and not isinstance(values, str) and len(numbers := tuple(values)) == 3:
        check_coefficients(**{f"{name}[{i}]": value for i, value in enumerate(numbers)})
        return tuple(float(value) for value in numbers)
    shape = f"a tensor of shape {tuple(values.shape)}" if isinstance(values, Tensor) else repr(values)
    msg = f"`{name}` must be three numbers or a tensor (*batch, 3), received {shape}."
    raise ValueError(msg)
