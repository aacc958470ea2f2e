"""The table of baselines: every row passes the contract in `test_base.py`."""

import pytest

from pyro_sde.diagnostics import fit_last_value, fit_linear_interpolation, fit_ou

BASELINES = [fit_last_value, fit_linear_interpolation, fit_ou]


@pytest.fixture(params=BASELINES, ids=lambda fit: fit.__name__)
def fit_baseline(request):
    return request.param
