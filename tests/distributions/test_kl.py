"""Divergence of two path laws: exact values, agreement of the estimators, and when it is infinite."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch.distributions import kl_divergence

from pyro_sde import SDE, OrnsteinUhlenbeckPath, SDEPath, TimeGrid, path_kl
from pyro_sde.distributions.kl import path_terms, site_law
from pyro_sde.sde import OrnsteinUhlenbeck
from pyro_sde.testing import ContractError, assert_mean, check_kl

DOUBLE = torch.float64


def normal(*shape, dtype=DOUBLE, loc=0.0, scale=1.0):
    return dist.Normal(torch.full(shape, loc, dtype=dtype), torch.full(shape, scale, dtype=dtype)).to_event(1)


def grid(steps=8, dtype=DOUBLE, end=1.0):
    return TimeGrid(torch.linspace(0, end, steps + 1, dtype=dtype))


# ---------------------------------------------------------------- two Ornstein-Uhlenbeck laws
A, B, C, SIGMA, MEAN, VARIANCE, END = 0.7, 1.5, 0.6, 0.8, 0.4, 0.3, 2.0  # p: -A z, q: -B z + C
CONTINUOUS = 0.3502419736  # closed form of the integral for these parameters


def pair(step, dtype=DOUBLE):
    steps = round(END / step)
    start = normal(1, dtype=dtype, loc=MEAN, scale=VARIANCE**0.5)
    laws = [OrnsteinUhlenbeck(B, SIGMA, C / B), OrnsteinUhlenbeck(A, SIGMA)]
    return tuple(SDEPath(sde, start, grid(steps, dtype, END)) for sde in laws)


def chain_kl(step):
    """Exact divergence of the two Euler–Maruyama chains, by recursion of mean and variance under q."""
    m, v, total, d = MEAN, VARIANCE, 0.0, A - B
    for _ in range(round(END / step)):
        total += 0.5 * step * (d**2 * (v + m * m) + 2 * d * C * m + C * C) / SIGMA**2
        m, v = (1 - B * step) * m + C * step, (1 - B * step) ** 2 * v + SIGMA**2 * step
    return total


def test_chain_divergence_tends_to_the_continuous_one_with_the_step():
    excess = [chain_kl(step) - CONTINUOUS for step in (0.02, 0.01, 0.005)]
    assert excess == pytest.approx([0.002923, 0.001453, 0.000724], abs=1e-6)


@pytest.mark.parametrize("step", [0.1, 0.02])
def test_each_estimator_is_within_three_standard_errors_of_the_chain_value(step):
    torch.manual_seed(1)
    report = check_kl(*pair(step), num_samples=20_000, expected=chain_kl(step), ratio_under="p")
    assert abs(float(report.closed) - chain_kl(step)) < 3 * float(report.closed_error) < 0.02
    assert abs(float(report.full) - chain_kl(step)) < 3 * float(report.full_error) < 0.03


def test_each_estimator_in_float32():
    torch.manual_seed(1)
    report = check_kl(*pair(0.1, torch.float32), num_samples=20_000, expected=chain_kl(0.1), ratio_under="p")
    assert abs(float(report.full) - chain_kl(0.1)) < 3 * float(report.full_error)


@pytest.mark.parametrize("step", [0.5, 0.1, 0.02])
def test_girsanov_density_has_mean_one_at_every_step(step):
    # Under the wider law p the weight q / p has a finite variance; under q the weight p / q has none.
    q, p = pair(step)
    path = p.sample((20_000,))
    assert_mean((q.log_prob(path) - p.log_prob(path)).exp(), 1.0, detects=0.06)


def test_stochastic_integral_has_mean_zero():
    q, p = pair(0.02)
    path = q.sample((20_000,))
    assert_mean(q.log_prob(path) - p.log_prob(path) - path_kl(q, p, path), 0.0, detects=0.05)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 3e-3)], ids=str)
def test_log_ratio_is_the_sum_of_girsanov(dtype, tolerance):
    q, p = pair(0.005, dtype)
    path = q.sample((50,))
    z, h = path[:, :-1, 0], q.grid.steps
    u = ((A - B) * z + C) / SIGMA
    noise = q.noise_of(path)[..., 0]
    expected = (0.5 * h * u.square() + h.sqrt() * u * noise).sum(-1)
    torch.testing.assert_close(q.log_prob(path) - p.log_prob(path), expected, rtol=0, atol=tolerance)


def test_girsanov_of_general_noise():
    matrix = torch.tensor([[1.0, 0.2, -0.3], [0.4, 0.7, 0.5]], dtype=DOUBLE)
    prior = SDE(lambda t, z: -z, lambda t, z: matrix * (1 + 0.1 * z[..., :1, None].sin()), noise_type="general")
    control = torch.tensor([0.3, -0.5, 0.2], dtype=DOUBLE)
    q, p = (SDEPath(sde, normal(2), grid()) for sde in (prior.controlled(lambda t, z: control * z[..., :1]), prior))
    check_kl(q, p, num_samples=5000)


# ---------------------------------------------------------------- control form
def test_divergence_of_a_zero_control_is_exactly_zero():
    prior = OrnsteinUhlenbeck(torch.rand(4, 2, dtype=DOUBLE), 0.3, 0.1)
    q, p = (SDEPath(sde, normal(4, 2), grid()) for sde in (prior.controlled(lambda t, z: 0 * z), prior))
    path = q.sample((3,))
    assert path_kl(q, p, path).abs().max() == 0
    assert (q.log_prob(path) - p.log_prob(path)).abs().max() == 0


@pytest.mark.parametrize("kind", ["diagonal", "matrix"])
def test_control_outside_the_range_moves_nothing_and_costs_nothing(kind):
    scale = torch.tensor([0.0, 0.7], dtype=DOUBLE)
    column = torch.tensor([0.6, -0.8], dtype=DOUBLE)  # the Brownian direction that acts
    if kind == "diagonal":
        prior, inside, outside = SDE(lambda t, z: -z, lambda t, z: scale), [0.0, 1.5], [9.0, 1.5]
    else:
        diffusion = torch.stack([column, 2 * column])
        prior = SDE(lambda t, z: -z, lambda t, z: diffusion, noise_type="general")
        inside, outside = 1.5 * column, 1.5 * column + 9 * column.flip(0) * torch.tensor([-1.0, 1.0])
    p = SDEPath(prior, normal(2), grid())
    laws = [
        SDEPath(prior.controlled(lambda t, z, u=u: torch.as_tensor(u, dtype=DOUBLE)), p.initial, p.grid)
        for u in (inside, outside)
    ]
    noise, first = torch.randn(5, 8, 2, dtype=DOUBLE), torch.randn(5, 2, dtype=DOUBLE)
    paths = [law.solve(first, noise) for law in laws]
    torch.testing.assert_close(*paths, rtol=1e-12, atol=1e-12)
    expected = torch.full((5,), 0.5 * 1.5**2, dtype=DOUBLE)
    for law in laws:
        torch.testing.assert_close(path_kl(law, p, paths[0]), expected, rtol=1e-10, atol=0)
        torch.testing.assert_close(law.log_prob(paths[0]), laws[0].log_prob(paths[0]), rtol=1e-10, atol=1e-10)


def test_two_controls_compare_by_their_difference():
    prior = OrnsteinUhlenbeck(1.0, 0.5)
    q, p = (SDEPath(prior.controlled(lambda t, z, u=u: u * torch.ones_like(z)), normal(2), grid()) for u in (0.5, 0.2))
    torch.testing.assert_close(path_kl(q, p, q.sample()), torch.tensor(0.5 * 2 * 0.3**2, dtype=DOUBLE))


# ---------------------------------------------------------------- initial laws
def test_initial_laws_enter_in_closed_form():
    q, p = (SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(3, 2, loc=m), grid()) for m in (0.5, 0.0))
    torch.testing.assert_close(path_kl(q, p, q.sample()), torch.full((3,), 0.25, dtype=DOUBLE))


def test_initial_laws_without_closed_form_enter_by_their_log_ratio():
    student = dist.StudentT(torch.tensor(5.0, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1)
    q, p = (SDEPath(OrnsteinUhlenbeck(1.0, 0.5), start, grid()) for start in (normal(2), student))
    path = q.sample((4,))
    first = path[:, 0]
    torch.testing.assert_close(path_kl(q, p, path), normal(2).log_prob(first) - student.log_prob(first))
    check_kl(q, p, num_samples=2000)


def delta(value):
    return SDEPath(
        OrnsteinUhlenbeck(1.0, 0.5), dist.Delta(torch.full((3, 2), value, dtype=DOUBLE), event_dim=1), grid()
    )


def test_equal_points_cost_nothing():
    q, p = delta(1.0), delta(1.0)
    path = q.sample()
    assert path_kl(q, p, path).abs().max() == 0
    assert path_terms(q, p, path, closed=False).log_q.shape == (3,)


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("guide", ["point", "normal"])
def test_singular_initial_laws_are_refused(closed, guide):
    q = delta(1.0) if guide == "point" else SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(3, 2), grid())
    with pytest.raises(ValueError, match=r"initial laws is not finite in series \[0\]: inf. A law with point mass"):
        path_terms(q, delta(0.5), q.sample(), closed=closed)


# ---------------------------------------------------------------- laws that cannot be compared
@pytest.mark.parametrize("closed", [True, False])
def test_different_grids_are_refused(closed):
    q = SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(2), grid())
    for other in (grid(9), grid(end=1 + 1e-9), TimeGrid(torch.rand(3, 9, dtype=DOUBLE).sort(-1).values)):
        p = SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(2), other)
        with pytest.raises(
            ValueError, match=r"different grids: guide TimeGrid\(.*, model TimeGrid\(.*Build one TimeGrid"
        ):
            path_terms(q, p, q.sample(), closed=closed)


def test_grids_of_batches_that_do_not_broadcast_are_different():
    q, p = (OrnsteinUhlenbeckPath(*torch.ones(3, 1), torch.rand(n, 5).cumsum(-1)) for n in (2, 3))
    with pytest.raises(ValueError, match="different grids"):
        path_kl(q, p, q.sample())


def test_times_equal_to_round_off_are_one_grid():
    later = torch.nextafter(grid().times, torch.tensor(9.0, dtype=DOUBLE))
    assert (later > grid().times).all()
    q, p = (SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(2), TimeGrid(t)) for t in (grid().times, later))
    assert path_kl(q, p, q.sample()) == 0


@pytest.mark.parametrize("closed", [True, False])
def test_different_state_dimensions_are_refused(closed):
    q, p = (SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(n), grid()) for n in (2, 1))
    with pytest.raises(ValueError, match="states of different dimension: 2 and 1"):
        path_terms(q, p, q.sample(), closed=closed)


@pytest.mark.parametrize("closed", [True, False])
def test_infinite_divergence_is_refused_with_and_without_closed_form(closed):
    q, p = (SDEPath(OrnsteinUhlenbeck(1.0, s), normal(2), grid()) for s in (0.9, 0.8))
    with pytest.raises(ValueError, match=r"dimension 0, time 0: guide 0.9, model 0.8"):
        path_terms(q, p, q.sample(), closed=closed)


# ---------------------------------------------------------------- registered divergence
def laws(batch=(3,)):
    prior = OrnsteinUhlenbeck(torch.linspace(0.5, 1.0, 2, dtype=DOUBLE), 0.5)
    return (
        SDEPath(sde, normal(*batch, 2, loc=m), grid())
        for sde, m in ((prior.controlled(lambda t, z: z), 0.3), (prior, 0.0))
    )


def test_registered_divergence_uses_the_sampled_path():
    q, p = laws()
    path = q.rsample((4,))
    torch.testing.assert_close(kl_divergence(q, p), path_kl(q, p, path))


def test_registered_divergence_needs_exactly_one_living_path():
    q, p = laws()
    with pytest.raises(NotImplementedError):
        kl_divergence(q, p)
    kept = [q.rsample(), q.rsample()]
    with pytest.raises(NotImplementedError):
        kl_divergence(q, p)
    del kept[0]
    torch.testing.assert_close(kl_divergence(q, p), path_kl(q, p, kept[0]))


def test_registered_divergence_passes_through_masks_and_events():
    q, p = laws()
    mask = torch.tensor([True, False, True])
    path = q.rsample()
    plain = path_kl(q, p, path)
    torch.testing.assert_close(kl_divergence(q.to_event(1), p.to_event(1)), plain.sum())
    torch.testing.assert_close(kl_divergence(q.mask(mask), p.mask(mask)), plain * mask)
    torch.testing.assert_close(kl_divergence(q.mask(mask).to_event(1), p.mask(mask).to_event(1)), (plain * mask).sum())


def test_mean_field_bound_of_pyro_uses_the_registered_divergence():
    q, p = laws()
    seen = []

    def guide():
        with pyro.plate("series", 3):
            seen.append(pyro.sample("z", q))

    def model():
        with pyro.plate("series", 3):
            pyro.sample("z", p)

    loss = TraceMeanField_ELBO().loss(model, guide)
    assert loss == pytest.approx(float(path_kl(q, p, seen[-1]).sum()), rel=1e-12)


@pytest.mark.filterwarnings("ignore:TraceMeanField_ELBO:UserWarning")
def test_one_law_object_at_two_sites_keeps_its_bound():
    q, p = laws()
    values = {}

    def guide():
        with pyro.plate("series", 3):
            for name in "ab":
                values[name] = pyro.sample(name, q)

    def model():
        with pyro.plate("series", 3):
            for name in "ab":
                pyro.sample(name, p)

    loss = TraceMeanField_ELBO().loss(model, guide)
    ratios = sum(float((q.log_prob(values[n]) - p.log_prob(values[n])).sum()) for n in "ab")
    closed = sum(float(path_kl(q, p, values[n]).sum()) for n in "ab")
    assert min(abs(loss - ratios), abs(loss - closed)) < 1e-9
    assert not torch.equal(values["a"], values["b"])


# ---------------------------------------------------------------- wrappers of a site
def test_wrappers_of_a_site_are_applied_in_their_order():
    law = next(iter(laws((2, 3))))
    path = law.sample()
    mask = torch.tensor([[True, False, True], [False, True, True]])
    row = torch.tensor([True, False])
    wrapped = [
        law,
        law.mask(mask),
        law.to_event(1),
        law.mask(mask).to_event(1),
        law.to_event(1).mask(row),
        law.mask(mask).to_event(2),
        law.mask(mask).mask(~mask),
        law.mask(mask).to_event(1).mask(row),
        law.to_event(1).mask(row).to_event(1),
    ]
    for fn in wrapped:
        found = site_law(fn)
        assert found is not None
        torch.testing.assert_close(found.finish(law.log_prob(path)), fn.log_prob(path), msg=str(fn))


def test_other_distributions_are_no_path_sites():
    assert site_law(dist.Normal(0.0, 1.0)) is None
    assert site_law(normal(3, 2)) is None


def test_divergence_of_independent_intervals_adds_up():
    q, p = pair(0.1)
    path = q.sample((6,))
    halves = [(slice(0, 11), q.grid.times[:11]), (slice(10, 21), q.grid.times[10:])]
    total = torch.zeros(6, dtype=DOUBLE)
    for part, times in halves:
        start = normal(1)  # the same on both sides: no contribution
        total += path_kl(SDEPath(q.sde, start, TimeGrid(times)), SDEPath(p.sde, start, TimeGrid(times)), path[:, part])
    torch.testing.assert_close(total, path_kl(q, p, path), rtol=1e-10, atol=1e-12)


def test_check_kl_refuses_a_wrong_value():
    with pytest.raises(ContractError, match="closed form"):
        check_kl(*pair(0.1), num_samples=5000, expected=CONTINUOUS + 0.1)
