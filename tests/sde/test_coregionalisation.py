"""Outputs mixed from independent processes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pyro_sde.sde import Coregionalisation, Matern12, Matern32, OrnsteinUhlenbeck

F64 = torch.float64


def test_outputs_are_mixtures_of_all_outputs_of_all_processes():
    wide = OrnsteinUhlenbeck(torch.ones(2, dtype=F64), 1.0)
    mixing = torch.randn(4, 3, dtype=F64)
    sde = Coregionalisation([wide, Matern32()], mixing)
    assert (sde.state_dim, sde.observation.shape) == (4, (4, 4))
    assert_close(sde.observation[:, :3], mixing)
    assert not sde.observation[:, 3].any()  # the derivative of the second process is not seen
    mixed = sde.observation @ sde.stationary()[1] @ sde.observation.mT
    assert_close(mixed, mixing @ torch.diag(torch.tensor([0.5, 0.5, 1.0], dtype=F64)) @ mixing.mT)


def test_the_mixing_matrix_can_be_learned():
    sde = Coregionalisation([Matern12(), Matern32()], nn.Parameter(torch.eye(2)))
    assert [name for name, _ in sde.named_parameters()] == ["mixing"]
    (sde.observation @ sde.stationary()[1] @ sde.observation.mT).trace().backward()
    assert_close(sde.mixing.grad, 2 * torch.eye(2))


def test_a_mixing_matrix_with_other_columns_raises():
    with pytest.raises(ValueError, match=r"`mixing` must have shape \(\*batch, O, 2\)"):
        Coregionalisation([Matern12(), Matern32()], torch.eye(3)).system()
