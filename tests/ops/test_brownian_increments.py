"""Increments and their unions have the law of Brownian motion, its Lévy areas included."""

import math

import numpy as np
import pytest
import torch

from pyro_sde.ops.brownian import (
    LEVY,
    BrownianIncrements,
    brownian_increments,
    coarsen,
    combine,
    normal_width,
    wiener_increments,
)
from pyro_sde.testing.statistics import assert_mean

F64 = torch.float64
H = 0.7  # a step

# --- oracles ----------------------------------------------------------------------------


def quadrature(width, points):
    """Nodes (n, width) and weights (n,) of a rule for N(0, I), exact for degree 2 points - 1 in each variable."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    weights = torch.tensor(weights / weights.sum())
    grid = torch.cartesian_prod(*[torch.tensor(nodes)] * width).reshape(-1, width)
    return grid, torch.cartesian_prod(*[weights] * width).reshape(-1, width).prod(-1)


def expectation(values, weights):
    return torch.einsum("n,n...->...", weights, values)


def record_of(path, step):
    """dt, W, H, A of a path (m + 1, M) at equal steps, by sums: trapezoids for H, left points for A."""
    path = path - path[0]
    length = step * (len(path) - 1)
    integral = step * (0.5 * path[0] + path[1:-1].sum(0) + 0.5 * path[-1])
    outer = torch.einsum("ki,kj->ij", path[:-1], path.diff(dim=0))
    area = 0.5 * (outer - outer.T)
    return BrownianIncrements(torch.tensor([length], dtype=F64), path[-1], integral / length - 0.5 * path[-1], area)


def random_record(steps, batch, dim, levy="area"):
    dt = torch.rand(steps, *batch, 1, dtype=F64) + 0.1
    return brownian_increments(dt, torch.randn(steps, *batch, normal_width(dim, levy), dtype=F64), levy)


def assert_records_close(actual, expected, **tolerance):
    for name, a, b in zip(BrownianIncrements._fields, actual, expected, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(a, b, **tolerance)


# --- increments from standard normals ---------------------------------------------------


def test_normal_width_counts_w_h_and_pairs():
    assert [normal_width(1, levy) for levy in LEVY] == [1, 2, 2]
    assert [normal_width(4, levy) for levy in LEVY] == [4, 8, 14]


def test_levels_add_fields_and_keep_those_below():
    dt, normal = torch.rand(5, 1, dtype=F64), torch.randn(5, normal_width(3, "area"), dtype=F64)
    area = brownian_increments(dt, normal, "area")
    space_time = brownian_increments(dt, normal[:, :6], "space-time")
    plain = brownian_increments(dt, normal[:, :3])
    assert_records_close(space_time, area._replace(A=None))
    assert_records_close(plain, area._replace(A=None, H=None))
    torch.testing.assert_close(wiener_increments(dt, normal[:, :3]), area.W)
    assert area.A.shape == (5, 3, 3)


def test_one_motion_has_no_area():
    record = brownian_increments(torch.ones(1), torch.randn(6, 2), "area")
    assert torch.equal(record.A, torch.zeros(6, 1, 1))


def test_moments_of_w_and_h_are_exact():
    normal, weights = quadrature(4, 3)
    record = brownian_increments(torch.tensor([H], dtype=F64), normal, "space-time")
    both = torch.cat([record.W, record.H], -1)
    covariance = expectation(both.unsqueeze(-1) * both.unsqueeze(-2), weights)
    expected = torch.diag(torch.tensor([H, H, H / 12, H / 12], dtype=F64))
    torch.testing.assert_close(covariance, expected, rtol=0, atol=1e-14)


def test_area_has_the_variance_of_a_levy_area():
    normal, weights = quadrature(5, 5)
    area = brownian_increments(torch.tensor([H], dtype=F64), normal, "area").A
    assert torch.equal(area, -area.mT)
    torch.testing.assert_close(expectation(area, weights), torch.zeros(2, 2, dtype=F64), rtol=0, atol=1e-14)
    second = expectation(area[:, 0, 1] ** 2, weights).item()
    assert second == pytest.approx(H**2 / 4, rel=1e-12)  # the formulas of torchsde: 0.331 and 0.218 h^2
    fourth = expectation(area[:, 0, 1] ** 4, weights).item()
    assert fourth == pytest.approx(5 * H**4 / 16, rel=0.03)
    assert fourth == pytest.approx(0.3075 * H**4, rel=1e-12)  # as the docstring says


def test_area_given_w_has_the_variance_of_a_levy_area():
    normal, weights = quadrature(3, 5)
    w = torch.tensor([0.4, -1.3], dtype=F64)
    given = (w / math.sqrt(H)).expand(len(normal), 2)
    record = brownian_increments(torch.tensor([H], dtype=F64), torch.cat([given, normal], -1), "area")
    second = expectation(record.A[:, 0, 1] ** 2, weights).item()
    assert second == pytest.approx(H**2 / 12 + H / 12 * (0.4**2 + 1.3**2), rel=1e-12)


def test_areas_of_three_motions_are_uncorrelated_and_of_one_size():
    normal, weights = quadrature(9, 3)
    area = brownian_increments(torch.tensor([H], dtype=F64), normal, "area").A
    pairs = torch.stack([area[:, 0, 1], area[:, 0, 2], area[:, 1, 2]], -1)
    covariance = expectation(pairs.unsqueeze(-1) * pairs.unsqueeze(-2), weights)
    torch.testing.assert_close(covariance, H**2 / 4 * torch.eye(3, dtype=F64), rtol=0, atol=1e-13)


def test_law_of_the_area_given_w_and_h_is_that_of_fine_paths():
    n, m = 20_000, 200
    moved = torch.randn(n, m, 2, dtype=F64) * math.sqrt(H / m)
    path = torch.cat([torch.zeros(n, 1, 2, dtype=F64), moved.cumsum(1)], 1)
    outer = torch.einsum("nki,nkj->nij", path[:, :-1], moved)
    true_area = 0.5 * (outer - outer.mT)[:, 0, 1]
    w = path[:, -1]
    h = 0.5 * (path[:, 1:] + path[:, :-1]).mean(1) - 0.5 * w
    ours = brownian_increments(
        torch.tensor([H], dtype=F64),
        torch.cat([w / math.sqrt(H), h / math.sqrt(H / 12), torch.zeros(n, 1, dtype=F64)], -1),
        "area",
    ).A[:, 0, 1]  # the mean given W and H
    rest = true_area - ours
    # The sign and the size of the mean: the rest is uncorrelated with it. A wrong sign would leave -h^2/3.
    assert_mean(rest * ours, 0.0, detects=0.02 * H**2)
    squares = h.square().sum(-1)
    variance = H**2 / 20 + H / 5 * squares
    assert_mean((rest.square() - variance) / H**2, 0.0, detects=0.01)
    assert_mean((rest.square() - variance) * (squares / H - 1 / 6) / H**2, 0.0, detects=0.005)


def test_increments_and_gradients_are_zero_where_a_step_is_padded():
    dt = torch.tensor([[0.3], [0.0], [0.2]], dtype=F64, requires_grad=True)
    normal = torch.randn(3, 9, dtype=F64, requires_grad=True)
    record = brownian_increments(dt, normal, "area")
    total = sum(field.square().sum() for field in record[1:])
    by_dt, by_normal = torch.autograd.grad(total, (dt, normal))
    assert all(torch.equal(field[1], torch.zeros_like(field[1])) for field in record)
    for gradient in (by_dt, by_normal):
        assert torch.isfinite(gradient).all()
        assert (gradient[1] == 0).all()
        assert (gradient[[0, 2]] != 0).all()


def test_increments_are_differentiable_in_steps_and_normals():
    dt = torch.rand(2, 1, dtype=F64) + 0.1
    normal = torch.randn(2, 5, dtype=F64)

    def fields(dt, normal):
        return brownian_increments(dt, normal, "area")[1:]

    assert torch.autograd.gradcheck(fields, (dt.requires_grad_(), normal.requires_grad_()))


def test_increments_of_the_tree_and_of_normals_take_float32():
    dt, normal = torch.rand(4, 1, dtype=F64), torch.randn(4, 9, dtype=F64)
    exact = brownian_increments(dt, normal, "area")
    rounded = brownian_increments(dt.float(), normal.float(), "area")
    assert all(field.dtype == torch.float32 for field in rounded)
    assert_records_close([field.double() for field in rounded], exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: normal_width(0, "none"), r"`brownian_dim` must be a positive integer, received 0"),
        (lambda: normal_width(2, "foster"), r"`levy` must be one of 'none', 'space-time', 'area', received 'foster'"),
        (
            lambda: brownian_increments(torch.ones(1), torch.ones(4), "area"),
            r"normal_width\(M, 'area'\)\), which is 2, 5, 9, 14, ... for M = 1, 2, 3, 4, ..., received \(4,\)",
        ),
        (lambda: brownian_increments(torch.ones(1), torch.ones(3), "space-time"), r"which is 2, 4, 6, 8, .*\(3,\)"),
        (lambda: brownian_increments(torch.ones(1), torch.tensor(1.0)), r"`standard_normal` must have shape .*\(\)"),
        (lambda: brownian_increments(torch.ones(3), torch.ones(3, 2)), r"`dt` must have shape \(..., 1\), .*\(3,\)"),
        (
            lambda: brownian_increments(torch.ones(3, 1), torch.ones(4, 2)),
            r"leading dimensions of `dt` and `standard_normal` must broadcast, received \(3, 1\) .*\(4, 2\)",
        ),
    ],
)
def test_wrong_shapes_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- unions of steps --------------------------------------------------------------------


def test_combine_obeys_chen():
    path = torch.cat([torch.zeros(1, 3, dtype=F64), torch.randn(40, 3, dtype=F64).cumsum(0)])
    first, second = record_of(path[:16], 0.1), record_of(path[15:], 0.1)
    assert_records_close(combine(first, second), record_of(path, 0.1), rtol=1e-12, atol=1e-12)


def test_the_union_of_independent_steps_has_the_law_of_one_step():
    normal, weights = quadrature(10, 3)
    steps = torch.tensor([[0.2], [0.5]], dtype=F64)
    first, second = (brownian_increments(h, x, "area") for h, x in zip(steps, normal.split(5, -1), strict=True))
    union = combine(first, second)
    torch.testing.assert_close(union.dt, torch.full_like(union.dt, H))
    both = torch.cat([union.W, union.H], -1)
    covariance = expectation(both.unsqueeze(-1) * both.unsqueeze(-2), weights)
    expected = torch.diag(torch.tensor([H, H, H / 12, H / 12], dtype=F64))
    torch.testing.assert_close(covariance, expected, rtol=0, atol=1e-13)
    area = union.A[:, 0, 1]
    assert expectation(area**2, weights).item() == pytest.approx(H**2 / 4, rel=1e-11)
    mean = union.H[:, 0] * union.W[:, 1] - union.W[:, 0] * union.H[:, 1]
    assert expectation(area * mean, weights).item() == pytest.approx(H**2 / 6, rel=1e-11)


def test_coarsen_is_combine_over_blocks():
    record = random_record(6, (2,), 3)
    pieces = [BrownianIncrements(*(field[k] for field in record)) for k in range(6)]
    expected = [combine(combine(*pieces[k : k + 2]), pieces[k + 2]) for k in (0, 3)]
    expected = BrownianIncrements(*map(torch.stack, zip(*expected, strict=True)))
    assert_records_close(coarsen(record, 3, dim=0), expected, rtol=1e-12, atol=1e-12)


def test_coarsen_takes_time_on_either_axis_and_shared_steps():
    record = random_record(6, (2,), 3)
    record = record._replace(dt=record.dt[:, :1])  # one grid for all series
    series = BrownianIncrements(record.dt[:, 0], *(field.movedim(0, 1) for field in record[1:]))
    expected = coarsen(record, 2, dim=0)
    assert_records_close(coarsen(series, 2), BrownianIncrements(*(field.movedim(0, 1) for field in expected)))
    assert_records_close(coarsen(series, 1), series._replace(dt=series.dt.expand(2, 6, 1)))


def test_coarsen_in_two_stages_is_coarsen_in_one():
    record = random_record(12, (), 2)
    assert_records_close(coarsen(coarsen(record, 3), 2), coarsen(record, 6), rtol=1e-12, atol=1e-13)


def test_padded_steps_add_nothing_to_a_union():
    dt = torch.tensor([[0.2], [0.3], [0.0], [0.0]], dtype=F64)
    record = brownian_increments(dt, torch.randn(4, 9, dtype=F64), "area")
    union = coarsen(record, 2)
    assert all(torch.equal(field[1], torch.zeros_like(field[1])) for field in union)
    short = BrownianIncrements(*(field[:2] for field in record))
    both = BrownianIncrements(*(field[0] for field in coarsen(record, 4)))
    assert_records_close(both, BrownianIncrements(*(field[0] for field in coarsen(short, 2))))


def test_a_union_knows_what_both_parts_know():
    area, plain = random_record(1, (), 2), random_record(1, (), 2, "none")
    assert combine(area, plain)[2:] == (None, None)
    assert coarsen(random_record(4, (), 2, "none"), 2)[2:] == (None, None)
    assert coarsen(random_record(4, (), 2, "space-time"), 2).A is None


def test_unions_that_do_not_fit_are_refused():
    record = random_record(6, (), 2)
    with pytest.raises(ValueError, match=r"`first` and `second` must have the same number M .*\(6, 2\) and \(6, 3\)"):
        combine(record, random_record(6, (), 3))
    with pytest.raises(ValueError, match=r"`n` must be a positive integer that divides the number of steps 6, .* 4"):
        coarsen(record, 4)
    for dim in (-1, 1, 5):
        with pytest.raises(ValueError, match=r"`dim` must be an axis of W \(6, 2\) other than the last"):
            coarsen(record, 2, dim)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["float32", "float64"])
def test_wiener_increments_of_padded_steps_are_zero_with_zero_gradient(dtype):
    steps = torch.tensor([0.5, 0.0, 1e-30, 0.0], dtype=dtype).reshape(4, 1, 1).requires_grad_()
    normal = torch.randn(4, 3, 2, dtype=dtype, requires_grad=True)
    increments = wiener_increments(steps, normal)
    torch.testing.assert_close(increments, normal * steps.sqrt())
    increments.sum().backward()
    padded = torch.tensor([False, True, False, True])
    assert (increments[padded] == 0).all()
    assert (increments[~padded] != 0).all()
    assert (steps.grad[padded] == 0).all()
    assert torch.isfinite(steps.grad).all()
    assert (steps.grad[~padded] != 0).all()
    assert (normal.grad[padded] == 0).all()
    assert torch.isfinite(normal.grad).all()
