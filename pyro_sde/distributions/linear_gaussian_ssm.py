r"""Observations of a Gaussian path as one site: the path is integrated out exactly."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints

from ..ops.gaussian_chain import GaussianChain
from ..ops.grid import TimeGrid
from ..ops.kalman import FilterResult, SmootherResult, kalman_filter, log_evidence, smooth
from ..ops.linear_observations import LinearObservations
from ..sde.linear import LinearSDE
from ._emissions import NoiseLaw
from ._gaussian_chains import check_batches, in_double
from .gaussian_path import GaussianPath
from .gaussian_state import GaussianState

__all__ = ["LinearGaussianSSM"]


class LinearGaussianSSM(TorchDistribution):
    r"""Law of observations :math:`y_n = H_n z(t_n) + d_n + N(0, R_n)` of a Gaussian path z, with z integrated out.

    .. math:: p(y) = \int p(z) \prod_n N(y_n;\, H_n z(t_n) + d_n,\, R_n)\, dz

    The density is the exact evidence, by a Kalman filter in float64: for a site with ``obs=y`` whose hyper-parameters
    are learned (SVI) or sampled (NUTS). There is no latent path in the model then; `posterior` gives its law
    afterwards. It takes the place of `pyro.distributions.GaussianHMM`, for irregular times and missing entries too,
    and the first observation is one of the initial state. Cost: O(N D^3) for density and gradient.

    Args:
        process: a `LinearSDE`, a `GaussianPath`, or a `GaussianChain` with one point per observation.
        observation_matrix: H, broadcastable to ``(*batch, N, O, D)``; None: the outputs of the SDE.
        noise: standard deviations, a number or broadcastable to ``(*batch, N, O)``; or a law of the noise of event
            shape ``(O,)``, ``Normal(d, s).to_event(1)`` or `MultivariateNormal`, with a batch shape that broadcasts to
            ``(*batch, N)``. Its mean is the offset d.
        grid: observation times, ``TimeGrid(times)``; not given with a `GaussianPath`, which has one, and 0, 1, 2, ...
            if left out with a chain.
        initial: Gaussian law of the first state of an SDE; None: its stationary law.
        mask: bool, ``(*batch, N)`` or, for single entries, ``(*batch, N, O)``; True = observed. What is masked, or
            padding of the grid, does not count in `log_prob` and may be anything, NaN too.
        validate_args: as for every torch distribution; `pyro.infer.MCMC` switches it off.

    Attributes:
        path: the `GaussianPath` of the states.

    Shape:
        batch shape: that of hyper-parameters, grid, matrix, noise and mask. event shape: ``(N, O)``. A sampled number,
        of shape ``(particles,)`` or ``(particles, 1)`` under a plate, must get two axes as a `noise`, one as a
        hyper-parameter: ``noise[..., None, None]``.

    Raises:
        ValueError: if a shape does not fit, the process has no stationary law and no `initial`, or `grid` or `initial`
            are given twice or not at all; in `log_prob` also if an observed entry is not finite or the noise is
            singular.
        TypeError: if `process` is none of the three.

    References:
        Särkkä (2013), Bayesian Filtering and Smoothing, theorems 4.2 and 12.1.

    Example:
        >>> from pyro_sde import TimeGrid
        >>> from pyro_sde.sde import Matern32
        >>> grid = TimeGrid(torch.tensor([0.0, 0.3, 2.0]))
        >>> law = LinearGaussianSSM(Matern32(lengthscale=1.0, variance=1.0), None, 0.5, grid)
        >>> law.log_prob(torch.tensor([[0.4], [0.1], [-0.3]]))
        tensor(-2.8414)
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # type: ignore[override]
    has_rsample = True

    def __init__(
        self,
        process: LinearSDE | GaussianPath | GaussianChain,
        observation_matrix: Tensor | None,
        noise: NoiseLaw,
        grid: TimeGrid | None = None,
        *,
        initial: Distribution | None = None,
        mask: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.path = _path_law(process, initial, grid, validate_args)
        self._emissions = self.path.emissions(observation_matrix, noise, mask)
        batch = check_batches(process=self.path.batch_shape, observations=self._emissions.batch_shape)
        event = torch.Size((self._emissions.count, self._emissions.size))
        super().__init__(batch, event, validate_args=validate_args)
        if self._validate_args and not bool(self._emissions.matrix.detach().isfinite().all()):
            msg = "`observation_matrix` must be finite. What is not observed goes into `mask`."
            raise ValueError(msg)

    @property
    def grid(self) -> TimeGrid:
        """Grid of the path."""
        return self.path.grid

    @constraints.dependent_property(is_discrete=False, event_dim=2)
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        """Real matrices."""
        return constraints.independent(constraints.real, 2)

    def expand(
        self, batch_shape: torch.Size | Sequence[int], _instance: LinearGaussianSSM | None = None
    ) -> LinearGaussianSSM:
        """The same law with a larger batch shape.

        Raises:
            ValueError: if this law's batch shape does not broadcast to `batch_shape`.
        """
        batch_shape = torch.Size(batch_shape)
        aligned = zip(reversed(self.batch_shape), reversed(batch_shape), strict=False)
        fits = len(batch_shape) >= len(self.batch_shape) and all(old in (1, new) for old, new in aligned)
        if not fits or min(batch_shape, default=0) < 0:
            msg = f"cannot expand a law of batch shape {tuple(self.batch_shape)} to {tuple(batch_shape)}."
            raise ValueError(msg)
        new = copy.copy(self) if _instance is None else _instance
        Distribution.__init__(new, batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    # ---------------------------------------------------------------- density
    def log_prob(self, value: Tensor) -> Tensor:
        """Exact log-evidence of the observed entries of ``(..., N, O)``; ``(..., *batch)``.

        Raises:
            ValueError: if the shape is wrong, an observed entry is not finite, or the noise is singular.
        """
        evidence = log_evidence(self.path.chain, self._observations(value))
        return evidence.expand(torch.broadcast_shapes(value.shape[:-2], self.batch_shape))

    def _observations(self, y: Tensor) -> LinearObservations:
        return self._emissions.at_points(y, validate=bool(self._validate_args))

    # ---------------------------------------------------------------- samples and moments
    def rsample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Reparameterised observations ``(*sample_shape, *batch, N, O)``; masked entries are drawn like the others."""
        states = self.path.expand(self.batch_shape).rsample(torch.Size(sample_shape))
        return self._emissions.add_noise(self._emissions.outputs(self._emissions.gather(states, 1)))

    @property
    def mean(self) -> Tensor:  # type: ignore[override]
        """Means of the observations, ``(*batch, N, O)``."""
        states = self._emissions.gather(self.path.mean, 1)
        return self._emissions.outputs(states).expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:  # type: ignore[override]
        """Variances of the observations, noise included, ``(*batch, N, O)``."""
        covariance = self._emissions.gather(self.path.marginals()[1], 2)
        return self._emissions.variance_of(covariance).expand(self.batch_shape + self.event_shape)

    # ---------------------------------------------------------------- given observations
    def filter(self, y: Tensor) -> FilterResult:
        """Moments of every state of the grid given the observations up to its time, and the log-evidence.

        Args:
            y: observations ``(*batch, N, O)``.

        Returns:
            means ``(*batch, T, D)``, covariances ``(*batch, T, D, D)``, log-evidence ``(*batch,)``; T = N if the grid
            has no points but the observation times.

        Raises:
            ValueError: as `log_prob`.
        """
        return kalman_filter(self.path.chain, self._observations(y))

    def smooth(self, y: Tensor) -> SmootherResult:
        """Moments of every state of the grid, and of neighbours, given all observations; as `posterior`.

        Raises:
            ValueError: as `log_prob`.
        """
        return smooth(self.path.chain, self._observations(y))

    def posterior(self, y: Tensor) -> GaussianPath:
        """Law of the path given observations ``(*batch, N, O)``.

        Raises:
            ValueError: as `log_prob`.
        """
        return self.path.condition_points(self._observations(y))

    def rsample_posterior(
        self,
        y: Tensor,
        sample_shape: torch.Size | Sequence[int] = torch.Size(),  # noqa: B008
    ) -> Tensor:
        """Reparameterised paths ``(*sample_shape, *batch, T, D)`` given observations.

        Raises:
            ValueError: as `log_prob`.
        """
        return self.posterior(y).rsample(sample_shape)

    def prefix_condition(self, y: Tensor) -> LinearGaussianSSM:
        """Law of the last ``N - n`` observations given the first n.

        Args:
            y: the first observations, ``(*batch, n, O)`` with ``1 <= n < N``.

        Raises:
            ValueError: if n is out of range; else as `log_prob`.
        """
        count = y.shape[-2] if y.dim() > 1 else 0
        total = self.event_shape[0]
        if not 1 <= count < total:
            msg = f"`y` must hold the first n observations, 1 <= n < {total}, received shape {tuple(y.shape)}."
            raise ValueError(msg)
        first = self._emissions.section(0, count).at_points(y, validate=bool(self._validate_args))
        rest = copy.copy(self)
        rest.path = self.path.condition_points(first)
        rest._emissions = self._emissions.section(count, total)
        batch = torch.broadcast_shapes(rest.path.batch_shape, self.batch_shape)
        Distribution.__init__(rest, batch, torch.Size((total - count, self.event_shape[1])), validate_args=False)
        rest._validate_args = self._validate_args
        return rest

    def forecast(
        self,
        times: Tensor,
        y: Tensor,
        *,
        observation_matrix: Tensor | None = None,
        noise: NoiseLaw | None = None,
    ) -> LinearGaussianSSM:
        """Joint law of observations at later times given observations ``(*batch, N, O)``.

        Its `mean` and `variance` are the forecast, its `log_prob` scores what came, its `sample` draws futures, and
        `path` is the law of the states from the end of the grid on.

        Args:
            times: ``(M,)`` or ``(*batch, M)``, increasing, none before the end of the grid.
            y: observations up to now, ``(*batch, N, O)``.
            observation_matrix: H at `times`, broadcastable to ``(*batch, M, O, D)``; None: as here.
            noise: noise at `times`; None: as here.

        Raises:
            ValueError: if a time lies before the end of the grid, the process has no exact dynamics beyond it (it was
                made from a chain or by Euler steps), or matrix or noise change with time and are not given.
        """
        process = self.path.dynamics.system
        if process is None:
            msg = (
                "this law knows no dynamics beyond its grid: it was made from a chain or by Euler steps, or was "
                "unpickled. Put the times to forecast into the grid, and mask them."
            )
            raise ValueError(msg)
        for name, given in (("observation_matrix", observation_matrix), ("noise", noise)):
            if given is None and name in self._emissions.changing:
                msg = f"`{name}` changes with time: give `{name}` for the times to forecast."
                raise ValueError(msg)
        start = self.grid.times[..., -1]
        if bool((times[..., 0] < start).any()):
            msg = (
                f"`times` must not lie before the end of the grid, {start.tolist()}; received {times[..., 0].tolist()}."
            )
            raise ValueError(msg)
        batch = torch.broadcast_shapes(times.shape[:-1], start.shape)
        grid = TimeGrid(times.to(start).expand(*batch, times.shape[-1]), start=start.expand(batch))
        now = kalman_filter(in_double(self.path.chain), self._observations(y))
        initial = GaussianState(now.mean[..., -1, :], now.covariance[..., -1, :, :], dtype=self.path.chain.dtype)
        path = GaussianPath(process, initial, grid, validate_args=self._validate_args)
        return LinearGaussianSSM(
            path,
            self._emissions.matrix if observation_matrix is None else observation_matrix,
            self._emissions.noise if noise is None else noise,
            validate_args=self._validate_args,
        )

    def __repr__(self) -> str:
        """Class and shapes."""
        return f"{type(self).__name__}(batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)})"


def _path_law(
    process: object, initial: Distribution | None, grid: TimeGrid | None, validate_args: bool | None
) -> GaussianPath:
    if isinstance(process, LinearSDE):
        if grid is None:
            msg = "`grid` is missing: an SDE is observed at the times of TimeGrid(times)."
            raise ValueError(msg)
        return GaussianPath(process, initial, grid, validate_args=validate_args)
    if isinstance(process, GaussianPath | GaussianChain):
        if initial is not None or (grid is not None and isinstance(process, GaussianPath)):
            msg = f"a {type(process).__name__} has its own initial law (and a GaussianPath its grid): give no other."
            raise ValueError(msg)
        return process if isinstance(process, GaussianPath) else GaussianPath.from_chain(process, grid)
    msg = f"`process` must be a LinearSDE, GaussianPath or GaussianChain, received {type(process).__name__}."
    raise TypeError(msg)
