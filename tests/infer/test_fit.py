"""`fit`: the step of SVI, what each option changes, resumed runs, and errors that say when and why."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, pyro_method
from torch import nn
from torch.testing import assert_close

from pyro_sde.distributions import SDEPath
from pyro_sde.infer import FitOptions, JitPathELBO, PathELBO, fit
from pyro_sde.infer.checkpoint import load, save
from pyro_sde.infer.fit_sharded import fit_sharded
from pyro_sde.infer.sharded_elbo import ShardedELBO
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.sde import OrnsteinUhlenbeck

Y = torch.tensor([0.3, 1.2, 0.9, 1.6], dtype=torch.float64)
GRID = TimeGrid(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), max_step=0.25)


class Pair(PyroModule):
    """A Normal mean with a Normal guide, and a path site that is observed once."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.0))
        self.raw = nn.Parameter(torch.tensor(0.0))
        self.gain = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("calls", torch.tensor(0.0))

    def law(self, control=None):
        prior = OrnsteinUhlenbeck(1.0, 0.5)
        initial = dist.Normal(torch.zeros(1, dtype=torch.float64), 0.5).to_event(1)
        return SDEPath(prior if control is None else prior.controlled(control), initial, GRID)

    @pyro_method
    def model(self, y):
        mean = pyro.sample("mean", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        z = pyro.sample("z", self.law())
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean + z[-1, 0], 1.0), obs=y)

    @pyro_method
    def guide(self, y):
        self.calls += torch.is_grad_enabled()
        pyro.sample("mean", dist.Normal(self.loc, self.raw.exp()))
        gain = self.gain
        pyro.sample("z", self.law(lambda t, z: gain + 0 * z))


def quiet(**options):
    return FitOptions(progress=False, **options)


def run(pair=None, *, batches=((Y,),), steps=30, validation=None, seed=0, **options):
    pair = pair or Pair()
    with pyro.get_param_store().scope():  # many pairs have parameters of these names
        result = fit(
            pair.model,
            pair.guide,
            list(batches),
            steps=steps,
            validation=validation,
            seed=seed,
            options=quiet(**options),
        )
    return pair, result


def parameters(module):
    return torch.stack([p.detach() for p in module.parameters()])


# --- what a step is


def test_steps_are_those_of_svi_with_adam():
    def model(y):
        loc = pyro.param("loc", torch.tensor(0.1))
        scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, scale), obs=y)

    def guide(y):
        pass

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    expected = [svi.step(Y) for _ in range(20)]
    target = pyro.param("scale").item()
    pyro.clear_param_store()
    result = fit(model, guide, [(Y,)], steps=20, learning_rate=0.02, options=quiet(decay=1.0, clip=None))
    assert result.losses == pytest.approx(expected, abs=1e-12)
    assert pyro.param("scale").item() == pytest.approx(target, abs=1e-12)


def test_training_finds_the_posterior_mean_of_a_conjugate_model():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    guide = AutoNormal(model)  # creates its parameters at its first call
    fit(model, guide, [(Y,)], steps=400, learning_rate=0.05, options=quiet(elbo=PathELBO(num_particles=4), decay=0.01))
    assert guide.median()["mean"].item() == pytest.approx(Y.sum().item() / 5, abs=0.02)


def test_training_lowers_the_loss_and_returns_every_loss():
    _, result = run(steps=60)
    assert len(result.losses) == 60
    assert sum(result.losses[-20:]) < sum(result.losses[:20])
    assert (result.best_step, result.stopped_early, result.validation_losses) == (60, False, [])
    assert result.seconds > 0


def test_modules_in_float32_train_too():
    net = nn.Linear(1, 1).float()

    def model(x):
        pyro.module("net", net)
        pyro.sample("y", dist.Normal(net(x), 1.0).to_event(2), obs=torch.ones(3, 1))

    result = fit(model, lambda x: None, [(torch.ones(3, 1, dtype=torch.float32),)], steps=5, options=quiet())
    assert result.losses[-1] < result.losses[0]


def test_batches_are_cycled_through_or_a_function_of_the_step():
    seen = []

    def model(tag):
        seen.append(tag)
        pyro.sample("y", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=torch.tensor(1.0))

    fit(model, lambda tag: None, [("a",), ("b",)], steps=3, options=quiet())
    assert seen == ["a", "a", "b", "a"]  # the first call is an example
    seen.clear()
    fit(model, lambda tag: None, lambda step: (step,), steps=3, options=quiet())
    assert seen == [0, 0, 1, 2]


