"""What skipping the fine scale saves and costs: steps, time, how fast fine paths mix, and the bias of the bound."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from ..distributions.multiscale_path import MultiScalePath
from ..infer.elbo import PathELBO
from ..infer.mixing import FinePaths, contraction_rates
from ..infer.randomised_correction import SimulatedGaps
from ..ops._arguments import check_whole

__all__ = ["FineSite", "MultiScaleReport", "multiscale_report"]


class FineSite(NamedTuple):
    """Steps and mixing of one fine site.

    Attributes:
        fine_steps: fine steps simulated, all series together.
        all_steps: fine steps of the full simulation.
        burn_in: shortest time from the start of a window, behind a gap, to its first observation.
        prior_rate: rate at which the fine prior forgets, per unit of time, from two paths of the same noise.
        posterior_rate: mean rate of the guide inside its windows, from its Jacobian; negative if it does not forget.
        mixing_time: 1 / `prior_rate`, the time after which the way of entry has lost all but 1 / e of its effect on the
            state; infinite if it does not forget.
        bias_factor: estimate of what burn-in leaves of the divergence of the entry law; 0 if re-entry has no bias.
    """

    fine_steps: int
    all_steps: int
    burn_in: float
    prior_rate: float
    posterior_rate: float
    mixing_time: float
    bias_factor: float


class MultiScaleReport(NamedTuple):
    """What the windows of a model and a guide save, and what they cost.

    Attributes:
        sites: figures of each fine site.
        skipped: fraction of all fine steps that is not simulated.
        seconds: median CPU time of an evaluation of the bound that skips.
        full_seconds: the same for the full simulation.
        time_saved: ``1 - seconds / full_seconds``.
        bias: bound that skips minus that of the full simulation, in nats; mean over evaluations on common noise.
        bias_error: its standard error.
    """

    sites: dict[str, FineSite]
    skipped: float
    seconds: float
    full_seconds: float
    time_saved: float
    bias: float
    bias_error: float


def multiscale_report(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    elbo: Any = None,  # noqa: ANN401
    num_samples: int = 20,
) -> MultiScaleReport:
    r"""Steps and time saved by the windows of `MultiScalePath` sites, mixing times, and an estimate of the bias.

    .. math:: \widehat{\mathrm{bias}} = \frac1n \sum_i (L_{\text{skip}} - L_{\text{full}})_i

    on common coarse paths and noise inside windows. For several series it is the sum. Nothing is trained. Cost:
    `num_samples` evaluations of both bounds.

    Args:
        model: model with `MultiScalePath` sites, not inside `SimulatedGaps`.
        guide: its guide.
        args: arguments of both.
        kwargs: keyword arguments of both.
        elbo: a bound with `loss`; `PathELBO` with one particle if None.
        num_samples: n, ``>= 2``.

    Raises:
        TypeError: if `num_samples` is no whole number.
        ValueError: if `num_samples` is less than 2, or the guide has no `MultiScalePath`.

    Note:
        Common noise comes from the CPU generator. Elsewhere the estimate is right too, with a larger error.

    Definition:
        The bias is the mean of :math:`L_{\text{skip}} - L_{\text{full}}`, which `RandomisedCorrection` removes.
    """
    check_whole(num_samples=num_samples)
    if num_samples < 2:
        msg = f"`num_samples` must be at least 2, for a standard error; received {num_samples}."
        raise ValueError(msg)
    elbo = PathELBO() if elbo is None else elbo
    values, seconds = [], []
    with torch.no_grad():
        with FinePaths() as seen:
            elbo.loss(model, guide, *args, **(kwargs or {}))
        if not seen.sites:
            msg = (
                "the guide has no MultiScalePath, so nothing is skipped. Pass the guide whose fine paths have windows."
            )
            raise ValueError(msg)
        sites = {name: _site(law, path) for name, (law, path) in seen.sites.items()}
        for _ in range(num_samples):
            before = torch.get_rng_state()
            start = time.process_time()
            skip = elbo.loss(model, guide, *args, **(kwargs or {}))
            middle = time.process_time()
            after = torch.get_rng_state()
            torch.set_rng_state(before)
            with SimulatedGaps():
                full = elbo.loss(model, guide, *args, **(kwargs or {}))
            seconds.append((middle - start, time.process_time() - middle))
            torch.set_rng_state(after)
            values.append(full - skip)  # of losses
    quick, slow = (statistics.median(part) for part in zip(*seconds, strict=True))
    fine, every = (sum(getattr(site, name) for site in sites.values()) for name in ("fine_steps", "all_steps"))
    return MultiScaleReport(
        sites,
        1 - fine / max(1, every),
        quick,
        slow,
        1 - quick / slow,
        statistics.mean(values),
        statistics.stdev(values) / num_samples**0.5,
    )


def _site(law: MultiScalePath, path: torch.Tensor) -> FineSite:
    report = law.report()
    rates = contraction_rates(law, path).movedim(0, -1)
    active = law.windows.active.expand(rates.shape)
    mean = float(rates[active].mean()) if bool(active.any()) else 0.0
    return FineSite(
        report.fine_steps, report.all_steps, report.burn_in, report.rate, mean, report.mixing_time, report.bias_factor
    )
