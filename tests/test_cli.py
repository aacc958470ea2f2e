"""The command line finds its commands and says what is wrong."""

import json
import sys
import types
from pathlib import Path

import pytest

from pyro_sde import cli


def test_data_lists_the_catalogue(capsys):
    assert cli.main(["data"]) == 0
    assert "mauna_loa_co2" in capsys.readouterr().out


def test_data_shows_one_set(capsys):
    assert cli.main(["data", "sunspots"]) == 0
    assert "sunspots" in capsys.readouterr().out


def test_quickstart_passes_its_options_on(monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(cli, "run_quickstart", lambda **options: seen.update(options))
    assert cli.main(["quickstart", "--steps", "7", "--seed", "3", "--output", str(tmp_path)]) == 0
    assert seen == {"steps": 7, "seed": 3, "output": tmp_path}


def test_bench_runs_named_benchmarks_and_writes_versions(monkeypatch, tmp_path, capsys):
    from tests.benchmarks.harness import measure

    module = types.ModuleType("tests.benchmarks.path_site")
    module.tables = lambda: [measure("nothing", {"a": lambda: None, "b": lambda: None}, baseline="a", rounds=2)]
    monkeypatch.setitem(sys.modules, "tests.benchmarks.path_site", module)
    output = tmp_path / "bench.json"
    assert cli.main(["bench", "path_site", "--output", str(output)]) == 0
    content = json.loads(output.read_text())
    assert content["machine"]["torch"]
    assert set(content["tables"][0]["ms"]) == {"a", "b"}
    assert "nothing" in capsys.readouterr().out


def test_bench_names_what_it_knows(capsys):
    assert cli.main(["bench", "unknown"]) == 2
    assert "path_site" in capsys.readouterr().out


def test_bench_passes_its_options_on(monkeypatch):
    from tests.benchmarks import harness

    seen = []
    monkeypatch.setattr(harness, "run", lambda names, **options: seen.append((names, options)) or 0)
    assert cli.main(["bench", "memory", "--only", "S3", "--output", "a.json"]) == 0
    assert cli.main(["bench", "--report", "page.md"]) == 0
    assert seen == [
        (["memory"], {"only": "S3", "output": Path("a.json"), "report": None}),
        ([], {"only": "", "output": Path("bench.json"), "report": Path("page.md")}),
    ]


def test_bench_refuses_to_report_a_part_of_the_tables(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "--only", "S3", "--report", "page.md"])
    assert "not allowed with" in capsys.readouterr().err


def test_bench_needs_a_source_checkout(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "pyro_sde" / "cli.py"))
    assert cli.main(["bench"]) == 2
    assert "source checkout" in capsys.readouterr().out


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["fly"])
    assert "invalid choice" in capsys.readouterr().err
