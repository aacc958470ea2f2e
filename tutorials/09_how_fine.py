# %% [markdown]
# # How fine is fine enough? Step size and discretisation bias
#
# **The question.** The path of an SDE is simulated in steps, and its density is that of the steps. What does the step
# do to paths, to the evidence and to the bound, and which step is small enough?
#
# The model in three equations: a particle in two wells at $\pm 1$, what is seen of it, and the chain that stands for it
# on a grid with steps $h$.
#
# $$ dz_t = 4 z_t (1 - z_t^2)\,dt + dW_t, \qquad z_0 \sim N(-1, 0.2^2) $$
#
# $$ y_n \sim N(z_{t_n}, 0.3^2) $$
#
# $$ z_{k+1} \mid z_k \sim N\big(z_k + 4 z_k (1 - z_k^2)\,h,\; h\big) $$
#
# The state has one dimension, so the evidence of the chain can be computed to many digits by quadrature, for every
# step. That is what the estimates below are held against.

# %%
import logging
import os
import time

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.optim import ClippedAdam

from pyro_sde import PathELBO, SDEPath, TimeGrid
from pyro_sde.diagnostics import discretisation
from pyro_sde.nn import ControlNet, GRUEncoder
from pyro_sde.ops.brownian import VirtualBrownianTree
from pyro_sde.sde import DoubleWell
from pyro_sde.solvers import EulerMaruyama, LocalLinearisation

SMOKE = "PYRO_SDE_SMOKE" in os.environ  # a few steps only: how the test suite runs this page
plt.rcParams.update({"figure.dpi": 72, "figure.figsize": (7, 3)})
torch.set_default_dtype(torch.float64)
pyro.set_rng_seed(0)
logging.getLogger("pyro").setLevel(logging.WARNING)  # no notes on guessed plates

prior = DoubleWell()
start = dist.Normal(-torch.ones(1), 0.2).to_event(1)
END = 4.0

# %% [markdown]
# ## 1. What the step does to a path
#
# A `VirtualBrownianTree` is one Brownian motion per seed, on any grid. So the same path can be simulated with coarse
# and with fine steps, and the two differ by the step alone. The error of a path is its root mean square over time; the
# table has the median over paths, since on top between the wells a small error decides for the other well.

# %%
series = 20 if SMOKE else 200
tree = VirtualBrownianTree(0.0, END, 1, seed=torch.arange(series))
at = dist.Delta(-torch.ones(series, 1), event_dim=1)
base = TimeGrid(torch.tensor([END]), start=0.0, max_step=0.1)


def path(cut):
    """The paths on the grid whose steps of 0.1 are cut in so many."""
    return SDEPath(prior, at, base.refine(cut), brownian=tree).sample()


