# %% [markdown]
# # Choosing the gradient: sticking the landing, and variance
#
# **The question.** `PathELBO` has three estimators of one divergence, and their gradients have the same mean. Which is
# the quietest: far from the posterior, near it, and when the path hangs on other latent variables?
#
# The model in three equations: an Ornstein–Uhlenbeck path, what is seen of it, and the bound to climb.
#
# $$ dz_t = -z_t\,dt + dW_t, \qquad z_0 \sim N(0, \tfrac12) $$
#
# $$ y_n \sim N(z_{t_n}, s^2) $$
#
# $$ E_q[\log p(y \mid z)] - \mathrm{KL}(q \,\|\, p) = \log p(y) - \mathrm{KL}(q \,\|\, p(\cdot \mid y)) $$
#
# Everything is linear and Gaussian, so the exact posterior and the log-evidence are at hand, and every claim below can
# be checked against them.

# %%
import math
import os
from functools import partial

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam

from pyro_sde import GaussianPath, PathELBO, SDEPath, TimeGrid
from pyro_sde.sde import OrnsteinUhlenbeck

SMOKE = "PYRO_SDE_SMOKE" in os.environ  # a few draws only: how the test suite runs this page
plt.rcParams.update({"figure.dpi": 72, "figure.figsize": (7, 3)})
torch.set_default_dtype(torch.float64)
pyro.set_rng_seed(1)
DRAWS = 20 if SMOKE else 1000
ESTIMATORS = ("stl", "closed", "full")
COLOURS = dict(zip((*ESTIMATORS, "Trace_ELBO"), ("C0", "C1", "C2", "C3"), strict=True))

# %% [markdown]
# ## 1. A problem with a known answer
#
# Eight observations, eighty solver steps. `GaussianPath(..., discretisation="euler")` is the same chain of steps as
# `SDEPath`, and can be conditioned exactly: its posterior is the exact posterior of the model on this grid.

# %%
grid = TimeGrid(torch.arange(1, 9) / 2, start=0.0, max_step=0.05)
prior = OrnsteinUhlenbeck(rate=1.0, scale=1.0)
start = dist.Normal(torch.zeros(1), 0.5**0.5).to_event(1)
law = GaussianPath(prior, start, grid, discretisation="euler")
noise = 0.4
y = grid.observed(law.sample()) + noise * torch.randn(8, 1)
evidence = law.log_evidence(None, noise, y).item()
print(f"{grid.num_steps} steps, log-evidence {evidence:.3f}")


def model():
    z = pyro.sample("z", SDEPath(prior, start, grid))
    pyro.sample("y", dist.Normal(grid.observed(z), noise).to_event(2), obs=y)


# %% [markdown]
# ## 2. From the prior to the posterior
#
# The guide is the chain conditioned on *pseudo-observations*: values and a noise that are parameters. With the data and
# their noise it is the exact posterior; with a huge noise it is the prior. So one number takes us from one to the
# other.
#
# To see the gradient of a single draw, we make many draws in one plate and give **each draw its own copy of the
# parameters**: one backward pass then returns one gradient per draw.


# %%
def guide(values, log_noise):  # (S, N, 1) each
    pyro.sample("z", law.condition(None, log_noise.exp(), values))


def draws(function):
    """The function in a plate of draws."""
    return pyro.plate("draws", DRAWS, dim=-1)(function)


def gradients(loss, model, guide, *parameters):
    """Gradients of the loss of single draws, (S, P), and the mean loss."""
    copies = [part.expand(DRAWS, *part.shape).clone().requires_grad_() for part in parameters]
    total = loss.differentiable_loss(draws(model), draws(partial(guide, *copies)))
    rows = torch.autograd.grad(total, copies)
    return torch.cat([row.reshape(DRAWS, -1) for row in rows], -1), total.item() / DRAWS


def variance(rows):
    return rows.var(0).sum().item()  # total variance: over all parameters


