from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.testing import assert_close

from pyro_sde.infer.checkpoint import save
from pyro_sde.infer.elbo import JitPathELBO
from pyro_sde.infer.fit import FitOptions, fit
from pyro_sde.infer.fit_sharded import fit_sharded
from pyro_sde.infer.sharded_elbo import ShardedELBO
from pyro_sde.infer.streams import minibatches
from tests.infer.sharded_problem import (
    BATCH,
    EVERY,
    KILLED_AFTER,
    REDUCTION,
    SERIES,
    STEPS,
    gradients,
    interrupted,
    problem,
)

ROOT = Path(__file__).resolve().parents[2]
QUIET = FitOptions(progress=False)


def launch(task, folder, processes=2):
    """Run a task of `sharded_problem` in several processes; returns their exit codes and what they said."""
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    environment = {**os.environ, **loopback, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-m", "tests.infer.sharded_problem", task]
    running = [
        subprocess.Popen(
            [*command, str(rank), str(processes), str(folder)],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    said = [process.communicate(timeout=240)[1] for process in running]
    return [process.returncode for process in running], said


module = sys.modules["pyro_sde.infer.fit_sharded"]  # the package offers the function under this name


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes found, and the folder with the file of their last run, in which one was killed."""
    folder = tmp_path_factory.mktemp("two")
    codes, said = launch("all", folder)
    files = [folder / f"rank{rank}.pt" for rank in range(2)]
    assert all(file.exists() for file in files), "\n".join(said)
    return codes, [torch.load(file, weights_only=True) for file in files], folder


@pytest.mark.parametrize("count", [BATCH, 1])
@pytest.mark.parametrize("name", REDUCTION)
def test_two_processes_have_loss_and_gradient_of_one(name, count, two):
    loss = problem(name)
    whole = loss(torch.arange(count), 5)
    grads = gradients(loss, whole)
    for rank in range(2):
        value, found = two[1][rank][f"{name} {count}"]
        assert_close(value, whole.detach(), rtol=0, atol=1e-9)
        for key, grad in grads.items():
            assert_close(found[key], grad, rtol=0, atol=1e-9)


def test_two_processes_train_as_one_does(two, tmp_path):
    losses, parameters = interrupted(tmp_path)
    for rank in range(2):
        found = two[1][rank]["run"]
        assert_close(found[0], losses, rtol=0, atol=1e-9)
        assert_close(found[1], parameters, rtol=0, atol=1e-7)


def test_only_rank_0_writes(two):
    assert [found["files"] for found in two[1]] == [["run.pt"], []]


def test_ranks_that_do_not_share_a_disk_are_told(two):
    for found in two[1]:
        assert "read at different steps by the ranks: [6, 0]. Put it on a disk that all share" in found["not shared"]


def test_fewer_shards_than_processes_are_told(two):
    assert "`num_shards` is 1, too few for 2 processes" in two[1][0]["too few shards"]


def test_run_with_a_killed_worker_resumes_as_if_nothing_had_happened(two, tmp_path):
    codes, _, folder = two
    assert codes[1] == 9
    assert codes[0] != 0  # rank 0 does not go on alone
    steps = []
    losses, parameters = interrupted(folder, lambda step: steps.append(step.step), resume=True)
    assert steps[0] == KILLED_AFTER // EVERY * EVERY + 1
    whole = interrupted(tmp_path)
    assert_close(losses, whole[0], rtol=0, atol=1e-9)
    assert_close(parameters, whole[1], rtol=0, atol=1e-7)


@pytest.mark.slow
def test_two_processes_resume_what_one_began(tmp_path):
    interrupted(tmp_path, lambda step: step.step == EVERY)
    codes, said = launch("resume", tmp_path)
    assert codes == [0, 0], "\n".join(said)
    losses, parameters = torch.load(tmp_path / "rank1.pt", weights_only=True)
    (tmp_path / "whole").mkdir()
    whole = interrupted(tmp_path / "whole")
    assert_close(losses, whole[0], rtol=0, atol=1e-9)
    assert_close(parameters, whole[1], rtol=0, atol=1e-7)


# ------------------------------------------------------------------------------------------------------- one process
class Mean(PyroModule):
    """The mean of the series, without noise in the loss."""

    def __init__(self):
        super().__init__()
        self.loc = PyroParam(torch.tensor(3.0))

    def forward(self, y):
        with pyro.plate("series", len(y)):
            pyro.sample("y", dist.Normal(self.loc, 0.1), obs=y)


def mean_loss(y, **options):
    model = Mean()
    return model, ShardedELBO(model, nn.Identity(), lambda i: (y[i],), num_shards=2, **options)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_losses_and_steps_are_those_of_fit(clip):
    y = torch.linspace(-1.0, 1.0, 4) ** 3
    options = FitOptions(progress=False, clip=clip, decay=0.3)
    model, loss = mean_loss(y)
    found = fit_sharded(loss, 4, steps=5, learning_rate=0.1, options=options)
    other = Mean()
    expected = fit(other, nn.Identity(), [(y,)], steps=5, learning_rate=0.1, options=options)
    assert_close(found.losses, expected.losses)
    assert_close(model.loc, other.loc)
    assert found[1:4] == ([], 5, False)
    assert found.seconds > 0


def test_interrupted_run_equals_one_that_was_not(tmp_path):
    (tmp_path / "whole").mkdir()
    whole = interrupted(tmp_path / "whole")
    interrupted(tmp_path, lambda step: step.step == KILLED_AFTER)
    resumed = interrupted(tmp_path, resume=True)
    assert resumed[0] == whole[0]
    assert_close(resumed[1], whole[1], rtol=0, atol=0)


def test_resume_without_a_file_starts_anew(tmp_path):
    assert len(interrupted(tmp_path, resume=True)[0]) == STEPS


def test_callback_is_told_the_step_and_stops_the_run():
    told = []
    loss = mean_loss(torch.zeros(3))[1]
    options = FitOptions(progress=False, callback=lambda step: bool(told.append(step)) or step.step == 2, decay=0.5)
    result = fit_sharded(loss, 3, steps=5, learning_rate=0.2, options=options)
    assert result.stopped_early
    assert result.losses == [step.loss for step in told]
    assert [step.step for step in told] == [1, 2]
    assert_close(told[1].learning_rate, 0.2 * 0.5 ** (1 / 4))
    assert {step.validation_loss for step in told} == {None}


def test_every_step_has_the_minibatch_of_seed_and_step():
    y, asked = torch.zeros(6), []
    loss = ShardedELBO(Mean(), nn.Identity(), lambda i: asked.append(i) or (y[i],), num_shards=1, seed=2)
    fit_sharded(loss, 6, steps=4, batch_size=2, options=QUIET)
    choose = minibatches(6, 2, 2)
    assert [indices.tolist() for indices in asked] == [choose(step).tolist() for step in range(4)]


def test_weight_of_the_divergence_rises_and_is_put_back():
    loss, seen = problem("local"), []
    given, loss.elbo.kl_weight = loss._batch, 0.5
    loss._batch = lambda indices: seen.append(loss.elbo.kl_weight) or given(indices)
    told = []
    options = FitOptions(progress=False, kl_warmup=4, kl_start=0.2, callback=lambda s: told.append(s.kl_weight))
    fit_sharded(loss, SERIES, steps=2, batch_size=1, options=options)
    assert_close(seen, [0.5 * (0.2 + 0.8 * 0.25), 0.5 * (0.2 + 0.8 * 0.5)])
    assert_close(told, seen)
    assert loss.elbo.kl_weight == 0.5


def test_progress_bar_shows_the_loss(capsys):
    fit_sharded(mean_loss(torch.zeros(3))[1], 3, steps=2, options=FitOptions())
    assert "loss" in capsys.readouterr().err


@pytest.mark.parametrize(("steps", "rate"), [(0, 0.1), (1, 0.0)])
def test_steps_and_learning_rate_out_of_range(steps, rate):
    with pytest.raises(ValueError, match="`steps` must be >= 1 and `learning_rate` > 0 and finite, received"):
        fit_sharded(mean_loss(torch.zeros(3))[1], 3, steps=steps, learning_rate=rate)


@pytest.mark.parametrize("option", [{"average": 0.9}, {"patience": 2}, {"elbo": JitPathELBO()}])
def test_options_that_are_not_for_several_processes(option):
    with pytest.raises(ValueError, match=f"`{next(iter(option))}` is not an option of sharded training"):
        fit_sharded(mean_loss(torch.zeros(3))[1], 3, options=FitOptions(progress=False, **option))


def test_warm_up_needs_a_weight():
    model = Mean()
    loss = ShardedELBO(model, nn.Identity(), lambda i: (i,), JitPathELBO(), num_shards=1)
    with pytest.raises(ValueError, match="`kl_warmup` needs a PathELBO, whose weight can change; received JitPathELBO"):
        fit_sharded(loss, 3, options=FitOptions(progress=False, kl_warmup=2))


def test_nothing_to_train():
    loss = ShardedELBO(nn.Identity(), nn.Identity(), lambda i: (i,), num_shards=1)
    with pytest.raises(ValueError, match="no parameters to train; an automatic guide gets its own"):
        fit_sharded(loss, 3, options=QUIET)


@pytest.mark.parametrize(("factor", "said"), [(math.inf, "loss is -?(inf|nan)"), (1e307, "gradient inf")])
def test_loss_or_gradient_that_is_not_finite_stops_the_run(factor, said):
    model, loss = mean_loss(torch.zeros(3))
    loss.scale = factor
    with torch.no_grad():
        model.loc.fill_(0.1)
    with pytest.raises(ValueError, match=rf"step 1: .*{said}"):
        fit_sharded(loss, 3, options=QUIET)
    assert float(model.loc.detach()) == 0.1


@pytest.mark.parametrize("change", [{"seed": 1}, {"num_shards": 3}, {"size": 6}, {"batch_size": 4}])
def test_checkpoint_of_another_run(change, tmp_path):
    interrupted(tmp_path, lambda step: True)
    own = {key: value for key, value in change.items() if key in ("seed", "num_shards")}
    loss = problem("local", scale=0.2, **own)
    options = FitOptions(progress=False, checkpoint=tmp_path / "run.pt", resume=True)
    sizes = {"size": SERIES, "batch_size": BATCH, **{k: v for k, v in change.items() if k not in own}}
    with pytest.raises(ValueError, match=f"`checkpoint` is of another run: .*'{next(iter(change))}'"):
        fit_sharded(loss, sizes["size"], batch_size=sizes["batch_size"], options=options)


def test_checkpoint_that_is_no_run(tmp_path):
    loss = problem("local")
    optimiser = torch.optim.Adam(loss.parameters())
    save(tmp_path / "run.pt", model=dict(loss.parts), optimizer=optimiser)
    options = FitOptions(progress=False, checkpoint=tmp_path / "run.pt", resume=True)
    with pytest.raises(ValueError, match="`checkpoint` is of another run: it has None"):
        fit_sharded(loss, SERIES, options=options)


def test_rank_0_alone_writes_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "DistributedDataParallel", lambda loss: loss)
    monkeypatch.setattr(module.distributed, "all_reduce", lambda value: value.mul_(2))
    monkeypatch.setattr(
        module.distributed, "all_gather_object", lambda found, step: found.__setitem__(slice(None), [0])
    )
    monkeypatch.setattr(module.distributed, "barrier", lambda: None)
    for rank in (1, 0):
        monkeypatch.setattr(module, "place", lambda rank=rank: (rank, 2))
        options = FitOptions(checkpoint=tmp_path / "run.pt")
        loss = mean_loss(torch.zeros(3))[1]
        result = fit_sharded(loss, 3, steps=1, options=options)
        assert math.isfinite(result.losses[0])
        assert (tmp_path / "run.pt").exists() is (rank == 0)
        assert bool(capsys.readouterr().err) is (rank == 0)


def test_float32():
    loss = problem("local", dtype=torch.float32)
    result = fit_sharded(loss, SERIES, steps=2, options=QUIET)
    assert all(math.isfinite(value) for value in result.losses)
    assert {p.dtype for p in loss.parameters()} == {torch.float32}
