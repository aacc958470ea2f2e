import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule, PyroSample
from pyro.optim import Adam, ClippedAdam

from pyro_sde import PathELBO, SDEPath, TimeGrid
from pyro_sde.distributions.base import PathDistribution
from pyro_sde.infer.auto import AutoSDE
from pyro_sde.nn import Encoding, GRUEncoder
from pyro_sde.sde import SDE, GeometricBrownianMotion, NeuralSDE, OrnsteinUhlenbeck, UnderdampedLangevin

F64 = torch.float64
TIMES = torch.tensor([0.0, 0.5, 1.0, 1.2, 1.7], dtype=F64)
VALUES = torch.tensor([0.6, -0.4, -0.1, 0.9], dtype=F64)
RATE, SCALE, NOISE = 0.8, 0.9, 0.1  # noise is a variance
STATIONARY = SCALE / math.sqrt(2 * RATE)


@pytest.fixture(autouse=True)
def _clean():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def normal(dim=1, scale=1.0, dtype=F64):
    return dist.Normal(torch.zeros(dim, dtype=dtype), torch.full((dim,), scale, dtype=dtype)).to_event(1)


def train(model, guide, steps, lr, *args, loss=None):
    loss = loss or PathELBO()
    svi = SVI(model, guide, ClippedAdam({"lr": lr, "lrd": 0.02 ** (1 / steps)}), loss)
    return [svi.step(*args) for _ in range(steps)]


# --- the best affine control ------------------------------------------------------------------------------------------


def ou_model(grid):
    z = pyro.sample("z", SDEPath(OrnsteinUhlenbeck(RATE, SCALE), normal(scale=STATIONARY), grid))
    pyro.sample("y", dist.Normal(grid.observed(z)[..., 1:, 0], math.sqrt(NOISE)).to_event(1), obs=VALUES)


def riccati(grid, rate=RATE, scale=SCALE, spread=STATIONARY):
    """Log evidence of the Euler–Maruyama chain, and its distance to the best affine control on the same grid."""
    steps, observed = grid.steps.tolist(), grid.observed_index[1:].tolist()
    information, gap = 0.0, 0.0
    for k in reversed(range(grid.num_steps)):
        information += (k + 1 in observed) / NOISE  # of z_{k+1}, from what is observed there and later
        x = scale**2 * steps[k] * information
        gap += 0.5 * (x - math.log1p(x))
        information *= (1 - rate * steps[k]) ** 2 / (1 + x)
    mean, variance, evidence = 0.0, spread**2, 0.0
    for k in range(grid.num_steps):  # Kalman filter
        mean, variance = (1 - rate * steps[k]) * mean, (1 - rate * steps[k]) ** 2 * variance + scale**2 * steps[k]
        if k + 1 in observed:
            value, total = VALUES[observed.index(k + 1)].item(), variance + NOISE
            evidence -= 0.5 * ((value - mean) ** 2 / total + math.log(2 * math.pi * total))
            mean, variance = mean + variance / total * (value - mean), variance * NOISE / total
    return evidence, gap


def exact_elbo(guide, grid):
    """Bound of an affine control without network, by the moments of its Gaussian chain."""
    posterior = poutine.trace(guide).get_trace(grid).nodes["z"]["fn"]
    steps, observed = grid.steps.tolist(), grid.observed_index[1:].tolist()
    ends = torch.tensor([[0.0], [1.0]], dtype=F64)
    mean, variance = posterior.initial.mean.item(), posterior.initial.stddev.item() ** 2
    bound = -torch.distributions.kl_divergence(posterior.initial, normal(scale=STATIONARY)).item()
    for k in range(grid.num_steps):
        offset, total = posterior.sde.control(TIMES[:1], ends, posterior.inputs[k])[:, 0].tolist()
        slope = total - offset
        bound -= 0.5 * steps[k] * ((offset + slope * mean) ** 2 + slope**2 * variance)
        factor = 1 - RATE * steps[k] + SCALE * slope * steps[k]
        mean = factor * mean + SCALE * offset * steps[k]
        variance = factor**2 * variance + SCALE**2 * steps[k]
        if k + 1 in observed:
            value = VALUES[observed.index(k + 1)].item()
            bound -= 0.5 * (((value - mean) ** 2 + variance) / NOISE + math.log(2 * math.pi * NOISE))
    return bound


