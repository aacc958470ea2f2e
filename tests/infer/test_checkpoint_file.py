"""The file of a checkpoint: plain data without code, whole or not at all, and old layouts loaded or refused by name."""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam, pyro_method
from torch import nn

from pyro_sde.infer import FitOptions, fit
from pyro_sde.infer.checkpoint import load, save

Y = torch.tensor([0.3, 1.2, 0.9], dtype=torch.float64)

# What torch itself writes for tensors and their containers; `weights_only=True` reads no more.
PLAIN = {
    "collections OrderedDict",
    "torch Size",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {kind}Storage" for kind in ("Bool", "Byte", "Double", "Float", "Int", "Long")),
}


@pytest.fixture(autouse=True)
def _clean():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


class Pair(PyroModule):
    """A Normal mean with a Normal guide, whose deviation is constrained, and a buffer that counts."""

    def __init__(self, loc=0.0):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(loc, dtype=torch.float64))
        self.scale = PyroParam(torch.tensor(0.7, dtype=torch.float64), constraints.positive)
        self.register_buffer("calls", torch.tensor(0.0))

    @pyro_method
    def model(self, y):
        mean = pyro.sample("mean", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    @pyro_method
    def guide(self, y):
        self.calls += 1
        pyro.sample("mean", dist.Normal(self.loc, self.scale))


def run(path, pair=None, *, steps=6, seed=0, **options):
    pair = pair or Pair()
    with pyro.get_param_store().scope():
        settings = FitOptions(progress=False, checkpoint=path, checkpoint_every=2, **options)
        result = fit(pair.model, pair.guide, [(Y,)], steps=steps, validation=(Y + 0.5,), seed=seed, options=settings)
    return pair, result


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def code_named_in(path):
    """Names of functions and classes that unpickling a file of torch would look up."""
    found, words = set(), []
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith(".pkl")]
        assert pickles
        for name in pickles:
            for opcode, argument, _ in pickletools.genops(io.BytesIO(archive.read(name))):
                if opcode.name == "GLOBAL":
                    found.add(argument)
                elif opcode.name == "STACK_GLOBAL":
                    found.add(" ".join(words[-2:]))
                elif isinstance(argument, str):
                    words.append(argument)
                assert opcode.name not in {"INST", "OBJ", "EXT1", "EXT2", "EXT4"}
    return found


def training_files(tmp_path):
    """A file of every maker: a run with and without its extras, modules, a lazy guide with optimisers, functions."""
    run(tmp_path / "run.pt", average=0.9, validate_every=2)
    run(tmp_path / "bare.pt")
    pair = Pair()
    optimiser = torch.optim.Adam(pair.parameters())
    pair.loc.grad = torch.ones_like(pair.loc)
    optimiser.step()
    save(tmp_path / "torch.pt", guide=pair, optimizer=optimiser, extra={"rng": torch.get_rng_state(), "n": 3})

    def model():
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.2)), 1.0))

    guide = AutoNormal(model)
    optim = pyro.optim.ClippedAdam({"lr": 0.01, "clip_norm": 10.0})
    pyro.infer.SVI(model, guide, optim, pyro.infer.Trace_ELBO()).step()
    save(tmp_path / "pyro.pt", model=model, guide=guide, optimizer=optim)
    return sorted(tmp_path.glob("*.pt"))


def test_no_file_names_any_code_but_the_containers_of_torch(tmp_path):
    files = training_files(tmp_path)
    assert len(files) == 4
    for path in files:
        assert code_named_in(path) <= PLAIN, path.name
        content = torch.load(path, weights_only=True)
        assert content["format"] == "pyro_sde.checkpoint"
        assert content["version"] == 1


def test_the_scan_sees_code_where_there_is_some(tmp_path):
    torch.save({"law": constraints.positive, "module": nn.Linear(1, 1)}, tmp_path / "code.pt")
    assert not code_named_in(tmp_path / "code.pt") <= PLAIN
    with pytest.raises(ValueError, match=r"code.pt is no checkpoint .*: Weights only load failed"):
        load(tmp_path / "code.pt")


# --- older layouts


