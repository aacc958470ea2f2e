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
from pyro_sde.infer.randomised_correction import RandomisedCorrection, SimulatedGaps
from pyro_sde.ops.windows import Windows
from pyro_sde.testing.statistics import z_test
from tests.distributions.test_multiscale_path import (
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


@pytest.mark.parametrize("probability", [0.0, 1.5, -1.0])
def test_a_wrong_probability_is_named(probability):
    with pytest.raises(ValueError, match="0 < probability <= 1"):
        RandomisedCorrection(PathELBO(), probability)


def test_a_wrapped_law_cannot_simulate_its_gaps():
    grid = grid_of()
    law = MultiScalePath(LINEAR, normal(), coarse_of(grid), short_windows(grid))
    with SimulatedGaps(), pytest.raises(ValueError, match="site 'b' has a MultiScalePath inside"):
        pyro.sample("b", law.mask(False))


def test_a_correction_of_no_bound_is_named():
    with pytest.raises(TypeError, match="`differentiable_loss`"):
        RandomisedCorrection(3.0, 0.5)
