r"""The loop and its adjoint for coefficients that offer their layers (`nn.state_network`): same results, less overhead.

An Euler–Maruyama step with diagonal noise is :math:`z_{k+1} = z_k + f_k h_k + \sigma_k (\Delta W_k + u_k h_k)`, with
drift f, diffusion :math:`\sigma` and control u at :math:`z_k`. Let :math:`\lambda_{k+1}` be the gradient at
:math:`z_{k+1}`, and :math:`g` what arrives at the outputs themselves. Then the gradients at the coefficients are

.. math:: \bar f_k = h_k \lambda_{k+1} + g^f_k, \qquad \bar u_k = h_k \sigma_k \lambda_{k+1} + g^u_k, \qquad
    \bar\sigma_k = (\Delta W_k + u_k h_k) \lambda_{k+1} + g^\sigma_k

and :math:`\lambda_k = g^z_k + \lambda_{k+1} + J_f^\top \bar f_k + J_u^\top \bar u_k + J_\sigma^\top \bar\sigma_k`. Only
this recursion is sequential. Backwards, activations are computed anew for a block of steps at a time, all steps of the
block at once: nothing but the path and its coefficients is kept, and the gradients of the weights are one product per
block and layer.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..nn.state_network import StateNetwork
from ..ops.brownian import wiener_increments
from ..ops.grid import TimeGrid
from ..ops.layout import time_first
from ..sde.base import SDE, Coefficients
from ._adjoint import FlatPath, PathAdjoint
from ._forward import simulate
from ._layers import Layers, LayerSpec
from .gradient import refuse_second_derivative

__all__ = ["NetworkPath", "describe", "unroll_networks"]


class NetworkPath(NamedTuple):
    """A path problem in flat form: K steps of R rows.

    Attributes:
        networks: drift, diffusion and control, None without one; flat tensors.
        initial: ``(R, D)``.
        increments: ``(K, R, D)``.
        steps: ``(K, R, 1)``, or ``(K, 1, 1)``.
        batch: batch shape of the states, R its product.
    """

    networks: tuple[StateNetwork, StateNetwork, StateNetwork | None]  # drift, diffusion, control; flat tensors
    initial: Tensor  # (R, D)
    increments: Tensor  # (K, R, D)
    steps: Tensor  # (K, R|1, 1)
    batch: torch.Size  # of the states, R its product


def describe(
    sde: SDE, grid: TimeGrid, initial: Tensor, standard_normal: Tensor, rows: tuple[Tensor | None, ...]
) -> NetworkPath | None:
    """Flat form of the arguments of `unroll`, or None where the coefficients do not offer their layers.

    What does not depend on the state is computed here for all steps at once, with its graph.

    Shape:
        initial: ``(..., D)`` · standard_normal: ``(K, ..., D)`` · rows: ``(*batch, K, C)`` each.
    """
    if sde.noise_type != "diagonal" or sde.sde_type != "ito" or standard_normal.shape[-1] != initial.shape[-1]:
        return None
    rank = max(grid.steps.dim(), standard_normal.dim() - 1, initial.dim()) - 1
    rank = max(rank, *(0 if row is None else row.dim() - 2 for row in rows))
    times = time_first(grid.times.unsqueeze(-1), rank)[:-1]
    found = sde.networks(times, tuple(None if row is None else time_first(row, rank) for row in rows))
    if found is None:
        return None
    steps = time_first(grid.steps.unsqueeze(-1), rank)
    increments = wiener_increments(steps, time_first(standard_normal.movedim(0, -2), rank))
    networks = [network for network in found if network is not None]
    try:
        batch = torch.broadcast_shapes(
            initial.shape[:-1], increments.shape[1:-1], *(_batch_of(network, rank) for network in networks)
        )
    except RuntimeError:
        return None  # the loop says what does not fit
    width = initial.shape[-1]
    if len(batch) != rank or batch.numel() == 0 or any(not _fits(network, width, initial) for network in networks):
        return None
    flat = [_flatten(network, rank, batch, width) for network in networks]
    return NetworkPath(
        (flat[0], flat[1], flat[2] if len(flat) > 2 else None),
        initial.expand(*batch, width).reshape(-1, width),
        _flat(increments, rank, batch, width, full=True),
        _flat(steps, rank, batch, 1),
        batch,
    )


def unroll_networks(path: NetworkPath, *, keep: bool = True) -> tuple[Tensor, Coefficients]:
    """States ``(K + 1, *batch, D)`` and the coefficients of every step, time leftmost, both with their gradients.

    Cost: K steps of a few calls each; backwards one batched evaluation, K steps of the recursion (batched Jacobians and
    a scan where a step is small), and one product per layer. Memory: the path and its coefficients, and one block.

    Args:
        path: from `describe`.
        keep: whether activations may be kept for the backward pass, where they are not many.

    Raises:
        RuntimeError: if it is differentiated twice.
    """
    specs = tuple(None if network is None else _spec(network) for network in path.networks)
    tensors = [tensor for network in path.networks if network is not None for tensor in _tensors(network)]
    states, *values = _Path.apply(
        specs, keep and torch.is_grad_enabled(), path.initial, path.increments, path.steps, *tensors
    )  # type: ignore[misc]
    given = iter(values)
    shaped: list[Tensor | None] = []
    for network in path.networks:
        if network is None:
            shaped.append(None)
        elif network.weights:
            shaped.append(next(given).reshape(-1, *path.batch, states.shape[-1]))
        else:  # without weights the value is cheaper anew than a gradient through the recursion
            rate = network.rate
            value = network.shift if rate is None else network.shift - rate * states[:-1]
            shape = path.batch if value.shape[1] > 1 else [1] * len(path.batch)
            shaped.append(value.reshape(len(value), *shape, value.shape[-1]))
    drift, diffusion, control = shaped
    if drift is None or diffusion is None:
        msg = "a path has a drift and a diffusion"
        raise RuntimeError(msg)
    return states.reshape(-1, *path.batch, states.shape[-1]), Coefficients(drift, diffusion, control)


# -------------------------------------------------------------------- flat tensors
def _batch_of(network: StateNetwork, rank: int) -> torch.Size:
    shift = network.shift.shape[1:-1] if network.shift.dim() == rank + 2 else network.shift.shape[:-1]
    return shift if network.rate is None else torch.broadcast_shapes(shift, network.rate.shape[:-1])


def _fits(network: StateNetwork, width: int, like: Tensor) -> bool:
    """Whether all tensors have the dtype and device of the states, and the value their width."""
    same = all(t.dtype == like.dtype and t.device == like.device for t in _tensors(network))
    if network.weights:
        return same and len(network.weights) > 1 and network.weights[-1].shape[0] == width
    return same and (network.shift.dim() == 0 or network.shift.shape[-1] in (1, width))


def _flatten(network: StateNetwork, rank: int, batch: torch.Size, width: int) -> StateNetwork:
    first = network.weights[0].shape[0] if network.weights else width
    rate = None if network.rate is None else _flat(network.rate, rank, batch, width)
    return network._replace(shift=_flat(network.shift, rank, batch, first), rate=rate)


def _flat(tensor: Tensor, rank: int, batch: torch.Size, width: int, *, full: bool = False) -> Tensor:
    """(K|1, R|1, width) from a tensor with or without a time axis, and with some of the batch dimensions."""
    if tensor.dim() == rank + 2:
        length = len(tensor)
    else:
        length = 1
        tensor = tensor.reshape(1, *[1] * (rank + 1 - max(1, tensor.dim())), *(tensor.shape or (1,)))
    if not full and tensor.shape[1:-1].numel() == 1:
        return tensor.reshape(length, 1, tensor.shape[-1]).expand(length, 1, width)
    return tensor.expand(length, *batch, width).reshape(length, -1, width)


def _spec(network: StateNetwork) -> LayerSpec:
    return LayerSpec(
        len(network.weights), network.rate is not None, network.activation, network.bounds, network.elementwise
    )


def _tensors(network: StateNetwork) -> tuple[Tensor, ...]:
    rate = () if network.rate is None else (network.rate,)
    return (network.shift, *network.weights, *network.biases, *rate)


class _Path(torch.autograd.Function):
    """States, and the values of the networks with weights, from everything that they depend on."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        specs: tuple[LayerSpec, LayerSpec, LayerSpec | None],
        keep: bool,
        initial: Tensor,
        increments: Tensor,
        steps: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        states, values, hidden = simulate(_layers(specs, tensors), initial, increments, steps, keep=keep)
        given = [value for value in values if value is not None]
        ctx.specs, ctx.hidden = specs, hidden  # type: ignore[attr-defined]
        ctx.save_for_backward(states, *given, increments, steps, *tensors)
        ctx.set_materialize_grads(False)
        return states, *given

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        specs = ctx.specs  # type: ignore[attr-defined]
        states, *saved = ctx.saved_tensors  # type: ignore[attr-defined]
        has_value = [spec is not None and spec.depth > 0 for spec in specs]
        values, (increments, steps, *tensors) = saved[: sum(has_value)], saved[sum(has_value) :]
        given, arriving = iter(values), iter(gradients[1:])
        path = FlatPath(
            _layers(specs, tuple(tensors)),
            states,
            tuple(next(given) if has else None for has in has_value),  # type: ignore[arg-type]
            ctx.hidden,  # type: ignore[attr-defined]
            increments,
            steps,
        )
        wanted = ctx.needs_input_grad  # type: ignore[attr-defined]
        adjoint = PathAdjoint(
            path,
            (gradients[0], *(next(arriving) if has else None for has in has_value)),
            wants_increments=wanted[3],
            wants_steps=wanted[4],
        )
        initial = adjoint.run()
        flat = [tensor for network in adjoint.networks if network is not None for tensor in network]
        return None, None, initial, adjoint.increments, adjoint.steps, *flat


def _layers(
    specs: tuple[LayerSpec, LayerSpec, LayerSpec | None], tensors: tuple[Tensor, ...]
) -> tuple[Layers, Layers, Layers | None]:
    start, found = 0, []
    for spec in specs:
        found.append(None if spec is None else Layers(spec, tensors[start : start + spec.size]))
        start += 0 if spec is None else spec.size
    return tuple(found)  # type: ignore[return-value]
