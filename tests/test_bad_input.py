"""Bad input to public functions: an error of values or types that names an argument, and nothing else happens."""

from __future__ import annotations

import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.nn import PyroParam
from torch import Tensor

from pyro_sde import diagnostics, infer, models, nn, ops, sde, solvers
from pyro_sde import distributions as laws
from pyro_sde.ops import TimeGrid
from tests.bad_input_calls import CALLS, TIMES
from tests.bad_input_messages import MESSAGES
from tests.bad_input_tool_messages import TOOL_MESSAGES
from tests.bad_input_tools import TOOLS

NAN = math.nan
ROWS = [*CALLS, *TOOLS]
SAID = [*MESSAGES, *TOOL_MESSAGES]
BERNOULLI = dist.Bernoulli(torch.full((2,), 0.5)).to_event(1)


def spoiled(value):
    """Wrong values by kind, in the place of a right one."""
    if isinstance(value, Tensor) and value.dtype == torch.bool:
        return {"whole": value.long(), "shape": torch.ones(7, 7, 7).bool(), "word": "nonsense"}
    if isinstance(value, Tensor) and not value.is_floating_point():
        return {"float": value + 0.5, "negative": -value - 1, "bool": value.bool(), "word": "nonsense"}
    if isinstance(value, Tensor):
        axes = value.dim()
        return {
            "nan": value.contiguous().clone().index_fill(-1, torch.tensor(0), NAN),
            "empty": value.new_zeros(*value.shape[:-1], 0),
            "number": value.new_zeros(()),
            "axes": value.new_ones((7,) * (axes + 1)),
            "long": torch.cat([value, value], -1),
            "complex": value.to(torch.complex64),
            "list": value.tolist(),
            "word": "nonsense",
        }
    if isinstance(value, int):
        return {"negative": -1, "half": 1.5, "nan": NAN, "word": "nonsense"}
    if isinstance(value, float):
        return {"negative": -1.0, "nan": NAN, "infinite": math.inf, "word": "nonsense"}
    if isinstance(value, str):
        return {"word": "nonsense"}
    if isinstance(value, tuple | list):
        return {"negative": (-1,), "number": 3}
    return {"object": object()}  # laws, functions and what may be left out


CASES = [
    pytest.param(row, name, bad, id=f"{row.name}-{name}-{kind}")
    for row in ROWS
    for name, value in row.arguments.items()
    for kind, bad in spoiled(value).items()
    if not {f"{name}:{kind}", f"{name}:*"} & row.takes
]


@pytest.fixture(scope="module", autouse=True)
def _pictures_on_no_screen():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    yield
    pyplot.close("all")


def state_of_the_world():
    settings = pyro.settings.get()
    return torch.get_default_dtype(), settings, set(pyro.get_param_store()), torch.is_grad_enabled()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_calls_of_the_table_work(row):
    row.call(**row.arguments)


@pytest.mark.parametrize(("row", "name", "bad"), CASES)
def test_bad_input_is_refused_by_name_and_changes_nothing(row, name, bad):
    arguments = {**row.arguments, name: bad}
    tensors = {key: value for key, value in arguments.items() if isinstance(value, Tensor)}
    before = {key: value.clone() for key, value in tensors.items()}
    world, generator = state_of_the_world(), torch.get_rng_state()
    with pytest.raises((ValueError, TypeError)) as caught:
        row.call(**arguments)
    text = str(caught.value)
    named = set(re.findall(r"`(\w+)`|Expected (value) argument|Expected parameter (\w+)", text))  # or in torch's words
    assert {word for pair in named for word in pair} & set(arguments), text
    assert state_of_the_world() == world
    assert torch.equal(torch.get_rng_state(), generator)
    for key, value in tensors.items():
        assert torch.allclose(value, before[key], rtol=0, atol=0, equal_nan=True)


# --- what exactly is said


@pytest.mark.parametrize(("call", "error", "text"), SAID, ids=range(len(SAID)))
def test_the_error_says_what_is_wrong(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_what_looks_odd_and_is_right_stays_allowed():
    float64 = TimeGrid(torch.tensor([0.3, 0.5], dtype=torch.float64), start=0.1, max_step=torch.tensor(0.05))
    assert float64.times[0].item() == 0.1  # a number is not rounded to float32 on its way
    assert TimeGrid([0, 1, 2]).times.dtype == torch.get_default_dtype()
    start = torch.tensor(-1.0, requires_grad=True)
    TimeGrid(TIMES, start=start).steps.sum().backward()
    assert start.grad == -1
    coin = laws.MarkovPath(lambda z, t, u: dist.Bernoulli(0.2 + 0.6 * z).to_event(1), BERNOULLI, 3)
    assert coin.log_prob(coin.sample()).isfinite()  # floats that are discrete
    assert sde.OrnsteinUhlenbeck(torch.tensor(1), 2).stationary()[1].item() == 2
    learned = PyroParam(torch.tensor(1.0), constraints.positive)
    assert sde.Matern12(learned).system().matrix.item() == -1
    assert solvers.TorchsdeAdjoint(adjoint_method="adjoint_reversible_heun").method is None
    assert infer.PathELBO(kl_weight=torch.tensor(0.5)).kl_weight == 0.5
    whole = torch.arange(3)
    assert laws.OrnsteinUhlenbeckPath(*torch.ones(3, 2), whole).sample().shape == (3, 2)
    assert torch.equal(laws.OrnsteinUhlenbeckPath(*torch.ones(3, 2), whole).grid.times, torch.arange(3.0))


def test_a_number_may_be_a_tensor_of_one():
    half = torch.tensor(0.5, requires_grad=True)  # as times.diff().mean() is
    assert TimeGrid(TIMES, max_step=half).num_steps == TimeGrid(TIMES, max_step=0.5).num_steps
    half = half.detach()
    assert ops.Pilot(rtol=half, max_step=half, min_step=half).rtol == 0.5
    assert nn.LocalMarginals(1, 2, time_scale=half).time_scale == 0.5
    assert nn.FreeMarginals(TIMES, 1, initial_scale=half).state_dim == 1
    assert models.Architecture(time_scale=half, diffusion_scale=half, reversion=half).time_scale == 0.5
    networks = []
    for value in (0.5, half):
        torch.manual_seed(0)
        net = nn.DriftNet(2, time_features=1, period=value, last_scale=value, reversion=value)
        networks.append(net(torch.ones(1), torch.ones(3, 2)))
    assert torch.equal(*networks)
    draws = torch.randn(100, 3, 1)
    assert diagnostics.interval_coverage(draws, draws[0], level=half) == diagnostics.interval_coverage(
        draws, draws[0], level=0.5
    )
