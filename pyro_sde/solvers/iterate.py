r"""Parallel-in-time simulation: all steps of a path at once, in sweeps, instead of one after another.

For given noise a path solves :math:`z_{k+1} = \Phi_k(z_k)`. A sweep calls the step once for all k of a window at the
last guess, which leaves the residuals :math:`r_k = \Phi_k(z_k) - z_{k+1}`, and corrects the guess by the linear
recurrence

.. math:: \delta_{k+1} = A_k \delta_k + r_k, \qquad \delta_0 = 0.

Newton's method takes :math:`A_k = \partial \Phi_k / \partial z_k` and converges quadratically; Picard's takes the
identity, so that the recurrence is a cumulative sum and no derivative is needed, and converges where the drift changes
little over the window. After n sweeps the first n states of a window are exact with either.

References:
    Lim, Zhu, Selfridge, Kasim (2024), Parallelizing non-linear sequential models over the sequence length,
    arXiv:2309.12252, eq. (5) (Newton). Danieli et al. (2023), DeepPCR, arXiv:2309.16318. Shih, Belkhale, Ermon, Sadigh,
    Anari (2023), Parallel sampling of diffusion models, arXiv:2305.16317, algorithm 1 (Picard in windows).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.brownian import wiener_increments
from ..ops.grid import TimeGrid
from ..ops.layout import time_first
from ..ops.scan import linear_recurrence
from ..sde.base import SDE
from .loop import euler_step

__all__ = ["SweepOptions", "SweepResult", "unroll_sweeps"]

_WINDOW_ROWS = 4096  # rows of one call; equal from 2048 to 8192 (`bench scan`, one core)
_SHORTEST = 16  # steps of a window
_PROBES, _ROUNDING = 4, 2.0  # rounding errors are tried with so many random signs, in units of the precision
_PATIENCE = {"newton": 8, "picard": 20}  # sweeps after which a window is halved
_SWEEP_COST = {"newton": 40, "picard": 8}  # steps of the loop that cost about as much as a sweep over a short window


class SweepOptions(NamedTuple):
    """How `unroll_sweeps` iterates.

    Attributes:
        method: "newton" or "picard".
        tolerance: largest difference to the path of the loop, relative to the largest value until then of the same
            state dimension, ``> 0``; 1e-12 in float64 and 256 times the machine precision, 3e-5, in float32 if None.
        max_sweeps: sweeps after which it is given up, ``>= 1``; 16 and one for every 50 steps if None, which keeps a
            failure to a few times the cost of the loop.
    """

    method: str = "newton"
    tolerance: float | None = None
    max_sweeps: int | None = None


class SweepResult(NamedTuple):
    """What `unroll_sweeps` found.

    Attributes:
        states: ``(K + 1, ..., D)`` without gradient; None if it failed.
        sweeps: number of sweeps.
        error: estimated difference to the path of the loop, relative as the tolerance: the largest along the path, or
            the one above the tolerance where it failed: NaN or infinite where states were, infinite where none was
            tried before the sweeps ran out.
    """

    states: Tensor | None
    sweeps: int
    error: float


def unroll_sweeps(
    sde: SDE,
    grid: TimeGrid,
    initial: Tensor,
    standard_normal: Tensor,
    rows: tuple[Tensor | None, ...],
    options: SweepOptions = SweepOptions(),  # noqa: B008 (immutable)
) -> SweepResult:
    r"""States of all steps as those of `unroll`, in sweeps over windows of steps; never with a gradient.

    A sweep costs one batched call of the coefficients for a window and, with Newton, D vector-Jacobian products and a
    linear recurrence. It pays where a call for thousands of rows costs little more than one for a few: small batches,
    long horizons. Windows hold about four thousand rows; one that does not converge is halved.

    A state is final once a Newton sweep moves it by less than the tolerance: the correction is the accumulated error,
    to first order, and what is left after it is of second order. (Picard's sweeps go on until they move nothing by more
    either, and one Newton sweep has the last word.) Rounding errors of the steps are then carried through the same
    Jacobians, from the first step to the last. Where they would grow beyond the tolerance (a chaotic drift over a long
    horizon: the loop itself is not reproducible there) no path is returned. At last two steps are compared with the
    step as the loop takes it. This is an estimate, not a proof; it fails if derivatives are wrong (a drift that
    detaches).

    Shape:
        initial: ``(..., D)`` · standard_normal: ``(K, ..., M)``, K >= 1 · rows: ``(*batch, K, C)`` each · states:
        ``(K + 1, ..., D)``.

    Raises:
        ValueError: if an option is not as described.
    """
    _check(options)
    with torch.no_grad():
        steps = _Steps(sde, grid, initial, standard_normal, rows)
        path = _Path(steps, options)
        if path.states.numel() == 0:
            return SweepResult(path.states, 0, 0.0)
        limit = 16 + steps.count // _SWEEP_COST[options.method] if options.max_sweeps is None else options.max_sweeps
        while path.final < steps.count and not path.failed and path.sweeps < limit:
            path.sweep()
        if path.failed or path.final < steps.count or not path.agrees_with_loop():
            # the last sweep may have finished its window, and no other come after it
            return SweepResult(None, path.sweeps, math.inf if path.error <= path.tolerance else path.error)
    return SweepResult(path.states, path.sweeps, path.rounding)


def _check(options: SweepOptions) -> None:
    if options.method not in _PATIENCE:
        msg = f'`method` must be "newton" or "picard", received {options.method!r}.'
        raise ValueError(msg)
    if options.tolerance is not None and not options.tolerance > 0:
        msg = f"`tolerance` must be a positive number, received {options.tolerance}."
        raise ValueError(msg)
    if options.max_sweeps is not None and not options.max_sweeps >= 1:
        msg = f"`max_sweeps` must be at least 1, received {options.max_sweeps}."
        raise ValueError(msg)


class _Steps:
    """The Euler–Maruyama step, for one time as the loop takes it, and for a window of times."""

    def __init__(
        self,
        sde: SDE,
        grid: TimeGrid,
        initial: Tensor,
        standard_normal: Tensor,
        rows: tuple[Tensor | None, ...],
    ) -> None:
        self.grid, self.count = grid, grid.num_steps
        self._evaluate, self._rows = sde.evaluator(rows)
        self._advance: Callable[..., Tensor] = lambda *given: euler_step(sde.noise, *given)
        normal = standard_normal.movedim(0, -2)

        def increments(rank: int) -> Tensor:
            return wiener_increments(time_first(grid.steps.unsqueeze(-1), rank), time_first(normal, rank))

        self._increments = increments(max(grid.steps.dim() - 1, normal.dim() - 2))
        self.first = initial.expand(self.one(0, initial).shape)
        rank = self.first.dim() - 1
        self._increments = increments(rank)
        self._times = time_first(grid.times.unsqueeze(-1), rank)
        self._dt = time_first(grid.steps.unsqueeze(-1), rank)
        self._late = tuple(None if row is None else time_first(row, rank) for row in self._rows)

    def one(self, k: int, z: Tensor) -> Tensor:
        """State after step k, evaluated as in the loop; ``(..., D)``."""
        t, dt = self.grid.times[..., k, None], self.grid.steps[..., k, None]
        rows = tuple(None if row is None else row[..., k, :] for row in self._rows)
        return self._advance(z, dt, self._increments[k], self._evaluate(t, z, rows))

    def all(self, start: int, z: Tensor) -> Tensor:
        """States after the steps from `start` on, taken from ``z (n, ..., D)``."""
        window = slice(start, start + len(z))
        rows = tuple(None if row is None else row[window] for row in self._late)
        coefficients = self._evaluate(self._times[window], z, rows)
        return self._advance(z, self._dt[window], self._increments[window], coefficients)

    def linearised(self, start: int, z: Tensor) -> tuple[Tensor, Tensor]:
        """As `all`, and the Jacobians ``(n, ..., D, D)``, by one vector-Jacobian product per state dimension."""
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            following = self.all(start, leaf)
        basis = torch.eye(leaf.shape[-1], dtype=leaf.dtype, device=leaf.device)
        columns = [
            torch.autograd.grad(following, leaf, direction.expand_as(following), retain_graph=True)[0]
            for direction in basis
        ]
        return following.detach(), torch.stack(columns, -2)


class _Path:
    """A guess of the path whose first `final` steps are final."""

    def __init__(self, steps: _Steps, options: SweepOptions) -> None:
        first = steps.first
        eps = torch.finfo(first.dtype).eps
        self.steps, self.method = steps, options.method
        self.tolerance = max(256 * eps, 1e-12) if options.tolerance is None else options.tolerance
        self.states = first.repeat(steps.count + 1, *[1] * first.dim())
        self.final, self.sweeps, self.failed, self.error, self.rounding = 0, 0, False, 0.0, 0.0
        self._longest = max(_SHORTEST, _WINDOW_ROWS // max(1, first[..., 0].numel()))
        self._scale = first.abs()  # largest value of every dimension so far, (..., D)
        # rounding errors of the last final state, for some random signs of those of all steps; (_PROBES, ..., D)
        self._carried = torch.zeros_like(first).expand(_PROBES, *first.shape)
        self._signs = torch.Generator(first.device).manual_seed(0)  # not the global one: the noise is drawn from it
        self._eps = eps
        self._open(self._longest)

    def _open(self, length: int) -> None:
        """Start a window at the last final state."""
        self._end = min(self.final + max(length, _SHORTEST), self.steps.count)
        self._length, self._age, self._newton = self._end - self.final, 0, self.method == "newton"
        self.states[self.final + 1 : self._end + 1] = self.states[self.final]

    def _adapt(self, still: int) -> None:
        """Start the next window if this one is final, a shorter one if it does not converge."""
        patience = _PATIENCE[self.method]
        if self.final == self._end:
            grown = 2 * self._length if 2 * self._age <= patience else self._length
            self._open(min(grown, self._longest))
        elif self._age >= patience and still and not self._newton:  # keep what Picard's sweeps have found
            self._end, self._length, self._newton = self.final + still, still, True
        elif self._age >= patience:
            self._open((self._end - self.final) // 2)

    def sweep(self) -> None:
        """One sweep over the window, which ends or shrinks if it makes no progress."""
        self.sweeps += 1
        self._age += 1
        start = self.final
        window = self.states[start : self._end + 1]
        if self._newton:
            following, jacobian = self.steps.linearised(start, window[:-1])
            residual = following - window[1:]
            correction = linear_recurrence(jacobian, residual, torch.zeros_like(self._scale))[1:]
        else:
            jacobian = None
            correction = (self.steps.all(start, window[:-1]) - window[1:]).cumsum(0)
        corrected = window[1:] + correction
        scale = torch.cat([self._scale.unsqueeze(0), corrected.abs()]).cummax(0).values[1:]
        moved = _relative(correction, scale)
        finite = _leading(corrected.flatten(1).isfinite().all(-1))
        if finite == 0:  # so is the next state of the loop, or a derivative there
            self.failed, self.error = True, float(moved[0])
            return
        window[1 : finite + 1] = corrected[:finite]
        window[finite + 1 :] = corrected[finite - 1]
        still = _leading(moved <= self.tolerance)
        self.error = float(moved.amax())
        if jacobian is None:
            self._newton = still == len(moved)
        elif still:
            self._finish(still, jacobian[:still], scale[:still])
        if not self.failed:
            self._adapt(still)

    def _finish(self, count: int, jacobian: Tensor, scale: Tensor) -> None:
        """Make `count` more states final, unless rounding errors carried on to them are too large."""
        states = self.states[self.final + 1 : self.final + count + 1].abs()
        sign = torch.randint(0, 2, (count, *self._carried.shape), generator=self._signs, device=states.device) * 2 - 1
        rounding = _ROUNDING * self._eps * sign * states.unsqueeze(1)  # (count, _PROBES, ..., D)
        carried = linear_recurrence(jacobian.unsqueeze(1), rounding, self._carried)[1:]
        grown = float(_relative(carried, scale.unsqueeze(1)).amax())
        self.failed = not grown <= self.tolerance
        self.error = grown if self.failed else self.error
        self.rounding = max(self.rounding, grown)
        self.final += count
        self._scale, self._carried = scale[-1], carried[-1]

    def agrees_with_loop(self) -> bool:
        """Whether two steps, taken one at a time, lead where they do in the batch."""
        for k in (0, self.steps.count // 2):
            difference = self.steps.one(k, self.states[k]) - self.states[k + 1]
            scale = self.states[: k + 2].abs().amax(0)
            self.error = float(_relative(difference.unsqueeze(0), scale))
            if not self.error <= self.tolerance:
                return False
        return True


def _relative(change: Tensor, scale: Tensor) -> Tensor:
    """Largest change per step relative to the scale of its dimension; 0 where nothing changes."""
    ratio = change.abs() / scale
    return torch.where(change == 0, torch.zeros_like(ratio), ratio).flatten(1).amax(-1)


def _leading(passed: Tensor) -> int:
    """Number of leading entries that are True."""
    return int(passed.long().cumprod(0).sum())
