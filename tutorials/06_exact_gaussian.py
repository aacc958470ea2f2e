# %% [markdown]
# # Exact Gaussian paths: seasons, gaps and counts
#
# **The question.** Forty years of weekly CO2 with holes, a trend, a season and weather: can one Gaussian process
# explain all of it, fill the holes and look ahead, at a cost that grows with the number of weeks and not with its cube?
# And what if the data are counts?
#
# The model in three equations: a sum of linear SDEs, their exact steps between any two times, and noisy observations of
# their outputs.
#
# $$ dz_t = A z_t\,dt + L\,dW_t, \qquad z_t = (\text{trend}, \text{swing}, \text{season}, \text{weather}) $$
#
# $$ z_{t+h} \mid z_t \sim N\big(e^{A h} z_t,\; Q(h)\big) $$
#
# $$ y_n \sim N(H z_{t_n}, s^2) $$
#
# Most kernels of time series are such processes. The path is then integrated out by a Kalman filter, exactly, and there
# is nothing to approximate but the hyper-parameters.

# %%
import math
import os
import time

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, init_to_median

from pyro_sde import AutoGaussianMarkov, GaussianPath, LinearGaussianSSM, PathELBO, TimeGrid
from pyro_sde.data import load
from pyro_sde.diagnostics import (
    fit_linear_interpolation,
    fit_ou,
    importance_check,
    interval_coverage,
    log_predictive_density,
    plot_paths,
    rmse,
)
from pyro_sde.sde import Matern12, Matern32, Matern52, Periodic

SMOKE = "PYRO_SDE_SMOKE" in os.environ  # a few steps only: how the test suite runs this page
plt.rcParams.update({"figure.dpi": 72, "figure.figsize": (9, 3), "figure.constrained_layout.use": True})
torch.set_default_dtype(torch.float64)
pyro.set_rng_seed(0)

# %% [markdown]
# ## 1. Data with holes
#
# Weekly CO2 at Mauna Loa, shipped with the package. 59 weeks are missing. We hold back a tenth of the other weeks, four
# spans of nine months, and everything from 2000 on. Missing and held-out weeks stay on the grid, masked.

# %%
record = load("mauna_loa_co2")
if SMOKE:
    record = record.windows(260, relative=False).select([7])
years, values, known = record.times[0], record.values[0], record.mask[0, :, 0]
inside = torch.rand(len(years)) < 0.1
for begin in (1966.3, 1974.6, 1983.1, 1991.2):
    inside |= (years > begin) & (years < begin + 0.75)
late = years >= (1998.0 if SMOKE else 2000.0)
train, gaps, future = known & ~inside & ~late, known & inside & ~late, known & late
level = values[train].mean()
y = torch.where(train[:, None], values - level, math.nan)  # ppm about the mean; NaN where masked
times = years - 1958.0
past = ~late
print(f"{len(years)} weeks: {train.sum()} to learn from, {gaps.sum()} held out inside, {future.sum()} from 2000 on")

# %% [markdown]
# ## 2. A process for every cause
#
# `+` and `*` act on processes as on covariance functions: a smooth trend of decades, swings of some years, a season of
# period one year whose shape may drift, and weather of a few weeks. Scales are in ppm and years, with wide priors.


# %%
def process(scales, harmonics=3):
    trend = Matern52(scales["trend_length"], scales["trend_size"] ** 2)
    season = Periodic(1.0, 1.0, scales["season_size"] ** 2, harmonics=harmonics) * Matern12(scales["season_length"])
    weather = Matern12(scales["weather_length"], scales["weather_size"] ** 2)
    if "swing_length" not in scales:
        return trend + season + weather
    return trend + Matern32(scales["swing_length"], scales["swing_size"] ** 2) + season + weather


GUESSES = {  # medians of the priors, within a factor of e, years and ppm
    "trend_length": 100.0,
    "trend_size": 100.0,
    "swing_length": 2.0,
    "swing_size": 0.5,
    "season_length": 100.0,
    "season_size": 2.0,
    "weather_length": 0.1,
    "weather_size": 0.3,
    "noise": 0.2,
}


def model(grid, mask, y=None, guesses=GUESSES):
    scales = {name: pyro.sample(name, dist.LogNormal(math.log(guess), 1.0)) for name, guess in guesses.items()}
    law = LinearGaussianSSM(process(scales), None, scales["noise"], grid, mask=mask)
    pyro.sample("y", law, obs=y)
    return law


def fit(guesses, steps):
    guide = AutoDelta(model, init_loc_fn=init_to_median)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.1 ** (1 / steps)}), Trace_ELBO())
    grid = TimeGrid(times[past])
    losses = [svi.step(grid, train[past], y[past], guesses) for _ in range(steps)]
    return guide.median(), losses


started = time.process_time()
best, losses = fit(GUESSES, 3 if SMOKE else 150)
print(f"{len(losses)} steps in {time.process_time() - started:.0f} s; negative log-posterior {losses[-1]:.1f}")
print({name: round(value.item(), 3) for name, value in best.items()})

