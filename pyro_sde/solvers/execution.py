"""How a path is computed: options that change cost and memory, and no result beyond round-off."""

from __future__ import annotations

from dataclasses import dataclass

import pyro.settings

__all__ = ["BACKWARD", "BLOCK", "Execution", "FORWARD", "MEMORY"]

BACKWARD = "auto"
FORWARD = "loop"
MEMORY = "full"
BLOCK: int | None = None

_CHOICES = {
    "backward": ("auto", "layers", "loop", "parallel"),
    "forward": ("loop", "newton", "picard"),
    "memory": ("full", "low"),
}


def _check_choice(name: str, value: object, label: str) -> None:
    if value not in _CHOICES[name]:
        listed = ", ".join(f'"{choice}"' for choice in _CHOICES[name])
        msg = f"{label} must be one of {listed}; received {value!r}."
        raise ValueError(msg)


def _check_block(value: object, label: str) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        msg = f"{label} must be a number of rows >= 1, or None to choose it; received {value!r}."
        raise ValueError(msg)


@pyro.settings.register("pyro_sde_backward", __name__, "BACKWARD")
def _check_backward(value: object) -> None:
    _check_choice("backward", value, "`pyro_sde_backward`")


@pyro.settings.register("pyro_sde_forward", __name__, "FORWARD")
def _check_forward(value: object) -> None:
    _check_choice("forward", value, "`pyro_sde_forward`")


@pyro.settings.register("pyro_sde_memory", __name__, "MEMORY")
def _check_memory(value: object) -> None:
    _check_choice("memory", value, "`pyro_sde_memory`")


@pyro.settings.register("pyro_sde_block", __name__, "BLOCK")
def _check_block_setting(value: object) -> None:
    _check_block(value, "`pyro_sde_block`")


@dataclass(frozen=True)
class Execution:
    """How the paths of a law are simulated and differentiated. Results agree to round-off whatever is chosen.

    A path law without one of its own takes the settings of Pyro, ``pyro_sde_backward`` and so on, as they are when it
    is sampled or scored: ``with pyro.settings.context(pyro_sde_memory="low"): svi.step(...)``.

    Args:
        backward: where gradients come from. "loop": autograd through the loop, the only one with second derivatives.
            "parallel": one batched call at all states and a linear recurrence (`gradient.py`). "layers": the layers of
            networks that offer them (`networks.py`); other coefficients take the loop. "auto": the fastest by measured
            cost.
        forward: "loop": step by step. "picard" or "newton": all steps at once in sweeps (`iterate.py`), which pays for
            few rows and many steps; where the sweeps do not converge the loop runs, with a warning.
        memory: "full" keeps what gradients need. "low" keeps the path only: noise comes from one seed per block, and
            what a block of steps needs for its gradient is computed again, at the price of a second simulation and of a
            second call of the coefficients for a density. Noise, and so a seeded path, is then another one than with
            "full"; its law is the same.
        block: rows, series times steps, of one call for many steps at once; None takes 1024, or 4096 if memory is low.

    Raises:
        ValueError: if an option is none of these.
    """

    backward: str = "auto"
    forward: str = "loop"
    memory: str = "full"
    block: int | None = None

    def __post_init__(self) -> None:
        for name in _CHOICES:
            _check_choice(name, getattr(self, name), f"`{name}`")
        _check_block(self.block, "`block`")
        if self.memory == "low" and self.forward != "loop":
            msg = (
                f'memory="low" simulates block by block and forward="{self.forward}" all steps at once; give one of '
                "them."
            )
            raise ValueError(msg)

    @classmethod
    def current(cls) -> Execution:
        """The settings as they are now."""
        return cls(BACKWARD, FORWARD, MEMORY, BLOCK)

    @property
    def block_rows(self) -> int:
        """Rows of one batched call."""
        return self.block or (4096 if self.memory == "low" else 1024)
