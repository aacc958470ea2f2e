r"""A posterior given by its marginals at every time: no solver in training."""

from __future__ import annotations

import copy

import pyro.distributions as dist
import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import kl_divergence

from ..distributions.base import PathDistribution
from ..distributions.kernels import TransitionKernels
from ..distributions.kl import CarriesTerms, PathTerms
from ..distributions.sde_path import SDEPath
from ..nn.marginal_encoders import MarginalEncoder
from ..nn.marginals import Marginals
from ..nn.sigmoid_map import SigmoidMap, SigmoidTransform
from ..ops.grid import TimeGrid
from ..ops.layout import time_first
from ..sde.base import SDE
from ._marginal_drift import ImpliedDrift, check_moments, control_cost, moments_at, scaled
from ._marginal_times import ImportanceTimes, LowDiscrepancyTimes, StratifiedTimes, TimeSampler, UniformTimes

__all__ = [
    "ImportanceTimes",
    "LowDiscrepancyTimes",
    "MarginalFlow",
    "MarginalPath",
    "StratifiedTimes",
    "TimeSampler",
    "UniformTimes",
]


class MarginalPath(PathDistribution, CarriesTerms):
    r"""Posterior that is known by its marginals :math:`q_t`, as the law of a path site of a guide.

    They are Gaussian, :math:`z_t = m(t) + S^{1/2}(t)\,\epsilon`, or the images of Gaussian noise by a `FlowMarginals`.
    With the diffusion of the model's path law (the prior), :math:`G = \sigma\sigma^\top`, the marginals are those of
    one SDE, whose drift and distance from the prior have closed forms:

    .. math::
        f_q = \partial_t z_t(\epsilon) + \tfrac12 G \nabla \log q_t + \tfrac12 \nabla\cdot G, \qquad
        \mathrm{KL} = \mathrm{KL}(q_0 \| p_0) + \tfrac12 \int E_{q_t} |\sigma^{-1} (f_q - f_p)|^2\, dt

    A value has, at every grid point, an independent draw of the marginal: all that a likelihood that is a product over
    times needs, and nothing else. It is no path: such a value has no density, so the law serves `SimulationFreeELBO`
    and ``PathELBO("closed")`` and refuses `log_prob`; `to_sde_path` gives the posterior whose paths can be drawn.

    Cost: one call of the marginals at the grid points and one at the random times of the integral; no loop. A grid
    without `max_step`, which is enough here, has no points but the observations.

    Args:
        marginals: the function :math:`t \mapsto (m, S^{1/2})`, or with the weights of a map of the noise.
        grid: grid of the model's path site.
        starts: bool ``(*batch,)``: series that begin at the first grid time, where the divergence of the initial laws
            counts. All if None; False for windows inside a longer series.
        times: sampler of the times of the integral; `StratifiedTimes` (16 for every series) if None.

    Shape:
        event shape: ``(K + 1, D)``.

    Raises:
        ValueError: if the grid leaves the times at which the marginals are known, or a scale is not positive.
        TypeError: if an argument has a wrong type.

    References:
        Bartosh, Vetrov, Naesseth (2025), SDE Matching, arXiv 2502.02472; Course and Nair (2023), Amortized
        reparametrization, arXiv 2312.10550, whose drift is the same for a constant diffusion.
    """

    def __init__(
        self,
        marginals: Marginals,
        grid: TimeGrid,
        *,
        starts: Tensor | None = None,
        times: TimeSampler | None = None,
        validate_args: bool | None = None,
    ) -> None:
        for name, value, kind in (
            ("marginals", marginals, Marginals),
            ("grid", grid, TimeGrid),
            ("times", StratifiedTimes() if times is None else times, TimeSampler),
        ):
            if not isinstance(value, kind):
                msg = f"`{name}` must be of type {kind.__name__}, received {type(value).__name__}."
                raise TypeError(msg)
        low, high = float(grid.times.detach().min()), float(grid.times.detach().max())
        if low < marginals.low or high > marginals.high:
            msg = (
                f"`grid` spans [{low:g}, {high:g}], but the marginals are known in [{marginals.low:g}, "
                f"{marginals.high:g}] only. Choose their knots from the first to the last time of the grid."
            )
            raise ValueError(msg)
        self.marginals, self.grid, self.starts = marginals, grid, starts
        self.times = StratifiedTimes() if times is None else times
        batch = torch.broadcast_shapes(marginals.batch_shape, grid.batch_shape)
        if starts is not None:
            batch = torch.broadcast_shapes(batch, starts.shape)
        t = time_first(grid.times.unsqueeze(-1), len(batch))
        self._parts = marginals.moments(t)  # each (K + 1, *batch, D), (..., D, D) or (..., D, K)
        mean, scale, *weights = self._parts
        check_moments(t, mean, scale, *weights)
        first = _law(marginals.sigmoids, mean[0], scale[0], *(part[0] for part in weights))
        super().__init__(first.expand(batch), batch, grid.num_steps + 1, validate_args=validate_args)

    def simulate(self, initial: Tensor) -> Tensor:
        """Independent draws at the later grid points behind first states ``(..., D)``; ``(..., K + 1, D)``."""
        lead = [1] * (initial.dim() - self._parts[0].dim() + 1)  # sample dimensions, left of the batch
        mean, scale, *weights = (part[1:].reshape(len(part) - 1, *lead, *part.shape[1:]) for part in self._parts)
        eps = torch.randn(len(mean), *initial.shape, dtype=initial.dtype, device=initial.device)
        if self.marginals.sigmoids is not None:
            eps = self.marginals.sigmoids.apply(weights[0], eps)
        states = mean + scaled(scale, eps)
        return torch.cat([initial.unsqueeze(-2), states.movedim(0, -2)], -2)

    def carried_terms(self, p: PathDistribution, path: Tensor, *, closed: bool) -> PathTerms:
        """Terms of a bound with this law in the guide and the SDE path law `p` in the model.

        Raises:
            ValueError: if `closed` is False, `p` is no `SDEPath`, the grids differ, or the divergence is infinite.
        """
        if not closed:
            msg = (
                f"{self._name()}: marginals have no path density, so the divergence is known in closed form only. "
                'Use SimulationFreeELBO or PathELBO(kl="closed"), or `to_sde_path`.'
            )
            raise ValueError(msg)
        if not isinstance(p, SDEPath):
            msg = (
                f"{self._name()}: the model has a {type(p).__name__}, which has no drift and diffusion in continuous "
                "time. Use SDEPath in the model, or another guide."
            )
            raise ValueError(msg)
        self.check_same_grid(p)
        divergence = self._path_divergence(p, path.shape[:-2]) + self._initial_divergence(p, path[..., 0, :])
        zero = divergence.new_zeros(())
        return PathTerms(zero, zero, divergence)

    def rate(self, p: SDEPath, t: Tensor, eps: Tensor) -> Tensor:
        r"""Integrand :math:`\tfrac12 |\sigma^{-1}(f_q - f_p)|^2` at states of the marginals.

        Args:
            p: path law of the model.
            t: times ``(R, *batch, 1)``.
            eps: standard normal noise of the states, ``(R, *batch, D)``.

        Returns:
            ``(R, *batch)``, per unit of time.

        Raises:
            ValueError: if it is infinite: the diffusion vanishes where the drifts differ, or a scale is 0.
        """
        return control_cost(p, moments_at(self.marginals, t), t, eps)

    def to_sde_path(self, prior: SDE, grid: TimeGrid | None = None) -> SDEPath:
        """The posterior as an ordinary path law with the implied drift and the diffusion of the prior.

        For prediction, importance weighting, and comparison: as steps go to 0 its bounds become those of this law.

        Args:
            prior: SDE of the model.
            grid: solver grid, with steps that are short against the changes of the marginals; that of this law if None.

        Raises:
            TypeError: if `prior` is not an `SDE`.
            ValueError: if the grid leaves the times at which the marginals are known.
        """
        if not isinstance(prior, SDE):
            msg = f"`prior` must be the SDE of the model, received {type(prior).__name__}."
            raise TypeError(msg)
        law = self if grid is None else MarginalPath(self.marginals, grid)
        prior = prior.ito()
        return SDEPath(prior.with_drift(ImpliedDrift(self.marginals, prior)), law.initial, law.grid)

    def with_times(self, times: TimeSampler) -> MarginalPath:
        """Copy whose integral is estimated at other random times."""
        new = copy.copy(self)
        new.times = times
        return new

    def _path_divergence(self, p: SDEPath, batch: torch.Size) -> Tensor:
        ends = self.grid.times[..., 0], self.grid.times[..., -1]
        begin, length = ends[0], ends[1] - ends[0]
        u, weights = self.times.draw(batch, begin)  # (R, *batch)
        t = (begin + length * u).unsqueeze(-1)
        like = self._parts[0]
        eps = torch.randn(*u.shape, like.shape[-1], dtype=like.dtype, device=like.device)
        rate = self.rate(p, t, eps)
        self.times.learn(u, rate.detach() * length)
        return (weights * length * rate).sum(0)

    def _initial_divergence(self, p: SDEPath, first: Tensor) -> Tensor:
        try:
            divergence = kl_divergence(self.initial, p.initial)
        except NotImplementedError:
            divergence = self.initial.log_prob(first) - p.initial.log_prob(first)
        if self.starts is not None:  # of no account inside a series, whatever its value
            divergence = torch.where(self.starts, divergence, torch.zeros_like(divergence))
        if not bool(torch.isfinite(divergence.detach()).all()):
            msg = (
                f"{self._name()}: the divergence of the initial laws is not finite. The first state of the model must "
                "have a density (no Delta), as the marginals have."
            )
            raise ValueError(msg)
        return divergence

    # ---------------------------------------------------------------- what there is not
    def log_prob(self, value: Tensor) -> Tensor:
        """There is none.

        Raises:
            ValueError: always.
        """
        del value
        msg = (
            f"{self._name()}: marginals have no path density. Use SimulationFreeELBO (or PathELBO with "
            'kl="closed"), or to_sde_path(prior, grid) as the guide\'s law for other losses.'
        )
        raise ValueError(msg)

    def score_parts(self, x: Tensor) -> ScoreParts:
        """There are none; see `log_prob`."""
        self.log_prob(x)
        raise NotImplementedError

    def kernels(self, path: Tensor) -> TransitionKernels:
        """There are none; see `log_prob`."""
        self.log_prob(path)
        raise NotImplementedError

    def check_same_grid(self, other: PathDistribution) -> None:
        """Times must agree to round-off."""
        grid = getattr(other, "grid", None)
        if isinstance(grid, TimeGrid) and grid is not self.grid:
            ours, theirs = self.grid.times.detach(), grid.times.detach()
            same = ours.shape[-1] == theirs.shape[-1]
            if not same or not torch.allclose(*torch.broadcast_tensors(ours, theirs)):
                msg = (
                    f"guide and model use different grids: guide {self.grid}, model {grid}. Build one TimeGrid and "
                    "pass it to both."
                )
                raise ValueError(msg)

    def _name(self) -> str:
        return f"MarginalPath at site '{self.site_name}'" if self.site_name else "MarginalPath"


