"""Markov chains with any transition law as one site: shapes, densities, samples, estimators, bad input."""

import copy
import itertools
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import Planar, affine_coupling, spline_coupling
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule, PyroSample
from torch import nn
from torch.distributions import kl_divergence

from pyro_sde import SDE, GaussianPath, PathELBO, SDEPath, TimeGrid, path_kl
from pyro_sde.distributions.kl import path_terms
from pyro_sde.distributions.markov_path import MarkovPath
from pyro_sde.ops import GaussianChain
from pyro_sde.testing import assert_mean, check_distribution, check_kl, gof

DOUBLE = torch.float64
LENGTHS = torch.tensor([2, 5, 1])


def normal(*shape, dtype=DOUBLE, scale=1.0):
    return dist.Normal(torch.zeros(shape, dtype=dtype), torch.full(shape, scale, dtype=dtype)).to_event(1)


def wave(z, t, inputs):
    return dist.Normal(0.8 * z.sin() + 0.1 * t, 0.3 + 0.2 * z.cos().square()).to_event(1)


def driven(z, t, inputs):
    return dist.Normal(0.8 * z.sin() + inputs[..., :1] * t, 0.3 + inputs[..., 1:].square()).to_event(1)


def coupled(z, t, inputs):
    one = torch.ones_like(z[..., 0])
    rows = [torch.stack([one, 0 * one], -1), torch.stack([z[..., 1].sin(), 0.5 * one], -1)]
    return dist.MultivariateNormal(0.5 * z.flip(-1), scale_tril=torch.stack(rows, -2))


def mixture(z, t, inputs):
    loc = torch.stack([0.5 * z - 1, 0.5 * z + 1], -2)
    parts = dist.Normal(loc, torch.full_like(loc, 0.4)).to_event(1)
    weights = torch.tensor([0.3, 0.7], dtype=z.dtype).expand(*z.shape[:-1], 2)
    return dist.MixtureSameFamily(dist.Categorical(weights), parts)


def positive(z, t, inputs):
    return dist.LogNormal(0.5 * z.log(), torch.full_like(z, 0.3)).to_event(1)


def elsewhere(z, t, inputs):  # does not look at the state: one law of batch shape () for all series
    return dist.Normal(torch.ones_like(z[(0,) * (z.dim() - 1)]), 0.5).to_event(1)


def rows(*batch, dtype=DOUBLE, steps=4):
    return torch.linspace(-1, 1, torch.Size((*batch, steps, 3)).numel(), dtype=dtype).reshape(*batch, steps, 3)


class Shifted(nn.Module):
    """A tensor with a batch of its own, so that steps cannot be packed."""

    def __init__(self, dtype=DOUBLE):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor([[1.0], [-1.0], [0.5]], dtype=dtype))

    def forward(self, z, t, inputs):
        return dist.Normal(0.5 * z + self.shift, torch.full_like(z, 0.7)).to_event(1)


class Flow(nn.Module):
    """A Normal step and a learned flow on top of it."""

    def __init__(self, make, dtype=DOUBLE):
        super().__init__()
        torch.manual_seed(0)
        self.flow = make().to(dtype)
        self.scale = nn.Parameter(torch.tensor(0.6, dtype=dtype))

    def forward(self, z, t, inputs):
        base = dist.Normal(0.7 * z, self.scale.expand(z.shape)).to_event(1)
        return dist.TransformedDistribution(base, [self.flow])


def markov(transition, dtype=DOUBLE, **options):
    options = {"lengths": LENGTHS, **options}
    return MarkovPath(transition, normal(3, 2, dtype=dtype), 5, **options)


LAWS = {
    "normal": lambda dtype: MarkovPath(wave, normal(3, 2, dtype=dtype), 5),
    "ragged": lambda dtype: markov(wave, dtype),
    "ragged-shared-start": lambda dtype: MarkovPath(wave, normal(2, dtype=dtype), 5, lengths=LENGTHS),
    "inputs": lambda dtype: markov(driven, dtype, inputs=rows(3, dtype=dtype)),
    "shared-inputs": lambda dtype: markov(driven, dtype, inputs=rows(dtype=dtype)),
    "captured": lambda dtype: markov(Shifted(dtype), dtype),
    "multivariate": lambda dtype: markov(coupled, dtype),
    "state-free": lambda dtype: markov(elsewhere, dtype),
    "mixture": lambda dtype: markov(mixture, dtype),
    "coupling": lambda dtype: markov(Flow(lambda: affine_coupling(2, hidden_dims=[4]), dtype), dtype),
    "one-point": lambda dtype: MarkovPath(wave, normal(3, 2, dtype=dtype), 1),
}


# ---------------------------------------------------------------- the contracts of every path law
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", LAWS)
def test_law_keeps_the_contract_of_pyro(name, dtype):
    law = LAWS[name](dtype)
    # a law of a flow keeps the last sample of its transform, whose graph no copy can have
    check_distribution(law, skip=["deepcopy", "pickle"] if name == "coupling" else [])


@pytest.mark.parametrize("name", [name for name in LAWS if name not in ("coupling", "ragged-shared-start")])
def test_samples_fit_the_density(name):
    law = LAWS[name](DOUBLE)
    if law.lengths is not None:  # Stein's identities want every direction to be random
        law = MarkovPath(law.transition, law.initial, 5, inputs=law.inputs)
    torch.manual_seed(0)
    gof(law, 4000).require(detects=1.5)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["even", "ragged"])
def test_series_are_drawn_apart_where_one_law_serves_all(lengths):
    def transition(z, t, inputs):
        return dist.StudentT(torch.tensor([9.0, 9.0], dtype=DOUBLE), 0.0, 1.0).to_event(1)

    path = MarkovPath(transition, normal(3, 2), 5, lengths=lengths).sample((4,))
    assert len(path[..., 1, :].unique()) == (4 * 2 * 3)


