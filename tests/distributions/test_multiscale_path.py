"""The law of a fine path inside windows: exact numbers of a Gaussian problem, then shapes, noise and messages."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_sde import SDE, PathELBO, SDEPath, TimeGrid
from pyro_sde.distributions.multiscale_kernels import AmortisedReEntry, BurnIn, ExactReEntry
from pyro_sde.distributions.multiscale_path import MultiScalePath
from pyro_sde.infer.check import check
from pyro_sde.ops.windows import Windows
from pyro_sde.sde.two_scale import FineSDE
from pyro_sde.solvers.execution import Execution
from pyro_sde.testing import check_distribution
from pyro_sde.testing.statistics import z_test
from tests.distributions.multiscale_problem import (
    EVIDENCE,
    GRID,
    POINTS,
    SCALES,
    START,
    fine_path,
    given_coarse,
    kalman_evidence,
    log_joint,
    quadratic,
    skipped_bound,
    whole,
    windows_from,
)
from tests.distributions.skipping_problem import (
    LINEAR,
    MATRIX,
    MOVING,
    Problem,
    Well,
    coarse_of,
    control,
    entry_law,
    grid_of,
    noise,
    normal,
    short_windows,
    three_controls,
)


# ------------------------------------------------------------------------------------------------ exact numbers
def size_of(windows: Windows) -> int:
    return POINTS + windows.grid.num_steps + 1


def test_evidence_of_the_test_problem():
    assert kalman_evidence() == pytest.approx(EVIDENCE, abs=5e-7)


@pytest.mark.parametrize("reentry", [440, 300])
def test_skipping_by_exact_re_entry_leaves_the_evidence_as_it_is(reentry):
    windows = windows_from(reentry)
    integral = quadratic(log_joint(windows), size_of(windows)).log_integral()
    assert float(integral) == pytest.approx(kalman_evidence(), abs=1e-9)


@pytest.mark.parametrize("reentry", [440, 400])
def test_burn_in_has_the_evidence_of_the_model_that_draws_anew(reentry):
    windows = windows_from(reentry)
    integral = quadratic(log_joint(windows, BurnIn(given_coarse)), size_of(windows)).log_integral()
    assert float(integral) == pytest.approx(kalman_evidence(reentry), abs=1e-9)
    assert abs(kalman_evidence(reentry) - kalman_evidence()) > 1e-4  # and that is another one


def test_discrete_exact_joint_guide_has_the_evidence_on_every_path():
    windows = windows_from(440)
    law = quadratic(log_joint(windows), size_of(windows))
    posterior = dist.MultivariateNormal(law.mean(), precision_matrix=law.precision, validate_args=False)
    pyro.set_rng_seed(0)
    paths = posterior.sample((5,))
    weights = log_joint(windows)(paths) - posterior.log_prob(paths)
    torch.testing.assert_close(weights, torch.full((5,), kalman_evidence(), dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("start", "bias"), [(440, 4.27e-3), (400, 1.71e-4), (350, 3.4e-6)])
def test_bounds_of_a_guide_with_and_without_the_gap(start, bias):
    """Exact re-entry has the bound of the full simulation; burn-in is above it, by less the longer it lasts."""
    full = skipped_bound(start, whole(), None)
    assert skipped_bound(start, windows_from(start), None) == pytest.approx(full, abs=1e-9)
    burnt = skipped_bound(start, windows_from(start), BurnIn(given_coarse))
    assert burnt - full == pytest.approx(bias, rel=0.02)
    assert full < kalman_evidence()
    if start == 440:
        assert burnt == pytest.approx(-1.4924, abs=0.0015)  # simulated in the specification
        assert full == pytest.approx(-1.4972, abs=1e-4)


def test_report_predicts_the_bias_of_burn_in():
    coarse = SDEPath(SCALES.coarse, START, GRID).sample()
    report = fine_path(coarse, windows_from(440), BurnIn(given_coarse)).report()
    assert report.fine_steps == 121 + 160
    assert report.all_steps == 600
    assert report.skipped == pytest.approx(1 - 281 / 600)
    assert report.burn_in == pytest.approx(0.1)
    assert report.rate == pytest.approx(-math.log(1 - 0.08) / 0.01, rel=1e-6)
    assert report.mixing_time == pytest.approx(1 / report.rate)
    assert report.bias_factor == pytest.approx(math.exp(-2 * report.rate * 0.1))
    assert fine_path(coarse, windows_from(440)).report().bias_factor == 0.0
    assert fine_path(coarse, whole(), BurnIn(given_coarse)).report().bias_factor == 0.0


def test_report_of_dynamics_that_do_not_contract():
    fine = FineSDE(lambda t, b, a: b, lambda t, b, a: torch.ones_like(b))
    coarse = torch.zeros(POINTS, 1, dtype=torch.float64)
    report = MultiScalePath(fine, START, coarse, windows_from(440), reentry=BurnIn(given_coarse)).report()
    assert report.rate < 0
    assert report.mixing_time == math.inf
    assert report.bias_factor == 1.0


# ------------------------------------------------------------------------------------------------ a nonlinear problem
@pytest.mark.parametrize("width", [1, 2])
def test_law_without_gaps_is_the_sde_path_on_the_fine_grid(width):
    grid = grid_of()
    windows = Windows.around(grid, before=10.0, after=10.0, fine_steps=3)
    fine = LINEAR if width == 1 else MATRIX
    coarse = coarse_of(grid)
    law = MultiScalePath(fine, normal(width), coarse, windows)
    rows = coarse[..., :-1, :].repeat_interleave(3, -2)
    plain = SDEPath(fine.with_inputs(rows), normal(width), grid.refine(3))
    path = plain.sample((4,))
    torch.testing.assert_close(law.log_prob(path), plain.log_prob(path))
    pyro.set_rng_seed(0)
    ours = law.sample((2,))
    pyro.set_rng_seed(0)
    torch.testing.assert_close(ours, plain.sample((2,)))


@pytest.mark.parametrize("width", [1, 2])
def test_skipped_marginals_are_those_of_the_full_law(width):
    """Moments at every row of the windows, behind a gap before the first window too."""
    grid = grid_of()
    windows = short_windows(grid)
    coarse = coarse_of(grid)
    fine = MOVING if width == 1 else MATRIX
    law = MultiScalePath(fine, normal(width, loc=2.0, scale=0.3), coarse, windows)
    pyro.set_rng_seed(1)
    skipped, full = law.sample((4000,)), law.full().sample((4000,))
    assert full.shape[-2] == 41
    places = windows._points.unsqueeze(-1).expand(4000, *windows._points.shape, width)
    full = full.gather(-2, places)
    for power in (1, 2):
        z_test(skipped**power - full**power, 0.0).require(0.4)
    cross = [(x[..., :1, :] * x[..., -1:, :].flip(-1)) for x in (skipped, full)]
    z_test(cross[0] - cross[1], 0.0).require(0.4)


def log_weights(law_q, law_p, path, windows):
    seen = dist.Normal(windows.observed(path), 0.5).to_event(2).log_prob(torch.full((2, 2, 1), 0.6).double())
    return (law_p.log_prob(path) - law_q.log_prob(path) + seen).sum(-1)


def pair(fine, coarse, windows, reentry=None):
    guide = MultiScalePath(fine.controlled(control), normal(), coarse, windows, reentry=reentry)
    return guide, MultiScalePath(fine, normal(), coarse, windows, reentry=reentry)


def test_skipped_elbo_is_the_full_one_for_exact_re_entry_and_not_for_a_short_burn_in():
    pyro.set_rng_seed(2)
    grid = grid_of()
    windows = short_windows(grid)
    coarse = coarse_of(grid, 6000)
    difference = {}
    for name, reentry in (("exact", None), ("burn_in", BurnIn(entry_law))):
        guide, model = pair(LINEAR, coarse, windows, reentry)
        bounds = []
        for laws in ((guide, model), (guide.full(), model.full())):
            pyro.set_rng_seed(3)
            path = laws[0].sample()
            bounds.append(log_weights(*laws, path, windows))
        difference[name] = bounds[0] - bounds[1]
    z_test(difference["exact"], 0.0).require(0.2)
    assert z_test(difference["burn_in"], 0.0).p_value < 1e-8


def test_divergence_is_that_of_the_windows_alone():
    grid = grid_of()
    windows = short_windows(grid)
    coarse = coarse_of(grid)
    guide, model = pair(FineSDE(Well(), noise), coarse, windows, BurnIn(entry_law))
    path = guide.sample()
    terms = guide.kernels(path).kl(model.kernels(path)).detach()
    assert not terms.movedim(0, -1)[~windows.active].any()
    assert bool((terms.movedim(0, -1)[windows.active] > 0).all())
    full_guide, full_model = guide.full(), model.full()
    path = full_guide.sample()
    terms = full_guide.kernels(path).kl(full_model.kernels(path)).detach().movedim(0, -1)
    assert not terms[~full_guide.windows.active].any()
    assert int((terms > 0).sum()) == int(windows.active.sum())


def test_gap_terms_cancel_in_the_log_ratio():
    grid = grid_of()
    windows = short_windows(grid)
    coarse = coarse_of(grid, 3)
    for reentry in (None, BurnIn(entry_law)):
        guide, model = pair(LINEAR, coarse, windows, reentry)
        path = guide.sample()
        ratio = guide.kernels(path).log_prob() - model.kernels(path).log_prob()
        assert float(ratio.movedim(0, -1)[:, ~windows.active].abs().max()) == 0.0


def test_both_laws_share_the_noise_inside_windows_and_leave_the_same_generator():
    grid = grid_of()
    windows = short_windows(grid)
    coarse = coarse_of(grid)
    law = MultiScalePath(FineSDE(lambda t, b, a: 0 * b, noise), normal(), coarse, windows)
    pyro.set_rng_seed(4)
    short, after = law.sample(), torch.rand(())
    pyro.set_rng_seed(4)
    long = law.full().sample()
    assert torch.equal(torch.rand(()), after)
    place = windows._points.unsqueeze(-1)
    torch.testing.assert_close(long.gather(-2, place).diff(dim=-2)[windows.active], short.diff(dim=-2)[windows.active])


def many_windows(dtype=torch.float64) -> Windows:
    """Three windows in the first series, two in the second, which ends earlier, and one in the third."""
    rows = [[0.0, 3.0, 6.0, 6.4], [1.0, 5.0, 5.0, 5.0], [2.0, 2.4, 2.4, 2.4]]
    grid = TimeGrid(torch.tensor(rows, dtype=dtype), start=0.0, max_step=0.2)
    return Windows.around(grid, before=0.5, after=0.3, fine_steps=2)


def quick_pull(t, b, a):
    return 9 * (a[..., :1] - b) + torch.sin(8 * t)  # a gap of 2 leaves 0.1^20 of what was before


QUICK = FineSDE(quick_pull, noise)


@pytest.mark.parametrize("case", ["exact", "burn_in", "matrix"])
def test_windows_that_forget_run_side_by_side_and_give_the_path_of_the_loop(case):
    """Values, gradients and what is left of the generator; series have different windows, and none but one."""
    windows = many_windows()
    fine, width = (MATRIX, 2) if case == "matrix" else (QUICK, 1)
    wide = three_controls if case == "matrix" else control
    reentry = {"exact": None, "burn_in": BurnIn(entry_law), "matrix": BurnIn(two_entries)}[case]
    results = []
    for apart in (True, False):
        pyro.set_rng_seed(8)
        coarse = torch.randn(5, 3, windows.coarse.num_steps + 1, 1, dtype=torch.float64).cumsum(-2).mul(0.2)
        coarse.requires_grad_()
        law = MultiScalePath(fine.controlled(wide), normal(width), coarse, windows, reentry=reentry)
        assert law._apart is not None
        law._apart = law._apart if apart else None
        path = law.rsample((2,))
        after = torch.rand(())
        (path.sin().sum() + law.log_prob(path).sum()).backward()
        results.append((path.detach(), after, coarse.grad))
    assert results[0][0].shape == (2, 5, 3, windows.grid.num_steps + 1, width)
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


def test_windows_side_by_side_take_as_many_steps_as_the_longest():
    windows = many_windows()
    calls = []

    def counted(t, b, a):
        calls.append(b.shape)
        return quick_pull(t, b, a)

    law = MultiScalePath(FineSDE(counted, noise), normal(), coarse_of(windows.coarse), windows)
    calls.clear()
    law.sample()
    longest = int((windows.gap_starts[..., 1:] - windows.gap_ends[..., :-1]).max()) * 2
    assert windows.grid.num_steps > 2 * longest
    assert len(calls) <= longest + 4  # and the first calls that look at shapes


def test_windows_of_slow_dynamics_run_one_after_the_other():
    grid = grid_of()
    law = MultiScalePath(LINEAR, normal(), coarse_of(grid), short_windows(grid))  # remembers 0.8^20 over the gap
    assert law._apart is None


def test_exact_windows_side_by_side_in_float32():
    windows = many_windows(torch.float32)
    coarse = torch.zeros(3, windows.coarse.num_steps + 1, 1, dtype=torch.float32)
    law = MultiScalePath(QUICK, normal(dtype=torch.float32), coarse, windows)
    paths = []
    for gaps in (law._apart, None):
        pyro.set_rng_seed(1)
        law._apart = gaps
        paths.append(law.sample())
    assert law._given[2].unbiased
    torch.testing.assert_close(*paths, rtol=1e-4, atol=1e-5)


def two_entries(a):
    return dist.Normal(torch.cat([a, -a], -1), 0.5).to_event(1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("reentry", [None, BurnIn(two_entries)])
def test_law_keeps_the_contract_of_pyro(dtype, reentry):
    rows = [[0.0, 0.3, 0.7, 1.0], [0.1, 0.25, 0.9, 0.9], [-0.2, 0.4, 0.4, 0.4]]
    grid = TimeGrid(torch.tensor(rows, dtype=dtype), max_step=0.2)
    windows = Windows.around(grid, before=0.05, after=0.0, fine_steps=2)
    coarse = torch.linspace(-1, 1, 3 * (grid.num_steps + 1), dtype=dtype).reshape(3, -1, 1)
    fine = MATRIX.controlled(three_controls) if reentry is None else MATRIX
    check_distribution(MultiScalePath(fine, normal(2, dtype=dtype), coarse, windows, reentry=reentry))


def test_batches_particles_and_plates_meet():
    grid = grid_of()
    windows = short_windows(grid)
    coarse = coarse_of(grid, 5)
    law = MultiScalePath(MATRIX, normal(2), coarse, windows)
    assert law.batch_shape == (5, 2)
    assert law.sample((3,)).shape == (3, 5, 2, windows.grid.num_steps + 1, 2)
    assert law.expand((4, 5, 2)).full().batch_shape == (4, 5, 2)
    assert law.log_prob(law.sample()).shape == (5, 2)


def test_a_series_has_the_density_that_it_has_alone():
    grid = grid_of()
    windows = short_windows(grid)
    coarse = coarse_of(grid)
    law = MultiScalePath(LINEAR, normal(), coarse, windows)
    path = law.sample()
    for series in (0, 1):
        alone = MultiScalePath(LINEAR, normal(), coarse[series], windows[series])
        rows = windows[series].grid.num_steps + 1
        torch.testing.assert_close(alone.log_prob(path[series, :rows]), law.log_prob(path)[series])


def test_inputs_reach_the_control_at_their_coarse_step():
    grid = grid_of()
    windows = short_windows(grid)
    coarse = coarse_of(grid)
    inputs = torch.randn(2, grid.num_steps, 1, dtype=torch.float64)
    seen = []

    def recording(t, b, a, row):
        seen.append(row)
        return row + 0 * b

    law = MultiScalePath(LINEAR.controlled(recording), normal(), coarse, windows, inputs=inputs)
    law.kernels(law.sample())
    expected = inputs.gather(-2, windows.coarse_index.unsqueeze(-1)).movedim(-2, 0)
    torch.testing.assert_close(seen[-1], expected)


def test_low_memory_gives_a_path_of_the_same_law():
    grid = grid_of()
    law = MultiScalePath(LINEAR, normal(), coarse_of(grid), short_windows(grid), execution=Execution(memory="low"))
    path = law.sample((3,))
    assert torch.isfinite(law.log_prob(path)).all()


@pytest.mark.parametrize("width", [1, 2])
def test_gradients_of_the_loop_and_the_parallel_pass_agree(width):
    grid = grid_of()
    windows = short_windows(grid)
    gradients = []
    for backward in ("loop", "parallel"):
        coarse = coarse_of(grid) * 0 + torch.linspace(0, 1, 21).double().unsqueeze(-1)
        coarse.requires_grad_()
        fine = (LINEAR if width == 1 else MATRIX).controlled(control if width == 1 else three_controls)
        law = MultiScalePath(fine, normal(width), coarse, windows, execution=Execution(backward=backward))
        pyro.set_rng_seed(5)
        path = law.rsample()
        (path.sin().sum() + law.log_prob(path).sum()).backward()
        gradients.append(coarse.grad)
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-9)


def test_float32_density_is_close_to_float64():
    single, double = grid_of(torch.float32), grid_of()
    coarse = coarse_of(double)
    law = MultiScalePath(LINEAR, normal(), coarse, short_windows(double))
    path = law.sample()
    other = MultiScalePath(LINEAR, normal(dtype=torch.float32), coarse.float(), short_windows(single))
    value = other.log_prob(path.float())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), law.log_prob(path), rtol=1e-3, atol=1e-2)


# ------------------------------------------------------------------------------------------------ inference
@pytest.mark.parametrize("loss", [Trace_ELBO(), PathELBO(), PathELBO(kl="closed"), PathELBO(kl="full")])
def test_every_bound_trains(loss):
    problem = Problem()
    assert check(problem.model, problem.guide) == ()
    svi = SVI(problem.model, problem.guide, pyro.optim.Adam({"lr": 0.01}), loss)
    assert all(math.isfinite(svi.step()) for _ in range(2))
    vectorised = type(loss)(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    assert math.isfinite(vectorised.loss(problem.model, problem.guide))


def test_entry_loss_learns_the_marginal_of_the_prior():
    class Entry(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.tensor(3.0).double())
            self.log_scale = nn.Parameter(torch.zeros(()).double())

        def forward(self, a):
            return dist.Normal(self.loc + 0 * a, self.log_scale.exp()).to_event(1)

    pyro.set_rng_seed(6)
    reentry, grid = AmortisedReEntry(Entry()), grid_of()
    coarse = torch.zeros(500, 2, 21, 1, dtype=torch.float64)
    law = MultiScalePath(LINEAR, normal(), coarse, short_windows(grid), reentry=reentry)
    optimiser = torch.optim.Adam(reentry.module.parameters(), 0.1)
    for _ in range(80):
        optimiser.zero_grad()
        law.entry_loss().backward()
        optimiser.step()
    stationary = math.sqrt(0.49 * 0.1 / (1 - 0.8**2))  # Euler chain with step 0.1
    assert reentry.module.loc.item() == pytest.approx(0.0, abs=0.06)
    assert reentry.module.log_scale.exp().item() == pytest.approx(stationary, abs=0.1)


# ------------------------------------------------------------------------------------------------ bad input
def test_wrong_types_are_named():
    grid = grid_of()
    coarse, windows = coarse_of(grid), short_windows(grid)
    with pytest.raises(TypeError, match="`fine` must be a FineSDE"):
        MultiScalePath(SDE(lambda t, z: -z, lambda t, z: z), normal(), coarse, windows)
    with pytest.raises(TypeError, match="`windows` must be Windows"):
        MultiScalePath(LINEAR, normal(), coarse, grid)
    with pytest.raises(TypeError, match="`reentry` must be ExactReEntry"):
        MultiScalePath(LINEAR, normal(), coarse, windows, reentry="exact")


def test_wrong_shapes_are_named():
    grid = grid_of()
    coarse, windows = coarse_of(grid), short_windows(grid)
    with pytest.raises(ValueError, match="`coarse` must be a path.*levels are in the wrong order"):
        MultiScalePath(LINEAR, normal(), coarse[..., 1:, :], windows)
    with pytest.raises(ValueError, match="`coarse` has dtype torch.float32"):
        MultiScalePath(LINEAR, normal(), coarse.float(), windows)
    with pytest.raises(ValueError, match="`inputs` are for the control.*without a control"):
        MultiScalePath(LINEAR, normal(), coarse, windows, inputs=torch.zeros(20, 1).double())
    with pytest.raises(ValueError, match="one row per step of the slowest grid"):
        MultiScalePath(LINEAR.controlled(control), normal(), coarse, windows, inputs=torch.zeros(3, 1).double())
    law = dist.Laplace(torch.zeros(1).double(), 1.0).to_event(1)
    with pytest.raises(ValueError, match="`initial` must be a Gaussian.*behind a gap"):
        MultiScalePath(LINEAR, law, coarse, windows)


def test_exact_re_entry_asked_for_a_double_well_is_refused():
    grid = grid_of()
    with pytest.raises(ValueError, match="not linear in the fine state.*RandomisedCorrection"):
        MultiScalePath(FineSDE(Well(), noise), normal(), coarse_of(grid), short_windows(grid))


def test_a_gap_without_noise_is_named():
    def singular(t, b, a):
        return torch.tensor([[1.0], [0.0]], dtype=b.dtype) + 0 * a[..., :1, None]

    fine = FineSDE(lambda t, b, a: -b, singular, noise_type="general")
    grid = grid_of()
    with pytest.raises(ValueError, match="not positive definite"):
        MultiScalePath(fine, normal(2), coarse_of(grid), short_windows(grid))


def test_different_re_entry_laws_are_refused():
    grid = grid_of()
    coarse, windows = coarse_of(grid), short_windows(grid)
    laws = [MultiScalePath(LINEAR, normal(), coarse, windows, reentry=r) for r in (None, BurnIn(entry_law))]
    with pytest.raises(ValueError, match="different re-entry laws: guide ExactReEntry"):
        laws[0].check_same_grid(laws[1])
    other = MultiScalePath(LINEAR, normal(), coarse, windows, reentry=BurnIn(given_coarse))
    with pytest.raises(ValueError, match="different re-entry laws"):
        laws[1].check_same_grid(other)
    laws[0].check_same_grid(MultiScalePath(LINEAR, normal(), coarse, windows, reentry=ExactReEntry()))


def test_different_windows_are_refused():
    grid = grid_of()
    coarse = coarse_of(grid)
    laws = [MultiScalePath(LINEAR, normal(), coarse, short_windows(grid, n)) for n in (2, 3)]
    with pytest.raises(ValueError, match="different grids"):
        laws[0].check_same_grid(laws[1])


def test_entry_loss_needs_a_learned_entry():
    grid = grid_of()
    law = MultiScalePath(LINEAR, normal(), coarse_of(grid), short_windows(grid))
    with pytest.raises(ValueError, match="`entry_loss` needs windows with gaps and an AmortisedReEntry"):
        law.entry_loss()


# ------------------------------------------------------------------------------------------------ a controlled law
def linear_control(t, b, a):
    return 0.8 * b - 0.5 * a[..., :1] + 0.3 * torch.sin(t)


@pytest.mark.parametrize("fine", [LINEAR, QUICK])
def test_a_controlled_law_is_the_marginal_of_the_one_that_simulates_the_gaps(fine):
    """So the two bounds have one mean: both laws are Gaussian, and their moments are read off their densities."""
    windows = short_windows(grid_of()[0])
    coarse = coarse_of(windows.coarse)
    law = MultiScalePath(fine.controlled(linear_control), normal(loc=0.4), coarse, windows)
    moments = []
    for one in (law, law.full()):
        found = quadratic(lambda flat, one=one: one.log_prob(flat.unsqueeze(-1)), one.event_shape[0])
        moments.append((found.mean(), torch.linalg.inv(found.precision)))
    rows = windows.fine_places
    torch.testing.assert_close(moments[0][0], moments[1][0][rows], rtol=0, atol=1e-10)
    torch.testing.assert_close(moments[0][1], moments[1][1][rows][:, rows], rtol=0, atol=1e-10)


@pytest.mark.parametrize("fine", [LINEAR, QUICK])
def test_the_noise_of_a_path_is_that_which_was_drawn(fine):
    """Of the windows, loop or side by side, and of the full law, which has it in its windows."""
    windows = short_windows(grid_of()[0])
    law = MultiScalePath(fine.controlled(linear_control), normal(), coarse_of(windows.coarse), windows)
    pyro.set_rng_seed(9)
    path = law.sample()
    pyro.set_rng_seed(9)
    law.initial.sample()
    drawn = torch.randn(windows.grid.num_steps, 1, dtype=torch.float64)
    torch.testing.assert_close(law.noise_of(path), drawn)
    pyro.set_rng_seed(9)
    whole = law.full()
    noise = whole.noise_of(whole.sample())
    place = windows.rows_in(whole.windows)[windows.active]
    torch.testing.assert_close(noise[place], drawn[windows.active])
    others = noise[~whole.windows.active].flatten()
    assert float((others.unsqueeze(-1) - drawn.flatten()).abs().min()) > 1e-6  # noise of its own in the gaps


def test_laws_that_simulate_some_gaps_share_the_noise_in_them():
    grid = grid_of()
    windows = short_windows(grid)
    law = MultiScalePath(LINEAR, normal(), coarse_of(grid), windows)
    found = []
    for fills in (1, 2):
        pyro.set_rng_seed(10)
        one = law.full(fills)
        found.append(one.noise_of(one.sample()))
    filled = windows.gap_ends[..., 0] * 2  # steps before the first window
    for series, count in enumerate(filled.tolist()):
        assert count > 0
        torch.testing.assert_close(found[0][series, :count], found[1][series, :count])
        assert len(found[0][series, :count].unique()) == count
