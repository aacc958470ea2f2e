"""Gaussian path laws against dense Gaussian vectors, and as priors and guides of Pyro models."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import MultivariateNormal, kl_divergence

from pyro_sde import GaussianPath, PathELBO, SDEPath, TimeGrid, path_kl
from pyro_sde.ops import GaussianChain, LinearObservations
from pyro_sde.sde import (
    LTI,
    SDE,
    Cosine,
    IntegratedWiener,
    Matern12,
    Matern32,
    Matern52,
    OrnsteinUhlenbeck,
    UnderdampedLangevin,
)
from pyro_sde.testing import assert_mean, check_distribution, ks_test
from tests.distributions.conftest import GAUSSIAN_LAWS
from tests.ops.dense import dense_posterior, dense_prior, matern_kernel, matern_matrices

DOUBLE = torch.float64
TIMES = torch.tensor([0.0, 0.3, 0.35, 1.1, 4.0], dtype=DOUBLE)
MATERN = {1: Matern12, 2: Matern32, 3: Matern52}


def double(*values):
    return torch.tensor(values, dtype=DOUBLE)


def dense_matern(order, times, scale=1.0):
    """Mean and covariance of the whole path of states, from series and not from the package."""
    a, q, p0 = matern_matrices(order, times.diff(), scale)
    return dense_prior(torch.zeros(order, dtype=DOUBLE), p0, a, torch.zeros(len(a), order, dtype=DOUBLE), q)


def dense_of(law):
    """Mean and covariance of the whole path of an unbatched law, block by block from its chain."""
    c = law.chain
    return dense_prior(c.initial_mean, c.initial_covariance, c.transition, c.offset, c.noise)


# ---------------------------------------------------------------- contract
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_law_keeps_the_contract_of_pyro(make_gaussian, dtype):
    check_distribution(make_gaussian(dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_samples_fit_the_kernels_and_the_initial_law(make_gaussian, dtype):
    law = make_gaussian(dtype)
    path = law.sample((2000,))
    noise = law.noise_of(path)
    noisy = noise.reshape(-1, noise.shape[-1]).abs().sum(0) > 0
    if law.grid.num_steps:
        moved = noise[..., noisy].reshape(-1)
        ks_test(moved[moved != 0]).require(detects=0.1)
        assert_mean(moved[moved != 0], 0.0, detects=0.1)
        assert_mean(moved[moved != 0].square(), 1.0, detects=0.15)
    mean, variance = law.mean, law.variance
    scale = variance.sqrt().clamp(min=1e-3)
    assert_mean((path - mean) / scale, 0.0, detects=0.2)
    assert_mean(((path - mean) / scale).square(), variance / scale.square(), detects=0.3)


def test_gradients_reach_hyper_parameters_times_and_initial_law():
    lengthscale, variance, loc = (torch.tensor(v, dtype=DOUBLE, requires_grad=True) for v in (0.7, 1.3, 0.2))
    times = TIMES.clone().requires_grad_()
    start = dist.Normal(loc.expand(2), 0.5).to_event(1)
    law = GaussianPath(Matern32(lengthscale, variance), start, TimeGrid(times))
    check_distribution(law, parameters=[lengthscale, variance, loc, times], skip=["deepcopy", "pickle"])


@pytest.mark.parametrize("step", [1e-6, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_gradients_are_finite_for_steps_of_any_length(order, step):
    lengthscale = torch.tensor(1.0, dtype=DOUBLE, requires_grad=True)
    grid = TimeGrid(step * torch.arange(6, dtype=DOUBLE))
    law = GaussianPath(MATERN[order](lengthscale, 1.0), None, grid)
    path = law.rsample((3,))
    value = law.log_prob(path).sum() + path.square().sum()
    value = value + law.condition(None, 0.1, torch.ones(6, 1, dtype=DOUBLE)).rsample().sum()
    value = value + law.log_evidence(None, 0.1, torch.ones(6, 1, dtype=DOUBLE))
    (gradient,) = torch.autograd.grad(value, lengthscale)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient)


# ---------------------------------------------------------------- density and moments
@pytest.mark.parametrize("order", [1, 2, 3])
def test_density_is_that_of_the_dense_gaussian_process(order):
    law = GaussianPath(MATERN[order](1.0, 1.0), None, TimeGrid(TIMES))
    mean, covariance = dense_matern(order, TIMES)
    path = law.sample((4,))
    expected = MultivariateNormal(mean, covariance).log_prob(path.flatten(-2))
    torch.testing.assert_close(law.log_prob(path), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_moments_are_those_of_the_dense_gaussian_process(order):
    law = GaussianPath(MATERN[order](1.0, 1.0), None, TimeGrid(TIMES))
    mean, covariance = dense_matern(order, TIMES)
    blocks = covariance.unflatten(0, (5, order)).unflatten(-1, (5, order)).movedim(1, 2)
    torch.testing.assert_close(law.mean.flatten(), mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(law.variance.flatten(), covariance.diagonal(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(law.marginals()[1][3], blocks[3, 3], rtol=1e-10, atol=1e-10)
    for i, j in ((0, 0), (1, 3), (4, 2), (-1, 0)):
        torch.testing.assert_close(law.covariance(i, j), blocks[i, j], rtol=1e-9, atol=1e-10)
    kernel = matern_kernel(order, (TIMES.unsqueeze(-1) - TIMES).abs())
    ours = torch.stack([torch.stack([law.covariance(i, j)[0, 0] for j in range(5)]) for i in range(5)])
    torch.testing.assert_close(ours, kernel, rtol=1e-10, atol=1e-12)


def test_subdivided_grid_has_the_law_of_the_process_at_the_observation_times():
    fine = TimeGrid(TIMES, max_step=0.1)
    law = GaussianPath(Matern32(1.0, 1.0), None, fine)
    index = fine.observed_index.tolist()
    ours = torch.stack([torch.stack([law.covariance(i, j)[0, 0] for j in index]) for i in index])
    torch.testing.assert_close(ours, matern_kernel(2, (TIMES.unsqueeze(-1) - TIMES).abs()), rtol=1e-10, atol=1e-12)


def test_float32_density_agrees_with_float64():
    single, whole = (GaussianPath(Matern32(0.5, 1.0), None, TimeGrid(TIMES.to(t))) for t in (torch.float32, DOUBLE))
    path = single.sample((5,))
    assert path.dtype == torch.float32
    torch.testing.assert_close(single.log_prob(path).double(), whole.log_prob(path.double()), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("process", ["matern", "euler", "wiener"])
def test_irregular_batch_is_a_stack_of_single_series(process):
    rows = double([0.0, 0.3, 0.7, 1.0], [0.1, 0.25, 0.9, 0.9], [-0.2, 0.4, 0.4, 0.4])
    lengths = (4, 3, 2)
    scales = double(0.5, 1.0, 2.0)
    start = dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1)

    def law(times, scale):
        grid = TimeGrid(times, max_step=0.2)
        if process == "wiener":
            return GaussianPath(IntegratedWiener(1, scale), start, grid)
        kind = "euler" if process == "euler" else "exact"
        return GaussianPath(Matern32(scale, 1.0), None, grid, discretisation=kind)

    y = torch.randn(3, 4, 1, dtype=DOUBLE)
    batch = law(rows, scales)
    path = batch.sample()
    for b, length in enumerate(lengths):
        alone = law(rows[b, :length], scales[b])
        points = alone.event_shape[0]
        torch.testing.assert_close(batch.log_prob(path)[b], alone.log_prob(path[b, :points]))
        torch.testing.assert_close(batch.mean[b, :points], alone.mean)
        evidence = batch.log_evidence(None, 0.3, y)[b]
        torch.testing.assert_close(evidence, alone.log_evidence(None, 0.3, y[b, :length]), rtol=1e-10, atol=1e-10)
        posterior, single = batch.condition(None, 0.3, y), alone.condition(None, 0.3, y[b, :length])
        torch.testing.assert_close(posterior.mean[b, :points], single.mean, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(posterior.covariance(0, points - 1)[b], single.covariance(0, -1))


def test_values_on_padded_steps_have_no_density():
    law = GaussianPath(Matern32(1.0, 1.0), None, TimeGrid(double([0.0, 1.0, 2.0], [0.0, 1.0, 1.0])))
    path = law.sample()
    changed = path.clone()
    changed[1, 2] += 5.0
    torch.testing.assert_close(law.log_prob(changed), law.log_prob(path))


def test_noise_of_a_path_gives_the_path_back():
    law = GAUSSIAN_LAWS["chain"](DOUBLE)
    initial, noise = torch.randn(2, 3, 2, dtype=DOUBLE), torch.randn(2, 3, 4, 2, dtype=DOUBLE)
    path = law.solve(initial, noise)
    torch.testing.assert_close(law.noise_of(path), noise)
    torch.testing.assert_close(path[..., 0, :], initial)
    with pytest.raises(ValueError, match=r"`noise` must have shape \(\.\.\., 4, 2\)"):
        law.solve(initial, noise[..., :3, :])


def test_first_sample_of_a_law_of_a_start_is_that_start():
    start = double(0.3, -1.0)
    law = GaussianPath(Matern32(1.0, 1.0), dist.Delta(start, event_dim=1), TimeGrid(TIMES))
    assert (law.sample((3,))[:, 0] == start).all()


# ---------------------------------------------------------------- Euler chains
def turning(dtype=DOUBLE):
    """Noise along one direction that is no axis, rotating drift with an offset."""
    drift = torch.tensor([[-1.0, 0.8], [-0.8, -0.5]], dtype=dtype)
    return LTI(drift, torch.tensor([[1.0], [0.5]], dtype=dtype), offset=torch.tensor([0.3, -0.2], dtype=dtype))


@pytest.mark.parametrize("process", ["ou", "matern", "turning"])
def test_euler_chain_is_the_sde_path(process):
    grid = TimeGrid(double([0.0, 0.5, 1.0], [0.0, 0.4, 0.4]), max_step=0.2)
    sde = {"ou": OrnsteinUhlenbeck(0.8, 0.9, 0.4, state_dim=2), "matern": Matern32(1.0, 1.0), "turning": turning()}[
        process
    ]
    start = dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1)
    ours, theirs = GaussianPath(sde, start, grid, discretisation="euler"), SDEPath(sde, start, grid)
    for path in (ours.sample((3,)), theirs.sample((3,))):
        torch.testing.assert_close(ours.log_prob(path), theirs.log_prob(path), rtol=1e-10, atol=1e-8)
        assert path_kl(ours, theirs, path).abs().max() < 1e-10
        assert path_kl(theirs, ours, path).abs().max() < 1e-10


H_VALUES = {0.05: -4.070957910, 0.025: -4.076609798, 0.0125: -4.079495885}
Y = double([0.6], [-0.4], [-0.1], [0.9])


def spec_problem(max_step):
    """OU prior of the specification, four observations, exact posterior of its Euler chain with learned sites."""
    grid = TimeGrid(double(0.5, 1.0, 1.2, 1.7), max_step=max_step, start=0.0)
    process = OrnsteinUhlenbeck(double(0.8), 0.9)
    reference = GaussianPath(process, None, grid, discretisation="euler")

    def model():
        z = pyro.sample("z", SDEPath(process, reference.initial, grid))
        pyro.sample("y", dist.Normal(grid.observed(z), math.sqrt(0.1)).to_event(2), obs=Y)

    def guide():
        sites = pyro.param("sites", Y.clone())
        width = pyro.param("width", torch.full((4, 1), math.sqrt(0.1), dtype=DOUBLE), dist.constraints.positive)
        pyro.sample("z", reference.condition(None, width, sites))

    return reference, model, guide


@pytest.mark.parametrize("max_step", H_VALUES)
def test_bound_of_the_discrete_exact_guide_is_the_evidence_on_every_path(max_step):
    reference, model, guide = spec_problem(max_step)
    evidence = reference.log_evidence(None, math.sqrt(0.1), Y).item()
    assert evidence == pytest.approx(H_VALUES[max_step], abs=1e-9)
    for elbo in (PathELBO("stl"), PathELBO("full"), Trace_ELBO(), RenyiELBO(alpha=0, num_particles=2)):
        for _ in range(3):
            assert -elbo.loss(model, guide) == pytest.approx(evidence, abs=1e-10)


def test_exact_chain_has_the_evidence_of_the_process_on_any_grid():
    for max_step in (None, 0.1):
        grid = TimeGrid(double(0.5, 1.0, 1.2, 1.7), max_step=max_step)
        law = GaussianPath(OrnsteinUhlenbeck(double(0.8), 0.9), None, grid)
        assert law.log_evidence(None, math.sqrt(0.1), Y).item() == pytest.approx(-4.082420621, abs=1e-9)


@pytest.mark.parametrize("make", [lambda: PathELBO("closed"), TraceMeanField_ELBO], ids=["closed", "TraceMeanField"])
def test_closed_bound_of_the_discrete_exact_guide_has_the_evidence_as_its_mean(make):
    reference, model, guide = spec_problem(0.05)
    elbo = make()
    losses = torch.tensor([-elbo.loss(model, guide) for _ in range(150)])
    assert losses.std() > 0.1
    assert_mean(losses, H_VALUES[0.05], detects=1.5)


def gradient(elbo, model, guide):
    pyro.get_param_store().clear()
    with poutine.trace(param_only=True) as capture:
        elbo.loss_and_grads(model, guide)
    parameters = [site["value"].unconstrained() for site in capture.trace.nodes.values()]
    return torch.cat([p.grad.flatten() for p in parameters])


@pytest.mark.parametrize("max_step", H_VALUES)
def test_sticking_the_landing_has_no_gradient_at_the_discrete_exact_guide(max_step):
    _, model, guide = spec_problem(max_step)
    for elbo in (PathELBO("stl"), Trace_ELBO()):
        assert gradient(elbo, model, guide).norm() < 1e-12
    assert gradient(PathELBO("full"), model, guide).norm() > 1e-2


@pytest.mark.parametrize("kind", ["stl", "closed", "full"])
def test_svi_finds_the_exact_posterior_from_elsewhere(kind):
    reference, model, _ = spec_problem(0.1)
    evidence = reference.log_evidence(None, math.sqrt(0.1), Y).item()

    def guide():
        sites = pyro.param("sites", torch.zeros(4, 1, dtype=DOUBLE))
        width = pyro.param("width", torch.ones(4, 1, dtype=DOUBLE), dist.constraints.positive)
        pyro.sample("z", reference.condition(None, width, sites))

    options = {"num_particles": 8, "vectorize_particles": True, "max_plate_nesting": 0}
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.985}), PathELBO(kind, **options))
    for _ in range(200):
        svi.step()
    bound = -PathELBO("full", num_particles=500, vectorize_particles=True, max_plate_nesting=0).loss(model, guide)
    assert evidence - 0.05 < bound < evidence + 0.05


# ---------------------------------------------------------------- divergence
def pair(q_scale=0.7, p_scale=1.0, grid=None):
    grid = TimeGrid(TIMES) if grid is None else grid
    return GaussianPath(Matern32(q_scale, 1.2), None, grid), GaussianPath(Matern32(p_scale, 0.9), None, grid)


def test_divergence_of_two_laws_is_that_of_the_dense_vectors():
    q, p = pair()
    q = q.condition(None, 0.4, torch.randn(5, 1, dtype=DOUBLE))
    expected = kl_divergence(MultivariateNormal(*dense_of(q)), MultivariateNormal(*dense_of(p)))
    torch.testing.assert_close(kl_divergence(q, p), expected, rtol=1e-8, atol=1e-8)
    assert kl_divergence(q, q).abs() < 1e-12


def test_divergence_is_the_mean_of_the_closed_form_along_paths():
    q, p = pair()
    path = q.sample((4000,))
    assert_mean(path_kl(q, p, path), kl_divergence(q, p), detects=0.5)
    assert_mean(q.log_prob(path) - p.log_prob(path), kl_divergence(q, p), detects=0.5)


def test_float32_divergence_on_a_fine_grid_is_that_of_float64():
    times = 1e-3 * torch.arange(200.0)
    single, whole = (
        [GaussianPath(Matern52(scale, 1.0), None, TimeGrid(times.to(dtype))) for scale in (1.0, 1.1)]
        for dtype in (torch.float32, DOUBLE)
    )
    ours = kl_divergence(*single)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), kl_divergence(*whole), rtol=1e-5, atol=0)


def test_divergence_broadcasts_over_batches_and_initial_laws():
    grid = TimeGrid(TIMES)
    q = GaussianPath(Matern32(double(0.5, 1.0, 2.0), 1.0), None, grid)
    p = GaussianPath(Matern32(1.0, 1.0), dist.Normal(torch.zeros(2, dtype=DOUBLE), double(0.8, 1.5)).to_event(1), grid)
    ours = kl_divergence(q, p)
    assert ours.shape == (3,)
    one = GaussianPath(Matern32(double(2.0), 1.0), None, grid)
    torch.testing.assert_close(ours[2], kl_divergence(one, p)[0])
    torch.testing.assert_close(kl_divergence(q.expand((4, 3)), p), ours.expand(4, 3))


def test_divergence_on_a_ragged_grid_leaves_padding_out():
    rows = double([0.0, 0.3, 0.7], [0.0, 0.3, 0.3])
    q, p = pair(grid=TimeGrid(rows))
    for b, n in ((0, 3), (1, 2)):
        torch.testing.assert_close(kl_divergence(q, p)[b], kl_divergence(*pair(grid=TimeGrid(rows[b, :n]))))


def test_divergence_in_singular_directions_is_that_of_the_noisy_ones():
    grid = TimeGrid(TIMES)
    cosine, start = Cosine(2.0), dist.Normal(torch.zeros(3, dtype=DOUBLE), 1.0).to_event(1)
    both = [GaussianPath(cosine + OrnsteinUhlenbeck(r, 0.5), start, grid) for r in (0.5, 1.0)]
    alone = [
        GaussianPath(OrnsteinUhlenbeck(r, 0.5), dist.Normal(torch.zeros(1, dtype=DOUBLE), 1.0).to_event(1), grid)
        for r in (0.5, 1.0)
    ]
    torch.testing.assert_close(kl_divergence(*both), kl_divergence(*alone))
    path = both[0].sample()
    torch.testing.assert_close(path_kl(*both, path), path_kl(*alone, path[:, 2:]))


def test_posterior_of_a_singular_prior_has_a_finite_divergence_from_it():
    grid = TimeGrid(TIMES, max_step=0.1)
    start = dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1)
    prior = GaussianPath(turning(), start, grid, discretisation="euler")
    posterior = prior.condition(None, 0.05, torch.randn(5, 2, dtype=DOUBLE))
    path = posterior.sample((4000,))
    terms = posterior.log_prob(path) - prior.log_prob(path)
    assert_mean(terms, kl_divergence(posterior, prior))
    model = SDEPath(turning(), start, grid)
    torch.testing.assert_close(path_kl(posterior, model, path), path_kl(posterior, prior, path))


@pytest.mark.parametrize("order", ["gaussian guide", "gaussian model"])
def test_divergence_between_exact_and_euler_chains_of_one_process(order):
    grid = TimeGrid(double(0.0, 0.3, 0.5, 1.0))
    process = OrnsteinUhlenbeck(double(0.8), 0.9)
    exact, euler = (GaussianPath(process, None, grid, discretisation=d) for d in ("exact", "euler"))
    sde = SDEPath(process, exact.initial, grid)
    q, p = (exact, sde) if order == "gaussian guide" else (sde, exact)
    dense = kl_divergence(*((exact, euler) if order == "gaussian guide" else (euler, exact)))
    path = q.sample((3000,))
    assert_mean(path_kl(q, p, path), dense)
    assert_mean(q.log_prob(path) - p.log_prob(path), dense)


def test_divergence_from_a_nonlinear_sde_is_that_of_the_log_ratio():
    grid = TimeGrid(double(0.0, 1.0), max_step=0.05)
    start = dist.Normal(torch.zeros(1, dtype=DOUBLE), 0.5).to_event(1)
    well = SDEPath(SDE(lambda t, z: 4 * z * (1 - z**2), lambda t, z: 0.8 + 0 * z), start, grid)
    linear = GaussianPath(OrnsteinUhlenbeck(double(2.0), 0.8), start, grid, discretisation="euler")
    guide = linear.condition(None, 0.2, double([0.1], [1.0]))
    path = guide.sample((3000,))
    assert_mean(path_kl(guide, well, path) - (guide.log_prob(path) - well.log_prob(path)), 0.0)
    assert (path_kl(guide, well, path) > 0).all()


def test_float32_divergence_between_gaussian_and_sde_paths():
    grid = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.05)
    start = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    prior = GaussianPath(turning(torch.float32), start, grid, discretisation="euler")
    guide = prior.condition(None, 0.3, torch.zeros(2, 2))
    path = guide.sample((20,))
    model = SDEPath(turning(torch.float32), start, grid)
    torch.testing.assert_close(path_kl(guide, model, path), path_kl(guide, prior, path), rtol=1e-3, atol=1e-3)


def test_infinite_divergences_say_why():
    grid = TimeGrid(double(0.0, 0.5, 1.0))
    start = dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1)
    exact, euler = (GaussianPath(Matern32(1.0, 1.0), start, grid, discretisation=d) for d in ("exact", "euler"))
    langevin = SDEPath(UnderdampedLangevin(lambda x: -x), start, grid)
    for q, p in ((exact, euler), (euler, exact), (exact, langevin), (langevin, exact)):
        with pytest.raises(ValueError, match="do not have noise in the same directions, at dimension 0, time 0"):
            path_kl(q, p, q.sample())
        with pytest.raises(ValueError, match="site 'z': the KL divergence is infinite"):
            PathELBO("stl").loss(lambda p=p: pyro.sample("z", p), lambda q=q: pyro.sample("z", q))
    cosines = [GaussianPath(Cosine(p), start, grid) for p in (1.0, 2.0)]
    with pytest.raises(ValueError, match="move differently in a direction without noise, at dimension"):
        path_kl(*cosines, cosines[0].sample())
    with pytest.raises(ValueError, match="move differently in a direction without noise"):
        kl_divergence(*cosines)
    with pytest.raises(ValueError, match="one event shape"):
        kl_divergence(exact, GaussianPath(OrnsteinUhlenbeck(1.0, 1.0), None, grid))
    other = TimeGrid(double(0.0, 0.6, 1.0))
    for q, p in (
        (exact, GaussianPath(Matern32(1.0, 1.0), start, other)),
        (euler, SDEPath(Matern32(1.0, 1.0), start, other)),
        (SDEPath(Matern32(1.0, 1.0), start, other), euler),
    ):
        with pytest.raises(ValueError, match="different grids"):
            path_kl(q, p, q.sample())


def test_path_off_the_support_is_refused():
    law = GaussianPath(Cosine(2.0), None, TimeGrid(double(0.0, 0.5, 1.0)))
    path = law.sample()
    assert law.log_prob(path).isfinite()
    path[2, 1] += 0.1
    with pytest.raises(ValueError, match=r"off the support of its law: .* at dimension 1, time 0.5"):
        law.log_prob(path)


# ---------------------------------------------------------------- below the rounding of a path
def test_density_ratio_survives_noise_below_the_rounding_of_float32():
    # Given its derivatives the value moves by 4e-11 a step here and is rounded by 6e-8: a float32 path knows two of the
    # three directions, and with them two thirds of the log-ratio. Without the variance of rounding it is off by 2e7.
    times = 1e-4 * torch.arange(200.0)
    single, whole = (
        [GaussianPath(Matern52(scale, 1.0), None, TimeGrid(times.to(dtype))) for scale in (1.0, 1.1)]
        for dtype in (torch.float32, DOUBLE)
    )
    path = whole[0].sample((200,))
    ours = single[0].log_prob(path.float()) - single[1].log_prob(path.float())
    exact = whole[0].log_prob(path) - whole[1].log_prob(path)
    assert_mean(ours.double() - 2 / 3 * exact, 0.0, detects=4.0)


def test_rounding_is_not_counted_where_it_is_not_seen():
    law = GaussianPath(Matern52(1.0, 1.0), None, TimeGrid(TIMES.float()))
    assert law.kernels(law.sample())._visible_rounding() is None


# ---------------------------------------------------------------- conditioning
def dense_condition(law, h, r, y, seen=None):
    """Evidence, mean and covariance of the path of an unbatched law with one observation row per point."""
    n, o = y.shape
    seen = torch.ones_like(y, dtype=torch.bool) if seen is None else seen
    h = h.expand(n, o, h.shape[-1])
    return dense_posterior(dense_of(law), h, torch.zeros_like(y), r.expand(n, o, o), y, seen)


OBSERVED = {
    "number": (0.3, 0.09 * torch.eye(2, dtype=DOUBLE)),
    "outputs": (double(0.3, 0.5), torch.diag(double(0.09, 0.25))),
    "changing": (
        0.1 + 0.2 * torch.arange(10, dtype=DOUBLE).reshape(5, 2),
        torch.diag_embed((0.1 + 0.2 * torch.arange(10, dtype=DOUBLE).reshape(5, 2)) ** 2),
    ),
    "normal": (dist.Normal(torch.zeros(2, dtype=DOUBLE), 0.3).to_event(1), 0.09 * torch.eye(2, dtype=DOUBLE)),
    "full": (
        dist.MultivariateNormal(torch.zeros(2, dtype=DOUBLE), double([0.5, 0.2], [0.2, 0.3])),
        double([0.5, 0.2], [0.2, 0.3]),
    ),
}


@pytest.mark.parametrize("kind", OBSERVED)
@pytest.mark.parametrize("masked", ["nothing", "times", "entries"])
def test_posterior_and_evidence_are_those_of_the_dense_vector(kind, masked):
    noise, r = OBSERVED[kind]
    law = GaussianPath(Matern32(1.0, 1.0), None, TimeGrid(TIMES))
    h = torch.randn(2, 2, dtype=DOUBLE)
    y = torch.randn(5, 2, dtype=DOUBLE)
    seen = torch.ones(5, 2, dtype=torch.bool)
    mask = None
    if masked == "times":
        mask = torch.tensor([True, False, True, True, False])
        seen = mask.unsqueeze(-1).expand(5, 2)
    elif masked == "entries":
        mask = seen = torch.arange(10).reshape(5, 2) % 3 != 1
    expected = dense_condition(law, h, r, y, seen)
    y = torch.where(seen, y, double(math.nan))
    for method in ("sequential", "parallel"):
        options = {"mask": mask, "method": method}
        evidence = law.log_evidence(h, noise, y, **options)
        torch.testing.assert_close(evidence, expected.evidence, rtol=1e-10, atol=1e-10)
        posterior = law.condition(h, noise, y, **options)
        torch.testing.assert_close(posterior.mean.flatten(), expected.mean, rtol=1e-8, atol=1e-9)
        covariance = dense_of(posterior)[1]
        torch.testing.assert_close(covariance, expected.covariance, rtol=1e-8, atol=1e-9)
        smoothed = law.smooth(h, noise, y, **options)
        torch.testing.assert_close(smoothed.mean, posterior.mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(smoothed.covariance, posterior.marginals()[1], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(smoothed.lag_covariance[1], posterior.covariance(2, 1), rtol=1e-9, atol=1e-9)
        filtered = law.filter(h, noise, y, **options)
        torch.testing.assert_close(filtered.log_evidence, evidence)
        torch.testing.assert_close(filtered.mean[-1], smoothed.mean[-1], rtol=1e-9, atol=1e-9)


def test_parallel_and_sequential_forms_agree():
    law = GaussianPath(Matern52(1.0, 1.0), None, TimeGrid(torch.rand(40, dtype=DOUBLE).cumsum(0)))
    y = torch.randn(3, 40, 1, dtype=DOUBLE)
    results = [
        (law.log_evidence(None, 0.2, y, method=m), law.condition(None, 0.2, y, method=m).mean)
        for m in ("sequential", "parallel")
    ]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_mean_of_a_noise_law_is_an_offset():
    law = GaussianPath(Matern32(1.0, 1.0), None, TimeGrid(TIMES))
    shift = torch.randn(5, 1, dtype=DOUBLE)
    y = torch.randn(5, 1, dtype=DOUBLE)
    ours = law.condition(None, dist.Normal(shift, 0.3).to_event(1), y)
    torch.testing.assert_close(ours.mean, law.condition(None, 0.3, y - shift).mean)


def test_observations_stand_at_their_times_of_a_fine_ragged_grid():
    rows = double([0.0, 0.35, 1.1], [0.2, 0.9, 0.9])
    grid = TimeGrid(rows, max_step=0.1, start=-0.3, end=2.0)
    law = GaussianPath(Matern32(1.0, 1.0), None, grid)
    y, h = torch.randn(2, 3, 1, dtype=DOUBLE), torch.randn(2, 3, 1, 2, dtype=DOUBLE)
    noise = 0.1 + torch.rand(3, 1, dtype=DOUBLE)
    posterior = law.condition(h, noise, y)
    for b, n in ((0, 3), (1, 2)):
        alone = GaussianPath(Matern32(1.0, 1.0), None, TimeGrid(rows[b, :n]))
        dense = dense_condition(alone, h[b, :n], torch.diag_embed(noise[:n] ** 2), y[b, :n])
        torch.testing.assert_close(grid.observed(posterior.mean)[b, :n].flatten(), dense.mean, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(law.log_evidence(h, noise, y)[b], dense.evidence, rtol=1e-9, atol=1e-9)


def test_masked_observations_are_dropped_ones():
    mask = torch.tensor([True, False, True, True, False])
    y = torch.randn(5, 1, dtype=DOUBLE)
    whole = GaussianPath(Matern32(1.0, 1.0), None, TimeGrid(TIMES))
    part = GaussianPath(Matern32(1.0, 1.0), None, TimeGrid(TIMES[mask]))
    ours, theirs = whole.condition(None, 0.2, y, mask), part.condition(None, 0.2, y[mask])
    torch.testing.assert_close(ours.mean[mask], theirs.mean, rtol=0, atol=1e-10)
    evidence = whole.log_evidence(None, 0.2, y, mask), part.log_evidence(None, 0.2, y[mask])
    torch.testing.assert_close(*evidence, rtol=0, atol=1e-10)


def test_conditioning_twice_is_conditioning_at_once():
    law = GaussianPath(Matern32(1.0, 1.0), None, TimeGrid(TIMES))
    y = torch.randn(5, 1, dtype=DOUBLE)
    first = torch.tensor([True, True, False, False, False])
    twice = law.condition(None, 0.2, y, first).condition(None, 0.2, y, ~first)
    at_once = law.condition(None, 0.2, y)
    torch.testing.assert_close(twice.mean, at_once.mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(twice.covariance(1, 3), at_once.covariance(1, 3), rtol=1e-9, atol=1e-9)


def test_batches_of_observations_and_of_expanded_laws_broadcast():
    law = GaussianPath(Matern32(1.0, 1.0), None, TimeGrid(TIMES))
    y = torch.randn(3, 5, 1, dtype=DOUBLE)
    assert law.condition(None, 0.2, y).batch_shape == (3,)
    wide = law.expand((2, 3))
    assert wide.condition(None, 0.2, y[0]).batch_shape == (2, 3)
    assert wide.log_evidence(None, 0.2, y).shape == (2, 3)
    assert wide.filter(None, 0.2, y).mean.shape == (2, 3, 5, 2)
    assert wide.smooth(None, 0.2, y[0]).lag_covariance.shape == (2, 3, 4, 2, 2)
    assert wide.covariance(0, 1).shape == (2, 3, 2, 2)


def test_pseudo_observations_at_all_points_of_the_grid():
    law = GaussianPath(Matern32(1.0, 1.0), None, TimeGrid(TIMES, max_step=0.5))
    count = law.event_shape[0]
    y = torch.randn(count, 1, dtype=DOUBLE)
    observations = LinearObservations(y, double([1.0, 0.0]).unsqueeze(0), variance=double(0.04))
    ours = law.condition_points(observations)
    everywhere = GaussianPath(Matern32(1.0, 1.0), None, TimeGrid(law.grid.times))
    torch.testing.assert_close(ours.mean, everywhere.condition(None, 0.2, y).mean)


# ---------------------------------------------------------------- in models
BOUNDS = {
    "stl": PathELBO("stl"),
    "closed": PathELBO("closed"),
    "Trace": Trace_ELBO(),
    "MeanField": TraceMeanField_ELBO(),
}


@pytest.mark.parametrize("elbo", BOUNDS.values(), ids=BOUNDS)
def test_prior_and_posterior_under_a_plate_give_the_exact_bound(elbo):
    grid = TimeGrid(double([0.0, 0.3, 0.7], [0.1, 0.2, 0.2]))
    prior = GaussianPath(Matern32(1.0, 1.0), None, grid)
    y = torch.randn(2, 3, 1, dtype=DOUBLE)
    evidence = prior.log_evidence(None, 0.4, y).sum().item()

    def model():
        with pyro.plate("series", 2):
            z = pyro.sample("z", prior)
            law = dist.Normal(grid.observed(z)[..., :1], 0.4)
            pyro.sample("y", law.mask(grid.mask.unsqueeze(-1)).to_event(2), obs=y)

    def guide():
        with pyro.plate("series", 2):
            pyro.sample("z", prior.condition(None, 0.4, y))

    values = torch.tensor([-elbo.loss(model, guide) for _ in range(100)])
    if isinstance(elbo, TraceMeanField_ELBO) or getattr(elbo, "kl", "") == "closed":
        assert_mean(values, evidence)
    else:
        assert (values - evidence).abs().max() < 1e-9


def test_mean_field_bound_uses_the_exact_divergence():
    q, p = pair()
    values = [TraceMeanField_ELBO().loss(lambda: pyro.sample("z", p), lambda: pyro.sample("z", q)) for _ in range(2)]
    assert values[0] == values[1] == pytest.approx(kl_divergence(q, p).item())


def test_sampled_hyper_parameters_are_read_once():
    grid = TimeGrid(double(0.0, 1.0, 2.0))

    class Model(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.process = Matern32(pyro.nn.PyroSample(dist.LogNormal(double(0.0), 1.0)), 1.0)

        def forward(self):
            return pyro.sample("z", GaussianPath(self.process, None, grid))

    trace = poutine.trace(Model()).get_trace()
    trace.compute_log_prob()
    lengthscale = trace.nodes["process.lengthscale"]["value"]
    expected = GaussianPath(Matern32(lengthscale, 1.0), None, grid).log_prob(trace.nodes["z"]["value"])
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], expected)


# ---------------------------------------------------------------- bad input
def test_bad_laws_say_what_is_wrong():
    grid = TimeGrid(TIMES)
    with pytest.raises(
        ValueError, match="`initial` is None, which stands for the stationary law: IntegratedWiener has no"
    ):
        GaussianPath(IntegratedWiener(1, 1.0), None, grid)
    with pytest.raises(TypeError, match="`sde` must be a LinearSDE, received SDE"):
        GaussianPath(SDE(lambda t, z: -z, lambda t, z: 1 + 0 * z), None, grid)
    with pytest.raises(TypeError, match="`grid` must be a TimeGrid"):
        GaussianPath(Matern32(1.0, 1.0), None, TIMES)
    with pytest.raises(ValueError, match='`discretisation` must be "exact" or "euler"'):
        GaussianPath(Matern32(1.0, 1.0), None, grid, discretisation="milstein")
    with pytest.raises(ValueError, match="`initial` must be a law of the 2 states"):
        GaussianPath(Matern32(1.0, 1.0), dist.Normal(torch.zeros(3), 1.0).to_event(1), grid)
    with pytest.raises(ValueError, match=r"`initial` must have event shape \(D,\)"):
        GaussianPath(Matern32(1.0, 1.0), dist.Normal(torch.zeros(2), 1.0), grid)
    with pytest.raises(ValueError, match="`initial` must be a Gaussian law"):
        GaussianPath(Matern32(1.0, 1.0), dist.Laplace(torch.zeros(2), 1.0).to_event(1), grid)
    with pytest.raises(
        ValueError, match=r"batch shapes must broadcast .* `system` \(3,\), `initial` \(3,\), `grid` \(2,\)"
    ):
        GaussianPath(Matern32(torch.ones(3), 1.0), None, TimeGrid(torch.tensor([[0.0, 1.0], [0.0, 2.0]])))
    with pytest.raises(TypeError, match="`chain` must be a GaussianChain"):
        GaussianPath.from_chain(grid)
    with pytest.raises(ValueError, match="`grid` must have the 5 points"):
        GaussianPath.from_chain(GAUSSIAN_LAWS["chain"](DOUBLE).chain, TimeGrid(TIMES[:3]))
    with pytest.raises(ValueError, match=r"`path` must have shape \(\.\.\., 5, 2\)"):
        GaussianPath(Matern32(1.0, 1.0), None, grid).kernels(torch.zeros(4, 2))
    with pytest.raises(IndexError, match="`j` must be a point"):
        GaussianPath(Matern32(1.0, 1.0), None, grid).covariance(0, 5)


def test_exploding_path_names_its_site():
    chain = GaussianChain(
        double(1.0), double([1.0]), double([[1e200]]).expand(3, 1, 1), double([[1.0]]).expand(3, 1, 1)
    )
    with pytest.raises(ValueError, match="GaussianPath at site 'z': the path is not finite"):
        GaussianPath.from_chain(chain).named("z").sample()


def test_bad_observations_say_what_is_wrong():
    law = GaussianPath(Matern32(1.0, 1.0), None, TimeGrid(TIMES))
    y = torch.zeros(5, 1, dtype=DOUBLE)
    with pytest.raises(
        ValueError, match=r"`observation_matrix` must broadcast to \(\*batch, 5, O, 2\).*received \(1, 3\)"
    ):
        law.condition(torch.zeros(1, 3), 0.1, y)
    with pytest.raises(ValueError, match=r"`observation_matrix` must broadcast to \(\*batch, 5, 1, 2\)"):
        law.condition(torch.zeros(4, 1, 2), 0.1, y)
    with pytest.raises(ValueError, match="`observation_matrix` is None, but this law was made from a chain"):
        GAUSSIAN_LAWS["chain"](DOUBLE).condition(None, 0.1, y)
    with pytest.raises(ValueError, match=r"`y` must have shape \(\.\.\., 5, 1\)"):
        law.condition(None, 0.1, y[:0])
    with pytest.raises(ValueError, match="`y` must be finite where it is observed; it is not at observation 2"):
        law.condition(None, 0.1, torch.where(torch.arange(5).unsqueeze(-1) == 2, math.nan, y))
    with pytest.raises(ValueError, match=r"`mask` must be a bool tensor of shape \(\*batch, 5\)"):
        law.condition(None, 0.1, y, torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="`mask` must be a bool tensor"):
        law.condition(None, 0.1, y, torch.ones(5))
    with pytest.raises(ValueError, match=r"`noise` must broadcast to \(\*batch, 5, 1\)"):
        law.condition(None, torch.ones(4, 1), y)
    with pytest.raises(ValueError, match="`noise` must be standard deviations"):
        law.condition(None, dist.Laplace(torch.zeros(1), 1.0).to_event(1), y)
    with pytest.raises(ValueError, match="`noise` must be standard deviations .* received Normal of event shape"):
        law.condition(None, dist.Normal(torch.zeros(1), 1.0), y)
    with pytest.raises(ValueError, match="`noise` must have positive standard deviations.* at observation 3"):
        law.condition(None, torch.where(torch.arange(5).unsqueeze(-1) == 3, 0.0, y + 1), y)
    singular = dist.MultivariateNormal(torch.zeros(2), scale_tril=torch.tensor([[1.0, 0.0], [1.0, 1e-9]]))
    with pytest.raises(ValueError, match="positive definite covariance.* at observation 0"):
        law.condition(torch.eye(2), singular, y.expand(5, 2))
    with pytest.raises(ValueError, match="batch shapes must broadcast"):
        law.condition(torch.zeros(3, 1, 1, 2), torch.ones(2, 1, 1), y)
