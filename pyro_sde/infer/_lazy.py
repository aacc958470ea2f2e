"""Parameters that an automatic guide creates at its first call, in step with Pyro's parameter store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pyro
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from pyro.ops.tensor_utils import periodic_repeat
from pyro.params.param_store import param_with_module_name
from pyro.poutine.runtime import get_plates
from torch import Tensor, nn

__all__ = ["SiteParams", "full_batch", "full_value"]


_Module = TypeVar("_Module", bound=nn.Module)


class SiteParams(PyroModule):
    """Parameters by sample site; the child of a guide whose name stands in their names in Pyro's store.

    Values that the store holds already, from a checkpoint or another guide of the same name, are taken over.
    """

    def _pyro_set_supermodule(self, name: str, context: Any) -> None:  # noqa: ANN401 (a private class of Pyro)
        super()._pyro_set_supermodule(name.rpartition(".")[0], context)  # "AutoSDE.sites" -> "AutoSDE"

    def site(self, name: str) -> PyroModule:
        """Parameters of one site. Names such as "type" are methods of modules, so attributes are of no use here."""
        key = name.replace(".", "/")
        if key not in self._modules:
            child = PyroModule()
            child._pyro_set_supermodule(f"{self._pyro_name}.{key}", self._pyro_context)
            self._modules[key] = child
        return self._modules[key]  # type: ignore[return-value]

    def param(
        self,
        site: str,
        name: str,
        shape: tuple[int, ...],
        make: Callable[[], Tensor],
        event_dim: int,
        constraint: constraints.Constraint = constraints.real,
    ) -> Tensor:
        """Value of a parameter of full `shape`, made by `make` at first use, subsampled like the plates around.

        Raises:
            ValueError: if the store or this guide holds it with another shape; the message names it.
        """
        holder = self.site(site)
        fullname = holder._pyro_get_fullname(name)
        store = pyro.get_param_store()
        known = store[fullname] if fullname in store else holder._parameters.get(f"{name}_unconstrained")
        if known is not None:
            _check_shape(fullname, known.shape, shape)
        if name not in holder._pyro_params:
            setattr(holder, name, PyroParam(make().clone(), constraint, event_dim))  # never share memory with a prior
        return getattr(holder, name)

    def module(self, site: str, name: str, build: Callable[[], _Module]) -> _Module:
        """A network of a site, built at first use and registered in the store.

        Raises:
            ValueError: if the store holds one of its parameters with another shape; the message names it.
        """
        holder = self.site(site)
        if name not in holder._modules:
            setattr(holder, name, build())
        network = holder._modules[name]
        _adopt(network, holder._pyro_get_fullname(name))  # type: ignore[arg-type]
        return getattr(holder, name)  # reading it is a `pyro.module` statement


def full_batch(batch: torch.Size, reinterpreted: int, outer: tuple[str, ...]) -> tuple[int, ...]:
    """Batch shape of a parameter: plates at full size, plates named in `outer` (particles) left out.

    Args:
        batch: batch shape at hand, plates followed by `reinterpreted` dimensions that `.to_event` turned into events.
        reinterpreted: their number.
        outer: names of plates around the model.
    """
    shape = list(batch)
    for frame in get_plates():
        dim = (frame.dim or 0) - reinterpreted
        if frame.vectorized and -dim <= len(shape):
            shape[dim] = 1 if frame.name in outer else _full_size(frame) if shape[dim] != 1 else 1
    while shape and shape[0] == 1:
        shape.pop(0)
    return tuple(shape)


def full_value(value: Tensor, event_dim: int, reinterpreted: int, outer: tuple[str, ...]) -> Tensor:
    """Initial value of a parameter of batch shape `full_batch`, from a value for the plates at hand."""
    shape = full_batch(value.shape[: value.dim() - event_dim + reinterpreted], reinterpreted, outer)
    for frame in get_plates():
        dim = (frame.dim or 0) - event_dim
        if not frame.vectorized or -dim > value.dim() or value.shape[dim] == 1:
            continue
        if frame.name in outer:
            value = value.mean(dim, keepdim=True)
        elif value.shape[dim] != _full_size(frame):
            value = periodic_repeat(value, _full_size(frame), dim)
    return value.reshape((*shape, *value.shape[value.dim() - event_dim + reinterpreted :]))


def _full_size(frame: Any) -> int:  # noqa: ANN401 (a plate of Pyro)
    return frame.full_size or frame.size


def _check_shape(name: str, known: torch.Size, shape: tuple[int, ...]) -> None:
    if tuple(known) != shape:
        msg = (
            f"parameter '{name}' has shape {tuple(known)}, but the model now needs {shape}. If it belongs to another "
            "guide, call pyro.clear_param_store() or give each guide a store of its own. If plates or solver grids "
            "change between calls (minibatches of series with different times), build one TimeGrid for all series and "
            "index it, grid[indices], or pass an `encoder`."
        )
        raise ValueError(msg)


def _adopt(network: nn.Module, fullname: str) -> None:
    """Copy the store's values into a network's parameters and put these in their place.

    ``pyro.module`` alone would leave the network with its own values and train the store's.
    """
    store = pyro.get_param_store()
    for key, parameter in network.named_parameters():
        name = param_with_module_name(fullname, key)
        if name not in store or store[name] is parameter:
            continue
        value = store[name].detach()
        _check_shape(name, value.shape, tuple(parameter.shape))
        with torch.no_grad():
            parameter.copy_(value)
        del store[name]
        store.set_state({"params": {name: parameter}, "constraints": {name: constraints.real}})
