"""Parameters, optimiser and files of one training run; `fit` drives it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from .checkpoint import load, save
from .elbo import PathELBO
from .streams import seeded

__all__ = ["Average", "Run"]


class Run:
    """One training run of a model and a guide.

    Args:
        model: Pyro model.
        guide: Pyro guide.
        elbo: loss; its `kl_weight` is changed during warm-up.
        seed: seed of all noise.
        example: arguments of model and guide; they are run once, so that all parameters exist.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        elbo: ELBO,
        seed: int,
        example: tuple[Any, ...],
    ) -> None:
        self.model, self.guide, self.seed = model, guide, seed
        self.elbo: Any = elbo  # the base class does not declare `loss`
        self.kl_weight = elbo.kl_weight if isinstance(elbo, PathELBO) else 1.0
        capture = poutine.trace(param_only=True)
        with _explained("the first call"), seeded(seed, "example"), torch.no_grad(), capture:
            self.elbo.loss(model, guide, *example)
        self.parameters = _trainable(capture.trace)
        self.modules = {name: owner for name, owner in (("model", _owner(model)), ("guide", _owner(guide))) if owner}
        if not self.parameters:
            msg = (
                "model and guide have no parameters to train. Register modules with `pyro.module(name, module)`, or "
                "make model and guide methods of a PyroModule."
            )
            raise ValueError(msg)
        self._check_no_clash()
        self.optimiser = torch.optim.Adam(list(self.parameters.values()))

    def step(self, index: int, batch: tuple[Any, ...], rate: float, weight: float, clip: float | None) -> float:
        """Train on one batch with a learning rate, a part of the KL weight and a limit of the gradient's norm."""
        if isinstance(self.elbo, PathELBO):
            self.elbo.kl_weight = self.kl_weight * weight
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        with _explained(f"step {index + 1}"), seeded(self.seed, "noise", index):
            with poutine.trace(param_only=True) as capture:
                loss = _finite(self.elbo.loss_and_grads(self.model, self.guide, *batch))
            late = _trainable(capture.trace).keys() - self.parameters.keys()
            if late:
                msg = f"parameter '{min(late)}' did not exist at the first call; create all parameters there."
                raise ValueError(msg)
            self._clip(clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return loss

    def validate(self, index: int, batch: tuple[Any, ...]) -> float:
        """Loss at full KL weight with the same noise at every call."""
        if isinstance(self.elbo, PathELBO):
            self.elbo.kl_weight = self.kl_weight
        with _explained(f"validation after step {index}"), seeded(self.seed, "validation"), torch.no_grad():
            return _finite(self.elbo.loss(self.model, self.guide, *batch))

    def snapshot(self) -> dict[str, Tensor]:
        """Copies of all parameters and buffers."""
        return {name: value.detach().clone() for name, value in self._tensors()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put the values of a snapshot back.

        Raises:
            ValueError: if it is not one of this model and guide.
        """
        own = dict(self._tensors())
        different = sorted(own.keys() ^ tensors.keys()) or [n for n in own if own[n].shape != tensors[n].shape]
        if different:
            msg = f"`checkpoint` is of another model or guide: '{different[0]}' does not fit. Name another file."
            raise ValueError(msg)
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(tensors[name])

    @contextmanager
    def at(self, average: Average | None) -> Iterator[None]:
        """The parameters of an average for a while; nothing happens without one."""
        if average is None:
            yield
            return
        own = self.snapshot()
        self.restore({**own, **average.tensors})
        try:
            yield
        finally:
            buffers = dict(self._buffers())  # what the validation did to them stays, as it does without an average
            self.restore({**own, **buffers})

    def state(self, progress: dict[str, Any], average: Average | None = None) -> dict[str, Any]:
        """All that the run needs to go on: parameters, their average, optimiser, seed and what `fit` remembers."""
        averaged = {} if average is None else {"average": average.tensors}
        own = {"seed": self.seed, "tensors": self.snapshot(), "optimiser": self.optimiser.state_dict()}
        return {**own, **averaged, **progress}

    def save(self, path: str | Path, state: dict[str, Any]) -> None:
        """Write a state, and the modules as they are now for users of `pyro_sde.infer.load`."""
        with pyro.get_param_store().scope():  # the state holds the parameters of the store already
            save(path, model=self.model, guide=self.guide, extra=state)

    def load(self, path: str | Path, average: Average | None = None) -> dict[str, Any]:
        """Go back to the state in a file, and return it.

        Raises:
            ValueError: if the file is of another seed, model or guide, or has no average where one is kept.
        """
        with pyro.get_param_store().scope():
            state = load(path, strict=False)
        if not isinstance(state, dict) or "tensors" not in state:
            msg = "`checkpoint` was not written by `fit`, so there is no run to go on with. Name another file."
            raise ValueError(msg)
        if state["seed"] != self.seed:
            msg = f"`checkpoint` is of a run with seed {state['seed']}, this one has seed {self.seed}."
            raise ValueError(msg)
        if ("average" in state) is not (average is not None):
            what = "with" if "average" in state else "without"
            msg = f"`checkpoint` is of a run {what} `average`; resume it as it began."
            raise ValueError(msg)
        missing = sorted({"optimiser", "losses", "validations", "best"} - state.keys())
        if missing:
            msg = f"`checkpoint` has no entry '{missing[0]}', so the run cannot go on. Name another file."
            raise ValueError(msg)
        self.restore(state["tensors"])
        self.optimiser.load_state_dict(state["optimiser"])
        if average is not None:
            average.tensors = state["average"]
        return state

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.parameters.items()
        yield from self._buffers()

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        for name, module in self.modules.items():
            yield from ((f"buffer of {name}: {key}", buffer) for key, buffer in module.named_buffers())

    def _clip(self, clip: float | None) -> None:
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), math.inf if clip is None else clip)
        if not bool(norm.isfinite()):
            grads = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
            bad = next((name for name, grad in grads.items() if not bool(grad.isfinite().all())), "all together")
            msg = f"the gradient of '{bad}' is not finite. Use a smaller learning rate, max_step or initial scale."
            raise ValueError(msg)

    def _check_no_clash(self) -> None:
        """A module whose name is taken in the store is not trained, and Pyro does not say so."""
        trained = {id(parameter) for parameter in self.parameters.values()}
        for module in self.modules.values():
            left_out = [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in trained]
            for name in left_out:
                taken = [site for site in self.parameters if f".{site.replace('$$$', '.')}".endswith(f".{name}")]
                if taken:
                    msg = (
                        f"parameter '{name}' would not be trained: the parameter store holds the one of another module "
                        f"as '{taken[0]}'. Call pyro.clear_param_store() before, or train in a store of its own: "
                        "with pyro.get_param_store().scope(): ..."
                    )
                    raise ValueError(msg)


class Average:
    """Moving average of the parameters of a run; `fit` has the formula."""

    def __init__(self, decay: float, run: Run) -> None:
        self.decay = decay
        self.tensors = {name: value.detach().clone() for name, value in run.parameters.items()}

    def update(self, run: Run, step: int) -> None:
        """Take the parameters after a step, counted from 1, into the average."""
        decay = min(self.decay, step / (step + 9))
        with torch.no_grad():
            for name, value in run.parameters.items():
                self.tensors[name].lerp_(value.detach(), 1 - decay)


def _trainable(trace: Trace) -> dict[str, Tensor]:
    """Unconstrained trainable parameters by the name of their site, each once."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, site in trace.nodes.items():
        if site["type"] == "param":
            value: Any = site["value"]
            leaf = value.unconstrained() if hasattr(value, "unconstrained") else value
            if leaf.requires_grad:
                found.setdefault(id(leaf), (name, leaf))
    return dict(found.values())


def _owner(function: object) -> nn.Module | None:
    """The module that a model or guide is, or is a method of; None for plain functions."""
    while not isinstance(function, nn.Module):
        owners = (getattr(function, name, None) for name in ("__self__", "__wrapped__", "func"))
        function = next((owner for owner in owners if owner is not None), None)
        if function is None:
            return None
    return function


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        msg = f"the loss is {loss}. Use a smaller learning rate, or bound the scales of the model."
        raise ValueError(msg)
    return float(loss)


@contextmanager
def _explained(when: str) -> Iterator[None]:
    """Say when an error of values happened."""
    try:
        yield
    except ValueError as error:
        msg = f"{when}: {error}"
        raise ValueError(msg) from error
