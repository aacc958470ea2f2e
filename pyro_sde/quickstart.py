r"""The quickstart: a latent SDE of weekly CO2 at Mauna Loa, scored on held-out weeks beside honest baselines.

Model of the residual y of a quadratic trend that is fitted to the training weeks, t in years since 1958:

.. math::
    dz = f(z, t \bmod 1)\,dt + \sigma\,dW, \qquad y_i \sim N(w^\top z_{t_i} + b, s^2), \qquad z \in \mathbb{R}^4
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .data.catalogue import load
from .data.series import TimeSeries
from .diagnostics.arviz import save_netcdf, to_inference_data
from .diagnostics.base import GaussianPrediction
from .diagnostics.baselines import fit_last_value, fit_linear_interpolation
from .diagnostics.metrics import Score, interval_coverage, log_predictive_density, rmse
from .diagnostics.ou import fit_ou
from .diagnostics.plots import panels, plot_paths
from .infer.fit import FitOptions
from .models.latent_sde import LatentSDE
from .models.parts import Architecture
from .models.prediction import PathSamples
from .sde.library import NeuralSDE

__all__ = ["Report", "Scores", "run_quickstart"]

ORIGIN = 1958.0  # times are years since then: in float32, calendar years would be exact to an hour only
FORECAST_FROM = 2000.0
GAPS = (1966.3, 1974.6, 1983.1, 1991.2)  # starts of the held-out spans, calendar years
GAP_LENGTH = 0.75
WINDOW, STRIDE = 156, 13  # training windows: three years of weeks, one every quarter
STEPS, DRAWS = 1200, 200
REVERSION = 0.5  # per year, at the start of training: paths of 44 years must stay finite after training on three


class Scores(NamedTuple):
    """Scores of one method on one set of held-out weeks."""

    log_density: Score  # nats per week
    rmse: Score  # ppm
    coverage: Score  # share of weeks inside the central 90 % interval


# Held-out set ("gaps", "forecast") -> method -> scores.
Report = dict[str, dict[str, Scores]]


class _Split(NamedTuple):
    """The record, times ``(1, N)``, the rest ``(1, N, 1)``, float64; ppm."""

    times: Tensor
    values: Tensor
    train: Tensor
    gaps: Tensor
    forecast: Tensor


def run_quickstart(*, steps: int | None = None, seed: int = 0, output: Path = Path()) -> Report:
    """Train a latent SDE, score it on held-out weeks, draw a picture and save the draws.

    Writes ``quickstart.png`` (observations, posterior band, forecast) and ``quickstart.nc`` (ArviZ InferenceData) into
    `output`, and prints the scores.

    Args:
        steps: training steps; enough for the figures of the README if None.
        seed: of the held-out weeks, the initial networks and the noise.
        output: folder for the two files.
    """
    split = _hold_out(load("mauna_loa_co2"), seed)
    counts = {name: int(getattr(split, name).sum()) for name in ("train", "gaps", "forecast")}
    print(
        f"Weekly CO2 at Mauna Loa, {counts['train']} weeks to train on. Held out: {counts['gaps']} single weeks and "
        f"spans of nine months, and {counts['forecast']} weeks from {FORECAST_FROM:g} on as a forecast."
    )
    trend, scale = _trend(split)
    standard = torch.where(split.train, (split.values - trend) / scale, math.nan)
    series = TimeSeries("co2", split.times, standard, split.train).to(torch.float32)
    with _one_thread():
        model = _train(series, STEPS if steps is None else steps, seed)
    draws = model.posterior(series, num_samples=DRAWS, seed=seed)
    targets = torch.where(split.gaps | split.forecast, (split.values - trend) / scale, math.nan)
    held_out = TimeSeries("held out", split.times, targets, ~targets.isnan()).to(torch.float32)
    densities = model.log_likelihood(series, held_out, num_samples=DRAWS, seed=seed).double() - math.log(scale)
    report = {
        name: {
            "latent SDE": Scores(
                log_predictive_density(densities, mask),
                rmse(draws.mean.double().mean(0) * scale + trend, split.values, mask),
                interval_coverage(draws.y.double() * scale + trend, split.values, mask),
            ),
            **{title: _score(law, split.values, mask) for title, law in _baselines(split).items()},
        }
        for name, mask in (("gaps", split.gaps), ("forecast", split.forecast))
    }
    _print(report)
    output.mkdir(parents=True, exist_ok=True)
    _draw(split, draws.y.double() * scale + trend, output / "quickstart.png")
    _save(split, draws, densities, (trend, scale), output / "quickstart.nc")
    print(f"\nwritten: {output / 'quickstart.png'}, {output / 'quickstart.nc'}")
    return report


def _hold_out(record: TimeSeries, seed: int) -> _Split:
    """A tenth of the weeks at random, four spans, and everything after the start of the forecast."""
    years = record.times
    generator = torch.Generator().manual_seed(seed)
    gaps = torch.rand(years.shape, generator=generator) < 0.1
    for start in GAPS:
        gaps = gaps | ((years > start) & (years < start + GAP_LENGTH))
    future, gaps = (years >= FORECAST_FROM).unsqueeze(-1), gaps.unsqueeze(-1)
    observed = record.mask
    return _Split(
        years - ORIGIN, record.values, observed & ~gaps & ~future, observed & gaps & ~future, observed & future
    )


def _trend(split: _Split) -> tuple[Tensor, float]:
    """Quadratic trend of the training weeks ``(1, N, 1)``, and the standard deviation around it."""
    t = (split.times - split.times.mean()) / 20
    basis = torch.stack([torch.ones_like(t), t, t.square()], -1)  # (1, N, 3)
    train = split.train[..., 0]
    coefficients = torch.linalg.lstsq(basis[train], split.values[train]).solution
    trend = basis @ coefficients
    return trend, float((split.values - trend)[train].std())


def _train(series: TimeSeries, steps: int, seed: int) -> LatentSDE:
    """A prior that knows the time of year, trained on windows of three years."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = Architecture(hidden=(32,), encoder_hidden=32, time_scale=0.1, reversion=REVERSION)
        prior = NeuralSDE(4, (32,), time_features=2, period=1.0, diffusion_scale=0.3, reversion=REVERSION)
        model = LatentSDE(4, 1, prior=prior, decoder=nn.Linear(4, 1), architecture=sizes)
    weeks = int((series.times[0] + ORIGIN < FORECAST_FROM).sum())
    past = TimeSeries("past", series.times[:, :weeks], series.values[:, :weeks], series.mask[:, :weeks])
    model.fit(
        past.windows(WINDOW, STRIDE, relative=False),
        steps=steps,
        batch_size=16,
        learning_rate=5e-3,
        seed=seed,
        options=FitOptions(kl_warmup=steps // 5),
    )
    return model


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small operations wait for their threads longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _baselines(split: _Split) -> dict[str, GaussianPrediction]:
    data = (split.times, split.values, split.train)
    return {
        "last value": fit_last_value(*data).predict(split.times),
        "linear interpolation": fit_linear_interpolation(*data).predict(split.times),
        "OU process + trend": fit_ou(*data).predict(split.times),
    }


def _score(law: GaussianPrediction, values: Tensor, mask: Tensor) -> Scores:
    sample = law.sample(999, generator=torch.Generator().manual_seed(0))
    return Scores(
        log_predictive_density(law.log_density(values).unsqueeze(0), mask),
        rmse(law.mean, values, mask),
        interval_coverage(sample, values, mask),
    )


def _print(report: Report) -> None:
    for name, methods in report.items():
        count = next(iter(methods.values())).rmse.count
        print(f"\n{name} ({count} weeks)      log density/nat    RMSE/ppm     90 % coverage")
        for method, scores in methods.items():
            density, error, coverage = scores
            print(
                f"  {method:22} {density.mean:7.2f} ±{density.standard_error:5.2f}  {error.mean:5.2f} "
                f"±{error.standard_error:5.2f}  {coverage.mean:6.2f} ±{coverage.standard_error:5.2f}"
            )


def _draw(split: _Split, predictive: Tensor, path: Path) -> None:
    """The whole record above, the years around the last gap and the forecast below."""
    years = split.times[0] + ORIGIN
    axes = panels(2, size=(11, 7.5))
    spans = (years >= years.min(), years >= 1989.5)
    for ax, span in zip(axes, spans, strict=True):
        train, held = (split.train[0, :, 0] & span, (split.gaps | split.forecast)[0, :, 0] & span)
        plot_paths(
            years[span],
            predictive[:, 0, span, 0],
            observed=(years[train], split.values[0, train, 0]),
            held_out=(years[held], split.values[0, held, 0]),
            forecast_from=FORECAST_FROM,
            ax=ax,
        )
        ax.set(xlabel="year", ylabel="CO$_2$ / ppm")
    axes[0].set_title("Weekly CO$_2$ at Mauna Loa: posterior predictive of a latent SDE", loc="left")
    figure: Any = axes[0].figure
    figure.savefig(path)


def _save(split: _Split, draws: PathSamples, densities: Tensor, units: tuple[Tensor, float], path: Path) -> None:
    trend, scale = units
    years = split.times[0] + ORIGIN
    observed = torch.where(split.train | split.gaps | split.forecast, split.values, math.nan)
    data = to_inference_data(
        {"z": draws.z},
        posterior_predictive={"y": draws.y.double() * scale + trend},
        observed_data={"y": observed},
        log_likelihood={"y": densities},
        constant_data={"train": split.train, "trend": trend},
        coords={"time": years, "observed_time": years, "series": ["Mauna Loa"], "channel": ["CO2 / ppm"]},
        dims={
            "train": ["series", "observed_time", "channel"],
            "trend": ["series", "observed_time", "channel"],
        },
    )
    save_netcdf(data, path)
