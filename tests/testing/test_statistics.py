import sys

import pytest
import torch

from pyro_sde.testing import TEST_FAILURE_RATE, ContractError, Outcome, assert_mean, chi2_test, ks_test, z_test
from pyro_sde.testing.statistics import combine

DOUBLE = torch.float64


def test_one_failure_rate_serves_the_suite():
    assert TEST_FAILURE_RATE == 2e-5


# ---------------------------------------------------------------- z test
def test_z_test_has_the_p_value_of_the_normal_law():
    samples = torch.cat([torch.ones(5000, dtype=DOUBLE), -torch.ones(5000, dtype=DOUBLE)])
    outcome = z_test(samples, 0.0196)
    assert outcome.p_value == pytest.approx(0.05, rel=1e-2)
    assert "mean 0 +- 0.01 (standard error), expected 0.0196, z = -1.96, n = 10000" in outcome.detail


def test_p_values_of_a_true_mean_are_uniform():
    p_values = torch.tensor([z_test(torch.randn(200), 0.0).p_value for _ in range(1000)], dtype=DOUBLE)
    ks_test(p_values, lambda p: p.clamp(0, 1)).require(detects=0.2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_z_test_finds_its_smallest_error(dtype):
    smallest = z_test(torch.randn(1000, dtype=dtype), 0.0).smallest_error
    assert smallest == pytest.approx((4.265 + 2.326) / 1000**0.5, rel=0.1)
    found = [z_test(torch.randn(1000, dtype=dtype) + 1.1 * smallest, 0.0).p_value < 2e-5 for _ in range(100)]
    assert sum(found) >= 95


def test_z_test_corrects_for_the_number_of_entries():
    samples = torch.randn(1000, 1, dtype=DOUBLE)
    one, many = z_test(samples, 0.05), z_test(samples.expand(1000, 10), 0.05)
    assert many.p_value == pytest.approx(min(1.0, 10 * one.p_value))
    assert many.smallest_error > one.smallest_error


def test_z_test_names_the_worst_entry():
    samples = torch.randn(1000, 2, 3)
    samples[:, 1, 2] += 1
    assert "entry [1, 2]" in z_test(samples, 0.0).detail


def test_constant_samples_must_agree_to_round_off():
    constant = torch.full((200,), 0.1, dtype=DOUBLE)
    assert z_test(constant, 0.1).p_value == 1
    assert z_test(constant, 0.1 + 1e-9).p_value < TEST_FAILURE_RATE
    assert z_test(torch.zeros(200), 0.0).p_value == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_samples_that_are_not_finite_fail(bad):
    samples = torch.randn(200)
    samples[3] = bad
    assert z_test(samples, 0.0).p_value == 0
    assert ks_test(samples).p_value == 0
    assert chi2_test(bad, 10).p_value == 0


def test_assert_mean_raises_with_both_values():
    assert_mean(torch.randn(1000), 0.0)
    with pytest.raises(ContractError, match=r"below TEST_FAILURE_RATE = 2e-05: mean .* expected 1, z ="):
        assert_mean(torch.randn(1000), 1.0)


def test_a_test_too_weak_for_its_claim_fails():
    samples = torch.randn(1000)
    assert_mean(samples, 0.0, detects=0.3)
    with pytest.raises(ContractError, match=r"too weak: it finds errors of 0.2.*asks for 0.02. Use about 1\d\d times"):
        assert_mean(samples, 0.0, detects=0.02)


@pytest.mark.parametrize("test", [lambda x: z_test(x, 0.0), ks_test], ids=["z", "ks"])
@pytest.mark.parametrize("shape", [(99,), ()], ids=str)
def test_few_samples_are_refused(test, shape):
    with pytest.raises(ValueError, match="`samples` must have shape .* n >= 100"):
        test(torch.randn(shape))


# ---------------------------------------------------------------- Kolmogorov-Smirnov
def test_ks_test_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    samples = torch.randn(300, dtype=DOUBLE) * 1.2
    assert ks_test(samples).p_value == pytest.approx(stats.kstest(samples.numpy(), "norm").pvalue, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ks_test_passes_the_law_and_fails_a_shift_of_its_smallest_error(dtype):
    uniform = torch.rand(2000, 3, dtype=dtype)
    smallest = ks_test(uniform, lambda x: x.clamp(0, 1)).require().smallest_error
    assert smallest < 0.12
    shifted = uniform.clone()
    shifted[:, 1] += smallest
    outcome = ks_test(shifted, lambda x: x.clamp(0, 1))
    assert outcome.p_value < TEST_FAILURE_RATE
    assert "entry [1]" in outcome.detail


def test_missing_scipy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match="need scipy, which is not installed. Run `pip install scipy`"):
        ks_test(torch.randn(200))


# ---------------------------------------------------------------- chi square
def test_chi2_test_agrees_with_scipy_on_both_tails():
    stats = pytest.importorskip("scipy.stats")
    for statistic, degrees in ((30.0, 10), (2.0, 10), (1.01e6, 1e6), (0.995e6, 1e6)):
        expected = min(1.0, 2 * min(stats.chi2.sf(statistic, degrees), stats.chi2.cdf(statistic, degrees)))
        assert chi2_test(statistic, degrees).p_value == pytest.approx(expected, rel=1e-3)


def test_chi2_test_finds_its_smallest_error():
    smallest = chi2_test(1e4, 1e4).smallest_error
    assert smallest < 0.1
    scale = 1 + 1.1 * smallest
    found = [chi2_test(scale * float(torch.randn(10_000).square().sum()), 1e4).p_value < 2e-5 for _ in range(50)]
    assert sum(found) >= 47


def test_chi2_test_needs_something_to_test():
    with pytest.raises(ValueError, match="`degrees` must be positive, received 0"):
        chi2_test(0.0, 0)


# ---------------------------------------------------------------- several tests
def test_combine_corrects_for_the_number_of_tests():
    good, bad = Outcome(0.9, 0.1, "fine"), Outcome(1e-3, 0.2, "off")
    assert combine([("a", good), ("b", bad)]) == (2e-3, 0.2, "b: off")


def test_combine_needs_a_test():
    with pytest.raises(ValueError, match="`outcomes` is empty"):
        combine([])
