# %% [markdown]
# # Simulation-free training
#
# **The question.** A training step of a latent SDE walks through the grid, one solver step after another. If the
# posterior is described by what it is at each time, and not by how it moves, the walk can go. What is then trained,
# is it the same bound, and is it learned sooner?
#
# The model in three equations: a path and what is seen of it; the marginals of a guide and the drift that they imply;
# and the bound.
#
# $$ dz_t = -z_t\,dt + dW_t, \qquad y_n \sim N(z_{t_n}, s^2) $$
#
# $$ z_t = m(t) + \rho(t)\,\epsilon, \qquad
# f_q(t, z) = \dot m + \tfrac{\dot \rho}{\rho}\,(z - m) - \tfrac{1}{2 \rho^2}\,(z - m) $$
#
# $$ \mathcal L = \sum_n E_q \log p(y_n \mid z_{t_n}) - \mathrm{KL}(q_0 \,\|\, p_0)
# - \tfrac12 \int E_{q_t} (f_q + z_t)^2\,dt $$
#
# The sum and the integral need draws of single marginals only, and the integral can be estimated at random times. The
# path here is an Ornstein–Uhlenbeck process seen with Gaussian noise, so that posterior, drift and log-evidence are
# known.

# %%
import os
import time

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.optim import ExponentialLR

from pyro_sde import GaussianPath, PathELBO, SDEPath, TimeGrid
from pyro_sde.diagnostics import plot_paths
from pyro_sde.guides import MarginalFlow, MarginalPath, PosteriorSDE, StratifiedTimes
from pyro_sde.infer import SimulationFreeELBO
from pyro_sde.nn import ControlNet, GRUEncoder
from pyro_sde.nn.marginal_encoders import FreeMarginals, GRUMarginals
from pyro_sde.nn.marginals import Marginals
from pyro_sde.sde import OrnsteinUhlenbeck

SMOKE = "PYRO_SDE_SMOKE" in os.environ  # a few steps only: how the test suite runs this page
plt.rcParams.update({"figure.dpi": 72, "figure.figsize": (9, 3)})
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # seconds of one thread are compared
pyro.set_rng_seed(0)

# %% [markdown]
# ## 1. A problem with a known answer
#
# Grids without `max_step` have no points but the observations: enough for a guide that does not simulate. The exact
# laws come from `GaussianPath`; with `discretisation="euler"` it is the chain of steps of a simulated path.

# %%
COUNT = 11 if SMOKE else 41
times = 0.1 * torch.arange(float(COUNT))
noise = 0.3
prior = OrnsteinUhlenbeck(rate=1.0, scale=1.0)
start = dist.Normal(torch.zeros(1), 0.5**0.5).to_event(1)
sparse, fine = TimeGrid(times), TimeGrid(times, max_step=0.01)
law = GaussianPath(prior, start, sparse)
y = law.sample() + noise * torch.randn(COUNT, 1)
evidence = law.log_evidence(None, noise, y).item()
chain = GaussianPath(prior, start, fine, discretisation="euler").log_evidence(None, noise, y).item()
print(f"log-evidence {evidence:.3f}; of the Euler chain with {fine.num_steps} steps {chain:.3f}")

# %% [markdown]
# ## 2. From marginals to a drift
#
# First without any training: let the guide have the exact posterior marginals, of a Gaussian process with covariance
# $\frac12 e^{-|t - t'|}$. Any `Marginals`, functions of time with a derivative, will do. The drift that they imply must
# be the drift of the exact posterior SDE, which is that of the prior plus $\nabla_z \log p(y_{>t} \mid z_t = z)$: the
# part that steers towards later observations.


# %%
def covariance(s, t):
    return 0.5 * torch.exp(-(s - t).abs())


class Exact(Marginals):
    """Smoothed marginals of the Gaussian process: mean and standard deviation at times (..., 1)."""

    def moments(self, t):
        gram = covariance(times[:, None], times) + noise**2 * torch.eye(COUNT)
        cross = covariance(t, times)  # (..., N)
        mean, spread = cross @ torch.linalg.solve(gram, y), 0.5 - (cross @ torch.linalg.inv(gram) * cross).sum(-1, True)
        return mean, spread.sqrt()


def exact_drift(t, z):
    later = times > t
    shrink = torch.exp(-(times[later] - t))
    spread = covariance(times[later][:, None], times[later]) - 0.5 * shrink[:, None] * shrink
    ahead = dist.MultivariateNormal(shrink * z.requires_grad_(), spread + noise**2 * torch.eye(len(shrink)))
    return -z + torch.autograd.grad(ahead.log_prob(y[later, 0]).sum(), z)[0]


