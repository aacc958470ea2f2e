"""One coefficient of a path, evaluated and differentiated by hand: no modules, no autograd, no temporaries to spare.

All tensors are flat: (K, R, D) with R the rows of the batch; those that do not depend on a step or on a row have size 1
there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ._elementwise import Elementwise, elementwise
from ._jit import linearise

__all__ = ["BLOCK_ROWS", "Block", "LayerSpec", "Layers", "is_small"]

BLOCK_ROWS = 1024  # rows of a block: its activations stay in the cache
# Multiply-adds of a Jacobian per step below which D products in a batch cost less than a dozen calls of a step.
_SMALL_WORK = 50_000

_IN_PLACE: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    # what `functional.silu(inplace=True)` calls; for few rows a third faster
    nn.SiLU: torch._C._nn.silu_,  # type: ignore[attr-defined]
    nn.Tanh: torch.tanh_,
    nn.ReLU: torch.relu_,
}


class LayerSpec(NamedTuple):
    """What of a `StateNetwork` is not a tensor."""

    depth: int  # number of weights
    has_rate: bool
    activation: nn.Module | None
    bounds: tuple[float, float] | None
    elementwise: bool

    @property
    def size(self) -> int:
        """Number of tensors: shift, weights, biases and rate."""
        return 1 + self.depth + max(0, self.depth - 1) + self.has_rate


class Block(NamedTuple):
    """A network on a block of steps: what its derivatives need. Rows and steps are one axis, (n R, ...)."""

    inputs: list[Tensor]  # what each weight is applied to: the states, then the activations
    slopes: list[Tensor]  # derivative of each activation
    gate: Tensor | None  # derivative of the bounds at the output
    deltas: list[Tensor]  # cotangents of the pre-activations, the last layer first, once something computed them


class Layers:
    """One coefficient: shift (K|1, R|1, H), weights, biases, rate (1, R|1, D)."""

    def __init__(self, spec: LayerSpec, tensors: tuple[Tensor, ...]) -> None:
        self.spec = spec
        self.tensors = tensors
        self.shift = tensors[0]
        self.weights = tensors[1 : 1 + spec.depth]
        self.biases = tensors[1 + spec.depth : 2 * spec.depth]
        self.rate = tensors[-1] if spec.has_rate else None

    def at(self, start: int, stop: int) -> Tensor:
        """Shift of a block of steps, (n|1, R|1, H)."""
        return self.shift[start:stop] if len(self.shift) > 1 else self.shift

    def affine(self, start: int, stop: int, states: Tensor) -> Tensor:
        """Value without weights, ``shift - rate * z``, at the states (n, R, D) of a block."""
        shift = self.at(start, stop)
        return shift if self.rate is None else torch.addcmul(shift, self.rate, states, value=-1)

    # ---------------------------------------------------------------- forwards
    def shifts(self, steps: int) -> tuple[Tensor, ...]:
        """Shift of every step, (R|1, H)."""
        return self.shift.unbind(0) if len(self.shift) > 1 else self.shift.unbind(0) * steps

    def stepper(self, kept: list[Tensor]) -> Callable[[int, Tensor, Tensor], Tensor]:
        """Function of a step, its shift and states (R, D) that gives the value.

        Pre-activations are written to `kept`, (K, R, H) for every hidden layer, unless it is empty.
        """
        addmm, add, addcmul = torch.addmm, torch.add, torch.addcmul
        rate = None if self.rate is None else self.rate[0]
        if not self.weights:
            if rate is None:
                return lambda _k, shift, _z: shift
            return lambda _k, shift, z: addcmul(shift, rate, z, value=-1)
        forget, keep = self.activate(), self.activate(in_place=False)
        first, *rest = (weight.t().contiguous() for weight in self.weights)
        hidden = list(zip(self.biases[:-1], rest[:-1], strict=True))
        last_bias, last = self.biases[-1], rest[-1]

        def step(_k: int, shift: Tensor, z: Tensor) -> Tensor:
            x = forget(addmm(shift, z, first))
            for bias, weight in hidden:
                x = forget(addmm(bias, x, weight))
            return addmm(last_bias, x, last)

        def keeping(k: int, shift: Tensor, z: Tensor) -> Tensor:
            x = keep(addmm(shift, z, first, out=outs[0][k]))
            for (bias, weight), out in zip(hidden, outs[1:], strict=True):
                x = keep(addmm(bias, x, weight, out=out[k]))
            return addmm(last_bias, x, last)

        outs = [buffer.unbind(0) for buffer in kept]
        value_at = keeping if kept else step
        if rate is None and self.spec.bounds is None:
            return value_at
        low, span = (0.0, 1.0) if self.spec.bounds is None else self.spec.bounds
        floor = torch.full((), low, dtype=first.dtype, device=first.device)

        def finish(k: int, shift: Tensor, z: Tensor) -> Tensor:
            value = value_at(k, shift, z)
            if rate is not None:
                value = value.addcmul_(rate, z, value=-1)
            return value if self.spec.bounds is None else add(floor, value.sigmoid_(), alpha=span)

        return finish

    def activate(self, *, in_place: bool = True) -> Callable[[Tensor], Tensor]:
        """The activation; it may overwrite its argument if `in_place`."""
        activation = self.spec.activation
        if activation is None:
            msg = "a network without weights has no activation"
            raise RuntimeError(msg)
        return _IN_PLACE.get(type(activation), activation) if in_place else activation

    # ---------------------------------------------------------------- derivatives on a block of steps
    @cached_property
    def compiled(self) -> Elementwise | None:
        """Derivatives of an elementwise network in machine code, where that applies."""
        return elementwise(self.spec.activation, self.shift, self.weights) if self.spec.elementwise else None

    def gradients(self) -> list[Tensor]:
        """Zeros to add to, one per tensor; nothing yet for a shift of every step, which is written block by block."""
        shift, *rest = self.tensors
        empty = torch.empty_like(shift) if len(shift) > 1 else torch.zeros_like(shift)
        return [empty, *(torch.zeros_like(tensor) for tensor in rest)]

    def evaluate(self, states: Tensor) -> Tensor:
        """Values at the states (K, R, D) of all steps, a block at a time."""
        activate, count = self.activate(), max(1, BLOCK_ROWS // states.shape[1])
        parts = []
        for start in range(0, len(states), count):
            z = states[start : start + count]
            x = self._first(start, start + len(z), z)
            for bias, weight in zip(self.biases, self.weights[1:], strict=True):
                x = torch.addmm(bias, activate(x), weight.t())
            x = x.view(z.shape)
            if self.rate is not None:
                x.addcmul_(self.rate, z, value=-1)
            if self.spec.bounds is not None:
                x = x.sigmoid_().mul_(self.spec.bounds[1]).add_(self.spec.bounds[0])
            parts.append(x)
        return torch.cat(parts)

    def _first(self, start: int, stop: int, states: Tensor) -> Tensor:
        """Pre-activations of the first layer at the states of a block, (n R, H)."""
        product = states.reshape(-1, states.shape[-1]) @ self.weights[0].t()
        return product.view(*states.shape[:2], -1).add_(self.at(start, stop)).view(product.shape)

    def linearise(self, start: int, stop: int, states: Tensor, value: Tensor, kept: list[Tensor]) -> Block:
        """Activations and their derivatives at the states (n, R, D) of a block, where the value is known.

        Pre-activations (n, R, H) of the hidden layers that were kept are not computed again. Where machine code does
        it, nothing of the hidden layer is computed here.
        """
        z = states.reshape(-1, states.shape[-1])
        rows = len(z)
        inputs, slopes = [z], []
        for i in range(0 if self.compiled is not None else len(self.biases)):
            if kept:
                hidden = kept[i].reshape(rows, -1)
            elif i == 0:
                hidden = self._first(start, stop, states)
            else:
                hidden = torch.addmm(self.biases[i - 1], inputs[-1], self.weights[i].t())
            x, slope = self._slope(hidden)
            inputs.append(x)
            slopes.append(slope)
        gate = None
        if self.spec.bounds is not None:
            low, span = self.spec.bounds
            sigmoid = (value.reshape(rows, -1) - low) / span
            gate = span * sigmoid * (1 - sigmoid)
        return Block(inputs, slopes, gate, [])

    def _slope(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        found = linearise(self.spec.activation, hidden)
        if found is not None:
            return found
        if isinstance(self.spec.activation, nn.Tanh):
            x = hidden.tanh()
            return x, torch.addcmul(torch.ones((), dtype=x.dtype, device=x.device), x, x, value=-1)
        with torch.enable_grad():
            leaf = hidden.detach().requires_grad_()
            x = self.activate(in_place=False)(leaf)
            (slope,) = torch.autograd.grad(x, leaf, leaf.new_ones(()).expand_as(leaf))
        return x.detach(), slope

    def diagonal(self, block: Block) -> Tensor:
        """Derivative of output i by z_i of an elementwise network with one hidden layer, (n R, D)."""
        if self.compiled is not None:
            slope = self.compiled.diagonal(block.inputs[0])
        else:
            first, second = self.weights
            slope = block.slopes[0] @ (second * first.t()).t()
        return slope if block.gate is None else slope.mul_(block.gate)

    def jacobian(self, block: Block) -> Tensor:
        """Derivative of the network without its rate, (n R, D_out, D)."""
        product = self.weights[-1].unsqueeze(0)
        for slope, weight in zip(reversed(block.slopes), reversed(self.weights[:-1]), strict=True):
            product = (product * slope.unsqueeze(-2)) @ weight
        return product if block.gate is None else product * block.gate.unsqueeze(-1)

    def pull(self, block: Block, cotangent: Tensor) -> list[Tensor]:
        """Cotangents of the pre-activations of every layer, the last first, from that of the output (n R, D)."""
        delta = cotangent if block.gate is None else cotangent * block.gate
        deltas = [delta]
        for slope, weight in zip(reversed(block.slopes), reversed(self.weights[1:]), strict=True):
            delta = (delta @ weight).mul_(slope)
            deltas.append(delta)
        return deltas

    def accumulate(
        self, gradients: list[Tensor], block: Block | None, cotangent: Tensor, states: Tensor, span: tuple[int, int]
    ) -> None:
        """Add what a block of steps gives to the gradients of `tensors`; cotangents of its values are (n, R, D)."""
        rows = cotangent.reshape(-1, cotangent.shape[-1])
        if self.rate is not None:
            gradients[-1].sub_(_reduce((cotangent * states).sum(0, keepdim=True), gradients[-1]))
        first = cotangent
        if block is not None and self.compiled is not None:
            self.compiled.accumulate(gradients, block.inputs[0], rows if block.gate is None else rows * block.gate)
            return
        if block is not None and self.spec.elementwise and self.shift.shape[:2] == (1, 1):
            self._accumulate_elementwise(gradients, block, rows)
            return
        if block is not None:
            deltas = (block.deltas or self.pull(block, rows))[::-1]
            depth = self.spec.depth
            for i, (delta, given) in enumerate(zip(deltas, block.inputs, strict=True)):
                gradients[1 + i].addmm_(delta.t(), given)
                if i:
                    gradients[depth + i].add_(delta.sum(0))
            first = deltas[0].view(*states.shape[:2], -1)
        if len(self.shift) > 1:
            gradients[0][span[0] : span[1]] = _reduce(first, gradients[0][span[0] : span[1]])
        else:
            gradients[0].add_(_reduce(first.sum(0, keepdim=True), gradients[0]))

    def _accumulate_elementwise(self, gradients: list[Tensor], block: Block, rows: Tensor) -> None:
        r"""For one hidden layer and block-diagonal weights, without forming the cotangents of the hidden layer.

        That of unit m, which feeds the one output i, is :math:`\delta_i W_{im} a'_m`; summed over rows, times its input
        or 1, it is :math:`W_{im}` times a product of the slopes with :math:`\delta_i z_i` or :math:`\delta_i`. Entries
        off the blocks are no parameters.
        """
        shift, first, second, bias = gradients[:4]
        delta = rows if block.gate is None else rows * block.gate
        weight, width = self.weights[1].t(), rows.shape[-1]
        products = block.slopes[0].t() @ torch.cat([delta * block.inputs[0], delta], -1)  # (H, 2 D)
        first.addcmul_(weight, products[:, :width])
        shift.add_((weight * products[:, width:]).sum(-1))
        second.addmm_(delta.t(), block.inputs[1])
        bias.add_(delta.sum(0))


def is_small(layers: tuple[Layers | None, ...], rows: int, width: int) -> bool:
    """Whether the arithmetic of a step is nothing beside the calls that it takes."""
    weights = sum(
        weight.numel() for net in layers if net is not None and not net.spec.elementwise for weight in net.weights
    )
    return rows * width * weights <= _SMALL_WORK


def _reduce(value: Tensor, like: Tensor) -> Tensor:
    """Sum over the rows where the other tensor has one for all."""
    return value if like.shape[1] == value.shape[1] else value.sum(1, keepdim=True)
