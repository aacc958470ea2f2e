"""Encoders of marginals: gaps, padding, what a row can see, and free parameters."""

from __future__ import annotations

import math

import pytest
import torch

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
    assert encoder.reach == 8
    # of the values one less: the reach counts the times of gaps too
    assert (int(seen.min()), int(seen.max())) == (20 - 7, 20 + 7)


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