table = {kl: [] for kl in ESTIMATORS}
distance = []  # KL(guide, posterior) in nats: log-evidence less ELBO, exact
weights = [0.01, 0.03, 0.1, 0.3, 0.6, 0.8, 0.9, 0.97, 0.99, 1.0]
print("precision of the      KL to the      total variance of the gradient")
print("pseudo-observations   posterior  " + "".join(f"{kl:>12}" for kl in ESTIMATORS))
for weight in weights:
    log_noise = torch.full((8, 1), noise / weight**0.5).log()
    near = law.condition(None, log_noise.exp(), y)
    distance.append(torch.distributions.kl_divergence(near, law.condition(None, noise, y)).item())
    for kl in ESTIMATORS:
        rows, _ = gradients(PathELBO(kl), model, guide, y, log_noise)
        table[kl].append(variance(rows))
    row = "".join(f"{table[kl][-1]:12.2g}" for kl in ESTIMATORS)
    print(f"{weight:>12} of the data {distance[-1]:11.4f}  {row}")

# %% [markdown]
# At the exact posterior the gradient of `"stl"` is zero **for every single draw**, up to round-off; the other two keep
# shaking the parameters, however good the guide. On the way there `"stl"` falls with the distance. In the picture the
# last point is left out: its distance is 0.

# %%
fig, ax = plt.subplots()
for kl in ESTIMATORS:
    ax.loglog(distance[:-1], table[kl][:-1], "o-", ms=4, color=COLOURS[kl], label=kl)
ax.invert_xaxis()
ax.set(xlabel="KL from guide to posterior / nats: training goes to the right", ylabel="total variance")
ax.legend(frameon=False)

# %% [markdown]
# ## 3. Same mean
#
# No estimator is biased: with many draws the means agree within their errors. Here at a guide half-way, for the eight
# values; the last column is the largest difference to `"full"` in standard errors.

# %%
halfway = (0.5 * y, torch.full((8, 1), 2 * noise).log())
means = {}
for kl in ESTIMATORS:
    rows, loss = gradients(PathELBO(kl), model, guide, *halfway)
    means[kl] = rows[:, :8].mean(0), rows[:, :8].std(0) / DRAWS**0.5
for kl, (mean, error) in means.items():
    difference = (mean - means["full"][0]).abs() / (error**2 + means["full"][1] ** 2).sqrt()
    print(f"{kl:7}", [round(value, 1) for value in mean.tolist()], f"{difference.max():.1f}")

# %% [markdown]
# ## 4. A path that hangs on another variable
#
# Now the level $\mu$ of the process is unknown too, $\mu \sim N(0, 1)$, and the path is drawn *given* the level. The
# exact joint posterior is again known: the evidence of the data is Gaussian in $\mu$.
#
# `Trace_ELBO` asks each site for its own gradient. A path site answers with sticking the landing, a Normal does not,
# and no site can know of those that depend on it. `PathELBO` does it **jointly over all sites of the guide**.


# %%
def level_law(level):  # (...) -> law of the path around that level
    around = dist.Normal(level[..., None], 0.5**0.5).to_event(1)
    process = OrnsteinUhlenbeck(1.0, 1.0, level[..., None])
    return SDEPath(process, around, grid), GaussianPath(process, around, grid, discretisation="euler")


def level_model():
    level = pyro.sample("level", dist.Normal(torch.zeros(()), 1.0))
    z = pyro.sample("z", level_law(level)[0])
    pyro.sample("y", dist.Normal(grid.observed(z), noise).to_event(2), obs=y)


def level_guide(mean, log_scale):
    level = pyro.sample("level", dist.Normal(mean, log_scale.exp()))
    pyro.sample("z", level_law(level)[1].condition(None, noise, y))


def log_joint(level):
    return level_law(level)[1].log_evidence(None, noise, y) - 0.5 * level**2


zero = torch.zeros(())
precision = -torch.autograd.functional.hessian(log_joint, zero)
mean = torch.autograd.functional.jacobian(log_joint, zero) / precision
exact = (mean, -0.5 * precision.log())
print(f"posterior of the level: mean {mean:.3f}, standard deviation {precision**-0.5:.3f}")
print("\ntotal variance of the gradient of (mean, log_scale)   exact guide   scale doubled")
for name, loss in (("Trace_ELBO", Trace_ELBO()), *((kl, PathELBO(kl)) for kl in ESTIMATORS)):
    at_exact, _ = gradients(loss, level_model, level_guide, *exact)
    off, _ = gradients(loss, level_model, level_guide, exact[0], exact[1] + math.log(2))
    print(f"{name:52} {variance(at_exact):12.2g} {variance(off):14.3g}")

