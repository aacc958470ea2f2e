"""Low memory and sweeps are the same paths and gradients, at another cost."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_sde import SDE, NeuralSDE, SDEPath, TimeGrid
from pyro_sde.nn import ControlNet
from pyro_sde.sde import OrnsteinUhlenbeck, StochasticLorenz
from pyro_sde.solvers import EulerMaruyama, Execution, networks
from pyro_sde.solvers.noise import GivenNoise
from pyro_sde.solvers.solve import solve


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def opaque():
    net, scale = nn.Linear(2, 2), nn.Parameter(torch.tensor([0.3, 0.4]))
    sde = SDE(lambda t, z: net(z).tanh() * t.cos(), lambda t, z: scale + 0.1 * z.sin())
    return sde, [*net.parameters(), scale]


def matrix_noise():
    net, scale = nn.Linear(2, 2), nn.Parameter(torch.randn(2, 3))
    return SDE(lambda t, z: net(z).tanh(), lambda t, z: scale, noise_type="additive"), [*net.parameters(), scale]


def controlled():
    prior, control = NeuralSDE(2, (5,), constant_diffusion=False), ControlNet(2, 3, hidden=(6,))
    nn.init.normal_(control.tail.layers[-1].weight)
    return prior.controlled(control), [*prior.parameters(), *control.parameters()]


def plain():
    sde = NeuralSDE(2, (5, 4))
    return sde, list(sde.parameters())


def fresh_every_time():
    """Coefficients that interact between rows: nothing but the loop is right for them."""
    rate = nn.Parameter(torch.tensor(0.7))
    return SDE(lambda t, z: rate * (z.mean(-2, keepdim=True) - z), lambda t, z: torch.ones_like(z)), [rate]


CASES = {
    "function": opaque,
    "matrix": matrix_noise,
    "layers with inputs": controlled,
    "layers": plain,
    "interacting rows": fresh_every_time,
}
GRIDS = {
    "one grid": lambda times: TimeGrid(times[0], max_step=0.2),
    "ragged": lambda times: TimeGrid(times, max_step=0.2, mask=torch.arange(5) < torch.tensor([[5], [3], [4]])),
}


def run(name, grid_name, execution):
    torch.manual_seed(0)
    sde, parameters = CASES[name]()
    times = (0.2 + torch.rand(3, 5)).cumsum(-1).requires_grad_()
    grid = GRIDS[grid_name](times)
    initial = torch.randn(3, 2, requires_grad=True)
    width = 3 if name == "matrix" else 2
    normal = torch.randn(grid.num_steps, 3, width, requires_grad=True)
    inputs = torch.randn(3, grid.num_steps, 3, requires_grad=True) if "inputs" in name else None
    path, _ = solve(EulerMaruyama(), sde, grid, initial, GivenNoise(normal), sde.bind_rows(inputs), execution)
    weights = torch.randn_like(path)
    targets = [times, initial, normal, *parameters, *([] if inputs is None else [inputs])]
    return [path, *torch.autograd.grad((weights * path.square()).sum(), targets, allow_unused=True)]


def assert_same(ours, expected, tolerance=1e-10):
    for value, reference in zip(ours, expected, strict=True):
        assert (value is None) == (reference is None)
        if reference is not None:
            torch.testing.assert_close(value, reference, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backward", ["auto", "layers", "loop", "parallel"])
@pytest.mark.parametrize("block", [1, 10, 10**6])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", CASES)
def test_low_memory_changes_neither_path_nor_gradients(name, grid, block, backward):
    low = run(name, grid, Execution(memory="low", block=block, backward=backward))
    assert_same(low, run(name, grid, Execution(backward="loop")))


@pytest.mark.parametrize("forward", ["newton", "picard"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", ["function", "matrix", "layers with inputs", "layers"])
def test_sweeps_change_neither_path_nor_gradients(name, grid, forward):
    swept = run(name, grid, Execution(forward=forward))
    assert_same(swept, run(name, grid, Execution(backward="loop")), 1e-7)


def test_sweeps_in_vain_fall_back_with_a_warning():
    law = SDEPath(
        StochasticLorenz(),
        dist.Normal(torch.ones(3), 1.0).to_event(1),
        TimeGrid(torch.linspace(0.0, 30.0, 3001)),
        execution=Execution(forward="picard"),
    )
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match='forward="picard": the path is simulated step by step'):
        path = law.sample()
    torch.manual_seed(0)
    with pyro.settings.context(pyro_sde_backward="loop"):
        expected = SDEPath(law.sde, law.initial, law.grid).sample()
    torch.testing.assert_close(path, expected)


@pytest.mark.filterwarnings("ignore:forward")
def test_sweeps_of_interacting_rows_fall_back_to_the_loop():
    swept = run("interacting rows", "one grid", Execution(forward="newton"))
    assert_same(swept, run("interacting rows", "one grid", Execution(backward="loop")))


def saved_bytes(law):
    """Bytes that autograd keeps for the backward pass of a path."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        path = law.rsample()
    return sum(kept.values()), path


@pytest.mark.parametrize("backward", ["layers", "loop", "parallel"])
def test_low_memory_keeps_little_more_than_the_path(backward):
    sde = NeuralSDE(2, (64,))
    initial = dist.Normal(torch.zeros(8, 2), 1.0).to_event(1)
    grid = TimeGrid(torch.linspace(0.0, 1.0, 1001))
    kept = {}
    for memory in ("full", "low"):
        law = SDEPath(sde, initial, grid, execution=Execution(memory=memory, backward=backward, block=400))
        kept[memory], path = saved_bytes(law)
    size = path.numel() * path.element_size()
    assert kept["low"] < 4 * size
    assert backward == "layers" or kept["full"] > 10 * kept["low"]


@pytest.mark.parametrize(("memory", "kept"), [("full", True), ("low", False)])
def test_low_memory_keeps_no_activations(memory, kept, monkeypatch):
    asked = []
    simulate = networks.simulate

    def spy(*args, keep):
        asked.append(keep)
        return simulate(*args, keep=keep)

    monkeypatch.setattr(networks, "simulate", spy)
    run("layers", "one grid", Execution(memory=memory))
    assert set(asked) == {kept}


def test_a_law_of_low_memory_is_the_same_law_and_reproducible():
    law = SDEPath(
        OrnsteinUhlenbeck(1.0, 0.5),
        dist.Normal(torch.zeros(1), 1.0).to_event(1),
        TimeGrid(torch.linspace(0.0, 1.0, 101)),
        execution=Execution(memory="low", block=1000),
    )
    torch.manual_seed(0)
    first = law.rsample((400,))
    torch.manual_seed(0)
    assert torch.equal(law.rsample((400,)), first)
    score = law.noise_of(first)
    assert abs(score.mean()) * score.numel() ** 0.5 < 5
    assert abs(score.var() - 1) * (score.numel() / 2) ** 0.5 < 5
    neighbours = (score[..., 1:, :] * score[..., :-1, :]).mean()
    assert abs(neighbours) * score.numel() ** 0.5 < 5


def test_execution_of_the_law_comes_before_the_settings():
    law = SDEPath(
        NeuralSDE(2),
        dist.Normal(torch.zeros(2), 1.0).to_event(1),
        TimeGrid(torch.linspace(0.0, 1.0, 11)),
        execution=Execution(backward="loop"),
    )
    with pyro.settings.context(pyro_sde_backward="layers"):
        path = law.rsample()
    (gradient,) = torch.autograd.grad(path.square().sum(), next(law.sde.parameters()), create_graph=True)
    assert gradient.requires_grad
