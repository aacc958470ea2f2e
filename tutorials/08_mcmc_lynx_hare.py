# %% [markdown]
# # MCMC over the parameters of an SDE: lynx and hare
#
# **The question.** Twenty-one yearly counts of hares and lynxes, and a mechanism with a handful of rates: what exactly
# do the data say about the rates? And when the cycles are not quite regular, is it the counts that are wrong, or the
# mechanism?
#
# The model in three equations: predator and prey, with noise in the populations, and the counts.
#
# $$ d \log H_t = (\alpha - \beta L_t)\,dt + \tau_H\,dW_t $$
#
# $$ d \log L_t = (-\gamma + \delta H_t)\,dt + \tau_L\,dW'_t $$
#
# $$ \log y_n \sim N\big((\log H_{t_n}, \log L_{t_n}),\; \mathrm{diag}(\sigma_H^2, \sigma_L^2)\big) $$
#
# With $\tau = 0$ these are the Lotka–Volterra equations, a standard test of samplers with a published reference
# posterior. We reproduce it first, with NUTS, and then let the populations have noise of their own.

# %%
import math
import os
import time

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import init_to_value
from torch.distributions import constraints

from pyro_sde import SDE, SDEPath, TimeGrid
from pyro_sde.data import load
from pyro_sde.diagnostics import plot_paths
from pyro_sde.solvers import EulerMaruyama, Execution, integrate

SMOKE = "PYRO_SDE_SMOKE" in os.environ  # a few draws only: how the test suite runs this page
plt.rcParams.update({"figure.dpi": 72, "figure.figsize": (9, 3), "figure.constrained_layout.use": True})
torch.set_default_dtype(torch.float64)
pyro.set_rng_seed(0)
SPECIES = ("hares", "lynxes")
SIGN = torch.tensor([1.0, -1.0])  # of growth without the other species
CAP = 9.0  # 8 million pelts

# %% [markdown]
# ## 1. A path without noise
#
# The state is the logarithm of both populations, so that they stay positive. The *drift of a step* may be any function
# of the state. We take the mean slope over the step, by the classical Runge–Kutta formula. Then Euler's step of this
# drift **is** a Runge–Kutta step of order 4 when no noise is there, and with additive noise it is still a Gaussian
# kernel with a density. A sampler tries wild parameters too, so the slope is capped far above all populations: every
# path stays finite.
#
# `backward="parallel"` runs the steps without autograd and differentiates all of them in one batched call.


# %%
def predator_prey(growth, pull, tau, step):
    """SDE of the log-populations; growth = (alpha, gamma), pull = (beta, delta)."""
    rates, pulls = SIGN * growth, -SIGN * pull

    def slope(z):
        return torch.addcmul(rates, pulls, z.clamp(max=CAP).exp().flip(-1))

    def mean_slope(t, z):
        first = slope(z)
        second = slope(z + 0.5 * step * first)
        third = slope(z + 0.5 * step * second)
        return (first + 2 * (second + third) + slope(z + step * third)) / 6

    return SDE(mean_slope, lambda t, z: tau)


FAST = Execution(backward="parallel")


def still_path(growth, pull, start, grid):
    """The path with no noise, (..., K + 1, 2)."""
    sde = predator_prey(growth, pull, torch.zeros(2), grid.steps[0].item())
    no_noise = torch.zeros(grid.num_steps, *start.shape)
    return integrate(EulerMaruyama(), sde, grid, start.log(), no_noise, (None,), FAST)


years = torch.arange(0.0, 21.0)
example = (torch.tensor([0.55, 0.80]), torch.tensor([0.028, 0.024]), torch.tensor([34.0, 5.9]))
grids = {step: TimeGrid(years, max_step=step) for step in (1.0, 0.5, 0.25, 0.0625)}
finest = grids[0.0625].observed(still_path(*example, grids[0.0625]))
for step in (1.0, 0.5, 0.25):
    error = (grids[step].observed(still_path(*example, grids[step])) - finest).abs().max()
    print(f"step of {step:4} years: largest error of a log-population in 20 years {error:.1e}")
grid = grids[0.5]

# %% [markdown]
# Counts will turn out to scatter by a quarter, 0.25 in the logarithm; a step of half a year is two orders of magnitude
# more exact than that.
#
# ## 2. The data
#
# Pelts that the Hudson's Bay Company collected, in thousands. They are downloaded from posteriordb, with a checksum. If
# that fails, the rest of the page runs on a simulation of the model.

# %%
try:
    record = load("hudson_lynx_hare", download=not SMOKE)
    pelts, real = record.values[0], True
    print(record.source)
