"""What pictures share: colours, markers, the legend, and tensors as arrays. Knows no matplotlib."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from torch import Tensor

__all__ = [
    "BLUE",
    "GREY",
    "GRID",
    "INK",
    "ORANGE",
    "Points",
    "SHADE",
    "add_legend",
    "check_fan",
    "finite_points",
    "marker_style",
    "numpy_of",
    "running_median",
]

# Blue and orange stay apart for every kind of colour blindness, and in grey: the orange is lighter and hollow.
BLUE = "#2f6690"
ORANGE = "#d9762b"
INK = "#30343b"
GREY = "#8a9099"
GRID = "#e6e8eb"
SHADE = "#f3f1ec"
_MANY = 150  # points from which markers become small

# A series: times (n,) and values (n,).
Points = tuple[Tensor, Tensor]


def add_legend(ax: Any) -> None:  # noqa: ANN401 (matplotlib axes)
    """Legend to the right of the data, data first and bands last."""
    order = ("observed", "held out", "truth", "median", "draws", "50 % band", "90 % band", "forecast")
    handles, labels = ax.get_legend_handles_labels()
    entries = sorted(zip(labels, handles, strict=True), key=lambda e: order.index(e[0]) if e[0] in order else 99)
    legend = ax.legend(
        [handle for _, handle in entries],
        [label for label, _ in entries],
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        handlelength=1.6,
        borderaxespad=0.0,
    )
    for line in legend.get_lines():
        if line.get_marker() == "o":  # dots of a dense series are too small to tell their colours apart
            line.set_markersize(max(line.get_markersize(), 3.5))


def check_fan(name: str, axis: Tensor, drawn: str, curves: Tensor) -> None:
    """Raise ValueError unless an axis ``(T,)`` is finite, and at each of its points one of ``(S, T)`` is a number."""
    if not axis.numel() or not bool(axis.isfinite().all()):
        msg = f"`{name}` must be finite, and one at least, to be the axis of a picture."
        raise ValueError(msg)
    if bool(curves.reshape(-1, len(axis)).isnan().all(0).any()):
        msg = f"`{drawn}` must hold a number at all `{name}`; leave out those at which every draw is NaN."
        raise ValueError(msg)


def finite_points(points: Points | None, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Finite points as arrays."""
    if points is None:
        return None
    if not isinstance(points, tuple | list) or len(points) != 2 or not all(isinstance(part, Tensor) for part in points):
        msg = f"`{name}` must be a pair of tensors, times (n,) and values (n,), received {type(points).__name__}."
        raise TypeError(msg)
    times, values = points
    if times.dim() != 1 or values.shape != times.shape:
        msg = (
            f"`{name}` must be a pair of times (n,) and values (n,), received {tuple(times.shape)} and "
            f"{tuple(values.shape)}. Index one series and one channel."
        )
        raise ValueError(msg)
    t, y = numpy_of(times), numpy_of(values)
    finite = np.isfinite(t) & np.isfinite(y)
    return t[finite], y[finite]


def marker_style(count: int, held_out: bool) -> dict[str, Any]:
    """Few points are dots and hollow diamonds above the median; many are small dots below it, so that it shows."""
    size = float(np.clip(6.3 - 1.4 * np.log10(max(count, 1)), 1.6, 4.5))
    color = ORANGE if held_out else INK
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


def running_median(values: np.ndarray, width: int) -> np.ndarray:
    """Median of the last `width` values, NaN left out; a gap where there is nothing else."""
    padded = np.concatenate([np.full(width - 1, np.nan), values])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, width), axis=-1)


def numpy_of(tensor: Tensor) -> np.ndarray:
    """The values as an array, without gradient and on the CPU."""
    return tensor.detach().cpu().numpy()
