"""What stands between the data and the training loop: splits, weights of batches, and a look at the scale."""

from __future__ import annotations

import dataclasses
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_sde.data import TimeSeries, synthetic
from pyro_sde.infer import FitOptions
from pyro_sde.models.training import fit_series, split_off, warn_unless_standardised

SERIES = synthetic.ornstein_uhlenbeck(seed=0, num_series=10, num_times=6, end_time=5.0, missing=0.3)


def quiet(**options):
    return FitOptions(progress=False, **options)


def constant_model(grid, values, mask):
    """Loss 2 per observed value, whatever the parameter."""
    nothing = 0 * pyro.param("p", torch.zeros((), dtype=torch.float64))
    with pyro.plate("series", len(values)):
        law = dist.Normal(nothing.expand(values.shape), 1.0).mask(mask).to_event(2)
        pyro.sample("y", law, obs=torch.full_like(values, (4 - 1.8378770664093453) ** 0.5))


def run(model=constant_model, *, held_back=None, steps=4, batch_size=4, **options):
    return fit_series(
        (model, lambda grid, values, mask: None),
        SERIES,
        held_back,
        0.5,
        batch_size=batch_size,
        seed=0,
        options=quiet(**options),
        steps=steps,
    )


def test_losses_are_means_per_observed_value_over_an_epoch():
    assert run(batch_size=10, steps=1).losses[0] == pytest.approx(2.0)
    # Batches of 4, 4 and 2 series: each estimates the mean of all, and weighted by their sizes they make it up.
    losses = torch.tensor(run(steps=3).losses)
    assert ((losses * torch.tensor([0.4, 0.4, 0.2])).sum()).item() == pytest.approx(2.0)


def test_validation_losses_are_per_observed_value_of_the_data_kept_back():
    result = run(held_back=SERIES.select([0, 3]), validate_every=1)
    assert [loss for _, loss in result.validation_losses] == pytest.approx([2.0] * 4)


def test_every_epoch_sees_every_series_once():
    seen = []

    def model(grid, values, mask):
        constant_model(grid, values, mask)
        assert grid.batch_shape == values.shape[:1]
        seen.extend(mask.sum((1, 2)).tolist())

    run(model, steps=3)
    counts = sorted(SERIES.mask.sum((1, 2)).tolist())
    assert sorted(seen[4:]) == counts  # the first four are the example


def test_the_store_of_the_user_is_left_alone():
    pyro.param("p", torch.tensor(7.0))
    run()
    assert pyro.param("p").item() == 7.0
    assert list(pyro.get_param_store()) == ["p"]


def test_a_split_is_a_random_partition_that_depends_on_the_seed():
    train, held = split_off(SERIES, 0.3, seed=0)
    again = split_off(SERIES, 0.3, seed=0)[1]
    other = split_off(SERIES, 0.3, seed=1)[1]
    assert (len(train), len(held)) == (7, 3)
    assert torch.equal(held.filled(), again.filled())
    assert not torch.equal(held.filled(), other.filled())
    first = lambda series: set(series.filled().sum((1, 2)).tolist())  # noqa: E731
    assert first(train) | first(held) == first(SERIES)
    assert len(split_off(SERIES, 0.01, seed=0)[1]) == 1


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match=r"`validation` must be a share, 0 <= validation < 1"):
        split_off(SERIES, share, seed=0)


def test_a_split_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="`validation` = 0.5 of 1 series leaves none to train on"):
        split_off(SERIES.select([0]), 0.5, seed=0)


def scaled(scale, shift):
    return dataclasses.replace(SERIES, values=SERIES.standardise()[0].values * scale + shift)


def test_standardised_data_and_small_deviations_from_it_raise_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for scale, shift in ((1.0, 0.0), (0.3, 1.0), (5.0, -2.0)):
            warn_unless_standardised(scaled(scale, shift))


@pytest.mark.parametrize(
    ("scale", "shift", "text"),
    [
        (1.0, 350.0, "channel 'channel_0' has mean 350 and standard deviation 1"),
        (100.0, 0.0, "standard deviation 100"),
        (1e-3, 0.0, "standard deviation 0.001"),
        (0.0, 1.0, "has mean 1 and standard deviation 0"),
    ],
)
def test_a_channel_far_from_standardised_is_named(scale, shift, text):
    with pytest.warns(UserWarning, match=text):
        warn_unless_standardised(scaled(scale, shift))


def test_only_observed_values_count():
    values = torch.tensor([[[1.0], [-1.0], [1e9]]])
    series = TimeSeries("one", torch.tensor([[0.0, 1.0, 2.0]]), values, torch.tensor([[[True], [True], [False]]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_unless_standardised(series)
