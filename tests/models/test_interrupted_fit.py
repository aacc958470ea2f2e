"""A `LatentSDE` whose training is killed, wherever that is, goes on bit by bit as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pyro
import pytest
import torch

from pyro_sde.data import synthetic
from pyro_sde.infer import FitOptions
from pyro_sde.infer._run import Run
from pyro_sde.infer.checkpoint import load
from pyro_sde.models import Architecture, LatentSDE

SMALL = Architecture(hidden=(8,), decoder_hidden=(), encoder_hidden=8, context_dim=4)
STEPS = 8


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def series():
    made = synthetic.ornstein_uhlenbeck(0, num_series=12, num_times=6, end_time=3.0, irregular=True)
    return made.standardise()[0]


def build(seed=0, dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LatentSDE(2, 1, max_step=0.5, architecture=SMALL).to(dtype)


def train(latent, series, **options):
    settings = FitOptions(progress=False, validate_every=2, average=0.9, kl_warmup=4, **options)
    return latent.fit(series, steps=STEPS, batch_size=4, validation=0.25, seed=3, options=settings)


def weights(module):
    return torch.cat([value.detach().double().flatten() for value in module.state_dict().values()])


@pytest.fixture(scope="module")
def uninterrupted(series):
    latent = build()
    return latent, train(latent, series)


@pytest.fixture(scope="module")
def whole_file(series, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run.pt"
    train(build(), series, checkpoint=path)
    return path.read_bytes()


def check_resumes(path, series, uninterrupted, seed=5):
    whole, expected = uninterrupted
    resumed = build(seed)  # with a file, its own start does not matter
    result = train(resumed, series, checkpoint=path, checkpoint_every=2, resume=True)
    assert result.losses == expected.losses
    assert result.validation_losses == expected.validation_losses
    assert result.best_step == expected.best_step
    assert torch.equal(weights(resumed), weights(whole))
    assert len(pyro.get_param_store()) == 0


def test_killed_while_a_checkpoint_is_written(series, uninterrupted, tmp_path, monkeypatch):
    path, real, written = tmp_path / "run.pt", torch.save, []

    def dies_the_third_time(data, file):
        written.append(data)
        if len(written) < 3:
            real(data, file)
            return
        file.write(b"half of it")
        file.flush()
        raise KilledError

    monkeypatch.setattr(torch, "save", dies_the_third_time)
    with pytest.raises(KilledError):
        train(build(), series, checkpoint=path, checkpoint_every=2)
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]
    assert len(load(path, strict=False)["losses"]) == 4  # the second write
    check_resumes(path, series, uninterrupted)


def test_killed_before_the_first_checkpoint_is_whole(series, uninterrupted, tmp_path, monkeypatch):
    path = tmp_path / "run.pt"

    def dies(draft, target):
        raise KilledError

    monkeypatch.setattr(type(Path()), "replace", dies)
    with pytest.raises(KilledError):
        train(build(), series, checkpoint=path, checkpoint_every=2)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    check_resumes(path, series, uninterrupted, seed=0)


@pytest.mark.parametrize("validations", [1, 2, 3])
def test_killed_inside_a_validation(validations, series, uninterrupted, tmp_path, monkeypatch):
    path, real, seen = tmp_path / "run.pt", Run.validate, []

    def dies(run, *arguments):
        seen.append(1)
        if len(seen) > validations:
            raise KilledError
        return real(run, *arguments)

    monkeypatch.setattr(Run, "validate", dies)
    latent = build()
    with pytest.raises(KilledError):
        train(latent, series, checkpoint=path, checkpoint_every=2)
    monkeypatch.undo()
    check_resumes(path, series, uninterrupted)


def test_killed_in_the_write_that_ends_the_run(series, uninterrupted, tmp_path, monkeypatch):
    path, real, written = tmp_path / "run.pt", torch.save, []
    whole = STEPS // 2 + 1  # one every second step, and the last one again

    def dies_in_the_last(data, file):
        written.append(data)
        if len(written) == whole:
            raise KilledError
        real(data, file)

    monkeypatch.setattr(torch, "save", dies_in_the_last)
    with pytest.raises(KilledError):
        train(build(), series, checkpoint=path, checkpoint_every=2)
    monkeypatch.undo()
    assert len(load(path, strict=False)["losses"]) == STEPS
    check_resumes(path, series, uninterrupted)


@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.99])
def test_a_file_cut_short_by_other_means_is_refused_and_nothing_changes(part, whole_file, series, tmp_path):
    path = tmp_path / "run.pt"
    path.write_bytes(whole_file[: int(part * len(whole_file))])
    latent = build(seed=5)
    before = weights(latent)
    with pytest.raises(ValueError, match=r"run.pt is no checkpoint written by `save` of this package: "):
        train(latent, series, checkpoint=path, resume=True)
    assert torch.equal(weights(latent), before)


def test_float64_runs_resume_too(series, tmp_path):
    path, whole, resumed = tmp_path / "run.pt", build(dtype=torch.float64), build(seed=5, dtype=torch.float64)
    expected = train(whole, series)

    def stop(step):
        if step.step == 5:
            raise KilledError

    with pytest.raises(KilledError):
        train(build(dtype=torch.float64), series, checkpoint=path, checkpoint_every=2, callback=stop)
    assert train(resumed, series, checkpoint=path, resume=True).losses == expected.losses
    assert torch.equal(weights(resumed), weights(whole))
    assert torch.load(path, weights_only=True)["format"] == "pyro_sde.checkpoint"
