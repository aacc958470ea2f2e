r"""Series that share one dynamics and run through it at a tempo of their own, with a learned law of tempi."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ..distributions.sde_path import SDEPath
from ..nn.base import check_positive
from ..ops._arguments import check_numbers
from ..ops.grid import TimeGrid
from ..sde.base import SDE

__all__ = ["LocalGuide", "LocalLaws", "SeriesBatch", "Tempo", "TempoParts", "TempoSDE"]


class SeriesBatch(NamedTuple):
    """B series, or for E members of an ensemble B series each; ``*members`` is ``()`` or ``(E,)``.

    Attributes:
        times: ``(N,)``, increasing; the path lives on these times and has one step per gap.
        values: ``(*members, B, N, O)``; None where there is nothing to compare with. Finite also where masked.
        mask: True = observed, ``(*members, B, N)``; times after the last one observed are no part of the path.
        features: what the encoder reads, ``(*members, B, F)``.
        indices: which of the series of the training set each one is, ``(*members, B)``; None for new series.
        power: exponent of the likelihood. 1 for a bound of the evidence; less for a tempered posterior, where errors
            of the model go on for many observations although the likelihood takes them as independent.
    """

    times: Tensor
    values: Tensor | None
    mask: Tensor
    features: Tensor
    indices: Tensor | None
    power: float = 1.0


class TempoParts(NamedTuple):
    """Parts of a `TempoSDE`; with members, they act on ``(..., E, B, .)`` and hold parameters ``(E, ...)``.

    Attributes:
        prior: SDE of the path in the model.
        posterior: SDE of the path in the guide, ``prior.controlled(...)`` or ``prior.with_drift(...)``, with the
            context as its inputs.
        initial: gives the law of the first state in the model.
        encoder: maps features ``(*members, B, F)`` to the law of the first state in the guide and a context
            ``(*members, B, C)``, the same at all steps.
        likelihood: maps states ``(N, *members, B, D)``, time leftmost, to the `Normal` law of the
            observations ``(N, *members, B, O)``, channel by channel.
    """

    prior: SDE
    posterior: SDE
    initial: Callable[[], TorchDistributionMixin]
    encoder: Callable[[Tensor], tuple[TorchDistributionMixin, Tensor]]
    likelihood: Callable[[Tensor], dist.Normal]


class LocalLaws(NamedTuple):
    """What a guide says about B series: laws of the first state and the log tempo, and the context of the path.

    Attributes:
        first: batch ``(*members, B)``, event ``(D,)``.
        context: ``(*members, B, C)``.
        log_tempo: batch ``(*members, B)`` or one that broadcasts to it; None for tempo 1.
    """

    first: TorchDistributionMixin
    context: Tensor
    log_tempo: TorchDistributionMixin | None


class Tempo(nn.Module):
    r"""Law of tempi, :math:`\log w_i \sim N(m, s^2)` or Student's t, and a law for every series of a training set.

    Args:
        num_series: number of series of the training set.
        scale: s before training, ``> 0``; m starts at 0.
        degrees: degrees of freedom of Student's t, ``> 2``, for sets with a few series far from the others; None for
            the normal law.
        members: number of members of an ensemble; None for a single model.

    Raises:
        ValueError: if a number is not positive.
    """

    def __init__(
        self, num_series: int, *, scale: float = 0.02, degrees: float | None = None, members: int | None = None
    ) -> None:
        super().__init__()
        check_positive("num_series", num_series)
        check_numbers(scale=scale, **({} if degrees is None else {"degrees": degrees}))
        if not (scale > 0 and math.isfinite(scale)):
            msg = f"`scale` must be a finite number > 0, received {scale}: it is the deviation of log tempi."
            raise ValueError(msg)
        if degrees is not None and not 2 < degrees < math.inf:
            msg = f"`degrees` must be > 2, so that tempi have a variance, or None; received {degrees}."
            raise ValueError(msg)
        self.degrees = degrees
        lead = () if members is None else (check_positive("members", members),)
        self.loc = nn.Parameter(torch.zeros(*lead, 1))
        self.log_scale = nn.Parameter(torch.full((*lead, 1), math.log(scale)))
        self.series_loc = nn.Parameter(torch.zeros(*lead, num_series))
        self.series_log_scale = nn.Parameter(torch.full((*lead, num_series), math.log(scale)))

    def population(self) -> TorchDistributionMixin:
        """Law of the log tempo of any series, ``(*members, 1)``."""
        if self.degrees is None:
            return dist.Normal(self.loc, self.log_scale.exp())
        return dist.StudentT(self.degrees, self.loc, self.log_scale.exp())

    def of_series(self, index: Tensor | None) -> TorchDistributionMixin:
        """Law in the guide, ``(*members, B)``: learned for a series of the training set, the population for others."""
        if index is None:
            return self.population()
        return dist.Normal(self.series_loc.gather(-1, index), self.series_log_scale.gather(-1, index).exp())


class TempoSDE(PyroModule):
    r"""Latent SDE whose series share one dynamics, each at a tempo of its own.

    .. math::
        \log w_i \sim N(m, s^2), \qquad dz = w_i f(z)\,dt + \sqrt{w_i}\,\sigma(z)\,dW, \qquad
        y_n \sim p(y \mid z_{t_n})

    The SDE runs on a clock of its own, :math:`\tau = w_i t`: its grid is that of the times :math:`w_i t_n`, so that
    tempo is no part of drift or diffusion. The guide has a free law of the tempo for every series of the training set
    and an encoder for the first state and a context; a new series has the population's tempo until it is told better.
    `model` and `guide` are plain Pyro functions of a `SeriesBatch` with sites "log_tempo" (if there is a `tempo`), "z"
    and "y"; the loss with `PathELBO` is an exact bound of the discretised model, whose path is an Euler-Maruyama
    chain with one step per gap of the times.

    With `members`, E models are trained at once, in a plate "members" left of the plate "series": every part then has
    parameters ``(E, ...)``, and the loss is the sum of the losses of the members.

    Args:
        parts: the SDEs and networks.
        tempo: law of tempi; None for series that all run at tempo 1.
        members: number E of members of an ensemble; None for a single model.

    Raises:
        ValueError: if `members` is not positive.

    References:
        Øksendal (2003), Stochastic Differential Equations, section 8.5 (the change of time).

    Example:
        >>> from pyro_sde.sde.second_order import SecondOrderSDE
        >>> prior = SecondOrderSDE(lambda z: -0.1 * z[..., 1:], dim=1, stiffness=1.0)
        >>> parts = TempoParts(
        ...     prior,
        ...     prior.controlled(lambda t, z, context: 0.0 * z),
        ...     lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1),
        ...     lambda x: (dist.Normal(x, 0.1).to_event(1), x[..., :1]),
        ...     lambda z: dist.Normal(z[..., :1], 0.1),
        ... )
        >>> model = TempoSDE(parts, Tempo(num_series=5))
        >>> model.rollout(model.locate(torch.zeros(4, 2)), torch.linspace(0.0, 3.0, 7), num_samples=6).shape
        torch.Size([6, 4, 7, 2])
    """

    def __init__(self, parts: TempoParts, tempo: Tempo | None = None, *, members: int | None = None) -> None:
        super().__init__("tempo_sde")
        self.members = None if members is None else check_positive("members", members)
        self.prior, self.posterior = parts.prior, parts.posterior
        self.initial, self.encoder, self.likelihood = parts.initial, parts.encoder, parts.likelihood
        self.tempo = tempo

    @pyro_method
    def model(self, batch: SeriesBatch) -> Tensor:
        """Pyro model; returns the observations ``(*members, B, N, O)``."""
        with self._plates(batch):
            grid = self._clock(batch, None if self.tempo is None else self.tempo.population())
            z = pyro.sample("z", SDEPath(self.prior, self.initial(), grid))
            law = self._observation_law(grid.observed(z)).mask(batch.mask.unsqueeze(-1)).to_event(2)
            with poutine.scale(scale=batch.power):
                return pyro.sample("y", law, obs=batch.values)

    @pyro_method
    def guide(self, batch: SeriesBatch) -> Tensor:
        """Pyro guide; returns the path ``(*members, B, K + 1, D)``."""
        return self.sample_path(batch, self.locate(batch.features, batch.indices))

    def locate(self, features: Tensor, index: Tensor | None = None) -> LocalLaws:
        """What the guide says about series; arguments as in `SeriesBatch`."""
        return LocalLaws(*self.encoder(features), None if self.tempo is None else self.tempo.of_series(index))

    def sample_path(self, batch: SeriesBatch, local: LocalLaws) -> Tensor:
        """The statements of a guide with any local laws, for a guide of your own."""
        with self._plates(batch):
            grid = self._clock(batch, local.log_tempo)
            return pyro.sample("z", self._path(local, grid))

    def rollout(
        self,
        local: LocalLaws,
        times: Tensor,
        *,
        num_samples: int,
        log_tempo: Tensor | None = None,
        prior: bool = False,
    ) -> Tensor:
        """States of series at times ``(N,)``, without gradients.

        Args:
            local: from `locate`, or the `LocalGuide` of series of which more is known.
            times: ``(N,)``, increasing, from the start of the series on.
            num_samples: number S of paths.
            log_tempo: ``(S, *members, B)``; drawn from `local` if None.
            prior: follow the dynamics of the prior from the first state of the guide, not those of the guide.

        Returns:
            ``(S, *members, B, N, D)``.
        """
        lead = (num_samples, *local.context.shape[:-1])
        with torch.no_grad():
            if log_tempo is None:
                law = local.log_tempo
                log_tempo = local.context.new_zeros(lead) if law is None else law.expand(lead).sample()
            grid = TimeGrid(times * log_tempo.exp().unsqueeze(-1))  # (S, *members, B, N)
            return (SDEPath(self.prior, local.first, grid) if prior else self._path(local, grid)).sample()

    def _path(self, local: LocalLaws, grid: TimeGrid) -> SDEPath:
        context = local.context
        rows = context.unsqueeze(-2).expand(*context.shape[:-1], grid.num_steps, context.shape[-1])
        return SDEPath(self.posterior, local.first, grid, inputs=rows)

    @contextmanager
    def _plates(self, batch: SeriesBatch) -> Iterator[None]:
        with ExitStack() as stack:
            if self.members is not None:
                stack.enter_context(pyro.plate("members", self.members, dim=-2))
            stack.enter_context(pyro.plate("series", batch.mask.shape[-2], dim=-1))
            yield

    def _clock(self, batch: SeriesBatch, law: TorchDistributionMixin | None) -> TimeGrid:
        """Grid of the SDE's own clock, ``(*members, B, N)``."""
        times = batch.times.expand(batch.mask.shape)
        if law is not None:
            times = times * pyro.sample("log_tempo", law).exp().unsqueeze(-1)
        return TimeGrid(times, mask=batch.mask)

    def _observation_law(self, states: Tensor) -> dist.Normal:
        """Law of observations ``(*members, B, N, O)`` given states ``(*members, B, N, D)``."""
        law = self.likelihood(states.movedim(-2, 0))
        return dist.Normal(law.loc.movedim(0, -2), law.scale.expand(law.loc.shape).movedim(0, -2))


