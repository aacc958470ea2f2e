"""The way to a file: shipped, in `$PYRO_SDE_DATA`, in the user's cache, or downloaded; always checked."""

from __future__ import annotations

import hashlib
import http.client
import os
import sys
import tempfile
import urllib.request
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

__all__ = ["DataFile", "PublicFiles", "ShippedFile", "cache_directory"]

_TIMEOUT = 30.0  # seconds without an answer from a server


@dataclass(frozen=True)
class DataFile:
    """One file: where it lies below a data folder, its checksum, and where the public finds it.

    Args:
        path: relative to `$PYRO_SDE_DATA`, the cache or the package, with ``/``.
        sha256: 64 hexadecimal digits.
        url: public address of exactly these bytes; None if there is none.
    """

    path: str
    sha256: str
    url: str | None = None

    def check(self, content: bytes, place: str) -> bytes:
        """Return `content`, which was read from `place`.

        Raises:
            ValueError: if its sha256 is not the catalogue's.
        """
        digest = hashlib.sha256(content).hexdigest()
        if digest != self.sha256:
            message = (
                f"`{self.path}` must have sha256 {self.sha256}, but the {len(content)} bytes of {place} "
                f"have {digest}. That is a damaged file or another version: delete it and load again."
            )
            raise ValueError(message)
        return content


@dataclass(frozen=True)
class ShippedFile:
    """A file that comes with the package."""

    file: DataFile

    def fetch(self, *, download: bool = True, cache: str | Path | None = None) -> tuple[DataFile, bytes]:
        """Return the file and its checked content; never asks the network or the cache.

        Raises:
            ValueError: if the checksum is wrong.
        """
        del download, cache  # the signature of `PublicFiles.fetch`
        place = resources.files("pyro_sde.data") / self.file.path
        return self.file, self.file.check(place.read_bytes(), str(place))


@dataclass(frozen=True)
class PublicFiles:
    """Versions of a file that is not shipped, best first: with more splits, or nearer to the source.

    Looks for each version in `$PYRO_SDE_DATA`, then for each in the cache, then downloads the first that has
    a url. A file that is found but damaged raises; nothing else is tried behind the user's back.
    """

    versions: tuple[DataFile, ...]

    def fetch(self, *, download: bool = True, cache: str | Path | None = None) -> tuple[DataFile, bytes]:
        """Return the version found and its checked content.

        Args:
            download: fetch the file if it is not on this machine, and keep it in the cache.
            cache: folder to use instead of `cache_directory()`.

        Raises:
            FileNotFoundError: if the file is not here and may not or cannot be downloaded.
            NotADirectoryError: if `$PYRO_SDE_DATA` is set to something else than a folder.
            ConnectionError: if the download fails.
            ValueError: if the checksum is wrong.
        """
        folder = cache_directory() if cache is None else Path(cache)
        places = [*_own_folder(), folder]
        for place in places:
            for file in self.versions:
                target = place / file.path
                if target.is_file():
                    return file, file.check(target.read_bytes(), str(target))
        remote = next((file for file in self.versions if file.url), None)
        if remote is None or not download:
            wanted = " or ".join(repr(file.path) for file in self.versions)
            advice = "Set `download=True`" if remote else "Get the file from its source"
            message = (
                f"found no file {wanted} in {', '.join(map(str, places))}. "
                f"{advice}, or put it into a folder and set $PYRO_SDE_DATA to that folder."
            )
            raise FileNotFoundError(message)
        content = remote.check(_download(remote, folder), str(remote.url))
        _write(folder / remote.path, content)
        return remote, content


def cache_directory() -> Path:
    """Return the user's cache folder for this package; it need not exist.

    `$XDG_CACHE_HOME/pyro_sde` if that variable is set; else the platform's habit: `~/.cache/pyro_sde`,
    `~/Library/Caches/pyro_sde` (macOS) or `%LOCALAPPDATA%/pyro_sde` (Windows).
    """
    if root := os.environ.get("XDG_CACHE_HOME"):
        return Path(root) / "pyro_sde"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "pyro_sde"
    if sys.platform == "win32" and (root := os.environ.get("LOCALAPPDATA")):
        return Path(root) / "pyro_sde"
    return Path.home() / ".cache" / "pyro_sde"


def _own_folder() -> list[Path]:
    root = os.environ.get("PYRO_SDE_DATA")
    if not root:
        return []
    if not Path(root).is_dir():
        message = f"`$PYRO_SDE_DATA` must name an existing folder, received {root!r}. Correct or unset it."
        raise NotADirectoryError(message)
    return [Path(root)]


def _download(file: DataFile, folder: Path) -> bytes:
    try:
        with urllib.request.urlopen(str(file.url), timeout=_TIMEOUT) as answer:
            return answer.read()
    except (OSError, http.client.HTTPException) as error:  # no network or host, refused, 404, cut off
        message = (
            f"could not download {file.url} ({error}). If this machine is offline, get the file elsewhere "
            f"and save it as {folder / file.path}, or as {file.path} below a folder named by $PYRO_SDE_DATA."
        )
        raise ConnectionError(message) from error


def _write(target: Path, content: bytes) -> None:
    """Write in one step: whoever reads `target` at the same time finds the whole file or none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
