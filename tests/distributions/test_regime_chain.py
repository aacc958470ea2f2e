"""Laws of regimes: what they hold, and what is wrong with them."""

import pytest
import torch

from pyro_sde.distributions.regime_chain import RegimeChain

HALF = torch.tensor([0.5, 0.5]).log()
TABLE = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log()


def test_a_table_is_the_same_at_every_state():
    chain = RegimeChain(HALF, TABLE)
    assert chain.num_regimes == 2
    assert not chain.recurrent
    assert chain.table(torch.zeros(5, 3), torch.ones(1), None) is TABLE


def test_a_function_gets_state_time_and_inputs():
    seen = []

    def table(z, t, inputs):
        seen.append((z, t, inputs))
        return TABLE

    chain = RegimeChain(HALF, table)
    assert chain.recurrent
    given = torch.zeros(5, 3), torch.ones(1), torch.zeros(5, 1)
    assert chain.table(*given) is TABLE
    assert all(one is other for one, other in zip(seen[0], given, strict=True))


def test_regimes_that_cannot_follow_are_allowed():
    chain = RegimeChain(torch.tensor([1.0, 0.0]).log(), torch.eye(2, dtype=torch.float64).log())
    assert chain.num_regimes == 2


def test_probabilities_that_do_not_sum_to_one_are_named():
    with pytest.raises(ValueError, match="`log_initial` must hold normalised log-probabilities .* sum to 2.5"):
        RegimeChain(torch.tensor([0.5, 2.0]).log(), TABLE)
    with pytest.raises(ValueError, match=r"`log_transition` must hold .* at index \[0\]. Normalise by log_softmax"):
        RegimeChain(HALF, TABLE.T)


def test_another_number_of_regimes_is_named():
    with pytest.raises(ValueError, match=r"`log_transition` must have shape \(\*batch, 2, 2\) for the K = 2 regimes"):
        RegimeChain(HALF, torch.full((3, 3), 1 / 3).log())
    with pytest.raises(ValueError, match="received float"):
        RegimeChain(HALF, TABLE).check_table(0.5)


def test_wrong_kinds_are_named():
    with pytest.raises(TypeError, match="`log_transition` must be a tensor .* or a function of .*, received list"):
        RegimeChain(HALF, [[0.0]])
    with pytest.raises(ValueError, match=r"`log_initial` must have shape \(\*batch, K\), received \(\)"):
        RegimeChain(torch.tensor(0.0), TABLE)
