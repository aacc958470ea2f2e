"""Contraction of fine dynamics: closed forms, the penalty on slow ones, and what it does in training."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro.infer import SVI

from pyro_sde import PathELBO
from pyro_sde.distributions.multiscale_kernels import BurnIn
from pyro_sde.distributions.multiscale_path import MultiScalePath
from pyro_sde.infer.mixing import FinePaths, MixingRegulariser, contraction_rates, mixing_penalty
from pyro_sde.infer.randomised_correction import RandomisedCorrection
from tests.distributions.skipping_problem import (
    LINEAR,
    MATRIX,
    Problem,
    coarse_of,
    entry_law,
    grid_of,
    normal,
    short_windows,
)


def law_of(fine, width=1, dtype=torch.float64):
    grid = grid_of(dtype)
    law = normal(width, dtype=dtype)
    return MultiScalePath(fine, law, coarse_of(grid), short_windows(grid), reentry=None)


def sine(t, b, a):
    return 1.5 * torch.sin(b)


def test_rate_of_a_controlled_law_is_that_of_its_total_drift():
    """Drift 2 (a - b) + 0.7 * 1.5 sin b."""
    law = law_of(LINEAR.controlled(sine))
    path = law.sample((3,))
    rates = contraction_rates(law, path).movedim(0, -1)
    expected = 2 - 0.7 * 1.5 * path[..., :-1, 0].cos()
    active = law.windows.active.expand(rates.shape)
    torch.testing.assert_close(rates[active], expected[active])
    assert not rates[~active].any()


def test_rate_of_a_matrix_is_the_slowest_of_its_symmetric_part():
    law = law_of(MATRIX, 2)
    rates = contraction_rates(law, law.sample()).movedim(0, -1)
    symmetric = torch.tensor([[-1.0, 0.5], [0.5, -3.0]], dtype=torch.float64)  # of [[-1, 0], [1, -3]]
    expected = -torch.linalg.eigvalsh(symmetric)[-1]
    torch.testing.assert_close(rates[law.windows.active], expected.expand(int(law.windows.active.sum())))


def test_paths_of_one_noise_approach_at_the_rate():
    law = law_of(LINEAR)
    noise = torch.randn(law.noise_shape(), dtype=torch.float64)
    first, second = (law.solve(torch.full((2, 1), start).double(), noise) for start in (0.0, 1.0))
    apart = (second - first).abs().squeeze(-1)
    steps, rates = law.grid.steps, contraction_rates(law, first).movedim(0, -1)
    expected = apart[..., :-1] * (1 - rates * steps)
    active = law.windows.active
    torch.testing.assert_close(apart[..., 1:][active], expected[active])


def test_penalty_is_the_mean_square_of_what_lacks():
    law = law_of(LINEAR)
    path = law.sample((4,))
    assert mixing_penalty(law, path, 5.0).shape == (4, 2)
    torch.testing.assert_close(mixing_penalty(law, path, 5.0), torch.full((4, 2), 9.0).double())
    assert not mixing_penalty(law, path, 1.9).any()
    steep = law_of(LINEAR.controlled(sine))
    path = steep.sample()
    rates = (2 - 1.05 * path[..., :-1, 0].cos()).clamp(max=2.5)
    weights = steep.grid.steps * steep.windows.active
    expected = ((2.5 - rates).square() * weights).sum(-1) / weights.sum(-1)
    torch.testing.assert_close(mixing_penalty(steep, path, 2.5), expected)


def test_float32_penalty_keeps_its_dtype():
    law = law_of(LINEAR, dtype=torch.float32)
    value = mixing_penalty(law, law.sample(), 5.0)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, torch.full((2,), 9.0, dtype=torch.float32), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("elbo", [PathELBO(), PathELBO(kl="closed"), RandomisedCorrection(PathELBO(), 1.0)])
def test_regularised_loss_is_the_loss_plus_the_weighted_penalty(elbo):
    problem = Problem(BurnIn(entry_law))
    values = []
    for weight in (0.0, 1.0, 3.0):
        regulariser = MixingRegulariser(elbo, rate=4.0, weight=weight)
        pyro.set_rng_seed(0)
        values.append(float(regulariser(problem.model, problem.guide).detach()))
        expected = (4.0 - (2 - 0.7 * float(problem.net.weight[0, 0].detach()))) ** 2
        assert regulariser.penalty == pytest.approx(expected)
    pyro.set_rng_seed(0)
    loss = getattr(elbo, "differentiable_loss", elbo)
    assert values[0] == pytest.approx(float(loss(problem.model, problem.guide).detach()))
    assert values[1] - values[0] == pytest.approx(expected)
    assert values[2] - values[0] == pytest.approx(3 * expected)


def test_the_laws_that_are_kept_are_those_of_the_guide():
    problem = Problem()
    with FinePaths() as seen:
        PathELBO().loss(problem.model, problem.guide)
    assert list(seen.sites) == ["b"]
    law, path = seen.sites["b"]
    assert hasattr(law.sde, "control")
    assert path.shape[:1] == (2,)


def test_training_makes_a_slow_posterior_mix():
    problem = Problem(BurnIn(entry_law))
    with torch.no_grad():
        problem.net.weight[0, 0] = 2.0  # contracts at 2 - 1.4 = 0.6
    loss = MixingRegulariser(PathELBO(), rate=3.0, weight=5.0)
    svi = SVI(problem.model, problem.guide, pyro.optim.Adam({"lr": 0.1}), loss=loss)
    svi.step()
    before = loss.penalty
    for _ in range(40):
        svi.step()
    assert before == pytest.approx(2.4**2)
    assert math.sqrt(loss.penalty) < 1.2  # twice as fast


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="`rate` must be a number > 0"):
        MixingRegulariser(PathELBO(), rate=0.0, weight=1.0)
    with pytest.raises(ValueError, match="`weight` must be a number >= 0"):
        MixingRegulariser(PathELBO(), rate=1.0, weight=-1.0)
    with pytest.raises(TypeError, match="`elbo` must be a bound"):
        MixingRegulariser(3.0, rate=1.0, weight=1.0)
    law = law_of(LINEAR)
    with pytest.raises(ValueError, match="`rate` must be a number > 0"):
        mixing_penalty(law, law.sample(), -1.0)


def test_a_guide_without_fine_path_is_named():
    def nothing():
        pyro.sample("x", pyro.distributions.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="guide has no MultiScalePath"):
        MixingRegulariser(PathELBO(), rate=1.0, weight=1.0)(nothing, nothing)
