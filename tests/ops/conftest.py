"""The grids of the room: one row each, and the contract suite in `test_grid.py` does the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

NAN = float("nan")

# name -> arguments of TimeGrid; lists become tensors of the tested dtype, masks stay bool
GRIDS: dict[str, dict[str, Any]] = {
    "one-series": {"times": [0.0, 0.3, 1.1, 2.0], "max_step": 0.25},
    "one-step-per-gap": {"times": [-1.0, 0.1, 0.7, 12.3]},
    "steps-longer-than-gaps": {"times": [0.1, 0.2, 0.35, 0.4], "max_step": 10.0},
    "many-steps": {"times": [0.0, 1.0 / 3.0, 0.7, 2.9], "max_step": 0.0123},
    "far-from-zero": {"times": [1000.1, 1000.9, 1003.7], "max_step": 0.3},
    "long-and-short-gaps": {"times": [0.0, 1e-3, 0.7, 50.0, 50.001], "max_step": 0.9},
    "ragged": {
        "times": [[0.0, 0.3, 1.1, 2.0, 2.7], [0.1, 0.2, 0.2, 0.2, 0.2], [-1.0, 3.0, 3.3, 3.4, 3.4]],
        "max_step": 0.35,
    },
    "masked": {
        "times": [[NAN, 0.3, NAN, 2.0, 2.7], [0.1, 0.0, 0.0, 5.0, NAN], [9.0, 9.0, 1.5, 9.0, 9.0]],
        "mask": [[0, 1, 0, 1, 1], [1, 0, 0, 1, 0], [0, 0, 1, 0, 0]],
        "max_step": 0.35,
    },
    "start-and-end": {"times": [0.2, 0.5, 0.9], "start": -0.5, "end": 1.7, "max_step": 0.4},
    "start-at-the-first-time": {"times": [0.2, 0.5], "start": 0.2, "end": 0.5, "max_step": 0.1},
    "start-and-end-per-series": {
        "times": [[0.2, 0.5, 0.9], [0.3, 0.4, NAN]],
        "mask": [[1, 1, 1], [1, 1, 0]],
        "start": [0.2, -1.0],
        "end": [2.0, 0.6],
        "max_step": 0.3,
    },
    "one-observation": {"times": [0.7], "max_step": 0.1},
    "one-observation-and-start": {"times": [0.7], "start": 0.0, "max_step": 0.1},
    "one-observation-each": {"times": [[0.7, 0.7], [0.2, 0.2]]},
    "two-batch-dims": {
        "times": [[[0.0, 0.4, 1.0], [0.1, 0.9, 0.9]], [[2.0, 3.0, 3.1], [0.0, 0.5, 0.6]], [[0.0, 0.1, 0.3]] * 2],
        "max_step": 0.15,
    },
}

MakeArguments = Callable[[torch.dtype], dict[str, Any]]


@pytest.fixture(params=sorted(GRIDS))
def grid_arguments(request: pytest.FixtureRequest) -> MakeArguments:
    def make(dtype: torch.dtype) -> dict[str, Any]:
        row = dict(GRIDS[request.param])
        for name in ("times", "start", "end"):
            if isinstance(row.get(name), list):
                row[name] = torch.tensor(row[name], dtype=dtype)
        if "mask" in row:
            row["mask"] = torch.tensor(row["mask"], dtype=torch.bool)
        return row

    return make
