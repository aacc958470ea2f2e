import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_sde import SDEPath, TimeGrid
from pyro_sde.distributions.gaussian_path import GaussianPath
from pyro_sde.distributions.linear_gaussian_ssm import LinearGaussianSSM
from pyro_sde.distributions.markov_path import MarkovPath
from pyro_sde.infer.emissions import EmissionLikelihood
from pyro_sde.infer.particle_filter import particle_filter
from pyro_sde.ops.brownian import VirtualBrownianTree
from pyro_sde.ops.resampling import RESAMPLING
from pyro_sde.sde import OrnsteinUhlenbeck
from pyro_sde.sde.base import SDE
from pyro_sde.solvers.heun import Heun
from pyro_sde.solvers.local_linearisation import LocalLinearisation
from pyro_sde.solvers.milstein import Milstein
from pyro_sde.solvers.reversible_heun import ReversibleHeun
from pyro_sde.testing.statistics import z_test

TIMES = torch.tensor([0.0, 0.3, 1.0, 1.4], dtype=torch.float64)
NOISE = 0.4


class Linear:
    """An OU path with Euler steps, Gaussian observations, and the exact answers; R equal copies of the series."""

    def __init__(self, batch=(), rate=1.0, scale=0.8, max_step=0.25, dtype=torch.float64):
        self.grid = TimeGrid(TIMES.to(dtype), max_step=max_step)
        self.initial = dist.Normal(torch.zeros(*batch, 1, dtype=dtype), 1.0).to_event(1)
        self.sde = OrnsteinUhlenbeck(rate, scale)
        self.law = SDEPath(self.sde, self.initial, self.grid)
        self.gaussian = GaussianPath(self.sde, self.initial, self.grid, discretisation="euler")
        self.y = torch.tensor([[0.5], [1.1], [-0.3], [0.4]], dtype=dtype)
        self.likelihood = EmissionLikelihood(lambda z: dist.Normal(z, NOISE), self.y)
        self.exact = LinearGaussianSSM(self.gaussian, torch.ones(1, 1, dtype=dtype), NOISE)
        self.evidence = self.exact.log_prob(self.y)
        self.posterior = self.exact.posterior(self.y)


def ratio(problem, **options):
    """Estimated over exact evidence of every copy."""
    options = {"num_particles": 20, **options}
    return (particle_filter(problem.law, problem.likelihood, **options).log_evidence - problem.evidence).exp()


def markov(problem, lengths=None):
    """The Euler chain on the observation times as a Markov path, and as an SDE path."""
    times = TIMES

    def transition(z, t, inputs):
        step = (times[t.long()] - times[t.long() - 1]).to(z)
        return dist.Normal(z - z * step, 0.8 * step.sqrt()).to_event(1)

    return MarkovPath(transition, problem.initial, 4, lengths=lengths)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("method", RESAMPLING)
def test_evidence_is_unbiased(method, threshold):
    torch.manual_seed(0)
    copies = Linear(batch=(20_000,))
    z_test(ratio(copies, resampling=method, threshold=threshold), 1.0).require(detects=0.05)


def test_evidence_is_unbiased_with_a_guide_that_is_wrong():
    torch.manual_seed(0)
    copies = Linear(batch=(20_000,))
    start = dist.Normal(0.4 * torch.ones(20_000, 1), 0.8).to_event(1)
    guide = SDEPath(copies.sde.controlled(lambda t, z: 0.6 - 0.5 * z), start, copies.grid)
    z_test(ratio(copies, guide=guide), 1.0).require(detects=0.05)
    z_test(ratio(copies, guide=guide, num_particles=2), 1.0).require(detects=0.2)


def test_variance_falls_as_one_over_the_number_of_particles():
    torch.manual_seed(0)
    copies = Linear(batch=(2_000,))
    sizes = (50, 200, 800)
    scaled = [size * float(ratio(copies, num_particles=size).var()) for size in sizes]
    # the relative error of a variance of 2000 draws is about 4 %, more with heavy tails
    assert scaled[1] == pytest.approx(scaled[0], rel=0.25)
    assert scaled[2] == pytest.approx(scaled[1], rel=0.25)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("law", ["law", "gaussian"])
