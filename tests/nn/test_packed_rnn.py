"""The packed layer is a recurrent network series by series, with the gradients of autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_sde.nn.packed_rnn import PackedRNN, Packing

LENGTHS = torch.tensor([3, 6, 0, 1, 6])


def loop(layer: PackedRNN, values: Tensor, lengths: Tensor) -> Tensor:
    """The layer, one series and one step after the other."""
    activation = torch.relu if layer.activation == "relu" else torch.tanh
    out = []
    for row, length in zip(values, lengths.tolist(), strict=True):
        h, states = layer.first, [torch.zeros_like(layer.first)] * len(row)
        for t in reversed(range(length)) if layer.reverse else range(length):
            h = activation(layer.inward(row[t]) + layer.recurrent @ h)
            states[t] = h
        out.append(torch.stack(states))
    return torch.stack(out)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_layer_and_its_gradients_are_those_of_a_loop(activation, reverse, dtype, tolerance):
    torch.manual_seed(1)
    layer = PackedRNN(2, 4, activation=activation, reverse=reverse).to(dtype)
    torch.nn.init.normal_(layer.first)
    values = torch.randn(5, 6, 2, dtype=dtype, requires_grad=True)
    weights = torch.randn(5, 6, 4, dtype=dtype)
    wanted = [values, *layer.parameters()]
    states, expected = layer(values, LENGTHS), loop(layer, values, LENGTHS)
    torch.testing.assert_close(states, expected, rtol=tolerance, atol=tolerance)
    ours = torch.autograd.grad((states * weights).sum(), wanted)
    theirs = torch.autograd.grad((expected * weights).sum(), wanted)
    for gradient, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=10 * tolerance, atol=10 * tolerance)


def test_gradients_pass_gradcheck():
    torch.manual_seed(0)
    layer = PackedRNN(2, 3, activation="tanh", reverse=True).double()
    values = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer(x, torch.tensor([4, 2, 3])), (values,))


def test_padding_is_not_read():
    layer = PackedRNN(2, 4, reverse=True)
    values = torch.randn(2, 5, 2)
    spoiled = values.clone()
    spoiled[0, 3:] = torch.nan
    lengths = torch.tensor([3, 5])
    assert torch.equal(layer(values, lengths), layer(spoiled, lengths))


def test_reverse_sees_the_future_and_forward_the_past():
    values = torch.randn(1, 6, 2)
    changed = values.clone()
    changed[:, 3] += 1
    lengths = torch.tensor([6])
    for reverse, same, other in ((True, slice(4, 6), slice(0, 4)), (False, slice(0, 3), slice(3, 6))):
        layer = PackedRNN(2, 8, activation="tanh", reverse=reverse)
        difference = (layer(values, lengths) - layer(changed, lengths)).abs().sum(-1)[0]
        assert (difference[same] == 0).all()
        assert (difference[other] > 0).all()


def test_packing_orders_steps_by_time_and_drops_padding():
    packing = Packing.of(torch.tensor([1, 3, 0, 2]), 4)
    assert packing.counts == [3, 2, 1]
    padded = torch.arange(16.0).reshape(1, 4, 4, 1)
    rows = packing.pack(padded)
    assert rows.flatten().tolist() == [4, 12, 0, 5, 13, 6]
    back = packing.unpack(rows)
    assert back.shape == padded.shape
    assert torch.equal(back[0, :, :, 0], torch.tensor([[0, 0, 0, 0], [4, 5, 6, 0], [0] * 4, [12, 13, 0, 0.0]]))


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="`activation` must be one of"):
        PackedRNN(2, 3, activation="gelu")
    with pytest.raises(ValueError, match="`hidden`"):
        PackedRNN(2, 0)
    with pytest.raises(ValueError, match="`values` must have shape"):
        PackedRNN(2, 3)(torch.zeros(4, 5, 3), torch.ones(4, dtype=torch.long))
    with pytest.raises(ValueError, match="`values` must have shape"):
        PackedRNN(2, 3)(torch.zeros(4, 5, 2), torch.ones(3, dtype=torch.long))
