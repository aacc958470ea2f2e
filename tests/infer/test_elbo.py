"""Claims about PathELBO, against dense Gaussian oracles and Pyro's own estimators."""

import gc
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, JitTrace_ELBO, RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_sde import SDE, JitPathELBO, PathELBO, SDEPath, TimeGrid, path_kl
from pyro_sde.sde import OrnsteinUhlenbeck, UnderdampedLangevin
from tests.infer.linear_problem import Affine, LinearProblem

KINDS = ("stl", "closed", "full")
WIDE = {"num_particles": 20_000, "vectorize_particles": True, "max_plate_nesting": 1}


def losses(elbo, problem, repeats=4):
    return torch.tensor([elbo.loss(problem.model, problem.guide) for _ in range(repeats)])


def gradient(elbo, model, guide):
    """Gradients of all parameters of one evaluation, concatenated."""
    if not isinstance(elbo, JitTrace_ELBO):  # a compiled loss asks the store for parameters by name
        pyro.get_param_store().clear()
    with poutine.trace(param_only=True) as capture:
        elbo.loss_and_grads(model, guide)
    sites = sorted(capture.trace.nodes.items())  # JIT asks for parameters in another order
    parameters = [site["value"].unconstrained() for _, site in sites]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    return torch.cat([grad.flatten() for grad in grads])


# ---------------------------------------------------------------- value
ESTIMATORS = {
    "PathELBO stl": lambda **kw: PathELBO("stl", **kw),
    "PathELBO closed": lambda **kw: PathELBO("closed", **kw),
    "PathELBO full": lambda **kw: PathELBO("full", **kw),
    "Trace_ELBO": Trace_ELBO,
    "TraceGraph_ELBO": TraceGraph_ELBO,
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "JitTrace_ELBO": lambda **kw: JitTrace_ELBO(ignore_jit_warnings=True, **kw),
    "JitPathELBO stl": lambda **kw: JitPathELBO("stl", ignore_jit_warnings=True, **kw),
    "JitPathELBO closed": lambda **kw: JitPathELBO("closed", ignore_jit_warnings=True, **kw),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_bound_estimates_the_exact_elbo(name):
    problem = LinearProblem(max_step=0.1)
    exact = problem.exact_elbo()
    values = -losses(ESTIMATORS[name](**WIDE), problem)
    # One path's ELBO has a standard deviation of about 12 here: 80 000 paths detect 0.17 nat at four standard errors.
    error = 12 / math.sqrt(WIDE["num_particles"] * len(values))
    assert abs(values.mean().item() - exact) < 4 * error


@pytest.mark.parametrize("kind", KINDS)
def test_sequential_particles_agree_with_vectorised_ones(kind):
    problem = LinearProblem(max_step=0.5)
    values = -losses(PathELBO(kind, num_particles=200), problem, repeats=2)
    assert abs(values.mean().item() - problem.exact_elbo()) < 4 * 12 / math.sqrt(400)


def test_iwae_of_the_guide_approaches_the_exact_evidence():
    problem = LinearProblem(max_step=0.05)
    problem.rows, problem.loc, problem.scale, _ = problem.best_control()
    iwae = -RenyiELBO(alpha=0, **WIDE).loss(problem.model, problem.guide)
    assert abs(iwae - problem.exact_evidence()) < 0.02


def test_dense_oracle_agrees_with_dynamic_programming():
    problem = LinearProblem(max_step=0.025, noise=math.sqrt(0.1))
    rows, loc, scale, best = problem.best_control()
    assert problem.exact_elbo(rows, loc, scale) == pytest.approx(best, abs=1e-10)
    assert problem.exact_evidence() == pytest.approx(-4.076609798, abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_svi_reaches_the_best_affine_control(kind):
    problem = LinearProblem(max_step=0.1)
    best = problem.best_control()[-1]
    optimiser = pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.993})
    svi = SVI(problem.model, problem.guide, optimiser, PathELBO(kind, num_particles=64, vectorize_particles=True))
    for _ in range(500):
        svi.step()
    store = pyro.get_param_store()
    trained = problem.exact_elbo(*(store[name].detach() for name in ("rows", "loc", "scale")))
    assert best - 0.05 < trained <= best + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(("max_step", "gap"), [(0.0125, 0.085), (0.00625, 0.05)])
