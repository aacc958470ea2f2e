"""A Brownian tree has the law of Brownian motion, and its path is a function of the seed alone."""

import itertools
import math

import pytest
import torch

from pyro_sde.ops import _brownian_descent
from pyro_sde.ops._brownian_hash import NODE, keys, mix, normals
from pyro_sde.ops.brownian import (
    LEVY,
    BrownianIncrements,
    VirtualBrownianTree,
    brownian_increments,
    coarsen,
    combine,
    normal_width,
)
from pyro_sde.testing.statistics import assert_mean, ks_test

F64 = torch.float64
H = 0.7  # a step


def assert_records_close(actual, expected, **tolerance):
    for name, a, b in zip(BrownianIncrements._fields, actual, expected, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(a, b, **tolerance)


# --- the hash ---------------------------------------------------------------------------


def test_mix_is_that_of_splitmix64():
    golden = 0x9E3779B97F4A7C15
    states = [(k * golden) % 2**64 for k in (1, 2, 3)]
    states = torch.tensor([x - 2**64 if x >= 2**63 else x for x in states])
    words = [x % 2**64 for x in mix(states).tolist()]
    assert words == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # the generator from state 0


def test_bits_of_the_hash_are_balanced_and_flip_alone():
    key = keys(torch.tensor(5), NODE, 1)
    word = mix(key + mix(torch.arange(50_000)))
    shifts = torch.arange(64)
    bits = (word.unsqueeze(-1) >> shifts) & 1
    assert_mean(bits, 0.5, detects=0.02)
    flipped = mix(key + mix(torch.arange(50_000) ^ 1))
    assert_mean(((flipped.unsqueeze(-1) >> shifts) & 1) ^ bits, 0.5, detects=0.02)


def test_normals_of_one_seed_are_standard_and_independent():
    x = normals(keys(torch.tensor(11), NODE, 2), torch.arange(60_000), 4)
    ks_test(x).require(detects=0.02)
    assert_mean(x.unsqueeze(-1) * x.unsqueeze(-2), torch.eye(4), detects=0.05)
    assert_mean(x[1:] * x[:-1], 0.0, detects=0.05)
    assert_mean(x[1:].square() * x[:-1].square(), 1.0, detects=0.1)
    assert_mean(x[:, :2].square() * x[:, 2:].square(), 1.0, detects=0.1)  # one radius, two angles
    assert_mean(x**4, 3.0, detects=0.4)


def test_normals_of_neighbouring_seeds_are_standard_and_independent():
    x = normals(keys(torch.arange(60_000), NODE, 2), torch.tensor([1]), 4)[:, 0]
    ks_test(x).require(detects=0.02)
    assert_mean(x[1:] * x[:-1], 0.0, detects=0.05)
    assert_mean(x[1:].square() * x[:-1].square(), 1.0, detects=0.1)


# --- the tree: its law ------------------------------------------------------------------


def covariance_of_path(times, depth, space_time, monkeypatch):
    """Exact covariance (2N, 2N) of (W, its integral) or (N, N): the path is linear in the normals of the nodes."""
    kinds = 2 if space_time else 1
    count = kinds * 2 ** (depth + 1)

    def unit_normals(key, node, width):
        basis = torch.eye(count, dtype=F64).reshape(count, -1, kinds)
        return basis[:, node, :width]  # (count, N, width): one series per normal

    monkeypatch.setattr(_brownian_descent, "normals", unit_normals)
    seeds = torch.zeros(count, 1, dtype=torch.long)
    path, integral = _brownian_descent.descend(seeds, times, depth, 1, space_time)
    both = path if integral is None else torch.cat([path, integral], -2)
    return torch.einsum("ni,nj->ij", both[..., 0], both[..., 0])


def covariance_of_brownian_motion(times):
    s, t = times.unsqueeze(-1), times.unsqueeze(-2)
    low, high = torch.minimum(s, t), torch.maximum(s, t)
    between = torch.where(s <= t, 0.5 * s**2, 0.5 * t**2 + t * (s - t))  # E[int_0^s W, W_t]
    integrals = low**2 * (3 * high - low) / 6
    return torch.cat([torch.cat([low, between.mT], -1), torch.cat([between, integrals], -1)])


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("space_time", [False, True])
def test_covariance_is_exact_with_one_time_per_leaf(depth, space_time, monkeypatch):
    within = torch.tensor([0.37, 0.0, 0.81, 0.5, 0.02, 0.99, 0.6, 0.25] * 2, dtype=F64)[: 2**depth]
    times = torch.cat([(torch.arange(2**depth) + within) / 2**depth, torch.ones(1, dtype=F64)])
    covariance = covariance_of_path(times, depth, space_time, monkeypatch)
    expected = covariance_of_brownian_motion(times)
    size = len(covariance)
    torch.testing.assert_close(covariance, expected[:size, :size], rtol=0, atol=1e-14)


@pytest.mark.parametrize("space_time", [False, True])
def test_each_single_time_within_one_leaf_has_its_exact_law(space_time, monkeypatch):
    times = torch.linspace(0.5, 1.0, 9, dtype=F64)
    covariance = covariance_of_path(times, 1, space_time, monkeypatch)
    size = len(covariance)
    torch.testing.assert_close(
        covariance.diagonal(), covariance_of_brownian_motion(times).diagonal()[:size], rtol=0, atol=1e-14
    )


TIMES = [-1.0, -0.9, -0.37, 0.1, 0.100001, 1.0, 1.7, 2.9999]  # dyadic in [-1, 3] or not, long and short steps


@pytest.mark.parametrize("levy", LEVY)
def test_increments_of_neighbouring_seeds_are_independent_standard_normals(levy):
    tree = VirtualBrownianTree(-1.0, 3.0, brownian_dim=2, seed=torch.arange(20_000), levy=levy, dtype=F64, depth=24)
    x = tree.standard_normals(TIMES).movedim(0, 1).flatten(1)  # (seeds, K * width)
    assert x.shape[-1] == 7 * normal_width(2, levy)
    ks_test(x).require(detects=0.04)
    products = x.unsqueeze(-1) * x.unsqueeze(-2)  # between motions, between steps, between W and H
    assert_mean(products, torch.eye(x.shape[-1]), detects=0.12)
    assert_mean(x[1:] * x[:-1], 0.0, detects=0.06)  # of neighbours


def test_variance_at_any_time_is_the_time():
    tree = VirtualBrownianTree(0.0, 2.0, brownian_dim=1, seed=torch.arange(40_000), dtype=F64)
    times = torch.tensor([0.001, 1 / 3, 0.5, 1.234, math.sqrt(3), 2.0], dtype=F64)
    path = tree.path(times)[..., 0]
    assert_mean(path.square() / times, 1.0, detects=0.06)


def test_areas_of_the_tree_have_the_law_of_levy_areas():
    tree = VirtualBrownianTree(0.0, 1.0, brownian_dim=2, seed=torch.arange(40_000), dtype=F64, levy="area")
    record = tree.increments([0.1, 0.8])
    w, h, area = (field[:, 0] for field in record[1:])
    area = area[:, 0, 1]
    assert_mean(area.square(), H**2 / 4, detects=0.1 * H**2 / 4)
    assert_mean(area * (h[:, 0] * w[:, 1] - w[:, 0] * h[:, 1]), H**2 / 6, detects=0.1 * H**2)


def scalar_path(seed, u, depth):
    """W(u) of one motion without areas, in the integers and floats of Python."""
    mask = 2**64 - 1

    def scramble(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    key = scramble((scramble((scramble((seed + golden) & mask) + NODE) & mask) + golden) & mask)

    def normal(node):
        word = scramble((key + scramble(node)) & mask)
        radius = math.sqrt(-2 * math.log(((word >> 24) + 0.5) / 2**40))
        return radius * math.cos(2 * math.pi * (word & 0xFFFFFF) / 2**24)

    start, increment, left, node = 0.0, normal(0), 0.0, 1
    for level in range(depth):
        length = 2.0**-level
        half = 0.5 * increment + 0.5 * math.sqrt(length) * normal(node)
        if u >= left + 0.5 * length:
            start, increment, left, node = start + half, increment - half, left + 0.5 * length, 2 * node + 1
        else:
            increment, node = half, 2 * node
    theta = (u - left) * 2**depth
    return start + theta * increment + math.sqrt(theta * (1 - theta) / 2**depth) * normal(node)


@pytest.mark.parametrize("seed", [0, 1, -7, 2**62 + 12345])
def test_path_is_the_descent_that_the_docstrings_describe(seed):
    times = [0.0, 0.1, 0.25, 0.637, 0.9999]
    tree = VirtualBrownianTree(0.0, 1.0, 1, seed, depth=7, dtype=F64)
    expected = torch.tensor([scalar_path(seed, u, 7) for u in times], dtype=F64)
    torch.testing.assert_close(tree.path(times)[:, 0], expected, rtol=1e-12, atol=1e-13)


# --- the tree: one path for all queries -------------------------------------------------


def make_tree(levy="none", seed=None, **options):
    seed = torch.arange(64) ** 5 - 17 if seed is None else seed
    return VirtualBrownianTree(0.0, 1.0, 3, seed, levy=levy, dtype=F64, **options)


def some_times(n):
    return torch.rand(n, dtype=F64).sort().values


@pytest.mark.parametrize("levy", LEVY)
def test_a_series_has_the_same_bits_alone_and_in_a_batch(levy):
    tree, times = make_tree(levy), some_times(37)
    whole = tree.increments(times)
    for i in (0, 1, 30, 63):
        for alone in (make_tree(levy, tree.seed[i : i + 1]), make_tree(levy, int(tree.seed[i]))):
            assert torch.equal(alone.path(times).reshape(37, 3), tree.path(times)[i])
            for field, batched in zip(alone.increments(times)[1:], whole[1:], strict=True):
                assert (field is None) == (batched is None)
                assert field is None or torch.equal(field.reshape(batched[i].shape), batched[i])


@pytest.mark.parametrize("levy", ["none", "space-time"])
def test_a_value_does_not_depend_on_the_other_queries_or_their_order(levy):
    tree, times = make_tree(levy, torch.tensor([3, 4])), some_times(300)
    path = tree.path(times)
    order = torch.randperm(300)
    assert torch.equal(tree.path(times[order]), path[:, order])
    for i in (0, 17, 299):
        assert torch.equal(tree.path(times[i : i + 1])[:, 0], path[:, i])
    assert torch.equal(tree.path(times[::7]), path[:, ::7])
    assert torch.equal(tree.path(times), path)


def test_a_series_has_the_same_bits_on_a_grid_of_its_own():
    tree = make_tree("space-time")
    times = torch.rand(64, 9, dtype=F64).sort(-1).values
    path = tree.path(times)
    for i in (0, 33):
        assert torch.equal(make_tree("space-time", int(tree.seed[i])).path(times[i]), path[i])
    shared = make_tree("space-time", int(tree.seed[5]))  # one path on 64 grids
    assert torch.equal(shared.path(times)[5], path[5])
    assert shared.path(times).shape == (64, 9, 3)


@pytest.mark.parametrize("levy", ["none", "space-time"])
def test_a_grid_and_its_refinement_see_one_path(levy):
    tree = make_tree(levy)
    fine = torch.linspace(0.1, 0.9, 61, dtype=F64)
    assert torch.equal(tree.path(fine)[:, ::4], tree.path(fine[::4]))
    assert_records_close(
        coarsen(tree.increments(fine), 4),
        tree.increments(fine[::4])._replace(dt=fine[::4].diff().reshape(1, -1, 1).expand(64, -1, 1)),
        rtol=1e-9,
        atol=1e-12,
    )


def test_increments_add_up_to_rounding():
    tree = make_tree("space-time")
    s, t, u = 0.2, 0.2 + 1e-4, 0.71
    union, whole = combine(tree(s, t), tree(t, u)), tree(s, u)
    torch.testing.assert_close(union.W, whole.W, rtol=0, atol=1e-15)
    torch.testing.assert_close(union.H, whole.H, rtol=0, atol=1e-14)


def test_a_path_begins_at_zero_and_a_repeated_time_moves_nothing():
    tree = VirtualBrownianTree(2.0, 5.0, 2, 1, levy="area", dtype=F64)
    assert torch.equal(tree.path([2.0]), torch.zeros(1, 2, dtype=F64))
    record = tree.increments([2.0, 3.1, 3.1, 4.0, 5.0, 5.0])
    for field in record:
        assert (field[[1, 4]] == 0).all()
        assert (field[[0, 2, 3]].flatten(1).abs().amax(-1) > 0).all()
    normal = tree.standard_normals([2.0, 3.1, 3.1, 4.0])
    assert (normal[1] == 0).all()
    assert (normal[[0, 2]] != 0).all()


def test_interval_changes_unit_of_time_and_scale_only():
    unit, wide = make_tree("area"), VirtualBrownianTree(-1.0, 3.0, 3, make_tree().seed, levy="area", dtype=F64)
    times = torch.tensor([0.0, 0.25, 0.3125, 1.0], dtype=F64)
    torch.testing.assert_close(wide.path(4 * times - 1), 2 * unit.path(times))
    dt, W, area_h, A = unit.increments(times)
    expected = BrownianIncrements(4 * dt, 2 * W, 2 * area_h, 4 * A)
    assert_records_close(wide.increments(4 * times - 1), expected)


@pytest.mark.parametrize("levy", LEVY)
def test_standard_normals_are_the_increments(levy):
    tree = make_tree(levy)
    times = torch.tensor([[0.1, 0.4, 0.45, 0.9], [0.0, 0.5, 0.5, 0.5]], dtype=F64).repeat(32, 1)
    normal = tree.standard_normals(times)
    assert normal.shape == (3, 64, normal_width(3, levy))
    dt = times.diff(dim=-1).movedim(-1, 0).unsqueeze(-1)
    record = brownian_increments(dt, normal, levy)
    expected = tree.increments(times)
    for field, other in zip(record, expected, strict=True):
        assert (field is None) == (other is None)
        if field is not None:
            torch.testing.assert_close(field, other.movedim(1, 0), rtol=1e-12, atol=1e-13)


def test_one_interval_is_a_call():
    tree = make_tree("area")
    s, t = torch.rand(64, dtype=F64) / 2, 0.9
    record = tree(s, t)
    assert [tuple(field.shape) for field in record] == [(64, 1), (64, 3), (64, 3), (64, 3, 3)]
    expected = tree.increments(torch.stack([s, torch.full_like(s, t)], -1))
    assert torch.equal(record.A, expected.A[:, 0])
    assert torch.equal(record.H, expected.H[:, 0])
    assert make_tree("none", 3)(0.1, 0.2).W.shape == (3,)
    assert make_tree("none", 3)(0.1, 0.2).H is None


def test_the_area_of_a_query_is_its_own():
    tree = make_tree("area", 4)
    times = torch.tensor([0.0, 0.3, 0.6, 0.6 + 1e-12], dtype=F64)
    record = tree.increments(times)
    assert torch.equal(tree(0.3, 0.6).A, record.A[1])
    assert torch.equal(record.A, -record.A.mT)
    # one end in common, and two pairs whose bits have one sum
    queries = ([0.0, 0.3], [0.3, 0.6], [0.3, 0.6 + 1e-12], [0.0, 0.6], [0.125, 1.0], [0.25, 0.5])
    normal = torch.cat([tree.standard_normals(query)[0, 6:] for query in queries])
    assert len(set(normal.tolist())) == 18


def test_steps_carry_the_gradient_of_times_and_the_path_does_not():
    times = torch.tensor([0.1, 0.5, 0.9], dtype=F64, requires_grad=True)
    record = make_tree("area").increments(times)
    (gradient,) = torch.autograd.grad(record.dt.square().sum(), times)
    torch.testing.assert_close(gradient, torch.tensor([-0.8, 0.0, 0.8], dtype=F64))
    assert not any(field.requires_grad for field in record[1:])
    assert not make_tree().standard_normals(times).requires_grad


def test_a_tree_keeps_nothing_between_queries():
    tree = make_tree("area")
    before = {name: id(value) for name, value in vars(tree).items()}
    for n in (1, 10, 1000):
        tree.increments(some_times(n + 1))
    assert {name: id(value) for name, value in vars(tree).items()} == before
    assert sum(value.numel() for value in vars(tree).values() if isinstance(value, torch.Tensor)) == 64


def test_changing_the_seed_tensor_later_does_not_change_the_tree():
    seed = torch.tensor([1, 2])
    tree = make_tree("none", seed)
    before = tree.path([0.5])
    seed.add_(5)
    assert torch.equal(tree.path([0.5]), before)


def test_float32_is_the_rounded_path():
    exact = make_tree("area")
    tree = VirtualBrownianTree(0.0, 1.0, 3, exact.seed, levy="area")
    times = torch.linspace(0, 1, 33)  # exact in float32
    assert tree.dtype == torch.float32
    assert torch.equal(tree.path(times), exact.path(times.double()).float())
    for field, other in zip(tree.increments(times), exact.increments(times.double()), strict=True):
        assert torch.equal(field, other.float())


def test_the_ends_may_be_spelled_in_float32():
    tree = VirtualBrownianTree(0.1, 0.3, 1, 0)
    ends = torch.tensor([0.1, 0.3])
    assert float(ends[1]) > 0.3
    assert torch.equal(tree.path(ends), tree.path([0.1, 0.3]))


# --- the tree: children -----------------------------------------------------------------


def test_children_are_independent_of_each_other_and_of_their_parent():
    parent = VirtualBrownianTree(0.0, 1.0, 1, torch.arange(20_000), dtype=F64)
    children = parent.children((3,))
    assert children.batch_shape == (3, 20_000)
    family = torch.cat([parent.path([1.0]).unsqueeze(0), children.path([1.0])])[..., 0, 0].T  # (seeds, 4)
    ks_test(family).require(detects=0.04)
    assert_mean(family.unsqueeze(-1) * family.unsqueeze(-2), torch.eye(4), detects=0.1)
    grandchildren = children.children((2,)).path([1.0])[..., 0, 0].flatten(0, 1).T
    assert_mean(grandchildren.unsqueeze(-1) * family.unsqueeze(-2), 0.0, detects=0.1)


def test_child_i_of_a_seed_is_the_same_in_any_batch_and_shape():
    parent = make_tree("space-time")
    children = parent.children((2, 3))
    assert torch.equal(children.seed.flatten(0, 1), parent.children((6,)).seed)
    assert torch.equal(parent.children((2,)).seed, children.seed[0, :2])
    alone = make_tree("space-time", int(parent.seed[9])).children((6,))
    assert torch.equal(alone.seed, children.seed[..., 9].flatten())
    assert (alone.levy, alone.depth, alone.dtype) == ("space-time", 20, F64)
    assert len(set(children.seed.flatten().tolist())) == 6 * 64


# --- the tree: bad input ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"end": 0.0}, ValueError, r"`start` and `end` must be finite with start < end, received 0.0 and 0.0"),
        ({"end": math.inf}, ValueError, r"`start` and `end` must be finite .* inf"),
        ({"brownian_dim": 0}, ValueError, r"`brownian_dim` must be a positive integer, received 0"),
        ({"levy": "davie"}, ValueError, r"`levy` must be one of .* received 'davie'"),
        ({"depth": 51}, ValueError, r"`depth` must be an integer from 1 to 50, received 51"),
        ({"depth": 2.0}, ValueError, r"`depth` must be an integer from 1 to 50, received 2.0"),
        ({"dtype": torch.int64}, ValueError, r"`dtype` must be a real floating point type, received torch.int64"),
        ({"seed": 2**63}, ValueError, r"`seed` must fit into 64 bits, .* received 9223372036854775808"),
        ({"seed": 1.5}, TypeError, r"`seed` must be an int or an int64 tensor \(\*batch,\), .* received 1.5"),
        ({"seed": torch.zeros(3)}, TypeError, r"`seed` must be an int or an int64 tensor .* received torch.float32"),
    ],
)
def test_wrong_arguments_of_a_tree_are_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        VirtualBrownianTree(**{"start": 0.0, "end": 1.0, "brownian_dim": 1, "seed": 0, **arguments})


