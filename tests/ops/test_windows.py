from __future__ import annotations

import pytest
import torch

from pyro_sde.ops.grid import TimeGrid
from pyro_sde.ops.windows import Windows, gather_rows


def ragged(dtype: torch.dtype = torch.float64) -> TimeGrid:
    """Two series on [0, 10] and [0, 6] with coarse steps of one half."""
    return TimeGrid(torch.tensor([[0.0, 1.0, 9.0, 10.0], [0.0, 5.0, 6.0, 6.0]], dtype=dtype), max_step=0.5)


def brute_force_times(times, seen, before, after, fine_steps):
    """Fine points of one series inside the windows, by loops over intervals; times are the coarse ones."""
    inside = set()
    for y in seen:
        first = max((k for k, t in enumerate(times) if t <= max(y - before, times[0]) + 1e-9), default=0)
        last = min(k for k, t in enumerate(times) if t >= min(y + after, times[-1]) - 1e-9)
        inside |= set(range(first * fine_steps, last * fine_steps + 1))
    fine = [
        a + (b - a) * j / fine_steps for a, b in zip(times, times[1:], strict=False) for j in range(fine_steps)
    ] + times[-1:]
    return [fine[k] for k in sorted(inside)]


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.0), (0.5, 0.0), (0.7, 0.2), (3.0, 1.0), (50.0, 50.0)])
def test_rows_are_the_fine_points_of_the_union_of_intervals(before, after):
    grid = ragged()
    windows = Windows.around(grid, before=before, after=after, fine_steps=3)
    for series, (coarse, seen) in enumerate(
        [(torch.linspace(0, 10, 21), [0.0, 1.0, 9.0, 10.0]), (torch.linspace(0, 6, 13), [0.0, 5.0, 6.0])]
    ):
        expected = brute_force_times(coarse.double().tolist(), seen, before, after, 3)
        rows = windows.grid.times[series]
        torch.testing.assert_close(rows[: len(expected)], torch.tensor(expected, dtype=torch.float64))
        assert bool((rows[len(expected) :] == rows[-1]).all())


def test_windows_of_a_series_are_those_that_it_has_alone():
    windows = Windows.around(ragged(), before=0.5, after=0.5, fine_steps=2)
    alone = Windows.around(TimeGrid(torch.tensor([0.0, 5.0, 6.0]).double(), max_step=0.5), before=0.5, after=0.5,
                           fine_steps=2)  # fmt: skip
    chosen = windows[1]
    torch.testing.assert_close(chosen.grid.times, alone.grid.times)
    torch.testing.assert_close(chosen.gap_starts, alone.gap_starts)
    torch.testing.assert_close(windows[torch.tensor([1])].gap_ends[0], alone.gap_ends)
    torch.testing.assert_close(chosen.observed_index[:3], alone.observed_index)
    assert int(windows.active[1].sum()) == int(alone.active.sum())


def test_steps_are_fine_steps_gaps_and_padding():
    windows = Windows.around(ragged(), before=0.5, after=0.0, fine_steps=5)
    steps = windows.grid.steps
    torch.testing.assert_close(steps[windows.active], torch.full((25,), 0.1, dtype=torch.float64))
    assert windows.num_gaps == 3
    # coarse points of the windows: {0}, [1, 2], [17, 18], [19, 20]; {0}, [9, 10], [11, 12]
    assert windows.gap_starts.tolist() == [[0, 0, 2, 18], [0, 0, 10, 12]]
    assert windows.gap_ends.tolist() == [[0, 1, 17, 19], [0, 9, 11, 12]]
    for series in (0, 1):
        for gap in range(1, 4):
            row = int(windows.gap_rows[series, gap])
            if row < steps.shape[-1]:
                length = 0.5 * (windows.gap_ends - windows.gap_starts)[series, gap]
                assert float(steps[series, row]) == pytest.approx(float(length))
    inside = windows.active.sum() + (windows.gap_rows[:, 1:] < steps.shape[-1]).sum()
    assert int((steps > 0).sum()) == int(inside)


def test_coarse_index_is_the_coarse_step_that_holds_the_fine_one():
    windows = Windows.around(ragged(), before=0.7, after=0.3, fine_steps=4)
    starts = windows.grid.times[..., :-1]
    coarse = windows.coarse.times.gather(-1, windows.coarse_index)
    offset = (starts - coarse)[windows.active]
    assert bool((offset > -1e-12).all())
    assert bool((offset < 0.5 - 1e-9).all())


