"""Parameters of a path's coefficients that no optimiser will see are counted."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_sde import NeuralSDE, SDEPath, TimeGrid
from pyro_sde.infer.coverage import uncovered_parameters
from pyro_sde.infer.traces import sampled_traces


def pair_with(register):
    grid = TimeGrid(torch.tensor([0.0, 1.0]))
    prior = NeuralSDE(2, (3,))
    initial = dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def model():
        register(prior)
        pyro.sample("z", SDEPath(prior, initial, grid))

    return model, prior


COUNT = 2 * 3 + 3 + 3 * 2 + 2 + 2  # two layers and the diffusion


@pytest.mark.parametrize(
    ("register", "expected"),
    [
        (lambda prior: pyro.module("prior", prior), {}),
        (lambda prior: pyro.module("drift", prior.drift), {"z": 2}),
        (lambda prior: pyro.param("other", torch.zeros(1)), {"z": COUNT}),
        (lambda prior: None, {}),  # no param site at all: trained without Pyro's store
        (lambda prior: (prior.requires_grad_(False), pyro.param("other", torch.zeros(1))), {}),
    ],
    ids=["all", "drift only", "none", "no store", "frozen"],
)
def test_uncovered_parameters_are_counted(register, expected):
    model, _ = pair_with(register)
    pair = sampled_traces(model, model, (), {})
    assert uncovered_parameters(pair, model, model) == expected


def test_parameters_of_a_module_that_is_the_model_are_covered():
    model, prior = pair_with(lambda prior: pyro.param("other", torch.zeros(1)))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.prior = prior

        def forward(self):
            return model()

    module = Model()
    pair = sampled_traces(module, module, (), {})
    assert uncovered_parameters(pair, module, module) == {}
    assert uncovered_parameters(pair, module.forward, module.forward) == {}
    assert uncovered_parameters(pair, model, model) == {"z": COUNT}