def rewritten(path, change):
    """Write a file anew after a change of its content, as an older version of the package might have written it."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


FIRST_LAYOUT = {"format", "version", "modules", "params", "constraints", "names", "optimizer", "extra"}
FIRST_RUN = {"seed", "tensors", "optimiser", "losses", "validations", "best"}  # before averages of the parameters


def test_a_run_of_the_first_layout_goes_on(tmp_path):
    path = tmp_path / "run.pt"
    run(path, steps=4, decay=1.0, validate_every=2)

    def older(content):
        for entries, known in ((content["extra"], FIRST_RUN), (content, FIRST_LAYOUT)):
            assert set(entries) >= known
            for name in set(entries) - known:
                del entries[name]

    rewritten(path, older)
    resumed, result = run(path, steps=8, decay=1.0, validate_every=2, resume=True)
    whole, expected = run(tmp_path / "other.pt", steps=8, decay=1.0, validate_every=2)
    assert result.losses == expected.losses
    assert same(weights(resumed), weights(whole))


def test_the_file_of_version_0_1_0_is_read_and_its_run_goes_on(tmp_path):
    # Written by `run` with 4 steps, an average and validation; never to be made anew: files of users are as old.
    path = tmp_path / "run.pt"
    path.write_bytes((Path(__file__).parent / "checkpoint_v1.pt").read_bytes())
    pair = Pair(loc=5.0)
    with pyro.get_param_store().scope():
        state = load(path, model=pair)
    assert pair.loc.item() == pytest.approx(0.01304775764804053, rel=1e-12)
    assert pair.scale.item() == pytest.approx(0.6942760680594439, rel=1e-12)
    assert pair.calls.item() == 4
    losses = [4.540770871709117, 2.96514488549879, 5.9163556718737205, 3.026221852450867]
    assert state["losses"] == pytest.approx(losses, rel=1e-12)
    _, result = run(path, steps=6, average=0.9, validate_every=2, resume=True)
    assert result.losses[:4] == pytest.approx(losses, rel=1e-12)
    assert len(result.losses) == 6


def test_an_average_that_the_file_does_not_have_is_refused_by_name(tmp_path):
    path = tmp_path / "run.pt"
    run(path, steps=4, average=0.9)
    rewritten(path, lambda content: content["extra"].pop("average"))
    pair = Pair(loc=5.0)
    with pytest.raises(ValueError, match="`checkpoint` is of a run without `average`; resume it as it began"):
        run(path, pair, steps=8, average=0.9, resume=True)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda content: content.update(format="another.checkpoint"), "may be a state_dict"),
        (lambda content: content.update(version=2), "has format version 2, this package reads up to 1; update it"),
    ],
)
def test_another_layout_is_refused_by_name_and_nothing_changes(change, text, tmp_path):
    path = tmp_path / "run.pt"
    save(path, guide=Pair(loc=1.0))
    rewritten(path, change)
    pair = Pair(loc=5.0)
    before = weights(pair)
    with pytest.raises(ValueError, match=text):
        load(path, guide=pair)
    assert same(weights(pair), before)
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize("name", ["modules", "params", "constraints", "names", "optimizer", "extra"])
def test_a_layout_without_an_entry_is_refused_by_its_name_and_nothing_changes(name, tmp_path):
    path = tmp_path / "run.pt"
    save(path, guide=Pair(loc=1.0))
    rewritten(path, lambda content: content.pop(name))
    pair = Pair(loc=5.0)
    before = weights(pair)
    with pytest.raises(ValueError, match=f"run.pt has no entry '{name}'"):
        load(path, guide=pair)
    assert same(weights(pair), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_checkpoint_has_the_dtype_of_its_module(dtype, tmp_path):
    module = nn.Linear(2, 1).to(dtype)
    save(tmp_path / "run.pt", model=module)
    other = nn.Linear(2, 1).to(dtype)
    load(tmp_path / "run.pt", model=other)
    assert other.weight.dtype == dtype
    assert same(weights(other), weights(module))


# --- whole or not at all


class KilledError(Exception):
    pass


@pytest.mark.parametrize("moment", ["while torch writes", "before the file is renamed"])
@pytest.mark.parametrize("write", [1, 2])
def test_a_run_killed_inside_a_write_leaves_the_file_before_it_and_resumes_bit_by_bit(
    moment, write, tmp_path, monkeypatch
):
    path = tmp_path / "run.pt"
    whole, expected = run(tmp_path / "whole.pt", steps=8, average=0.9, validate_every=2)
    (tmp_path / "whole.pt").unlink()
    calls, real = [], torch.save

    def killed(data, file):
        calls.append(1)
        if len(calls) <= write:
            real(data, file)
            return
        file.write(b"half of it")
        raise KilledError

    def never_renamed(draft, target):
        calls.append(1)
        if len(calls) > write:
            raise KilledError
        return rename(draft, target)

    rename = type(path).replace
    if moment == "while torch writes":
        monkeypatch.setattr(torch, "save", killed)
    else:
        monkeypatch.setattr(type(path), "replace", never_renamed)
    with pytest.raises(KilledError):
        run(path, steps=8, average=0.9, validate_every=2)
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]  # no draft is left
    with pyro.get_param_store().scope():
        assert len(load(path, strict=False)["losses"]) == 2 * write
    resumed, result = run(path, steps=8, average=0.9, validate_every=2, resume=True)
    assert result.losses == expected.losses
    assert result.validation_losses == expected.validation_losses
    assert result.best_step == expected.best_step
    assert torch.equal(resumed.loc, whole.loc)
    assert torch.equal(resumed.scale, whole.scale)
