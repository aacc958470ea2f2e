"""LatentSDE: a plain Pyro pair that ignores what is not observed, learns, and can be stopped and resumed."""

from __future__ import annotations

import copy
import pickle

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, RenyiELBO, Trace_ELBO
from pyro.optim import ClippedAdam
from torch.testing import assert_close

from pyro_sde.data import TimeSeries, synthetic
from pyro_sde.distributions import SDEPath, path_kl
from pyro_sde.infer import FitOptions, PathELBO
from pyro_sde.infer.checkpoint import load, save
from pyro_sde.models import Architecture, CategoricalLikelihood, LatentSDE
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.sde import SDE

F64 = torch.float64
SMALL = Architecture(hidden=(8,), decoder_hidden=(), encoder_hidden=8, context_dim=4)


def build(*, dtype=torch.float32, max_step=0.5, seed=0, **parts):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LatentSDE(2, 1, max_step=max_step, architecture=SMALL, **parts).to(dtype)


def ragged(dtype=torch.float32):
    """Three series of different lengths, with gaps: times, values, mask."""
    times = torch.tensor([[0.0, 0.4, 1.0, 1.7], [0.3, 0.9, 0.9, 0.9], [0.0, 0.1, 0.2, 0.3]], dtype=dtype)
    values = torch.tensor([[0.5, -0.2, 1.0, 0.1], [1.5, 0.3, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4]], dtype=dtype)
    mask = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    return times, values.unsqueeze(-1), mask.unsqueeze(-1)


def quiet(**options):
    return FitOptions(progress=False, **options)


