"""Piano rolls: several keys at a time, one row of bits per time step."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import torch

from .series import TimeSeries

__all__ = ["read_polyphonic"]

_FIELDS = ("bits", "keys", "lengths")


def read_polyphonic(path: str | Path) -> TimeSeries:
    """Read pieces of music from a compressed NumPy file of piano rolls.

    The file holds `bits`, uint8 ``(sum of lengths, ceil(keys / 8))``: the keys of every step of one piece after the
    other, packed with the lowest key in the highest bit (`numpy.packbits`); `lengths` ``(B,)``, the steps of every
    piece; and `keys`, the number of keys. The record has one channel per key with values 0 and 1 in float32, the number
    of the step as time, and pieces padded to the longest one. The grid (quarter notes, eighth notes) is not in the
    file: scores per step of one grid say nothing about those of another.

    Args:
        path: an ``.npz`` file.

    Returns:
        B series of T steps, the file's name and sha256.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such archive, or its fields do not fit together.
    """
    path = Path(path)
    content = path.read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            fields = {name: archive[name] for name in _FIELDS if name in archive}
    except (ValueError, zipfile.BadZipFile) as error:
        msg = f"`path` must be an .npz archive, which {path.name} is not."
        raise ValueError(msg) from error
    missing = [name for name in _FIELDS if name not in fields]
    if missing:
        msg = f"`path` must be an archive with {', '.join(_FIELDS)}; {path.name} has no {', '.join(missing)}."
        raise ValueError(msg)
    bits, keys, lengths = fields["bits"], int(fields["keys"]), fields["lengths"]
    expected = (int(lengths.sum()), -(-keys // 8))
    if bits.dtype != np.uint8 or bits.shape != expected or lengths.ndim != 1 or not len(lengths) or lengths.min() < 1:
        msg = (
            f"`path`: the bits of {path.name} must be uint8 of shape {expected} = (sum of lengths, ceil(keys / 8)), "
            f"with lengths of at least one step; received {bits.dtype} {bits.shape}, lengths {lengths.shape}."
        )
        raise ValueError(msg)
    rolls = torch.from_numpy(np.unpackbits(bits, axis=1, count=keys)).float()
    pieces = rolls.split(lengths.tolist())
    values = torch.nn.utils.rnn.pad_sequence(list(pieces), batch_first=True)
    ends = torch.as_tensor(lengths, dtype=torch.int64).unsqueeze(-1)
    steps = torch.arange(values.shape[1])
    return TimeSeries(
        path.stem,
        torch.minimum(steps, ends - 1).to(values.dtype),
        values,
        (steps < ends).unsqueeze(-1).expand(values.shape),
        channels=tuple(f"key_{i}" for i in range(keys)),
        time_unit="step",
        sha256=hashlib.sha256(content).hexdigest(),
        description="piano rolls, 1 = the key sounds",
    )
