"""Captured tensors get the gradients of backpropagation, or an error that names them; never zero in silence."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyro_sde.solvers.captured import LocalGraph, StandIns, find_captured


class Square(torch.autograd.Function):
    """What torch functions modes do not see into."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, *gradients):
        return 2 * ctx.saved_tensors[0] * gradients[0]


@pytest.fixture
def parts():
    torch.manual_seed(0)
    return nn.Linear(2, 2).double(), nn.Linear(3, 2).double(), torch.randn(4, 3).double()


def same(found, expected):
    return {id(t) for t in found} == {id(t) for t in expected}


def test_parameters_closures_and_computed_tensors_are_found(parts):
    inner, encoder, data = parts
    context, free = encoder(data), torch.ones(2, dtype=torch.float64, requires_grad=True)
    frozen = torch.ones(2, dtype=torch.float64)

    def function(z):
        return (torch.tanh(inner(z)) * context + free * frozen,)

    found = find_captured(function, (torch.zeros(4, 2).double(),))
    assert same(found, [*inner.parameters(), context, free])


def test_a_tensor_that_is_returned_as_it_is_is_found(parts):
    _, encoder, data = parts
    context, free = encoder(data), torch.ones(4, 2, dtype=torch.float64, requires_grad=True)
    assert same(find_captured(lambda z: (context, free), (torch.zeros(4, 2),)), [context, free])


def test_a_parameter_inside_a_custom_function_is_found():
    weight = torch.ones(2, requires_grad=True)
    assert same(find_captured(lambda z: (Square.apply(weight) * z,), (torch.zeros(2),)), [weight])


def test_a_tensor_inside_a_forward_derivative_is_found(parts):
    _, encoder, data = parts
    context = encoder(data)

    def function(z):
        return (torch.func.jvp(lambda x: x.sin() * context, (z,), (z,))[1],)

    found = find_captured(function, (torch.ones(4, 2).double(),))
    assert same(found, [context])


def test_a_computed_tensor_inside_a_custom_function_is_refused_by_name(parts):
    _, encoder, data = parts
    context = encoder(data)
    names = dict(encoder.named_parameters())
    with pytest.raises(ValueError, match=r"computed by AddmmBackward0 from the parameter 'bias', the parameter 'wei"):
        find_captured(lambda z: (Square.apply(context) * z,), (torch.zeros(4, 2).double(),), names)


def test_a_computed_tensor_that_torch_functions_never_see_is_refused():
    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x

        @staticmethod
        def backward(ctx, *gradients):
            return gradients[0]

    context = torch.ones(2, requires_grad=True).exp()
    with pytest.raises(ValueError, match=r"computed by ExpBackward0 from a tensor of shape \(2,\), where its gradient"):
        find_captured(lambda z: (Scaled.apply(context) * z,), (torch.zeros(2),))


def test_what_does_not_reach_the_outputs_is_not_captured(parts):
    inner, encoder, data = parts
    context = encoder(data)
    assert not find_captured(lambda z: (z * context.detach() + inner(z).detach(),), (torch.zeros(4, 2).double(),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_local_gradients_equal_autograd_and_stop_at_captured_tensors(dtype):
    # `weight` is used directly and behind `context`: only the direct part belongs to this call
    weight = torch.tensor([0.5, -0.3], dtype=dtype, requires_grad=True)
    context = weight.exp()
    z, direction = torch.tensor([1.0, 2.0], dtype=dtype), torch.tensor([0.3, 0.7], dtype=dtype)

    def function(z):
        return (torch.stack([context, z]).prod(0) * weight, z * 2)

    captured = find_captured(function, (z,))
    graph = LocalGraph(function, (z,), StandIns(captured), [True])
    (of_z,), of_captured = graph.vjp((direction, direction))
    by_id = {id(t): g for t, g in zip(captured, of_captured, strict=True)}
    torch.testing.assert_close(of_z, direction * (context * weight).detach() + 2 * direction)
    torch.testing.assert_close(by_id[id(context)], (direction * z * weight).detach())
    torch.testing.assert_close(by_id[id(weight)], (direction * z * context).detach())


def test_unwanted_arguments_and_constant_functions_have_no_gradient():
    graph = LocalGraph(lambda z: (torch.ones(2),), (torch.zeros(2),), StandIns(()), [False])
    assert graph.vjp((torch.ones(2),)) == ([None], [])


@pytest.mark.parametrize("leaf", [True, False])
def test_a_tensor_that_a_later_call_reaches_first_is_refused(leaf):
    early, late = (torch.ones(2, requires_grad=True) for _ in range(2))
    late = late if leaf else late.exp()

    def function(t, z):
        return ((late if t > 1 else early) * z,)

    captured = find_captured(function, (torch.zeros(()), torch.ones(2)))
    names = {"drift.late": late} if leaf else {}
    with pytest.raises(RuntimeError, match="parameter 'drift.late'" if leaf else "computed by ExpBackward0"):
        LocalGraph(function, (torch.full((), 2.0), torch.ones(2)), StandIns(captured, names), [False, True])


def test_arguments_may_have_a_history():
    z = torch.ones(2, requires_grad=True).exp()
    (output,) = StandIns(()).call(lambda z: (2 * z,), (z,))
    torch.testing.assert_close(output, 2 * z)
