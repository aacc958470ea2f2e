r"""The training loop on several processes: one file of checkpoints, and runs that survive a killed worker."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from .checkpoint import load, save
from .elbo import JitPathELBO, PathELBO
from .fit import FitOptions, FitResult, FitStep
from .sharded_elbo import ShardedELBO, place
from .streams import minibatches

__all__ = ["fit_sharded"]


def fit_sharded(
    loss: ShardedELBO,
    size: int,
    *,
    steps: int = 1000,
    batch_size: int = 64,
    learning_rate: float = 1e-2,
    options: FitOptions | None = None,
) -> FitResult:
    """Train on all processes of `torch.distributed`, or on this one where it was not started.

    Every process calls this with the same arguments. Minibatches and noise are functions of the seed of `loss` and the
    step, gradients are summed by ``DistributedDataParallel``, and Adam makes the same step everywhere: the run equals
    that of one process with the same shards, to round-off.

    If a process dies, the others fail at their next step or wait for the timeout of the process group; torchrun ends
    them. Start them again with ``resume=True``, on any number of processes that the shards are enough for: rank 0
    writes `checkpoint`, all ranks read it, and the run goes on as if it had not been interrupted.

    Args:
        loss: the loss; its modules are trained in place.
        size: number of series, which `loss` is asked for by the indices 0 ... size - 1.
        steps: number of training steps in all, those of a resumed run included.
        batch_size: series per step on all processes together.
        learning_rate: of Adam, ``> 0``: the largest, at the first step or at the end of a warm-up.
        options: the settings of `fit` except `elbo`, `average` and `patience`. Rank 0 draws the progress bar; the
            callback runs on every rank, and must answer the same on all.

    Returns:
        The same on every rank; there are no validations.

    Raises:
        ValueError: if an argument is out of range or an option is not supported; if the loss or the gradient is not
            finite (on every rank, the message names the step); if the checkpoint is of another run, or ranks read
            different ones.

    References:
        Li et al. (2020), PyTorch Distributed, arXiv 2006.15704.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro.nn import PyroModule, PyroParam
        >>> class Mean(PyroModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.loc = PyroParam(torch.tensor(0.0))
        ...
        ...     def forward(self, y):
        ...         with pyro.plate("series", len(y)):
        ...             pyro.sample("y", dist.Normal(self.loc, 1.0), obs=y)
        >>> mean, y = Mean(), torch.ones(5)
        >>> loss = ShardedELBO(mean, nn.Identity(), lambda indices: (y[indices],), num_shards=2)
        >>> result = fit_sharded(loss, 5, steps=300, learning_rate=0.1, options=FitOptions(progress=False))
        >>> round(mean.loc.item(), 2)
        1.0
    """
    options = options or FitOptions()
    _check(loss, options, steps, learning_rate)
    started = time.perf_counter()
    choose = minibatches(size, batch_size, loss.seed)
    rank, processes = place()
    trained = DistributedDataParallel(loss) if processes > 1 else loss
    optimiser = torch.optim.Adam([p for p in loss.parameters() if p.requires_grad])
    plan = {
        "seed": loss.seed,
        "num_shards": loss.num_shards,
        "reduction": loss.reduction,
        "size": size,
        "batch_size": batch_size,
    }
    losses, stop = _resume(loss, optimiser, plan, options), False
    full_weight = getattr(loss.elbo, "kl_weight", 1.0)
    written = len(losses)
    bar = tqdm(total=steps, initial=written, disable=not options.progress or rank > 0, desc="fit", unit="step")
    with bar:
        try:
            while len(losses) < steps and not stop:
                done = len(losses)
                weight, rate = options.kl_weight(done + 1), learning_rate * options.rate_factor(done + 1, steps)
                if options.kl_warmup:
                    loss.elbo.kl_weight = full_weight * weight
                losses.append(_step(trained, optimiser, choose(done), done, rate, options.clip))
                done += 1
                if done % options.checkpoint_every == 0:
                    written = _save(loss, optimiser, plan, losses, options)
                if options.callback is not None:
                    stop = options.callback(FitStep(done, losses[-1], weight * full_weight, rate, None)) is True
                bar.set_postfix_str(f"loss {losses[-1]:.4g}", refresh=False)
                bar.update()
        finally:
            if options.kl_warmup:
                loss.elbo.kl_weight = full_weight
    if written < len(losses):
        _save(loss, optimiser, plan, losses, options)
    if processes > 1:
        distributed.barrier()  # whoever reads the file next finds the last one
    return FitResult(losses, [], len(losses), len(losses) < steps, time.perf_counter() - started)


def _check(loss: ShardedELBO, options: FitOptions, steps: int, learning_rate: float) -> None:
    if steps != int(steps) or steps < 1 or not 0 < learning_rate < math.inf:
        msg = f"`steps` must be >= 1 and `learning_rate` > 0 and finite, received {steps} and {learning_rate}."
        raise ValueError(msg)
    for name in ("elbo", "average", "patience"):
        if getattr(options, name) is not None:
            advice = "give it to ShardedELBO" if name == "elbo" else "train with `fit` on one process for it"
            msg = f"`{name}` is not an option of sharded training, received {getattr(options, name)!r}; {advice}."
            raise ValueError(msg)
    if options.kl_warmup and (not isinstance(loss.elbo, PathELBO) or isinstance(loss.elbo, JitPathELBO)):
        msg = f"`kl_warmup` needs a PathELBO, whose weight can change; received {type(loss.elbo).__name__}."
        raise ValueError(msg)
    if not any(p.requires_grad for p in loss.parameters()):
        msg = "model and guide have no parameters to train; an automatic guide gets its own by `loss.prepare(indices)`."
        raise ValueError(msg)


def _step(
    trained: nn.Module, optimiser: torch.optim.Optimizer, indices: Tensor, step: int, rate: float, clip: float | None
) -> float:
    """One update, the same on every rank; returns the loss of the whole minibatch."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad(set_to_none=True)
    part = trained(indices, step)
    part.backward()
    value = part.detach().double()
    if place()[1] > 1:
        distributed.all_reduce(value)
        value = value / place()[1]
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, math.inf if clip is None else clip)
    if not (math.isfinite(value) and bool(norm.isfinite())):  # both are sums over ranks: all of them stop
        msg = (
            f"step {step + 1}: the loss is {float(value):.4g} and the norm of its gradient {float(norm):.4g}. Use a "
            "smaller learning rate, or bound the scales of the model."
        )
        raise ValueError(msg)
    optimiser.step()
    return float(value)


