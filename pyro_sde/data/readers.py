"""Readers: the bytes of a file become times, values and splits."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime

import numpy as np
import torch
from torch import Tensor

from ._validation import Index

__all__ = ["Contents", "Reader", "read_mocap35", "read_posteriordb_series", "read_weekly_csv", "read_yearly_csv"]

_DAYS_PER_YEAR = 365.25
_TIME_PER_FRAME = 0.1  # by convention of the papers; the recordings have 1/120 s
_MOCAP35_PARTS = {"train": "Xtr", "val": "Xval", "test": "Xtest"}


@dataclass(frozen=True)
class Contents:
    """What a file holds: ``times (B, N)``, ``values (B, N, O)`` with NaN for gaps, splits over series."""

    times: Tensor
    values: Tensor
    splits: Mapping[str, Index] = field(default_factory=dict)


Reader = Callable[[bytes], Contents]


def read_weekly_csv(content: bytes) -> Contents:
    """Read lines ``YYYYMMDD,value``, the value empty where missing.

    Times are Julian years, ``2000 + (days since 2000-01-01) / 365.25``: equally spaced, as the weeks are, and
    within a day of the calendar's decimal year.
    """
    days, values = _columns(content)
    epoch = date(2000, 1, 1).toordinal()
    ordinals = [datetime.strptime(day, "%Y%m%d").toordinal() for day in days]
    times = 2000 + (torch.tensor(ordinals, dtype=torch.float64) - epoch) / _DAYS_PER_YEAR
    return Contents(times.unsqueeze(0), values[None, :, None])


def read_yearly_csv(content: bytes) -> Contents:
    """Read lines ``YYYY,value``, the value empty where missing."""
    years, values = _columns(content)
    times = torch.tensor([float(year) for year in years], dtype=torch.float64)
    return Contents(times.unsqueeze(0), values[None, :, None])


def read_mocap35(content: bytes) -> Contents:
    """Read `Xtr`, `Xval` and, if there, `Xtest` (walks, frames, 50) from a .mat or .npz file.

    Raises:
        ImportError: if the file is a .mat and scipy is not installed.
    """
    is_npz = content.startswith(b"PK")  # a zip archive
    arrays = np.load(io.BytesIO(content)) if is_npz else _mat_arrays(content)
    parts = {split: torch.from_numpy(arrays[key]).double() for split, key in _MOCAP35_PARTS.items() if key in arrays}
    values = torch.cat(list(parts.values()))  # (16 + 3 [+ 4], 300, 50)
    splits: dict[str, Index] = {}
    start = 0
    for split, part in parts.items():
        splits[split] = slice(start, start + len(part))
        start += len(part)
    times = _TIME_PER_FRAME * torch.arange(values.shape[1], dtype=torch.float64)
    return Contents(times.repeat(len(values), 1), values, splits)


def read_posteriordb_series(content: bytes) -> Contents:
    """Read a zipped JSON file with times `ts`, values `y`, and `y_init`, the values at time 0 before them."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        fields = json.loads(archive.read(archive.namelist()[0]))
    times = torch.tensor([0.0, *fields["ts"]], dtype=torch.float64)
    values = torch.tensor([fields["y_init"], *fields["y"]], dtype=torch.float64)
    return Contents(times.unsqueeze(0), values.unsqueeze(0))


def _columns(content: bytes) -> tuple[list[str], Tensor]:
    rows = list(csv.reader(io.StringIO(content.decode())))[1:]  # the first line holds the names
    values = torch.tensor([float(value or "nan") for _, value in rows], dtype=torch.float64)
    return [first for first, _ in rows], values


def _mat_arrays(content: bytes) -> dict[str, np.ndarray]:
    try:
        from scipy.io import loadmat  # half a second, and only for MATLAB files
    except ImportError as error:
        message = "reading a .mat file needs scipy, which is not installed. Use `pip install scipy`."
        raise ImportError(message) from error
    return loadmat(io.BytesIO(content))
