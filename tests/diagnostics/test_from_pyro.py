"""Guides and MCMC runs as ArviZ data: every group against its definition, and ArviZ's own tools on the result."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, Predictive
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.effect import AutoNormalMessenger

from pyro_sde.data import synthetic
from pyro_sde.diagnostics.arviz import load_netcdf, save_netcdf, to_inference_data
from pyro_sde.diagnostics.from_pyro import from_guide, from_mcmc
from pyro_sde.distributions.gaussian_path import GaussianPath
from pyro_sde.distributions.sde_path import SDEPath
from pyro_sde.infer.reparam import PathNoiseReparam
from pyro_sde.models.latent_sde import LatentSDE
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.sde.independent import OrnsteinUhlenbeck
from pyro_sde.sde.matern import Matern12

SERIES, OBSERVED, DRAWS = 3, 6, 40


@pytest.fixture(autouse=True)
def clean_store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


@pytest.fixture
def latent():
    """An untrained latent SDE and its arguments, with gaps."""
    series = synthetic.ornstein_uhlenbeck(seed=0, num_series=SERIES, num_times=OBSERVED).to(torch.float32)
    torch.manual_seed(0)
    model = LatentSDE(state_dim=2, value_dim=1, max_step=2.0)
    mask = series.mask.clone()
    mask[0, 1:3] = False
    return model, (TimeGrid(series.times, max_step=2.0), series.values, series.mask), mask


def conjugate(y):
    """x ~ N(0, 1), y_i ~ N(x, 1)."""
    x = pyro.sample("x", dist.Normal(torch.zeros((), dtype=y.dtype), 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def conjugate_posterior(y):
    n = len(y)
    pyro.sample("x", dist.Normal(y.sum() / (n + 1), (n + 1) ** -0.5))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- from_guide -------------------------------------------------------------------------


def test_a_latent_sde_has_all_groups_with_named_dims(latent):
    model, args, _ = latent
    data = from_guide(model.model, model.guide, args, num_samples=DRAWS, seed=1)
    points = args[0].num_steps + 1
    path = data["posterior"]["z"]
    assert path.dims == ("chain", "draw", "series", "time", "state")
    assert path.shape == (1, DRAWS, SERIES, points, 2)
    for group in ("posterior_predictive", "log_likelihood"):
        assert data[group]["y"].dims == ("chain", "draw", "series", "observed_time", "channel")
        assert data[group]["y"].shape == (1, DRAWS, SERIES, OBSERVED, 1)
    assert data["observed_data"]["y"].dims == ("series", "observed_time", "channel")
    np.testing.assert_array_equal(data["observed_data"]["y"], args[1])
    assert data["constant_data"]["z_times"].dims == ("series", "time")
    np.testing.assert_array_equal(data["constant_data"]["z_times"], args[0].times)


def test_log_likelihood_is_the_density_of_every_value_at_the_draws(latent):
    model, args, _ = latent
    data = from_guide(model.model, model.guide, args, num_samples=DRAWS, seed=1)
    z = torch.tensor(data["posterior"]["z"].values[0])
    with torch.no_grad():
        expected = model.likelihood(model.decoder(args[0].observed(z))).log_prob(args[1])
    np.testing.assert_allclose(data["log_likelihood"]["y"].values[0], expected, rtol=1e-5)


def test_posterior_predictive_is_new_data_at_the_draws(latent):
    model, args, _ = latent
    data = from_guide(model.model, model.guide, args, num_samples=100, seed=1)
    z = torch.tensor(data["posterior"]["z"].values[0])
    with torch.no_grad():
        mean = model.decoder(args[0].observed(z)).numpy()
    noise = (data["posterior_predictive"]["y"].values[0] - mean) / model.likelihood.scale.item()
    # 1800 standard normal numbers: 5 standard errors are 0.12 for the mean, 0.083 for the deviation.
    assert abs(noise.mean()) < 0.12
    assert noise.std() == pytest.approx(1.0, abs=0.083)


def test_masked_entries_leave_one_dim_of_data_points(latent):
    model, (grid, values, _), mask = latent
    spoiled = torch.where(mask, values, float("nan"))
    data = from_guide(model.model, model.guide, (grid, spoiled, mask), num_samples=DRAWS, seed=1)
    count = int(mask.sum())
    assert data["posterior"]["z"].dims == ("chain", "draw", "series", "time", "state")
    for group in ("posterior_predictive", "log_likelihood"):
        assert data[group]["y"].dims == ("chain", "draw", "y_observation")
        assert np.isfinite(data[group]["y"].values).all()
    np.testing.assert_array_equal(data["observed_data"]["y"], values[mask])
    where = [data["constant_data"][f"y_{name}"].values for name in ("series", "observed_time", "channel")]
    np.testing.assert_array_equal(np.stack(where, -1), mask.nonzero())
    assert len(where[0]) == count


def test_masks_inside_and_outside_of_events_agree():
    mask = torch.tensor([True, False, True])

    def model(wrap):
        x = pyro.sample("x", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
        law = dist.Normal(x, 1.0)
        with poutine.mask(mask=torch.tensor(True)):
            pyro.sample("y", wrap(law), obs=torch.arange(6.0).reshape(3, 2))

    def guide(wrap):
        pyro.sample("x", dist.Normal(torch.zeros(3, 2), 0.1).to_event(2))

    inside = from_guide(model, guide, (lambda law: law.mask(mask[:, None]).to_event(2),), num_samples=3, seed=0)
    outside = from_guide(model, guide, (lambda law: law.to_event(1).mask(mask).to_event(1),), num_samples=3, seed=0)
    for data in (inside, outside):
        np.testing.assert_array_equal(data["observed_data"]["y"], [0.0, 1.0, 4.0, 5.0])
        assert data["log_likelihood"]["y"].shape == (1, 3, 4)
    np.testing.assert_array_equal(inside["log_likelihood"]["y"], outside["log_likelihood"]["y"])


def test_several_masks_leave_out_what_any_of_them_does():
    first, second = torch.tensor([True, False, True]), torch.tensor([True, True, False])

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(x, 1.0).mask(first).mask(second), obs=torch.arange(3.0))

    data = from_guide(model, lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), num_samples=2)
    np.testing.assert_array_equal(data["observed_data"]["y"], [0.0])


def test_a_mask_handler_leaves_points_out():
    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3), poutine.mask(mask=torch.tensor([True, True, False])):
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    data = from_guide(model, lambda y: pyro.sample("x", dist.Normal(0.0, 1.0)), (torch.arange(3.0),), num_samples=2)
    np.testing.assert_array_equal(data["observed_data"]["y"], [0.0, 1.0])
    np.testing.assert_array_equal(data["constant_data"]["y_data"], [0, 1])


def test_arviz_tools_run_on_a_latent_sde(latent):
    import arviz
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    model, (grid, values, full), mask = latent
    for observed in (full, mask):
        data = from_guide(model.model, model.guide, (grid, values, observed), num_samples=100, seed=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ArviZ's own: an untrained model has a high k, one chain no R-hat
            loo = arviz.loo(data)
            summary = arviz.summary(data, var_names=["z"])
            if hasattr(arviz, "plot_ppc"):
                assert arviz.plot_ppc(data, num_pp_samples=10) is not None
            else:  # its name in ArviZ 1.x
                assert arviz.plot_ppc_dist(data, num_samples=10, backend="matplotlib") is not None
        assert loo.n_data_points == int(observed.sum())
        assert len(summary) == SERIES * (grid.num_steps + 1) * 2
    pyplot.close("all")


def test_loo_of_a_conjugate_model_is_the_closed_form():
    import arviz

    y = normal(12)
    loo = arviz.loo(from_guide(conjugate, conjugate_posterior, (y,), num_samples=2000, seed=0))
    n = len(y)
    left = (y.sum() - y) / n  # posterior mean without point i; its variance is 1 / n
    exact = dist.Normal(left, (1 + 1 / n) ** 0.5).log_prob(y).sum().item()
    elpd = getattr(loo, "elpd", None) or loo["elpd_loo"]
    assert elpd == pytest.approx(exact, abs=0.05)  # the difference to the score with point i in is 0.9


def test_seed_makes_the_draws_and_leaves_store_and_generator_alone(latent):
    model, args, _ = latent
    pyro.param("other", torch.tensor(2.0))
    state = torch.get_rng_state()
    first, second, other = (
        from_guide(model.model, model.guide, args, num_samples=2, seed=seed)["posterior"]["z"].values
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(pyro.get_param_store().keys()) == ["other"]


def test_trained_parameters_of_the_store_are_used():
    pyro.param("loc", torch.tensor(5.0))

    def guide(y):
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1e-3))

    data = from_guide(conjugate, guide, (torch.zeros(2),), num_samples=3)
    assert data["posterior"]["x"].values == pytest.approx(5.0, abs=0.01)


@pytest.mark.parametrize("kind", [AutoNormal, AutoNormalMessenger])
def test_automatic_guides_are_run(kind):
    guide = kind(conjugate)
    y = torch.zeros(4)
    guide(y)
    data = from_guide(conjugate, guide, (y,), num_samples=5)
    assert set(data["posterior"].data_vars) == {"x"}
    assert data["posterior"]["x"].shape == (1, 5)
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "data")


def test_one_grid_for_all_gives_time_its_coordinate():
    grid = TimeGrid(torch.tensor([0.0, 0.5, 2.0]))
    law = SDEPath(OrnsteinUhlenbeck(1.0, 1.0), dist.Normal(torch.zeros(1), 1.0).to_event(1), grid)

    def model():
        z = pyro.sample("z", law)
        pyro.deterministic("last", z[-1, 0])
        pyro.sample("y", dist.Normal(z, 1.0).to_event(2), obs=torch.zeros(3, 1))
        pyro.factor("penalty", torch.tensor(-1.0))

    data = from_guide(model, lambda: pyro.sample("z", law), num_samples=4, coords={"state": ["level"]})
    np.testing.assert_array_equal(data["posterior"]["z"].time, [0.0, 0.5, 2.0])
    assert data["posterior"]["z"].sel(time=2.0, state="level").shape == (1, 4)
    np.testing.assert_array_equal(data["posterior"]["last"], data["posterior"]["z"][:, :, -1, 0])
    assert set(data["posterior"].data_vars) == {"z", "last"}
    assert set(data["log_likelihood"].data_vars) == {"y"}
    given = from_guide(model, lambda: pyro.sample("z", law), num_samples=4, coords={"time": [7, 8, 9]})
    assert list(given["posterior"]["z"].time.values) == [7, 8, 9]
    renamed = from_guide(model, lambda: pyro.sample("z", law), num_samples=4, dims={"y": ["when", "what"]})
    assert renamed["observed_data"]["y"].dims == ("when", "what")


def test_paths_on_two_grids_have_dims_of_their_own():
    start = dist.Normal(torch.zeros(1), 1.0).to_event(1)
    laws = {name: SDEPath(OrnsteinUhlenbeck(1.0, 1.0), start, TimeGrid(torch.arange(float(n)))) for name, n in
            (("slow", 3), ("fast", 5))}  # fmt: skip

    def model():
        for name, law in laws.items():
            pyro.sample(name, law)

    data = from_guide(model, model, num_samples=2)
    assert data["posterior"]["slow"].dims == ("chain", "draw", "slow_time", "state")
    assert data["posterior"]["fast"].dims == ("chain", "draw", "fast_time", "state")
    np.testing.assert_array_equal(data["constant_data"]["fast_times"], np.arange(5.0))


def test_a_law_of_vectors_has_one_density_per_vector():
    def model(y):
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("rows", 3):
            pyro.sample("y", dist.MultivariateNormal(x, torch.eye(2)), obs=y)

    def guide(y):
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    data = from_guide(model, guide, (torch.zeros(3, 2),), num_samples=4)
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "rows")
    assert data["posterior_predictive"]["y"].shape == (1, 4, 3, 2)


def test_the_file_of_a_guide_can_be_read_again(latent, tmp_path):
    model, (grid, values, _), mask = latent
    data = from_guide(model.model, model.guide, (grid, values, mask), num_samples=3, seed=1)
    loaded = load_netcdf(save_netcdf(data, tmp_path / "run.nc"))
    np.testing.assert_array_equal(loaded["log_likelihood"]["y"], data["log_likelihood"]["y"])
    np.testing.assert_array_equal(loaded["constant_data"]["y_series"], data["constant_data"]["y_series"])


def test_samples_of_predictive_convert_as_they_are(latent):
    model, args, _ = latent
    with torch.no_grad():
        posterior = Predictive(model.guide, num_samples=7)(*args)
        predictive = Predictive(lambda: model.model(args[0]), posterior, return_sites=["y"])()
    data = to_inference_data(posterior, posterior_predictive=predictive, observed_data={"y": args[1]})
    assert data["posterior"]["z"].dims == ("chain", "draw", "series", "time", "state")
    assert data["posterior_predictive"]["y"].dims == ("chain", "draw", "series", "observed_time", "channel")


def test_no_draw_is_refused():
    with pytest.raises(ValueError, match="`num_samples` must be at least 1, received 0"):
        from_guide(conjugate, conjugate_posterior, (torch.zeros(2),), num_samples=0)


# --- from_mcmc --------------------------------------------------------------------------


def path_model():
    z = pyro.sample("z", dist.Normal(torch.zeros(4, 1), 1.0).to_event(2))
    pyro.sample("y", dist.Normal(z, 1.0).to_event(2), obs=torch.ones(4, 1))


def test_from_mcmc_keeps_chains_dims_and_divergences():
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(path_model, max_tree_depth=3), num_samples=12, warmup_steps=8, disable_progbar=True)
    mcmc.run()
    data = from_mcmc(mcmc, coords={"time": torch.arange(4.0)}, observed_data={"y": torch.ones(4, 1)})
    assert data.posterior["z"].dims == ("chain", "draw", "time", "state")
    np.testing.assert_array_equal(data.posterior["z"], mcmc.get_samples(group_by_chain=True)["z"])
    expected = mcmc.diagnostics()["divergences"]["chain 0"]
    assert np.flatnonzero(data.sample_stats["diverging"][0]).tolist() == expected
    assert data.observed_data["y"].dims == ("observed_time", "channel")
    energy = from_mcmc(mcmc, sample_stats={"energy": normal(1, 12)}).sample_stats
    assert set(energy.data_vars) == {"diverging", "energy"}


class FakeMCMC(MCMC):
    """Samples and divergences without a run."""

    def __init__(self, samples, divergences):
        self.kept, self.divergences = samples, divergences

    def get_samples(self, num_samples=None, group_by_chain=False):
        return self.kept

    def diagnostics(self):
        return {"divergences": self.divergences}


def test_from_mcmc_places_the_divergences_of_every_chain():
    data = from_mcmc(FakeMCMC({"x": normal(2, 6)}, {"chain 0": [], "chain 1": [0, 5]}))
    assert np.argwhere(data.sample_stats["diverging"].values).tolist() == [[1, 0], [1, 5]]


def test_from_mcmc_refuses_other_objects_and_unfinished_runs():
    with pytest.raises(TypeError, match=r"`mcmc` must be a pyro.infer.MCMC object, received dict"):
        from_mcmc({"z": normal(5)})
    with pytest.raises(ValueError, match=r"`mcmc` holds no samples. Call `mcmc.run"):
        from_mcmc(MCMC(NUTS(path_model), num_samples=3))


def test_from_mcmc_runs_the_model_at_every_sample_of_every_chain():
    y = normal(3)
    samples_of_chains = normal(2, 5, seed=1)
    mcmc = FakeMCMC({"x": samples_of_chains}, {"chain 0": [], "chain 1": []})
    mcmc.kernel = NUTS(conjugate)
    data = from_mcmc(mcmc, (y,), constant_data={"age": torch.ones(3)}, dims={"age": ["data"]})
    expected = dist.Normal(samples_of_chains.unsqueeze(-1), 1.0).log_prob(y)
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "data")
    np.testing.assert_allclose(data["log_likelihood"]["y"], expected)
    np.testing.assert_array_equal(data["posterior"]["x"], samples_of_chains)
    np.testing.assert_array_equal(data["observed_data"]["y"], y)
    assert data["posterior_predictive"]["y"].shape == (2, 5, 3)
    assert data["sample_stats"]["diverging"].shape == (2, 5)
    assert data["constant_data"]["age"].dims == ("data",)


def test_a_path_replaced_by_its_noise_comes_back():
    grid = TimeGrid(torch.tensor([0.0, 0.5, 1.0]))
    start = dist.Normal(torch.zeros(1), 1.0).to_event(1)

    def model(y):
        rate = pyro.sample("rate", dist.LogNormal(0.0, 0.5))
        z = pyro.sample("z", SDEPath(OrnsteinUhlenbeck(rate, 1.0), start, grid))
        pyro.sample("y", dist.Normal(z, 0.5).to_event(2), obs=y)

    whitened = poutine.reparam(model, config={"z": PathNoiseReparam()})
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(whitened, max_tree_depth=2), num_samples=5, warmup_steps=3, disable_progbar=True)
    mcmc.run(torch.zeros(3, 1))
    data = from_mcmc(mcmc, (torch.zeros(3, 1),))
    samples = mcmc.get_samples()
    expected = Predictive(whitened, samples, return_sites=["z"])(torch.zeros(3, 1))["z"]
    assert data["posterior"]["z"].dims == ("chain", "draw", "time", "state")
    np.testing.assert_array_equal(data["posterior"]["z"][0], expected)
    assert set(data["log_likelihood"].data_vars) == {"y"}
    assert data["posterior"]["z_noise"].dims[:2] == ("chain", "draw")
    assert not any("observed_time" in dim for dim in data["posterior"]["z_noise"].dims)


def test_from_mcmc_needs_a_model_to_run():
    mcmc = FakeMCMC({"x": normal(1, 5)}, {"chain 0": []})
    mcmc.kernel = NUTS(potential_fn=lambda p: p["x"])
    with pytest.raises(ValueError, match="`args` needs a kernel with a model"):
        from_mcmc(mcmc, (normal(3),))


def test_the_exact_posterior_of_a_gaussian_path_is_a_guide():
    grid = TimeGrid(torch.tensor([0.0, 0.3, 1.0, 1.2], dtype=torch.float64))
    prior, y = GaussianPath(Matern12(1.0, 1.0), None, grid), normal(4, 1)

    def model():
        z = pyro.sample("z", prior)
        pyro.sample("y", dist.Normal(z, 0.5).to_event(2), obs=y)

    exact = prior.condition(None, 0.5, y)
    data = from_guide(model, lambda: pyro.sample("z", exact), num_samples=400, seed=0)
    error = (data["posterior"]["z"].values[0].mean(0) - exact.mean.numpy()) / exact.variance.sqrt().numpy()
    assert np.abs(error).max() < 5 / 400**0.5
