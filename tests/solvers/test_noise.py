"""Noise by blocks: the same at every call, different between blocks, standard normal."""

import torch

from pyro_sde.solvers.noise import GivenNoise, SeededNoise


def test_given_noise_is_sliced():
    normal = torch.randn(10, 3, 2)
    assert torch.equal(GivenNoise(normal).block(2, 5), normal[2:5])


def test_a_block_is_the_same_whenever_it_is_asked_for():
    noise = SeededNoise((3, 2), torch.zeros(1, dtype=torch.float64))
    first, second = noise.block(0, 5), noise.block(5, 10)
    assert first.shape == (5, 3, 2)
    assert first.dtype == torch.float64
    assert torch.equal(noise.block(5, 10), second)
    assert torch.equal(noise.block(0, 5), first)
    assert not torch.equal(first, second)


def test_the_seed_comes_from_the_generator_of_torch():
    def draw():
        return SeededNoise((2,), torch.zeros(1)).block(0, 4)

    torch.manual_seed(0)
    first, second = draw(), draw()
    torch.manual_seed(0)
    assert torch.equal(draw(), first)
    assert not torch.equal(first, second)


def test_drawing_leaves_the_generator_of_torch_alone():
    noise = SeededNoise((2,), torch.zeros(1))
    state = torch.get_rng_state()
    noise.block(0, 100)
    assert torch.equal(torch.get_rng_state(), state)


def test_blocks_are_independent_and_standard_normal():
    noise = SeededNoise((1000,), torch.zeros(1, dtype=torch.float64))
    drawn = torch.cat([noise.block(k, k + 1) for k in range(50)])
    assert abs(drawn.mean()) * drawn.numel() ** 0.5 < 5
    assert abs(drawn.var() - 1) * (drawn.numel() / 2) ** 0.5 < 5
    correlation = torch.corrcoef(drawn) - torch.eye(50)
    assert correlation.abs().max() * 1000**0.5 < 6
