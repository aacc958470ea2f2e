r"""Steps of natural gradient for Gaussian pseudo-observations of paths.

For a Gaussian q the natural gradient of :math:`E_q[r]` has the coordinates :math:`-E[\nabla^2 r]` (precision) and
:math:`E[\nabla r] - E[\nabla^2 r]\, m` (precision times value), and by Stein's lemma the expected Hessian is the slope
of the regression of the score on the state. Least squares estimate it without second derivatives, and without noise
where r is quadratic.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ..distributions.kl import SiteLaw, site_law
from ._auto_base import PathMessenger

__all__ = ["Lines", "ScoredSite", "bounded", "least_squares", "plate_depth", "scored_sites", "unit_triangular"]

_RIDGE = 1e-10  # of least squares, relative: directions in which paths do not differ have slope 0


class Lines(NamedTuple):
    """Natural coordinates of pseudo-observations."""

    precision: Tensor  # (*batch, P, D, D)
    vector: Tensor  # (*batch, P, D): precision times value

    def towards(self, other: Lines, rate: float) -> Lines:
        """The coordinates a part of the way to others."""
        return Lines(*(ours + rate * (theirs - ours) for ours, theirs in zip(self, other, strict=True)))


class ScoredSite(NamedTuple):
    """Paths of one site, drawn from the guide, in a run of the model on them; the leftmost dimension is the draw."""

    name: str
    posterior: SiteLaw
    prior: SiteLaw
    path: Tensor
    log_joint: Tensor

    def score_beyond(self, log_reference: Tensor) -> Tensor:
        """Gradient of the log-joint minus the log-density of a reference, with respect to the path."""
        rest = self.log_joint - self.prior.finish(log_reference).sum()
        return torch.autograd.grad(rest, self.path, retain_graph=True)[0]


def plate_depth(trace: Trace) -> int:
    """Number of plate dimensions of a trace.

    Raises:
        ValueError: if a plate is subsampled.
    """
    depth = 0
    for name, site in trace.nodes.items():
        for frame in site["cond_indep_stack"] if site["type"] == "sample" else ():
            if frame.full_size is not None and frame.full_size != frame.size:
                msg = (
                    f"`warm_up` needs all series at once, but site '{name}' sees {frame.size} of {frame.full_size} in "
                    f"plate '{frame.name}'. Pass the whole data set, or leave `warm_up` out."
                )
                raise ValueError(msg)
            depth = max(depth, -(frame.dim or 0) if frame.vectorized else 0)
    return depth


def scored_sites(
    guide: PathMessenger, depth: int, num_particles: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[ScoredSite]:
    """Draw from a guide, run the model on the draws, and yield the path sites.

    Parameters of the guide may be read while the iteration lasts.
    """
    with pyro.plate("natural_gradient", num_particles, dim=-1 - depth):
        with torch.no_grad():
            guide(*args, **kwargs)
        trace = guide.trace.copy()
        names = [name for name, site in trace.nodes.items() if _is_latent_path(site)]
        for name in names:
            site: Any = trace.nodes[name]
            trace.nodes[name] = {**site, "value": site["value"].detach().requires_grad_()}  # type: ignore[assignment]
        with torch.enable_grad():
            model = poutine.trace(poutine.replay(guide.model, trace=trace)).get_trace(*args, **kwargs)
            log_joint: Any = prune_subsample_sites(model).log_prob_sum()
        with guide.reading():
            for name in names:
                posterior, prior = (site_law(run.nodes[name]["fn"]) for run in (trace, model))
                path: Any = trace.nodes[name]["value"]
                yield ScoredSite(name, posterior, prior, path, log_joint)  # type: ignore[arg-type]


def _is_latent_path(site: Any) -> bool:  # noqa: ANN401 (a Pyro message)
    return site["type"] == "sample" and not site["is_observed"] and site_law(site["fn"]) is not None


def least_squares(path: Tensor, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lines of scores in states over the leftmost dimension, ``(S, *batch, P, D)``, in float64.

    Returns:
        Minus the symmetric part of the slope ``(*batch, P, D, D)``, and the means of states and scores.
    """
    path, score = path.double(), score.double()
    centre, force = path.mean(0), score.mean(0)
    deviations = path - centre
    scale = deviations.square().sum(0).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    standard = deviations / scale
    ridge = _RIDGE * torch.eye(path.shape[-1], dtype=path.dtype, device=path.device)
    gram = torch.einsum("s...i,s...j->...ij", standard, standard) + ridge
    cross = torch.einsum("s...i,s...j->...ij", standard, score - force)
    slope = torch.linalg.solve(gram, cross) / scale.unsqueeze(-1)
    return -0.5 * (slope + slope.mT), centre, force


def bounded(precision: Tensor, floor: Tensor) -> Tensor:
    """Nearest precisions ``(*batch, P, D, D)`` not below a diagonal one ``(*batch, P, D)``, in its units."""
    unit = floor.sqrt()
    values, basis = torch.linalg.eigh(precision / (unit.unsqueeze(-1) * unit.unsqueeze(-2)))
    matrix = (basis * values.clamp(min=1.0).unsqueeze(-2)) @ basis.mT
    return matrix * unit.unsqueeze(-1) * unit.unsqueeze(-2)


def unit_triangular(precision: Tensor) -> tuple[Tensor, Tensor]:
    r"""Diagonal :math:`\Lambda` and unit upper triangular R with :math:`R^\top \Lambda R` the precision."""
    factor = torch.linalg.cholesky(precision)
    diagonal = factor.diagonal(dim1=-2, dim2=-1)
    return diagonal.square(), (factor / diagonal.unsqueeze(-2)).mT
