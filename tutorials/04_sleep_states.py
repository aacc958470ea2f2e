# %% [markdown]
# # Sleep states from a heart rate: slow variables behind a fast series
#
# **The question.** An infant's heart rate was recorded every 16 seconds for a night. Sleep states last minutes to
# hours. Can they be found from the heart rate alone, without a label, and what does an expert say, who saw the brain
# waves?
#
# The model in three equations: a slow path $a = (\mu, \log \sigma)$ among K wells, the heart rate b that it drives, and
# what is seen, with $h$ = 16 s.
#
# $$ da = \tfrac12\, s^2\, \nabla \log p_K(a)\,dt + s\,dW, \qquad p_K(a) = \sum_{k=1}^K w_k\, N(a;\, m_k, v_k) $$
#
# $$ db = \kappa(a)\,(\mu - b)\,dt + h^{-1/2}\,\sigma\,dW' $$
#
# $$ y_n = b(t_n) $$
#
# In quiet sleep the heart rate is steady, in active sleep it scatters, awake it is high: level μ and size σ of the
# fluctuations are auxiliary variables that make a simple law of the heart rate rich. The mixture $p_K$ is the
# stationary law of the slow path, so it stays in a well for long, and the wells are the states.

# %%
import math
import os
import time

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.nn import PyroParam
from pyro.optim import ClippedAdam

from pyro_sde import PathELBO, SDEPath, TimeGrid
from pyro_sde.data import load
from pyro_sde.diagnostics import plot_losses
from pyro_sde.distributions import MultiScalePath
from pyro_sde.guides import FreeSites, GaussianMarkov
from pyro_sde.ops import Windows
from pyro_sde.sde import SDE, FineSDE, OrnsteinUhlenbeck

SMOKE = "PYRO_SDE_SMOKE" in os.environ  # a few steps only: how the test suite runs this page
plt.rcParams.update({"figure.dpi": 72, "figure.figsize": (9, 3)})
torch.set_default_dtype(torch.float64)
pyro.set_rng_seed(0)
STEP, FINE_STEPS = 16 / 60, 4  # minutes between two values; values per step of the slow path

# %% [markdown]
# ## 1. The night
#
# `load` finds the two series on this machine, or downloads them. If it cannot, the page runs on a made-up night of two
# states. The logarithm of the heart rate is standardised. The expert's states wait until section 4.


# %%
def made_up(number):
    """Log heart rates and states of a night that is quiet and wild by turns, for half an hour or so each."""
    state = (torch.rand(number) < 1 / 100).cumsum(0) % 2
    values, noise = torch.zeros(number), torch.randn(number)
    for n in range(1, number):
        values[n] = 0.6 * values[n - 1] + (0.1 + 0.6 * state[n]) * noise[n]
    return values, 1 + 2 * state


real = not SMOKE
if real:
    try:
        raw = load("baby_ecg").values.flatten()
    except (OSError, ImportError) as error:
        print(f"no data ({type(error).__name__}): a made-up night instead")
        real = False
if not real:
    raw, made_up_states = made_up(201 if SMOKE else 2048)
count = (len(raw) - 1) // FINE_STEPS * FINE_STEPS + 1  # whole steps of the slow path
y = raw[:count].log() if real else raw[:count]
y = (y - y.mean()) / y.std()
hours = STEP * torch.arange(count) / 60
print(f"{count} values in {hours[-1]:.1f} hours")
fig, ax = plt.subplots()
ax.plot(hours, raw[:count], lw=0.5)
ax.set(xlabel="hour", ylabel="beats per minute" if real else "made-up log heart rate")

# %% [markdown]
# ## 2. Two scales
#
# The slow path lives on a coarse grid with steps of 64 s, the fine one has a row for every 16 s. `FineSDE` is an SDE
# whose coefficients see the slow state, and `MultiScalePath` its law given a slow path. `Windows` say where the fine
# path exists: here one window, the night. The fine path is observed without error, so it is the data.


