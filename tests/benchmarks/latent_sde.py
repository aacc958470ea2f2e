"""One training step of a latent SDE against torchsde, a hand-written loop and the physical limit.

Task: one gradient of the evidence bound with its closed-form divergence, and one Adam step, for the SDE part of
torchsde's Lorenz example: posterior drift MLP of the state and a 64-dimensional context, prior drift MLP, one diffusion
network per dimension ("vec") or a constant ("const"), a linear likelihood at every grid point, Euler-Maruyama. The same
networks, activations (SiLU), steps and noise law in every row; encoders are left out. Metric: CPU milliseconds of one
thread. The limit is forward and backward of the same networks at the same number of rows, in blocks of 1024, without
any SDE.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
import torchsde
from pyro.infer import SVI
from torch import Tensor, nn

from pyro_sde import SDE, PathELBO, SDEPath, TimeGrid
from pyro_sde.nn import DiagonalDiffusion, DriftNet
from tests.benchmarks.harness import Table, measure

CONTEXT, STEP, NOISE = 64, 0.01, 0.1


class Size(NamedTuple):
    name: str
    batch: int
    dim: int
    hidden: int
    steps: int
    rounds: int


SIZES = (Size("S2", 32, 6, 100, 300, 5), Size("S3", 1, 3, 64, 1000, 5))


class Parts(nn.Module):
    """Networks shared by all rows."""

    def __init__(self, size: Size, constant: bool) -> None:
        super().__init__()
        widths = (size.hidden, size.hidden)
        self.posterior = DriftNet(size.dim, widths, input_dim=CONTEXT)
        self.prior = DriftNet(size.dim, widths)
        self.diffusion = DiagonalDiffusion(size.dim, size.hidden, constant=constant)
        self.projector = nn.Linear(size.dim, 3)


class Peer(nn.Module):
    """The same SDE in torchsde's form; its context is looked up by time."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, parts: Parts, context: Tensor) -> None:
        super().__init__()
        self.parts, self.context = parts, context

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        index = min(int(float(t) / STEP + 0.5), len(self.context) - 1)
        return self.parts.posterior(t.reshape(1), y, self.context[index])

    def h(self, t: Tensor, y: Tensor) -> Tensor:
        return self.parts.prior(t.reshape(1), y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return self.parts.diffusion(t.reshape(1), y).expand_as(y)


def likelihood(parts: Parts, path: Tensor, values: Tensor) -> Tensor:
    return dist.Normal(parts.projector(path), NOISE, validate_args=False).log_prob(values).sum()


def peer_step(parts: Parts, context: Tensor, values: Tensor, size: Size, hinted: bool) -> Callable[[], object]:
    sde, optimiser = Peer(parts, context), torch.optim.Adam(parts.parameters(), 1e-4)
    times = STEP * torch.arange(size.steps + 1)

    def run() -> None:
        optimiser.zero_grad()
        start = torch.randn(size.batch, size.dim)
        span = float(times[-1])
        # dt= tells the Brownian interval its steps, torchsde's best setting; the divergence is a state of its own
        shape = (size.batch, size.dim + 1)
        brownian = torchsde.BrownianInterval(0.0, span, shape, dt=STEP) if hinted else None
        path, divergence = torchsde.sdeint(sde, start, times, dt=STEP, method="euler", logqp=True, bm=brownian)
        (divergence.sum() - likelihood(parts, path, values)).backward()
        optimiser.step()

    return run


def loop_step(parts: Parts, context: Tensor, values: Tensor, size: Size) -> Callable[[], object]:
    optimiser = torch.optim.Adam(parts.parameters(), 1e-4)

    def run() -> None:
        optimiser.zero_grad()
        z = torch.randn(size.batch, size.dim)
        t, energy, path = torch.zeros(1), torch.zeros(()), [z]
        for k in range(size.steps):
            f, g = parts.posterior(t, z, context[k]), parts.diffusion(t, z)
            energy = energy + 0.5 * STEP * ((f - parts.prior(t, z)) / g).square().sum()
            z = z + f * STEP + g * STEP**0.5 * torch.randn_like(z)
            path.append(z)
        (energy - likelihood(parts, torch.stack(path), values)).backward()
        optimiser.step()

    return run


def our_step(parts: Parts, context: Tensor, values: Tensor, size: Size, opaque: bool) -> Callable[[], object]:
    grid = TimeGrid(STEP * torch.arange(size.steps + 1.0))
    initial = dist.Normal(torch.zeros(size.dim), 1.0).to_event(1)
    rows, observed = context.movedim(0, 1), values.movedim(0, 1)
    drift = (lambda t, z, c: parts.posterior(t, z, c)) if opaque else parts.posterior
    prior = SDE((lambda t, z: parts.prior(t, z)) if opaque else parts.prior, parts.diffusion)

    def model() -> None:
        pyro.module("parts", parts)
        with pyro.plate("series", size.batch):
            z = pyro.sample("z", SDEPath(prior, initial, grid))
            pyro.sample("y", dist.Normal(parts.projector(z), NOISE).to_event(2), obs=observed)

    def guide() -> None:
        with pyro.plate("series", size.batch):
            pyro.sample("z", SDEPath(prior.with_drift(drift), initial, grid, inputs=rows))

    return SVI(model, guide, pyro.optim.Adam({"lr": 1e-4}), PathELBO("closed")).step


def limit_step(parts: Parts, context: Tensor, size: Size) -> Callable[[], object]:
    rows = size.steps * size.batch
    states, contexts = torch.randn(rows, size.dim), context[:-1].reshape(rows, CONTEXT)

    def run() -> None:
        parts.zero_grad()
        t = torch.zeros(1)
        for z, c in zip(states.split(1024), contexts.split(1024), strict=True):
            z = z.requires_grad_()
            total = parts.posterior(t, z, c).sum() + parts.prior(t, z).sum() + parts.diffusion(t, z).sum()
            total.backward()

    return run


def compare(size: Size, constant: bool) -> Table:
    torch.manual_seed(0)
    pyro.clear_param_store()
    parts = Parts(size, constant)
    context = torch.randn(size.steps + 1, size.batch, CONTEXT)
    values = torch.randn(size.steps + 1, size.batch, 3)
    sized = (parts, context, values, size)
    ours = (parts, context[:-1], values, size)
    variants = {
        "torchsde sdeint": peer_step(*sized, hinted=False),
        "torchsde sdeint, BrownianInterval(dt)": peer_step(*sized, hinted=True),
        "hand-written loop": loop_step(*sized),
        "pyro_sde, opaque callables": our_step(*ours, opaque=True),
        "pyro_sde": our_step(*ours, opaque=False),
        "limit: networks only": limit_step(parts, context, size),
    }
    kind = "const" if constant else "vec"
    title = f"{size.name} {kind}: batch {size.batch}, D {size.dim}, hidden {size.hidden}, {size.steps} steps"
    table = measure(title, variants, baseline="torchsde sdeint", rounds=size.rounds)
    limit = table.median("limit: networks only")
    for name in ("pyro_sde, opaque callables", "pyro_sde"):
        table.notes.append(f"{name}: {table.median(name) / limit:.2f} x the limit")
    return table


def tables() -> list[Table]:
    return [compare(size, constant) for size in SIZES for constant in (False, True)]
