# %% [markdown]
# # A deep Markov model of chorales
#
# **The question.** A chorale is a row of chords: at every quarter note some of 88 keys sound, mostly four. Can a hidden
# chain say what comes next, how well in nats per step, and is that the figure that papers report?
#
# The model in three equations: a first state, a chain with a learned non-linear step, and 88 keys that are independent
# given the state.
#
# $$ z_1 \sim N\big(\mu(s),\, \mathrm{diag}\,\sigma^2(s)\big) $$
#
# $$ z_t \mid z_{t-1} \sim N\big(\mu(z_{t-1}),\, \mathrm{diag}\,\sigma^2(z_{t-1})\big) $$
#
# $$ y_{t,k} \mid z_t \sim \mathrm{Bernoulli}\big(\mathrm{logit}^{-1} e_k(z_t)\big), \qquad k = 1, \dots, 88 $$
#
# There is no time between the steps, so this is not an SDE. It is still a path site: guides, bounds, forecasts and
# scores are those of the other pages.

# %%
import os
import time
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import torch

from pyro_sde.data import TimeSeries
from pyro_sde.data.polyphonic import read_polyphonic
from pyro_sde.diagnostics import plot_losses
from pyro_sde.guides import CombinerGuide
from pyro_sde.infer import FitOptions
from pyro_sde.models import DeepMarkovModel

SMOKE = "PYRO_SDE_SMOKE" in os.environ  # a few steps only: how the test suite runs this page
plt.rcParams.update({"figure.dpi": 72, "figure.figsize": (9, 3)})
pyro.set_rng_seed(0)

# %% [markdown]
# ## 1. Piano rolls
#
# `read_polyphonic` reads packed piano rolls; its docstring has the format. The chorales of Bach (Boulanger-Lewandowski
# and others 2012) are not shipped with the package: they are looked for in the folder `$PYRO_SDE_DATA`, as
# `polymusic/JSB_Chorales_train.npz` and `..._valid.npz`. Without them the page runs on made-up pieces: a Markov chain
# of the seven triads of C major, with the root in the bass.


# %%
def made_up(name, number, longest=40):
    """Pieces of a chain that stays on a chord or falls by a third, a fifth or a step."""
    scale = torch.tensor([0, 2, 4, 5, 7, 9, 11])
    move = torch.tensor([0.4, 0.05, 0.15, 0.1, 0.2, 0.0, 0.1])  # of the degree: 0, 1, ... steps up
    values, mask = torch.zeros(number, longest, 88), torch.zeros(number, longest, 88, dtype=torch.bool)
    for piece, length in enumerate(torch.randint(15, longest + 1, (number,))):
        moves = torch.multinomial(move, int(length), replacement=True)
        degree = (torch.randint(7, ()) + moves.cumsum(0)) % 7
        for keys, lift in zip(
            scale[(degree[:, None] + torch.tensor([0, 0, 2, 4])) % 7].T, (27, 39, 39, 39), strict=True
        ):
            values[piece, torch.arange(length), keys + lift] = 1.0
        mask[piece, :length] = True
    times = torch.arange(float(longest)).expand(number, -1)
    last = mask[..., 0].sum(-1, keepdim=True) - 1.0
    return TimeSeries(name, times.minimum(last), values, mask)


folder = Path(os.environ.get("PYRO_SDE_DATA", "")) / "polymusic"
files = [folder / f"JSB_Chorales_{part}.npz" for part in ("train", "valid")]
real = not SMOKE and all(file.exists() for file in files)
if real:
    train, valid = map(read_polyphonic, files)
else:
    train, valid = made_up("train", 12 if SMOKE else 229), made_up("valid", 4 if SMOKE else 76)
for name, series in (("training", train), ("validation", valid)):
    steps = series.valid_times
    keys = series.filled().sum(-1)[steps]
    print(
        f"{name}: {len(series)} {'chorales' if real else 'made-up pieces'}, {steps.sum()} steps, {keys.mean():.2f} keys"
    )

# %% [markdown]
# Steps here are quarter notes. Other papers have eighth notes, where most steps repeat the one before. Scores per step
# of the two must not be compared.
#
# ## 2. What is easy to know
#
# Two predictors without a hidden state, fitted by counting: every key by itself with its own frequency, and every key
# by itself given whether it sounded in the step before. A model has to beat the second.


# %%
def frequencies(rolls, chosen):
    """Share of ones among the chosen steps, per key, with half a count of either kind added."""
    return ((rolls * chosen).sum((0, 1)) + 0.5) / (chosen.expand_as(rolls).sum((0, 1)) + 1.0)


def per_step(probability, series):
    terms = torch.distributions.Bernoulli(probability).log_prob(series.filled())
    return -(terms * series.mask).sum().item() / series.valid_times.sum().item()


