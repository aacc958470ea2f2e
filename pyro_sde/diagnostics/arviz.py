"""Posterior paths as ArviZ data with named dimensions, on ArviZ 0.2x (InferenceData) and 1.x (DataTree)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["load_netcdf", "pareto_smooth", "save_netcdf", "to_inference_data"]

_SAMPLED = ("posterior", "posterior_predictive", "log_likelihood", "sample_stats", "prior", "prior_predictive")
_FIXED = ("observed_data", "constant_data")
_PATH_DIMS = ("series", "time", "state")
_OBSERVATION_DIMS = ("series", "observed_time", "channel")
_EQUAL = 1e-3  # log weights as near as this, which the round-off of float32 may be, say nothing about a tail

# What a group holds: site name -> tensor.
_Group = Mapping[str, Tensor]


def to_inference_data(
    posterior: _Group,
    *,
    num_chains: int | None = None,
    paths: Sequence[str] = ("z",),
    observations: Sequence[str] = ("y",),
    coords: Mapping[str, Sequence[Any] | Tensor] | None = None,
    dims: Mapping[str, Sequence[str | None]] | None = None,
    **groups: _Group | None,
) -> Any:  # noqa: ANN401 -- InferenceData or DataTree, whichever the installed ArviZ has
    """Posterior samples as an ArviZ object whose path sites have dims chain, draw, series, time, state.

    Dims that `dims` does not name follow from the site and its rank after the sample dims: `paths` are
    ``(time, state)`` or ``(series, time, state)``; `observations` are ``(observed_time, channel)`` or
    ``(series, observed_time, channel)`` in their fullest group, and a log-likelihood that sums over trailing dims has
    the leading ones of these; more dims on the left, and all other sites, get ArviZ's ``<site>_dim_<i>``. Solver grid
    and observation times have different lengths, hence two time dims. NaN padding of ragged series is kept. A
    dimension of size 1 is kept too. The first call imports ArviZ, which takes seconds.

    Args:
        posterior: site name to samples, ``(draw, *shape)``, or ``(chain, draw, *shape)`` if `num_chains` is given.
        num_chains: number of chains on the leading dim of every sampled tensor; None = no chain dim, one chain.
        paths: names of path sites.
        observations: names of observed sites.
        coords: dimension name to coordinate values, for example ``{"time": grid.times}``; integers by default.
        dims: site name to dimension names (without chain and draw), instead of the rule above; None = made up.
        **groups: any of ``posterior_predictive``, ``log_likelihood``, ``sample_stats``, ``prior``,
            ``prior_predictive`` (sampled, as `posterior`), ``observed_data``, ``constant_data`` (no sample dims):
            each a mapping of name to tensor, or None.

    Returns:
        ``arviz.InferenceData`` for ArviZ 0.2x, ``xarray.DataTree`` for 1.x.

    Raises:
        ImportError: if ArviZ is not installed.
        TypeError: if a group is unknown or holds something that is not a tensor.
        ValueError: if a tensor lacks its sample dims, the groups disagree with `num_chains`, or `dims` and `coords`
            do not fit the shapes.
    """
    unknown = sorted(set(groups) - {*_SAMPLED, *_FIXED})
    if unknown:
        msg = f"`{unknown[0]}` is not a group; expected one of {', '.join((*_SAMPLED[1:], *_FIXED))}."
        raise TypeError(msg)
    data: dict[str, dict[str, np.ndarray]] = {}
    for group, sites in {"posterior": posterior, **groups}.items():
        if sites is not None and not isinstance(sites, Mapping):
            msg = f"`{group}` must map names to tensors, received {type(sites).__name__}."
            raise TypeError(msg)
        if sites:
            data[group] = {name: _array(group, name, value, num_chains) for name, value in sites.items()}
    names = _dimension_names(data, paths, observations, dims or {})
    labels = {name: _plain(values) for name, values in (coords or {}).items()}
    _check_coords(data, names, labels)
    return _convert(_import_arviz(), data, labels, names)


def save_netcdf(data: Any, path: str | Path) -> Path:  # noqa: ANN401 -- see `to_inference_data`
    """Write an ArviZ object to one NetCDF-4 file (through h5netcdf), replacing an existing file.

    Args:
        data: result of `to_inference_data`, `from_guide` or `from_mcmc`.
        path: file to write, usually ``*.nc``; its folder must exist.

    Returns:
        The path.

    Raises:
        TypeError: if `data` is not an ArviZ object.
        ValueError: if the folder does not exist.
    """
    path = Path(path)
    if not hasattr(data, "to_netcdf"):
        msg = (
            f"`data` must be an InferenceData or a DataTree, received {type(data).__name__}. "
            "Convert it with `to_inference_data`."
        )
        raise TypeError(msg)
    if not path.parent.is_dir():
        msg = f"`path` is in the folder {path.parent}, which does not exist. Create it first."
        raise ValueError(msg)
    data.to_netcdf(str(path), engine="h5netcdf")
    return path


def load_netcdf(path: str | Path) -> Any:  # noqa: ANN401 -- see `to_inference_data`
    """Read an ArviZ object from a NetCDF file, wholly into memory: the file may be moved or replaced afterwards.

    Args:
        path: file written by `save_netcdf` or by ArviZ.

    Returns:
        ``arviz.InferenceData`` for ArviZ 0.2x, ``xarray.DataTree`` for 1.x.

    Raises:
        ImportError: if ArviZ is not installed.
        ValueError: if there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"`path` must be an existing NetCDF file, received {path}."
        raise ValueError(msg)
    arviz = _import_arviz()
    loaded = arviz.from_netcdf(str(path), engine="h5netcdf")
    if _is_legacy(arviz):
        for group in loaded.groups():
            loaded[group].load().close()
    else:
        loaded.load()
        loaded.close()
    return loaded


