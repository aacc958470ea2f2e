"""The path law of an SDE: batches, grids, broadcasting, inputs, and bad input."""

import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_sde import SDE, NeuralSDE, SDEPath, TimeGrid, path_kl
from pyro_sde.nn import ControlNet
from pyro_sde.sde import BrownianMotion, DoubleWell, GeometricBrownianMotion, OrnsteinUhlenbeck, UnderdampedLangevin
from pyro_sde.testing import assert_mean, loop_log_prob

DOUBLE = torch.float64


def normal(*shape, dtype=DOUBLE, loc=0.0, scale=1.0):
    return dist.Normal(torch.full(shape, loc, dtype=dtype), torch.full(shape, scale, dtype=dtype)).to_event(1)


def grid(steps=8, dtype=DOUBLE):
    return TimeGrid(torch.linspace(0, 1, steps + 1, dtype=dtype))


def half(t, z):
    return 0.5 * torch.ones_like(z)


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------- one step at a time
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)], ids=str)
def test_captured_tensors_meet_batch_and_not_time_when_their_sizes_agree(dtype, tolerance):
    """B == T == K == D == 4: the shapes that a call with time at dim -2 would broadcast the wrong way."""
    rate = torch.tensor([[0.2], [0.7], [1.3], [2.0]], dtype=dtype)
    scale = torch.tensor([[0.3], [0.5], [0.7], [0.9]], dtype=dtype)
    for steps in (3, 4):
        law = SDEPath(SDE(lambda t, z: -rate * z, lambda t, z: scale), normal(4, 4, dtype=dtype), grid(steps, dtype))
        assert law.batch_shape == (4,)
        path = law.sample((4,))
        close(law.log_prob(path), loop_log_prob(law, path), tolerance)
        for b in range(4):
            sde = SDE(lambda t, z, b=b: -rate[b] * z, lambda t, z, b=b: scale[b])
            single = SDEPath(sde, normal(4, dtype=dtype), law.grid)
            close(law.log_prob(path)[:, b], single.log_prob(path[:, b]), tolerance)


def test_particles_stand_left_of_the_batch():
    rate = torch.rand(5, 1, 1, dtype=DOUBLE)  # one latent rate per particle, shared by the batch
    law = SDEPath(OrnsteinUhlenbeck(rate, 0.5), normal(3, 2), grid())
    assert law.batch_shape == (5, 3)
    path = law.sample()
    assert path.shape == (5, 3, 9, 2)
    close(law.log_prob(path), loop_log_prob(law, path))
    single = SDEPath(OrnsteinUhlenbeck(rate[2], 0.5), normal(3, 2), grid())
    close(law.log_prob(path)[2], single.log_prob(path[2]))


def test_every_series_has_its_own_times():
    times = torch.rand(4, 6, dtype=DOUBLE).cumsum(-1)
    sde = SDE(lambda t, z: -z * t, lambda t, z: 0.3 + 0.1 * t.sin() + 0 * z)
    law = SDEPath(sde, normal(2), TimeGrid(times, max_step=0.2))
    path = law.sample((3,))
    close(law.log_prob(path), loop_log_prob(law, path))
    for b in range(4):
        single = SDEPath(sde, normal(2), TimeGrid(times[b], max_step=0.2))
        close(law.log_prob(path)[:, b], single.log_prob(path[:, b, : single.event_shape[0]]))


def test_enumerated_regimes_are_scored_side_by_side():
    rates = torch.tensor([0.1, 3.0], dtype=DOUBLE)
    path = SDEPath(OrnsteinUhlenbeck(rates[1], 0.5), normal(4, 2), grid()).sample()

    @config_enumerate
    def model():
        with pyro.plate("series", 4):
            regime = pyro.sample("regime", dist.Categorical(torch.tensor([0.3, 0.7], dtype=DOUBLE)))
            law = SDEPath(OrnsteinUhlenbeck(rates[regime].unsqueeze(-1), 0.5), normal(2), grid())
            pyro.sample("z", law, obs=path)

    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda: None)
    terms = torch.stack([SDEPath(OrnsteinUhlenbeck(r, 0.5), normal(2), grid()).log_prob(path) for r in rates])
    expected = (terms + torch.tensor([0.3, 0.7], dtype=DOUBLE).log().unsqueeze(-1)).logsumexp(0).sum()
    assert loss == pytest.approx(-float(expected), rel=1e-12)