# --- seeds


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    (one, first), (two, second), (three, third) = run(seed=1), run(seed=1), run(seed=2)
    assert first.losses == second.losses
    assert torch.equal(parameters(one), parameters(two))
    assert first.losses != third.losses
    assert not torch.equal(parameters(one), parameters(three))


def test_the_global_random_state_is_neither_used_nor_changed():
    torch.manual_seed(1)
    _, first = run()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    _, second = run()
    assert torch.equal(torch.get_rng_state(), before)
    assert first.losses == second.losses


def test_validation_and_callbacks_that_draw_numbers_do_not_change_training():
    _, plain = run()
    _, watched = run(validation=(Y,), validate_every=3, callback=lambda step: torch.randn(5) is None)
    assert plain.losses == watched.losses


# --- options


def test_the_weight_of_the_divergence_rises_linearly_to_its_full_value():
    weights = []
    run(steps=8, kl_warmup=5, callback=lambda step: weights.append(step.kl_weight))
    assert weights == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0])
    weights.clear()
    elbo = PathELBO(kl_weight=0.5)
    run(steps=3, kl_warmup=2, elbo=elbo, callback=lambda step: weights.append(step.kl_weight))
    assert weights == pytest.approx([0.25, 0.5, 0.5])
    run(steps=1, kl_warmup=10, elbo=elbo)
    assert elbo.kl_weight == 0.5  # the loss of the user is not changed


def pushed():
    """A pair whose path has a divergence of 4.5."""
    pair = Pair()
    with torch.no_grad():
        pair.gain.fill_(3.0)
    return pair


def test_the_warm_up_reaches_the_loss():
    _, cold = run(pushed(), steps=1, kl_warmup=1000, elbo=PathELBO("closed"))
    _, full = run(pushed(), steps=1, elbo=PathELBO("closed"))
    assert full.losses[0] - cold.losses[0] == pytest.approx(4.5 * 0.999, abs=1e-9)


def test_the_warm_up_starts_where_it_is_told():
    weights = []
    run(steps=6, kl_warmup=4, kl_start=0.2, callback=lambda step: weights.append(step.kl_weight))
    assert weights == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0, 1.0])
    _, cold = run(pushed(), steps=1, kl_warmup=1000, kl_start=0.2, elbo=PathELBO("closed"))
    _, full = run(pushed(), steps=1, elbo=PathELBO("closed"))
    assert full.losses[0] - cold.losses[0] == pytest.approx(4.5 * 0.8 * 0.999, abs=1e-9)


def moving_average(decay, start, passed):
    average = start
    for n, values in enumerate(passed, 1):
        rho = min(decay, n / (n + 9))
        average = rho * average + (1 - rho) * values
    return average


def test_the_trained_model_is_the_moving_average_of_the_parameters():
    pair, start, passed = Pair(), parameters(Pair()), []
    run(pair, steps=30, average=0.6, callback=lambda step: passed.append(parameters(pair).clone()))
    assert (parameters(pair) - moving_average(0.6, start, passed)).abs().max() < 1e-12
    assert (parameters(pair) - passed[-1]).abs().max() > 1e-3
    plain, _ = run(steps=30)
    assert torch.equal(passed[-1], parameters(plain))  # training itself does not feel the average


def test_validations_are_of_the_average_and_leave_training_alone():
    pair, start, passed = Pair(), parameters(Pair()), []
    _, result = run(
        pair,
        steps=12,
        average=0.9,
        validation=(Y,),
        validate_every=5,
        callback=lambda step: passed.append(parameters(pair).clone()),
    )
    plain, _ = run(steps=12)
    assert torch.equal(passed[-1], parameters(plain))
    kept = moving_average(0.9, start, passed[: result.best_step])
    assert (parameters(pair) - kept).abs().max() < 1e-12


def test_the_learning_rate_falls_by_the_decay_over_the_run():
    rates = []
    run(steps=3, decay=0.01, callback=lambda step: rates.append(step.learning_rate))
    assert rates == pytest.approx([1e-2, 1e-3, 1e-4])


def heard_rates(**options):
    """Learning rates in units of the full one, 0.01, and weights of the divergence."""
    rates, weights = [], []

    def callback(step):
        rates.append(step.learning_rate / 1e-2)
        weights.append(step.kl_weight)

    run(callback=callback, **options)
    return rates, weights


