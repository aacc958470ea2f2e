"""Ways to the gradient of a long path: exact, reversible or by the adjoint equation; time, memory and error.

Task: that of `memory.py` (batch 8, D = 4, drift MLP of one tanh layer of 64 units, constant diffusion, float32,
gradient of a function of the last state) with 1 000, 10 000 and 100 000 steps. The diffusion is additive noise, which
needs no Stratonovich correction, and the drift a function, so that every row calls it step by step. Metrics: CPU
milliseconds of one thread and peak resident memory of one gradient, in a fresh process each; and, for the reversible
steps in float64, the largest difference of a parameter's gradient from autograd through the same steps, relative to its
largest entry.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import pyro.distributions as dist
import torch
import torchsde
from torch import Tensor, nn

from pyro_sde import SDE, SDEPath, TimeGrid
from pyro_sde.distributions.carried_path import CarriedPath
from pyro_sde.nn import DriftNet
from pyro_sde.solvers._carried import CarriedProblem
from pyro_sde.solvers.noise import GivenNoise
from pyro_sde.solvers.reversible_adjoint import ReversibleHeunAdjoint
from tests.benchmarks.harness import Table, select, settings
from tests.benchmarks.memory import DIM, HIDDEN, ROOT, STEP, WARM_UP, peak_of

BATCH = 8
FULL, LOW, CARRIED = "SDEPath", 'SDEPath, memory="low"', "CarriedPath, ReversibleHeunAdjoint"
PEER_REVERSIBLE, PEER_ADJOINT = "torchsde reversible_heun adjoint", "torchsde sdeint_adjoint (euler)"


class Parts(nn.Module):
    """Drift and constant matrix diffusion, in our form and in torchsde's."""

    noise_type = "additive"

    def __init__(self, sde_type: str = "ito") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.sde_type = sde_type
        self.drift = DriftNet(DIM, (HIDDEN,), activation="tanh")
        self.scale = nn.Parameter(torch.full((DIM,), 0.5))

    def sde(self) -> SDE:
        # the drift without its layers: the compiled and layered paths of SDEPath would be another comparison
        return SDE(lambda t, z: self.drift(t, z), lambda t, z: torch.diag(self.scale), noise_type="additive")

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self.drift(t.reshape(1), y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.diag(self.scale).expand(len(y), DIM, DIM)


def gradient(variant: str, steps: int) -> Callable[[], object]:
    """Sample and differentiate, once per call."""
    parts = Parts("stratonovich" if variant == PEER_REVERSIBLE else "ito")
    times = STEP * torch.arange(steps + 1.0)

    def of_peer() -> Tensor:
        end = STEP * steps
        method = "reversible_heun" if variant == PEER_REVERSIBLE else "euler"
        brownian = torchsde.BrownianInterval(0.0, end, (BATCH, DIM), dt=STEP)
        first, ends = torch.zeros(BATCH, DIM), torch.tensor([0.0, end])
        return torchsde.sdeint_adjoint(parts, first, ends, dt=STEP, method=method, bm=brownian)[-1]

    def of_ours() -> Tensor:
        initial = dist.Normal(torch.zeros(BATCH, DIM), 1.0).to_event(1)
        if variant == CARRIED:
            grid = TimeGrid(times[[0, -1]], max_step=STEP)
            return CarriedPath(parts.sde(), initial, grid).rsample()[..., -1, :]
        return SDEPath(parts.sde(), initial, TimeGrid(times)).rsample()[..., -1, :]

    def run() -> None:
        with settings(pyro_sde_memory="low" if variant == LOW else "full", pyro_sde_compiled="never"):
            state = of_peer() if variant in (PEER_REVERSIBLE, PEER_ADJOINT) else of_ours()
            state.square().mean().backward()

    return run


def once(variant: str, steps: int) -> dict[str, float]:
    """Milliseconds and megabytes of one gradient in this process."""
    torch.set_num_threads(1)
    gradient(variant, WARM_UP)()
    call, spent = gradient(variant, steps), []

    def timed() -> None:
        start = time.process_time()
        call()
        spent.append(1e3 * (time.process_time() - start))

    return {"megabytes": peak_of(timed), "ms": spent[0]}


def in_fresh_process(variant: str, steps: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.adjoint", variant, str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"{variant} with {steps} steps failed:\n{done.stderr}"
        raise RuntimeError(msg)
    return json.loads(done.stdout)


def error(steps: int) -> float:
    """Largest relative difference of the reversible gradient from autograd through the same steps, float64."""
    parts = Parts().double()
    grid = TimeGrid(STEP * torch.arange(steps + 1.0, dtype=torch.float64))
    grid.observed_index = grid.observed_index[-1:]  # one observation: nothing to restart the reconstruction from
    noise = torch.randn(steps, BATCH, DIM, dtype=torch.float64)
    first = torch.zeros(BATCH, DIM, dtype=torch.float64)
    sde = parts.sde()
    problem = CarriedProblem(sde, grid, first, (None,), DIM, contextlib.nullcontext())
    ours = ReversibleHeunAdjoint().solve(problem, GivenNoise(noise)).states[..., -1, :]
    ours = torch.autograd.grad(ours.square().mean(), list(parts.parameters()))
    y = z = first
    matrix, drift, h = sde.diffusion(first, first), sde.drift(grid.times[:1], first), STEP
    for k in range(steps):
        driven = noise[k] * h**0.5 @ matrix.mT
        z = 2 * y - z + drift * h + driven
        following = sde.drift(grid.times[k + 1 : k + 2], z)
        y, drift = y + 0.5 * h * (drift + following) + driven, following
    theirs = torch.autograd.grad(y.square().mean(), list(parts.parameters()))
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


def compare(steps: int, rounds: dict[str, int]) -> Table:
    table = Table(f"{steps} steps, batch {BATCH}", CARRIED)
    for name, count in rounds.items():
        results = [in_fresh_process(name, steps) for _ in range(count)]
        table.rows[name] = [result["ms"] for result in results]
        table.megabytes[name] = max(result["megabytes"] for result in results)
    table.notes.append(f"gradient of {CARRIED} against autograd, float64: {error(steps):.1e} relative")
    return table


ON_REQUEST = True  # too slow for a run of all benchmarks

JOBS: dict[str, Callable[[], Table]] = {
    "1000 steps": partial(compare, 1_000, {CARRIED: 3, FULL: 3, LOW: 3, PEER_REVERSIBLE: 3, PEER_ADJOINT: 3}),
    "10000 steps": partial(compare, 10_000, {CARRIED: 3, FULL: 3, LOW: 3, PEER_REVERSIBLE: 1, PEER_ADJOINT: 1}),
    "100000 steps": partial(compare, 100_000, {CARRIED: 1, LOW: 1}),
}


def tables() -> list[Table]:
    return select(JOBS)


if __name__ == "__main__":
    print(json.dumps(once(sys.argv[1], int(sys.argv[2]))))
