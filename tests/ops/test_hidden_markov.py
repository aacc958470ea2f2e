"""Regimes in log space: equal to a sum over all paths, in both forms, with masks, ends and probabilities of zero."""

import itertools
import math

import pytest
import torch

from pyro_sde.ops.hidden_markov import HiddenMarkov, check_log_probabilities
from pyro_sde.testing import assert_mean

DOUBLE = torch.float64
FORMS = ("associative", "loop")
INF = math.inf


def problem(batch=(3,), points=6, regimes=3, dtype=DOUBLE, seed=0, sparse=False):
    """Log-probabilities of a chain; with `sparse` some moves and likelihoods are impossible."""
    torch.manual_seed(seed)
    initial = torch.randn(*batch, regimes, dtype=dtype)
    table = torch.randn(*batch, points - 1, regimes, regimes, dtype=dtype)
    likelihood = 2 * torch.randn(*batch, points, regimes, dtype=dtype)
    if sparse:
        initial[..., 0] = -INF
        table[..., 0, -1] = -INF
        table[..., 1, 0] = -INF
        table[..., 0, :, 0] = -INF  # no way into regime 0 at the first move
        likelihood[..., 2, 0] = -INF
    return initial.log_softmax(-1), table.log_softmax(-1), likelihood


def all_paths(points, regimes):
    return torch.tensor(list(itertools.product(range(regimes), repeat=points)))


def joint_by_hand(initial, table, likelihood, path):
    """Joint log-probability of one path for one series, term by term."""
    total = initial[path[0]] + likelihood[0, path[0]]
    for n in range(1, len(path)):
        total = total + table[n - 1, path[n - 1], path[n]] + likelihood[n, path[n]]
    return total


@pytest.fixture(params=[False, True], ids=["dense", "sparse"])
def brute(request):
    """A problem of 2 series with the joint log-probability ``(paths, 2)`` of all its paths."""
    parts = problem((2,), points=6, sparse=request.param)
    paths = all_paths(6, 3)
    joint = torch.stack(
        [torch.stack([joint_by_hand(*(part[b] for part in parts), path) for b in range(2)]) for path in paths]
    )
    return parts, paths, joint