def test_training_reaches_the_best_affine_control():
    grid = TimeGrid(TIMES, max_step=0.025)
    evidence, gap = riccati(grid)
    assert evidence == pytest.approx(-4.076609798, abs=1e-9)
    guide = AutoSDE(ou_model, hidden=())
    loss = PathELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=0)
    train(ou_model, guide, 300, 0.05, grid, loss=loss)
    assert evidence - gap - 0.02 < exact_elbo(guide, grid) <= evidence - gap


def test_the_guide_starts_at_the_prior():
    grid = TimeGrid(TIMES, max_step=0.1)
    guide = AutoSDE(ou_model)
    guide(grid)
    for kl in ("closed", "full", "stl"):
        loss = PathELBO(kl=kl).differentiable_loss(ou_model, guide, grid)
        model_trace, guide_trace = PathELBO(kl=kl)._get_trace(ou_model, guide, (grid,), {})
        divergence = guide_trace.nodes["z"]["log_prob_sum"] - model_trace.nodes["z"]["log_prob_sum"]
        assert divergence.item() == pytest.approx(0.0, abs=1e-10)
        assert torch.isfinite(loss)


def test_training_leaves_the_prior_alone():
    initial = normal(scale=2.0)

    def model():
        z = pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, 1.0), initial, TimeGrid(TIMES)))
        pyro.sample("y", dist.Normal(z[-1, 0], 0.1), obs=VALUES[0])

    train(model, AutoSDE(model), 3, 0.1)
    assert initial.mean.item() == 0
    assert initial.stddev.item() == 2


def test_every_estimator_and_vectorised_particles_agree():
    grid = TimeGrid(TIMES, max_step=0.1)
    guide = AutoSDE(ou_model)
    train(ou_model, guide, 30, 0.05, grid)
    losses = {}
    for kl in ("closed", "full", "stl"):
        losses[kl] = PathELBO(kl=kl, num_particles=4000, vectorize_particles=True)
    losses["trace"] = Trace_ELBO(num_particles=4000, vectorize_particles=True)
    losses["mean field"] = TraceMeanField_ELBO(num_particles=4000, vectorize_particles=True)
    with torch.no_grad():
        values = {name: loss.loss(ou_model, guide, grid) for name, loss in losses.items()}
        values["sequential"] = PathELBO(kl="full", num_particles=400).loss(ou_model, guide, grid)
    centre = values["full"]
    for name, value in values.items():
        assert value == pytest.approx(centre, abs=0.5 if name == "sequential" else 0.15), values


# --- hierarchical models ----------------------------------------------------------------------------------------------


def hierarchical(grid):
    theta = pyro.sample("theta", dist.LogNormal(torch.tensor(0.0, dtype=F64), 0.5))
    sigma = pyro.sample("sigma", dist.LogNormal(torch.tensor(0.0, dtype=F64), 0.5))
    sde = OrnsteinUhlenbeck(theta.unsqueeze(-1), sigma.unsqueeze(-1))
    z = pyro.sample("z", SDEPath(sde, normal(), grid))
    pyro.sample("y", dist.Normal(grid.observed(z)[..., 1:, 0], math.sqrt(NOISE)).to_event(1), obs=VALUES)


