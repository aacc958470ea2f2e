import math

import pyro.distributions as dist
import pytest
import torch

from pyro_sde import SDEPath, TimeGrid
from pyro_sde.distributions.gaussian_path import GaussianPath
from pyro_sde.distributions.linear_gaussian_ssm import LinearGaussianSSM
from pyro_sde.distributions.markov_path import MarkovPath
from pyro_sde.infer.emissions import EmissionLikelihood
from pyro_sde.infer.held_out import HeldOut, held_out
from pyro_sde.sde import OrnsteinUhlenbeck

NOISE = 0.4


def problem(dtype=torch.float64):
    grid = TimeGrid(torch.tensor([0.0, 0.3, 1.0, 1.4], dtype=dtype), max_step=0.4)
    start = dist.Normal(torch.zeros(2, 1, dtype=dtype), 1.0).to_event(1)
    sde = OrnsteinUhlenbeck(1.0, 0.8)
    y = torch.tensor([[0.5, 1.1, -0.3, 0.4], [0.1, -0.2, 0.3, 0.9]], dtype=dtype).unsqueeze(-1)
    law = SDEPath(sde, start, grid)
    ssm = LinearGaussianSSM(
        GaussianPath(sde, start, grid, discretisation="euler"), torch.ones(1, 1, dtype=dtype), NOISE
    )
    return law, EmissionLikelihood(lambda z: dist.Normal(z, NOISE), y), ssm, y


def test_the_two_averages_differ_as_their_formulas_do():
    scores = HeldOut({"a": torch.tensor([10.0, 90.0, 20.0])}, torch.tensor([2, 30, 5]))
    assert scores.per_step("a") == pytest.approx(120 / 37)
    assert scores.per_series("a") == pytest.approx((5 + 3 + 4) / 3)
    step, series = scores.standard_errors("a")
    assert series == pytest.approx(1 / math.sqrt(3))
    rest = torch.tensor([10.0, 90.0, 20.0]) - 120 / 37 * torch.tensor([2.0, 30.0, 5.0])
    assert step == pytest.approx(float((rest.square().sum() * 1.5).sqrt() / 37), rel=1e-6)


def test_bits_are_nats_over_log_two():
    scores = HeldOut({"a": torch.tensor([10.0])}, torch.tensor([5]))
    assert scores.to("bits").per_step("a") == pytest.approx(2 / math.log(2))
    assert scores.to("bits").to("nats").per_step("a") == pytest.approx(2)
    assert all(math.isnan(error) for error in scores.standard_errors("a"))


def test_the_table_names_unit_and_both_averages():
    text = str(HeldOut({"bound": torch.tensor([10.0, 90.0])}, torch.tensor([2, 30])).to("bits"))
    assert "in bits per step: 2 series, 32 steps" in text
    assert "all steps / steps" in text
    assert "mean over series" in text
    assert f"{100 / 32 / math.log(2):.4f} +- " in text


def test_the_exact_posterior_makes_all_estimates_the_evidence():
    law, likelihood, ssm, y = problem()
    scores = held_out(law, likelihood, guide=ssm.posterior(y), num_samples=3, num_particles=3, threshold=0)
    assert list(scores.losses) == ["bound", "importance, 3 samples", "particles, 3"]
    for loss in scores.losses.values():
        torch.testing.assert_close(loss, -ssm.log_prob(y), rtol=1e-9, atol=1e-9)
    assert scores.lengths.tolist() == [4, 4]


def test_estimates_from_the_prior_approach_the_evidence_from_above():
    torch.manual_seed(0)
    law, likelihood, ssm, y = problem()
    scores = held_out(law, likelihood, num_samples=20_000, num_particles=5_000)
    exact = -ssm.log_prob(y)
    torch.testing.assert_close(scores.losses["importance, 20000 samples"], exact, rtol=0, atol=0.05)
    torch.testing.assert_close(scores.losses["particles, 5000"], exact, rtol=0, atol=0.05)
    assert (scores.losses["bound"] > exact + 1).all()


def test_lengths_are_those_of_the_series():
    torch.manual_seed(0)
    start = dist.Normal(torch.zeros(2, 1), 1.0).to_event(1)
    law = MarkovPath(lambda z, t, inputs: dist.Normal(0.5 * z, 1.0).to_event(1), start, 3, lengths=torch.tensor([3, 1]))
    likelihood = EmissionLikelihood(lambda z: dist.Normal(z, NOISE), torch.ones(2, 3, 1))
    scores = held_out(law, likelihood, num_samples=20_000, num_particles=20_000)
    assert scores.lengths.tolist() == [3, 1]
    short = -dist.Normal(0.0, math.sqrt(1 + NOISE**2)).log_prob(torch.tensor(1.0))
    for name in ("importance, 20000 samples", "particles, 20000"):
        assert float(scores.losses[name][1]) == pytest.approx(float(short), abs=0.03)
    own = held_out(law, likelihood, num_samples=0, num_particles=5, lengths=torch.tensor([2, 7]))
    assert list(own.losses) == ["particles, 5"]
    assert own.lengths.tolist() == [2, 7]
    assert list(held_out(law, likelihood, num_samples=5, num_particles=0).losses) == ["bound", "importance, 5 samples"]


def test_single_precision_scores_agree():
    torch.manual_seed(0)
    law, likelihood, ssm, y = problem(torch.float32)
    scores = held_out(law, likelihood, guide=ssm.posterior(y), num_samples=50, num_particles=50)
    for loss in scores.losses.values():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, -ssm.log_prob(y), rtol=0, atol=0.3)


def test_records_and_arguments_are_checked():
    lengths = torch.tensor([2, 3])
    with pytest.raises(ValueError, match="`unit` must be one of"):
        HeldOut({}, lengths, unit="dits")
    with pytest.raises(ValueError, match="`unit` must be one of"):
        HeldOut({}, lengths).to("dits")
    with pytest.raises(ValueError, match="`lengths` must hold the positive number of steps"):
        HeldOut({}, torch.tensor([2, 0]))
    with pytest.raises(ValueError, match=r"`losses` must have one number per series, shape \(2,\); 'a' has \(3,\)"):
        HeldOut({"a": torch.zeros(3)}, lengths)
    law, likelihood, _, _ = problem()
    with pytest.raises(ValueError, match="`num_samples` and `num_particles` must be >= 0, not both 0"):
        held_out(law, likelihood, num_samples=0, num_particles=0)
    with pytest.raises(ValueError, match=r"`path` must have batch shape \(B,\) or \(\), received \(3, 2\)"):
        held_out(law.expand((3, 2)), likelihood)
