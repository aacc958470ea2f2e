"""The marginal law of observations of a Gaussian path, against dense Gaussian processes, and in inference."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch.distributions import MultivariateNormal

from pyro_sde import GaussianPath, LinearGaussianSSM, TimeGrid
from pyro_sde.ops import GaussianChain
from pyro_sde.sde import Coregionalisation, IntegratedWiener, Matern12, Matern32, Matern52, OrnsteinUhlenbeck
from pyro_sde.testing import assert_mean
from tests.ops.dense import matern_kernel

DOUBLE = torch.float64
MATERN = {1: Matern12, 2: Matern32, 3: Matern52}
TIMES = torch.tensor([0.0, 0.3, 0.35, 1.1, 4.0], dtype=DOUBLE)


def dense(order, times, noise=0.1, scale=1.0):
    times = times.double()
    covariance = matern_kernel(order, (times.unsqueeze(-1) - times).abs(), scale)
    return MultivariateNormal(
        torch.zeros(len(times), dtype=DOUBLE), covariance + noise**2 * torch.eye(len(times), dtype=DOUBLE)
    )


def law(times=TIMES, order=2, noise=0.1, **options):
    return LinearGaussianSSM(MATERN[order](1.0, 1.0), None, noise, TimeGrid(times), **options)


# ---------------------------------------------------------------- evidence
@pytest.mark.parametrize("dt", [0.001, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_evidence_of_a_thousand_points_is_that_of_the_dense_process(order, dt):
    for dtype, tolerance in ((torch.float32, 1e-2), (DOUBLE, 1e-6)):
        times = dt * torch.arange(1000, dtype=dtype)
        process = dense(order, times)
        y = process.sample().to(dtype)
        ours = law(times, order).log_prob(y.unsqueeze(-1))
        assert ours.dtype == dtype
        assert abs(ours.item() - process.log_prob(y.double()).item()) < tolerance


def test_evidence_on_irregular_times_of_a_batch_is_that_of_the_dense_processes():
    times = torch.rand(3, 20, dtype=DOUBLE).cumsum(-1)
    y = torch.randn(4, 3, 20, 1, dtype=DOUBLE)
    ours = law(times, 3).log_prob(y)
    expected = torch.stack([dense(3, times[b]).log_prob(y[:, b, :, 0]) for b in range(3)], -1)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-8)


def test_gradient_of_the_evidence_is_that_of_the_dense_process():
    y = torch.randn(5, 1, dtype=DOUBLE)
    scale, noise = (torch.tensor(v, dtype=DOUBLE, requires_grad=True) for v in (0.8, 0.3))
    ours = LinearGaussianSSM(Matern32(scale, 1.0), None, noise, TimeGrid(TIMES)).log_prob(y)
    theirs = dense(2, TIMES, noise, scale).log_prob(y.squeeze(-1))
    for a, b in zip(*(torch.autograd.grad(v, (scale, noise)) for v in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_noise_of_masked_entries_may_be_anything():
    y = torch.randn(5, 1, dtype=DOUBLE)
    mask = torch.tensor([True, True, False, True, True])
    noise = torch.tensor([0.1, 0.1, 0.0, 0.1, 0.1], dtype=DOUBLE).unsqueeze(-1)
    torch.testing.assert_close(law(noise=noise, mask=mask).log_prob(y), law(mask=mask).log_prob(y))


def test_outputs_may_differ_from_series_to_series():
    mixing = torch.randn(4, 3, 1, dtype=DOUBLE)  # three outputs of one process, in four series
    y = torch.randn(4, 5, 3, dtype=DOUBLE)
    whole = LinearGaussianSSM(Coregionalisation([Matern32(1.0, 1.0)], mixing), None, 0.3, TimeGrid(TIMES))
    assert whole.batch_shape == (4,)
    for b in range(4):
        matrix = torch.cat([mixing[b], 0 * mixing[b]], -1)
        alone = LinearGaussianSSM(Matern32(1.0, 1.0), matrix, 0.3, TimeGrid(TIMES)).log_prob(y[b])
        torch.testing.assert_close(whole.log_prob(y)[b], alone)


@pytest.mark.parametrize("kind", ["times", "entries", "ragged"])
def test_masked_observations_are_dropped_ones(kind):
    y = torch.randn(5, 2, dtype=DOUBLE)
    h = torch.randn(2, 2, dtype=DOUBLE)
    grid, process = TimeGrid(TIMES), Matern32(1.0, 1.0)
    keep = torch.tensor([True, False, True, True, False])
    if kind == "entries":
        mask = torch.stack([keep, torch.zeros(5, dtype=torch.bool)], -1)
        ours = LinearGaussianSSM(process, h, 0.3, grid, mask=mask)
        theirs = LinearGaussianSSM(process, h[:1], 0.3, TimeGrid(TIMES[keep])).log_prob(y[keep, :1])
    elif kind == "times":
        mask = keep.unsqueeze(-1).expand(5, 2)
        ours = LinearGaussianSSM(process, h, 0.3, grid, mask=keep)
        theirs = LinearGaussianSSM(process, h, 0.3, TimeGrid(TIMES[keep])).log_prob(y[keep])
    else:
        mask = torch.tensor([True, True, True, False, False]).unsqueeze(-1).expand(5, 2)
        ours = LinearGaussianSSM(process, h, 0.3, TimeGrid(TIMES, mask=mask[:, 0]))
        theirs = LinearGaussianSSM(process, h, 0.3, TimeGrid(TIMES[:3])).log_prob(y[:3])
    torch.testing.assert_close(ours.log_prob(torch.where(mask, y, math.nan)), theirs, rtol=0, atol=1e-10)


def test_mask_may_differ_from_series_to_series():
    y = torch.randn(3, 5, 1, dtype=DOUBLE)
    mask = torch.arange(15).reshape(3, 5) % 4 != 1
    whole = law(mask=mask)
    assert whole.batch_shape == (3,)
    for b in range(3):
        torch.testing.assert_close(whole.log_prob(y)[b], law(TIMES[mask[b]]).log_prob(y[b, mask[b]]))


def test_mask_of_a_square_is_read_by_its_number_of_axes():
    times, both = TIMES[:2], torch.eye(2, dtype=DOUBLE)
    mask = torch.tensor([[True, True], [False, True]])
    y = torch.randn(2, 2, dtype=DOUBLE)
    process = Matern32(1.0, 1.0)
    entries = LinearGaussianSSM(process, both, 0.3, TimeGrid(times), mask=mask)
    assert entries.batch_shape == ()
    assert entries.log_prob(y) == entries.log_prob(y + torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    assert entries.log_prob(y) != entries.log_prob(y + torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    for series in (Matern32(torch.ones(2, dtype=DOUBLE), 1.0), process):  # one mask of times for each of two series
        grid = TimeGrid(times) if series is not process else TimeGrid(times.expand(2, 2))
        whole = LinearGaussianSSM(series, both, 0.3, grid, mask=mask)
        assert whole.batch_shape == (2,)
        alone = LinearGaussianSSM(process, both, 0.3, TimeGrid(times[1:])).log_prob(y[1:])
        torch.testing.assert_close(whole.log_prob(y.expand(2, 2, 2))[1], alone)


def test_offset_of_the_noise_is_a_mean():
    y, shift = torch.randn(2, 5, 1, dtype=DOUBLE)
    ours = law(noise=dist.Normal(shift, 0.1).to_event(1))
    torch.testing.assert_close(ours.log_prob(y), law().log_prob(y - shift))
    torch.testing.assert_close(ours.mean, shift)


# ---------------------------------------------------------------- samples and moments
NOISE = {
    "number": 0.4,
    "normal": dist.Normal(torch.tensor([0.5, -0.5], dtype=DOUBLE), torch.tensor([0.2, 0.6], dtype=DOUBLE)).to_event(1),
    "full": dist.MultivariateNormal(torch.zeros(2, dtype=DOUBLE), torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=DOUBLE)),
}


@pytest.mark.parametrize("kind", NOISE)
def test_samples_have_the_moments_and_the_density_of_the_law(kind):
    h = torch.tensor([[1.0, 0.5], [0.0, -1.0]], dtype=DOUBLE)
    grid = TimeGrid(torch.tensor([[0.0, 0.5, 2.0], [0.0, 1.0, 1.0]], dtype=DOUBLE), max_step=0.4)
    ssm = LinearGaussianSSM(Matern32(1.0, 1.0), h, NOISE[kind], grid)
    y = ssm.sample((4000,))
    assert y.shape == (4000, 2, 3, 2)
    assert_mean(y, ssm.mean, detects=0.3)
    assert_mean((y - ssm.mean).square(), ssm.variance, detects=0.6)
    y = y.clone().requires_grad_()
    (score,) = torch.autograd.grad(ssm.log_prob(y).sum(), y)
    value, score = (t[:, 0].detach().flatten(-2) for t in (y, score))  # the series without padding
    stein = (value - ssm.mean[0].flatten()).unsqueeze(-1) * score.unsqueeze(-2)
    assert_mean(stein, -torch.eye(6, dtype=DOUBLE))


def test_samples_are_reparameterised():
    scale = torch.tensor(1.0, dtype=DOUBLE, requires_grad=True)
    ssm = LinearGaussianSSM(Matern32(scale, 1.0), None, 0.1, TimeGrid(TIMES))
    (gradient,) = torch.autograd.grad(ssm.rsample().square().sum(), scale)
    assert gradient.isfinite()
    assert gradient != 0


def test_law_expands_and_copies():
    ssm = law(TIMES.expand(3, 5))
    y = ssm.sample()
    wide = ssm.expand((4, 3))
    assert wide.sample((2,)).shape == (2, 4, 3, 5, 1)
    assert wide.log_prob(y).shape == (4, 3)
    assert wide.mean.shape == wide.variance.shape == (4, 3, 5, 1)
    for other in (copy.deepcopy(ssm), pickle.loads(pickle.dumps(ssm))):
        torch.testing.assert_close(other.log_prob(y), ssm.log_prob(y))
    assert repr(ssm) == "LinearGaussianSSM(batch_shape=(3,), event_shape=(5, 1))"
    with pytest.raises(ValueError, match="cannot expand a law of batch shape"):
        wide.expand((3,))


# ---------------------------------------------------------------- posterior
def test_posterior_is_that_of_the_path():
    y = torch.randn(5, 1, dtype=DOUBLE)
    ssm = law()
    expected = GaussianPath(Matern32(1.0, 1.0), None, TimeGrid(TIMES)).condition(None, 0.1, y)
    posterior = ssm.posterior(y)
    torch.testing.assert_close(posterior.mean, expected.mean)
    torch.testing.assert_close(ssm.smooth(y).mean, expected.mean)
    torch.testing.assert_close(ssm.smooth(y).covariance, expected.marginals()[1])
    filtered = ssm.filter(y)
    torch.testing.assert_close(filtered.mean[-1], expected.mean[-1])
    torch.testing.assert_close(filtered.log_evidence, ssm.log_prob(y))
    draws = ssm.rsample_posterior(y, (3000,))
    assert_mean(draws, expected.mean)
    assert_mean((draws - expected.mean).square(), expected.variance)


@pytest.mark.parametrize("count", [1, 3])
def test_conditioning_on_a_prefix_completes_the_evidence(count):
    times = torch.tensor([[0.0, 0.3, 0.35, 1.1], [0.1, 0.5, 0.9, 0.9]], dtype=DOUBLE)
    noise = 0.1 + torch.rand(4, 1, dtype=DOUBLE)
    mask = torch.tensor([True, False, True, True])
    ssm = law(times, noise=noise, mask=mask)
    y = torch.randn(2, 4, 1, dtype=DOUBLE)
    prefix = law(times[:, :count], noise=noise[:count], mask=mask[:count])
    rest = ssm.prefix_condition(y[:, :count])
    assert rest.event_shape == (4 - count, 1)
    total = prefix.log_prob(y[:, :count]) + rest.log_prob(y[:, count:])
    torch.testing.assert_close(total, ssm.log_prob(y), rtol=1e-9, atol=1e-9)
    assert rest.sample().shape == (2, 4 - count, 1)


@pytest.mark.parametrize("ahead", [0.0, 0.7])
def test_forecast_is_that_of_the_dense_process(ahead):
    later = torch.tensor([4.0 + ahead, 5.0, 7.5], dtype=DOUBLE)
    y, new = torch.randn(5, 1, dtype=DOUBLE), torch.randn(3, 1, dtype=DOUBLE)
    forecast = law().forecast(later, y)
    both = dense(2, torch.cat([TIMES, later]))
    expected = both.log_prob(torch.cat([y, new]).squeeze(-1)) - dense(2, TIMES).log_prob(y.squeeze(-1))
    torch.testing.assert_close(forecast.log_prob(new), expected, rtol=1e-9, atol=1e-9)
    gain = torch.linalg.solve(both.covariance_matrix[:5, :5], both.covariance_matrix[:5, 5:]).mT
    torch.testing.assert_close(forecast.mean, gain @ y, rtol=1e-9, atol=1e-9)
    covariance = both.covariance_matrix[5:, 5:] - gain @ both.covariance_matrix[:5, 5:]
    torch.testing.assert_close(forecast.variance.squeeze(-1), covariance.diagonal(), rtol=1e-9, atol=1e-9)


def test_forecast_of_a_ragged_batch_starts_at_the_end_of_each_series():
    times = torch.tensor([[0.0, 0.3, 2.0], [0.1, 0.5, 0.5]], dtype=DOUBLE)
    y = torch.randn(2, 3, 1, dtype=DOUBLE)
    later = torch.tensor([2.5, 3.0], dtype=DOUBLE)
    whole = law(times).forecast(later, y)
    alone = law(times[1, :2]).forecast(later, y[1, :2])
    torch.testing.assert_close(whole.mean[1], alone.mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(whole.variance[1], alone.variance, rtol=1e-9, atol=1e-9)


def test_forecast_takes_matrix_and_noise_of_its_times():
    noise = 0.1 + torch.rand(5, 1, dtype=DOUBLE)
    y = torch.randn(5, 1, dtype=DOUBLE)
    later = torch.tensor([5.0, 6.0], dtype=DOUBLE)
    with pytest.raises(ValueError, match="`noise` changes with time: give `noise` for the times to forecast"):
        law(noise=noise).forecast(later, y)
    narrow, wide = (law(noise=noise).forecast(later, y, noise=s).variance for s in (0.1, 0.5))
    torch.testing.assert_close(wide - narrow, torch.full((2, 1), 0.24, dtype=DOUBLE))
    matrix = 2 * torch.tensor([[1.0, 0.0]], dtype=DOUBLE)
    doubled = law().forecast(later, y, observation_matrix=matrix)
    torch.testing.assert_close(doubled.mean, 2 * law().forecast(later, y).mean)


def test_forecast_in_float32_is_that_of_float64():
    times = 0.001 * torch.arange(300.0)
    later = 0.3 + 0.01 * torch.arange(3.0)
    y = law(times, 3).sample()
    ours, whole = law(times, 3).forecast(later, y), law(times.double(), 3).forecast(later.double(), y.double())
    assert ours.mean.dtype == torch.float32
    torch.testing.assert_close(ours.mean.double(), whole.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.log_prob(y[:3]).double(), whole.log_prob(y[:3].double()), rtol=1e-5, atol=1e-5)
    now = ours.path.initial.moments[1]  # not rounded on its way into the forecast
    torch.testing.assert_close(now, whole.path.initial.moments[1], rtol=1e-9, atol=0)


# ---------------------------------------------------------------- what a process may be
def test_chain_and_path_are_processes_too():
    y = torch.randn(5, 1, dtype=DOUBLE)
    path = GaussianPath(Matern32(1.0, 1.0), None, TimeGrid(TIMES))
    torch.testing.assert_close(LinearGaussianSSM(path, None, 0.1).log_prob(y), law().log_prob(y))
    h = torch.tensor([[1.0, 0.0]], dtype=DOUBLE)
    for grid in (None, TimeGrid(TIMES)):
        ssm = LinearGaussianSSM(path.chain, h, 0.1, grid)
        torch.testing.assert_close(ssm.log_prob(y), law().log_prob(y))
        with pytest.raises(ValueError, match="knows no dynamics beyond its grid"):
            ssm.forecast(torch.tensor([9.0]), y)
    start = dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1)
    walk = LinearGaussianSSM(IntegratedWiener(1, 1.0), None, 0.1, TimeGrid(TIMES), initial=start)
    assert walk.log_prob(y).isfinite()


def test_density_is_that_of_pyro_after_its_transition_before_the_first_observation():
    a = torch.tensor([[0.9, 0.2], [0.0, 0.8]], dtype=DOUBLE)
    q = torch.tensor([[0.3, 0.1], [0.1, 0.4]], dtype=DOUBLE)
    h = torch.tensor([[1.0, 0.5]], dtype=DOUBLE)
    m0, p0 = torch.tensor([0.5, -0.5], dtype=DOUBLE), torch.eye(2, dtype=DOUBLE)
    hmm = dist.GaussianHMM(
        dist.MultivariateNormal(m0, p0),
        a.mT,
        dist.MultivariateNormal(torch.zeros(2, dtype=DOUBLE), q),
        h.mT,
        dist.Normal(torch.zeros(1, dtype=DOUBLE), 0.3).to_event(1),
        duration=6,
    )
    chain = GaussianChain(a @ m0, a @ p0 @ a.mT + q, a.expand(5, 2, 2), q.expand(5, 2, 2))
    ssm = LinearGaussianSSM(chain, h, 0.3)
    y = ssm.sample((3,))
    torch.testing.assert_close(ssm.log_prob(y), hmm.log_prob(y), rtol=1e-6, atol=1e-6)
    final, ours = hmm.filter(y), ssm.filter(y)
    torch.testing.assert_close(ours.mean[..., -1, :], final.mean, rtol=1e-6, atol=1e-6)
    rest, theirs = ssm.prefix_condition(y[..., :4, :]), hmm.prefix_condition(y[..., :4, :])
    torch.testing.assert_close(rest.log_prob(y[..., 4:, :]), theirs.log_prob(y[..., 4:, :]), rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------- inference over hyper-parameters
def ou_data(count=40, batch=()):
    """Observations of OU(1, 1) with noise 0.2."""
    times = 0.5 * torch.arange(count, dtype=DOUBLE)
    truth = LinearGaussianSSM(OrnsteinUhlenbeck(torch.ones(1, dtype=DOUBLE), 1.0), None, 0.2, TimeGrid(times))
    return TimeGrid(times), truth.sample(torch.Size(batch))


def ou_model(grid, y):
    rate = pyro.sample("rate", dist.LogNormal(torch.zeros((), dtype=DOUBLE), 0.5))
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros((), dtype=DOUBLE), 0.5))
    process = OrnsteinUhlenbeck(rate.unsqueeze(-1), scale.unsqueeze(-1))
    pyro.sample("y", LinearGaussianSSM(process, None, 0.2, grid), obs=y)


def grid_posterior(grid, y):
    """Posterior means of log rate and log scale by summation over a fine grid."""
    points = torch.linspace(-2.0, 2.0, 81, dtype=DOUBLE)
    rate, scale = torch.meshgrid(points, points, indexing="ij")
    process = OrnsteinUhlenbeck(rate.exp().unsqueeze(-1), scale.exp().unsqueeze(-1))
    log_density = LinearGaussianSSM(process, None, 0.2, grid).log_prob(y) - (rate**2 + scale**2) / (2 * 0.25)
    weight = (log_density - log_density.logsumexp((0, 1))).exp()
    mean = torch.stack([(weight * v).sum() for v in (rate, scale)])
    deviation = torch.stack([(weight * (v - m) ** 2).sum().sqrt() for v, m in zip((rate, scale), mean, strict=True)])
    return mean, deviation


def test_nuts_finds_the_posterior_of_hyper_parameters():
    grid, y = ou_data()
    mean, deviation = grid_posterior(grid, y)
    mcmc = MCMC(NUTS(ou_model, max_tree_depth=4), num_samples=150, warmup_steps=80, disable_progbar=True)
    mcmc.run(grid, y)
    draws = torch.stack([mcmc.get_samples()[name].log() for name in ("rate", "scale")])
    # 150 draws, correlated: their mean is within a standard deviation / 2 at more than four standard errors
    assert ((draws.mean(-1) - mean).abs() < 0.5 * deviation).all()
    assert ((draws.std(-1) / deviation).log().abs() < 0.4).all()


@pytest.mark.parametrize("make", [AutoNormal, AutoDelta])
def test_svi_finds_the_posterior_of_hyper_parameters(make):
    grid, y = ou_data()
    mean, deviation = grid_posterior(grid, y)
    guide = make(ou_model)
    svi = SVI(ou_model, guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.98}), Trace_ELBO())
    for _ in range(200):
        svi.step(grid, y)
    median = guide.median(grid, y)
    found = torch.stack([median["rate"], median["scale"]]).log()
    # the mode of a log-normal density lies half a variance below its median
    assert ((found - mean).abs() < 0.8 * deviation).all()


def test_series_under_a_plate_have_parameters_of_their_own():
    grid, y = ou_data(10, (3,))

    def model():
        with pyro.plate("series", 3):
            rate = pyro.sample("rate", dist.LogNormal(torch.zeros((), dtype=DOUBLE), 0.5))
            process = OrnsteinUhlenbeck(rate.unsqueeze(-1), 1.0)
            pyro.sample("y", LinearGaussianSSM(process, None, 0.2, grid), obs=y)

    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["y"]["log_prob"].shape == (3,)
    rate = trace.nodes["rate"]["value"]
    for b in range(3):
        process = OrnsteinUhlenbeck(rate[b].unsqueeze(-1), 1.0)
        alone = LinearGaussianSSM(process, None, 0.2, grid).log_prob(y[b])
        torch.testing.assert_close(trace.nodes["y"]["log_prob"][b], alone)
    drawn = Predictive(poutine.uncondition(model), num_samples=4)()
    assert drawn["y"].shape == (4, 3, 10, 1)


# ---------------------------------------------------------------- bad input
def test_bad_arguments_say_what_is_wrong():
    grid, process = TimeGrid(TIMES), Matern32(1.0, 1.0)
    y = torch.zeros(5, 1, dtype=DOUBLE)
    path = GaussianPath(process, None, grid)
    with pytest.raises(ValueError, match="stands for the stationary law: IntegratedWiener has no"):
        LinearGaussianSSM(IntegratedWiener(1, 1.0), None, 0.1, grid)
    with pytest.raises(ValueError, match="`grid` is missing"):
        LinearGaussianSSM(process, None, 0.1)
    with pytest.raises(TypeError, match="`process` must be a LinearSDE, GaussianPath or GaussianChain, received float"):
        LinearGaussianSSM(1.0, None, 0.1, grid)
    for given in ({"grid": grid}, {"initial": dist.Normal(torch.zeros(2), 1.0).to_event(1)}):
        with pytest.raises(ValueError, match="a GaussianPath has its own initial law"):
            LinearGaussianSSM(path, None, 0.1, **given)
    with pytest.raises(ValueError, match="`observation_matrix` must broadcast"):
        LinearGaussianSSM(process, torch.zeros(1, 3), 0.1, grid)
    with pytest.raises(ValueError, match="`mask` must be a bool tensor"):
        law(mask=torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="batch shapes must broadcast .* `process`"):
        LinearGaussianSSM(Matern32(torch.ones(3), 1.0), torch.zeros(2, 1, 1, 2), 0.1, grid)
    with pytest.raises(ValueError, match=r"`y` must have shape \(\.\.\., 5, 1\).*received \(0, 1\)"):
        law().log_prob(y[:0])
    with pytest.raises(ValueError, match="`times` must have shape"):
        law(TIMES[:0])
    with pytest.raises(ValueError, match="`noise` must have positive standard deviations"):
        law(noise=0.0).log_prob(y)
    with pytest.raises(ValueError, match="`y` must be finite where it is observed; it is not at observation 0"):
        law().log_prob(y * math.nan)
    for count in (0, 5):
        with pytest.raises(ValueError, match="`y` must hold the first n observations, 1 <= n < 5"):
            law().prefix_condition(y[:count])
    with pytest.raises(ValueError, match="`times` must not lie before the end of the grid, 4.0"):
        law().forecast(torch.tensor([3.0, 5.0]), y)


def test_bad_values_become_nan_where_validation_is_off():
    ssm = law(validate_args=False)
    assert ssm.log_prob(torch.full((5, 1), math.nan, dtype=DOUBLE)).isnan()
    assert ssm.mask(torch.tensor(False)).log_prob(torch.zeros(5, 1, dtype=DOUBLE)) == 0
