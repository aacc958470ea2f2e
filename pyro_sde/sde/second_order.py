r"""Second-order dynamics: positions that move with velocities, which alone are driven by noise."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..nn.base import check_positive, check_widths
from ..ops._arguments import check_numbers
from .base import SDE

__all__ = ["SecondOrderSDE"]


class SecondOrderSDE(SDE):
    r"""Second-order SDE of positions q and velocities v, the state being :math:`z = (q, v)`.

    .. math:: dq = v\,dt, \qquad dv = \big(a(q, v) - k q\big)\,dt + \sigma\,dW

    For what swings: paths of q are smooth, as those of bodies are, and a spring k keeps them in place while the
    acceleration a is still untrained. The deviation :math:`\sigma` of the noise is constant, positive and learned. A
    control of this SDE has 2 Q values, of which the first Q move nothing and cost nothing.

    Cost: that of the acceleration.

    Args:
        acceleration: ``acceleration(z)``, ``(..., 2 Q) -> (..., Q)``; a module is trained with the SDE.
        dim: number Q of positions.
        stiffness: k, ``>= 0``, per squared unit of time: 0.21 is a period of about 14 units, ``2 pi / sqrt(k)``.
        noise_scale: :math:`\sigma` before training, ``> 0``.
        batch_shape: leading dimensions of :math:`\sigma`, such as ``(E, 1)`` for E models that are trained at once;
            ``()`` for one number per velocity.

    Shape:
        z: ``(..., 2 Q)`` · drift: ``(..., 2 Q)`` · diffusion: ``(*batch_shape, 2 Q)``.

    Raises:
        TypeError: if `acceleration` cannot be called.
        ValueError: if `dim`, `stiffness` or `noise_scale` is out of range.

    Definition:
        Newton's equation of points of mass 1 with white noise in their acceleration. With friction in a it is the
        Langevin equation, Pavliotis (2014), Stochastic Processes and Applications, chapter 6.

    Example:
        >>> sde = SecondOrderSDE(lambda z: -z[..., 1:], dim=1, stiffness=4.0)
        >>> sde.drift(torch.zeros(1), torch.tensor([1.0, 3.0]))
        tensor([ 3., -7.])
    """

    def __init__(
        self,
        acceleration: Callable[[Tensor], Tensor],
        dim: int,
        *,
        stiffness: float = 0.0,
        noise_scale: float = 0.1,
        batch_shape: tuple[int, ...] = (),
    ) -> None:
        check_positive("dim", dim)
        if not callable(acceleration):
            msg = f"`acceleration` must be a function of the state, received {type(acceleration).__name__}."
            raise TypeError(msg)
        check_numbers(stiffness=stiffness, noise_scale=noise_scale)
        batch_shape = tuple(check_widths("batch_shape", batch_shape))
        if not (stiffness >= 0 and math.isfinite(stiffness)):
            msg = f"`stiffness` must be a finite number >= 0, received {stiffness}. A spring of 0 is none."
            raise ValueError(msg)
        if not (noise_scale > 0 and math.isfinite(noise_scale)):
            msg = f"`noise_scale` must be a finite number > 0, received {noise_scale}. Velocities need noise."
            raise ValueError(msg)
        super().__init__(_Drift(acceleration, stiffness), _VelocityNoise(batch_shape, dim, noise_scale))


class _Drift(nn.Module):
    def __init__(self, acceleration: Callable[[Tensor], Tensor], stiffness: float) -> None:
        super().__init__()
        self.acceleration, self.stiffness = acceleration, stiffness

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        del t
        q, v = z.chunk(2, -1)
        return torch.cat([v, self.acceleration(z) - self.stiffness * q], -1)


class _VelocityNoise(nn.Module):
    def __init__(self, batch_shape: tuple[int, ...], dim: int, scale: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((*batch_shape, dim), math.log(scale)))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        del t, z
        return torch.cat([torch.zeros_like(self.log_scale), self.log_scale.exp()], -1)
