"""Deep Markov models that are linear and Gaussian predict as dense conditioning says. Tests at `TEST_FAILURE_RATE`."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pyro_sde.data.series import TimeSeries
from pyro_sde.distributions.markov_path import MarkovPath
from pyro_sde.guides.combiner import CombinerGuide
from pyro_sde.guides.residual import ResidualGuide, VariationalRNNGuide
from pyro_sde.infer.fit import FitOptions
from pyro_sde.models import deep_markov_model, prediction
from pyro_sde.models.deep_markov_model import DeepMarkovModel
from pyro_sde.models.likelihoods import NormalLikelihood
from pyro_sde.models.step_prediction import step_positions
from pyro_sde.nn.base import inverse_softplus
from pyro_sde.priors.stochastic_rnn import StochasticRNNPrior, VariationalRNNPrior
from pyro_sde.testing.statistics import assert_mean, ks_test

F64 = torch.float64
NAN = float("nan")
A, Q, R = 0.9, 0.25, 0.16  # z' = A z + N(0, Q), y = z + N(0, R), z_1 ~ N(0, 1)
S = 20_000
VALUES = torch.tensor([[0.9, NAN, 0.4, -0.5, 0.3], [1.4, 0.7, NAN, NAN, NAN]], dtype=F64).unsqueeze(-1)
LENGTHS = [5, 2]


def record(values=VALUES, start=10.0, spacing=0.5):
    times = start + spacing * torch.arange(float(values.shape[1]), dtype=F64).expand(len(values), -1)
    return TimeSeries("made", times, values, ~values.isnan())


class LinearPrior(nn.Module):
    """Linear chain; the mean of the transition may grow with the index of the step."""

    def __init__(self, slope: float = 0.0) -> None:
        super().__init__()
        self.slope = slope

    def step(self, z: Tensor, t: Tensor, inputs: Tensor | None = None) -> dist.Independent:
        return dist.Normal(A * z + self.slope * t, Q**0.5).to_event(1)

    def forward(self, length: int, lengths: Tensor | None = None) -> MarkovPath:
        first = dist.Normal(torch.zeros(1, dtype=F64), 1.0).to_event(1)
        return MarkovPath(self.step, first, length, lengths=lengths)


class ExactGuide(nn.Module):
    """Posterior of the linear chain, by a filter that runs backwards."""

    def forward(self, prior: MarkovPath, values: Tensor, mask: Tensor) -> MarkovPath:
        precision, shift = torch.zeros(2, len(values), 1, dtype=F64)
        rows = []
        for t in range(prior.length - 1, -1, -1):
            shrink = 1 + Q * precision
            precision = A**2 * precision / shrink + mask[:, t] / R
            shift = A * shift / shrink + mask[:, t] * values[:, t] / R
            rows.append(torch.cat([precision, shift], -1))
        rows = torch.stack(rows[::-1], 1)

        def combine(mean: Tensor | float, variance: float, row: Tensor) -> dist.Independent:
            total = 1 / variance + row[..., :1]
            return dist.Normal((mean / variance + row[..., 1:]) / total, total.rsqrt()).to_event(1)

        first = combine(0.0, 1.0, rows[:, 0])
        step = lambda z, t, row: combine(A * z, Q, row)  # noqa: E731
        return MarkovPath(step, first, prior.length, inputs=rows[:, 1:], lengths=prior.lengths)


def linear(prior=None, posterior=None) -> DeepMarkovModel:
    likelihood = NormalLikelihood(1, initial_scale=R**0.5).double()
    with torch.no_grad():
        likelihood.raw_scale.fill_(inverse_softplus(R**0.5 - likelihood.floor))
    return DeepMarkovModel(
        1,
        1,
        likelihood=likelihood,
        prior=prior or LinearPrior(),
        posterior=posterior or ExactGuide(),
        emission=nn.Identity(),
    )


def dense(row: int, steps: list[int]) -> tuple[Tensor, Tensor]:
    """Mean and covariance of states given the observations of a series, by conditioning a dense Gaussian."""
    count = max(max(steps) + 1, VALUES.shape[1])
    covariance = torch.zeros(count, count, dtype=F64)
    variance = 1.0
    for i in range(count):
        for j in range(i, count):
            covariance[i, j] = covariance[j, i] = A ** (j - i) * variance
        variance = A**2 * variance + Q
    seen = (~VALUES[row, :, 0].isnan()).nonzero().squeeze(-1)
    given = covariance[seen][:, seen] + R * torch.eye(len(seen), dtype=F64)
    gain = torch.linalg.solve(given, covariance[seen][:, steps]).T
    return gain @ VALUES[row, seen, 0], covariance[steps][:, steps] - gain @ covariance[seen][:, steps]


def test_forecasts_have_the_mean_and_variance_of_the_kalman_filter():
    ahead = torch.tensor([[12.0, 13.5, 12.5], [11.0, 10.5, 12.0]], dtype=F64)
    steps = [[4, 7, 5], [2, 1, 4]]
    samples = linear().forecast(record(), ahead, num_samples=S, seed=0)
    assert torch.equal(samples.times, ahead)
    for row in (0, 1):
        mean, covariance = dense(row, steps[row])
        assert_mean(samples.y[:, row, :, 0], mean, detects=0.05)
        assert_mean((samples.y[:, row, :, 0] - mean) ** 2, covariance.diagonal() + R, detects=0.1)
        z = samples.z[:, row, :, 0] - mean
        assert_mean(z.unsqueeze(-1) * z.unsqueeze(-2), covariance, detects=0.1)
    assert torch.equal(samples.mean, samples.z)


def test_imputed_values_have_the_mean_and_variance_of_the_smoother():
    samples = linear().impute(record(), num_samples=S, seed=0)
    for row, step in ((0, 1), (1, 2), (1, 4)):
        mean, covariance = dense(row, [step])
        y = samples.y[:, row, step, 0]
        assert_mean(y, float(mean), detects=0.05)
        assert_mean((y - mean) ** 2, float(covariance) + R, detects=0.06)
    observed = ~VALUES.isnan()
    assert torch.equal(samples.y[:, observed], VALUES[observed].expand(S, -1))


def test_smoothing_at_some_steps_is_that_of_the_smoother():
    samples = linear().smooth(record(), torch.tensor([10.5, 10.0], dtype=F64), num_samples=S, seed=0)
    for row in (0, 1):
        mean, covariance = dense(row, [1, 0])
        z = samples.z[:, row, :, 0]
        assert_mean(z, mean, detects=0.03)
        assert_mean((z - mean).prod(-1), float(covariance[0, 1]), detects=0.02)


def test_the_transition_is_told_the_index_of_its_step():
    model = linear(LinearPrior(slope=100.0), ExactGuide())
    z = model.forecast(record(), torch.tensor([[12.5], [11.0]], dtype=F64), num_samples=100, seed=0).z[..., 0]
    assert_close(z.mean(0), torch.tensor([[500.0], [200.0]], dtype=F64), rtol=0, atol=3.0)


class AutoregressivePrior(nn.Module):
    """States around the observation before: y is an autoregression of order one."""

    reads_values = True

    def forward(self, length: int, lengths: Tensor | None, values: Tensor) -> MarkovPath:
        before = torch.nn.functional.pad(values[:, :-1], (0, 0, 1, 0))
        first = dist.Normal(A * before[:, 0], Q**0.5).to_event(1)
        step = lambda z, t, row: dist.Normal(A * row, Q**0.5).to_event(1)  # noqa: E731
        return MarkovPath(step, first, length, inputs=before[:, 1:], lengths=lengths)


def test_a_prior_that_reads_observations_is_fed_those_it_has_drawn():
    model = linear(AutoregressivePrior(), CombinerGuide(1, 1, hidden=4).double())
    ahead = torch.tensor([[12.5, 13.0, 14.0], [11.0, 11.5, 12.5]], dtype=F64)
    samples = model.forecast(record(), ahead, num_samples=S, seed=0)
    for row, last in ((0, 0.3), (1, 0.7)):
        variances = torch.tensor([sum(A ** (2 * i) * (Q + R) for i in range(h)) for h in (1, 2, 4)], dtype=F64)
        means = torch.tensor([A, A**2, A**4], dtype=F64) * last
        y = samples.y[:, row, :, 0]
        assert_mean(y, means, detects=0.06)
        assert_mean((y - means) ** 2, variances, detects=0.1)
        assert_mean((y[:, 0] - means[0]) * (y[:, 2] - means[2]), float(A**3 * variances[0]), detects=0.05)


@pytest.mark.parametrize("kind", ["srnn", "vrnn"])
def test_recurrent_priors_remember_what_they_have_drawn(kind):
    """The noise of every state ahead, worked out by a run of the network over all that was drawn, is N(0, 1)."""
    torch.manual_seed(0)
    d, o, h, total = 2, 1, 4, 8
    if kind == "srnn":
        prior, posterior = StochasticRNNPrior(o, d, h), ResidualGuide(o, d, h)
    else:
        prior, posterior = VariationalRNNPrior(o, d, h), VariationalRNNGuide(d, h)
    model = DeepMarkovModel(d, o, likelihood="normal", hidden=(h, h, h), prior=prior, posterior=posterior).double()
    last = [module for module in prior.transition.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():  # memories that differ from step to step, and little noise around what they say
        for parameter in prior.parameters():
            parameter.mul_(2.0)
        last.weight[:d] *= 8.0
        last.bias[d:] = -2.0
    given = record(VALUES[:1])
    run, past = 4000, (10.0 + 0.5 * torch.arange(5.0, dtype=F64)).expand(1, -1)
    z = model.smooth(given, past, num_samples=run, seed=0).z[:, 0]
    ahead = model.forecast(given, 10.0 + 0.5 * torch.arange(5.0, total, dtype=F64), num_samples=run, seed=0)
    z = torch.cat([z, ahead.z[:, 0]], 1)
    y = torch.cat([given.filled().expand(run, -1, -1), ahead.y[:, 0]], 1)
    with torch.no_grad():
        if kind == "srnn":
            memory = prior.network(torch.nn.functional.pad(y[:, :-1], (0, 0, 1, 0)))[0]
            loc, raw = prior.transition(torch.cat([z[:, 4:-1], memory[:, 5:]], -1)).chunk(2, -1)
        else:
            rows = torch.cat([z, prior.observed(y).relu()], -1)
            memory = prior.memory(rows[:, :-1], prior.start.expand(1, run, -1).contiguous())[0][:, 4:]
            loc, raw = prior.transition(memory).chunk(2, -1)
        scale = 1e-3 + torch.nn.functional.softplus(raw)
    noise = (z[:, 5:] - loc) / scale
    ks_test(noise.flatten(1)).require(detects=0.1)
    assert_mean(noise[:, 0] * noise[:, 1], 0.0, detects=0.15)
    emitted = model.emission(torch.cat([z[:, 5:], memory[:, -3:]], -1)).detach()
    ks_test(((y[:, 5:] - emitted) / model.likelihood.scale.detach()).flatten(1)).require(detects=0.1)


def test_the_past_of_a_series_is_not_drawn_again():
    model = linear(AutoregressivePrior(), CombinerGuide(1, 1, hidden=4).double())
    later = torch.tensor([[12.0, 14.0], [10.5, 14.0]], dtype=F64)
    one = model.forecast(record(), later, num_samples=3, seed=0)
    other = model.smooth(record(), torch.tensor([[12.0], [10.5]], dtype=F64), num_samples=3, seed=0)
    assert torch.equal(one.z[:, :, 0], other.z[:, :, 0])


# --- times and steps


def test_times_are_steps_of_their_series():
    times = torch.tensor([[0.0, 2.0, 4.0, 6.0], [1.0, 3.0, 3.0, 3.0]])
    values = torch.zeros(2, 4, 1)
    series = TimeSeries("made", times, values, torch.tensor([[1, 1, 0, 1], [1, 1, 0, 0]]).bool().unsqueeze(-1))
    queries = torch.tensor([[6.0, 0.0, 4.0, 12.0], [1.0, 3.0, 5.0, 11.0]])
    assert step_positions(series, queries).tolist() == [[3, 0, 2, 6], [0, 1, 2, 5]]
    assert step_positions(series, times).tolist() == [[0, 1, 2, 3], [0, 1, 1, 1]]


def test_calendar_months_are_equal_steps():
    days = torch.tensor([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]).repeat(3)
    months = (2001 + torch.cat([torch.zeros(1), days.cumsum(0) / 365.0])).view(1, -1)
    series = TimeSeries("months", months[:, :24], torch.zeros(1, 24, 1), torch.ones(1, 24, 1, dtype=torch.bool))
    assert step_positions(series, months).tolist() == [list(range(37))]


def test_series_of_one_step_have_the_spacing_of_the_others():
    times = torch.tensor([[0.0, 2.0, 4.0], [1.0, 1.0, 1.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool().unsqueeze(-1)
    series = TimeSeries("made", times, torch.zeros(2, 3, 1), mask)
    assert step_positions(series, torch.tensor([[6.0], [3.0]])).tolist() == [[3], [1]]


def test_times_that_are_no_steps_are_refused():
    made = record()
    with pytest.raises(
        ValueError, match=r"`times` must be steps .* columns of the record are 0.5 apart; received 12.2"
    ):
        linear().forecast(made, torch.tensor([12.0, 12.2], dtype=F64))
    with pytest.raises(ValueError, match="`times` must be steps .* are 0.5 apart; received 10.2"):
        linear().smooth(made, torch.tensor([10.2], dtype=F64))
    odd = TimeSeries("odd", torch.tensor([[0.0, 1.0, 5.0]]), torch.zeros(1, 3, 1), torch.ones(1, 3, 1).bool())
    assert step_positions(odd, torch.tensor([[5.0, 1.0]])).tolist() == [[2, 1]]
    with pytest.raises(ValueError, match="columns of the record are not equally spaced; received 6. Give the record"):
        step_positions(odd, torch.tensor([[6.0]]))
    one = TimeSeries("one", torch.zeros(1, 1), torch.zeros(1, 1, 1), torch.ones(1, 1, 1).bool())
    assert step_positions(one, torch.zeros(1, 1)).tolist() == [[0]]
    with pytest.raises(ValueError, match="are one only, so their spacing is unknown; received 1"):
        step_positions(one, torch.ones(1, 1))


# --- the method of the model


def test_predictions_are_made_without_dropout_gradient_or_change_of_mode():
    torch.manual_seed(0)
    model = DeepMarkovModel(2, 1, likelihood="normal", hidden=(4, 4, 4), posterior=CombinerGuide(1, 2, dropout=0.9))
    model.train()
    ahead = torch.tensor([12.5])
    one = model.forecast(record(), ahead, num_samples=3, seed=0)
    assert model.training
    model.eval()
    assert torch.equal(one.y, model.forecast(record(), ahead, num_samples=3, seed=0).y)
    assert not one.mean.requires_grad
    assert {tensor.dtype for tensor in one} == {torch.float32}


@pytest.mark.parametrize("reads", [False, True])
def test_draws_come_in_blocks(monkeypatch, reads):
    prior = AutoregressivePrior() if reads else None
    model = linear(prior, CombinerGuide(1, 1, hidden=4).double())
    monkeypatch.setattr(prediction, "_BLOCK_ROWS", 3)
    monkeypatch.setattr(deep_markov_model, "_ENTRIES", 1)
    samples = model.forecast(record(), torch.tensor([12.5, 13.0], dtype=F64), num_samples=7, seed=0)
    assert samples.y.shape == (7, 2, 2, 1)
    assert len(samples.z[:, 0, 0, 0].unique()) == 7


def test_a_trained_model_forecasts_values_in_the_support_of_its_likelihood():
    torch.manual_seed(0)
    bits = torch.bernoulli(torch.full((4, 6, 3), 0.4))
    series = TimeSeries("bits", torch.arange(6.0).expand(4, -1), bits, torch.ones(4, 6, 3).bool())
    model = DeepMarkovModel(2, 3, hidden=(8, 8, 8))
    model.fit(series, steps=3, options=FitOptions(progress=False))
    samples = model.forecast(series, torch.arange(5.0, 9.0), num_samples=11, seed=1)
    assert samples.y.shape == samples.mean.shape == (11, 4, 4, 3)
    assert sorted(samples.y.unique().tolist()) == [0.0, 1.0]
    assert ((samples.mean > 0) & (samples.mean < 1)).all()