# ---------------------------------------------------------------- ragged batches and padding
class Pair(nn.Module):
    """Learnable prior and control with inputs, on any grid and selection of series."""

    def __init__(self):
        super().__init__()
        self.prior = NeuralSDE(2, hidden=(6,), constant_diffusion=False)
        self.control = ControlNet(2, 3, hidden=(5,), time_features=1)
        self.loc = nn.Parameter(torch.randn(64, 2))
        for parameter in self.control.parameters():
            nn.init.normal_(parameter, std=0.5)
        self.double()

    def laws(self, times, rows, series):
        start = dist.Normal(self.loc[series], 0.7).to_event(1)
        q = SDEPath(self.prior.controlled(self.control), start, times, inputs=rows)
        p = SDEPath(self.prior, normal(2, dtype=rows.dtype), times)
        return q, p

    def terms(self, times, rows, series, noise):
        q, p = self.laws(times, rows, series)
        first = self.loc[series] + 0.7 * noise[..., 0, :]
        path = q.solve(first, noise[..., 1 : times.num_steps + 1, :])
        return path, torch.stack([q.log_prob(path), p.log_prob(path), path_kl(q, p, path)], -1)

    def gradients(self, value):
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, list(self.parameters()))])


def test_ragged_batch_equals_single_solves_with_the_same_noise():
    pair = Pair()
    lengths = torch.randint(2, 13, (64,))
    times = torch.rand(64, 12, dtype=DOUBLE).cumsum(-1)
    mask = torch.arange(12) < lengths.unsqueeze(-1)
    batch = TimeGrid(torch.where(mask, times, torch.nan), max_step=0.3, mask=mask)
    rows = torch.randn(64, batch.num_steps, 3, dtype=DOUBLE)
    noise = torch.randn(64, batch.num_steps + 1, 2, dtype=DOUBLE)
    path, terms = pair.terms(batch, rows, torch.arange(64), noise)
    gradient = pair.gradients((terms * torch.tensor([1.0, 2.0, 3.0])).sum())
    total = torch.zeros_like(gradient)
    for i in range(64):
        single = TimeGrid(times[i, : lengths[i]], max_step=0.3)
        k = single.num_steps
        alone, values = pair.terms(single, rows[i, :k], torch.tensor(i), noise[i])
        close(path[i, : k + 1], alone, 1e-6)
        assert (path[i, k:] == path[i, k]).all()
        close(batch.observed(path)[i, : lengths[i]], single.observed(alone), 1e-6)
        close(terms[i], values, 1e-6)
        total += pair.gradients((values * torch.tensor([1.0, 2.0, 3.0])).sum())
    close(gradient, total, 1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)], ids=str)
def test_padding_changes_nothing(dtype, tolerance):
    pair = Pair().to(dtype)
    times = torch.tensor([0.0, 0.3, 1.0], dtype=dtype, requires_grad=True)
    short = torch.cat([times, times[-1:].expand(2)])
    plain = TimeGrid(times, max_step=0.2)
    padded = TimeGrid(torch.stack([short, torch.tensor([0.0, 0.3, 1.0, 1.2, 1.4], dtype=dtype)]), max_step=0.2)
    k, extra = plain.num_steps, padded.num_steps - plain.num_steps
    assert extra == 2
    rows, noise = torch.randn(k, 3, dtype=dtype), torch.randn(k + 1, 2, dtype=dtype)
    path, values = pair.terms(plain, rows, torch.tensor(0), noise)
    # Inputs and noise of padded steps are there, and must not matter.
    more_rows, more_noise = (nn.functional.pad(x, (0, 0, 0, extra), value=9.0).expand(2, -1, -1) for x in (rows, noise))
    padded_path, padded_values = pair.terms(padded, more_rows, torch.tensor([0, 1]), more_noise)
    close(padded_path[0, : k + 1], path, tolerance)
    assert (padded_path[0, k:] == padded_path[0, k]).all()
    close(padded_values[0], values, tolerance)
    inputs = [times, *pair.parameters()]
    for value, padded_value in zip(values, padded_values[0], strict=True):
        expected = torch.autograd.grad(value, inputs, retain_graph=True, materialize_grads=True)
        actual = torch.autograd.grad(padded_value, inputs, retain_graph=True, materialize_grads=True)
        for one, other in zip(actual, expected, strict=True):
            close(one, other, 10 * tolerance)


