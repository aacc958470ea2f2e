"""Bias, variation and gradient noise of known problems: a linear model whose bounds have closed forms."""

import logging
import math
import re
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.params.param_store import ParamStoreDict

from pyro_sde.diagnostics._discretisation_fit import fit_steps, largest_step
from pyro_sde.diagnostics._discretisation_runs import Call, Pair, SharedNoise, grids_in, refined
from pyro_sde.diagnostics.discretisation import Estimate, discretisation, quadratic_variation
from pyro_sde.distributions.gaussian_path import GaussianPath
from pyro_sde.distributions.sde_path import SDEPath
from pyro_sde.infer.auto_gaussian import AutoGaussianMarkov
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.sde.base import SDE
from pyro_sde.sde.independent import OrnsteinUhlenbeck
from pyro_sde.sde.matern import Matern32
from pyro_sde.testing.statistics import assert_mean
from tests.infer.linear_problem import RATE, SCALE, TIMES, VALUES, Affine, LinearProblem

EVIDENCE = -4.082420621  # exact, of the process in continuous time
VARIANCE = 0.1
SURE = 4.27  # standard errors at the failure rate of pyro_sde.testing


@pytest.fixture(autouse=True)
def _double_precision_and_an_empty_store():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    with pyro.get_param_store().scope():
        yield
    torch.set_default_dtype(before)


def line_of(max_step, start=0.0):
    return TimeGrid(torch.tensor(TIMES), max_step=max_step, start=start)


def continuous_guide(grid):
    """Control rows, mean and deviation of the posterior SDE of the continuous process, by closed backward steps."""
    index = dict(zip(grid.observed_index.tolist(), VALUES, strict=True))
    steps = grid.steps.tolist()
    information = shift = 0.0
    rows = torch.zeros(len(steps), 2)
    for k in range(len(steps), -1, -1):
        if k < len(steps):
            decay = math.exp(-RATE * steps[k])
            spread = 1 + SCALE**2 * (1 - decay**2) / (2 * RATE) * information
            information, shift = decay**2 * information / spread, decay * shift / spread
            rows[k] = torch.tensor([SCALE * shift, -SCALE * information])
        if k in index:
            information, shift = information + 1 / VARIANCE, shift + index[k] / VARIANCE
    precision = 2 * RATE / SCALE**2 + information
    return rows, torch.tensor([shift / precision]), torch.tensor([precision**-0.5])


PROCESS = OrnsteinUhlenbeck(RATE, SCALE)


def stationary():
    return dist.Normal(torch.zeros(1), SCALE / math.sqrt(2 * RATE)).to_event(1)


def observe(grid, z):
    y = torch.tensor(VALUES).to(z.dtype).unsqueeze(-1)
    pyro.sample("y", dist.Normal(grid.observed(z), math.sqrt(VARIANCE)).to_event(2), obs=y)


def model(grid):
    observe(grid, pyro.sample("z", SDEPath(PROCESS, stationary(), grid)))


def guide(grid):
    rows, loc, scale = continuous_guide(grid)
    shift = pyro.param("shift", torch.zeros(2))
    initial = dist.Normal(loc, scale).to_event(1)
    pyro.sample("z", SDEPath(PROCESS.controlled(Affine()), initial, grid, inputs=rows + shift))


def exact_guide(grid):
    """The posterior of the Euler chain itself; its parameters do not depend on the grid."""
    reference = GaussianPath(PROCESS, None, grid, discretisation="euler")
    sites = pyro.param("sites", torch.tensor(VALUES).unsqueeze(-1))
    width = pyro.param("width", torch.full((4, 1), math.sqrt(VARIANCE)), dist.constraints.positive)
    pyro.sample("z", reference.condition(None, width, sites))


def exact_bound(max_step):
    return LinearProblem(max_step, noise=math.sqrt(VARIANCE)).exact_elbo(*continuous_guide(line_of(max_step)))


# --- the bound --------------------------------------------------------------------------


@pytest.mark.parametrize("kl", ["full", "closed", "stl"])
def test_extrapolated_bound_of_the_optimal_drift_is_the_exact_evidence(kl):
    report = discretisation(model, guide, line_of(0.0125), num_particles=3000, kl=kl)
    assert report.settles
    value, error = report.extrapolated
    assert abs(value - EVIDENCE) < SURE * error
    assert error < 0.06
    # -0.0717 at h = 0.0125; the curvature that a line neglects is below 0.004
    assert abs(report.bias.value - (exact_bound(0.0125) - EVIDENCE)) < SURE * report.bias.standard_error + 0.004
    assert report.bias.standard_error < 0.012


