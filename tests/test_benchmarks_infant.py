"""The pieces of the infant benchmark against hand-computed values, and its command on a simulated night."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pyro.poutine as poutine
import pytest
import torch

from tests.benchmarks import _infant, infant
from tests.benchmarks._clusters import adjusted_rand, balanced_accuracy, mixture
from tests.benchmarks._hidden_markov import fit_states
from tests.benchmarks._infant import Night, Pair, divide, fit, summary

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    monkeypatch.setattr(_infant, "SAMPLES", 10)


def simulated(length=160, block=40, seed=0):
    """Two states in blocks: quiet and low, wild and high."""
    generator = torch.Generator().manual_seed(seed)
    states = (torch.arange(length) // block) % 2
    noise = torch.randn(length, generator=generator, dtype=DOUBLE)
    values = torch.where(states == 1, 1.0 + 0.8 * noise, -1.0 + 0.1 * noise)
    return (values - values.mean()) / values.std(correction=0), states


def test_adjusted_rand_counts_pairs():
    truth = torch.tensor([0, 0, 0, 1, 1, 1])
    found = torch.tensor([0, 0, 1, 1, 2, 2])
    # Pairs together in both: 1 + 1 = 2; in the truth 6, in the other 3; 15 in all. (2 - 1.2) / (4.5 - 1.2)
    assert adjusted_rand(truth, found) == pytest.approx(0.8 / 3.3)
    pairs = list(itertools.combinations(range(6), 2))
    together = [[bool(x[i] == x[j]) for i, j in pairs] for x in (truth, found)]
    both = sum(a and b for a, b in zip(*together, strict=True))
    first, second = map(sum, together)
    chance = first * second / len(pairs)
    assert adjusted_rand(truth, found) == pytest.approx((both - chance) / ((first + second) / 2 - chance))


def test_adjusted_rand_ignores_names_and_is_zero_by_chance():
    torch.manual_seed(0)
    truth = torch.randint(4, (500,))
    assert adjusted_rand(truth + 3, (truth + 1) % 4) == 1
    assert adjusted_rand(truth, torch.zeros_like(truth)) == 0
    assert adjusted_rand(torch.zeros(5).long(), torch.zeros(5).long()) == 1
    chance = torch.tensor([adjusted_rand(truth, torch.randint(3, (500,))) for _ in range(200)])
    assert abs(chance.mean()) < 5 * chance.std() / 200**0.5


def test_balanced_accuracy_is_the_best_over_all_namings():
    torch.manual_seed(1)
    truth, found = torch.randint(3, (60,)), torch.randint(3, (60,))
    every = [
        sum(float((found[truth == k] == name[k]).double().mean()) for k in range(3)) / 3
        for name in itertools.permutations(range(3))
    ]
    assert balanced_accuracy(truth, found) == pytest.approx(max(every))


def test_balanced_accuracy_weighs_rare_states_as_others():
    truth = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1])
    assert balanced_accuracy(truth, torch.zeros(8).long()) == 0.5
    assert balanced_accuracy(truth, torch.tensor([5, 5, 5, 5, 5, 5, 2, 2])) == pytest.approx((6 / 7 + 1) / 2)


def test_mixture_finds_blobs_and_does_not_see_the_units():
    torch.manual_seed(0)
    truth = torch.arange(200) % 2
    points = torch.randn(200, 2, dtype=DOUBLE) * torch.tensor([0.2, 3.0]) + 3.0 * truth.unsqueeze(-1)
    found = mixture(points, 2, seed=0)
    assert adjusted_rand(truth, found.states) > 0.9
    scaled = mixture(points @ torch.tensor([[2.0, 1.0], [0.0, -5.0]], dtype=DOUBLE) + 7, 2, seed=0)
    assert torch.equal(found.states, scaled.states)
    assert found.bic < mixture(points, 1, seed=0).bic


def test_mixture_of_one_is_a_gaussian():
    torch.manual_seed(0)
    points = torch.randn(50, 2, dtype=DOUBLE)
    centred = points - points.mean(0)
    covariance = centred.T @ centred / 50 + 1e-3 * torch.cov(points.T)
    law = torch.distributions.MultivariateNormal(points.mean(0), covariance)
    one = mixture(points, 1, seed=0)
    assert one.log_likelihood == pytest.approx(float(law.log_prob(points).sum()), abs=1e-6)
    assert one.bic == pytest.approx(-2 * one.log_likelihood + 5 * math.log(50))


@pytest.mark.parametrize(("autoregressive", "free"), [(False, 2), (True, 3)])
def test_hidden_markov_model_of_one_state_is_a_regression(autoregressive, free):
    values = simulated()[0]
    fitted = fit_states(values, 1, autoregressive=autoregressive, seed=0, starts=2)
    if autoregressive:
        x = torch.stack([torch.ones(159, dtype=DOUBLE), values[:-1]], -1)
        slope = torch.linalg.lstsq(x, values[1:, None]).solution.squeeze(-1)
        rest = values[1:] - x @ slope
        torch.testing.assert_close(fitted.slope[0], slope, atol=1e-6, rtol=0)
        first = float(torch.distributions.Normal(0.0, 1.0).log_prob(values[0]))
    else:
        rest, first = values, 0.0
    expected = first - 0.5 * len(rest) * float((2 * math.pi * math.e * rest.square().mean()).log())
    assert fitted.log_likelihood == pytest.approx(expected, abs=1e-5)
    assert fitted.bic == pytest.approx(-2 * expected + free * math.log(160), abs=1e-4)


@pytest.mark.parametrize("autoregressive", [False, True])
def test_hidden_markov_model_finds_two_states(autoregressive):
    values, truth = simulated()
    fitted = fit_states(values, 2, autoregressive=autoregressive, seed=0, starts=4)
    assert adjusted_rand(truth, fitted.states) > 0.9
    assert fitted.log_likelihood > fit_states(values, 1, autoregressive=autoregressive, seed=0).log_likelihood


def night(wells):
    torch.manual_seed(0)
    result = Night(torch.randn(9, 2, dtype=DOUBLE), wells)
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return result


@pytest.mark.parametrize("wells", [1, 3])
def test_slow_states_have_the_mixture_as_stationary_law(wells):
    result = night(wells)
    a = torch.randn(7, 2, dtype=DOUBLE, requires_grad=True)
    parts = torch.distributions.Normal(result.centre, result.log_width.exp())
    density = (result.weight.log_softmax(-1) + parts.log_prob(a.unsqueeze(-2)).sum(-1)).logsumexp(-1)
    (score,) = torch.autograd.grad(density.sum(), a)
    sde = result.coarse()
    scale = result.log_scale.exp()
    torch.testing.assert_close(sde.drift(None, a), 0.5 * scale.square() * score)  # Fokker-Planck, no current
    torch.testing.assert_close(sde.diffusion(None, a), scale.expand(7, 2))
    posterior = (result.weight + parts.log_prob(a.unsqueeze(-2)).sum(-1)).softmax(-1)
    torch.testing.assert_close(result.shares(a), posterior)
    assert result.free == 5 * wells - 1 + 2 + 3


@pytest.mark.parametrize("length", [160, 161, 163])
def test_fine_path_is_autoregressive_given_the_slow_states(length):
    values = simulated(length)[0]
    pair = Pair(values, 2)
    pair.night.load_state_dict(night(2).state_dict())
    guide = poutine.trace(pair.guide).get_trace()
    trace = poutine.trace(poutine.replay(pair.model, guide)).get_trace()
    a = trace.nodes["a"]["value"]
    heart = torch.cat([values, trace.nodes["last"]["value"]]) if "last" in trace.nodes else values
    assert len(heart) == 4 * (len(a) - 1) + 1 == {160: 161, 161: 161, 163: 165}[length]
    driven = a[torch.arange(len(heart) - 1) // 4]
    keep = 1 - pair.night.pace(driven).squeeze(-1).sigmoid()
    mean = driven[:, 0] + keep * (heart[:-1] - driven[:, 0])
    expected = torch.distributions.Normal(mean, driven[:, 1].exp()).log_prob(heart[1:]).sum()
    expected = expected + torch.distributions.Normal(0.0, 1.0).log_prob(heart[0])
    law = trace.nodes["b"]
    torch.testing.assert_close(law["fn"].log_prob(law["value"]), expected)
    trace.compute_log_prob()
    assert "last" not in trace.nodes or trace.nodes["last"]["log_prob_sum"] == 0


def test_summary_takes_the_values_of_each_step_and_shrinks_them():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 9.0, 11.0], dtype=DOUBLE)
    level = torch.tensor([2.5, 8.0, 8.0], dtype=DOUBLE)
    size = torch.tensor([5 / 3, 20 / 3, 20 / 3], dtype=DOUBLE).log() / 2
    raw = torch.stack([level, size], -1)
    middle = raw[:2].mean(0)
    torch.testing.assert_close(summary(values, 3, 4), middle + torch.tensor([0.8, 0.5]).double() * (raw - middle))


def test_a_night_is_fitted_and_its_two_states_are_found():
    values, truth = simulated(320, block=80)
    one, fitted = fit(values, seed=0, steps=150)
    assert fitted.path.shape == (81, 2)
    assert not fitted.wells.any()
    assert fitted.penalised == pytest.approx(-2 * fitted.bound + 9 * math.log(320))
    assert fitted.driven[:6].tolist() == [0, 0, 0, 0, 0, 1]  # a value is made by the step before it
    assert fitted.bound > fit(values, seed=0, steps=2)[1].bound
    wells = divide(one, fitted.path, 2, seed=0, steps=60)
    assert wells.free == 14
    assert adjusted_rand(truth, wells.wells[wells.driven]) > 0.8
    groups = mixture(fitted.path, 2, seed=0).states
    begin = divide(one, fitted.path, 2, seed=0, steps=1)
    assert (begin.wells == groups).double().mean() > 0.95  # the wells begin as the groups, on the same path


def test_the_command_prints_a_row_per_method(monkeypatch, capsys):
    values, truth = simulated(80)
    opened = []

    def load(name):
        opened.append((name, capsys.readouterr().out))
        rates = {"baby_ecg": (0.1 * values).exp(), "baby_sleep": truth + 1.0}[name]
        return SimpleNamespace(values=rates.reshape(1, -1, 1))

    monkeypatch.setattr(infant, "load", load)
    monkeypatch.setattr(infant, "STATES", (2,))
    infant.main(["--seeds", "2", "--steps", "3"])
    shown = capsys.readouterr().out
    table = [line for line in shown.splitlines() if line.startswith("| ")]
    assert len(table) == 1 + 4 * len(infant.STATES)
    assert "| slow path, 2 wells |" in table[1]
    assert "±" in table[1]
    assert [name for name, _ in opened] == ["baby_ecg", "baby_sleep"]
    assert "seed 1, one well" in opened[1][1]  # every state was found before the expert's were opened


def test_sizes_are_chosen_without_the_expert(monkeypatch, capsys):
    values = simulated(80)[0]
    monkeypatch.setattr(infant, "SIZES", (2, 4))

    def load(name):
        assert name == "baby_ecg"
        return SimpleNamespace(values=values.exp())

    monkeypatch.setattr(infant, "load", load)
    infant.main(["--choose", "--steps", "2"])
    assert capsys.readouterr().out.count("penalised") == 2 + len(infant.STATES)


def test_named_without_its_command_it_says_what_it_needs():
    with pytest.raises(SystemExit, match="python -m tests.benchmarks.infant"):
        infant.tables()


def test_logarithms_are_standardised():
    values = infant.standardise(torch.tensor([100.0, 120.0, 150.0]))
    assert float(values.mean()) == pytest.approx(0, abs=1e-12)
    assert float(values.square().mean()) == pytest.approx(1)
    logs = torch.tensor([100.0, 120.0, 150.0], dtype=DOUBLE).log()
    assert float((values[2] - values[1]) / (values[1] - values[0])) == pytest.approx(
        float((logs[2] - logs[1]) / (logs[1] - logs[0]))
    )
