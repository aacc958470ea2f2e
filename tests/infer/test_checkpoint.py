import math
import os

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam
from pyro.optim import Adam, ClippedAdam, ExponentialLR
from torch import nn

from pyro_sde import PathELBO, SDEPath, TimeGrid
from pyro_sde.infer._plain import decode_constraint, encode_constraint
from pyro_sde.infer.auto import AutoSDE
from pyro_sde.infer.checkpoint import load, save
from pyro_sde.nn import ControlNet
from pyro_sde.sde import NeuralSDE, OrnsteinUhlenbeck

# AutoNormal stands here for any Pyro guide with parameters of its own; that it is bad for paths does not matter.
pytestmark = pytest.mark.filterwarnings("ignore:site 'z'. the guide treats the states of the path as independent")

TIMES = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
VALUES = torch.tensor([0.3, -0.4], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _clean():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def normal(dtype=None):
    return dist.Normal(torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)).to_event(1)


def steps(model, guide, optimizer, count, seed):
    """Losses of SVI steps whose noise depends on the seed alone."""
    pyro.set_rng_seed(seed)
    svi = SVI(model, guide, optimizer, PathELBO())
    return [svi.step() for _ in range(count)]


def same(ours, theirs):
    return ours == pytest.approx(theirs, rel=1e-12)


# --- programs: each builds (model, guide, what to pass to save and load) ----------------------------------------------


def functions(dtype=None):
    """Plain functions with ``pyro.module`` and ``pyro.param`` statements."""
    prior, control = NeuralSDE(1, hidden=(4,)).to(dtype), ControlNet(1, 1, hidden=(4,)).to(dtype)
    grid = TimeGrid(TIMES.to(dtype), max_step=0.25)

    def model():
        pyro.module("prior", prior)
        noise = pyro.param("noise", torch.tensor(0.3, dtype=dtype), constraint=constraints.interval(0.1, 1.0))
        z = pyro.sample("z", SDEPath(prior, normal(dtype), grid))
        pyro.sample("y", dist.Normal(grid.observed(z)[1:, 0], noise).to_event(1), obs=VALUES.to(dtype))

    def guide():
        pyro.module("control", control)
        rows = pyro.param("rows", torch.zeros(grid.num_steps, 1, dtype=dtype))
        scale = pyro.param("scale", torch.ones(1, dtype=dtype), constraint=constraints.softplus_positive)
        q0 = dist.Normal(torch.zeros(1, dtype=dtype), scale).to_event(1)
        pyro.sample("z", SDEPath(prior.controlled(control), q0, grid, inputs=rows))

    return model, guide, {"model": {"prior": prior}, "guide": {"control": control}}


class Net(PyroModule):
    """A `PyroModule` that is model and guide at once, with all kinds of parameters and a buffer."""

    def __init__(self):
        super().__init__()
        self.prior = NeuralSDE(1, hidden=(4,))
        self.control = ControlNet(1, 1, hidden=(4,))
        self.rows = nn.Parameter(torch.zeros(4, 1))
        self.noise = PyroParam(torch.tensor(0.3), constraint=constraints.positive)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.grid = TimeGrid(TIMES, max_step=0.25)

    @pyro.nn.pyro_method
    def model(self):
        self.calls += 1
        z = pyro.sample("z", SDEPath(self.prior, normal(), self.grid))
        pyro.sample("y", dist.Normal(self.grid.observed(z)[1:, 0], self.noise).to_event(1), obs=VALUES)

    @pyro.nn.pyro_method
    def guide(self):
        pyro.sample("z", SDEPath(self.prior.controlled(self.control), normal(), self.grid, inputs=self.rows))


def methods():
    net = Net()
    return net.model, net.guide, {"model": net.model, "guide": net.guide}


def auto_model():
    grid = TimeGrid(TIMES, max_step=0.25)
    scale = pyro.sample("scale", dist.LogNormal(torch.tensor(0.0), 0.5))
    z = pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, scale.unsqueeze(-1)), normal(), grid))
    pyro.sample("y", dist.Normal(grid.observed(z)[..., 1:, 0], 0.3).to_event(1), obs=VALUES)


def automatic(kind=AutoSDE):
    guide = kind(auto_model)
    return auto_model, guide, {"guide": guide}


