"""Regimes: the scan against the loop and Pyro, a marginal site against enumeration, and the regimes of a track.

Tasks: (1) log-evidence of a hidden Markov chain and its gradient in all log-probabilities, N = 1000 observations,
against `pyro.distributions.DiscreteHMM`, which scans too, and applies a transition before the first observation; (2)
log-density and gradient of a path of switching linear dynamics, K = 3, against the same model written with
`pyro.markov` and enumerated by `TraceEnum_ELBO`; both CPU milliseconds of one thread. (3) The NASCAR track of the
recurrent switching literature: T = 2000, K = 4, D = 2, ten channels with noise 0.1; accuracy of the most probable
regimes after matching names, over seeds, with mean and standard error; target 0.95. The row "parameters known" is what
smoothing and the most probable path can do with the true parameters.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

from pyro_sde.distributions.regime_chain import RegimeChain
from pyro_sde.distributions.switching import SwitchingPath
from pyro_sde.ops.hidden_markov import HiddenMarkov
from tests.benchmarks._nascar import fit, known_accuracy, matched_accuracy, simulate
from tests.benchmarks.harness import Table, measure, select

POINTS = 1000
SEEDS = 10
STEPS = 150
LENGTH = 2000


def _backward(run: Callable[[], Tensor]) -> Callable[[], object]:
    return lambda: run().sum().backward()


def chains(batch: int = 1, regimes: int = 4, points: int = POINTS) -> Table:
    torch.manual_seed(0)
    start = torch.randn(batch, regimes).log_softmax(-1).requires_grad_()
    table = torch.randn(batch, points - 1, regimes, regimes).log_softmax(-1).requires_grad_()
    likelihood = torch.randn(batch, points, regimes, requires_grad=True)

    def ours(form: str) -> Callable[[], object]:
        return _backward(lambda: HiddenMarkov(start, table, likelihood, form=form).log_evidence())

    value = torch.zeros(batch, points)
    full = torch.cat([torch.zeros_like(table[:, :1]), table], 1)

    def theirs() -> Tensor:
        # a law whose log-probability of the value 0 is the likelihood
        law = dist.Delta(torch.zeros_like(likelihood), log_density=likelihood)
        return dist.DiscreteHMM(start, full.detach().requires_grad_(), law, duration=points).log_prob(value)

    variants = {
        "loop": ours("loop"),
        "associative": ours("associative"),
        "auto": ours("auto"),
        "Pyro DiscreteHMM": _backward(theirs),
    }
    title = f"Hidden Markov chain, {points} observations, {batch} series, {regimes} regimes"
    return measure(title, variants, baseline="Pyro DiscreteHMM", rounds=7)


def densities(length: int = 9) -> Table:
    torch.manual_seed(0)
    regimes, states = 3, 2
    matrix = (0.5 * torch.randn(regimes, states, states)).requires_grad_()
    start = torch.randn(regimes).log_softmax(-1)
    table = torch.randn(regimes, regimes).log_softmax(-1)
    first = dist.Normal(torch.zeros(states), 1.0).to_event(1)
    path = torch.randn(length, states)

    def step(z: Tensor, t: Tensor, inputs: Tensor | None) -> dist.Distribution:
        return dist.Normal((matrix @ z[..., None, :, None]).squeeze(-1), 0.5).to_event(1)

    def marginal() -> Tensor:
        return SwitchingPath(step, first, RegimeChain(start, table), length).log_prob(path)

    def model() -> None:
        pyro.sample("z_0", first, obs=path[0])
        s = None
        for k in pyro.markov(range(length - 1)):
            logits = start if s is None else table[s]
            s = pyro.sample(f"s_{k}", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
            law = dist.Normal((matrix[s] @ path[k].unsqueeze(-1)).squeeze(-1), 0.5).to_event(1)
            pyro.sample(f"z_{k + 1}", law, obs=path[k + 1])

    elbo = TraceEnum_ELBO(max_plate_nesting=0)

    def enumerated() -> Tensor:
        return elbo.differentiable_loss(model, lambda: None)

    variants = {"SwitchingPath": _backward(marginal), "TraceEnum_ELBO": _backward(enumerated)}
    table_ = measure(f"Switching path, {length} points", variants, baseline="TraceEnum_ELBO", rounds=5)
    difference = float((marginal() + enumerated()).detach().abs())
    table_.notes.append(f"largest difference of the log-densities: {difference:.1e} nats (float32)")
    return table_


def track(seeds: int = SEEDS, steps: int = STEPS, length: int = LENGTH) -> Table:
    table = Table(f"NASCAR track, {length} points", "recurrent")
    shares: dict[str, list[float]] = {"parameters known": [], "start": [], "recurrent": [], "Markov": []}
    bounds: dict[str, list[float]] = {"recurrent": [], "Markov": []}
    for seed in range(seeds):
        truth = simulate(length, seed)
        shares["parameters known"].append(known_accuracy(truth))
        for name in bounds:
            fitted = fit(truth.values, recurrent=name == "recurrent", steps=steps, seed=seed)
            table.rows.setdefault(name, []).append(1e3 * fitted.seconds)
            shares[name].append(matched_accuracy(truth.regimes, fitted.regimes))
            bounds[name].append(fitted.bound)
        shares["start"].append(matched_accuracy(truth.regimes, fitted.at_start))
    table.notes.append(f"accuracy over {seeds} seeds, mean +- standard error, smallest (milliseconds: {steps} steps)")
    for name, values in shares.items():
        table.notes.append(f"{name}: {_mean(values)}, smallest {min(values):.3f}")
    for name, values in bounds.items():
        table.notes.append(f"bound, nats per step, {name}: {_mean(values)}")
    return table


def _mean(values: list[float]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.4f} +- {error:.4f} (n = {len(values)})"


JOBS: dict[str, Callable[[], Table]] = {
    f"Hidden Markov chain, {POINTS} observations, 1 series, 4": chains,
    f"Hidden Markov chain, {POINTS} observations, 64 series": lambda: chains(batch=64),
    f"Hidden Markov chain, {POINTS} observations, 1 series, 16": lambda: chains(regimes=16),
    "Switching path, 9 points": densities,
    "Switching path, 100 points": lambda: densities(100),
    "NASCAR track": track,
}


def tables(only: str = "") -> list[Table]:
    return select(JOBS, only)
