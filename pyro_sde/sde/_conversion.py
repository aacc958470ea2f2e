"""The drift that an SDE has in the other interpretation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .noise import Noise

__all__ = ["ConvertedDrift", "ito_correction"]


def ito_correction(diffusion: Callable[[Tensor], Tensor], noise: Noise, state: Tensor) -> Tensor:
    r"""Itô drift minus Stratonovich drift, :math:`\tfrac12 \sum_m (\partial_z \sigma_m)\, \sigma_m`, ``(..., D)``.

    By forward-mode derivatives along the M columns of the diffusion, all in one call with a dimension more.

    References:
        Kloeden and Platen (1992), Numerical Solution of SDEs, eq. (4.9.11).
    """

    def columns(z: Tensor) -> Tensor:  # (..., D, M)
        value = noise.expand(torch.as_tensor(diffusion(z), dtype=z.dtype, device=z.device), z)
        return value if noise.matrix_dims else torch.diag_embed(value)

    matrix = columns(state)
    directions = matrix.movedim(-1, 0)  # (M, ..., D)
    # contiguous: a tangent gets the strides of its primal, and cannot be written where they are 0
    primal = state.expand(directions.shape).contiguous()
    change = torch.func.jvp(columns, (primal,), (directions,))[1]  # (M, ..., D, M)
    return 0.5 * change.diagonal(dim1=0, dim2=-1).sum(-1)


class ConvertedDrift(nn.Module):
    """Drift of an SDE plus or minus its correction.

    Args:
        sde: an SDE with `drift`, `diffusion` and `noise`.
        sign: 1 from Stratonovich to Itô, -1 back.
    """

    def __init__(self, sde: nn.Module, sign: float) -> None:
        super().__init__()
        self.sde = sde
        self.sign = sign

    def forward(self, t: Tensor, z: Tensor, *rows: Tensor) -> Tensor:
        """Converted drift at times ``(..., 1)`` and states ``(..., D)``."""
        sde = self.sde
        drift = sde.drift(t, z, *rows)  # type: ignore[operator]
        describe = getattr(sde.diffusion, "state_network", None)
        network = None if describe is None else describe(t, None)
        if network is not None and not network.weights and network.rate is None:
            return drift  # a constant
        correction = _elementwise if network is not None and network.elementwise else ito_correction
        return drift + self.sign * correction(lambda state: sde.diffusion(t, state), sde.noise, z)  # type: ignore[operator, arg-type]


def _elementwise(diffusion: Callable[[Tensor], Tensor], noise: Noise, state: Tensor) -> Tensor:
    """`ito_correction` where entry i of a diagonal diffusion depends on state i only, by one derivative."""
    value = noise.expand(diffusion(state), state)
    primal = state.expand(value.shape).contiguous()
    return 0.5 * torch.func.jvp(lambda z: noise.expand(diffusion(z), z), (primal,), (value,))[1]
