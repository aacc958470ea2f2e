r"""The law of a path of an SDE on a grid."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from ..ops.brownian import VirtualBrownianTree, normal_width
from ..ops.grid import TimeGrid
from ..ops.layout import time_first
from ..sde.base import SDE, Coefficients
from ..solvers.base import Rows, Solver
from ..solvers.derivatives import state_jacobian
from ..solvers.execution import Execution
from ..solvers.fixed import EulerMaruyama
from ..solvers.noise import GivenNoise, SeededNoise, StepNoise, TreeNoise
from ..solvers.solve import solve
from ._block_run import BlockRun
from ._carried import check_not_carried
from ._coefficient_checks import (
    broadcast_shapes,
    check_brownian,
    check_kind,
    check_rows,
    first_argument,
    probe,
    tree_for,
)
from ._same_grid import check_same_times
from .base import DrivenPath, PathDistribution, check_initial
from .effects import EffectRecorder
from .kernels import EulerKernels, TransitionKernels
from .memo import PathMemo
from .solver_kernels import kernels_for

__all__ = ["SDEPath"]


class SDEPath(DrivenPath):
    r"""Law of the path of :math:`dz = f(t, z)\,dt + \sigma(t, z)\,dW` on a solver grid.

    .. math:: z_0 \sim p_0, \qquad z_{k+1} \mid z_k \sim N\big(z_k + f_k h_k,\ \sigma_k \sigma_k^\top h_k\big)

    This Euler–Maruyama chain, that of the default `solver`, is a true probability law on the grid, and the log-ratio of
    two such chains with one diffusion is the discretised Girsanov density to round-off. So `Trace_ELBO`, `RenyiELBO`,
    `Importance` and NUTS are exact for it, parameters of the diffusion included. Cost: K sequential steps to sample,
    one batched call for density and gradients.

    Coefficients are called once at construction, at zero states, to learn their shapes and record their Pyro effects.

    Args:
        sde: an `SDE`, such as ``prior`` in a model and ``prior.controlled(control)`` in a guide.
        initial: law of the state at ``grid.times[..., 0]``, event shape ``(D,)``.
        grid: the solver grid.
        inputs: ``(*batch, K, C)``; row k is given to the drift (or, if `sde` is controlled, to the control only) for
            the step from ``t_k`` to ``t_{k+1}``.
        solver: how a step is taken; `EulerMaruyama` if None. With a solver whose steps have no density (`Milstein`,
            `SRK` and others) the law samples, and gives the divergence in closed form along a path; `log_prob` raises.
        brownian: the Brownian motion that drives the path, with one seed for each series or a single one; fresh noise
            for every sample if None. Samples are then functions of the seeds: the same path in any batch, and on a
            refined grid the same Brownian motion.
        execution: how paths are simulated and differentiated, `Execution`; the settings of Pyro if None.
        validate_args: as for every torch distribution.

    Attributes:
        effects: context in which the coefficients answer their Pyro statements as they were at construction; enter it
            to call them yourself.

    Shape:
        batch shape: that of `initial`, `grid`, `inputs` and tensors captured by the coefficients, broadcast together.
        event shape: ``(K + 1, D)``.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit; the message names the argument.
            The solver must be able to take the noise type.
        TypeError: if `sde` is not an `SDE`, `grid` not a `TimeGrid`, `solver` not a `Solver` or `execution` not an
            `Execution`.

    References:
        Kloeden and Platen (1992), eq. (10.2.4); Li et al. (2020), arXiv 2001.01328, eqs. (9)-(11).

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro_sde import SDEPath, TimeGrid
        >>> from pyro_sde.sde import OrnsteinUhlenbeck
        >>> grid = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.1)
        >>> law = SDEPath(OrnsteinUhlenbeck(1.0, 0.5), dist.Normal(torch.zeros(2), 1.0).to_event(1), grid)
        >>> law.sample((3,)).shape
        torch.Size([3, 11, 2])
    """

    def __init__(
        self,
        sde: SDE,
        initial: Distribution,
        grid: TimeGrid,
        *,
        inputs: Tensor | None = None,
        solver: Solver | None = None,
        brownian: VirtualBrownianTree | None = None,
        execution: Execution | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(sde, SDE):
            msg = (
                f"`sde` must be an SDE, received {type(sde).__name__}. Wrap functions as SDE(drift, diffusion) and "
                "torchsde objects as SDE.from_torchsde(sde)."
            )
            raise TypeError(msg)
        if not isinstance(grid, TimeGrid):
            msg = f"`grid` must be a TimeGrid, received {type(grid).__name__}. Build TimeGrid(times, max_step=...)."
            raise TypeError(msg)
        if execution is not None and not isinstance(execution, Execution):
            msg = (
                f"`execution` must be an Execution, received {type(execution).__name__}. Write "
                'Execution(memory="low"), or leave it out for the settings of Pyro.'
            )
            raise TypeError(msg)
        if solver is not None and not isinstance(solver, Solver):
            msg = f"`solver` must be a Solver such as Milstein(), received {type(solver).__name__}."
            raise TypeError(msg)
        check_initial(initial)
        self.solver = EulerMaruyama() if solver is None else solver
        self.sde = sde.ito()
        self._stepped = self.solver.adapt(sde)  # the same process in the form that the solver steps
        self.grid = grid
        self.inputs = inputs
        self.execution = execution
        self._rows = self.sde.bind_rows(inputs)
        for row in self._rows:
            check_rows(row, grid)
        check_kind("initial", first_argument(initial), grid)
        self.effects = EffectRecorder(self.sde)
        self._memo = PathMemo()
        shapes = [("initial", initial.batch_shape), ("grid", grid.batch_shape)]
        shapes += [("inputs", row.shape[:-2]) for row in self._rows if row is not None]
        shape = torch.Size((*broadcast_shapes(shapes), *initial.event_shape))
        probed = probe(self.sde, grid, self._rows, self.effects, shape)
        if not self.solver.is_euler:  # which may want more motions
            stepped = probe(self._stepped, grid, self._rows, self.effects, shape)
            probed = probed._replace(brownian_dim=stepped.brownian_dim)
        self._brownian_dim = probed.brownian_dim
        self.brownian = brownian
        if brownian is not None:
            check_brownian(brownian, grid, self.solver, probed.brownian_dim)
        super().__init__(initial, probed.batch_shape, grid.num_steps + 1, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=2)
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        """Real paths, or those inside the boundaries of a solver that reflects."""
        return constraints.independent(self.solver.support, 2)

    @property
    def has_density(self) -> bool:
        """That of the steps of the solver."""
        return self.solver.has_density

    def noise_shape(self, batch: torch.Size | None = None) -> torch.Size:
        """Shape ``(*batch, K, W)`` of the standard normal noise that drives a path.

        W is the Brownian dimension M, or `normal_width` of it if the solver wants Lévy areas.
        """
        batch = self.batch_shape if batch is None else batch
        return torch.Size((*batch, self.grid.num_steps, normal_width(self._brownian_dim, self.solver.levy)))

    def simulate(self, initial: Tensor) -> Tensor:
        """Path from given first states ``(..., D)`` with fresh noise."""
        shape = (*initial.shape[:-1], normal_width(self._brownian_dim, self.solver.levy))
        execution = self.execution or Execution.current()
        if self.brownian is not None:
            tree = tree_for(self.brownian, initial.shape[:-1])
            return self._integrate(initial, TreeNoise(tree, self.grid.times, shape[-1], initial), execution)
        if execution.memory == "low":
            return self._integrate(initial, SeededNoise(shape, initial), execution)
        normal = torch.randn((self.grid.num_steps, *shape), dtype=initial.dtype, device=initial.device)
        return self._integrate(initial, GivenNoise(normal), execution)

    def solve(self, initial: Tensor, noise: Tensor) -> Tensor:
        r"""Path driven by given standard normal noise; the inverse of `noise_of`.

        A smooth function of its arguments: gradients go through the loop, so that Hessians exist.

        Shape:
            initial: ``(..., D)`` · noise: ``(..., K, M)`` · returns ``(..., K + 1, D)``.

        Raises:
            ValueError: if `noise` has a wrong shape, or the path is not finite.
        """
        if noise.shape[-2:] != self.noise_shape()[-2:]:
            steps, width = self.noise_shape()[-2:]
            msg = f"`noise` must have shape (..., {steps}, {width}), received {tuple(noise.shape)}."
            raise ValueError(msg)
        execution = self.execution or Execution.current()
        if execution.backward == "auto":
            execution = replace(execution, backward="loop")
        return self._integrate(initial, GivenNoise(noise.movedim(-2, 0)), execution)

    def _integrate(self, initial: Tensor, noise: StepNoise, execution: Execution) -> Tensor:
        check_kind("initial", initial, self.grid)
        with self.effects:
            path, coefficients = solve(self.solver, self._stepped, self.grid, initial, noise, self._rows, execution)
        self._check_finite(path)
        if coefficients:
            self._memo.keep(path, coefficients)
        return path

    def __getstate__(self) -> dict[str, object]:
        """State without links to sampled paths, for copies and pickles."""
        return {**super().__getstate__(), "_memo": PathMemo()}

    def noise_of(self, path: Tensor) -> Tensor:
        """Standard normal noise ``(..., K, M)`` that drives a path; 0 on padded steps and directions without noise."""
        if not self.solver.is_euler:
            msg = (
                f"the noise of a path can be read off Euler–Maruyama steps only, and this law has {self.solver!r}. "
                "Leave `solver` out."
            )
            raise ValueError(msg)
        kernels = self.euler_kernels(path)
        standard, _ = kernels.range.coordinates(kernels.residual())
        standard = torch.where(kernels.moving, standard / kernels.safe_steps.sqrt(), torch.zeros_like(standard))
        return standard.movedim(0, -2)

    def kernels(self, path: Tensor) -> TransitionKernels:
        """Transition kernels along a path, all steps in one call of drift, diffusion and control."""
        if self.solver.is_euler:
            return self.euler_kernels(path)
        return kernels_for(self.solver, self, *self._layout(path))

    def sampled_kernels(self, path: Tensor) -> TransitionKernels:
        """As `kernels`, without any call for the path that this law sampled last through the loop."""
        if not self.solver.is_euler:
            return self.kernels(path)
        rank = max(path.dim() - 2, len(self.batch_shape))
        return self.euler_kernels(path, self._memo.recall(path, rank + 2, self.sde.noise.matrix_dims))

    def kernels_beside(self, path: Tensor, law: PathDistribution, kernels: TransitionKernels) -> TransitionKernels:
        """Kernels along a path; a drift or diffusion that the other law has too is not evaluated again.

        So the divergence of ``prior.controlled(control)`` from ``prior`` costs no call of the prior.
        """
        rank = max(path.dim() - 2, len(self.batch_shape))
        if (
            not isinstance(law, SDEPath)
            or not isinstance(kernels, EulerKernels)
            or not (self.solver.is_euler and law.solver.is_euler)
            or not self.sde.shares_diffusion(law.sde)
            # recorded Pyro statements may have other values in the other law, and axes must stand alike
            or self.effects.values
            or law.effects.values
            or kernels.state.dim() != rank + 2
        ):
            return self.kernels(path)
        if self.sde.shares_drift(law.sde) and self._rows[0] is law._rows[0]:
            return kernels.with_drift(kernels.drift)
        states, times, _ = self._layout(path)
        return kernels.with_drift(self.coefficients_along(self.sde.without_diffusion(), times[:-1], states[:-1]).drift)

    def euler_kernels(self, path: Tensor, coefficients: Coefficients | None = None) -> EulerKernels:
        """Kernels of Euler–Maruyama steps along a path, whatever the solver; coefficients there if they are known."""
        states, times, steps = self._layout(path)
        if coefficients is None:
            coefficients = self.coefficients_along(self.sde, times[:-1], states[:-1])
        return EulerKernels(self.sde.noise, coefficients, states, times, steps)

    def _layout(self, path: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States, times and steps, time leftmost.

        Batch dimensions of captured tensors stand right of time, so the path gets the rank that the probe found.
        """
        if path.dim() < 2 or path.shape[-2] != self.grid.num_steps + 1:
            msg = f"`path` must have shape (..., {self.grid.num_steps + 1}, D), received {tuple(path.shape)}."
            raise ValueError(msg)
        check_not_carried(path)
        rank = max(path.dim() - 2, len(self.batch_shape))
        times, steps = (time_first(part.unsqueeze(-1), rank) for part in (self.grid.times, self.grid.steps))
        return time_first(path, rank), times, steps

    def coefficients_along(self, sde: SDE, times: Tensor, states: Tensor) -> Coefficients:
        """Coefficients at all times, time leftmost.

        A block of steps at a time, since temporaries of larger batches leave the cache. If memory is low, a block keeps
        its inputs only and is evaluated again for its gradient.
        """
        run = self._block_run(times, states)
        if run.low or len(run) == 1:
            blocks = run.map(lambda t, z, row: sde.coefficients(t, z, row))
        else:
            with self.effects:
                evaluate, run.rows = sde.evaluator(run.rows)
                blocks = [evaluate(*block) for block in run]
        drifts, diffusions, controls = zip(*blocks, strict=True)
        matrix = self.sde.noise.matrix_dims
        return Coefficients(
            run.join(drifts, states.dim()),
            run.join(diffusions, states.dim() + matrix),
            None if controls[0] is None else run.join(controls, states.dim()),
        )

    def drift_jacobian_along(self, times: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Drift, with the control if there is one, and its Jacobian in the state; time leftmost.

        In blocks, and with little memory, as `coefficients_along`.

        Shape:
            times: ``(K, ..., 1)`` · states: ``(K, ..., D)`` · drift: ``(K, ..., D)`` · Jacobian: ``(K, ..., D, D)``.
        """
        sde = self.sde

        def both(t: Tensor, z: Tensor, row: Rows) -> tuple[Tensor, Tensor]:
            return state_jacobian(lambda state: sde.coefficients(t, state, row).total_drift(sde.noise), z)

        drifts, jacobians = zip(*self._block_run(times, states).map(both), strict=True)
        return torch.cat(drifts), torch.cat(jacobians)

    def _block_run(self, times: Tensor, states: Tensor) -> BlockRun:
        rows = tuple(None if row is None else time_first(row, states.dim() - 2) for row in self._rows)
        return BlockRun(times, states, rows, self.effects, self.execution or Execution.current())

    def check_same_grid(self, other: PathDistribution) -> None:
        """Times must agree to round-off."""
        check_same_times(self.grid, other)

    def _check_finite(self, path: Tensor) -> None:
        with torch.no_grad():
            if bool(torch.isfinite(path[..., -1, :]).all()):
                return
            bad = ~torch.isfinite(path).movedim(-2, 0)  # (T, ..., D)
            step, *series, dimension = bad.nonzero()[0].tolist()
            times = time_first(self.grid.times.detach().unsqueeze(-1), bad.dim() - 2)
            time = times.expand(*bad.shape[:-1], 1)[(step, *series)].item()
            count, total = int(bad.any(0).any(-1).sum()), bad[0, ..., 0].numel()
            site = f" at site '{self.site_name}'" if self.site_name else ""
        msg = (
            f"SDEPath{site}: the path became non-finite at time {time:g} (step {step} of {self.grid.num_steps}), "
            f"dimension {dimension}, in {count} of {total} paths. The drift or diffusion grows too fast for the step: "
            "use a smaller max_step, bounded coefficients, a smaller initial scale of the networks, or gradient "
            "clipping."
        )
        raise ValueError(msg)