def test_padded_steps_of_degenerate_noise_have_finite_gradients():
    times = torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.4, 0.4]], dtype=DOUBLE).requires_grad_()
    prior = UnderdampedLangevin(lambda x: -x, torch.ones(1, dtype=DOUBLE), 0.5)
    law = SDEPath(prior.controlled(lambda t, z: z), normal(2), TimeGrid(times, max_step=0.1))
    path = law.rsample()
    value = law.log_prob(path).sum() + path_kl(law, SDEPath(prior, normal(2), law.grid), path).sum()
    (gradient,) = torch.autograd.grad(value, times)
    assert torch.isfinite(gradient).all()


def test_gradients_with_respect_to_times_are_those_of_finite_differences():
    noise, first = torch.randn(6, 2, dtype=DOUBLE), torch.randn(2, dtype=DOUBLE)

    def value(times):
        law = SDEPath(SDE(lambda t, z: -z * t, lambda t, z: 0.5 + 0.1 * t.cos() + 0 * z), normal(2), TimeGrid(times))
        path = law.solve(first, noise)
        return path.square().sum() + law.log_prob(torch.ones(7, 2, dtype=DOUBLE).cumsum(0) / 10)

    times = torch.rand(7, dtype=DOUBLE).cumsum(-1).requires_grad_()
    assert torch.autograd.gradcheck(value, times)


# ---------------------------------------------------------------- noise and path
def test_noise_and_path_determine_each_other(law):
    path = law.sample((5,))
    noise = law.noise_of(path)
    assert noise.shape == (5, *law.noise_shape())
    again = law.solve(path[..., 0, :], noise)
    close(again, path, 1e-9)
    close(law.noise_of(again), noise, 1e-9)


@pytest.mark.parametrize("noise_type", ["diagonal", "scalar", "additive", "general"])
def test_noise_of_a_solved_path_is_the_noise(noise_type):
    columns = {"diagonal": None, "scalar": 1, "additive": 2, "general": 2}[noise_type]
    matrix = torch.tensor([[1.0, 0.3], [0.2, 0.8]], dtype=DOUBLE)
    diffusion = half if columns is None else lambda t, z: matrix[:, :columns]
    law = SDEPath(SDE(lambda t, z: -z, diffusion, noise_type=noise_type), normal(3, 2), grid())
    noise = torch.randn(law.noise_shape(), dtype=DOUBLE)
    assert noise.shape == (3, 8, columns or 2)
    close(law.noise_of(law.solve(torch.randn(3, 2, dtype=DOUBLE), noise)), noise, 1e-10)


def test_noise_of_wide_noise_is_the_shortest_that_gives_the_path():
    matrix = torch.tensor([[1.0, 0.3, -0.5], [0.2, 0.8, 0.1]], dtype=DOUBLE)
    law = SDEPath(SDE(lambda t, z: -z, lambda t, z: matrix, noise_type="general"), normal(2), grid())
    noise, first = torch.randn(8, 3, dtype=DOUBLE), torch.randn(2, dtype=DOUBLE)
    expected = noise @ (torch.linalg.pinv(matrix) @ matrix).T
    close(law.noise_of(law.solve(first, noise)), expected, 1e-10)


