# %% [markdown]
# # Training on several processes
#
# **The question.** You have many series, and one process is too slow. Can several processes share the work without
# changing the result, what do you gain, and what happens when one of them dies?
#
# The model in three equations: a latent SDE, what you see of it, and a loss that is cut into shards of series.
#
# $$ dz_t = f(z_t)\,dt + \sigma\,dW_t, \qquad z_0 \sim N(m, s^2) $$
#
# $$ y_n \sim N(\mathrm{decoder}(z_{t_n}), r^2) $$
#
# $$ \mathcal{L} = \sum_{s=1}^{S} \mathcal{L}_s(\theta; \varepsilon_{\text{seed}, \text{step}, s}) $$
#
# The noise of a shard is named by seed, step and number of the shard. So the loss depends on the number of shards S,
# and not on which process works on which of them.

# %%
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

SMOKE = "PYRO_SDE_SMOKE" in os.environ  # a few steps only: how the test suite runs this page
plt.rcParams.update({"figure.dpi": 72, "figure.figsize": (7, 3)})
torch.set_num_threads(1)  # here, as in the processes to come
STEPS, SERIES = (4, 16) if SMOKE else (120, 256)

# %% [markdown]
# ## 1. A training script
#
# Processes need a file that they can run. It is an ordinary training script with two differences: it starts
# `torch.distributed` if `torchrun` runs it, and its data are a *function of indices*, so that a rank asks for its own
# series only. The last lines kill rank 1 in the middle of the first attempt, if the environment says so: for section
# 4.

# %%
SCRIPT = """
import os
import sys
import time
from pathlib import Path

import torch
from torch import distributed

from pyro_sde import LatentSDE, TimeGrid
from pyro_sde.data import synthetic
from pyro_sde.infer.fit import FitOptions
from pyro_sde.infer.fit_sharded import fit_sharded
from pyro_sde.infer.sharded_elbo import ShardedELBO

steps, size, shards, name = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
rank = int(os.environ.get("RANK", 0))
if "RANK" in os.environ:
    distributed.init_process_group("gloo")

torch.manual_seed(0)
series = synthetic.ornstein_uhlenbeck(seed=0, num_series=size, num_times=20).standardise()[0].to(torch.float64)
latent = LatentSDE(state_dim=2, value_dim=1).double()  # so that only round-off is left to differ


def batch(indices):
    some = series.select(indices)
    return TimeGrid(some.times, max_step=0.5), some.values, some.mask


stamps = []


def watch(step):
    stamps.append((time.perf_counter(), time.process_time()))
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
    if "KILL" in os.environ and first and rank == 1 and step.step == int(os.environ["KILL"]):
        os._exit(9)


batch_size = max(size // 4, shards)
loss = ShardedELBO(latent.model, latent.guide, batch, num_shards=shards, scale=1 / (20 * batch_size))
options = FitOptions(checkpoint=Path(name + ".pt"), checkpoint_every=10, resume=True, progress=False, callback=watch)
result = fit_sharded(loss, size, steps=steps, batch_size=batch_size, options=options)
if rank == 0:
    weights = torch.cat([p.detach().flatten() for p in latent.parameters()])
    wall, cpu = ((b - a) / max(len(stamps) - 2, 1) for a, b in zip(stamps[1], stamps[-1]))  # without the first two
    torch.save({"losses": result.losses, "wall": wall, "cpu": cpu, "weights": weights}, name + ".result")
if "RANK" in os.environ:
    distributed.destroy_process_group()
"""
folder = Path(tempfile.mkdtemp())
(folder / "train.py").write_text(SCRIPT)


def arguments(name, shards):
    """The command line of the script."""
    return ["train.py", str(STEPS), str(SERIES), str(shards), str(folder / name)]


