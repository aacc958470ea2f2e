import pyro.distributions as dist
import pytest
import torch

from pyro_sde import SDEPath, TimeGrid
from pyro_sde.distributions.gaussian_path import GaussianPath
from pyro_sde.distributions.linear_gaussian_ssm import LinearGaussianSSM
from pyro_sde.distributions.markov_path import MarkovPath
from pyro_sde.infer.emissions import EmissionLikelihood
from pyro_sde.infer.particle_filter import particle_filter
from pyro_sde.infer.particle_smoother import particle_smoother
from pyro_sde.sde import Matern32, OrnsteinUhlenbeck
from pyro_sde.solvers.local_linearisation import LocalLinearisation
from pyro_sde.solvers.milstein import Milstein
from pyro_sde.testing.statistics import z_test

NOISE = 0.4


def problem(batch=(), count=5, max_step=0.5):
    grid = TimeGrid(0.5 * torch.arange(float(count)), max_step=max_step)
    start = dist.Normal(torch.zeros(*batch, 2), 1.0).to_event(1)
    # mild observations: the bias of a self-normalised mean, O(1 / P), stays below what the tests find
    y = 0.3 * torch.randn(count, 2, generator=torch.Generator().manual_seed(1))
    return grid, start, y, EmissionLikelihood(lambda z: dist.Normal(z, NOISE), y)


def exact(grid, start, y):
    law = GaussianPath(OrnsteinUhlenbeck(torch.tensor([1.0, 0.5]), 0.8), start, grid, discretisation="euler")
    return LinearGaussianSSM(law, torch.eye(2), NOISE).smooth(y)


def euler(grid, start):
    return SDEPath(OrnsteinUhlenbeck(torch.tensor([1.0, 0.5]), 0.8), start, grid)


@pytest.mark.parametrize("method", ["backward", "genealogy"])
def test_moments_are_those_of_the_exact_smoother(method):
    torch.manual_seed(0)
    grid, start, y, likelihood = problem((150,))
    filtered = particle_filter(euler(grid, start), likelihood, 200, keep="all")
    paths = particle_smoother(filtered, 50, method=method)
    reference = exact(grid, problem()[1], y)
    assert paths.shape == (50, 150, 5, 2)
    z_test(paths.mean(0), reference.mean).require(detects=0.15)
    spread = (paths - reference.mean).square().mean(0)
    z_test(spread, reference.covariance.diagonal(dim1=-2, dim2=-1)).require(detects=0.15)
    both = ((paths - reference.mean)[..., 1:, :] * (paths - reference.mean)[..., :-1, :]).mean(0)
    cross = reference.lag_covariance.diagonal(dim1=-2, dim2=-1)
    z_test(both, cross).require(detects=0.1)


def test_backward_sampling_keeps_early_states_apart_and_genealogies_do_not():
    torch.manual_seed(0)
    grid, start, _, likelihood = problem(count=60)
    filtered = particle_filter(euler(grid, start), likelihood, 50, threshold=1, keep="all")
    backward, genealogy = (
        particle_smoother(filtered, 50, method=method)[:, 0, 0].unique().numel() for method in ("backward", "genealogy")
    )
    assert genealogy < 5
    assert backward > 8


@pytest.mark.parametrize("kind", ["gaussian", "linearised", "markov"])
def test_every_law_with_a_density_is_smoothed(kind):
    torch.manual_seed(0)
    grid, start, y, likelihood = problem((100,))
    sde = OrnsteinUhlenbeck(torch.tensor([1.0, 0.5]), 0.8)
    rate = torch.tensor([1.0, 0.5])
    reference = exact(grid, problem()[1], y)
    if kind == "markov":
        law = MarkovPath(lambda z, t, inputs: dist.Normal(z - 0.5 * rate * z, 0.8 * 0.5**0.5).to_event(1), start, 5)
    else:
        law = (
            GaussianPath(sde, start, grid)
            if kind == "gaussian"
            else SDEPath(sde, start, grid, solver=LocalLinearisation())
        )
        reference = LinearGaussianSSM(GaussianPath(sde, problem()[1], grid), torch.eye(2), NOISE).smooth(y)
    paths = particle_smoother(particle_filter(law, likelihood, 200, keep="all"), 30)
    z_test(paths.mean(0), reference.mean).require(detects=0.2)