@pytest.mark.parametrize(
    ("schedule", "falling"),
    [
        ("exponential", [0.04**0.25, 0.2, 0.04**0.75, 0.04]),
        ("cosine", [0.52 + 0.48 / math.sqrt(2), 0.52, 0.52 - 0.48 / math.sqrt(2), 0.04]),
    ],
)
def test_the_learning_rate_rises_to_the_full_one_and_falls_along_its_schedule(schedule, falling):
    rates, weights = heard_rates(steps=7, decay=0.04, schedule=schedule, rate_warmup=3)
    assert rates == pytest.approx([1 / 3, 2 / 3, 1.0, *falling], rel=1e-12)
    assert weights == [1.0] * 7
    rates, weights = heard_rates(steps=5, decay=0.04, schedule=schedule, kl_warmup=2)
    assert rates == pytest.approx([1.0, *falling], rel=1e-12)
    assert weights == [0.5, 1.0, 1.0, 1.0, 1.0]
    assert heard_rates(steps=5, decay=0.04, schedule=schedule, rate_warmup=1)[0] == rates


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # torch 2.5 inside its SequentialLR
def test_schedules_are_those_of_torch():
    rates, _ = heard_rates(steps=31, decay=0.1, schedule="cosine", rate_warmup=11)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    parts = [
        torch.optim.lr_scheduler.LinearLR(optimiser, start_factor=1 / 11, total_iters=10),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=20, eta_min=0.1),
    ]
    theirs = torch.optim.lr_scheduler.SequentialLR(optimiser, parts, milestones=[10])
    expected = []
    for _ in range(31):
        expected += theirs.get_last_lr()
        optimiser.step()
        theirs.step()
    assert rates == pytest.approx(expected, rel=1e-9)


def test_without_a_schedule_the_rates_are_bit_by_bit_what_they_were():
    rates = []
    run(steps=30, callback=lambda step: rates.append(step.learning_rate))
    assert rates == [1e-2 * 0.1 ** (done / 29) for done in range(30)]


def test_a_run_that_ends_in_its_warm_up_never_falls():
    for schedule in ("exponential", "cosine"):
        assert heard_rates(steps=3, schedule=schedule, rate_warmup=6)[0] == pytest.approx([1 / 6, 2 / 6, 3 / 6])
        assert heard_rates(steps=3, schedule=schedule, rate_warmup=3)[0] == pytest.approx([1 / 3, 2 / 3, 1.0])
        assert heard_rates(steps=1, schedule=schedule)[0] == [1.0]


def test_adam_makes_steps_of_the_scheduled_length():
    passed, rates = [parameters(Pair())], []
    pair = Pair()

    def callback(step):
        passed.append(parameters(pair).clone())
        rates.append(step.learning_rate)

    run(pair, steps=6, schedule="cosine", decay=1e-3, rate_warmup=3, callback=callback)
    moved = torch.stack(passed).diff(dim=0).abs().amax(1)
    assert moved[0].item() == pytest.approx(1e-2 / 3, rel=1e-4)  # the first step of Adam is the learning rate
    assert (moved <= 2 * torch.tensor(rates)).all()


def test_sharded_training_has_the_rates_of_fit():
    told, pair = [], Pair()
    options = quiet(schedule="cosine", rate_warmup=4, decay=0.2, callback=lambda s: told.append(s.learning_rate))
    loss = ShardedELBO(pair.model, pair.guide, lambda indices: (Y[indices],), num_shards=1, reduction="mean")
    fit_sharded(loss, 4, steps=9, options=options)
    rates, _ = heard_rates(steps=9, schedule="cosine", rate_warmup=4, decay=0.2)
    assert told == pytest.approx([1e-2 * rate for rate in rates], rel=1e-12)


def test_clipping_limits_the_norm_of_the_gradient():
    start = parameters(Pair())
    moved = {clip: (parameters(run(steps=1, clip=clip)[0]) - start).norm().item() for clip in (None, 1e-12)}
    assert moved[None] > 1e-2
    assert moved[1e-12] < 1e-5  # far below the epsilon of Adam


