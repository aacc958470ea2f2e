"""One training step of a latent SDE without simulation, against torchsde and our simulated path.

Task: that of the benchmark latent_sde ("vec": networks for prior drift and diffusion, a context row of 64 channels per
grid point, a linear likelihood; encoders are left out of all rows), one gradient of the bound and one Adam step. The
guide without simulation maps the context at a time to mean and scale by a network of the same widths. It draws 4
random times and 4 random observations of every series, or 1 of each, or 4 times and all observations. The limit is the
same gradient written by hand for this problem alone, without Pyro, checks, masks or irregular times. Metric: CPU
milliseconds of one thread.

"Steps" has the same task with more and more solver steps. "Times" compares the standard deviation of the estimated path
divergence between samplers of random times, for one guide.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_sde import SDE, SDEPath, TimeGrid
from pyro_sde.guides.marginal_flow import (
    ImportanceTimes,
    LowDiscrepancyTimes,
    MarginalPath,
    StratifiedTimes,
    UniformTimes,
)
from pyro_sde.infer.simulation_free import ObservationSample, SimulationFreeELBO, sample_observations
from pyro_sde.nn import MLP
from pyro_sde.nn.marginals import Marginals, NodeMarginals, pushed_forward
from pyro_sde.sde import OrnsteinUhlenbeck
from tests.benchmarks.harness import Table, measure, select
from tests.benchmarks.latent_sde import (
    CONTEXT,
    NOISE,
    S2,
    S3,
    SDEINT,
    STEP,
    Parts,
    Peer,
    Size,
    our_step,
    peer_step,
    start_data,
)

SIMULATED, FEW, ALL = "pyro_sde, simulated", "pyro_sde, 4 times", "pyro_sde, 4 times, all observations"
ONE = "pyro_sde, 1 time"
LIMIT, LIMIT_ONE = "limit: by hand, 4 times", "limit: by hand, 1 time"
TIMES = 4


def free_step(
    parts: Parts, context: Tensor, values: Tensor, size: Size, count: int, times: int = TIMES
) -> Callable[[], float]:
    """A step with `count` observations of every series, and the path divergence at `times` times."""
    grid = TimeGrid(STEP * torch.arange(size.steps + 1.0))
    initial = dist.Normal(torch.zeros(size.dim), 1.0).to_event(1)
    prior, observed = SDE(parts.prior, parts.diffusion), values.movedim(0, 1).contiguous()
    head = MLP(CONTEXT + 4, 2 * size.dim, (size.hidden, size.hidden))
    marginals = NodeMarginals(grid.times, context.movedim(0, 1).contiguous(), size.dim, head=head)
    optimiser = torch.optim.Adam([*parts.parameters(), *head.parameters()], 1e-4)
    loss = SimulationFreeELBO(StratifiedTimes(times))

    def model(some: ObservationSample) -> None:
        with pyro.plate("series", size.batch):
            z = pyro.sample("z", SDEPath(prior, initial, some.grid))
            with poutine.scale(scale=some.weight):
                law = dist.Normal(parts.projector(some.grid.observed(z)), NOISE)
                pyro.sample("y", law.to_event(2), obs=some.values)

    def guide(some: ObservationSample) -> None:
        with pyro.plate("series", size.batch):
            pyro.sample("z", MarginalPath(marginals, some.grid))

    def run() -> float:
        optimiser.zero_grad()
        value = loss.differentiable_loss(model, guide, sample_observations(grid, observed, count))
        value.backward()
        optimiser.step()
        return value.item()

    return run


def limit_step(parts: Parts, context: Tensor, values: Tensor, size: Size, times: int = TIMES) -> Callable[[], float]:
    """As `free_step` with as many observations as times, in bare torch; all series share their times."""
    head = MLP(CONTEXT + 4, 2 * size.dim, (size.hidden, size.hidden))
    trained = [parts.prior, parts.diffusion, parts.projector, head]
    optimiser = torch.optim.Adam([p for module in trained for p in module.parameters()], 1e-4)
    span, clock = size.steps * STEP, torch.zeros(1)

    def moments(out: Tensor) -> tuple[Tensor, Tensor]:
        return out[..., : size.dim], nn.functional.softplus(out[..., size.dim :]) + 1e-4

    def run() -> float:
        optimiser.zero_grad()
        shown = torch.randint(size.steps + 1, (times,))
        mean, scale = moments(head(nn.functional.pad(context[shown], (0, 4))))
        residual = parts.projector(mean + scale * torch.randn_like(mean)) - values[shown]
        likelihood = -0.5 * (residual / NOISE).square().sum() * (size.steps + 1) / times
        # of a drawn time, not of the first one: the cost is the same
        initial = (0.5 * (mean[0].square() + scale[0].square() - 1) - scale[0].log()).sum()

        place = (torch.arange(times) + torch.rand(times)) / times * size.steps
        left = place.long().clamp(max=size.steps - 1)
        change = context[left + 1] - context[left]
        row = context[left] + (place - left).reshape(-1, 1, 1) * change
        out, rate = pushed_forward(head, nn.functional.pad(row, (0, 4)), nn.functional.pad(change / STEP, (0, 4)))
        mean, scale = moments(out)
        scale_rate = out[..., size.dim :].sigmoid() * rate[..., size.dim :]
        noise = torch.randn_like(mean)
        z = mean + scale * noise
        drift, diffusion = parts.prior(clock, z), parts.diffusion(clock, z)
        gram = diffusion.square()
        divergence = torch.autograd.grad(gram.sum(), z, create_graph=True)[0]
        implied = rate[..., : size.dim] + scale_rate * noise + 0.5 * (divergence - gram * noise / scale)
        path = 0.5 * ((implied - drift) / diffusion).square().sum() * span / times

        loss = path + initial - likelihood
        loss.backward()
        optimiser.step()
        return loss.item()

    return run


def compare(size: Size) -> Table:
    context, values = start_data(size)
    parts = Parts(size, False)
    given = (parts, context, values, size)
    rows = {
        SDEINT: peer_step(Peer(parts, context), values, size),
        SIMULATED: our_step(*given),
        ALL: free_step(*given, count=size.steps + 1),
        FEW: free_step(*given, count=TIMES),
        ONE: free_step(*given, count=1, times=1),
        LIMIT: limit_step(*given),
        LIMIT_ONE: limit_step(*given, times=1),
    }
    return measure(f"{size.name}: {size.shape}", rows, baseline=SDEINT, rounds=5, fewer={SDEINT: 3})


def growth() -> Table:
    rows = {}
    for steps in (100, 1000, 10_000):
        size = S3._replace(steps=steps)
        context, values = start_data(size)
        rows[f"{steps} steps"] = free_step(Parts(size, False), context, values, size, TIMES)
    return measure("Steps: batch 1, D 3, 4 times", rows, baseline="100 steps", rounds=7, inner=3)


class _Bridge(Marginals):
    """Marginals of a bridge: the distance from the prior is largest at its end."""

    def __init__(self) -> None:
        super().__init__(1)

    def moments(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * t, (0.02 + t * (1.0 - t)).sqrt()


def spread(count: int = 4, draws: int = 400) -> list[str]:
    """Mean and standard deviation of the estimated path divergence."""
    torch.manual_seed(0)
    grid = TimeGrid(torch.tensor([0.0, 1.0], dtype=torch.float64))
    prior = SDEPath(OrnsteinUhlenbeck(1.0, 1.0), dist.Normal(torch.zeros(1).double(), 1.0).to_event(1), grid)
    lines = []
    for kind in (UniformTimes, StratifiedTimes, LowDiscrepancyTimes, ImportanceTimes):
        law = MarginalPath(_Bridge(), grid, times=kind(count))
        path = law.rsample()
        found = torch.stack([law.carried_terms(prior, path, closed=True).kl for _ in range(2 * draws)])[draws:]
        error = float(found.std()) / math.sqrt(draws)
        lines.append(
            f"{kind.__name__}({count}): divergence {float(found.mean()):.2f} +- {error:.2f}, standard deviation "
            f"{float(found.std()):.2f} (n = {draws})."
        )
    return lines


JOBS: dict[str, Callable[[], Table]] = {"S2": partial(compare, S2), "S3": partial(compare, S3), "Steps": growth}


def tables(only: str = "") -> list[Table]:
    found = select(JOBS, only)
    if found:
        found[-1].notes += spread()
    return found
