"""The encoders of the room: one row each, and the contract suite in `test_base.py` does the rest."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyro_sde.nn import Encoder, GRUEncoder

MakeEncoder = Callable[[int, int, int], Encoder]  # value_dim, state_dim, context_dim

ENCODERS: dict[str, MakeEncoder] = {
    "gru": lambda value_dim, state_dim, context_dim: GRUEncoder(value_dim, state_dim, context_dim, hidden=8),
    "gru-2-layers": lambda value_dim, state_dim, context_dim: GRUEncoder(
        value_dim, state_dim, context_dim, hidden=5, layers=2, time_scale=0.3
    ),
}


@pytest.fixture(params=sorted(ENCODERS))
def make_encoder(request: pytest.FixtureRequest) -> MakeEncoder:
    return ENCODERS[request.param]
