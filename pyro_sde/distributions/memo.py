"""Coefficients that were computed while a path was sampled, kept for its density as long as the path lives."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from ..sde.base import Coefficients

__all__ = ["PathMemo"]


class PathMemo:
    """Remembers the coefficients of one path, by the identity of its tensor and without keeping it alive.

    They carry the graph of the loop that made the path, so they serve only where its gradient is wanted whole: a bound
    that cuts values from their sampling (sticking the landing) asks with another tensor and gets nothing.
    """

    def __init__(self) -> None:
        self._path: weakref.ref[Tensor] | None = None
        self._version = 0
        self._steps: list[Coefficients] | Coefficients | None = None

    def keep(self, path: Tensor, steps: list[Coefficients] | Coefficients) -> None:
        """Remember the coefficients along `path` ``(..., K + 1, D)``, and forget those of any other.

        They come step by step, for states ``(..., D)``, or with time leftmost, for states ``(K, ..., D)``.
        """
        memo = weakref.ref(self)  # not `self`: a memo that its own callback holds would outlive its law

        def forget(_: object) -> None:
            owner = memo()
            if owner is not None:
                owner._steps = None

        self._path, self._version, self._steps = weakref.ref(path, forget), path._version, steps

    def recall(self, path: Tensor, dims: int, matrix_dims: int) -> Coefficients | None:
        """Coefficients along `path`, time leftmost, if this is the path they belong to, and not changed since.

        Args:
            path: the path asked about, ``(..., K + 1, D)``; coefficients are for states ``(K, ..., D)``.
            dims: number of axes of its states with time leftmost.
            matrix_dims: axes of the diffusion beyond those of a state.
        """
        if not self._steps or self._path is None or self._path() is not path or self._version != path._version:
            return None
        if isinstance(self._steps, Coefficients):
            drift, diffusion, control = self._steps
            return Coefficients(
                _with_dims(drift, dims),
                _with_dims(diffusion, dims + matrix_dims),
                None if control is None else _with_dims(control, dims),
            )
        drifts, diffusions, controls = zip(*self._steps, strict=True)
        control = None if controls[0] is None else _along_time(controls, dims)
        return Coefficients(_along_time(drifts, dims), _along_time(diffusions, dims + matrix_dims), control)


def _along_time(parts: tuple[Tensor, ...], dims: int) -> Tensor:
    first = parts[0]
    if all(part is first for part in parts):
        return first
    # the first state may have fewer batch dimensions than the later ones
    return _with_dims(torch.stack(parts if first.shape == parts[-1].shape else torch.broadcast_tensors(*parts)), dims)


def _with_dims(stacked: Tensor, dims: int) -> Tensor:
    return stacked.reshape(len(stacked), *[1] * (dims - stacked.dim()), *stacked.shape[1:])
