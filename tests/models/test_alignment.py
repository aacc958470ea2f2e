"""Series and query times on one grid: nothing is interpolated, nothing is lost, order does not matter."""

from __future__ import annotations

import pytest
import torch

from pyro_sde.data import TimeSeries
from pyro_sde.models.alignment import (
    align,
    as_series,
    check_not_before,
    grid_through,
    last_times,
    query_times,
    states_at,
)

F64 = torch.float64
NAN = float("nan")
LIKE = torch.zeros(1, dtype=F64)


def make_series():
    times = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.5, 0.7, 0.9, 0.9]], dtype=F64)
    values = torch.tensor([[10.0, NAN, 12.0, NAN], [20.0, 21.0, 22.0, NAN]], dtype=F64).unsqueeze(-1)
    return TimeSeries("made", times, values, ~values.isnan())


def observations(aligned):
    """Observed (time, value) pairs of every series."""
    mask = aligned.mask & aligned.grid.mask.unsqueeze(-1)  # as encoder and likelihood combine them
    rows = zip(aligned.grid.observed_times, aligned.values, mask, strict=True)
    return [[(t.item(), v.item()) for t, v, m in zip(*row, strict=True) if m.item()] for row in rows]


@pytest.mark.parametrize("max_step", [None, 0.3])
def test_repeated_and_unsorted_times_share_grid_points_that_hold_them_exactly(max_step):
    times = torch.tensor([2.0, 0.5, 2.0, 1.0, 0.5], dtype=F64)
    grid, _, position = grid_through(times, max_step)
    assert torch.equal(grid.times[position], times)
    assert len(set(position.tolist())) == 3


def test_a_batch_of_unsorted_times_is_sorted_row_by_row():
    times = torch.rand(5, 7, dtype=F64)
    grid, order, position = grid_through(times, 0.1)
    assert torch.equal(grid.times.gather(-1, position), times)
    assert torch.equal(grid.observed_times, times.gather(-1, order))


def test_a_grid_may_start_before_its_times_but_not_after():
    times = torch.tensor([1.0, 0.5], dtype=F64)
    assert grid_through(times, None, start=0.0).grid.times.tolist() == [0.0, 0.5, 1.0]
    with pytest.raises(ValueError, match="every observation must lie inside"):
        grid_through(times, None, start=0.7)


def test_all_observations_stay_at_their_times():
    expected = [[(0.0, 10.0), (2.0, 12.0)], [(0.5, 20.0), (0.7, 21.0), (0.9, 22.0)]]
    assert observations(align(make_series(), 0.25)) == expected
    queries = torch.tensor([0.7, 1.0, 0.9, 0.6], dtype=F64).expand(2, -1)  # some hit observations
    assert observations(align(make_series(), 0.25, queries)) == expected


def test_the_grid_ends_at_the_last_observation_and_answers_later_queries_there():
    queries = torch.tensor([[0.2, 5.0, 2.0], [0.6, 0.9, 7.0]], dtype=F64)
    aligned = align(make_series(), 0.25, queries)
    at = aligned.grid.times.gather(-1, aligned.query_position)
    assert at.tolist() == [[0.2, 2.0, 2.0], [0.6, 0.9, 0.9]]
    assert aligned.last_time.tolist() == [[2.0], [0.9]]
    assert aligned.grid.times[:, -1].tolist() == [2.0, 0.9]


def test_an_observation_survives_an_unobserved_entry_of_the_same_time():
    values = torch.tensor([[[1.0], [NAN], [3.0]]], dtype=F64)
    series = TimeSeries("tie", torch.tensor([[0.0, 1.0, 1.0]], dtype=F64), values, ~values.isnan())
    assert observations(align(series, None)) == [[(0.0, 1.0), (1.0, 3.0)]]
    grid = align(series, None, torch.tensor([[1.0]], dtype=F64)).grid
    assert grid.num_steps == 1


def test_missing_values_become_zero():
    aligned = align(make_series(), None, torch.tensor([[0.1], [0.6]], dtype=F64))
    assert aligned.values[~aligned.mask].eq(0).all()


def test_a_series_has_the_grid_it_has_alone():
    series = make_series()
    whole, alone = align(series, 0.05), align(series.select([1]), 0.05)
    steps = alone.grid.num_steps
    assert torch.equal(whole.grid.times[1, : steps + 1], alone.grid.times[0])
    assert whole.grid.steps[1, steps:].eq(0).all()


def test_some_of_the_series_are_selected_with_all_that_belongs_to_them():
    queries = torch.tensor([[0.2], [0.6]], dtype=F64)
    part = align(make_series(), 0.25, queries).select(torch.tensor([1]))
    assert observations(part) == [[(0.5, 20.0), (0.7, 21.0), (0.9, 22.0)]]
    assert part.grid.times.gather(-1, part.query_position).item() == 0.6
    assert part.last_time.item() == 0.9


def test_states_are_read_at_their_grid_points_for_any_number_of_samples():
    path = torch.randn(4, 2, 6, 3, dtype=F64)
    position = torch.tensor([[5, 0], [2, 2]])
    states = states_at(path, position)
    assert states.shape == (4, 2, 2, 3)
    assert torch.equal(states[:, 1, 0], path[:, 1, 2])
    assert torch.equal(states_at(path[0, 0], position[0]), path[0, 0, [5, 0]])


def test_last_times_are_those_of_observations():
    assert last_times(make_series()).tolist() == [[2.0], [0.9]]


# --- what a user may pass


def test_tensors_make_the_same_record_with_nan_or_a_mask():
    series = make_series()
    nan = as_series((series.times, series.values), LIKE)
    whole = as_series((series.times, series.filled(), series.mask), LIKE)
    rows = as_series((series.times, series.filled(), series.mask[..., 0]), LIKE)
    for record in (nan, whole, rows):
        assert torch.equal(record.mask, series.mask)
        assert torch.equal(record.filled(), series.filled())


def test_one_row_of_times_serves_all_series():
    record = as_series((torch.arange(3), torch.randn(5, 3, 1)), LIKE)
    assert record.times.shape == (5, 3)


def test_a_record_comes_in_the_dtype_of_the_model():
    assert as_series(make_series(), torch.zeros(1)).values.dtype == torch.float32


@pytest.mark.parametrize("data", [torch.zeros(3), "co2", (torch.zeros(3),), (1.0, 2.0)])
def test_other_data_are_refused(data):
    with pytest.raises(TypeError, match=r"`data` must be a TimeSeries, or tensors \(times, values\)"):
        as_series(data, LIKE)


def test_query_times_are_one_row_for_all_or_one_per_series():
    assert query_times(torch.arange(3), LIKE, 4).shape == (4, 3)
    assert query_times(torch.rand(4, 3), LIKE, 4).dtype == F64
    assert query_times(torch.arange(3), LIKE).shape == (3,)


@pytest.mark.parametrize("shape", [(), (0,), (3, 2), (4, 2, 1)])
def test_query_times_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"`times` must have shape \(Q,\) or \(4, Q\)"):
        query_times(torch.zeros(shape), LIKE, 4)


def test_query_times_must_be_finite():
    with pytest.raises(ValueError, match="`times` must be finite"):
        query_times(torch.tensor([0.0, NAN]), LIKE)


def test_an_early_query_is_refused_with_its_series():
    queries = torch.tensor([[1.0, 2.0], [3.0, 0.5]])
    with pytest.raises(ValueError, match=r"before the start of their series: 0.5 is before 1 in series 1"):
        check_not_before(queries, torch.ones(2, 1), "the start")
