"""Which way a path gets its gradient."""

import pyro
import torch
import torchsde
from torch import nn

from pyro_sde import SDE, NeuralSDE, TimeGrid
from pyro_sde.nn import ControlNet
from pyro_sde.solvers import Execution
from pyro_sde.solvers.choice import choose


def method(sde, batch=4, steps=50, width=2, context=None, execution=None):
    grid = TimeGrid(torch.arange(steps + 1.0))
    rows = sde.bind_rows(None if context is None else torch.zeros(batch, steps, context))
    initial, normal = torch.zeros(batch, width), torch.zeros(steps, batch, width)
    execution = execution or Execution.current()
    return choose(execution, sde, grid, initial, normal, rows).method


def opaque(sde):
    """The same SDE, whose drift does not offer its layers."""
    return SDE(lambda t, z: sde.drift(t, z), sde.diffusion)


def prefers(sde, **options):
    return method(sde, **options) == "parallel"


def test_networks_are_run_by_their_layers_unless_the_batch_is_large():
    sde = NeuralSDE(2, (16,))
    assert method(sde) == "layers"
    assert method(sde, steps=2) == "layers"
    assert method(sde, batch=1000) == "loop"
    assert method(sde, batch=1000, execution=Execution(backward="layers")) == "layers"
    with torch.no_grad():
        assert method(sde, batch=1000) == "layers"


def test_every_way_can_be_asked_for():
    sde = NeuralSDE(2, (16,))
    for backward in ("loop", "parallel", "layers"):
        assert method(sde, execution=Execution(backward=backward)) == backward
        with pyro.settings.context(pyro_sde_backward=backward):
            assert method(sde) == backward
    assert method(opaque(sde), execution=Execution(backward="layers")) == "loop"


def test_an_empty_batch_takes_the_loop():
    assert method(NeuralSDE(2, (16,)), batch=0) == "loop"
    assert method(opaque(NeuralSDE(2, (16,))), batch=0) == "loop"


def test_small_work_is_done_in_parallel_and_large_work_in_the_loop():
    assert prefers(opaque(NeuralSDE(2, (16,))))
    assert not prefers(opaque(NeuralSDE(2, (256, 256))))
    assert not prefers(opaque(NeuralSDE(2, (16,))), batch=10_000)
    assert not prefers(opaque(NeuralSDE(2, (16,))), steps=3)


def test_captured_parameters_count_and_those_behind_inputs_do_not():
    net = nn.Sequential(nn.Linear(2, 256), nn.Tanh(), nn.Linear(256, 2))
    nets = {True: opaque(NeuralSDE(2, (4,))), False: SDE(lambda t, z: net(z), lambda t, z: torch.ones(2))}
    for expected, sde in nets.items():
        assert prefers(sde, batch=32) is expected
    wide = opaque(NeuralSDE(2, (4,))).controlled(ControlNet(2, 5000, hidden=(4,)))
    assert prefers(wide, context=5000)


def test_nothing_to_differentiate_needs_no_backward_pass():
    assert not prefers(SDE(lambda t, z: -z, lambda t, z: torch.ones(2)))


def test_the_loop_is_used_where_the_parallel_pass_cannot_be():
    sde = opaque(NeuralSDE(2, (4,)))
    with torch.no_grad():
        assert not prefers(sde)

    class Scalar(torchsde.SDEIto):
        def __init__(self):
            super().__init__(noise_type="diagonal")

        def f(self, t, y):
            return -y

        def g(self, t, y):
            return torch.ones_like(y)

    assert not prefers(SDE.from_torchsde(Scalar()))
    seen = []
    for tried in (sde, NeuralSDE(2, (4,))):
        torch.func.vmap(lambda x, tried=tried: seen.append(method(tried)) or x)(torch.zeros(2))
        torch.jit.trace(lambda x, tried=tried: seen.append(method(tried)) or x, torch.zeros(2), check_trace=False)
    assert seen == ["loop"] * 4
