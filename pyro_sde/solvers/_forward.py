"""The loop of `networks.py`: states and values of the networks, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._layers import Layers, is_small
from .compiled import simulate as compiled_simulate

__all__ = ["simulate"]

Nets = tuple[Layers, Layers, Layers | None]  # drift, diffusion, control
# States (K + 1, R, D), values (K, R, D) of the networks with weights, and their pre-activations if they were kept.
Simulated = tuple[Tensor, list[Tensor | None], tuple[list[Tensor], list[Tensor], list[Tensor]]]

_KEPT_BYTES = 2**25  # pre-activations beyond this are computed anew: that costs less than memory from the system


def simulate(nets: Nets, initial: Tensor, increments: Tensor, steps: Tensor, *, keep: bool) -> Simulated:
    """Run the loop; `keep` asks for the pre-activations too, and gets them where that is worth it."""
    rows, width = initial.shape
    wanted = tuple(keep and _is_kept(net, increments) for net in nets)
    compiled = compiled_simulate(nets, initial, increments, steps, wanted)
    if compiled is not None:
        return compiled
    if is_small(nets, rows, width) and _can_merge(nets, steps):
        states = _merged(nets, initial, increments, steps)
        before = states[:-1]
        values = [net.evaluate(before) if net is not None and net.weights else None for net in nets]
        return states, values, ([], [], [])
    return _loop(nets, initial, increments, steps, wanted)


def _loop(nets: Nets, initial: Tensor, increments: Tensor, steps: Tensor, wanted: tuple[bool, ...]) -> Simulated:
    drift, diffusion, control = nets
    count, shared = len(increments), steps.shape[1] == 1
    sizes: Any = steps.flatten().tolist() if shared else steps.unbind(0)
    kept = [_buffers(net, increments) if keep else [] for net, keep in zip(nets, wanted, strict=True)]
    # shifts of a network that is not there are never looked at
    shifts = [(None,) * count if net is None else net.shifts(count) for net in (drift, control, diffusion)]
    drift_at, diffusion_at = drift.stepper(kept[0]), diffusion.stepper(kept[1])
    control_at = None if control is None else control.stepper(kept[2])
    fixed = diffusion.rate is None and not diffusion.weights and control is None
    noise = increments * diffusion.shift if fixed else increments
    z, states = initial, [initial]
    drifts, diffusions, controls = ([], [], [])
    each = zip(sizes, noise.unbind(0), *shifts, strict=True)
    for k, (h, driver, for_drift, for_control, for_diffusion) in enumerate(each):
        f = drift_at(k, for_drift, z)
        drifts.append(f)
        if fixed:
            z = driver.add(z)
        else:
            if control_at is not None:
                u = control_at(k, for_control, z)
                controls.append(u)
                driver = driver.add(u, alpha=h) if shared else driver.addcmul(u, h)
            sigma = diffusion_at(k, for_diffusion, z)
            diffusions.append(sigma)
            z = z.addcmul(sigma, driver)
        z = z.add_(f, alpha=h) if shared else z.addcmul_(f, h)
        states.append(z)
    lists = zip(nets, (drifts, diffusions, controls), strict=True)
    values = [torch.stack(v) if net is not None and net.weights else None for net, v in lists]
    return torch.stack(states), values, (kept[0], kept[1], kept[2])


def _is_kept(net: Layers | None, like: Tensor) -> bool:
    """Whether the pre-activations of a network are worth keeping: not if many, as those of elementwise networks are."""
    if net is None or net.spec.elementwise or not net.weights:
        return False
    width = sum(len(weight) for weight in net.weights[:-1])
    return like.shape[0] * like.shape[1] * width * like.element_size() <= _KEPT_BYTES


def _buffers(net: Layers | None, like: Tensor) -> list[Tensor]:
    """Room for the pre-activations of the hidden layers."""
    weights = [] if net is None else net.weights[:-1]
    return [like.new_empty((*like.shape[:2], len(weight))) for weight in weights]


def _can_merge(nets: Nets, steps: Tensor) -> bool:
    """Whether `_merged` serves: one step size for all rows, a drift network, one activation, layers that add up."""
    drift, diffusion, control = nets
    deep = [net for net in nets if net is not None and net.weights]
    return (
        steps.shape[1] == 1
        and bool(drift.weights)
        and (control is None or bool(control.weights))
        and diffusion.rate is None
        and (control is None or control.rate is None)
        and drift.spec.bounds is None
        and (control is None or control.spec.bounds is None)
        and len({type(net.spec.activation) for net in deep}) == 1
        and (not diffusion.weights or diffusion.spec.bounds is not None)
    )


def _merged(nets: Nets, initial: Tensor, increments: Tensor, steps: Tensor) -> Tensor:
    """States of a loop whose calls cost more than their arithmetic: as few calls per step as there can be.

    The first layers of all networks are one product; the second layers read the whole of it through zeros. The last
    layers add to the state at once, and everything that does not depend on it was added up before.
    """
    drift, diffusion, control = nets
    deep = [net for net in nets if net is not None and net.weights]
    first, shifts, spans = _first_layers(deep, len(increments))
    drift_of = _chain(drift, spans[0], first)
    control_of = None if control is None else _chain(control, spans[-1], first)
    moves = steps * drift.biases[-1]
    drivers = increments if control is None else increments + steps * control.biases[-1]
    gate_of, sigma, bias, low, span = None, None, drift.biases[-1], 0.0, 1.0
    if diffusion.weights:
        gate_of, (low, span) = _chain(diffusion, spans[1], first), diffusion.spec.bounds or (low, span)
        bias = diffusion.biases[-1]
    else:
        sigma = diffusion.shifts(len(increments))
    if control is None:  # the driver is known: so is what the fixed part of the diffusion makes of it
        moves = moves + (diffusion.shift if gate_of is None else low) * drivers
        drivers = span * drivers
    floor = first.new_full((), low)
    scale = None if drift.rate is None else (1 - steps * drift.rate).unbind(0)
    activate, addmm, add = drift.activate(), torch.addmm, torch.add
    z, states = initial, [initial]
    each = zip(steps.flatten().tolist(), shifts, moves.unbind(0), drivers.unbind(0), strict=True)
    for k, (h, shift, move, driver) in enumerate(each):
        x = activate(addmm(shift, z, first))
        base = move.add(z) if scale is None else move.addcmul(scale[k], z)
        following = drift_of(base, x, h)
        if control_of is not None:
            driver = control_of(driver, x, h)
        if gate_of is not None:
            gate = gate_of(bias, x, 1.0).sigmoid_()
            following.addcmul_(gate if control_of is None else add(floor, gate, alpha=span), driver)
        elif control_of is not None and sigma is not None:
            following.addcmul_(sigma[k], driver)
        z = following
        states.append(z)
    return torch.stack(states)


def _first_layers(deep: list[Layers], count: int) -> tuple[Tensor, tuple[Tensor, ...], list[slice]]:
    """First weights side by side (D, H), shift of every step, and where each network stands among the H."""
    first = torch.cat([net.weights[0] for net in deep]).t().contiguous()
    steps, rows = (max(net.shift.shape[i] for net in deep) for i in (0, 1))
    shifts = torch.cat([net.shift.expand(steps, rows, -1) for net in deep], -1).unbind(0)
    ends = [0]
    for net in deep:
        ends.append(ends[-1] + net.weights[0].shape[0])
    return first, shifts * count if steps == 1 else shifts, [slice(*pair) for pair in zip(ends, ends[1:], strict=False)]


def _chain(net: Layers, place: slice, first: Tensor) -> Callable[[Tensor, Tensor, float], Tensor]:
    """Function (base, all first activations, h) that gives ``base + h * (the last layer without its bias)``."""
    second = first.new_zeros(first.shape[1], net.weights[1].shape[0])
    second[place] = net.weights[1].t()
    *between, last = (second, *(weight.t().contiguous() for weight in net.weights[2:]))
    hidden = list(zip(net.biases[:-1], between, strict=True))
    activate, addmm = net.activate(), torch.addmm

    def chain(base: Tensor, x: Tensor, h: float) -> Tensor:
        for bias, weight in hidden:
            x = activate(addmm(bias, x, weight))
        return addmm(base, x, last, alpha=h)

    return chain
