"""Learnable diffusions for diagonal noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..ops._arguments import check_numbers
from .base import check_positive, inverse_softplus, make_activation
from .state_network import StateNetwork, is_plain

__all__ = ["DiagonalDiffusion"]

# A matrix of D blocks on its diagonal costs D times the arithmetic of the blocks, and one call instead of three.
_DENSE_DIM = 16


class DiagonalDiffusion(nn.Module):
    r"""Learnable positive diffusion :math:`\sigma_i`, one per state dimension, for diagonal noise.

    Constant, :math:`\sigma_i = \mathrm{floor} + \mathrm{softplus}(\rho_i)`, or with ``constant=False`` a
    network of its own dimension, :math:`\sigma_i(z_i) = \mathrm{floor} + 2 (\mathrm{initial} -
    \mathrm{floor})\, \mathrm{sigmoid}(w_i \cdot a(u_i z_i + b_i) + c_i)`. The second has :math:`\partial
    \sigma_i / \partial z_j = 0`, as diagonal noise means in Milstein's scheme and the Stratonovich
    correction, and is bounded, so that paths do not explode. It costs D x `hidden` per state, all dimensions
    in one batch; the constant costs nothing.

    Args:
        state_dim: number D of state dimensions.
        hidden: width of each dimension's network (only if not constant).
        floor: lower bound, ``>= 0``, in units of z per square root of time.
        initial: value of every component at the start, ``> floor``; it also sets the upper bound of the
            networks, ``2 * initial - floor``.
        constant: False for the elementwise networks.
        activation: as in `MLP` (only if not constant).

    Shape:
        t: ``(..., 1)`` · z: ``(..., D)`` · output: ``(D,)`` if constant, else ``(..., D)``.

    Raises:
        ValueError: if a size is not positive, `activation` is unknown, or not ``0 <= floor < initial``.

    References:
        Li, Wong, Chen, Duvenaud (2020), Scalable gradients for stochastic differential equations,
        arXiv:2001.01328 (elementwise diffusion networks in its latent SDE experiments).
    """

    def __init__(
        self,
        state_dim: int,
        hidden: int = 16,
        *,
        floor: float = 1e-3,
        initial: float = 0.5,
        constant: bool = True,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        shape = (check_positive("state_dim", state_dim), check_positive("hidden", hidden))
        check_numbers(floor=floor, initial=initial)
        if not (0 <= floor < initial and math.isfinite(initial)):
            msg = f"`floor` and `initial` must satisfy 0 <= floor < initial, received {floor} and {initial}."
            raise ValueError(msg)
        self.floor, self.span, self.constant = floor, initial - floor, constant
        self.activation = make_activation(activation)
        self.raw = nn.Parameter(torch.full((state_dim,), inverse_softplus(self.span) if constant else 0.0))
        if not constant:
            self.slope = nn.Parameter(torch.empty(shape).uniform_(-1, 1))  # fan-in 1, as nn.Linear would
            self.shift = nn.Parameter(torch.empty(shape).uniform_(-1, 1))
            self.weight = nn.Parameter(torch.zeros(shape))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:  # noqa: ARG002 (the signature of a diffusion)
        """Diffusion at the state z ``(..., D)``; the time t ``(..., 1)`` has no influence."""
        if self.constant:
            return self.floor + nn.functional.softplus(self.raw)
        hidden = self.activation(z.unsqueeze(-1) * self.slope + self.shift)  # (..., D, H)
        logit = torch.einsum("...dh,dh->...d", hidden, self.weight) + self.raw
        return self.floor + 2 * self.span * logit.sigmoid()

    def state_network(self, t: Tensor, inputs: Tensor | None) -> StateNetwork | None:
        """This diffusion as a function of the state; None for many dimensions, or if it is not what `forward` computes.

        The networks of the D dimensions are one network with block-diagonal weights.
        """
        raw = self.raw
        if type(self).forward is not DiagonalDiffusion.forward or inputs is not None or not is_plain(self):
            return None
        if self.constant:
            return StateNetwork(self(t, raw)) if raw.dim() == 1 else None
        dim, width = self.slope.shape[-2:]
        if dim > _DENSE_DIM or any(part.dim() != 2 for part in (self.slope, self.shift, self.weight)) or raw.dim() != 1:
            return None
        block = torch.eye(dim, dtype=raw.dtype, device=raw.device)
        return StateNetwork(
            self.shift.reshape(-1),
            (
                (block.unsqueeze(1) * self.slope.unsqueeze(-1)).reshape(dim * width, dim),
                (block.unsqueeze(-1) * self.weight).reshape(dim, dim * width),
            ),
            (raw,),
            self.activation,
            bounds=(self.floor, 2 * self.span),
            elementwise=True,
        )
