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

from pyro_sde import distributions as laws
from pyro_sde import infer, sde, solvers
from pyro_sde.ops import TimeGrid
from tests.bad_input_calls import EYE, ROWS, TIMES, grid, initial, path, process, ssm, transition

NAN = math.nan
BERNOULLI = dist.Bernoulli(torch.full((2,), 0.5)).to_event(1)


def spoiled(value):
    """Wrong values by kind, in the place of a right one."""
    if isinstance(value, Tensor) and value.dtype == torch.bool:
        return {"whole": value.long(), "shape": torch.ones(7, 7, 7).bool()}
    if isinstance(value, Tensor) and not value.is_floating_point():
        return {"float": value + 0.5, "negative": -value - 1, "bool": value.bool()}
    if isinstance(value, Tensor):
        axes = value.dim()
        return {
            "nan": value.contiguous().clone().index_fill(-1, torch.tensor(0), NAN),
            "empty": value.new_zeros(*value.shape[:-1], 0),
            "number": value.new_zeros(()),
            "axes": value.new_ones((7,) * (axes + 1)),
            "long": torch.cat([value, value], -1),
            "complex": value.to(torch.complex64),
        }
    if isinstance(value, int):
        return {"negative": -1, "half": 1.5, "nan": NAN}
    if isinstance(value, float):
        return {"negative": -1.0, "nan": NAN, "infinite": math.inf}
    if isinstance(value, str):
        return {"word": "nonsense"}
    if isinstance(value, tuple | list):
        return {"negative": (-1,)}
    return {"object": object()}  # laws, functions and what may be left out


CASES = [
    pytest.param(row, name, bad, id=f"{row.name}-{name}-{kind}")
    for row in ROWS
    for name, value in row.arguments.items()
    for kind, bad in spoiled(value).items()
    if not {f"{name}:{kind}", f"{name}:*"} & row.takes
]


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
    named = set(re.findall(r"`(\w+)`|Expected (value) argument", str(caught.value)))  # the second are torch's words
    assert {word for pair in named for word in pair} & set(arguments), str(caught.value)
    assert state_of_the_world() == world
    assert torch.equal(torch.get_rng_state(), generator)
    for key, value in tensors.items():
        assert torch.allclose(value, before[key], rtol=0, atol=0, equal_nan=True)


# --- what exactly is said


def diagonal(value):
    return torch.full((2,), value)


