from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_sde import SDE, SDEPath, TimeGrid
from pyro_sde.sde import OrnsteinUhlenbeck
from pyro_sde.sde.two_scale import FineSDE, TwoScaleSDE, matrix_form


def towards(t, b, a):
    return 8.0 * (a[..., :1] - b)


def unit(t, b, a):
    return 0.6 * torch.ones_like(b)


def turned(t, b, a):
    """Matrix noise (..., 2, 3)."""
    rows = [[1.0, 0.0, 0.3], [0.2, 0.5, 0.0]]
    return (1 + a[..., :1, None].square()) * torch.tensor(rows, dtype=b.dtype)


def scales() -> TwoScaleSDE:
    return TwoScaleSDE(OrnsteinUhlenbeck(0.5, 0.5), FineSDE(towards, unit), coarse_dim=1)


def test_joint_coefficients_are_those_of_the_parts():
    z = torch.randn(4, 3, 3, dtype=torch.float64)
    joint = scales().coefficients(torch.zeros(1), z, (None,))
    torch.testing.assert_close(joint.drift[..., :1], -0.5 * z[..., :1])
    torch.testing.assert_close(joint.drift[..., 1:], 8 * (z[..., :1] - z[..., 1:]))
    torch.testing.assert_close(joint.diffusion[0, 0], torch.tensor([0.5, 0.6, 0.6], dtype=torch.float64))


def test_matrix_noise_of_one_level_makes_a_block_matrix():
    sde = TwoScaleSDE(OrnsteinUhlenbeck(0.5, 0.5), FineSDE(towards, turned, noise_type="general"), coarse_dim=1)
    assert sde.noise_type == "general"
    z = torch.randn(5, 3)
    diffusion = sde.coefficients(torch.zeros(1), z, (None,)).diffusion
    assert diffusion.shape == (5, 3, 4)
    torch.testing.assert_close(diffusion[:, 1:, 1:], turned(None, z[:, 1:], z[:, :1]))
    assert not diffusion[:, 0, 1:].any()
    assert not diffusion[:, 1:, 0].any()
    torch.testing.assert_close(diffusion[:, 0, 0], torch.full((5,), 0.5))


def test_it_is_an_ordinary_sde_for_a_full_simulation():
    grid = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.1)
    law = SDEPath(scales(), dist.Normal(torch.zeros(3), 1.0).to_event(1), grid)
    path = law.sample((7,))
    assert path.shape == (7, 11, 3)
    assert torch.isfinite(law.log_prob(path)).all()
    coarse, fine = scales().split(path)
    assert coarse.shape[-1] == 1
    assert fine.shape[-1] == 2


def test_the_parts_hold_each_parameter_once():
    class Drift(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.ones(()))

        def forward(self, t, b, a):
            return self.rate * (a - b)

    sde = TwoScaleSDE(OrnsteinUhlenbeck(0.5, 0.5), FineSDE(Drift(), unit), coarse_dim=1)
    assert len(sde.state_dict()) == 1
    assert len(list(sde.parameters())) == 1


def test_a_fine_sde_takes_a_bound_coarse_path_as_inputs():
    grid = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.1)
    path = torch.full((11, 1), 2.0)
    fine = FineSDE(towards, unit).with_inputs(path[:-1])
    mean = SDEPath(fine, dist.Normal(torch.zeros(1), 0.01).to_event(1), grid).sample((4000,))[:, -1].mean()
    assert float(mean) == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("noise_type", ["diagonal", "general"])
def test_of_splits_a_joint_sde(noise_type):
    def drift(t, z):
        return torch.stack([-z[..., 0], z[..., 0] - z[..., 1], z[..., 0] * z[..., 2]], -1)

    def diffusion(t, z):
        scale = torch.stack([1 + z[..., 0] ** 2, 1 + z[..., 1] ** 2, torch.ones_like(z[..., 0])], -1)
        return scale if noise_type == "diagonal" else torch.diag_embed(scale)

    joint = SDE(drift, diffusion, noise_type=noise_type)
    split = TwoScaleSDE.of(joint, coarse_dim=1, state_dim=3)
    z = torch.randn(6, 3, dtype=torch.float64)
    ours, theirs = (s.coefficients(torch.zeros(1), z, (None,)) for s in (split, joint))
    torch.testing.assert_close(ours.drift, theirs.drift)
    torch.testing.assert_close(split.noise.gram(ours.diffusion), joint.noise.gram(theirs.diffusion))
    assert split.coarse_dim == 1


def feedback(t, z):
    return torch.stack([-z[..., 0] + 0.1 * z[..., 1].sin(), z[..., 0] - z[..., 1]], -1)


