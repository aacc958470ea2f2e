"""The benchmarks of deep Markov models run, and compare what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyro
import pytest
import torch

from pyro_sde.infer.elbo import PathELBO
from pyro_sde.models.deep_markov_model import DeepMarkovModel
from tests.benchmarks import dmm, jsb


@pytest.fixture
def rolls(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    lengths = np.array([4, 2, 5])
    bits = np.packbits(rng.integers(0, 2, (lengths.sum(), 6)).astype(np.uint8), axis=1)
    np.savez(tmp_path / "rolls.npz", bits=bits, lengths=lengths, keys=np.array(6))
    return tmp_path / "rolls.npz"


def test_rows_of_an_epoch_share_data_and_report_ratios():
    table = dmm.compare(2, (3, 4, 5), dmm.rolls(5, 9, 6), 3, rounds=1)
    assert list(table.rows) == [dmm.MARKOV, dmm.FULL, dmm.CLOSED]
    assert dmm.page([table]).count("\n") == 4
    assert len(table.notes) == 2


def test_synthetic_rolls_have_the_lengths_of_the_chorales():
    data = dmm.rolls(dmm.SERIES, dmm.LONGEST, dmm.KEYS)
    assert data.lengths.max() == dmm.LONGEST
    assert 55 < data.lengths.double().mean() < 65
    assert not data.values[~data.mask].any()


def test_every_row_trains_scores_and_goes_on(rolls, tmp_path, capsys, monkeypatch):
    small = {name: row._replace(state=2, hidden=(3, 4, 5)) for name, row in jsb.SETTINGS.items()}
    monkeypatch.setattr(jsb, "SETTINGS", small)
    given = ["--train", str(rolls), "--valid", str(rolls), "--test", str(rolls), "--epochs", "1", "--samples", "3"]
    for _ in range(2):  # the second time from the checkpoints, without training
        jsb.main([*given, "--checkpoint", str(tmp_path / "runs")])
        shown = capsys.readouterr().out
        table = [line for line in shown.splitlines() if line.startswith("| ")]
        assert [line.split(" | ")[0] for line in table[1:]] == [f"| {name}" for name in jsb.SETTINGS]
    assert "epoch 1" not in shown


def test_linear_row_is_a_linear_chain():
    prior = jsb.LinearPrior(2)
    z = torch.randn(3, 2)
    laws = [prior.step(one, torch.ones(1), None).mean for one in (z, 2 * z, torch.zeros_like(z))]
    torch.testing.assert_close(laws[1] - laws[2], 2 * (laws[0] - laws[2]))


def test_named_without_files_it_says_what_it_needs():
    with pytest.raises(SystemExit, match="--train FILE"):
        jsb.tables()


def test_copy_reads_the_networks_of_ours():
    pyro.clear_param_store()
    model = DeepMarkovModel(2, 6, hidden=(3, 4, 5))
    data = dmm.rolls(3, 9, 6)
    copy = dmm.MarkovDMM(model)
    torch.testing.assert_close(
        copy.summary(data.values, data.lengths), model.posterior.readers["right"](data.values, data.lengths)
    )
    assert PathELBO().loss(model.model, model.guide, *data) > 0