except OSError as error:
    truth = SDEPath(
        predator_prey(*example[:2], torch.full((2,), 0.15), 0.5), dist.Delta(example[2].log(), event_dim=1), grid
    )
    pelts, real = (grid.observed(truth.sample()) + 0.15 * torch.randn(21, 2)).exp(), False
    print(f"simulated, since the data are not here ({type(error).__name__})")

fig, ax = plt.subplots()
for column, name in enumerate(SPECIES):
    ax.plot(1900 + years, pelts[:, column], "o-", ms=4, label=name)
ax.set(ylabel="thousand pelts")
ax.legend(frameon=False)

# %% [markdown]
# ## 3. The posterior without process noise
#
# Model and priors are those of `lotka_volterra.stan` in posteriordb. Pyro has no truncated normal; a sampler of a
# posterior needs no normalising constant, so a normal law that calls its support positive will do (to score, not to
# draw from).
#
# Chains need a reasonable start: far away there are other, minor modes, where $\sigma$ explains what the cycles do not,
# and a chain that begins there stays there. Theory helps: the mean populations are $\gamma / \delta$ and
# $\alpha / \beta$, and small cycles have the period $2 \pi / \sqrt{\alpha \gamma}$, here about ten years.


# %%
class PositiveNormal(dist.Normal):
    support = constraints.positive


LOG_START = math.log(10) * torch.ones(2)  # prior mean of the first log-populations; standard deviation 1


def rates():
    one = torch.ones(2)
    growth = pyro.sample("growth", PositiveNormal(one, 0.5 * one).to_event(1))
    pull = pyro.sample("pull", PositiveNormal(0.05 * one, 0.05 * one).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(-one, one).to_event(1))
    return growth, pull, sigma


def still_model(grid, pelts):
    growth, pull, sigma = rates()
    start = pyro.sample("start", dist.LogNormal(LOG_START, 1.0).to_event(1))
    seen = grid.observed(still_path(growth, pull, start, grid))
    pyro.sample("pelts", dist.LogNormal(seen, sigma).to_event(2), obs=pelts)


rate = torch.full((2,), 2 * math.pi / 10)
GUESS = {"growth": rate, "pull": rate / pelts.mean(0).flip(-1), "sigma": torch.full((2,), 0.5), "start": pelts[0]}


def run(model, guess, draws, warmup, depth, dense):
    """Draws of NUTS, with a full mass matrix for the sites in `dense`."""
    kernel = NUTS(
        model, init_strategy=init_to_value(values=guess), full_mass=[dense], max_tree_depth=3 if SMOKE else depth
    )
    draws, warmup = (8, 4) if SMOKE else (draws, warmup)
    mcmc = MCMC(kernel, num_samples=draws, warmup_steps=warmup, disable_progbar=True)
    before = time.process_time()
    mcmc.run(grid, pelts)
    diverged = len(mcmc.diagnostics()["divergences"]["chain 0"])
    print(f"{draws} draws, {diverged} divergences, {time.process_time() - before:.0f} s of CPU time")
    return mcmc


still = run(still_model, GUESS, draws=300, warmup=150, depth=5, dense=("growth", "pull", "sigma", "start"))

# %% [markdown]
# Here is the posterior beside that of posteriordb, whose 10,000 draws were made with Stan. The column *shift* is the
# difference of the means in reference standard deviations; its error is that of 300 draws, by their effective sample
# size.

# %%
NAMES = {"growth": ("alpha", "gamma"), "pull": ("beta", "delta"), "start": ("H(1900)", "L(1900)")}
NAMES["sigma"] = ("sigma H", "sigma L")
REFERENCE = {  # means and standard deviations of the draws of posteriordb
    "growth": ((0.54686, 0.80010), (0.06305, 0.08937)),
    "pull": ((0.027747, 0.024086), (0.0041545, 0.0035279)),
    "start": ((34.035, 5.9359), (2.9168, 0.53053)),
    "sigma": ((0.24806, 0.25102), (0.043261, 0.043588)),
}


def rows(mcmc, names):
    """Name, mean, standard deviation, effective sample size and R-hat of every parameter."""
    diagnostics = mcmc.diagnostics()
    for site, labels in names.items():
        draws = mcmc.get_samples()[site]
        for k, label in enumerate(labels):
            found = diagnostics[site]
            yield label, site, k, draws[:, k].mean(), draws[:, k].std(), found["n_eff"][k], found["r_hat"][k]