def ou(seed=0, num_series=24, **options):
    options = {"num_times": 8, "end_time": 4.0, "irregular": True, **options}
    return synthetic.ornstein_uhlenbeck(seed, num_series=num_series, **options).standardise()[0]


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def spoil(module):
    """Parameters away from their start, where some have no influence yet."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in module.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return module


# --- model and guide


def test_the_sites_are_a_path_and_the_series_in_one_plate():
    latent, (times, values, mask) = build(), ragged()
    grid = TimeGrid(times, max_step=0.5)
    guide = poutine.trace(latent.guide).get_trace(grid, values, mask)
    model = poutine.trace(poutine.replay(latent.model, guide)).get_trace(grid, values, mask)
    assert [name for name in model.stochastic_nodes + model.observation_nodes if name != "series"] == ["z", "y"]
    for trace in (model, guide):
        site = trace.nodes["z"]
        assert isinstance(site["fn"], SDEPath)
        assert site["value"].shape == (3, grid.num_steps + 1, 2)
        assert [frame.name for frame in site["cond_indep_stack"]] == ["series"]
    assert (model.nodes["y"]["fn"].batch_shape, model.nodes["y"]["fn"].event_shape) == ((3,), (4, 1))


def test_a_new_guide_has_the_law_of_the_prior_given_its_first_state():
    latent, (times, values, mask) = build(dtype=F64), ragged(F64)
    grid = TimeGrid(times, max_step=0.1)
    q = latent.parts.posterior_law(grid, values, mask)
    p = SDEPath(latent.prior, q.initial, grid)
    path = q.rsample((5,))
    assert path_kl(q, p, path).abs().max() == 0.0
    assert_close(q.log_prob(path), p.log_prob(path), rtol=0, atol=1e-12)


@pytest.mark.parametrize("filler", [7.0, -1e6, float("nan"), float("inf")])
def test_what_is_not_observed_has_no_influence_on_loss_and_gradients(filler):
    times, values, mask = ragged(F64)
    grid = TimeGrid(times, max_step=0.5)
    results = []
    for data in (values, torch.where(mask, values, filler)):
        latent = spoil(build(dtype=F64))
        torch.manual_seed(0)
        with pyro.get_param_store().scope():
            loss = PathELBO().loss_and_grads(latent.model, latent.guide, grid, data, mask)
        gradients = torch.cat([p.grad.flatten() for p in latent.parameters()])
        assert gradients.isfinite().all()
        results.append((loss, gradients))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


def test_padding_and_the_rest_of_the_batch_have_no_influence():
    times, values, mask = ragged(F64)
    latent = spoil(build(dtype=F64))
    elbo = Trace_ELBO()

    def loss(rows, columns):
        part = [tensor[rows, :columns] for tensor in (times, values, mask)]
        grid = TimeGrid(part[0], max_step=0.5)
        law = latent.parts.posterior_law(grid, *part[1:])
        noise = torch.linspace(-1, 1, grid.num_steps, dtype=F64).unsqueeze(-1).expand(len(rows), -1, 2)
        z = law.solve(law.initial.base_dist.loc, noise)
        guide = poutine.condition(latent.guide, {"z": z})
        return elbo.loss(poutine.condition(latent.model, {"z": z}), poutine.block(guide), grid, *part[1:])

    longest = max(TimeGrid(times[[i]], max_step=0.5).num_steps for i in range(3))
    assert longest == TimeGrid(times, max_step=0.5).num_steps
    alone = TimeGrid(times[[1], :2], max_step=0.5)
    law = latent.parts.posterior_law(alone, values[[1], :2], mask[[1], :2])
    batch = latent.parts.posterior_law(TimeGrid(times, max_step=0.5), values, mask)
    assert_close(batch.inputs[1, : alone.num_steps], law.inputs[0], rtol=0, atol=1e-12)
    assert loss([1], 4) == pytest.approx(loss([1], 2), abs=1e-10)


def test_svi_with_the_default_store_trains_every_parameter():
    latent, (times, values, mask) = build(), ragged()
    before = {name: p.detach().clone() for name, p in latent.named_parameters()}
    svi = SVI(latent.model, latent.guide, ClippedAdam({"lr": 0.01}), PathELBO())
    for _ in range(3):
        svi.step(TimeGrid(times, max_step=0.5), values, mask)
    assert [name for name, p in latent.named_parameters() if torch.equal(p, before[name])] == []
    stored = {id(value) for _, value in pyro.get_param_store().named_parameters()}
    assert stored == {id(p) for p in latent.parameters()}


def test_a_torch_optimiser_trains_it_as_an_elbo_module():
    latent, (times, values, mask) = build(), ragged()
    before = weights(latent)
    loss = PathELBO()(latent.model, latent.guide)(TimeGrid(times, max_step=0.5), values, mask)
    optimiser = torch.optim.Adam(latent.parameters())
    loss.backward()
    optimiser.step()
    assert not torch.equal(weights(latent), before)


@pytest.mark.parametrize(
    "elbo",
    [PathELBO("closed"), Trace_ELBO(), RenyiELBO(num_particles=3), PathELBO(num_particles=3, vectorize_particles=True)],
    ids=["closed", "plain", "importance", "vectorised"],
)
def test_every_loss_of_pyro_takes_it(elbo):
    latent, (times, values, mask) = build(), ragged()
    loss = SVI(latent.model, latent.guide, ClippedAdam({"lr": 0.01}), elbo).step(
        TimeGrid(times, max_step=0.5), values, mask
    )
    assert torch.isfinite(torch.tensor(loss))


def test_one_grid_may_serve_all_series():
    latent, values = build(), torch.randn(5, 4, 1)
    grid = TimeGrid(torch.tensor([0.0, 0.5, 0.7, 2.0]), max_step=0.5)
    assert latent.guide(grid, values).shape == (5, grid.num_steps + 1, 2)
    assert torch.isfinite(torch.tensor(PathELBO().loss(latent.model, latent.guide, grid, values)))


def test_without_values_the_model_samples_them():
    latent, grid = build(), TimeGrid(ragged()[0], max_step=0.5)
    y = Predictive(latent.model, num_samples=6)(grid)["y"]
    assert y.shape == (6, 3, 4, 1)


def test_a_second_model_in_the_same_store_is_refused_and_not_silently_left_untrained():
    times, values, mask = ragged()
    grid = TimeGrid(times, max_step=0.5)
    first, second = build(), build(seed=1)
    first.model(grid, values, mask)
    for function in (second.model, second.guide):
        with pytest.raises(ValueError, match=r"holds 'latent_sde.*' of another LatentSDE.*clear_param_store"):
            function(grid, values, mask)
    with pyro.get_param_store().scope():
        second.model(grid, values, mask)


def test_data_of_the_wrong_shape_or_not_finite_are_refused():
    latent, (times, values, mask) = build(), ragged()
    grid = TimeGrid(times, max_step=0.5)
    with pytest.raises(ValueError, match=r"`values` must have shape \(B, N, O\)"):
        latent.model(TimeGrid(times[0]), values[0])
    with pytest.raises(ValueError, match="must be finite where observed"):
        latent.guide(grid, torch.full_like(values, torch.nan))
    with pytest.raises(ValueError, match="dtype and device"):
        latent.model(grid, values.double(), mask)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="`state_dim` must be an integer >= 1"):
        LatentSDE(0, 1)
    with pytest.raises(ValueError, match="`value_dim` must be an integer >= 1"):
        LatentSDE(1, 0)
    with pytest.raises(ValueError, match="`likelihood` must be one of"):
        LatentSDE(1, 1, likelihood="gauss")


# --- training


def test_training_lowers_the_loss_and_beats_the_prior_predictive_on_held_out_values():
    series = ou(num_series=48, num_times=12, end_time=4.0)
    latent = LatentSDE(
        1, 1, max_step=0.5, architecture=Architecture(hidden=(16,), decoder_hidden=(), encoder_hidden=16)
    )
    result = latent.fit(series, steps=150, batch_size=48, learning_rate=0.02, options=quiet())
    assert sum(result.losses[-10:]) / 10 < sum(result.losses[:10]) / 10 - 1.0

    fresh = ou(seed=1, num_series=32, num_times=12, end_time=4.0)
    hidden = torch.rand(fresh.mask.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    hidden[:, 0] = False
    given = (fresh.times, fresh.values, fresh.mask & ~hidden)
    targets = (fresh.times, fresh.values, fresh.mask & hidden)
    targets = TimeSeries("targets", *[t[hidden.any(-1).any(-1)] for t in targets])
    given = TimeSeries("given", *[t[hidden.any(-1).any(-1)] for t in given])
    result = latent.evaluate(given, targets, num_samples=200, seed=0)
    prior = latent.sample_prior(targets.times, num_samples=200, start=None, seed=0)
    prior_rmse = (prior.mean.mean(0) - targets.values)[targets.mask].square().mean().sqrt().item()
    assert result.rmse.mean < 0.8 * prior_rmse
    spread = targets.values[targets.mask].std().item()
    gaussian = -0.5 * (1 + torch.log(torch.tensor(2 * torch.pi * spread**2)).item())
    assert result.log_likelihood.mean > gaussian + 0.1  # better than knowing mean and deviation of the targets


@pytest.mark.parametrize("name", ["normal", "laplace", "bernoulli", "poisson", "categorical"])
def test_every_likelihood_trains_and_predicts_in_its_support(name):
    times = torch.arange(5.0).expand(6, -1)
    values = torch.randint(0, 2, (6, 5, 1), generator=torch.Generator().manual_seed(0)).float()
    likelihood = CategoricalLikelihood(1, 3) if name == "categorical" else name
    latent = build(likelihood=likelihood)
    result = latent.fit((times, values), steps=4, options=quiet())
    assert torch.tensor(result.losses).isfinite().all()
    y = latent.forecast((times, values), torch.tensor([4.0, 6.0]), num_samples=9, seed=0).y
    assert y.shape == (9, 6, 2, 1)
    assert latent.likelihood(latent.decoder(torch.zeros(9, 6, 2, 2))).log_prob(y).isfinite().all()


def test_the_same_seed_gives_the_same_model_and_another_seed_another():
    runs = {}
    for key, seed in (("one", 0), ("two", 0), ("three", 1)):
        latent = build()
        result = latent.fit(ou(), steps=5, batch_size=8, seed=seed, validation=0.25, options=quiet(validate_every=2))
        runs[key] = (weights(latent), result)
    assert torch.equal(runs["one"][0], runs["two"][0])
    assert runs["one"][1].losses == runs["two"][1].losses
    assert runs["one"][1].losses != runs["three"][1].losses


def test_fit_uses_no_global_state():
    before = torch.get_rng_state()
    for seed in (0, 1):  # two models of the same names one after the other
        build(seed=seed).fit(ou(), steps=2, options=quiet())
    assert torch.equal(torch.get_rng_state(), before)
    assert len(pyro.get_param_store()) == 0


def test_predictions_leave_the_parameter_store_alone():
    latent = build()
    latent.posterior(ragged(), num_samples=2)
    latent.evaluate(ragged(), num_samples=2)
    assert len(pyro.get_param_store()) == 0


def test_a_resumed_fit_equals_an_uninterrupted_one(tmp_path):
    class StopError(Exception):
        pass

    def stop(step):
        if step.step == 9:
            raise StopError

    common = {"steps": 14, "batch_size": 8, "validation": 0.25, "seed": 2}
    options = {"validate_every": 3, "kl_warmup": 6}
    whole = build()
    expected = whole.fit(ou(), **common, options=quiet(**options))
    files = {"checkpoint": tmp_path / "run.pt", "checkpoint_every": 4}
    with pytest.raises(StopError):
        build().fit(ou(), **common, options=quiet(**options, **files, callback=stop))
    resumed = build(seed=5)  # its own start does not matter
    result = resumed.fit(ou(), **common, options=quiet(**options, **files, resume=True))
    assert result.losses == expected.losses
    assert result.validation_losses == expected.validation_losses
    assert torch.equal(weights(resumed), weights(whole))


def test_validation_may_be_a_share_or_other_data():
    series = ou()
    share = build().fit(series, steps=2, validation=0.25, options=quiet(validate_every=1))
    other = build().fit(series, steps=2, validation=ou(seed=9, num_series=3), options=quiet(validate_every=1))
    none = build().fit(series, steps=2, options=quiet())
    assert [step for step, _ in share.validation_losses] == [1, 2]
    assert share.validation_losses != other.validation_losses
    assert none.validation_losses == []


def test_losses_do_not_depend_on_the_number_of_series_or_the_batch_size():
    few, many = ou(num_series=8), ou(num_series=48)
    losses = [
        build().fit(series, steps=1, batch_size=size, options=quiet()).losses[0]
        for series, size in ((few, 8), (many, 48), (many, 8))
    ]
    assert max(losses) < 1.6 * min(losses)


def test_raw_data_raise_a_warning_for_learned_noise_and_none_for_counts():
    times, values = torch.arange(4.0).expand(3, -1), 50 + torch.arange(12.0).reshape(3, 4, 1)
    with pytest.warns(UserWarning, match="standardise"):
        build().fit((times, values), steps=1, options=quiet())
    build(likelihood="poisson").fit((times, values), steps=1, options=quiet())


def test_float64_models_train_and_predict_in_float64():
    latent = build(dtype=F64)
    latent.fit(ou(), steps=2, options=quiet())
    assert latent.posterior(ou(), num_samples=2).y.dtype == F64
    assert {p.dtype for p in latent.parameters()} == {F64}


def test_priors_with_another_number_of_brownian_motions_train():
    matrix = torch.tensor([[0.5, 0.2, 0.0], [0.0, 0.1, 0.4]])
    prior = SDE(lambda t, z: -z, lambda t, z: matrix, noise_type="additive")
    result = build(prior=prior).fit(ou(), steps=10, learning_rate=0.03, options=quiet())
    assert result.losses[-1] < result.losses[0]


def test_a_failing_step_is_named():
    prior = SDE(lambda t, z: 1e9 * z**3, lambda t, z: torch.ones_like(z))
    with pytest.raises(ValueError, match=r"the first call: SDEPath at site 'z': the path became non-finite"):
        build(prior=prior).fit(ou(), steps=1, options=quiet())


# --- files


def test_it_is_saved_and_loaded_copied_and_pickled(tmp_path):
    latent = spoil(build())
    expected = latent.posterior(ragged(), num_samples=2, seed=0)
    save(tmp_path / "latent.pt", model=latent)
    fresh = build(seed=3)
    load(tmp_path / "latent.pt", model=fresh)
    for other in (fresh, copy.deepcopy(latent), pickle.loads(pickle.dumps(latent))):
        assert torch.equal(other.posterior(ragged(), num_samples=2, seed=0).y, expected.y)
