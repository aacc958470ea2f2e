r"""The drift of an SDE that has given marginals, and its distance from the drift of the prior."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..distributions.sde_path import SDEPath
from ..nn.diffusion import DiagonalDiffusion
from ..nn.marginals import Marginals
from ..nn.sigmoid_map import SigmoidMap
from ..sde.base import SDE

__all__ = ["Bend", "ImpliedDrift", "Moments", "check_moments", "control_cost", "implied_drift", "moments_at", "scaled"]


class Bend(NamedTuple):
    """Map of the noise, its weights ``(..., D, K)``, and their derivative with respect to time."""

    sigmoids: SigmoidMap
    weights: Tensor
    rate: Tensor


class Moments(NamedTuple):
    r"""Marginals :math:`z = m + S^{1/2} x` with :math:`x = \epsilon` or :math:`x = h_w(\epsilon)`, and their rates."""

    mean: Tensor  # (..., D)
    scale: Tensor  # (..., D) or (..., D, D)
    mean_rate: Tensor
    scale_rate: Tensor
    bend: Bend | None = None

    def expand(self, shape: torch.Size) -> Moments:
        """All leading dimensions of states of this shape."""
        rank, bend = self.mean.dim(), self.bend
        if bend is not None:
            bend = bend._replace(weights=_expand(bend.weights, shape, rank), rate=_expand(bend.rate, shape, rank))
        mean, scale, mean_rate, scale_rate = (_expand(part, shape, rank) for part in self[:4])
        return Moments(mean, scale, mean_rate, scale_rate, bend)

    def state(self, eps: Tensor) -> Tensor:
        """State of standard normal noise."""
        return self.mean + scaled(self.scale, self._bent(eps))

    def noise_of(self, z: Tensor) -> Tensor:
        """The inverse of `state`."""
        z = z - self.mean
        x = z / self.scale if self.scale.dim() == self.mean.dim() else _solve(self.scale, z, upper=False)
        return x if self.bend is None else self.bend.sigmoids.invert(self.bend.weights, x)

    def velocity(self, eps: Tensor) -> Tensor:
        """Velocity of the deterministic flow that carries the marginals along."""
        velocity = self.mean_rate + scaled(self.scale_rate, self._bent(eps))
        if self.bend is None:
            return velocity
        return velocity + scaled(self.scale, self.bend.sigmoids.change(self.bend.rate, eps))

    def score(self, eps: Tensor) -> Tensor:
        r"""Gradient of the log-density of the marginal at the state of `eps`.

        Of noise it is :math:`-\epsilon`, of :math:`h(\epsilon)` it is :math:`-(\epsilon + (\log h')') / h'`.
        """
        score = -eps
        if self.bend is not None:
            slope, change = self.bend.sigmoids.slope(self.bend.weights, eps)
            score = (score - change) / slope
        return score / self.scale if self.scale.dim() == self.mean.dim() else _solve(self.scale.mT, score, upper=True)

    def _bent(self, eps: Tensor) -> Tensor:
        return eps if self.bend is None else self.bend.sigmoids.apply(self.bend.weights, eps)


def moments_at(marginals: Marginals, t: Tensor) -> Moments:
    """Moments and their rates.

    Raises:
        ValueError: if a scale is not positive or something is not finite.
    """
    parts = marginals.moments_and_rates(t)
    (mean, scale, *weights), (mean_rate, scale_rate, *rates) = parts[: len(parts) // 2], parts[len(parts) // 2 :]
    check_moments(t, mean, scale, mean_rate.unsqueeze(-1), *weights, *rates)
    bend = None if marginals.sigmoids is None else Bend(marginals.sigmoids, *weights, *rates)
    return Moments(mean, scale, mean_rate, scale_rate, bend)


def check_moments(t: Tensor, mean: Tensor, scale: Tensor, *others: Tensor) -> None:
    """Raise ValueError unless means, and others ``(..., D, K)``, are finite and scales finite and positive."""
    with torch.no_grad():
        mean = sum((0 * other.sum(-1) for other in others), mean)  # 0 times infinity is NaN
        deviations = scale if scale.dim() == mean.dim() else scale.diagonal(dim1=-2, dim2=-1)
        bad = ~(torch.isfinite(mean) & torch.isfinite(deviations) & (deviations > 0))
        if bad.any():
            where = tuple(bad.nonzero()[0].tolist())
            time = t.expand(*bad.shape[:-1], 1)[where[:-1]].item()
            msg = (
                f"the marginals must have finite moments and positive scales, but at time {time:g} dimension "
                f"{where[-1]} has mean {mean[where].item():.6g} and scale {deviations[where].item():.6g}. A variance "
                "of 0 makes the implied drift infinite: bound scales from below, as the encoders of pyro_sde.nn do, "
                "or lower the learning rate."
            )
            raise ValueError(msg)


def implied_drift(moments: Moments, sde: SDE, eps: Tensor, diffusion: Tensor, divergence: Tensor) -> Tensor:
    r"""Itô drift of the SDE with these marginals and this diffusion, at the states of noise eps; ``(..., D)``.

    With :math:`G = \sigma\sigma^\top` the equation of Fokker and Planck is a transport equation,

    .. math:: \partial_t q = -\nabla\cdot(f q) + \tfrac12 \sum_{ij} \partial_i\partial_j (G_{ij} q)
              = -\nabla\cdot\big[(f - \tfrac12 \nabla\cdot G - \tfrac12 G \nabla\log q)\, q\big],

    whose velocity field is that of the marginals if the bracket is the derivative of the state at fixed noise, for a
    Gaussian :math:`\dot m + \dot S^{1/2} \epsilon`. The `divergence` of G has the components
    :math:`\sum_j \partial_j G_{ij}`.
    """
    score = moments.score(eps)
    if sde.noise.matrix_dims:
        spread = (sde.noise.gram(diffusion) @ score.unsqueeze(-1)).squeeze(-1)
    else:
        spread = diffusion.square() * score
    return moments.velocity(eps) + 0.5 * (spread + divergence)


def control_cost(law: SDEPath, moments: Moments, t: Tensor, eps: Tensor) -> Tensor:
    r"""Density in time of the path divergence, :math:`\tfrac12 |u|^2`, with :math:`\sigma u = f_q - f_p`.

    Args:
        law: path law of the model, whose drift and diffusion are called once.
        moments: of the guide, at times t.
        t: ``(R, ..., 1)``.
        eps: standard normal noise of the states, ``(R, ..., D)``.

    Returns:
        ``(R, ...)``.

    Raises:
        ValueError: if the drifts differ where the diffusion of the prior vanishes: the divergence is infinite.
    """
    sde, z = law.sde, moments.state(eps)
    rows = tuple(_row_at(row, law.grid.times, t) for row in sde.bind_rows(law.inputs))
    with law.effects:
        coefficients = sde.coefficients(t, z, rows)
        diffusion = sde.noise.widen(coefficients.diffusion, z.shape[-1])
        divergence = _divergence_in_graph(sde, z, diffusion)
        if divergence is None:
            divergence = _divergence(sde, t, z, diffusion)
    drift = implied_drift(moments, sde, eps, diffusion, divergence)
    theirs = coefficients.total_drift(sde.noise)
    geometry = sde.noise.range_of(diffusion)
    control, rest = geometry.coordinates(drift - theirs)
    if not geometry.full:
        _check_range(rest, drift, theirs, (geometry.rank < z.shape[-1]).unsqueeze(-1), t)
    return 0.5 * control.square().sum(-1)


class ImpliedDrift(nn.Module):
    """The implied drift as a function of (t, z), for an `SDEPath` with the marginals of a guide.

    Args:
        marginals: the marginals.
        sde: Itô SDE with the diffusion.
    """

    def __init__(self, marginals: Marginals, sde: SDE) -> None:
        super().__init__()
        self.marginals, self.sde = marginals, sde

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Drift ``(..., D)`` at times ``(..., 1)`` and states ``(..., D)``."""
        moments = moments_at(self.marginals, t)
        shape = torch.broadcast_shapes(moments.mean.shape, z.shape)
        moments, z = moments.expand(shape), z.expand(shape)
        diffusion = torch.as_tensor(self.sde.diffusion(t, z), dtype=z.dtype, device=z.device)
        diffusion = self.sde.noise.widen(diffusion, z.shape[-1])
        divergence = _divergence(self.sde, t, z, diffusion)
        return implied_drift(moments, self.sde, moments.noise_of(z), diffusion, divergence)


