"""The bounded processes against their equations, exact moments and stationary laws."""

from __future__ import annotations

import copy
import math
import pickle

import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn
from torch.testing import assert_close

from pyro_sde.distributions import SDEPath
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.sde.bounded_library import CoxIngersollRoss, LogisticGrowth, WrightFisher, WrightFisherSimplex
from pyro_sde.solvers.splitting import SplitStep
from pyro_sde.testing.statistics import assert_mean, ks_test

F32, F64 = torch.float32, torch.float64
T0, NO_ROWS = torch.zeros(1, dtype=F64), (None,)
X = torch.tensor([[0.2, 0.7], [0.5, 0.05]], dtype=F64)
SHARES = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]], dtype=F64)
MUTATION = torch.tensor([0.6, 0.3, 0.5], dtype=F64)

# name -> process, drift and diffusion by hand
ELEMENTWISE = {
    "square-root": (CoxIngersollRoss(1.5, 0.7, 0.9), lambda x: 1.5 * (0.7 - x), lambda x: 0.9 * math.sqrt(x)),
    "logistic": (LogisticGrowth(1.5, 2.0, 0.6), lambda x: 1.5 * x * (1 - x / 2), lambda x: 0.6 * x),
    "wright-fisher": (
        WrightFisher(0.6, 0.9, 1.3, 0.8),
        lambda x: 0.6 * (1 - x) - 0.9 * x + 1.3 * x * (1 - x),
        lambda x: 0.8 * math.sqrt(x * (1 - x)),
    ),
}


@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", sorted(ELEMENTWISE))
def test_the_equation_is_the_one_in_the_documentation(name, dtype):
    sde, drift, diffusion = ELEMENTWISE[name]
    f, g, _ = sde.coefficients(T0.to(dtype), X.to(dtype), NO_ROWS)
    assert_close(f, torch.tensor([[drift(x) for x in row] for row in X.tolist()], dtype=dtype))
    assert_close(g, torch.tensor([[diffusion(x) for x in row] for row in X.tolist()], dtype=dtype))


def test_alleles_have_the_covariance_of_sampling():
    scale = torch.tensor([[0.5], [2.0]], dtype=F64)
    f, sigma, _ = WrightFisherSimplex(MUTATION, scale).coefficients(T0, SHARES, NO_ROWS)
    expected = torch.diag_embed(SHARES) - SHARES.unsqueeze(-1) * SHARES.unsqueeze(-2)
    assert_close(sigma @ sigma.mT, expected * scale.square().unsqueeze(-1))
    assert_close(f, MUTATION - 1.4 * SHARES)
    zero = torch.zeros(2, dtype=F64)
    assert_close(f.sum(-1), zero)
    assert_close(sigma.sum(-2), torch.zeros(2, 3, dtype=F64))


@pytest.mark.parametrize(
    ("sde", "drift", "diffusion"),
    [
        (CoxIngersollRoss(1.5, 0.7, 0.9).lamperti(), lambda v: (4.2 - 0.81) / (8 * v) - 0.75 * v, 0.45),
        (
            WrightFisher(0.6, 0.9, 1.3, 0.8).lamperti(),
            lambda v: 1.76 / 8 / v.tan() - 2.96 / 8 * v.tan() + 1.3 / 4 * (2 * v).sin(),
            0.4,
        ),
        (LogisticGrowth(1.5, 2.0, 0.6).constrained(), lambda y: 1.5 - 0.18 - 0.75 * y.exp(), 0.6),
        (
            WrightFisher(0.6, 0.9, 1.3, 0.8).constrained(),
            lambda y: (0.6 - 0.32) * (1 + (-y).exp()) - (0.9 - 0.32) * (1 + y.exp()) + 1.3,
            None,
        ),
    ],
)
def test_coordinates_have_the_equations_of_the_documentation(sde, drift, diffusion):
    y = torch.linspace(0.1, 1.4, 7, dtype=F64).unsqueeze(-1)
    f, g, _ = sde.coefficients(T0, y, NO_ROWS)
    assert_close(f, drift(y))
    assert_close(g, 0.8 * 2 * (y / 2).cosh() if diffusion is None else torch.full_like(y, diffusion))


def test_coefficients_are_finite_outside_the_set():
    outside = torch.tensor([[-0.3, 0.0, 1.2]], dtype=F64, requires_grad=True)
    for sde in (CoxIngersollRoss(1.0, 0.5, 0.3), WrightFisher(0.6, 0.9)):
        g = sde.coefficients(T0, outside, NO_ROWS).diffusion
        assert g[0, :2].tolist() == [0.0, 0.0]
        (slope,) = torch.autograd.grad(g.sum(), outside)
        assert bool(slope.isfinite().all())


# --- exact moments ---------------------------------------------------------------------------------------
def test_square_root_moments_are_those_of_the_noncentral_chi_squared_law():
    rate, mean, scale, time, start = 1.3, 0.6, 0.9, 0.7, 0.25
    factor = scale**2 * (1 - math.exp(-rate * time)) / (4 * rate)
    law = stats.ncx2(4 * rate * mean / scale**2, start * math.exp(-rate * time) / factor, scale=factor)
    ours = CoxIngersollRoss(rate, mean, scale).moments(time, start)
    assert_close(torch.stack(ours), torch.tensor([law.mean(), law.var()], dtype=F64), rtol=1e-9, atol=0)


