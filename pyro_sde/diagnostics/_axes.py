"""Axes in the style of the package; matplotlib is imported when the first are made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..ops._arguments import check_counts
from ._drawing import GREY, GRID, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["panels", "styled_axes"]


def panels(rows: int, *, size: tuple[float, float] = (9.0, 6.0)) -> list[Axes]:
    """Axes of a new figure, one below the other, for the `ax` of the plots.

    Args:
        rows: number of axes, at least 1.
        size: width and height of the figure in inches.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if `rows` is not positive.
    """
    check_counts(rows=rows)
    if not isinstance(size, tuple | list) or len(size) != 2:
        msg = f"`size` must be width and height in inches, received {size!r}."
        raise ValueError(msg)
    first = styled_axes(None, size)
    figure = first.figure
    first.remove()
    return list(figure.subplots(rows, 1, squeeze=False)[:, 0])


def styled_axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
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
        spine.set_color(GREY)
        spine.set_linewidth(0.7)
    ax.grid(visible=True, color=GRID, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.tick_params(colors=INK, length=3, width=0.7, labelsize=9)
    ax.xaxis.label.set_color(INK)
    ax.yaxis.label.set_color(INK)
    for side in ("left", "center", "right"):
        ax.set_title(ax.get_title(loc=side), loc=side, color=INK)
    return ax
