"""Ancestors of weights that nobody chose."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from pyro_sde.ops.resampling import effective_sample_size, resample

F64 = torch.float64
PROPERTY = settings(derandomize=True, max_examples=30, deadline=None, database=None)


@PROPERTY
@given(
    st.lists(st.floats(-50.0, 50.0) | st.just(-math.inf), min_size=1, max_size=8),
    st.sampled_from(["multinomial", "stratified", "systematic"]),
    st.integers(1, 20),
    st.floats(-100.0, 100.0),
)
def test_ancestors_have_weight_and_do_not_hang_on_its_unit(weights, method, num, unit):
    weights = torch.tensor([0.0, *weights], dtype=F64)  # one has weight at least
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours = resample(weights, method, num)
        torch.manual_seed(0)
        theirs = resample(weights + unit, method, num)
    assert ours.shape == (num,)
    assert torch.equal(ours, ours.sort().values)
    assert (weights[ours] > -math.inf).all()
    assert (ours - theirs).abs().max() <= 1  # a point on the border of two weights may fall to either side
    size = effective_sample_size(weights)
    assert 1 - 1e-12 <= size <= (weights > -math.inf).sum() + 1e-9
    assert_close(effective_sample_size(weights + unit), size)