def test_series_of_different_lengths_and_regimes_are_smoothed():
    torch.manual_seed(0)
    switch = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    emit = torch.tensor([[0.8, 0.2], [0.4, 0.6]])
    lengths = torch.tensor([3, 2]).repeat(300)
    start = dist.Categorical(torch.full((600, 2), 0.5))
    law = MarkovPath(lambda z, t, inputs: dist.Categorical(switch[z]), start, 3, lengths=lengths)
    likelihood = EmissionLikelihood(
        lambda z: dist.Bernoulli(emit[z][..., 1:]).to_event(1), torch.tensor([[0.0], [1.0], [1.0]])
    )
    paths = particle_smoother(particle_filter(law, likelihood, 200, keep="all"), 50)
    assert paths.dtype == torch.long
    joint = torch.einsum(
        "a,ab,bc,a,b,c->abc", torch.full((2,), 0.5), switch, switch, emit[:, 0], emit[:, 1], emit[:, 1]
    )
    short = torch.einsum("a,ab,a,b->ab", torch.full((2,), 0.5), switch, emit[:, 0], emit[:, 1])
    means = paths.double().mean(0)
    long_mean = torch.stack([joint[1].sum(), joint[:, 1].sum(), joint[:, :, 1].sum()]) / joint.sum()
    z_test(means[::2], long_mean).require(detects=0.05)
    short_mean = torch.stack([short[1].sum(), short[:, 1].sum()]) / short.sum()
    z_test(means[1::2, :2], short_mean).require(detects=0.05)
    assert torch.equal(paths[:, 1::2, 1], paths[:, 1::2, 2])


def test_single_precision_paths_have_the_moments_too():
    torch.manual_seed(0)
    grid, start, y, _ = problem()
    grid = TimeGrid(grid.observed_times.float())
    start = dist.Normal(torch.zeros(2, dtype=torch.float32), 1.0).to_event(1)
    likelihood = EmissionLikelihood(lambda z: dist.Normal(z, NOISE), y.float())
    law = SDEPath(OrnsteinUhlenbeck(torch.tensor([1.0, 0.5], dtype=torch.float32), 0.8), start, grid)
    paths = particle_smoother(particle_filter(law, likelihood, 4000, keep="all"), 1000)
    reference = exact(*problem()[:3])
    assert paths.dtype == torch.float32
    torch.testing.assert_close(paths.mean(0).double(), reference.mean, rtol=0, atol=0.06)


def test_laws_that_cannot_be_smoothed_backward_name_the_remedy():
    grid, start, _, likelihood = problem()
    law = SDEPath(OrnsteinUhlenbeck(torch.tensor([1.0, 0.5]), 0.8), start, grid, solver=Milstein())
    filtered = particle_filter(law, likelihood, 20, keep="all")
    with pytest.raises(ValueError, match=r'has no density that is known.*Use method="genealogy"'):
        particle_smoother(filtered, 5)
    assert particle_smoother(filtered, 5, method="genealogy").shape == (5, 5, 2)
    matern = SDEPath(Matern32(lengthscale=1.0, variance=1.0), start, grid)
    with pytest.raises(ValueError, match=r'off the support of its law.*Use method="genealogy"'):
        particle_smoother(particle_filter(matern, likelihood, 20, keep="all"), 5)


def test_arguments_are_checked():
    grid, start, _, likelihood = problem()
    filtered = particle_filter(euler(grid, start), likelihood, 20)
    with pytest.raises(ValueError, match='keep="all"'):
        particle_smoother(filtered, 5)
    with pytest.raises(
        ValueError, match='`method` must be "backward" or "genealogy", received "exact"|received .exact.'
    ):
        particle_smoother(filtered, 5, method="exact")
    with pytest.raises(ValueError, match="`num_paths` must be a positive integer, received 0"):
        particle_smoother(filtered, 0)
