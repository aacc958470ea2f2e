r"""Gaussian path laws: exact chains of linear SDEs, and their posteriors given linear observations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence, register_kl

from ..ops._psd import psd_factor
from ..ops.gaussian_chain import GaussianChain
from ..ops.grid import TimeGrid
from ..ops.kalman import FilterResult, SmootherResult, kalman_filter, log_evidence, posterior_chain, smooth
from ..ops.layout import time_first
from ..ops.linear_observations import LinearObservations
from ..sde.linear import LinearSDE
from ..sde.system import LinearSystem
from ._carried import check_not_carried
from ._emissions import Emissions, NoiseLaw
from ._gaussian_chains import (
    Dynamics,
    check_batches,
    euler_transition,
    given_moments,
    in_double,
    keep_range,
    stationary_law,
)
from ._same_grid import check_same_times
from .base import DrivenPath, PathDistribution
from .gaussian_kernels import GaussianKernels
from .gaussian_state import GaussianState

__all__ = ["GaussianPath"]


class GaussianPath(DrivenPath):
    r"""Law of the path of a linear SDE :math:`dz = (A z + b)\,dt + L\,dW` on a grid, exact for any step.

    .. math:: z_0 \sim N(m_0, P_0), \qquad z_{k+1} \mid z_k \sim N(\Phi_k z_k + c_k,\; Q_k)

    With the exact discretisation the values at grid points have the law of the process itself, however far the points
    are apart: a Gaussian process with a Markov state. `condition` gives the posterior under linear Gaussian
    observations, which is a `GaussianPath` again. Matrices and moments are computed in float64, results have the dtype
    of the grid. Cost: O(K D^3) for sampling, density and moments; sampling is a compiled pass where numba is installed,
    else of depth O(log K).

    Args:
        sde: a `LinearSDE`, whose hyper-parameters are read here, once; or the `LinearSystem` that it was.
        initial: Gaussian law of the first state: ``Normal(...).to_event(1)``, `MultivariateNormal`,
            ``Delta(..., event_dim=1)`` or `GaussianState`. None: the stationary law of `sde`.
        grid: the grid; `max_step` is not needed for accuracy.
        discretisation: "exact", or "euler" for the chain :math:`\Phi = I + A h`, :math:`Q = L L^\top h` that
            ``SDEPath(sde, initial, grid)`` is. Its posteriors are those of a model with that `SDEPath`.
        validate_args: as for every torch distribution.

    Attributes:
        chain: the `GaussianChain`, with float64 tensors.
        grid: the grid.
        sde: the `LinearSDE`, None for a law from a chain or a system.
        outputs: rows of the outputs of `sde` over its state, ``(*batch, O, D)``, float64; None if not known.

    Shape:
        batch shape: that of hyper-parameters, `initial` and `grid`, broadcast together. event shape: ``(K + 1, D)``.

    Raises:
        ValueError: if `initial` is None and the process has no stationary law, `initial` is not Gaussian or of another
            dimension, batch shapes do not broadcast, or `discretisation` is unknown.
        TypeError: if `sde` is no `LinearSDE` or `grid` no `TimeGrid`.

    References:
        Särkkä and Solin (2019), Applied Stochastic Differential Equations, section 6.2 and chapter 12.

    Example:
        >>> from pyro_sde import TimeGrid
        >>> from pyro_sde.sde import Matern32
        >>> law = GaussianPath(Matern32(lengthscale=0.5, variance=2.0), None, TimeGrid(torch.tensor([0.0, 0.1, 3.0])))
        >>> law.variance[:, 0]
        tensor([2., 2., 2.])
        >>> posterior = law.condition(None, 0.1, torch.tensor([[1.0], [0.9], [0.0]]))
        >>> posterior.sample().shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        sde: LinearSDE | LinearSystem,
        initial: Distribution | None,
        grid: TimeGrid,
        *,
        discretisation: str = "exact",
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(sde, LinearSDE | LinearSystem):
            msg = (
                f"`sde` must be a LinearSDE, received {type(sde).__name__}. Other SDEs have no exact transition: use "
                "SDEPath."
            )
            raise TypeError(msg)
        if discretisation not in ("exact", "euler"):
            msg = f'`discretisation` must be "exact" or "euler", received {discretisation!r}.'
            raise ValueError(msg)
        if not isinstance(grid, TimeGrid):
            msg = f"`grid` must be a TimeGrid, received {type(grid).__name__}. Build TimeGrid(times)."
            raise TypeError(msg)
        system = sde if isinstance(sde, LinearSystem) else sde.system(grid.times.device)
        mean, covariance = stationary_law(system) if initial is None else given_moments(initial, system.state_dim)
        check_batches(system=system.batch_shape, initial=mean.shape[:-1], grid=grid.batch_shape)
        steps = grid.steps.double()
        transition = system.transition(steps) if discretisation == "exact" else euler_transition(system, steps)
        matrix, offset, noise = transition
        chain = GaussianChain(mean, covariance, matrix, noise, offset, dtype=grid.times.dtype, validate=False)
        self._set(chain, grid, validate_args)
        self.sde = None if isinstance(sde, LinearSystem) else sde
        self.outputs = system.observation
        self.dynamics = Dynamics(system if discretisation == "exact" else None)

    @classmethod
    def from_chain(
        cls, chain: GaussianChain, grid: TimeGrid | None = None, *, validate_args: bool | None = None
    ) -> GaussianPath:
        """The path law that a chain is.

        Args:
            chain: a `GaussianChain` of K + 1 points.
            grid: times of its points; 0, 1, ..., K if None.
            validate_args: as for every torch distribution.

        Raises:
            TypeError: if `chain` is no `GaussianChain`.
            ValueError: if `grid` has another number of points, or a batch shape that does not broadcast.
        """
        if not isinstance(chain, GaussianChain):
            msg = f"`chain` must be a GaussianChain, received {type(chain).__name__}."
            raise TypeError(msg)
        if grid is None:
            grid = TimeGrid(torch.arange(chain.num_points, dtype=chain.dtype, device=chain.noise.device))
        if grid.num_steps + 1 != chain.num_points:
            msg = f"`grid` must have the {chain.num_points} points of `chain`, received {grid}."
            raise ValueError(msg)
        law = cls.__new__(cls)
        law._set(chain, grid, validate_args)
        law.sde = None
        law.outputs = None
        law.dynamics = Dynamics(None)
        return law

    def _set(self, chain: GaussianChain, grid: TimeGrid, validate_args: bool | None) -> None:
        self.chain = chain
        self.grid = grid
        self.sde: LinearSDE | None
        self.outputs: Tensor | None
        batch = check_batches(chain=chain.batch_shape, grid=grid.batch_shape)
        initial = GaussianState(chain.initial_mean, chain.initial_covariance, dtype=chain.dtype, validate_args=False)
        PathDistribution.__init__(self, initial, batch, chain.num_points, validate_args=validate_args)

    # ---------------------------------------------------------------- moments
    def marginals(self) -> tuple[Tensor, Tensor]:
        """Means ``(*batch, T, D)`` and covariances ``(*batch, T, D, D)`` of all states."""
        mean, covariance = self.chain.marginals()
        return self._widen(mean, 2), self._widen(covariance, 3)

    @property
    def mean(self) -> Tensor:  # type: ignore[override]
        """Means ``(*batch, T, D)``."""
        return self.marginals()[0]

    @property
    def variance(self) -> Tensor:  # type: ignore[override]
        """Variances ``(*batch, T, D)``."""
        return self.marginals()[1].diagonal(dim1=-2, dim2=-1)

    def covariance(self, i: int, j: int) -> Tensor:
        """Covariance of the states at points i and j, ``(*batch, D, D)``; negative indices count from the end.

        Raises:
            IndexError: if a point does not exist.
        """
        return self._widen(self.chain.covariance(i, j), 2)

    def _widen(self, tensor: Tensor, tail: int) -> Tensor:
        batch = tensor.dim() - tail
        return tensor.expand((*torch.broadcast_shapes(tensor.shape[:batch], self.batch_shape), *tensor.shape[batch:]))

    # ---------------------------------------------------------------- law
    def noise_shape(self, batch: torch.Size | None = None) -> torch.Size:
        """Shape ``(*batch, K, D)`` of the standard normal noise that drives a path."""
        return torch.Size((*(self.batch_shape if batch is None else batch), self.grid.num_steps, self.event_shape[-1]))

    def simulate(self, initial: Tensor) -> Tensor:
        """Path from given first states ``(..., D)`` with fresh noise."""
        shape = self.noise_shape(initial.shape[:-1])
        return self.solve(initial, torch.randn(shape, dtype=initial.dtype, device=initial.device))

    def solve(self, initial: Tensor, noise: Tensor) -> Tensor:
        r"""Path :math:`z_{k+1} = \Phi_k z_k + c_k + G_k \epsilon_k` of given standard normal noise; inverts `noise_of`.

        G is the lower triangular factor of Q; noise in directions without any moves nothing.

        Shape:
            initial: ``(..., D)`` · noise: ``(..., K, D)`` · returns ``(..., K + 1, D)``.

        Raises:
            ValueError: if `noise` has a wrong shape, or the path is not finite.
        """
        if noise.shape[-2:] != self.noise_shape()[-2:]:
            steps, width = self.noise_shape()[-2:]
            msg = f"`noise` must have shape (..., {steps}, {width}), received {tuple(noise.shape)}."
            raise ValueError(msg)
        chain = self.chain
        unit = torch.eye(chain.dim, dtype=torch.float64, device=chain.noise.device)
        # from N(0, I) the first state of a sample is its first noise
        start = GaussianChain(0 * unit[0], unit, chain.transition, chain.noise, chain.offset, validate=False)
        batch = torch.broadcast_shapes(initial.shape[:-1], noise.shape[:-2])
        first = initial.unsqueeze(-2).expand(*batch, 1, chain.dim)
        path = start.sample(torch.cat([first, noise.expand(*batch, *noise.shape[-2:])], -2)).to(chain.dtype)
        if not bool(torch.isfinite(path[..., -1, :]).all()):
            site = f" at site '{self.site_name}'" if self.site_name else ""
            msg = f"GaussianPath{site}: the path is not finite. The process grows too fast for the span of its grid."
            raise ValueError(msg)
        return path

    def noise_of(self, path: Tensor) -> Tensor:
        """Standard normal noise ``(..., K, D)`` that drives a path; 0 on padded steps and directions without noise."""
        return self.kernels(path).standard().movedim(0, -2).to(path.dtype)

    def kernels(self, path: Tensor) -> GaussianKernels:
        """Transition kernels along a path ``(..., T, D)``, all steps at once."""
        if path.dim() < 2 or path.shape[-2:] != self.event_shape:
            msg = (
                f"`path` must have shape (..., {', '.join(map(str, self.event_shape))}), received {tuple(path.shape)}."
            )
            raise ValueError(msg)
        check_not_carried(path)
        rank = max(path.dim() - 2, len(self.batch_shape))
        states = time_first(path, rank)
        times, steps = (time_first(part.unsqueeze(-1), rank) for part in (self.grid.times, self.grid.steps))
        mean = self._matrices(self.chain.transition, rank)
        mean = torch.einsum("...ij,...j->...i", mean, states[:-1].double())
        mean = mean + time_first(self.chain.offset.double(), rank)
        return GaussianKernels(mean, self._matrices(self.chain.noise, rank), states, times, steps > 0)

    def _matrices(self, tensor: Tensor, rank: int) -> Tensor:
        """Matrices ``(*batch, K, D, D)`` with time leftmost."""
        tensor = tensor.double().movedim(-3, 0)
        return tensor.reshape(tensor.shape[0], *[1] * (rank - tensor.dim() + 3), *tensor.shape[1:])

    def check_same_grid(self, other: PathDistribution) -> None:
        """Times must agree to round-off."""
        check_same_times(self.grid, other)

    # ---------------------------------------------------------------- conditioning
    def condition(
        self,
        observation_matrix: Tensor | None,
        noise: NoiseLaw,
        y: Tensor,
        mask: Tensor | None = None,
        *,
        method: str = "auto",
    ) -> GaussianPath:
        r"""Law of the path given :math:`y_n = H_n z(t_n) + d_n + N(0, R_n)` at the observation times of the grid.

        It is a chain on the same grid, with kernels that change with time: it is sampled, scored and used as a guide
        like any path law; its means and variances are those of the smoother.

        Args:
            observation_matrix: H, broadcastable to ``(*batch, N, O, D)``; None: the outputs of the SDE.
            noise: standard deviations, a number or broadcastable to ``(*batch, N, O)``; or a law of the noise of event
                shape ``(O,)``, ``Normal(d, s).to_event(1)`` or `MultivariateNormal`, with a batch shape that broadcasts
                to ``(*batch, N)``. Its mean is the offset d.
            y: observations ``(*batch, N, O)``. Masked entries may be anything, NaN too.
            mask: bool, ``(*batch, N)`` or, for single entries, ``(*batch, N, O)``; True = observed. The padding of the
                grid is masked anyhow.
            method: "auto", "sequential" or "parallel", see `pyro_sde.ops.kalman_filter`.

        Raises:
            ValueError: if a shape does not fit, an observed entry is not finite, or the noise is singular.
        """
        return self.condition_points(self._observations(observation_matrix, noise, y, mask), method=method)

    def condition_points(self, observations: LinearObservations, *, method: str = "auto") -> GaussianPath:
        """As `condition`, for observations at all points of the grid.

        Args:
            observations: one row for each point, masked where nothing is observed.
            method: "auto", "sequential" or "parallel".

        Raises:
            ValueError: if the observations do not fit the chain.
        """
        posterior = keep_range(self.chain, posterior_chain(self.chain, observations, method=method))
        law = GaussianPath.from_chain(posterior, self.grid, validate_args=self._validate_args)
        law.outputs = self.outputs
        return law.expand(torch.broadcast_shapes(law.batch_shape, self.batch_shape))  # type: ignore[return-value]

    def filter(
        self,
        observation_matrix: Tensor | None,
        noise: NoiseLaw,
        y: Tensor,
        mask: Tensor | None = None,
        *,
        method: str = "auto",
    ) -> FilterResult:
        """Moments of every state of the grid given the observations up to its time, and the log-evidence.

        Arguments as for `condition`; shapes as for `pyro_sde.ops.kalman_filter`.

        Raises:
            ValueError: as `condition`.
        """
        result = kalman_filter(self.chain, self._observations(observation_matrix, noise, y, mask), method=method)
        return FilterResult(*(self._widen(part, tail) for part, tail in zip(result, (2, 3, 0), strict=True)))

    def smooth(
        self,
        observation_matrix: Tensor | None,
        noise: NoiseLaw,
        y: Tensor,
        mask: Tensor | None = None,
        *,
        method: str = "auto",
    ) -> SmootherResult:
        """Moments of every state of the grid, and of neighbours, given all observations.

        Arguments as for `condition`; shapes as for `pyro_sde.ops.smooth`.

        Raises:
            ValueError: as `condition`.
        """
        result = smooth(self.chain, self._observations(observation_matrix, noise, y, mask), method=method)
        return SmootherResult(*(self._widen(part, tail) for part, tail in zip(result, (2, 3, 3), strict=True)))

    def log_evidence(
        self,
        observation_matrix: Tensor | None,
        noise: NoiseLaw,
        y: Tensor,
        mask: Tensor | None = None,
        *,
        method: str = "auto",
    ) -> Tensor:
        """Log-density ``(*batch,)`` of the observed entries, with the path integrated out. Arguments as `condition`.

        Raises:
            ValueError: as `condition`.
        """
        return self._widen(
            log_evidence(self.chain, self._observations(observation_matrix, noise, y, mask), method=method), 0
        )

    def emissions(self, observation_matrix: Tensor | None, noise: NoiseLaw, mask: Tensor | None) -> Emissions:
        """Observations of this law at the observation times of its grid; arguments as for `condition`."""
        if observation_matrix is None:
            if self.outputs is None:
                msg = "`observation_matrix` is None, but this law was made from a chain and has no outputs: give one."
                raise ValueError(msg)
            observation_matrix = self.outputs.unsqueeze(-3)
        state_dim, batch_dims = self.event_shape[-1], len(self.batch_shape)
        return Emissions(observation_matrix, noise, self.grid, mask, state_dim=state_dim, batch_dims=batch_dims)

    def _observations(
        self, observation_matrix: Tensor | None, noise: NoiseLaw, y: Tensor, mask: Tensor | None
    ) -> LinearObservations:
        emissions = self.emissions(observation_matrix, noise, mask)
        return emissions.at_points(y, validate=self._validate_args)


@register_kl(GaussianPath, GaussianPath)
def _kl_of_gaussian_paths(q: GaussianPath, p: GaussianPath) -> Tensor:
    r"""Exact, from the moments of q: no path is sampled.

    The divergence of the kernels at z is a quadratic of z: its value at the mean of q, plus half the trace of its
    curvature times the covariance of q.
    """
    if q.event_shape != p.event_shape:
        msg = f"both laws must have one event shape (T, D), received {tuple(q.event_shape)} and {tuple(p.event_shape)}."
        raise ValueError(msg)
    q.check_same_grid(p)
    mean, covariance = in_double(q.chain).marginals()
    rank = max(len(q.batch_shape), len(p.batch_shape))
    mean = mean.expand(*torch.broadcast_shapes(q.batch_shape, p.batch_shape), *q.event_shape)
    kernels, others = q.kernels(mean), p.kernels(mean)
    ours, theirs = (law._matrices(law.chain.transition, rank) for law in (q, p))
    spread = psd_factor(q._matrices(covariance[..., :-1, :, :], rank))
    terms = kernels.kl(others) + kernels.kl_of_spread(others, ours, theirs, spread)
    initial = kl_divergence(q.initial, p.initial)
    return initial + terms.sum(0).to(initial.dtype)
