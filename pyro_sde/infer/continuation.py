r"""Paths that begin with given states and go on as a path law says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ..distributions.base import PathDistribution
from ..distributions.kl import site_law
from ..ops._arguments import check_real
from ..ops._grid_times import as_tensor
from ._particle_stepper import Stepper
from ._particle_steps import stepwise

__all__ = ["ContinuePaths", "continue_path"]


def continue_path(law: PathDistribution, known: Tensor, points: int | Tensor | None = None) -> Tensor:
    r"""Path of a law whose first states are given: :math:`z_{k+1} \sim p_k(\cdot \mid z_k)` for :math:`k \ge n - 1`.

    The forecast of a Markov chain: with states of a posterior path up to the last observation, and the law of the model
    on a grid that goes on, the rest is a draw from the law of the future. Cost: one step of the law after another, as
    sampling it.

    Args:
        law: an `SDEPath`, `GaussianPath` or `MarkovPath` of T points.
        known: first states, ``(..., *batch, n, D)`` with ``1 <= n <= T``.
        points: how many of them are known, 1 to n; a number, or one per series ``(*batch,)``; n if None.

    Returns:
        Paths ``(..., *batch, T, D)``, which hold the known states unchanged.

    Raises:
        TypeError: if the law is of another kind, or `known` no tensor.
        ValueError: if shapes do not fit, `points` is out of range, or a path is not finite.

    Example:
        >>> from pyro_sde import SDEPath, TimeGrid
        >>> from pyro_sde.sde import BrownianMotion
        >>> import pyro.distributions as dist
        >>> law = SDEPath(BrownianMotion(), dist.Normal(torch.zeros(1), 1.0).to_event(1), TimeGrid([0.0, 1.0, 2.0]))
        >>> continue_path(law, torch.full((5, 1, 1), 7.0))[:, 0].unique()
        tensor([7.])
    """
    stepper, tail = _stepper(law), len(law.event_shape) - 1
    check_real(known=known)
    if known.dim() <= tail or known.shape[known.dim() - tail :] != law.event_shape[1:]:
        msg = f"`known` must have shape (..., n, {', '.join(map(str, law.event_shape[1:]))}), got {tuple(known.shape)}."
        raise ValueError(msg)
    time = known.dim() - tail - 1
    count, total = known.shape[time], law.event_shape[0]
    if not 1 <= count <= total:
        msg = f"`known` must hold 1 to {total} states, the points of the law; received {count}."
        raise ValueError(msg)
    batch = _batch_of(law, known.shape[:time])
    first = _points(points, count, law.batch_shape)
    draws = math.prod(batch[: len(batch) - len(law.batch_shape)])
    given = known.expand(*batch, *known.shape[time:]).reshape(draws, *law.batch_shape, *known.shape[time:])
    path = _walk(stepper, given.movedim(given.dim() - tail - 1, 0), first)
    path = path.movedim(0, path.dim() - tail - 1).reshape(*batch, *law.event_shape)
    if path.is_floating_point() and not bool(torch.isfinite(path.detach()).all()):
        msg = (
            f"`law`, a {type(law).__name__}, became non-finite when it was continued beyond {count} of {total} points. "
            "Use smaller steps, or bound its drift."
        )
        raise ValueError(msg)
    return path


class ContinuePaths(Messenger):
    """Handler that lets a model go on with paths that a guide, or another sampler, has drawn on a shorter grid.

    A path site takes the given states for its first points and draws the others by its own law (`continue_path`); any
    other latent site takes the given value, as `poutine.replay` has it. Run the guide on the data, then the model
    under this handler on a grid that goes on: what it samples at its observed sites is a forecast. For models and
    guides of ``(grid, values, mask)``, `PathForecaster` does all this.

    The longer grid must begin with the points of the shorter one. It does if both have one `max_step` and observation
    times of which the first are the same.

    Args:
        given: values by the names of their sites, or the trace of a guide, of which the sampled sites are taken; a path
            is ``(..., *batch, n, D)``.
        points: how many states are known, as in `continue_path`; a mapping gives one for every path site.

    Raises:
        ValueError: at a path site, as `continue_path`; the message names the site.
        TypeError: likewise.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_sde import SDEPath, TimeGrid
        >>> from pyro_sde.sde import BrownianMotion
        >>> start = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        >>> model = lambda times: pyro.sample("z", SDEPath(BrownianMotion(), start, TimeGrid(times)))
        >>> past = model(torch.tensor([0.0, 1.0]))
        >>> with ContinuePaths({"z": past}):
        ...     path = model(torch.tensor([0.0, 1.0, 2.0, 3.0]))
        >>> torch.equal(path[:2], past), path.shape
        (True, torch.Size([4, 1]))
    """

    def __init__(
        self, given: Mapping[str, Tensor] | Trace, points: int | Tensor | Mapping[str, int | Tensor] | None = None
    ) -> None:
        super().__init__()
        names = given.stochastic_nodes if isinstance(given, Trace) else given
        self.given: dict[str, Any] = {
            n: given.nodes[n]["value"] if isinstance(given, Trace) else given[n] for n in names
        }
        self.points = points

    def _pyro_sample(self, msg: Any) -> None:  # noqa: ANN401 (Pyro's message)
        name = msg["name"]
        if name not in self.given or msg["is_observed"] or msg["done"]:
            return
        value, site = self.given[name], site_law(msg["fn"])
        if site is not None:
            points = self.points.get(name) if isinstance(self.points, Mapping) else self.points
            try:
                value = continue_path(site.law, value, points)
            except (TypeError, ValueError) as error:
                message = f"site '{name}': {error}"
                raise type(error)(message) from error
        msg["value"] = value
        msg["done"] = True


def _stepper(law: PathDistribution) -> Stepper:
    try:
        return stepwise(law)
    except TypeError:
        msg = (
            f"`law` is a {type(law).__name__}, which cannot be continued: pass an SDEPath, a GaussianPath or a "
            "MarkovPath, without `.mask` or `.to_event`."
        )
        raise TypeError(msg) from None


def _batch_of(law: PathDistribution, shape: torch.Size) -> torch.Size:
    try:
        return torch.broadcast_shapes(shape, law.batch_shape)
    except RuntimeError as error:
        batches = f"{tuple(shape)} and {tuple(law.batch_shape)}"
        msg = f"the batch dimensions of `known` and of `law` must broadcast, received {batches}."
        raise ValueError(msg) from error


def _points(points: int | Tensor | None, count: int, batch: torch.Size) -> Tensor:
    """Number of known states, ``()`` or ``(*batch,)``."""
    first = as_tensor(count if points is None else points, "points")
    fits = (
        not first.is_floating_point()
        and not first.is_complex()
        and first.dtype != torch.bool
        and first.dim() <= len(batch)
    )
    fits = fits and all(a in (1, b) for a, b in zip(reversed(first.shape), reversed(batch), strict=False))
    if not fits or bool((first < 1).any()) or bool((first > count).any()):
        msg = (
            f"`points` must be whole numbers from 1 to {count}, the states in `known`, one for all or of shape "
            f"{tuple(batch)}; received {points}."
        )
        raise ValueError(msg)
    return first


def _walk(stepper: Stepper, known: Tensor, points: Tensor) -> Tensor:
    """Paths with time leftmost, ``(T, P, *batch, D)``, of known states ``(n, P, *batch, D)``."""
    begin, last = int(points.min()), int(points.max())
    ahead = points if len(stepper.tail) == 0 else points.unsqueeze(-1)
    states, carried = list(known[:begin]), None
    for k in range(begin - 1, stepper.num_steps):
        move = stepper.advance(k, states[-1], carried, scored=False)
        if k + 1 < last:  # some series are still in their past; a solver that carries something starts anew after it
            states.append(torch.where((k + 1 < ahead).to(known.device), known[k + 1], move.state))
        else:
            states.append(move.state)
            carried = move.carried
    return torch.stack(states)
