import pytest
import torch

from pyro_sde.ops.resampling import RESAMPLING, draw, effective_sample_size, resample
from pyro_sde.testing.statistics import chi2_test, z_test

INF = torch.inf


def counts(ancestors, size):
    return torch.nn.functional.one_hot(ancestors, size).sum(0)


@pytest.mark.parametrize("method", RESAMPLING)
def test_expected_descendants_are_the_weights(method):
    torch.manual_seed(0)
    log_weights = torch.tensor([0.3, -1.0, -INF, 1.2, 0.1], dtype=torch.float64)
    batch = log_weights.unsqueeze(-1).expand(-1, 20_000)
    found = counts(resample(batch, method), 5).double()  # (batch, P)
    z_test(found[:, [0, 1, 3, 4]], 5 * log_weights.softmax(0)[[0, 1, 3, 4]]).require(detects=0.06)
    assert int(found[:, 2].sum()) == 0


@pytest.mark.parametrize("method", RESAMPLING)
def test_every_batch_entry_is_resampled_with_its_own_weights(method):
    torch.manual_seed(0)
    log_weights = torch.full((6, 2, 3), -INF)
    alone = torch.tensor([[0, 1, 2], [3, 4, 5]])
    log_weights.scatter_(0, alone.unsqueeze(0), 0.0)
    assert torch.equal(resample(log_weights, method), alone.expand(6, 2, 3))


def test_systematic_descendants_are_the_weights_rounded_up_or_down():
    torch.manual_seed(0)
    log_weights = torch.randn(50, 200)
    expected = 50 * log_weights.double().softmax(0).T
    assert ((counts(resample(log_weights), 50) - expected).abs() < 1 + 1e-5).all()


def test_stratified_takes_one_point_in_each_stratum_and_systematic_the_same_place_in_all():
    torch.manual_seed(0)
    size, fine = 4, 400  # 400 equal weights: an ancestor tells its point to 1 / 400
    stratified = resample(torch.zeros(fine, 500), "stratified", num=size)
    systematic = resample(torch.zeros(fine, 500), "systematic", num=size)
    strata = torch.arange(size).unsqueeze(-1)
    assert torch.equal(stratified // 100, strata.expand(size, 500))
    assert torch.equal(systematic // 100, strata.expand(size, 500))
    assert (systematic % 100 == systematic[0] % 100).all()
    assert not (stratified % 100 == stratified[0] % 100).all()
    multinomial = resample(torch.zeros(fine, 500), "multinomial", num=size)
    assert not torch.equal(multinomial // 100, strata.expand(size, 500))


def test_multinomial_ancestors_have_the_variance_of_independent_draws():
    torch.manual_seed(0)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    found = counts(resample(weights.log().unsqueeze(-1).expand(-1, 20_000), "multinomial", num=10), 3)[:, 0].double()
    z_test((found - 5).square(), 2.5).require(detects=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", RESAMPLING)
def test_ancestors_stay_in_range_for_extreme_weights(method, dtype):
    torch.manual_seed(0)
    log_weights = torch.randn(10_000, 30, dtype=dtype) * 80 - 1e4
    log_weights[-1] = -INF
    ancestors = resample(log_weights, method)
    assert ancestors.dtype == torch.long
    assert int(ancestors.min()) >= 0
    assert int(ancestors.max()) < 9_999
    assert torch.equal(ancestors.sort(0).values, ancestors)


def test_equal_weights_keep_every_particle_under_systematic_and_stratified_resampling():
    everyone = torch.arange(1000).unsqueeze(-1).expand(-1, 3)
    for method in ("systematic", "stratified"):
        assert torch.equal(resample(torch.zeros(1000, 3), method), everyone)


def test_drawn_indices_have_the_probabilities_of_the_weights():
    torch.manual_seed(0)
    log_weights = torch.tensor([0.0, -INF, 1.0, -2.0], dtype=torch.float64)
    index = draw(log_weights.unsqueeze(-1).expand(-1, 50_000))
    found = torch.nn.functional.one_hot(index, 4).sum(0).double()
    expected = 50_000 * log_weights.softmax(0)
    seen = [0, 2, 3]
    assert int(found[1]) == 0
    chi2_test(float(((found - expected).square() / expected)[seen].sum()), 2).require()


def test_effective_size_counts_equal_particles():
    log_weights = torch.tensor([[0.0, 0.0], [0.0, -INF], [-INF, -INF], [0.0, -INF]])
    torch.testing.assert_close(effective_sample_size(log_weights), torch.tensor([3.0, 1.0]))


@pytest.mark.parametrize(
    ("column", "kind"),
    [([-INF, -INF], "all zero"), ([0.0, torch.nan], "NaN"), ([INF, 0.0], "infinite")],
)
def test_weights_without_a_sum_are_refused_by_name(column, kind):
    log_weights = torch.tensor([[0.0, column[0]], [0.0, column[1]]])
    for function in (resample, draw):
        with pytest.raises(ValueError, match=rf"the weights are {kind} in batch entry \[1\]"):
            function(log_weights)


def test_options_are_checked():
    with pytest.raises(ValueError, match="`method` must be one of"):
        resample(torch.zeros(3), "residual")
    with pytest.raises(ValueError, match="`num` must be a positive integer, received 0"):
        resample(torch.zeros(3), num=0)
    with pytest.raises(ValueError, match=r"`log_weights` must have shape \(P, \*batch\)"):
        resample(torch.zeros(()))