PROGRAMS = {
    "functions": functions,
    "methods": methods,
    "auto sde": automatic,
    "auto normal": lambda: automatic(AutoNormal),
    "auto multivariate": lambda: automatic(AutoMultivariateNormal),
}
OPTIMIZERS = {
    "clipped": lambda: ClippedAdam({"lr": 0.03, "lrd": 0.9}),
    "by name": lambda: Adam(lambda name: {"lr": 0.1 if "rows" in name else 0.01}),
    "scheduled": lambda: ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.9}),
}


# --- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_new_process_goes_on_as_if_nothing_had_happened(program, optimizer, tmp_path):
    model, guide, parts = PROGRAMS[program]()
    optim = OPTIMIZERS[optimizer]()
    steps(model, guide, optim, 5, seed=1)
    if optimizer == "scheduled":
        optim.step()
    save(tmp_path / "run.pt", **parts, optimizer=optim, extra={"step": 5})
    expected = steps(model, guide, optim, 5, seed=2)
    final = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}

    pyro.clear_param_store()  # a new process: empty store, new modules with other weights
    pyro.set_rng_seed(99)
    model, guide, parts = PROGRAMS[program]()
    optim = OPTIMIZERS[optimizer]()
    assert load(tmp_path / "run.pt", **parts, optimizer=optim) == {"step": 5}
    if program.startswith("auto"):
        guide()  # draws initial values, which must not shift the noise of the steps
    assert same(steps(model, guide, optim, 5, seed=2), expected)
    store = pyro.get_param_store()
    assert set(store.keys()) == set(final)
    for name, value in final.items():
        torch.testing.assert_close(store[name].detach(), value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_running_process_can_be_set_back(program, tmp_path):
    model, guide, parts = PROGRAMS[program]()
    optim = OPTIMIZERS["clipped"]()
    steps(model, guide, optim, 3, seed=1)
    save(tmp_path / "run.pt", **parts, optimizer=optim)
    expected = steps(model, guide, optim, 4, seed=2)
    load(tmp_path / "run.pt", **parts, optimizer=optim)
    assert same(steps(model, guide, optim, 4, seed=2), expected)


def test_new_modules_meet_an_old_store(tmp_path):
    """Without `clear_param_store` the store still holds parameters of the modules that are gone."""
    for program in ("functions", "methods"):
        pyro.clear_param_store()
        model, guide, parts = PROGRAMS[program]()
        optim = OPTIMIZERS["clipped"]()
        steps(model, guide, optim, 3, seed=1)
        save(tmp_path / "run.pt", **parts, optimizer=optim)
        expected = steps(model, guide, optim, 4, seed=2)
        model, guide, parts = PROGRAMS[program]()
        load(tmp_path / "run.pt", **parts, optimizer=optim)
        assert same(steps(model, guide, optim, 4, seed=2), expected)


def test_a_file_written_before_training_wins_over_an_old_store(tmp_path):
    net = Net()
    save(tmp_path / "start.pt", model=net)  # no parameter is in the store yet
    expected = steps(net.model, net.guide, OPTIMIZERS["clipped"](), 3, seed=1)
    other = Net()
    load(tmp_path / "start.pt", model=other)
    assert same(steps(other.model, other.guide, OPTIMIZERS["clipped"](), 3, seed=1), expected)


def test_loading_trains_on_where_the_param_store_of_pyro_does_not(tmp_path):
    model, guide, parts = functions()
    steps(model, guide, Adam({"lr": 0.1}), 5, seed=1)
    weights = parts["model"]["prior"].drift.tail.layers[0].weight
    trained = weights.detach().clone()
    pyro.get_param_store().save(str(tmp_path / "store.pt"))
    save(tmp_path / "run.pt", **parts)

    pyro.clear_param_store()
    pyro.get_param_store().load(str(tmp_path / "store.pt"))
    model, guide, parts = functions()
    weights = parts["model"]["prior"].drift.tail.layers[0].weight
    fresh = weights.detach().clone()
    with pytest.warns(UserWarning, match="parameters that no param site covers, so SVI will not train them"):
        steps(model, guide, Adam({"lr": 0.1}), 5, seed=1)
    assert torch.equal(weights, fresh)  # neither restored nor trained

    pyro.clear_param_store()
    model, guide, parts = functions()
    load(tmp_path / "run.pt", **parts)
    weights = parts["model"]["prior"].drift.tail.layers[0].weight
    assert torch.equal(weights, trained)
    steps(model, guide, Adam({"lr": 0.1}), 5, seed=1)
    assert not torch.equal(weights, trained)


def test_torch_optimisers_go_on(tmp_path):
    def build():
        net = Net()
        PathELBO().loss(net.model, net.guide)  # registers the parameters
        return net, torch.optim.Adam(net.parameters(), lr=0.05)

    def run(net, optimizer, seed):
        pyro.set_rng_seed(seed)
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = PathELBO().differentiable_loss(net.model, net.guide)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    net, optimizer = build()
    run(net, optimizer, 1)
    save(tmp_path / "run.pt", model=net, optimizer=optimizer)
    expected = run(net, optimizer, 2)
    pyro.clear_param_store()
    net, optimizer = build()
    load(tmp_path / "run.pt", model=net, optimizer=optimizer)
    assert same(run(net, optimizer, 2), expected)


def test_float32_goes_on(tmp_path):
    model, guide, parts = functions(torch.float32)
    optim = OPTIMIZERS["clipped"]()
    steps(model, guide, optim, 3, seed=1)
    save(tmp_path / "run.pt", **parts, optimizer=optim)
    expected = steps(model, guide, optim, 3, seed=2)
    pyro.clear_param_store()
    model, guide, parts = functions(torch.float32)
    optim = OPTIMIZERS["clipped"]()
    load(tmp_path / "run.pt", **parts, optimizer=optim)
    assert steps(model, guide, optim, 3, seed=2) == pytest.approx(expected, rel=1e-5)
    assert {value.dtype for _, value in pyro.get_param_store().items()} == {torch.float32}


def test_buffers_are_restored(tmp_path):
    net = Net()
    steps(net.model, net.guide, OPTIMIZERS["clipped"](), 3, seed=1)
    calls = net.calls.item()
    assert calls > 0
    save(tmp_path / "run.pt", model=net)
    other = Net()
    load(tmp_path / "run.pt", model=other)
    assert other.calls.item() == calls


def test_optimiser_states_that_wait_are_saved_again(tmp_path):
    model, guide, parts = functions()
    optim = OPTIMIZERS["clipped"]()
    steps(model, guide, optim, 3, seed=1)
    save(tmp_path / "one.pt", **parts, optimizer=optim)
    expected = steps(model, guide, optim, 3, seed=2)
    for source, target in (("one.pt", "two.pt"), ("two.pt", "three.pt")):
        pyro.clear_param_store()
        model, guide, parts = functions()
        optim = OPTIMIZERS["clipped"]()
        load(tmp_path / source, **parts, optimizer=optim)
        save(tmp_path / target, **parts, optimizer=optim)
    assert same(steps(model, guide, optim, 3, seed=2), expected)


def test_parameters_of_a_lazy_guide_that_wait_are_saved_again(tmp_path):
    model, guide, parts = automatic()
    steps(model, guide, OPTIMIZERS["clipped"](), 3, seed=1)
    save(tmp_path / "one.pt", **parts)
    pyro.set_rng_seed(5)
    expected = guide()["z"]
    for source, target in (("one.pt", "two.pt"), ("two.pt", "three.pt")):
        pyro.clear_param_store()
        _, guide, parts = automatic()
        load(tmp_path / source, **parts)
        save(tmp_path / target, **parts)
    guide()
    pyro.set_rng_seed(5)
    assert torch.equal(guide()["z"], expected)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_file_is_plain_data(tmp_path):
    model, guide, parts = functions()
    optim = OPTIMIZERS["scheduled"]()
    steps(model, guide, optim, 2, seed=1)
    extra = {"step": 2, "rng": torch.get_rng_state(), "history": [1.0, (2, None)], "name": "a"}
    save(tmp_path / "run.pt", **parts, optimizer=optim, extra=extra)
    content = torch.load(tmp_path / "run.pt", weights_only=True)
    assert content["format"] == "pyro_sde.checkpoint"
    back = load(tmp_path / "run.pt", **parts)
    assert torch.equal(back.pop("rng"), extra.pop("rng"))
    assert back == extra


@pytest.mark.parametrize(
    "constraint",
    [
        constraints.real,
        constraints.positive,
        constraints.greater_than(torch.tensor(2.0)),
        constraints.interval(-1.0, 3.0),
        constraints.simplex,
        constraints.lower_cholesky,
        constraints.independent(constraints.positive, 1),
        constraints.softplus_positive,
        constraints.softplus_lower_cholesky,
        constraints.ordered_vector,
        constraints.sphere,
        constraints.stack([constraints.real, constraints.positive], dim=-1),
    ],
    ids=str,
)
def test_constraints_survive_the_file(constraint, tmp_path):
    value = torch.distributions.transform_to(constraint)(torch.randn(2, 2))
    pyro.param("x", value, constraint=constraint)
    before = pyro.param("x").detach().clone()
    save(tmp_path / "run.pt")
    pyro.clear_param_store()
    load(tmp_path / "run.pt")
    assert torch.equal(pyro.param("x", torch.zeros(2, 2), constraint=constraint), before)
    kind = type(decode_constraint(encode_constraint(constraint, "x")))
    assert kind is type(constraint)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    save(path, extra=1)

    def broken(data, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(KeyboardInterrupt):
        save(path, extra=2)
    monkeypatch.undo()
    assert load(path) == 1
    assert os.listdir(tmp_path) == ["run.pt"]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"not a file of torch", "run.pt is no checkpoint written by `save` of this package: "),
        (b"", "run.pt is no checkpoint written by `save` of this package: "),
        ({"weight": torch.zeros(2)}, "it may be a state_dict"),
        ({"format": "pyro_sde.checkpoint"}, "says nothing of its format version"),
        ({"format": "pyro_sde.checkpoint", "version": 99}, "has format version 99, this package reads up to 1"),
        (constraints.Constraint(), "run.pt is no checkpoint .*: Weights only load failed"),
    ],
)
def test_other_files_are_refused(content, match, tmp_path):
    path = tmp_path / "run.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=match):
        load(path)


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    save(tmp_path / "run.pt", model={"net": nn.Linear(2, 3)})
    return tmp_path / "run.pt"


