"""Pyro effects inside a coefficient, recorded once and replayed.

Pyro evaluates ``log_prob`` after the model has returned. A drift that reads a ``PyroSample``, ``pyro.sample`` or
``pyro.param`` would then see other values than the path was drawn with. A path law therefore calls its coefficients
once at construction inside an `EffectRecorder`, and every later call inside the same, sealed, recorder.
"""

from __future__ import annotations

from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import nn

__all__ = ["EffectRecorder"]


class EffectRecorder(Messenger):
    """Records the values of sample and param statements; once sealed, answers them from the record and hides them.

    Args:
        coefficients: module whose calls are recorded. What a `PyroModule` inside it has drawn already during the
            running call of its parent, it draws no second time; such values are in the record from the start.
    """

    def __init__(self, coefficients: nn.Module) -> None:
        super().__init__()
        self.values: dict[str, object] = {}
        self.sealed = False
        for module in coefficients.modules():
            if isinstance(module, PyroModule) and module._pyro_context.active:
                self.values.update(module._pyro_context.cache)

    def seal(self) -> None:
        """From now on answer from the record only."""
        self.sealed = True

    def _answer(self, msg: Message) -> None:
        name = str(msg["name"])
        if name in self.values:
            msg["value"] = self.values[name]  # type: ignore[typeddict-item]
            msg["done"] = True
            msg["stop"] = True  # outer handlers saw this statement when it was recorded
        elif self.sealed:
            text = (
                f"the statement '{name}' inside a drift, diffusion or control was not executed when its path law was "
                "built. Coefficients must execute the same Pyro statements at every call: move data-dependent ones "
                "out, and pass a PyroModule itself to the SDE, not a function that calls it."
            )
            raise RuntimeError(text)

    def _record(self, msg: Message) -> None:
        if not self.sealed:
            self.values[str(msg["name"])] = msg["value"]

    _pyro_sample = _answer
    _pyro_param = _answer
    _pyro_post_sample = _record
    _pyro_post_param = _record
