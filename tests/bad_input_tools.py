"""Calls of the public functions above the laws that work; `test_bad_input.py` spoils them, argument by argument."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from pyro_sde import diagnostics, guides, infer, models, nn, priors
from pyro_sde import distributions as laws
from pyro_sde.data import TimeSeries, synthetic
from tests.bad_input_calls import TIMES, grid, initial, method, path, process, row

TARGET, SEEN = torch.zeros(3, 2), torch.ones(3, 2).bool()
SAMPLES = torch.linspace(-1.0, 1.0, 24).reshape(4, 3, 2)
LONG, WAVE = torch.arange(12.0), torch.arange(12.0).sin().unsqueeze(-1)


def emission(z):
    return dist.Normal(z, 1.0)


def model(grid, y=None):
    z = pyro.sample("z", laws.SDEPath(process(), initial(), grid))
    pyro.sample("y", dist.Normal(grid.observed(z), 1.0).to_event(2), obs=y)


def guide(grid, y=None):
    del y
    pyro.sample("z", laws.SDEPath(process(), initial(), grid))


def prior_draws(_, count):
    return {"z": laws.SDEPath(process(), initial(), grid()).sample((count,))}


def latent():
    with torch.random.fork_rng():
        return models.LatentSDE(2, 1, architecture=models.Architecture(hidden=(4,), encoder_hidden=4, context_dim=3))


SERIES = TimeSeries("waves", LONG.expand(2, 12), WAVE.expand(2, 12, 1), torch.ones(2, 12, 1).bool())
LATENT = latent()
FILTERED = infer.particle_filter(path(), lambda z, *rest: -z.square().sum(-1), 4, keep="all")
FITTED = diagnostics.fit_last_value(LONG, WAVE)

TOOLS = [
    # --- priors
    row(priors.DeepMarkovPrior, state_dim=2, hidden=4),
    row(priors.MarkovRegimes, num_regimes=2, stay=0.9),
    row(priors.StickBreakingRegimes, num_regimes=2, state_dim=2, stay=0.9),
    row(priors.StochasticRNNPrior, value_dim=1, state_dim=2, hidden=4),
    row(priors.VariationalRNNPrior, value_dim=1, state_dim=2, hidden=4),
    row(priors.SwitchingLinearPrior, regimes=priors.MarkovRegimes(2), state_dim=2, scale=0.1),
    row(priors.SwitchingNetworkPrior, regimes=priors.MarkovRegimes(2), state_dim=2, hidden=(4,), input_dim=1),
    # --- guides
    row(guides.CombinerGuide, value_dim=1, state_dim=2, hidden=4, structure="ST-R", dropout=0.1, flows=1),
    row(guides.EncodedSites, encoder=nn.GRUEncoder(1, 2, 3, hidden=4), precision=1e-3),
    row(guides.FreeSites, count=3, state_dim=2, batch_shape=(2,), precision=1e-3),
    row(guides.GaussianMarkov, sites=guides.FreeSites(5, 2), iterations=1),
    row(guides.ObservedSites, value_dim=1, state_dim=2, hidden=(4,), precision=1e-3),
    row(guides.ImportanceTimes, num_times=4, num_bins=8, uniform=0.2, decay=0.9),
    row(guides.StratifiedTimes, num_times=4),
    row(guides.ResidualGuide, value_dim=1, state_dim=2, hidden=4),
    row(guides.VariationalRNNGuide, state_dim=2, hidden=4),
    row(guides.PosteriorSDE, encoder=nn.GRUEncoder(1, 2, 3, hidden=4), control=nn.ControlNet(2, 3, hidden=(4,))),
    row(guides.MarginalFlow, encoder=nn.GRUMarginals(1, 2, hidden=4)),
    # --- infer
    row(infer.PathELBO, kl="stl", kl_weight=1.0, num_particles=2),
    row(infer.JitPathELBO, kl="stl", kl_weight=1.0),
    row(infer.SimulationFreeELBO, kl_weight=1.0, num_particles=2),
    row(infer.FilteringELBO, num_particles=4, resampling="systematic", threshold=0.5, gradient="pathwise"),
    row(infer.RandomisedCorrection, elbo=infer.PathELBO(), probability=0.5),
    row(infer.GapwiseCorrection, elbo=infer.PathELBO(), probability=0.5),
    row(infer.MixingRegulariser, elbo=infer.PathELBO(), rate=1.0, weight=1.0),
    row(
        infer.particle_filter,
        path=path(),
        log_likelihood=lambda z, *rest: -z.square().sum(-1),
        num_particles=4,
        resampling="systematic",
        threshold=0.5,
        gradient="pathwise",
        keep="last",
    ),
    row(
        infer.held_out,
        path=path(),
        log_likelihood=lambda z, *rest: -z.square().sum(-1),
        num_samples=4,
        num_particles=4,
        threshold=0.5,
    ),
    row(infer.continue_path, "known:nan", law=path(), known=torch.zeros(2, 2), points=2),
    row(
        infer.EmissionLikelihood,
        "y:nan y:axes y:long inputs:nan inputs:empty inputs:long",  # y is looked at with its law
        emission=emission,
        y=torch.zeros(3, 2),
        mask=SEEN,
        inputs=torch.zeros(3, 1),
    ),
    row(infer.PathEmission, "states:nan states:empty states:axes states:long", emission=emission, states=TARGET),
    row(
        infer.sample_observations, "values:nan values:long values:empty", grid=grid(), values=TARGET, count=2, mask=SEEN
    ),
    row(infer.TimeWindows, "values:long", times=LONG, values=WAVE, size=3, margin=1),
    method("TimeWindows.draw", lambda: infer.TimeWindows(LONG, WAVE, size=3, margin=1), "draw", count=2),
    row(infer.minibatches, "seed:negative", size=5, batch_size=2, seed=0),
    row(
        infer.FitOptions,
        "clip:infinite",
        kl_warmup=2,
        kl_start=0.1,
        decay=0.5,
        schedule="cosine",
        rate_warmup=2,
        average=0.9,
        clip=1.0,
        validate_every=5,
        patience=2,
        checkpoint_every=5,
        callback=lambda step: None,
    ),
    # --- data
    row(
        lambda **parts: TimeSeries("waves", **parts),
        name="TimeSeries",
        times=SERIES.times,
        values=SERIES.values,
        mask=SERIES.mask,
    ),
    row(
        synthetic.ornstein_uhlenbeck,
        "seed:negative",
        seed=0,
        num_series=2,
        num_times=3,
        end_time=1.0,
        missing=0.1,
        theta=1.0,
        sigma=0.5,
    ),
    row(synthetic.irregular_sine, "seed:negative", seed=0, num_series=2, num_times=3, missing=0.1, noise=0.1),
    # --- diagnostics
    *(
        row(call, samples=SAMPLES, target=TARGET, mask=SEEN)
        for call in (diagnostics.crps_samples, diagnostics.energy_score, diagnostics.pit, diagnostics.normal_residuals)
    ),
    *(
        row(call, samples=SAMPLES, target=TARGET, mask=SEEN, level=0.5)
        for call in (diagnostics.interval_coverage, diagnostics.interval_score)
    ),
    *(row(call, prediction=TARGET, target=TARGET, mask=SEEN) for call in (diagnostics.rmse, diagnostics.mae)),
    row(diagnostics.log_predictive_density, "log_likelihood_samples:long", log_likelihood_samples=SAMPLES, mask=SEEN),
    row(
        diagnostics.ljung_box,
        "residuals:nan residuals:axes residuals:long",  # NaN is what is not observed
        residuals=torch.cat([WAVE, WAVE.flip(0)], -1),
        mask=None,
        lags=3,
        fitted=0,
    ),
    *(
        row(call, "values:long", times=LONG, values=WAVE, mask=torch.ones(12, 1).bool())
        for call in (diagnostics.fit_last_value, diagnostics.fit_linear_interpolation, diagnostics.fit_ou)
    ),
    method("Baseline.predict", lambda: FITTED, "predict", "times:empty times:long", times=TIMES),
    method("GaussianPrediction.sample", lambda: FITTED.predict(TIMES), "sample", num_samples=2),
    row(diagnostics.quadratic_variation, path=torch.zeros(3, 5, 2), law=path(), lags=(1, 2)),
    row(
        lambda **options: diagnostics.discretisation(model, guide, grid(), TARGET, **options),
        name="discretisation",
        factors=(1, 2),
        num_particles=3,
        kl="full",
        tolerance=0.1,
    ),
    row(
        lambda **options: diagnostics.simulation_based_calibration(model, prior_draws, (grid(),), **options),
        "seed:negative",
        name="simulation_based_calibration",
        num_simulations=20,
        num_draws=3,
        seed=0,
    ),
    row(
        lambda **options: diagnostics.importance_check(model, guide, (grid(), TARGET), **options),
        "seed:negative",
        name="importance_check",
        num_samples=100,
        seed=0,
    ),
    # --- models
    row(models.InitialNormal, state_dim=2, scale=1.0),
    row(models.NormalLikelihood, value_dim=2, initial_scale=0.3, floor=0.01),
    row(models.CategoricalLikelihood, value_dim=1, num_classes=3),
    row(
        models.Architecture,
        hidden=(4,),
        decoder_hidden=(4,),
        encoder_hidden=4,
        context_dim=3,
        diffusion_scale=0.5,
        time_scale=1.0,
        reversion=0.1,
    ),
    row(
        models.LatentSDE,
        state_dim=2,
        value_dim=1,
        likelihood="normal",
        prior=process(),
        decoder=torch.nn.Linear(2, 1),
        max_step=0.5,
        architecture=models.Architecture(hidden=(4,)),
    ),
    row(models.DeepMarkovModel, state_dim=2, value_dim=1, likelihood="normal", hidden=(4, 4, 4)),
    row(models.RollingOrigin, train_window=3, test_window=2, stride=1, min_train_window=1, min_test_window=1),
    method(
        "LatentSDE.posterior",
        lambda: LATENT,
        "posterior",
        "seed:negative times:long times:list",
        data=SERIES,
        times=LONG,
        num_samples=2,
        seed=0,
    ),
    method(
        "LatentSDE.forecast",
        lambda: LATENT,
        "forecast",
        "seed:negative times:long times:list",
        data=SERIES,
        times=LONG[-1:] + 1,
        num_samples=2,
        seed=0,
    ),
    row(models.PathForecaster, model=model, guide=guide, max_step=0.5),
    row(models.LaplaceLikelihood, value_dim=2, initial_scale=0.3, floor=0.01),
    row(models.PoissonLikelihood, value_dim=2, max_rate=100.0),
    row(models.Tempo, num_series=3, scale=0.1, degrees=5.0, members=2),
    method(
        "LatentSDE.sample_prior",
        lambda: LATENT,
        "sample_prior",
        "start:negative seed:negative times:axes times:long times:list",
        times=LONG,
        num_samples=2,
        start=0.0,
        seed=0,
    ),
    method("LatentSDE.evaluate", lambda: LATENT, "evaluate", "seed:negative", data=SERIES, num_samples=2, seed=0),
    method("LatentSDE.impute", lambda: LATENT, "impute", "seed:negative", data=SERIES, num_samples=2, seed=0),
    # --- sampling by particles and automatic guides
    row(infer.particle_smoother, filtered=FILTERED, num_paths=3, method="backward"),
    row(infer.AutoSDE, model=model, hidden=(4,), init_scale=0.1),
    row(infer.AutoGaussianMarkov, model=model, points="grid", init_scale=0.1),
    # --- pictures: NaN is left out, but not along an axis
    row(diagnostics.plot_losses, "losses:nan losses:list losses:long", losses=torch.linspace(3.0, 1.0, 9), window=5),
    row(
        diagnostics.plot_calibration,
        "values:nan values:number values:axes values:long",
        values=torch.linspace(0.0, 1.0, 9),
        level=0.9,
    ),
    row(diagnostics.panels, rows=2, size=(4.0, 3.0)),
    row(
        diagnostics.plot_paths,
        "forecast_from:negative forecast_from:nan forecast_from:infinite",
        times=TIMES,
        samples=torch.zeros(5, 3),
        num_paths=2,
        forecast_from=0.5,
    ),
    row(
        diagnostics.plot_coefficient,
        "truth:nan visited:nan visited:empty visited:number visited:axes visited:long",
        states=TIMES,
        values=torch.zeros(5, 3),
        truth=TIMES,
        visited=TIMES,
    ),
    row(diagnostics.to_inference_data, posterior={"z": torch.zeros(2, 5, 3)}, num_chains=2),
]