def test_trained_control_is_close_to_the_evidence_on_fine_grids(max_step, gap):
    # A control guide keeps the prior's diffusion, so on this grid no control comes closer than best_control()[-1]:
    # 0.0745 nat at h = .0125 and 0.0366 at h = .00625 (the posterior has the smaller variance s^2 h / (1 + x)).
    problem = LinearProblem(max_step=max_step, noise=math.sqrt(0.1))
    optimiser = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.998})
    svi = SVI(problem.model, problem.guide, optimiser, PathELBO(num_particles=16, vectorize_particles=True))
    problem.rows = torch.zeros_like(problem.rows)
    for _ in range(1500):
        svi.step()
    store = pyro.get_param_store()
    trained = problem.exact_elbo(*(store[name].detach() for name in ("rows", "loc", "scale")))
    assert -4.079495885 - gap < trained < problem.exact_evidence()
    iwae = RenyiELBO(alpha=0, num_particles=1000, vectorize_particles=True, max_plate_nesting=1)
    mean = -losses(iwae, problem, repeats=20).mean().item()
    assert abs(mean - problem.exact_evidence()) < 0.01


# ---------------------------------------------------------------- sticking the landing
def same_law_pair():
    """Model and guide with the same law, the guide through its own parameters."""
    grid = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.1)
    start = torch.tensor([0.2])

    def model():
        initial = dist.Normal(start, 0.5).to_event(1)
        pyro.sample("z", SDEPath(OrnsteinUhlenbeck(0.8, 0.9), initial, grid))

    def guide():
        rate, sigma, loc = (pyro.param(n, torch.tensor(v)) for n, v in (("rate", 0.8), ("sigma", 0.9), ("m", 0.0)))
        width = pyro.param("width", torch.tensor(0.5))
        initial = dist.Normal(start + loc, width).to_event(1)
        pyro.sample("z", SDEPath(OrnsteinUhlenbeck(rate, sigma, loc), initial, grid))

    return model, guide


@pytest.mark.parametrize("elbo", [PathELBO("stl"), Trace_ELBO()], ids=["PathELBO", "Trace_ELBO"])
def test_stl_gradient_is_zero_where_guide_and_model_agree_in_law(elbo):
    assert gradient(elbo, *same_law_pair()).abs().max() < 1e-10


def test_full_estimator_keeps_its_variance_where_stl_has_none():
    assert gradient(PathELBO("full"), *same_law_pair()).abs().max() > 1e-3


def test_joint_stl_has_zero_variance_for_two_dependent_sites_where_site_level_stl_has_not():
    # a ~ N(0, 1), b | a ~ N(a, 1): the guide is the prior with its own parameters, and sees no data.
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(a, 1.0))

    def guide():
        m, k = pyro.param("m", torch.tensor(0.0)), pyro.param("k", torch.tensor(1.0))
        s, r = pyro.param("s", torch.tensor(1.0)), pyro.param("r", torch.tensor(1.0))
        a = pyro.sample("a", dist.Normal(m, s))
        pyro.sample("b", dist.Normal(k * a, r))

    draws = torch.stack([gradient(PathELBO("stl"), model, guide) for _ in range(50)])
    assert draws.var(0).max() < 1e-25
    assert torch.stack([gradient(Trace_ELBO(), model, guide) for _ in range(50)]).var(0).max() > 0.1


def test_joint_stl_covers_a_path_that_depends_on_a_global_latent():
    grid = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.2)
    initial = dist.Normal(torch.zeros(1), 1.0).to_event(1)

    def model():
        rate = pyro.sample("rate", dist.LogNormal(0.0, 0.3))
        pyro.sample("z", SDEPath(OrnsteinUhlenbeck(rate, 0.7), initial, grid))

    def guide():
        m, s = pyro.param("m", torch.tensor(0.0)), pyro.param("s", torch.tensor(0.3))
        sigma = pyro.param("sigma", torch.tensor(0.7))
        rate = pyro.sample("rate", dist.LogNormal(m, s))
        pyro.sample("z", SDEPath(OrnsteinUhlenbeck(rate, sigma), initial, grid))

    assert gradient(PathELBO("stl"), model, guide).abs().max() < 1e-10
    assert gradient(Trace_ELBO(), model, guide).abs().max() > 1e-3  # site-level: upstream variance remains


