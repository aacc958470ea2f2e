r"""Derivatives of coefficients with respect to the state, by forward mode.

Forward mode needs no graph, works inside and outside autograd, and is itself differentiable, so that gradients of paths
flow through it. Every function here acts on all leading dimensions at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .base import Field

__all__ = ["check_commutative", "column_derivatives", "diffusion_columns", "directional", "state_jacobian"]

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def directional(function: Callable[[Tensor], Tensor], z: Tensor, direction: Tensor) -> Tensor:
    r"""Derivative :math:`\partial_z F(z)\, v` of a function along a direction.

    Cost: about two evaluations of the function.

    Shape:
        z: ``(..., D)`` · direction: ``(..., D)``, broadcasts with z · returns the shape of the function's value.
    """
    shape = torch.broadcast_shapes(z.shape, direction.shape)
    # contiguous: a tangent gets the strides of its primal, and cannot be written where they are 0
    return torch.func.jvp(function, (z.expand(shape).contiguous(),), (direction.expand(shape),))[1]


def state_jacobian(function: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    r"""Value and Jacobian :math:`J_{ij} = \partial F_i / \partial z_j` of a function of the state.

    Cost: D directional derivatives, each for all leading dimensions at once.

    Shape:
        z: ``(..., D)`` · value: ``(..., D)`` · Jacobian: ``(..., D, D)``.
    """
    z = z.contiguous()  # as in `directional`

    def full(state: Tensor) -> Tensor:
        value = function(state)
        return value.expand(torch.broadcast_shapes(value.shape, state.shape))

    columns = []
    value = z
    for i in range(z.shape[-1]):
        direction = torch.zeros_like(z)
        direction[..., i] = 1
        value, change, *_ = torch.func.jvp(full, (z,), (direction,))
        columns.append(change)
    return value, torch.stack(columns, -1)


def diffusion_columns(field: Field, t: Tensor) -> Callable[[Tensor], Tensor]:
    """The diffusion at a time as a function of the state with a matrix ``(..., D, M)`` as its value, for any noise."""
    noise = field.noise

    def columns(z: Tensor) -> Tensor:
        value = noise.expand(field.diffusion(t, z), z)
        return value if noise.matrix_dims else torch.diag_embed(value)

    return columns


def column_derivatives(columns: Callable[[Tensor], Tensor], z: Tensor, directions: Tensor) -> Tensor:
    r""":math:`(\partial_z \sigma_k)\, v_j` for all columns k of the diffusion and all directions j.

    Cost: one directional derivative of the matrix for each direction.

    Shape:
        directions: ``(..., D, J)`` · returns ``(..., D, M, J)``.
    """
    return torch.stack([directional(columns, z, v) for v in directions.unbind(-1)], -1)


def check_commutative(name: str, field: Field, t: Tensor, z: Tensor) -> None:
    r"""Raise ValueError unless :math:`(\partial\sigma_k)\sigma_j = (\partial\sigma_j)\sigma_k` for all columns.

    Tested at `z` and at a state beside it, where no accidental zero hides a derivative. A test at two states is no
    proof; it finds any diffusion whose columns do not commute almost everywhere.

    Args:
        name: of the solver, for the message.
        field: the SDE.
        t: time ``(..., 1)``.
        z: states ``(..., D)``.
    """
    if field.noise_type in ("additive", "scalar") or (field.noise_type == "diagonal" and z.shape[-1] == 1):
        return
    columns = diffusion_columns(field, t)
    with torch.no_grad():
        offset = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=z.device) / (100 * z.shape[-1])
        for state in (z.detach(), z.detach() + (1 + z.detach().abs()) * offset):
            matrix = columns(state)
            derivative = column_derivatives(columns, state, matrix)
            gap = (derivative - derivative.mT).abs()
            size = derivative.abs().amax() + matrix.square().amax() / (1 + state.abs().amax())
            bad = gap > _TOLERANCE.get(z.dtype, 1e-4) * size  # False where a coefficient is not defined beside z
            if bool(bad.any()):
                *_, first, second = bad.nonzero()[0].tolist()
                raise ValueError(_not_commutative(name, field, first, second))


def _not_commutative(name: str, field: Field, first: int, second: int) -> str:
    if field.noise_type == "diagonal":
        what = (
            f"entries {first} and {second} of the diagonal diffusion do not commute, because one depends on the state "
            "of the other"
        )
    else:
        what = f"columns {first} and {second} of the diffusion do not commute"
    return (
        f"{name} needs commutative noise, and {what}: it would have strong order 0.5 only. Use LogODE(), of order 1 "
        "for any noise, or Heun()."
    )
