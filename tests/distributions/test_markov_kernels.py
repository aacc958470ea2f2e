"""Kernels of Markov chains: Gaussian parts, divergences between families, layouts, what sampling keeps."""

import gc

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyro_sde import SDE, GaussianPath, SDEPath, TimeGrid
from pyro_sde.distributions._markov_steps import DenseSteps, PackedSteps, layout_of
from pyro_sde.distributions.gaussian_kernels import GaussianKernels
from pyro_sde.distributions.markov_kernels import (
    GaussianLaw,
    MarkovKernels,
    SampledSteps,
    ScoredKernels,
    family,
    has_learned_flow,
    is_discrete,
)
from pyro_sde.distributions.markov_path import MarkovPath
from pyro_sde.sde import IntegratedWiener, OrnsteinUhlenbeck, UnderdampedLangevin

DOUBLE = torch.float64
FACTOR = torch.tensor([[0.7, 0.0], [0.4, 0.9]], dtype=DOUBLE)


def diagonal(*batch, dtype=DOUBLE):
    loc = torch.linspace(-1, 1, torch.Size((*batch, 2)).numel(), dtype=dtype).reshape(*batch, 2)
    return dist.Normal(loc, loc.square() + 0.2).to_event(1)


def full(*batch):
    return dist.MultivariateNormal(diagonal(*batch).base_dist.loc.flip(-1), scale_tril=FACTOR)


def kernels(law, steps=None, value=None):
    steps = DenseSteps(4, None, torch.Size([3])) if steps is None else steps
    value = torch.ones(4, 3, 2, dtype=DOUBLE) if value is None else value
    return MarkovKernels(law, value, steps, lambda packable: kernels(law, steps, value))


# ---------------------------------------------------------------- Gaussian parts
@pytest.mark.parametrize("law", [diagonal(4, 3), full(4, 3)], ids=["diagonal", "full"])
def test_parts_of_a_normal_law_make_the_same_law(law):
    parts = GaussianLaw.of(law)
    value = torch.ones(4, 3, 2, dtype=DOUBLE)
    for same in (parts.law(), parts.widened()):
        torch.testing.assert_close(same.log_prob(value), law.log_prob(value), rtol=1e-12, atol=1e-12)
    noise = torch.linspace(-2, 2, 24, dtype=DOUBLE).reshape(4, 3, 2)
    torch.testing.assert_close(parts.standardise(parts.draw(noise)), noise, rtol=1e-12, atol=1e-12)
    # the noise is standard: the density of the value is that of the noise over the volume of the scale
    volume = parts.widened().scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    expected = dist.Normal(0.0, 1.0).log_prob(noise).sum(-1) - volume
    torch.testing.assert_close(law.log_prob(parts.draw(noise)), expected, rtol=1e-12, atol=1e-12)


class Tilted(dist.Normal):
    """A Normal by name, with samples of its own."""

    def rsample(self, sample_shape=()):
        return super().rsample(sample_shape) + 1


@pytest.mark.parametrize(
    "law",
    [
        dist.Normal(torch.zeros(3, 2), 1.0).to_event(2),
        dist.LogNormal(torch.zeros(2), 1.0).to_event(1),
        dist.Normal(torch.zeros(2), 1.0).to_event(1).mask(False),
        dist.LowRankMultivariateNormal(torch.zeros(2), torch.ones(2, 1), torch.ones(2)),
        Tilted(torch.zeros(2), 1.0).to_event(1),
    ],
)
def test_other_laws_have_no_gaussian_parts(law):
    assert GaussianLaw.of(law) is None


# ---------------------------------------------------------------- divergences
@pytest.mark.parametrize("ours", [diagonal(4, 3), full(4, 3)], ids=["diagonal", "full"])
@pytest.mark.parametrize("theirs", [diagonal(4, 3), full(4, 3)], ids=["diagonal", "full"])
def test_divergence_of_normal_laws_is_closed_whatever_their_scales(ours, theirs):
    expected = kl_divergence(*(GaussianLaw.of(law).widened() for law in (ours, theirs)))
    torch.testing.assert_close(kernels(ours).kl(kernels(theirs)), expected, rtol=1e-12, atol=1e-12)


def test_divergence_of_categorical_laws_is_closed():
    p, q = (dist.Categorical(torch.tensor(row, dtype=DOUBLE)) for row in ([0.2, 0.8], [0.5, 0.5]))
    value = torch.zeros(4, 3, dtype=torch.long)
    divergence = kernels(q, value=value).kl(kernels(p, value=value))
    expected = 0.5 * torch.tensor([0.5 / 0.2, 0.5 / 0.8], dtype=DOUBLE).log().sum()
    assert divergence.shape == (4, 3)  # one number, although neither law depends on step or series
    torch.testing.assert_close(divergence, expected.expand(4, 3), rtol=1e-12, atol=1e-12)


