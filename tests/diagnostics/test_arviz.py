"""Named dimensions, ArviZ's own tools, NetCDF files and both ArviZ versions."""

import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from pyro_sde.diagnostics.arviz import load_netcdf, pareto_smooth, save_netcdf, to_inference_data

# Every test here passes with ArviZ 0.2x and 1.x; the tests with a fake module check one version each.
DRAWS, SERIES, TIME, STATE, OBSERVED, CHANNEL = 200, 3, 11, 2, 5, 1


def samples(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def group_names(data):
    """Names of the groups of an InferenceData (a method) or a DataTree (children)."""
    return sorted(data.groups() if callable(data.groups) else data.children)


@pytest.fixture
def groups():
    return {
        "posterior": {"z": samples(DRAWS, SERIES, TIME, STATE), "sigma": samples(DRAWS).exp()},
        "posterior_predictive": {"y": samples(DRAWS, SERIES, OBSERVED, CHANNEL)},
        "log_likelihood": {"y": -1 - 0.02 * samples(DRAWS, SERIES, OBSERVED) ** 2},
        "observed_data": {"y": samples(SERIES, OBSERVED, CHANNEL)},
        "constant_data": {"times": torch.linspace(0, 1, TIME)},
    }


def test_paths_and_observations_have_named_dims(groups):
    data = to_inference_data(**groups)
    assert data.posterior["z"].dims == ("chain", "draw", "series", "time", "state")
    assert data.posterior["z"].shape == (1, DRAWS, SERIES, TIME, STATE)
    assert data.posterior["sigma"].dims == ("chain", "draw")
    assert data.posterior_predictive["y"].dims == ("chain", "draw", "series", "observed_time", "channel")
    assert data.log_likelihood["y"].dims == ("chain", "draw", "series", "observed_time")
    assert data.observed_data["y"].dims == ("series", "observed_time", "channel")
    assert data.constant_data["times"].shape == (TIME,)
    np.testing.assert_array_equal(data.posterior["z"][0], groups["posterior"]["z"])


def test_a_path_without_series_has_time_and_state():
    data = to_inference_data({"z": samples(DRAWS, TIME, STATE)}, observed_data={"y": samples(OBSERVED, CHANNEL)})
    assert data.posterior["z"].dims == ("chain", "draw", "time", "state")
    assert data.observed_data["y"].dims == ("observed_time", "channel")


def test_more_batch_dims_get_made_up_names():
    data = to_inference_data({"z": samples(DRAWS, 4, SERIES, TIME, STATE)})
    assert data.posterior["z"].dims == ("chain", "draw", "z_dim_0", "series", "time", "state")


def test_path_sites_are_chosen_by_name():
    data = to_inference_data({"slow": samples(DRAWS, TIME, STATE), "z": samples(DRAWS, 2, 2)}, paths=("slow",))
    assert data.posterior["slow"].dims == ("chain", "draw", "time", "state")
    assert data.posterior["z"].dims == ("chain", "draw", "z_dim_0", "z_dim_1")


def test_coords_and_dims_of_the_user_win(groups):
    times = torch.linspace(0, 5, TIME, dtype=torch.float64)
    data = to_inference_data(
        **groups,
        coords={"time": times, "state": ["prey", "predator"], "when": range(TIME)},
        dims={"times": ["when"]},
    )
    np.testing.assert_array_equal(data.posterior["z"].time, times)
    assert data.posterior["z"].sel(state="prey").shape == (1, DRAWS, SERIES, TIME)
    assert data.constant_data["times"].dims == ("when",)


def test_leading_chain_dim_is_kept():
    data = to_inference_data(
        {"z": samples(2, DRAWS, TIME, STATE)},
        num_chains=2,
        sample_stats={"diverging": torch.zeros(2, DRAWS, dtype=torch.bool)},
    )
    assert data.posterior["z"].shape == (2, DRAWS, TIME, STATE)
    assert data.sample_stats["diverging"].dims == ("chain", "draw")


def test_nan_padding_of_ragged_series_is_kept(groups):
    groups["posterior"]["z"][:, 1, 7:] = float("nan")
    data = to_inference_data(**groups)
    missing = np.isnan(data.posterior["z"].values)
    assert missing[0, :, 1, 7:].all()
    assert missing.sum() == DRAWS * 4 * STATE


def test_later_changes_of_a_tensor_stay_out(groups):
    data = to_inference_data(**groups)
    before = data.posterior["z"].values.copy()
    groups["posterior"]["z"].zero_()
    np.testing.assert_array_equal(data.posterior["z"], before)


def test_gradients_and_float64_are_no_obstacle():
    data = to_inference_data({"z": samples(DRAWS, TIME, STATE).double().requires_grad_()})
    assert data.posterior["z"].dtype == np.float64


def test_empty_and_missing_groups_are_left_out(groups):
    data = to_inference_data(groups["posterior"], sample_stats=None, constant_data={})
    assert group_names(data) == ["posterior"]


def test_arviz_summary_and_loo_run(groups):
    import arviz

    data = to_inference_data(**groups)
    summary = arviz.summary(data, var_names=["sigma"], kind="stats", round_to=6)
    assert float(summary["mean"]["sigma"]) == pytest.approx(groups["posterior"]["sigma"].mean().item(), abs=1e-3)
    assert "z[0, 0, 0]" in arviz.summary(data, kind="stats").index
    loo = arviz.loo(data)
    elpd = getattr(loo, "elpd", None) or loo["elpd_loo"]  # the name in 1.x, then in 0.2x
    assert loo.n_data_points == SERIES * OBSERVED
    lppd = torch.logsumexp(groups["log_likelihood"]["y"], 0).sub(np.log(DRAWS)).sum().item()
    assert elpd < lppd
    assert elpd == pytest.approx(lppd, abs=0.5)


def normal_ratios(scale, size, *rows):
    """Log ratio of N(0, 1) to N(0, scale^2) at draws of the latter: the tail of its exponential has k = 1 - scale^2."""
    x = scale * torch.randn(size, *rows, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return torch.distributions.Normal(0.0, 1.0).log_prob(x) - torch.distributions.Normal(0.0, scale).log_prob(x)


@pytest.mark.parametrize("scale", [0.5, 0.8])
def test_tail_shape_of_normal_ratios_is_known(scale):
    # 40 rows of 4000 draws: the spread over rows is 0.06; the tail converges slowly, and from above.
    weights, k = pareto_smooth(normal_ratios(scale, 4000, 40))
    assert k.mean().item() == pytest.approx(1 - scale**2, abs=0.12)
    torch.testing.assert_close(weights.logsumexp(0), torch.zeros(40, dtype=torch.float64))


def test_only_the_largest_weights_are_smoothed():
    ratios = normal_ratios(0.7, 1000)
    weights, _ = pareto_smooth(ratios.float())
    offset = weights - ratios
    order = ratios.argsort()
    small, large = offset[order[:700]], offset[order[-10:]]
    assert small.max() - small.min() < 1e-5
    assert large.max() - large.min() > 1e-3


def test_equal_weights_have_no_tail():
    ratios = torch.stack([torch.full((500,), 3.0, dtype=torch.float64), normal_ratios(0.8, 500)], -1)
    weights, k = pareto_smooth(ratios)
    assert k[0] == -torch.inf
    assert 0 < k[1] < 1
    torch.testing.assert_close(weights[:, 0].exp(), torch.full((500,), 0.002, dtype=torch.float64))


@pytest.mark.parametrize(("spread", "tail"), [(5e-4, False), (5e-3, True)])
def test_weights_that_differ_by_round_off_keep_their_differences_and_have_no_tail(spread, tail):
    ratios = 40 + spread * torch.linspace(0, 1, 500, dtype=torch.float64)
    weights, k = pareto_smooth(ratios)
    assert bool(torch.isfinite(k)) is tail
    if not tail:
        torch.testing.assert_close(weights, ratios.log_softmax(0))


def test_netcdf_round_trip_keeps_everything(groups, tmp_path):
    groups["posterior"]["z"][:, 1, 7:] = float("nan")
    data = to_inference_data(**groups, coords={"state": ["a", "b"]})
    path = save_netcdf(data, tmp_path / "run.nc")
    loaded = load_netcdf(path)
    assert group_names(loaded) == group_names(data)
    for group in group_names(data):
        for name, expected in data[group].items():
            assert loaded[group][name].dims == expected.dims
            np.testing.assert_array_equal(loaded[group][name], expected)
    assert list(loaded.posterior["z"].state.values) == ["a", "b"]
    path.unlink()  # nothing is read lazily
    assert loaded.posterior["z"].shape == data.posterior["z"].shape


def test_saving_replaces_the_file_it_was_loaded_from(groups, tmp_path):
    path = save_netcdf(to_inference_data(**groups), str(tmp_path / "run.nc"))
    smaller = to_inference_data({"sigma": samples(7)})
    loaded = load_netcdf(path)
    save_netcdf(smaller, path)
    assert group_names(load_netcdf(path)) == ["posterior"]
    assert loaded.posterior["sigma"].shape == (1, DRAWS)


def fake_arviz(version, calls):
    module = types.ModuleType("arviz")
    module.__version__ = version
    module.from_dict = lambda *args, **kwargs: calls.append((args, kwargs)) or "data"
    return module


def test_arviz_1_gets_one_nested_dict(groups, monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "arviz", fake_arviz("1.3.0", calls))
    assert to_inference_data(**groups, coords={"state": ["a", "b"]}) == "data"
    ((data,), options), *rest = calls
    assert not rest
    assert set(data) == set(groups)
    assert data["posterior"]["z"].shape == (1, DRAWS, SERIES, TIME, STATE)
    assert options["coords"] == {"state": ["a", "b"]}
    assert options["dims"]["z"] == ["series", "time", "state"]


def test_arviz_02_gets_groups_as_keywords(groups, monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "arviz", fake_arviz("0.23.4", calls))
    to_inference_data(**groups)
    (args, options), *_ = calls
    assert args == ()
    assert set(options) == {*groups, "coords", "dims"}


def test_arviz_1_files_are_read_into_memory_and_closed(tmp_path, monkeypatch):
    path = tmp_path / "run.nc"
    path.touch()
    done = []
    tree = types.SimpleNamespace(load=lambda: done.append("load"), close=lambda: done.append("close"))
    fake = fake_arviz("1.0", [])
    fake.from_netcdf = lambda name, engine: done.append((name, engine)) or tree
    monkeypatch.setitem(sys.modules, "arviz", fake)
    assert load_netcdf(path) is tree
    assert done == [(str(path), "h5netcdf"), "load", "close"]


def test_missing_arviz_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r"ArviZ is needed for this and is not installed. Run `pip install"):
        to_inference_data({"z": samples(5, 2, 1)})


def test_importing_the_room_loads_neither_arviz_nor_matplotlib():
    code = "import sys, pyro_sde.diagnostics; print([m for m in ('arviz', 'matplotlib') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "`posterio_predictive` is not a group", {"posterio_predictive": {}}),
        (TypeError, r"`observed_data` must map names to tensors, received list for 'y'", {"observed_data": {"y": [1]}}),
        (ValueError, r"`posterior` site 'z' must have shape \(2, draw", {"num_chains": 2}),
        (ValueError, r"`sample_stats` site 'a' must have shape \(draw", {"sample_stats": {"a": torch.tensor(1.0)}}),
        (ValueError, r"`dims` must name the 3 dimensions of 'z'", {"dims": {"z": ["time"]}}),
        (ValueError, r"site 'z' has size 11 along 'time', but `coords` has 2", {"coords": {"time": [0, 1]}}),
        (ValueError, r"site 'w' has size 4 along 'time', but 'z' has 11", {"dims": {"w": ["time"]}}),
        (ValueError, r"`prior` site 'z' has 1 dimensions besides", {"prior": {"z": torch.zeros(DRAWS, 3)}}),
    ],
)
def test_bad_input_is_refused(error, message, arguments):
    posterior = {"z": samples(DRAWS, SERIES, TIME, STATE), "w": samples(DRAWS, 4)}
    with pytest.raises(error, match=message):
        to_inference_data(posterior, **arguments)


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(TypeError, match="`data` must be an InferenceData or a DataTree, received dict"):
        save_netcdf({}, tmp_path / "a.nc")
    with pytest.raises(ValueError, match="which does not exist. Create it first"):
        save_netcdf(types.SimpleNamespace(to_netcdf=None), tmp_path / "missing" / "a.nc")
    with pytest.raises(ValueError, match="`path` must be an existing NetCDF file"):
        load_netcdf(tmp_path / "a.nc")