@pytest.mark.parametrize("name", ["ragged", "captured", "state-free"])
def test_series_of_an_expanded_law_are_independent(name):
    law = LAWS[name](DOUBLE)
    torch.manual_seed(0)
    path = law.expand((2, 3)).sample((500,))[:, :, 1]
    centred = path - path.mean(0)
    assert_mean(centred[:, 0, 1:] * centred[:, 1, 1:], 0.0, detects=0.6)


def test_expand_of_a_single_length_reaches_all_series():
    law = MarkovPath(wave, normal(1, 2), 5, lengths=torch.tensor([3])).expand((4,))
    path = law.sample()
    assert path.shape == (4, 5, 2)
    assert torch.equal(path[:, 2:], path[:, 2:3].expand(4, 3, 2))
    assert (path[:, 2] != path[:, 1]).all()
    assert law.log_prob(path).shape == (4,)


@pytest.mark.parametrize("name", ["normal", "captured", "multivariate"])
def test_estimators_of_the_divergence_agree(name):
    p = LAWS[name](DOUBLE)
    q = markov(wider) if p.lengths is not None else MarkovPath(wider, normal(3, 2), 5)
    torch.manual_seed(0)
    check_kl(q, p, num_samples=2000)


def wider(z, t, inputs):
    return dist.Normal(0.6 * z, torch.full_like(z, 0.4)).to_event(1)


# ---------------------------------------------------------------- oracles
def drift(t, z):
    return -z * (1 + t)


def control(t, z, inputs):
    return inputs[..., :2] - z


def diffusion(t, z):
    return 0.5 + 0.3 * z.cos()


