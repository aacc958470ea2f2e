"""Fixtures for the tests and for the doctests of the package: a clean, seeded Pyro around every test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.poutine.runtime import _PYRO_STACK

SEED = 20240229  # one constant for all: a test that passes only for some seeds must fail for everyone


def _switches() -> dict[str, Any]:
    """The global switches that a test could leave turned."""
    return {
        "torch default dtype": torch.get_default_dtype(),
        "torch grad enabled": torch.is_grad_enabled(),
        "open Pyro handlers": len(_PYRO_STACK),
        **{f"pyro.settings {name}": value for name, value in pyro.settings.get().items()},
    }


@pytest.fixture(autouse=True)
def clean_pyro() -> Iterator[None]:
    """Give each test an empty parameter store, validation and one seed; fail it if it leaves a switch turned.

    A test that switches the default dtype or Pyro's validation and does not switch it back makes others pass
    or fail depending on the order they run in. Use ``dtype=`` arguments, ``pyro.validation_enabled(False)``,
    and ``pyro.settings.context(...)`` instead.
    """
    pyro.clear_param_store()
    pyro.enable_validation(True)
    torch.manual_seed(SEED)
    np.random.seed(SEED)
    before = _switches()

    yield

    after = _switches()
    torch.set_default_dtype(before["torch default dtype"])
    torch.set_grad_enabled(before["torch grad enabled"])
    _PYRO_STACK.clear()
    known = {name: before.get(f"pyro.settings {name}", now) for name, now in pyro.settings.get().items()}
    pyro.settings.set(**known)  # a setting that the test's imports have registered was not there before
    pyro.clear_param_store()
    changed = [f"{name}: {before[name]} -> {after[name]}" for name in before if before[name] != after[name]]
    if changed:
        pytest.fail("the test left global state changed:\n  " + "\n  ".join(changed), pytrace=False)
