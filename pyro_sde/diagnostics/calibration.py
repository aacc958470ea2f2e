"""Simulation-based calibration: does an inference method return the posterior, path and parameters alike?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ..infer.streams import seeded
from ..ops._arguments import check_whole

__all__ = ["RankStatistics", "path_deviation", "simulation_based_calibration"]

Draws = Mapping[str, Tensor]


class RankStatistics(NamedTuple):
    r"""Ranks of true values among posterior draws; uniform on 0 to L if the draws are from the posterior.

    Attributes:
        ranks: name -> rank of the truth among L draws in each of R simulations, int64 ``(R, *shape)``.
        num_draws: number L of draws.
    """

    ranks: dict[str, Tensor]
    num_draws: int

    def normalised(self) -> dict[str, Tensor]:
        """Ranks as numbers in (0, 1), ``(rank + 1/2) / (L + 1)``, ``(R, *shape)``, for `plot_calibration`."""
        return {name: (rank + 0.5).double() / (self.num_draws + 1) for name, rank in self.ranks.items()}

    def coverage(self, level: float = 0.9) -> dict[str, Tensor]:
        r"""Share of simulations whose truth lies in the central interval of the draws, ``(*shape)``.

        Its standard error is :math:`\sqrt{c (1 - c) / R}` at the level c. Entries of a path are covered one by one; for
        the path as a whole take the statistic `path_deviation` and `share_below`.

        Args:
            level: nominal coverage; ``(1 - level) / 2 * (L + 1)`` must be a whole number ``>= 1``, so that calibrated
                draws score exactly this level.

        Raises:
            ValueError: if it is not.
        """
        _check_level(level)
        cut = _whole((1 - level) / 2 * (self.num_draws + 1), level, self.num_draws)
        inside = {name: (rank >= cut) & (rank <= self.num_draws - cut) for name, rank in self.ranks.items()}
        return {name: value.double().mean(0) for name, value in inside.items()}

    def share_below(self, level: float = 0.9) -> dict[str, Tensor]:
        """Share of simulations whose truth is among the lowest ``level`` of ranks, ``(*shape)``.

        For a statistic that is large where the truth is unusual, such as `path_deviation`, this is the coverage of the
        region in which it is not.

        Args:
            level: nominal share; ``level * (L + 1)`` must be a whole number.

        Raises:
            ValueError: if it is not.
        """
        _check_level(level)
        cut = _whole(level * (self.num_draws + 1), level, self.num_draws)
        return {name: (rank < cut).double().mean(0) for name, rank in self.ranks.items()}

    def p_values(self, bins: int | None = None) -> dict[str, Tensor]:
        r"""Probability of ranks at least as uneven for a calibrated method, by a chi-squared test, ``(*shape)``.

        .. math:: \sum_b (n_b - R / B)^2 / (R / B) \sim \chi^2_{B - 1}

        Approximate; good from 5 simulations per bin on. With many entries the smallest p-value is small by chance:
        multiply it by their number (Bonferroni).

        Args:
            bins: number B of bins, ``>= 2``, a divisor of L + 1; the largest one up to R / 10 and 20 if None.

        Raises:
            ValueError: if it is not a divisor, or none is left for so few simulations.

        References:
            Pearson (1900), On the criterion that a given system of deviations ..., Philosophical Magazine 50.
        """
        runs = len(next(iter(self.ranks.values())))
        values = self.num_draws + 1
        if bins is None:
            bins = max(b for b in range(1, min(20, max(runs // 10, 1)) + 1) if values % b == 0)
        check_whole(bins=bins)
        if bins < 2 or values % bins:
            msg = (
                f"`bins` must be at least 2 and divide L + 1 = {values}, received or found {bins}. Choose L so that "
                f"L + 1 has small divisors, such as 99, and at least 20 simulations; there are {runs}."
            )
            raise ValueError(msg)
        expected, found = runs / bins, {}
        for name, rank in self.ranks.items():
            bin_of = rank * bins // values
            counts = torch.stack([(bin_of == b).sum(0) for b in range(bins)]).double()
            statistic = ((counts - expected) ** 2 / expected).sum(0)
            found[name] = torch.special.gammaincc(torch.full_like(statistic, (bins - 1) / 2), statistic / 2)
        return found


def simulation_based_calibration(
    model: Callable[..., Any],
    posterior: Callable[[dict[str, Tensor], int], Draws],
    args: tuple = (),
    *,
    num_simulations: int = 200,
    num_draws: int = 99,
    observed: tuple[str, ...] = ("y",),
    statistics: Mapping[str, Callable[[Draws], Tensor]] | None = None,
    seed: int = 0,
) -> RankStatistics:
    r"""Rank true latents among draws of the posterior of data that they made.

    .. math:: \theta, z \sim p, \quad y \sim p(y \mid z, \theta), \quad (\theta, z)^{(1 \dots L)} \sim q(\cdot \mid y)

    If q is the posterior, the truth and the draws are exchangeable given y, and the rank of any function of them is
    uniform. Too many extreme ranks: q is too narrow; too few: too wide; a slope: biased. It judges the method averaged
    over data of the prior, not at one data set, and a method that returns the prior passes for functions of the latents
    alone: add a statistic that depends on the data, such as the log-likelihood, by closing over what `posterior` sees.
    Every simulation starts with Pyro's parameter store as it is now, and leaves it so: a fit does not go on where the
    one before ended. Cost: R runs of `posterior`.

    Args:
        model: Pyro model; run as a simulator, with its observed sites sampled.
        posterior: takes the simulated values of the observed sites and L, returns L independent draws
            ``(L, *shape)`` of latent sites: fit a guide or run MCMC inside, thinned, or call an amortised guide, such
            as ``lambda data, n: Predictive(guide, num_samples=n)(grid, data["y"])``.
        args: arguments of the model; data among them is ignored, masks are not.
        num_simulations: number R of simulations, ``>= 20``; 200 find deviations a third too small or half too large.
        num_draws: number L of draws, ``>= 1``; L + 1 with many divisors is best.
        observed: names of the observed sites, whether or not `args` holds their data.
        statistics: name -> function of latents with one leading dimension ``(1 + L, *shape)``, the truth first, that
            returns ``(1 + L, ...)``; every entry is ranked. It must treat all rows alike. Every latent site that
            `posterior` returns, entry by entry, if None.
        seed: same seed, same ranks, if `posterior` draws from torch's global state.

    Returns:
        Ranks of every statistic. Ties are broken at random.

    Raises:
        TypeError: if a number is no whole one.
        ValueError: if a number is out of range, the model has no site of a name in `observed`, or a draw has another
            shape than the truth.

    References:
        Talts, Betancourt, Simpson, Vehtari, Gelman (2018), Validating Bayesian inference algorithms with
        simulation-based calibration, arXiv 1804.06788, algorithm 1; Modrak et al. (2023), Simulation-based calibration
        checking for Bayesian computation: the choice of test quantities shapes sensitivity, arXiv 2211.02383.
    """
    check_whole(num_simulations=num_simulations, num_draws=num_draws)
    if num_simulations < 20 or num_draws < 1:
        msg = (
            "`num_simulations` must be at least 20 and `num_draws` at least 1, received "
            f"{num_simulations} and {num_draws}."
        )
        raise ValueError(msg)
    found: dict[str, list[Tensor]] = {}
    store = pyro.get_param_store()
    for index in range(num_simulations):
        with seeded(seed, "simulation", index), store.scope(store.get_state()):
            truth, data = _simulate(model, args, observed)
            draws = posterior(data, num_draws)
            stacked = _stack(truth, draws, num_draws)
            chosen = statistics or {name: _itself(name) for name in stacked}
            for name, statistic in chosen.items():
                found.setdefault(name, []).append(_rank(statistic(stacked).detach()))
    return RankStatistics({name: torch.stack(ranks) for name, ranks in found.items()}, num_draws)


def path_deviation(name: str = "z") -> Callable[[Draws], Tensor]:
    r"""Statistic: how far a path leaves the band of its fellows, in standard deviations, at its worst point.

    .. math:: \max_{k, d} \left| z^{(i)}_{k d} - \bar z_{k d} \right| / s_{k d}

    Mean and deviation are those of truth and draws together, so that all rows are alike. The share of truths below a
    level is the coverage of the simultaneous band of the whole path.

    Args:
        name: path site, ``(1 + L, *batch, T, D)``; the statistic has the shape ``(1 + L, *batch)``.

    References:
        Montiel Olea and Plagborg-Møller (2019), Simultaneous confidence bands: theory, implementation, and an
        application to SVARs, Journal of Applied Econometrics 34 (sup-t bands).
    """

    def statistic(latents: Draws) -> Tensor:
        path = latents[name].double()
        spread = path.std(0)
        # A state that all share, such as a fixed start, deviates by nothing.
        return torch.where(spread > 0, (path - path.mean(0)).abs() / spread, 0.0).amax((-2, -1))

    return statistic


def _simulate(
    model: Callable[..., Any], args: tuple, observed: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    with torch.no_grad():
        trace = poutine.trace(poutine.uncondition(model)).get_trace(*args)
    sites: dict[str, Any] = {name: s for name, s in trace.nodes.items() if s["type"] == "sample"}
    missing = [name for name in observed if name not in sites]
    if missing:
        msg = f"`observed` names '{missing[0]}', which the model does not sample; its sites are {sorted(sites)}."
        raise ValueError(msg)
    values = {name: site["value"].detach() for name, site in sites.items()}
    return {n: v for n, v in values.items() if n not in observed}, {n: values[n] for n in observed}


def _stack(truth: Draws, draws: Draws, num_draws: int) -> dict[str, Tensor]:
    stacked = {}
    for name, true in truth.items():
        if name not in draws:
            continue
        if draws[name].shape != (num_draws, *true.shape):
            msg = (
                f"`posterior` must return '{name}' with shape {(num_draws, *tuple(true.shape))}, received "
                f"{tuple(draws[name].shape)}."
            )
            raise ValueError(msg)
        stacked[name] = torch.cat([true.unsqueeze(0), draws[name].detach().to(true)])
    if not stacked:
        msg = f"`posterior` must return draws of some of {sorted(truth)}, received {sorted(draws)}."
        raise ValueError(msg)
    return stacked


def _rank(values: Tensor) -> Tensor:
    """Rank of row 0 among the others, ties broken at random."""
    below, equal = (values[1:] < values[0]).sum(0), (values[1:] == values[0]).sum(0)
    return below + (torch.rand(equal.shape, device=equal.device) * (equal + 1)).long()


def _itself(name: str) -> Callable[[Draws], Tensor]:
    return lambda latents: latents[name]


def _check_level(level: object) -> None:
    if not isinstance(level, Real):
        msg = f"`level` must be a number between 0 and 1, received {type(level).__name__}."
        raise TypeError(msg)


def _whole(value: float, level: float, num_draws: int) -> int:
    if not 0 < level < 1 or round(value) < 1 or abs(value - round(value)) > 1e-9 * num_draws:
        msg = (
            f"`level` must lie between 0 and 1 and cut the L + 1 = {num_draws + 1} ranks into whole numbers, received "
            f"{level}. With 99 draws every even number of percent does."
        )
        raise ValueError(msg)
    return round(value)
