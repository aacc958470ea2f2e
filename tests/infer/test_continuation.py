"""A continued path keeps what is known and has the law of the future. Tests at `TEST_FAILURE_RATE`, seeds fixed."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.testing import assert_close

from pyro_sde.distributions.gaussian_path import GaussianPath
from pyro_sde.distributions.markov_path import MarkovPath
from pyro_sde.distributions.recurrent_path import RecurrentPath
from pyro_sde.distributions.sde_path import SDEPath
from pyro_sde.infer.continuation import ContinuePaths, continue_path
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.sde.independent import OrnsteinUhlenbeck
from pyro_sde.sde.matern import Matern12
from pyro_sde.solvers.exact_linear import ExactLinear
from pyro_sde.solvers.milstein import Milstein
from pyro_sde.solvers.reversible_heun import ReversibleHeun
from pyro_sde.testing.statistics import assert_mean

F64 = torch.float64
RATE, SIGMA, STEP = 0.8, 0.6, 0.25
START = dist.Normal(torch.zeros(1, dtype=F64), 1.0).to_event(1)
TIMES = torch.tensor([0.0, 0.5, 1.5], dtype=F64)  # 7 points
S = 20_000


def sde(times=TIMES, **options):
    return SDEPath(OrnsteinUhlenbeck(RATE, SIGMA), START, TimeGrid(times, max_step=STEP), **options)


def gaussian(times=TIMES):
    factor, variance = RATE, SIGMA**2  # Matern12 has variance sigma^2 and rate 1 / lengthscale
    return GaussianPath(Matern12(lengthscale=1 / factor, variance=variance), None, TimeGrid(times, max_step=STEP))


def markov(length=7, **options):
    return MarkovPath(lambda z, t, u: dist.Normal(0.9 * z + 0.1 * t, 0.5).to_event(1), START, length, **options)


def moments(name: str, known: float, steps: int) -> tuple[float, float]:
    """Mean and variance so many steps after a known state at point 2."""
    mean, variance = known, 0.0
    for k in range(3, 3 + steps):
        if name == "markov":
            mean, variance = 0.9 * mean + 0.1 * k, 0.81 * variance + 0.25
        elif name == "gaussian":
            factor = float(torch.tensor(-RATE * STEP, dtype=F64).exp())
            mean, variance = factor * mean, factor**2 * variance + SIGMA**2 * (1 - factor**2)
        else:
            factor = 1 - RATE * STEP
            mean, variance = factor * mean, factor**2 * variance + SIGMA**2 * STEP
    return mean, variance


LAWS = {"gaussian": gaussian, "markov": markov, "milstein": lambda: sde(solver=Milstein()), "sde": sde}


@pytest.mark.parametrize("name", sorted(LAWS))
def test_what_is_known_stays_and_the_rest_has_the_law_of_the_future(name):
    torch.manual_seed(0)
    known = torch.tensor([0.0, 0.5, 2.0], dtype=F64).view(3, 1).expand(S, 3, 1)
    path = continue_path(LAWS[name](), known)
    assert path.shape == (S, 7, 1)
    assert torch.equal(path[:, :3], known)
    for steps in (1, 4):
        mean, variance = moments(name, 2.0, steps)
        state = path[:, 2 + steps, 0]
        assert_mean(state, mean, detects=0.05)
        assert_mean((state - mean) ** 2, variance, detects=0.05)


def test_a_path_that_is_continued_from_its_own_states_has_the_law_of_the_whole():
    torch.manual_seed(0)
    law = sde()
    path = continue_path(law, law.sample(torch.Size([S]))[:, :4])[..., 0]
    other = law.sample(torch.Size([S]))[..., 0]
    product = (other[:, 2] * other[:, 6]).mean()
    assert_mean(path[:, 2] * path[:, 6], float(product), detects=0.05)


def test_series_go_on_from_ends_of_their_own():
    torch.manual_seed(0)
    times = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.5, 0.5]], dtype=F64)
    law = SDEPath(OrnsteinUhlenbeck(RATE, SIGMA), START, TimeGrid(times, max_step=STEP))
    known = torch.arange(10.0, dtype=F64).view(2, 5, 1).expand(S, 2, 5, 1)
    path = continue_path(law, known, torch.tensor([5, 2]))
    assert torch.equal(path[:, 0, :5], known[:, 0])
    assert torch.equal(path[:, 1, :2], known[:, 1, :2])
    assert torch.equal(path[:, 1, 2:3].expand(S, 7, 1), path[:, 1, 2:])  # padding of the grid moves nothing
    for row, point, start in ((0, 5, 4.0), (1, 2, 6.0)):
        assert_mean(path[:, row, point, 0], moments("sde", start, 1)[0], detects=0.03)


def test_lengths_of_a_chain_end_its_series():
    law = markov(lengths=torch.tensor([7, 4]))
    path = continue_path(law, torch.zeros(2, 2, 1, dtype=F64))
    assert path.shape == (2, 7, 1)
    assert torch.equal(path[1, 3:4].expand(4, 1), path[1, 3:])
    assert len(path[0].unique()) == 6


def test_discrete_states_are_continued():
    torch.manual_seed(0)
    table = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    law = MarkovPath(lambda z, t, u: dist.Categorical(table[z.long()]), dist.Categorical(torch.ones(2)), 5)
    assert continue_path(law, torch.tensor([[1], [0]])).tolist() == [[1, 0, 1, 0, 1], [0, 1, 0, 1, 0]]


def test_a_whole_path_comes_back_unchanged():
    path = sde().sample(torch.Size([3]))
    assert torch.equal(continue_path(sde(), path), path)


def test_float32_stays_float32():
    times = TIMES.float()
    start = dist.Normal(torch.zeros(1, dtype=torch.float32), 1.0).to_event(1)
    grid = TimeGrid(times, max_step=STEP)
    chain = MarkovPath(lambda z, t, u: dist.Normal(0.9 * z + 0.1 * t, 0.5).to_event(1), start, 7)
    for law in (SDEPath(OrnsteinUhlenbeck(RATE, SIGMA), start, grid), gaussian(times), chain):
        path = continue_path(law, torch.zeros(2, 1, dtype=torch.float32))
        assert path.dtype == torch.float32
        assert path.isfinite().all()


# --- the handler


def model(times: Tensor) -> Tensor:
    level = pyro.sample("level", dist.Normal(torch.zeros((), dtype=F64), 1.0))
    z = pyro.sample("z", sde(times))
    return pyro.sample("y", dist.Normal(TimeGrid(times, max_step=STEP).observed(z) + level, 1e-9).to_event(2))


def test_a_model_goes_on_with_what_a_guide_has_drawn():
    past = poutine.trace(model).get_trace(TIMES)
    past.remove_node("y")
    later = torch.cat([TIMES, torch.tensor([2.0, 3.0], dtype=F64)])
    with ContinuePaths(past):
        future = poutine.trace(model).get_trace(later)
    path = future.nodes["z"]["value"]
    assert path.shape == (13, 1)
    assert torch.equal(path[:7], past.nodes["z"]["value"])
    assert torch.equal(future.nodes["level"]["value"], past.nodes["level"]["value"])
    assert_close(future.nodes["y"]["value"][-1], path[-1] + past.nodes["level"]["value"], rtol=0, atol=1e-7)


def test_points_may_be_named_by_site_and_observed_sites_are_left_alone():
    known = {"z": torch.zeros(7, 1, dtype=F64), "y": torch.full((3, 1), 9.0, dtype=F64)}
    observed = poutine.condition(model, {"y": torch.ones(3, 1, dtype=F64)})
    with ContinuePaths(known, {"z": 2}):
        trace = poutine.trace(observed).get_trace(TIMES)
    assert (trace.nodes["z"]["value"] == 0).sum() == 2
    assert torch.equal(trace.nodes["y"]["value"], torch.ones(3, 1, dtype=F64))


def test_paths_are_continued_under_a_plate_of_draws():
    known = torch.zeros(5, 1, 3, 1, dtype=F64)
    with ContinuePaths({"z": known}), pyro.plate("draws", 5, dim=-2), pyro.plate("series", 1, dim=-1):
        z = pyro.sample("z", sde())
    assert z.shape == (5, 1, 7, 1)
    assert len(z[..., -1, 0].unique()) == 5


# --- what is refused


@pytest.mark.parametrize(
    ("known", "points", "message"),
    [
        (torch.zeros(3, 2), None, r"`known` must have shape \(..., n, 1\), got \(3, 2\)"),
        (torch.zeros(1), None, r"`known` must have shape"),
        (torch.zeros(8, 1), None, "`known` must hold 1 to 7 states, the points of the law; received 8"),
        (torch.zeros(0, 1), None, "`known` must hold 1 to 7 states"),
        (torch.zeros(3, 1), 4, "`points` must be whole numbers from 1 to 3"),
        (torch.zeros(3, 1), 0, "`points` must be whole numbers from 1 to 3"),
        (torch.zeros(3, 1), torch.tensor([1, 2]), "`points` must be whole numbers .* one for all or of shape"),
        (torch.zeros(3, 1), torch.tensor(1.5), "`points` must be whole numbers"),
        (torch.full((3, 1), torch.inf), None, "became non-finite when it was continued beyond 3 of 7 points"),
    ],
)
def test_bad_input_is_named(known, points, message):
    with pytest.raises(ValueError, match=message):
        continue_path(sde(), known.double(), points)


def test_batches_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="batch dimensions of `known` and of `law` must broadcast"):
        continue_path(sde(TIMES.expand(2, 3)), torch.zeros(3, 2, 1, dtype=F64))


def test_laws_that_have_no_single_steps_are_named():
    gru = torch.nn.GRU(3, 2, batch_first=True)
    law = RecurrentPath(
        gru, lambda d, c: dist.Normal(d[..., :1], 1.0).to_event(1), torch.zeros(2), torch.zeros(1, 4, 2)
    )
    with pytest.raises(TypeError, match="`law` is a RecurrentPath, which cannot be continued: pass an SDEPath"):
        continue_path(law, torch.zeros(1, 2, 1))
    with (
        ContinuePaths({"x": torch.zeros(1, 2, 1)}),
        pytest.raises(TypeError, match="site 'x': `law` is a RecurrentPath"),
    ):
        pyro.sample("x", law)
    with ContinuePaths({"z": torch.zeros(9, 1)}), pytest.raises(ValueError, match="site 'z': `known` must hold"):
        pyro.sample("z", sde())


@pytest.mark.parametrize("solver", [ExactLinear(), ReversibleHeun()])
def test_solvers_that_carry_something_start_anew_where_the_known_states_end(solver):
    torch.manual_seed(0)
    process = OrnsteinUhlenbeck(RATE, SIGMA)  # additive noise: Ito and Stratonovich agree
    law = SDEPath(process, START, TimeGrid(TIMES, max_step=0.05), solver=solver)
    known = torch.full((S, 11, 1), 2.0, dtype=F64)
    path = continue_path(law, known)
    factor = float(torch.tensor(-RATE * 1.0, dtype=F64).exp())
    assert_mean(path[:, -1, 0], 2.0 * factor, detects=0.05)
    assert_mean((path[:, -1, 0] - 2 * factor) ** 2, SIGMA**2 / (2 * RATE) * (1 - factor**2), detects=0.03)
    two = SDEPath(process, START, TimeGrid(TIMES.expand(2, 3), max_step=0.05), solver=solver)
    ragged = continue_path(two, known.unsqueeze(1), torch.tensor([11, 2]))
    assert torch.equal(ragged[:, 0, :11], known)
    assert_mean(ragged[:, 0, -1, 0], 2.0 * factor, detects=0.05)
