"""The randomised correction: unbiased, on common noise, and its messages."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_sde import PathELBO
from pyro_sde.distributions.multiscale_kernels import BurnIn
from pyro_sde.distributions.multiscale_path import MultiScalePath
from pyro_sde.infer.randomised_correction import GapwiseCorrection, RandomisedCorrection, SimulatedGaps
from pyro_sde.ops.windows import Windows
from pyro_sde.testing.statistics import z_test
from tests.distributions.skipping_problem import (
    LINEAR,
    Problem,
    coarse_of,
    entry_law,
    grid_of,
    normal,
    short_windows,
)


def test_simulated_gaps_replaces_every_site():
    problem = Problem()
    with SimulatedGaps():
        trace = poutine.trace(problem.guide).get_trace()
    assert trace.nodes["b"]["value"].shape == (2, 41, 1)
    assert trace.nodes["b"]["fn"].batch_shape == (2,)


def test_randomised_correction_is_skip_plus_the_weighted_difference():
    problem = Problem(BurnIn(entry_law))
    elbo = PathELBO()
    values = []
    for probability in (1e-12, 1.0, 0.5):
        correction = RandomisedCorrection(elbo, probability)
        for seed in range(30):  # until a draw with B = 1, or the first for the tiny probability
            pyro.set_rng_seed(seed)
            value = float(correction(problem.model, problem.guide).detach())
            if probability < 0.1 or correction.difference is not None:
                break
        values.append((seed, value, correction.difference))
    assert values[0][2] is None
    seed, full, difference = values[1]
    assert seed == 0
    assert full == pytest.approx(values[0][1] - difference)  # a loss is the negative bound
    half_seed, half, half_difference = values[2]
    pyro.set_rng_seed(half_seed)
    skip = float(RandomisedCorrection(elbo, 1e-12)(problem.model, problem.guide).detach())
    assert half == pytest.approx(skip - half_difference / 0.5)


def test_randomised_correction_compares_on_common_noise():
    """Windows over everything: nothing is skipped, so the difference is 0 for every path and not in the mean only."""
    problem = Problem()
    problem.windows = Windows.around(problem.grid, before=10.0, after=10.0, fine_steps=2)
    correction = RandomisedCorrection(PathELBO(), 1.0)
    correction(problem.model, problem.guide)
    assert correction.difference == pytest.approx(0.0, abs=1e-9)
    after = torch.rand(())
    pyro.set_rng_seed(7)
    correction(problem.model, problem.guide)
    first = torch.rand(())
    pyro.set_rng_seed(7)
    torch.rand(())
    PathELBO().loss(problem.model, problem.guide)
    assert torch.equal(first, torch.rand(()))
    assert not torch.equal(first, after)


def test_randomised_correction_is_unbiased():
    """A narrow entry far off: the skipped bound is biased, the corrected one is not. Gradients likewise."""
    problem = Problem(BurnIn(lambda a: dist.Normal(a + 2.0, 0.2).to_event(1)))
    elbo = PathELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    correction = RandomisedCorrection(elbo, 0.5)
    full, skip, mixed = [], [], []
    for seed in range(140):
        pyro.set_rng_seed(seed)
        corrected = correction(problem.model, problem.guide)
        pyro.set_rng_seed(seed + 10_000)
        skip.append(elbo.loss(problem.model, problem.guide))
        with SimulatedGaps():
            reference = elbo.differentiable_loss(problem.model, problem.guide)
        entries = []
        for loss in (corrected, reference):
            problem.net.zero_grad()
            loss.backward()
            entries.append(
                torch.cat([loss.detach().reshape(1), *(p.grad.reshape(-1) for p in problem.net.parameters())])
            )
        mixed.append(entries[0])
        full.append(entries[1])
    z_test(torch.stack(mixed) - torch.stack(full), 0.0).require()
    assert z_test(torch.tensor(skip) - torch.stack(full)[:, 0], 0.0).p_value < 1e-6


def far_off(a):
    """A narrow entry law in the wrong place: every gap biases the bound in one direction."""
    return dist.Normal(a[..., -1:] + 2.0, 0.2).to_event(1)


def test_the_first_gaps_alone_can_be_simulated():
    problem = Problem(BurnIn(entry_law))
    rows = []
    for fills in range(4):
        with SimulatedGaps(fills) as counted:
            rows.append(poutine.trace(problem.guide).get_trace().nodes["b"]["value"].shape[-2])
    assert rows == [6, 14, 41, 41]  # windows; what is before the first of them; all of it
    assert counted.num_gaps == 2


def test_gapwise_correction_adds_the_terms_of_the_gaps_that_were_drawn():
    problem = Problem(BurnIn(far_off))
    elbo, half = PathELBO(), GapwiseCorrection(PathELBO(), 0.5)
    seen = set()
    for seed in range(12):
        losses = []
        for fills in range(3):
            pyro.set_rng_seed(seed)
            with SimulatedGaps(fills):
                losses.append(float(elbo.differentiable_loss(problem.model, problem.guide).detach()))
        pyro.set_rng_seed(seed)
        value = float(half(problem.model, problem.guide).detach())
        expected = losses[0] + sum((losses[gap] - losses[gap - 1]) / 0.5 for gap in half.differences)
        assert value == pytest.approx(expected)
        assert list(half.differences.values()) == pytest.approx([losses[j - 1] - losses[j] for j in half.differences])
        seen.add(tuple(half.differences))
        pyro.set_rng_seed(seed)
        whole = float(GapwiseCorrection(elbo, 1.0)(problem.model, problem.guide).detach())
        assert whole == pytest.approx(losses[2])
    assert seen == {(), (1,), (2,), (1, 2)}  # independent coins: one for all gaps would leave out two of the four


def test_gapwise_correction_leaves_the_generator_as_one_evaluation_and_the_coins_do():
    problem = Problem(BurnIn(far_off))
    correction = GapwiseCorrection(PathELBO(), 1.0)
    pyro.set_rng_seed(3)
    correction(problem.model, problem.guide)
    after = torch.rand(())
    pyro.set_rng_seed(3)
    PathELBO().differentiable_loss(problem.model, problem.guide)
    torch.rand(2)
    assert torch.equal(after, torch.rand(()))


def gradient_of(problem, loss):
    problem.net.zero_grad()
    loss.backward()
    return torch.cat([loss.detach().reshape(1), *(p.grad.reshape(-1) for p in problem.net.parameters())])


def test_gapwise_correction_is_unbiased():
    problem = Problem(BurnIn(far_off))
    elbo = PathELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    correction = GapwiseCorrection(elbo, 0.5)
    full, mixed = [], []
    for seed in range(140):
        pyro.set_rng_seed(seed)
        mixed.append(gradient_of(problem, correction(problem.model, problem.guide)))
        pyro.set_rng_seed(seed + 10_000)
        with SimulatedGaps():
            full.append(gradient_of(problem, elbo.differentiable_loss(problem.model, problem.guide)))
    z_test(torch.stack(mixed) - torch.stack(full), 0.0).require()


def test_a_coin_for_every_gap_has_less_variance_where_gaps_bias_in_one_direction():
    """Extra variances (1/p - 1) E sum D_j^2 and (1/p - 1) E (sum D_j)^2, from the terms of every gap."""
    problem = Problem(BurnIn(far_off))
    elbo = PathELBO(num_particles=30, vectorize_particles=True, max_plate_nesting=1)
    correction = GapwiseCorrection(elbo, 1.0)
    terms = []
    for seed in range(100):
        pyro.set_rng_seed(seed)
        correction(problem.model, problem.guide)
        terms.append([correction.differences[1], correction.differences[2]])
    terms = torch.tensor(terms)
    gain = terms.sum(-1).square() - terms.square().sum(-1)
    assert z_test(gain, 0.0).p_value < 1e-5
    assert float(gain.mean()) > 0.3 * float(terms.sum(-1).square().mean())


@pytest.mark.parametrize("correction", [RandomisedCorrection, GapwiseCorrection])
@pytest.mark.parametrize("probability", [0.0, 1.5, -1.0])
def test_a_wrong_probability_is_named(correction, probability):
    with pytest.raises(ValueError, match="0 < probability <= 1"):
        correction(PathELBO(), probability)


def test_a_wrapped_law_cannot_simulate_its_gaps():
    grid = grid_of()
    law = MultiScalePath(LINEAR, normal(), coarse_of(grid), short_windows(grid))
    with SimulatedGaps(), pytest.raises(ValueError, match="site 'b' has a MultiScalePath inside"):
        pyro.sample("b", law.mask(False))


@pytest.mark.parametrize("correction", [RandomisedCorrection, GapwiseCorrection])
def test_a_correction_of_no_bound_is_named(correction):
    with pytest.raises(TypeError, match="`differentiable_loss`"):
        correction(3.0, 0.5)
