"""Fitted guides and finished MCMC runs as ArviZ data, with everything that ArviZ's tools ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro.infer import MCMC
from torch import Tensor

from ._model_runs import SiteGroups, evaluation, guide_runs, sample_runs, site_groups
from .arviz import to_inference_data

__all__ = ["from_guide", "from_mcmc"]


def from_guide(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    num_samples: int = 200,
    coords: Mapping[str, Sequence[Any] | Tensor] | None = None,
    dims: Mapping[str, Sequence[str | None]] | None = None,
    seed: int | None = None,
) -> Any:  # noqa: ANN401 -- InferenceData or DataTree, whichever the installed ArviZ has
    r"""Draws of a guide as an ArviZ object that `az.summary`, `az.loo` and `az.plot_ppc` take.

    Groups: ``posterior`` (every latent and deterministic site), ``posterior_predictive`` (new data at each draw),
    ``log_likelihood`` :math:`\log p(y_i \mid z^{(s)})` of every data point, ``observed_data``, and ``constant_data``
    with the grid times of every path, ``<site>_times``.

    Names of dims: plates give theirs to batch dims; a path has ``time, state``; data with two event dims have
    ``observed_time, channel``. Where two sites differ in the size of a dim, the site's name is put in front. The
    coordinate ``time`` is the grid's, if one grid without batch serves all paths. ArviZ cannot leave entries out, so a
    site that is masked somewhere has one dim ``<site>_observation`` of its observed entries, in all three groups, and
    constant data ``<site>_series``, ``<site>_observed_time``, ``<site>_channel`` say where each stood. `to_event` is
    undone, so that a data point is one number; under a law of vectors (`MultivariateNormal`) it is a vector.

    The draws are those of the guide: `importance_check` says whether they may stand for the posterior. `az.loo` leaves
    out one data point at a time while its neighbours in time stay in, so it judges interpolation; to judge forecasts,
    leave out the future. Factors and scales of subsampled plates are no data and are left out. Cost: one run of the
    guide and two of the model per draw.

    Args:
        model: Pyro model.
        guide: its guide: a function, an automatic guide or a messenger.
        args: arguments of both, with the data.
        kwargs: keyword arguments of both.
        num_samples: number of draws, ``>= 1``.
        coords: dimension name to coordinate values, ``(N,)`` for a dimension of size N; they win over the grid's.
        dims: site name to dimension names (without chain and draw), instead of the rule above.
        seed: same seed, same draws; torch's global state if None.

    Returns:
        ``arviz.InferenceData`` for ArviZ 0.2x, ``xarray.DataTree`` for 1.x, with one chain: a path site of shape
        ``(*batch, T, D)`` becomes ``(1, num_samples, *batch, T, D)``.

    Raises:
        ImportError: if ArviZ is not installed.
        ValueError: if `num_samples` is not positive, or `dims` and `coords` do not fit the shapes.

    References:
        Vehtari, Gelman, Gabry (2017), Practical Bayesian model evaluation using leave-one-out cross-validation and
        WAIC, section 2.
    """
    with evaluation(seed):
        sites = site_groups(guide_runs(model, guide, num_samples, args, kwargs or {}))
    return _convert(sites, 1, coords, dims, {})


def from_mcmc(
    mcmc: MCMC,
    args: tuple | None = None,
    *,
    paths: Sequence[str] = ("z",),
    observations: Sequence[str] = ("y",),
    coords: Mapping[str, Sequence[Any] | Tensor] | None = None,
    dims: Mapping[str, Sequence[str | None]] | None = None,
    **groups: Mapping[str, Tensor] | None,
) -> Any:  # noqa: ANN401 -- see `from_guide`
    """The samples of a finished `pyro.infer.MCMC` run, with its divergences as ``sample_stats.diverging``.

    With `args` the model runs twice per sample, and the groups and dims are those of `from_guide`: a path that
    `PathNoiseReparam` has replaced by its noise is there again. Without, the samples alone are converted, as in
    `to_inference_data`. Works with ArviZ 1.x, unlike ``arviz.from_pyro``.

    Args:
        mcmc: an `MCMC` object after ``run``.
        args: arguments of the model, as they were given to ``run``; None = do not run the model. Keywords go into the
            model with `functools.partial`.
        paths: as in `to_inference_data`, for samples alone.
        observations: as in `to_inference_data`, for samples alone.
        coords: as in `to_inference_data`.
        dims: as in `to_inference_data`.
        **groups: as in `to_inference_data`; sampled groups must be ``(chain, draw, *shape)``.

    Returns:
        As `to_inference_data`.

    Raises:
        TypeError: if `mcmc` is not an `MCMC` object.
        ValueError: if it has not run yet, if `args` is given but its kernel has no model, or as in
            `to_inference_data`.
    """
    if not isinstance(mcmc, MCMC):
        msg = (
            f"`mcmc` must be a pyro.infer.MCMC object, received {type(mcmc).__name__}. "
            "For samples in a dict call `to_inference_data`."
        )
        raise TypeError(msg)
    samples = mcmc.get_samples(group_by_chain=True)
    if not samples:
        msg = "`mcmc` holds no samples. Call `mcmc.run(...)` first."
        raise ValueError(msg)
    shape = next(iter(samples.values())).shape[:2]
    groups["sample_stats"] = {**_divergences(mcmc, shape), **(groups.pop("sample_stats", None) or {})}
    if args is None:
        return to_inference_data(
            samples, num_chains=shape[0], paths=paths, observations=observations, coords=coords, dims=dims, **groups
        )
    model = getattr(mcmc.kernel, "model", None)
    if model is None:
        msg = "`args` needs a kernel with a model, such as NUTS(model); this one has a potential function only."
        raise ValueError(msg)
    flat = {name: value.flatten(0, 1) for name, value in samples.items()}
    with evaluation(None):
        sites = site_groups(sample_runs(model, flat, shape.numel(), args, {}))
    return _convert(sites, shape[0], coords, dims, groups)


def _divergences(mcmc: MCMC, shape: torch.Size) -> dict[str, Tensor]:
    # Pyro computes all its diagnostics at once, and its split R-hat refuses fewer than 4 draws.
    divergences = mcmc.diagnostics().get("divergences") if shape[1] >= 4 else None
    if divergences is None:
        return {}
    diverging = torch.zeros(shape, dtype=torch.bool)
    for chain, draws in enumerate(divergences.values()):
        diverging[chain, list(draws)] = True
    return {"diverging": diverging}


def _convert(
    sites: SiteGroups,
    num_chains: int,
    coords: Mapping[str, Sequence[Any] | Tensor] | None,
    dims: Mapping[str, Sequence[str | None]] | None,
    extra: Mapping[str, Mapping[str, Tensor] | None],
) -> Any:  # noqa: ANN401 -- see `from_guide`
    """Split the chains again; what the user gives wins."""
    groups = {
        group: values
        if group in ("observed_data", "constant_data")
        else {name: value.unflatten(0, (num_chains, -1)) for name, value in values.items()}
        for group, values in sites.groups.items()
    }
    merged: dict[str, Any] = {
        group: {**groups.get(group, {}), **(extra.get(group) or {})} for group in {**groups, **extra}
    }
    return to_inference_data(
        merged.pop("posterior"),
        num_chains=num_chains,
        coords={**sites.coords, **(coords or {})},
        dims={**sites.dims, **(dims or {})},
        **merged,
    )
