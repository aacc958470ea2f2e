"""InitialNormal: one law for all series, learned, with a floor."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from pyro_sde.models import InitialNormal


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_starts_centred_at_the_given_scale(dtype):
    initial = InitialNormal(3, scale=0.7).to(dtype)
    base = initial().base_dist
    assert initial().event_shape == (3,)
    assert base.loc.tolist() == [0.0, 0.0, 0.0]
    assert_close(base.scale, torch.full((3,), 0.7, dtype=dtype))


def test_mean_and_scale_are_learned():
    initial = InitialNormal(2)
    (-initial().log_prob(torch.randn(10, 2) + 3)).sum().backward()
    assert all(p.grad is not None and (p.grad != 0).all() for p in initial.parameters())


def test_the_scale_has_a_floor():
    initial = InitialNormal(1)
    with torch.no_grad():
        initial.raw_scale.fill_(-100.0)
    assert initial.scale.item() == pytest.approx(1e-3)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="`state_dim` must be an integer >= 1, received 0"):
        InitialNormal(0)
    with pytest.raises(ValueError, match="`scale` must be finite and > 0.001, received 0"):
        InitialNormal(1, scale=0.0)
