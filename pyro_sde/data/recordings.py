"""Readers of physiological recordings: an R data file, and the signal files of PhysioNet."""

from __future__ import annotations

import bz2
import io
import struct

import numpy as np
import torch

from .readers import Contents

__all__ = ["read_infant", "read_mitdb"]

_MINUTES = 16 / 60  # between the points of the infant's record
_R_MAGIC = b"RDX2\nX\n"
_R_PAIR, _R_REAL, _R_END = 0x402, 14, 0xFE  # a named entry, a vector of doubles, the end of the list
_RATE, _GAIN, _BASELINE = 360.0, 200.0, 1024  # Hz, units per mV, units at 0 mV: header of the MIT-BIH records


def read_infant(content: bytes) -> Contents:
    """Read one number every 16 s, from an R data file with one vector of doubles, or a CSV file with a header line.

    Times are minutes since the first point.

    Raises:
        ValueError: if an R data file holds something else.
    """
    values = _r_vector(bz2.decompress(content)) if content.startswith(b"BZh") else _csv_column(content)
    series = torch.from_numpy(values.copy())
    times = _MINUTES * torch.arange(len(series), dtype=torch.float64)
    return Contents(times.unsqueeze(0), series[None, :, None])


def read_mitdb(content: bytes) -> Contents:
    """Read a two-lead record in millivolts, from a signal file of format 212 or a .npz file with the array `adc`.

    Format 212 packs two 12-bit samples in two's complement, one of each lead, into three bytes. Times are seconds.

    Raises:
        ValueError: if a signal file does not consist of whole pairs of samples.
    """
    is_npz = content.startswith(b"PK")  # a zip archive
    units = np.load(io.BytesIO(content))["adc"] if is_npz else _format_212(content)
    values = torch.from_numpy((units.astype(np.float64) - _BASELINE) / _GAIN)  # (N, 2)
    times = torch.arange(len(values), dtype=torch.float64) / _RATE
    return Contents(times.unsqueeze(0), values.unsqueeze(0))


def _r_vector(data: bytes) -> np.ndarray:
    """The vector of a workspace in R's serialisation, version 2, XDR: magic, versions, name, length, doubles, end."""
    start = len(_R_MAGIC) + 12  # behind the versions of format, writer and oldest reader
    found, count, first = None, 0, 0
    try:
        pair, symbol, _, letters = struct.unpack_from(">4i", data, start)
        kind, count = struct.unpack_from(">2i", data, start + 16 + letters)
        first = start + 24 + letters
        (end,) = struct.unpack_from(">i", data, first + 8 * count)
        found = (data[: len(_R_MAGIC)], pair, symbol, kind, end)
    except struct.error:  # it ends too early
        pass
    if found != (_R_MAGIC, _R_PAIR, 1, _R_REAL, _R_END):
        msg = (
            "the R data file must hold one vector of doubles without attributes, saved in binary form, version 2; "
            "received something else. Save it by `save(x, file=..., version=2)`, or as CSV."
        )
        raise ValueError(msg)
    return np.frombuffer(data, ">f8", count, first).astype(np.float64)


def _csv_column(content: bytes) -> np.ndarray:
    return np.loadtxt(io.StringIO(content.decode()), skiprows=1, ndmin=1)


def _format_212(content: bytes) -> np.ndarray:
    """Samples ``(N, 2)``: low bytes first and last, both high halves in the middle."""
    if len(content) % 3:
        msg = (
            f"a signal file of format 212 has 3 bytes per pair of samples, received {len(content)} bytes. Is it whole?"
        )
        raise ValueError(msg)
    first, middle, last = np.frombuffer(content, np.uint8).reshape(-1, 3).astype(np.int16).T
    units = np.stack([first | (middle & 0x0F) << 8, last | (middle & 0xF0) << 4], -1)
    return np.where(units >= 2048, units - 4096, units)
