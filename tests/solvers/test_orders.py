"""Strong and weak orders of every solver for every noise type, by regression, within 0.1 of the order it claims."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch.testing import assert_close

from pyro_sde.ops.brownian import coarsen
from pyro_sde.solvers.exact_linear import ExactLinear
from pyro_sde.solvers.milstein import Milstein
from tests.solvers.conftest import SOLVERS
from tests.solvers.order_problems import (
    FIRST,
    PROBLEMS,
    additive_problem,
    arctan_problem,
    brownian,
    run,
    strong_slope,
    weak_errors,
    weak_slope,
)

BAND = 0.1


def _is_slow(name, noise):
    implicit = name in ("drift-implicit-euler", "local-linearisation", "trapezoidal")
    return implicit and (name, noise) not in (("drift-implicit-euler", "diagonal"), ("local-linearisation", "additive"))


# "scalar" for local linearisation: its two normals a step do not follow the one Brownian motion; see the weak order
STRONG = [
    pytest.param(name, noise, marks=[pytest.mark.slow] if _is_slow(name, noise) else [])
    for name, row in sorted(SOLVERS.items())
    for noise in row.strong
    if (name, noise) != ("local-linearisation", "scalar")
]
BOTH = [
    (name, noise)
    for name, row in sorted(SOLVERS.items())
    for noise in (*row.strong, "commutative")
    if noise != "commutative" or "general" in row.strong or isinstance(row.solver, Milstein)
]
WEAK = [(name, noise) for name, row in sorted(SOLVERS.items()) for noise in row.weak]


@cache
def paths(noise, count=500):
    """A problem, its Brownian paths on the finest grid, the last states, and the numbers of steps to compare."""
    problem = PROBLEMS[noise]()
    known = noise in ("commutative", "diagonal", "scalar")
    increments = brownian(128 if known else 512, count, problem.brownian_dim, seed=1)
    return problem, increments, problem.solution(increments), [16, 32, 64, 128] if known else [8, 16, 32, 64]


@pytest.mark.parametrize(("name", "noise"), STRONG)
def test_strong_order(name, noise):
    row = SOLVERS[name]
    problem, increments, last, steps = paths(noise, 4000 if name == "reversible-heun" else 500)
    slope, error = strong_slope(row.solver, problem, row.interpretation, steps, increments, last)
    assert row.solver.strong_order(noise) == row.strong[noise]
    assert error < 0.035
    assert abs(slope - row.strong[noise]) < BAND


@pytest.mark.parametrize("interpretation", ["ito", "stratonovich"])
def test_milstein_has_order_1_for_matrix_noise_that_commutes(interpretation):
    problem, increments, last, steps = paths("commutative")
    slope, error = strong_slope(Milstein(interpretation), problem, interpretation, steps, increments, last)
    assert error < 0.035
    assert abs(slope - 1) < BAND


def test_noise_that_does_not_commute_tells_order_1_from_order_one_half():
    problem, increments, last, steps = paths("general")
    slopes = [
        strong_slope(SOLVERS[name].solver, problem, "stratonovich", steps, increments, last)[0]
        for name in ("log-ode", "midpoint")  # the same but for the area
    ]
    assert slopes[0] - slopes[1] > 0.35


@pytest.mark.parametrize(("name", "noise"), WEAK)
def test_weak_order(name, noise):
    row = SOLVERS[name]
    steps = [256, 512, 1024] if (name, noise) in (("srk", "diagonal"), ("srk", "scalar")) else [32, 64, 128]
    slope = weak_slope(steps, weak_errors(row.solver, noise, steps))
    assert row.solver.weak_order(noise) == row.weak[noise]
    assert abs(slope - row.weak[noise]) < BAND


@pytest.mark.parametrize(("name", "noise"), BOTH)
def test_both_forms_of_an_sde_have_the_same_paths(name, noise):
    problem = PROBLEMS[noise]()
    dim = 2 if name == "local-linearisation" else problem.brownian_dim
    increments = coarsen(brownian(16, 7, dim, seed=2), 2, dim=0)
    ends = [run(SOLVERS[name].solver, problem.sde[form], increments, FIRST.repeat(7, 1)) for form in problem.sde]
    assert_close(ends[0], ends[1], rtol=1e-11, atol=1e-11)


def test_the_problems_have_the_solutions_that_they_claim():
    problem = arctan_problem("general")
    increments = brownian(512, 20, 2, seed=3)
    end = run(Milstein(), problem.sde["ito"], increments, FIRST.repeat(20, 1))
    assert_close(end, problem.solution(increments), rtol=0, atol=5e-3)
    assert not torch.equal(additive_problem().solution(brownian(8, 3, 2, seed=4))[0], FIRST)


def test_exact_linear_has_no_order():
    assert ExactLinear().strong_order("additive") == ExactLinear().weak_order("additive") == float("inf")