implied = MarginalPath(Exact(1), sparse).to_sde_path(prior).sde.drift
states = torch.linspace(-2, 2, 9)[:, None]
for t in (0.0, 0.33, 0.78):
    found, exact = implied(torch.tensor([t + 1e-9]), states), exact_drift(t + 1e-9, states.clone())
    print(f"t = {t:.2f}: largest difference of the drifts {(found - exact).abs().max():.1e}")

# %% [markdown]
# The figure shows both: marginals, a band, that nobody simulated, and paths of the SDE with the implied drift.

# %%
with torch.no_grad():
    paths = MarginalPath(Exact(1), sparse).to_sde_path(prior, fine).sample((20 if SMOKE else 400,))[..., 0]
    mean, deviation = (part[:, 0] for part in Exact(1).moments(fine.times[:, None]))
ax = plot_paths(fine.times, paths, observed=(times, y[:, 0]), num_paths=5, ax=plt.subplots()[1])
for line in (mean - 1.645 * deviation, mean + 1.645 * deviation):
    ax.plot(fine.times, line, "k--", lw=0.8)
ax.set(xlabel="t", ylabel="z")

# %% [markdown]
# The dashed lines are the 5 % and 95 % quantiles of the marginals; the band is that of the paths.
#
# ## 3. Train, at equal CPU time
#
# Three guides of the same model. `PosteriorSDE` with `PathELBO` simulates 16 paths in every step. `MarginalFlow` with
# `SimulationFreeELBO` draws 16 times from the marginals, with the same kind of encoder; `FreeMarginals` reads nothing
# and has numbers of its own for this one series. The model is the same Pyro function, on another grid.


# %%
def as_given(posterior, grid):
    return posterior(prior, grid, y)


def pair(grid, posterior, law=as_given):
    def model(number):
        with pyro.plate("draws", number):
            z = pyro.sample("z", SDEPath(prior, start, grid))
            pyro.sample("y", dist.Normal(grid.observed(z), noise).to_event(2), obs=y)

    def guide(number):
        pyro.module("posterior", posterior)
        with pyro.plate("draws", number):
            pyro.sample("z", law(posterior, grid))

    return model, guide


DRAWS = 100 if SMOKE else 500  # for bounds: ten times so many


def train(grid, posterior, loss, best, precise, seconds):
    """Gaps to the log-evidence after so many CPU seconds of training."""
    pyro.clear_param_store()
    model, guide = pair(grid, posterior)
    adam = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 1e-2}, "gamma": 0.999}
    schedule = ExponentialLR(adam, {"clip_norm": 20.0})
    svi = SVI(model, guide, schedule, loss)
    spent, steps, gaps = 0.0, 0, []
    for due in seconds:
        while spent < due:
            begun = time.process_time()
            svi.step(16)
            schedule.step()
            spent, steps = spent + time.process_time() - begun, steps + 1
        with torch.no_grad():
            bounds = torch.tensor([-precise.loss(model, guide, DRAWS) / DRAWS for _ in range(2 if SMOKE else 10)])
        gaps.append((best - bounds.mean().item(), bounds.std().item() / len(bounds) ** 0.5))
    return gaps, steps


seconds = (0.1, 0.2) if SMOKE else (1.0, 2.0, 5.0, 10.0)
free, quadrature = SimulationFreeELBO(StratifiedTimes(16)), SimulationFreeELBO(StratifiedTimes(128))
simulated = PosteriorSDE(GRUEncoder(1, 1, 16, time_scale=0.1), ControlNet(1, 16, 1, (64, 64))).double()
encoded = MarginalFlow(GRUMarginals(1, 1, time_scale=0.1)).double()
own = MarginalFlow(FreeMarginals(times, 1, initial_scale=0.5))
rows = {
    "simulated path": (fine, simulated, PathELBO("closed"), chain, PathELBO("closed")),
    "marginals, encoder": (sparse, encoded, free, evidence, quadrature),
    "marginals, own numbers": (sparse, own, free, evidence, quadrature),
}
courses = {}
print("nats below the log-evidence after" + "".join(f"{due:10g} s" for due in seconds) + "      steps")
for name, row in rows.items():
    courses[name], steps = train(*row, seconds)
    print(f"{name:33}" + "".join(f"{gap:6.2f} ± {error:4.2f}"[:13] for gap, error in courses[name]) + f"{steps:10}")

# %%
fig, ax = plt.subplots()
for name, gaps in courses.items():
    ax.loglog(seconds, [max(gap, 0.01) for gap, _ in gaps], "o-", ms=4, label=name)
