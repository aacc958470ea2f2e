"""What is masked is as good as dropped, for an encoder and any pattern of gaps."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from pyro_sde.nn.encoders import GRUEncoder
from pyro_sde.ops.grid import TimeGrid

PROPERTY = settings(derandomize=True, max_examples=30, deadline=None, database=None)
TIMES = torch.tensor([0.0, 0.3, 0.4, 1.7, 2.5], dtype=torch.float64)
patterns = st.lists(st.booleans(), min_size=10, max_size=10).map(lambda bits: torch.tensor(bits).reshape(5, 2))


def encoder(dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GRUEncoder(2, 3, 4, hidden=5).to(dtype)


def values(seed=0):
    return torch.randn(5, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@PROPERTY
@given(patterns, st.sampled_from([0.0, 1e9, math.nan, math.inf]))
def test_an_encoder_never_sees_what_is_masked(mask, junk):
    grid, network, clean = TimeGrid(TIMES, max_step=0.8), encoder(), values()
    dirty = torch.where(mask, clean, torch.full_like(clean, junk))
    ours, theirs = network(grid, dirty, mask), network(grid, torch.where(mask, clean, 0.0), mask)
    assert torch.equal(ours.context, theirs.context)
    assert torch.equal(ours.summary, theirs.summary)
    assert torch.equal(ours.initial.mean, theirs.initial.mean)
    assert ours.context.isfinite().all()


@PROPERTY
@given(patterns)
def test_a_time_at_which_nothing_is_observed_may_be_dropped(mask):
    network, clean = encoder(), values()
    kept = mask.any(-1)
    kept[0] = kept[-1] = True  # the grid keeps its ends
    dropped = TimeGrid(TIMES[kept])
    full = network(TimeGrid(TIMES), clean, mask)
    rest = network(dropped, clean[kept], mask[kept])
    begins = kept[:-1].nonzero().flatten()  # steps that begin at a kept time; the next kept time may come later
    same = begins[kept[begins + 1]]
    places = (torch.isin(begins, same)).nonzero().flatten()
    assert_close(full.context[same], rest.context[places], rtol=1e-12, atol=1e-12)
    assert_close(full.summary, rest.summary, rtol=1e-12, atol=1e-12)
    assert_close(full.initial.mean, rest.initial.mean, rtol=1e-12, atol=1e-12)


@PROPERTY
@given(patterns, st.integers(1, 3))
def test_padding_and_other_series_have_no_part_in_an_encoding(mask, extra):
    network, clean = encoder(), values()
    short = 5 - extra
    times = torch.stack([TIMES, torch.where(torch.arange(5) < short, TIMES, TIMES[short - 1])])
    junk = torch.where((torch.arange(5) < short).unsqueeze(-1), clean, math.nan)
    both = network(TimeGrid(times), torch.stack([clean, junk]), torch.stack([mask, mask]))
    alone = network(TimeGrid(TIMES[:short]), clean[:short], mask[:short])
    assert_close(both.summary[1], alone.summary, rtol=1e-12, atol=1e-12)
    assert_close(both.context[1, : short - 1], alone.context, rtol=1e-12, atol=1e-12)


def test_float32_encoders_never_see_what_is_masked():
    mask = torch.tensor([[1, 0], [0, 0], [1, 1], [0, 1], [1, 0]]).bool()
    clean = values().float()
    dirty = torch.where(mask, clean, torch.full_like(clean, math.nan))
    ours = encoder(torch.float32)(TimeGrid(TIMES.float()), dirty, mask)
    assert ours.context.dtype == torch.float32
    assert torch.equal(ours.context, encoder(torch.float32)(TimeGrid(TIMES.float()), clean, mask).context)
