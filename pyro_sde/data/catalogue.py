"""The known data sets: one record each, and `load`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from .files import DataFile, PublicFiles, ShippedFile
from .readers import Reader, read_mocap35, read_weekly_csv, read_yearly_csv
from .series import TimeSeries

__all__ = ["CATALOGUE", "DataSet", "load"]


@dataclass(frozen=True)
class DataSet:
    """What the catalogue knows of a data set before any file is opened.

    Args:
        name: the argument of `load`.
        files: where its bytes are.
        reader: turns them into tensors.
        source: where the numbers come from, with version or commit, and the citation asked for.
        licence: as stated by the source.
        description: what it is, and what one could trip over.
        time_unit: unit of the times.
        channels: names with units; empty for ``channel_0`` and so on.
    """

    name: str
    files: ShippedFile | PublicFiles
    reader: Reader
    source: str
    licence: str
    description: str
    time_unit: str = ""
    channels: tuple[str, ...] = ()

    def load(self, *, download: bool = True, cache: str | Path | None = None) -> TimeSeries:
        """Find, check and read the file: see `load` of this module."""
        file, content = self.files.fetch(download=download, cache=cache)
        contents = self.reader(content)
        return TimeSeries(
            name=self.name,
            times=contents.times,
            values=contents.values,
            mask=~contents.values.isnan(),
            splits=contents.splits,
            channels=self.channels,
            time_unit=self.time_unit,
            source=self.source,
            licence=self.licence,
            sha256=file.sha256,
            description=self.description,
        )


_DATA_SETS = (
    DataSet(
        name="mauna_loa_co2",
        files=ShippedFile(
            DataFile("mauna_loa_co2.csv", "16695fa2786e53414e5a6b54767a3fdf5de99cfbc68617f69d1362d92776a92f")
        ),
        reader=read_weekly_csv,
        source=(
            "PyPI package statsmodels 0.15.0, statsmodels/datasets/co2/co2.csv, byte for byte. It cites "
            "C. D. Keeling and T. P. Whorf (2004), Atmospheric CO2 concentrations derived from flask air "
            "samples at sites in the SIO network, in Trends: A Compendium of Data on Global Change, CDIAC, Oak "
            "Ridge National Laboratory."
        ),
        licence="public domain, as stated by statsmodels",
        description=(
            "Weekly mean CO2 in the air at Mauna Loa, Hawaii, 1958-03-29 to 2001-12-29: 2284 Saturdays, of "
            "which 59 are missing; the longest gap is 18 weeks, in early 1964. Times are Julian years "
            "(365.25 days): equally spaced, within a day of the decimal calendar year."
        ),
        time_unit="year",
        channels=("CO2 [ppm]",),
    ),
    DataSet(
        name="sunspots",
        files=ShippedFile(DataFile("sunspots.csv", "f67889b1d9002cd5227f0e0ef54e35b419cdd85a31279adef6f73fb41e5c0a9b")),
        reader=read_yearly_csv,
        source=(
            "PyPI package statsmodels 0.15.0, statsmodels/datasets/sunspots/sunspots.csv, byte for byte; it "
            "cites the National Geophysical Data Center (NOAA)."
        ),
        licence="public domain, as stated by statsmodels",
        description="Yearly mean sunspot number, 1700 to 2008, no gaps. Never negative, strongly skewed.",
        time_unit="year",
        channels=("sunspot number",),
    ),
    DataSet(
        name="mocap35",
        files=PublicFiles(
            (
                DataFile(
                    "mocap35/mocap35.mat",
                    "105484f138487f10209cce883d26e2e030d10a6df6f10159f4e6e253f9b03b8d",
                    "https://raw.githubusercontent.com/uncbiag/neuro_shooting/"
                    "ebf80a9c0a4515fdfffaa0c5418dc866e2776495/data/mocap/mocap35.mat",
                ),
                DataFile(
                    "mocap35/mocap35_trainval.npz",
                    "5ae7df4321a401f1b962713b41e0150bf5717fa57f31ae8752bce0ecf5c97f18",
                ),
            )
        ),
        reader=read_mocap35,
        source=(
            "CMU Graphics Lab Motion Capture Database (mocap.cs.cmu.edu), subject 35, as prepared for "
            "ODE2VAE (Yildiz, Heinonen and Lahdesmaki 2019); file data/mocap/mocap35.mat of "
            "github.com/uncbiag/neuro_shooting."
        ),
        licence="CMU: free for all uses, do not resell the data itself; repository of the file: Apache-2.0",
        description=(
            "Walks of one person: 50 channels, 300 frames; 16 walks train, 3 val, 4 test. The file "
            "mocap35_trainval.npz has no test split; mocap35.mat has. Times are 0.1 per frame, as in the "
            "papers (the recording has 1/120 s). Trap: every walk is centred with its own mean over all "
            "frames, so that the first frames know of the last; published errors share this leak. Channels "
            "24, 25, 31 and 32 are constant: a learned observation noise runs into its bound there and "
            "dominates the likelihood."
        ),
        time_unit="10 frames",
    ),
)

CATALOGUE: Mapping[str, DataSet] = MappingProxyType({entry.name: entry for entry in _DATA_SETS})


def load(name: str, *, download: bool = True, cache: str | Path | None = None) -> TimeSeries:
    """Load a known data set in float64, on the CPU.

    Shipped sets need nothing else. For others the file is looked for in `$PYRO_SDE_DATA`, then in the user's
    cache, then it is downloaded from its public source into the cache. Its checksum is verified every time;
    nothing is kept in memory between calls.

    Args:
        name: a key of `CATALOGUE`.
        download: allow the download.
        cache: folder to use instead of the user's cache (`$XDG_CACHE_HOME/pyro_sde`, or what the platform
            uses).

    Raises:
        ValueError: if the name is unknown (the message lists the known ones), or a file has the wrong
            checksum.
        FileNotFoundError: if the file is not on this machine and `download` is False.
        NotADirectoryError: if `$PYRO_SDE_DATA` is set but no folder.
        ConnectionError: if the download fails; the message says where to put the file by hand.
        ImportError: if reading the file needs a package that is missing.

    Example:
        >>> co2 = load("mauna_loa_co2")
        >>> co2.values.shape, int((~co2.mask).sum())
        (torch.Size([1, 2284, 1]), 59)
    """
    if name not in CATALOGUE:
        known = ", ".join(map(repr, CATALOGUE))
        near = difflib.get_close_matches(str(name), CATALOGUE, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        message = f"`name` must be a known data set ({known}), received {name!r}.{hint}"
        raise ValueError(message)
    return CATALOGUE[name].load(download=download, cache=cache)