ax.set(xlabel="CPU seconds", ylabel="nats below the log-evidence")
ax.legend(frameon=False)

# %% [markdown]
# A control can move the mean of a solver step, and its variance stays that of the prior. The exact posterior of the
# chain has narrower steps, of variance $v_k < h$, so the simulated row cannot come nearer than
# $\frac12 \sum_k (h / v_k - 1 - \log h / v_k)$, however long it trains:

# %%
narrow = GaussianPath(prior, start, fine, discretisation="euler").condition(None, noise, y).chain.noise.flatten()
ratio = fine.times.diff() / narrow
print(f"no control on {fine.num_steps} steps is nearer than {0.5 * (ratio - 1 - ratio.log()).sum():.2f} nats")

# %% [markdown]
# That part falls with the step, at the cost of more steps; see [how fine is fine enough](09_how_fine.md). What the
# simulated row lacks beyond it is training, as is all that the other two rows lack. A step of the two with a GRU costs
# about the same here, since the GRU is what they have in common: look at the numbers of steps. Without an encoder a
# step is cheap and there is little to learn. That does not help with the next series, which an encoder would read.
# It is one run each of one series: the how-to page has other toys and three seeds, on which the encoder's row is not
# always ahead in the first seconds.
#
# ## 4. Is it the same bound?
#
# `to_sde_path` makes the trained marginals an ordinary path law, whose paths can be simulated, predicted with and
# weighted. Its bound, simulated, has to approach the one that was trained, as the steps get shorter; what is missing
# should be about proportional to the step:


# %%
def bound(loss, grid, law=as_given):
    with torch.no_grad():
        parts = -torch.tensor([loss.loss(*pair(grid, own, law), DRAWS) for _ in range(2 if SMOKE else 10)]) / DRAWS
    return f"{parts.mean():8.3f} ± {parts.std() / len(parts) ** 0.5:.3f}"


def simulate(posterior, grid):
    return posterior(prior, sparse, y).to_sde_path(prior, grid)


print(f"without simulation      {bound(quadrature, sparse)}")
for step in (0.05, 0.02, 0.005):
    print(f"simulated, step {step:<7g} {bound(PathELBO('closed'), TimeGrid(times, max_step=step), simulate)}")
print(f"log-evidence            {evidence:8.3f}")

# %%
with torch.no_grad():
    paths = simulate(own, fine).sample((50 if SMOKE else 500,))[..., 0]
exact = GaussianPath(prior, start, fine).condition(None, noise, y)
deviation = exact.variance.sqrt()
ax = plot_paths(fine.times, paths, observed=(times, y[:, 0]), ax=plt.subplots()[1])
for sign in (-1, 0, 1):
    ax.plot(fine.times, exact.mean[:, 0] + sign * 1.645 * deviation[:, 0], "k--", lw=0.8)
ax.set(xlabel="t", ylabel="z")

# %% [markdown]
# Band: paths of the trained posterior. Dashed: quantiles of the exact one.
#
# ## 5. What it cannot do
#
# The draws at two times are independent, so a likelihood that looks at two times at once would get a wrong bound. The
# loss looks for that at its first call and raises:


# %%
def increments(number):
    with pyro.plate("draws", number):
        z = pyro.sample("z", SDEPath(prior, start, sparse))
        pyro.sample("dy", dist.Normal(z.diff(dim=-2), noise).to_event(2), obs=y.diff(dim=0))


try:
    SimulationFreeELBO().loss(increments, pair(sparse, own)[1], 16)
except ValueError as error:
    print(error)

# %% [markdown]
# And every dimension needs noise of its own, since a drift in a dimension without noise cannot be bought at any price;
# a Gaussian marginal has one mode (`sigmoids=5` gives more); observations that lie very close together make the
# integrand large between them.

# %% [markdown]
# ## Takeaways
#
# * `MarginalFlow` with `SimulationFreeELBO` trains on marginals: the loss is unbiased for a bound in continuous time,
#   with no step and no discretisation error.
# * The marginals and the diffusion of the prior determine one SDE. With the exact marginals its drift is the exact one.
# * `to_sde_path` gives the paths when you need them: forecasts, importance weights, a second opinion on the bound.
# * Compare at equal time, with the evidence where it is known. Who wins depends on the encoder, the step and the noise.
# * It needs a likelihood that is a product over times, and noise in every dimension.
#
# Next: [train without simulating](../how-to/simulation-free.md) has long series, time samplers and marginals with
# several modes; [how fine is fine enough](09_how_fine.md); [forecasts of walks](11_walks_from_three_frames.md).