MESSAGES = [
    (
        lambda: sde.OrnsteinUhlenbeck("fast", 1.0),
        TypeError,
        "`rate` must be a number or a tensor of real .* received str",
    ),
    (
        lambda: sde.CoxIngersollRoss(1.0, EYE.to(torch.complex64), 1.0),
        TypeError,
        "`mean` must .*received torch.complex64",
    ),
    (lambda: sde.DoubleWell(well=math.inf), ValueError, "`well` must be finite, received inf"),
    (lambda: sde.OrnsteinUhlenbeck(1.0, 1.0, state_dim=1.5), ValueError, "with `state_dim` 1.5"),
    (lambda: sde.Periodic(1.0, harmonics=True), ValueError, "`harmonics` must be >= 1, received True"),
    (lambda: sde.UnderdampedLangevin(3.0), TypeError, "`force` must be a function of the positions, received float"),
    (lambda: sde.ControlledSDE(3, torch.neg), TypeError, "`base` must be an SDE, received int"),
    (lambda: TimeGrid([True, False]), TypeError, "`times` must be real numbers, received torch.bool"),
    (lambda: TimeGrid("today"), TypeError, "`times` must be a tensor or numbers, received str"),
    (
        lambda: TimeGrid(TIMES, max_step="short"),
        ValueError,
        "`max_step` must be a positive finite number, received 'short'",
    ),
    (lambda: TimeGrid(TIMES, max_step=TIMES + 1), ValueError, "`max_step` must be a positive finite number"),
    (lambda: TimeGrid(TIMES, mask="all"), TypeError, "`mask` must be a tensor or numbers, received str"),
    (lambda: TimeGrid(TIMES, end="late"), TypeError, "`end` must be a tensor or numbers, received str"),
    (
        lambda: grid().expand((-1,)),
        ValueError,
        r"`batch_shape` \(-1,\) is not one that the batch shape \(\) broadcasts",
    ),
    (
        lambda: grid().expand((2,)).expand((3,)),
        ValueError,
        r"`batch_shape` \(3,\) is not one that .* \(2,\) broadcasts",
    ),
    (lambda: grid().expand((2,)).expand(()), ValueError, r"`batch_shape` \(\) is not one"),
    (lambda: grid().observed("path"), ValueError, r"`path` must have shape \(..., 5, D\) on this grid, received str"),
    (lambda: path().check_path("z", "up"), TypeError, "`z` must be a tensor, received str"),
    (lambda: path().log_prob(torch.zeros(4, 2)), ValueError, r"`value` must be a path of shape \(..., 5, 2\)"),
    (lambda: path().log_prob(torch.zeros(5, 2).long()), TypeError, "`value` must be a path of floating-point numbers"),
    (lambda: path().log_prob(torch.zeros(5, 2).bool()), TypeError, "floating-point numbers, received torch.bool"),
    (lambda: path().expand((-1,)), ValueError, r"cannot expand a path law of batch shape \(\) to \(-1,\)"),
    (lambda: ssm().expand((-1,)), ValueError, r"cannot expand a law of batch shape \(\) to \(-1,\)"),
    (lambda: laws.path_kl(path().mask(False), path(), torch.zeros(5, 2)), TypeError, "`q` must be a path law, without"),
    (lambda: laws.path_kl(path(), None, torch.zeros(5, 2)), TypeError, "`p` must be a path law.* received NoneType"),
    (lambda: laws.path_kl(path(), path(), torch.full((5, 2), NAN)), ValueError, "`path` must be finite, received nan"),
    (lambda: laws.SDEPath(process(), initial(), grid(), inputs=[1.0]), TypeError, "`inputs` must be a tensor .*list"),
    (lambda: laws.MarkovPath(transition, initial(), 3, inputs=[1.0]), TypeError, "`inputs` must be a tensor .*list"),
    (lambda: laws.RegimeChain([0.0], EYE), ValueError, r"`log_initial` must have shape \(\*batch, K\), received list"),
    (lambda: laws.RegimeChain(EYE[0].long(), EYE), TypeError, "`log_initial` must be of floating-point numbers"),
    (lambda: laws.GaussianState([0.0], EYE), TypeError, "`mean` must be a floating-point tensor, received list"),
    (lambda: laws.GaussianState(diagonal(0.0), NAN * EYE), ValueError, "`covariance` must be finite, received nan"),
    (
        lambda: laws.LinearGaussianSSM(process(), NAN * EYE, 1.0, grid(), initial=initial()),
        ValueError,
        "`observation_matrix` must be finite",
    ),
    (
        lambda: laws.LinearGaussianSSM(process(), EYE, EYE[0].to(torch.complex64), grid(), initial=initial()),
        TypeError,
        "`noise` must be of real numbers, received torch.complex64",
    ),
    (
        lambda: ssm().log_prob(torch.zeros(3, 1).long()),
        TypeError,
        "`y` must be a floating-point tensor, received torch.int64",
    ),
    (
        lambda: solvers.reflect(torch.ones(2).long(), 0.0),
        TypeError,
        "`z` must be a floating-point tensor, .*torch.int64",
    ),
    (lambda: solvers.reflect("up", 0.0), TypeError, "`z` must be a floating-point tensor, received str"),
    (lambda: solvers.TorchsdeAdjoint(adjoint_method="magic"), ValueError, "`adjoint_method` must be one of .*'magic'"),
    (lambda: solvers.TorchsdeAdjoint(atol=math.inf), ValueError, "`atol` must be a number > 0, received inf"),
    (lambda: solvers.sample_adaptive(3, EYE, TIMES), TypeError, "`sde` must be an SDE, received int"),
    (
        lambda: solvers.sample_adaptive(process(), EYE, [0.0]),
        TypeError,
        "`times` must be a floating-point tensor, .*list",
    ),
    (
        lambda: solvers.sample_adaptive(process(), EYE * NAN, TIMES),
        ValueError,
        "`initial` must be finite states of shape",
    ),
    (
        lambda: solvers.sample_adaptive(process(), torch.ones(4, 3), TIMES),
        ValueError,
        r"`initial` of shape \(4, 3\) does not fit the coefficients of `sde`",
    ),
    (lambda: infer.PathELBO(num_particles=0), ValueError, "`num_particles` must be an integer >= 1, received 0"),
    (lambda: infer.PathELBO(kl_weight=math.inf), ValueError, "`kl_weight` must be a number >= 0, received inf"),
]


@pytest.mark.parametrize(("call", "error", "text"), MESSAGES, ids=range(len(MESSAGES)))
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