print(
    "parameter       mean       sd   n_eff  R-hat"
    + ("   reference mean       sd   shift          sd ratio" if real else "")
)
for label, site, k, mean, sd, size, r_hat in rows(still, NAMES):
    line = f"{label:10} {mean:9.4f} {sd:8.4f} {size:7.0f} {r_hat:6.2f}"
    if real:
        known, scale = (part[k] for part in REFERENCE[site])
        shift, error = (mean - known) / scale, sd / scale / size**0.5
        line += f" {known:16.4f} {scale:8.4f}   {shift:+.2f} +- {error:.2f} {sd / scale:8.2f}"
    print(line)

# %% [markdown]
# What is left is the error of a few hundred draws. The full comparison, with thousands of draws and the error of every
# figure, is a command of the repository: `python -m tests.benchmarks.lynx_hare`; its table is in
# [what has been measured](../measured.md).
#
# ## 4. Is it the counts?
#
# Without process noise the whole misfit must be error of the counts, independent from year to year. We can look: the
# residuals of the logarithms, at the posterior means, in units of their own standard deviation.


# %%
def lag_one(residuals):
    """Correlation of neighbouring years, for each species."""
    centred = residuals - residuals.mean(-2, keepdim=True)
    return (centred[..., 1:, :] * centred[..., :-1, :]).sum(-2) / centred.square().sum(-2)


draws = {name: part.detach() for name, part in still.get_samples().items()}
still_paths = still_path(draws["growth"], draws["pull"], draws["start"], grid)
residuals = pelts.log() - grid.observed(still_paths).mean(0)
print("correlation of the residuals of neighbouring years: ", *(f"{value:+.2f}" for value in lag_one(residuals)))
print("years in a row in which hares were above the path:  ", "".join("+" if r > 0 else "-" for r in residuals[:, 0]))
print("                        lynxes                      ", "".join("+" if r > 0 else "-" for r in residuals[:, 1]))

# %% [markdown]
# ## 5. The posterior with process noise
#
# The same drift, with a diffusion $\tau$. The path is now a sample site with 2 x 41 unknown numbers. NUTS can move the
# path itself, or the noise that drives it (`PathNoiseReparam`; see [run NUTS over a path](../how-to/nuts.md)). Which
# coordinates are better? The condition number of the posterior says it: for given parameters, with $G$ the derivative
# of the path by its noise, the precision is $1 + G_{obs}^\top G_{obs} / \sigma^2$ in the coordinates of the noise and
# $G^{-\top} G^{-1} + 1_{obs} / \sigma^2$ in those of the path.

# %%
means = {name: part.mean(0) for name, part in draws.items()}
start_path = still_path(means["growth"], means["pull"], means["start"], grid)