# %% [markdown]
# ## 3. What was in the holes
#
# The posterior is a path law on the same grid, at the missing weeks as well. Its mean and variance are those of a
# Kalman smoother. `forecast` is the law of observations at later times.

# %%
law = pyro.condition(model, data=best)(TimeGrid(times[past]), train[past])
posterior = law.posterior(y[past])
predicted = LinearGaussianSSM(posterior, None, best["noise"])  # of new observations at the same weeks
ahead = law.forecast(times[late], y[past])


def scores(mean, deviation, mask):
    target = values[mask] - level
    density = dist.Normal(mean, deviation).log_prob(target)
    draws = mean + deviation * torch.randn(999, *mean.shape)
    return log_predictive_density(density[None]), rmse(mean, target), interval_coverage(draws, target)


def show(title, laws, mask):
    print(f"\n{title:22}  nats per week    RMSE / ppm   90 % covers")
    for name, (mean, deviation) in laws.items():
        density, error, cover = scores(mean, deviation, mask)
        print(
            f"  {name:20} {density.mean:6.2f} ± {density.standard_error:4.2f}   {error.mean:4.2f} ± "
            f"{error.standard_error:4.2f}   {cover.mean:4.2f} ± {cover.standard_error:4.2f}"
        )


data = (times, y.nan_to_num(), train)
for title, mask, part, select in (("gaps", gaps, predicted, gaps[past]), ("from 2000 on", future, ahead, future[late])):
    laws = {"Gaussian process": (part.mean[select], part.variance[select].sqrt())}
    for name, baseline in (("OU and trend", fit_ou), ("linear interpolation", fit_linear_interpolation)):
        laws[name] = baseline(*data).predict(times[mask])
    show(title, laws, mask)

# %% [markdown]
# The season is what the baselines do not know: it is most of the lead. The state holds every cause by itself, so the
# posterior does, too: entries of the observation matrix pick them out.

# %%
rows = law.path.outputs[0]  # which states add up to the output
sizes = [3, 2, rows.numel() - 6, 1]  # states of trend, swing, season, weather
parts = [part @ row for part, row in zip(posterior.mean.split(sizes, -1), rows.split(sizes), strict=True)]
fig, axes = plt.subplots(4, figsize=(9, 6), sharex=True)
for ax, part, name in zip(axes, parts, ("trend", "swing", "season", "weather"), strict=True):
    ax.plot(years[past], part, lw=0.8)
    ax.set_ylabel(f"{name} / ppm")

# %%
draws = torch.cat([predicted.sample((300,)), ahead.sample((300,))], 1)[..., 0] + level
recent = years > years[-1] - 11.5
fig, ax = plt.subplots()
plot_paths(
    years[recent],
    draws[:, recent],
    observed=(years[train & recent], values[train & recent, 0]),
    held_out=(years[(gaps | future) & recent], values[(gaps | future) & recent, 0]),
    forecast_from=years[late][0].item(),
    ax=ax,
)
_ = ax.set(xlabel="year", ylabel="CO2 / ppm")

# %% [markdown]
# Why a process for swings? A stationary process returns to its mean, and so do its forecasts. Without the swings the
# best trend is one of few years. It explains the past less well, and in two years it bends the forecast down by ppm:

# %%
pyro.clear_param_store()
short, losses = fit({name: guess for name, guess in GUESSES.items() if "swing" not in name}, 3 if SMOKE else 150)
bent = pyro.condition(model, data=short)(TimeGrid(times[past]), train[past], None, short).forecast(times[late], y[past])
print(f"negative log-posterior {losses[-1]:.1f}, trend of {short['trend_length']:.1f} years")
error = (bent.mean - ahead.mean)[[0, -1], 0]
print(f"its forecast, less the one above: {error[0]:+.2f} ppm in the first week, {error[1]:+.2f} ppm in the last")
show("from 2000 on", {"without swings": (bent.mean[future[late]], bent.variance[future[late]].sqrt())}, future)

# %% [markdown]
# ## 4. The same numbers as a dense Gaussian process
#
# A Gaussian process library would build the covariance matrix of all weeks and factorise it, which costs the cube of
# their number. Here are both, for the first weeks, with the kernel written out. The season has seven harmonics for this
# comparison, which is its kernel up to 2e-7 of its variance; three, above, are enough for the data.


# %%
def dense(t, y):
    tau = (t[:, None] - t[None]).abs()
    r = 5**0.5 * tau / best["trend_length"]
    trend = best["trend_size"] ** 2 * (1 + r + r**2 / 3) * torch.exp(-r)
    q = 3**0.5 * tau / best["swing_length"]
    swing = best["swing_size"] ** 2 * (1 + q) * torch.exp(-q)
    wave = torch.exp(-2 * torch.sin(math.pi * tau) ** 2 - tau / best["season_length"])
    weather = best["weather_size"] ** 2 * torch.exp(-tau / best["weather_length"])
    kernel = trend + swing + best["season_size"] ** 2 * wave + weather + best["noise"] ** 2 * torch.eye(len(t))
    return dist.MultivariateNormal(torch.zeros(len(t)), kernel).log_prob(y[:, 0])


