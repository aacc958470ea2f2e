"""One setting decides whether recursions run as machine code."""

import pyro
import pytest
import torch

from pyro_sde.ops import linear_recurrence, scan
from pyro_sde.ops.jit import may_compile


def test_the_setting_decides_and_other_words_are_refused():
    assert may_compile()
    with pyro.settings.context(pyro_sde_compiled="never"):
        assert not may_compile()
    with pytest.raises(ValueError, match="`pyro_sde_compiled` must be"):
        pyro.settings.set(pyro_sde_compiled="always")


def test_never_keeps_scans_out_of_machine_code(monkeypatch):
    monkeypatch.setitem(scan._FORMS, "compiled", lambda *_: pytest.fail("this ran as machine code"))
    with pyro.settings.context(pyro_sde_compiled="never"):
        states = linear_recurrence(0.5 * torch.eye(2).expand(100, 2, 2), torch.ones(100, 2), torch.zeros(2))
    torch.testing.assert_close(states[-1], torch.full((2,), 2.0))