# %%
class Night(torch.nn.Module):
    """Wells of the slow states, and the heart rate that they drive."""

    def __init__(self, centre, width, share):  # (K, 2), (K, 2), (K,)
        super().__init__()
        self.centre, self.log_width = torch.nn.Parameter(centre), torch.nn.Parameter(width.log())
        self.weight = torch.nn.Parameter(share.log())
        self.log_speed = torch.nn.Parameter(torch.full((2,), math.log(0.2)))  # per square root of a minute
        self.pace = torch.nn.Linear(2, 1)

    def shares(self, a):
        """Probability of each well at slow states (..., 2)."""
        apart = (a.unsqueeze(-2) - self.centre) / self.log_width.exp()
        return (self.weight - 0.5 * apart.square().sum(-1) - self.log_width.sum(-1)).softmax(-1)

    def coarse(self):
        def drift(t, a):
            pull = (self.centre - a.unsqueeze(-2)) / (2 * self.log_width).exp()
            return 0.5 * (2 * self.log_speed).exp() * (self.shares(a).unsqueeze(-1) * pull).sum(-2)

        return SDE(drift, lambda t, a: self.log_speed.exp().expand_as(a))

    def fine(self):
        def drift(t, b, a):
            return self.pace(a).sigmoid() / STEP * (a[..., :1] - b)

        return FineSDE(drift, lambda t, b, a: a[..., 1:].exp() / STEP**0.5)


points = (count - 1) // FINE_STEPS + 1
grid = TimeGrid(STEP * FINE_STEPS * torch.arange(float(points)))
night_long = Windows(grid, grid.times[:1], grid.times[-1:], fine_steps=FINE_STEPS)
first, start = dist.Normal(torch.zeros(2), 2.0).to_event(1), dist.Normal(torch.zeros(1), 1.0).to_event(1)


def pair(night, posterior, windows):
    seen = y[windows.fine_places, None]  # the values in the windows

    def prior():
        return SDEPath(night.coarse(), first, windows.coarse)

    def model():
        pyro.module("night", night)
        a = pyro.sample("a", prior())
        pyro.sample("b", MultiScalePath(night.fine(), start, a, windows), obs=seen)

    def guide():
        pyro.module("posterior", posterior)
        return pyro.sample("a", posterior(prior()))

    return model, guide


# %% [markdown]
# The guide of the slow path is a Gaussian Markov chain: an Ornstein–Uhlenbeck reference with a learned pseudo-
# observation at every coarse point. It starts at mean and logarithmic size of the four values of each step, moved
# towards their means over the night. It is Gaussian and knows of no wells; its mean will choose among them.

# %%
parts = y[1:].reshape(points - 1, FINE_STEPS)
features = torch.stack([parts.mean(-1), parts.std(-1).clamp(min=0.05).log()], -1)
features = torch.cat([features, features[-1:]])
begin = torch.lerp(features.mean(0), features, torch.tensor([0.8, 0.5]))


def gaussian_guide(value):
    positive = dist.constraints.positive
    sites = FreeSites(points, 2, precision=3.0).double()
    with torch.no_grad():
        sites.value.copy_(value)
    rate, scale = (PyroParam(torch.full((2,), size), positive) for size in (1 / 15, 0.2))
    return GaussianMarkov(sites, reference=OrnsteinUhlenbeck(rate, scale, value.mean(0)))


def train(night, posterior, windows, steps, rate):
    pyro.clear_param_store()
    model, guide = pair(night, posterior, windows)
    svi = SVI(model, guide, ClippedAdam({"lr": rate, "lrd": 0.05 ** (1 / steps)}), PathELBO())
    started = time.process_time()
    losses = [svi.step() for _ in range(steps)]
    spent = time.process_time() - started
    with torch.no_grad():
        bound = -sum(PathELBO().loss(model, guide) for _ in range(50)) / 50
        path = posterior(SDEPath(night.coarse(), first, windows.coarse)).marginals()
    wells = len(night.weight)
    print(f"{wells} well{'s' * (wells > 1)}: bound {bound:.1f}, {1e3 * spent / steps:.0f} ms a step, {spent:.0f} s")
    return losses, path


# %% [markdown]
# ## 3. One well, then three
#
# With one well the slow path is an Ornstein–Uhlenbeck process: level and size wander, and there are no states. We
# group its posterior mean, and let each group be a well to begin with. Then all is trained on, and a point belongs to
# the most probable well at the posterior mean.

