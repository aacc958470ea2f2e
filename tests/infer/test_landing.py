"""Both forms of sticking the landing have the same gradient."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_sde import JitPathELBO, PathELBO, SDEPath, TimeGrid
from pyro_sde.infer import landing
from pyro_sde.infer.traces import CutValues, matched_traces, sampled_traces
from pyro_sde.sde import OrnsteinUhlenbeck

GRID_TIMES = (0.0, 0.5, 1.0)


def model():
    grid = TimeGrid(torch.tensor(GRID_TIMES))
    rate = pyro.sample("rate", dist.LogNormal(0.0, 0.5))
    initial = dist.Normal(torch.zeros(1), 1.0).to_event(1)
    with pyro.plate("series", 4, subsample_size=2):
        pyro.sample("z", SDEPath(OrnsteinUhlenbeck(rate.unsqueeze(-1), 0.8), initial, grid))


def guide_with(net):
    def guide():
        pyro.module("net", net)
        grid = TimeGrid(torch.tensor(GRID_TIMES))
        m, s = pyro.param("m", torch.tensor(0.2)), pyro.param("s", torch.tensor(0.4))
        rate = pyro.sample("rate", dist.LogNormal(m, s))
        with pyro.plate("series", 4, subsample_size=2):
            sde = OrnsteinUhlenbeck(rate.unsqueeze(-1), 0.8).controlled(lambda t, z: net(z))
            pyro.sample("z", SDEPath(sde, dist.Normal(torch.zeros(1), s).to_event(1), grid))

    return guide


def entropy_gradients(by_difference):
    torch.manual_seed(0)
    net = nn.Linear(1, 1)
    guide = guide_with(net)
    cuts = CutValues()
    raw = sampled_traces(model, guide, (), {}, cuts)
    pair = matched_traces(raw, 1)
    pair.guide.compute_score_parts()
    if by_difference:
        landing.land_by_difference(pair.guide, landing.frozen_guide(raw.guide, guide, (), {}))
    else:
        landing.land(pair.guide, cuts)
    parts = [pair.guide.nodes[name]["score_parts"] for name in ("rate", "z")]
    total = sum(part.entropy_term.sum() for part in parts)
    value = sum(part.log_prob.sum() for part in parts)
    assert total.item() == pytest.approx(value.item())
    store = pyro.get_param_store()
    targets = [store["m"], store["s"], *net.parameters()]
    return torch.autograd.grad(total, targets)


def test_difference_of_densities_has_the_gradient_of_the_cut():
    for ours, expected in zip(entropy_gradients(True), entropy_gradients(False), strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_compiled_bound_trains_networks():
    net = nn.Linear(1, 1)
    guide = guide_with(net)
    elbo = JitPathELBO("stl", ignore_jit_warnings=True)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    before = net.weight.detach().clone()
    losses = [svi.step() for _ in range(5)]
    assert all(torch.tensor(losses).isfinite())
    assert not torch.equal(before, net.weight)


def test_compiled_gradients_of_a_network_agree_with_eager_ones_in_the_mean():
    torch.manual_seed(0)
    net = nn.Linear(1, 1)
    guide = guide_with(net)
    options = {"num_particles": 50, "vectorize_particles": True, "max_plate_nesting": 1}

    def draws(elbo):
        found = []
        for _ in range(40):
            net.zero_grad()
            elbo.loss_and_grads(model, guide)
            found.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
        return torch.stack(found)

    eager = draws(PathELBO("stl", **options))
    compiled = draws(JitPathELBO("stl", ignore_jit_warnings=True, **options))
    error = ((eager.var(0) + compiled.var(0)) / 40).sqrt()
    assert ((eager.mean(0) - compiled.mean(0)).abs() / error).max() < 4
