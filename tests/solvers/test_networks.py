"""The loop over layers and its adjoint are the loop over modules and its gradient."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroSample
from pyro.nn.module import to_pyro_module_
from torch import nn

from pyro_sde import SDE, NeuralSDE, SDEPath, TimeGrid
from pyro_sde.nn import ControlNet, DiagonalDiffusion, DriftNet
from pyro_sde.nn.state_network import StateNetwork
from pyro_sde.sde import BrownianMotion, GeometricBrownianMotion, OrnsteinUhlenbeck
from pyro_sde.solvers import _adjoint, _forward, _layers
from pyro_sde.solvers.execution import Execution
from pyro_sde.solvers.fixed import EulerMaruyama
from pyro_sde.solvers.loop import unroll
from pyro_sde.solvers.noise import GivenNoise
from pyro_sde.solvers.solve import solve

DIM = 3


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def randomised(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


def drift_net(**options):
    return randomised(DriftNet(DIM, options.pop("hidden", (7, 6)), **options))


def parameter(*shape):
    return nn.Parameter(0.3 + torch.rand(shape))


class Mixing(nn.Module):
    """A bounded diffusion of one's own whose outputs depend on all states, offered by its layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(DIM, 4), nn.Linear(4, DIM)

    def forward(self, t, z):
        return 0.2 + 0.7 * self.second(self.first(z).tanh()).sigmoid()

    def state_network(self, t, inputs):
        layers = (self.first.weight, self.second.weight), (self.second.bias,)
        return StateNetwork(self.first.bias, *layers, nn.Tanh(), bounds=(0.2, 0.7))


SDES = {
    "a diffusion of one's own": lambda: SDE(drift_net(activation="tanh"), randomised(Mixing())),
    "networks": lambda: SDE(drift_net(), randomised(DiagonalDiffusion(DIM, 5, constant=False))),
    "one hidden layer": lambda: SDE(drift_net(hidden=(5,)), DiagonalDiffusion(DIM)),
    "three hidden layers": lambda: SDE(drift_net(hidden=(5, 4, 6)), DiagonalDiffusion(DIM)),
    "time and reversion": lambda: SDE(
        drift_net(time_features=2, period=0.7, reversion=0.5, activation="tanh"), DiagonalDiffusion(DIM)
    ),
    "inputs and time": lambda: SDE(
        drift_net(input_dim=2, time_features=1), randomised(DiagonalDiffusion(DIM, 5, constant=False))
    ),
    "other activations": lambda: SDE(
        drift_net(activation="tanh"), randomised(DiagonalDiffusion(DIM, 4, constant=False, activation="elu"))
    ),
    "Ornstein-Uhlenbeck": lambda: OrnsteinUhlenbeck(parameter(DIM), parameter(DIM), parameter(DIM)),
    "one rate per series": lambda: OrnsteinUhlenbeck(parameter(4, 1), parameter(4, DIM), parameter(DIM)),
    "geometric": lambda: GeometricBrownianMotion(parameter(DIM), parameter(DIM)),
    "Brownian": lambda: BrownianMotion(parameter(DIM), parameter(1)),
    "state-dependent noise": lambda: SDE(
        drift_net(), GeometricBrownianMotion(parameter(DIM), parameter(DIM)).diffusion
    ),
}


def controlled(base):
    sde = base.controlled(randomised(ControlNet(DIM, 2, hidden=(6, 5), time_features=1)))
    sde.register_module("held", base)  # so that `parameters` finds both
    return sde


CASES = {
    **SDES,
    "controlled Ornstein-Uhlenbeck": lambda: controlled(SDES["Ornstein-Uhlenbeck"]()),
    "controlled networks": lambda: controlled(SDES["networks"]()),
    "controlled with reversion": lambda: controlled(SDES["time and reversion"]()),
    "controlled, a diffusion of one's own": lambda: controlled(SDES["a diffusion of one's own"]()),
    "controlled geometric": lambda: controlled(SDES["geometric"]()),
    "controlled, another activation": lambda: controlled(SDES["other activations"]()),
}
GRIDS = {
    "one grid": lambda times: TimeGrid(times[0], max_step=0.2),
    "ragged": lambda times: TimeGrid(times, max_step=0.2, mask=torch.arange(5) < torch.tensor([[5], [3], [4], [5]])),
}
ENGINES = {  # machine code, work below which steps are merged, rows of a block, bytes of kept activations
    "merged calls, Jacobians": ("never", 10**9, 1024, 2**25),
    "merged calls, several blocks": ("never", 10**9, 9, 2**25),
    "step by step": ("never", 0, 1024, 2**25),
    "step by step, several blocks, nothing kept": ("never", 0, 9, 0),
    "machine code": ("auto", 0, 1024, 2**25),
    "machine code, several blocks, nothing kept": ("auto", 0, 9, 0),
}


