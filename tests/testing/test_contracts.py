import copy
import re

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import TorchDistribution
from torch.distributions import Distribution, constraints

from pyro_sde import SDE, OrnsteinUhlenbeckPath, SDEPath, TimeGrid
from pyro_sde.testing import CLAUSES, ContractError, check_distribution

DOUBLE = torch.float64
GRID = TimeGrid(torch.linspace(0, 1, 6, dtype=DOUBLE))


def make(cls=OrnsteinUhlenbeckPath, dtype=DOUBLE):
    theta = torch.tensor([[0.5, 1.0], [1.5, 2.0], [0.7, 0.3]], dtype=dtype)
    return cls(theta, 0.5 * torch.ones(2, dtype=dtype), torch.zeros(2, dtype=dtype), GRID.times.to(dtype))


def path_of(drift, diffusion=lambda t, z: 0.5 * torch.ones_like(z)):
    return SDEPath(SDE(drift, diffusion), dist.Normal(torch.zeros(3, 2, dtype=DOUBLE), 1.0).to_event(1), GRID)


# ---------------------------------------------------------------- laws that break one clause each
class SummedDensity(OrnsteinUhlenbeckPath):
    def log_prob(self, value):
        return super().log_prob(value).sum(-1)


class OwnRandomness(OrnsteinUhlenbeckPath):
    calls = 0

    def simulate(self, initial):
        OwnRandomness.calls += 1
        return super().simulate(initial) + 0.01 * OwnRandomness.calls


class WrongSupport(OrnsteinUhlenbeckPath):
    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self):
        return constraints.real_vector


class PositiveSupport(OrnsteinUhlenbeckPath):
    @constraints.dependent_property(is_discrete=False, event_dim=2)
    def support(self):
        return constraints.independent(constraints.positive, 2)


class LostClass(OrnsteinUhlenbeckPath):
    def expand(self, batch_shape, _instance=None):
        return TorchDistribution.expand(self, batch_shape)


class UnexpandedInitial(OrnsteinUhlenbeckPath):
    """Claims the larger batch shape, draws the smaller one."""

    def expand(self, batch_shape, _instance=None):
        new = copy.copy(self)
        Distribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        return new


class CopiedDraws(OrnsteinUhlenbeckPath):
    def rsample(self, sample_shape=()):
        base = super().rsample(sample_shape)
        return base[..., :1, :, :, :].expand_as(base) if len(self.batch_shape) > 1 else base


class PermissiveExpand(OrnsteinUhlenbeckPath):
    def expand(self, batch_shape, _instance=None):
        try:
            return super().expand(batch_shape)
        except ValueError:
            return self


class IgnoredMask(OrnsteinUhlenbeckPath):
    def mask(self, mask):
        return self


class DeafToEvents(OrnsteinUhlenbeckPath):
    def to_event(self, reinterpreted_batch_ndims=None):
        return self


class CentredOnSamples(OrnsteinUhlenbeckPath):
    """The density of a path depends on the other samples."""

    def log_prob(self, value):
        shift = value.mean(0, keepdim=True) if value.dim() > 3 else 0.0
        return super().log_prob(value - 0.01 * shift)


class WrongVolume(OrnsteinUhlenbeckPath):
    def log_prob(self, value):
        return super().log_prob(value) + 0.1


class NoEntropy(OrnsteinUhlenbeckPath):
    def score_parts(self, x):
        return super().score_parts(x)._replace(entropy_term=0)


class AlwaysReparameterised(OrnsteinUhlenbeckPath):
    def score_parts(self, x):
        return copy.copy(self).has_rsample_(True)._parts(x)

    def _parts(self, x):
        return OrnsteinUhlenbeckPath.score_parts(self, x)


class ForgetfulExpand(OrnsteinUhlenbeckPath):
    def expand(self, batch_shape, _instance=None):
        return super().expand(batch_shape).has_rsample_(True)


class WithGradient(OrnsteinUhlenbeckPath):
    def sample(self, sample_shape=()):
        return self.rsample(sample_shape)


class AcceptsNaN(OrnsteinUhlenbeckPath):
    def _validate_sample(self, value):
        super()._validate_sample(value.nan_to_num())


class KeepsItsSample(OrnsteinUhlenbeckPath):
    """A cache with a graph, which deepcopy refuses."""

    def rsample(self, sample_shape=()):
        self.cache = super().rsample(sample_shape) * torch.ones((), requires_grad=True)
        return self.cache


class Retuned(OrnsteinUhlenbeckPath):
    """A copy that is another law."""

    def __getstate__(self):
        state = super().__getstate__()
        return {**state, "initial": dist.Normal(self.loc, 2 * self.sigma).to_event(1).expand(self.batch_shape)}


