"""Residual guides start at the prior; the smoother sees the future, the filter does not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyro_sde.distributions.kl import path_kl
from pyro_sde.guides.residual import ResidualGuide, VariationalRNNGuide
from pyro_sde.priors.deep_markov import DeepMarkovPrior
from pyro_sde.priors.stochastic_rnn import StochasticRNNPrior, VariationalRNNPrior

B, T, V, D, H = 3, 5, 3, 2, 4
LENGTHS = torch.tensor([5, 3, 1])


@pytest.fixture(params=["srnn", "vrnn"])
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    if request.param == "srnn":
        return StochasticRNNPrior(V, D, H).double(), ResidualGuide(V, D, H).double()
    return VariationalRNNPrior(V, D, H).double(), VariationalRNNGuide(D, H).double()


def bend(guide: nn.Module) -> None:
    """A guide after some training: no layer is zero."""
    for parameter in guide.parameters():
        nn.init.normal_(parameter, std=0.5)


def test_guide_starts_at_the_prior(pair):
    prior, guide = pair
    values = torch.randn(B, T, V).double()
    p = prior(T, LENGTHS, values)
    q = guide(p, values)
    path = q.sample((4,))
    assert torch.equal(path_kl(q, p, path), torch.zeros(4, B).double())
    bend(guide)
    assert (path_kl(guide(p, values), p, path) > 0).all()


def test_padding_has_no_influence(pair):
    prior, guide = pair
    bend(guide)
    values, path = torch.randn(B, T, V).double(), torch.randn(B, T, D).double()
    spoiled = values.clone()
    spoiled[1, 3:] = 100.0
    spoiled[2, 1:] = -100.0
    found = [guide(prior(T, LENGTHS, v), v).log_prob(path) for v in (values, spoiled)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-13, atol=1e-13)


def test_only_the_smoother_sees_the_future(pair):
    prior, guide = pair
    bend(guide)
    values, path = torch.randn(B, T, V).double(), torch.randn(B, T, D).double()
    changed = values.clone()
    changed[:, 3] += 1
    law, other = (guide(prior(T, None, v), v) for v in (values, changed))
    terms, others = (one.kernels(path).log_prob() for one in (law, other))
    sees = isinstance(guide, ResidualGuide)
    assert bool((terms[1] != others[1]).all()) is sees  # state 2, and the observation after it
    assert bool((law.initial.mean != other.initial.mean).any()) is sees
    assert (terms[2] != others[2]).all()  # state 3 and its own observation


def test_mean_is_that_of_the_prior_plus_a_network():
    torch.manual_seed(0)
    prior, guide = StochasticRNNPrior(V, D, H).double(), ResidualGuide(V, D, H).double()
    bend(guide)
    values, path = torch.randn(B, T, V).double(), torch.randn(B, T, D).double()
    p = prior(T, None, values)
    q = guide(p, values)
    seen = torch.cat([torch.nn.functional.pad(p.inputs, (0, 0, 1, 0)), values], -1)
    summary = guide.reader(seen, torch.full((B,), T))
    change = guide.residual(torch.cat([path[:, 1], summary[:, 2]], -1))
    kernels = [law.kernels(path) for law in (q, p)]
    means, deviations = (
        [one.steps.from_rows(getattr(one.law, name))[:, 1] for one in kernels] for name in ("mean", "stddev")
    )
    torch.testing.assert_close(means[0] - means[1], change[..., :D])
    torch.testing.assert_close((deviations[0] / deviations[1]).log(), 3 * torch.tanh(change[..., D:] / 3))


def test_what_is_masked_counts_as_zero():
    torch.manual_seed(0)
    prior, guide = StochasticRNNPrior(V, D, H).double(), ResidualGuide(V, D, H).double()
    bend(guide)
    values, path = torch.randn(B, T, V).double(), torch.randn(B, T, D).double()
    mask = torch.rand(B, T) < 0.5
    clean = torch.where(mask.unsqueeze(-1), values, 0.0)
    p = prior(T, None, clean)
    assert torch.equal(guide(p, values, mask).log_prob(path), guide(p, clean).log_prob(path))


def test_float32_agrees_with_float64(pair):
    prior, guide = pair
    bend(guide)
    values, path = torch.randn(B, T, V).double(), torch.randn(B, T, D).double()
    exact = guide(prior(T, LENGTHS, values), values).log_prob(path)
    prior.float(), guide.float()
    found = guide(prior(T, LENGTHS, values.float()), values.float()).log_prob(path.float())
    torch.testing.assert_close(found, exact.float(), rtol=1e-3, atol=1e-3)


def test_arguments_that_do_not_fit_are_refused(pair):
    prior, guide = pair
    law = prior(T, None, torch.zeros(B, T, V).double())
    with pytest.raises(ValueError, match="`values` must have shape"):
        guide(law, torch.zeros(B, T - 1, V).double())


def test_residual_guide_needs_the_network_of_its_prior():
    with pytest.raises(ValueError, match="`prior` must have inputs of 4 channels"):
        ResidualGuide(V, D, H)(DeepMarkovPrior(D, hidden=4)(T), torch.zeros(B, T, V))
