"""The record that a carried value has beside its states."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..sde.base import SDE

__all__ = ["Record", "attach", "check_not_carried", "record_of", "same_equation"]

_NAME = "_pyro_sde_record"


class Record(NamedTuple):
    """What the solve knew about a value, and how to tell that the value is still the same."""

    initial: Tensor  # state at the first time of the grid, (..., D)
    kl: Tensor  # (...)
    martingale: Tensor | None
    law: object  # identity of the law that sampled the value
    reference: SDE  # the SDE without the control
    version: int  # of the value, which counts changes in place


def attach(value: Tensor, record: Record) -> Tensor:
    """Put a record on a value: an attribute of a plain tensor, which copies and views of it do not have."""
    setattr(value, _NAME, record._replace(version=value._version))
    return value


def record_of(value: Tensor) -> Record | None:
    """The record of a value; None if it has none or was changed in place."""
    record = getattr(value, _NAME, None)
    return record if isinstance(record, Record) and record.version == value._version else None


def check_not_carried(value: Tensor) -> None:
    """Raise ValueError if a value has a record: the law that looks at it would compare a density with a ratio."""
    if record_of(value) is not None:
        msg = (
            "this value was sampled by a CarriedPath, whose densities are relative to its prior. Use CarriedPath in "
            "both model and guide, or in neither."
        )
        raise ValueError(msg)


def same_equation(ours: SDE, theirs: SDE) -> bool:
    """Whether two objects are one SDE: the same object, or copies that share every function, parameter and input."""
    if ours is theirs:
        return True
    if type(ours) is not type(theirs) or ours.__dict__.keys() != theirs.__dict__.keys():
        return False
    return all(_same(value, theirs.__dict__[name]) for name, value in ours.__dict__.items())


def _same(ours: object, theirs: object) -> bool:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(_same(value, theirs[key]) for key, value in ours.items())
    if isinstance(ours, bool | int | float | str | set):
        return ours == theirs
    return ours is theirs
