"""The contract of every path law, sticking the landing, and what a law remembers."""

import copy
import gc
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_sde import SDE, SDEPath, TimeGrid, path_kl
from pyro_sde.sde import OrnsteinUhlenbeck
from pyro_sde.testing import check_distribution, gof

DOUBLE = torch.float64


def normal(*shape, dtype=DOUBLE, loc=0.0):
    return dist.Normal(torch.full(shape, loc, dtype=dtype), torch.ones(shape, dtype=dtype)).to_event(1)


def grid(steps=8):
    return TimeGrid(torch.linspace(0, 1, steps + 1, dtype=DOUBLE))


def simple(*batch):
    return SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(*batch, 2), grid())


# ---------------------------------------------------------------- every law of the table
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_law_keeps_the_contract_of_pyro(make_law, dtype):
    check_distribution(make_law(dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_samples_fit_the_kernels(make_law, dtype):
    law = make_law(dtype)
    gof(law, 1000).require(detects=shift(law))


def test_expanded_law_is_sampled_independently(law):
    gof(law.expand((4, *law.batch_shape)), 250).require(detects=shift(law))


def shift(law):
    """Smallest error: a shift of a standardised increment, or a distance of distribution functions if there is none."""
    return 0.15 if law.grid.num_steps else 0.5


# ---------------------------------------------------------------- sticking the landing, one site
class Learned(nn.Module):
    """OU law in control form around another OU process, with parameters of its own."""

    def __init__(self, rate, base_rate):
        super().__init__()
        self.gap = nn.Parameter(torch.tensor((base_rate - rate) / 0.5, dtype=DOUBLE))
        self.loc, self.log_scale = (nn.Parameter(torch.zeros(3, 2, dtype=DOUBLE)) for _ in range(2))
        self.prior = OrnsteinUhlenbeck(base_rate, 0.5)

    def forward(self):
        initial = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return SDEPath(self.prior.controlled(lambda t, z: self.gap * z), initial, grid())


def gradients(elbo, rate, base_rate):
    guide_law = Learned(rate, base_rate)

    def model():
        with pyro.plate("series", 3):
            pyro.sample("z", SDEPath(OrnsteinUhlenbeck(0.7, 0.5), normal(2), grid()))

    def guide():
        with pyro.plate("series", 3):
            pyro.sample("z", guide_law())

    elbo.differentiable_loss(model, guide).backward()
    return torch.cat([p.grad.reshape(-1) for p in guide_law.parameters() if p.grad is not None])


def test_stl_gradient_is_zero_at_a_guide_equal_in_law():
    zero = gradients(Trace_ELBO(), rate=0.7, base_rate=2.0)
    assert len(zero) == 13
    assert zero.abs().max() < 1e-12
    assert gradients(Trace_ELBO(), rate=0.9, base_rate=2.0).abs().max() > 1e-2


def test_score_parts_keep_value_and_drop_the_score():
    log_scale = torch.zeros(2, dtype=DOUBLE, requires_grad=True)
    law = SDEPath(OrnsteinUhlenbeck(1.0, 0.5), dist.Normal(0 * log_scale, log_scale.exp()).to_event(1), grid())
    path = law.rsample((4,))
    parts = law.score_parts(path)
    torch.testing.assert_close(parts.entropy_term, law.log_prob(path))
    (total,) = torch.autograd.grad(parts.entropy_term.sum(), log_scale, retain_graph=True)
    (path_part,) = torch.autograd.grad(law.log_prob(path).sum(), path, retain_graph=True)
    (expected,) = torch.autograd.grad(path, log_scale, path_part, retain_graph=True)
    torch.testing.assert_close(total, expected)
    assert not law.score_parts(path.detach()).entropy_term.requires_grad


def test_score_parts_of_one_path_under_a_batch_of_laws():
    rate = torch.tensor([[0.5], [1.0], [2.0]], dtype=DOUBLE)
    law = SDEPath(OrnsteinUhlenbeck(rate, 0.5), normal(2), grid())
    path = (torch.randn(9, 2, dtype=DOUBLE) * (weight := torch.ones((), dtype=DOUBLE, requires_grad=True))).clone()
    entropy = law.score_parts(path).entropy_term
    assert entropy.shape == (3,)
    for b in range(3):
        alone = SDEPath(OrnsteinUhlenbeck(rate[b], 0.5), normal(2), grid()).score_parts(path).entropy_term
        ours, theirs = (torch.autograd.grad(e, weight, retain_graph=True)[0] for e in (entropy[b], alone))
        torch.testing.assert_close(ours, theirs)


def test_score_parts_without_gradients_are_plain_numbers():
    law = simple(3)
    with torch.no_grad():
        parts = law.score_parts(law.sample())
    assert parts.score_function == 0
    assert not parts.entropy_term.requires_grad


def test_score_parts_of_a_law_without_reparameterisation_are_those_of_pyro():
    law = simple(3).has_rsample_(False)
    parts = law.score_parts(law())
    assert parts.entropy_term == 0
    torch.testing.assert_close(parts.score_function, parts.log_prob)


def test_initial_law_decides_whether_the_path_is_reparameterised():
    start = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), normal(2, 2)).expand((3,))
    assert not start.has_rsample
    law = SDEPath(OrnsteinUhlenbeck(1.0, nn.Parameter(torch.tensor(0.5, dtype=DOUBLE))), start, grid())
    assert not law.has_rsample
    assert not law().requires_grad
    assert not law.expand((4, 3)).has_rsample