def test_the_exact_posterior_as_a_guide_gives_the_evidence_without_variance(law, threshold):
    torch.manual_seed(0)
    problem = Linear(batch=(3,))
    filtered = particle_filter(
        getattr(problem, law), problem.likelihood, 5, guide=problem.posterior, threshold=threshold
    )
    # a weight is evidence only when all that is ahead has been seen, so only the whole path is without variance
    if threshold == 0:
        torch.testing.assert_close(filtered.log_evidence, problem.evidence, rtol=1e-10, atol=1e-10)
    else:
        z_test(_many(problem, law, threshold), 1.0).require()


def _many(problem, law, threshold):
    copies = Linear(batch=(2_000,))
    path = getattr(copies, law)
    filtered = particle_filter(path, copies.likelihood, 5, guide=copies.posterior, threshold=threshold)
    return (filtered.log_evidence - copies.evidence).exp()


def test_without_resampling_it_is_importance_sampling():
    problem = Linear(batch=(3,))
    torch.manual_seed(1)
    filtered = particle_filter(problem.law, problem.likelihood, 50, threshold=0, keep="all")
    path = filtered.states
    weights = problem.likelihood.along(problem.grid.observed(path)).sum(-1)
    torch.testing.assert_close(filtered.log_evidence, weights.logsumexp(0) - math.log(50))
    torch.testing.assert_close(filtered.log_weights[..., -1], weights.log_softmax(0))
    assert torch.equal(filtered.ancestors[:, 0], torch.arange(50).unsqueeze(-1).expand(50, path.shape[2] - 1))


def test_filtering_moments_and_increments_are_those_of_kalman():
    torch.manual_seed(0)
    problem = Linear(batch=(2,))
    filtered = particle_filter(problem.law, problem.likelihood, 40_000, keep="all")
    exact = problem.exact.filter(problem.y)
    torch.testing.assert_close(filtered.mean(), exact.mean.expand(2, -1, -1), rtol=0, atol=0.02)
    torch.testing.assert_close(filtered.variance(), exact.covariance[..., 0].expand(2, -1, -1), rtol=0, atol=0.02)
    torch.testing.assert_close(filtered.increments.sum(-1), filtered.log_evidence)
    first = dist.Normal(0.0, math.sqrt(1 + NOISE**2)).log_prob(problem.y[0, 0])
    torch.testing.assert_close(filtered.increments[:, 0], first.expand(2), rtol=0, atol=0.03)
    assert filtered.sizes.shape == (2, 4)
    assert ((filtered.sizes > 1) & (filtered.sizes <= 40_000)).all()


def test_ancestors_are_where_states_come_from():
    torch.manual_seed(0)
    grid = TimeGrid(torch.arange(4.0))
    still = SDE(lambda t, z: torch.zeros_like(z), lambda t, z: torch.zeros_like(z))
    law = SDEPath(still, dist.Normal(torch.zeros(3, 1), 1.0).to_event(1), grid)
    filtered = particle_filter(
        law, EmissionLikelihood(lambda z: dist.Normal(z, 0.3), torch.ones(4, 1)), 64, threshold=1, keep="all"
    )
    for k in range(3):
        parents = filtered.states[:, :, k, 0].gather(0, filtered.ancestors[..., k])
        assert torch.equal(parents, filtered.states[:, :, k + 1, 0])
    assert not torch.equal(filtered.ancestors[..., 0], filtered.ancestors[:, :1, 0].expand(-1, 3))


def test_a_markov_path_is_the_same_chain():
    torch.manual_seed(0)
    copies = Linear(batch=(4_000,), max_step=None)
    found = particle_filter(markov(copies), copies.likelihood, 30)
    z_test((found.log_evidence - copies.evidence).exp(), 1.0).require(detects=0.1)
    problem = Linear(max_step=None)
    torch.manual_seed(3)
    a = particle_filter(problem.law, problem.likelihood, 30, guide=markov(problem))
    torch.manual_seed(3)
    b = particle_filter(markov(problem), problem.likelihood, 30)
    torch.testing.assert_close(a.log_evidence, b.log_evidence, rtol=1e-10, atol=1e-10)