def test_stl_gradient_variance_falls_as_the_square_of_the_step():
    def variance(max_step):
        problem = LinearProblem(max_step=max_step)
        rows, loc, scale, _ = problem.best_control()

        def guide():  # two parameters of the whole path, zero at the best control
            shift, gain = pyro.param("shift", torch.tensor(0.0)), pyro.param("gain", torch.tensor(0.0))
            pyro.sample("z", problem.posterior(rows + torch.stack([shift, gain]), loc, scale))

        return torch.stack([gradient(PathELBO("stl"), problem.model, guide) for _ in range(300)]).var(0).sum().item()

    ratio = variance(0.1) / variance(0.025)
    assert 8 < ratio < 32  # dt^2 gives 16


# ---------------------------------------------------------------- unbiasedness
def far_pair(batch=6, *, mask=False, subsample=None, discrete=False):
    """A pair far from the posterior, with plates and everything that scales or masks a site."""
    times = torch.rand(batch, 3).cumsum(-1)
    grid = TimeGrid(times, max_step=0.4, start=0.0)
    values = torch.randn(batch, 3)
    keep = torch.rand(batch) > 0.3
    initial = dist.Normal(torch.zeros(1), 0.7).to_event(1)

    def rows_of(index):
        return grid if index is None else grid[index]

    def model():
        rate = pyro.sample("rate", dist.LogNormal(0.0, 0.5))
        regime = pyro.sample("regime", dist.Bernoulli(0.4)) if discrete else torch.tensor(0.0)
        with pyro.plate("series", batch, subsample_size=subsample) as index:
            part = rows_of(index if subsample else None)
            law = SDEPath(OrnsteinUhlenbeck((rate + regime).unsqueeze(-1), 0.8), initial, part)
            z = pyro.sample("z", law.mask(keep[index]) if mask else law)
            pyro.sample("y", dist.Normal(part.observed(z)[..., 0], 0.5).to_event(1), obs=values[index])

    def guide():
        m, s = pyro.param("m", torch.tensor(0.2)), pyro.param("s", torch.tensor(0.4))
        a, b = pyro.param("a", torch.tensor(0.3)), pyro.param("b", torch.tensor(-0.4))
        w = pyro.param("w", torch.tensor(0.6))
        rate = pyro.sample("rate", dist.LogNormal(m, s))
        regime = torch.tensor(0.0)
        if discrete:
            regime = pyro.sample("regime", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(-0.3))))
        with pyro.plate("series", batch, subsample_size=subsample) as index:
            part = rows_of(index if subsample else None)
            sde = OrnsteinUhlenbeck((rate + regime).unsqueeze(-1), 0.8).controlled(lambda t, z: a + b * z)
            law = SDEPath(sde, dist.Normal(torch.zeros(1), w).to_event(1), part)
            pyro.sample("z", law.mask(keep[index]) if mask else law)

    return model, guide


@pytest.mark.parametrize("options", [{}, {"mask": True}, {"subsample": 3}, {"discrete": True}], ids=str)
def test_estimators_have_the_same_mean_gradient(options):
    torch.manual_seed(1)
    model, guide = far_pair(**options)
    # 400 evaluations of 16 paths each; a difference of 4 standard errors of the paired means fails.
    options = {"num_particles": 16, "vectorize_particles": True, "max_plate_nesting": 1}
    draws = {
        kind: torch.stack([gradient(PathELBO(kind, **options), model, guide) for _ in range(150)]) for kind in KINDS
    }
    for kind in ("stl", "closed"):
        difference = draws[kind].mean(0) - draws["full"].mean(0)
        error = ((draws[kind].var(0) + draws["full"].var(0)) / 150).sqrt()
        assert (difference.abs() / error).max() < 4