def test_divergence_without_a_closed_form_names_both_families():
    student = dist.StudentT(5.0, torch.ones(4, 3, 2, dtype=DOUBLE), 1.0).to_event(1)
    with pytest.raises(NotImplementedError, match=r"Normal of the guide and StudentT of the model .*register_kl"):
        kernels(diagonal(4, 3)).kl(kernels(student))


def test_divergence_from_kernels_of_another_kind_is_left_to_them():
    law = GaussianPath(OrnsteinUhlenbeck(1.0, 0.5), None, TimeGrid(torch.tensor([0.0, 1.0], dtype=DOUBLE)))
    other = law.kernels(law.sample())
    assert isinstance(other, GaussianKernels)
    with pytest.raises(NotImplementedError):
        kernels(diagonal(4, 3)).kl(other)
    with pytest.raises(NotImplementedError):
        other.kl(kernels(diagonal(4, 3)))


def test_discrete_against_continuous_states_are_refused():
    table = kernels(dist.Categorical(torch.ones(2)), value=torch.zeros(4, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="guide and model have discrete and continuous states"):
        table.check_absolutely_continuous(kernels(diagonal(4, 3)))


def smooth(x):
    return -x


@pytest.mark.parametrize("kind", ["euler", "exact"])
def test_kernels_with_directions_without_noise_are_refused(kind):
    grid = TimeGrid(torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE))
    start = dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1)
    noisy = SDEPath(OrnsteinUhlenbeck(1.0, 0.5), start, grid)
    law = SDEPath(UnderdampedLangevin(smooth), start, grid)
    if kind == "exact":
        law = GaussianPath(IntegratedWiener(1, 0.5), start, grid, discretisation="euler")
    chain = MarkovPath(lambda z, t, u: dist.Normal(z, 1.0).to_event(1), start, 3)
    path = law.sample()
    ours, theirs = chain.kernels(path), law.kernels(path)
    with pytest.raises(ValueError, match="directions without noise, and the other is a MarkovPath"):
        ours.check_absolutely_continuous(theirs)
    with pytest.raises(ValueError, match="directions without noise, and the other is a MarkovPath"):
        theirs.check_absolutely_continuous(ours)
    ours.check_absolutely_continuous(noisy.kernels(path))
    noisy.kernels(path).check_absolutely_continuous(ours)


def test_density_without_an_inverse_is_refused():
    class Closed(dist.Normal):
        def log_prob(self, value):
            raise NotImplementedError

    with pytest.raises(ValueError, match="transition Closed cannot be computed, as its transform has no inverse"):
        kernels(Closed(torch.zeros(3, dtype=DOUBLE), 1.0)).log_prob()


# ---------------------------------------------------------------- layouts
LENGTHS = torch.tensor([3, 5, 1, 4])


@pytest.mark.parametrize("sample", [(), (2,)])
def test_both_layouts_bring_every_step_to_its_place(sample):
    batch = torch.Size((*sample, 4))
    path = torch.arange(torch.Size((*batch, 5, 2)).numel(), dtype=DOUBLE).reshape(*batch, 5, 2)
    inputs, noise = path[..., 1:, :1] + 0.5, -path[..., 1:, :]
    dense, packed = DenseSteps(4, LENGTHS, batch), PackedSteps(4, LENGTHS, batch)
    assert (dense.num_calls, packed.num_calls) == (4, 4)
    moving = torch.arange(1, 5)[:, None] < LENGTHS
    results = []
    for steps in (dense, packed):
        before, after = steps.states(path)
        term = (after - 3 * before + 10 * steps.rows(inputs) + 100 * steps.noise(noise)).sum(-1)
        results.append(steps.by_step(term * steps.times(path).squeeze(-1)))
    torch.testing.assert_close(results[0], results[1])
    assert results[0].shape == (4, *batch)
    assert torch.equal(results[0] != 0, moving.reshape(4, *[1] * len(sample), 4).expand(4, *batch))
    kept = torch.where(moving.T.unsqueeze(-1), noise, torch.zeros_like(noise))
    for steps in (dense, packed):
        assert torch.equal(steps.from_rows(steps.noise(noise)), kept)


@pytest.mark.parametrize("sample", [(), (2,)])
def test_both_layouts_unroll_the_same_path(sample):
    batch = torch.Size((*sample, 4))
    first = torch.arange(torch.Size((*batch, 2)).numel(), dtype=DOUBLE).reshape(*batch, 2)
    noise = torch.randn((*batch, 4, 2), dtype=DOUBLE)
    inputs = torch.randn((4, 4, 1), dtype=DOUBLE)
    calls = []

    def advance(z, t, row, normal):
        calls.append(z.shape[-2])
        return 0.5 * z + t * row + normal

    paths = []
    for steps in (DenseSteps(4, LENGTHS, batch), PackedSteps(4, LENGTHS, batch)):
        paths.append(steps.unroll(advance, first, steps.rows(inputs), steps.noise(noise)))
    torch.testing.assert_close(*paths, rtol=1e-13, atol=1e-13)
    assert calls == [4] * 4 + [3, 3, 2, 1]  # no work behind the end of a series


