"""PosteriorSDE: its parts, its default control, and what it refuses."""

from __future__ import annotations

import copy
import pickle

import pyro
import pytest
import torch

from pyro_sde.distributions import SDEPath
from pyro_sde.guides import PosteriorSDE
from pyro_sde.nn import ControlNet, GRUEncoder
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.sde import SDE, BrownianMotion

GRID = TimeGrid(torch.tensor([0.0, 0.5, 1.0]), max_step=0.25)


def encoder():
    return GRUEncoder(1, 2, 5, hidden=4)


def test_the_law_is_the_controlled_prior_with_what_the_encoder_says():
    posterior, prior, values = PosteriorSDE(encoder()), BrownianMotion(0.3), torch.randn(4, 3, 1)
    law = posterior(prior, GRID, values)
    encoding = posterior.encoder(GRID, values)
    assert isinstance(law, SDEPath)
    assert law.sde.base is prior
    assert law.sde.control is posterior.control
    assert torch.equal(law.inputs, encoding.context)
    assert torch.equal(law.initial.base_dist.loc, encoding.initial.base_dist.loc)


def test_the_default_control_is_a_zero_control_net_for_diagonal_noise():
    control = PosteriorSDE(encoder()).control
    assert isinstance(control, ControlNet)
    output = control(torch.zeros(1), torch.randn(7, 2), torch.randn(7, 5))
    assert torch.equal(output, torch.zeros(7, 2))


def test_a_control_may_be_a_plain_function():
    posterior = PosteriorSDE(encoder(), lambda t, z, context: 1.0 - z)
    law = posterior(BrownianMotion(0.5), GRID, torch.zeros(3, 1))
    start = torch.zeros(2)
    path = law.solve(start, torch.zeros(law.noise_shape()))
    assert path[1].tolist() == pytest.approx([0.125, 0.125])  # sigma * u * dt = 0.5 * 1 * 0.25


def test_a_call_registers_all_parameters_without_further_ado():
    posterior = PosteriorSDE(encoder())
    posterior(BrownianMotion(0.5), GRID, torch.zeros(3, 1))
    stored = dict(pyro.get_param_store().named_parameters())
    assert {id(value) for value in stored.values()} == {id(p) for p in posterior.parameters()}
    assert all(name.startswith("posterior_sde.") for name in stored)


def test_it_can_be_copied_and_pickled():
    posterior = PosteriorSDE(encoder())
    values = torch.randn(3, 1)
    law = posterior(BrownianMotion(0.5), GRID, values)
    for other in (copy.deepcopy(posterior), pickle.loads(pickle.dumps(posterior))):
        assert torch.equal(other(BrownianMotion(0.5), GRID, values).inputs, law.inputs)


def test_a_control_of_the_wrong_size_is_refused_with_the_size_it_needs():
    matrix = SDE(lambda t, z: -z, lambda t, z: torch.ones(2, 3), noise_type="additive")
    with pytest.raises(ValueError, match=r"`control` must return shape \(..., 3\)"):
        PosteriorSDE(encoder())(matrix, GRID, torch.zeros(3, 1))


def test_parts_of_a_wrong_kind_are_refused():
    with pytest.raises(TypeError, match="`encoder` must be an Encoder, received BrownianMotion"):
        PosteriorSDE(BrownianMotion(1.0))
    with pytest.raises(TypeError, match="`control` must be a function of"):
        PosteriorSDE(encoder(), 3.0)