def test_bound_at_every_step_is_the_dense_one():
    report = discretisation(model, guide, line_of(0.05), num_particles=3000)
    assert [point.step for point in report.points] == pytest.approx([0.05, 0.025, 0.0125])
    for point, gap in zip(report.points, (-0.330, -0.149, -0.076), strict=True):
        value, error = point.elbo
        assert abs(value - exact_bound(point.step)) < SURE * error
        evidence = LinearProblem(point.step, noise=math.sqrt(VARIANCE)).exact_evidence()
        assert abs(value - evidence - gap) < SURE * error + 0.01
        assert error < 0.02


def test_parabola_corrects_the_line_where_the_bound_bends():
    grid = line_of(0.05)
    report = discretisation(model, guide, grid, num_particles=3000, kl="closed")
    assert report.order == 2
    assert "parabola" in " ".join(report.notes)
    exact = exact_bound(0.05) - EVIDENCE
    assert abs(report.bias.value - exact) < SURE * report.bias.standard_error + 0.001
    assert report.bias.standard_error < 0.01  # the line is 0.03 off
    two = discretisation(model, guide, grid, factors=(1, 2), num_particles=3000, kl="closed")
    assert two.order == 1
    assert two.misfit is None
    assert "two points cannot tell" in " ".join(two.notes)
    line = 2 * (exact_bound(0.05) - exact_bound(0.025))  # 0.02 below the exact bias, which two points cannot know
    assert abs(two.bias.value - line) < SURE * two.bias.standard_error
    assert line < exact - 0.02


def test_grids_share_their_brownian_motion():
    report = discretisation(model, guide, line_of(0.05), num_particles=500, kl="closed")
    assert report.bias.standard_error < 0.25 * report.points[0].elbo.standard_error


def test_bound_of_the_exact_guide_is_the_evidence_of_every_chain_without_scatter():
    report = discretisation(model, exact_guide, line_of(0.05), num_particles=20)
    for point, evidence in zip(report.points, (-4.070957910, -4.076609798, -4.079495885), strict=True):
        assert point.elbo.value == pytest.approx(evidence, abs=1e-8)
        assert point.elbo.standard_error < 1e-10
    assert report.extrapolated.value == pytest.approx(EVIDENCE, abs=3e-5)
    assert report.bias.value == pytest.approx(-4.070957910 - EVIDENCE, abs=3e-5)


def test_first_factor_is_the_step_in_use():
    report = discretisation(model, exact_guide, line_of(0.05), factors=(2, 4), num_particles=5)
    assert report.points[0].step == pytest.approx(0.025)
    assert report.points[0].elbo.value == pytest.approx(-4.076609798, abs=1e-8)


def test_factors_that_do_not_divide_each_other_share_noise_too():
    report = discretisation(model, guide, line_of(0.1), factors=(1, 2, 3), num_particles=300, kl="closed")
    assert report.bias.standard_error < 0.5 * report.points[0].elbo.standard_error


def test_shared_noise_has_the_law_of_the_path():
    grid = line_of(0.1).refine(2)
    law = SDEPath(PROCESS, stationary(), grid).expand([4000])
    with SharedNoise("all", (2, 6)):
        path = pyro.sample("z", law)
    standard = law.noise_of(path)
    assert_mean(standard.square(), 1.0, detects=0.3)
    assert_mean(standard[:, 1:] * standard[:, :-1], 0.0, detects=0.3)
    with SharedNoise("all", (1, 6)):
        coarse = pyro.sample("z", SDEPath(PROCESS, stationary(), line_of(0.1)).expand([4000]))
    assert torch.equal(coarse[:, 0], path[:, 0])
    assert (coarse[:, -1] - path[:, -1]).std() < 0.1 * coarse[:, -1].std()


# --- the recommended step ----------------------------------------------------------------


def test_recommended_step_reaches_the_tolerance_on_the_fitted_curve():
    report = discretisation(model, exact_guide, line_of(0.05), num_particles=5, tolerance=0.006)
    assert 0.0125 < report.recommended_step < 0.05
    problem = LinearProblem(report.recommended_step, noise=math.sqrt(VARIANCE))
    assert problem.exact_evidence() - EVIDENCE == pytest.approx(0.006, rel=0.1)  # the grid cuts gaps evenly
    assert f"Recommended step: {report.recommended_step:.3g} for" in str(report)


