"""Contract of every encoder, and the reading of masks, gaps and shapes that encoders share."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pyro_sde.nn import Encoder, Encoding, GRUEncoder, check_observations
from pyro_sde.nn.base import check_positive, inverse_softplus, make_activation
from pyro_sde.ops.grid import TimeGrid

F64 = torch.float64
TIMES = torch.tensor([0.0, 0.3, 0.4, 1.1, 1.5, 2.6], dtype=F64)


def parts(encoding: Encoding) -> tuple[torch.Tensor, ...]:
    base = encoding.initial.base_dist
    return base.loc, base.scale, encoding.context, encoding.summary


def assert_same(actual: Encoding, expected: Encoding, tolerance: float = 1e-12) -> None:
    for one, other in zip(parts(actual), parts(expected), strict=True):
        assert_close(one, other, rtol=0, atol=tolerance)


def differs(one: Encoding, other: Encoding) -> bool:
    return any((a - b).abs().max() > 1e-6 for a, b in zip(parts(one), parts(other), strict=True))


def row(encoding: Encoding, index: int) -> Encoding:
    """Series `index` of a batch."""
    initial = encoding.initial.expand(encoding.summary.shape[:-1])
    base = type(initial.base_dist)(initial.base_dist.loc[index], initial.base_dist.scale[index])
    return Encoding(base.to_event(1), encoding.context[index], encoding.summary[index])


@pytest.fixture
def encoder(make_encoder) -> Encoder:
    return make_encoder(2, 3, 6).double()


def test_an_encoding_has_the_documented_shapes(encoder):
    grid = TimeGrid(TIMES, max_step=0.1)
    initial, context, summary = encoder(grid, torch.randn(4, 6, 2, dtype=F64))
    assert initial.batch_shape == (4,)
    assert initial.event_shape == (3,)
    assert context.shape == (4, grid.num_steps, 6)
    assert summary.shape[:-1] == (4,)
    assert (encoder.value_dim, encoder.state_dim, encoder.context_dim) == (2, 3, 6)


def test_a_context_row_depends_exactly_on_the_observations_at_or_after_the_end_of_its_step(encoder):
    grid = TimeGrid(TIMES, max_step=0.25, start=-0.4, end=3.0)
    values = torch.randn(6, 2, dtype=F64)
    jacobian = torch.autograd.functional.jacobian(lambda v: encoder(grid, v).context, values)  # (K, C, N, O)
    influence = jacobian.abs().amax((1, 3))  # (K, N)
    for k in range(grid.num_steps):
        ahead = grid.observed_index >= k + 1
        assert (influence[k, ~ahead] == 0).all()
        assert (influence[k, ahead] > 0).all()


def test_summary_and_initial_law_depend_on_every_observation(encoder):
    grid = TimeGrid(TIMES)
    values = torch.randn(6, 2, dtype=F64)
    for part in (0, 1, 3):
        jacobian = torch.autograd.functional.jacobian(lambda v, i=part: parts(encoder(grid, v))[i], values)
        assert (jacobian.abs().amax(0) > 0).all()


def test_a_ragged_batch_encodes_each_series_as_if_it_were_alone(encoder):
    lengths = (6, 1, 4)
    series = [torch.rand(n, dtype=F64).add(0.1).cumsum(0) for n in lengths]
    values = [torch.randn(n, 2, dtype=F64) for n in lengths]
    grid = TimeGrid(torch.stack([torch.cat([t, t[-1:].expand(6 - len(t))]) for t in series]), max_step=0.2)
    padded = torch.full((3, 6, 2), math.nan, dtype=F64)
    for i, value in enumerate(values):
        padded[i, : len(value)] = value
    batch = encoder(grid, padded)
    for i in range(3):
        alone = encoder(TimeGrid(series[i], max_step=0.2), values[i])
        steps = alone.context.shape[-2]
        here = row(batch, i)
        assert_same(here._replace(context=here.context[:steps]), alone, 1e-6)
        assert here.context.isfinite().all()


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
def test_masked_entries_influence_nothing_and_leave_gradients_finite(encoder, garbage):
    valid = torch.tensor([True, True, False, True, True, False])
    observed = valid.unsqueeze(-1) & torch.tensor([[1, 1], [0, 1], [1, 1], [1, 0], [1, 1], [1, 1]]).bool()
    grid = TimeGrid(torch.where(valid, TIMES, math.nan), mask=valid, max_step=0.2)
    values = torch.randn(6, 2, dtype=F64)
    spoilt = torch.where(observed, values, garbage).requires_grad_()
    encoding = encoder(grid, spoilt, observed)
    assert_same(encoding, encoder(grid, values, observed))
    sum(part.sum() for part in parts(encoding)).backward()
    assert (spoilt.grad[~observed] == 0).all()
    assert (spoilt.grad[observed] != 0).all()
    for parameter in encoder.parameters():
        assert parameter.grad.isfinite().all()


def test_masking_a_time_equals_dropping_it_for_grid_mask_time_mask_and_channel_mask(encoder):
    times = torch.arange(5, dtype=F64)
    values = torch.randn(5, 2, dtype=F64)
    keep = torch.tensor([True, True, False, True, True])
    dropped = encoder(TimeGrid(times[keep], max_step=0.5), values[keep])
    whole = TimeGrid(times, max_step=0.5)
    assert_same(encoder(whole, values, keep), dropped)
    assert_same(encoder(whole, values, keep.unsqueeze(-1).expand(5, 2)), dropped)
    assert_same(encoder(TimeGrid(times, max_step=0.5, mask=keep), values), dropped)
    assert differs(encoder(whole, values), dropped)


def test_times_to_be_forecast_tell_the_context_nothing(encoder):
    known, future = torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0])
    values = torch.randn(4, 2, dtype=F64)
    observed = torch.tensor([True, True, False, False])
    forecast = encoder(TimeGrid(torch.cat([known, future]).double(), max_step=0.5), values, observed)
    past = encoder(TimeGrid(known.double(), max_step=0.5), values[:2])
    assert_same(forecast._replace(context=forecast.context[:2]), past)
    assert_close(forecast.context[2:], forecast.context[-1:].expand(4, -1))


def test_a_missing_channel_is_told_apart_from_an_observed_zero(encoder):
    grid = TimeGrid(TIMES)
    values = torch.randn(6, 2, dtype=F64)
    values[2, 1] = 0.0
    observed = torch.ones(6, 2, dtype=torch.bool)
    observed[2, 1] = False
    assert differs(encoder(grid, values, observed), encoder(grid, values))


@pytest.mark.parametrize("batch", [(), (1,), (2, 3)])
def test_any_batch_shape_gives_the_rows_of_single_series(encoder, batch):
    times = torch.rand(*batch, 4, dtype=F64).add(0.1).cumsum(-1)
    values = torch.randn(*batch, 4, 2, dtype=F64)
    grid = TimeGrid(times, max_step=0.3)
    encoding = encoder(grid, values)
    assert encoding.initial.batch_shape == batch
    for index in torch.ones(batch).nonzero().tolist():
        where = tuple(index)
        alone = encoder(TimeGrid(times[where], max_step=0.3), values[where])
        here = row(encoding, where)
        assert_same(here._replace(context=here.context[: alone.context.shape[-2]]), alone)


def test_one_grid_serves_many_series_and_one_series_many_grids(encoder):
    shared = TimeGrid(TIMES, max_step=0.3)
    values = torch.randn(3, 6, 2, dtype=F64)
    own = TimeGrid(TIMES.expand(3, 6), max_step=0.3)
    assert_same(encoder(shared, values), encoder(own, values))
    assert_same(encoder(own, values[0]), encoder(own, values[:1].expand(3, 6, 2)))


def test_a_grid_without_steps_has_no_context_rows(encoder):
    initial, context, _ = encoder(TimeGrid(torch.zeros(2, 1, dtype=F64)), torch.randn(2, 1, 2, dtype=F64))
    assert context.shape == (2, 0, 6)
    assert initial.log_prob(torch.zeros(2, 3, dtype=F64)).isfinite().all()


def test_gradients_reach_the_observation_times(encoder):
    times = TIMES.clone().requires_grad_()
    encoding = encoder(TimeGrid(times, max_step=0.2), torch.randn(6, 2, dtype=F64))
    sum(part.sin().sum() for part in parts(encoding)).backward()
    assert times.grad.isfinite().all()
    assert (times.grad != 0).all()


def test_float32_agrees_with_float64(encoder):
    values = torch.randn(6, 2, dtype=F64)
    expected = encoder(TimeGrid(TIMES, max_step=0.2), values)
    single = encoder.float()(TimeGrid(TIMES.float(), max_step=0.2), values.float())
    for one, other in zip(parts(single), parts(expected), strict=True):
        assert one.dtype == torch.float32
        assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


def test_a_float64_grid_serves_a_float32_encoder(encoder):
    encoding = encoder.float()(TimeGrid(TIMES), torch.randn(6, 2))
    assert {part.dtype for part in parts(encoding)} == {torch.float32}


def test_a_series_without_any_observation_is_encoded_finitely(encoder):
    encoding = encoder(TimeGrid(TIMES), torch.full((6, 2), math.nan, dtype=F64), torch.zeros(6, 2).bool())
    assert all(part.isfinite().all() for part in parts(encoding))


def test_an_encoder_can_be_traced(encoder):
    grid, values = TimeGrid(TIMES, max_step=0.5), torch.randn(6, 2, dtype=F64)
    encoder.requires_grad_(False)  # a trace takes tensors with gradients as arguments only
    traced = torch.jit.trace(lambda v: parts(encoder(grid, v)), (torch.zeros(6, 2, dtype=F64),))
    for one, other in zip(traced(values), parts(encoder(grid, values)), strict=True):
        assert_close(one, other)


def test_nan_without_a_mask_is_an_error_that_names_the_entry(encoder):
    values = torch.zeros(6, 2, dtype=F64)
    values[3, 1] = math.nan
    with pytest.raises(ValueError, match=r"`values` must be finite where observed; entry \[3, 1\] is nan"):
        encoder(TimeGrid(TIMES), values)
    with pytest.raises(ValueError, match=r"Pass `mask` \(True = observed\)"):
        encoder(TimeGrid(TIMES), values, torch.ones(6, dtype=torch.bool))


def test_bad_arguments_are_named(encoder):
    grid, values = TimeGrid(TIMES), torch.zeros(6, 2, dtype=F64)
    with pytest.raises(TypeError, match="`grid` must be a TimeGrid, received Tensor"):
        encoder(TIMES, values)
    with pytest.raises(ValueError, match=r"`values` must have shape \(\*batch, 6, 2\).*received \(6, 3\)"):
        encoder(grid, torch.zeros(6, 3, dtype=F64))
    with pytest.raises(ValueError, match=r"`values` must have shape.*received \(5, 2\)"):
        encoder(grid, values[1:])
    with pytest.raises(ValueError, match="`values` must have the dtype and device of the encoder"):
        encoder(grid, values.float())
    with pytest.raises(ValueError, match=r"the batch shapes of `values` \(3,\) and `grid` \(2,\)"):
        encoder(TimeGrid(TIMES.expand(2, 6)), values.expand(3, 6, 2))
    with pytest.raises(ValueError, match=r"`mask` must be a bool tensor.*received torch.float64 \(6, 2\)"):
        encoder(grid, values, torch.ones(6, 2, dtype=F64))
    with pytest.raises(ValueError, match=r"`mask` must be a bool tensor.*received torch.bool \(6, 1\)"):
        encoder(grid, values, torch.ones(6, 1, dtype=torch.bool))


def test_the_abstract_encoder_cannot_be_built():
    with pytest.raises(TypeError, match="abstract"):
        Encoder(1, 1, 1)


@pytest.mark.parametrize("name", ["value_dim", "state_dim", "context_dim"])
def test_sizes_must_be_positive_integers(name):
    sizes = {"value_dim": 1, "state_dim": 1, "context_dim": 4, name: 0}
    with pytest.raises(ValueError, match=f"`{name}` must be an integer >= 1, received 0"):
        GRUEncoder(**sizes)


def test_whole_numbers_of_numpy_are_taken():
    assert type(check_positive("width", np.int64(3))) is int


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3"])
def test_check_positive_refuses_all_but_positive_integers(value):
    with pytest.raises(ValueError, match="`width` must be an integer >= 1"):
        check_positive("width", value)


def test_check_observations_combines_grid_mask_and_channel_mask():
    valid = torch.tensor([True, True, False])
    grid = TimeGrid(torch.tensor([0.0, 1.0, 9.0]), mask=valid)
    mask = torch.tensor([[True, False], [False, False], [True, True]])
    values = torch.arange(1.0, 7.0).reshape(3, 2)
    cleaned, observed, informative = check_observations(grid, values, mask, values, 2)
    assert cleaned.tolist() == [[1, 0], [0, 0], [0, 0]]
    assert observed.tolist() == [[True, False], [False, False], [False, False]]
    assert informative.tolist() == [True, False, False]


@pytest.mark.parametrize("value", [1e-6, 0.5, 3.0, 500.0])
def test_inverse_softplus_inverts_softplus(value):
    raw = torch.tensor(inverse_softplus(value), dtype=F64)
    assert_close(torch.nn.functional.softplus(raw).item(), value, rtol=1e-9, atol=0)


def test_activations_of_different_names_are_different_functions():
    names = ["elu", "gelu", "relu", "silu", "softplus", "tanh"]
    x = torch.linspace(-2, 2, 9)
    outputs = [make_activation(name)(x) for name in names]
    for i, one in enumerate(outputs):
        assert_close(one, getattr(torch.nn.functional, names[i], torch.tanh)(x))
        assert all((one - other).abs().max() > 0.01 for other in outputs[:i])


def test_an_unknown_activation_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="`activation` must be one of elu, gelu, .*; received 'swish'"):
        make_activation("swish")
