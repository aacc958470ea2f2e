r"""Particle filter for any path law: evidence, filtering law, and the history that a smoother needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..distributions.base import PathDistribution
from ..ops.resampling import RESAMPLING, resample
from ._particle_schedule import entry_of, observation_schedule, take
from ._particle_stepper import Stepper
from ._particle_steps import stepwise

__all__ = ["FilteredParticles", "LogLikelihood", "particle_filter"]

LogLikelihood = Callable[[Tensor, "int | Tensor"], Tensor]


@dataclass(frozen=True)
class FilteredParticles:
    r"""Outcome of a particle filter of P particles.

    Attributes:
        log_evidence: :math:`\log \hat Z`, nats, ``(*batch,)``; :math:`E[\hat Z] = p(y)` exactly.
        increments: estimates of :math:`\log p(y_n \mid y_{<n})`, ``(*batch, N)``; they sum to `log_evidence`.
        sizes: effective number of particles after each observation, before resampling, ``(*batch, N)``.
        states: states at all T grid points, ``(P, *batch, T, D)``; at the last one only, ``(P, *batch, 1, D)``, unless
            ``keep="all"``. They are those before resampling, and belong to `log_weights`.
        log_weights: normalised log-weights, ``(P, *batch, T)`` or ``(P, *batch, 1)``.
        ancestors: index of the particle at point k from which that at point k + 1 descends, ``(P, *batch, T - 1)``;
            None unless ``keep="all"``.
        law: the path law that was filtered.

    References:
        Del Moral (2004), Feynman-Kac Formulae, section 7.4 (the estimate of the evidence is unbiased).
    """

    log_evidence: Tensor
    increments: Tensor
    sizes: Tensor
    states: Tensor
    log_weights: Tensor
    ancestors: Tensor | None
    law: PathDistribution

    def mean(self) -> Tensor:
        r"""Filtering means :math:`E[z_k \mid y_{\le k}]`, ``(*batch, T, D)``; T is 1 unless all states were kept."""
        return (self._weights() * self.states).sum(0)

    def variance(self) -> Tensor:
        """Filtering variances, ``(*batch, T, D)``."""
        return (self._weights() * (self.states - self.mean()).square()).sum(0)

    def _weights(self) -> Tensor:
        weights = self.log_weights.exp()
        return weights.unsqueeze(-1) if self.states.dim() > weights.dim() else weights


def particle_filter(
    path: PathDistribution,
    log_likelihood: LogLikelihood,
    num_particles: int,
    *,
    guide: PathDistribution | None = None,
    resampling: str = "systematic",
    threshold: float = 0.5,
    gradient: str = "pathwise",
    keep: str = "last",
) -> FilteredParticles:
    r"""Filter a path by particles that move by its law, or by a guide's, and are weighted by their likelihood.

    .. math:: w_k = \bar w_{k-1}\, \frac{p(z_k \mid z_{k-1})}{q(z_k \mid z_{k-1})}\, p(y_k \mid z_k), \qquad
        \hat Z = \prod_k \sum_p w_k^p

    The estimate of the evidence is unbiased on the natural scale for any number of particles, any guide that covers the
    law, and both fixed and adaptive resampling; its logarithm is a lower bound in the mean. Batches are filtered in
    parallel, each series with its own resampling times and, on a ragged grid, its own observation times. Use it to
    evaluate a model where importance sampling of whole paths degenerates (long series), or train with it
    (`FilteringELBO`). Cost: O(P) for each grid point, memory O(P), or O(P T) with ``keep="all"`` or gradients.

    Gradients flow through the weights and through reparameterised steps. What they leave out is how parameters change
    the choice of ancestors:

    * "pathwise" ignores it, as FIVO does: low variance, biased. Steps that are not reparameterised are ignored too.
    * "score" multiplies the weight of every new particle by that of its ancestor over itself as a constant, and does
      the same for the density of steps without reparameterisation: the gradient of :math:`\hat Z` is then unbiased for
      that of p(y), of higher variance.

    Args:
        path: law of the path: `SDEPath` with any solver, `GaussianPath` or `MarkovPath`.
        log_likelihood: ``log_likelihood(z, n)`` with z ``(P, *batch, D)`` returns ``(P, *batch)`` for observation n: an
            int, or int64 ``(*batch,)`` where series of a ragged grid are at different observations. An
            `EmissionLikelihood`, or any function; return 0 where nothing is observed.
        num_particles: P.
        guide: law that particles move by, on the same grid: their weights get the ratio of the densities of both. None:
            `path` itself (bootstrap filter), which needs no density.
        resampling: "systematic", "stratified" or "multinomial", see `pyro_sde.ops.resampling.resample`.
        threshold: resample after an observation where the effective number of particles is below `threshold` times P;
            1 resamples whenever weights are not equal, 0 never (importance sampling).
        gradient: "pathwise" or "score".
        keep: "last" or "all" states; a smoother needs all.

    Raises:
        ValueError: if an option is not as described; the grids differ; `log_likelihood` returns another shape; all
            particles of a series have likelihood 0 or one has NaN, with observation, time and what was returned.
        TypeError: if particles cannot step such a law.

    References:
        Gordon, Salmond, Smith (1993), Novel approach to nonlinear/non-Gaussian Bayesian state estimation;
        Maddison et al. (2017), Filtering variational objectives, arXiv 1705.09279, algorithm 1;
        Ścibior and Wood (2021), Differentiable particle filtering without modifying the forward pass, arXiv 2106.10314,
        algorithm 2, for "score".

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_sde import SDEPath, TimeGrid
        >>> from pyro_sde.infer.emissions import EmissionLikelihood
        >>> from pyro_sde.sde import DoubleWell
        >>> grid = TimeGrid(torch.linspace(0.0, 4.0, 9), max_step=0.1)
        >>> law = SDEPath(DoubleWell(), dist.Normal(torch.zeros(1), 1.0).to_event(1), grid)
        >>> likelihood = EmissionLikelihood(lambda z: dist.Normal(z, 0.3), torch.ones(9, 1))
        >>> filtered = particle_filter(law, likelihood, 1000)
        >>> filtered.log_evidence.shape, filtered.mean().shape
        (torch.Size([]), torch.Size([1, 1]))
    """
    _check_options(num_particles, threshold)
    _check_choice("resampling", resampling, RESAMPLING)
    _check_choice("gradient", gradient, ("pathwise", "score"))
    _check_choice("keep", keep, ("all", "last"))
    if not callable(log_likelihood):
        msg = f"`log_likelihood` must be a function of states and an index, received {type(log_likelihood).__name__}."
        raise TypeError(msg)
    target = _stepper("path", path)
    proposal = target
    if guide is not None:
        proposal = _stepper("guide", guide)
        path.check_same_grid(guide)
        if guide.event_shape != path.event_shape or guide.batch_shape != path.batch_shape:
            msg = (
                f"`guide` must have the shapes of `path`, batch {tuple(path.batch_shape)} and event "
                f"{tuple(path.event_shape)}; received batch {tuple(guide.batch_shape)} and event "
                f"{tuple(guide.event_shape)}. Use `.expand(batch_shape)`."
            )
            raise ValueError(msg)
    options = _Options(num_particles, resampling, threshold, gradient == "score", keep == "all")
    return _Run(target, proposal, log_likelihood, options).result()


@dataclass(frozen=True)
class _Options:
    count: int
    method: str
    threshold: float
    score: bool
    keep: bool


class _Run:
    """One pass of a filter over the grid."""

    def __init__(self, target: Stepper, proposal: Stepper, log_likelihood: LogLikelihood, options: _Options) -> None:
        self.target, self.proposal = target, proposal
        self.guided = target is not proposal
        self.log_likelihood = log_likelihood
        self.options = options
        self.batch = target.law.batch_shape
        self.schedule = observation_schedule(target)
        self.state = proposal.first(options.count)
        # normalised after the last observation of each series, times what guide and law differ by since then
        dtype = self.state.dtype if self.state.is_floating_point() else torch.get_default_dtype()
        self.log_weights = torch.full(
            (options.count, *self.batch), -math.log(options.count), device=self.state.device, dtype=dtype
        )
        if self.guided:
            self.log_weights = (
                self.log_weights + target.first_log_density(self.state) - proposal.first_log_density(self.state)
            )
        if options.score and not target.law.initial.has_rsample:
            self.log_weights = self.log_weights + _surrogate(proposal.first_log_density(self.state))
        self.carried: tuple[Tensor, ...] | None = None
        self.increments: list[tuple[Tensor, Tensor]] = []
        self.places: list[tuple[int | Tensor, Tensor | None]] = []
        self.history: list[tuple[Tensor, Tensor]] = []
        self.ancestors: list[Tensor | None] = []

    def result(self) -> FilteredParticles:
        last = self.target.num_steps
        for k in range(last + 1):
            need = self._observe(k)
            if self.options.keep or k == last:
                self.history.append((self.state, self.log_weights.log_softmax(0)))
            if k < last:
                self.ancestors.append(self._resample(need))
                self._move(k)
        increments, sizes = self._by_observation()
        states, weights = zip(*self.history, strict=True)
        tail = len(self.target.tail)
        return FilteredParticles(
            increments.sum(-1),
            increments,
            sizes,
            torch.stack(states, -1 - tail),
            torch.stack(weights, -1),
            self._all_ancestors() if self.options.keep else None,
            self.target.law,
        )

    def _observe(self, k: int) -> Tensor | None:
        """Weigh the particles by what is observed at point k; where to resample, None if nowhere."""
        observed = self.schedule[k]
        if observed is None:
            return None
        n, active = observed
        term = self.log_likelihood(self.state, n)
        if not isinstance(term, Tensor) or term.shape != self.log_weights.shape:
            received = tuple(term.shape) if isinstance(term, Tensor) else type(term).__name__
            msg = (
                f"`log_likelihood` must return one number per particle and series, shape "
                f"{tuple(self.log_weights.shape)}, received {received} for observation {entry_of(n)}."
            )
            raise ValueError(msg)
        if active is not None:
            term = torch.where(active, term, term.new_zeros(()))
        weights = self.log_weights + term
        total = weights.logsumexp(0)
        if not bool(torch.isfinite(total.detach()).all()):
            self._report(k, n, term, total)
        if active is not None:
            total = torch.where(active, total, total.new_zeros(()))
        self.log_weights = weights - total
        with torch.no_grad():
            sizes = self.log_weights.exp().square().sum(0).reciprocal()
            if active is not None:  # so that series that observe nothing are not resampled either
                sizes = torch.where(active, sizes, sizes.new_tensor(self.options.count))
        self.increments.append((total, sizes))
        self.places.append((n, active))
        if self.options.threshold == 0:
            return None
        need = sizes < self.options.threshold * self.options.count
        return need if bool(need.any()) else None

    def _resample(self, need: Tensor | None) -> Tensor | None:
        """Replace the particles of the series that need it by their descendants; the ancestors, None for themselves."""
        if need is None:
            return None
        count = self.options.count
        ancestors = resample(self.log_weights.detach(), self.options.method)
        everywhere = bool(need.all())
        if not everywhere:
            own = torch.arange(count, device=need.device).reshape(count, *[1] * need.dim())
            ancestors = torch.where(need, ancestors, own)
        fresh = torch.full_like(self.log_weights, -math.log(count))
        if self.options.score:
            fresh = fresh + _surrogate(take(self.log_weights, ancestors))
        self.log_weights = fresh if everywhere else torch.where(need, fresh, self.log_weights)
        self.state = take(self.state, ancestors)
        self.carried = None if self.carried is None else tuple(take(part, ancestors) for part in self.carried)
        return ancestors

    def _move(self, k: int) -> None:
        score = self.options.score and not self.proposal.law.has_rsample
        move = self.proposal.advance(k, self.state, self.carried, scored=self.guided or score)
        if move.log_density is not None:
            if self.guided:
                ratio = self.target.log_density(k, self.state, move.state) - move.log_density
                self.log_weights = self.log_weights + ratio
            if score:
                self.log_weights = self.log_weights + _surrogate(move.log_density)
        self.state, self.carried = move.state, move.carried

    def _by_observation(self) -> tuple[Tensor, Tensor]:
        """Increments and effective sizes of every observation, ``(*batch, N)``; 0 and P where it is padding."""
        points, _ = self.target.observation_points()
        size = points.shape[-1]
        empty = self.log_weights.new_zeros((*self.batch, size))
        increments, sizes = empty, empty + self.options.count
        if all(isinstance(n, int) for n, _ in self.places):
            index = torch.tensor([n for n, _ in self.places], dtype=torch.long, device=empty.device)
            stacked = [torch.stack(part, -1) for part in zip(*self.increments, strict=True)]
            return increments.index_copy(-1, index, stacked[0]), sizes.index_copy(-1, index, stacked[1])
        for (n, active), (total, size_) in zip(self.places, self.increments, strict=True):
            where = torch.nn.functional.one_hot(torch.as_tensor(n, device=empty.device), size).bool()
            if active is not None:
                where = where & active.unsqueeze(-1)
            increments = torch.where(where, total.unsqueeze(-1), increments)
            sizes = torch.where(where, size_.unsqueeze(-1), sizes)
        return increments, sizes

    def _all_ancestors(self) -> Tensor:
        count = self.options.count
        shape = (count, *self.batch)
        own = torch.arange(count, device=self.state.device).reshape(count, *[1] * len(self.batch)).expand(shape)
        parts = [own if part is None else part for part in self.ancestors]
        return torch.stack(parts, -1) if parts else own.new_zeros((*shape, 0))

    def _report(self, k: int, n: int | Tensor, term: Tensor, total: Tensor) -> None:
        series = tuple((~torch.isfinite(total)).nonzero()[0].tolist())
        column = term.detach()[(slice(None), *series)]
        state = self.state.detach()[(slice(None), *series)]
        place = f"observation {entry_of(n, series)}, {self.target.time(k)} (grid point {k})"
        place += f", series {list(series)}" if series else ""
        lost = int((~torch.isfinite(state.double()).reshape(len(state), -1).all(-1)).sum())
        if bool((column == -torch.inf).all()):
            reason = (
                f"all {len(column)} particles are dead: the likelihood is 0 (`log_likelihood` is -inf) at all of them. "
                f"Their states span {float(state.min()):.4g} to {float(state.max()):.4g}. Use a likelihood of full "
                "support, such as one of larger noise, more particles, or a guide that knows the observations"
            )
        else:
            count = int((~torch.isfinite(column)).sum())
            values = sorted({str(float(v)) for v in column[~torch.isfinite(column)].unique()[:3]})
            what = f"{', '.join(values)} for {count} of {len(column)} particles" if count else "finite values"
            reason = f"the weights are not finite: `log_likelihood` returned {what}"
            reason += f", and {lost} states are not finite" if lost else ""
            if not count:
                reason += ", so the densities of `guide` and `path` are at fault"
        msg = f"particle filter at {place}: {reason}."
        raise ValueError(msg)


def _stepper(name: str, law: PathDistribution) -> Stepper:
    try:
        return stepwise(law)
    except TypeError as error:
        msg = f"`{name}`: {error}"
        raise TypeError(msg) from None


def _surrogate(term: Tensor) -> Tensor:
    """Zero, with the gradient of `term`."""
    return term - term.detach()


def _check_options(num_particles: object, threshold: object) -> None:
    if isinstance(num_particles, bool) or not isinstance(num_particles, int) or num_particles < 1:
        msg = f"`num_particles` must be a positive integer, received {num_particles!r}."
        raise ValueError(msg)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        msg = f"`threshold` must be a number in [0, 1], received {threshold!r}. It is a part of the particles."
        raise ValueError(msg)


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        msg = f"`{name}` must be one of {choices}, received {value!r}."
        raise ValueError(msg)
