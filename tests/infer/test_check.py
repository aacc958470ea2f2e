import random
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
)
from pyro.nn import PyroModule, PyroParam
from pyro.optim import Adam
from torch import nn

from pyro_sde import CarriedPath, PathELBO, SDEPath, TimeGrid
from pyro_sde.infer._mean_field import warn_mean_field
from pyro_sde.infer.auto import AutoSDE
from pyro_sde.infer.check import Finding, check
from pyro_sde.infer.reparam import PathNoiseReparam
from pyro_sde.infer.traces import sampled_traces
from pyro_sde.nn import ControlNet, GRUEncoder
from pyro_sde.sde import SDE, NeuralSDE, OrnsteinUhlenbeck, UnderdampedLangevin
from pyro_sde.solvers import SRK, DriftImplicitEuler, ReflectedEuler

GRID = TimeGrid(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), max_step=0.25)
STEPS = GRID.num_steps


@pytest.fixture(autouse=True)
def _clean():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def normal(dim=1, loc=0.0):
    return dist.Normal(torch.full((dim,), loc, dtype=torch.float64), 1.0).to_event(1)


def kinds(findings):
    return {(finding.kind, finding.site) for finding in findings}


def pair(prior=None, q0=None, likelihood=None, grid=GRID, control=None):
    """A path with one observation per time, and a guide with a free control; both without plates."""
    prior = prior or OrnsteinUhlenbeck(1.0, 0.5)

    def model():
        z = pyro.sample("z", SDEPath(prior, normal(), GRID))
        (likelihood or observe)(GRID.observed(z))

    def guide():
        rows = pyro.param("rows", torch.zeros(grid.num_steps, 1))
        sde = prior.controlled(control or (lambda t, z, u: u))
        pyro.sample("z", SDEPath(sde, q0 or normal(), grid, inputs=rows))

    return model, guide


def observe(states):
    pyro.sample("y", dist.Normal(states, 0.5).to_event(2), obs=torch.ones(3, 1))


# --- silence on good pairs --------------------------------------------------------------------------------------------


class LatentSDE(PyroModule):
    """Ragged series, an encoder, per-series parameters, subsampling: everything at once."""

    def __init__(self, subsample_size=None):
        super().__init__()
        self.subsample_size = subsample_size
        self.prior = NeuralSDE(2, hidden=(4,))
        self.control = ControlNet(2, 4, hidden=(4,))
        self.encoder = GRUEncoder(1, 2, 4, hidden=4)
        self.decoder = nn.Linear(2, 1)
        self.scale = PyroParam(torch.tensor(0.3), constraint=dist.constraints.positive)

    def plate(self, size):
        return pyro.plate("series", size, subsample_size=self.subsample_size)

    @pyro.nn.pyro_method
    def model(self, grid, y):
        with self.plate(len(y)) as index:
            z = pyro.sample("z", SDEPath(self.prior, normal(2), grid[index]))
            law = dist.Normal(self.decoder(grid[index].observed(z)), self.scale)
            pyro.sample("y", law.mask(grid[index].mask.unsqueeze(-1)).to_event(2), obs=y[index])

    @pyro.nn.pyro_method
    def guide(self, grid, y):
        with self.plate(len(y)) as index:
            encoding = self.encoder(grid[index], y[index])
            law = SDEPath(self.prior.controlled(self.control), encoding.initial, grid[index], inputs=encoding.context)
            pyro.sample("z", law)


def ragged():
    times = torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.4, 0.4], [0.1, 0.2, 0.9]])
    return TimeGrid(times, max_step=0.2), torch.randn(3, 3, 1)


def hierarchical(y):
    rate = pyro.sample("rate", dist.LogNormal(torch.tensor(0.0), 0.5))
    with pyro.plate("series", 3):
        shift = pyro.sample("shift", dist.Normal(torch.tensor(0.0), 1.0))
        sde = OrnsteinUhlenbeck(rate.unsqueeze(-1), 0.5, shift.unsqueeze(-1))
        z = pyro.sample("z", SDEPath(sde, normal(3).expand([3]), GRID))  # as many states as series
        pyro.sample("y", dist.Normal(GRID.observed(z), 0.5).to_event(2), obs=y)


def observed_path():
    def model():
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, 0.5, loc), normal(), GRID), obs=torch.zeros(STEPS + 1, 1))

    return model, lambda: None


