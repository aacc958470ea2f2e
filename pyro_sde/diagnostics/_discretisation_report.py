"""The report on the step of a solver: its figures and their text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ._discretisation_fit import Estimate
from ._discretisation_gradients import GradientRow
from ._discretisation_variation import SiteVariation

__all__ = ["DiscretisationReport", "StepPoint"]


class StepPoint(NamedTuple):
    """The bound on one grid.

    Attributes:
        factor: into how many steps each step of the grid given is cut.
        step: largest step, in the unit of the times.
        elbo: evidence bound in nats, all series together.
        bias: `elbo` less the extrapolated bound.
    """

    factor: int
    step: float
    elbo: Estimate
    bias: Estimate


@dataclass(frozen=True)
class DiscretisationReport:
    """What `discretisation` found; ``print(report)`` shows all of it.

    Attributes:
        points: the bound at every step size, coarsest first.
        extrapolated: bound at step size 0.
        slope: its derivative with respect to the step at 0, in nats per unit of time.
        order: 1 for a line, 2 for a parabola.
        misfit: p-value of the points under the line; None for two points.
        settles: False if the bound changes more and more as steps get finer; then there is no limit to extrapolate to.
        tolerance: bias allowed, in nats per series.
        series: number of series.
        largest_step: step at which the fitted bias reaches the tolerance; infinity if at none.
        recommended_step: `largest_step`, but not above the coarsest step measured; NaN unless the bound settles.
        extrapolates: whether the recommended step lies below all that were measured.
        variation: one entry per path site, on the finest grid.
        gradients: one row per estimator of the divergence, on the grid given.
        notes: what to mind.
    """

    points: tuple[StepPoint, ...]
    extrapolated: Estimate
    slope: Estimate
    order: int
    misfit: float | None
    settles: bool
    tolerance: float
    series: float
    largest_step: float
    recommended_step: float
    extrapolates: bool
    variation: tuple[SiteVariation, ...]
    gradients: tuple[GradientRow, ...]
    notes: tuple[str, ...]

    @property
    def bias(self) -> Estimate:
        """Bias of the bound on the coarsest grid, all series together."""
        return self.points[0].bias

    def __str__(self) -> str:
        """Tables and findings."""
        lines = [*_bound(self), "", *_variation(self.variation), "", *_gradients(self)]
        if self.notes:
            lines += ["", "Notes", *(f"- {note}." for note in self.notes)]
        return "\n".join(lines)


def _bound(report: DiscretisationReport) -> Iterator[str]:
    yield f"Bound in nats, {report.series:g} series together"
    yield from _table(
        ("step", "cut in", "ELBO", "bias"),
        [(f"{p.step:.4g}", str(p.factor), str(p.elbo), str(p.bias)) for p in report.points]
        + [("0", "", str(report.extrapolated), "")],
    )
    first, limit = report.points[0].step, report.largest_step
    allowed = f"a bias of {report.tolerance:g} nats per series"
    if not report.settles:
        yield "No step can be recommended: the bound does not settle."
    elif limit >= first:
        beyond = "at no step" if math.isinf(limit) else f"at a step of about {limit:.3g}, which was not measured"
        yield f"Recommended step: {first:.4g}, the coarsest measured. The fit reaches {allowed} {beyond}."
    elif report.extrapolates:
        yield (
            f"Recommended step: {report.recommended_step:.3g} for {allowed}. This is an extrapolation: the finest step "
            f"measured is {report.points[-1].step:.4g}."
        )
    else:
        yield f"Recommended step: {report.recommended_step:.3g} for {allowed}."


def _variation(sites: Sequence[SiteVariation]) -> Iterator[str]:
    yield "Variation of the guide's paths / of the model's diffusion, finest grid"
    for site in sites:
        if site.variation is None:
            yield f"{site.site}: the law of the model does not tell its diffusion"
        else:
            shared = " (lag 1 is 1 by construction: guide and model share the diffusion)" if site.shared else ""
            yield f"{site.site}{shared}"
            rows = []
            for d in range(site.variation.ratio.shape[-1]):
                figures = [
                    f"{float(r):.3f} ± {float(e):.1g}"
                    for r, e in zip(site.variation.ratio[:, d], site.variation.standard_error[:, d], strict=True)
                ]
                rows.append((str(d), *figures, site.variation.verdict(d)))
            yield from _table(("state", *(f"lag {lag}" for lag in site.variation.lags), ""), rows)
        if site.increments is not None:
            yield f"{site.site}: increments between observations / those of the model without data"
            check = site.increments
            yield from _table(
                ("state", "ratio", "98 % of paths", ""),
                [
                    (
                        str(d),
                        f"{float(check.ratio[d]):.3g}",
                        f"{float(check.low[d]):.3g} to {float(check.high[d]):.3g}",
                        check.verdict(d),
                    )
                    for d in range(len(check.ratio))
                ],
            )


def _gradients(report: DiscretisationReport) -> Iterator[str]:
    yield f"Gradient of one draw by estimator, step {report.points[0].step:.4g}"
    rows = []
    for row in report.gradients:
        if row.reason:
            rows.append((row.kl, "not available", "", row.reason))
        else:
            norm = f"{row.norm:.3g} (chance: {row.norm_error:.2g})"
            rows.append((row.kl, f"{row.variance:.3g}", norm, f"{row.value_deviation:.3g}"))
    yield from _table(("kl", "total variance", "norm of mean", "deviation of the ELBO"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns of equal width."""
    columns = list(zip(head, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    for row in (head, *rows):
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