def test_a_callback_hears_of_every_step_and_can_stop_the_run():
    heard = []

    def callback(step):
        heard.append(step)
        return step.step == 7

    _, result = run(validation=(Y,), validate_every=5, callback=callback)
    assert [h.step for h in heard] == list(range(1, 8))
    assert [h.loss for h in heard] == result.losses
    assert [h.step for h in heard if h.validation_loss is not None] == [5]
    assert result.stopped_early


def test_progress_is_shown_or_not(capfd):
    run(steps=3)
    assert capfd.readouterr() == ("", "")
    pair = Pair()
    fit(pair.model, pair.guide, [(Y,)], steps=3, validation=(Y,), options=FitOptions(validate_every=1))
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "3/3" in shown.err
    assert "loss" in shown.err
    assert "validation" in shown.err


# --- validation


def overfit(validation_data, **options):
    """Training pulls the mean to 5; validation data that lie at 1 are fitted best on the way."""

    class Mean(PyroModule):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.tensor(0.0))
            self.register_buffer("calls", torch.tensor(0.0))

        @pyro_method
        def model(self, y):
            self.calls += torch.is_grad_enabled()
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Normal(self.loc, 1.0), obs=y)

    mean = Mean()
    with pyro.get_param_store().scope():
        result = fit(
            mean.model,
            lambda y: None,
            [(torch.full((4,), 5.0),)],
            steps=60,
            learning_rate=0.1,
            validation=(validation_data,),
            options=quiet(decay=1.0, validate_every=4, **options),
        )
    return mean, result


def test_the_best_parameters_and_buffers_on_the_validation_data_are_put_back():
    mean, result = overfit(torch.ones(3))
    assert len(result.losses) == 60
    steps, losses = zip(*result.validation_losses, strict=True)
    assert steps == tuple(range(4, 61, 4))
    assert result.best_step == steps[losses.index(min(losses))] < 20
    assert mean.loc.item() == pytest.approx(1.0, abs=0.2)
    assert mean.calls.item() == result.best_step
    exact = 3 * (0.5 * (mean.loc.item() - 1) ** 2 + 0.5 * math.log(2 * math.pi))
    assert min(losses) == pytest.approx(exact, abs=1e-9)


def test_patience_stops_the_run_so_many_validations_after_the_best():
    _, long = overfit(torch.ones(3))
    mean, short = overfit(torch.ones(3), patience=3)
    assert short.stopped_early
    assert short.best_step == long.best_step
    assert len(short.losses) == short.best_step + 3 * 4
    assert mean.loc.item() == pytest.approx(1.0, abs=0.2)


def test_without_a_worse_validation_patience_does_not_stop():
    _, result = overfit(torch.full((3,), 50.0), patience=1)
    assert not result.stopped_early
    assert result.best_step == 60


def test_validation_is_at_full_weight_with_the_same_noise_every_time():
    _, result = run(steps=4, validation=(Y,), validate_every=1, kl_warmup=1000, clip=1e-12)
    losses = [loss for _, loss in result.validation_losses]
    assert losses == pytest.approx([losses[0]] * 4, abs=1e-4)  # the parameters hardly move
    options = {"steps": 1, "validation": (Y,), "elbo": PathELBO("closed"), "clip": 1e-12}
    _, cold = run(pushed(), kl_warmup=1000, **options)
    _, full = run(pushed(), **options)
    assert cold.validation_losses[0][1] == pytest.approx(full.validation_losses[0][1], abs=1e-3)


# --- checkpoints


class StopError(Exception):
    pass


def stop_at(number):
    def callback(step):
        if step.step == number:
            raise StopError

    return callback


COSINE = {"schedule": "cosine", "rate_warmup": 15}


@pytest.mark.parametrize(
    ("killed_at", "extra"),
    [(10, {}), (25, {}), (27, {}), (27, {"average": 0.9}), (12, COSINE), (27, COSINE)],
)
def test_a_resumed_run_equals_one_that_was_never_interrupted(tmp_path, killed_at, extra):
    options = {
        **extra,
        "validation": (Y + 0.5,),
        "validate_every": 4,
        "kl_warmup": 12,
        "steps": 40,
        "seed": 3,
    }
    whole, expected = run(batches=[(Y,), (Y[:2],), (Y[2:],)], **options)
    path = tmp_path / "run.pt"
    with pytest.raises(StopError):
        run(
            batches=[(Y,), (Y[:2],), (Y[2:],)],
            checkpoint=path,
            checkpoint_every=5,
            callback=stop_at(killed_at),
            **options,
        )
    resumed, result = run(
        batches=[(Y,), (Y[:2],), (Y[2:],)], checkpoint=path, checkpoint_every=5, resume=True, **options
    )
    assert result.losses == expected.losses
    assert result.validation_losses == expected.validation_losses
    assert result.best_step == expected.best_step
    assert torch.equal(parameters(resumed), parameters(whole))
    assert torch.equal(resumed.calls, whole.calls)