# %% [markdown]
# Only the joint estimator lands. What `Trace_ELBO` keeps here is the noise of the *level*, upstream of the path.
#
# ## 5. Does it matter for training?
#
# A guide as one would write it: the prior with a control, here affine in the state with two free numbers per step,
# starting at the prior. All three estimators train it from the same start with the same optimiser.


# %%
def control(t, z, rows):
    return rows[..., :1] + rows[..., 1:] * z


def control_guide(rows):
    pyro.sample("z", SDEPath(prior.controlled(control), start, grid, inputs=rows))


def train(kl, steps):
    pyro.clear_param_store()
    torch.manual_seed(2)
    svi = SVI(
        model,
        lambda: control_guide(pyro.param("rows", torch.zeros(grid.num_steps, 2))),
        ClippedAdam({"lr": 0.02}),
        PathELBO(kl),
    )
    history = []
    for step in range(steps):
        svi.step()
        if step % 25 == 0:
            history.append((step, pyro.param("rows").detach().clone()))
    return history


def gap(rows):
    """KL from the guide to the posterior: log-evidence less a bound from many draws of the quietest estimator."""
    with torch.no_grad():
        loss = PathELBO("stl").loss(draws(model), draws(lambda: control_guide(rows.expand(DRAWS, -1, -1))))
    return evidence + loss / DRAWS


runs = {kl: train(kl, 26 if SMOKE else 1000) for kl in ESTIMATORS}
fig, ax = plt.subplots()
for kl, history in runs.items():
    ax.semilogy([step for step, _ in history], [gap(rows) for _, rows in history], color=COLOURS[kl], label=kl)
ax.set(xlabel="step", ylabel="log-evidence - ELBO / nats")
ax.legend(frameon=False)

# %%
print("total variance of the gradient in the run of 'stl'")
print("step   gap/nat " + "".join(f"{kl:>10}" for kl in ESTIMATORS))
history = runs["stl"]
for step, rows in (history[0], history[len(history) // 4], history[-1]):
    found = [variance(gradients(PathELBO(kl), model, control_guide, rows)[0]) for kl in ESTIMATORS]
    print(f"{step:4} {gap(rows):9.2f} " + "".join(f"{value:10.3g}" for value in found))
for kl in ESTIMATORS:
    last = torch.tensor([gap(rows) for _, rows in runs[kl][-10:]])
    print(f"{kl:7} mean gap over the last 250 steps {last.mean():.3f} nats")

# %% [markdown]
# At the prior the path is far from the data, the control has no gradient to land on, and `"stl"` is no better than
# `"closed"`. It becomes the quietest on the way, and `"full"` is the noisiest all along. No run reaches a gap of 0,
# where the variance of `"stl"` would be 0, because a control cannot: its steps keep the variance of the prior's steps,
# and the exact posterior of the chain takes narrower ones. That loss falls with the step; see
# [how fine is fine enough](09_how_fine.md). The gaps of `"stl"` and `"closed"` differ little in the end: with 80 steps
# and Adam the noise of either is small enough. The price of `"full"` can be seen.

# %% [markdown]
# ## Takeaways
#
# * `PathELBO()` is `PathELBO("stl")`: no gradient noise at the exact posterior, little near it.
# * Far away, or with a guide that cannot come near, `"closed"` is as quiet. `"full"` is for tests.
# * With other latent variables above a path, only the joint estimator of `PathELBO` lands. `Trace_ELBO` is right on
#   average, and keeps their noise.
# * If in doubt, measure. `discretisation` prints the variance of all three for your own pair, on your own data.
#
# Next: [how fine is fine enough](09_how_fine.md), and [the three estimators](../concepts/choosing-kl.md).
