r"""What the step size of the solver costs: bias of the bound, variation of the paths, noise of the gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..infer.elbo import PathELBO
from ..ops._arguments import is_finite
from ._discretisation_fit import Estimate, StepFit, fit_steps, largest_step
from ._discretisation_gradients import GradientRow, gradient_rows
from ._discretisation_report import DiscretisationReport, StepPoint
from ._discretisation_runs import Call, Pair, Runs, grids_in, one_by_one, path_sites, refined, vectorised
from ._discretisation_variation import (
    IncrementCheck,
    QuadraticVariation,
    SiteVariation,
    quadratic_variation,
    site_variations,
)

__all__ = [
    "DiscretisationReport",
    "Estimate",
    "GradientRow",
    "IncrementCheck",
    "QuadraticVariation",
    "SiteVariation",
    "StepPoint",
    "discretisation",
    "quadratic_variation",
]

_GRADIENT_DRAWS = 50


def discretisation(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,  # noqa: ANN401
    factors: Sequence[int] = (1, 2, 4),
    num_particles: int = 200,
    kl: str = "stl",
    tolerance: float = 0.05,
    **kwargs: Any,  # noqa: ANN401
) -> DiscretisationReport:
    r"""Measure what the solver's step does to a trained model/guide pair.

    Model and guide run at their present parameters with every `TimeGrid` among the arguments refined by each factor,
    driven by the same Brownian paths (those of `SDEPath` and `GaussianPath` guides; other sites have the same random
    numbers). Three things are reported:

    * **Bias**: :math:`\mathrm{ELBO}(h) = a + b h` by weighted least squares, or :math:`a + b h + c h^2` where there
      are three points and it predicts better (Akaike); a is the bound without discretisation error and
      :math:`\mathrm{ELBO}(h) - a` the bias. It is that of model and guide together: the evidence of the discretised
      model changes with h, and so does the distance of the guide from its posterior.
    * **Variation** of each path site on the finest grid, `quadratic_variation`, and `IncrementCheck`.
    * **Gradients** of the three estimators of `PathELBO`, from up to 50 draws of one particle on the grid given.

    All draws are one plate, as with ``vectorize_particles``; a pair that cannot be run so is run draw by draw, which
    the notes say. Parameters and their ``grad`` are not changed; parameters that do not exist yet are created. Cost:
    `num_particles` bounds per factor without gradient (memory: all draws on the finest grid), and up to 150 gradients.

    Args:
        model: the model; its grid is an argument.
        guide: the guide; parameters must not be one per solver step (give it an encoder or a function of time).
        *args: arguments of both, among them, or inside lists, tuples and dictionaries among them, the grids.
        factors: increasing positive integers, at least two. The first is the step in use, 1 for the grids given.
        num_particles: draws at each step size, ``>= 2``.
        kl: estimator whose value is extrapolated. "stl" and "full" have the same value, and the less scatter the better
            the guide; "closed" has less scatter far from the posterior, and often the sharper bias, because its values
            on neighbouring grids move together.
        tolerance: bias to allow, in nats per series, ``> 0``.
        **kwargs: keyword arguments of both.

    Returns:
        The report.

    Raises:
        ValueError: if there is no grid among the arguments or no path site, an argument is out of range, or the pair
            does not run on a refined grid.

    References:
        Talay and Tubaro (1990), Expansion of the global error for numerical schemes solving stochastic differential
        equations (the expansion in h); Kloeden and Platen (1992), section 15.3 (extrapolation).

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_sde import SDEPath, TimeGrid
        >>> from pyro_sde.sde import OrnsteinUhlenbeck
        >>> prior, start = OrnsteinUhlenbeck(1.0, 1.0), dist.Normal(torch.zeros(1), 0.7).to_event(1)
        >>> def model(grid, y):
        ...     z = pyro.sample("z", SDEPath(prior, start, grid))
        ...     pyro.sample("y", dist.Normal(grid.observed(z), 0.5).to_event(2), obs=y)
        >>> def guide(grid, y):
        ...     gain = pyro.param("gain", torch.tensor(1.0))
        ...     pyro.sample("z", SDEPath(prior.controlled(lambda t, z: gain * (y.mean() - z)), start, grid))
        >>> grid = TimeGrid(torch.tensor([0.0, 1.0, 2.0]), max_step=0.25)
        >>> report = discretisation(model, guide, grid, torch.ones(3, 1), num_particles=50)
        >>> [point.step for point in report.points]
        [0.25, 0.125, 0.0625]
    """
    factors = _check(factors, num_particles, tolerance)
    pair, call = Pair(model, guide), Call(args, kwargs)
    steps = _steps(call, factors)
    runs, notes = _runs(pair, call, kl, num_particles, factors)
    fit = fit_steps(steps, torch.stack([run.values for run in runs]))
    points = tuple(
        StepPoint(factor, step, _estimate(run), bias)
        for factor, step, run, bias in zip(factors, steps, runs, fit.bias, strict=True)
    )
    series = runs[0].series()
    limit = largest_step(fit, tolerance * series)
    gradients = gradient_rows(pair, refined(call, factors[0]), min(num_particles, _GRADIENT_DRAWS))
    return DiscretisationReport(
        points=points,
        extrapolated=fit.coefficients[0],
        slope=fit.coefficients[1],
        order=fit.order,
        misfit=fit.misfit,
        settles=fit.settles,
        tolerance=tolerance,
        series=series,
        largest_step=limit,
        recommended_step=min(limit, steps[0]) if fit.settles else math.nan,
        extrapolates=fit.settles and limit < steps[-1],
        variation=tuple(site_variations(runs[-1])),
        gradients=tuple(gradients),
        notes=(*notes, *_notes(fit, points, tolerance * series, num_particles)),
    )


def _check(factors: Sequence[int], num_particles: int, tolerance: float) -> tuple[int, ...]:
    factors = tuple(factors) if isinstance(factors, Sequence) else (factors,)
    whole = all(isinstance(factor, int) and not isinstance(factor, bool) and factor >= 1 for factor in factors)
    if len(factors) < 2 or not whole or any(a >= b for a, b in zip(factors, factors[1:], strict=False)):
        msg = f"`factors` must be at least two increasing positive integers, such as (1, 2, 4), received {factors}."
        raise ValueError(msg)
    if isinstance(num_particles, bool) or not isinstance(num_particles, int) or num_particles < 2:
        msg = f"`num_particles` must be an integer of at least 2, for a standard error, received {num_particles!r}."
        raise ValueError(msg)
    if not (is_finite(tolerance) and tolerance > 0):
        msg = f"`tolerance` must be a positive number of nats per series, received {tolerance!r}."
        raise ValueError(msg)
    return factors


def _steps(call: Call, factors: tuple[int, ...]) -> list[float]:
    """Largest step of all grids, for every factor."""
    grids = grids_in(call)
    if not grids:
        msg = (
            "there is no TimeGrid among the arguments, so the step cannot be changed. Make the grid an argument of "
            "model and guide, def model(grid, y): ..., and pass it: discretisation(model, guide, grid, y)."
        )
        raise ValueError(msg)
    largest = max((float(grid.steps.detach().max()) for grid in grids if grid.num_steps), default=0.0)
    if not largest > 0:
        msg = "no TimeGrid among the arguments has a step: each has one time only, so there is nothing to refine."
        raise ValueError(msg)
    return [largest / factor for factor in factors]


def _runs(
    pair: Pair, call: Call, kl: str, num_particles: int, factors: tuple[int, ...]
) -> tuple[list[Runs], list[str]]:
    """Runs on every grid, and notes on how they were made."""
    finest = math.lcm(*factors)
    elbo = PathELBO(kl, num_particles=num_particles, vectorize_particles=True)
    first, run = _first(pair, refined(call, factors[0]), elbo, (factors[0], finest))
    notes = []
    if run is one_by_one:
        notes.append("the pair does not run with its draws as one plate, so they were made one by one")
    if not path_sites(first.traces[0]):
        msg = "model and guide have no latent path site, so there is nothing that depends on the step."
        raise ValueError(msg)
    found = [first]
    for factor in factors[1:]:
        try:
            found.append(run(pair, refined(call, factor), elbo, (factor, finest)))
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            msg = (
                f"model and guide run on the grid given, but not with its steps cut in {factor}: {reason} Nothing in "
                "them may depend on the number of steps: no parameter per solver step, inputs made from the grid."
            )
            raise ValueError(msg) from error
    return found, notes


def _first(
    pair: Pair, call: Call, elbo: PathELBO, refinement: tuple[int, int]
) -> tuple[Runs, Callable[[Pair, Call, PathELBO, tuple[int, int]], Runs]]:
    """Runs on the grid given, and the way of making them that works."""
    try:
        return vectorised(pair, call, elbo, refinement), vectorised
    except (IndexError, RuntimeError, ValueError) as error:
        failure = error  # outside of this block nothing is chained to it
    if isinstance(failure, ValueError) and _takes_a_plate(pair, call, elbo, refinement):
        raise failure  # of a value, such as a path that grows without limit, not of a shape
    return one_by_one(pair, call, elbo, refinement), one_by_one


def _takes_a_plate(pair: Pair, call: Call, elbo: PathELBO, refinement: tuple[int, int]) -> bool:
    """Whether two draws can be made as one plate."""
    try:
        vectorised(pair, call, PathELBO(elbo.kl, num_particles=2, vectorize_particles=True), refinement)
    except (IndexError, RuntimeError, ValueError):
        return False
    return True


def _estimate(runs: Runs) -> Estimate:
    return Estimate(float(runs.values.mean()), float(runs.values.std() / math.sqrt(len(runs.values))))


def _notes(fit: StepFit, points: tuple[StepPoint, ...], tolerance: float, num_particles: int) -> list[str]:
    notes = []
    if not fit.settles:
        notes.append(
            "the bound changes more and more as the steps get finer: the extrapolation means nothing. A guide that "
            "treats the states of a path as independent has no limit; otherwise begin with a finer grid"
        )
    elif fit.order == 2:
        check = (
            "three points cannot contradict a parabola" if fit.rest is None else f"the parabola has p = {fit.rest:.2g}"
        )
        notes.append(f"a parabola was fitted, since the points bend (p = {fit.misfit:.1g} for a line); {check}")
    elif fit.misfit is None:
        notes.append("two points cannot tell whether the bound is linear in the step; use three factors")
    error = points[0].bias.standard_error
    if error > 0.5 * tolerance:
        enough = math.ceil(num_particles * (2 * error / tolerance) ** 2)
        notes.append(
            f"the bias has a standard error of {error:.2g}, too large for a tolerance of {tolerance:.2g} nats: use "
            f"num_particles of about {enough}"
        )
    return notes