def langevin():
    prior = UnderdampedLangevin(torch.neg, 0.5, 0.7)

    def model():
        z = pyro.sample("z", SDEPath(prior, normal(2), GRID))
        pyro.sample("y", dist.Normal(z[..., -1, :1], 0.5).to_event(1), obs=torch.ones(1))

    def guide():
        shift = pyro.param("shift", torch.zeros(2))
        pyro.sample("z", SDEPath(prior.controlled(lambda t, z: shift.expand(z.shape)), normal(2), GRID))

    return model, guide


def untrained():
    """No parameter is in the store: torch trains them, or nobody."""
    control = nn.Linear(1, 1).double()

    def model():
        pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(), GRID))

    def guide():
        pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, 0.5).controlled(lambda t, z: control(z)), normal(), GRID))

    return model, guide


def enumerated():
    """A discrete site of the model is summed out."""

    def model():
        pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        pair()[0]()

    return model, pair()[1]


@pytest.mark.parametrize("program", [pair, observed_path, langevin, untrained, enumerated])
def test_no_finding_in_a_good_pair(program):
    model, guide = program()
    assert check(model, guide) == ()


@pytest.mark.parametrize("subsample_size", [None, 2])
def test_no_finding_with_ragged_series_encoder_and_subsampling(subsample_size):
    net = LatentSDE(subsample_size)
    assert check(net.model, net.guide, *ragged()) == ()


@pytest.mark.parametrize("kind", [AutoSDE, AutoMultivariateNormal])
def test_no_finding_in_a_hierarchical_model(kind):
    y = torch.zeros(3, 3, 3)
    model = hierarchical if kind is AutoSDE else poutine.reparam(hierarchical, {"z": PathNoiseReparam()})
    assert check(model, kind(model), y) == ()


def test_no_finding_with_modules_registered_by_functions():
    prior, control = NeuralSDE(1, hidden=(4,)), nn.Linear(1, 1)

    def model():
        pyro.module("prior", prior)
        pair(prior)[0]()

    def guide():
        pyro.module("control", control)
        pyro.sample("z", SDEPath(prior.controlled(lambda t, z: control(z)), normal(), GRID))

    assert check(model, guide) == ()


def test_no_finding_when_parameters_replace_those_of_a_module():
    prior = NeuralSDE(1, hidden=(4,))
    for name, value in prior.named_parameters():
        pyro.param(f"prior$$${name}", value.detach().clone() + 1)

    def model():
        pyro.module("prior", prior, update_module_params=True)
        pair(prior)[0]()

    assert check(model, pair(prior)[1]) == ()


def test_no_finding_without_any_path():
    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 4):
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    for guide in (AutoNormal(model), AutoDelta(model)):
        assert check(model, guide, torch.zeros(4)) == ()


# --- no mark is left --------------------------------------------------------------------------------------------------


def test_store_gradients_and_generators_are_untouched():
    net = LatentSDE(2)
    arguments = ragged()
    svi = SVI(net.model, net.guide, Adam({"lr": 0.01}), PathELBO())
    svi.step(*arguments)
    weight = net.decoder.weight
    weight.grad = torch.ones_like(weight)
    store = pyro.get_param_store()
    pyro.param("other", torch.zeros(2))
    before = {name: (value, value.detach().clone()) for name, value in store.named_parameters()}
    state = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    check(net.model, net.guide, *arguments)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert (np.random.get_state()[1] == state[2]).all()
    after = dict(store.named_parameters())
    assert set(after) == set(before)
    assert all(after[name] is value and torch.equal(value, copy) for name, (value, copy) in before.items())
    assert torch.equal(weight.grad, torch.ones_like(weight))
    others = [p.grad for p in net.parameters() if p is not weight]
    assert all(gradient is None or not gradient.any() for gradient in others)


def test_an_empty_store_stays_empty_also_after_a_failure():
    model, guide = pair()
    check(model, guide)
    assert not pyro.get_param_store()

    def broken():
        pyro.param("a", torch.zeros(1))
        raise ValueError("no")

    check(broken, guide)
    assert not pyro.get_param_store()


def test_findings_read_well():
    finding = Finding("grid", "z", "the grids differ.")
    assert str(finding) == "[grid] 'z': the grids differ."
    assert str(Finding("dtype", None, "two types.")) == "[dtype] two types."
    assert finding == Finding("grid", "z", "the grids differ.")