def mean_over_batch(t, z):
    return -(z - (z.mean(-2, keepdim=True) if z.dim() > 1 else 0))


BROKEN = [
    ("shapes", lambda: make(SummedDensity), "log_prob has shape"),
    ("shapes", lambda: trained(WithGradient), "carries a gradient"),
    ("seed", lambda: make(OwnRandomness), "two draws with one seed: differs"),
    ("support", lambda: make(WrongSupport), "must have 2 event dimensions, has 1"),
    ("support", lambda: make(PositiveSupport), "a sample lies outside"),
    ("expand", lambda: make(LostClass), "changed the class to ExpandedDistribution"),
    ("expand", lambda: make(UnexpandedInitial), "sample of the expanded law has shape"),
    ("expand", lambda: make(CopiedDraws), "copies of one draw"),
    ("expand", lambda: make(PermissiveExpand), "did not raise"),
    ("mask", lambda: make(IgnoredMask), "log_prob of the masked law: differs"),
    ("to_event", lambda: make(DeafToEvents), r"to_event\(1\) gave \(3,\)"),
    ("broadcast", lambda: make(CentredOnSamples), "log_prob of stacked paths: differs"),
    ("independence", lambda: path_of(mean_over_batch), "entry 0 depends on the path of entry"),
    ("loop", lambda: make(WrongVolume), "one step at a time: differs by 0.1"),
    ("score_parts", lambda: make(NoEntropy), "score_parts.entropy_term"),
    ("score_parts", lambda: make(AlwaysReparameterised), "the score function must be the number 0"),
    ("has_rsample", lambda: make(ForgetfulExpand), r"expand forgot has_rsample_\(False\)"),
    ("gradients", lambda: path_of(lambda t, z: -(z - z.detach()).abs().sqrt()), "gradient of log_prob is not finite"),
    ("validation", lambda: make(AcceptsNaN), "NaN did not raise ValueError"),
    ("deepcopy", lambda: make(KeepsItsSample), "raised RuntimeError: Only Tensors created explicitly"),
    ("deepcopy", lambda: make(Retuned), "log_prob of the copy: differs"),
    ("pickle", lambda: path_of(lambda t, z: -z), "raised AttributeError|raised PicklingError"),
    ("pickle", lambda: make(Retuned), "log_prob of the copy: differs"),
]


def trained(cls):
    theta = torch.ones(3, 2, dtype=DOUBLE, requires_grad=True)
    return cls(theta, torch.ones_like(theta).detach(), torch.zeros_like(theta), GRID.times)


@pytest.mark.parametrize(("clause", "make_broken", "message"), BROKEN, ids=lambda v: v if isinstance(v, str) else "")
def test_a_broken_law_is_named_by_its_clause(clause, make_broken, message):
    with pytest.raises(ContractError) as caught:
        check_distribution(make_broken())
    assert re.search(rf"\n  {clause}: [^\n]*({message})", str(caught.value)), str(caught.value)


def test_every_clause_has_a_law_that_breaks_it():
    assert set(CLAUSES) == {clause for clause, _, _ in BROKEN}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_right_law_passes_and_leaves_randomness_alone(dtype):
    before = torch.get_rng_state()
    check_distribution(make(dtype=dtype))
    assert torch.equal(before, torch.get_rng_state())


def test_every_broken_clause_is_listed():
    class TwiceBroken(WrongVolume, LostClass):
        pass

    with pytest.raises(ContractError, match=r"(?s)breaks \d of 15 clauses:\n  expand: .*\n  loop: "):
        check_distribution(make(TwiceBroken))


def test_parameters_without_gradient_are_found():
    unused = torch.ones(4, requires_grad=True)
    with pytest.raises(ContractError, match=r"no .*gradient for parameters \['0 of shape \(4,\)'\]|neither density"):
        check_distribution(make(), parameters=[unused])


def test_given_parameters_need_a_gradient_from_density_or_samples():
    law = trained(OrnsteinUhlenbeckPath)
    check_distribution(law, parameters=[law.theta], skip=("deepcopy", "pickle"))


def test_skipped_clauses_are_not_run():
    check_distribution(path_of(lambda t, z: -z), skip=("pickle",))


def test_an_unknown_clause_is_refused():
    with pytest.raises(ValueError, match=r"`skip` names unknown clauses \['pickled'\]; the clauses are"):
        check_distribution(make(), skip=("pickled",))


def test_other_distributions_are_refused():
    with pytest.raises(TypeError, match="`law` must be a PathDistribution, received Normal"):
        check_distribution(dist.Normal(0.0, 1.0))
