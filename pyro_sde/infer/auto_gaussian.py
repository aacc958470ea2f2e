"""Automatic guides whose path sites are Gaussian Markov chains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from ..distributions.gaussian_path import GaussianPath
from ..distributions.kl import SiteLaw, site_law
from ..guides._linearise import PathLaw, check_path_law, is_linear, linearise, moving_points, prior_mean
from ..guides.gaussian_markov import LOG_UNIT
from ..nn.base import check_positive
from ..ops.gaussian_chain import GaussianChain
from ..ops.linear_observations import LinearObservations
from ._auto_base import PathMessenger, rewrap
from ._free_control import ROW_UNIT
from ._natural import Lines, ScoredSite, bounded, least_squares, plate_depth, scored_sites, unit_triangular

__all__ = ["AutoGaussianMarkov"]

_POINTS = ("grid", "observed")
_START = 0.03  # initial information of all pseudo-observations together, relative to that of a state of the prior


class AutoGaussianMarkov(PathMessenger):
    r"""Guide that gives every path site a Gaussian Markov chain, and every other latent site a mean-field Normal.

    .. math:: q(z) \propto p_{\mathrm{lin}}(z) \prod_k N(R_k v_k;\, R_k z_k,\, \mathrm{diag}(1 / \lambda_k))

    The reference :math:`p_{\mathrm{lin}}` is the prior itself where that is linear-Gaussian (a `GaussianPath`, or an
    `SDEPath` of a `LinearSDE`), otherwise the chain of its Euler–Maruyama kernels linearised about a learned path
    (``centre``) with learned corrections of the slope (``gain``). Pseudo-observations of the states at grid points,
    with learned values v, precisions :math:`\lambda` and unit triangular mixing R, turn it into the posterior by the
    exact smoother. The prior is read while the model runs, so that hierarchical models work. Training starts near it:
    at first all pseudo-observations together know little beside what the prior knows of one state.

    Every linear-Gaussian posterior is a member, on every grid: the exact one of a Gaussian likelihood of a linear prior
    included. Use it for latent Gaussian processes with any likelihood, and for posteriors with one mode. A path that is
    likely to be in one of two wells has no good Gaussian approximation: use `AutoSDE`. So too where the diffusion
    depends on the state: see the note of `GaussianMarkov`.

    `warm_up` sets the parameters of the paths by steps of natural gradient, which precise data need; then train with
    `SVI`, at a small learning rate. Other latent sites are as in `AutoSDE`. Parameters are created at the first call,
    named ``AutoGaussianMarkov.<site>.<name>``, and subsampled with their plates. Sampling calls no drift. Cost: the
    smoother, O(T D^3), and for a non-linear prior D + 1 batched calls of the drift.

    Args:
        model: the model; it may contain any number of path sites.
        points: where pseudo-observations are: "grid", at all points of the solver grid; "observed", at the observation
            times of the grid, which is enough for a linear prior and a likelihood of ``grid.observed(z)``.
        init_scale: initial standard deviation of sites that are no paths, in unconstrained space, ``> 0``.

    Raises:
        TypeError: if a path site has another law than `SDEPath` or `GaussianPath`.
        ValueError: if an argument is out of range, a latent site is discrete, a first state has no Gaussian posterior,
            the shape of a path site changes between calls, or a parameter of the same name and another shape is in
            Pyro's store.

    References:
        Verma, Adam, Solin (2024), Variational Gaussian process diffusion processes, arXiv 2306.02066 (sites on a
        linearised prior); Archambeau, Cornford, Opper, Shawe-Taylor (2007), Gaussian process approximations of
        stochastic differential equations, PMLR 1 (the same family).

    Example:
        >>> import torch, pyro
        >>> from pyro_sde import GaussianPath, TimeGrid
        >>> from pyro_sde.sde import Matern32
        >>> grid = TimeGrid(torch.tensor([0.0, 0.4, 1.0]))
        >>> guide = AutoGaussianMarkov(lambda: pyro.sample("z", GaussianPath(Matern32(lengthscale=0.5), None, grid)))
        >>> guide()["z"].shape
        torch.Size([3, 2])
    """

    def __init__(self, model: Callable[..., Any], *, points: str = "grid", init_scale: float = 0.1) -> None:
        if points not in _POINTS:
            msg = f"`points` must be one of {_POINTS}, received {points!r}."
            raise ValueError(msg)
        super().__init__(model, "AutoGaussianMarkov", init_scale)
        self.points = points

    def get_posterior(self, name: str, prior: TorchDistributionMixin) -> TorchDistributionMixin:
        """Posterior law of one site, called while the model runs.

        Override it for sites that need another guide, and call this method for the others. `prior` is the law of the
        model at the site, given the values of upstream sites (`upstream_value`).

        Args:
            name: the site.
            prior: its law in the model, broadcast over the plates of the model.

        Returns:
            The posterior law, in the wrappers (mask, event dimensions) of the prior.
        """
        site = site_law(prior)
        if site is None:
            return self.mean_field(name, prior)
        law = check_path_law(site.law, f"site '{name}': AutoGaussianMarkov builds posteriors of")
        try:
            reference = GaussianPath.from_chain(self.reference(name, site), law.grid)
        except ValueError as error:
            msg = f"site '{name}': {error}"
            raise ValueError(msg) from error
        value, precision, mixing = self.pseudo_observations(name, site)
        rows = mixing @ value.unsqueeze(-1)
        values, variance = rows.squeeze(-1), precision.reciprocal()
        if self.points == "observed":
            posterior = reference.condition(mixing, variance.sqrt(), values)
        else:
            values, valid = torch.broadcast_tensors(values, moving_points(law.grid).unsqueeze(-1))
            sites = LinearObservations(values, mixing, variance=variance, mask=valid, validate=False)
            posterior = reference.condition_points(sites)
        return rewrap(site, posterior)

    def warm_up(
        self,
        *args: Any,  # noqa: ANN401
        num_steps: int = 30,
        num_particles: int = 16,
        rate: float = 0.5,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        r"""Move the parameters of all path sites by steps of natural gradient; other sites stay as they are.

        With r(z) the logarithm of the joint density of the model over that of the reference, each step draws paths and
        takes, at every point, the least-squares line of the score :math:`\partial r / \partial z_k` in :math:`z_k`:
        its slope is minus the precision, its zero the value of the new pseudo-observation. For a linear prior and a
        Gaussian likelihood one step of rate 1 is exact, for any number of particles above ``D + 1``. It costs one run
        of the model with vectorised particles and needs no learning rate, whatever the precision of the data: 30 steps
        do what takes thousands of steps of Adam. What is left is noise of the least squares, for `SVI` to remove.

        Args:
            *args: arguments of the model, for all series: plates must not be subsampled.
            num_steps: number of steps.
            num_particles: paths per step and series.
            rate: how far to go, in ``(0, 1]``.
            **kwargs: keyword arguments of the model.

        Raises:
            ValueError: if an argument is out of range, the model has no path site, or a plate is subsampled.

        References:
            Khan and Lin (2017), Conjugate-computation variational inference, arXiv 1703.04265, eq. (9).
        """
        if not 0 < rate <= 1:
            msg = f"`rate` must be a number in (0, 1], received {rate!r}."
            raise ValueError(msg)
        check_positive("num_particles", num_particles)
        with torch.no_grad():
            self(*args, **kwargs)
        depth, moved = plate_depth(self.trace), 0
        for _ in range(check_positive("num_steps", num_steps)):
            for site in scored_sites(self, depth, num_particles, args, kwargs):
                if isinstance(site.posterior.law, GaussianPath) and self._owns(site.name):
                    self._move(site, num_particles, rate)
                    moved += 1
        if not moved:
            msg = "the model has no latent path site of this guide, so there is nothing to warm up."
            raise ValueError(msg)

    def _move(self, scored: ScoredSite, num_particles: int, rate: float) -> None:
        """One step of natural gradient for one path site, and the centre of its linearisation to its mean."""
        name, site = scored.name, scored.prior
        law: PathLaw = site.law  # type: ignore[assignment]
        size = law.event_shape[-1]
        if num_particles < size + 2:
            msg = f"`num_particles` must be >= {size + 2} at site '{name}' of {size} states, received {num_particles}."
            raise ValueError(msg)
        with torch.no_grad():
            if not is_linear(law):
                centre = self._read(name, "centre")
                mean = scored.posterior.law.mean.mean(0).reshape(centre.shape)
                self._write(name, centre=centre + rate * (mean - centre))
            reference = GaussianPath.from_chain(self.reference(name, site), law.grid).expand(law.batch_shape)
        with torch.enable_grad():
            score = scored.score_beyond(reference.log_prob(scored.path))
        with torch.no_grad():
            value, precision, mixing = (part.double() for part in self.pseudo_observations(name, site))
            before = mixing.mT @ (precision.unsqueeze(-1) * mixing)
            # below the first precisions a pseudo-observation says nothing, and its value drifts under Adam
            floor = self.floor(name, site).mean(0)
            slope, state, force = least_squares(self._at_points(law, scored.path), self._at_points(law, score))
            slope = bounded(slope, floor)
            after = Lines(slope, force + (slope @ state.unsqueeze(-1)).squeeze(-1))
            lines = Lines(before, (before @ value.unsqueeze(-1)).squeeze(-1)).towards(after, rate)
            precision, mixing = unit_triangular(lines.precision)
            value = torch.linalg.solve(lines.precision, lines.vector)
            row, column = torch.triu_indices(size, size, 1)
            self._write(name, value=value, log_precision=precision.log() / LOG_UNIT, mixing=mixing[..., row, column])

    # ---------------------------------------------------------------- parts of a posterior
    def reference(self, name: str, site: SiteLaw) -> GaussianChain:
        """The linearised prior of a path site."""
        law: PathLaw = site.law  # type: ignore[assignment]
        if isinstance(law, GaussianPath):
            return law.chain
        if is_linear(law):
            return linearise(law, law.grid.times.new_zeros(law.event_shape))
        centre = self._param(name, "centre", site, law.event_shape, lambda: prior_mean(law))
        steps, brownian = law.noise_shape()[-2:]
        tail = torch.Size((steps, brownian * law.event_shape[-1]))
        gain = self._param(name, "gain", site, tail, lambda: law.grid.times.new_zeros(tail))
        span = law.grid.times.detach()[..., -1:] - law.grid.times.detach()[..., :1]
        unit = ROW_UNIT * torch.where(span > 0, span, torch.ones_like(span)).rsqrt()  # as in AutoSDE; see there
        return linearise(law, centre, (gain * unit.unsqueeze(-1)).unflatten(-1, (brownian, -1)))

    def pseudo_observations(self, name: str, site: SiteLaw) -> tuple[Tensor, Tensor, Tensor]:
        """Values ``(..., P, D)``, precisions ``(..., P, D)`` in float64 and mixing matrices ``(..., P, D, D)``."""
        law: PathLaw = site.law  # type: ignore[assignment]
        size = law.event_shape[-1]
        count = law.event_shape[0] if self.points == "grid" else law.grid.mask.shape[-1]
        tail = torch.Size((count, size))
        value = self._param(name, "value", site, tail, lambda: self._at_points(law, prior_mean(law)))
        logarithm = self._param(
            name, "log_precision", site, tail, lambda: self.floor(name, site).log().to(value.dtype) / LOG_UNIT
        )
        mixing = torch.eye(size, dtype=value.dtype, device=value.device).expand(*value.shape, size)
        if size > 1:
            above = torch.Size((count, size * (size - 1) // 2))
            entries = self._param(name, "mixing", site, above, lambda: value.new_zeros(above))
            row, column = torch.triu_indices(size, size, 1)
            mixing = mixing.clone()
            mixing[..., row, column] = entries
        return value, (LOG_UNIT * logarithm.double()).exp(), mixing

    def floor(self, name: str, site: SiteLaw) -> Tensor:
        """Precisions of a start near the prior, ``(*batch, P, D)``: small against the prior, all together."""
        law: PathLaw = site.law  # type: ignore[assignment]
        with torch.no_grad():
            chain = self.reference(name, site)
            covariance = chain.marginals()[1].double()
        variance = covariance.diagonal(dim1=-2, dim2=-1).mean(-2, keepdim=True)  # (*batch, 1, D)
        usable = torch.isfinite(variance) & (variance > 0)
        variance = torch.where(usable, variance, torch.ones_like(variance))
        count = law.event_shape[0] if self.points == "grid" else law.grid.mask.shape[-1]
        return (_START / count / variance).expand(*law.batch_shape, count, law.event_shape[-1])

    def _at_points(self, law: PathLaw, path: Tensor) -> Tensor:
        return path if self.points == "grid" else law.grid.observed(path)

    def _param(self, name: str, key: str, site: SiteLaw, tail: torch.Size, make: Callable[[], Tensor]) -> Tensor:
        """Parameter ``(*plates, *tail)`` of a path site."""
        batch, event_dim = site.law.batch_shape, len(tail) + site.reinterpreted
        shape = (*self.full_batch(batch, site.reinterpreted), *tail)

        def start() -> Tensor:
            with torch.no_grad():
                return self.full_value(make().expand(*batch, *tail).contiguous(), event_dim, site.reinterpreted)

        return self.sites.param(name, key, shape, start, event_dim)

    def _owns(self, name: str) -> bool:
        return hasattr(self.sites.site(name), "value_unconstrained")

    def _read(self, name: str, key: str) -> Tensor:
        return getattr(self.sites.site(name), f"{key}_unconstrained").detach()

    def _write(self, name: str, **values: Tensor) -> None:
        """Set parameters of a path site, where it has them."""
        for key, value in values.items():
            parameter = getattr(self.sites.site(name), f"{key}_unconstrained", None)
            if parameter is not None:
                parameter.data.copy_(value.reshape(parameter.shape))
