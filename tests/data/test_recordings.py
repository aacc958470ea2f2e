"""Readers of recordings against bytes written here, with known content."""

from __future__ import annotations

import bz2
import io
import struct

import numpy as np
import pytest
import torch

from pyro_sde.data.recordings import read_infant, read_mitdb


def workspace(values, name=b"x", pair=0x402, symbol=1, kind=14, end=0xFE):
    """What R writes for one vector: the specification is section 1.8 of "R Internals"."""
    data = b"RDX2\nX\n" + struct.pack(">3i", 2, 0x20F02, 0x20300)
    data += struct.pack(">4i", pair, symbol, 0x40009, len(name)) + name
    return data + struct.pack(f">2i{len(values)}di", kind, len(values), *values, end)


def pack_212(pairs):
    """Three bytes per pair, written bit by bit: low byte, both high halves (second sample's above), low byte."""
    out = bytearray()
    for first, second in pairs:
        a, b = first % 4096, second % 4096
        out += bytes([a % 256, (b // 256) * 16 + a // 256, b % 256])
    return bytes(out)


@pytest.mark.parametrize("name", [b"BabySS", b"a"])
def test_r_data_file_gives_its_vector(name):
    contents = read_infant(bz2.compress(workspace([129.0, 130.5, -1.0], name)))
    assert contents.values.flatten().tolist() == [129.0, 130.5, -1.0]
    assert contents.times.tolist() == [pytest.approx([0, 16 / 60, 32 / 60])]
    assert contents.values.dtype == contents.times.dtype == torch.float64
    assert contents.values.shape == (1, 3, 1)


def test_csv_and_r_data_file_are_read_alike():
    csv = read_infant(b"BabyECG\n129.0\n130.5\n")
    assert torch.equal(csv.values, read_infant(bz2.compress(workspace([129.0, 130.5]))).values)
    assert torch.equal(csv.times, torch.tensor([[0.0, 16 / 60]], dtype=torch.float64))


@pytest.mark.parametrize(
    "data",
    [
        workspace([1.0], kind=13),  # integers
        workspace([1.0], pair=0x2),  # no name
        workspace([1.0], symbol=255),
        workspace([1.0], end=0x402),  # a second object
        workspace([1.0])[:-12],
        b"RDX3" + workspace([1.0])[4:],
    ],
)
def test_another_r_data_file_is_refused(data):
    with pytest.raises(ValueError, match=r"one vector of doubles.*version 2.*Save it by"):
        read_infant(bz2.compress(data))


def test_signal_file_gives_millivolts_of_both_leads():
    pairs = [(995, 1011), (1024, -2048), (-1, 2047), (0, 1224)]
    contents = read_mitdb(pack_212(pairs))
    assert contents.values.shape == (1, 4, 2)
    torch.testing.assert_close(contents.values[0], (torch.tensor(pairs, dtype=torch.float64) - 1024) / 200)
    torch.testing.assert_close(contents.times, torch.arange(4, dtype=torch.float64).unsqueeze(0) / 360)


def test_signal_file_and_arrays_are_read_alike():
    pairs = [(995, 1011), (-7, 300)]
    buffer = io.BytesIO()
    np.savez(buffer, adc=np.array(pairs, np.int16), fs=np.array([360]))
    assert torch.equal(read_mitdb(buffer.getvalue()).values, read_mitdb(pack_212(pairs)).values)


def test_a_cut_signal_file_is_refused():
    with pytest.raises(ValueError, match=r"3 bytes per pair of samples, received 5 bytes. Is it whole"):
        read_mitdb(bytes(5))