# --- one mistake each -------------------------------------------------------------------------------------------------


def test_a_pair_that_does_not_run():
    model, guide = pair(SDE(lambda t, z: 1e30 * z**9, lambda t, z: torch.ones_like(z)))
    (finding,) = check(model, guide)
    assert finding.kind == "failure"
    assert "non-finite at time" in finding.message
    assert "Trace Shapes" not in finding.message


def test_errors_of_other_kinds_are_not_hidden():
    def model():
        raise KeyError("a mistake in the user's code")

    with pytest.raises(KeyError, match="a mistake"):
        check(model, lambda: None)


def test_path_dimensions_reused_as_plates():
    def likelihood(states):
        with pyro.plate("times", 3, dim=-2), pyro.plate("states", 1, dim=-1):
            pyro.sample("y", dist.Normal(states, 0.5), obs=torch.ones(3, 1))

    findings = check(*pair(likelihood=likelihood))
    assert ("overcount", "y") in kinds(findings)
    assert ".to_event(2)" in next(f.message for f in findings if f.kind == "overcount")


def test_indexing_that_particles_break():
    def likelihood(states):
        pyro.sample("y", dist.Normal(states[0].sum(), 0.5), obs=torch.tensor(1.0))

    findings = check(*pair(likelihood=likelihood))
    assert kinds(findings) == {("overcount", "y")}
    assert "does not broadcast over a particle" in findings[0].message


def test_random_programs_are_not_mistaken_for_broken_ones():
    dropout = nn.Dropout(0.5)

    def likelihood(states):
        pyro.sample("y", dist.Normal(dropout(states), 0.5).to_event(2), obs=torch.ones(3, 1))

    assert check(*pair(likelihood=likelihood)) == ()


def test_round_off_of_a_point_mass_is_no_finding():
    weight = torch.randn(200, 200)

    def model():
        pyro.sample("y", dist.Normal(pyro.sample("x", normal(200)), 1.0).to_event(1), obs=torch.zeros(200))

    def guide():
        noise = pyro.sample("noise", normal(200), infer={"is_auxiliary": True})
        pyro.sample("x", dist.Delta((weight @ noise.unsqueeze(-1)).squeeze(-1), event_dim=1))

    assert check(model, guide) == ()


@pytest.mark.parametrize("site", ["z", "y"])
def test_a_latent_that_leaks_between_series(site):
    def model():
        with pyro.plate("series", 3):
            rate = pyro.sample("rate", dist.LogNormal(torch.tensor(0.0), 0.1))
            sde = OrnsteinUhlenbeck(rate if site == "z" else 1.0, 0.5)
            z = pyro.sample("z", SDEPath(sde, normal(3), GRID))
            loc = GRID.observed(z) * (rate if site == "y" else 1.0)
            pyro.sample("y", dist.Normal(loc, 0.5).to_event(2), obs=torch.ones(3, 3, 3))

    findings = check(model, AutoSDE(model))
    leaks = [finding for finding in findings if finding.kind == "leak"]
    assert [finding.site for finding in leaks] == [site]
    assert "rate.unsqueeze(-1)" in leaks[0].message
    assert "(3, 1)" in leaks[0].message


def test_a_drift_that_no_one_registers():
    prior = NeuralSDE(1, hidden=(4,))
    findings = check(*pair(prior))
    assert kinds(findings) == {("unregistered", "z")}
    assert f"{sum(p.numel() for p in prior.parameters())} parameters" in findings[0].message
    prior.requires_grad_(False)
    assert check(*pair(prior)) == ()


def test_a_decoder_and_a_control_closure_that_no_one_registers():
    decoder, control = nn.Linear(1, 1), nn.Linear(1, 1)

    def likelihood(states):
        observe(decoder(states))

    findings = check(*pair(likelihood=likelihood, control=lambda t, z, u: u + control(z)))
    assert kinds(findings) == {("unregistered", "y"), ("unregistered", "z")}
    assert all("uses 2 parameters" in finding.message for finding in findings)