class MarginalFlow(PyroModule):
    r"""Amortised posterior marginals: an encoder reads the series and gives :math:`q_t` at every time.

    The guide of simulation-free training (SDE matching): the model stays what it is, and a training step solves no
    SDE. Use it where the likelihood is a product over times. Marginals are Gaussian unless the encoder has `sigmoids`,
    which let them be skew or have several modes. The posterior paths are those of the SDE with these marginals and the
    prior's diffusion, so every dimension needs noise. `PosteriorSDE` is free of these limits and simulates. Cost: one
    run of the encoder over the observations.

    Args:
        encoder: a `MarginalEncoder`, such as `GRUMarginals` or `LocalMarginals`.

    Raises:
        TypeError: if `encoder` is not a `MarginalEncoder`.

    References:
        As `MarginalPath`.

    Example:
        >>> import torch
        >>> from pyro_sde.sde import NeuralSDE
        >>> from pyro_sde.nn.marginal_encoders import GRUMarginals
        >>> flow = MarginalFlow(GRUMarginals(value_dim=1, state_dim=2))
        >>> law = flow(NeuralSDE(2), TimeGrid([0.0, 0.4, 1.0]), torch.randn(5, 3, 1))
        >>> law
        MarginalPath(batch_shape=(5,), event_shape=(3, 2))
        >>> law.to_sde_path(NeuralSDE(2), TimeGrid([0.0, 1.0], max_step=0.1)).sample().shape
        torch.Size([5, 11, 2])
    """

    def __init__(self, encoder: MarginalEncoder) -> None:
        super().__init__("marginal_flow")  # a prefix in the parameter store; a parent module replaces it
        if not isinstance(encoder, MarginalEncoder):
            msg = (
                f"`encoder` must be a MarginalEncoder, received {type(encoder).__name__}. Try GRUMarginals(O, D); a "
                "GRUEncoder has contexts that jump at observations, which marginals may not."
            )
            raise TypeError(msg)
        self.encoder = encoder

    def forward(self, prior: SDE, grid: TimeGrid, values: Tensor, mask: Tensor | None = None) -> MarginalPath:
        """Law of the path site of a guide given the observed series.

        Args:
            prior: SDE of the model. The drift that the marginals imply is compared with the model's own path law, so
                this argument, there as for every guide, has no influence.
            grid: grid of the model.
            values: ``(*batch, N, O)``; anything, also NaN, where not observed.
            mask: of the shape of `values`, or ``(*batch, N)``; True = observed; everything at valid times if None.

        Raises:
            ValueError: if shapes or dtypes do not fit; the message names the argument.
        """
        del prior
        return MarginalPath(self.encode(grid, values, mask), grid)

    def encode(self, grid: TimeGrid, values: Tensor, mask: Tensor | None = None) -> Marginals:
        """The marginals as functions of time, for a `MarginalPath` on another grid: a window, or times to forecast.

        Shape:
            values: ``(*batch, N, O)`` · mask: of the shape of `values`, or ``(*batch, N)``.
        """
        return self.encoder(grid, values, mask)


def _law(
    sigmoids: SigmoidMap | None, mean: Tensor, scale: Tensor, weights: Tensor | None = None
) -> TorchDistributionMixin:
    """The marginal at one time, event shape ``(D,)``."""
    if sigmoids is not None and weights is not None:
        noise = dist.Normal(torch.zeros_like(mean), 1.0).to_event(1)
        return dist.TransformedDistribution(noise, SigmoidTransform(sigmoids, mean, scale, weights))
    if scale.dim() == mean.dim():
        return dist.Normal(mean, scale).to_event(1)
    return dist.MultivariateNormal(mean, scale_tril=scale)
