"""Two models for sharded training, and what one of several processes does with them: run as a module by the tests.

python -m tests.infer.sharded_problem (all | resume) RANK PROCESSES FOLDER
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from pyro_sde.distributions import SDEPath
from pyro_sde.guides import PosteriorSDE
from pyro_sde.infer.elbo import PathELBO
from pyro_sde.infer.fit import FitOptions
from pyro_sde.infer.fit_sharded import fit_sharded
from pyro_sde.infer.sharded_elbo import ShardedELBO
from pyro_sde.nn import ControlNet, GRUEncoder
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.sde import NeuralSDE

SERIES, SHARDS, BATCH, STEPS = 7, 4, 5, 6
KILLED_AFTER = 3  # rank 1 dies after this step of the interrupted run, whose file has an earlier one
EVERY = 2
REDUCTION = {"local": "sum", "global": "mean"}


class Latent(PyroModule):
    """A latent SDE: everything is in the plate of the series."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.prior = NeuralSDE(1, (4,)).to(dtype)
        encoder = GRUEncoder(value_dim=1, state_dim=1, context_dim=4, hidden=4)
        self.posterior = PosteriorSDE(encoder, ControlNet(1, 4, hidden=(4,))).to(dtype)
        self.noise = PyroParam(torch.tensor(0.3, dtype=dtype), constraint=dist.constraints.positive)

    def model(self, grid, y):
        with pyro.plate("series", len(y)):
            z = pyro.sample("z", SDEPath(self.prior, dist.Normal(torch.zeros(1).to(y), 1.0).to_event(1), grid))
            pyro.sample("y", dist.Normal(grid.observed(z), self.noise).to_event(2), obs=y)

    def guide(self, grid, y):
        with pyro.plate("series", len(y)):
            pyro.sample("z", self.posterior(self.prior, grid, y))


class Shared(PyroModule):
    """A level that all series share, and one per series: the plate has all series, a call has some of them."""

    def __init__(self, dtype=torch.float64, random=True):
        super().__init__()
        self.random = random
        self.loc = PyroParam(torch.tensor(0.1, dtype=dtype))
        self.scale = PyroParam(torch.tensor(0.5, dtype=dtype), constraint=dist.constraints.positive)
        self.local = PyroParam(torch.tensor(-0.2, dtype=dtype))

    def law(self, loc):
        return dist.Normal(loc, self.scale) if self.random else dist.Delta(loc)

    def model(self, y):
        level = pyro.sample("level", dist.Normal(y.new_zeros(()), 1.0))
        with pyro.plate("series", SERIES, subsample_size=len(y)):
            z = pyro.sample("z", dist.Normal(level, 1.0))
            pyro.sample("y", dist.Normal(z, self.scale), obs=y)

    def guide(self, y):
        pyro.sample("level", self.law(self.loc))
        with pyro.plate("series", SERIES, subsample_size=len(y)):
            pyro.sample("z", self.law(self.local * y))


def data(dtype=torch.float64):
    """Grid of the path model, its observations (B, N, 1), and one number per series (B,)."""
    generator = torch.Generator().manual_seed(1)
    y = torch.randn(SERIES, 4, 1, generator=generator, dtype=torch.float64).to(dtype)
    return TimeGrid(torch.linspace(0.0, 1.0, 4, dtype=dtype), max_step=0.2), y, y[:, 0, 0]


def problem(name, num_shards=SHARDS, dtype=torch.float64, **options):
    """The sharded loss of one of the two models, the same in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Latent(dtype) if name == "local" else Shared(dtype)
    grid, y, first = data(dtype)

    def batch(indices):
        return (grid, y[indices]) if name == "local" else (first[indices],)

    settings = {"num_shards": num_shards, "seed": 3, "reduction": REDUCTION[name], **options}
    return ShardedELBO(model.model, model.guide, batch, PathELBO(), **settings)


def gradients(loss, value):
    """Gradients of all parameters by name."""
    loss.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in loss.named_parameters()}


def interrupted(folder, callback=None, resume=False):
    """A training run with a checkpoint; returns losses and parameters."""
    loss = problem("local", scale=0.2)
    options = FitOptions(
        progress=False,
        checkpoint=Path(folder) / "run.pt",
        checkpoint_every=EVERY,
        callback=callback,
        resume=resume,
        kl_warmup=4,
    )
    result = fit_sharded(loss, SERIES, steps=STEPS, batch_size=BATCH, options=options)
    return result.losses, {name: p.detach().clone() for name, p in loss.named_parameters()}


def everything(rank, processes, folder):
    """Losses, gradients and a training run of one rank into a file; then a run in which rank 1 is killed."""
    found = {}
    for name in REDUCTION:
        for count in (BATCH, 1):
            loss = problem(name)
            parallel = DistributedDataParallel(loss)
            part = parallel(torch.arange(count), 5)
            grads = gradients(loss, part)
            total = part.detach().clone()
            distributed.all_reduce(total)
            found[f"{name} {count}"] = (total / processes, grads)
    try:
        problem("local", num_shards=1)(torch.arange(BATCH))
    except ValueError as error:
        found["too few shards"] = str(error)
    own = folder / f"disk of rank {rank}"  # a disk that ranks do not share: no harm until the run is resumed
    own.mkdir()
    found["run"] = interrupted(own)
    found["files"] = [path.name for path in own.iterdir()]
    try:
        interrupted(own, resume=True)
    except ValueError as error:
        found["not shared"] = str(error)
    torch.save(found, folder / f"rank{rank}.pt")
    distributed.barrier()
    interrupted(folder, callback=lambda s: os._exit(9) if rank == 1 and s.step == KILLED_AFTER else None)


def main(task, rank, processes, folder):
    """Join the other processes, and do what is asked for."""
    store = f"file://{folder / 'store'}"
    wait = timedelta(seconds=180)
    torch.set_default_dtype(torch.float64)  # as the tests of this room have it
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=processes, timeout=wait)
    if task == "resume":
        torch.save(interrupted(folder, resume=True), folder / f"rank{rank}.pt")
    else:
        everything(rank, processes, folder)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
