r"""Networks in lower precision inside a model of full precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Autocast"]


class Autocast(nn.Module):
    r"""A network whose matrix products run in lower precision, with inputs and outputs of full precision.

    .. math:: y = \mathrm{float}\big(f_{\text{bf16}}(x)\big)

    For drifts, controls and decoders that are wide enough for it to pay (hundreds of units on a GPU with bfloat16
    units; on a CPU it is usually slower). ``torch.autocast`` around a whole loss does not work: it turns times, laws
    and log-densities to bfloat16, whose 8 bits are too few for sums over a path, and path laws raise. Here only the
    network is cast; states, noise and densities keep their type, and so do weights, their gradients and the optimiser.
    bfloat16 has the range of float32, so losses need no scaling.

    Does not support networks that return anything but a tensor (encoders). A `ControlNet` inside loses its shortcut,
    which evaluates the part of the context once for all steps.

    Args:
        module: network, ``(..., tensors) -> tensor``.
        dtype: lower precision, ``torch.bfloat16`` or ``torch.float16``.

    Shape:
        those of `module`; the output has the dtype of the last argument. float64 stays float64 throughout.

    Raises:
        ValueError: if `dtype` is not one of the two.
        TypeError: at use if the network does not return a tensor.

    References:
        Micikevicius et al. (2018), Mixed precision training, arXiv 1710.03740.

    Example:
        >>> network = Autocast(nn.Linear(2, 3))
        >>> network(torch.zeros(5, 2)).dtype
        torch.float32
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        if dtype not in (torch.bfloat16, torch.float16):
            msg = f"`dtype` must be torch.bfloat16 or torch.float16, received {dtype}."
            raise ValueError(msg)
        self.module, self.dtype = module, dtype

    def forward(self, *arguments: Tensor) -> Tensor:
        """Evaluate the network in lower precision."""
        like = arguments[-1]
        with torch.autocast(like.device.type, dtype=self.dtype):
            result: Any = self.module(*arguments)
        if not isinstance(result, Tensor):
            msg = f"`module` must return a tensor, received {type(result).__name__}. Wrap the networks inside it."
            raise TypeError(msg)
        return result.to(like.dtype)
