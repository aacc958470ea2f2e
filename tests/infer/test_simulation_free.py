"""SimulationFreeELBO: unbiased with all its weights, windows of long series, and likelihoods that it must refuse."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam

from pyro_sde import SDEPath, TimeGrid
from pyro_sde.guides import PosteriorSDE
from pyro_sde.guides.marginal_flow import (
    ImportanceTimes,
    LowDiscrepancyTimes,
    MarginalFlow,
    MarginalPath,
    StratifiedTimes,
    UniformTimes,
)
from pyro_sde.infer.emissions import PathEmission
from pyro_sde.infer.simulation_free import SimulationFreeELBO, TimeWindows, sample_observations
from pyro_sde.models import LatentSDE
from pyro_sde.nn import GRUEncoder
from pyro_sde.nn.marginal_encoders import FreeMarginals, GRUMarginals, LocalMarginals
from pyro_sde.sde import NeuralSDE, OrnsteinUhlenbeck
from pyro_sde.testing.statistics import assert_mean
from tests.guides import marginal_problem as problem

D64 = torch.float64
GRID = problem.grid()
SAMPLERS = {
    "uniform": lambda: UniformTimes(4),
    "stratified": lambda: StratifiedTimes(4),
    "low-discrepancy": lambda: LowDiscrepancyTimes(4),
    "importance": lambda: ImportanceTimes(4, num_bins=8),
}


def imperfect():
    """A guide with parameters, near the exact one."""
    torch.manual_seed(0)
    encoder = FreeMarginals(torch.linspace(0.0, 1.7, 5, dtype=D64), 1, initial_scale=0.4)
    for part in encoder.parameters():
        part.data += 0.1 * torch.randn_like(part)
    return encoder


def guide_of(encoder):
    def guide(on=GRID, *args):
        pyro.sample("z", MarginalPath(encoder(on, on.times), on))

    return guide


def normal(mean):
    return dist.Normal(mean, math.sqrt(problem.NOISE))


# --- unbiased ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_loss_and_gradient_have_the_quadrature_bound_as_their_mean(name):
    encoder = imperfect()
    guide, loss = guide_of(encoder), SimulationFreeELBO(SAMPLERS[name]())
    cuts = torch.cat([encoder.knots, problem.TIMES[:-1]]).sort().values.unique()
    exact = -problem.quadrature_bound(MarginalPath(encoder(GRID, GRID.times), GRID), cuts)
    parameters = list(encoder.parameters())
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(exact, parameters)])
    torch.manual_seed(1)
    samples = []
    for _ in range(300):
        value = loss.differentiable_loss(problem.model, guide, GRID)
        found = torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])
        samples.append(torch.cat([value.detach().reshape(1), found]))
    samples = torch.stack(samples)
    assert_mean(samples[:, 0], exact.detach(), detects=2.5)
    assert_mean(samples[:, 1:] / gradient.abs().max(), gradient / gradient.abs().max(), detects=1.0)


def test_series_plates_and_subsampling_scale_every_term():
    torch.manual_seed(2)
    count, grid = 6, TimeGrid(torch.tensor([0.0, 0.5, 1.0], dtype=D64))
    y = torch.randn(count, 3, 1, dtype=D64)
    encoder = GRUMarginals(1, 1, hidden=4, head=(4,)).double()
    initial = dist.Normal(torch.zeros(1, dtype=D64), 1.0).to_event(1)

    def losses(size, n):
        def model():
            scale = pyro.sample("scale", dist.LogNormal(torch.zeros((), dtype=D64), 0.1))
            with pyro.plate("series", count, subsample_size=size) as index:
                z = pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, scale), initial, grid))
                pyro.sample("y", normal(grid.observed(z)).to_event(2), obs=y[index])

        def guide():
            pyro.sample("scale", dist.LogNormal(torch.zeros((), dtype=D64), 0.05))
            with pyro.plate("series", count, subsample_size=size) as index:
                pyro.sample("z", MarginalPath(encoder(grid, y[index]), grid))

        loss = SimulationFreeELBO(StratifiedTimes(8))
        with torch.no_grad():
            return torch.tensor([loss.loss(model, guide) for _ in range(n)])

    whole = losses(None, 150)
    assert_mean(losses(2, 150), whole.mean(), detects=0.3 * float(whole.mean()))


def test_the_sampler_of_the_loss_is_used():
    sampler = ImportanceTimes(4, num_bins=8)
    before = sampler.density
    SimulationFreeELBO(sampler).loss(problem.model, guide_of(imperfect()), GRID)
    assert not torch.equal(sampler.density, before)


def test_vectorised_particles_are_draws_of_their_own():
    loss = SimulationFreeELBO(StratifiedTimes(4), num_particles=500, vectorize_particles=True, max_plate_nesting=0)
    torch.manual_seed(3)
    value = loss.loss(problem.model, guide_of(lambda *_: problem.ExactMarginals()), GRID)
    assert value == pytest.approx(-problem.EVIDENCE, abs=0.6)  # standard error 0.12


def test_a_linear_guide_reaches_the_evidence_within_a_tenth_of_a_nat():
    torch.manual_seed(4)
    knots = torch.cat([torch.zeros(1, dtype=D64), problem.TIMES, torch.tensor([0.25, 0.75, 1.1, 1.45], dtype=D64)])
    encoder = FreeMarginals(knots.sort().values, 1, initial_scale=0.5)
    flow = MarginalFlow(encoder)

    def guide(on):
        with pyro.plate("draws", 32):
            pyro.sample("z", flow(None, on, on.times))

    def model(on):
        with pyro.plate("draws", 32):
            problem.model(on)

    optimiser = pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.99})
    pyro.clear_param_store()
    svi = SVI(model, guide, optimiser, SimulationFreeELBO(StratifiedTimes(8)))
    for _ in range(350):
        svi.step(GRID)
        optimiser.step()
    cuts = encoder.knots
    bound = problem.quadrature_bound(MarginalPath(encoder(GRID, GRID.times), GRID), cuts)
    assert problem.EVIDENCE - 0.1 < float(bound.detach()) <= problem.EVIDENCE + 1e-6


def test_the_model_of_a_latent_sde_trains_unchanged():
    torch.manual_seed(5)
    latent = LatentSDE(2, 3)
    flow = MarginalFlow(GRUMarginals(3, 2, hidden=8, head=(8,)))
    grid, values = TimeGrid(torch.linspace(0.0, 2.0, 9)), torch.randn(4, 9, 3)
    mask = torch.rand(4, 9, 3) < 0.8

    def guide(grid, values, mask):
        with pyro.plate("series", len(values), dim=-1):
            pyro.sample("z", flow(latent.prior, grid, values, mask))

    pyro.clear_param_store()
    svi = SVI(latent.model, guide, Adam({"lr": 1e-2}), SimulationFreeELBO())
    losses = [svi.step(grid, values, mask) for _ in range(60)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    moved = [p for p in (*latent.prior.parameters(), *flow.parameters()) if p.grad is not None]
    assert moved


# --- windows of a long series -----------------------------------------------------------


def series(count=23):
    torch.manual_seed(6)
    y = torch.randn(count, 2, dtype=D64)
    y[5], y[7, 0] = math.nan, math.nan
    return torch.rand(count, dtype=D64).cumsum(0), y


def test_a_window_is_encoded_as_within_the_whole_series():
    times, y = series()
    encoder = LocalMarginals(2, 2, hidden=6, layers=2, head=(8,)).double()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.4)
    batch = TimeWindows(times, y, size=4, margin=encoder.reach).draw(100)
    whole = encoder(TimeGrid(times), y, ~y.isnan())
    local = encoder(batch.context_grid, batch.context_values, batch.context_mask)
    ends = batch.grid.times[:, 0], batch.grid.times[:, -1]
    t = (ends[0] + (ends[1] - ends[0]) * torch.rand(9, len(batch.starts), dtype=D64)).unsqueeze(-1)
    for ours, theirs in zip(local.moments(t), whole.moments(t), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_windows_partition_gaps_and_observations():
    times, y = series()
    windows = TimeWindows(times, y, size=4, margin=2)
    batch = windows.draw(100)
    assert len(windows) == len(batch.starts) == 6
    assert batch.weights.tolist() == [1.0] * 6
    assert batch.starts.tolist() == [True] + [False] * 5
    kept = times[~y.isnan().all(-1)]
    assert float(batch.grid.steps.sum()) == pytest.approx(float(kept[-1] - kept[0]))
    assert int(batch.mask.sum()) == int((~y.isnan()).sum())
    assert torch.allclose(batch.values[batch.mask].sort().values, y[~y.isnan()].sort().values)


def test_weights_of_random_windows_count_every_window_once_on_average():
    times, y = series()
    windows = TimeWindows(times, y, size=4, margin=0)
    torch.manual_seed(7)
    counts = torch.zeros(800, 6, dtype=D64)
    starts = windows.times[::4][:6].contiguous()
    for row in counts:
        batch = windows.draw(3)
        row.index_add_(0, torch.searchsorted(starts, batch.grid.times[:, 0].contiguous()), batch.weights)
    assert torch.equal(counts[:, 0], torch.ones(800, dtype=D64))
    assert_mean(counts[:, 1:], 1.0, detects=0.4)


def test_losses_of_random_windows_have_the_loss_of_the_series_as_their_mean():
    times, y = series()
    encoder = LocalMarginals(2, 1, hidden=4, layers=1, head=(4,)).double()
    windows = TimeWindows(times, y, size=4, margin=encoder.reach)
    initial = dist.Normal(torch.zeros(1, dtype=D64), 1.0).to_event(1)
    prior = OrnsteinUhlenbeck(0.5, 0.8)

    def model(w):
        with pyro.plate("windows", len(w.starts)), poutine.scale(scale=w.weights):
            z = pyro.sample("z", SDEPath(prior, initial, w.grid))
            pyro.sample("y", dist.Normal(w.grid.observed(z), 0.5).mask(w.mask).to_event(2), obs=w.values)

    def guide(w):
        marginals = encoder(w.context_grid, w.context_values, w.context_mask)
        with pyro.plate("windows", len(w.starts)), poutine.scale(scale=w.weights):
            pyro.sample("z", MarginalPath(marginals, w.grid, starts=w.starts))

    grid, seen = TimeGrid(windows.times), ~windows.values.isnan()
    values = windows.values.nan_to_num()

    def whole():
        z = pyro.sample("z", SDEPath(prior, initial, grid))
        pyro.sample("y", dist.Normal(grid.observed(z), 0.5).mask(seen).to_event(2), obs=values)

    def whole_guide():
        pyro.sample("z", MarginalPath(encoder(grid, values, seen), grid))

    torch.manual_seed(8)
    with torch.no_grad():
        loss = SimulationFreeELBO(StratifiedTimes(8))
        drawn = torch.tensor([loss.loss(model, guide, windows.draw(3)) for _ in range(250)])
        loss = SimulationFreeELBO(StratifiedTimes(40))
        expected = torch.tensor([loss.loss(whole, whole_guide) for _ in range(100)]).mean()
    assert_mean(drawn, expected, detects=0.2 * float(expected))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"values": torch.zeros(3)}, r"`times` \(N,\) and `values` \(N, O\) must fit together"),
        ({"size": 0}, "`size` must be an integer >= 1, received 0"),
        ({"margin": -1}, "`margin` must be an integer >= 0, received -1"),
        ({"times": torch.tensor([0.0, 2.0, 1.0])}, "two or more increasing times"),
        ({"values": torch.full((3, 1), math.nan)}, "0 of 3 are observed"),
    ],
)
def test_windows_name_bad_arguments(change, match):
    arguments = {"times": torch.arange(3.0), "values": torch.zeros(3, 1), "size": 1, "margin": 0, **change}
    with pytest.raises(ValueError, match=match):
        TimeWindows(**arguments)


def test_one_random_window_is_too_few():
    with pytest.raises(ValueError, match="`count` must be at least 2"):
        TimeWindows(torch.arange(9.0), torch.zeros(9, 1), size=2, margin=0).draw(1)


# --- some of the observations -------------------------------------------------------------


def test_every_observation_is_sampled_with_its_weight():
    times = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 1.5, 2.5, 2.5, 2.5]], dtype=D64)
    grid, values = TimeGrid(times), torch.arange(10, dtype=D64).reshape(2, 5, 1)
    torch.manual_seed(10)
    totals = torch.zeros(600, 2, 5, dtype=D64)
    for row in totals:
        some = sample_observations(grid, values, 3)
        assert some.values.shape == (2, 3, 1)
        assert torch.equal(some.grid.times[:, [0, -1]], grid.times[:, [0, -1]])
        index = (some.values.squeeze(-1) % 5).long()
        row.scatter_add_(-1, index, torch.where(some.mask, some.weight.unsqueeze(-1), 0.0))
    assert_mean(totals[:, 0], 1.0, detects=0.4)
    assert torch.equal(totals[:, 1], torch.tensor([1.0, 1, 1, 0, 0]).expand(600, 5))


def test_masks_are_sampled_with_the_values():
    grid, values = TimeGrid(torch.arange(6.0)), torch.arange(12.0).reshape(6, 2)
    mask = values % 3 != 0
    some = sample_observations(grid, values, 4, mask)
    assert torch.equal(some.mask, some.values % 3 != 0)
    assert torch.equal(sample_observations(grid, values, 99, mask.any(-1)).mask, mask.any(-1))


def test_no_observation_is_too_few():
    with pytest.raises(ValueError, match="`count` must be an integer >= 1, received 0"):
        sample_observations(TimeGrid([0.0, 1.0]), torch.zeros(2, 1), 0)


# --- what is a sum over times, and what is not ------------------------------------------

PRODUCTS = {
    "decoded before it is observed": lambda z: normal(GRID.observed(z.sin() + z.square())),
    "emission": lambda z: PathEmission(lambda s: normal(s), GRID.observed(z)),
    "one time twice": lambda z: normal(GRID.observed(z * z.exp())),
    "no derivatives": lambda z: dist.Poisson(GRID.observed(z).abs().floor() + 1.0),
}
COUPLINGS = {
    "velocity": lambda z: normal(torch.cat([z[:1], z.diff(dim=-2) ** 2], 0)[1:]),
    "sum over time": lambda z: normal(z.cumsum(0)[1:].tanh()),
    "first and last": lambda z: normal(GRID.observed(z) + 0.5 * z[:1] * z[-1:]),
    "no derivatives": lambda z: dist.Poisson((z[1:] + z[:1]).abs().floor() + 1.0),
    "shared scale": lambda z: dist.Normal(GRID.observed(z), z.std()),
}


def observed_model(law_of):
    def model():
        z = pyro.sample("z", problem.prior_law())
        law = law_of(z)
        values = problem.VALUES.unsqueeze(-1)
        obs = values.abs().ceil() if isinstance(law, dist.Poisson) else values
        pyro.sample("y", law if isinstance(law, PathEmission) else law.to_event(2), obs=obs)

    return model


@pytest.mark.parametrize("name", sorted(PRODUCTS))
def test_a_product_over_times_passes(name):
    torch.manual_seed(9)
    value = SimulationFreeELBO().loss(observed_model(PRODUCTS[name]), guide_of(imperfect()))
    assert math.isfinite(value)


@pytest.mark.parametrize("name", sorted(COUPLINGS))
def test_a_likelihood_that_couples_times_is_named(name):
    torch.manual_seed(9)
    with pytest.raises(ValueError, match=r"site 'y' couples states of the path 'z' at different times.*PosteriorSDE"):
        SimulationFreeELBO().loss(observed_model(COUPLINGS[name]), guide_of(imperfect()))


def test_a_latent_site_that_couples_times_is_named():
    def model():
        z = pyro.sample("z", problem.prior_law())
        pyro.sample("total", dist.Normal(z.mean().sin(), 1.0))

    def guide():
        pyro.sample("total", dist.Normal(torch.zeros((), dtype=D64), 1.0))
        pyro.sample("z", MarginalPath(problem.ExactMarginals(), GRID))

    with pytest.raises(ValueError, match="site 'total' couples states"):
        SimulationFreeELBO().loss(model, guide)


@pytest.mark.parametrize("couples", [False, True])
def test_another_path_may_depend_on_this_one_at_equal_times_only(couples):
    def model():
        z = pyro.sample("z", problem.prior_law())
        rows = z.cumsum(-2)[1:] if couples else z[:-1]
        prior = OrnsteinUhlenbeck(0.8, 0.9).with_drift(lambda t, x, row: row.sin() - x).with_inputs(rows)
        pyro.sample("x", SDEPath(prior, problem.prior_law().initial, GRID))

    def guide():
        for name in ("z", "x"):
            pyro.sample(name, MarginalPath(problem.ExactMarginals(), GRID))

    loss = SimulationFreeELBO()
    if not couples:
        assert math.isfinite(loss.loss(model, guide))
    else:
        with pytest.raises(ValueError, match="site 'x' couples states of the path 'z'"):
            loss.loss(model, guide)


def test_randomness_of_the_model_is_no_coupling():
    def noisy(z):
        return normal(GRID.observed(z) + torch.randn(4, 1, dtype=D64))

    assert math.isfinite(SimulationFreeELBO().loss(observed_model(noisy), guide_of(imperfect())))


def test_a_guide_site_that_depends_on_the_path_is_named():
    def guide():
        z = pyro.sample("z", MarginalPath(problem.ExactMarginals(), GRID))
        pyro.sample("total", dist.Normal(z.mean(), 1.0))

    def model():
        pyro.sample("z", problem.prior_law())
        pyro.sample("total", dist.Normal(torch.zeros((), dtype=D64), 1.0))

    with pytest.raises(ValueError, match="site 'total' of the guide depends on the path 'z'"):
        SimulationFreeELBO().loss(model, guide)


def test_a_guide_without_marginals_is_named():
    posterior = PosteriorSDE(GRUEncoder(1, 1, 4, hidden=4).double())

    def guide():
        pyro.sample("z", posterior(OrnsteinUhlenbeck(0.8, 0.9), GRID, problem.VALUES.unsqueeze(-1)))

    with pytest.raises(ValueError, match="needs a site of the guide with a MarginalPath, this guide has none"):
        SimulationFreeELBO().loss(lambda: problem.model(GRID), guide)


def test_other_losses_refuse_it_by_name():
    with pytest.raises(ValueError, match="marginals have no path density. Use SimulationFreeELBO"):
        Trace_ELBO().loss(problem.model, guide_of(imperfect()), GRID)


def test_times_of_a_wrong_type_are_named():
    with pytest.raises(TypeError, match="`times` must be a TimeSampler such as .*, received int"):
        SimulationFreeELBO(16)


def test_it_runs_in_float32():
    torch.set_default_dtype(torch.float32)  # the fixture of this folder sets it back
    grid, y = TimeGrid(torch.tensor([0.0, 0.5, 1.0])), torch.randn(3, 1)
    prior, flow = NeuralSDE(2), MarginalFlow(GRUMarginals(1, 2, hidden=4))
    pyro.clear_param_store()

    def model():
        pyro.module("prior", prior)
        z = pyro.sample("z", SDEPath(prior, dist.Normal(torch.zeros(2), 1.0).to_event(1), grid))
        pyro.sample("y", dist.Normal(grid.observed(z)[..., :1], 1.0).to_event(2), obs=y)

    def guide():
        pyro.sample("z", flow(prior, grid, y))

    value = SimulationFreeELBO().differentiable_loss(model, guide)
    assert value.dtype == torch.float32