class LocalGuide(PyroModule):
    """Guide of new series: free laws of the first state and the tempo, and a free context, for a model as it is.

    For series of which more is known than an encoder reads. It starts at what the encoder says; train it with the same
    loss as the model, on the parameters of the guide alone.

    Args:
        model: the trained model; its parameters are used and not trained by this guide.
        features: of the series, ``(*members, B, F)``.
        spread: deviation of the log tempo before training, ``> 0``.

    Raises:
        ValueError: if `spread` is not positive.
    """

    def __init__(self, model: TempoSDE, features: Tensor, *, spread: float = 0.02) -> None:
        super().__init__("local_guide")
        if not (spread > 0 and math.isfinite(spread)):
            msg = f"`spread` must be a finite number > 0, received {spread}: it is the deviation of log tempi."
            raise ValueError(msg)
        with torch.no_grad():
            start = model.locate(features)
            first = start.first.base_dist
            tempo = None if start.log_tempo is None else start.log_tempo.mean.expand(features.shape[:-1])
        self._model = (model,)  # in a tuple: its parameters are not those of this guide
        self.loc = nn.Parameter(first.loc.clone())
        self.log_scale = nn.Parameter(first.scale.log())
        self.context = nn.Parameter(start.context.clone())
        self.tempo_loc = None if tempo is None else nn.Parameter(tempo.clone())
        self.tempo_log_scale = None if tempo is None else nn.Parameter(torch.full_like(tempo, math.log(spread)))

    def forward(self) -> LocalLaws:
        """The local laws as they are now."""
        tempo = None
        if self.tempo_loc is not None and self.tempo_log_scale is not None:
            tempo = dist.Normal(self.tempo_loc, self.tempo_log_scale.exp())
        return LocalLaws(dist.Normal(self.loc, self.log_scale.exp()).to_event(1), self.context, tempo)

    def guide(self, batch: SeriesBatch) -> Tensor:
        """Pyro guide of `TempoSDE.model`; returns the path ``(*members, B, K + 1, D)``."""
        return self._model[0].sample_path(batch, self())