def test_recommended_step_is_not_above_what_was_measured():
    report = discretisation(model, exact_guide, line_of(0.05), num_particles=5, tolerance=1.0)
    assert report.recommended_step == pytest.approx(0.05)
    assert report.largest_step > 0.05
    assert not report.extrapolates
    assert "the coarsest measured" in str(report)


def test_recommended_step_below_all_measured_is_called_an_extrapolation():
    report = discretisation(model, exact_guide, line_of(0.05), num_particles=5, tolerance=1e-3)
    assert report.extrapolates
    assert report.recommended_step < 0.0125
    assert "This is an extrapolation" in str(report)


def test_noise_that_hides_the_bias_is_told():
    report = discretisation(model, guide, line_of(0.05), num_particles=20)
    note = next(note for note in report.notes if "standard error" in note)
    enough = int(note.split()[-1])
    assert enough == math.ceil(20 * (2 * report.bias.standard_error / 0.05) ** 2)


def test_tolerance_is_per_series():
    def many(program):
        def run(grid, size):
            with pyro.plate("series", size):
                program(grid)

        return run

    grid, size = line_of(0.05), 3
    one = discretisation(model, exact_guide, grid, num_particles=5, tolerance=0.006)
    report = discretisation(many(model), many(exact_guide), grid, size, num_particles=5, tolerance=0.006)
    assert (one.series, report.series) == (1, 3)
    assert report.extrapolated.value == pytest.approx(3 * EVIDENCE, abs=1e-4)
    assert report.recommended_step == pytest.approx(one.recommended_step, rel=1e-6)


def test_subsampled_plates_count_all_series():
    def scaled(program):
        def run(grid):
            with pyro.plate("series", 10, subsample_size=2):
                program(grid)

        return run

    report = discretisation(scaled(model), scaled(exact_guide), line_of(0.1), num_particles=5)
    assert report.series == 10


# --- the fit ----------------------------------------------------------------------------

STEPS = (0.4, 0.2, 0.1)


def values_on(curve, noise=0.0, size=4000, steps=STEPS):
    """Draws about a curve: common noise of size 1, own noise of the given size."""
    shared = torch.randn(size)
    return torch.stack([curve(h) + shared + noise * torch.randn(size) for h in steps])


def test_fit_finds_a_line_and_its_error():
    results = [fit_steps(STEPS, values_on(lambda h: 2.0 - 3.0 * h, noise=0.1, size=100)) for _ in range(300)]
    lines = [fit for fit in results if fit.order == 1]
    assert 0.78 < len(lines) / len(results) < 0.9  # 84 % by Akaike's rule
    slopes = torch.tensor([fit.coefficients[1] for fit in lines])
    assert_mean((slopes[:, 0] + 3.0) / slopes[:, 1], 0.0, detects=0.5)
    assert 0.8 < ((slopes[:, 0] + 3.0) / slopes[:, 1]).std() < 1.2
    ratio = torch.tensor([fit.bias[0] for fit in lines])
    assert_mean((ratio[:, 0] + 1.2) / ratio[:, 1], 0.0, detects=0.5)
    assert all(fit.settles for fit in results)


def test_fit_finds_a_parabola():
    fit = fit_steps(STEPS, values_on(lambda h: 2.0 - 3.0 * h + 5.0 * h**2, noise=0.01))
    assert fit.order == 2
    assert fit.misfit < 1e-6
    assert fit.rest is None
    for (value, error), expected in zip(fit.coefficients[1:], (-3.0, 5.0), strict=True):
        assert abs(value - expected) < SURE * error
    four = fit_steps((*STEPS, 0.05), values_on(lambda h: h**2 + 20 * h**3, noise=0.01, steps=(*STEPS, 0.05)))
    assert four.rest < 1e-6


def test_fit_gives_exact_points_the_exact_curve():
    draws = torch.tensor([2.0 - 3.0 * h for h in STEPS]).unsqueeze(-1).expand(3, 5)
    fit = fit_steps(STEPS, draws)
    assert fit.order == 1
    assert [value for value, _ in fit.coefficients] == pytest.approx([2.0, -3.0])
    assert fit.misfit > 0.157


def test_precise_points_weigh_more():
    draws = values_on(lambda h: 1.0 - h, size=2000)
    draws[0] += 3.0 * torch.randn(2000)
    fit = fit_steps(STEPS[:2], draws[:2])
    three = fit_steps(STEPS, draws)
    assert three.coefficients[0].standard_error < 0.5 * fit.coefficients[0].standard_error