def test_observed_finds_the_observations_with_and_without_gaps():
    grid = ragged()
    windows = Windows.around(grid, before=0.5, after=0.0, fine_steps=5)
    whole = windows.full()
    for source in (windows, whole):
        values = source.grid.times.unsqueeze(-1).expand(3, -1, -1, 2)
        torch.testing.assert_close(windows.observed(values)[1, ..., 1], grid.observed_times)
    assert whole.grid.num_steps == 100
    assert whole.num_gaps == 0


def test_full_marks_the_steps_of_the_windows():
    windows = Windows.around(ragged(), before=0.5, after=0.0, fine_steps=5)
    whole = windows.full()
    assert whole.active.sum(-1).tolist() == windows.active.sum(-1).tolist()
    place = windows.rows_in(whole)
    starts = torch.cat([whole.grid.times, torch.zeros(2, 1)], -1).gather(-1, place)
    torch.testing.assert_close(starts[windows.active], windows.grid.times[..., :-1][windows.active])
    assert bool((place[~windows.active] == whole.active.shape[-1]).all())


def test_full_has_more_rows_even_if_one_series_is_whole():
    grid = ragged()
    starts = torch.tensor([[0.0, 0.0], [0.0, 4.0]])
    windows = Windows(grid, starts, torch.tensor([[10.0, 10.0], [1.0, 6.0]]), fine_steps=2)
    whole = windows.full()
    assert whole.grid.num_steps == windows.grid.num_steps + 1
    values = whole.grid.times.unsqueeze(-1)
    torch.testing.assert_close(windows.observed(values).squeeze(-1), grid.observed_times)


def test_skipped_is_the_fraction_of_fine_steps():
    windows = Windows.around(ragged(), before=0.5, after=0.0, fine_steps=5)
    torch.testing.assert_close(windows.skipped, torch.tensor([1 - 15 / 100, 1 - 10 / 60], dtype=torch.float64))


def test_float32_windows_are_those_of_float64():
    single = Windows.around(ragged(torch.float32), before=0.7, after=0.2, fine_steps=3)
    double = Windows.around(ragged(), before=0.7, after=0.2, fine_steps=3)
    torch.testing.assert_close(single.grid.times.double(), double.grid.times, atol=1e-5, rtol=1e-6)
    assert single.grid.times.dtype == torch.float32


def test_gather_rows_broadcasts_batches():
    values = torch.arange(12.0).reshape(3, 1, 4, 1)
    index = torch.tensor([[0, 3], [1, 1]])
    assert gather_rows(values, index)[2, :, :, 0].tolist() == [[8.0, 11.0], [9.0, 9.0]]
    with pytest.raises(ValueError, match="batch dimensions of a path and of its windows"):
        gather_rows(torch.zeros(3, 4, 1), index)


def test_an_observation_outside_every_window_is_named():
    with pytest.raises(ValueError, match=r"cover every observation, but the one at time 9 of series \[0\]"):
        Windows(ragged(), torch.zeros(2, 1), torch.tensor([[8.0], [6.0]]))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((torch.zeros(1), torch.zeros(2)), "one shape"),
        ((torch.tensor(0.0), torch.tensor(1.0)), "one shape"),
        ((torch.tensor([1.0]), torch.tensor([0.5])), "`starts` <= `ends`"),
        ((torch.tensor([0.0]), torch.tensor([11.0])), "grid end"),
        ((torch.tensor([-1.0]), torch.tensor([6.0])), "grid start"),
    ],
)
def test_wrong_intervals_are_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        Windows(ragged(), *arguments)


@pytest.mark.parametrize("fine_steps", [0, 1.5, True])
def test_wrong_fine_steps_are_named(fine_steps):
    with pytest.raises(ValueError, match="`fine_steps` must be an integer"):
        Windows.around(ragged(), before=0.0, after=0.0, fine_steps=fine_steps)


@pytest.mark.parametrize("name", ["before", "after"])
def test_negative_margins_are_named(name):
    with pytest.raises(ValueError, match=f"`{name}` must be a finite time"):
        Windows.around(ragged(), **{"before": 0.0, "after": 0.0, name: -0.1})


def test_a_path_of_other_length_is_named():
    windows = Windows.around(ragged(), before=0.5, after=0.0, fine_steps=5)
    with pytest.raises(ValueError, match="one row for every fine grid point inside the windows"):
        windows.observed(torch.zeros(2, 7, 1))


def test_repr_shows_the_sizes():
    assert "gaps=3, fine_steps=5" in repr(Windows.around(ragged(), before=0.5, after=0.0, fine_steps=5))


def nested(befores=(0.9, 0.3)):
    outer = Windows.around(ragged(), before=befores[0], after=0.4, fine_steps=3)
    return outer, Windows.within(outer, before=befores[1], after=0.0, fine_steps=2)


