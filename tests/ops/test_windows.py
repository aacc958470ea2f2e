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
        ((torch.tensor([1.0]), torch.tensor([0.5])), "start <= end"),
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
