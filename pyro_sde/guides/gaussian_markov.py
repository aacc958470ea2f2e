r"""The posterior of a path as a Gaussian Markov chain: pseudo-observations, and the exact smoother."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from ..distributions.base import PathDistribution
from ..distributions.gaussian_path import GaussianPath
from ..nn.base import Encoder, check_observations, check_positive, check_widths
from ..nn.mlp import MLP
from ..ops._arguments import check_numbers
from ..ops.grid import TimeGrid
from ..ops.linear_observations import LinearObservations
from ..sde.linear import LinearSDE
from ._linearise import PathLaw, check_path_law, is_linear, linearise, moving_points, prior_mean

__all__ = ["EncodedSites", "FreeSites", "GaussianMarkov", "ObservedSites", "PseudoObservations"]

# Observations may be 10^6 times as precise as the prior; in these units Adam at its usual 0.01 gets there in 100 steps.
LOG_UNIT = 10.0
_HEAD_SCALE = 0.01
_LOG_RANGE = 40.0  # of the logarithm of a precision, so that no network can reach infinity


class PseudoObservations(NamedTuple):
    """Pseudo-observations of the states, at the N observation times or at all T grid points; P is N or T.

    Attributes:
        value: ``(*batch, P, D)``.
        precision: inverse variances, ``> 0``, ``(*batch, P, D)``.
    """

    value: Tensor
    precision: Tensor


class FreeSites(nn.Module):
    r"""Pseudo-observations that are parameters, for series that are all at hand.

    With one at every observation time they are exact for a linear prior and a Gaussian likelihood of every state; for
    a non-linear prior take one at every grid point. The logarithm of a precision is ten times its parameter, so that
    Adam at its usual rates reaches precise observations within a hundred steps.

    Args:
        count: number P of points, ``N`` or ``T`` of the grid.
        state_dim: number D of states.
        batch_shape: one set of parameters for each series of a batch.
        precision: initial precision, in units of 1 / state squared; small, for a start at the prior.

    Raises:
        ValueError: if a size or `precision` is not positive.
    """

    def __init__(
        self, count: int, state_dim: int, batch_shape: tuple[int, ...] = (), *, precision: float = 1e-3
    ) -> None:
        super().__init__()
        shape = (
            *check_widths("batch_shape", batch_shape),
            check_positive("count", count),
            check_positive("state_dim", state_dim),
        )
        self.value = nn.Parameter(torch.zeros(shape))
        self.log_precision = nn.Parameter(torch.full(shape, _start(precision)))

    def forward(self, grid: TimeGrid, values: Tensor | None, mask: Tensor | None) -> PseudoObservations:
        """The parameters, ``(*batch_shape, P, D)``, whatever the arguments."""
        del grid, values, mask
        return PseudoObservations(self.value, _precision(self.log_precision))


class ObservedSites(nn.Module):
    """Pseudo-observations from a network that reads one observation at a time, for new series without training.

    The smoother does what a recurrent network does in other guides: it carries information along time, forwards and
    backwards, at the pace of the prior. Missing channels enter as 0 with their mask; a time without an observed channel
    gets no pseudo-observation.

    Args:
        value_dim: number O of observed channels.
        state_dim: number D of states.
        hidden: widths of the network.
        precision: initial precision, in units of 1 / state squared.

    Raises:
        ValueError: if a size or `precision` is not positive.
    """

    def __init__(
        self, value_dim: int, state_dim: int, hidden: tuple[int, ...] = (32,), *, precision: float = 1e-3
    ) -> None:
        super().__init__()
        self.value_dim = check_positive("value_dim", value_dim)
        start = torch.tensor([0.0, _start(precision)])  # checked before weights are drawn
        self.net = MLP(2 * value_dim, 2 * check_positive("state_dim", state_dim), hidden, last_scale=_HEAD_SCALE)
        self.bias = nn.Parameter(start.repeat_interleave(state_dim))

    def forward(self, grid: TimeGrid, values: Tensor, mask: Tensor | None) -> PseudoObservations:
        """One pseudo-observation for each observation ``(*batch, N, O)``."""
        values, observed, _ = check_observations(grid, values, mask, self.bias, self.value_dim)
        return _split(self.net(torch.cat([values, observed.to(values)], -1)) + self.bias)


class EncodedSites(nn.Module):
    """Pseudo-observations at all grid points from an `Encoder`, for non-linear priors and many series.

    The point :math:`t_{k+1}` is read off row k of the context, the first point off the encoder's initial law.

    Args:
        encoder: reads the series.
        precision: initial precision, in units of 1 / state squared.

    Raises:
        TypeError: if `encoder` is not an `Encoder`.
        ValueError: if `precision` is not positive.
    """

    def __init__(self, encoder: Encoder, *, precision: float = 1e-3) -> None:
        super().__init__()
        if not isinstance(encoder, Encoder):
            msg = f"`encoder` must be an Encoder, received {type(encoder).__name__}. Try GRUEncoder(O, D, C)."
            raise TypeError(msg)
        self.encoder = encoder
        states = encoder.state_dim
        start = _start(precision)  # checked before weights are drawn
        self.head = nn.Linear(encoder.context_dim, 2 * states)
        self.first = nn.Parameter(torch.full((states,), start))
        with torch.no_grad():
            self.head.weight.mul_(_HEAD_SCALE)
            self.head.bias.zero_()
            self.head.bias[states:] = start

    def forward(self, grid: TimeGrid, values: Tensor, mask: Tensor | None) -> PseudoObservations:
        """One pseudo-observation for each grid point, ``(*batch, T, D)``, given observations ``(*batch, N, O)``."""
        encoding = self.encoder(grid, values, mask)
        rows = self.head(encoding.context)  # (*batch, K, 2 D)
        first = encoding.initial.mean
        first = torch.cat([first, self.first.expand_as(first)], -1).expand(*rows.shape[:-2], rows.shape[-1])
        return _split(torch.cat([first.unsqueeze(-2), rows], -2))


class GaussianMarkov(PyroModule):
    r"""Posterior path law :math:`q(z) \propto p_{\mathrm{ref}}(z) \prod_n N(v_n;\, z(t_n),\, \lambda_n^{-1})`.

    A Gaussian Markov chain, for any prior and likelihood: the reference :math:`p_{\mathrm{ref}}` is a linear-Gaussian
    chain on the grid of the prior, `sites` gives pseudo-observations :math:`v_n` of the states with precisions
    :math:`\lambda_n`, learned or read off the data by a network, and the exact smoother does the rest. It starts near
    the prior, as the precisions are small. Where the prior is linear
    and the likelihood Gaussian it is exact: the evidence lower bound is then the evidence, path by path, and the
    gradient of ``PathELBO("stl")`` has no variance.

    The reference of a `GaussianPath`, or of an `SDEPath` of a `LinearSDE`, is the prior itself. That of any other
    `SDEPath` is its linearisation about a centre, with the diffusion of its Euler–Maruyama kernels there: first about
    its path without noise, then about the mean of the posterior so found, `iterations` times in all. That costs K
    sequential calls of the drift, and D + 1 batched ones for each linearisation.

    Note:
        Guide and prior are chains on one grid, so their divergence is finite for any pair with noise in the same
        directions, and ``PathELBO`` works with every `kl`: "stl" and "full" by the densities of both, "closed" by the
        divergence of Gaussian kernels with different covariances. In the limit of fine grids it stays finite only where
        both diffusions agree, as they do here for diffusions that do not depend on the state. If they do, or with a
        `reference` of another diffusion, it grows with the number of steps: use a `PosteriorSDE` there. States without
        noise need a drift that is linear (position and velocity).

    Args:
        sites: module that returns `PseudoObservations` from ``(grid, values, mask)``: `FreeSites`, `ObservedSites`,
            `EncodedSites`, or your own.
        reference: a `LinearSDE` for the reference instead, learned or fixed, from the first state of the prior.
        iterations: number of linearisations of a non-linear prior.

    Shape:
        values: ``(*batch, N, O)`` · mask: ``(*batch, N, O)`` or ``(*batch, N)`` · law: event ``(T, D)``.

    Raises:
        TypeError: if `sites` is no module or `reference` no `LinearSDE`.
        ValueError: if `iterations` is not an integer >= 1.

    References:
        Archer, Park, Buesing, Cunningham, Paninski (2015), Black box variational inference for state space models,
        arXiv 1511.07367; Johnson, Duvenaud, Wiltschko, Datta, Adams (2016), Composing graphical models with neural
        networks, arXiv 1603.06277, section 4 (potentials from a recognition network); Verma, Adam, Solin (2024),
        Variational Gaussian process diffusion processes, arXiv 2306.02066.

    Example:
        >>> import torch
        >>> from pyro_sde import GaussianPath, TimeGrid
        >>> from pyro_sde.sde import Matern32
        >>> prior = GaussianPath(Matern32(lengthscale=0.5), None, TimeGrid(torch.tensor([0.0, 0.4, 1.0])))
        >>> GaussianMarkov(FreeSites(3, state_dim=2))(prior)
        GaussianPath(batch_shape=(), event_shape=(3, 2))
    """

    def __init__(self, sites: nn.Module, *, reference: LinearSDE | None = None, iterations: int = 2) -> None:
        super().__init__("gaussian_markov")  # a prefix in the parameter store; a parent module replaces it
        if not isinstance(sites, nn.Module):
            msg = f"`sites` must be a module that returns PseudoObservations, received {type(sites).__name__}."
            raise TypeError(msg)
        if reference is not None and not isinstance(reference, LinearSDE):
            msg = f"`reference` must be a LinearSDE, received {type(reference).__name__}."
            raise TypeError(msg)
        self.sites = sites
        self.reference = reference
        self.iterations = check_positive("iterations", iterations)

    def forward(
        self, prior: PathDistribution, values: Tensor | None = None, mask: Tensor | None = None
    ) -> GaussianPath:
        """Law of the path given the observed series.

        Args:
            prior: path law of the model, `SDEPath` or `GaussianPath`; an argument, never a part of the guide.
            values: observations at ``grid.observed_times``; anything, also NaN, where they are not observed. Not
                needed for `FreeSites`.
            mask: True = observed; everything at valid times if None. A time without an observed entry has no
                pseudo-observation, if these belong to observation times.

        Raises:
            TypeError: if `prior` is another law, or `sites` returns something else.
            ValueError: if shapes do not fit; the message names the argument.
        """
        law = check_path_law(prior, "GaussianMarkov builds posteriors of")
        sites = self.sites(law.grid, values, mask)
        _check_sites(sites, law)
        mask = _times_mask(law.grid, values, mask)
        if self.reference is not None:
            kind = "exact" if isinstance(law, GaussianPath) else "euler"
            law = GaussianPath(self.reference, law.initial, law.grid, discretisation=kind)
        if isinstance(law, GaussianPath):
            return _condition(law, None, sites, mask)
        centre = law.grid.times.new_zeros(law.event_shape) if is_linear(law) else prior_mean(law)
        for _ in range(0 if is_linear(law) else self.iterations - 1):
            centre = _condition(law, centre, sites, mask).mean
        return _condition(law, centre, sites, mask)


def _condition(law: PathLaw, centre: Tensor | None, sites: PseudoObservations, mask: Tensor | None) -> GaussianPath:
    """Posterior of the linearised law given pseudo-observations at all points, or at the observation times."""
    reference = GaussianPath.from_chain(linearise(law, centre), law.grid)
    value, precision = sites
    unit = torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)
    if value.shape[-2] == law.grid.mask.shape[-1]:
        if mask is not None:
            batch = torch.broadcast_shapes(mask.shape[:-1], law.grid.batch_shape)
            mask = mask.unsqueeze(-1).expand(*batch, *value.shape[-2:])
        return reference.condition(unit, precision.rsqrt(), value, mask)
    value, valid = torch.broadcast_tensors(value, moving_points(law.grid).unsqueeze(-1))
    variance = precision.double().reciprocal()
    return reference.condition_points(LinearObservations(value, unit, variance=variance, mask=valid, validate=False))


def _times_mask(grid: TimeGrid, values: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Mask of times ``(*batch, N)``."""
    if mask is None:
        return None
    entries = values is not None and mask.dim() == values.dim() and mask.shape[-2:] == values.shape[-2:]
    times = mask.any(-1) if mask.dtype == torch.bool and entries else mask
    if mask.dtype != torch.bool or times.shape[-1:] != grid.mask.shape[-1:]:
        count = grid.mask.shape[-1]
        msg = (
            f"`mask` must be a bool tensor (True = observed) of shape (*batch, {count}), or of the shape of `values`; "
            f"received {mask.dtype} {tuple(mask.shape)}."
        )
        raise ValueError(msg)
    return times


