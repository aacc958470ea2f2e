"""The toys of simulation-free training: exact evidences, distances of laws, and rows that train."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from pyro_sde import TimeGrid
from tests.benchmarks import toys
from tests.benchmarks.harness import Table

D64 = torch.float64


def dense_evidence(toy: toys.Toy) -> float:
    """Of Gaussian observations, by the Gaussian process with the covariance of the prior."""
    times = toy.times.double()
    prior = toy.scale**2 / (2 * toy.rate) * torch.exp(-toy.rate * (times[:, None] - times).abs())
    noise = toy.noise(torch.zeros(1, dtype=D64)).variance * torch.eye(len(times), dtype=D64)
    return float(MultivariateNormal(torch.zeros_like(times), prior + noise).log_prob(toy.values.double().squeeze(-1)))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("make", [toys.ou, toys.ou_random_times])
def test_the_evidence_is_that_of_the_gaussian_process(make, seed):
    toy = make(seed)
    assert toy.evidence() == pytest.approx(dense_evidence(toy), abs=1e-6)


def test_the_evidence_of_the_euler_chain_comes_near_it_in_proportion_to_the_step():
    toy = toys.ou(0)._replace(times=torch.linspace(0.5, 2.0, 4), values=torch.tensor([[0.6], [-0.4], [-0.1], [0.9]]))
    exact = toy.evidence()
    gaps = [abs(toy.evidence(TimeGrid(toy.times, start=0.0, max_step=step)) - exact) for step in (0.1, 0.05, 0.025)]
    assert gaps[0] / gaps[1] == pytest.approx(2.0, abs=0.3)
    assert gaps[1] / gaps[2] == pytest.approx(2.0, abs=0.2)


def test_the_floor_of_a_control_is_that_of_its_steps_and_falls_with_them():
    x = 0.01 / 0.1**2  # one step, then one observation: the step has the information 1/h + 1/s^2
    single = toys.ou(0)._replace(times=torch.tensor([0.01]), values=torch.zeros(1, 1))
    assert toys.control_floor(single, 0.1) == pytest.approx(0.5 * (x - math.log1p(x)), abs=1e-6)
    floors = [toys.control_floor(toys.ou(0), 0.1, step) for step in (0.01, 0.001)]
    assert floors[0] == pytest.approx(5.65, abs=0.01)  # the figure on the page
    assert floors[1] == pytest.approx(0.1 * floors[0], rel=0.4)


def test_the_energy_distance_of_shifted_normals_is_that_of_quadrature():
    torch.manual_seed(0)
    x, y = torch.randn(4000, 1, dtype=D64), torch.randn(4000, 1, dtype=D64) + 1.0

    def mean_distance(shift: float) -> float:  # E|N(shift, 2)|
        return 2 / math.sqrt(math.pi) * math.exp(-(shift**2) / 4) + shift * math.erf(shift / 2)

    assert toys.energy_distance(x, y) == pytest.approx(2 * (mean_distance(1.0) - mean_distance(0.0)), abs=0.05)
    assert abs(toys.energy_distance(x, torch.randn(4000, 1, dtype=D64))) < 0.005


def test_the_divergence_of_neighbours_is_that_of_normals():
    torch.manual_seed(1)
    x, y = torch.randn(4000, 3, dtype=D64), 2 * torch.randn(4000, 3, dtype=D64) + 1.0
    exact = 3 * (math.log(2.0) + (1 + 1) / 8 - 0.5)
    assert toys.neighbour_divergence(x, y) == pytest.approx(exact, abs=0.1)
    assert abs(toys.neighbour_divergence(x, torch.randn(4000, 3, dtype=D64))) < 0.1


@pytest.mark.parametrize("name", [toys.SIMULATED, toys.FREE])
def test_every_row_trains_and_its_bound_is_below_the_evidence(name, monkeypatch):
    monkeypatch.setattr(toys, "STEPS", (1, 60))
    marks = toys.course(toys.segmented_cosine, name, 0, seconds=())
    (_, _, first), (_, _, last) = marks
    assert 0.0 < last < 0.5 * first


def test_the_page_has_a_line_for_every_row():
    one = Table("OU", toys.SIMULATED, {toys.SIMULATED: [1.0]}, ["OU | row | " + " | ".join("abcdefgh")])
    other = Table(toys.LORENZ, toys.SIMULATED, {toys.SIMULATED: [1.0]}, ["row | " + " | ".join("abcde")])
    text = toys.page([one, other])
    assert "| OU | row | a | b |" in text
    assert "| row | a | b | c | d | e |" in text
    assert "SDE matching, published" in text
    assert "published" not in toys.page([one])
    assert {line.count("|") for line in text.split("\n\n")[0].splitlines()} == {11}