def test_missing_and_unexpected_names_are_named(saved):
    with pytest.raises(ValueError, match="(?s)'bias' of `model.net` is unexpected.*file has it, the module has not"):
        load(saved, model={"net": nn.Linear(2, 3, bias=False)})
    with pytest.raises(ValueError, match="(?s)'0.weight' of `model.net` is missing: the module has it"):
        load(saved, model={"net": nn.Sequential(nn.Linear(2, 3))})
    with pytest.raises(ValueError, match=r"(?s)`model.net` is in the file, but was not passed"):
        load(saved)
    with pytest.raises(ValueError, match=r"(?s)`guide` was passed, but is not in the file"):
        load(saved, model={"net": nn.Linear(2, 3)}, guide=nn.Linear(1, 1))


def test_strict_false_takes_what_fits(saved):
    assert load(saved, strict=False) is None
    net = nn.Linear(2, 3, bias=False)
    load(saved, model={"net": net}, guide=nn.Linear(1, 1), strict=False)
    stored = torch.load(saved, weights_only=True)["modules"]["model.net"]["weight"]
    assert torch.equal(net.weight, stored)


def test_another_shape_is_named_and_nothing_changes(saved):
    net = nn.Linear(2, 4)
    before = net.weight.detach().clone()
    text = (
        r"(?s)nothing was changed:.*'weight' of `model.net` has shape \(3, 2\) in the file and \(4, 2\) in the module"
    )
    for strict in (True, False):
        with pytest.raises(ValueError, match=text):
            load(saved, model={"net": net}, strict=strict)
    assert torch.equal(net.weight, before)


