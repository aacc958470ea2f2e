import pyro.distributions as dist
import pytest
import torch

from pyro_sde import SDEPath, TimeGrid
from pyro_sde.distributions import kernels
from pyro_sde.sde import OrnsteinUhlenbeck
from pyro_sde.testing import ContractError, check_kl

DOUBLE = torch.float64


def law(rate, loc=0.0, scale=0.5, dtype=DOUBLE, cls=SDEPath):
    start = dist.Normal(torch.full((3, 2), loc, dtype=dtype), 1.0).to_event(1)
    return cls(OrnsteinUhlenbeck(rate, scale, loc), start, TimeGrid(torch.linspace(0, 1, 11, dtype=dtype)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_right_laws_pass_and_are_reported(dtype):
    report = check_kl(law(1.0, 0.3, dtype=dtype), law(0.5, dtype=dtype), num_samples=2000)
    assert report.closed.shape == report.full.shape == (3,)
    assert ((report.closed - report.full).abs() < 5 * (report.closed_error + report.full_error)).all()
    assert (report.closed > 0).all()


def test_equal_laws_have_divergence_zero():
    report = check_kl(law(1.0), law(1.0), num_samples=100, expected=0.0, ratio_under="q")
    assert report.closed.abs().max() == 0


@pytest.mark.parametrize("side", ["q", "p"])
def test_density_ratio_has_mean_one(side):
    # Constant differences of drift: every power of the ratio has a mean, so both directions hold.
    check_kl(law(0.0001, 0.2), law(0.0001), num_samples=5000, ratio_under=side)


def test_wrong_exact_value_is_found():
    with pytest.raises(ContractError, match="closed form: .* expected 5"):
        check_kl(law(1.0, 0.3), law(0.5), num_samples=1000, expected=5.0)


class Scaled(SDEPath):
    """A density with a wrong constant."""

    def log_prob(self, value):
        return super().log_prob(value) + 0.2


@pytest.mark.parametrize(("q", "p"), [(Scaled, SDEPath), (SDEPath, Scaled)])
def test_wrong_density_is_found(q, p):
    with pytest.raises(ContractError, match="closed against full: "):
        check_kl(law(1.0, cls=q), law(0.5, cls=p), num_samples=1000)


@pytest.mark.parametrize("side", ["q", "p"])
def test_ratio_finds_a_wrong_constant(side, monkeypatch):
    monkeypatch.setattr(Scaled, "log_prob", lambda self, value: SDEPath.log_prob(self, value) + 1e-1)
    with pytest.raises(ContractError, match=r"E_q\[p / q\]|E_p\[q / p\]|closed against full"):
        check_kl(law(1e-4, 0.02, cls=Scaled), law(1e-4), num_samples=5000, ratio_under=side)


class Swapped(SDEPath):
    """Scores paths by the law that it is compared with."""

    def log_prob(self, value):
        return SDEPath.log_prob(self.partner, value)


def test_a_divergence_that_is_consistently_negative_is_found(monkeypatch):
    right = kernels.EulerKernels.kl
    monkeypatch.setattr(kernels.EulerKernels, "kl", lambda self, other: -right(self, other))
    q, p = law(1.0, cls=Swapped), law(0.5, cls=Swapped)
    q.partner, p.partner = p, q
    with pytest.raises(ContractError, match="KL >= 0: mean -"):
        check_kl(q, p, num_samples=1000)


def test_divergence_of_a_law_from_itself_must_be_zero(monkeypatch):
    right = kernels.EulerKernels.kl

    def shifted(self, other):
        same = bool((self.drift == other.drift).all())
        return right(self, other) + 0.1 * same

    monkeypatch.setattr(kernels.EulerKernels, "kl", shifted)
    with pytest.raises(ContractError, match=r"path_kl\(q, q\) must be 0, is 1"):
        check_kl(law(1.0), law(0.5), num_samples=1000)


class Forgetful(SDEPath):
    """Remembers a path that it did not sample."""

    def last_sample(self):
        return torch.zeros(3, *self.event_shape, dtype=DOUBLE)


def test_registered_divergence_must_use_the_sampled_path():
    with pytest.raises(ContractError, match=r"kl_divergence\(q, p\) after q.rsample\(\) differs from path_kl"):
        check_kl(law(1.0, cls=Forgetful), law(0.5), num_samples=1000)


def test_infinite_divergence_raises_as_path_kl_does():
    with pytest.raises(ValueError, match="different diffusions"):
        check_kl(law(1.0), law(1.0, scale=0.6), num_samples=100)


def test_unknown_side_is_refused():
    with pytest.raises(ValueError, match='`ratio_under` must be "q", "p" or None, received \'guide\''):
        check_kl(law(1.0), law(1.0), ratio_under="guide")


def test_few_samples_are_refused():
    with pytest.raises(ValueError, match="n >= 100"):
        check_kl(law(1.0), law(1.0), num_samples=99)
