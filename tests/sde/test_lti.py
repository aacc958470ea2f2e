"""Linear time-invariant SDEs from any matrices."""

from __future__ import annotations

import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.nn import PyroParam, PyroSample
from torch import nn
from torch.testing import assert_close

from pyro_sde.ops.discretise import discretise
from pyro_sde.ops.stationary import stationary_moments
from pyro_sde.sde import LTI

F64 = torch.float64
MATRIX = torch.tensor([[-1.0, 1.0], [0.0, -2.0]], dtype=F64)
NOISE = torch.tensor([[0.0], [1.0]], dtype=F64)
STEPS = torch.tensor([0.1, 2.0], dtype=F64)


def test_the_laws_are_those_of_the_matrices():
    offset, output = torch.tensor([1.0, -1.0], dtype=F64), torch.ones(3, 2, dtype=F64)
    sde = LTI(MATRIX, NOISE, offset, output)
    for ours, theirs in zip(sde.transition(STEPS), discretise(MATRIX, NOISE, STEPS, offset), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(sde.stationary(), stationary_moments(MATRIX, NOISE, offset), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(sde.observation, output)
    assert torch.equal(LTI(MATRIX, NOISE).observation, torch.eye(2, dtype=F64))
    assert (sde.state_dim, sde.noise_type) == (2, "additive")


def test_a_batch_of_one_matrix_is_one_of_all_laws():
    transition = LTI(MATRIX, NOISE * torch.ones(3, 1, 1, dtype=F64)).transition(STEPS)
    assert transition.matrix.shape == transition.covariance.shape == (3, 2, 2, 2)
    assert transition.offset.shape == (3, 2, 2)


def test_matrices_may_be_learned_and_sampled():
    prior = dist.Normal(torch.zeros(2, 1), 1.0).to_event(2)
    sde = LTI(nn.Parameter(MATRIX.float()), PyroSample(prior), PyroParam(torch.ones(2)))
    assert {name for name, _ in sde.named_parameters()} == {"drift_matrix", "offset_unconstrained"}
    trace = poutine.trace(lambda: sde.transition(STEPS.float()).covariance).get_trace()
    noise = trace.nodes["diffusion_matrix"]["value"]
    assert_close(trace.nodes["_RETURN"]["value"], discretise(MATRIX.float(), noise, STEPS.float()).covariance)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, NOISE), r"`drift_matrix` must have shape \(\*batch, D, D\), received \(\)"),
        ((torch.zeros(2, 3), NOISE), r"`drift_matrix` must have shape \(\*batch, D, D\), received \(2, 3\)"),
        ((MATRIX, torch.zeros(2)), r"`diffusion_matrix` must have shape \(\*batch, 2, M\), received \(2,\)"),
        ((MATRIX, torch.zeros(3, 1)), r"`diffusion_matrix` must have shape \(\*batch, 2, M\), received \(3, 1\)"),
        ((MATRIX, NOISE, torch.zeros(3)), r"`offset` must have shape \(\*batch, 2\), received \(3,\)"),
        ((MATRIX, NOISE, None, torch.zeros(2)), r"`observation_matrix` must have shape \(\*batch, O, 2\)"),
        ((MATRIX, NOISE, None, torch.zeros(1, 3)), r"`observation_matrix` .* received \(1, 3\)"),
    ],
)
def test_shapes_that_do_not_fit_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        LTI(*arguments)


def test_growing_matrices_have_no_stationary_law():
    with pytest.raises(ValueError, match="LTI has no stationary law: the eigenvalue 1 of its drift matrix"):
        LTI(-MATRIX, NOISE).stationary()