def euler_pair(dtype=DOUBLE, batch=3):
    """The same two laws, once as SDE paths with one step per observation and once as chains."""
    times = torch.tensor([0.0, 0.3, 0.5, 1.1, 1.2], dtype=dtype)
    grid, context, start = TimeGrid(times), rows(batch, dtype=dtype), normal(batch, 2, dtype=dtype)
    prior = SDE(drift, diffusion)

    def place(t):
        k = t.squeeze(-1).long()
        return times[k - 1].unsqueeze(-1), (times[k] - times[k - 1]).unsqueeze(-1)

    def p_step(z, k, inputs):
        t, h = place(k)
        return dist.Normal(z + drift(t, z) * h, diffusion(t, z) * h.sqrt()).to_event(1)

    def q_step(z, k, inputs):
        t, h = place(k)
        move = drift(t, z) + diffusion(t, z) * control(t, z, inputs)
        return dist.Normal(z + move * h, diffusion(t, z) * h.sqrt()).to_event(1)

    sde = SDEPath(prior.controlled(control), start, grid, inputs=context), SDEPath(prior, start, grid)
    chain = MarkovPath(q_step, start, 5, inputs=context), MarkovPath(p_step, start, 5)
    return sde, chain


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_chain_of_euler_steps_is_the_sde_path_with_one_step_per_observation(dtype, tolerance):
    (sde_q, sde_p), (q, p) = euler_pair(dtype)
    torch.manual_seed(3)
    path = sde_q.sample((7,))
    torch.manual_seed(3)
    again = q.sample((7,))
    torch.testing.assert_close(again, path, rtol=0, atol=tolerance)
    noise = sde_q.noise_of(path)
    torch.testing.assert_close(q.noise_of(path), noise, rtol=0, atol=10 * tolerance)
    torch.testing.assert_close(q.solve(path[..., 0, :], noise), path, rtol=0, atol=tolerance)
    torch.testing.assert_close(q.log_prob(path), sde_q.log_prob(path), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(p.log_prob(path), sde_p.log_prob(path), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(path_kl(q, p, path), path_kl(sde_q, sde_p, path), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kl", ["closed", "full", "stl"])
def test_bound_and_gradients_equal_those_of_the_sde_path(kl):
    gain = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    results = []
    for q, p in euler_pair():
        q.initial = dist.Normal(gain.expand(3, 2), 1.0).to_event(1)

        def model(p=p):
            with pyro.plate("series", 3):
                z = pyro.sample("z", p)
                pyro.sample("y", dist.Normal(z, 0.5).to_event(2), obs=torch.zeros(3, 5, 2, dtype=DOUBLE))

        def guide(q=q):
            with pyro.plate("series", 3):
                pyro.sample("z", q)

        torch.manual_seed(1)
        loss = PathELBO(kl).differentiable_loss(model, guide)
        results.append((loss.detach(), torch.autograd.grad(loss, gain)[0]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-10)


class Exact(nn.Module):
    """Transitions N(A_k z + c_k, Q_k) with parameters for every k."""

    def __init__(self, chain):
        super().__init__()
        self.matrix = nn.Parameter(chain.transition.clone())
        self.offset = nn.Parameter(chain.offset.clone())
        self.factor = nn.Parameter(torch.linalg.cholesky(chain.noise).clone())

    def forward(self, z, t, inputs):
        k = t.squeeze(-1).long() - 1
        loc = (self.matrix[k] @ z.unsqueeze(-1)).squeeze(-1) + self.offset[k]
        return dist.MultivariateNormal(loc, scale_tril=self.factor[k])


def linear_gaussian(steps=6):
    """Model, guide that is its exact posterior, parameters of the guide, and the log-evidence by a Kalman filter."""
    torch.manual_seed(0)
    turn = torch.tensor([[0.9, 0.2], [-0.3, 0.8]], dtype=DOUBLE)
    noise = torch.tensor([[0.5, 0.1], [0.1, 0.3]], dtype=DOUBLE)
    chain = GaussianChain(
        torch.zeros(2, dtype=DOUBLE),
        torch.eye(2, dtype=DOUBLE),
        turn.expand(steps, 2, 2),
        noise.expand(steps, 2, 2),
        torch.full((steps, 2), 0.1, dtype=DOUBLE),
    )
    y = torch.randn(steps + 1, 1, dtype=DOUBLE)
    row = torch.tensor([[1.0, 0.5]], dtype=DOUBLE)
    law = GaussianPath.from_chain(chain)
    evidence = law.log_evidence(row, 0.4, y)
    posterior = law.condition(row, 0.4, y).chain
    prior = MarkovPath(Exact(chain).requires_grad_(False), normal(2), steps + 1)
    transition = Exact(posterior)
    loc = posterior.initial_mean.clone().requires_grad_()
    factor = torch.linalg.cholesky(posterior.initial_covariance).requires_grad_()
    start = dist.MultivariateNormal(loc, scale_tril=factor)

    def model():
        z = pyro.sample("z", prior)
        pyro.sample("y", dist.Normal(z @ row.T, 0.4).to_event(2), obs=y)

    def guide():
        pyro.sample("z", MarkovPath(transition, start, steps + 1))

    return model, guide, [loc, factor, *transition.parameters()], evidence


@pytest.mark.parametrize(
    "elbo", [Trace_ELBO, PathELBO, lambda: PathELBO("full"), lambda: RenyiELBO(0, num_particles=3)]
)
def test_bound_of_the_exact_posterior_is_the_kalman_evidence_on_every_path(elbo):
    model, guide, _, evidence = linear_gaussian()
    for seed in range(3):
        torch.manual_seed(seed)
        assert -elbo().loss(model, guide) == pytest.approx(float(evidence), abs=1e-9)


def test_closed_divergence_of_the_exact_posterior_has_the_evidence_as_mean():
    model, guide, _, evidence = linear_gaussian()
    torch.manual_seed(0)
    many = PathELBO("closed", num_particles=100, vectorize_particles=True, max_plate_nesting=0)
    bounds = torch.tensor([-many.loss(model, guide) for _ in range(100)])
    assert_mean(bounds, evidence, detects=0.2)


@pytest.mark.parametrize("elbo", [PathELBO, Trace_ELBO])
def test_gradient_of_sticking_the_landing_is_zero_at_the_exact_posterior(elbo):
    model, guide, parameters, _ = linear_gaussian()
    torch.manual_seed(0)
    for gradient in torch.autograd.grad(elbo().differentiable_loss(model, guide), parameters):
        assert float(gradient.abs().max()) < 1e-9
    full = torch.autograd.grad(PathELBO("full").differentiable_loss(model, guide), parameters)
    assert max(float(gradient.abs().max()) for gradient in full) > 0.1


@pytest.mark.parametrize("kl", ["closed", "full"])
def test_bound_equals_a_loop_of_sites_at_equal_noise(kl):
    """The deep Markov model as `pyro.markov` writes it, one site for each step, with masks for ragged series."""
    torch.manual_seed(0)
    length, series, width = 6, 4, 3
    lengths = torch.tensor([6, 2, 1, 5])
    mask = torch.arange(length) < lengths.unsqueeze(-1)
    prior, combiner = nn.Linear(width, 2 * width).double(), nn.Linear(2 * width, 2 * width).double()
    context = torch.randn(series, length, width, dtype=DOUBLE)
    noise = torch.randn(series, length, width, dtype=DOUBLE)

    def law(layer, x):
        loc, scale = layer(x).chunk(2, -1)
        return dist.Normal(loc, nn.functional.softplus(scale)).to_event(1)

    def p_step(z, t, inputs):
        return law(prior, z)

    def q_step(z, t, inputs):
        return law(combiner, torch.cat([z, inputs], -1))

    zero = torch.zeros(series, width, dtype=DOUBLE)

    def model():
        z = zero
        with pyro.plate("series", series):
            for t in pyro.markov(range(length)):
                with poutine.mask(mask=mask[:, t]):
                    z = pyro.sample(f"z{t}", p_step(z, t, None))

    def guide():
        z = zero
        with pyro.plate("series", series):
            for t in pyro.markov(range(length)):
                q = q_step(z, t, context[:, t])
                z = q.base_dist.loc + q.base_dist.scale * noise[:, t]
                with poutine.mask(mask=mask[:, t]):
                    pyro.sample(f"z{t}", Given(q, z))

    options = {"lengths": lengths, "length": length}
    p = MarkovPath(p_step, p_step(zero, None, None), **options)
    q = MarkovPath(q_step, q_step(zero, None, context[:, 0]), inputs=context[:, 1:], **options)
    first = q.initial.base_dist.loc + q.initial.base_dist.scale * noise[:, 0]
    path = q.solve(first, noise[:, 1:])
    terms = path_terms(q, p, path, closed=kl == "closed")
    ours = terms.kl if kl == "closed" else terms.log_q - terms.log_p
    elbo = TraceMeanField_ELBO() if kl == "closed" else Trace_ELBO()
    loss = elbo.differentiable_loss(model, guide)
    torch.testing.assert_close(ours.sum(), loss, rtol=1e-10, atol=1e-10)
    parameters = [*prior.parameters(), *combiner.parameters()]
    expected = torch.autograd.grad(loss, parameters)
    torch.testing.assert_close(torch.autograd.grad(ours.sum(), parameters), expected, rtol=1e-8, atol=1e-10)


class Given(dist.Independent):
    """A law that returns a given sample."""

    def __init__(self, law, value):
        super().__init__(law.base_dist, 1)
        self.value = value

    def rsample(self, sample_shape=()):
        return self.value

    def expand(self, batch_shape, _instance=None):
        return self


# ---------------------------------------------------------------- ragged series
@pytest.mark.parametrize(
    "name", ["ragged", "inputs", "shared-inputs", "captured", "multivariate", "mixture", "coupling"]
)
def test_ragged_batch_equals_single_series(name):
    law = LAWS[name](DOUBLE)
    torch.manual_seed(0)
    path = law.sample((2,))
    log_prob = law.log_prob(path)
    for series, length in enumerate(LENGTHS.tolist()):
        assert torch.equal(path[:, series, length:], path[:, series, length - 1 : length].expand(2, 5 - length, 2))
        inputs = law.inputs if law.inputs is None or law.inputs.dim() == 2 else law.inputs[series]
        inputs = None if inputs is None else inputs[: length - 1]
        transition = law.transition
        if isinstance(transition, Shifted):
            transition = copy.deepcopy(transition)
            transition.shift = nn.Parameter(law.transition.shift.detach()[series])
        single = MarkovPath(transition, normal(2), length, inputs=inputs)
        torch.testing.assert_close(
            single.log_prob(path[:, series, :length]), log_prob[:, series], rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("batch", [(), (2,)])
def test_packed_steps_equal_padded_ones(batch):
    law = markov(driven, inputs=rows(3))
    torch.manual_seed(0)
    path, noise = law.sample(batch), torch.randn(*batch, 3, 4, 2, dtype=DOUBLE)
    packed, padded = law.kernels(path), law._kernels(path, packable=False)
    torch.testing.assert_close(packed.log_prob(), padded.log_prob(), rtol=1e-12, atol=1e-12)
    assert packed.next_state.shape[-2] == 5
    other = MarkovPath(unpacked, normal(3, 2), 5, lengths=LENGTHS)
    solved = law.solve(path[..., 0, :], noise)
    loop = path[..., :1, :]
    for k in range(4):
        now = driven(loop[..., -1, :], torch.tensor([k + 1.0], dtype=DOUBLE), law.inputs[:, k]).base_dist
        following = torch.where(k + 1 < LENGTHS[:, None], now.loc + now.scale * noise[..., k, :], loop[..., -1, :])
        loop = torch.cat([loop, following.unsqueeze(-2)], -2)
    torch.testing.assert_close(solved, loop, rtol=1e-12, atol=1e-12)
    kept = torch.where(torch.arange(4)[:, None] + 1 < LENGTHS[:, None, None], noise, torch.zeros_like(noise))
    torch.testing.assert_close(law.noise_of(solved), kept, rtol=1e-10, atol=1e-10)
    assert other.kernels(path).steps.__class__.__name__ == "DenseSteps"
    torch.testing.assert_close(path_kl(law, other, path), path_kl(law, markov(wider), path), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(path_kl(other, law, path), path_kl(markov(wider), law, path), rtol=1e-12, atol=1e-12)


def unpacked(z, t, inputs):
    return dist.Normal(0.6 * z, torch.full((3, 1), 0.4, dtype=DOUBLE) * torch.ones_like(z)).to_event(1)


@pytest.mark.parametrize(
    "transition", [driven, lambda z, t, u: dist.Normal(z + 0 * torch.ones(3, 1), u[..., :1].square() + 0.1).to_event(1)]
)
def test_inputs_behind_the_end_of_a_series_may_be_anything(transition):
    inputs = rows(3)
    spoilt = torch.where((torch.arange(4) + 1 < LENGTHS[:, None]).unsqueeze(-1), inputs, torch.nan).requires_grad_()
    path = markov(transition, inputs=inputs).sample()
    law = markov(transition, inputs=spoilt)
    torch.manual_seed(0)
    torch.testing.assert_close(law.log_prob(path), markov(transition, inputs=inputs).log_prob(path))
    (gradient,) = torch.autograd.grad(law.log_prob(law.rsample()).sum(), spoilt)
    assert torch.isfinite(gradient).all()


def test_first_row_of_inputs_may_be_padding_when_the_law_is_built():
    inputs = rows(3)
    inputs[0] = torch.nan
    law = markov(driven, inputs=inputs, lengths=torch.tensor([1, 5, 2]))
    assert torch.isfinite(law.log_prob(law.sample())).all()


def test_one_start_and_one_noise_serve_the_whole_batch():
    law = markov(driven, inputs=rows(3))
    start, noise = torch.ones(2, dtype=DOUBLE), torch.ones(4, 2, dtype=DOUBLE)
    path = law.solve(start, noise)
    assert torch.equal(path, law.solve(start.expand(3, 2), noise.expand(3, 4, 2)))


def test_point_mask_tells_which_points_belong_to_a_series():
    mask = markov(wave).expand((2, 3)).point_mask
    assert mask.shape == (2, 3, 5)
    assert mask[1].sum(-1).tolist() == [2, 5, 1]
    assert MarkovPath(wave, normal(3, 2), 5).point_mask.all()


# ---------------------------------------------------------------- what sampling keeps
class Counted(nn.Module):
    def __init__(self, law):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.8, dtype=DOUBLE))
        self.law, self.calls = law, 0

    def forward(self, z, t, inputs):
        self.calls += 1
        return self.law(self.gain * z)


DIAGONAL = Counted(lambda z: dist.Normal(z.sin(), 0.5 + z.cos().square()).to_event(1))
FULL = Counted(lambda z: coupled(z, None, None))


@pytest.mark.parametrize("transition", [DIAGONAL, FULL], ids=["normal", "multivariate"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["even", "ragged"])
def test_kernels_of_a_sampled_path_need_no_call_and_have_the_same_total_gradient(transition, lengths):
    law = MarkovPath(transition, normal(3, 2), 5, lengths=lengths)
    path = law.rsample((2,))
    before = transition.calls
    kept = law.sampled_kernels(path).log_prob()
    assert transition.calls == before
    anew = law.kernels(path).log_prob()
    assert transition.calls == before + 1
    torch.testing.assert_close(kept, anew, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(term.sum(), transition.gain, retain_graph=True) for term in (kept, anew)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)
    weighted = [(path.square() * term.sum()).sum() for term in (kept, anew)]
    torch.testing.assert_close(*(torch.autograd.grad(term, transition.gain, retain_graph=True) for term in weighted))


def test_what_was_sampled_without_gradient_serves_no_gradient():
    law = MarkovPath(DIAGONAL, normal(3, 2), 5)
    path = law.sample()
    assert law.sampled_kernels(path).log_prob().requires_grad
    with torch.no_grad():
        before = DIAGONAL.calls
        law.sampled_kernels(path)
        assert DIAGONAL.calls == before


def test_a_path_changed_in_place_is_evaluated_anew():
    law = MarkovPath(wave, normal(3, 2), 5)
    path = law.rsample()  # without learned tensors it is a leaf
    path.add_(1.0)
    torch.testing.assert_close(law.sampled_kernels(path).log_prob(), law.kernels(path).log_prob())
    other = law.rsample()
    torch.testing.assert_close(law.sampled_kernels(path).log_prob(), law.kernels(path).log_prob())
    assert other.shape == path.shape


# ---------------------------------------------------------------- flows
def planar():
    flow = Planar(2)
    with torch.no_grad():
        flow.u.copy_(torch.tensor([0.5, -0.3]))
        flow.w.copy_(torch.tensor([0.4, 0.8]))
    return flow


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["even", "ragged"])
def test_flow_without_an_inverse_scores_what_it_samples(lengths):
    transition = Flow(planar)
    law = MarkovPath(transition, normal(3, 2), 5, lengths=lengths)
    torch.manual_seed(0)
    path = law.rsample((2,))
    log_prob = law.log_prob(path)
    torch.manual_seed(0)
    z = law.initial.rsample((2,))
    total, points = law.initial.log_prob(z), [z]
    torch.manual_seed(0)
    replay = MarkovPath(transition, normal(3, 2), 5, lengths=lengths).rsample((2,))
    torch.testing.assert_close(replay, path)
    for k in range(4):  # invert by fixed point: the map is x + u tanh(w x + b), a contraction
        moved, x = path[..., k + 1, :], path[..., k + 1, :]
        flow = transition.flow
        inner = flow.u @ flow.w
        u = flow.u + (nn.functional.softplus(inner) - 1 - inner) * flow.w / flow.w.square().sum()
        for _ in range(200):
            x = moved - u * torch.tanh(x @ flow.w + flow.bias).unsqueeze(-1)
        jacobian = 1 + (1 - torch.tanh(x @ flow.w + flow.bias).square()) * (u @ flow.w)
        base = dist.Normal(0.7 * path[..., k, :], transition.scale).to_event(1)
        term = base.log_prob(x) - jacobian.abs().log()
        moving = torch.ones(3, dtype=torch.bool) if lengths is None else k + 1 < lengths
        total = total + torch.where(moving, term, torch.zeros_like(term))
        points.append(moved)
    torch.testing.assert_close(log_prob, total, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("elbo", [Trace_ELBO, lambda: PathELBO("full"), PathELBO], ids=["trace", "full", "stl"])
@pytest.mark.parametrize("make", [planar, lambda: spline_coupling(2, hidden_dims=[4], count_bins=4)])
def test_flows_in_a_guide_have_the_gradient_of_a_loop_of_sites(elbo, make):
    transition, steps = Flow(make), 3
    y = torch.ones(steps + 1, 2, dtype=DOUBLE)

    def model():
        z = pyro.sample("z", MarkovPath(wave, normal(2), steps + 1))
        pyro.sample("y", dist.Normal(z, 0.5).to_event(2), obs=y)

    def guide():
        pyro.sample("z", MarkovPath(transition, normal(2), steps + 1))

    torch.manual_seed(0)
    loss = elbo().differentiable_loss(model, guide)
    torch.manual_seed(0)
    z, points = normal(2).sample(), []
    log_q, log_p = normal(2).log_prob(z), normal(2).log_prob(z)
    points.append(z)
    for k in range(steps):
        q = transition(z, None, None)
        following = q.rsample()
        log_q = log_q + q.log_prob(following)
        log_p = log_p + wave(z, torch.tensor([k + 1.0], dtype=DOUBLE), None).log_prob(following)
        z = following
        points.append(z)
    expected = log_q - log_p - dist.Normal(torch.stack(points), 0.5).log_prob(y).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    if elbo is not Trace_ELBO or make is planar:  # Trace_ELBO sticks the landing where the flow has an inverse
        parameters = list(transition.parameters())
        ours, theirs = (torch.autograd.grad(value, parameters, allow_unused=True) for value in (loss, expected))
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


def test_flow_without_an_inverse_cannot_score_other_paths():
    law = MarkovPath(Flow(planar), normal(3, 2), 5)
    assert law.has_learned_flow
    assert not markov(wave).has_learned_flow
    with pytest.raises(ValueError, match=r"TransformedDistribution .* has no inverse.*kl=\"full\""):
        law.log_prob(torch.zeros(3, 5, 2, dtype=DOUBLE))


# ---------------------------------------------------------------- discrete states
TABLE = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]], dtype=DOUBLE)
START = torch.tensor([0.5, 0.3, 0.2], dtype=DOUBLE)


def regime(z, t, inputs):
    return dist.Categorical(TABLE[z])


def regimes(z, t, inputs):
    return dist.Categorical(TABLE[z]).to_event(1)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_categorical_chain_equals_brute_force(length):
    law = MarkovPath(regime, dist.Categorical(START), length)
    assert law.event_shape == (length,)
    assert not law.has_rsample
    paths = torch.tensor(list(itertools.product(range(3), repeat=length)))
    expected = [
        START[path[0]] * torch.stack([TABLE[a, b] for a, b in itertools.pairwise(path)] or [TABLE.new_ones(())]).prod()
        for path in paths.tolist()
    ]
    probability = law.log_prob(paths).exp()
    torch.testing.assert_close(probability, torch.stack(expected), rtol=1e-12, atol=1e-14)
    assert float(probability.sum()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("lengths", [None, torch.tensor([3, 1, 2, 4, 4])], ids=["even", "ragged"])
def test_categorical_samples_have_the_probabilities_of_the_chain(lengths):
    law = MarkovPath(regime, dist.Categorical(START.expand(5, 3)), 4, lengths=lengths)
    torch.manual_seed(0)
    path = law.sample((4000,))
    assert path.dtype == torch.long
    assert path.shape == (4000, 5, 4)
    assert law.support.check(path).all()
    last = START @ torch.linalg.matrix_power(TABLE, 3)
    for series in (3, 4):
        assert_mean(nn.functional.one_hot(path[:, series, -1], 3).double(), last, detects=0.06)
    if lengths is not None:
        assert torch.equal(path[:, 1], path[:, 1, :1].expand(4000, 4))
    assert law.log_prob(path).shape == (4000, 5)
    assert law.expand((2, 5)).sample().shape == (2, 5, 4)
    assert law.mask(True).log_prob(path).shape == (4000, 5)


def test_score_function_gradient_of_discrete_states_is_unbiased():
    """Two chains of regimes side by side; the exact bound is a sum over all 3^4 paths."""
    logits = torch.tensor([[0.3, -0.2, 0.1], [0.5, 0.0, -0.4], [0.0, 0.2, 0.4]], dtype=DOUBLE, requires_grad=True)
    prior = MarkovPath(regimes, dist.Categorical(START.expand(2, 3)).to_event(1), 2)

    def posterior():
        start = dist.Categorical(START.expand(2, 3)).to_event(1)
        return MarkovPath(lambda z, t, u: dist.Categorical(logits=logits[z]).to_event(1), start, 2)

    def model():
        z = pyro.sample("z", prior)
        pyro.sample("y", dist.Normal(z.double(), 1.0).to_event(2), obs=torch.ones(2, 2, dtype=DOUBLE))

    def guide():
        pyro.sample("z", posterior())

    paths = torch.tensor(list(itertools.product(range(3), repeat=4))).reshape(-1, 2, 2)
    log_q = posterior().log_prob(paths)
    likelihood = dist.Normal(paths.double(), 1.0).log_prob(torch.tensor(1.0)).sum((-2, -1))
    exact = -(log_q.exp() * (prior.log_prob(paths) + likelihood - log_q)).sum()
    (expected,) = torch.autograd.grad(exact, logits)
    torch.manual_seed(0)
    many = {"num_particles": 100, "vectorize_particles": True, "max_plate_nesting": 0}
    for elbo in (PathELBO(**many), PathELBO("closed", **many), Trace_ELBO(**many)):
        draws = []
        for _ in range(100):
            loss = elbo.differentiable_loss(model, guide)
            draws.append(torch.autograd.grad(loss, logits)[0])
        assert_mean(torch.stack(draws), expected, detects=0.25)


@pytest.mark.parametrize("kl", ["closed", "full", "stl"])
def test_bound_of_regimes_is_unbiased(kl):
    logits = torch.tensor([[0.3, -0.2, 0.1], [0.5, 0.0, -0.4], [0.0, 0.2, 0.4]], dtype=DOUBLE)
    prior = MarkovPath(regime, dist.Categorical(START.expand(2, 3)), 3)
    law = MarkovPath(lambda z, t, u: dist.Categorical(logits=logits[z]), dist.Categorical(START.expand(2, 3)), 3)

    def model():
        with pyro.plate("series", 2):
            z = pyro.sample("z", prior)
            pyro.sample("y", dist.Normal(z.double(), 1.0).to_event(1), obs=torch.ones(2, 3, dtype=DOUBLE))

    def guide():
        with pyro.plate("series", 2):
            pyro.sample("z", law)

    paths = torch.tensor(list(itertools.product(range(3), repeat=3))).unsqueeze(1).expand(-1, 2, -1)
    log_q, log_p = law.log_prob(paths), prior.log_prob(paths)
    log_p = log_p + dist.Normal(paths.double(), 1.0).log_prob(torch.ones((), dtype=DOUBLE)).sum(-1)
    exact = (log_q.exp() * (log_p - log_q)).sum()
    torch.manual_seed(0)
    many = PathELBO(kl, num_particles=100, vectorize_particles=True, max_plate_nesting=1)
    assert_mean(torch.tensor([-many.loss(model, guide) for _ in range(100)]), exact, detects=0.15)


def test_states_of_another_dimension_are_refused():
    one = MarkovPath(regime, dist.Categorical(START), 3)
    with pytest.raises(ValueError, match=r"states of different dimension: none \(discrete states\) and 2"):
        path_kl(one, MarkovPath(wave, normal(2), 3), one.sample())


@pytest.mark.parametrize("name", ["discrete", "mixture"])
def test_path_derivative_of_unreparameterised_states_is_refused(name):
    law = MarkovPath(regime, dist.Categorical(START), 3) if name == "discrete" else markov(mixture)
    with pytest.raises(ValueError, match=r"no reparameterised gradient.*score function"):
        law.rsample()
    with pytest.raises(ValueError, match=r"at site 'z': paths have no reparameterised gradient"):
        pyro.sample("z", law.named("z").has_rsample_(True))


# ---------------------------------------------------------------- Pyro effects
class Bayesian(PyroModule):
    def __init__(self):
        super().__init__()
        self.gain = PyroSample(dist.Normal(torch.tensor(0.0, dtype=DOUBLE), 1.0))

    def forward(self, z, t, inputs):
        return dist.Normal(self.gain * z, torch.full_like(z, 0.5)).to_event(1)


def test_random_weights_of_a_transition_are_drawn_once():
    trace = poutine.trace(lambda: pyro.sample("z", MarkovPath(Bayesian(), normal(2), 5))).get_trace()
    trace.compute_log_prob()
    gain, path = trace.nodes["gain"]["value"], trace.nodes["z"]["value"]
    fixed = MarkovPath(lambda z, t, u: dist.Normal(gain * z, 0.5).to_event(1), normal(2), 5)
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], fixed.log_prob(path))


def test_statements_that_were_not_recorded_are_refused():
    calls = []

    def transition(z, t, inputs):
        calls.append(1)
        if len(calls) > 1:
            pyro.sample("late", normal(2))
        return wave(z, t, inputs)

    with pytest.raises(RuntimeError, match=r"'late'.*was not executed when its path law was"):
        MarkovPath(transition, normal(2), 3).sample()


def test_parameters_of_a_function_are_recorded_and_trained():
    pyro.clear_param_store()

    def transition(z, t, inputs):
        return dist.Normal(pyro.param("gain", torch.tensor(0.5, dtype=DOUBLE)) * z, 1.0).to_event(1)

    law = MarkovPath(transition, normal(2), 5)
    law.log_prob(law.sample()).backward()
    assert pyro.param("gain").grad is not None
    assert law.transition_law(torch.ones(7, 2, dtype=DOUBLE), torch.ones(1, dtype=DOUBLE)).batch_shape == (7,)


@pytest.mark.parametrize("wrap", [lambda m: m.forward, lambda m: __import__("functools").partial(m)])
def test_module_behind_a_method_or_partial_is_found(wrap):
    module = Bayesian()
    law = MarkovPath(wrap(module), normal(2), 3)
    assert law.event_shape == (3, 2)


def test_recorded_values_of_a_running_parent_are_used_behind_a_method():
    class Parent(PyroModule):
        def __init__(self):
            super().__init__()
            self.net = Bayesian()

        def forward(self):
            return pyro.sample("z", MarkovPath(self.net.forward, normal(2), 5)), self.net.gain

    trace = poutine.trace(Parent()).get_trace()
    trace.compute_log_prob()
    path, gain = trace.nodes["_RETURN"]["value"]
    fixed = MarkovPath(lambda z, t, u: dist.Normal(gain * z, 0.5).to_event(1), normal(2), 5)
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], fixed.log_prob(path))


