from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pyro_sde.nn.autocast import Autocast


class Seen(nn.Linear):
    """A layer that remembers the type of its result."""

    def forward(self, x):
        result = super().forward(x)
        self.seen = result.dtype
        return result


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_are_of_lower_precision_and_results_are_not(dtype):
    layer = Seen(3, 2)
    x = torch.randn(4, 3)
    result = Autocast(layer, dtype)(x)
    assert layer.seen == dtype
    assert result.dtype == torch.float32
    assert_close(result, layer(x), rtol=0.05, atol=0.02)
    assert not torch.equal(result, layer(x))


def test_bfloat16_if_nothing_else_is_said():
    layer = Seen(3, 2)
    Autocast(layer)(torch.zeros(3))
    assert layer.seen == torch.bfloat16


def test_weights_and_gradients_keep_their_type():
    network = Autocast(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)))
    x = torch.randn(4, 3, requires_grad=True)
    network(x).square().sum().backward()
    assert {p.grad.dtype for p in network.parameters()} == {torch.float32}
    assert x.grad.dtype == torch.float32


def test_float64_stays_float64():
    layer = nn.Linear(3, 2, dtype=torch.float64)
    x = torch.randn(4, 3, dtype=torch.float64)
    assert_close(Autocast(layer)(x), layer(x), rtol=0, atol=0)


def test_type_of_the_result_is_that_of_the_last_argument():
    network = Autocast(nn.Bilinear(2, 2, 1))
    assert network(torch.zeros(2), torch.zeros(2)).dtype == torch.float32


def test_other_types_are_refused():
    with pytest.raises(ValueError, match=r"`dtype` must be torch.bfloat16 or torch.float16, received torch.float32"):
        Autocast(nn.Linear(1, 1), torch.float32)


def test_networks_that_return_several_tensors_are_refused():
    with pytest.raises(TypeError, match="`module` must return a tensor, received tuple"):
        Autocast(nn.GRU(1, 1))(torch.zeros(2, 1))
