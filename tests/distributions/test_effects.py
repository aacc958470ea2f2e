"""Pyro statements inside coefficients: bound at construction, replayed ever after."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import MCMC, NUTS
from pyro.nn import PyroModule, PyroParam, PyroSample

from pyro_sde import SDE, SDEPath, TimeGrid, path_kl
from pyro_sde.distributions.effects import EffectRecorder

H, STEPS = 0.25, 4
START = dist.Normal(torch.zeros(2), 1.0).to_event(1)


def half(t, z):
    return 0.5 * torch.ones_like(z)


def law(drift, diffusion=half):
    return SDEPath(SDE(drift, diffusion), START, TimeGrid(torch.linspace(0, 1, STEPS + 1)))


def density(path, drift, scale=0.5):
    steps = dist.Normal(path[:-1] + H * drift(path[:-1]), scale * H**0.5).log_prob(path[1:])
    return steps.sum() + START.log_prob(path[0])


def traced(model, **values):
    trace = poutine.trace(poutine.condition(model, data=values)).get_trace()
    trace.compute_log_prob()
    return trace.nodes


class BayesianDrift(PyroModule):
    def __init__(self):
        super().__init__()
        self.linear = PyroModule[torch.nn.Linear](2, 2, bias=False)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([2, 2]).to_event(2))

    def forward(self, t, z):
        return self.linear(z)


class Parent(PyroModule):
    """Model as a PyroModule; `early` reads the weights before the law is built, `names` share the drift."""

    def __init__(self, *, early=False, names="z"):
        super().__init__()
        self.drift, self.early, self.names = BayesianDrift(), early, names

    def forward(self):
        if self.early:
            assert self.drift.linear.weight.shape == (2, 2)
        return [pyro.sample(name, law(self.drift)) for name in self.names]


@pytest.mark.parametrize("options", [{}, {"early": True}, {"names": "ab"}], ids=["plain", "read-before", "two-sites"])
def test_density_uses_the_random_weights_of_the_trace(options):
    nodes = traced(Parent(**options))
    weight = nodes["drift.linear.weight"]["value"]
    for name in options.get("names", "z"):
        expected = density(nodes[name]["value"], lambda z: z @ weight.T)
        torch.testing.assert_close(nodes[name]["log_prob"], expected)


def test_bayesian_drift_works_in_a_plain_function():
    drift = BayesianDrift()
    nodes = traced(lambda: pyro.sample("z", law(drift)))
    weight = nodes["linear.weight"]["value"]
    torch.testing.assert_close(nodes["z"]["log_prob"], density(nodes["z"]["value"], lambda z: z @ weight.T))


def test_sample_statement_in_a_drift_is_one_site():
    def drift(t, z):
        return -pyro.sample("theta", dist.Exponential(1.0)) * z

    nodes = traced(lambda: pyro.sample("z", law(drift)))
    theta = nodes["theta"]["value"]
    torch.testing.assert_close(nodes["z"]["log_prob"], density(nodes["z"]["value"], lambda z: -theta * z))


def test_lifted_parameters_keep_their_value():
    def drift(t, z):
        return -pyro.param("theta", torch.tensor(1.0), constraint=constraints.positive) * z

    lifted = poutine.lift(lambda: pyro.sample("z", law(drift)), prior=dist.Exponential(1.0))
    nodes = traced(lifted)
    theta = nodes["theta"]["value"]
    assert nodes["theta"]["type"] == "sample"
    torch.testing.assert_close(nodes["z"]["log_prob"], density(nodes["z"]["value"], lambda z: -theta * z))


def test_parameter_of_drift_and_diffusion_gets_its_gradient():
    def drift(t, z):
        return -pyro.param("theta", torch.tensor(0.8)) * z

    def diffusion(t, z):
        return pyro.param("theta") * torch.ones_like(z)

    path = torch.randn(STEPS + 1, 2)
    traced(lambda: pyro.sample("z", law(drift, diffusion), obs=path))["z"]["log_prob"].backward()
    theta = torch.tensor(0.8, requires_grad=True)
    density(path, lambda z: -theta * z, theta).backward()
    torch.testing.assert_close(pyro.get_param_store()._params["theta"].grad, theta.grad)


def test_pyro_parameter_of_a_module_gets_its_gradient():
    class Learned(PyroModule):
        def __init__(self):
            super().__init__()
            self.rate = PyroParam(torch.tensor(0.8), constraint=constraints.positive)

        def forward(self, t, z):
            return -self.rate * z

    drift = Learned()
    path = torch.randn(STEPS + 1, 2)
    traced(lambda: pyro.sample("z", law(drift), obs=path))["z"]["log_prob"].backward()
    raw = torch.tensor(0.8).log().requires_grad_()
    density(path, lambda z: -raw.exp() * z).backward()
    torch.testing.assert_close(drift.rate_unconstrained.grad, raw.grad)


def test_replay_and_condition_reach_the_statements():
    model = Parent()
    weight = torch.tensor([[0.1, 0.2], [0.3, -0.4]])
    nodes = traced(model, **{"drift.linear.weight": weight})
    torch.testing.assert_close(nodes["z"]["log_prob"], density(nodes["z"]["value"], lambda z: z @ weight.T))
    replayed = poutine.trace(poutine.replay(model, poutine.trace(model).get_trace())).get_trace()
    weight = replayed.nodes["drift.linear.weight"]["value"]
    replayed.compute_log_prob()
    expected = density(replayed.nodes["z"]["value"], lambda z: z @ weight.T)
    torch.testing.assert_close(replayed.nodes["z"]["log_prob"], expected)


def test_divergence_uses_the_recorded_weights():
    model = Parent()
    nodes = traced(model)
    weight = nodes["drift.linear.weight"]["value"]
    fixed = law(lambda t, z: z @ weight.T)
    assert path_kl(nodes["z"]["fn"], fixed, nodes["z"]["value"]) == 0


def test_nuts_runs_over_the_weights_of_a_drift():
    path = law(lambda t, z: -z).sample()

    def model():
        def drift(t, z):
            return -pyro.sample("theta", dist.LogNormal(0.0, 0.5)) * z

        pyro.sample("z", law(drift), obs=path)

    mcmc = MCMC(NUTS(model, max_tree_depth=3), num_samples=5, warmup_steps=5, disable_progbar=True)
    mcmc.run()
    assert (mcmc.get_samples()["theta"] > 0).all()


def test_a_statement_that_was_not_recorded_is_refused():
    """A drift that changes its statements would score a path under weights it was not drawn with."""
    calls = []

    def drift(t, z):
        calls.append(t)
        scale = pyro.sample("late", dist.Normal(0.0, 1.0)) if len(calls) > 1 else 1.0
        return -scale * z

    with pytest.raises(
        RuntimeError, match="the statement 'late' inside a drift, diffusion or control was not executed"
    ):
        law(drift).sample()


def test_a_function_around_a_module_that_was_read_before_is_refused():
    class Closure(Parent):
        def forward(self):
            assert self.drift.linear.weight.shape == (2, 2)
            path_law = law(lambda t, z: self.drift(t, z))
            return path_law, path_law.sample()

    path_law, path = Closure()()
    with pytest.raises(RuntimeError, match="'drift.linear.weight' .*pass a PyroModule itself to the SDE"):
        path_law.log_prob(path)


def test_recorder_hides_what_it_answers():
    recorder = EffectRecorder(torch.nn.Identity())
    with poutine.trace() as outer, recorder:
        first = pyro.sample("a", dist.Normal(0.0, 1.0))
    recorder.seal()
    with poutine.trace() as later, recorder:
        second = pyro.sample("a", dist.Normal(0.0, 1.0))
    assert first == second
    assert "a" in outer.trace.nodes
    assert "a" not in later.trace.nodes
