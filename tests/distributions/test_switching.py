"""Paths that switch between regimes: densities by enumeration, regimes given a path, samples, bounds, bad input."""

import copy
import itertools
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.nn import PyroModule, PyroSample
from torch import nn

from pyro_sde import GaussianPath, PathELBO, SDEPath, TimeGrid
from pyro_sde.distributions.kl import path_terms
from pyro_sde.distributions.markov_path import MarkovPath
from pyro_sde.distributions.regime_chain import RegimeChain
from pyro_sde.distributions.switching import SwitchingPath
from pyro_sde.ops import GaussianChain
from pyro_sde.sde import SDE
from pyro_sde.testing import assert_mean, check_distribution

DOUBLE = torch.float64
K, D = 3, 2


def rand(*shape, seed, dtype=DOUBLE):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


MATRIX, OFFSET = 0.5 * rand(K, D, D, seed=0), rand(K, D, seed=1)
SCALE = torch.tensor([[0.3, 0.4], [0.5, 0.2], [0.6, 0.6]], dtype=DOUBLE)
START = rand(K, seed=2).log_softmax(-1)
TABLE = rand(K, K, seed=3).log_softmax(-1)
PULL = 2 * rand(K, K, D, seed=4)


def linear(z, t, inputs):
    loc = (MATRIX.to(z) @ z[..., None, :, None]).squeeze(-1) + OFFSET.to(z)
    return dist.Normal(loc, SCALE.to(z)).to_event(1)


def driven(z, t, inputs):
    law = linear(z, t, None).base_dist
    return dist.Normal(law.loc + 0.1 * t.unsqueeze(-1) + inputs.unsqueeze(-2), law.scale).to_event(1)


def correlated(z, t, inputs):
    tril = torch.tensor([[0.5, 0.0], [0.3, 0.4]], dtype=z.dtype)
    return dist.MultivariateNormal(linear(z, t, None).base_dist.loc, scale_tril=tril)


def recurrent(z, t, inputs):  # from the regime that is left and the state: (..., K, K)
    return (PULL.to(z) @ z[..., None, :, None]).squeeze(-1).log_softmax(-1)


def pushed(z, t, inputs):
    return (recurrent(z, t, None) + inputs[..., :1].unsqueeze(-1) * t.unsqueeze(-1) * torch.eye(K).to(z)).log_softmax(
        -1
    )


MARKOV, RECURRENT = RegimeChain(START, TABLE), RegimeChain(START, recurrent)


def first(*batch, dtype=DOUBLE):
    return dist.Normal(torch.zeros(*batch, D, dtype=dtype), 1.0).to_event(1)


def make(name, batch=(), length=5, **options):
    """A law of every kind."""
    inputs = rand(*batch, length - 1, D, seed=5)
    table = {
        "correlated": lambda: SwitchingPath(correlated, first(*batch), MARKOV, length, **options),
        "inputs": lambda: SwitchingPath(
            driven, first(*batch), RegimeChain(START, pushed), length, inputs=inputs, **options
        ),
        "markov": lambda: SwitchingPath(linear, first(*batch), MARKOV, length, **options),
        "recurrent": lambda: SwitchingPath(linear, first(*batch), RECURRENT, length, **options),
    }
    return table[name]()


KINDS = ("correlated", "inputs", "markov", "recurrent")


def joint_by_hand(law, path, regimes):
    """Log-density of one path together with regimes, step by step."""
    total = law.initial.log_prob(path[0]) + law.regimes.log_initial[regimes[0]]
    for k in range(len(path) - 1):
        t = torch.tensor([k + 1.0], dtype=path.dtype)
        row = None if law.inputs is None else law.inputs[k]
        if k:
            total = total + law.regimes.table(path[k], t, row)[regimes[k - 1], regimes[k]]
        total = total + law.transition(path[k], t, row).log_prob(path[k + 1])[regimes[k]]
    return total


def every_joint(law, path):
    paths = list(itertools.product(range(K), repeat=law.num_steps))
    return torch.tensor(paths), torch.stack([joint_by_hand(law, path, regimes) for regimes in paths])


