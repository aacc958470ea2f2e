"""A path with memory has the density of its factors, and the divergence of its heads."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_sde.distributions.kl import path_kl
from pyro_sde.distributions.recurrent_path import RecurrentPath
from pyro_sde.infer.elbo import PathELBO
from pyro_sde.testing.statistics import assert_mean

B, T, D, H, C = 3, 5, 2, 4, 3
LENGTHS = torch.tensor([5, 2, 1])


class Head(nn.Module):
    """Normal law of memory and, if there is any, context."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(H, 2 * D)

    def forward(self, memory: Tensor, context: Tensor | None) -> dist.TorchDistribution:
        loc, raw = self.net(memory).chunk(2, -1)
        loc = loc if context is None else loc + context
        return dist.Normal(loc, 0.2 + nn.functional.softplus(raw)).to_event(1)


@pytest.fixture
def parts() -> tuple[nn.GRU, Head, Tensor, Tensor]:
    torch.manual_seed(0)
    memory = nn.GRU(D + C, H, batch_first=True).double()
    return memory, Head().double(), torch.randn(H).double(), torch.randn(B, T, C).double()


def factors(law: RecurrentPath, path: Tensor) -> Tensor:
    """Log-density of every state ``(B, T)`` by a loop over `torch.nn.GRUCell`."""
    cell = nn.GRUCell(D + C, H).double()
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in law.memory.state_dict().items()})
    memory, terms = law.start.expand(B, -1), []
    for t in range(T):
        context = None if law.context is None else law.context[:, t]
        terms.append(law.head(memory, context).log_prob(path[:, t]))
        memory = cell(torch.cat([path[:, t], law.inputs[:, t]], -1), memory)
    return torch.stack(terms, -1)


def test_density_is_the_product_of_the_factors(parts):
    path = torch.randn(B, T, D).double()
    context = torch.randn(B, T, D).double()
    for law in (RecurrentPath(*parts), RecurrentPath(*parts, context=context)):
        torch.testing.assert_close(law.log_prob(path), factors(law, path).sum(-1), rtol=1e-12, atol=1e-12)