@pytest.mark.parametrize(
    ("curve", "settles"), [(lambda h: -1 / h, False), (math.log, True), (lambda h: h - h**2, True), (lambda h: h, True)]
)
def test_values_that_run_away_do_not_settle(curve, settles):
    assert fit_steps(STEPS, values_on(curve, noise=0.01)).settles is settles


@pytest.mark.parametrize(
    ("curve", "tolerance", "expected"),
    [
        (lambda h: 1 - 2 * h, 0.1, 0.05),
        (lambda h: 1 + 2 * h, 0.1, 0.05),
        (lambda h: 1 - h + 2 * h**2, 0.2, math.inf),
        (lambda h: 1 - h + 2 * h**2, 0.1, (1 - math.sqrt(0.2)) / 4),
        (lambda h: 1 - 2 * h**2, 0.02, 0.1),
        (lambda h: 1.0 + 0 * h, 0.1, math.inf),
    ],
)
def test_largest_step_is_the_first_at_which_the_curve_leaves_the_tolerance(curve, tolerance, expected):
    draws = torch.tensor([curve(h) for h in STEPS]).unsqueeze(-1).expand(3, 5)
    found = largest_step(fit_steps(STEPS, draws), tolerance)
    if expected == math.inf:
        # the parabola comes back through the level on the other side
        assert found > 0.4
    else:
        assert found == pytest.approx(expected, rel=1e-6)


# --- variation --------------------------------------------------------------------------


def ou(scale=1.0, size=1, max_step=0.01, end=2.0, rate=0.5):
    grid = TimeGrid(torch.tensor([0.0, 0.5, 1.0, end]), max_step=max_step)
    return SDEPath(OrnsteinUhlenbeck(rate, scale), dist.Normal(torch.zeros(size), 0.5).to_event(1), grid)


@pytest.mark.parametrize(("scale", "ratio", "verdict"), [(1.0, 1.0, "as the"), (2.0, 0.25, "smoo"), (0.5, 4.0, "roug")])
def test_variation_finds_a_diffusion_that_is_not_that_of_the_paths(scale, ratio, verdict):
    found = quadratic_variation(ou().sample((1000,)), ou(scale))
    for value, error in zip(found.ratio[:, 0], found.standard_error[:, 0], strict=True):
        assert abs(value / ratio - 1) < SURE * error / ratio + 0.02  # drift
    assert found.verdict(0).startswith(verdict)


def test_variation_of_one_path_has_the_error_of_its_law():
    law = ou(rate=1e-3)
    many = law.sample((400,))
    found = [quadratic_variation(path.unsqueeze(0), law) for path in many]
    ratios, errors = (torch.stack([getattr(f, key)[:, 0] for f in found]) for key in ("ratio", "standard_error"))
    assert_mean((ratios - 1) / errors, 0.0, detects=0.4)
    assert torch.allclose(((ratios - 1) / errors).std(0), torch.ones(3), atol=0.15)
    together = quadratic_variation(many, law)
    assert torch.allclose(together.standard_error * math.sqrt(400), errors[0].unsqueeze(-1), rtol=0.15)


def test_independent_states_pass_at_lag_1_and_fail_at_lag_4():
    law = ou(rate=1e-3)
    # the best mean-field Normals have half the variance of a step, whose differences have all of it
    path = math.sqrt(0.01 / 2) * torch.randn(500, *law.event_shape)
    found = quadratic_variation(path, law)
    assert torch.allclose(found.ratio[:, 0], torch.tensor([1.0, 0.5, 0.25]), atol=0.02)
    assert found.verdict(0).startswith("increments cancel")


def test_variation_of_matrix_noise_is_that_of_its_gram_and_nan_without_noise():
    matrix = torch.tensor([[0.6, 0.8], [0.0, 0.5], [0.0, 0.0]])
    sde = SDE(lambda t, z: -0.1 * z, lambda t, z: matrix, noise_type="additive")
    law = SDEPath(sde, dist.Normal(torch.zeros(3), 0.1).to_event(1), TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.01))
    found = quadratic_variation(law.sample((500,)), law)
    assert torch.allclose(found.ratio[:, :2], torch.ones(3, 2), atol=0.06)
    assert found.ratio[:, 2].isnan().all()
    assert found.standard_error[:, 2].isnan().all()
    assert found.verdict(2) == "no noise in this dimension"


def test_variation_of_a_state_dependent_diffusion_follows_the_path():
    sde = SDE(lambda t, z: 0.0 * z, lambda t, z: 0.3 + z.square())
    grid = TimeGrid(torch.tensor([0.0, 0.5]), max_step=0.005)
    law = SDEPath(sde, dist.Normal(torch.zeros(1), 0.1).to_event(1), grid)
    found = quadratic_variation(law.sample((1000,)), law)
    assert abs(found.ratio[0, 0] - 1) < SURE * found.standard_error[0, 0]


