"""The benchmark on lynx and hare: its model is Stan's, its path that of the differential equation."""

from __future__ import annotations

import json
import math
import zipfile

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy.integrate import solve_ivp
from torch.distributions import biject_to

from pyro_sde import TimeGrid
from pyro_sde.data import TimeSeries
from tests.benchmarks import lynx_hare

TIMES = torch.arange(21.0, dtype=torch.float64)
GROWTH = torch.tensor([0.55, 0.80], dtype=torch.float64)
PULL = torch.tensor([0.028, 0.024], dtype=torch.float64)
START = torch.tensor([34.0, 5.9], dtype=torch.float64)
SIGMA = torch.tensor([0.2, 0.3], dtype=torch.float64)


def exact_path():
    (alpha, gamma), (beta, delta) = GROWTH.tolist(), PULL.tolist()

    def slope(_t, z):
        hares, lynxes = z
        return [(alpha - beta * lynxes) * hares, (-gamma + delta * hares) * lynxes]

    found = solve_ivp(slope, (0, 20), START.tolist(), t_eval=TIMES.tolist(), rtol=1e-10, atol=1e-10)
    return torch.from_numpy(found.y.T)


def pelts_of(seed=0):
    noise = torch.randn(21, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return exact_path() * (SIGMA * noise).exp()


def reference_file(path, chains):
    """A file as posteriordb has them; entry (c, s) of parameter number p is p + s / 100 + c / 10."""
    names = [name for _, _, name in lynx_hare.PARAMETERS.values()]
    content = json.dumps(
        [{name: [p + s / 100 + c / 10 for s in range(20)] for p, name in enumerate(names)} for c in range(chains)]
    )
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("draws.json", content)
    else:
        path.write_text(content)
    return path


@pytest.mark.parametrize(("step", "error"), [(0.5, 3e-3), (0.25, 2e-4), (0.125, 1e-5)])
def test_path_is_that_of_the_differential_equation(step, error):
    grid = TimeGrid(TIMES, max_step=step)
    path = grid.observed(lynx_hare.path(GROWTH, PULL, START, grid))
    assert (path - exact_path().log()).abs().max() < error


def test_many_parameters_give_many_paths():
    grid = TimeGrid(TIMES, max_step=0.5)
    several = lynx_hare.path(GROWTH.expand(3, 2), PULL.expand(3, 2), START * torch.ones(3, 1), grid)
    one = lynx_hare.path(GROWTH, PULL, START, grid)
    assert several.shape == (3, 41, 2)
    torch.testing.assert_close(several, one.expand(3, 41, 2), rtol=1e-12, atol=1e-12)


def test_paths_of_wild_parameters_stay_finite():
    grid = TimeGrid(TIMES, max_step=0.5)
    wild = torch.tensor([30.0, 1e-6], dtype=torch.float64)
    assert lynx_hare.path(wild, wild, START, grid).isfinite().all()


def test_model_has_the_density_of_stan():
    pelts, grid = pelts_of(), TimeGrid(TIMES, max_step=0.125)
    values = {"growth": GROWTH, "pull": PULL, "sigma": SIGMA, "start": START}
    trace = poutine.trace(poutine.condition(lynx_hare.model, values)).get_trace(pelts, grid)

    def log_normal(x, location, scale):
        return -math.log(x * scale * math.sqrt(2 * math.pi)) - 0.5 * ((math.log(x) - location) / scale) ** 2

    def normal(x, location, scale):
        return -math.log(scale * math.sqrt(2 * math.pi)) - 0.5 * ((x - location) / scale) ** 2

    expected, exact = 0.0, exact_path()
    for k in range(2):
        sigma = SIGMA[k].item()
        expected += normal(GROWTH[k].item(), 1, 0.5) + normal(PULL[k].item(), 0.05, 0.05)
        expected += log_normal(sigma, -1, 1) + log_normal(START[k].item(), math.log(10), 1)
        expected += sum(log_normal(y, math.log(z), sigma) for y, z in zip(pelts[:, k], exact[:, k], strict=True))
    assert trace.log_prob_sum().item() == pytest.approx(float(expected), abs=2e-3)


def test_priors_keep_the_sampler_above_zero():
    trace = poutine.trace(lynx_hare.model).get_trace(pelts_of(), TimeGrid(TIMES, max_step=1.0))
    for site in ("growth", "pull", "sigma", "start"):
        transform = biject_to(trace.nodes[site]["fn"].support)
        assert (transform(torch.linspace(-20, 3, 24, dtype=torch.float64).reshape(12, 2)) > 0).all()


@pytest.mark.parametrize("name", ["draws.json", "draws.json.zip"])
def test_reference_draws_come_under_our_names(name, tmp_path):
    reference = lynx_hare.read_reference(reference_file(tmp_path / name, chains=3))
    assert {site: draws.shape for site, draws in reference.items()} == dict.fromkeys(
        ("growth", "pull", "start", "sigma"), (3, 20, 2)
    )
    # theta = (alpha, beta, gamma, delta)
    assert [reference[site][0, 0].tolist() for site in ("growth", "pull")] == [[0.0, 2.0], [1.0, 3.0]]
    assert reference["sigma"][2, 5].tolist() == pytest.approx([6.25, 7.25])


def test_errors_are_those_of_independent_draws():
    draws = torch.from_numpy(np.random.default_rng(0).normal(3.0, 2.0, (4, 5000)))
    mean, mean_error, spread, spread_error = lynx_hare.moments(draws)
    assert mean == pytest.approx(3.0, abs=0.1)
    assert spread == pytest.approx(2.0, abs=0.05)
    assert mean_error == pytest.approx(2 / math.sqrt(20_000), rel=0.1)
    assert spread_error == pytest.approx(2 / math.sqrt(2 * 20_000), rel=0.1)


def test_table_has_differences_in_reference_deviations():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2, 500, 2, generator=generator, dtype=torch.float64)
    reference = dict.fromkeys(("growth", "pull", "start", "sigma"), draws)
    ours = {**reference, "pull": 2 * draws + 0.5 * draws.flatten(0, 1).std(0)}
    rows = lynx_hare.compare(ours, reference).splitlines()
    assert len(rows) == 2 + 8
    assert "+0.000" in rows[2]
    assert "1.000 ±" in rows[2]
    shift = (draws[..., 0].mean() / draws[..., 0].std() + 0.5).item()
    assert f"{shift:+.3f}" in rows[3]
    assert "2.000 ±" in rows[3]


