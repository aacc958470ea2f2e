r"""Oscillating processes: damped oscillator, cosine, periodic and quasi-periodic kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..ops.discretise import Transition
from ._arguments import is_count
from .linear import LinearSDE, Parameter
from .matern import matern_system
from .system import LinearSystem, multiply_systems

__all__ = ["Cosine", "DampedOscillator", "Periodic", "QuasiPeriodic"]


class DampedOscillator(LinearSDE):
    r"""Oscillator driven by white noise, :math:`f'' + 2\zeta\omega f' + \omega^2 f = w`; state :math:`(f, f')`.

    .. math:: k(\tau) = \sigma^2 e^{-\zeta\omega|\tau|} \Big( \cos\eta\tau + \frac{\zeta\omega}{\eta}
        \sin\eta|\tau| \Big), \qquad \eta = \omega\sqrt{1 - \zeta^2}

    Any damping: over-damped (:math:`\zeta > 1`, cosh and sinh), critical (:math:`\zeta = 1`, the Matérn-3/2 process).

    Args:
        frequency: :math:`\omega > 0`, number or ``(*batch)``, radian per unit of time.
        damping: ratio :math:`\zeta > 0`, number or ``(*batch)``; the quality factor is :math:`1 / 2\zeta`.
        variance: :math:`\sigma^2 > 0` of f, number or ``(*batch)``.

    Raises:
        ValueError: if a hyper-parameter is not positive.

    References:
        Foreman-Mackey, Agol, Ambikasaran, Angus (2017), Fast and scalable Gaussian process modeling, arXiv 1703.09710,
        eqs. (20) to (23).
    """

    def __init__(self, frequency: Parameter, damping: Parameter = 0.1, variance: Parameter = 1.0) -> None:
        super().__init__(2)
        self._register("frequency", frequency, positive=True)
        self._register("damping", damping, positive=True)
        self._register("variance", variance, positive=True)

    def _system(self, device: torch.device | None) -> LinearSystem:
        values, dtype = self._read("frequency", "damping", "variance", device=device)
        frequency, damping, variance = torch.broadcast_tensors(*values)
        zero, one = torch.zeros_like(frequency), torch.ones_like(frequency)
        matrix = _rows([[zero, one], [-frequency.square(), -2 * damping * frequency]])
        noise = (4 * damping * variance).sqrt() * frequency**1.5
        covariance = torch.diag_embed(torch.stack([variance, variance * frequency.square()], -1))
        return LinearSystem(
            type(self).__name__,
            matrix,
            _rows([[zero], [noise]]),
            matrix.new_tensor([[1.0, 0.0]]),
            dtype,
            moments=lambda: (covariance.new_zeros(covariance.shape[:-1]), covariance),
        )


class Cosine(LinearSDE):
    r"""Random cosine :math:`f = a \cos\omega t + b \sin\omega t`, :math:`k(\tau) = \sigma^2 \cos(2\pi\tau / p)`.

    No noise: the state turns, and its initial law is all the randomness. Multiply it by another process to let phase
    and amplitude drift (`QuasiPeriodic`).

    Args:
        period: p ``> 0``, number or ``(*batch)``, unit of time.
        variance: :math:`\sigma^2 > 0`, number or ``(*batch)``.

    Raises:
        ValueError: if a hyper-parameter is not positive.

    References:
        Solin and Särkkä (2014), Explicit link between periodic covariance functions and state space models, section 3.
    """

    def __init__(self, period: Parameter, variance: Parameter = 1.0) -> None:
        super().__init__(2)
        self._register("period", period, positive=True)
        self._register("variance", variance, positive=True)

    def _system(self, device: torch.device | None) -> LinearSystem:
        (period, variance), dtype = self._read("period", "variance", device=device)
        harmonic = torch.ones(1, dtype=period.dtype, device=period.device)
        return _rotations(type(self).__name__, 2 * math.pi / period, harmonic, variance.unsqueeze(-1), dtype)


class Periodic(LinearSDE):
    r"""Periodic process, :math:`k(\tau) = \sigma^2 \exp\big(-2 \sin^2(\pi\tau / p) / \ell^2\big)`, by its harmonics.

    The state holds one rotating pair for each harmonic 0 to J, D = 2 J + 2, no noise. The variances of the harmonics,
    :math:`\propto I_j(\ell^{-2})`, are normalised so that the J + 1 of them add up to :math:`\sigma^2`; what is cut
    off decays faster than exponentially beyond :math:`j \approx 2/\ell`: J = 7 is exact to 2e-7 for
    :math:`\ell \ge 1`, to 1e-3 for :math:`\ell \ge 0.5`.

    Args:
        period: p ``> 0``, number or ``(*batch)``, unit of time.
        lengthscale: :math:`\ell > 0`, number or ``(*batch)``, without unit.
        variance: :math:`\sigma^2 > 0`, number or ``(*batch)``.
        harmonics: J, ``>= 1``.

    Raises:
        ValueError: if a hyper-parameter is not positive or `harmonics` below 1.

    References:
        Solin and Särkkä (2014), eqs. (27) to (30). MacKay (1998), Introduction to Gaussian processes.
    """

    def __init__(
        self, period: Parameter, lengthscale: Parameter = 1.0, variance: Parameter = 1.0, *, harmonics: int = 7
    ) -> None:
        if not is_count(harmonics, 1):
            msg = f"`harmonics` must be >= 1, received {harmonics!r}."
            raise ValueError(msg)
        super().__init__(2 * harmonics + 2)
        self.harmonics = harmonics
        self._register("period", period, positive=True)
        self._register("lengthscale", lengthscale, positive=True)
        self._register("variance", variance, positive=True)

    def _system(self, device: torch.device | None) -> LinearSystem:
        (period, lengthscale, variance), dtype = self._read("period", "lengthscale", "variance", device=device)
        shares = _harmonic_shares(lengthscale, self.harmonics)
        numbers = torch.arange(self.harmonics + 1, dtype=period.dtype, device=period.device)
        variances = variance.unsqueeze(-1) * shares
        return _rotations(type(self).__name__, 2 * math.pi / period, numbers, variances, dtype)


class QuasiPeriodic(LinearSDE):
    r"""Cosine whose phase and amplitude drift, :math:`k(\tau) = k_{3/2}(\tau; \ell)\, \cos(2\pi\tau / p)`.

    The product of `Matern32` and `Cosine`. For other pairs, or a periodic shape that is no cosine, multiply processes:
    ``Matern52(10.0) * Periodic(1.0)``.

    Args:
        period: p ``> 0``, number or ``(*batch)``, unit of time.
        lengthscale: :math:`\ell > 0` over which the shape drifts, number or ``(*batch)``, unit of time.
        variance: :math:`\sigma^2 > 0`, number or ``(*batch)``.

    Raises:
        ValueError: if a hyper-parameter is not positive.

    References:
        Solin and Särkkä (2014), section 4.
    """

    def __init__(self, period: Parameter, lengthscale: Parameter, variance: Parameter = 1.0) -> None:
        super().__init__(4)
        self._register("period", period, positive=True)
        self._register("lengthscale", lengthscale, positive=True)
        self._register("variance", variance, positive=True)

    def _system(self, device: torch.device | None) -> LinearSystem:
        (period, lengthscale, variance), dtype = self._read("period", "lengthscale", "variance", device=device)
        name, one = type(self).__name__, torch.ones(1, dtype=period.dtype, device=period.device)
        drifting = matern_system(name, 1, lengthscale, variance, dtype)
        return multiply_systems(drifting, _rotations(name, 2 * math.pi / period, one, one, dtype), name)


def _rotations(name: str, frequency: Tensor, numbers: Tensor, variances: Tensor, dtype: torch.dtype) -> LinearSystem:
    """Pairs that turn at multiples `numbers` ``(J,)`` of `frequency` ``(*batch)``, with `variances` ``(*batch, J)``.

    A harmonic of frequency 0 is a constant; its second state is a copy that the outputs do not see.
    """
    frequencies = frequency.unsqueeze(-1) * numbers  # (*batch, J)
    frequencies, variances = torch.broadcast_tensors(frequencies, variances)
    size = 2 * numbers.numel()
    generator = _pairs(torch.zeros_like(frequencies), frequencies)
    observation = generator.new_tensor([1.0, 0.0]).repeat(numbers.numel()).unsqueeze(0)
    covariance = torch.diag_embed(variances.repeat_interleave(2, -1))

    def exact(dt: Tensor) -> Transition:
        angle = frequencies.unsqueeze(-2) * dt.unsqueeze(-1)  # (*batch, K, J)
        phi = _pairs(angle.cos(), angle.sin())
        return Transition(phi, phi.new_zeros(()).expand(phi.shape[:-1]), torch.zeros_like(phi))

    return LinearSystem(
        name,
        generator,
        generator.new_zeros(size, 1),
        observation,
        dtype,
        exact=exact,
        moments=lambda: (covariance.new_zeros(covariance.shape[:-1]), covariance),
    )


def _pairs(diagonal: Tensor, side: Tensor) -> Tensor:
    """Block-diagonal matrix ``(..., 2 J, 2 J)`` of ``[[diagonal, side], [-side, diagonal]]``, from ``(..., J)``."""
    blocks = _rows([[diagonal, side], [-side, diagonal]])  # (..., J, 2, 2)
    spread = torch.diag_embed(blocks.movedim(-3, -1))  # (..., 2, 2, J, J)
    return spread.movedim((-2, -4, -1, -3), (-4, -3, -2, -1)).flatten(-4, -3).flatten(-2, -1)


def _rows(rows: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _harmonic_shares(lengthscale: Tensor, harmonics: int) -> Tensor:
    r"""Shares ``(*batch, J + 1)`` of the harmonics, proportional to :math:`I_0(x), 2 I_1(x), \dots`, x = 1/l^2.

    By the continued fraction :math:`I_j / I_{j-1} = 1 / (2j/x + I_{j+1}/I_j)` from large j down: only positive terms,
    no overflow, and a guess at the start whose error shrinks with every step.
    """
    x = lengthscale.square().reciprocal()
    start = harmonics + 40
    ratio = x / (start + (start**2 + x.square()).sqrt())
    ratios = []
    for j in range(start - 1, 0, -1):
        ratio = 1 / (2 * j / x + ratio)
        if j <= harmonics:
            ratios.append(ratio)
    relative = [torch.ones_like(x)]
    for j, ratio in enumerate(reversed(ratios)):
        relative.append(relative[-1] * ratio * (2 if j == 0 else 1))
    shares = torch.stack(relative, -1)
    return shares / shares.sum(-1, keepdim=True)
