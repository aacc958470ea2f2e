"""Learnable laws of regimes: their start, stick breaking, and what they depend on."""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch

from pyro_sde.distributions.switching import SwitchingPath
from pyro_sde.priors.regimes import MarkovRegimes, StickBreakingRegimes, stick_breaking

DOUBLE = torch.float64


def test_stick_breaking_is_the_product_of_what_is_left():
    cuts = torch.randn(5, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    taken = cuts.sigmoid()
    expected = torch.stack(
        [
            taken[:, 0],
            (1 - taken[:, 0]) * taken[:, 1],
            (1 - taken[:, 0]) * (1 - taken[:, 1]) * taken[:, 2],
            (1 - taken[:, 0]) * (1 - taken[:, 1]) * (1 - taken[:, 2]),
        ],
        -1,
    )
    torch.testing.assert_close(stick_breaking(cuts).exp(), expected)
    torch.testing.assert_close(stick_breaking(cuts).exp().sum(-1), torch.ones(5, dtype=DOUBLE))
    assert torch.equal(stick_breaking(cuts[:, :0]), torch.zeros(5, 1, dtype=DOUBLE))


def test_stick_breaking_is_exact_far_from_its_planes():
    cuts = torch.tensor([800.0, -900.0], requires_grad=True)
    pieces = stick_breaking(cuts)
    torch.testing.assert_close(pieces, torch.tensor([0.0, -1700.0, -800.0]))
    (gradient,) = torch.autograd.grad(pieces.sum(), cuts)
    assert torch.isfinite(gradient).all()


def test_a_markov_chain_starts_sticky_and_uniform():
    chain = MarkovRegimes(4, stay=0.91)()
    torch.testing.assert_close(chain.log_initial.exp(), torch.full((4,), 0.25))
    table = chain.log_transition.exp()
    torch.testing.assert_close(table, torch.full((4, 4), 0.03).fill_diagonal_(0.91))
    assert not chain.recurrent


def test_recurrent_regimes_start_as_the_markov_chain():
    sticky = StickBreakingRegimes(4, 2, stay=0.91)
    table = sticky.table(torch.randn(7, 2), torch.ones(1))
    assert table.shape == (7, 4, 4)
    torch.testing.assert_close(table.exp(), MarkovRegimes(4, stay=0.91)().log_transition.exp().expand(7, 4, 4))
    shared = StickBreakingRegimes(4, 2, recurrent_only=True).table(torch.randn(7, 2), torch.ones(1))
    torch.testing.assert_close(shared.exp(), torch.full((7, 4, 4), 0.25))


def test_the_state_moves_the_regimes_and_each_row_by_its_own_planes():
    module = StickBreakingRegimes(3, 2)
    with torch.no_grad():
        module.weight[1, 0] = torch.tensor([5.0, 0.0])  # from regime 1, to regime 0 where the first state is large
        module.bias.zero_()
    table = module.table(torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0]]), torch.ones(1)).exp()
    assert table[0, 1, 0] > 0.99
    assert table[1, 1, 0] < 0.01
    torch.testing.assert_close(table[2, 1, 0], torch.tensor(0.5))
    torch.testing.assert_close(table[0, 0], table[1, 0])


def test_with_recurrent_only_the_regime_that_is_left_plays_no_part():
    module = StickBreakingRegimes(3, 2, recurrent_only=True)
    with torch.no_grad():
        module.weight.normal_()
    table = module.table(torch.randn(5, 2), torch.ones(1))
    assert torch.equal(table, table[:, :1].expand(5, 3, 3))
    assert not torch.equal(table[0], table[1])


@pytest.mark.parametrize("make", [lambda: MarkovRegimes(3), lambda: StickBreakingRegimes(3, 2)])
def test_all_parameters_get_gradients_in_a_path_law(make):
    torch.manual_seed(0)
    module = make()
    spread = torch.tensor([[-1.0], [0.0], [1.0]])

    def step(z, t, inputs):
        return dist.Normal(z.unsqueeze(-2) + spread, 0.5).to_event(1)

    law = SwitchingPath(step, dist.Normal(torch.zeros(2), 1.0).to_event(1), module(), 6)
    law.log_prob(law.sample()).backward()
    for parameter in module.parameters():
        assert parameter.grad.abs().sum() > 0


def test_two_cuts_give_every_order_of_certain_regimes():
    for order in itertools.permutations([0, 1, 2]):
        cuts = torch.full((3, 2), -math.inf)
        for row, regime in enumerate(order):
            if regime < 2:
                cuts[row, regime] = math.inf
        assert stick_breaking(cuts).exp().argmax(-1).tolist() == list(order)


def test_bad_arguments_are_named():
    for make in (MarkovRegimes, lambda k, **options: StickBreakingRegimes(k, 2, **options)):
        with pytest.raises(ValueError, match="`num_regimes` must be an integer >= 1"):
            make(0)
        with pytest.raises(ValueError, match="`stay` must satisfy 0 < stay < 1, received 1.0"):
            make(2, stay=1.0)
    with pytest.raises(ValueError, match="`state_dim` must be an integer >= 1"):
        StickBreakingRegimes(2, 0)