def test_variation_under_exact_transitions():
    grid = TimeGrid(torch.tensor([0.0, 1.0, 2.0]), max_step=0.01)
    law = GaussianPath(OrnsteinUhlenbeck(0.5, 1.0), None, grid)
    found = quadratic_variation(law.sample((500,)), law)
    assert torch.allclose(found.ratio, torch.ones(3, 1), atol=0.03)


def test_variation_of_correlated_exact_transitions_is_that_of_the_diagonal():
    law = GaussianPath(Matern32(1.0, 1.0), None, TimeGrid(torch.tensor([0.0, 1.0, 2.0]), max_step=0.01))
    found = quadratic_variation(law.sample((500,)), law, lags=(1, 2))
    assert torch.allclose(found.ratio[:, 1], torch.ones(2), atol=0.05)
    # The value moves by its derivative: h^2 / (4 lambda^3 h^3 / 3), lambda = sqrt(3), over the noise that reaches it.
    assert found.ratio[0, 0] == pytest.approx(3 * 3 / (4 * 3**1.5 * 0.01), rel=0.1)


def test_padding_has_no_variation():
    grid = TimeGrid(torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 1.0]]), max_step=0.02)
    law = SDEPath(OrnsteinUhlenbeck(0.1, 1.0), dist.Normal(torch.zeros(2, 1), 1.0).to_event(1), grid)
    path = law.sample((300,))
    short = SDEPath(
        law.sde, dist.Normal(torch.zeros(1), 1.0).to_event(1), TimeGrid(grid.observed_times[1], max_step=0.02)
    )
    steps = short.grid.num_steps + 1
    found = quadratic_variation(path[:, 1:, :steps], short.expand([1]), lags=(1,))
    whole = quadratic_variation(path[:, 1:].expand(-1, 2, -1, -1), law, lags=(1,))
    first = quadratic_variation(path[:, :1].expand(-1, 2, -1, -1), law, lags=(1,))
    assert torch.isfinite(first.ratio).all()
    # the shorter series has a third of the variation of the pair and all of its own movement twice
    assert torch.allclose(whole.ratio, 2 * found.ratio / 3, rtol=1e-6)


@pytest.mark.parametrize("shape", [(201, 1), (5, 200, 1), (5, 201, 2)])
def test_paths_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"`path` must have shape \(S, \*batch, 201, 1\)"):
        quadratic_variation(torch.zeros(shape), ou())


def test_paths_without_the_batch_of_the_law_are_refused():
    with pytest.raises(ValueError, match=r"for a law of batch shape \(3,\)"):
        quadratic_variation(torch.zeros(5, 201, 1), ou().expand([3]))


@pytest.mark.parametrize("lags", [[1, 3], np.array([1, 3]), (np.int64(1), np.int32(3)), range(1, 4, 2)], ids=repr)
def test_lags_may_be_whole_numbers_of_any_kind(lags):
    law = ou()
    path = law.sample((5,))
    found, right = quadratic_variation(path, law, lags=lags), quadratic_variation(path, law, lags=(1, 3))
    assert found.lags == (1, 3)
    assert torch.equal(found.ratio, right.ratio)


@pytest.mark.parametrize("lags", [(), (0, 1), (2, 1), (1, 201), (1, 2.0), (1, 2.5, 4), 3])
def test_lags_that_no_path_has_are_refused(lags):
    with pytest.raises(ValueError, match="`lags` must be increasing integers from 1 to below the 201 points"):
        quadratic_variation(torch.zeros(5, 201, 1), ou(), lags=lags)


def test_a_law_that_does_not_tell_its_diffusion_is_refused(monkeypatch):
    def refuse(self, path):
        msg = "this solver has no density"
        raise ValueError(msg)

    monkeypatch.setattr(SDEPath, "kernels", refuse)
    with pytest.raises(ValueError, match="`law` is a SDEPath whose kernels are not Gaussian"):
        quadratic_variation(torch.zeros(5, 201, 1), ou())


# --- variation of a guide, and what the data ask for --------------------------------------


def test_report_tells_that_a_shared_diffusion_has_ratio_1():
    report = discretisation(model, guide, line_of(0.025), num_particles=200)
    (site,) = report.variation
    assert site.shared
    assert site.variation.ratio[0, 0] == pytest.approx(1.0, abs=0.05)
    assert "by construction" in str(report)
    (other,) = discretisation(model, exact_guide, line_of(0.025), num_particles=200).variation
    assert not other.shared
    assert other.variation.verdict(0) == "as the model's SDE"


