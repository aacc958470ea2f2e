"""The compiled loops against plain ones, written out here; float64 to 1e-12, float32 to 1e-5 of the largest entry.

The longest paths here have 40 steps: round-off of a step is not damped or blown up by much over them.
"""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_sde import SDE, SDEPath, TimeGrid
from pyro_sde.nn import ControlNet, DiagonalDiffusion, DriftNet
from pyro_sde.solvers import _elementwise, _jit, _kernels, compiled
from pyro_sde.solvers._layers import Block, Layers, LayerSpec

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
TYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float64", "float32"])
ACTIVATIONS = [nn.SiLU(), nn.Tanh(), nn.ReLU(), nn.ELU(), nn.Softplus(), nn.GELU()]

needs_numba = pytest.mark.skipif(not _jit.serves(torch.zeros(1)), reason="needs the extra `fast`")


class Term(NamedTuple):
    layers: Layers
    block: Block
    factor: Tensor
    extra: Tensor | None


def network(
    sizes: tuple[int, ...],
    *,
    activation: nn.Module | None = None,
    shift: tuple[int, int] = (1, 1),
    rate: int = 0,
    bounds: tuple[float, float] | None = None,
    blocks: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Layers:
    """A coefficient with random tensors: layer sizes (inputs, hidden, ..., outputs), or (D,) for an affine one."""
    width = sizes[0]
    weights = [torch.randn(o, i, dtype=dtype) / i**0.5 for i, o in zip(sizes, sizes[1:], strict=False)]
    if blocks:
        owner = torch.arange(sizes[1]) // (sizes[1] // width)
        mask = (owner.unsqueeze(-1) == torch.arange(width)).to(dtype)
        weights = [weights[0] * mask, weights[1] * mask.t()]
    first = sizes[1] if weights else width
    tensors = [torch.randn(*shift, first, dtype=dtype), *weights]
    tensors += [torch.randn(size, dtype=dtype) for size in sizes[2:]]
    if rate:
        tensors.append(torch.rand(1, rate, width, dtype=dtype))
    found = (activation or nn.SiLU()) if weights else None
    return Layers(LayerSpec(len(weights), bool(rate), found, bounds, blocks), tuple(tensors))


def value(net: Layers, k: int, z: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Value of a coefficient at states (R, D), and the pre-activations of its hidden layers."""
    x = shift = net.shift[k if len(net.shift) > 1 else 0]
    hidden = []
    if net.weights:
        x = z @ net.weights[0].t() + shift
        for weight, bias in zip(net.weights[1:], net.biases, strict=True):
            hidden.append(x)
            x = net.spec.activation(x) @ weight.t() + bias
    if net.rate is not None:
        x = x - net.rate[0] * z
    if net.spec.bounds is not None:
        x = net.spec.bounds[0] + net.spec.bounds[1] * x.sigmoid()
    return x.expand_as(z), hidden


def plain_path(nets, initial: Tensor, increments: Tensor, steps: Tensor):
    """States, values and pre-activations of every step by the definition."""
    states, values, hidden = [initial], ([], [], []), ([], [], [])
    for k, increment in enumerate(increments):
        z, each = states[-1], []
        for i, net in enumerate(nets):
            x, inner = (torch.zeros_like(z), []) if net is None else value(net, k, z)
            each.append(x)
            values[i].append(x)
            hidden[i].append(inner)
        f, sigma, u = each
        states.append(z + f * steps[k] + sigma * (increment + u * steps[k]))
    stacked = [[torch.stack(layer) for layer in zip(*inner, strict=True)] for inner in hidden]
    return torch.stack(states), [torch.stack(v) for v in values], stacked


def problem(rows: int, width: int, count: int, dtype: torch.dtype, *, ragged: bool = False):
    initial, increments = torch.randn(rows, width, dtype=dtype), 0.1 * torch.randn(count, rows, width, dtype=dtype)
    steps = 0.01 + 0.01 * torch.rand(count, rows if ragged else 1, 1, dtype=dtype)
    return initial, increments, steps


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[expected.dtype] * max(scale, 1e-30))


def assert_same_path(nets, initial, increments, steps, keep=(False, False, False)) -> None:
    found = compiled.simulate(nets, initial, increments, steps, keep)
    assert found is not None
    states, values, hidden = found
    expected, expected_values, expected_hidden = plain_path(nets, initial, increments, steps)
    assert_close(states, expected)
    for i, net in enumerate(nets):
        if net is None or not net.weights:
            assert values[i] is None
        else:
            assert_close(values[i], expected_values[i])
        assert len(hidden[i]) == (len(expected_hidden[i]) if keep[i] and net is not None else 0)
        for layer, reference in zip(hidden[i], expected_hidden[i], strict=False):
            assert layer.is_contiguous()
            assert_close(layer, reference)


@pytest.fixture(autouse=True)
def _seed():
    pyro.set_rng_seed(0)


# --- the path -----------------------------------------------------------------------------------------------------
@needs_numba
@TYPES
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
def test_path_is_that_of_the_definition_for_every_activation(activation, dtype):
    nets = (
        network((3, 20, 17, 3), activation=activation, dtype=dtype),
        network((3, 12, 3), activation=activation, bounds=(0.1, 0.8), blocks=True, dtype=dtype),
        network((3, 9, 3), activation=activation, dtype=dtype),
    )
    assert_same_path(nets, *problem(5, 3, 40, dtype), keep=(True, False, True))


@needs_numba
@TYPES
@pytest.mark.parametrize("rows", [1, 5, 33])
@pytest.mark.parametrize("sizes", [(4, 33, 4), (4, 18, 40, 4), (4, 18, 5, 24, 4)], ids=["2", "3", "4 layers"])
def test_path_is_that_of_the_definition_for_every_depth_and_batch(rows, sizes, dtype):
    nets = (network(sizes, dtype=dtype), network((4,), dtype=dtype), None)
    assert_same_path(nets, *problem(rows, 4, 20, dtype), keep=(True, True, True))


@needs_numba
@TYPES
@pytest.mark.parametrize("width", [_kernels.NARROW, _kernels.NARROW + 1])
def test_states_about_as_wide_as_narrow_products_are_those_of_the_definition(width, dtype):
    nets = (
        network((width, 8, width), dtype=dtype),
        network((width,), dtype=dtype),
        network((width, 30, width), dtype=dtype),
    )
    assert_same_path(nets, *problem(6, width, 20, dtype))


@needs_numba
@pytest.mark.parametrize("ragged", [False, True], ids=["shared steps", "steps per row"])
@pytest.mark.parametrize("shift", [(1, 1), (25, 1), (1, 6), (25, 6)], ids=str)
@pytest.mark.parametrize("rate", [0, 1, 6], ids=["no rate", "shared rate", "rate per row"])
def test_shifts_rates_and_steps_may_differ_per_step_and_row(ragged, shift, rate):
    options = {"shift": shift, "rate": rate}
    nets = (network((2, 18, 2), **options), network((2, 8, 2), bounds=(-0.2, 0.5), **options), network((2,), **options))
    assert_same_path(nets, *problem(6, 2, 25, torch.float64, ragged=ragged))
    nets = (network((2,), **options), network((2,), **options), network((2, 17, 2), **options))
    assert_same_path(nets, *problem(6, 2, 25, torch.float64, ragged=ragged))


@needs_numba
@TYPES
@pytest.mark.parametrize("rows", [1, 5])
def test_elementwise_networks_are_evaluated_by_their_blocks(rows, dtype, monkeypatch):
    net = network((3, 21, 3), blocks=True, bounds=(0.2, 1.0), rate=1, shift=(20, 1), dtype=dtype)
    blocks = compiled._blocks(net)
    assert blocks is not None
    assert [block.shape for block in blocks] == [(21,), (21,)]
    assert_same_path((network((3,), dtype=dtype), net, net), *problem(rows, 3, 20, dtype))


@needs_numba
def test_elementwise_networks_without_blocks_are_evaluated_whole():
    net = network((3, 21, 3), blocks=True)
    order = torch.randperm(21)
    shift, first, second, bias = net.tensors
    mixed = Layers(net.spec, (shift[..., order], first[order], second[:, order], bias))
    spread = network((3, 20, 3))
    spread = Layers(spread.spec._replace(elementwise=True), spread.tensors)
    for other in (mixed, spread):
        assert compiled._blocks(other) is None
        assert_same_path((other, other, None), *problem(4, 3, 20, torch.float64))


@needs_numba
def test_padded_steps_leave_the_state_as_it_is():
    initial, increments, steps = problem(3, 2, 12, torch.float64, ragged=True)
    steps[7:, 1], increments[7:, 1] = 0, 0
    nets = (network((2, 20, 2)), network((2, 6, 2), bounds=(0.1, 1.0), blocks=True), network((2, 20, 2)))
    states, _, _ = compiled.simulate(nets, initial, increments, steps)
    assert bool((states[8:, 1] == states[7, 1]).all())
    assert not bool((states[8:, 0] == states[7, 0]).any())


@needs_numba
def test_tensors_need_not_be_contiguous_and_may_require_gradients():
    initial, increments, steps = problem(5, 3, 10, torch.float64)
    net = network((3, 20, 3), shift=(10, 5))
    turned = Layers(net.spec, tuple(t.mT.contiguous().mT.requires_grad_() for t in net.tensors[:3]) + net.tensors[3:])
    shared = Layers(
        LayerSpec(0, False, None, None, False), (torch.randn(1, 1, 1, dtype=torch.float64).expand(1, 1, 3),)
    )
    given = (initial.mT.contiguous().mT, increments.mT.contiguous().mT, steps.expand(10, 5, 1))
    with torch.no_grad():
        assert_same_path((turned, shared, None), *given)
        assert not compiled.simulate((turned, shared, None), *given)[0].requires_grad


@needs_numba
@TYPES
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
def test_activations_are_exact_for_large_small_and_missing_numbers(activation, dtype):
    one = torch.ones(1, 1, dtype=dtype)
    net = Layers(LayerSpec(2, False, activation, None, False), (0 * one.view(1, 1, 1), one, one, 0 * one[0]))
    still = Layers(LayerSpec(0, False, None, None, False), (0 * one.view(1, 1, 1),))
    limit = 1e30 if dtype == torch.float32 else 1e300
    inner = torch.linspace(-30, 30, 601, dtype=dtype)
    edges = torch.tensor(
        [0, 1e-30, -1e-30, 1e-6, -1e-6, 1e-3, -1e-3, 87, -87, 88.4, -88.4, 89, 700, -700, 709.4, -709.4]
    )
    edges = torch.cat([edges.to(dtype), torch.tensor([limit, -limit, math.nan], dtype=dtype)])
    z = torch.cat([inner, edges]).unsqueeze(-1)
    steps = torch.zeros(1, 1, 1, dtype=dtype)
    parts = [
        compiled.simulate((net, still, None), part, torch.zeros_like(part).unsqueeze(0), steps)[1][0][0]
        for part in z.split(compiled._MOST_ROWS)
    ]
    found = torch.cat(parts)
    # 4 roundings, relative; what counts for nothing beside 1 may be 0, and GELU's definition cancels for negative z
    small = 4 * torch.finfo(dtype).eps
    atol = 2 * small if isinstance(activation, nn.GELU) else 1e-30
    # older versions of torch compute ELU near 0 as exp(z) - 1, which cancels
    expected = torch.where(z > 0, z, z.expm1()) if isinstance(activation, nn.ELU) else activation(z)
    torch.testing.assert_close(found, expected, rtol=small, atol=atol, equal_nan=True)


@needs_numba
@TYPES
def test_a_missing_number_stays_in_its_row(dtype):
    initial, increments, steps = problem(6, 3, 10, dtype)
    increments[4, 2, 1] = math.nan
    nets = (network((3, 20, 3), dtype=dtype), network((3, 9, 3), bounds=(0.1, 1), blocks=True, dtype=dtype), None)
    states, _, _ = compiled.simulate(nets, initial, increments, steps)
    finite = states.isfinite().all(-1)
    assert bool(finite[:5].all())
    assert not bool(finite[5:, 2].any())
    assert bool(finite[5:, [0, 1, 3, 4, 5]].all())


@needs_numba
def test_an_exploding_path_is_not_finite():
    initial, increments, steps = problem(2, 3, 60, torch.float32)
    net = network((3, 20, 3), dtype=torch.float32, activation=nn.ReLU())
    large = Layers(net.spec, tuple(1e3 * tensor for tensor in net.tensors))
    states, _, _ = compiled.simulate((large, network((3,), dtype=torch.float32), None), initial, increments, steps)
    assert not bool(states[-1].isfinite().all(-1).any())


# --- the adjoint --------------------------------------------------------------------------------------------------
def term(sizes, count: int, rows: int, dtype, *, gate: bool, extra: bool, shared: bool = False) -> Term:
    net = network(sizes, dtype=dtype)
    slopes = [torch.rand(count * rows, size, dtype=dtype) for size in sizes[1:-1]]
    block = Block([], slopes, torch.rand(count * rows, sizes[-1], dtype=dtype) if gate else None, [])
    factor = torch.randn(count, 1 if shared else rows, 1 if shared else sizes[0], dtype=dtype) / 3
    return Term(net, block, factor, torch.randn(count, rows, sizes[0], dtype=dtype) if extra else None)


def plain_recursion(gain: Tensor, source: Tensor, terms: list[Term], adjoint: Tensor):
    """Adjoints after each step and before the first, and the cotangents of the terms' layers, the last first."""
    count, rows, _ = gain.shape
    after, cotangents = [], []
    for k in range(count - 1, -1, -1):
        after.append(adjoint)
        before, given = source[k] + gain[k] * adjoint, []
        for each in terms:
            at = slice(k * rows, (k + 1) * rows)
            delta = each.factor[k] * adjoint + (0 if each.extra is None else each.extra[k])
            delta = delta if each.block.gate is None else delta * each.block.gate[at]
            deltas = [delta]
            for slope, weight in zip(each.block.slopes[::-1], each.layers.weights[:0:-1], strict=True):
                delta = delta @ weight * slope[at]
                deltas.append(delta)
            before = before + delta @ each.layers.weights[0]
            given.append(deltas)
        cotangents.append(given)
        adjoint = before
    by_term = [
        [torch.cat(parts[::-1]) for parts in zip(*steps, strict=True)] for steps in zip(*cotangents, strict=True)
    ]
    return torch.stack(after[::-1]), adjoint, by_term


@needs_numba
@TYPES
@pytest.mark.parametrize("rows", [1, 5, 33])
@pytest.mark.parametrize("number", [0, 1, 2, 3], ids=lambda n: f"{n} networks")
def test_adjoints_are_those_of_the_definition(rows, number, dtype):
    count, width = 12, 3
    terms = [
        term((3, 20, 3), count, rows, dtype, gate=False, extra=False, shared=True),
        term((3, 18, 33, 3), count, rows, dtype, gate=True, extra=True),
        term((3, 5, 20, 18, 6, 3), count, rows, dtype, gate=False, extra=True),
    ][:number]
    gain, source = torch.rand(count, rows, width, dtype=dtype), torch.randn(count, rows, width, dtype=dtype)
    adjoint = torch.randn(rows, width, dtype=dtype)
    found = compiled.recursion(gain, source, terms, adjoint)
    assert found is not None
    after, before, cotangents = plain_recursion(gain, source, terms, adjoint)
    assert_close(found[0], after)
    assert_close(found[1], before)
    for each, expected in zip(terms, cotangents, strict=True):
        assert len(each.block.deltas) == len(expected)
        for delta, reference in zip(each.block.deltas, expected, strict=True):
            assert_close(delta, reference)


@needs_numba
@pytest.mark.parametrize("width", [_kernels.NARROW, _kernels.NARROW + 1])
def test_adjoints_of_states_about_as_wide_as_narrow_products_are_those_of_the_definition(width):
    count, rows = 5, 6
    terms = [term((width, 7, width), count, rows, torch.float64, gate=True, extra=False)]
    given = torch.rand(2, count, rows, width, dtype=torch.float64)
    found = compiled.recursion(given[0], given[1], terms, given[0, 0])
    after, before, _ = plain_recursion(given[0], given[1], terms, given[0, 0])
    assert_close(found[0], after)
    assert_close(found[1], before)


@needs_numba
def test_a_guide_has_the_same_path_and_gradients_with_and_without_machine_code():
    grid = TimeGrid(torch.linspace(0, 1, 31, dtype=torch.float64))
    prior = SDE(DriftNet(3, (18, 20), reversion=0.5), DiagonalDiffusion(3, 6, constant=False)).double()
    control = ControlNet(3, 4, hidden=(17,)).double()
    nn.init.normal_(control.tail.layers[-1].weight, std=0.3)
    rows = torch.randn(2, 30, 4, dtype=torch.float64, requires_grad=True)
    initial = dist.Normal(torch.zeros(2, 3, dtype=torch.float64), 1.0).to_event(1)
    targets = [*prior.parameters(), *control.parameters(), rows]
    results = []
    for choice in ("never", "auto"):
        pyro.set_rng_seed(3)
        with pyro.settings.context(pyro_sde_compiled=choice):
            path = SDEPath(prior.controlled(control), initial, grid, inputs=rows).rsample()
            results.append([path, *torch.autograd.grad(path.square().sum() + path[..., -1, :].sum(), targets)])
    for without, with_machine_code in zip(*results, strict=True):
        torch.testing.assert_close(with_machine_code, without, rtol=1e-10, atol=1e-10)


# --- activations and their derivatives ----------------------------------------------------------------------------
@needs_numba
@TYPES
@pytest.mark.parametrize("activation", ACTIVATIONS[:5], ids=lambda a: type(a).__name__)
def test_activations_and_their_slopes_are_those_of_torch(activation, dtype):
    x = torch.cat([torch.linspace(-40, 40, 801, dtype=dtype), torch.tensor([-1e4, 1e4, math.nan], dtype=dtype)])
    x = x.view(4, 201).mT.requires_grad_()
    value, slope = _jit.linearise(activation, x)
    expected = activation(x)
    small = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(value, expected.detach(), rtol=small, atol=1e-30, equal_nan=True)
    (reference,) = torch.autograd.grad(expected.sum(), x)
    known = ~x.detach().isnan()  # a missing number is missing in the value, whatever the slope
    torch.testing.assert_close(slope[known], reference[known], rtol=small, atol=small)
    assert not value.requires_grad


# --- networks of one dimension each -------------------------------------------------------------------------------
def plain_derivatives(net: Layers, z: Tensor, cotangent: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Derivatives (N, D) of the outputs by their states, and gradients of shift, weights on the blocks, and bias."""
    leaves = [tensor.detach().requires_grad_() for tensor in net.tensors]
    states = z.detach().requires_grad_()
    output, _ = value(Layers(net.spec, tuple(leaves)), 0, states)
    (slope,) = torch.autograd.grad(output.sum(), states, retain_graph=True)
    gradients = torch.autograd.grad(output, leaves, cotangent)
    return slope, [gradient * (leaf != 0) for gradient, leaf in zip(gradients, leaves, strict=True)]


@needs_numba
@TYPES
@pytest.mark.parametrize("activation", ACTIVATIONS[:5], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("rows", [1, 7, _kernels.CHUNK, _kernels.CHUNK + 3])
def test_derivatives_of_elementwise_networks_are_those_of_autograd(rows, activation, dtype):
    net = network((3, 21, 3), activation=activation, bounds=(0.2, 1.3), blocks=True, dtype=dtype)
    states, cotangent = torch.randn(2, 1, rows, 3, dtype=dtype)
    values, _ = value(net, 0, states[0])
    assert net.compiled is not None
    block = net.linearise(0, 1, states, values, [])
    assert block.slopes == []  # nothing of the hidden units
    gradients = [torch.ones_like(tensor) for tensor in net.tensors]
    net.accumulate(gradients, block, cotangent, states, (0, 1))
    slope, expected = plain_derivatives(net, states[0], cotangent[0])
    assert_close(net.diagonal(block), slope)
    for found, reference in zip(gradients, expected, strict=True):
        assert_close(found - 1, reference.view_as(found))


@needs_numba
def test_elementwise_networks_may_have_one_dimension_and_turned_tensors():
    for width in (1, 3):
        net = network((width, 4 * width, width), blocks=True)
        turned = Layers(net.spec, (net.shift, *(weight.t().contiguous().t() for weight in net.weights), *net.biases))
        states = torch.randn(5, width, 2, dtype=torch.float64).mT  # 10 rows
        block = turned.linearise(0, 5, states, states, [])
        gradients = turned.gradients()
        turned.accumulate(gradients, block, states, states, (0, 5))
        slope, expected = plain_derivatives(net, states.reshape(10, width), states.reshape(10, width))
        assert_close(turned.diagonal(block), slope)
        for found, reference in zip(gradients, expected, strict=True):
            assert_close(found, reference.view_as(found))


@needs_numba
@TYPES
def test_a_missing_number_stays_in_its_row_and_dimension_of_an_elementwise_network(dtype):
    for activation in ACTIVATIONS[:2]:
        net = network((2, 40, 2), activation=activation, blocks=True, dtype=dtype)
        states = torch.randn(1, 9, 2, dtype=dtype)
        states[0, 4, 1] = math.nan
        block = net.linearise(0, 1, states, states, [])
        missing = net.diagonal(block).isnan()
        assert bool(missing[4, 1])
        assert int(missing.sum()) == 1
        gradients = net.gradients()
        net.accumulate(gradients, block, torch.ones_like(states), states, (0, 1))
        for gradient in (gradients[0][0, 0], gradients[1].sum(1), gradients[2].sum(0)):
            assert bool(gradient[:20].isfinite().all())
            assert bool(gradient[20:].isnan().all())


@pytest.mark.parametrize("reason", ["a shift per step", "GELU", "no blocks", "not elementwise", "never"])
def test_derivatives_of_other_elementwise_networks_are_left_to_torch(reason):
    net = network((2, 6, 2), blocks=True, shift=(3 if reason == "a shift per step" else 1, 1))
    tensors = net.tensors
    if reason == "no blocks":
        tensors = (tensors[0], tensors[1].flip(0), tensors[2].flip(1), tensors[3])
        tensors = (tensors[0], torch.randn(6, 2, dtype=torch.float64), *tensors[2:])
    spec = net.spec._replace(
        activation=nn.GELU() if reason == "GELU" else nn.SiLU(), elementwise=reason != "not elementwise"
    )
    with pyro.settings.context(pyro_sde_compiled="never" if reason == "never" else "auto"):
        assert Layers(spec, tensors).compiled is None


# --- where it applies ---------------------------------------------------------------------------------------------
class _Swish(nn.SiLU):
    pass


@pytest.mark.parametrize(
    "activation",
    [nn.Sigmoid(), nn.ELU(2.0), nn.Softplus(2.0), nn.Softplus(threshold=5), nn.GELU("tanh"), _Swish()],
    ids=repr,
)
def test_activations_that_the_kernel_does_not_know_are_left_to_the_caller(activation):
    nets = (network((2, 5, 2), activation=activation), network((2,)), None)
    assert compiled.simulate(nets, *problem(1, 2, 3, torch.float64)) is None


def test_other_floating_types_are_left_to_the_caller():
    nets = (network((2, 5, 2), dtype=torch.bfloat16), network((2,), dtype=torch.bfloat16), None)
    assert compiled.simulate(nets, *problem(1, 2, 3, torch.bfloat16)) is None
    given = torch.ones(3, 1, 2, dtype=torch.bfloat16)
    assert compiled.recursion(given, given, [], given[0]) is None
    assert _jit.linearise(nn.SiLU(), given) is None


def test_steps_of_many_rows_are_left_to_the_caller():
    nets = (network((2, 5, 2)), network((2,)), None)
    assert compiled.simulate(nets, *problem(compiled._MOST_ROWS + 1, 2, 3, torch.float64)) is None
    given = torch.ones(3, compiled._MOST_ROWS + 1, 2, dtype=torch.float64)
    assert compiled.recursion(given, given, [], given[0]) is None


def test_steps_of_many_gelus_are_left_to_the_caller():
    units = compiled._MOST_GELU // 10
    for activation, width, applies in (
        (nn.GELU(), units, True),
        (nn.GELU(), units + 1, False),
        (nn.SiLU(), 9999, True),
    ):
        nets = (network((2, width, 2), activation=activation), network((2, 5, 2)), None)
        assert compiled._are_known(nets, 10) == applies


def test_steps_of_much_work_are_left_to_the_threads_of_torch(monkeypatch):
    monkeypatch.setattr(compiled, "serves", lambda tensor: True)
    nets = (network((2, 40, 2)), network((2, 60, 2)), None)
    most = compiled._MOST_WORK // 400  # 400 weights
    monkeypatch.setattr(compiled, "_MOST_ROWS", most + 1)
    for threads, rows, applies in ((1, most + 1, True), (2, most, True), (2, most + 1, False)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert compiled._applies(torch.zeros(rows, 2), nets) == applies


def test_networks_deeper_than_the_adjoint_kernel_takes_are_left_to_the_caller():
    deep = term((2, 3, 3, 3, 3, 3, 2), 4, 1, torch.float64, gate=False, extra=False)
    given = torch.ones(4, 1, 2, dtype=torch.float64)
    assert compiled.recursion(given, given, [deep], given[0]) is None
    assert deep.block.deltas == []


def test_the_setting_never_leaves_everything_to_the_caller():
    given = torch.ones(3, 1, 2, dtype=torch.float64)
    nets = (network((2, 5, 2)), network((2,)), None)
    with pyro.settings.context(pyro_sde_compiled="never"):
        assert not _jit.serves(given)
        assert compiled.simulate(nets, *problem(1, 2, 3, torch.float64)) is None
        assert compiled.recursion(given, given, [], given[0]) is None
        assert _jit.linearise(nn.SiLU(), given) is None


def test_without_numba_everything_is_left_to_the_caller(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    _jit._numba_is_there.cache_clear()
    try:
        assert not _jit.serves(torch.zeros(1))
        nets = (network((2, 5, 2)), network((2,)), None)
        assert compiled.simulate(nets, *problem(1, 2, 3, torch.float64)) is None
    finally:
        _jit._numba_is_there.cache_clear()


# --- compilation --------------------------------------------------------------------------------------------------
@needs_numba
def test_one_kernel_per_floating_type_serves_all_networks():
    for dtype in TOLERANCE:
        for sizes, control, rows in (((2, 5, 2), None, 1), ((3, 20, 20, 20, 3), network((3, 4, 3), dtype=dtype), 7)):
            nets = (network(sizes, dtype=dtype), network(sizes[:1], rate=1, dtype=dtype), control)
            compiled.simulate(nets, *problem(rows, sizes[0], 4, dtype), (rows == 1,) * 3)
            given = torch.ones(4, rows, sizes[0], dtype=dtype)
            terms = [] if control is None else [term(sizes, 4, rows, dtype, gate=False, extra=False)]
            compiled.recursion(given, given, terms, given[0])
        for activation in ACTIVATIONS[:5]:
            net, given = network((2, 6, 2), blocks=True, activation=activation, dtype=dtype), given[..., :2]
            net.accumulate(net.gradients(), net.linearise(0, 4, given, given, []), given, given, (0, 4))
    for kernel in (_kernels.simulate, _kernels.recursion, _kernels.accumulate):
        assert len(_jit.compiled(kernel).signatures) == len(TOLERANCE)


@needs_numba
def test_kernels_are_compiled_without_a_cache_where_there_is_no_place_for_one(monkeypatch):
    caching = pytest.importorskip("numba.core.caching")
    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])
    _jit.compiled.cache_clear()
    try:
        assert _jit.compiled(_kernels.recursion).signatures == []
    finally:
        _jit.compiled.cache_clear()


def test_kernels_are_plain_functions_too(monkeypatch):
    monkeypatch.setattr(compiled, "compiled", lambda kernel: kernel)
    monkeypatch.setattr(compiled, "serves", lambda tensor: True)
    nets = (network((2, 18, 2)), network((2, 4, 2), bounds=(0.1, 1.0), blocks=True), network((2, 3, 2), rate=1))
    assert_same_path(nets, *problem(5, 2, 3, torch.float64))
    single = tuple(network((2, 3, 2), dtype=torch.float32, activation=nn.Tanh()) for _ in range(2))
    assert_same_path((*single, None), *problem(1, 2, 3, torch.float32))


@TYPES
@pytest.mark.parametrize("activation", ACTIVATIONS[:5], ids=lambda a: type(a).__name__)
def test_kernels_of_elementwise_networks_are_plain_functions_too(activation, dtype, monkeypatch):
    monkeypatch.setattr(_elementwise, "compiled", lambda kernel: kernel)
    monkeypatch.setattr(_elementwise, "serves", lambda tensor: True)
    net = network((2, 4, 2), activation=activation, blocks=True, dtype=dtype)
    states, cotangent = torch.randn(2, 1, 5, 2, dtype=dtype)
    block, gradients = net.linearise(0, 1, states, states, []), net.gradients()
    net.accumulate(gradients, block, cotangent, states, (0, 1))
    slope, expected = plain_derivatives(net, states[0], cotangent[0])
    assert_close(net.diagonal(block), slope)
    for found, reference in zip(gradients, expected, strict=True):
        assert_close(found, reference.view_as(found))
