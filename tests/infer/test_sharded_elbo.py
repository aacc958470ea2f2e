from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.testing import assert_close

from pyro_sde.infer import sharded_elbo
from pyro_sde.infer.elbo import PathELBO
from pyro_sde.infer.sharded_elbo import ShardedELBO, place
from pyro_sde.infer.streams import seeded
from pyro_sde.models import LatentSDE
from pyro_sde.ops.grid import TimeGrid
from tests.infer.sharded_problem import REDUCTION, SERIES, SHARDS, Shared, data, gradients, problem

ALL = torch.arange(SERIES)


class Point(PyroModule):
    """A model and guide without noise, so that every way to cut the series has the same loss."""

    def __init__(self):
        super().__init__()
        self.loc = PyroParam(torch.tensor(0.4))

    def model(self, y):
        with pyro.plate("series", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    def guide(self, y):
        with pyro.plate("series", len(y)):
            pyro.sample("z", dist.Delta(self.loc * y))


def noiseless(name):
    """Model without noise and its reduction."""
    return (Point(), "sum") if name == "local" else (Shared(random=False), "mean")


@pytest.mark.parametrize("num_shards", [1, 2, 3, 9])
@pytest.mark.parametrize("name", REDUCTION)
def test_without_noise_any_number_of_shards_equals_the_plain_loss(name, num_shards):
    model, reduction = noiseless(name)
    y = data()[2]
    loss = ShardedELBO(model.model, model.guide, lambda i: (y[i],), num_shards=num_shards, reduction=reduction)
    found = loss(ALL)
    plain = PathELBO().differentiable_loss(model.model, model.guide, y)
    assert_close(found, plain)
    expected = torch.autograd.grad(plain, list(model.parameters()))
    assert_close(list(gradients(loss, found).values()), list(expected))


@pytest.mark.parametrize("name", REDUCTION)
def test_loss_is_that_of_the_shards_each_on_its_own_noise(name):
    loss, (grid, y, first) = problem(name), data()
    expected = 0.0
    for number, shard in enumerate(([0, 1], [2, 3], [4, 5], [6])):
        arguments = (grid, y[shard]) if name == "local" else (first[shard],)
        with pyro.get_param_store().scope(), seeded(3, "noise", 5, number):
            part = PathELBO().differentiable_loss(*loss._functions, *arguments)
        expected = expected + part * (1.0 if name == "local" else len(shard) / SERIES)
    assert_close(loss(ALL, 5), expected)
    assert not torch.isclose(loss(ALL, 6), expected)
    assert not torch.isclose(problem(name, seed=4)(ALL, 5), expected)


@pytest.mark.parametrize("count", [SERIES, 1])
@pytest.mark.parametrize("processes", [2, 3, 4])
@pytest.mark.parametrize("name", REDUCTION)
def test_mean_over_ranks_is_the_loss_of_one_process(name, processes, count, monkeypatch):
    loss = problem(name)
    whole = loss(ALL[:count], 1)
    grads = gradients(loss, whole)
    parts, shares = [], []
    for rank in range(processes):
        monkeypatch.setattr(sharded_elbo, "place", lambda rank=rank: (rank, processes))
        parts.append(loss(ALL[:count], 1))
        shares.append(gradients(loss, parts[-1]))  # a rank without series has gradients too: zeros
    assert_close(torch.stack(parts).mean(), whole.detach(), rtol=1e-12, atol=1e-12)
    for key, grad in grads.items():
        assert_close(torch.stack([share[key] for share in shares]).mean(0), grad, rtol=1e-10, atol=1e-12)


def test_a_rank_is_asked_for_its_own_series_only(monkeypatch):
    model, asked = Point(), []

    def batch(indices):
        asked.append(indices.tolist())
        return (data()[2][indices],)

    monkeypatch.setattr(sharded_elbo, "place", lambda: (1, 2))
    ShardedELBO(model.model, model.guide, batch, num_shards=SHARDS)(ALL)
    assert asked == [[2, 3], [6]]


def test_one_process_without_a_group_has_rank_0():
    assert place() == (0, 1)


def test_random_state_and_parameter_store_stay_as_they_were():
    pyro.param("sharded", torch.zeros(2))
    before = torch.get_rng_state()
    loss = problem("local")
    loss.prepare(ALL)
    loss(ALL).backward()
    assert torch.equal(torch.get_rng_state(), before)
    assert list(pyro.get_param_store()) == ["sharded"]


def test_parameters_are_those_of_model_and_guide_once_each():
    loss = problem("local")
    owner = loss.parts["model"]
    assert list(loss.parts) == ["model"]
    assert {id(p) for p in loss.parameters()} == {id(p) for p in owner.parameters()}


def test_scale_is_a_factor_of_loss_and_gradient():
    one, third = problem("local"), problem("local", scale=1 / 3)
    assert_close(third(ALL) * 3, one(ALL))


def test_the_elbo_is_the_one_given_and_stays_as_it_was():
    elbo, model, y = Trace_ELBO(num_particles=2), Point(), data()[2]
    loss = ShardedELBO(model.model, model.guide, lambda i: (y[i],), elbo, num_shards=2)
    assert type(loss.elbo) is Trace_ELBO
    assert loss.elbo.num_particles == 2
    assert loss.elbo is not elbo


def test_latent_sde_in_shards():
    grid, y, _ = data()
    latent = LatentSDE(1, 1, max_step=0.2)
    loss = ShardedELBO(latent.model, latent.guide, lambda i: (grid, y[i]), num_shards=2)
    value = loss(ALL)
    value.backward()
    assert value.isfinite()
    assert all(p.grad is not None for p in latent.parameters())


class Automatic(PyroModule):
    """One level for all series, whose guide is automatic."""

    def __init__(self):
        super().__init__()
        self.noise = PyroParam(torch.tensor(0.5), constraint=dist.constraints.positive)

    def forward(self, y):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("series", SERIES, subsample_size=len(y)):
            pyro.sample("y", dist.Normal(level, self.noise), obs=y)


def test_automatic_guide_after_prepare():
    y, model = data()[2], Automatic()
    loss = ShardedELBO(model, AutoNormal(model), lambda i: (y[i],), num_shards=2, reduction="mean")
    loss.prepare(ALL)
    assert "parts.guide.locs.level_unconstrained" in dict(loss.named_parameters())
    loss(ALL).backward()
    assert all(p.grad is not None for p in loss.parameters())


def test_float32():
    found = problem("local", dtype=torch.float32)(ALL, 5)
    assert found.dtype == torch.float32
    assert found.isfinite()
    exact = problem("global", dtype=torch.float64)
    exact.parts["model"].random = False
    single = problem("global", dtype=torch.float32)
    single.parts["model"].random = False
    assert_close(single(ALL).double(), exact(ALL), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_shards": 0}, "`num_shards` must be >= 1 and `scale` > 0, received 0 and 1.0"),
        ({"scale": 0.0}, "`num_shards` must be >= 1 and `scale` > 0, received 4 and 0.0"),
        ({"reduction": "max"}, "`reduction` must be one of .*received 'max'"),
    ],
)
def test_options_out_of_range(options, match):
    with pytest.raises(ValueError, match=match):
        problem("local", **options)