def test_windows_within_windows_are_those_around_on_the_finer_grid():
    """Their rows and gaps, but for the points that the level above does not have."""
    outer, inner = nested()
    fine = Windows.around(ragged().refine(3), before=0.3, after=0.0, fine_steps=2)
    torch.testing.assert_close(inner.grid.times, fine.grid.times)
    torch.testing.assert_close(inner.observed_index, fine.observed_index)
    torch.testing.assert_close(inner.skipped, fine.skipped)
    assert torch.equal(inner.fine_places, fine.fine_places)
    assert torch.equal(inner.active, fine.active)
    assert inner.outer is outer
    assert inner.holes.sum(-1).tolist() == [1, 1]  # between the windows of the level above
    assert bool((inner.coarse.steps[inner.holes] > 0.5).all())
    assert inner.slowest is outer.coarse


def test_time_seen_is_the_start_of_the_slowest_step():
    outer, inner = nested()
    for windows in (outer, inner):
        times = windows.times_seen.expand(2, -1).gather(-1, windows.coarse_index)
        slow = windows.slowest.times.expand(2, -1).gather(-1, windows.slowest_index)
        torch.testing.assert_close(times, slow)
        offset = (windows.grid.times[..., :-1] - slow)[windows.active]
        assert bool(((offset > -1e-12) & (offset < 0.5 - 1e-9)).all())


@pytest.mark.parametrize("level", [0, 1])
def test_each_filling_covers_one_gap_more(level):
    windows = nested()[level]
    places = torch.cat([windows.fine_places[..., :1], windows.gap_rows[..., 1:]], -1)
    assert windows.num_fills == windows.num_gaps == places.shape[-1] - 1
    rows = {windows.grid.num_steps + 1}
    for fills in range(1, windows.num_fills + 1):
        filled = windows.full(fills)
        assert filled.num_gaps == windows.num_gaps - fills
        assert torch.equal(filled.active.sum(-1), windows.active.sum(-1))
        rows.add(filled.grid.num_steps + 1)
        values = filled.grid.times.unsqueeze(-1)
        torch.testing.assert_close(windows.observed(values).squeeze(-1), windows.coarse.observed_times)
        assert windows.fills_of(values) == fills
        place = windows.rows_in(filled)
        begins = torch.cat([filled.grid.times, torch.zeros(2, 1)], -1).gather(-1, place)
        kept = place < filled.grid.num_steps
        torch.testing.assert_close(begins[kept], windows.grid.times[..., :-1][kept])
        assert int(kept.sum()) >= int(windows.active.sum())  # and the gaps that are left
    assert len(rows) == windows.num_fills + 1
    assert filled is windows.full()
    torch.testing.assert_close(filled.grid.times[0], torch.linspace(0, 10, 20 * (3, 6)[level] + 1).double())


def test_a_gap_before_the_first_window_is_the_first_to_be_filled():
    grid = TimeGrid(torch.tensor([2.0, 8.0]), start=0.0, max_step=0.5)
    windows = Windows.around(grid, before=0.5, after=0.0, fine_steps=2)
    assert windows.num_fills == 2
    assert windows.real_gaps.tolist() == [True, True]
    first = windows.full(1)
    assert float(first.grid.times[0]) == 0.0
    assert first.num_gaps == 1
    assert windows.real_gaps.shape == windows.gap_starts.shape
    assert torch.equal(windows.places(windows.gap_ends), windows.gap_ends * 2)


def test_windows_that_do_not_lie_in_those_above_are_named():
    outer = Windows.around(ragged(), before=0.5, after=0.0, fine_steps=3)
    with pytest.raises(ValueError, match="inside those of the level above.*reach beyond"):
        Windows.within(outer, before=1.0, after=0.0, fine_steps=2)
    grid = TimeGrid(torch.tensor([1.0, 5.0]), max_step=0.5)
    idle = Windows(grid, torch.tensor([1.0, 3.0, 4.5]), torch.tensor([1.5, 3.5, 5.0]), fine_steps=3)
    with pytest.raises(ValueError, match="inside those of the level above.*leave out a window"):
        Windows.within(idle, before=0.1, after=0.0, fine_steps=2)


def test_a_gap_of_the_level_above_is_a_gap_even_if_steps_are_not_cut():
    outer = Windows.around(TimeGrid(torch.tensor([1.0, 5.0]), max_step=0.5), before=0.5, after=0.0, fine_steps=3)
    inner = Windows.within(outer, before=0.5, after=0.0, fine_steps=1)
    assert inner.num_gaps == outer.num_gaps == 1
    assert torch.equal(inner.active, outer.active)
    assert torch.equal(inner.gap_rows, outer.gap_rows)
    assert inner.full().grid.num_steps == outer.full().grid.num_steps == 24
    assert torch.equal(inner.rows_in(inner.full()), outer.rows_in(outer.full()))
