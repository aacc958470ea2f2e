"""Checks of what a `SwitchingPath` is given, by one call of its transition for one series."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from ._coefficient_checks import first_argument
from ._markov_checks import Transition
from .effects import EffectRecorder
from .regime_chain import RegimeChain

__all__ = ["check_kinds", "probe_switching"]


def check_kinds(regimes: object, length: int) -> None:
    """Raise unless `regimes` is a law of regimes, and there is a step that follows one."""
    if not isinstance(regimes, RegimeChain):
        msg = f"`regimes` must be a RegimeChain, received {type(regimes).__name__}."
        raise TypeError(msg)
    if length < 2:
        msg = f"`length` must be at least 2, received {length}: a path of one point has no step, so no regime."
        raise ValueError(msg)


def probe_switching(
    transition: Transition,
    initial: Distribution,
    regimes: RegimeChain,
    inputs: Tensor | None,
    effects: EffectRecorder,
) -> list[tuple[str, torch.Size]]:
    """Batch shapes of what transition and regimes captured, by one call for one series.

    Raises:
        TypeError: if the transition returns no distribution.
        ValueError: if number of regimes, event shape or dtype do not fit.
    """
    z = _some_state(initial)
    row = None if inputs is None else inputs[(0,) * (inputs.dim() - 2)][0].nan_to_num()
    index = z.new_ones(1)
    with effects:
        law = transition(z, index, row)
        table = regimes.table(z, index, row)
    effects.seal()
    if not isinstance(law, Distribution):
        msg = f"`transition` must return a distribution over the next state, received {type(law).__name__}."
        raise TypeError(msg)
    width = regimes.num_regimes
    if law.event_shape != initial.event_shape or law.batch_shape[-1:] != (width,):
        advice = " Add `.to_event(1)`." if not law.event_shape else ""
        msg = (
            f"`transition` must return the laws of all regimes, batch shape (..., {width}) for the K = {width} of "
            f"`regimes`, with the event shape {tuple(initial.event_shape)} of `initial`; received batch shape "
            f"{tuple(law.batch_shape)} and event shape {tuple(law.event_shape)} for one state of shape "
            f"{tuple(z.shape)}.{advice}"
        )
        raise ValueError(msg)
    argument = first_argument(law)
    if argument is not None and (argument.dtype, argument.device) != (z.dtype, z.device):
        msg = (
            f"`transition` returned a law with dtype {argument.dtype} on {argument.device}, but `initial` has "
            f"{z.dtype} on {z.device}. Convert one of them, e.g. transition.to({z.dtype})."
        )
        raise ValueError(msg)
    regimes.check_table(table)
    return [("transition", law.batch_shape[:-1]), ("log_transition", table.shape[:-2])]


def _some_state(initial: Distribution) -> Tensor:
    """A state that the initial law allows: its mean, or zero where it has none."""
    mean = initial.mean.detach()
    mean = mean[(0,) * (mean.dim() - len(initial.event_shape))]
    return torch.where(torch.isfinite(mean), mean, torch.zeros_like(mean))
