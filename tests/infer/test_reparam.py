import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.infer.autoguide.initialization import InitMessenger, init_to_sample, init_to_value
from pyro.optim import Adam
from torch.distributions import MultivariateNormal

from pyro_sde import GaussianPath, MarkovPath, SDEPath, TimeGrid
from pyro_sde.infer.reparam import PathNoiseReparam
from pyro_sde.sde import SDE, Matern32, OrnsteinUhlenbeck, UnderdampedLangevin

F64 = torch.float64
TIMES = torch.linspace(0, 2, 5, dtype=F64)
VALUES = torch.tensor([0.3, -0.9, -0.2, 0.6], dtype=F64)
NOISE_SCALE = 0.3


@pytest.fixture(autouse=True)
def _clean():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def normal(dim=1, batch=(), dtype=F64):
    return dist.Normal(torch.zeros(*batch, dim, dtype=dtype), torch.ones(dim, dtype=dtype)).to_event(1)


def reparameterised(model, *names):
    return poutine.reparam(model, {name: PathNoiseReparam() for name in names or ("z",)})


def trace_of(model, *args):
    trace = poutine.trace(model).get_trace(*args)
    trace.compute_log_prob()
    return trace


def chain_matrices(n, theta, sigma, initial_scale=1.0, end=2.0):
    """(S, A): the path of the OU chain is S times standard normal coordinates (first state, noise)."""
    step = end / n
    lower = torch.eye(n + 1, dtype=F64) - torch.diag(torch.full((n,), 1 - theta * step, dtype=F64), -1)
    scale = torch.full((n + 1,), sigma * math.sqrt(step), dtype=F64)
    scale[0] = initial_scale
    return torch.linalg.solve_triangular(lower, torch.diag(scale), upper=False)


