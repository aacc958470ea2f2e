"""The benchmark on an electrocardiogram: which values it takes, and that its parts run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.benchmarks import ecg


@pytest.fixture
def voltage(monkeypatch):
    for name, value in {"SECONDS": 4, "PARTS": 2, "BURSTS": (1,)}.items():
        monkeypatch.setattr(ecg, name, value)
    torch.manual_seed(0)
    return torch.randn(2 * 4 * 360, dtype=torch.float64)


def test_values_of_the_bursts_are_those_of_the_record(voltage):
    problem = ecg.Problem(voltage)
    assert problem.values.shape == (2, 45, 1)
    for part, number in ((0, 0), (1, 0), (1, 44)):
        place = part * 4 * 360 + 360 + 8 * number
        assert problem.values[part, number, 0] == voltage[place].float()
    assert problem.grid.num_steps == 4 * 45
    torch.testing.assert_close(problem.grid.observed_times, 1 + torch.arange(45) / 45)


def test_the_guide_reads_a_value_only_while_it_is_new(voltage):
    problem = ecg.Problem(voltage)
    fresh = problem.inputs[0, :, 1].nonzero().flatten()
    assert fresh[0] == 45
    assert len(fresh) in (45, 46)
    torch.testing.assert_close(problem.inputs[:, 45:90, :1], problem.values)
    assert not problem.inputs[:, :45].any()
    assert not problem.inputs[:, 100:].any()


def test_it_skips_and_agrees_with_simulated_gaps(voltage, monkeypatch, capsys):
    record = torch.stack([voltage, voltage], -1).unsqueeze(0)
    monkeypatch.setattr(ecg, "load", lambda name: SimpleNamespace(values=record))
    ecg.main(["--rounds", "1", "--training", "1", "--particles", "2"])
    shown = capsys.readouterr().out
    assert "of 1440 fine steps skipped" in shown
    share = float(shown.split("Electrocardiogram: ")[1].split(" %")[0])
    assert share == pytest.approx(100 * (1 - (44 + 5) / 180), abs=1)  # a burst and 0.1 s before it
    assert "times less time per step" in shown
    assert abs(float(shown.split("common noise ")[1].split(" ")[0])) < 1


def test_named_without_its_command_it_says_what_it_needs():
    with pytest.raises(SystemExit, match="python -m tests.benchmarks.ecg"):
        ecg.tables()
