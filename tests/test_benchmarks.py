"""The benchmarks measure what they say: their arithmetic, their page, and that all rows solve the same problem."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from copy import deepcopy

import pyro
import pytest
import torch

from tests.benchmarks import _jax_rows, _page, backward, gaussian_folds, harness, horizons, latent_sde, memory
from tests.benchmarks.harness import Table

TINY = latent_sde.Size("tiny", 2, 2, 4, 6, 1)
MACHINE = {"processor": "abacus", "cores": "2", "threads": "1", "python": "3.11", "torch": "2.0", "jax": "absent"}


@pytest.fixture
def table() -> Table:
    return Table("Two rows: a, b", "slow", {"slow": [10.0, 20.0, 60.0], "fast": [1.0, 4.0]}, ["a note"])


# --- arithmetic -------------------------------------------------------------------------


def test_median_is_over_rounds(table):
    assert table.median("slow") == 20.0
    assert table.median("fast") == 2.5


def test_ratio_is_the_median_of_the_ratios_of_shared_rounds(table):
    assert table.ratio("fast") == 7.5  # median of 10 / 1 and 20 / 4, not 20 / 2.5
    assert table.ratio("slow", over="fast") == pytest.approx(0.15)


def test_spread_is_the_median_distance_from_the_median(table):
    # slow: 0.5, 0, 2; fast: 0.6, 0.6
    assert table.spread() == pytest.approx(0.6)


def test_measure_alternates_and_counts_the_first_round_as_warm_up():
    calls = []
    rows = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    table = harness.measure("order", rows, baseline="a", rounds=3, fewer={"b": 1})
    assert calls == ["a", "b", "a", "b", "a", "a"]
    assert (len(table.rows["a"]), len(table.rows["b"])) == (3, 1)


def test_measure_divides_by_inner_calls():
    calls = []
    table = harness.measure("inner", {"a": lambda: calls.append(sum(range(20_000)))}, baseline="a", rounds=1, inner=50)
    single = harness.measure("single", {"a": lambda: sum(range(20_000))}, baseline="a", rounds=5)
    assert len(calls) == 100
    assert table.median("a") < 10 * single.median("a")


def test_select_takes_titles_by_their_beginning():
    jobs = {name: lambda name=name: Table(f"{name}: rest", "") for name in ("S2 vec", "S2 const", "S3 vec")}

    def titles(only):
        return [table.title for table in harness.select(jobs, only)]

    assert titles("S2") == ["S2 vec: rest", "S2 const: rest"]
    assert titles("S3 vec: re") == ["S3 vec: rest"]
    assert titles("vec") == []
    assert len(titles("")) == 3


def test_settings_leaves_out_what_this_version_does_not_have():
    with harness.settings(pyro_sde_backward="loop", pyro_sde_no_such_setting="never"):
        assert pyro.settings.get("pyro_sde_backward") == "loop"
    assert pyro.settings.get("pyro_sde_backward") == "auto"


def test_print_shows_rows_notes_and_what_was_skipped(table, capsys):
    table.skipped["third"] = "no such package"
    table.megabytes["fast"] = 12.5
    table.print()
    shown = capsys.readouterr().out
    assert "12.5 MB" in shown
    assert "third  skipped: no such package" in shown
    assert "a note" in shown


# --- page -------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "text"), [(1234.6, "1230"), (123.4, "123"), (12.34, "12.3"), (0.01234, "0.0123")])
def test_numbers_have_three_digits(value, text):
    assert _page.number(value) == text


def test_single_shows_ranges_ratios_and_memory(table):
    assert _page.single(table, ratio="slow / this").splitlines()[2:] == [
        "| slow | 20 | 10 to 60 | 1 |",
        "| fast | 2.5 | 1 to 4 | 7.5 |",
    ]
    table.megabytes = {"slow": 3.0, "fast": 0.5}
    assert _page.single(table, ratio="slow / this", names={"fast": "quick"}).splitlines()[-1].endswith("| 7.5 | 0.5 |")


def test_pivot_leaves_out_rows_that_no_table_has(table):
    other = Table("other", "slow", {"slow": [5.0]})
    lines = _page.pivot([table, other], ["A", "B"], ["fast", "absent", "slow"]).splitlines()
    assert lines == ["| CPU ms | A | B |", "|---|---|---|", "| fast | 2.5 |  |", "| slow | 20 | 5 |"]


def test_spread_note_counts_rounds(table):
    assert _page.spread_note([table]).startswith("Medians of 2 to 3 rounds, which scatter by 60 %")


def test_spread_note_names_unsteady_rows(table):
    assert _page.spread_note([table]).endswith("below the median: slow, Two rows (10 ms); fast, Two rows (1 ms).")
    steady = Table("Steady", "row", {"row": [8.0, 10.0, 30.0]})
    assert "fastest" not in _page.spread_note([steady])


def test_fill_replaces_one_block_and_nothing_else():
    page = "# Page\n<!-- bench:a -->\nold \\1\n<!-- /bench:a -->\ntext\n<!-- bench:b -->\nkept\n<!-- /bench:b -->\n"
    filled = _page.fill(page, "a", "| new \\1 |")
    assert "old" not in filled
    assert "| new \\1 |" in filled
    assert filled.endswith("text\n<!-- bench:b -->\nkept\n<!-- /bench:b -->\n")
    assert _page.fill(filled, "a", "| new \\1 |") == filled


@pytest.mark.parametrize(
    "text",
    ["nothing", "<!-- bench:a -->", "<!-- /bench:a --><!-- bench:a -->", 2 * "<!-- bench:a --><!-- /bench:a -->"],
)
def test_a_page_without_exactly_one_block_is_refused(text):
    with pytest.raises(ValueError, match="one block `<!-- bench:a -->`"):
        _page.fill(text, "a", "block")


def test_a_block_from_another_machine_says_so():
    page = "".join(f"<!-- bench:{name} --><!-- /bench:{name} -->\n" for name in ("machine", "a", "b"))
    line = "Measured on: abacus, 2 cores, 1 thread; Python 3.11, torch 2.0."
    whole = _page.write_report(page, {"a": "first", "b": "second"}, MACHINE, whole=True)
    assert whole.count(line) == 1
    assert whole.index(line) < whole.index("first") < whole.index("second")
    assert _page.write_report(whole, {"a": "third"}, MACHINE, whole=False) == whole.replace("first", "third")
    other = _page.write_report(whole, {"a": "third"}, {**MACHINE, "torch": "3.0"}, whole=False)
    assert f"third\n\n{line.replace('2.0', '3.0')}" in other
    assert other.count(line) == 1


# --- the command ------------------------------------------------------------------------


@pytest.fixture
def toy(monkeypatch) -> types.ModuleType:
    """A benchmark in place of `path_site`."""
    module = types.ModuleType("tests.benchmarks.path_site")
    module.JOBS = {name: lambda name=name: Table(name, "row", {"row": [1.0]}) for name in ("first", "second")}
    module.tables = lambda: harness.select(module.JOBS)
    module.page = lambda tables: " and ".join(table.title for table in tables)
    monkeypatch.setitem(sys.modules, "tests.benchmarks.path_site", module)
    return module


def test_run_fills_the_page_and_writes_every_round(toy, tmp_path):
    page, output = tmp_path / "page.md", tmp_path / "bench.json"
    markers = [f"<!-- bench:{name} -->\n<!-- /bench:{name} -->\n" for name in ("machine", "path_site")]
    page.write_text("".join([*markers, "rest\n"]))
    assert harness.run(["path_site"], only="", output=output, report=page) == 0
    assert "first and second" in page.read_text()
    assert "Measured on" in page.read_text()
    assert page.read_text().endswith("rest\n")
    content = json.loads(output.read_text())
    assert [table["ms"] for table in content["tables"]] == [{"row": [1.0]}] * 2
    assert content["machine"]["torch"]


def test_run_refuses_a_page_without_markers_before_it_measures(toy, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("no markers")
    toy.tables = lambda: pytest.fail("measured")
    assert harness.run(["path_site"], only="", output=tmp_path / "bench.json", report=page) == 2
    assert "bench:path_site" in capsys.readouterr().out
    assert harness.run(["path_site"], only="", output=tmp_path / "bench.json", report=tmp_path / "absent.md") == 2


def test_run_measures_only_the_tables_asked_for(toy, tmp_path, capsys):
    output = tmp_path / "bench.json"
    assert harness.run(["path_site"], only="sec", output=output, report=None) == 0
    assert [table["title"] for table in json.loads(output.read_text())["tables"]] == ["second"]
    del toy.JOBS
    assert harness.run(["path_site"], only="sec", output=output, report=None) == 2
    toy.JOBS = {}
    assert harness.run(["path_site"], only="third", output=output, report=None) == 2
    assert "'third'" in capsys.readouterr().out


def test_parts_of_benchmarks_are_not_benchmarks():
    assert {"backward", "horizons", "latent_sde", "memory", "path_site"} <= set(harness.known())
    assert not [name for name in harness.known() if name.startswith("_") or name == "harness"]


def test_every_benchmark_that_writes_a_block_has_one_on_its_page():
    for name, module in harness.chosen(harness.known()).items():
        if hasattr(module, "page"):
            text = (memory.ROOT / getattr(module, "PAGE", "docs/performance.md")).read_text(encoding="utf-8")
            _page.check_markers(text, [name])


def test_slow_benchmarks_run_only_if_they_are_named(toy):
    toy.ON_REQUEST = True
    assert "path_site" not in harness.chosen([])
    assert list(harness.chosen(["path_site"])) == ["path_site"]
    assert "gaussian_folds" not in harness.chosen([])
    del toy.ON_REQUEST
    assert "path_site" in harness.chosen([])


def test_a_page_without_machine_takes_the_block_of_a_named_benchmark(toy, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- bench:path_site -->\n<!-- /bench:path_site -->\n")
    assert harness.run(["path_site"], only="", output=tmp_path / "bench.json", report=page) == 0
    assert "first and second\n\nMeasured on:" in page.read_text()
    assert harness.run([], only="", output=tmp_path / "bench.json", report=page) == 2


def test_page_of_the_folds_shows_every_note_and_the_seconds():
    table = Table("Double well fold 0: rest", "row", {"row": [1500.0, 2500.0]}, ["evidence -9.9", "seed 0"])
    page = gaussian_folds.page([table])
    assert page.splitlines()[:4] == ["**Double well fold 0**", "", "* evidence -9.9", "* seed 0"]
    assert page.splitlines()[-1] == "| row | 2 | 2 |"


# --- the rows solve the same problem ----------------------------------------------------


def test_every_row_runs_and_reaches_the_page():
    table = latent_sde.compare(TINY, constant=False)
    assert not set(table.rows) & set(table.skipped)
    page = latent_sde.page([table, latent_sde.published(TINY)])
    assert all(name in page for name in (*table.rows, *table.skipped))


def telling_problem(size: latent_sde.Size, constant: bool) -> tuple[latent_sde.Parts, torch.Tensor, torch.Tensor]:
    """Networks and data whose bound is made of a large divergence and a likelihood that varies little."""
    context, values = latent_sde.start_data(size)
    parts = latent_sde.Parts(size, constant)
    with torch.no_grad():
        parts.posterior.tail.layers[-1].bias.fill_(3.0)
        parts.projector.weight.mul_(0.02)
        parts.projector.bias.zero_()
    return parts, context, 0.02 * values


@pytest.mark.parametrize("constant", [False, True])
def test_torchsde_the_loop_and_the_path_site_have_the_same_bound(constant):
    size = TINY._replace(batch=5000)
    parts, context, values = telling_problem(size, constant)
    peer = latent_sde.Peer(parts, context)
    steps = [latent_sde.peer_step(peer, values, size, kind) for kind in (latent_sde.HINTED, latent_sde.ADJOINT)]
    steps.append(latent_sde.loop_step(parts, context, values, size))
    steps += [latent_sde.our_step(parts, context, values, size, opaque=opaque) for opaque in (True, False)]
    untrained = deepcopy(parts.state_dict())

    def bound(step) -> float:
        parts.load_state_dict(untrained)
        return step() / size.batch

    bounds = torch.tensor([[bound(step) for _ in range(10)] for step in steps])
    error = bounds.std(1) / 10**0.5
    for row in range(len(steps)):
        scale = (error[row] ** 2 + error[-1] ** 2).sqrt()
        assert abs(bounds[row].mean() - bounds[-1].mean()) < 6 * scale
    assert error.max() < 0.03  # of a divergence of 1.7: a missing factor is seen


@pytest.mark.parametrize(
    ("kind", "solver", "interval"),
    [
        (latent_sde.SDEINT, "sdeint", False),
        (latent_sde.HINTED, "sdeint", True),
        (latent_sde.ADJOINT, "sdeint_adjoint", False),
    ],
)
def test_the_rows_of_torchsde_are_what_their_names_say(kind, solver, interval, monkeypatch):
    called = []
    original = getattr(latent_sde.torchsde, solver)
    monkeypatch.setattr(
        latent_sde.torchsde,
        solver,
        lambda *given, **options: called.append(options["bm"]) or original(*given, **options),
    )
    context, values = latent_sde.start_data(TINY)
    latent_sde.peer_step(latent_sde.Peer(latent_sde.Parts(TINY, True), context), values, TINY, kind)()
    assert len(called) == 1
    assert (called[0] is not None) == interval


def test_the_compiled_row_turns_the_extra_on_and_the_others_turn_it_off(monkeypatch):
    seen = []
    settings = latent_sde.settings
    monkeypatch.setattr(latent_sde, "settings", lambda **wanted: seen.append(wanted) or settings(**wanted))
    context, values = latent_sde.start_data(TINY)
    parts = latent_sde.Parts(TINY, constant=True)
    latent_sde.our_step(parts, context, values, TINY)()
    latent_sde.our_step(parts, context, values, TINY, compiled="auto")()
    assert seen == [{latent_sde.COMPILED: "never"}, {latent_sde.COMPILED: "auto"}]


@pytest.mark.parametrize("constant", [False, True])
def test_jax_and_the_loop_have_the_same_bound_and_gradient_for_the_same_noise(constant):
    pytest.importorskip("jax")
    context, values = latent_sde.start_data(TINY)
    parts = latent_sde.Parts(TINY, constant)
    start, noise = torch.randn(TINY.batch, TINY.dim), torch.randn(TINY.steps, TINY.batch, TINY.dim)
    draws = iter(noise)
    loss = latent_sde.loop_bound(parts, context, values, start, lambda z: next(draws))
    loss.backward()
    gradient = _jax_rows.scan_gradient(parts, latent_sde.STEP, latent_sde.NOISE)
    given = _jax_rows.arrays(start, noise, context[:-1], values)
    bound, gradients = gradient(_jax_rows.weights(parts), *given)
    assert float(bound) == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in parts.named_parameters():
        theirs = torch.tensor(gradients[name].tolist())
        assert (theirs - parameter.grad).abs().max() <= 1e-4 * (1 + parameter.grad.abs().max()), name


def test_diffrax_has_the_bound_of_the_loop():
    pytest.importorskip("diffrax")
    size = TINY._replace(batch=5000)
    parts, context, values = telling_problem(size, constant=False)
    theirs = _jax_rows.diffrax_step(parts, context, values, latent_sde.STEP, latent_sde.NOISE)() / size.batch
    with torch.no_grad():
        starts = [torch.randn(size.batch, size.dim) for _ in range(10)]
        ours = torch.tensor([latent_sde.loop_bound(parts, context, values, z) / size.batch for z in starts])
    assert abs(theirs - ours.mean()) < 6 * ours.std() * (1 + 1 / 10) ** 0.5
    assert ours.std() < 0.1  # of a divergence of 1.7


def test_the_loop_of_the_horizons_solves_the_same_equation_as_the_path_law():
    torch.manual_seed(0)
    drift, diffusion = torch.nn.Module(), lambda t, z: torch.full((horizons.DIM,), 0.5)
    drift.forward = lambda t, z: -z
    times = 0.1 * torch.arange(41.0)
    samplers = (
        horizons.sampler_of_loop(drift, diffusion, times),
        horizons.sampler_of_ours(lambda t, z: -z, diffusion, times),
        horizons.sampler_of_peer(drift, diffusion, times, 0.1),
    )
    exact = torch.tensor(1.0)
    for _ in range(40):
        exact = 0.9**2 * exact + 0.25 * 0.1
    for sample, time in zip(samplers, (0, -2, 0), strict=True):
        last = torch.stack([sample().select(time, -1) for _ in range(100)])
        count = last.numel()
        assert abs(last.var() / exact - 1) < 5 * (2 / count) ** 0.5


def test_horizons_are_twelve_pairs_with_the_one_that_torchsde_is_slow_at():
    assert len(set(horizons.PAIRS)) == 12
    assert (1.0, 0.01) in horizons.PAIRS


def test_a_horizon_reaches_the_page():
    table = horizons.compare(1.0, 0.1)
    row = horizons.page([table]).splitlines()[2]
    assert row.startswith("| T=1, dt=0.1 |")
    assert len(row.split("|")) == 8


@pytest.mark.parametrize("variant", [memory.SDEINT, memory.ADJOINT, memory.FULL, memory.LOW])
def test_memory_of_one_gradient_is_measured(variant):
    result = memory.once(variant, 50, 2)
    assert result["ms"] > 0
    assert result["megabytes"] >= 0


def test_peak_counts_memory_that_was_given_back():
    # in a process of its own: this one may hold free memory that a call takes before it asks for more
    code = "from tests.benchmarks.memory import *; print(peak_of(lambda: torch.ones(10_000_000).sum()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=memory.ROOT, capture_output=True, text=True, check=True)
    assert 35 < float(done.stdout) < 60


def test_memory_is_measured_in_a_fresh_process():
    result = memory.in_fresh_process(memory.FULL, 20, 2)
    assert set(result) == {"ms", "megabytes"}
    with pytest.raises(RuntimeError, match="failed"):
        memory.in_fresh_process(memory.FULL, -1, 2)


def test_memory_table_skips_what_this_version_cannot_do(monkeypatch):
    monkeypatch.setattr(memory, "SETTING", "pyro_sde_no_such_setting")
    monkeypatch.setattr(memory, "in_fresh_process", lambda *given: {"ms": 1.0, "megabytes": 2.0})
    table = memory.compare(20, 2, {memory.FULL: 2, memory.LOW: 1})
    assert table.rows == {memory.FULL: [1.0, 1.0]}
    assert table.megabytes == {memory.FULL: 2.0}
    assert memory.LOW in memory.page([table])


def test_backward_measures_every_way_and_leaves_the_setting_alone(monkeypatch):
    assert {"loop", "parallel", "auto"} <= set(backward.known_ways())
    assert pyro.settings.get("pyro_sde_backward") == "auto"
    table = backward.crossover((1, 2, 4, 8))
    assert list(table.rows) == backward.known_ways()
    density = Table("Density", "one block", {"one block": [1.0]})
    assert "| batch 1, D 2, hidden 4, 8 steps |" in backward.page([table, density])