def test_global_latents_are_learned_with_the_path():
    """Against quadrature over (log theta, log sigma) and the exact evidence of the chain given them."""
    grid = TimeGrid(TIMES, max_step=0.05)
    steps, rows = grid.steps, grid.observed_index[1:]
    knots = torch.linspace(-2.0, 2.0, 33, dtype=F64)
    log_joint = torch.zeros(33, 33, dtype=F64)
    for i, theta in enumerate(knots.exp().tolist()):
        lower = torch.eye(grid.num_steps + 1, dtype=F64) - torch.diag(1 - theta * steps, -1)
        for j, sigma in enumerate(knots.exp().tolist()):
            scales = torch.cat([torch.ones(1, dtype=F64), sigma * steps.sqrt()])
            spread = torch.linalg.solve_triangular(lower, torch.diag(scales), upper=False)[rows]
            covariance = spread @ spread.mT + NOISE * torch.eye(4, dtype=F64)
            law = torch.distributions.MultivariateNormal(torch.zeros(4, dtype=F64), covariance)
            log_joint[i, j] = law.log_prob(VALUES)
    prior = dist.Normal(0.0, 0.5).log_prob(knots)
    log_joint = log_joint + prior[:, None] + prior[None, :]
    evidence = log_joint.logsumexp((0, 1)).item() + 2 * math.log(4 / 32)
    weights = (log_joint - log_joint.logsumexp((0, 1))).exp()

    guide = AutoSDE(hierarchical, hidden=(8,))
    loss = PathELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=0)
    train(hierarchical, guide, 300, 0.03, grid, loss=loss)
    with torch.no_grad():
        many = PathELBO(num_particles=4000, vectorize_particles=True, max_plate_nesting=0)
        bound = -many.loss(hierarchical, guide, grid)
    _, gap = riccati(grid, 1.0, 1.0, 1.0)  # of the path given typical parameters
    assert evidence - gap - 0.25 < bound < evidence
    for name, exact in (("theta", weights.sum(1) @ knots), ("sigma", weights.sum(0) @ knots)):
        learned = pyro.get_param_store()[f"AutoSDE.{name}.loc"].item()
        assert learned == pytest.approx(exact.item(), abs=0.15), name
    assert sorted(pyro.get_param_store().keys()) == sorted(
        [f"AutoSDE.{site}.{key}" for site in ("theta", "sigma", "z") for key in ("loc", "scale")]
        + ["AutoSDE.z.rows"]
        + [f"AutoSDE.z.control$$${key}" for key, _ in guide.sites.site("z").control.named_parameters()]
    )


def test_gradients_reach_the_diffusion_of_an_upstream_site():
    grid = TimeGrid(TIMES, max_step=0.25)
    guide = AutoSDE(hierarchical)
    guide(grid)
    with torch.no_grad():
        guide.sites.site("z").rows_unconstrained.normal_()
    loc = guide.sites.site("sigma").loc_unconstrained

    def by_hand():
        guide(grid)
        model_trace, guide_trace = guide.get_traces()
        return guide_trace.log_prob_sum() - model_trace.log_prob_sum()

    gradients = []
    for loss in (by_hand, lambda: PathELBO(kl="full").differentiable_loss(hierarchical, guide, grid)):
        pyro.set_rng_seed(3)
        gradients += torch.autograd.grad(loss(), loc)
    assert gradients[0].item() == pytest.approx(gradients[1].item(), rel=1e-8)


def test_path_and_other_sites_in_one_plate_with_names_of_module_methods():
    grid = TimeGrid(TIMES, max_step=0.5)

    def model():
        rate = pyro.sample("type", dist.Gamma(torch.tensor(2.0, dtype=F64), 2.0))
        with pyro.plate("series", 3):
            shift = pyro.sample("half", dist.Beta(torch.ones(2, dtype=F64), 2.0).to_event(1))
            sde = OrnsteinUhlenbeck(rate.unsqueeze(-1), 0.5, shift)
            z = pyro.sample("train", SDEPath(sde, normal(2), grid))
            pyro.sample("y", dist.Normal(grid.observed(z), 0.5).to_event(2), obs=torch.ones(3, 5, 2, dtype=F64))

    guide = AutoSDE(model)
    losses = train(model, guide, 60, 0.05, loss=PathELBO(num_particles=4, vectorize_particles=True))
    assert sum(losses[-10:]) < sum(losses[:10])
    store = pyro.get_param_store()
    assert store["AutoSDE.type.loc"].shape == ()
    assert store["AutoSDE.half.loc"].shape == (3, 2)
    assert store["AutoSDE.train.rows"].shape == (3, grid.num_steps, 6)
    values = guide()
    assert values["train"].shape == (3, grid.num_steps + 1, 2)
    assert (values["half"] > 0).all()
    assert (values["half"] < 1).all()