def test_a_clash_in_the_store_is_named(tmp_path):
    pyro.param("rows", torch.zeros(3))
    save(tmp_path / "run.pt")
    pyro.clear_param_store()
    pyro.param("rows", torch.zeros(4))
    with pytest.raises(
        ValueError, match=r"name clash: parameter 'rows' has shape \(3,\) in the file and \(4,\) in the sto"
    ):
        load(tmp_path / "run.pt")


def test_modules_that_were_not_passed_are_named(tmp_path):
    model, guide, parts = functions()
    steps(model, guide, Adam({"lr": 0.1}), 1, seed=1)
    text = r"parameter 'prior\$\$\$drift.state_part.weight' .*belongs to a module, .*model=\{'prior': module\}"
    with pytest.raises(ValueError, match=text):
        save(tmp_path / "run.pt", model=model, guide=parts["guide"])
    assert not os.listdir(tmp_path)
    pyro.clear_param_store()
    net = Net()
    steps(net.model, net.guide, Adam({"lr": 0.1}), 1, seed=1)
    with pytest.raises(ValueError, match="parameter '.*' of Pyro's store belongs to a module"):
        save(tmp_path / "run.pt", model=lambda: net.model())


def test_networks_of_other_lazy_guides_need_a_first_call(tmp_path):
    def model():
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    guide = AutoIAFNormal(model)
    SVI(model, guide, Adam({"lr": 0.1}), Trace_ELBO()).step()
    save(tmp_path / "run.pt", guide=guide)
    pyro.clear_param_store()
    other = AutoIAFNormal(model)
    with pytest.raises(ValueError, match="of `guide` is created at its first call: call it once before `load`"):
        load(tmp_path / "run.pt", guide=other)
    other()
    load(tmp_path / "run.pt", guide=other)
    for ours, theirs in zip(guide.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_optimisers_that_do_not_fit_are_refused(saved, tmp_path):
    net = nn.Linear(2, 3)
    parts = {"model": {"net": net}}
    with pytest.raises(ValueError, match="`optimizer` is one of pyro.optim, but the file has no optimizer"):
        load(saved, **parts, optimizer=Adam({"lr": 0.1}))
    save(tmp_path / "sgd.pt", **parts, optimizer=torch.optim.SGD(net.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="`optimizer` is one of pyro.optim, but the file has one of torch.optim"):
        load(tmp_path / "sgd.pt", **parts, optimizer=Adam({"lr": 0.1}))
    with pytest.raises(
        ValueError, match=r"`optimizer` has groups of \[1\] parameters, but the file has groups of \[2\]"
    ):
        load(tmp_path / "sgd.pt", **parts, optimizer=torch.optim.SGD([net.weight], lr=0.1))
    for function in (save, load):
        with pytest.raises(TypeError, match="`optimizer` must come from pyro.optim or torch.optim, received str"):
            function(saved, **parts, optimizer="adam")


def test_arguments_are_checked(tmp_path):
    with pytest.raises(TypeError, match="`model` must be a module, a function or a dict of modules, received int"):
        save(tmp_path / "run.pt", model=3)
    with pytest.raises(TypeError, match="`guide` must map names to modules, received int for 'net'"):
        save(tmp_path / "run.pt", guide={"net": 3})
    with pytest.raises(TypeError, match=r"`extra\['a'\]\[0\]` must be plain data .*received set"):
        save(tmp_path / "run.pt", extra={"a": [{1}]})
    with pytest.raises(TypeError, match=r"keys of `extra` must be strings or numbers, received \(1, 2\)"):
        save(tmp_path / "run.pt", extra={(1, 2): 3})


def test_custom_constraints_are_refused(tmp_path):
    class Mine(type(constraints.positive)):
        pass

    torch.distributions.transform_to.register(Mine, lambda c: torch.distributions.transforms.ExpTransform())
    pyro.param("x", torch.ones(2), constraint=Mine(0.0))
    with pytest.raises(TypeError, match="parameter 'x' has the constraint .* of class Mine"):
        save(tmp_path / "run.pt")


def test_bounds_are_kept_by_value(tmp_path):
    bound = torch.tensor([1.0, 2.0])
    pyro.param("x", bound + 1, constraint=constraints.greater_than(bound))
    save(tmp_path / "run.pt")
    pyro.clear_param_store()
    load(tmp_path / "run.pt")
    with torch.no_grad():
        pyro.param("x").unconstrained().fill_(-math.inf)
    assert torch.equal(pyro.param("x"), bound)
