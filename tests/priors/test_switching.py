"""Switching dynamics: laws, the chain that guides are built on, evidence with one regime, regimes of a track."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch.nn.functional import softplus

from pyro_sde import PathELBO
from pyro_sde.distributions.gaussian_path import GaussianPath
from pyro_sde.distributions.linear_gaussian_ssm import LinearGaussianSSM
from pyro_sde.ops import GaussianChain
from pyro_sde.priors.regimes import MarkovRegimes, StickBreakingRegimes
from pyro_sde.priors.switching import SwitchingLinearPrior, SwitchingNetworkPrior
from pyro_sde.testing import check_distribution
from tests.benchmarks._nascar import fit, matched_accuracy, simulate

DOUBLE = torch.float64


def linear(num_regimes=3, recurrent=False, seed=0, dtype=DOUBLE):
    """A prior of two states with regimes that differ."""
    torch.manual_seed(seed)
    regimes = StickBreakingRegimes(num_regimes, 2) if recurrent else MarkovRegimes(num_regimes)
    prior = SwitchingLinearPrior(regimes, 2).to(dtype)
    with torch.no_grad():
        prior.matrix.copy_(0.5 * torch.randn(num_regimes, 2, 2))
        prior.offset.normal_()
        prior.log_scale.uniform_(-1.5, -0.5)
        prior.initial_loc.normal_()
        prior.initial_log_scale.uniform_(-1.0, 1.0)
    return prior


def test_the_step_is_linear_in_every_regime():
    prior = linear()
    z = torch.randn(5, 2, dtype=DOUBLE)
    law = prior.step(z, torch.ones(1))
    assert law.batch_shape == (5, 3)
    for k in range(3):
        torch.testing.assert_close(law.base_dist.loc[:, k], z @ prior.matrix[k].T + prior.offset[k])
        torch.testing.assert_close(law.base_dist.scale[:, k], prior.log_scale[k].exp().expand(5, 2))


@pytest.mark.parametrize("recurrent", [False, True])
def test_priors_are_path_laws_with_gradients_for_all_parameters(recurrent):
    prior = linear(recurrent=recurrent)
    law = prior(5, torch.tensor([5, 2, 4]))
    assert law.batch_shape == (3,)
    check_distribution(law, parameters=list(prior.parameters()), skip=["deepcopy", "pickle"])


def test_with_known_regimes_the_reference_is_the_chain_of_these():
    prior, regimes = linear(), torch.tensor([0, 2, 2, 1])
    chain = prior.reference(torch.nn.functional.one_hot(regimes, 3).to(DOUBLE)).chain
    torch.testing.assert_close(chain.transition, prior.matrix[regimes])
    torch.testing.assert_close(chain.offset, prior.offset[regimes])
    torch.testing.assert_close(chain.noise, torch.diag_embed((2 * prior.log_scale[regimes]).exp()))
    torch.testing.assert_close(chain.initial_mean, prior.initial_loc)
    torch.testing.assert_close(chain.initial_covariance, torch.diag((2 * prior.initial_log_scale).exp()))


def test_the_reference_maximises_the_expected_density():
    prior = linear()
    weights = torch.tensor([[0.2, 0.5, 0.3]], dtype=DOUBLE)
    chain = prior.reference(weights).chain
    z = torch.randn(2, dtype=DOUBLE)
    # exp of the mean log-density is a Gaussian in the next state: its gradient vanishes at its mean, its curvature is
    # the inverse covariance
    mean = (chain.transition[0] @ z + chain.offset[0]).detach()

    def expected(following):
        return (weights[0] * prior.step(z, torch.ones(1)).log_prob(following)).sum()

    slope = torch.autograd.functional.jacobian(expected, mean)
    curvature = torch.autograd.functional.hessian(expected, mean)
    torch.testing.assert_close(slope, torch.zeros(2, dtype=DOUBLE), rtol=0, atol=1e-12)
    torch.testing.assert_close(-curvature, chain.noise[0].inverse().detach())


def test_one_regime_is_the_kalman_filter():
    prior = linear(num_regimes=1)
    emission, scale, count = torch.randn(3, 2, dtype=DOUBLE), 0.4, 40
    y = torch.randn(count, 3, dtype=DOUBLE)
    first = prior.matrix[0].expand(count - 1, 2, 2)
    chain = GaussianChain(
        prior.initial_loc,
        torch.diag((2 * prior.initial_log_scale).exp()),
        first,
        torch.diag((2 * prior.log_scale[0]).exp()).expand(count - 1, 2, 2),
        prior.offset.expand(count - 1, 2),
    )
    evidence = LinearGaussianSSM(chain, emission, scale).log_prob(y).detach()

    def model():
        z = pyro.sample("z", prior(count))
        pyro.sample("y", dist.Normal(z @ emission.T, scale).to_event(2), obs=y)

    def guide():
        reference = prior.reference(torch.ones(count - 1, 1, dtype=DOUBLE))
        pyro.sample("z", reference.condition(emission, scale, y))

    torch.manual_seed(0)
    for elbo in (Trace_ELBO(), PathELBO(kl="stl"), PathELBO(kl="full")):
        loss = elbo.loss(model, guide)
        assert loss == pytest.approx(-float(evidence), abs=1e-10 * abs(float(evidence)))


@pytest.mark.parametrize("recurrent", [False, True])
def test_the_marginal_model_has_the_evidence_of_enumerated_regimes(recurrent):
    # a Kalman filter for each of the 3^4 paths of regimes; stick breaking starts as a Markov chain, so it has them too
    prior, count, scale, draws = linear(seed=2, recurrent=recurrent), 5, 0.5, 20_000
    with torch.no_grad():
        y = prior(count).sample() + scale * torch.randn(count, 2, dtype=DOUBLE)
        law, unit = prior(count), torch.eye(2, dtype=DOUBLE)
        paths = torch.cartesian_prod(*[torch.arange(3)] * (count - 1))
        posteriors = prior.reference(torch.nn.functional.one_hot(paths, 3).to(DOUBLE))
        table = (
            prior.regimes.table(torch.zeros(2, dtype=DOUBLE), torch.ones(1))
            if recurrent
            else prior.regimes().log_transition
        )
        weight = law.regimes.log_initial[paths[:, 0]] + table[paths[:, :-1], paths[:, 1:]].sum(-1)
        evidence = (weight + posteriors.log_evidence(unit, scale, y)).logsumexp(0)
        # importance sampling of the marginal model, from the exact posterior with one path of regimes for each draw
        torch.manual_seed(0)
        share = (weight + posteriors.log_evidence(unit, scale, y)).softmax(0)
        chosen = dist.Categorical(share).sample((draws,))
        guides = posteriors.condition(unit, scale, y)
        z = guides.sample((draws,))[torch.arange(draws), chosen]
        density = (guides.log_prob(z.unsqueeze(1)) + share.log()).logsumexp(-1)
        ratio = law.log_prob(z) + dist.Normal(z, scale).to_event(2).log_prob(y) - density
    torch.testing.assert_close(ratio, evidence.expand(draws), rtol=0, atol=1e-10)


def test_an_observed_path_is_a_switching_autoregression():
    truth, count = linear(num_regimes=2, seed=1, dtype=torch.float32), 400
    with torch.no_grad():
        path, regimes = truth(count).sample_joint()
    torch.manual_seed(0)
    prior = SwitchingLinearPrior(MarkovRegimes(2), 2)
    density = prior.start_from(path, restarts=4)

    def value(of):
        with torch.no_grad():
            return float(of(count).log_prob(path))

    at_start = value(prior)
    assert density == pytest.approx(at_start / (count - 1), abs=0.1)

    def model():
        pyro.module("prior", prior)
        pyro.sample("x", prior(count), obs=path)

    pyro.clear_param_store()
    svi = SVI(model, lambda: None, Adam({"lr": 0.02}), Trace_ELBO())
    for _ in range(40):
        svi.step()
    assert value(prior) > at_start
    assert value(prior) > value(truth) - 1
    assert matched_accuracy(regimes, prior(count).viterbi(path), 2) > 0.95
    order = torch.cdist(prior.offset.detach(), truth.offset.detach()).argmin(0)
    torch.testing.assert_close(prior.matrix[order].detach(), truth.matrix.detach(), rtol=0, atol=0.15)


@pytest.mark.parametrize("recurrent", [pytest.param(False, marks=pytest.mark.slow), True])
def test_regimes_of_a_track_are_recovered_through_noisy_channels(recurrent):
    track = simulate(2000, seed=0)
    fitted = fit(track.values, recurrent=recurrent, steps=60, seed=0)
    assert matched_accuracy(track.regimes, fitted.regimes) >= 0.95


def test_switching_networks_are_path_laws():
    torch.manual_seed(0)
    regimes = StickBreakingRegimes(3, 2)
    prior = SwitchingNetworkPrior(regimes, 2, (8,), input_dim=1)
    law = prior(5, torch.tensor([5, 3]), torch.randn(2, 4, 1))
    check_distribution(law, parameters=list(prior.parameters()), skip=["deepcopy", "pickle"])
    step = prior.step(torch.zeros(7, 2), torch.ones(1), torch.zeros(1))
    assert step.batch_shape == (7, 3)
    heads = prior.net(torch.zeros(3)).unflatten(-1, (3, 4))  # for every regime two moves and two scales
    torch.testing.assert_close(step.base_dist.loc, heads[:, :2].expand(7, 3, 2))
    torch.testing.assert_close(step.base_dist.scale, 1e-3 + softplus(heads[:, 2:]).expand(7, 3, 2))
    assert SwitchingNetworkPrior(MarkovRegimes(2), 2)(5).sample().shape == (5, 2)


def test_switching_networks_are_exact_sums_over_regimes():
    torch.manual_seed(0)
    prior = SwitchingNetworkPrior(MarkovRegimes(2), 1, (8,)).to(DOUBLE)
    law, path = prior(4), torch.randn(4, 1, dtype=DOUBLE)
    steps = prior.step(path[:-1], torch.ones(1)).log_prob(path[1:].unsqueeze(-2)).exp()  # (3, K)
    start, table = law.regimes.log_initial.exp(), law.regimes.log_transition.exp()
    total = (start * steps[0]) @ table @ torch.diag(steps[1]) @ table @ steps[2]
    torch.testing.assert_close(law.log_prob(path), law.initial.log_prob(path[0]) + total.log())


def test_the_start_finds_the_dynamics_of_a_batch_of_series():
    truth = linear(num_regimes=2, seed=1)
    with torch.no_grad():
        path, regimes = truth(200).expand([3]).sample_joint()
    torch.manual_seed(0)
    prior = SwitchingLinearPrior(MarkovRegimes(2), 2).to(DOUBLE)
    prior.start_from(path, restarts=4)
    found = prior(200).viterbi(path)
    assert matched_accuracy(regimes.flatten(), found.flatten(), 2) > 0.95
    torch.testing.assert_close(prior.initial_loc.detach(), path[:, 0].mean(0))


def test_the_start_is_a_stationary_point_of_the_density():
    truth = linear(num_regimes=2, seed=1)
    with torch.no_grad():
        truth.log_scale.zero_()  # regimes that overlap, so that smoothing matters
        path = truth(400).sample()
    torch.manual_seed(0)
    prior = SwitchingLinearPrior(MarkovRegimes(2), 2).to(DOUBLE)
    density = prior.start_from(path, restarts=2, sweeps=300)
    value = prior(400).log_prob(path) / 399
    value.backward()
    assert density == pytest.approx(value.item(), abs=0.02)  # which has the first state too
    assert prior.matrix.grad.abs().max() < 1e-3
    assert prior.offset.grad.abs().max() < 1e-3
    assert prior.log_scale.grad.abs().max() < 1e-2  # scales are kept a little above zero


def test_the_best_of_several_starts_is_kept():
    path = simulate(300, seed=0).path
    prior = SwitchingLinearPrior(MarkovRegimes(4), 2)
    torch.manual_seed(1)
    each = [prior.start_from(path, restarts=1, sweeps=10) for _ in range(4)]
    torch.manual_seed(1)
    assert prior.start_from(path, restarts=4, sweeps=10) == pytest.approx(max(each))
    assert max(each) > min(each) + 0.1


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="`scale` must be positive and finite, received 0"):
        SwitchingLinearPrior(MarkovRegimes(2), 2, scale=0)
    with pytest.raises(ValueError, match="`state_dim` must be an integer >= 1"):
        SwitchingLinearPrior(MarkovRegimes(2), 0)
    with pytest.raises(ValueError, match=r"at least 10 points per regime, 20; received \(15, 2\)"):
        SwitchingLinearPrior(MarkovRegimes(2), 2).start_from(torch.zeros(15, 2))
    with pytest.raises(ValueError, match=r"`path` must have shape \(\*batch, T, 2\)"):
        SwitchingLinearPrior(MarkovRegimes(2), 2).start_from(torch.zeros(50, 3))
    with pytest.raises(ValueError, match="`inputs` must have 2 columns, the `input_dim` of this prior; received 1"):
        SwitchingNetworkPrior(MarkovRegimes(2), 2, input_dim=2)(5, inputs=torch.zeros(4, 1))
    with pytest.raises(ValueError, match=r"`probabilities` must have shape \(\*batch, T - 1, 2\), received \(4, 3\)"):
        SwitchingLinearPrior(MarkovRegimes(2), 2).reference(torch.full((4, 3), 1 / 3))


def test_the_reference_is_a_gaussian_path_in_the_dtype_of_the_prior():
    law = linear(dtype=torch.float32).reference(torch.full((6, 4, 3), 1 / 3))
    assert isinstance(law, GaussianPath)
    assert law.batch_shape == (6,)
    assert law.rsample().dtype == torch.float32
