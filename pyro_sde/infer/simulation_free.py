r"""Evidence lower bound of a guide that is given by marginals, for `pyro.infer.SVI`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.poutine.trace_struct import Trace

from ..distributions.kl import SiteLaw
from ..guides.marginal_flow import MarginalPath, TimeSampler
from ._factorisation import check_product_over_times
from ._time_windows import ObservationSample, TimeWindows, WindowBatch, sample_observations
from .elbo import PathELBO
from .traces import TracePair

__all__ = ["ObservationSample", "SimulationFreeELBO", "TimeWindows", "WindowBatch", "sample_observations"]


class SimulationFreeELBO(PathELBO):
    r"""Evidence lower bound without simulation, for guides with `MarginalPath` sites.

    .. math::
        \mathcal L = \sum_n E_{q_{t_n}} \log p(y_n \mid z_{t_n}) - \mathrm{KL}(q_0 \| p_0)
        - \int \tfrac12 E_{q_t} |u|^2\,dt

    in continuous time: the integral is estimated at random times, every observation with its own draw of its marginal,
    all terms with their full weights. So the expectation of the loss is minus the bound, and of its gradient the
    gradient. The model is that of any other loss; plates, subsampling, masks and other latent sites are treated as in
    `PathELBO`.

    The first call checks that the model's log-density is a sum over times, given the other sites: draws at different
    grid points are independent here, so a likelihood that couples times would get a wrong bound, and raises. The check
    runs the model 2 log2(K + 1) + 2 times.

    Args:
        times: sampler of the times of the integral; that of each `MarginalPath` if None.
        kl_weight: as in `PathELBO`.
        **options: of `Trace_ELBO`, such as `num_particles` and `vectorize_particles`.

    Raises:
        ValueError: at construction as `PathELBO`; at use if the guide has no `MarginalPath` site, another of its sites
            depends on the path, or the model couples times; and as `PathELBO`.
        TypeError: if `times` is not a `TimeSampler`.

    References:
        Bartosh, Vetrov, Naesseth (2025), SDE Matching, arXiv 2502.02472.
    """

    def __init__(self, times: TimeSampler | None = None, kl_weight: float = 1.0, **options: Any) -> None:  # noqa: ANN401
        if times is not None and not isinstance(times, TimeSampler):
            msg = f"`times` must be a TimeSampler such as StratifiedTimes(16), received {type(times).__name__}."
            raise TypeError(msg)
        super().__init__("closed", kl_weight, **options)
        self.times = times
        self._product_checked = False

    def _get_trace(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple, kwargs: dict
    ) -> tuple[Trace, Trace]:
        """As `PathELBO`, after the check of the structure at the first call."""
        if not self._product_checked:
            check_product_over_times(model, guide, args, kwargs)
            self._product_checked = True
        return super()._get_trace(model, guide, args, kwargs)

    def _score_path(self, pair: TracePair, name: str, q: SiteLaw | None, p: SiteLaw | None) -> None:
        if q is not None and isinstance(q.law, MarginalPath) and self.times is not None:
            q = q._replace(law=q.law.with_times(self.times))
        super()._score_path(pair, name, q, p)
