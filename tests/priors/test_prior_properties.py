"""Priors on series, lengths and observations that nobody chose: series do not see each other, nor their padding."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from pyro_sde.priors.deep_markov import DeepMarkovPrior
from pyro_sde.priors.regimes import MarkovRegimes, StickBreakingRegimes, stick_breaking
from pyro_sde.priors.stochastic_rnn import StochasticRNNPrior, VariationalRNNPrior
from pyro_sde.priors.switching import SwitchingLinearPrior, SwitchingNetworkPrior

F64 = torch.float64
PROPERTY = settings(derandomize=True, max_examples=20, deadline=None, database=None)
JUNK = (0.0, -7.5, 1e6)
READING = ("stochastic", "variational")


def make(kind: str) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prior = {
            "markov": lambda: DeepMarkovPrior(2, hidden=5),
            "stochastic": lambda: StochasticRNNPrior(1, 2, hidden=5),
            "variational": lambda: VariationalRNNPrior(1, 2, hidden=5),
            "linear": lambda: SwitchingLinearPrior(MarkovRegimes(3), 2),
            "recurrent": lambda: SwitchingLinearPrior(StickBreakingRegimes(3, 2), 2),
            "network": lambda: SwitchingNetworkPrior(MarkovRegimes(2), 2, (5,)),
        }[kind]()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.3 * torch.sin(torch.arange(parameter.numel())).reshape(parameter.shape))
    return prior.double()


PRIORS = {kind: make(kind) for kind in ("linear", "markov", "network", "recurrent", "stochastic", "variational")}


@st.composite
def batches(draw: st.DrawFn) -> tuple[str, int, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A kind of prior, T, lengths ``(B,)``, observations ``(B, T, 1)`` and states ``(B, T, 2)``."""
    kind, steps, rows = draw(st.sampled_from(sorted(PRIORS))), draw(st.integers(2, 6)), draw(st.integers(1, 4))
    lengths = torch.tensor([draw(st.integers(1, steps)) for _ in range(rows)])
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    values = torch.randn(rows, steps, 1, dtype=F64, generator=generator)
    return kind, steps, lengths, values, torch.randn(rows, steps, 2, dtype=F64, generator=generator)


def law_of(
    kind: str, steps: int, lengths: torch.Tensor | None, values: torch.Tensor
) -> torch.distributions.Distribution:
    return PRIORS[kind](steps, lengths, values) if kind in READING else PRIORS[kind](steps, lengths)


def padded(path: torch.Tensor, lengths: torch.Tensor, value: float | None = None) -> torch.Tensor:
    """What lies behind the ends of series replaced, by the last state if no value is given."""
    inside = torch.arange(path.shape[1]) < lengths.unsqueeze(-1)
    last = path.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, path.shape[-1]))
    return torch.where(inside.unsqueeze(-1), path, last if value is None else value)


@PROPERTY
@given(batches(), st.data())
def test_series_are_scored_alike_in_any_order(given_batch, data):
    kind, steps, lengths, values, path = given_batch
    order = torch.tensor(data.draw(st.permutations(range(len(lengths)))))
    path = padded(path, lengths)
    ours = law_of(kind, steps, lengths, values).log_prob(path)
    theirs = law_of(kind, steps, lengths[order], values[order]).log_prob(path[order])
    assert ours.isfinite().all()
    assert_close(theirs, ours[order], rtol=1e-12, atol=1e-12)


@settings(PROPERTY, max_examples=80)
@given(batches(), st.sampled_from(JUNK))
def test_a_padded_series_has_the_density_of_the_cut_one(given_batch, junk):
    kind, steps, lengths, values, path = given_batch
    together = law_of(kind, steps, lengths, padded(values, lengths, junk)).log_prob(padded(path, lengths))
    for row, (end, density) in enumerate(zip(lengths.tolist(), together, strict=True)):
        if end < 2 and kind in ("linear", "network", "recurrent"):
            continue  # a path of regimes has two states at least
        alone = law_of(kind, end, None, values[row : row + 1, :end]).log_prob(path[row : row + 1, :end])
        assert_close(alone.squeeze(0), density, rtol=1e-10, atol=1e-10)


@PROPERTY
@given(batches())
def test_a_draw_stands_still_behind_the_end_of_its_series(given_batch):
    kind, steps, lengths, values, _ = given_batch
    law = law_of(kind, steps, lengths, values)
    path = law.sample((3,))
    assert path.shape == (3, len(lengths), steps, 2)
    assert torch.equal(path, torch.stack([padded(draw, lengths) for draw in path]))
    assert law.log_prob(path).isfinite().all()


@PROPERTY
@given(st.lists(st.floats(-80.0, 80.0), min_size=0, max_size=6))
def test_the_pieces_of_a_stick_add_up_to_it(cuts):
    pieces = stick_breaking(torch.tensor([cuts], dtype=F64).reshape(1, -1))
    assert pieces.shape == (1, len(cuts) + 1)
    assert_close(pieces.logsumexp(-1), torch.zeros(1, dtype=F64), rtol=0, atol=1e-12)


@PROPERTY
@given(st.integers(1, 5), st.booleans(), st.floats(0.01, 0.99), st.floats(-5.0, 5.0), st.floats(-5.0, 5.0))
def test_regimes_follow_with_probability_one_and_begin_sticky(count, recurrent, stay, x, y):
    regimes = StickBreakingRegimes(count, 2, stay=stay) if recurrent else MarkovRegimes(count, stay=stay)
    regimes = regimes.double()
    state = torch.tensor([x, y], dtype=F64)
    table = regimes.table(state, torch.ones(1)) if recurrent else regimes().log_transition
    assert table.shape == (count, count)
    assert_close(table.logsumexp(-1), torch.zeros(count, dtype=F64), rtol=0, atol=1e-12)
    if count > 1:
        assert_close(table.diagonal(), torch.full((count,), math.log(stay), dtype=F64), rtol=1e-5, atol=1e-5)


def test_float32_priors_score_float32_paths():
    for kind, prior in PRIORS.items():
        with torch.random.fork_rng():
            single = make(kind).float()
        values, path = torch.zeros(2, 3, 1), torch.zeros(2, 3, 2)
        law = single(3, None, values) if kind in READING else single(3)
        double = prior(3, None, values.double()) if kind in READING else prior(3)
        assert law.log_prob(path).dtype == torch.float32
        assert_close(law.log_prob(path).double(), double.log_prob(path.double()), rtol=1e-5, atol=1e-5)