def test_first_call_inside_vectorised_particles_shares_parameters():
    grid = TimeGrid(TIMES, max_step=0.5)
    guide = AutoSDE(hierarchical)
    loss = PathELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=0)
    train(hierarchical, guide, 2, 0.01, grid, loss=loss)
    shapes = {name: tuple(value.shape) for name, value in pyro.get_param_store().items() if "$$$" not in name}
    assert shapes["AutoSDE.theta.loc"] == ()
    assert shapes["AutoSDE.z.loc"] == (1,)
    assert shapes["AutoSDE.z.rows"] == (grid.num_steps, 2)


# --- plates -----------------------------------------------------------------------------------------------------------


def plate_model(grid, values, size, subsample_size=None):
    with pyro.plate("series", size, subsample_size=subsample_size) as index:
        local = grid[index] if grid.batch_shape else grid
        z = pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(), local))
        law = dist.Normal(local.observed(z), 0.3).mask(local.mask.unsqueeze(-1)).to_event(2)
        pyro.sample("y", law, obs=values[index])


@pytest.mark.parametrize("shared", [True, False])
def test_subsampled_plates_train_the_rows_of_the_minibatch_only(shared):
    times = torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.3, 0.9], [0.0, 0.2, 0.2], [0.1, 0.7, 0.8]], dtype=F64)
    grid = TimeGrid(times[0] if shared else times, max_step=0.1)
    values = torch.randn(4, 3, 1, dtype=F64)
    guide = AutoSDE(plate_model, hidden=())
    svi = SVI(plate_model, guide, Adam({"lr": 0.1}), PathELBO())
    pyro.set_rng_seed(1)
    svi.step(grid, values, 4, 2)
    pyro.set_rng_seed(1)
    with poutine.trace() as trace, pyro.plate("series", 4, subsample_size=2):
        pass
    chosen = set(trace.trace.nodes["series"]["value"].tolist())
    rows = pyro.get_param_store()["AutoSDE.z.rows"]
    assert rows.shape == (4, grid.num_steps, 2)
    assert {i for i in range(4) if rows[i].any()} == chosen
    if not shared:  # padded steps move nothing and learn nothing
        assert not rows[:, grid.num_steps - 1][~(grid.steps[:, -1] > 0)].any()


def test_subsampling_is_unbiased():
    times = torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.3, 0.9], [0.0, 0.2, 0.6], [0.1, 0.7, 0.8]], dtype=F64)
    grid, values = TimeGrid(times, max_step=0.25), torch.randn(4, 3, 1, dtype=F64)
    guide = AutoSDE(plate_model, hidden=())
    train(plate_model, guide, 20, 0.05, grid, values, 4)
    with torch.no_grad():
        full = PathELBO(num_particles=4000, vectorize_particles=True).loss(plate_model, guide, grid, values, 4)
        parts = [PathELBO().loss(plate_model, guide, grid, values, 4, 2) for _ in range(600)]
    parts = torch.tensor(parts)
    assert abs(parts.mean() - full) < 4 * parts.std() / math.sqrt(600) + 0.1


def test_grids_that_change_between_minibatches_are_refused():
    def model(times):
        with pyro.plate("series", 4, subsample=torch.arange(2)):
            pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(), TimeGrid(times, max_step=0.1)))

    guide = AutoSDE(model)
    guide(torch.tensor([[0.0, 0.5], [0.0, 0.7]], dtype=F64))
    with pytest.raises(ValueError, match=r"'AutoSDE.z.rows' has shape \(4, 7, 2\), .* needs \(4, 9, 2\).*`encoder`"):
        guide(torch.tensor([[0.0, 0.5], [0.0, 0.9]], dtype=F64))


# --- laws of the path -------------------------------------------------------------------------------------------------