# ---------------------------------------------------------------- supports
def test_support_is_that_of_the_transitions():
    law = MarkovPath(positive, dist.LogNormal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1), 4)
    path = law.sample((10,))
    assert (path > 0).all()
    assert law.support.check(path).all()
    assert not law.support.check(-path).any()
    moved = dist.transforms.biject_to(law.support)(torch.randn(4, 2, dtype=DOUBLE))
    assert torch.isfinite(law.log_prob(moved))
    bounded = MarkovPath(
        lambda z, t, u: dist.Uniform(z - 1, z + 1).to_event(1), normal(2), 4
    )  # a support that moves with the state has no bijection
    assert bounded.support.check(torch.full((4, 2), 9.0)).all()


def test_validation_reaches_discrete_states():
    law = MarkovPath(regime, dist.Categorical(START), 3, validate_args=True)
    with pytest.raises(ValueError, match="support"):
        law.log_prob(torch.tensor([0, 3, 1]))


# ---------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"transition": 3}, TypeError, r"`transition` must be a function or module.*received int"),
        (
            {"initial": torch.zeros(2)},
            TypeError,
            r"`initial` must be a distribution over the first state, received Tensor",
        ),
        (
            {"initial": dist.Normal(torch.zeros(2), 1.0)},
            ValueError,
            r"`initial` must have event shape \(D,\), or \(\).*\.to_event\(1\)",
        ),
        (
            {"initial": normal(3, 2).to_event(1)},
            ValueError,
            r"`initial` must have event shape.*received event shape \(3, 2\)",
        ),
        ({"length": 0}, ValueError, r"`length` must be a number of points >= 1, received 0"),
        ({"length": 2.0}, ValueError, r"`length` must be a number of points >= 1, received 2\.0"),
        (
            {"inputs": rows(3)},
            ValueError,
            r"`inputs` must have shape \(\*batch, T - 1, C\).*T - 1 = 2; received \(3, 4, 3\)",
        ),
        ({"lengths": [3, 3]}, TypeError, r"`lengths` must be a tensor of whole numbers.*received list"),
        ({"lengths": torch.ones(3)}, TypeError, r"`lengths` must be a tensor of whole numbers.*received torch.float32"),
        (
            {"lengths": torch.tensor([3, 0, 1])},
            ValueError,
            r"`lengths` must be at least 1, received 0 for series \[1\]",
        ),
        (
            {"lengths": torch.tensor([3, 1, 4])},
            ValueError,
            r"`lengths` must be at most `length`, the 3 points.*received 4 for series \[2\]",
        ),
        ({"lengths": torch.tensor([3, 1])}, ValueError, r"batch shapes must broadcast.*`lengths` \(2,\)"),
        ({"transition": lambda z, t, u: z}, TypeError, r"`transition` must return a distribution.*received Tensor"),
        (
            {"transition": lambda z, t, u: dist.Normal(z, 1.0)},
            ValueError,
            r"event shape \(2,\) of `initial`; received Normal with event shape \(\) and batch .*\.to_event\(1\)",
        ),
        (
            {"transition": lambda z, t, u: normal(3)},
            ValueError,
            r"event shape \(2,\) of `initial`; received Normal with event shape \(3,\)",
        ),
        (
            {"transition": lambda z, t, u: normal(2, dtype=torch.float32)},
            ValueError,
            r"`transition` returned a law with dtype torch.float32.*`initial` has torch.float64",
        ),
    ],
)
def test_bad_argument_is_named(arguments, error, message):
    arguments = {"transition": wave, "initial": normal(3, 2), "length": 3, **arguments}
    with pytest.raises(error, match=message):
        MarkovPath(**arguments)