def wants_inputs(name):
    return name.startswith("controlled") or "inputs" in name


def problem(name, grid_name, batch=(4,), seed=0):
    """SDE, grid, initial state, noise, rows and everything with a gradient."""
    torch.manual_seed(seed)
    sde = CASES[name]()
    times = (0.2 + torch.rand(4, 5)).cumsum(-1).requires_grad_()
    grid = GRIDS[grid_name](times)
    initial = torch.randn(*batch, DIM, requires_grad=True)
    normal = torch.randn(grid.num_steps, *batch, DIM, requires_grad=True)
    inputs = torch.randn(4, grid.num_steps, 2, requires_grad=True) if wants_inputs(name) else None
    targets = [times, initial, normal, *sde.parameters(), *([] if inputs is None else [inputs])]
    return sde, grid, initial, normal, sde.bind_rows(inputs), targets


def outputs(path, coefficients):
    return [path, *(value.expand(path[1:].shape) for value in coefficients if value is not None)]


def of_the_loop(sde, grid, initial, normal, rows):
    record = []
    states = unroll(sde, grid, initial, normal, rows, record)
    parts = zip(*record, strict=True)
    return outputs(states, [None if p[0] is None else torch.stack([x.expand_as(states[0]) for x in p]) for p in parts])


def of_the_layers(sde, grid, initial, normal, rows):
    execution = Execution(backward="layers")
    path, coefficients = solve(EulerMaruyama(), sde, grid, initial, GivenNoise(normal), rows, execution)
    assert isinstance(coefficients, tuple), "the coefficients do not offer their layers"
    return outputs(path.movedim(-2, 0), coefficients)


def gradient(values, targets):
    torch.manual_seed(3)
    total = sum((torch.randn_like(value) * value).sum() for value in values)
    return torch.autograd.grad(total, targets, allow_unused=True, retain_graph=True)


def assert_same(name, grid_name, batch=(4,), **tolerance):
    sde, grid, initial, normal, rows, targets = problem(name, grid_name, batch)
    ours, expected = (of(sde, grid, initial, normal, rows) for of in (of_the_layers, of_the_loop))
    for value, reference in zip(ours, expected, strict=True):
        torch.testing.assert_close(value, reference, **tolerance)
    for value, reference in zip(gradient(ours, targets), gradient(expected, targets), strict=True):
        assert (value is None) == (reference is None)
        if value is not None:
            torch.testing.assert_close(value, reference, **tolerance)


@pytest.fixture(params=ENGINES)
def engine(request, monkeypatch):
    compiled, work, rows, kept = ENGINES[request.param]
    monkeypatch.setattr(_layers, "_SMALL_WORK", work)
    monkeypatch.setattr(_layers, "BLOCK_ROWS", rows)
    monkeypatch.setattr(_adjoint, "BLOCK_ROWS", rows)
    monkeypatch.setattr(_forward, "_KEPT_BYTES", kept)
    with pyro.settings.context(pyro_sde_compiled=compiled):
        yield


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("engine")
def test_states_coefficients_and_all_gradients_are_those_of_the_loop(name, grid):
    assert_same(name, grid, rtol=1e-10, atol=1e-10)


BATCHES = [(name, batch) for name in ("networks", "one hidden layer") for batch in ((), (1,))]
BATCHES += [(name, (2, 4)) for name in ("networks", "controlled networks", "controlled Ornstein-Uhlenbeck")]


