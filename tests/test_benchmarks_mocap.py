"""The study of walks: its files, its models, its protocols, and that what it prints is of what it says."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor

from tests.benchmarks import _mocap_data as data
from tests.benchmarks import (
    _mocap_fit,
    _mocap_models,
    _mocap_protocols,
    _mocap_score,
    _mocap_tables,
    _mocap_windows,
    mocap,
)
from tests.benchmarks._mocap_fit import Recipe

TINY = Recipe(steps=1, components=2, windows=2)


def simulated(count: int, seed: int = 0, frames: int = 300) -> Tensor:
    """Walks of periods about 135: two waves mixed into 50 channels."""
    torch.manual_seed(seed)
    angle = 2 * math.pi * torch.arange(frames) / (135 + torch.randn(count, 1)) + 6 * torch.rand(count, 1)
    waves = torch.stack([angle.sin(), angle.cos(), (2 * angle).sin(), (2 * angle).cos()], -1)
    torch.manual_seed(99)
    return 5 * waves @ torch.randn(4, data.CHANNELS)


@pytest.fixture(autouse=True)
def _clean() -> None:
    pyro.clear_param_store()
    torch.manual_seed(0)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    np.savez(tmp_path / "fit.npz", Xtr=simulated(3).numpy(), Xval=simulated(1, 1).numpy())
    np.savez(tmp_path / "test.npz", Xtest=simulated(2, 2).numpy())
    return tmp_path / "fit.npz", tmp_path / "test.npz"


@pytest.fixture
def fitted() -> _mocap_fit.Fitted:
    return _mocap_fit.fit(simulated(3), torch.tensor([[0, 1], [1, 2]]), TINY, 0)


# --- files ------------------------------------------------------------------------------


def test_parts_of_the_file_are_kept_apart(files):
    walks, held_back = data.load(*files)
    assert walks.fit == 3
    torch.testing.assert_close(walks.values, torch.cat([simulated(3), simulated(1, 1)]))
    torch.testing.assert_close(held_back, simulated(2, 2))
    assert data.load(files[0], None)[1] is None


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK nor this one"])
def test_another_format_is_named(content, tmp_path):
    (tmp_path / "walks.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"walks.npz: no file of walks could be read.*Expected an .npz or .mat file"):
        data.read(tmp_path / "walks.npz")


def test_arrays_of_other_names_are_another_format(tmp_path):
    np.savez(tmp_path / "walks.npz", frames=np.zeros((2, 300, 50)))
    with pytest.raises(ValueError, match="no file of walks could be read"):
        data.read(tmp_path / "walks.npz")


@pytest.mark.parametrize("shape", [(2, 300, 46), (300, 50)])
def test_another_number_of_channels_is_named(shape, tmp_path):
    np.savez(tmp_path / "walks.npz", Xtr=np.zeros(shape))
    with pytest.raises(ValueError, match=r"part 'train' has shape \(.*\), expected \(walks, frames, 50\)"):
        data.read(tmp_path / "walks.npz")


def test_values_must_be_finite(tmp_path):
    np.savez(tmp_path / "walks.npz", Xtest=np.full((1, 300, 50), np.nan))
    with pytest.raises(ValueError, match="part 'test' holds values that are not finite"):
        data.read(tmp_path / "walks.npz")


def test_parts_that_are_needed_are_named(files):
    fit, test = files
    with pytest.raises(ValueError, match=r"arrays `Xtr` and `Xval` are needed to fit, found \['test'\]"):
        data.load(test, None)
    with pytest.raises(ValueError, match="the array `Xtest` is missing"):
        data.load(fit, fit)


# --- walks ------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [110.0, 135.4, 160.0])
def test_period_of_a_wave_is_found_between_frames(frames):
    angle = 2 * math.pi * torch.arange(300) / frames
    assert data.period(torch.stack([angle.sin(), angle.cos()], -1)) == pytest.approx(frames, abs=0.05)


def test_nearest_stretch_continues_a_walk_that_repeats():
    angle = 2 * math.pi * torch.arange(300) / 135
    train = torch.stack([angle.sin(), angle.cos()], -1).repeat(1, 25).unsqueeze(0)
    walks = train.roll(-60, 1)[:, :200]  # begins at another phase
    rules = data.baselines(train, walks, 3)
    torch.testing.assert_close(rules["nearest stretch of a training walk"], walks[:, 3:], atol=1e-4, rtol=0)


def test_simple_rules_are_what_they_are_called():
    train, walks = simulated(3), simulated(2, 1)
    rules = data.baselines(train, walks, 4)
    assert {path.shape for path in rules.values()} == {(2, 296, 50)}
    torch.testing.assert_close(rules["last frame seen"][:, 7], walks[:, 3])
    torch.testing.assert_close(rules["mean training walk"][1], train.mean(0)[4:])
    torch.testing.assert_close(rules["constant mean of the training walks"][0, 5], train.mean((0, 1)))
    nearest = data.baselines(train, train[[2, 0]], 4)["nearest training walk"]
    torch.testing.assert_close(nearest, train[[2, 0], 4:])


def test_scaling_of_a_member_is_of_its_walks_alone():
    values, folds = simulated(3), torch.tensor([[0, 1], [1, 2]])
    before = data.scaling(values, folds, 2)
    values[0] *= 3
    after = data.scaling(values, folds, 2)
    assert not torch.allclose(before.scale[0], after.scale[0])
    torch.testing.assert_close(before.scale[1], after.scale[1])
    torch.testing.assert_close(before.components[1], after.components[1])


def test_features_are_white_components_and_their_change():
    values, folds = simulated(3), torch.tensor([[0, 1, 2]])
    scales = data.scaling(values, folds, 2)
    scores = values.flatten(0, 1) @ scales.components[0]
    torch.testing.assert_close(scores.square().mean(0), torch.ones(2))
    features = scales.features(values[None])[0, 1]
    torch.testing.assert_close(features[:2], scores[300])
    torch.testing.assert_close(features[2:], 10 * (scores[302] - scores[300]), atol=1e-5, rtol=1e-4)


# --- models -----------------------------------------------------------------------------


def test_pinned_architecture_has_the_parameters_of_the_paper():
    model = _mocap_models.pinned(torch.ones(2, 1, 50))
    assert _mocap_fit.count_parameters(model, 2) == _mocap_models.PINNED_PARAMETERS == 11_605


def test_best_model_is_smaller_than_the_published_one():
    assert _mocap_fit.count_parameters(_mocap_models.best(torch.ones(1, 1, 50), 19), 1) < 6_000


def test_deviations_have_floors():
    likelihood = _mocap_models.StateLikelihood(1, torch.full((1, 1, 50), 2.0))
    with torch.no_grad():
        likelihood.decoder[-1].bias.fill_(-1e3)
        assert float(likelihood(torch.zeros(4, 1, 3, 6)).scale.min()) == pytest.approx(0.2)
        common = _mocap_models.Likelihood(1, torch.ones(1, 1, 50))
        common.log_deviation.fill_(-1e3)
        assert float(common(torch.zeros(4, 1, 3, 6)).scale.min()) == pytest.approx(0.1)


def test_noise_of_a_state_dimension_depends_on_it_alone():
    noise = _mocap_models.StateNoise(1, 0.05)
    z = torch.zeros(1, 2, 6)
    z[0, 1, 4] = 1.0
    with torch.no_grad():
        values = noise(torch.zeros(1), z)[0]
    assert (values[0] != values[1]).tolist() == [False, False, False, False, True, False]
    assert 0 < float(values.min()) < float(values.max()) < 1


def test_affine_maps_of_members_are_their_own():
    layer = _mocap_models.Affine(2, (3, 4))
    x = torch.randn(5, 2, 6, 3)
    expected = x[:, 1] @ layer.weight[1] + layer.bias[1]
    torch.testing.assert_close(layer(x)[:, 1], expected)
    torch.testing.assert_close(layer(x[0])[1], expected[0])


# --- training ---------------------------------------------------------------------------


def test_windows_are_stretches_of_the_walks_of_the_member():
    values, folds = simulated(3), torch.tensor([[0, 2], [1, 2]])
    recipe = Recipe(components=2, start=0.0)
    batch = _mocap_fit.draw_windows(values, folds, recipe, data.scaling(values, folds, 2))
    assert batch.indices[0].sort().values.tolist() == [0, 2]
    assert batch.indices[1].sort().values.tolist() == [1, 2]
    walk = values[batch.indices[1, 0]]
    begin = int((walk - batch.values[1, 0, 0]).square().sum(-1).argmin())
    inside = int(batch.mask[1, 0].sum())
    assert inside == -(-(300 - begin) // 3)
    torch.testing.assert_close(batch.values[1, 0, :inside], walk[begin::3])
    own = batch.features[1, 0]
    scales = data.scaling(values, folds, 2)
    torch.testing.assert_close(own, scales.features(walk[None, begin : begin + 3].expand(2, 1, 3, 50))[1, 0])


def test_share_of_windows_from_the_first_frame_is_that_of_the_recipe():
    values, folds = simulated(2), torch.zeros(1, 1, dtype=torch.long)
    recipe = Recipe(components=2, start=1.0)
    batch = _mocap_fit.draw_windows(values, folds, recipe, data.scaling(values, folds, 2))
    assert bool(batch.mask.all())
    torch.testing.assert_close(batch.values[0, 0], values[0, ::3])


def test_gradients_are_shortened_member_by_member():
    layer = _mocap_models.Affine(2, (1, 1))
    layer.weight.grad = torch.tensor([[[3.0]], [[0.3]]])
    layer.bias.grad = torch.tensor([[[4.0]], [[0.4]]])
    _mocap_fit._clip_members(layer, 2)
    torch.testing.assert_close(layer.weight.grad.flatten(), torch.tensor([0.6, 0.3]))
    torch.testing.assert_close(layer.bias.grad.flatten(), torch.tensor([0.8, 0.4]))


@pytest.mark.parametrize("model", ["best", "pinned"])
def test_training_lowers_the_loss(model):
    losses = []
    recipe = Recipe(model, steps=30, components=2, warmup=0.0, start=1.0)
    _mocap_fit.fit(simulated(2), torch.tensor([[0, 1]]), recipe, 0, lambda step, loss: losses.append(loss))
    assert sum(losses[-5:]) < sum(losses[:5])


def test_fits_are_kept(tmp_path, monkeypatch):
    values, folds = simulated(2), torch.tensor([[0, 1]])
    first = _mocap_fit.load_or_fit(tmp_path / "a" / "fit.pt", values, folds, TINY, 0)
    monkeypatch.setattr(_mocap_fit, "fit", lambda *_: pytest.fail("fitted again"))
    second = _mocap_fit.load_or_fit(tmp_path / "a" / "fit.pt", values, folds, TINY, 0)
    assert second.seconds == first.seconds
    for mine, theirs in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


# --- scores -----------------------------------------------------------------------------


def test_errors_are_of_mean_paths_and_of_single_paths():
    truth = simulated(2).unsqueeze(0)
    predicted = torch.stack([truth + 1, truth - 1, truth + 3])
    scores = _mocap_score.score(predicted, truth)
    torch.testing.assert_close(scores.mean_path, torch.ones(1, 2))
    torch.testing.assert_close(scores.samples, torch.full((1, 2), 11 / 3))
    torch.testing.assert_close(scores.swing, torch.ones(1, 2))
    assert not _mocap_score.score(predicted.mean(-2, keepdim=True).expand_as(predicted), truth).swing.any()
    assert scores.periods.shape == (1, 2)
    assert scores.periods[0, 0] == pytest.approx(data.period(truth[0, 0]), abs=0.01)


def test_states_between_two_steps_lie_on_a_line(fitted):
    local = fitted.model.locate(fitted.features(simulated(2).expand(2, -1, -1, -1)[:, :, :3]))
    tempo = torch.zeros(4, 2, 2)
    torch.manual_seed(1)
    frames = _mocap_score.forecast(fitted, local, (4, 7), num_samples=4, log_tempo=tempo)
    torch.manual_seed(1)
    states = fitted.model.rollout(local, 0.3 * torch.arange(4.0), num_samples=4, log_tempo=tempo)
    with torch.no_grad():
        expected = [
            fitted.model.likelihood((a * states[..., 1, :] + b * states[..., 2, :]).unsqueeze(0)).loc[0]
            for a, b in ((2 / 3, 1 / 3), (1 / 3, 2 / 3), (0.0, 1.0))
        ]
    torch.testing.assert_close(frames, torch.stack(expected, -2), atol=1e-4, rtol=1e-4)


def test_more_frames_are_fitted_and_leave_the_model_as_it_was(fitted, monkeypatch):
    monkeypatch.setattr(_mocap_score, "ADAPT_STEPS", 3)
    before = [parameter.clone() for parameter in fitted.model.parameters()]
    walks = simulated(2).expand(2, -1, -1, -1)
    read = fitted.model.locate(fitted.features(walks))
    learned = _mocap_score.locate_fitted(fitted, walks[:, :, :30])
    assert not torch.equal(read.first.mean, learned.first.mean)
    assert all(torch.equal(*pair) for pair in zip(before, fitted.model.parameters(), strict=True))


def test_scan_is_best_at_the_period_of_the_walks(fitted):
    with torch.no_grad():  # a spring alone: two thirds of the period of 137 frames at tempo log 1.5
        fitted.model.prior.drift.acceleration[-1].weight.zero_()
        fitted.model.prior.drift.acceleration[-1].bias.zero_()
        fitted.model.prior.diffusion.log_scale.fill_(-9.0)
        fitted.model.encoder.network[-1].bias[..., 6:12] = -9.0
    seen = simulated(1).expand(2, -1, -1, -1)
    local = fitted.model.locate(fitted.features(seen[:, :, :3]))
    fast = _mocap_score.forecast(fitted, local, (3, 300), log_tempo=torch.full((50, 2, 1), math.log(137 / 110)))
    walks = torch.cat([seen[:, :, :3], fast.mean(0)], 2)
    errors = _mocap_score.period_scan(fitted, walks, [100.0, 110.0, 120.0])
    assert errors.argmin(0).tolist() == [[1], [1]]


# --- protocols --------------------------------------------------------------------------


def test_each_fold_leaves_out_its_own_walk():
    assert _mocap_protocols.leave_one_out(3).tolist() == [[1, 2], [0, 2], [0, 1]]


def test_left_out_walks_are_predicted_by_the_member_that_has_not_seen_them(monkeypatch):
    seen = {}

    def predict(fitted: object, walks: Tensor, setup: object, *, prior: bool = False) -> Tensor:
        seen["walks"] = walks
        return walks[None, :, :, 3:]

    monkeypatch.setattr(_mocap_protocols, "predict", predict)
    monkeypatch.setattr(_mocap_protocols, "load_or_fit", lambda *given: seen.update(folds=given[2]))
    study = _mocap_protocols.Study(data.Walks(simulated(4), 3), None, None, TINY)
    posterior, _, paths = _mocap_protocols.left_out(study, _mocap_protocols.SETUPS["1"], 3, 0)
    for k in range(3):
        assert k not in seen["folds"][k].tolist()
        assert torch.equal(seen["walks"][k, 0], study.walks.values[k])
    assert posterior.mean_path.shape == (3, 1)
    assert not posterior.mean_path.any()
    assert paths.shape == (3, 297, 50)


def test_protocol_s_chooses_on_validation_walks_for_each_seed(monkeypatch):
    errors = {2: torch.tensor([5.0, 1.0]), 4: torch.tensor([3.0, 2.0])}
    asked = []

    def error(fitted: _mocap_fit.Fitted, walks: Tensor, setup: object) -> Tensor:
        asked.append(walks)
        return errors[fitted.recipe.components]

    monkeypatch.setattr(_mocap_protocols, "_mean_error", error)
    study = _mocap_protocols.Study(data.Walks(simulated(4), 3), None, None, TINY)
    chosen = _mocap_protocols.protocol_s(study, _mocap_protocols.SETUPS["1"], 2, (2, 4))
    assert chosen.choice == [4, 2]
    assert all(torch.equal(walks, study.walks.values[3:]) for walks in asked)
    assert all(fit.folds.tolist() == [[0, 1, 2]] * 2 for fit in chosen.fits.values())


def test_protocol_r_chooses_on_left_out_walks_and_fits_all(monkeypatch):
    def left_out(study: _mocap_protocols.Study, setup: object, count: int, seed: int) -> tuple:
        assert count == 4
        error = torch.full((4, 1), {2: 5.0, 4: 3.0}[study.recipe.components])
        return _mocap_score.Score(error, error, error, error), None, None

    monkeypatch.setattr(_mocap_protocols, "left_out", left_out)
    study = _mocap_protocols.Study(data.Walks(simulated(4), 3), None, None, TINY)
    chosen = _mocap_protocols.protocol_r(study, _mocap_protocols.SETUPS["1"], 2, (2, 4))
    assert chosen.choice == [4, 4]
    assert {key: fit.folds.tolist() for key, fit in chosen.fits.items()} == {4: [[0, 1, 2, 3]] * 2}


def test_setup_two_fits_the_first_200_frames():
    setup = _mocap_protocols.SETUPS["2"]
    assert (setup.context, setup.frames, setup.horizon) == (100, 200, 300)
    assert _mocap_protocols.target(simulated(1), setup).shape == (1, 200, 50)


def test_longer_contexts_start_from_the_last_frames_seen(fitted):
    walks = simulated(2)
    torch.manual_seed(1)
    late = _mocap_protocols.predict(fitted, walks, _mocap_protocols.with_context(30))
    torch.manual_seed(1)
    early = _mocap_protocols.predict(fitted, walks[:, 27:], _mocap_protocols.SETUPS["1"]._replace(horizon=273))
    torch.testing.assert_close(late, early)
    assert late.shape == (50, 2, 2, 270, 50)


def test_setup_two_reads_all_frames_seen_and_none_after(fitted, monkeypatch):
    asked = []
    learn = _mocap_protocols.locate_fitted
    monkeypatch.setattr(_mocap_score, "ADAPT_STEPS", 1)
    monkeypatch.setattr(_mocap_protocols, "locate_fitted", lambda *given: asked.append(given[1]) or learn(*given))
    paths = _mocap_protocols.predict(fitted, simulated(2), _mocap_protocols.SETUPS["2"])
    assert paths.shape == (50, 2, 2, 200, 50)
    torch.testing.assert_close(asked[0][1], simulated(2)[:, :100])


# --- what some frames tell about the tempo ----------------------------------------------

TEMPI = torch.tensor([0.02, -0.01, 0.03, -0.02, 0.01, -0.03])


@pytest.fixture
def ramps(monkeypatch) -> Callable[..., tuple[_mocap_fit.Fitted, Tensor]]:
    """Walks that are straight lines, whose slopes are their tempi, and members that know this and the tempi."""

    def predicted(fitted: _mocap_fit.Fitted, frames: Tensor, log_tempo: Tensor) -> Tensor:
        steps = torch.arange(float(frames.shape[-2] // 3 + 1)).unsqueeze(-1)
        return frames[..., :1, :] + log_tempo.exp()[..., None, None] * steps

    def made(noise: float, *, other: float = 0.0, common: float = 0.0) -> tuple[_mocap_fit.Fitted, Tensor]:
        torch.manual_seed(0)
        folds = _mocap_protocols.leave_one_out(6)
        recipe = Recipe(steps=1, components=2, windows=2)
        members = _mocap_fit.fit(simulated(6), folds, recipe, 0)
        members.model.tempo.series_loc.data[:] = TEMPI
        slopes = TEMPI.exp() + common + other * torch.randn(6)
        values = slopes[:, None, None] * torch.arange(300).unsqueeze(-1) / 3 + noise * torch.randn(6, 300, 50)
        return members, values

    monkeypatch.setattr(_mocap_windows, "_predicted", predicted)
    return made


def test_tempi_are_found_where_the_model_is_right(ramps):
    fitted, values = ramps(0.002, common=0.1)  # an error of all walks alike is none of tempo
    found = _mocap_windows.window_tempo(fitted, values, 60)
    assert found.estimate.shape == found.deviation.shape == (27, 6)
    others = [TEMPI[fold] for fold in fitted.folds]
    torch.testing.assert_close(found.centre, torch.stack([tempi.median() for tempi in others]))
    torch.testing.assert_close(found.population, torch.stack([tempi.std() for tempi in others]))
    error = found.centre + found.estimate - TEMPI
    assert float(error.abs().max()) < 0.002
    assert float(found.deviation.max()) < 0.1 * float(found.population.min())
    truth = TEMPI - TEMPI.mean()
    assert min(_mocap_windows.correlations(found, truth)) > 0.99
    assert max(_mocap_windows.correlations(found, -truth)) < -0.99


def test_errors_that_look_like_tempi_are_not_taken_for_tempi(ramps):
    fitted, values = ramps(0.01, other=0.5)
    found = _mocap_windows.window_tempo(fitted, values, 60)
    off = (3 * values.diff(dim=1).mean((1, 2)) - TEMPI.exp()).abs()  # a reader that trusts the model takes it for tempo
    assert float(off.max()) > 0.4
    assert float((found.deviation / found.population).min()) > 0.95
    assert float(found.estimate.abs().max()) < 0.1 * float(off.max())


def test_errors_are_those_of_tempi_of_the_population_estimated_and_measured(ramps, monkeypatch):
    fitted, values = ramps(0.01)
    asked = []

    def forecast(fitted: _mocap_fit.Fitted, local: object, frames: tuple[int, int], *, log_tempo: Tensor) -> Tensor:
        asked.append((frames, log_tempo))
        return values[:, None, 30:].expand(50, -1, -1, -1, -1) + len(asked)

    monkeypatch.setattr(_mocap_windows, "forecast", forecast)
    monkeypatch.setattr(_mocap_windows, "measured", lambda values: torch.arange(6.0))
    errors = _mocap_windows.errors_with_tempi(fitted, values, _mocap_protocols.with_context(30))
    assert list(errors) == ["of the population", "estimated", "measured"]
    assert [round(error) for error in errors.values()] == [1, 4, 9]
    assert {frames for frames, _ in asked} == {(3, 273)}
    found = _mocap_windows.window_tempo(fitted, values, 30)
    population, estimated, measured = (log_tempo[..., 0] for _, log_tempo in asked)
    assert float((population.std(0) / found.population).min()) > 0.7
    torch.testing.assert_close(measured, (found.centre + torch.arange(6.0)).expand(50, -1))
    away = (estimated - found.centre - found.estimate[0]) / found.deviation[0]
    torch.testing.assert_close(away, (population - found.centre) / found.population, rtol=1e-3, atol=1e-3)


def test_a_slower_walk_has_a_smaller_tempo():
    angle = 2 * math.pi * torch.arange(300) / torch.tensor([[120.0], [150.0]])
    walks = torch.stack([angle.sin(), angle.cos()], -1)
    torch.testing.assert_close(
        _mocap_windows.measured(walks), torch.tensor([0.5, -0.5]) * math.log(150 / 120), atol=1e-3, rtol=0
    )


def test_windows_compare_what_was_seen_with_the_same_frames_of_the_prediction(fitted):
    walks = simulated(2).unsqueeze(1)
    error = _mocap_windows._error(fitted, walks[..., :12, :], torch.zeros(2, 1))
    path = _mocap_windows._predicted(fitted, walks[..., :12, :], torch.zeros(2, 1))
    assert path.shape == (2, 1, 5, 50)
    expected = (walks[..., [3, 6, 9], :] - path[..., 1:4, :]) @ fitted.scaling.components.unsqueeze(1)
    torch.testing.assert_close(error, expected.flatten(-2))
    slope = _mocap_windows._shift(fitted, walks[..., :12, :], torch.zeros(2, 1))
    inner = (path[..., 2:, :] - path[..., :-2, :]) / 2
    torch.testing.assert_close(slope, (inner @ fitted.scaling.components.unsqueeze(1)).flatten(-2))


def test_tempi_need_a_model_that_has_them_and_some_frames(fitted):
    with pytest.raises(ValueError, match="`frames` >= 9 are needed, received 8; the model has them"):
        _mocap_windows.window_tempo(fitted, simulated(2), 8)
    without = fitted._replace(model=_mocap_models.pinned(torch.ones(2, 1, 50)))
    with pytest.raises(ValueError, match="received 30; the model has none"):
        _mocap_windows.window_tempo(without, simulated(2), 30)


def test_the_command_prints_what_frames_tell(files, capsys, monkeypatch):
    monkeypatch.setattr(_mocap_windows, "SAMPLES", 2)
    given = ["--data", str(files[0]), "--steps", "1", "--seeds", "2", "--protocol", "tempo", "--contexts", "12"]
    mocap.main(given)
    shown = capsys.readouterr().out
    assert "At least 9 frames are needed" in shown
    assert "| frames seen | deviation of log tempo, % | given a window, % | correlation, first windows |" in shown
    assert shown.count("| 12 |") == 1
    assert "mean path, tempo measured" in shown


def test_the_command_says_which_spread_is_which(files, capsys, monkeypatch):
    estimate, one = torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 3.0]]), torch.ones(3)
    found = _mocap_windows.WindowTempo(estimate, 0.01 * torch.ones(2, 3), 0.02 * one, 0 * one)
    monkeypatch.setattr(_mocap_windows, "window_tempo", lambda *given: found)
    monkeypatch.setattr(_mocap_windows, "errors_with_tempi", lambda *given: {"measured": 7.0})
    monkeypatch.setattr(_mocap_windows, "measured", lambda walks: torch.tensor([1.0, 2.0, 4.0]))
    given = ["--data", str(files[0]), "--steps", "1", "--seeds", "1", "--protocol", "tempo", "--setup"]
    mocap.main([*given, "--contexts", "30"])
    assert "| 30 | 2.00 | 1.00 | 1.00 | 0.96 | 1.00 | 7.00 |" in capsys.readouterr().out


def test_the_table_of_tempi_has_deviations_correlations_and_errors():
    text = _mocap_tables.tempo_table(30, [[0.02, 0.01]], [(0.1, 0.2, 0.3)], [{"measured": 4.0}])
    assert "| 30 | 2.00 | 1.00 | 0.10 | 0.20 | 0.30 | 4.00 |" in text


# --- tables and command -----------------------------------------------------------------


def test_rows_have_means_over_seeds_and_count_collapses():
    error = torch.tensor([[1.0, 3.0], [3.0, 5.0], [30.0, 33.0]])
    swing = torch.tensor([[1.0, 0.9], [0.8, 0.3], [0.1, 0.6]])
    row = _mocap_tables.score_row(*[_mocap_score.Score(error, 2 * error, error, swing)] * 2)
    assert row == ["12.50 ± 9.52", "25.00 ± 19.04", "12.50 ± 9.52", "31.50", "1 of 3"]
    assert _mocap_tables.with_error([2.0]) == "2.00"


def test_the_command_prints_every_protocol_and_reads_its_fits_again(files, tmp_path, capsys, monkeypatch):
    fit, test = files
    monkeypatch.setattr(_mocap_score, "ADAPT_STEPS", 1)
    monkeypatch.setattr(_mocap_score, "SAMPLES", 2)
    given = ["--data", str(fit), "--test", str(test), "--steps", "1", "--seeds", "2", "--candidates", "2", "3"]
    given += ["--protocol", "S", "R", "loo", "scan", "baselines", "--checkpoint", str(tmp_path / "fits")]
    shown = []
    for _ in range(2):
        mocap.main(given)
        shown.append(capsys.readouterr().out)
        monkeypatch.setattr(_mocap_fit, "fit", lambda *_: pytest.fail("fitted again"))
    for text in shown:
        assert text.count("### best, setup 1") == 5
        assert text.count("| kept back |") == 2
        assert "kept back, ensemble of 2 seeds" in text
        assert "| the 3 training walks among these |" in text
        assert "| validation walk 1 |" in text.replace("| period | 3 training walks ", "")


def test_other_models_and_contexts_run(files, capsys, monkeypatch):
    monkeypatch.setattr(_mocap_score, "ADAPT_STEPS", 1)
    monkeypatch.setattr(_mocap_score, "SAMPLES", 2)
    given = ["--data", str(files[0]), "--steps", "1", "--seeds", "1", "--protocol", "S"]
    mocap.main([*given, "--model", "pinned", "--setup", "2"])
    mocap.main([*given, "--setup", "--contexts", "10", "--candidates", "2"])
    shown = capsys.readouterr().out
    assert "### pinned, setup 2: 100 frames, then 200" in shown
    assert "### best, 10 frames, then 290, S" in shown


def test_named_without_files_it_says_what_it_needs():
    with pytest.raises(SystemExit, match="--data FILE"):
        mocap.tables()
