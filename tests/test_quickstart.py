"""The quickstart writes what it promises, and its held-out weeks are held out."""

import math

import pytest
import torch

from pyro_sde import quickstart
from pyro_sde.data import load
from pyro_sde.diagnostics import load_netcdf


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    before = torch.get_rng_state()
    report = quickstart.run_quickstart(steps=3, output=folder)
    assert torch.equal(before, torch.get_rng_state()), "the quickstart must leave the global random state alone"
    return report, folder


def test_held_out_weeks_are_disjoint_from_training_weeks():
    split = quickstart._hold_out(load("mauna_loa_co2"), seed=0)
    parts = torch.stack([split.train, split.gaps, split.forecast])
    assert parts.sum(0).max() == 1
    assert int(parts.sum()) == 2225  # every observed week is used once
    years = split.times + quickstart.ORIGIN
    assert years[split.train[..., 0]].max() < quickstart.FORECAST_FROM <= years[split.forecast[..., 0]].min()


def test_the_trend_and_the_training_series_never_see_held_out_weeks(monkeypatch):
    split = quickstart._hold_out(load("mauna_loa_co2"), seed=0)
    spoilt = split._replace(values=torch.where(split.train, split.values, 1e6))
    for (trend, scale), other in ((quickstart._trend(split), quickstart._trend(spoilt)),):
        torch.testing.assert_close(trend, other[0])
        assert scale == pytest.approx(other[1])


def test_the_report_scores_every_method_on_both_sets(result):
    report, _ = result
    assert set(report) == {"gaps", "forecast"}
    for methods in report.values():
        assert set(methods) == {"latent SDE", "last value", "linear interpolation", "OU process + trend"}
        for scores in methods.values():
            assert all(math.isfinite(score.mean) for score in scores)


def test_the_files_hold_picture_and_inference_data(result):
    _, folder = result
    assert (folder / "quickstart.png").stat().st_size > 20_000
    data = load_netcdf(folder / "quickstart.nc")
    assert data.posterior["z"].dims == ("chain", "draw", "series", "time", "state")
    assert data.posterior["z"].shape == (1, quickstart.DRAWS, 1, 2284, 4)
    assert data.posterior_predictive["y"].dims == ("chain", "draw", "series", "observed_time", "channel")
    assert int(data.observed_data["y"].notnull().sum()) == 2225
    assert int(data.log_likelihood["y"].notnull().sum()) == quickstart.DRAWS * (344 + 105)
    assert float(data.posterior["time"][0]) == pytest.approx(1958.2, abs=0.1)


@pytest.mark.slow
def test_the_trained_model_beats_the_baselines(tmp_path):
    report = quickstart.run_quickstart(output=tmp_path)
    for name, methods in report.items():
        ours = methods.pop("latent SDE")
        for method, scores in methods.items():
            assert ours.rmse.mean < scores.rmse.mean, (name, method)
            assert ours.log_density.mean > scores.log_density.mean, (name, method)
    assert 0.8 < report["gaps"]["last value"].coverage.mean < 1
