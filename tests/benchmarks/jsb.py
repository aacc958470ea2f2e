"""Deep Markov models and their relatives on four-part chorales: one table, every row trained by this command.

    python -m tests.benchmarks.jsb --train JSB_Chorales_train.npz --valid JSB_Chorales_valid.npz [--test FILE ...]

Files are those of `pyro_sde.data.polyphonic`. Task: density of piano rolls, 88 keys, per time step. Metric: evidence
bound and importance-sampled negative log-likelihood in nats per step, with both averages of the literature: sum over
all steps divided by their number (the one of the published 6.926 and 6.388 of the deep Markov model, and of Pyro's
tutorial), and the mean over pieces of their per-step means. Training stops at the best validation bound, so the figures
of the validation file are those of a file that has chosen when to stop; `--test` files are used for nothing else. With
`--checkpoint`, an interrupted training goes on, and a finished one is evaluated only.

Scores on quarter notes and on eighth notes (the grid of the SRNN paper) are not comparable; this table is of the grid
of its files.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_sde.data import TimeSeries
from pyro_sde.data.polyphonic import read_polyphonic
from pyro_sde.distributions.markov_path import MarkovPath
from pyro_sde.guides.combiner import CombinerGuide
from pyro_sde.guides.residual import ResidualGuide, VariationalRNNGuide
from pyro_sde.infer.elbo import PathELBO
from pyro_sde.infer.fit import FitOptions, FitStep
from pyro_sde.infer.held_out import HeldOut
from pyro_sde.models import LatentSDE
from pyro_sde.models.deep_markov_model import DeepMarkovModel
from pyro_sde.models.parts import Architecture
from pyro_sde.priors.stochastic_rnn import StochasticRNNPrior, VariationalRNNPrior

ON_REQUEST = True  # it needs files, which come with no checkout
BATCH, KL_START, AVERAGE = 20, 0.2, 0.998


class Setting(NamedTuple):
    """How a row is trained, and of what size it is."""

    epochs: int
    rate: float = 3e-3
    decay: float = 0.0  # weight decay
    dropout: float = 0.0
    warmup: int = 100  # epochs of KL annealing
    state: int = 64
    hidden: tuple[int, int, int] = (128, 100, 192)


SETTINGS = {
    "DMM, ST-R": Setting(600, decay=3e-4, dropout=0.1),
    "DMM, ST-R, long": Setting(1500, rate=2e-3, decay=3e-4, dropout=0.15, warmup=400, hidden=(128, 100, 224)),
    "SRNN": Setting(100, decay=3e-4, warmup=60),  # both overfit later: the best validation is kept
    "VRNN": Setting(100, decay=3e-4, warmup=60),
    "linear Gaussian chain": Setting(200, decay=1e-3, warmup=50),
    "latent SDE": Setting(150, warmup=20, state=32),
}


class LinearPrior(nn.Module):
    """Linear Gaussian chain: the latent part of a `LinearGaussianSSM`, whose Normal likelihood no bits have."""

    def __init__(self, state_dim: int) -> None:
        super().__init__()
        self.matrix = nn.Linear(state_dim, state_dim)
        nn.init.eye_(self.matrix.weight)
        self.raw_scale = nn.Parameter(torch.zeros(state_dim))

    def step(self, z: Tensor, t: Tensor, inputs: Tensor | None) -> dist.TorchDistribution:
        return dist.Normal(self.matrix(z), 1e-3 + nn.functional.softplus(self.raw_scale)).to_event(1)

    def forward(self, length: int, lengths: Tensor | None = None) -> MarkovPath:
        initial = dist.Normal(torch.zeros_like(self.raw_scale), 1.0).to_event(1)
        return MarkovPath(self.step, initial, length, lengths=lengths)


def build(name: str, channels: int, setting: Setting) -> DeepMarkovModel | LatentSDE:
    """The untrained model of a row."""
    state, hidden = setting.state, setting.hidden
    if name == "latent SDE":
        sizes = Architecture((128,), (100,), encoder_hidden=128, context_dim=64, diffusion_scale=1.0, reversion=0.5)
        return LatentSDE(state, channels, likelihood="bernoulli", max_step=1.0, architecture=sizes)
    prior: nn.Module | None = None
    posterior: nn.Module = CombinerGuide(channels, state, hidden=hidden[2], dropout=setting.dropout)
    emission: nn.Module | None = None
    if name == "SRNN":
        prior, posterior = StochasticRNNPrior(channels, state, 150), ResidualGuide(channels, state, 150)
    elif name == "VRNN":
        prior, posterior = VariationalRNNPrior(channels, state, 150), VariationalRNNGuide(state, 150)
    elif name == "linear Gaussian chain":
        prior, emission = LinearPrior(state), nn.Linear(state, channels)
    return DeepMarkovModel(state, channels, hidden=hidden, prior=prior, posterior=posterior, emission=emission)


def reporter(name: str, per_epoch: int, factor: int) -> Callable[[FitStep], None]:
    """Prints one line per validation; losses times `factor` are in nats per step."""
    started, cpu = time.perf_counter(), time.process_time()

    def report(step: FitStep) -> None:
        if step.validation_loss is not None:
            seconds = f"{time.process_time() - cpu:.0f} s of CPU time, {time.perf_counter() - started:.0f} s"
            losses = (
                f"training {factor * step.loss:.3f}, validation bound {factor * step.validation_loss:.3f} nats per step"
            )
            print(f"{name}: epoch {step.step // per_epoch}, {seconds}, {losses}", flush=True)

    return report


def train(
    name: str, setting: Setting, data: tuple[TimeSeries, TimeSeries], seed: int, checkpoint: Path | None
) -> object:
    """A trained model."""
    torch.manual_seed(seed)
    series, valid = data
    per_epoch = -(-len(series) // BATCH)
    model = build(name, series.values.shape[-1], setting)
    every = 10 * per_epoch
    options = FitOptions(
        elbo=PathELBO("closed"),
        kl_warmup=setting.warmup * per_epoch,
        kl_start=KL_START,
        average=AVERAGE,
        validate_every=every,
        checkpoint=checkpoint,
        checkpoint_every=every,
        resume=checkpoint is not None,
        progress=False,
        # a LatentSDE has losses per observed value
        callback=reporter(name, per_epoch, series.values.shape[-1] if isinstance(model, LatentSDE) else 1),
    )
    schedule = {"steps": setting.epochs * per_epoch, "learning_rate": setting.rate, "batch_size": BATCH}
    if isinstance(model, LatentSDE):
        model.fit(series, validation=valid, seed=seed, options=options, **schedule)
    else:
        model.fit(series, validation=valid, seed=seed, options=options, weight_decay=setting.decay, **schedule)
    return model


def score(model: object, series: TimeSeries, num_samples: int) -> HeldOut:
    """Bound and importance-sampled loss."""
    if isinstance(model, DeepMarkovModel):
        return model.evaluate(series, num_samples=num_samples, seed=0)
    weighted = model.evidence_bound(series, num_samples=num_samples, seed=0)
    bound = torch.stack([model.evidence_bound(series, num_samples=1, seed=k) for k in range(20)]).mean(0)
    lengths = series.valid_times.sum(-1)
    return HeldOut({"bound": -bound, f"importance, {num_samples} samples": -weighted}, lengths)


def table(scores: dict[str, dict[str, HeldOut]]) -> str:
    """Markdown: a row for every model and file."""
    head = "| model | file | bound, per step | bound, per series | importance-sampled, per step | per series |"
    lines = [head, "|---|---|---|---|---|---|"]
    for name, files in scores.items():
        for file, result in files.items():
            cells = []
            for estimate in result.losses:
                figures = zip(
                    (result.per_step(estimate), result.per_series(estimate)),
                    result.standard_errors(estimate),
                    strict=True,
                )
                cells += [f"{figure:.3f} ± {error:.3f}" for figure, error in figures]
            lines.append(f"| {name} | {file} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tables() -> list[object]:
    """Says how to run this benchmark, which times nothing."""
    raise SystemExit("jsb needs files: python -m tests.benchmarks.jsb --train FILE --valid FILE [--test FILE ...]")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the rows and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.jsb")
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--valid", type=Path, required=True)
    parser.add_argument("--test", type=Path, nargs="*", default=[], help="further files to score")
    parser.add_argument("--models", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--epochs", type=int, help="instead of those of each row")
    parser.add_argument("--samples", type=int, default=200, help="paths per piece for importance sampling")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, help="folder for one file per model")
    given = parser.parse_args(arguments)
    data = read_polyphonic(given.train), read_polyphonic(given.valid)
    files = {path.stem: read_polyphonic(path) for path in [given.valid, *given.test]}
    scores: dict[str, dict[str, HeldOut]] = {}
    for name in given.models:
        setting = SETTINGS[name] if given.epochs is None else SETTINGS[name]._replace(epochs=given.epochs)
        place = None
        if given.checkpoint is not None:
            given.checkpoint.mkdir(parents=True, exist_ok=True)
            place = given.checkpoint / f"{name.replace(', ', '-').replace(' ', '-')}.pt"
        model = train(name, setting, data, given.seed, place)
        scores[name] = {file: score(model, series, given.samples) for file, series in files.items()}
        for file, result in scores[name].items():
            print(f"{name}, {file}: {result}\n", flush=True)
    print(table(scores))


if __name__ == "__main__":
    main()