def test_degenerate_general_and_multiplicative_noise_train():
    grid = TimeGrid(TIMES, max_step=0.25)
    matrix = torch.tensor([[0.5, 0.0, 0.1], [0.2, 0.3, 0.0]], dtype=F64)
    cases = {
        "langevin": (UnderdampedLangevin(torch.neg, 0.5, 0.7), normal(2)),
        "general": (SDE(lambda t, z: -z, lambda t, z: matrix, noise_type="general"), normal(2)),
        "geometric": (
            GeometricBrownianMotion(0.1, 0.4),
            dist.LogNormal(torch.zeros(2, dtype=F64), 0.3).to_event(1),
        ),
    }
    for name, (sde, initial) in cases.items():
        pyro.clear_param_store()

        def model(sde=sde, initial=initial):
            z = pyro.sample("z", SDEPath(sde, initial, grid))
            law = dist.Normal(grid.observed(z), 0.3).to_event(2)
            pyro.sample("y", law, obs=torch.full((5, 2), 1.5, dtype=F64))

        guide = AutoSDE(model)
        losses = train(model, guide, 80, 0.02, loss=PathELBO(num_particles=8, vectorize_particles=True))
        assert sum(losses[-10:]) < 0.9 * sum(losses[:10]), name
        if name == "geometric":
            assert (guide()["z"][0] > 0).all()


def test_an_initial_law_without_moments_starts_at_its_quantiles():
    def model():
        cauchy = dist.Cauchy(torch.full((2,), 3.0, dtype=F64), 0.5).to_event(1)
        pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, 0.5), cauchy, TimeGrid(TIMES)))

    AutoSDE(model)()
    store = pyro.get_param_store()
    torch.testing.assert_close(store["AutoSDE.z.loc"], torch.full((2,), 3.0, dtype=F64), rtol=0, atol=0.3)
    assert ((store["AutoSDE.z.scale"] > 0.3) & (store["AutoSDE.z.scale"] < 3)).all()


def test_a_known_first_state_is_kept():
    point = dist.Delta(torch.ones(2, dtype=F64), event_dim=1)

    def model():
        with pyro.plate("series", 3):
            pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, 0.5), point, TimeGrid(TIMES)))

    guide = AutoSDE(model)
    train(model, guide, 2, 0.1)
    assert torch.equal(guide()["z"][:, 0], torch.ones(3, 2, dtype=F64))
    assert "AutoSDE.z.loc" not in pyro.get_param_store()


def test_inputs_of_the_prior_stay_with_the_prior():
    grid = TimeGrid(TIMES, max_step=0.25)
    forcing = torch.randn(grid.num_steps, 1, dtype=F64)

    def model():
        sde = SDE(lambda t, z, u: u - z, lambda t, z: 0.5 * torch.ones_like(z))
        z = pyro.sample("z", SDEPath(sde, normal(), grid, inputs=forcing))
        pyro.sample("y", dist.Normal(z[-1, 0], 0.1), obs=VALUES[0])

    guide = AutoSDE(model)
    train(model, guide, 3, 0.1)
    law = poutine.trace(guide).get_trace().nodes["z"]["fn"]
    assert torch.equal(law.sde.base.inputs, forcing)
    assert law.inputs.shape == (grid.num_steps, 2)


def test_masks_and_event_wrappers_stay_around_the_posterior():
    grid = TimeGrid(TIMES, max_step=0.25)
    mask = torch.tensor([True, False, True])

    def model():
        law = SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(2).expand([3]), grid)
        pyro.sample("z", law.mask(mask).to_event(1))

    guide = AutoSDE(model)
    train(model, guide, 3, 0.1)
    assert pyro.get_param_store()["AutoSDE.z.rows"].shape == (3, grid.num_steps, 6)
    trace = poutine.trace(guide).get_trace()
    trace.compute_log_prob()
    law = trace.nodes["z"]["fn"].base_dist.base_dist
    expected = law.log_prob(trace.nodes["z"]["value"])[mask].sum()
    assert trace.nodes["z"]["log_prob"].item() == pytest.approx(expected.item())


