r"""The Gaussian law of one state, whose covariance may be singular."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from pyro.distributions.delta import Delta
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    constraints,
    register_kl,
)

from ._covariance_range import CovarianceRange, tolerance_of

__all__ = ["GaussianState", "gaussian_moments"]


class GaussianState(TorchDistribution):
    r"""Gaussian law :math:`N(m, P)` of a state, with any positive semidefinite P.

    The law of a state that is known in part or whole (P = 0), as posteriors of linear chains may have it. Its density
    is that on the directions that carry noise, and :math:`-\infty` off them. Divergences from and to `Normal`,
    `MultivariateNormal` and `Delta` are in closed form. Everything is computed in float64.

    Args:
        mean: m, ``(*batch, D)``.
        covariance: P, ``(*batch, D, D)``.
        dtype: dtype of results; that of `mean` if None.
        validate_args: as for every torch distribution.

    Raises:
        ValueError: if the shapes do not fit, or an entry is not finite.
        TypeError: if `mean` or `covariance` is no floating-point tensor.

    Example:
        >>> law = GaussianState(torch.tensor([1.0, 2.0]), torch.diag(torch.tensor([4.0, 0.0])))
        >>> law.log_prob(torch.tensor([[1.0, 2.0], [1.0, 2.5]]))
        tensor([-1.6121,    -inf])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # type: ignore[override]
    support = constraints.real_vector  # type: ignore[assignment]
    has_rsample = True

    def __init__(
        self,
        mean: Tensor,
        covariance: Tensor,
        *,
        dtype: torch.dtype | None = None,
        validate_args: bool | None = None,
    ) -> None:
        for name, value in (("mean", mean), ("covariance", covariance)):
            if not isinstance(value, Tensor) or not value.is_floating_point():
                kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
                msg = f"`{name}` must be a floating-point tensor, received {kind}."
                raise TypeError(msg)
        if mean.dim() < 1 or covariance.shape[-2:] != (mean.shape[-1], mean.shape[-1]):
            msg = (
                "`mean` and `covariance` must have shapes (*batch, D) and (*batch, D, D), received "
                f"{tuple(mean.shape)} and {tuple(covariance.shape)}."
            )
            raise ValueError(msg)
        self.dtype = mean.dtype if dtype is None else dtype
        self._mean, self._covariance = mean.double(), covariance.double()
        batch = torch.broadcast_shapes(mean.shape[:-1], covariance.shape[:-2])
        super().__init__(batch, mean.shape[-1:], validate_args=validate_args)
        if self._validate_args:
            for name, value in (("mean", mean), ("covariance", covariance)):
                if not bool(value.detach().isfinite().all()):
                    msg = f"`{name}` must be finite, received {value.detach()[~value.isfinite()][0].item()}."
                    raise ValueError(msg)

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean ``(*batch, D)`` and covariance ``(*batch, D, D)`` in float64, with batch dimensions that broadcast."""
        return self._mean, self._covariance

    @property
    def mean(self) -> Tensor:
        """Mean ``(*batch, D)``."""
        return self._mean.to(self.dtype).expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Variances ``(*batch, D)``."""
        return self.covariance_matrix.diagonal(dim1=-2, dim2=-1)

    @property
    def covariance_matrix(self) -> Tensor:
        """Covariance ``(*batch, D, D)``."""
        return self._covariance.to(self.dtype).expand(self.batch_shape + 2 * self.event_shape)

    def rsample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Reparameterised states ``(*sample_shape, *batch, D)``."""
        shape = (*sample_shape, *self.batch_shape, *self.event_shape)
        noise = torch.randn(shape, dtype=self.dtype, device=self._mean.device)
        factor = CovarianceRange(self._covariance).factor
        return (self._mean + torch.einsum("...ij,...j->...i", factor, noise.double())).to(self.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density on the directions that carry noise, ``-inf`` off them; ``(..., *batch)``."""
        if self._validate_args:
            self._validate_sample(value)
        geometry = CovarianceRange(self._covariance)
        residual = value.double() - self._mean
        density = geometry.log_density(geometry.on_range(geometry.whiten(residual)))
        if not geometry.full:
            size = (value.detach().double().abs() + self._mean.detach().abs()).expand_as(residual)
            outside = geometry.outside(residual.detach(), size, tolerance_of(value.dtype)).any(-1)
            density = torch.where(outside, torch.full_like(density, -torch.inf), density)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return density.to(value.dtype).expand(shape)

    def expand(self, batch_shape: torch.Size | Sequence[int], _instance: GaussianState | None = None) -> GaussianState:
        """The same law with a larger batch shape."""
        batch_shape = torch.Size(batch_shape)
        self._mean.expand(batch_shape + self.event_shape)  # the error of a shape that does not fit
        new = copy.copy(self) if _instance is None else _instance
        Distribution.__init__(new, batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new


def gaussian_moments(law: Distribution) -> tuple[Tensor, Tensor]:
    """Mean ``(*batch, D)`` and covariance ``(*batch, D, D)`` of a Gaussian law of one state, in float64.

    Args:
        law: ``Normal(...).to_event(1)``, `MultivariateNormal`, ``Delta(..., event_dim=1)`` or `GaussianState`.

    Raises:
        ValueError: if the law is not Gaussian, or its event shape not ``(D,)``.
    """
    if len(law.event_shape) == 1:
        if isinstance(law, GaussianState):
            return law.moments
        if isinstance(law, MultivariateNormal):
            factor = law.scale_tril.double()
            return law.loc.double(), factor @ factor.mT
        if isinstance(law, LowRankMultivariateNormal):
            factor = law.cov_factor.double()
            return law.loc.double(), factor @ factor.mT + torch.diag_embed(law.cov_diag.double())
        if isinstance(law, Delta):
            point = law.v.double()
            return point, point.new_zeros(()).expand(*point.shape, point.shape[-1])
        if isinstance(law, Independent) and isinstance(law.base_dist, Normal):
            return law.base_dist.loc.double(), torch.diag_embed(law.base_dist.scale.double().square())
    msg = (
        "`initial` must be a Gaussian law of event shape (D,): Normal(...).to_event(1), MultivariateNormal, "
        f"Delta(..., event_dim=1) or GaussianState; received {type(law).__name__} of event shape "
        f"{tuple(law.event_shape)}."
    )
    raise ValueError(msg)


def _kl_of_states(q: Distribution, p: Distribution) -> Tensor:
    """Closed form; infinite where one law has noise in directions in which the other has none."""
    try:
        (q_mean, q_covariance), (p_mean, p_covariance) = gaussian_moments(q), gaussian_moments(p)
    except ValueError:
        raise NotImplementedError from None
    dtype = next(law.dtype for law in (q, p) if isinstance(law, GaussianState))
    tolerance = tolerance_of(dtype)
    ours, theirs = CovarianceRange(q_covariance), CovarianceRange(p_covariance)
    difference = q_mean - p_mean
    finite = theirs.covers(ours, tolerance).all(-1)
    size = (q_mean.abs() + p_mean.abs()).detach()
    finite = finite & ~theirs.outside(difference.detach(), size, tolerance).any(-1)
    divergence = ours.divergence(theirs, difference)
    divergence = torch.where(finite, divergence, torch.full_like(divergence, torch.inf)).to(dtype)
    return divergence.expand(torch.broadcast_shapes(q.batch_shape, p.batch_shape))


register_kl(GaussianState, GaussianState)(_kl_of_states)
for _other in (Delta, Independent, LowRankMultivariateNormal, MultivariateNormal):
    register_kl(GaussianState, _other)(_kl_of_states)
    register_kl(_other, GaussianState)(_kl_of_states)