def previous(series):
    return torch.nn.functional.pad(series.filled(), (0, 0, 1, 0))[:, :-1]


alone = frequencies(train.filled(), train.mask)
before = previous(train)
after_one, after_zero = (frequencies(train.filled(), train.mask & (before == on)) for on in (1.0, 0.0))
easy = {
    "keys alone": per_step(alone.expand_as(valid.mask), valid),
    "keys alone, given the step before": per_step(torch.where(previous(valid) == 1, after_one, after_zero), valid),
}
for name, nats in easy.items():
    print(f"{name:36} {nats:6.3f} nats per step of the validation pieces")

# %% [markdown]
# ## 3. Train
#
# `DeepMarkovModel` holds prior, guide, emission and likelihood. Its guide, the combiner "ST-R", reads the piece
# backwards and steps through the states forwards, as the exact posterior would. Pieces have different lengths, and no
# work is done on padding.
#
# Two habits for small data: dropout on what the guide reads and a weight decay against overfitting, and a weight of
# the divergence that rises from 0.2 to 1 in the first quarter, so that states are used at all. What the model keeps is
# a moving average of the parameters. The validation pieces are not looked at.

# %%
EPOCHS, BATCH = (1, 6) if SMOKE else (120, 20)
per_epoch = -(-len(train) // BATCH)
state_dim, hidden = (4, (8, 8, 8)) if SMOKE else (64, (128, 100, 192))
guide = CombinerGuide(88, state_dim, hidden=hidden[2], structure="ST-R", dropout=0.1)
model = DeepMarkovModel(state_dim, 88, hidden=hidden, posterior=guide)
started = time.process_time()
result = model.fit(
    train,
    steps=EPOCHS * per_epoch,
    batch_size=BATCH,
    weight_decay=3e-4,
    options=FitOptions(
        kl_warmup=max(1, EPOCHS // 4) * per_epoch,
        kl_start=0.2,
        average=0.99,
        progress=False,
    ),
)
print(f"{EPOCHS} epochs, {len(result.losses)} steps, {time.process_time() - started:.0f} s of CPU time")
ax = plot_losses(result.losses, ax=plt.subplots()[1])
ax.set(ylabel="loss / nats per step")

# %% [markdown]
# ## 4. Two estimates, two averages
#
# The density of a piece is an integral over paths, so any figure is an estimate. The **bound** is never too good on
# average; **importance sampling** with many paths of the guide is a tighter bound of the same density. And there are
# two averages: the sum over all steps divided by their number, which long pieces dominate, and the mean over pieces of
# their means. Papers use both, often without saying so; `evaluate` prints all four, with standard errors over pieces.

# %%
PATHS = 10 if SMOKE else 100
scores = {
    name: model.evaluate(series, num_samples=PATHS, seed=0)
    for name, series in (("training", train), ("validation", valid))
}
for name, score in scores.items():
    print(f"{name}\n{score}\n")

# %%
bound, weighted = scores["validation"].losses
rows = [(name, f"{nats:.3f}", "") for name, nats in easy.items()]
rows.append(
    (f"this page, {EPOCHS} epochs", *(f"{scores['validation'].per_step(name):.3f}" for name in (bound, weighted)))
)
if real:  # of docs/how-to/deep-markov-models.md, and of Krishnan, Shalit, Sontag (2017) on other pieces, the test set
    rows.append(("same model, 600 epochs, 378 s", "7.019", "6.738"))
    rows.append(("wider guide, 1500 epochs, 1023 s", "6.955", "6.647"))
    rows.append(("published, first version, test pieces", "7.033", "6.605"))
    rows.append(("published, last version, test pieces", "6.926", "6.388"))
print(f"{'nats per step, all steps alike':40} {'bound':>8} {'weighted':>9}")
for row in rows:
    print(f"{row[0]:40} {row[1]:>8} {row[2]:>9}")

# %% [markdown]
# Training and validation pieces score nearly alike: after so few epochs the model does not overfit, and more training
# would help. The lower part of the table is what that brings. Those runs also kept the parameters of the best
# validation bound, so their validation figures are a little too good; the figures of this page are of pieces that
# chose nothing. The published ones are of the test pieces, which are other music: near is near, and the last digits
# mean nothing.
#
# ## 5. Listen with the eyes
#
# A new piece is a path of the prior, then keys given the states. The left picture is a validation piece.

# %%
lengths = valid.valid_times.sum(-1)
longest = int(lengths.argmax())
LENGTH = 15 if SMOKE else min(60, int(lengths[longest]))
with torch.no_grad():
    z = model.prior(LENGTH).sample((200,))
    written = model.likelihood(model.emission(z)).sample()


def piano_roll(ax, roll, title):
    ax.imshow(roll.T.numpy(), aspect="auto", origin="lower", cmap="Greys", interpolation="none", vmin=0, vmax=1)
    ax.set(xlabel="quarter note" if real else "step", title=title, ylim=(25, 75))


fig, axes = plt.subplots(1, 3, sharey=True, layout="constrained")
piano_roll(axes[0], valid.values[longest, :LENGTH], "a validation piece")
for ax, roll in zip(axes[1:], written, strict=False):
    piano_roll(ax, roll, "written by the model")
axes[0].set(ylabel="key")

# %% [markdown]
# Do they look alike in numbers, too? Three statistics that the model was not trained on: how many keys sound, how often
# a chord is repeated as it is, and how often two neighbouring keys sound at once, which a chorale avoids.


# %%
def character(rolls, mask):
    both = mask[:, 1:] & mask[:, :-1]
    repeated = (rolls[:, 1:] == rolls[:, :-1]).all(-1)[both].float().mean()
    sounding = rolls.sum(-1)[mask]
    clash = ((rolls[..., 1:] * rolls[..., :-1]).sum(-1) > 0)[mask].float().mean()
    return f"{sounding.mean():.2f} ± {sounding.std():.2f} keys, {repeated:.3f} repeated, {clash:.3f} with a semitone"


print("validation pieces:", character(valid.filled(), valid.valid_times))
print("by the model:     ", character(written, torch.ones(written.shape[:2], dtype=torch.bool)))

# %% [markdown]
# The spread of the number of keys tells most. Given the state the keys are independent, so a state that is not sure of
# a chord mixes it with others, or loses a voice; what is printed above is how far that goes after so little training.
#
# ## 6. Go on from a beginning
#
# `forecast` draws paths of the guide up to the last observation, and goes on with the prior. Here the first half of the
# picture is given, for every validation piece that is long enough; grey is the share of forecasts in which a key
# sounds. The further ahead, the more should the shares be those of all pieces, whatever came before. Here are nats per
# step of the **keys one by one**, by the distance from the last step given, beside those of the frequencies.

# %%
GIVEN, AHEAD, DRAWS = LENGTH // 2, LENGTH - LENGTH // 2, 20 if SMOKE else 200
chosen = valid.select((lengths >= LENGTH).nonzero()[:, 0].tolist())
head = TimeSeries("heads", chosen.times[:, :GIVEN], chosen.values[:, :GIVEN], chosen.mask[:, :GIVEN])
later = GIVEN + torch.arange(float(AHEAD)).expand(len(chosen), -1)
ahead = model.forecast(head, later, num_samples=DRAWS, seed=0)
shares = (ahead.y.sum(0) + 0.5) / (DRAWS + 1)  # (B, AHEAD, 88)


def nats(probability):
    target = chosen.values[:, GIVEN:LENGTH]
    return -torch.distributions.Bernoulli(probability).log_prob(target).sum(-1).mean(0)


distances = [k for k in (1, 2, 4, 8, 16, 30) if k <= AHEAD]
print(f"{len(chosen)} pieces, steps ahead " + "".join(f"{k:7}" for k in distances))
for name, row in (("forecast", nats(shares)), ("keys alone", nats(alone.expand_as(shares)))):
    print(f"{name:22} " + "".join(f"{row[k - 1]:7.2f}" for k in distances))

# %% [markdown]
# These figures are not those of section 4: there a step is a whole chord, given all before it. Shares of single keys do
# not know which keys go together, and that is a large part of what a model of chords can know. Of single keys, a
# forecast says little more than the frequencies do.

# %%
first = int(chosen.valid_times.sum(-1).argmax())
fig, axes = plt.subplots(1, 2, sharey=True, layout="constrained")
piano_roll(axes[0], chosen.values[first, :LENGTH], "the piece")
piano_roll(axes[1], torch.cat([head.values[first], shares[first]]), "given up to the line, then forecast")
axes[0].set(ylabel="key")
for ax in axes:
    ax.axvline(GIVEN - 0.5, lw=0.8)

# %% [markdown]
# ## Takeaways
#
# * `DeepMarkovModel` is the chain, its guide and its keys in one object; `fit`, `evaluate`, `forecast` are those of
#   every model here.
# * Say which figure you report: bound or importance-sampled, per step or per piece, quarter or eighth notes, and what
#   chose the parameters.
# * Compare with counting before you compare with papers.
# * Look at what the model writes: a good score per step does not make a chord.
#
# Next: [discrete-time models](../how-to/deep-markov-models.md) with trained figures of this model and its relatives,
# [judge a fit](../how-to/judge-a-fit.md), and [a latent SDE](02_latent_sde.md) where the time between steps matters.
