"""Drift and control networks: equal to a concatenating perceptron, and what each option changes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from pyro_sde.nn import MLP, ControlNet, DriftNet

F64 = torch.float64


def concatenated(net, t, z, inputs):
    """The same network written with one first layer on the concatenation of (z, phi(t), inputs)."""
    blocks, weights = [z], [net.state_part.weight]
    lead = torch.broadcast_shapes(t.shape[:-1], z.shape[:-1])
    if net.time_part is not None:
        j = torch.arange(1, net.harmonics.numel() + 1, dtype=F64)
        angle = 2 * math.pi * j * t / net.period if net.period else None
        blocks.append(t if angle is None else torch.cat([torch.sin(angle), torch.cos(angle)], -1))
        weights.append(net.time_part.weight)
    if inputs is not None:
        blocks.append(inputs)
        weights.append(net.input_part.weight)
    joined = torch.cat([block.expand(*lead, block.shape[-1]) for block in blocks], -1)
    hidden = joined @ torch.cat(weights, 1).T + net.state_part.bias
    return net.tail(net.activation(hidden))


OPTIONS = {
    "autonomous": {},
    "time": {"time_features": 1},
    "periodic": {"time_features": 3, "period": 0.7},
}


@pytest.mark.parametrize("input_dim", [0, 5])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_the_split_first_layer_equals_a_concatenation(options, input_dim):
    net = DriftNet(3, (8, 6), input_dim=input_dim, **options).double()
    t, z = torch.rand(4, 1, dtype=F64), torch.randn(4, 3, dtype=F64)
    inputs = torch.randn(4, input_dim, dtype=F64) if input_dim else None
    assert_close(net(t, z, inputs), concatenated(net, t, z, inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_leading_dimensions_broadcast_without_expanding(options):
    net = DriftNet(3, (8,), input_dim=2, **options).double()
    t = torch.rand(7, 1, 1, dtype=F64)  # one time per step, all series
    z = torch.randn(5, 7, 4, 3, dtype=F64)  # particles, steps, series
    inputs = torch.randn(7, 4, 2, dtype=F64)
    batched = net(t, z, inputs)
    assert batched.shape == z.shape
    for p, k, b in [(0, 0, 0), (4, 6, 3), (2, 1, 3)]:
        assert_close(batched[p, k, b], net(t[k, 0], z[p, k, b], inputs[k, b]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_projecting_all_inputs_before_the_loop_changes_nothing(options):
    net = ControlNet(3, 4, hidden=(8, 8), **options).double()
    torch.nn.init.normal_(net.tail.layers[-1].weight)
    t, z, rows = torch.rand(6, 1, dtype=F64), torch.randn(6, 3, dtype=F64), torch.randn(6, 4, dtype=F64)
    projected = net.project_inputs(rows)
    assert projected.shape == (6, 8)
    for k in range(6):
        assert_close(net.forward_projected(t[k], z[k], projected[k]), net(t[k], z[k], rows[k]))


def test_a_drift_is_autonomous_by_default_and_sees_time_on_request():
    t, z = torch.tensor([[0.1], [0.6]]), torch.randn(2).expand(2, 2)
    early, late = DriftNet(2)(t, z)
    assert_close(early, late)
    early, late = DriftNet(2, time_features=1)(t, z)
    assert (early - late).abs().max() > 1e-4


def test_periodic_features_repeat_after_one_period_and_time_itself_does_not():
    t, z = torch.tensor([[0.2], [2.2], [1.2]], dtype=F64), torch.randn(1, 2, dtype=F64)
    start, after_a_period, halfway = DriftNet(2, time_features=2, period=2.0).double()(t, z)
    assert_close(start, after_a_period, rtol=0, atol=1e-12)
    assert (start - halfway).abs().max() > 1e-4
    start, after_a_period, _ = DriftNet(2, time_features=1).double()(t, z)
    assert (start - after_a_period).abs().max() > 1e-4


def test_more_harmonics_resolve_shorter_times():
    """One harmonic cannot represent sin(2 * 2 pi t), two can: least squares on the time part."""
    t = torch.linspace(0, 1, 41, dtype=F64)[:-1].unsqueeze(-1)
    target = torch.sin(4 * math.pi * t)
    residual = {}
    for n in (1, 2):
        features = DriftNet(1, time_features=n, period=1.0).double()._features(t)
        assert features.shape == (40, 2 * n)
        residual[n] = (features @ torch.linalg.lstsq(features, target).solution - target).abs().max()
    assert residual[1] > 0.9
    assert residual[2] < 1e-12


def test_harmonics_are_exact_after_conversion_to_float64():
    net = DriftNet(1, time_features=2, period=0.3).double()
    t = torch.tensor([[0.1]], dtype=F64)
    expected = [math.sin(2 * math.pi / 3), math.sin(4 * math.pi / 3)]
    assert_close(net._features(t)[0, :2].tolist(), expected, rtol=0, atol=1e-15)


def test_inputs_change_the_drift():
    net = DriftNet(2, input_dim=3)
    t, z = torch.zeros(1), torch.randn(2)
    assert (net(t, z, torch.zeros(3)) - net(t, z, torch.ones(3))).abs().max() > 1e-4


def test_a_control_starts_at_zero_and_can_leave_it():
    net = ControlNet(2, 3, out_dim=4)
    control = net(torch.zeros(5, 1), torch.randn(5, 2), torch.randn(5, 3))
    assert control.shape == (5, 4)
    assert (control == 0).all()
    (control - 1).square().sum().backward()
    assert (net.tail.layers[-1].weight.grad != 0).any()


def test_a_control_has_one_component_per_state_dimension_by_default():
    assert ControlNet(2, 3)(torch.zeros(1), torch.zeros(2), torch.zeros(3)).shape == (2,)


def test_a_wide_context_does_not_shrink_the_initial_weights_of_the_state():
    weights = [DriftNet(2, (256,), input_dim=dim).state_part.weight.std() for dim in (1, 400)]
    assert_close(weights[0], weights[1], rtol=0.2, atol=0)


def test_last_scale_scales_the_initial_output():
    z = torch.randn(4, 3)
    outputs = []
    for scale in (0.1, 0.2):
        torch.manual_seed(0)
        outputs.append(DriftNet(3, last_scale=scale)(torch.zeros(1), z))
    assert_close(2 * outputs[0], outputs[1])
    torch.manual_seed(0)
    assert_close(10 * outputs[0], DriftNet(3, last_scale=1.0)(torch.zeros(1), z))


def test_an_mlp_is_affine_maps_with_activations_between():
    net = MLP(2, 3, (4, 5), activation="tanh").double()
    x = torch.randn(6, 2, dtype=F64)
    first, second, last = (layer for layer in net.layers if isinstance(layer, torch.nn.Linear))
    hidden = torch.tanh(torch.tanh(x @ first.weight.T + first.bias) @ second.weight.T + second.bias)
    assert_close(net(x), hidden @ last.weight.T + last.bias)


def test_an_mlp_acts_on_the_last_dimension_for_any_leading_ones():
    net = MLP(2, 3).double()
    x = torch.randn(4, 1, 5, 2, dtype=F64)
    assert net(x).shape == (4, 1, 5, 3)
    assert_close(net(x)[2, 0, 3], net(x[2, 0, 3]))


def test_an_mlp_without_hidden_layers_is_affine():
    net = MLP(2, 3, ()).double()
    x, y = torch.randn(2, 4, 2, dtype=F64)
    assert_close(net(x) + net(y), net(x + y) + net(torch.zeros(2, dtype=F64)))


def test_zero_last_and_last_scale_set_the_initial_last_layer():
    x = torch.randn(4, 2)
    outputs = {}
    for name, options in {"plain": {}, "half": {"last_scale": 0.5}, "zero": {"zero_last": True}}.items():
        torch.manual_seed(0)
        outputs[name] = MLP(2, 3, **options)(x)
    assert_close(outputs["half"], outputs["plain"] / 2)
    assert (outputs["zero"] == 0).all()
    assert (outputs["plain"] != 0).all()


@pytest.mark.parametrize("build", [lambda a: MLP(3, 3, activation=a), lambda a: DriftNet(3, activation=a)])
def test_the_activation_is_used_in_every_hidden_layer(build):
    z, outputs = torch.randn(4, 3), []
    for name in ("silu", "tanh"):
        torch.manual_seed(0)
        net = build(name)
        outputs.append(net(z) if isinstance(net, MLP) else net(torch.zeros(1), z))
        kinds = {type(module).__name__ for module in net.modules()}
        assert {"SiLU", "Tanh"} & kinds == {{"silu": "SiLU", "tanh": "Tanh"}[name]}
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


@pytest.mark.parametrize("net", [DriftNet(2, input_dim=3, time_features=2, period=1.0), ControlNet(2, 3)])
def test_float32_agrees_with_float64(net):
    torch.nn.init.normal_(net.tail.layers[-1].weight)
    t, z, inputs = torch.rand(5, 1), torch.randn(5, 2), torch.randn(5, 3)
    single = net.float()(t, z, inputs)
    assert single.dtype == torch.float32
    assert_close(single.double(), net.double()(t.double(), z.double(), inputs.double()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLP(0, 1), "`in_dim` must be an integer >= 1"),
        (lambda: MLP(1, 0), "`out_dim` must be an integer >= 1"),
        (lambda: MLP(1, 1, (4, 0)), "`hidden` must be an integer >= 1"),
        (lambda: MLP(1, 1, activation="sine"), "`activation` must be one of"),
        (lambda: MLP(1, 1, zero_last=True, last_scale=0.1), "give `zero_last` or `last_scale`, not both"),
        (lambda: MLP(1, 1, last_scale=-1.0), "`last_scale` must be a finite number >= 0"),
        (lambda: DriftNet(0), "`state_dim` must be an integer >= 1"),
        (lambda: DriftNet(1, ()), "`hidden` must name at least one layer"),
        (lambda: DriftNet(1, input_dim=-1), "`input_dim` must be an integer >= 1"),
        (lambda: DriftNet(1, time_features=-1), "`time_features` must be an integer >= 0"),
        (lambda: DriftNet(1, time_features=2), "Pass `period` for sines and cosines"),
        (lambda: DriftNet(1, period=1.0), "`period` must be a positive finite number and needs"),
        (lambda: DriftNet(1, time_features=1, period=0.0), "`period` must be a positive finite number"),
        (lambda: ControlNet(1, 0), "`context_dim` must be an integer >= 1"),
        (lambda: ControlNet(1, 1, 0), "`out_dim` must be an integer >= 1"),
    ],
)
def test_bad_options_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_missing_unexpected_and_misshapen_inputs_are_named():
    t, z = torch.zeros(1), torch.zeros(2)
    with pytest.raises(ValueError, match=r"`inputs` of shape \(..., 3\) are missing"):
        ControlNet(2, 3)(t, z)
    with pytest.raises(ValueError, match="`inputs` were given to a network without inputs"):
        DriftNet(2)(t, z, torch.zeros(3))
    with pytest.raises(ValueError, match=r"`inputs` must have shape \(..., 3\), received \(4,\)"):
        ControlNet(2, 3).project_inputs(torch.zeros(4))


# ---------------------------------------------------------------- reversion
def test_reversion_is_a_learned_linear_pull():
    torch.manual_seed(0)
    plain = DriftNet(2, (8,), activation="tanh")
    torch.manual_seed(0)
    pulled = DriftNet(2, (8,), activation="tanh", reversion=0.7)
    t, z = torch.zeros(1), torch.randn(5, 2)
    torch.testing.assert_close(pulled(t, z), plain(t, z) - 0.7 * z)
    assert any(name == "raw_reversion" for name, _ in pulled.named_parameters())
    assert not any(name == "raw_reversion" for name, _ in plain.named_parameters())


def test_reversion_with_a_bounded_network_points_inwards_far_out():
    drift = DriftNet(3, (16, 16), activation="tanh", reversion=0.1, last_scale=10.0)
    z = 1e5 * torch.randn(100, 3).sign()
    assert (drift(torch.zeros(1), z) * z < 0).all()


@pytest.mark.parametrize("rate", [-1.0, float("inf"), float("nan")])
def test_a_negative_or_infinite_reversion_is_refused(rate):
    with pytest.raises(ValueError, match="`reversion` must be a finite rate"):
        DriftNet(2, reversion=rate)
