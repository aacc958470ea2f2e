r"""Tensors that need gradients inside a function: found by themselves, or refused by name.

A solver that differentiates its steps by hand must know every tensor that a step depends on: parameters of modules,
tensors in a closure, learned or computed. `find_captured` runs a function once and reads them off its autograd graph,
so that nothing can be forgotten: a gradient is either passed on, or an error names the tensor. `StandIns` calls
the function later, cut off from the graph that made the captured tensors, and `LocalGraph` differentiates such a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["LocalGraph", "StandIns", "find_captured"]

Outputs = tuple[Tensor, ...]
Edge = tuple[Any, int]  # a node of the autograd graph and the number of its output


def find_captured(
    function: Callable[..., Outputs], arguments: Sequence[Tensor], names: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, ...]:
    """Tensors, of any shape, other than its arguments that the outputs of a function have gradients to.

    Leaves (parameters) are found wherever they are used, also inside a custom ``autograd.Function``. Tensors with a
    history (a context computed by an encoder) are found where torch functions receive them.

    Args:
        function: returns a tuple of tensors; called once, or twice if a tensor with a history is found.
        arguments: its arguments, of any shape as all tensors here.
        names: names of known tensors, such as ``dict(module.named_parameters())``, for the message.

    Raises:
        ValueError: if a tensor with a history reaches the outputs where it cannot be followed, for example as an
            argument of a custom ``autograd.Function``; its gradient would be lost.
    """
    leaves = [argument.detach().requires_grad_(argument.is_floating_point()) for argument in arguments]
    with torch.enable_grad():
        start = _now()
        recorder = _Recorder(start)
        with recorder:
            outputs = function(*leaves)
        for output in outputs:
            recorder.see(output)
    variables, edges = _reached(outputs, start)
    own = {id(leaf) for leaf in leaves}
    found = [variable for variable in variables if id(variable) not in own]
    for edge in edges:
        if edge not in recorder.tensors:
            raise ValueError(_hidden_text(edge, names or {}))
        found.append(recorder.tensors[edge])
    if edges:
        stand_ins = StandIns(found, names)
        with torch.enable_grad():
            _, hidden = stand_ins.reached(function, leaves)
        if hidden:  # torch functions see the tensor, and it is used elsewhere too
            raise ValueError(_hidden_text(hidden[0], names or {}))
    return tuple(found)


class StandIns:
    """Calls a function with leaves in the place of captured tensors that have a history.

    No gradient runs on into what made those tensors: it stays with the leaf, for whoever passes it on.

    Args:
        captured: what `find_captured` found, tensors of any shape.
        names: as there.

    Attributes:
        leaves: one for each captured tensor, in its shape: itself if it is a leaf.
    """

    def __init__(self, captured: Sequence[Tensor], names: Mapping[str, Tensor] | None = None) -> None:
        self.leaves = [t if t.is_leaf else t.detach().requires_grad_() for t in captured]
        self.names = names or {}
        self._stands_for = {_edge(t): leaf for t, leaf in zip(captured, self.leaves, strict=True) if not t.is_leaf}

    def call(self, function: Callable[..., Outputs], arguments: Sequence[Tensor]) -> Outputs:
        """Outputs of the function at these arguments.

        Raises:
            RuntimeError: if the call reaches a tensor that needs gradients and was not captured.
        """
        if not torch.is_grad_enabled():
            return self._outputs(function, arguments)
        start = _now()
        outputs = self._outputs(function, arguments)
        variables, hidden = self._missed(outputs, start, arguments)
        if variables or hidden:
            what = _describe(variables[0], self.names) if variables else _behind(hidden[0], self.names)
            msg = (
                f"a coefficient uses {what} at one time and not at the first one, so that its gradient would be lost. "
                "Use it at every time (multiplied by 0 where it has no part), or use SDEPath."
            )
            raise RuntimeError(msg)
        return outputs

    def reached(self, function: Callable[..., Outputs], arguments: Sequence[Tensor]) -> tuple[list[Tensor], list[Edge]]:
        """Leaves, and edges into older graphs, that a call reaches beside arguments and stand-ins."""
        start = _now()
        return self._missed(self._outputs(function, arguments), start, arguments)

    def _outputs(self, function: Callable[..., Outputs], arguments: Sequence[Tensor]) -> Outputs:
        with _Substitution(self._stands_for) if self._stands_for else nullcontext():
            outputs = function(*arguments)
        return tuple(_exchange(output, self._stands_for) for output in outputs)

    def _missed(self, outputs: Outputs, start: int, arguments: Sequence[Tensor]) -> tuple[list[Tensor], list[Edge]]:
        variables, edges = _reached(outputs, start)
        known = {id(leaf) for leaf in (*arguments, *self.leaves)}
        given = {_edge(argument) for argument in arguments}
        return [v for v in variables if id(v) not in known], [edge for edge in edges if edge not in given]


class LocalGraph:
    """One call of a function with a graph of its own, to be differentiated once.

    Args:
        function: the function given to `find_captured`.
        arguments: its arguments now, of any shape.
        stand_ins: for what `find_captured` found.
        wanted: which arguments are to have gradients.

    Attributes:
        outputs: of the function, detached, of any shape.

    Raises:
        RuntimeError: as `StandIns.call`.
    """

    def __init__(
        self,
        function: Callable[..., Outputs],
        arguments: Sequence[Tensor],
        stand_ins: StandIns,
        wanted: Sequence[bool],
    ) -> None:
        self._arguments = [a.detach().requires_grad_(want) for a, want in zip(arguments, wanted, strict=True)]
        self._captured = stand_ins.leaves
        with torch.enable_grad():
            self._outputs = stand_ins.call(function, self._arguments)
        self.outputs = tuple(output.detach() for output in self._outputs)

    def vjp(self, gradients: Sequence[Tensor]) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Gradients of arguments and captured tensors, each in its shape, from those of the outputs; None for none."""
        pairs = [(o, g) for o, g in zip(self._outputs, gradients, strict=True) if o.requires_grad]
        inputs = [tensor for tensor in (*self._arguments, *self._captured) if tensor.requires_grad]
        if not pairs or not inputs:
            return [None] * len(self._arguments), [None] * len(self._captured)
        found = torch.autograd.grad([o for o, _ in pairs], inputs, [g for _, g in pairs], allow_unused=True)
        by_id = {id(tensor): gradient for tensor, gradient in zip(inputs, found, strict=True)}
        self._outputs = ()
        return [by_id.get(id(t)) for t in self._arguments], [by_id.get(id(t)) for t in self._captured]


