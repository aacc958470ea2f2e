"""Every series runs on its own clock; the loss is an exact bound; local laws can be learned for new series."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_sde.infer.elbo import PathELBO
from pyro_sde.models.tempo import LocalGuide, SeriesBatch, Tempo, TempoParts, TempoSDE
from pyro_sde.sde import OrnsteinUhlenbeck
from pyro_sde.sde.second_order import SecondOrderSDE
from pyro_sde.testing.statistics import assert_mean

DOUBLE = torch.float64
TIMES = torch.tensor([0.0, 0.5, 1.5], dtype=DOUBLE)


@pytest.fixture(autouse=True)
def _clean() -> None:
    pyro.clear_param_store()
    torch.manual_seed(0)


def linear(rate: float = 0.8, noise: float = 0.6, members: int | None = None, tempo: Tempo | None = None) -> TempoSDE:
    """Ornstein-Uhlenbeck paths seen with noise 0.5; the guide's first state is N(feature, 0.3^2), its control c - z."""
    prior = OrnsteinUhlenbeck(rate, noise)
    parts = TempoParts(
        prior,
        prior.controlled(lambda t, z, context: context - z),
        lambda: dist.Normal(torch.zeros(1, dtype=DOUBLE), 1.0).to_event(1),
        lambda x: (dist.Normal(x, 0.3 * torch.ones_like(x)).to_event(1), 0.5 * x),
        lambda z: dist.Normal(z, 0.5 * torch.ones_like(z)),
    )
    return TempoSDE(parts, tempo, members=members)


def batch(*lead: int, times: Tensor = TIMES, indices: Tensor | None = None) -> SeriesBatch:
    values = torch.randn(*lead, len(times), 1, dtype=DOUBLE)
    mask = torch.ones(*lead, len(times), dtype=torch.bool)
    return SeriesBatch(times, values, mask, torch.randn(*lead, 1, dtype=DOUBLE), indices)


def chain_evidence(values: Tensor, times: Tensor, tempo: float, rate: float = 0.8, noise: float = 0.6) -> Tensor:
    """Log evidence of one series under the chain: z is Gaussian, with moments from its own recursion."""
    steps = tempo * times.diff()
    cov = torch.zeros(len(times), len(times), dtype=DOUBLE)
    cov[0, 0] = 1.0
    for k, h in enumerate(steps):
        a = 1 - rate * h
        cov[k + 1, : k + 1] = a * cov[k, : k + 1]
        cov[: k + 1, k + 1] = cov[k + 1, : k + 1]
        cov[k + 1, k + 1] = a**2 * cov[k, k] + noise**2 * h
    law = torch.distributions.MultivariateNormal(
        torch.zeros(len(times), dtype=DOUBLE), cov + 0.25 * torch.eye(len(times))
    )
    return law.log_prob(values)


@pytest.mark.parametrize("tempo", [1.0, 1.7])
def test_importance_weights_give_the_evidence_of_the_chain_on_the_series_own_clock(tempo):
    known = Tempo(1, scale=1e-9).double()
    known.loc.data.fill_(math.log(tempo))
    known.series_loc.data.fill_(math.log(tempo))
    model = linear(tempo=known)
    one = batch(1, indices=torch.zeros(1, dtype=torch.long))
    wide = batch(20_000)
    data = SeriesBatch(
        TIMES,
        one.values.expand(20_000, -1, -1),
        wide.mask,
        one.features.expand(20_000, -1),
        torch.zeros(20_000, dtype=torch.long),
    )
    guide = pyro.poutine.trace(model.guide).get_trace(data)
    trace = pyro.poutine.trace(pyro.poutine.replay(model.model, trace=guide)).get_trace(data)
    guide.compute_log_prob()
    trace.compute_log_prob()
    log_weights = sum(trace.nodes[name]["log_prob"] for name in ("z", "y")) - guide.nodes["z"]["log_prob"]
    evidence = chain_evidence(one.values[0, :, 0], TIMES, tempo)
    assert_mean((log_weights - evidence).exp().detach(), 1.0)


