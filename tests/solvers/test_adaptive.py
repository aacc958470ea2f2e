"""torchsde behind our interface: adaptive samples, and its adjoint with every gradient accounted for."""

from __future__ import annotations

import contextlib
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_sde import SDE, TimeGrid
from pyro_sde.sde import GeometricBrownianMotion, OrnsteinUhlenbeck
from pyro_sde.solvers._carried import CarriedProblem
from pyro_sde.solvers.adaptive import TorchsdeAdjoint, sample_adaptive
from pyro_sde.solvers.noise import GivenNoise
from pyro_sde.testing import assert_mean

F64 = torch.float64
GRID = TimeGrid(torch.tensor([0.3, 0.6], dtype=F64), max_step=0.03, start=0.0)
GAPS = TimeGrid(
    torch.tensor([0.3, 0.6], dtype=F64), start=0.0
)  # inputs that jump inside a gap need tiny adaptive steps


def twisted(t, z):
    """General noise (..., 2, 2) that does not commute."""
    one, zero = torch.ones_like(z[..., 0]), torch.zeros_like(z[..., 0])
    return torch.stack([torch.stack([one, zero], -1), torch.stack([zero, z[..., 0]], -1)], -2)


def crossed(t, z):
    """Diagonal noise whose entries depend on the other state."""
    return 1 + 0.5 * z.flip(-1).sin()


# ---------------------------------------------------------------- plain sampling
@pytest.mark.parametrize("method", [None, "milstein", "midpoint", "heun", "euler_heun"])
@pytest.mark.parametrize("sde_type", ["ito", "stratonovich"])
def test_geometric_brownian_motion_has_its_moments_in_either_interpretation(method, sde_type):
    torch.manual_seed(0)
    # the Stratonovich drift of the same process is smaller by sigma^2 z / 2
    sde = SDE(lambda t, z: (0.3 if sde_type == "ito" else 0.3 - 0.08) * z, lambda t, z: 0.4 * z, sde_type=sde_type)
    times = torch.tensor([0.0, 0.5, 1.0], dtype=F64)
    z = sample_adaptive(sde, torch.ones(4000, 1, dtype=F64), times, method=method, rtol=1e-2, atol=1e-2, max_step=0.1)
    assert z.shape == (4000, 3, 1)
    assert_mean(z[:, 2, 0], math.exp(0.3), detects=0.08)
    assert_mean(z[:, 2, 0].log(), 0.3 - 0.08, detects=0.05)
    assert_mean((z[:, 1, 0].log() - 0.11).square(), 0.08, detects=0.02)


def test_requested_times_are_hit_without_interpolation():
    # torchsde alone gives 0.025 at 0.05 with steps of 0.1: it interpolates
    torch.manual_seed(0)
    sde = OrnsteinUhlenbeck(1e-6, 1.0)
    z = sample_adaptive(
        sde, torch.zeros(20_000, 1, dtype=F64), torch.tensor([0.0, 0.05, 0.25], dtype=F64), max_step=0.1, method="srk"
    )
    assert_mean(z[:, 1, 0].square(), 0.05, detects=0.005)
    assert_mean(z[:, 2, 0].square(), 0.25, detects=0.02)


def test_samples_are_reproducible_and_keep_batch_shape_and_dtype():
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(sample_adaptive(GeometricBrownianMotion(0.1, 0.2), torch.ones(2, 3, 1), torch.tensor([0.0, 0.1])))
    assert runs[0].shape == (2, 3, 2, 1)
    assert runs[0].dtype == torch.float32
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_inputs_hold_from_one_requested_time_to_the_next():
    sde = SDE(lambda t, z, row: row, lambda t, z: 0 * z)
    inputs = torch.tensor([[1.0], [-3.0]], dtype=F64)
    z = sample_adaptive(sde, torch.zeros(1, dtype=F64), torch.tensor([0.0, 1.0, 1.5], dtype=F64), inputs=inputs)
    torch.testing.assert_close(z[:, 0], torch.tensor([0.0, 1.0, -0.5], dtype=F64), rtol=1e-9, atol=1e-9)


