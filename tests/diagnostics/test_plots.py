"""What is drawn, checked on the artists; no picture is compared."""

import sys

import numpy as np
import pytest
import torch

from pyro_sde.diagnostics import panels, plot_losses, plot_paths, plot_phase

TIMES = torch.linspace(0, 10, 21)


@pytest.fixture(autouse=True)
def headless():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    before = dict(matplotlib.rcParams)
    yield
    pyplot.close("all")
    assert dict(matplotlib.rcParams) == before  # drawing changes no global setting


def draws(size=200):
    noise = torch.randn(size, 21, generator=torch.Generator().manual_seed(0))
    return torch.sin(TIMES) + 0.3 * noise


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def line(ax, label):
    (found,) = [artist for artist in ax.get_lines() if artist.get_label() == label]
    return found


def test_fan_chart_draws_median_and_quantile_bands():
    samples = draws()
    ax = plot_paths(TIMES, samples)
    np.testing.assert_allclose(line(ax, "median").get_ydata(), samples.quantile(0.5, 0), atol=1e-6)
    for label, (low, high) in {"90 % band": (0.05, 0.95), "50 % band": (0.25, 0.75)}.items():
        (band,) = [artist for artist in ax.collections if artist.get_label() == label]
        vertices = band.get_paths()[0].vertices[:, 1]
        assert vertices.max() == pytest.approx(samples.quantile(high, 0).max().item(), abs=1e-5)
        assert vertices.min() == pytest.approx(samples.quantile(low, 0).min().item(), abs=1e-5)
    assert labels(ax) == ["median", "50 % band", "90 % band"]


def test_observed_and_held_out_points_look_different_and_skip_nan():
    values = torch.where(torch.arange(21) < 3, float("nan"), torch.cos(TIMES))
    ax = plot_paths(TIMES, draws(), observed=(TIMES, values), held_out=(TIMES[:2] + 10, torch.ones(2)))
    seen, unseen = line(ax, "observed"), line(ax, "held out")
    assert len(seen.get_xdata()) == 18
    assert seen.get_marker() != unseen.get_marker()
    assert seen.get_markeredgecolor() != unseen.get_markeredgecolor()
    assert ax.get_xlim() == pytest.approx((0.0, 10.5))
    assert labels(ax)[:2] == ["observed", "held out"]


def test_many_points_are_small_dots_below_the_median():
    times = torch.linspace(0, 10, 2000)
    ax = plot_paths(TIMES, draws(), observed=(times, torch.sin(times)), held_out=(times, torch.cos(times)))
    for label in ("observed", "held out"):
        assert line(ax, label).get_markersize() < 2
        assert line(ax, label).get_zorder() < line(ax, "median").get_zorder()
    assert line(ax, "observed").get_color() != line(ax, "held out").get_color()


@pytest.mark.parametrize(("start", "shaded"), [(7.0, True), (10.0, False), (None, False)])
def test_forecast_region_is_shaded_after_its_start(start, shaded):
    ax = plot_paths(TIMES, draws(), forecast_from=start)
    assert ("forecast" in labels(ax)) is shaded
    if shaded:
        region = ax.patches[0].get_extents().transformed(ax.transData.inverted())
        assert (region.x0, region.x1) == pytest.approx((7.0, 10.0))


def test_single_draws_are_added_on_request():
    ax = plot_paths(TIMES, draws(), num_paths=5)
    assert len(ax.get_lines()) == 6
    assert "draws" in labels(ax)


def test_given_axes_are_used_and_the_figure_is_written(tmp_path):
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2)
    assert plot_paths(TIMES, draws(), ax=left) is left
    assert plot_losses([3.0, 2.0, 1.0], ax=right) is right
    figure.savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_gradients_float64_and_nan_paths_are_drawn():
    samples = draws().double()
    samples[3] = float("nan")
    ax = plot_paths(TIMES, samples.requires_grad_())
    assert np.isfinite(line(ax, "median").get_ydata()).all()