@pytest.mark.filterwarnings("ignore:.*treats the states of the path as independent")
def test_a_mean_field_guide_neither_settles_nor_moves_as_an_sde():
    def mean_field(grid):
        width = pyro.param("width", torch.tensor(0.1))
        pyro.sample("z", dist.Normal(torch.zeros(grid.num_steps + 1, 1), width).to_event(2))

    report = discretisation(model, mean_field, line_of(0.1), num_particles=100)
    assert not report.settles
    assert math.isnan(report.recommended_step)
    assert "No step can be recommended" in str(report)
    assert "treats the states of a path as independent has no limit" in " ".join(report.notes)
    (site,) = report.variation
    assert not site.shared
    ratio = site.variation.ratio[:, 0]
    assert ratio[2] < 0.3 * ratio[0]
    assert report.gradients[1].reason.startswith("site 'z' is a path on one side only")
    assert "not available" in str(report)


@pytest.mark.filterwarnings("ignore:.*point mass on the path")
def test_a_point_guide_is_smoother_than_the_model():
    def point(grid):
        z = pyro.param("level", torch.tensor(0.1)).expand(grid.num_steps + 1, 1)
        pyro.sample("z", dist.Delta(z, event_dim=2))

    report = discretisation(model, point, line_of(0.1), num_particles=5)
    assert report.variation[0].variation.verdict(0).startswith("smoother than the model's SDE")


@pytest.mark.parametrize(
    ("scale", "verdict"), [(0.2, "larger than the model"), (1.0, "as the model"), (5.0, "smaller than the model")]
)
def test_increments_tell_which_diffusion_the_data_ask_for(scale, verdict):
    times = torch.linspace(0.0, 20.0, 41)
    truth = SDEPath(OrnsteinUhlenbeck(0.5, 1.0), dist.Normal(torch.zeros(1), 1.0).to_event(1), TimeGrid(times))
    y = truth.sample() + 0.2 * torch.randn(41, 1)
    process = OrnsteinUhlenbeck(0.5, scale)

    def own_model(grid):
        z = pyro.sample("z", SDEPath(process, dist.Normal(torch.zeros(1), 1.0).to_event(1), grid))
        pyro.sample("y", dist.Normal(grid.observed(z), 0.2).to_event(2), obs=y)

    def own_guide(grid):
        reference = GaussianPath(process, dist.Normal(torch.zeros(1), 1.0).to_event(1), grid, discretisation="euler")
        pyro.sample("z", reference.condition(None, torch.tensor(0.2), y))

    report = discretisation(own_model, own_guide, TimeGrid(times, max_step=0.1), factors=(1, 2), num_particles=200)
    (site,) = report.variation
    assert site.increments.verdict(0).startswith(verdict)
    assert site.increments.low[0] < 1 < site.increments.high[0]
    assert site.variation.verdict(0) == "as the model's SDE" or scale == 0.2  # the paths themselves cannot tell


# --- gradients --------------------------------------------------------------------------


def test_stl_has_no_variance_at_the_exact_guide_and_the_others_have():
    rows = {row.kl: row for row in discretisation(model, exact_guide, line_of(0.05), num_particles=60).gradients}
    assert list(rows) == ["full", "closed", "stl"]
    assert rows["stl"].variance < 1e-18
    assert rows["full"].variance > 1.0
    assert rows["closed"].variance > 0.1
    assert rows["stl"].value_deviation < 1e-10
    assert rows["full"].value_deviation < 1e-10  # the value, unlike the gradient, has no scatter
    assert rows["closed"].value_deviation > 1.0  # the closed form drops what cancels it


def test_gradient_rows_are_those_of_independent_bounds():
    report = discretisation(model, guide, line_of(0.1), num_particles=50)
    full = report.gradients[0]
    problem = LinearProblem(0.1, noise=math.sqrt(VARIANCE))
    rows, loc, scale = continuous_guide(line_of(0.1))
    step = 1e-5
    slope = [
        (problem.exact_elbo(rows + step * unit, loc, scale) - problem.exact_elbo(rows - step * unit, loc, scale))
        / 2
        / step
        for unit in torch.eye(2)
    ]
    exact = math.hypot(*slope)
    assert full.norm_error == pytest.approx(math.sqrt(full.variance / 50))
    for row in report.gradients:
        assert abs(row.norm - exact) < SURE * row.norm_error
    assert report.gradients[2].norm_error < 0.5 * full.norm_error


