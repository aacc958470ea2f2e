r"""The loss of a set of series cut into shards, as a module for data-parallel training."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.poutine.util import site_is_subsample
from torch import Tensor, distributed, nn

from ._probe import owner_module
from .elbo import PathELBO
from .streams import seeded

__all__ = ["ShardedELBO", "place"]

_REDUCTIONS = ("sum", "mean")


def place() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) where `torch.distributed` was not started.

    Example:
        >>> place()
        (0, 1)
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


class ShardedELBO(nn.Module):
    r"""Loss of a minibatch of series, cut into S shards with random numbers of their own.

    .. math::
        \mathcal{L} = c \sum_{s=1}^{S} w_s\, \mathcal{L}_s, \qquad
        w_s = 1 \ \text{("sum")} \quad \text{or} \quad w_s = n_s / n \ \text{("mean")}

    :math:`\mathcal{L}_s` is the loss of an `ELBO` on the :math:`n_s` series of shard s, drawn from the random stream
    (seed, step, s), and c is `scale`. Shard s belongs to rank ``s % P`` of P processes. So loss and gradient depend on
    the number of shards, and not on the number of processes: P processes equal one to round-off, and a run can be
    resumed on another number of them. Take the number of processes, or a multiple; a rank runs its shards one after
    the other, each of them vectorised.

    This is the ``PathELBO()(model, guide)`` of Pyro, an ``nn.Module`` that holds the modules of model and guide, for
    ``torch.nn.parallel.DistributedDataParallel``. What `forward` returns on one rank is P times its part, since DDP
    averages gradients: only the mean over ranks is the loss. Pyro's parameter store is neither used nor changed.

    Which `reduction` is right depends on the model:

    * "sum": the model has a plate of the series that it is given, ``pyro.plate("series", len(y))``, and everything is
      inside it. The loss is the sum over the minibatch.
    * "mean": the loss of any set of series estimates that of all: a plate of all series with those given as its
      subsample, ``pyro.plate("series", total, subsample_size=len(y))``. Sites outside the plate (global latent
      variables) are allowed; each shard draws its own.

    Note:
        Buffers that a forward pass changes (batch normalisation) are those of rank 0 under DDP; the equality of P
        processes and one is lost. Encoders whose context depends on other series of the batch have the same effect.

    Args:
        model: Pyro model, a module or a method of one.
        guide: Pyro guide, likewise; may be a method of the same module.
        batch: maps indices of series ``(n,)`` on the CPU to the arguments of model and guide. A rank is asked for its
            own series only.
        elbo: loss; a `PathELBO` with its defaults if None. It is copied.
        num_shards: number S of shards, at least the number of processes.
        seed: of the noise of every step.
        reduction: "sum" or "mean", see above.
        scale: factor c of the loss, ``> 0``, such as 1 / (observed values of a minibatch).

    Shape:
        indices: ``(n,)``, n >= 1; shards differ by one series at most and may be empty · returns ``()``.

    Raises:
        TypeError: if model or guide belongs to no module, or `batch` cannot be called.
        ValueError: at construction if an option is out of range; at use if there are fewer shards than processes, a
            parameter is in no module or came to be too late, or, for "sum", a site is in no plate.

    References:
        Li et al. (2020), PyTorch Distributed, arXiv 2006.15704, section 3; Pyro's ``ELBOModule``.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro.nn import PyroModule, PyroParam
        >>> class Mean(PyroModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.loc = PyroParam(torch.tensor(0.0))
        ...
        ...     def model(self, y):
        ...         with pyro.plate("series", len(y)):
        ...             pyro.sample("y", dist.Normal(self.loc, 1.0), obs=y)
        ...
        ...     def guide(self, y):
        ...         pass
        >>> mean, y = Mean(), torch.arange(5.0)
        >>> loss = ShardedELBO(mean.model, mean.guide, lambda indices: (y[indices],), num_shards=2)
        >>> loss(torch.arange(5), step=0).backward()
        >>> mean.loc.grad
        tensor(-10.)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        batch: Callable[[Tensor], tuple[Any, ...]],
        elbo: ELBO | None = None,
        *,
        num_shards: int,
        seed: int = 0,
        reduction: str = "sum",
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if num_shards < 1 or not scale > 0:
            msg = f"`num_shards` must be >= 1 and `scale` > 0, received {num_shards} and {scale}."
            raise ValueError(msg)
        if reduction not in _REDUCTIONS:
            msg = f"`reduction` must be one of {_REDUCTIONS}, received {reduction!r}."
            raise ValueError(msg)
        if not callable(batch):
            msg = f"`batch` must be a function of indices of series, received {type(batch).__name__}."
            raise TypeError(msg)
        self.elbo: Any = copy(elbo) if elbo is not None else PathELBO()
        self.num_shards, self.seed, self.reduction, self.scale = num_shards, seed, reduction, scale
        # In a tuple: methods of a module, and `forward` of a module, are called; `parts` registers their owners.
        self._functions, self._batch = (model, guide), batch
        self.parts = nn.ModuleDict(_owners(model, guide))
        self._checked = False

    def forward(self, indices: Tensor, step: int = 0) -> Tensor:
        """P times the part of this rank in the loss; see the class.

        Args:
            indices: the series of the minibatch, the same on every rank, ``(n,)``.
            step: names the noise: same seed and step, same noise.
        """
        rank, processes = place()
        if self.num_shards < processes:
            msg = f"`num_shards` is {self.num_shards}, too few for {processes} processes; a multiple of them is best."
            raise ValueError(msg)
        if indices.dim() != 1 or len(indices) == 0:
            msg = f"`indices` must have shape (n,) with n >= 1, received {tuple(indices.shape)}."
            raise ValueError(msg)
        shards = enumerate(indices.cpu().tensor_split(self.num_shards))
        mine = [(number, shard) for number, shard in shards if number % processes == rank and len(shard)]
        # DDP waits for the gradient of every parameter, also of one that the series of this rank have no use for.
        total: Any = sum(p.reshape(-1)[:0].sum() for p in self.parameters() if p.requires_grad)
        for number, shard in mine:
            weight = self.scale * (len(shard) / len(indices) if self.reduction == "mean" else 1.0)
            with pyro.get_param_store().scope(), seeded(self.seed, "noise", step, number):
                total = total + weight * self._loss(self._batch(shard))
        return processes * total

    def prepare(self, indices: Tensor) -> None:
        """Run model and guide once, so that lazy parts (automatic guides) have all their parameters.

        Needed before ``DistributedDataParallel`` and before an optimiser is made, for such parts only.

        Args:
            indices: some series, ``(n,)``.
        """
        with pyro.get_param_store().scope(), seeded(self.seed, "example"), torch.no_grad():
            self.elbo.loss(*self._functions, *self._batch(indices))

    def _loss(self, arguments: tuple[Any, ...]) -> Tensor:
        """The differentiable loss of one shard."""
        if self._checked:
            return self.elbo.differentiable_loss(*self._functions, *arguments)
        known = {id(parameter) for parameter in self.parameters()}
        if self.reduction == "sum":
            self._check_plates(arguments)
        with poutine.trace(param_only=True) as capture:
            loss = self.elbo.differentiable_loss(*self._functions, *arguments)
        for name, site in capture.trace.nodes.items():
            value: Any = site["value"] if site["type"] == "param" else None
            leaf = value.unconstrained() if hasattr(value, "unconstrained") else value
            if leaf is not None and leaf.requires_grad and id(leaf) not in known:
                msg = (
                    f"parameter '{name}' is in no module of model and guide, or came to be in this call, so that the "
                    "other processes and the optimiser do not know it. Make it a PyroParam of a module; for an "
                    "automatic guide call `prepare` first."
                )
                raise ValueError(msg)
        self._checked = True
        return loss

    def _check_plates(self, arguments: tuple[Any, ...]) -> None:
        """A site in no plate would count once per shard."""
        model, guide = self._functions
        with torch.no_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            q = poutine.trace(guide).get_trace(*arguments)
            p = poutine.trace(poutine.replay(model, trace=q)).get_trace(*arguments)
        for trace in (q, p):
            for name, site in trace.nodes.items():
                plates: Any = site.get("cond_indep_stack") or ()
                shared = not any(frame.vectorized for frame in plates)
                if site["type"] == "sample" and shared and not site_is_subsample(site):
                    msg = (
                        f"site '{name}' is in no plate, so that it would count once per shard. Put it into the plate "
                        'of the series; or, if all series share it, use reduction="mean" and a plate of all series '
                        "with a subsample."
                    )
                    raise ValueError(msg)


def _owners(model: Callable[..., Any], guide: Callable[..., Any]) -> dict[str, nn.Module]:
    """The modules that hold the parameters; one entry if it is the same."""
    found: dict[str, nn.Module] = {}
    for role, function in (("model", model), ("guide", guide)):
        owner = owner_module(function)
        if owner is None:
            msg = (
                f"`{role}` must be a module or a method of one, whose parameters all processes share; received "
                f"{getattr(function, '__name__', type(function).__name__)}. Make it the `forward` of a PyroModule."
            )
            raise TypeError(msg)
        if all(owner is not known for known in found.values()):
            found[role] = owner
    return found
