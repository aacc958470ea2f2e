r"""The training loop: any model and guide, a progress bar, early stopping, and runs that can be resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pyro.infer import ELBO
from torch import Tensor
from tqdm import tqdm

from ..ops._arguments import check_numbers, check_whole
from ._run import Average, Run
from .elbo import JitPathELBO, PathELBO

__all__ = ["FitOptions", "FitResult", "FitStep", "fit"]

_SMOOTHING, _WINDOW = 0.95, 100  # running mean of the loss in the progress bar

Batches = Callable[[int], tuple[Any, ...]] | Sequence[tuple[Any, ...]]


class FitStep(NamedTuple):
    """What a callback is told after every step.

    Attributes:
        step: number of steps done, from 1.
        loss: loss of the step, on its batch and at its KL weight.
        kl_weight: weight of the divergence in `loss`.
        learning_rate: step size of the optimiser.
        validation_loss: at full KL weight, in the steps that end with a validation; None in all others.
    """

    step: int
    loss: float
    kl_weight: float
    learning_rate: float
    validation_loss: float | None


class FitResult(NamedTuple):
    """What training did.

    Attributes:
        losses: loss of every step.
        validation_losses: pairs (step, loss); empty without validation data.
        best_step: step whose parameters the model has now: the one of lowest validation loss, or the last.
        stopped_early: True if patience or the callback ended the run.
        seconds: wall time of this call, without the part that a checkpoint brought along.
    """

    losses: list[float]
    validation_losses: list[tuple[int, float]]
    best_step: int
    stopped_early: bool
    seconds: float


@dataclass(frozen=True)
class FitOptions:
    r"""The finer settings of `fit`.

    The learning rate of step n of N is the `learning_rate` of `fit` times a factor. This is :math:`n / W` up to step W,
    the larger of `rate_warmup` and 1; then, with :math:`p = (n - W) / (N - W)` and d for `decay`, it is :math:`d^p` or
    :math:`d + \frac{1 - d}{2} (1 + \cos \pi p)`: exponential, or half a cosine, which is flat at both ends. Warm-up:
    Goyal et al. (2017), arXiv 1706.02677, section 2.2; cosine: Loshchilov and Hutter (2017), SGDR, arXiv 1608.03983,
    eq. (5), without restarts.

    Attributes:
        elbo: loss; a `PathELBO` with its defaults if None.
        kl_warmup: steps over which the weight of the divergence rises linearly to that of `elbo`; 0 for none.
        kl_start: weight that the rise begins at, as a part of the full one, ``0 <= kl_start <= 1``. A divergence that
            costs almost nothing lets the guide's noise vanish, and the first losses can be huge; 0.2 avoids that.
        decay: factor that the learning rate has fallen by at the last step, ``0 < decay <= 1``.
        schedule: curve along which the learning rate falls, "exponential" or "cosine".
        rate_warmup: steps over which the learning rate rises linearly, before it falls; 0 for none. A run of no more
            steps than these does not come to the fall.
        average: decay :math:`\rho` of a moving average of the (unconstrained) parameters, ``0 < average < 1``; None for
            none. After step n, :math:`\bar\theta_n = \rho_n \bar\theta_{n-1} + (1 - \rho_n) \theta_n` with
            :math:`\rho_n = \min(\rho, n / (n + 9))`, so the start is forgotten. Validations and the trained model are
            those of the average; buffers are not averaged. Polyak and Juditsky (1992), doi 10.1137/0330046.
        clip: largest norm of the gradient of all parameters together; longer ones are shortened. None for no limit.
        validate_every: steps between validations.
        patience: stop after so many validations in a row without a new best one; None to never stop early.
        checkpoint: file that the state of the run is written to; `load` reads the trained modules from it as well.
        checkpoint_every: steps between writing; the end of the run is always written.
        resume: go on from `checkpoint` if that file exists.
        progress: draw a progress bar.
        callback: called with a `FitStep` after every step; training stops if it returns True.

    Raises:
        TypeError: if a number of steps is no whole number, or another option of a wrong kind.
        ValueError: if an option is out of its range.
    """

    elbo: ELBO | None = None
    kl_warmup: int = 0
    kl_start: float = 0.0
    decay: float = 0.1
    schedule: Literal["exponential", "cosine"] = "exponential"
    rate_warmup: int = 0
    average: float | None = None
    clip: float | None = 10.0
    validate_every: int = 50
    patience: int | None = None
    checkpoint: str | Path | None = None
    checkpoint_every: int = 100
    resume: bool = False
    progress: bool = True
    callback: Callable[[FitStep], bool | None] | None = None

    def __post_init__(self) -> None:
        for name in ("validate_every", "checkpoint_every", "patience", "kl_warmup", "rate_warmup"):
            value = getattr(self, name)
            if value is None and name == "patience":
                continue
            check_whole(**{name: value})
            if value is not None and value < 1 and not name.endswith("warmup"):
                msg = f"`{name}` must be at least 1 step, received {value}."
                raise ValueError(msg)
        given = {name: getattr(self, name) for name in ("average", "clip") if getattr(self, name) is not None}
        check_numbers(kl_start=self.kl_start, decay=self.decay, **given)
        if self.callback is not None and not callable(self.callback):
            msg = f"`callback` must be a function of a `FitStep`, received {type(self.callback).__name__}."
            raise TypeError(msg)
        for name, value in (("kl_warmup", self.kl_warmup), ("rate_warmup", self.rate_warmup)):
            if value < 0:
                msg = f"`{name}` must be a number of steps >= 0, received {value}."
                raise ValueError(msg)
        if not 0 <= self.kl_start <= 1:
            msg = f"`kl_start` must be a part of the full weight in [0, 1], received {self.kl_start}."
            raise ValueError(msg)
        if self.kl_start and not self.kl_warmup:
            msg = "`kl_start` is where a warm-up begins; give `kl_warmup`, its number of steps, too."
            raise ValueError(msg)
        if self.average is not None and not 0 < self.average < 1:
            msg = f"`average` must be a decay in (0, 1), such as 0.998, or None; received {self.average}."
            raise ValueError(msg)
        if not 0 < self.decay <= 1:
            msg = f"`decay` must satisfy 0 < decay <= 1, received {self.decay}."
            raise ValueError(msg)
        if self.schedule not in ("exponential", "cosine"):
            msg = f'`schedule` must be "exponential" or "cosine", received {self.schedule!r}.'
            raise ValueError(msg)
        if self.clip is not None and not self.clip > 0:
            msg = f"`clip` must be a positive number or None, received {self.clip}."
            raise ValueError(msg)
        if self.resume and self.checkpoint is None:
            msg = "`resume` needs a `checkpoint` file to go on from."
            raise ValueError(msg)
        # The compiled loss has its weight built in.
        if self.kl_warmup and (not isinstance(self.elbo or PathELBO(), PathELBO) or isinstance(self.elbo, JitPathELBO)):
            msg = f"`kl_warmup` needs a PathELBO, whose weight can change; received {type(self.elbo).__name__}."
            raise ValueError(msg)

    def kl_weight(self, step: int) -> float:
        """Part of the full weight of the divergence in a step, counted from 1."""
        risen = min(1.0, step / self.kl_warmup) if self.kl_warmup else 1.0
        return self.kl_start + (1 - self.kl_start) * risen

    def rate_factor(self, step: int, steps: int) -> float:
        """Part of the full learning rate in a step, counted from 1, of a run of `steps`."""
        full = max(self.rate_warmup, 1)  # the step of the full rate
        if step < full:
            return step / full
        fallen = (step - full) / max(steps - full, 1)
        if self.schedule == "cosine":
            return self.decay + (1 - self.decay) * (1 + math.cos(math.pi * fallen)) / 2
        return self.decay**fallen


class _Progress(NamedTuple):
    """What a run remembers between steps, apart from parameters and optimiser."""

    losses: list[float]
    validations: list[tuple[int, float]]

    @property
    def best_step(self) -> int:
        return min(self.validations, key=lambda pair: pair[1])[0] if self.validations else len(self.losses)

    def is_stuck(self, patience: int | None) -> bool:
        """Whether `patience` validations have passed since the best one."""
        since = sum(step > self.best_step for step, _ in self.validations)
        return patience is not None and since >= patience


def fit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    batches: Batches,
    *,
    steps: int = 1000,
    learning_rate: float = 1e-2,
    validation: tuple[Any, ...] | None = None,
    seed: int = 0,
    options: FitOptions | None = None,
) -> FitResult:
    """Train a model and a guide by stochastic variational inference.

    A step is that of `pyro.infer.SVI`: the loss, its gradients, and an update of the parameters of all param sites;
    the optimiser is Adam with a limit on the norm of the gradient. Works for any Pyro model and guide, functions or
    modules. With validation data the best parameters are put back at the end.

    All randomness comes from `seed`: the noise of a step is a function of seed and step alone, validations use the
    same noise every time, and the global random state is left as it was. So a run that was interrupted and resumed
    equals one that was not.

    Args:
        model: Pyro model.
        guide: Pyro guide.
        batches: arguments of model and guide: a function of the step (from 0), or a list that is cycled through. The
            loss of a batch must estimate that of all data: scale it with a subsampled plate or ``poutine.scale``.
        steps: number of steps in all, those of a resumed run included.
        learning_rate: of Adam, ``> 0``: the largest, at the first step or at the end of a warm-up.
        validation: arguments of model and guide on data that are kept back.
        seed: same seed, same run.
        options: the finer settings.

    Returns:
        Losses, validation losses and what the run did.

    Raises:
        TypeError: if `steps` or `learning_rate` is no number.
        ValueError: if an argument is out of range; if the loss or a gradient is not finite (the message names the
            step); if model and guide have nothing to train; if the parameter store holds a parameter of another module
            under the name of one of these; if a checkpoint is of another seed.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     loc = pyro.param("loc", torch.zeros(()))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(loc, 1.0), obs=y)
        >>> options = FitOptions(progress=False)
        >>> result = fit(model, lambda y: None, [(torch.ones(10),)], steps=300, learning_rate=0.1, options=options)
        >>> round(pyro.param("loc").item(), 2)
        1.0
    """
    options = options or FitOptions()
    check_numbers(steps=steps, learning_rate=learning_rate)
    if not 1 <= steps < math.inf or steps != int(steps) or not 0 < learning_rate < math.inf:
        msg = f"`steps` must be >= 1 and `learning_rate` > 0 and finite, received {steps} and {learning_rate}."
        raise ValueError(msg)
    if not callable(batches) and len(batches) == 0:
        msg = "`batches` is empty; give at least one tuple of arguments."
        raise ValueError(msg)
    started = time.perf_counter()
    batch = batches if callable(batches) else _cycle(batches)
    run = Run(model, guide, copy(options.elbo) if options.elbo else PathELBO(), seed, batch(0))
    average = None if options.average is None else Average(options.average, run)
    state, best = _resume(run, options, average)
    stop = False
    with tqdm(total=steps, initial=len(state.losses), disable=not options.progress, desc="fit", unit="step") as bar:
        while len(state.losses) < steps and not (stop or state.is_stuck(options.patience)):
            done = len(state.losses)
            weight = options.kl_weight(done + 1)
            rate = learning_rate * options.rate_factor(done + 1, steps)
            loss = run.step(done, batch(done), rate, weight, options.clip)
            state.losses.append(loss)
            done, score = done + 1, None
            if average is not None:
                average.update(run, done)
            if validation is not None and (done % options.validate_every == 0 or done == steps):
                with run.at(average):
                    score = run.validate(done, validation)
                    state.validations.append((done, score))
                    if state.best_step == done:
                        best = run.snapshot()
            if options.checkpoint is not None and done % options.checkpoint_every == 0:
                run.save(options.checkpoint, run.state({**state._asdict(), "best": best}, average))
            if options.callback is not None:
                stop = options.callback(FitStep(done, loss, weight * run.kl_weight, rate, score)) is True
            bar.set_postfix_str(_postfix(state), refresh=False)
            bar.update()
    final = run.state({**state._asdict(), "best": best}, average)
    if best is not None:
        run.restore(best)
    elif average is not None:
        run.restore({**run.snapshot(), **average.tensors})
    if options.checkpoint is not None:
        run.save(options.checkpoint, final)
    seconds = time.perf_counter() - started
    return FitResult(*state, state.best_step, len(state.losses) < steps, seconds)


def _cycle(batches: Sequence[tuple[Any, ...]]) -> Callable[[int], tuple[Any, ...]]:
    return lambda step: batches[step % len(batches)]


def _resume(run: Run, options: FitOptions, average: Average | None) -> tuple[_Progress, dict[str, Tensor] | None]:
    if not options.resume or options.checkpoint is None or not Path(options.checkpoint).exists():
        return _Progress([], []), None
    extra = run.load(options.checkpoint, average)
    return _Progress(extra["losses"], [tuple(pair) for pair in extra["validations"]]), extra["best"]


def _postfix(state: _Progress) -> str:
    """Mean of the loss over the last steps, which count the more the later they are, and the last validation."""
    recent = torch.tensor(state.losses[-_WINDOW:], dtype=torch.float64)
    weights = _SMOOTHING ** torch.arange(len(recent), 0, -1)
    text = f"loss {float((weights * recent).sum() / weights.sum()):.4g}"
    return text + (f", validation {state.validations[-1][1]:.4g}" if state.validations else "")
