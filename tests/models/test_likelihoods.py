"""Likelihoods against formulas written out by hand, and what the options change."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from pyro_sde import models
from pyro_sde.models import (
    CategoricalLikelihood,
    LaplaceLikelihood,
    NormalLikelihood,
    PoissonLikelihood,
)
from pyro_sde.models.likelihoods import make_likelihood
from pyro_sde.nn.base import inverse_softplus

F64 = torch.float64


def output_of(likelihood, *batch, dtype=F64):
    return 2 * torch.randn(*batch, likelihood.output_dim, dtype=dtype)


def test_every_likelihood_has_a_row(row, other_rows):
    rows = {type(one.make()).__name__ for one in (row, *other_rows)}
    assert rows == {name for name in models.__all__ if name.endswith("Likelihood")} - {"Likelihood"}


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-12), (torch.float32, 2e-5)])
def test_the_density_is_the_formula(row, dtype, tolerance):
    likelihood = row.make().to(dtype)
    with torch.no_grad():  # built in float32; the formula has the scale 0.4 in every digit
        for raw_scale in likelihood.parameters():
            raw_scale.fill_(inverse_softplus(0.4 - likelihood.floor))
    output = output_of(likelihood, 50, 7, dtype=dtype)
    values = likelihood(output).sample().to(dtype)
    density = likelihood(output).log_prob(values)
    assert density.dtype == dtype
    assert_close(density, row.log_prob(values, output), rtol=tolerance, atol=10 * tolerance)


def test_the_law_is_elementwise_so_that_a_mask_per_channel_applies(row):
    likelihood = row.make().double()
    output = output_of(likelihood, 4, 7)
    law = likelihood(output)
    assert (law.batch_shape, law.event_shape) == ((4, 7, 2), ())
    values, mask = law.sample(), torch.rand(4, 7, 2) < 0.5
    density = law.mask(mask).to_event(2).log_prob(values)
    assert_close(density, torch.where(mask, law.log_prob(values), 0.0).sum((-2, -1)))


def test_samples_lie_in_the_support_and_so_does_zero(row):
    likelihood = row.make().double()
    law = likelihood(output_of(likelihood, 500))
    assert row.in_support(law.sample().double()).all()
    assert law.log_prob(torch.zeros(500, 2, dtype=F64)).isfinite().all()


def test_the_point_prediction_is_the_one_documented(row):
    likelihood = row.make().double()
    output = output_of(likelihood, 30)
    assert_close(likelihood.mean(output), row.mean(output))


def test_no_other_likelihood_has_this_density(row, other_rows):
    likelihood = row.make().double()
    output = output_of(likelihood, 40)
    values = torch.ones(40, 2, dtype=F64)  # in the support of all
    ours = likelihood(output).log_prob(values)
    for other in other_rows:
        if other.make().output_dim == likelihood.output_dim:
            assert (ours - other.log_prob(values, output)).abs().mean() > 0.05


def test_the_encoder_reads_finite_features_of_the_size_announced(row):
    likelihood = row.make().double()
    values = likelihood(output_of(likelihood, 5, 9)).sample().double()
    features = likelihood.features(values)
    assert features.shape == (5, 9, likelihood.feature_dim)
    assert features.dtype == F64
    assert features.isfinite().all()


def test_an_output_of_another_size_is_refused(row):
    likelihood = row.make()
    with pytest.raises(ValueError, match=f"`output` of the decoder must have {likelihood.output_dim} = 2 x"):
        likelihood(torch.zeros(3, likelihood.output_dim + 1))


def test_a_name_gives_the_likelihood_of_that_name(row):
    if row.by_name is None:
        return
    assert type(make_likelihood(row.by_name, 2)) is type(row.make())


def test_gradients_reach_the_output_and_are_finite_far_out(row):
    likelihood = row.make().double()
    output = (100 * torch.randn(20, likelihood.output_dim, dtype=F64)).requires_grad_()
    likelihood(output).log_prob(torch.ones(20, 2, dtype=F64)).sum().backward()
    assert output.grad is not None
    assert output.grad.isfinite().all()
    assert output.grad.abs().sum() > 0


# --- options


@pytest.mark.parametrize("kind", [NormalLikelihood, LaplaceLikelihood])
def test_a_learned_scale_starts_where_told_and_stays_above_its_floor(kind):
    likelihood = kind(3, initial_scale=0.7, floor=0.05).double()
    assert_close(likelihood.scale, torch.full((3,), 0.7, dtype=F64), rtol=1e-6, atol=0)
    with torch.no_grad():
        likelihood.raw_scale.fill_(-100.0)
    assert_close(likelihood.scale, torch.full((3,), 0.05, dtype=F64))


def test_scales_are_learned_per_channel():
    likelihood = NormalLikelihood(2)
    data = torch.randn(400, 2) * torch.tensor([0.1, 2.0])
    optimiser = torch.optim.Adam(likelihood.parameters(), lr=0.1)
    for _ in range(500):
        optimiser.zero_grad()
        (-likelihood(torch.zeros(400, 2)).log_prob(data).sum()).backward()
        optimiser.step()
    assert_close(likelihood.scale.detach(), data.square().mean(0).sqrt(), rtol=0.02, atol=0)


def test_a_poisson_rate_is_the_exponential_near_zero_and_bounded_far_out():
    likelihood = PoissonLikelihood(1, max_rate=50.0).double()
    rate = likelihood(torch.tensor([[-1e9], [0.0], [0.01], [1e9]], dtype=F64)).mean.flatten()
    assert_close(rate, torch.tensor([0.02, 1.0, math.exp(0.01), 50.0], dtype=F64), rtol=1e-6, atol=0)


def test_a_poisson_encoder_reads_logarithms_of_counts():
    assert_close(PoissonLikelihood(1).features(torch.tensor([[0.0], [9.0]])), torch.tensor([[0.0], [math.log(10)]]))


def test_classes_are_read_one_hot_channel_by_channel():
    features = CategoricalLikelihood(2, 3).features(torch.tensor([[2.0, 0.0]]))
    assert features.tolist() == [[0, 0, 1, 1, 0, 0]]


@pytest.mark.parametrize("wrong", [-1.0, 3.0, 0.5])
def test_values_that_are_no_class_are_refused(wrong):
    with pytest.raises(ValueError, match=rf"`values` must hold class indices 0 ... 2, received {wrong:g}"):
        CategoricalLikelihood(1, 3).features(torch.tensor([[1.0], [wrong]]))


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match="`values` must be counts >= 0, received -2"):
        PoissonLikelihood(1).features(torch.tensor([[1.0], [-2.0]]))


@pytest.mark.parametrize("kind", [NormalLikelihood, LaplaceLikelihood])
@pytest.mark.parametrize(("scale", "floor"), [(0.1, 0.2), (1.0, 0.0), (math.inf, 0.1)])
def test_scales_out_of_range_are_refused(kind, scale, floor):
    with pytest.raises(ValueError, match="0 < floor < initial_scale"):
        kind(1, initial_scale=scale, floor=floor)


@pytest.mark.parametrize("max_rate", [1.0, math.inf, math.nan])
def test_a_rate_bound_out_of_range_is_refused(max_rate):
    with pytest.raises(ValueError, match="`max_rate` must be a finite number > 1"):
        PoissonLikelihood(1, max_rate=max_rate)


def test_sizes_out_of_range_are_refused():
    with pytest.raises(ValueError, match="`value_dim` must be an integer >= 1"):
        NormalLikelihood(0)
    with pytest.raises(ValueError, match="`num_classes` must be at least 2, received 1"):
        CategoricalLikelihood(1, 1)


def test_names_and_likelihoods_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"bernoulli, laplace, normal, poisson.*received 'gauss'"):
        make_likelihood("gauss", 1)
    with pytest.raises(ValueError, match=r"pass CategoricalLikelihood"):
        make_likelihood("categorical", 1)
    with pytest.raises(TypeError, match="`likelihood` must be a name or a Likelihood, received float"):
        make_likelihood(1.0, 1)
    with pytest.raises(ValueError, match="`likelihood` has 2 channels, but `value_dim` is 3"):
        make_likelihood(NormalLikelihood(2), 3)
