r"""Pilot solves: which steps an SDE needs, found on paths with noise of their own.

**The criterion.** The Euler chain misses, per step h from state y, a mean and a covariance:

.. math:: m = \tfrac{h^2}{2} L b, \qquad
    C = \tfrac{h^2}{2} \big(L a + \nabla b\, a + a\, \nabla b^\top\big), \qquad a = \sigma \sigma^\top,

with L the generator of the SDE. To leading order, up to a term in the third derivatives of the test function, they are
all that expectations see of a step (Talay and Tubaro 1990); the much larger part of a pathwise error that has mean zero
and does not correlate with the noise is not in them. Step doubling would count it, and spend steps on it. Expectations
add up the local errors, and a sum of :math:`h_k^2 \psi(t_k)` with a given number of steps is smallest where every step
has the same error: so a tolerance per step, not per unit of time.

Both are estimated without derivatives from an antithetic pair of Euler steps
:math:`y_\pm = y + b h \pm v`, :math:`v = \sigma \xi \sqrt h` with signs :math:`\xi_i = \pm 1`:

.. math:: m \approx \tfrac{h}{4} (b_+ + b_- - 2b), \qquad
    C_{jj} \approx \tfrac{h}{2} (b_+ - b_-)_j v_j + \tfrac{h}{4} (a_+ + a_- - 2a)_{jj}

The first averages over the sign to :math:`\tfrac h2 (b(t + h, y') - b(t, y))`, the drift part of the local error. The
pilot goes on from :math:`y_+`. The decision to accept is the same for :math:`\xi` and :math:`-\xi`, so that rejected
steps, which are tried again with the same signs, leave the noise of the pilot without a bias.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from .pilot import Pilot, PilotSDE, first_states

__all__ = ["pilot_knots"]

_TARGET = 0.8  # of the tolerance: error that the steps aim at
_SHRINK, _GROW = 0.1, 5.0  # largest changes of a step
_FIRST_GROWTH = 100.0  # of the first probe, which is no step of the grid
_ROUND_OFF = 32  # steps below this many roundings of the time are no steps
_DIGITS = 1024  # a step keeps ten binary digits
_LAST = 1e-3  # a rest of a gap is one step although it is 0.1 % longer


class _Point(NamedTuple):
    """Pilot states of some series, and what the SDE says there."""

    state: Tensor  # (Q, A, D)
    drift: Tensor  # (Q, A, D), with the control
    diffusion: Tensor  # (Q, A, D[, M])
    variance: Tensor  # (Q, A, D), diagonal of the Gram matrix of the diffusion

    def select(self, paths: slice, series: Tensor | slice) -> _Point:
        return _Point(*(part[paths, series] for part in self))

    def finite(self) -> Tensor:
        """Series whose states and coefficients are finite, ``(A,)``."""
        return torch.stack([torch.isfinite(part.transpose(0, 1).flatten(1)).all(-1) for part in self]).all(0)


class _Field:
    """Coefficients of the series whose turn it is, and of no other.

    A coefficient that captures one tensor per series (seen by one state that becomes many) cannot be asked for some of
    them: then all are evaluated, those that wait at the states where they are.
    """

    def __init__(self, sde: PilotSDE, time: Tensor, state: Tensor) -> None:
        if not isinstance(sde, PilotSDE):
            msg = (
                f"`sde` must be an SDE with `coefficients`, received {type(sde).__name__}. Wrap functions as "
                "SDE(drift, diffusion)."
            )
            raise TypeError(msg)
        self.sde = sde.ito()
        self.rows = self.sde.bind_rows(None)
        if any(row is not None for row in self.rows):
            msg = (
                "`sde` has inputs bound, one row per step of another grid; an adaptive grid needs coefficients of time "
                "and state alone. Use the SDE without its inputs."
            )
            raise ValueError(msg)
        noise = self.sde.noise
        found = self.sde.coefficients(time, state, self.rows)  # (1,), (1, D)
        shapes = [found.drift.shape[:-1], noise.batch_shape(found.diffusion)]
        shapes += [] if found.control is None else [found.control.shape[:-1]]
        self.batch = torch.broadcast_shapes((), *(shape if math.prod(shape) > 1 else () for shape in shapes))
        self.brownian_dim = noise.brownian_dim(noise.expand(found.diffusion, state), state.shape[-1])

    def __call__(self, times: Tensor, states: Tensor) -> _Point:
        """All at times ``(..., 1)`` and states ``(Q, ..., D)``."""
        noise = self.sde.noise
        found = self.sde.coefficients(times, states, self.rows)
        drift = found.drift if found.control is None else found.drift + noise.apply(found.diffusion, found.control)
        diffusion = noise.expand(found.diffusion, states)
        variance = noise.gram(diffusion).diagonal(dim1=-2, dim2=-1)
        return _Point(states, drift.expand(states.shape), diffusion, variance)


class _Run:
    """One pilot solve; S series with a step, a time and a gap between knots each, one trial step at a time."""

    def __init__(self, field: _Field, states: Tensor, knots: Tensor, pilot: Pilot) -> None:
        self.field, self.pilot, self.batch = field, pilot, knots.shape[:-1]
        self.round_off = _ROUND_OFF * torch.finfo(knots.dtype).eps
        self.knots = knots.detach().double().reshape(-1, knots.shape[-1])  # (S, N)
        count, gaps = self.knots.shape[0], self.knots.shape[1] - 1
        number = torch.arange(gaps, device=knots.device)
        number = torch.where(self.knots.diff(dim=-1) > 0, number, gaps).flip(-1).cummin(-1).values.flip(-1)
        self.next_gap = torch.nn.functional.pad(number, (0, 1), value=gaps)  # the first gap with a length, (S, N)
        self.gap = self.next_gap[:, 0]
        self.time = self.knots[:, 0]
        self.taken = torch.zeros(count, dtype=torch.long, device=knots.device)
        self.previous = torch.full_like(self.time, _TARGET)  # error of the last accepted step
        self.signs = states.new_zeros(0, len(states), field.brownian_dim)
        self.generator = torch.Generator().manual_seed(pilot.seed)
        self.points: list[tuple[Tensor, Tensor, Tensor]] = []  # series, gap and fraction of it
        everyone = torch.arange(count, device=knots.device)
        self.states = states.reshape(len(states), count, -1)  # (P, S, D)
        self.point = _Point(*(part.clone() for part in self._evaluate(everyone, self.time, self.states)))
        self.states = self.point.state  # changes with it
        self.step = torch.full_like(self.time, math.inf)
        if self.active.numel():
            self.step[self.active] = self._first_steps(self.active)

    @property
    def active(self) -> Tensor:
        """Numbers of the series that have not arrived."""
        return (self.gap < self.knots.shape[1] - 1).nonzero().squeeze(-1)

    def _evaluate(self, series: Tensor, times: Tensor, states: Tensor) -> _Point:
        """Coefficients of some series, at times ``(A,)`` and states ``(Q, A, D)``."""
        if not self.field.batch:
            return self.field(times.to(states.dtype).unsqueeze(-1), states)
        all_times = self.time.index_copy(0, series, times).to(states.dtype)
        waiting = self.states.repeat(len(states) // len(self.states), 1, 1)
        everywhere = waiting.index_copy(1, series, states).reshape(len(states), *self.batch, -1)
        found = self.field(all_times.reshape(*self.batch, 1), everywhere)
        return _Point(*(part.flatten(1, len(self.batch))[:, series] for part in found))

    def _first_steps(self, series: Tensor) -> Tensor:
        """Steps to begin with: from the error of one that moves the state by about the tolerance."""
        here = self.point.select(slice(None), series)
        scale = _scale(here.state, self.pilot)
        room = torch.minimum(scale / _rms(here.drift), scale.square() / here.variance.mean(0)).double()
        step = room.nan_to_num(math.inf).amin(-1)  # 0 / 0: nothing moves
        left, right = self.time[series], self.knots[series, self.gap[series] + 1]
        step = torch.maximum(self._bounded(step).minimum(right - left), self._smallest(left, right))
        error, _ = self._attempt(series, here, step)
        return self._bounded(step * ((_TARGET / error) ** 0.5).clamp(_SHRINK, _FIRST_GROWTH))

    def inside(self) -> tuple[Tensor, Tensor, Tensor]:
        """Points between knots, series by series in the order of time: series, gap and fraction of the gap."""
        nothing = (self.gap[:0], self.gap[:0], self.time[:0])
        series, gap, fraction = (torch.cat(parts) for parts in zip(nothing, *self.points, strict=True))
        order = torch.sort(series, stable=True).indices
        return series[order], gap[order], fraction[order]

    def trial(self) -> None:
        """Try one step of every series that has not arrived."""
        series = self.active
        left, right = self.time[series], self.knots[series, self.gap[series] + 1]
        rest, step = right - left, self.step[series]
        pieces = torch.ceil(rest / step * (1 - _LAST)).clamp(min=1)
        step = torch.where(pieces <= 2, rest / pieces, step)  # no sliver before an observation
        error, there = self._attempt(series, self.point.select(slice(None), series), step)
        small = step <= self._smallest(left, right)
        accepted = error <= 1
        if self.pilot.min_step is not None:
            accepted = accepted | (small & torch.isfinite(error))
        self._refuse(series, small & torch.isinf(error))
        self._check(series, small & ~accepted, self.taken[series] + accepted > self.pilot.max_steps)
        # PI control of an error of order 2
        grown = (_TARGET / error) ** (0.7 / 2) * (self.previous[series] / _TARGET) ** (0.4 / 2)
        shrunk = (_TARGET / error) ** 0.5
        factor = torch.where(accepted, grown.clamp(_SHRINK, _GROW), shrunk.clamp(_SHRINK, _TARGET))
        self.step[series] = self._bounded(step * factor)
        chosen = series[accepted]
        self._go(chosen, left[accepted] + step[accepted], (pieces <= 1)[accepted])
        self.previous[chosen] = error[accepted].clamp(min=1e-4)
        for mine, new in zip(self.point, there, strict=True):
            mine[:, chosen] = new[: mine.shape[0], accepted]

    def _attempt(self, series: Tensor, here: _Point, step: Tensor) -> tuple[Tensor, _Point]:
        """Error of a step as a multiple of the tolerance, inf if not finite, and what is there after it."""
        taken = self.taken[series]
        while len(self.signs) <= int(taken.max()):
            drawn = torch.randint(0, 2, (64, *self.signs.shape[1:]), generator=self.generator)
            self.signs = torch.cat([self.signs, (2 * drawn - 1).to(self.signs)])
        h = step.to(here.state.dtype).unsqueeze(-1)
        move = self.field.sde.noise.apply(here.diffusion, self.signs[taken].transpose(0, 1) * h.sqrt())
        mean = here.state + here.drift * h
        there = self._evaluate(series, self.time[series] + step, torch.cat([mean + move, mean - move]))
        error = torch.where(there.finite(), _local_error(here, there, move, h, self.pilot).double(), math.inf)
        return error.nan_to_num(math.inf, math.inf), there

    def _go(self, series: Tensor, times: Tensor, arrives: Tensor) -> None:
        """Move series to new times; those that arrive at a knot begin the next gap."""
        self.taken[series] += 1
        gap = self.gap[series]
        begin, end = self.knots[series, gap], self.knots[series, gap + 1]
        inside = ~arrives
        self.points.append((series[inside], gap[inside], ((times - begin) / (end - begin))[inside]))
        self.time = self.time.index_copy(0, series, torch.where(arrives, end, times))
        self.gap = self.gap.index_copy(0, series, torch.where(arrives, self.next_gap[series, gap + 1], gap))

    def _bounded(self, step: Tensor) -> Tensor:
        """Steps within their bounds, rounded down to a few digits.

        Sums and functions of a batch are rounded otherwise than those of one series. Without the digits where the
        difference is, a series has the same grid in every batch.
        """
        mantissa, exponent = torch.frexp(step)
        step = torch.ldexp((mantissa * _DIGITS).floor() / _DIGITS, exponent)
        pilot = self.pilot
        return step.clamp(pilot.min_step or 0.0, math.inf if pilot.max_step is None else pilot.max_step)

    def _smallest(self, left: Tensor, right: Tensor) -> Tensor:
        """Steps that are not made smaller."""
        if self.pilot.min_step is not None:
            return torch.full_like(left, self.pilot.min_step * (1 + 1e-9))
        return self.round_off * torch.maximum(left.abs(), right.abs())

    def _name(self, series: Tensor) -> str:
        """The first of some series and its time, for messages."""
        index = [int(i) for i in np.unravel_index(int(series[0]), self.batch)] if self.batch else []
        return f"{f'series {index}' if index else 'the series'} at time {self.time[series[0]].item():g}"

    def _refuse(self, series: Tensor, bad: Tensor) -> None:
        if bad.any():
            msg = (
                f"the pilot path of {self._name(series[bad])} or a coefficient of `sde` there is not finite, however "
                "small the step. Check the coefficients and `initial`."
            )
            raise ValueError(msg)

    def _check(self, series: Tensor, small: Tensor, many: Tensor) -> None:
        tolerance = f"the tolerance rtol={self.pilot.rtol:g}, atol={self.pilot.atol:g}"
        if small.any():
            msg = (
                f"{tolerance} asks for steps of {self._name(series[small])} that round-off swallows. Raise `rtol` or "
                "`atol`, pass `min_step` to take larger errors there, or use float64."
            )
            raise ValueError(msg)
        if many.any():
            msg = (
                f"{tolerance} asks for more than `max_steps` = {self.pilot.max_steps} steps, and the end is not "
                f"reached: {self._name(series[many])}. Raise the tolerance, pass `min_step`, or allow more steps."
            )
            raise ValueError(msg)


def _rms(values: Tensor) -> Tensor:
    return values.square().mean(0).sqrt()


def _scale(states: Tensor, pilot: Pilot) -> Tensor:
    """Error that is tolerated, ``(A, D)``."""
    return pilot.atol + pilot.rtol * _rms(states)


def _local_error(here: _Point, there: _Point, move: Tensor, h: Tensor, pilot: Pilot) -> Tensor:
    """Error of the moments after a step over the tolerance, ``(A,)``; see the top of this file."""
    up, down = there.drift.chunk(2)
    more, less = there.variance.chunk(2)
    mean = h / 4 * (up + down - 2 * here.drift)
    covariance = _rms(h / 2 * (up - down) * move + h / 4 * (more + less - 2 * here.variance))
    # The standard deviation that the covariance is missing from: that among the pilot paths, after the step.
    variance = here.state.var(0, correction=0) + h * here.variance.mean(0)
    deviation = covariance / ((variance + covariance).sqrt() + variance.sqrt())
    wrong = mean.square().mean(0) + torch.where(covariance > 0, deviation, covariance).square()
    scale = torch.maximum(_scale(here.state, pilot), _scale(there.state[: len(move)], pilot))
    return torch.where(wrong > 0, wrong / scale.square(), wrong).mean(-1).sqrt()


def pilot_knots(sde: PilotSDE, initial: Distribution | Tensor, knots: Tensor, pilot: Pilot) -> tuple[Tensor, Tensor]:
    """Knots with the steps of a pilot solve between them, and where the old ones are.

    Args:
        sde: an SDE without inputs.
        initial: law of the first state, event shape ``(D,)``, or first states ``(P, *batch, D)``.
        knots: times that the solve must meet, ``(*batch, N)``, not decreasing; a repeat is no step.
        pilot: options.

    Returns:
        knots ``(*batch, L)``, padded by repeating the last one, with gradients to the old ones; and the index of each
        old one, ``(*batch, N)``. The batch shape is that of knots, first states and captured tensors together.

    Raises:
        TypeError: if `sde` has no coefficients.
        ValueError: if shapes do not fit, a pilot path is not finite, or the tolerance cannot be kept.
    """
    states = first_states(initial, pilot, knots)
    with torch.no_grad():
        field = _Field(sde, knots.reshape(-1)[:1], states.reshape(-1, states.shape[-1])[:1])
    shapes = {"times": knots.shape[:-1], "initial": states.shape[1:-1], "sde": field.batch}
    try:
        batch = torch.broadcast_shapes(*shapes.values())
    except RuntimeError as error:
        found = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        msg = f"the batch shapes of `times`, `initial` and `sde` must broadcast, received {found}."
        raise ValueError(msg) from error
    ones = (1,) * (len(batch) + 2 - states.dim())
    states = states.reshape(len(states), *ones, *states.shape[1:]).expand(len(states), *batch, states.shape[-1])
    knots = knots.expand(*batch, knots.shape[-1])
    with torch.no_grad():
        run = _Run(field, states, knots, pilot)
        while run.active.numel():
            run.trial()
    return _insert(knots, *run.inside())


def _insert(knots: Tensor, series: Tensor, gap: Tensor, fraction: Tensor) -> tuple[Tensor, Tensor]:
    """Knots ``(*batch, N)`` and points between them, in one row per series; and the new index of each knot."""
    rows = knots.reshape(-1, knots.shape[-1])
    size, gaps = rows.shape[0], rows.shape[1] - 1
    counts = torch.zeros(size, gaps + 1, dtype=torch.long, device=knots.device)
    counts.index_put_((series, gap + 1), torch.ones_like(gap), accumulate=True)
    number = counts.sum(-1)
    places = counts.cumsum(-1) + torch.arange(gaps + 1, device=knots.device)
    # one more column, for what is a knot
    table = torch.zeros(size, int(number.max()) + 1, dtype=knots.dtype, device=knots.device)
    rank = torch.arange(len(series), device=knots.device) - (number.cumsum(-1) - number)[series]
    table[series, rank] = fraction.to(knots.dtype)
    slot = torch.arange(gaps + table.shape[1], device=knots.device).expand(size, -1)
    here = torch.searchsorted(places, slot.contiguous(), right=True) - 1  # gap of each new knot; behind the last: none
    between = (slot > places.gather(-1, here)) & (here < gaps)
    fractions = table.gather(-1, torch.where(between, slot - here - 1, table.shape[1] - 1))
    left, right = rows.gather(-1, here), rows.gather(-1, (here + 1).clamp(max=gaps))
    new = left + (right - left) * torch.where(between, fractions, torch.zeros_like(fractions))
    return new.reshape(*knots.shape[:-1], -1), places.reshape(knots.shape)
