"""A backtest cuts where Pyro's does, sees nothing of the future, and scores what was forecast."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyro
import pytest
import torch
from pyro.contrib.forecast.evaluate import eval_crps, eval_mae, eval_rmse
from pyro.ops.stats import energy_score_empirical

from pyro_sde.data import synthetic
from pyro_sde.data.series import TimeSeries
from pyro_sde.diagnostics.baselines import fit_last_value
from pyro_sde.infer.fit import FitOptions
from pyro_sde.models.backtest import BaselineForecaster, RollingOrigin, Window, backtest
from pyro_sde.models.deep_markov_model import DeepMarkovModel
from pyro_sde.models.latent_sde import LatentSDE
from pyro_sde.models.parts import Architecture
from pyro_sde.models.prediction import PathSamples

NAN = float("nan")
QUIET = FitOptions(progress=False)
SCORES = {"crps", "energy", "mae", "rmse"}
WINDOWS = RollingOrigin(train_window=5, test_window=2, stride=3)


def walk(num_series=6, num_times=12, **options):
    options = {"end_time": float(num_times - 1), **options}
    return synthetic.ornstein_uhlenbeck(0, num_series=num_series, num_times=num_times, **options).standardise()[0]


@dataclass
class Recorder:
    """Forecasts noise, and remembers what it was shown."""

    shown: list = field(default_factory=list)

    def forecast(self, data, times, *, num_samples=100, seed=None):
        self.shown.append((data, times))
        shape, generator = (num_samples, *times.shape, data.values.shape[-1]), torch.Generator().manual_seed(1)
        y = torch.randn(shape, generator=generator, dtype=times.dtype)
        return PathSamples(times, y, y, y)


def pyro_windows(duration, train=None, test=None, stride=1, least=(1, 1)):
    """The loop of `pyro.contrib.forecast.backtest`."""
    stop = duration - (least[1] if test is None else test) + 1
    for t1 in range(least[0] if train is None else train, stop, stride):
        yield (0 if train is None else t1 - train, t1, duration if test is None else t1 + test)


@pytest.mark.parametrize("train", [None, 1, 4])
@pytest.mark.parametrize("test", [None, 1, 3])
@pytest.mark.parametrize("stride", [1, 3])
def test_windows_are_those_of_pyro(train, test, stride):
    ours = RollingOrigin(train, test, stride, 2, 3).windows(11)
    assert [tuple(w) for w in ours] == list(pyro_windows(11, train, test, stride, (2, 3)))


def test_the_model_is_shown_the_training_columns_and_the_times_to_forecast_only():
    series, seen, model = walk(), [], Recorder()
    backtest(series, lambda train: seen.append(train) or model, WINDOWS, num_samples=3)
    assert len(seen) == len(model.shown) == 2
    for train, (given, times), t1 in zip(seen, model.shown, (5, 8), strict=True):
        assert given is train
        assert torch.equal(train.times, series.times[:, t1 - 5 : t1])
        assert torch.equal(train.values, series.values[:, t1 - 5 : t1])
        assert torch.equal(times, series.times[:, t1 : t1 + 2])
        for tensor in (train.times, train.values, train.mask):  # no view of a tensor that holds the future
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def latent(train):
    model = LatentSDE(2, 1, max_step=0.5, architecture=Architecture((4,), (), 4, 3))
    model.fit(train, steps=2, options=QUIET)
    return model


def chain(train):
    model = DeepMarkovModel(2, 1, likelihood="normal", hidden=(4, 4, 4))
    model.fit(train, steps=2, options=QUIET)
    return model


@pytest.mark.parametrize("fit", [latent, chain, lambda train: BaselineForecaster(fit_last_value)])
@pytest.mark.parametrize("poison", [NAN, 1e6])
def test_poison_in_the_future_changes_no_forecast(fit, poison):
    series, t1 = walk(), 5
    values = series.values.clone()
    values[:, t1:] = torch.where(torch.arange(7).view(-1, 1) % 2 == 0, poison, values[:, t1:])
    spoilt = TimeSeries("spoilt", series.times, values, ~values.isnan())
    drawn = {"pred": lambda pred, truth: pred, "truth": lambda pred, truth: truth}
    windows = RollingOrigin(train_window=5, test_window=2, stride=100)
    one, other = (backtest(data, fit, windows, metrics=drawn, num_samples=4, seed=3)[0] for data in (series, spoilt))
    assert torch.equal(one["pred"], other["pred"])
    assert one["pred"].isfinite().all()
    assert not torch.equal(one["truth"], other["truth"])


def test_default_scores_are_those_of_pyro_where_nothing_is_missing():

    def vectors(pred: torch.Tensor, truth: torch.Tensor) -> float:
        pairs = zip(pred.flatten(-2).unbind(1), truth.flatten(-2), strict=True)
        return float(torch.stack([energy_score_empirical(draws, given) for draws, given in pairs]).mean())

    metrics = {"mae": eval_mae, "rmse": eval_rmse, "crps": eval_crps, "energy": vectors}
    size = 51  # an odd number, whose median is a draw
    ours = backtest(walk(), lambda train: Recorder(), WINDOWS, num_samples=size)
    theirs = backtest(walk(), lambda train: Recorder(), WINDOWS, num_samples=size, metrics=metrics)
    for one, other in zip(ours, theirs, strict=True):
        assert one["mae"] == pytest.approx(other["mae"], rel=1e-5)
        assert one["rmse"] == pytest.approx(other["rmse"], rel=1e-5)
        for name, spread in (("crps", 2 / torch.pi**0.5), ("energy", torch.pi**0.5)):  # E|X - X'| of normal draws
            # theirs takes a draw paired with itself into the mean over pairs, so it is larger by E|X - X'| / 2S
            assert one[name] == pytest.approx(other[name] - spread / (2 * size), abs=0.2 * spread / (2 * size))


def test_results_have_the_keys_of_pyro():
    results = backtest(walk(), lambda train: Recorder(), WINDOWS, num_samples=7, seed=5)
    assert [(r["t0"], r["t1"], r["t2"]) for r in results] == [(0, 5, 7), (3, 8, 10)]
    assert all((r["seed"], r["num_samples"], r["num_series"]) == (5, 7, 6) for r in results)
    assert all(r["train_walltime"] >= 0 and r["test_walltime"] > 0 for r in results)
    walls = {"train_walltime", "test_walltime"}
    assert set(results[0]) == {*Window._fields, "seed", "num_samples", "num_series", *walls, *SCORES}


def test_missing_values_are_not_scored():
    series = walk()
    values = series.values.clone()
    values[:, 5] = NAN  # one of the two test columns of the first window
    gappy = TimeSeries("gappy", series.times, values, ~values.isnan())
    windows = RollingOrigin(5, 2, 100)
    second = {"rmse": lambda pred, truth: eval_rmse(pred[:, :, 1], truth[:, 1])}
    (ours,) = backtest(gappy, lambda train: Recorder(), windows)
    (theirs,) = backtest(gappy, lambda train: Recorder(), windows, metrics=second)
    assert ours["rmse"] == pytest.approx(theirs["rmse"], rel=1e-5)


def test_series_without_past_or_future_are_left_out_and_empty_windows_skipped():
    mask = torch.ones(3, 8, 1, dtype=torch.bool)
    mask[0, 4:] = False  # ends early
    mask[1, :4] = False  # starts late
    series = TimeSeries("ragged", torch.arange(8.0).expand(3, -1), torch.zeros(3, 8, 1), mask)
    rows = {"rows": lambda pred, truth: (pred.shape[1], truth.shape[0])}
    results = backtest(series, lambda train: Recorder(), RollingOrigin(2, 2, 1), metrics=rows)
    assert all(r["rows"] == (r["num_series"], r["num_series"]) for r in results)
    assert [(r["t1"], r["num_series"]) for r in results] == [(2, 2), (3, 2), (4, 1), (5, 2), (6, 2)]
    mask[2] = mask[0]
    results = backtest(
        TimeSeries("halves", series.times, series.values, mask), lambda train: Recorder(), RollingOrigin(2, 2, 2)
    )
    assert [(r["t1"], r["num_series"]) for r in results] == [(2, 2), (6, 1)]


def test_a_transform_comes_before_the_metrics():
    results = backtest(
        walk(),
        lambda train: Recorder(),
        WINDOWS,
        transform=lambda pred, truth: (0 * pred, 0 * truth + 3.0),
        metrics={"error": lambda pred, truth: float((truth - pred).mean())},
    )
    assert [r["error"] for r in results] == [3.0, 3.0]


def test_the_same_seed_gives_the_same_figures_and_leaves_global_state_alone():
    pyro.clear_param_store()
    pyro.param("mine", torch.zeros(1))
    before = torch.get_rng_state()
    stored = []

    def fit(train):
        stored.append(list(pyro.get_param_store().keys()))
        pyro.param("theirs", torch.zeros(1))
        return latent(train)

    one, two, other = ([r["crps"] for r in backtest(walk(), fit, WINDOWS, seed=s, num_samples=5)] for s in (1, 1, 2))
    assert one == two != other
    assert torch.equal(before, torch.get_rng_state())
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert all(names == [] for names in stored)
    pyro.clear_param_store()


def test_parameters_in_the_store_last_until_the_forecast():
    class Stored(Recorder):
        def forecast(self, data, times, **options):
            assert pyro.param("level") == 2.0
            return super().forecast(data, times, **options)

    def fit(train):
        pyro.param("level", torch.tensor(2.0))
        return Stored()

    assert len(backtest(walk(), fit, WINDOWS)) == 2


def test_a_baseline_draws_from_its_predictive_law():
    series = walk()
    times = series.times[:, -1:] + torch.tensor([1.0, 2.0])
    drawn = BaselineForecaster(fit_last_value).forecast(series, times, num_samples=4000, seed=0)
    exact = fit_last_value(series.times, series.filled(), series.mask).predict(times)
    assert drawn.y.shape == (4000, 6, 2, 1)
    standard = (drawn.y - exact.mean) / exact.standard_deviation
    assert standard.mean().abs() < 4.26 / (4000 * 12) ** 0.5
    assert abs(standard.var() - 1) < 4.26 * (2 / (4000 * 12)) ** 0.5
    again = BaselineForecaster(fit_last_value).forecast(series, times, num_samples=4000, seed=0)
    assert torch.equal(drawn.y, again.y)
    assert torch.equal(drawn.mean[0], exact.mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forecasts_have_the_dtype_of_the_data(dtype):
    kinds = backtest(
        walk().to(dtype),
        lambda train: BaselineForecaster(fit_last_value),
        WINDOWS,
        metrics={"dtype": lambda p, t: p.dtype},
    )
    assert {r["dtype"] for r in kinds} == {dtype}


# --- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_window": 0}, "`train_window` must be a positive number of columns, received 0"),
        ({"test_window": -1}, "`test_window` must be"),
        ({"stride": 0}, "`stride` must be"),
        ({"stride": None}, "`stride` must be .* received None"),
        ({"min_train_window": 1.5}, "`min_train_window` must be .* received 1.5"),
        ({"min_test_window": True}, "`min_test_window` must be"),
    ],
)
def test_windows_are_numbers_of_columns(options, message):
    with pytest.raises(ValueError, match=message):
        RollingOrigin(**options)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="`windows` need 9 columns to train on and 4 to test on, but there are 12"):
        backtest(walk(), lambda train: Recorder(), RollingOrigin(9, 4))
    with pytest.raises(ValueError, match="`metrics` must hold at least one function"):
        backtest(walk(), lambda train: Recorder(), metrics={})
    with pytest.raises(ValueError, match="`metrics` must hold at least one function, by names other than"):
        backtest(walk(), lambda train: Recorder(), metrics={"t1": eval_mae})
    with pytest.raises(TypeError, match="`fit` must return a fitted model with a method `forecast`, received NoneType"):
        backtest(walk(), lambda train: None)
    with pytest.raises(TypeError, match="`data` must be a TimeSeries"):
        backtest([1.0], lambda train: Recorder())

    class Flat(Recorder):
        def forecast(self, data, times, **options):
            return PathSamples(times, *[torch.zeros(2)] * 3)

    with pytest.raises(
        ValueError, match=r"the forecast of Flat must have `y` of shape \(100, 6, 2, 1\), received \(2,\)"
    ):
        backtest(walk(), lambda train: Flat(), WINDOWS)