def _save(
    loss: ShardedELBO,
    optimiser: torch.optim.Optimizer,
    plan: dict[str, Any],
    losses: list[float],
    options: FitOptions,
) -> int:
    """Let rank 0 write the state of the run, if there is a file for it; returns the steps done."""
    if options.checkpoint is not None and place()[0] == 0:
        with pyro.get_param_store().scope():
            save(
                options.checkpoint, model=dict(loss.parts), optimizer=optimiser, extra={"plan": plan, "losses": losses}
            )
    return len(losses)


def _resume(
    loss: ShardedELBO, optimiser: torch.optim.Optimizer, plan: dict[str, Any], options: FitOptions
) -> list[float]:
    """Losses so far, with modules and optimiser as they were then; the same on every rank."""
    losses: list[float] = []
    if options.resume and options.checkpoint is not None and Path(options.checkpoint).exists():
        with pyro.get_param_store().scope():
            extra = load(options.checkpoint, model=dict(loss.parts), optimizer=optimiser)
        if not isinstance(extra, dict) or extra.get("plan") != plan:
            found = extra.get("plan") if isinstance(extra, dict) else None
            msg = f"`checkpoint` is of another run: it has {found}, this one is {plan}. Name another file."
            raise ValueError(msg)
        losses = list(extra["losses"])
    if place()[1] > 1:
        steps: list[Any] = [None] * place()[1]
        distributed.all_gather_object(steps, len(losses))
        if len(set(steps)) > 1:
            msg = f"`checkpoint` was read at different steps by the ranks: {steps}. Put it on a disk that all share."
            raise ValueError(msg)
    return losses