# --- density ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_density_is_the_sum_over_all_regimes(kind):
    law = make(kind)
    path = rand(5, D, seed=6)
    _, joint = every_joint(law, path)
    torch.testing.assert_close(law.log_prob(path), joint.logsumexp(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [2, 8])
@pytest.mark.parametrize("kind", ["markov", "recurrent"])
def test_density_and_gradient_are_those_of_parallel_enumeration(kind, length):
    path, matrix = rand(length, D, seed=7), MATRIX.clone().requires_grad_()
    regimes = make(kind).regimes

    def step(z, t, inputs):
        return dist.Normal((matrix @ z[..., None, :, None]).squeeze(-1) + OFFSET, SCALE).to_event(1)

    def enumerated():
        pyro.sample("z_0", first(), obs=path[0])
        s = None
        for k in pyro.markov(range(length - 1)):
            table = regimes.table(path[k], torch.ones(1), None)
            logits = START if s is None else table[s]
            s = pyro.sample(f"s_{k}", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
            law = step(path[k], None, None).base_dist
            pyro.sample(f"z_{k + 1}", dist.Normal(law.loc[s], law.scale[s]).to_event(1), obs=path[k + 1])

    loss = TraceEnum_ELBO(max_plate_nesting=0).differentiable_loss(enumerated, lambda: None)
    ours = -SwitchingPath(step, first(), regimes, length).log_prob(path)
    torch.testing.assert_close(ours, loss, rtol=0, atol=1e-10)
    expected, gradient = (torch.autograd.grad(value, matrix)[0] for value in (loss, ours))
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-10)


def test_one_regime_is_the_chain_without_switching():
    def step(z, t, inputs):
        return dist.Normal(0.8 * z.sin().unsqueeze(-2), 0.3).to_event(1)

    law = SwitchingPath(step, first(4), RegimeChain(torch.zeros(1), torch.zeros(1, 1)), 40)
    chain = MarkovPath(lambda z, t, i: dist.Normal(0.8 * z.sin(), 0.3).to_event(1), first(4), 40)
    path = chain.sample()
    torch.testing.assert_close(law.log_prob(path), chain.log_prob(path), rtol=0, atol=1e-10)
    assert (law.regime_posterior(path) == 1).all()


def test_equal_regimes_are_one():
    def step(z, t, inputs):
        return dist.Normal(0.8 * z.unsqueeze(-2).expand(*z.shape[:-1], K, D), 0.3).to_event(1)

    chain = MarkovPath(lambda z, t, i: dist.Normal(0.8 * z, 0.3).to_event(1), first(4), 40)
    path = chain.sample()
    for regimes in (MARKOV, RECURRENT):
        law = SwitchingPath(step, first(4), regimes, 40)
        torch.testing.assert_close(law.log_prob(path), chain.log_prob(path), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["inputs", "recurrent"])
def test_density_terms_are_those_of_growing_paths(kind):
    law, path = make(kind, length=5), rand(5, D, seed=8)
    terms = law.kernels(path).log_prob()
    assert terms.shape == (4,)
    for n in (2, 3, 5):
        inputs = None if law.inputs is None else law.inputs[: n - 1]
        short = SwitchingPath(law.transition, law.initial, law.regimes, n, inputs=inputs)
        expected = short.log_prob(path[:n]) - law.initial.log_prob(path[0])
        torch.testing.assert_close(terms[: n - 1].sum(), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_density_are_right(kind):
    law, path = make(kind, (2,), 4), rand(2, 4, D, seed=9).requires_grad_()
    assert torch.autograd.gradcheck(law.log_prob, path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_ragged_batch_is_single_series(kind):
    lengths = torch.tensor([5, 2, 1, 4])
    law = make(kind, (4,), lengths=lengths)
    path, regimes = law.sample_joint()
    for b, n in enumerate(lengths.tolist()):
        assert (path[b, n:] == path[b, n - 1]).all()
        assert (regimes[b, max(0, n - 1) :] == regimes[b, max(0, n - 2)]).all()
        if n == 1:
            torch.testing.assert_close(law.log_prob(path)[b], first().log_prob(path[b, 0]))
            continue
        inputs = None if law.inputs is None else law.inputs[b, : n - 1]
        one = SwitchingPath(law.transition, first(), law.regimes, n, inputs=inputs)
        torch.testing.assert_close(law.log_prob(path)[b], one.log_prob(path[b, :n]))
        torch.testing.assert_close(law.regime_posterior(path)[b, : n - 1], one.regime_posterior(path[b, :n]))
        assert torch.equal(law.viterbi(path)[b, : n - 1], one.viterbi(path[b, :n]))
    assert torch.equal(law.point_mask, torch.arange(5) < lengths[:, None])
    assert make(kind, (4,)).point_mask.all()


def test_inputs_behind_the_end_may_be_anything():
    lengths = torch.tensor([5, 2])
    law = make("inputs", (2,), lengths=lengths)
    path = law.sample()
    spoilt = law.inputs.clone()
    spoilt[1, 1:] = torch.nan
    other = SwitchingPath(driven, first(2), law.regimes, 5, inputs=spoilt, lengths=lengths)
    torch.testing.assert_close(other.log_prob(path), law.log_prob(path))
    assert torch.isfinite(other.sample()).all()


def test_captured_tensors_may_have_a_batch():
    shift = rand(4, 1, D, seed=10)

    def step(z, t, inputs):
        law = linear(z, t, None).base_dist
        return dist.Normal(law.loc + shift[: len(z) if z.dim() == 2 else 4], law.scale).to_event(1)

    law = SwitchingPath(step, first(), MARKOV, 4)
    assert law.batch_shape == (4,)
    path = law.sample()
    for b in range(4):
        one = SwitchingPath(
            lambda z, t, i, b=b: dist.Normal(linear(z, t, i).base_dist.loc + shift[b], SCALE).to_event(1),
            first(),
            MARKOV,
            4,
        )
        torch.testing.assert_close(law.log_prob(path)[b], one.log_prob(path[b]))


def test_regimes_may_have_a_batch():
    tables = rand(4, K, K, seed=11).log_softmax(-1)
    law = SwitchingPath(linear, first(), RegimeChain(START.expand(4, K), tables), 5)
    assert law.batch_shape == (4,)
    path = law.sample()
    one = SwitchingPath(linear, first(), RegimeChain(START, tables[2]), 5)
    torch.testing.assert_close(law.log_prob(path)[2], one.log_prob(path[2]))
    both = SwitchingPath(linear, first(), RegimeChain(START, lambda z, t, i: tables), 5)
    torch.testing.assert_close(law.log_prob(path), both.log_prob(path))


def test_single_precision_is_close():
    law, rough = make("recurrent", length=50), None
    rough = SwitchingPath(linear, first(dtype=torch.float32), RegimeChain(START.float(), recurrent), 50)
    path = law.sample((3,))
    value = rough.log_prob(path.float())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), law.log_prob(path), rtol=1e-5, atol=1e-4)
    assert rough.sample().dtype == torch.float32


# --- regimes given a path ---------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_regimes_given_a_path_are_those_of_enumeration(kind):
    law, path = make(kind), rand(5, D, seed=12)
    paths, joint = every_joint(law, path)
    held = torch.nn.functional.one_hot(paths, K).double()
    expected = torch.einsum("p,pnk->nk", joint.softmax(0), held)
    torch.testing.assert_close(law.regime_posterior(path), expected, rtol=0, atol=1e-12)
    assert torch.equal(law.viterbi(path), paths[joint.argmax()])
    torch.manual_seed(0)
    draws = torch.nn.functional.one_hot(law.sample_regimes(path, (4000,)), K).double()
    some = (expected > 0.02) & (expected < 0.98)
    assert_mean(draws[:, some], expected[some], detects=0.08)


# --- samples ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_samples_agree_with_the_posterior_of_their_regimes(kind):
    # E[1(s = j) - p(s = j | z)] = 0, and so with any function of z in front
    law = make(kind)
    torch.manual_seed(0)
    path, regimes = law.sample_joint((20_000,))
    difference = torch.nn.functional.one_hot(regimes, K) - law.regime_posterior(path)
    assert_mean(difference, 0.0, detects=0.03)
    assert_mean(difference.unsqueeze(-2) * path[:, 1:].tanh().unsqueeze(-1), 0.0, detects=0.03)
    assert_mean(difference.unsqueeze(-2) * path[:, :-1].tanh().unsqueeze(-1), 0.0, detects=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_density(kind):
    # the mean under p of q / p is 1; the ratio is bounded, as both have the same steps, q has uniform regimes, and p
    # takes half of its probabilities from uniform ones
    law = make(kind, length=4)
    uniform = torch.full((K, K), 1 / K, dtype=DOUBLE)

    def half(z, t, inputs):
        return (0.5 * law.regimes.table(z, t, inputs).exp() + 0.5 * uniform).log()

    def with_regimes(table):
        return SwitchingPath(law.transition, law.initial, RegimeChain(START, table), 4, inputs=law.inputs)

    p, q = with_regimes(half), with_regimes(uniform.log())
    torch.manual_seed(0)
    path = p.sample((20_000,))
    assert_mean((q.log_prob(path) - p.log_prob(path)).exp(), 1.0, detects=0.03)


def test_samples_follow_the_first_regimes_law():
    def step(z, t, inputs):
        return dist.Normal(torch.arange(K, dtype=DOUBLE).unsqueeze(-1) + 0 * z.unsqueeze(-2), 0.01).to_event(1)

    law = SwitchingPath(step, first(), MARKOV, 3)
    torch.manual_seed(0)
    path, regimes = law.sample_joint((20_000,))
    assert torch.equal(path[:, 1:, 0].round().long(), regimes)
    held = torch.nn.functional.one_hot(regimes, K).double()
    assert_mean(held[:, 0], START.exp(), detects=0.03)
    assert_mean(held[:, 1], START.exp() @ TABLE.exp(), detects=0.03)


def test_simulation_starts_where_it_is_told():
    law, start = make("recurrent", (2,)), rand(7, 2, D, seed=13)
    path = law.simulate(start)
    assert path.shape == (7, 2, 5, D)
    assert torch.equal(path[..., 0, :], start)


# --- the contract of a path law ---------------------------------------------------------


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_path_law(kind, ragged):
    lengths = torch.tensor([5, 2, 3]) if ragged else None
    check_distribution(make(kind, (3,), lengths=lengths))


class Learned(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(D, K * D, dtype=DOUBLE)
        self.cuts = nn.Linear(D, K * K, dtype=DOUBLE)

    def step(self, z, t, inputs):
        return dist.Normal(self.net(z).unflatten(-1, (K, D)), 0.5).to_event(1)

    def table(self, z, t, inputs):
        return self.cuts(z).unflatten(-1, (K, K)).log_softmax(-1)


def test_parameters_of_networks_get_gradients():
    torch.manual_seed(0)
    net = Learned()
    law = SwitchingPath(net.step, first(3), RegimeChain(START, net.table), 4)
    check_distribution(law, parameters=list(net.parameters()), skip=["deepcopy", "pickle"])


def test_copies_score_alike():
    law, path = make("recurrent"), rand(5, D, seed=14)
    for other in (copy.deepcopy(law), pickle.loads(pickle.dumps(law))):  # noqa: S301 (our own bytes)
        torch.testing.assert_close(other.log_prob(path), law.log_prob(path))


class Random(PyroModule):
    def __init__(self):
        super().__init__()
        self.shift = PyroSample(dist.Normal(0.0, 1.0).expand([K, D]).to_event(2))

    def forward(self, z, t, inputs):
        return dist.Normal(z.unsqueeze(-2) + self.shift, 0.3).to_event(1)


def test_random_weights_of_a_transition_are_drawn_once():
    torch.manual_seed(0)
    law = SwitchingPath(Random(), first(dtype=torch.float32), RegimeChain(START.float(), TABLE.float()), 4)
    path = law.sample()
    assert torch.equal(law.log_prob(path), law.log_prob(path))


# --- bounds -----------------------------------------------------------------------------


def walk(z, t, inputs):
    return dist.Normal(0.5 * z, 0.8).to_event(1)


def bound(elbo, model, guide):
    pyro.clear_param_store()
    torch.manual_seed(0)
    return elbo.loss(lambda: pyro.sample("z", model), lambda: pyro.sample("z", guide))


@pytest.mark.parametrize("lengths", [None, torch.tensor(3)])
def test_bounds_are_the_log_ratio_of_the_densities(lengths):
    model = make("recurrent", lengths=lengths)
    guide = MarkovPath(walk, first(), 5)
    if lengths is not None:
        with pytest.raises(ValueError, match="guide and model end their series at different points"):
            model.check_same_grid(guide)
        guide = MarkovPath(walk, first(), 5, lengths=lengths)
    model.check_same_grid(guide)
    torch.manual_seed(0)
    path = guide.rsample()
    expected = float(guide.log_prob(path) - model.log_prob(path))
    assert bound(Trace_ELBO(), model, guide) == pytest.approx(expected)
    for kl in ("stl", "full"):
        assert bound(PathELBO(kl=kl), model, guide) == pytest.approx(expected)


def test_a_closed_divergence_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r'MarkovPath and SwitchingPath do not have. Use kl="stl" or kl="full"'):
        bound(PathELBO(kl="closed"), make("markov"), MarkovPath(walk, first(), 5))
    with pytest.raises(NotImplementedError):
        path_terms(make("markov"), make("recurrent"), rand(5, D, seed=15), closed=True)


def test_two_switching_laws_can_be_compared():
    path = rand(5, D, seed=15)
    q, p = make("markov"), make("recurrent")
    terms = path_terms(q, p, path, closed=False)
    torch.testing.assert_close(terms.log_q, q.log_prob(path))
    torch.testing.assert_close(terms.log_p, p.log_prob(path))


def test_one_regime_with_the_exact_posterior_as_guide_gives_the_kalman_evidence():
    count, scale = 30, 0.5
    unit = torch.eye(D, dtype=DOUBLE)
    turn = torch.tensor([[0.9, 0.3], [-0.3, 0.9]], dtype=DOUBLE)
    noise = 0.3**2 * unit
    chain = GaussianChain(
        torch.zeros(D, dtype=DOUBLE), unit, turn.expand(count - 1, D, D), noise.expand(count - 1, D, D)
    )
    latent = GaussianPath.from_chain(chain)
    torch.manual_seed(0)
    y = latent.sample() + scale * torch.randn(count, D, dtype=DOUBLE)
    evidence = latent.log_evidence(unit, scale, y)

    def step(z, t, inputs):
        return dist.Normal((turn @ z.unsqueeze(-1)).mT, 0.3).to_event(1)

    prior = SwitchingPath(step, first(), RegimeChain(torch.zeros(1), torch.zeros(1, 1)), count)
    posterior = latent.condition(unit, scale, y)

    def model():
        z = pyro.sample("z", prior)
        pyro.sample("y", dist.Normal(z, scale).to_event(2), obs=y)

    for elbo in (Trace_ELBO(), PathELBO(kl="stl"), PathELBO(kl="full")):
        loss = elbo.loss(model, lambda: pyro.sample("z", posterior))
        assert loss == pytest.approx(-float(evidence), abs=1e-10 * abs(float(evidence)))


def test_grids_and_lengths_of_the_guide_must_agree():
    law = make("markov", (2,), lengths=torch.tensor([5, 3]))
    with pytest.raises(ValueError, match="paths of different lengths: 5 and 4 points"):
        law.check_same_grid(MarkovPath(walk, first(), 4))
    times = torch.tensor([[0.0, 1, 2, 3, 4], [0, 1, 2, 2, 2]], dtype=DOUBLE)
    unit = SDE(lambda t, z: -z, lambda t, z: torch.ones_like(z), noise_type="diagonal")
    law.check_same_grid(SDEPath(unit, first(2), TimeGrid(times)))
    with pytest.raises(ValueError, match="end their series at different points"):
        law.check_same_grid(SDEPath(unit, first(2), TimeGrid(times[:1].expand(2, 5))))


def test_laws_without_a_density_in_all_directions_are_refused():
    kernels = make("markov").kernels(rand(5, D, seed=16))
    unit = torch.eye(D, dtype=DOUBLE)
    flat = torch.diag(torch.tensor([1.0, 0.0], dtype=DOUBLE))
    chain = GaussianChain(torch.zeros(D, dtype=DOUBLE), unit, unit.expand(4, D, D), flat.expand(4, D, D))
    singular = GaussianPath.from_chain(chain)
    path = singular.sample()
    with pytest.raises(ValueError, match="KL divergence is infinite: .* directions without noise, .* a SwitchingPath"):
        kernels.check_absolutely_continuous(singular.kernels(path))
    regimes = MarkovPath(lambda z, t, i: dist.Categorical(TABLE.exp()[z]), dist.Categorical(START.exp()), 5)
    with pytest.raises(ValueError, match="has discrete states, and the other is a SwitchingPath"):
        kernels.check_absolutely_continuous(regimes.kernels(regimes.sample()))


# --- bad input --------------------------------------------------------------------------


def test_reparameterised_samples_are_refused_with_the_remedy():
    law = make("markov")
    assert not law.has_rsample
    with pytest.raises(ValueError, match=r"SwitchingPath at site 'z': paths have no reparameterised .* Use sample\(\)"):
        law.named("z").rsample()


def test_another_number_of_regimes_is_named():
    regimes = RegimeChain(START[:2].log_softmax(-1), TABLE[:2, :2].log_softmax(-1))
    with pytest.raises(ValueError, match=r"batch shape \(..., 2\) for the K = 2 of `regimes`.*batch shape \(3,\)"):
        SwitchingPath(linear, first(), regimes, 5)


def test_wrong_laws_of_the_transition_are_named():
    with pytest.raises(ValueError, match=r"`transition` must return the laws of all regimes.*Add `.to_event\(1\)`"):
        SwitchingPath(lambda z, t, i: linear(z, t, i).base_dist, first(), MARKOV, 5)
    with pytest.raises(TypeError, match="`transition` must return a distribution .* received Tensor"):
        SwitchingPath(lambda z, t, i: z, first(), MARKOV, 5)
    with pytest.raises(ValueError, match="law with dtype torch.float64 .* but `initial` has torch.float32"):
        SwitchingPath(lambda z, t, i: linear(z.double(), t, i), first(dtype=torch.float32), MARKOV, 5)


def test_wrong_tables_of_a_recurrent_law_are_named():
    with pytest.raises(ValueError, match="`log_transition` must hold normalised log-probabilities"):
        SwitchingPath(linear, first(), RegimeChain(START, lambda z, t, i: 0 * recurrent(z, t, i)), 5)
    with pytest.raises(ValueError, match="`log_transition` must have shape"):
        SwitchingPath(linear, first(), RegimeChain(START, lambda z, t, i: z), 5)
    law = SwitchingPath(
        linear, first(), RegimeChain(START, lambda z, t, i: recurrent(z, t, i) + (z.abs().sum() > 9)), 5
    )
    with pytest.raises(ValueError, match=r"`log_transition` must hold .* sum to 2.71828"):
        law.log_prob(rand(5, D, seed=17) + 9)


def test_wrong_kinds_and_lengths_are_named():
    with pytest.raises(TypeError, match="`regimes` must be a RegimeChain, received Tensor"):
        SwitchingPath(linear, first(), TABLE, 5)
    with pytest.raises(ValueError, match="`length` must be at least 2, received 1"):
        SwitchingPath(linear, first(), MARKOV, 1)
    with pytest.raises(ValueError, match="`lengths` must be at most `length`"):
        make("markov", lengths=torch.tensor([6]))
    with pytest.raises(ValueError, match="`inputs` must have shape"):
        SwitchingPath(linear, first(), MARKOV, 5, inputs=torch.zeros(5, 1))
    with pytest.raises(ValueError, match=r"`path` must have shape \(..., 5, 2\), received \(4, 2\)"):
        make("markov").viterbi(torch.zeros(4, D, dtype=DOUBLE))


def test_a_path_that_no_regime_explains_is_named():
    def bounded(z, t, inputs):
        low = z.unsqueeze(-2) + torch.zeros(K, 1).to(z)
        return dist.Uniform(low, low + 1, validate_args=False).to_event(1)

    law = SwitchingPath(bounded, first(), MARKOV, 4)
    path = torch.tensor([0.0, 0.5, 2.5, 3.0], dtype=DOUBLE).unsqueeze(-1).expand(4, D)
    with pytest.raises(ValueError, match="no regime can explain step 1 of 3: .* outside the support of every regime"):
        law.log_prob(path)


def test_a_path_that_explodes_is_named():
    law = SwitchingPath(
        lambda z, t, i: dist.Normal(1e200 * (1 + z.unsqueeze(-2).expand(K, D)) ** 3, 1.0).to_event(1),
        first(),
        MARKOV,
        9,
    )
    with pytest.raises(ValueError, match="SwitchingPath: the path became non-finite within 9 points"):
        law.sample()
