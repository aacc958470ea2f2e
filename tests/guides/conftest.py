"""The guides of the room: one row each, and the contract suite in `test_contract.py` does the rest."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from pyro_sde.guides import PosteriorSDE
from pyro_sde.nn import ControlNet, GRUEncoder

MakeGuide = Callable[[int, int, int], nn.Module]  # value_dim, state_dim, noise_dim

GUIDES: dict[str, MakeGuide] = {
    "posterior-sde": lambda value_dim, state_dim, noise_dim: PosteriorSDE(
        GRUEncoder(value_dim, state_dim, 6, hidden=8),
        ControlNet(state_dim, 6, noise_dim, hidden=(8,)),
    ),
}


@pytest.fixture(params=sorted(GUIDES))
def make_guide(request: pytest.FixtureRequest) -> MakeGuide:
    return GUIDES[request.param]
