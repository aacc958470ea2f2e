r"""Exact transitions of linear SDEs :math:`dz = (A z + b)\,dt + L\,dW`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from ._arguments import check_real
from ._matrices import balance, check_system, matrix_norm
from ._psd import psd_factor

__all__ = [
    "Transition",
    "check_finite",
    "check_steps",
    "discretise",
    "share_equal_steps",
]

_START = 0.5  # norm of A h at which the series starts: 24 terms then reach round-off


class Transition(NamedTuple):
    r"""Law :math:`z_{k+1} \mid z_k \sim N(\Phi_k z_k + c_k,\; Q_k)` of each of K steps.

    Attributes:
        matrix: :math:`\Phi`, ``(*batch, K, D, D)``.
        offset: c, ``(*batch, K, D)``.
        covariance: Q, ``(*batch, K, D, D)``, symmetric positive semi-definite.
    """

    matrix: Tensor
    offset: Tensor
    covariance: Tensor

    def factor(self) -> Tensor:
        r"""Lower triangular G with :math:`G G^\top = Q`, ``(*batch, K, D, D)``.

        A direction without noise, as all are at dt = 0, has a zero column and no gradient. Computed in float64.
        """
        return psd_factor(self.covariance.double()).to(self.covariance.dtype)

    def to(self, dtype: torch.dtype) -> Transition:
        """All three in another dtype."""
        return Transition(self.matrix.to(dtype), self.offset.to(dtype), self.covariance.to(dtype))


def discretise(matrix: Tensor, diffusion: Tensor, dt: Tensor, offset: Tensor | None = None) -> Transition:
    r"""Exact transition of :math:`dz = (A z + b)\,dt + L\,dW` over steps of any length.

    .. math::
        \Phi = e^{A h}, \qquad c = \int_0^h e^{A s} b \, ds, \qquad Q = \int_0^h e^{A s} L L^\top e^{A^\top s} \, ds

    A may be singular, stiff or unstable, L of any rank. A Taylor series in h, whose matrix coefficients are shared by
    all steps, starts at :math:`h / 2^s`; then s doublings, :math:`Q_{2h} = Q_h + \Phi_h Q_h \Phi_h^\top`. Nothing
    is subtracted, so that entries of Q keep their relative accuracy however small h is (Van Loan's block exponential
    loses :math:`Q_{11} \propto h^5` beside 1), and nothing grows that does not grow in Q (its block
    :math:`e^{-A h}` overflows for a stable A and a long step). :math:`\Phi - I` is doubled, not :math:`\Phi`: slow
    directions keep their rate beside fast ones.

    Computed in float64, returned in the dtype of `dt`. Cost: 25 small products for each A, then ``4 s`` products of
    D x D matrices for each step with :math:`s = \log_2(2 \|A\| h)`; equal steps are computed once.

    Args:
        matrix: A, ``(*batch, D, D)``, per unit of time.
        diffusion: L, ``(*batch, D, M)``, state unit per square root of time.
        dt: steps h, ``(*batch, K)``, ``>= 0``; 0 gives :math:`\Phi = I`, Q = 0.
        offset: b, ``(*batch, D)``, zero if None.

    Raises:
        TypeError: if an argument is no tensor of real numbers.
        ValueError: if a shape is wrong, a step is negative or not finite, or the result is not finite (an unstable A
            over a long step).

    References:
        Särkkä and Solin (2019), Applied Stochastic Differential Equations, section 6.2. Van Loan (1978), Computing
        integrals involving the matrix exponential, IEEE TAC 23, section III (the doubling formulas).

    Example:
        >>> wiener = discretise(
        ...     torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.tensor([[0.0], [1.0]]), torch.tensor([2.0])
        ... )
        >>> wiener.covariance[0]
        tensor([[2.6667, 2.0000],
                [2.0000, 2.0000]])
    """
    dt = check_steps(dt)
    check_system(matrix, diffusion, offset)
    a, noise = matrix.double(), diffusion.double()
    drive = None if offset is None else offset.double()

    def exact(steps: Tensor) -> Transition:
        return _double_up(a, noise, drive, steps.double())

    batch = torch.broadcast_shapes(matrix.shape[:-2], diffusion.shape[:-2], () if offset is None else offset.shape[:-1])
    return check_finite(share_equal_steps(exact, dt, batch).to(dt.dtype), dt)


def share_equal_steps(exact: Callable[[Tensor], Transition], dt: Tensor, batch: torch.Size) -> Transition:
    """Transitions over `dt` from a function of steps, computed once for equal steps where this saves half the work.

    Steps that carry a gradient are not shared: each has its own.

    Args:
        exact: maps steps ``(*dt_batch, K)`` to transitions with batch dimensions of its own on the left.
        dt: steps ``(*dt_batch, K)``.
        batch: batch shape of the matrices inside `exact`.
    """
    if dt.requires_grad or dt.shape[-1] < 2:
        return exact(dt)
    values, index = torch.unique(dt, return_inverse=True)
    work = dt.shape[-1] if batch.numel() > 1 else dt.numel()  # rows of a batch of matrices would not share with others
    if 2 * values.numel() > work:
        return exact(dt)
    matrix, offset, covariance = exact(values)
    full = torch.broadcast_shapes(batch, dt.shape[:-1])

    def spread(tensor: Tensor, rank: int) -> Tensor:
        event = tensor.shape[tensor.dim() - rank :]
        tensor = tensor.expand(*batch, -1, *event)
        if values.numel() == 1:
            return tensor.expand(*full, dt.shape[-1], *event)
        if dt.dim() == 1:
            return tensor.index_select(-rank - 1, index)
        if batch.numel() == 1:
            return tensor.reshape(-1, *event)[index].expand(*full, -1, *event)
        rows = index.expand(*full, -1)
        return torch.take_along_dim(tensor.expand(*full, -1, *event), rows[(..., *[None] * rank)], -rank - 1)

    return Transition(spread(matrix, 2), spread(offset, 1), spread(covariance, 2))


def check_steps(dt: Tensor) -> Tensor:
    """Steps ``(*batch, K)`` as a floating-point tensor.

    Raises:
        TypeError: if they are no tensor of real numbers.
        ValueError: if there is no axis of steps, or a step is negative or not finite.
    """
    check_real(dt=dt)
    if dt.dim() < 1:
        msg = "`dt` must have shape (*batch, K), received a single number; pass dt.reshape(1)."
        raise ValueError(msg)
    if not dt.is_floating_point():
        dt = dt.to(torch.get_default_dtype())
    wrong = ~((dt >= 0) & torch.isfinite(dt))
    if bool(wrong.any()):
        where = tuple(wrong.nonzero()[0].tolist())
        msg = f"`dt` must hold finite steps >= 0, received {dt[where].item():g} at {where}."
        raise ValueError(msg)
    return dt


def check_finite(transition: Transition, dt: Tensor) -> Transition:
    """The transition itself, over steps `dt` ``(*batch, K)``.

    Raises:
        ValueError: if an entry of it is not finite and Pyro's validation is on; the message names the step.
    """
    if not is_validation_enabled():  # as in MCMC, which rejects what has no finite density
        return transition
    finite = torch.isfinite(transition.covariance).all(-1).all(-1) & torch.isfinite(transition.matrix).all(-1).all(-1)
    finite = finite & torch.isfinite(transition.offset).all(-1)
    if not bool(finite.all()):
        where = tuple((~finite).nonzero()[0].tolist())
        step = dt.detach().expand(finite.shape)[where].item()
        msg = (
            f"the transition over `dt` = {step:g} at {where} is not finite in {dt.dtype}: the drift matrix grows too "
            "fast for this step, or a parameter is not finite. Use shorter steps."
        )
        raise ValueError(msg)
    return transition


def _double_up(matrix: Tensor, diffusion: Tensor, offset: Tensor | None, dt: Tensor) -> Transition:
    """Series at a short step, then doublings; everything in float64 and in balanced units of the states."""
    units = balance(matrix.detach())
    a = matrix * units.unsqueeze(-2) / units.unsqueeze(-1)
    noise = diffusion / units.unsqueeze(-1)
    rate = matrix_norm(a.detach())
    rate = torch.where(rate > 0, rate, 1.0)
    scaled = rate.unsqueeze(-1) * dt.detach()  # (*batch, K)
    doublings = torch.where(scaled > _START, (scaled / _START).log2().ceil(), 0.0)
    short = dt * torch.exp2(-doublings)
    powers = _scaled_powers(rate.unsqueeze(-1) * short, 20 + 2 * min(a.shape[-1], 10))
    size = a.shape[-1]
    change, force, covariance = _series(a / rate[..., None, None], noise, offset, units, powers, short)
    identity = torch.eye(size, dtype=a.dtype, device=a.device)
    most = int(doublings.max()) if doublings.numel() else 0
    least = int(doublings.min()) if doublings.numel() else 0
    for done in range(most):
        phi = identity + change
        doubled = (
            2 * change + change @ change,
            force + (phi @ force.unsqueeze(-1)).squeeze(-1) if offset is not None else force,
            covariance + phi @ covariance @ phi.mT,
        )
        if done < least:
            change, force, covariance = doubled
            continue
        more = (doublings > done).unsqueeze(-1)
        change = torch.where(more.unsqueeze(-1), doubled[0], change)
        force = torch.where(more, doubled[1], force)
        covariance = torch.where(more.unsqueeze(-1), doubled[2], covariance)
    covariance = 0.5 * (covariance + covariance.mT)
    outer = units.unsqueeze(-1).unsqueeze(-3)  # (*batch, 1, D, 1)
    change = outer * change / outer.mT
    return Transition(identity + change, units.unsqueeze(-2) * force, outer * covariance * outer.mT)


def _series(
    a: Tensor, noise: Tensor, offset: Tensor | None, units: Tensor, powers: Tensor, short: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r""":math:`\Phi - I`, c and Q over short steps; `a` has norm 1, `powers` holds :math:`x^n / n!`, ``(..., K, N)``."""
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    power, gram = identity.expand_as(a), noise @ noise.mT
    matrices, grams = [], []
    for _ in range(powers.shape[-1] - 1):
        matrices.append(power)
        grams.append(gram)
        power = a @ power
        image = a @ gram
        gram = image + image.mT  # derivatives of e^{As} L L^T e^{A^T s} at s = 0
    matrices.append(power)
    integrals = (
        short.unsqueeze(-1) * powers[..., :-1] / torch.arange(1, powers.shape[-1], dtype=a.dtype, device=a.device)
    )
    change = _combine(powers[..., 1:], torch.stack(matrices[1:], -3))
    covariance = _combine(integrals, torch.stack(grams, -3))
    if offset is None:
        return change, change.new_zeros(()).expand(change.shape[:-1]), covariance
    drive = (offset / units).unsqueeze(-1)
    forces = torch.stack([m @ drive for m in matrices[:-1]], -3)
    return change, _combine(integrals, forces).squeeze(-1), covariance


def _combine(weights: Tensor, terms: Tensor) -> Tensor:
    """Sums ``(..., K, N), (..., N, R, C) -> (..., K, R, C)`` as one product of matrices."""
    return (weights @ terms.flatten(-2)).unflatten(-1, terms.shape[-2:])


def _scaled_powers(x: Tensor, count: int) -> Tensor:
    """``x^n / n!`` for n below `count`, ``(..., count)``; by products, as a power of 0 has no safe gradient."""
    powers = [torch.ones_like(x)]
    for n in range(1, count):
        powers.append(powers[-1] * x / n)
    return torch.stack(powers, -1)
