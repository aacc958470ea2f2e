"""Options of a pilot solve, which chooses the steps of an adaptive grid, and what it wants of an SDE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.distributions import Distribution

from ._arguments import is_finite

__all__ = ["Pilot", "PilotCoefficients", "PilotNoise", "PilotSDE", "first_states"]


class PilotNoise(Protocol):
    """What a pilot wants of the noise of an SDE; `pyro_sde.sde.noise.Noise` has it."""

    def apply(self, diffusion: Tensor, vector: Tensor) -> Tensor:
        r""":math:`\sigma w`, ``(..., M) -> (..., D)``."""
        ...

    def brownian_dim(self, diffusion: Tensor, state_dim: int) -> int:
        """Number M of Brownian dimensions of a diffusion ``(..., D)`` or ``(..., D, M)``."""
        ...

    def batch_shape(self, diffusion: Tensor) -> torch.Size:
        """Leading dimensions ``(...)`` of a diffusion."""
        ...

    def expand(self, diffusion: Tensor, state: Tensor) -> Tensor:
        """Diffusion broadcast to the leading dimensions of `state` ``(..., D)``."""
        ...

    def gram(self, diffusion: Tensor) -> Tensor:
        r""":math:`\sigma \sigma^\top`, ``(..., D, D)``."""
        ...


class PilotCoefficients(Protocol):
    """Drift, diffusion and control at some states."""

    @property
    def drift(self) -> Tensor:
        """Broadcastable to ``(..., D)``."""
        ...

    @property
    def diffusion(self) -> Tensor:
        """Broadcastable to ``(..., D)`` or ``(..., D, M)``."""
        ...

    @property
    def control(self) -> Tensor | None:
        """Broadcastable to ``(..., M)``; None for an uncontrolled SDE."""
        ...


@runtime_checkable
class PilotSDE(Protocol):
    """What a pilot wants of an SDE; every `pyro_sde.sde.SDE` has it."""

    @property
    def noise(self) -> PilotNoise:
        """Structure of the noise."""
        ...

    def ito(self) -> PilotSDE:
        """Itô form."""
        ...

    def bind_rows(self, inputs: Tensor | None) -> tuple[Tensor | None, ...]:
        """Rows for `coefficients`, ``(*batch, K, C)`` each; all None without inputs."""
        ...

    def coefficients(self, t: Tensor, z: Tensor, rows: tuple[Tensor | None, ...]) -> PilotCoefficients:
        """Drift, diffusion and control at times ``(..., 1)`` and states ``(..., D)``."""
        ...


@dataclass(frozen=True)
class Pilot:
    r"""Options of a pilot solve.

    A step is taken if, root mean square over state dimensions, the mean and the standard deviation that an Euler step
    gets wrong are at most ``atol + rtol * |z|``, with the root mean square of z over the pilot paths of the series. The
    error of the whole grid is at most about the sum over its steps. A quarter of the tolerance costs twice the steps
    and halves that error.

    Args:
        rtol: relative tolerance of one step, ``>= 0``.
        atol: absolute tolerance of one step, in the unit of the state, ``>= 0``; not both 0.
        max_step: largest step, in the unit of time; the gaps between observations if None. Give one if coefficients
            have pulses in time that a pilot could step over.
        min_step: smallest step that the tolerance may ask for, ``> 0``: steps of this size are taken whatever their
            error. If None, a tolerance that asks for steps of the size of round-off raises.
        paths: pilot paths per series, if their first states are drawn, ``>= 1``.
        seed: seed of the noise of the pilot. The generator of torch is left alone.
        max_steps: steps of one series beyond which the pilot gives up with an error.

    Raises:
        ValueError: if an option is out of its range, or ``max_step < min_step``.
    """

    rtol: float = 1e-3
    atol: float = 1e-2
    max_step: float | None = None
    min_step: float | None = None
    paths: int = 16
    seed: int = 0
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        tolerances = (self.rtol, self.atol)
        if not all(is_finite(value) and value >= 0 for value in tolerances) or not max(tolerances) > 0:
            msg = (
                f"`rtol` and `atol` must be finite, not negative and not both 0, received rtol={self.rtol!r}, "
                f"atol={self.atol!r}. They bound the error of one step, in the unit of the state."
            )
            raise ValueError(msg)
        for name, value in (("max_step", self.max_step), ("min_step", self.min_step)):
            if value is not None and not (is_finite(value) and value > 0):
                msg = f"`{name}` must be a positive finite number, received {value!r}."
                raise ValueError(msg)
        if self.max_step is not None and self.min_step is not None and self.max_step < self.min_step:
            msg = f"`max_step` {self.max_step:g} is smaller than `min_step` {self.min_step:g}; exchange or drop one."
            raise ValueError(msg)
        for name, count in (("paths", self.paths), ("max_steps", self.max_steps)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                msg = f"`{name}` must be a positive integer, received {count!r}."
                raise ValueError(msg)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not -(2**63) <= self.seed < 2**64:
            msg = f"`seed` must be an integer from -2**63 to 2**64 - 1, received {self.seed!r}."
            raise ValueError(msg)


def first_states(initial: Distribution | Tensor, pilot: Pilot, like: Tensor) -> Tensor:
    """States at which pilot paths begin, ``(P, *batch, D)``: drawn from a law by the seed of the pilot, or as given.

    Raises:
        TypeError: if `initial` is neither a law nor a tensor.
        ValueError: if its shape, dtype or device does not fit.
    """
    if isinstance(initial, Distribution):
        if len(initial.event_shape) != 1:
            msg = (
                f"`initial` must be a law over states with event shape (D,), received {tuple(initial.event_shape)}. "
                "Use .to_event(1) on its last batch dimension."
            )
            raise ValueError(msg)
        with torch.random.fork_rng([like.device] if like.device.type == "cuda" else []):
            torch.manual_seed(pilot.seed)
            states = initial.sample(torch.Size((pilot.paths,)))
    elif isinstance(initial, Tensor):
        states = initial.detach()
    else:
        msg = f"`initial` must be a law or a tensor of first states (P, *batch, D), received {type(initial).__name__}."
        raise TypeError(msg)
    if states.dim() < 2 or states.numel() == 0:
        msg = f"`initial` must have shape (P, *batch, D), P pilot paths per series; received {tuple(states.shape)}."
        raise ValueError(msg)
    if (states.dtype, states.device) != (like.dtype, like.device):
        msg = (
            f"`initial` has dtype {states.dtype} on {states.device}, but `times` has {like.dtype} on {like.device}. "
            "Convert one of them."
        )
        raise ValueError(msg)
    return states