def test_moments_of_frequencies_solve_their_equations():
    process = WrightFisher(0.6, 0.9, 0.0, 0.8)
    time = torch.tensor(0.7, dtype=F64, requires_grad=True)
    mean, variance = process.moments(time, 0.2)
    second = variance + mean.square()
    (mean_slope,) = torch.autograd.grad(mean, time, retain_graph=True)
    (second_slope,) = torch.autograd.grad(second, time)
    assert_close(mean_slope, 0.6 * (1 - mean) - 0.9 * mean)
    assert_close(second_slope, 2 * (0.6 * mean - 1.5 * second) + 0.64 * (mean - second))
    assert_close(torch.stack(process.moments(0.0, 0.2)), torch.tensor([0.2, 0.0], dtype=F64))


def test_moments_tend_to_those_of_the_stationary_law():
    for process in (CoxIngersollRoss(1.3, 0.6, 0.9), WrightFisher(0.6, 0.9, 0.0, 0.8)):
        mean, variance = process.moments(60.0, 0.3)
        law = process.stationary()
        assert_close(torch.stack([mean, variance]), torch.stack([law.mean, law.variance]))
    mean, variance = WrightFisherSimplex(MUTATION, 0.7).moments(60.0, SHARES)
    law = WrightFisherSimplex(MUTATION, 0.7).stationary()
    assert_close(mean[0], law.mean)
    assert_close(variance[1], law.variance)


@pytest.mark.parametrize("name", ["square-root", "logistic", "wright-fisher"])
def test_the_stationary_law_makes_drift_and_diffusion_balance(name):
    """Zero current: f p = (g^2 p)' / 2."""
    sde, drift, diffusion = ELEMENTWISE[name]
    sde = WrightFisher(0.6, 0.9, 0.0, 0.8) if name == "wright-fisher" else sde
    drift = (lambda x: 0.6 * (1 - x) - 0.9 * x) if name == "wright-fisher" else drift
    law = sde.stationary()
    for x in (0.1, 0.4, 0.8):
        at = torch.tensor(x, dtype=F64, requires_grad=True)
        size = sde.diffusion(T0, at).square() * law.log_prob(at).exp()
        (slope,) = torch.autograd.grad(size, at)
        assert_close(0.5 * slope, drift(x) * law.log_prob(at).exp().detach())
    assert diffusion(0.4) > 0


# --- forecasts -------------------------------------------------------------------------------------------
def forecast(sde, start, steps, end, n):
    grid = TimeGrid(torch.linspace(0.0, end, steps + 1, dtype=F64))
    return SDEPath(sde, start, grid, solver=SplitStep()).sample((n,))[:, -1]


def test_forecasts_of_the_square_root_process_have_its_transition_law():
    torch.manual_seed(0)
    rate, mean, scale, time, start = 1.3, 0.6, 0.9, 0.7, 0.25
    factor = scale**2 * (1 - math.exp(-rate * time)) / (4 * rate)
    law = stats.ncx2(4 * rate * mean / scale**2, start * math.exp(-rate * time) / factor, scale=factor)
    x = forecast(CoxIngersollRoss(rate, mean, scale), delta(start), 20, time, 20_000)
    ks_test(x, lambda v: torch.as_tensor(law.cdf(v.numpy()))).require(detects=0.03)


def test_forecasts_keep_stationary_laws():
    torch.manual_seed(1)
    logistic, frequency = LogisticGrowth(1.5, 2.0, 0.6), WrightFisher(0.6, 0.9, 0.0, 0.8)
    for sde in (logistic, frequency):
        law = sde.stationary()
        x = forecast(sde, dist.ExpandedDistribution(law, (1,)).to_event(1), 20, 2.0, 40_000)
        assert_mean(x, law.mean, detects=0.03)
        assert_mean((x - law.mean).square(), law.variance, detects=0.03)


def test_forecasts_of_frequencies_have_their_moments():
    torch.manual_seed(2)
    sde = WrightFisher(0.6, 0.9, 0.0, 0.8)
    x = forecast(sde, delta(0.2), 20, 1.0, 20_000)
    mean, variance = sde.moments(1.0, 0.2)
    assert_mean(x, mean, detects=0.02)
    assert_mean((x - mean).square(), variance, detects=0.01)


def delta(value):
    return dist.Delta(torch.tensor([value], dtype=F64), event_dim=1)


# --- modules and bad input -------------------------------------------------------------------------------
def test_parameters_train_have_one_name_and_survive_copies():
    rate, scale = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(0.3))
    sde = CoxIngersollRoss(rate, torch.tensor([0.5, 0.7]), scale)
    assert len(sde.state_dict()) == len(list(sde.parameters())) == 2
    assert sde.double().drift.mean.dtype == F64
    for other in (copy.deepcopy(sde), pickle.loads(pickle.dumps(sde))):
        assert torch.equal(other.coefficients(T0, X, NO_ROWS).drift, sde.coefficients(T0, X, NO_ROWS).drift)
    assert sde.moments(1.0, torch.tensor(0.4, dtype=F64))[0].requires_grad


def test_laws_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"`rate` must be above scale\*\*2 / 2 .* ratio 2 rate / scale\*\*2 of 0.5"):
        LogisticGrowth(0.25, 1.0, 1.0).stationary()
    with pytest.raises(ValueError, match=r"`moments` has a closed form only with selection=0 and gain \+ loss > 0"):
        WrightFisher(0.6, 0.9, 0.1).moments(1.0, 0.5)
    with pytest.raises(ValueError, match=r"`moments` has a closed form only with selection=0 and gain \+ loss > 0"):
        WrightFisher(0.0, 0.0).moments(1.0, 0.5)
    with pytest.raises(ValueError, match=r"`stationary` is a Beta law only with selection=0"):
        WrightFisher(0.6, 0.9, 0.1).stationary()
