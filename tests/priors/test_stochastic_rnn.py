"""Recurrent priors hang on the past of the observations, and on nothing else."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_sde.priors.stochastic_rnn import StochasticRNNPrior, VariationalRNNPrior

B, T, V, D, H = 2, 5, 3, 2, 4


@pytest.fixture(params=[StochasticRNNPrior, VariationalRNNPrior])
def prior(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return request.param(V, D, hidden=H).double()


def test_state_at_a_time_hangs_on_earlier_observations_only(prior):
    values, path = torch.randn(B, T, V).double(), torch.randn(B, T, D).double()
    changed = values.clone()
    changed[:, 2] += 1
    law, other = (prior(T, None, v) for v in (values, changed))
    terms, others = (one.kernels(path).log_prob() for one in (law, other))  # row k: state k + 1
    assert torch.equal(law.initial.mean, other.initial.mean)
    assert torch.equal(terms[:2], others[:2])
    assert (terms[2:] != others[2:]).all()


def test_emission_reads_the_state_and_the_past(prior):
    values, path = torch.randn(B, T, V).double(), torch.randn(B, T, D).double()
    changed = values.clone()
    changed[:, 2] += 1
    features, others = (prior.features(prior(T, None, v), path) for v in (values, changed))
    assert features.shape == (B, T, prior.feature_dim)
    assert torch.equal(features[..., :D], path)
    assert torch.equal(features[:, :3], others[:, :3])
    assert (features[:, 3:, D:] != others[:, 3:, D:]).any(-1).all()


def test_memory_of_the_variational_network_holds_earlier_states():
    torch.manual_seed(0)
    prior = VariationalRNNPrior(V, D, hidden=H).double()
    law, path = prior(T, None, torch.randn(B, T, V).double()), torch.randn(B, T, D).double()
    changed = path.clone()
    changed[:, 2] += 1
    memories, others = (prior.features(law, z)[..., D:] for z in (path, changed))
    assert torch.equal(memories[:, :3], others[:, :3])
    assert (memories[:, 3:] != others[:, 3:]).any(-1).all()


def test_stochastic_rnn_is_a_loop():
    torch.manual_seed(0)
    prior = StochasticRNNPrior(V, D, hidden=H).double()
    values, path = torch.randn(B, T, V).double(), torch.randn(B, T, D).double()
    cell = nn.GRUCell(V, H).double()
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in prior.network.state_dict().items()})
    d, z, x = torch.zeros(B, H).double(), prior.start.expand(B, D), torch.zeros(B, V).double()
    expected, states = 0.0, []
    for t in range(T):
        d = cell(x, d)
        states.append(d)
        loc, raw = prior.transition(torch.cat([z, d], -1)).chunk(2, -1)
        scale = 1e-3 + nn.functional.softplus(raw)
        expected = expected + dist.Normal(loc, scale).log_prob(path[:, t]).sum(-1)
        z, x = path[:, t], values[:, t]
    law = prior(T, None, values)
    torch.testing.assert_close(law.log_prob(path), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(prior.states(law), torch.stack(states, 1), rtol=1e-12, atol=1e-12)


def test_float32_agrees_with_float64(prior):
    values, path = torch.randn(B, T, V).double(), torch.randn(B, T, D).double()
    exact = prior(T, None, values).log_prob(path)
    single = prior.float()(T, None, values.float()).log_prob(path.float())
    torch.testing.assert_close(single, exact.float(), rtol=1e-5, atol=1e-5)


def test_arguments_that_do_not_fit_are_refused(prior):
    with pytest.raises(ValueError, match="`values` must have shape"):
        prior(T, None, torch.zeros(B, T + 1, V).double())
    with pytest.raises(ValueError, match="`state_dim`"):
        type(prior)(V, 0)
    with pytest.raises(ValueError, match="`value_dim`"):
        type(prior)(0, D)


def test_stochastic_rnn_needs_its_network_states():
    prior = StochasticRNNPrior(V, D, hidden=H)
    with pytest.raises(ValueError, match="`inputs` must hold the state of the recurrent network"):
        prior.step(torch.zeros(D), torch.ones(1), None)
    law = prior(T, None, torch.zeros(B, T, V))
    law.inputs = None
    with pytest.raises(ValueError, match="`law` must come from this prior"):
        prior.states(law)
