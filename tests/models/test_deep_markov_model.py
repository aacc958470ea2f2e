"""The deep Markov model has the bound of its `pyro.markov` form, and scores what it is asked to score."""

from __future__ import annotations

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyro_sde.data.series import TimeSeries
from pyro_sde.distributions.markov_path import MarkovPath
from pyro_sde.guides.combiner import CombinerGuide
from pyro_sde.guides.residual import ResidualGuide, VariationalRNNGuide
from pyro_sde.infer.elbo import PathELBO
from pyro_sde.infer.fit import FitOptions
from pyro_sde.models.deep_markov_model import DeepMarkovModel, SequenceBatch
from pyro_sde.priors.stochastic_rnn import StochasticRNNPrior, VariationalRNNPrior
from tests.benchmarks._markov_dmm import MarkovDMM

B, T, V, D, H = 5, 7, 4, 3, 8
LENGTHS = torch.tensor([7, 3, 5, 1, 7])
EXIST = (torch.arange(T) < LENGTHS[:, None]).unsqueeze(-1).expand(B, T, V)
QUIET = FitOptions(progress=False)

BUILD = {
    "dmm": lambda: DeepMarkovModel(D, V, hidden=(H, H, H)),
    "srnn": lambda: DeepMarkovModel(
        D, V, hidden=(H, H, H), prior=StochasticRNNPrior(V, D, H), posterior=ResidualGuide(V, D, H)
    ),
    "vrnn": lambda: DeepMarkovModel(
        D, V, hidden=(H, H, H), prior=VariationalRNNPrior(V, D, H), posterior=VariationalRNNGuide(D, H)
    ),
}


class GivenNoise(dist.Normal):
    """A Normal law whose sample is made of given noise."""

    def __init__(self, loc: Tensor, scale: Tensor, noise: Tensor) -> None:
        super().__init__(loc, scale)
        self.noise = noise

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.loc + self.scale * self.noise

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> GivenNoise:
        return GivenNoise(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.noise)


@pytest.fixture(autouse=True)
def _empty_store() -> None:
    pyro.clear_param_store()


@pytest.fixture
def values() -> Tensor:
    torch.manual_seed(3)
    return torch.bernoulli(torch.full((B, T, V), 0.4)) * EXIST


@pytest.fixture
def series(values) -> TimeSeries:
    times = torch.minimum(torch.arange(float(T)), LENGTHS[:, None] - 1.0)
    return TimeSeries("bits", times, values, EXIST)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found


