"""Records of series that nobody chose: cutting, choosing and scaling keep every observed number."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from pyro_sde.data.readers import read_yearly_csv
from pyro_sde.data.series import TimeSeries

F64 = torch.float64
PROPERTY = settings(derandomize=True, max_examples=30, deadline=None, database=None)
JUNK = (0.0, 1e300, math.nan, math.inf)


def record(times: torch.Tensor, values: torch.Tensor, mask: torch.Tensor) -> TimeSeries:
    splits = {"first": slice(0, 1), "all": slice(None)}
    return TimeSeries("drawn", times, values, mask, splits=splits)


@st.composite
def parts(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Times ``(B, N)``, values ``(B, N, O)`` with junk where the mask ``(B, N, O)`` is False."""
    rows, count, channels = draw(st.integers(1, 4)), draw(st.integers(1, 8)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    times = draw(st.floats(-1e3, 1e3)) + torch.rand(rows, count, dtype=F64, generator=generator).add(0.01).cumsum(-1)
    mask = torch.rand(rows, count, channels, generator=generator) < draw(st.sampled_from([0.3, 0.9]))
    mask[:, draw(st.integers(0, count - 1))] = True
    values = draw(st.floats(-1e3, 1e3)) + torch.randn(rows, count, channels, dtype=F64, generator=generator)
    return times, torch.where(mask, values, draw(st.sampled_from(JUNK))), mask


@PROPERTY
@given(parts())
def test_a_record_keeps_what_is_observed_and_hides_the_rest(given_parts):
    times, values, mask = given_parts
    before = values.clone()
    series = record(*given_parts)
    assert torch.equal(series.values[mask], values[mask])
    assert series.values[~mask].isnan().all()
    assert torch.equal(series.valid_times, mask.any(-1))
    assert series.filled(-1.0).isfinite().all()
    assert torch.equal(torch.nan_to_num(values), torch.nan_to_num(before))  # the argument is left as it was


@PROPERTY
@given(parts(), st.data())
def test_choosing_series_twice_is_choosing_them_once(given_parts, data):
    series = record(*given_parts)
    order = data.draw(st.permutations(range(len(series))))
    back = [order.index(i) for i in range(len(series))]
    again = series.select(order).select(back)
    for name in ("times", "mask"):
        assert torch.equal(getattr(again, name), getattr(series, name))
    assert torch.equal(again.filled(), series.filled())
    chosen = series.select(torch.arange(len(series)) == order[0])
    assert torch.equal(chosen.times, series.times[order[:1]])


@PROPERTY
@given(parts(), st.integers(1, 8), st.booleans())
def test_windows_without_overlap_share_out_the_observations(given_parts, length, relative):
    times, _, mask = given_parts
    series = record(*given_parts)
    if length > times.shape[1]:
        with pytest.raises(ValueError, match="`length` must be between 1 and the number of times"):
            series.windows(length)
        return
    covered = times.shape[1] // length * length
    if not mask[:, :covered].any():
        return  # a record without a series is none
    cut = series.windows(length, relative=relative)
    assert torch.equal(cut.values[cut.mask], series.values[:, :covered][mask[:, :covered]])
    assert cut.mask.any(-1).any(-1).all()
    gaps = series.times[:, :covered].unfold(1, length, length).diff(dim=-1)
    kept = mask[:, :covered].any(-1).unfold(1, length, length).any(-1)
    assert_close(cut.times.diff(dim=-1), gaps[kept], rtol=0, atol=1e-9)
    assert not relative or (cut.times[:, 0] == 0).all()


@PROPERTY
@given(parts())
def test_standardised_channels_have_mean_0_and_deviation_1_and_go_back(given_parts):
    _, values, mask = given_parts
    series = record(*given_parts)
    scaled, mean, scale = series.standardise()
    assert_close((scaled.values * scale + mean)[mask], values[mask], rtol=1e-9, atol=1e-9)
    for channel in range(mask.shape[-1]):
        seen = scaled.values[..., channel][mask[..., channel]]
        assert seen.mean().abs() < 1e-6
        if scale[channel] != 1:
            assert_close(seen.square().mean(), torch.ones((), dtype=F64), rtol=1e-6, atol=1e-6)


@PROPERTY
@given(parts())
def test_what_a_split_has_not_seen_has_no_part_in_its_scale(given_parts):
    times, values, mask = given_parts
    mask = mask.clone()
    mask[0, 0] = True
    values = torch.where(mask, torch.nan_to_num(values, 0.0, 0.0, 0.0), 0.0)
    other = values.clone()
    other[1:] *= -7.0
    ours, theirs = (record(times, part, mask).standardise("first") for part in (values, other))
    assert torch.equal(ours[1], theirs[1])
    assert torch.equal(ours[2], theirs[2])
    assert torch.equal(ours[0].filled()[0], theirs[0].filled()[0])


@PROPERTY
@given(st.lists(st.tuples(st.integers(1, 3), st.none() | st.floats(-1e9, 1e9)), min_size=1, max_size=9))
def test_a_yearly_file_is_read_back_number_by_number(lines):
    years = [sum(gap for gap, _ in lines[: i + 1]) for i in range(len(lines))]
    text = "year,count\n" + "".join(
        f"{year},{'' if value is None else repr(value)}\n" for year, (_, value) in zip(years, lines, strict=True)
    )
    contents = read_yearly_csv(text.encode())
    assert contents.times.tolist() == [[float(year) for year in years]]
    expected = torch.tensor([math.nan if value is None else value for _, value in lines], dtype=F64)
    assert torch.equal(torch.nan_to_num(contents.values[0, :, 0], math.pi), torch.nan_to_num(expected, math.pi))


def test_float32_records_stay_float32():
    series = record(torch.arange(3.0).expand(2, 3), torch.ones(2, 3, 1), torch.ones(2, 3, 1).bool())
    scaled, mean, scale = series.windows(2).standardise()
    assert scaled.values.dtype == mean.dtype == scale.dtype == torch.float32
