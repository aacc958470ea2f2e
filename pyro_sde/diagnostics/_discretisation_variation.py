r"""Realised variation of paths against that of the model's diffusion, and increments between observations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..distributions.base import PathDistribution
from ..distributions.gaussian_kernels import GaussianKernels
from ..distributions.kernels import EulerKernels
from ..distributions.kl import site_law
from ..distributions.sde_path import SDEPath
from ..infer.streams import seeded
from ..infer.traces import TracePair
from ..ops._arguments import check_floating
from ._discretisation_runs import Runs, path_sites

__all__ = ["IncrementCheck", "QuadraticVariation", "SiteVariation", "quadratic_variation", "site_variations"]

_LAGS = (1, 2, 4)
_NEAR = 0.2  # a ratio within 20 % of 1 is no finding
_CANCELS = 0.6  # ratio at the largest lag over that at the smallest, below which increments cancel
_SURE = 3.0  # standard errors
_OUTER = 0.01  # share of paths of the model on each side of the range of an `IncrementCheck`


class QuadraticVariation(NamedTuple):
    r"""Realised variation over that of a law, per state dimension; 1 for paths of the law on fine grids.

    .. math:: R_m = \frac{\sum_k (z_{k+m} - z_k)^2}{\sum_k \sum_{j<m} (\sigma_{k+j}\sigma_{k+j}^\top)_{dd} h_{k+j}}

    Attributes:
        lags: numbers of steps m.
        ratio: R, ``(len(lags), D)``; NaN where the law has no noise.
        standard_error: of the ratio, ``(len(lags), D)``: over draws, or for one draw that of a path of the law.

    References:
        Barndorff-Nielsen and Shephard (2002), Econometric analysis of realized volatility, JRSS B 64.
    """

    lags: tuple[int, ...]
    ratio: Tensor
    standard_error: Tensor

    def verdict(self, dimension: int) -> str:
        """What the ratios of one dimension say, in words."""
        first, last = float(self.ratio[0, dimension]), float(self.ratio[-1, dimension])
        least = max(_NEAR, _SURE * float(self.standard_error[0, dimension]))
        if math.isnan(first):
            return "no noise in this dimension"
        if first < 1 - least:
            return "smoother than the model's SDE: a point-like guide, or a diffusion larger than the paths need"
        if first > 1 + least:
            return "rougher than the model's SDE: a collapsed diffusion, independent states, or steps with much drift"
        if last < _CANCELS * first:
            return "increments cancel over longer lags: the guide treats neighbouring states as independent"
        return "as the model's SDE"


class IncrementCheck(NamedTuple):
    r"""Squared increments between observation times under the guide, over their mean under the model without data.

    Averaged over data sets of the model itself, the posterior mean of :math:`S = \sum_i (z_{t_{i+1}} - z_{t_i})^2`
    equals its prior mean, by the tower property. So a ratio outside what single paths of the model give says that the
    data ask for another diffusion (or drift) than the model has; where steps are small against the gaps between
    observations, the variation of the path itself cannot say it, because guide and model share their diffusion.

    Attributes:
        ratio: mean over draws, ``(D,)``.
        low: 1 % quantile of the same ratio for single draws of the model, ``(D,)``.
        high: 99 % quantile, ``(D,)``.

    Derivation:
        With y drawn from the model, :math:`E_y\,E[S \mid y] = E[S]`.
    """

    ratio: Tensor
    low: Tensor
    high: Tensor

    def verdict(self, dimension: int) -> str:
        """What the ratio of one dimension says, in words."""
        ratio = float(self.ratio[dimension])
        if ratio < float(self.low[dimension]):
            return "smaller than the model expects: its diffusion is too large for the data"
        if ratio > float(self.high[dimension]):
            return "larger than the model expects: its diffusion is too small for the data"
        return "as the model expects"


class SiteVariation(NamedTuple):
    """What is known of one path site.

    Attributes:
        site: its name.
        variation: None if the law of the model has no known diffusion.
        increments: None if the law has no grid with two observations, or cannot be sampled.
        shared: whether guide and model have one diffusion, so that the variation is 1 by construction.
    """

    site: str
    variation: QuadraticVariation | None
    increments: IncrementCheck | None
    shared: bool


def quadratic_variation(path: Tensor, law: PathDistribution, *, lags: Sequence[int] = _LAGS) -> QuadraticVariation:
    r"""Compare the realised variation of paths with that of the diffusion of a law along them.

    Use it for observed paths without noise, where the ratio tells a wrong diffusion at once (0.25 if the model's is
    twice too large), and for draws of a posterior. Independent states have a ratio of about 1 at lag 1, where their
    spread fits the diffusion, and 1/m at lag m: look at more than one lag. Drift adds :math:`O(mh)`.

    Args:
        path: draws ``(S, *batch, T, D)`` on the grid of the law; series of one draw are pooled.
        law: an `SDEPath`, `GaussianPath` or other law with Gaussian kernels.
        lags: increasing numbers of steps, each below T.

    Returns:
        Ratios and standard errors.

    Raises:
        TypeError: if `path` is no floating-point tensor, or `law` no path law.
        ValueError: if `path` or `lags` have a wrong shape, or the kernels of the law are not Gaussian.

    References:
        Barndorff-Nielsen and Shephard (2002), Econometric analysis of realized volatility, JRSS B 64 (the variation);
        Andersen, Bollerslev, Diebold, Labys (2000), Great realizations, Risk (its signature over lags).

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro_sde import SDEPath, TimeGrid
        >>> from pyro_sde.sde import OrnsteinUhlenbeck
        >>> _ = torch.manual_seed(0)
        >>> grid = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.01)
        >>> def law(scale):
        ...     return SDEPath(OrnsteinUhlenbeck(1.0, scale), dist.Normal(torch.zeros(1), 1.0).to_event(1), grid)
        >>> found = quadratic_variation(law(1.0).sample((500,)), law(2.0))
        >>> print(f"{found.ratio[0, 0]:.2f}: {found.verdict(0)[:8]}")
        0.25: smoother
    """
    check_floating(path=path)
    if not bool(path.isfinite().all()):
        msg = "`path` must be finite; a path with gaps has no realised variation."
        raise ValueError(msg)
    if not isinstance(law, PathDistribution):
        msg = f"`law` must be a path law, received {type(law).__name__}."
        raise TypeError(msg)
    points, size = law.event_shape
    if path.dim() < 3 or path.shape[-2:] != law.event_shape or not _covers(path.shape[:-2], law.batch_shape):
        batch = tuple(law.batch_shape)
        msg = (
            f"`path` must have shape (S, *batch, {points}, {size}) for a law of batch shape {batch}, received "
            f"{tuple(path.shape)}. Unsqueeze a single draw."
        )
        raise ValueError(msg)
    given = tuple(lags) if isinstance(lags, Iterable) else ()
    whole = tuple(int(lag) for lag in given if isinstance(lag, Integral))
    if not whole or len(whole) < len(given) or any(a >= b for a, b in pairwise((0, *whole, points))):
        msg = f"`lags` must be increasing integers from 1 to below the {points} points of a path, received {lags!r}."
        raise ValueError(msg)
    with torch.no_grad():
        variance = _step_variance(law, path)
        if variance is None:
            msg = (
                f"`law` is a {type(law).__name__} whose kernels are not Gaussian, so that its diffusion is not known. "
                "Pass the SDEPath of the same SDE with the default solver."
            )
            raise ValueError(msg)
        return _ratios(whole, [_sums(path, variance, lag) for lag in whole])


def _covers(shape: torch.Size, batch: torch.Size) -> bool:
    """Whether draws of this shape have a value for every member of a batch."""
    pairs = zip(reversed(batch), reversed(shape), strict=False)
    return len(batch) <= len(shape) and all(b in (1, n) for b, n in pairs)


class _Sums(NamedTuple):
    """Sums over the windows of one lag, ``(S, D)``, and the relative variance of the first one for Gaussian steps."""

    realised: Tensor
    expected: Tensor
    noise: Tensor


def _sums(path: Tensor, variance: Tensor, lag: int) -> _Sums:
    increments = path.diff(dim=-2)  # (S, *batch, K, D)
    moved = increments.unfold(-2, lag, 1).sum(-1).double()
    window = variance.unfold(-2, lag, 1).sum(-1)
    # Overlapping windows of m equal steps v: var sum = n 2 v^2 m (2 m^2 + 1) / 3, mean n m v, with n the number of
    # steps; unequal steps count as (sum v)^2 / sum v^2.
    steps, squares = _total(variance), _total(variance.square())
    noise = 2 * (2 * lag**2 + 1) / (3 * lag) * squares / steps.square()
    return _Sums(_total(moved.square()), _total(window), noise)


def _total(value: Tensor) -> Tensor:
    """Sum over everything but draws and dimensions."""
    return value.flatten(1, -2).sum(1)


def _ratios(lags: tuple[int, ...], sums: Sequence[_Sums]) -> QuadraticVariation:
    ratios, errors = [], []
    for part in sums:
        ratio = torch.where(part.expected > 0, part.realised / part.expected, torch.nan)
        alone = len(ratio) == 1
        error = part.noise[0].sqrt() if alone else ratio.std(0) / math.sqrt(len(ratio))
        ratios.append(ratio.mean(0))
        errors.append(torch.where(ratios[-1].isnan(), torch.nan, error))
    return QuadraticVariation(lags, torch.stack(ratios).cpu(), torch.stack(errors).cpu())


def _step_variance(law: PathDistribution, path: Tensor) -> Tensor | None:
    """Variances of the steps of a law along paths, ``(S, *batch, K, D)`` in float64; None if it does not know them."""
    try:
        kernels = law.kernels(path)
    except (NotImplementedError, ValueError):  # a solver without a density
        return None
    if isinstance(kernels, EulerKernels):
        diffusion = kernels.diffusion.double()
        square = diffusion.square().sum(-1) if kernels.noise.matrix_dims else diffusion.square()
        variance = square * kernels.safe_steps.double()
    elif isinstance(kernels, GaussianKernels):
        variance = kernels.range.factor.square().sum(-1)
    else:
        return None
    variance = torch.where(kernels.moving, variance, torch.zeros_like(variance))  # (K, ..., D)
    return variance.expand(path.shape[-2] - 1, *path.shape[:-2], path.shape[-1]).movedim(0, -2)


def site_variations(runs: Runs) -> list[SiteVariation]:
    """Variation of every path site of runs on one grid."""
    return [_site_variation(name, runs) for name in path_sites(runs.traces[0])]


def _site_variation(name: str, runs: Runs) -> SiteVariation:
    sums: dict[int, list[_Sums]] = {}
    increments: list[tuple[Tensor, Tensor]] = []
    shared = known = True
    for draw, traces in enumerate(runs.traces):
        law, path = _law_and_draws(name, traces, runs.nesting)
        variance = _step_variance(law, path)
        known = known and variance is not None
        for lag in (lag for lag in _LAGS if lag < path.shape[-2] and variance is not None):
            sums.setdefault(lag, []).append(_sums(path, variance, lag))  # type: ignore[arg-type]
        shared = shared and _shares_diffusion(name, traces)
        increments += _increments(law, path, draw)
    variation = None
    if known and sums:
        variation = _ratios(tuple(sums), [_Sums(*map(torch.cat, zip(*parts, strict=True))) for parts in sums.values()])
    check = None
    if increments:
        guide, model = (torch.cat(parts) for parts in zip(*increments, strict=True))  # (P, D)
        single = model / model.mean(0)
        low, high = torch.quantile(single, torch.tensor([_OUTER, 1 - _OUTER], dtype=single.dtype), dim=0)
        check = IncrementCheck(guide.mean(0) / model.mean(0), low, high)
    return SiteVariation(name, variation, check, shared)


def _law_and_draws(name: str, traces: TracePair, nesting: int) -> tuple[PathDistribution, Tensor]:
    """Path law of the model (of the guide if it has none there) and draws ``(P, *batch, T, D)`` of the guide."""
    model: Any = traces.model.nodes[name]
    guide: Any = traces.guide.nodes[name]
    law, _, reinterpreted = site_law(model["fn"]) or site_law(guide["fn"])  # type: ignore[misc]
    path, axis = guide["value"].detach(), nesting + 2 + reinterpreted
    return law, path.movedim(-axis, 0) if nesting and path.dim() >= axis else path.unsqueeze(0)


def _shares_diffusion(name: str, traces: TracePair) -> bool:
    """Whether both have the steps of an SDE: then their diffusions are equal, or the bound would have raised."""
    sites = [site_law(trace.nodes[name]["fn"]) for trace in traces]
    return all(site is not None and isinstance(site.law, SDEPath) for site in sites)


def _increments(law: Any, path: Tensor, draw: int) -> list[tuple[Tensor, Tensor]]:  # noqa: ANN401 (a path law)
    """Squared increments between observations, ``(P, D)`` each: of the draws, and of as many paths of the model."""
    grid = getattr(law, "grid", None)
    if grid is None or not bool((grid.mask.sum(-1) > 1).any()):
        return []
    with seeded(0, "model", draw):
        drawn = law.sample() if len(law.batch_shape) + 2 >= path.dim() else law.sample(path.shape[:1])

    def total(states: Tensor) -> Tensor:  # a time that is no observation repeats the state before: no increment
        return _total(grid.observed(states).diff(dim=-2).double().square()).cpu()

    return [(total(path), total(drawn))]