def markov(t, y):
    return LinearGaussianSSM(process(best, harmonics=7), None, best["noise"], TimeGrid(t)).log_prob(y)


def clock(function, *args):
    seconds = []
    for _ in range(3):
        started = time.process_time()
        result = function(*args)
        seconds.append(time.process_time() - started)
    return result.item(), sorted(seconds)[1]


t, observed = times[train], y[train]
print("weeks   log-evidence: dense      Markov     CPU ms: dense   Markov")
for count in (50, 100) if SMOKE else (250, 500, 1000, len(t)):
    (one, slow), (two, fast) = (clock(way, t[:count], observed[:count]) for way in (dense, markov))
    print(f"{count:5} {one:20.5f} {two:13.5f} {1e3 * slow:14.1f} {1e3 * fast:8.1f}")
# %% [markdown]
# The evidences agree as well as seven harmonics allow. The filter's cost grows at most in proportion to the number of
# weeks, the dense one faster: with its square for the matrix, with its cube for the factor.
#
# ## 5. Counts
#
# With any other likelihood the path stays in the model, as a `GaussianPath` site, and needs a guide. A good one is the
# prior conditioned on learned Gaussian pseudo-observations: `AutoGaussianMarkov` makes it from the model alone. Here
# are simulated counts, so that the truth is known, with a hole in them.

# %%
pyro.clear_param_store()
hours = torch.sort(torch.rand(40 if SMOKE else 150) * 24).values
points = TimeGrid(hours)
truth = 1.0 + 1.2 * torch.sin(2 * math.pi * hours / 8) * torch.exp(-hours / 30)
counts = torch.poisson(truth.exp())
seen = (hours < 13) | (hours > 16)


def count_model():
    scale = pyro.param("length", torch.tensor(1.0), constraint=dist.constraints.positive)
    size = pyro.param("size", torch.tensor(1.0), constraint=dist.constraints.positive)
    z = pyro.sample("z", GaussianPath(Matern32(scale, size**2), None, points))
    rate = (1.0 + z[..., 0]).exp()
    pyro.sample("counts", dist.Poisson(rate).mask(seen).to_event(1), obs=counts)


guide = AutoGaussianMarkov(count_model, points="observed")
guide.warm_up(num_steps=5 if SMOKE else 30)  # natural gradients for the path at the first hyper-parameters
svi = SVI(count_model, guide, pyro.optim.ClippedAdam({"lr": 0.02}), PathELBO())
losses = [svi.step() for _ in range(3 if SMOKE else 500)]
print({name: round(pyro.param(name).item(), 2) for name in ("length", "size")})

# %%
with torch.no_grad():
    log_rate = torch.stack([1.0 + guide()["z"][:, 0] for _ in range(50 if SMOKE else 500)])
fig, ax = plt.subplots()
data = {"observed": (hours[seen], counts[seen]), "held_out": (hours[~seen], counts[~seen])}
plot_paths(hours, log_rate.exp(), **data, ax=ax)
ax.plot(hours, truth.exp(), "k--", lw=1)
_ = ax.set(xlabel="hour", ylabel="rate and counts")

# %% [markdown]
# How good is a Gaussian posterior for counts? Importance weights tell: the tail index `k_hat` of the ratio of model and
# guide, and the evidence that the weighted draws give beside the bound.

# %%
check = importance_check(count_model, guide, num_samples=200 if SMOKE else 2000, seed=0)
bound = -PathELBO(num_particles=200, vectorize_particles=True, max_plate_nesting=0).loss(count_model, guide)
print(f"k_hat {check.k_hat:.2f}, bound {bound:.2f}, weighted {check.log_evidence:.2f}")

# %% [markdown]
# Below 0.5 the guide covers the posterior, and bound and evidence are close. In the hole the band widens to what the
# process alone can say; the dashed line is the truth, a damped wave that no Matérn process knows about.

# %% [markdown]
# ## Takeaways
#
# * Add and multiply processes; `LinearGaussianSSM` is the exact evidence of the sum, for any times, with masks.
# * Missing and future values need no special care: keep them on the grid, masked, or ask `forecast`.
# * The answer is that of a dense Gaussian process, at a cost linear in the number of times.
# * With another likelihood use `GaussianPath` and `AutoGaussianMarkov`: `warm_up` first, then `SVI`.
# * What an exact method answers is exact for the model that it is given: score it on what it has not seen.
#
# Next: [latent Gaussian processes](../how-to/gaussian-processes.md), [judge a fit](../how-to/judge-a-fit.md), and what
# to do when nothing is linear: [a latent SDE](02_latent_sde.md).
