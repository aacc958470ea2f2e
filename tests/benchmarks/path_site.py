"""What one path site costs: over raw torch, against one site per time step, and for a ragged batch.

Task: an `SVI.step` (or a raw gradient step) on a chain of T = 300 steps, batch 32, state dimension 6, with a linear
drift so that what Pyro adds is visible. Metric: CPU milliseconds of one thread. Expected: the path site costs at most 3
ms over raw torch and is at least 15 times faster than a `pyro.markov` loop; a ragged batch takes at most twice the
longest dense one.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_sde import SDE, PathELBO, SDEPath, TimeGrid
from tests.benchmarks._page import number, single, spread_note
from tests.benchmarks.harness import Table, measure, select

STEPS, BATCH, DIM = 300, 32, 6
STEP = 0.01
LIKELIHOOD = 0.1
MARKOV, RAW = "pyro.markov, 602 sites", "raw torch"


class Drift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.ones(DIM))

    def forward(self, t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return -self.rate * z


def unit(t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return torch.ones(DIM)


def raw_step(prior: Drift, posterior: Drift, values: torch.Tensor, optimiser: torch.optim.Optimizer):
    """One gradient step of the same bound written in plain torch, all densities batched over time."""
    root = STEP**0.5
    times = STEP * torch.arange(STEPS).unsqueeze(-1)

    def run() -> None:
        optimiser.zero_grad()
        z = torch.randn(BATCH, DIM)
        noise = root * torch.randn(STEPS, BATCH, DIM)
        states = [z]
        for k in range(STEPS):
            t = times[k]
            z = z + posterior(t, z) * STEP + unit(t, z) * noise[k]
            states.append(z)
        path = torch.stack(states)
        before, after, t = path[:-1], path[1:], times.unsqueeze(-1)
        scale = root * unit(t, before)
        log_q = dist.Normal(before + posterior(t, before) * STEP, scale, validate_args=False).log_prob(after)
        log_p = dist.Normal(before + prior(t, before) * STEP, scale, validate_args=False).log_prob(after)
        likelihood = dist.Normal(path, LIKELIHOOD, validate_args=False).log_prob(values.movedim(1, 0))
        (log_q.sum() - log_p.sum() - likelihood.sum()).backward()
        optimiser.step()

    return run


def path_step(prior: Drift, posterior: Drift, values: torch.Tensor, loss: Trace_ELBO):
    grid = TimeGrid(STEP * torch.arange(STEPS + 1.0))
    prior_sde, posterior_sde = SDE(prior, unit), SDE(posterior, unit)
    initial = dist.Normal(torch.zeros(DIM), 1.0).to_event(1)

    def model() -> None:
        pyro.module("prior", prior)
        with pyro.plate("series", BATCH):
            z = pyro.sample("z", SDEPath(prior_sde, initial, grid))
            pyro.sample("y", dist.Normal(z, LIKELIHOOD).to_event(2), obs=values)

    def guide() -> None:
        pyro.module("posterior", posterior)
        with pyro.plate("series", BATCH):
            pyro.sample("z", SDEPath(posterior_sde, initial, grid))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss)
    return svi.step


def markov_step(prior: Drift, posterior: Drift, values: torch.Tensor):
    """The same model with one Pyro site per time step, as Pyro's deep Markov example writes it."""
    root = STEP**0.5

    def chain(drift: Drift, observe: bool) -> None:
        with pyro.plate("series", BATCH):
            z = pyro.sample("z_0", dist.Normal(torch.zeros(BATCH, DIM), 1.0).to_event(1))
            for k in pyro.markov(range(STEPS + 1)):
                if k:
                    z = pyro.sample(f"z_{k}", dist.Normal(z + drift(z, z) * STEP, root * unit(z, z)).to_event(1))
                if observe:
                    pyro.sample(f"y_{k}", dist.Normal(z, LIKELIHOOD).to_event(1), obs=values[:, k])

    def model() -> None:
        pyro.module("prior", prior)
        chain(prior, True)

    def guide() -> None:
        pyro.module("posterior", posterior)
        chain(posterior, False)

    return SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step


def overhead() -> Table:
    torch.manual_seed(0)
    pyro.clear_param_store()
    prior, posterior = Drift(), Drift()
    values = torch.randn(BATCH, STEPS + 1, DIM)
    optimiser = torch.optim.Adam([*prior.parameters(), *posterior.parameters()], 1e-3)
    variants = {
        MARKOV: markov_step(prior, posterior, values),
        RAW: raw_step(prior, posterior, values, optimiser),
        "path site, Trace_ELBO": path_step(prior, posterior, values, Trace_ELBO()),
        "path site, PathELBO full": path_step(prior, posterior, values, PathELBO("full")),
        "path site, PathELBO stl": path_step(prior, posterior, values, PathELBO("stl")),
        "path site, PathELBO closed": path_step(prior, posterior, values, PathELBO("closed")),
    }
    title = f"One SVI step, T={STEPS}, batch {BATCH}, D={DIM}"
    table = measure(title, variants, baseline=MARKOV, rounds=9)
    for name in list(variants)[2:]:
        extra = table.median(name) - table.median(RAW)
        table.notes.append(f"{name}: {extra:+.2f} ms over raw torch, {1 / table.ratio(name, RAW):.2f}x")
    return table


def ragged() -> Table:
    """64 series of very different lengths in one batch, against the longest of them solved as a dense batch of 64."""
    torch.manual_seed(0)
    drift = Drift()
    counts = torch.linspace(20, 300, 64).long()
    times = STEP * torch.arange(300.0).expand(64, 300)
    mask = torch.arange(300) < counts.unsqueeze(-1)
    ragged_grid, dense_grid = TimeGrid(times, mask=mask), TimeGrid(times[0])
    sde = SDE(drift, unit)

    def step(grid: TimeGrid):
        def run() -> None:
            law = SDEPath(sde, dist.Normal(torch.zeros(64, DIM), 1.0).to_event(1), grid)
            path = law.rsample()
            (law.log_prob(path).sum() + path.square().mean()).backward()

        return run

    variants = {"dense batch of the longest": step(dense_grid), "ragged batch": step(ragged_grid)}
    return measure(
        "64 series, 20 to 300 steps: sample, density, gradient", variants, baseline="dense batch of the longest"
    )


JOBS: dict[str, Callable[[], Table]] = {"One SVI step": overhead, "64 series": ragged}


def tables() -> list[Table]:
    return select(JOBS)


def page(measured: list[Table]) -> str:
    chain, batch = measured
    shown = {MARKOV: "`pyro.markov` loop, one site per step", RAW: "the same gradient in plain torch"}
    shown |= {name: name.replace("PathELBO ", "PathELBO kl=") for name in list(chain.rows)[2:]}
    ragged_row, dense_row = list(batch.rows)[1], batch.baseline
    against = f"{number(batch.median(ragged_row))} against {number(batch.median(dense_row))} ms"
    return "\n\n".join(
        [
            f"{chain.title}:",
            single(chain, ratio="`pyro.markov` / this", names=shown),
            spread_note([chain]),
            f"64 series of 20 to 300 steps in one ragged batch take {number(1 / batch.ratio(ragged_row))} times as "
            f"long as 64 series of 300 steps ({against}).",
        ]
    )