def test_batch_must_be_a_function():
    with pytest.raises(TypeError, match="`batch` must be a function of indices of series, received tuple"):
        ShardedELBO(nn.Identity(), nn.Identity(), (), num_shards=1)


@pytest.mark.parametrize("role", ["model", "guide"])
def test_functions_without_a_module(role):
    functions = {"model": nn.Identity(), "guide": nn.Identity(), role: lambda y: None}
    with pytest.raises(TypeError, match=f"`{role}` must be a module or a method of one"):
        ShardedELBO(*functions.values(), lambda i: (i,), num_shards=1)


def test_fewer_shards_than_processes(monkeypatch):
    monkeypatch.setattr(sharded_elbo, "place", lambda: (0, 5))
    with pytest.raises(ValueError, match="`num_shards` is 4, too few for 5 processes"):
        problem("local")(ALL)


@pytest.mark.parametrize("indices", [torch.arange(0), torch.zeros(2, 2, dtype=torch.long)])
def test_indices_of_a_wrong_shape(indices):
    with pytest.raises(ValueError, match="`indices` must have shape"):
        problem("local")(indices)


def test_site_outside_the_plate_cannot_be_summed_over_shards():
    with pytest.raises(ValueError, match="site 'level' is in no plate, so that it would count once per shard"):
        problem("global", reduction="sum")(ALL)


class Bare(PyroModule):
    """A parameter that is in no module."""

    def forward(self, y):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("series", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)


def test_parameter_that_is_in_no_module():
    loss = ShardedELBO(Bare(), nn.Identity(), lambda i: (i.double(),), num_shards=1)
    with pytest.raises(ValueError, match="parameter 'loc' is in no module of model and guide"):
        loss(ALL)


def test_parameter_that_comes_to_be_in_the_first_call():
    y, model = data()[2], Automatic()
    loss = ShardedELBO(model, AutoNormal(model), lambda i: (y[i],), num_shards=1, reduction="mean")
    with pytest.raises(ValueError, match=r"came to be in this call.*call `prepare` first"):
        loss(ALL)


def test_grids_of_the_series_go_to_the_ranks_with_them():
    times = torch.stack([torch.tensor([0.0, 0.5, 1.0 + k]) for k in range(4)])
    latent, y, asked = LatentSDE(1, 1), torch.zeros(4, 3, 1), []

    def batch(indices):
        asked.append(TimeGrid(times[indices]))
        return asked[-1], y[indices]

    ShardedELBO(latent.model, latent.guide, batch, num_shards=2)(torch.arange(4))
    assert_close(torch.cat([grid.times[:, -1] for grid in asked]), times[:, -1])
