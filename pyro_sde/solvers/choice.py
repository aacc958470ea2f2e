"""Which way a path gets its gradient: the one place where this is decided."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops.grid import TimeGrid
from ..sde.base import SDE
from .execution import Execution
from .networks import NetworkPath, describe

__all__ = ["Choice", "choose"]

# Rows of a step up to which the layers path beats autograd through the loop: what it saves are calls, and what it adds
# is a second evaluation of the layers. `bench backward`, one core, hidden width 128: 1.2x faster at 64 rows, 1.1x at
# 128, equal at 256, 0.9x at 512, 0.8x at 1024.
_LAYER_ROWS = 256
# Multiply-adds per step, rows x parameters x (D + 3), below which D + 3 batched passes cost less than a recorded step.
# `bench backward`, one core: 2.4x faster at 3 000, 1.6x at 34 000 and 65 000, 1.2x at 134 000, 1.4x slower at 380 000.
_PARALLEL_WORK = 100_000
_FEW_STEPS = 8  # not worth a batched call
_GRAPH_NODES = 1000  # a captured tensor may hang on an encoder: its graph is not work of a step, and is not searched


class Choice(NamedTuple):
    """How to run the steps: "layers" with the flat problem, "parallel" or "loop"."""

    method: str
    layers: NetworkPath | None = None


def choose(
    execution: Execution,
    sde: SDE,
    grid: TimeGrid,
    initial: Tensor,
    standard_normal: Tensor,
    rows: tuple[Tensor | None, ...],
) -> Choice:
    """The fastest way by measured cost, unless `execution` names one. Results do not depend on it beyond round-off.

    In a trace of TorchScript or under functional transforms it is the loop. Coefficients that offer their layers are
    run by them, unless the batch is large. For others, the time-parallel pass is taken where a step is little work: the
    coefficients are called once, to count the parameters that a step multiplies with, also those that a function
    captured, but not those behind inputs, which are applied before the loop. It is never taken without something to
    differentiate, nor for coefficients that take one time at a time.

    Shape:
        initial: ``(..., D)`` · standard_normal: ``(K, ..., M)`` · rows: ``(*batch, K, C)`` each.
    """
    wanted = execution.backward
    functional = torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()
    if functional or wanted == "loop" or initial.numel() == 0 or standard_normal.numel() == 0:
        return Choice("loop")
    most = _LAYER_ROWS if wanted == "auto" and torch.is_grad_enabled() else math.inf
    if wanted in ("auto", "layers") and initial[..., 0].numel() <= most:
        layers = describe(sde, grid, initial, standard_normal, rows)
        if layers is not None and len(layers.initial) <= most:  # the grid or the inputs may have more series
            return Choice("layers", layers)
    if wanted != "layers" and _prefers_parallel(sde, grid, initial, standard_normal, rows, ask=wanted == "auto"):
        return Choice("parallel")
    return Choice("loop")


def _prefers_parallel(
    sde: SDE,
    grid: TimeGrid,
    initial: Tensor,
    standard_normal: Tensor,
    rows: tuple[Tensor | None, ...],
    *,
    ask: bool,
) -> bool:
    """Whether there is something to differentiate and, if `ask`, whether the parallel pass is worth it."""
    if not torch.is_grad_enabled() or (ask and (grid.num_steps < _FEW_STEPS or not sde.takes_all_times)):
        return False
    evaluate, hoisted = sde.evaluator(rows)
    first = tuple(None if row is None else row[..., 0, :].detach() for row in hoisted)
    z, dt = initial.detach(), grid.steps[..., :1].detach()
    coefficients = evaluate(grid.times[..., :1].detach(), z, first)
    change = coefficients.total_drift(sde.noise) * dt
    outputs = [tensor for tensor in (change, coefficients.diffusion) if tensor.requires_grad]
    given = [initial, standard_normal, grid.steps, *(row for row in rows if row is not None)]
    if not outputs and not any(tensor.requires_grad for tensor in given):
        return False
    if not ask:
        return True
    width = initial.shape[-1]
    count = torch.broadcast_shapes(change.shape[:-1], z.shape[:-1]).numel()
    return count * (_captured_size(outputs) + width) * (width + 3) <= _PARALLEL_WORK


def _captured_size(outputs: list[Tensor]) -> int:
    """Number of scalars in the leaf tensors that the graph of some outputs reaches, as far as it matters."""
    pending: list[Any] = [output.grad_fn if output.grad_fn is not None else output for output in outputs]
    seen: set[Any] = set()
    total = 0
    while pending and total <= _PARALLEL_WORK and len(seen) < _GRAPH_NODES:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, Tensor):
            total += node.numel()
        elif hasattr(node, "variable"):
            total += node.variable.numel()
        else:
            pending += [following for following, _ in node.next_functions]
    return total
