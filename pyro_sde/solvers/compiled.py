r"""The sequential loops of `networks.py` in machine code: the path of coefficients made of layers, and its adjoint.

Where numba is missing, and for what the kernels do not know, the functions here return None and the caller takes the
loop of torch calls. One kernel of each kind is compiled per floating type, for networks of any width and activation:
their structure is data. The kernels (`_kernels.py`) run on one core, without the lock of the interpreter.

They see every tensor as a matrix with one row per step, (K, R H) for R rows of the batch, or one for all steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from . import _kernels
from ._elementwise import blocks_of
from ._jit import array, code_of, compiled, serves
from ._layers import Block, Layers

__all__ = ["Term", "recursion", "simulate"]

_HIDDEN = 4  # most hidden layers of a network
_NETWORKS = 3
# Beyond these, torch's products cost less than its calls: measured on one core at 256 rows of H = 256 (1.4x faster) and
# at 1024 rows (1.4x slower). With several threads, torch shares the work of a step out: its multiply-adds are bounded.
_MOST_ROWS = 256
_MOST_WORK = 2_000_000
# The error function of GELU is not vectorised here, unlike torch's: hidden units of a step, all rows, up to which that
# costs less than torch's calls. At 1 600 and 6 400 units 1.7x faster and 1.8x slower for two layers of 100 and a
# constant diffusion; at 6 400 and 25 600 units 1.2x faster and 2.3x slower for six diffusion networks of 100 beside.
_MOST_GELU = 3000


class Term(Protocol):
    """A network through whose Jacobian the adjoint goes: its cotangent is ``factor * lambda + extra``."""

    @property
    def layers(self) -> Layers:
        """The network."""
        ...

    @property
    def block(self) -> Block:
        """Its slopes at n steps of R rows."""
        ...

    @property
    def factor(self) -> Tensor:
        """``(n, R|1, 1 or D)``."""
        ...

    @property
    def extra(self) -> Tensor | None:
        """``(n, R, D)``, None for 0."""
        ...


def simulate(
    layers: tuple[Layers, Layers, Layers | None],
    initial: Tensor,
    increments: Tensor,
    steps: Tensor,
    keep: Sequence[bool] = (False, False, False),
) -> tuple[Tensor, list[Tensor | None], tuple[list[Tensor], list[Tensor], list[Tensor]]] | None:
    """States of an Euler–Maruyama path and the values of its networks; None where the kernel does not apply.

    That is so without numba, on another device than the CPU, in other types than float32 and float64, for activations
    other than those of `MLP`, for steps so large that torch is as fast (GELU: sooner than others), and if the setting
    ``pyro_sde_compiled`` is "never". Cost: the arithmetic of the layers on one core. Records no graph. Equal to the
    loop of torch calls up to round-off.

    Args:
        layers: drift, diffusion, control.
        initial: ``(R, D)``.
        increments: of the Brownian motion, ``(K, R, D)``.
        steps: ``(K, R|1, 1)``.
        keep: for each network, whether the pre-activations of its hidden layers are wanted.

    Returns:
        States ``(K + 1, R, D)``; values ``(K, R, D)`` of drift, diffusion and control, None for those without weights;
        and for each of them the pre-activations ``(K, R, H)`` of its hidden layers, none where they are not wanted.
    """
    if not _applies(initial, layers) or not _are_known(layers, len(initial)):
        return None
    shape = (increments.shape[0], initial.shape[0], initial.shape[1])
    states = initial.new_empty((shape[0] + 1, *initial.shape))
    states[0] = initial
    zeros = initial.new_zeros((1, *initial.shape))
    values = [None if net is None or not net.weights else initial.new_empty(shape) for net in layers]
    plan = _Plan(layers, shape, keep)
    hidden = initial.new_empty(plan.room)
    compiled(_kernels.simulate)(
        (plan.flags, plan.sizes, plan.bounds),
        array(torch.cat(plan.parameters)),
        tuple(_matrix(zeros if net is None else net.shift) for net in layers),
        (_matrix(increments), _matrix(steps), _matrix(states)),
        tuple(_matrix(_output(net, value, zeros)) for net, value in zip(layers, values, strict=True)),
        (array(hidden), array(initial.new_empty(plan.widest))),
    )
    return states, values, plan.kept(hidden)


def recursion(gain: Tensor, source: Tensor, terms: Sequence[Term], adjoint: Tensor) -> tuple[Tensor, Tensor] | None:
    r"""Adjoints of a block of n steps, backwards in time; None where the kernel does not apply.

    :math:`\lambda_k = \mathrm{gain}_k \lambda_{k+1} + \mathrm{source}_k + \sum_i J_{i,k}^\top (\mathrm{factor}_{i,k}
    \lambda_{k+1} + \mathrm{extra}_{i,k})` with the Jacobians :math:`J_i` of the terms' networks, given by weights and
    slopes. It applies as `simulate` does, whatever the activation, to networks of up to four hidden layers. The
    cotangents of the pre-activations of all layers are added to the list `deltas` of the terms' blocks, the last layer
    first. Derivation: the chain rule, backwards through the steps.

    Args:
        gain: ``(n, R, D)``.
        source: ``(n, R, D)``.
        terms: at most three networks, not elementwise.
        adjoint: :math:`\lambda_n`, ``(R, D)``.

    Returns:
        Adjoints after each step, ``(n, R, D)``, and the one before the first, ``(R, D)``.
    """
    fits = len(terms) <= _NETWORKS and all(len(term.block.slopes) <= _HIDDEN for term in terms)
    if not _applies(gain[:1].squeeze(0), [term.layers for term in terms]) or not fits:
        return None
    count, rows, width = gain.shape
    flags, sizes = np.zeros((_NETWORKS + 1, 3), dtype=np.int64), np.zeros((_NETWORKS, _HIDDEN + 2), dtype=np.int64)
    flags[_NETWORKS, 0] = rows
    zero = array(gain.new_zeros((1, 1)))
    factors, slopes = [zero] * (2 * _NETWORKS), [zero] * (_NETWORKS * _HIDDEN)
    weights, begin, room = [gain.new_empty(0)], 0, 0
    for i, term in enumerate(terms):
        block, depth = term.block, len(term.layers.weights)
        gate = None if block.gate is None else block.gate.view_as(gain)
        factors[2 * i] = _matrix((term.factor if gate is None else term.factor * gate).expand_as(gain))
        if term.extra is not None:
            factors[2 * i + 1] = _matrix(term.extra if gate is None else term.extra * gate)
        slopes[i * _HIDDEN : i * _HIDDEN + depth - 1] = [array(slope.reshape(count, -1)) for slope in block.slopes]
        flags[i] = depth, begin, room
        sizes[i, : depth + 1] = [width, *(weight.shape[0] for weight in term.layers.weights)]
        weights += [_oriented(weight.t()) for weight in reversed(term.layers.weights)]
        begin += sum(weight.numel() for weight in term.layers.weights)
        room += count * rows * int(sizes[i, 1:].sum())
    deltas = gain.new_empty(room)
    states = gain.new_empty((count + 1, rows, width))
    states[-1] = adjoint
    compiled(_kernels.recursion)(
        (flags, sizes),
        array(torch.cat(weights)),
        (_matrix(gain), _matrix(source), _matrix(states)),
        tuple(factors),
        tuple(slopes),
        array(deltas),
    )
    for term in terms:
        widths = [weight.shape[0] for weight in reversed(term.layers.weights)]
        parts = deltas.split([count * rows * each for each in widths] + [len(deltas) - count * rows * sum(widths)])
        term.block.deltas.extend(part.view(-1, each) for part, each in zip(parts, widths, strict=False))
        deltas = parts[-1]
    return states[1:], states[0]


# -------------------------------------------------------------------- from tensors to arrays
def _applies(states: Tensor, layers: Sequence[Layers | None]) -> bool:
    """Whether steps of these networks at states like those (R, D) are for the kernels."""
    if not serves(states):
        return False
    work = states.shape[0] * sum(weight.numel() for net in layers if net is not None for weight in net.weights)
    return states.shape[0] <= _MOST_ROWS and (torch.get_num_threads() == 1 or work <= _MOST_WORK)


def _are_known(layers: Sequence[Layers | None], rows: int) -> bool:
    """Whether the kernel of the path has all activations, and none that it is slow at for as many rows."""
    deep = [net for net in layers if net is not None and net.weights]
    slow = [net for net in deep if isinstance(net.spec.activation, nn.GELU)]
    units = rows * sum(len(weight) for net in slow for weight in net.weights[:-1])
    return units <= _MOST_GELU and all(code_of(net.spec.activation) is not None for net in deep)


class _Plan:
    """Structure of the three networks as `_kernels.simulate` reads it.

    Attributes:
        flags: (3, 8): number of weights (-1 where the value is known before), activation, whether elementwise; where
            parameters and pre-activations begin, and how many steps of these are kept; rows of the rate, and where it
            begins.
        sizes: (3, most weights + 1), inputs and outputs of the layers.
        bounds: (3, 2), low and span, 0 for none.
        parameters: flat weights and biases in the order of their use, each network's rate after them.
        room: number of pre-activations.
        widest: number of activations of the widest layer.
    """

    def __init__(self, layers: tuple[Layers | None, ...], shape: tuple[int, int, int], keep: Sequence[bool]) -> None:
        deepest = max(len(net.weights) for net in layers if net is not None)
        self.flags, self.bounds = np.zeros((_NETWORKS, 8), dtype=np.int64), np.zeros((_NETWORKS, 2))
        self.sizes = np.full((_NETWORKS, deepest + 1), shape[-1], dtype=np.int64)
        self.parameters: list[Tensor] = [layers[0].shift.new_empty(0)] if layers[0] is not None else []
        self.room, self.widest = 0, 0
        self._kept: list[list[tuple[int, tuple[int, int, int]]]] = []
        begin = 0
        for i, (net, wanted) in enumerate(zip(layers, keep, strict=True)):
            self._kept.append([])
            if net is None or _is_known(net):
                self.flags[i] = -1
                continue
            blocks, given = _blocks(net), len(self.parameters)
            matrices = [_oriented(weight) for weight in net.weights] if blocks is None else blocks
            for j, matrix in enumerate(matrices):
                self.parameters += [matrix] if j == 0 else [net.biases[j - 1], matrix]
            steps, rates = (shape[0] if wanted else 1), (0 if net.rate is None else net.rate.shape[1])
            code = code_of(net.spec.activation) or 0
            middle = begin + sum(part.numel() for part in self.parameters[given:])
            self.flags[i] = len(net.weights), code, blocks is not None, begin, self.room, steps, rates, middle
            self.sizes[i, 1 : len(net.weights) + 1] = [weight.shape[0] for weight in net.weights]
            self.bounds[i] = net.spec.bounds or (0, 0)
            if net.rate is not None:
                self.parameters.append(net.rate.reshape(-1))
            begin = middle + rates * shape[-1]
            for weight in net.weights[:-1]:
                size = (steps, shape[1], weight.shape[0])
                self._kept[i] += [(self.room, size)] if wanted else []
                self.room += math.prod(size)
                self.widest = max(self.widest, shape[1] * weight.shape[0])

    def kept(self, hidden: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The pre-activations that were wanted, (K, R, H), of each network."""
        drift, diffusion, control = (
            [hidden[begin : begin + math.prod(size)].view(size) for begin, size in places] for places in self._kept
        )
        return drift, diffusion, control


def _is_known(net: Layers | None) -> bool:
    """Whether the value of a coefficient does not depend on the state."""
    return net is None or not (net.weights or net.spec.has_rate or net.spec.bounds)


def _output(net: Layers | None, value: Tensor | None, zeros: Tensor) -> Tensor:
    """Where the kernel finds or writes values (K|1, R, D); that of an affine coefficient is overwritten every step."""
    if net is None or value is not None or not _is_known(net):
        return zeros.clone() if value is None else value
    return net.shift.expand(net.shift.shape[0], *zeros.shape[1:])


def _oriented(weight: Tensor) -> Tensor:
    """Weight (out, in), flat, as the products want it."""
    return (weight if weight.shape[0] <= _kernels.NARROW else weight.t()).reshape(-1)


def _blocks(net: Layers) -> tuple[Tensor, Tensor] | None:
    """Weights of an elementwise network without the entries that are 0; None if it is another, or has more layers."""
    return blocks_of(net.weights) if net.spec.elementwise else None


def _matrix(tensor: Tensor) -> np.ndarray:
    """(K, R H) of (K, R, H)."""
    return array(tensor.reshape(tensor.shape[0], -1))