def observation_matrix(n, count=4):
    rows = torch.zeros(count, n + 1, dtype=F64)
    rows[torch.arange(count), (torch.arange(1, count + 1) * n) // count] = 1
    return rows


# --- the law ------------------------------------------------------------------------------------------------------


def test_density_is_that_of_the_path_times_the_jacobian():
    grid = TimeGrid(TIMES, max_step=0.3)
    law = SDEPath(OrnsteinUhlenbeck(1.0, 0.8), normal(), grid)
    trace = trace_of(reparameterised(lambda: pyro.sample("z", law)))
    first, noise, path = (trace.nodes[name]["value"] for name in ("z_initial", "z_noise", "z"))
    coordinates = torch.cat([first, noise[:, 0]])
    jacobian = torch.autograd.functional.jacobian(lambda x: law.solve(x[:1], x[1:, None])[:, 0], coordinates)
    spread = chain_matrices(grid.num_steps, 1.0, 0.8)
    dense = MultivariateNormal(torch.zeros(grid.num_steps + 1, dtype=F64), scale_tril=spread).log_prob(path[:, 0])
    assert trace.log_prob_sum().item() == pytest.approx((dense + jacobian.slogdet().logabsdet).item(), abs=1e-10)
    assert law.log_prob(path).item() == pytest.approx(dense.item(), abs=1e-10)


@pytest.mark.parametrize(("n", "centred", "whitened"), [(20, 77, 13), (80, 1094, 13), (320, 17125, 13)])
def test_posterior_condition_number_does_not_grow_with_the_grid(n, centred, whitened):
    """OU, rate 1, diffusion .8 on [0, 2], four observations with scale .3: posterior precisions by autograd."""
    grid = TimeGrid(TIMES, max_step=2 / n)
    law = SDEPath(OrnsteinUhlenbeck(1.0, 0.8), normal(), grid)

    def model():
        z = pyro.sample("z", law)
        pyro.sample("y", dist.Normal(grid.observed(z)[1:, 0], NOISE_SCALE).to_event(1), obs=VALUES)

    def energy(density, coordinates):
        precision = torch.autograd.functional.hessian(density, coordinates, vectorize=True)
        return torch.linalg.cond(-precision).item()

    def path_density(path):
        return poutine.trace(poutine.condition(model, {"z": path[:, None]})).get_trace().log_prob_sum()

    def noise_density(x):
        values = {"z_initial": x[:1], "z_noise": x[1:, None]}
        return poutine.trace(poutine.condition(reparameterised(model), values)).get_trace().log_prob_sum()

    start = torch.zeros(n + 1, dtype=F64)
    assert energy(path_density, start) == pytest.approx(centred, rel=0.01)
    if n == 20:  # K sequential steps under a Hessian are slow; larger grids by the closed form of the chain
        assert energy(noise_density, start) == pytest.approx(whitened, rel=0.03)
    spread = observation_matrix(n) @ chain_matrices(n, 1.0, 0.8)
    exact = torch.eye(n + 1, dtype=F64) + spread.mT @ spread / NOISE_SCALE**2
    assert torch.linalg.cond(exact).item() == pytest.approx(whitened, rel=0.03)


@pytest.mark.slow
def test_nuts_agrees_with_the_exact_posterior():
    grid = TimeGrid(TIMES, max_step=0.25)

    def model():
        theta = pyro.sample("theta", dist.LogNormal(torch.zeros((), dtype=F64), 0.5))
        sigma = pyro.sample("sigma", dist.LogNormal(torch.zeros((), dtype=F64), 0.5))
        z = pyro.sample("z", SDEPath(OrnsteinUhlenbeck(theta, sigma), normal(), grid))
        pyro.sample("y", dist.Normal(grid.observed(z)[1:, 0], NOISE_SCALE).to_event(1), obs=VALUES)

    mcmc = MCMC(NUTS(reparameterised(model)), num_samples=400, warmup_steps=200, disable_progbar=True)
    mcmc.run()
    samples = mcmc.get_samples()
    paths = Predictive(reparameterised(model), samples, return_sites=["z"])()["z"][..., 0]
    assert paths.shape == (400, grid.num_steps + 1)

    exact = exact_posterior(grid.num_steps)
    drawn = {"theta": samples["theta"].log(), "sigma": samples["sigma"].log(), "end": paths[:, -1]}
    for name, draws in drawn.items():
        effective = pyro.ops.stats.effective_sample_size(draws.unsqueeze(0)).item()
        error = draws.std().item() / math.sqrt(effective)
        assert effective > 40, name
        assert abs(draws.mean().item() - exact[name]) < 4 * error, (name, draws.mean(), exact[name], error)


def exact_posterior(n):
    """Posterior means of log theta, log sigma and the last state by quadrature over the two logarithms."""
    knots = torch.linspace(-2.0, 2.0, 41, dtype=F64)
    rows = observation_matrix(n)
    weights, ends = torch.zeros(41, 41, dtype=F64), torch.zeros(41, 41, dtype=F64)
    for i, log_theta in enumerate(knots.tolist()):
        for j, log_sigma in enumerate(knots.tolist()):
            spread = chain_matrices(n, math.exp(log_theta), math.exp(log_sigma))
            observed = rows @ spread
            covariance = observed @ observed.mT + NOISE_SCALE**2 * torch.eye(4, dtype=F64)
            evidence = MultivariateNormal(torch.zeros(4, dtype=F64), covariance).log_prob(VALUES)
            weights[i, j] = evidence - 0.5 * (log_theta**2 + log_sigma**2) / 0.25
            ends[i, j] = (spread[-1] @ observed.mT) @ torch.linalg.solve(covariance, VALUES)
    weights = (weights - weights.max()).exp()
    weights = weights / weights.sum()
    return {
        "theta": (weights.sum(1) @ knots).item(),
        "sigma": (weights.sum(0) @ knots).item(),
        "end": (weights * ends).sum().item(),
    }


def test_nuts_survives_trial_parameters_that_explode():
    grid = TimeGrid(TIMES, max_step=0.5)

    def model():
        theta = pyro.sample("theta", dist.LogNormal(torch.tensor(0.0, dtype=F64), 200.0))
        pyro.sample("z", SDEPath(OrnsteinUhlenbeck(theta, 1.0), normal(), grid))

    kernel = NUTS(reparameterised(model), step_size=5.0, adapt_step_size=False, max_tree_depth=3)
    mcmc = MCMC(kernel, num_samples=5, warmup_steps=0, disable_progbar=True)
    mcmc.run()
    assert torch.isfinite(mcmc.get_samples()["z_noise"]).all()


def test_an_exploding_path_raises_while_validation_is_on():
    law = SDEPath(OrnsteinUhlenbeck(-1e200, 1.0), normal(), TimeGrid(TIMES), validate_args=True)
    with pytest.raises(ValueError, match="non-finite at time"):
        reparameterised(lambda: pyro.sample("z", law))()


# --- sites, plates and wrappers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sites_and_shapes_in_plates_with_masks_and_event_wrappers(dtype):
    times = torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.3, 0.3]], dtype=dtype)  # the second series is padded
    grid = TimeGrid(times, max_step=0.2)
    law = SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(3, dtype=dtype), grid)
    mask = torch.tensor([True, False])

    def model():
        with pyro.plate("copies", 4, dim=-2), pyro.plate("series", 2, dim=-1):
            plain = pyro.sample("z", law)
        wrapped = pyro.sample("w", law.mask(mask).to_event(1))
        return plain, wrapped

    trace = trace_of(reparameterised(model, "z", "w"))
    steps = grid.num_steps
    nodes = trace.nodes
    assert nodes["z"]["value"].shape == (4, 2, steps + 1, 3)
    assert nodes["z_initial"]["log_prob"].shape == nodes["z_noise"]["log_prob"].shape == (4, 2)
    assert nodes["z_noise"]["value"].shape == (4, 2, steps, 3)
    assert nodes["z"]["value"].dtype == dtype
    assert nodes["w_noise"]["log_prob"].shape == ()
    expected = dist.Normal(0.0, 1.0).log_prob(nodes["w_noise"]["value"][0]).sum()  # the other series is masked
    assert nodes["w_noise"]["log_prob"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert nodes["w"]["log_prob"].sum() == 0
    padded = grid.steps[1] == 0
    path = nodes["z"]["value"][0, 1]
    assert torch.equal(path[1:][padded], path[:-1][padded])


def test_vectorised_particles_get_paths_of_their_own():
    grid = TimeGrid(TIMES, max_step=0.5)

    def model(initial):
        theta = pyro.sample("theta", dist.LogNormal(torch.zeros((), dtype=F64), 0.1))
        with pyro.plate("series", 3, dim=-1):
            z = pyro.sample("z", SDEPath(OrnsteinUhlenbeck(theta.unsqueeze(-1), 0.5), initial, grid))
            pyro.sample("y", dist.Normal(grid.observed(z), 0.5).to_event(2), obs=torch.zeros(3, 5, 1, dtype=F64))

    for initial in (normal(), dist.Delta(torch.ones(1, dtype=F64), event_dim=1)):
        pyro.clear_param_store()
        configured = reparameterised(model)
        guide = AutoMultivariateNormal(configured)
        loss = Trace_ELBO(num_particles=7, vectorize_particles=True, max_plate_nesting=1)
        svi = SVI(configured, guide, Adam({"lr": 0.01}), loss)
        assert math.isfinite(svi.step(initial))


def test_a_point_mass_as_initial_law_has_no_site():
    grid = TimeGrid(TIMES, max_step=0.5)
    initial = dist.Delta(torch.ones(2, dtype=F64), event_dim=1)

    def model():
        with pyro.plate("series", 3):
            return pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, 0.5), initial, grid))

    trace = trace_of(reparameterised(model))
    assert trace.stochastic_nodes == ["series", "z_noise"]
    assert torch.equal(trace.nodes["z"]["value"][:, 0], torch.ones(3, 2, dtype=F64))


