"""GRUEncoder: equal to a plain loop over observations, and what each option changes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from pyro_sde.nn import GRUEncoder
from pyro_sde.ops.grid import TimeGrid

F64 = torch.float64
TIMES = torch.tensor([0.0, 0.3, 0.4, 1.1, 1.5], dtype=F64)


def loop_oracle(encoder, grid, values, observed):
    """Definition of the encoder for one series, in plain loops, one observation and one step at a time."""
    scale = encoder.time_scale
    shape = (encoder.gru.num_layers, 1, encoder.gru.hidden_size)
    state, states, last = torch.zeros(shape, dtype=F64), {}, None
    for j in reversed(range(len(values))):
        if not (grid.mask[j] and observed[j].any()):
            continue
        gap = torch.zeros((), dtype=F64) if last is None else grid.observed_times[last] - grid.observed_times[j]
        seen = observed[j]
        x = torch.cat([torch.where(seen, values[j], 0.0), seen.double(), torch.log1p(gap / scale)[None]])
        out, state = encoder.gru(x[None, None], state)
        states[j], last = out[0, 0], j
    rows = []
    for k in range(grid.num_steps):
        ahead = [j for j in states if grid.observed_index[j] >= k + 1]
        if ahead:
            wait = ((grid.observed_times[min(ahead)] - grid.times[k]) / scale).clamp(max=10)
            tail = torch.stack([wait, torch.ones_like(wait)])
        else:
            tail = torch.zeros(2, dtype=F64)
        head = encoder.context_head(states[min(ahead)] if ahead else torch.zeros(shape[-1], dtype=F64))
        rows.append(torch.cat([head, tail]))
    summary = states[min(states)]
    wait = ((grid.observed_times[min(states)] - grid.times[0]) / scale).clamp(max=10)
    loc, raw = encoder.initial_head(torch.cat([summary, wait[None]])).chunk(2)
    return loc, 1e-4 + torch.nn.functional.softplus(raw), torch.stack(rows), summary


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("time_scale", [1.0, 0.05])
def test_the_encoder_equals_its_definition_in_plain_loops(layers, time_scale):
    encoder = GRUEncoder(2, 3, 5, hidden=4, layers=layers, time_scale=time_scale).double()
    valid = torch.tensor([True, True, False, True, True])
    observed = torch.tensor([[1, 1], [0, 1], [1, 1], [1, 0], [0, 0]]).bool()
    grid = TimeGrid(TIMES, mask=valid, max_step=0.2, start=-0.1, end=2.0)
    values = torch.randn(5, 2, dtype=F64)
    initial, context, summary = encoder(grid, values, observed)
    expected = loop_oracle(encoder, grid, values, observed)
    actual = (initial.base_dist.loc, initial.base_dist.scale, context, summary)
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, rtol=0, atol=1e-12)


def test_the_last_two_context_channels_are_the_waiting_time_and_whether_there_is_anything_to_wait_for():
    grid = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.5, end=2.0)
    context = GRUEncoder(1, 2, 4, time_scale=2.0)(grid, torch.zeros(2, 1)).context
    assert context[:, 2].tolist() == [0.5, 0.25, 0.0, 0.0]
    assert context[:, 3].tolist() == [1.0, 1.0, 0.0, 0.0]


def test_waiting_times_beyond_ten_time_scales_look_alike():
    encoder = GRUEncoder(1, 2, 4)
    context = encoder(TimeGrid(torch.tensor([0.0, 50.0]), max_step=5.0), torch.zeros(2, 1)).context
    assert context[:, 2].tolist() == [10.0] * 9 + [5.0]


@pytest.mark.parametrize("initial_scale", [0.1, 1.0, 5.0])
def test_the_initial_law_starts_near_a_centred_normal_of_the_given_scale(initial_scale):
    encoder = GRUEncoder(2, 3, 5, initial_scale=initial_scale)
    base = encoder(TimeGrid(TIMES.float()), torch.randn(20, 5, 2)).initial.base_dist
    assert base.loc.abs().max() < 0.05
    assert_close(base.scale, torch.full_like(base.scale, initial_scale), rtol=0.05, atol=0)


def test_the_scale_of_the_initial_law_stays_positive():
    encoder = GRUEncoder(1, 2, 4)
    with torch.no_grad():
        encoder.initial_head.bias.fill_(-1e4)
    base = encoder(TimeGrid(TIMES.float()), torch.zeros(5, 1)).initial.base_dist
    assert_close(base.scale, torch.full((2,), 1e-4))


def test_an_earlier_start_changes_the_initial_law():
    encoder = GRUEncoder(1, 2, 4).double()
    values = torch.randn(5, 1, dtype=F64)
    near, far = (encoder(TimeGrid(TIMES, start=start), values) for start in (-0.1, -3.0))
    assert (near.initial.base_dist.loc - far.initial.base_dist.loc).abs().max() > 1e-4
    assert_close(near.summary, far.summary)


def test_only_time_differences_in_units_of_time_scale_matter():
    values = torch.randn(5, 1, dtype=F64)
    encoder = GRUEncoder(1, 2, 4).double()
    reference = encoder(TimeGrid(TIMES, max_step=0.2), values)
    shifted = encoder(TimeGrid(TIMES + 100, max_step=0.2), values)
    assert_close(shifted.context, reference.context)
    slow = TimeGrid(TIMES * 60, max_step=12.0)
    assert (encoder(slow, values).context - reference.context).abs().max() > 0.1
    encoder.time_scale = 60.0
    assert_close(encoder(slow, values).context, reference.context)
    assert_close(encoder(slow, values).summary, reference.summary)


def test_hidden_and_layers_set_the_size_of_the_network():
    assert GRUEncoder(1, 2, 4, hidden=7)(TimeGrid(TIMES.float()), torch.zeros(5, 1)).summary.shape == (7,)
    assert GRUEncoder(1, 2, 4).gru.num_layers == 1
    assert GRUEncoder(1, 2, 4, layers=3).gru.num_layers == 3


def test_the_encoder_learns_to_announce_the_next_observation():
    """End to end: after 150 steps the context of every step carries the value that comes next."""
    encoder = GRUEncoder(1, 1, 3, hidden=16)
    optimiser = torch.optim.Adam(encoder.parameters(), 0.02)
    grid = TimeGrid(torch.arange(6.0), max_step=0.5)
    values = torch.randn(64, 6, 1)
    target = values[:, 1:].repeat_interleave(2, -2)  # two solver steps before each observation
    for _ in range(150):
        optimiser.zero_grad()
        loss = (encoder(grid, values).context[..., :1] - target).square().mean()
        loss.backward()
        optimiser.step()
    assert loss < 0.05  # the variance of the target is 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_dim": 2}, "`context_dim` must be >= 3"),
        ({"hidden": 0}, "`hidden` must be an integer >= 1"),
        ({"layers": 0}, "`layers` must be an integer >= 1"),
        ({"time_scale": 0.0}, "`time_scale` must be a positive finite number"),
        ({"time_scale": math.inf}, "`time_scale` must be a positive finite number"),
        ({"initial_scale": 1e-5}, "`initial_scale` must be finite and > 0.0001"),
        ({"initial_scale": math.nan}, "`initial_scale` must be finite"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GRUEncoder(**{"value_dim": 1, "state_dim": 2, "context_dim": 4, **options})
