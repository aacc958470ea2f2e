"""What is said about bad input to inference, data, scores and models: calls, the error, and a part of its text."""

from __future__ import annotations

import math

import torch

from pyro_sde import data, diagnostics, infer, models
from tests.bad_input_calls import TIMES, grid, initial, path
from tests.bad_input_tools import FITTED, LATENT, LONG, SAMPLES, SERIES, TARGET, WAVE, emission, model

NAN = math.nan
EMPTY = torch.zeros(0, 3, 2)

TOOL_MESSAGES = [
    # --- infer
    (lambda: infer.PathELBO(num_particles=0), ValueError, "`num_particles` must be an integer >= 1, received 0"),
    (lambda: infer.PathELBO(kl_weight=math.inf), ValueError, "`kl_weight` must be a number >= 0, received inf"),
    (
        lambda: infer.sample_observations(TIMES, TARGET, 2),
        TypeError,
        "`grid` must be a TimeGrid, received Tensor. Build TimeGrid",
    ),
    (
        lambda: infer.sample_observations(grid(), torch.zeros(4, 2), 2),
        ValueError,
        r"`values` must have shape \(\*batch, 3, O\) on this grid of batch shape \(\), received \(4, 2\)",
    ),
    (
        lambda: infer.sample_observations(grid(), TARGET, 2, torch.ones(4).bool()),
        ValueError,
        r"`mask` must be a bool tensor \(True = observed\) of shape \(3, 2\) or \(3,\), received torch.bool \(4,\)",
    ),
    (
        lambda: infer.TimeWindows(LONG, WAVE, size=3, margin=1).draw(0),
        ValueError,
        "`count` must be at least 1, received 0",
    ),
    (lambda: infer.minibatches(5, 1.5, 0), TypeError, "`batch_size` must be a whole number, received 1.5"),
    (lambda: infer.minibatches(5, 2, "seed"), TypeError, "`seed` must be a whole number, received 'seed'"),
    (
        lambda: infer.EmissionLikelihood(emission, EMPTY),
        ValueError,
        r"`y` must have shape .* \(0, 3, 2\); it needs an entry",
    ),
    (lambda: infer.EmissionLikelihood(emission, TARGET, "all"), TypeError, "`mask` must be a tensor, received str"),
    (lambda: infer.PathEmission(3, TARGET), TypeError, "`emission` must be a function of the state"),
    (lambda: infer.PathEmission(emission, 3), TypeError, "`states` must be a tensor of real numbers, received int"),
    (lambda: infer.particle_filter(path(), 3, 4), TypeError, "`log_likelihood` must be a function of states"),
    (lambda: infer.particle_filter(initial(), emission, 4), TypeError, "`path`: particles cannot step a "),
    (
        lambda: infer.continue_path(initial(), TARGET),
        TypeError,
        "`law` is a .*, which cannot be continued: pass an SDEPath",
    ),
    (lambda: infer.continue_path(path(), [0.0]), TypeError, "`known` must be a tensor of real numbers, received list"),
    (
        lambda: infer.continue_path(path(), TARGET, "two"),
        TypeError,
        "`points` must be a tensor or numbers, received str",
    ),
    (lambda: infer.held_out(3, emission), TypeError, "`path` must be a path law, received int"),
    (lambda: infer.held_out(path(), 3), TypeError, "`log_likelihood` must be a function of states"),
    (lambda: infer.held_out(path(), emission, threshold=2.0), ValueError, r"`threshold` must be a number in \[0, 1\]"),
    (lambda: infer.FitOptions(validate_every=1.5), TypeError, "`validate_every` must be a whole number, received 1.5"),
    (lambda: infer.FitOptions(kl_warmup=NAN), TypeError, "`kl_warmup` must be a whole number, received nan"),
    (lambda: infer.FitOptions(clip="tight"), TypeError, "`clip` must be a number, received str"),
    (lambda: infer.FitOptions(callback=3), TypeError, "`callback` must be a function of a `FitStep`, received int"),
    (lambda: infer.fit(model, model, [()], steps=NAN), ValueError, "`steps` must be >= 1 .* received nan and"),
    (lambda: infer.MixingRegulariser(emission, rate=math.inf, weight=1.0), ValueError, "`rate` must be a number > 0"),
    # --- data
    (lambda: SERIES.windows(1.5), TypeError, "`length` must be a whole number, received 1.5"),
    (lambda: data.synthetic.ornstein_uhlenbeck(0, num_times=NAN), TypeError, "`num_times` must be a whole number"),
    (
        lambda: data.synthetic.ornstein_uhlenbeck(0, theta="fast"),
        ValueError,
        "`theta` must be positive and finite, received 'fast'",
    ),
    (
        lambda: data.synthetic.irregular_sine(0, noise="loud"),
        ValueError,
        r"`noise` must hold 1 finite number\(s\), each at least 0, received \('loud',\)",
    ),
    # --- diagnostics
    (
        lambda: diagnostics.rmse(TARGET.to(torch.complex64), TARGET),
        TypeError,
        "`prediction` must be a tensor of real numbers, received torch.complex64",
    ),
    (lambda: diagnostics.crps_samples(SAMPLES, TARGET, "all"), TypeError, "`mask` must be a tensor, received str"),
    (
        lambda: diagnostics.pit(SAMPLES[:0], TARGET),
        ValueError,
        r"`samples` must hold one draw at least, .* \(0, 3, 2\)",
    ),
    (lambda: diagnostics.pit(SAMPLES, TARGET, seed=1.5), TypeError, "`seed` must be a whole number, received 1.5"),
    (
        lambda: diagnostics.energy_score(math.inf + SAMPLES, TARGET),
        ValueError,
        "`samples` is infinite at 24 scored entries. Set `mask` to False",
    ),
    (
        lambda: diagnostics.interval_score(SAMPLES, TARGET, level="most"),
        ValueError,
        "`level` must lie strictly between 0 and 1, received 'most'",
    ),
    (lambda: diagnostics.ljung_box(TARGET, lags=1.5), TypeError, "`lags` must be a whole number, received 1.5"),
    (
        lambda: diagnostics.fit_last_value(TIMES, EMPTY),
        ValueError,
        r"`values` must hold a series, a time and a channel at least, received shape \(0, 3, 2\)",
    ),
    (lambda: FITTED.predict([0.0]), TypeError, "`times` must be a tensor of real numbers, received list"),
    (lambda: FITTED.predict(TIMES).sample(1.5), TypeError, "`num_samples` must be a whole number, received 1.5"),
    (
        lambda: diagnostics.RankStatistics({"z": torch.zeros(20)}, 99).coverage("most"),
        TypeError,
        "`level` must be a number between 0 and 1, received str",
    ),
    (
        lambda: diagnostics.RankStatistics({"z": torch.zeros(20)}, 99).p_values(1.5),
        TypeError,
        "`bins` must be a whole number, received 1.5",
    ),
    (lambda: diagnostics.quadratic_variation(torch.zeros(3, 5, 2), 3), TypeError, "`law` must be a path law, .*int"),
    (
        lambda: diagnostics.quadratic_variation(NAN * torch.zeros(3, 5, 2), path()),
        ValueError,
        "`path` must be finite; a path with gaps has no realised variation",
    ),
    (
        lambda: diagnostics.quadratic_variation(torch.zeros(3, 5, 2), path(), lags=2),
        ValueError,
        "`lags` must be increasing",
    ),
    (lambda: diagnostics.discretisation(model, model, factors=3), ValueError, "`factors` must be .* received \\(3,\\)"),
    # --- models
    (lambda: models.Architecture(hidden=3), TypeError, "`hidden` must be a sequence of sizes"),
    (lambda: models.Architecture(hidden=()), ValueError, "`hidden` must name one layer at least"),
    (
        lambda: models.Architecture(context_dim=2),
        ValueError,
        "`context_dim` must be at least 3, of which time takes two",
    ),
    (lambda: models.Architecture(time_scale=NAN), ValueError, "`time_scale` must be a finite number > 0, received nan"),
    (lambda: models.Architecture(reversion=-1), ValueError, "`reversion` must be a finite number >= 0, received -1"),
    (
        lambda: models.LatentSDE(2, 1, max_step=NAN),
        ValueError,
        "`max_step` must be a positive finite number, received nan",
    ),
    (lambda: models.LatentSDE(2, 1, prior=3), TypeError, "`prior` must be an SDE, received int"),
    (lambda: models.LatentSDE(2, 1, decoder=3), TypeError, "`decoder` must be a function of the states, received int"),
    (
        lambda: models.LatentSDE(2, 1, architecture=3),
        TypeError,
        "`architecture` must be an `Architecture`, received int",
    ),
    (
        lambda: models.DeepMarkovModel(2, 1, hidden=(4, 4)),
        ValueError,
        r"`hidden` must be the widths of transition, emission and guide, three numbers; received \(4, 4\)",
    ),
    (
        lambda: models.DeepMarkovModel(2, 1, hidden=(4, 4, 4)).fit(SERIES, weight_decay="some"),
        ValueError,
        "`weight_decay` must be a finite number >= 0, received 'some'",
    ),
    (
        lambda: models.PathForecaster(model, model, max_step=0.0),
        ValueError,
        "`max_step` must be a positive finite number, received 0.0",
    ),
    (lambda: LATENT.posterior((LONG, WAVE)), ValueError, r"`data` must have values \(B, N, O\) .* \(12, 1\)"),
    (
        lambda: LATENT.posterior(SERIES, num_samples=1.5),
        TypeError,
        "`num_samples` must be a whole number, received 1.5",
    ),
    (lambda: LATENT.posterior(SERIES, seed="one"), TypeError, "`seed` must be a whole number, received 'one'"),
    (lambda: LATENT.posterior(SERIES, "now"), TypeError, "`times` must be a tensor or numbers, received str"),
    (lambda: models.Tempo(3, scale="small"), TypeError, "`scale` must be a number, received str"),
    (lambda: models.Tempo(3, degrees=math.inf), ValueError, "`degrees` must be > 2, .* received inf"),
    (lambda: models.PoissonLikelihood(1, max_rate="high"), TypeError, "`max_rate` must be a number, received str"),
    (lambda: infer.particle_smoother(3, 2), TypeError, "`filtered` must come from `particle_filter`, received int"),
    (lambda: infer.AutoSDE(3), TypeError, "`model` must be a Pyro model, received int"),
    (lambda: infer.AutoGaussianMarkov(model, init_scale=math.inf), ValueError, "`init_scale` must be a number > 0"),
    # --- pictures
    (lambda: diagnostics.plot_paths(NAN * TIMES, torch.zeros(2, 3)), ValueError, "`times` must be finite, and one"),
    (
        lambda: diagnostics.plot_paths(TIMES, torch.tensor([0.0, NAN, 0.0]).expand(2, 3)),
        ValueError,
        "`samples` must hold a number at all `times`; leave out those",
    ),
    (
        lambda: diagnostics.plot_paths(TIMES, torch.zeros(2, 3), observed=TIMES),
        TypeError,
        r"`observed` must be a pair of tensors, times \(n,\) and values \(n,\), received Tensor",
    ),
    (lambda: diagnostics.panels(2, size=3), ValueError, "`size` must be width and height in inches, received 3"),
    (
        lambda: diagnostics.to_inference_data({}, observed_data=[TIMES]),
        TypeError,
        "`observed_data` must map names to tensors, received list",
    ),
]