def test_scores_of_a_non_reparameterised_path_are_used():
    problem = LinearProblem(max_step=0.5)

    def guide():
        loc = pyro.param("loc", problem.loc)
        pyro.sample("z", problem.posterior(problem.rows, loc, problem.scale).has_rsample_(False))

    def pathwise():
        loc = pyro.param("loc", problem.loc)
        pyro.sample("z", problem.posterior(problem.rows, loc, problem.scale))

    options = {"num_particles": 5000, "vectorize_particles": True, "max_plate_nesting": 0}
    for kind in KINDS:
        score = torch.stack([gradient(PathELBO(kind, **options), problem.model, guide) for _ in range(8)])
        path = torch.stack([gradient(PathELBO(kind, **options), problem.model, pathwise) for _ in range(8)])
        error = ((score.var(0) + path.var(0)) / 8).sqrt()
        assert ((score.mean(0) - path.mean(0)).abs() / error).max() < 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise_type", ["diagonal", "degenerate", "general"])
def test_gradients_reach_a_diffusion_that_guide_and_model_share(kind, noise_type):
    grid = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.25)
    initial = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    shape = {"diagonal": torch.ones(2), "degenerate": torch.tensor([1.0, 0.0]), "general": torch.eye(2) + 0.3}[
        noise_type
    ]

    def prior(sigma):
        sde_type = "general" if noise_type == "general" else "diagonal"
        return SDE(lambda t, z: -z, lambda t, z: sigma * shape, noise_type=sde_type)

    def law(sigma):
        return SDEPath(prior(sigma).controlled(lambda t, z: 0.5 + z), initial, grid)

    def model():
        pyro.sample("z", SDEPath(prior(pyro.param("sigma", torch.tensor(0.8))), initial, grid))

    def guide():
        pyro.sample("z", law(pyro.param("sigma", torch.tensor(0.8))))

    torch.manual_seed(2)
    ours = gradient(PathELBO(kind), model, guide)
    torch.manual_seed(2)
    sigma = torch.tensor(0.8, requires_grad=True)
    q, p = law(sigma), SDEPath(prior(sigma), initial, grid)
    z = q.rsample()
    if kind == "closed":
        loss = path_kl(q, p, z)
    elif kind == "full":
        loss = q.log_prob(z) - p.log_prob(z)
    else:  # the density of q with its own parameters held fixed
        loss = law(sigma.detach()).log_prob(z) - p.log_prob(z) if noise_type != "degenerate" else None
    if loss is not None:  # off the support of the fixed law there is no such density
        torch.testing.assert_close(ours[0], torch.autograd.grad(loss, sigma)[0])
    assert ours[0] != 0


# ---------------------------------------------------------------- weights and wrappers
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_kl_weight_equals_scaling_model_and_guide_path_sites(kind, weight):
    problem = LinearProblem(max_step=0.5)

    def scaled(part):
        def wrapped():
            with poutine.scale(scale=weight) if weight else poutine.mask(mask=False):
                return part()

        return wrapped

    def model():
        z = scaled(lambda: pyro.sample("z", problem.prior()))()
        pyro.sample("y", dist.Normal(problem.grid.observed(z)[..., 0], problem.noise).to_event(1), obs=problem.values)

    guide = scaled(problem.guide)
    torch.manual_seed(0)
    a = gradient(PathELBO(kind, kl_weight=weight), problem.model, problem.guide)
    torch.manual_seed(0)
    b = gradient(PathELBO(kind), model, guide)
    torch.testing.assert_close(a, b)
    torch.manual_seed(0)
    loss = PathELBO(kind, kl_weight=weight).loss(problem.model, problem.guide)
    torch.manual_seed(0)
    assert loss == pytest.approx(PathELBO(kind).loss(model, guide))


def test_kl_weight_changes_the_loss():
    problem = LinearProblem(max_step=0.5)
    values = []
    for weight in (1.0, 2.0):
        torch.manual_seed(0)
        values.append(PathELBO("closed", kl_weight=weight).loss(problem.model, problem.guide))
    assert values[1] > values[0]