class _Recorder(TorchFunctionMode):
    """Remembers the tensors with a history older than `start` that torch functions receive."""

    def __init__(self, start: int) -> None:
        super().__init__()
        self.start = start
        self.tensors: dict[Edge, Tensor] = {}

    def see(self, tensor: Tensor) -> None:
        node = tensor.grad_fn
        if node is not None and node._sequence_nr() < self.start:  # type: ignore[attr-defined]
            self.tensors[(node, tensor.output_nr)] = tensor

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401, ARG002
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            self.see(tensor)
        return func(*args, **kwargs)


class _Substitution(TorchFunctionMode):
    """Replaces tensors by their stand-ins wherever a torch function receives them."""

    def __init__(self, stands_for: Mapping[Edge, Tensor]) -> None:
        super().__init__()
        self.stands_for = stands_for

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401, ARG002
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        return func(*_exchange(args, self.stands_for), **_exchange(kwargs, self.stands_for))


def _edge(tensor: Tensor) -> Edge:
    return tensor.grad_fn, tensor.output_nr


def _exchange(value: Any, stands_for: Mapping[Edge, Tensor]) -> Any:  # noqa: ANN401 (a tree of arguments)
    if isinstance(value, Tensor):
        return stands_for.get(_edge(value), value) if value.grad_fn is not None else value
    if type(value) in (tuple, list):
        return type(value)(_exchange(entry, stands_for) for entry in value)
    if type(value) is dict:
        return {key: _exchange(entry, stands_for) for key, entry in value.items()}
    return value


def _tensors(value: Any) -> Iterable[Tensor]:  # noqa: ANN401 (a tree of arguments)
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from _tensors(entry)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


def _now() -> int:
    """Number that every node made from here on in this thread reaches, and none made before."""
    return torch.zeros((), requires_grad=True).clone().grad_fn._sequence_nr()  # type: ignore[union-attr]


def _is_leaf_node(node: Any) -> bool:  # noqa: ANN401 (nodes have no public type)
    return node.name().endswith("AccumulateGrad")


def _reached(outputs: Sequence[Tensor], start: int) -> tuple[list[Tensor], list[Edge]]:
    """Leaves behind the outputs, and edges into nodes older than `start`, which are not followed."""
    leaves = {id(output): output for output in outputs if output.requires_grad and output.grad_fn is None}
    edges: dict[Edge, None] = {}
    seen, stack = set(), [_edge(output) for output in outputs if output.grad_fn is not None]
    while stack:
        node, number = stack.pop()
        if node is None:
            continue
        if _is_leaf_node(node):
            leaves[id(node.variable)] = node.variable
        elif node._sequence_nr() < start:
            edges[(node, number)] = None
        elif node not in seen:
            seen.add(node)
            stack.extend(node.next_functions)
    return list(leaves.values()), list(edges)


def _describe(tensor: Tensor, names: Mapping[str, Tensor]) -> str:
    for name, known in names.items():
        if known is tensor:
            return f"the parameter '{name}'"
    return f"a tensor of shape {tuple(tensor.shape)}"


def _behind(edge: Edge, names: Mapping[str, Tensor]) -> str:
    leaves = _leaves_behind(edge[0])
    listed = ", ".join(sorted({_describe(leaf, names) for leaf in leaves})[:3])
    metadata = getattr(edge[0], "_input_metadata", None)  # newer than the oldest torch that is supported
    shape = f" of shape {tuple(metadata[edge[1]].shape)}" if metadata else ""
    return f"a tensor{shape} computed by {edge[0].name()} from {listed or 'others'}"


def _leaves_behind(last: Any) -> list[Tensor]:  # noqa: ANN401 (nodes have no public type)
    leaves: dict[int, Tensor] = {}
    seen, stack = set(), [last]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if _is_leaf_node(node):
            leaves[id(node.variable)] = node.variable
        stack.extend(following for following, _ in node.next_functions)
    return list(leaves.values())


def _hidden_text(edge: Edge, names: Mapping[str, Tensor]) -> str:
    return (
        f"a coefficient uses {_behind(edge, names)}, where its gradient cannot be followed (inside a custom "
        "autograd.Function or compiled code): it would be lost. Pass it as `inputs`, compute it inside the "
        "coefficient, or use SDEPath, whose gradients are those of autograd."
    )