def test_density_is_that_of_the_noise_with_the_change_of_variables(make_law):
    """An oracle without kernels: the Jacobian of the solver, by automatic differentiation."""
    law = make_law(DOUBLE)
    count = torch.Size(law.noise_shape()[-2:]).numel()
    square = law.noise_shape()[-1] == law.event_shape[-1] and count
    noise, first = torch.randn(law.noise_shape(), dtype=DOUBLE), law.initial.sample()
    path = law.solve(first, noise)
    if not square or (law.noise_of(path) == 0).any():
        return  # degenerate, wide or padded: no square Jacobian; `loop_log_prob` is the oracle there
    jacobian = torch.autograd.functional.jacobian(lambda e: law.solve(first, e)[..., 1:, :], noise)
    for b in range(3):
        block = jacobian[b, :, :, b].reshape(count, count)
        expected = law.initial.log_prob(first)[b] + dist.Normal(0.0 * noise, 1.0).log_prob(noise)[b].sum()
        close(law.log_prob(path)[b], expected - torch.linalg.slogdet(block).logabsdet, 1e-9)


@pytest.mark.parametrize("shape", [(7, 2), (8, 3), (2,)])
def test_noise_of_a_wrong_shape_is_refused(shape):
    law = SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(2), grid())
    with pytest.raises(
        ValueError, match=rf"`noise` must have shape \(\.\.\., 8, 2\), received {re.escape(str(shape))}"
    ):
        law.solve(torch.zeros(2, dtype=DOUBLE), torch.zeros(shape, dtype=DOUBLE))


@pytest.mark.parametrize("shape", [(2,), (8, 2), (10, 2)])
def test_a_path_with_a_wrong_number_of_points_is_refused(shape):
    law = SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(2), grid())
    with pytest.raises(ValueError, match=r"`path` must have shape \(\.\.\., 9, D\), received"):
        law.kernels(torch.zeros(shape, dtype=DOUBLE))


# ---------------------------------------------------------------- laws of known processes
def test_brownian_motion_has_variance_t_at_every_requested_time():
    times = torch.rand(10, dtype=DOUBLE).cumsum(-1)
    law = SDEPath(
        BrownianMotion(1.0),
        dist.Delta(torch.zeros(1, dtype=DOUBLE), event_dim=1),
        TimeGrid(times, max_step=0.3, start=0.0),
    )
    z = law.grid.observed(law.sample((20_000,))).squeeze(-1) / times.sqrt()
    assert_mean(z.square(), 1.0, detects=0.08)
    assert_mean(z, 0.0, detects=0.06)


def test_stratonovich_sde_is_simulated_by_its_ito_form():
    start = dist.LogNormal(torch.zeros(1, dtype=DOUBLE), 0.1).to_event(1)
    volatility = 0.6
    stratonovich = SDE(lambda t, z: 0 * z, lambda t, z: volatility * z, sde_type="stratonovich")
    ito = GeometricBrownianMotion(volatility**2 / 2, volatility)
    laws = [SDEPath(sde, start, grid(32)) for sde in (stratonovich, ito)]
    first, noise = start.sample((2000,)), torch.randn(2000, 32, 1, dtype=DOUBLE)
    paths = [law.solve(first, noise) for law in laws]
    close(*paths)
    close(laws[0].log_prob(paths[0]), laws[1].log_prob(paths[0]), 1e-10)
    exact = first * (volatility * noise.squeeze(-1).sum(-1, keepdim=True) / 32**0.5).exp()  # no drift in this calculus
    error = (paths[0][:, -1] - exact).abs().mean() / exact.abs().mean()
    assert error < 0.05


def test_stratonovich_control_keeps_its_base():
    prior = SDE(lambda t, z: -z, lambda t, z: 0.5 + 0.2 * z.sin(), sde_type="stratonovich")
    q, p = (SDEPath(sde, normal(2), grid()) for sde in (prior.controlled(lambda t, z: 0 * z + 0.7), prior))
    close(path_kl(q, p, q.sample()), torch.tensor(0.5 * 0.49 * 2, dtype=DOUBLE))