def _divergence(sde: SDE, t: Tensor, z: Tensor, diffusion: Tensor) -> Tensor:
    """Row sums of derivatives of the Gram matrix, ``(..., D)``; 0 where the diffusion does not depend on the state."""
    matrix = sde.noise.matrix_dims
    if sde.noise_type == "additive" or diffusion.dim() < z.dim() + matrix:
        return z.new_zeros(())  # without the leading dimensions of the states it cannot depend on them

    def squares(state: Tensor) -> Tensor:
        value = torch.as_tensor(sde.diffusion(t, state), dtype=z.dtype, device=z.device)
        value = sde.noise.expand(value, state)
        return sde.noise.gram(value) if matrix else value.square()

    size = z.shape[-1]
    if _elementwise(sde, z):  # all derivatives come in one direction
        return torch.func.jvp(squares, (z.contiguous(),), (torch.ones_like(z),))[1]
    directions = torch.eye(size, dtype=z.dtype, device=z.device)
    directions = directions.reshape(size, *[1] * (z.dim() - 1), size).expand(size, *z.shape)
    change = torch.func.jvp(squares, (z.expand(size, *z.shape).contiguous(),), (directions.contiguous(),))[1]
    if matrix:  # (D, ..., D, D): direction j, column j
        return change.diagonal(dim1=0, dim2=-1).sum(-1)
    return change.diagonal(dim1=0, dim2=-1)


