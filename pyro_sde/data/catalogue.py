"""The known data sets: one record each, and `load`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from .files import DataFile, PublicFiles, ShippedFile
from .readers import Reader, read_mocap35, read_posteriordb_series, read_weekly_csv, read_yearly_csv
from .recordings import read_infant, read_mitdb
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


_WAVETHRESH = (
    "https://raw.githubusercontent.com/cran/wavethresh/3fa5edea7cf8db11845e9c8b1043df6a35685ecd/data"  # version 4.7.3
)
_INFANT_SOURCE = (
    "R package wavethresh 4.7.3 (G. P. Nason), from github.com/cran/wavethresh. Recorded by P. Fleming, A. Sawczenko "
    "and J. Young, Institute of Child Health, Royal Hospital for Sick Children, Bristol; see G. P. Nason, R. von "
    "Sachs and G. Kroisandt (2000), Wavelet processes and adaptive estimation of the evolutionary wavelet spectrum, "
    "JRSS B 62."
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
    DataSet(
        name="baby_ecg",
        files=PublicFiles(
            (
                DataFile(
                    "baby_ecg/BabyECG.csv",
                    "7e125bb4bea617f0880180e7b530ed7ddab14ed2a3807c9f767e92c8b9e16b9b",
                ),
                DataFile(
                    "baby_ecg/BabyECG.rda",
                    "f2cbc852504a2f70fe68bce08baea1b8e199f8c50984db95b2d2a1be4882021e",
                    f"{_WAVETHRESH}/BabyECG.rda",
                ),
            )
        ),
        reader=read_infant,
        source=_INFANT_SOURCE,
        licence="GPL (>= 2), the licence of the package",
        description=(
            "Heart rate of one infant, 66 days old, every 16 s from 21:17:59 to 06:27:18: 2048 points, no gaps. Whole "
            "beats per minute. The sleep states of the same night are the data set 'baby_sleep'."
        ),
        time_unit="minute",
        channels=("heart rate [beats/min]",),
    ),
    DataSet(
        name="baby_sleep",
        files=PublicFiles(
            (
                DataFile(
                    "baby_ecg/BabySS.csv",
                    "6f3cbf63d381d6672c461673dd9580579ff81d27cedff136d0bb5ffe1acabbb9",
                ),
                DataFile(
                    "baby_ecg/BabySS.rda",
                    "0b727f14fe99fd05d98e4b03eec12304a3f4d396d98b0fe12a89dea7753354f5",
                    f"{_WAVETHRESH}/BabySS.rda",
                ),
            )
        ),
        reader=read_infant,
        source=_INFANT_SOURCE,
        licence="GPL (>= 2), the licence of the package",
        description=(
            "Sleep state of the infant of 'baby_ecg' at the same times, by an expert from EEG and eye movements: 1 "
            "quiet sleep, 2 between quiet and active sleep, 3 active sleep, 4 awake. Codes, not a scale; state 2 is "
            "rare (3 %)."
        ),
        time_unit="minute",
        channels=("sleep state",),
    ),
    DataSet(
        name="ecg_mitdb100",
        files=PublicFiles(
            (
                DataFile(
                    "ecg_mitdb100/100.dat",
                    "b2ea3c250e56e48f4b7b90697832b8ecd1afa1e0bb31f2dcfea4ed6e1075a639",
                    "https://raw.githubusercontent.com/MIT-LCP/wfdb-python/"
                    "6850ad1aa0c1fcb2282b3625f767de98396cf740/sample-data/100.dat",
                ),
                DataFile(
                    "ecg_mitdb100/mitdb100_0_20min.npz",
                    "9def40100bad454c7255afad90b9609b60bffeaa396afff76ac4307394e3e785",
                ),
            )
        ),
        reader=read_mitdb,
        source=(
            "MIT-BIH Arrhythmia Database, record 100 (Moody and Mark 2001, IEEE Engineering in Medicine and Biology "
            "20(3)), PhysioNet (Goldberger et al. 2000); file sample-data/100.dat of github.com/MIT-LCP/wfdb-python."
        ),
        licence="PhysioNet: Open Data Commons Attribution 1.0; repository of the file: MIT",
        description=(
            "Electrocardiogram of one man of 69: two leads at 360 Hz, 30 minutes (650000 points); the file "
            "mitdb100_0_20min.npz has the first 20. About 76 beats a minute, nearly all normal."
        ),
        time_unit="second",
        channels=("MLII [mV]", "V5 [mV]"),
    ),
    DataSet(
        name="hudson_lynx_hare",
        files=PublicFiles(
            (
                DataFile(
                    "posteriordb/hudson_lynx_hare.json.zip",
                    "36d116efc116fee9c9e7286df5545cbf11d08171c4f48b84476740464a4e33ec",
                    "https://raw.githubusercontent.com/stan-dev/posteriordb/28f8d3d6e975315f42aa274a8399f21e07a43b30/"
                    "posterior_database/data/data/hudson_lynx_hare.json.zip",
                ),
            )
        ),
        reader=read_posteriordb_series,
        source=(
            "posteriordb (Magnusson et al. 2024, arXiv:2407.04967), data set hudson_lynx_hare of "
            "github.com/stan-dev/posteriordb: pelts that the Hudson's Bay Company collected, as used by B. Carpenter "
            "(2018), Predator-prey population dynamics: the Lotka-Volterra model in Stan."
        ),
        licence="BSD-3-Clause, the licence of posteriordb",
        description=(
            "Pelts of snowshoe hares and Canadian lynxes, every year from 1900 (time 0) to 1920: 21 years, no gaps. "
            "The lynxes follow the hares in cycles of about ten years. Pelts, not animals: trapping varies with price "
            "and weather."
        ),
        time_unit="year",
        channels=("hares [thousand pelts]", "lynxes [thousand pelts]"),
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
