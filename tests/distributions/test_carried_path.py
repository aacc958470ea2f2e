"""Values that carry their log-ratio: the one of the grid as steps go to 0, and refused wherever it would be wrong."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_sde import SDE, GaussianPath, SDEPath, TimeGrid, path_kl
from pyro_sde.distributions import kl as kl_module
from pyro_sde.distributions._carried import record_of
from pyro_sde.distributions.carried_path import CarriedPath
from pyro_sde.sde import OrnsteinUhlenbeck
from pyro_sde.solvers.adaptive import TorchsdeAdjoint
from pyro_sde.testing import assert_mean

F64 = torch.float64
GRID = TimeGrid(torch.tensor([0.5, 1.0], dtype=F64), max_step=0.05, start=0.0)


def start(*shape, dtype=F64, loc=0.0):
    return dist.Normal(torch.full(shape, loc, dtype=dtype), torch.ones((), dtype=dtype)).to_event(1)


def pull(t, z):
    return 0.5 * t - z


def pair(grid=GRID, **options):
    prior = OrnsteinUhlenbeck(0.8, 0.9)
    return CarriedPath(prior.controlled(pull), start(3, 2, loc=0.3), grid, **options), CarriedPath(
        prior, start(3, 2), grid, **options
    )


# ---------------------------------------------------------------- the law
def test_shapes_are_those_of_the_observations():
    q, p = pair()
    assert q.event_shape == (2, 2)
    assert q.batch_shape == (3,)
    value = q.rsample((5,))
    assert value.shape == (5, 3, 2, 2)
    assert type(value) is torch.Tensor
    assert q.log_prob(value).shape == p.log_prob(value).shape == (5, 3)
    assert q.expand((4, 3)).sample().shape == (4, 3, 2, 2)
    assert repr(p) == "CarriedPath(batch_shape=(3,), event_shape=(2, 2))"


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_log_q_minus_log_p_is_the_carried_ratio(dtype):
    grid = TimeGrid(torch.tensor([0.5, 1.0], dtype=dtype), max_step=0.1, start=0.0)
    prior = OrnsteinUhlenbeck(0.8, 0.9)
    q = CarriedPath(prior.controlled(pull), start(2, dtype=dtype, loc=0.3), grid)
    p = CarriedPath(prior, start(2, dtype=dtype), grid)
    value = q.rsample((4,))
    record = record_of(value)
    ratio = q.initial.log_prob(record.initial) - p.initial.log_prob(record.initial) + record.kl + record.martingale
    torch.testing.assert_close(q.log_prob(value) - p.log_prob(value), ratio)
    assert value.dtype == ratio.dtype == dtype


def crossed(t, z):
    """General noise (..., 2, 2) that does not commute."""
    x, y = z.unbind(-1)
    one = torch.ones_like(x)
    return torch.stack([torch.stack([one, 0.4 * y.sin()], -1), torch.stack([0.3 * x.cos(), one], -1)], -2)


@pytest.mark.parametrize(
    ("noise_type", "diffusion", "order"),
    [("additive", lambda t, z: torch.tensor([[0.8, 0.2], [0.0, 0.6]], dtype=F64), 1.0), ("general", crossed, 0.5)],
)
def test_the_ratio_is_that_of_the_grid_as_steps_go_to_zero(noise_type, diffusion, order):
    # one Brownian path, summed up for coarse grids; the difference of both ratios falls with the order of the solvers
    torch.manual_seed(0)
    prior = SDE(lambda t, z: -z, diffusion, noise_type=noise_type)
    finest, paths = 256, 100
    noise = torch.randn(paths, finest, 2, dtype=F64)
    errors = []
    for count in (16, 64, 256):
        grid = TimeGrid(torch.linspace(0.0, 1.0, count + 1, dtype=F64))
        coarse = noise.reshape(paths, count, finest // count, 2).sum(-2) / math.sqrt(finest / count)
        sde = prior.controlled(lambda t, z: torch.sin(z + t))
        first = torch.full((paths, 2), 0.2, dtype=F64)
        initial = dist.Delta(torch.full((2,), 0.2, dtype=F64), event_dim=1)
        whole = SDEPath(sde, initial, grid)
        path = whole.solve(first, coarse)
        exact = whole.log_prob(path) - SDEPath(prior, initial, grid).log_prob(path)
        record = record_of(CarriedPath(sde, initial, grid).solve(first, coarse))
        errors.append(float((record.kl + record.martingale - exact).square().mean().sqrt()))
    slope = math.log(errors[0] / errors[2]) / math.log(16)
    assert abs(slope - order) < 0.2, errors
    assert errors[2] < 0.15 * float(exact.std())


def test_prior_samples_have_log_ratio_zero_and_states_of_the_process():
    torch.manual_seed(0)
    _, p = pair()
    value = p.sample((20_000,))
    torch.testing.assert_close(p.log_prob(value), p.initial.log_prob(record_of(value).initial))
    decay = math.exp(-2 * 0.8)
    assert_mean(value[:, 0, 1, 0].square(), decay + 0.81 / 1.6 * (1 - decay), detects=0.05)


def test_importance_weights_have_mean_one():
    torch.manual_seed(0)
    q, p = pair(TimeGrid(torch.tensor([0.4], dtype=F64), max_step=0.1, start=0.0))
    value = q.sample((30_000,))
    assert_mean((p.log_prob(value) - q.log_prob(value))[:, 0].exp(), 1.0, detects=0.1)


def test_closed_and_full_are_not_swapped():
    q, p = pair()
    value = q.rsample((4,))
    record = record_of(value)
    closed = kl_module.path_terms(q, p, value, closed=True)
    full = kl_module.path_terms(q, p, value, closed=False)
    divergence = torch.distributions.kl_divergence(q.initial, p.initial)
    torch.testing.assert_close(closed.kl, divergence + record.kl)
    torch.testing.assert_close(path_kl(q, p, value), closed.kl)
    torch.testing.assert_close(full.log_q - full.log_p, q.log_prob(value) - p.log_prob(value))
    assert full.kl is None
    assert (record.martingale.abs() > 1e-3).all()


def test_gradients_reach_first_state_control_and_prior():
    loc = nn.Parameter(torch.zeros(2, dtype=F64))
    drift, control = nn.Linear(2, 2).double(), nn.Linear(2, 2).double()
    prior = SDE(lambda t, z: drift(z), lambda t, z: 0.5 + 0 * z)
    q = CarriedPath(prior.controlled(lambda t, z: control(z)), dist.Normal(loc, 1.0).to_event(1), GRID)
    value = q.rsample()
    (q.log_prob(value) + value.sum()).backward()
    for parameter in (loc, *drift.parameters(), *control.parameters()):
        assert (parameter.grad != 0).all()


def test_effects_inside_coefficients_are_replayed():
    class Drift(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.rate = pyro.nn.PyroSample(dist.LogNormal(torch.zeros((), dtype=F64), 1.0))

        def forward(self, t, z):
            return -self.rate * z

    sde = SDE(Drift(), lambda t, z: 1e-9 + 0 * z)
    law = CarriedPath(sde, dist.Delta(torch.ones(1, dtype=F64), event_dim=1), GRID)
    rate = float(next(iter(law.effects.values.values())))
    torch.testing.assert_close(
        law.sample()[..., 0], torch.tensor([math.exp(-rate * 0.5), math.exp(-rate)], dtype=F64), rtol=0.1, atol=1e-3
    )


def test_series_have_grids_of_their_own():
    times = torch.tensor([[0.0, 0.5, 1.0], [0.1, 0.4, 0.4], [0.2, 0.3, 0.9]], dtype=F64)
    torch.manual_seed(0)
    q = CarriedPath(OrnsteinUhlenbeck(0.8, 0.9).controlled(pull), start(3, 2), TimeGrid(times, max_step=0.05))
    value = q.rsample()
    assert value.shape == (3, 3, 2)
    assert torch.equal(value[1, 1], value[1, 2])  # padded
    assert torch.equal(value[:, 0], record_of(value).initial)


def test_inputs_may_be_bound_in_the_prior_of_model_and_guide():
    rows = torch.linspace(-1, 1, GRID.num_steps, dtype=F64).unsqueeze(-1)
    prior = SDE(lambda t, z, row: row - z, lambda t, z: 1 + 0 * z)
    context = torch.zeros(GRID.num_steps, 1, dtype=F64)
    q = CarriedPath(prior.with_inputs(rows).controlled(lambda t, z, c: c - z), start(2), GRID, inputs=context)
    value = q.sample()
    for p in (CarriedPath(prior.with_inputs(rows), start(2), GRID), CarriedPath(prior, start(2), GRID, inputs=rows)):
        assert torch.isfinite(p.log_prob(value))
    other = CarriedPath(prior.with_inputs(rows.clone()), start(2), GRID)
    with pytest.raises(ValueError, match="not the control form of this model's SDE"):
        other.log_prob(value)


# ---------------------------------------------------------------- what is refused
SPOILT = {
    "detached": lambda value: value.detach(),
    "copied": lambda value: value.clone(),
    "viewed": lambda value: value.view_as(value),
    "stacked": lambda value: torch.stack([value, value]),
    "plain": lambda value: torch.zeros_like(value),
    "changed": lambda value: value.add_(1.0),
}


@pytest.mark.parametrize("how", SPOILT)
def test_values_without_their_record_are_refused(how):
    q, p = pair()
    value = SPOILT[how](q.sample())
    for law in (q, p):
        with pytest.raises(ValueError, match="CarriedPath: this value carries no log-ratio.*Use SDEPath"):
            law.log_prob(value)
        with pytest.raises(ValueError, match="at site 'z': this value carries no log-ratio"):
            law.named("z").score_parts(value)


def test_another_prior_is_refused():
    q, _ = pair()
    p = CarriedPath(OrnsteinUhlenbeck(0.8, 0.9), start(3, 2), GRID)  # equal, but not the same parameters
    value = q.sample()
    with pytest.raises(ValueError, match="not the control form of this model's SDE"):
        p.log_prob(value)
    with pytest.raises(ValueError, match="not the control form of this model's SDE"):
        path_kl(q, p, value)


def test_a_value_of_another_guide_is_refused():
    q, p = pair()
    other, _ = pair()
    with pytest.raises(ValueError, match="sampled by another law than this guide's"):
        path_kl(other, p, q.sample())


def test_other_laws_beside_it_are_refused():
    q, p = pair()
    plain = SDEPath(OrnsteinUhlenbeck(0.8, 0.9), start(3, 2), GRID)
    with pytest.raises(ValueError, match="the guide has a CarriedPath and the model a SDEPath"):
        path_kl(q, plain, q.sample())
    with pytest.raises(ValueError, match="the model has a CarriedPath and the guide a SDEPath"):
        path_kl(plain, p, plain.sample())


def test_other_grids_are_refused():
    q, _ = pair()
    other = CarriedPath(q.sde.base, start(3, 2), GRID.refine(2))
    with pytest.raises(ValueError, match="guide and model use different grids"):
        path_kl(q, other, q.sample())


def test_singular_initial_laws_are_refused():
    q, _ = pair()
    p = CarriedPath(q.sde.base, dist.Delta(torch.zeros(3, 2, dtype=F64), event_dim=1), GRID)
    with pytest.raises(ValueError, match="KL divergence of the initial laws is not finite"):
        kl_module.path_terms(q, p, q.sample(), closed=False)


def test_without_the_martingale_only_the_closed_form_is_left():
    q, p = pair(backend=TorchsdeAdjoint(martingale=False))
    value = q.sample()
    assert kl_module.path_terms(q, p, value, closed=True).kl.shape == (3,)
    for refused in (q.log_prob, q.score_parts, lambda v: kl_module.path_terms(q, p, v, closed=False)):
        with pytest.raises(ValueError, match='carries kl but no martingale.*Use PathELBO\\(kl="closed"\\)'):
            refused(value)


def test_a_first_state_without_gradient_is_refused():
    class Fixed(dist.Normal):
        has_rsample = False

    law = CarriedPath(OrnsteinUhlenbeck(0.8, 0.9), Fixed(torch.zeros(2, dtype=F64), 1.0).to_event(1), GRID)
    with pytest.raises(ValueError, match="`initial` is not reparameterised"):
        law.score_parts(law.sample())


def test_there_are_no_kernels():
    q, _ = pair()
    with pytest.raises(ValueError, match="a carried path has no transition kernels"):
        q.kernels(q.sample())


def test_noise_must_fit_and_have_no_gradient():
    q, _ = pair()
    with pytest.raises(ValueError, match=r"`noise` must have shape \(..., 20, 2\)"):
        q.solve(torch.zeros(3, 2, dtype=F64), torch.zeros(3, 19, 2, dtype=F64))
    with pytest.raises(ValueError, match="that requires gradients"):
        q.solve(torch.zeros(3, 2, dtype=F64), torch.zeros(3, 20, 2, dtype=F64, requires_grad=True))


def test_explosions_and_wrong_backends_are_named():
    sde = SDE(lambda t, z: 1e5 * z**3, lambda t, z: 1 + 0 * z)
    with pytest.raises(ValueError, match="CarriedPath at site 'z': states or the log-ratio became non-finite"):
        CarriedPath(sde, start(2), GRID).named("z").sample()
    with pytest.raises(TypeError, match="`backend` must be ReversibleHeunAdjoint"):
        CarriedPath(OrnsteinUhlenbeck(1.0, 1.0), start(2), GRID, backend="adjoint")


def test_conditioning_is_refused_by_name():
    _, p = pair()

    def model():
        with pyro.plate("series", 3):
            pyro.sample("z", p)

    trace = poutine.trace(poutine.condition(model, {"z": torch.zeros(3, 2, 2, dtype=F64)})).get_trace()
    with pytest.raises(ValueError, match="this value carries no log-ratio"):
        trace.log_prob_sum()


@pytest.mark.parametrize("kind", ["SDEPath", "GaussianPath"])
def test_laws_with_a_density_refuse_values_of_a_carried_path(kind):
    grid = TimeGrid(torch.linspace(0.0, 1.0, 5))
    initial = dist.Normal(torch.zeros(1), 1.0).to_event(1)
    value = CarriedPath(OrnsteinUhlenbeck(1.0, 0.5), initial, grid).sample()
    if kind == "SDEPath":
        law = SDEPath(OrnsteinUhlenbeck(1.0, 0.5), initial, grid)
    else:
        law = GaussianPath(OrnsteinUhlenbeck(1.0, 0.5), None, grid)
    with pytest.raises(ValueError, match="sampled by a CarriedPath, whose densities are relative to its prior"):
        law.log_prob(value)
    law.log_prob(value.clone())
