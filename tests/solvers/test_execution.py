"""Options of execution: checked where they are set, and taken where they are not given."""

import pyro
import pytest

from pyro_sde.solvers import Execution

WRONG = {"backward": "fast", "forward": "shooting", "memory": "none", "block": 0}


@pytest.mark.parametrize("name", WRONG)
def test_other_words_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        Execution(**{name: WRONG[name]})
    with pytest.raises(ValueError, match=f"`pyro_sde_{name}` must be"):
        pyro.settings.set(**{f"pyro_sde_{name}": WRONG[name]})


@pytest.mark.parametrize("block", [True, 2.5, "1024", -3])
def test_a_block_is_a_number_of_rows(block):
    with pytest.raises(ValueError, match="`block` must be a number of rows"):
        Execution(block=block)


def test_low_memory_and_all_steps_at_once_exclude_each_other():
    with pytest.raises(ValueError, match='memory="low".*forward="newton"'):
        Execution(memory="low", forward="newton")


def test_settings_are_what_is_current():
    assert Execution.current() == Execution()
    settings = {"backward": "loop", "forward": "picard", "memory": "full", "block": 7}
    with pyro.settings.context(**{f"pyro_sde_{name}": value for name, value in settings.items()}):
        assert Execution.current() == Execution(**settings)
    assert Execution.current() == Execution()


def test_blocks_are_larger_where_memory_is_low_and_as_large_as_told():
    assert Execution().block_rows == 1024
    assert Execution(memory="low").block_rows == 4096
    assert Execution(memory="low", block=10).block_rows == 10
