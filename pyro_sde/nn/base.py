"""What an encoder is and how it reads masks and gaps; activations and checks shared by all layers."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..ops._arguments import check_observed, check_tensors
from ..ops.grid import TimeGrid

__all__ = [
    "Encoder",
    "Encoding",
    "check_observations",
    "check_positive",
    "check_widths",
    "inverse_softplus",
    "make_activation",
]

# On a CPU softplus costs ten times as much as SiLU or tanh; it is here for comparison with other codes.
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


class Encoding(NamedTuple):
    """What an encoder says about a series.

    Attributes:
        initial: law of z at ``grid.times[..., 0]``; batch shape ``batch``, event shape ``(D,)``.
        context: one row per solver step, ``(*batch, K, C)``. Row k depends only on observations at or after
            the end of step k: given the state, a posterior SDE needs nothing from before.
        summary: all observations in one vector, ``(*batch, H)``.
    """

    initial: TorchDistributionMixin
    context: Tensor
    summary: Tensor


class Encoder(nn.Module, abc.ABC):
    """Base of encoders: an irregular series -> initial law, context per solver step, summary.

    Args:
        value_dim: number O of observed channels.
        state_dim: number D of latent dimensions of the initial law.
        context_dim: number C of channels of a context row.

    Raises:
        ValueError: if a size is not an integer >= 1.
    """

    def __init__(self, value_dim: int, state_dim: int, context_dim: int) -> None:
        super().__init__()
        self.value_dim = check_positive("value_dim", value_dim)
        self.state_dim = check_positive("state_dim", state_dim)
        self.context_dim = check_positive("context_dim", context_dim)

    @abc.abstractmethod
    def forward(self, grid: TimeGrid, values: Tensor, mask: Tensor | None = None) -> Encoding:
        """Encode the observed series.

        Args:
            grid: solver grid of the series; its batch shape broadcasts with that of `values`.
            values: observations at ``grid.observed_times``; anything, also NaN, where they are not observed.
            mask: True = observed; everything at valid times if None. Times at which nothing is observed have
                no influence, so times to be forecast are simply masked.

        Shape:
            values: ``(*batch, N, O)`` · mask: ``(*batch, N, O)`` or ``(*batch, N)``, bool.

        Raises:
            TypeError: if `grid` is not a `TimeGrid`.
            ValueError: if shapes or dtypes do not fit, or an observed value is not finite.
        """


def check_observations(
    grid: TimeGrid, values: Tensor, mask: Tensor | None, like: Tensor, value_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Broadcast, check and clean the arguments of `Encoder.forward`; the first line of every encoder.

    Args:
        grid: solver grid with N observation times.
        values: ``(*batch, N, O)``.
        mask: None, ``(*batch, N, O)`` or ``(*batch, N)``, bool.
        like: a parameter of the encoder, of any shape, which fixes dtype and device.
        value_dim: the number O of channels the encoder was built for.

    Returns:
        values with 0 where not observed ``(*batch, N, O)``, the channel mask ``(*batch, N, O)``, and the
        times that carry information ``(*batch, N)``: valid in the grid, with at least one observed channel.

    Raises:
        TypeError: if `grid` is not a `TimeGrid`.
        ValueError: if shapes or dtypes do not fit, or an observed value is not finite.
    """
    if not isinstance(grid, TimeGrid):
        msg = f"`grid` must be a TimeGrid, received {type(grid).__name__}. Build TimeGrid(times) first."
        raise TypeError(msg)
    _check_values(grid, values, like, value_dim)
    valid = grid.mask.unsqueeze(-1)  # (*batch, N, 1)
    observed = valid if mask is None else valid & _channel_mask(mask, values)
    observed = observed.expand(torch.broadcast_shapes(values.shape, observed.shape))
    values = values.expand(observed.shape)
    # A traced graph cannot branch on data; Pyro's Jit losses run eagerly once before they trace.
    if not torch.jit.is_tracing():
        bad = observed & ~torch.isfinite(values.detach())
        if bad.any():
            where = bad.nonzero()[0].tolist()
            msg = (
                f"`values` must be finite where observed; entry {where} is {values[tuple(where)].item()}. "
                "Pass `mask` (True = observed), for example mask=~values.isnan()."
            )
            raise ValueError(msg)
    return torch.where(observed, values, torch.zeros_like(values)), observed, observed.any(-1)


def check_positive(name: str, value: int) -> int:
    """Return `value` if it is an integer >= 1.

    Raises:
        ValueError: if it is not; the message names the argument `name`.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        msg = f"`{name}` must be an integer >= 1, received {value!r}."
        raise ValueError(msg)
    return int(value)


def inverse_softplus(value: float) -> float:
    """The number whose softplus is `value` > 0, without overflow for large values."""
    return value + math.log(-math.expm1(-value))


def check_widths(name: str, widths: Sequence[int]) -> list[int]:
    """The widths of hidden layers as a list, each an integer >= 1.

    Raises:
        TypeError: if they are no sequence; the message names the argument `name`.
        ValueError: if one is no integer >= 1.
    """
    if not isinstance(widths, Sequence) or isinstance(widths, str):
        msg = f"`{name}` must be a sequence of sizes, such as (64, 64), received {widths!r}."
        raise TypeError(msg)
    return [check_positive(name, width) for width in widths]


def make_activation(name: str) -> nn.Module:
    """Nonlinearity called "elu", "gelu", "relu", "silu", "softplus" or "tanh".

    Raises:
        ValueError: if `name` is none of them.
    """
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        msg = f"`activation` must be one of {', '.join(sorted(_ACTIVATIONS))}; received {name!r}."
        raise ValueError(msg)
    return _ACTIVATIONS[name]()


def _check_values(grid: TimeGrid, values: Tensor, like: Tensor, value_dim: int) -> None:
    check_tensors(values=values)
    count = grid.mask.shape[-1]
    if values.dim() < 2 or values.shape[-2:] != (count, value_dim):
        msg = (
            f"`values` must have shape (*batch, {count}, {value_dim}): one row per observation time of the "
            f"grid, one column per channel; received {tuple(values.shape)}."
        )
        raise ValueError(msg)
    if values.dtype != like.dtype or values.device != like.device:
        msg = (
            f"`values` must have the dtype and device of the encoder, {like.dtype} on {like.device}; "
            f"received {values.dtype} on {values.device}. Convert one of them with `.to(...)`."
        )
        raise ValueError(msg)
    try:
        torch.broadcast_shapes(values.shape[:-2], grid.batch_shape)
    except RuntimeError as error:
        msg = (
            f"the batch shapes of `values` {tuple(values.shape[:-2])} and `grid` {tuple(grid.batch_shape)} "
            "must broadcast. Use one grid for all series or one row of times per series."
        )
        raise ValueError(msg) from error


def _channel_mask(mask: Tensor, values: Tensor) -> Tensor:
    """Mask as ``(*batch, N, O)`` or ``(*batch, N, 1)``."""
    check_observed(mask, values)
    return mask if mask.shape == values.shape else mask.unsqueeze(-1)