def pareto_smooth(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Pareto-smoothed importance sampling, by ArviZ.

    Args:
        log_weights: log importance ratios of S draws, ``(S, *batch)``.

    Returns:
        Log of smoothed weights that sum to 1, ``(S, *batch)``, and the shape k of their tail, ``(*batch)``, in float64.
        Weights that are equal to 0.1 % have no tail: k is ``-inf``.

    Raises:
        ImportError: if ArviZ is not installed.
    """
    arviz = _import_arviz()
    ratios = log_weights.detach().double().movedim(0, -1).cpu()
    size = ratios.shape[-1]
    equal = ratios.amax(-1, keepdim=True) - ratios.amin(-1, keepdim=True) < _EQUAL
    raw = ratios.log_softmax(-1)
    # Without a tail ArviZ returns inf or NaN or raises, by version; any other numbers will do there.
    ratios = torch.where(equal, torch.linspace(0, 1, size, dtype=torch.float64), ratios).numpy()
    if _is_legacy(arviz):
        smoothed, shape = arviz.psislw(ratios)
    else:
        from arviz_stats.base import array_stats  # pyright: ignore[reportMissingImports] -- a part of ArviZ 1.x

        smoothed, shape = array_stats.psislw(-ratios)  # it takes the log-likelihoods of leave-one-out, not ratios
    weights = torch.where(equal, raw, torch.as_tensor(np.asarray(smoothed)))
    return weights.movedim(-1, 0), torch.where(equal.squeeze(-1), -torch.inf, torch.as_tensor(np.asarray(shape)))


def _import_arviz() -> ModuleType:
    try:
        import arviz
    except ImportError as error:
        msg = 'ArviZ is needed for this and is not installed. Run `pip install "arviz>=0.21"`.'
        raise ImportError(msg) from error
    return arviz


def _is_legacy(arviz: ModuleType) -> bool:
    return int(arviz.__version__.split(".")[0]) < 1


def _convert(
    arviz: ModuleType,
    data: dict[str, dict[str, np.ndarray]],
    coords: dict[str, list[Any]],
    dims: dict[str, list[str | None]],
) -> Any:  # noqa: ANN401 -- see `to_inference_data`
    """The only place that knows both versions: 0.2x takes groups as keywords, 1.x one nested dict."""
    if _is_legacy(arviz):
        return arviz.from_dict(**data, coords=coords, dims=dims)
    return arviz.from_dict(data, coords=coords, dims=dims)


def _array(group: str, name: str, value: Tensor, num_chains: int | None) -> np.ndarray:
    """One site as numpy with dims (chain, draw, ...) in sampled groups."""
    if not isinstance(value, Tensor):
        msg = f"`{group}` must map names to tensors, received {type(value).__name__} for '{name}'."
        raise TypeError(msg)
    array = value.detach().cpu().numpy().copy()  # later in-place changes of the tensor stay out of the record
    if group in _FIXED:
        return array
    if num_chains is None:
        array = array[np.newaxis] if array.ndim else array
        expected = "(draw, ...)"
    else:
        expected = f"({num_chains}, draw, ...)"
    if array.ndim < 2 or (num_chains is not None and array.shape[0] != num_chains):
        msg = (
            f"`{group}` site '{name}' must have shape {expected} for `num_chains`={num_chains}, received "
            f"{tuple(value.shape)}. Put the sample dimensions on the left."
        )
        raise ValueError(msg)
    return array


def _event_ranks(data: dict[str, dict[str, np.ndarray]]) -> dict[str, int]:
    """Rank of every site, sample dims left out; only a log-likelihood may have fewer dims than its site elsewhere."""
    ranks: dict[str, int] = {}
    for group, sites in sorted(data.items(), key=lambda item: item[0] == "log_likelihood"):
        for name, array in sites.items():
            rank = array.ndim - (0 if group in _FIXED else 2)
            known = ranks.setdefault(name, rank)
            if rank != known and not (group == "log_likelihood" and rank < known):
                msg = (
                    f"`{group}` site '{name}' has {rank} dimensions besides the sample dimensions, but {known} in "
                    "another group. Squeeze or unsqueeze one of them, or rename it."
                )
                raise ValueError(msg)
    return ranks


def _dimension_names(
    data: dict[str, dict[str, np.ndarray]],
    paths: Sequence[str],
    observations: Sequence[str],
    dims: Mapping[str, Sequence[str | None]],
) -> dict[str, list[str | None]]:
    """Dimension names per site; None where ArviZ shall make one up."""
    names: dict[str, list[str | None]] = {}
    for name, rank in _event_ranks(data).items():
        if name in dims:
            names[name] = list(dims[name])
            if len(names[name]) != rank:
                msg = f"`dims` must name the {rank} dimensions of '{name}', received {list(dims[name])}."
                raise ValueError(msg)
        elif name in paths or name in observations:
            default = _PATH_DIMS if name in paths else _OBSERVATION_DIMS
            names[name] = [*[None] * (rank - 3), *default[max(3 - rank, 0) :]]
    return names


def _check_coords(
    data: dict[str, dict[str, np.ndarray]],
    names: dict[str, list[str | None]],
    coords: dict[str, list[Any]],
) -> None:
    """Lengths of named dims must agree within a group and with `coords`; xarray's own errors name no site."""
    for group, sites in data.items():
        sizes = {dim: (len(values), "`coords`") for dim, values in coords.items()}
        for name, array in sites.items():
            shape = array.shape if group in _FIXED else array.shape[2:]
            for dim, size in zip(names.get(name, []), shape, strict=False):
                if dim is not None and sizes.setdefault(dim, (size, f"'{name}'"))[0] != size:
                    known, origin = sizes[dim]
                    msg = (
                        f"`{group}` site '{name}' has size {size} along '{dim}', but {origin} has {known}. "
                        "Give the site other dimension names through `dims`, or correct `coords`."
                    )
                    raise ValueError(msg)


def _plain(values: Sequence[Any] | Tensor) -> list[Any]:
    return values.detach().cpu().tolist() if isinstance(values, Tensor) else list(values)
