"""Encoders of marginals: gaps, padding, what a row can see, and free parameters."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_sde.nn._time_smoothing import TimeSmoothing
from pyro_sde.nn.marginal_encoders import FreeMarginals, GRUMarginals, LocalMarginals
from pyro_sde.ops.grid import TimeGrid

D64 = torch.float64
ENCODERS = {"gru": GRUMarginals, "local": LocalMarginals}


def make(name, **options):
    torch.manual_seed(0)
    encoder = ENCODERS[name](2, 3, hidden=6, head=(5,), **options).double()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.4)
    return encoder


def same(ours, theirs):
    return all(torch.allclose(a, b, atol=1e-12) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_masked_times_are_as_if_left_out(name):
    encoder, times = make(name), torch.tensor([0.0, 0.3, 1.0, 1.4, 2.0], dtype=D64)
    values = torch.randn(4, 5, 2, dtype=D64)
    mask = torch.tensor([True, False, True, True, False])
    values[:, ~mask] = math.nan
    t = torch.linspace(-0.2, 2.2, 13, dtype=D64).reshape(-1, 1, 1)
    masked = encoder(TimeGrid(times), values, mask.expand(4, 5)).moments(t)
    assert same(masked, encoder(TimeGrid(times[mask]), values[:, mask]).moments(t))


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_a_padded_series_is_encoded_as_alone(name):
    encoder = make(name)
    times = torch.tensor([[0.0, 0.3, 1.0, 1.0], [0.1, 0.5, 0.6, 2.0]], dtype=D64)
    values = torch.randn(2, 4, 2, dtype=D64)
    t = torch.linspace(0.0, 2.0, 9, dtype=D64).reshape(-1, 1, 1)
    both = encoder(TimeGrid(times), values).moments(t)
    alone = encoder(TimeGrid(times[0, :3]), values[0, :3]).moments(t[:, 0])
    assert same([part[:, 0] for part in both], alone)


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_only_differences_of_times_enter(name):
    encoder, times = make(name), torch.tensor([0.0, 0.3, 1.0], dtype=D64)
    values, t = torch.randn(3, 2, dtype=D64), torch.linspace(-0.2, 1.2, 9, dtype=D64).unsqueeze(-1)
    assert same(encoder(TimeGrid(times), values).moments(t), encoder(TimeGrid(times + 64.0), values).moments(t + 64.0))


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("name", [*sorted(ENCODERS), "free"])
def test_sigmoids_make_a_flow_that_starts_near_a_gaussian(name, covariance):
    torch.manual_seed(1)
    options = {"covariance": covariance, "sigmoids": 4}
    if name == "free":
        encoder = FreeMarginals(torch.tensor([0.0, 1.0]), 3, 2, **options)
    else:
        encoder = ENCODERS[name](2, 3, **options)
    mean, scale, weights = encoder(TimeGrid([0.0, 1.0]), torch.randn(5, 2, 2)).moments(torch.tensor([0.3]))
    batch = () if name == "free" else (5,)
    assert mean.shape == (*batch, 3)
    assert scale.shape == ((*batch, 3, 3) if covariance == "full" else (*batch, 3))
    assert weights.shape == (*batch, 3, 4)
    assert weights.abs().max() < 0.02
    assert (scale if covariance == "diagonal" else scale.diagonal(dim1=-2, dim2=-1)).allclose(torch.ones(3), atol=0.05)


def influence(encoder, row, count=40):
    """Whether each observation changes the marginal at the time of `row`."""
    values = torch.randn(count, 2, dtype=D64, requires_grad=True)
    mean, _ = encoder(TimeGrid(torch.arange(float(count), dtype=D64)), values).moments(
        torch.tensor([float(row)], dtype=D64)
    )
    return torch.autograd.grad(mean.sum(), values)[0].abs().sum(-1) > 0


def test_gru_rows_see_the_whole_series():
    assert bool(influence(make("gru"), 5, 12).all())


def test_local_rows_see_no_further_than_their_reach():
    encoder = make("local", layers=3)
    seen = influence(encoder, 20).nonzero().flatten()
    assert encoder.reach == 8 + 7  # of the convolutions and of the averages
    # of the values one less: the reach counts the times of gaps too
    assert (int(seen.min()), int(seen.max())) == (20 - 14, 20 + 14)


@pytest.mark.parametrize("reach", [None, 1, 3])
@pytest.mark.parametrize("count", [1, 2, 11])
def test_rows_are_averaged_with_weights_that_fall_with_the_time_between(reach, count):
    torch.manual_seed(2)
    smoothing = TimeSmoothing(6, 0.5, reach).double()
    times, rows = torch.rand(3, count, dtype=D64).cumsum(-1), torch.randn(3, count, 6, dtype=D64)
    valid = torch.rand(3, count) > 0.2
    place = torch.arange(count)
    apart = times.unsqueeze(-1) - times.unsqueeze(-2)
    lengths = smoothing.log_lengths.exp().repeat_interleave(3)
    weights = (-apart.abs().unsqueeze(-1) / lengths).exp() * valid[:, None, :, None]
    if reach is not None:
        weights = weights * ((place.unsqueeze(-1) - place).abs() <= reach).unsqueeze(-1)
    expected = (weights * torch.where(valid.unsqueeze(-1), rows, 0).unsqueeze(-3)).sum(-2) / weights.sum(-2)
    rows[~valid] = math.nan  # rows that do not count may be anything
    assert torch.allclose(smoothing(rows, times, valid)[valid], expected[valid], atol=1e-12)


def test_lengths_of_averages_lie_within_a_tenth_and_three_of_the_time_scale_and_are_learned():
    smoothing = GRUMarginals(1, 1, hidden=24, time_scale=0.2).smoothing
    lengths = smoothing.log_lengths.detach().exp()
    assert len(lengths) == 8  # one for every three channels
    assert (lengths.diff() > 0).all()
    assert 0.02 < float(lengths[0]) < 0.03
    assert 0.45 < float(lengths[-1]) < 0.6
    rows, times = torch.randn(5, 24), torch.arange(5.0)
    smoothing(rows, 0.2 * times, torch.ones(5, dtype=torch.bool)).square().sum().backward()
    assert smoothing.log_lengths.grad is not None
    assert (smoothing.log_lengths.grad != 0).all()


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_moments_change_no_faster_in_a_gap_that_is_short(name):
    encoder = make(name)
    values = torch.randn(20, 6, 2, dtype=D64)

    @torch.no_grad()
    def pace(gap):
        times = torch.tensor([0.0, 0.4, 1.0, 1.0 + gap, 1.6, 2.2], dtype=D64)
        marginals = encoder(TimeGrid(times), values)
        *_, mean_rate, scale_rate = marginals.moments_and_rates((times[2:3] + 0.5 * gap).reshape(1, 1, 1))
        return max(float(mean_rate.abs().max()), float(scale_rate.abs().max()))

    paces = [pace(gap) for gap in (1e-2, 1e-4, 1e-6, 1e-8)]
    assert paces[1:] == pytest.approx(paces[1:2] * 3, rel=0.01)
    assert max(paces) < 1.5 * paces[0]


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_rows_differ_between_observations_that_are_far_apart(name):
    encoder, times = make(name), torch.tensor([0.0, 40.0, 80.0], dtype=D64)
    values = torch.randn(3, 2, dtype=D64, requires_grad=True)
    mean, _ = encoder(TimeGrid(times), values).moments(times.unsqueeze(-1))
    assert (mean.diff(dim=0).abs() > 1e-3).any()


def test_free_marginals_start_at_mean_zero_and_the_initial_scale():
    for covariance in ("diagonal", "full"):
        free = FreeMarginals(
            torch.linspace(0.0, 1.0, 4), 3, covariance=covariance, initial_scale=0.25, batch_shape=(2,)
        )
        mean, scale = free(TimeGrid([0.0, 1.0]), torch.zeros(2, 1)).moments(torch.tensor([0.4]))
        diagonal = scale if covariance == "diagonal" else scale.diagonal(dim1=-2, dim2=-1)
        assert mean.shape == diagonal.shape == (2, 3)
        assert torch.allclose(diagonal, torch.tensor(0.25))
        assert not mean.any()
        assert torch.count_nonzero(scale) == 6


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: GRUMarginals(0, 1), "`value_dim` must be an integer >= 1"),
        (lambda: GRUMarginals(1, 1, time_scale=0.0), "`time_scale` must be a positive finite number"),
        (lambda: LocalMarginals(1, 1, layers=0), "`layers` must be an integer >= 1"),
        (lambda: GRUMarginals(1, 1, covariance="none"), "`covariance` must be"),
        (lambda: LocalMarginals(1, 1, sigmoids=-1), "`sigmoids` must be an integer >= 0, received -1"),
        (lambda: FreeMarginals(torch.tensor([0.0, 1.0]), 1, sigmoids=True), "`sigmoids` must be an integer >= 0"),
        (lambda: FreeMarginals(torch.tensor([0.0, 0.0]), 1), r"`knots` must be two or more finite, increasing times"),
        (lambda: FreeMarginals(torch.tensor([0.0, 1.0]), 1, initial_scale=0.0), "`initial_scale` must be finite and"),
    ],
)
def test_bad_arguments_are_named(build, match):
    with pytest.raises(ValueError, match=match):
        build()


def test_it_runs_in_float32():
    encoder = LocalMarginals(1, 2)
    mean, scale = encoder(TimeGrid([0.0, 0.5, 1.0]), torch.zeros(3, 1)).moments(torch.tensor([0.2]))
    assert mean.dtype == scale.dtype == torch.float32