@pytest.mark.parametrize("form", FORMS)
def test_one_table_serves_all_steps_of_series_of_any_length(form):
    initial, table, likelihood = problem((3,), points=6)
    lengths = torch.tensor([6, 2, 1])
    shared = HiddenMarkov(initial, table[0, 0], likelihood, lengths=lengths, form=form)
    given = HiddenMarkov(initial, table[0, 0].expand(5, 3, 3), likelihood, lengths=lengths, form=form)
    torch.testing.assert_close(shared.log_evidence(), given.log_evidence(), rtol=0, atol=0)
    for b, n in enumerate(lengths.tolist()):
        alone = HiddenMarkov(initial[b], table[0, 0], likelihood[b, :n], form=form)
        torch.testing.assert_close(shared.log_evidence()[b], alone.log_evidence(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_evidence_is_the_sum_over_all_paths(brute, form):
    parts, _, joint = brute
    torch.testing.assert_close(HiddenMarkov(*parts, form=form).log_evidence(), joint.logsumexp(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_posteriors_are_sums_over_all_paths(brute, form):
    parts, paths, joint = brute
    weight = joint.softmax(0)
    chain = HiddenMarkov(*parts, form=form)
    held = torch.nn.functional.one_hot(paths, 3).double()  # (paths, N, K)
    torch.testing.assert_close(chain.posterior(), torch.einsum("pb,pnk->bnk", weight, held), rtol=0, atol=1e-12)
    pairs = torch.einsum("pb,pni,pnj->bnij", weight, held[:, :-1], held[:, 1:])
    torch.testing.assert_close(chain.pairwise(), pairs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_filter_sees_the_past_only(brute, form):
    (initial, table, likelihood), _, _ = brute
    chain = HiddenMarkov(initial, table, likelihood, form=form)
    for n in (1, 3, 6):
        part = HiddenMarkov(initial, table[:, : n - 1], likelihood[:, :n])
        torch.testing.assert_close(chain.filter()[:, n - 1], part.posterior()[:, -1])
        torch.testing.assert_close(chain.log_increments()[:, :n].sum(-1), part.log_evidence())


@pytest.mark.parametrize("form", FORMS)
def test_viterbi_is_the_best_of_all_paths(brute, form):
    parts, paths, joint = brute
    chain = HiddenMarkov(*parts, form=form)
    best = chain.viterbi()
    assert torch.equal(best, paths[joint.argmax(0)])
    torch.testing.assert_close(chain.log_joint(best), joint.amax(0))


def test_viterbi_is_a_path_and_not_the_best_regime_of_each_step():
    # the likeliest regime at each step is 0, 1, but that move is impossible
    initial = torch.tensor([0.4, 0.3, 0.3], dtype=DOUBLE).log()
    table = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]], dtype=DOUBLE).log()
    chain = HiddenMarkov(initial, table, torch.zeros(2, 3, dtype=DOUBLE))
    assert chain.posterior().argmax(-1).tolist() == [0, 1]
    assert chain.viterbi().tolist() == [0, 0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sparse", [False, True])
def test_samples_have_the_law_of_the_joint_posterior(form, sparse):
    parts = problem((), points=4, regimes=2 + sparse, seed=3, sparse=sparse)
    chain = HiddenMarkov(*parts, form=form)
    paths = all_paths(4, chain.num_regimes)
    expected = chain.log_joint(paths).softmax(0)
    torch.manual_seed(1)
    draws = chain.sample((40_000,))
    hits = (draws.unsqueeze(1) == paths).all(-1).double()  # (S, paths)
    possible = expected > 1e-3  # the normal approximation of rare paths is bad
    assert_mean(hits[:, possible], expected[possible], detects=0.02)
    assert not hits[:, expected == 0].any()


def test_samples_of_a_batch_are_those_of_each_series():
    parts = problem((2, 3), points=40, seed=4)
    torch.manual_seed(0)
    draws = HiddenMarkov(*parts).sample((3000,))
    assert draws.shape == (3000, 2, 3, 40)
    held = torch.nn.functional.one_hot(draws, 3).double()
    expected = HiddenMarkov(*parts).posterior()
    open_ = (expected > 0.05) & (expected < 0.95)  # the normal approximation of rare regimes is bad
    assert_mean(held[:, open_], expected[open_], detects=0.08)


@pytest.mark.parametrize("points", [1, 2, 3, 4, 5, 31, 32, 33, 100, 257])
def test_forms_agree_for_any_number_of_steps(points):
    parts = problem((2,), points=points, sparse=points > 3)
    one, other = (HiddenMarkov(*parts, form=form) for form in FORMS)
    torch.testing.assert_close(one.log_increments(), other.log_increments(), rtol=0, atol=1e-10)
    torch.testing.assert_close(one.posterior(), other.posterior(), rtol=0, atol=1e-10)
    assert torch.equal(one.viterbi(), other.viterbi())


def test_no_digit_is_lost_where_the_likelihood_would_underflow():
    # the regime that the data prefer by 2000 nats is left for good: what explains the end has weight exp(-2000)
    likelihood = torch.zeros(3, 2, dtype=DOUBLE)
    likelihood[0, 1] = -2000.0
    likelihood[2, 0] = -INF
    table = torch.eye(2, dtype=DOUBLE).log()
    for form in FORMS:
        chain = HiddenMarkov(torch.tensor([0.5, 0.5], dtype=DOUBLE).log(), table, likelihood, form=form)
        torch.testing.assert_close(chain.log_evidence(), torch.tensor(-2000 + math.log(0.5), dtype=DOUBLE))
        assert chain.viterbi().tolist() == [1, 1, 1]
        assert chain.posterior()[:, 1].tolist() == [1, 1, 1]


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_right_twice(form):
    torch.manual_seed(0)
    parts = [torch.randn(size, dtype=DOUBLE, requires_grad=True) for size in ((2, 3), (2, 4, 3, 3), (2, 5, 3))]

    def increments(initial, table, likelihood):
        return HiddenMarkov(initial.log_softmax(-1), table.log_softmax(-1), likelihood, form=form).log_increments()

    def smoothed(initial, table, likelihood):
        return HiddenMarkov(initial.log_softmax(-1), table.log_softmax(-1), likelihood, form=form).posterior()

    assert torch.autograd.gradcheck(increments, parts)
    assert torch.autograd.gradgradcheck(increments, parts)
    assert torch.autograd.gradcheck(smoothed, parts)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_finite_and_exact_with_impossible_moves(form):
    parts = [part.requires_grad_() for part in problem((2,), points=40, sparse=True)]
    chain = HiddenMarkov(*parts, form=form, validate=False)
    gradients = torch.autograd.grad(chain.log_evidence().sum(), parts)
    # the gradient of the evidence is the posterior
    expected = (chain.posterior()[:, 0], chain.pairwise(), chain.posterior())
    for gradient, value in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, value, rtol=0, atol=1e-12)
    assert (gradients[1][..., 0, -1] == 0).all()
    for term in (chain.filter(), chain.posterior(), chain.pairwise()):
        for gradient in torch.autograd.grad(term.square().sum(), parts, retain_graph=True):
            assert torch.isfinite(gradient).all()


def test_a_trace_gives_the_same_numbers():
    parts = problem((2,), points=5)

    def evidence(initial, table, likelihood):
        return HiddenMarkov(initial, table, likelihood, validate=False).log_evidence()

    traced = torch.jit.trace(evidence, parts)
    torch.testing.assert_close(traced(*problem((2,), points=5, seed=1)), evidence(*problem((2,), points=5, seed=1)))


def test_functional_transforms_give_the_same_numbers():
    initial, table, likelihood = problem((4,), points=40)

    def evidence(likelihood):
        return HiddenMarkov(initial[0], table[0], likelihood, validate=False).log_evidence()

    gradient = torch.func.vmap(torch.func.grad(evidence))(likelihood)
    torch.testing.assert_close(gradient, HiddenMarkov(initial[0], table[0], likelihood).posterior())


@pytest.mark.parametrize("form", FORMS)
def test_a_masked_observation_counts_as_if_it_were_not_there(form):
    initial, table, likelihood = problem((2,), points=6)
    mask = torch.tensor([[True, False, True, True, False, True], [True] * 6])
    spoilt = torch.where(mask.unsqueeze(-1), likelihood, torch.nan)
    chain = HiddenMarkov(initial, table, spoilt, mask=mask, form=form)
    # without the observation the two moves around it are one
    moves = [table[0, 0].exp() @ table[0, 1].exp(), table[0, 2].exp(), table[0, 3].exp() @ table[0, 4].exp()]
    short = HiddenMarkov(initial[0], torch.stack(moves).log(), likelihood[0, mask[0]])
    torch.testing.assert_close(chain.log_evidence()[0], short.log_evidence())
    torch.testing.assert_close(chain.posterior()[0, mask[0]], short.posterior())
    torch.testing.assert_close(chain.log_evidence()[1], HiddenMarkov(initial, table, likelihood).log_evidence()[1])
    assert (chain.log_increments()[0, [1, 4]].abs() < 1e-12).all()


@pytest.mark.parametrize("form", FORMS)
def test_a_ragged_batch_is_single_series(form):
    initial, table, likelihood = problem((4,), points=6)
    lengths = torch.tensor([6, 3, 1, 0])
    for b, n in enumerate(lengths):
        likelihood[b, n:] = torch.nan
        table[b, max(0, n - 1) :] = torch.nan
    chain = HiddenMarkov(initial, table, likelihood, lengths=lengths, form=form)
    torch.manual_seed(0)
    draws = chain.sample((50,))
    for b, n in enumerate(lengths.tolist()):
        if not n:
            assert chain.log_evidence()[b].abs() < 1e-12
            torch.testing.assert_close(chain.posterior()[b], initial[b].exp().expand(6, 3))
            continue
        one = HiddenMarkov(initial[b], table[b, : n - 1], likelihood[b, :n])
        torch.testing.assert_close(chain.log_evidence()[b], one.log_evidence())
        torch.testing.assert_close(chain.posterior()[b, :n], one.posterior())
        assert torch.equal(chain.viterbi()[b, :n], one.viterbi())
        # behind its end a series keeps its last regime
        torch.testing.assert_close(chain.posterior()[b, n:], one.posterior()[-1:].expand(6 - n, 3))
        assert (chain.viterbi()[b, n:] == one.viterbi()[-1]).all()
        assert (draws[:, b, n:] == draws[:, b, n - 1 : n]).all()


def test_masks_and_ends_hold_together():
    initial, table, likelihood = problem((2,), points=6)
    mask, lengths = torch.tensor([True, False, True, True, True, True]), torch.tensor([4, 6])
    chain = HiddenMarkov(initial, table, likelihood, mask=mask, lengths=lengths)
    one = HiddenMarkov(initial[0], table[0, :3], likelihood[0, :4], mask=mask[:4])
    torch.testing.assert_close(chain.log_evidence()[0], one.log_evidence())
    torch.testing.assert_close(chain.posterior()[1], HiddenMarkov(*problem((2,), 6), mask=mask).posterior()[1])


@pytest.mark.parametrize("form", FORMS)
def test_moves_of_weight_below_the_smallest_number_count(form):
    # 32 chances to leave regime 0 for good, each of log-weight -2000: products of numbers would underflow
    stay = torch.full((2, 2), -2000.0, dtype=DOUBLE).fill_diagonal_(0.0)
    likelihood = torch.zeros(33, 2, dtype=DOUBLE)
    likelihood[0, 1], likelihood[-1, 0] = -INF, -3000.0
    chain = HiddenMarkov(torch.tensor([0.5, 0.5], dtype=DOUBLE).log(), stay, likelihood, form=form)
    expected = math.log(0.5) + math.log(32) - 2000
    torch.testing.assert_close(chain.log_evidence(), torch.tensor(expected, dtype=DOUBLE), rtol=1e-12, atol=0)


def test_batches_broadcast():
    initial, table, likelihood = problem((), points=5)
    more = problem((2, 3), points=5)[2]
    wide = HiddenMarkov(initial, table[:1], more)
    assert wide.batch_shape == (2, 3)
    assert wide.log_evidence().shape == (2, 3)
    assert wide.pairwise().shape == (2, 3, 4, 3, 3)
    one = HiddenMarkov(initial, table[0].expand(4, 3, 3), more[1, 2])
    torch.testing.assert_close(wide.log_evidence()[1, 2], one.log_evidence())
    assert torch.equal(HiddenMarkov(initial, table[0], more).viterbi()[1, 2], one.viterbi())
    assert "num_points=5, num_regimes=3" in repr(wide)


def test_single_precision_is_as_good_as_its_input():
    parts = problem((2,), points=4000, regimes=4)
    exact = HiddenMarkov(*parts)
    rough = HiddenMarkov(*(part.float() for part in parts))
    assert rough.log_increments().dtype == torch.float32
    torch.testing.assert_close(rough.log_evidence().double(), exact.log_evidence(), rtol=1e-6, atol=0)
    torch.testing.assert_close(rough.posterior().double(), exact.posterior(), rtol=0, atol=1e-5)


def test_auto_takes_the_scan_for_little_work_and_the_loop_for_much():
    small, large, short = problem((1,), 100, 3), problem((64,), 100, 6), problem((1,), 10, 3)
    assert HiddenMarkov(*small).form == "associative"
    assert HiddenMarkov(*large).form == "loop"
    assert HiddenMarkov(*short).form == "loop"
    wide = problem((1,), 100, 16)  # sums multiply matrices, maxima cannot
    assert HiddenMarkov(*wide).form == "associative"
    assert torch.equal(HiddenMarkov(*wide).viterbi(), HiddenMarkov(*wide, form="associative").viterbi())


# --- bad input --------------------------------------------------------------------------


def test_rows_that_are_not_normalised_are_named():
    initial, table, likelihood = problem()
    table[1, 2, 0] += 0.5
    with pytest.raises(ValueError, match=r"`log_transition` must hold .* sum to [0-9.]+ at index \[1, 2, 0\]"):
        HiddenMarkov(initial, table, likelihood)
    with pytest.raises(ValueError, match="`log_initial` must hold normalised log-probabilities"):
        HiddenMarkov(initial.exp(), problem()[1], likelihood)
    with pytest.raises(ValueError, match="`x` must hold normalised log-probabilities .* sum to nan"):
        check_log_probabilities("x", torch.full((2,), torch.nan))


def test_another_number_of_regimes_is_named():
    initial, table, likelihood = problem()
    with pytest.raises(ValueError, match=r"for the K = 2 regimes of `log_likelihood`; received \(3, 3\)"):
        HiddenMarkov(initial, table, likelihood[..., :2])


def test_wrong_shapes_are_named():
    initial, table, likelihood = problem()
    with pytest.raises(ValueError, match="`log_likelihood` must have shape"):
        HiddenMarkov(initial, table, likelihood[0, 0])
    with pytest.raises(ValueError, match="`log_transition` must have N - 1 = 5 steps or 1"):
        HiddenMarkov(initial, table[:, :3], likelihood)
    with pytest.raises(ValueError, match="`mask` must be bool of shape"):
        HiddenMarkov(initial, table, likelihood, mask=torch.ones(3, 6))
    with pytest.raises(ValueError, match="`lengths` must be numbers of observations from 0 to 6, received .* 7"):
        HiddenMarkov(initial, table, likelihood, lengths=torch.tensor([1, 7, 2]))
    with pytest.raises(ValueError, match="batch shapes do not broadcast"):
        HiddenMarkov(initial[:2], table, likelihood)
    with pytest.raises(ValueError, match="`form` must be one of"):
        HiddenMarkov(initial, table, likelihood, form="chunked")


def test_bad_likelihoods_are_named():
    initial, table, likelihood = problem()
    likelihood[1, 4, 2] = torch.nan
    with pytest.raises(ValueError, match=r"`log_likelihood` is nan at step 4, regime 2 of series \[1\]"):
        HiddenMarkov(initial, table, likelihood)


@pytest.mark.parametrize("form", FORMS)
def test_a_step_that_no_regime_explains_is_named(form):
    initial, table, likelihood = problem()
    likelihood[2, 3] = -INF
    chain = HiddenMarkov(initial, table, likelihood, form=form)
    message = r"no regime can explain step 3 of 6 of series \[2\]: its log-likelihood is -inf in all of them"
    for method in (chain.log_evidence, chain.viterbi, chain.posterior, chain.sample):
        with pytest.raises(ValueError, match=message):
            method()
    assert HiddenMarkov(initial, table, likelihood, form=form, validate=False).log_evidence()[2] == -INF


def test_a_regime_that_cannot_be_reached_is_named():
    initial = torch.tensor([1.0, 0.0]).log()
    likelihood = torch.zeros(3, 2)
    likelihood[1, 0] = -INF
    chain = HiddenMarkov(initial, torch.eye(2).log(), likelihood)
    with pytest.raises(ValueError, match="no regime can explain step 1 of 3: the regimes that explain it cannot be"):
        chain.log_evidence()


def test_bad_paths_of_regimes_are_named():
    chain = HiddenMarkov(*problem())
    with pytest.raises(ValueError, match="`regimes` must be int64 of shape"):
        chain.log_joint(torch.zeros(3, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="`regimes` must be numbers from 0 to 2"):
        chain.log_joint(torch.full((3, 6), 3))