# %%
STEPS = 5 if SMOKE else 1000
alone = Night(begin.mean(0, keepdim=True), begin.std(0, keepdim=True), torch.ones(1)).double()
posterior = gaussian_guide(begin)
losses, (mean, _) = train(alone, posterior, night_long, STEPS, 0.02)
ax = plot_losses(losses, ax=plt.subplots(figsize=(9, 2))[1])


# %%
def groups(path, number):
    """Group of each point, by the nearest of `number` means (Lloyd's algorithm from quantiles of the sum)."""
    x = (path - path.mean(0)) / path.std(0)
    order = x.sum(-1).argsort()
    centre = x[order[((torch.arange(number) + 0.5) / number * len(x)).long()]]
    for _ in range(50):
        nearest = torch.cdist(x, centre).argmin(-1)
        centre = torch.stack([x[nearest == k].mean(0) for k in range(number)])
    return nearest


def divided(path, number):
    label = groups(path, number)
    chosen = [path[label == k] for k in range(number)]
    share = torch.tensor([len(part) / len(path) for part in chosen])
    width = torch.stack([part.std(0).clamp(min=0.05) for part in chosen])
    return Night(torch.stack([part.mean(0) for part in chosen]), width, share)


night = divided(mean, 3).double()
with torch.no_grad():
    night.log_speed.copy_(alone.log_speed)
    night.pace.load_state_dict(alone.pace.state_dict())
