"""Whether recursions may run as machine code: one setting for all of them."""

from __future__ import annotations

import pyro.settings

__all__ = ["COMPILED", "may_compile"]

COMPILED = "auto"


@pyro.settings.register("pyro_sde_compiled", __name__, "COMPILED")
def _check_compiled(value: object) -> None:
    if value not in ("auto", "never"):
        msg = f'`pyro_sde_compiled` must be "auto" or "never"; received {value!r}.'
        raise ValueError(msg)


def may_compile() -> bool:
    """Whether code may use numba where it is installed: the setting ``pyro_sde_compiled`` is "auto", not "never"."""
    return COMPILED == "auto"