def test_bias_of_the_step_falls_with_the_step():
    pelts = pelts_of()
    generator = torch.Generator().manual_seed(0)

    def near(value, width):
        return value + width * torch.randn(2, 200, 2, generator=generator, dtype=torch.float64)

    reference = {
        "growth": near(GROWTH, 0.05),
        "pull": near(PULL, 0.003),
        "start": near(START, 0.5),
        "sigma": near(SIGMA, 0.02),
    }
    moves = []
    for step in (1.0, 0.5, 0.25):
        text = lynx_hare.grid_bias(pelts, TIMES, reference, step)
        moves.append(float(text.split("at most ")[1].split()[0]))
    assert moves[0] > 4 * moves[1] > 16 * moves[2]


def test_command_prints_bias_and_table(monkeypatch, tmp_path, capsys):
    series = TimeSeries(
        name="simulated",
        times=TIMES.unsqueeze(0),
        values=pelts_of().unsqueeze(0),
        mask=torch.ones(1, 21, 2, dtype=torch.bool),
    )
    monkeypatch.setattr(lynx_hare, "load", lambda name: {"hudson_lynx_hare": series}[name])
    file = reference_file(tmp_path / "draws.json", chains=2)
    arguments = ["--reference", str(file), "--chains", "2", "--draws", "6", "--warmup", "2", "--step", "1"]
    lynx_hare.main(arguments)
    printed = capsys.readouterr().out
    assert "step 1: means move by" in printed
    assert "2 chains of 6 draws, 2 of warm-up each" in printed
    assert printed.count("±") >= 4 * 8


def test_a_run_of_all_benchmarks_says_how_to_run_this_one():
    with pytest.raises(SystemExit, match="lynx_hare needs files"):
        lynx_hare.tables()