finest, errors = path(64), []
for cut in (1, 2, 4, 8):
    errors.append((path(cut) - finest[:, :: 64 // cut]).square().mean((1, 2)).sqrt().median().item())
    ratio = f"   {errors[-2] / errors[-1]:.2f} times less" if len(errors) > 1 else ""
    print(f"step {0.1 / cut:6}: path error {errors[-1]:.4f}{ratio}")

fig, ax = plt.subplots()
crosses = int((finest[..., 0].amax(1)).argmax())
for cut in (1, 4, 64):
    ax.plot(base.refine(cut).times, path(cut)[crosses, :, 0], lw=1, label=f"h = {0.1 / cut:.2g}")
ax.set(xlabel="t", ylabel="z", title="one Brownian motion, three steps")
ax.legend(frameon=False)

# %% [markdown]
# Once the step is small, half the step is half the error: the noise is additive, and Euler–Maruyama then has strong
# order 1. There is a limit on the other side too. The drift is cubic, and beyond $|z| = \sqrt{1 + 1/2h}$ a step lands
# further out on the other side than it began. That is 2.4 for steps of 0.1, which paths hardly ever reach, and 1.9 for
# steps of 0.2:

# %%
try:
    coarse = TimeGrid(torch.tensor([END]), start=0.0, max_step=0.2)
    print(SDEPath(prior, at, coarse, brownian=tree).sample().abs().max())
except ValueError as error:
    print(error)

# %% [markdown]
# ## 2. What the step does to the evidence
#
# Data from a path with steps far below all that follow. The chain of transition densities comes from `SDEPath.log_prob`
# itself, between all pairs of 320 states.

# %%
times = torch.arange(1, 9) / 2
fine = TimeGrid(times, start=0.0, max_step=0.001)
pyro.set_rng_seed(3)
noise = 0.3
z = SDEPath(prior, start, fine).sample()
y = fine.observed(z) + noise * torch.randn(8, 1)

states = torch.linspace(-2.4, 2.4, 120 if SMOKE else 320)[:, None]
width = (states[1] - states[0]).item()


def transition(step, solver):
    """Transition probabilities from every state to every state, over one step."""
    law = SDEPath(prior, start, TimeGrid(torch.tensor([0.0, step])), solver=solver)
    pairs = torch.stack(torch.broadcast_tensors(states[:, None], states[None]), -2)
    return (law.log_prob(pairs) - start.log_prob(states)[:, None]).exp() * width


def log_evidence(matrix, noise, y):
    """Exact log-evidence of the chain, by passing the law of the state along. matrix: over one gap of 0.5."""
    law, total = start.log_prob(states).exp() * width, 0.0
    for value in y:
        law = (law @ matrix) * dist.Normal(states[:, 0], noise).log_prob(value).exp()
        total += law.sum().log().item()
        law = law / law.sum()
    return total


def gap_matrix(step, solver=None):
    return torch.linalg.matrix_power(transition(step, solver or EulerMaruyama()), round(0.5 / step))


ALL = (0.1, 0.05, 0.025, 0.0125, 0.00625)
euler = {step: gap_matrix(step) for step in ALL}
exact = {step: log_evidence(matrix, noise, y) for step, matrix in euler.items()}
limit = 2 * exact[ALL[-1]] - exact[ALL[-2]]  # Richardson: the bias is linear in the step
for step, value in exact.items():
    print(f"step {step:7}: log-evidence {value:.4f}, bias {value - limit:+.4f}")
print(f"step       0: log-evidence {limit:.4f}")

# %% [markdown]
# The bias is proportional to the step. No guide enters here: this is what the *model* on a grid says about the data.
#
# ## 3. What the step does to the bound, without knowing the answer
#
# A guide as one would write it, with an encoder, trained with steps of 0.05. Model and guide take the grid as an
# argument and have no parameter per step; so the trained pair can be run on any grid.

# %%
encoder = GRUEncoder(value_dim=1, state_dim=1, context_dim=8, hidden=32, initial_scale=0.2)
control = ControlNet(state_dim=1, context_dim=8, hidden=(64,))


def model(grid):
    z = pyro.sample("z", SDEPath(prior, start, grid))
    pyro.sample("y", dist.Normal(grid.observed(z), noise).to_event(2), obs=y)


def guide(grid):
    pyro.module("encoder", encoder)
    pyro.module("control", control)
    q0, context, _ = encoder(grid, y, torch.ones(8, 1, dtype=torch.bool))
    pyro.sample("z", SDEPath(prior.controlled(control), q0, grid, inputs=context))


def train(step, steps):
    grid = TimeGrid(times, start=0.0, max_step=step)
    optimiser = ClippedAdam({"lr": 0.02, "lrd": 0.1 ** (1 / steps)})
    svi = SVI(model, guide, optimiser, PathELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=0))
    for _ in range(steps):
        svi.step(grid)
    return grid


grid = train(0.05, 3 if SMOKE else 1500)
report = discretisation(model, guide, grid, num_particles=100 if SMOKE else 4000)
print(report)

# %% [markdown]
# Read the first table. All grids are driven by the same Brownian paths, so the *bias* is known better than the bounds
# it is a difference of. It is the bias of model and guide together. Here the exact evidence is known, so we can tell
# the two apart:

# %%
print("step      ELBO      exact evidence   gap     bias of ELBO   of the evidence")
for point in report.points:
    value = exact[point.step]
    print(
        f"{point.step:<8g} {point.elbo.value:8.3f} {value:12.3f} {value - point.elbo.value:12.3f}"
        f" {point.bias.value:11.3f} {value - limit:15.3f}"
    )

# %% [markdown]
# Most of the bias of this bound is not the model's but the **guide's**: the gap to its posterior shrinks with the step.
# `prior.controlled` keeps the diffusion of the prior, so every step of the guide has the variance $h$ of the prior. The
# exact posterior of the *chain* takes narrower steps before an observation. With $L$ the information of what comes
# about the state and $x = h L$, even the best control loses $\frac12 (x - \log(1 + x))$ at each step. Near a well the
# drift has slope $-8$, and $L = e^{-16\tau} / (s^2 + (1 - e^{-16\tau}) / 16)$ at the time $\tau$ before an observation.
# That adds up to

# %%
for point in report.points:
    tau = torch.arange(0.0, 0.5, point.step)
    x = point.step * torch.exp(-16 * tau) / (noise**2 + (1 - torch.exp(-16 * tau)) / 16)
    print(f"step {point.step:<7g} loss of the best control, about {len(y) * 0.5 * (x - x.log1p()).sum():.2f} nats")

# %% [markdown]
# which vanishes with the step, and explains most of the change of the gap. What is left at step 0 is the network's.
#
# ## 4. Which step?
#
# The recommended step keeps the bias within `tolerance`, 0.05 nats per series if nothing is said. If what you need is
# the path, or a comparison of models whose guides are of the same kind, less will do. What no step removes is the rest
# of the gap, and training does: here is the same network, trained on with the smaller step.

# %%
known = {point.step: point.elbo for point in report.points}
before = time.process_time()
finer = train(0.0125, 3 if SMOKE else 300)
seconds = time.process_time() - before
with torch.no_grad():
    loss = PathELBO(num_particles=100 if SMOKE else 4000, vectorize_particles=True, max_plate_nesting=0)
    after = -loss.loss(model, guide, finer)
print(f"run with 0.05:   {known[0.05]}")
print(f"run with 0.0125: {known[0.0125]}")
print(f"trained on with 0.0125 ({seconds:.0f} s of CPU): {after:.3f}; exact evidence {exact[0.0125]:.3f}")

# %% [markdown]
# ## 5. When to refine: precise observations and strong drifts
#
# Two ratios decide. The drift must not change much over a step, $|f'| h \ll 1$: that is the bias of the model. And the
# noise of a step should be below the noise of an observation, $\sigma \sqrt h < s$: that is the loss of the guide.
#
# Is a better step a way out? `LocalLinearisation` takes the exact step of the linearised drift. It has a density as
# well, so it can be the solver of model and guide alike. Here is the exact evidence of both chains, for the same path
# seen with more and more precision:

# %%
linear = {step: gap_matrix(step, LocalLinearisation()) for step in (0.05, 0.025)}
print("bias of the log-evidence")
print("noise s   Euler 0.05   Euler 0.025   local linearisation 0.05   0.025")
for s in (1.0, 0.3, 0.1):
    seen = fine.observed(z) + s / noise * (y - fine.observed(z))
    best = 2 * log_evidence(euler[0.00625], s, seen) - log_evidence(euler[0.0125], s, seen)
    biases = [log_evidence(by[step], s, seen) - best for by in (euler, linear) for step in (0.05, 0.025)]
    print(f"{s:7} {biases[0]:+12.3f} {biases[1]:+13.3f} {biases[2]:+26.3f} {biases[3]:+7.3f}")

# %% [markdown]
# Not here. Both steps are of weak order 1, and their biases differ in sign and size with the data: a linearised drift
# knows the slope of the true one and not its curvature. A solver can remove the danger of large steps where the drift
# is stiff. It is the finer grid that removes the bias: half the step, about half the bias, in every row.

# %% [markdown]
# ## Takeaways
#
# * A path law on a grid is a chain with a density of its own. Its evidence differs from that of the SDE by about a
#   constant times the step, once the step is small; before that, paths may explode, and the error says where.
# * Let model and guide take the grid as an argument and have no parameter per step. Then `discretisation` runs the
#   trained pair on finer grids, extrapolates to step 0 and names a step.
# * The bias of a bound has two parts. Here the guide's was the larger one: steps with the prior's variance are too wide
#   for precise observations.
# * Refine where the drift bends within a step, and where observations are more precise than the noise of a step.
#
# Next: [choose the step](../how-to/discretisation.md), [choosing a solver](../concepts/choosing-a-solver.md), and
# [steps chosen by a pilot run](../how-to/adaptive-grids.md).