# ---------------------------------------------------------------- special initial laws and grids
def test_grid_of_one_point_is_the_initial_law():
    start = normal(3, 2)
    law = SDEPath(OrnsteinUhlenbeck(1.0, 0.5), start, TimeGrid(torch.tensor([0.7], dtype=DOUBLE)))
    path = law.rsample((4,))
    assert path.shape == (4, 3, 1, 2)
    close(law.log_prob(path), start.log_prob(path[..., 0, :]))
    assert path_kl(law, law, path).abs().max() == 0
    assert law.noise_of(path).shape == (4, 3, 0, 2)


def test_delta_initial_starts_every_path_at_its_point():
    point = torch.tensor([1.0, 2.0], dtype=DOUBLE, requires_grad=True)
    law = SDEPath(OrnsteinUhlenbeck(1.0, 0.5), dist.Delta(point, event_dim=1), grid())
    path = law.rsample((3,))
    assert (path[:, 0] == point).all()
    close(law.log_prob(path), loop_log_prob(law, path))
    (gradient,) = torch.autograd.grad(path[:, -1].sum(), point)
    close(gradient, torch.full((2,), 3 * (1 - 1 / 8) ** 8, dtype=DOUBLE))


def test_a_learned_initial_law_gets_its_gradient_through_the_path():
    log_scale = torch.zeros(2, dtype=DOUBLE, requires_grad=True)
    law = SDEPath(
        OrnsteinUhlenbeck(1.0, 0.5), dist.Normal(torch.zeros(2, dtype=DOUBLE), log_scale.exp()).to_event(1), grid()
    )
    path = law.rsample((100,))
    (gradient,) = torch.autograd.grad(path[:, -1].square().mean(0).sum(), log_scale)
    assert (gradient > 0).all()


# ---------------------------------------------------------------- inputs
def test_row_k_serves_the_step_from_k():
    rows = torch.zeros(8, 2, dtype=DOUBLE)
    rows[5] = 80.0
    law = SDEPath(
        SDE(lambda t, z, c: c, lambda t, z: 0 * z),
        dist.Delta(torch.zeros(2, dtype=DOUBLE), event_dim=1),
        grid(),
        inputs=rows,
    )
    path = law.sample()
    assert (path[:6] == 0).all()
    assert (path[6:] == 10).all()


def test_inputs_of_a_controlled_sde_reach_the_control_only():
    seen = []

    def drift(t, z):
        return -z

    def control(t, z, c):
        seen.append(c.shape)
        return c

    rows = torch.randn(3, 8, 2, dtype=DOUBLE)
    law = SDEPath(SDE(drift, half).controlled(control), normal(2), grid(), inputs=rows)
    assert law.batch_shape == (3,)
    path = law.sample()
    law.log_prob(path)
    assert seen[0] == (3, 2)
    assert seen[-1] == (8, 3, 2)
    p = SDEPath(SDE(drift, half), normal(2), grid())
    close(path_kl(law, p, path), 0.5 * rows.square().sum((-2, -1)) / 8)


def test_prior_with_inputs_and_guide_with_context():
    forcing, context = torch.randn(8, 2, dtype=DOUBLE), torch.randn(3, 8, 2, dtype=DOUBLE)
    prior = SDE(lambda t, z, c: c - z, half).with_inputs(forcing)
    q = SDEPath(prior.controlled(lambda t, z, c: c), normal(2), grid(), inputs=context)
    p = SDEPath(prior, normal(2), grid())
    path = q.sample((4,))
    close(q.log_prob(path), loop_log_prob(q, path))
    close(path_kl(q, p, path), (0.5 * context.square().sum((-2, -1)) / 8).expand(4, 3))


