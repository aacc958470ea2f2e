from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from torch.testing import assert_close

from pyro_sde.infer.fit import FitOptions
from pyro_sde.infer.fit_sharded import fit_sharded
from pyro_sde.infer.lightning_module import lightning_module
from tests.infer.sharded_problem import BATCH, SERIES, STEPS, problem

INSTALLED = importlib.util.find_spec("lightning") is not None
needs_lightning = pytest.mark.skipif(not INSTALLED, reason="lightning is not installed")
# Lightning's own warnings (number of workers, missing loggers) and those of what it imports.
quiet = pytest.mark.filterwarnings("ignore")


def train(folder, steps, checkpoint=None):
    """Losses and parameters of a run with Lightning's Trainer, and the file that it wrote at its end."""
    from lightning import Callback, Trainer

    losses = []

    class Record(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            losses.append(float(outputs["loss"]))

    loss = problem("local", scale=0.2)
    module = lightning_module(loss, SERIES, batch_size=BATCH, learning_rate=0.02)
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        callbacks=[Record()],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.fit(module, ckpt_path=checkpoint)
    trainer.save_checkpoint(folder / "run.ckpt")
    return losses, {name: p.detach().clone() for name, p in loss.named_parameters()}


@quiet
@needs_lightning
def test_trainer_makes_the_steps_of_fit_sharded(tmp_path):
    losses, parameters = train(tmp_path, STEPS)
    loss = problem("local", scale=0.2)
    options = FitOptions(progress=False, decay=1.0, clip=None)
    expected = fit_sharded(loss, SERIES, steps=STEPS, batch_size=BATCH, learning_rate=0.02, options=options)
    assert_close(losses, expected.losses)
    assert_close(parameters, {name: p.detach() for name, p in loss.named_parameters()})


@quiet
@needs_lightning
def test_resumed_run_equals_one_that_was_not_interrupted(tmp_path):
    whole = train(tmp_path, STEPS)
    first, _ = train(tmp_path, 3)
    second, parameters = train(tmp_path, STEPS, checkpoint=tmp_path / "run.ckpt")
    assert_close(first + second, whole[0])
    assert_close(parameters, whole[1])


@quiet
@needs_lightning
def test_an_epoch_has_all_series():
    module = lightning_module(problem("local"), SERIES, batch_size=BATCH)
    assert list(module.train_dataloader()) == [0, 1]
    assert len(module.train_dataloader()) == 2


@quiet
@needs_lightning
def test_learning_rate_out_of_range():
    with pytest.raises(ValueError, match="`learning_rate` must be > 0, received 0"):
        lightning_module(problem("local"), SERIES, learning_rate=0)


@quiet
@needs_lightning
def test_float32():
    module = lightning_module(problem("local", dtype=torch.float32), SERIES)
    assert module(torch.arange(3), 0).dtype == torch.float32


def test_without_lightning_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning", None)
    with pytest.raises(ImportError, match="needs the package lightning: pip install lightning"):
        lightning_module(problem("local"), SERIES)
