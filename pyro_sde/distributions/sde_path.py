r"""The law of a path of an SDE on a grid."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.utils.checkpoint import checkpoint

from ..ops.grid import TimeGrid
from ..ops.layout import time_first
from ..sde.base import SDE, Coefficients
from ..sde.noise import trailing_singleton
from ..solvers.execution import Execution
from ..solvers.fixed import EulerMaruyama
from ..solvers.noise import GivenNoise, SeededNoise, StepNoise
from ..solvers.solve import solve
from .base import PathDistribution, check_initial
from .effects import EffectRecorder
from .kernels import EulerKernels, TransitionKernels
from .memo import PathMemo

__all__ = ["SDEPath"]


class SDEPath(PathDistribution):
    r"""Law of the path of :math:`dz = f(t, z)\,dt + \sigma(t, z)\,dW` on a solver grid.

    .. math:: z_0 \sim p_0, \qquad z_{k+1} \mid z_k \sim N\big(z_k + f_k h_k,\ \sigma_k \sigma_k^\top h_k\big)

    This Euler–Maruyama chain is a true probability law on the grid, and the log-ratio of two such chains with one
    diffusion is the discretised Girsanov density to round-off. So `Trace_ELBO`, `RenyiELBO`, `Importance` and NUTS are
    exact for it, parameters of the diffusion included. Cost: K sequential steps to sample, one batched call for density
    and gradients.

    Coefficients are called once at construction, at zero states, to learn their shapes and record their Pyro effects.

    Args:
        sde: an `SDE`, such as ``prior`` in a model and ``prior.controlled(control)`` in a guide.
        initial: law of the state at ``grid.times[..., 0]``, event shape ``(D,)``.
        grid: the solver grid.
        inputs: ``(*batch, K, C)``; row k is given to the drift (or, if `sde` is controlled, to the control only) for
            the step from ``t_k`` to ``t_{k+1}``.
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
        TypeError: if `sde` is not an `SDE`, `grid` not a `TimeGrid` or `execution` not an `Execution`.

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
        check_initial(initial)
        self.sde = sde.ito()
        self.grid = grid
        self.inputs = inputs
        self.execution = execution
        self._rows = self.sde.bind_rows(inputs)
        for row in self._rows:
            self._check_rows(row)
        self._check_kind("initial", _argument(initial))
        self.effects = EffectRecorder(self.sde)
        self._memo = PathMemo()
        self._brownian_dim = initial.event_shape[0]
        shapes = [("initial", initial.batch_shape), ("grid", grid.batch_shape)]
        shapes += [("inputs", row.shape[:-2]) for row in self._rows if row is not None]
        batch = self._probe(torch.Size((*_broadcast(shapes), *initial.event_shape)))
        super().__init__(initial, batch, grid.num_steps + 1, validate_args=validate_args)

    # ---------------------------------------------------------------- construction
    def _check_rows(self, row: Tensor | None) -> None:
        if row is None:
            return
        if row.dim() < 2 or row.shape[-2] != self.grid.num_steps:
            msg = (
                f"`inputs` must have shape (*batch, K, C) with one row per solver step, K = {self.grid.num_steps}; "
                f"received {tuple(row.shape)}. Row k serves the step from grid.times[k] to grid.times[k + 1]."
            )
            raise ValueError(msg)
        self._check_kind("inputs", row)

    def _check_kind(self, name: str, value: Tensor | None) -> None:
        times = self.grid.times
        if (
            value is not None
            and value.is_floating_point()
            and (value.dtype, value.device) != (times.dtype, times.device)
        ):
            msg = (
                f"`{name}` has dtype {value.dtype} on {value.device}, but the grid has {times.dtype} on "
                f"{times.device}. Convert one of them, e.g. TimeGrid(times.to({value.dtype}))."
            )
            raise ValueError(msg)

    def _probe(self, shape: torch.Size) -> torch.Size:
        """Call the coefficients once: batch shape, Brownian dimension and Pyro effects."""
        z = self.grid.times.new_zeros(shape)
        rows = tuple(None if row is None else _first_row(row) for row in self._rows)
        with self.effects:
            coefficients = self.sde.coefficients(self.grid.times[..., :1], z, rows)
        self.effects.seal()
        return self._check_coefficients(coefficients, z)

    def _check_coefficients(self, coefficients: Coefficients, z: Tensor) -> torch.Size:
        drift, diffusion, control = coefficients
        noise = self.sde.noise
        width = z.shape[-1]
        if trailing_singleton(drift, z) or (drift.dim() and drift.shape[-1] not in (1, width)):
            raise ValueError(_shape_text("drift", drift, z, "it must broadcast against the state"))
        problem = noise.shape_error(diffusion, z)
        if problem:
            raise ValueError(_shape_text(f"{self.sde.noise_type} diffusion", diffusion, z, problem))
        self._brownian_dim = noise.brownian_dim(diffusion, width)
        if control is not None and control.dim() and control.shape[-1] not in (1, self._brownian_dim):
            msg = (
                f"`control` must return shape (..., {self._brownian_dim}), one entry per Brownian motion of "
                f"{self.sde.noise_type} noise; received {tuple(control.shape)}."
            )
            raise ValueError(msg)
        for name, value in (("drift", drift), ("diffusion", diffusion), ("control", control)):
            self._check_kind(name, value)
        shapes = [("state", z.shape[:-1]), ("drift", drift.shape[:-1]), ("diffusion", noise.batch_shape(diffusion))]
        shapes += [] if control is None else [("control", control.shape[:-1])]
        return _broadcast(shapes)

    # ---------------------------------------------------------------- law
    def noise_shape(self, batch: torch.Size | None = None) -> torch.Size:
        """Shape ``(*batch, K, M)`` of the standard normal noise that drives a path."""
        batch = self.batch_shape if batch is None else batch
        return torch.Size((*batch, self.grid.num_steps, self._brownian_dim))

    def simulate(self, initial: Tensor) -> Tensor:
        """Path from given first states ``(..., D)`` with fresh noise."""
        shape = (*initial.shape[:-1], self._brownian_dim)
        execution = self.execution or Execution.current()
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
        self._check_kind("initial", initial)
        with self.effects:
            path, coefficients = solve(EulerMaruyama(), self.sde, self.grid, initial, noise, self._rows, execution)
        self._check_finite(path)
        if coefficients:
            self._memo.keep(path, coefficients)
        return path

    def __getstate__(self) -> dict[str, object]:
        """State without links to sampled paths, for copies and pickles."""
        return {**super().__getstate__(), "_memo": PathMemo()}

    def noise_of(self, path: Tensor) -> Tensor:
        """Standard normal noise ``(..., K, M)`` that drives a path; 0 on padded steps and directions without noise."""
        kernels = self.kernels(path)
        standard, _ = kernels.range.coordinates(kernels.residual())
        standard = torch.where(kernels.moving, standard / kernels.safe_steps.sqrt(), torch.zeros_like(standard))
        return standard.movedim(0, -2)

    def kernels(self, path: Tensor) -> EulerKernels:
        """Transition kernels along a path, all steps in one call of drift, diffusion and control."""
        return self._kernels(path, None)

    def sampled_kernels(self, path: Tensor) -> EulerKernels:
        """As `kernels`, without any call for the path that this law sampled last through the loop."""
        rank = max(path.dim() - 2, len(self.batch_shape))
        return self._kernels(path, self._memo.recall(path, rank + 2, self.sde.noise.matrix_dims))

    def kernels_beside(self, path: Tensor, law: PathDistribution, kernels: TransitionKernels) -> EulerKernels:
        """Kernels along a path; a drift or diffusion that the other law has too is not evaluated again.

        So the divergence of ``prior.controlled(control)`` from ``prior`` costs no call of the prior.
        """
        rank = max(path.dim() - 2, len(self.batch_shape))
        if (
            not isinstance(law, SDEPath)
            or not isinstance(kernels, EulerKernels)
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
        return kernels.with_drift(self._in_blocks(self.sde.without_diffusion(), times[:-1], states[:-1]).drift)

    def _kernels(self, path: Tensor, coefficients: Coefficients | None) -> EulerKernels:
        states, times, steps = self._layout(path)
        if coefficients is None:
            coefficients = self._in_blocks(self.sde, times[:-1], states[:-1])
        return EulerKernels(self.sde.noise, coefficients, states, times, steps)

    def _layout(self, path: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States, times and steps, time leftmost.

        Batch dimensions of captured tensors stand right of time, so the path gets the rank that the probe found.
        """
        if path.dim() < 2 or path.shape[-2] != self.grid.num_steps + 1:
            msg = f"`path` must have shape (..., {self.grid.num_steps + 1}, D), received {tuple(path.shape)}."
            raise ValueError(msg)
        rank = max(path.dim() - 2, len(self.batch_shape))
        times, steps = (time_first(part.unsqueeze(-1), rank) for part in (self.grid.times, self.grid.steps))
        return time_first(path, rank), times, steps

    def _in_blocks(self, sde: SDE, times: Tensor, states: Tensor) -> Coefficients:
        """Coefficients at all times, a block of steps at a time: temporaries of larger batches leave the cache.

        If memory is low, a block keeps its inputs only and is evaluated again for its gradient.
        """
        rows = tuple(None if row is None else time_first(row, states.dim() - 2) for row in self._rows)
        execution = self.execution or Execution.current()
        steps = max(1, execution.block_rows // max(1, math.prod(states.shape[1:-1])))

        def parts(rows: tuple[Tensor | None, ...]) -> Iterator[tuple[Tensor, Tensor, tuple[Tensor | None, ...]]]:
            split = zip(*(repeat(None) if row is None else row.split(steps) for row in rows), strict=False)
            return zip(times.split(steps), states.split(steps), split, strict=False)

        def anew(t: Tensor, z: Tensor, *row: Tensor | None) -> Coefficients:
            with self.effects:
                return sde.coefficients(t, z, row)

        if execution.memory == "low":
            blocks = [checkpoint(anew, t, z, *row, use_reentrant=False) for t, z, row in parts(rows)]
        elif steps >= len(states):
            return anew(times, states, *rows)
        else:
            with self.effects:
                evaluate, rows = sde.evaluator(rows)
                blocks = [evaluate(t, z, row) for t, z, row in parts(rows)]
        drifts, diffusions, controls = zip(*blocks, strict=True)
        matrix = self.sde.noise.matrix_dims
        return Coefficients(
            _join(drifts, states.dim(), steps),
            _join(diffusions, states.dim() + matrix, steps),
            None if controls[0] is None else _join(controls, states.dim(), steps),
        )

    def check_same_grid(self, other: PathDistribution) -> None:
        """Times must agree to round-off."""
        grid = getattr(other, "grid", None)
        if not isinstance(grid, TimeGrid):
            return
        ours, theirs = self.grid.times.detach(), grid.times.detach()
        if not _same_times(ours, theirs):
            msg = (
                f"guide and model use different grids: guide {self.grid}, model {grid}. Build one TimeGrid and "
                "pass it to both."
            )
            raise ValueError(msg)

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


def _broadcast(shapes: list[tuple[str, torch.Size]]) -> torch.Size:
    different = {shape for _, shape in shapes if shape}
    if len(different) < 2:  # torch's function is slow
        return different.pop() if different else torch.Size()
    try:
        return torch.broadcast_shapes(*(shape for _, shape in shapes))
    except RuntimeError as error:
        received = ", ".join(f"`{name}` {tuple(shape)}" for name, shape in shapes)
        msg = (
            f"batch shapes must broadcast against each other, received {received}. A tensor with one entry per series "
            "must have shape (B, 1) in a drift, diffusion or control."
        )
        raise ValueError(msg) from error


def _join(parts: tuple[Tensor, ...], dims: int, steps: int) -> Tensor:
    """Blocks of one coefficient along time; one that has no time axis is the same in every block."""
    first = parts[0]
    if first.dim() < dims or (first.shape[0] == 1 and steps > 1):
        return first
    return torch.cat(parts)


def _same_times(ours: Tensor, theirs: Tensor) -> bool:
    """Equal to round-off, where batch dimensions broadcast."""
    pairs = zip(reversed(ours.shape), reversed(theirs.shape), strict=False)
    if ours.shape[-1] != theirs.shape[-1] or any(a != b and 1 not in (a, b) for a, b in pairs):
        return False
    round_off = 16 * torch.finfo(ours.dtype).eps * float(ours.abs().max())
    return bool(((ours - theirs).abs() <= round_off).all())


def _first_row(row: Tensor) -> Tensor:
    return row[..., 0, :] if row.shape[-2] else row.new_zeros((*row.shape[:-2], row.shape[-1]))


def _argument(law: Distribution) -> Tensor | None:
    """Some floating-point argument of a law, to see its dtype and device without drawing from it."""
    while isinstance(base := getattr(law, "base_dist", None), Distribution):
        law = base
    arguments = (law.__dict__.get(name) for name in law.arg_constraints)
    return next((a for a in arguments if isinstance(a, Tensor) and a.is_floating_point()), None)


def _shape_text(name: str, value: Tensor, z: Tensor, advice: str) -> str:
    return f"`{name}` returned shape {tuple(value.shape)} for states of shape {tuple(z.shape)}: {advice}."