def test_a_grid_without_steps_has_no_noise_site():
    law = SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(), TimeGrid(TIMES[:1]))
    trace = trace_of(reparameterised(lambda: pyro.sample("z", law)))
    assert trace.stochastic_nodes == ["z_initial"]
    assert trace.nodes["z"]["value"].shape == (1, 1)


def test_effects_of_a_drift_are_those_of_the_path():
    grid = TimeGrid(TIMES, max_step=0.5)

    def drift(t, z):
        return -pyro.sample("rate", dist.LogNormal(torch.zeros((), dtype=F64), 1.0)) * z

    def model():
        pyro.sample("z", SDEPath(SDE(drift, lambda t, z: torch.ones_like(z)), normal(), grid))

    trace = trace_of(reparameterised(model))
    rate, first, noise = (trace.nodes[name]["value"] for name in ("rate", "z_initial", "z_noise"))
    expected = SDEPath(OrnsteinUhlenbeck(rate, 1.0), normal(), grid).solve(first, noise)
    torch.testing.assert_close(trace.nodes["z"]["value"], expected)


# --- initialisation ---------------------------------------------------------------------------------------------------


def general(t, z):
    return torch.tensor([[0.5, 0.0, 0.1], [0.2, 0.3, 0.0]], dtype=z.dtype)