def test_tolerances_control_the_error():
    sde = SDE(lambda t, z: -20 * z * (t * 9).cos(), lambda t, z: 0 * z)  # no noise: an ODE
    exact = math.exp(-20 / 9 * math.sin(9.0))
    start, times, errors = torch.ones(1, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64), []
    for tolerance in (1e-1, 1e-4):
        z = sample_adaptive(sde, start, times, rtol=tolerance, atol=tolerance)
        errors.append(abs(float(z[-1, 0]) - exact))
    assert errors[1] < 0.01 * exact
    assert errors[1] < errors[0] / 3


@pytest.mark.parametrize(
    ("sde", "options", "message"),
    [
        (SDE(lambda t, z: -z, twisted, noise_type="general"), {"method": "midpoint"}, "non-commutative noise"),
        (SDE(lambda t, z: -z, twisted, noise_type="general"), {}, 'method="srk" needs diagonal, additive or scalar'),
        (SDE(lambda t, z: -z, crossed), {}, "entry 0 of the diagonal diffusion depends on state 1"),
        (SDE(lambda t, z: -z, lambda t, z: z), {"method": "euler"}, 'adaptive steps of method="euler" need additive'),
        (SDE(lambda t, z: -z, lambda t, z: z), {"method": "log_ode"}, "`method` must be one of .*received 'log_ode'"),
        (SDE(lambda t, z: -z, lambda t, z: z), {"rtol": 0.0}, "`rtol` must be a number > 0"),
        (SDE(lambda t, z: -z, lambda t, z: z), {"max_step": 0.0}, "`max_step` must be a number > 0"),
        (SDE(lambda t, z: -z, lambda t, z: z), {"times": torch.ones(2, 3)}, r"`times` must have shape \(N,\)"),
        (SDE(lambda t, z, c: -z, lambda t, z: z), {"inputs": torch.zeros(3, 1)}, "one row per gap, .*1, C"),
        (SDE(lambda t, z: 1e9 * z**3, lambda t, z: 1 + 0 * z), {"rtol": 1e-9, "atol": 1e-9}, "no step small enough"),
    ],
)  # fmt: skip
def test_what_would_give_another_answer_is_refused(sde, options, message):
    options = {"times": torch.tensor([0.0, 1.0], dtype=F64), **options}
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=message):
        sample_adaptive(sde, torch.ones(2, 2, dtype=F64), **options)


def test_a_coefficient_that_draws_is_refused():
    sde = SDE(lambda t, z: -z * pyro.sample("rate", dist.Normal(1.0, 0.1)), lambda t, z: 1 + 0 * z)
    with pytest.raises(ValueError, match="Pyro statement 'rate', which would draw anew"):
        sample_adaptive(sde, torch.ones(2, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64))


def test_additive_noise_allows_adaptive_euler_and_no_warning_leaks():
    sde = SDE(lambda t, z: -z, lambda t, z: torch.eye(2, dtype=F64), noise_type="additive")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        z = sample_adaptive(sde, torch.ones(2, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64), method="euler")
    assert torch.isfinite(z).all()


