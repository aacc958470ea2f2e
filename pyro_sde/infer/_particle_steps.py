r"""Path laws one step at a time, for particles: states with particles leftmost, ``(P, *batch, D)``.

`stepwise` gives the stepper of a law. A law of another kind is supported by a `Stepper` of its own, registered with
``stepwise.register``.
"""

from __future__ import annotations

from functools import singledispatch

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..distributions.gaussian_kernels import GaussianKernels
from ..distributions.gaussian_path import GaussianPath
from ..distributions.kernels import EulerKernels, TransitionKernels
from ..distributions.markov_path import MarkovPath
from ..distributions.sde_path import SDEPath
from ..distributions.solver_kernels import kernels_for
from ..ops._psd import psd_factor
from ..ops.brownian import brownian_increments, normal_width
from ..ops.grid import TimeGrid
from ..ops.layout import time_first
from ..sde.base import SDE, Coefficients
from ..solvers.base import Field, Rows, State, Step
from ..solvers.derivatives import state_jacobian
from ..solvers.loop import euler_step
from ._particle_stepper import Move, Stepper, unknown_law

__all__ = ["stepwise"]


@singledispatch
def stepwise(law: object) -> Stepper:
    """Stepper of a path law.

    Raises:
        TypeError: if particles cannot step a law of this kind.
        ValueError: if it draws its noise from a Brownian motion that is given.
    """
    raise TypeError(unknown_law(law))