def test_parameters_that_the_store_does_not_share(tmp_path):
    prior = NeuralSDE(1, hidden=(4,))

    def build():
        prior = NeuralSDE(1, hidden=(4,))

        def model():
            pyro.module("prior", prior)
            pair(prior)[0]()

        return model, pair(prior)[1]

    model, guide = build()
    SVI(model, guide, Adam({"lr": 0.1}), PathELBO()).step()
    assert check(model, guide) == ()
    pyro.get_param_store().save(str(tmp_path / "store.pt"))
    pyro.clear_param_store()
    pyro.get_param_store().load(str(tmp_path / "store.pt"))
    findings = check(*build())
    stale = {finding.site for finding in findings if finding.kind == "stale"}
    assert stale == {f"prior$$${name}" for name, _ in prior.named_parameters()}


def point(path):
    pyro.sample("z", dist.Delta(pyro.param("path", path), event_dim=2))


def by_hand():
    pyro.sample("z", dist.Normal(pyro.param("path", torch.zeros(STEPS + 1, 1)), 1.0).to_event(2))


@pytest.mark.parametrize(
    "build",
    [
        AutoNormal,
        AutoDiagonalNormal,
        AutoDelta,
        AutoNormalMessenger,
        lambda model: by_hand,
        lambda model: lambda: point(torch.zeros(STEPS + 1, 1)),
        lambda model: listed(model),
    ],
    ids=["normal", "diagonal", "delta", "messenger", "by hand", "point", "list"],
)
def test_a_mean_field_guide_of_a_path(build):
    model, _ = pair()
    guide = build(model)
    findings = check(model, guide)
    assert kinds(findings) == {("mean_field", "z")}
    for alternative in ("AutoSDE", "PosteriorSDE", "PathNoiseReparam"):
        assert alternative in findings[0].message
    traces = sampled_traces(model, guide, (), {})
    with pytest.warns(UserWarning, match="site 'z': the guide .* AutoSDE"):
        warn_mean_field(traces)


def listed(model):
    guide = AutoGuideList(model)
    guide.append(AutoNormal(model))
    return guide


def test_guides_that_know_the_correlations_are_not_mean_field():
    model, _ = pair()
    for guide in (AutoMultivariateNormal(model), AutoSDE(model), pair()[1]):
        assert check(model, guide) == ()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warn_mean_field(sampled_traces(model, guide, (), {}))


def test_one_law_of_the_guide_at_two_sites():
    def model():
        for name in "ab":
            pyro.sample(name, SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(), GRID))

    def guide(law=None):
        shared = SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(), GRID)
        with pyro.plate("one", 1):
            pass
        for name in "ab":
            pyro.sample(name, shared if law is None else SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(), GRID))

    assert kinds(check(model, guide)) == {("shared_law", "b")}
    assert check(model, lambda: guide("own")) == ()


def test_one_law_of_the_guide_at_two_sites_in_a_plate():
    law = SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(), GRID)

    def program():
        with pyro.plate("series", 3):
            pyro.sample("a", law)
            pyro.sample("b", law)

    assert kinds(check(program, program)) == {("shared_law", "b")}


@pytest.mark.parametrize("auxiliary", [True, False])
def test_paths_of_the_guide_that_the_model_does_not_have(auxiliary):
    model, guide = pair()

    def larger():
        guide()
        law = SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(), GRID)
        pyro.sample("a", law, infer={"is_auxiliary": auxiliary})

    (finding,) = check(model, larger)
    assert (finding.kind, finding.site) == ("unmatched", "a")
    assert "reverse model r('a' | other sites)" in finding.message
    assert auxiliary == ("auxiliary path" in finding.message)


def test_latent_sites_on_one_side_only():
    model, guide = pair()

    def more():
        pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        guide()

    def most():
        pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("w", SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(), GRID))
        model()

    assert kinds(check(model, more)) == {("unmatched", "x")}
    assert kinds(check(most, guide)) == {("unmatched", "x"), ("unmatched", "w")}


def test_another_grid():
    (finding,) = check(*pair(grid=GRID.refine(2)))
    assert finding.kind == "failure"
    assert "`path` must have shape (..., 5, D) on this grid" in finding.message
    unobserved = pair(grid=GRID.refine(2), likelihood=lambda states: None)
    assert ("grid", "z") in kinds(check(lambda: pyro.sample("z", path_law()), unobserved[1]))


def path_law():
    return SDEPath(OrnsteinUhlenbeck(1.0, 0.5), normal(), GRID, validate_args=False)