def _divergence_in_graph(sde: SDE, z: Tensor, diffusion: Tensor) -> Tensor | None:
    """As `_divergence`, from a diffusion that was evaluated at z already; None where that is not possible.

    Reverse mode costs a third of forward mode here, and no further call, if each component has its own state.
    """
    if not (_elementwise(sde, z) and torch.is_grad_enabled() and z.requires_grad and diffusion.requires_grad):
        return None
    if diffusion.shape != z.shape:
        return None
    change = torch.autograd.grad(diffusion.square().sum(), z, create_graph=True, allow_unused=True)[0]
    return z.new_zeros(()) if change is None else change


def _elementwise(sde: SDE, z: Tensor) -> bool:
    """Whether each component of a diagonal diffusion depends on its own state only, as far as this is known."""
    return not sde.noise.matrix_dims and (z.shape[-1] == 1 or type(sde.diffusion) is DiagonalDiffusion)


def _row_at(rows: Tensor | None, times: Tensor, t: Tensor) -> Tensor | None:
    """Rows ``(R, ..., C)`` of the steps that contain times ``(R, ..., 1)``."""
    if rows is None:
        return None
    batch = t.shape[1:-1]
    flat = t.detach().squeeze(-1).movedim(0, -1).contiguous()  # (..., R)
    ends = times.detach()[..., 1:].expand(*batch, -1).contiguous()
    step = torch.searchsorted(ends, flat, right=True).clamp(max=ends.shape[-1] - 1)
    rows = rows.expand(*batch, *rows.shape[-2:])
    return rows.gather(-2, step.unsqueeze(-1).expand(*step.shape, rows.shape[-1])).movedim(-2, 0)


def _check_range(rest: Tensor, ours: Tensor, theirs: Tensor, noise_free: Tensor, t: Tensor) -> None:
    with torch.no_grad():
        tolerance = 1e-8 if rest.dtype == torch.float64 else 1e-4
        size = (ours.abs() + theirs.abs()).amax(-1, keepdim=True)
        bad = (noise_free & ~(rest.abs() <= tolerance * size)).expand(rest.shape)
        if bad.any():
            where = tuple(bad.nonzero()[0].tolist())
            time = t.expand(*rest.shape[:-1], 1)[where[:-1]].item()
            msg = (
                "the diffusion of the prior vanishes in a direction in which the implied drift differs from that of "
                f"the prior, by {rest[where].item():.6g} in dimension {where[-1]} at time {time:g}, so the divergence "
                "is infinite. Free marginals need noise in every dimension: give the prior some, or use PosteriorSDE, "
                "whose control form is right for such priors."
            )
            raise ValueError(msg)


def scaled(scale: Tensor, eps: Tensor) -> Tensor:
    """Noise ``(..., D)`` times standard deviations ``(..., D)`` or a factor ``(..., D, D)``."""
    return scale * eps if scale.dim() == eps.dim() else (scale @ eps.unsqueeze(-1)).squeeze(-1)


def _solve(factor: Tensor, vector: Tensor, *, upper: bool) -> Tensor:
    return torch.linalg.solve_triangular(factor, vector.unsqueeze(-1), upper=upper).squeeze(-1)


def _expand(part: Tensor, shape: torch.Size, rank: int) -> Tensor:
    """Moments with all leading dimensions of the states; `rank` is that of the mean."""
    tail = part.shape[rank - 1 :]
    return part.expand(*shape[:-1], *tail)