losses, (mean, covariance) = train(night, posterior, night_long, STEPS // 2, 0.01)
with torch.no_grad():
    found = night.shares(mean).argmax(-1)  # (points,)
for k, (level, size) in enumerate(night.centre.tolist()):
    stays = (found[1:] == k) & (found[:-1] == k)
    print(f"well {k}: level {level:+.2f}, size {math.exp(size):.2f}, {(found == k).double().mean():.0%} of the night")

# %%
deviation = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
coarse_hours = grid.times / 60
fig, axes = plt.subplots(2, 1, sharex=True, figsize=(9, 4.5))
for i, (ax, name) in enumerate(zip(axes, ("level", "log size"), strict=True)):
    ax.plot(coarse_hours, features[:, i], ".", ms=2, color="0.75")
    ax.fill_between(coarse_hours, mean[:, i] - 2 * deviation[:, i], mean[:, i] + 2 * deviation[:, i], alpha=0.3)
    for k in range(3):
        ax.plot(coarse_hours[found == k], mean[found == k, i], ".", ms=3, color=f"C{k + 1}", label=f"well {k}")
    ax.set(ylabel=name)
ax.set(xlabel="hour")
ax.legend(frameon=False, ncols=3)

# %% [markdown]
# Grey: mean and logarithmic size of the four values of each step. Band: two standard deviations of the slow path.
#
# ## 4. What the expert says
#
# Now the labels: 1 quiet sleep, 2 in between, 3 active sleep, 4 awake. Two scores do not care how states are called:
# the table of pairs, and the adjusted Rand index, which is 1 for the same grouping and 0 on average for a random one.

# %%
expert = load("baby_sleep").values.flatten().long()[:count] if real else made_up_states[:count]
driven = ((torch.arange(count) - 1) // FINE_STEPS).clamp(min=0)  # the coarse point that drives each value


def table_of(label, where=slice(None)):
    states, label = expert[where], label[where]
    return torch.stack([torch.bincount(label[states == s], minlength=3) for s in expert.unique()]).double()


def adjusted_rand(label, where=slice(None)):
    table = table_of(label, where)
    both, rows, columns, total = (
        (n * (n - 1) / 2).sum() for n in (table, table.sum(1), table.sum(0), table.sum().reshape(1))
    )
    chance = rows * columns / total
    return ((both - chance) / ((rows + columns) / 2 - chance)).item()


print("share of the values of each state in each well")
for s, row in zip(expert.unique().tolist(), table_of(found[driven]), strict=True):
    print(f"expert's state {s} ({row.sum():4.0f} values): " + "".join(f"{share:6.2f}" for share in row / row.sum()))

# %%
scores = {
    "3 groups of the raw means and sizes": groups(begin, 3)[driven],
    "3 wells, this page": found[driven],
}
for name, label in scores.items():
    print(f"{name:52} {adjusted_rand(label):6.3f}")
if real:  # of docs/how-to/sleep-states.md: longer training, five seeds, all 2048 values
    print(f"{'3 wells, mean of five longer runs':52} {0.366:6.3f}")
    print(f"{'Gaussian hidden Markov model, 2 states':52} {0.318:6.3f}")
    print(f"{'autoregressive hidden Markov model, 3 states':52} {0.326:6.3f}")

# %%
fig, axes = plt.subplots(2, 1, sharex=True, figsize=(9, 3))
for ax, label, name in zip(axes, (expert, found[driven]), ("expert", "well"), strict=True):
    ax.step(hours, label, lw=0.8)
    ax.set(ylabel=name, yticks=label.unique().tolist())
axes[1].set(xlabel="hour")

# %% [markdown]
# The heart rate says something about sleep and not very much: the expert had the brain waves. It is one night of one
# infant and one run, and the how-to page groups by another rule, so differences of a few hundredths mean little. The
# state in between goes to a neighbour, and so does a third of the time awake. That three wells have a larger bound
# than one does not prove that there are three states, either: the how-to page finds that the gain does not pay for
# their parameters.
#
# ## 5. If most of the night were missing
#
# Suppose the recorder had run for 8 minutes out of every 24 or so. The slow path still covers the night. The fine one
# is needed in the windows only: behind a gap the heart rate has a Gaussian law given the slow path, in closed form,
# since its drift is linear in b. So two thirds of the fine steps are neither seen nor simulated.

# %%
coarse_step = STEP * FINE_STEPS
every, length = round(24 / coarse_step), round(8 / coarse_step)  # in coarse steps
starts = torch.arange(0, points - length, every)
ends = starts + length
edges = grid.times[torch.stack([starts, ends], -1).flatten()]
patchy = TimeGrid(edges, start=0.0, end=grid.times[-1].item(), max_step=1.001 * coarse_step)
bursts = Windows(patchy, grid.times[starts], grid.times[ends], fine_steps=FINE_STEPS)
print(bursts)
inside = torch.zeros(points, dtype=torch.bool)
for s in starts:
    inside[s : s + length] = True
hidden = torch.where(inside[:, None], begin, begin[inside].mean(0))  # the guide must not know what was not seen
sparse_night, sparse_posterior = divided(hidden[inside], 3).double(), gaussian_guide(hidden)
_, (sparse_mean, sparse_covariance) = train(sparse_night, sparse_posterior, bursts, STEPS // 2, 0.02)
with torch.no_grad():
    sparse_found = sparse_night.shares(sparse_mean).argmax(-1)[driven]
print("adjusted Rand index with the expert    from a third   from the whole night")
for name, where in (("values in the windows", inside[driven]), ("values that were not seen", ~inside[driven])):
    print(f"{name:36} {adjusted_rand(sparse_found, where):14.3f} {adjusted_rand(found[driven], where):22.3f}")

# %%
fig, ax = plt.subplots()
deviation = sparse_covariance.diagonal(dim1=-2, dim2=-1).sqrt()[:, 1]
ax.fill_between(coarse_hours, sparse_mean[:, 1] - 2 * deviation, sparse_mean[:, 1] + 2 * deviation, alpha=0.3)
ax.plot(coarse_hours, mean[:, 1], lw=0.8, label="from the whole night")
ax.plot(coarse_hours, sparse_mean[:, 1], lw=0.8, label="from a third of it")
ax.set(xlabel="hour", ylabel="log size")
ax.legend(frameon=False)

# %% [markdown]
# The band is wider in every gap, as it should be: there the slow path follows its own law. The states of the windows
# agree less with the expert than they did with their surroundings known, and between the windows the mean can only
# lead from one to the next: a quiet spell that fits into a gap is lost.

# %% [markdown]
# ## Takeaways
#
# * A slow path site with a `MultiScalePath` given it is a model with two scales; each has its own grid.
# * Wells in the drift of the slow path are states with a length of stay, learned by SVI without labels.
# * `GaussianMarkov` with one pseudo-observation per coarse point is a guide that needs no simulation step by step.
# * `Windows` skip the fine scale where nothing was seen, at no bias if the fine drift is linear in b.
# * Open the labels last, and compare with a simpler method: the gain over plain grouping is what the model is worth.
#
# Next: [sleep states](../how-to/sleep-states.md) with hidden Markov models on the same night,
# [multiple scales](../how-to/multiple-scales.md), and [regimes that switch](../how-to/regime-switching.md).
