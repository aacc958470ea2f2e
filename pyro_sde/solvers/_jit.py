"""What runs kernels as machine code: numba, an optional package (extra ``pyro_sde[fast]``) imported by the first call.

Compiling takes some seconds per floating type and is done once per installation: numba keeps the machine code in the
folder that its variable ``NUMBA_CACHE_DIR`` names, in ``__pycache__`` or in the user's cache folder, in this order;
where it can write to none of them, every process compiles anew. It notices changes of the file of a kernel, but not of
`_elementary.py`, which kernels call: who edits that removes the folder, or touches `_kernels.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..ops.jit import may_compile
from . import _elementary, _kernels

__all__ = ["array", "code_of", "compiled", "linearise", "serves"]

# Sums of products may be reordered, so that they vectorise. Not-a-numbers and infinities stay what they are, for the
# check of the path relies on them; divisions by zero raise nothing. Slices of arrays count no references: kernels
# allocate nothing, and at one row the counting took half of the time of a step.
_OPTIONS: dict[str, Any] = {"_nrt": False, "error_model": "numpy", "fastmath": {"contract", "reassoc"}}
_INNER = {"no_cfunc_wrapper": True, "no_cpython_wrapper": True}  # called from compiled code only
# Sums that round on purpose; a loop vectorises only if they are inlined.
_ROUNDING = _OPTIONS | _INNER | {"fastmath": {"contract"}, "forceinline": True}
_ACTIVATIONS: dict[type[nn.Module], int] = {nn.SiLU: 0, nn.Tanh: 1, nn.ReLU: 2, nn.ELU: 3, nn.Softplus: 4, nn.GELU: 5}


def serves(tensor: Tensor) -> bool:
    """Whether kernels may run on tensors like this one: numba, the setting, the device and the type allow it."""
    ours = tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64)
    return ours and may_compile() and _numba_is_there()


def array(tensor: Tensor) -> np.ndarray:
    """Memory of a tensor, or of a contiguous copy, as a kernel takes it."""
    return tensor.detach().contiguous().numpy()


def code_of(activation: nn.Module | None) -> int | None:
    """What kernels know an activation by; None for one that they do not know."""
    if isinstance(activation, nn.ELU) and activation.alpha != 1:
        return None
    if isinstance(activation, nn.Softplus) and (activation.beta, activation.threshold) != (1, 20):
        return None
    if isinstance(activation, nn.GELU) and activation.approximate != "none":
        return None
    return _ACTIVATIONS.get(type(activation))  # type: ignore[arg-type]


def linearise(activation: nn.Module | None, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Activation of all entries and its derivative in one pass; None where the kernels do not apply.

    Three times faster than torch for SiLU: that takes two passes and does not vectorise the second. Records no graph.
    """
    code = code_of(activation)
    if code is None or code >= _elementary.SLOW or not serves(x):
        return None
    x = x.detach().contiguous()
    value, slope = torch.empty_like(x), torch.empty_like(x)
    compiled(_elementary.linearise)(code, array(x.view(-1)), array(value.view(-1)), array(slope.view(-1)))
    return value, slope


@functools.cache
def _numba_is_there() -> bool:
    try:
        from numba import types
        from numba.extending import overload, register_jitable
    except ImportError:  # absent, or too old for the installed numpy
        return False

    def choose(single: Callable[..., Any], double: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x: (lambda x: single(x)) if x == types.float32 else (lambda x: double(x))

    # lets compiled code call these functions
    for function, versions in _elementary.BY_TYPE.items():
        for version in versions:
            register_jitable(**_ROUNDING)(version)
        overload(function)(choose(*versions))
    for function in _elementary.ELEMENTARY:
        register_jitable(**_ROUNDING)(function)
    for function in _kernels.ARITHMETIC:
        register_jitable(**_OPTIONS | _INNER)(function)
    return True


@functools.cache
def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """The kernel in machine code; for each floating type, its first call compiles."""
    from numba import njit

    options = {"nogil": True, "no_cfunc_wrapper": True, **_OPTIONS}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to cache in
        return njit(**options)(function)
