import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, RenyiELBO
from pyro.optim import Adam

from pyro_sde import SDEPath, TimeGrid
from pyro_sde.distributions.gaussian_path import GaussianPath
from pyro_sde.distributions.linear_gaussian_ssm import LinearGaussianSSM
from pyro_sde.distributions.markov_path import MarkovPath
from pyro_sde.infer.emissions import EmissionLikelihood, PathEmission
from pyro_sde.infer.filtering_bound import FilteringELBO
from pyro_sde.infer.particle_filter import particle_filter
from pyro_sde.sde import OrnsteinUhlenbeck
from pyro_sde.testing.statistics import z_test

NOISE = 0.4


@pytest.fixture(autouse=True)
def _fresh_parameters():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def emission(z):
    return dist.Normal(z, NOISE)


class Problem:
    """B series of an OU path; model and guide in a plate, and the exact evidence."""

    def __init__(self, size=3, count=6, max_step=0.25):
        self.grid = TimeGrid(0.5 * torch.arange(float(count)), max_step=max_step)
        self.size = size
        self.start = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        self.y = torch.randn(size, count, 1, generator=torch.Generator().manual_seed(2))
        self.sde = OrnsteinUhlenbeck(1.0, 0.8)

    def evidence(self, scale=0.8):
        law = GaussianPath(OrnsteinUhlenbeck(1.0, scale), self.start, self.grid, discretisation="euler")
        return LinearGaussianSSM(law, torch.ones(1, 1), NOISE).log_prob(self.y)

    def model(self):
        with pyro.plate("series", self.size):
            z = pyro.sample("z", SDEPath(self.sde, self.start, self.grid))
            pyro.sample("y", PathEmission(emission, self.grid.observed(z)), obs=self.y)

    def guide(self):
        slope = pyro.param("slope", torch.tensor(0.2))
        with pyro.plate("series", self.size):
            pyro.sample("z", SDEPath(self.sde.controlled(lambda t, z: -slope * z), self.start, self.grid))


def values(loss, model, guide, count):
    return torch.tensor([-loss.loss(model, guide) for _ in range(count)])


def test_the_bound_is_that_of_the_particle_filter():
    torch.manual_seed(0)
    problem = Problem(count=3)
    estimates = values(FilteringELBO(30), problem.model, problem.guide, 200)
    law = SDEPath(problem.sde, problem.start, problem.grid).expand((3_000, 3))
    guide = SDEPath(problem.sde.controlled(lambda t, z: -0.2 * z), problem.start, problem.grid).expand((3_000, 3))
    direct = particle_filter(law, EmissionLikelihood(emission, problem.y), 30, guide=guide).log_evidence.sum(-1)
    z_test(estimates, direct.mean()).require(detects=0.6)
    assert float(direct.mean()) < float(problem.evidence().sum())


