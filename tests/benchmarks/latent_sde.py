"""One training step of a latent SDE against torchsde, a hand-written loop, jax and the physical limit.

Task: one gradient of the evidence bound with its closed-form divergence, and one Adam step, for the SDE part of
torchsde's Lorenz example: posterior drift MLP of the state and a 64-dimensional context, prior drift MLP, one diffusion
network per dimension ("vec") or a constant ("const"), a linear likelihood at every grid point, Euler-Maruyama. The same
networks, activations (SiLU), steps and noise law in every row; encoders are left out. Metric: CPU milliseconds of one
thread. The limit is forward and backward of the same networks at the same number of rows, in blocks of 1024, without
any SDE. The table "as published" has torchsde's own form of the networks (softplus) against ours with softplus.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
import torchsde
from pyro.infer import SVI
from torch import Tensor, nn

from pyro_sde import SDE, PathELBO, SDEPath, TimeGrid
from pyro_sde.nn import DiagonalDiffusion, DriftNet
from tests.benchmarks import _jax_rows
from tests.benchmarks._page import grid as markdown
from tests.benchmarks._page import number, pivot, single, skipped_notes, spread_note
from tests.benchmarks._published import PublishedSDE
from tests.benchmarks.harness import Table, measure, select, settings

CONTEXT, NOISE = 64, 0.1
STEP = 2**-7  # exact in binary: no solver that adds up times takes a step more than the others
COMPILED = "pyro_sde_compiled"

SDEINT, HINTED, ADJOINT = "torchsde sdeint", "torchsde sdeint, BrownianInterval(dt)", "torchsde sdeint_adjoint"
LOOP, SCAN, DIFFRAX = "hand-written loop", "jax.lax.scan, jitted", "diffrax, jitted"
OPAQUE, OURS, FAST, LIMIT = "pyro_sde, opaque callables", "pyro_sde", "pyro_sde[fast]", "limit: networks only"
PUBLISHED, SOFTPLUS, SOFTPLUS_FAST = "torchsde, as published", "pyro_sde, softplus", "pyro_sde[fast], softplus"


class Size(NamedTuple):
    name: str
    batch: int
    dim: int
    hidden: int
    steps: int
    rounds: int

    @property
    def shape(self) -> str:
        return f"batch {self.batch}, D {self.dim}, hidden {self.hidden}, {self.steps} steps"


S1, S2, S3 = Size("S1", 1024, 4, 128, 100, 5), Size("S2", 32, 6, 100, 300, 7), Size("S3", 1, 3, 64, 1000, 7)


class Parts(nn.Module):
    """Networks shared by all rows."""

    def __init__(self, size: Size, constant: bool, activation: str = "silu") -> None:
        super().__init__()
        widths = (size.hidden, size.hidden)
        self.posterior = DriftNet(size.dim, widths, input_dim=CONTEXT, activation=activation)
        self.prior = DriftNet(size.dim, widths, activation=activation)
        self.diffusion = DiagonalDiffusion(size.dim, size.hidden, constant=constant, activation=activation)
        self.projector = nn.Linear(size.dim, 3)


class Peer(nn.Module):
    """The same SDE in torchsde's form; its context is looked up by time."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, parts: Parts, context: Tensor) -> None:
        super().__init__()
        self.posterior, self.prior, self.diffusion = parts.posterior, parts.prior, parts.diffusion
        self.projector, self.context = parts.projector, context

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        index = min(int(float(t) / STEP + 0.5), len(self.context) - 1)
        return self.posterior(t.reshape(1), y, self.context[index])

    def h(self, t: Tensor, y: Tensor) -> Tensor:
        return self.prior(t.reshape(1), y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return self.diffusion(t.reshape(1), y).expand_as(y)


def likelihood(projector: nn.Module, path: Tensor, values: Tensor) -> Tensor:
    return dist.Normal(projector(path), NOISE, validate_args=False).log_prob(values).sum()


def peer_step(sde: Peer | PublishedSDE, values: Tensor, size: Size, kind: str = SDEINT) -> Callable[[], float]:
    optimiser = torch.optim.Adam(sde.parameters(), 1e-4)
    times = STEP * torch.arange(size.steps + 1)
    inside = [p for name, p in sde.named_parameters() if not name.startswith("projector")]
    solve = partial(torchsde.sdeint_adjoint, adjoint_params=inside) if kind == ADJOINT else torchsde.sdeint

    def run() -> float:
        optimiser.zero_grad()
        start = torch.randn(size.batch, size.dim)
        # dt= tells the Brownian interval its steps, torchsde's best setting; the divergence is a state of its own
        shape, span = (size.batch, size.dim + 1), float(times[-1])
        brownian = torchsde.BrownianInterval(0.0, span, shape, dt=STEP) if kind == HINTED else None
        path, divergence = solve(sde, start, times, dt=STEP, method="euler", logqp=True, bm=brownian)
        loss = divergence.sum() - likelihood(sde.projector, path, values)
        loss.backward()
        optimiser.step()
        return loss.item()

    return run


def loop_bound(
    parts: Parts, context: Tensor, values: Tensor, start: Tensor, draw: Callable[[Tensor], Tensor] = torch.randn_like
) -> Tensor:
    """The negative bound as one would write it by hand; `draw` gives the noise of a step."""
    z, t, energy, path = start, torch.zeros(1), torch.zeros(()), [start]
    for k in range(len(values) - 1):
        f, g = parts.posterior(t, z, context[k]), parts.diffusion(t, z)
        energy = energy + 0.5 * STEP * ((f - parts.prior(t, z)) / g).square().sum()
        z = z + f * STEP + g * STEP**0.5 * draw(z)
        path.append(z)
    return energy - likelihood(parts.projector, torch.stack(path), values)


def loop_step(parts: Parts, context: Tensor, values: Tensor, size: Size) -> Callable[[], float]:
    optimiser = torch.optim.Adam(parts.parameters(), 1e-4)

    def run() -> float:
        optimiser.zero_grad()
        loss = loop_bound(parts, context, values, torch.randn(size.batch, size.dim))
        loss.backward()
        optimiser.step()
        return loss.item()

    return run


def our_step(
    parts: Parts, context: Tensor, values: Tensor, size: Size, *, opaque: bool = False, compiled: str = "never"
) -> Callable[[], float]:
    grid = TimeGrid(STEP * torch.arange(size.steps + 1.0))
    initial = dist.Normal(torch.zeros(size.dim), 1.0).to_event(1)
    rows, observed = context[:-1].movedim(0, 1), values.movedim(0, 1)
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

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-4}), PathELBO("closed"))

    def run() -> float:
        with settings(**{COMPILED: compiled}):
            return svi.step()

    return run


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