def test_series_end_at_their_lengths(parts):
    law = RecurrentPath(*parts, lengths=LENGTHS)
    path = law.sample()
    inside = torch.arange(T) < LENGTHS[:, None]
    expected = torch.where(inside, factors(law, path), 0.0).sum(-1)
    torch.testing.assert_close(law.log_prob(path), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(path[1, 2:], path[1, 1:2].expand(3, -1))
    assert torch.equal(path[2], path[2, :1].expand(T, -1))


def test_a_series_alone_equals_the_series_in_a_batch(parts):
    memory, head, start, inputs = parts
    path = torch.randn(B, T, D).double()
    whole = RecurrentPath(*parts, lengths=LENGTHS).log_prob(path)
    alone = RecurrentPath(memory, head, start, inputs[1:2, :2]).log_prob(path[1:2, :2])
    torch.testing.assert_close(whole[1:2], alone)


def test_sampling_has_the_law_of_the_density(parts):
    """E[q / p] = 1 under samples of p, for another law q of the same support."""
    law = RecurrentPath(*parts, lengths=LENGTHS)
    other = law.with_head(lambda memory, context: dist.Normal(law.head(memory, None).mean + 0.1, 0.5).to_event(1))
    torch.manual_seed(1)
    path = law.sample((40_000,))
    ratio = (other.log_prob(path) - law.log_prob(path)).exp()
    assert_mean(ratio[:, 1], 1.0, detects=0.05)
    noise = (path[..., 0, :] - law.initial.mean) / law.initial.stddev
    assert_mean(noise.square()[:, 0], 1.0, detects=0.1)


def test_closed_divergence_is_the_sum_of_those_of_the_heads(parts):
    law = RecurrentPath(*parts, lengths=LENGTHS)
    guide = law.with_head(Head().double(), None)
    path = guide.sample()
    memories = law.memories(path)
    each = torch.distributions.kl_divergence(guide.head(memories, None), law.head(memories, None))
    expected = torch.where(torch.arange(T) < LENGTHS[:, None], each, 0.0).sum(-1)
    torch.testing.assert_close(path_kl(guide, law, path), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(path_kl(law, law, path), torch.zeros(B).double())


def test_closed_divergence_has_the_mean_of_the_log_ratio(parts):
    law = RecurrentPath(*parts)
    guide = law.with_head(Head().double(), None)
    torch.manual_seed(2)
    path = guide.sample((20_000,))
    ratio = guide.log_prob(path) - law.log_prob(path)
    assert_mean((ratio - path_kl(guide, law, path)).sum(-1), 0.0, detects=0.5)


@pytest.mark.parametrize("kl", ["stl", "closed", "full"])
def test_every_estimator_serves_a_recurrent_guide(parts, kl):
    law = RecurrentPath(*parts, lengths=LENGTHS)
    head = Head().double()

    def model():
        pyro.module("prior", law.head)
        with pyro.plate("series", B):
            z = pyro.sample("z", law)
            pyro.sample("y", dist.Normal(z.sum((-2, -1)), 1.0), obs=torch.zeros(B).double())

    def guide():
        pyro.module("head", head)
        with pyro.plate("series", B):
            pyro.sample("z", law.with_head(head, None))

    pyro.clear_param_store()
    loss = PathELBO(kl, num_particles=3, vectorize_particles=True, max_plate_nesting=1).loss_and_grads(model, guide)
    assert loss == loss
    assert head.net.weight.grad.abs().sum() > 0


def test_float32_agrees_with_float64(parts):
    memory, head, start, inputs = parts
    path = torch.randn(B, T, D).double()
    exact = RecurrentPath(*parts).log_prob(path)
    law = RecurrentPath(memory.float(), head.float(), start.float(), inputs.float())
    torch.testing.assert_close(law.log_prob(path.float()), exact.float(), rtol=1e-5, atol=1e-5)
    assert law.sample().dtype == torch.float32


def test_one_point_is_its_first_state(parts):
    memory, head, start, inputs = parts
    law = RecurrentPath(memory, head, start, inputs[:, :1])
    path = law.sample((2,))
    torch.testing.assert_close(law.log_prob(path), law.initial.log_prob(path[..., 0, :]))


def test_arguments_that_do_not_fit_are_refused(parts):
    memory, head, start, inputs = parts
    with pytest.raises(ValueError, match="`inputs` and `context` must have shape"):
        RecurrentPath(memory, head, start, inputs[0])
    with pytest.raises(ValueError, match="`inputs` and `context` must have shape"):
        RecurrentPath(*parts, context=inputs[:, 1:])
    with pytest.raises(ValueError, match="at most `length`"):
        RecurrentPath(*parts, lengths=LENGTHS + 1)
    with pytest.raises(ValueError, match="`lengths` must have shape"):
        RecurrentPath(*parts, lengths=LENGTHS[:2])
    with pytest.raises(ValueError, match="`head` must return a Normal law with event shape"):
        RecurrentPath(memory, lambda d, c: dist.Normal(d, 1.0).to_event(1), start, inputs)
    with pytest.raises(ValueError, match="`path` must have shape"):
        RecurrentPath(*parts).kernels(torch.zeros(B, T + 1, D).double())
    with pytest.raises(ValueError, match="different lengths"):
        RecurrentPath(*parts).check_same_grid(RecurrentPath(*parts, lengths=LENGTHS))


def test_a_path_that_explodes_is_named(parts):
    memory, _, start, inputs = parts
    law = RecurrentPath(
        memory, lambda d, c: dist.Normal(d[..., :D] / 0, 1.0, validate_args=False).to_event(1), start, inputs
    )
    with pytest.raises(ValueError, match="became non-finite"):
        law.named("z").sample()
