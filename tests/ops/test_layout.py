"""Axes stand where they should."""

import torch

from pyro_sde.ops import time_first


def test_time_goes_left_and_the_batch_is_padded_with_ones():
    tensor = torch.arange(30.0).reshape(3, 5, 2)  # (batch, T, C)
    moved = time_first(tensor, rank=3)
    assert moved.shape == (5, 1, 1, 3, 2)
    torch.testing.assert_close(moved[:, 0, 0], tensor.transpose(0, 1))


def test_a_tensor_without_batch_gets_the_rank_asked_for():
    assert time_first(torch.zeros(5, 2), rank=0).shape == (5, 2)
    assert time_first(torch.zeros(5, 2), rank=2).shape == (5, 1, 1, 2)
