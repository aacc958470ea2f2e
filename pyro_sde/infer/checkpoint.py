"""Checkpoints that restore a model, a guide and an optimiser so that training goes on where it stopped."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoGuide, AutoMessenger
from pyro.nn import PyroModule
from pyro.optim.optim import PyroOptim
from pyro.params.param_store import normalize_param_name
from torch import Tensor, nn

from ._plain import decode_constraint, encode_constraint, read_plain, write_plain
from ._probe import owner_module
from .auto import AutoSDE

__all__ = ["load", "save"]

Target = Callable[..., Any] | Mapping[str, nn.Module] | None
Optimizer = PyroOptim | torch.optim.Optimizer | None

_FORMAT = "pyro_sde.checkpoint"
_VERSION = 1
_ENTRIES = ("modules", "params", "constraints", "names", "optimizer", "extra")


def save(
    path: str | os.PathLike[str],
    *,
    model: Target = None,
    guide: Target = None,
    optimizer: Optimizer = None,
    extra: object = None,
) -> None:
    """Write everything that training needs to go on into one file.

    That is the parameters and buffers of the modules of `model` and `guide`, the values of ``pyro.param`` statements in
    functions, and the state of the optimiser. Pyro's own ``param_store.save`` keeps neither buffers nor the link
    between the store and the modules: after its ``load`` a new module has fresh weights and is never trained.

    The file holds plain data only (it is read with ``weights_only=True``) and replaces an old one in a single step, so
    that an interruption leaves the old file whole. Random number generators are not stored; put
    ``torch.get_rng_state()`` into `extra` if a run must be repeated draw by draw.

    Args:
        path: the file; its directory must exist.
        model: an ``nn.Module`` or ``PyroModule``, one of its methods, a plain function, or, for a function that
            registers modules by ``pyro.module(name, module)``, the dict ``{name: module}``.
        guide: as `model`.
        optimizer: of `pyro.optim` (its states are stored by parameter name) or `torch.optim`.
        extra: plain data of your own, such as the number of steps done.

    Raises:
        TypeError: if an argument is of another kind, `extra` is not plain data, or a constraint is a custom class.
        ValueError: if a parameter in Pyro's store belongs to a module that was not passed, since it could not be
            restored; the message names it.

    Example:
        >>> parts = {"model": {"prior": sde}, "guide": guide, "optimizer": optimizer}  # doctest: +SKIP
        >>> save("run.pt", **parts, extra={"step": 500})  # doctest: +SKIP
        >>> load("run.pt", **parts)["step"]  # doctest: +SKIP
        500
    """
    parts = _parts(model, guide)
    owners = {id(p): (part, key) for part, module in parts.items() for key, p in module.named_parameters()}
    store = pyro.get_param_store()
    uncalled = tuple(f"{module._pyro_name}." for module in parts.values() if isinstance(module, AutoSDE))
    names: dict[str, tuple[str, str]] = {}
    params: dict[str, Tensor] = {}
    for name, value in store.named_parameters():
        if id(value) in owners:
            names[name] = owners[id(value)]
        else:
            if not name.startswith(uncalled):  # else loaded, and waiting for the first call of the guide
                _check_function_param(name, value)
            params[name] = value
    stored = store.get_state()["constraints"]
    unbound = [*params, *(name for name, (part, _) in names.items() if _is_lazy(parts[part]))]
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "modules": {part: module.state_dict() for part, module in parts.items()},
        "params": params,
        "constraints": {name: encode_constraint(stored[name], name) for name in unbound},
        "names": names,
        "optimizer": _optimizer_state(optimizer),
        "extra": extra,
    }
    write_plain(Path(path), content)


def load(
    path: str | os.PathLike[str],
    *,
    model: Target = None,
    guide: Target = None,
    optimizer: Optimizer = None,
    strict: bool = True,
) -> Any:  # noqa: ANN401 (plain data of the user)
    """Restore what `save` wrote, into live modules, Pyro's parameter store and an optimiser.

    Values are copied into the modules in place, and the store is made to hold the modules' own parameters, so that a
    following ``svi.step`` trains them; values of ``pyro.param`` statements go into the store. An automatic guide makes
    its parameters at its first call (which draws random numbers); till then they wait in the store. Everything is
    checked before anything changes.

    Args:
        path: a file written by `save`.
        model: what was passed to `save`, built anew or still alive.
        guide: as `model`.
        optimizer: as passed to `save`; its state is overwritten.
        strict: False to skip what is only in the file or only in the modules.

    Returns:
        The `extra` given to `save`.

    Raises:
        ValueError: if the file is no checkpoint or lacks an entry; if a name is missing, unexpected (if `strict`), or
            has another shape; the message names the parameters.
        TypeError: if an argument is of another kind.
    """
    content = _read(Path(path))
    parts = _parts(model, guide)
    problems, waiting = _compare(content, parts, strict)
    problems += _compare_store(content, waiting)
    if problems:
        shown = "\n  ".join(problems[:20])
        msg = f"the checkpoint does not fit; nothing was changed:\n  {shown}"
        raise ValueError(msg)
    _check_optimizer(optimizer, content["optimizer"])
    for part, module in parts.items():
        if part in content["modules"]:
            module.load_state_dict(content["modules"][part], strict=False)
    _restore_store(content, parts, waiting)
    _restore_optimizer(optimizer, content["optimizer"])
    return content["extra"]


def _read(path: Path) -> dict[str, Any]:
    """Content of a file, with every entry that there has been from the first version on."""
    try:
        content = read_plain(path, _FORMAT, _VERSION)
    except OSError as error:
        if error.errno != errno.EINVAL:  # torch seeks before the start of a file that was cut short
            raise
        msg = f"{path.name} is no checkpoint written by `save` of this package: it has been cut short."
        raise ValueError(msg) from error
    missing = [name for name in _ENTRIES if name not in content]
    if missing:
        msg = f"{path.name} has no entry '{missing[0]}', which `save` always writes. It was changed by other means."
        raise ValueError(msg)
    return content


def _parts(model: Target, guide: Target) -> dict[str, nn.Module]:
    """Modules by their name in the file; a module that is model and guide at once appears once."""
    parts: dict[str, nn.Module] = {}
    for role, target in (("model", model), ("guide", guide)):
        for name, module in _modules(role, target).items():
            if not any(module is known for known in parts.values()):
                parts[name] = module
    return parts


def _modules(role: str, target: Target) -> dict[str, nn.Module]:
    if target is None:
        return {}
    if isinstance(target, Mapping):
        for name, module in target.items():
            if not isinstance(module, nn.Module):
                msg = f"`{role}` must map names to modules, received {type(module).__name__} for '{name}'."
                raise TypeError(msg)
        return {f"{role}.{name}": module for name, module in target.items()}
    if not callable(target):
        msg = f"`{role}` must be a module, a function or a dict of modules, received {type(target).__name__}."
        raise TypeError(msg)
    owner = owner_module(target)
    return {} if owner is None else {role: owner}


def _is_lazy(module: nn.Module) -> bool:
    """Whether it creates parameters at its first call."""
    return any(isinstance(child, AutoGuide | AutoMessenger) for child in module.modules())


def _check_function_param(name: str, value: Tensor) -> None:
    """Values that no module passed to `save` holds must come from ``pyro.param`` in a function."""
    registered = "$$$" in name
    if registered or isinstance(value, nn.Parameter):
        module = name.split("$$$")[0] if registered else "name"
        msg = (
            f"parameter '{name}' of Pyro's store belongs to a module, but no module in `model` or `guide` holds it, so "
            f"that it could not be restored. Pass the module, for example model={{'{module}': module}}. If you did, "
            "the module was built after param_store.load(), which never reaches it; use `load` of this package. If the "
            "parameter is left over from another model, call pyro.clear_param_store() before training."
        )
        raise ValueError(msg)


def _compare(content: dict[str, Any], parts: dict[str, nn.Module], strict: bool) -> tuple[list[str], dict[str, Tensor]]:
    """Problems of the modules, and store values that a lazy guide will fetch at its first call."""
    saved: dict[str, dict[str, Any]] = content["modules"]
    store_names = {tuple(owner): name for name, owner in content["names"].items()}
    problems: list[str] = []
    waiting: dict[str, Tensor] = {}
    if strict:
        problems += [
            f"`{part}` is in the file, but was not passed (or strict=False)" for part in sorted(saved.keys() - parts)
        ]
        problems += [f"`{part}` was passed, but is not in the file" for part in sorted(parts.keys() - saved)]
    for part in parts.keys() & saved:
        live, stored = parts[part].state_dict(), saved[part]
        lazy = _is_lazy(parts[part])
        for key in sorted(stored.keys() - live):
            name = store_names.get((part, key))
            if lazy and name is not None:
                if "$$$" in name and not isinstance(parts[part], AutoSDE):
                    problems.append(f"'{key}' of `{part}` is created at its first call: call it once before `load`")
                waiting[name] = stored[key]
            elif strict:
                problems.append(f"'{key}' of `{part}` is unexpected: the file has it, the module has not")
        missing = sorted(live.keys() - stored) if strict else []
        problems += [f"'{key}' of `{part}` is missing: the module has it, the file has not" for key in missing]
        for key in sorted(stored.keys() & live):
            if isinstance(live[key], Tensor) and live[key].shape != stored[key].shape:
                problems.append(_shape_text(f"'{key}' of `{part}`", stored[key], "module", live[key]))
    return problems, waiting


def _compare_store(content: dict[str, Any], waiting: dict[str, Tensor]) -> list[str]:
    """Names of function parameters that the store already uses for something else."""
    values, present = {**content["params"], **waiting}, dict(pyro.get_param_store().named_parameters())
    return [
        f"name clash: {_shape_text(f'parameter {name!r}', values[name], 'store', present[name])}; call "
        "pyro.clear_param_store() first"
        for name in sorted(values.keys() & present)
        if values[name].shape != present[name].shape
    ]


def _shape_text(name: str, stored: Tensor, holder: str, live: Tensor) -> str:
    return f"{name} has shape {tuple(stored.shape)} in the file and {tuple(live.shape)} in the {holder}"


def _restore_store(content: dict[str, Any], parts: dict[str, nn.Module], waiting: dict[str, Tensor]) -> None:
    store = pyro.get_param_store()
    state = store.get_state()
    live = {name: p for part, module in parts.items() for name, p in _store_names(part, module)}
    owned = {(part, key): p for part, module in parts.items() for key, p in module.named_parameters()}
    owners = {name: owned[tuple(owner)] for name, owner in content["names"].items() if tuple(owner) in owned}
    for name, value in state["params"].items():  # a module's entry must be the module's own parameter
        parameter = owners.get(name, live.get(normalize_param_name(name)))
        if parameter is not None and parameter is not value:
            _set_param(name, parameter, state["constraints"][name])
    for name, value in {**content["params"], **waiting}.items():
        _set_param(name, value.requires_grad_(), decode_constraint(content["constraints"][name]))


def _set_param(name: str, value: Tensor, constraint: Any) -> None:  # noqa: ANN401
    store = pyro.get_param_store()
    if name in store:
        del store[name]
    store.set_state({"params": {name: value}, "constraints": {name: constraint}})


def _store_names(part: str, module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names, with dots only, under which Pyro's store would hold the parameters of a module."""
    prefix = module._pyro_name if isinstance(module, PyroModule) else part.partition(".")[2]
    for key, parameter in module.named_parameters():
        key = key.removesuffix("_unconstrained")
        yield (f"{prefix}.{key}" if prefix else key), parameter


