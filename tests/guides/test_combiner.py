"""Combiner guides see what their structure says, and nothing of the padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_sde.guides.combiner import CombinerGuide
from pyro_sde.priors.deep_markov import DeepMarkovPrior

B, T, V, D, H = 3, 6, 2, 2, 8
LENGTHS = torch.tensor([6, 4, 1])
STRUCTURES = ("ST-L", "ST-R", "ST-LR", "MF-LR")


def build(structure: str, **options: object) -> tuple[CombinerGuide, object]:
    torch.manual_seed(0)
    guide = CombinerGuide(V, D, hidden=H, structure=structure, **options).double()
    return guide, DeepMarkovPrior(D, hidden=4).double()(T, LENGTHS)


def laws(guide: CombinerGuide, prior: object, values: Tensor, path: Tensor) -> Tensor:
    """Locations of all states, ``(B, T, D)``, with the padding at 0."""
    law = guide(prior, values)
    kernels = law.kernels(path)
    return torch.cat([law.initial.mean.unsqueeze(1), kernels.steps.from_rows(kernels.law.mean)], 1)


@pytest.mark.parametrize(
    ("structure", "past", "present", "state"),
    [
        ("ST-L", True, False, True),
        ("ST-R", False, True, True),
        ("ST-LR", True, True, True),
        ("MF-LR", True, True, False),
    ],
)
def test_structure_says_what_a_state_hangs_on(structure, past, present, state):
    """`past`: whether x_2 moves the law of z_3; `present`: whether x_3 moves that of z_2."""
    guide, prior = build(structure)
    values, path = torch.randn(B, T, V).double(), torch.randn(B, T, D).double()
    before = laws(guide, prior, values, path)[0]
    for t, at, moves in ((2, 3, past), (3, 2, present)):
        changed = values.clone()
        changed[:, t] += 1
        assert bool((laws(guide, prior, changed, path)[0, at] != before[at]).any()) is moves
    moved = path.clone()
    moved[:, 2] += 1
    after = laws(guide, prior, values, moved)[0]
    assert bool((after[3] != before[3]).any()) is state
    assert torch.equal(after[4:], before[4:])


@pytest.mark.parametrize("structure", STRUCTURES)
def test_combined_state_is_the_formula(structure):
    guide, prior = build(structure)
    values, path = torch.randn(B, T, V).double(), torch.randn(B, T, D).double()
    everywhere = torch.full((B,), T)
    summaries = [reader(values, everywhere)[0, 3] for reader in guide.readers.values()]
    parts = [*summaries, *([] if structure == "MF-LR" else [torch.tanh(guide.from_state(path[0, 2]))])]
    expected = guide.head(sum(parts) / len(parts))[:D]
    torch.testing.assert_close(laws(guide, prior, values, path)[0, 3], expected)
    start = [reader(values, everywhere)[0, 0] for reader in guide.readers.values()]
    start += [] if structure == "MF-LR" else [torch.tanh(guide.from_state(guide.start))]
    torch.testing.assert_close(laws(guide, prior, values, path)[0, 0], guide.head(sum(start) / len(start))[:D])


@pytest.mark.parametrize("structure", STRUCTURES)
def test_padding_has_no_influence(structure):
    guide, prior = build(structure)
    values, path = torch.randn(B, T, V).double(), torch.randn(B, T, D).double()
    spoiled = values.clone()
    spoiled[1, 4:] = torch.nan
    spoiled[2, 1:] = 1e6
    assert torch.equal(guide(prior, values).log_prob(path), guide(prior, spoiled).log_prob(path))


def test_a_series_alone_equals_the_series_in_a_batch():
    guide, prior = build("ST-LR")
    values, path = torch.randn(B, T, V).double(), torch.randn(B, T, D).double()
    alone = DeepMarkovPrior(D, hidden=4).double()(4)
    one = guide(alone, values[1:2, :4]).log_prob(path[1:2, :4])
    torch.testing.assert_close(guide(prior, values).log_prob(path)[1:2], one)


@pytest.mark.parametrize("per_step", [False, True])
def test_what_is_masked_counts_as_zero(per_step):
    guide, prior = build("ST-R")
    values, path = torch.randn(B, T, V).double(), torch.randn(B, T, D).double()
    mask = torch.rand(B, T, V) < 0.5
    mask = mask.any(-1) if per_step else mask
    full = mask.unsqueeze(-1) if per_step else mask
    given = torch.where(full, values, torch.nan)
    expected = guide(prior, torch.where(full, values, 0.0)).log_prob(path)
    assert torch.equal(guide(prior, given, mask).log_prob(path), expected)


def test_dropout_is_for_training_only():
    guide, prior = build("ST-R", dropout=0.5)
    values, path = torch.randn(B, T, V).double(), torch.randn(B, T, D).double()
    trained = [guide(prior, values).log_prob(path)[0] for _ in range(2)]
    assert trained[0] != trained[1]
    guide.eval()
    evaluated = [guide(prior, values).log_prob(path)[0] for _ in range(2)]
    assert evaluated[0] == evaluated[1]


def test_flows_are_trained_and_scored_with_their_samples():
    guide, prior = build("ST-R", flows=2)
    law = guide(prior, torch.randn(B, T, V).double())
    path = law.rsample()
    log_prob = law.log_prob(path)
    assert log_prob.shape == (B,)
    assert torch.isfinite(log_prob).all()
    log_prob.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in guide.flows.parameters() if p.numel() > 1)
    plain = build("ST-R")[0]
    assert not list(plain.flows.parameters())


def test_float32_agrees_with_float64():
    guide, prior = build("ST-LR")
    values, path = torch.randn(B, T, V).double(), torch.randn(B, T, D).double()
    exact = guide(prior, values).log_prob(path)
    single = DeepMarkovPrior(D, hidden=4)(T, LENGTHS)
    found = guide.float()(single, values.float()).log_prob(path.float())
    torch.testing.assert_close(found, exact.float(), rtol=1e-4, atol=1e-4)


def test_arguments_that_do_not_fit_are_refused():
    guide, prior = build("ST-R")
    with pytest.raises(ValueError, match="`structure` must be one of MF-LR, ST-L, ST-LR, ST-R"):
        CombinerGuide(V, D, structure="ST")
    with pytest.raises(ValueError, match="`dropout` must satisfy"):
        CombinerGuide(V, D, dropout=1.0)
    with pytest.raises(ValueError, match="`flows` must be a number"):
        CombinerGuide(V, D, flows=-1)
    with pytest.raises(ValueError, match="`state_dim`"):
        CombinerGuide(V, 0)
    with pytest.raises(ValueError, match="`values` must have shape"):
        guide(prior, torch.zeros(B, T + 1, V).double())
    with pytest.raises(ValueError, match="`inputs` must hold the recurrent summary"):
        guide.step(torch.zeros(D).double(), torch.ones(1), None)
