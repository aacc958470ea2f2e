import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_sde import SDEPath, TimeGrid
from pyro_sde.infer.emissions import EmissionLikelihood, PathEmission
from pyro_sde.sde import OrnsteinUhlenbeck


def elementwise(z):
    return dist.Normal(2 * z, 0.5)


def whole(z):
    return dist.Normal(2 * z, 0.5).to_event(1)


def problem():
    torch.manual_seed(0)
    y = torch.randn(3, 5, 2)
    mask = torch.rand(3, 5, 2) < 0.7
    return torch.randn(3, 5, 2), y, mask


@pytest.mark.parametrize("emission", [elementwise, whole])
def test_one_observation_at_a_time_adds_up_to_the_whole_law(emission):
    states, y, mask = problem()
    rows = mask[..., 0]
    y[~rows] = torch.nan
    likelihood = EmissionLikelihood(emission, y, rows)
    expected = torch.where(rows, whole(states).log_prob(torch.where(rows[..., None], y, 0.0)), 0.0)
    torch.testing.assert_close(likelihood.along(states), expected)
    parts = [likelihood(states[:, n].unsqueeze(0), n)[0] for n in range(5)]
    torch.testing.assert_close(torch.stack(parts, -1), expected)
    assert likelihood.counts().tolist() == rows.sum(-1).tolist()


def test_single_entries_can_be_missing():
    states, y, mask = problem()
    y[~mask] = torch.nan
    expected = torch.where(mask, elementwise(states).log_prob(y.nan_to_num()), 0.0).sum(-1)
    likelihood = EmissionLikelihood(elementwise, y, mask)
    torch.testing.assert_close(likelihood.along(states), expected)
    assert likelihood.counts().tolist() == mask.any(-1).sum(-1).tolist()


def test_series_can_be_at_different_observations():
    states, y, mask = problem()
    likelihood = EmissionLikelihood(lambda z, row: elementwise(z + row), y, mask, inputs=states)
    index = torch.tensor([4, 0, 2])
    particles = torch.randn(7, 3, 2)
    expected = torch.stack([likelihood(particles, int(n))[:, i] for i, n in enumerate(index)], -1)
    torch.testing.assert_close(likelihood(particles, index), expected)


def test_the_path_law_is_the_masked_law_of_all_times():
    states, y, mask = problem()
    law = PathEmission(elementwise, states, mask)
    reference = elementwise(states).mask(mask).to_event(2)
    torch.testing.assert_close(law.log_prob(y), reference.log_prob(y))
    assert law.shape() == reference.shape()
    assert law.sample((4,)).shape == (4, 3, 5, 2)
    wide = PathEmission(elementwise, states[0]).expand((3,))
    assert wide.batch_shape == (3,)
    assert wide.sample((2,)).shape == wide.rsample((2,)).shape == (2, 3, 5, 2)
    assert wide.log_prob(y).shape == (3,)
    assert wide.has_rsample
    assert wide.support.check(y).shape == (3,)


def test_other_estimators_see_an_ordinary_site():
    grid = TimeGrid(torch.arange(5.0))
    start = dist.Normal(torch.zeros(3, 2), 1.0).to_event(1)
    _, y, mask = problem()

    def model(law):
        with pyro.plate("series", 3):
            z = pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, 1.0), start, grid))
            pyro.sample("y", law(grid.observed(z)), obs=y)

    def guide(law):
        with pyro.plate("series", 3):
            pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, 1.0), start, grid))

    losses = []
    for law in (lambda z: PathEmission(elementwise, z, mask), lambda z: elementwise(z).mask(mask).to_event(2)):
        pyro.set_rng_seed(0)
        losses.append(Trace_ELBO().loss(model, guide, law))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_float32_agrees_with_float64():
    states, y, mask = problem()
    exact = EmissionLikelihood(elementwise, y, mask).along(states)
    single = EmissionLikelihood(elementwise, y.float(), mask).along(states.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-5)


def test_observations_outside_the_support_are_named():
    y = torch.tensor([[1.0], [2.0], [0.0]])
    likelihood = EmissionLikelihood(lambda z: dist.Bernoulli(logits=z), y)
    with pytest.raises(ValueError, match=r"`y` has observation 1 outside the support of its law Bernoulli: 2\.0"):
        likelihood(torch.zeros(10, 1), 1)
    missing = EmissionLikelihood(lambda z: dist.Normal(z, 1.0).to_event(1), torch.tensor([[0.0], [torch.nan]]))
    with pytest.raises(ValueError, match="Mask missing values"):
        missing(torch.zeros(10, 1), 1)
    assert EmissionLikelihood(lambda z: dist.Bernoulli(logits=z), y, torch.tensor([True, False, True])).along(
        torch.zeros(3, 1)
    ).tolist() == pytest.approx([-0.6931471805599453, 0.0, -0.6931471805599453])


def test_a_support_that_depends_on_the_state_kills_particles_only():
    likelihood = EmissionLikelihood(lambda z: dist.Uniform(z - 1, z + 1, validate_args=False), torch.zeros(2, 1))
    assert likelihood(torch.tensor([[0.5], [5.0]]), 0).tolist() == [pytest.approx(-0.6931471805599453), -torch.inf]
    with pytest.raises(ValueError, match="outside the support of its law Uniform"):
        likelihood(torch.tensor([[4.0], [5.0]]), 0)


def test_discrete_states_are_observed_through_laws_of_their_shape():
    emission = lambda z: dist.Normal(z.unsqueeze(-1).double(), 1.0).to_event(1)  # noqa: E731
    likelihood = EmissionLikelihood(emission, torch.zeros(4, 1))
    assert likelihood(torch.tensor([0, 1, 2]), 2).shape == (3,)


def test_shapes_are_checked():
    y = torch.zeros(5, 2)
    with pytest.raises(TypeError, match="`emission` must be a function of the state"):
        EmissionLikelihood(1.0, y)
    with pytest.raises(ValueError, match=r"`y` must have shape \(\*batch, N, O\), received \(5,\)"):
        EmissionLikelihood(elementwise, y[:, 0])
    with pytest.raises(ValueError, match=r"`mask` must be a bool tensor .* of shape \(5, 2\) or \(5,\)"):
        EmissionLikelihood(elementwise, y, torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"`inputs` must have shape \(\*batch, 5, C\)"):
        EmissionLikelihood(elementwise, y, inputs=torch.zeros(4, 1))
    with pytest.raises(ValueError, match="an entry for every channel"):
        EmissionLikelihood(whole, y, torch.ones(5, 2, dtype=torch.bool)).along(torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"event shape \(2,\), or an elementwise one of batch shape \(9, 2\)"):
        EmissionLikelihood(elementwise, y)(torch.zeros(9, 3), 0)
    with pytest.raises(ValueError, match=r"`emission` must return, .*received Tensor"):
        PathEmission(lambda z: z, torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"cannot expand a law of batch shape \(3,\) to \(2,\)"):
        PathEmission(elementwise, torch.zeros(3, 5, 2)).expand((2,))