def _check_sites(sites: object, law: PathLaw) -> None:
    if not isinstance(sites, PseudoObservations):
        msg = f"`sites` must return PseudoObservations, received {type(sites).__name__}."
        raise TypeError(msg)
    points, count = law.event_shape[0], law.grid.mask.shape[-1]
    for name, part in sites._asdict().items():
        if part.shape[-1:] != law.event_shape[-1:] or part.shape[-2:-1] not in ((points,), (count,)):
            msg = (
                f"`{name}` of the pseudo-observations must have shape (*batch, {count}, {law.event_shape[-1]}) "
                f"(observation times) or (*batch, {points}, {law.event_shape[-1]}) (grid points), received "
                f"{tuple(part.shape)}."
            )
            raise ValueError(msg)


def _start(precision: float) -> float:
    """Logarithm of an initial precision in the units of the parameters."""
    check_numbers(precision=precision)
    if not (precision > 0 and math.isfinite(precision)):
        msg = f"`precision` must be a positive finite number, received {precision!r}."
        raise ValueError(msg)
    return math.log(precision) / LOG_UNIT


def _split(rows: Tensor) -> PseudoObservations:
    value, logarithm = rows.chunk(2, -1)
    return PseudoObservations(value, _precision(logarithm))


def _precision(logarithm: Tensor) -> Tensor:
    return (LOG_UNIT * logarithm).clamp(-_LOG_RANGE, _LOG_RANGE).exp()