def test_event_wrappers_in_a_subsampled_plate():
    def model(size):
        with pyro.plate("series", 4, subsample_size=size):
            law = SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(2).expand([size, 3]), TimeGrid(TIMES))
            z = pyro.sample("z", law.to_event(1))
            pyro.sample("y", dist.Normal(z, 0.1).to_event(3), obs=torch.ones(size, 3, 5, 2, dtype=F64))

    guide = AutoSDE(model, hidden=())
    train(model, guide, 2, 0.1, 2)
    store = pyro.get_param_store()
    assert store["AutoSDE.z.rows"].shape == (4, 3, 4, 6)
    assert store["AutoSDE.z.loc"].shape == (4, 3, 2)
    assert guide(3)["z"].shape == (3, 3, 5, 2)


class RandomDrift(PyroModule):
    def __init__(self):
        super().__init__()
        self.weight = PyroSample(dist.Normal(torch.ones(1, dtype=F64), 0.5).to_event(1))

    def forward(self, t, z):
        return -self.weight * z


class RandomModel(PyroModule):
    def __init__(self):
        super().__init__()
        self.drift = RandomDrift()

    def forward(self):
        law = SDEPath(SDE(self.drift, lambda t, z: torch.ones_like(z)), normal(), TimeGrid(TIMES, max_step=0.2))
        return pyro.sample("z", law)


def test_random_weights_of_a_drift_are_those_of_the_prior():
    def plain():
        def drift(t, z):
            return -pyro.sample("drift.weight", dist.Normal(torch.ones(1, dtype=F64), 0.5).to_event(1)) * z

        return pyro.sample(
            "z", SDEPath(SDE(drift, lambda t, z: torch.ones_like(z)), normal(), TimeGrid(TIMES, max_step=0.2))
        )

    for model in (plain, RandomModel()):
        pyro.clear_param_store()
        guide = AutoSDE(model)
        train(model, guide, 3, 0.1, loss=PathELBO(kl="closed"))
        guide()
        model_trace, guide_trace = guide.get_traces()
        weight = guide_trace.nodes["drift.weight"]["value"]
        at_one = torch.ones(1, dtype=F64)
        for trace in (model_trace, guide_trace):
            law = trace.nodes["z"]["fn"]
            path = at_one.expand(law.event_shape).clone()
            torch.testing.assert_close(law.kernels(path).drift[0], -weight)


# --- encoder ----------------------------------------------------------------------------------------------------------


class Reader(torch.nn.Module):
    def __init__(self, states=2):
        super().__init__()
        self.gru = GRUEncoder(1, states, 6, hidden=8)

    def forward(self, times, values):
        return self.gru(TimeGrid(times, max_step=0.2), values)


def encoded_model(times, values):
    grid = TimeGrid(times, max_step=0.2)
    with pyro.plate("series", 10, subsample=torch.arange(len(times))):
        z = pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(2), grid))
        pyro.sample("y", dist.Normal(grid.observed(z)[..., :1], 0.2).to_event(2), obs=values)


def test_an_encoder_serves_minibatches_of_series_with_other_times():
    guide = AutoSDE(encoded_model, Reader(), hidden=(16,))
    times = torch.rand(2, 6, 5).cumsum(-1)
    values = torch.sin(times).unsqueeze(-1)
    losses = []
    svi = SVI(encoded_model, guide, Adam({"lr": 0.02}), PathELBO(num_particles=4, vectorize_particles=True))
    for step in range(60):
        losses.append(svi.step(times[step % 2][: 3 + step % 3], values[step % 2][: 3 + step % 3]))
    assert sum(losses[-9:]) < 0.8 * sum(losses[:9])
    names = list(pyro.get_param_store().keys())
    assert "AutoSDE.encoder$$$gru.gru.weight_ih_l0" in names
    assert "AutoSDE.z.control$$$input_part.weight" in names
    assert not any(name.endswith(("loc", "scale", "rows")) for name in names)


def test_the_encoder_runs_once_per_call_and_serves_every_path_site():
    calls = []
    grid = TimeGrid(TIMES, max_step=0.25)

    def model():
        pyro.sample("a", SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(1), grid))
        pyro.sample("b", SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(2), grid))

    def encoder():
        calls.append(1)
        rows = torch.zeros(grid.num_steps, 3, dtype=F64)
        return {"a": Encoding(normal(1), rows, rows[0]), "b": Encoding(normal(2), rows, rows[0])}

    guide = AutoSDE(model, encoder)
    guide()
    guide()
    assert len(calls) == 2


