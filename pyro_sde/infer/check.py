"""Finds the mistakes in a model/guide pair that raise no error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ._pair_checks import (
    find_bad_values,
    find_dtypes,
    find_infinite_kl,
    find_mean_field,
    find_shared_laws,
    find_unmatched,
    first_lines,
)
from ._probe import Finding, Probe, probe, untouched
from ._training_checks import find_leaks, find_overcounts, find_stale, find_unregistered

__all__ = ["Finding", "check"]

_DETECTORS: tuple[Callable[[Probe], Iterator[Finding]], ...] = (
    find_bad_values,
    find_dtypes,
    find_unmatched,
    find_infinite_kl,
    find_mean_field,
    find_shared_laws,
    find_unregistered,
    find_stale,
    find_leaks,
    find_overcounts,
)


def check(model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Finding, ...]:  # noqa: ANN401
    """Look for mistakes in a model/guide pair that would train without an error; empty if there is none.

    Kinds of findings:

    * "failure": the pair does not run because a value or shape is wrong, with the error's text (other errors are
      raised as they are);
    * "shape": a site has batch dimensions that are no plate;
    * "overcount": a site counts terms twice, or differs, under ``vectorize_particles`` (time or state of a path
      declared as plates);
    * "leak": one element of a plate depends on another, as when a latent of shape ``(B,)`` meets the state dimension;
    * "unregistered": parameters that no param site covers, so that SVI does not train them;
    * "stale": a module whose parameters are not those of Pyro's store, as after ``param_store.load``;
    * "mean_field": a path whose guide treats its states as independent or known;
    * "shared_law": one law object of the guide at two sites;
    * "unmatched": a latent site on one side only, auxiliary paths without reverse model included;
    * "grid" and "infinite_kl": guide and model on different grids, with different diffusions, or otherwise singular;
    * "non_finite": a NaN or infinite log-probability;
    * "dtype": several floating-point types.

    It runs the pair a few times, on the arguments given and without a training step. Parameters in Pyro's store,
    gradients and random number generators are as before; an automatic guide creates its parameters, and buffers of
    modules see the runs. It cannot see what depends on other arguments, on chance or on later values of parameters.

    Args:
        model: the model.
        guide: the guide.
        *args: arguments of both.
        **kwargs: keyword arguments of both.

    Returns:
        The findings; print them, or ``assert not check(model, guide, *args)`` in a test.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_sde.infer.check import check
        >>> def model(y):
        ...     pyro.sample("y", dist.Normal(pyro.sample("x", dist.Normal(0.0, 1.0)), 1.0), obs=y)
        >>> def guide(y):
        ...     pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
        >>> check(model, guide, torch.tensor(float("nan")))[0].kind
        'non_finite'
    """
    with untouched(), torch.enable_grad():
        try:
            probed = probe(model, guide, args, kwargs)
        except ValueError as error:
            return (Finding("failure", None, first_lines(error)),)
        findings = [finding for detector in _DETECTORS for finding in detector(probed)]
    return tuple(dict.fromkeys(findings))
