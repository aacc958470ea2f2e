"""Importance weights of guides whose weights are known."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_sde.data import synthetic
from pyro_sde.diagnostics.importance import ImportanceCheck, importance_check
from pyro_sde.distributions.gaussian_path import GaussianPath
from pyro_sde.distributions.sde_path import SDEPath
from pyro_sde.models.latent_sde import LatentSDE
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.sde.matern import Matern12

ZERO = torch.zeros((), dtype=torch.float64)


@pytest.fixture(autouse=True)
def clean_store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def one(scale):
    """Sampler of x ~ N(0, scale^2)."""
    return lambda: pyro.sample("x", dist.Normal(ZERO, scale))


def rows_model(y):
    with pyro.plate("rows", len(y)):
        x = pyro.sample("x", dist.Normal(torch.zeros_like(y), 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def rows_guide(scale):
    def guide(y):
        with pyro.plate("rows", len(y)):
            pyro.sample("x", dist.Normal(y / 2, scale * math.sqrt(0.5)))

    return guide


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.3])
def test_tail_of_a_normal_guide_has_the_known_shape(scale):
    # k = 1 - scale^2; below 0 for a guide that is too wide, whose weights are bounded.
    check = importance_check(one(1.0), one(scale), num_samples=20_000, seed=0)
    if scale < 1:
        assert check.k_hat.item() == pytest.approx(1 - scale**2, abs=0.12)
    else:
        assert check.k_hat < 0
    assert bool(check.reliable) is (scale > 0.6)


def test_effective_number_of_a_wide_guide_is_the_closed_form():
    # E w^2 = s^2 / sqrt(2 s^2 - 1) for N(0, 1) under N(0, s^2)
    check = importance_check(one(1.0), one(1.3), num_samples=20_000, seed=0)
    exact = math.sqrt(2 * 1.3**2 - 1) / 1.3**2
    assert check.effective_samples.item() / 20_000 == pytest.approx(exact, rel=0.02)
    assert check.log_weights.exp().sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("vectorize", [True, False])
def test_every_row_of_a_plate_has_weights_of_its_own(vectorize):
    y = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    options = {"num_samples": 2000 if vectorize else 300, "vectorize_particles": vectorize, "seed": 0}
    check = importance_check(rows_model, rows_guide(1.0), (y,), **options)
    torch.testing.assert_close(check.log_evidence, dist.Normal(0.0, math.sqrt(2)).log_prob(y), check_dtype=False)
    assert (check.k_hat == -math.inf).all()
    assert check.log_weights.shape == (options["num_samples"], 3)
    wrong = importance_check(rows_model, rows_guide(0.4), (y,), **options)
    assert (wrong.k_hat > 0.5).all()


def test_sites_outside_of_the_plate_make_one_weight_of_all_rows():
    y = torch.tensor([0.5, -0.5], dtype=torch.float64)

    def model(y):
        m = pyro.sample("m", dist.Normal(ZERO, 1.0))
        with pyro.plate("rows", 2):
            pyro.sample("y", dist.Normal(m, 1.0), obs=y)

    def guide(y):
        pyro.sample("m", dist.Normal(y.sum() / 3, math.sqrt(1 / 3)))

    covariance = torch.eye(2, dtype=torch.float64) + 1
    exact = dist.MultivariateNormal(torch.zeros(2, dtype=torch.float64), covariance).log_prob(y)
    check = importance_check(model, guide, (y,), seed=0)
    assert check.k_hat.shape == ()
    torch.testing.assert_close(check.log_evidence, exact)


def test_the_exact_posterior_of_a_path_gives_the_exact_evidence():
    grid = TimeGrid(torch.tensor([0.0, 0.3, 1.0, 1.2], dtype=torch.float64))
    y = torch.tensor([[[0.3], [-0.2], [1.0], [0.8]], [[1.0], [1.0], [1.0], [1.0]]], dtype=torch.float64)
    prior = GaussianPath(Matern12(1.0, 1.0), None, grid)

    def model():
        with pyro.plate("series", 2):
            z = pyro.sample("z", prior)
            pyro.sample("y", dist.Normal(z, 0.5).to_event(2), obs=y)

    def guide(noise):
        def run():
            with pyro.plate("series", 2):
                pyro.sample("z", prior.condition(None, noise, y))

        return run

    exact = importance_check(model, guide(0.5), num_samples=200, seed=0)
    torch.testing.assert_close(exact.log_evidence, prior.log_evidence(None, 0.5, y))
    assert exact.reliable.tolist() == [True, True]
    wrong = importance_check(model, guide(0.15), num_samples=2000, seed=0)
    assert not wrong.reliable.any()
    assert (wrong.effective_samples < exact.effective_samples * 5).all()


def test_the_bound_of_a_latent_sde_is_its_evidence_bound():
    series = synthetic.ornstein_uhlenbeck(seed=0, num_series=3, num_times=5).to(torch.float32)
    torch.manual_seed(0)
    latent = LatentSDE(state_dim=2, value_dim=1, max_step=5.0)
    args = (TimeGrid(series.times, max_step=5.0), series.values, series.mask)
    check = importance_check(latent.model, latent.guide, args, num_samples=500, seed=0)
    with torch.no_grad():
        bound = latent.evidence_bound(series, num_samples=500, seed=1)
    assert isinstance(check, ImportanceCheck)
    assert check.log_evidence.shape == (3,)
    # Two estimates with S = 500 draws; their spread is 1 / sqrt(effective number).
    spread = check.effective_samples.rsqrt() * math.sqrt(2)
    assert ((check.log_evidence - bound).abs() < 5 * spread).all()


def test_loop_and_plate_agree_on_a_path_guide():
    grid = TimeGrid(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    start = dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0).to_event(1)
    sde = Matern12(1.0, 1.0)

    def model():
        pyro.sample("z", SDEPath(sde, start, grid))

    def guide():
        pyro.sample("z", SDEPath(sde, dist.Normal(torch.zeros(1, dtype=torch.float64), 1.2).to_event(1), grid))

    checks = [importance_check(model, guide, num_samples=400, vectorize_particles=v, seed=0) for v in (True, False)]
    for check in checks:
        # E w^2 as above: the path adds nothing to the weight of its start.
        assert check.effective_samples.item() / 400 == pytest.approx(math.sqrt(2 * 1.44 - 1) / 1.44, rel=0.07)


def test_reliable_asks_more_of_few_draws():
    few, many = torch.zeros(100), torch.zeros(100_000)
    for weights, limit in ((few, 0.5), (many, 0.7)):
        for offset, expected in ((-0.01, True), (0.01, False)):
            check = ImportanceCheck(torch.tensor(limit + offset), torch.ones(()), torch.ones(()), weights)
            assert bool(check.reliable) is expected


def test_seed_fixes_the_draws_and_nothing_else_changes():
    pyro.param("loc", torch.tensor(0.5))

    def guide():
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    state = torch.get_rng_state()
    first, second, other = (importance_check(one(1.0), guide, seed=seed).k_hat for seed in (1, 1, 2))
    assert first == second != other
    assert torch.equal(torch.get_rng_state(), state)
    assert dict(pyro.get_param_store().items()) == {"loc": torch.tensor(0.5)}


def test_float32_is_good_enough():
    y = torch.tensor([0.5, 1.0])
    check = importance_check(rows_model, rows_guide(1.2), (y,), seed=0)
    exact = importance_check(rows_model, rows_guide(1.2), (y.double(),), seed=0)
    torch.testing.assert_close(check.log_evidence, exact.log_evidence, atol=0.05, rtol=0)


def test_few_draws_are_refused():
    with pytest.raises(ValueError, match="`num_samples` must be at least 100 to see a tail, received 99"):
        importance_check(one(1.0), one(1.0), num_samples=99)


def test_subsampled_plates_are_refused():
    def model():
        with pyro.plate("rows", 10, subsample_size=5):
            pyro.sample("x", dist.Normal(ZERO, 1.0))

    with pytest.raises(ValueError, match="site 'x' has the scale 2.0, as in a subsampled plate"):
        importance_check(model, model)


def test_a_weight_that_is_nan_is_refused():
    with pytest.raises(ValueError, match="a log weight is NaN"), pyro.validation_enabled(False):
        importance_check(lambda: pyro.sample("x", dist.Normal(ZERO, -1.0)), one(1.0))