def test_an_encoder_leaves_a_known_first_state_alone():
    point = dist.Delta(torch.ones(1, dtype=F64), event_dim=1)

    def model():
        pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, 0.5), point, TimeGrid(TIMES)))

    rows = torch.zeros(4, 2, dtype=F64)
    guide = AutoSDE(model, lambda: Encoding(normal(), rows, rows[0]))
    train(model, guide, 1, 0.1)
    assert guide()["z"][0] == 1


@pytest.mark.parametrize(
    ("encoder", "error", "match"),
    [
        (lambda: torch.zeros(3), TypeError, "`encoder` must return an Encoding, .*received Tensor"),
        (lambda: {}, ValueError, r"`encoder` returned encodings of the sites \[\], but none of path site 'z'"),
        (
            lambda: Encoding(normal(1), torch.zeros(3, 2), torch.zeros(2)),
            ValueError,
            "4 steps and 1 states, but .* 3 row",
        ),
        (
            lambda: Encoding(normal(2), torch.zeros(4, 2), torch.zeros(2)),
            ValueError,
            r"event shape \(2,\). Give the enc",
        ),
        (
            lambda: Encoding(normal(1), torch.zeros(7, 4, 2), torch.zeros(2)),
            ValueError,
            r"'z' has batch shape \(3,\), but the encoder returned \(7,\). Pass the minibatch",
        ),
    ],
)
def test_encoders_that_do_not_fit_are_refused(encoder, error, match):
    def model():
        with pyro.plate("series", 3):
            pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(), TimeGrid(TIMES)))

    with pytest.raises(error, match=match):
        AutoSDE(model, encoder)()


# --- Pyro's services --------------------------------------------------------------------------------------------------


def test_predictive_draws_posterior_paths():
    grid = TimeGrid(TIMES, max_step=0.25)
    guide = AutoSDE(hierarchical)
    train(hierarchical, guide, 3, 0.1, grid)
    for parallel in (False, True):
        draws = Predictive(hierarchical, guide=guide, num_samples=6, parallel=parallel, return_sites=["z", "theta"])(
            grid
        )
        assert draws["z"].shape == (6, grid.num_steps + 1, 1)
        assert draws["theta"].shape == (6,)


def module_model():
    grid = TimeGrid(TIMES, max_step=0.25)
    scale = pyro.sample("scale", dist.LogNormal(torch.tensor(0.0, dtype=F64), 0.1))
    z = pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, scale.unsqueeze(-1)), normal(), grid))
    pyro.sample("y", dist.Normal(z[..., -1, 0], 0.1), obs=VALUES[0])


def test_guides_can_be_pickled_and_copied():
    guide = AutoSDE(module_model)
    train(module_model, guide, 3, 0.1)
    pyro.set_rng_seed(7)
    expected = guide()["z"]
    for clone in (pickle.loads(pickle.dumps(guide)), copy.deepcopy(guide)):
        pyro.clear_param_store()
        pickle.dumps(clone)
        pyro.set_rng_seed(7)
        assert torch.equal(clone()["z"], expected)
        assert len(list(clone.parameters())) == len(list(guide.parameters()))


def test_torch_optimisers_train_the_guide():
    guide = AutoSDE(module_model)
    guide()
    elbo = PathELBO()(module_model, guide)
    optimizer = torch.optim.Adam(elbo.parameters(), lr=0.1)
    before = [parameter.clone() for parameter in guide.parameters()]
    for _ in range(3):
        optimizer.zero_grad()
        elbo().backward()
        optimizer.step()
    names = [name for name, _ in guide.named_parameters()]
    still = [name for name, old, new in zip(names, before, guide.parameters(), strict=True) if torch.equal(old, new)]
    assert not still