def test_series_of_different_lengths_are_those_alone():
    torch.manual_seed(0)
    lengths = torch.tensor([4, 2, 3]).repeat(3_000)
    copies = Linear(batch=(9_000,), max_step=None)
    found = particle_filter(markov(copies, lengths), copies.likelihood, 30)
    exact = [
        LinearGaussianSSM(
            GaussianPath(copies.sde, Linear().initial, TimeGrid(TIMES[:n]), discretisation="euler"),
            torch.ones(1, 1, dtype=torch.float64),
            NOISE,
        ).log_prob(copies.y[:n])
        for n in (4, 2, 3)
    ]
    ratios = (found.log_evidence.reshape(-1, 3) - torch.stack(exact)).exp()
    z_test(ratios, 1.0).require(detects=0.1)
    assert (found.increments[1, 2:] == 0).all()
    assert (found.sizes[1, 2:] == 30).all()
    states = particle_filter(markov(copies, lengths), copies.likelihood, 3, threshold=0, keep="all").states
    assert torch.equal(states[:, 1, 1], states[:, 1, 2])
    assert not torch.equal(states[:, 1, 0], states[:, 1, 1])


def test_series_on_different_grids_are_those_alone():
    torch.manual_seed(0)
    times = torch.tensor([[0.0, 0.3, 1.0, 1.4], [0.0, 0.7, 0.9, 0.9], [0.0, 0.1, 0.2, 2.0]])
    grid = TimeGrid(times, max_step=0.3).expand((3_000, 3))
    start = dist.Normal(torch.zeros(1), 1.0).to_event(1)
    sde = OrnsteinUhlenbeck(1.0, 0.8)
    y = torch.randn(3, 4, 1)
    y[1, 3] = torch.nan  # padding
    mask = TimeGrid(times).mask
    likelihood = EmissionLikelihood(lambda z: dist.Normal(z, NOISE), y, mask)
    single = TimeGrid(times, max_step=0.3)
    exact = LinearGaussianSSM(
        GaussianPath(sde, start, single, discretisation="euler"), torch.ones(1, 1), NOISE, mask=mask
    ).log_prob(y)
    for law in (SDEPath(sde, start, grid), GaussianPath(sde, start, grid, discretisation="euler")):
        found = particle_filter(law, likelihood, 30, keep="all")
        z_test((found.log_evidence - exact).exp(), 1.0).require(detects=0.2)
        assert (found.increments[:, 1, 3] == 0).all()
        ended = grid.times[0, 1] == 0.9
        rest = found.states[:, 0, 1, ended][:, 1:]  # after the last resampling the path rests in the padding
        assert rest.shape[1] > 1
        assert torch.equal(rest, rest[:, :1].expand_as(rest))


def test_a_guide_on_different_grids_keeps_the_weights_of_series_that_wait():
    torch.manual_seed(0)
    grid = TimeGrid(torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.25, 0.75]]), max_step=0.25)
    start = dist.Normal(torch.zeros(1), 1.0).to_event(1)
    sde = OrnsteinUhlenbeck(1.0, 0.8)
    y = torch.tensor([[[0.8], [1.0], [0.5]], [[-0.8], [0.3], [0.9]]])
    exact = LinearGaussianSSM(GaussianPath(sde, start, grid, discretisation="euler"), torch.ones(1, 1), NOISE).log_prob(
        y
    )
    wide = grid.expand((6_000, 2))
    guide = SDEPath(sde.controlled(lambda t, z: 1.0 - 0.8 * z), start, wide)
    likelihood = EmissionLikelihood(lambda z: dist.Normal(z, NOISE), y)
    found = particle_filter(SDEPath(sde, start, wide), likelihood, 15, guide=guide, threshold=1)
    z_test((found.log_evidence - exact).exp(), 1.0).require(detects=0.15)


def test_inputs_of_every_step_reach_the_particles():
    torch.manual_seed(0)
    grid = TimeGrid(torch.arange(5.0))
    start = dist.Delta(torch.zeros(2, 1), event_dim=1)
    rows = torch.randn(2, 4, 1)
    still = SDE(lambda t, z, u: u, lambda t, z: torch.zeros_like(z))
    step = lambda z, t, u: dist.Normal(torch.cat([z, u], -1).sum(-1, keepdim=True), 1e-12).to_event(1)  # noqa: E731
    expected = torch.nn.functional.pad(rows.cumsum(1), (0, 0, 1, 0))
    laws = [
        SDEPath(still, start, grid, inputs=rows),
        SDEPath(still, start, grid, inputs=rows, solver=Milstein()),
        MarkovPath(step, start, 5, inputs=rows),
    ]
    for law in laws:
        states = particle_filter(law, lambda z, n: 0 * z[..., 0], 3, keep="all").states
        torch.testing.assert_close(states, expected.expand(3, -1, -1, -1))