def test_without_resampling_it_is_the_importance_weighted_bound():
    torch.manual_seed(0)
    problem = Problem(size=1, count=3)
    found = values(FilteringELBO(5, threshold=0), problem.model, problem.guide, 300)
    iwae = RenyiELBO(0, num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    reference = values(iwae, problem.model, problem.guide, 300)
    z_test(found - reference, 0.0).require(detects=0.8)


def test_it_is_tighter_than_the_importance_weighted_bound_on_a_long_series():
    torch.manual_seed(0)
    problem = Problem(size=1, count=100, max_step=None)
    exact = float(problem.evidence().sum())
    filtering = values(FilteringELBO(16), problem.model, problem.guide, 30)
    iwae = values(
        RenyiELBO(0, num_particles=16, vectorize_particles=True, max_plate_nesting=1), problem.model, problem.guide, 30
    )
    assert exact - float(filtering.mean()) < 0.2 * (exact - float(iwae.mean()))
    assert float(filtering.mean()) < exact


def test_training_learns_the_diffusion():
    torch.manual_seed(0)
    problem = Problem(size=40, count=12, max_step=None)
    truth = SDEPath(OrnsteinUhlenbeck(1.0, 0.8), problem.start, problem.grid).sample((40,))
    problem.y = problem.grid.observed(truth) + NOISE * torch.randn(40, 12, 1)

    def law():
        scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
        return SDEPath(OrnsteinUhlenbeck(1.0, scale), problem.start, problem.grid)

    def model():
        with pyro.plate("series", 40):
            z = pyro.sample("z", law())
            pyro.sample("y", PathEmission(emission, problem.grid.observed(z)), obs=problem.y)

    def guide():
        with pyro.plate("series", 40):
            pyro.sample("z", law())

    svi = SVI(model, guide, Adam({"lr": 0.05}), loss=FilteringELBO(64, gradient="score"))
    for _ in range(150):
        svi.step()
    found = float(pyro.param("scale").detach())
    scales = torch.linspace(0.4, 1.4, 101)
    best = float(scales[torch.stack([problem.evidence(float(s)).sum() for s in scales]).argmax()])
    assert found == pytest.approx(best, abs=0.1)


def test_gradients_reach_guide_and_emission():
    problem = Problem()
    weight = torch.tensor(1.0, requires_grad=True)

    def model():
        with pyro.plate("series", 3):
            z = pyro.sample("z", SDEPath(problem.sde, problem.start, problem.grid))
            pyro.sample("y", PathEmission(lambda z: emission(weight * z), problem.grid.observed(z)), obs=problem.y)

    loss = FilteringELBO(8)
    loss.loss_and_grads(model, problem.guide)
    slope = pyro.get_param_store()._params["slope"]
    assert slope.grad is not None
    assert float(slope.grad.abs()) > 0
    assert weight.grad is not None
    assert float(weight.grad.abs()) > 0
    assert loss.differentiable_loss(model, problem.guide).requires_grad
    assert isinstance(loss.loss(model, problem.guide), float)


def test_options_are_those_of_the_filter(monkeypatch):
    seen = {}

    def spy(*args, **options):
        seen.update(options)
        return particle_filter(*args, **options)

    monkeypatch.setattr("pyro_sde.infer.filtering_bound.particle_filter", spy)
    problem = Problem()
    FilteringELBO(3, resampling="stratified", threshold=0.7, gradient="score").loss(problem.model, problem.guide)
    seen.pop("guide")
    assert seen == {"resampling": "stratified", "threshold": 0.7, "gradient": "score"}


def test_other_latent_sites_add_their_own_terms():
    torch.manual_seed(0)
    problem = Problem(size=2, count=3)
    exact = problem.evidence()

    def model():
        pyro.sample("rate", dist.Normal(0.0, 1.0))
        problem_model()

    def problem_model():
        with pyro.plate("series", 2):
            z = pyro.sample("z", SDEPath(problem.sde, problem.start, problem.grid))
            pyro.sample("y", PathEmission(emission, problem.grid.observed(z)), obs=problem.y)

    def guide():
        pyro.sample("rate", dist.Normal(1.0, 0.5))
        with pyro.plate("series", 2):
            pyro.sample("z", SDEPath(problem.sde, problem.start, problem.grid))

    found = values(FilteringELBO(400), model, guide, 200)
    divergence = float(torch.distributions.kl_divergence(dist.Normal(1.0, 0.5), dist.Normal(0.0, 1.0)))
    bias = 0.5 * sum(
        float(
            (
                particle_filter(
                    SDEPath(problem.sde, problem.start, problem.grid).expand((500,)),
                    EmissionLikelihood(emission, problem.y[i]),
                    400,
                ).log_evidence
                - exact[i]
            )
            .exp()
            .var()
        )
        for i in range(2)
    )
    z_test(found, float(exact.sum()) - divergence - bias).require(detects=0.5)


def test_subsampling_scales_the_bound():
    torch.manual_seed(0)
    problem = Problem(size=4, count=3)

    def part(law):
        with pyro.plate("series", 4, subsample_size=2) as index:
            z = pyro.sample("z", SDEPath(problem.sde, problem.start, problem.grid))
            if law:
                pyro.sample("y", PathEmission(emission, problem.grid.observed(z)), obs=problem.y[index])

    found = values(FilteringELBO(300), lambda: part(True), lambda: part(False), 400)
    z_test(found, float(problem.evidence().sum())).require(detects=2.0)


def test_a_markov_path_is_bounded_too():
    torch.manual_seed(0)
    problem = Problem(max_step=None)

    def law():
        step = lambda z, t, inputs: dist.Normal(0.5 * z, 0.8 * math.sqrt(0.5)).to_event(1)  # noqa: E731
        return MarkovPath(step, problem.start, 6)

    def model():
        with pyro.plate("series", 3):
            z = pyro.sample("z", law())
            pyro.sample("y", PathEmission(emission, z), obs=problem.y)

    def guide():
        with pyro.plate("series", 3):
            pyro.sample("z", law())

    found = values(FilteringELBO(2_000), model, guide, 100)
    z_test(found, float(problem.evidence().sum())).require(detects=0.2)


def test_single_precision_is_kept():
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    problem = Problem(count=3)
    loss = FilteringELBO(5000).differentiable_loss(problem.model, problem.guide).detach()
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(-float(problem.evidence().sum()), abs=0.3)


def refused(match, model=None, guide=None, problem=None):
    problem = problem or Problem()
    with pytest.raises(ValueError, match=match):
        FilteringELBO(4).loss(model or problem.model, guide or problem.guide)


def test_models_of_another_structure_are_refused():
    problem = Problem()

    def rewritten(law, extra=None, scale=1.0, start=None):
        def model():
            with pyro.plate("series", 3):
                z = pyro.sample("z", SDEPath(problem.sde, start or problem.start, problem.grid))
                with poutine.scale(scale=scale):
                    pyro.sample("y", law(problem.grid.observed(z)), obs=problem.y)
                if extra is not None:
                    extra(z)

        return model

    path = lambda z: PathEmission(emission, z)  # noqa: E731
    refused(
        "needs one observed site with the law PathEmission, this model has 0",
        rewritten(lambda z: emission(z).to_event(2)),
    )
    refused("needs a model with one latent path site, this one has 0", lambda: None)
    refused(
        "site 'late' depends on the path 'z'",
        rewritten(path, lambda z: pyro.sample("late", dist.Normal(z[..., -1, 0], 1.0), obs=torch.zeros(3))),
    )
    refused("the `states` of PathEmission must be those of the path", rewritten(lambda z: path(2 * z)))
    refused("have different scales", rewritten(path, scale=0.5))
    refused("leave out `.mask` and `.to_event`", rewritten(lambda z: path(z).mask(torch.tensor(True))))


def test_guides_of_another_structure_are_refused():
    problem = Problem()

    def no_law():
        with pyro.plate("series", 3):
            pyro.sample("z", dist.Delta(torch.zeros(3, *problem.grid.times.shape, 1), event_dim=2))

    refused("needs a path law at site 'z' of the guide", guide=no_law)

    def model():
        pyro.sample("k", dist.Bernoulli(0.5))
        problem.model()

    def discrete():
        pyro.sample("k", dist.Bernoulli(0.5))
        problem.guide()

    refused("site 'k' of the guide is not reparameterised", model, discrete)

    def masked():
        with pyro.plate("series", 3):
            law = SDEPath(problem.sde, problem.start, problem.grid).expand((3,))
            pyro.sample("z", law.mask(torch.tensor([True, True, False])))

    refused("the path law of the guide at site 'z' has a mask", guide=masked)


def test_options_are_checked():
    with pytest.raises(ValueError, match="`num_particles` must be a positive integer, received 0"):
        FilteringELBO(0)
    with pytest.raises(ValueError, match="`threshold` must be a number in"):
        FilteringELBO(threshold=2)
    with pytest.raises(ValueError, match="`resampling` must be one of"):
        FilteringELBO(resampling="none")
    with pytest.raises(ValueError, match="`gradient` must be one of"):
        FilteringELBO(gradient="none")