# ---------------------------------------------------------------- expand, repr, names
@pytest.mark.parametrize(("batch", "wanted"), [((3,), (4,)), ((3,), ()), ((2, 3), (3,)), ((2, 3), (4, 3))])
def test_impossible_expand_is_refused(batch, wanted):
    message = f"cannot expand a path law of batch shape {batch} to {wanted}"
    with pytest.raises(ValueError, match=re.escape(message)):
        simple(*batch).expand(wanted)


def test_expand_reaches_every_part_of_the_law():
    rows = torch.randn(3, 1, 8, 2, dtype=DOUBLE)
    sde = SDE(lambda t, z, c: c - z, lambda t, z: 0.5 + 0 * z)
    law = SDEPath(sde, normal(1, 2), grid(), inputs=rows)
    wide = law.expand((2, 3, 5))
    assert wide.initial.batch_shape == (2, 3, 5)
    assert wide.sample((4,)).shape == (4, 2, 3, 5, 9, 2)
    path = wide.sample()
    torch.testing.assert_close(wide.log_prob(path)[1, :, 2:3], law.log_prob(path[1, :, 2:3]))


def test_repr_shows_class_and_shapes():
    assert repr(simple(3)) == "SDEPath(batch_shape=(3,), event_shape=(9, 2))"


@pytest.mark.parametrize("validate", [True, False])
def test_validation_switch_is_kept(validate):
    law = SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(2), grid(), validate_args=validate).expand((3,))
    path = law.sample()
    path[1, 2, 0] = torch.nan
    if validate:
        with pytest.raises(ValueError, match="within the support"):
            law.log_prob(path)
    else:
        assert law.log_prob(path).isnan().tolist() == [False, True, False]


# ---------------------------------------------------------------- bad input
def test_initial_without_event_dimension_is_refused_with_advice():
    start = dist.Normal(torch.zeros(3, 2), 1.0)
    with pytest.raises(
        ValueError, match=r"event shape \(D,\), received event shape \(\) and .*\(3, 2\). Add `.to_event"
    ):
        SDEPath(OrnsteinUhlenbeck(1.0, 0.5), start, TimeGrid([0.0, 1.0]))


def test_initial_with_two_event_dimensions_is_refused():
    start = dist.Normal(torch.zeros(3, 2), 1.0).to_event(2)
    with pytest.raises(ValueError, match=r"received event shape \(3, 2\) and batch shape \(\)\.$"):
        SDEPath(OrnsteinUhlenbeck(1.0, 0.5), start, TimeGrid([0.0, 1.0]))


def test_initial_that_is_no_distribution_is_refused():
    with pytest.raises(TypeError, match="`initial` must be a distribution over the first state, received Tensor"):
        SDEPath(OrnsteinUhlenbeck(1.0, 0.5), torch.zeros(2), TimeGrid([0.0, 1.0]))


# ---------------------------------------------------------------- what a law remembers
def test_last_sample_is_the_one_living_path():
    law = simple()
    assert law.last_sample() is None
    first = law.rsample()
    assert law.last_sample() is first
    second = law.sample()
    assert law.last_sample() is None
    del first
    assert law.last_sample() is second
    del second
    assert law.last_sample() is None


@pytest.mark.parametrize("make_copy", [copy.copy, copy.deepcopy, lambda x: x.expand((2,)), lambda x: x.named("z")])
def test_copies_do_not_share_what_was_sampled(make_copy):
    law = simple()
    kept = law.rsample()
    other = make_copy(law)
    assert other.last_sample() is None
    drawn = other.rsample()
    assert law.last_sample() is kept
    assert other.last_sample() is drawn


def test_named_law_is_the_same_law():
    law = simple(3)
    other = law.named("z")
    path = law.sample()
    assert other.site_name == "z"
    assert law.site_name is None
    assert type(other) is type(law)
    torch.testing.assert_close(other.log_prob(path), law.log_prob(path))


def living_tensors():
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_a_hundred_cycles_leak_no_tensor():
    scale = torch.full((2,), 0.5, dtype=DOUBLE, requires_grad=True)
    kept = SDEPath(OrnsteinUhlenbeck(1.0, scale), normal(2), grid())

    def cycle():
        fresh = SDEPath(OrnsteinUhlenbeck(1.0, scale), normal(3, 2), grid())
        for law in (kept, fresh, fresh.expand((4, 3))):
            path = law.rsample()
            parts = law.score_parts(path)
            (parts.log_prob - parts.entropy_term + law.log_prob(path) + path_kl(law, law, path)).sum().backward()

    for _ in range(3):
        cycle()
    before = living_tensors()
    for _ in range(100):
        cycle()
    assert living_tensors() <= before