@pytest.mark.parametrize("kind", ["diagonal", "general", "langevin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_initial_values_of_the_path_become_noise(kind, dtype):
    sde = {
        "diagonal": OrnsteinUhlenbeck(1.0, 0.5),
        "general": SDE(lambda t, z: -z, general, noise_type="general"),
        "langevin": UnderdampedLangevin(torch.sin, 0.5, 0.7),
    }[kind]
    grid = TimeGrid(TIMES.to(dtype), max_step=0.1)

    def model():
        with pyro.plate("series", 3):
            return pyro.sample("z", SDEPath(sde, normal(2, dtype=dtype), grid))

    path = model()
    with InitMessenger(init_to_value(values={"z": path})):  # warnings are errors: Pyro warns if the value is lost
        trace = trace_of(reparameterised(model))
    assert trace.nodes["z"]["value"] is path
    first, noise = trace.nodes["z_initial"]["value"], trace.nodes["z_noise"]["value"]
    assert torch.equal(first, path[:, 0])
    law = SDEPath(sde, normal(2, dtype=dtype), grid)
    torch.testing.assert_close(law.solve(first, noise), path, rtol=1e-5, atol=1e-5)
    assert not trace.nodes["z_noise"]["is_observed"]


def test_initial_values_off_the_support_follow_from_the_noise():
    grid = TimeGrid(TIMES, max_step=0.1)
    law = SDEPath(UnderdampedLangevin(torch.sin, 0.5, 0.7), normal(2), grid)

    def model():
        return pyro.sample("z", law)

    path = model() + 0.1 * torch.randn(grid.num_steps + 1, 2, dtype=F64)
    path._pyro_custom_init = False  # such as a draw of init_to_uniform
    with InitMessenger(init_to_value(values={"z": path})):
        trace = trace_of(reparameterised(model))
    value = trace.nodes["z"]["value"]
    assert value is not path
    torch.testing.assert_close(value, law.solve(trace.nodes["z_initial"]["value"], trace.nodes["z_noise"]["value"]))
    law.log_prob(value)  # on the support


def test_nuts_starts_from_initial_values_of_the_path():
    grid = TimeGrid(TIMES, max_step=0.5)

    def model():
        return pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(), grid))

    kernel = NUTS(reparameterised(model), init_strategy=init_to_sample)
    mcmc = MCMC(kernel, num_samples=2, warmup_steps=2, disable_progbar=True)
    mcmc.run()
    assert set(mcmc.get_samples()) == {"z_initial", "z_noise"}


# --- errors -----------------------------------------------------------------------------------------------------------


def test_an_observed_path_is_refused():
    law = SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(), TimeGrid(TIMES))
    with pytest.raises(ValueError, match="site 'z' is observed, but PathNoiseReparam serves latent paths"):
        reparameterised(lambda: pyro.sample("z", law, obs=torch.zeros(5, 1, dtype=F64)))()


def test_other_laws_are_refused():
    with pytest.raises(TypeError, match="site 'z': PathNoiseReparam serves sites with .* received Normal"):
        reparameterised(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)))()


def test_an_exact_gaussian_path_becomes_its_first_state_and_noise():
    law = GaussianPath(Matern32(0.5, 2.0), None, TimeGrid(torch.linspace(0.0, 1.0, 6)))
    model = poutine.reparam(lambda: pyro.sample("z", law), {"z": PathNoiseReparam()})
    trace = poutine.trace(model).get_trace()
    first, noise, path = (trace.nodes[name]["value"] for name in ("z_initial", "z_noise", "z"))
    torch.testing.assert_close(path, law.solve(first, noise))
    torch.testing.assert_close(law.noise_of(path), noise, rtol=1e-3, atol=1e-3)


def test_a_discrete_chain_is_exchanged_with_its_noise():
    def model():
        initial = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        z = pyro.sample("z", MarkovPath(lambda z, t, u: dist.Normal(0.5 * z, 0.8).to_event(1), initial, 4))
        pyro.sample("y", dist.Normal(z, 0.3).to_event(2), obs=torch.ones(4, 1))

    exchanged = poutine.reparam(model, {"z": PathNoiseReparam()})
    trace = poutine.trace(exchanged).get_trace()
    given = poutine.condition(model, {"z": trace.nodes["z"]["value"]})
    noise, first = trace.nodes["z_noise"]["value"], trace.nodes["z_initial"]["value"]
    total = poutine.trace(given).get_trace().log_prob_sum()
    # the density of the path is that of its noise times the determinant 0.8^-3 of the step
    standard = dist.Normal(0.0, 1.0).log_prob(torch.cat([first.reshape(-1), noise.reshape(-1)])).sum()
    likelihood = trace.nodes["y"]["fn"].log_prob(torch.ones(4, 1))
    torch.testing.assert_close(total, standard + likelihood - 3 * torch.tensor(0.8).log())
