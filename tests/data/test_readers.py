"""Readers against files written here, with known content."""

from __future__ import annotations

import io
import json
import sys
import zipfile

import numpy as np
import pytest
import torch

from pyro_sde.data.readers import read_mocap35, read_posteriordb_series, read_weekly_csv, read_yearly_csv


def walks(parts):
    generator = np.random.default_rng(0)
    return {key: generator.normal(size=(count, 6, 5)) for key, count in parts.items()}


def npz(arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_weekly_csv_gives_julian_years_and_nan_for_gaps():
    contents = read_weekly_csv(b"date,co2\n20000101,1.5\n20000108,\n20000115,2.5\n")
    week = 7 / 365.25
    torch.testing.assert_close(
        contents.times, torch.tensor([[2000, 2000 + week, 2000 + 2 * week]], dtype=torch.float64)
    )
    assert contents.values.shape == (1, 3, 1)
    assert contents.values.isnan().flatten().tolist() == [False, True, False]
    assert contents.values[0, [0, 2], 0].tolist() == [1.5, 2.5]


def test_yearly_csv_gives_years():
    contents = read_yearly_csv(b'"YEAR","N"\n1700,5\n1701,11\n')
    assert contents.times.tolist() == [[1700.0, 1701.0]]
    assert contents.values.tolist() == [[[5.0], [11.0]]]


def test_posteriordb_series_begins_with_the_values_at_time_0():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        fields = {"N": 2, "ts": [1, 3], "y_init": [5, 6], "y": [[7, 8.5], [9, 10]]}
        archive.writestr("series.json", json.dumps(fields))
    contents = read_posteriordb_series(buffer.getvalue())
    assert contents.times.tolist() == [[0.0, 1.0, 3.0]]
    assert contents.values.tolist() == [[[5.0, 6.0], [7.0, 8.5], [9.0, 10.0]]]
    assert contents.times.dtype == contents.values.dtype == torch.float64


def test_mocap35_npz_without_test_walks_has_no_test_split():
    arrays = walks({"Xtr": 4, "Xval": 2})
    contents = read_mocap35(npz({**arrays, "dt": np.array(1 / 120)}))
    assert contents.splits == {"train": slice(0, 4), "val": slice(4, 6)}
    assert torch.equal(contents.values[4:], torch.from_numpy(arrays["Xval"]))
    assert contents.times.shape == (6, 6)
    torch.testing.assert_close(contents.times[3], torch.tensor([0, 0.1, 0.2, 0.3, 0.4, 0.5]).double())


def test_mocap35_mat_has_three_splits():
    io_module = pytest.importorskip("scipy.io", reason="scipy reads and writes MATLAB files")
    arrays = walks({"Xtr": 4, "Xval": 2, "Xtest": 3})
    buffer = io.BytesIO()
    io_module.savemat(buffer, arrays)
    contents = read_mocap35(buffer.getvalue())
    assert contents.splits == {"train": slice(0, 4), "val": slice(4, 6), "test": slice(6, 9)}
    for split, key in (("train", "Xtr"), ("val", "Xval"), ("test", "Xtest")):
        assert torch.equal(contents.values[contents.splits[split]], torch.from_numpy(arrays[key]))


def test_mat_without_scipy_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ImportError, match="needs scipy.*pip install scipy"):
        read_mocap35(b"MATLAB 5.0 MAT-file")
