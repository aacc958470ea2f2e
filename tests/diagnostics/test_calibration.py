"""Calibration by simulation: exact posteriors pass, wrong ones are found and named."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive

from pyro_sde.diagnostics.calibration import RankStatistics, path_deviation, simulation_based_calibration
from pyro_sde.distributions.gaussian_path import GaussianPath
from pyro_sde.models.latent_sde import LatentSDE
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.sde.matern import Matern12
from pyro_sde.testing.statistics import TEST_FAILURE_RATE

GRID = TimeGrid(torch.tensor([0.0, 0.4, 1.0, 1.1], dtype=torch.float64))
PRIOR = GaussianPath(Matern12(1.0, 1.0), None, GRID)


def model(y=None):
    """x ~ N(0, 1), y ~ N(x, 1)."""
    x = pyro.sample("x", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
    pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def normal_posterior(scale=1.0, shift=0.0):
    """Draws of N(y / 2 + shift, scale^2 / 2); the posterior has scale 1 and shift 0."""
    return lambda data, n: {"x": dist.Normal(data["y"] / 2 + shift, scale * math.sqrt(0.5)).sample((n,))}


def path_model():
    z = pyro.sample("z", PRIOR)
    pyro.sample("y", dist.Normal(z, 0.5).to_event(2))


def path_posterior(noise=0.5):
    return lambda data, n: {"z": PRIOR.condition(None, noise, data["y"]).sample((n,))}


# --- whole runs -------------------------------------------------------------------------


def test_the_posterior_passes():
    ranks = simulation_based_calibration(model, normal_posterior(), num_simulations=500)
    assert ranks.ranks["x"].shape == (500,)
    assert ranks.p_values()["x"] > TEST_FAILURE_RATE
    assert ranks.coverage(0.9)["x"].item() == pytest.approx(0.9, abs=4 * math.sqrt(0.09 / 500))


@pytest.mark.parametrize(("scale", "shift", "sign"), [(0.6, 0.0, -1), (1.7, 0.0, 1)])
def test_narrow_and_wide_posteriors_are_found(scale, shift, sign):
    ranks = simulation_based_calibration(model, normal_posterior(scale, shift), num_simulations=400)
    assert ranks.p_values()["x"] < TEST_FAILURE_RATE
    assert sign * (ranks.coverage(0.8)["x"].item() - 0.8) > 0.1


def test_a_shifted_posterior_ranks_the_truth_low():
    ranks = simulation_based_calibration(model, normal_posterior(shift=0.7), num_simulations=300)
    assert ranks.p_values()["x"] < TEST_FAILURE_RATE
    assert ranks.normalised()["x"].mean() < 0.3


def test_the_exact_posterior_of_a_path_passes_entry_by_entry_and_as_a_whole():
    statistics = {"z": lambda latents: latents["z"], "worst": path_deviation()}
    run = {"num_simulations": 240, "num_draws": 19, "statistics": statistics}
    ranks = simulation_based_calibration(path_model, path_posterior(), **run)
    assert ranks.ranks["z"].shape == (240, 4, 1)
    assert ranks.ranks["worst"].shape == (240,)
    p_values = ranks.p_values()
    assert p_values["z"].min() * 4 > TEST_FAILURE_RATE
    assert p_values["worst"] > TEST_FAILURE_RATE
    assert ranks.share_below(0.9)["worst"].item() == pytest.approx(0.9, abs=4 * math.sqrt(0.09 / 240))
    wrong = simulation_based_calibration(path_model, path_posterior(0.2), **run)
    assert wrong.p_values()["worst"] < TEST_FAILURE_RATE
    assert wrong.share_below(0.9)["worst"] < 0.75
    assert (wrong.coverage(0.9)["z"] < 0.85).all()


def test_the_prior_passes_alone_and_fails_beside_the_data():
    seen = {}

    def prior(data, n):
        seen.update(data)
        return {"x": torch.randn(n, dtype=torch.float64)}

    statistics = {
        "x": lambda latents: latents["x"],
        "fit": lambda latents: dist.Normal(latents["x"], 1.0).log_prob(seen["y"]),
    }
    p_values = simulation_based_calibration(model, prior, num_simulations=400, statistics=statistics).p_values()
    assert p_values["x"] > TEST_FAILURE_RATE
    assert p_values["fit"] < TEST_FAILURE_RATE


def test_data_in_the_arguments_is_replaced_by_simulations():
    seen = []

    def posterior(data, n):
        seen.append(float(data["y"]))
        return {"x": torch.zeros(n, dtype=torch.float64)}

    simulation_based_calibration(model, posterior, (torch.tensor(9.0, dtype=torch.float64),), num_simulations=20)
    assert len(set(seen)) == 20
    assert max(seen) < 8


def test_an_amortised_guide_of_a_latent_sde_can_be_ranked():
    torch.manual_seed(0)
    latent = LatentSDE(state_dim=1, value_dim=1, max_step=1.0)
    grid = TimeGrid(torch.linspace(0.0, 2.0, 3).expand(2, 3), max_step=1.0)

    def posterior(data, n):
        with torch.no_grad():
            return {"z": Predictive(latent.guide, num_samples=n)(grid, data["y"])["z"]}

    ranks = simulation_based_calibration(latent.model, posterior, (grid,), num_simulations=20, num_draws=9)
    assert ranks.ranks["z"].shape == (20, 2, 3, 1)


def test_every_simulation_starts_from_the_same_parameter_store():
    pyro.clear_param_store()
    pyro.param("kept", torch.tensor(1.0))
    found = []

    def posterior(data, n):
        found.append(sorted(pyro.get_param_store().keys()))
        pyro.param("fitted", data["y"])
        return normal_posterior()(data, n)

    simulation_based_calibration(model, posterior, num_simulations=20)
    assert found == [["kept"]] * 20
    assert list(pyro.get_param_store().keys()) == ["kept"]
    pyro.clear_param_store()


def test_seed_fixes_the_ranks_and_leaves_the_generator_alone():
    state = torch.get_rng_state()
    first, second, other = (
        simulation_based_calibration(model, normal_posterior(), num_simulations=20, seed=seed).ranks["x"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


# --- the record -------------------------------------------------------------------------


def test_ties_are_broken_at_random():
    same = simulation_based_calibration(
        model, lambda data, n: {"x": torch.zeros(n, dtype=torch.float64)}, num_simulations=300, num_draws=3,
        statistics={"sign": lambda latents: torch.zeros_like(latents["x"])},
    ).ranks["sign"]  # fmt: skip
    assert same.unique().tolist() == [0, 1, 2, 3]
    assert torch.bincount(same).min() > 40


def test_ranks_count_the_draws_below_the_truth():
    def posterior(data, n):
        return {"x": torch.tensor([-100.0, -90.0, 100.0], dtype=torch.float64)}

    ranks = simulation_based_calibration(model, posterior, num_simulations=20, num_draws=3)
    assert (ranks.ranks["x"] == 2).all()
    assert (ranks.normalised()["x"] == 2.5 / 4).all()


def test_coverage_and_share_count_ranks():
    record = RankStatistics({"a": torch.arange(10).repeat(2), "b": torch.full((20, 2), 1)}, 9)
    assert record.coverage(0.8)["a"] == pytest.approx(0.8)
    assert record.coverage(0.8)["b"].tolist() == [1.0, 1.0]
    assert record.coverage(0.6)["b"].tolist() == [0.0, 0.0]
    assert record.share_below(0.2)["b"].tolist() == [1.0, 1.0]
    assert record.share_below(0.1)["b"].tolist() == [0.0, 0.0]
    assert record.share_below(0.3)["a"] == pytest.approx(0.3)


def test_p_value_is_that_of_the_chi_squared_statistic():
    stats = pytest.importorskip("scipy.stats")
    counts = torch.tensor([30, 20, 25, 5])
    record = RankStatistics({"a": torch.repeat_interleave(torch.arange(4), counts)}, 3)
    expected = stats.chisquare(counts.numpy()).pvalue
    assert record.p_values(bins=4)["a"].item() == pytest.approx(expected)
    halves = stats.chisquare([50, 30]).pvalue
    assert record.p_values(bins=2)["a"].item() == pytest.approx(halves)
    assert record.p_values()["a"].item() == pytest.approx(expected)  # 80 simulations: up to 8 bins, 4 of 4 ranks


def test_deviation_of_a_path_is_its_largest_in_standard_deviations():
    path = torch.randn(6, 2, 3, 1, generator=torch.Generator().manual_seed(0))
    path[:, :, 0] = 1.0  # a fixed start has no deviation
    value = path_deviation("w")({"w": path})
    scaled = (path - path.mean(0)).abs()[:, :, 1:] / path.std(0)[:, 1:]
    torch.testing.assert_close(value, scaled.amax((-2, -1)).double())


def test_float32_posteriors_are_ranked():
    def posterior(data, n):
        return {"x": dist.Normal(data["y"].float() / 2, math.sqrt(0.5)).sample((n,))}

    ranks = simulation_based_calibration(model, posterior, num_simulations=200)
    assert ranks.p_values()["x"] > TEST_FAILURE_RATE


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("`num_simulations` must be at least 20 and `num_draws` at least 1, received 19 and 5",
         {"num_simulations": 19, "num_draws": 5}),
        ("`num_simulations` must be at least 20 and `num_draws` at least 1, received 20 and 0",
         {"num_simulations": 20, "num_draws": 0}),
        (r"`observed` names 'w', which the model does not sample; its sites are \['x', 'y'\]", {"observed": ("w",)}),
    ],
)  # fmt: skip
def test_bad_runs_are_refused(message, options):
    with pytest.raises(ValueError, match=message):
        simulation_based_calibration(model, normal_posterior(), **options)


def test_draws_of_other_shapes_and_names_are_refused():
    with pytest.raises(ValueError, match=r"`posterior` must return 'x' with shape \(99,\), received \(99, 1\)"):
        simulation_based_calibration(model, lambda data, n: {"x": torch.zeros(n, 1)})
    with pytest.raises(ValueError, match=r"`posterior` must return draws of some of \['x'\], received \['w'\]"):
        simulation_based_calibration(model, lambda data, n: {"w": torch.zeros(n)})


@pytest.mark.parametrize(("method", "level"), [("coverage", 0.85), ("coverage", 1.0), ("share_below", 0.55)])
def test_levels_that_cut_a_rank_are_refused(method, level):
    record = RankStatistics({"a": torch.arange(10)}, 9)
    with pytest.raises(ValueError, match=r"`level` must lie between 0 and 1 and cut the L \+ 1 = 10 ranks"):
        getattr(record, method)(level)


@pytest.mark.parametrize("bins", [3, 1, None])
def test_bins_that_do_not_divide_are_refused(bins):
    record = RankStatistics({"a": torch.arange(10)}, 9)
    with pytest.raises(ValueError, match=r"`bins` must be at least 2 and divide L \+ 1 = 10"):
        record.p_values(bins)
