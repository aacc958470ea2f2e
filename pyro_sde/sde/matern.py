r"""Matérn processes of half-integer smoothness, as states of derivatives."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from ..ops.discretise import Transition
from .linear import LinearSDE, Parameter
from .system import LinearSystem

__all__ = ["Matern12", "Matern32", "Matern52", "matern_system"]


class _Matern(LinearSDE):
    """Matérn process of smoothness ``order + 1/2``: state (f, f', ..., f^(order))."""

    order: int

    def __init__(self, lengthscale: Parameter = 1.0, variance: Parameter = 1.0) -> None:
        super().__init__(self.order + 1)
        self._register("lengthscale", lengthscale, positive=True)
        self._register("variance", variance, positive=True)

    def _system(self, device: torch.device | None) -> LinearSystem:
        (lengthscale, variance), dtype = self._read("lengthscale", "variance", device=device)
        return matern_system(type(self).__name__, self.order, lengthscale, variance, dtype)


class Matern12(_Matern):
    r"""Matérn-1/2 process, :math:`k(\tau) = \sigma^2 e^{-|\tau| / \ell}`: continuous, nowhere differentiable.

    The stationary Ornstein–Uhlenbeck process of rate :math:`1/\ell` and diffusion :math:`\sigma\sqrt{2/\ell}`.

    Args:
        lengthscale: :math:`\ell > 0`, number or ``(*batch)``, unit of time.
        variance: :math:`\sigma^2 > 0`, number or ``(*batch)``.

    Raises:
        ValueError: if a hyper-parameter is not positive.

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, eq. (4.14) with nu = 1/2. Hartikainen
        and Särkkä (2010), Kalman filtering and smoothing solutions to temporal Gaussian process regression models.

    Example:
        >>> Matern12(lengthscale=2.0).transition(torch.tensor([2.0])).matrix
        tensor([[[0.3679]]])
    """

    order = 0


class Matern32(_Matern):
    r"""Matérn-3/2 process, :math:`k(\tau) = \sigma^2 (1 + \lambda|\tau|) e^{-\lambda|\tau|}`, once differentiable.

    State :math:`(f, f')` with :math:`\lambda = \sqrt 3 / \ell` and :math:`(d/dt + \lambda)^2 f` white noise.

    Args:
        lengthscale: :math:`\ell > 0`, number or ``(*batch)``, unit of time.
        variance: :math:`\sigma^2 > 0`, number or ``(*batch)``.

    Raises:
        ValueError: if a hyper-parameter is not positive.

    References:
        Rasmussen and Williams (2006), eq. (4.17). Hartikainen and Särkkä (2010), section 4.
    """

    order = 1


class Matern52(_Matern):
    r"""Matérn-5/2 process, :math:`k = \sigma^2 (1 + \lambda|\tau| + \lambda^2\tau^2/3) e^{-\lambda|\tau|}`.

    Twice differentiable; state :math:`(f, f', f'')` with :math:`\lambda = \sqrt 5 / \ell`.

    Args:
        lengthscale: :math:`\ell > 0`, number or ``(*batch)``, unit of time.
        variance: :math:`\sigma^2 > 0`, number or ``(*batch)``.

    Raises:
        ValueError: if a hyper-parameter is not positive.

    References:
        Rasmussen and Williams (2006), eq. (4.17). Hartikainen and Särkkä (2010), section 4.
    """

    order = 2


def matern_system(name: str, order: int, lengthscale: Tensor, variance: Tensor, dtype: torch.dtype) -> LinearSystem:
    r"""System of a Matérn process of smoothness ``order + 1/2`` with closed forms of all laws.

    Derivation: with :math:`\lambda = \sqrt{2\nu}/\ell` and N the nilpotent matrix :math:`A + \lambda I`,
    :math:`\Phi = e^{-\lambda h} \sum_k (N h)^k / k!`. The last column of :math:`e^{A s}` is
    :math:`g_i(s) = d^i/ds^i\, s^p e^{-\lambda s} / p!`, hence :math:`Q_{ij} = q \int_0^h g_i g_j\, ds` is a sum of
    incomplete gamma functions, which are small for small h (in :math:`P - \Phi P \Phi^\top` they would be differences
    of ones).

    Args:
        name: of the process, for messages.
        order: number of derivatives, ``>= 0``.
        lengthscale: :math:`\ell`, ``(*batch)``, float64.
        variance: :math:`\sigma^2`, ``(*batch)``, float64.
        dtype: of the stationary law by default.
    """
    lengthscale, variance = torch.broadcast_tensors(lengthscale, variance)
    size = order + 1
    rate = math.sqrt(2 * order + 1) / lengthscale
    units = rate.unsqueeze(-1) ** torch.arange(size, dtype=rate.dtype, device=rate.device)  # of the derivatives
    unit_drift, weights = (torch.tensor(rows, dtype=rate.dtype, device=rate.device) for rows in _unit_process(order))
    matrix = _in_units(rate[..., None, None] * unit_drift, units)
    white = variance * (2 * rate) ** (2 * order + 1) * math.factorial(order) ** 2 / math.factorial(2 * order)
    unit = torch.eye(size, dtype=rate.dtype, device=rate.device)
    powers = [torch.linalg.matrix_power(unit_drift + unit, k) / math.factorial(k) for k in range(size)]

    def exact(dt: Tensor) -> Transition:
        x = rate.unsqueeze(-1) * dt  # (*batch, K)
        decay = torch.exp(-x)
        polynomial = sum(x[..., None, None] ** k * powers[k] for k in range(1, size)) + unit
        gammas = torch.stack(_gamma_ratios(2 * order + 1, 2 * x), -1)  # (*batch, K, 2 order + 1)
        covariance = (gammas @ weights.flatten(0, 1).mT).unflatten(-1, (size, size))
        scales = units.unsqueeze(-2)
        phi = decay[..., None, None] * _in_units(polynomial, scales)
        covariance = variance[..., None, None, None] * scales.unsqueeze(-1) * covariance * scales.unsqueeze(-2)
        return Transition(phi, phi.new_zeros(()).expand(phi.shape[:-1]), covariance)

    def moments() -> tuple[Tensor, Tensor]:
        covariance = variance[..., None, None] * units.unsqueeze(-1) * weights.sum(-1) * units.unsqueeze(-2)
        return torch.zeros_like(units), covariance

    noise = white.sqrt()[..., None, None] * unit[:, -1:]
    return LinearSystem(name, matrix, noise, unit[:1], dtype, exact=exact, moments=moments)


def _in_units(matrix: Tensor, units: Tensor) -> Tensor:
    """Matrix ``(..., D, D)`` that acts on states measured in `units` ``(..., D)``, for plain states."""
    return units.unsqueeze(-1) * matrix / units.unsqueeze(-2)


@lru_cache(maxsize=8)
def _unit_process(order: int) -> tuple[list[list[float]], list[list[list[float]]]]:
    r"""The process with rate 1 and variance 1: A, and weights w of :math:`Q_{ij}(x) = \sum_k w_{ijk} P(k + 1, 2x)`.

    P is the regularised lower incomplete gamma function: :math:`\int_0^x u^k e^{-2u} du = k!\, 2^{-k-1} P(k+1, 2x)`.
    """
    size = order + 1
    drift = [[float(j == i + 1) for j in range(size)] for i in range(size)]
    drift[-1] = [-float(math.comb(size, j)) for j in range(size)]
    response = [0.0] * order + [1 / math.factorial(order)]  # coefficients of the polynomial before e^{-u}
    responses = []
    for _ in range(size):
        responses.append(response)
        slope = [(k + 1) * c for k, c in enumerate(response[1:])] + [0.0]
        response = [a - b for a, b in zip(slope, response, strict=True)]
    white = 2 ** (2 * order + 1) * math.factorial(order) ** 2 / math.factorial(2 * order)
    scale = [white * math.factorial(k) / 2 ** (k + 1) for k in range(2 * order + 1)]
    weights = [
        [
            [scale[k] * sum(a[m] * b[k - m] for m in range(size) if 0 <= k - m < size) for k in range(2 * order + 1)]
            for b in responses
        ]
        for a in responses
    ]
    return drift, weights


def _gamma_ratios(count: int, y: Tensor) -> list[Tensor]:
    r""":math:`P(n, y)` for n = 1 to `count`, from the largest n down by :math:`P(n) = P(n+1) + y^n e^{-y}/n!`."""
    density = torch.exp(-y)
    terms = []
    for n in range(1, count):
        density = density * y / n
        terms.append(density)
    ratios = [_GammaRatio.apply(count, y)]
    for term in reversed(terms):
        ratios.append(ratios[-1] + term)
    return ratios[::-1]


class _GammaRatio(torch.autograd.Function):
    """Regularised lower incomplete gamma function P(n, y), with a derivative that is finite at y = 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(n: int, y: Tensor) -> Tensor:
        return torch.special.gammainc(torch.full_like(y, n), y)

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[int, Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.n = inputs[0]  # type: ignore[attr-defined]
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        (y,) = ctx.saved_tensors  # type: ignore[attr-defined]
        density = torch.exp(-y)
        for k in range(1, ctx.n):  # type: ignore[attr-defined]
            density = density * y / k
        return None, gradient * density
