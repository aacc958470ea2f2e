"""Traces of guide and model: names for messages, values that can be cut."""

import gc
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_sde import SDEPath, TimeGrid
from pyro_sde.infer.traces import CutValues, PathNames, matched_traces, sampled_traces
from pyro_sde.sde import OrnsteinUhlenbeck
from tests.infer.linear_problem import LinearProblem


def test_path_laws_learn_the_name_of_their_site_and_others_are_left_alone():
    problem = LinearProblem(max_step=0.5)
    law = problem.prior()
    with PathNames():
        trace = poutine.trace(lambda: (pyro.sample("z", law), pyro.sample("x", dist.Normal(0.0, 1.0)))).get_trace()
    assert trace.nodes["z"]["fn"].site_name == "z"
    assert law.site_name is None  # the user's object is not touched


def test_a_cut_stops_gradients_between_value_and_sampling_only_while_it_is_open():
    loc = torch.tensor(0.3, requires_grad=True)
    with CutValues() as cuts:
        a = pyro.sample("a", dist.Normal(loc, 1.0))
        b = pyro.sample("b", dist.Normal(2 * a, 1.0))
    total = b.square() + 3 * a
    with cuts.cut():
        direct = torch.autograd.grad(total, [a, b], retain_graph=True)
    through = torch.autograd.grad(total, [a, b], retain_graph=True)
    torch.testing.assert_close(direct, (torch.tensor(3.0), 2 * b))
    torch.testing.assert_close(through, (3 + 4 * b, 2 * b))
    torch.testing.assert_close(torch.autograd.grad(total, loc)[0], 3 + 4 * b)


def test_values_without_gradient_observations_and_learned_flows_are_not_cut():
    flow = dist.transforms.Planar(1)
    with CutValues() as cuts:
        pyro.sample("fixed", dist.Normal(0.0, 1.0))
        pyro.sample("seen", dist.Normal(torch.tensor(0.0, requires_grad=True), 1.0), obs=torch.tensor(1.0))
        pyro.sample("coin", dist.Bernoulli(torch.tensor(0.5, requires_grad=True)))
        base = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        pyro.sample("flow", dist.TransformedDistribution(base, [flow]).mask(True))
        pyro.sample("free", dist.Normal(torch.tensor(0.0, requires_grad=True), 1.0))
    assert set(cuts.values) == {"free"}


def test_cut_values_do_not_keep_their_graph_alive():
    def run():
        loc = torch.tensor(0.3, requires_grad=True)
        with CutValues():
            value = pyro.sample("a", dist.Normal(loc, 1.0))
        return weakref.ref(loc), weakref.ref(value)

    references = run()
    gc.collect()
    assert all(reference() is None for reference in references)


def test_traces_have_no_log_probability_yet_and_share_values():
    problem = LinearProblem(max_step=0.5)
    cuts = CutValues()
    pair = sampled_traces(problem.model, problem.guide, (), {}, cuts)
    assert pair.model.nodes["z"]["value"] is pair.guide.nodes["z"]["value"] is cuts.values["z"]
    assert "log_prob" not in pair.model.nodes["z"]


def test_matched_traces_drop_subsampling_and_check_the_pair():
    grid = TimeGrid(torch.tensor([0.0, 1.0]))
    initial = dist.Normal(torch.zeros(1), 1.0).to_event(1)

    def model():
        with pyro.plate("series", 5, subsample_size=2):
            pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, 1.0), initial, grid))

    pair = sampled_traces(model, model, (), {})
    assert "series" in pair.guide.nodes
    assert "series" not in matched_traces(pair, 1).guide.nodes
    other = sampled_traces(model, lambda: None, (), {})
    with pytest.warns(UserWarning, match="Found vars in model but not guide"):
        matched_traces(other, 1)