@pytest.mark.parametrize("shape", [(3, 4, 2), (3, 5, 3), (5,)])
def test_path_of_a_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match=re.escape(f"`path` must have shape (..., 5, 2), received {shape}")):
        markov(wave).kernels(torch.zeros(shape, dtype=DOUBLE))


def test_noise_is_for_normal_transitions_only():
    with pytest.raises(ValueError, match=r"only Normal\(\.\.\.\)\.to_event\(1\) and MultivariateNormal transitions"):
        markov(mixture).noise_shape()
    with pytest.raises(ValueError, match=r"only Normal\(\.\.\.\)\.to_event\(1\) and MultivariateNormal transitions"):
        markov(mixture).noise_of(torch.zeros(3, 5, 2, dtype=DOUBLE))
    with pytest.raises(ValueError, match=r"`noise` must have shape \(\.\.\., 4, 2\), received \(3, 4\)"):
        markov(wave).solve(torch.zeros(3, 2, dtype=DOUBLE), torch.zeros(3, 4))


def test_law_that_is_normal_at_some_steps_only_samples_and_scores_but_has_no_noise():
    def transition(z, t, inputs):
        return wave(z, t, inputs) if bool((t == 1).all()) else dist.StudentT(5.0, z, 1.0).to_event(1)

    law = MarkovPath(transition, normal(3, 2), 4)
    assert law.sample((2,)).shape == (2, 3, 4, 2)
    with pytest.raises(ValueError, match=r"that to state 2 is StudentT"):
        law.solve(torch.zeros(3, 2, dtype=DOUBLE), torch.zeros(3, 3, 2, dtype=DOUBLE))


