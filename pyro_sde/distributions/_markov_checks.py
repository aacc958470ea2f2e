"""Checks of what a `MarkovPath` is given, by one call of its transition for one series."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, constraints

from ._coefficient_checks import first_argument
from .effects import EffectRecorder
from .markov_kernels import GaussianLaw, family, has_learned_flow, is_discrete

__all__ = ["Probed", "check_inputs", "check_lengths", "check_start", "probe_transition", "state_support"]

Transition = Callable[[Tensor, Tensor, Tensor | None], Distribution]

_FREE = (constraints.real, constraints.real_vector)
_FIXED = (constraints.positive, constraints.nonnegative, constraints.unit_interval, constraints.simplex)


class Probed(NamedTuple):
    """What one call of the transition has told."""

    batch_shape: torch.Size  # of what the transition captured
    has_rsample: bool
    support: constraints.Constraint  # of a path
    gaussian: bool  # whether it is Normal, so that standard normal noise drives it
    flow: bool  # whether it has a learned flow, which remembers its last sample only


def check_start(transition: object, initial: Distribution, length: object) -> None:
    """Raise unless the transition can be called, the path has points, and the first state a shape that can be."""
    if not callable(transition):
        msg = (
            "`transition` must be a function or module of (z_prev, t, inputs) that returns a distribution, received "
            f"{type(transition).__name__}."
        )
        raise TypeError(msg)
    if not isinstance(initial, Distribution):
        msg = f"`initial` must be a distribution over the first state, received {type(initial).__name__}."
        raise TypeError(msg)
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        msg = f"`length` must be a number of points >= 1, received {length!r}."
        raise ValueError(msg)
    if len(initial.event_shape) > 1 or (not initial.event_shape and not is_discrete(initial)):
        advice = " Add `.to_event(1)`." if not initial.event_shape else ""
        msg = (
            "`initial` must have event shape (D,), or () for discrete states; received event shape "
            f"{tuple(initial.event_shape)} and batch shape {tuple(initial.batch_shape)}.{advice}"
        )
        raise ValueError(msg)


def check_inputs(inputs: Tensor | None, num_steps: int) -> None:
    """Raise unless inputs are a tensor with one row per transition."""
    if inputs is not None and (not isinstance(inputs, Tensor) or inputs.is_complex()):
        kind = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
        msg = f"`inputs` must be a tensor (*batch, T - 1, C) of real numbers, received {kind}."
        raise TypeError(msg)
    if inputs is not None and (inputs.dim() < 2 or inputs.shape[-2] != num_steps):
        msg = (
            f"`inputs` must have shape (*batch, T - 1, C) with one row per transition, T - 1 = {num_steps}; received "
            f"{tuple(inputs.shape)}. Row k serves the transition from state k to state k + 1; what belongs to the "
            "first state goes into `initial`."
        )
        raise ValueError(msg)


def check_lengths(lengths: Tensor | None, length: int) -> None:
    """Raise unless the lengths of all series are whole numbers from 1 to the length of the padding."""
    if lengths is None:
        return
    if not isinstance(lengths, Tensor) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        kind = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        msg = f"`lengths` must be a tensor of whole numbers, one per series, received {kind}."
        raise TypeError(msg)
    if not lengths.numel():
        return
    smallest, largest = (int(bound) for bound in lengths.aminmax())
    if smallest < 1:
        where = (lengths < 1).nonzero()[0].tolist()
        msg = f"`lengths` must be at least 1, received {smallest} for series {where}. Leave empty series out."
        raise ValueError(msg)
    if largest > length:
        where = (lengths > length).nonzero()[0].tolist()
        msg = (
            f"`lengths` must be at most `length`, the {length} points that the series are padded to; received "
            f"{largest} for series {where}."
        )
        raise ValueError(msg)


def probe_transition(
    transition: Transition, initial: Distribution, inputs: Tensor | None, effects: EffectRecorder
) -> Probed:
    """Call the transition once, for one series without batch dimensions.

    What batch shape comes back is that of tensors which the transition captured.

    Raises:
        TypeError: if it returns no distribution.
        ValueError: if event shape or dtype differ from those of the first state.
    """
    z = _some_state(initial)
    index = torch.ones(1, dtype=z.dtype if z.is_floating_point() else None, device=z.device)
    row = None
    if inputs is not None:
        row = inputs[(0,) * (inputs.dim() - 2)][:1].sum(0)  # zeros if there is no row
        row = row.nan_to_num() if row.is_floating_point() else row  # it may be padding
    with effects:
        law = transition(z, index, row)
    effects.seal()
    if not isinstance(law, Distribution):
        msg = f"`transition` must return a distribution over the next state, received {type(law).__name__}."
        raise TypeError(msg)
    if law.event_shape != initial.event_shape:
        advice = " Add `.to_event(1)`." if not law.event_shape and initial.event_shape else ""
        msg = (
            f"`transition` must return laws with the event shape {tuple(initial.event_shape)} of `initial`; received "
            f"{family(law)} with event shape {tuple(law.event_shape)} and batch shape {tuple(law.batch_shape)} for "
            f"one state of shape {tuple(z.shape)}.{advice}"
        )
        raise ValueError(msg)
    argument = first_argument(law)
    kind = (z.dtype, z.device)
    if z.is_floating_point() and argument is not None and (argument.dtype, argument.device) != kind:
        msg = (
            f"`transition` returned a law with dtype {argument.dtype} on {argument.device}, but `initial` has "
            f"{z.dtype} on {z.device}. Convert one of them, e.g. transition.to({z.dtype})."
        )
        raise ValueError(msg)
    gaussian = GaussianLaw.of(law) is not None
    return Probed(law.batch_shape, bool(law.has_rsample), state_support(law), gaussian, has_learned_flow(law))


def state_support(law: Distribution) -> constraints.Constraint:
    """Support of a path whose states have such laws; all of space where it hangs on the parameters of the law."""
    support = law.support
    base = support
    while isinstance(base, constraints.independent):
        base = base.base_constraint
    if any(base is one for one in _FREE):
        return constraints.independent(constraints.real, 2)
    fixed = any(base is one for one in _FIXED) or is_discrete(law)
    if fixed and support is not None:
        return constraints.independent(support, 1)  # type: ignore[return-value]
    return constraints.independent(constraints.real, 1 + len(law.event_shape))  # type: ignore[return-value]


def _some_state(initial: Distribution) -> Tensor:
    """A state that the initial law allows, without drawing one: its mean, or zero."""
    law = initial
    while isinstance(law, Independent):
        law = law.base_dist
    like = first_argument(initial)
    device = None if like is None else like.device
    if isinstance(law, Categorical):
        return torch.zeros(initial.event_shape, dtype=torch.long, device=device)
    try:
        mean = initial.mean.detach()
    except NotImplementedError:
        return torch.zeros(initial.event_shape, dtype=None if like is None else like.dtype, device=device)
    mean = mean[(0,) * (mean.dim() - len(initial.event_shape))]
    return mean if bool(torch.isfinite(mean).all()) else torch.zeros_like(mean)
