"""The rows of the Kalman benchmark solve the same problem, and a row that cannot run says so."""

from __future__ import annotations

import pytest
import torch

from pyro_sde.ops import log_evidence
from tests.benchmarks import _dynamax_row, kalman

LEAVES = kalman.parameters(30, 2)


def evidence_and_gradient(value):
    return value, torch.autograd.grad(value, LEAVES)


@pytest.fixture(scope="module")
def ours():
    return evidence_and_gradient(log_evidence(*kalman.model(LEAVES)))


def symmetric(gradients):
    """A gradient with respect to a covariance is told by its symmetric part; P0 and Q are covariances."""
    return [(g + g.mT) / 2 if i in (1, 3) else g for i, g in enumerate(gradients)]


def assert_same(found, expected, tolerance):
    (value, gradients), (exact, exact_gradients) = found, expected
    assert float(value.detach()) == pytest.approx(float(exact.detach()), rel=tolerance)
    for gradient, like in zip(symmetric(gradients), symmetric(exact_gradients), strict=True):
        assert (gradient - like).abs().max() <= tolerance * (1 + like.abs().max())


# GaussianHMM gets a first transition that does nothing up to a noise of 1e-12, whose precision costs it digits.
@pytest.mark.parametrize(("row", "tolerance"), [(kalman.plain_filter, 1e-9), (kalman.pyro_evidence, 2e-3)])
def test_evidence_and_gradient_are_those_of_this_package(row, tolerance, ours):
    assert_same(evidence_and_gradient(row(LEAVES)()), ours, tolerance)


@pytest.mark.filterwarnings("ignore")  # of dynamax and its dependencies
def test_dynamax_has_the_evidence_and_gradient_of_this_package(ours):
    pytest.importorskip("dynamax")
    value, gradients = _dynamax_row.evidence_and_gradient(LEAVES)()
    assert value.dtype == "float64"
    given = [torch.tensor(g.tolist(), dtype=torch.float64) for g in gradients]
    assert_same((torch.tensor(float(value)), given), ours, 1e-5)  # its solves add 1e-9 to a diagonal


def test_a_machine_without_dynamax_says_so(monkeypatch):
    monkeypatch.setattr(_dynamax_row, "installed", lambda: False)
    table = kalman.speed(20, 1)
    assert _dynamax_row.NAME not in table.rows
    page = kalman.page([table])
    assert f"Not measured: {_dynamax_row.NAME} (dynamax is not installed" in page
    assert "| GaussianHMM / parallel |" in page


def test_dynamax_reaches_the_page(monkeypatch):
    monkeypatch.setattr(_dynamax_row, "installed", lambda: True)
    monkeypatch.setattr(_dynamax_row, "evidence_and_gradient", lambda leaves: lambda: sum(range(10_000)))
    page = kalman.page([kalman.speed(20, 1)])
    assert f"| GaussianHMM / {_dynamax_row.NAME} |" in page
    assert "Not measured" not in page