def test_layout_is_packed_only_where_rows_are_alike_and_lengths_are_of_the_batch():
    batch = torch.Size([2, 4])
    assert isinstance(layout_of(4, LENGTHS, batch, packable=True), PackedSteps)
    assert isinstance(layout_of(4, LENGTHS, batch, packable=False), DenseSteps)
    assert isinstance(layout_of(4, None, batch, packable=True), DenseSteps)
    assert isinstance(layout_of(4, LENGTHS.expand(2, 4), batch, packable=True), DenseSteps)
    assert isinstance(layout_of(4, torch.tensor(2), torch.Size([]), packable=True), DenseSteps)


def test_lengths_of_a_law_without_a_batch_or_with_two_batch_dimensions_are_kept():
    start = dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1)
    for lengths in (torch.tensor(2), torch.tensor([[1, 5, 2], [3, 4, 5]])):
        law = MarkovPath(lambda z, t, u: dist.Normal(z, 1.0).to_event(1), start, 5, lengths=lengths)
        path = law.sample()
        still = path[..., 1:, 0] == path[..., :-1, 0]
        assert torch.equal((~still).sum(-1) + 1, lengths)


# ---------------------------------------------------------------- what sampling keeps
def test_memo_forgets_with_its_path():
    memo, steps = SampledSteps(), DenseSteps(2, None, torch.Size([3]))
    path = torch.zeros(3, 3, 2, dtype=DOUBLE)
    memo.keep(path, steps, [GaussianLaw.of(diagonal(3)) for _ in range(2)])
    assert not memo.holds_densities
    assert memo.recall(path)[1].loc.shape == (2, 3, 2)
    assert memo.recall(path.clone()) is None
    del path
    gc.collect()
    assert memo._kept is None
    path = torch.zeros(3, 3, 2, dtype=DOUBLE)
    memo.keep(path, steps, [torch.zeros(3), torch.ones(3)])
    assert memo.holds_densities
    assert torch.equal(memo.recall(path)[1], torch.tensor([[0.0] * 3, [1.0] * 3]))
    memo.keep(path, steps, [])
    assert memo.recall(path) is None


def test_scored_kernels_evaluate_the_laws_for_a_divergence():
    steps = DenseSteps(4, None, torch.Size([3]))
    law = diagonal(4, 3)
    scored = ScoredKernels(torch.full((4, 3), 2.0, dtype=DOUBLE), steps, lambda packable: kernels(law))
    assert torch.equal(scored.log_prob(), torch.full((4, 3), 2.0, dtype=DOUBLE))
    expected = kernels(law).kl(kernels(full(4, 3)))
    torch.testing.assert_close(scored.kl(kernels(full(4, 3))), expected)
    torch.testing.assert_close(kernels(law).kl(scored), torch.zeros(4, 3, dtype=DOUBLE))


def test_names_and_kinds_of_laws():
    flow = dist.TransformedDistribution(diagonal(3), [dist.transforms.planar(2)])
    assert has_learned_flow(flow)
    assert has_learned_flow(
        dist.TransformedDistribution(dist.Normal(0.0, 1.0).expand([2]), [dist.transforms.planar(2)])
    )
    assert not has_learned_flow(dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
    assert family(dist.LogNormal(torch.zeros(2), 1.0).to_event(1)) == "LogNormal"
    assert is_discrete(dist.Bernoulli(torch.ones(2) / 2).to_event(1))
    assert not is_discrete(diagonal(3))


def test_float32_kernels_are_close_to_float64():
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        value = torch.ones(4, 3, 2, dtype=dtype)
        law = kernels(diagonal(4, 3, dtype=dtype), value=value)
        exact = diagonal(4, 3).log_prob(value.double())
        assert law.log_prob().dtype == dtype
        torch.testing.assert_close(law.log_prob().double(), exact, rtol=tolerance, atol=tolerance)


def flat(t, z):
    return 0 * z


def test_a_chain_in_float32_equals_its_float64_twin():
    start = dist.Normal(torch.zeros(3, 2), 1.0).to_event(1)
    law = SDEPath(SDE(flat, lambda t, z: 1 + 0 * z), start, TimeGrid(torch.arange(5.0)))
    chain = MarkovPath(lambda z, t, u: dist.Normal(z, 1.0).to_event(1), start, 5)
    path = law.sample((2,))
    torch.testing.assert_close(chain.log_prob(path), law.log_prob(path), rtol=1e-5, atol=1e-5)