def upside_down(t, z):
    return torch.stack([z[..., 1] - z[..., 0], -z[..., 1]], -1)


def one_way(t, z):
    return torch.stack([-z[..., 0], z[..., 0] - z[..., 1]], -1)


def ones(t, z):
    return torch.ones_like(z)


def test_fine_variables_that_feed_back_are_named():
    with pytest.raises(ValueError, match="fine variables feed back into coarse ones.*depends on variable 1"):
        TwoScaleSDE.of(SDE(feedback, ones), coarse_dim=1, state_dim=2)


def test_feedback_through_the_diffusion_is_found():
    def diffusion(t, z):
        return torch.stack([1 + z[..., 1] ** 2, torch.ones_like(z[..., 0])], -1)

    with pytest.raises(ValueError, match="feed back"):
        TwoScaleSDE.of(SDE(one_way, diffusion), coarse_dim=1, state_dim=2)


def test_levels_in_the_wrong_order_are_named():
    with pytest.raises(ValueError, match="levels are in the wrong order: the first 1 variables depend"):
        TwoScaleSDE.of(SDE(upside_down, ones), coarse_dim=1, state_dim=2)
    with pytest.raises(ValueError, match="levels are in the wrong order: `coarse` is a FineSDE"):
        TwoScaleSDE(FineSDE(towards, unit), OrnsteinUhlenbeck(1.0, 1.0), coarse_dim=1)


def test_levels_nested_in_the_wrong_place_are_named():
    with pytest.raises(ValueError, match="wrong order: `fine` is a TwoScaleSDE"):
        TwoScaleSDE(OrnsteinUhlenbeck(0.5, 0.5), scales(), coarse_dim=1)
    with pytest.raises(ValueError, match="variables of all slower levels: it must be more than 1"):
        TwoScaleSDE(scales(), FineSDE(towards, unit), coarse_dim=1)


def test_nested_levels_are_listed_from_slow_to_fast():
    nested = TwoScaleSDE(scales(), FineSDE(towards, unit), coarse_dim=3)
    assert nested.levels == (nested.coarse.coarse, nested.coarse.fine, nested.fine)
    assert nested.coefficients(torch.zeros(1), torch.ones(4, 5), (None,)).drift.shape == (4, 5)


def test_a_common_brownian_motion_is_refused():
    def shared(t, z):
        return torch.ones(*z.shape[:-1], 2, 1, dtype=z.dtype)

    with pytest.raises(ValueError, match="common Brownian motion"):
        TwoScaleSDE.of(SDE(one_way, shared, noise_type="scalar"), coarse_dim=1, state_dim=2)


@pytest.mark.parametrize("coarse_dim", [0, True, 1.0])
def test_a_wrong_number_of_coarse_variables_is_named(coarse_dim):
    with pytest.raises(ValueError, match="`coarse_dim` must be a positive integer"):
        TwoScaleSDE(OrnsteinUhlenbeck(1.0, 1.0), FineSDE(towards, unit), coarse_dim=coarse_dim)
    with pytest.raises(ValueError, match="`coarse_dim` must be from 1"):
        TwoScaleSDE.of(SDE(one_way, ones), coarse_dim=2, state_dim=2)


def test_levels_that_are_no_sde_are_named():
    with pytest.raises(TypeError, match="`coarse` must be an SDE"):
        TwoScaleSDE(3.0, FineSDE(towards, unit), coarse_dim=1)
    with pytest.raises(TypeError, match="`fine` must be a FineSDE"):
        TwoScaleSDE(OrnsteinUhlenbeck(1.0, 1.0), SDE(one_way, ones), coarse_dim=1)
    with pytest.raises(ValueError, match="must be an Itô SDE"):
        TwoScaleSDE(SDE(one_way, ones, sde_type="stratonovich"), FineSDE(towards, unit), coarse_dim=1)


def test_a_fine_sde_without_coarse_state_says_what_to_do():
    with pytest.raises(ValueError, match="a FineSDE needs the coarse state"):
        FineSDE(towards, unit).coefficients(torch.zeros(1), torch.zeros(2), (None,))


def test_matrix_form_of_diagonal_noise_is_diagonal():
    sde = FineSDE(towards, unit)
    matrix = matrix_form(sde, torch.full((1,), 0.5), torch.zeros(4, 2))
    torch.testing.assert_close(matrix, 0.5 * torch.eye(2))


def test_float32_coefficients_keep_their_dtype():
    joint = scales().coefficients(torch.zeros(1), torch.zeros(2, dtype=torch.float32), (None,))
    assert joint.drift.dtype == joint.diffusion.dtype == torch.float32