def test_inputs_of_every_step_reach_the_densities():
    torch.manual_seed(0)
    grid = TimeGrid(torch.arange(5.0))
    start = dist.Normal(torch.zeros(2, 1), 1.0).to_event(1)
    rows = torch.randn(2, 4, 1)
    sde = SDE(lambda t, z, u: u - z, lambda t, z: 0.5 + 0 * z)
    step = lambda z, t, u: dist.Normal(0.5 * z + u, 0.7).to_event(1)  # noqa: E731
    guide = SDEPath(OrnsteinUhlenbeck(0.5, 0.5), start, grid)
    laws = [
        SDEPath(sde, start, grid, inputs=rows),
        SDEPath(sde, start, grid, inputs=rows, solver=LocalLinearisation()),
        MarkovPath(step, start, 5, inputs=rows),
    ]
    for law in laws:
        found = particle_filter(law, lambda z, n: 0 * z[..., 0], 6, guide=guide, threshold=0, keep="all")
        expected = law.log_prob(found.states) - guide.log_prob(found.states)
        torch.testing.assert_close(found.log_weights[..., -1], expected.log_softmax(0))


def test_what_a_solver_carries_follows_its_particle():
    torch.manual_seed(0)
    grid = TimeGrid(torch.arange(4.0))
    decay = SDE(lambda t, z: -0.5 * z, lambda t, z: torch.zeros_like(z), sde_type="stratonovich")
    law = SDEPath(decay, dist.Normal(torch.ones(3, 1), 0.3).to_event(1), grid, solver=ReversibleHeun())
    likelihood = EmissionLikelihood(lambda z: dist.Normal(z, 0.3), torch.ones(4, 1))
    filtered = particle_filter(law, likelihood, 64, threshold=1, keep="all")
    # a linear equation without noise: all particles shrink by one factor, unless one has the memory of another
    for k in range(3):
        parents = filtered.states[:, :, k, 0].gather(0, filtered.ancestors[..., k])
        factor = filtered.states[:, :, k + 1, 0] / parents
        torch.testing.assert_close(factor, factor[0, 0].expand_as(factor))


def test_solvers_without_a_density_move_bootstrap_particles():
    torch.manual_seed(0)
    grid = TimeGrid(TIMES, max_step=0.05)
    start = dist.Normal(torch.zeros(10, 1), 1.0).to_event(1)
    sde = OrnsteinUhlenbeck(1.0, 0.8)
    reference = LinearGaussianSSM(
        GaussianPath(sde, dist.Normal(torch.zeros(1), 1.0).to_event(1), grid), torch.ones(1, 1), NOISE
    ).log_prob(Linear().y)
    for solver in (Milstein(), Heun(), ReversibleHeun(), LocalLinearisation()):
        law = SDEPath(sde, start, grid, solver=solver)
        found = particle_filter(law, Linear().likelihood, 2000).log_evidence
        torch.testing.assert_close(found.mean(), reference, rtol=0, atol=0.05)


def test_a_padded_series_rests_under_every_solver():
    torch.manual_seed(0)
    grid = TimeGrid(torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.4, 0.4]]))
    y = torch.zeros(2, 3, 1)
    likelihood = EmissionLikelihood(lambda z: dist.Normal(z, 1.0), y)
    for solver in (Milstein(), ReversibleHeun(), LocalLinearisation()):
        law = SDEPath(OrnsteinUhlenbeck(1.0, 0.8), dist.Normal(torch.zeros(2, 1), 1.0).to_event(1), grid, solver=solver)
        states = particle_filter(law, likelihood, 10, keep="all").states
        assert torch.equal(states[:, 1, 1], states[:, 1, 2])
        assert not torch.equal(states[:, 0, 1], states[:, 0, 2])


def test_densities_of_local_linearisation_weigh_guided_particles():
    torch.manual_seed(0)
    grid = TimeGrid(TIMES, max_step=0.5)
    start = dist.Normal(torch.zeros(4_000, 1), 1.0).to_event(1)
    sde = OrnsteinUhlenbeck(1.0, 0.8)
    law = SDEPath(sde, start, grid, solver=LocalLinearisation())  # exact for a linear SDE
    problem = Linear()
    exact = LinearGaussianSSM(GaussianPath(sde, problem.initial, grid), torch.ones(1, 1), NOISE).log_prob(problem.y)
    guide = GaussianPath(OrnsteinUhlenbeck(0.7, 0.9), start, grid)
    found = particle_filter(law, problem.likelihood, 20, guide=guide).log_evidence
    z_test((found - exact).exp(), 1.0).require(detects=0.1)


