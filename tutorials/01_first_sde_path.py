# %% [markdown]
# # Your first SDEPath in ten minutes
#
# **The question.** A quantity drifts back to a level and is shaken all the time; you measure it now and then, with
# error, at irregular times. What was it doing in between, how sure can you be, and how fast does it come back?
#
# The model in three equations: a latent path, its start, and what you see of it.
#
# $$ dz_t = \kappa\,(\mu - z_t)\,dt + \sigma\,dW_t $$
#
# $$ z_0 \sim N(0, 1) $$
#
# $$ y_n \sim N(z_{t_n}, s^2) $$
#
# You know Pyro: a model samples sites, a guide samples the same sites, `SVI` trains. Here the site `"z"` is a whole
# path.

# %%
import os

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Predictive
from pyro.optim import ClippedAdam

from pyro_sde import SDE, PathELBO, SDEPath, TimeGrid
from pyro_sde.distributions import GaussianPath
from pyro_sde.nn import ControlNet, GRUEncoder
from pyro_sde.sde import OrnsteinUhlenbeck

SMOKE = "PYRO_SDE_SMOKE" in os.environ  # a few steps only: how the test suite runs this page
plt.rcParams.update({"figure.dpi": 72, "figure.figsize": (7, 3)})
torch.manual_seed(0)

# %% [markdown]
# ## 1. Times, and a grid that contains them
#
# The solver walks on a `TimeGrid`. It contains **every** observation time, so nothing is ever interpolated, and
# steps are nowhere longer than `max_step`.

# %%
times = torch.cat([torch.zeros(1), 6 * torch.rand(14).sort().values])
grid = TimeGrid(times, max_step=0.05)
print(f"{len(times)} observation times, {grid.num_steps} solver steps")

# %% [markdown]
# ## 2. A path is a distribution
#
# An `SDE` is two functions, drift and diffusion. `SDEPath` makes it a Pyro distribution over paths, `(K + 1, D)`: it
# has `rsample` and `log_prob`, batches and plates.

# %%
truth = SDE(lambda t, z: 2.0 * (1.0 - z), lambda t, z: torch.full_like(z, 0.8))
start = dist.Normal(torch.zeros(1), 1.0).to_event(1)
path = SDEPath(truth, start, grid)
z = path.sample()
print(path, z.shape, "log-density", round(path.log_prob(z).item(), 1))

y = grid.observed(z) + 0.2 * torch.randn(len(times), 1)

fig, ax = plt.subplots()
ax.plot(grid.times, z, lw=1, label="path")
ax.plot(times, y, "o", ms=4, label="observed")
ax.set(xlabel="t", ylabel="z")
ax.legend(frameon=False)

# %% [markdown]
# ## 3. A model with unknown parameters
#
# Parameters are `pyro.param`, as in any model. (Priors on them work too: see the tutorial on NUTS.)


# %%
def parameters():
    positive = dist.constraints.positive
    rate = pyro.param("rate", torch.tensor(1.0), constraint=positive)
    level = pyro.param("level", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=positive)
    return rate, level, scale


def prior():
    rate, level, scale = parameters()
    return SDE(lambda t, z: rate * (level - z), lambda t, z: scale.expand_as(z))


def model(y):
    z = pyro.sample("z", SDEPath(prior(), start, grid))
    pyro.sample("y", dist.Normal(grid.observed(z), 0.2).to_event(2), obs=y)


# %% [markdown]
# ## 4. A guide is a posterior SDE
#
# The posterior of an SDE is an SDE with the *same* diffusion and another drift: that of the prior, plus diffusion times
# a **control** $u(t, z, \text{context})$. The encoder reads the observations backwards and gives one row of context for
# every solver step. The control starts at 0, so the guide starts at the prior.

# %%
encoder = GRUEncoder(value_dim=1, state_dim=1, context_dim=8, hidden=16)
control = ControlNet(state_dim=1, context_dim=8, hidden=(32,))


def guide(y):
    pyro.module("encoder", encoder)
    pyro.module("control", control)
    q0, context, _ = encoder(grid, y, torch.ones_like(y, dtype=torch.bool))
    pyro.sample("z", SDEPath(prior().controlled(control), q0, grid, inputs=context))


# %% [markdown]
# ## 5. Train
#
# `PathELBO` is an `ELBO` for `SVI` whose gradients are quiet: at the exact posterior they have no noise at all.
# `Trace_ELBO` works as well.

# %%
svi = SVI(model, guide, ClippedAdam({"lr": 0.01}), loss=PathELBO())
losses = [svi.step(y) for _ in range(20 if SMOKE else 1500)]

fig, ax = plt.subplots(figsize=(7, 2))
ax.plot(losses, lw=0.5)
ax.set(xlabel="step", ylabel="negative ELBO", ylim=(min(losses) - 1, losses[0] + 1))

# %% [markdown]
# ## 6. Look at the posterior, and check it
#
# `Predictive` draws paths as it draws anything else. This model is linear and Gaussian, so its exact posterior is at
# hand: `GaussianPath` conditions on the observations in closed form. A guide that cannot be checked is a guess; here
# it can.

# %%
rate, level, scale = (p.detach() for p in parameters())
print(f"rate {rate:.2f} (true 2.0), level {level:.2f} (1.0), scale {scale:.2f} (0.8)")

draws = Predictive(model, guide=guide, num_samples=50 if SMOKE else 500, return_sites=["z"])(y)["z"].squeeze(-1)
low, middle, high = draws.quantile(torch.tensor([0.05, 0.5, 0.95]), dim=0)

law = GaussianPath(OrnsteinUhlenbeck(rate, scale, level, state_dim=1), start, grid)
exact = law.condition(None, 0.2, y)

fig, ax = plt.subplots()
ax.fill_between(grid.times, low, high, alpha=0.3, label="90 % of guide paths")
ax.plot(grid.times, middle, lw=1)
ax.plot(grid.times, exact.mean.squeeze(-1), "k--", lw=1, label="exact mean")
ax.plot(grid.times, z, lw=0.8, label="truth")
ax.plot(times, y, "o", ms=4)
ax.set(xlabel="t", ylabel="z")
ax.legend(frameon=False, ncols=3)

# %% [markdown]
# One series of 15 points says little about three parameters, and it is the posterior *given* the fitted parameters that
# the two curves compare. How far is the guide from it? The negative loss is a lower bound of the log-evidence, and the
# exact law knows that too:

# %%
bound = -torch.tensor([svi.evaluate_loss(y) for _ in range(20 if SMOKE else 200)]).mean()
evidence = law.log_evidence(None, 0.2, y)
print(f"ELBO {bound:.2f}, log-evidence {evidence.item():.2f}")

# %% [markdown]
# ## Takeaways
#
# * `SDEPath(sde, initial, grid)` is a distribution over whole paths; `pyro.sample("z", ...)` makes one site of it.
# * `prior.controlled(control)` is the posterior SDE: same diffusion, so the divergence is finite, and 0 at the start of
#   training.
# * `SVI`, `Predictive`, `poutine` and plates are Pyro's own. `PathELBO` is the quieter loss.
# * Where an exact law exists (`GaussianPath`), compare with it before you trust a guide.
#
# Next: [latent SDEs on real data](02_latent_sde.md), and [why a path has a density](../concepts/path-measures.md).
