"""The solver and the Brownian motion of a path site."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive

from pyro_sde import SDE, PathELBO, SDEPath, TimeGrid
from pyro_sde.ops.brownian import VirtualBrownianTree
from pyro_sde.sde import DoubleWell, GeometricBrownianMotion, OrnsteinUhlenbeck
from pyro_sde.solvers import Execution
from pyro_sde.solvers.heun import Heun
from pyro_sde.solvers.milstein import Milstein
from pyro_sde.solvers.stochastic_runge_kutta import SRK

F64 = torch.float64


def at(point, batch=()):
    return dist.Delta(torch.full((*batch, 1), point, dtype=F64), event_dim=1)


def grid(step, end=2.0):
    return TimeGrid(torch.tensor([0.0, end], dtype=F64), max_step=step)


def tree(seed, levy="none", dim=1):
    return VirtualBrownianTree(0.0, 2.0, dim, seed, dtype=F64, levy=levy)


# --- solver ---------------------------------------------------------------------------------------


def test_the_solver_of_a_law_takes_its_steps():
    law = SDEPath(GeometricBrownianMotion(0.4, 0.7), at(1.0, (5,)), grid(0.5), solver=Milstein(), brownian=tree(3))
    path = law.sample()
    w = tree(3).children((5,)).increments(grid(0.5).times).W
    z = torch.ones(5, 1, dtype=F64)
    for k in range(4):
        z = z + 0.4 * z * 0.5 + 0.7 * z * w[:, k] + 0.5 * 0.7**2 * z * (w[:, k] ** 2 - 0.5)
        torch.testing.assert_close(path[:, k + 1], z)


def test_solvers_of_both_interpretations_sample_one_process():
    sde, brownian = GeometricBrownianMotion(0.4, 0.7), tree(torch.arange(300), "space-time")
    ends = [
        SDEPath(sde, at(1.0, (300,)), grid(1 / 256), solver=solver, brownian=brownian).sample()[:, -1]
        for solver in (Milstein(), Heun(), SRK())
    ]
    exact = torch.exp((0.4 - 0.7**2 / 2) * 2 + 0.7 * brownian.path([2.0])[:, 0])
    for end in ends:
        assert float((end - exact).abs().mean()) < 0.02


def bound(solver, kl):
    prior = DoubleWell()

    def model():
        pyro.sample("z", SDEPath(prior, at(0.5), grid(0.1), solver=solver))

    def guide():
        pyro.sample("z", SDEPath(prior.controlled(lambda t, z: 1 - z), at(0.5), grid(0.1), solver=solver))

    torch.manual_seed(0)
    return PathELBO(kl=kl).loss(model, guide)


def test_a_solver_without_density_serves_the_closed_divergence_and_refuses_the_others():
    assert 0 < bound(SRK(), "closed") < 10
    for kl in ("full", "stl"):
        with pytest.raises(ValueError, match=r"site 'z': .*SRK\(\).* no density.*kl=\"closed\""):
            bound(SRK(), kl)
    law = SDEPath(DoubleWell(), at(0.5), grid(0.1), solver=Heun())
    with pytest.raises(ValueError, match="no density"):
        law.log_prob(law.sample())


def test_the_noise_of_a_path_is_read_off_euler_steps_only():
    law = SDEPath(DoubleWell(), at(0.5), grid(0.1), solver=Milstein())
    with pytest.raises(ValueError, match=r"Euler–Maruyama steps only, and this law has Milstein"):
        law.noise_of(law.sample())


def test_noise_for_a_solver_has_the_width_that_it_wants():
    law = SDEPath(DoubleWell(), at(0.5, (3,)), grid(0.5), solver=SRK())
    assert law.noise_shape() == (3, 4, 2)
    assert law.solve(torch.zeros(3, 1, dtype=F64), torch.randn(3, 4, 2, dtype=F64)).shape == (3, 5, 1)
    with pytest.raises(ValueError, match=r"`noise` must have shape \(..., 4, 2\)"):
        law.solve(torch.zeros(3, 1, dtype=F64), torch.randn(3, 4, 1, dtype=F64))


def test_something_that_is_no_solver_is_refused():
    with pytest.raises(TypeError, match=r"`solver` must be a Solver such as Milstein\(\), received str"):
        SDEPath(DoubleWell(), at(0.5), grid(0.5), solver="milstein")


# --- Brownian motion ------------------------------------------------------------------------------


def law_of(seeds, step, batch, **options):
    return SDEPath(OrnsteinUhlenbeck(1.0, 0.5), at(0.5, batch), grid(step), brownian=tree(seeds), **options)


def test_a_seed_gives_the_same_path_in_any_batch():
    seeds = torch.arange(64)
    paths = law_of(seeds, 0.1, (64,)).sample()
    assert torch.equal(paths, law_of(seeds, 0.1, (64,)).sample())
    for b in (0, 7, 63):
        torch.testing.assert_close(paths[b], law_of(seeds[b : b + 1], 0.1, (1,)).sample()[0], rtol=1e-12, atol=1e-12)
    assert len(paths[:, -1, 0].unique()) == 64


def test_refined_grids_see_the_same_brownian_motion():
    sde = SDE(lambda t, z: 0 * z, lambda t, z: torch.ones_like(z))
    coarse, fine = (SDEPath(sde, at(0.0), grid(step), brownian=tree(5)).sample() for step in (0.5, 0.125))
    torch.testing.assert_close(coarse, fine[::4], rtol=1e-12, atol=1e-12)


def test_one_seed_serves_a_batch_and_particles_by_its_children():
    many = law_of(9, 0.1, (8,)).sample()
    torch.testing.assert_close(many[:3], law_of(9, 0.1, (3,)).sample())
    particles = law_of(9, 0.1, (8,)).sample((5,))
    assert particles.shape == (5, 8, 21, 1)
    assert len(particles[..., -1, 0].unique()) == 40


def test_a_brownian_path_is_the_same_with_little_memory():
    full = law_of(torch.arange(4), 0.01, (4,)).sample()
    low = law_of(torch.arange(4), 0.01, (4,), execution=Execution(memory="low", block=12)).sample()
    torch.testing.assert_close(full, low, rtol=1e-12, atol=1e-12)


def test_predictions_of_a_seeded_site_repeat():
    def model():
        with pyro.plate("series", 4):
            return pyro.sample("z", law_of(torch.arange(4), 0.1, (4,)))

    first, second = (Predictive(model, num_samples=3, parallel=True)()["z"] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("brownian", "error", "message"),
    [
        ("seed", TypeError, "`brownian` must be a VirtualBrownianTree, received str"),
        (VirtualBrownianTree(0.0, 1.0, 1, 0), ValueError, r"`brownian` covers \[0, 1\], and the grid \[0, 2\]"),
        (tree(0, dim=2), ValueError, "must have brownian_dim=1"),
        (tree(0), ValueError, 'SRK.* needs Lévy areas .* build it with levy="space-time"'),
    ],
)
def test_a_brownian_motion_that_does_not_fit_is_refused(brownian, error, message):
    with pytest.raises(error, match=message):
        SDEPath(DoubleWell(), at(0.5), grid(0.5), solver=SRK(), brownian=brownian)


def test_seeds_of_another_batch_are_refused():
    with pytest.raises(ValueError, match=r"`brownian` has seeds of shape \(3,\), and the path law batch shape \(4,\)"):
        law_of(torch.arange(3), 0.1, (4,)).sample()