def test_closed_and_full_bounds_agree_in_the_mean():
    model = linear(tempo=Tempo(100, scale=0.2).double())
    data = batch(100, indices=torch.arange(100))
    losses = {}
    for kl in ("closed", "full"):
        elbo = PathELBO(kl)
        losses[kl] = torch.tensor([elbo.loss(model.model, model.guide, data) for _ in range(100)], dtype=DOUBLE)
    assert_mean(losses["closed"] - losses["full"], 0.0)


def test_tempo_rescales_time_and_nothing_else():
    model = linear()
    local = model.locate(torch.zeros(2, 1, dtype=DOUBLE))
    torch.manual_seed(1)
    fast = model.rollout(local, TIMES, num_samples=3, log_tempo=torch.full((3, 2), math.log(2.0), dtype=DOUBLE))
    torch.manual_seed(1)
    slow = model.rollout(local, 2 * TIMES, num_samples=3)
    torch.testing.assert_close(fast, slow)


def test_prior_rollout_has_no_control():
    model = linear(rate=1e-9, noise=1e-6)
    local = model.locate(torch.ones(1, 1, dtype=DOUBLE))
    torch.manual_seed(1)
    free = model.rollout(local, TIMES, num_samples=2, prior=True)
    assert float((free[..., -1, :] - free[..., 0, :]).abs().max()) < 1e-4
    guided = model.rollout(local._replace(context=torch.full((1, 1), 1e6, dtype=DOUBLE)), TIMES, num_samples=2)
    assert float((guided[..., -1, :] - guided[..., 0, :]).abs().min()) > 0.1


def test_new_series_have_the_tempo_of_the_population():
    tempo = Tempo(3, scale=0.5)
    tempo.loc.data.fill_(0.3)
    tempo.series_loc.data.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert tempo.of_series(None).mean.item() == pytest.approx(0.3)
    assert tempo.of_series(torch.tensor([2, 0])).mean.tolist() == [3.0, 1.0]


def test_students_t_has_the_degrees_given():
    law = Tempo(3, scale=0.5, degrees=3.0).population()
    assert isinstance(law, dist.StudentT)
    assert law.variance.item() == pytest.approx(3 * 0.25)


def test_members_do_not_see_each_other():
    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(2, 1, 1, dtype=DOUBLE))

        def forward(self, x: Tensor) -> tuple[dist.TorchDistribution, Tensor]:
            return dist.Normal(x + self.shift, 0.3 * torch.ones_like(x)).to_event(1), x

    model = linear(members=2, tempo=Tempo(4, members=2).double())
    model.encoder = Shift()
    data = batch(2, 3, indices=torch.tensor([[0, 1, 2], [3, 2, 1]]))

    def gradient(second: float) -> Tensor:
        values = data.values.clone()
        values[1] += second
        torch.manual_seed(3)
        loss = PathELBO("closed").differentiable_loss(model.model, model.guide, data._replace(values=values))
        return torch.autograd.grad(loss, model.encoder.shift)[0].flatten()

    before, after = gradient(0.0), gradient(5.0)
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_masked_ends_of_a_window_have_no_influence():
    model = linear()
    data = batch(2)
    mask = data.mask.clone()
    mask[1, 2:] = False
    losses = []
    for value in (0.0, 100.0):
        values = data.values.clone()
        values[1, 2:] = value
        torch.manual_seed(5)
        losses.append(PathELBO("closed").loss(model.model, model.guide, data._replace(values=values, mask=mask)))
    assert losses[0] == losses[1]


def test_a_window_with_a_masked_end_is_a_shorter_window():
    model = linear()
    data = batch(1)
    short = data._replace(times=TIMES[:2], values=data.values[:, :2], mask=data.mask[:, :2])
    mask = data.mask.clone()
    mask[:, 2:] = False
    losses = []
    for one in (short, data._replace(mask=mask), data):
        torch.manual_seed(5)
        losses.append(PathELBO("closed").loss(model.model, model.guide, one))
    assert losses[1] == pytest.approx(losses[0])
    assert losses[2] != pytest.approx(losses[0])