@pytest.mark.parametrize("shape", [(9, 2), (7, 2), (3, 9, 2), (2,)])
def test_inputs_with_a_wrong_number_of_rows_are_refused(shape):
    sde = SDE(lambda t, z, c: c - z, half)
    with pytest.raises(
        ValueError, match=r"`inputs` must have shape \(\*batch, K, C\) with one row per solver step, K = 8; rec"
    ):
        SDEPath(sde, normal(2), grid(), inputs=torch.zeros(shape, dtype=DOUBLE))


def test_bound_inputs_with_a_wrong_number_of_rows_are_refused():
    sde = SDE(lambda t, z, c: c - z, half).with_inputs(torch.zeros(9, 2, dtype=DOUBLE))
    with pytest.raises(ValueError, match="one row per solver step, K = 8"):
        SDEPath(sde, normal(2), grid())


# ---------------------------------------------------------------- bad input
def test_something_that_is_no_sde_is_refused_with_advice():
    with pytest.raises(
        TypeError, match=r"`sde` must be an SDE, received function. Wrap functions as SDE\(drift, diffu"
    ):
        SDEPath(half, normal(2), grid())


@pytest.mark.parametrize("wrong", ["initial", "inputs", "drift", "diffusion", "control"])
def test_mixed_dtypes_are_refused_with_the_argument(wrong):
    dtype = {name: torch.float32 for name in ("initial", "inputs", "drift", "diffusion", "control")}
    dtype[wrong] = DOUBLE
    sde = SDE(
        lambda t, z: torch.zeros_like(z, dtype=dtype["drift"]),
        lambda t, z: torch.ones_like(z, dtype=dtype["diffusion"]),
    ).controlled(lambda t, z, c: torch.zeros_like(z, dtype=dtype["control"]))
    rows = torch.zeros(8, 2, dtype=dtype["inputs"])
    match = rf"`{wrong}` .*torch.float64 on cpu, but the grid has torch.float32 .*TimeGrid\(times.to\(torch.float64\)\)"
    with pytest.raises(ValueError, match=match):
        SDEPath(sde, normal(2, dtype=dtype["initial"]), grid(dtype=torch.float32), inputs=rows)


def test_mixed_devices_are_refused_with_the_argument():
    sde = SDE(lambda t, z, c: c - z, half)
    with pytest.raises(
        ValueError, match=r"`inputs` has dtype torch.float64 on meta, but the grid has torch.float64 on cpu"
    ):
        SDEPath(sde, normal(2), grid(), inputs=torch.zeros(8, 2, dtype=DOUBLE, device="meta"))


def test_first_state_of_another_dtype_is_refused():
    law = SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(2), grid())
    with pytest.raises(ValueError, match="`initial` has dtype torch.float32"):
        law.solve(torch.zeros(2), torch.zeros(8, 2, dtype=DOUBLE))


@pytest.mark.parametrize("shape", [(3, 2, 1), (3, 3), (5, 2)], ids=str)
def test_drift_of_a_wrong_shape_is_refused(shape):
    sde = SDE(lambda t, z: torch.zeros(shape, dtype=DOUBLE), half)
    with pytest.raises(ValueError, match="`drift` returned shape|batch shapes must broadcast .*`drift`"):
        SDEPath(sde, normal(3, 2), grid())


@pytest.mark.parametrize(
    ("noise_type", "shape", "advice"),
    [
        ("diagonal", (3, 2, 1), 'squeeze the last axis or set noise_type="general"'),
        ("diagonal", (3,), "it must broadcast against the state"),
        ("general", (2,), r"return a matrix \(\*batch, D, M\), or set noise_type=\"diagonal\""),
        ("general", (3, 3), r"return a matrix \(\*batch, D, M\)"),
        ("additive", (3, 2), r"return a matrix \(\*batch, D, M\)"),
        ("scalar", (2, 2), "scalar noise has one Brownian motion"),
    ],
)
def test_diffusion_of_a_wrong_shape_is_refused_with_advice(noise_type, shape, advice):
    sde = SDE(lambda t, z: -z, lambda t, z: torch.ones(shape, dtype=DOUBLE), noise_type=noise_type)
    with pytest.raises(
        ValueError, match=rf"`{noise_type} diffusion` returned shape .* for states of shape \(3, 2\): {advice}"
    ):
        SDEPath(sde, normal(3, 2), grid())


