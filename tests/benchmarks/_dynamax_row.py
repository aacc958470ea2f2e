"""Evidence and gradient of `kalman.py` by dynamax, jitted, where it is installed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from tests.benchmarks._jax_rows import _jax

NAME = "dynamax, jitted"
ABSENT = 'dynamax is not installed; it is part of the extra "bench"'


def installed() -> bool:
    return find_spec("dynamax") is not None


@contextmanager
def _double_precision() -> Iterator[None]:
    """float64 inside and only here: other rows of the process compare in float32."""
    jax = _jax()
    switch = getattr(jax, "enable_x64", None)  # a context manager in newer jax
    if switch is None:
        from jax.experimental import enable_x64 as switch
    with switch(True):
        yield


def evidence_and_gradient(leaves: tuple[Tensor, ...]) -> Callable[[], tuple[Any, tuple[Any, ...]]]:
    """Function without arguments that returns the evidence and its gradient with respect to all leaves.

    Args:
        leaves: m0, P0, A, Q, H, R, y as in `kalman.parameters`, without batch.
    """
    jax = _jax()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own dependencies, at import
        from dynamax.linear_gaussian_ssm import inference

    numpy = jax.numpy
    with _double_precision():
        given = tuple(numpy.asarray(leaf.detach().numpy()) for leaf in leaves)

    def evidence(m0: Any, p0: Any, a: Any, q: Any, h: Any, r: Any, y: Any) -> Any:
        dim, size = len(m0), len(r)
        unit = numpy.eye(dim)[None]  # weights[t] leads to time t, so the first one is not used
        params = inference.ParamsLGSSM(
            inference.ParamsLGSSMInitial(m0, p0),
            inference.ParamsLGSSMDynamics(
                numpy.concatenate([unit, a]), numpy.zeros(dim), numpy.zeros((dim, 0)), numpy.concatenate([unit, q])
            ),
            inference.ParamsLGSSMEmissions(h, numpy.zeros(size), numpy.zeros((size, 0)), numpy.diag(r)),
        )
        return inference.lgssm_filter(params, y).marginal_loglik

    gradient = jax.jit(jax.value_and_grad(evidence, argnums=tuple(range(len(given)))))

    def run() -> tuple[Any, tuple[Any, ...]]:
        with _double_precision():
            return jax.block_until_ready(gradient(*given))

    return run