@pytest.mark.parametrize(
    ("ours", "theirs"), [(PathELBO("full"), Trace_ELBO()), (PathELBO("closed"), TraceMeanField_ELBO())]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_bound_and_gradients_are_those_of_pyro_markov_at_equal_noise(values, ours, theirs, dtype, tolerance):
    torch.manual_seed(0)
    model = DeepMarkovModel(D, V, hidden=(H, H, H)).to(dtype)
    nn.init.normal_(model.prior.start), nn.init.normal_(model.posterior.start)
    values = values.to(dtype)
    trace = {}

    def record(*given):  # the guide, with a hand on its path
        with pyro.plate("series", B, dim=-1):
            law = model._posterior_law(SequenceBatch(values, LENGTHS, EXIST))
            path = pyro.sample("z", law)
            trace["first"] = ((path[:, 0] - law.initial.mean) / law.initial.stddev).detach()
            trace["rest"] = law.noise_of(path).detach()

    loss = ours.loss_and_grads(model.model, record, values, LENGTHS, EXIST)
    expected_gradients = gradients(model)
    noise = torch.cat([trace["first"].unsqueeze(1), trace["rest"]], 1)
    copy = MarkovDMM(model, lambda loc, scale, step: GivenNoise(loc, scale, noise[:, step])).to(dtype)
    pyro.clear_param_store()
    other = theirs.loss_and_grads(copy.model, copy.guide, values, LENGTHS, EXIST)
    assert loss == pytest.approx(other, rel=tolerance)
    for name, gradient in expected_gradients.items():
        if ".readers." in name:
            continue  # the copy has weights of its own there
        torch.testing.assert_close(
            gradient, dict(model.named_parameters())[name].grad, rtol=100 * tolerance, atol=100 * tolerance
        )
    reader = "posterior.readers.right."
    for name, own in (("recurrent", "weight_hh_l0"), ("inward.weight", "weight_ih_l0"), ("inward.bias", "bias_ih_l0")):
        torch.testing.assert_close(
            expected_gradients[reader + name], getattr(copy.rnn, own).grad, rtol=100 * tolerance, atol=100 * tolerance
        )
    torch.testing.assert_close(
        expected_gradients[reader + "first"], copy.h_0.grad, rtol=100 * tolerance, atol=100 * tolerance
    )


@pytest.mark.parametrize("name", sorted(BUILD))
def test_padding_has_no_influence(name, values):
    torch.manual_seed(0)
    model = BUILD[name]()
    path = model._posterior_law(model._checked(values, LENGTHS, None)).sample((2,))
    longer = torch.cat([values, torch.full((B, 3, V), torch.nan)], 1)
    bounds = []
    for given, z in ((values, path), (longer, torch.cat([path, path[..., -1:, :].expand(2, B, 3, D)], -2))):
        batch = model._checked(given, LENGTHS, None)
        p, q = model._prior_law(batch), model._posterior_law(batch)
        terms = model.likelihood(model._outputs(p, z, batch)).log_prob(batch.values)
        bounds.append(torch.where(batch.mask, terms, 0.0).sum((-2, -1)) + p.log_prob(z) - q.log_prob(z))
    torch.testing.assert_close(bounds[0], bounds[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(BUILD))
def test_training_lowers_the_loss_and_scores_are_ordered(name, series):
    torch.manual_seed(0)
    model = BUILD[name]()
    before = model.evaluate(series, num_samples=300, seed=0)
    result = model.fit(series, steps=30, batch_size=5, learning_rate=2e-2, validation=series, options=QUIET)
    after = model.evaluate(series, num_samples=300, seed=0)
    assert after.per_step("bound") < before.per_step("bound") - 0.1
    assert after.per_step("importance, 300 samples") <= after.per_step("bound")
    assert min(loss for _, loss in result.validation_losses) == pytest.approx(after.per_step("bound"), abs=0.3)
    assert not model.training


def test_importance_sampling_finds_the_evidence_of_a_known_chain(values):
    """States without influence on the observations: the evidence is that of the bias of the emission."""
    model = DeepMarkovModel(D, V, hidden=(H, H, H), emission=nn.Linear(D, V))
    nn.init.zeros_(model.emission.weight)
    times = torch.arange(float(T)).expand(B, T)
    given = TimeSeries("bits", times, values, torch.ones_like(values, dtype=torch.bool))
    scores = model.evaluate(given, num_samples=2000, seed=0)
    logits = model.emission.bias.detach()
    exact = -dist.Bernoulli(logits=logits).log_prob(values).sum((-2, -1))
    assert (scores.losses["bound"] >= exact - 1e-3).all()
    torch.testing.assert_close(scores.losses["importance, 2000 samples"], exact, rtol=0.05, atol=0.2)
    assert scores.lengths.tolist() == [T] * B


def test_missing_entries_are_not_scored(values):
    torch.manual_seed(0)
    model = DeepMarkovModel(D, V, hidden=(H, H, H))
    mask = torch.rand(B, T, V) < 0.5
    losses = []
    for change in (0.0, 1.0, torch.nan):
        pyro.clear_param_store()
        torch.manual_seed(1)
        given = torch.where(mask, values, change)
        losses.append(PathELBO("closed").loss(model.model, model.guide, given, LENGTHS, mask))
    assert losses[0] == losses[1] == losses[2]
    full = PathELBO("closed").loss(model.model, model.guide, values, LENGTHS)
    assert full != losses[0]


def test_a_mask_does_not_reach_beyond_the_end_of_a_series(values):
    torch.manual_seed(0)
    model = DeepMarkovModel(D, V, hidden=(H, H, H))
    losses = []
    for mask in (None, torch.ones(B, T, V, dtype=torch.bool)):
        torch.manual_seed(1)
        losses.append(PathELBO("closed").loss(model.model, model.guide, values, LENGTHS, mask))
    assert losses[0] == losses[1]


def test_weight_decay_is_a_penalty_in_training_losses_only(series):
    losses = {}
    for decay in (0.0, 2.0):
        torch.manual_seed(0)
        model = DeepMarkovModel(D, V, hidden=(H, H, H))
        squares = sum(float(p.detach().square().sum()) for p in model.parameters())
        losses[decay] = model.fit(
            series, steps=1, batch_size=B, validation=series, weight_decay=decay, learning_rate=1e-30, options=QUIET
        )
    assert losses[2.0].losses[0] - losses[0.0].losses[0] == pytest.approx(squares, rel=1e-4)
    assert losses[2.0].validation_losses == losses[0.0].validation_losses
    assert losses[0.0].losses[0] == pytest.approx(losses[0.0].validation_losses[0][1], rel=0.3)  # both per step


def test_fit_drops_out_in_training_and_not_in_validation(series):
    torch.manual_seed(0)
    seen = []
    guide = CombinerGuide(V, D, hidden=H, dropout=0.5)
    guide.register_forward_pre_hook(lambda module, given: seen.append(module.training))
    model = DeepMarkovModel(D, V, hidden=(H, H, H), posterior=guide)
    model.fit(series, steps=2, batch_size=B, validation=series, options=replace(QUIET, validate_every=1))
    assert seen == [True, True, False, True, False]  # the first call makes the parameters


def test_flows_train_with_the_full_divergence(series):
    torch.manual_seed(0)
    guide = CombinerGuide(V, D, hidden=H, flows=1)
    model = DeepMarkovModel(D, V, hidden=(H, H, H), posterior=guide)
    before = [p.detach().clone() for p in guide.flows.parameters()]
    model.fit(series, steps=2, options=QUIET)
    assert all((p != q).any() for p, q in zip(guide.flows.parameters(), before, strict=True))


def test_same_seed_trains_the_same_model(series):
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        losses.append(DeepMarkovModel(D, V, hidden=(H, H, H)).fit(series, steps=3, batch_size=2, options=QUIET).losses)
    assert losses[0] == losses[1]


def test_batches_are_cut_to_their_longest_series(series):
    batch = SequenceBatch.of(series)
    assert batch.lengths.tolist() == LENGTHS.tolist()
    part = batch.select(torch.tensor([1, 3]))
    assert part.values.shape == (2, 3, V)
    assert torch.equal(part.values, series.filled()[[1, 3], :3])


def test_other_likelihoods_serve(series):
    torch.manual_seed(0)
    model = DeepMarkovModel(D, V, likelihood="normal", hidden=(H, H, H))
    assert model.fit(series, steps=2, options=QUIET).losses[0] > 0
    drawn = poutine.trace(model.model).get_trace(series.filled(), LENGTHS)
    assert drawn.nodes["z"]["value"].shape == (B, T, D)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"values": torch.full((B, T, V), 0.5)},
            "`values` must be in the support .* series 0, step 0, channel 0 is 0.5",
        ),
        ({"values": torch.zeros(B, T, V + 1)}, "`values` must have shape"),
        ({"lengths": LENGTHS[:2]}, "`lengths`"),
        ({"lengths": LENGTHS + 1}, "`lengths` must be at most `length`"),
        ({"mask": torch.ones(B, T)}, "`mask` must be bool of shape"),
    ],
)
def test_bad_input_is_named(change, message):
    model = DeepMarkovModel(D, V, hidden=(H, H, H))
    given = {"values": torch.zeros(B, T, V), "lengths": LENGTHS, "mask": None, **change}
    with pytest.raises(ValueError, match=message):
        model.model(**given)


def test_fit_refuses_what_it_cannot_use(series):
    model = DeepMarkovModel(D, V, hidden=(H, H, H))
    with pytest.raises(ValueError, match="`weight_decay` must be"):
        model.fit(series, weight_decay=-1.0, options=QUIET)
    off = replace(series, values=series.values * 2)
    with pytest.raises(ValueError, match="`values` must be in the support"):
        model.fit(off, steps=1, options=QUIET)


def test_a_transition_of_the_wrong_event_shape_is_named():
    model = DeepMarkovModel(D, V, hidden=(H, H, H))
    start = dist.Normal(torch.zeros(D), 1.0).to_event(1)
    model.prior.forward = lambda length, lengths: MarkovPath(lambda z, t, u: dist.Normal(z, 1.0), start, length)
    with pytest.raises(ValueError, match="`transition` must return laws with the event shape"):
        model.model(torch.zeros(B, T, V), LENGTHS)
