"""Piano rolls come out of a file as they went in."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_sde.data.polyphonic import read_polyphonic


def write(path: Path, **changes: object) -> tuple[Path, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    pieces = [rng.integers(0, 2, (length, 11)).astype(np.uint8) for length in (3, 5, 1)]
    fields = {
        "bits": np.packbits(np.concatenate(pieces), axis=1),
        "lengths": np.array([3, 5, 1], dtype=np.int32),
        "keys": np.array(11),
        **changes,
    }
    np.savez_compressed(path, **{name: value for name, value in fields.items() if value is not None})
    return path, pieces


def test_pieces_are_padded_and_masked(tmp_path):
    path, pieces = write(tmp_path / "music.npz")
    series = read_polyphonic(path)
    assert series.values.shape == (3, 5, 11)
    assert series.values.dtype == torch.float32
    for values, mask, piece in zip(series.values, series.mask, pieces, strict=True):
        length = len(piece)
        assert torch.equal(values[:length], torch.from_numpy(piece).float())
        assert mask[:length].all()
        assert not mask[length:].any()
    assert series.times.tolist() == [[0, 1, 2, 2, 2], [0, 1, 2, 3, 4], [0, 0, 0, 0, 0]]
    assert series.name == "music"
    assert series.channels[-1] == "key_10"
    assert series.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": None}, "has no keys"),
        ({"bits": np.zeros((9, 3), np.uint8)}, "must be uint8 of shape"),
        ({"bits": np.zeros((8, 2), np.uint8)}, "must be uint8 of shape"),
        ({"bits": np.zeros((9, 2), np.int64)}, "must be uint8 of shape"),
        ({"lengths": np.array([3, 6, 0])}, "at least one step"),
    ],
)
def test_fields_that_do_not_fit_are_refused(tmp_path, changes, message):
    path, _ = write(tmp_path / "music.npz", **changes)
    with pytest.raises(ValueError, match=message):
        read_polyphonic(path)


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "notes.npz"
    path.write_text("not an archive")
    with pytest.raises(ValueError, match="must be an .npz archive"):
        read_polyphonic(path)
    with pytest.raises(FileNotFoundError):
        read_polyphonic(tmp_path / "absent.npz")