@pytest.mark.parametrize(("name", "batch"), BATCHES, ids=str)
@pytest.mark.usefixtures("engine")
def test_batches_of_all_ranks(name, batch):
    assert_same(name, "one grid", batch, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("activation", ["elu", "gelu", "relu", "silu", "softplus", "tanh"])
@pytest.mark.usefixtures("engine")
def test_every_activation(activation, monkeypatch):
    monkeypatch.setitem(CASES, "case", lambda: SDE(drift_net(activation=activation), DiagonalDiffusion(DIM)))
    assert_same("case", "one grid", rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("engine")
def test_float32_to_single_precision():
    torch.set_default_dtype(torch.float32)
    assert_same("networks", "ragged", rtol=1e-3, atol=1e-3)


def uses_layers(sde):
    law = SDEPath(sde, dist.Normal(torch.zeros(DIM), 1.0).to_event(1), TimeGrid(torch.linspace(0.0, 1.0, 12)))
    return "_Path" in {type(node).__name__.removesuffix("Backward") for node in ancestors(law.rsample().grad_fn)}


def ancestors(node):
    pending, seen = [node], set()
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            pending += [following for following, _ in node.next_functions]
    return seen


class Doubled(DriftNet):
    def forward_projected(self, t, z, projected):
        return 2 * super().forward_projected(t, z, projected)


def hooked():
    net = drift_net()
    net.tail.layers[0].register_forward_hook(lambda module, args, output: 2 * output)
    return net


def low_rank():
    class LowRank(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 0.5

    net = drift_net()
    net.tail.layers[0] = LowRank(7, 6)
    return net


def test_networks_are_used_by_default_and_others_are_not():
    assert uses_layers(SDE(drift_net(), DiagonalDiffusion(DIM)))
    net = drift_net()
    assert not uses_layers(SDE(lambda t, z: net(t, z), DiagonalDiffusion(DIM)))
    with pyro.settings.context(pyro_sde_backward="loop"):
        assert not uses_layers(SDE(drift_net(), DiagonalDiffusion(DIM)))


@pytest.mark.parametrize(
    "make", [lambda: randomised(Doubled(DIM)), hooked, low_rank], ids=["subclass", "hook", "layer"]
)
def test_a_network_that_does_more_than_its_layers_is_called(make):
    assert not uses_layers(SDE(make(), DiagonalDiffusion(DIM)))


def test_a_sequence_with_another_layer_is_called():
    net = drift_net()
    net.tail.layers.insert(1, nn.LayerNorm(6))
    assert not uses_layers(SDE(net, DiagonalDiffusion(DIM)))


def test_many_dimensions_of_elementwise_networks_are_called():
    wide = SDE(DriftNet(17, (4,)), DiagonalDiffusion(17, 4, constant=False))
    law = SDEPath(wide, dist.Normal(torch.zeros(17), 1.0).to_event(1), TimeGrid(torch.linspace(0.0, 1.0, 12)))
    assert "_Path" not in {type(node).__name__.removesuffix("Backward") for node in ancestors(law.rsample().grad_fn)}


def test_computed_weights_get_their_gradient():
    net = drift_net()
    nn.utils.parametrizations.weight_norm(net.tail.layers[0])
    sde = SDE(net, DiagonalDiffusion(DIM))
    assert uses_layers(sde)
    law = SDEPath(sde, dist.Normal(torch.zeros(DIM), 1.0).to_event(1), TimeGrid(torch.linspace(0.0, 1.0, 12)))

    def run(backward):
        torch.manual_seed(0)
        with pyro.settings.context(pyro_sde_backward=backward):
            return torch.autograd.grad(law.rsample().square().sum(), list(net.parameters()))

    for ours, expected in zip(run("layers"), run("loop"), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_random_weights_of_pyro_are_those_of_the_law():
    net = drift_net(hidden=(4,))
    to_pyro_module_(net)
    net.tail.layers[0].weight = PyroSample(dist.Normal(torch.zeros(DIM, 4), 1.0).to_event(2))
    torch.manual_seed(0)
    law = SDEPath(
        SDE(net, DiagonalDiffusion(DIM)),
        dist.Normal(torch.zeros(DIM), 1.0).to_event(1),
        TimeGrid(torch.linspace(0.0, 1.0, 12)),
    )

    def run(backward):
        torch.manual_seed(1)
        with pyro.settings.context(pyro_sde_backward=backward):
            return law.sample()

    assert net.state_network(torch.zeros(3, 1), None) is None
    torch.testing.assert_close(run("layers"), run("loop"))


def test_a_batch_of_random_weights_is_called():
    net = drift_net(hidden=(4,))
    net.tail.layers[0].weight = None
    del net.tail.layers[0].weight
    net.tail.layers[0].weight = torch.randn(2, DIM, 4)
    assert net.state_network(torch.zeros(3, 1), None) is None


def test_second_derivatives_are_refused():
    net = drift_net()
    law = SDEPath(
        SDE(net, DiagonalDiffusion(DIM)),
        dist.Normal(torch.zeros(DIM), 1.0).to_event(1),
        TimeGrid(torch.linspace(0.0, 1.0, 12)),
    )
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(law.rsample().square().sum(), list(net.parameters()), create_graph=True)


def test_nothing_is_recorded_without_gradients():
    law = SDEPath(
        NeuralSDE(DIM), dist.Normal(torch.zeros(DIM), 1.0).to_event(1), TimeGrid(torch.linspace(0.0, 1.0, 12))
    )
    path = law.sample((5,))
    assert not path.requires_grad
    assert path.shape == (5, 12, DIM)


def test_an_empty_batch_gives_an_empty_path():
    law = SDEPath(
        NeuralSDE(DIM), dist.Normal(torch.zeros(0, DIM), 1.0).to_event(1), TimeGrid(torch.linspace(0.0, 1.0, 12))
    )
    assert law.rsample().shape == (0, 12, DIM)
