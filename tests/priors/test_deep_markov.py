"""The prior of a deep Markov model is the chain of its transition from a learned state."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_sde.priors.deep_markov import DeepMarkovPrior


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_density_is_a_loop_over_transitions_from_the_start(dtype, tolerance):
    torch.manual_seed(0)
    prior = DeepMarkovPrior(3, hidden=5).to(dtype)
    torch.nn.init.normal_(prior.start)
    lengths = torch.tensor([4, 1, 3])
    path = torch.randn(3, 4, 3, dtype=dtype)
    expected = []
    for row, length in zip(path, lengths.tolist(), strict=True):
        z, total = prior.start, torch.zeros((), dtype=dtype)
        for t in range(length):
            total = total + dist.Normal(*prior.transition(z)).log_prob(row[t]).sum()
            z = row[t]
        expected.append(total)
    value = prior(4, lengths).log_prob(path)
    torch.testing.assert_close(value, torch.stack(expected), rtol=tolerance, atol=tolerance)


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    prior = DeepMarkovPrior(4, hidden=8)
    prior(5).log_prob(torch.randn(5, 4)).backward()
    without = [name for name, p in prior.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_lengths_beyond_the_padding_are_refused():
    with pytest.raises(ValueError, match="`lengths` must be at most `length`"):
        DeepMarkovPrior(2, hidden=4)(5, torch.tensor([6]))