def test_a_finished_run_is_resumed_without_a_step_and_a_longer_one_goes_on(tmp_path):
    path = tmp_path / "run.pt"
    first, expected = run(steps=10, checkpoint=path, decay=1.0)
    again, result = run(steps=10, checkpoint=path, decay=1.0, resume=True, callback=stop_at(1))
    assert result.losses == expected.losses
    assert torch.equal(parameters(again), parameters(first))
    longer, result = run(steps=15, checkpoint=path, decay=1.0, resume=True)
    whole, expected = run(steps=15, decay=1.0)
    assert result.losses == expected.losses
    assert torch.equal(parameters(longer), parameters(whole))


def test_without_a_file_or_without_resume_a_run_starts_anew(tmp_path):
    path = tmp_path / "run.pt"
    _, first = run(steps=5, checkpoint=path, resume=True)
    assert path.exists()
    _, second = run(steps=5, checkpoint=path)
    assert first.losses == second.losses


def test_parameters_of_functions_are_resumed_too(tmp_path):
    def model(y):
        loc = pyro.param("loc", torch.tensor(0.1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    def go(steps, **options):
        fit(model, lambda y: None, [(Y,)], steps=steps, options=quiet(decay=1.0, **options))
        return pyro.param("loc").item()

    path = tmp_path / "run.pt"
    go(5, checkpoint=path)
    pyro.clear_param_store()
    resumed = go(10, checkpoint=path, resume=True)
    pyro.clear_param_store()
    assert resumed == go(10)


def test_load_reads_the_trained_module_from_the_checkpoint_of_a_run(tmp_path):
    path = tmp_path / "run.pt"
    pair, _ = run(steps=20, checkpoint=path, validation=(Y + 2,), validate_every=2)
    fresh = Pair()
    load(path, model=fresh)
    assert torch.equal(parameters(fresh), parameters(pair))


def test_a_checkpoint_of_another_seed_model_or_maker_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    run(steps=2, checkpoint=path)
    with pytest.raises(ValueError, match="`checkpoint` is of a run with seed 0, this one has seed 1"):
        run(steps=2, checkpoint=path, resume=True, seed=1)

    def model(y):
        pyro.sample("y", dist.Normal(pyro.param("other", torch.tensor(0.0)), 1.0).expand([4]).to_event(1), obs=y)

    with pytest.raises(ValueError, match="`checkpoint` is of another model or guide: 'buffer of guide: calls'"):
        fit(model, lambda y: None, [(Y,)], options=quiet(checkpoint=path, resume=True))
    run(steps=2, checkpoint=path, average=0.9)
    fresh = Pair()
    with pytest.raises(ValueError, match="`checkpoint` is of a run with `average`; resume it as it began"):
        run(fresh, steps=4, checkpoint=path, resume=True)
    assert torch.equal(parameters(fresh), parameters(Pair()))  # what is refused changes nothing
    run(steps=2, checkpoint=path)
    with pytest.raises(ValueError, match="`checkpoint` is of a run without `average`; resume it"):
        run(steps=4, checkpoint=path, resume=True, average=0.9)
    save(path, model=nn.Linear(1, 1))
    with pytest.raises(ValueError, match="`checkpoint` was not written by `fit`"):
        run(steps=2, checkpoint=path, resume=True)


# --- errors


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="`steps` must be >= 1 and `learning_rate` > 0 and finite, received 0"):
        run(steps=0)
    with pytest.raises(ValueError, match="received 5 and nan"):
        fit(Pair().model, Pair().guide, [(Y,)], steps=5, learning_rate=math.nan)
    with pytest.raises(ValueError, match="received 1.5 and"):
        run(steps=1.5)
    with pytest.raises(ValueError, match="received 5 and inf"):
        fit(Pair().model, Pair().guide, [(Y,)], steps=5, learning_rate=math.inf)
    with pytest.raises(ValueError, match="`batches` is empty"):
        run(batches=())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"validate_every": 0}, "`validate_every` must be at least 1 step, received 0"),
        ({"checkpoint_every": 0}, "`checkpoint_every` must be at least 1"),
        ({"patience": 0}, "`patience` must be at least 1"),
        ({"kl_warmup": -1}, "`kl_warmup` must be a number of steps >= 0, received -1"),
        ({"rate_warmup": -2}, "`rate_warmup` must be a number of steps >= 0, received -2"),
        ({"schedule": "linear"}, '`schedule` must be "exponential" or "cosine", received \'linear\''),
        ({"schedule": None}, "`schedule` must be .* received None"),
        ({"kl_start": 1.5, "kl_warmup": 2}, r"`kl_start` must be a part of the full weight in \[0, 1\], received 1.5"),
        ({"kl_start": 0.2}, "`kl_start` is where a warm-up begins; give `kl_warmup`"),
        ({"average": 1.0}, r"`average` must be a decay in \(0, 1\).*received 1.0"),
        ({"average": 0.0}, "`average` must be a decay"),
        ({"decay": 0.0}, "`decay` must satisfy 0 < decay <= 1, received 0"),
        ({"decay": 1.1}, "`decay` must satisfy"),
        ({"clip": 0.0}, "`clip` must be a positive number or None, received 0"),
        ({"resume": True}, "`resume` needs a `checkpoint` file"),
        ({"kl_warmup": 3, "elbo": Trace_ELBO()}, "`kl_warmup` needs a PathELBO.*received Trace_ELBO"),
        ({"kl_warmup": 3, "elbo": JitPathELBO()}, "`kl_warmup` needs a PathELBO.*received JitPathELBO"),
    ],
)
def test_options_out_of_range_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        FitOptions(**options)