@pytest.mark.parametrize(("columns", "width"), [(1, 2), (3, 2)])
def test_control_of_a_wrong_width_is_refused(columns, width):
    sde = SDE(lambda t, z: -z, lambda t, z: torch.ones(2, columns, dtype=DOUBLE), noise_type="general")
    control = sde.controlled(lambda t, z: torch.zeros(width, dtype=DOUBLE))
    with pytest.raises(
        ValueError, match=rf"`control` must return shape \(\.\.\., {columns}\), one entry per Brownian motion"
    ):
        SDEPath(control, normal(3, 2), grid())


def test_batches_that_do_not_broadcast_are_refused():
    sde = SDE(lambda t, z: torch.zeros(5, 2, dtype=DOUBLE), half)
    with pytest.raises(ValueError, match=r"`state` \(3,\), `drift` \(5,\), `diffusion` \(3,\)\. .* \(B, 1\)"):
        SDEPath(sde, normal(3, 2), grid())
    with pytest.raises(ValueError, match=r"batch shapes must broadcast .*`initial` \(3,\), `grid` \(4,\)"):
        SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(3, 2), TimeGrid(torch.rand(4, 3, dtype=DOUBLE).cumsum(-1)))


def test_exploding_path_names_first_time_dimension_and_series():
    start = dist.Delta(torch.tensor([[0.0, 0.0], [0.0, 40.0]], dtype=DOUBLE), event_dim=1)
    times = torch.tensor([[0.0, 4.0], [10.0, 18.0]], dtype=DOUBLE)
    law = SDEPath(DoubleWell(scale=1e-3), start, TimeGrid(times, max_step=1.0)).named("z")
    with pytest.raises(
        ValueError,
        match=r"SDEPath at site 'z': the path became non-finite at time 1\d \(step \d of 8\), "
        r"dimension 1, in 1 of 2 paths. .* use a smaller max_step, bounded",
    ):
        law.sample()


def test_exploding_path_without_a_site_name():
    law = SDEPath(DoubleWell(), normal(2, loc=1e9), grid(8))
    with pytest.raises(ValueError, match=r"^SDEPath: the path became non-finite at time"):
        law.rsample()


def test_times_instead_of_a_grid_are_refused_with_advice():
    initial = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    with pytest.raises(TypeError, match=r"`grid` must be a TimeGrid, received Tensor.*TimeGrid\(times"):
        SDEPath(OrnsteinUhlenbeck(1.0, 0.5), initial, torch.tensor([0.0, 1.0]))


def test_an_execution_of_another_type_is_refused_with_advice():
    with pytest.raises(TypeError, match="`execution` must be an Execution, received dict"):
        SDEPath(
            OrnsteinUhlenbeck(1.0, 0.5),
            dist.Normal(torch.zeros(1), 1.0).to_event(1),
            TimeGrid(torch.linspace(0.0, 1.0, 3)),
            execution={"memory": "low"},
        )


class Operations(TorchDispatchMode):
    """Counts the tensor operations that run inside."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations_beside_sampling(steps):
    """Operations of trace, validation, densities and score parts of a path site, without its simulation."""
    prior, initial = NeuralSDE(2, (4,)), dist.Normal(torch.zeros(3, 2), 1.0).to_event(1)
    law = SDEPath(prior, initial, TimeGrid(torch.linspace(0.0, 1.0, steps + 1)), validate_args=True)
    value = law.sample().requires_grad_()
    with Operations() as operations:
        trace = poutine.trace(lambda: pyro.sample("z", law, obs=value)).get_trace()
        trace.compute_score_parts()
        trace.compute_log_prob()
    return operations.count


def test_a_path_site_costs_the_same_number_of_operations_for_any_length():
    assert operations_beside_sampling(20) == operations_beside_sampling(200)
