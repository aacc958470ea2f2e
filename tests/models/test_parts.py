"""The default parts: their sizes, their tame start, and the noise they fit."""

from __future__ import annotations

import pytest
import torch

from pyro_sde.models import Architecture, CategoricalLikelihood, LatentSDE, NormalLikelihood
from pyro_sde.nn import MLP, GRUEncoder
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.sde import SDE, NeuralSDE, UnderdampedLangevin


def test_every_size_reaches_its_part():
    sizes = Architecture(
        hidden=(11, 12),
        decoder_hidden=(13,),
        encoder_hidden=14,
        context_dim=7,
        diffusion_scale=0.9,
        time_scale=3.0,
    )
    latent = LatentSDE(2, 3, architecture=sizes)
    drift, control, encoder = latent.prior.drift, latent.posterior_sde.control, latent.posterior_sde.encoder
    assert isinstance(latent.prior, NeuralSDE)
    assert isinstance(encoder, GRUEncoder)
    assert isinstance(latent.decoder, MLP)
    for net in (drift, control):
        assert (net.state_part.out_features, net.tail.layers[0].out_features) == (11, 12)
    assert (control.input_dim, encoder.context_dim) == (7, 7)
    assert (encoder.gru.hidden_size, encoder.time_scale) == (14, 3.0)
    assert [layer.out_features for layer in latent.decoder.layers if hasattr(layer, "out_features")] == [13, 3]
    assert latent.prior.diffusion(torch.zeros(1), torch.zeros(2)).tolist() == pytest.approx([0.9, 0.9])


def test_no_hidden_layer_makes_an_affine_decoder():
    assert len(LatentSDE(2, 1, architecture=Architecture(decoder_hidden=())).decoder.layers) == 1


def test_encoder_and_decoder_have_the_sizes_that_the_likelihood_needs():
    latent = LatentSDE(2, 3, likelihood=CategoricalLikelihood(3, 4))
    assert latent.posterior_sde.encoder.value_dim == 12
    assert latent.decoder(torch.zeros(5, 2)).shape == (5, 12)


@pytest.mark.parametrize(
    ("prior", "noise_dim"),
    [
        (SDE(lambda t, z: -z, lambda t, z: torch.ones(2, 3), noise_type="additive"), 3),
        (SDE(lambda t, z: -z, lambda t, z: torch.ones(2, 1), noise_type="scalar"), 1),
        (UnderdampedLangevin(lambda x: -x), 2),
    ],
)
def test_the_default_guide_has_a_control_for_every_brownian_motion_of_the_prior(prior, noise_dim):
    latent = LatentSDE(2, 1, prior=prior, max_step=0.1)
    grid = TimeGrid(torch.tensor([0.0, 0.5]), max_step=0.1)
    law = latent.parts.posterior_law(grid, torch.zeros(4, 2, 1), torch.ones(4, 2, 1).bool())
    assert law.noise_shape() == (4, 5, noise_dim)
    assert law.rsample().isfinite().all()


def test_paths_of_an_untrained_model_are_tame():
    z = LatentSDE(4, 1, max_step=0.05).sample_prior(torch.linspace(0, 5, 21), num_samples=200, seed=0).z
    assert z.std((0, 2))[-1] < 3
    assert z.abs().max() < 12


def test_reversion_keeps_paths_of_prior_and_posterior_finite_however_they_are_trained():
    latent = LatentSDE(2, 1, max_step=0.5, architecture=Architecture(reversion=0.5))
    with torch.no_grad():
        for parameter in (*latent.prior.parameters(), *latent.posterior_sde.parameters()):
            parameter.mul_(2.0)
    times = torch.linspace(0.0, 500.0, 11).expand(3, -1)
    samples = latent.posterior((times, torch.randn(3, 11, 1)), num_samples=5, seed=0)
    assert samples.z.isfinite().all()
    assert samples.z.abs().max() < 1e3


def test_given_parts_are_taken_as_they_are():
    likelihood, prior = NormalLikelihood(1), NeuralSDE(2, (8,))
    other = LatentSDE(2, 1)
    latent = LatentSDE(
        2, 1, likelihood=likelihood, prior=prior, posterior_sde=other.posterior_sde, decoder=other.decoder, max_step=0.5
    )
    assert latent.parts == (prior, latent.initial, other.posterior_sde, other.decoder, likelihood, 0.5)