def test_inputs_and_regimes_reach_the_particles():
    torch.manual_seed(0)
    switch = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    emit = torch.tensor([[0.8, 0.2], [0.4, 0.6]])
    law = MarkovPath(lambda z, t, inputs: dist.Categorical(switch[z]), dist.Categorical(torch.full((2_000, 2), 0.5)), 4)
    y = torch.tensor([[0.0], [1.0], [1.0], [0.0]])
    likelihood = EmissionLikelihood(lambda z: dist.Bernoulli(emit[z][..., 1:]).to_event(1), y)
    forward = torch.full((2,), 0.5)
    for n in range(4):
        forward = (forward if n == 0 else forward @ switch) * emit[:, int(y[n, 0])]
    found = particle_filter(law, likelihood, 20, keep="all")
    z_test(found.log_evidence.exp(), forward.sum()).require(detects=0.01)
    assert found.states.shape == (20, 2_000, 4)
    assert found.mean().shape == (2_000, 4)


class Drift(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate))

    def forward(self, t, z):
        return -self.rate * z


def learned(copies, rate=1.0):
    drift = Drift(rate)
    grid = TimeGrid(TIMES, max_step=0.25)
    law = SDEPath(
        SDE(drift, lambda t, z: 0.8 * torch.ones_like(z)),
        dist.Normal(torch.zeros(copies, 1), 1.0).to_event(1),
        grid,
    )
    return drift, law, grid


def exact_slope(problem):
    rate = torch.tensor(1.0, requires_grad=True)
    grid = TimeGrid(TIMES, max_step=0.25)
    law = GaussianPath(OrnsteinUhlenbeck(rate, 0.8), problem.initial, grid, discretisation="euler")
    evidence = LinearGaussianSSM(law, torch.ones(1, 1), NOISE).log_prob(problem.y)
    return torch.autograd.grad(evidence, rate)[0]


def slopes(gradient, copies=64, rounds=200, **options):
    """Gradients of the estimated over the exact evidence, one per round."""
    problem = Linear()
    drift, law, _ = learned(copies)
    found = []
    for _ in range(rounds):
        evidence = particle_filter(law, problem.likelihood, 8, gradient=gradient, threshold=1, **options).log_evidence
        (slope,) = torch.autograd.grad((evidence - problem.evidence).exp().mean(), drift.rate)
        found.append(slope)
    return torch.stack(found), exact_slope(problem)


def test_score_gradient_of_the_evidence_is_unbiased_and_the_pathwise_one_is_not():
    torch.manual_seed(0)
    found, exact = slopes("score")
    z_test(found, exact).require()
    biased, _ = slopes("pathwise")
    assert z_test(biased, exact).p_value < 1e-6


def test_score_gradient_is_unbiased_for_regimes_too():
    torch.manual_seed(0)
    stay = torch.tensor(0.7, requires_grad=True)
    start = torch.tensor(0.4, requires_grad=True)
    emit = torch.tensor([[0.8, 0.2], [0.4, 0.6]])
    y = torch.tensor([[0.0], [1.0], [1.0]])

    def matrix():
        return torch.stack([torch.stack([stay, 1 - stay]), torch.stack([1 - stay, stay])])

    likelihood = EmissionLikelihood(lambda z: dist.Bernoulli(emit[z][..., 1:]).to_event(1), y)
    forward = torch.stack([start, 1 - start])
    for n in range(3):
        forward = (forward if n == 0 else forward @ matrix()) * emit[:, int(y[n, 0])]
    exact = torch.stack(torch.autograd.grad(forward.sum(), (stay, start)))
    found = []
    for _ in range(200):
        initial = dist.Categorical(torch.stack([start, 1 - start]).expand(64, 2))
        law = MarkovPath(lambda z, t, inputs: dist.Categorical(matrix()[z]), initial, 3)
        evidence = particle_filter(law, likelihood, 6, gradient="score", threshold=1).log_evidence
        found.append(torch.stack(torch.autograd.grad(evidence.exp().mean(), (stay, start))))
    z_test(torch.stack(found), exact).require(detects=0.02)


def test_gradient_without_resampling_is_that_of_importance_sampling():
    problem = Linear()
    drift, law, grid = learned(3)
    torch.manual_seed(0)
    filtered = particle_filter(law, problem.likelihood, 10, threshold=0, keep="all")
    (found,) = torch.autograd.grad(filtered.log_evidence.sum(), drift.rate, retain_graph=True)
    path = law.solve(filtered.states[..., 0, :].detach(), law.noise_of(filtered.states).detach())
    weights = problem.likelihood.along(grid.observed(path)).sum(-1)
    (expected,) = torch.autograd.grad(weights.logsumexp(0).sum(), drift.rate)
    torch.testing.assert_close(found, expected)