def test_a_warm_up_of_the_rate_is_a_whole_number_of_steps():
    with pytest.raises(TypeError, match="`rate_warmup` must be a whole number, received 1.5"):
        FitOptions(rate_warmup=1.5)


def test_nothing_to_train_is_an_error():
    def model():
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ValueError, match="no parameters to train. Register modules"):
        fit(model, lambda: None, [()], options=quiet())


def test_a_parameter_that_appears_late_is_an_error_and_not_ignored():
    def model(step):
        loc = pyro.param("loc", torch.tensor(0.0))
        if step:
            loc = loc + pyro.param("late", torch.tensor(0.0))
        pyro.sample("y", dist.Normal(loc, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ValueError, match="step 2: parameter 'late' did not exist at the first call"):
        fit(model, lambda step: None, lambda step: (step,), steps=3, options=quiet())


def test_a_module_whose_name_is_taken_in_the_store_is_an_error():
    first, second = Pair(), Pair()
    fit(first.model, first.guide, [(Y,)], steps=1, options=quiet())
    with pytest.raises(ValueError, match=r"parameter 'loc' would not be trained.*'loc'.*clear_param_store"):
        fit(second.model, second.guide, [(Y,)], steps=1, options=quiet())


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_step():
    def model(step):
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("y", dist.Normal(loc, 1.0), obs=torch.tensor(math.nan if step == 2 else 1.0))

    with (
        pyro.validation_enabled(False),
        pytest.raises(ValueError, match=r"step 3: site 'y': log_prob is nan"),
    ):
        fit(model, lambda step: None, lambda step: (step,), steps=5, options=quiet())
    with (
        pyro.validation_enabled(False),
        pytest.warns(UserWarning, match="Encountered NaN"),
        pytest.raises(ValueError, match=r"step 3: the loss is nan. Use a smaller learning rate"),
    ):
        fit(model, lambda step: None, lambda step: (step,), steps=5, options=quiet(elbo=Trace_ELBO()))


def test_a_gradient_that_is_not_finite_is_an_error_that_names_the_parameter():
    def model():
        root = pyro.param("root", torch.tensor(0.0))
        pyro.sample("y", dist.Normal(root.sqrt(), 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ValueError, match="step 1: the gradient of 'root' is not finite"):
        fit(model, lambda: None, [()], options=quiet())


def test_compiled_losses_run():
    def model(y):
        loc = pyro.param("loc", torch.tensor(0.1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    result = fit(model, lambda y: None, [(Y,)], steps=5, options=quiet(elbo=JitTrace_ELBO()))
    assert result.losses[-1] < result.losses[0]
    assert_close(torch.tensor(result.losses).diff().sign(), -torch.ones(4))