def torchrun(name, processes, shards=2, **environment):
    """`torchrun --standalone --nproc-per-node PROCESSES train.py ...`, one thread per process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "1"]
    command += ["--nproc-per-node", str(processes), *arguments(name, shards)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **environment}
    done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / f"{name}.result", weights_only=True)


def alone(name, shards=2):
    """`python train.py ...` in this process, without torch.distributed."""
    before, sys.argv = sys.argv, arguments(name, shards)
    try:
        runpy.run_path(str(folder / "train.py"))
    finally:
        sys.argv = before
    return torch.load(folder / f"{name}.result", weights_only=True)


# %% [markdown]
# ## 2. Two processes do what one does
#
# The same script, once as an ordinary program and once on two processes. Every process makes its shards' part of the
# gradient, `DistributedDataParallel` sums them, and Adam makes the same step everywhere.

# %%
one = alone("one")
two = torchrun("two", processes=2)


def difference(a, b):
    """Largest difference of the losses of two runs, and of their weights at the end."""
    losses = torch.tensor(a["losses"]) - torch.tensor(b["losses"])
    return f"losses {losses.abs().max():.1e}, weights {(a['weights'] - b['weights']).abs().max():.1e}"


print(f"{STEPS} steps on {SERIES} series, 2 shards")
print("one process against two, largest difference:", difference(one, two))
print(f"loss of the first step {one['losses'][0]:.4f}, of the last {one['losses'][-1]:.4f}")

# %% [markdown]
# What is left is the order of a sum. Another number of *shards* is other noise: as good, and not the same run.

# %%
whole = one if SMOKE else alone("whole", shards=1)
print("two shards against one, largest difference:", difference(one, whole))

fig, ax = plt.subplots()
ax.plot(one["losses"], lw=3, alpha=0.4, label="one process, 2 shards")
ax.plot(two["losses"], "k--", lw=1, label="two processes, 2 shards")
ax.plot(whole["losses"], lw=0.8, label="one process, 1 shard")
ax.set(xlabel="step", ylabel="negative ELBO per value")
ax.legend(frameon=False)

# %% [markdown]
# ## 3. What it gains
#
# Milliseconds per step once training runs, of the clock and of the processor of rank 0; starting a process costs some
# seconds more. With a core for every process the clock would show about what the processor does, so the last column
# is the gain that two free cores allow: less than two, for the exchange of gradients, the part that every process
# does for itself (Adam), and because half the series take more than half the time. On a machine that is busy with
# other work (a load per core above 1) the clock shows what the others leave, and says little.

# %%
runs = {"1 process, 1 shard": whole, "1 process, 2 shards": one, "2 processes": two}
print(f"{'':20} clock/ms  processor/ms  gain by clock, by processor")
for name, run in runs.items():
    gains = f"{whole['wall'] / run['wall']:13.2f} {whole['cpu'] / run['cpu']:14.2f}"
    print(f"{name:20} {1e3 * run['wall']:8.0f} {1e3 * run['cpu']:13.0f} {gains}")
print(f"cores of this machine: {os.cpu_count()}, load per core: {os.getloadavg()[0] / os.cpu_count():.1f}")

fig, ax = plt.subplots(figsize=(7, 2))
ax.barh(list(runs), [1e3 * run["cpu"] for run in runs.values()], color=["C2", "C0", "k"])
ax.set(xlabel="processor time per step of rank 0, ms")

# %% [markdown]
# ## 4. A worker is killed
#
# Rank 1 dies after 3/4 of the run. The other process fails at its next exchange, `torchrun --max-restarts 1` starts
# both again, `resume=True` reads the file that rank 0 wrote last, and the run goes on. Minibatches, noise and
# learning rate are functions of the step, so nothing shows. (The variable `TORCH_DISABLE_SHARE_RDZV_TCP_STORE` above
# is for this: without it restarted workers find the addresses of the dead ones, and wait: PyTorch issue 135712.)

# %%
if not SMOKE:
    killed = torchrun("killed", processes=2, KILL=str(3 * STEPS // 4 - 5))
    print("killed and resumed, against the run that was not:", difference(killed, two))

# %% [markdown]
# ## Takeaways
#
# * `ShardedELBO(model, guide, batch, num_shards=S)` is a module for `DistributedDataParallel`; `fit_sharded` is the
#   loop around it. Its loss depends on S, not on the number of processes.
# * Choose S once, as large as you will ever have processes, and keep it: then a run can move between machines.
# * Two processes are worth it if a step takes much longer than an exchange of gradients. Measure before you believe
#   it: more series per step on one process is often the cheaper way.
# * `torchrun --max-restarts` with `resume=True` survives a killed worker, with the same result.
#
# Next: [the how-to for clusters, lower precision and compiled networks](../how-to/scale-out.md), and
# [forecasts of walks from three frames](11_walks_from_three_frames.md).
