"""The catalogue: every record complete, every file what its source has."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import urllib.request
from datetime import date, timedelta
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_sde.data import CATALOGUE, TimeSeries, load
from pyro_sde.data.files import PublicFiles, ShippedFile

SHIPPED = ["mauna_loa_co2", "sunspots"]
# One row per data set: shape of values, splits (name -> size), first and last time.
TABLE = {
    "mauna_loa_co2": ((1, 2284, 1), {}, 1958.2396, 2001.9932),
    "sunspots": ((1, 309, 1), {}, 1700.0, 2008.0),
    "mocap35": ((19, 300, 50), {"train": 16, "val": 3}, 0.0, 29.9),  # the part without test walks
    "baby_ecg": ((1, 2048, 1), {}, 0.0, 2047 * 16 / 60),
    "baby_sleep": ((1, 2048, 1), {}, 0.0, 2047 * 16 / 60),
    "ecg_mitdb100": ((1, 432_000, 2), {}, 0.0, 431_999 / 360),  # the part of 20 minutes
    "hudson_lynx_hare": ((1, 21, 2), {}, 0.0, 20.0),
}


def load_or_skip(name):
    """Load without the network; skip if the file is not shipped and `$PYRO_SDE_DATA` does not have it."""
    files = CATALOGUE[name].files
    root = os.environ.get("PYRO_SDE_DATA", "")
    if isinstance(files, PublicFiles) and not (
        root and any((Path(root) / file.path).is_file() for file in files.versions)
    ):
        pytest.skip(f"{name} is not shipped and $PYRO_SDE_DATA does not have it")
    return load(name, download=False)


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_record_is_complete(name):
    entry = CATALOGUE[name]
    assert entry.name == name
    assert name in TABLE
    assert min(map(len, (entry.source, entry.licence, entry.description, entry.time_unit))) > 3
    files = (entry.files.file,) if isinstance(entry.files, ShippedFile) else entry.files.versions
    for file in files:
        assert len(file.sha256) == 64
        assert file.url is None or file.url.startswith("https://")
    if isinstance(entry.files, PublicFiles):
        assert any(file.url for file in files)


@pytest.mark.parametrize("name", TABLE)
def test_shapes_splits_and_times_are_as_documented(name):
    shape, splits, first, last = TABLE[name]
    series = load_or_skip(name)
    if name == "mocap35" and "test" in series.splits:
        shape, splits = (23, 300, 50), {**splits, "test": 4}
    if name == "ecg_mitdb100" and series.times.shape[1] == 650_000:
        shape, last = (1, 650_000, 2), 649_999 / 360
    assert isinstance(series, TimeSeries)
    assert series.values.shape == shape
    assert {split: len(series.split(split)) for split in series.splits} == splits
    assert series.times.dtype == series.values.dtype == torch.float64
    assert series.times[:, 0].tolist() == pytest.approx([first] * shape[0], abs=1e-4)
    assert series.times[:, -1].tolist() == pytest.approx([last] * shape[0], abs=1e-4)
    assert series.sha256
    assert series.licence == CATALOGUE[name].licence
    assert series.source == CATALOGUE[name].source


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_are_small_and_need_nothing_around(name, monkeypatch, tmp_path):
    monkeypatch.setenv("PYRO_SDE_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nowhere"))
    monkeypatch.setattr(urllib.request, "urlopen", None)
    assert load(name).values.isfinite().any()
    place = resources.files("pyro_sde.data") / CATALOGUE[name].files.file.path
    assert len(place.read_bytes()) < 100_000


@pytest.mark.parametrize(("name", "source"), [("mauna_loa_co2", "co2"), ("sunspots", "sunspots")])
def test_shipped_files_are_those_of_statsmodels(name, source):
    found = importlib.util.find_spec("statsmodels")  # not imported: only its file is wanted
    if found is None or found.origin is None:
        pytest.skip("statsmodels, the source of the file, is not installed")
    original = Path(found.origin).parent / "datasets" / source / f"{source}.csv"
    shipped = resources.files("pyro_sde.data") / CATALOGUE[name].files.file.path
    assert shipped.read_bytes() == original.read_bytes()


def test_co2_has_the_gaps_of_its_source():
    co2 = load("mauna_loa_co2")
    missing = ~co2.mask[0, :, 0]
    assert int(missing.sum()) == 59
    # statsmodels counts the observed weeks: 2225.
    assert int(co2.mask.sum()) == 2225
    runs = "".join("x" if gap else " " for gap in missing.tolist()).split()
    assert max(map(len, runs)) == 18
    observed = co2.values[co2.mask]
    assert (observed.min().item(), observed.max().item()) == (313.0, 373.9)


def test_co2_times_are_weeks_and_within_a_day_of_the_calendar():
    times = load("mauna_loa_co2").times[0]
    torch.testing.assert_close(
        torch.diff(times), torch.full((2283,), 7 / 365.25, dtype=torch.float64), rtol=1e-9, atol=0
    )
    for week, time in enumerate(times.tolist()):
        day = date(1958, 3, 29) + timedelta(weeks=week)
        start = date(day.year, 1, 1)
        length = (date(day.year + 1, 1, 1) - start).days
        assert abs(time - (day.year + (day - start).days / length)) <= 1 / 365


def test_co2_in_float32_relative_to_its_start():
    co2 = load("mauna_loa_co2")
    whole = co2.windows(2284).to(torch.float32)
    assert whole.times[0, 0] == 0
    expected = co2.times[0] - co2.times[0, 0]
    assert (whole.times[0].double() - expected).abs().max() < 2e-6  # years: a minute


def test_sunspots_start_and_end_as_published():
    values = load("sunspots").values[0, :, 0]
    assert values[:3].tolist() == [5.0, 11.0, 16.0]
    assert values[-1].item() == 2.9
    assert values.min() >= 0


def test_heart_rate_and_sleep_states_are_of_the_same_times():
    rate, state = load_or_skip("baby_ecg"), load_or_skip("baby_sleep")
    assert torch.equal(rate.times, state.times)
    assert (rate.values.min().item(), rate.values.max().item()) == (83.0, 181.0)
    counts = torch.bincount(state.values.flatten().long(), minlength=5)
    assert (counts[1:] > 0).all()
    assert counts[0] == 0
    assert counts[2] / counts.sum() < 0.04


def test_hares_come_first_and_lynxes_follow_them():
    pelts = load_or_skip("hudson_lynx_hare").values[0]
    assert pelts[0].tolist() == [30.0, 4.0]
    assert pelts[-1].tolist() == [24.7, 8.6]
    assert pelts.argmax(0).tolist() == [3, 4]


def test_ecg_is_in_millivolts():
    values = load_or_skip("ecg_mitdb100").values[0]
    assert values[0].tolist() == pytest.approx([-0.145, -0.065])  # 995 and 1011 units, as its header says
    assert -3 < values.min() < values.max() < 2


def test_mocap35_traps_are_as_described():
    walks = load_or_skip("mocap35").values
    assert walks.mean(1).abs().max() < 2e-5  # every walk is centred with its own mean
    constant = (walks.std((0, 1)) < 1e-9).nonzero().flatten().tolist()
    assert constant == [24, 25, 31, 32]


def test_mocap35_npz_is_read_unchanged():
    series = load_or_skip("mocap35")
    path = Path(os.environ["PYRO_SDE_DATA"]) / "mocap35" / "mocap35_trainval.npz"
    if not path.is_file():
        pytest.skip("no mocap35_trainval.npz in $PYRO_SDE_DATA")
    arrays = np.load(path)
    assert np.array_equal(series.split("train").values.numpy(), arrays["Xtr"])
    assert np.array_equal(series.split("val").values.numpy(), arrays["Xval"])


def test_mocap35_without_test_walks_says_so():
    series = load_or_skip("mocap35")
    assert "no test split" in series.description
    if "test" in series.splits:
        pytest.skip("this machine has the whole file")
    with pytest.raises(ValueError, match=r"\('train', 'val'\), received 'test'.*`description`"):
        series.split("test")


def test_mocap35_not_here_and_not_downloaded_is_an_error(monkeypatch, tmp_path):
    monkeypatch.delenv("PYRO_SDE_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"mocap35/mocap35.mat"):
        load("mocap35", download=False, cache=tmp_path)


def test_mocap35_of_a_wrong_version_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PYRO_SDE_DATA", str(tmp_path))
    (tmp_path / "mocap35").mkdir()
    (tmp_path / "mocap35" / "mocap35.mat").write_bytes(b"MATLAB 5.0, but not this one")
    with pytest.raises(ValueError, match="`mocap35/mocap35.mat` must have sha256 105484f1"):
        load("mocap35")


def test_unknown_name_lists_the_known_ones_and_the_nearest():
    match = r"\('mauna_loa_co2', 'sunspots', 'mocap35', .*\), received 'mocap'. Did you mean 'mocap35'\?"
    with pytest.raises(ValueError, match=match):
        load("mocap")
    with pytest.raises(ValueError, match=r"received 'zzz'\.$"):
        load("zzz")


def test_catalogue_is_read_only():
    with pytest.raises(TypeError):
        CATALOGUE["mine"] = None


def test_importing_opens_no_data_and_no_connection():
    script = """
import sys
seen = []
def hook(event, args):
    if event in ("socket.connect", "urllib.Request"):
        seen.append(event)
    elif event == "open" and str(args[0]).endswith((".csv", ".npz", ".mat")) and "pyro_sde" in str(args[0]):
        seen.append(str(args[0]))
sys.addaudithook(hook)
import pyro_sde.data
assert not seen, seen
pyro_sde.data.load("sunspots")
assert len(seen) == 1, seen  # the hook works
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
