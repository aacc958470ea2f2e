"""Pictures of paths, coefficients, losses, calibration and phase planes; matplotlib is imported at the first one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..ops._arguments import check_numbers, check_real, check_whole
from ..ops._grid_times import as_tensor
from ._axes import panels, styled_axes
from ._drawing import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    SHADE,
    Points,
    add_legend,
    check_fan,
    finite_points,
    marker_style,
    numpy_of,
    running_median,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["panels", "plot_calibration", "plot_coefficient", "plot_losses", "plot_paths", "plot_phase"]

_MIDDLE = [0.05, 0.25, 0.5, 0.75, 0.95]  # quantiles of median and bands


def plot_paths(
    times: Tensor,
    samples: Tensor,
    *,
    observed: Points | None = None,
    held_out: Points | None = None,
    forecast_from: float | None = None,
    num_paths: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Fan chart of one state or channel: median, 50 % and 90 % bands, observations, forecast region.

    The bands are pointwise quantiles of the samples: pass predictive samples of y for bands that should contain the
    observations, paths of z for the signal alone.

    Args:
        times: increasing times, ``(T,)``.
        samples: draws, ``(S, T)``, ``S >= 2``; index the series and the state first: ``path[:, 0, :, 0]``.
        observed: times and values ``(n,)`` of the observations that the model has seen; NaN is left out.
        held_out: the same for observations that it has not seen, drawn as hollow diamonds.
        forecast_from: time after which the background is shaded.
        num_paths: number of single draws to add as thin lines, between 0 and S.
        ax: axes to draw on; a new figure if None.

    Returns:
        The axes; ``ax.figure.savefig(...)`` writes a file.

    Raises:
        ImportError: if matplotlib is not installed.
        TypeError: if times or samples are no tensors of real numbers.
        ValueError: if shapes do not fit, a time is not finite, or `num_paths` is out of range.
    """
    check_real(times=times, samples=samples)
    check_whole(num_paths=num_paths)
    if forecast_from is not None:
        check_numbers(forecast_from=forecast_from)
    if times.dim() != 1 or samples.dim() != 2 or samples.shape[1] != times.shape[0] or samples.shape[0] < 2:
        msg = (
            "`samples` must have shape (S, T) with S >= 2 and `times` (T,), received "
            f"{tuple(samples.shape)} and {tuple(times.shape)}. Index one series and one state: path[:, 0, :, 0]."
        )
        raise ValueError(msg)
    if not 0 <= num_paths <= samples.shape[0]:
        msg = f"`num_paths` must lie between 0 and the {samples.shape[0]} samples, received {num_paths}."
        raise ValueError(msg)
    check_fan("times", times, "samples", samples)
    seen, unseen = finite_points(observed, "observed"), finite_points(held_out, "held_out")
    ax = styled_axes(ax, (9.0, 3.8))
    t, draws = numpy_of(times), numpy_of(samples)
    low, lower, median, upper, high = np.nanquantile(draws, _MIDDLE, axis=0)

    end = max([t[-1], *(points[0].max() for points in (seen, unseen) if points is not None and points[0].size)])
    if forecast_from is not None and forecast_from < end:
        ax.axvspan(forecast_from, end, color=SHADE, linewidth=0, zorder=0, label="forecast")
        ax.axvline(forecast_from, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    ax.fill_between(t, low, high, color=BLUE, alpha=0.16, linewidth=0, zorder=2, label="90 % band")
    ax.fill_between(t, lower, upper, color=BLUE, alpha=0.30, linewidth=0, zorder=3, label="50 % band")
    if num_paths:
        lines = ax.plot(t, draws[:num_paths].T, color=BLUE, linewidth=0.6, alpha=0.55, zorder=4)
        lines[0].set_label("draws")
    ax.plot(t, median, color=BLUE, linewidth=1.4, zorder=5, label="median")
    for points, held in ((seen, False), (unseen, True)):
        if points is not None:
            ax.plot(*points, label="held out" if held else "observed", **marker_style(points[0].size, held))
    ax.set_xlim(min(t[0], *(p[0].min() for p in (seen, unseen) if p is not None and p[0].size), t[0]), end)
    ax.set_xlabel("time")
    add_legend(ax)
    return ax


def plot_losses(
    losses: Sequence[float] | Tensor,
    *,
    validation: Sequence[tuple[int, float]] = (),
    window: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Training loss per step with its running median; the first tenth does not set the scale.

    Args:
        losses: ``(n,)``, one loss per step, n >= 2; for an ELBO in nats: `FitResult.losses`.
        validation: pairs (step, loss), `FitResult.validation_losses`; a diamond marks the lowest.
        window: steps in the running (trailing) median; a fiftieth of the run, at least 5, if None.
        ax: axes to draw on; a new figure if None.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if `losses` is not a list of at least 2 numbers, `validation` is not a list of pairs, or `window` is
            not positive.
    """
    values = numpy_of(as_tensor(losses, "losses", dtype=torch.float64))
    if values.ndim != 1 or values.size < 2:
        msg = f"`losses` must be a list of at least 2 numbers, received shape {values.shape}."
        raise ValueError(msg)
    if window is not None:
        check_whole(window=window)
    if window is not None and window < 1:
        msg = f"`window` must be at least 1 step, received {window}."
        raise ValueError(msg)
    held = np.asarray(list(validation), dtype=float)
    if held.size and held.shape != (len(validation), 2):
        msg = f"`validation` must be a list of pairs (step, loss), received shape {held.shape}."
        raise ValueError(msg)
    width = min(window or max(values.size // 50, 5), values.size)
    smooth = running_median(values, width)
    ax = styled_axes(ax, (6.0, 3.4))
    steps = np.arange(1, values.size + 1)
    ax.plot(steps, values, color=BLUE, linewidth=0.7, alpha=0.35, label="each step")
    ax.plot(steps, smooth, color=BLUE, linewidth=1.8, label=f"median of {width}")
    # The first steps are often thousands of nats away and would flatten everything that matters.
    settled = values[values.size // 10 :]
    if held.size:
        ax.plot(*held.T, color=ORANGE, linewidth=1.4, label="validation")
        best = held[np.nanargmin(held[:, 1])]
        ax.plot(*best, **marker_style(1, held_out=True), label=f"lowest, step {best[0]:.0f}")
        settled = np.concatenate([settled, held[held[:, 0] > values.size // 10, 1]])
    settled = settled[np.isfinite(settled)]
    if settled.size:
        low, high = np.quantile(settled, [0.0, 0.99])
        margin = 0.08 * (high - low) or 1.0
        ax.set_ylim(low - margin, high + 2 * margin)
    ax.set_xlim(1, values.size)
    ax.set_xlabel("step")
    ax.set_ylabel("loss")
    add_legend(ax)
    return ax


def plot_coefficient(
    states: Tensor,
    values: Tensor,
    *,
    truth: Tensor | None = None,
    visited: Tensor | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A coefficient as a function of one state, with its uncertainty: median, 50 % and 90 % bands of its draws.

    For a drift under S posterior draws of its parameters, along state 0 with the others held fixed: evaluate
    ``sde.drift(t, z)`` of every draw at points ``z`` of shape ``(G, D)`` and pass component 0.

    Args:
        states: increasing values of the state, ``(G,)``.
        values: the coefficient at these states, ``(S, G)`` for S draws, or ``(G,)`` for one function without bands.
        truth: a known coefficient at these states, ``(G,)``, drawn dashed.
        visited: states of sample paths or data, any shape, drawn as a histogram along the axis: where there are none,
            the coefficient is extrapolated. NaN is left out.
        ax: axes to draw on; a new figure if None.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is not installed.
        TypeError: if an argument is no tensor of real numbers.
        ValueError: if shapes do not fit, or a state is not finite.
    """
    check_real(states=states, values=values)
    check_real(**{n: part for n, part in (("truth", truth), ("visited", visited)) if part is not None})
    if states.dim() != 1 or values.dim() not in (1, 2) or values.shape[-1:] != states.shape:
        msg = (
            f"`values` must have shape (S, G) or (G,) and `states` (G,), received {tuple(values.shape)} and "
            f"{tuple(states.shape)}. Index one component of the coefficient."
        )
        raise ValueError(msg)
    if truth is not None and truth.shape != states.shape:
        msg = f"`truth` must have the shape {tuple(states.shape)} of `states`, received {tuple(truth.shape)}."
        raise ValueError(msg)
    check_fan("states", states, "values", values)
    ax = styled_axes(ax, (6.0, 3.4))
    z, draws = numpy_of(states), np.atleast_2d(numpy_of(values))
    low, lower, median, upper, high = np.nanquantile(draws, _MIDDLE, axis=0)
    if values.dim() == 2:
        ax.fill_between(z, low, high, color=BLUE, alpha=0.16, linewidth=0, zorder=2, label="90 % band")
        ax.fill_between(z, lower, upper, color=BLUE, alpha=0.30, linewidth=0, zorder=3, label="50 % band")
    ax.plot(z, median, color=BLUE, linewidth=1.6, zorder=5, label="median" if values.dim() == 2 else "coefficient")
    if truth is not None:
        ax.plot(z, numpy_of(truth), color=INK, linewidth=1.2, linestyle=(0, (4, 3)), zorder=6, label="truth")
    if visited is not None:
        seen = numpy_of(visited).reshape(-1)
        counts, edges = np.histogram(seen[np.isfinite(seen)], bins=40, range=(z[0], z[-1]))
        heights = 0.12 * counts / max(counts.max(), 1)  # of the height of the axes
        ax.stairs(
            heights, edges, fill=True, color=GREY, alpha=0.6, transform=ax.get_xaxis_transform(), zorder=1,
            label="visited",
        )  # fmt: skip
    ax.set_xlim(z[0], z[-1])
    ax.set_xlabel("state")
    ax.set_ylabel("coefficient")
    add_legend(ax)
    return ax


def plot_calibration(values: Tensor, *, level: float = 0.95, ax: Axes | None = None) -> Axes:
    r"""How far numbers that should be uniform on (0, 1) are from it: their distribution function less the diagonal.

    For `pit` values and for normalised ranks of `simulation_based_calibration`. The curve stays within the band with
    probability `level` if the numbers are independent and uniform. It rises on the left and falls on the right for
    predictions that are too narrow, the other way round for too wide ones, and lies on one side for biased ones.

    .. math:: \hat F(u) - u, \qquad \mathrm{band} = \pm\sqrt{\ln(2 / (1 - c)) / (2 n)}

    Args:
        values: numbers in [0, 1], any shape; NaN is left out.
        level: probability c of the band, ``0 < level < 1``.
        ax: axes to draw on; a new figure if None.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there is no value, one lies outside [0, 1], or `level` is out of range.

    References:
        Massart (1990), The tight constant in the Dvoretzky-Kiefer-Wolfowitz inequality, corollary 1.
    """
    check_real(values=values)
    check_numbers(level=level)
    u = numpy_of(values).reshape(-1).astype(float)
    u = np.sort(u[~np.isnan(u)])
    if not u.size or u[0] < 0 or u[-1] > 1:
        msg = (
            "`values` must hold numbers between 0 and 1, at least one that is not NaN: PIT values or normalised ranks."
        )
        raise ValueError(msg)
    if not 0 < level < 1:
        msg = f"`level` must lie strictly between 0 and 1, received {level}."
        raise ValueError(msg)
    ax = styled_axes(ax, (6.0, 3.4))
    bound = np.sqrt(np.log(2 / (1 - level)) / (2 * u.size))
    ax.fill_between([0, 1], -bound, bound, color=BLUE, alpha=0.16, linewidth=0, label=f"{100 * level:g} % band")
    ax.axhline(0.0, color=GREY, linewidth=0.8)
    share = np.arange(u.size + 1) / u.size
    ends = np.concatenate([[0.0], u, [1.0]])
    # Before and after every jump, so that the steps are drawn as they are.
    ax.plot(
        np.repeat(ends, 2)[1:-1],
        np.repeat(share, 2) - np.repeat(ends, 2)[1:-1],
        color=BLUE,
        linewidth=1.4,
        label="values",
    )
    ax.set_xlim(0, 1)
    ax.set_xlabel("u")
    ax.set_ylabel("share below u, less u")
    add_legend(ax)
    return ax


def plot_phase(
    drift: Callable[[Tensor, Tensor], Tensor],
    paths: Tensor,
    *,
    time: float = 0.0,
    resolution: int = 24,
    ax: Axes | None = None,
) -> Axes:
    """Drift field of a two-dimensional SDE at one time, as stream lines, under sample paths.

    Args:
        drift: ``drift(t, z)`` with t ``(..., 1)`` and z ``(..., 2)``, for example ``sde.drift``.
        paths: sample paths, ``(S, T, 2)``; they also set the limits. A circle marks each start.
        time: time at which the field is drawn.
        resolution: field points per axis, ``>= 2``.
        ax: axes to draw on; a new figure if None.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if `paths` is not (S, T, 2) with finite entries, `resolution` is too small, or the drift does not
            return ``(..., 2)``.
    """
    check_real(paths=paths)
    check_whole(resolution=resolution)
    if paths.dim() != 3 or paths.shape[-1] != 2 or not paths.isfinite().all():
        msg = (
            f"`paths` must be finite with shape (S, T, 2), received {tuple(paths.shape)}. "
            "Choose two states: path[..., [0, 1]]."
        )
        raise ValueError(msg)
    if resolution < 2:
        msg = f"`resolution` must be at least 2 points per axis, received {resolution}."
        raise ValueError(msg)
    low, high = paths.detach().amin((0, 1)), paths.detach().amax((0, 1))
    margin = (0.08 * (high - low)).clamp(min=1e-3)
    low, high = low - margin, high + margin
    unit = torch.linspace(0, 1, resolution, dtype=paths.dtype, device=paths.device)
    x, y = low[0] + (high[0] - low[0]) * unit, low[1] + (high[1] - low[1]) * unit
    points = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)  # (resolution, resolution, 2)
    with torch.no_grad():
        field = drift(torch.full_like(points[..., :1], time), points)
    if field.shape != points.shape:
        msg = f"`drift` must return shape {tuple(points.shape)} for z of that shape, received {tuple(field.shape)}."
        raise ValueError(msg)
    ax = styled_axes(ax, (5.2, 4.4))
    u, v = numpy_of(field[..., 0]), numpy_of(field[..., 1])
    ax.streamplot(numpy_of(x), numpy_of(y), u, v, color="#b9bfc7", linewidth=0.8, density=1.1, arrowsize=0.8, zorder=1)
    for path in numpy_of(paths):
        ax.plot(path[:, 0], path[:, 1], color=BLUE, linewidth=0.8, alpha=0.6, zorder=2)
    starts = numpy_of(paths[:, 0])
    ax.plot(starts[:, 0], starts[:, 1], "o", color=ORANGE, markersize=4.5, markeredgecolor="white", zorder=3)
    ax.set_xlim(float(low[0]), float(high[0]))
    ax.set_ylim(float(low[1]), float(high[1]))
    ax.set_xlabel("$z_1$")
    ax.set_ylabel("$z_2$", rotation=0, labelpad=10)
    ax.grid(visible=False)
    return ax
