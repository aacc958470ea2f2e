"""Peak memory and time of one gradient through a long path.

Task: sample a path of 10 000 (100 000) steps, batch 8 (4), D = 4, with a drift MLP of one tanh layer of 64 units and a
constant diffusion, and differentiate a function of its last state; float32. torchsde's solvers get `ts=[0, T]` (their
adjoint then solves one interval backwards, its best case) and `BrownianInterval(dt=...)`; `pyro_sde` runs
without its extra. Each figure comes from a fresh process: a path of 20 steps for warm-up, then one call. Metrics: peak
resident memory of the call above what the process held before it, in MB of 10^6 bytes, and CPU milliseconds of one
thread.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
import torchsde
from torch import Tensor, nn

from pyro_sde import SDE, SDEPath, TimeGrid
from pyro_sde.nn import DiagonalDiffusion, DriftNet
from tests.benchmarks._page import single, skipped_notes, spread_note
from tests.benchmarks.harness import Table, select, settings

DIM, HIDDEN = 4, 64
STEP = 2**-7  # exact in binary
WARM_UP = 20
SETTING = "pyro_sde_memory"
FULL, LOW, SDEINT, ADJOINT = "pyro_sde", 'pyro_sde, memory="low"', "torchsde sdeint", "torchsde sdeint_adjoint"
ROOT = Path(__file__).resolve().parents[2]
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peer(nn.Module):
    """The same SDE in torchsde's form."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, drift: nn.Module, diffusion: nn.Module) -> None:
        super().__init__()
        self.drift, self.diffusion = drift, diffusion

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self.drift(t.reshape(1), y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return self.diffusion(t.reshape(1), y).expand_as(y)


def gradient(variant: str, steps: int, batch: int) -> Callable[[], object]:
    """Sample and differentiate, once per call."""
    torch.manual_seed(0)
    drift, diffusion = DriftNet(DIM, (HIDDEN,), activation="tanh"), DiagonalDiffusion(DIM)
    peer = Peer(drift, diffusion)

    def last_state_of_peer() -> Tensor:
        times = torch.tensor([0.0, STEP * steps])
        brownian = torchsde.BrownianInterval(0.0, STEP * steps, (batch, DIM), dt=STEP)
        solve = torchsde.sdeint_adjoint if variant == ADJOINT else torchsde.sdeint
        return solve(peer, torch.zeros(batch, DIM), times, dt=STEP, method="euler", bm=brownian)[-1]

    def last_state_of_ours() -> Tensor:
        initial = dist.Normal(torch.zeros(batch, DIM), 1.0).to_event(1)
        law = SDEPath(SDE(drift, diffusion), initial, TimeGrid(STEP * torch.arange(steps + 1.0)))
        return law.rsample()[..., -1, :]

    def run() -> None:
        with settings(pyro_sde_memory="low" if variant == LOW else "full", pyro_sde_compiled="never"):
            state = last_state_of_peer() if variant in (SDEINT, ADJOINT) else last_state_of_ours()
            state.square().mean().backward()

    return run


def _kilobytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def peak_of(call: Callable[[], object]) -> float:
    """Peak resident memory of a call above the memory held before it, in MB."""
    try:
        CLEAR.write_text("5")  # Linux: forget the peak so far
        before = _kilobytes("VmRSS")
        call()
        return (_kilobytes("VmHWM") - before) * 1024 / 1e6
    except OSError:  # elsewhere the peak of the process so far is all there is: at most the true figure
        unit = 1 if sys.platform == "darwin" else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        call()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit / 1e6


def once(variant: str, steps: int, batch: int) -> dict[str, float]:
    """Milliseconds and megabytes of one gradient in this process."""
    torch.set_num_threads(1)
    gradient(variant, WARM_UP, batch)()
    call, spent = gradient(variant, steps, batch), []

    def timed() -> None:
        start = time.process_time()
        call()
        spent.append(1e3 * (time.process_time() - start))

    return {"megabytes": peak_of(timed), "ms": spent[0]}


def in_fresh_process(variant: str, steps: int, batch: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.memory", variant, str(steps), str(batch)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"{variant} with {steps} steps failed:\n{done.stderr}"
        raise RuntimeError(msg)
    return json.loads(done.stdout)


def compare(steps: int, batch: int, rounds: dict[str, int]) -> Table:
    missing = SETTING not in pyro.settings.get()
    rows = {name: count for name, count in rounds.items() if not (missing and name == LOW)}
    table = Table(f"{steps} steps, batch {batch}", next(iter(rounds)))
    if missing and LOW in rounds:
        table.skipped[LOW] = f"this version has no setting {SETTING}"
    for name, count in rows.items():
        results = [in_fresh_process(name, steps, batch) for _ in range(count)]
        table.rows[name] = [result["ms"] for result in results]
        table.megabytes[name] = max(result["megabytes"] for result in results)
    return table


JOBS: dict[str, Callable[[], Table]] = {
    "10000 steps": partial(compare, 10_000, 8, {ADJOINT: 2, SDEINT: 2, FULL: 3, LOW: 3}),
    "100000 steps": partial(compare, 100_000, 4, {LOW: 2}),
}


def tables() -> list[Table]:
    return select(JOBS)


def page(measured: list[Table]) -> str:
    parts = []
    for table in measured:
        if table.rows:
            parts += [f"{table.title}:", single(table, ratio=f"{table.baseline} / this"), spread_note([table])]
    return "\n\n".join([*parts, *skipped_notes(measured)])


if __name__ == "__main__":
    print(json.dumps(once(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
