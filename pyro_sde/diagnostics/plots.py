"""Pictures of paths, losses and phase planes; matplotlib is imported when the first one is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["panels", "plot_losses", "plot_paths", "plot_phase"]

# Blue and orange stay apart for every kind of colour blindness, and in grey: the orange is lighter and hollow.
_BLUE = "#2f6690"
_ORANGE = "#d9762b"
_INK = "#30343b"
_GREY = "#8a9099"
_GRID = "#e6e8eb"
_SHADE = "#f3f1ec"
_MANY = 150  # points from which markers become small

# A series: times (n,) and values (n,).
_Points = tuple[Tensor, Tensor]


def plot_paths(
    times: Tensor,
    samples: Tensor,
    *,
    observed: _Points | None = None,
    held_out: _Points | None = None,
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
        ValueError: if shapes do not fit or `num_paths` is out of range.
    """
    if times.dim() != 1 or samples.dim() != 2 or samples.shape[1] != times.shape[0] or samples.shape[0] < 2:
        msg = (
            "`samples` must have shape (S, T) with S >= 2 and `times` (T,), received "
            f"{tuple(samples.shape)} and {tuple(times.shape)}. Index one series and one state: path[:, 0, :, 0]."
        )
        raise ValueError(msg)
    if not 0 <= num_paths <= samples.shape[0]:
        msg = f"`num_paths` must lie between 0 and the {samples.shape[0]} samples, received {num_paths}."
        raise ValueError(msg)
    seen, unseen = _points(observed, "observed"), _points(held_out, "held_out")
    ax = _axes(ax, (9.0, 3.8))
    t, draws = _numpy(times), _numpy(samples)
    low, lower, median, upper, high = np.nanquantile(draws, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)

    end = max([t[-1], *(points[0].max() for points in (seen, unseen) if points is not None and points[0].size)])
    if forecast_from is not None and forecast_from < end:
        ax.axvspan(forecast_from, end, color=_SHADE, linewidth=0, zorder=0, label="forecast")
        ax.axvline(forecast_from, color=_GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    ax.fill_between(t, low, high, color=_BLUE, alpha=0.16, linewidth=0, zorder=2, label="90 % band")
    ax.fill_between(t, lower, upper, color=_BLUE, alpha=0.30, linewidth=0, zorder=3, label="50 % band")
    if num_paths:
        lines = ax.plot(t, draws[:num_paths].T, color=_BLUE, linewidth=0.6, alpha=0.55, zorder=4)
        lines[0].set_label("draws")
    ax.plot(t, median, color=_BLUE, linewidth=1.4, zorder=5, label="median")
    for points, held in ((seen, False), (unseen, True)):
        if points is not None:
            ax.plot(*points, label="held out" if held else "observed", **_marker(points[0].size, held))
    ax.set_xlim(min(t[0], *(p[0].min() for p in (seen, unseen) if p is not None and p[0].size), t[0]), end)
    ax.set_xlabel("time")
    _legend(ax)
    return ax


def plot_losses(losses: Sequence[float] | Tensor, *, window: int | None = None, ax: Axes | None = None) -> Axes:
    """Training loss per step with its running median; the first tenth does not set the scale.

    Args:
        losses: one loss per step, at least 2; for an ELBO in nats.
        window: steps in the running (trailing) median; a fiftieth of the run, at least 5, if None.
        ax: axes to draw on; a new figure if None.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if `losses` is not a list of at least 2 numbers, or `window` is not positive.
    """
    values = _numpy(torch.as_tensor(losses, dtype=torch.float64))
    if values.ndim != 1 or values.size < 2:
        msg = f"`losses` must be a list of at least 2 numbers, received shape {values.shape}."
        raise ValueError(msg)
    if window is not None and window < 1:
        msg = f"`window` must be at least 1 step, received {window}."
        raise ValueError(msg)
    width = min(window or max(values.size // 50, 5), values.size)
    padded = np.concatenate([np.full(width - 1, np.nan), values])
    smooth = np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, width), axis=-1)
    ax = _axes(ax, (6.0, 3.4))
    steps = np.arange(1, values.size + 1)
    ax.plot(steps, values, color=_BLUE, linewidth=0.7, alpha=0.35, label="each step")
    ax.plot(steps, smooth, color=_BLUE, linewidth=1.8, label=f"median of {width}")
    # The first steps are often thousands of nats away and would flatten everything that matters.
    settled = values[values.size // 10 :]
    settled = settled[np.isfinite(settled)]
    if settled.size:
        low, high = np.quantile(settled, [0.0, 0.99])
        margin = 0.08 * (high - low) or 1.0
        ax.set_ylim(low - margin, high + 2 * margin)
    ax.set_xlim(1, values.size)
    ax.set_xlabel("step")
    ax.set_ylabel("loss")
    _legend(ax)
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
    ax = _axes(ax, (5.2, 4.4))
    u, v = _numpy(field[..., 0]), _numpy(field[..., 1])
    ax.streamplot(_numpy(x), _numpy(y), u, v, color="#b9bfc7", linewidth=0.8, density=1.1, arrowsize=0.8, zorder=1)
    for path in _numpy(paths):
        ax.plot(path[:, 0], path[:, 1], color=_BLUE, linewidth=0.8, alpha=0.6, zorder=2)
    starts = _numpy(paths[:, 0])
    ax.plot(starts[:, 0], starts[:, 1], "o", color=_ORANGE, markersize=4.5, markeredgecolor="white", zorder=3)
    ax.set_xlim(float(low[0]), float(high[0]))
    ax.set_ylim(float(low[1]), float(high[1]))
    ax.set_xlabel("$z_1$")
    ax.set_ylabel("$z_2$", rotation=0, labelpad=10)
    ax.grid(visible=False)
    return ax


def panels(rows: int, *, size: tuple[float, float] = (9.0, 6.0)) -> list[Axes]:
    """Axes of a new figure, one below the other, for the `ax` of the functions above.

    Args:
        rows: number of axes, at least 1.
        size: width and height of the figure in inches.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if `rows` is not positive.
    """
    if rows < 1:
        msg = f"`rows` must be at least 1, received {rows}."
        raise ValueError(msg)
    first = _axes(None, size)
    figure = first.figure
    first.remove()
    return list(figure.subplots(rows, 1, squeeze=False)[:, 0])


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The given axes or those of a new figure, in our style; matplotlib's global settings are left alone."""
    if ax is None:
        try:
            from matplotlib import pyplot
        except ImportError as error:
            msg = 'matplotlib is needed to draw and is not installed. Run `pip install "pyro_sde[plots]"`.'
            raise ImportError(msg) from error
        ax = pyplot.subplots(figsize=size, dpi=150, layout="constrained")[1]
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_GREY)
        spine.set_linewidth(0.7)
    ax.grid(visible=True, color=_GRID, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.tick_params(colors=_INK, length=3, width=0.7, labelsize=9)
    ax.xaxis.label.set_color(_INK)
    ax.yaxis.label.set_color(_INK)
    for side in ("left", "center", "right"):
        ax.set_title(ax.get_title(loc=side), loc=side, color=_INK)
    return ax


def _legend(ax: Axes) -> None:
    """Legend to the right of the data, data first and bands last."""
    order = ("observed", "held out", "median", "draws", "50 % band", "90 % band", "forecast")
    handles, labels = ax.get_legend_handles_labels()
    entries = sorted(zip(labels, handles, strict=True), key=lambda e: order.index(e[0]) if e[0] in order else 99)
    legend = ax.legend(
        [handle for _, handle in entries],
        [label for label, _ in entries],
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        frameon=False,
        fontsize=9,
        labelcolor=_INK,
        handlelength=1.6,
        borderaxespad=0.0,
    )
    for line in legend.get_lines():
        if line.get_marker() == "o":  # dots of a dense series are too small to tell their colours apart
            line.set_markersize(max(line.get_markersize(), 3.5))


def _points(points: _Points | None, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Finite points as arrays."""
    if points is None:
        return None
    times, values = points
    if times.dim() != 1 or values.shape != times.shape:
        msg = (
            f"`{name}` must be a pair of times (n,) and values (n,), received {tuple(times.shape)} and "
            f"{tuple(values.shape)}. Index one series and one channel."
        )
        raise ValueError(msg)
    t, y = _numpy(times), _numpy(values)
    finite = np.isfinite(t) & np.isfinite(y)
    return t[finite], y[finite]


def _marker(count: int, held_out: bool) -> dict[str, Any]:
    """Few points are dots and hollow diamonds above the median; many are small dots below it, so that it shows."""
    size = float(np.clip(6.3 - 1.4 * np.log10(max(count, 1)), 1.6, 4.5))
    color = _ORANGE if held_out else _INK
    if count > _MANY:
        return {
            "marker": "o",
            "ls": "",
            "color": color,
            "ms": size,
            "mew": 0,
            "alpha": 0.75,
            "zorder": 4 + 0.5 * held_out,
        }
    if held_out:
        return {"marker": "D", "ls": "", "mfc": "white", "mec": color, "mew": 1.1, "ms": size + 0.6, "zorder": 7}
    return {"marker": "o", "ls": "", "color": color, "ms": size, "mew": 0, "zorder": 6}


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