def test_power_weighs_the_likelihood_only():
    model = linear()
    data = batch(2)
    losses = []
    for power in (0.5, 0.75, 1.5):
        torch.manual_seed(7)
        losses.append(PathELBO("closed").loss(model.model, model.guide, data._replace(power=power)))
    assert losses[2] - losses[0] > 0.1
    assert losses[1] - losses[0] == pytest.approx(0.25 * (losses[2] - losses[0]))


def test_local_guide_starts_at_the_encoder_and_finds_the_tempo():
    # a rotation by 1 rad per unit of time, seen almost without noise
    torch.set_default_dtype(DOUBLE)
    try:
        prior = SecondOrderSDE(lambda z: torch.zeros_like(z[..., 1:]), dim=1, stiffness=1.0, noise_scale=1e-3)
        parts = TempoParts(
            prior,
            prior.controlled(lambda t, z, context: torch.zeros_like(z)),
            lambda: dist.Normal(torch.zeros(2), 2.0).to_event(1),
            lambda x: (dist.Normal(x, 0.05 * torch.ones_like(x)).to_event(1), x[..., :1]),
            lambda z: dist.Normal(z[..., :1], 0.05),
        )
        model = TempoSDE(parts, Tempo(1, scale=0.5))
        times = torch.arange(0.0, 4.0, 0.05)
        truth = model.rollout(
            model.locate(torch.tensor([[1.0, 0.0]])), times, num_samples=1, log_tempo=torch.full((1, 1), 0.2)
        )[0, ..., :1]
        data = SeriesBatch(times, truth, torch.ones(1, len(times), dtype=torch.bool), torch.tensor([[1.0, 0.0]]), None)
        guide = LocalGuide(model, data.features, spread=0.05)
        start = guide()
        assert start.first.mean.tolist() == [[1.0, 0.0]]
        assert start.context.tolist() == [[1.0]]
        optimiser = torch.optim.Adam(guide.parameters(), 0.03)
        for _ in range(60):
            optimiser.zero_grad()
            PathELBO("closed").differentiable_loss(model.model, guide.guide, data).backward()
            optimiser.step()
        assert guide().log_tempo.mean.item() == pytest.approx(0.2, abs=0.05)
    finally:
        torch.set_default_dtype(torch.float32)


def test_local_guide_owns_nothing_of_the_model():
    model = linear(tempo=Tempo(2).double())
    guide = LocalGuide(model, torch.zeros(3, 1, dtype=DOUBLE))
    assert {name for name, _ in guide.named_parameters()} == {
        "context",
        "loc",
        "log_scale",
        "tempo_loc",
        "tempo_log_scale",
    }


def test_it_works_in_single_precision():
    prior = SecondOrderSDE(lambda z: -z[..., 1:], dim=1, stiffness=1.0)
    parts = TempoParts(
        prior,
        prior.controlled(lambda t, z, context: 0.0 * z),
        lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1),
        lambda x: (dist.Normal(x, 0.1).to_event(1), x[..., :1]),
        lambda z: dist.Normal(z[..., :1], 0.1),
    )
    model = TempoSDE(parts, Tempo(2))
    data = SeriesBatch(
        TIMES.float(), torch.zeros(2, 3, 1), torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 2), torch.tensor([0, 1])
    )
    assert math.isfinite(PathELBO("closed").loss(model.model, model.guide, data))
    assert model.rollout(model.locate(data.features), data.times, num_samples=2).dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Tempo(0), "num_series"),
        (lambda: Tempo(2, scale=0.0), "`scale` must be a finite number > 0"),
        (lambda: Tempo(2, degrees=2.0), "`degrees` must be > 2"),
        (lambda: Tempo(2, members=0), "members"),
        (lambda: linear(members=0), "members"),
        (lambda: LocalGuide(linear(), torch.zeros(1, 1, dtype=DOUBLE), spread=0.0), "`spread` must be a finite number"),
    ],
)
def test_numbers_out_of_range_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