def test_gradients_are_those_of_the_step_in_use():
    seen = set()

    def watched(grid):
        if torch.is_grad_enabled():
            seen.add(grid.num_steps)
        guide(grid)

    discretisation(model, watched, line_of(0.1), factors=(2, 4), num_particles=3)
    assert seen == {line_of(0.1).refine(2).num_steps}


def test_a_pair_without_parameters_has_no_gradient():
    def fixed(grid):
        rows, loc, scale = continuous_guide(grid)
        initial = dist.Normal(loc, scale).to_event(1)
        pyro.sample("z", SDEPath(PROCESS.controlled(Affine()), initial, grid, inputs=rows))

    report = discretisation(model, fixed, line_of(0.1), num_particles=10)
    assert all(row.reason.startswith("no parameter has a gradient") for row in report.gradients)
    assert "no parameter has a gradient" in str(report)


# --- how it runs ------------------------------------------------------------------------


def test_nothing_of_the_caller_changes():
    guide(line_of(0.1))
    parameter = pyro.get_param_store()._params["shift"]
    parameter.grad = torch.ones(2)
    before = torch.random.get_rng_state()
    discretisation(model, guide, line_of(0.1), num_particles=10)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(parameter.grad, torch.ones(2))
    assert torch.equal(parameter, torch.zeros(2))


def test_the_same_pair_has_the_same_report():
    first, second = (discretisation(model, guide, line_of(0.1), num_particles=10) for _ in range(2))
    assert first.points == second.points
    assert str(first) == str(second)


class Batch(NamedTuple):
    grid: TimeGrid
    label: str


def test_grids_are_found_wherever_they_are_and_stay_shared():
    grid, other = line_of(0.1), line_of(0.2)
    call = Call((Batch(grid, "a"), [grid, (1, other)]), {"options": {"grid": other}})
    assert grids_in(call) == [grid, other]
    finer = refined(call, 3)
    assert isinstance(finer.args[0], Batch)
    assert finer.args[0].grid is finer.args[1][0]
    assert finer.args[1][1][1] is finer.kwargs["options"]["grid"]
    assert finer.args[0].grid.num_steps == 3 * grid.num_steps
    assert finer.args[1][1][0] == 1


def test_a_grid_may_be_a_keyword():
    report = discretisation(model, exact_guide, grid=line_of(0.05), num_particles=5)
    assert report.points[2].elbo.value == pytest.approx(-4.079495885, abs=1e-8)


def test_a_pair_that_cannot_be_vectorised_runs_draw_by_draw():
    def unbatched(grid):
        z = pyro.sample("z", SDEPath(PROCESS, stationary(), grid))
        if z.dim() != 2:
            msg = "one path at a time"
            raise ValueError(msg)
        observe(grid, z)

    report = discretisation(unbatched, guide, line_of(0.1), num_particles=120)
    assert "one by one" in report.notes[0]
    for point in report.points:
        assert abs(point.elbo.value - exact_bound(point.step)) < SURE * point.elbo.standard_error
    together = discretisation(model, guide, line_of(0.1), num_particles=120)
    (site,), (same,) = report.variation, together.variation
    assert torch.allclose(site.variation.ratio, same.variation.ratio, atol=0.1)
    assert site.increments.ratio == pytest.approx(same.increments.ratio, rel=0.5)
    assert report.bias.standard_error == pytest.approx(together.bias.standard_error, rel=0.5)


def test_nothing_is_written_to_the_log_of_pyro(caplog):
    elbo = Trace_ELBO(num_particles=2, vectorize_particles=True)
    with caplog.at_level(logging.INFO), caplog.at_level(logging.INFO, logger="pyro"):  # Pyro 1.9.1 takes the first
        elbo.loss(model, guide, line_of(0.1))
        assert "Guessed max_plate_nesting" in caplog.text  # as the log would have it
        caplog.clear()
        discretisation(model, guide, line_of(0.1), num_particles=5)
    assert not caplog.records


@pytest.mark.parametrize(("growth", "draws"), [(0.3, 200), (40.0, 50)], ids=["some paths", "all paths"])
def test_paths_that_grow_without_limit_are_not_tried_again_draw_by_draw(growth, draws):
    runs = []

    def explosive(grid):
        runs.append(grid)
        process = SDE(lambda t, z: growth * z**3, lambda t, z: torch.full_like(z, SCALE))
        pyro.sample("z", SDEPath(process, stationary(), grid))

    with pytest.raises(ValueError, match="became non-finite") as caught:
        discretisation(model, explosive, line_of(0.05), num_particles=draws)
    assert len(runs) < 10
    chain, error = set(), caught.value
    while error is not None:  # Pyro adds the shapes of the trace, and so an error
        chain |= set(re.findall(r"in (\d+) of (\d+) paths", str(error)))
        error = error.__context__
    (affected,) = chain  # no attempt behind the one that is told
    assert affected[1] == (str(draws) if growth < 1 else "1")


