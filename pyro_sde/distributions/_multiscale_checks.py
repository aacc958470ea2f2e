"""Whether the arguments of a fine path law fit each other."""

from __future__ import annotations

from torch import Tensor

from ..ops.windows import Windows
from ._coefficient_checks import check_kind
from ._multiscale_levels import LevelsAbove
from .multiscale_kernels import ReEntry

__all__ = ["check_inputs", "check_types", "on_rows"]


def check_types(windows: object, reentry: object) -> None:
    """Raise TypeError unless they are windows and a re-entry law."""
    if not isinstance(windows, Windows):
        msg = f"`windows` must be Windows, received {type(windows).__name__}. Write Windows.around(grid, ...)."
        raise TypeError(msg)
    if not isinstance(reentry, ReEntry):
        msg = (
            f"`reentry` must be ExactReEntry(), BurnIn(entry) or AmortisedReEntry(entry), received "
            f"{type(reentry).__name__}."
        )
        raise TypeError(msg)


def on_rows(coarse: Tensor | LevelsAbove, windows: Windows) -> tuple[Tensor, Windows, LevelsAbove | None]:
    """Coarse states, the windows on their rows, and the levels above if there are several.

    Raises:
        ValueError: if the states do not fit the windows.
    """
    if isinstance(coarse, LevelsAbove):
        windows = coarse.lower(windows)
        check_kind("coarse", coarse.states, windows.coarse)
        return coarse.states, windows, coarse
    if windows.outer is not None:
        msg = (
            "`coarse` must be the states of all levels above for windows from Windows.within, received a tensor. Pass "
            "`middle.beside(b)`, with the law and the value of the level above."
        )
        raise ValueError(msg)
    _check_coarse(coarse, windows)
    return coarse, windows, None


def _check_coarse(coarse: Tensor, windows: Windows) -> None:
    points = windows.coarse.num_steps + 1
    if coarse.dim() < 2 or coarse.shape[-2] != points:
        msg = (
            f"`coarse` must be a path (*batch, {points}, D_a) on the coarse grid of the windows, received "
            f"{tuple(coarse.shape)}. If these are fine states, the levels are in the wrong order."
        )
        raise ValueError(msg)
    check_kind("coarse", coarse, windows.coarse)


def check_inputs(inputs: Tensor | None, windows: Windows, *, controlled: bool) -> None:
    """Raise ValueError unless they are rows of the slowest grid, for a control."""
    if inputs is None:
        return
    steps = windows.slowest.num_steps
    if not controlled or inputs.dim() < 2 or inputs.shape[-2] != steps:
        msg = (
            f"`inputs` are for the control, one row per step of the slowest grid: shape (*batch, {steps}, C) and "
            f"fine.controlled(control); received {tuple(inputs.shape)}{'' if controlled else ' without a control'}."
        )
        raise ValueError(msg)
    check_kind("inputs", inputs, windows.coarse)