def missing() -> dict[str, str]:
    """Optional rows that this environment cannot measure: the reason."""
    reasons = {}
    if COMPILED not in pyro.settings.get():
        reasons[FAST] = f"this version has no setting {COMPILED}"
    elif find_spec("numba") is None:
        reasons[FAST] = "numba is not installed"
    for row, package in ((SCAN, "jax"), (DIFFRAX, "diffrax")):
        if not _jax_rows.installed(package):
            reasons[row] = f"{package} is not installed"
    return reasons


def start_data(size: Size) -> tuple[Tensor, Tensor]:
    """Seeded context ``(steps + 1, batch, C)`` and observations ``(steps + 1, batch, 3)``."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    return torch.randn(size.steps + 1, size.batch, CONTEXT), torch.randn(size.steps + 1, size.batch, 3)


def variants(parts: Parts, context: Tensor, values: Tensor, size: Size) -> dict[str, Callable[[], object]]:
    """All rows that can be measured here."""
    peer, given = Peer(parts, context), (parts, context, values, size)
    rows = {name: peer_step(peer, values, size, name) for name in (SDEINT, HINTED, ADJOINT)}
    rows[LOOP] = loop_step(*given)
    skipped = missing()
    if SCAN not in skipped:
        rows[SCAN] = _jax_rows.scan_step(parts, context, values, STEP, NOISE)
    if DIFFRAX not in skipped:
        rows[DIFFRAX] = _jax_rows.diffrax_step(parts, context, values, STEP, NOISE)
    rows[OPAQUE] = our_step(*given, opaque=True)
    rows[OURS] = our_step(*given)
    if FAST not in skipped:
        rows[FAST] = our_step(*given, compiled="auto")
    return {**rows, LIMIT: limit_step(parts, context, size)}


def compare(size: Size, constant: bool) -> Table:
    context, values = start_data(size)
    rows = variants(Parts(size, constant), context, values, size)
    title = f"{size.name} {'const' if constant else 'vec'}: {size.shape}"
    fewer = {ADJOINT: 3, DIFFRAX: 5}
    table = measure(title, rows, baseline=SDEINT, rounds=size.rounds, fewer=fewer)
    table.skipped = missing()
    for name in (OPAQUE, OURS, FAST):
        if name in table.rows:
            table.notes.append(f"{name}: {table.ratio(LIMIT, name):.2f} x the limit")
    return table


def published(size: Size) -> Table:
    """torchsde's example as its authors wrote it against ours with the same activation."""
    context, values = start_data(size)
    parts = Parts(size, constant=False, activation="softplus")
    example = PublishedSDE(size.dim, size.hidden, context, STEP * torch.arange(size.steps + 1))
    rows = {PUBLISHED: peer_step(example, values, size), SOFTPLUS: our_step(parts, context, values, size)}
    if FAST not in missing():
        rows[SOFTPLUS_FAST] = our_step(parts, context, values, size, compiled="auto")
    return measure(f"As published, {size.name} vec: {size.shape}", rows, baseline=PUBLISHED, rounds=size.rounds)


JOBS: dict[str, Callable[[], Table]] = {
    "S1 vec": partial(compare, S1, False),
    "S2 vec": partial(compare, S2, False),
    "S2 const": partial(compare, S2, True),
    "S3 vec": partial(compare, S3, False),
    "S3 const": partial(compare, S3, True),
    "As published": partial(published, S2),
}


def tables() -> list[Table]:
    return select(JOBS)


def page(measured: list[Table]) -> str:
    *main, example = measured
    columns = [table.title.split(":")[0] for table in main]
    order = (SDEINT, HINTED, ADJOINT, LOOP, DIFFRAX, SCAN, OPAQUE, OURS, FAST, LIMIT)
    ratios = {}
    for over, own in ((SDEINT, OURS), (SDEINT, FAST), (SDEINT, OPAQUE), (SCAN, OURS), (SCAN, FAST)):
        if all(own in table.rows and over in table.rows for table in main):
            ratios[f"{over} / {own}"] = [number(table.ratio(own, over)) for table in main]
    for own in (OURS, FAST, OPAQUE, SDEINT):
        if all(own in table.rows for table in main):
            ratios[f"{own} / limit"] = [number(table.ratio(LIMIT, own)) for table in main]
    sizes = "; ".join(f"{size.name}: {size.shape}" for size in (S1, S2, S3))
    return "\n\n".join(
        [
            f"{sizes}.",
            pivot(main, columns, order),
            markdown("ratio", columns, ratios),
            " ".join([spread_note(main), *skipped_notes(main)]),
            f"As published ({S2.shape}):",
            single(example, ratio=f"{PUBLISHED} / this"),
        ]
    )