def _optimizer_state(optimizer: Optimizer) -> dict[str, Any] | None:
    if optimizer is None:
        return None
    if isinstance(optimizer, PyroOptim):
        # States loaded earlier wait until their parameter is stepped for the first time.
        state = {**optimizer._state_waiting_to_be_consumed, **optimizer.get_state()}
        return {"kind": "pyro", "state": {name: entry for name, entry in state.items() if name is not None}}
    if isinstance(optimizer, torch.optim.Optimizer):
        return {"kind": "torch", "state": optimizer.state_dict()}
    msg = f"`optimizer` must come from pyro.optim or torch.optim, received {type(optimizer).__name__}."
    raise TypeError(msg)


def _check_optimizer(optimizer: Optimizer, saved: dict[str, Any] | None) -> None:
    if optimizer is None:
        return
    kind = (_optimizer_state(optimizer) or {})["kind"]
    if saved is None or saved["kind"] != kind:
        found = "no optimizer" if saved is None else f"one of {saved['kind']}.optim"
        msg = f"`optimizer` is one of {kind}.optim, but the file has {found}. Leave it out or use another file."
        raise ValueError(msg)
    if isinstance(optimizer, torch.optim.Optimizer):
        ours = [len(group["params"]) for group in optimizer.param_groups]
        theirs = [len(group["params"]) for group in saved["state"]["param_groups"]]
        if ours != theirs:
            msg = f"`optimizer` has groups of {ours} parameters, but the file has groups of {theirs}."
            raise ValueError(msg)


def _restore_optimizer(optimizer: Optimizer, saved: dict[str, Any] | None) -> None:
    if optimizer is None or saved is None:
        return
    if isinstance(optimizer, PyroOptim):
        # Optimisers of single parameters are built at the next step, where they take up their stored state by name.
        optimizer.optim_objs.clear()
        optimizer.grad_clip.clear()
        optimizer._state_waiting_to_be_consumed.clear()
        optimizer.set_state(saved["state"])
    else:
        optimizer.load_state_dict(saved["state"])
