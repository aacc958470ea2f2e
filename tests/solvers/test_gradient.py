"""The time-parallel backward pass is the gradient of the loop, exactly."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_sde import SDE, NeuralSDE, SDEPath, TimeGrid
from pyro_sde.nn import ControlNet
from pyro_sde.sde import UnderdampedLangevin
from pyro_sde.solvers import Execution


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


CAPTURED = torch.tensor([0.3, -0.2], dtype=torch.float64)


def matrix_diffusion(columns, captured):
    def diffusion(t, z):
        return torch.stack([z.sin() + 1.5, captured + 0 * z, z.cos() * t][:columns], -1)

    return diffusion


def make_sde(kind, captured):
    net = nn.Linear(2, 2)
    drift = NeuralSDE(2, (5,)).drift

    def full(t, z):
        return drift(t, z) + captured * z.tanh() * t + net(z)

    if kind == "diagonal":
        sde = SDE(full, lambda t, z: 0.5 + 0.3 * z.sin() * captured)
    elif kind in ("scalar", "general"):
        sde = SDE(full, matrix_diffusion(1 if kind == "scalar" else 3, captured), noise_type=kind)
    elif kind == "additive":
        sde = SDE(full, lambda t, z: torch.stack([captured, captured**2], -1), noise_type=kind)
    elif kind == "noise-free":
        sde = SDE(full, lambda t, z: torch.stack([0.4 * captured.sum() + 0 * z[..., 0], 0 * z[..., 0]], -1))
    else:  # controlled with inputs
        prior = NeuralSDE(2, (5,), constant_diffusion=False)
        control = ControlNet(2, 3, hidden=(6,))
        nn.init.normal_(control.tail.layers[-1].weight)
        return prior.controlled(control), [*prior.parameters(), *control.parameters()]
    return sde, [*net.parameters(), *drift.parameters()]


GRIDS = {
    "one grid": lambda times: TimeGrid(times[0], max_step=0.3),
    "ragged": lambda times: TimeGrid(times, max_step=0.3, mask=torch.arange(4) < torch.tensor([[4], [2], [3]])),
}


def gradients(backward, kind, grid_name, sample=()):
    torch.manual_seed(0)
    captured = CAPTURED.clone().requires_grad_()
    sde, parameters = make_sde(kind, captured)
    times = (0.2 + torch.rand(3, 4)).cumsum(-1).requires_grad_()
    grid = GRIDS[grid_name](times)
    inputs = torch.randn(3, grid.num_steps, 3, requires_grad=True) if kind == "controlled" else None
    loc, scale = torch.randn(3, 2, requires_grad=True), torch.ones(2, requires_grad=True)
    law = SDEPath(sde, dist.Normal(loc, scale).to_event(1), grid, inputs=inputs)
    weights = torch.randn(*sample, *law.batch_shape, *law.event_shape)
    with pyro.settings.context(pyro_sde_backward=backward):
        torch.manual_seed(1)
        path = law.rsample(sample)
    targets = [loc, scale, times, *parameters, *([captured] if kind != "controlled" else [inputs])]
    found = torch.autograd.grad((weights * path.square()).sum(), targets, allow_unused=True)
    return path.detach(), found, type(path.grad_fn.next_functions[0][0]).__name__


KINDS = ("diagonal", "scalar", "additive", "general", "noise-free", "controlled")


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sample", [(), (4,)], ids=["one", "samples"])
def test_gradients_equal_those_of_the_loop(kind, grid, sample):
    path, ours, node = gradients("parallel", kind, grid, sample)
    reference, oracle, _ = gradients("loop", kind, grid, sample)
    assert node == "_UnrolledBackward"
    torch.testing.assert_close(path, reference)
    for value, expected in zip(ours, oracle, strict=True):
        assert (value is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)


def test_float32_gradients_agree_to_single_precision():
    torch.set_default_dtype(torch.float32)

    def run(backward):
        torch.manual_seed(0)
        sde = NeuralSDE(3, (8,))
        grid = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.01)
        law = SDEPath(sde, dist.Normal(torch.zeros(3), 1.0).to_event(1), grid)
        with pyro.settings.context(pyro_sde_backward=backward):
            path = law.rsample((5,))
        return torch.autograd.grad(path.square().sum(), list(sde.parameters()))

    for ours, expected in zip(run("parallel"), run("loop"), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


def law_of(drift, batch=5):
    grid = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.1)
    initial = dist.Normal(torch.zeros(batch, 2), 1.0).to_event(1)
    return SDEPath(SDE(drift, lambda t, z: torch.ones_like(z)), initial, grid)


def test_rows_that_interact_fall_back_to_the_loop():
    pull = torch.tensor(0.7, requires_grad=True)

    def drift(t, z):  # every series is pulled to the mean of all
        return pull * (z.mean(-2, keepdim=True) - z)

    def run(backward):
        with pyro.settings.context(pyro_sde_backward=backward):
            torch.manual_seed(0)
            path = law_of(drift).rsample()
        return torch.autograd.grad(path[..., -1, 0].square().sum(), pull)[0]

    torch.testing.assert_close(run("parallel"), run("loop"))


def test_nothing_is_recorded_without_gradients_to_record():
    with pyro.settings.context(pyro_sde_backward="parallel"):
        assert not law_of(lambda t, z: -z).rsample().requires_grad


def test_second_derivatives_are_refused_and_available_from_the_loop():
    rate = torch.tensor(0.7, requires_grad=True)
    with pyro.settings.context(pyro_sde_backward="parallel"):
        path = law_of(lambda t, z: -rate * z).rsample()
    with pytest.raises(RuntimeError, match='cannot be differentiated twice.*pyro_sde_backward="loop"'):
        torch.autograd.grad(path.square().sum(), rate, create_graph=True)
    with pyro.settings.context(pyro_sde_backward="loop"):
        path = law_of(lambda t, z: -rate * z).rsample()
    (first,) = torch.autograd.grad(path.square().sum(), rate, create_graph=True)
    assert torch.autograd.grad(first, rate)[0].isfinite()


def test_solving_for_given_noise_can_be_differentiated_twice_unless_told_otherwise():
    law = law_of(lambda t, z: -z - z**3 / 10, batch=1)
    noise, start = torch.randn(law.noise_shape()), torch.zeros(1, 2)

    def energy(n):
        return law.solve(start, n).square().sum()

    hessian = torch.autograd.functional.hessian(energy, noise)
    assert hessian.isfinite().all()
    with pyro.settings.context(pyro_sde_backward="parallel"), pytest.raises(RuntimeError, match="differentiated twice"):
        torch.autograd.functional.hessian(energy, noise)


def test_random_weights_in_a_drift_keep_their_gradient():
    grid = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.1)

    def drift(t, z):
        return -pyro.sample("rate", dist.LogNormal(pyro.param("m", torch.tensor(0.1)), 0.2)) * z

    def run(backward):
        pyro.clear_param_store()
        torch.manual_seed(0)
        with pyro.settings.context(pyro_sde_backward=backward), poutine.trace():
            sde = SDE(drift, lambda t, z: torch.ones_like(z))
            path = SDEPath(sde, dist.Normal(torch.zeros(1), 1.0).to_event(1), grid).rsample()
        return torch.autograd.grad(path.square().sum(), pyro.param("m"))[0]

    torch.testing.assert_close(run("parallel"), run("loop"))


def test_coefficients_that_do_not_repeat_fall_back_to_the_loop():
    net = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    with pyro.settings.context(pyro_sde_backward="parallel"):
        path = law_of(lambda t, z: net(z)).rsample()
    assert type(path.grad_fn.next_functions[0][0]).__name__ == "StackBackward0"


def test_a_path_that_explodes_is_reported_as_by_the_loop():
    scale = torch.ones(1, requires_grad=True)
    messages = []
    for backward in ("parallel", "loop"):
        sde = SDE(lambda t, z: scale * z**3, lambda t, z: torch.ones_like(z))
        start = dist.Normal(torch.full((1,), 100.0), 1.0).to_event(1)
        law = SDEPath(sde, start, TimeGrid(torch.linspace(0, 4, 9)), execution=Execution(backward=backward))
        torch.manual_seed(0)
        with pytest.raises(ValueError, match="became non-finite") as caught:
            law.log_prob(law.rsample())
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_second_order_dynamics_have_finite_gradients_in_parallel():
    friction = torch.tensor(0.5, requires_grad=True)
    sde = UnderdampedLangevin(torch.neg, friction, 0.3)
    grid = TimeGrid(torch.linspace(0.0, 2.0, 5), max_step=0.05)
    with pyro.settings.context(pyro_sde_backward="parallel"):
        path = SDEPath(sde, dist.Normal(torch.zeros(2), 1.0).to_event(1), grid).rsample((7,))
    assert torch.autograd.grad(path.square().sum(), friction)[0].isfinite()