def test_float32_trains_as_float64():
    def model(dtype):
        grid = TimeGrid(TIMES.to(dtype), max_step=0.25)
        z = pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(dtype=dtype), grid))
        pyro.sample("y", dist.Normal(z[..., -1, 0], 0.1), obs=VALUES[0].to(dtype))

    for dtype in (torch.float32, torch.float64):
        pyro.clear_param_store()
        guide = AutoSDE(model)
        train(model, guide, 3, 0.1, dtype)
        assert {value.dtype for _, value in pyro.get_param_store().items()} == {dtype}
        assert guide(dtype)["z"].dtype == dtype


def test_two_guides_in_one_store_share_values_and_refuse_other_shapes():
    grid = TimeGrid(TIMES, max_step=0.5)
    first = AutoSDE(ou_model)
    train(ou_model, first, 3, 0.1, grid)
    second = AutoSDE(ou_model)
    second(grid)
    for (name, ours), theirs in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    before = second.sites.site("z").control.net.tail.layers[0].weight.clone()
    train(ou_model, second, 2, 0.1, grid)
    assert not torch.equal(before, second.sites.site("z").control.net.tail.layers[0].weight)

    with pytest.raises(
        ValueError, match=r"parameter 'AutoSDE.z.rows' has shape \(4, 2\), but the model now needs \(7, 2\)"
    ):
        AutoSDE(ou_model)(TimeGrid(TIMES, max_step=0.25))
    with pytest.raises(
        ValueError, match=r"'AutoSDE.z.control\$\$\$net.state_part.weight' has shape \(32, 1\), .* \(8, 1\)"
    ):
        AutoSDE(ou_model, hidden=(8,))(grid)


def test_get_posterior_can_be_overridden_for_one_site():
    class Mine(AutoSDE):
        def get_posterior(self, name, prior):
            if name == "scale":
                return dist.Delta(torch.ones((), dtype=F64))
            return super().get_posterior(name, prior)

    guide = Mine(module_model)
    assert guide()["scale"] == 1
    train(module_model, guide, 2, 0.1)
    assert "AutoSDE.z.rows" in pyro.get_param_store()


def test_a_learned_prior_is_trained_with_the_guide():
    prior = NeuralSDE(1, hidden=(8,)).double()

    def model():
        pyro.module("prior", prior)
        z = pyro.sample("z", SDEPath(prior, normal(), TimeGrid(TIMES, max_step=0.25)))
        pyro.sample("y", dist.Normal(z[..., -1, 0], 0.1), obs=VALUES[0])

    before = [parameter.clone() for parameter in prior.parameters()]
    train(model, AutoSDE(model), 3, 0.1)
    assert all(not torch.equal(old, new) for old, new in zip(before, prior.parameters(), strict=True))


# --- errors -----------------------------------------------------------------------------------------------------------


def test_discrete_sites_are_refused_with_advice():
    def model():
        pyro.sample("k", dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match=r"site 'k' is discrete \(Bernoulli\).*Sum the site out"):
        AutoSDE(model)()


class OtherPath(PathDistribution):
    def __init__(self):
        super().__init__(normal(), torch.Size(), 3)

    def simulate(self, initial):
        return initial.unsqueeze(-2).expand(*initial.shape[:-1], 3, 1)

    def kernels(self, path):
        raise NotImplementedError

    def check_same_grid(self, other):
        pass


def test_other_path_laws_are_refused_with_advice():
    with pytest.raises(
        TypeError, match="AutoSDE builds posteriors of SDEPath laws, received OtherPath. Override get_post"
    ):
        AutoSDE(lambda: pyro.sample("z", OtherPath()))()


def test_arguments_are_checked():
    with pytest.raises(TypeError, match="`encoder` must be a function of the model's arguments, received int"):
        AutoSDE(ou_model, 3)
    with pytest.raises(ValueError, match="`init_scale` must be a number > 0, received 0"):
        AutoSDE(ou_model, init_scale=0)
    with pytest.raises(ValueError, match="`hidden` must be an integer >= 1, received 0"):
        AutoSDE(ou_model, hidden=(0,))
    with pytest.raises(ValueError, match="`hidden` must name at least one layer if there is an encoder"):
        AutoSDE(ou_model, Reader(), hidden=())
