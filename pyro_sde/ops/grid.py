"""The solver grid: observation times merged with solver steps, one grid per series."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution

from ._grid_times import (
    as_times,
    check_increasing,
    check_inside,
    check_mask,
    check_max_step,
    endpoint,
    fill_invalid,
    trailing_repeats,
)
from ._pilot_run import pilot_knots
from .pilot import Pilot, PilotSDE

__all__ = ["TimeGrid"]

# A gap of exactly n * max_step must give n steps although n * max_step is rounded: allow 0.1 % longer steps.
_STEP_TOLERANCE = 1e-3
_TENSORS = ("times", "steps", "mask", "observed_times", "observed_index", "_knots", "_places", "_counts")


class TimeGrid:
    r"""Solver grid :math:`t_0 < t_1 < \dots < t_K` that contains every observation time.

    Each gap between neighbouring observation times is cut into
    :math:`\lceil (1 - 10^{-3})\, \mathrm{gap} / \mathrm{max\_step} \rceil` equal steps. Because the grid
    contains the observation times, a path is never interpolated. Series of a batch may have different times: a
    shorter row is padded at its end by repeating its last time (``steps == 0``: no movement, no noise, no density),
    and has exactly the grid that it would get alone. Cost: O(batch x (N + K)) once, no cost per use.

    Args:
        times: observation times ``(N,)`` or ``(*batch, N)``, increasing along the last axis, any unit (integers
            become the default float type). Without `mask`, a trailing repeat of the last time is padding.
        max_step: largest solver step, ``> 0``, in the unit of `times`; one step per gap if None.
        mask: bool ``(*batch, N)``, True = valid time. Masked times are overwritten by the last valid one, so NaN or
            zeros there are fine. Missing *channels* belong in the likelihood, not here.
        start: first grid time, float or ``(*batch,)``; the first valid time if None.
        end: last grid time, float or ``(*batch,)``; the last valid time if None.

    Attributes:
        times: solver times ``(*batch, K + 1)``; gradients flow to the observation times.
        steps: step sizes ``(*batch, K)``, 0 where padded.
        mask: valid observations ``(*batch, N)``; all True by default, False at trailing padding.
        observed_times: cleaned observation times ``(*batch, N)``.
        observed_index: index of every observation in `times`, ``(*batch, N)``, int64.

    Raises:
        ValueError: if times are empty, not finite, unsorted or repeated, a row has no valid time, an observation lies
            outside ``[start, end]``, or `max_step` is not positive.
        TypeError: if times, `mask`, `start` or `end` are not numbers.

    Example:
        >>> grid = TimeGrid(torch.tensor([0.0, 0.5, 2.0]), max_step=0.5)
        >>> grid.times
        tensor([0.0000, 0.5000, 1.0000, 1.5000, 2.0000])
        >>> grid.observed_index
        tensor([0, 1, 4])
    """

    def __init__(
        self,
        times: Tensor | Sequence[float],
        *,
        max_step: float | None = None,
        mask: Tensor | Sequence[bool] | None = None,
        start: float | Tensor | None = None,
        end: float | Tensor | None = None,
    ) -> None:
        times = as_times(times)
        check_max_step(max_step)
        if mask is None:
            self.mask = torch.ones_like(times, dtype=torch.bool)
        else:
            self.mask = check_mask(mask, times)
        self.observed_times = fill_invalid(times, self.mask)
        if mask is None:
            self.mask = ~trailing_repeats(self.observed_times)
            # padding refers to the last time: its gradient goes there, as in the grid of the series alone
            self.observed_times = fill_invalid(self.observed_times, self.mask)
        check_increasing(self.observed_times, self.mask)

        knots = self.observed_times
        if start is not None:
            first = endpoint(start, "start", knots)
            check_inside((knots[..., :1] >= first).all(), "start", first, knots)
            knots = torch.cat([first, knots], -1)
        if end is not None:
            last = endpoint(end, "end", knots)
            check_inside((knots[..., -1:] <= last).all(), "end", last, knots)
            knots = torch.cat([knots, last], -1)
        gaps = knots.detach().diff(dim=-1)
        counts = (gaps > 0).long()
        if max_step is not None:
            counts = torch.ceil(gaps.double() / max_step * (1 - _STEP_TOLERANCE)).long().clamp(min=counts)
        self._knots = knots
        places = torch.arange(times.shape[-1], device=times.device) + int(start is not None)
        self._places = places.expand(times.shape)
        self._build(counts)

    @classmethod
    def adaptive(
        cls,
        sde: PilotSDE,
        initial: Distribution | Tensor,
        times: Tensor | Sequence[float],
        *,
        pilot: Pilot | None = None,
        mask: Tensor | Sequence[bool] | None = None,
        start: float | Tensor | None = None,
        end: float | Tensor | None = None,
    ) -> TimeGrid:
        """Grid whose steps are chosen by a pilot solve of an SDE, and then frozen.

        The pilot runs on noise of its own. So the grid is *previsible*: independent of the noise of every path that is
        simulated on it, it leaves the chain on it a chain of Gaussian kernels, and densities, divergences and
        estimators are exact for that chain, for every noise type. (Steps that are accepted or rejected on the noise of
        the path itself are not: the product of the kernels is no density then.)

        Each series has its own error norm and its own steps: a stiff one costs the others nothing, and has the grid
        that it would have alone. Steps never cross an observation. Divergences are no part of the norm. A grid that
        serves all paths of a series is worth its pilot where the SDE needs short steps at some times: after a start
        far from equilibrium, or where coefficients depend on time. Where every path has its own bad moments it finds
        the step that they need on average.

        Cost: two evaluations of the coefficients per pilot path and trial step. Coefficients that capture a tensor
        per series are evaluated for all series at once.

        Args:
            sde: the SDE that the grid is for, without inputs: a prior.
            initial: law of the first state, event shape ``(D,)``, or first states ``(P, *batch, D)`` of P pilot paths.
                The law is sampled for the whole batch: only with states does a grid not depend on the other series.
            times: as for `TimeGrid`, and so `mask`, `start` and `end`.
            pilot: tolerance and other options, `Pilot`.
            mask: see `times`.
            start: see `times`.
            end: see `times`.

        Raises:
            TypeError: if `sde` or `initial` is of another type.
            ValueError: if times or shapes do not fit, a pilot path is not finite, or the tolerance cannot be kept.

        References:
            Talay and Tubaro (1990), Expansion of the global error for numerical schemes solving stochastic
            differential equations, section 2: the local errors that expectations see.

        Example:
            >>> import torch
            >>> from pyro_sde.sde import DoubleWell
            >>> grid = TimeGrid.adaptive(DoubleWell(), torch.full((16, 1), 4.0), [0.0, 2.0], pilot=Pilot(atol=0.1))
            >>> bool(grid.steps[0] < 0.01), bool(grid.steps[-1] > 0.02)
            (True, True)
        """
        grid = cls(times, mask=mask, start=start, end=end)
        knots, places = pilot_knots(sde, initial, grid._knots, Pilot() if pilot is None else pilot)
        grid = grid.expand(knots.shape[:-1])
        grid._places = places.gather(-1, grid._places)
        grid._knots = knots
        grid._build((knots.detach().diff(dim=-1) > 0).long())
        return grid

    def _build(self, counts: Tensor, num_steps: int | None = None) -> None:
        """Set `times`, `steps` and `observed_index` from the number of steps per gap, ``(*batch, N' - 1)``."""
        self._counts = counts
        if num_steps is None and bool((counts == 1).all()):  # no padding: the knots are the grid
            self.times, self.steps, self.observed_index = self._knots, self._knots.diff(dim=-1), self._places
            return
        ends = counts.cumsum(-1)  # solver index at which each gap ends
        begins = torch.cat([torch.zeros_like(ends[..., :1]), ends], -1)[..., : self._knots.shape[-1]]
        if counts.shape[-1] == 0:
            begins = torch.zeros_like(self._knots, dtype=torch.long)
        total = begins[..., -1:]
        num_steps = int(total.max()) if num_steps is None else num_steps
        step = torch.arange(num_steps, device=counts.device).expand(*counts.shape[:-1], num_steps)
        if num_steps == 0:
            self.steps = self._knots[..., :0]
            self.times = self._knots[..., -1:]
        else:
            gap = torch.searchsorted(ends, step.contiguous(), right=True).clamp(max=counts.shape[-1] - 1)
            left = self._knots.gather(-1, gap)
            length = self._knots.gather(-1, gap + 1) - left
            count = counts.gather(-1, gap).clamp(min=1)
            valid = step < total
            last = self._knots[..., -1:]
            fraction = (step - begins.gather(-1, gap)).to(left.dtype) / count
            self.steps = torch.where(valid, length / count, torch.zeros_like(length))
            self.times = torch.cat([torch.where(valid, left + length * fraction, last), last], -1)
        self.observed_index = begins.gather(-1, self._places)

    @property
    def batch_shape(self) -> torch.Size:
        """Batch shape of the grid; ``()`` if all series share one grid."""
        return self.times.shape[:-1]

    @property
    def num_steps(self) -> int:
        """Number of solver steps K of the longest series."""
        return self.steps.shape[-1]

    def observed(self, path: Tensor) -> Tensor:
        """States at the observation times.

        Args:
            path: a path on this grid, ``(..., K + 1, D)``; extra dimensions on the left are allowed.

        Returns:
            ``(..., N, D)``; padded entries hold the last valid state (apply `mask` in the likelihood).

        Raises:
            ValueError: if `path` has another number of grid points or a batch shape that does not fit.
        """
        if not isinstance(path, Tensor) or path.dim() < 2 or path.shape[-2] != self.times.shape[-1]:
            shape = tuple(path.shape) if isinstance(path, Tensor) else type(path).__name__
            msg = (
                f"`path` must have shape (..., {self.times.shape[-1]}, D) on this grid, received {shape}. "
                "Pass the whole solver path of the site that uses this grid."
            )
            raise ValueError(msg)
        if not self.batch_shape:
            return path.index_select(-2, self.observed_index)
        try:
            batch = torch.broadcast_shapes(path.shape[:-2], self.batch_shape)
        except RuntimeError as error:
            batches = f"{tuple(path.shape[:-2])} and {tuple(self.batch_shape)}"
            msg = f"the batch dimensions of `path` and of this grid must broadcast, received {batches}."
            raise ValueError(msg) from error
        index = self.observed_index.unsqueeze(-1).expand(*batch, -1, path.shape[-1])  # (..., N, D)
        return path.expand(*batch, *path.shape[-2:]).gather(-2, index)

    def refine(self, n: int) -> TimeGrid:
        """Cut every step into `n` equal steps; observations stay the same.

        Raises:
            ValueError: if `n` is not a positive integer.
        """
        if not isinstance(n, int) or n < 1:
            msg = f"`n` must be a positive integer, received {n!r}."
            raise ValueError(msg)
        grid = copy.copy(self)
        grid._build(self._counts * n, self.num_steps * n)  # K of selected series may be padding for all of them
        return grid

    def expand(self, batch_shape: torch.Size | Sequence[int]) -> TimeGrid:
        """View of this grid with the batch shape `batch_shape`.

        Raises:
            ValueError: if the grid's own batch shape does not broadcast to it.
        """
        batch_shape = torch.Size(batch_shape)
        own = self.batch_shape
        fits = len(batch_shape) >= len(own) and min(batch_shape, default=0) >= 0
        if not fits or any(a not in (1, b) for a, b in zip(reversed(own), reversed(batch_shape), strict=False)):
            msg = f"`batch_shape` {tuple(batch_shape)} is not one that the batch shape {tuple(own)} broadcasts to."
            raise ValueError(msg)
        grid = copy.copy(self)
        for name in _TENSORS:
            value = getattr(self, name)
            setattr(grid, name, value.expand(*batch_shape, value.shape[-1]))
        return grid

    def __getitem__(self, index: object) -> TimeGrid:
        """Grid of some series of the batch, such as the indices of a subsampled plate; K stays the same.

        Raises:
            ValueError: if all series share this grid.
            IndexError: if `index` does not fit the batch shape.
        """
        if not self.batch_shape:
            msg = "this grid is shared by all series (batch_shape ()); there is no series to select."
            raise ValueError(msg)
        # The index picks series by number first, so that no index whatever can reach the time dimension.
        series = torch.arange(self.batch_shape.numel(), device=self.times.device).reshape(self.batch_shape)
        try:
            chosen = series[index]  # type: ignore[index]
        except IndexError as error:
            msg = f"`index` selects along the batch shape {tuple(series.shape)} of a grid, never along time: {error}."
            raise IndexError(msg) from error
        grid = copy.copy(self)
        for name in _TENSORS:
            setattr(grid, name, getattr(self, name).flatten(end_dim=-2)[chosen])
        return grid

    def __repr__(self) -> str:
        """Shapes and range, for error messages."""
        low, high = float(self.times.detach().min()), float(self.times.detach().max())
        observations = self.observed_times.shape[-1]
        sizes = f"batch_shape={tuple(self.batch_shape)}, observations={observations}, num_steps={self.num_steps}"
        return f"TimeGrid({sizes}, [{low:g}, {high:g}])"
