r"""Sharded training with the Trainer of Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .sharded_elbo import ShardedELBO, place
from .streams import minibatches

if TYPE_CHECKING:
    from lightning import LightningModule  # pyright: ignore[reportMissingImports] (optional)

__all__ = ["lightning_module"]


def lightning_module(
    loss: ShardedELBO, size: int, *, batch_size: int = 64, learning_rate: float = 1e-2
) -> LightningModule:
    """A ``LightningModule`` that trains a sharded loss with Adam; `fit_sharded` does the same without Lightning.

    Its data are numbers of steps; minibatches and noise follow from the seed of `loss` and ``trainer.global_step``. So
    a run that is resumed from a checkpoint of Lightning (``trainer.fit(module, ckpt_path=...)``) equals one that was
    not interrupted, and P processes equal one. Devices, precision, clipping and checkpoints are the Trainer's. It logs
    "loss", the mean over ranks. Needs the package ``lightning``.

    Args:
        loss: the loss; its modules are trained in place.
        size: number of series.
        batch_size: series per step on all processes together.
        learning_rate: of Adam, ``> 0``.

    Raises:
        ValueError: if `learning_rate` is not positive, or a size is out of range.
        ImportError: without ``lightning``; the message says what to install.

    References:
        Pyro's example ``svi_lightning.py``.

    Example:
        >>> module = lightning_module(loss, len(y))  # doctest: +SKIP
        >>> Trainer(max_steps=1000, strategy="ddp", devices=2).fit(module)  # doctest: +SKIP
    """
    try:
        from lightning import LightningModule  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        msg = "`lightning_module` needs the package lightning: pip install lightning. `fit_sharded` does without it."
        raise ImportError(msg) from error
    if not learning_rate > 0:
        msg = f"`learning_rate` must be > 0, received {learning_rate}."
        raise ValueError(msg)
    choose = minibatches(size, batch_size, loss.seed)

    class Sharded(LightningModule):
        """One step of Adam on the loss of a minibatch, on every rank its own shards."""

        def __init__(self) -> None:
            super().__init__()
            self.loss = loss

        def forward(self, indices: Tensor, step: int) -> Tensor:
            return self.loss(indices, step)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ANN401, ARG002
            step = self.global_step
            part = self(choose(step), step)
            self.log("loss", part.detach(), sync_dist=place()[1] > 1, prog_bar=True, batch_size=1)
            return part

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=learning_rate)

        def train_dataloader(self) -> DataLoader[int]:
            return DataLoader(_Steps(-(-size // batch_size)), batch_size=None)

    return Sharded()


class _Steps(torch.utils.data.IterableDataset[int]):
    """The steps of an epoch; every rank makes all of them, so there is nothing to distribute."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Any:  # noqa: ANN401
        return iter(range(self.count))

    def __len__(self) -> int:
        return self.count