# ---------------------------------------------------------------- adjoint
class Learned(nn.Module):
    """Parameters, a closure with history, inputs and a first state, all with gradients."""

    def __init__(self, diagonal=True, grid=GRID):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.encoder, self.scale = (
            nn.Linear(2, 2),
            nn.Linear(3, 2),
            nn.Parameter(torch.tensor([-0.5, -1.0])),
        )
        self.double()
        self.rows = nn.Parameter(torch.randn(grid.num_steps, 2, dtype=F64))
        self.first = nn.Parameter(torch.randn(3, 2, dtype=F64))
        self.data = torch.randn(3, 3, dtype=F64)
        self.diagonal, self.grid = diagonal, grid

    def problem(self):
        context, scale = self.encoder(self.data), self.scale.exp()

        def diffusion(t, z):
            sigma = scale * (1 + 0.3 * z.sin())
            return sigma if self.diagonal else sigma.unsqueeze(-1)

        def control(t, z, row):
            u = torch.tanh(context * z + row + self.inner(z) * t)
            return u if self.diagonal else u[..., :1]

        kind = "diagonal" if self.diagonal else "scalar"
        sde = SDE(lambda t, z: -z + self.inner(z).tanh(), diffusion, noise_type=kind).controlled(control)
        width = 2 if self.diagonal else 1
        return CarriedProblem(sde, self.grid, self.first, (None, self.rows), width, contextlib.nullcontext())

    def gradients(self, backend):
        torch.manual_seed(1)
        states, kl, martingale = backend.solve(self.problem())
        loss = (states * torch.arange(12.0, dtype=F64).reshape(3, 2, 2)).sum() + (kl * torch.arange(3)).sum()
        loss = loss if martingale is None else loss + martingale.sum()
        return torch.autograd.grad(loss, list(self.parameters()))


BACKENDS = {
    "midpoint": TorchsdeAdjoint(),
    "kl alone": TorchsdeAdjoint(martingale=False),
    "ito euler": TorchsdeAdjoint(method="euler"),
    "srk": TorchsdeAdjoint(method="srk", martingale=False),
    "adaptive": TorchsdeAdjoint(adaptive=True, martingale=False, rtol=1e-3, atol=1e-3),
}


def without_adjoint(monkeypatch):
    """Backpropagation through the same solver on the same Brownian path."""
    import torchsde

    def backprop(sde, y, times, *, adjoint_params, **options):
        options = {name: value for name, value in options.items() if "adjoint" not in name}
        return torchsde.sdeint(sde, y, times, **options)

    monkeypatch.setattr(torchsde, "sdeint_adjoint", backprop)


@pytest.mark.parametrize("name", BACKENDS)
def test_no_gradient_is_forgotten_by_the_adjoint(name, monkeypatch):
    case = Learned(grid=GAPS if BACKENDS[name].adaptive else GRID)
    ours = case.gradients(BACKENDS[name])
    without_adjoint(monkeypatch)
    theirs = case.gradients(BACKENDS[name])
    # the continuous adjoint differs by the discretisation error; a forgotten tensor would be off by 100 %
    tolerance = {"ito euler": 0.2, "srk": 0.1, "adaptive": 0.1}.get(name, 0.03)
    for parameter, mine, other in zip(dict(case.named_parameters()), ours, theirs, strict=True):
        assert (mine - other).norm() <= tolerance * other.norm(), parameter


@pytest.mark.parametrize("method", ["euler", "midpoint", "srk"])
def test_the_gradient_of_a_row_is_that_of_its_own_step(method):
    sde = SDE(lambda t, z, row: row, lambda t, z: torch.eye(1, dtype=F64), noise_type="additive")
    rows = torch.zeros(GRID.num_steps, 1, dtype=F64, requires_grad=True)
    problem = CarriedProblem(sde, GRID, torch.zeros(2, 1, dtype=F64), (rows,), 1, contextlib.nullcontext())
    end = TorchsdeAdjoint(method=method).solve(problem).states[0, -1, 0]
    (gradient,) = torch.autograd.grad(end, rows)
    torch.testing.assert_close(gradient[:, 0], GRID.steps, rtol=1e-6, atol=1e-9)


def test_one_brownian_motion_allows_adaptive_steps_with_the_martingale():
    backend = TorchsdeAdjoint(adaptive=True, rtol=1e-2, atol=1e-2)
    assert backend.solve(Learned(diagonal=False, grid=GAPS).problem()).martingale is not None


