"""The solver grid: every sentence that its documentation says, against brute force in exact arithmetic."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from fractions import Fraction

import pytest
import torch
from torch.testing import assert_close

from pyro_sde.ops.grid import TimeGrid

F32, F64 = torch.float32, torch.float64
NAN = float("nan")

both_dtypes = pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])


def rows(grid):
    """Batch indices of all series, ``()`` for a shared grid."""
    return list(itertools.product(*(range(n) for n in grid.batch_shape)))


def alone(arguments, row, valid):
    """Arguments of one series of a batch with its valid times only."""
    mine = {k: v[row] if isinstance(v, torch.Tensor) and v.dim() and row else v for k, v in arguments.items()}
    mine.pop("mask", None)
    mine["times"] = mine["times"][valid]
    return mine


def same(grid, other):
    names = ("times", "steps", "mask", "observed_times", "observed_index")
    return all(torch.equal(getattr(grid, n), getattr(other, n)) for n in names)


def paths(grid, *left, dim=2):
    """A path whose entries are all different: the number of the grid point plus a thousandth of the position."""
    shape = (*left, *grid.batch_shape, grid.num_steps + 1, dim)
    return torch.arange(math.prod(shape), dtype=F64).reshape(shape)


# --- the contract, on every row of the table ------------------------------------------------------


@both_dtypes
def test_the_grid_contains_every_observation_time_exactly(grid_arguments, dtype):
    arguments = grid_arguments(dtype)
    grid = TimeGrid(**arguments)
    times = torch.as_tensor(arguments["times"], dtype=dtype)
    assert grid.times.dtype == grid.steps.dtype == dtype
    assert torch.equal(grid.times.gather(-1, grid.observed_index)[grid.mask], times[grid.mask])  # bitwise
    assert torch.equal(grid.times.gather(-1, grid.observed_index), grid.observed_times)


@both_dtypes
def test_times_and_steps_agree_and_padding_is_at_the_end(grid_arguments, dtype):
    grid = TimeGrid(**grid_arguments(dtype))
    moving = grid.steps > 0
    assert grid.times.shape == (*grid.batch_shape, grid.num_steps + 1)
    assert grid.steps.shape == (*grid.batch_shape, grid.num_steps)
    assert torch.equal(grid.times.diff() > 0, moving)
    assert (grid.steps >= 0).all()
    assert torch.equal(moving, moving.long().cumprod(-1).bool())
    assert moving.any(-1).any() or grid.num_steps == 0
    round_off = 4 * torch.finfo(dtype).eps * float(grid.times.abs().max())
    assert_close(grid.times.diff(), grid.steps, rtol=0, atol=round_off)
    assert moving.sum(-1).max() == grid.num_steps if grid.num_steps else True  # no column is padding for all


@both_dtypes
def test_each_gap_has_the_number_of_equal_steps_of_exact_arithmetic(grid_arguments, dtype):
    arguments = grid_arguments(dtype)
    grid, max_step = TimeGrid(**arguments), arguments.get("max_step")
    for row in rows(grid):
        one = alone(arguments, row, grid.mask[row])
        knots = [one.get("start"), *one["times"].tolist(), one.get("end")]
        knots = [Fraction(float(torch.as_tensor(k, dtype=dtype))) for k in knots if k is not None]
        expected = []
        for left, right in itertools.pairwise(knots):
            per_gap = (right - left) / Fraction(max_step) * (1 - Fraction(1, 1000)) if max_step else 1
            count = math.ceil(per_gap)
            expected += [float((right - left) / count)] * count if right > left else []
        steps = grid.steps[row]
        assert int((steps > 0).sum()) == len(expected)
        expected = torch.tensor(expected, dtype=dtype)
        assert_close(steps[: len(expected)], expected, rtol=1e-3 if dtype == F32 else 1e-9, atol=0)
        if max_step is not None:
            assert (steps <= max_step * (1 + 1.01e-3)).all()


@both_dtypes
def test_a_row_of_a_ragged_batch_has_the_grid_it_gets_alone(grid_arguments, dtype):
    arguments = grid_arguments(dtype)
    batch = TimeGrid(**arguments)
    for row in rows(batch):
        single = TimeGrid(**alone(arguments, row, batch.mask[row]))
        k = single.num_steps
        assert torch.equal(batch.times[row][: k + 1], single.times)  # bitwise
        assert torch.equal(batch.steps[row][:k], single.steps)
        assert (batch.times[row][k:] == single.times[-1]).all()
        assert (batch.steps[row][k:] == 0).all()
        assert torch.equal(batch.observed_index[row][batch.mask[row]], single.observed_index)


def test_observed_picks_the_states_at_the_observation_times(grid_arguments):
    grid = TimeGrid(**grid_arguments(F64))
    for left in [(), (3,), (2, 1)]:
        path = paths(grid, *left)
        observed = grid.observed(path)
        assert observed.shape == (*left, *grid.batch_shape, grid.mask.shape[-1], 2)
        for row in rows(grid):
            for i in range(grid.mask.shape[-1]):
                here = grid.times[row] == grid.observed_times[(*row, i)]
                k = int(here.nonzero()[0])
                assert torch.equal(observed[(..., *row, i, slice(None))], path[(..., *row, k, slice(None))])


def test_observed_holds_the_last_valid_state_where_padded(grid_arguments):
    grid = TimeGrid(**grid_arguments(F64))
    observed = grid.observed(paths(grid))
    for row in rows(grid):
        mask = grid.mask[row].tolist()
        for i, valid in enumerate(mask):
            before = [j for j in range(i + 1) if mask[j]]
            source = before[-1] if before else mask.index(True)  # leading entries take the first valid one
            assert torch.equal(observed[(*row, i)], observed[(*row, source)])
            assert valid or torch.equal(grid.observed_times[(*row, i)], grid.observed_times[(*row, source)])


@both_dtypes
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_refining_cuts_every_step_and_keeps_every_point(grid_arguments, dtype, n):
    grid = TimeGrid(**grid_arguments(dtype))
    fine = grid.refine(n)
    assert fine.num_steps == n * grid.num_steps
    assert torch.equal(fine.times[..., ::n], grid.times)  # bitwise: nested grids share Brownian paths
    assert torch.equal(fine.observed_index, n * grid.observed_index)
    assert torch.equal(fine.mask, grid.mask)
    assert_close(fine.steps, (grid.steps / n).repeat_interleave(n, -1))
    assert same(grid.refine(n).refine(2), grid.refine(2 * n))


def test_times_and_steps_have_the_gradients_of_finite_differences(grid_arguments):
    arguments = grid_arguments(F64)
    tensors = {k: torch.as_tensor(arguments[k], dtype=F64) for k in ("times", "start", "end") if k in arguments}
    arguments["mask"] = TimeGrid(**arguments).mask  # a repeat is padding only while it is exact: mask it to perturb it
    if "end" in arguments:  # a start at the first time may not be moved beyond it
        tensors["start"], tensors["end"] = tensors["start"] - 0.01, tensors["end"] + 0.01

    def coordinates(*values):
        grid = TimeGrid(**{**arguments, **dict(zip(tensors, values, strict=True))})
        return grid.times, grid.steps, grid.observed_times

    values = tuple(value.clone().requires_grad_() for value in tensors.values())
    assert torch.autograd.gradcheck(coordinates, values, eps=1e-7, atol=1e-7)


def test_gradients_are_finite_and_zero_where_masked(grid_arguments):
    arguments = grid_arguments(F64)
    times = arguments["times"].clone().requires_grad_()
    grid = TimeGrid(**{**arguments, "times": times})
    (grid.times.square().sum() + (grid.steps + 1).log().sum() + grid.observed_times.sum()).backward()
    assert torch.isfinite(times.grad).all()
    assert (times.grad[~grid.mask] == 0).all()
    assert (times.grad[grid.mask] != 0).all()


def test_the_gradient_of_a_row_is_the_one_it_has_alone(grid_arguments):
    arguments = grid_arguments(F64)
    times = arguments["times"].clone().requires_grad_()
    batch = TimeGrid(**{**arguments, "times": times})
    (gradient,) = torch.autograd.grad((batch.steps**2).sum() + batch.times[..., 0].sum(), times)
    for row in rows(batch):
        one = alone({**arguments, "times": times}, row, batch.mask[row])
        single = TimeGrid(**one)
        loss = (single.steps**2).sum() + single.times[..., 0].sum()
        (expected,) = torch.autograd.grad(loss, times)
        assert_close(gradient[row], expected[row])


def test_a_grid_survives_pickling_and_copying(grid_arguments):
    grid = TimeGrid(**grid_arguments(F64))
    for other in (pickle.loads(pickle.dumps(grid)), copy.deepcopy(grid), copy.copy(grid)):
        assert same(grid, other)
        assert same(grid.refine(2), other.refine(2))


def test_expanding_repeats_the_grid(grid_arguments):
    grid = TimeGrid(**grid_arguments(F64))
    wide = grid.expand((4, *grid.batch_shape))
    assert wide.batch_shape == (4, *grid.batch_shape)
    assert wide.num_steps == grid.num_steps
    assert all(same(wide[i], grid) for i in range(4))
    assert torch.equal(wide.observed(paths(wide)), torch.stack([grid.observed(p) for p in paths(wide)]))
    assert same(wide.refine(2), grid.refine(2).expand(wide.batch_shape))


# --- numbers of steps -----------------------------------------------------------------------------


@both_dtypes
@pytest.mark.parametrize(
    "times",
    [
        lambda dtype: torch.arange(301, dtype=dtype) * 0.01,
        lambda dtype: torch.linspace(0, 3, 301, dtype=dtype),
        lambda dtype: torch.tensor([0.0, 3.0], dtype=dtype),
        lambda dtype: torch.linspace(0, 3, 31, dtype=dtype),
        lambda dtype: torch.full((301,), 0.01, dtype=dtype).cumsum(0),
    ],
    ids=["arange", "linspace", "ends", "thirty-gaps", "accumulated"],
)
def test_three_hundred_steps_fit_between_zero_and_three(times, dtype):
    grid = TimeGrid(times(dtype), max_step=0.01)
    assert grid.num_steps == 300


@both_dtypes
def test_random_times_are_hit_exactly_with_steps_of_at_most_a_tenth_of_a_percent_more(dtype):
    for scale, max_step in [(1e-3, 1e-5), (1.0, 0.037), (1e3, 7.7)]:
        times = (torch.rand(40, 25, dtype=dtype) * scale).sort(-1).values
        grid = TimeGrid(times, max_step=max_step)
        assert torch.equal(grid.times.gather(-1, grid.observed_index), times)
        assert (grid.steps <= max_step * (1 + 1.01e-3)).all()
        longest = times.diff().double().div(max_step).mul(1 - 1e-3).ceil().clamp(min=1).sum(-1).max()
        assert grid.num_steps == int(longest)


def test_one_step_more_than_the_tolerance_allows():
    assert TimeGrid([0.0, 1.0009], max_step=0.1).num_steps == 10
    assert TimeGrid([0.0, 1.0012], max_step=0.1).num_steps == 11


# --- masks and padding ----------------------------------------------------------------------------


def test_a_trailing_repeat_is_padding_without_a_mask():
    grid = TimeGrid(torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 1.0], [3.0, 3.0, 3.0]]))
    assert grid.mask.tolist() == [[True] * 3, [True, True, False], [True, False, False]]
    assert grid.steps.tolist() == [[1, 1], [1, 0], [0, 0]]


@pytest.mark.parametrize("mask", [None, torch.ones(2, 3).bool()], ids=["no mask", "mask"])
@pytest.mark.parametrize("options", [{}, {"max_step": 0.5}, {"start": -1.0, "end": 7.0}], ids=str)
def test_a_grid_does_not_change_with_the_tensor_it_was_made_of(mask, options):
    times = torch.tensor([[0.0, 1.0, 3.0], [0.5, 2.0, 6.0]])
    grid, right = TimeGrid(times, mask=mask, **options), TimeGrid(times.clone(), mask=mask, **options)
    numbers = times.numpy()
    from_numpy = TimeGrid(numbers, mask=mask, **options)
    times.zero_()
    for found in (grid, from_numpy):
        for name in ("times", "steps", "observed_times"):
            assert torch.equal(getattr(found, name), getattr(right, name))


def test_the_times_of_a_grid_are_its_own_memory_where_one_row_is_expanded():
    times = TimeGrid(torch.tensor([0.0, 1.0]).expand(3, 2)).times
    times[0] = 9.0
    assert times[1].tolist() == [0.0, 1.0]


def test_the_mask_is_all_true_by_default():
    assert TimeGrid([0.0, 1.0]).mask.tolist() == [True, True]


def test_a_trailing_repeat_raises_where_the_mask_calls_it_valid():
    times = torch.tensor([0.0, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"repeated at entries \[1\] and \[2\]: 1, 1"):
        TimeGrid(times, mask=torch.ones(3, dtype=torch.bool))
    assert TimeGrid(times, mask=torch.tensor([True, True, False])).num_steps == 1


@pytest.mark.parametrize("hidden", [NAN, 0.0, -7.0, 99.0, float("inf")], ids=str)
@pytest.mark.parametrize("valid", [[2, 3, 5], [0, 3, 4], [0, 1, 2], [3], [1, 4]], ids=str)
def test_masked_times_are_dropped_whatever_they_hold(hidden, valid):
    times = torch.tensor([0.5, 0.9, 1.1, 2.0, 2.2, 4.0], dtype=F64)
    mask = torch.zeros(6, dtype=torch.bool)
    mask[valid] = True
    masked = TimeGrid(torch.where(mask, times, hidden), mask=mask, max_step=0.2)
    dropped = TimeGrid(times[valid], max_step=0.2)
    assert torch.equal(masked.times, dropped.times)
    assert torch.equal(masked.steps, dropped.steps)
    path = paths(masked)
    assert torch.equal(masked.observed(path)[mask], dropped.observed(path))
    assert torch.isfinite(masked.observed_times).all()


def test_an_interior_repeat_behind_a_masked_entry_raises():
    with pytest.raises(ValueError, match=r"repeated at entries \[2\] and \[3\]: 1, 1"):
        TimeGrid(torch.tensor([0.0, 1.0, NAN, 1.0]), mask=torch.tensor([True, True, False, True]))


def test_a_time_before_the_last_valid_one_raises_behind_a_masked_entry():
    with pytest.raises(ValueError, match=r"unsorted at entries \[2\] and \[3\]: 1, 0.5"):
        TimeGrid(torch.tensor([0.0, 1.0, NAN, 0.5]), mask=torch.tensor([True, True, False, True]))


# --- start and end --------------------------------------------------------------------------------


def test_start_and_end_add_grid_points_but_no_observations():
    inner = TimeGrid([0.5, 1.0, 2.0], max_step=0.25)
    outer = TimeGrid([0.5, 1.0, 2.0], max_step=0.25, start=0.0, end=3.0)
    assert outer.times[0] == 0
    assert outer.times[-1] == 3
    assert outer.num_steps == inner.num_steps + 2 + 4
    assert outer.mask.shape == inner.mask.shape == outer.observed_index.shape
    assert torch.equal(outer.observed_times, inner.observed_times)
    assert outer.observed(paths(outer)).shape == (3, 2)
    assert torch.equal(outer.times[2:-4], inner.times)


def test_start_and_end_may_differ_per_series():
    times = torch.tensor([[1.0, 2.0], [1.5, 1.5]], dtype=F64)
    grid = TimeGrid(times, start=torch.tensor([0.0, 1.5]), end=torch.tensor([2, 4]))
    assert grid.times.tolist() == [[0, 1, 2], [1.5, 4, 4]]
    assert grid.observed_index.tolist() == [[1, 2], [0, 0]]
    assert grid.times.dtype == F64


def test_a_start_at_the_first_time_changes_nothing():
    assert same(TimeGrid([0.1, 0.5, 2.0], max_step=0.3), TimeGrid([0.1, 0.5, 2.0], max_step=0.3, start=0.1, end=2.0))


def test_one_observation_and_no_start_is_a_path_of_one_point():
    grid = TimeGrid([1.5], max_step=0.1)
    assert grid.num_steps == 0
    assert grid.times.tolist() == [1.5]
    assert grid.steps.shape == (0,)
    assert grid.observed(torch.full((1, 4), 3.0)).tolist() == [[3.0] * 4]
    assert grid.refine(3).num_steps == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": 0.5}, r"inside \[start, end\]; `start` is \[0.5\] but the observation times span \[0, 1\]"),
        ({"end": 0.99}, r"inside \[start, end\]; `end` is \[0.99"),
        ({"start": NAN}, "`start` must be finite, received nan"),
        ({"end": float("inf")}, "`end` must be finite, received inf"),
        ({"start": torch.zeros(3)}, r"`start` must be a number or have the batch shape \(\).* received \(3,\)"),
        ({"end": torch.ones(2, 1)}, r"`end` must be a number or have the batch shape"),
    ],
)
def test_a_bad_start_or_end_raises(arguments, message):
    with pytest.raises(ValueError, match=message):
        TimeGrid([0.0, 1.0], **arguments)


def test_an_observation_outside_raises_in_any_series():
    times = torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    with pytest.raises(ValueError, match="`end` is"):
        TimeGrid(times, end=torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match="`start` is"):
        TimeGrid(times, start=torch.tensor([-1.0, 0.5]))


# --- kinds of input -------------------------------------------------------------------------------


def test_lists_and_integers_become_the_default_float_type():
    for times in ([0, 1, 4], [0.0, 1.0, 4.0], torch.tensor([0, 1, 4]), torch.tensor([0, 1, 4], dtype=torch.int16)):
        grid = TimeGrid(times, max_step=2)
        assert grid.times.dtype == torch.get_default_dtype()
        assert grid.times.tolist() == [0, 1, 2.5, 4]


def test_a_mask_may_be_a_list():
    assert TimeGrid([0.0, 1.0, NAN], mask=[True, True, False]).num_steps == 1


def test_the_given_times_are_not_changed():
    times = torch.tensor([[0.0, NAN, 1.0]])
    before = times.clone()
    TimeGrid(times, mask=~times.isnan(), start=-1.0, max_step=0.1)
    assert_close(times, before, equal_nan=True, rtol=0, atol=0)


def test_gradients_flow_to_start_and_end():
    start, end = torch.tensor(0.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    grid = TimeGrid([1.0, 2.0], start=start, end=end, max_step=0.5)
    grid.times.sum().backward()
    assert (start.grad, end.grad) == (1 + 0.5, 1 + 0.5)


# --- observed, indexing, expanding ----------------------------------------------------------------


def test_observed_broadcasts_a_path_against_the_batch_of_the_grid():
    grid = TimeGrid(torch.tensor([[0.0, 1.0, 2.0], [0.0, 2.0, 2.0]]), max_step=1.0)
    path = paths(grid)[0]  # one path for both series
    assert grid.observed(path).shape == (2, 3, 2)
    assert torch.equal(grid.observed(path)[1], path[[0, 2, 2]])
    assert grid.observed(path.expand(5, 1, 3, 2)).shape == (5, 2, 3, 2)
    shared = TimeGrid([0.0, 1.0, 2.0])
    assert shared.observed(path.expand(4, 2, 3, 2)).shape == (4, 2, 3, 2)


def test_gradients_through_observed_go_to_the_observed_states_only():
    grid = TimeGrid([0.0, 1.0, 2.0], max_step=0.5)
    path = torch.zeros(5, 1, requires_grad=True)
    grid.observed(path).sum().backward()
    assert path.grad.squeeze(-1).tolist() == [1, 0, 1, 0, 1]


def test_indexing_selects_series_and_keeps_the_number_of_steps():
    times = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.2, 0.2], [0.0, 0.5, 0.7], [5.0, 6.0, 7.0]])
    grid = TimeGrid(times, max_step=0.1)
    for index in (0, -1, slice(1, 3), [3, 0, 0], torch.tensor([2, 1]), torch.tensor([0, 1, 0, 1]) > 0, ..., (None, 1)):
        part = grid[index]
        assert part.num_steps == grid.num_steps
        assert torch.equal(part.times, grid.times[index])
        assert torch.equal(part.observed_index, grid.observed_index[index])
        assert same(part.refine(2), grid.refine(2)[index])
    assert grid[1].batch_shape == ()


def test_indexing_reaches_the_batch_dimensions_only():
    grid = TimeGrid(torch.rand(2, 3, 3).cumsum(-1))  # batch size, number of times and number of points agree
    assert torch.equal(grid[..., 0].times, grid.times[:, 0])
    assert torch.equal(grid[:, 1].times, grid.times[:, 1])
    assert torch.equal(grid[1, 2].times, grid.times[1, 2])
    assert [series.batch_shape for series in grid] == [(3,), (3,)]
    with pytest.raises(IndexError, match=r"along the batch shape \(2, 3\) of a grid, never along time"):
        grid[:, :, 0]
    with pytest.raises(IndexError, match="out of bounds"):
        grid[2]


def test_indexing_keeps_gradients():
    times = torch.tensor([[0.0, 1.0], [0.0, 2.0]], requires_grad=True)
    TimeGrid(times, max_step=0.5)[1].times.sum().backward()
    assert times.grad[0].tolist() == [0, 0]
    assert (times.grad[1] > 0).all()


def test_the_text_of_a_grid_names_its_sizes_and_range():
    text = repr(TimeGrid(torch.tensor([[0.0, 1.0], [0.0, 3.0]]), max_step=1.0))
    assert text == "TimeGrid(batch_shape=(2,), observations=2, num_steps=3, [0, 3])"


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "arguments", "message"),
    [
        ([0.0, 2.0, 1.0], {}, r"unsorted at entries \[1\] and \[2\]: 2, 1. Sort the observations"),
        ([[0.0, 1.0], [1.0, 0.0]], {}, r"unsorted at entries \[1, 0\] and \[1, 1\]: 1, 0"),
        ([0.0, 1.0, 1.0, 2.0], {}, r"repeated at entries \[1\] and \[2\]: 1, 1.*merge equal times"),
        ([0.0, 0.0, 1.0], {}, r"repeated at entries \[0\] and \[1\]"),
        ([0.0, NAN, 1.0], {}, r"must be finite at valid entries; entry \[1\] is nan. Pass `mask`"),
        ([[0.0, 1.0], [0.0, NAN]], {}, r"entry \[1, 1\] is nan"),
        ([0.0, float("inf")], {}, r"entry \[1\] is inf"),
        ([0.0, NAN, 1.0], {"mask": [True, True, True]}, r"entry \[1\] is nan"),
        ([], {}, r"`times` must have shape \(\*batch, N\) with N >= 1.*received \(0,\)"),
        (3.0, {}, r"`times` must have shape.*received \(\)"),
        (torch.zeros(0, 4), {}, r"no empty batch, received \(0, 4\)"),
        ([0.0, 1.0], {"max_step": 0.0}, "`max_step` must be a positive finite number, received 0.0"),
        ([0.0, 1.0], {"max_step": -1.0}, "`max_step` must be a positive"),
        ([0.0, 1.0], {"max_step": NAN}, "`max_step` must be a positive.*received nan"),
        ([0.0, 1.0], {"max_step": float("inf")}, "`max_step` must be a positive.*received inf"),
        ([0.0, 1.0], {"max_step": torch.tensor(1j)}, "`max_step` must be a positive.*received tensor"),
        ([0.0, 1.0], {"max_step": torch.tensor([1.0])}, "`max_step` must be a positive.*received tensor"),
        ([0.0, 1.0], {"max_step": torch.tensor(math.inf)}, "`max_step` must be a positive.*received tensor"),
        ([0.0, 1.0], {"mask": torch.ones(2)}, r"`mask` must be a bool tensor.*received torch.float32 \(2,\)"),
        ([0.0, 1.0], {"mask": torch.ones(3, dtype=torch.bool)}, r"shape of `times` \(2,\).*received torch.bool \(3,\)"),
        ([[0.0, 1.0], [0.0, 1.0]], {"mask": [[True, True], [False, False]]}, r"no valid time in series \[1\]; drop"),
    ],
)
def test_bad_times_raise(times, arguments, message):
    with pytest.raises(ValueError, match=message):
        TimeGrid(times, **arguments)


@pytest.mark.parametrize("n", [0, -1, 1.5, "2"])
def test_a_refinement_that_is_no_positive_integer_raises(n):
    with pytest.raises(ValueError, match="`n` must be a positive integer, received"):
        TimeGrid([0.0, 1.0]).refine(n)


def test_a_path_of_another_grid_raises():
    grid = TimeGrid([0.0, 1.0, 2.0], max_step=0.5)
    with pytest.raises(ValueError, match=r"`path` must have shape \(..., 5, D\).*received \(4, 1\). Pass the whole"):
        grid.observed(torch.zeros(4, 1))
    with pytest.raises(ValueError, match=r"received \(5,\)"):
        grid.observed(torch.zeros(5))


def test_a_path_of_another_batch_raises():
    grid = TimeGrid(torch.tensor([[0.0, 1.0], [0.0, 2.0]]))
    with pytest.raises(ValueError, match=r"batch dimensions of `path` .* received \(3,\) and \(2,\)"):
        grid.observed(torch.zeros(3, 2, 1))


def test_a_shared_grid_has_no_series_to_select():
    with pytest.raises(ValueError, match=r"shared by all series \(batch_shape \(\)\)"):
        TimeGrid([0.0, 1.0])[0]