def test_losses_are_drawn_with_their_trailing_median():
    losses = torch.arange(100.0).flip(0)
    ax = plot_losses(losses, window=5)
    smooth = line(ax, "median of 5").get_ydata()
    np.testing.assert_allclose(line(ax, "each step").get_ydata(), losses)
    assert smooth[0] == 99.0
    assert smooth[50] == losses[46:51].median()


def test_a_huge_first_loss_does_not_set_the_scale():
    losses = [1e6, 1e5] + [10.0 + 0.1 * (i % 3) for i in range(98)]
    assert plot_losses(losses).get_ylim()[1] < 20
    assert plot_losses([1.0, 1.0, 1.0]).get_ylim() == pytest.approx((0.0, 3.0))


def test_phase_plane_shows_field_and_every_path():
    seen = []

    def drift(t, z):
        seen.append((t, z))
        return torch.stack([z[..., 1], -z[..., 0]], -1)

    paths = torch.randn(4, 30, 2, generator=torch.Generator().manual_seed(0)).cumsum(1)
    ax = plot_phase(drift, paths, time=2.0, resolution=9)
    t, z = seen[0]
    assert t.shape == (9, 9, 1)
    assert (t == 2.0).all()
    assert z.shape == (9, 9, 2)
    assert (z[0, :, 0].diff() > 0).all()  # the first coordinate runs along the columns
    assert len(ax.get_lines()) == 5
    assert ax.get_xlim()[0] < paths[..., 0].min()


def test_missing_matplotlib_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'matplotlib is needed to draw.*pip install "pyro_sde\[plots\]"'):
        plot_losses([2.0, 1.0])


@pytest.mark.parametrize(
    ("message", "samples", "arguments"),
    [
        (r"`samples` must have shape \(S, T\)", torch.zeros(5, 20), {}),
        (r"`samples` must have shape \(S, T\)", torch.zeros(5, 21, 1), {}),
        (r"`samples` must have shape \(S, T\)", torch.zeros(1, 21), {}),
        (r"`num_paths` must lie between 0 and the 5 samples", torch.zeros(5, 21), {"num_paths": 6}),
        (r"`observed` must be a pair", torch.zeros(5, 21), {"observed": (TIMES, torch.zeros(3))}),
        (r"`held_out` must be a pair", torch.zeros(5, 21), {"held_out": (TIMES[:, None], TIMES[:, None])}),
    ],
)
def test_bad_fan_charts_are_refused(message, samples, arguments):
    with pytest.raises(ValueError, match=message):
        plot_paths(TIMES, samples, **arguments)


def test_bad_losses_are_refused():
    with pytest.raises(ValueError, match="`losses` must be a list of at least 2 numbers"):
        plot_losses([1.0])
    with pytest.raises(ValueError, match="`window` must be at least 1 step"):
        plot_losses([1.0, 2.0], window=0)


def test_bad_phase_planes_are_refused():
    with pytest.raises(ValueError, match=r"`paths` must be finite with shape \(S, T, 2\)"):
        plot_phase(lambda t, z: z, torch.zeros(3, 5, 3))
    with pytest.raises(ValueError, match="`resolution` must be at least 2"):
        plot_phase(lambda t, z: z, torch.zeros(3, 5, 2), resolution=1)
    with pytest.raises(ValueError, match=r"`drift` must return shape \(24, 24, 2\)"):
        plot_phase(lambda t, z: z[..., :1], torch.zeros(3, 5, 2))


def test_panels_share_one_figure_and_take_plots():
    axes = panels(2, size=(6.0, 4.0))
    assert len(axes) == 2
    assert axes[0].figure is axes[1].figure
    assert len(axes[0].figure.axes) == 2
    assert tuple(axes[0].figure.get_size_inches()) == (6.0, 4.0)
    assert plot_losses([3.0, 2.0, 1.0], ax=axes[1]) is axes[1]


def test_panels_need_a_row():
    with pytest.raises(ValueError, match="`rows` must be at least 1"):
        panels(0)
