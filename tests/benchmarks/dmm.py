"""One epoch of a deep Markov model: one path site against one site per step, at the sizes of Pyro's example.

Task: an epoch of stochastic variational inference at the sizes of Pyro's `examples/dmm.py` (state 100, emission 100,
transition 200, recurrent layer 600; 229 synthetic piano rolls of 30 to 129 steps, 60 in the mean, batches of 20).
Baseline: the same model written as that example is, with `pyro.markov`, `poutine.scale`, masks, a `torch.nn.RNN` over
packed sequences, `Trace_ELBO` and `ClippedAdam`; its transition is ours, which is faster than the example's, as the
first layers of gate and proposal are one product. Metric: CPU milliseconds of one thread per epoch.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import Tensor

from pyro_sde.infer.elbo import PathELBO
from pyro_sde.models.deep_markov_model import DeepMarkovModel, SequenceBatch
from tests.benchmarks._markov_dmm import MarkovDMM
from tests.benchmarks._page import single
from tests.benchmarks.harness import Table, measure

SIZES = (100, (200, 100, 600))  # state; transition, emission, recurrent layer
SERIES, LONGEST, KEYS, BATCH = 229, 129, 88, 20
OPTIONS = {"lr": 3e-4, "betas": (0.96, 0.999), "clip_norm": 10.0, "lrd": 0.99996, "weight_decay": 2.0}

MARKOV, FULL, CLOSED = "one site per step, pyro.markov", "one path site, full", "one path site, closed"


def rolls(series: int, longest: int, keys: int) -> SequenceBatch:
    """Synthetic piano rolls of about half the longest length in the mean."""
    torch.manual_seed(0)
    lengths = torch.randint(30 * longest // 129, 91 * longest // 129, (series,)).clamp(min=1)
    lengths[0] = longest
    mask = (torch.arange(longest) < lengths[:, None]).unsqueeze(-1).expand(series, longest, keys)
    return SequenceBatch(torch.bernoulli(torch.full((series, longest, keys), 0.05)) * mask, lengths, mask)


def epoch(step: Callable[..., float], data: SequenceBatch, batch: int) -> Callable[[], float]:
    """One pass over the data, in an order of its own each time."""

    def run() -> float:
        order = torch.randperm(len(data.lengths))
        return sum(step(*data.select(index)) for index in order.split(batch))

    return run


def compare(state: int, hidden: tuple[int, int, int], data: SequenceBatch, batch: int, rounds: int) -> Table:
    """Epochs of all rows, in turn, each with a store of its own."""
    rows: dict[str, Callable[[], float]] = {}
    stores: dict[str, dict] = {}

    def with_store(name: str, build: Callable[[], Callable[..., float]]) -> None:
        pyro.clear_param_store()
        step = build()
        stores[name] = pyro.get_param_store().get_state()

        def run(*given: Tensor) -> float:
            with pyro.get_param_store().scope(stores[name]) as scope:
                loss = step(*given)
                stores[name] = scope
            return loss

        rows[name] = epoch(run, data, batch)

    def model() -> DeepMarkovModel:
        torch.manual_seed(0)
        return DeepMarkovModel(state, data.values.shape[-1], hidden=hidden)

    def markov() -> Callable[..., float]:
        copy = MarkovDMM(model())
        return SVI(copy.model, copy.guide, ClippedAdam(dict(OPTIONS)), Trace_ELBO()).step

    def ours(kl: str) -> Callable[..., float]:
        built = model()
        return SVI(built.model, built.guide, ClippedAdam(dict(OPTIONS)), PathELBO(kl)).step

    with_store(MARKOV, markov)
    with_store(FULL, lambda: ours("full"))
    with_store(CLOSED, lambda: ours("closed"))
    title = f"Deep Markov model: {len(data.lengths)} series, {int(data.lengths.sum())} steps, one epoch"
    table = measure(title, rows, baseline=MARKOV, rounds=rounds)
    for name in (FULL, CLOSED):
        table.notes.append(f"{name}: {table.ratio(name):.2f} x faster than {MARKOV}")
    return table


def tables() -> list[Table]:
    return [compare(*SIZES, rolls(SERIES, LONGEST, KEYS), BATCH, rounds=3)]


def page(measured: list[Table]) -> str:
    return single(measured[0], ratio=f"{MARKOV} / this")