def test_float32_finds_the_evidence():
    torch.manual_seed(0)
    problem = Linear(batch=(8,), dtype=torch.float32)
    filtered = particle_filter(problem.law, problem.likelihood, 20_000)
    assert filtered.log_evidence.dtype == filtered.states.dtype == torch.float32
    torch.testing.assert_close(filtered.log_evidence, problem.evidence.float().expand(8), rtol=0, atol=0.05)


def test_dead_particles_are_reported_with_time_and_series():
    problem = Linear(batch=(2,))
    y = torch.zeros(2, 4, 1)
    y[1, 2] = 50.0
    likelihood = EmissionLikelihood(lambda z: dist.Uniform(z - 9, z + 9, validate_args=False), y)

    def blind(z, n):  # as a user's own function, without any check of the support
        return torch.where((y[..., n, 0] - z[..., 0]).abs() < 9, 0.0, -torch.inf)

    text = r"observation 2, time 1 \(grid point 5\), series \[1\]: all 10 particles are dead: the likelihood is 0"
    with pytest.raises(ValueError, match=text):
        particle_filter(problem.law, blind, 10)
    with pytest.raises(ValueError, match="observation 2 outside the support of its law Uniform"):
        particle_filter(problem.law, likelihood, 10)


def test_likelihoods_that_are_not_finite_are_reported():
    law = Linear().law
    with pytest.raises(ValueError, match=r"observation 1, time 0\.3 .*returned nan for 10 of 10 particles"):
        particle_filter(law, lambda z, n: z[..., 0] * (torch.nan if n == 1 else 1.0), 10)
    with pytest.raises(ValueError, match="returned inf for"):
        particle_filter(law, lambda z, n: z[..., 0] * 0 + torch.inf, 10)
    grid = TimeGrid(torch.arange(3.0))
    wild = SDEPath(
        SDE(lambda t, z: 1e300 * z**3, lambda t, z: torch.ones_like(z)),
        dist.Normal(torch.zeros(1), 1.0).to_event(1),
        grid,
    )
    with pytest.raises(ValueError, match=r"and \d+ states are not finite"):
        particle_filter(wild, lambda z, n: 0 * z[..., 0], 10)


def test_a_guide_whose_density_is_zero_is_reported():
    problem = Linear()
    guide = SDEPath(problem.sde, dist.Normal(torch.zeros(1), 1e-200, validate_args=False).to_event(1), problem.grid)
    with pytest.raises(ValueError, match="densities of `guide` and `path` are at fault"):
        particle_filter(problem.law, problem.likelihood, 5, guide=guide)


def test_arguments_are_checked():
    problem = Linear()
    with pytest.raises(ValueError, match="`num_particles` must be a positive integer, received 0"):
        particle_filter(problem.law, problem.likelihood, 0)
    with pytest.raises(ValueError, match=r"`threshold` must be a number in \[0, 1\], received 500"):
        particle_filter(problem.law, problem.likelihood, 5, threshold=500)
    for name in ("resampling", "gradient", "keep"):
        with pytest.raises(ValueError, match=f"`{name}` must be one of"):
            particle_filter(problem.law, problem.likelihood, 5, **{name: "other"})
    with pytest.raises(ValueError, match=r"shape \(5,\), received \(5, 1\) for observation 0"):
        particle_filter(problem.law, lambda z, n: z, 5)
    with pytest.raises(ValueError, match="different grids"):
        particle_filter(problem.law, problem.likelihood, 5, guide=Linear(max_step=0.1).law)
    with pytest.raises(ValueError, match="`guide` must have the shapes of `path`"):
        particle_filter(problem.law, problem.likelihood, 5, guide=Linear(batch=(3,)).law)
    with pytest.raises(TypeError, match="particles cannot step a Normal"):
        particle_filter(dist.Normal(0.0, 1.0), problem.likelihood, 5)
    driven = SDEPath(problem.sde, problem.initial, problem.grid, brownian=VirtualBrownianTree(0.0, 2.0, 1, seed=0))
    with pytest.raises(ValueError, match="Leave `brownian` out"):
        particle_filter(driven, problem.likelihood, 5)
