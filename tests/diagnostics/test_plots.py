"""What is drawn, checked on the artists, and six small images compared with stored ones.

The artists hold the numbers; the images see what no single artist shows: order, colours, what covers what. They are
drawn without text, legend and automatic layout, from formulas without random numbers, so that fonts and versions of
matplotlib change no more than the smoothing of edges. ``python tests/diagnostics/test_plots.py`` draws them anew.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_sde.diagnostics.plots import (
    panels,
    plot_calibration,
    plot_coefficient,
    plot_losses,
    plot_paths,
    plot_phase,
)

TIMES = torch.linspace(0, 10, 21)
BASELINE = Path(__file__).parent / "baseline"
# Root mean square difference of colours, of 255. It is 0 between matplotlib 3.9.4 and 3.11.2; the smallest change of
# the mutation checks, a line that went behind its band, was 1.4.
TOLERANCE = 1.0


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


@pytest.mark.parametrize("size", [(6.0, 4.0), [6.0, 4.0]], ids=["tuple", "list"])
def test_panels_share_one_figure_and_take_plots(size):
    axes = panels(2, size=size)
    assert len(axes) == 2
    assert axes[0].figure is axes[1].figure
    assert len(axes[0].figure.axes) == 2
    assert tuple(axes[0].figure.get_size_inches()) == (6.0, 4.0)
    assert plot_losses([3.0, 2.0, 1.0], ax=axes[1]) is axes[1]


def test_panels_need_a_row():
    with pytest.raises(ValueError, match="`rows` must be at least 1"):
        panels(0)


# --- validation losses ------------------------------------------------------------------


def test_validation_losses_are_drawn_and_the_lowest_is_marked():
    ax = plot_losses([5.0, 4.0, 3.0, 3.0, 2.5, 2.0], validation=[(2, 4.5), (4, 3.1), (6, 3.4)])
    assert line(ax, "validation").get_xydata().tolist() == [[2, 4.5], [4, 3.1], [6, 3.4]]
    assert line(ax, "lowest, step 4").get_xydata().tolist() == [[4, 3.1]]
    low, high = ax.get_ylim()
    assert low < 2.0
    assert high > 4.4


def test_validation_losses_that_are_no_pairs_are_refused():
    with pytest.raises(ValueError, match=r"`validation` must be a list of pairs \(step, loss\), received shape \(3,\)"):
        plot_losses([2.0, 1.0], validation=[1.0, 2.0, 3.0])


# --- coefficients -----------------------------------------------------------------------

STATES = torch.linspace(-2, 2, 41)


def slopes(count=101):
    """Draws of the drift -a z with a evenly between 0 and 2: all quantiles are known."""
    return -torch.linspace(0, 2, count).unsqueeze(-1) * STATES


def test_coefficient_has_the_quantiles_of_its_draws():
    ax = plot_coefficient(STATES, slopes())
    np.testing.assert_allclose(line(ax, "median").get_ydata(), -STATES, atol=1e-6)
    for label, slope in {"90 % band": 1.9, "50 % band": 1.5}.items():
        (band,) = [artist for artist in ax.collections if artist.get_label() == label]
        assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(2 * slope, abs=1e-5)
    assert labels(ax) == ["median", "50 % band", "90 % band"]
    assert ax.get_xlim() == pytest.approx((-2, 2))


def test_one_coefficient_has_no_bands_and_truth_is_dashed():
    ax = plot_coefficient(STATES, -STATES, truth=-(STATES**3))
    assert not ax.collections
    np.testing.assert_allclose(line(ax, "coefficient").get_ydata(), -STATES)
    np.testing.assert_allclose(line(ax, "truth").get_ydata(), -(STATES**3))
    assert line(ax, "truth").get_linestyle() != line(ax, "coefficient").get_linestyle()


def test_visited_states_are_a_histogram_along_the_axis():
    visited = torch.tensor([[0.01, 0.02], [0.03, 1.01], [float("nan"), 9.0]])
    ax = plot_coefficient(STATES, -STATES, visited=visited)
    (strip,) = [artist for artist in ax.patches if artist.get_label() == "visited"]
    heights, edges, _ = strip.get_data()
    assert len(heights) == 40
    assert heights[20] == pytest.approx(0.12)
    assert heights[30] == pytest.approx(0.04)
    assert heights.sum() == pytest.approx(0.16)
    assert (edges[0], edges[-1]) == (-2, 2)
    assert strip.get_transform().transform((0, 0.12))[1] < ax.transAxes.transform((0, 0.13))[1]


@pytest.mark.parametrize(
    ("message", "values", "truth"),
    [
        (r"`values` must have shape \(S, G\) or \(G,\)", torch.zeros(3, 40), None),
        (r"`values` must have shape \(S, G\) or \(G,\)", torch.zeros(2, 3, 41), None),
        (r"`truth` must have the shape \(41,\) of `states`, received \(40,\)", torch.zeros(41), torch.zeros(40)),
    ],
)
def test_bad_coefficients_are_refused(message, values, truth):
    with pytest.raises(ValueError, match=message):
        plot_coefficient(STATES, values, truth=truth)


# --- calibration ------------------------------------------------------------------------


def test_calibration_is_the_distribution_function_less_the_diagonal():
    ax = plot_calibration(torch.tensor([[0.5, float("nan")], [0.2, 0.9]]))
    points = line(ax, "values").get_xydata()
    expected = [(0, 0), (0.2, -0.2), (0.2, 1 / 3 - 0.2), (0.5, 1 / 3 - 0.5), (0.5, 2 / 3 - 0.5), (0.9, 2 / 3 - 0.9)]
    np.testing.assert_allclose(points, [*expected, (0.9, 0.1), (1, 0)], atol=1e-7)


@pytest.mark.parametrize(("level", "label"), [(0.95, "95 % band"), (0.5, "50 % band")])
def test_calibration_band_is_that_of_massart(level, label):
    ax = plot_calibration(torch.linspace(0, 1, 50), level=level)
    (band,) = [artist for artist in ax.collections if artist.get_label() == label]
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(np.sqrt(np.log(2 / (1 - level)) / 100))


@pytest.mark.parametrize("values", [torch.tensor([0.5, 1.1]), torch.tensor([-0.1]), torch.tensor([float("nan")])])
def test_values_that_are_no_probabilities_are_refused(values):
    with pytest.raises(ValueError, match="`values` must hold numbers between 0 and 1"):
        plot_calibration(values)


def test_a_level_outside_of_0_and_1_is_refused():
    with pytest.raises(ValueError, match="`level` must lie strictly between 0 and 1, received 1"):
        plot_calibration(torch.tensor([0.5]), level=1.0)


# --- images -----------------------------------------------------------------------------


def fan(ax):
    spread = torch.special.ndtri(torch.linspace(0.01, 0.99, 99)).unsqueeze(-1)
    paths = torch.sin(TIMES) + 0.1 * (1 + TIMES / 5) * spread
    seen, unseen = (TIMES[:12:2], torch.sin(TIMES[:12:2]) + 0.2), (TIMES[14::3], torch.cos(TIMES[14::3]))
    plot_paths(TIMES, paths, observed=seen, held_out=unseen, forecast_from=6.0, num_paths=3, ax=ax)


def losses(ax):
    steps = torch.arange(200.0)
    loss = 2 + 30 * torch.exp(-steps / 10) + 0.3 * torch.sin(7 * steps)
    plot_losses(loss, validation=[(s, 2.5 + 0.0001 * (s - 120) ** 2) for s in range(20, 201, 20)], ax=ax)


def phase(ax):
    angle = torch.linspace(0, 6, 50)
    circle = torch.stack([angle.cos(), angle.sin()], -1)
    paths = torch.stack([0.5 * circle, circle])
    plot_phase(lambda t, z: torch.stack([-z[..., 1], z[..., 0]], -1), paths, resolution=8, ax=ax)


def coefficient(ax):
    visited = torch.special.ndtri(torch.linspace(0.01, 0.99, 99)) / 2
    plot_coefficient(STATES, slopes(), truth=-STATES - 0.2 * STATES**3, visited=visited, ax=ax)


def narrow_predictions(ax):
    plot_calibration(torch.special.ndtr(2 * torch.special.ndtri(torch.linspace(0.005, 0.995, 100))), ax=ax)


def many_points(ax):
    times = torch.linspace(0, 10, 400)
    paths = torch.stack([torch.sin(TIMES) - 0.1, torch.sin(TIMES) + 0.1])
    plot_paths(TIMES, paths, observed=(times, torch.sin(times) + 0.3 * torch.sin(50 * times)), ax=ax)


PICTURES = [fan, losses, phase, coefficient, narrow_predictions, many_points]


def draw(picture, path):
    """The picture without text, 180 x 120 pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.0, 2.0), dpi=60)
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0.02, 0.02, 0.96, 0.96))
    picture(ax)
    if ax.get_legend() is not None:
        ax.get_legend().remove()
    ax.set(xlabel="", ylabel="")
    ax.tick_params(labelbottom=False, labelleft=False)
    figure.savefig(path, metadata={"Software": None})


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.__name__)
def test_the_image_is_the_stored_one(picture, tmp_path):
    from matplotlib.testing.compare import compare_images

    path = tmp_path / f"{picture.__name__}.png"
    draw(picture, path)
    difference = compare_images(str(BASELINE / path.name), str(path), tol=TOLERANCE)
    assert difference is None, difference


if __name__ == "__main__":
    BASELINE.mkdir(exist_ok=True)
    for drawn in PICTURES:
        draw(drawn, BASELINE / f"{drawn.__name__}.png")