@pytest.mark.parametrize("method", ["midpoint", "euler", "heun"])
def test_kl_and_martingale_are_those_of_the_ito_integral(method):
    # dz = u dt + dW with u = (1 + z) / 2: the Stratonovich integral of u has mean u' t / 2 = 0.125, the Ito integral 0
    torch.manual_seed(0)
    sde = SDE(lambda t, z: 0 * z, lambda t, z: 1 + 0 * z).controlled(lambda t, z: 0.5 + 0.5 * z)
    grid = TimeGrid(torch.tensor([0.0, 0.5], dtype=F64), max_step=0.05)
    problem = CarriedProblem(sde, grid, torch.zeros(20_000, 1, dtype=F64), (None, None), 1, contextlib.nullcontext())
    _, kl, martingale = TorchsdeAdjoint(method=method).solve(problem)
    assert_mean(martingale, 0.0, detects=0.05)
    assert_mean((-kl - martingale).exp(), 1.0, detects=0.05)


def test_kl_alone_is_the_one_with_the_martingale():
    torch.manual_seed(0)
    case = Learned()
    one = TorchsdeAdjoint(method="euler").solve(case.problem())
    torch.manual_seed(0)
    two = TorchsdeAdjoint(method="euler", martingale=False).solve(case.problem())
    assert two.martingale is None
    assert one.kl.shape == two.kl.shape == (3,)
    assert torch.allclose(one.kl.mean(), two.kl.mean(), rtol=0.5)  # other noise, same size


def test_an_uncontrolled_sde_has_log_ratio_zero():
    grid = TimeGrid(torch.tensor([0.0, 0.5], dtype=F64), max_step=0.1)
    problem = CarriedProblem(
        OrnsteinUhlenbeck(1.0, 1.0), grid, torch.zeros(3, 2, dtype=F64), (None,), 2, contextlib.nullcontext()
    )
    states, kl, martingale = TorchsdeAdjoint().solve(problem)
    assert states.shape == (3, 2, 2)
    assert torch.equal(kl, martingale)
    assert torch.equal(kl, torch.zeros(3, dtype=F64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "rk4"}, "`method` must be one of"),
        ({"atol": -1.0}, "`atol` must be a number > 0"),
        ({"adaptive": True, "method": "reversible_heun"}, "would have to retrace its steps"),
    ],
)
def test_impossible_options_are_refused_at_construction(options, message):
    with pytest.raises(ValueError, match=message):
        TorchsdeAdjoint(**options)


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        (TorchsdeAdjoint(adaptive=True), "adaptive steps with non-commutative noise .*Set martingale=False"),
        (TorchsdeAdjoint(method="srk"), "needs diagonal, additive or scalar noise.*Set martingale=False"),
        (TorchsdeAdjoint(method="euler", adaptive=True, martingale=False), "need additive noise"),
    ],
)
def test_noise_that_does_not_allow_the_options_is_refused(backend, message):
    with pytest.raises(ValueError, match=message):
        backend.solve(Learned().problem())


def test_grids_per_series_given_noise_and_times_with_gradients_are_refused():
    problem = Learned().problem()
    ragged = TimeGrid(torch.tensor([[0.0, 0.3], [0.1, 0.5], [0.0, 0.6]], dtype=F64), max_step=0.1)
    with pytest.raises(ValueError, match=r"a grid for each series \(3,\)"):
        TorchsdeAdjoint().solve(problem._replace(grid=ragged))
    times = TimeGrid(torch.tensor([0.0, 0.6], dtype=F64, requires_grad=True), max_step=0.02)
    with pytest.raises(ValueError, match="`grid` has times with gradients"):
        TorchsdeAdjoint().solve(problem._replace(grid=times))
    with pytest.raises(ValueError, match="draws its own Brownian motion"):
        TorchsdeAdjoint().solve(problem, GivenNoise(torch.zeros(30, 3, 2)))