@pytest.mark.parametrize("validate", [True, False])
def test_exploding_path_names_site_and_state(validate):
    def explode(z, t, inputs):
        return dist.Normal(1e200 * z.square(), 1.0, validate_args=validate).to_event(1)

    law = MarkovPath(explode, normal(3, 2), 6).named("z")
    message = (
        "at site 'z': the transition to state 4 failed, as the state before" if validate else "at site 'z': the path"
    )
    with pytest.raises(ValueError, match=message):
        law.sample() if not validate else MarkovPath(nan_then_fail, normal(3, 2), 6).named("z").sample()


def nan_then_fail(z, t, inputs):
    return dist.Normal(torch.where(t == 3, torch.inf * z, z.sign() * z.abs().clamp(max=1)) - 0 * z, 1.0).to_event(1)


def test_paths_of_other_lengths_are_refused():
    law = MarkovPath(wave, normal(3, 2), 5)
    with pytest.raises(ValueError, match="paths of different lengths: 5 and 4 points"):
        law.check_same_grid(MarkovPath(wave, normal(3, 2), 4))
    with pytest.raises(ValueError, match="guide and model end their series at different points"):
        path_kl(markov(wave), law, markov(wave).sample())
    with pytest.raises(ValueError, match="guide and model end their series at different points"):
        law.check_same_grid(markov(wave))
    padded = torch.tensor([[0.0, 1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 2.0, 3.0, 4.0], [0.0] * 5], dtype=DOUBLE)
    other = SDEPath(SDE(drift, diffusion), normal(3, 2), TimeGrid(padded))
    markov(wave).check_same_grid(other)
    with pytest.raises(ValueError, match="guide and model end their series at different points"):
        law.check_same_grid(other)