def test_another_grid_with_as_many_steps():
    other = TimeGrid(torch.tensor([0.0, 0.5, 1.1]), max_step=0.3)
    assert other.num_steps == GRID.num_steps
    (finding,) = check(*pair(grid=other))
    assert (finding.kind, finding.site) == ("grid", "z")


def test_another_diffusion():
    model, _ = pair()

    def guide():
        pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, 0.6), normal(), GRID))

    (finding,) = check(model, guide)
    assert (finding.kind, finding.site) == ("infinite_kl", "z")
    assert "0.6" in finding.message
    assert "0.5" in finding.message


def test_another_point_of_departure():
    def model():
        pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, 0.5), dist.Delta(torch.zeros(1), event_dim=1), GRID))

    _, guide = pair(q0=dist.Delta(torch.ones(1), event_dim=1))
    assert ("infinite_kl", "z") in kinds(check(model, guide))


def test_missing_observations():
    def likelihood(states):
        values = torch.tensor([[1.0], [float("nan")], [1.0]])
        pyro.sample("y", dist.Normal(states, 0.5, validate_args=False).to_event(2), obs=values)

    for enabled in (True, False):
        with pyro.validation_enabled(enabled):
            findings = check(*pair(likelihood=likelihood))
        assert kinds(findings) == {("non_finite", "y")}
        assert "mask them" in findings[0].message


def test_values_outside_the_support():
    def likelihood(states):
        law = dist.Gamma(states.exp(), 1.0, validate_args=False).to_event(2)
        pyro.sample("y", law, obs=torch.zeros(3, 1) - 1)

    with pyro.validation_enabled(False):
        findings = check(*pair(likelihood=likelihood))
    assert kinds(findings) == {("non_finite", "y")}
    assert "at a boundary" in findings[0].message
    assert kinds(check(*pair(likelihood=lambda s: pyro.sample("y", dist.Gamma(s.exp(), 1.0), obs=-s.exp())))) >= {
        ("failure", "y")
    }


def test_dimensions_that_are_no_plates():
    def likelihood(states):
        with pyro.plate("elsewhere", 3):
            pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0), obs=torch.zeros(3))
        pyro.sample("y", dist.Normal(states[..., 0], 0.5), obs=torch.ones(3))

    findings = check(*pair(likelihood=likelihood))
    assert ("shape", "y") in kinds(findings)
    assert "with pyro.plate(...)" in next(f.message for f in findings if f.kind == "shape")


def test_mixed_types():
    def likelihood(states):
        pyro.sample("y", dist.Normal(states.float(), 0.5).to_event(2), obs=torch.ones(3, 1, dtype=torch.float32))

    (finding,) = check(*pair(likelihood=likelihood))
    assert finding.kind == "dtype"
    assert "torch.float32: y" in finding.message
    assert "torch.float64: z" in finding.message


@pytest.mark.parametrize("kind", ["carried", "without density", "implicit", "reflected"])
def test_paths_of_every_solver_are_checked_without_false_alarm(kind):
    prior, net = OrnsteinUhlenbeck(1.0, 0.5), torch.nn.Linear(1, 1)
    grid, initial = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.1), dist.Normal(torch.zeros(1), 1.0).to_event(1)
    solver = {"without density": SRK(), "implicit": DriftImplicitEuler(), "reflected": ReflectedEuler(lower=-9.0)}

    def law(sde):
        return (
            CarriedPath(sde, initial, grid) if kind == "carried" else SDEPath(sde, initial, grid, solver=solver[kind])
        )

    def model():
        z = pyro.sample("z", law(prior))
        pyro.sample("y", dist.Normal(z[..., -1, :], 0.3).to_event(1), obs=torch.ones(1))

    def guide():
        pyro.module("net", net)
        pyro.sample("z", law(prior.controlled(lambda t, z: net(z))))

    assert check(model, guide) == ()


def test_an_infinite_divergence_is_found_without_a_density():
    grid, initial = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.1), dist.Normal(torch.zeros(1), 1.0).to_event(1)

    def model():
        pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, 0.5), initial, grid, solver=SRK()))

    def guide():
        pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, 0.7), initial, grid, solver=SRK()))

    assert [finding.kind for finding in check(model, guide)] == ["infinite_kl"]
