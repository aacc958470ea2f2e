"""Which form of a recursion runs: the one place where this is decided, from measured cost."""

from __future__ import annotations

import torch
from torch import Tensor

from ._kalman_compiled import available
from ._kalman_gradients import filter_compiled, filter_parallel, information_compiled, recurrence_compiled
from ._kalman_loop import ChainTensors, filter_loop, information_loop, recurrence_loop
from ._kalman_scan import filter_scan, information_scan, moments_scan, recurrence_scan
from .jit import may_compile

__all__ = ["choose_form", "run_filter", "run_information", "run_moments", "run_recurrence"]

# batch x D x D up to which the scan beats the loop without numba. `bench kalman`, one core, evidence and gradient: scan
# 74x faster at 9 (one series, T = 1000), 2.4x at 576 (64 series), equal at 2 500 (D = 50), loop 1.9x faster at 9 000.
_SCAN_ENTRIES = 2500


def choose_form(method: str, state: Tensor) -> str:
    """The form "compiled", "loop" or "scan" of a recursion over states ``(..., D)``.

    The compiled loop beats the scan 4 to 6 times on a CPU, so it runs wherever it can: numba is there, tensors are on
    the CPU, and neither a functional transform nor a trace is active. Without it the scan is ahead unless the matrices
    of one step already are enough work. Results do not depend on the answer beyond round-off.

    Raises:
        ValueError: if `method` is none of the three.
    """
    if method not in ("auto", "sequential", "parallel"):
        msg = f'`method` must be "auto", "sequential" or "parallel", received {method!r}.'
        raise ValueError(msg)
    if method == "parallel":
        return "scan"
    on_cpu = state.device.type == "cpu"
    if on_cpu and not _transformed() and may_compile() and available():
        return "compiled"
    if method == "sequential" or (on_cpu and state.numel() * state.shape[-1] > _SCAN_ENTRIES):
        return "loop"
    return "scan"


def _transformed() -> bool:
    return torch._C._are_functorch_transforms_active() or torch.jit.is_tracing()


def run_filter(method: str, chain: ChainTensors, rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Filtered means and covariances, and the log-evidence without 2 pi."""
    form = choose_form(method, chain.mean)
    if form == "scan":
        return (filter_scan if _transformed() else filter_parallel)(chain, rows, values)
    return {"compiled": filter_compiled, "loop": filter_loop}[form](chain, rows, values)


def run_information(method: str, chain: ChainTensors, rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Information matrices and vectors of the observations from each time on."""
    form = choose_form(method, chain.mean)
    run = {"compiled": information_compiled, "loop": information_loop, "scan": information_scan}[form]
    return run(chain, rows, values)


def run_moments(method: str, chain: ChainTensors) -> tuple[Tensor, Tensor]:
    """Means ``(B, T, D)`` and covariances ``(B, T, D, D)`` of a chain: a filter that sees nothing."""
    form = choose_form(method, chain.mean)
    if form == "scan":
        return moments_scan(chain)
    batch, count, dim = chain.offset.shape
    rows = chain.mean.new_zeros(batch, count + 1, 0, dim)
    run = {"compiled": filter_compiled, "loop": filter_loop}[form]
    return run(chain, rows, rows[..., 0])[:2]


def run_recurrence(method: str, initial: Tensor, transition: Tensor, increments: Tensor) -> Tensor:
    """States of ``x <- A x + b``."""
    form = choose_form(method, initial)
    run = {"compiled": recurrence_compiled, "loop": recurrence_loop, "scan": recurrence_scan}[form]
    return run(initial, transition, increments)