@pytest.mark.parametrize("kind", KINDS)
def test_event_and_mask_wrappers_change_nothing_but_their_meaning(kind):
    grid = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.25)
    initial = dist.Normal(torch.zeros(3, 1), 1.0).to_event(1)
    keep = torch.tensor([True, False, True])

    def pair(wrap):
        def model():
            pyro.sample("z", wrap(SDEPath(OrnsteinUhlenbeck(1.0, 0.5), initial, grid)))

        def guide():
            sde = OrnsteinUhlenbeck(1.0, 0.5).controlled(lambda t, z: 0.5 + z)
            pyro.sample("z", wrap(SDEPath(sde, dist.Normal(torch.full((3, 1), 0.3), 0.8).to_event(1), grid)))

        return model, guide

    def loss(wrap):
        torch.manual_seed(0)
        return PathELBO(kind).loss(*pair(wrap))

    torch.manual_seed(0)
    guide_law = poutine.trace(pair(lambda law: law.to_event(1))[1]).get_trace().nodes["z"]
    path, law = guide_law["value"], guide_law["fn"].base_dist
    prior = SDEPath(OrnsteinUhlenbeck(1.0, 0.5), initial, grid)
    terms = path_kl(law, prior, path) if kind == "closed" else law.log_prob(path) - prior.log_prob(path)
    assert loss(lambda d: d.to_event(1)) == pytest.approx(terms.sum().item())
    assert loss(lambda d: d.mask(keep).to_event(1)) == pytest.approx(terms[keep].sum().item())


def test_elbo_module_trains_with_a_torch_optimiser():
    problem = LinearProblem(max_step=0.5)

    class Guide(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.rows = nn.Parameter(problem.rows.clone())

        def forward(self):
            pyro.sample("z", problem.posterior(self.rows, problem.loc, problem.scale))

    loss = PathELBO(num_particles=32, vectorize_particles=True, max_plate_nesting=0)(problem.model, Guide())
    optimiser = torch.optim.Adam(loss.parameters(), lr=0.05)
    first = loss().item()
    for _ in range(60):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    assert loss().item() < first - 1


def test_jit_gradients_agree_with_eager_ones():
    # TorchScript may reorder random draws, so equality is in the mean; at the posterior it is exact.
    problem = LinearProblem(max_step=0.5)
    options = {"num_particles": 64, "vectorize_particles": True, "max_plate_nesting": 0}
    jit = JitPathELBO("stl", ignore_jit_warnings=True, **options)
    eager = torch.stack([gradient(PathELBO("stl", **options), problem.model, problem.guide) for _ in range(60)])
    compiled = torch.stack([gradient(jit, problem.model, problem.guide) for _ in range(60)])
    error = ((eager.var(0) + compiled.var(0)) / 60).sqrt()
    assert ((eager.mean(0) - compiled.mean(0)).abs() / error).max() < 4
    zero = gradient(JitPathELBO("stl", ignore_jit_warnings=True), *same_law_pair())
    assert zero.abs().max() < 1e-10


def test_float32_loss_agrees_with_float64():
    problem = LinearProblem(max_step=0.1)
    torch.manual_seed(0)
    noise = torch.randn(problem.prior().noise_shape())
    z0 = torch.tensor([0.3])
    q64 = problem.posterior(problem.rows, problem.loc, problem.scale)
    q32 = SDEPath(
        OrnsteinUhlenbeck(0.8, 0.9).controlled(Affine()),
        dist.Normal(problem.loc.float(), problem.scale.float()).to_event(1),
        TimeGrid(torch.tensor([0.5, 1.0, 1.2, 1.7], dtype=torch.float32), max_step=0.1, start=0.0),
        inputs=problem.rows.float(),
    )
    ratio64 = q64.log_prob(q64.solve(z0, noise))
    ratio32 = q32.log_prob(q32.solve(z0.float(), noise.float()))
    assert ratio32.item() == pytest.approx(ratio64.item(), abs=1e-3)


def test_a_learned_flow_beside_the_path_keeps_its_cache():
    grid = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.5)
    flow = dist.transforms.Planar(2)  # has no inverse: only the cached sample has a density

    def model():
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, 1.0), dist.Normal(w[:1], 1.0).to_event(1), grid))

    def guide():
        pyro.module("flow", flow)
        w = pyro.sample("w", dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [flow]))
        pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, 1.0), dist.Normal(w[:1], 1.0).to_event(1), grid))

    assert gradient(PathELBO("stl"), model, guide).isfinite().all()


