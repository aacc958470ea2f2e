"""Files of plain data: what ``torch.load(weights_only=True)`` reads without running any code."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyro.distributions.constraints
import torch
import torch.distributions.constraints
from torch import Tensor
from torch.distributions.constraints import Constraint

__all__ = ["decode_constraint", "encode_constraint", "plain", "read_plain", "write_plain"]

_ATOMS = (bool, int, float, str, type(None), torch.Size, torch.dtype, torch.device)


def plain(value: object, where: str) -> Any:  # noqa: ANN401 (a tree of plain values)
    """Copy of nested dicts, lists and tuples of tensors and numbers; tensors are detached and cloned.

    Args:
        value: the tree.
        where: its name, for messages.

    Raises:
        TypeError: if an entry is anything else; the message names it.
    """
    if isinstance(value, Tensor):
        return value.detach().clone()  # a view would drag its whole storage into the file
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str | int | float):
                msg = f"keys of `{where}` must be strings or numbers, received {key!r}."
                raise TypeError(msg)
        return {key: plain(entry, f"{where}[{key!r}]") for key, entry in value.items()}
    if type(value) in _ATOMS:
        return value
    if type(value) in (list, tuple):
        entries = [plain(entry, f"{where}[{i}]") for i, entry in enumerate(value)]  # type: ignore[arg-type]
        return entries if isinstance(value, list) else tuple(entries)
    msg = (
        f"`{where}` must be plain data (tensors, numbers, strings, None, and dicts, lists and tuples of them), "
        f"received {type(value).__name__}. Convert it, for example arrays by torch.as_tensor."
    )
    raise TypeError(msg)


def _constraint_classes() -> dict[str, type[Constraint]]:
    """Constraint classes of torch and Pyro by name; no others are stored."""
    modules = (torch.distributions.constraints, pyro.distributions.constraints)
    return {
        name: item
        for module in modules
        for name, item in vars(module).items()
        if isinstance(item, type) and issubclass(item, Constraint) and item.__name__ == name
    }


def encode_constraint(constraint: Constraint, name: str) -> dict[str, Any]:
    """Class name and attributes of a constraint of torch or Pyro.

    Raises:
        TypeError: if it is of another class; the message names the parameter `name`.
    """
    kind = type(constraint).__name__
    if _constraint_classes().get(kind) is not type(constraint):
        msg = (
            f"parameter '{name}' has the constraint {constraint!r} of class {kind}, which is neither torch's nor "
            "Pyro's and cannot be stored as plain data. Use one of pyro.distributions.constraints."
        )
        raise TypeError(msg)
    return {"class": kind, "state": {key: _encode(entry, name) for key, entry in vars(constraint).items()}}


def _encode(value: object, name: str) -> Any:  # noqa: ANN401
    if isinstance(value, Constraint):
        return {"constraint": encode_constraint(value, name)}
    if isinstance(value, list | tuple):
        return [_encode(entry, name) for entry in value]
    return plain(value, f"constraint of {name}")


def decode_constraint(data: Mapping[str, Any]) -> Constraint:
    """The constraint that `encode_constraint` described."""
    constraint = object.__new__(_constraint_classes()[data["class"]])
    vars(constraint).update({key: _decode(entry) for key, entry in data["state"].items()})
    return constraint


def _decode(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, Mapping):
        return decode_constraint(value["constraint"])
    return [_decode(entry) for entry in value] if isinstance(value, list) else value


def write_plain(path: Path, content: Mapping[str, object]) -> None:
    """Write plain data so that a reader finds the old file or the new one, never half of one.

    Raises:
        TypeError: if an entry is no plain data; the message names it.
    """
    data = {key: plain(entry, key) for key, entry in content.items()}
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with draft.open("wb") as file:
            torch.save(data, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def read_plain(path: Path, kind: str, version: int) -> dict[str, Any]:
    """Read what `write_plain` wrote, without running any code of the file.

    Raises:
        ValueError: if the file is something else, or its entries "format" and "version" are not `kind` and at most
            `version`.
    """
    place = None if torch.cuda.is_available() else "cpu"
    try:
        with path.open("rb") as file:
            content = torch.load(file, map_location=place, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = (str(error) or "it is empty").splitlines()[0]
        msg = f"{path.name} is no checkpoint written by `save` of this package: {reason}"
        raise ValueError(msg) from error
    if not isinstance(content, dict) or content.get("format") != kind:
        msg = f"{path.name} is no checkpoint written by `save` of this package; it may be a state_dict."
        raise ValueError(msg)
    if not isinstance(content.get("version"), int):
        msg = f"{path.name} says nothing of its format version, so it cannot be read; write it again with `save`."
        raise ValueError(msg)
    if content["version"] > version:
        msg = f"{path.name} has format version {content['version']}, this package reads up to {version}; update it."
        raise ValueError(msg)
    return content
