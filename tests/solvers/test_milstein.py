"""Milstein's method: its step against the formula with Jacobians written out, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from pyro_sde import SDE
from pyro_sde.solvers.base import Field
from pyro_sde.solvers.milstein import Milstein
from tests.solvers.order_problems import brownian, run

F64 = torch.float64

MATRIX = torch.tensor([[1.0, 0.5], [-0.3, 0.8]], dtype=F64)
NOISES = {
    "diagonal": lambda t, z: 0.3 + z.sin(),
    "scalar": lambda t, z: (0.3 + z.flip(-1).sin()).unsqueeze(-1),  # a Jacobian that is not symmetric
    "general": lambda t, z: z.cos().unsqueeze(-1) * MATRIX,
    "additive": lambda t, z: (1 + t).unsqueeze(-1) * MATRIX,
}


@pytest.mark.parametrize("interpretation", ["ito", "stratonovich"])
@pytest.mark.parametrize("noise", sorted(NOISES))
def test_a_step_is_that_of_the_formula(noise, interpretation):
    diffusion = NOISES[noise]
    sde = SDE(lambda t, z: (t - z).cos(), diffusion, noise_type=noise, sde_type=interpretation)
    increments = brownian(4, 5, 1 if noise == "scalar" else 2, seed=0)
    initial = torch.randn(5, 2, dtype=F64)
    end = run(Milstein(interpretation), sde, increments, initial)

    def columns(z, t):
        value = diffusion(t, z)
        return torch.diag(value) if noise == "diagonal" else value

    for b in range(5):
        z, t = initial[b], torch.zeros(1, dtype=F64)
        for k in range(4):
            w, h = increments.W[k, b], 0.25
            sigma = columns(z, t)
            jacobian = torch.autograd.functional.jacobian(lambda s, t=t: columns(s, t), z)  # (i, k, d)
            double = torch.outer(w, w) - (h * torch.eye(len(w), dtype=F64) if interpretation == "ito" else 0)
            correction = 0.5 * torch.einsum("ikd,dj,jk->i", jacobian, sigma, double)
            z, t = z + (t - z).cos() * h + sigma @ w + correction, t + h
        assert_close(end[b], z)


def test_additive_noise_needs_no_correction_and_no_derivative():
    def diffusion(t, z):
        return MATRIX.expand(*z.shape[:-1], 2, 2) if not torch._C._are_functorch_transforms_active() else None

    end = run(
        Milstein(), SDE(lambda t, z: -z, diffusion, noise_type="additive"), brownian(3, 4, 2, 0), torch.ones(4, 2)
    )
    assert torch.isfinite(end).all()


@pytest.mark.parametrize("interpretation", ["ito", "stratonovich"])
def test_noise_that_does_not_commute_is_refused(interpretation):
    sde = SDE(lambda t, z: -z, lambda t, z: z.flip(-1), sde_type=interpretation)
    with pytest.raises(ValueError, match=r"Milstein needs commutative noise.*entries 0 and 1"):
        run(Milstein(interpretation), sde, brownian(2, 3, 2, 0), torch.randn(3, 2, dtype=F64))


def test_an_unknown_interpretation_raises():
    with pytest.raises(ValueError, match=r'`interpretation` must be "ito" or "stratonovich", received \'Ito\''):
        Milstein("Ito")
    assert repr(Milstein("stratonovich")) == "Milstein(interpretation='stratonovich')"
    assert (
        Milstein().start(Field(SDE(lambda t, z: z, lambda t, z: z), (None,)), torch.zeros(1), torch.ones(2), ()) == ()
    )