def test_repeated_steps_leak_no_tensors():
    problem = LinearProblem(max_step=0.5)
    svi = SVI(problem.model, problem.guide, pyro.optim.Adam({"lr": 1e-3}), PathELBO())

    def count():
        gc.collect()
        return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())

    for _ in range(5):
        svi.step()
    before = count()
    for _ in range(100):
        svi.step()
    assert count() - before < 10


def test_second_order_dynamics_train():
    grid = TimeGrid(torch.linspace(0.0, 3.0, 7), max_step=0.1)
    values = torch.linspace(0.0, 3.0, 7).cos()
    prior = UnderdampedLangevin(lambda x: -x, 0.2, 0.3)
    net = nn.Linear(4, 1)  # (z, t, next value) would be an encoder's; here a smooth control of time and state

    def model():
        z = pyro.sample("z", SDEPath(prior, dist.Normal(torch.zeros(2), 1.0).to_event(1), grid))
        pyro.sample("y", dist.Normal(grid.observed(z)[..., 0], 0.1).to_event(1), obs=values)

    def control(t, z):
        features = torch.cat([z, t.expand(*z.shape[:-1], 1), t.sin().expand(*z.shape[:-1], 1)], -1)
        return torch.cat([torch.zeros_like(z[..., :1]), net(features)], -1)

    def guide():
        pyro.module("net", net)
        loc = pyro.param("loc", torch.zeros(2))
        pyro.sample("z", SDEPath(prior.controlled(control), dist.Normal(loc, 0.2).to_event(1), grid))

    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.05}), PathELBO(num_particles=4, vectorize_particles=True))
    history = [svi.step() for _ in range(120)]
    assert all(math.isfinite(loss) for loss in history)
    assert sum(history[-10:]) < 0.5 * sum(history[:10])


# ---------------------------------------------------------------- errors
def pair_of(q_sde, p_sde, q_initial=None, q_grid=None, p_grid=None):
    grid = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.25)
    initial = dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def model():
        pyro.sample("z", SDEPath(p_sde, initial, p_grid or grid))

    def guide():
        shift = pyro.param("shift", torch.zeros(2))
        law = q_initial or dist.Normal(shift, 1.0).to_event(1)
        pyro.sample("z", SDEPath(q_sde, law, q_grid or grid))

    return model, guide


OU = OrnsteinUhlenbeck(1.0, 0.8)
LANGEVIN = UnderdampedLangevin(torch.neg, 0.5, 1.0)


def grid_to(end, max_step):
    return TimeGrid(torch.tensor([0.0, end]), max_step=max_step)


INFINITE = {
    "diffusion": (
        lambda: pair_of(OrnsteinUhlenbeck(1.0, torch.tensor([0.8, 0.9])), OU),
        r"site 'z'.*diffusions, at dimension 1.*guide 0\.9, model 0\.8",
    ),
    "range": (
        lambda: pair_of(LANGEVIN.with_drift(lambda t, z: LANGEVIN.drift(t, z) + 1.0), LANGEVIN),
        r"site 'z'.*without noise, at dimension 0.*controlled",
    ),
    "grid": (lambda: pair_of(OU, OU, q_grid=grid_to(1.0, 0.5)), r"site 'z'.*different grids"),
    "times": (lambda: pair_of(OU, OU, q_grid=grid_to(1.1, 0.275)), r"site 'z'.*different grids"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", INFINITE)
@pytest.mark.parametrize("method", ["loss", "loss_and_grads", "differentiable_loss"])
def test_an_infinite_divergence_raises_in_loss_and_gradients(kind, case, method):
    pair, match = INFINITE[case]
    model, guide = pair()
    with pytest.raises(ValueError, match=match):
        getattr(PathELBO(kind), method)(model, guide)


@pytest.mark.parametrize("kind", KINDS)
def test_different_point_masses_raise(kind):
    point = dist.Delta(torch.ones(2), event_dim=1)
    model, guide = pair_of(OU, OU, q_initial=point)

    def delta_model():
        grid = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.25)
        pyro.sample("z", SDEPath(OU, dist.Delta(torch.zeros(2), event_dim=1), grid))

    with pytest.raises(ValueError, match=r"site 'z'.*initial laws is not finite"):
        PathELBO(kind).loss(delta_model, guide)


def test_an_auxiliary_path_without_reverse_model_raises():
    problem = LinearProblem(max_step=0.5)

    def guide():
        pyro.sample("a", problem.prior(), infer={"is_auxiliary": True})
        problem.guide()

    with pytest.raises(ValueError, match=r"site 'a' is an auxiliary path.*reverse model"):
        PathELBO().loss(problem.model, guide)


def test_a_latent_path_missing_from_the_guide_raises():
    problem = LinearProblem(max_step=0.5)
    with pytest.raises(ValueError, match="site 'z' is a latent path of the model that the guide does not have"):
        PathELBO().loss(problem.model, lambda: None)


def test_path_dimensions_used_as_plates_raise_instead_of_counting_twice():
    grid = TimeGrid(torch.linspace(0.0, 1.0, 4))
    initial = dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def guide():
        pyro.sample("z", SDEPath(OU, initial, grid))

    def model():
        z = pyro.sample("z", SDEPath(OU, initial, grid))
        with pyro.plate("time", 4, dim=-2), pyro.plate("state", 2, dim=-1):
            pyro.sample("y", dist.Normal(z, 1.0), obs=torch.zeros(4, 2))

    with pytest.raises(ValueError, match=r"site 'y' has log_prob of shape.*to_event\(2\)"):
        PathELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=2).loss(model, guide)


