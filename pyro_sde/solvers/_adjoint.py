"""The adjoint recursion of `networks.py`, a block of steps at a time, backwards."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.scan import linear_recurrence
from ._layers import BLOCK_ROWS, Block, Layers, is_small
from .compiled import recursion as compiled_recursion

__all__ = ["FlatPath", "PathAdjoint"]


class FlatPath(NamedTuple):
    """A path that was simulated: K steps of R rows."""

    layers: tuple[Layers, Layers, Layers | None]  # drift, diffusion, control
    states: Tensor  # (K + 1, R, D)
    values: tuple[Tensor | None, Tensor | None, Tensor | None]  # of the networks with weights, (K, R, D)
    hidden: tuple[list[Tensor], list[Tensor], list[Tensor]]  # pre-activations (K, R, H) where they were kept
    increments: Tensor  # (K, R, D)
    steps: Tensor  # (K, R|1, 1)


class _Term(NamedTuple):
    """A network through whose Jacobian the recursion goes: its cotangent is ``factor * lambda + extra``."""

    layers: Layers
    block: Block
    factor: Tensor  # (n, R|1, 1 or D)
    extra: Tensor | None  # (n, R, D)

    def cotangent(self, adjoint: Tensor) -> Tensor:
        """Cotangent of the value, (n R, D), from the adjoints after each step, (n, R, D)."""
        value = adjoint * self.factor if self.extra is None else torch.addcmul(self.extra, adjoint, self.factor)
        return value.reshape(-1, value.shape[-1])


class PathAdjoint:
    """Gradients of everything that made a path, from those that arrive at its states and values."""

    def __init__(
        self, path: FlatPath, arriving: tuple[Tensor | None, ...], *, wants_increments: bool, wants_steps: bool
    ) -> None:
        self.path = path
        self.at_states, *self.at_values = arriving
        self.increments = torch.empty_like(path.increments) if wants_increments else None
        self.steps = torch.zeros_like(path.steps) if wants_steps else None
        self.networks = [None if net is None else net.gradients() for net in path.layers]

    def run(self) -> Tensor:
        """Fill all gradients; returns that of the first state, (R, D)."""
        states = self.path.states
        adjoint = torch.zeros_like(states[0]) if self.at_states is None else self.at_states[-1]
        count = max(1, BLOCK_ROWS // states.shape[1])
        for stop in range(len(states) - 1, 0, -count):
            adjoint = self._block(max(0, stop - count), stop, adjoint)
        return adjoint

    def _block(self, start: int, stop: int, adjoint: Tensor) -> Tensor:
        drift, diffusion, control = self.path.layers
        z, h = self.path.states[start:stop], _slice(self.path.steps, start, stop)
        f, sigma, u = (self._value(i, start, stop, z) for i in range(3))
        driver = self.path.increments[start:stop]
        driver = driver if u is None else driver + u * h
        factors = (h, driver, None if sigma is None else sigma * h)
        # lambda_k = gain * lambda_{k+1} + source + (Jacobians of the terms)
        gain = torch.ones_like(z)
        source = torch.zeros_like(z) if self.at_states is None else self.at_states[start:stop].clone()
        terms: list[_Term] = []
        blocks: list[Block | None] = []
        for i, net in enumerate((drift, diffusion, control)):
            factor, extra = factors[i], self._extra(i, start, stop)
            block = None
            if net is not None and factor is not None:
                if net.weights:
                    hidden = [kept[start:stop] for kept in self.path.hidden[i]]
                    block = net.linearise(start, stop, z, self.path.values[i][start:stop], hidden)  # type: ignore[index]
                    if net.spec.elementwise:
                        slope = net.diagonal(block).view_as(z)
                        gain.addcmul_(slope, factor)
                        if extra is not None:
                            source.addcmul_(slope, extra)
                    else:
                        terms.append(_Term(net, block, factor, extra))
                if net.rate is not None:
                    gain.addcmul_(net.rate, factor.expand_as(z), value=-1)
                    if extra is not None:
                        source.addcmul_(net.rate, extra, value=-1)
            blocks.append(block)
        found = compiled_recursion(gain, source, terms, adjoint)
        if found is None:
            recursion = _by_scan if is_small(self.path.layers, z.shape[1], z.shape[2]) else _by_step
            found = recursion(gain, source, terms, adjoint)
        after, adjoint = found
        self._collect(start, stop, after, blocks, (f, sigma, u), factors)
        return adjoint

    def _value(self, i: int, start: int, stop: int, z: Tensor) -> Tensor | None:
        net, value = self.path.layers[i], self.path.values[i]
        if net is None:
            return None
        return net.affine(start, stop, z) if value is None else value[start:stop]

    def _extra(self, i: int, start: int, stop: int) -> Tensor | None:
        gradient = self.at_values[i]
        return None if gradient is None else gradient[start:stop]

    def _collect(
        self,
        start: int,
        stop: int,
        after: Tensor,
        blocks: list[Block | None],
        values: tuple[Tensor | None, ...],
        factors: tuple[Tensor | None, ...],
    ) -> None:
        """Gradients of tensors, increments and steps from the adjoints after each step of a block."""
        f, sigma, u = values
        for i, net in enumerate(self.path.layers):
            factor, gradients = factors[i], self.networks[i]
            if net is None or factor is None or gradients is None:
                continue
            extra = self._extra(i, start, stop)
            cotangent = after * factor if extra is None else torch.addcmul(extra, after, factor)
            net.accumulate(gradients, blocks[i], cotangent, self.path.states[start:stop], (start, stop))
        if sigma is None or f is None:
            return
        if self.increments is not None:
            torch.mul(after, sigma, out=self.increments[start:stop])
        if self.steps is not None:
            rate = f if u is None else f + sigma * u
            total = (after * rate).sum(-1, keepdim=True)
            self.steps[start:stop] = total if self.steps.shape[1] > 1 else total.sum(1, keepdim=True)


def _slice(tensor: Tensor, start: int, stop: int) -> Tensor:
    return tensor[start:stop] if len(tensor) > 1 else tensor


def _by_scan(gain: Tensor, source: Tensor, terms: list[_Term], adjoint: Tensor) -> tuple[Tensor, Tensor]:
    """Adjoints after each step, and the one before the first, by Jacobians of all steps at once."""
    width = gain.shape[-1]
    matrix = torch.diag_embed(gain)
    for term in terms:
        jacobian = term.layers.jacobian(term.block).view(*gain.shape, width)
        matrix.addcmul_(jacobian, term.factor.expand_as(gain).unsqueeze(-1))
        if term.extra is not None:
            source = source + (term.extra.unsqueeze(-2) @ jacobian).squeeze(-2)
    states = linear_recurrence(matrix, source, adjoint, reverse=True)
    return states[1:], states[0]


def _by_step(gain: Tensor, source: Tensor, terms: list[_Term], adjoint: Tensor) -> tuple[Tensor, Tensor]:
    """As `_by_scan`, one product of the adjoint with each layer per step."""
    each_term = []
    for term in terms:
        gate = None if term.block.gate is None else term.block.gate.view_as(gain)
        factor = (term.factor if gate is None else term.factor * gate).expand_as(gain).unbind(0)
        extra = term.extra if gate is None or term.extra is None else term.extra * gate
        slopes = [slope.view(*gain.shape[:2], -1) for slope in reversed(term.block.slopes)]
        deltas = [torch.empty_like(each) for each in (gain, *slopes)]
        term.block.deltas.extend(delta.view(-1, delta.shape[-1]) for delta in deltas)
        output, *hidden = (delta.unbind(0) for delta in deltas)
        weights = reversed(term.layers.weights[1:])
        layers = [(w, slope.unbind(0), to) for w, slope, to in zip(weights, slopes, hidden, strict=True)]
        each_term.append((factor, None if extra is None else extra.unbind(0), output, layers, term.layers.weights[0]))
    addcmul, mm, addmm, mul = torch.addcmul, torch.mm, torch.addmm, torch.mul
    gains, sources = gain.unbind(0), source.unbind(0)
    after = []
    for k in range(len(gains) - 1, -1, -1):
        after.append(adjoint)
        before = addcmul(sources[k], adjoint, gains[k])
        for factor, extra, output, layers, first in each_term:
            if extra is None:
                delta = mul(adjoint, factor[k], out=output[k])
            else:
                delta = addcmul(extra[k], adjoint, factor[k], out=output[k])
            for weight, slope, to in layers:
                delta = mm(delta, weight, out=to[k]).mul_(slope[k])
            before = addmm(before, delta, first)
        adjoint = before
    return torch.stack(after[::-1]), adjoint