def test_closed_divergence_between_families_is_refused_by_name():
    def model():
        pyro.sample("z", MarkovPath(mixture, normal(2), 4))

    def guide():
        pyro.sample("z", MarkovPath(wave, normal(2), 4))

    with pytest.raises(
        ValueError,
        match=r"site 'z': kl=\"closed\" needs kernels .*transitions Normal of the guide and MixtureSameFamily",
    ):
        PathELBO("closed").loss(model, guide)
    assert torch.isfinite(torch.tensor(PathELBO("full").loss(model, guide)))
    law = MarkovPath(wave, normal(2), 4)
    path = law.sample()
    with pytest.raises(
        NotImplementedError, match=r"transitions Normal of the guide and MixtureSameFamily of the model"
    ):
        path_kl(law, MarkovPath(mixture, normal(2), 4), path)
    assert torch.isfinite(torch.tensor(TraceMeanField_ELBO().loss(model, guide)))


def test_mean_field_bound_uses_the_closed_divergence():
    q, p = MarkovPath(wider, normal(2), 4), MarkovPath(wave, normal(2), 4)
    path = q.rsample()
    torch.testing.assert_close(kl_divergence(q, p), path_kl(q, p, path))


def test_chain_in_the_guide_of_an_sde_path_has_a_bound():
    """Densities are with respect to the same measure, so the log-ratio is right; one closed form they have not."""
    (_, sde), (q, p) = euler_pair()
    torch.manual_seed(0)
    path = q.rsample()
    ours, theirs = (path_terms(q, law, path, closed=False) for law in (p, sde))
    torch.testing.assert_close(ours.log_p, theirs.log_p, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.log_q, theirs.log_q, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(path_terms(sde, q, path, closed=False).log_p, theirs.log_q, rtol=1e-10, atol=1e-10)
    with pytest.raises(NotImplementedError):
        path_kl(q, sde, path)