def test_unregistered_networks_warn():
    grid = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.5)
    initial = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    net = nn.Linear(2, 2)
    sde = SDE(lambda t, z: -z, lambda t, z: torch.ones_like(z))

    class Control(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, t, z):
            return self.net(z)

    def model():
        pyro.sample("z", SDEPath(sde, initial, grid))

    def guide(register):
        if register:
            pyro.module("net", net)
        scale = pyro.param("scale", torch.ones(2))
        pyro.sample("z", SDEPath(sde.controlled(Control()), dist.Normal(torch.zeros(2), scale).to_event(1), grid))

    with pytest.warns(UserWarning, match=r"site 'z' has 6 trainable parameters.*pyro\.module"):
        PathELBO().loss(lambda register: model(), lambda register: guide(False), False)
    PathELBO().loss(lambda register: model(), guide, True)  # warnings are errors


def test_nan_likelihoods_are_explained():
    problem = LinearProblem(max_step=0.5)

    def model():
        z = pyro.sample("z", problem.prior())
        fn = dist.Normal(problem.grid.observed(z)[..., 0], 1.0, validate_args=False).to_event(1)
        pyro.sample("y", fn, obs=torch.full((4,), math.nan))

    warnings.simplefilter("ignore")  # Pyro's own warning, which does not say what to do
    with pytest.raises(ValueError, match=r"site 'y': log_prob is nan.*mask"):
        PathELBO().loss(model, problem.guide)


def test_exploding_paths_name_their_site():
    grid = TimeGrid(torch.tensor([0.0, 50.0]), max_step=1.0)
    explosive = SDE(lambda t, z: z**3, lambda t, z: torch.ones_like(z))
    model, guide = pair_of(explosive, explosive, q_grid=grid, p_grid=grid)
    with pytest.raises(ValueError, match=r"site 'z'.*non-finite at time"):
        PathELBO().loss(model, guide)


def test_bad_arguments_raise():
    with pytest.raises(ValueError, match="`kl` must be one of"):
        PathELBO("mc")
    with pytest.raises(ValueError, match="`kl_weight` must be"):
        PathELBO(kl_weight=-1.0)


def test_a_path_on_one_side_needs_a_density_estimator():
    problem = LinearProblem(max_step=0.5)
    size = problem.grid.num_steps + 1

    def guide():
        scale = pyro.param("w", torch.ones(size, 1))
        pyro.sample("z", dist.Normal(torch.zeros(size, 1), scale).to_event(2))

    with pytest.warns(UserWarning, match=r"site 'z': the guide treats the states of the path as independent.*AutoSDE"):
        assert math.isfinite(PathELBO("stl").loss(problem.model, guide))
    warnings.simplefilter("ignore")
    with pytest.raises(ValueError, match="site 'z' is a path on one side only"):
        PathELBO("closed").loss(problem.model, guide)
    with pytest.raises(ValueError, match="site 'z' is a path on one side only"):
        PathELBO("stl", kl_weight=0.5).loss(problem.model, guide)
