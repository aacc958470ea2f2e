import pyro.distributions as dist
import pytest
import torch

from pyro_sde import SDE, OrnsteinUhlenbeckPath, PathDistribution, SDEPath, TimeGrid
from pyro_sde.sde import OrnsteinUhlenbeck, UnderdampedLangevin
from pyro_sde.solvers import Execution
from pyro_sde.solvers.noise import GivenNoise
from pyro_sde.testing import TEST_FAILURE_RATE, ContractError, gof, loop_log_prob, stein_test

DOUBLE = torch.float64


def grid(steps=10):
    return TimeGrid(torch.linspace(0, 1, steps + 1, dtype=DOUBLE))


def normal(*shape):
    return dist.Normal(torch.zeros(shape, dtype=DOUBLE), 1.0).to_event(1)


class Simulated(SDEPath):
    """Claims the law of one SDE and draws from another: what a wrong solver does."""

    def __init__(self, claimed, drawn, *, start=None):
        super().__init__(claimed, normal(2), grid())
        self.drawn = SDEPath(drawn, normal(2), grid())
        self.start = start

    def simulate(self, initial):
        return self.drawn.simulate(initial if self.start is None else initial + self.start)


class Correlated(SDEPath):
    """Uses every normal number twice."""

    def simulate(self, initial):
        shape = (self.grid.num_steps // 2, *initial.shape)
        normal = torch.randn(shape, dtype=initial.dtype).repeat_interleave(2, 0)
        return self._integrate(initial, GivenNoise(normal), Execution())


class WrongDensity(OrnsteinUhlenbeckPath):
    def log_prob(self, value):
        return 1.2 * super().log_prob(value)


class Foreign(PathDistribution):
    """A path law that is no SDEPath, by delegation."""

    def __init__(self, law):
        self.inner = law
        super().__init__(law.initial, law.batch_shape, law.event_shape[0])

    def simulate(self, initial):
        return self.inner.simulate(initial)

    def kernels(self, path):
        return self.inner.kernels(path)

    def check_same_grid(self, other):
        pass


def ornstein_uhlenbeck(points=4, dtype=DOUBLE):
    one = torch.ones(1, dtype=dtype)
    return OrnsteinUhlenbeckPath(0.8 * one, 0.7 * one, 0.3 * one, 0.5 * torch.arange(points, dtype=dtype))


def diffusion(t, z):
    return 0.5 * torch.ones_like(z)


# ---------------------------------------------------------------- gof
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gof_passes_a_right_law_and_states_its_power(dtype):
    outcome = gof(ornstein_uhlenbeck(11, dtype), 1000).require(detects=0.08)
    assert outcome.smallest_error == pytest.approx(7.4 / (1000 * 10) ** 0.5, rel=0.1)


def test_gof_p_values_of_a_right_law_are_not_small():
    law = ornstein_uhlenbeck(6)
    p_values = [gof(law, 200).p_value for _ in range(100)]
    assert sum(p < 0.05 for p in p_values) <= 13  # 5 expected at most; 14 or more has probability 5e-4


@pytest.mark.parametrize(
    ("drawn", "found"),
    [
        (SDE(lambda t, z: -z + 0.2, diffusion), "mean"),
        (SDE(lambda t, z: -1.5 * z, diffusion), "mean given state"),
        (SDE(lambda t, z: -z + 0.5 * torch.sin(6.28 * t), diffusion), "means of steps"),
        (SDE(lambda t, z: -z, lambda t, z: 0.525 + 0 * z), "variance"),
        (SDE(lambda t, z: -z, lambda t, z: 0.5 * (1 + 0.1 * z.tanh())), "variance given state"),
        (
            SDE(
                lambda t, z: -z,
                lambda t, z: torch.tensor([[0.5, 0.0], [0.1, 0.49]], dtype=DOUBLE),
                noise_type="general",
            ),
            "noise 1 with noise 0",
        ),
    ],
    ids=["shift", "rate", "time", "diffusion", "state-dependent-diffusion", "correlation"],
)
def test_gof_finds_a_wrong_sampler(drawn, found):
    law = Simulated(SDE(lambda t, z: -z, diffusion), drawn)
    outcome = gof(law, 4000)
    assert outcome.p_value < TEST_FAILURE_RATE
    assert found in outcome.detail


def test_gof_finds_noise_that_is_used_twice():
    outcome = gof(Correlated(OrnsteinUhlenbeck(1.0, 0.5), normal(2), grid()), 1000)
    assert outcome.p_value < TEST_FAILURE_RATE
    assert "one step before" in outcome.detail


def test_gof_finds_a_wrong_first_state():
    sde = SDE(lambda t, z: -z, diffusion)
    outcome = gof(Simulated(sde, sde, start=0.3), 4000)
    assert outcome.p_value < TEST_FAILURE_RATE
    assert "first state" in outcome.detail


def test_gof_finds_noise_that_is_not_normal(monkeypatch):
    law = ornstein_uhlenbeck(6)
    uniform = lambda shape, **options: (torch.rand(shape, **options) - 0.5) * 12**0.5  # noqa: E731
    monkeypatch.setattr(torch, "randn", uniform)
    outcome = gof(law, 4000)
    assert outcome.p_value < TEST_FAILURE_RATE


def test_gof_leaves_out_directions_without_noise_and_padded_steps():
    times = TimeGrid(torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.2, 0.2]], dtype=DOUBLE), max_step=0.1)
    law = SDEPath(UnderdampedLangevin(lambda x: -x), normal(2, 2), times)
    gof(law, 1000).require(detects=0.08)


