"""`TimeSeries`: what it holds, what it refuses, and its methods against plain loops."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from pyro_sde.data import TimeSeries
from pyro_sde.ops.grid import TimeGrid

NAN = float("nan")


def make(**changes):
    """Three series, four times, two channels; series 1 is padded, series 2 has a missing time."""
    times = torch.tensor([[0.0, 1, 2, 4], [1, 2, 2, 2], [0, 3, 5, 6]], dtype=torch.float64)
    mask = torch.ones(3, 4, 2, dtype=torch.bool)
    mask[0, 1, 0] = False
    mask[1, 2:] = False
    mask[2, 1] = False
    values = torch.arange(24, dtype=torch.float64).reshape(3, 4, 2)
    fields = {
        "name": "toy",
        "times": times,
        "values": values,
        "mask": mask,
        "splits": {"train": slice(0, 2), "test": [2]},
        "channels": ("a", "b"),
    }
    return TimeSeries(**{**fields, **changes})


def test_unobserved_values_are_nan_and_filled_is_finite():
    series = make()
    assert torch.equal(series.values.isnan(), ~series.mask)
    assert torch.equal(series.filled(-1.0)[series.mask], series.values[series.mask])
    assert (series.filled(-1.0)[~series.mask] == -1).all()


def test_a_time_is_valid_if_any_channel_is_observed():
    expected = [[True, True, True, True], [True, True, False, False], [True, False, True, True]]
    assert make().valid_times.tolist() == expected


def test_valid_times_are_the_mask_of_a_grid():
    series = make()
    grid = TimeGrid(series.times, mask=series.valid_times)
    assert torch.equal(grid.mask, series.valid_times)
    assert torch.equal(grid.observed_times[series.valid_times], series.times[series.valid_times])


def test_record_is_frozen_and_survives_pickling():
    series = make()
    with pytest.raises(FrozenInstanceError):
        series.name = "other"
    copy = pickle.loads(pickle.dumps(series))
    assert repr(copy) == repr(series)
    assert torch.equal(copy.values, series.values) or torch.equal(copy.filled(), series.filled())


def test_repr_is_one_short_line():
    expected = "TimeSeries('toy', series=3, times=4, channels=2, observed=70.8%, splits={'train': 2, 'test': 1})"
    assert repr(make()) == expected


def test_channels_without_a_name_get_numbers():
    assert make(channels=()).channels == ("channel_0", "channel_1")


@pytest.mark.parametrize(
    "index", [slice(0, 3, 2), [0, 2], [0, -1], torch.tensor([0, 2]), torch.tensor([True, False, True])]
)
def test_select_understands_slices_indices_and_masks(index):
    series = make()
    chosen = series.select(index)
    assert torch.equal(chosen.times, series.times[[0, 2]])
    assert torch.equal(chosen.mask, series.mask[[0, 2]])
    assert chosen.splits == {}
    assert len(chosen) == 2


@pytest.mark.parametrize("index", [slice(0, 2), [0, 1], torch.tensor([0, 1]), torch.tensor([True, True, False])])
def test_split_gives_its_series_and_its_name(index):
    part = make(splits={"train": index}).split("train")
    assert part.name == "toy/train"
    assert torch.equal(part.filled(), make().filled()[:2])


def test_unknown_split_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"`name` must be a split of 'toy' \('train', 'test'\), received 'val'"):
        make().split("val")
    with pytest.raises(ValueError, match=r"\(none\)"):
        make(splits={}).split("val")


@pytest.mark.parametrize(
    "bad", [slice(3, 3), [], [0.5], "train", torch.tensor([True, False]), 1, torch.zeros(1, 1).long()]
)
def test_bad_split_names_itself(bad):
    with pytest.raises(ValueError, match=r"`splits\['train'\]` must be a slice, integer indices or a bool"):
        make(splits={"train": bad})


@pytest.mark.parametrize("bad", [[3], [-4]])
def test_split_out_of_range_is_refused(bad):
    with pytest.raises(ValueError, match="must lie within the 3 series"):
        make(splits={"train": bad})
    with pytest.raises(ValueError, match="`index` must lie within the 3 series"):
        make().select(bad)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize(("length", "stride"), [(2, None), (2, 1), (3, 1), (1, 2), (4, None)])
def test_windows_equal_a_loop(length, stride, relative):
    series = make()
    windows = series.windows(length, stride, relative=relative)
    times, values, mask, owners = [], [], [], []
    for b in range(3):
        for start in range(0, 4 - length + 1, stride or length):
            part = slice(start, start + length)
            if series.mask[b, part].any():
                times.append(series.times[b, part] - (series.times[b, start] if relative else 0))
                values.append(series.filled()[b, part])
                mask.append(series.mask[b, part])
                owners.append(b)
    assert torch.equal(windows.times, torch.stack(times))
    assert torch.equal(windows.filled(), torch.stack(values))
    assert torch.equal(windows.mask, torch.stack(mask))
    for name, members in (("train", (0, 1)), ("test", (2,))):
        count = sum(owner in members for owner in owners)
        assert len(windows.split(name)) == count
        expected = torch.stack([v for v, owner in zip(values, owners, strict=True) if owner in members])
        assert torch.equal(windows.split(name).filled(), expected)


def test_windows_refuse_impossible_lengths():
    with pytest.raises(ValueError, match="`length` must be between 1 and the number of times 4, received 5"):
        make().windows(5)
    with pytest.raises(ValueError, match="`length` must be between 1"):
        make().windows(0)
    with pytest.raises(ValueError, match="`stride` must be at least 1, received 0"):
        make().windows(2, 0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_standardise_uses_observed_entries_only(dtype, tolerance):
    series, mean, scale = make().to(dtype).standardise()
    for channel in range(2):
        observed = series.values[..., channel][series.mask[..., channel]]
        raw = make().values[..., channel][make().mask[..., channel]]
        assert observed.mean().item() == pytest.approx(0, abs=tolerance)
        assert observed.std(correction=0).item() == pytest.approx(1, abs=tolerance)
        assert mean[channel].item() == pytest.approx(raw.mean().item(), abs=tolerance * 10)
        assert scale[channel].item() == pytest.approx(raw.std(correction=0).item(), abs=tolerance * 10)
    assert series.values.dtype == mean.dtype == scale.dtype == dtype
    torch.testing.assert_close((series.values * scale + mean)[series.mask], make().to(dtype).values[series.mask])


def test_standardise_by_a_split_ignores_the_others():
    changed = make().filled()
    changed[0] += 1000.0
    splits = {"train": [1, 2]}
    _, mean, scale = make(splits=splits).standardise("train")
    _, changed_mean, changed_scale = make(splits=splits, values=changed).standardise("train")
    assert torch.equal(mean, changed_mean)
    assert torch.equal(scale, changed_scale)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_constant_channel_gets_scale_one(dtype):
    values = make().filled()
    values[..., 1] = 1e-5
    values[0, 0, 1] += 1e-13  # rounding noise, as in mocap35
    series, _, scale = make(values=values).to(dtype).standardise()
    assert scale[1] == 1
    assert series.filled()[..., 1].abs().max() < 1e-12


def test_standardise_refuses_a_channel_without_observations():
    mask = make().mask
    mask[:2, :, 1] = False
    with pytest.raises(ValueError, match=r"channels without one: \['b'\]"):
        make(mask=mask).standardise("train")


def test_to_changes_dtype_and_keeps_everything_else():
    series = make(source="somewhere", licence="free", time_unit="year").to(torch.float32)
    assert series.times.dtype == series.values.dtype == torch.float32
    assert (series.source, series.licence, series.time_unit) == ("somewhere", "free", "year")
    assert repr(series) == repr(make())
    assert make().to(device="cpu").values.dtype == torch.float64


def test_times_that_collapse_in_float32_are_refused():
    times = torch.tensor([[2000.0, 2000.00001]], dtype=torch.float64)
    series = TimeSeries("t", times, times.unsqueeze(-1), torch.ones(1, 2, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="use float64"):
        series.to(torch.float32)
    assert series.windows(2).to(torch.float32).times[0, 1].item() == pytest.approx(1e-5, rel=1e-6)


def test_new_splits_by_replace():
    series = replace(make(), splits={"all": slice(None)})
    assert len(series.split("all")) == 3


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"times": [[0.0]]}, TypeError, "`times` must be a tensor, received list"),
        ({"values": None}, TypeError, "`values` must be a tensor, received NoneType"),
        ({"mask": 1}, TypeError, "`mask` must be a tensor, received int"),
        ({"times": torch.ones(3, 4).long()}, TypeError, "same floating dtype, received torch.int64"),
        ({"values": torch.ones(3, 4, 2)}, TypeError, "received torch.float64 and torch.float32"),
        ({"mask": torch.ones(3, 4, 2)}, TypeError, "`mask` must be a bool tensor"),
        ({"values": torch.ones(3, 4).double()}, ValueError, r"received \(3, 4\) and \(3, 4\)"),
        ({"values": torch.ones(3, 5, 2).double()}, ValueError, r"received \(3, 4\) and \(3, 5, 2\)"),
        ({"times": torch.ones(4).double()}, ValueError, r"received \(4,\) and"),
        ({"values": torch.ones(3, 4, 0).double()}, ValueError, "none of them 0"),
        ({"mask": torch.ones(3, 4, dtype=torch.bool)}, ValueError, r"`mask` must have the shape \(3, 4, 2\)"),
        ({"channels": ("a",)}, ValueError, r"`channels` must hold a name for each of 2 channels, received \('a"),
    ],
)
def test_wrong_kinds_and_shapes_are_refused(changes, error, match):
    with pytest.raises(error, match=match):
        make(**changes)


def test_tensors_on_two_devices_are_refused():
    with pytest.raises(ValueError, match="must be on one device, received cpu, cpu and meta"):
        make(mask=make().mask.to("meta"))


def test_series_without_observations_is_refused():
    mask = make().mask
    mask[1] = False
    with pytest.raises(ValueError, match="`mask` must leave every series an observed entry; series 1 has none"):
        make(mask=mask)


@pytest.mark.parametrize("bad", [NAN, float("inf")])
def test_times_must_be_finite(bad):
    times = make().times
    times[1, 3] = bad
    with pytest.raises(ValueError, match="`times` must be finite, received (nan|inf) at series 1, position 3"):
        make(times=times)


def test_times_must_increase_where_observed():
    times = make().times
    times[0, 2] = 0.5
    with pytest.raises(ValueError, match=r"series 0 has 1.0 before 0.5 at position 2"):
        make(times=times)
    times[0, 2] = 1.0
    with pytest.raises(ValueError, match=r"series 0 has 1.0 before 1.0 at position 2"):
        make(times=times)
    times = make().times
    times[1, 3] = 0.0  # padding by zeros is not sorted
    with pytest.raises(ValueError, match=r"series 1 has 2.0 before 0.0 at position 3"):
        make(times=times)


def test_a_repeat_across_an_unobserved_time_is_refused():
    times = make().times
    times[2, 0:3] = 3.0  # position 1 is unobserved; 0 and 2 are not
    with pytest.raises(ValueError, match=r"series 2 has 3.0 before 3.0 at position 2"):
        make(times=times)


@pytest.mark.parametrize("bad", [NAN, float("-inf")])
def test_observed_values_must_be_finite(bad):
    values = make().filled()
    values[2, 3, 1] = bad
    with pytest.raises(ValueError, match=r"received (nan|-inf) at series 2, position 3, channel 1.*isnan"):
        make(values=values)
