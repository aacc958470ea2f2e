"""The scalar example: b ~ N(0, 1), y | b ~ N(b, 1/2), r(a | b) = N(c b, d), q(a) = N(m, s), q(b | a) = N(k a + l, v).

Evidence -1.3917, bound with r -1.6908; without r Pyro reports -0.67 and, with a wide q(a), +3.94.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_sde import SDE, PathELBO, SDEPath, TimeGrid
from pyro_sde.distributions.auxiliary import ReverseLaw, ReversePath, auxiliary
from pyro_sde.testing import check_distribution
from pyro_sde.testing.statistics import z_test

Y = torch.tensor(0.9, dtype=torch.float64)
NOISE = 0.5**0.5
C, D, M, S, K, L, V = 0.8, 0.4, 0.5, 0.7, 0.6, 0.1, 0.5
EVIDENCE = -0.5 * math.log(2 * math.pi * 1.5) - 0.81 / 3


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def model():
    b = pyro.sample("b", dist.Normal(number(0.0), 1.0))
    pyro.sample("y", dist.Normal(b, NOISE), obs=Y)


def guide(k=K, l=L, v=V, s=S):  # noqa: E741
    a = pyro.sample("a", dist.Normal(number(M), s))
    pyro.sample("b", dist.Normal(k * a + l, v))


def reverse(b):
    return dist.Normal(C * b, D)


EXTENDED = auxiliary(model, "a", reverse, given=["b"])


def entropy(scale):
    return 0.5 * math.log(2 * math.pi * math.e * scale**2)


def expected_log_normal(mean, variance, scale):
    """E log N(x; 0, scale) for x of this mean and variance."""
    return -0.5 * math.log(2 * math.pi * scale**2) - 0.5 * (mean**2 + variance) / scale**2


def bounds(c=C, d=D, k=K, l=L, v=V, s=S):  # noqa: E741
    """Auxiliary bound, and the bound of the marginal q(b), in closed form."""
    mean_b, var_b = k * M + l, k * k * s * s + v * v
    fit = expected_log_normal(float(Y) - mean_b, var_b, NOISE) + expected_log_normal(mean_b, var_b, 1.0)
    var_rest = s * s + c * c * var_b - 2 * c * k * s * s
    log_r = expected_log_normal(M - c * mean_b, var_rest, d)
    return fit + log_r + entropy(s) + entropy(v), fit + entropy(math.sqrt(var_b))


def losses(elbo, model, guide, count=400):
    pyro.set_rng_seed(0)
    return torch.tensor([-elbo.loss(model, guide) for _ in range(count)])


@pytest.mark.filterwarnings("ignore:Failed to verify mean field restriction")  # Pyro's, on the order of sites
@pytest.mark.parametrize("elbo", [Trace_ELBO, PathELBO, TraceMeanField_ELBO])
def test_the_extended_model_has_the_bound_of_theory(elbo):
    value, marginal = bounds()
    assert value == pytest.approx(-1.6908, abs=1e-4)
    assert value <= marginal <= EVIDENCE
    particles = elbo(num_particles=50, vectorize_particles=True, max_plate_nesting=0)
    z_test(losses(particles, EXTENDED, guide), value).require(0.1)


def test_it_is_a_bound_where_pyro_alone_is_above_the_evidence():
    """q(b) is the exact posterior and q(a) junk: the entropy of q(a) must not count."""
    wide = {"k": 0.0, "l": 0.6, "v": 3**-0.5, "s": 50.0}
    value, marginal = bounds(**wide)
    assert marginal == pytest.approx(EVIDENCE, abs=1e-6)
    assert value < EVIDENCE

    def junk():
        a = pyro.sample("a", dist.Normal(number(M), 50.0), infer={"is_auxiliary": True})
        pyro.sample("b", dist.Normal(0.0 * a + 0.6, 3**-0.5))

    assert float(losses(Trace_ELBO(), model, junk, 20).mean()) > 3  # what the reverse model prevents
    assert float(losses(Trace_ELBO(), EXTENDED, lambda: guide(**wide), 20).mean()) < EVIDENCE


def test_the_optimal_reverse_model_closes_the_gap_to_the_marginal():
    var_b = K * K * S * S + V * V
    slope = K * S * S / var_b
    spread = math.sqrt(S * S - slope * K * S * S)
    mean_b = K * M + L
    best = auxiliary(model, "a", lambda b: dist.Normal(M + slope * (b - mean_b), spread), given="b")
    _, marginal = bounds()
    z_test(losses(Trace_ELBO(num_particles=50, vectorize_particles=True, max_plate_nesting=0), best, guide), marginal)\
        .require(0.1)  # fmt: skip
    for slope_off, spread_off in [(0.2, 1.0), (0.0, 1.3), (-0.3, 0.8)]:
        assert bounds(c=slope + slope_off, d=spread * spread_off)[0] < marginal


def test_importance_weights_have_the_evidence_as_their_mean():
    pyro.set_rng_seed(1)
    weights = []
    for _ in range(3000):
        trace = poutine.trace(guide).get_trace()
        replayed = poutine.trace(poutine.replay(EXTENDED, trace=trace)).get_trace()
        weights.append((replayed.log_prob_sum() - trace.log_prob_sum()).exp())
    z_test(torch.stack(weights), math.exp(EVIDENCE)).require(0.06)


def test_renyi_bounds_lie_between_the_elbo_and_the_evidence():
    value, _ = bounds()
    many = RenyiELBO(alpha=0, num_particles=100, vectorize_particles=True, max_plate_nesting=0)
    mean = float(losses(many, EXTENDED, guide, 100).mean())
    assert value + 0.1 < mean < EVIDENCE + 0.02


def test_predictive_and_forward_runs_leave_the_site_out():
    assert "a" not in poutine.trace(EXTENDED).get_trace().nodes
    assert "a" not in Predictive(EXTENDED, num_samples=3)()
    samples = Predictive(EXTENDED, guide=guide, num_samples=3)()
    assert "a" not in samples
    assert "a" in poutine.trace(poutine.condition(EXTENDED, {"a": Y})).get_trace().nodes


def test_the_site_stands_in_the_plates_of_the_last_given_site():
    def plated():
        with pyro.plate("series", 3):
            b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0))
        pyro.sample("c", dist.Normal(b.sum(), 1.0))

    def plated_guide():
        with pyro.plate("series", 3):
            a = pyro.sample("a", dist.Normal(torch.zeros(3), 1.0))
            pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("c", dist.Normal(0.0, 1.0))

    extended = auxiliary(plated, "a", lambda b: dist.Normal(b, 1.0), given=["b"])
    trace = poutine.trace(poutine.replay(extended, trace=poutine.trace(plated_guide).get_trace())).get_trace()
    assert [frame.name for frame in trace.nodes["a"]["cond_indep_stack"]] == ["series"]
    assert math.isfinite(Trace_ELBO().loss(extended, plated_guide))


# ------------------------------------------------------------------------------------------------ paths
GRID = TimeGrid(torch.tensor([0.0, 0.4], dtype=torch.float64), max_step=0.1)
START = dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0).to_event(1)


def unit(t, z):
    return torch.ones_like(z)


def decay(t, z):
    return -z


class Pull(nn.Module):
    """Drift towards rows that it is given: here the *next* states of b, so that the reverse model looks ahead."""

    def __init__(self, rate):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=torch.float64))

    def forward(self, t, z, inputs):
        return self.rate * (inputs - z)


REVERSE, FINE = Pull(0.7), Pull(2.0)


def path_model():
    b = pyro.sample("b", SDEPath(SDE(decay, unit), START, GRID))
    pyro.sample("y", dist.Normal(b[..., -1, 0], 0.5), obs=Y)


def path_guide():
    a = pyro.sample("a", SDEPath(SDE(decay, unit), START, GRID))
    pyro.sample("b", SDEPath(SDE(FINE, unit), START, GRID, inputs=a[..., :-1, :]))


def ahead(b):
    return SDEPath(SDE(REVERSE, unit), START, GRID, inputs=b[..., 1:, :])


PATHS = auxiliary(path_model, "a", ahead, given=["b"])


def path_evidence():
    """Euler chain of b: variance at the last point."""
    variance = 1.0
    for _ in range(4):
        variance = 0.81 * variance + 0.1
    return float(dist.Normal(0.0, math.sqrt(variance + 0.25)).log_prob(Y))


def test_path_bounds_are_valid_for_a_reverse_model_that_looks_ahead():
    pyro.set_rng_seed(2)
    weights = []
    for _ in range(1500):
        guide_trace = poutine.trace(path_guide).get_trace()
        trace = poutine.trace(poutine.replay(PATHS, trace=guide_trace)).get_trace()
        weights.append(trace.log_prob_sum() - guide_trace.log_prob_sum())
    log_weights = torch.stack(weights).detach()
    z_test(log_weights.exp(), math.exp(path_evidence())).require(0.2)
    assert float(log_weights.mean()) < path_evidence()
    for kl in ("stl", "full"):
        particles = PathELBO(kl=kl, num_particles=10, vectorize_particles=True, max_plate_nesting=0)
        groups = log_weights.reshape(150, 10).mean(-1)
        z_test(losses(particles, PATHS, path_guide, 150) - groups, 0.0).require(1.0)


def test_closed_form_divergence_of_a_reverse_path_is_refused():
    with pytest.raises(ValueError, match="site 'a'.*stochastic integral of the log-ratio"):
        PathELBO(kl="closed").loss(PATHS, path_guide)


@pytest.mark.filterwarnings("ignore:Failed to verify mean field restriction")
def test_mean_field_bound_takes_the_log_ratio():
    pyro.set_rng_seed(3)
    values = losses(TraceMeanField_ELBO(), auxiliary(path_model, "a", ahead, given=["b"]), path_guide, 300)
    reference = losses(Trace_ELBO(), PATHS, path_guide, 300)
    z_test(values - reference, 0.0).require(1.0)


def test_a_reverse_path_with_another_diffusion_is_infinitely_far():
    def double(t, z):
        return 2 * torch.ones_like(z)

    other = auxiliary(path_model, "a", lambda b: SDEPath(SDE(decay, double), START, GRID), given=["b"])
    with pytest.raises(ValueError, match="different diffusions"):
        PathELBO().loss(other, path_guide)


def test_gradients_reach_the_reverse_model():
    REVERSE.zero_grad()
    PathELBO().differentiable_loss(PATHS, path_guide).backward()
    assert float(REVERSE.rate.grad.abs()) > 0


def test_wrapped_laws_are_those_inside():
    law = ReverseLaw(dist.Normal(torch.zeros(2), 1.0))
    wide = law.expand((3, 2))
    assert wide.rsample((4,)).shape == (4, 3, 2)
    assert wide.sample().shape == (3, 2)
    torch.testing.assert_close(law.log_prob(torch.ones(2)), law.law.log_prob(torch.ones(2)))
    assert law.support is law.law.support
    inner = SDEPath(SDE(decay, unit), START, GRID)
    path = ReversePath(inner)
    value = path.sample((3,))
    torch.testing.assert_close(path.log_prob(value), inner.log_prob(value))
    assert path.expand((2,)).sample().shape == (2, 5, 1)
    assert path.grid is GRID
    assert path.sde is inner.sde


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_wrapped_path_keeps_the_contract_of_pyro(dtype):
    grid = TimeGrid(torch.linspace(0.0, 1.0, 6, dtype=dtype))
    start = dist.Normal(torch.zeros(3, 2, dtype=dtype), 1.0).to_event(1)
    check_distribution(ReversePath(SDEPath(SDE(decay, unit), start, grid)))


def test_float32_extended_model_keeps_its_dtype():
    def single():
        b = pyro.sample("b", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("y", dist.Normal(b, NOISE), obs=Y.float())

    def single_guide():
        a = pyro.sample("a", dist.Normal(torch.tensor(M), S))
        pyro.sample("b", dist.Normal(K * a + L, V))

    extended = auxiliary(single, "a", reverse, given=["b"])
    loss = Trace_ELBO(num_particles=2000, vectorize_particles=True, max_plate_nesting=0).loss(extended, single_guide)
    assert -loss == pytest.approx(bounds()[0], abs=0.15)


# ------------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize("arguments", [{}, {"reverse": reverse}, {"given": ["b"]}])
def test_an_auxiliary_site_without_reverse_model_is_named(arguments):
    with pytest.raises(ValueError, match="auxiliary site 'a' has no reverse model"):
        auxiliary(model, "a", **arguments)


def test_a_bare_auxiliary_path_raises_with_advice():
    def bare():
        a = pyro.sample("a", SDEPath(SDE(decay, unit), START, GRID), infer={"is_auxiliary": True})
        pyro.sample("b", SDEPath(SDE(FINE, unit), START, GRID, inputs=a[..., :-1, :]))

    with pytest.raises(ValueError, match="site 'a' is an auxiliary path.*Add a reverse model"):
        PathELBO().loss(path_model, bare)


def test_wrong_functions_are_named():
    with pytest.raises(TypeError, match="`reverse` must be a function"):
        auxiliary(model, "a", 3.0, given=["b"])
    with pytest.raises(TypeError, match="`model` must be a function"):
        auxiliary(3.0, "a", reverse, given=["b"])
    with pytest.raises(TypeError, match="`reverse` must return a distribution"):
        Trace_ELBO().loss(auxiliary(model, "a", lambda b: b, given=["b"]), guide)


def test_a_site_that_the_model_lacks_is_named():
    with pytest.raises(ValueError, match=r"has not sampled \['z'\]"):
        Trace_ELBO().loss(auxiliary(model, "a", lambda b, z: reverse(b), given=["b", "z"]), guide)


def test_a_variable_of_the_model_is_not_auxiliary():
    with pytest.raises(ValueError, match="already, so it is not auxiliary"):
        auxiliary(model, "b", reverse, given=["y"])()