def test_an_automatic_guide_runs_on_all_grids():
    automatic = AutoGaussianMarkov(model, points="observed")
    report = discretisation(model, automatic, line_of(0.1), num_particles=20)
    assert len(report.points) == 3
    assert all(row.variance > 0 for row in report.gradients)


def test_upstream_sites_are_the_same_on_all_grids():
    seen = []

    def scaled_model(grid):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.1))
        observe(grid, pyro.sample("z", SDEPath(OrnsteinUhlenbeck(RATE, scale.unsqueeze(-1)), stationary(), grid)))

    def scaled_guide(grid):
        scale = pyro.sample("scale", dist.LogNormal(pyro.param("loc", torch.tensor(0.0)), 0.1))
        seen.append(scale.detach())
        pyro.sample("z", SDEPath(OrnsteinUhlenbeck(RATE, scale.unsqueeze(-1)), stationary(), grid))
        return scale

    discretisation(scaled_model, scaled_guide, line_of(0.1), num_particles=7)
    drawn = [scale for scale in seen if scale.shape == (7,)]
    assert len(drawn) == 3
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_float32():
    torch.set_default_dtype(torch.float32)
    report = discretisation(model, guide, line_of(0.05), num_particles=500)
    for point, exact in zip(report.points, (-4.4003, -4.2310, -4.1541), strict=True):
        assert abs(point.elbo.value - exact) < SURE * point.elbo.standard_error + 1e-3
    assert report.gradients[2].variance < report.gradients[0].variance


# --- bad input --------------------------------------------------------------------------


def test_a_pair_without_a_grid_among_its_arguments_is_refused():
    grid = line_of(0.1)
    with pytest.raises(ValueError, match="there is no TimeGrid among the arguments, so the step cannot be changed"):
        discretisation(lambda: model(grid), lambda: guide(grid))


def test_a_grid_of_one_time_is_refused():
    with pytest.raises(ValueError, match="no TimeGrid among the arguments has a step"):
        discretisation(model, guide, TimeGrid(torch.tensor([1.0])))


def test_a_pair_without_a_path_is_refused():
    def plain(grid):
        pyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="model and guide have no latent path site"):
        discretisation(plain, plain, line_of(0.1))


@pytest.mark.parametrize("factors", [(1,), (2, 1), (1, 1), (0, 1), (1, 2.0), ()])
def test_factors_must_be_increasing_integers(factors):
    with pytest.raises(ValueError, match="`factors` must be at least two increasing positive integers"):
        discretisation(model, guide, line_of(0.1), factors=factors)


@pytest.mark.parametrize("count", [1, 2.5])
def test_one_particle_has_no_standard_error(count):
    with pytest.raises(ValueError, match="`num_particles` must be an integer of at least 2"):
        discretisation(model, guide, line_of(0.1), num_particles=count)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, math.inf, math.nan])
def test_tolerance_must_be_positive(tolerance):
    with pytest.raises(ValueError, match="`tolerance` must be a positive number"):
        discretisation(model, guide, line_of(0.1), tolerance=tolerance)


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="`kl` must be one of"):
        discretisation(model, guide, line_of(0.1), kl="half")


def test_parameters_per_step_are_named_as_the_reason():
    def per_step(grid):
        rows = pyro.param("rows", lambda: torch.zeros(grid.num_steps, 2))
        pyro.sample("z", SDEPath(PROCESS.controlled(Affine()), stationary(), grid, inputs=rows))

    with pytest.raises(ValueError, match="but not with its steps cut in 2: .*no parameter per solver step"):
        discretisation(model, per_step, line_of(0.1), num_particles=5)


def test_estimates_print_with_their_error():
    assert str(Estimate(-4.0824, 0.0123)) == "-4.0824 ± 0.012"
    assert Pair(model, guide).model is model


def test_parameters_are_created_where_there_are_none():
    store = pyro.get_param_store()
    assert isinstance(store, ParamStoreDict)
    assert not list(store)
    discretisation(model, guide, line_of(0.1), num_particles=5)
    assert list(store) == ["shift"]