def test_gof_without_noise_looks_at_the_first_state():
    law = SDEPath(SDE(lambda t, z: -z, lambda t, z: 0 * z), normal(2), grid())
    assert gof(law, 1000).require().smallest_error > 0.1


def test_gof_refuses_few_samples():
    with pytest.raises(ValueError, match="n >= 100"):
        stein_test(ornstein_uhlenbeck(), 50)
    with pytest.raises(ValueError, match="`num_samples` must be at least 100, received 50"):
        gof(ornstein_uhlenbeck(), 50)


# ---------------------------------------------------------------- Stein
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_stein_test_passes_a_right_law(dtype):
    stein_test(ornstein_uhlenbeck(4, dtype), 4000).require(detects=0.6)


def test_gof_of_another_path_law_is_the_stein_test():
    gof(Foreign(ornstein_uhlenbeck()), 1000).require()


@pytest.mark.parametrize("change", ["scale", "mean"])
def test_stein_test_finds_a_wrong_density(change):
    law = ornstein_uhlenbeck()
    one = torch.ones(1, dtype=DOUBLE)
    wrong = WrongDensity(0.8 * one, 0.7 * one, 0.3 * one, law.times)
    if change == "mean":
        wrong = Simulated(OrnsteinUhlenbeck(1.0, 0.5), OrnsteinUhlenbeck(1.0, 0.5, 0.5))
    assert stein_test(wrong, 4000).p_value < TEST_FAILURE_RATE


# ---------------------------------------------------------------- one step at a time
def test_loop_is_the_sum_of_normal_densities():
    law = ornstein_uhlenbeck()
    path = law.sample((5,))
    mean = path[:, :-1] + 0.8 * (0.3 - path[:, :-1]) * 0.5
    steps = dist.Normal(mean, 0.7 * 0.5**0.5).log_prob(path[:, 1:]).sum((-2, -1))
    start = dist.Normal(torch.tensor(0.3, dtype=DOUBLE), 0.7 / 1.6**0.5)
    expected = steps + start.log_prob(path[:, 0]).sum(-1)
    torch.testing.assert_close(loop_log_prob(law, path), expected, rtol=1e-12, atol=1e-12)


def test_loop_refuses_a_path_outside_the_range_of_the_diffusion():
    law = SDEPath(UnderdampedLangevin(lambda x: -x), normal(2), grid())
    path = law.sample()
    path[4, 0] += 1e-3
    with pytest.raises(ContractError, match="step 3: the increment leaves the range of the diffusion by 0.001"):
        loop_log_prob(law, path)