def conditions(tau, sigma, step):
    """Condition numbers in the coordinates of the noise and of the path."""
    fine = TimeGrid(years, max_step=step)
    sde = predator_prey(means["growth"], means["pull"], torch.full((2,), tau), step)
    law = SDEPath(sde, dist.Delta(start_path[0], event_dim=1), fine, execution=FAST)
    size = 2 * fine.num_steps
    jacobian = torch.autograd.functional.jacobian(
        lambda noise: law.solve(start_path[0], noise)[1:], torch.zeros(size // 2, 2)
    ).reshape(size, size)
    seen = torch.zeros(size // 2, 2)
    seen[round(1 / step) - 1 :: round(1 / step)] = sigma**-2
    in_noise = torch.eye(size) + jacobian.T @ (seen.reshape(-1, 1) * jacobian)
    inverse = torch.linalg.inv(jacobian)
    return [torch.linalg.cond(matrix).item() for matrix in (in_noise, inverse.T @ inverse + seen.flatten().diag())]


print("condition number of the path, given the parameters (tau = 0.2, sigma = 0.1)")
for step in (1.0, 0.5) if SMOKE else (1.0, 0.5, 0.25):
    in_noise, in_path = conditions(0.2, 0.1, step)
    print(f"step {step:4}: coordinates of the noise {in_noise:8.0f}, of the path {in_path:8.0f}")

# %% [markdown]
# The cycles never forget: a push in 1901 shifts their phase in 1920, so in the noise everything hangs on everything. In
# the path only neighbours hang together, and 21 precise counts on a coarse grid hold it. Here the path itself is the
# better choice, and its density costs one batched call without any loop. Refining the grid makes its coordinates worse
# and leaves those of the noise as they are; one has to look.
#
# The chain starts at the path without noise. That must be said: left alone, Pyro starts every point of the path
# anywhere between -2 and 2.


# %%
def noisy_model(grid, pelts):
    growth, pull, sigma = rates()
    tau = pyro.sample("tau", dist.HalfNormal(torch.full((2,), 0.5)).to_event(1))
    sde = predator_prey(growth, pull, tau, grid.steps[0].item())
    z = pyro.sample("z", SDEPath(sde, dist.Normal(LOG_START, 1.0).to_event(1), grid))
    pyro.sample("pelts", dist.LogNormal(grid.observed(z), sigma).to_event(2), obs=pelts)


guess = {**{name: means[name] for name in ("growth", "pull", "sigma")}, "tau": torch.full((2,), 0.15), "z": start_path}
noisy = run(noisy_model, guess, draws=300, warmup=150, depth=6, dense=("growth", "pull", "sigma", "tau"))

before = {label: (mean, sd) for label, _, _, mean, sd, _, _ in rows(still, NAMES)}
NAMES = {**NAMES, "tau": ("tau H", "tau L")}
NAMES.pop("start")
print("parameter  with noise: mean       sd   n_eff  R-hat   without: mean       sd")
for label, _, _, mean, sd, size, r_hat in rows(noisy, NAMES):
    other = "{:15.4f} {:8.4f}".format(*before[label]) if label in before else ""
    print(f"{label:10} {mean:17.4f} {sd:8.4f} {size:7.0f} {r_hat:6.2f} {other}")

# %%
drawn = {name: part.detach() for name, part in noisy.get_samples().items()}
noisy_paths = drawn["z"]
fig, axes = plt.subplots(2, 2, figsize=(9, 5), sharex=True, sharey="row")
for row, name in enumerate(SPECIES):
    for ax, (title, paths) in zip(axes[row], (("no noise", still_paths), ("process noise", noisy_paths)), strict=True):
        plot_paths(1900 + grid.times, paths[..., row].exp(), observed=(1900 + years, pelts[:, row]), ax=ax)
        ax.set(title=f"{name}, {title}", xlabel="")
        ax.get_legend().set_visible(row == 0 and title == "no noise")

# %% [markdown]
# With noise in the populations, the error of the counts is less than half of what it seemed to be: the rest was the
# mechanism's. The rates stay where they were, a little less certain. How the misfit divides between $\tau$ and $\sigma$
# is the least certain of all, and mixes slowest: their effective sample sizes are a few dozen. Run longer, and several
# chains, before you quote them.
#
# ## 6. Where it matters: the next cycle
#
# Continue every draw from its own last state, with its own parameters. Without process noise the model believes that it
# knows the phase of the cycle for good.

# %%
ahead = TimeGrid(torch.arange(20.0, 36.0), max_step=0.5)


def forecast(parameters, tau, last):
    sde = predator_prey(parameters["growth"], parameters["pull"], tau, 0.5)
    return SDEPath(sde, dist.Delta(last, event_dim=1), ahead).sample()


futures = {
    "no noise": forecast(draws, torch.zeros(2), still_paths[:, -1]),
    "process noise": forecast(drawn, drawn["tau"], noisy_paths[:, -1]),
}
fig, axes = plt.subplots(1, 2, sharey=True)
print("90 % interval of the population of hares, in thousands")
for ax, (title, paths) in zip(axes, futures.items(), strict=True):
    plot_paths(1900 + ahead.times, paths[..., 0].exp(), num_paths=5, ax=ax)
    ax.set(title=f"hares, {title}", xlabel="", ylim=(0, 200))
    ends = torch.quantile(paths[:, [10, 20, 30], 0].exp(), torch.tensor([0.05, 0.95]), dim=0)
    print(
        f"{title:14}",
        "   ".join(
            f"{year}: {low:5.1f} to {high:6.1f}" for year, low, high in zip((1925, 1930, 1935), *ends, strict=True)
        ),
    )

# %% [markdown]
# ## Takeaways
#
# * A differential equation is an SDE whose noise is 0: `integrate` with no noise, and a drift that is the mean slope of
#   a Runge–Kutta step. NUTS over its parameters gives the reference posterior.
# * Process noise is one more line, `pyro.sample("z", SDEPath(...))`. Whether NUTS should see the path or its noise is
#   a matter of condition numbers: compare them, and look at the effective sample sizes.
# * Residuals tell where the noise is. If neighbouring years err in the same direction, the mechanism needs noise; the
#   error of the counts is then smaller than it seemed, and the forecast wider.
# * NUTS suits short series and a handful of parameters. It starts where you put it: check other modes.
#
# Next: [run NUTS over a path](../how-to/nuts.md), [the same kind of model with a guide](01_first_sde_path.md), and
# [how fine is fine enough](09_how_fine.md).
