"""Finding, checking and downloading files. The "network" is a ``file:`` address in a temporary folder."""

from __future__ import annotations

import hashlib
import http.client
import os
import sys
import urllib.request
from pathlib import Path

import pytest

from pyro_sde.data.files import DataFile, PublicFiles, ShippedFile, cache_directory

CONTENT = b"date,value\n1,2.0\n"
OTHER = b"another version"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Environment in which everything that can be found lies below `tmp_path`; returns writer of files."""
    monkeypatch.delenv("PYRO_SDE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def write(path, content=CONTENT):
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        return target

    return write


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def public(tmp_path, content=CONTENT):
    url = (tmp_path / "server" / "set.csv").as_uri()
    best = DataFile("set/set.csv", sha256(content), url)
    return PublicFiles((best, DataFile("set/part.csv", sha256(OTHER))))


def test_download_is_checked_cached_and_not_repeated(place, tmp_path, monkeypatch):
    place("server/set.csv")
    file, content = public(tmp_path).fetch()
    assert (file.path, content) == ("set/set.csv", CONTENT)
    assert [path.name for path in (tmp_path / "cache/pyro_sde/set").iterdir()] == ["set.csv"]
    monkeypatch.setattr(urllib.request, "urlopen", None)
    assert public(tmp_path).fetch()[1] == CONTENT


def test_cache_argument_replaces_the_cache(place, tmp_path):
    place("server/set.csv")
    public(tmp_path).fetch(cache=tmp_path / "mine")
    assert (tmp_path / "mine/set/set.csv").read_bytes() == CONTENT
    assert not (tmp_path / "cache").exists()


def test_own_folder_comes_before_cache_and_network(place, tmp_path, monkeypatch, offline):
    place("cache/pyro_sde/set/set.csv")
    place("own/set/part.csv", OTHER)
    assert public(tmp_path).fetch()[0].path == "set/set.csv"
    monkeypatch.setenv("PYRO_SDE_DATA", str(tmp_path / "own"))
    assert public(tmp_path).fetch() == (public(tmp_path).versions[1], OTHER)
    place("own/set/set.csv")
    assert public(tmp_path).fetch()[0].path == "set/set.csv"


def test_empty_own_folder_falls_through_to_the_cache(place, tmp_path, monkeypatch, offline):
    place("cache/pyro_sde/set/set.csv")
    (tmp_path / "own").mkdir()
    monkeypatch.setenv("PYRO_SDE_DATA", str(tmp_path / "own"))
    assert public(tmp_path).fetch()[1] == CONTENT


@pytest.mark.parametrize("folder", ["own", "cache/pyro_sde"])
def test_damaged_file_is_named_and_never_passed_over(place, tmp_path, monkeypatch, folder):
    place("server/set.csv")
    damaged = place(f"{folder}/set/set.csv", CONTENT[:-1])
    monkeypatch.setenv("PYRO_SDE_DATA", str(tmp_path / "own") if folder == "own" else "")
    with pytest.raises(ValueError, match=r"`set/set.csv` must have sha256 .* the 16 bytes of .*delete it") as error:
        public(tmp_path).fetch()
    assert str(damaged) in str(error.value)


def test_damaged_download_is_refused_and_not_kept(place, tmp_path):
    place("server/set.csv", b"<html>moved</html>")
    with pytest.raises(ValueError, match="must have sha256"):
        public(tmp_path).fetch()
    assert not (tmp_path / "cache").exists()


def test_offline_says_where_to_put_the_file(place, tmp_path):
    with pytest.raises(ConnectionError, match=r"could not download file:.*offline.*PYRO_SDE_DATA") as error:
        public(tmp_path).fetch()
    assert str(tmp_path / "cache/pyro_sde/set/set.csv") in str(error.value)


def test_download_cut_off_is_a_connection_error(place, tmp_path, monkeypatch):
    def cut(*args, **kwargs):
        raise http.client.IncompleteRead(b"half")

    monkeypatch.setattr(urllib.request, "urlopen", cut)
    with pytest.raises(ConnectionError, match="could not download"):
        public(tmp_path).fetch()


def test_download_false_never_asks_the_network(place, tmp_path, offline):
    with pytest.raises(FileNotFoundError, match=r"'set/set.csv' or 'set/part.csv' in .*Set `download=True`"):
        public(tmp_path).fetch(download=False)


def test_file_without_an_address_must_be_there(place, tmp_path, offline):
    only = PublicFiles((DataFile("set/part.csv", sha256(OTHER)),))
    with pytest.raises(FileNotFoundError, match="Get the file from its source"):
        only.fetch()


def test_own_folder_that_does_not_exist_is_refused(place, tmp_path, monkeypatch):
    monkeypatch.setenv("PYRO_SDE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(NotADirectoryError, match=r"`\$PYRO_SDE_DATA` must name an existing folder"):
        public(tmp_path).fetch()


def test_interrupted_write_leaves_no_file(place, tmp_path, monkeypatch):
    place("server/set.csv")

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        public(tmp_path).fetch()
    assert list((tmp_path / "cache/pyro_sde/set").iterdir()) == []


def test_shipped_file_with_a_wrong_checksum_is_refused():
    with pytest.raises(ValueError, match=r"`sunspots.csv` must have sha256 00"):
        ShippedFile(DataFile("sunspots.csv", "00" * 32)).fetch()


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/pyro_sde"),
        ("darwin", {"XDG_CACHE_HOME": "/x"}, "/x/pyro_sde"),
        ("linux", {}, "/me/.cache/pyro_sde"),
        ("darwin", {}, "/me/Library/Caches/pyro_sde"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/pyro_sde"),
        ("win32", {}, "/me/.cache/pyro_sde"),
    ],
)
def test_cache_directory_follows_the_platform(monkeypatch, platform, variables, expected):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: Path("/me"))
    assert cache_directory() == Path(expected)