class _OneStep:
    """What `kernels_for` needs of a law, for the inputs of one step."""

    def __init__(self, sde: SDE, rows: Rows, law: SDEPath) -> None:
        self.sde = sde
        self._rows = rows
        self._law = law

    def coefficients_along(self, sde: SDE, times: Tensor, states: Tensor) -> Coefficients:
        """Coefficients at times ``(1, ..., 1)`` and states ``(1, ..., D)``."""
        with self._law.effects:
            return sde.coefficients(times, states, self._rows)

    def drift_jacobian_along(self, times: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Drift ``(1, ..., D)`` and its Jacobian ``(1, ..., D, D)``."""
        noise = self.sde.noise
        return state_jacobian(lambda z: self.coefficients_along(self.sde, times, z).total_drift(noise), states)


class _SDEStepper(Stepper):
    law: SDEPath

    def __init__(self, law: SDEPath) -> None:
        super().__init__(law)
        if law.brownian is not None:
            msg = (
                "the path law has `brownian`, so its path is a function of seeds, and particles that descend from one "
                "another would move alike. Leave `brownian` out."
            )
            raise ValueError(msg)
        self._solver = law.solver
        self._noise = law.sde.noise
        with law.effects:
            self._evaluate, rows = law.sde.evaluator(law._rows)
            self._field = None if law.solver.is_euler else Field(law._stepped, law._stepped.bind_rows(law.inputs))
        self._rows = _by_step(rows, self.num_steps)
        self._own_rows = _by_step(law._rows, self.num_steps)
        self._field_rows = self._rows if self._field is None else _by_step(self._field.rows, self.num_steps)
        rank = len(law.grid.batch_shape)
        self._times = time_first(law.grid.times.unsqueeze(-1), rank)  # (K + 1, *batch, 1)
        self._steps = time_first(law.grid.steps.unsqueeze(-1), rank)
        self._width = normal_width(law._brownian_dim, law.solver.levy)
        self._roots = torch.where(self._steps > 0, self._steps, torch.ones_like(self._steps)).sqrt() * (self._steps > 0)
        self._padded = not bool((self._steps > 0).all())

    def advance(self, k: int, z: Tensor, carried: State | None, *, scored: bool) -> Move:
        normal = torch.randn((*z.shape[:-1], self._width), dtype=z.dtype, device=z.device)
        if self._field is not None:
            following, carried = self._solver_step(self._field, k, z, normal, carried)
            return Move(following, carried, self.log_density(k, z, following) if scored else None)
        with self.law.effects:
            coefficients = self._evaluate(self._times[k], z, self._rows[k])
        following = euler_step(self._noise, z, self._steps[k], self._roots[k] * normal, coefficients)
        if not scored:
            return Move(following, (), None)
        return Move(following, (), self._kernels(k, z, following, coefficients).log_prob()[0])

    def _solver_step(
        self, field: Field, k: int, z: Tensor, normal: Tensor, carried: State | None
    ) -> tuple[Tensor, State]:
        dt = self._steps[k]
        moving = dt > 0
        safe = torch.where(moving, dt, torch.ones_like(dt))  # a solver never sees a step of size 0
        with self.law.effects:
            if carried is None:
                carried = self._solver.start(field, self._times[k], z, self._field_rows[k])
            increments = brownian_increments(safe, normal, self._solver.levy)
            following, new = self._solver.step(field, z, Step(self._times[k], increments, self._field_rows[k]), carried)
        if not self._padded:
            return following, new
        kept = (
            torch.where(moving.unsqueeze(-1) if after.dim() > z.dim() else moving, after, before)
            for after, before in zip(new, carried, strict=True)
        )
        return torch.where(moving, following, z), tuple(kept)

    def log_density(self, k: int, z: Tensor, following: Tensor) -> Tensor:
        if not self._solver.is_euler:
            law = _OneStep(self.law.sde, self._own_rows[k], self.law)
            kernels = kernels_for(self._solver, law, *self._layout(k, z, z))
            if isinstance(kernels, GaussianKernels):  # linearised once per state, not per pair of states
                kernels.path = self._layout(k, z, following)[0]
            else:
                kernels = kernels_for(self._solver, law, *self._layout(k, z, following))
            return kernels.log_prob()[0]
        with self.law.effects:
            coefficients = self._evaluate(self._times[k], z, self._rows[k])
        return self._kernels(k, z, following, coefficients).log_prob()[0]

    def _kernels(self, k: int, z: Tensor, following: Tensor, coefficients: Coefficients) -> TransitionKernels:
        return EulerKernels(self._noise, coefficients, *self._layout(k, z, following))

    def _layout(self, k: int, z: Tensor, following: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The step as a path of two points: states ``(2, ..., D)``, times ``(2, ..., 1)`` and steps ``(1, ..., 1)``."""
        path = torch.stack(torch.broadcast_tensors(z, following))
        rank = path.dim() - 2
        times, steps = self.law.grid.times[..., k : k + 2], self.law.grid.steps[..., k : k + 1]
        return path, time_first(times.unsqueeze(-1), rank), time_first(steps.unsqueeze(-1), rank)

    def moving(self, k: int) -> Tensor | None:
        return _moving(self.law.grid, k)

    def time(self, k: int) -> str:
        return _time_text(self.law.grid, k)


class _GaussianStepper(Stepper):
    law: GaussianPath

    def __init__(self, law: GaussianPath) -> None:
        super().__init__(law)
        chain, dtype = law.chain, law.chain.dtype
        self._covariance = chain.noise.double().movedim(-3, 0)
        self._transition = chain.transition.double().movedim(-3, 0)  # (K, *batch, D, D)
        self._offset = time_first(chain.offset.double(), chain.offset.dim() - 2)
        self._matrices = self._transition.to(dtype)
        self._shifts = self._offset.to(dtype)
        self._factors = psd_factor(self._covariance).to(dtype)

    def advance(self, k: int, z: Tensor, carried: State | None, *, scored: bool) -> Move:
        following = _apply(self._matrices[k], z) + _apply(self._factors[k], torch.randn_like(z)) + self._shifts[k]
        return Move(following, carried, self.log_density(k, z, following) if scored else None)

    def log_density(self, k: int, z: Tensor, following: Tensor) -> Tensor:
        path = torch.stack(torch.broadcast_tensors(z, following))
        mean = _apply(self._transition[k], z.double()) + self._offset[k]
        rank = path.dim() - 2
        times = time_first(self.law.grid.times[..., k : k + 2].unsqueeze(-1), rank)
        moving = time_first(self.law.grid.steps[..., k : k + 1].unsqueeze(-1), rank) > 0
        mean = mean.expand(torch.broadcast_shapes(mean.shape, path.shape[1:])).unsqueeze(0)
        return GaussianKernels(mean, self._covariance[k], path, times, moving).log_prob()[0]

    def moving(self, k: int) -> Tensor | None:
        return _moving(self.law.grid, k)

    def time(self, k: int) -> str:
        return _time_text(self.law.grid, k)


class _MarkovStepper(Stepper):
    law: MarkovPath

    def advance(self, k: int, z: Tensor, carried: State | None, *, scored: bool) -> Move:
        law = self._law(k, z)
        leading = z.shape[: z.dim() - len(self.tail)]
        if law.batch_shape != leading:  # what does not depend on the state must still be drawn for every particle
            law = law.expand(leading)
        following = law.rsample() if law.has_rsample else law.sample()
        density = law.log_prob(following) if scored else None  # now, while a flow remembers where it came from
        moving = self.moving(k)
        if moving is not None:
            following = torch.where(moving.unsqueeze(-1) if self.tail else moving, following, z)
            density = None if density is None else torch.where(moving, density, density.new_zeros(()))
        return Move(following, carried, density)

    def log_density(self, k: int, z: Tensor, following: Tensor) -> Tensor:
        density = self._law(k, z).log_prob(following)
        moving = self.moving(k)
        return density if moving is None else torch.where(moving, density, density.new_zeros(()))

    def _law(self, k: int, z: Tensor) -> Distribution:
        dtype = z.dtype if z.is_floating_point() else torch.get_default_dtype()
        row = None if self.law.inputs is None else self.law.inputs[..., k, :]
        if row is not None:
            row = row.expand(*z.shape[: z.dim() - len(self.tail)], -1)
        return self.law.transition_law(z, torch.full((1,), k + 1, dtype=dtype, device=z.device), row)

    def moving(self, k: int) -> Tensor | None:
        return None if self.law.lengths is None else self.law.lengths > k + 1

    def observation_points(self) -> tuple[Tensor, Tensor]:
        mask = self.law.point_mask
        return torch.arange(self.law.length, device=mask.device), mask

    def time(self, k: int) -> str:
        return f"state {k}"


def _apply(matrix: Tensor, z: Tensor) -> Tensor:
    """``(*batch, D, D), (P, *batch, D) -> (P, *batch, D)``, one product per series for all its particles."""
    if matrix.dim() == 2:
        return z @ matrix.mT
    rank = matrix.dim() - 2
    flat = z.reshape(-1, *z.shape[-rank - 1 :])  # (particles, *batch, D)
    return (flat.movedim(0, -2) @ matrix.mT).movedim(-2, 0).reshape(z.shape)


def _by_step(rows: Rows, num_steps: int) -> list[Rows]:
    """Inputs ``(*batch, K, C)`` of every step."""
    parts = [[None] * num_steps if row is None else row.unbind(-2) for row in rows]
    return [tuple(part[k] for part in parts) for k in range(num_steps)]


def _moving(grid: TimeGrid, k: int) -> Tensor | None:
    moving = grid.steps[..., k] > 0
    return None if bool(moving.all()) else moving


def _time_text(grid: TimeGrid, k: int) -> str:
    times = grid.times.detach()[..., k]
    low, high = float(times.min()), float(times.max())
    return f"time {low:g}" if low == high else f"times {low:g} to {high:g}"


@stepwise.register
def _(law: SDEPath) -> Stepper:
    return _SDEStepper(law)


@stepwise.register
def _(law: GaussianPath) -> Stepper:
    return _GaussianStepper(law)


@stepwise.register
def _(law: MarkovPath) -> Stepper:
    return _MarkovStepper(law)