@pytest.mark.parametrize("time", [-1e-3, 1.001, math.nan])
def test_a_query_outside_the_interval_is_refused(time):
    message = rf"`times` must lie inside the interval \[0, 1\] of this Brownian motion, received {time:g}"
    tree = make_tree()
    for call in (tree.path, tree.increments, tree.standard_normals):
        with pytest.raises(ValueError, match=message):
            call([0.5, time])
    with pytest.raises(ValueError, match=message):
        tree(0.0, time)


def test_queries_of_a_wrong_kind_are_refused():
    tree = make_tree()
    with pytest.raises(ValueError, match=r"`times` must not decrease along the last axis; sort them, or use `path`"):
        tree.increments([0.5, 0.4])
    with pytest.raises(ValueError, match=r"`times` must not decrease"):
        tree(0.5, 0.4)
    with pytest.raises(ValueError, match=r"`times` must have shape \(N,\) or \(\*batch, N\), received a number"):
        tree.path(torch.tensor(0.5))
    with pytest.raises(ValueError, match=r"`shape` must consist of positive integers, received \(2, 0\)"):
        tree.children((2, 0))


def test_repr_names_interval_and_options():
    assert "VirtualBrownianTree([0, 1], brownian_dim=3, batch_shape=(64,), depth=20" in repr(make_tree())


def test_all_levels_of_all_records_have_named_fields():
    for levy, dim in itertools.product(LEVY, (1, 2)):
        record = VirtualBrownianTree(0.0, 1.0, dim, 0, levy=levy).increments([0.0, 1.0])
        assert (record.H is None) == (levy == "none")
        assert (record.A is None) == (levy != "area")
        assert record.dt.shape == (1, 1)
