"""Random streams named by a seed and a key, and minibatches drawn from them."""

from __future__ import annotations

import pytest
import torch

from pyro_sde.infer.streams import minibatches, seeded, stream_seed


def draw(*args):
    with seeded(*args):
        return torch.randn(4)


def test_a_stream_depends_on_seed_and_key_alone():
    assert torch.equal(draw(3, "noise", 1), draw(3, "noise", 1))
    for other in ((4, "noise", 1), (3, "noise", 2), (3, "order", 1), (3, "noise")):
        assert not torch.equal(draw(3, "noise", 1), draw(*other))


def test_the_global_state_is_untouched():
    before = torch.get_rng_state()
    draw(0, "noise")
    assert torch.equal(torch.get_rng_state(), before)


def test_no_seed_means_the_global_state():
    torch.manual_seed(5)
    expected = torch.randn(4)
    torch.manual_seed(5)
    assert torch.equal(draw(None), expected)


def test_stream_seeds_fit_a_generator_and_do_not_change_between_versions():
    assert all(0 <= stream_seed(seed, "k") < 2**63 for seed in range(100))
    assert stream_seed(0, "noise", 0) == 4559201308458492164


@pytest.mark.parametrize(("size", "batch_size"), [(10, 3), (10, 10), (10, 25), (1, 1), (6, 2)])
def test_an_epoch_runs_through_all_indices_once(size, batch_size):
    batch = minibatches(size, batch_size, seed=0)
    per_epoch = -(-size // batch_size)
    for epoch in range(3):
        indices = torch.cat([batch(epoch * per_epoch + k) for k in range(per_epoch)])
        assert sorted(indices.tolist()) == list(range(size))


def test_epochs_have_different_orders_and_steps_can_be_asked_in_any_order():
    batch = minibatches(20, 5, seed=1)
    later, first = batch(4), batch(0)
    assert not torch.equal(later, first)
    assert torch.equal(minibatches(20, 5, seed=1)(4), later)
    assert not torch.equal(minibatches(20, 5, seed=2)(0), first)


@pytest.mark.parametrize(("size", "batch_size"), [(0, 1), (4, 0)])
def test_sizes_out_of_range_are_refused(size, batch_size):
    with pytest.raises(ValueError, match="`size` and `batch_size` must be at least 1"):
        minibatches(size, batch_size, seed=0)
