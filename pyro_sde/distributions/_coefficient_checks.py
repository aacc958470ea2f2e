"""Checks of what a path law of an SDE is given: shapes, dtypes and devices, by one call of the coefficients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..ops.brownian import LEVY, VirtualBrownianTree
from ..ops.grid import TimeGrid
from ..sde.base import SDE, Coefficients
from ..sde.noise import trailing_singleton
from ..solvers.base import Solver
from .effects import EffectRecorder

__all__ = [
    "Probed",
    "broadcast_shapes",
    "check_brownian",
    "check_kind",
    "check_rows",
    "first_argument",
    "probe",
    "tree_for",
]


class Probed(NamedTuple):
    """What one call of the coefficients has told."""

    batch_shape: torch.Size
    brownian_dim: int


def check_rows(row: Tensor | None, grid: TimeGrid) -> None:
    """Raise ValueError unless inputs have one row per step of the grid."""
    if row is None:
        return
    if not isinstance(row, Tensor):
        msg = f"`inputs` must be a tensor (*batch, K, C), received {type(row).__name__}."
        raise TypeError(msg)
    if row.dim() < 2 or row.shape[-2] != grid.num_steps:
        msg = (
            f"`inputs` must have shape (*batch, K, C) with one row per solver step, K = {grid.num_steps}; "
            f"received {tuple(row.shape)}. Row k serves the step from grid.times[k] to grid.times[k + 1]."
        )
        raise ValueError(msg)
    check_kind("inputs", row, grid)


def check_kind(name: str, value: Tensor | None, grid: TimeGrid) -> None:
    """Raise ValueError if a tensor has another floating-point dtype or device than the grid."""
    times = grid.times
    if value is not None and value.is_floating_point() and (value.dtype, value.device) != (times.dtype, times.device):
        msg = (
            f"`{name}` has dtype {value.dtype} on {value.device}, but the grid has {times.dtype} on "
            f"{times.device}. Convert one of them, e.g. TimeGrid(times.to({value.dtype}))."
        )
        raise ValueError(msg)


def check_brownian(brownian: VirtualBrownianTree, grid: TimeGrid, solver: Solver, brownian_dim: int) -> None:
    """Raise unless a Brownian path covers the grid, and has the dimension and the Lévy areas that are needed."""
    if not isinstance(brownian, VirtualBrownianTree):
        msg = f"`brownian` must be a VirtualBrownianTree, received {type(brownian).__name__}."
        raise TypeError(msg)
    low, high = float(grid.times.detach().min()), float(grid.times.detach().max())
    slack = 4 * torch.finfo(grid.times.dtype).eps * max(abs(low), abs(high))
    if low < brownian.start - slack or high > brownian.end + slack:
        msg = f"`brownian` covers [{brownian.start:g}, {brownian.end:g}], and the grid [{low:g}, {high:g}]."
        raise ValueError(msg)
    if brownian.brownian_dim != brownian_dim:
        msg = (
            f"`brownian` must have brownian_dim={brownian_dim}, the number of Brownian motions of the SDE; received "
            f"{brownian.brownian_dim}."
        )
        raise ValueError(msg)
    if LEVY.index(brownian.levy) < LEVY.index(solver.levy):
        msg = (
            f'{solver!r} needs Lévy areas that `brownian` does not have: build it with levy="{solver.levy}", received '
            f'levy="{brownian.levy}".'
        )
        raise ValueError(msg)


def tree_for(brownian: VirtualBrownianTree, batch: torch.Size) -> VirtualBrownianTree:
    """One Brownian path for each series of a batch: the seeds, and children of theirs for dimensions on the left.

    Raises:
        ValueError: if the seeds are those of other series.
    """
    own = brownian.batch_shape
    if own != batch[len(batch) - len(own) :]:
        msg = (
            f"`brownian` has seeds of shape {tuple(own)}, and the path law batch shape {tuple(batch)}. Give one seed "
            "for each series, or a single one from which theirs are derived."
        )
        raise ValueError(msg)
    return brownian.children(batch[: len(batch) - len(own)]) if len(own) < len(batch) else brownian


def probe(
    sde: SDE, grid: TimeGrid, rows: tuple[Tensor | None, ...], effects: EffectRecorder, shape: torch.Size
) -> Probed:
    """Call the coefficients once at zero states of some shape: batch shape, Brownian dimension and Pyro effects.

    Raises:
        ValueError: if a coefficient has a wrong shape, dtype or device.
    """
    z = grid.times.new_zeros(shape)
    first = tuple(None if row is None else _first_row(row) for row in rows)
    with effects:
        coefficients = sde.coefficients(grid.times[..., :1], z, first)
    effects.seal()
    return _check_coefficients(sde, grid, coefficients, z)


def _check_coefficients(sde: SDE, grid: TimeGrid, coefficients: Coefficients, z: Tensor) -> Probed:
    drift, diffusion, control = coefficients
    noise = sde.noise
    width = z.shape[-1]
    if trailing_singleton(drift, z) or (drift.dim() and drift.shape[-1] not in (1, width)):
        raise ValueError(_shape_text("drift", drift, z, "it must broadcast against the state"))
    problem = noise.shape_error(diffusion, z)
    if problem:
        raise ValueError(_shape_text(f"{sde.noise_type} diffusion", diffusion, z, problem))
    brownian_dim = noise.brownian_dim(diffusion, width)
    if control is not None and control.dim() and control.shape[-1] not in (1, brownian_dim):
        msg = (
            f"`control` must return shape (..., {brownian_dim}), one entry per Brownian motion of "
            f"{sde.noise_type} noise; received {tuple(control.shape)}."
        )
        raise ValueError(msg)
    for name, value in (("drift", drift), ("diffusion", diffusion), ("control", control)):
        check_kind(name, value, grid)
    shapes = [("state", z.shape[:-1]), ("drift", drift.shape[:-1]), ("diffusion", noise.batch_shape(diffusion))]
    shapes += [] if control is None else [("control", control.shape[:-1])]
    return Probed(broadcast_shapes(shapes), brownian_dim)


def broadcast_shapes(shapes: list[tuple[str, torch.Size]]) -> torch.Size:
    """Common batch shape of named shapes.

    Raises:
        ValueError: if there is none.
    """
    different = {shape for _, shape in shapes if shape}
    if len(different) < 2:  # torch's function is slow
        return different.pop() if different else torch.Size()
    try:
        return torch.broadcast_shapes(*(shape for _, shape in shapes))
    except RuntimeError as error:
        received = ", ".join(f"`{name}` {tuple(shape)}" for name, shape in shapes)
        msg = (
            f"batch shapes must broadcast against each other, received {received}. A tensor with one entry per series "
            "must have shape (B, 1) in a drift, diffusion or control."
        )
        raise ValueError(msg) from error


def first_argument(law: Distribution) -> Tensor | None:
    """Some floating-point argument of a law, to see its dtype and device without drawing from it."""
    while isinstance(base := getattr(law, "base_dist", None), Distribution):
        law = base
    arguments = (law.__dict__.get(name) for name in law.arg_constraints)
    return next((a for a in arguments if isinstance(a, Tensor) and a.is_floating_point()), None)


def _first_row(row: Tensor) -> Tensor:
    return row[..., 0, :] if row.shape[-2] else row.new_zeros((*row.shape[:-2], row.shape[-1]))


def _shape_text(name: str, value: Tensor, z: Tensor, advice: str) -> str:
    return f"`{name}` returned shape {tuple(value.shape)} for states of shape {tuple(z.shape)}: {advice}."
